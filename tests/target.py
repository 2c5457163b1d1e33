"""The package under test, under one name.

Almost every test of the receive side states a promise of the API that `spead2`_ has too. With
``XDPSPEAD_TEST_PEER=spead2`` in the environment those tests run on spead2, which is how they were
proven to state the truth; tests of our own additions carry the mark ``ours`` and are left out.

.. _spead2: https://pypi.org/project/spead2/
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import itertools
import os
import random
import select
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import model
import pytest
import wire

#: Name of the package under test.
PACKAGE = os.environ.get("XDPSPEAD_TEST_PEER") or "xdpspead"
#: True unless the tests run on the peer.
OURS = PACKAGE == "xdpspead"

sp: Any = importlib.import_module(PACKAGE)
recv: Any = importlib.import_module(PACKAGE + ".recv")

#: Name of the logger that the package writes to.
LOGGER = PACKAGE

#: Below the range from which the kernel chooses (32768 and up); each process begins elsewhere.
_ports = itertools.islice(itertools.cycle(range(10_000, 32_000)), random.randrange(22_000), None)

#: Seconds after which anything that has not happened counts as never happening.
DEADLINE = 10.0


#: Our statistic for each reason why a packet is refused. The keys are those of `model`.
REASONS = {
    # by the parser
    "bad_magic": "xdpspead.bad_magic",
    "bad_flavour": "xdpspead.bad_flavour",
    "truncated_header": "xdpspead.truncated_header",
    "missing_item": "xdpspead.missing_item",
    "short_packet": "xdpspead.short_packet",
    "long_packet": "xdpspead.long_packet",
    "offset_overflow": "xdpspead.offset_overflow",
    "truncated_datagram": "xdpspead.truncated_datagram",
    "empty_datagram": "xdpspead.empty_datagram",
    # by the window
    "gap": "xdpspead.gap",
    "late": "xdpspead.late",
    "behind": "xdpspead.behind",
    "duplicate": "xdpspead.duplicate",
    "overlap": "xdpspead.overlap",
    "length_mismatch": "xdpspead.length_mismatch",
    "flavour_mismatch": "xdpspead.flavour_mismatch",
    "unsized": "xdpspead.unsized",
    "too_large": "xdpspead.too_large",
    "no_memory": "xdpspead.no_memory",
    "too_many_items": "xdpspead.too_many_items",
    "too_many_ranges": "xdpspead.too_many_ranges",
}
#: Reasons that concern packets which never became packets: they are not in `packets`.
PARSER_REASONS = frozenset(list(REASONS)[:9])
#: Heaps, finished or live, that were lost because stop() was called.
DROPPED_STOP = "xdpspead.heaps_dropped_stop"
#: What the XDP program and the AF_XDP sockets count, by short name.
XDP = {
    "matched": "xdpspead.xdp_matched",
    "redirected": "xdpspead.xdp_redirected",
    "no_socket": "xdpspead.xdp_no_socket",
    "bad_length": "xdpspead.xdp_bad_length",
    "fragments": "xdpspead.xdp_fragments",
    "extension_headers": "xdpspead.xdp_extension_headers",
    "other_source": "xdpspead.xdp_other_source",
    "bad_frame": "xdpspead.xdp_bad_frame",
    "unread_drops": "xdpspead.xdp_unread_drops",
    "rx_dropped": "xdpspead.xdp_rx_dropped",
    "rx_invalid": "xdpspead.xdp_rx_invalid",
    "rx_ring_full": "xdpspead.xdp_rx_ring_full",
}
#: Datagrams that the kernel dropped because the socket's buffer was full.
KERNEL_DROPS = "xdpspead.udp_kernel_drops"


def refusals(stats: Any) -> dict[str, int]:
    """Return every reason that counted something, by its short name."""
    return {reason: stats[name] for reason, name in REASONS.items() if stats[name]}


def xdp_counts(stats: Any) -> dict[str, int]:
    """Return what the XDP program and the sockets counted, by short name, without the zeroes."""
    return {short: stats[name] for short, name in XDP.items() if stats[name]}


def wait_for(condition: Callable[[], object], what: str, timeout: float = DEADLINE) -> None:
    """Poll until `condition` is true, or fail by saying what never came."""
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"not within {timeout} s: {what}")
        time.sleep(0.002)


def need_tree_open_to_all() -> None:
    """Skip a test of which a part runs as an ordinary user, where such a user cannot read the tree.

    That is so where root keeps it at home.
    """
    for folder in Path(__file__).resolve().parents:
        if not folder.stat().st_mode & stat.S_IXOTH:
            why = f"part of it runs as nobody, to whom {folder} is closed: 'chmod o+x {folder}'"
            if os.environ.get("CI"):
                pytest.fail(why)
            pytest.skip(why)


def next_heap(stream: Any, timeout: float = DEADLINE) -> Any:
    """Return the stream's next heap, waiting on its file descriptor with a deadline."""
    end = time.monotonic() + timeout
    while True:
        try:
            return stream.get_nowait()
        except sp.Empty:
            left = end - time.monotonic()
            if left <= 0:
                raise AssertionError(f"no heap within {timeout} s; {stats_of(stream)}") from None
            select.select([stream.fd], [], [], left)


def drain(stream: Any, timeout: float = DEADLINE) -> list[Any]:
    """Return every heap up to the end of the stream, which must come before the deadline."""
    heaps = []
    while True:
        try:
            heaps.append(next_heap(stream, timeout))
        except sp.Stopped:
            return heaps


def take(stream: Any, n: int, timeout: float = DEADLINE) -> list[Any]:
    """Return the next `n` heaps."""
    return [next_heap(stream, timeout) for _ in range(n)]


def stats_of(stream: Any) -> dict[str, int]:
    """Return the statistics that are not zero, for messages."""
    return {name: value for name, value in stream.stats.items() if value}


def new_stream(
    *, heaps: int = 256, pool: Any = None, ring: dict[str, Any] | None = None, **config: Any
) -> Any:
    """Return a stream whose ring is large enough not to block, unless told otherwise."""
    return recv.Stream(
        sp.ThreadPool() if pool is None else pool,
        recv.StreamConfig(**config),
        recv.RingStreamConfig(**{"heaps": heaps, **(ring or {})}),
    )


def receive(packets: Iterable[Any], **kwargs: Any) -> tuple[list[Any], Any]:
    """Send packets through a buffer reader; return the heaps and the final statistics."""
    stream = new_stream(**kwargs)
    stream.add_buffer_reader(wire.join(packets))
    heaps = drain(stream)
    # The last heap may be out before the statistics of its batch are in; stop() waits for both.
    stream.stop()
    return heaps, stream.stats


def show(heap: Any, incomplete: Any = None) -> model.HeapResult:
    """Return a received heap in the form that the model produces.

    `incomplete` is the class of incomplete heaps, if the heap is not of the package under test.
    """
    items = tuple(
        model.Item(item.id, item.is_immediate, bytes(memoryview(item))) for item in heap.get_items()
    )
    for item in heap.get_items():
        if item.is_immediate:
            assert item.immediate_value == int.from_bytes(bytes(memoryview(item)), "big")
    common: dict[str, Any] = {
        "cnt": heap.cnt,
        "address_bits": heap.flavour.heap_address_bits,
        "items": items,
        "start": heap.is_start_of_stream(),
        "end": heap.is_end_of_stream(),
    }
    if isinstance(heap, incomplete or recv.IncompleteHeap):
        return model.HeapResult(
            complete=False,
            heap_length=heap.heap_length,
            received_length=heap.received_length,
            payload_ranges=tuple(tuple(r) for r in heap.payload_ranges),
            **common,
        )
    return model.HeapResult(complete=True, **common)


def values(heap: Any) -> list[tuple[int, bytes]]:
    """Return (item id, bytes) of every item of a heap, in the heap's order."""
    return [(item.id, bytes(memoryview(item))) for item in heap.get_items()]


def payload(heap: Any) -> bytes:
    """Return the bytes of a heap that consists of one addressed item."""
    ((_, value),) = values(heap)
    return value


def has_ipv6() -> bool:
    """Return whether this machine has the loopback address of IPv6."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as sock:
        sock.bind(("::1", 0))
        return True
    return False


def _is_free(port: int) -> bool:
    families = [socket.AF_INET, socket.AF_INET6] if has_ipv6() else [socket.AF_INET]
    for family in families:
        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
            with socket.socket(family, kind) as sock:
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                try:
                    sock.bind(("", port))
                except OSError:
                    return False
    return True


def free_port() -> int:
    """Return a port that nobody uses at the moment, neither for UDP nor for TCP, on any address.

    It is none that the kernel gives to sockets which do not ask for one, so that no connection can
    take it, nor be remembered there, before the test binds it; and it is not given out twice.
    """
    return next(port for port in _ports if _is_free(port))


def descriptors() -> int:
    """Return how many descriptors this process has open, without those of garbage."""
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


class Sender:
    """A UDP socket that sends SPEAD packets to one port of this host."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_DGRAM)
        self.socket.connect((host, port))

    def __enter__(self) -> Sender:
        return self

    def __exit__(self, *args: object) -> None:
        self.socket.close()

    def send(self, *packets: wire.Packet | bytes) -> None:
        """Send each packet as one datagram."""
        for packet in packets:
            self.socket.send(packet if isinstance(packet, bytes) else packet.encode())


def udp_stream(**kwargs: Any) -> tuple[Any, Sender]:
    """Return a stream that reads a fresh UDP port of this host, and a sender to that port."""
    stream = new_stream(**kwargs)
    # The kernel hands out the port and the socket form keeps it, so no other process can take it.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        stream.add_udp_reader(sock)
    return stream, Sender(port)


def settled(stream: Any, packets: int) -> Any:
    """Return the statistics as soon as they account for `packets` packets."""
    wait_for(
        lambda: stream.stats.packets >= packets,
        f"{packets} packets counted, there are {stats_of(stream)}",
    )
    return stream.stats


def in_thread(function: Callable[[], object]) -> threading.Thread:
    """Start `function` in a daemon thread and return the thread."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    return thread
