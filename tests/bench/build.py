"""Compile the benchmark's own C programs: the generator, its BPF program and the floors."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from bench.paths import BENCH, BUILD, ROOT

_WARNINGS = ["-Wall", "-Wextra", "-Werror"]


class BuildError(Exception):
    """A program cannot be built; the text says what to install."""


def generator() -> tuple[Path, Path]:
    """Build the packet generator where it is not up to date.

    Returns
    -------
    program, bpf_object : Path
        The loader, and the BPF program that it loads.

    Raises
    ------
    BuildError
        If a compiler or libbpf is missing, or a compiler fails.
    """
    header = BENCH / "generate.h"
    bpf_object = BUILD / "generate.bpf.o"
    _bpf(ROOT / "bpf" / "generate.bpf.c", bpf_object, [header])
    other = BENCH / "generate_socket.c"
    program = BUILD / "generate"
    command = [_cc(), "-O2", "-g", "-std=gnu11", *_WARNINGS, str(other)]
    needed = [header, BENCH / "generate_socket.h", other]
    libraries = ["-lbpf", "-lpthread"]
    _compile(command, BENCH / "generate.c", program, needed, "gcc libbpf-dev", libraries)
    return program, bpf_object


def memcpy_floor() -> Path:
    """Build the floor of reassembly where it is not up to date, and return the library's path."""
    return _library("memcpy", [])


def receiving_floors() -> dict[str, str]:
    """Build the floors that receive where they are not up to date.

    Returns
    -------
    dict
        Paths by name: the libraries ``udp`` and ``xdp``, and the latter's BPF ``program``.
    """
    program = BUILD / "floor.bpf.o"
    _bpf(ROOT / "bpf" / "floor.bpf.c", program, [])
    return {
        "udp": str(_library("udp", [])),
        "xdp": str(_library("xdp", ["-lbpf"])),
        "program": str(program),
    }


def _library(name: str, libraries: Sequence[str]) -> Path:
    target = BUILD / f"libfloor_{name}.so"
    flags = ["-O3", "-g", "-std=gnu11", *_WARNINGS, "-fPIC", "-shared"]
    headers = [BENCH / "floor.h", BENCH / "floor_wait.h"]
    needs = "gcc libbpf-dev" if libraries else "gcc"
    _compile([_cc(), *flags], BENCH / f"floor_{name}.c", target, headers, needs, libraries)
    return target


def _bpf(source: Path, target: Path, headers: Sequence[Path]) -> None:
    multiarch = f"-I/usr/include/{platform.machine()}-linux-gnu"  # clang -target bpf leaves it out
    flags = ["-O2", "-g", "-target", "bpf", *_WARNINGS, multiarch, f"-I{BENCH}"]
    _compile(["clang", *flags, "-c"], source, target, headers, "clang libbpf-dev")


def hand_over(path: Path) -> None:
    """Give a file that root made to the owner of the tree, so that a run without root can go on."""
    if os.geteuid() == 0:
        owner = ROOT.stat()
        with contextlib.suppress(OSError):
            os.chown(path, owner.st_uid, owner.st_gid)


def _cc() -> str:
    return os.environ.get("CC", "cc")


def _compile(
    command: Sequence[str],
    source: Path,
    target: Path,
    headers: Sequence[Path],
    packages: str,
    libraries: Sequence[str] = (),
) -> None:
    newest = max(path.stat().st_mtime_ns for path in (source, *headers))
    if target.exists() and target.stat().st_mtime_ns > newest:
        return
    if shutil.which(command[0]) is None:
        raise BuildError(f"{command[0]} is missing: apt-get install {packages}")
    for folder in (BUILD.parent, BUILD):
        if not folder.exists():
            folder.mkdir(parents=True, exist_ok=True)
            hand_over(folder)
    partial = target.with_name(target.name + ".new")
    done = subprocess.run(
        [*command, str(source), "-o", str(partial), *libraries],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise BuildError(
            f"{source.name} does not compile (needs {packages}):\n{done.stderr.strip()}"
        )
    hand_over(partial)
    partial.replace(target)
