"""Receive SPEAD streams.

Make a :class:`Stream` on a :class:`xdpspead.ThreadPool`, add readers to it, and iterate over its
heaps. The names are those of ``spead2.recv``.
"""

from typing import TYPE_CHECKING, Any, TypeAlias

from .._device_stats import DeviceStats
from .._errors import XdpError
from .._rawitem import RawItem
from . import stream_stat_indices
from ._config import RingStreamConfig, StreamConfig
from ._heap import Heap, IncompleteHeap
from ._heap import _HeapBase as _HeapBase
from ._reader import ReaderInfo
from ._stats import QueueStats, StreamStatConfig, StreamStats
from ._stream import Ringbuffer, Stream
from ._stream import _Stream as _Stream
from ._xdp_config import UdpXdpConfig

if TYPE_CHECKING:
    from ._ledger import Ledger, LedgerPart, LedgerStage, Loss
    from ._merge import MergedStreams
else:

    def __getattr__(name: str) -> Any:
        """Import what few programs ask for, and what takes memory, when it is asked for."""
        if name in ("Ledger", "LedgerPart", "LedgerStage", "Loss"):
            from . import _ledger as module
        elif name == "MergedStreams":
            from . import _merge as module
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(module, name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


__all__ = [
    "DeviceStats",
    "Heap",
    "IncompleteHeap",
    "Ledger",
    "LedgerPart",
    "LedgerStage",
    "Loss",
    "MergedStreams",
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
