"""Sending SPEAD streams."""

from ._config import RateMethod, StreamConfig
from ._generator import HeapGenerator, ItemGroup
from ._group import GroupMode, HeapReference, HeapReferenceList
from ._heap import Heap, PacketGenerator
from ._inproc import BytesStream, InprocStream
from ._stream import SendStats, Stream, SyncStream
from ._tcp import TcpStream
from ._udp import UdpStream
from ._xdp import UdpXdpConfig, UdpXdpStream, XdpSenderInfo

__all__ = [
    "BytesStream",
    "GroupMode",
    "Heap",
    "HeapGenerator",
    "HeapReference",
    "HeapReferenceList",
    "InprocStream",
    "ItemGroup",
    "PacketGenerator",
    "RateMethod",
    "SendStats",
    "Stream",
    "StreamConfig",
    "SyncStream",
    "TcpStream",
    "UdpStream",
    "UdpXdpConfig",
    "UdpXdpStream",
    "XdpSenderInfo",
]
