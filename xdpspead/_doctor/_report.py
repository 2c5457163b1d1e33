"""What people and machines read: at most 80 columns, or JSON."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Iterator
from importlib import metadata
from typing import Any, Final

from ._examine import MACHINE, Examination, is_in_use
from ._facts import Interface, Queues, Unknown
from ._findings import Finding, Level
from ._judge_interface import gigabits

#: Of the keys that :func:`as_json` has; it grows when one goes or changes its meaning.
VERSION: Final = 1
_WIDTH: Final = 80
_NAME_WIDTH: Final = 16

_TITLES: Final = {
    Level.LOSES: "Loses packets",
    Level.COSTS: "Costs performance, or may lose packets",
    Level.GOOD: "Good",
}


def exit_status(examination: Examination) -> int:
    """Return 1 if something loses packets, else 0."""
    return int(any(finding.level is Level.LOSES for finding in examination.findings))


# ------------------------------------------------------------------ for people


def as_text(examination: Examination) -> str:
    """Return what was found, as lines for people."""
    return "\n".join(_lines(examination)) + "\n"


def _lines(examination: Examination) -> Iterator[str]:
    machine = examination.machine
    cpus = f"{machine.n_cpus} CPU{'s' * (machine.n_cpus != 1)}"
    nodes = f"{len(machine.nodes)} NUMA node{'s' * (len(machine.nodes) != 1)}"
    yield from _wrap(f"Linux {machine.release}, {cpus}, {nodes}", "", "  ")
    if examination.asked:
        (interface,) = examination.interfaces
        yield from _wrap(f"{interface.name}: {', '.join(_traits(interface))}", "", "  ")
        yield from _groups([*examination.of(interface.name), *examination.of(MACHINE)])
        return
    yield from _groups(examination.of(MACHINE))
    yield ""
    yield "Interfaces"
    for interface in examination.interfaces:
        yield from _wrap(
            f"{interface.name:<{_NAME_WIDTH}}{', '.join(_traits(interface))}; "
            f"{_summary(examination, interface)}",
            "  ",
            " " * (_NAME_WIDTH + 2),
        )


def _traits(interface: Interface) -> Iterator[str]:
    yield interface.driver or interface.kind or "no driver"
    if isinstance(interface.speed, int):
        yield gigabits(interface.speed)
    yield f"MTU {interface.mtu}"
    if isinstance(interface.queues, Queues):
        yield f"{interface.queues.n} queue{'s' * (interface.queues.n != 1)}"


def _summary(examination: Examination, interface: Interface) -> str:
    if not is_in_use(interface):
        if interface.name == "lo":
            return "not looked at"
        return "no link" if interface.up else "switched off"
    found = [finding.level for finding in examination.of(interface.name)]
    return f"{found.count(Level.LOSES)} lose, {found.count(Level.COSTS)} cost"


def _groups(findings: list[Finding]) -> Iterator[str]:
    for level, title in _TITLES.items():
        group = [finding for finding in findings if finding.level is level]
        if group:
            yield ""
            yield title
            for finding in group:
                yield from _entry(finding)
    missing = [finding for finding in findings if finding.level is Level.UNKNOWN]
    if missing:
        yield ""
        yield "Unknown"
        for why in dict.fromkeys(finding.what for finding in missing):
            checks = ", ".join(finding.check for finding in missing if finding.what == why)
            yield from _wrap(f"{checks}: unknown: {why}", "  ", "    ")


def _entry(finding: Finding) -> Iterator[str]:
    margin = " " * (_NAME_WIDTH + 2)
    yield from _wrap(f"{finding.check:<{_NAME_WIDTH}}{finding.what}", "  ", margin)
    if finding.why:
        yield from _wrap(finding.why, margin, margin)
    # Never cut: they are there to be copied.
    yield from (f"      {command}" for command in finding.commands)


def _wrap(text: str, first: str, others: str) -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=first,
        subsequent_indent=others,
        break_long_words=False,
        break_on_hyphens=False,
    )


# ------------------------------------------------------------------ for machines


def as_json(examination: Examination) -> str:
    """Return what was found as a JSON object; ``docs/doctor.md`` has its keys."""
    machine = examination.machine
    report = {
        "version": VERSION,
        "xdpspead": metadata.version("xdpspead"),
        "kernel": machine.release,
        "loses": _count(examination.findings, Level.LOSES),
        "costs": _count(examination.findings, Level.COSTS),
        "interfaces": {
            interface.name: _plain_interface(interface) for interface in examination.interfaces
        },
        "findings": [_plain(finding) for finding in examination.findings],
    }
    return json.dumps(report, indent=2, ensure_ascii=False) + "\n"


def _count(findings: Iterable[Finding], level: Level) -> int:
    return sum(finding.level is level for finding in findings)


def _plain_interface(interface: Interface) -> dict[str, Any]:
    queues = interface.queues
    return {
        "driver": interface.driver,
        "up": interface.up,
        "carrier": interface.carrier,
        "mtu": interface.mtu,
        "speed_mbps": _known(interface.speed),
        "queues": queues.n if isinstance(queues, Queues) else None,
        "numa_node": _known(interface.node),
    }


def _known(fact: int | Unknown | None) -> int | None:
    return fact if isinstance(fact, int) else None


def _plain(finding: Finding) -> dict[str, Any]:
    return {
        "subject": finding.subject,
        "check": finding.check,
        "level": str(finding.level),
        "what": finding.what,
        "why": finding.why,
        "commands": list(finding.commands),
    }
