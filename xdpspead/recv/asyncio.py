"""Streams for :mod:`asyncio`."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from .._errors import Stopped
from .._threads import ThreadPool
from ._config import RingStreamConfig, StreamConfig
from ._heap import Heap, IncompleteHeap
from ._lines import Lines, Source
from ._merge import MergedStreams as _BlockingMerge
from ._stream import Stream as _BlockingStream
from ._stream import check_max_heaps

__all__ = ["MergedStreams", "Stream"]


class _Stoppable:
    """What ``async with`` stops at the end of its block."""

    if TYPE_CHECKING:

        def stop(self) -> None: ...

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


class Stream(_Stoppable, _BlockingStream):
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
        # Their lock is held while heaps move to _popped, too, so that no line waits for the
        # descriptor, which knows nothing of _popped, while heaps are on their way there.
        self._lines = Lines()

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
        with self._lines.lock:
            return super().get_nowait()

    def __aiter__(self) -> AsyncIterator[Heap | IncompleteHeap]:
        return self

    async def __anext__(self) -> Heap | IncompleteHeap:
        if self._lines.has_turn:
            heap: Heap | IncompleteHeap
            for heap in self._popped:
                return heap
        try:
            heap = await self.get()
        except Stopped:
            raise StopAsyncIteration from None
        self._lines.begin_turn()
        return heap

    # ---------------------------------------------------------------- the line

    async def _wait_for(
        self, take: Callable[[], list[Heap | IncompleteHeap]]
    ) -> list[Heap | IncompleteHeap]:
        """Wait in the line until `take` takes something, and return that."""
        self._core.require_own_process()  # in a child the lock might be held for ever
        source = Source(self._count_ready, lambda: self._core.fd)
        return await self._lines.wait(source, take)

    def _count_ready(self, n_waiters: int) -> int:
        """Return for how many of so many waiters there is something; at the end, for all."""
        n = len(self._popped)
        if n < n_waiters:
            n += self._core.ring_size
            if n < n_waiters and self._core.stopped:
                n = n_waiters
        return n

    def _take_one(self) -> list[Heap | IncompleteHeap]:
        """Take the next heap if there is one, and some more for the next to come."""
        with self._lines.lock:
            # Other lines that wait would not notice what is in _popped.
            alone = len(self._lines) == 1
            return self._core.take(1, 0, self._batch if alone else 1)

    def _take_many(self, n: int) -> list[Heap | IncompleteHeap]:
        """Take the heaps that are there, up to `n`."""
        with self._lines.lock:
            return self._core.take(n, 0)


class MergedStreams(_Stoppable, _BlockingMerge):
    """The heaps of several streams, for coroutines to take as they come.

    ``async for`` gives what iteration over :class:`xdpspead.recv.MergedStreams` does, pairs of a
    stream and a heap, and ends when that does::

        async for stream, heap in xdpspead.recv.asyncio.MergedStreams(streams):
            groups[stream].update(heap)

    A task for each stream is woken for each heap; one task for all is woken once for all heaps that
    have come meanwhile. The streams may be of either kind, and on different thread pools.

    Tasks may share it, even those of several event loops in as many threads: each heap goes to one
    of them, and on each loop to the one that has waited longest. One that is cancelled takes no
    heap away, so `asyncio.timeout` may limit how long `anext` waits. Other tasks have their turn at
    least once a millisecond.

    Parameters
    ----------
    streams : iterable of Stream or xdpspead.recv.Stream
        The streams, which are kept alive. Each can be merged once at a time, that is, until the
        merge is gone. None at all is an iteration that ends at once.

    Raises
    ------
    ValueError
        If a stream is in it twice, or in another merge.
    TypeError
        If one of them is no stream.
    RuntimeError
        If one of them was made before a fork.
    """

    def __init__(self, streams: Iterable[_BlockingStream]) -> None:
        del streams  # they are __new__'s
        super().__init__()
        self._lines = Lines()

    def __aiter__(self) -> AsyncIterator[tuple[_BlockingStream, Heap | IncompleteHeap]]:
        return self

    async def __anext__(self) -> tuple[_BlockingStream, Heap | IncompleteHeap]:
        try:
            pairs = self._take_pair() if self._lines.has_turn else []
            if not pairs:
                pairs = await self._wait_for_pair()
                self._lines.begin_turn()
        except Stopped:
            raise StopAsyncIteration from None
        return pairs[0]

    async def _wait_for_pair(self) -> list[tuple[_BlockingStream, Heap | IncompleteHeap]]:
        """Wait in the line until there is a heap, and take it."""
        for stream in self._streams[:1]:
            stream._core.require_own_process()  # in a child the lock might be held for ever
        source = Source(lambda _: int(self._ready), lambda: self._fd)
        return await self._lines.wait(source, self._take_pair)

    def _take_pair(self) -> list[tuple[_BlockingStream, Heap | IncompleteHeap]]:
        """Take the next heap if there is one."""
        try:
            pair = self._take()
        except StopIteration:
            raise Stopped("all streams have stopped") from None
        finally:
            # The descriptor may tell neither of what is left nor of the end. Whoever opens a line
            # after this sees it there.
            if self._lines and self._ready:
                self._lines.tell_others()
        return [] if pair is None else [pair]
