"""Heaps that are to be sent hold what the user put in, and become the packets that spead2 makes."""

from __future__ import annotations

import dataclasses
import enum
import gc
import importlib
import struct
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from target import OURS, PACKAGE, drain, new_stream, sp
from wire import (
    ADDRESS_BITS,
    CTRL_START,
    CTRL_STOP,
    DESCRIPTOR,
    DESCRIPTOR_DESCRIPTION,
    DESCRIPTOR_DTYPE,
    DESCRIPTOR_FORMAT,
    DESCRIPTOR_ID,
    DESCRIPTOR_NAME,
    DESCRIPTOR_SHAPE,
    NULL,
    STREAM_CTRL,
    USER_ID,
)

send: Any = importlib.import_module(PACKAGE + ".send")

FLAVOUR = sp.Flavour(4, 64, 48)

#: More than any heap here needs.
ONE_PACKET = 1 << 20

Contents = list[tuple[int, Any]]


# Reading packets back


def pointers_of(packet: bytes) -> tuple[int, list[tuple[int, bool, int]], bytes]:
    """Return the address bits, (id, is immediate, number) of every pointer, and the payload."""
    magic, version, id_bytes, address_bytes, reserved, n = struct.unpack_from(">4B2H", packet)
    assert (magic, version, id_bytes + address_bytes, reserved) == (0x53, 4, 8, 0)
    bits = 8 * address_bytes
    words = struct.unpack_from(f">{n}Q", packet, 8)
    pointers = [(word % 2**63 >> bits, word >> 63 == 1, word % 2**bits) for word in words]
    return bits, pointers, packet[8 + 8 * n :]


def decode(packet: bytes) -> tuple[int, Contents]:
    """Return the address bits and the items of a packet that is a whole heap, in their order.

    A value is an int if it is immediate, else bytes. What is there only because no heap may be
    without payload is left out.
    """
    bits, pointers, payload = pointers_of(packet)
    special, ordinary = pointers[:4], pointers[4:]
    assert [(item_id, immediate) for item_id, immediate, _ in special] == [
        (1, True),
        (2, True),
        (3, True),
        (4, True),
    ]
    assert [number for _, _, number in special[1:]] == [len(payload), 0, len(payload)]
    if ordinary[-1:] == [(NULL, False, 0)] and payload == b"\0":
        ordinary, payload = ordinary[:-1], b""
    ends = [number for _, immediate, number in ordinary if not immediate][1:]
    ends.append(len(payload))
    contents: Contents = []
    for item_id, immediate, number in ordinary:
        contents.append((item_id, number if immediate else payload[number : ends.pop(0)]))
    return bits, contents


def packets_of(heap: Any, size: int = ONE_PACKET, cnt: int = 1) -> list[bytes]:
    return list(send.PacketGenerator(heap, cnt, size))


def contents(heap: Any) -> Contents:
    """Return (id, int or bytes) for every item of a heap."""
    (packet,) = packets_of(heap)
    bits, items = decode(packet)
    assert bits == heap.flavour.heap_address_bits
    return items


@dataclasses.dataclass
class Described:
    """The fields of a descriptor packet, as bytes."""

    address_bits: int
    id: int
    fields: dict[int, bytes]


def described(packet: bytes) -> Described:
    bits, items = decode(packet)
    fields = dict(items)
    assert len(fields) == len(items)
    return Described(bits, fields.pop(DESCRIPTOR_ID), fields)


def outline(heap: Any) -> list[str]:
    """Return what is in a heap in short: ``D1000`` a descriptor, ``1000`` a value, ``ctrl 2``."""
    words = []
    for item_id, value in contents(heap):
        if item_id == DESCRIPTOR:
            words.append(f"D{described(value).id:x}")
        elif item_id == STREAM_CTRL:
            words.append(f"ctrl {value}")
        else:
            words.append(f"{item_id:x}")
    return words


# Making heaps


def item(
    value: Any = None, shape: Sequence[int | None] = (), dtype: Any = None, **kwargs: Any
) -> Any:
    return sp.Item(USER_ID, "n", "d", shape, dtype, value=value, **kwargs)


def heap_with(*items: Any, flavour: Any = FLAVOUR) -> Any:
    heap = send.Heap(flavour)
    for i in items:
        heap.add_item(i)
    return heap


def sent(*args: Any, **kwargs: Any) -> Any:
    """Return as what the value of an item is sent: an int if immediate, else bytes."""
    ((_, value),) = contents(heap_with(item(*args, **kwargs)))
    return value


class Bytes:
    """Something like an item, of which the bytes are given."""

    def __init__(self, data: Any, immediate: bool = False) -> None:
        self.id = USER_ID
        self.data = data
        self.immediate = immediate

    def to_buffer(self) -> Any:
        return self.data

    def allow_immediate(self) -> bool:
        return self.immediate


# Heaps


def test_flavour_is_40_address_bits_unless_given() -> None:
    assert send.Heap().flavour == sp.Flavour(4, 64, 40)
    assert send.Heap(flavour=FLAVOUR).flavour == FLAVOUR


@pytest.mark.parametrize("flavour", [None, 48, "SPEAD-64-48"])
def test_what_is_no_flavour_is_a_type_error(flavour: Any) -> None:
    with pytest.raises(TypeError):
        send.Heap(flavour)


@pytest.mark.parametrize("bits", ADDRESS_BITS)
def test_packets_are_of_the_heaps_flavour(bits: int) -> None:
    heap = send.Heap(sp.Flavour(4, 64, bits))
    heap.add_item(sp.Item(0x50, "n", "d", (20,), "u1", value=np.arange(20)))
    assert contents(heap) == [(0x50, bytes(range(20)))]


def test_heap_takes_no_other_attributes() -> None:
    with pytest.raises(AttributeError):
        send.Heap().repeat_pointer = True


def test_items_are_sent_in_the_order_of_their_addition() -> None:
    heap = send.Heap(FLAVOUR)
    heap.add_start()
    heap.add_item(item(b"abcdefgh", (), "S8"))
    heap.add_item(item(1, (), ">u2"))
    heap.add_item(item(b"ijklmnop", (), "S8"))
    heap.add_end()
    assert contents(heap) == [
        (STREAM_CTRL, CTRL_START),
        (USER_ID, b"abcdefgh"),
        (USER_ID, 1),
        (USER_ID, b"ijklmnop"),
        (STREAM_CTRL, CTRL_STOP),
    ]


def test_empty_heap_is_one_packet_without_items() -> None:
    assert contents(send.Heap(FLAVOUR)) == []


def test_heap_may_grow_after_it_was_used() -> None:
    heap = heap_with(item(1, (), ">u2"))
    assert len(contents(heap)) == 1
    heap.add_item(item(2, (), ">u2"))
    assert contents(heap) == [(USER_ID, 1), (USER_ID, 2)]


@pytest.mark.parametrize(
    ("value", "expected"), [(True, True), (1, True), (0.0, False), (None, False)]
)
def test_repeat_pointers_is_a_flag(value: Any, expected: bool) -> None:
    heap = send.Heap()
    assert heap.repeat_pointers is False
    heap.repeat_pointers = value
    assert heap.repeat_pointers is expected


@pytest.mark.parametrize("value", ["yes", [1]])
def test_repeat_pointers_takes_no_containers(value: Any) -> None:
    with pytest.raises(TypeError):
        send.Heap().repeat_pointers = value


@pytest.mark.parametrize("repeat", [False, True])
def test_pointers_are_repeated_in_every_packet_if_asked(repeat: bool) -> None:
    heap = heap_with(item(7, (), ">u2"), item(np.zeros(100), (100,), "u1"))
    packets_of(heap)
    heap.repeat_pointers = repeat
    packets = packets_of(heap, 96)
    assert len(packets) > 2
    counts = [len(pointers_of(packet)[1]) for packet in packets]
    assert counts == [6, *[6 if repeat else 4] * (len(packets) - 1)]


# Values: what goes into the item pointer


@pytest.mark.parametrize(
    ("value", "shape", "dtype", "expected"),
    [
        (5, (), ">u4", 5),
        (5, (), "<u4", 0x05000000),
        (-5, (), ">i4", 2**32 - 5),
        (-5, (), "<i4", 0xFBFFFFFF),
        (True, (), "?", 1),
        (1.5, (), ">f4", 0x3FC00000),
        (np.array(5, "u1"), (), ">u4", 5),
        (np.uint8(5), (), ">u4", 5),
        (b"abc", (), "S3", 0x616263),
        (b"abcdef", (), "S6", 0x616263646566),
        (b"abcdefg", (), "S7", b"abcdefg"),
        (5, (), ">u8", bytes(7) + b"\5"),
        (5, (), "<u8", b"\5" + bytes(7)),
        ((1, 2), (), [("a", "u1"), ("b", ">u2")], 0x010002),
        (np.arange(6), (6,), "u1", 0x000102030405),
        (np.arange(7), (7,), "u1", bytes(range(7))),
        (np.arange(6).reshape(3, 2), (3, 2), "u1", 0x000102030405),
        (np.zeros(0), (0,), "u1", 0),
        ("abc", (3,), "S1", 0x616263),
        ("abc", (3,), "S3", b"a\0\0b\0\0c\0\0"),
        (["ab", "c"], (2,), "S2", 0x61626300),
    ],
)
def test_fixed_size_value_not_longer_than_an_address_is_immediate(
    value: Any, shape: Sequence[int], dtype: Any, expected: Any
) -> None:
    assert sent(value, shape, dtype) == expected


@pytest.mark.parametrize("bits", [8, 40, 48, 56])
def test_width_of_an_address_decides_what_is_immediate(bits: int) -> None:
    flavour = sp.Flavour(4, 64, bits)
    for n_bytes in (bits // 8, bits // 8 + 1):
        i = sp.Item(0x50, "n", "d", (n_bytes,), "u1", value=np.ones(n_bytes))
        ((_, value),) = contents(heap_with(i, flavour=flavour))
        assert isinstance(value, int) == (n_bytes == bits // 8)


@pytest.mark.parametrize(
    ("value", "shape", "fmt", "expected"),
    [
        (2**47 + 1, (), [("u", 48)], 2**47 + 1),
        (-5, (), [("i", 16)], 2**16 - 5),
        (5, (), [("u", 12)], b"\0\x50"),
        (-5, (), [("i", 12)], b"\xff\xb0"),
        (3.9, (), [("u", 12)], b"\0\x30"),
        ("5", (), [("u", 12)], b"\0\x50"),
        (True, (), [("u", 12)], b"\0\x10"),
        (np.array(5), (), [("u", 12)], b"\0\x50"),
        ([5, 6], (2,), [("u", 12)], b"\0\x50\x06"),
        (np.array([5, 6], ">i2"), (2,), [("u", 12)], b"\0\x50\x06"),
        (np.array([[1, 2], [3, 4]]).T, (2, 2), [("u", 12)], b"\0\x10\x03\0\x20\x04"),
        ([1, 0] * 4, (8,), [("b", 1)], b"\xaa"),
        (5, (), [("b", 3)], b"\x20"),
        (True, (), [("b", 8)], 1),
        (1.5, (), [("f", 32)], 0x3FC00000),
        ((1, 2), (), [("u", 4), ("u", 4)], 0x12),
        ((1, -1), (), [("u", 4), ("i", 4)], 0x1F),
        ((1, 1.5), (), [("u", 8), ("f", 32)], 0x013FC00000),
        ((1, 2.5), (), [("u", 4), ("f", 64)], b"\x14\0\x40\0\0\0\0\0\0"),
        ([("a", 1)], (1,), [("c", 8), ("u", 4)], b"a\x10"),
        (2**99, (), [("u", 100)], b"\x80" + bytes(12)),
        (-(2**99), (), [("i", 100)], b"\x80" + bytes(12)),
        ("hello", (None,), [("c", 8)], b"hello"),
        (b"hello", (None,), [("c", 8)], b"hello"),
        ("abc", (3,), [("c", 8)], 0x616263),
        ("", (None,), [("c", 8)], b""),
        ([1, 2], (None,), [("u", 8)], b"\1\2"),
        ([[1, 2], [3, 4]], (None, 2), [("u", 12)], b"\0\x10\x02\0\x30\x04"),
        (np.zeros((0, 2)), (None, 2), [("u", 12)], b""),
        ([], (0,), [("u", 12)], b""),
        ([], (0,), [("u", 8)], 0),
    ],
)
def test_format_is_packed_from_the_most_significant_bit(
    value: Any, shape: Sequence[int | None], fmt: list[tuple[str, int]], expected: Any
) -> None:
    assert sent(value, shape, format=fmt) == expected


@pytest.mark.ours
@pytest.mark.parametrize(
    ("value", "fmt", "expected"),
    [
        (-1, [("i", 40)], 2**40 - 1),
        (-(2**47), [("i", 48)], 2**47),
        (-1, [("i", 24)], 2**24 - 1),
        (2**40 - 1, [("u", 40)], 2**40 - 1),
    ],
)
def test_integer_of_whole_bytes_may_be_negative(
    value: int, fmt: list[tuple[str, int]], expected: int
) -> None:
    assert sent(value, (), format=fmt) == expected


@pytest.mark.parametrize(
    ("value", "shape", "kwargs", "expected"),
    [
        (np.arange(20, dtype="u1")[::2], (10,), {"dtype": "u1"}, bytes(range(0, 20, 2))),
        (np.arange(9).reshape(3, 3).T, (3, 3), {"dtype": "u1"}, b"\0\3\6\1\4\7\2\5\x08"),
        (
            np.arange(9).reshape(3, 3),
            (3, 3),
            {"dtype": "u1", "order": "F"},
            b"\0\3\6\1\4\7\2\5\x08",
        ),
        (np.arange(4, dtype=">u2"), (4,), {"dtype": "<u2"}, b"\0\0\1\0\2\0\3\0"),
        (np.arange(4, dtype="<u2"), (4,), {"dtype": ">u2"}, b"\0\0\0\1\0\2\0\3"),
        (np.arange(4, dtype="<u2"), (4,), {"format": [("u", 16)]}, b"\0\0\0\1\0\2\0\3"),
        ([1.9, 2] * 4, (8,), {"dtype": "u1"}, b"\1\2" * 4),
        (
            np.zeros(1, np.dtype([("a", "u1"), ("b", "<u4")], align=True)),
            (1,),
            {"dtype": np.dtype([("a", "u1"), ("b", "<u4")], align=True)},
            bytes(8),
        ),
        (["abc", "d"], (2,), {"dtype": "<U3"}, "abcd\0\0".encode("utf-32-le")),
        ([1j], (1,), {"dtype": ">c16"}, struct.pack(">2d", 0, 1)),
    ],
)
def test_array_is_sent_in_the_order_and_type_of_its_item(
    value: Any, shape: Sequence[int], kwargs: dict[str, Any], expected: bytes
) -> None:
    assert sent(value, shape, **kwargs) == expected


@pytest.mark.ours
@pytest.mark.parametrize(
    ("dtype", "shape", "expected"),
    [
        ("<M8[s]", (2,), struct.pack("<2q", 0, 5)),
        ("<m8[s]", (2,), struct.pack("<2q", 0, 5)),
        ([("t", "<M8[s]"), ("n", "u1")], (), struct.pack("<qB", 5, 7)),
    ],
)
def test_times_are_sent(dtype: Any, shape: Sequence[int], expected: bytes) -> None:
    value = np.array([0, 5], "<i8").view(dtype) if shape else (np.datetime64(5, "s"), 7)
    assert sent(value, shape, dtype) == expected


@pytest.mark.ours
def test_many_packed_values_are_the_bits_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    values = importlib.import_module("xdpspead._values")
    fields = [("u", 5), ("i", 7), ("b", 1), ("i", 70)]
    records = [(i % 32, i % 128 - 64, i % 3 == 0, (-1) ** i * i**6) for i in range(1000)]
    text = "".join(
        f"{value % 2**bits:0{bits}b}"
        for record in records
        for value, (_, bits) in zip(record, fields, strict=True)
    )
    text += "0" * (-len(text) % 8)
    expected = int(text, 2).to_bytes(len(text) // 8, "big")
    # Also with a border of blocks inside.
    for block in (values._PACKED_BITS, 83 * 64):
        monkeypatch.setattr(values, "_PACKED_BITS", block)
        assert sent(records, (1000,), format=fields) == expected


# Values: memory


def contiguous() -> tuple[np.ndarray[Any, Any], Any]:
    array = np.arange(10, dtype="<u2")
    return array, item(array, (10,), "<u2")


def fortran() -> tuple[np.ndarray[Any, Any], Any]:
    array = np.asfortranarray(np.arange(10, dtype="<u2").reshape(2, 5))
    return array, item(array, (2, 5), "<u2", order="F")


def big_endian_format() -> tuple[np.ndarray[Any, Any], Any]:
    array = np.arange(10, dtype=">u2")
    return array, item(array, (None,), format=[("u", 16)])


def strided() -> tuple[np.ndarray[Any, Any], Any]:
    array = np.arange(20, dtype="<u2")[::2]
    return array, item(array, (10,), "<u2")


def other_endian() -> tuple[np.ndarray[Any, Any], Any]:
    array = np.arange(10, dtype=">u2")
    return array, item(array, (10,), "<u2")


def packed() -> tuple[np.ndarray[Any, Any], Any]:
    array = np.arange(10, dtype="<u2")
    return array, item(array, (10,), format=[("u", 12)])


def immediate() -> tuple[np.ndarray[Any, Any], Any]:
    array = np.arange(2, dtype="<u2")
    return array, item(array, (2,), "<u2")


def immediate_scalar() -> tuple[np.ndarray[Any, Any], Any]:
    array = np.array(5, dtype=">u4")
    return array, item(array, (), ">u4")


def immediate_fortran() -> tuple[np.ndarray[Any, Any], Any]:
    array = np.asfortranarray(np.arange(6, dtype="u1").reshape(2, 3))
    return array, item(array, (2, 3), "u1", order="F")


def immediate_other_endian() -> tuple[np.ndarray[Any, Any], Any]:
    array = np.arange(2, dtype=">u2")
    return array, item(array, (2,), "<u2")


@pytest.mark.parametrize("make", [contiguous, fortran, big_endian_format])
def test_array_that_can_be_sent_as_it_is_is_not_copied(
    make: Callable[[], tuple[np.ndarray[Any, Any], Any]],
) -> None:
    array, i = make()
    heap = heap_with(i)
    before = contents(heap)
    array[...] = 0x0707
    assert contents(heap) == [(USER_ID, b"\7" * 20)] != before


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (immediate, 0x07000700),
        (immediate_scalar, 7),
        (immediate_fortran, 0x070707070707),
    ],
)
def test_immediate_array_is_sent_as_it_is_then(
    make: Callable[[], tuple[np.ndarray[Any, Any], Any]], expected: int
) -> None:
    array, i = make()
    heap = send.Heap(FLAVOUR)
    heap.add_start()
    heap.add_item(i)
    before = contents(heap)
    array[...] = 7
    assert contents(heap) == [(STREAM_CTRL, CTRL_START), (USER_ID, expected)] != before


@pytest.mark.ours
def test_heap_is_prepared_once_unless_something_changes() -> None:
    array, i = immediate_scalar()
    heap = heap_with(i, contiguous()[1], item(5, (), "u4"))
    made = heap._core()
    assert heap._core() is made
    array[...] = 7
    changed = heap._core()
    assert changed is not made
    assert heap._core() is changed
    heap.repeat_pointers = True
    assert heap._core() is not changed


@pytest.mark.parametrize("make", [strided, other_endian, packed, immediate_other_endian])
def test_value_that_has_to_be_converted_is_copied(
    make: Callable[[], tuple[np.ndarray[Any, Any], Any]],
) -> None:
    array, i = make()
    heap = heap_with(i)
    before = contents(heap)
    array[...] = 7
    assert contents(heap) == before


def test_array_lives_as_long_as_its_heap() -> None:
    array, i = contiguous()
    expected = array.tobytes()
    heap = heap_with(i)
    alive = weakref.ref(array)
    del array, i
    gc.collect()
    assert contents(heap) == [(USER_ID, expected)]
    assert alive() is not None
    del heap
    gc.collect()
    assert alive() is None


def test_array_lives_as_long_as_its_packets() -> None:
    _, i = contiguous()
    packets = send.PacketGenerator(heap_with(i), 1, 64)
    first = next(packets)
    del i
    gc.collect()
    payload = b"".join(pointers_of(packet)[2] for packet in [first, *packets])
    assert payload == struct.pack("<10H", *range(10))


def test_memory_of_a_heap_cannot_be_resized() -> None:
    data = bytearray(20)
    heap = heap_with(Bytes(data))
    with pytest.raises(BufferError):
        data.extend(bytes(1 << 20))
    assert contents(heap) == [(USER_ID, bytes(20))]


# Values: errors


@pytest.mark.parametrize(
    "i",
    [
        item(None, (), "u4"),
        item([1, 2, 3], (2,), "u4"),
        item(5, (1,), "u4"),
        item([5], (), "u4"),
        item([[1, 2, 3]], (None, 2), format=[("u", 8)]),
        item("ab", (2,), "u4"),
        item("x", (), "u4"),
        item(4096, (), format=[("u", 12)]),
        item(-1, (), format=[("u", 12)]),
        item([0, 2048], (2,), format=[("i", 12)]),
        item([0, -2049], (2,), format=[("i", 12)]),
        item([(0, 16)], (1,), format=[("u", 4), ("u", 4)]),
        item(2**63, (), format=[("u", 63)]),
        item("\xe9", (None,), format=[("c", 8)]),
    ],
)
def test_value_that_does_not_fit_is_a_value_error(i: Any) -> None:
    heap = send.Heap(FLAVOUR)
    with pytest.raises(ValueError):  # noqa: PT011 (NumPy's own texts among them)
        heap.add_item(i)
    assert contents(heap) == []


@pytest.mark.parametrize(
    ("value", "kwargs"),
    [
        (256, {"dtype": "u1"}),
        (-1, {"dtype": "u1"}),
        (2**32, {"dtype": "u4"}),
        (70000, {"format": [("i", 16)]}),
    ],
)
def test_integer_that_does_not_fit_a_native_type_is_an_overflow_error(
    value: int, kwargs: dict[str, Any]
) -> None:
    with pytest.raises(OverflowError):
        heap_with(item(value, (), **kwargs))


@pytest.mark.ours
@pytest.mark.parametrize(
    ("value", "bits"), [(2**40, 40), (2**48, 48), (-1, 40), (np.int64(2**24), 24)]
)
def test_integer_that_does_not_fit_whole_bytes_is_a_value_error(value: Any, bits: int) -> None:
    with pytest.raises(ValueError, match=f"out of range for u{bits}"):
        heap_with(item(value, (), format=[("u", bits)]))


@pytest.mark.parametrize("thing", [5, None, "x", sp.Descriptor(USER_ID, "n", "d", (), "u4")])
def test_what_is_no_item_is_refused(thing: Any) -> None:
    heap = send.Heap(FLAVOUR)
    with pytest.raises((TypeError, AttributeError)):
        heap.add_item(thing)
    assert contents(heap) == []


@pytest.mark.ours
def test_what_is_no_item_is_a_type_error_that_says_what_is() -> None:
    with pytest.raises(TypeError, match="not an Item: 5; make one with"):
        send.Heap().add_item(5)


def test_anything_with_the_methods_of_an_item_is_one() -> None:
    heap = heap_with(Bytes(b"abc", True), Bytes(b"abc"), Bytes(memoryview(b"abcdefgh")), Bytes(b""))
    assert [value for _, value in contents(heap)] == [0x616263, b"abc", b"abcdefgh", b""]


@pytest.mark.parametrize(
    "data",
    [
        np.arange(10)[::2],
        np.asfortranarray(np.arange(6).reshape(2, 3)),
        memoryview(b"abcdefghijklmnopq")[::2],
    ],
    ids=["strided", "fortran", "memoryview"],
)
def test_memory_in_pieces_is_refused(data: Any) -> None:
    with pytest.raises((ValueError, BufferError), match="C-contiguous"):
        heap_with(Bytes(data))


@pytest.mark.parametrize("data", ["abcdefghij", 5, None])
def test_bytes_that_are_none_are_a_type_error(data: Any) -> None:
    with pytest.raises(TypeError):
        heap_with(Bytes(data))


@pytest.mark.parametrize("item_id", ["a", None, 1.5, 2**64])
def test_identifier_that_is_no_integer_of_64_bits_is_refused(item_id: Any) -> None:
    heap = send.Heap(FLAVOUR)
    thing = Bytes(b"abc")
    thing.id = item_id
    with pytest.raises((TypeError, ValueError) if OURS else RuntimeError):
        heap.add_item(thing)


def test_identifier_may_be_an_integer_of_numpy() -> None:
    i = sp.Item(np.int64(USER_ID), "n", "d", (), "u1", value=1)
    heap = heap_with(i)
    heap.add_descriptor(i)
    assert outline(heap) == ["1000", "D1000"]


@pytest.mark.ours
@pytest.mark.parametrize("bits", [8, 40, 56])
def test_identifier_that_does_not_fit_the_flavour_is_a_value_error(bits: int) -> None:
    most = (1 << (63 - bits)) - 1
    heap = send.Heap(sp.Flavour(4, 64, bits))
    heap.add_item(sp.Item(most, "n", "d", (), "u1", value=1))
    assert outline(heap) == [f"{most:x}"]
    for item_id in (most + 1, -1):
        i = sp.Item(item_id, "n", "d", (), "u1", value=1)
        with pytest.raises(ValueError, match=f"does not fit SPEAD-64-{bits}"):
            heap.add_item(i)
        with pytest.raises(ValueError, match="identifier must be from 1 to"):
            heap.add_descriptor(i)


@pytest.mark.ours
@pytest.mark.parametrize("item_id", [1, 2, 3, 4])
def test_identifier_that_says_where_a_packet_belongs_is_a_value_error(item_id: int) -> None:
    with pytest.raises(ValueError, match="says where a packet belongs"):
        send.Heap().add_item(sp.Item(item_id, "n", "d", (), "u1", value=1))


@pytest.mark.ours
def test_heap_too_long_for_its_flavour_is_a_value_error() -> None:
    heap = heap_with(
        sp.Item(0x50, "n", "d", (256,), "u1", value=np.zeros(256)), flavour=sp.Flavour(4, 64, 8)
    )
    with pytest.raises(ValueError, match="SPEAD-64-8"):
        packets_of(heap)


@pytest.mark.ours
def test_repr_of_a_heap_says_how_much_is_in_it() -> None:
    heap = heap_with(item(np.zeros(100), (100,), "u1"), item(1, (), "u1"))
    assert repr(heap) == "<Heap of SPEAD-64-48: 2 items, 100 bytes of payload>"


# Descriptors


def descriptor_packet(descriptor: Any, flavour: Any = FLAVOUR) -> Described:
    heap = send.Heap(flavour)
    heap.add_descriptor(descriptor)
    ((item_id, packet),) = contents(heap)
    assert item_id == DESCRIPTOR
    return described(packet)


@pytest.mark.parametrize("bug_compat", range(8))
@pytest.mark.parametrize("bits", ADDRESS_BITS)
def test_descriptor_of_a_format_is_written_as_the_flavour_says(bits: int, bug_compat: int) -> None:
    packet = descriptor_packet(
        sp.Descriptor(0x50, "name", "text", (200, None), format=[("u", 12), ("f", 32)]),
        sp.Flavour(4, 64, bits, bug_compat),
    )
    size_bytes, width_bytes = (7, 3) if bug_compat & 1 else (bits // 8, 8 - bits // 8)
    variable = 2 if bug_compat & 2 else 1
    assert packet == Described(
        bits,
        0x50,
        {
            DESCRIPTOR_NAME: b"name",
            DESCRIPTOR_DESCRIPTION: b"text",
            DESCRIPTOR_SHAPE: b"\0"
            + (200).to_bytes(size_bytes, "big")
            + bytes([variable])
            + bytes(size_bytes),
            DESCRIPTOR_FORMAT: b"u"
            + (12).to_bytes(width_bytes, "big")
            + b"f"
            + (32).to_bytes(width_bytes, "big"),
        },
    )


@pytest.mark.parametrize("swapped", [False, True])
def test_descriptor_of_a_dtype_is_a_numpy_header(swapped: bool) -> None:
    packet = descriptor_packet(
        sp.Descriptor(USER_ID, "", "", (2, 3), "<u4", order="F"),
        sp.Flavour(4, 64, 48, 4 if swapped else 0),
    )
    header = f"{{'descr': '{'>' if swapped else '<'}u4', 'fortran_order': True, 'shape': (2, 3)}}"
    assert packet.fields == {
        DESCRIPTOR_NAME: b"",
        DESCRIPTOR_DESCRIPTION: b"",
        DESCRIPTOR_SHAPE: b"\0" + (2).to_bytes(6, "big") + b"\0" + (3).to_bytes(6, "big"),
        DESCRIPTOR_FORMAT: b"",
        DESCRIPTOR_DTYPE: header.encode(),
    }


def test_swapped_descriptor_comes_with_values_as_they_are() -> None:
    heap = heap_with(item([1, 2], (2,), "<u4"), flavour=sp.Flavour(4, 64, 40, 4))
    assert contents(heap) == [(USER_ID, b"\1\0\0\0\2\0\0\0")]


def test_descriptor_is_sent_as_it_was_when_added() -> None:
    i = item(1, (), "u1")
    heap = send.Heap(FLAVOUR)
    heap.add_descriptor(i)
    i.name = "other"
    ((_, packet),) = contents(heap)
    assert described(packet).fields[DESCRIPTOR_NAME] == b"n"


def test_descriptor_may_be_long() -> None:
    packet = descriptor_packet(sp.Descriptor(USER_ID, "n" * 300, "d" * 70000, (), "u1"))
    assert packet.fields[DESCRIPTOR_NAME] == b"n" * 300
    assert packet.fields[DESCRIPTOR_DESCRIPTION] == b"d" * 70000


@pytest.mark.parametrize(
    "descriptor",
    [
        sp.Descriptor(0, "n", "d", (), "u1"),
        sp.Descriptor(-1, "n", "d", (), "u1"),
        sp.Descriptor(1 << 15, "n", "d", (), "u1"),
        sp.Descriptor(USER_ID, "\xe9", "d", (), "u1"),
        sp.Descriptor(USER_ID, "n", "\xe9", (), "u1"),
    ],
)
def test_descriptor_that_cannot_be_written_is_a_value_error(descriptor: Any) -> None:
    heap = send.Heap(FLAVOUR)
    with pytest.raises(ValueError):  # noqa: PT011 (a UnicodeEncodeError among them)
        heap.add_descriptor(descriptor)
    assert contents(heap) == []


@pytest.mark.ours
@pytest.mark.parametrize(
    ("descriptor", "bits", "message"),
    [
        (sp.Descriptor(0x50, "n", "d", (2**40,), format=[("u", 8)]), 40, "a dimension of 109951"),
        (sp.Descriptor(0x50, "n", "d", (), format=[("u", 2**24)]), 40, "a field of 16777216 bits"),
        (sp.Descriptor(0x50, "n", "d" * 300, (), "u1"), 8, "too much for 8 address bits"),
    ],
)
def test_descriptor_that_does_not_fit_the_flavour_is_a_value_error(
    descriptor: Any, bits: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        send.Heap(sp.Flavour(4, 64, bits)).add_descriptor(descriptor)


@pytest.mark.parametrize("thing", [5, None, "x"])
def test_what_is_no_descriptor_is_refused(thing: Any) -> None:
    with pytest.raises((TypeError, AttributeError)):
        send.Heap().add_descriptor(thing)


# Packets


@pytest.mark.parametrize("size", [56, 64, 100, 1472])
def test_packets_are_not_longer_than_asked(size: int) -> None:
    packets = packets_of(heap_with(item(np.arange(100), (100,), "u1")), size)
    assert all(len(packet) <= size for packet in packets)
    assert b"".join(pointers_of(packet)[2] for packet in packets) == bytes(range(100))


def test_generator_of_packets_is_an_iterator_that_ends_for_good() -> None:
    generator = send.PacketGenerator(heap_with(item(np.zeros(100), (100,), "u1")), 1, 1472)
    assert iter(generator) is generator
    assert type(next(generator)) is bytes
    assert list(generator) == []
    with pytest.raises(StopIteration):
        next(generator)


def test_packets_have_the_heaps_identifier() -> None:
    (packet,) = packets_of(send.Heap(FLAVOUR), cnt=0x123456789)
    assert pointers_of(packet)[1][0] == (1, True, 0x123456789)


@pytest.mark.ours
def test_identifier_of_a_heap_wraps_around() -> None:
    (packet,) = packets_of(send.Heap(FLAVOUR), cnt=2**64 - 1)
    assert pointers_of(packet)[1][0] == (1, True, 2**48 - 1)


@pytest.mark.parametrize("size", [0, 1, 48, 55])
def test_packet_size_without_room_is_a_value_error(size: int) -> None:
    with pytest.raises(ValueError, match="packet size is too small"):
        send.PacketGenerator(heap_with(item(np.zeros(100), (100,), "u1")), 1, size)


@pytest.mark.parametrize("size", [-1, 2**64, 1.5, "1472", None])
def test_packet_size_of_wrong_type_is_a_type_error(size: Any) -> None:
    with pytest.raises(TypeError):
        send.PacketGenerator(send.Heap(), 1, size)


@pytest.mark.parametrize("cnt", [-1, 2**64, 1.5, "1", None])
def test_heap_identifier_of_wrong_type_is_a_type_error(cnt: Any) -> None:
    with pytest.raises(TypeError):
        send.PacketGenerator(send.Heap(), cnt, 1472)


@pytest.mark.ours
def test_packet_size_takes_no_memory_that_is_not_needed() -> None:
    assert len(packets_of(send.Heap(), 2**64 - 1)) == 1


# References


def test_reference_has_documented_defaults() -> None:
    heap = send.Heap()
    reference = send.HeapReference(heap)
    assert reference.heap is heap
    assert (reference.cnt, reference.substream_index, reference.rate) == (-1, 0, -1.0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cnt", 5),
        ("cnt", 2**63 - 1),
        ("cnt", -(2**63)),
        ("substream_index", 3),
        ("rate", 0),
        ("rate", 1.5e9),
    ],
)
def test_option_of_a_reference_is_taken(name: str, value: Any) -> None:
    assert getattr(send.HeapReference(send.Heap(), **{name: value}), name) == value
    reference = send.HeapReference(send.Heap())
    setattr(reference, name, value)
    assert getattr(reference, name) == value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("cnt", value) for value in (2**63, -(2**63) - 1, 1.5, "1", None)],
        *[("substream_index", value) for value in (-1, 2**64, 1.5, None)],
        *[("rate", value) for value in ("1", None)],
    ],
)
def test_option_of_a_reference_of_wrong_type_is_a_type_error(name: str, value: Any) -> None:
    with pytest.raises(TypeError):
        send.HeapReference(send.Heap(), **{name: value})
    with pytest.raises(TypeError):
        setattr(send.HeapReference(send.Heap()), name, value)


@pytest.mark.ours
@pytest.mark.parametrize("rate", [float("inf"), float("nan")])
def test_rate_of_a_reference_must_be_finite(rate: float) -> None:
    with pytest.raises(ValueError, match="rate must be finite"):
        send.HeapReference(send.Heap(), rate=rate)


def test_options_of_a_reference_are_keywords_only() -> None:
    with pytest.raises(TypeError):
        send.HeapReference(send.Heap(), 5)


@pytest.mark.parametrize("thing", [None, 5, "x"])
def test_reference_is_to_a_heap(thing: Any) -> None:
    with pytest.raises(TypeError):
        send.HeapReference(thing)


@pytest.mark.parametrize(("name", "value"), [("heap", send.Heap()), ("count", 5)])
def test_reference_takes_no_other_attributes(name: str, value: Any) -> None:
    with pytest.raises(AttributeError):
        setattr(send.HeapReference(send.Heap()), name, value)


def references(n: int) -> Any:
    return send.HeapReferenceList([send.HeapReference(send.Heap(), cnt=i) for i in range(n)])


@pytest.mark.parametrize("container", [list, tuple, set])
def test_list_is_made_of_references(container: Callable[[Any], Iterable[Any]]) -> None:
    made = send.HeapReferenceList(container([send.HeapReference(send.Heap()) for _ in range(5)]))
    assert len(made) == 5
    assert made
    assert not send.HeapReferenceList([])


@pytest.mark.parametrize("things", [None, 5, "abc", [None], [send.Heap()]])
def test_list_of_something_else_is_a_type_error(things: Any) -> None:
    with pytest.raises(TypeError):
        send.HeapReferenceList(things)


@pytest.mark.parametrize(
    ("part", "length"),
    [
        (slice(1, 3), 2),
        (slice(None, None, 2), 3),
        (slice(None, None, -1), 5),
        (slice(-2, None), 2),
        (slice(10, 20), 0),
    ],
)
def test_slice_of_a_list_is_a_list(part: slice, length: int) -> None:
    made = references(5)[part]
    assert type(made) is send.HeapReferenceList
    assert len(made) == length


@pytest.mark.parametrize("index", [0, "a", ...])
def test_list_has_slices_only(index: Any) -> None:
    with pytest.raises(TypeError):
        references(5)[index]


@pytest.mark.ours
def test_slice_of_a_list_has_the_right_references() -> None:
    made = references(5)[::-2]
    assert [reference.cnt for reference in made._references] == [4, 2, 0]


@pytest.mark.ours
def test_list_keeps_copies_of_its_references() -> None:
    reference = send.HeapReference(send.Heap(), cnt=1, substream_index=2, rate=3)
    made = send.HeapReferenceList([reference])
    reference.cnt = 5
    (kept,) = made._references
    assert (kept.heap, kept.cnt, kept.substream_index, kept.rate) == (reference.heap, 1, 2, 3)


def test_group_modes_are_an_enumeration() -> None:
    assert issubclass(send.GroupMode, enum.Enum)
    assert {name: mode.value for name, mode in send.GroupMode.__members__.items()} == {
        "ROUND_ROBIN": 0,
        "SERIAL": 1,
    }


# Generators


def group(n: int = 2, **kwargs: Any) -> Any:
    items = send.ItemGroup(**kwargs)
    for i in range(n):
        items.add_item(USER_ID + i, f"n{i}", "d", (10,), "u1", value=np.arange(10))
    return items


def test_first_heap_has_everything_and_the_next_nothing() -> None:
    items = group()
    assert outline(items.get_heap()) == ["D1000", "1000", "D1001", "1001"]
    assert outline(items.get_heap()) == []


def test_value_that_was_set_is_sent_once_more() -> None:
    items = group()
    items.get_heap()
    items["n1"].value = np.zeros(10)
    assert outline(items.get_heap()) == ["1001"]
    assert outline(items.get_heap()) == []


@pytest.mark.parametrize("step", [1, -1])
def test_other_version_counts_as_a_new_value(step: int) -> None:
    items = group()
    items.get_heap()
    items["n1"].value[0] = 7
    assert outline(items.get_heap()) == []
    items["n1"].version += step
    assert outline(items.get_heap()) == ["1001"]


@pytest.mark.parametrize(
    ("descriptors", "data", "first", "second"),
    [
        ("stale", "all", ["D1000", "1000", "D1001", "1001"], ["1000", "1001"]),
        ("all", "stale", ["D1000", "1000", "D1001", "1001"], ["D1000", "D1001"]),
        ("all", "all", ["D1000", "1000", "D1001", "1001"], ["D1000", "1000", "D1001", "1001"]),
        ("none", "all", ["1000", "1001"], ["1000", "1001"]),
        ("all", "none", ["D1000", "D1001"], ["D1000", "D1001"]),
        ("none", "stale", ["1000", "1001"], []),
        ("stale", "none", ["D1000", "D1001"], []),
        ("none", "none", [], []),
    ],
)
def test_descriptors_and_data_are_chosen_apart(
    descriptors: str, data: str, first: list[str], second: list[str]
) -> None:
    items = group()
    assert outline(items.get_heap(descriptors, data)) == first
    assert outline(items.get_heap(descriptors=descriptors, data=data)) == second


def test_what_was_left_out_is_still_stale() -> None:
    items = group(1)
    assert outline(items.get_heap("none", "stale")) == ["1000"]
    assert outline(items.get_heap("stale", "none")) == ["D1000"]
    assert outline(items.get_heap()) == []
    items["n0"].value = np.zeros(10)
    assert outline(items.get_heap(data="none")) == []
    assert outline(items.get_heap()) == ["1000"]


def test_item_without_value_is_only_described() -> None:
    items = group(0)
    items.add_item(USER_ID, "n", "d", (), "u1")
    assert outline(items.get_heap()) == ["D1000"]
    assert outline(items.get_heap(data="all")) == []
    items["n"].value = 1
    assert outline(items.get_heap()) == ["1000"]


def test_added_item_is_described_and_sent() -> None:
    items = group(1)
    items.get_heap()
    items.add_item(USER_ID + 1, "n1", "d", (), "u8", value=5)
    assert outline(items.get_heap()) == ["D1001", "1001"]


@pytest.mark.parametrize("item_id", [USER_ID, USER_ID + 5])
def test_replaced_item_is_described_and_sent(item_id: int) -> None:
    items = group(1)
    for description in ("other", "d"):
        items.get_heap()
        items.add_item(item_id, "n0", description, (10,), "u1", value=np.arange(10))
        assert outline(items.get_heap()) == [f"D{item_id:x}", f"{item_id:x}"]
        assert outline(items.get_heap()) == []


def test_item_added_once_more_keeps_its_descriptor_and_takes_the_value() -> None:
    items = group(1)
    items.get_heap()
    kept = items["n0"]
    items.add_item(USER_ID, "n0", "d", (10,), "u1", value=np.ones(10))
    assert items["n0"] is kept
    assert contents(items.get_heap()) == [(USER_ID, b"\1" * 10)]
    items.add_item(USER_ID, "n0", "d", (10,), "u1")
    assert outline(items.get_heap()) == []


@pytest.mark.parametrize(
    ("frequency", "expected"),
    [
        (None, "D------"),
        (0, "DDDDDDD"),
        (1, "DDDDDDD"),
        (2, "D-D-D-D"),
        (3, "D--D--D"),
        (-1, "DDDDDDD"),
    ],
)
def test_descriptors_are_repeated_at_the_frequency(frequency: int | None, expected: str) -> None:
    items = group(1, descriptor_frequency=frequency)
    heaps = [outline(items.get_heap(data="none")) for _ in expected]
    assert heaps == [["D1000"] if letter == "D" else [] for letter in expected]


def test_frequency_counts_from_the_last_time_a_descriptor_was_sent() -> None:
    items = group(1, descriptor_frequency=3)
    words = []
    for i in range(9):
        if i == 1:
            items.add_item(USER_ID + 1, "n1", "d", (), "u1")
        words.append(" ".join(outline(items.get_heap("all" if i == 5 else "stale", "none"))))
    both = "D1000 D1001"
    assert words == ["D1000", "D1001", "", "D1000", "D1001", both, "", "", both]


def test_frequency_counts_heaps_without_descriptors_but_no_control() -> None:
    items = group(1, descriptor_frequency=3)
    words = []
    for i in range(5):
        items.get_start()
        words.append(outline(items.get_heap("none" if i == 1 else "stale", "none")))
    assert words == [["D1000"], [], [], ["D1000"], []]


@pytest.mark.parametrize("wrong", ["x", "Stale", None, 1, True])
@pytest.mark.parametrize("name", ["descriptors", "data"])
def test_unknown_choice_is_a_value_error_and_nothing_counts_as_sent(name: str, wrong: Any) -> None:
    items = group(1)
    with pytest.raises(ValueError, match=f"{name} must be one of 'stale', 'all', 'none'"):
        items.get_heap(**{name: wrong})
    assert outline(items.get_heap()) == ["D1000", "1000"]


@pytest.mark.ours
def test_item_that_cannot_be_sent_leaves_heap_and_generator_as_they_were() -> None:
    items = group(3, descriptor_frequency=2)
    heap = send.Heap()
    heap.add_start()
    items["n1"].value = np.zeros(5)
    with pytest.raises(ValueError, match="shape"):
        items.add_to_heap(heap)
    assert outline(heap) == [f"ctrl {CTRL_START}"]
    items["n1"].value = np.zeros(10)
    everything = ["D1000", "1000", "D1001", "1001", "D1002", "1002"]
    assert outline(items.add_to_heap(heap)) == [f"ctrl {CTRL_START}", *everything]
    assert outline(items.get_heap()) == []


@pytest.mark.ours
def test_item_taken_back_is_not_looked_at_again() -> None:
    items = group(0)
    array = np.array(5, ">u4")
    items.add_item(USER_ID, "n0", "d", (), ">u4", value=array)
    items.add_item(USER_ID + 1, "n1", "d", (), ">u4", value=[1, 2])
    heap = send.Heap()
    with pytest.raises(ValueError, match="shape"):
        items.add_to_heap(heap, "none")
    heap.add_end()
    array[...] = 7
    assert contents(heap) == [(STREAM_CTRL, CTRL_STOP)]


def test_heap_may_have_items_of_its_own_and_is_returned() -> None:
    heap = send.Heap(sp.Flavour(4, 64, 56))
    heap.add_end()
    items = send.ItemGroup()
    items.add_item(0x50, "n", "d", (), "u1", value=1)
    assert items.add_to_heap(heap, "all", "all") is heap
    assert outline(heap) == [f"ctrl {CTRL_STOP}", "D50", "50"]


@pytest.mark.parametrize("thing", [None, 5])
def test_what_is_no_heap_is_refused(thing: Any) -> None:
    with pytest.raises((TypeError, AttributeError)):
        group().add_to_heap(thing)


def test_start_and_end_have_nothing_else_and_change_nothing() -> None:
    items = group(1, flavour=FLAVOUR)
    assert contents(items.get_start()) == [(STREAM_CTRL, CTRL_START)]
    assert contents(items.get_end()) == [(STREAM_CTRL, CTRL_STOP)]
    assert items.get_end().flavour == FLAVOUR
    assert outline(items.get_heap()) == ["D1000", "1000"]


def test_group_of_the_receiver_can_have_a_generator() -> None:
    items = sp.ItemGroup()
    items.add_item(USER_ID, "n", "d", (), "u1", value=1)
    generator = send.HeapGenerator(items, 2, FLAVOUR)
    assert generator.get_heap().flavour == FLAVOUR
    assert outline(generator.get_heap(data="all")) == ["1000"]
    assert outline(generator.get_heap()) == ["D1000"]


def test_generators_know_nothing_of_each_other() -> None:
    items = group(1)
    other = send.HeapGenerator(items)
    assert outline(items.get_heap()) == outline(other.get_heap()) == ["D1000", "1000"]


def test_arguments_of_a_group_may_be_given_by_position() -> None:
    items = send.ItemGroup(1, FLAVOUR)
    items.add_item(USER_ID, "n", "d", (), "u1")
    assert items.get_heap().flavour == FLAVOUR
    assert outline(items.get_heap()) == ["D1000"]


def test_group_is_a_group_and_a_generator() -> None:
    assert issubclass(send.ItemGroup, sp.ItemGroup)
    assert issubclass(send.ItemGroup, send.HeapGenerator)


@pytest.mark.ours
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None,), "item_group must be an ItemGroup"),
        ((sp.ItemGroup(), "3"), "descriptor_frequency must be a number or None"),
        ((sp.ItemGroup(), None, None), "flavour must be a Flavour"),
    ],
)
def test_generator_refuses_what_it_cannot_use(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        send.HeapGenerator(*arguments)


@pytest.mark.ours
def test_group_is_freed_without_pythons_collector() -> None:
    items = group(1)
    items.get_heap()
    alive = weakref.ref(items["n0"].value)
    gc.disable()
    try:
        del items
        assert alive() is None
    finally:
        gc.enable()


@pytest.mark.ours
def test_generator_forgets_items_that_are_gone() -> None:
    items = group(0)
    for i in range(100):
        items.add_item(USER_ID + i, "n", "d", (10,), "u1", value=np.arange(10))
        items.get_heap()
    assert len(items._sent) <= 3


# There and back


VALUES: list[dict[str, Any]] = [
    {"shape": (), "dtype": "<u4", "value": 5},
    {"shape": (), "dtype": ">f8", "value": 2.5},
    {"shape": (2, 3), "dtype": "<i2", "value": np.arange(6).reshape(2, 3) - 3},
    {"shape": (2, 3), "dtype": ">i2", "order": "F", "value": np.arange(6).reshape(2, 3) - 3},
    {"shape": (2,), "dtype": [("a", "u1"), ("b", "<u4")], "value": [(1, 2), (3, 4)]},
    {"shape": (), "format": [("u", 48)], "value": 2**47 + 5},
    {"shape": (), "format": [("i", 12)], "value": -5},
    {"shape": (3,), "format": [("u", 12)], "value": [1, 2, 4095]},
    {"shape": (None,), "format": [("c", 8)], "value": "hello"},
    {"shape": (None, 2), "format": [("u", 16)], "value": [[1, 2], [3, 4]]},
    {"shape": (2,), "format": [("u", 4), ("f", 32)], "value": [(1, 2.5), (3, 4.5)]},
]


def compare(items: Any, stream: Any, group_of_receiver: Any, packets: list[bytes]) -> None:
    """Receive packets and compare what comes out with what went in."""
    stream.add_buffer_reader(b"".join(packets))
    (heap,) = drain(stream)
    assert set(group_of_receiver.update(heap)) == set(items.keys())
    for item_sent in items.values():
        received = group_of_receiver[item_sent.id]
        for name in ("name", "description", "shape", "dtype", "order", "format"):
            assert getattr(received, name) == getattr(item_sent, name)
        expected = item_sent.value
        if item_sent.dtype is not None:
            expected = np.asarray(expected, item_sent.dtype)
        if isinstance(expected, list) and isinstance(expected[0], tuple):
            assert received.value.tolist() == expected
        else:
            np.testing.assert_array_equal(received.value, expected)


def one_of_each(flavour: Any) -> Any:
    items = send.ItemGroup(flavour=flavour)
    for i, arguments in enumerate(VALUES):
        items.add_item(0x50 + i, f"n{i}", f"d{i}", **arguments)
    return items


@pytest.mark.parametrize("size", [64, 1472])
@pytest.mark.parametrize("bug_compat", [0, 7])
@pytest.mark.parametrize("bits", [40, 48, 56])
def test_receiver_gets_what_was_sent(bits: int, bug_compat: int, size: int) -> None:
    items = one_of_each(sp.Flavour(4, 64, bits, bug_compat))
    packets = packets_of(items.get_heap(), size)
    compare(items, new_stream(bug_compat=bug_compat), sp.ItemGroup(), packets)


@pytest.mark.ours
@pytest.mark.parametrize("bug_compat", [0, 7])
def test_peer_gets_what_was_sent(bug_compat: int) -> None:
    peer = pytest.importorskip("spead2")
    recv = pytest.importorskip("spead2.recv")
    items = one_of_each(sp.Flavour(4, 64, 40, bug_compat))
    stream = recv.Stream(peer.ThreadPool(), recv.StreamConfig(bug_compat=bug_compat))
    stream.add_buffer_reader(b"".join(packets_of(items.get_heap())))
    heap = stream.get()
    received = peer.ItemGroup()
    assert len(received.update(heap)) == len(VALUES)
    for i, arguments in enumerate(VALUES):
        value = received[0x50 + i].value
        np.testing.assert_array_equal(
            value.tolist() if hasattr(value, "tolist") else value,
            np.asarray(arguments["value"], arguments.get("dtype")).tolist()
            if "dtype" in arguments
            else arguments["value"],
        )


# The same bytes as the peer


SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)
NATIVE = st.sampled_from(["u1", "<u2", ">u2", "<i4", ">i8", "<f4", ">f8", "?", "<c8", "u1,<u4"])
FIELDS = st.one_of(
    st.tuples(st.sampled_from("ui"), st.integers(1, 70)),
    st.tuples(st.just("b"), st.integers(1, 20)),
    st.sampled_from([("f", 32), ("f", 64)]),
)


def field_value(field: tuple[str, int]) -> st.SearchStrategy[Any]:
    code, bits = field
    if code == "f":
        return st.floats(width=32, allow_nan=False)
    if code == "b":
        return st.booleans()
    # Negative numbers of whole bytes that are no native type are an OverflowError in spead2.
    low = -(1 << bits - 1) if code == "i" and (bits % 8 or bits in (8, 16, 32, 64)) else 0
    return st.integers(low, (1 << bits - (code == "i")) - 1)


@st.composite
def arguments_of_items(draw: st.DrawFn) -> dict[str, Any]:
    """Return shape, dtype or format, order and value of an item."""
    shape = draw(SHAPES)
    if draw(st.booleans()):
        dtype = np.dtype(draw(NATIVE))
        data = draw(st.binary(min_size=dtype.itemsize, max_size=dtype.itemsize))
        elements = int(np.prod(shape))
        value = np.frombuffer(data * elements, np.uint8)[::-1].copy().view(dtype).reshape(shape)
        if shape and draw(st.booleans()):
            value = np.asfortranarray(value)
        return {
            "shape": shape,
            "dtype": dtype,
            "order": draw(st.sampled_from("CF")),
            "value": value,
        }
    fields = draw(st.lists(FIELDS, min_size=1, max_size=3))
    record = field_value(fields[0]) if len(fields) == 1 else st.tuples(*map(field_value, fields))

    def nested(sizes: tuple[int, ...]) -> Any:
        return draw(record) if not sizes else [nested(sizes[1:]) for _ in range(sizes[0])]

    if 0 in shape:
        shape = (*(size for size in shape if size), 0)
    variable = len(shape) > 0 and draw(st.booleans())
    return {
        "shape": (*shape[:-1], None) if variable else shape,
        "format": fields,
        "value": nested(shape),
    }


def heap_of(package: Any, sender: Any, script: Any) -> Any:
    """Return the heap that a package makes of a drawn script."""
    bits, bug_compat, repeat, steps = script
    heap = sender.Heap(package.Flavour(4, 64, bits, bug_compat))
    heap.repeat_pointers = repeat
    for i, (what, arguments) in enumerate(steps):
        if what == "start":
            heap.add_start()
        elif what == "end":
            heap.add_end()
        else:
            thing = package.Item(0x40 + i, f"n{i}", "d" * i, **arguments)
            if what == "item":
                heap.add_item(thing)
            else:
                heap.add_descriptor(thing)
    return heap


SCRIPTS = st.tuples(
    st.sampled_from([24, 40, 48, 56]),
    st.integers(0, 7),
    st.booleans(),
    st.lists(
        st.tuples(
            st.sampled_from(["item", "item", "item", "descriptor", "start", "end"]),
            arguments_of_items(),
        ),
        max_size=5,
    ),
)


# A packet so short that it has no room for all pointers is padded in front of the data by spead2.
@pytest.mark.ours
@settings(max_examples=200, deadline=None)
@given(SCRIPTS, st.integers(0, 2**24 - 1), st.integers(128, 400))
def test_packets_are_those_of_the_peer(script: Any, cnt: int, size: int) -> None:
    peer = pytest.importorskip("spead2")
    peer_send = pytest.importorskip("spead2.send")
    theirs = heap_of(peer, peer_send, script)
    ours = heap_of(sp, send, script)
    for max_packet_size in (size, ONE_PACKET):
        try:
            expected = list(peer_send.PacketGenerator(theirs, cnt, max_packet_size))
        except ValueError:
            with pytest.raises(ValueError, match="packet size is too small"):
                packets_of(ours, max_packet_size, cnt)
        else:
            assert packets_of(ours, max_packet_size, cnt) == expected


# An item that is replaced when its descriptor was to be sent anyway (by frequency, or because all
# are) is described once more by spead2. So here are stale descriptors only, and no item is replaced
# if there is a frequency.
ACTIONS = st.lists(
    st.one_of(
        st.tuples(
            st.just("heap"),
            st.just("stale"),
            st.sampled_from(["stale", "all", "none"]),
        ),
        st.tuples(
            st.just("add"),
            st.integers(0, 3),
            st.integers(0, 3),
            st.sampled_from([None, 1]),
        ),
        st.tuples(st.just("set"), st.integers(0, 3), st.just(0)),
        st.tuples(st.just("start"), st.just(0), st.just(0)),
    ),
    max_size=20,
)


def history(package: Any, sender: Any, frequency: int | None, actions: Any) -> list[list[bytes]]:
    """Return the packets of each heap that a group makes while things happen to it."""
    items = sender.ItemGroup(frequency, package.Flavour(4, 64, 48))
    heaps = []
    for what, a, b, *more in actions:
        if what == "heap":
            heaps.append(items.get_heap(a, b))
        elif what == "start":
            heaps.append(items.get_start())
        elif what == "add":
            name = f"n{b if frequency is None else a}"
            items.add_item(USER_ID + a, name, "d", (), "u1", value=more[0])
        elif USER_ID + a in items:
            items[USER_ID + a].value = 7
    return [list(sender.PacketGenerator(heap, 1, 1472)) for heap in heaps]


@pytest.mark.ours
@settings(max_examples=200, deadline=None)
@given(st.sampled_from([None, 1, 2, 3]), ACTIONS)
def test_heaps_of_a_group_are_those_of_the_peer(frequency: int | None, actions: Any) -> None:
    peer = pytest.importorskip("spead2")
    peer_send = pytest.importorskip("spead2.send")
    assert history(sp, send, frequency, actions) == history(peer, peer_send, frequency, actions)
