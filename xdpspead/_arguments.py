"""Checks of what users pass: counts, flags, overloads, configurations."""

from __future__ import annotations

import copy
import operator
from typing import Any, Self


def count(name: str, value: Any, least: int = 0) -> int:
    """Return `value` as an int of at least `least`, or say what is wrong with it.

    Raises
    ------
    TypeError
        If it is no integer, or negative.
    ValueError
        If it is less than `least`.
    """
    number = operator.index(value)
    if number < 0 or number >= 1 << 64:
        raise TypeError(f"{name} must be from 0 to 2**64 - 1, not {number}")
    if number < least:
        raise ValueError(f"{name} cannot be {number}, it must be at least {least}")
    return number


def flag(name: str, value: Any) -> bool:
    """Return `value` as a bool; strings and containers are no flags.

    Raises
    ------
    TypeError
        If it is neither a bool, a number nor None.
    """
    if value is not None and not hasattr(type(value), "__bool__"):
        raise TypeError(f"{name} must be True or False, not {value!r}")
    return bool(value)


class Config:
    """Attributes that can be given as keywords, each checked when it is set; no others."""

    __slots__ = ()

    def _set(self, values: dict[str, Any]) -> None:
        for name, value in values.items():
            if name.startswith("_") or not isinstance(getattr(type(self), name, None), property):
                raise TypeError(
                    f"{type(self).__name__} got an unexpected keyword argument {name!r}"
                )
            setattr(self, name, value)

    def _properties(self) -> list[str]:
        cls = type(self)
        return [n for n, v in vars(cls).items() if isinstance(v, property) and v.fset is not None]

    def _copy(self) -> Self:
        return copy.copy(self)

    def __repr__(self) -> str:
        told = ", ".join(f"{name}={getattr(self, name)!r}" for name in self._properties())
        return f"{type(self).__name__}({told})"


def bind_arguments(
    names: tuple[str, ...], required: int, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """Sort positional and keyword arguments of an overload into a dictionary."""
    if len(args) > len(names):
        raise TypeError(f"at most {len(names)} positional arguments: {', '.join(names)}")
    bound = dict(zip(names, args, strict=False))
    for name, value in kwargs.items():
        if name not in names:
            raise TypeError(f"unexpected keyword argument {name!r}; known: {', '.join(names)}")
        if name in bound:
            raise TypeError(f"argument {name!r} was given twice")
        bound[name] = value
    missing = [name for name in names[:required] if name not in bound]
    if missing:
        raise TypeError(f"missing arguments: {', '.join(missing)}")
    return bound
