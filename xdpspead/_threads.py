"""Worker threads."""

from __future__ import annotations

import operator
import os
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from . import _core
from ._log import LOGGER


class ThreadPool:
    """Worker threads that receive packets and put heaps together.

    A stream's readers all run on one thread of the pool, so a pool serves as many streams at full
    speed as it has threads; but an AF_XDP reader may ask for several
    (:attr:`.UdpXdpConfig.workers`). A stream that nobody reads costs the others nothing.

    Parameters
    ----------
    threads : int
        Number of threads, at least 1.
    affinity : sequence of int
        CPU cores to bind the threads to, in turn; empty for none. A core that cannot be had is
        logged as a warning.

    Raises
    ------
    ValueError
        If `threads` is not positive.

    Notes
    -----
    A pool lives as long as a stream uses it, so it may be dropped at any time. Used as a context
    manager it is stopped at the end. Threads do not come along when a process forks: pools, and the
    streams that use them, belong to the process that made them.
    """

    def __init__(self, threads: int = 1, affinity: Sequence[int] = ()) -> None:
        threads = operator.index(threads)
        if threads < 1:
            raise ValueError("at least one thread is required")
        wanted = [operator.index(core) for core in affinity]
        usable = os.sched_getaffinity(0)
        for core in wanted:
            if core not in usable:
                LOGGER.warning("cannot bind a thread to core %d: this process may not use it", core)
        # One core that cannot be had leaves its threads unbound, and the others as they were asked.
        self._threads = threads
        self._core = _core.Pool(threads, [core if core in usable else -1 for core in wanted])

    def stop(self) -> None:
        """Stop the streams that still use the threads, then end the threads.

        Heaps that were finished can still be got from the streams. It may be called from any thread
        and more than once; a stopped pool takes no new streams.
        """
        self._core.stop()

    @staticmethod
    def set_affinity(core: int) -> None:
        """Bind the calling thread to a CPU core, or log a warning if that cannot be."""
        try:
            os.sched_setaffinity(0, [operator.index(core)])
        except OSError as error:
            LOGGER.warning("Failed to bind to core %d: %s", core, error)

    @property
    def cpu_time(self) -> float:
        """CPU time that the threads have used so far, in seconds."""
        return self._core.cpu_seconds()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} threads={self._threads}>"
