"""XDPSPEAD_INTERFACE: what add_udp_reader makes of it, on a veth pair between two namespaces.

The contract of all transports is tested through the variable too: see `transports`.
"""

from __future__ import annotations

import asyncio
import errno
import importlib
import os
import socket

import pytest
from target import LOGGER, XDP, next_heap, recv, settled, sp, take
from wire import simple_heap

pytestmark = [pytest.mark.ours, pytest.mark.xdp]

if not os.environ.get("XDPSPEAD_TEST_PEER"):
    from xdplab import Lab

VARIABLE = "XDPSPEAD_INTERFACE"
GROUP4 = "239.77.3.1"
GROUP6 = "ff15::77:31"
PORT = 7300


@pytest.fixture
def lab(monkeypatch):
    with Lab() as lab:
        monkeypatch.setenv(VARIABLE, lab.rx.interface)
        yield lab


@pytest.fixture
def messages(caplog):
    """What was logged of add_udp_reader: a list of (level, text), made when it is called."""
    caplog.set_level("INFO", logger=LOGGER)
    return lambda: [
        (record.levelname, record.getMessage())
        for record in caplog.records
        if record.name == LOGGER and "add_udp_reader" in record.getMessage()
    ]


def heap(cnt: int, length: int = 100) -> bytes:
    return simple_heap(cnt, length).packets(length)[0].encode()


def add(lab, *args, stream=None, **kwargs):
    """Return a stream that has called add_udp_reader in the receiving namespace."""
    stream = lab.stream() if stream is None else stream
    with lab.rx.enter():
        stream.add_udp_reader(*args, **kwargs)
    return stream


def transports(stream) -> list[str]:
    return [reader.transport for reader in stream.readers]


def xdp_packets(stream) -> int:
    return stream.stats[XDP["redirected"]]


# Which calls become AF_XDP readers

SWITCHED = {
    "port": (lambda rx: (PORT,), {}, "4"),
    "port of any IPv4 address": (lambda rx: (PORT,), {"bind_hostname": "0.0.0.0"}, "4"),
    "port of any address": (lambda rx: (PORT,), {"bind_hostname": "::"}, "46"),
    "address": (lambda rx: (PORT, 9200, 0, rx.ipv4), {}, "4"),
    "IPv6 address": (lambda rx: (PORT, 9200, 0, rx.ipv6), {}, "6"),
    "group as an address": (lambda rx: (PORT, 9200, 0, GROUP4), {}, "m"),
    "IPv6 group as an address": (lambda rx: (PORT, 9200, 0, GROUP6), {}, "n"),
    "group": (lambda rx: (GROUP4, PORT), {}, "m"),
    "group, interface address": (lambda rx: (GROUP4, PORT, 9200, 0, rx.ipv4), {}, "m"),
    "interface address": (lambda rx: (rx.ipv4, PORT, 9200, 0, rx.ipv4), {}, "4"),
    "IPv6 group": (lambda rx: (GROUP6, PORT), {"interface_index": 0}, "n"),
    "IPv6 group, index": (lambda rx: (GROUP6, PORT, 9200, 0, rx.ifindex), {}, "n"),
}


@pytest.mark.parametrize("form", SWITCHED)
def test_reader_reads_through_af_xdp(lab, form):
    args, kwargs, hosts = SWITCHED[form]
    stream = add(lab, *args(lab.rx), **kwargs)
    assert transports(stream) == ["udp_xdp", "udp"]
    assert stream.readers[0].interface == lab.rx.interface
    everybody = {"4": lab.rx.ipv4, "6": lab.rx.ipv6, "m": GROUP4, "n": GROUP6}
    for cnt, host in enumerate(hosts):
        lab.sender(PORT, everybody[host]).send(heap(cnt))
    assert [h.cnt for h in take(stream, len(hosts))] == list(range(len(hosts)))
    assert xdp_packets(stream) == len(hosts)


def test_reader_of_an_asyncio_stream_reads_through_af_xdp(lab):
    async def receive():
        module = importlib.import_module("xdpspead.recv.asyncio")
        async with module.Stream(sp.ThreadPool()) as stream:
            add(lab, PORT, stream=stream)
            lab.sender(PORT).send(heap(4))
            return transports(stream), (await stream.get()).cnt

    assert asyncio.run(receive()) == (["udp_xdp", "udp"], 4)


def test_reader_waits_for_the_start(lab):
    stream = add(lab, PORT, stream=lab.stream(explicit_start=True))
    assert lab.program() is None
    with lab.rx.enter():
        stream.start()
    assert transports(stream) == ["udp_xdp", "udp"]
    lab.assert_receives(stream, PORT)


ORDINARY = {
    "loopback": (lambda rx: (PORT, 9200, 0, "127.0.0.1"), "127.0.0.1 is not an address of"),
    "group on loopback": (
        lambda rx: (GROUP4, PORT, 9200, 0, "127.0.0.1"),
        "127.0.0.1 is not an address of",
    ),
    "IPv6 group on loopback": (lambda rx: (GROUP6, PORT, 9200, 0, 1), "interface 1"),
    "zone of loopback": (lambda rx: (PORT, 9200, 0, "ff11::77%1"), "interface 1"),
    "port of the kernel's choice": (lambda rx: (0,), "port 0"),
}


@pytest.mark.parametrize("form", ORDINARY)
def test_reader_of_another_interface_reads_a_socket_and_says_why(lab, form, messages):
    args, reason = ORDINARY[form]
    lab.ip("link", "set", "lo", "up")
    stream = add(lab, *args(lab.rx))
    assert transports(stream) == ["udp"]
    assert lab.program() is None
    ((level, text),) = messages()
    assert level == "INFO"
    assert reason in text
    assert f"{VARIABLE}={lab.rx.interface}" in text


def test_socket_of_the_users_own_is_read_as_it_is(lab, messages):
    own = lab.listen(PORT)
    stream = add(lab, own)
    assert transports(stream) == ["udp"]
    assert lab.program() is None
    ((level, text),) = messages()
    assert (level, "it was given a socket" in text) == ("INFO", True)


@pytest.mark.parametrize("value", [None, ""])
def test_without_a_value_nothing_changes(lab, monkeypatch, value, messages):
    if value is None:
        monkeypatch.delenv(VARIABLE)
    else:
        monkeypatch.setenv(VARIABLE, value)
    stream = add(lab, PORT)
    assert transports(stream) == ["udp"]
    assert messages() == []


# What it says


def test_log_has_one_line_for_each_reader(lab, messages):
    stream = add(lab, PORT)
    add(lab, GROUP4, PORT + 1, stream=stream)
    assert messages() == [
        (
            "INFO",
            f"add_udp_reader({where}) reads {lab.rx.interface} through AF_XDP because "
            f"{VARIABLE} is set",
        )
        for where in (f"0.0.0.0, {PORT}", f"{GROUP4}, {PORT + 1}")
    ]


def test_packet_memory_is_what_the_kernel_gives_a_socket_and_not_less_than_the_default(lab):
    small = add(lab, PORT, buffer_size=1)
    memory = small.readers[0].memory
    assert memory > recv.UdpXdpConfig.DEFAULT_BUFFER_SIZE
    small.stop()
    large = add(lab, PORT, buffer_size=recv.UdpXdpConfig.DEFAULT_BUFFER_SIZE)
    assert large.readers[0].memory > 2 * recv.UdpXdpConfig.DEFAULT_BUFFER_SIZE


def test_max_size_holds_for_what_comes_through_af_xdp(lab):
    stream = add(lab, PORT, max_size=len(heap(1, 100)))
    sender = lab.sender(PORT)
    sender.send(heap(1, 101))
    sender.send(heap(2, 100))
    assert next_heap(stream).cnt == 2
    assert settled(stream, 1)["xdpspead.truncated_datagram"] == 1


# What does not come through the interface


def test_packets_from_this_machine_are_still_received(lab):
    stream = add(lab, PORT)
    lab.ip("link", "set", "lo", "up")
    with lab.rx.enter(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as local:
        local.sendto(heap(1), ("127.0.0.1", PORT))
    assert next_heap(stream).cnt == 1
    lab.sender(PORT).send(heap(2))
    assert next_heap(stream).cnt == 2
    assert xdp_packets(stream) == 1


def test_fragments_are_still_received(lab):
    stream = add(lab, PORT, bind_hostname=lab.rx.ipv4)
    lab.sender(PORT).send(heap(1, 4000))
    assert next_heap(stream).cnt == 1
    assert stream.stats[XDP["fragments"]] > 1
    assert xdp_packets(stream) == 0


def test_occupied_port_is_the_same_error_as_without_the_variable(lab):
    lab.listen(PORT, "0.0.0.0")
    with pytest.raises(sp.TransportError) as caught:
        add(lab, PORT)
    assert (caught.value.errno, caught.value.step) == (errno.EADDRINUSE, "bind")
    assert lab.program() is None


def test_stop_gives_port_and_interface_back(lab):
    stream = add(lab, PORT)
    stream.stop()
    assert lab.program() is None
    lab.listen(PORT, "0.0.0.0")


# Where it cannot be had


def test_without_af_xdp_a_socket_is_read_and_the_warning_says_why(lab, messages):
    link = lab.attach_foreign_program()
    try:
        with pytest.raises(recv.XdpError) as caught:
            lab.receiver()
        stream = add(lab, GROUP4, PORT)
        assert transports(stream) == ["udp"]
        ((level, text),) = messages()
        assert level == "WARNING"
        assert str(caught.value) in text
        assert "gets nothing that the other program takes" in text
        lab.assert_receives(stream, PORT, n=2, host=GROUP4)
    finally:
        os.close(link)


def test_interface_that_does_not_exist_is_an_error_that_names_the_variable(lab, monkeypatch):
    monkeypatch.setenv(VARIABLE, "eht1")
    with pytest.raises(recv.XdpError) as caught:
        add(lab, PORT)
    assert caught.value.errno == errno.ENODEV
    for word in ("'eht1'", lab.rx.interface, VARIABLE):
        assert word in str(caught.value)
    lab.listen(PORT, "0.0.0.0")


def test_second_reader_of_a_group_is_an_error_and_the_first_goes_on(lab):
    first, second = add(lab, GROUP4, PORT), lab.stream()
    with pytest.raises(recv.XdpError) as caught:
        add(lab, GROUP4, PORT, stream=second)
    assert caught.value.errno == errno.EADDRINUSE
    assert VARIABLE in str(caught.value)
    assert second.readers == []
    lab.assert_receives(first, PORT, host=GROUP4)
