"""Endpoints of AF_XDP readers: address, port, and maybe whose packets; with all names resolved."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeAlias

from .._addresses import is_multicast, is_unspecified, resolve
from .._errors import TransportError

#: As the user says it: host, port, and maybe the host that sends.
UserEndpoint: TypeAlias = tuple[str, int] | tuple[str, int, str]


class Endpoint(NamedTuple):
    """Where packets go, and where they come from."""

    family: int
    address: str  # without a zone
    port: int
    source: str = ""  # empty: any

    @property
    def version(self) -> int:
        """4 or 6."""
        return 4 if self.family == socket.AF_INET else 6

    @property
    def packed(self) -> bytes:
        """The address as bytes."""
        return socket.inet_pton(self.family, self.address)

    @property
    def packed_source(self) -> bytes:
        """The source as bytes, empty if any will do."""
        return socket.inet_pton(self.family, self.source) if self.source else b""

    @property
    def packed_all(self) -> tuple[int, bytes, int, bytes]:
        """Version, packed address, port, packed source: as the core and the drivers know it."""
        return self.version, self.packed, self.port, self.packed_source

    @property
    def is_multicast(self) -> bool:
        """Whether the address is that of a group."""
        return is_multicast(self.address)

    @property
    def shown(self) -> UserEndpoint:
        """As a user would write it, with addresses for names."""
        where = (self.address, self.port)
        return (*where, self.source) if self.source else where

    def __str__(self) -> str:
        host = self.address if self.version == 4 else f"[{self.address}]"
        return f"{host}:{self.port}" + (f" from {self.source}" if self.source else "")


def _resolve_source(host: str, source: str, family: int) -> str:
    try:
        address = resolve(source, family)[1].partition("%")[0]
    except TransportError as error:
        kind = "IPv4" if family == socket.AF_INET else "IPv6"
        text = f"{error} (it has to be an {kind} address, as the endpoint {host} is one)"
        raise TransportError(error.errno or 0, text, "resolve") from None
    if is_multicast(address) or is_unspecified(address):
        text = f"resolve: {source!r} cannot be the source of packets: it is no host's address"
        raise TransportError(errno.EINVAL, text, "resolve")
    return address


def resolve_endpoint(endpoint: UserEndpoint) -> Endpoint:
    """Return an endpoint with addresses for names.

    Raises
    ------
    TransportError
        If a name has no address, or the source is no host of the endpoint's family.
    """
    host, port, *sources = endpoint
    family, address = resolve(host)
    source = _resolve_source(host, sources[0], family) if sources else ""
    return Endpoint(family, address.partition("%")[0], port, source)


def united(endpoints: Iterable[Endpoint]) -> list[Endpoint]:
    """Return the endpoints, each once, without sources where any source is received anyway."""
    unique = dict.fromkeys(endpoints)
    anybody = {(e.family, e.address, e.port) for e in unique if not e.source}
    return [e for e in unique if not e.source or (e.family, e.address, e.port) not in anybody]


def few(things: Sequence[object], most: int) -> str:
    """Return the first of some things as text, and how many more there are."""
    told = ", ".join(map(str, things[:most]))
    return told if len(things) <= most else f"{told} and {len(things) - most} more"
