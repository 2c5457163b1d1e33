"""UDP sockets."""

from __future__ import annotations

import contextlib
import socket as socket_module
from dataclasses import dataclass
from typing import Any, Final

from .. import _core
from .._addresses import interface_number, is_multicast, port_number, resolve
from .._arguments import bind_arguments, count
from . import _sockets
from ._reader import Begin, ReaderInfo

#: Variable that names an interface, through which UDP readers are to receive by AF_XDP.
SWITCH: Final = "XDPSPEAD_INTERFACE"

DEFAULT_MAX_SIZE: Final = 9200
DEFAULT_BUFFER_SIZE: Final = 8 * 1024 * 1024


@dataclass(frozen=True)
class SocketRequest:
    """A socket that is to be opened and read: what a port, or a group, comes to.

    The attributes are the parameters of :func:`._sockets.open_socket`, and `max_size`.
    """

    family: int
    address: str
    port: int
    max_size: int
    buffer_size: int
    interface: str | int = ""

    def open(self) -> socket_module.socket:
        return _sockets.open_socket(
            self.family, self.address, self.port, self.buffer_size, self.interface
        )

    def __call__(self, stream: _core.Stream) -> list[ReaderInfo]:
        """Begin to read."""
        return [read(stream, self.open(), self.max_size)]


def prepare(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Begin | SocketRequest:
    """Choose the form of ``add_udp_reader`` that the arguments fit, and check them."""
    first = args[0] if args else None
    if isinstance(first, socket_module.socket) or "socket" in kwargs:
        return _from_socket(**bind_arguments(("socket", "max_size"), 1, args, kwargs))
    if isinstance(first, str) or "multicast_group" in kwargs:
        index = "interface_index" in kwargs or (len(args) == 5 and not isinstance(args[4], str))
        last = "interface_index" if index else "interface_address"
        names = ("multicast_group", "port", "max_size", "buffer_size", last)
        return _from_group(**bind_arguments(names, 2, args, kwargs))
    port_names = ("port", "max_size", "buffer_size", "bind_hostname")
    return _from_port(**bind_arguments(port_names, 1, args, kwargs))


def _from_socket(socket: socket_module.socket, max_size: int = DEFAULT_MAX_SIZE) -> Begin:
    if not isinstance(socket, socket_module.socket) or socket.type != socket_module.SOCK_DGRAM:
        raise TypeError("not a datagram socket")
    max_size = count("max_size", max_size)
    duplicate = socket.dup()
    return _sockets.closing(lambda stream: [read(stream, duplicate, max_size)], duplicate)


def _from_port(
    port: int,
    max_size: int = DEFAULT_MAX_SIZE,
    buffer_size: int = DEFAULT_BUFFER_SIZE,
    bind_hostname: str = "",
) -> SocketRequest:
    port = port_number(port)
    max_size = count("max_size", max_size)
    buffer_size = count("buffer_size", buffer_size)
    if not isinstance(bind_hostname, str):
        raise TypeError(f"bind_hostname must be a str, not {bind_hostname!r}")
    family, address = int(socket_module.AF_INET), ""
    if bind_hostname:
        family, address = resolve(bind_hostname)
    return SocketRequest(family, address, port, max_size, buffer_size)


def _is_address(host: str, family: int) -> bool:
    with contextlib.suppress(OSError):
        return bool(socket_module.inet_pton(family, host.partition("%")[0]))
    return False


def _resolve_group4(group: str, interface_address: str) -> str:
    """Return the address of an IPv4 group, or of the interface itself."""
    if not isinstance(interface_address, str):
        raise TypeError(f"interface_address must be a str, not {interface_address!r}")
    if _is_address(group, socket_module.AF_INET6):
        raise ValueError(
            f"endpoint {group} is not an IPv4 address: groups of IPv6 are joined with "
            "interface_index (0: the system's choice of interface)"
        )
    address = resolve(group, socket_module.AF_INET)[1]
    if not is_multicast(address) and (
        not interface_address or resolve(interface_address, socket_module.AF_INET)[1] != address
    ):
        raise ValueError(
            f"endpoint {address} is not multicast and does not match interface address "
            f"{interface_address!r}: bind to an address with bind_hostname"
        )
    return address


def _resolve_group6(group: str) -> str:
    if _is_address(group, socket_module.AF_INET):
        raise ValueError(f"endpoint {group} is not an IPv6 multicast address")
    address = resolve(group, socket_module.AF_INET6)[1]
    if not is_multicast(address):
        raise ValueError(f"endpoint {address} is not an IPv6 multicast address")
    return address


def _from_group(
    multicast_group: str,
    port: int,
    max_size: int = DEFAULT_MAX_SIZE,
    buffer_size: int = DEFAULT_BUFFER_SIZE,
    interface_address: str = "",
    interface_index: int | None = None,
) -> SocketRequest:
    port = port_number(port)
    max_size = count("max_size", max_size)
    buffer_size = count("buffer_size", buffer_size)
    interface: str | int
    if not isinstance(multicast_group, str):
        raise TypeError(f"multicast_group must be a str, not {multicast_group!r}")
    if interface_index is None:
        family, interface = socket_module.AF_INET, interface_address
        address = _resolve_group4(multicast_group, interface_address)
    else:
        family, interface = socket_module.AF_INET6, interface_number(interface_index)
        address = _resolve_group6(multicast_group)
    return SocketRequest(family, address, port, max_size, buffer_size, interface)


def read(
    stream: _core.Stream, sock: socket_module.socket, max_size: int, source: str = ""
) -> ReaderInfo:
    """Read from the socket, which is closed: the core has a duplicate; `source` is for display."""
    with sock:
        stream.add_udp_reader(sock.fileno(), max_size)
        return ReaderInfo(
            "udp",
            endpoints=((*sock.getsockname()[:2], source) if source else sock.getsockname()[:2],),
            memory=sock.getsockopt(socket_module.SOL_SOCKET, socket_module.SO_RCVBUF),
        )
