"""What a reader of a stream is, and how one comes about.

Each transport has a function ``prepare`` which checks the arguments of its ``add_…_reader`` at once
and returns a function that begins to read. The stream calls that now or, with ``explicit_start``,
when it is started.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from .. import _core
from ._endpoints import UserEndpoint


@dataclass(frozen=True)
class ReaderInfo:
    """What one reader of a stream really is.

    Attributes
    ----------
    transport : str
        ``"buffer"``, ``"udp"``, ``"udp_xdp"``, ``"tcp"``, ``"pcap"`` or ``"inproc"``.
    endpoints : tuple of (str, int) or (str, int, str)
        Addresses and ports received, as bound; and the source, if it is from one only.
    interface : str or None
        Network interface of an AF_XDP reader.
    queues : tuple of int
        Its receive queues.
    mode : str or None
        ``"native"`` if the driver runs the program, ``"generic"`` if the kernel does it for it.
    zero_copy : bool
        Whether the device writes into the reader's memory itself.
    memory : int
        Bytes of packet buffers.
    workers : int
        Threads that read it.
    busy_poll : bool or None
        Whether an AF_XDP reader polls its device. None if that will not be known until a packet has
        come, as on kernels before 6.13; the statistic ``xdpspead.xdp_busy_polls`` then tells.
    driver : str or None
        Name of the interface's driver.
    why_copy : str or None
        Why an AF_XDP reader has no zero-copy.
    steer : tuple of str
        The receive-flow rules that bring its packets to its queues, in words of ``ethtool -N``;
        those that had been there before included. Empty without ``steer="ntuple"``.
    helper : str or None
        The socket of the ``xdpspead-helper`` that an AF_XDP reader came about through.
    """

    transport: str
    endpoints: tuple[UserEndpoint, ...] = ()
    interface: str | None = None
    queues: tuple[int, ...] = ()
    mode: str | None = None
    zero_copy: bool = False
    memory: int = 0
    workers: int = 1
    busy_poll: bool | None = False
    driver: str | None = None
    why_copy: str | None = None
    steer: tuple[str, ...] = ()
    helper: str | None = None


#: Begins to read, and says which readers there are now.
Begin: TypeAlias = Callable[[_core.Stream], list[ReaderInfo]]
