"""TCP connections."""

from __future__ import annotations

import socket as socket_module
from typing import Any, Final

from .. import _core
from .._addresses import port_number, resolve
from .._arguments import bind_arguments, count
from . import _sockets
from ._reader import Begin, ReaderInfo

DEFAULT_MAX_SIZE: Final = 65536
DEFAULT_BUFFER_SIZE: Final = 208 * 1024


def prepare(args: tuple[Any, ...], kwargs: dict[str, Any], *, stopped: bool) -> Begin:
    """Choose the form of ``add_tcp_reader`` that the arguments fit, check them, and listen.

    Unlike a UDP socket this one is there at once, also with ``explicit_start``: a sender may
    connect before the stream is started, and nothing that it sends is lost. Only for a stream that
    has `stopped` there is none.
    """
    first = args[0] if args else None
    if isinstance(first, socket_module.socket) or "acceptor" in kwargs:
        return _from_acceptor(**bind_arguments(("acceptor", "max_size"), 1, args, kwargs))
    port_names = ("port", "max_size", "buffer_size", "bind_hostname")
    return _from_port(**bind_arguments(port_names, 1, args, kwargs), stopped=stopped)


def _from_acceptor(acceptor: socket_module.socket, max_size: int = DEFAULT_MAX_SIZE) -> Begin:
    if (
        not isinstance(acceptor, socket_module.socket)
        or acceptor.family not in (socket_module.AF_INET, socket_module.AF_INET6)
        or acceptor.type != socket_module.SOCK_STREAM
    ):
        raise TypeError("not a TCP socket")
    return _reading(acceptor.dup(), count("max_size", max_size))


def _from_port(
    port: int,
    max_size: int = DEFAULT_MAX_SIZE,
    buffer_size: int = DEFAULT_BUFFER_SIZE,
    bind_hostname: str = "",
    *,
    stopped: bool,
) -> Begin:
    port = port_number(port)
    max_size = count("max_size", max_size)
    buffer_size = count("buffer_size", buffer_size)
    if not isinstance(bind_hostname, str):
        raise TypeError(f"bind_hostname must be a str, not {bind_hostname!r}")
    if stopped:
        return lambda stream: []
    family, address = int(socket_module.AF_INET), ""
    if bind_hostname:
        family, address = resolve(bind_hostname)
    return _reading(_sockets.listen(family, address, port, buffer_size), max_size)


def _reading(listener: socket_module.socket, max_size: int) -> Begin:
    def begin(stream: _core.Stream) -> list[ReaderInfo]:
        with listener:
            stream.add_tcp_reader(listener.fileno(), max_size)
            return [
                ReaderInfo(
                    "tcp",
                    endpoints=(listener.getsockname()[:2],),
                    memory=listener.getsockopt(socket_module.SOL_SOCKET, socket_module.SO_RCVBUF),
                )
            ]

    return _sockets.closing(begin, listener)
