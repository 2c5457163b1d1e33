"""UDP sockets."""

from __future__ import annotations

import os
import socket as socket_module
from typing import Any, ClassVar, overload

from .. import _core
from .._addresses import interface_number, set_buffer_size
from .._arguments import bind_arguments, count
from .._threads import ThreadPool
from . import _sockets
from ._config import StreamConfig
from ._sockets import Endpoints
from ._stream import Stream, SyncStream, checked


def _segmentation() -> bool:
    return os.environ.get("XDPSPEAD_UDP_SEGMENTATION", "1") != "0"


class _UdpStream(Stream):
    """UDP, blocking and not."""

    DEFAULT_BUFFER_SIZE: ClassVar[int] = 512 * 1024

    @overload
    def __init__(
        self,
        thread_pool: ThreadPool,
        endpoints: Endpoints,
        config: StreamConfig = ...,
        buffer_size: int = ...,
        interface_address: str = ...,
    ) -> None: ...
    @overload
    def __init__(
        self,
        thread_pool: ThreadPool,
        endpoints: Endpoints,
        config: StreamConfig,
        buffer_size: int,
        ttl: int,
        interface_address: str = ...,
    ) -> None: ...
    @overload
    def __init__(
        self,
        thread_pool: ThreadPool,
        endpoints: Endpoints,
        config: StreamConfig = ...,
        buffer_size: int = ...,
        *,
        ttl: int,
        interface_address: str = ...,
    ) -> None: ...
    @overload
    def __init__(
        self,
        thread_pool: ThreadPool,
        endpoints: Endpoints,
        config: StreamConfig,
        buffer_size: int,
        ttl: int,
        interface_index: int,
    ) -> None: ...
    @overload
    def __init__(
        self,
        thread_pool: ThreadPool,
        endpoints: Endpoints,
        config: StreamConfig = ...,
        buffer_size: int = ...,
        *,
        ttl: int,
        interface_index: int,
    ) -> None: ...
    @overload
    def __init__(
        self,
        thread_pool: ThreadPool,
        socket: socket_module.socket,
        endpoints: Endpoints,
        config: StreamConfig = ...,
    ) -> None: ...
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        second = args[1] if len(args) > 1 else None
        if isinstance(second, socket_module.socket) or "socket" in kwargs:
            names: tuple[str, ...] = ("thread_pool", "socket", "endpoints", "config")
            self._use_socket(**bind_arguments(names, 3, args, kwargs))
            return
        index = "interface_index" in kwargs or (len(args) == 6 and not isinstance(args[5], str))
        last = "interface_index" if index else "interface_address"
        names = ("thread_pool", "endpoints", "config", "buffer_size", "ttl", last)
        if len(args) == 5 and isinstance(args[4], str):
            names = (*names[:4], last)
        self._make_socket(**bind_arguments(names, 2, args, kwargs))

    def _use_socket(
        self,
        thread_pool: ThreadPool,
        socket: socket_module.socket,
        endpoints: Any,
        config: StreamConfig | None = None,
    ) -> None:
        if not isinstance(socket, socket_module.socket) or socket.type != socket_module.SOCK_DGRAM:
            raise TypeError("not a datagram socket")
        pool, config = checked(thread_pool, config)
        wanted = _sockets.endpoints(endpoints)
        if wanted[0][0] != socket.family:
            raise ValueError(f"endpoint {wanted[0][1]} is of another IP version than the socket")
        if socket.fileno() < 0:
            raise TypeError("the socket is closed")
        self._open(thread_pool, pool, config, socket, wanted)

    def _make_socket(
        self,
        thread_pool: ThreadPool,
        endpoints: Any,
        config: StreamConfig | None = None,
        buffer_size: int = DEFAULT_BUFFER_SIZE,
        ttl: int | None = None,
        interface_address: str = "",
        interface_index: int | None = None,
    ) -> None:
        pool, config = checked(thread_pool, config)
        buffer_size = count("buffer_size", buffer_size)
        if interface_index is not None and ttl is None:
            raise TypeError("interface_index needs a ttl")
        if not isinstance(interface_address, str):
            raise TypeError(f"interface_address must be a str, not {interface_address!r}")
        wanted = _sockets.endpoints(endpoints)
        interface: str | int = interface_address
        if interface_index is not None:
            interface = interface_number(interface_index)
            _sockets.require_multicast(socket_module.AF_INET6, wanted)
        elif ttl is not None:
            version = socket_module.AF_INET if interface_address else None
            _sockets.require_multicast(version, wanted)
        if ttl is not None and not 0 <= (ttl := _ttl(ttl)) <= 255:
            raise IndexError(f"multicast hops value out of range: ttl is {ttl}, not 0 to 255")
        with socket_module.socket(wanted[0][0], socket_module.SOCK_DGRAM) as sock:
            set_buffer_size(sock, buffer_size, sending=True)
            if ttl is not None:
                _sockets.set_hops(sock, ttl)
            if interface != "":
                _sockets.use_interface(sock, interface, multicast=_sockets.any_multicast(wanted))
            self._open(thread_pool, pool, config, sock, wanted)

    def _open(
        self,
        thread_pool: ThreadPool,
        pool: _core.Pool,
        config: StreamConfig,
        sock: socket_module.socket,
        wanted: list[_sockets.Endpoint],
    ) -> None:
        addresses = [_sockets.packed(endpoint) for endpoint in wanted]
        core = _core.Sender.udp(pool, config, sock.fileno(), addresses, _segmentation())
        self._begin(thread_pool, config, core)


def _ttl(value: Any) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"ttl must be an integer, not {value!r}")
    return int(value.__index__())


class UdpStream(_UdpStream, SyncStream):
    """Send heaps as UDP datagrams.

    It is called in one of these forms, with or without the names::

        UdpStream(thread_pool, endpoints, config, buffer_size, interface_address="")
        UdpStream(thread_pool, endpoints, config, buffer_size, ttl)
        UdpStream(thread_pool, endpoints, config, buffer_size, ttl, interface_address)
        UdpStream(thread_pool, endpoints, config, buffer_size, ttl, interface_index)
        UdpStream(thread_pool, socket, endpoints, config)

    Datagrams of one heap that are equally long are handed to the kernel together, which cuts them
    (UDP segmentation offload), where kernel and route can do that. Set
    ``XDPSPEAD_UDP_SEGMENTATION=0`` in the environment to have every datagram handed over by itself.

    Parameters
    ----------
    thread_pool : ThreadPool
        Threads that send what nobody waits for.
    endpoints : list of (str, int)
        Host and port of each substream, all of IPv4 or all of IPv6.
    config : StreamConfig, optional
        How to send. A copy is kept.
    buffer_size : int
        Bytes of kernel buffer to ask for; 0 for the system's default.
    ttl : int
        Hops that multicast packets may make. Only for multicast endpoints; without it the system's
        default of 1 holds.
    interface_address : str
        Address of the interface to send from.
    interface_index : int
        Index of the interface to send from, for multicast over IPv6.
    socket : socket.socket
        A UDP socket, which stays the caller's and as it is; the stream has a duplicate.

    Raises
    ------
    TransportError
        If a host cannot be resolved or the interface not be used.
    ValueError
        If there is no endpoint, they do not fit together, or `ttl` is given and one is no group.
    IndexError
        If `ttl` is none.
    TypeError
        If an argument has the wrong type.
    """
