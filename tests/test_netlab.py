"""The network laboratory works, and leaves nothing behind however it ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from xdpspead import _netlab
from xdpspead._netlab import Namespace, VethLab

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0, reason="network namespaces need root (run the tests with sudo)"
)

TIMEOUT_S = 20.0


def named_namespaces(pid: int) -> list[str]:
    stem = f"xdpspead-{pid}-"
    try:
        return [name for name in os.listdir("/run/netns") if name.startswith(stem)]
    except FileNotFoundError:
        return []


def own_namespace() -> str:
    return os.readlink("/proc/thread-self/ns/net")


def bound_udp(end: Namespace, family: int, address: str) -> socket.socket:
    with end.enter():
        sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.settimeout(TIMEOUT_S)
    sock.bind((address, 0))
    return sock


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_datagram_crosses_from_tx_to_rx(family: int) -> None:
    with VethLab() as lab:
        tx_address, rx_address = (
            (lab.tx.ipv4, lab.rx.ipv4) if family == socket.AF_INET else (lab.tx.ipv6, lab.rx.ipv6)
        )
        with bound_udp(lab.rx, family, rx_address) as receiver:
            with bound_udp(lab.tx, family, tx_address) as sender:
                sender.sendto(b"payload", receiver.getsockname())
            data, source = receiver.recvfrom(100)
    assert data == b"payload"
    assert source[0] == tx_address


def test_multicast_crosses_without_naming_the_sending_interface() -> None:
    group = "239.1.2.3"
    with VethLab() as lab, bound_udp(lab.rx, socket.AF_INET, group) as receiver:
        request = socket.inet_aton(group) + socket.inet_aton(lab.rx.ipv4)
        receiver.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, request)
        with bound_udp(lab.tx, socket.AF_INET, "") as sender:
            sender.sendto(b"to all", receiver.getsockname())
        assert receiver.recv(100) == b"to all"


def test_attributes_describe_the_interface_the_kernel_made() -> None:
    with VethLab(queues=3, mtu=9000) as lab:
        for end in (lab.tx, lab.rx):
            with end.enter(), IPRoute() as netlink:
                link = netlink.link("get", index=end.ifindex)[0]
                index = socket.if_nametoindex(end.interface)
            assert index == end.ifindex
            assert link.get("ifname") == end.interface
            assert link.get("address") == end.mac
            assert link.get("mtu") == 9000
            assert link.get("num_rx_queues") == 3
            assert link.get("num_tx_queues") == 3


@pytest.mark.parametrize("gro", [False, True])
def test_gro_is_switched_as_asked(gro: bool) -> None:
    with VethLab(gro=gro) as lab:
        listing = lab.rx.run(
            ["ethtool", "-k", lab.rx.interface], capture_output=True, text=True, check=True
        ).stdout
    wanted = "on" if gro else "off"
    assert f"generic-receive-offload: {wanted}" in listing


def test_enter_moves_only_the_body() -> None:
    before = own_namespace()
    with VethLab() as lab:
        with lab.rx.enter():
            inside = own_namespace()
        assert own_namespace() == before
        with pytest.raises(ZeroDivisionError), lab.tx.enter():
            raise ZeroDivisionError
        assert own_namespace() == before
    assert inside != before


def test_popen_starts_the_child_inside() -> None:
    with VethLab() as lab:
        with lab.tx.enter():
            inside = own_namespace()
        child = lab.tx.popen(["readlink", "/proc/self/ns/net"], stdout=subprocess.PIPE, text=True)
        output, _ = child.communicate(timeout=TIMEOUT_S)
    assert output.strip() == inside


def test_exit_ends_children_that_still_run() -> None:
    with VethLab() as lab:
        child = lab.tx.popen(["sleep", "1000"])
        assert child.poll() is None
    assert child.returncode == -signal.SIGTERM


def test_exit_ends_children_that_ignore_sigterm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_netlab, "_CHILD_TIMEOUT_S", 0.1)
    program = (
        "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "print('ready', flush=True); time.sleep(1000)"
    )
    with VethLab() as lab:
        child = lab.tx.popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    child.stdout.close()
    assert child.returncode == -signal.SIGKILL


def test_two_laboratories_live_side_by_side() -> None:
    with VethLab() as first, VethLab() as second:
        assert len({first.tx.name, first.rx.name, second.tx.name, second.rx.name}) == 4
        assert len(named_namespaces(os.getpid())) == 4
    assert named_namespaces(os.getpid()) == []


def test_nothing_is_left_after_an_exception() -> None:
    with pytest.raises(ZeroDivisionError), VethLab():
        raise ZeroDivisionError
    assert named_namespaces(os.getpid()) == []


def test_nothing_is_left_when_making_it_fails_half_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(interface: str, on: bool) -> None:
        raise OSError("no such switch")

    monkeypatch.setattr(_netlab, "_set_gro", fail)
    with pytest.raises(OSError, match="no such switch"), VethLab(gro=True):
        pass
    assert named_namespaces(os.getpid()) == []


def test_the_link_is_gone_on_exit_although_a_process_stays_inside() -> None:
    with VethLab() as lab, lab.rx.enter():
        # Started behind the laboratory's back, so that it does not end this one.
        stranger = subprocess.Popen(["sleep", "1000"])
    try:
        with _netlab._inside(f"/proc/{stranger.pid}/ns/net"):
            names = [name for _, name in socket.if_nameindex()]
    finally:
        stranger.kill()
        stranger.wait()
    assert names == ["lo"]


def start_laboratory_process(tmp_path: Path) -> tuple[subprocess.Popen[str], int]:
    """Start a process that holds a laboratory open; return it and the pid of its child."""
    program = tmp_path / "hold.py"
    program.write_text(
        textwrap.dedent(
            """
            import signal
            from subprocess import DEVNULL
            from xdpspead._netlab import VethLab

            # Whoever runs the tests may ignore them, as nohup does, and that is inherited.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGHUP, signal.SIG_DFL)
            with VethLab() as lab:
                child = lab.tx.popen(["sleep", "1000"], stdout=DEVNULL, stderr=DEVNULL)
                print(child.pid, flush=True)
                while True:
                    signal.pause()
            """
        )
    )
    root = Path(_netlab.__file__).parents[1]
    process = subprocess.Popen(
        [sys.executable, program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *sys.path])},
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        pytest.fail(f"no laboratory: {process.communicate()[1]}")
    return process, int(line)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_nothing_is_left_after_a_signal(number: signal.Signals, tmp_path: Path) -> None:
    process, child = start_laboratory_process(tmp_path)
    assert len(named_namespaces(process.pid)) == 2
    process.send_signal(number)
    try:
        process.communicate(timeout=TIMEOUT_S)
    finally:
        process.kill()
        _netlab.sweep()
    assert process.returncode != 0
    assert named_namespaces(process.pid) == []
    assert not os.path.exists(f"/proc/{child}")


def test_sweep_removes_what_a_killed_process_left(tmp_path: Path) -> None:
    process, child = start_laboratory_process(tmp_path)
    try:
        left = named_namespaces(process.pid)
        process.kill()
        process.communicate(timeout=TIMEOUT_S)
        assert sorted(named_namespaces(process.pid)) == sorted(left)
        assert set(left) <= set(_netlab.sweep())
        assert named_namespaces(process.pid) == []
    finally:
        os.kill(child, signal.SIGKILL)


def test_sweep_leaves_living_laboratories_alone() -> None:
    with VethLab() as lab:
        assert lab.tx.name not in _netlab.sweep()
        assert len(named_namespaces(os.getpid())) == 2


def test_handlers_of_signals_are_put_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with VethLab():
        pass
    after = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert after == before


def test_interrupt_during_teardown_waits_for_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    remove = _netlab._remove_namespace

    def interrupted_remove(path: str) -> None:
        signal.raise_signal(signal.SIGINT)
        remove(path)

    monkeypatch.setattr(_netlab, "_remove_namespace", interrupted_remove)
    with pytest.raises(KeyboardInterrupt), VethLab():
        pass
    assert named_namespaces(os.getpid()) == []


@pytest.mark.parametrize("queues", [0, -1])
def test_senseless_queue_count_is_refused(queues: int) -> None:
    with pytest.raises(ValueError, match="queues"):
        VethLab(queues=queues)
