"""The network interface that an AF_XDP reader reads, and what the kernel says of it."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from .._addresses import resolve
from .._errors import TransportError, XdpError
from .._ethtool import driver_name, queues_in_use
from .._links import addresses, link_at, link_named, links
from ._xdp_config import UdpXdpConfig

_LINK_WAIT_S: Final = 15.0
_LINK_POLL_S: Final = 0.02


@dataclass(frozen=True)
class Interface:
    """What netlink says of an interface."""

    index: int
    name: str
    mtu: int
    n_queues: int
    namespace: int
    driver: str
    has_link: bool


def _network_namespace() -> int:
    """Return a number for the network namespace of the calling thread."""
    return os.stat("/proc/thread-self/ns/net").st_ino


def _index_of_address(wanted: Sequence[str]) -> int | None:
    """Return the interface that has one of the addresses, the first of them that any has."""
    known = addresses()
    for address in wanted:
        packed = socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)
        for index, found in known:
            if found == packed:
                return index
    return None


def find_interface(config: UdpXdpConfig, endpoints: Sequence[str]) -> Interface:
    """Find the interface that the configuration means.

    Parameters
    ----------
    config : UdpXdpConfig
        What the user asks for.
    endpoints : sequence of str
        Addresses that are to be received, one of which may be the interface's.

    Raises
    ------
    XdpError
        If there is none.
    TransportError
        If the kernel does not tell.
    """
    if config.interface:
        link = link_named(config.interface)
        what = f"no interface is called {config.interface!r}"
    elif config.interface_address:
        index = _index_of_address([resolve(config.interface_address)[1]])
        link = None if index is None else link_at(index)
        what = f"no interface has the address {config.interface_address}"
    else:
        index = _index_of_address(endpoints)
        link = None if index is None else link_at(index)
        what = "no interface has the address of an endpoint: say which one with `interface`"
    if link is None:
        if config.interface:
            what += f"; there are: {', '.join(sorted(link.name for link in links()))}"
        raise XdpError(errno.ENODEV, f"find interface: {what}", "find interface")
    return Interface(
        link.index,
        link.name,
        link.mtu,
        queues_in_use(link.name, "rx") or link.n_rx_queues,
        _network_namespace(),
        driver_name(link.name),
        link.has_link,
    )


def link_is_back(interface: Interface) -> bool:
    """Wait until an interface has its link again, if it had one; return whether it came.

    Many drivers reset the device when a program is attached or a socket bound for zero-copy, and
    cards and switches need seconds to agree on a link. What is sent meanwhile is lost.
    """
    if not interface.has_link:
        return True
    end = time.monotonic() + _LINK_WAIT_S
    with contextlib.suppress(TransportError):  # it has been made, whether this can be told or not
        while (link := link_at(interface.index)) is not None:  # it may be gone by now
            if link.has_link:
                return True
            if time.monotonic() > end:
                break
            time.sleep(_LINK_POLL_S)
    return False


def attached_program(index: int) -> int:
    """Return the id of the XDP program on an interface, 0 if there is none or several."""
    link = link_at(index)
    return 0 if link is None else link.program


def addresses_of(index: int) -> frozenset[bytes]:
    """Return the addresses of an interface, packed."""
    return frozenset(address for owner, address in addresses() if owner == index)


def choose_queues(config: UdpXdpConfig, interface: Interface) -> list[int]:
    queues = list(range(interface.n_queues)) if config.queues is None else config.queues
    for queue in queues:
        if queue >= interface.n_queues:
            raise XdpError(
                errno.EINVAL,
                f"choose queues: {interface.name} has {interface.n_queues} receive queues "
                f"(0 to {interface.n_queues - 1}), queue {queue} is none of them; see "
                f"`ethtool -l {interface.name}`",
                "choose queues",
            )
    if config.workers > len(queues):
        raise XdpError(
            errno.EINVAL,
            f"choose queues: workers is {config.workers}, more than {interface.name} has receive "
            f"queues ({interface.n_queues}); ask for fewer, or give it more queues with "
            f"`ethtool -L {interface.name}`",
            "choose queues",
        )
    return queues
