"""Busy polling: what a reader obtains, and the knobs of the kernel that it turns and puts back.

No virtual driver of this kernel tells a socket which NAPI serves its queue. Where a test needs one
the answer is made up, with numbers of NAPIs that the receiving interface really has, so that the
knobs are real. When the worker calls the driver and when not is tested in C, in the same way.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import textwrap

import pytest
from target import DEADLINE, recv, wait_for

pytestmark = [pytest.mark.ours, pytest.mark.xdp]

if not os.environ.get("XDPSPEAD_TEST_PEER"):
    from xdplab import Lab, missing

    from xdpspead import _core

MODES = ("native", "generic")
UNTOUCHED, DEFERRED = (0, 0), (2, 200_000)

NETLINK_GENERIC, NLMSG_ERROR, NLMSG_DONE, DUMP = 16, 2, 3, 0x300
CTRL, GET_FAMILY, QUEUE_GET, NAPI_GET, NAPI_SET = 16, 3, 10, 11, 14


@pytest.fixture
def lab():
    if tuple(map(int, os.uname().release.split(".")[:2])) < (6, 13):
        missing("knobs of single NAPIs need Linux 6.13")
    # With GRO a veth has NAPIs whether there is a program or not, so they outlive the readers.
    with Lab(queues=2, gro=True) as lab:
        yield lab


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def attributes(data: bytes) -> dict[int, bytes]:
    found = {}
    while data:
        length, kind = struct.unpack_from("=HH", data)
        found[kind] = data[4:length]
        data = data[(length + 3) // 4 * 4 :]
    return found


def ask(family: int, command: int, request: bytes, flags: int = 0) -> list[dict[int, bytes]]:
    """Ask generic netlink; return the attributes of each answer."""
    answers = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_GENERIC) as sock:
        sock.settimeout(DEADLINE)
        body = struct.pack("=BBH", command, 1, 0) + request
        # NLM_F_REQUEST, and NLM_F_ACK so that there is an end
        sock.send(struct.pack("=IHHII", 16 + len(body), family, 5 | flags, 0, 0) + body)
        while True:
            data = sock.recv(1 << 16)
            while data:
                length, kind, _, _, _ = struct.unpack_from("=IHHII", data)
                if kind in (NLMSG_ERROR, NLMSG_DONE):
                    assert struct.unpack_from("=i", data, 16) == (0,)
                    return answers
                answers.append(attributes(data[20:length]))
                data = data[length:]


def netdev_family() -> int:
    (netdev,) = ask(CTRL, GET_FAMILY, attribute(2, b"netdev\0"))
    return int.from_bytes(netdev[1], sys.byteorder)


def knobs(lab) -> dict[int, tuple[int, int]]:
    """Return both knobs of each NAPI of the receiving interface, by its number."""
    with lab.rx.enter():
        index = attribute(1, struct.pack("=I", lab.rx.ifindex))
        napis = ask(netdev_family(), NAPI_GET, index, flags=DUMP)
    numbers = [[int.from_bytes(napi[i], sys.byteorder) for i in (2, 5, 6)] for napi in napis]
    return {number: (defer, timeout) for number, defer, timeout in sorted(numbers)}


def driver_tells_napis(lab) -> bool:
    with lab.rx.enter():
        index = attribute(2, struct.pack("=I", lab.rx.ifindex))
        return any(4 in queue for queue in ask(netdev_family(), QUEUE_GET, index, flags=DUMP))


def set_knobs(lab, napi_id: int, defer: int, timeout: int) -> None:
    values = zip((2, 5, 6), (napi_id, defer, timeout), strict=True)
    request = b"".join(attribute(kind, struct.pack("=I", value)) for kind, value in values)
    with lab.rx.enter():
        ask(netdev_family(), NAPI_SET, request)


@pytest.fixture
def tell_napis(lab, monkeypatch):
    """Let readers be told the numbers of NAPIs, as drivers of cards do; which, the test says."""
    told = list(knobs(lab))
    true = _core.Stream.add_xdp_reader

    def add_xdp_reader(self, port, owner, endpoints, joined, queues, *args):
        obtained = true(self, port, owner, endpoints, joined, queues, *args)
        napi_ids = tuple(told[queue] for queue in queues)
        return obtained._replace(busy_poll=True, napi_ids=napi_ids)

    monkeypatch.setattr(_core.Stream, "add_xdp_reader", add_xdp_reader)
    return told


# What is obtained


@pytest.mark.parametrize("mode", MODES)
def test_without_a_napi_number_the_reader_receives_and_warns_once(lab, mode, caplog):
    if driver_tells_napis(lab):
        missing("the driver of veth has begun to tell which NAPI serves a queue")
    stream, port = lab.receiver(mode=mode, busy_poll=True)
    assert stream.readers[0].busy_poll is False
    lab.assert_receives(stream, port)
    assert stream.stats["xdpspead.xdp_busy_polls"] == 0

    def warnings():
        return [text for text in caplog.messages if "busy polling" in text]

    wait_for(warnings, "a warning")
    (text,) = warnings()
    assert "no busy polling of queue 0" in text
    assert mode in text
    assert set(knobs(lab).values()) == {UNTOUCHED}


def test_it_is_off_unless_asked_for(lab, caplog):
    stream, port = lab.receiver()
    lab.assert_receives(stream, port)
    assert stream.readers[0].busy_poll is False
    assert not [text for text in caplog.messages if "busy polling" in text]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"busy_poll": "no"}, TypeError),
        ({"busy_poll_budget": 0}, ValueError),
        ({"busy_poll_budget": 65536}, ValueError),
        ({"busy_poll_budget": -1}, TypeError),
        ({"busy_poll_budget": 1.5}, TypeError),
    ],
)
def test_bad_options_are_refused(options, error):
    with pytest.raises(error):
        recv.UdpXdpConfig(**options)


# The kernel's knobs


def test_interrupts_are_deferred_while_the_reader_lives(lab, tell_napis):
    stream, port = lab.receiver(busy_poll=True)
    assert knobs(lab) == dict.fromkeys(tell_napis, DEFERRED)
    lab.assert_receives(stream, port)
    stream.stop()
    assert knobs(lab) == dict.fromkeys(tell_napis, UNTOUCHED)


def test_queues_of_others_are_left_alone(lab, tell_napis):
    lab.receiver(busy_poll=True, queues=[1])
    assert list(knobs(lab).values()) == [UNTOUCHED, DEFERRED]


def test_last_reader_of_a_queue_puts_its_knobs_back(lab, tell_napis):
    first, _ = lab.receiver(busy_poll=True)
    second, port = lab.receiver(busy_poll=True)
    first.stop()
    assert knobs(lab) == dict.fromkeys(tell_napis, DEFERRED)
    lab.assert_receives(second, port)
    second.stop()
    assert knobs(lab) == dict.fromkeys(tell_napis, UNTOUCHED)


def test_reader_that_comes_back_defers_again(lab, tell_napis):
    for _ in range(2):
        stream, _ = lab.receiver(busy_poll=True)
        assert knobs(lab) == dict.fromkeys(tell_napis, DEFERRED)
        stream.stop()
        assert knobs(lab) == dict.fromkeys(tell_napis, UNTOUCHED)


def test_dropping_the_stream_puts_the_knobs_back(lab, tell_napis):
    stream, _ = lab.receiver(busy_poll=True)
    lab._streams.remove(stream)
    del stream
    wait_for(lambda: set(knobs(lab).values()) == {UNTOUCHED}, "the knobs put back")


KILLED = """
    import sys
    import target
    from xdpspead import _core

    true = _core.Stream.add_xdp_reader
    _core.Stream.add_xdp_reader = lambda *args: true(*args)._replace(
        busy_poll=True, napi_ids={napi_ids!r})
    stream = target.new_stream()
    stream.add_udp_xdp_reader(target.recv.UdpXdpConfig(
        endpoints=[({host!r}, 7400)], interface={interface!r}, busy_poll=True))
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_kill_9_puts_the_knobs_back(lab):
    napi_ids = tuple(knobs(lab))
    process = lab.python(
        KILLED.format(napi_ids=napi_ids, host=lab.rx.ipv4, interface=lab.rx.interface)
    )
    assert process.stdout.readline() == "ready\n", process.stderr.read()
    assert knobs(lab) == dict.fromkeys(napi_ids, DEFERRED)
    process.send_signal(signal.SIGKILL)
    process.wait(DEADLINE)
    wait_for(lambda: set(knobs(lab).values()) == {UNTOUCHED}, "the knobs put back")


# Before Linux 6.13 the interface has the knobs, in sysfs; since then those set all of its NAPIs.
IN_SYSFS = """
    import sys
    from xdpspead.recv import UdpXdpConfig, _interface, _napi

    interface = _interface.find_interface(UdpXdpConfig(interface={interface!r}), [])
    leave = _napi.defer_interrupts(interface, [])
    print("ready", flush=True)
    sys.stdin.readline()
    leave()
    print("left", flush=True)
    leave = _napi.defer_interrupts(interface, [])
    print("ready", flush=True)
    sys.stdin.read()
"""


def in_sysfs(lab):
    """Start a child that sees the sysfs of the receiving namespace, and defers."""
    code = textwrap.dedent(IN_SYSFS.format(interface=lab.rx.interface))
    command = 'mount -t sysfs sysfs /sys && exec "$0" -P -c "$1"'
    return lab.rx.popen(
        ["unshare", "-m", "sh", "-c", command, sys.executable, code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_knobs_of_the_interface_are_put_back_by_leaving_and_by_death(lab):
    process = in_sysfs(lab)
    assert process.stdout.readline() == "ready\n", process.stderr.read()
    assert set(knobs(lab).values()) == {DEFERRED}
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "left\n"
    assert set(knobs(lab).values()) == {UNTOUCHED}
    assert process.stdout.readline() == "ready\n"
    assert set(knobs(lab).values()) == {DEFERRED}
    process.send_signal(signal.SIGKILL)
    process.wait(DEADLINE)
    wait_for(lambda: set(knobs(lab).values()) == {UNTOUCHED}, "the knobs put back")


def test_knobs_that_somebody_has_set_are_left_alone(lab, tell_napis):
    chosen = (7, 15_000)
    for napi_id in tell_napis:
        set_knobs(lab, napi_id, *chosen)
    stream, _ = lab.receiver(busy_poll=True)
    assert set(knobs(lab).values()) == {chosen}
    stream.stop()
    assert set(knobs(lab).values()) == {chosen}


def test_napi_that_is_gone_is_a_warning_that_says_what_to_do(lab, tell_napis, caplog):
    tell_napis[0] = 1 << 30
    stream, port = lab.receiver(busy_poll=True)
    warnings = [r.getMessage() for r in caplog.records if "cannot defer" in r.getMessage()]
    assert len(warnings) == 1
    assert "napi_defer_hard_irqs" in warnings[0]
    assert list(knobs(lab).values()) == [UNTOUCHED, DEFERRED]
    lab.assert_receives(stream, port)
