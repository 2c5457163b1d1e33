"""Receive SPEAD streams.

Make a :class:`Stream` on a :class:`xdpspead.ThreadPool`, add readers to it, and iterate over its
heaps. The names are those of ``spead2.recv``.
"""

from typing import TypeAlias

from .._device import DeviceStats
from .._errors import XdpError
from .._rawitem import RawItem
from . import stream_stat_indices
from ._config import RingStreamConfig, StreamConfig
from ._heap import Heap, IncompleteHeap
from ._heap import _HeapBase as _HeapBase
from ._ledger import Ledger, LedgerPart, LedgerStage, Loss
from ._reader import ReaderInfo
from ._stats import QueueStats, StreamStatConfig, StreamStats
from ._stream import Ringbuffer, Stream
from ._stream import _Stream as _Stream
from ._xdp_config import UdpXdpConfig

__all__ = [
    "DeviceStats",
    "Heap",
    "IncompleteHeap",
    "Ledger",
    "LedgerPart",
    "LedgerStage",
    "Loss",
    "QueueStats",
    "RawItem",
    "ReaderInfo",
    "RingStreamConfig",
    "Ringbuffer",
    "Stream",
    "StreamConfig",
    "StreamStatConfig",
    "StreamStats",
    "UdpXdpConfig",
    "XdpError",
    "stream_stat_indices",
]

# Names by which spead2's stubs know the base classes, for annotations.
_RingStream: TypeAlias = _Stream  # noqa: PYI047
