"""One item of a heap as it was sent: its identifier and its bytes."""

from typing import Any

import numpy as np

_UINT8 = np.dtype(np.uint8)


class RawItem(np.ndarray[tuple[int], np.dtype[np.uint8]]):
    """The bytes of one item, shape ``(length,)``, dtype ``uint8``, with what the pointer said.

    It is an array because that is how a Python 3.11 class offers the buffer protocol. An
    addressed item is a writable view on the payload of its heap, and keeps it alive. An
    immediate item owns its bytes: the value, big-endian, as wide as a heap address.

    Attributes
    ----------
    id : int
        Item identifier.
    is_immediate : bool
        Whether the value was sent inside the item pointer.
    immediate_value : int
        That value; 0 for an addressed item.
    """

    id: int
    is_immediate: bool
    immediate_value: int

    def __array_finalize__(self, obj: Any) -> None:
        self.id = getattr(obj, "id", 0)
        self.is_immediate = getattr(obj, "is_immediate", False)
        self.immediate_value = getattr(obj, "immediate_value", 0)


def raw_item(
    id: int,
    immediate: bool,
    value: int,
    buffer: Any,
    offset: int,
    length: int,
    address_bytes: int,
) -> RawItem:
    """Return the raw item that an item pointer describes.

    Parameters
    ----------
    id : int
        Item identifier.
    immediate : bool
        Whether `value` is the item, rather than `length` bytes at `offset` of `buffer`.
    value : int
        Value of an immediate item, not negative.
    buffer : buffer or None
        Payload of the heap; not used for an immediate item.
    offset, length : int
        Where in `buffer` an addressed item lies, in bytes.
    address_bytes : int
        Width of an immediate value in bytes.

    Raises
    ------
    OverflowError
        If `value` does not fit `address_bytes`.
    TypeError
        If the item does not lie inside `buffer`.
    """
    item: RawItem
    if immediate:
        data = bytearray(value.to_bytes(address_bytes, "big"))
        item = np.ndarray.__new__(RawItem, (address_bytes,), _UINT8, data)
    else:
        value = 0
        item = np.ndarray.__new__(RawItem, (length,), _UINT8, buffer, offset)
    item.id = id
    item.is_immediate = immediate
    item.immediate_value = value
    return item
