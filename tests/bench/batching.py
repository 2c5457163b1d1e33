"""What waiting for a batch of packets, not for one, saves in CPU time and costs in latency.

``StreamConfig.max_added_latency`` is the only thing that changes along a curve.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np

from bench import network, tails
from bench.library import OURS
from bench.network import Receiver
from bench.session import Session, Step

RATES = (200e3, 400e3, 1e6)
ADDED_US = (0, 50, 100, 200, 500, 1000, 2000, 4000)


def part(rate: float) -> str:
    """Return the name of a curve: one for each rate."""
    return f"batching-{rate:.0f}"


def measure(session: Session) -> None:
    """Measure CPU time and latency over the time that packets may wait for others."""
    if not session.may_use_network():
        return
    ways = [Receiver(OURS, "xdp")] if session.xdp else []
    if session.peer:
        ways += [Receiver(name, "udp") for name in session.libraries if name != OURS]
    with session.veth(session.load(timestamp=True)) as bench:

        def steps() -> Iterator[Step]:
            for way in ways:
                for added in ADDED_US if way.library == OURS else (0,):
                    yield functools.partial(_measure, session, bench, way, added)

        session.rounds("batching", steps, 1)


def _measure(session: Session, bench: network.Bench, way: Receiver, added_us: int) -> None:
    if way.library == OURS:
        way = way._replace(settings={"stream": {"max_added_latency": added_us / 1e6}})
    with bench.receiver(way) as running:
        running.trial(RATES[0], session.plan.trial_s / 10)
        for rate in RATES:
            trial, took = tails.latencies(running, rate, session.plan.trial_s)
            session.keep(way, trial)
            prefix = f"{part(rate)}/{added_us}/{way.library}"
            session.results.add(f"{prefix}/cpu_ns", trial.cpu_ns)
            session.results.add(f"{prefix}/sent_pps", trial.achieved)
            for metric in ("p50_us", "p99_us"):
                value = float(np.percentile(took, tails.PERCENTILES[metric]))
                session.results.add(f"{prefix}/{metric}", value)
