"""From a name to findings: gather, then judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ._facts import Interface, Machine, Softnet
from ._files import ROOT
from ._findings import Finding, judge
from ._interface import gather_interfaces, names
from ._judge_interface import CARD_CHECKS, Case
from ._judge_machine import MACHINE_CHECKS
from ._judge_xdp import XDP_CHECKS
from ._machine import gather_machine, softnet

MACHINE: Final = "machine"
INTERFACE_CHECKS: Final = {**CARD_CHECKS, **XDP_CHECKS}


@dataclass(frozen=True)
class Examination:
    """What was found.

    Attributes
    ----------
    machine : Machine
        What is known of the machine.
    interfaces : tuple of Interface
        Those that were looked at.
    findings : tuple of Finding
        The machine's first, then those of each interface.
    asked : str
        The interface that was asked for; empty for all.
    """

    machine: Machine
    interfaces: tuple[Interface, ...]
    findings: tuple[Finding, ...]
    asked: str = ""

    def of(self, subject: str) -> list[Finding]:
        """Return the findings on the machine or an interface."""
        return [finding for finding in self.findings if finding.subject == subject]


def examine(asked: str = "", root: Path = ROOT) -> Examination:
    """Look at the machine and an interface, or all of them.

    Raises
    ------
    LookupError
        If there is no interface of that name.
    """
    before = softnet(root)
    interfaces = gather_interfaces([asked] if asked else names(), root)
    after = softnet(root)
    dropping = 0
    if isinstance(before, Softnet) and isinstance(after, Softnet):
        dropping = after.dropped - before.dropped
    return conclude(gather_machine(root, dropping), interfaces, asked)


def conclude(machine: Machine, interfaces: Sequence[Interface], asked: str = "") -> Examination:
    """Judge what is known; of interfaces that nobody asked for, those that are in use."""
    findings = list(judge(machine, MACHINE_CHECKS, MACHINE))
    for interface in interfaces:
        if interface.name == asked or is_in_use(interface):
            case = Case(interface, machine)
            findings += judge(case, INTERFACE_CHECKS, interface.name)
    return Examination(machine, tuple(interfaces), tuple(findings), asked)


def is_in_use(interface: Interface) -> bool:
    """Return whether packets of others can come there."""
    return interface.up and interface.carrier and interface.name != "lo"
