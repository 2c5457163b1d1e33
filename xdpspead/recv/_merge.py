"""Heaps of several streams, taken by one thread."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Self

from .._errors import Stopped
from .._native import HeapMerge
from ._heap import Heap, IncompleteHeap
from ._stream import ITERATION_BATCH, Stream


class MergedStreams(HeapMerge):
    """The heaps of several streams, for one thread to take as they come.

    Iteration gives pairs of a stream and a heap: heaps of one stream in order, the streams in turn,
    so that one which has many does not keep the others waiting. It ends when all streams have
    stopped and all their heaps have been taken::

        for stream, heap in xdpspead.recv.MergedStreams(streams):
            groups[stream].update(heap)

    A thread for each stream is woken for each heap. One thread for all is woken once for all heaps
    that have come meanwhile, so with many streams it costs much less.

    If a stream ends with an error (see :meth:`Stream.get`), that is raised once its heaps have been
    taken; begin to iterate again to have the heaps of the others.

    Streams may be on different thread pools, and may read what they like. While they are merged,
    leave it to the merge to take their heaps: what is taken from a stream itself it does not give.
    Threads may share it; every heap goes to one of them.

    Parameters
    ----------
    streams : iterable of Stream
        The streams, which are kept alive. Each can be merged once at a time, that is, until the
        merge is gone. None at all is an iteration that ends at once.

    Raises
    ------
    ValueError
        If a stream is in it twice, or in another merge.
    TypeError
        If one of them is no :class:`Stream`.
    RuntimeError
        If one of them was made before a fork.
    """

    _streams: tuple[Stream, ...]

    def __new__(cls, streams: Iterable[Stream]) -> Self:
        all_of_them = tuple(streams)
        for stream in all_of_them:
            if not isinstance(stream, Stream):
                raise TypeError(f"each stream must be a recv.Stream, not {stream!r}")
        queues = tuple(stream._popped for stream in all_of_them)
        self = super().__new__(cls, all_of_them, queues, ITERATION_BATCH)
        self._streams = all_of_them
        return self

    if TYPE_CHECKING:

        def __iter__(self) -> Iterator[tuple[Stream, Heap | IncompleteHeap]]: ...
        def __next__(self) -> tuple[Stream, Heap | IncompleteHeap]: ...

    @property
    def streams(self) -> list[Stream]:
        """The streams, in the order in which they were given."""
        return list(self._streams)

    def stop(self) -> None:
        """Stop all streams; see :meth:`Stream.stop`."""
        for stream in self._streams:
            stream.stop()

    def _end_of_stream(self, stream: Stream) -> None:
        """Raise what ended the stream, if it was an error."""
        with contextlib.suppress(Stopped):
            stream._core.raise_end()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self._streams)} streams>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
