"""Where a datagram goes next: interface, source and Ethernet address, as the kernel would choose.

Who sends frames past the kernel has to know what the kernel knows. It is asked once, through
netlink, in the network namespace of the calling thread: for its routes, and its table of
neighbours. A neighbour that is not in the table the kernel is asked to find, which it does by ARP
or neighbour discovery, as for any packet of its own.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from ._addresses import is_multicast
from ._errors import TransportError
from ._ethtool import queues_in_use
from ._event_loops import outside_event_loops

#: Seconds within which a neighbour has to answer. The kernel asks every second, and over IPv6 not
#: as long as the interface's own address is new.
NEIGHBOUR_TIMEOUT: Final = 5.0

_ETHERNET: Final = 1  # ARPHRD_ETHER
_IFF_UP: Final = 0x1
_IFF_LOOPBACK: Final = 0x8
_RTN_UNICAST, _RTN_LOCAL, _RTN_BROADCAST, _RTN_MULTICAST = 1, 2, 3, 5
_NTF_USE: Final = 0x01
_NUD_FAILED: Final = 0x20
_NUD_KNOWN: Final = 0x02 | 0x04 | 0x08 | 0x10 | 0x80  # reachable, stale, delay, probe, permanent
_POLL_S: Final = 0.002

_FAMILIES: Final = {4: socket.AF_INET, 6: socket.AF_INET6}


@dataclass(frozen=True)
class Link:
    """An Ethernet interface.

    Attributes
    ----------
    index : int
        Its index in the network namespace of the thread that asked.
    name : str
        Its name.
    mac : bytes
        Its Ethernet address.
    mtu : int
        Longest IP packet, in bytes.
    n_queues : int
        Transmit queues in use.
    """

    index: int
    name: str
    mac: bytes
    mtu: int
    n_queues: int


@dataclass(frozen=True)
class Hop:
    """What stands in front of the datagrams to one address.

    Attributes
    ----------
    address : str
        Where they go, without a zone.
    source : str
        The address they come from.
    mac : bytes
        Ethernet address of the next hop, or of the multicast group.
    """

    address: str
    source: str
    mac: bytes


def mac_of_group(address: str) -> bytes:
    """Return the Ethernet address of a multicast group.

    By RFC 1112, 6.4, it has the low 23 bits of an IPv4 group; by RFC 2464, 7, the low 32 bits of an
    IPv6 group.
    """
    group = ipaddress.ip_address(address)
    if group.version == 4:
        low = int(group) & 0x7FFFFF
        return b"\x01\x00\x5e" + low.to_bytes(3, "big")
    return b"\x33\x33" + group.packed[-4:]


def parse_mac(text: str) -> bytes:
    """Return the six bytes of an Ethernet address like ``"aa:bb:cc:dd:ee:ff"``.

    Raises
    ------
    ValueError
        If it is none.
    """
    parts = text.replace("-", ":").split(":")
    try:
        if len(parts) != 6 or any(len(part) not in (1, 2) for part in parts):
            raise ValueError
        return bytes(int(part, 16) for part in parts)
    except ValueError:
        raise ValueError(
            f"an Ethernet address is written like 'aa:bb:cc:dd:ee:ff', not {text!r}"
        ) from None


def _fail(number: int, step: str, text: str) -> TransportError:
    return TransportError(number, f"{step}: {text}", step)


# ------------------------------------------------------------------ interfaces


def _index_of(netlink: Any, name: str) -> int:
    found = netlink.link_lookup(ifname=name)
    if found:
        return int(found[0])
    there = ", ".join(sorted(str(link.get("IFLA_IFNAME")) for link in netlink.get_links()))
    raise _fail(
        errno.ENODEV, "find interface", f"no interface is called {name!r}; there are: {there}"
    )


def _describe(netlink: Any, index: int) -> Link:
    step = "find interface"
    (link,) = netlink.get_links(index)
    name = str(link.get("IFLA_IFNAME"))
    if link["flags"] & _IFF_LOOPBACK:
        raise _fail(
            errno.EOPNOTSUPP,
            step,
            f"AF_XDP cannot send through {name}: IPv4 packets that come back to the kernel from "
            "one of its own addresses are taken for forged. Use UdpStream on this machine",
        )
    if link["ifi_type"] != _ETHERNET:
        raise _fail(errno.EOPNOTSUPP, step, f"{name} is no Ethernet interface: use UdpStream")
    if not link["flags"] & _IFF_UP:
        raise _fail(
            errno.ENETDOWN, step, f"the interface {name} is down: 'ip link set dev {name} up'"
        )
    return Link(
        index,
        name,
        parse_mac(str(link.get("IFLA_ADDRESS"))),
        int(link.get("IFLA_MTU")),
        queues_in_use(name, "tx") or int(link.get("IFLA_NUM_TX_QUEUES") or 1),
    )


# ------------------------------------------------------------------ routes


@dataclass(frozen=True)
class _Route:
    index: int
    kind: int
    source: str
    gateway: str


def _ask_route(netlink: Any, address: str, version: int, index: int) -> _Route | None:
    """Return the kernel's route to an address, None if there is none; `index` 0: any interface."""
    from pyroute2 import NetlinkError

    wanted: dict[str, Any] = {"dst": address, "family": int(_FAMILIES[version])}
    if index:
        wanted["oif"] = index
    try:
        (route,) = netlink.route("get", **wanted)
    except NetlinkError as error:
        if error.code in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL):
            return None
        raise _fail(error.code, "find route", f"to {address}: {os.strerror(error.code)}") from None
    via = route.get("RTA_VIA") or {}
    return _Route(
        int(route.get("RTA_OIF") or 0),
        int(route["type"]),
        str(route.get("RTA_PREFSRC") or ""),
        str(route.get("RTA_GATEWAY") or via.get("addr") or ""),
    )


def _check_route(route: _Route | None, address: str, name: str) -> _Route:
    step = "find route"
    on = f" on {name}" if name else ""
    if route is None or not route.index:
        how = "see 'ip route'" if name else "say which interface with `interface`"
        raise _fail(errno.ENETUNREACH, step, f"there is no route to {address}{on}; {how}")
    if route.kind == _RTN_LOCAL:
        raise _fail(
            errno.EOPNOTSUPP,
            step,
            f"{address} is an address of this machine, and AF_XDP sends to others only. Use "
            "UdpStream",
        )
    if route.kind == _RTN_BROADCAST:
        raise _fail(errno.EOPNOTSUPP, step, f"{address} is a broadcast address; use a group")
    if route.kind not in (_RTN_UNICAST, _RTN_MULTICAST):
        raise _fail(errno.ENETUNREACH, step, f"the route to {address}{on} leads nowhere")
    return route


# ------------------------------------------------------------------ neighbours


def _look_up(netlink: Any, address: str, index: int) -> tuple[int, str]:
    """Return state and Ethernet address of a neighbour; 0 and nothing if it is not in the table."""
    from pyroute2 import NetlinkError

    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        (found,) = netlink.neigh("get", dst=address, ifindex=index, family=int(family))
    except NetlinkError:
        return 0, ""
    return int(found["state"]), str(found.get("NDA_LLADDR") or "")


def _find_neighbour(netlink: Any, address: str, link: Link) -> bytes:
    """Return the Ethernet address of a neighbour, asking the kernel to find it if need be."""
    from pyroute2 import NetlinkError

    step = "find next hop"
    remedy = "pass next_hop_mac= if you know its Ethernet address"
    state, mac = _look_up(netlink, address, link.index)
    if state & _NUD_KNOWN and mac:
        return parse_mac(mac)
    family = int(socket.AF_INET6 if ":" in address else socket.AF_INET)
    try:
        netlink.neigh(
            "replace", dst=address, ifindex=link.index, family=family, state=0, flags=_NTF_USE
        )
    except NetlinkError as error:
        raise _fail(
            error.code,
            step,
            f"{address} on {link.name} is not in the table of neighbours, and the kernel cannot be "
            f"asked to find it: {os.strerror(error.code)}. Grant CAP_NET_ADMIN, or {remedy}",
        ) from None
    end = time.monotonic() + NEIGHBOUR_TIMEOUT
    while time.monotonic() < end:
        state, mac = _look_up(netlink, address, link.index)
        if state & _NUD_KNOWN and mac:
            return parse_mac(mac)
        if state & _NUD_FAILED:
            break
        time.sleep(_POLL_S)
    raise _fail(
        errno.EHOSTUNREACH,
        step,
        f"no answer from {address} on {link.name}. Is it there, and is it up? Otherwise {remedy}",
    )


# ------------------------------------------------------------------ all of it


@outside_event_loops
def find(
    addresses: Sequence[str],
    interface: str = "",
    source_address: str = "",
    next_hop_mac: bytes | None = None,
) -> tuple[Link, list[Hop]]:
    """Return the interface that leads to all of the addresses, and a hop for each.

    Parameters
    ----------
    addresses : sequence of str
        IPv4 or IPv6 addresses, unicast or multicast. A zone (``"fe80::1%2"``, a number) says on
        which interface.
    interface : str
        Name of the interface; empty: the one that the routes say.
    source_address : str
        Where datagrams come from; empty: the address that the kernel would choose.
    next_hop_mac : bytes, optional
        Ethernet address for what is not multicast, instead of the next hop's.

    Raises
    ------
    TransportError
        If there is no way, or it is not Ethernet, or the next hop does not answer.
    """
    from pyroute2 import IPRoute

    with IPRoute() as netlink:
        index = _index_of(netlink, interface) if interface else 0
        routes = []
        for text in addresses:
            address, _, zone = text.partition("%")
            wanted = index or int(zone or 0)
            version = 6 if ":" in address else 4
            route = _ask_route(netlink, address, version, wanted)
            if (
                route is None
                and wanted
                and source_address
                and (next_hop_mac or is_multicast(address))
            ):
                # All that a route could tell is known.
                route = _Route(wanted, _RTN_UNICAST, source_address, "")
            routes.append(_check_route(route, address, interface))
        indices = {route.index for route in routes}
        if len(indices) > 1:
            names = sorted(_describe(netlink, i).name for i in indices)
            raise _fail(
                errno.EINVAL,
                "find route",
                f"the endpoints are reached through different interfaces ({', '.join(names)}), and "
                "a stream sends through one: say which with `interface`, or use several streams",
            )
        link = _describe(netlink, indices.pop())
        hops = [
            _hop(netlink, link, text.partition("%")[0], route, source_address, next_hop_mac)
            for text, route in zip(addresses, routes, strict=True)
        ]
    return link, hops


def _hop(
    netlink: Any,
    link: Link,
    address: str,
    route: _Route,
    source_address: str,
    next_hop_mac: bytes | None,
) -> Hop:
    source = source_address or route.source
    if not source:
        raise _fail(
            errno.EADDRNOTAVAIL,
            "find source address",
            f"{link.name} has no address to send to {address} from: give it one, or pass "
            "source_address=",
        )
    if (":" in source) != (":" in address):
        raise _fail(
            errno.EINVAL,
            "find source address",
            f"{source} cannot send to {address}: one is IPv4, the other IPv6",
        )
    if is_multicast(address):
        mac = mac_of_group(address)
    else:
        mac = next_hop_mac or _find_neighbour(netlink, route.gateway or address, link)
    return Hop(address, source, mac)
