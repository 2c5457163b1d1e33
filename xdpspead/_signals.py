"""Signals, while something is set up that has to be taken away again."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def signals_to_exceptions() -> Callable[[], None]:
    """Make SIGTERM and SIGHUP raise SystemExit where they would end the process at once.

    Returns
    -------
    callable
        Puts the former handlers back.
    """
    changed: list[signal.Signals] = []

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    def restore() -> None:
        for number in changed:
            if signal.getsignal(number) is leave:
                signal.signal(number, signal.SIG_DFL)

    if _in_main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, leave)
                changed.append(number)
    return restore


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Hold back SIGINT, SIGTERM and SIGHUP during the body, and deliver them after it."""
    if not _in_main_thread():
        yield
        return
    held: list[int] = []
    former: dict[int, Any] = {}
    number: int
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        handler = signal.getsignal(number)
        if handler is not None and handler is not signal.SIG_IGN:
            former[number] = handler
            signal.signal(number, lambda number, frame: held.append(number))
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
        for number in held:
            signal.raise_signal(number)
