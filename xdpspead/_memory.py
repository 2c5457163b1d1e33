"""Where heap payloads live."""

from __future__ import annotations

import operator
from typing import Any, overload

from . import _core
from ._log import LOGGER, core_log
from ._threads import ThreadPool


class MemoryAllocator:
    """The C library's allocator, and the base class of all others.

    Payloads that were freed last are kept for others of the same size, for the four sizes that were
    used last, up to 8 MiB for each allocator: else the kernel would make and clear new pages for
    every large heap, and the C library would have two threads in each other's way for every small
    one. What was not needed for long goes.
    """

    _core: _core.Allocator

    def __init__(self) -> None:
        self._core = _core.Allocator.plain()

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class MmapAllocator(MemoryAllocator):
    """An allocator that gets every payload from :manpage:`mmap(2)`.

    Parameters
    ----------
    flags : int
        Extra flags for mmap, such as ``mmap.MAP_POPULATE``.
    prefer_huge : bool
        Try huge pages first; without any left, ordinary pages are taken.
    """

    def __init__(self, flags: int = 0, prefer_huge: bool = False) -> None:
        number = operator.index(flags)
        if not -(1 << 31) <= number < 1 << 32:
            raise TypeError(f"not flags of mmap: {number:#x}")
        # mmap takes a C int; its highest flag makes that negative.
        signed = (number + (1 << 31)) % (1 << 32) - (1 << 31)
        self._core = _core.Allocator.mmap(signed, bool(prefer_huge))
        self._flags, self._prefer_huge = number, bool(prefer_huge)

    def __repr__(self) -> str:
        return f"MmapAllocator(flags={self._flags:#x}, prefer_huge={self._prefer_huge})"


def _size(value: Any) -> int:
    size = operator.index(value)
    if not 0 <= size < 1 << 64:
        raise TypeError(f"not a size: {size}")
    return size


class MemoryPool(MemoryAllocator):
    """A pool of equal blocks that payloads are taken from and return to.

    Worth having when payloads are so large that the C library would get each from the kernel and
    give it back. Sizes from `lower` to `upper` bytes are served with blocks of `upper` bytes, the
    one that was freed last first; other sizes go to `allocator`. A block is in use until the last
    array on it is gone.

    The two forms are ``MemoryPool(lower, upper, max_free, initial, allocator=None)`` and
    ``MemoryPool(thread_pool, lower, upper, max_free, initial, low_water, allocator=None)``.

    Parameters
    ----------
    thread_pool : ThreadPool
        Threads on which the pool is refilled.
    lower, upper : int
        Smallest size served from the pool, and size of its blocks, in bytes.
    max_free : int
        Most free blocks that are kept.
    initial : int
        Blocks to begin with, at most `max_free`.
    low_water : int
        With fewer free blocks than this, a task on `thread_pool` refills to `initial`.
    allocator : MemoryAllocator, optional
        Where the pool gets its memory from.

    Raises
    ------
    MemoryError
        If there is no memory for the initial blocks.
    """

    @overload
    def __init__(
        self,
        lower: int,
        upper: int,
        max_free: int,
        initial: int,
        allocator: MemoryAllocator | None = None,
    ) -> None: ...
    @overload
    def __init__(
        self,
        thread_pool: ThreadPool,
        lower: int,
        upper: int,
        max_free: int,
        initial: int,
        low_water: int,
        allocator: MemoryAllocator | None = None,
    ) -> None: ...
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if "thread_pool" in kwargs or (args and isinstance(args[0], ThreadPool)):
            self._create(*args, **kwargs)
        else:
            self._create_without_refill(*args, **kwargs)

    def _create_without_refill(
        self,
        lower: int,
        upper: int,
        max_free: int,
        initial: int,
        allocator: MemoryAllocator | None = None,
    ) -> None:
        self._create(None, lower, upper, max_free, initial, 0, allocator)

    def _create(
        self,
        thread_pool: ThreadPool | None,
        lower: int,
        upper: int,
        max_free: int,
        initial: int,
        low_water: int,
        allocator: MemoryAllocator | None = None,
    ) -> None:
        base = MemoryAllocator() if allocator is None else allocator
        if not isinstance(base, MemoryAllocator):
            raise TypeError(f"not a MemoryAllocator: {allocator!r}")
        self._lower, self._upper = _size(lower), _size(upper)
        # spead2 takes both without a word, so they are no errors.
        if self._lower > self._upper:
            LOGGER.warning("memory pool with lower %d > upper %d will never be used", lower, upper)
        if _size(initial) > _size(max_free):
            LOGGER.warning(
                "memory pool with initial %d > max_free %d begins with max_free blocks",
                initial,
                max_free,
            )
        self._core = _core.Allocator.pool(
            thread_pool._core if thread_pool else None,
            _size(lower),
            _size(upper),
            _size(max_free),
            _size(initial),
            _size(low_water),
            base._core,
            core_log(),
        )

    @property
    def free(self) -> int:
        """Number of free blocks at the moment."""
        return self._core.n_free()

    def __repr__(self) -> str:
        return f"<MemoryPool lower={self._lower} upper={self._upper} free={self.free}>"

    @property
    def warn_on_empty(self) -> bool:
        """Whether to log a warning when the pool is empty and memory must be had elsewhere."""
        return self._core.warn_on_empty

    @warn_on_empty.setter
    def warn_on_empty(self, warn: bool) -> None:
        self._core.warn_on_empty = bool(warn)
