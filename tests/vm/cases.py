"""What is tested in guests. A case returns what is worth telling, or raises.

Every packet's payload is compared with what was sent, and the ledger has to be without a loss.
"""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from target import settled
from wire import pattern

from vm.network import RECEIVER, RECEIVER_ADDRESS, Network, driver
from vm.traffic import BUFFER_SIZE, DEADLINE, Receiver, Sender, plain_sockets
from vm.umem import Umem
from xdpspead import ThreadPool, recv
from xdpspead import __main__ as command_line
from xdpspead.recv import XdpError

CASES: dict[str, Callable[[Network, str], str]] = {}
_PASSED_PACKETS = 20
_MARK = b"for the kernel, not for us"


def case(function: Callable[[Network, str], str]) -> Callable[[Network, str], str]:
    """Make a function known by its name."""
    CASES[function.__name__] = function
    return function


def run(name: str, value: str, network: Network) -> str:
    """Run a case. What it is given depends on the case."""
    return CASES[name](network, value)


def _told(receiver: Receiver) -> str:
    info = receiver.info
    assert info.driver == driver(), info
    return f"{info.mode}, " + ("zero-copy" if info.zero_copy else f"copy: {info.why_copy}")


def _expect_error(network: Network, number: int, *words: str, **config: Any) -> str:
    """Check that a reader is refused with an error that has certain words in it."""
    error = _refusal(network, **config)
    text = str(error)
    assert error.errno == number, f"{errno.errorcode.get(error.errno or 0)}: {text}"
    for word in words:
        assert word in text, f"{word!r} is not in: {text}"
    return text


def _refusal(network: Network, **config: Any) -> XdpError:
    try:
        with Receiver(network, **config) as receiver:
            raise AssertionError(f"a reader was made: {_told(receiver)}")
    except XdpError as error:
        return error


# ------------------------------------------------------------------ what is obtained


@case
def features(network: Network, value: str) -> str:
    """``python -m xdpspead features`` says what this kernel has; `value` is what it has not."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        command_line.main(["features"])
    text = printed.getvalue()
    print(text, flush=True)
    found = dict(re.findall(r"^  (\w+) +(yes|no) ", text, re.MULTILINE))
    # No helper runs there, and nobody would need one.
    lacking = {name for name, answer in found.items() if answer == "no"} - {"helper"}
    assert lacking == set(filter(None, value.split(","))), text
    return f"without {', '.join(sorted(lacking))}" if lacking else "all"


@case
def receive(network: Network, value: str) -> str:
    """A reader with no wishes obtains `value`: a mode, and ``zc`` or ``copy``."""
    mode, how = value.split(",")
    with Receiver(network) as receiver:
        told = _told(receiver)
        assert (receiver.info.mode, receiver.info.zero_copy) == (mode, how == "zc"), told
        assert receiver.had_carrier, "the reader was there before the link"
        receiver.exchange(40)
        receiver.check_ledger()
    return f"{told}; {receiver.packets} packets"


@case
def zero_copy(network: Network, value: str) -> str:
    """Zero-copy that is insisted on is obtained, and the card itself writes into our memory."""
    with Receiver(network, zero_copy=True) as receiver:
        assert receiver.info.zero_copy, receiver.info
        passed = _pass_to_kernel(network, receiver)
        assert passed > 0, "packets for the kernel were not in our memory: this is no zero-copy"
        # Once around all frames of this memory, and more.
        for size in (64, 1400):
            receiver.exchange(2 * BUFFER_SIZE // 4096 // 8 // 4, size * 8, size)
        receiver.check_ledger()
    return f"{receiver.packets} packets; of {_PASSED_PACKETS} for the kernel {passed} seen in UMEM"


@case
def copy(network: Network, value: str) -> str:
    """In copy mode nothing gets into our memory but what is for us."""
    with Receiver(network, zero_copy=False, buffer_size=BUFFER_SIZE) as receiver:
        assert not receiver.info.zero_copy
        assert receiver.info.why_copy == "zero_copy=False"
        passed = _pass_to_kernel(network, receiver)
        assert passed == 0, f"{passed} packets for the kernel were in our memory"
        receiver.exchange(40)
        receiver.check_ledger()
    return f"{receiver.packets} packets; of {_PASSED_PACKETS} for the kernel 0 seen in UMEM"


def _pass_to_kernel(network: Network, receiver: Receiver) -> int:
    """Send packets that are for the kernel; return how many are to be seen in our memory."""
    umem = Umem(BUFFER_SIZE, len(receiver.info.queues))
    with plain_sockets(network, 9) as (sender, listener):
        for number in range(_PASSED_PACKETS):
            sender.send(_MARK + bytes([number]))
            assert listener.recv(100) == _MARK + bytes([number])
    seen = sum(bool(umem.frames_with(_MARK + bytes([n]))) for n in range(_PASSED_PACKETS))
    # And this is the right place to look at: what is for us is there.
    receiver.exchange(1, 1000)
    assert umem.frames_with(pattern(0, 1000)), "packets for us are not in this memory"
    return seen


@case
def refused(network: Network, value: str) -> str:
    """Zero-copy is refused by the driver, with `value`: said so, and copied if nobody insists."""
    number = getattr(errno, value)
    _expect_error(network, number, "does not do zero-copy", "zero_copy at None", zero_copy=True)
    os.environ["XDPSPEAD_ZERO_COPY"] = "try"
    try:
        with Receiver(network) as receiver:
            told = _told(receiver)
            assert not receiver.info.zero_copy, told
            assert ("iommu_platform" in told) == (value == "EINVAL"), told
            receiver.exchange(40)
            receiver.check_ledger()
    finally:
        del os.environ["XDPSPEAD_ZERO_COPY"]
    return told


# ------------------------------------------------------------------ packets that are large


@case
def jumbo(network: Network, value: str) -> str:
    """Packets of MTU 9000 are received in mode `value`, copied, and nobody can insist otherwise."""
    network.set_mtu(9000)
    try:
        with Receiver(network) as receiver:
            told = _told(receiver)
            assert (receiver.info.mode, receiver.info.zero_copy) == (value, False), told
            for size in (8900, 3700, 3800, 100):
                receiver.exchange(8, size * 3, size)
            receiver.check_ledger()
        # With some drivers it is the package that refuses, with others the kernel.
        assert "MTU" in str(_refusal(network, zero_copy=True))
    finally:
        network.set_mtu(1500)
    return f"{told}; {receiver.packets} packets of up to 8,900 bytes"


@case
def jumbo_refused(network: Network, value: str) -> str:
    """Where packets cannot come in several frames, a large MTU is refused, and 3000 is not."""
    network.set_mtu(9000)
    try:
        text = _expect_error(network, errno.EMSGSIZE, "MTU 9000", "Linux 6.6", "MTU to 3818")
        network.set_mtu(3000)
        with Receiver(network) as receiver:
            told = _told(receiver)
            receiver.exchange(40, 2900 * 2, 2900)
            receiver.check_ledger()
    finally:
        network.set_mtu(1500)
    return f"{text} | MTU 3000: {told}"


@case
def large_frames(network: Network, value: str) -> str:
    """Up to MTU `value` zero-copy receives packets that fill it; beyond, nothing is lost either."""
    largest = int(value)
    said = []
    try:
        for mtu in (largest, largest + 1, 3818):
            network.set_mtu(mtu)
            with Receiver(network) as receiver:
                assert receiver.info.zero_copy == (mtu <= largest), receiver.info
                receiver.exchange_longest(20, mtu)
                receiver.check_ledger()
                said.append(f"MTU {mtu}: {_told(receiver)}")
    finally:
        network.set_mtu(1500)
    return "; ".join(said)


@case
def insisted_large_frames(network: Network, value: str) -> str:
    """Who insists on zero-copy beyond the driver's MTU `value` is told, and loses nothing."""
    network.set_mtu(int(value) + 1)
    try:
        return _expect_error(network, errno.EMSGSIZE, f"MTU above {value}", zero_copy=True)
    finally:
        network.set_mtu(1500)


@case
def no_native(network: Network, value: str) -> str:
    """The driver has no native mode: who insists is told."""
    return _expect_error(
        network, errno.EOPNOTSUPP, "cannot run XDP programs", "mode='generic'", mode="native"
    )


@case
def native_refused(network: Network, value: str) -> str:
    """At MTU `value` the driver takes no program: who insists is told, others get generic mode."""
    network.set_mtu(int(value))
    try:
        text = str(_refusal(network, mode="native"))
        assert f"native mode at MTU {value}" in text, text
        assert "mode='generic'" in text, text
        with Receiver(network) as receiver:
            assert receiver.info.mode == "generic"
            packet = int(value) - 200
            receiver.exchange(20, packet * 2, packet)
            receiver.check_ledger()
    finally:
        network.set_mtu(1500)
    return text


# ------------------------------------------------------------------ the end of others


def _receive_for_ever(pipe: int, port: int, zero_copy: bool | None) -> None:
    stream = recv.Stream(ThreadPool())
    config = recv.UdpXdpConfig(
        endpoints=[(RECEIVER_ADDRESS, port)], interface=RECEIVER, zero_copy=zero_copy
    )
    stream.add_udp_xdp_reader(config)
    os.write(pipe, b"has a reader\n")
    for _ in stream:
        os.write(pipe, b"receives\n")


@case
def killed(network: Network, value: str) -> str:
    """After SIGKILL of a receiver under traffic the next one starts at once; `value` times."""
    zero_copy = True if driver() in ("virtio_net", "igb") else None
    slowest = 0.0
    for _ in range(int(value)):
        _kill_one(network, zero_copy=zero_copy)
        start = time.monotonic()
        with Receiver(network, zero_copy=zero_copy) as receiver:
            slowest = max(slowest, time.monotonic() - start)
            receiver.exchange(40)
            receiver.check_ledger()
    return f"{value} times, next reader after at most {slowest:.1f} s"


def _kill_one(network: Network, *, zero_copy: bool | None) -> None:
    port = 7400
    sender = Sender(network, port)
    counts = itertools.count()
    reading, writing = os.pipe()
    # Not a new Python, which takes an emulated processor many seconds to start.
    child = os.fork()
    if child == 0:
        try:
            _receive_for_ever(writing, port, zero_copy)
        finally:
            os._exit(1)
    os.close(writing)
    try:
        assert _told_by(reading, lambda: None) == b"has a reader\n"
        assert _told_by(reading, lambda: sender.send(next(counts), 8000, 1000)).startswith(
            b"receives"
        )
        sender.send(next(counts), 8000, 1000)
    finally:
        os.kill(child, signal.SIGKILL)
        os.close(reading)
    sender.send(next(counts), 8000, 1000)
    os.waitpid(child, 0)


def _told_by(pipe: int, meanwhile: Callable[[], None]) -> bytes:
    end = time.monotonic() + DEADLINE
    while not select.select([pipe], [], [], 0.02)[0]:
        assert time.monotonic() < end, "the child says nothing"
        meanwhile()
    return os.read(pipe, 13)


# ------------------------------------------------------------------ busy polling


def _interrupts() -> int:
    """Return how many interrupts the receiving card has had: those of its queues."""
    with open("/proc/interrupts") as table:
        lines = [line.split() for line in table]
    processors = len(lines[0])
    device = os.path.basename(os.path.realpath(f"/sys/class/net/{RECEIVER}/device"))
    names = (f"{RECEIVER}-", f"{device}-input")
    return sum(
        sum(map(int, words[1 : 1 + processors]))
        for words in lines[1:]
        if any(word.startswith(names) for word in words[1 + processors :])
    )


@case
def busy_poll(network: Network, value: str) -> str:
    """The receiving thread calls the driver itself, and the card interrupts less."""
    said = []
    for zero_copy in (False, True) if value == "zc" else (False,):
        counts = []
        for busy in (False, True):
            with Receiver(network, busy_poll=busy, zero_copy=zero_copy) as receiver:
                assert receiver.info.busy_poll in (busy, None if busy else busy), receiver.info
                receiver.exchange(4, 1000)
                before = _interrupts()
                for _ in range(320 // 40):
                    receiver.exchange(40, 1000)
                counts.append(_interrupts() - before)
                polls = settled(receiver.stream, receiver.packets)["xdpspead.xdp_busy_polls"]
                assert (polls > 0) == busy, polls
                receiver.check_ledger()
        without, with_it = counts
        assert with_it < without, f"{with_it} interrupts with busy polling, {without} without"
        how = "zero-copy" if zero_copy else "copy"
        said.append(f"{how}: {without} interrupts without, {with_it} with")
    return "; ".join(said)


@case
def busy_poll_refused(network: Network, value: str) -> str:
    """A kernel without it says so."""
    return _expect_error(network, errno.EOPNOTSUPP, "Linux 5.11", "busy_poll off", busy_poll=True)


# ------------------------------------------------------------------ tests on veth pairs


@case
def suite(network: Network, value: str) -> str:
    """Tests of AF_XDP pass on veth pairs under this kernel; `value` chooses them."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-v", "--no-header"]
    command += ["-c", "/pyproject.toml", "--rootdir", "/", "-k", value.replace("+", " ")]
    command += ["/tests/test_xdp.py"]
    environment = {**os.environ, "XDPSPEAD_REQUIRE_XDP": "1"}
    last = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line.strip() or last
    assert process.returncode == 0, last
    return last


# ------------------------------------------------------------------ the link


@case
def link(network: Network, value: str) -> str:
    """The driver takes the link away for a reader, which is ready when it is back."""
    changes = Path(f"/sys/class/net/{RECEIVER}/carrier_changes")
    network.wait_carrier()
    before = int(changes.read_text())
    with Receiver(network) as receiver:
        times = int(changes.read_text()) - before
        assert times > 0, "the driver did not touch the link: this is no test of that"
        assert receiver.had_carrier, "the reader was there before the link"
        receiver.exchange(4)
    return f"the link changed {times} times, and was there when the reader was"
