"""Settings of interfaces are put back when their owner ends, however it ends.

The settings are the contents of files here, which anybody can read; the kinds that need an
interface are tested where they are used.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from child import run_python
from target import DEADLINE, LOGGER, OURS, wait_for

pytestmark = pytest.mark.ours

if OURS:
    from xdpspead import TransportError, _guard
    from xdpspead._guard import Guard

_NLCTRL = 16  # GENL_ID_CTRL
_GETFAMILY = 3
_REQUEST_ACK = 1 | 4


def get_family(name: bytes | None) -> bytes:
    """Return a netlink message that the kernel refuses with EINVAL without a name."""
    attribute = b"" if name is None else struct.pack("=HH", 5 + len(name), 2) + name + b"\0"
    attribute += b"\0" * (-len(attribute) % 4)
    body = struct.pack("=BBH", _GETFAMILY, 1, 0) + attribute
    return struct.pack("=IHHII", 16 + len(body), _NLCTRL, _REQUEST_ACK, 1, 0) + body


def alive(pid: int) -> bool:
    """Return whether a process runs, and is no zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


@pytest.fixture
def knob(tmp_path) -> Path:
    path = tmp_path / "knob"
    path.write_text("0")
    return path


@pytest.fixture
def guard():
    with Guard() as guard:
        yield guard


def turn(guard: Guard, knob: Path, new: str, old: str = "0") -> None:
    guard.make("the knob", "file", str(knob), new.encode(), old.encode())


class Owner:
    """A process that owns a guard, which has turned the knob to 1, and then does as told."""

    def __init__(self, knob: Path, code: str = "input()", first: str = "") -> None:
        head = f"""
            import ctypes, os, signal, sys, time
            from xdpspead import _guard
            from xdpspead._guard import Guard
            {first}
            guard = Guard()
            guard.make("the knob", "file", {str(knob)!r}, b"1", b"0")
            print(guard._pid, flush=True)
        """
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", textwrap.dedent(head) + textwrap.dedent(code)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.guard = int(self.read())

    def read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def write(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def __enter__(self) -> Owner:
        return self

    def __exit__(self, *args: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # and what it forked
        self.process.communicate(timeout=DEADLINE)


# Closing


def test_setting_is_made_and_put_back_by_close(guard, knob):
    turn(guard, knob, "1")
    assert knob.read_text() == "1"
    guard.close()
    assert knob.read_text() == "0"


def test_last_setting_is_put_back_first(guard, knob):
    turn(guard, knob, "1", "0")
    turn(guard, knob, "2", "1")
    guard.close()
    assert knob.read_text() == "0"


def test_no_process_runs_before_the_first_setting(guard, knob):
    assert repr(guard) == "<Guard not started>"
    turn(guard, knob, "1")
    assert repr(guard) == f"<Guard process {guard._pid}>"
    assert alive(guard._pid)


def test_no_process_runs_after_close(guard, knob):
    turn(guard, knob, "1")
    pid = guard._pid
    guard.close()
    wait_for(lambda: not alive(pid), "the guard's process gone")


def test_closing_twice_does_nothing(guard, knob):
    turn(guard, knob, "1")
    guard.close()
    knob.write_text("2")
    guard.close()
    assert knob.read_text() == "2"


def test_file_that_has_moved_is_put_back_where_it_is(guard, knob):
    turn(guard, knob, "1")
    moved = knob.rename(knob.with_name("moved"))
    knob.write_text("7")
    guard.close()
    assert (moved.read_text(), knob.read_text()) == ("0", "7")


def test_refused_setting_is_an_error_and_others_are_kept(guard, knob):
    turn(guard, knob, "1")
    with pytest.raises(FileNotFoundError):
        turn(guard, knob.with_name("nothing"), "1")
    assert knob.read_text() == "1"
    guard.close()
    assert knob.read_text() == "0"


# The owner's end


@pytest.mark.parametrize(
    "end",
    ["os.kill(0, signal.SIGKILL)", "os._exit(3)", "sys.exit()", "os.execv('/bin/true', ['true'])"],
)
def test_setting_is_put_back_when_the_owner_ends(knob, end):
    with Owner(knob, f"input(); {end}") as owner:
        assert knob.read_text() == "1"
        owner.write("")
        owner.process.wait(DEADLINE)
        wait_for(lambda: knob.read_text() == "0", "the knob put back")
        wait_for(lambda: not alive(owner.guard), "the guard's process gone")


def test_setting_is_put_back_when_the_owner_is_killed_while_it_makes_another(knob):
    code = """
        while True:
            guard.make("the knob", "file", {0!r}, b"2", b"1")
            guard.make("the knob", "file", {0!r}, b"1", b"2")
    """
    with Owner(knob, code.format(str(knob))) as owner:
        wait_for(lambda: knob.read_text() == "2", "some settings made")
        owner.process.kill()
        owner.process.wait(DEADLINE)
        wait_for(lambda: not alive(owner.guard), "the guard's process gone")
        assert knob.read_text() == "0"


def test_ctrl_c_does_not_end_the_guard(knob):
    code = f"""
        signal.signal(signal.SIGINT, lambda *_: None)
        print(input(), flush=True)
        guard.make("the knob", "file", {str(knob)!r}, b"2", b"1")
        print("made", flush=True)
        input()
    """
    with Owner(knob, code) as owner:
        owner.write("ready")
        assert owner.read() == "ready\n"
        os.killpg(owner.process.pid, signal.SIGINT)
        assert owner.read() == "made\n"
        owner.process.kill()
        wait_for(lambda: knob.read_text() == "0", "the knob put back")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_guard_outlives_a_signal_to_all_processes_of_a_service(guard, knob, number):
    turn(guard, knob, "1")
    os.kill(guard._pid, number)
    turn(guard, knob, "2", "1")
    guard.close()
    assert knob.read_text() == "0"


# Forks


@pytest.mark.parametrize(
    ("fork", "first"),
    [
        ("os.fork()", ""),
        ("os.fork()", "_guard._pidfd = lambda: -1"),  # as where that is forbidden
        ("ctypes.CDLL(None).fork()", ""),  # which Python does not notice
    ],
)
def test_forked_child_does_not_keep_a_setting_of_a_dead_owner(knob, fork, first):
    code = f"""
        child = {fork}
        if not child:
            time.sleep(1000)
        print(child, flush=True)
        input()
    """
    with Owner(knob, code, first) as owner:
        child = int(owner.read())
        owner.process.kill()
        owner.process.wait(DEADLINE)
        wait_for(lambda: knob.read_text() == "0", "the knob put back")
        assert alive(child)


@pytest.mark.parametrize("fork", ["os.fork()", "ctypes.CDLL(None).fork()"])
def test_forked_child_does_not_delay_close(knob, fork):
    code = f"""
        if not {fork}:
            time.sleep(1000)
        guard.close()
        print(open({str(knob)!r}).read(), flush=True)
        input()
    """
    with Owner(knob, code) as owner:
        assert owner.read() == "0\n"


def test_guard_does_nothing_in_a_forked_child(knob):
    code = f"""
        child = os.fork()
        if not child:
            guard.close()
            os._exit(0)
        os.waitpid(child, 0)
        print(open({str(knob)!r}).read(), flush=True)
        input()
    """
    with Owner(knob, code) as owner:
        assert owner.read() == "1\n"


# What the process is


def test_guard_holds_no_descriptors_of_its_owner(guard, knob):
    with socket.socket() as sock:
        sock.set_inheritable(True)
        turn(guard, knob, "1")
        folder = Path(f"/proc/{guard._pid}/fd")
        held = sorted(os.readlink(fd) for fd in folder.iterdir())
    allowed = ("/dev/null", "socket:", "anon_inode:[pidfd]", "pidfd:", str(knob))
    assert [name for name in held if not name.startswith(allowed)] == []
    assert len([name for name in held if name.startswith("socket:")]) == 1


def test_guard_is_in_a_session_of_its_own(guard, knob):
    turn(guard, knob, "1")
    assert os.getsid(guard._pid) != os.getsid(0)


def test_who_waits_for_any_child_does_not_find_the_guard(knob):
    out = run_python(f"""
        import os
        from xdpspead._guard import Guard
        with Guard() as guard:
            guard.make("the knob", "file", {str(knob)!r}, b"1", b"0")
            try:
                os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                print("no child")
    """)
    assert out == "no child\n"


def test_owner_that_inherits_orphans_is_left_no_zombie(knob):
    out = run_python(f"""
        import ctypes, os
        from xdpspead._guard import Guard
        assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0  # PR_SET_CHILD_SUBREAPER
        with Guard() as guard:
            guard.make("the knob", "file", {str(knob)!r}, b"1", b"0")
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            print("no child")
    """)
    assert out == "no child\n"


@pytest.mark.xdp
def test_guard_is_in_the_network_namespace_of_the_calling_thread(guard, knob):
    from xdplab import Lab

    with Lab() as lab:
        with lab.rx.enter():
            turn(guard, knob, "1")
            namespace = os.stat("/proc/thread-self/ns/net").st_ino
        assert os.stat(f"/proc/{guard._pid}/ns/net").st_ino == namespace
        guard.close()


# Trouble


def test_what_cannot_be_put_back_is_logged(guard, knob, caplog):
    turn(guard, knob, "1")
    guard.make("the setting", "netlink", get_family(b"nlctrl"), get_family(None))
    guard.close()
    assert [r.getMessage() for r in caplog.records if r.name == LOGGER] == [
        f"cannot put back the setting: [Errno {errno.EINVAL}] {os.strerror(errno.EINVAL)}"
    ]
    assert knob.read_text() == "0"


def test_what_is_gone_need_not_be_put_back(guard, caplog):
    guard.make("the setting", "netlink", get_family(b"nlctrl"), get_family(b"no such family"))
    guard.close()
    assert not caplog.records


def test_error_of_netlink_is_the_kernels(guard):
    with pytest.raises(FileNotFoundError):
        guard.make("the setting", "netlink", get_family(b"no such family"), b"")


def test_close_does_not_wait_for_ever(guard, knob, caplog, monkeypatch):
    monkeypatch.setattr(_guard, "CLOSE_TIMEOUT_S", 0.1)
    turn(guard, knob, "1")
    os.kill(guard._pid, signal.SIGSTOP)
    guard.close()
    assert f"still being put back, by process {guard._pid}" in caplog.text
    os.kill(guard._pid, signal.SIGCONT)
    wait_for(lambda: knob.read_text() == "0", "the knob put back")


def test_guard_that_was_killed_is_an_error_of_the_next_setting(guard, knob):
    turn(guard, knob, "1")
    os.kill(guard._pid, signal.SIGKILL)
    with pytest.raises(TransportError, match=r"fails: it (is gone|has ended)"):
        turn(guard, knob, "2", "1")


@pytest.mark.parametrize("executable", ["", "/bin/true", "/bin/false", "/nonexistent"])
def test_executable_that_is_no_python_is_an_error(guard, knob, monkeypatch, executable):
    monkeypatch.setattr(sys, "executable", executable)
    with pytest.raises(TransportError, match="start guard: "):
        turn(guard, knob, "1")
    assert knob.read_text() == "0"
