"""Heaps as they come out of a stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .. import _core
from .._descriptor import RawDescriptor, parse_packets
from .._flavour import Flavour
from .._protocol import DESCRIPTOR_ID
from .._rawitem import RawItem, raw_item

if TYPE_CHECKING:
    from typing_extensions import Buffer

_VERSION = 4
_POINTER_BITS = 64


class _HeapBase(_core.HeapHandle):
    """What all heaps have. The C heap is kept; everything else is made when it is asked for."""

    __slots__ = ()

    @property
    def cnt(self) -> int:
        """Heap identifier."""
        return int(self._c.cnt)

    @property
    def flavour(self) -> Flavour:
        """SPEAD flavour that the heap was encoded with."""
        bug_compat = getattr(self, "_bug_compat", 0)
        return Flavour(_VERSION, _POINTER_BITS, self._c.address_bits, bug_compat)

    def is_start_of_stream(self) -> bool:
        """Return whether the heap has an item that starts the stream."""
        return bool(self._c.flags & _core.HEAP_START)

    def is_end_of_stream(self) -> bool:
        """Return whether the heap has an item that stops the stream."""
        return bool(self._c.flags & _core.HEAP_STOP)

    def _read(
        self,
    ) -> tuple[list[memoryview], Buffer | None, int, list[_core.HeapEntry]]:
        """Return all that is in the heap.

        Returns
        -------
        descriptors : list of memoryview
            As they were sent.
        buffer : buffer or None
            Something with the payload in it.
        start : int
            Where the payload starts, in bytes.
        entries : list of tuple
            All items but descriptors.
        """
        buffer, start, flags, entries = _core.read_heap(self._c)
        if not flags & _core.HEAP_DESCRIPTORS:
            return [], buffer, start, entries
        packets = []
        if buffer is not None:
            view = memoryview(buffer)[start:]
            packets = [
                view[offset : offset + length]
                for item, immediate, _, offset, length in entries
                if item == DESCRIPTOR_ID and not immediate
            ]
        return packets, buffer, start, [entry for entry in entries if entry[0] != DESCRIPTOR_ID]

    def get_items(self) -> list[RawItem]:
        """Return the items, but for descriptors: addressed ones by offset, then immediates.

        Returns
        -------
        list of RawItem
            Each has ``id``, ``is_immediate``, ``immediate_value``, and its bytes as a buffer.
        """
        _, buffer, start, entries = self._read()
        width = self._c.address_bits // 8
        return [
            raw_item(item, bool(immediate), value, buffer, start + offset, length, width)
            for item, immediate, value, offset, length in entries
        ]


class Heap(_HeapBase):
    """A heap of which every byte arrived.

    Its payload is not copied: arrays made from it are views, which keep the payload alive however
    long the heap and the stream are gone. Usually a heap is passed to
    :meth:`xdpspead.ItemGroup.update`.
    """

    __slots__ = ()

    #: For :meth:`xdpspead.ItemGroup.update`, which is not for incomplete heaps.
    _contents = _HeapBase._read

    def get_descriptors(self) -> list[RawDescriptor]:
        """Return the item descriptors in the heap; one that cannot be decoded is logged."""
        return list(parse_packets(self._contents()[0], self.flavour.bug_compat))

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


#: Classes of incomplete heaps and of whole ones.
KINDS: Final = (IncompleteHeap, Heap)
