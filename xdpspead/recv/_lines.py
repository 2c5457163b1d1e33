"""Who waits for heaps in event loops, first come first.

How it works: whoever waits stands in a line, one line for each event loop, and the loop watches a
descriptor while somebody in the line has no heap to expect. Heaps stay where they are until a
waiter's task really runs; waking a waiter only means "look again". So there is nothing to be lost
when a waiter is cancelled, at whatever moment: it leaves the line, and the next one is told to
look.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, NamedTuple, TypeVar

_Taken = TypeVar("_Taken")

#: Iteration over heaps that are there lets other tasks run at least this often, seconds.
_TURN_S: Final = 0.001


class Source(NamedTuple):
    """What is waited for.

    Attributes
    ----------
    count_ready
        Called with a number of waiters, returns for how many of them there is something; at the
        end, for all.
    fd
        Returns a descriptor that is readable while there is something.
    """

    count_ready: Callable[[int], int]
    fd: Callable[[], int]


class _Line:
    """Who waits on one event loop, first come first. Only that loop's thread uses it."""

    __slots__ = ("fd", "loop", "source", "waiters")

    def __init__(self, loop: asyncio.AbstractEventLoop, source: Source) -> None:
        self.loop = loop
        self.source = source
        self.waiters: OrderedDict[int, asyncio.Future[None]] = OrderedDict()  # by ticket
        self.fd = -1  # the descriptor that the loop watches for this line


class Lines:
    """The lines of those who wait for heaps of one source.

    Attributes
    ----------
    lock : threading.Lock
        Held while a line is opened: whoever holds it sees all lines there are.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._lines: dict[asyncio.AbstractEventLoop, _Line] = {}  # those with somebody in them
        self._tickets = itertools.count()
        self._turn_ends = 0.0

    def __len__(self) -> int:
        """Return in how many somebody waits."""
        return len(self._lines)

    async def wait(self, source: Source, take: Callable[[], list[_Taken]]) -> list[_Taken]:
        """Wait in the line until `take` takes something, and return that."""
        loop = asyncio.get_running_loop()
        line = self._lines.get(loop) or self._open(loop, source)
        ticket = next(self._tickets)
        taken: list[_Taken] = []
        try:
            while not taken:
                look = line.waiters[ticket] = loop.create_future()
                _wake(line)
                if look.done():
                    await asyncio.sleep(0)
                else:
                    _watch(line)
                    await look
                # Somebody else may have taken what we were woken for, and from those before us too.
                if next(iter(line.waiters)) == ticket:
                    taken = take()
            return taken
        finally:
            self._leave(line, ticket)

    @property
    def has_turn(self) -> bool:
        """Whether iteration may take what is there without letting other tasks run."""
        # Every turn of the event loop is a system call: give one to a few heaps, not to each.
        return not self._lines and time.monotonic() < self._turn_ends

    def begin_turn(self) -> None:
        """Other tasks have just had their turn."""
        self._turn_ends = time.monotonic() + _TURN_S

    def tell_others(self) -> None:
        """Have those who wait on other event loops look."""
        here = asyncio.get_running_loop()
        for line in list(self._lines.values()):
            if line.loop is not here:
                with contextlib.suppress(RuntimeError):  # it has been closed
                    line.loop.call_soon_threadsafe(_wake, line)

    def _open(self, loop: asyncio.AbstractEventLoop, source: Source) -> _Line:
        with self.lock:
            # Whoever waits on a loop that was closed will never leave by himself.
            for other in list(self._lines):
                if other.is_closed():
                    self._lines.pop(other, None)
            line = self._lines[loop] = _Line(loop, source)
        return line

    def _leave(self, line: _Line, ticket: int) -> None:
        """Leave the line, with a heap or without."""
        del line.waiters[ticket]
        if not line.waiters:
            self._lines.pop(line.loop, None)
        if line.loop.is_closed():
            return
        if line.waiters:
            _wake(line)  # the descriptor may not tell of what is left
        elif line.fd >= 0:
            # Not kept for later: the loop would keep the source, and then the descriptor's number.
            line.loop.remove_reader(line.fd)


def _wake(line: _Line) -> None:
    """Let as many from the head of the line look as there is something for."""
    n = line.source.count_ready(len(line.waiters))
    for look in itertools.islice(line.waiters.values(), n):
        if not look.done():
            look.set_result(None)


def _watch(line: _Line) -> None:
    """Have the line woken when there is something to look at."""
    if line.fd < 0:
        fd = line.source.fd()
        line.loop.add_reader(fd, _wake, line)
        line.fd = fd
