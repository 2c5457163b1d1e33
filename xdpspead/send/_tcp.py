"""TCP connections."""

from __future__ import annotations

import socket as socket_module
from typing import Any, ClassVar, overload

from .. import _core
from .._addresses import set_buffer_size, socket_name
from .._arguments import bind_arguments, count
from .._threads import ThreadPool
from . import _sockets
from ._config import StreamConfig
from ._sockets import Endpoints
from ._stream import Stream, SyncStream, checked


def _endpoint(endpoints: Any) -> _sockets.Endpoint:
    wanted = _sockets.endpoints(endpoints) if endpoints else []
    if len(wanted) != 1:
        raise ValueError("endpoints must contain exactly one element: a connection has one end")
    return wanted[0]


def prepare(
    endpoints: Any, buffer_size: int, interface_address: str
) -> tuple[socket_module.socket, _sockets.Endpoint]:
    """Return a socket that is to be connected, and where to."""
    buffer_size = count("buffer_size", buffer_size)
    if not isinstance(interface_address, str):
        raise TypeError(f"interface_address must be a str, not {interface_address!r}")
    endpoint = _endpoint(endpoints)
    sock = socket_module.socket(endpoint[0], socket_module.SOCK_STREAM)
    try:
        set_buffer_size(sock, buffer_size, sending=True)
        if interface_address:
            _sockets.use_interface(sock, interface_address, multicast=False)
    except BaseException:
        sock.close()
        raise
    return sock, endpoint


class _TcpStream(Stream):
    """TCP, blocking and not."""

    DEFAULT_BUFFER_SIZE: ClassVar[int] = 208 * 1024

    def _use_socket(
        self,
        thread_pool: ThreadPool,
        socket: socket_module.socket,
        config: StreamConfig | None = None,
    ) -> None:
        if (
            not isinstance(socket, socket_module.socket)
            or socket.family not in (socket_module.AF_INET, socket_module.AF_INET6)
            or socket.type != socket_module.SOCK_STREAM
            or socket.fileno() < 0
        ):
            raise TypeError("not a TCP socket that is open")
        pool, config = checked(thread_pool, config)
        socket.getpeername()  # raises ENOTCONN
        self._begin(thread_pool, config, _core.Sender.tcp(pool, config, socket.fileno()))


class TcpStream(_TcpStream, SyncStream):
    """Send heaps through a TCP connection.

    It is called in one of these forms, with or without the names::

        TcpStream(thread_pool, socket, config)
        TcpStream(thread_pool, endpoints, config, buffer_size, interface_address)

    After an error the connection cannot be used any more: every further call fails at once.

    Parameters
    ----------
    thread_pool : ThreadPool
        Threads that send what nobody waits for.
    socket : socket.socket
        A connected socket, which stays the caller's; the stream has a duplicate.
    endpoints : list of (str, int)
        Host and port to connect to: exactly one pair.
    config : StreamConfig, optional
        How to send. A copy is kept.
    buffer_size : int
        Bytes of kernel buffer to ask for; 0 for the system's default.
    interface_address : str
        Address of the interface to connect from.

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

    @overload
    def __init__(
        self,
        thread_pool: ThreadPool,
        socket: socket_module.socket,
        config: StreamConfig = ...,
    ) -> None: ...
    @overload
    def __init__(
        self,
        thread_pool: ThreadPool,
        endpoints: Endpoints,
        config: StreamConfig = ...,
        buffer_size: int = ...,
        interface_address: str = ...,
    ) -> None: ...
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        second = args[1] if len(args) > 1 else None
        if isinstance(second, socket_module.socket) or "socket" in kwargs:
            names: tuple[str, ...] = ("thread_pool", "socket", "config")
            self._use_socket(**bind_arguments(names, 2, args, kwargs))
            return
        names = ("thread_pool", "endpoints", "config", "buffer_size", "interface_address")
        self._connect(**bind_arguments(names, 2, args, kwargs))

    def _connect(
        self,
        thread_pool: ThreadPool,
        endpoints: Any,
        config: StreamConfig | None = None,
        buffer_size: int = _TcpStream.DEFAULT_BUFFER_SIZE,
        interface_address: str = "",
    ) -> None:
        checked(thread_pool, config)
        sock, endpoint = prepare(endpoints, buffer_size, interface_address)
        with sock:
            try:
                sock.connect(socket_name(*endpoint))
            except OSError as error:
                raise _sockets.connect_error(endpoint, error) from None
            self._use_socket(thread_pool, sock, config)
