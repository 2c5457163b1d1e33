"""Receive SPEAD streams.

Make a :class:`Stream` on a :class:`xdpspead.ThreadPool`, add readers to it, and iterate over its
heaps. The names are those of ``spead2.recv``.
"""

from . import stream_stat_indices
from ._config import RingStreamConfig, StreamConfig
from ._heap import Heap, IncompleteHeap
from ._reader import ReaderInfo
from ._stats import StreamStatConfig, StreamStats
from ._stream import Ringbuffer, Stream
from ._xdp import UdpXdpConfig, XdpError

__all__ = [
    "Heap",
    "IncompleteHeap",
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
