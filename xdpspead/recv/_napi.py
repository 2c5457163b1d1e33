"""Interrupts that are deferred while readers poll the device themselves.

The kernel serves each receive queue by what it calls a NAPI. Two of its knobs make room for busy
polling: how often it may find nothing to do before the device is to interrupt again
(``napi_defer_hard_irqs``), and after which time the kernel looks for itself if nobody else did
(``gro_flush_timeout``). Since Linux 6.13 each NAPI has its own, set through netlink; before, each
interface has, in sysfs. They outlive the process, so they are set through a guard, which puts them
back.
"""

from __future__ import annotations

import errno
import os
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from .. import _netdev
from .._errors import TransportError
from .._guard import Guard
from .._log import LOGGER
from ._interface import Interface

# From linux/netdev.h.
_NAPI_GET, _NAPI_SET = 11, 14
_ID, _DEFER_HARD_IRQS, _GRO_FLUSH_TIMEOUT = 2, 5, 6

# ------------------------------------------------------------------ the knobs


class Knobs(NamedTuple):
    """The two settings."""

    defer_hard_irqs: int
    gro_flush_timeout_ns: int


#: What DPDK, the kernel's documentation and others recommend. The time has to be longer than the
#: worker takes for what one call brings.
DEFERRED: Final = Knobs(2, 200_000)


class _Napi:
    """The knobs of one NAPI, through netlink."""

    def __init__(self, name: str, number: int) -> None:
        self.what = f"interrupt deferral of NAPI {number} of {name}"
        self._number = number

    def get(self) -> Knobs:
        (answer,) = _netdev.ask(_netdev.request(_NAPI_GET, {_ID: self._number}))
        kinds = (_DEFER_HARD_IRQS, _GRO_FLUSH_TIMEOUT)
        if not answer.keys() >= set(kinds):
            raise OSError(errno.EOPNOTSUPP, "this kernel has no knobs for single NAPIs")
        return Knobs(*(int.from_bytes(answer[kind], sys.byteorder) for kind in kinds))

    def _request(self, knobs: Knobs) -> bytes:
        numbers = dict(zip((_DEFER_HARD_IRQS, _GRO_FLUSH_TIMEOUT), knobs, strict=True))
        return _netdev.request(_NAPI_SET, {_ID: self._number, **numbers})

    def set(self, guard: Guard, old: Knobs, new: Knobs) -> None:
        guard.make(self.what, "netlink", self._request(new), self._request(old))


class _Device:
    """The knobs of all NAPIs of an interface, through sysfs."""

    _FILES: Final = ("napi_defer_hard_irqs", "gro_flush_timeout")

    def __init__(self, name: str, index: int) -> None:
        self.what = f"interrupt deferral of {name}"
        self._folder = Path("/sys/class/net") / name
        # sysfs may have been mounted in another network namespace.
        if int((self._folder / "ifindex").read_text()) != index:
            raise FileNotFoundError(errno.ENOENT, "sysfs is another network namespace's")

    def get(self) -> Knobs:
        return Knobs(*(int((self._folder / file).read_text()) for file in self._FILES))

    def set(self, guard: Guard, old: Knobs, new: Knobs) -> None:
        for file, before, after in zip(self._FILES, old, new, strict=True):
            path = str(self._folder / file)
            guard.make(self.what, "file", path, b"%d\n" % after, b"%d\n" % before)


def _defer(guard: Guard, target: _Napi | _Device) -> None:
    old = target.get()
    # Or somebody has chosen already; what is beyond 32 bits is somebody's choice as well.
    if 0 in old and max(old) < 1 << 32:
        target.set(guard, old, DEFERRED)


# ------------------------------------------------------------------ who holds them

#: Namespace, interface, and number of a NAPI, or 0 for the interface as a whole.
_Key = tuple[int, int, int]


@dataclass(eq=False)
class _Holding:
    """What was set at once, by one guard, and who wants it to stay."""

    guard: Guard = field(default_factory=Guard)
    users: set[object] = field(default_factory=set)


#: Held while holdings come and go, but not by those who only leave: see _tidy().
_lock = threading.Lock()
_holdings: dict[_Key, _Holding] = {}
_stale = False


def _forget_parent() -> None:
    """Begin anew in a forked child: the settings are its parent's."""
    global _lock
    _lock = threading.Lock()
    _holdings.clear()


os.register_at_fork(after_in_child=_forget_parent)


def defer_interrupts(interface: Interface, napi_ids: Sequence[int]) -> Callable[[], None]:
    """Defer interrupts for a reader that polls, and return what ends that.

    Settings that other readers of this process need as well stay until the last of them has gone.
    If the kernel refuses, a warning says so: polling works all the same, but the device interrupts
    it.

    Parameters
    ----------
    interface : Interface
        Its interface.
    napi_ids : sequence of int
        Those that it polls; empty if the kernel does not know yet: then all of the interface.
    """
    user = object()
    keys = [(interface.namespace, interface.index, number) for number in napi_ids or [0]]
    try:
        with _lock:
            new = _Holding()
            for key in keys:
                holding = _holdings.get(key)
                if holding is None:
                    _set(new.guard, interface, key[2])
                    _holdings[key] = holding = new
                holding.users.add(user)
    finally:
        _tidy()

    def leave() -> None:
        for holding in list(_holdings.values()):
            holding.users.discard(user)
        _tidy()

    return leave


def _set(guard: Guard, interface: Interface, number: int) -> None:
    name = interface.name
    try:
        _defer(guard, _Napi(name, number) if number else _Device(name, interface.index))
    except (OSError, TransportError) as error:
        LOGGER.warning(
            "cannot defer the interrupts of %s, which compete with busy polling now: %s; set "
            "napi_defer_hard_irqs to %d and gro_flush_timeout to %d in /sys/class/net/%s yourself",
            name,
            error,
            *DEFERRED,
            name,
        )


def _close_unused() -> None:
    unused = {key: holding for key, holding in _holdings.items() if not holding.users}
    for key in unused:
        del _holdings[key]
    for holding in set(unused.values()):
        holding.guard.close()


def _tidy() -> None:
    """Put back what nobody needs any more. Whoever has the lock looks again when it is free."""
    global _stale
    _stale = True
    while _stale and _lock.acquire(blocking=False):
        try:
            _stale = False
            _close_unused()
        finally:
            _lock.release()
