"""Streams that read through AF_XDP, on a veth pair between two network namespaces.

Needs root and a kernel with AF_XDP. Elsewhere the tests are skipped with the reason; with
``XDPSPEAD_REQUIRE_XDP=1`` in the environment a skip is a failure.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from target import (
    DEADLINE,
    LOGGER,
    XDP,
    descriptors,
    drain,
    new_stream,
    next_heap,
    payload,
    recv,
    refusals,
    settled,
    sp,
    stats_of,
    take,
    wait_for,
    xdp_counts,
)
from wire import Packet, pattern, simple_heap, stop_packet

pytestmark = [pytest.mark.ours, pytest.mark.xdp]

if not os.environ.get("XDPSPEAD_TEST_PEER"):
    from xdplab import Lab, program_is_loaded

    from xdpspead import _core

UDP_SEGMENT = 103

MODES = ("native", "generic")


@pytest.fixture
def lab():
    with Lab() as lab:
        yield lab


def one_packet(cnt: int, length: int = 100) -> bytes:
    return simple_heap(cnt, length).packets(length)[0].encode()


# Receiving


@pytest.mark.parametrize("mode", MODES)
def test_heaps_arrive_byte_for_byte(lab, mode):
    stream, port = lab.receiver(mode=mode)
    lab.assert_receives(stream, port, n=200)
    assert settled(stream, 800).packets == 800
    assert refusals(stream.stats) == {}
    counts = xdp_counts(stream.stats)
    assert counts == {"matched": 800, "redirected": 800}


def test_packets_that_arrive_alone_are_batches_of_one(lab):
    stream, port = lab.receiver()
    sock = lab.sender(port)
    for cnt in range(3):
        sock.send(one_packet(cnt))
        assert next_heap(stream).cnt == cnt
        settled(stream, cnt + 1)
    stream.stop()
    assert (stream.stats.batches, stream.stats.max_batch) == (3, 1)


def test_a_batch_is_at_most_64_packets(lab):
    stream = lab.stream(heaps=1)
    sock = lab.sender(lab.add_reader(stream))
    sock.send(one_packet(0))
    sock.send(one_packet(1))
    wait_for(lambda: stream.stats.worker_blocked, "a full ring")
    for cnt in range(2, 300):  # these wait in the socket's ring until the first two are read
        sock.send(one_packet(cnt))
    assert [h.cnt for h in take(stream, 300)] == list(range(300))
    stats = settled(stream, 300)
    stream.stop()
    assert stats.max_batch == 64
    assert stats.batches <= stats.packets <= stats.batches * stats.max_batch


@pytest.mark.parametrize("mode", MODES)
def test_reader_says_what_it_really_is(lab, mode):
    stream, _ = lab.receiver(mode=mode)
    (reader,) = stream.readers
    assert reader.transport == "udp_xdp"
    assert reader.interface == lab.rx.interface
    assert list(reader.queues) == [0]
    assert reader.mode == mode
    assert reader.zero_copy is False  # veth cannot
    assert reader.memory >= 1 << 20


@pytest.fixture
def set_sender(lab, monkeypatch):
    """Take the link away while a reader is made, as drivers do; the test gives it back."""
    true = _core.Stream.add_xdp_reader

    def set_state(state: str) -> None:
        command = ["ip", "link", "set", "dev", lab.tx.interface, state]
        lab.tx.run(command, check=True, timeout=DEADLINE)

    def add_xdp_reader(self, *args):
        obtained = true(self, *args)
        set_state("down")
        return obtained

    monkeypatch.setattr(_core.Stream, "add_xdp_reader", add_xdp_reader)
    return set_state


def has_link(lab) -> bool:
    return "LOWER_UP" in lab.link()["flags"]


def test_reader_is_ready_when_the_link_that_its_driver_reset_is_back(lab, set_sender, caplog):
    down = threading.Event()

    def give_back() -> None:
        wait_for(lambda: not has_link(lab), "the link gone")
        down.set()
        set_sender("up")

    thread = threading.Thread(target=give_back)
    thread.start()
    stream, port = lab.receiver()
    assert down.is_set()
    assert has_link(lab)
    thread.join()
    assert "link" not in caplog.text
    lab.assert_receives(stream, port)


def test_link_that_does_not_come_back_is_a_warning(lab, set_sender, monkeypatch, caplog):
    monkeypatch.setattr("xdpspead.recv._interface._LINK_WAIT_S", 0.05)
    stream, port = lab.receiver()
    assert f"{lab.rx.interface} had a link before this reader was made" in caplog.text
    set_sender("up")
    lab.assert_receives(stream, port)


def test_interface_without_a_link_is_not_waited_for(lab, caplog):
    command = ["ip", "link", "set", "dev", lab.tx.interface, "down"]
    lab.tx.run(command, check=True, timeout=DEADLINE)
    lab.receiver()
    assert "link" not in caplog.text


def test_auto_mode_is_native_on_veth(lab):
    stream, _ = lab.receiver()
    assert stream.readers[0].mode == "native"
    assert lab.link()["xdp"]["mode"] == 1  # XDP_ATTACHED_DRV


def test_ipv6_endpoint(lab):
    stream = lab.stream()
    port = lab.add_reader(stream, host=lab.rx.ipv6)
    lab.assert_receives(stream, port, host=lab.rx.ipv6)


def test_several_endpoints_of_one_reader(lab):
    stream = lab.stream()
    lab.add_reader(
        stream, endpoints=[(lab.rx.ipv4, 7001), (lab.rx.ipv4, 7002), (lab.rx.ipv6, 7003)]
    )
    for port, host in [(7001, lab.rx.ipv4), (7002, lab.rx.ipv4), (7003, lab.rx.ipv6)]:
        lab.assert_receives(stream, port, n=3, host=host)


def test_interface_found_by_its_address(lab):
    stream = lab.stream()
    port = lab.add_reader(stream, interface="", interface_address=lab.rx.ipv4)
    assert stream.readers[0].interface == lab.rx.interface
    lab.assert_receives(stream, port)


def test_reader_is_added_while_an_event_loop_runs(lab):
    async def main() -> None:
        stream, port = lab.receiver()
        lab.assert_receives(stream, port, 1)

    asyncio.run(main())


def test_interface_found_by_the_endpoint(lab):
    stream = lab.stream()
    port = lab.add_reader(stream, interface="")
    lab.assert_receives(stream, port)


@pytest.mark.parametrize("group", ["239.77.1.1", "ff15::7777"])
def test_multicast_group_is_joined_and_received_and_left(lab, group):
    def joined() -> bool:
        command = ["ip", "-j", "maddr", "show", "dev", lab.rx.interface]
        done = lab.rx.run(command, stdout=subprocess.PIPE, check=True)
        return any(m.get("address") == group for i in json.loads(done.stdout) for m in i["maddr"])

    stream = lab.stream()
    port = lab.add_reader(stream, host=group)
    assert joined()
    with lab.tx.enter():
        family = socket.AF_INET6 if ":" in group else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_DGRAM)
    with sock:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, lab.tx.ifindex)
        for packet in simple_heap(1, 4000).packets(1000):
            sock.sendto(packet.encode(), (group, port))
    assert payload(next_heap(stream)) == pattern(1, 4000)
    stream.stop()
    wait_for(lambda: not joined(), "the group left")


@pytest.mark.parametrize("mode", MODES)
def test_jumbo_packets(mode):
    with Lab(mtu=9000) as lab:
        stream, port = lab.receiver(mode=mode, max_size=9200)
        sock = lab.sender(port)
        heap = simple_heap(1, 200_000)
        for i, packet in enumerate(heap.packets(8900)):
            sock.send(packet.encode())
            settled(stream, i + 1)
        assert payload(next_heap(stream)) == pattern(1, 200_000)


@pytest.mark.parametrize("size", [1, 2, 3, 3700, 3710, 3720, 3800, 4000, 7600, 7700, 8900])
def test_packets_around_the_edges_of_a_frame(size):
    with Lab(mtu=9000) as lab:
        stream, port = lab.receiver()
        sock = lab.sender(port)
        for cnt in range(3):
            sock.send(one_packet(cnt, size))
            assert payload(next_heap(stream)) == pattern(cnt, size)


@pytest.mark.parametrize("blocked", [False, True])  # they wait in the ring, or are moved out of it
@pytest.mark.parametrize("mode", MODES)
def test_jumbo_packets_that_straddle_batches_arrive_whole(mode, blocked):
    with Lab(mtu=9000) as lab:
        for shift in range(3):  # packets of one frame before those of three
            how = {"heaps": 1} if blocked else {"max_added_latency": 0.05}
            stream = lab.stream(**how)
            port = lab.add_reader(stream, mode=mode, buffer_size=8 << 20)
            sock = lab.sender(port)
            sizes = [50] * (2 + shift) + [100_000] * 8
            sock.send(one_packet(0, 50))
            sock.send(one_packet(1, 50))
            if blocked:
                wait_for(lambda s=stream: s.stats.worker_blocked, "a full ring")
            for cnt, size in list(enumerate(sizes))[2:]:
                for packet in simple_heap(cnt, size).packets(8900):
                    sock.send(packet.encode())
            for cnt, size in enumerate(sizes):
                heap = next_heap(stream)
                assert (heap.cnt, payload(heap) == pattern(cnt, size)) == (cnt, True)
            packets = 2 + shift + 8 * 12
            assert settled(stream, packets).packets == packets
            assert refusals(stream.stats) == {}
            assert xdp_counts(stream.stats) == {"matched": packets, "redirected": packets}
            stream.stop()


def test_jumbo_without_multi_buffer_is_one_error_that_says_what_would_work(monkeypatch):
    monkeypatch.setattr("xdpspead.recv._xdp._LARGEST_MTU_OF_ONE_FRAME", 1 << 16)  # as old kernels
    with Lab(mtu=9000) as lab:
        for mode, words in {
            "native": ("native mode at MTU 9000", "smaller MTU", "3000", "mode='generic'"),
            "generic": ("MTU 9000", "Linux 6.6", "Set the MTU to 3818 or less."),
            "auto": ("MTU 9000", "Linux 6.6", "3818 or less (to 3000 or less for native mode)"),
        }.items():
            with pytest.raises(recv.XdpError) as caught:
                lab.receiver(mode=mode)
            assert_helpful(caught.value, lab.rx.interface, *words)
            lab.wait_detached()


def test_driver_without_native_mode_is_an_error_that_says_so(lab):
    lab.ip("link", "add", "bridge0", "type", "bridge")
    lab.ip("link", "set", "bridge0", "up")
    with pytest.raises(recv.XdpError) as caught:
        lab.receiver(interface="bridge0", mode="native")
    assert_helpful(caught.value, "bridge0", "native mode", "mode='generic'")
    assert "MTU" not in str(caught.value)
    stream, _ = lab.receiver(interface="bridge0")
    assert stream.readers[0].mode == "generic"


def test_packets_that_do_not_fit_since_the_mtu_was_raised_are_counted(lab):
    stream, port = lab.receiver(mode="generic")  # in native mode the driver refuses
    for end in (lab.rx, lab.tx):
        end.run(["ip", "link", "set", "dev", end.interface, "mtu", "9000"], check=True)
    sock = lab.sender(port)
    for cnt, size in enumerate([8000, 8000, 100]):
        sock.send(one_packet(cnt, size))
    assert next_heap(stream).cnt == 2
    assert xdp_counts(stream.stats) == {"matched": 3, "redirected": 3, "rx_dropped": 2}


def test_datagram_above_max_size_is_counted(lab):
    stream, port = lab.receiver(max_size=500)
    sock = lab.sender(port)
    sock.send(one_packet(1, 600))
    sock.send(one_packet(2, 400))
    assert next_heap(stream).cnt == 2
    settled(stream, 1)
    assert refusals(stream.stats) == {"truncated_datagram": 1}


def test_junk_is_counted_by_reason(lab):
    stream, port = lab.receiver()
    sock = lab.sender(port)
    for junk in (b"", b"x", bytes(100), one_packet(1) + b"x"):
        sock.send(junk)
    sock.send(one_packet(2))
    assert next_heap(stream).cnt == 2
    settled(stream, 1)
    assert refusals(stream.stats) == {
        "empty_datagram": 1, "truncated_header": 1, "bad_magic": 1, "long_packet": 1,
    }  # fmt: skip
    assert xdp_counts(stream.stats) == {"matched": 5, "redirected": 5}


def test_stop_item_ends_the_stream_and_detaches(lab):
    stream, port = lab.receiver()
    sock = lab.sender(port)
    sock.send(one_packet(1))
    sock.send(stop_packet().encode())
    assert [h.cnt for h in drain(stream)] == [1]
    lab.wait_detached()


def test_udp_and_xdp_readers_build_heaps_together(lab):
    stream, port = lab.receiver()
    plain = lab.listen(7777)
    stream.add_udp_reader(plain)
    packets = [p.encode() for p in simple_heap(1, 3000).packets(1000)]
    for i, (packet, to) in enumerate(zip(packets, (port, 7777, port), strict=True)):
        lab.sender(to).send(packet)
        settled(stream, i + 1)
    assert payload(next_heap(stream)) == pattern(1, 3000)


@pytest.mark.parametrize("mode", MODES)
def test_segmenting_sender_is_received_or_counted_and_never_corrupts(lab, mode):
    stream, port = lab.receiver(mode=mode)
    sock = lab.sender(port)
    packets = [one_packet(cnt, 152) for cnt in range(20)]
    sock.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, len(packets[0]))
    sock.send(b"".join(packets))
    sock.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 0)
    sock.send(one_packet(100))
    got = []
    while 100 not in got:
        heap = next_heap(stream)
        assert payload(heap) == pattern(heap.cnt, 100 if heap.cnt == 100 else 152)
        got.append(heap.cnt)
    if mode == "native":  # the driver gets the segments one by one
        assert got == [*range(20), 100]
    else:  # one super-packet: a datagram that is longer than the SPEAD packet at its head
        lost = sum(stream.stats[XDP[name]] for name in ("bad_length", "bad_frame", "rx_dropped"))
        lost += refusals(stream.stats).get("long_packet", 0)
        assert len(got) == 21 or lost == 1, stats_of(stream)


# Everything else passes


def test_ping_goes_on(lab):
    stream, port = lab.receiver()
    for target in (lab.rx.ipv4, lab.rx.ipv6):
        command = ["ping", "-c", "3", "-i", "0.1", "-W", "2", target]
        done = lab.tx.run(command, stdout=subprocess.PIPE, text=True, timeout=DEADLINE)
        assert "3 received" in done.stdout
        lab.assert_receives(stream, port)


def test_tcp_goes_on(lab):
    stream, port = lab.receiver()
    with ExitStack() as stack:
        with lab.rx.enter():
            server = stack.enter_context(socket.create_server((lab.rx.ipv4, port)))
        with lab.tx.enter():
            client = stack.enter_context(socket.create_connection((lab.rx.ipv4, port), DEADLINE))
        peer, _ = server.accept()
        stack.enter_context(peer)
        data = pattern(1, 100_000)
        thread = threading.Thread(target=client.sendall, args=(data,), daemon=True)
        thread.start()
        lab.assert_receives(stream, port)
        peer.settimeout(DEADLINE)
        got = b""
        while len(got) < len(data):
            got += peer.recv(65536)
        assert got == data
        thread.join(DEADLINE)


def test_other_udp_ports_go_on(lab):
    stream, port = lab.receiver()
    other = lab.listen(port + 10_000)
    sock = lab.sender(port + 10_000)
    for i in range(20):
        sock.send(b"%d" % i)
    assert [other.recv(100) for _ in range(20)] == [b"%d" % i for i in range(20)]
    lab.assert_receives(stream, port)


def test_same_port_of_another_address_goes_to_the_kernel(lab):
    lab.ip("addr", "add", "192.0.2.77/24", "dev", lab.rx.interface)
    stream, port = lab.receiver()
    other = lab.listen(port, "192.0.2.77")
    lab.sender(port, "192.0.2.77").send(b"kernel")
    assert other.recv(100) == b"kernel"
    lab.assert_receives(stream, port)
    assert other.getsockname() == ("192.0.2.77", port)


def test_endpoint_itself_does_not_reach_the_kernel(lab):
    stream, port = lab.receiver()
    other = lab.listen(port)
    lab.assert_receives(stream, port)
    other.setblocking(False)
    with pytest.raises(BlockingIOError):
        other.recv(100)


def test_traffic_goes_back_to_the_kernel_after_the_stop(lab):
    stream, port = lab.receiver()
    lab.assert_receives(stream, port)
    stream.stop()
    lab.wait_detached()
    other = lab.listen(port)
    lab.sender(port).send(b"kernel")
    assert other.recv(100) == b"kernel"


def test_fragments_are_left_to_the_kernel_and_counted(lab):
    stream, port = lab.receiver()
    other = lab.listen(port)
    data = pattern(1, 4000)
    lab.sender(port).send(data)  # three fragments at an MTU of 1500
    assert other.recv(5000) == data
    wait_for(
        lambda: xdp_counts(stream.stats) == {"fragments": 3},
        f"3 fragments, {xdp_counts(stream.stats)}",
    )
    lab.assert_receives(stream, port)


# Frames from scapy, whose fields and result are written out here


@pytest.fixture
def scapy():
    return pytest.importorskip("scapy.all")


def scapy_udp(scapy, lab, port, data, **ip):
    ethernet = scapy.Ether(src=lab.tx.mac, dst=lab.rx.mac)
    header = scapy.IP(src=lab.tx.ipv4, dst=lab.rx.ipv4, **ip)
    return ethernet / header / scapy.UDP(sport=1234, dport=port) / data


@pytest.mark.parametrize("mode", MODES)
def test_good_frames_of_every_shape_are_received(lab, scapy, mode):
    stream, port = lab.receiver(mode=mode)
    plain = scapy_udp(scapy, lab, port, one_packet(1))
    options = scapy_udp(scapy, lab, port, one_packet(2), options=[scapy.IPOption(b"\x01" * 40)])
    no_checksum = scapy_udp(scapy, lab, port, one_packet(3))
    no_checksum[scapy.UDP].chksum = 0
    wrong_checksum = scapy_udp(scapy, lab, port, one_packet(4))  # not verified, by design
    wrong_checksum[scapy.UDP].chksum = 0xDEAD
    padded = bytes(scapy_udp(scapy, lab, port, one_packet(5))) + bytes(18)  # Ethernet padding
    dont_fragment = scapy_udp(scapy, lab, port, one_packet(6), flags="DF", tos=0xFF, ttl=1)
    v6 = (
        scapy.Ether(src=lab.tx.mac, dst=lab.rx.mac)
        / scapy.IPv6(src=lab.tx.ipv6, dst=lab.rx.ipv6)
        / scapy.UDP(sport=1, dport=port)
        / one_packet(99)
    )
    lab.inject(plain, options, no_checksum, wrong_checksum, padded, dont_fragment, v6)
    heaps = take(stream, 6)  # the IPv6 address is no endpoint
    assert [h.cnt for h in heaps] == [1, 2, 3, 4, 5, 6]
    assert all(payload(h) == pattern(h.cnt, 100) for h in heaps)
    settled(stream, 6)
    assert refusals(stream.stats) == {}


@pytest.mark.parametrize("mode", MODES)
def test_one_heap_of_packets_with_tags_and_options(lab, scapy, mode):
    stream = lab.stream()
    lab.add_reader(stream, endpoints=[(lab.rx.ipv4, 7000), (lab.rx.ipv6, 7000)], mode=mode)
    tag, service_tag = scapy.Dot1Q(vlan=5), scapy.Dot1AD(vlan=6)
    ipv4 = scapy.IP(src=lab.tx.ipv4, dst=lab.rx.ipv4)
    options = scapy.IP(
        src=lab.tx.ipv4, dst=lab.rx.ipv4, options=[scapy.IPOption_Timestamp(), scapy.IPOption_NOP()]
    )
    ipv6 = scapy.IPv6(src=lab.tx.ipv6, dst=lab.rx.ipv6)
    headers = [
        front / ip
        for ip in (ipv4, options, ipv6)
        for front in (
            scapy.Ether(src=lab.tx.mac, dst=lab.rx.mac),
            scapy.Ether(src=lab.tx.mac, dst=lab.rx.mac) / tag,
            scapy.Ether(src=lab.tx.mac, dst=lab.rx.mac) / tag / tag,
            scapy.Ether(src=lab.tx.mac, dst=lab.rx.mac) / service_tag / tag,
        )
    ]
    packets = simple_heap(1, 100 * len(headers)).packets(100)
    for header, packet in zip(headers, packets, strict=True):
        lab.inject(header / scapy.UDP(sport=1, dport=7000) / packet.encode())
    assert payload(next_heap(stream)) == pattern(1, 100 * len(headers))
    assert settled(stream, len(headers)).packets == len(headers)
    assert xdp_counts(stream.stats) == {"matched": len(headers), "redirected": len(headers)}


def test_extension_headers_are_left_to_the_kernel_and_counted(lab, scapy):
    stream, port = lab.receiver(host=lab.rx.ipv6)
    other = lab.listen(port, lab.rx.ipv6)
    lab.inject(
        scapy.Ether(src=lab.tx.mac, dst=lab.rx.mac)
        / scapy.IPv6(src=lab.tx.ipv6, dst=lab.rx.ipv6)
        / scapy.IPv6ExtHdrDestOpt(options=[scapy.PadN(optdata=bytes(4))])
        / scapy.UDP(sport=1, dport=port)
        / b"kernel"
    )
    assert other.recv(100) == b"kernel"
    assert xdp_counts(stream.stats) == {"extension_headers": 1}


@pytest.mark.parametrize("mode", MODES)
def test_bad_frames_never_reach_the_stream(lab, scapy, mode):
    stream, port = lab.receiver(mode=mode)

    def frame(data=None, **ip):
        return scapy_udp(scapy, lab, port, one_packet(1) if data is None else data, **ip)

    long_udp, short_udp, tiny_udp = frame(), frame(), frame()
    long_udp[scapy.UDP].len = 1000
    short_udp[scapy.UDP].len = 50
    tiny_udp[scapy.UDP].len = 3
    long_ip, short_ip = frame(), frame()
    long_ip[scapy.IP].len = 1400
    short_ip[scapy.IP].len = 24
    bad = [
        frame(flags="MF"),
        frame(frag=100),
        frame(proto=132),
        frame(version=5),
        frame(ihl=4),
        frame(ihl=15),
        long_udp,
        short_udp,
        tiny_udp,
        long_ip,
        short_ip,
        bytes(frame())[:41],
        bytes(frame())[:20],
        scapy.Ether(src=lab.tx.mac, dst=lab.rx.mac, type=0x1234) / bytes(60),
        scapy.Ether(src=lab.tx.mac, dst=lab.rx.mac, type=0x8100) / b"\0\1",
    ]
    lab.inject(*bad, frame(one_packet(77)))
    assert next_heap(stream).cnt == 77
    stats = settled(stream, 1)
    assert (stats.packets, refusals(stats)) == (1, {})
    counts = xdp_counts(stream.stats)
    assert counts["redirected"] == 1
    assert counts["fragments"] == 2
    assert counts["bad_length"] >= 3
    lab.assert_receives(stream, port)


# Queues


def queue_counts(lab) -> list[int]:
    stats = lab.ethtool(lab.rx)
    return [stats[f"rx_queue_{q}_xdp_packets"] for q in range(4)]


def send_from_many_ports(lab, port, n) -> None:
    """Send `n` one-packet heaps, each from a port of its own, so that they spread over queues."""
    for cnt in range(n):
        lab.sender(port).send(one_packet(cnt))


def test_every_queue_delivers():
    with Lab(queues=4) as lab:
        stream, port = lab.receiver()
        assert list(stream.readers[0].queues) == [0, 1, 2, 3]
        send_from_many_ports(lab, port, 100)
        heaps = take(stream, 100)
        assert sorted(h.cnt for h in heaps) == list(range(100))
        assert all(payload(h) == pattern(h.cnt, 100) for h in heaps)
        assert all(queue_counts(lab)), queue_counts(lab)


def test_queues_that_were_not_asked_for_pass_to_the_kernel():
    with Lab(queues=4) as lab:
        stream, port = lab.receiver(queues=[1, 3])
        assert list(stream.readers[0].queues) == [1, 3]
        other = lab.listen(port)
        send_from_many_ports(lab, port, 100)
        wait_for(lambda: xdp_counts(stream.stats).get("matched") == 100, "all packets")
        mine = xdp_counts(stream.stats)["redirected"]
        counts = queue_counts(lab)  # of the driver, with what the kernel says to its neighbours
        assert 0 < mine <= counts[1] + counts[3]
        assert 0 < 100 - mine <= counts[0] + counts[2]
        seen = [h.cnt for h in take(stream, mine)]
        other.settimeout(DEADLINE)
        passed = [other.recv(1000) for _ in range(100 - mine)]
        assert sorted([*seen, *(packet[15] for packet in passed)]) == list(range(100))
        assert xdp_counts(stream.stats) == {
            "matched": 100,
            "redirected": mine,
            "no_socket": 100 - mine,
        }


def test_two_streams_share_queues_or_have_their_own():
    with Lab(queues=4) as lab:
        one, one_port = lab.receiver(queues=[0, 1, 2, 3])
        two, two_port = lab.receiver(queues=[2, 3, 0, 1])
        for stream, port in ((one, one_port), (two, two_port)):
            send_from_many_ports(lab, port, 60)
            assert sorted(h.cnt for h in take(stream, 60)) == list(range(60))


# Several streams


@pytest.mark.parametrize("mode", MODES)
def test_two_streams_on_one_interface_both_receive(lab, mode):
    one, one_port = lab.receiver(mode=mode)
    two, two_port = lab.receiver(mode=mode)
    program = lab.program()
    for _ in range(3):
        lab.assert_receives(one, one_port, n=8)
        lab.assert_receives(two, two_port, n=8)
    assert lab.program() == program
    assert (settled(one, 96).packets, settled(two, 96).packets) == (96, 96)


@pytest.mark.parametrize("mode", MODES)
def test_stream_that_nobody_reads_does_not_starve_another(lab, mode):
    unread = lab.stream(heaps=1)
    unread_port = lab.add_reader(unread, mode=mode)
    stream, port = lab.receiver(mode=mode)
    flood = lab.sender(unread_port)
    data = one_packet(5, 1000)
    for _ in range(40):  # far more than any ring or packet memory holds
        for _ in range(1000):
            flood.send(data)
        lab.assert_receives(stream, port, n=2)
    assert unread.stats.worker_blocked > 0
    settled(stream, 40 * 2 * 4)
    counts = xdp_counts(stream.stats)
    assert counts == {"matched": 320, "redirected": 320}


def test_what_an_unread_stream_loses_is_counted_as_its_own(lab):
    stream = lab.stream(heaps=1)
    port = lab.add_reader(stream)
    sock = lab.sender(port)
    sent = 30_000
    data = one_packet(5, 1000)
    for _ in range(sent):
        sock.send(data)
    wait_for(lambda: stream.stats.worker_blocked, "a full ring")
    got = 0
    while True:
        try:
            next_heap(stream, 1)
            got += 1
        except AssertionError:
            break
    stats = stream.stats
    counts = xdp_counts(stream.stats)
    lost = sum(counts.get(n, 0) for n in ("unread_drops", "rx_dropped", "rx_ring_full"))
    assert stats.packets == got
    assert counts["matched"] == counts["redirected"]
    assert counts["matched"] == got + lost, (got, counts)
    assert lost > 0


def test_stopping_one_stream_leaves_the_other_alone(lab):
    one, one_port = lab.receiver()
    two, two_port = lab.receiver()
    lab.assert_receives(one, one_port)
    one.stop()
    lab.assert_receives(two, two_port)
    assert lab.program() is not None
    kernel = lab.listen(one_port)
    lab.sender(one_port).send(b"kernel")
    assert kernel.recv(100) == b"kernel"
    two.stop()
    lab.wait_detached()


def test_endpoint_of_another_stream_cannot_be_taken(lab):
    stream, port = lab.receiver()
    second = lab.stream()
    with pytest.raises(recv.XdpError, match=str(port)):
        lab.add_reader(second, endpoints=[(lab.rx.ipv4, port)])
    lab.assert_receives(stream, port)


def test_stream_that_stays_unread_can_be_read_again(lab):
    stream = lab.stream(heaps=2)
    port = lab.add_reader(stream)
    sock = lab.sender(port)
    for cnt in range(20_000):
        sock.send(one_packet(cnt % 1000, 1000))
    wait_for(lambda: stream.stats.worker_blocked, "a full ring")
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        try:
            next_heap(stream, 0.3)
        except AssertionError:
            break
    lab.assert_receives(stream, port)


# Attaching and detaching


def test_stop_detaches(lab):
    stream, port = lab.receiver()
    lab.assert_receives(stream, port)
    assert lab.program() is not None
    stream.stop()
    lab.wait_detached()


def test_program_is_unloaded_with_the_last_stream(lab):
    stream = new_stream()
    port = lab.add_reader(stream)
    lab.assert_receives(stream, port)
    program = lab.program()
    assert program_is_loaded(program)
    stream.stop()
    del stream
    gc.collect()

    wait_for(lambda: not program_is_loaded(program), "the program unloaded")


def test_dropping_the_stream_detaches(lab):
    stream = new_stream()
    lab.add_reader(stream)
    assert lab.program() is not None
    del stream
    lab.wait_detached()


@pytest.mark.parametrize("mode", MODES)
def test_receivers_come_and_go_at_once(lab, mode):
    for _ in range(20):
        stream = new_stream()
        port = lab.add_reader(stream, mode=mode)
        lab.assert_receives(stream, port, n=2)
        stream.stop()
    lab.wait_detached()


def test_receivers_that_are_gone_leave_no_descriptors(lab):
    def one_life():
        stream = new_stream()
        lab.add_reader(stream)
        stream.stop()

    one_life()
    gc.collect()
    before = descriptors()
    for _ in range(20):
        one_life()
    gc.collect()
    wait_for(lambda: descriptors() <= before, f"no more than {before} open descriptors")


RECEIVER = """
    import sys, target
    stream = target.new_stream()
    stream.add_udp_xdp_reader(target.recv.UdpXdpConfig(
        endpoints=[({host!r}, {port})], interface={interface!r}, mode={mode!r}))
    print("ready", flush=True)
    for heap in stream:
        print(heap.cnt, flush=True)
"""


def start_receiver(lab, port=7100, mode="auto"):
    process = lab.python(
        RECEIVER.format(host=lab.rx.ipv4, port=port, interface=lab.rx.interface, mode=mode)
    )
    line = process.stdout.readline()
    if line != "ready\n":
        process.kill()
        raise AssertionError(process.communicate()[1])
    return process


@pytest.mark.parametrize("mode", MODES)
def test_kill_9_leaves_no_program_and_a_new_receiver_starts_at_once(lab, mode):
    process = start_receiver(lab, mode=mode)
    lab.sender(7100).send(one_packet(3))
    assert process.stdout.readline() == "3\n"
    assert lab.program() is not None
    process.send_signal(signal.SIGKILL)
    process.wait(DEADLINE)
    stream, port = lab.receiver(mode=mode)  # at once: what is left is released in the background
    lab.assert_receives(stream, port)
    stream.stop()
    lab.wait_detached()


def test_kill_9_leaves_no_program(lab):
    process = start_receiver(lab)
    assert lab.program() is not None
    process.send_signal(signal.SIGKILL)
    process.wait(DEADLINE)
    lab.wait_detached()


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_other_deaths_leave_no_program_either(lab, signal_number):
    process = start_receiver(lab)
    process.send_signal(signal_number)
    process.wait(DEADLINE)
    lab.wait_detached()


def test_exit_without_stop_detaches(lab):
    process = start_receiver(lab)
    lab.sender(7100).send(stop_packet().encode())
    assert process.wait(DEADLINE) == 0
    lab.wait_detached()


# The interface goes down and comes back


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("end", ["rx", "tx"])
def test_reception_resumes_after_the_interface_was_down(lab, mode, end):
    stream, port = lab.receiver(mode=mode)
    lab.assert_receives(stream, port)
    namespace = getattr(lab, end)
    for _ in range(3):
        namespace.run(["ip", "link", "set", "dev", namespace.interface, "down"], check=True)
        namespace.run(["ip", "link", "set", "dev", namespace.interface, "up"], check=True)
        wait_for(lambda: lab.link()["operstate"] == "UP", "the interface up again")
        lab.assert_receives(stream, port)


def test_mtu_of_the_interface_may_be_changed_or_refused_but_reception_goes_on(lab):
    stream, port = lab.receiver()
    lab.rx.run(["ip", "link", "set", "dev", lab.rx.interface, "mtu", "1400"], check=False)
    lab.tx.run(["ip", "link", "set", "dev", lab.tx.interface, "mtu", "1400"], check=False)
    lab.assert_receives(stream, port)


# Errors


def assert_helpful(error, *words: str) -> None:
    """Check that an error is all it should be: typed, numbered, and a text that helps."""
    assert isinstance(error, RuntimeError)
    assert isinstance(error, OSError)
    assert error.step
    assert error.errno
    for word in words:
        assert word.lower() in str(error).lower(), str(error)


def test_no_such_interface(lab):
    with pytest.raises(recv.XdpError) as caught:
        lab.receiver(interface="nope0")
    assert_helpful(caught.value, "nope0", lab.rx.interface)
    assert caught.value.errno == errno.ENODEV


def test_no_interface_has_the_address(lab):
    with pytest.raises(recv.XdpError) as caught:
        lab.receiver(interface="", interface_address="198.51.100.7")
    assert_helpful(caught.value, "198.51.100.7")


def test_no_such_queue(lab):
    with pytest.raises(recv.XdpError) as caught:
        lab.receiver(queues=[0, 5])
    assert_helpful(caught.value, "5", lab.rx.interface)


@pytest.mark.parametrize("mode", [*MODES, "auto"])
def test_another_program_is_attached(lab, mode):
    link = lab.attach_foreign_program()
    try:
        before = lab.program()
        with pytest.raises(recv.XdpError) as caught:
            lab.receiver(mode=mode)
        assert_helpful(caught.value, lab.rx.interface, "program", f"(id {before})")
        assert caught.value.errno == errno.EBUSY
        assert lab.program() == before
    finally:
        os.close(link)
    lab.wait_detached()
    stream, port = lab.receiver(mode=mode)
    lab.assert_receives(stream, port)


def test_another_process_receives_on_the_interface(lab):
    process = start_receiver(lab)
    with pytest.raises(recv.XdpError) as caught:
        lab.receiver()
    name = Path(f"/proc/{process.pid}/comm").read_text().strip()
    whose = f"Process {process.pid} ({name}) has program {lab.program()}."
    assert_helpful(caught.value, lab.rx.interface, f"(id {lab.program()})", whose)
    assert (caught.value.step, caught.value.errno) == ("attach program", errno.EBUSY)
    lab.sender(7100).send(one_packet(3))
    assert process.stdout.readline() == "3\n"


def test_queue_is_bound_by_another_process(lab):
    xsk, memory = lab.occupy_queue(0)
    start = time.monotonic()
    with pytest.raises(recv.XdpError) as caught:
        lab.receiver()
    assert time.monotonic() - start < 5
    assert_helpful(caught.value, "queue 0", lab.rx.interface, "ss --xdp")
    assert (caught.value.step, caught.value.errno) == ("bind", errno.EBUSY)
    assert lab.program() is None
    xsk.close()
    stream, port = lab.receiver()
    lab.assert_receives(stream, port)
    assert len(memory) > 0


def test_failed_call_leaves_nothing_behind_and_the_stream_usable(lab):
    stream = lab.stream()
    before = descriptors()
    for _ in range(10):
        with pytest.raises(recv.XdpError):
            lab.add_reader(stream, queues=[9])
        with pytest.raises(recv.XdpError):
            lab.add_reader(stream, zero_copy=True)
    wait_for(lambda: descriptors() <= before, "descriptors closed")
    assert lab.program() is None
    assert list(stream.readers) == []
    port = lab.add_reader(stream)
    lab.assert_receives(stream, port)


def test_zero_copy_that_the_driver_cannot(lab):
    with pytest.raises(recv.XdpError) as caught:
        lab.receiver(zero_copy=True)
    assert_helpful(caught.value, "zero", lab.rx.interface)


def test_conflicting_modes_on_one_interface(lab):
    stream, port = lab.receiver(mode="native")
    with pytest.raises(recv.XdpError) as caught:
        lab.receiver(mode="generic")
    assert_helpful(caught.value, "native", lab.rx.interface)
    lab.assert_receives(stream, port)


DROP = """
    import ctypes, logging, struct, sys, target
    libc = ctypes.CDLL(None, use_errno=True)
    header = ctypes.create_string_buffer(struct.pack("<Ii", 0x20080522, 0))
    data = ctypes.create_string_buffer(24)
    assert libc.capget(header, data) == 0
    sets = list(struct.unpack("<6I", data.raw))
    for cap in {caps}:
        for half in range(3):
            sets[cap // 32 * 3 + half] &= ~(1 << cap % 32)
    assert libc.capset(header, struct.pack("<6I", *sets)) == 0
    logging.basicConfig(stream=sys.stdout, format="%(levelname)s:%(name)s:%(message)s")
    stream = target.new_stream()
    config = target.recv.UdpXdpConfig(
        endpoints=[({host!r}, 7200)], interface={interface!r}, fallback={fallback})
    try:
        stream.add_udp_xdp_reader(config)
    except target.recv.XdpError as error:
        print(error.errno, error.step, str(error).replace(chr(10), " "), sep="|")
    else:
        print("ready", stream.readers[0].transport, flush=True)
        print(target.next_heap(stream).cnt)
"""

NET_ADMIN, NET_RAW, IPC_LOCK, SYS_ADMIN, BPF = 12, 13, 14, 21, 39
# CAP_SYS_ADMIN stands in for both of the last two.
CAPABILITIES = {
    "CAP_NET_RAW": [NET_RAW],
    "CAP_NET_ADMIN": [NET_ADMIN, SYS_ADMIN],
    "CAP_BPF": [BPF, SYS_ADMIN],
}


def without(lab, capability, fallback=False):
    return lab.python(
        DROP.format(
            caps=CAPABILITIES[capability],
            host=lab.rx.ipv4,
            interface=lab.rx.interface,
            fallback=fallback,
        )
    )


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_missing_capability_is_named(lab, capability):
    out, err = without(lab, capability).communicate(timeout=DEADLINE)
    number, step, text = out.strip().split("|", 2) if "|" in out else (0, "", out + err)
    assert capability in text
    assert int(number) in (errno.EPERM, errno.EACCES), text
    assert step
    assert lab.program() is None


LOCK = """
    import resource, re
    def limit(n):
        hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (n, hard))
    def attempt(port):
        stream = target.new_stream()
        config = target.recv.UdpXdpConfig(
            endpoints=[({host!r}, port)], interface={interface!r}, buffer_size=4 << 20)
        try:
            stream.add_udp_xdp_reader(config)
        except target.recv.XdpError as error:
            print(error.step, error.errno, error)
            return str(error)
        print("ready", flush=True)
        print(target.next_heap(stream).cnt, flush=True)
        return ""
    limit(1 << 20)
    text = attempt(7201)
    kibibytes = int(re.search(r"'ulimit -l (\\d+)'", text)[1])
    limit(kibibytes * 1024 - 4096)  # a page less, and it is refused again
    attempt(7202)
    limit(kibibytes * 1024)
    attempt(7203)
"""


def test_memory_that_may_not_be_locked_is_an_error_that_says_how_much_would_do():
    with Lab(queues=2) as lab:
        head, _, _ = DROP.partition("    logging.basicConfig")
        code = (head + LOCK.removeprefix("\n")).format(
            caps=[IPC_LOCK], host=lab.rx.ipv4, interface=lab.rx.interface
        )
        process = lab.python(code)
        for _ in range(2):
            line = process.stdout.readline()
            assert line.startswith(f"register UMEM {errno.ENOBUFS} "), line + process.stderr.read()
            assert f"LimitMEMLOCK={4 << 20}" in line
            assert "CAP_IPC_LOCK" in line
        assert process.stdout.readline() == "ready\n"
        lab.sender(7203).send(one_packet(5))
        assert process.stdout.readline() == "5\n"
        assert process.wait(DEADLINE) == 0


# Fallback


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_fallback_warns_once_and_reads_a_socket(lab, capability):
    process = without(lab, capability, fallback=True)
    lines = []
    while not lines or not lines[-1].startswith("ready"):
        lines.append(process.stdout.readline().strip())
        assert lines[-1], process.stderr.read()
    lab.sender(7200).send(one_packet(3))
    out, err = process.communicate(timeout=DEADLINE)
    assert (lines[-1], out.strip(), err) == ("ready udp", "3", "")
    warnings = [line for line in lines if line.startswith("WARNING:xdpspead:")]
    assert len([line for line in warnings if capability in line]) == 1


def test_fallback_beside_another_program(lab, caplog):
    link = lab.attach_foreign_program()
    try:
        with pytest.raises(recv.XdpError) as caught:
            lab.receiver()
        with caplog.at_level("WARNING", logger=LOGGER):
            stream, port = lab.receiver(fallback=True)
        assert [reader.transport for reader in stream.readers] == ["udp"]
        messages = [r.getMessage() for r in caplog.records if r.name == LOGGER]
        assert len([m for m in messages if str(caught.value) in m]) == 1
        lab.assert_receives(stream, port)
    finally:
        os.close(link)


def test_fallback_reads_every_endpoint(lab):
    link = lab.attach_foreign_program()
    try:
        stream = lab.stream()
        lab.add_reader(
            stream,
            endpoints=[(lab.rx.ipv4, 7001), (lab.rx.ipv6, 7002), ("239.77.1.1", 7003)],
            fallback=True,
        )
        lab.assert_receives(stream, 7001, n=2)
        lab.assert_receives(stream, 7002, n=2, host=lab.rx.ipv6)
        lab.assert_receives(stream, 7003, n=2, host="239.77.1.1")
    finally:
        os.close(link)


def test_fallback_is_not_used_when_af_xdp_works(lab, caplog):
    with caplog.at_level("WARNING", logger=LOGGER):
        stream, port = lab.receiver(fallback=True)
    assert stream.readers[0].transport == "udp_xdp"
    assert caplog.records == []
    lab.assert_receives(stream, port)


def test_fallback_is_not_used_for_an_endpoint_of_another_reader(lab):
    _, port = lab.receiver()
    config = recv.UdpXdpConfig(
        endpoints=[(lab.rx.ipv4, port)], interface=lab.rx.interface, fallback=True
    )
    stream = lab.stream()
    with lab.rx.enter(), pytest.raises(recv.XdpError) as caught:
        stream.add_udp_xdp_reader(config)
    assert caught.value.errno == errno.EADDRINUSE
    assert stream.readers == []


# Life of a stream with AF_XDP


def test_explicit_start_attaches_nothing_before(lab):
    stream = lab.stream(explicit_start=True)
    port = lab.add_reader(stream)
    assert lab.program() is None
    with lab.rx.enter():
        stream.start()
    assert lab.program() is not None
    lab.assert_receives(stream, port)


def test_reader_added_after_the_stop_attaches_nothing(lab):
    stream = lab.stream()
    stream.stop()
    lab.add_reader(stream)
    assert lab.program() is None


def test_stop_is_quick_while_packets_arrive_and_the_ring_is_full(lab):
    stream = lab.stream(heaps=1)
    port = lab.add_reader(stream)
    sock = lab.sender(port)
    for _ in range(2000):
        sock.send(one_packet(1, 1000))
    wait_for(lambda: stream.stats.worker_blocked, "a full ring")
    start = time.monotonic()
    stream.stop()
    assert time.monotonic() - start < 2
    lab.wait_detached()


def test_heaps_outlive_the_packet_memory(lab):
    stream, port = lab.receiver()
    sock = lab.sender(port)
    for packet in simple_heap(9, 50_000).packets(1000):
        sock.send(packet.encode())
    heap = next_heap(stream)
    stream.stop()
    del stream
    assert payload(heap) == pattern(9, 50_000)


def test_one_stream_reads_two_interfaces(lab):
    """Both ends of a second pair live in the receiving namespace's own laboratory."""
    with Lab() as second:
        stream, port = lab.receiver()
        other = second.add_reader(stream)
        packets = [p.encode() for p in simple_heap(1, 3000).packets(1000)]
        turns = (lab.sender(port), second.sender(other), lab.sender(port))
        for i, (packet, sock) in enumerate(zip(packets, turns, strict=True)):
            sock.send(packet)
            settled(stream, i + 1)
        assert payload(next_heap(stream)) == pattern(1, 3000)


def test_out_of_order_packets_are_put_together(lab):
    stream = lab.stream(allow_out_of_order=True)
    port = lab.add_reader(stream)
    sock = lab.sender(port)
    for packet in simple_heap(1, 30_000).packets(1000)[::-1]:
        sock.send(packet.encode())
    assert payload(next_heap(stream)) == pattern(1, 30_000)


def test_statistics_account_for_every_packet(lab):
    stream, port = lab.receiver()
    sock = lab.sender(port)
    first, second = simple_heap(1, 100).packets(50)
    sent = [
        first,
        first,
        Packet(8, b"x", 5, 9),
        second,
        b"junk",
        b"",
        *simple_heap(2, 50).packets(),
    ]
    for packet in sent:
        sock.send(packet if isinstance(packet, bytes) else packet.encode())
    assert [h.cnt for h in take(stream, 2)] == [1, 2]
    stats = settled(stream, 5)
    assert refusals(stats) == {"behind": 1, "gap": 1, "truncated_header": 1, "empty_datagram": 1}
    assert xdp_counts(stream.stats) == {"matched": len(sent), "redirected": len(sent)}
    assert (stats.packets, stats.heaps, stats.single_packet_heaps) == (5, 2, 1)


# Configuration


def test_configuration_has_keywords_and_properties_of_one_name():
    options = {
        "endpoints": [("239.1.2.3", 8888)],
        "interface": "eth7",
        "interface_address": "192.0.2.9",
        "queues": [0, 2],
        "buffer_size": 1 << 20,
        "max_size": 1500,
        "mode": "generic",
        "zero_copy": False,
        "steer": "ntuple",
        "max_poll": 3,
        "workers": 2,
        "fallback": True,
    }
    by_keyword, by_property = recv.UdpXdpConfig(**options), recv.UdpXdpConfig()
    for name, value in options.items():
        setattr(by_property, name, value)
    for name, value in options.items():
        assert getattr(by_keyword, name) == getattr(by_property, name) == value
    with pytest.raises(TypeError):
        recv.UdpXdpConfig([("239.1.2.3", 8888)])


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"nope": 1}, TypeError),
        ({"mode": "fast"}, ValueError),
        ({"steer": "rss"}, ValueError),
        ({"endpoints": ["239.1.2.3:8888"]}, TypeError),
        ({"endpoints": [("239.1.2.3", 70000)]}, TypeError),
        ({"endpoints": [(8888, "239.1.2.3")]}, TypeError),
        ({"queues": [1, 1]}, ValueError),
        ({"queues": []}, ValueError),
        ({"queues": [-1]}, TypeError),
        ({"buffer_size": -1}, TypeError),
        ({"max_size": 0}, ValueError),
        ({"max_poll": -1}, TypeError),
        ({"workers": 0}, ValueError),
        ({"workers": 2.5}, TypeError),
        ({"interface": 3}, TypeError),
    ],
    ids=repr,
)
def test_bad_configuration_is_refused_at_once(options, error):
    with pytest.raises(error):
        recv.UdpXdpConfig(**options)


def test_reader_without_endpoints_is_refused(lab):
    with pytest.raises(ValueError, match="endpoints"):
        lab.receiver(endpoints=[])


def test_reader_needs_a_configuration_object():
    stream = new_stream()
    with pytest.raises(TypeError):
        stream.add_udp_xdp_reader({"endpoints": []})
    stream.stop()


def test_importing_the_package_does_without_asyncio_which_takes_memory():
    code = "import sys, xdpspead.recv, xdpspead.send; sys.exit('asyncio' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode == 0


def test_importing_the_package_leaves_out_what_few_programs_need():
    code = "import sys, xdpspead.recv; print(*sys.modules)"
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    rare = {f"xdpspead.{name}" for name in ("_features", "recv._ledger", "recv._xdp", "_device")}
    assert "xdpspead.recv._stream" in done.stdout.split()
    assert not rare & set(done.stdout.split())


@pytest.mark.parametrize("module", [sp, recv])
def test_names_that_are_imported_when_they_are_asked_for_are_listed(module):
    for name in module.__all__:
        assert name in dir(module)
        assert getattr(module, name) is not None
    assert not hasattr(module, "Nonsense")


def test_importing_the_package_needs_no_privilege_and_no_netlink():
    code = "import sys, xdpspead.recv; sys.exit('pyroute2' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode == 0


# libbpf

_ADD_READER = """
import errno, sys, xdpspead, xdpspead.recv as recv
print(xdpspead.features.xdp)
stream = recv.Stream(xdpspead.ThreadPool())
try:
    config = recv.UdpXdpConfig(endpoints=[(sys.argv[1], 8888)], interface=sys.argv[2])
    stream.add_udp_xdp_reader(config)
except recv.XdpError as error:
    print(errno.errorcode[error.errno], error)
maps = open("/proc/self/maps").read()
print([name for name in ("/libbpf.so", "/libelf", "_xdp_load") if name in maps])
print([reader.transport for reader in stream.readers])
"""


def _add_reader(lab, **variables):
    process = lab.rx.popen(
        [sys.executable, "-P", "-c", _ADD_READER, lab.rx.ipv4, lab.rx.interface],
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        text=True,
    )
    out, _ = process.communicate(timeout=6 * DEADLINE)
    return out.splitlines()


def test_libbpf_is_there_only_while_the_program_is_loaded(lab):
    feature, loaded, readers = _add_reader(lab)
    assert feature.startswith("xdp: yes")
    assert (loaded, readers) == ("[]", "['udp_xdp']")


def test_without_libbpf_the_error_and_the_features_say_what_to_install(lab, without_library):
    variables = without_library("_xdp_load.so")
    feature, error, loaded, readers = _add_reader(lab, **variables)
    assert re.match(r"ELIBACC load program: libbpf.*none\.so.*apt install libbpf1", error)
    assert re.search(r"^xdp: no .*missing now.*apt install libbpf1", feature)
    assert (loaded, readers) == ("[]", "[]")
