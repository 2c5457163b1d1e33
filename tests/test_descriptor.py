"""Descriptors mean what the sender meant, and hostile ones are a ValueError."""

from __future__ import annotations

import tracemalloc
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire import (
    DESCRIPTOR_DESCRIPTION,
    DESCRIPTOR_DTYPE,
    DESCRIPTOR_FORMAT,
    DESCRIPTOR_ID,
    DESCRIPTOR_NAME,
    DESCRIPTOR_SHAPE,
    NULL,
    PAYLOAD_OFFSET,
    START,
    STOP,
    USER_ID,
    Packet,
    Pointer,
    addr,
    describe,
    imm,
)

from xdpspead._descriptor import (
    MAX_DIMENSIONS,
    MAX_FORMAT_FIELDS,
    MAX_NUMPY_HEADER,
    Descriptor,
    DescriptorPacketError,
    RawDescriptor,
)
from xdpspead._flavour import Flavour

FLAVOUR = Flavour(4, 64, 48)
SWAPPED = Flavour(4, 64, 48, 4)

#: Memory that parsing a descriptor of a few hundred KiB may take; the claims are far beyond it.
MEMORY_LIMIT = 32 << 20


def header(descr: Any, shape: Any = (), fortran_order: Any = False) -> bytes:
    return repr({"descr": descr, "fortran_order": fortran_order, "shape": shape}).encode()


def raw(**fields: Any) -> RawDescriptor:
    descriptor = RawDescriptor()
    descriptor.id = USER_ID
    descriptor.name = b"x"
    for name, value in fields.items():
        setattr(descriptor, name, value)
    return descriptor


def packet(payload: bytes, *items: Pointer, address_bits: int = 48) -> Packet:
    """Return a descriptor packet of identifier 9 with other items as given."""
    return Packet(
        1,
        payload,
        heap_length=len(payload),
        items=(imm(DESCRIPTOR_ID, 9), *items),
        address_bits=address_bits,
    )


def fields(descriptor: Any) -> tuple[Any, ...]:
    return (
        descriptor.id,
        descriptor.name,
        descriptor.description,
        descriptor.shape,
        descriptor.format,
        descriptor.numpy_header,
    )


@contextmanager
def bounded_memory() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < MEMORY_LIMIT


# Raw descriptors


@pytest.mark.parametrize("address_bits", [8, 40, 48, 56])
def test_packet_of_any_flavour_is_parsed(address_bits: int) -> None:
    data = describe(
        0x50, b"n", b"text", shape=(200, None), fmt=[("u", 7), ("f", 32)], address_bits=address_bits
    )
    assert fields(RawDescriptor.from_packet(data)) == (
        0x50,
        b"n",
        b"text",
        [200, None],
        [("u", 7), ("f", 32)],
        b"",
    )


def test_numpy_header_beats_shape_and_format() -> None:
    data = describe(9, b"n", shape=(5,), fmt=[("u", 8)], numpy_header=header("<u4"))
    assert fields(RawDescriptor.from_packet(data))[3:] == ([], [], header("<u4"))


@pytest.mark.parametrize("view", [bytes, bytearray, memoryview])
def test_any_bytes_like_object_is_taken(view: Any) -> None:
    assert RawDescriptor.from_packet(view(describe(9, b"n"))).name == b"n"


def test_descriptor_widths_bug_has_eight_byte_dimensions_and_four_byte_fields() -> None:
    payload = b"\1" + bytes(7) + b"\0" + (2**50).to_bytes(7, "big") + b"u\0\1\0"
    data = packet(payload, addr(DESCRIPTOR_SHAPE, 0), addr(DESCRIPTOR_FORMAT, 16)).encode()
    parsed = RawDescriptor.from_packet(data, 1)
    assert (parsed.shape, parsed.format) == ([None, 2**50], [("u", 256)])


def test_shape_bit_bug_marks_variable_dimensions_by_bit_value_2() -> None:
    payload = b"\2" + bytes(6) + b"\1" + bytes(5) + b"\7"
    data = packet(payload, addr(DESCRIPTOR_SHAPE, 0)).encode()
    assert RawDescriptor.from_packet(data, 2).shape == [None, 7]
    assert RawDescriptor.from_packet(data, 0).shape == [0, None]


def test_partial_field_at_the_end_is_ignored() -> None:
    data = packet(
        b"\0\0\0\0\0\0\5\0\0u\0\10f", addr(DESCRIPTOR_SHAPE, 0), addr(DESCRIPTOR_FORMAT, 9)
    )
    parsed = RawDescriptor.from_packet(data.encode())
    assert (parsed.shape, parsed.format) == ([5], [("u", 8)])


def test_immediate_field_comes_after_and_beats_an_addressed_one() -> None:
    data = packet(b"abc", imm(DESCRIPTOR_NAME, 0x414243), addr(DESCRIPTOR_NAME, 0)).encode()
    assert RawDescriptor.from_packet(data).name == b"\0\0\0ABC"


def test_null_item_ends_the_one_before_it() -> None:
    data = packet(b"abcdef", addr(DESCRIPTOR_NAME, 0), addr(NULL, 2), addr(0x99, 4)).encode()
    assert RawDescriptor.from_packet(data).name == b"ab"


def test_bytes_behind_the_packet_are_ignored() -> None:
    assert RawDescriptor.from_packet(describe(9, b"n") + b"more").name == b"n"


def test_stream_start_in_a_descriptor_is_harmless() -> None:
    assert RawDescriptor.from_packet(packet(b"", START).encode()).id == 9


GOOD = packet(b"abc", addr(DESCRIPTOR_NAME, 0))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"S",
        GOOD.encode()[:-1],
        GOOD.but(magic=0x54).encode(),
        GOOD.but(version=3).encode(),
        GOOD.but(address_bytes=8, item_id_bytes=0).encode(),
        GOOD.but(address_bytes=0, item_id_bytes=8).encode(),
        GOOD.but(address_bytes=5).encode(),
        GOOD.but(n_items=65535).encode(),
        GOOD.but(cnt=None).encode(),
        GOOD.but(offset=None).encode(),
        GOOD.but(omit_payload_length=True).encode(),
        GOOD.but(payload_length=4).encode(),
        GOOD.but(payload_length=2**48 - 1).encode(),
        GOOD.but(heap_length=4).encode(),
        GOOD.but(heap_length=2).encode(),
        GOOD.but(offset=1, heap_length=4).encode(),
        GOOD.but(offset=1, heap_length=None).encode(),
        GOOD.but(items=(addr(DESCRIPTOR_NAME, 0),)).encode(),
        GOOD.but(items=(imm(DESCRIPTOR_ID, 0),)).encode(),
        GOOD.but(items=(addr(DESCRIPTOR_ID, 0),)).encode(),
        packet(b"abc", STOP).encode(),
        packet(b"abc", addr(DESCRIPTOR_NAME, 4)).encode(),
        packet(b"abc", addr(PAYLOAD_OFFSET, 2**48 - 1)).encode(),
    ],
)
def test_bytes_that_hold_no_descriptor_are_refused(data: bytes) -> None:
    with pytest.raises(DescriptorPacketError, match="descriptor"):
        RawDescriptor.from_packet(data)


def test_a_million_dimensions_are_refused_without_memory() -> None:
    data = packet(bytes(7 * 10**6), addr(DESCRIPTOR_SHAPE, 0)).encode()
    with bounded_memory(), pytest.raises(ValueError, match="1000000 dimensions"):
        RawDescriptor.from_packet(data)


def test_most_dimensions_that_are_allowed_are_parsed() -> None:
    data = packet(bytes(7 * MAX_DIMENSIONS), addr(DESCRIPTOR_SHAPE, 0)).encode()
    assert RawDescriptor.from_packet(data).shape == [0] * MAX_DIMENSIONS


def test_too_many_format_fields_are_refused() -> None:
    data = packet(b"u\0\1" * (MAX_FORMAT_FIELDS + 1), addr(DESCRIPTOR_FORMAT, 0)).encode()
    with pytest.raises(ValueError, match="format fields"):
        RawDescriptor.from_packet(data)


def test_too_long_numpy_header_is_refused() -> None:
    data = packet(b" " * (MAX_NUMPY_HEADER + 1), addr(DESCRIPTOR_DTYPE, 0)).encode()
    with pytest.raises(ValueError, match="numpy header"):
        RawDescriptor.from_packet(data)


@given(st.binary(max_size=200), st.integers(0, 7))
def test_arbitrary_bytes_are_parsed_or_a_value_error(data: bytes, bug_compat: int) -> None:
    with suppress(ValueError):
        RawDescriptor.from_packet(data, bug_compat)


FIELD_IDS = [*range(8), *range(DESCRIPTOR_NAME, DESCRIPTOR_DTYPE + 1), 0x20]


@st.composite
def odd_packets(draw: st.DrawFn) -> bytes:
    """Packets that are nearly descriptors: odd items, offsets, claims, and a few wrong bytes."""
    payload = draw(st.binary(max_size=40))
    near = st.integers(0, len(payload) + 2)
    items = draw(
        st.lists(st.builds(Pointer, st.sampled_from(FIELD_IDS), near, st.booleans()), max_size=7)
    )
    if draw(st.booleans()):
        items.insert(draw(st.integers(0, len(items))), imm(DESCRIPTOR_ID, draw(st.integers(0, 99))))
    data = Packet(
        draw(st.sampled_from([1, 1, 1, None])),
        payload,
        offset=draw(st.sampled_from([0, 0, 0, 1, None])),
        heap_length=draw(st.sampled_from([len(payload), len(payload), None, 3])),
        items=tuple(items),
        address_bits=draw(st.sampled_from([8, 40, 48, 56])),
        items_first=draw(st.booleans()),
        tail=draw(st.sampled_from([b"", b"zz"])),
    ).encode()
    changed = bytearray(data)
    for at in draw(st.lists(st.integers(0, len(data) - 1), max_size=2)):
        changed[at] = draw(st.integers(0, 255))
    return bytes(changed)


@settings(max_examples=60, deadline=None)
@given(st.lists(odd_packets(), min_size=4, max_size=8), st.integers(0, 7))
def test_odd_packets_are_parsed_as_the_peer_parses_them(
    packets: list[bytes], bug_compat: int
) -> None:
    peer = pytest.importorskip("spead2")
    recv = pytest.importorskip("spead2.recv")
    stream = recv.Stream(
        peer.ThreadPool(),
        recv.StreamConfig(bug_compat=bug_compat),
        recv.RingStreamConfig(heaps=len(packets)),
    )
    # One more byte than the packet, in an item of its own, so that none is empty.
    stream.add_buffer_reader(
        b"".join(
            Packet(
                i,
                data + b"z",
                heap_length=len(data) + 1,
                items=(addr(5, 0), addr(USER_ID, len(data))),
            ).encode()
            for i, data in enumerate(packets, 1)
        )
    )
    for data, heap in zip(packets, stream, strict=True):
        try:
            theirs = [fields(descriptor) for descriptor in heap.get_descriptors()]
        except MemoryError:
            continue  # A claim that the peer tries to allocate.
        try:
            ours = [fields(RawDescriptor.from_packet(data, bug_compat))]
        except DescriptorPacketError:
            ours = []
        assert ours == theirs


def test_negative_size_reads_back_as_variable() -> None:
    assert raw(shape=[2, -1]).shape == [2, None]


@pytest.mark.parametrize(
    ("name", "value"), [("shape", ["a"]), ("shape", [1.5]), ("shape", 5), ("format", None)]
)
def test_raw_field_of_wrong_type_is_a_type_error(name: str, value: Any) -> None:
    with pytest.raises(TypeError):
        setattr(RawDescriptor(), name, value)


def test_raw_format_code_must_be_one_character() -> None:
    with pytest.raises(ValueError, match="single character"):
        raw(format=[("cc", 8)])


# Descriptors


def test_numpy_header_is_understood() -> None:
    descriptor = Descriptor.from_raw(raw(numpy_header=header(">u4", (2, 3), True)), FLAVOUR)
    assert descriptor.shape == (2, 3)
    assert descriptor.dtype == np.dtype(">u4")
    assert descriptor.order == "F"
    assert descriptor.format is None
    assert descriptor.itemsize_bits == 32


def test_format_is_understood() -> None:
    descriptor = Descriptor.from_raw(raw(shape=[2, None], format=[("u", 7), ("i", 9)]), FLAVOUR)
    assert descriptor.shape == (2, None)
    assert descriptor.dtype is None
    assert descriptor.format == [("u", 7), ("i", 9)]
    assert descriptor.itemsize_bits == 16


def test_swap_endian_bug_swaps_the_dtype() -> None:
    descr = [("a", "<u4"), ("b", ">f8", (2,))]
    descriptor = Descriptor.from_raw(raw(numpy_header=header(descr)), SWAPPED)
    assert descriptor.dtype == np.dtype([("a", ">u4"), ("b", "<f8", (2,))])


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"()",
        b"5",
        b"[",
        b"{}",
        b"{[]: 1}",
        b"\xff",
        b"{'descr': '<u4', 'fortran_order': False, 'shape': ()}\0",
        b"{'descr': '<u4', 'fortran_order': False}",
        b"{'descr': '<u4', 'fortran_order': False, 'shape': (), 'more': 1}",
        b"{b'descr': '<u4', 'fortran_order': False, 'shape': ()}",
        b"__import__('os').abort()",
        b"f'{1}'",
        b"1+2j",
        b"-" * 60000 + b"1",
        b"1+" * 30000 + b"1",
        b"(" * 60000,
        b"[" * 1000 + b"]" * 1000,
        b"1" * 5000,
        b"'" * 60001,
        b"{'descr': '<u4', 'fortran_order': False, 'shape': (2**3,)}",
        header("<u4", (99999999999999999999999,)).replace(b"(", b"(0x"),
        header("<u4", [2]),
        header("<u4", 2),
        header("<u4", (-1,)),
        header("<u4", (None,)),
        header("<u4", (True,)),
        header("<u4", ("a",)),
        header("<u4", (1,) * (MAX_DIMENSIONS + 1)),
        header("<u4", (), 1),
        header("|O"),
        header("T"),
        header([("x", "O")]),
        header([("x", [("y", "u1"), ("z", "O")])]),
        header({"names": ["a", "b"], "formats": ["O", "u8"], "offsets": [0, 0], "itemsize": 8}),
        header(("<u8", "O")),
        header(("V8", [("x", "O")])),
        header("V0"),
        header([]),
        header(5),
        header(True),
        header(["<u4"]),
        header([("a", "<u4", -1)]),
        header([("a", "<u4"), ("a", "<u4")]),
        header({"names": ["a"], "formats": ["u1"], "offsets": [2**40]}),
        header({"names": ["a"], "formats": ["u1"], "itemsize": 2**70}),
        header("no such type"),
        header("|S99999999999"),
        header("u4," * 5000 + "O"),
    ],
)
def test_hostile_numpy_header_is_a_value_error(text: bytes) -> None:
    descriptor = raw(numpy_header=text)
    with pytest.raises(ValueError):  # noqa: PT011 (any message will do)
        Descriptor.from_raw(descriptor, FLAVOUR)


def test_deeply_nested_numpy_header_is_refused() -> None:
    descr: Any = "u1"
    for _ in range(10):
        descr = [("a", descr)]
    with pytest.raises(ValueError, match="nested deeper than 16"):
        Descriptor.from_raw(raw(numpy_header=header(descr)), FLAVOUR)


def test_too_long_header_in_a_raw_descriptor_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="numpy header"):
        Descriptor.from_raw(raw(numpy_header=b" " * (MAX_NUMPY_HEADER + 1)), FLAVOUR)


LITERALS = st.recursive(
    st.sampled_from(
        ["<u4", ">f8", "S3", "O", "u4,u4", "(2,)u2", "?", "", 0, 1, -1, 2**70, None, True]
    ),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.lists(st.tuples(st.sampled_from(["a", "b"]), inner), max_size=3)
        | st.dictionaries(
            st.sampled_from(["names", "formats", "offsets", "itemsize"]), inner, max_size=4
        )
    ),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(LITERALS)
def test_any_described_dtype_is_plain_or_a_value_error(descr: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            descriptor = Descriptor.from_raw(raw(numpy_header=header(descr)), FLAVOUR)
        except ValueError:
            return
    assert descriptor.dtype is not None
    assert not descriptor.dtype.hasobject
    assert descriptor.dtype.itemsize > 0


@settings(deadline=None)
@given(st.text(alphabet="{}[]()',:-1 \\\"dtuOTrue<|#x\n", max_size=60))
def test_any_header_text_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (any message will do)
        Descriptor.from_raw(raw(numpy_header=b"{" + text.encode()), FLAVOUR)


@pytest.mark.parametrize(
    "field",
    [
        {},
        {"format": [("u", 0)]},
        {"format": [("u", -3)]},
        {"format": [("q", 8)]},
        {"format": [("c", 16)]},
        {"format": [("f", 16)]},
        {"format": [("\xff", 8)]},
        {"format": [("u", 1)] * (MAX_FORMAT_FIELDS + 1)},
        {"format": [("u", 8)], "shape": [None, None]},
        {"format": [("u", 8)], "shape": [1] * (MAX_DIMENSIONS + 1)},
        {"format": [("u", 8)], "name": b"\xff"},
        {"format": [("u", 8)], "description": b"\xff"},
    ],
)
def test_senseless_raw_descriptor_is_a_value_error(field: dict[str, Any]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (any message will do)
        Descriptor.from_raw(raw(**field), FLAVOUR)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shape": ()}, "One of dtype and format"),
        ({"shape": (), "dtype": "u4", "format": [("u", 8)]}, "Only one of"),
        ({"shape": (None,), "dtype": "u4"}, "unknown dimensions"),
        ({"shape": (None, None), "format": [("u", 8)]}, "multiple unknown"),
        ({"shape": (-1,), "dtype": "u4"}, "negative"),
        ({"shape": (), "dtype": "u4", "order": "K"}, "Order"),
        ({"shape": (), "format": [("u", 8)], "order": "F"}, "order must be 'C'"),
        ({"shape": (), "format": []}, "empty format"),
        ({"shape": (), "dtype": "O"}, "reference-counted"),
        ({"shape": (), "dtype": "S0"}, "zero-sized"),
    ],
)
def test_contradictory_arguments_are_a_value_error(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Descriptor(1, "n", "d", **arguments)


@pytest.mark.parametrize("arguments", [{"shape": 5}, {"shape": (2.5,)}, {"dtype": "no such type"}])
def test_argument_of_wrong_type_is_a_type_error(arguments: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        Descriptor(1, "n", "d", **({"shape": (), "dtype": "u4"} | arguments))


@pytest.mark.parametrize(
    ("shape", "max_elements", "expected"),
    [
        ((), 5, ()),
        ((3,), 5, (3,)),
        ((None,), 5, [5]),
        ((None, 2), 5, [2, 2]),
        ((2, None), 1, [2, 0]),
        ((None, 0), 5, [0, 0]),
    ],
)
def test_variable_dimension_takes_what_fits(
    shape: tuple[int | None, ...], max_elements: int, expected: Any
) -> None:
    descriptor = Descriptor(1, "n", "d", shape, format=[("u", 8)])
    assert descriptor.dynamic_shape(max_elements) == expected


def test_compatible_shape_compares_known_dimensions() -> None:
    descriptor = Descriptor(1, "n", "d", (2, None), format=[("u", 8)])
    assert descriptor.compatible_shape((2, 5))
    assert not descriptor.compatible_shape((3, 5))
    assert not descriptor.compatible_shape((2,))


def test_only_fixed_whole_bytes_may_be_immediate() -> None:
    def allowed(shape: tuple[int | None, ...], bits: int) -> bool:
        return Descriptor(1, "n", "d", shape, format=[("u", bits)]).allow_immediate()

    assert allowed((), 48)
    assert allowed((3,), 8)
    assert not allowed((), 7)
    assert not allowed((None,), 8)


ROUND_TRIPS: list[dict[str, Any]] = [
    {"shape": (), "dtype": "<u4"},
    {"shape": (2, 3), "dtype": ">c8", "order": "F"},
    {"shape": (4,), "dtype": [("a", "<u2"), ("b", ">f8", (2,))]},
    {"shape": (np.int64(2),), "dtype": "S3"},
    {"shape": (2, None), "format": [("u", 12)]},
    {"shape": (), "format": [("u", 4), ("f", 32), ("c", 8), ("b", 1)]},
]


@pytest.mark.parametrize("flavour", [FLAVOUR, SWAPPED], ids=["plain", "swapped"])
@pytest.mark.parametrize("arguments", ROUND_TRIPS)
def test_descriptor_survives_the_raw_form(arguments: dict[str, Any], flavour: Flavour) -> None:
    before = Descriptor(1, "name", "text", **arguments)
    after = Descriptor.from_raw(before.to_raw(flavour), flavour)
    assert (after.id, after.name, after.description) == (1, "name", "text")
    assert after.shape == before.shape
    assert after.dtype == before.dtype
    assert after.order == before.order
    assert after.format == before.format


def test_text_that_is_not_ascii_cannot_be_sent() -> None:
    with pytest.raises(UnicodeEncodeError):
        Descriptor(1, "é", "", (), "u4").to_raw(FLAVOUR)


@pytest.mark.parametrize("bug_compat", [0, 4, 7])
@pytest.mark.parametrize("arguments", ROUND_TRIPS[:3] + ROUND_TRIPS[4:])
def test_raw_form_is_that_of_the_peer(arguments: dict[str, Any], bug_compat: int) -> None:
    peer = pytest.importorskip("spead2")
    ours = Descriptor(1, "name", "text", **arguments).to_raw(Flavour(4, 64, 48, bug_compat))
    theirs = peer.Descriptor(1, "name", "text", **arguments).to_raw(
        peer.Flavour(4, 64, 48, bug_compat)
    )
    assert fields(ours) == fields(theirs)


def test_repr_names_what_matters() -> None:
    assert "0x1000, 'n'" in repr(Descriptor(0x1000, "n", "d", (), "u4"))
    assert "0x1000" in repr(raw())


def test_description_field_is_kept() -> None:
    data = packet(b"text", addr(DESCRIPTOR_DESCRIPTION, 0)).encode()
    assert RawDescriptor.from_packet(data).description == b"text"
