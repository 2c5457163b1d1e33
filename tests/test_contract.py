"""What every transport promises: written once, tested on all of them.

``pytest tests/test_contract.py -k tcp6`` runs the contract of one transport. Expected values come
from NumPy, from the packets as `wire` builds them and from the receiver of `model`. How transports
differ, for example in what ends a stream, is written in `transports`.
"""

from __future__ import annotations

import asyncio
import random
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

import model
import numpy as np
import pytest
from samples import TYPES, sample
from target import (
    DEADLINE,
    OURS,
    drain,
    next_heap,
    payload,
    recv,
    refusals,
    settled,
    show,
    sp,
    take,
    values,
    wait_for,
)
from transports import Rig, Transport, meanwhile, parameters
from wire import (
    ADDRESS_BITS,
    START,
    USER_ID,
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

#: Bytes of payload in a packet, unless a test is about packets of other sizes.
SIZE = 1000
#: Options that show incomplete heaps with all that is known of them.
EVERYTHING = {"contiguous_only": False, "incomplete_keep_payload_ranges": True}


@pytest.fixture(scope="module", params=parameters())
def transport(request):
    with request.param() as transport:
        yield transport


@pytest.fixture(scope="module")
def pool():
    return sp.ThreadPool()


@pytest.fixture
def rig(transport, pool):
    with Rig(transport, pool) as rig:
        yield rig


def over(chosen: Callable[[type[Transport]], bool]) -> pytest.MarkDecorator:
    """Restrict a test to some of the transports."""
    return pytest.mark.parametrize("transport", parameters(chosen), indirect=True)


def cut(heaps: Iterable[Heap], size: int = SIZE) -> list[Packet]:
    """Return the packets of heaps, one heap after the other."""
    return [packet for heap in heaps for packet in heap.packets(size)]


def interleave(heaps: Sequence[Heap], size: int = SIZE) -> list[Packet]:
    """Return the packets of heaps of equal size in turn."""
    rows = zip(*(heap.packets(size) for heap in heaps), strict=True)
    return [packet for row in rows for packet in row]


def counts(heaps: Iterable[Any]) -> list[int]:
    return [heap.cnt for heap in heaps]


def assert_as_the_model(rig: Rig, packets: Sequence[Packet], config: model.Config) -> None:
    """Send packets; every heap, incomplete ones too, and all statistics must be the model's."""
    wanted = rig.expect(packets, config)
    options = asdict(config)
    ring = {name: options.pop(name) for name in EVERYTHING}
    heaps, stats = rig.receive(packets, ring=ring, **options)
    assert [show(heap) for heap in heaps] == wanted.heaps
    assert {name: stats[name] for name in wanted.stats} == wanted.stats
    if OURS:
        # A packet can be refused for two reasons at once, and which is seen first is free.
        assert sum(refusals(stats).values()) == sum(wanted.window.values())


# Values: arrays of every type


def numpy_item(item_id: int, name: str, array: Any, order: str = "C") -> bytes:
    """Return the descriptor of an array, in the manner of ``.npy`` files."""
    header = {
        "descr": np.lib.format.dtype_to_descr(array.dtype),
        "fortran_order": order == "F",
        "shape": array.shape,
    }
    return describe(item_id, name.encode(), numpy_header=repr(header).encode())


def array_heap(array: Any, order: str = "C") -> Heap:
    """Return a heap with the descriptor of an array, its bytes, and something behind them."""
    return heap_of_values(
        1,
        [
            (5, numpy_item(USER_ID, "x", array, order)),
            (USER_ID, array.tobytes(order)),
            (USER_ID + 1, b"behind"),
        ],
    )


def received_value(rig: Rig, heap: Heap) -> Any:
    """Send one heap and return the value of its item ``x``."""
    (received,), _ = rig.receive(heap.packets(SIZE))
    group = sp.ItemGroup()
    group.update(received)
    return group["x"].value


def assert_array(got: Any, wanted: Any) -> None:
    """Check type, shape, layout and every bit of a value."""
    if wanted.ndim == 0:
        # NumPy turns an array of no dimensions into a scalar, which has the machine's byte order.
        assert type(got) is type(wanted[()])
        wanted = np.asarray(wanted[()])
    else:
        assert type(got) is np.ndarray
        assert got.flags.f_contiguous == wanted.flags.f_contiguous
    assert (np.asarray(got).dtype, np.shape(got)) == (wanted.dtype, wanted.shape)
    assert np.asarray(got).tobytes() == wanted.tobytes()


@pytest.mark.parametrize("name", TYPES)
def test_array_of_every_dtype(rig, name):
    sent = sample(np.dtype(TYPES[name]), (3, 100))
    native = sent.astype(sent.dtype.newbyteorder("="))
    assert_array(received_value(rig, array_heap(sent)), native)


@pytest.mark.parametrize("shape", [(7,), ()], ids=["array", "scalar"])
@pytest.mark.parametrize("new_order", ["|", "="], ids=["as sent", "native"])
def test_every_dtype_in_one_group(rig, shape, new_order):
    sent = {i: sample(dtype, shape) for i, dtype in enumerate(map(np.dtype, TYPES.values()))}
    heaps = [
        heap_of_values(i, [(5, numpy_item(USER_ID + i, f"x{i}", a)), (USER_ID + i, a.tobytes())])
        for i, a in sent.items()
    ]
    received, _ = rig.receive(cut(heaps))
    group = sp.ItemGroup()
    for heap in received:
        assert list(group.update(heap, new_order)) == [f"x{heap.cnt}"]
    for i, array in sent.items():
        wanted = array if new_order == "|" else array.astype(array.dtype.newbyteorder("="))
        assert_array(group[f"x{i}"].value, wanted)


@pytest.mark.parametrize("shape", [(1,), (17,), (3, 4), (2, 3, 4, 5), (1, 1, 1, 7), (40, 1, 50)])
@pytest.mark.parametrize("dtype", ["u1", ">i4", "<c8"])
def test_shape(rig, shape, dtype):
    sent = sample(np.dtype(dtype), shape)
    native = sent.astype(sent.dtype.newbyteorder("="))
    assert_array(received_value(rig, array_heap(sent)), native)


@pytest.mark.parametrize("shape", [(9,), (4, 6), (3, 4, 5)])
@pytest.mark.parametrize("dtype", ["u1", ">i4", "<c8"])
def test_fortran_order(rig, shape, dtype):
    sent = sample(np.dtype(dtype), shape, "F")
    native = sent.astype(sent.dtype.newbyteorder("="))
    got = received_value(rig, array_heap(sent, "F"))
    assert got.flags.f_contiguous
    assert_array(got, native)


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 4, 5)])
def test_array_without_elements_has_no_value_and_moves_no_other(rig, shape):
    empty, full = np.empty(shape, np.int16), sample(np.dtype("<u4"), (50,))
    heap = heap_of_values(
        1,
        [
            (5, numpy_item(USER_ID, "before", full)),
            (5, numpy_item(USER_ID + 1, "empty", empty)),
            (5, numpy_item(USER_ID + 2, "after", full)),
            (USER_ID, full.tobytes()),
            (USER_ID + 1, b""),
            (USER_ID + 2, full.tobytes()),
        ],
    )
    (received,), _ = rig.receive(heap.packets(SIZE))
    group = sp.ItemGroup()
    assert set(group.update(received)) == {"before", "after"}
    assert group["empty"].shape == shape
    assert group["empty"].value is None
    for name in ("before", "after"):
        assert_array(group[name].value, full)


@pytest.mark.parametrize(
    ("shape", "sent"),
    [((None,), (70,)), ((None, 3), (5, 3)), ((2, None), (2, 9)), ((2, None, 2), (2, 1, 2))],
    ids=str,
)
def test_dimension_of_unknown_size(rig, shape, sent):
    wanted = sample(np.dtype(">f4"), sent)
    descriptor = describe(USER_ID, b"x", shape=shape, fmt=[("f", 32)])
    heap = heap_of_values(1, [(5, descriptor), (USER_ID, wanted.tobytes())])
    assert_array(received_value(rig, heap), wanted.astype("=f4"))


# Values: formats of bits


def pack(fmt: Sequence[tuple[str, int]], records: Iterable[Sequence[Any]]) -> bytes:
    """Return records one bit after the other, filled up to whole bytes."""
    digits = ""
    for record in records:
        for (code, bits), value in zip(fmt, record, strict=True):
            if code == "f":
                (value,) = struct.unpack(">I" if bits == 32 else ">Q", struct.pack(
                    ">f" if bits == 32 else ">d", value))  # fmt: skip
            elif code == "c":
                value = ord(value)
            digits += f"{int(value) & (1 << bits) - 1:0{bits}b}"
    digits += "0" * (-len(digits) % 8)
    return int(digits, 2).to_bytes(len(digits) // 8, "big")


PACKED = {
    "u12": ([("u", 12)], [(i * 37 % 4096,) for i in range(300)]),
    "i6": ([("i", 6)], [(i % 64 - 32,) for i in range(128)]),
    "u1": ([("u", 1)], [(i // 3 % 2,) for i in range(80)]),
    "b1": ([("b", 1)], [(i % 3 == 0,) for i in range(80)]),
    "i48": ([("i", 48)], [((-1) ** i * 3**i,) for i in range(29)]),
    "u1,u7,f32": (
        [("u", 1), ("u", 7), ("f", 32)],
        [(i % 2, i * 5 % 128, i / 4 - 9) for i in range(60)],
    ),
    "i5,b3,u16,f64": (
        [("i", 5), ("b", 3), ("u", 16), ("f", 64)],
        [(i % 32 - 16, i % 5 == 0, i * 999, i * 0.125) for i in range(60)],
    ),
    "u8,i16": ([("u", 8), ("i", 16)], [(i, -i) for i in range(100)]),
}


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("known", [True, False], ids=["known size", "unknown size"])
def test_bit_packed_format(rig, name, known):
    fmt, records = PACKED[name]
    shape = (len(records) if known else None,)
    descriptor = describe(USER_ID, b"x", shape=shape, fmt=fmt)
    heap = heap_of_values(1, [(5, descriptor), (USER_ID, pack(fmt, records))])
    got = received_value(rig, heap)
    assert got.tolist() == (records if len(fmt) > 1 else [value for (value,) in records])


@pytest.mark.parametrize("text", ["a", "SPEAD", "x" * 5000])
def test_text(rig, text):
    descriptor = describe(USER_ID, b"x", shape=(None,), fmt=[("c", 8)])
    heap = heap_of_values(1, [(5, descriptor), (USER_ID, text.encode())])
    assert received_value(rig, heap) == text


# Values: immediates


@pytest.mark.parametrize("address_bits", [40, 48])
@pytest.mark.parametrize("value", [0, 1, 0x1234567, 2**40 - 1])
@pytest.mark.parametrize("immediate", [True, False], ids=["immediate", "addressed"])
def test_number_as_immediate_and_as_addressed_item(rig, address_bits, value, immediate):
    width = address_bits // 8
    descriptor = describe(USER_ID, b"x", fmt=[("u", address_bits)], address_bits=address_bits)
    sent = value if immediate else value.to_bytes(width, "big")
    heap = heap_of_values(1, [(5, descriptor), (USER_ID, sent)], address_bits=address_bits)
    assert received_value(rig, heap) == value


@pytest.mark.parametrize("dtype", ["?", "i1", ">u2", "<u2", ">i4", "<f4", ">f4"])
@pytest.mark.parametrize("address_bits", [40, 48])
def test_immediate_of_a_dtype_is_the_tail_of_the_pointer(rig, dtype, address_bits):
    sent = sample(np.dtype(dtype), ())
    descriptor = numpy_item(USER_ID, "x", sent)
    heap = heap_of_values(
        1,
        [(5, descriptor), (USER_ID, int.from_bytes(sent.tobytes(), "big"))],
        address_bits=address_bits,
    )
    assert_array(received_value(rig, heap), sent.astype(sent.dtype.newbyteorder("=")))


# Items and heaps, byte for byte


def test_items_of_no_length_are_left_out_and_move_no_other(rig):
    sent = [(0x1000, b""), (0x1001, pattern(1, 1500)), (0x1002, b""), (0x1003, pattern(2, 900))]
    (heap,), _ = rig.receive(heap_of_values(1, [*sent, (0x1004, b"")]).packets(SIZE))
    assert values(heap) == [item for item in sent if item[1]]


def test_heap_without_payload(rig):
    (heap,), _ = rig.receive([Packet(7, heap_length=0, items=(imm(0x1000, 5),))])
    assert (heap.cnt, values(heap)) == (7, [(0x1000, b"\0\0\0\0\0\5")])


@pytest.mark.parametrize("address_bits", ADDRESS_BITS)
def test_every_flavour(rig, address_bits):
    sent = heap_of_values(5, [(0x40, pattern(5, 90)), (0x41, 0x7F)], address_bits=address_bits)
    (heap,), _ = rig.receive(sent.packets(30))
    assert heap.flavour.heap_address_bits == address_bits
    assert values(heap) == [(0x40, pattern(5, 90)), (0x41, (0x7F).to_bytes(address_bits // 8))]


def test_big_heap(rig):
    length = (64 if rig.transport.lossless else 16) << 20
    data = np.random.default_rng(1).bytes(length)
    sent = Heap(1, data, (addr(USER_ID, 0),))
    # A generator, so that the packets do not exist all at once; 72 bytes are for the pointers.
    step = rig.transport.max_packet - 72
    packets = (
        Packet(1, data[start : start + step], start, length, sent.items if start == 0 else ())
        for start in range(0, length, step)
    )
    (heap,), stats = rig.receive(packets)
    (item,) = heap.get_items()
    assert memoryview(item) == data
    assert stats.packets == -(-length // step) + rig.n_ending


def test_thousands_of_heaps_of_one_packet(rig):
    heaps, stats = rig.receive(cut(simple_heap(cnt, 60) for cnt in range(4000)))
    assert [(h.cnt, payload(h)) for h in heaps] == [(c, pattern(c, 60)) for c in range(4000)]
    assert stats.single_packet_heaps == 4000 + rig.n_ending


def test_heaps_of_thousands_of_packets(rig):
    heaps, stats = rig.receive(cut((simple_heap(cnt, 2000 * 9) for cnt in range(3)), 9))
    assert [(h.cnt, payload(h)) for h in heaps] == [(c, pattern(c, 18_000)) for c in range(3)]
    assert stats.packets == 6000 + rig.n_ending


def test_packets_of_any_length(rig):
    lengths = [0, 1, 7, 8, 63, 64, 65, 500, 1023, rig.transport.max_packet - 48]
    heaps, _ = rig.receive(cut((simple_heap(n, n) for n in lengths), max(lengths)))
    assert [(h.cnt, [v for _, v in values(h)]) for h in heaps] == [
        (n, [pattern(n, n)] * (n > 0)) for n in lengths
    ]


# Descriptors


def group_heap(cnt: int, value: int, *descriptors: bytes) -> Heap:
    data = np.full(600, value, "<u2").tobytes()
    return heap_of_values(cnt, [*((5, d) for d in descriptors), (USER_ID, data)])


def updates(rig: Rig, heaps: Sequence[Heap]) -> list[tuple[str, Any, int, Any]]:
    """Return name, dtype, version and first element of the item after each heap."""
    group = sp.ItemGroup()
    seen = []
    for heap in rig.receive(cut(heaps))[0]:
        group.update(heap)
        item = group[USER_ID]
        seen.append((item.name, item.value.dtype, item.version, item.value.reshape(-1)[0]))
    return seen


def test_descriptor_holds_for_the_heaps_that_follow(rig):
    d = numpy_item(USER_ID, "x", np.empty(600, "<u2"))
    heaps = [group_heap(0, 0, d), *(group_heap(cnt, cnt) for cnt in range(1, 6))]
    assert [first for *_, first in updates(rig, heaps)] == list(range(6))


def test_descriptor_alone_precedes_the_values(rig):
    d = numpy_item(USER_ID, "x", np.empty(600, "<u2"))
    heaps, _ = rig.receive(cut([heap_of_values(1, [(5, d)]), group_heap(2, 7)]))
    group = sp.ItemGroup()
    assert group.update(heaps[0]) == {}
    assert group["x"].value is None
    assert list(group.update(heaps[1])) == ["x"]
    assert_array(group["x"].value, np.full(600, 7, "=u2"))


def test_descriptor_issued_again_changes_nothing(rig):
    d = numpy_item(USER_ID, "x", np.empty(600, "<u2"))
    with_each = updates(rig, [group_heap(cnt, cnt, d) for cnt in range(5)])
    with_first = updates(rig, [group_heap(cnt, cnt, *[d] * (cnt == 0)) for cnt in range(5)])
    assert with_each == with_first
    assert [version for _, _, version, _ in with_each] == [3, 5, 7, 9, 11]


def test_changed_descriptor_replaces_the_item(rig):
    old = numpy_item(USER_ID, "old", np.empty(600, "<u2"))
    new = numpy_item(USER_ID, "new", np.empty((30, 20), ">u2"))
    seen = updates(
        rig, [group_heap(1, 1, old), group_heap(2, 2), group_heap(3, 3, new), group_heap(4, 4)]
    )
    assert [name for name, *_ in seen] == ["old", "old", "new", "new"]
    assert [first for *_, first in seen] == [1, 2, 0x0300, 0x0400]
    versions = [version for _, _, version, _ in seen]
    assert versions == sorted(set(versions))


# The end and the beginning


def test_stream_without_heaps_ends(rig):
    heaps, stats = rig.receive([])
    assert heaps == []
    assert (stats.heaps, stats.packets) == (0, rig.n_ending)


def test_stop_item_ends_the_stream_and_its_heap_is_swallowed(rig):
    packets = [
        *simple_heap(1, 3000).packets(SIZE),
        simple_heap(2, 3000).packets(SIZE)[0],
        stop_packet(3),
        *simple_heap(4, 3000).packets(SIZE),
    ]
    assert_as_the_model(rig, packets, model.Config())


def test_stop_item_flushes_incomplete_heaps_in_order(rig):
    packets = [simple_heap(cnt, 3000).packets(SIZE)[0] for cnt in (1, 2, 3)]
    assert_as_the_model(rig, [*packets, stop_packet(4)], model.Config(**EVERYTHING))


def test_end_of_the_transport_flushes_incomplete_heaps_in_order(rig):
    packets = [simple_heap(cnt, 3000).packets(SIZE)[0] for cnt in (1, 2, 3)]
    assert_as_the_model(rig, packets, model.Config(**EVERYTHING))


def test_stop_item_can_be_an_item_like_others(rig):
    packets = [
        *simple_heap(1, 10).packets(),
        stop_packet(2),
        *simple_heap(3, 10).packets(),
        stop_packet(4),
        *simple_heap(5, 10).packets(),
    ]
    stream = rig.stream(stop_on_stop_item=False)
    feeder = rig.open(stream)
    feeder.send(packets)
    if rig.transport.has_end:
        feeder.end()
    heaps = take(stream, 5)
    assert [(h.cnt, h.is_end_of_stream()) for h in heaps] == [
        (1, False), (2, True), (3, False), (4, True), (5, False),
    ]  # fmt: skip
    if rig.transport.has_end:
        assert drain(stream) == []
    assert settled(stream, 5).packets == 5


def test_start_item(rig):
    packets = [Packet(1, heap_length=0, items=(START,)), *simple_heap(2, 10).packets()]
    heaps, _ = rig.receive(packets)
    assert [(h.cnt, h.is_start_of_stream()) for h in heaps] == [(1, True), (2, False)]


def test_heaps_that_are_waiting_outlive_the_end_of_the_stream(rig):
    stream = rig.stream()
    feeder = rig.open(stream)
    feeder.send(cut(simple_heap(cnt, 2500) for cnt in range(20)))
    feeder.end()
    wait_for(lambda: stream.stats.heaps == 20, "all heaps finished")
    stream.stop()
    assert [(h.cnt, payload(h)) for h in drain(stream)] == [
        (c, pattern(c, 2500)) for c in range(20)
    ]


def test_stop_from_outside_ends_the_stream_in_the_middle_of_a_heap(rig):
    stream = rig.stream()
    feeder = rig.open(stream)
    packets = [*simple_heap(1, 3000).packets(SIZE), *simple_heap(2, 3000).packets(SIZE)[:2]]
    feeder.send(packets)
    if rig.transport.loads_ahead:
        feeder.end()
    assert payload(next_heap(stream)) == pattern(1, 3000)
    settled(stream, len(packets))
    stream.stop()
    assert drain(stream) == []


# Packets in the order of a network


@pytest.mark.parametrize("extra", [0, 1])
@pytest.mark.parametrize("max_heaps", [1, 2, 5])
def test_heaps_interleave_up_to_max_heaps(rig, max_heaps, extra):
    packets = interleave([simple_heap(cnt, 4000) for cnt in range(max_heaps + extra)])
    config = model.Config(max_heaps=max_heaps, **EVERYTHING)
    whole = [heap for heap in rig.expect(packets, config).heaps if heap.complete]
    assert len(whole) == max_heaps  # the oldest is thrown out by one more
    assert_as_the_model(rig, packets, config)


@pytest.mark.parametrize("substreams", [2, 3])
@pytest.mark.parametrize("max_heaps", [1, 2])
def test_substreams_have_heaps_of_their_own(rig, substreams, max_heaps):
    packets = interleave([simple_heap(cnt, 3000) for cnt in range(substreams * max_heaps)])
    # Twice as many of the first substream: they throw out each other and nobody else.
    packets += interleave([simple_heap(substreams * cnt, 3000) for cnt in range(10, 15)])
    config = model.Config(max_heaps=max_heaps, substreams=substreams, **EVERYTHING)
    assert_as_the_model(rig, packets, config)


def four_heaps() -> list[list[Packet]]:
    return [simple_heap(cnt, 4500).packets(SIZE) for cnt in range(4)]


def lose(heap: int, packet: int) -> list[Packet]:
    heaps = four_heaps()
    del heaps[heap][packet]
    return sum(heaps, [])


def double(heap: int, packet: int, later: int = 1) -> list[Packet]:
    heaps = four_heaps()
    heaps[heap].insert(packet + later, heaps[heap][packet])
    return sum(heaps, [])


def swap(heap: int, packet: int) -> list[Packet]:
    heaps = four_heaps()
    p = heaps[heap]
    p[packet], p[packet + 1] = p[packet + 1], p[packet]
    return sum(heaps, [])


def overlap(start: int, length: int) -> list[Packet]:
    heaps = four_heaps()
    data = pattern(1, 4500)[start : start + length]
    heaps[1].insert(2, Packet(1, data, start, 4500))
    return sum(heaps, [])


def late(heap: int, packet: int, after: int) -> list[Packet]:
    heaps = [simple_heap(cnt, 4500).packets(SIZE) for cnt in range(9)]
    moved = heaps[heap].pop(packet)
    heaps[heap + after].append(moved)
    return sum(heaps, [])


TROUBLES: dict[str, list[Packet]] = {
    "none": sum(four_heaps(), []),
    "first packet lost": lose(1, 0),
    "middle packet lost": lose(1, 2),
    "last packet lost": lose(1, 4),
    "last packet of all lost": lose(3, 4),
    "first packet doubled": double(1, 0),
    "middle packet doubled": double(1, 2),
    "last packet doubled": double(1, 4),
    "packet doubled later": double(1, 1, 3),
    "heap doubled": sum(four_heaps() + four_heaps(), []),
    "whole heap of one packet doubled": simple_heap(1, 100).packets() * 3,
    "first two packets swapped": swap(1, 0),
    "middle packets swapped": swap(1, 2),
    "last two packets swapped": swap(1, 3),
    "heap reversed": sum((heap[::-1] for heap in four_heaps()), []),
    "everything reversed": sum(four_heaps(), [])[::-1],
    "packet inside what is there": overlap(500, 900),
    "packet that runs into the next": overlap(2100, 1200),
    "packet late by a heap": late(2, 2, 1),
    "packet as late as can be": late(2, 2, 3),
    "packet later than can be": late(2, 2, 5),
    "length unknown": cut(simple_heap(cnt, 3500, sized=False) for cnt in range(7)),
    "length contradicts": [
        *simple_heap(1, 3000).packets(SIZE)[:2],
        Packet(1, pattern(1, 3000)[2000:], 2000, 3001),
        *simple_heap(1, 3000).packets(SIZE)[2:],
    ],
    "flavour contradicts": [
        *simple_heap(1, 3000).packets(SIZE)[:2],
        simple_heap(1, 3000, address_bits=40).packets(SIZE)[2],
        *simple_heap(1, 3000).packets(SIZE)[2:],
    ],
}


@pytest.mark.parametrize("out_of_order", [False, True], ids=["in order", "out of order"])
@pytest.mark.parametrize("trouble", TROUBLES)
def test_lost_doubled_and_moved_packets(rig, trouble, out_of_order):
    config = model.Config(allow_out_of_order=out_of_order, **EVERYTHING)
    assert_as_the_model(rig, TROUBLES[trouble], config)


def troubled(rng: random.Random) -> list[Packet]:
    """Return what a bad network makes of interleaved heaps of all sizes."""
    heaps = []
    for cnt in range(30):
        heap = simple_heap(cnt, rng.randrange(4000), sized=rng.random() < 0.9)
        heaps.append(heap.packets(rng.choice([100, 333, 1000]), repeat_items=rng.random() < 0.3))
    arrivals: list[tuple[float, Packet]] = []
    for cnt, packets in enumerate(heaps):
        for number, packet in enumerate(packets):
            sent = cnt * 8.0 + number
            if rng.random() < 0.95:
                delay = rng.choice([0.0] * 9 + [1.5, 10.0, 60.0])
                arrivals.append((sent + delay, packet))
            if rng.random() < 0.05:
                arrivals.append((sent + rng.choice([0.5, 20.0]), packet))
    return [packet for _, packet in sorted(arrivals, key=lambda arrival: arrival[0])]


@pytest.mark.parametrize("out_of_order", [False, True], ids=["in order", "out of order"])
@pytest.mark.parametrize("seed", range(6))
def test_bad_network(rig, seed, out_of_order):
    rng = random.Random(seed)
    config = model.Config(
        max_heaps=rng.choice([1, 2, 4]),
        substreams=rng.choice([1, 1, 3]),
        allow_out_of_order=out_of_order,
        allow_unsized_heaps=rng.random() < 0.7,
        contiguous_only=rng.random() < 0.3,
        incomplete_keep_payload_ranges=True,
    )
    assert_as_the_model(rig, troubled(rng), config)


# Packets that are none


GOOD = simple_heap(1, 100).packets()[0]
BAD: dict[str, tuple[str, bytes]] = {
    "magic": ("bad_magic", GOOD.but(magic=0x54).encode()),
    "version": ("bad_magic", GOOD.but(version=3).encode()),
    "widths that are no 64 bits": ("bad_flavour", GOOD.but(item_id_bytes=3).encode()),
    "no address width": ("bad_flavour", GOOD.but(item_id_bytes=8, address_bytes=0).encode()),
    "half a header": ("truncated_header", GOOD.encode()[:5]),
    "more pointers than bytes": ("truncated_header", GOOD.but(n_items=200).encode()),
    "no heap": ("missing_item", GOOD.but(cnt=None).encode()),
    "no offset": ("missing_item", GOOD.but(offset=None).encode()),
    "no payload length": ("missing_item", GOOD.but(omit_payload_length=True).encode()),
    "payload cut": ("short_packet", GOOD.encode()[:-1]),
    "payload too long": ("long_packet", GOOD.but(tail=b"!").encode()),
    "payload behind the heap": ("offset_overflow", GOOD.but(offset=1).encode()),
    "text": ("bad_magic", b"GET / HTTP/1.1\r\n\r\n"),
}


@over(lambda t: t.datagrams)
@pytest.mark.parametrize("name", BAD)
def test_bad_datagram_is_counted_and_the_next_good_one_is_received(rig, name):
    reason, bad = BAD[name]
    heaps, stats = rig.receive([bad, *simple_heap(2, 100).packets(), bad, bad])
    assert [(h.cnt, payload(h)) for h in heaps] == [(2, pattern(2, 100))]
    assert (stats.packets, stats.heaps) == (1 + rig.n_ending, 1)
    if OURS:
        assert refusals(stats) == {reason: 3}


@over(lambda t: t.datagrams)
def test_bad_datagrams_between_the_packets_of_a_heap(rig):
    packets: list[Packet | bytes] = []
    for packet, (_, bad) in zip(simple_heap(1, 13 * SIZE).packets(SIZE), BAD.values(), strict=True):
        packets += [packet, bad]
    heaps, stats = rig.receive(packets)
    assert [payload(h) for h in heaps] == [pattern(1, 13 * SIZE)]
    assert stats.packets == 13 + rig.n_ending
    if OURS:
        wanted: dict[str, int] = {}
        for reason, _ in BAD.values():
            wanted[reason] = wanted.get(reason, 0) + 1
        assert refusals(stats) == wanted


# Readers


def test_readers_wait_for_the_start(rig):
    stream = rig.stream(explicit_start=True)
    feeder = rig.open(stream)
    packets = cut(simple_heap(cnt, 2500) for cnt in range(3))
    if rig.transport.loads_ahead:
        feeder.send(packets)
        feeder.end()
    with pytest.raises(sp.Empty):
        stream.get_nowait()
    assert stream.stats.packets == 0
    rig.transport.start(stream)
    if not rig.transport.loads_ahead:
        feeder.send(packets)
        feeder.end()
    assert [payload(h) for h in drain(stream)] == [pattern(cnt, 2500) for cnt in range(3)]


@over(lambda t: not t.loads_ahead)
def test_readers_of_one_stream_build_heaps_together(rig):
    stream = rig.stream()
    feeder = rig.open(stream, lanes=3)
    for number, packet in enumerate(cut(simple_heap(cnt, 5000) for cnt in range(4))):
        feeder.send([packet], lane=number % 3)
        settled(stream, number + 1)
    assert [payload(h) for h in take(stream, 4)] == [pattern(cnt, 5000) for cnt in range(4)]
    feeder.end(2)
    assert drain(stream) == []


def test_end_of_one_reader_ends_the_stream(rig):
    stream = rig.stream(explicit_start=rig.transport.loads_ahead)
    feeder = rig.open(stream, lanes=2)
    feeder.send(simple_heap(1, 2500).packets(SIZE), lane=0)
    if rig.transport.loads_ahead:
        feeder.send(simple_heap(2, 2500).packets(SIZE), lane=1)
    feeder.end()
    rig.transport.start(stream)
    assert counts(drain(stream)) == [1]


def test_reader_added_to_a_stopped_stream_does_nothing(rig):
    stream = rig.stream()
    stream.stop()
    feeder = rig.open(stream)
    if rig.transport.loads_ahead:
        feeder.send(simple_heap(1, 100).packets())
        feeder.end()
    assert drain(stream) == []
    assert stream.stats.packets == 0


# Back-pressure


def test_full_ring_holds_the_packets_back(rig):
    stream = rig.stream(heaps=1)
    feeder = rig.open(stream)
    feeder.send(cut(simple_heap(cnt, 100) for cnt in range(60)))
    feeder.end()
    for cnt in range(58):
        # The heap behind the one in the ring finds it full.
        wait_for(lambda cnt=cnt: stream.stats.worker_blocked > cnt, f"heap {cnt + 1} held back")
        assert stream.ringbuffer.size() == 1
        assert next_heap(stream).cnt == cnt
    assert counts(drain(stream)) == [58, 59]


@over(lambda t: t.lossless)
def test_slow_reader_loses_nothing(rig):
    n = 2000
    packets = cut(simple_heap(cnt, 2500) for cnt in range(n))
    stream = rig.stream(heaps=1)
    feeder = rig.open(stream)

    def feed() -> None:
        feeder.send(packets)
        feeder.end()

    with meanwhile(feed):
        for cnt in range(20):
            wait_for(lambda cnt=cnt: stream.stats.worker_blocked > cnt, "a full ring")
            assert payload(next_heap(stream)) == pattern(cnt, 2500)
        heaps = drain(stream)
    assert [(h.cnt, payload(h)) for h in heaps] == [(c, pattern(c, 2500)) for c in range(20, n)]
    stream.stop()
    assert (stream.stats.packets, stream.stats.heaps) == (3 * n, n)


def test_stop_and_statistics_do_not_wait_for_a_full_ring(rig):
    stream = rig.stream(heaps=1)
    feeder = rig.open(stream)
    feeder.send(cut(simple_heap(cnt, 100) for cnt in range(60)))
    if rig.transport.loads_ahead:
        feeder.end()
    wait_for(lambda: stream.stats.worker_blocked, "a full ring")
    stream.stop()
    assert counts(drain(stream)) == [0]


# Statistics


def test_statistics_are_exact_at_the_end(rig):
    packets = [
        *cut(simple_heap(cnt, 3500) for cnt in range(100)),  # complete
        *cut(simple_heap(cnt, 10) for cnt in range(100, 150)),  # of one packet
        *(simple_heap(cnt, 3500).packets(SIZE)[0] for cnt in range(150, 160)),  # cut short
    ]
    wanted = rig.expect(packets).stats
    assert (wanted["heaps"], wanted["packets"]) == (160, 460 + rig.n_ending)
    heaps, stats = rig.receive(packets)
    assert counts(heaps) == list(range(150))
    assert {name: stats[name] for name in wanted} == wanted
    assert stats.worker_blocked == 0
    assert 1 <= stats.batches <= stats.packets
    assert 1 <= stats.max_batch <= stats.packets <= stats.batches * stats.max_batch
    if OURS:
        assert refusals(stats) == {}


def test_statistics_begin_at_nothing_and_are_a_snapshot(rig):
    stream = rig.stream()
    before = stream.stats
    feeder = rig.open(stream)
    feeder.send(simple_heap(1, 100).packets())
    feeder.end()
    assert counts(drain(stream)) == [1]
    stream.stop()
    assert (before.packets, before.heaps, stream.stats.heaps) == (0, 0, 1)


# Coroutines


def run(coroutine: Any) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, 3 * DEADLINE))


def test_coroutine_iterates_over_every_heap(rig):
    stream = rig.async_stream(heaps=8)
    feeder = rig.open(stream)

    def feed() -> None:
        feeder.send(cut(simple_heap(cnt, 2500) for cnt in range(300)))
        feeder.end()

    async def receive() -> list[Any]:
        return [heap async for heap in stream]

    with meanwhile(feed):
        heaps = run(receive())
        feeder.release()
    assert [(h.cnt, payload(h)) for h in heaps] == [(c, pattern(c, 2500)) for c in range(300)]


def test_coroutine_waits_for_a_heap_while_others_run(rig):
    stream = rig.async_stream()
    feeder = rig.open(stream)

    async def receive() -> Any:
        waiting = asyncio.create_task(stream.get())
        for _ in range(10):  # the loop turns, and there is nothing to get
            await asyncio.sleep(0)
        assert not waiting.done()
        feeder.send(simple_heap(1, 2500).packets(SIZE))
        feeder.end()
        heap = await waiting
        with pytest.raises(sp.Stopped):
            await stream.get()
        return heap

    assert payload(run(receive())) == pattern(1, 2500)


def test_coroutines_that_wait_get_heaps_in_turn_and_then_the_end(rig):
    stream = rig.async_stream()
    feeder = rig.open(stream)

    async def receive() -> list[Any]:
        waiting = [asyncio.create_task(stream.get()) for _ in range(5)]
        await asyncio.sleep(0)
        feeder.send(cut(simple_heap(cnt, 100) for cnt in range(3)))
        feeder.end()
        return await asyncio.gather(*waiting, return_exceptions=True)

    results = run(receive())
    assert counts(results[:3]) == [0, 1, 2]
    assert [type(result) for result in results[3:]] == [sp.Stopped] * 2
    assert recv.Heap in {type(result) for result in results}
