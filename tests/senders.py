"""Every sender behind one face, so that a promise of sending is tested on all of them alike.

An `Outlet` is one way out of the package under test. It makes a `Target`, the far end: plain
sockets, which show packets as they are on the wire, or a receiving stream of any package, which
shows heaps. Then it opens a sender to that target.

Senders of datagrams are bound to one processor, because the kernel has a queue for each, and a
thread that moves could overtake its own packets. What a test sends in one go fits into the
receiver's buffer.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import importlib
import os
import select
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Self

import model
import numpy as np
import pytest
from target import DEADLINE, PACKAGE, free_port, has_ipv6, sp, stats_of
from transports import fresh_group, missing, one_processor, room

send: Any = importlib.import_module(PACKAGE + ".send")

#: Packages whose receivers are to understand what the package under test sends.
RECEIVERS = (PACKAGE, "xdpspead" if PACKAGE == "spead2" else "spead2")
#: Bytes before the payload of a packet that has the pointer of one item.
HEADER = 8 + 5 * 8
#: Where everything is slow, variants of a transport send their bytes, and that is all of them.
FEW = os.environ.get("XDPSPEAD_FEW_VARIANTS") == "1"
#: Seconds without a packet after which no more is thought to come.
QUIET = 0.1


def send_asyncio() -> Any:
    """Return the senders for coroutines."""
    return importlib.import_module(PACKAGE + ".send.asyncio")


# ------------------------------------------------------------------ heaps and packets


def flavour(bits: int = 48) -> Any:
    """Return SPEAD-64-`bits`."""
    return sp.Flavour(4, 64, bits, 0)


def content(size: int, seed: int = 0) -> Any:
    """Return bytes that differ from seed to seed and from offset to offset."""
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8)


def heap_of(value: Any, bits: int = 48) -> Any:
    """Return a heap of one array, without its descriptor; of `value` bytes if it is a number."""
    if isinstance(value, int):
        value = content(value)
    heap = send.Heap(flavour(bits))
    heap.add_item(sp.Item(0x1000, "x", "", value.shape, value.dtype, value=value))
    return heap


def even_heap(n_packets: int, size: int = 1024) -> Any:
    """Return a heap whose packets are all alike, with `size` bytes of payload and `HEADER`."""
    heap = heap_of(np.zeros(n_packets * size, np.uint8))
    heap.repeat_pointers = True
    return heap


def ending() -> Any:
    """Return the heap that ends a stream."""
    heap = send.Heap(flavour())
    heap.add_end()
    return heap


def reference(heap: Any, **attributes: Any) -> Any:
    """Return a reference to a heap."""
    return send.HeapReference(heap, **attributes)


def packets_of(data: bytes) -> Iterator[bytes]:
    """Cut packets that stand back to back apart."""
    position = 0
    while position < len(data):
        size = model.decode(data[position : position + 100_000], datagram=False).size
        yield data[position : position + size]
        position += size


def cnts(packets: Sequence[bytes]) -> list[int]:
    """Return the heap that each packet belongs to."""
    return [model.decode(packet).cnt for packet in packets]


# ------------------------------------------------------------------ the far end


class Target:
    """The far end of a sender, one lane for each substream; this one is a reader of a stream."""

    endpoints: Sequence[tuple[str, int]] = ()
    queues: Sequence[Any] = ()

    def accept(self) -> None:
        """Let the sender that has been opened in."""

    def deliver(self, sender: Any) -> None:
        """Hand over what the sender has collected, where it collects."""

    def close(self) -> None:
        """Give everything back."""


class Plain(Target):
    """A far end that keeps packets as they are."""

    def take(self, n: int, lane: int = 0) -> list[bytes]:
        """Return the next `n` packets of a lane, which must come before the deadline."""
        raise NotImplementedError

    def rest(self, lane: int = 0) -> list[bytes]:
        """Return what comes until nothing comes any more."""
        raise NotImplementedError


class DatagramSink(Plain):
    """Bound UDP sockets."""

    def __init__(self, sockets: Sequence[socket.socket], endpoints: Sequence[tuple[str, int]]):
        self.sockets = sockets
        self.endpoints = endpoints
        for sock in sockets:
            room(sock)

    def take(self, n: int, lane: int = 0) -> list[bytes]:
        self.sockets[lane].settimeout(DEADLINE)
        return [self.sockets[lane].recv(70_000) for _ in range(n)]

    def rest(self, lane: int = 0) -> list[bytes]:
        packets = []
        self.sockets[lane].settimeout(QUIET)
        with contextlib.suppress(TimeoutError):
            while True:
                packets.append(self.sockets[lane].recv(70_000))
        return packets

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()


class TcpSink(Plain):
    """A listening TCP socket, and the connection that it accepts."""

    def __init__(self, host: str) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.listener = socket.socket(family, socket.SOCK_STREAM)
        self.listener.bind((host, 0))
        self.listener.listen(4)
        self.listener.settimeout(DEADLINE)
        self.endpoints = [self.listener.getsockname()[:2]]
        self.connection: socket.socket | None = None
        self.peer: Any = None
        self._data = b""

    def accept(self) -> None:
        self.connection, self.peer = self.listener.accept()

    def _receive(self, timeout: float) -> bool:
        assert self.connection is not None
        self.connection.settimeout(timeout)
        try:
            data = self.connection.recv(1 << 20)
        except TimeoutError:
            return False
        self._data += data
        return bool(data)

    def _cut(self) -> list[bytes]:
        packets = []
        while self._data:
            try:
                packet = next(packets_of(self._data))
            except model.Reject:
                break  # its end is still to come
            packets.append(packet)
            self._data = self._data[len(packet) :]
        return packets

    def take(self, n: int, lane: int = 0) -> list[bytes]:
        packets: list[bytes] = []
        while len(packets) < n:
            packets += self._cut()
            if len(packets) < n:
                assert self._receive(DEADLINE), f"{len(packets)} packets of {n}"
        self._data = b"".join(packets[n:]) + self._data
        return packets[:n]

    def rest(self, lane: int = 0) -> list[bytes]:
        while self._receive(QUIET):
            pass
        return self._cut()

    def close(self) -> None:
        self.listener.close()
        if self.connection is not None:
            self.connection.close()


class BytesSink(Plain):
    """What a sender wrote into memory, as far as it has not been taken."""

    def __init__(self) -> None:
        self._sender: Any = None
        self._taken = 0

    def deliver(self, sender: Any) -> None:
        self._sender = sender

    def rest(self, lane: int = 0) -> list[bytes]:
        packets = list(packets_of(self._sender.getvalue()[self._taken :]))
        self._taken += sum(map(len, packets))
        return packets

    def take(self, n: int, lane: int = 0) -> list[bytes]:
        packets = self.rest()
        assert len(packets) == n
        return packets


# ------------------------------------------------------------------ outlets


class Outlet(ABC):
    """One way for heaps to leave the package under test."""

    name: ClassVar[str]
    #: A receiver that is slow holds the sender back.
    lossless: ClassVar[bool] = False
    #: Each packet travels alone.
    datagrams: ClassVar[bool] = False
    #: Has as many substreams as one likes.
    substreams: ClassVar[bool] = True
    #: Has plain sockets, or memory, at its far end.
    plain: ClassVar[bool] = True
    #: Has a sender for coroutines.
    coroutines: ClassVar[bool] = True
    #: The receiver can be of another package.
    mixes: ClassVar[bool] = True
    #: Largest packet in bytes.
    max_packet: ClassVar[int] = 60_000

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        return None

    def sink(self, lanes: int = 1) -> Plain:
        """Return a far end that keeps packets."""
        raise NotImplementedError

    @abstractmethod
    def reader(self, stream: Any, lanes: int = 1) -> Target:
        """Add a reader for each lane to a stream, and return the far end."""

    @abstractmethod
    def open(self, module: Any, pool: Any, target: Target, config: Any) -> Any:
        """Return a stream of the classes of `module` that sends to the target."""

    async def connect(self, module: Any, pool: Any, target: Target, config: Any) -> Any:
        """Likewise, within a coroutine."""
        return self.open(module, pool, target, config)


class Udp4(Outlet):
    """UDP over IPv4."""

    name = "udp4"
    datagrams = True
    host: ClassVar[str] = "127.0.0.1"

    def _bound(self) -> socket.socket:
        sock = socket.socket(self.family, socket.SOCK_DGRAM)
        sock.bind((self.host, 0))
        return sock

    @property
    def family(self) -> int:
        """Family of the sockets."""
        return socket.AF_INET6 if ":" in self.host else socket.AF_INET

    def sink(self, lanes: int = 1) -> Plain:
        sockets = [self._bound() for _ in range(lanes)]
        return DatagramSink(sockets, [sock.getsockname()[:2] for sock in sockets])

    def reader(self, stream: Any, lanes: int = 1) -> Target:
        target = Target()
        endpoints = []
        for _ in range(lanes):
            with self._bound() as sock:
                room(sock)
                stream.add_udp_reader(sock, max_size=65_536)
                endpoints.append(sock.getsockname()[:2])
        target.endpoints = endpoints
        return target

    def open(self, module: Any, pool: Any, target: Target, config: Any) -> Any:
        return module.UdpStream(pool, list(target.endpoints), config)


class Udp6(Udp4):
    """UDP over IPv6."""

    name = "udp6"
    host = "::1"


class UdpSocket(Udp4):
    """A UDP socket that the user made."""

    name = "udp-socket"

    def open(self, module: Any, pool: Any, target: Target, config: Any) -> Any:
        with socket.socket(self.family, socket.SOCK_DGRAM) as sock:
            return module.UdpStream(pool, sock, list(target.endpoints), config)


class Mcast4(Outlet):
    """Multicast over IPv4, on the loopback interface."""

    name = "mcast4"
    datagrams = True

    def sink(self, lanes: int = 1) -> Plain:
        sockets, endpoints = [], []
        for _ in range(lanes):
            group = fresh_group("239.192.0.0/14")
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.bind((group, 0))
            member = socket.inet_aton(group) + socket.inet_aton("127.0.0.1")
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
            sockets.append(sock)
            endpoints.append((group, sock.getsockname()[1]))
        return DatagramSink(sockets, endpoints)

    def reader(self, stream: Any, lanes: int = 1) -> Target:
        target = Target()
        target.endpoints = [(fresh_group("239.192.0.0/14"), free_port()) for _ in range(lanes)]
        for group, port in target.endpoints:
            stream.add_udp_reader(group, port, max_size=65_536, interface_address="127.0.0.1")
        return target

    def open(self, module: Any, pool: Any, target: Target, config: Any) -> Any:
        where = {"ttl": 1, "interface_address": "127.0.0.1"}
        return module.UdpStream(pool, list(target.endpoints), config, **where)


class _Veth(Outlet):
    """A veth pair between two network namespaces, as `lab`."""

    def __enter__(self) -> Self:
        from xdpspead._netlab import VethLab

        if os.geteuid() != 0:
            missing("network namespaces need root")
        self.lab = VethLab()
        self.lab.__enter__()
        return self

    def __exit__(self, *args: object) -> None:
        self.lab.__exit__(None, None, None)


class Mcast6(_Veth):
    """Multicast over IPv6, over a veth pair: loopback interfaces have no route for it."""

    name = "mcast6"
    datagrams = True
    max_packet = 1_452

    def sink(self, lanes: int = 1) -> Plain:
        sockets, endpoints = [], []
        with self.lab.rx.enter():
            for _ in range(lanes):
                group = fresh_group("ff15::7870:0:0/96")
                sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
                sock.bind((group, 0))
                member = socket.inet_pton(socket.AF_INET6, group)
                member += self.lab.rx.ifindex.to_bytes(4, "little")
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, member)
                sockets.append(sock)
                endpoints.append((group, sock.getsockname()[1]))
        return DatagramSink(sockets, endpoints)

    def reader(self, stream: Any, lanes: int = 1) -> Target:
        target = Target()
        with self.lab.rx.enter():
            target.endpoints = [
                (fresh_group("ff15::7870:0:0/96"), free_port()) for _ in range(lanes)
            ]
            for group, port in target.endpoints:
                stream.add_udp_reader(group, port, interface_index=self.lab.rx.ifindex)
        return target

    def open(self, module: Any, pool: Any, target: Target, config: Any) -> Any:
        with self.lab.tx.enter():
            where = {"ttl": 1, "interface_index": self.lab.tx.ifindex}
            return module.UdpStream(pool, list(target.endpoints), config, **where)


class Xdp4(_Veth, Udp4):
    """AF_XDP on one end of a veth pair, IPv4; sockets at the other end."""

    name = "xdp4"
    max_packet = 1_472

    @property
    def host(self) -> str:  # type: ignore[override]
        """Address of the receiving end."""
        return str(self.lab.rx.ipv4)

    def _bound(self) -> socket.socket:
        with self.lab.rx.enter():
            return super()._bound()

    def open(self, module: Any, pool: Any, target: Target, config: Any) -> Any:
        with self.lab.tx.enter():
            xdp = send.UdpXdpConfig(
                endpoints=list(target.endpoints), interface=self.lab.tx.interface
            )
            end = time.monotonic() + DEADLINE
            while True:
                try:
                    return module.UdpXdpStream(pool, config, xdp)
                except OSError as error:
                    # An earlier test's stream, kept by the traceback of an exception.
                    if error.errno != errno.EBUSY or time.monotonic() > end:
                        raise
                gc.collect()


class Xdp6(Xdp4):
    """AF_XDP on one end of a veth pair, IPv6."""

    name = "xdp6"
    max_packet = 1_452

    @property
    def host(self) -> str:  # type: ignore[override]
        """Address of the receiving end."""
        return str(self.lab.rx.ipv6)


class Tcp4(Outlet):
    """TCP over IPv4."""

    name = "tcp4"
    lossless = True
    substreams = False
    host: ClassVar[str] = "127.0.0.1"

    def sink(self, lanes: int = 1) -> Plain:
        return TcpSink(self.host)

    def reader(self, stream: Any, lanes: int = 1) -> Target:
        target = Target()
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            listener.bind((self.host, 0))
            listener.listen(1)
            stream.add_tcp_reader(listener)
            target.endpoints = [listener.getsockname()[:2]]
        return target

    def open(self, module: Any, pool: Any, target: Target, config: Any) -> Any:
        sender = module.TcpStream(pool, list(target.endpoints), config)
        target.accept()
        return sender

    async def connect(self, module: Any, pool: Any, target: Target, config: Any) -> Any:
        sender = await module.TcpStream.connect(pool, list(target.endpoints), config)
        target.accept()
        return sender


class Tcp6(Tcp4):
    """TCP over IPv6."""

    name = "tcp6"
    host = "::1"


class TcpSocket(Tcp4):
    """A TCP socket that the user connected."""

    name = "tcp-socket"

    def open(self, module: Any, pool: Any, target: Target, config: Any) -> Any:
        with socket.create_connection(target.endpoints[0], DEADLINE) as sock:
            sock.settimeout(None)
            sender = module.TcpStream(pool, sock, config)
        target.accept()
        return sender

    async def connect(self, module: Any, pool: Any, target: Target, config: Any) -> Any:
        return self.open(module, pool, target, config)


class Inproc(Outlet):
    """Queues within the process."""

    name = "inproc"
    lossless = True
    plain = False
    mixes = False

    def reader(self, stream: Any, lanes: int = 1) -> Target:
        target = Target()
        target.queues = [sp.InprocQueue() for _ in range(lanes)]
        for queue in target.queues:
            stream.add_inproc_reader(queue)
        return target

    def open(self, module: Any, pool: Any, target: Target, config: Any) -> Any:
        return module.InprocStream(pool, list(target.queues), config)


class _Collected(Target):
    """The reader of a stream that gets everything at once."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def deliver(self, sender: Any) -> None:
        self._stream.add_buffer_reader(sender.getvalue())


class Bytes(Outlet):
    """Memory."""

    name = "bytes"
    lossless = True
    substreams = False
    coroutines = False

    def sink(self, lanes: int = 1) -> Plain:
        return BytesSink()

    def reader(self, stream: Any, lanes: int = 1) -> Target:
        return _Collected(stream)

    def open(self, module: Any, pool: Any, target: Target, config: Any) -> Any:
        sender = module.BytesStream(pool, config)
        if isinstance(target, BytesSink):
            target.deliver(sender)
        return sender


ALL: tuple[type[Outlet], ...] = (
    Udp4, Udp6, UdpSocket, Mcast4, Mcast6, Tcp4, Tcp6, TcpSocket, Inproc, Bytes,
)  # fmt: skip
if hasattr(send, "UdpXdpStream"):
    ALL += (Xdp4, Xdp6)


#: Outlets whose transports are those of others: they differ in how they come about.
VARIANTS = (Udp6, UdpSocket, Mcast4, Mcast6, Tcp6, TcpSocket, Xdp6)


def parameters(
    chosen: Callable[[type[Outlet]], bool] = lambda _: True, *, variants: bool = not FEW
) -> list[Any]:
    """Return the chosen outlets as parameters of a fixture, with their names."""
    needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")

    def marks(outlet: type[Outlet]) -> list[Any]:
        if issubclass(outlet, Xdp4):
            return [pytest.mark.ours, pytest.mark.xdp]
        return [needs_ipv6] * outlet.name.endswith("6")

    outlets = [o for o in ALL if chosen(o) and (variants or o not in VARIANTS)]
    return [pytest.param(o, id=o.name, marks=marks(o)) for o in outlets]


# ------------------------------------------------------------------ the rig


def sender_pool() -> Any:
    """Return a thread pool for senders, on the processor that `one_processor` takes."""
    return sp.ThreadPool(1, [min(os.sched_getaffinity(0))])


def drain(stream: Any) -> list[Any]:
    """Return every heap of a stream of any package up to its end, which has to come."""
    base = importlib.import_module(type(stream).__module__.split(".")[0])
    heaps = []
    end = time.monotonic() + DEADLINE
    while True:
        try:
            heaps.append(stream.get_nowait())
        except base.Empty:
            left = end - time.monotonic()
            assert left > 0, f"the stream does not end; {stats_of(stream)}"
            select.select([stream.fd], [], [], left)
        except base.Stopped:
            return heaps


class Receiving:
    """Streams of any package that receive what the tests send."""

    def __init__(self) -> None:
        self._pools: dict[str, Any] = {}
        self._streams: list[Any] = []

    def stream(self, package: str = PACKAGE, **config: Any) -> Any:
        """Return a stream of a package, with more room than a test needs."""
        pytest.importorskip(package, reason=f"{package} is not installed")
        base, recv = importlib.import_module(package), importlib.import_module(package + ".recv")
        if package not in self._pools:
            self._pools[package] = base.ThreadPool()
        options = {"max_heaps": 64, **config}
        stream = recv.Stream(
            self._pools[package], recv.StreamConfig(**options), recv.RingStreamConfig(heaps=4096)
        )
        self._streams.append(stream)
        return stream

    def close(self) -> None:
        for stream in self._streams:
            stream.stop()


class SendRig:
    """Senders over one outlet, and their far ends."""

    def __init__(self, outlet: Outlet, pool: Any) -> None:
        self.outlet = outlet
        self.pool = pool
        self.receiving = Receiving()
        self._targets: list[Target] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.receiving.close()
        for target in self._targets:
            target.close()

    def config(self, **options: Any) -> Any:
        """Return a configuration whose packets are no larger than the outlet can send."""
        wanted = options.setdefault("max_packet_size", 1400)
        options["max_packet_size"] = min(wanted, self.outlet.max_packet)
        return send.StreamConfig(**options)

    def sink(self, lanes: int = 1) -> Plain:
        """Return a far end that keeps packets."""
        target = self.outlet.sink(lanes)
        self._targets.append(target)
        return target

    def reader(self, package: str = PACKAGE, lanes: int = 1, **config: Any) -> tuple[Any, Target]:
        """Return a receiving stream, and the far end that feeds it."""
        stream = self.receiving.stream(package, **config)
        target = self.outlet.reader(stream, lanes)
        self._targets.append(target)
        return stream, target

    def open(self, target: Target, **options: Any) -> Any:
        """Return a sender to a far end; keywords are those of `StreamConfig`."""
        with one_processor():
            return self.outlet.open(send, self.pool, target, self.config(**options))

    async def connect(self, target: Target, **options: Any) -> Any:
        """Return a sender for coroutines to a far end."""
        with one_processor():
            return await self.outlet.connect(
                send_asyncio(), self.pool, target, self.config(**options)
            )

    def sent(self, lanes: int = 1, **options: Any) -> tuple[Any, Plain]:
        """Return a sender and the plain far end that it sends to."""
        sink = self.sink(lanes)
        return self.open(sink, **options), sink


def arrival_times(sock: socket.socket, n: int) -> list[tuple[int, int]]:
    """Return (time in ns at which the kernel got it, length) of the next `n` datagrams.

    `SO_TIMESTAMPNS` has to be on. Of datagrams on the loopback interface, and of those that come
    over a veth pair, this is the time of sending.
    """
    sock.settimeout(DEADLINE)
    times = []
    for _ in range(n):
        data, control, _, _ = sock.recvmsg(70_000, 128)
        ((_, _, stamp),) = [c for c in control if c[0] == socket.SOL_SOCKET]
        seconds = int.from_bytes(stamp[:8], "little")
        nanoseconds = int.from_bytes(stamp[8:16], "little")
        times.append((seconds * 1_000_000_000 + nanoseconds, len(data)))
    return times


async def bounded(awaitable: Any) -> Any:
    """Await with a deadline."""
    return await asyncio.wait_for(awaitable, DEADLINE)


def took(function: Callable[[], object]) -> float:
    """Return how many seconds a call takes."""
    start = time.monotonic()
    function()
    return time.monotonic() - start
