"""Multicast through AF_XDP: groups, their sources, who may have them, and for how long.

On a veth pair between two network namespaces; see test_xdp.py.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import json
import os
import re
import socket
import struct
import subprocess

import pytest
from target import (
    DEADLINE,
    descriptors,
    drain,
    new_stream,
    next_heap,
    payload,
    recv,
    settled,
    sp,
    take,
    wait_for,
    xdp_counts,
)
from wire import pattern, simple_heap, stop_packet

pytestmark = [pytest.mark.ours, pytest.mark.xdp]

if not os.environ.get("XDPSPEAD_TEST_PEER"):
    from xdplab import Lab

PORT = 7148
#: Group, and three hosts that send, by family; the first is the sending namespace's own.
FAMILIES = {
    4: ("232.77.1.1", ["192.0.2.1", "192.0.2.8", "192.0.2.9"]),
    6: ("ff3e::7777", ["fd78:6470:7370::1", "fd78:6470:7370::8", "fd78:6470:7370::9"]),
}
ANY_ADDRESS = {4: "0.0.0.0", 6: "::"}


@pytest.fixture
def lab():
    with Lab() as lab:
        for _, (_, *others) in FAMILIES.values():
            for address in others:
                length = "64" if ":" in address else "24"
                add = ["ip", "addr", "add", f"{address}/{length}", "dev", lab.tx.interface, "nodad"]
                lab.tx.run(add, check=True)
        yield lab


def send(lab, to: str, cnts, source: str = "", port: int = PORT, namespace=None, index=0) -> None:
    """Send heaps of one packet from an address of the sending namespace, or of another one."""
    namespace = namespace or lab.tx
    family = socket.AF_INET6 if ":" in to else socket.AF_INET
    with namespace.enter(), socket.socket(family, socket.SOCK_DGRAM) as sock:
        index = index or namespace.ifindex
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
        else:
            choice = struct.pack("4s4si", bytes(4), bytes(4), index)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, choice)
        if source:
            sock.bind((source, 0))
        for cnt in cnts:
            sock.sendto(simple_heap(cnt, 100).packets(100)[0].encode(), (to, port))


def expect(stream, cnts) -> None:
    """Check that these are the next heaps, byte for byte, and that there are no others."""
    heaps = take(stream, len(cnts))
    assert [(heap.cnt, payload(heap)) for heap in heaps] == [(c, pattern(c, 100)) for c in cnts]
    with pytest.raises(sp.Empty):
        stream.get_nowait()


def groups(lab, interface: str = "") -> set[str]:
    """Return the groups that the receiving namespace has joined on its interface."""
    command = ["ip", "-j", "maddr", "show", "dev", interface or lab.rx.interface]
    done = lab.rx.run(command, stdout=subprocess.PIPE, check=True)
    return {m["address"] for i in json.loads(done.stdout) for m in i["maddr"] if "address" in m}


def joined_sources(lab) -> set[tuple[str, str]]:
    """Return the groups that it has joined for a source, with that."""
    files = ["cat", "/proc/net/mcfilter", "/proc/net/mcfilter6"]
    done = lab.rx.run(files, stdout=subprocess.PIPE, check=True, text=True)
    found = re.findall(
        r"^ *\d+ +\S+ +(?:0x)?(\w+) +(?:0x)?(\w+) +[1-9]\d* ", done.stdout, re.MULTILINE
    )
    parse = {8: ipaddress.IPv4Address, 32: ipaddress.IPv6Address}
    return {(str(parse[len(g)](int(g, 16))), str(parse[len(s)](int(s, 16)))) for g, s in found}


# ------------------------------------------------------------------ sources


@pytest.mark.parametrize("mode", ["native", "generic"])
@pytest.mark.parametrize("family", FAMILIES)
def test_group_of_a_source_takes_its_packets_only(lab, family, mode):
    group, (mine, other, _) = FAMILIES[family]
    stream, _ = lab.receiver(endpoints=[(group, PORT, mine)], mode=mode)
    assert joined_sources(lab) == {(group, mine)}
    send(lab, group, [1, 2], mine)
    send(lab, group, [3], other)
    send(lab, group, [4], mine)
    expect(stream, [1, 2, 4])
    assert xdp_counts(stream.stats) == {"matched": 3, "redirected": 3, "other_source": 1}
    stream.stop()
    wait_for(lambda: not joined_sources(lab), "the group left")


@pytest.mark.parametrize("family", FAMILIES)
def test_own_address_with_a_source_takes_its_packets_only(lab, family):
    _, (mine, other, _) = FAMILIES[family]
    address = lab.rx.ipv4 if family == 4 else lab.rx.ipv6
    stream, _ = lab.receiver(endpoints=[(address, PORT, mine)])
    passed = lab.listen(PORT, address)
    send(lab, address, [1], other)
    send(lab, address, [2], mine)
    expect(stream, [2])
    assert passed.recv(1000) == simple_heap(1, 100).packets(100)[0].encode()
    assert xdp_counts(stream.stats) == {"matched": 1, "redirected": 1, "other_source": 1}


@pytest.mark.parametrize("family", FAMILIES)
def test_endpoints_may_name_several_sources(lab, family):
    group, (first, second, other) = FAMILIES[family]
    stream, _ = lab.receiver(endpoints=[(group, PORT, first), (group, PORT, second)])
    assert joined_sources(lab) == {(group, first), (group, second)}
    assert stream.readers[0].endpoints == ((group, PORT, first), (group, PORT, second))
    for cnt, source in enumerate([first, second, other, first]):
        send(lab, group, [cnt], source)
    expect(stream, [0, 1, 3])
    assert xdp_counts(stream.stats)["other_source"] == 1


def test_two_streams_may_have_a_source_each_of_one_group(lab):
    group, (first, second, other) = FAMILIES[4]
    one, _ = lab.receiver(endpoints=[(group, PORT, first)])
    two, _ = lab.receiver(endpoints=[(group, PORT, second)])
    for cnt, source in enumerate([first, second, other]):
        send(lab, group, [cnt], source)
    expect(one, [0])
    expect(two, [1])
    assert xdp_counts(one.stats) == {"matched": 1, "redirected": 1, "other_source": 1}
    one.stop()
    assert joined_sources(lab) == {(group, second)}
    send(lab, group, [3], first)
    send(lab, group, [4], second)
    expect(two, [4])
    assert xdp_counts(two.stats) == {"matched": 2, "redirected": 2, "other_source": 1}


def test_overlapping_endpoints_of_one_reader_are_their_union(lab):
    group, (first, second, other) = FAMILIES[4]
    endpoints = [
        (group, PORT, first), (group, PORT), (group, PORT + 1, first),
        ("0.0.0.0", PORT + 2, first), (group, PORT + 2, second), (group, PORT + 2, second),
    ]  # fmt: skip
    stream, _ = lab.receiver(endpoints=endpoints)
    assert group in groups(lab)
    assert joined_sources(lab) == set()  # any source includes them
    send(lab, group, [1], other)
    send(lab, group, [2], first, PORT + 1)
    send(lab, group, [3], second, PORT + 1)
    send(lab, group, [4], first, PORT + 2)
    send(lab, group, [5], second, PORT + 2)
    send(lab, lab.rx.ipv4, [6], first, PORT + 2)
    send(lab, lab.rx.ipv4, [7], second, PORT + 2)
    expect(stream, [1, 2, 4, 5, 6])
    assert xdp_counts(stream.stats) == {"matched": 5, "redirected": 5, "other_source": 2}


def test_what_cannot_be_a_source_is_refused(lab):
    for source in ("232.77.1.9", "0.0.0.0", "fd78:6470:7370::1"):
        with pytest.raises(recv.XdpError, match=re.escape(source)) as caught:
            lab.receiver(endpoints=[(FAMILIES[4][0], PORT, source)])
        assert caught.value.step == "resolve"
    assert lab.program() is None


@pytest.mark.parametrize(
    "endpoint", [("h", 1, 2), ("h", 1, ""), ("h", 1, None), ("h", 1, "s", 4), ("h",), ("h", "s", 1)]
)
def test_what_is_no_endpoint_is_refused_at_once(endpoint):
    with pytest.raises(TypeError):
        recv.UdpXdpConfig(endpoints=[endpoint])


# ------------------------------------------------------------------ whose endpoint


#: What the one reader has and what the other wants: address and source.
OVERLAPS = [
    (("group", ""), ("group", "")),
    (("group", ""), ("any", "")),
    (("any", ""), ("group", "")),
    (("any", ""), ("any", "")),
    (("group", "mine"), ("group", "")),
    (("group", ""), ("group", "mine")),
    (("group", "mine"), ("group", "mine")),
    (("any", "mine"), ("group", "mine")),
    (("any", ""), ("group", "mine")),
]


@pytest.mark.parametrize("family", FAMILIES)
def test_overlap_with_another_reader_is_refused_and_says_whose_it_is(lab, family):
    group, (mine, *_) = FAMILIES[family]
    names = {"group": group, "any": ANY_ADDRESS[family], "mine": mine}

    def endpoint(place, source):
        return (names[place], port, names[source]) if source else (names[place], port)

    def shown(place, source):
        host = f"[{names[place]}]" if family == 6 else names[place]
        return f"{host}:{port}" + (f" from {names[source]}" if source else "")

    stream = lab.stream()
    for port, (first, second) in enumerate(OVERLAPS, PORT):
        owner = lab.stream(stream_id=4711)
        lab.add_reader(owner, endpoints=[(lab.rx.ipv4, 9), endpoint(*first)])
        with pytest.raises(recv.XdpError) as caught:
            lab.add_reader(stream, endpoints=[(lab.rx.ipv4, 10), endpoint(*second)])
        text = str(caught.value)
        assert (caught.value.errno, caught.value.step) == (errno.EADDRINUSE, "steer endpoint")
        assert f"{shown(*second)} on {lab.rx.interface} is taken" in text
        assert f"receives {shown(*first)} there" in text
        assert "stream_id 4711, queues 0, endpoints 192.0.2.2:9" in text
        owner.stop()
        lab.add_reader(stream, endpoints=[endpoint(*second)])
        send(lab, group, [1], mine, port)
        expect(stream, [1])
    assert len(stream.readers) == len(OVERLAPS)


def test_reader_may_have_four_thousand_endpoints(lab):
    hosts = ipaddress.ip_network("10.0.0.0/8").hosts()
    endpoints = [(str(host), PORT) for _, host in zip(range(4095), hosts, strict=False)]
    stream, _ = lab.receiver(endpoints=[*endpoints, (lab.rx.ipv4, PORT)])
    assert len(stream.readers[0].endpoints) == 4096
    send(lab, lab.rx.ipv4, [1])
    expect(stream, [1])
    second = lab.stream()
    with pytest.raises(recv.XdpError, match=r"10\.0\.15\.1:7148.*and 4094 more"):
        lab.add_reader(second, endpoints=[endpoints[15 * 256]])


# ------------------------------------------------------------------ membership


@pytest.mark.parametrize("family", FAMILIES)
def test_fifty_groups_on_several_ports_are_joined_received_and_left(lab, family):
    stem = "239.77.1." if family == 4 else "ff15::77"
    wanted = [(f"{stem}{i}", PORT + i % 3) for i in range(10, 60)]
    before = groups(lab)
    stream, _ = lab.receiver(endpoints=wanted)
    assert groups(lab) - before == {group for group, _ in wanted}
    for cnt, (group, port) in enumerate(wanted):
        send(lab, group, [cnt], port=port)
    expect(stream, list(range(50)))
    stream.stop()
    wait_for(lambda: groups(lab) == before, "the groups left")


@pytest.mark.parametrize(("family", "n"), [(4, 25), (6, 80)])  # of one socket: 10, 64
def test_group_may_have_more_sources_than_one_socket_can_join(lab, family, n):
    group, _ = FAMILIES[family]
    stem = "192.0.2." if family == 4 else "fd78:6470:7370::"
    wanted = {(group, f"{stem}{i}") for i in range(100, 100 + n)}
    stream, _ = lab.receiver(endpoints=[(group, PORT, source) for _, source in wanted])
    assert joined_sources(lab) == wanted
    stream.stop()
    wait_for(lambda: not joined_sources(lab), "the group left")


@pytest.mark.parametrize("source", [[], ["192.0.2.1"]])
def test_limit_of_the_kernel_is_named(lab, source):
    setting, endpoint = "net.ipv4.igmp_max_memberships", ("232.77.1.1", PORT, *source)
    lab.rx.run(["sysctl", "-qw", f"{setting}=0"], check=True)
    stream = lab.stream()
    before = descriptors()
    with pytest.raises(recv.XdpError) as caught:
        lab.add_reader(stream, endpoints=[endpoint])
    assert caught.value.step == "join multicast group"
    for word in (endpoint[0], lab.rx.interface, setting, "sysctl -w", *endpoint[2:]):
        assert word in str(caught.value)
    assert lab.program() is None
    wait_for(lambda: descriptors() <= before, "descriptors closed")


def test_group_is_left_when_the_sender_ends_the_stream(lab):
    group, (source, *_) = FAMILIES[4]
    stream, _ = lab.receiver(endpoints=[(group, PORT, source), ("239.77.1.1", PORT)])
    assert "239.77.1.1" in groups(lab)
    with lab.tx.enter(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(stop_packet().encode(), ("239.77.1.1", PORT))
    assert drain(stream) == []
    wait_for(lambda: not {"239.77.1.1", group} & groups(lab), "the groups left")


def test_group_is_left_with_a_stream_that_is_dropped(lab):
    stream = new_stream()
    lab.add_reader(stream, host="239.77.1.1")
    assert "239.77.1.1" in groups(lab)
    del stream
    wait_for(lambda: "239.77.1.1" not in groups(lab), "the group left")


def test_forked_child_does_not_keep_the_group(lab):
    stream, _ = lab.receiver(host="239.77.1.1")
    end, mine = os.pipe()
    child = os.fork()
    if not child:
        os.close(mine)
        os.read(end, 1)
        os._exit(0)
    try:
        stream.stop()
        wait_for(lambda: "239.77.1.1" not in groups(lab), "the group left")
    finally:
        os.close(mine)
        os.waitpid(child, 0)
        os.close(end)


def test_socket_in_the_group_on_another_interface_is_not_disturbed(lab):
    group = "239.77.1.1"
    lab.ip("link", "add", "other0", "type", "veth", "peer", "name", "other1")
    lab.ip("addr", "add", "198.51.100.1/24", "dev", "other0")
    for end in ("other0", "other1"):
        lab.ip("link", "set", end, "up")
    with lab.rx.enter():
        other = socket.if_nametoindex("other0")
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sock:
        sock.bind((group, PORT))
        sock.settimeout(DEADLINE)
        sock.setsockopt(socket.IPPROTO_IP, 49, 0)  # IP_MULTICAST_ALL
        membership = struct.pack("4s4si", socket.inet_aton(group), bytes(4), other)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)

        def assert_undisturbed(cnt):
            send(lab, group, [cnt])  # not for it, neither before it nor after
            send(lab, group, [cnt + 1], namespace=lab.rx, index=other)
            assert sock.recv(1000) == simple_heap(cnt + 1, 100).packets(100)[0].encode()
            assert group in groups(lab, "other0")

        assert_undisturbed(0)
        stream, _ = lab.receiver(endpoints=[(group, PORT)])
        assert_undisturbed(2)
        expect(stream, [2])
        stream.stop()
        wait_for(lambda: group not in groups(lab), "the group left")
        assert_undisturbed(4)


# ------------------------------------------------------------------ queries

INCLUDE, EXCLUDE = 1, 2  # what a report says of a group when it was asked


@contextlib.contextmanager
def overheard(namespace):
    """Give a function that waits for the next frame that comes to a namespace and fits."""
    with namespace.enter():
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    with raw:
        raw.bind((namespace.interface, 3))
        raw.settimeout(DEADLINE)
        yield lambda: raw.recv(9000)


def test_kernel_answers_igmp_queries_for_the_reader(lab):
    scapy = pytest.importorskip("scapy.all")
    igmp = pytest.importorskip("scapy.contrib.igmpv3")
    group, (source, *_) = FAMILIES[4]
    lab.receiver(endpoints=[(group, PORT, source), ("239.77.1.1", PORT)])
    query = (
        scapy.Ether(src=lab.tx.mac, dst="01:00:5e:00:00:01")
        / scapy.IP(src=lab.tx.ipv4, dst="224.0.0.1", ttl=1, options=[scapy.IPOption_Router_Alert()])
        / igmp.IGMPv3(type=0x11, mrcode=1)
        / igmp.IGMPv3mq()
    )
    records = set()
    with overheard(lab.tx) as frame:
        lab.inject(query)
        while not {(INCLUDE, group, (source,)), (EXCLUDE, "239.77.1.1", ())} <= records:
            packet = scapy.Ether(frame())
            if igmp.IGMPv3mr in packet:
                records |= {
                    (r.rtype, r.maddr, tuple(r.srcaddrs)) for r in packet[igmp.IGMPv3mr].records
                }


def mld_records(frame: bytes) -> list[tuple[int, str, tuple[str, ...]]]:
    """Return type, group and sources of what a multicast listener reports (RFC 3810, 5.2)."""
    icmp = frame[14 + 40 + 8 :]  # Ethernet, IPv6, hop-by-hop options
    if frame[12:14] != b"\x86\xdd" or frame[20] != 0 or icmp[0] != 143:
        return []
    records, position = [], 8
    for _ in range(int.from_bytes(icmp[6:8], "big")):
        kind, _, n, *addresses = struct.unpack_from("!BBH16s", icmp, position)
        addresses += struct.unpack_from("16s" * n, icmp, position + 20)
        group, *sources = (socket.inet_ntop(socket.AF_INET6, address) for address in addresses)
        records.append((kind, group, tuple(sources)))
        position += 20 + 16 * n
    return records


def test_kernel_answers_mld_queries_for_the_reader(lab):
    scapy = pytest.importorskip("scapy.all")
    group, (source, *_) = FAMILIES[6]
    stream, _ = lab.receiver(endpoints=[(group, PORT, source), ("ff15::7777", PORT)])
    query = (
        scapy.Ether(src=lab.tx.mac, dst="33:33:00:00:00:01")
        / scapy.IPv6(src="fe80::1", dst="ff02::1", hlim=1)
        / scapy.IPv6ExtHdrHopByHop(options=scapy.RouterAlert())
        / scapy.ICMPv6MLQuery2(mrd=100)
    )
    records = set()
    with overheard(lab.tx) as frame:
        lab.inject(query)
        while not {(INCLUDE, group, (source,)), (EXCLUDE, "ff15::7777", ())} <= records:
            records |= set(mld_records(frame()))
    assert xdp_counts(stream.stats) == {}  # an extension header, but not for it


# ------------------------------------------------------------------ ordinary sockets instead


#: What a veth pair cannot do, so that a reader falls back.
NO_XDP = {"fallback": True, "zero_copy": True}


@pytest.mark.parametrize("where", ["interface", "interface_address"])
@pytest.mark.parametrize("family", FAMILIES)
def test_fallback_takes_the_sources_of_a_group_only(lab, family, where):
    group, (first, second, other) = FAMILIES[family]
    endpoints = [(group, PORT, first), (group, PORT, second), (group, PORT, second)]
    place = {
        "interface": {},
        "interface_address": {"interface": "", "interface_address": lab.rx.ipv4},
    }
    stream, _ = lab.receiver(endpoints=endpoints, **NO_XDP, **place[where])
    assert {reader.transport for reader in stream.readers} == {"udp"}
    assert [reader.endpoints for reader in stream.readers] == [
        ((group, PORT, first),), ((group, PORT, second),)
    ]  # fmt: skip
    with lab.rx.enter():  # somebody who receives them all
        everything = socket.socket(
            socket.AF_INET6 if family == 6 else socket.AF_INET, socket.SOCK_DGRAM
        )
    with everything:
        everything.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        everything.bind((group, PORT))
        if family == 4:
            membership = struct.pack("4s4si", socket.inet_aton(group), bytes(4), lab.rx.ifindex)
            everything.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
        else:
            membership = socket.inet_pton(socket.AF_INET6, group) + struct.pack("i", lab.rx.ifindex)
            everything.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, membership)
        everything.settimeout(DEADLINE)
        for cnt, source in enumerate([first, other, second, other]):
            send(lab, group, [cnt], source)
            assert everything.recv(1000)
    assert sorted(heap.cnt for heap in take(stream, 2)) == [0, 2]
    settled(stream, 2)
    stream.stop()
    assert stream.stats.packets == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_fallback_takes_the_sources_of_an_own_address_only(lab, family):
    _, (first, second, other) = FAMILIES[family]
    address = lab.rx.ipv4 if family == 4 else lab.rx.ipv6
    stream, _ = lab.receiver(endpoints=[(address, PORT, s) for s in (first, second)], **NO_XDP)
    for cnt, source in enumerate([first, other, second, other, first]):
        send(lab, address, [cnt], source)
    assert sorted(heap.cnt for heap in take(stream, 3)) == [0, 2, 4]
    second_stream = lab.stream()
    with pytest.raises(sp.TransportError) as caught:  # theirs alone, as with AF_XDP
        lab.add_reader(second_stream, endpoints=[(address, PORT, other)], **NO_XDP)
    assert caught.value.errno == errno.EADDRINUSE
    assert second_stream.readers == []
    stream.stop()
    assert stream.stats.packets == 3


def test_fallback_refuses_a_source_of_any_address(lab):
    stream = lab.stream()
    endpoints = [(lab.rx.ipv4, PORT), ("0.0.0.0", PORT, "192.0.2.1")]
    with pytest.raises(sp.TransportError, match=r"0\.0\.0\.0:7148 from 192\.0\.2\.1") as caught:
        lab.add_reader(stream, endpoints=endpoints, **NO_XDP)
    assert caught.value.errno == errno.EOPNOTSUPP
    assert stream.readers == []
    lab.listen(PORT)  # nothing was left bound


def test_fallback_reads_what_overlaps_once(lab):
    group, (first, *_) = FAMILIES[4]
    endpoints = [(group, PORT, first), (group, PORT), (group, PORT)]
    stream, _ = lab.receiver(endpoints=endpoints, **NO_XDP)
    assert [reader.endpoints for reader in stream.readers] == [((group, PORT),)]
    send(lab, group, [1, 2], first)
    assert [heap.cnt for heap in (next_heap(stream), next_heap(stream))] == [1, 2]
    stream.stop()
    assert stream.stats.packets == 2
