"""Heaps with where and how they are to be sent, and groups of them."""

from __future__ import annotations

import enum
import math
import operator
from collections.abc import Iterable
from typing import Final

from .._arguments import count
from ._config import number
from ._heap import Heap

_CNT_LIMIT: Final = 1 << 63


class GroupMode(enum.Enum):
    """In which order the packets of a group of heaps are sent."""

    ROUND_ROBIN = 0
    """A packet of each heap in turn."""
    SERIAL = 1
    """One heap after the other."""


class HeapReference:
    """A heap with its identifier, destination and rate.

    Parameters
    ----------
    heap : Heap
        What is sent.
    cnt : int
        Identifier of the heap; -1 (the default) for the next of the stream's sequence. What does
        not fit the flavour's address bits is cut off.
    substream_index : int
        Which of the stream's destinations it goes to.
    rate : float
        Rate for this heap in bytes per second, 0 for as fast as possible; negative (the default)
        for that of the stream.

    Raises
    ------
    TypeError
        If an argument has the wrong type, `substream_index` is negative, or `cnt` does not fit 64
        bits.
    ValueError
        If `rate` is infinite or NaN.
    """

    __slots__ = ("_cnt", "_heap", "_rate", "_substream_index")

    def __init__(
        self, heap: Heap, *, cnt: int = -1, substream_index: int = 0, rate: float = -1.0
    ) -> None:
        if not isinstance(heap, Heap):
            raise TypeError(f"heap must be a Heap, not {heap!r}")
        self._heap = heap
        self.cnt = cnt
        self.substream_index = substream_index
        self.rate = rate

    @property
    def heap(self) -> Heap:
        """What is sent."""
        return self._heap

    @property
    def cnt(self) -> int:
        """Identifier of the heap, -1 for the next of the stream's sequence."""
        return self._cnt

    @cnt.setter
    def cnt(self, value: int) -> None:
        cnt = operator.index(value)
        if not -_CNT_LIMIT <= cnt < _CNT_LIMIT:
            raise TypeError(f"cnt must fit 64 bits with a sign, not {value}")
        self._cnt = cnt

    @property
    def substream_index(self) -> int:
        """Which of the stream's destinations it goes to."""
        return self._substream_index

    @substream_index.setter
    def substream_index(self, value: int) -> None:
        self._substream_index = count("substream_index", value)

    @property
    def rate(self) -> float:
        """Bytes per second, 0 for as fast as possible, negative for the stream's rate."""
        return self._rate

    @rate.setter
    def rate(self, value: float) -> None:
        rate = number("rate", value)
        if not math.isfinite(rate):
            raise ValueError(f"rate must be finite, not {value}; 0 is as fast as possible")
        self._rate = rate

    def _copy(self) -> HeapReference:
        copy = HeapReference.__new__(HeapReference)
        copy._heap = self._heap
        copy._cnt = self._cnt
        copy._substream_index = self._substream_index
        copy._rate = self._rate
        return copy

    def __repr__(self) -> str:
        return (
            f"HeapReference({self._heap!r}, cnt={self._cnt}, "
            f"substream_index={self._substream_index}, rate={self._rate})"
        )


class HeapReferenceList:
    """A group of heaps that is sent again and again, checked once.

    Slices of it (with any step) are such lists, too; single references cannot be got out. It has
    copies of the references, so changing those makes no difference; changing their heaps does.

    Parameters
    ----------
    heaps : iterable of HeapReference
        What is sent.

    Raises
    ------
    TypeError
        If it has something else than `HeapReference`.
    """

    __slots__ = ("_references",)

    def __init__(self, heaps: Iterable[HeapReference]) -> None:
        references = tuple(heaps)
        for reference in references:
            if not isinstance(reference, HeapReference):
                raise TypeError(f"a HeapReferenceList is made of HeapReference, not {reference!r}")
        # Nobody else has these, and nobody changes them.
        self._references = tuple(reference._copy() for reference in references)

    def __len__(self) -> int:
        return len(self._references)

    def __getitem__(self, index: slice) -> HeapReferenceList:
        if not isinstance(index, slice):
            raise TypeError(f"a HeapReferenceList has slices only, not [{index!r}]")
        part = HeapReferenceList.__new__(HeapReferenceList)
        part._references = self._references[index]
        return part

    def __repr__(self) -> str:
        return f"<HeapReferenceList of {len(self._references)} heaps>"
