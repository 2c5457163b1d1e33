"""The command: ``make test-vm``, or ``.venv/bin/python -P tests/vm/run.py [guest ...]``.

Prints a line for each case as it comes, and a table at the end.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vm import emulator, image, kernels
from vm.packages import NotToBeHadError, Suites
from vm.plan import GUESTS, Guest

_ROOT = Path(__file__).resolve().parents[2]
_CACHE = _ROOT / ".cache" / "vm"
#: A guest that hangs, or crashes as some boots under emulation do, is tried again.
_TRIES = 3
#: A stock kernel has reached process 1 by then, if KVM can boot one at all.
_PROBE_S = 20.0


@dataclass
class Row:
    """A line of the table at the end."""

    guest: str
    kernel: str
    case: str
    result: str
    said: str
    seconds: float = 0.0


@dataclass
class Run:
    """All guests of one run."""

    cache: Path
    limit_s: float
    update: bool
    accelerator: str
    verbose: bool
    suites: Suites
    work: Path
    layers: list[Path] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)

    def add(self, row: Row) -> None:
        """Note a result and show it."""
        self.rows.append(row)
        print(f"  {row.result:<8} {row.case:<28} {row.seconds:5.1f} s  {row.said}", flush=True)

    def guest(self, guest: Guest) -> None:
        """Boot one guest, again if need be, and note what it reports."""
        try:
            kernel = kernels.fetch(guest.kernel, self.suites, self.cache, update=self.update)
            qemu = emulator.find(guest.device, self.suites, self.cache)
        except NotToBeHadError as error:
            print(f"\n{guest.name}: NOT RUN", flush=True)
            self.add(Row(guest.name, guest.kernel.name, "-", "NOT RUN", str(error)))
            return
        initrd = self.work / "initrd"
        image.write(initrd, self.layers, kernel)
        folder = self.cache / "log" / guest.name
        boot = emulator.Boot(kernel.image, initrd, guest.cards, list(guest.cases), folder)
        print(f"\n{guest.name}: Linux {kernel.release}, QEMU {qemu.version}", flush=True)
        results = self._boot(qemu, boot)
        begin, *cases = results or [{}]
        name = begin.get("kernel", kernel.release)
        for result in (result for result in cases if "case" in result):
            self.add(
                Row(
                    guest.name,
                    name,
                    result["case"],
                    result["result"],
                    result["said"],
                    result["seconds"],
                )
            )
        for case in guest.cases[sum("case" in result for result in cases) :]:
            said = f"the guest did not come to its end: see {folder}/console"
            self.add(Row(guest.name, name, case, "FAILED", said))

    def _boot(self, qemu: emulator.Emulator, boot: emulator.Boot) -> list[dict[str, Any]]:
        results: list[dict[str, Any]] = []
        for attempt in range(_TRIES):
            if attempt:
                print("  the guest did not come to its end; once more", flush=True)
            start = time.monotonic()
            results = emulator.run(qemu, boot, self._choose_accelerator(qemu, boot), self.limit_s)
            spent = time.monotonic() - start
            if self.verbose:
                print((boot.folder / "console").read_text(errors="replace"), flush=True)
            if results:
                print(f"  process 1 after {results[0].get('booted')} s, {spent:.1f} s in all")
            if emulator.came_to_its_end(results):
                break
        return results

    def _choose_accelerator(self, qemu: emulator.Emulator, boot: emulator.Boot) -> str:
        """Return "kvm" only where it really boots a guest: the device may be there and not able."""
        if self.accelerator == "auto":
            self.accelerator = "tcg"
            if os.access("/dev/kvm", os.R_OK | os.W_OK):
                probe = emulator.Boot(
                    boot.image, boot.initrd, boot.cards, [], boot.folder.with_name("kvm")
                )
                if emulator.came_to_its_end(emulator.run(qemu, probe, "kvm", _PROBE_S)):
                    self.accelerator = "kvm"
            print(f"  accelerator: {self.accelerator}", flush=True)
        return self.accelerator


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="run.py", description="Run the AF_XDP reader in virtual machines."
    )
    names = [guest.name for guest in GUESTS]
    parser.add_argument("guests", nargs="*", metavar="guest", help=f"of {', '.join(names)}")
    parser.add_argument(
        "--accel", choices=("auto", "tcg", "kvm"), default="auto",
        help="auto: KVM if it boots a guest within 20 s, else emulation",
    )  # fmt: skip
    parser.add_argument("--cache", type=Path, default=_CACHE, help="folder for what is downloaded")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds that a guest may take")
    parser.add_argument("--update", action="store_true", help="look for newer kernels")
    parser.add_argument(
        "--allow-missing", action="store_true",
        help="a guest whose kernel cannot be downloaded is no failure",
    )  # fmt: skip
    parser.add_argument("--verbose", action="store_true", help="show the guests' consoles")
    parser.add_argument("--report", type=Path, help="write the table, as Markdown, to this file")
    asked = parser.parse_args(arguments)
    unknown = sorted(set(asked.guests) - set(names))
    if unknown:
        parser.error(f"there is no guest {', '.join(unknown)}; there are: {', '.join(names)}")
    return asked


def _table(rows: Sequence[Row]) -> str:
    lines = ["| guest | kernel | case | result | s | |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {row.guest} | {row.kernel} | `{row.case}` | {row.result} | {row.seconds:.1f} "
        f"| {row.said} |"
        for row in rows
    ]
    return "\n".join(lines)


def _summary(rows: Sequence[Row]) -> str:
    return "\n".join(
        f"{row.guest:<16} {row.kernel:<25} {row.case:<27.27} {row.result:<8} {row.seconds:6.1f} s"
        for row in rows
    )


def main(arguments: Sequence[str]) -> int:
    """Run the guests that are asked for; 0 if all went well."""
    asked = parse(arguments)
    if platform.machine() != "x86_64":
        print("test-vm: needs an x86_64 machine", file=sys.stderr)
        return 1
    start = time.monotonic()
    asked.cache.mkdir(parents=True, exist_ok=True)
    suites = Suites(asked.cache)
    with tempfile.TemporaryDirectory(prefix="xdpspead-vm-", dir=asked.cache) as name:
        work = Path(name)
        run = Run(asked.cache, asked.limit, asked.update, asked.accel, asked.verbose, suites, work)
        run.layers = [image.base_layer(asked.cache), image.package_layer(work / "package.cpio")]
        for guest in GUESTS:
            if not asked.guests or guest.name in asked.guests:
                run.guest(guest)
    fetched = sum(suite.fetched for suite in suites) / 1e6
    print(f"\n{_summary(run.rows)}")
    spent = time.monotonic() - start
    print(f"\n{spent:.0f} s, {fetched:.0f} MB downloaded, accelerator {run.accelerator}")
    if asked.report is not None:
        asked.report.write_text(_table(run.rows) + "\n")
    return judge(run.rows, allow_missing=asked.allow_missing)


def judge(rows: Sequence[Row], *, allow_missing: bool) -> int:
    """Say loudly what did not go well; return the exit status."""
    failed = [row for row in rows if row.result == "FAILED"]
    missing = [row for row in rows if row.result == "NOT RUN"]
    for row in missing:
        print(f"test-vm: {row.guest} was NOT RUN: {row.said}", file=sys.stderr)
    for row in failed:
        print(f"test-vm: {row.guest} {row.case} FAILED: {row.said}", file=sys.stderr)
    return 1 if failed or (missing and not allow_missing) else 0
