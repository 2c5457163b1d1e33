"""Configuration of a stream and of its ring."""

from __future__ import annotations

import operator
from typing import ClassVar

from .._arguments import Config, count, flag
from .._memory import MemoryAllocator
from .._protocol import BUG_COMPAT_PYSPEAD_0_5_2, MEMCPY_NONTEMPORAL, MEMCPY_STD
from ._stats import CORE_STATS, StreamStatConfig


class StreamConfig(Config):
    """How a stream puts heaps together.

    All parameters are keywords and can also be set as attributes afterwards, but not once a stream
    has been made with them: a stream keeps a copy.

    Parameters
    ----------
    max_heaps : int
        Partial heaps that can be alive at a time in each substream, at least 1. A heap that is
        still incomplete when `max_heaps` newer ones have begun is evicted.
    substreams : int
        Number of substreams, at least 1. Heap ``cnt`` belongs to substream ``cnt % substreams``;
        heaps of different substreams do not evict each other.
    bug_compat : int
        Bug compatibility flags of the flavour, ``BUG_COMPAT_*``.
    memcpy : int
        ``MEMCPY_STD``, or ``MEMCPY_NONTEMPORAL`` to write payload past the cache: for large heaps
        that are not looked at soon.
    memory_allocator : MemoryAllocator
        Where payloads live.
    stop_on_stop_item : bool
        Whether a heap with a stream control stop item ends the stream (and is swallowed).
    allow_unsized_heaps : bool
        Whether packets without a HEAP_LENGTH item are accepted. Such heaps grow as data arrives,
        and are known to be complete only when something evicts them.
    allow_out_of_order : bool
        Whether packets of a heap may arrive in any order. Without, a packet that is not the next
        one of its heap is refused, and so is all that follows it.
    stream_id : int
        A number for the user.
    explicit_start : bool
        Whether readers only begin to receive when :meth:`Stream.start` is called.
    max_heap_size : int
        Packets of heaps larger than this are refused, in bytes. An addition of this package: what a
        packet claims cannot make it allocate more.
    max_added_latency : float
        Longest time that a packet may wait for others to be handled together with it, in seconds,
        from 0 to 1. It is made use of only while packets come faster than one in twice this time:
        then the worker looks this often instead of being woken for each packet, which costs as much
        as handling a dozen. It looks more often where the source has little room for packets, so
        that this never fills by more than a quarter meanwhile. Readers that share a worker are
        looked at together. 0 handles every packet as soon as can be. An addition of this package.

    Raises
    ------
    ValueError
        If `max_heaps` or `substreams` is zero, or `bug_compat` or `memcpy` unknown.
    TypeError
        If a number is negative, or a keyword unknown.
    """

    DEFAULT_MAX_HEAPS: ClassVar[int] = 4
    DEFAULT_MAX_HEAP_SIZE: ClassVar[int] = 1 << 32
    DEFAULT_MAX_ADDED_LATENCY: ClassVar[float] = 1e-3

    __slots__ = (
        "_allow_out_of_order",
        "_allow_unsized_heaps",
        "_bug_compat",
        "_custom_stats",
        "_explicit_start",
        "_max_added_latency",
        "_max_heap_size",
        "_max_heaps",
        "_memcpy",
        "_memory_allocator",
        "_stop_on_stop_item",
        "_stream_id",
        "_substreams",
    )

    def __init__(
        self,
        *,
        max_heaps: int = DEFAULT_MAX_HEAPS,
        substreams: int = 1,
        bug_compat: int = 0,
        memcpy: int = MEMCPY_STD,
        memory_allocator: MemoryAllocator | None = None,
        stop_on_stop_item: bool = True,
        allow_unsized_heaps: bool = True,
        allow_out_of_order: bool = False,
        stream_id: int = 0,
        explicit_start: bool = False,
        max_heap_size: int = DEFAULT_MAX_HEAP_SIZE,
        max_added_latency: float = DEFAULT_MAX_ADDED_LATENCY,
    ) -> None:
        self.max_heaps = max_heaps
        self.substreams = substreams
        self.bug_compat = bug_compat
        self.memcpy = memcpy
        self._memory_allocator: MemoryAllocator | None = None
        if memory_allocator is not None:
            self.memory_allocator = memory_allocator
        self.stop_on_stop_item = stop_on_stop_item
        self.allow_unsized_heaps = allow_unsized_heaps
        self.allow_out_of_order = allow_out_of_order
        self.stream_id = stream_id
        self.explicit_start = explicit_start
        self.max_heap_size = max_heap_size
        self.max_added_latency = max_added_latency
        self._custom_stats: tuple[StreamStatConfig, ...] = ()  # never changed, so copies share it

    @property
    def max_heaps(self) -> int:
        """Partial heaps alive at a time in each substream."""
        return self._max_heaps

    @max_heaps.setter
    def max_heaps(self, value: int) -> None:
        self._max_heaps = count("max_heaps", value, 1)

    @property
    def substreams(self) -> int:
        """Number of substreams."""
        return self._substreams

    @substreams.setter
    def substreams(self, value: int) -> None:
        self._substreams = count("substreams", value, 1)

    @property
    def bug_compat(self) -> int:
        """Bug compatibility flags."""
        return self._bug_compat

    @bug_compat.setter
    def bug_compat(self, value: int) -> None:
        flags = count("bug_compat", value)
        if flags & ~BUG_COMPAT_PYSPEAD_0_5_2:
            raise ValueError(f"unknown compatibility bits in bug_compat: {flags:#x}")
        self._bug_compat = flags

    @property
    def memcpy(self) -> int:
        """How payload is copied."""
        return self._memcpy

    @memcpy.setter
    def memcpy(self, value: int) -> None:
        number = operator.index(value)
        if number not in (MEMCPY_STD, MEMCPY_NONTEMPORAL):
            raise ValueError(f"Unknown memcpy function {value!r}")
        self._memcpy = number

    @property
    def memory_allocator(self) -> MemoryAllocator:
        """Where payloads live."""
        if self._memory_allocator is None:
            self._memory_allocator = MemoryAllocator()
        return self._memory_allocator

    @memory_allocator.setter
    def memory_allocator(self, value: MemoryAllocator | None) -> None:
        if value is not None and not isinstance(value, MemoryAllocator):
            raise TypeError(f"not a MemoryAllocator: {value!r}")
        self._memory_allocator = value

    @property
    def stop_on_stop_item(self) -> bool:
        """Whether a stop item ends the stream."""
        return self._stop_on_stop_item

    @stop_on_stop_item.setter
    def stop_on_stop_item(self, value: bool) -> None:
        self._stop_on_stop_item = flag("stop_on_stop_item", value)

    @property
    def allow_unsized_heaps(self) -> bool:
        """Whether packets without a heap length are accepted."""
        return self._allow_unsized_heaps

    @allow_unsized_heaps.setter
    def allow_unsized_heaps(self, value: bool) -> None:
        self._allow_unsized_heaps = flag("allow_unsized_heaps", value)

    @property
    def allow_out_of_order(self) -> bool:
        """Whether packets of a heap may arrive in any order."""
        return self._allow_out_of_order

    @allow_out_of_order.setter
    def allow_out_of_order(self, value: bool) -> None:
        self._allow_out_of_order = flag("allow_out_of_order", value)

    @property
    def stream_id(self) -> int:
        """A number for the user."""
        return self._stream_id

    @stream_id.setter
    def stream_id(self, value: int) -> None:
        self._stream_id = count("stream_id", value)

    @property
    def explicit_start(self) -> bool:
        """Whether readers wait for :meth:`Stream.start`."""
        return self._explicit_start

    @explicit_start.setter
    def explicit_start(self, value: bool) -> None:
        self._explicit_start = flag("explicit_start", value)

    @property
    def max_heap_size(self) -> int:
        """Bytes of the largest heap that is accepted."""
        return self._max_heap_size

    @max_heap_size.setter
    def max_heap_size(self, value: int) -> None:
        self._max_heap_size = count("max_heap_size", value, 1)

    @property
    def max_added_latency(self) -> float:
        """Seconds that a packet may wait for others to be handled together with it."""
        return self._max_added_latency

    @max_added_latency.setter
    def max_added_latency(self, value: float) -> None:
        seconds = float(value)
        if not 0 <= seconds <= 1:
            raise ValueError(f"max_added_latency must be from 0 to 1 second, not {value}")
        self._max_added_latency = seconds

    @property
    def stats(self) -> list[StreamStatConfig]:
        """The statistics that can be referred to by index: the core ones and those added."""
        return [*CORE_STATS, *self._custom_stats]

    def add_stat(
        self, name: str, mode: StreamStatConfig.Mode = StreamStatConfig.Mode.COUNTER
    ) -> int:
        """Add a statistic of the user's own and return its index.

        Raises
        ------
        ValueError
            If there is one of this name.
        """
        if name.startswith("xdpspead."):
            raise ValueError(f"names that begin with xdpspead. are this package's own: {name}")
        if any(stat.name == name for stat in self.stats):
            raise ValueError(f"A statistic called {name} already exists")
        self._custom_stats = (*self._custom_stats, StreamStatConfig(name, mode))
        return self.next_stat_index() - 1

    def get_stat_index(self, name: str) -> int:
        """Return the index of the statistic called `name`.

        Raises
        ------
        IndexError
            If there is none.
        """
        for i, stat in enumerate(self.stats):
            if stat.name == name:
                return i
        raise IndexError(f"{name} is not a known statistic name")

    def next_stat_index(self) -> int:
        """Return the index that the next added statistic will have."""
        return len(CORE_STATS) + len(self._custom_stats)


class RingStreamConfig(Config):
    """How finished heaps wait for the user.

    Parameters
    ----------
    heaps : int
        Capacity of the ring between worker and user, at least 1. When it is full the worker waits,
        and packets pile up where they come from. By default 4, and small ones as `room_bytes` says.
    room_bytes : int
        Beside `heaps` heaps of any size the ring has room for as many as together have no more
        than this, up to 256. By default 2 MiB, but 0 where `heaps` is given.
    contiguous_only : bool
        Whether incomplete heaps are dropped. If False, they come as :class:`IncompleteHeap`.
    incomplete_keep_payload_ranges : bool
        Whether :attr:`IncompleteHeap.payload_ranges` tells what arrived.

    Raises
    ------
    ValueError
        If `heaps` is zero.
    """

    DEFAULT_HEAPS: ClassVar[int] = 4
    DEFAULT_ROOM_BYTES: ClassVar[int] = 2 << 20

    __slots__ = ("_contiguous_only", "_heaps", "_incomplete_keep_payload_ranges", "_room_bytes")

    def __init__(
        self,
        *,
        heaps: int | None = None,
        room_bytes: int | None = None,
        contiguous_only: bool = True,
        incomplete_keep_payload_ranges: bool = False,
    ) -> None:
        self._heaps: int | None = None
        self._room_bytes: int | None = None
        if heaps is not None:
            self.heaps = heaps
        if room_bytes is not None:
            self.room_bytes = room_bytes
        self.contiguous_only = contiguous_only
        self.incomplete_keep_payload_ranges = incomplete_keep_payload_ranges

    @property
    def heaps(self) -> int:
        """Capacity of the ring."""
        return self.DEFAULT_HEAPS if self._heaps is None else self._heaps

    @heaps.setter
    def heaps(self, value: int) -> None:
        self._heaps = count("heaps", value, 1)

    @property
    def room_bytes(self) -> int:
        """Bytes up to which it has room for more, small heaps."""
        if self._room_bytes is not None:
            return self._room_bytes
        return self.DEFAULT_ROOM_BYTES if self._heaps is None else 0

    @room_bytes.setter
    def room_bytes(self, value: int) -> None:
        self._room_bytes = count("room_bytes", value, 0)

    @property
    def contiguous_only(self) -> bool:
        """Whether incomplete heaps are dropped."""
        return self._contiguous_only

    @contiguous_only.setter
    def contiguous_only(self, value: bool) -> None:
        self._contiguous_only = flag("contiguous_only", value)

    @property
    def incomplete_keep_payload_ranges(self) -> bool:
        """Whether incomplete heaps know which bytes arrived."""
        return self._incomplete_keep_payload_ranges

    @incomplete_keep_payload_ranges.setter
    def incomplete_keep_payload_ranges(self, value: bool) -> None:
        self._incomplete_keep_payload_ranges = flag("incomplete_keep_payload_ranges", value)
