"""Receive SPEAD streams through AF_XDP or ordinary sockets into NumPy arrays.

The names are those of spead2 4.x, so that ``import xdpspead as spead2`` is all that existing
receiving code needs. Receiving itself is in :mod:`xdpspead.recv`.
"""

from typing import TYPE_CHECKING, Any, TypeAlias

from ._descriptor import Descriptor, RawDescriptor
from ._errors import Empty, Full, Stopped, TransportError
from ._flavour import Flavour
from ._inproc import InprocQueue
from ._items import Item, ItemGroup, parse_range_list
from ._memory import MemoryAllocator, MemoryPool, MmapAllocator
from ._protocol import (
    BUG_COMPAT_DESCRIPTOR_WIDTHS,
    BUG_COMPAT_PYSPEAD_0_5_2,
    BUG_COMPAT_SHAPE_BIT_1,
    BUG_COMPAT_SWAP_ENDIAN,
    CTRL_DESCRIPTOR_REISSUE,
    CTRL_DESCRIPTOR_UPDATE,
    CTRL_STREAM_START,
    CTRL_STREAM_STOP,
    DESCRIPTOR_DESCRIPTION_ID,
    DESCRIPTOR_DTYPE_ID,
    DESCRIPTOR_FORMAT_ID,
    DESCRIPTOR_ID,
    DESCRIPTOR_ID_ID,
    DESCRIPTOR_NAME_ID,
    DESCRIPTOR_SHAPE_ID,
    DESCTIPTOR_DTYPE_ID,
    HEAP_CNT_ID,
    HEAP_LENGTH_ID,
    MEMCPY_NONTEMPORAL,
    MEMCPY_STD,
    NULL_ID,
    PAYLOAD_LENGTH_ID,
    PAYLOAD_OFFSET_ID,
    STREAM_CTRL_ID,
)
from ._threads import ThreadPool

if TYPE_CHECKING:
    from ._features import features
else:

    def __getattr__(name: str) -> Any:
        """Import what few programs ask for, and what takes memory, when it is asked for."""
        if name != "features":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from ._features import features

        return features

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


# Addresses or host names and ports; the name is that of spead2's stubs.
_EndpointList: TypeAlias = list[tuple[str, int]]  # noqa: PYI047

__version__ = "0.1.0"

__all__ = [
    "BUG_COMPAT_DESCRIPTOR_WIDTHS",
    "BUG_COMPAT_PYSPEAD_0_5_2",
    "BUG_COMPAT_SHAPE_BIT_1",
    "BUG_COMPAT_SWAP_ENDIAN",
    "CTRL_DESCRIPTOR_REISSUE",
    "CTRL_DESCRIPTOR_UPDATE",
    "CTRL_STREAM_START",
    "CTRL_STREAM_STOP",
    "DESCRIPTOR_DESCRIPTION_ID",
    "DESCRIPTOR_DTYPE_ID",
    "DESCRIPTOR_FORMAT_ID",
    "DESCRIPTOR_ID",
    "DESCRIPTOR_ID_ID",
    "DESCRIPTOR_NAME_ID",
    "DESCRIPTOR_SHAPE_ID",
    "DESCTIPTOR_DTYPE_ID",
    "HEAP_CNT_ID",
    "HEAP_LENGTH_ID",
    "MEMCPY_NONTEMPORAL",
    "MEMCPY_STD",
    "NULL_ID",
    "PAYLOAD_LENGTH_ID",
    "PAYLOAD_OFFSET_ID",
    "STREAM_CTRL_ID",
    "Descriptor",
    "Empty",
    "Flavour",
    "Full",
    "InprocQueue",
    "Item",
    "ItemGroup",
    "MemoryAllocator",
    "MemoryPool",
    "MmapAllocator",
    "RawDescriptor",
    "Stopped",
    "ThreadPool",
    "TransportError",
    "features",
    "parse_range_list",
]
