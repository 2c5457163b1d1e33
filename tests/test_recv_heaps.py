"""Which heaps come out of a stream for which packets, and what is in them."""

from __future__ import annotations

import numpy as np
import pytest
from target import drain, new_stream, payload, receive, recv, show, sp, values
from wire import (
    ADDRESS_BITS,
    NULL,
    START,
    STOP,
    Heap,
    Packet,
    addr,
    describe,
    heap_of_values,
    imm,
    pattern,
    simple_heap,
    stop_packet,
)

#: Ring configuration that shows incomplete heaps with all that is known of them.
EVERYTHING = {"contiguous_only": False, "incomplete_keep_payload_ranges": True}


def halves(cnt: int, *, sized: bool = True) -> tuple[Packet, Packet]:
    """Return a heap in two packets of 50 bytes."""
    first, second = simple_heap(cnt, 100, sized=sized).packets(50)
    return first, second


def counts(heaps: list) -> list[int]:
    return [heap.cnt for heap in heaps]


# Complete heaps


@pytest.mark.parametrize("length", [0, 1, 7, 8, 63, 64, 65, 1000, 4096, 100_000])
@pytest.mark.parametrize("payload_size", [1, 8, 1000, 8192])
def test_heap_arrives_byte_for_byte(length, payload_size):
    if length > 1000 * payload_size:
        payload_size = length // 1000
    wanted = heap_of_values(1, [(0x1000, pattern(1, length)), (0x1001, 5)])
    (heap,), _ = receive(wanted.packets(payload_size))
    by_id = dict(values(heap))
    assert by_id.get(0x1000, b"") == pattern(1, length)
    assert int.from_bytes(by_id[0x1001], "big") == 5


@pytest.mark.parametrize("memcpy", [sp.MEMCPY_STD, sp.MEMCPY_NONTEMPORAL])
@pytest.mark.parametrize("payload_size", [1, 15, 16, 17, 63, 64, 65, 127, 129, 1000, 4099])
def test_both_kinds_of_memcpy_deliver_every_byte(memcpy, payload_size):
    packets = simple_heap(1, min(20_011, 300 * payload_size)).packets(payload_size)
    (heap,), _ = receive(packets, memcpy=memcpy)
    assert payload(heap) == pattern(1, min(20_011, 300 * payload_size))


@pytest.mark.parametrize("address_bits", ADDRESS_BITS)
def test_every_flavour_is_decoded(address_bits):
    sent = heap_of_values(5, [(0x40, pattern(5, 90)), (0x41, 0x7F)], address_bits=address_bits)
    (heap,), _ = receive(sent.packets(30))
    assert heap.flavour.heap_address_bits == address_bits
    assert heap.flavour.item_pointer_bits == 64
    assert heap.flavour.version == 4
    immediate = (0x7F).to_bytes(address_bits // 8, "big")
    assert values(heap) == [(0x40, pattern(5, 90)), (0x41, immediate)]


@pytest.mark.parametrize("address_bits", ADDRESS_BITS)
def test_largest_item_id_and_largest_immediate_of_a_flavour(address_bits):
    item_id = (1 << (63 - address_bits)) - 1
    value = (1 << address_bits) - 1
    packet = Packet(1, heap_length=0, items=(imm(item_id, value),), address_bits=address_bits)
    (heap,), _ = receive([packet])
    (item,) = heap.get_items()
    assert (item.id, item.is_immediate, item.immediate_value) == (item_id, True, value)


def test_largest_heap_cnt():
    (heap,), _ = receive([Packet(2**48 - 1, b"abc", heap_length=3, items=(addr(0x1000, 0),))])
    assert heap.cnt == 2**48 - 1


@pytest.mark.parametrize("bug_compat", range(8))
def test_heap_flavour_carries_the_bug_compatibility_of_the_stream(bug_compat):
    (heap,), _ = receive(simple_heap(1, 10).packets(), bug_compat=bug_compat)
    assert heap.flavour.bug_compat == bug_compat


def test_heap_of_no_bytes_is_complete():
    (heap,), stats = receive([Packet(5, heap_length=0, items=(imm(0x1000, 1),))])
    assert values(heap) == [(0x1000, b"\0\0\0\0\0\1")]
    assert stats.single_packet_heaps == 1


def test_packets_of_different_heaps_may_interleave():
    packets = [
        p
        for pair in zip(*(simple_heap(c, 90).packets(30) for c in (1, 2, 3)), strict=True)
        for p in pair
    ]
    heaps, _ = receive(packets)
    assert {h.cnt: payload(h) for h in heaps} == {c: pattern(c, 90) for c in (1, 2, 3)}


def test_heap_comes_out_when_its_last_packet_arrives_not_when_its_first_does():
    a, b = halves(1), halves(2)
    heaps, _ = receive([a[0], b[0], b[1], a[1]])
    assert counts(heaps) == [2, 1]


def test_item_pointers_may_come_in_any_packet_of_the_heap():
    first = Packet(1, b"abc", heap_length=6)
    second = Packet(1, b"def", 3, 6, items=(addr(0x1000, 0), imm(0x1001, 2)))
    (heap,), _ = receive([first, second])
    assert values(heap) == [(0x1000, b"abcdef"), (0x1001, b"\0\0\0\0\0\2")]


def test_reserved_bytes_of_the_header_are_ignored():
    (heap,), _ = receive([p.but(reserved=0xFFFF) for p in simple_heap(1, 100).packets(30)])
    assert payload(heap) == pattern(1, 100)


def test_special_items_may_follow_the_others():
    (heap,), _ = receive([p.but(items_first=True) for p in simple_heap(1, 100).packets(30)])
    assert payload(heap) == pattern(1, 100)


def test_last_of_a_repeated_special_item_counts():
    (heap,), _ = receive([Packet(5, b"abc", heap_length=3, items=(imm(1, 7), addr(0x1000, 0)))])
    assert heap.cnt == 7


def test_special_item_that_is_not_immediate_does_not_name_the_heap():
    (heap,), _ = receive([Packet(5, b"abc", heap_length=3, items=(addr(1, 1), addr(0x1000, 0)))])
    assert heap.cnt == 5
    assert values(heap) == [(0x1000, b"abc")]


# Items of a heap


def test_addressed_items_in_offset_order_then_immediates_in_value_order():
    items = (imm(0x1005, 9), addr(0x1003, 4), imm(0x1004, 2), addr(0x1002, 1))
    (heap,), _ = receive([Packet(5, b"abcdef", heap_length=6, items=items)])
    assert [(i, v) for i, v in values(heap)] == [
        (0x1002, b"bcd"),
        (0x1003, b"ef"),
        (0x1004, b"\0\0\0\0\0\2"),
        (0x1005, b"\0\0\0\0\0\x09"),
    ]


def test_immediates_of_one_value_keep_packet_order():
    items = tuple(imm(i, 3) for i in (0x1009, 0x1001, 0x1005))
    (heap,), _ = receive([Packet(5, heap_length=0, items=items)])
    assert [i for i, _ in values(heap)] == [0x1009, 0x1001, 0x1005]


def test_item_of_no_bytes_is_left_out():
    items = (addr(0x1002, 1), addr(0x1001, 1), addr(0x1003, 6))
    (heap,), _ = receive([Packet(5, b"abcdef", heap_length=6, items=items)])
    assert values(heap) == [(0x1001, b"bcdef")]


def test_null_pointer_ends_the_item_before_it_and_is_left_out():
    items = (addr(0x1000, 0), addr(NULL, 3), imm(NULL, 7))
    (heap,), _ = receive([Packet(5, b"abcdef", heap_length=6, items=items)])
    assert values(heap) == [(0x1000, b"abc")]


def test_same_pointer_in_several_packets_is_one_item():
    heap = Heap(1, pattern(1, 90), (addr(0x1000, 0), imm(0x1001, 4)))
    (received,), _ = receive(heap.packets(30, repeat_items=True))
    assert [i for i, _ in values(received)] == [0x1000, 0x1001]


def test_same_item_id_with_two_values_is_two_items():
    items = (imm(0x1000, 1), imm(0x1000, 2), imm(0x1000, 1))
    (heap,), _ = receive([Packet(5, heap_length=0, items=items)])
    assert [v[-1] for _, v in values(heap)] == [1, 2]


def test_hundreds_of_items_in_one_heap():
    wanted = [(0x1000 + i, pattern(i, 5)) for i in range(700)]
    (heap,), _ = receive(heap_of_values(1, wanted).packets(1000))
    assert values(heap) == wanted


def test_many_items_spread_and_repeated_over_packets_stay_unique():
    items = [imm(0x2000 + i, i) for i in range(40)]
    packets = [
        Packet(1, bytes([i]), i, 30, items=tuple(items[i : i + 10] + items[:3])) for i in range(30)
    ]
    (heap,), _ = receive(packets)
    assert [i.id for i in heap.get_items()] == [0x2000 + i for i in range(39)]


def test_addressed_item_past_the_end_makes_the_heap_incomplete():
    (heap,), stats = receive(
        [Packet(5, b"abcdef", heap_length=6, items=(addr(0x1003, 7),))], ring=EVERYTHING
    )
    assert isinstance(heap, recv.IncompleteHeap)
    assert (heap.heap_length, heap.received_length) == (6, 6)
    assert stats.incomplete_heaps_flushed == 1


def test_descriptors_are_apart_from_the_items():
    descriptor = describe(0x1000, b"beam", b"a beam", shape=(3, None), fmt=[("u", 8)])
    (heap,), _ = receive(heap_of_values(1, [(5, descriptor), (0x1000, b"xyz")]).packets())
    assert values(heap) == [(0x1000, b"xyz")]
    (raw,) = heap.get_descriptors()
    assert (raw.id, raw.name, raw.description) == (0x1000, b"beam", b"a beam")
    assert list(raw.shape) == [3, None]
    assert [tuple(f) for f in raw.format] == [("u", 8)]


def test_item_group_reads_what_the_wire_says():
    header = b"{'descr': '>u2', 'fortran_order': False, 'shape': (2, 3)}"
    descriptor = describe(0x1000, b"x", b"", shape=(2, 3), numpy_header=header)
    value = np.arange(6, dtype=">u2").reshape(2, 3)
    heaps, _ = receive(heap_of_values(1, [(5, descriptor), (0x1000, value.tobytes())]).packets(16))
    group = sp.ItemGroup()
    assert list(group.update(heaps[0])) == ["x"]
    np.testing.assert_array_equal(group["x"].value, value)


def test_items_show_a_writable_flat_byte_buffer():
    (heap,), _ = receive(simple_heap(1, 100).packets())
    view = memoryview(heap.get_items()[0])
    assert (view.format, view.itemsize, view.shape, view.readonly) == ("B", 1, (100,), False)


# Order inside a heap


@pytest.mark.parametrize("order", [(1, 0), (0, 2, 1, 3), (3, 2, 1, 0), (1, 3, 0, 2)])
def test_any_order_of_packets_completes_the_heap_when_allowed(order):
    packets = simple_heap(1, 25 * len(order)).packets(25)
    (heap,), _ = receive([packets[i] for i in order], allow_out_of_order=True)
    assert payload(heap) == pattern(1, 25 * len(order))


def test_packet_out_of_order_is_refused_by_default():
    a, b, c = simple_heap(1, 90).packets(30)
    (heap,), _ = receive([a, c, b, c], ring=EVERYTHING)
    assert payload(heap) == pattern(1, 90)  # the second copy of c is in order
    (heap,), _ = receive([a, c, b], ring=EVERYTHING)
    assert (heap.received_length, heap.payload_ranges) == (60, [(0, 60)])


def test_heap_without_its_first_packet_leaves_no_trace_by_default():
    heaps, stats = receive(simple_heap(1, 90).packets(30)[1:], ring=EVERYTHING)
    assert heaps == []
    assert (stats.packets, stats.heaps) == (2, 0)


def test_duplicate_packet_inside_a_heap_changes_nothing():
    first, second = halves(1)
    for kwargs in ({}, {"allow_out_of_order": True}):
        spoiled = first.but(payload=bytes(50))
        heaps, _ = receive([first, spoiled, second], **kwargs)
        assert [payload(h) for h in heaps] == [pattern(1, 100)]


def test_duplicate_of_a_one_packet_heap_is_delivered_again():
    heaps, stats = receive(simple_heap(1, 100).packets() * 2)
    assert counts(heaps) == [1, 1]
    assert stats.single_packet_heaps == 2


def test_late_first_packet_of_a_finished_heap_starts_a_ghost():
    first, second = halves(1)
    heaps, stats = receive([first, second, first], ring=EVERYTHING)
    assert [show(h).complete for h in heaps] == [True, False]
    assert stats.incomplete_heaps_flushed == 1


def test_packet_that_starts_inside_received_bytes_is_refused_whole():
    packets = [Packet(5, b"abcd", 0, 8), Packet(5, b"XXXX", 2, 8), Packet(5, b"ef", 4, 8)]
    (heap,), _ = receive(packets, ring=EVERYTHING, allow_out_of_order=True)
    assert heap.payload_ranges == [(0, 6)]


def test_packet_that_runs_into_received_bytes_is_refused_whole():
    packets = [Packet(5, b"efgh", 4, 8), Packet(5, b"XXX", 2, 8)]
    (heap,), _ = receive(packets, ring=EVERYTHING, allow_out_of_order=True)
    assert heap.payload_ranges == [(4, 8)]


def test_packet_that_covers_received_bytes_is_refused_whole():
    packets = [Packet(5, b"d", 3, 8), Packet(5, b"XXXXXX", 0, 8)]
    (heap,), _ = receive(packets, ring=EVERYTHING, allow_out_of_order=True)
    assert heap.payload_ranges == [(3, 4)]


def test_items_of_a_refused_packet_are_ignored():
    packets = [
        Packet(5, b"abc", heap_length=6),
        Packet(5, b"a", heap_length=6, items=(imm(0x1000, 1), addr(0x1001, 200))),
        Packet(5, b"def", 3, 6, items=(imm(0x1002, 1),)),
    ]
    (heap,), _ = receive(packets)
    assert [i for i, _ in values(heap)] == [0x1002]


def test_packet_of_no_bytes_adds_its_items():
    packets = [
        Packet(5, b"", 0, 3, items=(imm(0x1000, 1),)),
        Packet(5, b"ab", 0, 3),
        Packet(5, b"", 2, 3, items=(imm(0x1001, 2),)),
        Packet(5, b"c", 2, 3),
    ]
    for kwargs in ({}, {"allow_out_of_order": True}):
        (heap,), _ = receive(packets, **kwargs)
        assert [i for i, _ in values(heap)] == [0x1000, 0x1001]


def test_whole_packet_after_an_empty_one_of_its_heap_is_a_second_heap():
    packets = [Packet(5, b"", heap_length=3, items=(imm(0x1000, 1),)), Packet(5, b"abc", 0, 3)]
    heaps, _ = receive(packets, ring=EVERYTHING)
    assert [(show(h).complete, h.cnt) for h in heaps] == [(True, 5), (False, 5)]
    assert (heaps[1].received_length, heaps[1].payload_ranges) == (0, [])


def test_packet_with_another_heap_length_is_refused():
    packets = [Packet(5, b"abc", 0, 6), Packet(5, b"XXX", 3, 7), Packet(5, b"def", 3, 6)]
    packets[0] = packets[0].but(items=(addr(0x1000, 0),))
    (heap,), _ = receive(packets)
    assert payload(heap) == b"abcdef"


def test_packet_of_another_flavour_is_refused():
    packets = [
        Packet(5, b"abc", 0, 6, items=(addr(0x1000, 0),)),
        Packet(5, b"XXX", 3, 6, address_bits=40),
        Packet(5, b"def", 3, 6),
    ]
    (heap,), _ = receive(packets)
    assert payload(heap) == b"abcdef"


# Eviction


def test_new_heap_throws_out_the_one_opened_max_heaps_before_it():
    heaps, stats = receive([halves(c)[0] for c in range(6)], max_heaps=4, ring=EVERYTHING)
    assert counts(heaps) == [0, 1, 2, 3, 4, 5]
    assert (stats.incomplete_heaps_evicted, stats.incomplete_heaps_flushed) == (2, 4)


@pytest.mark.parametrize("max_heaps", [1, 2, 5])
def test_heap_survives_exactly_max_heaps_minus_one_younger_heaps(max_heaps):
    first, second = halves(100)
    others = [halves(c)[0] for c in range(max_heaps - 1)]
    heaps, _ = receive([first, *others, second], max_heaps=max_heaps)
    assert counts(heaps) == [100]
    heaps, _ = receive([first, *others, halves(50)[0], second], max_heaps=max_heaps)
    assert counts(heaps) == []


def test_complete_heaps_consume_a_place_too():
    first, second = halves(1)
    whole = [simple_heap(c, 10).packets()[0] for c in (2, 3)]
    heaps, stats = receive([first, *whole, second], max_heaps=2, ring=EVERYTHING)
    assert [(h.cnt, show(h).complete) for h in heaps] == [(2, True), (1, False), (3, True)]
    assert stats.incomplete_heaps_evicted == 1


def test_evicted_heap_comes_out_before_the_heap_that_evicted_it():
    heaps, _ = receive([halves(1)[0], *simple_heap(2, 10).packets()], max_heaps=1, ring=EVERYTHING)
    assert counts(heaps) == [1, 2]


def test_stop_heap_evicts_as_any_other():
    heaps, stats = receive([halves(1)[0], stop_packet()], max_heaps=1, ring=EVERYTHING)
    assert counts(heaps) == [1]
    assert (stats.incomplete_heaps_evicted, stats.incomplete_heaps_flushed) == (1, 0)


def test_substreams_do_not_evict_each_other():
    slow, rest = halves(1)
    busy = [p for c in range(0, 40, 2) for p in halves(c)]
    heaps, stats = receive([slow, *busy, rest], substreams=2, max_heaps=1)
    assert counts(heaps) == [*range(0, 40, 2), 1]
    assert stats.incomplete_heaps_evicted == 0


def test_each_substream_has_max_heaps_places():
    packets = [halves(c)[0] for c in range(6)]
    heaps, stats = receive(packets, substreams=2, max_heaps=2, ring=EVERYTHING)
    assert counts(heaps) == [0, 1, 2, 4, 3, 5]  # 0 and 1 evicted, then a flush by substream
    assert stats.incomplete_heaps_evicted == 2


def test_flush_is_oldest_first():
    packets = [halves(c)[0] for c in (9, 2, 7, 4)]
    heaps, _ = receive(packets, max_heaps=10, ring=EVERYTHING)
    assert counts(heaps) == [9, 2, 7, 4]


# Heaps of unknown length


def test_unsized_heap_is_delivered_whole_at_the_end():
    (heap,), stats = receive(simple_heap(1, 100, sized=False).packets(30))
    assert payload(heap) == pattern(1, 100)
    assert (stats.heaps, stats.incomplete_heaps_flushed) == (1, 1)


def test_unsized_heap_is_delivered_when_evicted():
    packets = [p for c in range(3) for p in simple_heap(c, 100, sized=False).packets(30)]
    heaps, stats = receive(packets, max_heaps=2)
    assert [payload(h) for h in heaps] == [pattern(c, 100) for c in range(3)]
    assert (stats.incomplete_heaps_evicted, stats.incomplete_heaps_flushed) == (1, 2)


def test_unsized_heap_grows_out_of_order():
    packets = simple_heap(1, 100_000, sized=False).packets(1000)
    (heap,), _ = receive(packets[::-1], allow_out_of_order=True)
    assert payload(heap) == pattern(1, 100_000)


def test_unsized_heap_with_a_hole_is_incomplete():
    packets = [Packet(5, b"abc"), Packet(5, b"fgh", 5)]
    (heap,), _ = receive(packets, ring=EVERYTHING, allow_out_of_order=True)
    assert (heap.heap_length, heap.received_length) == (-1, 6)
    assert heap.payload_ranges == [(0, 3), (5, 8)]


def test_length_may_be_learned_from_a_later_packet():
    packets = [Packet(5, b"abc", items=(addr(0x1000, 0),)), Packet(5, b"def", 3, 6)]
    (heap,), stats = receive(packets)
    assert payload(heap) == b"abcdef"
    assert stats.incomplete_heaps_flushed == 0


def test_length_once_known_need_not_be_repeated():
    packets = [Packet(5, b"abc", 0, 6, items=(addr(0x1000, 0),)), Packet(5, b"def", 3)]
    (heap,), stats = receive(packets)
    assert payload(heap) == b"abcdef"
    assert stats.incomplete_heaps_flushed == 0


def test_length_below_what_has_been_received_is_refused():
    packets = [Packet(5, b"abcdefg", items=(addr(0x1000, 0),)), Packet(5, b"", 6, 6)]
    for kwargs in ({}, {"allow_out_of_order": True}):
        (heap,), _ = receive(packets, **kwargs)
        assert payload(heap) == b"abcdefg"


def test_length_below_an_item_offset_is_refused():
    packets = [Packet(5, b"abc", items=(addr(0x1000, 9),)), Packet(5, b"def", 3, 6)]
    (heap,), _ = receive(packets, ring=EVERYTHING)
    assert (heap.heap_length, heap.received_length) == (-1, 3)


def test_no_packet_joins_a_heap_that_is_shorter_than_one_of_its_item_offsets():
    packets = [Packet(5, b"", 0, 7, items=(addr(0x1000, 8),)), Packet(5, b"abc", 0, 7)]
    for kwargs in ({}, {"allow_out_of_order": True}):
        (heap,), stats = receive(packets, ring=EVERYTHING, **kwargs)
        assert (heap.heap_length, heap.received_length) == (7, 0)
        assert stats.packets == 2


def test_refused_packet_does_not_teach_the_length():
    packets = [Packet(5, b"abc"), Packet(5, b"xy", 4, 6), Packet(5, b"def", 3)]
    heaps, stats = receive(packets)
    assert len(heaps) == 1  # as a heap of unknown length, by the flush
    assert stats.incomplete_heaps_flushed == 1


def test_unsized_packet_may_run_past_a_known_length():
    packets = [Packet(5, b"abc", 0, 6, items=(addr(0x1000, 0),)), Packet(5, b"defgh", 3)]
    (heap,), stats = receive(packets)
    assert payload(heap) == b"abcdefgh"
    assert stats.incomplete_heaps_flushed == 1


def test_unsized_heaps_are_refused_when_not_allowed():
    packets = [*simple_heap(1, 100, sized=False).packets(30), *simple_heap(2, 100).packets(30)]
    heaps, stats = receive(packets, allow_unsized_heaps=False, ring=EVERYTHING)
    assert counts(heaps) == [2]
    assert stats.packets == 8


# Stop items


def test_stop_item_ends_the_stream():
    packets = [*halves(1), stop_packet(), *simple_heap(2, 10).packets()]
    heaps, stats = receive(packets)
    assert counts(heaps) == [1]
    assert (stats.heaps, stats.packets) == (1, 3)


def test_heap_with_stop_item_is_swallowed_when_complete():
    packets = [Packet(5, b"abc", 0, 6), Packet(5, b"def", 3, 6, items=(STOP,))]
    heaps, stats = receive(packets, ring=EVERYTHING)
    assert heaps == []
    assert (stats.heaps, stats.packets) == (0, 2)


def test_stop_heap_cut_short_is_flushed_as_incomplete():
    packets = [Packet(5, b"abc", 0, 6, items=(STOP,)), Packet(5, b"def", 3, 6)]
    (heap,), stats = receive(packets, ring=EVERYTHING)
    assert isinstance(heap, recv.IncompleteHeap)
    assert heap.is_end_of_stream()
    assert (stats.packets, stats.incomplete_heaps_flushed) == (1, 1)


def test_unsized_stop_heap_is_delivered():
    (heap,), _ = receive([Packet(5, b"abc", items=(STOP, addr(0x1000, 0)))])
    assert heap.is_end_of_stream()
    assert dict(values(heap))[0x1000] == b"abc"


def test_stop_item_in_a_refused_packet_is_ignored():
    packets = [Packet(5, b"abc", 0, 6), Packet(5, b"abc", 0, 6, items=(STOP,))]
    heaps, stats = receive([*packets, Packet(5, b"def", 3, 6), *halves(6)])
    assert counts(heaps) == [5, 6]
    assert stats.packets == 5


def test_live_heaps_are_flushed_when_the_stream_ends():
    heaps, _ = receive([halves(1)[0], halves(2)[0], stop_packet()], ring=EVERYTHING)
    assert [(h.cnt, show(h).complete) for h in heaps] == [(1, False), (2, False)]


def test_stop_item_is_delivered_and_harmless_when_configured_so():
    packets = [*halves(1), stop_packet(), *halves(2)]
    heaps, stats = receive(packets, stop_on_stop_item=False)
    assert [(h.cnt, h.is_end_of_stream()) for h in heaps] == [(1, False), (99, True), (2, False)]
    assert stats.heaps == 3


@pytest.mark.parametrize("value", [1, 3, 2**48 - 2])
def test_other_stream_control_values_do_not_stop(value):
    packet = Packet(5, heap_length=0, items=(imm(6, value),))
    heaps, _ = receive([packet, *halves(1)])
    assert counts(heaps) == [5, 1]
    assert not heaps[0].is_end_of_stream()


def test_addressed_stream_control_does_not_stop():
    heaps, _ = receive([Packet(5, b"abc", 0, 3, items=(addr(6, 2),)), *halves(1)])
    assert counts(heaps) == [5, 1]
    assert not heaps[0].is_end_of_stream()


def test_start_item_is_seen():
    heaps, _ = receive([Packet(5, heap_length=0, items=(START,)), *halves(1)])
    assert [h.is_start_of_stream() for h in heaps] == [True, False]


# Incomplete heaps


def test_incomplete_heaps_are_dropped_by_default():
    heaps, stats = receive([halves(1)[0], *halves(2)])
    assert counts(heaps) == [2]
    assert stats.heaps == 2


def test_incomplete_heap_says_what_is_missing():
    a, _, _, d = simple_heap(1, 100).packets(25)
    (heap,), _ = receive([a, d], ring=EVERYTHING, allow_out_of_order=True)
    assert isinstance(heap, recv.IncompleteHeap)
    assert not isinstance(heap, recv.Heap)
    assert (heap.cnt, heap.heap_length, heap.received_length) == (1, 100, 50)
    assert heap.payload_ranges == [(0, 25), (75, 100)]
    assert heap.flavour == sp.Flavour(4, 64, 48)


def test_neighbouring_ranges_are_merged():
    packets = simple_heap(1, 100).packets(10)
    chosen = [packets[i] for i in (5, 1, 2, 7, 6, 9)]
    (heap,), _ = receive(chosen, ring=EVERYTHING, allow_out_of_order=True)
    assert heap.payload_ranges == [(10, 30), (50, 80), (90, 100)]


def test_payload_ranges_are_empty_unless_asked_for():
    packets = simple_heap(1, 100).packets(25)
    (heap,), _ = receive(packets[:2], ring={"contiguous_only": False})
    assert (heap.received_length, heap.payload_ranges) == (50, [])


def test_incomplete_heap_keeps_its_immediates_and_drops_its_payload():
    packet = Packet(5, b"abc", 0, 6, items=(imm(0x1001, 3), addr(0x1000, 0), START))
    (heap,), _ = receive([packet], ring=EVERYTHING)
    assert values(heap) == [(6, bytes(6)), (0x1001, b"\0\0\0\0\0\3")]
    assert heap.is_start_of_stream()
    assert not heap.is_end_of_stream()


def test_item_group_cannot_take_an_incomplete_heap():
    (heap,), _ = receive([halves(1)[0]], ring=EVERYTHING)
    with pytest.raises(AttributeError):
        sp.ItemGroup().update(heap)


# Buffer reader


def test_buffer_reader_stops_at_the_first_thing_that_is_no_packet():
    packets = [*halves(1), b"no packet, no packet", *halves(2)]
    heaps, stats = receive(packets)
    assert counts(heaps) == [1]
    assert stats.packets == 2


def test_buffer_reader_on_an_empty_buffer_ends_the_stream():
    heaps, stats = receive([])
    assert heaps == []
    assert (stats.packets, stats.batches) == (0, 0)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, np.frombuffer])
def test_buffer_reader_takes_any_contiguous_buffer(kind):
    data = b"".join(p.encode() for p in halves(1))
    stream = new_stream()
    stream.add_buffer_reader(kind(data) if kind is not np.frombuffer else np.frombuffer(data, "u1"))
    assert [payload(h) for h in drain(stream)] == [pattern(1, 100)]


def test_end_of_one_reader_ends_the_stream_and_leaves_the_next_unread():
    stream = new_stream(explicit_start=True)
    for cnt in (1, 2):
        stream.add_buffer_reader(simple_heap(cnt, 10).packets()[0].encode())
    stream.start()
    assert counts(drain(stream)) == [1]
