"""What a packet costs, and how many are lost, when there is more of something.

Each curve is a part of its own in the results, and the case of each of its points is a number. From
memory come the size of packets and heaps, and the stream's ``max_heaps`` and ``substreams``, which
cost what the worker's CPU time says; from a veth pair come streams and endpoints, which cost what
the CPU time of the whole process says, and the losses. Along a curve nothing else changes: the
packets are the same, and so is their rate. Where it cannot be so, as many bytes of heaps are under
way at each of its points; but for ``streams_alone``, which has a flow for each stream.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from bench import from_memory, network
from bench.floors import FLOOR
from bench.library import OURS, PEER
from bench.network import Receiver
from bench.session import PACKETS_PER_HEAP, PAYLOAD, Session, Step

PACKET_SIZES = (64, 256, 1024, 2048, 4096, 8192)
#: Packets per heap, of 1 KiB each.
HEAP_PACKETS = (1, 4, 16, 64, 256, 1024)
MAX_HEAPS = (4, 16, 64, 256, 1024, 4096)
SUBSTREAMS = (1, 4, 16, 64, 256, 1024)
#: They share as many flows as there are of the most.
STREAMS = (1, 4, 16, 64)
ENDPOINTS = (1, 16, 128, 1024)
LOSS_RATES = (200e3, 400e3, 600e3, 800e3, 1e6, 1.2e6, 1.5e6, 1.8e6, 2.2e6)
#: Packets per second of all streams or endpoints together.
RATE = 400e3
#: Heaps that are under way at a time where as many are as there is room for: of 16 packets with
#: 64 bytes, so that 4096 of them take 4 MiB.
FULL_PAYLOAD, FULL_PACKETS = 64, 16
_BUFFER_SIZE = 32 << 20


def measure(session: Session) -> None:
    """Measure all curves: those that have to be flat several times, all others once."""
    runs = session.plan.curve_runs
    session.rounds("growth, memory", lambda: _memory_steps(session), 1)
    if session.ours:
        session.rounds("growth, flat", lambda: _flat_steps(session, OURS), runs)
    if session.may_use_network():
        _measure_network(session, runs)


# ---- from memory --------------------------------------------------------------------------------


def _memory_steps(session: Session) -> Iterator[Step]:
    core = functools.partial(_core, session)
    for name in session.libraries:
        for size in PACKET_SIZES:
            yield functools.partial(core, "packet_size", size, name, size, PACKETS_PER_HEAP)
        for n in HEAP_PACKETS:
            yield functools.partial(core, "heap_size", n * PAYLOAD, name, PAYLOAD, n)
        for n in MAX_HEAPS:
            yield functools.partial(
                core,
                *("max_heaps_full", n, name, FULL_PAYLOAD, FULL_PACKETS),
                stream={"max_heaps": n},
                interleave=n,
            )
    if session.peer:
        yield from _flat_steps(session, PEER)
    for size in PACKET_SIZES:
        yield functools.partial(_memcpy, session, "packet_size", size, size, PACKETS_PER_HEAP)
    for n in HEAP_PACKETS:
        yield functools.partial(_memcpy, session, "heap_size", n * PAYLOAD, PAYLOAD, n)


def _flat_steps(session: Session, name: str) -> Iterator[Step]:
    for setting, values in (("max_heaps", MAX_HEAPS), ("substreams", SUBSTREAMS)):
        for n in values:
            yield functools.partial(
                _core,
                *(session, setting, n, name, PAYLOAD, PACKETS_PER_HEAP),
                stream={setting: n},
            )


def _core(
    session: Session, part: str, case: int, name: str, payload: int, per_heap: int, **more: Any
) -> None:
    done = from_memory.child(
        session, "core", payload, per_heap, library=name, buffer_size=_BUFFER_SIZE, **more
    )
    session.results.add(f"{part}/{case}/{name}/cpu_ns", done["worker_ns"])


def _memcpy(session: Session, part: str, case: int, payload: int, per_heap: int) -> None:
    done = from_memory.memcpy(session, payload, per_heap, buffer_size=_BUFFER_SIZE)
    session.results.add(f"{part}/{case}/memcpy/cpu_ns", done["cpu_ns"])


# ---- over a veth pair ---------------------------------------------------------------------------


def _measure_network(session: Session, runs: int) -> None:
    with session.veth(session.load()) as bench:
        if session.peer:
            theirs = Receiver(PEER, "udp")
            session.rounds("growth, spead2", lambda: _more_steps(session, bench, theirs), 1)
        if session.xdp:
            ours = Receiver(OURS, "xdp")
            session.rounds("growth, AF_XDP", lambda: _more_steps(session, bench, ours), runs)
        session.rounds("losses", lambda: _loss_steps(session, bench), 1)


def _more_steps(session: Session, bench: network.Bench, way: Receiver) -> Iterator[Step]:
    for n in STREAMS:
        yield from _streams_steps(session, bench, way, n)
    for n in ENDPOINTS:
        # Heap by heap, so that as few heaps are under way with many as with one.
        load = session.load(flows=n, whole_heaps=True)
        receiver = way._replace(settings={"endpoints": n})
        yield functools.partial(_cost, session, bench, "endpoints", n, load, receiver)


def _streams_steps(session: Session, bench: network.Bench, way: Receiver, n: int) -> Iterator[Step]:
    flows = STREAMS[-1]
    shared = {"streams": n, "endpoints": flows // n, "stream": {"max_heaps": flows}}
    # A thread for each stream is the only way there.
    if way.library != OURS:
        ways = {"streams": (flows, shared)}
    else:
        ways = {
            "streams": (flows, {**shared, "merged": True}),
            "streams_threads": (flows, shared),
            "streams_alone": (n, {"streams": n, "merged": True}),
        }
    for part, (n_flows, settings) in ways.items():
        load, receiver = session.load(flows=n_flows), way._replace(settings=settings)
        yield functools.partial(_cost, session, bench, part, n, load, receiver)


def _cost(
    session: Session,
    bench: network.Bench,
    part: str,
    n: int,
    load: network.Load,
    receiver: Receiver,
) -> None:
    bench.load = load
    with bench.receiver(receiver) as running:
        running.trial(RATE, session.plan.trial_s / 4)
        trial = network.sustained(running, RATE, session.plan.trial_s)
    session.keep(receiver, trial)
    session.results.add(f"{part}/{n}/{receiver.library}/cpu_ns", trial.cpu_ns)
    if trial.loss > session.plan.search.max_loss:
        session.results.note(f"{receiver}: {100 * trial.loss:.2g} % lost with {n} {part}")


def _loss_steps(session: Session, bench: network.Bench) -> Iterator[Step]:
    ways = [Receiver(name, "udp") for name in session.libraries]
    ways += [Receiver(name, "xdp") for name in (OURS, FLOOR) if session.xdp]
    for way in ways:
        yield functools.partial(_losses, session, bench, way)


def _losses(session: Session, bench: network.Bench, receiver: Receiver) -> None:
    bench.load = session.load()
    with bench.receiver(receiver) as running:
        running.trial(LOSS_RATES[0], session.plan.trial_s / 4)
        for rate in LOSS_RATES:
            trial = running.trial(rate, session.plan.trial_s / 2)
            session.keep(receiver, trial)
            session.results.add(f"loss/{rate:.0f}/{receiver}/lost", trial.loss)
            session.results.add(f"loss/{rate:.0f}/{receiver}/sent_pps", trial.achieved)
