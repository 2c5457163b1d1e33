"""Receive-flow rules of AF_XDP readers: there while the reader lives, and not afterwards.

No driver of a virtual interface has such rules. So ``ethtool_shim.c``, which is preloaded into the
process of the reader (and with it that of its guard), answers for one. It knows the layouts from
``linux/ethtool.h`` and writes each rule down in plain text, which is what the tests look at; the
rules of other people are made by ``ethtool`` itself.
"""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest
from target import DEADLINE, OURS, recv, wait_for

pytestmark = [pytest.mark.ours, pytest.mark.xdp]

if OURS:
    from xdplab import Lab

_PUPPET = """
    import json, os, signal, sys
    from target import new_stream, recv
    from xdpspead import _guard
    from xdpspead.recv import _steering, _interface

    streams = []
    def add(*endpoints, **config):
        stream = new_stream()
        config = {"interface": "veth0", "buffer_size": 1 << 20, **config}
        streams.append(stream)
        stream.add_udp_xdp_reader(recv.UdpXdpConfig(endpoints=endpoints, **config))
        return stream.readers[0].steer
    def stop():
        while streams:
            streams.pop().stop()
    def play_dead():
        child = os.fork()
        if not child:
            os.close(1)
            signal.pause()
        return child
    for line in sys.stdin:
        try:
            answer = [0, eval(line)]
        except OSError as error:
            answer = [error.errno, str(error)]
        print(json.dumps(answer), flush=True)
"""


def preloaded(shim: Path) -> dict[str, str]:
    return {"LD_PRELOAD": f"{os.environ.get('LD_PRELOAD', '')} {shim}".strip()}


class Driver:
    """What the shim plays, with a table of its own."""

    def __init__(self, lab: Any, shim: Path, folder: Path) -> None:
        self._lab = lab
        self.variables = {**preloaded(shim), "SHIM_DIR": str(folder)}
        self._text = folder / "rules"

    def rules(self) -> list[str]:
        """Return the rules that there are, a line for each."""
        return self._text.read_text().splitlines() if self._text.exists() else []

    def ethtool(self, words: str) -> None:
        """Run ``ethtool`` in the receiving namespace."""
        self._lab.rx.run(
            ["ethtool", *words.split()],
            env={**os.environ, **self.variables},
            stdout=subprocess.DEVNULL,
            check=True,
            timeout=DEADLINE,
        )


class Puppet:
    """A process that has readers and does as told."""

    def __init__(self, lab: Any, variables: dict[str, str]) -> None:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            self.process = lab.python(_PUPPET)

    def __call__(self, expression: str) -> Any:
        """Return what an expression gives; its OSError is raised here."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(expression + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, self.process.communicate(timeout=DEADLINE)
        number, value = json.loads(line)
        if number:
            raise OSError(number, value)
        return value

    def add(self, *endpoints: tuple[Any, ...], **config: Any) -> list[str]:
        config = {"steer": "ntuple", **config}
        words = [repr(endpoint) for endpoint in endpoints]
        words += [f"{name}={value!r}" for name, value in config.items()]
        steer = self(f"add({', '.join(words)})")
        assert isinstance(steer, list)
        return steer

    def play(self, **variables: object) -> None:
        """Have the driver be another one."""
        for name, value in variables.items():
            self(f"os.environ.__setitem__({'SHIM_' + name.upper()!r}, {str(value)!r})")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.process.kill()
        self.process.communicate(timeout=DEADLINE)


@pytest.fixture(scope="module")
def lab() -> Iterator[Any]:
    with Lab(queues=2) as lab:
        yield lab


@pytest.fixture(scope="module")
def resident(lab: Any, shim: Path) -> Iterator[Puppet]:
    with Puppet(lab, preloaded(shim)) as puppet:
        yield puppet


@pytest.fixture
def driver(lab: Any, shim: Path, tmp_path: Path) -> Driver:
    return Driver(lab, shim, tmp_path)


@pytest.fixture
def puppet(resident: Puppet, tmp_path: Path) -> Iterator[Puppet]:
    """A process that many tests share, because it takes long to start."""
    resident.play(dir=tmp_path, place="any", size=16, refuse=0, port=0, ntuple=1)
    yield resident
    resident("stop()")


@pytest.fixture
def mortal(lab: Any, driver: Driver) -> Iterator[Puppet]:
    """A process that one test may end."""
    with Puppet(lab, driver.variables) as puppet:
        yield puppet


def udp4(place: int, host: str, port: int, queue: int, source: str = "0.0.0.0") -> str:
    """Return the shim's text of a rule."""

    def masked(address: str) -> str:
        return f"{address}/{'0.0.0.0' if address == '0.0.0.0' else '255.255.255.255'}"

    return (
        f"{place}: type 0x2 from {masked(source)} port 0/0000 to {masked(host)} "
        f"port {port}/ffff tos 0/00 queue {queue}"
    )


A, B = ("192.0.2.2", 8888), ("239.1.2.3", 8889)


# While the reader lives


@pytest.mark.parametrize(("place", "first", "second"), [("any", 0, 1), ("named", 15, 14)])
def test_rules_are_there_while_the_reader_is(driver, puppet, place, first, second):
    puppet.play(place=place)
    puppet.add(A, B, queues=[1])
    assert driver.rules() == sorted(
        [udp4(first, *A, 1), udp4(second, *B, 1)], key=lambda rule: int(rule.partition(":")[0])
    )
    puppet("stop()")
    assert driver.rules() == []


def test_driver_that_tells_its_size_only_when_it_lists_rules(driver, puppet):
    puppet.play(place="silent", size=8)
    puppet.add(A, queues=[0])
    assert driver.rules() == [udp4(7, *A, 0)]


def test_reader_tells_its_rules(puppet):
    assert puppet.add(A, ("fd78:6470:7370::2", 9), ("0.0.0.0", 10), queues=[1]) == [
        "flow-type udp4 dst-ip 192.0.2.2 dst-port 8888 action 1 loc 0",
        "flow-type udp6 dst-ip fd78:6470:7370::2 dst-port 9 action 1 loc 1",
        "flow-type udp4 dst-port 10 action 1 loc 2",
    ]


def test_reader_makes_no_rules_unless_told(driver, puppet):
    assert puppet.add(A, steer="none") == []
    assert driver.rules() == []


def test_ipv6_rule(driver, puppet):
    puppet.add(("ff15::7777", 8888), queues=[1])
    ones = ":".join(["ffff"] * 8)
    assert driver.rules() == [
        f"0: type 0x6 from ::/:: port 0/0000 to ff15::7777/{ones} port 8888/ffff tos 0/00 queue 1"
    ]


@pytest.mark.parametrize(
    ("host", "rule"),
    [
        ("0.0.0.0", udp4(0, "0.0.0.0", 8888, 0)),
        ("::", "0: type 0x6 from ::/:: port 0/0000 to ::/:: port 8888/ffff tos 0/00 queue 0"),
    ],
)
def test_any_address_is_a_rule_for_the_port_alone(driver, puppet, host, rule):
    puppet.add((host, 8888), queues=[0])
    assert driver.rules() == [rule]


def test_source_address_is_part_of_the_rule(driver, puppet):
    puppet.add((*B, "10.0.0.7"), queues=[1])
    assert driver.rules() == [udp4(0, *B, 1, source="10.0.0.7")]
    puppet("stop()")
    assert driver.rules() == []


def test_endpoints_are_dealt_out_to_the_queues_in_turn(driver, puppet):
    puppet.add(*[("192.0.2.2", port) for port in (1, 2, 3)], queues=[1, 0])
    assert driver.rules() == [
        udp4(0, "192.0.2.2", 1, 1),
        udp4(1, "192.0.2.2", 2, 0),
        udp4(2, "192.0.2.2", 3, 1),
    ]


def test_two_readers_each_with_rules_of_its_own(driver, puppet):
    puppet.add(A, queues=[0])
    puppet.add(B, queues=[1])
    assert driver.rules() == [udp4(0, *A, 0), udp4(1, *B, 1)]
    puppet("streams.pop(0).stop()")
    assert driver.rules() == [udp4(1, *B, 1)]


# The end of the reader


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_rules_go_when_the_process_is_killed(driver, mortal, number):
    mortal.add(A, B)
    assert len(driver.rules()) == 2
    mortal.process.send_signal(number)
    wait_for(lambda: driver.rules() == [], "the rules gone")


def test_rules_go_when_the_process_is_killed_and_its_forked_child_is_not(driver, mortal):
    mortal.add(A)
    child = mortal("play_dead()")
    try:
        mortal.process.kill()
        wait_for(lambda: driver.rules() == [], "the rules gone")
    finally:
        os.kill(child, signal.SIGKILL)


def test_rules_go_when_the_program_ends_without_stopping(driver, mortal):
    mortal.add(A)
    assert len(driver.rules()) == 1
    assert mortal.process.communicate(timeout=DEADLINE) == ("", "")
    wait_for(lambda: driver.rules() == [], "the rules gone")


def test_rules_go_when_the_kernel_refuses_the_reader(lab, driver, puppet):
    _xsk, _memory = lab.occupy_queue(1)
    try:
        with pytest.raises(OSError, match="bind: ") as refused:
            puppet.add(A, B, queues=[0, 1])
    finally:
        _xsk.close()
    assert refused.value.errno == errno.EBUSY
    assert driver.rules() == []


def test_first_rules_go_when_a_later_one_is_refused(driver, puppet):
    puppet.play(refuse=errno.EINVAL, port=B[1])
    with pytest.raises(OSError, match="steer: ") as refused:
        puppet.add(A, B)
    assert refused.value.errno == errno.EINVAL
    assert driver.rules() == []


def test_rules_of_an_interface_that_is_gone_are_nobodys_worry(shim, tmp_path):
    with Lab() as lab:
        driver = Driver(lab, shim, tmp_path)
        with Puppet(lab, driver.variables) as puppet:
            puppet.add(A)
            lab.ip("link", "del", lab.rx.interface)
            puppet("stop()")
            out, err = puppet.process.communicate(timeout=DEADLINE)
            assert out == ""
            assert "was deleted" in err
            assert "put back" not in err


def test_rules_go_from_an_interface_that_has_another_name_now(shim, tmp_path):
    with Lab() as lab:
        driver = Driver(lab, shim, tmp_path)
        with Puppet(lab, driver.variables) as puppet:
            puppet.add(A)
            for words in ("set veth0 down", "set veth0 name eth9"):
                lab.ip("link", *words.split())
            assert len(driver.rules()) == 1
            puppet("stop()")
            assert driver.rules() == []


# Rules of others


@pytest.mark.parametrize("more", ["", "src-port 99 m 0xffff"])  # a mask's ones do not count there
def test_rule_that_does_the_same_is_left_alone_and_left_behind(driver, puppet, more):
    words = f"-N veth0 flow-type udp4 dst-ip 192.0.2.2 {more} dst-port 8888 action 1 loc 5"
    driver.ethtool(words)
    there = driver.rules()
    steer = puppet.add(A, queues=[0, 1])
    assert steer == ["flow-type udp4 dst-ip 192.0.2.2 dst-port 8888 action 1 loc 5"]
    assert driver.rules() == there
    puppet("stop()")
    assert driver.rules() == there
    assert len(there) == 1


def test_other_rules_are_not_touched(driver, puppet):
    puppet.play(place="named")
    driver.ethtool("-N veth0 flow-type udp4 dst-port 8888 action 0 loc 15")
    driver.ethtool("-N veth0 flow-type udp4 src-port 8888 dst-port 8888 action 1 loc 3")
    there = driver.rules()
    puppet.add(A, queues=[1])
    assert driver.rules() == [there[0], udp4(14, *A, 1), there[1]]
    puppet("stop()")
    assert driver.rules() == there


@pytest.mark.parametrize(("action", "where"), [("0", "to queue 0"), ("-1", "elsewhere")])
def test_rule_that_brings_packets_elsewhere_is_an_error_that_names_it(
    driver, puppet, action, where
):
    driver.ethtool(f"-N veth0 flow-type udp4 dst-ip 192.0.2.2 dst-port 8888 action {action} loc 5")
    there = driver.rules()
    with pytest.raises(OSError, match=rf"rule 5 of veth0 .* {where}") as refused:
        puppet.add(A, queues=[1])
    driver.ethtool(re.findall(r"`ethtool (.*)`", str(refused.value))[0])
    assert (len(there), driver.rules()) == (1, [])


def test_rule_that_has_taken_the_place_of_ours_is_not_deleted(driver, puppet):
    puppet.add(A, queues=[0])
    driver.ethtool("-N veth0 delete 0")
    driver.ethtool("-N veth0 flow-type udp4 dst-port 7 action 1 loc 0")
    puppet("stop()")
    assert driver.rules() == [udp4(0, "0.0.0.0", 7, 1)]


# Refusals


def test_full_table_is_an_error_that_says_how_to_look(driver, puppet):
    for place in ("any", "named"):
        puppet.play(size=1, place=place)
        with pytest.raises(OSError, match=r"table is full; `ethtool -n veth0`") as refused:
            puppet.add(A, B)
        assert refused.value.errno == errno.ENOSPC
        assert driver.rules() == []


def test_rules_that_are_switched_off_are_an_error_that_switches_them_on(driver, puppet):
    puppet.play(ntuple=0)
    with pytest.raises(OSError, match=r"\(ntuple-filters\) off.*`ethtool -K veth0 ntuple on"):
        puppet.add(A)
    assert driver.rules() == []


def test_commands_of_a_refusal_do_what_the_reader_would_have_done(driver, puppet):
    endpoints = [A, B, ("ff15::7777", 8890), ("0.0.0.0", 8891)]
    puppet.add(*endpoints, queues=[1, 0])
    ours = driver.rules()
    puppet("stop()")
    puppet.play(refuse=errno.EOPNOTSUPP)
    with pytest.raises(OSError, match="steer: ") as refused:
        puppet.add(*endpoints, queues=[1, 0])
    commands = re.findall(r"`(ethtool -K .*?)`", str(refused.value))[0].split(" && ")
    assert commands[0] == "ethtool -K veth0 ntuple on"
    for command in commands[1:]:
        driver.ethtool(command.removeprefix("ethtool "))
    assert driver.rules() == ours
    assert len(ours) == len(endpoints)


def test_driver_without_rules_is_told_by_name(lab):
    stream = lab.stream()
    with pytest.raises(recv.XdpError) as refused:
        lab.add_reader(stream, endpoints=[A], steer="ntuple")
    assert (refused.value.step, refused.value.errno) == ("steer", errno.EOPNOTSUPP)
    assert str(refused.value).startswith(
        "steer: veth0 (driver veth) has no receive-flow rules: Operation not supported. By hand it "
        "would be `ethtool -K veth0 ntuple on && ethtool -N veth0 flow-type udp4 dst-ip 192.0.2.2 "
        "dst-port 8888 action 0`."
    )
    lab.wait_detached()
