"""Heaps with what is new in a group of items."""

from __future__ import annotations

from typing import Any, Final

from .. import _items
from .._flavour import Flavour
from ._heap import DEFAULT_FLAVOUR, Heap

_CHOICES: Final = ("stale", "all", "none")


class _Sent:
    """What a receiver knows of an item."""

    __slots__ = ("described", "item", "version")

    def __init__(self, item: Any, version: int | None, described: int | None) -> None:
        self.item = item
        #: Version of the item when its value was last added to a heap; None for never.
        self.version = version
        #: Number of the heap to which its descriptor was last added; None for none.
        self.described = described


class HeapGenerator:
    """Makes heaps of a group of items that tell what receivers do not know yet.

    Parameters
    ----------
    item_group : ItemGroup
        The items. Any may be added, replaced or get a new value between heaps.
    descriptor_frequency : int, optional
        Descriptors are sent again in every `descriptor_frequency`-th heap, so that a receiver
        that missed them can begin. Without, each is sent once.
    flavour : Flavour, optional
        Flavour of the heaps, SPEAD-64-40 unless given.

    Raises
    ------
    TypeError
        If an argument is not what it should be.
    """

    _item_group: Any
    _descriptor_frequency: float | None
    _descriptor_cnt: int
    _flavour: Flavour
    _sent: dict[int, _Sent]

    def __init__(
        self,
        item_group: _items.ItemGroup,
        descriptor_frequency: int | None = None,
        flavour: Flavour = DEFAULT_FLAVOUR,
    ) -> None:
        if not callable(getattr(item_group, "values", None)):
            raise TypeError(f"item_group must be an ItemGroup, not {item_group!r}")
        self._begin(item_group, descriptor_frequency, flavour)

    def _begin(
        self,
        item_group: _items.ItemGroup | None,
        descriptor_frequency: int | None,
        flavour: Flavour,
    ) -> None:
        if descriptor_frequency is not None:
            try:
                descriptor_frequency + 0
            except TypeError:
                raise TypeError(
                    f"descriptor_frequency must be a number or None, not {descriptor_frequency!r}"
                ) from None
        if not isinstance(flavour, Flavour):
            raise TypeError(f"flavour must be a Flavour, not {flavour!r}")
        # None for this object: a reference to itself would keep values until Python's collector
        # comes by.
        self._item_group = item_group
        self._descriptor_frequency = descriptor_frequency
        self._flavour = flavour
        self._sent = {}
        self._descriptor_cnt = 0

    def add_to_heap(self, heap: Heap, descriptors: str = "stale", data: str = "stale") -> Heap:
        """Add items and descriptors to a heap, and return it.

        Parameters
        ----------
        heap : Heap
            The heap, which may have items already.
        descriptors : {"stale", "all", "none"}, optional
            Which descriptors to add. *Stale* are those of items that were added or replaced since,
            and those whose turn it is by `descriptor_frequency`.
        data : {"stale", "all", "none"}, optional
            Which values to add. *Stale* are those that were set since (a change inside of an array
            is not noticed: set the value again, or raise the item's `version`). Items without a
            value are left out.

        Raises
        ------
        ValueError
            If `descriptors` or `data` is none of these, or an item cannot be sent, see
            `Heap.add_item`; then nothing was added, and nothing counts as sent.
        TypeError
            If `heap` is no heap, or an item cannot be sent.
        """
        if descriptors not in _CHOICES:
            raise ValueError(
                f"descriptors must be one of 'stale', 'all', 'none', not {descriptors!r}"
            )
        if data not in _CHOICES:
            raise ValueError(f"data must be one of 'stale', 'all', 'none', not {data!r}")
        if not isinstance(heap, Heap):
            raise TypeError(f"heap must be a Heap, not {heap!r}")
        n_before = len(heap._items)
        try:
            news = self._add_news(heap, descriptors, data)
        except BaseException:
            heap._forget_after(n_before)
            raise
        self._sent.update(news)
        self._descriptor_cnt += 1
        return heap

    def _add_news(self, heap: Heap, descriptors: str, data: str) -> dict[int, _Sent]:
        """Add to a heap, and return what receivers know afterwards of the items added."""
        group: Any = self if self._item_group is None else self._item_group
        sent = self._sent
        heap_number = self._descriptor_cnt
        frequency = self._descriptor_frequency
        # A descriptor that was sent with this heap or an earlier one is due again.
        due = -1 if frequency is None else heap_number - frequency
        items = list(group.values())
        if len(sent) > 2 * len(items):
            self._sent = sent = {item.id: sent[item.id] for item in items if item.id in sent}
        news = {}
        for item in items:
            known = sent.get(item.id)
            version = described = None
            if known is not None and known.item is item:
                version, described = known.version, known.described
            describe = descriptors == "all" or (
                descriptors == "stale" and (described is None or described <= due)
            )
            send = data != "none" and (data == "all" or item.version != version)
            if not describe and not (send and item.value is not None):
                continue
            if describe:
                heap.add_descriptor(item)
                described = heap_number
            if send and item.value is not None:
                version = item.version
                heap.add_item(item)
            news[item.id] = _Sent(item, version, described)
        return news

    def get_heap(self, descriptors: str = "stale", data: str = "stale") -> Heap:
        """Return a new heap with items and descriptors; the parameters are those of `add_to_heap`.

        By default the first heap has everything, and later ones what is new since the one before.
        """
        return self.add_to_heap(Heap(self._flavour), descriptors, data)

    def get_start(self) -> Heap:
        """Return a new heap that says that the stream starts, and has nothing else."""
        heap = Heap(self._flavour)
        heap.add_start()
        return heap

    def get_end(self) -> Heap:
        """Return a new heap that ends the stream at its receivers, and has nothing else."""
        heap = Heap(self._flavour)
        heap.add_end()
        return heap


class ItemGroup(_items.ItemGroup, HeapGenerator):
    """Items by name and by identifier, and the heaps that tell receivers of them.

    Parameters
    ----------
    descriptor_frequency : int, optional
    flavour : Flavour, optional
        Those of `HeapGenerator`.

    Examples
    --------
    ::

        items = ItemGroup()
        items.add_item(0x1000, "samples", "what was measured", (1024,), ">i2")
        for samples in measure():
            items["samples"].value = samples
            stream.send_heap(items.get_heap())
        stream.send_heap(items.get_end())
    """

    def __init__(
        self, descriptor_frequency: int | None = None, flavour: Flavour = DEFAULT_FLAVOUR
    ) -> None:
        _items.ItemGroup.__init__(self)
        self._begin(None, descriptor_frequency, flavour)
