"""Queues of packets within this process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import _core
from ._errors import NotContiguousError

if TYPE_CHECKING:
    from typing_extensions import Buffer


class InprocQueue:
    """Packets that this process hands from senders to streams, without a network.

    Any number of threads may add packets. Give it to :meth:`.recv.Stream.add_inproc_reader` to have
    them received. The queue has no bound: packets wait in memory until a stream takes them, and
    none is lost.

    Several streams may read one queue. Each packet goes to one of them, whichever comes first, so
    this makes sense only if every heap is a single packet. A stream whose ring is full takes
    nothing from the others. When a stream ends for any reason but the queue's end, the packets that
    it has not taken stay in the queue, for the other streams or for the next one that reads it.
    """

    def __init__(self) -> None:
        self._core = _core.InprocQueue()

    def add_packet(self, packet: Buffer) -> None:
        """Add one SPEAD packet, which is copied.

        Parameters
        ----------
        packet : buffer
            The bytes of the packet, C-contiguous, at most 4 GiB.

        Raises
        ------
        Stopped
            If the queue has been stopped.
        NotContiguousError
            If the bytes are not contiguous. It is a :class:`ValueError` and a :class:`BufferError`.
        ValueError
            If the packet is too long.
        """
        view = memoryview(packet)
        if not view.c_contiguous:
            raise NotContiguousError("the packet is not C-contiguous")
        self._core.add(view)

    def stop(self) -> None:
        """Add no more packets: streams that read the queue end when they have read what is there.

        It may be called from any thread and more than once.
        """
        self._core.stop()
