"""Heaps become the packets that spead2 makes of them, and these hold what was put in.

Random heaps go to both packet generators as the same items: a scalar of 48 bits or fewer is
immediate in both, an array of unknown length has bytes in both. The packets are compared byte for
byte, but for one difference that spead2 has to its own rules: see `zeros_behind`.

``XDPSPEAD_EXAMPLES`` sets the number of heaps for a longer search.
"""

from __future__ import annotations

import functools
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from target import OURS

from xdpspead import _core

pytestmark = pytest.mark.skipif(not OURS, reason="compares with the peer in every test")

try:
    import spead2
    import spead2.recv
    import spead2.send
except ImportError:  # pragma: no cover
    spead2 = None

needs_spead2 = pytest.mark.skipif(spead2 is None, reason="spead2, to compare with, is missing")

EXAMPLES = int(os.environ.get("XDPSPEAD_EXAMPLES", "600"))

search = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="XDPSPEAD_EXAMPLES" not in os.environ,  # the same every time, unless searching
    suppress_health_check=list(HealthCheck),
)

#: Identifier, and value of an immediate item or bytes of an addressed one.
Item = tuple[int, int | bytes]


@dataclass(frozen=True)
class Heap:
    """What both sides make packets of."""

    items: tuple[Item, ...] = ()
    address_bits: int = 48
    repeat_pointers: bool = False
    cnt: int = 1
    max_packet_size: int = 1472

    @functools.cached_property
    def payload(self) -> bytes:
        """The bytes of all addressed items."""
        return b"".join(value for _, value in self.items if isinstance(value, bytes))


# ------------------------------------------------------------------ both packet generators


def our_packets(heap: Heap) -> list[bytes]:
    """Return what our packet generator makes."""
    made = _core.SendHeap(
        [(i, v if isinstance(v, int) else _core.memory(v)) for i, v in heap.items],
        heap.address_bits,
        heap.repeat_pointers,
    )
    generator = _core.PacketGenerator(made, heap.cnt, heap.max_packet_size)
    packets = []
    while (packet := generator.next()) is not None:
        packets.append(packet)
    assert generator.next() is None
    return packets


def their_item(item: Item) -> Any:
    """Return an item that spead2 makes immediate, or addressed, as it is here."""
    item_id, value = item
    if isinstance(value, int):
        bits = max(8, -(-value.bit_length() // 8) * 8)
        return spead2.Item(item_id, "", "", (), format=[("u", bits)], value=value)
    array = np.frombuffer(value, np.uint8)
    return spead2.Item(item_id, "", "", (None,), format=[("u", 8)], value=array)


def their_packets(heap: Heap) -> list[bytes]:
    """Return what spead2's packet generator makes, zeros behind the payload."""
    made = spead2.send.Heap(spead2.Flavour(4, 64, heap.address_bits))
    for item in heap.items:
        made.add_item(their_item(item))
    made.repeat_pointers = heap.repeat_pointers
    packets = spead2.send.PacketGenerator(made, heap.cnt, heap.max_packet_size)
    return [zeros_behind(packet, heap) for packet in packets]


def zeros_behind(packet: bytes, heap: Heap) -> bytes:
    """Move zeros that fill up a heap from before the last bytes of its payload to behind them.

    A heap with many item pointers and little payload is filled up with zeros. Where they share a
    packet with payload, spead2 4.5.1 puts them in front of it, though the item pointers in the same
    packet say the opposite: the value of an item begins with zeros and its end is lost.
    """
    decoded = decode(packet)
    n_payload = len(heap.payload) - decoded.offset
    n_zeros = len(decoded.payload) - n_payload
    if n_payload <= 0 or n_zeros <= 0 or decoded.payload[:n_zeros].strip(b"\0"):
        return packet
    head = packet[: -len(decoded.payload)]
    return head + decoded.payload[n_zeros:] + decoded.payload[:n_zeros]


# ------------------------------------------------------------------ a decoder of its own


@dataclass(frozen=True)
class Decoded:
    """The fields of one packet."""

    cnt: int
    heap_length: int
    offset: int
    pointers: tuple[tuple[bool, int, int], ...]  #: immediate, identifier, value or address
    payload: bytes
    address_bits: int


def decode(packet: bytes) -> Decoded:
    """Take a packet to pieces, and check all that is the same in every packet."""
    magic, version, id_bytes, address_bytes, reserved, n = struct.unpack_from(">BBBBHH", packet)
    assert (magic, version, id_bytes + address_bytes, reserved) == (0x53, 4, 8, 0)
    pointers = []
    for word in struct.unpack_from(f">{n}Q", packet, 8):
        item_id = (word & ((1 << 63) - 1)) >> (8 * address_bytes)
        pointers.append((word >> 63 == 1, item_id, word & ((1 << (8 * address_bytes)) - 1)))
    assert [pointer[:2] for pointer in pointers[:4]] == [(True, item_id) for item_id in range(1, 5)]
    cnt, heap_length, offset, length = (value for _, _, value in pointers[:4])
    payload = packet[8 + 8 * n :]
    assert len(payload) == length
    return Decoded(cnt, heap_length, offset, tuple(pointers[4:]), payload, 8 * address_bytes)


def check_holds(packets: Sequence[bytes], heap: Heap) -> None:
    """What comes out of the packets is what was put in the heap."""
    decoded = [decode(packet) for packet in packets]
    assert {(packet.cnt, packet.address_bits) for packet in decoded} == {
        (heap.cnt % 2**heap.address_bits, heap.address_bits)
    }
    # The payload, with zeros behind it if there was too little.
    assert [packet.offset for packet in decoded] == [
        sum(len(earlier.payload) for earlier in decoded[:i]) for i in range(len(decoded))
    ]
    payload = b"".join(packet.payload for packet in decoded)
    assert {packet.heap_length for packet in decoded} == {len(payload)}
    n_zeros = len(payload) - len(heap.payload)
    assert payload == heap.payload + bytes(n_zeros)
    # The item pointers.
    expected = []
    address = 0
    for item_id, value in heap.items:
        if isinstance(value, int):
            expected.append((True, item_id, value))
        else:
            expected.append((False, item_id, address))
            address += len(value)
    if n_zeros:
        expected.append((False, 0, address))
    if heap.repeat_pointers:
        assert {packet.pointers for packet in decoded} == {tuple(expected)}
    else:
        assert [pointer for packet in decoded for pointer in packet.pointers] == expected
    assert all(len(packet) <= heap.max_packet_size for packet in packets)


# ------------------------------------------------------------------ random heaps


@st.composite
def items_of(draw: st.DrawFn, address_bits: int) -> tuple[Item, ...]:
    ids = st.integers(5, min(0x7FFF, (1 << (63 - address_bits)) - 1))
    # Of full bytes only, as other scalars are not immediate in spead2.
    immediates = st.integers(0, address_bits // 8).flatmap(lambda n: st.integers(0, 256**n - 1))
    lengths = st.one_of(st.integers(0, 20), st.integers(0, 3000))
    arrays = st.builds(
        lambda n, seed: bytes((seed + i) % 255 + 1 for i in range(n)), lengths, st.integers(0, 254)
    )
    kinds = draw(st.sampled_from([(immediates,), (arrays,), (immediates, arrays)]))
    item = st.tuples(ids, st.one_of(*kinds))
    items = draw(st.lists(item, max_size=draw(st.sampled_from([3, 12, 80]))))
    kept: list[Item] = []
    room = (1 << address_bits) - 1
    for item_id, value in items:
        if not isinstance(value, int):
            room -= len(value)
        if room >= 0:
            kept.append((item_id, value))
        else:
            break
    return tuple(kept)


@st.composite
def heaps(draw: st.DrawFn) -> Heap:
    # With 8 bits spead2 also makes packets whose addresses do not fit.
    address_bits = draw(st.sampled_from([16, 24, 32, 40, 48, 56]))
    items = draw(items_of(address_bits))
    about = 48 + 8 * len(items)
    return Heap(
        items=items,
        address_bits=address_bits,
        repeat_pointers=draw(st.booleans()),
        cnt=draw(st.integers(0, (1 << address_bits) - 1)),
        max_packet_size=draw(
            st.one_of(
                st.sampled_from([1472, 9000, 65507]),
                st.integers(0, 200),
                st.integers(about - 20, about + 40),
                st.integers(200, 2000),
            )
        ),
    )


@needs_spead2
@search
@given(heaps())
@example(Heap())
@example(Heap(repeat_pointers=True, max_packet_size=56))
@example(Heap(items=((0x1000, 5), (0x1001, b"\1\2\3")), max_packet_size=56))
def test_packets_are_those_of_spead2(heap: Heap) -> None:
    try:
        theirs = their_packets(heap)
    except ValueError as error:
        with pytest.raises(ValueError, match=str(error)):
            our_packets(heap)
        return
    ours = our_packets(heap)
    assert [decode(packet) for packet in ours] == [decode(packet) for packet in theirs]
    assert ours == theirs
    check_holds(ours, heap)


@needs_spead2
@pytest.mark.parametrize("address_bits", [40, 48])
def test_heap_of_many_packets_is_that_of_spead2(address_bits: int) -> None:
    payload = np.random.default_rng(1).bytes(10_000_000)
    heap = Heap(((0x1000, 7), (0x1001, payload), (0x1002, b"tail")), address_bits, cnt=12345)
    assert our_packets(heap) == their_packets(heap)


@needs_spead2
def test_spead2_receives_what_was_put_in() -> None:
    items = ((0x1000, 5), (0x1001, b"\1\2\3"), (0x1002, 2**48 - 1), (0x1003, bytes(range(100))))
    stream = spead2.recv.Stream(spead2.ThreadPool())
    stream.add_buffer_reader(b"".join(our_packets(Heap(items, max_packet_size=64))))
    (heap,) = list(stream)
    # An immediate comes as its six bytes.
    assert {item.id: bytes(item) for item in heap.get_items()} == {
        item_id: value.to_bytes(6, "big") if isinstance(value, int) else value
        for item_id, value in items
    }


# ------------------------------------------------------------------ where ours are others, or none


def test_zeros_do_not_push_the_payload_away() -> None:
    heap = Heap(((0x1000, b"\1\2\3"), (0x1001, 1), (0x1002, 2)), max_packet_size=56)
    packets = our_packets(heap)
    check_holds(packets, heap)
    assert [decode(packet).payload for packet in packets] == [
        b"\1\2\3\0\0\0\0\0",
        bytes(8),
        bytes(8),
        bytes(1),
    ]


@pytest.mark.parametrize("address_bits", [8, 16, 24, 32, 40, 48, 56])
def test_heap_cnt_is_modulo_the_address_bits(address_bits: int) -> None:
    heap = Heap(address_bits=address_bits, cnt=2**64 - 2)
    assert [decode(packet).cnt for packet in our_packets(heap)] == [2**address_bits - 2]


@pytest.mark.parametrize("n_pointers", [65530, 65531, 65532, 140_000])
def test_more_items_than_a_packet_can_count_are_spread(n_pointers: int) -> None:
    items = tuple((0x1000, i) for i in range(n_pointers))
    heap = Heap(items, max_packet_size=1 << 22)
    packets = our_packets(heap)
    check_holds(packets, heap)
    assert len(packets) == -(-(n_pointers + 1) // 65531)


def test_smallest_flavour_takes_packets_whose_zeros_it_can_address() -> None:
    items = tuple((0x10, i) for i in range(60))
    with pytest.raises(ValueError, match="at least 64"):
        our_packets(Heap(items, address_bits=8, max_packet_size=63))
    heap = Heap(items, address_bits=8, max_packet_size=64)
    check_holds(our_packets(heap), heap)


@pytest.mark.parametrize(
    ("items", "address_bits", "reason"),
    [
        (((0x8000, 1),), 48, "identifier 0x8000 does not fit in the 15 bits"),
        (((0x1000, 1 << 48),), 48, "value 0x1000000000000 does not fit in the 48 bits"),
        (((0x10, bytes(256)),), 8, "longer than the 255 bytes"),
        (((0x10, bytes(200)), (0x10, bytes(56))), 8, "longer than the 255 bytes"),
        (((3, 1),), 48, "tells about the packet itself"),
        ((), 64, "64 address bits"),
        ((), 12, "12 address bits"),
    ],
)
def test_heap_that_no_packet_can_hold_is_refused(
    items: tuple[Item, ...], address_bits: int, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        our_packets(Heap(items, address_bits))


def test_more_items_than_a_packet_can_repeat_are_refused() -> None:
    items = tuple((0x1000, i) for i in range(65531))
    with pytest.raises(ValueError, match="65,531"):
        our_packets(Heap(items, repeat_pointers=True, max_packet_size=1 << 20))
