"""Calls for which no event loop may run: those of pyroute2."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_R = TypeVar("_R")


def outside_event_loops(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Make a function that uses pyroute2 callable from coroutines.

    pyroute2 runs an event loop of its own, and there cannot be two in one thread. So where one is
    running the function is called in another thread, which is in the same network namespace.
    """

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        # Called outside of any handler: an error that it keeps would keep our callers' frames.
        if _runs_event_loop():
            return _call_in_thread(lambda: function(*args, **kwargs))
        return function(*args, **kwargs)

    return call


def _runs_event_loop() -> bool:
    """Return whether an event loop runs in this thread.

    Where asyncio was not imported there is none, and it is not imported to find that out: it takes
    more than 6 MiB, which streams that nobody awaits do without.
    """
    asyncio = sys.modules.get("asyncio")
    if asyncio is None:
        return False
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _call_in_thread(function: Callable[[], _R]) -> _R:
    results: list[_R] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            results.append(function())
        except BaseException as error:  # noqa: BLE001 (raised again by the caller's thread)
            failures.append(error)

    thread = threading.Thread(target=run, name="xdpspead-netlink")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return results[0]
