"""Streams that send, for :mod:`asyncio`.

How it works: heaps go into the queue of the stream. Small ones are sent at once, if nobody else is
sending; else a thread of the pool sends them, and the event loop watches the stream's descriptor as
long as there are futures of it to be done.
"""

from __future__ import annotations

import asyncio
import socket as socket_module
import threading
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Self

from .. import _core
from .._addresses import socket_name
from .._threads import ThreadPool
from . import _sockets
from ._config import StreamConfig
from ._group import GroupMode, HeapReference, HeapReferenceList
from ._heap import Heap
from ._inproc import _InprocStream
from ._stream import Stream, checked, group_of_many, group_of_one, mode_number
from ._tcp import _TcpStream, prepare
from ._udp import _UdpStream
from ._xdp import _UdpXdpStream

__all__ = ["AsyncStream", "InprocStream", "TcpStream", "UdpStream", "UdpXdpStream"]


class AsyncStream(Stream):
    """A stream whose calls return futures. Make one of :class:`UdpStream` and the like.

    It may be used from several event loops, in as many threads. A future that is cancelled takes
    nothing back: the heap is sent.
    """

    def _begin(self, thread_pool: ThreadPool, config: StreamConfig, core: _core.Sender) -> None:
        super()._begin(thread_pool, config, core)
        self._lock = threading.Lock()  # guards those below
        # Each future with its loop; heaps are in _held.
        self._futures: dict[int, tuple[asyncio.AbstractEventLoop, asyncio.Future[int]]] = {}
        self._flushing: list[tuple[int, asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        # Futures of heaps that were sent at once, by loop, until its next turn.
        self._known: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[int], Any]]] = {}
        self._watching: dict[asyncio.AbstractEventLoop, int] = {}  # the descriptor's number

    @property
    def fd(self) -> int:
        """Descriptor that is readable when :meth:`process_callbacks` has something to do.

        The event loop in which heaps are sent watches it by itself. Do not read from it.
        """
        return self._core.fd

    def async_send_heap(
        self, heap: Heap, cnt: int = -1, substream_index: int = 0, rate: float = -1.0
    ) -> asyncio.Future[int]:
        """Queue a heap to be sent.

        Parameters
        ----------
        heap, cnt, substream_index, rate
            As of :meth:`.SyncStream.send_heap`. Arrays of the heap must not be changed before
            the future is done.

        Returns
        -------
        asyncio.Future of int
            Done when the transport has taken all packets: how many bytes they are; or with an
            OSError, see there. BlockingIOError if the queue is full.

        Raises
        ------
        TypeError
            If an argument has the wrong type.
        ValueError
            If the packets of the stream are too small for a heap.
        RuntimeError
            If there is no event loop.
        """
        return self._post(group_of_one(heap, cnt, substream_index, rate), 0)

    def async_send_heaps(
        self, heaps: Iterable[HeapReference] | HeapReferenceList, mode: GroupMode
    ) -> asyncio.Future[int]:
        """Queue a group of heaps to be sent, one future for all.

        Parameters
        ----------
        heaps, mode
            As of :meth:`.SyncStream.send_heaps`.

        Returns
        -------
        asyncio.Future of int
            As of :meth:`async_send_heap`.

        Raises
        ------
        TypeError
            If an argument has the wrong type.
        ValueError
            If the packets of the stream are too small for a heap.
        RuntimeError
            If there is no event loop.
        """
        return self._post(group_of_many(heaps), mode_number(mode))

    def _post(self, group: _core.Group, mode: int) -> asyncio.Future[int]:
        # Not only a running one: run_until_complete() may be called with what is returned.
        loop = asyncio.get_event_loop()
        with self._lock:
            ticket, outcome = self._core.post(group, mode)
            if isinstance(outcome, ValueError):
                raise outcome
            future: asyncio.Future[int] = loop.create_future()
            if outcome is None:
                self._held[ticket] = group
                self._futures[ticket] = (loop, future)
                self._watch(loop)
                return future
        # Not now: whoever awaits one heap after the other lets others have their turn.
        known = self._known.get(loop)
        if known:
            known.append((future, outcome))
        else:
            self._known[loop] = [(future, outcome)]
            loop.call_soon(self._tell_known, loop)
        return future

    def _tell_known(self, loop: asyncio.AbstractEventLoop) -> None:
        for future, outcome in self._known.pop(loop, ()):
            _set(future, outcome)

    def process_callbacks(self) -> None:
        """Tell the futures of heaps that have been sent. The event loop calls it."""
        with self._lock:
            self._take()

    def _take(self) -> None:
        """Tell futures; lock held."""
        for ticket, outcome in self._core.take():
            del self._held[ticket]
            loop, future = self._futures.pop(ticket)
            _call(loop, _set, future, outcome)
            while self._flushing and self._flushing[0][0] <= ticket:
                _, loop, flushed = self._flushing.pop(0)
                _call(loop, _set, flushed, None)
        if self._watching:
            wanted = {loop for loop, _ in self._futures.values()}
            wanted.update(loop for _, loop, _ in self._flushing)
            for loop in [loop for loop in self._watching if loop not in wanted]:
                self._unwatch(loop)

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        if loop not in self._watching:
            self._watching[loop] = self._core.fd
            loop.add_reader(self._watching[loop], self.process_callbacks)

    def _unwatch(self, loop: asyncio.AbstractEventLoop) -> None:
        _call(loop, loop.remove_reader, self._watching.pop(loop))

    def flush(self) -> None:
        """Wait, blocking the thread, until all heaps in the queue have been sent or have failed.

        Their futures are done when the event loop runs again.
        """
        self._core.flush()

    async def async_flush(self) -> None:
        """Wait until all heaps in the queue have been sent or have failed, and their futures done.

        Heaps that are queued meanwhile are not waited for.
        """
        loop = asyncio.get_running_loop()
        self._tell_known(loop)
        with self._lock:
            self._take()
            if not self._futures:
                return
            flushed: asyncio.Future[None] = loop.create_future()
            self._flushing.append((max(self._futures), loop, flushed))
            self._watch(loop)
        await flushed

    async def __aenter__(self) -> Self:
        """Return the stream; at the end of the block all heaps are sent, and then it ends."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.async_flush()
        self._core.stop()


def _call(loop: asyncio.AbstractEventLoop, function: Callable[..., Any], *args: Any) -> None:
    """Call a function in the thread of a loop: now if that is this one. Not if it is closed."""
    if loop.is_closed():
        return
    try:
        here = asyncio.get_running_loop() is loop
    except RuntimeError:
        here = False
    if here:
        function(*args)
    else:
        loop.call_soon_threadsafe(function, *args)


def _set(future: asyncio.Future[Any], outcome: Any) -> None:
    if future.done():  # cancelled
        return
    if isinstance(outcome, BaseException):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


class UdpStream(_UdpStream, AsyncStream):
    """Send heaps as UDP datagrams, from coroutines.

    It is made as :class:`.send.UdpStream` is.
    """


class TcpStream(_TcpStream, AsyncStream):
    """Send heaps through a TCP connection, from coroutines.

    Parameters
    ----------
    thread_pool : ThreadPool
        Threads that send.
    socket : socket.socket
        A connected socket, which stays the caller's; the stream has a duplicate.
    config : StreamConfig, optional
        How to send. A copy is kept.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    """

    def __init__(
        self,
        thread_pool: ThreadPool,
        socket: socket_module.socket,
        config: StreamConfig | None = None,
    ) -> None:
        self._use_socket(thread_pool, socket, config)

    @classmethod
    async def connect(
        cls,
        thread_pool: ThreadPool,
        endpoints: Any,
        config: StreamConfig | None = None,
        buffer_size: int = _TcpStream.DEFAULT_BUFFER_SIZE,
        interface_address: str = "",
    ) -> Self:
        """Connect, and return the stream.

        The parameters are those of :class:`.send.TcpStream`.

        Raises
        ------
        OSError
            If there is no connection, with the errno; ConnectionRefusedError if nobody listens.
        TransportError
            If a host cannot be resolved or the interface not be used.
        ValueError
            If there is not exactly one endpoint.
        TypeError
            If an argument has the wrong type.
        """
        checked(thread_pool, config)
        sock, endpoint = prepare(endpoints, buffer_size, interface_address)
        with sock:
            sock.setblocking(False)
            try:
                await asyncio.get_running_loop().sock_connect(sock, socket_name(*endpoint))
            except OSError as error:
                raise _sockets.connect_error(endpoint, error) from None
            return cls(thread_pool, sock, config)


class InprocStream(_InprocStream, AsyncStream):
    """Send heaps to streams of the same process, from coroutines.

    It is made as :class:`.send.InprocStream` is.
    """


class UdpXdpStream(_UdpXdpStream, AsyncStream):
    """Send heaps as UDP datagrams through AF_XDP, from coroutines.

    It is made as :class:`.send.UdpXdpStream` is.
    """
