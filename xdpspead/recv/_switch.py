"""XDPSPEAD_INTERFACE: UDP readers that become AF_XDP readers without a change to the application.

Such a reader keeps its ordinary socket beside the AF_XDP one. What comes through the interface goes
to the latter; the socket receives what comes another way (from this machine, through other
interfaces, in fragments), keeps the port, joins the group, and is what is left where AF_XDP cannot
be had.
"""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import replace
from typing import Final

from .. import _core
from .._addresses import is_multicast, resolve
from .._errors import XdpError
from .._log import LOGGER
from . import _udp, _xdp
from ._interface import addresses_of, find_interface
from ._owner import Owner
from ._reader import Begin, ReaderInfo
from ._udp import SWITCH, SocketRequest
from ._xdp_config import UdpXdpConfig

#: Addresses that stand for all of one family, or of both, and what they are to AF_XDP.
_ANY: Final = {
    "": ("0.0.0.0",),
    "0.0.0.0": ("0.0.0.0",),
    "::": ("0.0.0.0", "::"),
}


def prepare(begin: Begin | SocketRequest, owner: Owner) -> Begin:
    """Return what begins to read instead of `begin`, as the environment says, where it says so."""
    name = os.environ[SWITCH]

    def read(stream: _core.Stream) -> list[ReaderInfo]:
        if isinstance(begin, SocketRequest):
            return _read(stream, begin, name, owner)
        _say_ordinary("add_udp_reader(socket)", name, "it was given a socket")
        return begin(stream)

    return read


def _say_ordinary(call: str, name: str, reason: str) -> None:
    LOGGER.info("%s reads an ordinary socket although %s=%s: %s", call, SWITCH, name, reason)


def _read(
    stream: _core.Stream, request: SocketRequest, name: str, owner: Owner
) -> list[ReaderInfo]:
    call = f"add_udp_reader({request.address or '0.0.0.0'}, {request.port})"
    index = _find(name)
    obstacle = _obstacle(request, name, index)
    if obstacle:
        _say_ordinary(call, name, obstacle)
        return request(stream)
    if _is_group(request.address):
        request = replace(request, interface=index)
    with request.open() as sock:
        xdp = _read_xdp(stream, request, name, owner, call)
        return [*xdp, _udp.read(stream, sock, request.max_size)]


def _find(name: str) -> int:
    """Return the index of the interface.

    A name that is wrong is no reason to fall back: nobody would see that AF_XDP was never used.
    """
    try:
        return find_interface(UdpXdpConfig(interface=name), []).index
    except XdpError as error:
        text = f"{error} ({SWITCH} is set to {name!r})"
        raise XdpError(error.errno or 0, text, error.step) from None


def _read_xdp(
    stream: _core.Stream,
    request: SocketRequest,
    name: str,
    owner: Owner,
    call: str,
) -> list[ReaderInfo]:
    try:
        info = _xdp.open_reader(stream, _config(request, name), owner)
    except XdpError as error:
        if _xdp.takes_from_us(error):
            text = f"{error} {call} was to read it too, because {SWITCH}={name}"
            raise XdpError(error.errno or 0, text, error.step) from None
        taken = ", which gets nothing that the other program takes" * (error.errno == errno.EBUSY)
        LOGGER.warning("%s; %s reads an ordinary UDP socket instead%s", error, call, taken)
        return []
    if info is None:  # the stream has been stopped
        return []
    LOGGER.info("%s reads %s through AF_XDP because %s is set", call, name, SWITCH)
    return [info]


def _config(request: SocketRequest, name: str) -> UdpXdpConfig:
    hosts = _ANY.get(request.address, (request.address.partition("%")[0],))
    return UdpXdpConfig(
        endpoints=[(host, request.port) for host in hosts],
        interface=name,
        # The kernel doubles what is asked for a socket too.
        buffer_size=max(2 * request.buffer_size, UdpXdpConfig.DEFAULT_BUFFER_SIZE),
        max_size=min(max(request.max_size, 1), 65535),
    )


def _is_group(address: str) -> bool:
    return address not in _ANY and is_multicast(address)


def _obstacle(request: SocketRequest, name: str, index: int) -> str:
    """Say why the request cannot be met by the interface; empty if it can."""
    address, _, zone = request.address.partition("%")
    if not request.port:
        return "port 0 lets the kernel choose"
    if address in _ANY:
        return ""
    asked = request.interface if isinstance(request.interface, int) else 0
    if (asked or int(zone or index)) != index:
        return f"it asks for interface {asked or zone}, and {name} is {index}"
    if _is_group(address):
        named = str(request.interface) if isinstance(request.interface, str) else ""
        address = resolve(named, socket.AF_INET)[1] if named else "0.0.0.0"
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    if address in _ANY or socket.inet_pton(family, address) in addresses_of(index):
        return ""
    return f"{address} is not an address of {name}"
