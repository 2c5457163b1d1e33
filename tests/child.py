"""Python code in a process of its own: what it does to the process, or counts of it, is its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

from target import wait_for


def start_python(*code: str) -> subprocess.Popen[str]:
    """Start pieces of code, which find the modules of this folder, each indented as it likes."""
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(
        [sys.executable, "-P", "-c", "\n".join(map(textwrap.dedent, code))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
    )


def _output(process: subprocess.Popen[str], timeout: float) -> str:
    """Return what a process prints until it ends, which it has to do well."""
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, f"{out}\n{err}"
    return out


def run_python(*code: str, timeout: float = 60.0) -> str:
    """Run pieces of code, which find the modules of this folder, and return what they print.

    Parameters
    ----------
    *code
        Pieces, each indented as it likes, that run one after the other.
    timeout
        Seconds after which it counts as hanging.
    """
    return _output(start_python(*code), timeout)


def _sleeps(pid: int) -> bool:
    """Whether the process's main thread waits for something."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


def run_signalled(code: str, number: int = signal.SIGINT, timeout: float = 10.0) -> str:
    """Send a signal to code that has printed "ready"; return what else it prints.

    The signal comes when the main thread sleeps, most likely in the call that follows.
    """
    process = start_python(code)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n", process.communicate(timeout=timeout)[1]
        wait_for(lambda: _sleeps(process.pid), "the child asleep", timeout)
        process.send_signal(number)
    except BaseException:
        process.kill()
        process.wait()
        raise
    return _output(process, timeout)
