"""Packets that nobody should send: each is dropped, counted by its own reason, and nothing else.

The names of our statistics are in `target.REASONS`. On the peer, which does not count these, the
tests still prove that the packets are harmless.
"""

from __future__ import annotations

import random
import struct

import pytest
from target import (
    OURS,
    PARSER_REASONS,
    REASONS,
    Sender,
    drain,
    free_port,
    new_stream,
    next_heap,
    payload,
    receive,
    refusals,
    settled,
    stats_of,
    udp_stream,
    wait_for,
)
from wire import (
    ADDRESS_BITS,
    HEAP_CNT,
    HEAP_LENGTH,
    PAYLOAD_LENGTH,
    PAYLOAD_OFFSET,
    Packet,
    addr,
    imm,
    pattern,
    simple_heap,
)

GOOD = simple_heap(1, 100).packets()[0]


def word(immediate: int, item_id: int, value: int, address_bits: int = 48) -> bytes:
    return struct.pack(">Q", immediate << 63 | item_id << address_bits | value)


#: Nothing but the bytes, written by hand: SPEAD-64-48, heap 7 of 4 bytes, complete.
HAND_MADE = bytes.fromhex(
    "53 04 02 06 00 00 00 05"  # magic, version, widths 2 + 6, reserved, 5 items
    "80 01 00 00 00 00 00 07"  # heap cnt 7
    "80 02 00 00 00 00 00 04"  # heap length 4
    "80 03 00 00 00 00 00 00"  # payload offset 0
    "80 04 00 00 00 00 00 04"  # payload length 4
    "10 00 00 00 00 00 00 00"  # item 0x1000 at offset 0
    "de ad be ef"
)


def patched(position: int, *new: int) -> bytes:
    """Return the hand-made packet with some bytes replaced."""
    return HAND_MADE[:position] + bytes(new) + HAND_MADE[position + len(new) :]


def test_the_hand_made_packet_is_good():
    (heap,), _ = receive([HAND_MADE])
    assert (heap.cnt, payload(heap)) == (7, bytes.fromhex("deadbeef"))


#: What cannot be decoded, and why.
UNDECODABLE = {
    "one byte": (HAND_MADE[:1], "truncated_header"),
    "seven bytes": (HAND_MADE[:7], "truncated_header"),
    "header without its items": (HAND_MADE[:8], "truncated_header"),
    "last item cut": (HAND_MADE[:47], "truncated_header"),
    "more items than bytes": (patched(6, 0x00, 0x07), "truncated_header"),
    "65535 items": (patched(6, 0xFF, 0xFF), "truncated_header"),
    "wrong magic": (patched(0, 0x54), "bad_magic"),
    "zero magic": (patched(0, 0x00), "bad_magic"),
    "version 3": (patched(1, 0x03), "bad_magic"),
    "version 5": (patched(1, 0x05), "bad_magic"),
    "all zero": (bytes(len(HAND_MADE)), "bad_magic"),
    "all ones": (b"\xff" * len(HAND_MADE), "bad_magic"),
    "address width 0": (patched(2, 8, 0), "bad_flavour"),
    "item id width 0": (patched(2, 0, 8), "bad_flavour"),
    "widths 2 + 5": (patched(2, 2, 5), "bad_flavour"),
    "widths 2 + 7": (patched(2, 2, 7), "bad_flavour"),
    "widths that add to 8 in a byte": (patched(2, 0xFF, 9), "bad_flavour"),
    "widths 0 + 0": (patched(2, 0, 0), "bad_flavour"),
    "no heap cnt": (patched(8, 0x90), "missing_item"),
    "no payload offset": (patched(24, 0x90), "missing_item"),
    "no payload length": (patched(32, 0x90), "missing_item"),
    "heap cnt not immediate": (patched(8, 0x00), "missing_item"),
    "payload offset not immediate": (patched(24, 0x00), "missing_item"),
    "payload length not immediate": (patched(32, 0x00), "missing_item"),
    "no items": (patched(6, 0, 0)[:8], "missing_item"),
    "payload one byte short": (HAND_MADE[:-1], "short_packet"),
    "payload missing": (HAND_MADE[:-4], "short_packet"),
    "payload length 2**48 - 1": (patched(34, *b"\xff" * 6), "offset_overflow"),
    "heap shorter than its packet": (patched(23, 3), "offset_overflow"),
    "heap of 0 bytes with payload": (patched(23, 0), "offset_overflow"),
    "payload offset past the end": (patched(31, 1), "offset_overflow"),
    "payload offset 2**48 - 1": (patched(26, *b"\xff" * 6), "offset_overflow"),
}
#: What only a datagram can have wrong: a buffer has no edges between its packets.
DATAGRAMS = {
    "empty": (b"", "empty_datagram"),
    "one byte more": (HAND_MADE + b"x", "long_packet"),
    "two packets in one": (HAND_MADE * 2, "long_packet"),
    "payload length 3 of 4": (patched(39, 3), "long_packet"),
    "payload length 0 of 4": (patched(39, 0), "long_packet"),
}


@pytest.mark.parametrize("name", UNDECODABLE)
def test_undecodable_packet_ends_a_buffer_and_is_counted(name):
    data, reason = UNDECODABLE[name]
    heaps, stats = receive([GOOD, data])
    assert [payload(h) for h in heaps] == [pattern(1, 100)]
    assert (stats.packets, stats.heaps) == (1, 1)
    if OURS:
        assert refusals(stats) == {reason: 1}


@pytest.mark.parametrize("name", UNDECODABLE | DATAGRAMS)
def test_undecodable_datagram_is_dropped_and_counted(name):
    data, reason = (UNDECODABLE | DATAGRAMS)[name]
    stream, sender = udp_stream()
    first, second = simple_heap(2, 100).packets(50)
    with sender:
        sender.send(first, data, second, data, GOOD)
        assert payload(next_heap(stream)) == pattern(2, 100)
        assert payload(next_heap(stream)) == pattern(1, 100)
    stats = settled(stream, 3)
    stream.stop()
    assert (stats.packets, stats.heaps, stats.incomplete_heaps_evicted) == (3, 2, 0)
    if OURS:
        assert refusals(stats) == {reason: 2}


@pytest.mark.parametrize("address_bits", ADDRESS_BITS)
def test_largest_offset_and_length_of_every_flavour_do_not_overflow(address_bits):
    top = (1 << address_bits) - 1
    bad = [
        Packet(1, b"abc", top, 3, address_bits=address_bits),
        Packet(1, b"abc", top, top, address_bits=address_bits),
        Packet(1, b"abc", 0, top, address_bits=address_bits, payload_length=top),
    ]
    reasons = {"offset_overflow": 2, "short_packet": 1}
    stream, sender = udp_stream()
    with sender:
        sender.send(*bad, GOOD)
        assert payload(next_heap(stream)) == pattern(1, 100)
    stats = settled(stream, 1)
    stream.stop()
    assert stats.packets == 1
    if OURS:
        assert refusals(stats) == reasons


LATER = Packet(1, pattern(1, 100)[50:], 50, 100)
FIRST = GOOD.but(payload=pattern(1, 100)[:50], heap_length=100)

#: Packets between the halves of heap 1 that decode and that the window refuses: configuration,
#: packets, reasons. The heap must be whole afterwards all the same.
REFUSED = {
    "gap in heap 1": ({}, [Packet(1, b"x", 60, 100)], {"gap": 1}),
    "gap of a heap nobody knows": ({}, [Packet(8, b"x", 60, 100)], {"gap": 1}),
    "first packet again": ({}, [FIRST], {"behind": 1}),
    "inside what is there": ({}, [Packet(1, b"x", 10, 100)], {"behind": 1}),
    "zero bytes behind": ({}, [Packet(1, b"", 10, 100)], {"behind": 1}),
    "duplicate": ({"allow_out_of_order": True}, [FIRST], {"duplicate": 1}),
    "starts inside": ({"allow_out_of_order": True}, [Packet(1, b"x" * 9, 49, 100)],
                      {"duplicate": 1}),
    "zero bytes inside": ({"allow_out_of_order": True}, [Packet(1, b"", 10, 100)],
                          {"duplicate": 1}),
    "another length": ({}, [Packet(1, b"x", 50, 101)], {"length_mismatch": 1}),
    "shorter than seen": ({}, [Packet(1, b"x", 48, 49)], {"length_mismatch": 1}),
    "another flavour": ({}, [Packet(1, b"x", 50, 100, address_bits=40)],
                        {"flavour_mismatch": 1}),
    "no length": ({"allow_unsized_heaps": False}, [Packet(1, b"x", 50)], {"unsized": 1}),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_packet_that_its_heap_refuses_is_counted_and_changes_nothing(name):
    config, packets, reasons = REFUSED[name]
    heaps, stats = receive([FIRST, *packets, LATER], **config)
    assert [payload(h) for h in heaps] == [pattern(1, 100)]
    assert stats.packets == 2 + len(packets)
    if OURS:
        assert refusals(stats) == reasons


def test_rest_of_a_heap_that_has_gone_out_is_late_until_it_is_forgotten():
    gone = [*simple_heap(1, 100).packets(50), *simple_heap(2, 10).packets()]
    others = [packet for cnt in range(3, 6) for packet in simple_heap(cnt, 10).packets()]
    heaps, stats = receive([*gone, LATER, LATER, *others, LATER], max_heaps=2)
    assert [heap.cnt for heap in heaps] == [1, 2, 3, 4, 5]
    if OURS:
        assert refusals(stats) == {"late": 2, "gap": 1}


def test_overlap_is_counted_and_changes_nothing():
    packets = [LATER, Packet(1, b"x" * 20, 40, 100), FIRST]
    heaps, stats = receive(packets, allow_out_of_order=True)
    assert [payload(h) for h in heaps] == [pattern(1, 100)]
    if OURS:
        assert refusals(stats) == {"overlap": 1}


@pytest.mark.ours
def test_good_traffic_is_refused_nothing():
    packets = [p for c in range(50) for p in simple_heap(c, 1000).packets(100)]
    _, stats = receive(packets)
    assert refusals(stats) == {}


# Claims that would cost memory. spead2 4.5.1 answers the first with a dead worker thread.


@pytest.mark.ours
@pytest.mark.parametrize("length", [100 * 10**12, 2**48 - 1, 2**40 + 1])
def test_heap_of_hundred_terabytes_costs_a_counter(length):
    first, second = simple_heap(2, 100).packets(50)
    stream, sender = udp_stream()
    with sender:
        sender.send(first, Packet(1, b"abc", 0, length), second)
        assert payload(next_heap(stream)) == pattern(2, 100)
    stats = settled(stream, 3)
    stream.stop()
    assert refusals(stats) == {"too_large": 1}


@pytest.mark.ours
@pytest.mark.parametrize("offset", [100 * 10**12, 2**48 - 4])
def test_unsized_heap_cannot_grow_beyond_the_bound(offset):
    packets = [simple_heap(2, 100).packets(50)[0], Packet(1, b"abc", offset)]
    packets.append(simple_heap(2, 100).packets(50)[1])
    heaps, stats = receive(packets, allow_out_of_order=True)
    assert [payload(h) for h in heaps] == [pattern(2, 100)]
    assert refusals(stats) == {"too_large": 1}


@pytest.mark.ours
def test_unsized_heap_that_grows_past_the_bound_keeps_what_it_has():
    packets = simple_heap(1, 1500, sized=False).packets(500)
    heaps, stats = receive(packets, max_heap_size=1000)
    assert [payload(h) for h in heaps] == [pattern(1, 1500)[:1000]]
    assert refusals(stats) == {"too_large": 1}


@pytest.mark.ours
def test_claimed_memory_is_not_touched_before_it_is_filled():
    """Four heaps of 1 GiB of which one byte comes must not cost gigabytes of memory."""

    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    before = resident()
    stream, sender = udp_stream(max_heaps=4)
    with sender:
        sender.send(*(Packet(c, b"x", 0, 2**30) for c in range(4)))
        settled(stream, 4)
        assert resident() - before < 2**28
    stream.stop()


@pytest.mark.ours
def test_heap_of_endless_items_is_bounded():
    stream, sender = udp_stream()
    per_packet = 1000
    with sender:
        for k in range(200):
            items = tuple(imm(0x1000 + i, k) for i in range(per_packet))
            sender.send(Packet(1, b"x", k, 10_000, items=items))
            settled(stream, k + 1)
            if stream.stats[REASONS["too_many_items"]]:
                break
        else:
            pytest.fail(f"200,000 items in one heap: {stats_of(stream)}")
        sender.send(GOOD)
        assert payload(next_heap(stream)) == pattern(1, 100)
    stream.stop()
    assert refusals(stream.stats) == {"too_many_items": 1}


def test_many_items_in_one_packet_are_no_reason_to_refuse_it():
    items = tuple(imm(0x1000 + i, i) for i in range(1000))
    (heap,), _ = receive([Packet(1, b"x", 0, 1, items=items)])
    assert len(heap.get_items()) == 1000


# Noise


def mutated(rng: random.Random, data: bytes) -> bytes:
    """Return a packet with a few bytes changed, cut or added."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        kind = rng.randrange(3)
        at = rng.randrange(len(out)) if out else 0
        if kind == 0 and out:
            out[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif kind == 1:
            del out[at:]
        else:
            out[at:at] = rng.randbytes(rng.randint(1, 9))
    return bytes(out)


@pytest.mark.ours
@pytest.mark.parametrize("seed", range(5))
def test_noise_is_harmless_and_every_packet_is_accounted_for(seed):
    rng = random.Random(seed)
    stream, sender = udp_stream(heaps=4096, max_heap_size=1 << 20, allow_out_of_order=seed % 2 == 1,
                                stop_on_stop_item=False)  # fmt: skip
    templates = [p.encode() for p in simple_heap(3, 300).packets(100)] + [HAND_MADE]
    n = 600
    with sender:
        for i in range(n):
            sender.send(mutated(rng, rng.choice(templates)))
            if i % 32 == 31:
                wait_for(lambda i=i: accounted(stream) == i + 1, "all packets accounted for")
        wait_for(lambda: accounted(stream) == n, "all packets accounted for")
    stream.stop()
    for heap in drain(stream):
        heap.get_items()
        heap.get_descriptors()


def accounted(stream) -> int:
    """Return how many datagrams the stream has taken: decoded ones, and refused by the parser."""
    stats = stream.stats
    return stats.packets + sum(stats[REASONS[reason]] for reason in PARSER_REASONS)


@pytest.mark.ours
def test_random_bytes_as_a_buffer():
    rng = random.Random(1)
    for _ in range(200):
        _, stats = receive([rng.randbytes(rng.randrange(200))])
        assert stats.packets == 0


# Packets from scapy, whose fields and result are written out here


@pytest.fixture(scope="module")
def spead_layer():
    """Return a scapy layer for SPEAD-64-48, a third and independent encoder."""
    packets = pytest.importorskip("scapy.packet")
    fields = pytest.importorskip("scapy.fields")

    class Pointer(packets.Packet):
        name = "pointer"
        fields_desc = (
            fields.BitField("immediate", 1, 1),
            fields.BitField("id", 0, 15),
            fields.BitField("value", 0, 48),
        )

        def extract_padding(self, s):
            return b"", s

    class Spead(packets.Packet):
        name = "SPEAD"
        fields_desc = (
            fields.XByteField("magic", 0x53),
            fields.ByteField("version", 4),
            fields.ByteField("id_bytes", 2),
            fields.ByteField("address_bytes", 6),
            fields.ShortField("reserved", 0),
            fields.FieldLenField("n_items", None, fmt="H", count_of="items"),
            fields.PacketListField("items", [], Pointer, count_from=lambda p: p.n_items),
        )

    Spead.Pointer = Pointer
    return Spead


def test_scapy_packets_are_received_as_their_fields_say(spead_layer):
    pointer = spead_layer.Pointer

    def packet(offset, data, **header):
        items = [
            pointer(id=HEAP_CNT, value=21),
            pointer(id=HEAP_LENGTH, value=8),
            pointer(id=PAYLOAD_OFFSET, value=offset),
            pointer(id=PAYLOAD_LENGTH, value=len(data)),
            pointer(id=0x1234, immediate=0, value=2),
            pointer(id=0x1235, value=77),
        ]
        return bytes(spead_layer(items=items, **header) / data)

    port = free_port()
    stream = new_stream()
    stream.add_udp_reader(port, buffer_size=0, bind_hostname="127.0.0.1")
    with Sender(port) as sender:
        sender.send(
            packet(0, b"ABCD"),
            packet(4, b"????", version=2),  # bad_magic
            packet(4, b"????", id_bytes=3),  # bad_flavour
            packet(4, b"????", n_items=3),  # missing_item: payload length is the fourth
            packet(5, b"????"),  # offset_overflow: 5 + 4 > 8
            packet(4, b"EFGH"),
        )
        heap = next_heap(stream)
    stats = settled(stream, 2)
    stream.stop()
    assert heap.cnt == 21
    assert [(i.id, bytes(memoryview(i))) for i in heap.get_items()] == [
        (0x1234, b"CDEFGH"),
        (0x1235, bytes([0, 0, 0, 0, 0, 77])),
    ]
    assert stats.packets == 2
    if OURS:
        assert refusals(stats) == {
            "bad_magic": 1,
            "bad_flavour": 1,
            "missing_item": 1,
            "offset_overflow": 1,
        }


def test_scapy_reads_our_wire_module_as_it_was_written(spead_layer):
    packet = Packet(21, b"abc", 4, 9, items=(addr(0x1234, 2), imm(0x1235, 77)))
    seen = spead_layer(packet.encode())
    assert (seen.magic, seen.version, seen.id_bytes, seen.address_bytes) == (0x53, 4, 2, 6)
    assert [(p.immediate, p.id, p.value) for p in seen.getfieldval("items")] == [
        (1, HEAP_CNT, 21),
        (1, HEAP_LENGTH, 9),
        (1, PAYLOAD_OFFSET, 4),
        (1, PAYLOAD_LENGTH, 3),
        (0, 0x1234, 2),
        (1, 0x1235, 77),
    ]
    assert bytes(seen.payload) == b"abc"


def test_pointer_words_are_what_the_protocol_says():
    assert word(1, 0x1235, 77) == imm(0x1235, 77).encode()
    assert word(0, 0x12, 3, 40) == addr(0x12, 3).encode(40)
