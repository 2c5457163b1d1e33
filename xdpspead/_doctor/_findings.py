"""What is said about a fact: how bad it is, why, and what mends it."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias, TypeVar

from ._facts import NotKnownError

_F = TypeVar("_F")
#: What makes findings of facts.
Check: TypeAlias = Callable[[_F], Iterable["Finding"]]


class Level(enum.StrEnum):
    """How bad it is."""

    LOSES = "loses"
    COSTS = "costs"
    GOOD = "good"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes
    ----------
    level : Level
        How bad it is.
    what : str
        What was found.
    why : str
        Why that matters; empty if it is good.
    commands : tuple of str
        For a shell, as root: they mend it.
    check, subject : str
        Name of the check, and what it looked at: "machine", or the name of an interface.
    """

    level: Level
    what: str
    why: str = ""
    commands: tuple[str, ...] = ()
    check: str = ""
    subject: str = ""


def good(what: str) -> Finding:
    """Return that something is as it should be."""
    return Finding(Level.GOOD, what)


def costs(what: str, why: str, *commands: str) -> Finding:
    """Return that something costs performance."""
    return Finding(Level.COSTS, what, why, commands)


def loses(what: str, why: str, *commands: str) -> Finding:
    """Return that something will lose packets."""
    return Finding(Level.LOSES, what, why, commands)


def unknown(why: str) -> Finding:
    """Return that something could not be found out."""
    return Finding(Level.UNKNOWN, why)


def judge(facts: _F, checks: Mapping[str, Check[_F]], subject: str) -> Iterator[Finding]:
    """Yield what checks find; one that lacks a fact says so."""
    for name, check in checks.items():
        found: list[Finding] = []
        try:
            found.extend(check(facts))
        except NotKnownError as missing:
            found.append(unknown(missing.fact.why))
        for finding in found:
            yield replace(finding, check=name, subject=subject)
