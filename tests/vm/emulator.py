"""QEMU: which one, and one boot of a guest.

The guest's first serial port is its console, and the second brings results, a line of JSON each.
Whether a guest has come to its end is judged by its last line there: QEMU's exit status says
nothing about it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vm.packages import NotToBeHadError, Suites

#: The first with igb, for machines whose own is older.
_SUITE = "bookworm-backports"
_PACKAGES = ("qemu-system-x86", "qemu-system-common", "qemu-system-data", "seabios")
_PROGRAM = "qemu-system-x86_64"
_POLL_S = 0.1
#: Seconds within which a guest has come to process 1, if it ever does.
BOOT_S = 100.0
_END = "end"

RECEIVER_MAC = "52:54:00:00:00:aa"
SENDER_MAC = "52:54:00:00:00:bb"


@dataclass(frozen=True)
class Emulator:
    """A QEMU that can be run.

    Attributes
    ----------
    version : str
        Its version.
    command : list of str
        Program and the options that it always needs.
    environment : dict of str to str
        Variables that it needs.
    """

    version: str
    command: list[str]
    environment: dict[str, str]

    def has_device(self, name: str) -> bool:
        """Return whether it emulates a device."""
        # Not the list of all devices, for which modules of another build may be loaded.
        return f"{name} options" in _run(self.command, self.environment, "-device", f"{name},help")


def _run(command: Sequence[str], environment: dict[str, str], *more: str) -> str:
    done = subprocess.run(
        [*command, *more], env={**os.environ, **environment}, capture_output=True, text=True
    )
    return done.stdout


def _describe(command: list[str], environment: dict[str, str]) -> Emulator:
    said = _run(command, environment, "--version")
    if "version" not in said:
        raise NotToBeHadError(f"{command[0]} does not run")
    return Emulator(said.split("version ")[1].split()[0], command, environment)


def installed() -> Emulator | None:
    """Return this machine's own QEMU, or None."""
    program = shutil.which(_PROGRAM)
    return None if program is None else _describe([program], {})


def _in_cache(folder: Path) -> Emulator:
    share = folder / "usr/share"
    # Firmware of the cards (romfile) is not needed to boot a kernel.
    command = [str(folder / "usr/bin" / _PROGRAM), "-L", f"{share}/qemu", "-L", f"{share}/seabios"]
    modules = folder / "usr/lib/x86_64-linux-gnu/qemu"
    return _describe(command, {"QEMU_MODULE_DIR": str(modules)})


def find(device: str, suites: Suites, cache: Path) -> Emulator:
    """Return a QEMU that emulates `device`: the machine's own, or a newer one from the cache.

    Raises
    ------
    NotToBeHadError
        If there is none and none can be downloaded.
    """
    own = installed()
    if own is not None and own.has_device(device):
        return own
    if own is None:
        # A newer one, unpacked, runs with the libraries of this one.
        raise NotToBeHadError(f"{_PROGRAM} is not installed: .ci/setup vm")
    folder = cache / "qemu"
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        for package in _PACKAGES:
            suites[_SUITE].unpack(f"{package}/{_SUITE}", folder)
        (folder / "complete").touch()
    found = _in_cache(folder)
    if not found.has_device(device):
        raise NotToBeHadError(f"QEMU {found.version} has no {device}")
    return found


# ------------------------------------------------------------------ one boot


@dataclass(frozen=True)
class Boot:
    """What to boot.

    Attributes
    ----------
    image, initrd : Path
        Kernel and files of the guest.
    cards : list of str
        QEMU's device options of the receiving and of the sending card, without ``netdev``.
    arguments : list of str
        For process 1.
    folder : Path
        Where console and results go.
    """

    image: Path
    initrd: Path
    cards: list[str]
    arguments: list[str]
    folder: Path
    memory_mb: int = 1024
    processors: int = 2


def _command(emulator: Emulator, boot: Boot, accelerator: str) -> list[str]:
    append = "console=ttyS0 panic=-1 quiet net.ifnames=0 -- " + " ".join(boot.arguments)
    processor = "host" if accelerator == "kvm" else "max"
    command = [*emulator.command, "-accel", accelerator, "-cpu", processor, "-M", "q35"]
    command += ["-m", str(boot.memory_mb), "-smp", str(boot.processors), "-nodefaults"]
    command += ["-nographic", "-no-reboot", "-kernel", str(boot.image), "-initrd", str(boot.initrd)]
    command += ["-serial", f"file:{boot.folder}/console", "-serial", f"file:{boot.folder}/results"]
    command += ["-append", append]
    for number, card in enumerate(boot.cards):
        command += ["-netdev", f"hubport,id=net{number},hubid=0"]
        mac = (RECEIVER_MAC, SENDER_MAC)[number]
        kind, _, options = card.partition(",")
        device = f"{kind},netdev=net{number},mac={mac},romfile=,{options}".rstrip(",")
        command += ["-device", device]
    return command


def _results(path: Path) -> Iterator[dict[str, Any]]:
    with contextlib.suppress(FileNotFoundError):
        for line in path.read_text(errors="replace").splitlines():
            with contextlib.suppress(json.JSONDecodeError):  # it is being written
                yield json.loads(line)


def run(emulator: Emulator, boot: Boot, accelerator: str, limit_s: float) -> list[dict[str, Any]]:
    """Boot a guest and return its results: the last one is ``{"end": true}`` if it came to its end.

    It is ended if it takes longer than `limit_s`, or has not come to process 1 within `BOOT_S`:
    under emulation some boots hang.
    """
    boot.folder.mkdir(parents=True, exist_ok=True)
    results = boot.folder / "results"
    results.unlink(missing_ok=True)
    command = _command(emulator, boot, accelerator)
    begin = time.monotonic()
    limits = (limit_s, min(BOOT_S, limit_s))
    with (boot.folder / "qemu").open("w") as log:
        process = subprocess.Popen(
            command,
            env={**os.environ, **emulator.environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            while process.poll() is None:
                booted = results.exists() and results.stat().st_size > 0
                if time.monotonic() - begin > limits[not booted]:
                    break
                time.sleep(_POLL_S)
        finally:
            process.kill()
            process.wait()
    return list(_results(results))


def came_to_its_end(results: Sequence[dict[str, Any]]) -> bool:
    """Return whether these are all results that a guest had to give."""
    return bool(results) and bool(results[-1].get(_END))
