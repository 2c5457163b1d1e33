"""The network interface that an AF_XDP reader reads, and what the kernel says of it."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from .._addresses import resolve
from .._errors import XdpError
from .._ethtool import driver_name
from .._netlink import outside_event_loops, queues_in_use
from ._xdp_config import UdpXdpConfig

_IFF_LOWER_UP: Final = 1 << 16
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


def _find_by_address(netlink: Any, addresses: Sequence[str]) -> int | None:
    for address in addresses:
        packed = socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)
        for message in netlink.get_addr():
            local = message.get("IFA_LOCAL") or message.get("IFA_ADDRESS")
            family = message["family"]
            if local and socket.inet_pton(family, local) == packed:
                return int(message["index"])
    return None


@outside_event_loops
def find_interface(config: UdpXdpConfig, addresses: Sequence[str]) -> Interface:
    """Find the interface that the configuration means.

    Raises
    ------
    XdpError
        If there is none, or it is down.
    """
    from pyroute2 import IPRoute

    with IPRoute() as netlink:
        if config.interface:
            found = netlink.link_lookup(ifname=config.interface)
            index = found[0] if found else None
            what = f"no interface is called {config.interface!r}"
            there = ", ".join(sorted(link.get("IFLA_IFNAME") for link in netlink.get_links()))
            what += f"; there are: {there}"
        elif config.interface_address:
            address = resolve(config.interface_address)[1]
            index = _find_by_address(netlink, [address])
            what = f"no interface has the address {config.interface_address}"
        else:
            index = _find_by_address(netlink, addresses)
            what = "no interface has the address of an endpoint: say which one with `interface`"
        if index is None:
            raise XdpError(errno.ENODEV, f"find interface: {what}", "find interface")
        (link,) = netlink.get_links(index)
    name = str(link.get("IFLA_IFNAME"))
    return Interface(
        index,
        name,
        int(link.get("IFLA_MTU")),
        queues_in_use(name, link, "rx"),
        _network_namespace(),
        driver_name(name),
        _has_link(link),
    )


def _has_link(link: Any) -> bool:
    return bool(link["flags"] & _IFF_LOWER_UP)


@outside_event_loops
def link_is_back(interface: Interface) -> bool:
    """Wait until an interface has its link again, if it had one; return whether it came.

    Many drivers reset the device when a program is attached or a socket bound for zero-copy, and
    cards and switches need seconds to agree on a link. What is sent meanwhile is lost.
    """
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    if not interface.has_link:
        return True
    end = time.monotonic() + _LINK_WAIT_S
    with contextlib.suppress(NetlinkError), IPRoute() as netlink:  # it may be gone by now
        while True:
            if any(_has_link(link) for link in netlink.get_links(interface.index)):
                return True
            if time.monotonic() > end:
                break
            time.sleep(_LINK_POLL_S)
    return False


@outside_event_loops
def attached_program(index: int) -> int:
    """Return the id of the XDP program on an interface, 0 if there is none or several."""
    from pyroute2 import IPRoute

    with IPRoute() as netlink:
        (link,) = netlink.get_links(index)
    return int(link.get_nested("IFLA_XDP", "IFLA_XDP_PROG_ID") or 0)


@outside_event_loops
def addresses_of(index: int) -> frozenset[bytes]:
    """Return the addresses of an interface, packed."""
    from pyroute2 import IPRoute

    with IPRoute() as netlink:
        texts = [
            (message["family"], message.get("IFA_LOCAL") or message.get("IFA_ADDRESS"))
            for message in netlink.get_addr(index=index)
        ]
    return frozenset(socket.inet_pton(family, text) for family, text in texts if text)


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
