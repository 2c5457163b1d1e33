"""Buffers full of SPEAD packets, made without either of the packages that are measured.

All heaps are alike but for their id: one item with id ``ITEM_ID`` covers the whole heap, the
special items come first in each packet, and each payload opens with the stamp that the packet
generator writes too (see generate.h).
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

ITEM_ID = 0x1000
STAMP_SIZE = 8
TIMESTAMP_SIZE = 8
_HEADER = struct.pack(">BBBBH", 0x53, 4, 2, 6, 0)
_HEAP_CNT, _HEAP_LENGTH, _PAYLOAD_OFFSET, _PAYLOAD_LENGTH = 1, 2, 3, 4
_CNT_AT = 8  # of the heap cnt's item pointer in a packet


class Traffic(NamedTuple):
    """Packets back to back in memory.

    Attributes
    ----------
    buffer
        The packets, as bytes.
    n_heaps
        How many heaps there are.
    heap_stride
        Bytes from one heap to the next.
    payload_at
        Where the payload of each packet of a heap starts, in bytes from the start of the heap.
    """

    buffer: npt.NDArray[np.uint8]
    n_heaps: int
    heap_stride: int
    payload_at: npt.NDArray[np.uint32]


def immediate(item_id: int, value: int) -> bytes:
    """Return a SPEAD-64-48 item pointer that holds *value*."""
    return struct.pack(">Q", 1 << 63 | item_id << 48 | value)


def make(payload: int, packets_per_heap: int, n_heaps: int, first_heap: int = 1) -> Traffic:
    """Return *n_heaps* heaps with ids from *first_heap*, of packets with *payload* bytes each."""
    parts: list[bytes] = []
    payload_at = []
    size = 0
    for index in range(packets_per_heap):
        pointers = [
            immediate(_HEAP_CNT, 0),
            immediate(_HEAP_LENGTH, payload * packets_per_heap),
            immediate(_PAYLOAD_OFFSET, index * payload),
            immediate(_PAYLOAD_LENGTH, payload),
        ]
        if index == 0:
            pointers.append(struct.pack(">Q", ITEM_ID << 48))
        header = _HEADER + struct.pack(">H", len(pointers)) + b"".join(pointers)
        parts += [header, expected_packet(0, index, payload).tobytes()]
        payload_at.append(size + len(header))
        size += len(header) + payload
    buffer = np.tile(np.frombuffer(b"".join(parts), np.uint8), n_heaps)
    _number_heaps(buffer.reshape(n_heaps, size), payload, payload_at, first_heap)
    return Traffic(buffer, n_heaps, size, np.array(payload_at, np.uint32))


def interleave(traffic: Traffic, payload: int, n: int) -> npt.NDArray[np.uint8]:
    """Return the packets of *n* heaps at a time in turns, instead of heap by heap."""
    heaps = traffic.buffer.reshape(-1, n, traffic.heap_stride)
    mixed = np.empty((len(heaps), n * traffic.heap_stride), np.uint8)
    start = 0
    for at in traffic.payload_at:
        end = int(at) + payload
        mixed[:, n * start : n * end] = heaps[:, :, start:end].reshape(len(heaps), -1)
        start = end
    return mixed.reshape(-1)


def _number_heaps(
    heaps: npt.NDArray[np.uint8], payload: int, payload_at: list[int], first_heap: int
) -> None:
    """Write heap ids and stamps into *heaps*, an array of one row per heap."""
    ids = np.arange(first_heap, first_heap + len(heaps), dtype=np.uint64)
    cnt = (ids | np.uint64(1 << 63 | _HEAP_CNT << 48)).astype(">u8")
    packet_at = 0
    for index, at in enumerate(payload_at):
        stamp = (ids << np.uint64(16) | np.uint64(index)).astype(">u8")
        heaps[:, packet_at + _CNT_AT : packet_at + _CNT_AT + 8] = cnt.view(np.uint8).reshape(-1, 8)
        heaps[:, at : at + STAMP_SIZE] = stamp.view(np.uint8).reshape(-1, 8)
        packet_at = at + payload


def expected_packet(heap_id: int, index: int, payload: int) -> npt.NDArray[np.uint8]:
    """Return the payload of one packet."""
    data = np.arange(payload, dtype=np.uint32).astype(np.uint8)
    stamp = np.frombuffer((heap_id << 16 | index).to_bytes(STAMP_SIZE, "big"), np.uint8)
    data[:STAMP_SIZE] = stamp
    return data


def check_heap(heap: Any, payload: int, packets_per_heap: int, *, timestamp: bool = False) -> str:
    """Compare a received heap with what was sent; return what is wrong, or an empty string.

    With `timestamp` there is a time behind the stamps, which nobody can know.
    """
    items = [item for item in heap.get_items() if item.id == ITEM_ID]
    if len(items) != 1:
        return f"heap {heap.cnt} holds {len(items)} items with id {ITEM_ID:#x}, not 1"
    data = np.array(items[0]).view(np.uint8).reshape(packets_per_heap, payload)
    wanted = np.array([expected_packet(heap.cnt, i, payload) for i in range(packets_per_heap)])
    if timestamp:
        times = slice(STAMP_SIZE, STAMP_SIZE + TIMESTAMP_SIZE)
        data[:, times] = wanted[:, times]
    if not np.array_equal(data, wanted):
        return f"heap {heap.cnt} holds wrong bytes"
    return ""
