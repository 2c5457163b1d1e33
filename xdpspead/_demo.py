"""The main job on real traffic, as ``python -m xdpspead demo`` and ``make demo`` run it.

A sender in a process of its own, a receiver in this one, and between them either a veth pair with
AF_XDP at the receiving end (as root), or at both, or the loopback interface with ordinary sockets.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

import xdpspead
from xdpspead import _demo_sender as sender
from xdpspead import recv
from xdpspead._features import features
from xdpspead._signals import undisturbed

_PORT = 8888
_POOL_HEAPS = 64
_RING_HEAPS = 32
_PROGRESS_S = 0.2
_POLL_S = 0.1
_QUIET_S = 2.0  # how long after the sender's end a stop heap may still be on its way
_CHILD_TIMEOUT_S = 3.0

_CORE_LOSSES = ("incomplete_heaps_evicted", "incomplete_heaps_flushed")
_OWN_PREFIX = "xdpspead."
# What the eBPF program did with the packets: these are no losses.
_STEERED = ("xdpspead.xdp_matched", "xdpspead.xdp_redirected")


class _Network(Protocol):
    """Where the packets travel."""

    title: str
    transport: str
    host: str
    port: int

    def popen(self, args: Sequence[str], **kwargs: Any) -> subprocess.Popen[Any]: ...

    def add_reader(self, stream: recv.Stream) -> None: ...

    def enter(self) -> contextlib.AbstractContextManager[None]: ...


class _Loopback:
    """The loopback interface, with an ordinary UDP socket at the receiving end."""

    title = "one process to another over the loopback interface"
    transport = "udp"
    host = "127.0.0.1"

    def __init__(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind((self.host, 0))
            self.port = int(probe.getsockname()[1])
        self._children: list[subprocess.Popen[Any]] = []

    def popen(self, args: Sequence[str], **kwargs: Any) -> subprocess.Popen[Any]:
        with undisturbed():  # or Ctrl-C could come between the child's start and the note of it
            child = subprocess.Popen(args, **kwargs)
            self._children.append(child)
        return child

    def add_reader(self, stream: recv.Stream) -> None:
        stream.add_udp_reader(self.port, bind_hostname=self.host)

    def enter(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def close(self) -> None:
        for child in self._children:
            if child.poll() is None:
                child.kill()
            child.wait()


class _Veth:
    """A veth pair between two network namespaces, with AF_XDP at the receiving end."""

    title = "one network namespace to another over a veth pair"
    transport = "udp_xdp"
    port = _PORT

    def __init__(self, stack: contextlib.ExitStack) -> None:
        from xdpspead._netlab import VethLab

        self._lab = stack.enter_context(VethLab())
        self.host = self._lab.rx.ipv4

    def popen(self, args: Sequence[str], **kwargs: Any) -> subprocess.Popen[Any]:
        return self._lab.tx.popen(args, **kwargs)

    def add_reader(self, stream: recv.Stream) -> None:
        endpoints = [(self.host, self.port)]
        config = recv.UdpXdpConfig(endpoints=endpoints, interface=self._lab.rx.interface)
        stream.add_udp_xdp_reader(config)

    def enter(self) -> contextlib.AbstractContextManager[None]:
        return self._lab.rx.enter()


@contextlib.contextmanager
def _network(transport: str) -> Iterator[_Network]:
    with contextlib.ExitStack() as stack:
        if transport == "udp_xdp":
            yield _Veth(stack)
        else:
            yield stack.enter_context(contextlib.closing(_Loopback()))


@dataclass
class _Check:
    """What the heaps held, against the formula of the sender."""

    cnts: set[int] = field(default_factory=set)
    data_heaps: int = 0
    wrong: list[int] = field(default_factory=list)
    repeated: int = 0
    first_s: float = 0.0
    last_s: float = 0.0

    def add(self, heap: recv.Heap, items: xdpspead.ItemGroup) -> None:
        updated = items.update(heap)
        if heap.cnt in self.cnts:
            self.repeated += 1
        self.cnts.add(heap.cnt)
        if not updated and heap.get_descriptors():
            return
        self.last_s = time.monotonic()
        if not self.data_heaps:
            self.first_s = self.last_s
        self.data_heaps += 1
        if not self._right(heap.cnt, updated):
            self.wrong.append(heap.cnt)

    @staticmethod
    def _right(cnt: int, updated: Mapping[str, xdpspead.Item]) -> bool:
        if set(updated) != {sender.SAMPLES_NAME, sender.TIMESTAMP_NAME}:
            return False
        samples = updated[sender.SAMPLES_NAME].value
        stamp = updated[sender.TIMESTAMP_NAME].value
        return bool(
            stamp == sender.timestamp(cnt) and np.array_equal(samples, sender.expected_words(cnt))
        )

    def gaps(self, sent: sender.Report) -> int:
        """Return the number of runs of missing heaps."""
        runs, missing_before = 0, False
        for cnt in range(sent.first_cnt, sent.last_cnt + 1):
            missing = cnt not in self.cnts
            runs += missing and not missing_before
            missing_before = missing
        return runs


@dataclass(frozen=True)
class _Outcome:
    """All that the table is made of."""

    check: _Check
    sent: sender.Report
    stats: Mapping[str, int]
    readers: Sequence[Any]
    worker_s: float
    stopped: bool

    @property
    def missing(self) -> int:
        return self.sent.heaps + self.sent.descriptor_heaps - len(self.check.cnts)


def run(*, seconds: float, gbps: float, transport: str, sending: str = "udp") -> int:
    """Run the demonstration and print what came of it.

    Parameters
    ----------
    seconds
        How long to send.
    gbps
        Payload rate in 10**9 bit/s.
    transport
        By what to receive: ``"udp_xdp"``, ``"udp"``, or ``"auto"`` for the first of them that can
        be had.
    sending
        By what to send: ``"udp"``, or ``"udp_xdp"``, which needs it at the receiving end, too.

    Returns
    -------
    int
        0 if the content of each heap that came was right and at least one came, 1 if not, 130
        after Ctrl-C.
    """
    if transport == "auto":
        transport = _choose()
    if sending == "udp_xdp" and transport != "udp_xdp":
        print("FAIL: there is no AF_XDP on the loopback interface: receive by udp_xdp, as root.")
        return 1
    try:
        with _network(transport) as network:
            print(f"Sending SPEAD heaps of {sender.HEAP_BYTES // 1024} KiB from {network.title},")
            print(
                f"{gbps:g} Gb/s of payload for {seconds:g} s, {sender.PACKET_BYTES} bytes a packet;"
                f" sending by {sending}, receiving by {network.transport} and checking every byte.",
                flush=True,
            )
            command = _sender_command(network, seconds, gbps, sending)
            outcome = _receive(network, command, seconds)
    except KeyboardInterrupt:
        print("\nInterrupted. Nothing is left behind.")
        return 130
    except _DemoError as error:
        print(f"FAIL: {error}")
        return 1
    _print_table(outcome, gbps)
    return _verdict(outcome)


class _DemoError(Exception):
    """The demonstration could not run."""


def _choose() -> str:
    if os.geteuid() != 0:
        print("Not root: an ordinary socket on the loopback interface stands in for AF_XDP.")
        print("For AF_XDP between two network namespaces: sudo make demo\n")
        return "udp"
    possible = features.udp_xdp
    if not possible:
        print(f"No AF_XDP here: {possible.detail}.\n{possible.remedy}")
        print("An ordinary socket on the loopback interface stands in for it.\n")
        return "udp"
    return "udp_xdp"


def _receive(network: _Network, command: Sequence[str], seconds: float) -> _Outcome:
    # Sockets and threads belong to the network namespace in which they are made.
    with network.enter():
        pool = xdpspead.ThreadPool()
        memory = xdpspead.MemoryPool(sender.HEAP_BYTES, sender.HEAP_BYTES, _POOL_HEAPS, _POOL_HEAPS)
        stream = recv.Stream(
            pool,
            recv.StreamConfig(max_heaps=4, memory_allocator=memory),
            recv.RingStreamConfig(heaps=_RING_HEAPS),
        )
        try:
            network.add_reader(stream)
            readers = list(stream.readers)
            child = network.popen(command, **_CHILD_OPTIONS)
            check = _Check()
            stopped = _drain(stream, child, check, seconds)
            worker_s = pool.cpu_time
            sent = _report(child)
        finally:
            stream.stop()
        # Only now: the last heap can be out before its batch is counted.
        stats = {name: int(value) for name, value in stream.stats.items()}
    return _Outcome(check, sent, stats, readers, worker_s, stopped)


# In a session of its own, so that Ctrl-C reaches the receiver only, which then ends the sender.
_CHILD_OPTIONS: dict[str, Any] = {
    "stdin": subprocess.DEVNULL,
    "stdout": subprocess.PIPE,
    "stderr": subprocess.PIPE,
    "text": True,
    "start_new_session": True,
}


def _sender_command(network: _Network, seconds: float, gbps: float, sending: str) -> list[str]:
    options = ["--gbps", str(gbps), "--seconds", str(seconds), "--send", sending]
    # -P: the current directory is not a place to import from.
    program = [sys.executable, "-P", "-m", "xdpspead._demo_sender"]
    return [*program, network.host, str(network.port), *options, "--parent", str(os.getpid())]


def _drain(
    stream: recv.Stream, child: subprocess.Popen[Any], check: _Check, seconds: float
) -> bool:
    """Take heaps until the stream stops; return False if it had to be given up."""
    items = xdpspead.ItemGroup()
    progress = _Progress(seconds)
    quiet_since = time.monotonic()
    try:
        while True:
            progress.show(check)
            try:
                heap = stream.get_nowait()
            except xdpspead.Stopped:
                return True
            except xdpspead.Empty:
                ready, _, _ = select.select([stream.fd], [], [], _POLL_S)
                now = time.monotonic()
                if ready or child.poll() is None:
                    quiet_since = now
                elif now - quiet_since > _QUIET_S:
                    return False
                continue
            assert isinstance(heap, recv.Heap)  # incomplete ones were not asked for
            check.add(heap, items)
    finally:
        progress.clear()


class _Progress:
    """One line on a terminal, and nothing elsewhere."""

    def __init__(self, seconds: float) -> None:
        self._on = sys.stdout.isatty()
        self._seconds = seconds
        self._begin = self._last = time.monotonic()
        self._heaps = 0

    def show(self, check: _Check) -> None:
        now = time.monotonic()
        if not self._on or now - self._last < _PROGRESS_S:
            return
        rate = (check.data_heaps - self._heaps) * sender.HEAP_BYTES * 8 / (now - self._last) / 1e9
        self._last, self._heaps = now, check.data_heaps
        missing = max(check.cnts, default=0) - len(check.cnts)
        print(
            f"\r{now - self._begin:5.1f} s of {self._seconds:g}   {rate:6.3f} Gb/s"
            f"   {check.data_heaps:,} heaps   {missing:,} missing   {len(check.wrong):,} wrong"
            "\x1b[K",
            end="",
            flush=True,
        )

    def clear(self) -> None:
        if self._on:
            print("\r\x1b[K", end="", flush=True)


def _report(child: subprocess.Popen[Any]) -> sender.Report:
    try:
        output, errors = child.communicate(timeout=_CHILD_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise _DemoError("the stream stopped, but its sender did not") from None
    if child.returncode != 0:
        raise _DemoError(f"the sender failed with status {child.returncode}: {errors.strip()}")
    return sender.Report(**json.loads(output))


def _print_table(outcome: _Outcome, gbps: float) -> None:
    rows = list(_rows(outcome, gbps))
    width = max(len(name) for name, _ in rows)
    print()
    for name, value in rows:
        print(f"  {name:<{width}}  {value}")
    print()


def _rows(outcome: _Outcome, gbps: float) -> Iterator[tuple[str, str]]:
    sent, stats, check = outcome.sent, outcome.stats, outcome.check
    for reader in outcome.readers:
        yield "transport", _describe(reader)
    rate = sent.payload_bytes * 8 / sent.seconds / 1e9
    packet_rate = sent.packets / sent.seconds
    yield "sent", f"{rate:.3f} Gb/s of {gbps:g} asked for, {packet_rate:,.0f} packets/s"
    yield (
        "system calls",
        f"{sent.batches:,} to send, {sent.packets / sent.batches:.1f} packets each",
    )
    elapsed = check.last_s - check.first_s
    received = check.data_heaps * sender.HEAP_BYTES * 8 / elapsed / 1e9 if elapsed else 0.0
    yield "received", f"{received:.3f} Gb/s"
    total = sent.heaps + sent.descriptor_heaps
    yield "heaps", f"{len(check.cnts):,} of {total:,}"
    packets, batches = stats["packets"], stats["batches"]
    yield "packets", f"{packets:,}; {sent.packets:,} were sent, and the stop packet"
    yield "batches", f"{batches:,}, {packets / max(batches, 1):.1f} packets each"
    yield "largest batch", f"{stats['max_batch']:,} packets"
    per_packet = outcome.worker_s / max(packets, 1) * 1e9
    load = outcome.worker_s / sent.seconds * 100
    yield "CPU time", f"{per_packet:,.0f} ns a packet in the worker threads, {load:.1f} % of a core"
    yield "memory", _memory(outcome.readers)
    losses = list(_losses(outcome))
    yield "losses", "none" if not losses else ""
    for name, count in losses:
        yield f"  {name}", f"{count:,}"
    for name in _STEERED:
        if stats.get(name):
            yield name.removeprefix(_OWN_PREFIX), f"{stats[name]:,} packets"


def _describe(reader: Any) -> str:
    if reader.transport != "udp_xdp":
        return f"{reader.transport}: an ordinary socket"
    mode = "generic" if reader.mode == "generic" else "native"
    how = "zero-copy" if reader.zero_copy else f"{mode} copy"
    queues = ", ".join(map(str, reader.queues))
    return f"{reader.transport}: {how}, {reader.interface}, queue {queues}"


def _memory(readers: Sequence[Any]) -> str:
    buffers = sum(reader.memory for reader in readers)
    pool = _POOL_HEAPS * sender.HEAP_BYTES
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return (
        f"{buffers / 2**20:.1f} MiB of packet buffers, {pool / 2**20:.1f} MiB of heap payloads; "
        f"{peak / 2**20:.0f} MiB is the peak of the process"
    )


def _losses(outcome: _Outcome) -> Iterator[tuple[str, int]]:
    for name, count in outcome.stats.items():
        own = name.startswith(_OWN_PREFIX) and name not in _STEERED
        if count and (own or name in _CORE_LOSSES):
            yield name.removeprefix(_OWN_PREFIX), count
    if outcome.missing:
        yield "missing heaps, by cnt", outcome.missing
        yield "gaps they make", outcome.check.gaps(outcome.sent)
    if outcome.check.repeated:
        yield "heaps that came twice", outcome.check.repeated


def _verdict(outcome: _Outcome) -> int:
    check = outcome.check
    if not outcome.stopped:
        print("The stop packet never came.")
    if outcome.sent.late_s > 0.01 * outcome.sent.seconds:
        print(f"The sender could not hold the rate: it was {outcome.sent.late_s:.2f} s late.")
    if check.wrong:
        listing = ", ".join(map(str, check.wrong[:10]))
        print(f"FAIL: the content of {len(check.wrong):,} heaps is wrong: {listing}")
        return 1
    if not check.data_heaps:
        print("FAIL: no heap came.")
        return 1
    lost = f"; {outcome.missing:,} heaps were lost" if outcome.missing else ""
    n_bytes = check.data_heaps * sender.HEAP_BYTES
    print(f"PASS: all {n_bytes:,} bytes in {check.data_heaps:,} heaps are right{lost}.")
    return 0
