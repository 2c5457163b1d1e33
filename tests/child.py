"""Python code in a process of its own: what it does to the process, or counts of it, is its own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path


def run_python(*code: str, timeout: float = 60.0) -> str:
    """Run pieces of code, which find the modules of this folder, and return what they print.

    Parameters
    ----------
    *code
        Pieces, each indented as it likes, that run one after the other.
    timeout
        Seconds after which it counts as hanging.
    """
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-P", "-c", "\n".join(map(textwrap.dedent, code))],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout
