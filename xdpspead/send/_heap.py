"""Heaps that are to be sent, and the packets that they become."""

from __future__ import annotations

import operator
from typing import Any, Final, Protocol, Self

import numpy as np

from .. import _core
from .._arguments import count, flag
from .._flavour import Flavour
from .._protocol import (
    CTRL_STREAM_START,
    CTRL_STREAM_STOP,
    DESCRIPTOR_ID,
    HEAP_CNT_ID,
    PAYLOAD_LENGTH_ID,
    STREAM_CTRL_ID,
)

DEFAULT_FLAVOUR: Final = Flavour()

# Longer than all that a packet has besides the payload of its heap and the heap's own pointers.
_ROOM: Final = 64


class _Sendable(Protocol):
    """What `Heap.add_item` needs of an item."""

    @property
    def id(self) -> int: ...
    @property
    def value(self) -> Any: ...
    def to_buffer(self) -> Any: ...
    def allow_immediate(self) -> bool: ...


class _Describable(Protocol):
    """What `Heap.add_descriptor` needs of a descriptor."""

    def to_raw(self, flavour: Flavour) -> Any: ...


class Heap:
    """What is sent as one: items, descriptors and stream control, in the order of their addition.

    A heap can be sent any number of times. Values are not copied where that can be avoided: an
    array that could be sent as it is (right dtype, contiguous, in the order of its item) is
    referred to, and what it holds when the heap is sent is sent. It must not be changed while the
    heap is being sent. Of a value that had to be converted a copy is sent.

    Parameters
    ----------
    flavour : Flavour, optional
        Flavour of the packets, SPEAD-64-40 unless given.

    Raises
    ------
    TypeError
        If `flavour` is none.
    """

    __slots__ = (
        "__weakref__",
        "_address_bits",
        "_flavour",
        "_items",
        "_made",
        "_repeat_pointers",
        "_watched",
    )

    def __init__(self, flavour: Flavour = DEFAULT_FLAVOUR) -> None:
        if not isinstance(flavour, Flavour):
            raise TypeError(f"flavour must be a Flavour, not {flavour!r}")
        self._flavour = flavour
        self._address_bits = flavour._heap_address_bits
        self._repeat_pointers = False
        # Identifier, and value of an immediate item or memory of an addressed one.
        self._items: list[tuple[int, int | _core.CMemory]] = []
        # Index of each immediate item whose value is in memory of the user's, and that memory.
        self._watched: list[tuple[int, Any]] = []
        self._made: _core.SendHeap | None = None

    @property
    def flavour(self) -> Flavour:
        """Flavour of the packets."""
        return self._flavour

    @property
    def repeat_pointers(self) -> bool:
        """Whether every packet has all item pointers, rather than only the first ones.

        Then a receiver knows the immediate items of a heap from any packet of it. False unless set.
        """
        return self._repeat_pointers

    @repeat_pointers.setter
    def repeat_pointers(self, value: bool) -> None:
        self._repeat_pointers = flag("repeat_pointers", value)
        self._made = None

    def add_item(self, item: _Sendable) -> None:
        """Add the value of an item.

        It goes into the item pointer (is *immediate*) if it is not longer than an address and the
        item allows it, see `Descriptor.allow_immediate`.

        Parameters
        ----------
        item : Item
            An item with a value.

        Raises
        ------
        ValueError
            If the item has no value, the value's shape does not fit, a number does not fit its
            field, or the identifier does not fit the flavour or is one of those that say where a
            packet belongs (1 to 4).
        TypeError
            If it is no item, or its identifier no integer.
        OverflowError
            If a Python integer does not fit a native type.
        """
        bits = self._address_bits
        try:
            item_id = item.id
            data = item.to_buffer()
        except AttributeError:
            if hasattr(item, "id") and hasattr(item, "to_buffer"):
                raise
            raise TypeError(
                f"not an Item: {item!r}; make one with ItemGroup.add_item or Item"
            ) from None
        if type(item_id) is not int:
            item_id = _identifier(item_id)
        if not PAYLOAD_LENGTH_ID < item_id < 1 << (63 - bits):
            self._check_id(item_id)
        if type(data) is bytes:
            n_bytes = len(data)
        elif isinstance(data, np.ndarray):
            n_bytes = data.nbytes
        else:
            n_bytes = _length(item_id, data)
        if n_bytes <= bits >> 3 and item.allow_immediate():
            if type(data) is not bytes:
                # Memory that was made by converting the value will not change.
                if type(data) is not np.ndarray or data.base is not None or data is item.value:
                    self._watched.append((len(self._items), data))
                # Not bytes(data): of a 0-d array of integers that is as many zeros.
                data = memoryview(data).tobytes()
            self._items.append((item_id, int.from_bytes(data, "big")))
        else:
            self._items.append((item_id, _memory(item_id, data)))
        self._made = None

    def _check_id(self, item_id: int) -> None:
        """Raise ValueError unless an item may have this identifier."""
        bits = self._address_bits
        if HEAP_CNT_ID <= item_id <= PAYLOAD_LENGTH_ID:
            raise ValueError(
                f"item identifier 0x{item_id:x} says where a packet belongs, and every packet has "
                "it already; identifiers of applications begin at 0x1000"
            )
        if not 0 <= item_id < 1 << (63 - bits):
            raise ValueError(
                f"item identifier {item_id:#x} does not fit SPEAD-64-{bits}, it must be from 0 to "
                f"{(1 << (63 - bits)) - 1:#x}"
            )

    def add_descriptor(self, descriptor: _Describable) -> None:
        """Add a descriptor (items are descriptors, too), so that receivers know what values mean.

        Parameters
        ----------
        descriptor : Descriptor
            As it is now: later changes are not sent.

        Raises
        ------
        ValueError
            If something of it does not fit the flavour, or a name is not ASCII.
        TypeError
            If it is no descriptor, or its identifier no integer.
        """
        try:
            to_raw = descriptor.to_raw
        except AttributeError:
            raise TypeError(f"not a Descriptor: {descriptor!r}") from None
        packet = to_raw(self._flavour).to_packet(self._flavour)
        self._items.append((DESCRIPTOR_ID, _core.memory(packet)))
        self._made = None

    def add_start(self) -> None:
        """Add the control item that says that a stream starts."""
        self._items.append((STREAM_CTRL_ID, CTRL_STREAM_START))
        self._made = None

    def add_end(self) -> None:
        """Add the control item that ends the stream at its receivers."""
        self._items.append((STREAM_CTRL_ID, CTRL_STREAM_STOP))
        self._made = None

    def _look_again(self) -> None:
        """Take over immediate values that have changed in the user's memory."""
        for i, data in self._watched:
            item_id, before = self._items[i]
            value = int.from_bytes(memoryview(data).tobytes(), "big")
            if value != before:
                self._items[i] = (item_id, value)
                self._made = None

    def _forget_after(self, n_items: int) -> None:
        """Forget all items after the first `n_items`."""
        del self._items[n_items:]
        self._watched = [(i, data) for i, data in self._watched if i < n_items]
        self._made = None

    def _core(self) -> _core.SendHeap:
        """Return the form of this heap that the core knows, made once after each change.

        To be called whenever the heap is sent: immediate values are those of this moment.

        Raises
        ------
        ValueError
            If the values together are too long for the flavour.
        """
        if self._watched:
            self._look_again()
        made = self._made
        if made is None:
            made = _core.SendHeap(self._items, self._address_bits, self._repeat_pointers)
            self._made = made
        return made

    def _payload_length(self) -> int:
        """Return how many bytes the addressed items have together."""
        return sum(len(value) for _, value in self._items if not isinstance(value, int))

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} of SPEAD-64-{self._address_bits}: {len(self._items)} items, "
            f"{self._payload_length()} bytes of payload>"
        )


def _identifier(value: Any) -> int:
    """Return an item identifier as an int."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"an item identifier must be an integer, not {value!r}") from None


def _length(item_id: int, data: Any) -> int:
    """Return the length of a buffer.

    Raises
    ------
    TypeError
        If it is none.
    """
    try:
        return memoryview(data).nbytes
    except TypeError:
        raise TypeError(
            f"to_buffer() of item 0x{item_id:x} returned no bytes, but {type(data).__name__}"
        ) from None


def _memory(item_id: int, data: Any) -> _core.CMemory:
    """Return the bytes of a buffer, where they are.

    Raises
    ------
    ValueError
        If it is not one piece of memory.
    """
    try:
        return _core.memory(data)
    except (ValueError, BufferError) as error:
        raise ValueError(
            f"the bytes of item 0x{item_id:x} are not C-contiguous in memory: {error}"
        ) from None


class PacketGenerator:
    """The packets of a heap, one after the other: an iterator of bytes.

    Parameters
    ----------
    heap : Heap
        The heap, with the items that it has now.
    cnt : int
        Identifier of the heap, from 0 to 2**64 - 1; what does not fit the flavour's address bits
        is cut off.
    max_packet_size : int
        Longest packet, in bytes.

    Raises
    ------
    ValueError
        If `max_packet_size` is too small.
    TypeError
        If an argument has the wrong type, or a number is negative.
    """

    __slots__ = ("_generator",)

    def __init__(self, heap: Heap, cnt: int, max_packet_size: int) -> None:
        if not isinstance(heap, Heap):
            raise TypeError(f"heap must be a Heap, not {heap!r}")
        cnt = count("cnt", cnt) & ((1 << heap._address_bits) - 1)
        size = count("max_packet_size", max_packet_size)
        # There is a buffer of that size, so it is no larger than the heap has a use for.
        whole = _ROOM + 8 * len(heap._items) + heap._payload_length()
        self._generator = _core.PacketGenerator(heap._core(), cnt, min(size, whole))

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        packet = self._generator.next()
        if packet is None:
            raise StopIteration
        return packet
