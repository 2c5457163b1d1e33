"""UDP readers on a real network: which address, which group, which interface.

Two namespaces are joined by two links, so that a packet can come in through the right interface and
through the wrong one.
"""

from __future__ import annotations

import errno
import importlib
import itertools
import os
import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from target import OURS, new_stream, next_heap, recv, take
from wire import simple_heap

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

#: The second link; addresses from the blocks for documentation, and a link-local one.
SECOND = {"tx": ("198.51.100.1", "fd78:6470:7371::1"), "rx": ("198.51.100.2", "fd78:6470:7371::2")}
LINK_LOCAL = "fe80::78:6470"
NODAD = 0x02

GROUP4 = "239.77.2.3"
GROUP6 = "ff15::77:1"
LINK_LOCAL_GROUP = "ff12::77:1"

_ports = itertools.count(21_000)


class Network:
    """The two namespaces; `addresses` and `indices` are those of the receiving interfaces."""

    def __init__(self, lab: Any) -> None:
        self.lab = lab
        self.names = ("veth0", "veth1")
        self._add_second_link()
        self.v4 = (lab.rx.ipv4, SECOND["rx"][0])
        self.v6 = (lab.rx.ipv6, SECOND["rx"][1])
        with lab.rx.enter():
            self.indices = tuple(socket.if_nametoindex(name) for name in self.names)

    def _add_second_link(self) -> None:
        from pyroute2 import IPRoute

        with open(self.lab.rx.path) as rx, self.lab.tx.enter(), IPRoute() as netlink:
            peer = {"ifname": "veth1", "net_ns_fd": rx.fileno()}
            netlink.link("add", ifname="veth1", kind="veth", peer=peer)
        for name, (v4, v6) in SECOND.items():
            with getattr(self.lab, name).enter(), IPRoute() as netlink:
                index = netlink.link_lookup(ifname="veth1")[0]
                netlink.link("set", index=index, state="up")
                netlink.addr("add", index=index, address=v4, prefixlen=24)
                netlink.addr("add", index=index, address=v6, prefixlen=64, flags=NODAD)
                if name == "rx":
                    netlink.addr("add", index=index, address=LINK_LOCAL, prefixlen=64, flags=NODAD)

    def send(self, cnt: int, host: str, port: int, interface: int) -> None:
        """Send a heap of one packet out of one of the two interfaces."""
        with self.lab.tx.enter():
            index = socket.if_nametoindex(self.names[interface])
            if ":" in host:
                with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
                    scope = index if host.lower().startswith("f") and "fd" not in host else 0
                    sock.sendto(heap(cnt), (host, port, 0, scope))
                return
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                choice = struct.pack("4s4si", b"", b"", index)
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, choice)
                sock.sendto(heap(cnt), (host, port))

    def stream(self, *args: Any, stream: Any = None, port: int | None = None, **kwargs: Any) -> Any:
        """Return a stream that reads in the receiving namespace, and its port.

        PORT among the arguments stands for that port.
        """
        port = next(_ports) if port is None else port
        stream = new_stream() if stream is None else stream
        with self.lab.rx.enter():
            stream.add_udp_reader(*(port if a is PORT else a for a in args), **kwargs)
        return stream, port


PORT = object()


def heap(cnt: int) -> bytes:
    return simple_heap(cnt, 10).packets()[0].encode()


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    laboratory = importlib.import_module("xdpspead._netlab")
    with laboratory.VethLab() as lab:
        yield Network(lab)


def hears(
    network: Network, stream: Any, port: int, hosts: list[tuple[str, int]], expected: list[int]
) -> bool:
    """Send heap i to hosts[i], an address and the interface to it; are the expected received?"""
    for _ in range(2):  # what should not have been received would come before the second round
        for cnt, (host, interface) in enumerate(hosts):
            network.send(cnt, host, port, interface)
    found = [h.cnt for h in take(stream, 2 * len(expected))]
    stream.stop()
    found += [h.cnt for h in stream]
    return sorted(set(found)) == expected


def heard(network: Network, stream: Any, port: int, group: str, interface: int) -> bool:
    """Are packets to a group received through this interface, and through no other?"""
    return hears(network, stream, port, [(group, 0), (group, 1)], [interface])


# Addresses


@pytest.mark.parametrize(
    ("bind_hostname", "expected"),
    [
        ("", [0, 1]),
        ("0.0.0.0", [0, 1]),
        ("::", [0, 1, 2, 3]),  # both families
        ("192.0.2.2", [0]),
        ("198.51.100.2", [1]),
        ("fd78:6470:7370::2", [2]),
        ("fd78:6470:7371::2", [3]),
    ],
)
def test_bind_hostname_chooses_what_is_received(network, bind_hostname, expected):
    stream, port = network.stream(PORT, buffer_size=0, bind_hostname=bind_hostname)
    hosts = [(network.v4[0], 0), (network.v4[1], 1), (network.v6[0], 0), (network.v6[1], 1)]
    assert hears(network, stream, port, hosts, expected)


def test_link_local_address_has_a_zone(network):
    stream, port = network.stream(PORT, buffer_size=0, bind_hostname=f"{LINK_LOCAL}%veth1")
    network.send(1, LINK_LOCAL, port, 1)
    assert next_heap(stream).cnt == 1
    stream.stop()


def test_unicast_address_must_be_that_of_the_interface(network):
    stream, port = network.stream(
        network.v4[1], PORT, buffer_size=0, interface_address=network.v4[1]
    )
    network.send(1, network.v4[1], port, 1)
    assert next_heap(stream).cnt == 1
    stream.stop()
    for interface_address in ("", network.v4[0]):
        with pytest.raises(ValueError, match="not multicast"):
            network.stream(network.v4[1], PORT, interface_address=interface_address)


# Groups


@pytest.mark.parametrize("interface", [0, 1])
@pytest.mark.parametrize("by_position", [False, True])
def test_ipv4_group_is_received_on_its_interface_alone(network, interface, by_position):
    address = network.v4[interface]
    if by_position:
        stream, port = network.stream(GROUP4, PORT, 9200, 0, address)
    else:
        stream, port = network.stream(GROUP4, PORT, buffer_size=0, interface_address=address)
    assert heard(network, stream, port, GROUP4, interface)


@pytest.mark.parametrize("interface", [0, 1])
@pytest.mark.parametrize("by_position", [False, True])
def test_ipv6_group_is_received_on_its_interface_alone(network, interface, by_position):
    index = network.indices[interface]
    if by_position:
        stream, port = network.stream(GROUP6, PORT, 9200, 0, index)
    else:
        stream, port = network.stream(GROUP6, PORT, buffer_size=0, interface_index=index)
    assert heard(network, stream, port, GROUP6, interface)


@pytest.mark.parametrize("group", [GROUP4, GROUP6])
def test_group_without_an_interface_is_joined_where_the_system_says(network, group):
    # In both families the routes of the receiving end lead groups to the first interface.
    arguments = {} if group == GROUP4 else {"interface_index": 0}
    stream, port = network.stream(group, PORT, buffer_size=0, **arguments)
    assert heard(network, stream, port, group, 0)


@pytest.mark.parametrize("group", [GROUP4, GROUP6])
def test_group_as_bind_hostname_is_joined(network, group):
    stream, port = network.stream(PORT, buffer_size=0, bind_hostname=group)
    assert heard(network, stream, port, group, 0)


def test_link_local_group_has_a_zone(network):
    name = f"{LINK_LOCAL_GROUP}%veth1"
    stream, port = network.stream(PORT, buffer_size=0, bind_hostname=name)
    assert heard(network, stream, port, LINK_LOCAL_GROUP, 1)
    stream, port = network.stream(name, PORT, buffer_size=0, interface_index=network.indices[1])
    assert heard(network, stream, port, LINK_LOCAL_GROUP, 1)


# spead2 4.5.1: "bind: Invalid argument".
@pytest.mark.ours
def test_link_local_group_is_joined_by_index_without_a_zone(network):
    stream, port = network.stream(
        LINK_LOCAL_GROUP, PORT, buffer_size=0, interface_index=network.indices[1]
    )
    assert heard(network, stream, port, LINK_LOCAL_GROUP, 1)


# spead2 4.5.1 receives what comes in through either, on both streams.
@pytest.mark.ours
@pytest.mark.parametrize("group", [GROUP4, GROUP6])
def test_group_that_others_joined_elsewhere_is_not_received_from_there(network, group):
    port = next(_ports)
    streams = []
    for address, index in zip(network.v4, network.indices, strict=True):
        where = {"interface_address": address} if group == GROUP4 else {"interface_index": index}
        streams.append(network.stream(group, PORT, port=port, buffer_size=0, **where)[0])
    for _ in range(2):
        for interface in (0, 1):
            network.send(interface, group, port, interface)
    for interface, stream in enumerate(streams):
        assert [h.cnt for h in take(stream, 2)] == [interface] * 2
        assert stream.stats.packets == 2
        stream.stop()


@pytest.mark.ours
def test_fallback_of_an_af_xdp_reader_joins_on_its_interface(network, caplog):
    port, stream = next(_ports), new_stream()
    with network.lab.rx.enter():
        stream.add_udp_xdp_reader(
            recv.UdpXdpConfig(
                endpoints=[(GROUP4, port), (GROUP6, port)],
                interface="veth1",
                zero_copy=True,  # veth has none
                fallback=True,
            )
        )
    assert {reader.transport for reader in stream.readers} == {"udp"}
    for host in (GROUP4, GROUP6):
        for _ in range(2):
            for interface in (0, 1):
                network.send(interface, host, port, interface)
        assert [h.cnt for h in take(stream, 2)] == [1, 1]
    stream.stop()


# Several readers


def test_readers_of_both_families_build_heaps_together(network):
    packets = simple_heap(1, 40).packets(10)
    stream, ports = new_stream(allow_out_of_order=True), []
    ways = [
        ((PORT,), {"bind_hostname": network.v4[0]}),
        ((PORT,), {"bind_hostname": network.v6[1]}),
        ((GROUP4, PORT), {"interface_address": network.v4[1]}),
        ((GROUP6, PORT), {"interface_index": network.indices[0]}),
    ]
    for args, kwargs in ways:
        ports.append(network.stream(*args, stream=stream, buffer_size=0, **kwargs)[1])
    ends = [(network.v4[0], 0), (network.v6[1], 1), (GROUP4, 1), (GROUP6, 0)]
    for (host, interface), port, packet in zip(ends, ports, packets, strict=True):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with network.lab.tx.enter(), socket.socket(family, socket.SOCK_DGRAM) as sock:
            index = socket.if_nametoindex(network.names[interface])
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
            else:
                choice = struct.pack("4s4si", b"", b"", index)
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, choice)
            sock.sendto(packet.encode(), (host, port))
    assert next_heap(stream).cnt == 1
    stream.stop()
    assert stream.stats.packets == 4


# Wrong calls


@pytest.mark.parametrize(
    ("args", "kwargs", "error"),
    [
        (("192.0.2.2",), {"interface_index": 0}, ValueError),
        ((GROUP4,), {"interface_index": 0}, ValueError),
        ((GROUP6,), {}, ValueError),
        ((GROUP6,), {"interface_address": "192.0.2.2"}, ValueError),
        (("fd78:6470:7370::2",), {"interface_index": 0}, ValueError),
        ((GROUP6,), {"interface_index": -1}, TypeError),
        ((GROUP6,), {"interface_index": 1 << 40}, TypeError),
        ((GROUP6,), {"interface_index": "veth0"}, TypeError),
        ((GROUP6,), {"interface_index": 0, "interface_address": ""}, TypeError),
        ((GROUP4,), {"interface_address": 3}, TypeError),
        ((GROUP6,), {"interface_index": 999}, RuntimeError),
        ((GROUP4,), {"interface_address": "203.0.113.9"}, RuntimeError),
        ((LINK_LOCAL_GROUP,), {"interface_index": 0}, RuntimeError),
    ],
    ids=repr,
)
def test_wrong_groups_and_interfaces_are_refused(network, args, kwargs, error):
    with pytest.raises(error):
        network.stream(*args, PORT, buffer_size=0, **kwargs)


@pytest.mark.ours
def test_error_says_which_group_on_which_port(network):
    assert OURS
    with pytest.raises(OSError, match=rf"join.*{GROUP6} port") as caught:
        network.stream(GROUP6, PORT, buffer_size=0, interface_index=999)
    assert caught.value.errno == errno.ENODEV
