"""Receive-flow rules that bring the packets of an AF_XDP reader to the queues that it reads.

They are made by a guard, which takes them away again with the reader or when this process ends.
"""

from __future__ import annotations

import dataclasses
import errno
import os
from collections.abc import Sequence
from typing import Final, NoReturn

from .._errors import TransportError, XdpError
from .._flow_rules import (
    LOCATION,
    FlowRule,
    FlowTable,
    check_request,
    delete_request,
    location_of,
    ntuple_is_on,
)
from .._guard import Guard
from ._interface import Interface

_STEP: Final = "steer"

#: What an error number of a driver means here.
_HINTS: Final = {
    errno.EPERM: "it needs CAP_NET_ADMIN",
    errno.ENOSPC: "its table is full; `ethtool -n {name}` shows what is there",
    errno.E2BIG: "its table is full; `ethtool -n {name}` shows what is there",
    errno.EOPNOTSUPP: "it cannot match that",
    errno.EINVAL: "it cannot match that, or not together with the rules that are there",
    errno.EEXIST: "there is one like it already; `ethtool -n {name}` shows what is there",
}


def rules_for(
    endpoints: Sequence[tuple[int, bytes, int, bytes]], queues: Sequence[int]
) -> list[FlowRule]:
    """Return a rule for each endpoint, (version, address, port, source); queues take turns."""
    different = dict.fromkeys(endpoints)
    return [
        FlowRule(version, address, port, queues[i % len(queues)], source)
        for i, (version, address, port, source) in enumerate(different)
    ]


def steer(
    guard: Guard, interface: Interface, rules: Sequence[FlowRule], queues: Sequence[int]
) -> tuple[str, ...]:
    """Have the driver bring packets to queues, until the guard is closed.

    Rules that bring them to one of the queues already are left alone, and left behind.

    Returns
    -------
    tuple of str
        The rule that there is now for each of `rules`, in words of ``ethtool -N``.

    Raises
    ------
    XdpError
        If the driver does not take one; those before it go with the guard.
    """
    return tuple(map(_Steering(guard, interface, rules, queues).obtain, rules))


class _Steering:
    def __init__(
        self, guard: Guard, interface: Interface, rules: Sequence[FlowRule], queues: Sequence[int]
    ) -> None:
        self._guard = guard
        self._interface = interface
        self._rules = rules
        self._queues = queues
        self._table = self._read()

    def _read(self) -> FlowTable:
        name = self._interface.name
        try:
            table = FlowTable.read(name)
            on = ntuple_is_on(name)
        except OSError as error:
            self._refuse(error.errno, f"has no receive-flow rules: {error.strerror}")
        if not on:
            self._refuse(errno.EOPNOTSUPP, "has its receive-flow rules (ntuple-filters) off")
        return table

    def obtain(self, rule: FlowRule) -> str:
        """See that there is a rule, and return it in words."""
        found = self._table.find(rule.match)
        if found is None:
            return f"{rule.words()} loc {self._insert(rule)}"
        location, queue = found
        if queue is None or queue not in self._queues:
            self._conflict(rule, location, queue)
        return f"{dataclasses.replace(rule, queue=queue).words()} loc {location}"

    def _insert(self, rule: FlowRule) -> int:
        location = self._table.free_location()
        if location is None:
            self._refuse_rule(rule, errno.ENOSPC)
        try:
            answer = self._guard.make(
                f"the receive-flow rule {rule.words()!r} of {self._interface.name}",
                "ethtool",
                self._interface.index,
                rule.request(location),
                check_request(),
                delete_request(),
                *LOCATION,
            )
        except TransportError:
            raise
        except OSError as error:
            self._refuse_rule(rule, error.errno)
        location = location_of(answer)
        self._table.rules[location] = (rule.match, rule.queue)
        return location

    def _conflict(self, rule: FlowRule, location: int, queue: int | None) -> NoReturn:
        name = self._interface.name
        where = "elsewhere" if queue is None else f"to queue {queue}"
        raise XdpError(
            errno.EEXIST,
            f"{_STEP}: receive-flow rule {location} of {name} brings the packets of "
            f"{rule.words()!r} {where}, where this reader does not read: read that queue, or "
            f"delete the rule with `ethtool -N {name} delete {location}`",
            _STEP,
        )

    def _refuse_rule(self, rule: FlowRule, number: int | None) -> NoReturn:
        number = number or errno.EIO
        hint = _HINTS.get(number, "").format(name=self._interface.name)
        why = f"{os.strerror(number)}{f' ({hint})' if hint else ''}"
        self._refuse(number, f"does not take the receive-flow rule {rule.words()!r}: {why}")

    def _refuse(self, number: int | None, why: str) -> NoReturn:
        name = self._interface.name
        commands = [f"ethtool -K {name} ntuple on"]
        commands += [f"ethtool -N {name} {rule.words()}" for rule in self._rules]
        raise XdpError(
            number or errno.EIO,
            f"{_STEP}: {name} (driver {self._interface.driver or 'unknown'}) {why}. By hand it "
            f"would be `{' && '.join(commands)}`. Or leave it to the card where packets go, with "
            f"steer='none' and all queues read",
            _STEP,
        )
