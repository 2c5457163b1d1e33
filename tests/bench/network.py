"""Measurements over a veth pair: the generator in one namespace, a receiver in the other."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType, ModuleType
from typing import IO, Any, NamedTuple

from bench import build
from bench.floors import COPYING, FLOOR
from bench.library import OURS
from bench.paths import ROOT, RUN

PORT = 8888
#: What our own C program sends from: the kernel, or a socket. Else it is one of our senders.
GENERATORS = ("kernel", "socket")
_ANSWER_S = 20.0
_SETTLE_S = 0.06
_SETTLED_WITHIN_S = 3.0
# A lower rate than asked for means that the sender's core, which also does the kernel's half of
# receiving, was the limit.
_SENDER_LIMITED = 0.97


class MeasurementError(Exception):
    """A measurement did not come to a result."""


class Receiver(NamedTuple):
    """A way to receive: one of the libraries or floors, its transport, and its settings.

    What `settings` may hold is told in receive.py; floors have none.
    """

    library: str
    transport: str
    tuned: bool = False
    settings: Mapping[str, Any] = MappingProxyType({})

    def __str__(self) -> str:
        return f"{self.library} {self.transport.upper()}{' tuned' if self.tuned else ''}"


class Load(NamedTuple):
    """What is sent, by what, and on which cores it is sent and received.

    With `flows` there are so many heaps under way, packet by packet or, with `whole_heaps`, one
    after the other; each flow has a destination port of its own, from `PORT` on.
    """

    payload: int
    packets_per_heap: int
    udp_checksum: bool
    sender_core: int
    receiver_core: int
    generator: str = "kernel"
    flows: int = 1
    whole_heaps: bool = False
    timestamp: bool = False


class Trial(NamedTuple):
    """What became of one burst of packets.

    Attributes
    ----------
    offered, achieved
        Packets per second asked for and really sent.
    sent, refused, received
        Packets; those refused did not fit into the receiving interface's ring (None: not known).
    loss
        Part of those sent that was not received.
    cpu_ns
        CPU time of the whole receiving process per packet received.
    python_ns
        That of Python's main thread.
    rss
        Resident bytes of the receiving process after it.
    """

    offered: float
    achieved: float
    sent: int
    refused: int | None
    received: int
    loss: float
    cpu_ns: float
    python_ns: float
    rss: int
    stats: dict[str, int]
    readers: list[str]

    @property
    def sender_limited(self) -> bool:
        """Whether the sender did not reach the rate asked for."""
        return self.achieved < _SENDER_LIMITED * self.offered


def netlab() -> ModuleType:
    """Import the laboratory from the tree, without the package around it."""
    name = "xdpspead_netlab"
    if name not in sys.modules:
        path = ROOT / "xdpspead" / "_netlab.py"
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise MeasurementError(f"{path} is missing")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


class _Child:
    """A child process that answers lines with lines of JSON."""

    def __init__(self, process: subprocess.Popen[bytes], name: str) -> None:
        self.process = process
        self.name = name
        self._buffer = b""

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the next answer says what happened
            self.process.stdin.write(line.encode() + b"\n")
            self.process.stdin.flush()

    def line(self, timeout_s: float = _ANSWER_S) -> str:
        """Return the next line that the child prints."""
        assert self.process.stdout is not None
        fd = self.process.stdout.fileno()
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([fd], [], [], left)[0]:
                raise MeasurementError(f"{self.name} did not answer within {timeout_s:g} s")
            data = os.read(fd, 65536)
            if not data:
                status = self.process.wait()
                raise MeasurementError(f"{self.name} ended with status {status}")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode()

    def ask(self, line: str) -> dict[str, Any]:
        self.tell(line)
        return self.answer()

    def answer(self, timeout_s: float = _ANSWER_S) -> dict[str, Any]:
        text = self.line(timeout_s)
        try:
            answer: dict[str, Any] = json.loads(text)
        except json.JSONDecodeError:
            raise MeasurementError(f"{self.name} said: {text}") from None
        if "error" in answer:
            raise MeasurementError(f"{self.name}: {answer['error']}")
        return answer

    def end(self) -> int:
        """Close the child's input, wait until it has ended, and return its status."""
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        return int(self.process.returncode)


class Bench:
    """A veth pair with the generator at one end; :meth:`receiver` starts the other.

    Parameters
    ----------
    lab
        The laboratory, entered.
    load
        What to send. It may be exchanged between trials.
    log
        Where the receivers' warnings go; None for standard error.
    """

    def __init__(self, lab: Any, load: Load, log: IO[str] | None = None) -> None:
        self.lab = lab
        self.load = load
        self._log = log
        self._generator = build.generator()
        self._floors = build.receiving_floors()
        self._next_heap = 1

    @contextlib.contextmanager
    def receiver(self, receiver: Receiver) -> Iterator[Running]:
        """Run a fresh receiving process for the time of a ``with`` block."""
        floor = receiver.library in (FLOOR, COPYING)
        arguments = {
            **receiver._asdict(),
            "settings": dict(receiver.settings),
            "floors": self._floors if floor else None,
            "timestamp": self.load.timestamp,
            "core": self.load.receiver_core,
            "payload": self.load.payload,
            "packets_per_heap": self.load.packets_per_heap,
            "address": self.lab.rx.ipv4,
            "port": PORT,
            "interface": self.lab.rx.interface,
        }
        process = self.lab.rx.popen(
            [
                sys.executable,
                "-P",
                str(RUN),
                "floor" if floor else "receive",
                json.dumps(arguments),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )
        child = _Child(process, str(receiver))
        try:
            ready = child.answer()
            yield Running(self, child, ready)
            child.tell("quit")
        finally:
            status = child.end()
        if status != 0:
            raise MeasurementError(f"{receiver} ended with status {status}")

    def start_generator(self, rate: float, seconds: float) -> _Child:
        """Start a generator that waits for a line on its standard input."""
        load, lab = self.load, self.lab
        count = max(1, round(rate * seconds))
        if load.generator not in GENERATORS:
            return self._start_sender(rate, seconds, count)
        program, bpf_object = self._generator
        command = [
            *(program, "--object", bpf_object, "--interface", lab.tx.interface, "--wait"),
            *("--dst-mac", lab.rx.mac, "--dst-ip", lab.rx.ipv4, "--src-ip", lab.tx.ipv4),
            *("--rate", f"{rate:.0f}", "--count", str(count), "--port", str(PORT)),
            *("--payload", str(load.payload), "--packets-per-heap", str(load.packets_per_heap)),
            *("--pin-core", str(load.sender_core), "--first-heap", str(self._next_heap)),
        ]
        command += ["--flows", str(load.flows)]
        if load.generator == "socket":
            command.append("--socket")
        for flag in ("udp_checksum", "whole_heaps", "timestamp"):
            if getattr(load, flag):
                command.append(f"--{flag.replace('_', '-')}")
        self._next_heap = self._heap_after(count)
        process = lab.tx.popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        return _Child(process, "the generator")

    def _heap_after(self, count: int) -> int:
        """Return a heap id that is not used by the next packets, nor by others before.

        So late packets cannot look like new heaps.
        """
        return self._next_heap + count // self.load.packets_per_heap + self.load.flows + 1000

    def _start_sender(self, rate: float, seconds: float, count: int) -> _Child:
        """Start our own sender in place of the generator."""
        load, lab = self.load, self.lab
        arguments = {
            "mode": "generate",
            "library": OURS,
            "transport": load.generator,
            "core": load.sender_core,
            "payload": load.payload,
            "packets_per_heap": load.packets_per_heap,
            "address": lab.rx.ipv4,
            "port": PORT,
            "interface": lab.tx.interface,
            "rate": rate,
            "count": count,
            "limit_s": 1.2 * seconds + 1,
            "first_heap": self._next_heap,
        }
        self._next_heap = self._heap_after(count)
        return start_sender(lab.tx.popen, arguments, self._log)


def start_sender(
    popen: Callable[..., subprocess.Popen[bytes]], arguments: dict[str, Any], log: IO[str] | None
) -> _Child:
    """Start a sending process where `popen` does."""
    process = popen(
        [sys.executable, "-P", str(RUN), "send", json.dumps(arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
    )
    return _Child(process, f"{arguments['library']}'s sender")


class Running:
    """A receiver that is running.

    Attributes
    ----------
    buffer_size
        Bytes of its socket's buffer, 0 where there is none.
    umem
        Bytes of packet memory of its AF_XDP reader, 0 where there is none.
    """

    def __init__(self, bench: Bench, child: _Child, ready: dict[str, Any]) -> None:
        self.buffer_size = ready["buffer_size"]
        self.umem = ready.get("umem", 0)
        self._bench = bench
        self._child = child

    def ask(self, command: str) -> dict[str, Any]:
        """Have the receiver do something; return its answer."""
        return self._child.ask(command)

    def tell(self, command: str) -> None:
        """Have the receiver do something that it does not answer."""
        self._child.tell(command)

    def trial(self, rate: float, seconds: float, during: Callable[[], None] | None = None) -> Trial:
        """Send *seconds* worth of packets at *rate* packets per second and see what arrives.

        `during` is called when the packets have begun to flow.
        """
        generator = self._bench.start_generator(rate, seconds)
        try:
            if generator.line() != "ready":
                raise MeasurementError("the generator did not start")
            before = self._child.ask("snap")
            generator.tell("go")
            if during:
                during()
            # It ends itself, at the latest 1 s after 1.2 times the nominal time.
            sent = generator.answer(2 * seconds + _ANSWER_S)
        finally:
            generator.end()
        after = self._settled()
        if after["heaps"] > before["heaps"]:
            wrong = self._child.ask("check")["wrong"]
            if wrong:
                raise MeasurementError(f"{self._child.name}: {wrong}")
        return _trial(rate, sent, before, after)

    def _settled(self) -> dict[str, Any]:
        """Return the counters when nothing comes out of buffers any more."""
        deadline = time.monotonic() + _SETTLED_WITHIN_S
        latest: dict[str, Any] = {"stats": None}
        while True:
            time.sleep(_SETTLE_S)
            earlier, latest = latest, self._child.ask("snap")
            if latest["stats"] == earlier["stats"] or time.monotonic() > deadline:
                return latest


def _trial(
    rate: float, sent: dict[str, Any], before: dict[str, Any], after: dict[str, Any]
) -> Trial:
    if sent["interrupted"]:
        raise KeyboardInterrupt
    stats = {name: value - before["stats"].get(name, 0) for name, value in after["stats"].items()}
    received = stats["packets"]
    if received > sent["sent"]:
        raise MeasurementError(f"{received} packets received of {sent['sent']} sent")
    per_packet = 1 / max(received, 1)
    return Trial(
        offered=rate,
        achieved=sent["pps"],
        sent=sent["sent"],
        refused=sent["dropped"],
        received=received,
        loss=1 - received / max(sent["sent"], 1),
        cpu_ns=(after["cpu_ns"] - before["cpu_ns"]) * per_packet,
        python_ns=(after["python_ns"] - before["python_ns"]) * per_packet,
        rss=after["rss"],
        stats=stats,
        readers=after["readers"],
    )


class Search(NamedTuple):
    """How the highest rate is looked for: bounds and trials of the bisection, and the proof."""

    low: float = 100e3
    high: float = 2.4e6
    trials: int = 6
    seconds: float = 0.4
    max_loss: float = 1e-4
    hold_s: float = 5.0


class Highest(NamedTuple):
    """The highest rate found, in packets per second, and whether the sender was the limit."""

    pps: float
    sender_limited: bool
    trials: list[Trial]


#: By how much the rate goes down when it was not held.
_STEP = 0.94
_STEPS = 12
#: Around an earlier run's result it takes fewer trials.
_AROUND = 1.2
_AROUND_TRIALS = 3


def highest_rate(running: Running, search: Search, earlier: float | None = None) -> Highest:
    """Find the highest rate that is held, with no more than the permitted loss.

    First by bisection on a logarithmic scale with short trials, in which a rate that fails is tried
    once more, because one hiccup of the machine is not the receiver's; around the result of an
    earlier run where there is one. Then that rate has to be held for long; when it is not, a lower
    one. What counts is the rate that was really sent.
    """
    trials: list[Trial] = []

    def held(rate: float, seconds: float) -> bool:
        trials.append(running.trial(rate, seconds))
        return trials[-1].loss <= search.max_loss

    low, high, n = search.low, search.high, search.trials
    if earlier:
        low, high, n = earlier / _AROUND, min(high, earlier * _AROUND), _AROUND_TRIALS
    for _ in range(n):
        rate = (low * high) ** 0.5
        if held(rate, search.seconds) or held(rate, search.seconds):
            low = rate
            if trials[-1].sender_limited:
                break
        else:
            high = rate
    rate = low
    for _ in range(_STEPS):
        if held(rate, search.hold_s):
            best = trials[-1]
            return Highest(best.achieved, best.sender_limited, trials)
        rate *= _STEP
    return Highest(0.0, False, trials)


def sustained(running: Running, rate: float, seconds: float) -> Trial:
    """Return a trial in which *rate* was really sent; the best of three where it never was."""
    best: Trial | None = None
    for _ in range(3):
        trial = running.trial(rate, seconds)
        if not trial.sender_limited:
            return trial
        if best is None or trial.achieved > best.achieved:
            best = trial
    assert best is not None
    return best
