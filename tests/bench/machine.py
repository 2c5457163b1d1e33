"""Facts about the machine that figures depend on."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

from bench.paths import ROOT

# With other processes that take more than this part of all cores, figures are not to be trusted.
BUSY = 0.05


def facts() -> dict[str, Any]:
    """Return names and values, in the order to print them."""
    return {
        "kernel": platform.release(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "huge pages": _read("/sys/kernel/mm/transparent_hugepage/enabled"),
        "rmem_max": _read("/proc/sys/net/core/rmem_max"),
        "revision": _revision(),
    }


def busy_part(seconds: float = 0.5) -> float:
    """Watch the machine for a moment; return which part of all cores' time was in use."""
    idle_before, total_before = _idle_and_total()
    time.sleep(seconds)
    idle, total = _idle_and_total()
    return 1 - (idle - idle_before) / max(total - total_before, 1)


def _idle_and_total() -> tuple[int, int]:
    fields = [int(field) for field in _read("/proc/stat").splitlines()[0].split()[1:9]]
    return fields[3] + fields[4], sum(fields)  # idle and waiting for a disk


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return "unknown"


def _cpu_model() -> str:
    for line in _read("/proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def _revision() -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            check=False,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() or "unknown"
