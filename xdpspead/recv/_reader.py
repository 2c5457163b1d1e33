"""What a reader of a stream is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ReaderInfo:
    """What one reader of a stream really is.

    Attributes
    ----------
    transport : str
        ``"buffer"``, ``"udp"`` or ``"udp_xdp"``.
    endpoints : tuple of (str, int)
        Addresses and ports received, as bound.
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
    """

    transport: str
    endpoints: tuple[tuple[str, int], ...] = ()
    interface: str | None = None
    queues: tuple[int, ...] = ()
    mode: str | None = None
    zero_copy: bool = False
    memory: int = 0
