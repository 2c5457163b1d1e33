"""Queues of this process, and memory."""

from __future__ import annotations

from collections.abc import Sequence

from .. import _core
from .._inproc import InprocQueue
from .._threads import ThreadPool
from ._config import StreamConfig
from ._stream import Stream, SyncStream, checked


class _InprocStream(Stream):
    """Queues, blocking and not."""

    def __init__(
        self,
        thread_pool: ThreadPool,
        queues: Sequence[InprocQueue],
        config: StreamConfig | None = None,
    ) -> None:
        pool, config = checked(thread_pool, config)
        if not isinstance(queues, Sequence) or not all(isinstance(q, InprocQueue) for q in queues):
            raise TypeError(f"queues must be a list of InprocQueue, not {queues!r}")
        if not queues:
            raise ValueError("queues is empty: there must be one for each substream")
        self._queues = list(queues)
        core = _core.Sender.inproc(pool, config, [queue._core for queue in queues])
        self._begin(thread_pool, config, core)

    @property
    def queues(self) -> Sequence[InprocQueue]:
        """The queues, one for each substream."""
        return list(self._queues)


class InprocStream(_InprocStream, SyncStream):
    """Send heaps to streams of the same process, without a network.

    Parameters
    ----------
    thread_pool : ThreadPool
        Threads that send what nobody waits for.
    queues : list of InprocQueue
        Where packets go to, one queue for each substream. They are not stopped at the end; sending
        to one that is stopped fails with ECANCELED.
    config : StreamConfig, optional
        How to send. A copy is kept.

    Raises
    ------
    ValueError
        If there is no queue.
    TypeError
        If an argument has the wrong type.
    """


class BytesStream(SyncStream):
    """Send heaps into memory: to be stored, looked at, or given to a buffer reader.

    Parameters
    ----------
    thread_pool : ThreadPool
        Threads that send what nobody waits for.
    config : StreamConfig, optional
        How to send. A copy is kept.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    """

    def __init__(self, thread_pool: ThreadPool, config: StreamConfig | None = None) -> None:
        pool, config = checked(thread_pool, config)
        self._begin(thread_pool, config, _core.Sender.to_bytes(pool, config))

    def getvalue(self) -> bytes:
        """Return all packets that have been sent, back to back."""
        return self._core.value()
