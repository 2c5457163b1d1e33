"""The SPEAD flavour: how the 64 bits of an item pointer are divided."""

import operator
from typing import ClassVar, SupportsIndex, overload

from ._protocol import ITEM_POINTER_BITS, VERSION

_INT_MIN, _INT_MAX = -(2**31), 2**31 - 1
_UINT_MAX = 2**32 - 1


def _integer(name: str, value: SupportsIndex, low: int, high: int) -> int:
    """Return `value` as an int, or raise the TypeError that names the argument."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"Flavour: {name} must be an integer, not {type(value).__name__}") from None
    if not low <= number <= high:
        raise TypeError(f"Flavour: {name} must lie in [{low}, {high}], not {number}")
    return number


class Flavour:
    """A SPEAD-64-XX flavour; equal by value, immutable and, as in spead2, not hashable.

    Parameters
    ----------
    version : int
        SPEAD version; only 4 exists.
    item_pointer_bits : int
        Width of an item pointer in bits; only 64 is supported.
    heap_address_bits : int
        Bits of an item pointer that hold an address or an immediate value: a multiple of 8,
        more than 0 and less than `item_pointer_bits`.
    bug_compat : int, optional
        Bitwise or of ``BUG_COMPAT_*`` constants. Other bits are kept but mean nothing.

    Without any argument the flavour is SPEAD-64-40 without bug compatibility.

    Raises
    ------
    TypeError
        If only some of the first three arguments are given, if one is not an integer, or does
        not fit 32 bits (`bug_compat` unsigned, the others signed).
    ValueError
        If a value is not supported.
    """

    __slots__ = ("_bug_compat", "_heap_address_bits")
    __hash__: ClassVar[None]  # type: ignore[assignment]

    _heap_address_bits: int
    _bug_compat: int

    @overload
    def __init__(self) -> None: ...
    @overload
    def __init__(
        self,
        version: SupportsIndex,
        item_pointer_bits: SupportsIndex,
        heap_address_bits: SupportsIndex,
        bug_compat: SupportsIndex = ...,
    ) -> None: ...
    def __init__(
        self,
        version: SupportsIndex | None = None,
        item_pointer_bits: SupportsIndex | None = None,
        heap_address_bits: SupportsIndex | None = None,
        bug_compat: SupportsIndex | None = None,
    ) -> None:
        if version is item_pointer_bits is heap_address_bits is bug_compat is None:
            self._heap_address_bits = 40
            self._bug_compat = 0
            return
        if version is None or item_pointer_bits is None or heap_address_bits is None:
            raise TypeError(
                "Flavour takes either no arguments, or version, item_pointer_bits and "
                "heap_address_bits together"
            )
        if _integer("version", version, _INT_MIN, _INT_MAX) != VERSION:
            raise ValueError("Version is not supported: only 4 is")
        pointer_bits = _integer("item_pointer_bits", item_pointer_bits, _INT_MIN, _INT_MAX)
        if pointer_bits != ITEM_POINTER_BITS:
            raise ValueError("item_pointer_bits not supported: only 64 is")
        address_bits = _integer("heap_address_bits", heap_address_bits, _INT_MIN, _INT_MAX)
        if not 0 < address_bits < ITEM_POINTER_BITS:
            raise ValueError("heap_address_bits out of range: must lie between 8 and 56")
        if address_bits % 8 != 0:
            raise ValueError("heap_address_bits not a multiple of 8")
        self._heap_address_bits = address_bits
        self._bug_compat = (
            0 if bug_compat is None else _integer("bug_compat", bug_compat, 0, _UINT_MAX)
        )

    @property
    def version(self) -> int:
        """SPEAD version, always 4."""
        return VERSION

    @property
    def item_pointer_bits(self) -> int:
        """Width of an item pointer in bits, always 64."""
        return ITEM_POINTER_BITS

    @property
    def heap_address_bits(self) -> int:
        """Bits of an item pointer that hold an address or an immediate value."""
        return self._heap_address_bits

    @property
    def bug_compat(self) -> int:
        """Bitwise or of ``BUG_COMPAT_*`` constants."""
        return self._bug_compat

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Flavour):
            return NotImplemented
        return (
            self._heap_address_bits == other._heap_address_bits
            and self._bug_compat == other._bug_compat
        )

    def __repr__(self) -> str:
        return (
            f"Flavour({VERSION}, {ITEM_POINTER_BITS}, {self._heap_address_bits}, "
            f"bug_compat={self._bug_compat})"
        )
