"""Streams that send through AF_XDP, on a veth pair between two network namespaces.

Needs root and a kernel with AF_XDP. Elsewhere the tests are skipped with the reason; with
``XDPSPEAD_REQUIRE_XDP=1`` in the environment a skip is a failure.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import gc
import importlib
import itertools
import os
import resource
import select
import socket
import struct
import threading
import time
from typing import Any

import numpy as np
import pytest
from target import DEADLINE, PACKAGE, descriptors, new_stream, recv, sp, wait_for
from wire import pattern

pytestmark = [pytest.mark.ours, pytest.mark.xdp]

if not os.environ.get("XDPSPEAD_TEST_PEER"):
    from xdplab import Lab

    from xdpspead import _nexthop

send: Any = importlib.import_module(PACKAGE + ".send")

_ports = itertools.count(30_000)

GROUPS = {"multicast4": "239.10.11.12", "multicast6": "ff15::7864:7001"}
HOSTS = ["ipv4", "ipv6", *GROUPS]


@pytest.fixture
def lab():
    with Lab() as lab:
        yield lab


@pytest.fixture
def jumbo_lab():
    with Lab(mtu=9000) as lab:
        yield lab


def host_of(lab: Any, kind: str) -> str:
    return GROUPS.get(kind) or str(getattr(lab.rx, kind))


# ------------------------------------------------------------------ sending


def make_heap(cnt: int, length: int) -> Any:
    """Return a heap of one item, whose bytes are ``pattern(cnt, length)``."""
    group = send.ItemGroup()
    value = np.frombuffer(pattern(cnt, length), np.uint8)
    group.add_item(0x1234, "value", "", shape=value.shape, dtype=value.dtype, value=value)
    return group.get_heap(descriptors="none", data="all")


def open_stream(lab: Any, *endpoints: tuple[str, int], packet: int = 1400, **config: Any) -> Any:
    """Return a stream that sends from the laboratory's sending end."""
    with lab.tx.enter():
        return send.UdpXdpStream(
            sp.ThreadPool(),
            send.StreamConfig(max_packet_size=packet),
            send.UdpXdpConfig(endpoints=list(endpoints), **config),
        )


def refused(lab: Any, *endpoints: tuple[str, int], **config: Any) -> Any:
    """Return the error that opening such a stream raises."""
    with pytest.raises(recv.XdpError) as caught:
        open_stream(lab, *endpoints, **config)
    assert isinstance(caught.value, OSError)
    return caught.value


# ------------------------------------------------------------------ receiving


class Receiver:
    """A stream at the receiving end, of one of the packages, through one of the transports."""

    def __init__(self, lab: Any, kind: str, host: str, port: int, **config: Any) -> None:
        package = "spead2" if kind == "spead2" else "xdpspead"
        self.package = importlib.import_module(package)
        module = importlib.import_module(f"{package}.recv")
        self.stream = module.Stream(
            self.package.ThreadPool(),
            module.StreamConfig(max_heaps=8, **config),
            module.RingStreamConfig(heaps=64),
        )
        with lab.rx.enter():
            if kind in ("native", "generic"):
                reader = module.UdpXdpConfig(
                    endpoints=[(host, port)], interface=lab.rx.interface, mode=kind
                )
                self.stream.add_udp_xdp_reader(reader)
            else:
                self._add_udp_reader(lab, host, port)

    def _add_udp_reader(self, lab: Any, host: str, port: int) -> None:
        common = {"max_size": 9200, "buffer_size": 4 << 20}
        if host == GROUPS["multicast4"]:
            self.stream.add_udp_reader(host, port, interface_address=lab.rx.ipv4, **common)
        elif host == GROUPS["multicast6"]:
            self.stream.add_udp_reader(host, port, interface_index=lab.rx.ifindex, **common)
        else:
            self.stream.add_udp_reader(port, bind_hostname=host, **common)

    def __enter__(self) -> Receiver:
        return self

    def __exit__(self, *args: object) -> None:
        self.stream.stop()

    def get(self) -> tuple[int, bytes]:
        """Return identifier and bytes of the next heap."""
        end = time.monotonic() + DEADLINE
        while True:
            with contextlib.suppress(self.package.Empty):
                heap = self.stream.get_nowait()
                items = [bytes(memoryview(i)) for i in heap.get_items() if i.id == 0x1234]
                (value,) = items
                return heap.cnt, value
            left = end - time.monotonic()
            assert left > 0, f"no heap; {self.stream.stats.packets} packets"
            select.select([self.stream.fd], [], [], left)

    def expect(self, stream: Any, n: int, length: int, first: int = 1) -> None:
        """Send heaps and check that each arrives byte for byte."""
        for cnt in range(first, first + n):
            stream.send_heap(make_heap(cnt, length), cnt=cnt)
            assert self.get() == (cnt, pattern(cnt, length))


@pytest.mark.parametrize("kind", HOSTS)
@pytest.mark.parametrize("receiver", ["spead2", "udp", "native", "generic"])
def test_heaps_arrive_byte_for_byte(lab, receiver, kind):
    host, port = host_of(lab, kind), next(_ports)
    with Receiver(lab, receiver, host, port) as received:
        stream = open_stream(lab, (host, port), interface=lab.tx.interface)
        for length in (9, 1000, 1001, 20_000):
            received.expect(stream, 3, length)
        assert stream.stats["xdp_dropped"] == 0
        assert stream.stats["xdp_invalid"] == 0


@pytest.mark.parametrize("kind", HOSTS)
@pytest.mark.parametrize("receiver", ["spead2", "udp", "native", "generic"])
def test_jumbo_packets_arrive_in_several_frames(jumbo_lab, receiver, kind):
    host, port = host_of(jumbo_lab, kind), next(_ports)
    with Receiver(jumbo_lab, receiver, host, port) as received:
        stream = open_stream(jumbo_lab, (host, port), interface=jumbo_lab.tx.interface, packet=8952)
        assert stream.info.multi_buffer
        for length in (9, 8000, 8001, 100_000):
            received.expect(stream, 3, length)


def test_every_packet_comes_back_through_the_completion_ring(lab):
    port = next(_ports)
    stream = open_stream(lab, (lab.rx.ipv4, port))
    for cnt in range(1, 101):
        stream.send_heap(make_heap(cnt, 10_000))
    stats = stream.stats
    assert stats["packets"] > 700
    assert stats["xdp_completed"] == stats["packets"]
    assert (stats["heaps"], stats["failed_heaps"]) == (100, 0)


def test_each_substream_goes_to_its_endpoint(lab):
    ports = [next(_ports) for _ in range(3)]
    with contextlib.ExitStack() as stack:
        received = [stack.enter_context(Receiver(lab, "udp", lab.rx.ipv4, port)) for port in ports]
        stream = open_stream(lab, *((lab.rx.ipv4, port) for port in ports))
        assert stream.num_substreams == 3
        for cnt in range(1, 10):
            stream.send_heap(make_heap(cnt, 5000), cnt=cnt, substream_index=cnt % 3)
            assert received[cnt % 3].get() == (cnt, pattern(cnt, 5000))


def test_asyncio_stream_sends_too(lab):
    from xdpspead.send import asyncio as send_asyncio

    port = next(_ports)
    with Receiver(lab, "native", lab.rx.ipv4, port) as received:
        with lab.tx.enter():
            stream = send_asyncio.UdpXdpStream(
                sp.ThreadPool(),
                send.StreamConfig(),
                send.UdpXdpConfig(endpoints=[(lab.rx.ipv4, port)]),
            )

        async def run() -> list[int]:
            heaps = [make_heap(cnt, 5000) for cnt in range(1, 4)]
            futures = [stream.async_send_heap(h, cnt=c) for c, h in enumerate(heaps, 1)]
            return await asyncio.wait_for(asyncio.gather(*futures), DEADLINE)

        assert all(n > 5000 for n in asyncio.run(run()))
        for cnt in range(1, 4):
            assert received.get() == (cnt, pattern(cnt, 5000))
        assert stream.info.interface == lab.tx.interface


# ------------------------------------------------------------------ what is on the wire


def capture(lab: Any, stream: Any, port: int, lengths: tuple[int, ...]) -> list[bytes]:
    """Send a heap of each length and return the frames that arrive at the other end."""
    with lab.rx.enter():
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))  # ETH_P_ALL
    with raw:
        raw.bind((lab.rx.interface, 0))
        raw.settimeout(DEADLINE)
        for cnt, length in enumerate(lengths, 1):
            stream.send_heap(make_heap(cnt, length))
        frames: list[bytes] = []
        while len(frames) < stream.stats["packets"]:
            frame = raw.recv(65536)
            if port.to_bytes(2, "big") in (frame[36:38], frame[56:58]):
                frames.append(frame)
    return frames


def recomputed(frame: bytes, version: int) -> Any:
    """Return the frame as scapy builds it from its fields, with lengths and checksums its own."""
    from scapy.layers.inet import IP, UDP
    from scapy.layers.inet6 import IPv6
    from scapy.layers.l2 import Ether

    packet = Ether(frame)
    if version == 4:
        assert packet[UDP].chksum == 0
        del packet[IP].len, packet[IP].chksum, packet[UDP].len
    else:
        assert packet[UDP].chksum != 0
        del packet[IPv6].plen, packet[UDP].len, packet[UDP].chksum
    return packet


@pytest.mark.parametrize("kind", HOSTS)
def test_frames_are_what_scapy_would_have_sent(lab, kind):
    from scapy.layers.inet import IP, UDP
    from scapy.layers.inet6 import IPv6

    host, port = host_of(lab, kind), next(_ports)
    version = 6 if ":" in host else 4
    stream = open_stream(lab, (host, port), interface=lab.tx.interface)
    frames = capture(lab, stream, port, (1, 2, 3, 100, 101, 1000, 5000))
    assert len(frames) >= 10
    for frame in frames:
        packet = recomputed(frame, version)
        assert bytes(packet) == frame
        ip = packet[IP] if version == 4 else packet[IPv6]
        assert packet.src == lab.tx.mac
        assert (ip.src, ip.dst) == (getattr(lab.tx, f"ipv{version}"), host)
        assert (packet[UDP].sport, packet[UDP].dport) == (stream.info.sources[0][1], port)
        assert (ip.ttl if version == 4 else ip.hlim) == (1 if kind in GROUPS else 64)
        assert packet.dst == (
            {"multicast4": "01:00:5e:0a:0b:0c", "multicast6": "33:33:78:64:70:01"}.get(kind)
            or lab.rx.mac
        )
        assert stream.info.next_hops == (packet.dst,)


def test_ttl_source_and_next_hop_are_the_users(lab):
    from scapy.layers.inet import IP, UDP
    from scapy.layers.l2 import Ether

    port = next(_ports)
    stream = open_stream(
        lab,
        (lab.rx.ipv4, port),
        ttl=9,
        source_address="192.0.2.77",
        source_port=4711,
        next_hop_mac="02:00:00:00:00:99",
    )
    (frame,) = capture(lab, stream, port, (10,))
    packet = Ether(frame)
    assert (packet[IP].ttl, packet[IP].src, packet[UDP].sport) == (9, "192.0.2.77", 4711)
    assert packet.dst == "02:00:00:00:00:99"
    assert stream.info.sources == (("192.0.2.77", 4711),)


@pytest.mark.parametrize(
    ("group", "mac"),
    [
        ("224.0.0.1", "01005e000001"),
        ("239.255.255.255", "01005e7fffff"),
        ("ff02::1", "333300000001"),
        ("ff15::dead:beef", "3333deadbeef"),
    ],
)
def test_groups_have_the_ethernet_addresses_of_the_standards(group, mac):
    assert _nexthop.mac_of_group(group).hex() == mac


# ------------------------------------------------------------------ finding the way


def in_tx(lab: Any, *commands: str) -> None:
    for command in commands:
        lab.tx.run(command.split(), check=True, timeout=DEADLINE)


def in_rx(lab: Any, *commands: str) -> None:
    for command in commands:
        lab.rx.run(command.split(), check=True, timeout=DEADLINE)


@pytest.mark.parametrize("version", [4, 6])
def test_route_leads_through_a_gateway(lab, version):
    far = {4: "198.51.100.7", 6: "fd99::7"}[version]
    net, gateway = {4: ("198.51.100.0/24", lab.rx.ipv4), 6: ("fd99::/64", lab.rx.ipv6)}[version]
    in_rx(lab, f"ip -{version} addr add {far} dev lo")
    in_tx(lab, f"ip -{version} route add {net} via {gateway}")
    port = next(_ports)
    with Receiver(lab, "udp", far, port) as received:
        stream = open_stream(lab, (far, port))
        assert stream.info.interface == lab.tx.interface
        assert stream.info.next_hops == (lab.rx.mac,)
        received.expect(stream, 3, 5000)


def test_link_local_address_is_reached_by_its_zone(lab):
    in_tx(lab, f"ip addr add fe80::a/64 dev {lab.tx.interface} nodad")
    in_rx(lab, f"ip addr add fe80::b/64 dev {lab.rx.interface} nodad")
    port = next(_ports)
    with Receiver(lab, "udp", f"fe80::b%{lab.rx.interface}", port) as received:
        stream = open_stream(lab, (f"fe80::b%{lab.tx.interface}", port))
        received.expect(stream, 3, 5000)


def test_neighbour_that_does_not_answer_is_an_error_soon(lab):
    start = time.monotonic()
    error = refused(lab, ("192.0.2.9", 8888))
    assert time.monotonic() - start < DEADLINE
    assert error.errno == errno.EHOSTUNREACH
    assert f"no answer from 192.0.2.9 on {lab.tx.interface}" in str(error)
    assert "next_hop_mac" in str(error)
    assert error.step == "find next hop"


def test_neighbour_is_not_asked_for_if_the_user_knows_it(lab):
    start = time.monotonic()
    open_stream(lab, ("192.0.2.9", 8888), next_hop_mac=lab.rx.mac)
    assert time.monotonic() - start < _nexthop.NEIGHBOUR_TIMEOUT


def test_neighbour_in_the_table_is_believed(lab):
    in_tx(
        lab, f"ip neigh add 192.0.2.9 lladdr 02:00:00:00:00:09 dev {lab.tx.interface} nud permanent"
    )
    stream = open_stream(lab, ("192.0.2.9", 8888))
    assert stream.info.next_hops == ("02:00:00:00:00:09",)


def test_group_needs_no_route_if_the_interface_is_named(lab):
    in_tx(lab, f"ip route del 224.0.0.0/4 dev {lab.tx.interface}")
    error = refused(lab, (GROUPS["multicast4"], 8888))
    assert error.errno == errno.ENETUNREACH
    assert "interface" in str(error)
    port = next(_ports)
    with Receiver(lab, "udp", GROUPS["multicast4"], port) as received:
        stream = open_stream(lab, (GROUPS["multicast4"], port), interface=lab.tx.interface)
        received.expect(stream, 1, 5000)


def test_no_route_is_an_error(lab):
    error = refused(lab, ("203.0.113.1", 8888))
    assert (error.errno, error.step) == (errno.ENETUNREACH, "find route")
    assert "no route to 203.0.113.1" in str(error)


def test_unknown_interface_is_an_error_that_lists_those_there_are(lab):
    error = refused(lab, (lab.rx.ipv4, 8888), interface="nonesuch0")
    assert error.errno == errno.ENODEV
    assert lab.tx.interface in str(error)


def test_own_addresses_and_the_loopback_are_refused(lab):
    for address in (lab.tx.ipv4, "127.0.0.1", "::1"):
        error = refused(lab, (address, 8888))
        assert error.errno == errno.EOPNOTSUPP
        assert "UdpStream" in str(error)
    error = refused(lab, (GROUPS["multicast4"], 8888), interface="lo", source_address="127.0.0.1")
    assert error.errno == errno.EOPNOTSUPP


def test_interface_that_is_down_is_refused(lab):
    in_tx(lab, f"ip link set {lab.tx.interface} down")
    error = refused(
        lab,
        (lab.rx.ipv4, 8888),
        interface=lab.tx.interface,
        source_address=lab.tx.ipv4,
        next_hop_mac=lab.rx.mac,
    )
    assert error.errno == errno.ENETDOWN
    assert "ip link set" in str(error)


def test_endpoints_on_different_interfaces_are_refused(lab):
    in_tx(
        lab,
        "ip link add other0 type veth peer name other1",
        "ip link set other0 up",
        "ip addr add 198.18.0.1/24 dev other0",
        "ip neigh add 198.18.0.2 lladdr 02:00:00:00:00:02 dev other0 nud permanent",
    )
    error = refused(lab, (lab.rx.ipv4, 8888), ("198.18.0.2", 8888))
    assert error.errno == errno.EINVAL
    assert "other0" in str(error)
    assert lab.tx.interface in str(error)


# ------------------------------------------------------------------ what cannot be had


def test_queue_serves_one_stream(lab):
    stream = open_stream(lab, (lab.rx.ipv4, 8888))
    error = refused(lab, (lab.rx.ipv4, 8888))
    assert (error.errno, error.step) == (errno.EBUSY, "bind")
    assert "taken" in str(error)
    assert "queue=" in str(error)
    del stream
    gc.collect()
    open_stream(lab, (lab.rx.ipv4, 8888))


def test_queue_of_a_receiver_is_taken(lab):
    stream = new_stream()
    with lab.tx.enter():
        stream.add_udp_xdp_reader(
            recv.UdpXdpConfig(endpoints=[(lab.tx.ipv4, 8888)], interface=lab.tx.interface)
        )
    try:
        assert refused(lab, (lab.rx.ipv4, 8888)).errno == errno.EBUSY
    finally:
        stream.stop()
    open_stream(lab, (lab.rx.ipv4, 8888))


def test_streams_send_side_by_side_through_their_queues():
    with Lab(queues=2) as lab, contextlib.ExitStack() as stack:
        ports = [next(_ports), next(_ports)]
        received = [
            stack.enter_context(Receiver(lab, "native", lab.rx.ipv4, port)) for port in ports[:1]
        ]
        received.append(stack.enter_context(Receiver(lab, "udp", lab.rx.ipv4, ports[1])))
        streams = [
            open_stream(lab, (lab.rx.ipv4, port), queue=queue) for queue, port in enumerate(ports)
        ]
        for stream, receiver in zip(streams, received, strict=True):
            receiver.expect(stream, 5, 5000)
        error = refused(lab, (lab.rx.ipv4, 8888), queue=2)
        assert error.errno == errno.EINVAL
        assert "2 transmit queues" in str(error)
        del streams, stream
        gc.collect()


def test_zero_copy_that_is_not_to_be_had_is_refused(lab):
    error = refused(lab, (lab.rx.ipv4, 8888), zero_copy=True)
    assert error.errno == errno.EOPNOTSUPP
    assert "zero_copy" in str(error)
    assert open_stream(lab, (lab.rx.ipv4, 8888)).info.zero_copy is False


def test_packets_that_exceed_the_mtu_are_refused(lab):
    error = refused(lab, (lab.rx.ipv4, 8888), packet=1473)
    assert error.errno == errno.EMSGSIZE
    assert "max_packet_size" in str(error)
    assert "1472" in str(error)
    error = refused(lab, (lab.rx.ipv6, 8888), packet=1453)
    assert "1452" in str(error)


def test_mixed_versions_are_refused(lab):
    with pytest.raises(ValueError, match="mixed"):
        open_stream(lab, (lab.rx.ipv4, 8888), (lab.rx.ipv6, 8888))
    with pytest.raises(ValueError, match="endpoints"):
        open_stream(lab)


def without_privilege_to_lock() -> None:
    """Take CAP_IPC_LOCK from the calling thread."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = struct.pack("=Ii", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3
    sets = ctypes.create_string_buffer(24)
    assert libc.capget(header, sets) == 0
    effective, *others = struct.unpack("=6I", sets.raw)
    changed = struct.pack("=6I", effective & ~(1 << 14), *others)
    assert libc.capset(header, changed) == 0


def test_memory_that_may_not_be_locked_is_refused(lab):
    errors = []

    def run() -> None:  # in a thread of its own, which ends without the privilege
        without_privilege_to_lock()
        errors.append(refused(lab, (lab.rx.ipv4, 8888), buffer_size=1 << 30))

    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (1 << 20, limit[1]))
    try:
        thread = threading.Thread(target=run)
        thread.start()
        thread.join(DEADLINE)
    finally:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, limit)
    assert errors[0].errno == errno.ENOBUFS
    assert "RLIMIT_MEMLOCK" in str(errors[0])


# ------------------------------------------------------------------ trouble, and the end


def test_slow_device_is_waited_for_without_haste(lab):
    # A macvlan's frames wait in the queueing discipline of the interface below.
    in_tx(
        lab,
        f"tc qdisc add dev {lab.tx.interface} root tbf rate 200mbit burst 20k limit 100m",
        f"ip link add slow0 link {lab.tx.interface} type macvlan",
        "ip link set slow0 up",
    )
    port = next(_ports)
    # Frames come from the processor that sends and from the one whose timer lets the device go on,
    # each with a queue of its own, and so may overtake each other.
    with Receiver(lab, "udp", lab.rx.ipv4, port, allow_out_of_order=True) as received:
        stream = open_stream(
            lab,
            (lab.rx.ipv4, port),
            interface="slow0",
            source_address=lab.tx.ipv4,
            next_hop_mac=lab.rx.mac,
            buffer_size=1,
        )
        start = time.monotonic()
        stream.send_heap(make_heap(7, 2_000_000), cnt=7)
        elapsed = time.monotonic() - start
        assert received.get() == (7, pattern(7, 2_000_000))
    # All but the 256 packets that are on their way in the end went at that rate.
    assert elapsed > 0.04
    # Each time it was asked in vain, it was left alone for 50 us.
    assert 10 < stream.stats["blocked"] < elapsed / 50e-6
    assert stream.stats["xdp_dropped"] == 0


def test_interface_that_goes_down_is_an_error_of_the_heap(lab):
    port = next(_ports)
    with Receiver(lab, "udp", lab.rx.ipv4, port) as received:
        stream = open_stream(lab, (lab.rx.ipv4, port))
        received.expect(stream, 1, 5000)
        in_tx(lab, f"ip link set {lab.tx.interface} down")
        for _ in range(3):
            with pytest.raises(OSError, match=r".") as caught:
                stream.send_heap(make_heap(9, 5000))
            assert caught.value.errno == errno.ENETDOWN
        in_tx(lab, f"ip link set {lab.tx.interface} up")
        # The kernel, or the receiver's ARP, may need a moment until the link is there again.
        wait_for(lambda: "LOWER_UP" in link_flags(lab), "the link up again")
        received.expect(stream, 3, 5000, first=20)
        assert stream.stats["failed_heaps"] == 3


def link_flags(lab: Any) -> str:
    command = ["ip", "link", "show", "dev", lab.tx.interface]
    return str(lab.tx.run(command, capture_output=True, text=True, check=True).stdout)


def test_interface_that_goes_down_while_sending_ends_the_call(lab):
    stream = open_stream(lab, (lab.rx.ipv4, next(_ports)))
    heap = make_heap(1, 1 << 20)
    outcome: list[OSError] = []
    begun = threading.Event()

    def run() -> None:
        try:
            while True:
                stream.send_heap(heap)
                begun.set()
        except OSError as error:
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert begun.wait(DEADLINE)
    in_tx(lab, f"ip link set {lab.tx.interface} down")
    thread.join(DEADLINE)
    assert not thread.is_alive()
    assert outcome[0].errno == errno.ENETDOWN


def test_interface_that_is_deleted_is_an_error_and_closing_ends(lab):
    stream = open_stream(lab, (lab.rx.ipv4, next(_ports)))
    stream.send_heap(make_heap(1, 5000))
    in_tx(lab, f"ip link del {lab.tx.interface}")
    with pytest.raises(OSError, match=r"."):
        stream.send_heap(make_heap(2, 5000))
    start = time.monotonic()
    del stream
    gc.collect()
    assert time.monotonic() - start < DEADLINE / 2


def test_stream_leaves_nothing_behind(lab):
    open_stream(lab, (lab.rx.ipv4, 8888)).send_heap(make_heap(1, 5000))
    gc.collect()
    before = descriptors()
    for _ in range(5):
        stream = open_stream(lab, (lab.rx.ipv4, 8888))
        stream.send_heap(make_heap(1, 5000))
        del stream
        gc.collect()
    assert descriptors() == before
    before = descriptors()
    refused(lab, (lab.rx.ipv4, 8888), zero_copy=True)
    refused(lab, (lab.rx.ipv4, 8888), packet=2000)
    gc.collect()
    assert descriptors() == before


def test_forked_child_does_not_keep_the_queue(lab):
    stream = open_stream(lab, (lab.rx.ipv4, 8888))
    gate_out, gate_in = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(gate_in)
        os.read(gate_out, 1)  # until the parent is done
        os._exit(0)
    try:
        stream.send_heap(make_heap(1, 5000))
        del stream
        gc.collect()
        open_stream(lab, (lab.rx.ipv4, 8888)).send_heap(make_heap(1, 5000))
    finally:
        os.close(gate_in)
        os.close(gate_out)
        assert os.waitpid(child, 0) == (child, 0)


def test_forked_child_can_open_a_stream_of_its_own(lab):
    stream = open_stream(lab, (lab.rx.ipv4, 8888))
    stream.send_heap(make_heap(1, 5000))
    ready_out, ready_in = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(ready_in)
            os.read(ready_out, 1)  # the parent's is closed
            own = open_stream(lab, (lab.rx.ipv4, 8888))
            own.send_heap(make_heap(1, 5000))
            status = int(own.stats["xdp_completed"] != own.stats["packets"])
        finally:
            os._exit(status)
    del stream
    gc.collect()
    os.close(ready_in)
    os.close(ready_out)
    assert os.waitpid(child, 0) == (child, 0)


# ------------------------------------------------------------------ configuration


def test_configuration_has_defaults_and_a_repr():
    config = send.UdpXdpConfig()
    assert config.endpoints == []
    assert (config.interface, config.queue, config.ttl, config.zero_copy) == ("", 0, None, None)
    assert config.buffer_size == send.UdpXdpConfig.DEFAULT_BUFFER_SIZE
    config = send.UdpXdpConfig(endpoints=[("192.0.2.1", 8888)], queue=3, ttl=4, zero_copy=False)
    assert "endpoints=[('192.0.2.1', 8888)]" in repr(config)
    assert "queue=3" in repr(config)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("endpoints", [("192.0.2.1",)], TypeError),
        ("endpoints", [("192.0.2.1", 65536)], TypeError),
        ("endpoints", [(1, 8888)], TypeError),
        ("interface", 1, TypeError),
        ("queue", -1, TypeError),
        ("queue", "0", TypeError),
        ("buffer_size", -1, TypeError),
        ("ttl", 0, ValueError),
        ("ttl", 256, ValueError),
        ("source_address", 1, TypeError),
        ("source_port", 65536, TypeError),
        ("next_hop_mac", "02:00:00:00:00", ValueError),
        ("next_hop_mac", "02:00:00:00:00:xx", ValueError),
        ("next_hop_mac", b"\2\0\0\0\0\1", TypeError),
        ("nonsense", 1, TypeError),
    ],
)
def test_nonsense_in_the_configuration_is_refused_at_once(name, value, error):
    with pytest.raises(error, match=r"."):
        send.UdpXdpConfig(**{name: value})


def test_stream_wants_a_configuration():
    with pytest.raises(TypeError, match="UdpXdpConfig"):
        send.UdpXdpStream(sp.ThreadPool(), send.StreamConfig(), {})
    with pytest.raises(TypeError, match="ThreadPool"):
        send.UdpXdpStream(None, send.StreamConfig(), send.UdpXdpConfig())
