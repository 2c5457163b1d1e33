"""Heaps as they come out of a stream."""

from __future__ import annotations

from typing import Final, Self

from .. import _core
from .._descriptor import RawDescriptor, parse_packets
from .._flavour import Flavour
from .._native import HeapHandle
from .._rawitem import RawItem, raw_item

_VERSION = 4
_POINTER_BITS = 64


class _HeapBase(HeapHandle):
    """What all heaps have. Nothing is kept but the core's heap; the rest is made when asked for."""

    __slots__ = ()

    @property
    def flavour(self) -> Flavour:
        """SPEAD flavour that the heap was encoded with."""
        return Flavour(_VERSION, _POINTER_BITS, self._address_bits, self._bug_compat)

    def __copy__(self) -> Self:
        return self  # nobody can change it

    def is_start_of_stream(self) -> bool:
        """Return whether the heap has an item that starts the stream."""
        return bool(self._flags & _core.HEAP_START)

    def is_end_of_stream(self) -> bool:
        """Return whether the heap has an item that stops the stream."""
        return bool(self._flags & _core.HEAP_STOP)

    def get_items(self) -> list[RawItem]:
        """Return the items, but for descriptors: addressed ones by offset, then immediates.

        Returns
        -------
        list of RawItem
            Each has ``id``, ``is_immediate``, ``immediate_value``, and its bytes as a buffer.
        """
        _, payload, width, entries = self._read()
        return [
            raw_item(item, immediate, value, payload, offset, length, width)
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
        return f"<Heap cnt={self.cnt} length={self._size} flavour={self.flavour!r}>"


class IncompleteHeap(_HeapBase):
    """A heap of which something is missing. Its payload has been dropped."""

    __slots__ = ()

    @property
    def heap_length(self) -> int:
        """Bytes of payload that the sender announced, -1 if it did not."""
        return self._length

    @property
    def received_length(self) -> int:
        """Bytes of payload that arrived."""
        return self._received

    @property
    def payload_ranges(self) -> list[tuple[int, int]]:
        """Ranges of payload that arrived: pairs of first byte and byte after the last.

        Empty unless `incomplete_keep_payload_ranges` was set in the :class:`RingStreamConfig`.
        """
        return self._ranges

    def __repr__(self) -> str:
        return (
            f"<IncompleteHeap cnt={self.cnt} received_length={self.received_length} "
            f"heap_length={self.heap_length}>"
        )


#: Classes of incomplete heaps and of whole ones.
KINDS: Final = (IncompleteHeap, Heap)
