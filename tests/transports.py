"""Every transport behind one face, so that a promise is tested on all of them alike.

A transport is a context manager that holds what its tests share, such as a network. It opens
readers on a stream and gives the test a `Feeder`, into which packets go and whose `end` ends the
stream as senders do on this transport. `Rig` adds streams, the expected outcome, and the clearing
away.

No sender may lose packets by being quicker than the receiver: feeders of datagrams keep the packets
under way below what the receiver's buffers hold, and take the stream's statistics as the
acknowledgement. They send from one processor, because the kernel has a queue for each, and a thread
that moves could overtake its own packets.
"""

from __future__ import annotations

import contextlib
import importlib
import ipaddress
import itertools
import os
import random
import shutil
import socket
import struct
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

import model
import pytest
from target import (
    DEADLINE,
    PACKAGE,
    drain,
    free_port,
    in_thread,
    new_stream,
    recv,
    sp,
    stats_of,
)
from wire import Packet, stop_packet

#: Bytes of kernel buffer to ask for. Systems that give less make the tests slower, not wrong.
BUFFER_SIZE = 4 << 20
#: Most packets under way: less than the 256 that a veth pair holds.
MAX_UNDER_WAY = 128

_REQUIRED = os.environ.get("XDPSPEAD_REQUIRE_XDP") == "1"


def encode(packet: Packet | bytes) -> bytes:
    """Return the bytes of a packet."""
    return packet if isinstance(packet, bytes) else packet.encode()


def missing(reason: str) -> None:
    """Skip the test, or fail it where everything must be there."""
    if _REQUIRED:
        pytest.fail(f"XDPSPEAD_REQUIRE_XDP=1, but {reason}")
    pytest.skip(reason)


class Window:
    """Hold a sender back while its receiver has too much to do.

    Packets that cannot be decoded are not waited for, because the peer does not count them.

    Parameters
    ----------
    size
        Bytes of kernel memory that packets under way may take.
    """

    def __init__(self, stream: Any, size: int) -> None:
        self._stream = stream
        self._size = size
        self._under_way: deque[int] = deque()
        self._used = 0
        self._acknowledged = 0
        self._open = threading.Event()

    def add(self, packet: bytes) -> None:
        """Wait for room, then note a packet that is about to be sent."""
        cost = 2 * len(packet) + 1024  # no less than the kernel's bookkeeping comes to
        try:
            model.decode(packet)
        except model.Reject:
            return
        self._wait(lambda: self._used + cost <= self._size)
        self._under_way.append(cost)
        self._used += cost

    def _wait(self, has_room: Callable[[], bool]) -> None:
        end = time.monotonic() + DEADLINE
        while self._under_way and not (has_room() and len(self._under_way) < MAX_UNDER_WAY):
            packets = self._stream.stats.packets
            for _ in range(min(packets - self._acknowledged, len(self._under_way))):
                self._used -= self._under_way.popleft()
                end = time.monotonic() + DEADLINE
            self._acknowledged = packets
            if self._open.is_set():
                self._under_way.clear()
                self._used = 0
            elif time.monotonic() > end:
                raise AssertionError(
                    f"{len(self._under_way)} packets never arrived; {stats_of(self._stream)}"
                )
            elif self._under_way:
                time.sleep(0)  # let the receiving threads have the interpreter

    def open(self) -> None:
        """Hold nobody back any more: the stream has ended."""
        self._open.set()


class Feeder(ABC):
    """The sending end of one or more readers, the *lanes*, of one stream."""

    #: Packets that `end` sends; empty where the transport itself has an end.
    ending: tuple[Packet, ...] = ()

    @abstractmethod
    def send(self, packets: Iterable[Packet | bytes], lane: int = 0) -> None:
        """Send packets in order. Where packets are loaded ahead they wait for `end`."""

    @abstractmethod
    def end(self, lane: int = 0) -> None:
        """End the stream as a sender does on this transport."""

    def release(self) -> None:
        """Wait for nothing any more: the stream has ended."""
        return

    def close(self) -> None:
        """Give everything back."""
        return


class Transport(ABC):
    """One way for packets to reach a stream."""

    name: ClassVar[str]
    #: A sender that is too quick is held back, so nothing is lost however slow the reader is.
    lossless: ClassVar[bool] = True
    #: Packets come one by one, so one that is none costs the others nothing.
    datagrams: ClassVar[bool] = True
    #: The end is a sign of its own, not a packet.
    has_end: ClassVar[bool] = True
    #: All packets are there before the reader begins, and `end` adds it.
    loads_ahead: ClassVar[bool] = False
    #: Longest packet in bytes.
    max_packet: ClassVar[int]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        return None

    @abstractmethod
    def open(self, stream: Any, lanes: int = 1) -> Feeder:
        """Add `lanes` readers to `stream` and return what feeds them."""

    def start(self, stream: Any) -> None:
        """Start a stream that waits for it, in the place where its readers are to live."""
        stream.start()


# ------------------------------------------------------------------ loaded ahead


class _Ahead(Feeder):
    """Collect packets, and add the readers at the end."""

    def __init__(self, lanes: int, add_reader: Callable[[list[bytes], int], None]) -> None:
        self._packets: list[list[bytes]] = [[] for _ in range(lanes)]
        self._add_reader = add_reader

    def send(self, packets: Iterable[Packet | bytes], lane: int = 0) -> None:
        self._packets[lane] += map(encode, packets)

    def end(self, lane: int = 0) -> None:
        for number, packets in enumerate(self._packets):
            self._add_reader(packets, number)
            packets.clear()


class Buffer(Transport):
    """Packets back to back in memory."""

    name = "buffer"
    datagrams = False
    loads_ahead = True
    max_packet = 60_000

    def open(self, stream: Any, lanes: int = 1) -> Feeder:
        def add_reader(packets: list[bytes], lane: int) -> None:
            stream.add_buffer_reader(b"".join(packets))

        return _Ahead(lanes, add_reader)


def checksum(data: bytes) -> int:
    """Return the Internet checksum of RFC 1071."""
    total = sum(word for (word,) in struct.iter_unpack(">H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def udp_frame(payload: bytes, port: int = 7148) -> bytes:
    """Return an Ethernet frame with a UDP datagram of IPv4."""
    ethernet = bytes.fromhex("01005e010203 020000000001 0800")
    length = 28 + len(payload)
    ip = struct.pack(">BBHHHBBH", 0x45, 0, length, 1, 0x4000, 64, socket.IPPROTO_UDP, 0)
    ip += socket.inet_aton("192.0.2.1") + socket.inet_aton("239.1.2.3")
    ip = ip[:10] + struct.pack(">H", checksum(ip)) + ip[12:]
    return ethernet + ip + struct.pack(">HHHH", 4000, port, 8 + len(payload), 0) + payload


def write_pcap(path: Path, packets: Iterable[bytes]) -> None:
    """Write a capture file of Ethernet frames with one UDP datagram each."""
    with path.open("wb") as file:
        file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262_144, 1))
        for number, packet in enumerate(packets):
            frame = udp_frame(packet)
            file.write(struct.pack("<IIII", 1, number % 1_000_000, len(frame), len(frame)))
            file.write(frame)


class Pcap(Transport):
    """A capture file."""

    name = "pcap"
    loads_ahead = True
    max_packet = 60_000

    def __enter__(self) -> Self:
        self._folder = Path(tempfile.mkdtemp(prefix="xdpspead-pcap-"))
        self._serial = itertools.count()
        return self

    def __exit__(self, *args: object) -> None:
        shutil.rmtree(self._folder)

    def open(self, stream: Any, lanes: int = 1) -> Feeder:
        def add_reader(packets: list[bytes], lane: int) -> None:
            path = self._folder / f"{next(self._serial)}.pcap"
            write_pcap(path, packets)
            stream.add_udp_pcap_file_reader(str(path))

        return _Ahead(lanes, add_reader)


# ------------------------------------------------------------------ in-process


class _InprocFeeder(Feeder):
    def __init__(self, stream: Any, lanes: int) -> None:
        self.queues = [sp.InprocQueue() for _ in range(lanes)]
        for queue in self.queues:
            stream.add_inproc_reader(queue)

    def send(self, packets: Iterable[Packet | bytes], lane: int = 0) -> None:
        for packet in packets:
            self.queues[lane].add_packet(encode(packet))

    def end(self, lane: int = 0) -> None:
        self.queues[lane].stop()


class Inproc(Transport):
    """A queue within the process."""

    name = "inproc"
    max_packet = 60_000

    def open(self, stream: Any, lanes: int = 1) -> Feeder:
        return _InprocFeeder(stream, lanes)


# ------------------------------------------------------------------ TCP


class TcpFeeder(Feeder):
    """One TCP connection for each lane; without `connect` someone else makes them."""

    #: Bytes that go out in one call: packets lie across its ends.
    CHUNK = 100_000

    def __init__(self, stream: Any, lanes: int, host: str, connect: bool = True) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.endpoints: list[tuple[str, int]] = []
        self._connections: list[socket.socket] = []
        for _ in range(lanes):
            with socket.socket(family, socket.SOCK_STREAM) as acceptor:
                acceptor.bind((host, 0))
                acceptor.listen(1)
                endpoint = acceptor.getsockname()[:2]
                stream.add_tcp_reader(acceptor)
                self.endpoints.append(endpoint)
                if connect:
                    self._connections.append(socket.create_connection(endpoint, DEADLINE))

    def send(self, packets: Iterable[Packet | bytes], lane: int = 0) -> None:
        connection = self._connections[lane]
        buffer = bytearray()
        # A stream that has stopped closes the connection, whatever is still under way.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for packet in packets:
                buffer += encode(packet)
                if len(buffer) >= self.CHUNK:
                    connection.sendall(buffer)
                    buffer.clear()
            connection.sendall(buffer)

    def end(self, lane: int = 0) -> None:
        self._connections[lane].close()

    def close(self) -> None:
        for connection in self._connections:
            connection.close()


class Tcp4(Transport):
    """A TCP connection over IPv4."""

    name = "tcp4"
    datagrams = False
    max_packet = 60_000
    host: ClassVar[str] = "127.0.0.1"

    def open(self, stream: Any, lanes: int = 1, connect: bool = True) -> TcpFeeder:
        return TcpFeeder(stream, lanes, self.host, connect)


class Tcp6(Tcp4):
    """A TCP connection over IPv6."""

    name = "tcp6"
    host = "::1"


# ------------------------------------------------------------------ datagrams


class DatagramFeeder(Feeder):
    """One socket, which sends to one endpoint for each lane."""

    ending = (stop_packet(),)

    def __init__(
        self, stream: Any, sock: socket.socket, endpoints: Sequence[tuple[str, int]], size: int
    ) -> None:
        self.endpoints = endpoints
        self.window = Window(stream, size)
        self._socket = sock
        sock.settimeout(DEADLINE)

    def send(self, packets: Iterable[Packet | bytes], lane: int = 0) -> None:
        endpoint = self.endpoints[lane]
        with one_processor():
            for packet in packets:
                data = encode(packet)
                self.window.add(data)
                # Not connected, or the socket would report that an ended stream's port is closed.
                self._socket.sendto(data, endpoint)

    def end(self, lane: int = 0) -> None:
        self.send(self.ending, lane)

    def release(self) -> None:
        self.window.open()

    def close(self) -> None:
        self._socket.close()


@contextlib.contextmanager
def one_processor() -> Iterator[None]:
    """Keep the calling thread on one processor, the same each time."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def room(sock: socket.socket) -> int:
    """Return how many bytes may wait in a socket, after asking for more."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_SIZE)
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2


class _Datagrams(Transport):
    lossless = False
    has_end = False


class Udp4(_Datagrams):
    """A UDP socket of IPv4."""

    name = "udp4"
    max_packet = 9_000
    host: ClassVar[str] = "127.0.0.1"

    def open(self, stream: Any, lanes: int = 1) -> DatagramFeeder:
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        endpoints = []
        for _ in range(lanes):
            # The kernel hands out the port and this form keeps it: nobody else can take it.
            with socket.socket(family, socket.SOCK_DGRAM) as sock:
                sock.bind((self.host, 0))
                size = room(sock)
                stream.add_udp_reader(sock)
                endpoints.append(sock.getsockname()[:2])
        sender = socket.socket(family, socket.SOCK_DGRAM)
        return DatagramFeeder(stream, sender, endpoints, size)


class Udp6(Udp4):
    """A UDP socket of IPv6."""

    name = "udp6"
    host = "::1"


def fresh_group(network: str) -> str:
    """Return a multicast group that nobody else uses."""
    addresses = ipaddress.ip_network(network)
    return str(addresses[random.SystemRandom().randrange(1, addresses.num_addresses)])


class Mcast4(_Datagrams):
    """Multicast groups of IPv4, on the loopback interface."""

    name = "mcast4"
    max_packet = 9_000

    def open(self, stream: Any, lanes: int = 1) -> DatagramFeeder:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            size = room(sock)
        endpoints = [(fresh_group("239.192.0.0/14"), free_port()) for _ in range(lanes)]
        for group, port in endpoints:
            stream.add_udp_reader(group, port, buffer_size=size, interface_address="127.0.0.1")
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        interface = socket.inet_aton("127.0.0.1")
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, interface)
        return DatagramFeeder(stream, sender, endpoints, size)


class Mcast6(_Datagrams):
    """Multicast groups of IPv6, over a veth pair: loopback interfaces have no route for them."""

    name = "mcast6"
    max_packet = 1_452

    def __enter__(self) -> Self:
        from xdpspead._netlab import VethLab

        if os.geteuid() != 0:
            missing("IPv6 multicast is tested in a network namespace, which needs root")
        self.lab = VethLab()
        self.lab.__enter__()
        return self

    def __exit__(self, *args: object) -> None:
        self.lab.__exit__(None, None, None)

    def open(self, stream: Any, lanes: int = 1) -> DatagramFeeder:
        with self.lab.rx.enter():
            with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
                size = room(sock)
            # Site-local groups: sockets of the peer cannot be bound to those of one link.
            endpoints = []
            for _ in range(lanes):
                group, port = fresh_group("ff15::7870:0:0/96"), free_port()
                endpoints.append((group, port))
                stream.add_udp_reader(
                    group, port, buffer_size=size, interface_index=self.lab.rx.ifindex
                )
        with self.lab.tx.enter():
            sender = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, self.lab.tx.ifindex)
        return DatagramFeeder(stream, sender, endpoints, size)

    def start(self, stream: Any) -> None:
        with self.lab.rx.enter():
            stream.start()


class Xdp4(_Datagrams):
    """AF_XDP on one end of a veth pair, IPv4."""

    name = "xdp4"
    max_packet = 1_472
    ipv6: ClassVar[bool] = False

    def __enter__(self) -> Self:
        from xdplab import Lab

        self.lab = Lab()
        self.lab.__enter__()
        try:
            # Someone who stays keeps the program attached; attaching takes a tenth of a second.
            self.lab.receiver(host=self.host)
        except BaseException:
            self.lab.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *args: object) -> None:
        self.lab.__exit__(None, None, None)

    @property
    def host(self) -> str:
        """Address of the receiving end."""
        return str(self.lab.rx.ipv6 if self.ipv6 else self.lab.rx.ipv4)

    def open(self, stream: Any, lanes: int = 1) -> DatagramFeeder:
        endpoints = [(self.host, self.lab.add_reader(stream, host=self.host)) for _ in range(lanes)]
        with self.lab.tx.enter():
            family = socket.AF_INET6 if self.ipv6 else socket.AF_INET
            sender = socket.socket(family, socket.SOCK_DGRAM)
        # The packet memory is much larger than what may be under way.
        return DatagramFeeder(stream, sender, endpoints, BUFFER_SIZE)

    def start(self, stream: Any) -> None:
        with self.lab.rx.enter():
            stream.start()


class Xdp6(Xdp4):
    """AF_XDP on one end of a veth pair, IPv6."""

    name = "xdp6"
    max_packet = 1_452
    ipv6 = True


class Switched(Xdp4):
    """UDP readers that XDPSPEAD_INTERFACE makes AF_XDP readers: no line of the test knows."""

    name = "switched"

    def open(self, stream: Any, lanes: int = 1) -> DatagramFeeder:
        endpoints = [(self.host, free_port()) for _ in range(lanes)]
        with self.lab.rx.enter(), pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDPSPEAD_INTERFACE", self.lab.rx.interface)
            for host, port in endpoints:
                stream.add_udp_reader(port, bind_hostname=host)
        with self.lab.tx.enter():
            sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        return DatagramFeeder(stream, sender, endpoints, BUFFER_SIZE)


ALL: tuple[type[Transport], ...] = (
    Buffer, Udp4, Udp6, Mcast4, Mcast6, Tcp4, Tcp6, Pcap, Inproc, Xdp4, Xdp6, Switched,
)  # fmt: skip


#: Variants that take no other way through our C code than those that are left.
VARIANTS = {"udp6", "mcast4", "mcast6", "tcp6", "switched"}
#: Leave these out, where everything is slow.
FEW = os.environ.get("XDPSPEAD_FEW_VARIANTS") == "1"


def parameters(chosen: Callable[[type[Transport]], bool] = lambda _: True) -> list[Any]:
    """Return the chosen transports as parameters of a fixture, with their names and marks."""
    marks = {"xdp4", "xdp6", "switched"}
    return [
        pytest.param(t, id=t.name, marks=[pytest.mark.ours, pytest.mark.xdp] * (t.name in marks))
        for t in ALL
        if chosen(t) and not (FEW and t.name in VARIANTS)
    ]


# ------------------------------------------------------------------ the rig


@contextlib.contextmanager
def meanwhile(function: Callable[[], object]) -> Iterator[None]:
    """Run `function` in a thread while the body runs; its failure is ours."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except BaseException as error:  # noqa: BLE001 (raised again by the caller's thread)
            failures.append(error)

    thread = in_thread(run)
    try:
        yield
    except AssertionError as error:
        if failures:
            raise failures[0] from error
        raise
    thread.join(DEADLINE)
    if failures:
        raise failures[0]
    assert not thread.is_alive(), "the sender has not finished"


class Rig:
    """Streams over one transport, and what they should make of packets."""

    def __init__(self, transport: Transport, pool: Any) -> None:
        self.transport = transport
        self._pool = pool
        self._streams: list[Any] = []
        self._feeders: list[Feeder] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        for stream in self._streams:
            stream.stop()
        for feeder in self._feeders:
            feeder.release()
            feeder.close()

    def stream(self, **config: Any) -> Any:
        """Return a stream; keywords are those of `new_stream`."""
        stream = new_stream(pool=self._pool, **config)
        self._streams.append(stream)
        return stream

    def async_stream(self, *, heaps: int = 256, **config: Any) -> Any:
        """Return a stream for coroutines."""
        module = importlib.import_module(f"{PACKAGE}.recv.asyncio")
        stream = module.Stream(
            self._pool, recv.StreamConfig(**config), recv.RingStreamConfig(heaps=heaps)
        )
        self._streams.append(stream)
        return stream

    def open(self, stream: Any, lanes: int = 1) -> Any:
        """Add readers to a stream and return what feeds them."""
        feeder = self.transport.open(stream, lanes)
        self._feeders.append(feeder)
        return feeder

    def receive(self, packets: Iterable[Packet | bytes], **config: Any) -> tuple[list[Any], Any]:
        """Send packets and the end; return the heaps and the final statistics."""
        stream = self.stream(**config)
        feeder = self.open(stream)

        def feed() -> None:
            feeder.send(packets)
            feeder.end()

        with meanwhile(feed):
            heaps = drain(stream)
            feeder.release()
        # The last heap may be out before the statistics of its batch are in; stop() waits for both.
        stream.stop()
        return heaps, stream.stats

    def expect(self, packets: Sequence[Packet], config: model.Config | None = None) -> model.Result:
        """Return what `receive` should get for these packets, which can all be decoded."""
        receiver = model.Receiver(config or model.Config())
        ending = () if self.transport.has_end else DatagramFeeder.ending
        for packet in (*packets, *ending):
            if receiver.stopped:
                break
            receiver.push(model.decode(packet.encode()))
        receiver.flush()
        return receiver.result

    @property
    def n_ending(self) -> int:
        """How many packets it takes to end a stream."""
        return 0 if self.transport.has_end else len(DatagramFeeder.ending)
