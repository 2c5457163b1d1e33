"""Streams for :mod:`asyncio`.

How it works: whoever calls :meth:`Stream.get` or :meth:`Stream.get_many` stands in a line, one line
for each event loop, and the loop watches the stream's descriptor while somebody in the line has no
heap to expect. Heaps stay in the ring until a waiter's task really runs; waking a waiter only means
"look again". So there is nothing to be lost when a waiter is cancelled, at whatever moment: it
leaves the line, and the next one is told to look.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Final, Self

from .._errors import Stopped
from .._threads import ThreadPool
from ._config import RingStreamConfig, StreamConfig
from ._heap import Heap, IncompleteHeap
from ._stream import Stream as _BlockingStream
from ._stream import check_max_heaps

__all__ = ["Stream"]

#: Iteration over heaps that are there lets other tasks run at least this often, seconds.
_TURN_S: Final = 0.001


class _Line:
    """Who waits on one event loop, first come first. Only that loop's thread uses it."""

    __slots__ = ("fd", "loop", "waiters")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.waiters: OrderedDict[int, asyncio.Future[None]] = OrderedDict()  # by ticket
        self.fd = -1  # the descriptor that the loop watches for this line


class Stream(_BlockingStream):
    """A stream of heaps for coroutines.

    Iterate over it with ``async for``, or await :meth:`get`, to have the heaps. Everything else is
    as in :class:`xdpspead.recv.Stream`. It may be used from one event loop after the other, and
    even from several at once, in as many threads: each heap then goes to one of them.

    While somebody waits in :meth:`get` the event loop watches :attr:`fd`, so do not add a reader of
    your own for it to the same loop.

    Parameters
    ----------
    thread_pool : ThreadPool
        Threads that receive.
    config : StreamConfig, optional
        How heaps are put together. A copy is kept.
    ring_config : RingStreamConfig, optional
        How they wait for the user. A copy is kept.
    """

    def __init__(
        self,
        thread_pool: ThreadPool,
        config: StreamConfig | None = None,
        ring_config: RingStreamConfig | None = None,
    ) -> None:
        super().__init__(thread_pool, config, ring_config)
        self._lines: dict[asyncio.AbstractEventLoop, _Line] = {}  # those with somebody in them
        self._tickets = itertools.count()
        self._turn_ends = 0.0
        # Held while heaps move to _popped and while a line is opened, so that no line waits for the
        # descriptor, which knows nothing of _popped, while heaps are on their way there.
        self._lock = threading.Lock()

    async def get(self) -> Heap | IncompleteHeap:  # type: ignore[override]
        """Return the next heap, waiting for it.

        Calls that wait at the same time get their heaps in the order in which they were made. One
        that is cancelled takes no heap away. Other tasks have their turn during every call, also
        when a heap is there already.

        Raises
        ------
        Stopped
            If the stream has stopped and all its heaps have been read.
        XdpError
            Likewise, if it has because the interface of an AF_XDP reader is gone, or the program.
        """
        heaps = await self._wait_for(self._take_one)
        return heaps[0]

    async def get_many(  # type: ignore[override]
        self, max_heaps: int
    ) -> list[Heap | IncompleteHeap]:
        """Return the next heaps, up to `max_heaps`, waiting for the first only.

        Calls that wait at the same time, and those of :meth:`get`, get their heaps in the order in
        which they were made; the first takes all it can. One that is cancelled takes no heap away,
        so `asyncio.timeout` may limit the time. Other tasks have their turn during every call.

        Parameters
        ----------
        max_heaps : int
            At most so many heaps; at least 1.

        Returns
        -------
        list of Heap or IncompleteHeap
            At least one, in the order in which they were finished. There may be fewer than are
            waiting: those that iteration has taken out of the ring already come alone.

        Raises
        ------
        Stopped
            If the stream has stopped and all its heaps have been read.
        ValueError
            If `max_heaps` is less than 1.
        TypeError
            If `max_heaps` is no integer.
        """
        n = check_max_heaps(max_heaps)
        return await self._wait_for(functools.partial(self._take_many, n))

    def get_nowait(self) -> Heap | IncompleteHeap:
        """Return the next heap, before those who wait in :meth:`get`.

        Raises
        ------
        Empty
            If none is waiting.
        Stopped
            If the stream has stopped and all its heaps have been read.
        XdpError
            Likewise, if it has because the interface of an AF_XDP reader is gone, or the program.
        """
        self._core.require_own_process()
        with self._lock:
            return super().get_nowait()

    def __aiter__(self) -> AsyncIterator[Heap | IncompleteHeap]:
        return self

    async def __anext__(self) -> Heap | IncompleteHeap:
        # Every turn of the event loop is a system call: give one to a few heaps, not to each.
        if not self._lines and time.monotonic() < self._turn_ends:
            heap: Heap | IncompleteHeap
            for heap in self._popped:
                return heap
        try:
            heap = await self.get()
        except Stopped:
            raise StopAsyncIteration from None
        self._turn_ends = time.monotonic() + _TURN_S
        return heap

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    # -------------------------------------------------------------- the line

    async def _wait_for(
        self, take: Callable[[], list[Heap | IncompleteHeap]]
    ) -> list[Heap | IncompleteHeap]:
        """Wait in the line until `take` takes something, and return that."""
        loop = asyncio.get_running_loop()
        self._core.require_own_process()  # in a child the lock might be held for ever
        line = self._lines.get(loop) or self._open_line(loop)
        ticket = next(self._tickets)
        heaps: list[Heap | IncompleteHeap] = []
        try:
            while not heaps:
                look = line.waiters[ticket] = loop.create_future()
                self._wake(line)
                if look.done():
                    await asyncio.sleep(0)
                else:
                    self._watch(line)
                    await look
                # Somebody else may have taken what we were woken for, and from those before us too.
                if next(iter(line.waiters)) == ticket:
                    heaps = take()
            return heaps
        finally:
            self._leave(line, ticket)

    def _open_line(self, loop: asyncio.AbstractEventLoop) -> _Line:
        with self._lock:
            # Whoever waits on a loop that was closed will never leave by himself.
            for other in list(self._lines):
                if other.is_closed():
                    self._lines.pop(other, None)
            line = self._lines[loop] = _Line(loop)
        return line

    def _wake(self, line: _Line) -> None:
        """Let as many from the head of the line look as there are heaps; at the end, all."""
        waiters = line.waiters
        n = len(self._popped)
        if n < len(waiters):
            n += self._core.ring_size
            if n < len(waiters) and self._core.stopped:
                n = len(waiters)
        for look in itertools.islice(waiters.values(), n):
            if not look.done():
                look.set_result(None)

    def _watch(self, line: _Line) -> None:
        """Have the line woken when there is something to look at."""
        if line.fd < 0:
            fd = self._core.fd
            line.loop.add_reader(fd, self._wake, line)
            line.fd = fd

    def _take_one(self) -> list[Heap | IncompleteHeap]:
        """Take the next heap if there is one, and some more for the next to come."""
        with self._lock:
            # Other lines that wait would not notice what is in _popped.
            alone = len(self._lines) == 1
            return self._core.take(1, 0, self._batch if alone else 1)

    def _take_many(self, n: int) -> list[Heap | IncompleteHeap]:
        """Take the heaps that are there, up to `n`."""
        with self._lock:
            return self._core.take(n, 0)

    def _leave(self, line: _Line, ticket: int) -> None:
        """Leave the line, with a heap or without."""
        del line.waiters[ticket]
        if not line.waiters:
            self._lines.pop(line.loop, None)
        if line.loop.is_closed():
            return
        if not line.waiters:
            # Not kept for later: the loop would keep the stream, and then the descriptor's number.
            if line.fd >= 0:
                line.loop.remove_reader(line.fd)
        elif self._popped:
            # The descriptor tells of what is in the ring, and nobody of this.
            self._wake(line)
