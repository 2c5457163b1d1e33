"""Streams."""

from __future__ import annotations

import socket as socket_module
import threading
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self, TypeAlias, overload

from .. import _core
from .._errors import Empty, Stopped
from .._log import LOGGER, core_log
from .._threads import ThreadPool
from . import _udp
from ._config import RingStreamConfig, StreamConfig, count
from ._heap import Heap, IncompleteHeap, make_heap
from ._reader import ReaderInfo
from ._stats import EXTRA_STATS, StreamStats
from ._xdp import UdpXdpConfig, XdpError, open_reader, release_ports

if TYPE_CHECKING:
    from typing_extensions import Buffer

#: A blocking call looks whether a signal came at least this often, ms.
_SLICE_MS: Final = 200
#: Heaps that iteration takes from the ring at a time.
_ITERATION_BATCH: Final = 32


_Ringbuffer: TypeAlias = "Ringbuffer"


class NotContiguousError(ValueError, BufferError):
    """A buffer's bytes do not stand one after the other in memory."""


class Ringbuffer:
    """A look at the ring of finished heaps."""

    def __init__(self, stream: _Stream) -> None:
        self._stream = stream

    def size(self) -> int:
        """Return the number of heaps that are finished and have not been handed to the user."""
        return self._stream._core.ring_size + len(self._stream._popped)

    def capacity(self) -> int:
        """Return the number of heaps that fit."""
        return self._stream._ring_config.heaps


def _bind_arguments(
    names: tuple[str, ...], required: int, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """Sort positional and keyword arguments of an overload into a dictionary."""
    if len(args) > len(names):
        raise TypeError(f"at most {len(names)} positional arguments: {', '.join(names)}")
    bound = dict(zip(names, args, strict=False))
    for name, value in kwargs.items():
        if name not in names:
            raise TypeError(f"unexpected keyword argument {name!r}; known: {', '.join(names)}")
        if name in bound:
            raise TypeError(f"argument {name!r} was given twice")
        bound[name] = value
    missing = [name for name in names[:required] if name not in bound]
    if missing:
        raise TypeError(f"missing arguments: {', '.join(missing)}")
    return bound


class _Stream:
    """What blocking and asynchronous streams share."""

    DEFAULT_UDP_MAX_SIZE: ClassVar[int] = 9200
    DEFAULT_UDP_BUFFER_SIZE: ClassVar[int] = 8 * 1024 * 1024

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
        self._pending: list[Callable[[], None]] = []
        self._joined: list[socket_module.socket] = []  # to multicast groups, for AF_XDP readers
        self._started = not self._config.explicit_start
        self._popped: deque[_core.CHeap] = deque()
        self._batch = _ITERATION_BATCH
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
                "nap_ns": round(self._config.max_added_latency * 1e9),
                "memcpy": self._config.memcpy,
                "stop_on_stop_item": self._config.stop_on_stop_item,
                "allow_unsized_heaps": self._config.allow_unsized_heaps,
                "allow_out_of_order": self._config.allow_out_of_order,
                "contiguous_only": self._ring_config.contiguous_only,
                "keep_payload_ranges": self._ring_config.incomplete_keep_payload_ranges,
            },
        )

    # -------------------------------------------------------------- readers

    def _add(self, begin: Callable[[], ReaderInfo | None]) -> None:
        """Begin to read, now or when the stream is started."""

        def run() -> None:
            if not self._core.stopped:
                info = begin()
                if info is not None:
                    self._readers.append(info)

        if self._started:
            if self._config.explicit_start:
                raise RuntimeError("Cannot add readers after explicit start")
            run()
        else:
            self._pending.append(run)

    def start(self) -> None:
        """Let the readers begin, if the configuration says `explicit_start`; else do nothing.

        Raises
        ------
        TransportError
            If one of the readers cannot be set up; those before it have begun.
        """
        self._started = True
        while self._pending:
            self._pending.pop(0)()

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

        def begin() -> ReaderInfo:
            self._core.add_buffer_reader(view)
            return ReaderInfo("buffer", memory=view.nbytes)

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
        *,
        interface_index: int,
    ) -> None: ...
    def add_udp_reader(self, *args: Any, **kwargs: Any) -> None:
        """Read UDP datagrams.

        Four forms, told apart by the first argument:

        - ``add_udp_reader(port, max_size, buffer_size, bind_hostname="")``: bind to the address of
          `bind_hostname`, or to all. A multicast group is joined.
        - ``add_udp_reader(socket, max_size)``: a bound socket, which is duplicated, so it may be
          closed afterwards.
        - ``add_udp_reader(multicast_group, port, max_size, buffer_size, interface_address)``: join
          an IPv4 group on the interface with this address (empty: the system's choice). A unicast
          address will do too if it is that of the interface.
        - ``add_udp_reader(multicast_group, port, max_size, buffer_size, interface_index)``: join an
          IPv6 group on the interface with this index (0: the system's choice).

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
        TypeError
            If the arguments fit no form.
        """
        first = args[0] if args else None
        if isinstance(first, socket_module.socket) or "socket" in kwargs:
            self._add_udp_socket(**_bind_arguments(("socket", "max_size"), 1, args, kwargs))
        elif isinstance(first, str) or "multicast_group" in kwargs:
            last = "interface_index" if "interface_index" in kwargs else "interface_address"
            names = ("multicast_group", "port", "max_size", "buffer_size", last)
            self._add_udp_multicast(**_bind_arguments(names, 2, args, kwargs))
        else:
            port_names = ("port", "max_size", "buffer_size", "bind_hostname")
            self._add_udp_port(**_bind_arguments(port_names, 1, args, kwargs))

    def _add_udp_socket(
        self, socket: socket_module.socket, max_size: int = DEFAULT_UDP_MAX_SIZE
    ) -> None:
        if not isinstance(socket, socket_module.socket) or socket.type != socket_module.SOCK_DGRAM:
            raise TypeError("not a datagram socket")
        max_size = count("max_size", max_size)
        duplicate = socket.dup()
        self._add(lambda: self._read_socket(duplicate, max_size))

    def _add_udp_port(
        self,
        port: int,
        max_size: int = DEFAULT_UDP_MAX_SIZE,
        buffer_size: int = DEFAULT_UDP_BUFFER_SIZE,
        bind_hostname: str = "",
    ) -> None:
        port = _udp.port_number(port)
        max_size = count("max_size", max_size)
        buffer_size = count("buffer_size", buffer_size)
        if not isinstance(bind_hostname, str):
            raise TypeError(f"bind_hostname must be a str, not {bind_hostname!r}")
        family, address = int(socket_module.AF_INET), ""
        if bind_hostname:
            family, address = _udp.resolve(bind_hostname)
        self._add(
            lambda: self._read_socket(
                _udp.open_socket(family, address, port, buffer_size), max_size
            )
        )

    def _add_udp_multicast(
        self,
        multicast_group: str,
        port: int,
        max_size: int = DEFAULT_UDP_MAX_SIZE,
        buffer_size: int = DEFAULT_UDP_BUFFER_SIZE,
        interface_address: str = "",
        interface_index: int | None = None,
    ) -> None:
        port = _udp.port_number(port)
        max_size = count("max_size", max_size)
        buffer_size = count("buffer_size", buffer_size)
        family = int(socket_module.AF_INET if interface_index is None else socket_module.AF_INET6)
        address = _udp.resolve(multicast_group, family)[1]
        interface: str | int = interface_address if interface_index is None else interface_index
        if not _udp.is_multicast(address):
            if interface_index is not None:
                raise ValueError(f"endpoint {address} is not an IPv6 multicast address")
            if interface and _udp.resolve(interface_address, family)[1] != address:
                raise ValueError(
                    f"endpoint {address} is not multicast and does not match interface address "
                    f"{interface_address}"
                )
        self._add(
            lambda: self._read_socket(
                _udp.open_socket(family, address, port, buffer_size, interface), max_size
            )
        )

    def _read_socket(self, sock: socket_module.socket, max_size: int) -> ReaderInfo:
        """Read from the socket, which is closed: the core has a duplicate."""
        with sock:
            self._core.add_udp_reader(sock.fileno(), max_size)
            return ReaderInfo(
                "udp",
                endpoints=(sock.getsockname()[:2],),
                memory=sock.getsockopt(socket_module.SOL_SOCKET, socket_module.SO_RCVBUF),
            )

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
        """
        if not isinstance(config, UdpXdpConfig):
            raise TypeError(f"config must be a UdpXdpConfig, not {config!r}")
        config = config._copy()
        config._check()

        def begin() -> ReaderInfo | None:
            try:
                return open_reader(self._core, config, self._joined)
            except XdpError as error:
                if not config.fallback:
                    raise
                LOGGER.warning("%s; reading ordinary UDP sockets instead", error)
            for host, port in config.endpoints:
                self._read_fallback(config, host, port)
            return None

        self._add(begin)

    def _read_fallback(self, config: UdpXdpConfig, host: str, port: int) -> None:
        family, address = _udp.resolve(host)
        interface: str | int = config.interface_address
        if family == socket_module.AF_INET6:
            interface = socket_module.if_nametoindex(config.interface) if config.interface else 0
        sock = _udp.open_socket(family, address, port, config.buffer_size, interface)
        self._readers.append(self._read_socket(sock, config.max_size))

    # -------------------------------------------------------------- heaps

    def _note_thread(self) -> None:
        """Take heaps one by one once several threads read: each shall see them in order."""
        thread = threading.get_ident()
        if self._reader_thread != thread:
            if self._reader_thread:
                self._batch = 1
            self._reader_thread = thread

    def _make(self, c: _core.CHeap) -> Heap | IncompleteHeap:
        return make_heap(c, self._config._bug_compat)

    def get_nowait(self) -> Heap | IncompleteHeap:
        """Return the next heap.

        Raises
        ------
        Empty
            If none is waiting.
        Stopped
            If the stream has stopped and all its heaps have been read.
        """
        try:
            return self._make(self._popped.popleft())
        except IndexError:
            pass
        heaps = self._core.pop(1, 0)
        if not heaps:
            raise Empty("ring buffer is empty")
        return self._make(heaps[0])

    # -------------------------------------------------------------- state

    def stop(self) -> None:
        """Stop receiving and close the sockets.

        When it returns nothing is received any more. Heaps that were finished can still be got;
        those that were not are lost, and counted. It may be called from any thread and more than
        once; a stopped stream cannot be started again.
        """
        self._pending.clear()
        self._core.stop()
        while self._joined:
            self._joined.pop().close()
        if any(reader.transport == "udp_xdp" for reader in self._readers):
            release_ports()

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
        values = self._core.stats()
        values[_core.N_CORE_STATS : _core.N_CORE_STATS] = [0] * self._n_custom_stats
        return StreamStats(self._stat_config, values)

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


class Stream(_Stream):
    """A stream of heaps.

    Packets with the same heap identifier belong to the same heap, whichever reader brought them.
    Iterate over it, or call :meth:`get`, to have the heaps. Used as a context manager it is stopped
    at the end.

    Parameters
    ----------
    thread_pool : ThreadPool
        Threads that receive.
    config : StreamConfig, optional
        How heaps are put together. A copy is kept.
    ring_config : RingStreamConfig, optional
        How they wait for the user. A copy is kept.
    """

    def get(self) -> Heap | IncompleteHeap:
        """Return the next heap, waiting for it.

        Raises
        ------
        Stopped
            If the stream has stopped and all its heaps have been read.
        """
        self._note_thread()
        while True:
            try:
                return self._make(self._popped.popleft())
            except IndexError:
                pass
            heaps = self._core.pop(1, _SLICE_MS)
            if heaps:
                return self._make(heaps[0])

    def __iter__(self) -> Iterator[Heap | IncompleteHeap]:
        self._note_thread()
        return self

    def __next__(self) -> Heap | IncompleteHeap:
        popped = self._popped
        try:
            return self._make(popped.popleft())
        except IndexError:
            pass
        heaps: list[_core.CHeap] = []
        try:
            # Take all there is at once; whoever else reads the stream finds them in _popped.
            while not heaps:
                heaps = self._core.pop(self._batch, _SLICE_MS)
        except Stopped:
            raise StopIteration from None
        popped.extend(heaps[1:])
        return self._make(heaps[0])
