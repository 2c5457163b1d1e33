"""Items and groups of items: heaps in, named values out.

`ItemGroup.update` runs once per heap and is meant to cost a few microseconds. So a descriptor
that came before costs one look-up of its bytes, and an item knows how to decode its values (see
`_values`). Neither a group nor an item is safe to use from several threads at once.
"""

from __future__ import annotations

import logging
import numbers
import operator
from collections.abc import ItemsView, KeysView, Sequence, ValuesView
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from ._descriptor import Descriptor, parse_packets
from ._flavour import Flavour
from ._protocol import STREAM_CTRL_ID, UNRESERVED_ID
from ._values import AddressedDecoder, ImmediateDecoder, encode, make_decoders

if TYPE_CHECKING:
    import numpy.typing as npt

_logger = logging.getLogger("xdpspead")

#: Descriptors whose bytes a group remembers; beyond it, it forgets all and starts again.
MAX_CACHED_DESCRIPTORS: Final = 4096
#: Longest descriptor, in bytes, that a group remembers. Together: 16 MiB at most.
MAX_CACHED_DESCRIPTOR: Final = 4096

# Equal to nothing that a user may give as a byte order.
_NO_ORDER: Final = object()


class Heap(Protocol):
    """What `ItemGroup.update` needs of a heap.

    A heap with ``_contents`` is read through that, any other through ``get_descriptors`` and
    ``get_items``. It returns descriptors as they were sent; the payload; the width of immediate
    values in bytes; and of each item a tuple: identifier, whether it is immediate, immediate value,
    offset and length in the payload.
    """

    @property
    def flavour(self) -> Any: ...
    def get_descriptors(self) -> Sequence[Any]: ...
    def get_items(self) -> Sequence[Any]: ...


class Item(Descriptor):
    """A descriptor with a value.

    Parameters
    ----------
    value : object, optional
        First value; None for none yet. All others are those of `Descriptor`.

    Attributes
    ----------
    version : int
        Grows whenever the value is set. Two equal versions of an item mean an equal value.
    """

    version: int
    _value: Any
    _decoding_order: object
    _addressed: AddressedDecoder
    _immediate: ImmediateDecoder

    def __init__(
        self,
        id: int,
        name: str,
        description: str,
        shape: Sequence[int | None],
        dtype: npt.DTypeLike | None = None,
        order: str = "C",
        format: Sequence[tuple[str, int]] | None = None,
        value: Any = None,
    ) -> None:
        super().__init__(id, name, description, shape, dtype, order, format)
        self._value = value
        self.version = 1
        self._decoding_order = _NO_ORDER

    @property
    def value(self) -> Any:
        """The current value, or None if there has been none.

        Setting it raises the version; None cannot be set. A value that came in a heap is a view
        on the memory of that heap, and keeps it alive.
        """
        return self._value

    @value.setter
    def value(self, new_value: Any) -> None:
        if new_value is None:
            raise ValueError("Item value cannot be set to None")
        self._value = new_value
        self.version += 1

    def _decode_in(self, new_order: str) -> None:
        """Get ready to decode values in a byte order."""
        # Decoders of the item itself would make a cycle, in which the memory of a heap would stay
        # until Python's collector comes by.
        bare = Descriptor(
            self.id, self.name, self.description, self.shape, self.dtype, self.order, self.format
        )
        self._addressed, self._immediate = make_decoders(bare, new_order)
        self._decoding_order = new_order

    def set_from_raw(self, raw_item: Any, new_order: str = "=") -> None:
        """Set the value from an item of a heap.

        Parameters
        ----------
        raw_item : RawItem
            Item as it was sent: a buffer with the attribute ``is_immediate``.
        new_order : str, optional
            Byte order of arrays: ``"="`` (the default) for native, ``"|"`` for as sent, or any
            other that `numpy.dtype.newbyteorder` takes.

        Raises
        ------
        ValueError
            If there are too few bytes, or they are no such value. The value stays as it was.
        """
        if self._decoding_order != new_order:
            self._decode_in(new_order)
        data = np.frombuffer(raw_item, np.uint8)
        if raw_item.is_immediate:
            self.value = self._immediate(int.from_bytes(data.tobytes(), "big"), data.size)
        else:
            self.value = self._addressed(data, 0, data.size)

    def to_buffer(self) -> np.ndarray[Any, Any] | bytes:
        """Return the bytes of the value as they are sent, as an object with the buffer protocol.

        Raises
        ------
        ValueError
            If there is no value, its shape does not fit, or a number does not fit its field.
        """
        return encode(self, self._value)


def _same_descriptor(a: Descriptor, b: Descriptor) -> bool:
    return (
        a.id == b.id
        and a.name == b.name
        and a.description == b.description
        and a.shape == b.shape
        and a.dtype == b.dtype
        and a.order == b.order
        and a.format == b.format
    )


class ItemGroup:
    """Items by name and by identifier, brought up to date by heaps.

    Examples
    --------
    ::

        items = ItemGroup()
        for heap in stream:
            for name, item in items.update(heap).items():
                print(name, item.version, item.value)
    """

    def __init__(self) -> None:
        self._by_id: dict[int, Item] = {}
        self._by_name: dict[str, Item] = {}
        # By the bytes of the descriptor and the flavour's bug compatibility. An entry is good
        # for as long as its item is in the group.
        self._known: dict[tuple[bytes, int], Item] = {}

    def _add(self, item: Item) -> Item:
        """Put an item into the group unless it is there already; return the one that is there."""
        old = self._by_id.get(item.id)
        namesake = self._by_name.get(item.name)
        if old is not None and old is namesake and _same_descriptor(old, item):
            return old
        if old is not None or namesake is not None:
            _logger.info(
                "Descriptor replacement for ID 0x%x, name %s", operator.index(item.id), item.name
            )
        for other in dict.fromkeys(other for other in (old, namesake) if other is not None):
            item.version = max(item.version, other.version + 1)
            del self._by_id[other.id]
            del self._by_name[other.name]
        self._by_id[item.id] = item
        self._by_name[item.name] = item
        return item

    def add_item(
        self,
        id: int | None,
        name: str,
        description: str,
        shape: Sequence[int | None],
        dtype: npt.DTypeLike | None = None,
        order: str = "C",
        format: Sequence[tuple[str, int]] | None = None,
        value: Any = None,
    ) -> Item:
        """Add an item to the group and return it.

        Parameters
        ----------
        id : int or None
            Item identifier; None for the first free one from 0x1000 on. All other parameters
            are those of `Item`.

        Returns
        -------
        Item
            The new item. It replaces those of the same identifier or name, with a version above
            theirs; but if the group has an item with the very same descriptor, then that one
            stays, gets the value if there is one, and the new one is not in the group.

        Raises
        ------
        ValueError, TypeError
            If the arguments describe no item; see `Descriptor`.
        """
        if id is None:
            id = UNRESERVED_ID
            while id in self._by_id:
                id += 1
        item = Item(id, name, description, shape, dtype, order, format, value)
        kept = self._add(item)
        if kept is not item and value is not None:
            kept.value = value
        return item

    def __getitem__(self, key: int | str) -> Item:
        """Return the item with an identifier (an integer) or a name (anything else)."""
        return self._index(key)[key]

    def __contains__(self, key: object) -> bool:
        """Return whether there is an item with an identifier (an integer) or a name."""
        return key in self._index(key)

    def _index(self, key: object) -> dict[Any, Item]:
        """Return the dictionary to look a key up in."""
        return self._by_id if isinstance(key, numbers.Integral) else self._by_name

    def keys(self) -> KeysView[str]:
        """Return a view of the names."""
        return self._by_name.keys()

    def ids(self) -> KeysView[int]:
        """Return a view of the identifiers."""
        return self._by_id.keys()

    def values(self) -> ValuesView[Item]:
        """Return a view of the items."""
        return self._by_name.values()

    def items(self) -> ItemsView[str, Item]:
        """Return a view of pairs of name and item."""
        return self._by_name.items()

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self._by_name)

    def __repr__(self) -> str:
        names = ", ".join(f"0x{item.id:x}: {name!r}" for name, item in self._by_name.items())
        return f"ItemGroup({{{names}}})"

    def update(self, heap: Heap, new_order: str = "=") -> dict[str, Item]:
        """Take over the descriptors and values of a heap.

        A descriptor that differs from that of the item with the same identifier or name replaces
        it: the value is gone, the version goes on. Values of unknown items are logged and
        ignored, as are those of identifiers up to 6.

        Parameters
        ----------
        heap : Heap
            A complete heap.
        new_order : str, optional
            Byte order of arrays: ``"="`` (the default) for native, which copies those that were
            sent in the other one; ``"|"`` for as sent; or any other that
            `numpy.dtype.newbyteorder` takes.

        Returns
        -------
        dict of str to Item
            The items to which the heap brought a value, by name.

        Raises
        ------
        ValueError
            If a descriptor makes no sense, or a value does not fit its descriptor. What came
            before it in the heap has been taken over.
        AttributeError
            If the heap is incomplete, and so has no descriptors.
        """
        ours: Any = heap
        try:
            # Not by getattr(): a method that is called where it is looked up is not made an object.
            contents = ours._contents()
        except AttributeError:
            contents = None
        if contents is None:
            return self._update_from_raw(heap, new_order)
        packets, payload, address_bytes, entries = contents
        if packets:
            self._add_packets(packets, heap.flavour)
        by_id = self._by_id
        updated = {}
        for item_id, immediate, number, offset, length in entries:
            item = by_id.get(item_id)
            if item_id <= STREAM_CTRL_ID or item is None:
                self._ignore(item_id)
                continue
            if item._decoding_order != new_order:
                item._decode_in(new_order)
            if immediate:
                item._value = item._immediate(number, address_bytes)
            else:
                item._value = item._addressed(payload, offset, length)
            # One for the value that was set, as in spead2 another one for the update.
            item.version += 2
            updated[item.name] = item
        return updated

    @staticmethod
    def _ignore(item_id: int) -> None:
        """Say that an item is not known, unless it is none of the application."""
        if item_id > STREAM_CTRL_ID:
            _logger.warning("Item with ID 0x%x received but there is no descriptor", item_id)

    def _add_packets(self, packets: Sequence[Any], flavour: Flavour) -> None:
        """Take over descriptors as they were sent."""
        known = self._known
        by_id = self._by_id
        bug_compat = flavour.bug_compat
        for packet in packets:
            key = (bytes(packet), bug_compat)
            item = known.get(key)
            if item is not None and by_id.get(item.id) is item:
                continue
            for raw in parse_packets((key[0],), bug_compat):
                item = self._add(Item.from_raw(raw, flavour))
                if len(key[0]) <= MAX_CACHED_DESCRIPTOR:
                    if len(known) >= MAX_CACHED_DESCRIPTORS:
                        known.clear()
                    known[key] = item

    def _update_from_raw(self, heap: Heap, new_order: str) -> dict[str, Item]:
        """Do what `update` does, with a heap of any other make."""
        for raw in heap.get_descriptors():
            self._add(Item.from_raw(raw, heap.flavour))
        updated = {}
        for raw_item in heap.get_items():
            item = self._by_id.get(raw_item.id)
            if raw_item.id <= STREAM_CTRL_ID or item is None:
                self._ignore(raw_item.id)
                continue
            item.set_from_raw(raw_item, new_order)
            item.version += 1
            updated[item.name] = item
        return updated


def parse_range_list(ranges: str) -> list[int]:
    """Return the integers that a list of ranges names.

    Parameters
    ----------
    ranges : str
        Numbers and ranges with both ends included, separated by commas: ``"1,3-5"`` gives
        ``[1, 3, 4, 5]``. The empty string gives an empty list, and so does a range that ends
        before it starts.

    Raises
    ------
    ValueError
        If a part is neither a number nor a range.
    """
    if not ranges:
        return []
    numbers_: list[int] = []
    for part in ranges.split(","):
        first, dash, last = part.partition("-")
        low = int(first)
        numbers_.extend(range(low, (int(last) if dash else low) + 1))
    return numbers_
