"""Heaps as they come out of a stream."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import _core
from .._descriptor import RawDescriptor, parse_packets
from .._flavour import Flavour
from .._protocol import DESCRIPTOR_ID
from .._rawitem import RawItem, raw_item

if TYPE_CHECKING:
    from typing_extensions import Buffer

_VERSION = 4
_POINTER_BITS = 64


class _HeapBase:
    """What all heaps have. The C heap is kept; everything else is made when it is asked for."""

    __slots__ = ("__weakref__", "_bug_compat", "_c", "_payload")

    def __init__(self, c: _core.CHeap, bug_compat: int) -> None:
        self._c = c
        self._bug_compat = bug_compat
        self._payload: Buffer | None = None

    @property
    def cnt(self) -> int:
        """Heap identifier."""
        return int(self._c.cnt)

    @property
    def flavour(self) -> Flavour:
        """SPEAD flavour that the heap was encoded with."""
        return Flavour(_VERSION, _POINTER_BITS, self._c.address_bits, self._bug_compat)

    def is_start_of_stream(self) -> bool:
        """Return whether the heap has an item that starts the stream."""
        return bool(self._c.flags & _core.HEAP_START)

    def is_end_of_stream(self) -> bool:
        """Return whether the heap has an item that stops the stream."""
        return bool(self._c.flags & _core.HEAP_STOP)

    def _buffer(self) -> Buffer | None:
        if self._payload is None:
            self._payload = _core.heap_payload(self._c)
        return self._payload

    def _entries(self) -> tuple[Buffer | None, list[tuple[int, bool, int, int, int]]]:
        """Return the payload and (id, immediate, value, offset, length) of all but descriptors."""
        return self._buffer(), [
            (item, bool(immediate), value, offset, length)
            for item, value, offset, length, immediate in _core.heap_items(self._c)
            if item != DESCRIPTOR_ID
        ]

    def get_items(self) -> list[RawItem]:
        """Return the items, but for descriptors: addressed ones by offset, then immediates.

        Returns
        -------
        list of RawItem
            Each has ``id``, ``is_immediate``, ``immediate_value``, and its bytes as a buffer.
        """
        buffer, entries = self._entries()
        width = self._c.address_bits // 8
        return [raw_item(*entry[:3], buffer, *entry[3:], width) for entry in entries]


class Heap(_HeapBase):
    """A heap of which every byte arrived.

    Its payload is not copied: arrays made from it are views, which keep the payload alive however
    long the heap and the stream are gone. Usually a heap is passed to
    :meth:`xdpspead.ItemGroup.update`.
    """

    __slots__ = ()

    def _descriptor_packets(self) -> list[memoryview]:
        found = [
            (offset, length)
            for item, _, offset, length, immediate in _core.heap_items(self._c)
            if item == DESCRIPTOR_ID and not immediate
        ]
        if not found:
            return []
        payload = memoryview(self._buffer())  # type: ignore[arg-type]
        return [payload[offset : offset + length] for offset, length in found]

    def get_descriptors(self) -> list[RawDescriptor]:
        """Return the item descriptors in the heap; one that cannot be decoded is logged."""
        return list(parse_packets(self._descriptor_packets(), self._bug_compat))

    def __repr__(self) -> str:
        return f"<Heap cnt={self.cnt} length={self._c.size} flavour={self.flavour!r}>"


class IncompleteHeap(_HeapBase):
    """A heap of which something is missing. Its payload has been dropped."""

    __slots__ = ()

    @property
    def heap_length(self) -> int:
        """Bytes of payload that the sender announced, -1 if it did not."""
        return int(self._c.length)

    @property
    def received_length(self) -> int:
        """Bytes of payload that arrived."""
        return int(self._c.received)

    @property
    def payload_ranges(self) -> list[tuple[int, int]]:
        """Ranges of payload that arrived: pairs of first byte and byte after the last.

        Empty unless `incomplete_keep_payload_ranges` was set in the :class:`RingStreamConfig`.
        """
        return _core.heap_ranges(self._c)

    def __repr__(self) -> str:
        return (
            f"<IncompleteHeap cnt={self.cnt} received_length={self.received_length} "
            f"heap_length={self.heap_length}>"
        )


def make_heap(c: _core.CHeap, bug_compat: int) -> Heap | IncompleteHeap:
    """Return the right kind of heap for what the core put out."""
    return (Heap if c.flags & _core.HEAP_CONTIGUOUS else IncompleteHeap)(c, bug_compat)
