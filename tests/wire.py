"""SPEAD packets in plain Python, written from the protocol alone.

The tests use this module as their oracle, so it shares nothing with the package under test: no
constant, no helper, no code. A packet is described field by field, and every field can be given a
wrong value, because half of the tests are about packets that nobody should send.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

NULL = 0x00
HEAP_CNT = 0x01
HEAP_LENGTH = 0x02
PAYLOAD_OFFSET = 0x03
PAYLOAD_LENGTH = 0x04
DESCRIPTOR = 0x05
STREAM_CTRL = 0x06

DESCRIPTOR_NAME = 0x10
DESCRIPTOR_DESCRIPTION = 0x11
DESCRIPTOR_SHAPE = 0x12
DESCRIPTOR_FORMAT = 0x13
DESCRIPTOR_ID = 0x14
DESCRIPTOR_DTYPE = 0x15

CTRL_START = 0
CTRL_REISSUE = 1
CTRL_STOP = 2

#: Heap-address widths of the flavours SPEAD-64-8 … SPEAD-64-56.
ADDRESS_BITS = (8, 16, 24, 32, 40, 48, 56)

#: First item id that is free for applications.
USER_ID = 0x1000

BUG_COMPAT_DESCRIPTOR_WIDTHS = 1
BUG_COMPAT_SHAPE_BIT_1 = 2
BUG_COMPAT_SWAP_ENDIAN = 4


@dataclass(frozen=True)
class Pointer:
    """One 64-bit item pointer: an immediate value, or the offset of a value in the heap."""

    id: int
    value: int
    immediate: bool = True

    def encode(self, address_bits: int = 48) -> bytes:
        """Return the eight bytes of the pointer."""
        if not 0 <= self.id < 1 << (63 - address_bits):
            raise ValueError(f"item id {self.id:#x} does not fit SPEAD-64-{address_bits}")
        if not 0 <= self.value < 1 << address_bits:
            raise ValueError(f"value {self.value:#x} does not fit SPEAD-64-{address_bits}")
        word = int(self.immediate) << 63 | self.id << address_bits | self.value
        return struct.pack(">Q", word)


def imm(item_id: int, value: int) -> Pointer:
    """Return an immediate item."""
    return Pointer(item_id, value, True)


def addr(item_id: int, offset: int) -> Pointer:
    """Return an item whose value starts at `offset` of the heap's payload."""
    return Pointer(item_id, offset, False)


STOP = imm(STREAM_CTRL, CTRL_STOP)
START = imm(STREAM_CTRL, CTRL_START)


@dataclass(frozen=True)
class Packet:
    """One SPEAD packet.

    The first group of fields describes a good packet. The second group overrides what
    :meth:`encode` would write, to make a bad one.
    """

    cnt: int | None
    payload: bytes = b""
    offset: int | None = 0
    heap_length: int | None = None
    items: tuple[Pointer, ...] = ()
    address_bits: int = 48

    payload_length: int | None = None  #: claimed length, default the true one
    omit_payload_length: bool = False
    magic: int = 0x53
    version: int = 4
    item_id_bytes: int | None = None  #: the "item identifier width" byte of the header
    address_bytes: int | None = None  #: the "heap address width" byte of the header
    reserved: int = 0
    n_items: int | None = None  #: claimed number of item pointers, default the true one
    tail: bytes = b""  #: bytes after the payload
    items_first: bool = False  #: put `items` before the four special ones

    def pointers(self) -> list[Pointer]:
        """Return every item pointer in wire order."""
        special = []
        if self.cnt is not None:
            special.append(imm(HEAP_CNT, self.cnt))
        if self.heap_length is not None:
            special.append(imm(HEAP_LENGTH, self.heap_length))
        if self.offset is not None:
            special.append(imm(PAYLOAD_OFFSET, self.offset))
        if not self.omit_payload_length:
            length = len(self.payload) if self.payload_length is None else self.payload_length
            special.append(imm(PAYLOAD_LENGTH, length))
        own = list(self.items)
        return own + special if self.items_first else special + own

    def encode(self) -> bytes:
        """Return the packet's bytes."""
        pointers = self.pointers()
        address_bytes = self.address_bits // 8
        header = struct.pack(
            ">BBBBHH",
            self.magic,
            self.version,
            8 - address_bytes if self.item_id_bytes is None else self.item_id_bytes,
            address_bytes if self.address_bytes is None else self.address_bytes,
            self.reserved,
            len(pointers) if self.n_items is None else self.n_items,
        )
        body = b"".join(p.encode(self.address_bits) for p in pointers)
        return header + body + self.payload + self.tail

    def but(self, **changes: object) -> Packet:
        """Return a copy with some fields changed."""
        return replace(self, **changes)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Heap:
    """One heap: its payload, its item pointers and how both are cut into packets."""

    cnt: int
    payload: bytes = b""
    items: tuple[Pointer, ...] = ()
    address_bits: int = 48
    sized: bool = True

    def packets(self, payload_size: int = 1024, *, repeat_items: bool = False) -> list[Packet]:
        """Cut the heap into packets of at most `payload_size` bytes, in order.

        The item pointers ride in the first packet, or in each one with `repeat_items`.
        """
        length = len(self.payload) if self.sized else None
        starts = range(0, len(self.payload), payload_size) if self.payload else range(1)
        return [
            Packet(
                cnt=self.cnt,
                payload=self.payload[start : start + payload_size],
                offset=start,
                heap_length=length,
                items=self.items if start == 0 or repeat_items else (),
                address_bits=self.address_bits,
            )
            for start in starts
        ]


def stop_packet(cnt: int = 99, address_bits: int = 48) -> Packet:
    """Return the one-packet heap that ends a stream."""
    return Packet(cnt=cnt, heap_length=0, items=(STOP,), address_bits=address_bits)


def pattern(cnt: int, length: int) -> bytes:
    """Return `length` bytes that differ from heap to heap and from offset to offset.

    The sequence has no period below 65,521 bytes, so a packet put into the wrong place shows.
    """
    start = (cnt * 7919) % 65521
    words = (start + np.arange(-(-length // 2), dtype=np.int64) * 40503) % 65521
    return words.astype(">u2").tobytes()[:length]


def simple_heap(
    cnt: int, length: int, *, address_bits: int = 48, item_id: int | None = None, sized: bool = True
) -> Heap:
    """Return a heap of one item that covers the whole :func:`pattern` payload."""
    if item_id is None:
        item_id = 0x40 if address_bits > 48 else USER_ID
    return Heap(
        cnt=cnt,
        payload=pattern(cnt, length),
        items=(addr(item_id, 0),),
        address_bits=address_bits,
        sized=sized,
    )


def join(packets: Iterable[Packet | bytes]) -> bytes:
    """Encode packets back to back, as a buffer reader or a TCP stream takes them."""
    return b"".join(p if isinstance(p, bytes) else p.encode() for p in packets)


def describe(
    item_id: int,
    name: bytes,
    description: bytes = b"",
    *,
    shape: Sequence[int | None] = (),
    fmt: Sequence[tuple[str, int]] | None = None,
    numpy_header: bytes | None = None,
    address_bits: int = 48,
    bug_compat: int = 0,
) -> bytes:
    """Return an item descriptor: the SPEAD packet that is the value of a DESCRIPTOR item.

    Parameters
    ----------
    shape
        One size per dimension; None marks the one that varies.
    fmt
        Pairs of a type code (``u i f b c``) and a number of bits.
    numpy_header
        The header dictionary of a ``.npy`` file, as ASCII.
    bug_compat
        Bits 1 (field widths as in SPEAD-64-40) and 2 (variable dimension marked by 2).
    """
    width_bits = 40 if bug_compat & BUG_COMPAT_DESCRIPTOR_WIDTHS else address_bits
    size_bytes = width_bits // 8
    variable = 2 if bug_compat & BUG_COMPAT_SHAPE_BIT_1 else 1
    shape_field = b"".join(
        bytes([variable]) + bytes(size_bytes)
        if size is None
        else b"\0" + size.to_bytes(size_bytes, "big")
        for size in shape
    )
    bits_bytes = (64 - width_bits) // 8
    format_field = b"".join(
        code.encode("ascii") + bits.to_bytes(bits_bytes, "big") for code, bits in fmt or ()
    )
    fields = [(DESCRIPTOR_NAME, name), (DESCRIPTOR_DESCRIPTION, description)]
    fields.append((DESCRIPTOR_SHAPE, shape_field))
    if fmt is not None:
        fields.append((DESCRIPTOR_FORMAT, format_field))
    if numpy_header is not None:
        fields.append((DESCRIPTOR_DTYPE, numpy_header))
    payload = b""
    pointers = [imm(DESCRIPTOR_ID, item_id)]
    for field_id, value in fields:
        pointers.append(addr(field_id, len(payload)))
        payload += value
    return Packet(
        cnt=1,
        payload=payload,
        heap_length=len(payload),
        items=tuple(pointers),
        address_bits=address_bits,
    ).encode()


def heap_of_values(
    cnt: int,
    values: Sequence[tuple[int, bytes | int]],
    *,
    address_bits: int = 48,
    sized: bool = True,
) -> Heap:
    """Return a heap that carries `values` in order: bytes by address, integers as immediates."""
    payload = b""
    pointers = []
    for item_id, value in values:
        if isinstance(value, int):
            pointers.append(imm(item_id, value))
        else:
            pointers.append(addr(item_id, len(payload)))
            payload += value
    return Heap(cnt, payload, tuple(pointers), address_bits, sized)
