"""Addresses, ports and buffers of sockets."""

from __future__ import annotations

import operator
import socket
from collections.abc import Sequence
from typing import Any, Final

from ._errors import TransportError
from ._log import LOGGER

# Option, the one without a limit (from the kernel's headers), and the name of the limit.
_RECEIVE_BUFFER: Final = (socket.SO_RCVBUF, 33, "net.core.rmem_max")
_SEND_BUFFER: Final = (socket.SO_SNDBUF, 32, "net.core.wmem_max")


def port_number(value: Any) -> int:
    """Return `value` as a port number.

    Raises
    ------
    TypeError
        If it is no integer from 0 to 65535.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"a port must be an integer, not {value!r}")
    port = int(value.__index__())
    if not 0 <= port <= 65535:
        raise TypeError(f"a port must be from 0 to 65535, not {port}")
    return port


def endpoint_pair(value: Any) -> tuple[str, int]:
    """Return `value` as host and port of an endpoint.

    Raises
    ------
    TypeError
        If it is no pair of a str and an integer from 0 to 65535.
    """
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != 2:
        raise TypeError(f"an endpoint is a pair of host and port, not {value!r}")
    host, port = value
    if not isinstance(host, str):
        raise TypeError(f"the host of an endpoint is a str, not {host!r}")
    return host, port_number(port)


def endpoint_with_source(value: Any) -> tuple[str, int] | tuple[str, int, str]:
    """Return `value` as host and port of an endpoint and, if it says so, the host that sends.

    Raises
    ------
    TypeError
        If it is neither a pair as for :func:`endpoint_pair`, nor that with one more str.
    """
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != 3:
        return endpoint_pair(value)
    host, port = endpoint_pair(value[:2])
    source = value[2]
    if not isinstance(source, str) or not source:
        raise TypeError(f"the source of an endpoint is the name or address of a host: {value!r}")
    return host, port, source


def interface_number(value: Any) -> int:
    """Return `value` as the index of a network interface; 0 stands for none.

    Raises
    ------
    TypeError
        If it is no integer that can be one.
    """
    index = operator.index(value)
    if not 0 <= index < 1 << 31:
        raise TypeError(f"an interface index must be from 0 to 2**31 - 1, not {index}")
    return index


def resolve(host: str, family: int = socket.AF_UNSPEC) -> tuple[int, str]:
    """Return family and first address of a host name or address.

    The zone of a scoped address ("fe80::1%eth0") comes back as a number ("fe80::1%2").

    Raises
    ------
    TransportError
        If there is none.
    """
    # Text it would have encoded by IDNA, whose tables take half a MiB.
    name = host.encode() if host.isascii() else host
    try:
        found = socket.getaddrinfo(name, None, family, socket.SOCK_DGRAM)
    except OSError as error:
        raise TransportError(error.errno or 0, f"resolve: {host!r}: {error}", "resolve") from None
    address = found[0][4]
    zone = f"%{address[3]}" if len(address) == 4 and address[3] else ""
    return found[0][0], f"{address[0]!s}{zone}"


def _packed(address: str) -> bytes:
    # The module ipaddress would take a quarter of a MiB.
    host = address.partition("%")[0]
    return socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host)


def is_multicast(address: str) -> bool:
    """Return whether an address is that of a multicast group: 224.0.0.0/4 or ff00::/8."""
    first = _packed(address)[0]
    return first == 0xFF if ":" in address else first >> 4 == 0xE


def is_unspecified(address: str) -> bool:
    """Return whether an address stands for all of a host's own: 0.0.0.0 or ::."""
    return not any(_packed(address))


def socket_name(family: int, address: str, port: int, interface: int = 0) -> tuple[Any, ...]:
    """Return what :meth:`socket.socket.bind` takes; `interface` is for link-local addresses."""
    if family != socket.AF_INET6:
        return address, port
    host, _, zone = address.partition("%")
    # The kernel wants to know the interface of a link-local address, and ignores it of others.
    return host, port, 0, int(zone or 0) or interface


def set_buffer_size(sock: socket.socket, size: int, *, sending: bool = False) -> None:
    """Ask the kernel for room for `size` bytes; warn if there is less. 0 asks for nothing."""
    if not size:
        return
    option, force, limit = _SEND_BUFFER if sending else _RECEIVE_BUFFER
    # With CAP_NET_ADMIN the system's limit does not hold.
    for which in (force, option):
        try:
            sock.setsockopt(socket.SOL_SOCKET, which, min(size, 0x3FFFFFFF))
        except OSError:
            continue
        # The kernel doubles the number, for its own bookkeeping, and tells the doubled one.
        got = sock.getsockopt(socket.SOL_SOCKET, option) // 2
        if got >= size:
            return
    got = sock.getsockopt(socket.SOL_SOCKET, option) // 2
    LOGGER.warning(
        "requested socket buffer size %d but only received %d: raise the limit with "
        "`sysctl -w %s=%d`",
        size,
        got,
        limit,
        size,
    )
