"""Interfaces and addresses: what the kernel tells us is what it tells pyroute2."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from pyroute2 import IPRoute
from target import OURS, recv

pytestmark = [pytest.mark.ours, pytest.mark.xdp]

if OURS:
    from xdplab import Lab

    from xdpspead import TransportError, _ethtool, _links, _netlink

_LOWER_UP = 1 << 16
_OTHER_NAME = "receives-from-the-telescope"


@pytest.fixture(scope="module")
def lab() -> Iterator[Any]:
    with Lab(queues=2, mtu=2000) as lab:
        with lab.rx.enter(), IPRoute() as netlink:
            netlink.link("property_add", index=lab.rx.ifindex, altname=_OTHER_NAME)
            netlink.link("add", ifname="down0", kind="veth", mtu=1234, peer={"ifname": "down1"})
        with lab.rx.enter():
            yield lab


def as_pyroute2_says(message: Any) -> _links.Link:
    return _links.Link(
        message["index"],
        message.get("IFLA_IFNAME"),
        message.get("IFLA_MTU"),
        bool(message["flags"] & _LOWER_UP),
        message.get("IFLA_NUM_RX_QUEUES"),
        message.get("IFLA_NUM_TX_QUEUES"),
        message.get_nested("IFLA_XDP", "IFLA_XDP_PROG_ID") or 0,
    )


def test_interfaces_are_those_that_pyroute2_finds(lab):
    with IPRoute() as netlink:
        expected = [as_pyroute2_says(message) for message in netlink.get_links()]
    assert {link.name for link in expected} == {"lo", "veth0", "down0", "down1"}
    assert sorted(_links.links(), key=lambda link: link.index) == sorted(
        expected, key=lambda link: link.index
    )


@pytest.mark.parametrize("name", ["lo", "veth0", "down0"])
def test_interface_of_a_name_and_of_a_number_is_the_same(lab, name):
    index = socket.if_nametoindex(name)
    with IPRoute() as netlink:
        (message,) = netlink.get_links(index)
    assert _links.link_named(name) == _links.link_at(index) == as_pyroute2_says(message)


def test_interface_has_other_names(lab):
    found = _links.link_named(_OTHER_NAME)
    assert found is not None
    assert (found.index, found.name) == (lab.rx.ifindex, "veth0")


@pytest.mark.parametrize("name", ["veth1", "", "veth0\0", "veth0 ", "v" * 15, "v" * 127, "v" * 500])
def test_no_interface_has_a_name_that_none_has(lab, name):
    assert _links.link_named(name) is None


def test_no_interface_has_a_number_that_none_has(lab):
    assert _links.link_at(2**31 - 1) is None


def test_program_of_an_interface_is_the_one_that_is_attached(lab):
    stream, _ = lab.receiver(buffer_size=1 << 20)
    with IPRoute() as netlink:
        (message,) = netlink.get_links(lab.rx.ifindex)
    found, program = _links.link_at(lab.rx.ifindex), lab.program()
    stream.stop()
    lab.wait_detached()
    assert found == as_pyroute2_says(message)
    assert found.program == program


def test_addresses_are_those_that_pyroute2_finds(lab):
    with IPRoute() as netlink:
        netlink.addr("add", index=lab.rx.ifindex, address="192.0.2.77", prefixlen=32)
        netlink.addr("add", index=lab.rx.ifindex, local="192.0.2.78", address="192.0.2.79")
        expected = {
            (
                message["index"],
                socket.inet_pton(
                    message["family"], message.get("IFA_LOCAL") or message.get("IFA_ADDRESS")
                ),
            )
            for message in netlink.get_addr()
        }
    found = _links.addresses()
    assert set(found) == expected
    own = {socket.inet_aton(text) for text in (lab.rx.ipv4, "192.0.2.77", "192.0.2.78")}
    assert own < {address for index, address in found if index == lab.rx.ifindex}
    assert len(found) == len(expected)


def test_queues_in_use_are_those_that_ethtool_finds(lab):
    lines = subprocess.run(
        ["ethtool", "-l", "veth0"], check=True, capture_output=True, text=True
    ).stdout.split("Current hardware settings:")[1]
    n = {line.split(":")[0]: line.split()[-1] for line in lines.splitlines() if ":" in line}
    for direction in ("rx", "tx"):
        expected = sum(int(n[name]) for name in (direction.upper(), "Combined") if n[name] != "n/a")
        assert _ethtool.queues_in_use("veth0", direction) == expected == 2


def test_interface_whose_driver_does_not_tell_has_no_queues_in_use(lab):
    assert _ethtool.queues_in_use("lo", "rx") == 0


def test_kernel_that_may_not_be_asked_is_an_error_that_says_how_to_mend_it(lab, monkeypatch):
    def refuse(*arguments: Any) -> None:
        raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))

    monkeypatch.setattr(_netlink, "connect", refuse)
    with pytest.raises(recv.XdpError, match=r"not supported.*allow AF_NETLINK") as caught:
        lab.receiver(buffer_size=1 << 20)
    assert (caught.value.errno, caught.value.step) == (errno.EAFNOSUPPORT, "ask netlink")


def test_answer_that_is_cut_anywhere_is_refused_or_understood(lab):
    body = _netlink.ask(_netlink.NETLINK_ROUTE, _links._question(lab.rx.ifindex, {}))[0]
    whole = _links.parse_link(body)
    n_refused = 0
    for length in range(len(body)):
        try:
            link = _links.parse_link(body[:length])
        except TransportError as error:
            assert error.errno == errno.EBADMSG  # noqa: PT017 (it may not come)
            n_refused += 1
        else:
            assert (link.index, link.name, link.mtu) == (whole.index, whole.name, whole.mtu)
            assert (link.n_rx_queues, link.n_tx_queues) in ((2, 2), (2, 1), (1, 2), (1, 1))
    assert 0 < n_refused < len(body)


def test_answer_of_random_bytes_does_no_harm():
    random = os.urandom(1 << 16)
    for at in range(0, len(random), 64):
        _links.parse_address(random[at : at + 64])
        try:
            _links.parse_link(random[at : at + 64])
        except TransportError as error:
            assert error.errno == errno.EBADMSG  # noqa: PT017 (it may not come)


def test_reader_and_its_statistics_do_without_what_takes_memory(lab):
    code = f"""if True:
        import sys, xdpspead, xdpspead.recv as recv
        with recv.Stream(xdpspead.ThreadPool(1)) as stream:
            config = recv.UdpXdpConfig(
                endpoints=[({lab.rx.ipv4!r}, 20002)], interface="veth0", buffer_size=1 << 20
            )
            stream.add_udp_xdp_reader(config)
            stream.ledger(), stream.stats.devices, stream.readers
        print({{"asyncio", "pyroute2"}} & set(sys.modules))
    """
    command = [sys.executable, "-P", "-c", code]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "set()\n"
