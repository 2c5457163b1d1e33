"""The benchmark's command line, and the order in which things are measured."""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from bench import build, machine, network, sending
from bench.library import LIBRARIES, OURS, PEER
from bench.paths import BUILD, RUN
from bench.results import Results, print_comparison, print_results, read

PARTS = ("memory", "iterate", "udp", "xdp", "send")
GENERATORS = ("kernel", "udp", "xdp")
PACKETS_PER_HEAP = 64
CORE_PAYLOADS = (64, 1024, 8192)
ITERATE_PAYLOADS = (1024, 8192)
RATES = (200_000, 400_000)
NETWORK_PAYLOAD = 1024
# Larger than the caches of a core, so that packets come from further away, as from a network.
BUFFER_SIZE = 128 << 20
ITERATE_HEAPS = 20_000
# A pool hands out the buffer that came back last, so that few are in use at a time; memcpy takes
# the same time with 3 and with 40.
MEMCPY_BUFFERS = 4
_CHILD_S = 120


class Plan(NamedTuple):
    """How much to measure."""

    runs: int
    memory_s: float
    trial_s: float
    search: network.Search
    time_limit_s: float


FULL = Plan(5, 0.4, 1.0, network.Search(), 600)
QUICK = Plan(1, 0.1, 0.3, network.Search(seconds=0.3, trials=4), 90)


class OutOfTimeError(Exception):
    """The time limit was reached."""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="bench",
        description="Measure xdpspead and spead2 in one run on the same traffic.",
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="one short run of each: a check that all works")
    add("--only", choices=LIBRARIES, help="measure one of the two")
    add("--parts", default=",".join(PARTS), help=f"comma-separated, of {', '.join(PARTS)}")
    add("--runs", type=_positive, help=f"samples of each figure (default {FULL.runs})")
    add("--time-limit", type=_positive, help=f"seconds (default {FULL.time_limit_s:g})")
    add("--sender-core", type=int, default=0, help="core of the packet generator (default 0)")
    add("--receiver-core", type=int, default=1, help="core of the receivers (default 1)")
    add(
        "--generator",
        choices=GENERATORS,
        default="kernel",
        help=f"what sends to the receivers: a program in the kernel, or {OURS}'s own sender",
    )
    add("--udp-checksum", action="store_true", help="send valid UDP checksums, which lets GRO work")
    add("--json", type=Path, default=BUILD / "results.json", help="where to write the results")
    add("--compare", type=Path, metavar="OLD.json", help="print the change since an earlier run")
    add("--check", action="store_true", help="end with status 1 if a promise is not kept")
    options = parser.parse_args(arguments)
    options.parts = options.parts.split(",")
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        parser.error(f"--parts: there is no {', '.join(sorted(unknown))}")
    return options


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a positive number")
    return value


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; return the exit status."""
    options = parse(arguments)
    try:
        if options.compare:
            read(options.compare)  # before minutes are spent
        return Session(options).run()
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except (build.BuildError, network.MeasurementError, OSError, ValueError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2


class Session:
    """One run of the benchmark."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        plan = QUICK if options.quick else FULL
        self.plan = plan._replace(
            runs=options.runs or plan.runs, time_limit_s=options.time_limit or plan.time_limit_s
        )
        self.libraries = [options.only] if options.only else list(LIBRARIES)
        self.results = Results()
        self.deadline = time.monotonic() + self.plan.time_limit_s
        self.xdp = False
        self.senders: dict[str, list[str]] = {}
        self.log: TextIO = sys.stderr

    def run(self) -> int:
        """Measure, print and write; return the exit status."""
        results = self.results
        self._check_cores()
        results.machine = machine.facts()
        self._watch_others("before")
        self._probe_libraries()
        results.options = {
            "quick": self.options.quick,
            "udp_checksum": self.options.udp_checksum,
            "generator": self.options.generator,
            "sender_core": self.options.sender_core,
            "receiver_core": self.options.receiver_core,
            "plan": self.plan._asdict(),
        }
        complete = self._measure_all()
        self._watch_others("after")
        print_results(results)
        if self.options.compare:
            print_comparison(self.options.compare, results)
        self._write()
        if not complete:
            return 2
        failed = any(verdict.word == "FAIL" for verdict in results.verdicts())
        return 1 if self.options.check and failed else 0

    def _watch_others(self, when: str) -> None:
        busy = machine.busy_part()
        self.results.machine[f"others {when}"] = f"{100 * busy:.0f} % of all cores"
        if busy > machine.BUSY:
            self.results.note(
                f"other processes took {100 * busy:.0f} % of all cores {when} the run: "
                "its figures are not to be trusted, above all those of time and of highest rates"
            )

    # ---- before ---------------------------------------------------------------------------------

    def _check_cores(self) -> None:
        usable = os.sched_getaffinity(0)
        for core in (self.options.sender_core, self.options.receiver_core):
            if core not in usable:
                raise ValueError(f"core {core} is not among the usable cores {sorted(usable)}")

    def _probe_libraries(self) -> None:
        for name in self.libraries:
            facts = _child("library", {"name": name})
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
                self.xdp = facts["xdp"]

    def _measure_all(self) -> bool:
        """Measure all parts; return whether the time was enough."""
        parts = self.options.parts
        BUILD.mkdir(parents=True, exist_ok=True)
        log_path = BUILD / "receivers.log"
        with open(log_path, "w") as self.log:
            build.hand_over(log_path)
            try:
                if "memory" in parts:
                    self._rounds("core", self._core_steps)
                if "iterate" in parts:
                    self._rounds("iteration", self._iterate_steps)
                if "udp" in parts or "xdp" in parts:
                    self._network()
                if "send" in parts:
                    self._send()
            except OutOfTimeError:
                limit = self.plan.time_limit_s
                self.results.note(f"stopped at the time limit of {limit:g} s: samples are missing")
                return False
        return True

    def _rounds(self, name: str, steps: Callable[[], Iterator[Callable[[], None]]]) -> None:
        """Take all steps of a part, as often as there are to be samples."""
        for index in range(self.plan.runs):
            print(f"{name}: run {index + 1} of {self.plan.runs}", file=sys.stderr)
            for step in steps():
                if time.monotonic() > self.deadline:
                    raise OutOfTimeError
                step()

    # ---- from memory ----------------------------------------------------------------------------

    def _memory_child(self, mode: str, payload: int, per_heap: int, **more: Any) -> dict[str, Any]:
        arguments = {
            "mode": mode,
            "payload": payload,
            "packets_per_heap": per_heap,
            "buffer_size": BUFFER_SIZE,
            "max_heaps": 1_000_000,
            "worker_core": self.options.receiver_core,
            "seconds": self.plan.memory_s,
        }
        return _child("memory", {**arguments, **more}, self.log)

    def _core_steps(self) -> Iterator[Callable[[], None]]:
        floor = str(build.floor())
        for payload in CORE_PAYLOADS:
            for name in self.libraries:
                yield functools.partial(self._core, name, payload)
            yield functools.partial(self._memcpy, floor, payload)

    def _core(self, name: str, payload: int) -> None:
        placements = {
            "two_cores": self.options.sender_core,
            "one_core": self.options.receiver_core,
        }
        for placement, core in placements.items():
            done = self._memory_child(
                "core", payload, PACKETS_PER_HEAP, library=name, python_core=core
            )
            for metric in ("wall_ns", "worker_ns"):
                self.results.add(f"memory/{payload}/{name}/{placement}_{metric}", done[metric])

    def _memcpy(self, floor: str, payload: int) -> None:
        done = self._memory_child(
            "memcpy", payload, PACKETS_PER_HEAP, floor=floor, buffers=MEMCPY_BUFFERS
        )
        self.results.add(f"memory/{payload}/memcpy/wall_ns", done["wall_ns"])

    def _iterate_steps(self) -> Iterator[Callable[[], None]]:
        for mode in ("iterate", "many", "update"):
            for payload in ITERATE_PAYLOADS:
                for name in self.libraries:
                    yield functools.partial(self._iterate, mode, payload, name)

    def _iterate(self, mode: str, payload: int, name: str) -> None:
        done = self._memory_child(
            mode,
            payload,
            1,
            library=name,
            python_core=self.options.sender_core,
            max_heaps=ITERATE_HEAPS,
        )
        self.results.add(f"iterate/{mode}-{payload}/{name}/heaps_per_s", done["heaps_per_s"])

    # ---- over the network -----------------------------------------------------------------------

    def _receivers(self) -> list[network.Receiver]:
        receivers = []
        if "udp" in self.options.parts:
            receivers += [network.Receiver(name, "udp") for name in self.libraries]
        elif PEER in self.libraries:
            receivers.append(network.Receiver(PEER, "udp"))  # what AF_XDP is compared with
        if "xdp" in self.options.parts and OURS in self.libraries:
            if self.xdp:
                receivers.append(network.Receiver(OURS, "xdp"))
            else:
                self.results.note(f"no AF_XDP figures: this {OURS} was built without it")
        return receivers

    def _network(self) -> None:
        if os.geteuid() != 0:
            self.results.note("without root neither UDP over veth nor AF_XDP can be measured")
            return
        if self.options.sender_core == self.options.receiver_core:
            raise ValueError("sender and receiver need a core each")
        load = network.Load(
            NETWORK_PAYLOAD,
            PACKETS_PER_HEAP,
            self.options.udp_checksum,
            self.options.sender_core,
            self.options.receiver_core,
            self.options.generator,
        )
        if load.generator != "kernel":
            if load.generator not in self.senders.get(OURS, ()):
                raise ValueError(f"--generator {load.generator}: this {OURS} has no such sender")
            self.results.note(
                f"the receivers were measured with {OURS}'s {load.generator.upper()} sender"
            )
        generator = build.generator()
        # A plain socket needs GRO at its end of the pair: that is what turns NAPI on there.
        with network.netlab().VethLab(gro=True) as lab:
            bench = network.Bench(lab, generator, load, self.log)
            self._rounds("network", lambda: self._network_steps(bench))

    def _network_steps(self, bench: network.Bench) -> Iterator[Callable[[], None]]:
        for receiver in self._receivers():
            yield functools.partial(self._cpu_time, bench, receiver)
        for tuned in (False, True):
            for plain in self._receivers():
                receiver = plain._replace(tuned=tuned)
                yield functools.partial(self._highest, bench, receiver)

    def _cpu_time(self, bench: network.Bench, receiver: network.Receiver) -> None:
        for rate in RATES:
            with bench.receiver(receiver) as running:
                # Fill pools and caches; also the first packets' neighbour and route look-ups.
                running.trial(rate, self.plan.trial_s / 10)
                trial = network.sustained(running, rate, self.plan.trial_s)
            self._keep(receiver, [trial])
            prefix = f"{receiver.transport}/{rate}/{receiver.library}"
            self.results.add(f"{prefix}/cpu_ns", trial.cpu_ns)
            self.results.add(f"{receiver.transport}/memory/{receiver.library}/bytes", trial.max_rss)
            if trial.sender_limited:
                self.results.note(f"{receiver}: the sender did not reach {rate} packets/s")
            if trial.loss > 0.01:
                self.results.note(
                    f"{receiver}: not sustained, {100 * trial.loss:.1f} % lost at {rate} packets/s"
                )

    def _highest(self, bench: network.Bench, receiver: network.Receiver) -> None:
        with bench.receiver(receiver) as running:
            running.trial(self.plan.search.low, self.plan.trial_s / 10)
            highest = network.highest_rate(running, self.plan.search)
            buffer_size = running.buffer_size
        self._keep(receiver, highest.trials)
        case = "highest-tuned" if receiver.tuned else "highest"
        self.results.add(f"{receiver.transport}/{case}/{receiver.library}/pps", highest.pps)
        if buffer_size:
            self.results.note(f"{receiver}: socket buffer of {buffer_size / 2**20:.1f} MiB")
        if highest.sender_limited:
            self.results.note(f"{receiver}: the sender, not the receiver, limited a highest rate")

    def _keep(self, receiver: network.Receiver, trials: list[network.Trial]) -> None:
        for trial in trials:
            self.results.trials.append({**receiver._asdict(), **trial._asdict()})

    # ---- sending --------------------------------------------------------------------------------

    def _send(self) -> None:
        for name in self.libraries:
            if not self.senders[name]:
                self.results.note(f"this {name} cannot send")
        with contextlib.ExitStack() as stack:
            lab = None
            if os.geteuid() == 0:
                lab = stack.enter_context(sending.far_end())
            else:
                self.results.note("without root the highest rates of senders cannot be measured")
            self._rounds("send", lambda: self._send_steps(lab))

    def _send_steps(self, lab: Any) -> Iterator[Callable[[], None]]:
        senders = [(name, transport) for name in self.libraries for transport in self.senders[name]]
        if lab is not None:
            for payload in sending.PAYLOADS:
                for name, transport in senders:
                    yield functools.partial(self._send_packets, lab, name, transport, payload)
        for transport in sending.TRANSPORTS:
            for how in sending.HOWS:
                for name in self.libraries:
                    if self.senders[name]:
                        yield functools.partial(self._send_heaps, name, transport, how)

    def _send_packets(self, lab: Any, name: str, transport: str, payload: int) -> None:
        core, seconds = self.options.sender_core, self.plan.trial_s
        speed = sending.packets(lab, name, transport, payload, core, seconds, self.log)
        prefix = f"send/{transport}-{payload}/{name}"
        self.results.add(f"{prefix}/pps", speed.per_s)
        self.results.add(f"{prefix}/cpu_ns", speed.cpu_ns)

    def _send_heaps(self, name: str, transport: str, how: str) -> None:
        core, seconds = self.options.sender_core, self.plan.trial_s
        speed = sending.heaps(name, transport, how, core, seconds, self.log)
        self.results.add(f"send/heaps-{transport}-{how}/{name}/heaps_per_s", speed.per_s)

    # ---- after ----------------------------------------------------------------------------------

    def _write(self) -> None:
        path: Path = self.options.json
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.results.to_json(), indent=1) + "\n")
        build.hand_over(path)
        print(f"\nwritten to {path}")


def _child(name: str, arguments: dict[str, Any], log: TextIO | None = None) -> dict[str, Any]:
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
            raise network.MeasurementError(f"{name} {arguments} took over {_CHILD_S} s") from None
    if process.returncode != 0:
        last = errors.strip().splitlines()[-8:]
        raise network.MeasurementError(f"{name} {arguments} failed:\n" + "\n".join(last))
    if log is not None:
        log.write(errors)
    answer: dict[str, Any] = json.loads(output)
    return answer
