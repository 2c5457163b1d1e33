"""A sender in a process of its own, pinned to one core: as many packets or heaps as it can.

``network`` sends heaps of equal packets, which are all built before, and counts packets; ``heaps``
sends small heaps and counts those. CPU time is that of the whole process, user and system, so that
a library's own threads are in it. On a veth pair, and on the loopback interface, the kernel also
does the receiver's half on the sender's core and in its time, for both libraries alike: that part
makes their ratio come nearer to 1 than it would be with a network card.

``generate`` sends the packets of the receive benchmark at a rate, in place of the generator within
the kernel, and answers as that does.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import importlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from bench import library, packets

#: Header of a packet with the pointer of one item.
HEADER = 8 + 5 * 8
PACKETS_PER_HEAP = 64
HEAPS_PER_GROUP = 16
#: Small heaps.
HEAP_SIZE = 1024
LIST_HEAPS = 64
IN_FLIGHT = 16
#: After so many heaps a queue is thrown away, with what is in it: nobody reads it.
QUEUE_HEAPS = 10_000
_WARM_UP = 0.2
_PR_SET_PDEATHSIG = 1


def child(arguments: dict[str, Any]) -> None:
    """Measure what *arguments* ask for and print it as JSON, after a warm-up that prints a line."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's business
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    os.sched_setaffinity(0, {arguments["core"]})
    modes = {"network": network, "heaps": heaps, "generate": generate}
    try:
        modes[arguments["mode"]](arguments)
    except Exception as error:  # noqa: BLE001 (told to the parent)
        _answer({"error": f"{type(error).__name__}: {error}"})


def _answer(value: dict[str, Any]) -> None:
    print(json.dumps(value), flush=True)


class _Sender:
    """The library's sender, its thread pool and its stream."""

    def __init__(self, arguments: dict[str, Any], **config: Any) -> None:
        self.lib = library.load(arguments["library"])
        self.send = importlib.import_module(f"{self.lib.name}.send")
        self.pool = self.lib.base.ThreadPool(1, [arguments["core"]])
        self.config = self.send.StreamConfig(**config)
        endpoints = [(arguments["address"], arguments["port"])]
        if arguments["transport"] == "xdp":
            xdp = self.send.UdpXdpConfig(endpoints=endpoints, interface=arguments["interface"])
            self.stream = self.send.UdpXdpStream(self.pool, self.config, xdp)
        else:
            self.stream = self.send.UdpStream(self.pool, endpoints, self.config)

    def heap(self, value: Any) -> Any:
        """Return a heap of one array, every packet of which has the item's pointer."""
        return heap_of(self.lib, self.send, value, repeat_pointers=True)


def heap_of(lib: Any, send: Any, value: Any, *, repeat_pointers: bool = False) -> Any:
    """Return a heap of one array, without its descriptor."""
    heap = send.Heap(lib.base.Flavour(4, 64, 48, 0))
    item = lib.base.Item(packets.ITEM_ID, "data", "", value.shape, value.dtype, value=value)
    heap.add_item(item)
    heap.repeat_pointers = repeat_pointers
    return heap


# ---- packets per second -------------------------------------------------------------------------


def network(arguments: dict[str, Any]) -> None:
    """Send packets for some seconds, as many as go out; print how many there were, and CPU time."""
    payload = arguments["payload"]
    sender = _Sender(arguments, max_packet_size=payload + HEADER, max_heaps=HEAPS_PER_GROUP)
    rng = np.random.default_rng(1)
    data = rng.integers(0, 256, (HEAPS_PER_GROUP, PACKETS_PER_HEAP * payload), np.uint8)
    references = [sender.send.HeapReference(sender.heap(row)) for row in data]
    group = sender.send.HeapReferenceList(references)
    bytes_per_group = HEAPS_PER_GROUP * PACKETS_PER_HEAP * (payload + HEADER)

    def once() -> int:
        sent = sender.stream.send_heaps(group, sender.send.GroupMode.SERIAL)
        if sent != bytes_per_group:
            raise RuntimeError(f"{sent} bytes were sent, not {bytes_per_group}")
        return HEAPS_PER_GROUP * PACKETS_PER_HEAP

    _report(once, arguments, "packets")


def _report(once: Callable[[], int], arguments: dict[str, Any], what: str) -> None:
    """Call a function again and again; print how much it did, in how long, at which cost."""
    end = time.perf_counter() + _WARM_UP * arguments["seconds"]
    while time.perf_counter() < end:
        once()
    _answer({"ready": True})
    sys.stdin.readline()
    n = 0
    cpu, start = time.process_time_ns(), time.perf_counter()
    end = start + arguments["seconds"]
    now = start
    while now < end:
        n += once()
        now = time.perf_counter()
    cpu = time.process_time_ns() - cpu
    _answer({what: n, "seconds": now - start, "cpu_ns": cpu / n, "per_s": n / (now - start)})


# ---- small heaps per second ---------------------------------------------------------------------


def heaps(arguments: dict[str, Any]) -> None:
    """Send heaps of one item of 1 KiB for some seconds; print how many there were.

    ``sync`` makes a new heap from an item group each time, ``list`` sends a prepared list, and
    ``asyncio`` is ``sync`` with several heaps under way. UDP goes to a socket on this host that
    nobody reads, queues are thrown away now and then.
    """
    lib = library.load(arguments["library"])
    asynchronous = arguments["how"] == "asyncio"
    send = importlib.import_module(f"{lib.name}.send")
    module = importlib.import_module(f"{lib.name}.send.asyncio") if asynchronous else send
    pool = lib.base.ThreadPool(1, [arguments["core"]])
    config = send.StreamConfig(max_heaps=max(LIST_HEAPS, IN_FLIGHT), max_packet_size=1472)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sink:
        sink.bind(("127.0.0.1", 0))
        sink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)

        def make() -> Any:
            if arguments["transport"] == "udp":
                return module.UdpStream(pool, [sink.getsockname()], config)
            return module.InprocStream(pool, [lib.base.InprocQueue()], config)

        streams = _streams(make, renewed=arguments["transport"] == "inproc")
        if asynchronous:
            loop = asyncio.new_event_loop()
            once = _asyncio_step(lib, send, streams, loop)
        elif arguments["how"] == "list":
            once = _list_step(lib, send, streams)
        else:
            once = _sync_step(lib, send, streams)
        gc.collect()
        _report(once, arguments, "heaps")


def _streams(make: Callable[[], Any], *, renewed: bool) -> Iterator[Any]:
    """Yield a stream for the next `QUEUE_HEAPS` heaps, again and again."""
    stream = make()
    while True:
        yield stream
        if renewed:
            stream = None  # and its queue, before there is another one
            stream = make()


def _group(lib: Any, send: Any) -> Any:
    group = send.ItemGroup()
    value = np.arange(HEAP_SIZE).astype(np.uint8)
    group.add_item(packets.ITEM_ID, "data", "", (HEAP_SIZE,), np.uint8, value=value)
    return group


def _sync_step(lib: Any, send: Any, streams: Iterator[Any]) -> Callable[[], int]:
    group = _group(lib, send)

    def once() -> int:
        stream = next(streams)
        for _ in range(QUEUE_HEAPS // 10):
            stream.send_heap(group.get_heap(descriptors="none", data="all"))
        return QUEUE_HEAPS // 10

    return once


def _list_step(lib: Any, send: Any, streams: Iterator[Any]) -> Callable[[], int]:
    data = np.zeros((LIST_HEAPS, HEAP_SIZE), np.uint8)
    references = [send.HeapReference(heap_of(lib, send, row)) for row in data]
    prepared = send.HeapReferenceList(references)
    serial = send.GroupMode.SERIAL
    times = QUEUE_HEAPS // LIST_HEAPS

    def once() -> int:
        stream = next(streams)
        for _ in range(times):
            stream.send_heaps(prepared, serial)
        return times * LIST_HEAPS

    return once


def _asyncio_step(
    lib: Any, send: Any, streams: Iterator[Any], loop: asyncio.AbstractEventLoop
) -> Callable[[], int]:
    group = _group(lib, send)
    n = QUEUE_HEAPS // 10

    async def run() -> int:
        stream = next(streams)
        under_way: list[Any] = []
        for _ in range(n):
            if len(under_way) == IN_FLIGHT:
                # Half of them, so that the loop does not have to wake up for each.
                await asyncio.gather(*under_way[: IN_FLIGHT // 2])
                del under_way[: IN_FLIGHT // 2]
            heap = group.get_heap(descriptors="none", data="all")
            under_way.append(stream.async_send_heap(heap))
        await asyncio.gather(*under_way)
        return n

    return lambda: loop.run_until_complete(run())


# ---- at a rate, for receivers -------------------------------------------------------------------


def generate(arguments: dict[str, Any]) -> None:
    """Send stamped heaps at a rate, as ``generate.c`` does; print what became of it."""
    payload, per_heap = arguments["payload"], arguments["packets_per_heap"]
    packet = payload + HEADER
    sender = _Sender(
        arguments,
        max_packet_size=packet,
        max_heaps=HEAPS_PER_GROUP,
        rate=arguments["rate"] * packet,
        burst_size=64 * packet,
    )
    n_heaps = -(-arguments["count"] // per_heap)
    one = np.concatenate([packets.expected_packet(0, i, payload) for i in range(per_heap)])
    data = np.tile(one, (HEAPS_PER_GROUP, 1))
    stamps = data.reshape(HEAPS_PER_GROUP, per_heap, payload)[:, :, : packets.STAMP_SIZE]
    references = [sender.send.HeapReference(sender.heap(row)) for row in data]
    index = np.arange(per_heap, dtype=np.uint64)
    print("ready", flush=True)
    sys.stdin.readline()
    start = time.perf_counter()
    for first in range(0, n_heaps, HEAPS_PER_GROUP):
        n = min(HEAPS_PER_GROUP, n_heaps - first)
        for i in range(n):
            heap_id = arguments["first_heap"] + first + i
            stamp = (np.uint64(heap_id << 16) | index).astype(">u8")
            stamps[i] = stamp.view(np.uint8).reshape(per_heap, packets.STAMP_SIZE)
            references[i].cnt = heap_id
        sender.stream.send_heaps(references[:n], sender.send.GroupMode.SERIAL)
        if time.perf_counter() - start > arguments["limit_s"]:
            n_heaps = first + n
            break
    seconds = time.perf_counter() - start
    sent = n_heaps * per_heap
    _answer({"sent": sent, "pps": sent / seconds, "dropped": None, "interrupted": False})
