"""Statistics of a stream."""

from __future__ import annotations

import enum
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from typing import Any, Final, Self, SupportsIndex, TypeAlias

from .. import _core
from .._device_stats import DeviceStats


class StreamStatConfig:
    """What one statistic is called and how two values of it combine.

    Parameters
    ----------
    name : str
        Its name, which is also its key in :class:`StreamStats`.
    mode : StreamStatConfig.Mode
        How values combine.
    """

    class Mode(enum.Enum):
        """How two values of a statistic become one."""

        COUNTER = 0
        MAXIMUM = 1

    def __init__(self, name: str, mode: Mode = Mode.COUNTER) -> None:
        if not isinstance(name, str) or not isinstance(mode, StreamStatConfig.Mode):
            raise TypeError("a statistic needs a name and a StreamStatConfig.Mode")
        self._name = name
        self._mode = mode

    @property
    def name(self) -> str:
        """Name of the statistic."""
        return self._name

    @property
    def mode(self) -> Mode:
        """How two values combine."""
        return self._mode

    def combine(self, a: int, b: int) -> int:
        """Return the value that stands for both."""
        return a + b if self._mode is StreamStatConfig.Mode.COUNTER else max(a, b)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, StreamStatConfig):
            return NotImplemented
        return self._name == other._name and self._mode == other._mode

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"StreamStatConfig({self._name!r}, {self._mode})"


def _from_core(indices: range) -> list[StreamStatConfig]:
    mode = (StreamStatConfig.Mode.COUNTER, StreamStatConfig.Mode.MAXIMUM)
    return [StreamStatConfig(_core.STAT_NAMES[i], mode[_core.STAT_IS_MAXIMUM[i]]) for i in indices]


#: The statistics that every stream has, in front of those the user adds.
CORE_STATS: Final = _from_core(range(_core.N_CORE_STATS))
#: Our own, after those the user adds.
EXTRA_STATS: Final = _from_core(range(_core.N_CORE_STATS, _core.N_STATS))


@dataclass(frozen=True)
class QueueStats:
    """What one receive queue has in a stream's statistics ``xdpspead.xdp_…``, which are the sums.

    Attributes
    ----------
    interface : str
        Network interface.
    queue : int
        Its receive queue.
    read : bool
        Whether the stream reads it. If not, packets to its endpoints came there all the same.
    matched, redirected, no_socket, … : int
        The statistics of the same name.
    """

    interface: str
    queue: int
    read: bool
    matched: int = 0
    redirected: int = 0
    no_socket: int = 0
    bad_length: int = 0
    fragments: int = 0
    extension_headers: int = 0
    other_source: int = 0
    bad_frame: int = 0
    unread_drops: int = 0
    rx_dropped: int = 0
    rx_invalid: int = 0
    rx_ring_full: int = 0
    fill_ring_empty: int = 0
    busy_polls: int = 0

    def __add__(self, other: QueueStats) -> QueueStats:
        _, _, read, *mine = astuple(self)
        _, _, also, *others = astuple(other)
        sums = (a + b for a, b in zip(mine, others, strict=True))
        return QueueStats(self.interface, self.queue, read or also, *sums)


_XDP_PREFIX: Final = "xdpspead.xdp_"
#: The fields of `QueueStats` behind the first three, in the core's order.
QUEUE_STATS: Final = tuple(
    name.removeprefix(_XDP_PREFIX) for name in _core.STAT_NAMES[-_core.N_QUEUE_STATS :]
)


def queue_stats(rows: Iterable[_core.QueueRow]) -> tuple[QueueStats, ...]:
    """Return what the core tells of queues; what several readers of a queue have is added up."""
    return _by_queue(
        QueueStats(interface, queue, read, **dict(zip(QUEUE_STATS, values, strict=True)))
        for interface, queue, read, values in rows
    )


def _by_queue(parts: Iterable[QueueStats]) -> tuple[QueueStats, ...]:
    found: dict[tuple[str, int], QueueStats] = {}
    for part in parts:
        key = part.interface, part.queue
        found[key] = found[key] + part if key in found else part
    return tuple(found[key] for key in sorted(found))


#: The parts of queues, or what makes them.
Queues: TypeAlias = tuple[QueueStats, ...] | Callable[[], tuple[QueueStats, ...]]
#: Network interfaces, or what asks for them.
Devices: TypeAlias = tuple[DeviceStats, ...] | Callable[[], tuple[DeviceStats, ...]]


def _latest(devices: Iterable[DeviceStats]) -> tuple[DeviceStats, ...]:
    """Return one for each interface: what an interface lost is the same for all who read it."""

    def age(device: DeviceStats) -> int:  # none of its counters ever falls
        return sum(device.link.values()) + sum(device.passed.values())

    found: dict[str, DeviceStats] = {}
    for device in devices:
        other = found.setdefault(device.interface, device)
        if age(device) > age(other):
            found[device.interface] = device
    return tuple(found[name] for name in sorted(found))


def _value(value: int) -> int:
    number = operator.index(value)
    if not 0 <= number < 1 << 64:
        raise TypeError(f"a statistic must be from 0 to 2**64 - 1, not {number}")
    return number


class StreamStats:
    """A snapshot of a stream's statistics.

    It can be read as a mapping from names, as a sequence (first spead2's statistics, then those
    added to the configuration, then this package's own), and the first nine also as attributes.
    It is not connected to the stream: its values may be changed, and two snapshots with the same
    configuration added. What each statistic means is told in the manual's page on statistics.
    """

    heaps: int
    incomplete_heaps_evicted: int
    incomplete_heaps_flushed: int
    packets: int
    batches: int
    max_batch: int
    single_packet_heaps: int
    search_dist: int
    worker_blocked: int

    __slots__ = ("_config", "_devices", "_index", "_queues", "_values")

    def __init__(
        self,
        config: Sequence[StreamStatConfig],
        values: Sequence[int],
        queues: Queues = (),
        devices: Devices = (),
    ) -> None:
        self._config = config
        self._values = list(values)
        self._index = {stat.name: i for i, stat in enumerate(config)}
        self._queues = queues
        self._devices = devices

    @property
    def queues(self) -> tuple[QueueStats, ...]:
        """The part that each receive queue has in the statistics of AF_XDP readers.

        By interface and queue: those that the stream reads, and those on which packets to it came.
        Readers that have ended are in it.
        """
        if callable(self._queues):
            self._queues = self._queues()
        return self._queues

    @property
    def devices(self) -> tuple[DeviceStats, ...]:
        """What the network interfaces of AF_XDP readers lost since these began.

        They are asked when this is first read, because that takes longer than all the rest.
        """
        if callable(self._devices):
            self._devices = self._devices()
        return self._devices

    def __reduce__(self) -> tuple[Any, ...]:
        return StreamStats, (self._config, self._values, self.queues, self.devices)

    @property
    def config(self) -> list[StreamStatConfig]:
        """What the statistics are called and how they combine, in order."""
        return list(self._config)

    def _position(self, key: int | SupportsIndex | str) -> int:
        if isinstance(key, str):
            return self._index[key]
        index = operator.index(key)
        if index < 0:
            raise TypeError("a statistic has no negative index")
        if index >= len(self._values):
            raise IndexError(f"there are only {len(self._values)} statistics")
        return index

    def __getitem__(self, key: int | str) -> int:
        return self._values[self._position(key)]

    def __setitem__(self, key: int | str, value: int) -> None:
        self._values[self._position(key)] = _value(value)

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            raise TypeError(f"statistics have names, not {type(name).__name__}")
        return name in self._index

    def get(self, name: str, default: Any = None, /) -> Any:
        """Return the statistic called `name`, or `default` if there is none."""
        return self._values[self._index[name]] if name in self else default

    def __copy__(self) -> StreamStats:
        return StreamStats(self._config, self._values, self._queues, self._devices)

    def items(self) -> Iterator[tuple[str, int]]:
        """Iterate over names and values."""
        return zip(self._index, self._values, strict=True)

    def keys(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self._index)

    __iter__ = keys

    def values(self) -> Iterator[int]:
        """Iterate over the values."""
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def _combined(self, other: StreamStats) -> list[int]:
        if list(self._config) != list(other._config):
            raise ValueError("config must match to add stats together")
        return [
            stat.combine(a, b)
            for stat, a, b in zip(self._config, self._values, other._values, strict=True)
        ]

    def __add__(self, other: StreamStats) -> StreamStats:
        if not isinstance(other, StreamStats):
            return NotImplemented
        return StreamStats(
            self._config,
            self._combined(other),
            _by_queue([*self.queues, *other.queues]),
            _latest([*self.devices, *other.devices]),
        )

    def __iadd__(self, other: StreamStats) -> Self:
        if not isinstance(other, StreamStats):
            return NotImplemented
        self._values = self._combined(other)
        self._queues = _by_queue([*self.queues, *other.queues])
        self._devices = _latest([*self.devices, *other.devices])
        return self

    def __repr__(self) -> str:
        told = ", ".join(f"{name}={value}" for name, value in self.items() if value)
        return f"<StreamStats {told or 'all zero'}>"


def _attribute(index: int) -> property:
    def read(self: StreamStats) -> int:
        return self._values[index]

    def write(self: StreamStats, value: int) -> None:
        self._values[index] = _value(value)

    return property(read, write)


for _i, _stat in enumerate(CORE_STATS):
    setattr(StreamStats, _stat.name, _attribute(_i))
