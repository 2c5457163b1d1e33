"""What the children of ``test_lifetimes.py`` have in common: heaps that come over each transport.

A child is a Python of its own that ends, one way or another, while something is still going on. It
imports everything from here, plays its scene and prints what it saw.
"""

from __future__ import annotations

import atexit
import builtins
import contextlib
import functools
import gc
import itertools
import json
import logging
import os
import random
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import wire
from target import DEADLINE, drain, in_thread, new_stream, next_heap, recv, sp, take, wait_for

__all__ = [
    "DEADLINE",
    "Interrupts",
    "Source",
    "array_of",
    "atexit",
    "builtins",
    "contextlib",
    "descriptors",
    "drain",
    "flood",
    "forked",
    "full",
    "gc",
    "idle",
    "in_thread",
    "itertools",
    "new_stream",
    "next_heap",
    "np",
    "one",
    "os",
    "outcome",
    "pattern",
    "random",
    "recv",
    "resident",
    "signal",
    "socket",
    "some",
    "sp",
    "sys",
    "take",
    "threading",
    "threads",
    "time",
    "wait_for",
    "weakref",
    "where",
]


class where:  # noqa: N801 (there is one of it)
    """Over which transport heaps come in this child."""

    transport = "buffer"
    open_ended = False  #: whether the transport's sources stay open without anything coming
    #: For AF_XDP the receiving interface, its address, and a socket at the other end.
    interface = host = ""
    fd = -1


_ports = itertools.count(30_000)

pattern = wire.pattern

# Warnings, as of a full ring or a slow callback (in development mode), are no complaints here.
logging.getLogger().addHandler(logging.NullHandler())


def one(cnt: int, length: int = 64) -> bytes:
    """Return a packet that is a whole heap."""
    return wire.simple_heap(cnt, length).packets(max(length, 1))[0].encode()


@functools.cache
def some(n: int, length: int) -> list[bytes]:
    """Return the packets of heaps 0 to `n` - 1."""
    return [one(cnt, length) for cnt in range(n)]


def _pcap(packets: list[bytes]) -> str:
    """Write a capture of UDP datagrams and return the file's name."""
    with tempfile.NamedTemporaryFile(suffix=".pcap", delete=False) as file:
        file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1))  # Ethernet
        for packet in packets:
            udp = struct.pack(">HHHH", 1000, 8888, 8 + len(packet), 0) + packet
            header = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0,
                                 b"\x7f\0\0\1", b"\x7f\0\0\1")  # fmt: skip
            datagram = bytes(12) + b"\x08\0" + header + udp
            file.write(struct.pack("<IIII", 0, 0, len(datagram), len(datagram)) + datagram)
    return file.name


class _Socket(socket.socket):
    """A far end, which nobody has to close: what is tested is this end."""

    def __del__(self) -> None:
        self.close()


class Source:
    """One reader of a stream, and the other end of it.

    Parameters
    ----------
    stream
        The stream.
    n : int
        Heaps to send at once, numbered from 0. A source with an end has no others.
    length : int
        Bytes in each heap.
    times : int
        How often to send all that.
    """

    def __init__(self, stream: Any, n: int = 0, length: int = 64, times: int = 1) -> None:
        self.length = length
        self._put: Callable[[bytes], object] | None = None
        self._ends: list[Any] = []
        getattr(self, "_add_" + where.transport)(stream, some(n, length) * times)

    def _add_buffer(self, stream: Any, packets: list[bytes]) -> None:
        stream.add_buffer_reader(b"".join(packets))

    def _add_pcap(self, stream: Any, packets: list[bytes]) -> None:
        name = _pcap(packets)
        try:
            stream.add_udp_pcap_file_reader(name)
        finally:
            os.unlink(name)

    def _add_udp(self, stream: Any, packets: list[bytes]) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", 0))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            address = sock.getsockname()
            stream.add_udp_reader(sock)
        sender = _Socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._ends.append(sender)
        self._begin(lambda packet: sender.sendto(packet, address), packets)

    def _add_xdp(self, stream: Any, packets: list[bytes]) -> None:
        address = (where.host, next(_ports))
        config = recv.UdpXdpConfig(
            endpoints=[address], interface=where.interface, queues=[0], buffer_size=1 << 20
        )
        stream.add_udp_xdp_reader(config)
        sender = _Socket(fileno=os.dup(where.fd))
        self._ends.append(sender)
        self._begin(lambda packet: sender.sendto(packet, address), packets)

    def _add_tcp(self, stream: Any, packets: list[bytes]) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as acceptor:
            acceptor.bind(("127.0.0.1", 0))
            acceptor.listen(1)
            address = acceptor.getsockname()
            stream.add_tcp_reader(acceptor)
        sender = _Socket(socket.AF_INET, socket.SOCK_STREAM)
        sender.settimeout(DEADLINE)
        sender.connect(address)
        self._ends.append(sender)
        self._begin(sender.sendall, packets)

    def _add_inproc(self, stream: Any, packets: list[bytes]) -> None:
        queue = sp.InprocQueue()
        stream.add_inproc_reader(queue)
        self._begin(queue.add_packet, packets)

    def _begin(self, put: Callable[[bytes], object], packets: list[bytes]) -> None:
        self._put = put
        for packet in packets:
            put(packet)

    def send(self, *counts: int) -> None:
        """Send the heaps with these numbers."""
        self.put(one(cnt, self.length) for cnt in counts)

    def put(self, packets: Iterable[bytes]) -> None:
        """Send packets."""
        assert self._put is not None
        for packet in packets:
            self._put(packet)

    def close(self) -> None:
        """Close the far end."""
        for end in self._ends:
            end.close()

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()


def idle(stream: Any) -> Source | None:
    """Let a stream wait for what never comes; without a reader if the transport's all have ends."""
    return Source(stream) if where.open_ended else None


def full(stream: Any, length: int = 64) -> Source:
    """Send more than the ring of a stream holds, and wait until its worker is held up."""
    source = Source(stream, 64, length)
    wait_for(lambda: stream.stats.worker_blocked, "a full ring")
    return source


def flood(stream: Any, times: int = 10) -> Source:
    """Send 1,000 heaps so many times, as fast as they go, while the caller goes on."""
    packets = some(1000, 64)
    if not where.open_ended:
        return Source(stream, 1000, 64, times)
    source = Source(stream)

    def send() -> None:
        with contextlib.suppress(OSError, sp.Stopped):
            for _ in range(times):
                source.put(packets)

    in_thread(send)
    return source


def array_of(heap: Any) -> Any:
    """Return the array of a heap's one item."""
    (item,) = heap.get_items()
    return np.asarray(item)


def outcome(function: Callable[..., Any], *args: Any) -> str:
    """Return the name of what a call raises, "ok" if it returns."""
    try:
        function(*args)
    except Exception as error:  # noqa: BLE001 (which one is what was asked)
        return type(error).__name__
    return "ok"


def descriptors() -> int:
    """Return how many descriptors are open."""
    return len(os.listdir("/proc/self/fd"))


def threads() -> int:
    """Return how many threads there are."""
    return len(os.listdir("/proc/self/task"))


def resident() -> int:
    """Return the bytes of memory that this process has to itself; 0 if a sanitizer keeps it all."""
    with open("/proc/self/maps") as file:
        if "libasan" in file.read():
            return 0
    with open("/proc/self/statm") as file:
        fields = file.read().split()
    return (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE")


class Interrupts:
    """Calls a signal handler again and again, each time when nobody expects it.

    Parameters
    ----------
    handler
        What to call, in the main thread.
    shortest, longest : float
        Bounds of the random time until the signal, in seconds.
    """

    def __init__(
        self, handler: Callable[[], object], shortest: float = 1e-5, longest: float = 3e-3
    ) -> None:
        self.n = 0
        self._handler, self._bounds = handler, (shortest, longest)

    def __enter__(self) -> Interrupts:
        signal.signal(signal.SIGALRM, self._handle)
        self.arm()
        return self

    def __exit__(self, *args: object) -> None:
        self._bounds = (0, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)

    def arm(self) -> None:
        """Let one more signal come."""
        signal.setitimer(signal.ITIMER_REAL, random.uniform(*self._bounds))

    def _handle(self, *args: object) -> None:
        if self._bounds != (0, 0):
            self.n += 1
            self._handler()


@contextlib.contextmanager
def forked(timeout: float = DEADLINE) -> Iterator[bool]:
    """Fork. The block runs in the child, where it ends the process, and then in the parent.

    Yields True in the child. At the end of the parent's block the child must end by itself, with
    status 0, before the deadline.
    """
    sys.stdout.flush()
    pid = os.fork()
    yield pid == 0
    if pid == 0:
        sys.exit(0)
    end = time.monotonic() + timeout
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            break
        if time.monotonic() > end:
            os.kill(pid, signal.SIGABRT)  # faulthandler tells where it was
            os.waitpid(pid, 0)
            raise AssertionError(f"the forked child does not end within {timeout} s")
        time.sleep(0.002)
    if status:
        raise AssertionError(f"the forked child ended with status {status}")


def set_transport(transport: str) -> None:
    """Choose over which transport heaps come."""
    where.transport, where.open_ended = transport, transport not in ("buffer", "pcap")


def run(scene: str) -> None:
    """Run a scene as this process's main module, so that it is cleared at the exit as that is."""
    main = sys.modules["__main__"].__dict__
    main.update((name, globals()[name]) for name in __all__)
    exec(compile(scene, "<scene>", "exec"), main)


def serve() -> None:
    """Fork a child for each scene that comes over the standard input, a socket.

    A message is the scene, the transport, and where AF_XDP is; with it come the child's standard
    output and error, and for AF_XDP the socket at the other end. The answers are the child's pid
    and, at its end, its status.
    """
    with socket.socket(fileno=0) as parent:
        while True:
            message, fds, _, _ = socket.recv_fds(parent, 1 << 20, 3)
            if not message:
                return
            pid = os.fork()
            if pid == 0:
                os.setpgid(0, 0)
                break
            for fd in fds:
                os.close(fd)
            parent.send(b"%d" % pid)
            _, status = os.waitpid(pid, 0)
            parent.send(b"%d" % os.waitstatus_to_exitcode(status))
    scene, transport, xdp = json.loads(message)
    set_transport(transport)
    if xdp:
        where.interface, where.host = xdp.split()
        where.fd = fds.pop()
    for number, fd in enumerate(fds, 1):
        os.dup2(fd, number)
        os.close(fd)
    run(scene)
