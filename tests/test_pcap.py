"""Streams that read capture files: formats, link types, fragments, what is lost, and the end."""

from __future__ import annotations

import contextlib
import functools
import gzip
import itertools
import os
import random
import re
import shutil
import socket
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from target import (
    LOGGER,
    PARSER_REASONS,
    REASONS,
    Sender,
    descriptors,
    drain,
    free_port,
    new_stream,
    payload,
    receive,
    refusals,
    sp,
    take,
    wait_for,
)
from wire import Packet, pattern, simple_heap, stop_packet

scapy = pytest.importorskip("scapy.all")

PORT = 7148

#: Our statistics of capture files, by short name.
PCAP = {
    name: f"xdpspead.pcap_{name}"
    for name in (
        "packets",
        "filtered",
        "not_udp",
        "fragments",
        "joined",
        "bad_length",
        "snapped",
    )
}

ETHERNET, NULL, RAW, LOOP, SLL, IPV4, IPV6, SLL2 = 1, 0, 101, 108, 113, 228, 229, 276


def ip4(data: bytes | Packet, **fields: Any) -> Any:
    """Return an IPv4 packet with one UDP datagram."""
    data = data if isinstance(data, bytes) else data.encode()
    port = fields.pop("port", PORT)
    return (
        scapy.IP(**{"src": "10.77.0.1", "dst": "10.77.0.2", "id": 7, **fields})
        / scapy.UDP(sport=4000, dport=port)
        / data
    )


def ip6(data: bytes | Packet, *extensions: Any) -> Any:
    """Return an IPv6 packet with extension headers and one UDP datagram."""
    data = data if isinstance(data, bytes) else data.encode()
    packet = scapy.IPv6(src="fd77::1", dst="fd77::2")
    for extension in extensions:
        packet /= extension
    return packet / scapy.UDP(sport=4000, dport=PORT) / data


def ether(packet: Any, *tags: int) -> Any:
    """Return an Ethernet frame with VLAN tags."""
    frame = scapy.Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
    for tag in tags:
        frame /= scapy.Dot1Q(vlan=tag)
    return frame / packet


def datagrams(n: int, first: int = 0, size: int = 100) -> list[bytes]:
    """Return heaps of one packet."""
    return [simple_heap(cnt, size).packets(size)[0].encode() for cnt in range(first, first + n)]


def frames(n: int, first: int = 0, size: int = 100, port: int = PORT) -> list[bytes]:
    """Return Ethernet frames that hold heaps of one packet; written by hand, for many of them."""
    addresses = bytes([2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1]) + b"\x08\0"
    ends = bytes([10, 77, 0, 1, 10, 77, 0, 2])
    return [
        addresses
        + struct.pack(">BBHHHBBH", 0x45, 0, 28 + len(data), 7, 0, 64, 17, 0)
        + ends
        + struct.pack(">HHHH", 4000, port, 8 + len(data), 0)
        + data
        for data in datagrams(n, first, size)
    ]


ARP = bytes(scapy.Ether() / scapy.ARP())


def capture(
    packets: Iterable[Any],
    link: int = ETHERNET,
    *,
    order: str = "<",
    nanoseconds: bool = False,
    snap: int = 262144,
    times: Iterable[float] | None = None,
) -> bytes:
    """Return a pcap file, written from the format's description alone."""
    magic = 0xA1B23C4D if nanoseconds else 0xA1B2C3D4
    data = bytearray(struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, snap, link))
    packets = [bytes(packet) for packet in packets]
    for packet, when in zip(packets, times or [1.7e9] * len(packets), strict=True):
        kept = packet[:snap]
        data += struct.pack(order + "IIII", int(when), 999_999, len(kept), len(packet)) + kept
    return bytes(data)


def block(kind: int, body: bytes) -> bytes:
    """Return a block of a pcapng file."""
    body += bytes(-len(body) % 4)
    length = 12 + len(body)
    return struct.pack("<II", kind, length) + body + struct.pack("<I", length)


def capture_ng(links: list[int], packets: Iterable[tuple[int, bytes]]) -> bytes:
    """Return a pcapng file of several interfaces; packets are (interface, bytes)."""
    data = bytearray(block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1)))
    for link in links:
        data += block(1, struct.pack("<HHI", link, 0, 262144))
    for interface, packet in packets:
        head = struct.pack("<IIIII", interface, 0, 0, len(packet), len(packet))
        data += block(6, head + packet)
    return bytes(data)


@pytest.fixture
def read(tmp_path):
    """Return a function that reads a file image; it returns the heaps and the final statistics."""

    def read(image: bytes, filter: str = "", **config: Any) -> tuple[list[Any], Any]:
        path = tmp_path / "capture"
        path.write_bytes(image)
        stream = new_stream(heaps=100_000, **config)
        stream.add_udp_pcap_file_reader(str(path), filter)
        heaps = drain(stream)
        stream.stop()
        return heaps, stream.stats

    return read


def counts(heaps: list[Any]) -> list[int]:
    for heap in heaps:
        data = payload(heap)
        assert data == pattern(heap.cnt, len(data))
    return [heap.cnt for heap in heaps]


def losses(stats: Any) -> dict[str, int]:
    """Return what was not used, by reason; everything that was read must be accounted for."""
    found = {name: stats[full] for name, full in PCAP.items()}
    refused = sum(stats[REASONS[reason]] for reason in PARSER_REASONS)
    after_stop = stats["xdpspead.after_stop"]
    n = found.pop("packets")
    assert n == stats.packets + refused + after_stop + sum(found.values()), stats_of_snapshot(stats)
    return {name: value for name, value in found.items() if value}


def stats_of_snapshot(stats: Any) -> dict[str, int]:
    return {name: value for name, value in stats.items() if value}


# ------------------------------------------------------------------ formats


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("nanoseconds", [False, True])
def test_pcap_of_either_byte_order_and_resolution(read, order, nanoseconds):
    heaps, stats = read(capture(frames(5), order=order, nanoseconds=nanoseconds))
    assert counts(heaps) == list(range(5))
    assert stats.packets == 5


def test_pcapng(read):
    assert counts(read(capture_ng([ETHERNET], [(0, f) for f in frames(5)]))[0]) == list(range(5))


@pytest.mark.parametrize("writer", ["PcapWriter", "PcapNgWriter"])
def test_files_that_scapy_writes(tmp_path, writer):
    path = str(tmp_path / "capture")
    with getattr(scapy, writer)(path) as out:
        for d in datagrams(5):
            out.write(ether(ip4(d)))
    stream = new_stream()
    stream.add_udp_pcap_file_reader(path)
    assert counts(drain(stream)) == list(range(5))


def test_pcapng_of_several_interfaces(read):
    packets = [(i % 3, frame) for i, frame in enumerate(frames(9))]
    assert counts(read(capture_ng([ETHERNET] * 3, packets))[0]) == list(range(9))


def test_capture_without_packets_ends_the_stream(read):
    heaps, stats = read(capture([]))
    assert heaps == []
    assert (stats.packets, stats.batches) == (0, 0)


def test_heap_of_many_packets(read):
    packets = simple_heap(3, 50_000).packets(1024)
    (heap,), stats = read(capture(ether(ip4(p)) for p in packets))
    assert payload(heap) == pattern(3, 50_000)
    assert stats.packets == len(packets)


def test_largest_datagram(read):
    (heap,), _ = read(capture(frames(1, size=65507 - 48)))
    assert counts([heap]) == [0]


# ------------------------------------------------------------------ link types


def sll(ethertype: int, packet: Any) -> bytes:
    """Put a Linux cooked header before a packet."""
    address = bytes([2, 0, 0, 0, 0, 1, 0, 0])
    return struct.pack(">HHH", 0, 1, 6) + address + struct.pack(">H", ethertype) + bytes(packet)


def sll2(ethertype: int, packet: Any) -> bytes:
    """Put a Linux cooked header of version 2 before a packet."""
    head = struct.pack(">HHIHBB", ethertype, 0, 3, 1, 0, 6)
    return head + bytes([2, 0, 0, 0, 0, 1, 0, 0]) + bytes(packet)


def tagged(ethertype: int, packet: Any) -> bytes:
    """Put what follows the type of a VLAN tag before a packet."""
    return struct.pack(">HH", 100, ethertype) + bytes(packet)


def null(order: str, family6: int, kind: int, packet: Any) -> bytes:
    """Put the address family before a packet; that of IPv6 differs between systems."""
    return struct.pack(order + "I", 2 if kind == 0x0800 else family6) + bytes(packet)


def test_cooked_capture(read):
    image = capture([sll(0x0800, ip4(d)) for d in datagrams(3)], SLL)
    assert counts(read(image)[0]) == [0, 1, 2]


@pytest.mark.parametrize("tags", [(5,), (5, 6)])
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.ours
def test_vlan_tags(read, tags, family):
    make = ip4 if family == 4 else ip6
    heaps, stats = read(capture(ether(make(d), *tags) for d in datagrams(3)))
    assert counts(heaps) == [0, 1, 2]
    assert losses(stats) == {}


@pytest.mark.ours
def test_service_vlan_tag(read):
    frame = scapy.Ether() / scapy.Dot1AD(vlan=7) / scapy.Dot1Q(vlan=8) / ip4(datagrams(1)[0])
    assert counts(read(capture([frame]))[0]) == [0]


LINKS = {
    "SLL": (SLL, lambda p, kind: sll(kind, p)),
    "SLL in a VLAN": (SLL, lambda p, kind: sll(0x8100, tagged(kind, p))),
    "SLL2": (SLL2, lambda p, kind: sll2(kind, p)),
    "SLL2 in a VLAN": (SLL2, lambda p, kind: sll2(0x8100, tagged(kind, p))),
    "RAW": (RAW, lambda p, kind: bytes(p)),
    "NULL, Linux, big-endian": (NULL, lambda p, kind: null(">", 10, kind, p)),
    "NULL, OpenBSD": (NULL, lambda p, kind: null("<", 24, kind, p)),
    "NULL, FreeBSD": (NULL, lambda p, kind: null("<", 28, kind, p)),
    "NULL, macOS": (NULL, lambda p, kind: null("<", 30, kind, p)),
    "LOOP": (LOOP, lambda p, kind: null(">", 24, kind, p)),
}


@pytest.mark.parametrize("name", LINKS)
@pytest.mark.ours
def test_link_types(read, name):
    link, wrap = LINKS[name]
    data = datagrams(4)
    packets = [wrap(ip4(d), 0x0800) for d in data[:2]] + [wrap(ip6(d), 0x86DD) for d in data[2:]]
    heaps, stats = read(capture(packets, link))
    assert counts(heaps) == [0, 1, 2, 3]
    assert losses(stats) == {}


@pytest.mark.ours
def test_link_types_of_one_ip_version(read):
    assert counts(read(capture([ip4(d) for d in datagrams(2)], IPV4))[0]) == [0, 1]
    assert counts(read(capture([ip6(d) for d in datagrams(2)], IPV6))[0]) == [0, 1]


@pytest.mark.ours
def test_other_families_are_not_ip(read):
    # 7 is OSI on some systems; what follows would pass for IPv4.
    heaps, stats = read(capture([struct.pack("<I", 7) + bytes(ip4(datagrams(1)[0]))], NULL))
    assert heaps == []
    assert losses(stats) == {"not_udp": 1}


def test_unknown_link_type_is_a_runtime_error(read):
    with pytest.raises(RuntimeError):
        read(capture([b"x" * 50], 105))


@pytest.mark.ours
def test_unknown_link_type_is_named(read):
    with pytest.raises(OSError, match=r"105 \(802\.11\)"):
        read(capture([b"x" * 50], 105))


# ------------------------------------------------------------------ IP


def test_ipv4_options(read):
    options = [scapy.IPOption_NOP() for _ in range(8)]
    assert counts(read(capture(ether(ip4(d, options=options)) for d in datagrams(3)))[0]) == [
        0,
        1,
        2,
    ]


def test_ethernet_padding(read):
    data = [Packet(cnt, b"", 0, 0).encode() for cnt in range(3)]
    heaps, _ = read(capture(bytes(ether(ip4(d))) + bytes(50) for d in data))
    assert [heap.cnt for heap in heaps] == [0, 1, 2]


def test_checksums_are_not_verified(read):
    packet = ether(ip4(datagrams(1)[0]))
    packet[scapy.UDP].chksum = 1
    packet[scapy.IP].chksum = 1
    assert counts(read(capture([packet]))[0]) == [0]


@pytest.mark.ours
def test_ipv6(read):
    assert counts(read(capture(ether(ip6(d)) for d in datagrams(3)))[0]) == [0, 1, 2]


@pytest.mark.ours
def test_ipv6_extension_headers(read):
    extensions = [
        scapy.IPv6ExtHdrHopByHop(options=[scapy.RouterAlert()]),
        scapy.IPv6ExtHdrRouting(addresses=["fd77::3"]),
        scapy.IPv6ExtHdrDestOpt(options=[scapy.PadN(optdata=b"1234")]),
    ]
    assert counts(read(capture(ether(ip6(d, *extensions)) for d in datagrams(3)))[0]) == [0, 1, 2]


@pytest.mark.ours
def test_ipv6_datagram_in_one_fragment_is_whole(read):
    alone = scapy.IPv6ExtHdrFragment(id=9)
    heaps, stats = read(capture(ether(ip6(d, alone)) for d in datagrams(3)))
    assert counts(heaps) == [0, 1, 2]
    assert losses(stats) == {}


@pytest.mark.ours
def test_packet_that_its_sender_left_to_the_device_has_no_ip_length(read):
    packet = ether(ip4(datagrams(1)[0], len=0))
    udp_length = len(datagrams(1)[0]) + 8
    packet[scapy.UDP].len = udp_length
    six = ether(ip6(datagrams(1, 1)[0]))
    six[scapy.IPv6].plen = 0
    six[scapy.UDP].len = udp_length
    heaps, stats = read(capture([packet, bytes(packet) + bytes(9), six]))
    assert counts(heaps) == [0, 0, 1]
    assert losses(stats) == {}


# ------------------------------------------------------------------ filter


def test_filter_chooses_packets(read):
    image = capture([*frames(3), *frames(4, 10, port=9), *frames(2, 20)])
    assert counts(read(image, "udp port 9")[0]) == [10, 11, 12, 13]
    assert counts(read(image, f"dst 10.77.0.2 and udp port {PORT}")[0]) == [0, 1, 2, 20, 21]


def test_wrong_filter_is_a_runtime_error(read):
    with pytest.raises(RuntimeError, match="syntax error"):
        read(capture(frames(1)), "no such (")


@pytest.mark.ours
def test_wrong_filter_is_quoted(read):
    with pytest.raises(OSError, match=r"'no such \('.*syntax error"):
        read(capture(frames(1)), "no such (")


@pytest.mark.ours
def test_filtered_packets_are_counted_and_nobody_is_warned(read, caplog):
    with caplog.at_level("INFO", logger=LOGGER):
        log_a_line(caplog)
        caplog.clear()
        heaps, stats = read(capture([*frames(3), ARP, *frames(4, 10, port=9)]), "udp port 9")
        assert losses(stats) == {"filtered": 4}
        log_a_line(caplog)
    assert not [text for text in caplog.messages if "capture" in text]
    assert counts(heaps) == [10, 11, 12, 13]


@pytest.mark.ours
def test_filter_sees_vlan_tags(read):
    packets = [ether(ip4(d), 5 + i) for i, d in enumerate(datagrams(3))]
    heaps, stats = read(capture(packets), f"vlan 6 and udp port {PORT}")
    assert counts(heaps) == [1]
    assert losses(stats) == {"filtered": 2}


# ------------------------------------------------------------------ fragments


def fragments4(data: bytes, size: int = 400, **fields: Any) -> list[bytes]:
    """Cut a datagram into fragments, each an Ethernet frame."""
    return [bytes(ether(f)) for f in scapy.fragment(ip4(data, **fields), fragsize=size)]


def fragments6(data: bytes, size: int = 400, ident: int = 5) -> list[bytes]:
    """Cut a datagram into IPv6 fragments, each an Ethernet frame."""
    packet = ip6(data, scapy.IPv6ExtHdrFragment(id=ident))
    return [bytes(ether(f)) for f in scapy.fragment6(packet, size)]


@pytest.mark.parametrize("cut", [fragments4, fragments6])
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.ours
def test_fragments_in_any_order_are_one_datagram(read, cut, seed):
    parts = cut(datagrams(1, size=3000)[0])
    assert len(parts) > 6
    random.Random(seed).shuffle(parts)
    heaps, stats = read(capture([*parts, *frames(1, 1)]))
    assert counts(heaps) == [0, 1]
    assert losses(stats) == {"joined": len(parts) - 1}


@pytest.mark.ours
def test_fragments_of_one_datagram_after_the_other(read):
    parts = [f for i, d in enumerate(datagrams(300, size=1000)) for f in fragments4(d, id=i)]
    heaps, stats = read(capture(parts))
    assert counts(heaps) == list(range(300))
    assert losses(stats) == {"joined": 600}


@pytest.mark.ours
def test_fragments_of_several_datagrams_may_be_mixed(read):
    parts = [
        fragment for i, d in enumerate(datagrams(30, size=1000)) for fragment in fragments4(d, id=i)
    ]
    parts += [f for i, d in enumerate(datagrams(30, 30, 1000)) for f in fragments6(d, ident=i)]
    random.Random(1).shuffle(parts)
    heaps, stats = read(capture(parts))
    assert sorted(counts(heaps)) == list(range(60))
    assert losses(stats) == {"joined": len(parts) - 60}


@pytest.mark.ours
def test_equal_identifiers_of_different_hosts_are_different_datagrams(read):
    one, other, back = datagrams(3, size=1000)
    parts = [
        fragments4(one, id=1, src="10.77.0.1"),
        fragments4(other, id=1, src="10.77.0.3"),
        fragments4(back, id=1, src="10.77.0.1", dst="10.77.0.9"),
    ]
    mixed = [fragment for together in zip(*parts, strict=True) for fragment in together]
    assert counts(read(capture(mixed))[0]) == [0, 1, 2]


@pytest.mark.parametrize("missing", [0, 1, -1])
@pytest.mark.parametrize("cut", [fragments4, fragments6])
@pytest.mark.ours
def test_missing_fragment(read, caplog, cut, missing):
    parts = cut(datagrams(1, size=2000)[0])
    del parts[missing]
    with caplog.at_level("WARNING", logger=LOGGER):
        heaps, stats = read(capture([*parts, *frames(1, 1)]))
        warning = f"{len(parts)} of {len(parts) + 1} packets could not be used: "
        wait_for(lambda: warning in caplog.text, "a warning")
    assert f"{len(parts)} fragments of incomplete datagrams" in caplog.text
    assert counts(heaps) == [1]
    assert losses(stats) == {"fragments": len(parts)}


@pytest.mark.ours
def test_repeated_fragment_is_counted_and_does_no_harm(read):
    parts = fragments4(datagrams(1, size=1000)[0])
    heaps, stats = read(capture([parts[0], parts[0], parts[1], parts[0], parts[2]]))
    assert counts(heaps) == [0]
    assert losses(stats) == {"joined": 2, "fragments": 2}


@pytest.mark.ours
def test_datagram_whose_fragments_overlap_is_dropped_whole(read):
    first, middle, last = fragments4(datagrams(1, size=1000)[0])
    packet = scapy.Ether(middle)
    packet[scapy.IP].frag -= 1  # 8 bytes into the first
    heaps, stats = read(capture([first, packet, middle, last, *frames(1, 1)]))
    assert counts(heaps) == [1]
    assert losses(stats) == {"fragments": 4}


@pytest.mark.ours
def test_datagram_with_two_versions_of_one_fragment_is_dropped_whole(read):
    first, middle, last = fragments4(datagrams(1, size=1000)[0])
    other = middle[:-1] + bytes([middle[-1] ^ 1])
    heaps, stats = read(capture([first, middle, other, last]))
    assert heaps == []
    assert losses(stats) == {"fragments": 4}


@pytest.mark.ours
def test_more_incomplete_datagrams_than_are_kept(read):
    data = datagrams(100, size=1000)
    starts = [fragments4(d, id=i)[0] for i, d in enumerate(data)]
    ends = [f for i, d in enumerate(data) for f in fragments4(d, id=i)[1:]]
    heaps, stats = read(capture(starts + ends))
    # The ends of the first 36 begin datagrams of their own, and throw out one each.
    assert heaps == []
    assert losses(stats) == {"fragments": 300}
    kept = [f for i, d in enumerate(data) if i >= 36 for f in fragments4(d, id=i)[1:]]
    heaps, stats = read(capture(starts + kept))
    assert counts(heaps) == list(range(36, 100))
    assert losses(stats) == {"fragments": 36, "joined": 128}


@pytest.mark.ours
def test_identifier_that_comes_again_after_its_time_is_another_datagram(read):
    old, new = (fragments4(d, id=1) for d in datagrams(2, size=1000))
    heaps, stats = read(capture([*old[:2], *new], times=[100, 100, 131, 131, 131]))
    assert counts(heaps) == [1]
    assert losses(stats) == {"fragments": 2, "joined": 2}
    heaps, stats = read(capture([*old[:2], old[2]], times=[100, 100, 130]))
    assert counts(heaps) == [0]


@pytest.mark.ours
def test_filter_on_ports_leaves_the_first_fragments_alone_and_says_so(read, caplog):
    parts = fragments4(datagrams(1, size=1000)[0])
    with caplog.at_level("WARNING", logger=LOGGER):
        heaps, stats = read(capture([*parts, *frames(1, 1)]), f"udp port {PORT}")
        wait_for(lambda: "names ports" in caplog.text, "advice")
    assert counts(heaps) == [1]
    assert losses(stats) == {"filtered": 2, "fragments": 1}
    heaps, stats = read(capture(parts), "dst 10.77.0.2")
    assert counts(heaps) == [0]
    assert losses(stats) == {"joined": 2}


@pytest.mark.ours
def test_joined_datagram_with_a_wrong_length_counts_each_fragment(read):
    packet = ip4(datagrams(1, size=1000)[0])
    packet[scapy.UDP].len = 500
    parts = [ether(f) for f in scapy.fragment(packet, fragsize=400)]
    assert losses(read(capture(parts))[1]) == {"bad_length": 3}


@pytest.mark.ours
def test_snapped_fragment_is_not_used(read):
    parts = fragments4(datagrams(1, size=1000)[0])
    heaps, stats = read(capture(parts, snap=300))
    assert heaps == []
    assert losses(stats) == {"snapped": 2, "fragments": 1} or losses(stats) == {"snapped": 3}


# ------------------------------------------------------------------ what cannot be used


def test_other_packets_are_passed_over(read):
    heaps, stats = read(capture([ARP, *frames(2), scapy.Ether() / scapy.IP() / scapy.TCP(), ARP]))
    assert counts(heaps) == [0, 1]
    assert stats.packets == 2


def test_snapped_packets_are_passed_over(read):
    heaps, stats = read(capture([*frames(2), *frames(1, 2, size=500), *frames(2, 3)], snap=300))
    assert counts(heaps) == [0, 1, 3, 4]
    assert stats.packets == 4


@pytest.mark.ours
def test_only_padding_that_was_not_captured_is_no_loss(read):
    (frame,) = frames(1)
    heaps, _ = read(capture([frame + bytes(40)], snap=len(frame) + 3))
    assert counts(heaps) == [0]


@pytest.mark.ours
def test_each_reason_is_counted_and_one_warning_sums_them_up(read, caplog):
    short = ether(ip4(datagrams(1)[0]))
    short[scapy.UDP].len = 30
    packets = [
        *frames(3),
        *[ARP] * 4,
        *[short] * 5,
        *frames(6, 10, size=500),  # snapped
        *fragments4(datagrams(1, size=500)[0], 200)[1:],
        *[ether(ip4(b"no SPEAD"))] * 2,
    ]
    with caplog.at_level("WARNING", logger=LOGGER):
        heaps, stats = read(capture(packets, snap=300))
        wait_for(lambda: "could not be used" in caplog.text, "a warning")
    assert counts(heaps) == [0, 1, 2]
    assert losses(stats) == {"not_udp": 4, "bad_length": 5, "snapped": 6, "fragments": 2}
    (record,) = [r for r in caplog.records if "capture" in r.getMessage()]
    assert record.levelname == "WARNING"
    assert record.getMessage().endswith(
        f": 19 of {len(packets)} packets could not be used: 2 fragments of incomplete datagrams, "
        "6 cut short when captured, 5 with wrong lengths, 4 not UDP over IP, 2 not SPEAD"
    )


@pytest.mark.ours
def test_packets_cut_inside_their_headers(read):
    (frame,) = frames(1)
    for length in range(len(frame)):
        image = capture([]) + struct.pack("<IIII", 0, 0, length, len(frame)) + frame[:length]
        assert losses(read(image)[1]) == {"snapped": 1}, length
        # A frame that never was longer.
        lost = losses(read(capture([frame[:length]]))[1])
        assert lost == {"bad_length": 1}, length


@pytest.mark.ours
def test_file_that_is_read_whole_gives_no_warning(read, caplog):
    with caplog.at_level("INFO", logger=LOGGER):
        log_a_line(caplog)
        caplog.clear()
        read(capture(frames(10)))
        log_a_line(caplog)
    assert not [text for text in caplog.messages if "capture" in text]


def log_a_line(caplog) -> None:
    """Have a line logged and wait for it: then all that was under way before has come, too."""
    cnt = next(_marks)
    receive([simple_heap(cnt, 100).packets(50)[0]])
    wait_for(lambda: f"heap {cnt}" in caplog.text, "our own line")


_marks = itertools.count(7_000_000)


@pytest.mark.ours
def test_long_path_is_shortened_in_the_warning(tmp_path, caplog):
    folder = tmp_path / ("long" * 50)
    folder.mkdir()
    path = folder / "the-end.pcap"
    path.write_bytes(capture([ARP]))
    with caplog.at_level("WARNING", logger=LOGGER):
        stream = new_stream()
        stream.add_udp_pcap_file_reader(path)
        drain(stream)
        wait_for(lambda: "1 not UDP over IP" in caplog.text, "a warning")
    assert "capture file ..." in caplog.text
    assert "longlong/the-end.pcap: 1 of 1 packets" in caplog.text


# ------------------------------------------------------------------ damaged files


@pytest.mark.parametrize("keep", [5, 16, 17, 60])
def test_cut_file_gives_what_it_has_and_a_warning(read, caplog, keep):
    whole = capture(frames(3))
    with caplog.at_level("WARNING", logger=LOGGER):
        heaps, _ = read(whole + capture(frames(1, 3))[24 : 24 + keep])
        assert counts(heaps) == [0, 1, 2]
        wait_for(lambda: "truncated dump file" in caplog.text, "a warning")


def test_file_cut_in_its_first_packet_is_an_empty_one(read):
    assert read(capture(frames(1))[:-1])[0] == []


@pytest.mark.ours
def test_warning_on_a_cut_file_names_it_and_says_how_far_it_was_read(tmp_path, caplog):
    path = tmp_path / "cut.pcap"
    path.write_bytes(capture(frames(4))[:-1])
    with caplog.at_level("WARNING", logger=LOGGER):
        stream = new_stream()
        stream.add_udp_pcap_file_reader(path)
        drain(stream)
        wait_for(lambda: "only the first 3 packets could be read" in caplog.text, "a warning")
    assert "cut.pcap" in caplog.text


@pytest.mark.ours
def test_cut_pcapng(read, caplog):
    image = capture_ng([ETHERNET], [(0, frame) for frame in frames(4)])
    with caplog.at_level("WARNING", logger=LOGGER):
        assert counts(read(image[:-7])[0]) == [0, 1, 2]
        wait_for(lambda: "only the first 3 packets could be read" in caplog.text, "a warning")


@pytest.mark.ours
def test_interfaces_of_different_link_types_are_an_error(read):
    with pytest.raises(OSError, match="different from the type of the first"):
        read(capture_ng([ETHERNET, RAW], [(0, frame) for frame in frames(2)]))


@pytest.mark.ours
def test_interface_of_another_link_type_later_in_the_file_ends_the_reading(read, caplog):
    first = capture_ng([ETHERNET], [(0, frame) for frame in frames(2)])
    with caplog.at_level("WARNING", logger=LOGGER):
        heaps, _ = read(first + block(1, struct.pack("<HHI", RAW, 0, 262144)))
        assert counts(heaps) == [0, 1]
        wait_for(lambda: "different from the type of the first" in caplog.text, "a warning")


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize("image", [b"", b"abc", b"this is no capture file" * 10, bytes(100)])
def test_other_files_are_a_runtime_error(read, image):
    with pytest.raises(RuntimeError):
        read(image)


def test_missing_file_is_a_runtime_error(tmp_path):
    with pytest.raises(RuntimeError, match="No such file"):
        new_stream().add_udp_pcap_file_reader(str(tmp_path / "missing"))


def test_directory_is_a_runtime_error(tmp_path):
    with pytest.raises(RuntimeError, match="directory"):
        new_stream().add_udp_pcap_file_reader(str(tmp_path))


@pytest.mark.parametrize("arguments", [(), (None,), (5,), ("x", None), ("x", 1), ("x", "", 1)])
def test_wrong_arguments_are_a_type_error(arguments):
    with pytest.raises(TypeError):
        new_stream().add_udp_pcap_file_reader(*arguments)


@pytest.mark.ours
def test_errors_carry_their_number_and_name_the_file(tmp_path):
    with pytest.raises(OSError, match=str(tmp_path / "missing")) as caught:
        new_stream().add_udp_pcap_file_reader(tmp_path / "missing")
    assert caught.value.errno == 2
    assert caught.value.step == "open capture file"


@pytest.mark.ours
@pytest.mark.parametrize("arguments", [("a\0b",), (b"a\0b",), ("a", "udp\0")])
def test_null_byte_is_a_value_error(arguments):
    with pytest.raises(ValueError, match="null byte"):
        new_stream().add_udp_pcap_file_reader(*arguments)


@pytest.mark.ours
def test_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        new_stream().add_udp_pcap_file_reader(tmp_path / "pipe")


@pytest.mark.ours
def test_failed_call_leaves_no_descriptor_open(tmp_path):
    path = tmp_path / "capture"
    path.write_bytes(capture(frames(1), 105))
    stream = new_stream()
    before = descriptors()
    for name, filter in [(path, ""), (tmp_path, ""), (tmp_path / "missing", "")]:
        with pytest.raises(OSError, match="capture file"):
            stream.add_udp_pcap_file_reader(name, filter)
    path.write_bytes(capture(frames(1)))
    with pytest.raises(OSError, match="filter"):
        stream.add_udp_pcap_file_reader(path, "(")
    path.write_bytes(gzip.compress(b"no capture"))
    with pytest.raises(OSError, match="not a capture file"):
        stream.add_udp_pcap_file_reader(path)
    assert descriptors() == before


@pytest.mark.ours
def test_path_objects_and_bytes(tmp_path):
    path = tmp_path / "capt\udce9"
    path.write_bytes(capture(frames(1)))
    for name in (path, str(path), bytes(path)):
        stream = new_stream()
        stream.add_udp_pcap_file_reader(filename=name, filter="udp")
        assert counts(drain(stream)) == [0]


# ------------------------------------------------------------------ compressed files


def zstd(data: bytes, *options: str) -> bytes:
    return subprocess.run(
        ["zstd", "-q", "-c", *options], input=data, stdout=subprocess.PIPE, check=True, timeout=60
    ).stdout


needs_zstd = pytest.mark.skipif(not shutil.which("zstd"), reason="the command zstd is missing")
#: Longer than all buffers together, and not to be compressed away.
LONG = 3000

COMPRESSORS = [
    pytest.param(gzip.compress, id="gzip"),
    pytest.param(zstd, id="zstd", marks=needs_zstd),
]


@functools.cache
def long_capture() -> bytes:
    return capture(frames(LONG, size=1400))


@pytest.mark.parametrize("compress", COMPRESSORS)
@pytest.mark.ours
def test_compressed_files_open_as_they_are(read, compress):
    heaps, stats = read(compress(long_capture()))
    assert counts(heaps) == list(range(LONG))
    assert losses(stats) == {}


@pytest.mark.parametrize("compress", COMPRESSORS)
@pytest.mark.ours
def test_compressed_pcapng(read, compress):
    image = capture_ng([ETHERNET], [(0, frame) for frame in frames(5)])
    assert counts(read(compress(image))[0]) == list(range(5))


@pytest.mark.parametrize("compress", COMPRESSORS)
@pytest.mark.parametrize("at", [0, 3, 24, 100_000])
@pytest.mark.ours
def test_file_compressed_in_parts(read, compress, at):
    image = long_capture()
    assert counts(read(compress(image[:at]) + compress(image[at:]))[0]) == list(range(LONG))


def decompress_what_there_is(data: bytes) -> bytes:
    """Return what a cut file still gives."""
    if data[:2] == b"\x1f\x8b":
        return zlib.decompressobj(31).decompress(data)
    command = ["zstd", "-q", "-d", "-c"]
    return subprocess.run(command, input=data, capture_output=True, timeout=60).stdout


@needs_zstd
@pytest.mark.ours
def test_skippable_frame_may_come_first(read):
    skipped = struct.pack("<II", 0x184D2A53, 5) + b"12345"
    assert counts(read(skipped + zstd(capture(frames(3))))[0]) == [0, 1, 2]


@pytest.mark.parametrize("compress", COMPRESSORS)
@pytest.mark.parametrize("part", [0.3, 0.7, 0.9999])
@pytest.mark.ours
def test_cut_compressed_file_gives_what_it_has_and_a_warning(read, caplog, compress, part):
    image = compress(long_capture())
    cut = image[: int(len(image) * part)]
    n = (len(decompress_what_there_is(cut)) - 24) // (16 + len(frames(1, size=1400)[0]))
    assert 0 < n < LONG
    with caplog.at_level("WARNING", logger=LOGGER):
        heaps, _ = read(cut)
        wait_for(lambda: "the compressed file is cut short" in caplog.text, "a warning")
    assert counts(heaps) == list(range(n))
    assert f"only the first {n} packets could be read" in caplog.text


@pytest.mark.parametrize("compress", COMPRESSORS)
@pytest.mark.ours
def test_corrupt_compressed_file_gives_what_it_has_and_a_warning(read, caplog, compress):
    image = bytearray(compress(long_capture()))
    middle = len(image) // 2
    image[middle : middle + 1000] = bytes(1000)
    with caplog.at_level("WARNING", logger=LOGGER):
        heaps, stats = read(bytes(image))
        wait_for(lambda: "packets could be read" in caplog.text, "a warning")
    # What was decompressed before the damage showed may be wrong as well, and need not be UDP.
    assert 0 < len(heaps) < LONG
    losses(stats)


@pytest.mark.parametrize("compress", COMPRESSORS)
@pytest.mark.ours
def test_compressed_file_cut_before_the_first_packet(read, compress):
    with pytest.raises(OSError, match="not a capture file"):
        read(compress(capture(frames(1)))[:15])


@pytest.mark.parametrize("compress", COMPRESSORS)
@pytest.mark.ours
def test_compressed_file_of_something_else(read, compress):
    with pytest.raises(OSError, match="not a capture file"):
        read(compress(b"hello world" * 100))


@pytest.mark.parametrize(
    ("magic", "name"), [(b"\xfd7zXZ\0", "xz -d"), (b"BZh9", "bzip2"), (b"\x04\x22\x4d\x18", "lz4")]
)
@pytest.mark.ours
def test_other_compressions_are_named(read, magic, name):
    with pytest.raises(OSError, match=name):
        read(magic + bytes(100))


# ------------------------------------------------------------------ batches and the end


@pytest.mark.parametrize("n", [1, 63, 64, 65, 128, 200])
def test_batches_of_64(read, n):
    _, stats = read(capture(frames(n)))
    assert (stats.packets, stats.batches) == (n, -(-n // 64))
    assert stats.max_batch == min(n, 64)


def test_packets_that_are_passed_over_are_not_in_batches(read):
    _, stats = read(capture([f for frame in frames(100) for f in (frame, ARP)]))
    assert (stats.packets, stats.batches, stats.max_batch) == (100, 2, 64)


def test_end_of_the_file_flushes_what_is_incomplete(read):
    packets = [*simple_heap(1, 100).packets(50)[:1], *simple_heap(2, 10).packets()]
    heaps, stats = read(capture(ether(ip4(p)) for p in packets))
    assert [heap.cnt for heap in heaps] == [2]
    assert stats.incomplete_heaps_flushed == 1


def test_stop_item_ends_the_stream(read):
    heaps, stats = read(capture([*frames(3), ether(ip4(stop_packet())), *frames(5, 10)]))
    assert counts(heaps) == [0, 1, 2]
    assert (stats.packets, stats.batches) == (4, 1)


@pytest.mark.ours
def test_nothing_is_read_behind_the_stop_item(read):
    _, stats = read(capture([*frames(3), ether(ip4(stop_packet())), *frames(5, 10)]))
    assert stats[PCAP["packets"]] == 4
    assert losses(stats) == {}


def test_full_ring_loses_nothing(tmp_path):
    path = tmp_path / "capture"
    path.write_bytes(capture(frames(500)))
    stream = new_stream(heaps=2)
    stream.add_udp_pcap_file_reader(str(path))
    wait_for(lambda: stream.stats.worker_blocked, "a full ring")
    assert counts(drain(stream)) == list(range(500))
    stream.stop()
    assert stream.stats.packets == 500


@pytest.mark.ours
def test_full_ring_loses_no_joined_datagram(tmp_path):
    path = tmp_path / "capture"
    parts = [f for i, d in enumerate(datagrams(200, size=1000)) for f in fragments4(d, id=i)]
    path.write_bytes(capture(parts))
    stream = new_stream(heaps=1)
    stream.add_udp_pcap_file_reader(path)
    wait_for(lambda: stream.stats.worker_blocked, "a full ring")
    assert counts(drain(stream)) == list(range(200))
    stream.stop()
    assert losses(stream.stats) == {"joined": 400}


@pytest.mark.ours
def test_stop_in_the_middle_accounts_for_all_that_was_read(tmp_path):
    path = tmp_path / "capture"
    path.write_bytes(capture([*frames(1000), *fragments4(datagrams(1, size=1000)[0])]))
    stream = new_stream(heaps=10)
    stream.add_udp_pcap_file_reader(path)
    wait_for(lambda: stream.stats.worker_blocked, "a full ring")
    assert counts(take(stream, 3)) == [0, 1, 2]
    stream.stop()
    stats = stream.stats
    losses(stats)
    assert 13 <= stats[PCAP["packets"]] < 1003
    left = counts(drain(stream))
    assert left == list(range(3, 3 + len(left)))
    assert 3 + len(left) + stats["xdpspead.heaps_dropped_stop"] == stats.packets


def test_stop_right_after_the_start(tmp_path):
    path = tmp_path / "capture"
    path.write_bytes(capture(frames(1000)))
    for _ in range(20):
        stream = new_stream(heaps=1)
        stream.add_udp_pcap_file_reader(str(path))
        stream.stop()
        drain(stream)


@pytest.mark.ours
def test_other_reader_that_ends_the_stream_leaves_nothing_unaccounted_for(tmp_path):
    path = tmp_path / "capture"
    path.write_bytes(capture(frames(1000)))
    stream = new_stream(heaps=4)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        stream.add_udp_reader(sock)
        port = sock.getsockname()[1]
    stream.add_udp_pcap_file_reader(path)
    wait_for(lambda: stream.stats.worker_blocked, "a full ring")
    with Sender(port) as sender:
        sender.send(stop_packet())
    heaps = counts(drain(stream))
    stream.stop()
    stats = stream.stats
    from_udp = int(len(heaps) < 1000)  # the stop item, if it came before the file's end
    read = stats[PCAP["packets"]] + from_udp
    assert read == stats.packets + stats["xdpspead.after_stop"]


def test_explicit_start_opens_the_file_at_once(tmp_path):
    path = tmp_path / "capture"
    stream = new_stream(explicit_start=True)
    with pytest.raises(RuntimeError):
        stream.add_udp_pcap_file_reader(str(path))
    path.write_bytes(capture(frames(3)))
    stream.add_udp_pcap_file_reader(str(path))
    path.unlink()
    assert stream.stats.packets == 0
    stream.start()
    assert counts(drain(stream)) == [0, 1, 2]


@pytest.mark.ours
def test_file_of_a_stream_that_never_starts_is_closed(tmp_path):
    path = tmp_path / "capture"
    path.write_bytes(capture(frames(3)))
    new_stream(explicit_start=True)
    before = descriptors()
    stream = new_stream(explicit_start=True)
    stream.add_udp_pcap_file_reader(path)
    stream.stop()
    del stream
    assert descriptors() == before


def test_stopped_stream_reads_nothing(tmp_path):
    stream = new_stream()
    stream.stop()
    stream.add_udp_pcap_file_reader(str(tmp_path / "missing"))
    assert drain(stream) == []


@pytest.mark.ours
def test_reader_shows_its_transport(tmp_path):
    path = tmp_path / "capture"
    path.write_bytes(capture(frames(3)))
    stream = new_stream()
    stream.add_udp_pcap_file_reader(path)
    (reader,) = stream.readers
    assert reader.transport == "pcap"


@pytest.mark.ours
def test_files_on_one_thread_take_turns(tmp_path):
    # Neither waits for the other's end: both rings fill although nobody reads.
    pool = sp.ThreadPool(1)
    streams = []
    for i in range(2):
        path = tmp_path / f"capture{i}"
        path.write_bytes(capture(frames(1000)))
        stream = new_stream(heaps=5, pool=pool)
        stream.add_udp_pcap_file_reader(path)
        streams.append(stream)
    for stream in streams:
        wait_for(lambda stream=stream: stream.stats.worker_blocked, "a full ring")
    for stream in streams:
        assert counts(drain(stream)) == list(range(1000))


# ------------------------------------------------------------------ tcpdump


def may_capture() -> bool:
    if not shutil.which("tcpdump") or os.geteuid() != 0:
        return False
    with contextlib.suppress(OSError):
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()
        return True
    return False


needs_tcpdump = pytest.mark.skipif(
    not may_capture(), reason="tcpdump is missing, or this process may not capture"
)


@contextlib.contextmanager
def tcpdump(path: Path, n: int, *arguments: str):
    """Capture `n` packets into a file while the block runs, and wait for its end."""
    command = ["tcpdump", "-Z", "root", "-n", "-U", "-w", str(path), "-c", str(n), *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        for line in process.stderr:  # ends with the process
            if "listening on" in line:
                break
        yield
        process.wait(20)
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def send(port: int, data: Iterable[bytes], host: str = "127.0.0.1") -> None:
    with socket.socket(
        socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM
    ) as receiver:
        receiver.bind((host, port))
        with Sender(port, host) as sender:
            sender.send(*data)


@needs_tcpdump
@pytest.mark.parametrize(
    "arguments",
    [["-i", "lo"], ["-i", "any"], ["-i", "any", "-y", "LINUX_SLL"], ["-i", "lo", "--nano"]],
    ids=" ".join,
)
@pytest.mark.ours
def test_captures_of_loopback(tmp_path, arguments):
    port = free_port()
    path = tmp_path / "capture"
    with tcpdump(path, 20, *arguments, f"udp and port {port}"):
        send(port, datagrams(20, size=1000))
    stream = new_stream()
    stream.add_udp_pcap_file_reader(path)
    heaps = counts(drain(stream))
    stream.stop()
    assert heaps == list(range(20))
    assert losses(stream.stats) == {}


@needs_tcpdump
def test_capture_of_loopback(tmp_path):
    port = free_port()
    path = tmp_path / "capture"
    with tcpdump(path, 20, "-i", "lo", f"udp and port {port}"):
        send(port, datagrams(20, size=1000))
    stream = new_stream()
    stream.add_udp_pcap_file_reader(str(path))
    assert counts(drain(stream)) == list(range(20))


@needs_tcpdump
@pytest.mark.ours
def test_super_packet_of_a_segmenting_sender_is_counted(tmp_path):
    port = free_port()
    path = tmp_path / "capture"
    packets = datagrams(5, size=200)
    with (
        tcpdump(path, 2, "-i", "lo", f"udp and port {port}"),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
        Sender(port) as sender,
    ):
        receiver.bind(("127.0.0.1", port))
        sender.socket.setsockopt(socket.IPPROTO_UDP, 103, len(packets[0]))  # UDP_SEGMENT
        sender.socket.send(b"".join(packets))
        sender.socket.setsockopt(socket.IPPROTO_UDP, 103, 0)
        sender.send(*datagrams(1, 9))
    stream = new_stream()
    stream.add_udp_pcap_file_reader(path)
    assert counts(drain(stream)) == [9]
    stream.stop()
    assert refusals(stream.stats) == {"long_packet": 1}
    assert losses(stream.stats) == {}


#: In a network of its own, whose loopback has the MTU of an Ethernet: the kernel makes fragments.
FRAGMENTING = """
import socket, subprocess, sys
sys.path.insert(0, sys.argv[2])
import test_pcap
from pathlib import Path
subprocess.run(["ip", "link", "set", "lo", "up", "mtu", "1500"], check=True, timeout=20)
data = test_pcap.datagrams(10, size=8000)
with test_pcap.tcpdump(Path(sys.argv[1]), 60, "-i", "lo", "udp or ip6[6] == 44"):
    test_pcap.send(7148, data[:5])
    test_pcap.send(7148, data[5:], "::1")
"""


@needs_tcpdump
@pytest.mark.skipif(not shutil.which("unshare"), reason="the command unshare is missing")
@pytest.mark.ours
def test_fragments_that_the_kernel_made(tmp_path):
    path = tmp_path / "capture"
    here = str(Path(__file__).parent)
    command = ["unshare", "--net", sys.executable, "-c", FRAGMENTING, str(path), here]
    subprocess.run(command, check=True, timeout=60)
    stream = new_stream()
    stream.add_udp_pcap_file_reader(path)
    assert counts(drain(stream)) == list(range(10))
    stream.stop()
    assert losses(stream.stats) == {"joined": 50}


# ------------------------------------------------------------------ libpcap

_TELL = """
import errno, sys, xdpspead, xdpspead.recv
def is_loaded():
    return "/libpcap.so" in open("/proc/self/maps").read()
loaded = [is_loaded()]
try:
    xdpspead.recv.Stream(xdpspead.ThreadPool()).add_udp_pcap_file_reader(sys.argv[1])
except OSError as error:
    print(errno.errorcode[error.errno], error)
loaded.append(is_loaded())
print(loaded)
print(repr(xdpspead.features.pcap), bool(xdpspead.features.pcap_gzip))
"""


def tell(capture: Path, **variables: str) -> list[str]:
    """Return the lines that a process prints that opens the file."""
    command = [sys.executable, "-P", "-c", _TELL, str(capture)]
    environment = {**os.environ, **variables}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@pytest.fixture
def some_file(tmp_path: Path) -> Path:
    scapy.wrpcap(str(tmp_path / "some.pcap"), [scapy.Ether() / ip4(stop_packet(1))])
    return tmp_path / "some.pcap"


@pytest.mark.ours
def test_libpcap_is_loaded_with_the_first_file_and_not_before(some_file):
    assert tell(some_file)[0] == "[False, True]"


@pytest.mark.ours
def test_without_libpcap_the_error_and_the_features_say_what_to_install(some_file, without_library):
    error, loaded, features = tell(some_file, **without_library("libpcap.so"))
    assert re.match(r"ENOSYS load libpcap: .*none\.so.*apt install libpcap0\.8", error)
    assert loaded == "[False, False]"
    assert re.search(r"available=False.*missing now.*apt install libpcap0\.8.* False$", features)
