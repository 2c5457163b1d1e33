"""One run of the benchmark: what was asked for, how much time there is, and what came out."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TextIO
from unittest import mock

from bench import network
from bench.library import LIBRARIES, OURS, PEER
from bench.paths import RUN
from bench.results import Results

#: 1 KiB packets, 64 of which are a heap: what everything is measured with but where it says so.
PAYLOAD = 1024
PACKETS_PER_HEAP = 64
#: Larger than the caches of a core, so that packets come from further away, as from a network.
BUFFER_SIZE = 128 << 20
_CHILD_S = 120

Step = Callable[[], None]


class Plan(NamedTuple):
    """How much to measure.

    Attributes
    ----------
    runs
        Samples of each figure of the table.
    curve_runs
        Samples of each point of a curve.
    memory_s, trial_s
        Seconds of each measurement from memory and of each over the network.
    search
        How highest rates are looked for.
    pcap_size
        Bytes of the capture file.
    time_limit_s
        Seconds after which nothing more is begun.
    """

    runs: int
    curve_runs: int
    memory_s: float
    trial_s: float
    search: network.Search
    pcap_size: int
    time_limit_s: float


FULL = Plan(5, 5, 0.3, 0.8, network.Search(), 10**9, 1500)
QUICK = Plan(1, 1, 0.1, 0.3, network.Search(trials=4, seconds=0.3, hold_s=0.5), 10**8, 240)


class OutOfTimeError(Exception):
    """The time limit was reached."""


@contextlib.contextmanager
def installed() -> Iterator[None]:
    """Have processes that are started in the body use the package as users have it.

    An installed package has bytecode, and nothing else of its own in memory. With an editable one
    there is a finder that builds it, and its modules are compiled in each process anew, which would
    be counted as memory that receiving takes. So an editable package is installed into a folder for
    this once, and the child ``library`` compiles the packages.
    """
    with tempfile.TemporaryDirectory(prefix="xdpspead-bench-") as folder:
        more = {"PYTHONPYCACHEPREFIX": f"{folder}/bytecode"}
        build = next(filter(None, (getattr(f, "_build_path", None) for f in sys.meta_path)), None)
        if build:
            more["PYTHONPATH"] = _install(build, f"{folder}/installed")
            more["MESONPY_EDITABLE_SKIP"] = build
        with mock.patch.dict(os.environ, more), mock.patch.object(sys, "path", sys.path[:]):
            if build:  # this process's finder is told to skip it, too
                sys.path.insert(0, more["PYTHONPATH"])
            os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
            yield


def _install(build: str, folder: str) -> str:
    """Install what was built into `folder`; return where the package is in it."""
    # To import it builds what is not up to date.
    import_it = [sys.executable, "-P", "-c", f"import {OURS}"]
    meson = [sys.executable, "-P", "-m", "mesonbuild.mesonmain"]
    what = ["--no-rebuild", "--quiet", "--tags", "python-runtime"]
    command = [*meson, "install", "-C", build, "--destdir", folder, *what]
    try:
        for step in (import_it, command):
            subprocess.run(step, check=True, capture_output=True)
        return str(next(Path(folder).rglob(f"{OURS}/__init__.py")).parents[1])
    except (OSError, subprocess.CalledProcessError, StopIteration) as error:
        raise network.MeasurementError(f"{build} cannot be installed: {error}") from error


class Session:
    """What the parts of the benchmark share.

    Attributes
    ----------
    options
        The command line.
    plan
        How much to measure.
    libraries
        Names of those that are measured.
    xdp
        Whether AF_XDP can be measured.
    senders
        Which transports each library can send by.
    results
        Where the figures go.
    log
        Where the warnings of the children go.
    failures
        How many measurements came to no result; a note tells each.
    """

    def __init__(self, options: argparse.Namespace, log: TextIO) -> None:
        self.options = options
        plan = QUICK if options.quick else FULL
        self.plan = plan._replace(
            runs=options.runs or plan.runs,
            curve_runs=min(options.runs or plan.curve_runs, plan.curve_runs),
            time_limit_s=options.time_limit or plan.time_limit_s,
        )
        self.libraries = [options.only] if options.only else list(LIBRARIES)
        self.results = Results()
        self.log = log
        self.xdp = False
        self.failures = 0
        self.senders: dict[str, list[str]] = {}
        self._deadline = time.monotonic() + self.plan.time_limit_s

    @property
    def ours(self) -> bool:
        """Whether the package itself is measured."""
        return OURS in self.libraries

    @property
    def peer(self) -> bool:
        """Whether spead2 is measured."""
        return PEER in self.libraries

    def probe_libraries(self) -> None:
        """Find out what the libraries are and can do."""
        for name in self.libraries:
            facts = self.child("library", {"name": name})
            if "error" in facts:
                other = PEER if name == OURS else OURS
                raise network.MeasurementError(
                    f"{name} cannot be imported ({facts['error']}); --only {other} does without it"
                )
            self.results.machine[name] = facts["version"]
            self.senders[name] = [
                transport
                for transport, fact in (("udp", "send"), ("xdp", "send_xdp"))
                if facts.get(fact)
            ]
            if name == OURS:
                self.xdp = facts["xdp"] and os.geteuid() == 0
                if not facts["xdp"]:
                    self.results.note(f"no AF_XDP figures: this {OURS} was built without it")

    def rounds(self, name: str, steps: Callable[[], Iterator[Step]], runs: int) -> None:
        """Take all steps of a part, *runs* times.

        A step that fails is noted, and does not take the others' results with it.

        Raises
        ------
        OutOfTimeError
            If the time is over before.
        """
        for index in range(runs):
            start = time.monotonic()
            print(f"{name}: run {index + 1} of {runs}", end="", file=sys.stderr, flush=True)
            for step in steps():
                if time.monotonic() > self._deadline:
                    print(file=sys.stderr)
                    raise OutOfTimeError
                try:
                    step()
                except network.MeasurementError as error:
                    self.failures += 1
                    self.results.note(f"{name}: FAILED: {error}")
            print(f", {time.monotonic() - start:.0f} s", file=sys.stderr)

    def child(self, name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Run one child process to its end and return what it printed."""
        with contextlib.ExitStack() as stack:
            command = [sys.executable, "-P", str(RUN), name, json.dumps(arguments)]
            process = stack.enter_context(
                subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            )
            stack.callback(process.kill)
            try:
                output, errors = process.communicate(timeout=_CHILD_S)
            except subprocess.TimeoutExpired:
                raise network.MeasurementError(
                    f"{name} {arguments} took over {_CHILD_S} s"
                ) from None
        if process.returncode != 0:
            last = errors.strip().splitlines()[-8:]
            raise network.MeasurementError(f"{name} {arguments} failed:\n" + "\n".join(last))
        self.log.write(errors)
        answer: dict[str, Any] = json.loads(output)
        return answer

    def load(self, **more: Any) -> network.Load:
        """Return what is sent, by default or as `more` says."""
        options = self.options
        generator = more.get("generator", options.generator)
        if generator not in (*network.GENERATORS, *self.senders.get(OURS, ())):
            raise ValueError(f"--generator {generator}: this {OURS} has no such sender")
        if options.sender_core == options.receiver_core:
            raise ValueError("sender and receiver need a core each")
        standard = {
            "payload": PAYLOAD,
            "packets_per_heap": PACKETS_PER_HEAP,
            "udp_checksum": options.udp_checksum,
            "sender_core": options.sender_core,
            "receiver_core": options.receiver_core,
            "generator": generator,
        }
        return network.Load(**{**standard, **more})

    @contextlib.contextmanager
    def veth(self, load: network.Load, **lab: Any) -> Iterator[network.Bench]:
        """Make a veth pair with the generator at one end."""
        # A plain socket needs GRO at its end of the pair: that is what turns NAPI on there.
        with network.netlab().VethLab(gro=True, **lab) as entered:
            yield network.Bench(entered, load, self.log)

    def may_use_network(self) -> bool:
        """Whether packets can be sent; a note says what is missing."""
        if os.geteuid() == 0:
            return True
        self.results.note("without root neither UDP over veth nor AF_XDP can be measured")
        return False

    def keep(self, receiver: network.Receiver, *trials: network.Trial) -> None:
        """Keep trials for the JSON."""
        for trial in trials:
            fields = receiver._asdict() | trial._asdict()
            fields["settings"] = dict(receiver.settings)
            self.results.trials.append(fields)
