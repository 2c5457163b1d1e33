"""The demonstration shows what it says, fails when it must, and leaves nothing behind."""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import xdpspead
from xdpspead import _demo, send
from xdpspead import _demo_sender as sender
from xdpspead._features import Feature, Features

TIMEOUT_S = 60.0

needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="AF_XDP and network namespaces need root (run the tests with sudo)"
)

REPORT = sender.Report(
    first_cnt=1,
    last_cnt=10,
    heaps=9,
    descriptor_heaps=1,
    packets=9 * 64 + 1,
    batches=10,
    payload_bytes=9 * sender.HEAP_BYTES,
    seconds=1.0,
    late_s=0.0,
)


def demo_command(transport: str, *more: str, seconds: float, gbps: float = 0.2) -> list[str]:
    options = ["--transport", transport, "--seconds", str(seconds), "--rate", str(gbps), *more]
    return [sys.executable, "-m", "xdpspead", "demo", *options]


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {TIMEOUT_S} s"
        time.sleep(0.01)


def children(pid: int) -> set[int]:
    found = set()
    for entry in filter(str.isdecimal, os.listdir("/proc")):
        try:
            stat = Path("/proc", entry, "stat").read_text()
        except OSError:
            continue
        state, parent = stat.rpartition(")")[2].split()[:2]
        if int(parent) == pid and state != "Z":
            found.add(int(entry))
    return found


def is_sender(pid: int) -> bool:
    try:
        return b"xdpspead._demo_sender" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def named_namespaces(pid: int) -> list[str]:
    try:
        return [name for name in os.listdir("/run/netns") if name.startswith(f"xdpspead-{pid}-")]
    except FileNotFoundError:
        return []


def bpf_programs() -> set[int]:
    """Return the ids of all BPF programs in the kernel."""
    prog_get_next_id = 11
    number = {"x86_64": 321, "aarch64": 280}[platform.machine()]
    libc = ctypes.CDLL(None, use_errno=True)
    attributes = (ctypes.c_uint32 * 32)()  # start_id, next_id
    found = set()
    while libc.syscall(number, prog_get_next_id, ctypes.byref(attributes), 128) == 0:
        attributes[0] = attributes[1]
        found.add(int(attributes[1]))
    return found


@pytest.fixture
def start_demo() -> Iterator[Callable[[str], tuple[subprocess.Popen[str], int]]]:
    """Start a demonstration that would last very long; return it and the pid of its sender."""
    started = []

    def start(transport: str) -> tuple[subprocess.Popen[str], int]:
        process = subprocess.Popen(
            demo_command(transport, seconds=600),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        senders: list[int] = []

        def sender_runs() -> bool:
            assert process.poll() is None, process.communicate()[0]
            senders[:] = filter(is_sender, children(process.pid))
            return bool(senders)

        wait_for(sender_runs, "the start of the sender")
        return process, senders[0]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_formula_of_the_content_is_what_the_documentation_says() -> None:
    for cnt in (1, 2, 77, 2**47):
        words = sender.expected_words(cnt)
        for i in (0, 1, 4095, sender.WORDS_PER_HEAP - 1):
            assert int(words[i]) == (cnt * 0x9E3779B97F4A7C15 + i) % 2**64


def test_spead2_reads_what_the_sender_sends() -> None:
    spead2 = pytest.importorskip("spead2", reason="spead2, the peer, is not installed")
    import spead2.recv  # noqa: F811

    memory = send.BytesStream(xdpspead.ThreadPool(), sender.configuration(0.1))
    report = sender.run(memory, gbps=0.1, seconds=0.2)
    stream = spead2.recv.Stream(spead2.ThreadPool())
    stream.add_buffer_reader(memory.getvalue())
    items = spead2.ItemGroup()
    seen = []
    for heap in stream:
        updated = items.update(heap)
        if updated:
            seen.append(heap.cnt)
            assert updated["timestamp"].value == heap.cnt * sender.WORDS_PER_HEAP
            assert updated["samples"].value.dtype == np.uint64
            np.testing.assert_array_equal(updated["samples"].value, sender.expected_words(heap.cnt))
    assert seen == list(range(2, report.last_cnt + 1))
    assert report.heaps == len(seen)
    assert report.packets == 64 * len(seen) + 1


def test_loopback_demonstration_passes() -> None:
    result = subprocess.run(
        demo_command("udp", seconds=1),
        check=False,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "PASS: all" in result.stdout
    for row in ("transport", "heaps", "packets", "batches", "largest batch", "CPU", "memory"):
        assert f"\n  {row}" in result.stdout


@pytest.mark.xdp
@needs_root
@pytest.mark.parametrize("sending", ["udp", "udp_xdp"])
def test_veth_demonstration_passes_with_af_xdp(sending: str) -> None:
    result = subprocess.run(
        demo_command("udp_xdp", "--send", sending, seconds=1),
        check=False,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "PASS: all" in result.stdout
    assert f"sending by {sending}," in result.stdout
    assert "udp_xdp: native copy, veth0, queue 0" in result.stdout


def test_af_xdp_at_the_sending_end_alone_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert _demo.run(seconds=1, gbps=0.1, transport="udp", sending="udp_xdp") == 1
    assert "receive by udp_xdp, as root" in capsys.readouterr().out


def test_wrong_content_fails(tmp_path: Path) -> None:
    program = tmp_path / "wrong.py"
    program.write_text(
        "import sys\n"
        "from xdpspead import _demo, _demo_sender\n"
        "right = _demo_sender.expected_words\n"
        "def one_bit_off(cnt):\n"
        "    words = right(cnt)\n"
        "    if cnt == 7:\n"
        "        words[-1] ^= 1 << 63\n"
        "    return words\n"
        "_demo_sender.expected_words = one_bit_off\n"
        "sys.exit(_demo.run(seconds=0.5, gbps=0.2, transport='udp'))\n"
    )
    result = subprocess.run(
        [sys.executable, program], check=False, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert result.returncode == 1, result.stdout + result.stderr
    assert "FAIL: the content of 1 heaps is wrong: 7" in result.stdout


def test_sender_that_fails_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no route to the moon')"]
    monkeypatch.setattr(_demo, "_sender_command", lambda *arguments: command)
    monkeypatch.setattr(_demo, "_QUIET_S", 0.1)
    assert _demo.run(seconds=1, gbps=0.1, transport="udp") == 1
    assert "no route to the moon" in capsys.readouterr().out


def outcome(cnts: set[int], *, data_heaps: int, wrong: list[int]) -> _demo._Outcome:
    check = _demo._Check(cnts=cnts, data_heaps=data_heaps, wrong=wrong)
    return _demo._Outcome(check, REPORT, {}, [], 0.0, True)


def test_gaps_are_runs_of_missing_heaps() -> None:
    check = outcome({1, 2, 5, 6, 8}, data_heaps=4, wrong=[]).check
    assert check.gaps(REPORT) == 3  # 3 and 4, 7, 9 and 10


def test_missing_heaps_are_counted_against_the_sender() -> None:
    assert outcome({1, 2, 5, 6, 8}, data_heaps=4, wrong=[]).missing == 5


def test_nothing_received_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert _demo._verdict(outcome(set(), data_heaps=0, wrong=[])) == 1
    assert "FAIL" in capsys.readouterr().out


def test_lost_heaps_are_named_in_the_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    assert _demo._verdict(outcome({1, 2, 3}, data_heaps=2, wrong=[])) == 0
    assert "7 heaps were lost" in capsys.readouterr().out


def test_without_root_loopback_stands_in_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert _demo._choose() == "udp"
    assert "Not root" in capsys.readouterr().out


def test_without_af_xdp_loopback_stands_in_and_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = Feature("udp_xdp", False, "the moon is missing", "Fetch it.")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(Features, "udp_xdp", missing)
    assert _demo._choose() == "udp"
    output = capsys.readouterr().out
    assert "the moon is missing" in output
    assert "Fetch it." in output


StartDemo = Callable[[str], tuple[subprocess.Popen[str], int]]


@pytest.mark.parametrize(
    "transport",
    ["udp", pytest.param("udp_xdp", marks=[needs_root, pytest.mark.xdp])],
)
def test_interrupt_leaves_nothing_behind(transport: str, start_demo: StartDemo) -> None:
    process, sender_pid = start_demo(transport)
    assert bool(named_namespaces(process.pid)) is (transport == "udp_xdp")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130, output
    assert "Interrupted" in output
    assert "Traceback" not in output
    assert not is_sender(sender_pid)
    assert named_namespaces(process.pid) == []


@pytest.mark.xdp
@needs_root
def test_interrupt_leaves_no_bpf_program(start_demo: StartDemo) -> None:
    before = bpf_programs()
    process, _ = start_demo("udp_xdp")
    during = bpf_programs() - before
    assert during
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=TIMEOUT_S)
    wait_for(lambda: not during & bpf_programs(), "the end of the programs")


@pytest.mark.xdp
@needs_root
def test_sigterm_leaves_nothing_behind(start_demo: StartDemo) -> None:
    process, sender_pid = start_demo("udp_xdp")
    process.terminate()
    process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 128 + signal.SIGTERM
    assert not is_sender(sender_pid)
    assert named_namespaces(process.pid) == []


def test_sender_does_not_outlive_a_killed_receiver(start_demo: StartDemo) -> None:
    process, sender_pid = start_demo("udp")
    process.kill()
    process.communicate(timeout=TIMEOUT_S)
    wait_for(lambda: not is_sender(sender_pid), "the end of the sender")


def test_sigterm_ends_the_sender(start_demo: StartDemo) -> None:
    process, sender_pid = start_demo("udp")
    os.kill(sender_pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=TIMEOUT_S)
    assert f"the sender failed with status {-signal.SIGTERM}" in output
    assert process.returncode == 1
