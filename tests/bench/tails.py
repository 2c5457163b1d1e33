"""How long it takes from a packet's arrival until Python has its heap: median and tails.

The generator writes the time into each packet just before it puts it into the interface, and Python
reads the clock, the same one, when the iteration returns the heap: the time that the last packet of
a heap took. The generator hands over up to 64 packets at a time, which takes it some microseconds
under load; that is in the figures of all alike. Python's thread is on the sender's core, because a
worker that polls leaves it no time on its own; the sender yields to it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from bench import network
from bench.library import OURS, PEER
from bench.network import Receiver
from bench.session import PACKETS_PER_HEAP, Session, Step

PERCENTILES = {"p50_us": 50.0, "p99_us": 99.0, "p99.9_us": 99.9}
#: Idle: single packets, each of which is a heap, too far apart for anybody to wait for the next.
IDLE_RATE = 2000.0
#: Often enough that a worker never sleeps between packets.
MAX_POLL = 100_000
_SECONDS = 2.5
_SEARCH_TRIALS = 4


class Way(NamedTuple):
    """A way to receive, and the name of its curve."""

    name: str
    receiver: Receiver


def ways(session: Session) -> list[Way]:
    """Return all ways that can be measured."""
    at_once = {"max_added_latency": 0.0}
    found = []
    if session.peer:
        found += _ways(session, PEER, "udp", {"": {}})
    if session.ours:
        found += _ways(session, OURS, "udp", {"": {}, ", at once": {"stream": at_once}})
    if session.xdp:
        polling = {"stream": at_once, "reader": {"max_poll": MAX_POLL}}
        settings = {"": {}, ", at once": {"stream": at_once}, ", polling": polling}
        found += _ways(session, OURS, "xdp", settings)
    return found


def _ways(
    session: Session, library: str, transport: str, settings: dict[str, dict[str, Any]]
) -> list[Way]:
    label = {"udp": "UDP", "xdp": "AF_XDP"}[transport]
    core = {"python_core": session.options.sender_core}
    return [
        Way(f"{library} {label}{name}", Receiver(library, transport, settings=core | some))
        for name, some in settings.items()
    ]


def measure(session: Session) -> None:
    """Measure all ways, idle and at half of their highest rates."""
    if not session.may_use_network():
        return
    idle = session.load(packets_per_heap=1, timestamp=True)
    busy = session.load(packets_per_heap=PACKETS_PER_HEAP, timestamp=True)
    with session.veth(idle) as bench:

        def steps() -> Iterator[Step]:
            for way in ways(session):
                yield functools.partial(_idle, session, bench, way, idle)
                yield functools.partial(_busy, session, bench, way, busy)

        session.rounds("tails", steps, 1)


def latencies(running: network.Running, rate: float, seconds: float) -> tuple[network.Trial, Any]:
    """Return a trial and how long each of its heaps took, in microseconds."""
    running.ask("latencies")
    trial = running.trial(rate, seconds)
    return trial, np.array(running.ask("latencies")["ns"]) / 1e3


def _keep(session: Session, way: Way, load: str, trial: network.Trial, took: Any) -> None:
    session.keep(way.receiver, trial)
    if len(took) == 0:
        raise network.MeasurementError(f"{way.name}: no heap arrived, {load}")
    for metric, percentile in PERCENTILES.items():
        session.results.add(
            f"tails/{load}/{way.name}/{metric}", float(np.percentile(took, percentile))
        )
    session.results.add(f"tails/{load}/{way.name}/cpu_ns", trial.cpu_ns)


def _idle(session: Session, bench: network.Bench, way: Way, load: network.Load) -> None:
    bench.load = load
    with bench.receiver(way.receiver) as running:
        running.trial(IDLE_RATE, 0.1)
        trial, took = latencies(running, IDLE_RATE, _SECONDS * session.plan.trial_s)
    _keep(session, way, "idle", trial, took)


def _busy(session: Session, bench: network.Bench, way: Way, load: network.Load) -> None:
    """Measure at half of this way's own highest rate, as a short search finds it."""
    bench.load = load
    plan = session.plan
    search = plan.search._replace(trials=_SEARCH_TRIALS, hold_s=plan.trial_s)
    with bench.receiver(way.receiver) as running:
        running.trial(search.low, search.seconds / 4)
        highest = network.highest_rate(running, search)
        rate = max(highest.pps / 2, search.low)
        trial, took = latencies(running, rate, plan.trial_s)
    session.results.add(f"tails/busy/{way.name}/offered_pps", rate)
    _keep(session, way, "busy", trial, took)
