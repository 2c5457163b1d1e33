"""A slow, plain receiver: what a stream must make of a sequence of packets.

Written from the protocol and from the documented corners of the API, on lists and dictionaries,
without any of the tricks that make the real one fast. Tests compare outcomes, and a difference
means that one of the two is wrong.

The model covers what happens between the first byte of a buffer and the last heap in the ring. It
knows nothing of threads, sockets, memory allocators or full rings.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import wire


@dataclass(frozen=True)
class Config:
    """The part of the two stream configurations that changes which heaps come out."""

    max_heaps: int = 4
    substreams: int = 1
    stop_on_stop_item: bool = True
    allow_unsized_heaps: bool = True
    allow_out_of_order: bool = False
    contiguous_only: bool = True
    incomplete_keep_payload_ranges: bool = False


@dataclass(frozen=True)
class Item:
    """One item as a heap shows it: `value` is the bytes of its buffer."""

    id: int
    is_immediate: bool
    value: bytes


@dataclass(frozen=True)
class HeapResult:
    """One heap that came out of the ring."""

    cnt: int
    address_bits: int
    complete: bool
    items: tuple[Item, ...]
    start: bool
    end: bool
    heap_length: int | None = None
    received_length: int | None = None
    payload_ranges: tuple[tuple[int, int], ...] | None = None


@dataclass
class Result:
    """All that a stream showed between its start and its end."""

    heaps: list[HeapResult]
    stats: dict[str, int]
    #: Packets refused by the parser, by reason.
    parser: Counter[str] = field(default_factory=Counter)
    #: Packets that were decoded and then refused by their heap, by reason.
    window: Counter[str] = field(default_factory=Counter)


class Reject(Exception):
    """A packet that cannot be decoded; the argument is the reason."""


@dataclass(frozen=True)
class Decoded:
    """A packet that passed the parser."""

    cnt: int
    heap_length: int | None
    offset: int
    payload: bytes
    pointers: tuple[wire.Pointer, ...]
    address_bits: int
    size: int


def decode(data: bytes, *, datagram: bool = True) -> Decoded:
    """Decode the packet at the head of `data`; a datagram must hold nothing else.

    Raises
    ------
    Reject
        With the reason why the packet is unusable.
    """
    if len(data) < 8:
        raise Reject("truncated_header")
    magic, version, id_bytes, address_bytes, _, n_items = struct.unpack_from(">BBBBHH", data)
    if magic != 0x53 or version != 4:
        raise Reject("bad_magic")
    if id_bytes == 0 or address_bytes == 0 or id_bytes + address_bytes != 8:
        raise Reject("bad_flavour")
    head = 8 + 8 * n_items
    if len(data) < head:
        raise Reject("truncated_header")
    bits = address_bytes * 8
    pointers = []
    special: dict[int, int] = {}
    for (word,) in struct.iter_unpack(">Q", data[8:head]):
        immediate = bool(word >> 63)
        item_id = (word & (1 << 63) - 1) >> bits
        value = word & (1 << bits) - 1
        pointers.append(wire.Pointer(item_id, value, immediate))
        if immediate:
            special[item_id] = value
    needed = (wire.HEAP_CNT, wire.PAYLOAD_OFFSET, wire.PAYLOAD_LENGTH)
    if any(item_id not in special for item_id in needed):
        raise Reject("missing_item")
    length = special[wire.PAYLOAD_LENGTH]
    if length > len(data) - head:
        raise Reject("short_packet")
    if datagram and length < len(data) - head:
        raise Reject("long_packet")
    heap_length = special.get(wire.HEAP_LENGTH)
    offset = special[wire.PAYLOAD_OFFSET]
    if heap_length is not None and offset + length > heap_length:
        raise Reject("offset_overflow")
    return Decoded(
        cnt=special[wire.HEAP_CNT],
        heap_length=heap_length,
        offset=offset,
        payload=data[head : head + length],
        pointers=tuple(pointers),
        address_bits=bits,
        size=head + length,
    )


class _LiveHeap:
    def __init__(self, packet: Decoded) -> None:
        self.cnt = packet.cnt
        self.address_bits = packet.address_bits
        self.length: int | None = None
        self.min_length = 0
        self.received = 0
        self.ranges: list[tuple[int, int]] = []
        self.payload = bytearray()
        self.pointers: list[wire.Pointer] = []

    def refusal(self, p: Decoded, out_of_order: bool) -> str | None:
        """Return why the packet cannot join this heap, or None if it can."""
        if p.address_bits != self.address_bits:
            return "flavour_mismatch"
        if p.heap_length is not None:
            if self.length is not None and p.heap_length != self.length:
                return "length_mismatch"
            if p.heap_length < self.min_length:
                return "length_mismatch"
        if not out_of_order:
            if p.offset == self.received:
                return None
            return "gap" if p.offset > self.received else "behind"
        end = p.offset + len(p.payload)
        for first, last in self.ranges:
            if first <= p.offset < last:
                return "duplicate"
            if p.offset < first < end:
                return "overlap"
        return None

    def add(self, p: Decoded) -> None:
        if p.heap_length is not None:
            self.length = p.heap_length
            self.min_length = max(self.min_length, p.heap_length)
        end = p.offset + len(p.payload)
        self.min_length = max(self.min_length, end)
        for pointer in p.pointers:
            if not pointer.immediate:
                self.min_length = max(self.min_length, pointer.value)
            if wire.HEAP_CNT <= pointer.id <= wire.PAYLOAD_LENGTH:
                continue
            if pointer not in self.pointers:
                self.pointers.append(pointer)
        if len(self.payload) < end:
            self.payload.extend(bytes(end - len(self.payload)))
        self.payload[p.offset : end] = p.payload
        self.received += len(p.payload)
        self._note_range(p.offset, end)

    def _note_range(self, first: int, last: int) -> None:
        # Touching ranges merge, also with one of no length.
        keep = []
        for a, b in self.ranges:
            if b == first:
                first = a
            elif a == last:
                last = b
            else:
                keep.append((a, b))
        self.ranges = sorted([*keep, (first, last)])

    @property
    def contiguous(self) -> bool:
        # An item that points past the end keeps min_length beyond reach.
        return self.received == self.min_length

    @property
    def complete(self) -> bool:
        # A packet without a length item may run past a length that is already known.
        return self.received == self.length and self.contiguous

    @property
    def is_stop(self) -> bool:
        return wire.STOP in self.pointers

    def result(self, config: Config) -> HeapResult:
        whole = self.contiguous
        ordered = sorted(self.pointers, key=lambda q: (q.immediate, q.value))
        items = []
        for i, q in enumerate(ordered):
            if q.immediate:
                value = q.value.to_bytes(self.address_bits // 8, "big")
            elif whole:
                follows = [n.value for n in ordered[i + 1 : i + 2] if not n.immediate]
                value = bytes(self.payload[q.value : (follows or [self.received])[0]])
                if not value:
                    continue
            else:
                continue
            if q.id not in (wire.NULL, wire.DESCRIPTOR):
                items.append(Item(q.id, q.immediate, value))
        shown = HeapResult(
            cnt=self.cnt,
            address_bits=self.address_bits,
            complete=whole,
            items=tuple(items),
            start=wire.START in self.pointers,
            end=self.is_stop,
        )
        if whole:
            return shown
        if not config.incomplete_keep_payload_ranges:
            ranges: tuple[tuple[int, int], ...] = ()
        elif config.allow_out_of_order:
            ranges = tuple(self.ranges)
        else:
            ranges = ((0, self.received),) if self.received else ()
        return HeapResult(
            **{**vars(shown)}
            | {
                "heap_length": -1 if self.length is None else self.length,
                "received_length": self.received,
                "payload_ranges": ranges,
            }
        )


class Receiver:
    """Feed packets in, take the :class:`Result` out."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.slots: list[list[_LiveHeap | None]] = [
            [None] * config.max_heaps for _ in range(config.substreams)
        ]
        self.heads = [0] * config.substreams
        self.began: list[list[int]] = [[] for _ in range(config.substreams)]
        self.stopped = False
        names = (
            "heaps incomplete_heaps_evicted incomplete_heaps_flushed packets single_packet_heaps"
        )
        self.result = Result([], dict.fromkeys(names.split(), 0))

    def _emit(self, heap: _LiveHeap) -> None:
        self.result.stats["heaps"] += 1
        if heap.contiguous or not self.config.contiguous_only:
            self.result.heaps.append(heap.result(self.config))

    def _open(self, p: Decoded) -> tuple[_LiveHeap, int]:
        """Take the substream's next slot, throwing out who is there."""
        sub = p.cnt % self.config.substreams
        self.heads[sub] = (self.heads[sub] + 1) % self.config.max_heaps
        slot = self.heads[sub]
        self.began[sub].append(p.cnt)
        old = self.slots[sub][slot]
        if old is not None:
            self.slots[sub][slot] = None
            self.result.stats["incomplete_heaps_evicted"] += 1
            self._emit(old)
        heap = _LiveHeap(p)
        self.slots[sub][slot] = heap
        return heap, slot

    def push(self, p: Decoded) -> None:
        """Take one decoded packet."""
        config, stats = self.config, self.result.stats
        stats["packets"] += 1
        if p.heap_length is None and not config.allow_unsized_heaps:
            self.result.window["unsized"] += 1
            return
        sub = p.cnt % config.substreams
        whole = p.heap_length == len(p.payload)
        slot = -1
        heap = None
        if not whole:
            # Two heaps of one name can be live (a whole one whose item points past its end is
            # kept); the younger one gets the packet.
            for age in range(config.max_heaps):
                slot = (self.heads[sub] - age) % config.max_heaps
                live = self.slots[sub][slot]
                if live is not None and live.cnt == p.cnt:
                    heap = live
                    break
        if heap is None:
            if p.offset != 0 and not config.allow_out_of_order:
                # A heap that has gone out is remembered for as long as it could have lived again.
                lately = self.began[sub][-2 * config.max_heaps :]
                self.result.window["late" if p.cnt in lately else "gap"] += 1
                return
            heap, slot = self._open(p)
            stats["single_packet_heaps"] += whole
        reason = heap.refusal(p, config.allow_out_of_order)
        if reason is not None:
            self.result.window[reason] += 1
            return
        heap.add(p)
        stop = config.stop_on_stop_item and wire.STOP in p.pointers
        if heap.complete:
            self.slots[sub][slot] = None
            if not (config.stop_on_stop_item and heap.is_stop):
                self._emit(heap)
        if stop:
            self.stopped = True

    def flush(self) -> None:
        """End of stream: every live heap comes out, oldest first in each substream."""
        self.stopped = True
        for sub, slots in enumerate(self.slots):
            for i in range(len(slots)):
                slot = (self.heads[sub] + 1 + i) % len(slots)
                heap = slots[slot]
                if heap is not None:
                    slots[slot] = None
                    self.result.stats["incomplete_heaps_flushed"] += 1
                    self._emit(heap)


def receive_buffer(data: bytes, config: Config | None = None) -> Result:
    """Return what a stream with one buffer reader over `data` delivers."""
    receiver = Receiver(config or Config())
    position = 0
    while position < len(data) and not receiver.stopped:
        try:
            packet = decode(data[position:], datagram=False)
        except Reject as reason:
            receiver.result.parser[str(reason)] += 1
            break
        position += packet.size
        receiver.push(packet)
    receiver.flush()
    return receiver.result


def receive_datagrams(
    datagrams: Iterable[bytes], config: Config | None = None, *, end: bool = False
) -> Result:
    """Return what a stream delivers for these datagrams.

    It lives on afterwards, unless one of them stops it or the source has an `end`.
    """
    receiver = Receiver(config or Config())
    for data in datagrams:
        if receiver.stopped:
            break
        if not data:
            receiver.result.parser["empty_datagram"] += 1
            continue
        try:
            receiver.push(decode(data))
        except Reject as reason:
            receiver.result.parser[str(reason)] += 1
    if receiver.stopped or end:
        receiver.flush()
    return receiver.result


def values_of(heap: HeapResult) -> Sequence[tuple[int, bytes]]:
    """Return (item id, bytes) of a heap, a short form for assertions."""
    return [(item.id, item.value) for item in heap.items]
