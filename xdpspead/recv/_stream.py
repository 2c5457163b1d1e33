"""Streams."""

from __future__ import annotations

import functools
import math
import operator
import os
import socket as socket_module
import threading
import time
import weakref
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self, TypeAlias, overload

from .. import _core
from .._errors import Empty, NotContiguousError, Stopped
from .._inproc import InprocQueue
from .._log import core_log
from .._native import HeapIterator, HeapQueue
from .._threads import ThreadPool
from . import _pcap, _tcp, _udp
from ._config import RingStreamConfig, StreamConfig
from ._heap import KINDS, Heap, IncompleteHeap
from ._owner import Owner
from ._reader import Begin, ReaderInfo
from ._stats import EXTRA_STATS, StreamStats, queue_stats
from ._xdp_config import UdpXdpConfig

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from ._ledger import Ledger

#: A blocking call looks whether a signal came at least this often, ms.
_SLICE_MS: Final = 200
#: Heaps that iteration takes from the ring at a time, if they are no more than half of it.
ITERATION_BATCH: Final = 32


def check_max_heaps(max_heaps: int) -> int:
    """Return how many heaps are asked for; ValueError if that is less than 1."""
    n = operator.index(max_heaps)
    if n < 1:
        raise ValueError(f"max_heaps must be at least 1, not {n}")
    return n


def _deadline(timeout: float) -> float:
    if not timeout >= 0:
        raise ValueError(f"timeout must not be negative, but it is {timeout!r}")
    return time.monotonic() + timeout


def _ms_until(deadline: float) -> int:
    """Return how long the core is to wait now; 0 once the time is over."""
    left = deadline - time.monotonic()
    return 0 if left <= 0 else math.ceil(min(left * 1e3, _SLICE_MS))


_Ringbuffer: TypeAlias = "Ringbuffer"


class Ringbuffer:
    """A look at the ring of finished heaps."""

    def __init__(self, stream: _Stream) -> None:
        self._stream = stream

    def size(self) -> int:
        """Return the number of heaps that are finished and have not been handed to the user."""
        return self._stream._core.ring_size + len(self._stream._popped)

    def capacity(self) -> int:
        """Return the number of heaps of any size that fit; of small ones there may be more."""
        return self._stream._ring_config.heaps


class _Stream:
    """What blocking and asynchronous streams share."""

    DEFAULT_UDP_MAX_SIZE: ClassVar[int] = _udp.DEFAULT_MAX_SIZE
    DEFAULT_UDP_BUFFER_SIZE: ClassVar[int] = _udp.DEFAULT_BUFFER_SIZE
    DEFAULT_TCP_MAX_SIZE: ClassVar[int] = _tcp.DEFAULT_MAX_SIZE
    DEFAULT_TCP_BUFFER_SIZE: ClassVar[int] = _tcp.DEFAULT_BUFFER_SIZE

    Ringbuffer: ClassVar[type[Ringbuffer]] = Ringbuffer

    def __init__(
        self,
        thread_pool: ThreadPool,
        config: StreamConfig | None = None,
        ring_config: RingStreamConfig | None = None,
    ) -> None:
        if not isinstance(thread_pool, ThreadPool):
            raise TypeError(f"thread_pool must be a ThreadPool, not {thread_pool!r}")
        config = StreamConfig() if config is None else config
        ring_config = RingStreamConfig() if ring_config is None else ring_config
        if not isinstance(config, StreamConfig) or not isinstance(ring_config, RingStreamConfig):
            raise TypeError("config must be a StreamConfig and ring_config a RingStreamConfig")
        self._config = config._copy()
        self._ring_config = ring_config._copy()
        self._thread_pool = thread_pool
        self._stat_config = [*self._config.stats, *EXTRA_STATS]
        self._n_custom_stats = len(self._stat_config) - _core.N_STATS
        self._readers: list[ReaderInfo] = []
        self._pending: list[Begin] = []
        self._xdp_owner = Owner(thread_pool._threads, self._config.stream_id)
        weakref.finalize(self, self._xdp_owner.close)
        self._started = not self._config.explicit_start
        self._batch = ITERATION_BATCH
        self._reader_thread = 0
        self._core = _core.Stream(
            thread_pool._core,
            self._config.memory_allocator._core,
            core_log(),
            {
                "max_heaps": self._config.max_heaps,
                "substreams": self._config.substreams,
                "max_heap_size": self._config.max_heap_size,
                "ring_heaps": self._ring_config.heaps,
                "ring_bytes": self._ring_config.room_bytes,
                "nap_ns": round(self._config.max_added_latency * 1e9),
                "memcpy": self._config.memcpy,
                "stop_on_stop_item": self._config.stop_on_stop_item,
                "allow_unsized_heaps": self._config.allow_unsized_heaps,
                "allow_out_of_order": self._config.allow_out_of_order,
                "contiguous_only": self._ring_config.contiguous_only,
                "keep_payload_ranges": self._ring_config.incomplete_keep_payload_ranges,
            },
            KINDS,
            self._config._bug_compat,
        )
        self._popped: HeapQueue[Heap | IncompleteHeap] = self._core.popped

    # -------------------------------------------------------------- readers

    def _add(self, begin: Begin) -> None:
        """Begin to read, now or when the stream is started."""
        if not self._started:
            self._pending.append(begin)
        elif self._config.explicit_start:
            raise RuntimeError("Cannot add readers after explicit start")
        else:
            self._begin(begin)

    def _begin(self, begin: Begin) -> None:
        self._core.require_own_process()
        if not self._core.stopped:
            self._readers += begin(self._core)

    def start(self) -> None:
        """Let the readers begin, if the configuration says `explicit_start`; else do nothing.

        Raises
        ------
        TransportError
            If one of the readers cannot be set up; those before it have begun.
        """
        self._started = True
        while self._pending:
            self._begin(self._pending.pop(0))

    def add_buffer_reader(self, buffer: Buffer) -> None:
        """Read packets that stand back to back in memory; their end ends the stream.

        Parameters
        ----------
        buffer : buffer
            Anything with the buffer protocol, C-contiguous. It is held until the stream is gone,
            and must not be changed.

        Raises
        ------
        NotContiguousError
            If it is not contiguous.
        """
        view = memoryview(buffer)
        if not view.c_contiguous:
            raise NotContiguousError("the buffer is not C-contiguous")

        def begin(stream: _core.Stream) -> list[ReaderInfo]:
            stream.add_buffer_reader(view)
            return [ReaderInfo("buffer", memory=view.nbytes)]

        self._add(begin)

    @overload
    def add_udp_reader(
        self, port: int, max_size: int = ..., buffer_size: int = ..., bind_hostname: str = ...
    ) -> None: ...
    @overload
    def add_udp_reader(self, socket: socket_module.socket, max_size: int = ...) -> None: ...
    @overload
    def add_udp_reader(
        self,
        multicast_group: str,
        port: int,
        max_size: int = ...,
        buffer_size: int = ...,
        interface_address: str = ...,
    ) -> None: ...
    @overload
    def add_udp_reader(
        self,
        multicast_group: str,
        port: int,
        max_size: int = ...,
        buffer_size: int = ...,
        interface_index: int = ...,
    ) -> None: ...
    def add_udp_reader(self, *args: Any, **kwargs: Any) -> None:
        """Read UDP datagrams.

        Four forms, told apart by the first argument:

        - ``add_udp_reader(port, max_size, buffer_size, bind_hostname="")``: bind to the address of
          `bind_hostname`, or to all of IPv4; ``"::"`` is all of IPv4 and IPv6. A multicast group is
          joined. Link-local addresses need a zone: ``"fe80::1%eth0"``.
        - ``add_udp_reader(socket, max_size)``: a bound socket, which is duplicated, so it may be
          closed afterwards. Its options are left as they are, but for those that the stream needs
          to receive, which are put back when the stream stops.
        - ``add_udp_reader(multicast_group, port, max_size, buffer_size, interface_address)``: join
          an IPv4 group on the interface with this address (empty: the system's choice). A unicast
          address will do too if it is that of the interface.
        - ``add_udp_reader(multicast_group, port, max_size, buffer_size, interface_index)``: join an
          IPv6 group on the interface with this index (0: the system's choice).

        A group that is joined on a certain interface is received from that one alone, even if other
        programs have joined it on another.

        With ``XDPSPEAD_INTERFACE=eth1`` in the environment all forms but that with a socket receive
        what comes through that interface by AF_XDP; see the page on transports.

        Parameters
        ----------
        max_size : int
            Largest datagram that is accepted, in bytes; larger ones are counted.
        buffer_size : int
            Kernel buffer to ask for, in bytes; 0 for the system's default. If the system gives
            less, a warning is logged.

        Raises
        ------
        TransportError
            If the address cannot be resolved, bound or joined.
        XdpError
            If ``XDPSPEAD_INTERFACE`` names no interface, or another reader has the endpoint there.
        ValueError
            If `multicast_group` is of the wrong family, or neither a group nor the address of the
            interface.
        TypeError
            If the arguments fit no form.
        """
        begin = _udp.prepare(args, kwargs)
        if os.environ.get(_udp.SWITCH):
            from . import _switch

            begin = _switch.prepare(begin, self._xdp_owner)
        self._add(begin)

    def add_udp_xdp_reader(self, config: UdpXdpConfig) -> None:
        """Receive UDP datagrams through AF_XDP, past the kernel's network stack.

        Parameters
        ----------
        config : UdpXdpConfig
            Which endpoints, on which interface, and how.

        Raises
        ------
        XdpError
            If AF_XDP cannot be had here; the text says which step failed, why, and how to mend it.
            With ``config.fallback`` that text is logged as a warning, and an ordinary UDP socket
            is read instead.
        ValueError
            If it says no endpoint, or wants more workers than it has queues or the pool has
            threads.
        """
        from . import _xdp

        self._add(_xdp.prepare(config, self._xdp_owner))

    @overload
    def add_tcp_reader(
        self, port: int, max_size: int = ..., buffer_size: int = ..., bind_hostname: str = ...
    ) -> None: ...
    @overload
    def add_tcp_reader(self, acceptor: socket_module.socket, max_size: int = ...) -> None: ...
    def add_tcp_reader(self, *args: Any, **kwargs: Any) -> None:
        """Read packets from one TCP connection, which a sender opens.

        Two forms, told apart by the first argument:

        - ``add_tcp_reader(port, max_size, buffer_size, bind_hostname="")``: listen on the address
          of `bind_hostname`, or on all.
        - ``add_tcp_reader(acceptor, max_size)``: a listening socket, which is duplicated, so it may
          be closed afterwards. It is set to not block.

        It listens at once, also with ``explicit_start``. The first connection is taken, then no
        more are. When the sender closes or resets the connection the stream ends.

        Packets follow each other without gaps, and each tells its own length. Where a packet should
        begin and none does, eight bytes are skipped, and eight more, until one does; so packets at
        a distance that is no multiple of eight are not found again. A packet that announces more
        than `max_size` bytes is skipped as a whole, without memory for it. If the announcement is
        wrong, that may be all that comes until the connection ends. Every byte that was skipped is
        counted in the statistic ``xdpspead.tcp_skipped_bytes``.

        Parameters
        ----------
        max_size : int
            Largest packet that is accepted, in bytes; larger ones are skipped, and counted.
        buffer_size : int
            Kernel buffer to ask for, in bytes; 0 for the system's default. If the system gives
            less, a warning is logged.

        Raises
        ------
        TransportError
            If the address cannot be resolved or bound, the socket is not listening, or `max_size`
            is 4 GiB or more.
        TypeError
            If the arguments fit neither form.
        """
        self._add(_tcp.prepare(args, kwargs, stopped=self._core.stopped))

    def add_udp_pcap_file_reader(
        self, filename: str | bytes | os.PathLike[str], filter: str = ""
    ) -> None:
        """Read the UDP datagrams of a capture file, as tcpdump and Wireshark write them.

        pcap and pcapng with times in microseconds or nanoseconds, plain or compressed with gzip or
        Zstandard. Link types: Ethernet with up to two VLAN tags, Linux "cooked" (SLL, SLL2), raw IP
        and loopback. IPv4 with options, IPv6 with extension headers; fragments are put together.
        The end of the file ends the stream, and if packets of it could not be used, a warning says
        how many and why. A file that is cut short gives what it has, and a warning.

        UDP checksums are not verified, because packets that were captured where they were sent do
        not have them yet. For the same reason such a capture may hold several datagrams as one
        packet that the device was to segment (GSO), and nothing in the file tells: it is counted
        as ``xdpspead.long_packet``. Capture where they are received, or turn segmentation off.

        Parameters
        ----------
        filename : str, bytes or os.PathLike
            A regular file.
        filter : str
            An expression in the language of `pcap-filter(7)`, to take a part of the file only, for
            example ``"dst 239.1.2.3 and udp port 7148"``. It sees packets as they were captured:
            those in a VLAN need the word ``vlan``, and of fragments only the first has ports.

        Raises
        ------
        TransportError
            If the file cannot be read or is no capture file, if the filter is wrong, or if this
            build has no libpcap (see :data:`xdpspead.features`).
        ValueError
            If there is a null byte in the name or the filter.
        """
        self._add(_pcap.prepare(filename, filter, stopped=self._core.stopped))

    def add_inproc_reader(self, queue: InprocQueue) -> None:
        """Read packets that this process puts into a queue; its end ends the stream.

        Parameters
        ----------
        queue : xdpspead.InprocQueue
            The queue. Of several streams that read one queue each gets some of the packets.

        Raises
        ------
        TypeError
            If it is no queue.
        TransportError
            If the process has too many descriptors open.
        """
        if not isinstance(queue, InprocQueue):
            raise TypeError(f"queue must be an InprocQueue, not {queue!r}")

        def begin(stream: _core.Stream) -> list[ReaderInfo]:
            stream.add_inproc_reader(queue._core)
            return [ReaderInfo("inproc")]

        self._add(begin)

    # -------------------------------------------------------------- heaps

    def _note_thread(self) -> None:
        """Take heaps one by one once several threads read: each shall see them in order."""
        thread = threading.get_ident()
        if self._reader_thread != thread:
            if self._reader_thread:
                self._batch = 1
            self._reader_thread = thread

    def get_nowait(self) -> Heap | IncompleteHeap:
        """Return the next heap.

        Raises
        ------
        Empty
            If none is waiting.
        Stopped
            If the stream has stopped and all its heaps have been read.
        XdpError
            Likewise, if it has because the interface of an AF_XDP reader is gone, or the program.
        """
        heaps: list[Heap | IncompleteHeap] = self._core.take(1, 0)
        if not heaps:
            raise Empty("ring buffer is empty")
        return heaps[0]

    # -------------------------------------------------------------- state

    def stop(self) -> None:
        """Stop receiving and close the sockets.

        When it returns nothing is received any more. Heaps that were finished can still be got;
        those that were not are lost, and counted. It may be called from any thread and more than
        once; a stopped stream cannot be started again.
        """
        self._pending.clear()
        self._core.stop()
        self._xdp_owner.devices.read()
        self._xdp_owner.close()

    @property
    def readers(self) -> list[ReaderInfo]:
        """What each reader that has begun really is."""
        return list(self._readers)

    @property
    def fd(self) -> int:
        """Descriptor that is readable while heaps are waiting and once the stream has stopped.

        Not to be read from: it is for ``select``, ``poll`` and event loops.
        """
        self._batch = 1  # or a heap could wait in _popped while the descriptor says nothing
        return self._core.fd

    @property
    def stats(self) -> StreamStats:
        """A consistent snapshot of the statistics."""
        values, rows = self._core.stats()
        values[_core.N_CORE_STATS : _core.N_CORE_STATS] = [0] * self._n_custom_stats
        queues = functools.partial(queue_stats, rows)
        return StreamStats(self._stat_config, values, queues, self._xdp_owner.devices.read)

    def ledger(self) -> Ledger:
        """Tell what became of every packet: which stage lost how many, why, and what helps.

        Printed it is a table. Its sums are exact once the stream has stopped; before, some packets
        are on their way.
        """
        from ._ledger import make_ledger

        return make_ledger(
            self.stats, self._readers, stopped=self._core.stopped, waiting=self.ringbuffer.size()
        )

    @property
    def ringbuffer(self) -> _Ringbuffer:
        """A look at the ring of finished heaps."""
        return Ringbuffer(self)

    @property
    def config(self) -> StreamConfig:
        """A copy of the configuration."""
        return self._config._copy()

    @property
    def ring_config(self) -> RingStreamConfig:
        """A copy of the ring's configuration."""
        return self._ring_config._copy()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        state = "stopped" if self._core.stopped else "running"
        transports = ", ".join(reader.transport for reader in self._readers) or "none"
        return f"<{type(self).__name__} {state}, readers: {transports}>"


class Stream(_Stream, HeapIterator):
    """A stream of heaps.

    Packets with the same heap identifier belong to the same heap, whichever reader brought them
    (unless a reader has several workers, see :attr:`.UdpXdpConfig.workers`). Iterate over it, or
    call :meth:`get`, to have the heaps. Used as a context manager it is stopped at the end.
    Iteration ends when the stream has stopped, and raises :class:`XdpError` if that is because the
    interface of an AF_XDP reader is gone.

    Parameters
    ----------
    thread_pool : ThreadPool
        Threads that receive.
    config : StreamConfig, optional
        How heaps are put together. A copy is kept.
    ring_config : RingStreamConfig, optional
        How they wait for the user. A copy is kept.

    Raises
    ------
    RuntimeError
        If the thread pool has been stopped, or belongs to another process.

    Notes
    -----
    A stream that is dropped is stopped, and so are all when the interpreter exits. A stream belongs
    to the process that made it: in a forked child it raises RuntimeError when it is used, and does
    nothing when it is stopped or dropped. As long as the child lives, so do its copies of the
    stream's sockets, and UDP and TCP ports stay taken.
    """

    def get(self) -> Heap | IncompleteHeap:
        """Return the next heap, waiting for it.

        Raises
        ------
        Stopped
            If the stream has stopped and all its heaps have been read.
        XdpError
            Likewise, if it has because the interface of an AF_XDP reader is gone, or the program.
        """
        self._note_thread()
        while True:
            heaps: list[Heap | IncompleteHeap] = self._core.take(1, _SLICE_MS)
            if heaps:
                return heaps[0]

    def get_many(
        self, max_heaps: int, *, timeout: float | None = None
    ) -> list[Heap | IncompleteHeap]:
        """Return the next heaps, up to `max_heaps`, waiting for the first only.

        To take heaps costs more than to look at one, so a program that wants many of them takes
        many at a time. Iteration does so by itself; this is for those who have something to do
        once for all heaps that are there.

        Calls, iteration and :meth:`get` may follow each other as you like, and threads may share a
        stream: every heap goes to one caller, and each caller sees heaps in order. A call that a
        signal's handler ends with an exception (Ctrl-C) while it waits takes no heap away.

        Parameters
        ----------
        max_heaps : int
            At most so many heaps; at least 1. There is no need to know how many there are: a call
            never gets more than the ring holds.
        timeout : float, optional
            How long to wait for the first heap, in seconds; 0 does not wait. None (the default)
            waits for as long as it takes.

        Returns
        -------
        list of Heap or IncompleteHeap
            In the order in which they were finished. There is at least one, unless `timeout` went
            by without one. There may be fewer than are waiting: those that iteration has taken out
            of the ring already come alone, and while several threads wait each gets one.

        Raises
        ------
        Stopped
            If the stream has stopped and all its heaps have been read. Heaps that were there at the
            end come first.
        ValueError
            If `max_heaps` is less than 1, or `timeout` is negative.
        TypeError
            If `max_heaps` is no integer.
        """
        n = check_max_heaps(max_heaps)
        deadline = None if timeout is None else _deadline(timeout)
        self._note_thread()
        while True:
            wait = _SLICE_MS if deadline is None else _ms_until(deadline)
            heaps: list[Heap | IncompleteHeap] = self._core.take(n, wait)
            if heaps or wait == 0:
                return heaps

    def __iter__(self) -> Iterator[Heap | IncompleteHeap]:
        self._note_thread()
        return self

    if TYPE_CHECKING:

        def __next__(self) -> Heap | IncompleteHeap: ...

    def _end_of_heaps(self) -> Heap | IncompleteHeap:
        """Raise what ends the iteration, or return a heap after all."""
        try:
            return Stream.get(self)  # a derived class's may be a coroutine
        except Stopped:
            raise StopIteration from None
