"""Over a veth pair: CPU time per packet at a rate that all sustain, and the highest rates."""

from __future__ import annotations

import functools
from collections.abc import Iterator

from bench import network, sending
from bench.floors import COPYING, FLOOR
from bench.library import OURS, PEER
from bench.network import Receiver
from bench.session import Session, Step
from bench.table import CPU_RATE

JUMBO = "jumbo"
JUMBO_PAYLOAD = 8192
JUMBO_MTU = 9000
#: What the generator within the kernel sends fits into a page.
JUMBO_GENERATOR = "socket"


def _source(generator: str) -> str:
    if generator in network.GENERATORS:
        return f"the generator at a {generator}"
    return f"{OURS}'s {generator.upper()} sender"


def receivers(session: Session, transports: set[str]) -> list[Receiver]:
    """Return those of the two libraries, spead2's where only AF_XDP was asked for too."""
    udp = [name for name in session.libraries if "udp" in transports or name == PEER]
    found = [Receiver(name, "udp") for name in udp]
    if "xdp" in transports and session.xdp:
        found.append(Receiver(OURS, "xdp"))
    return found


# ---- 1 KiB packets ------------------------------------------------------------------------------


def measure(session: Session) -> None:
    """Measure UDP sockets and AF_XDP, whichever was asked for, with floors."""
    transports = {"udp", "xdp"} & set(session.options.parts)
    if not session.may_use_network():
        return
    load = session.load()
    if load.generator != "kernel":
        session.results.note(f"the receivers' packets came from {_source(load.generator)}")
    found = receivers(session, transports)
    floors = []
    if session.ours:
        floors += [Receiver(FLOOR, transport) for transport in sorted(transports)]
        floors += [Receiver(COPYING, "xdp")] if "xdp" in transports else []
    with session.veth(load) as bench:

        def steps() -> Iterator[Step]:
            for receiver in (*found, *floors):
                yield functools.partial(_cpu_time, session, bench, receiver)
            for receiver in found:
                yield functools.partial(_highest, session, bench, receiver)
            for floor in floors:
                if floor.transport == "xdp" and floor.library == FLOOR:
                    yield functools.partial(_highest, session, bench, floor)

        session.rounds("network", steps, session.plan.runs)


def measure_tuned(session: Session) -> None:
    """Measure the highest rates of streams that are tuned as spead2's manual advises."""
    if not session.may_use_network():
        return
    with session.veth(session.load()) as bench:

        def steps() -> Iterator[Step]:
            for plain in receivers(session, {"udp", "xdp"}):
                receiver = plain._replace(tuned=True)
                yield functools.partial(_highest, session, bench, receiver)

        session.rounds("tuned", steps, 1)


def _cpu_time(session: Session, bench: network.Bench, receiver: Receiver) -> None:
    results, seconds, rate = session.results, session.plan.trial_s, CPU_RATE
    with bench.receiver(receiver) as running:
        # Fill pools and caches; also the first packets' neighbour and route look-ups.
        running.trial(rate, seconds / 10)
        trial = network.sustained(running, rate, seconds)
    session.keep(receiver, trial)
    subject = f"{receiver.transport}/{rate}/{receiver.library}"
    results.add(f"{subject}/cpu_ns", trial.cpu_ns)
    results.add(f"{receiver.transport}/memory/{receiver.library}/bytes", trial.rss)
    if running.umem:
        results.add(f"{receiver.transport}/memory/umem/bytes", running.umem)
    if trial.sender_limited:
        results.note(f"{receiver}: the sender did not reach {rate} packets/s")
    if trial.loss > session.plan.search.max_loss:
        results.note(
            f"{receiver}: not sustained, {100 * trial.loss:.2g} % lost at {rate} packets/s"
        )


def _highest(
    session: Session,
    bench: network.Bench,
    receiver: Receiver,
    case: str = "highest",
    search: network.Search | None = None,
) -> network.Highest:
    search = search or session.plan.search
    name = f"{receiver.transport}/{case}{'-tuned' * receiver.tuned}/{receiver.library}/pps"
    with bench.receiver(receiver) as running:
        running.trial(search.low, search.seconds / 4)
        highest = network.highest_rate(running, search, session.results.figure(name))
    session.keep(receiver, *highest.trials)
    session.results.add(name, highest.pps)
    if running.buffer_size:
        session.results.note(f"{receiver}: socket buffer of {running.buffer_size / 2**20:.1f} MiB")
    if highest.sender_limited:
        session.results.note(f"{receiver}: the sender, not the receiver, limited a {case} rate")
    return highest


# ---- 8 KiB packets ------------------------------------------------------------------------------


def _jumbo(
    session: Session, bench: network.Bench, receiver: Receiver, search: network.Search
) -> None:
    """Measure the highest rate, and how far from its own limit the receiver is at the sender's.

    That is told by the receiver's CPU time per packet; and by the rate at which two cores would
    have no time left if they shared everything without loss: what the sender's core does, which is
    all that it can, and what the receiver does. A receiver that costs as much can be no faster.
    """
    highest = _highest(session, bench, receiver, JUMBO, search)
    cpu_ns = highest.trials[-1].cpu_ns
    subject = f"{receiver.transport}/{JUMBO}"
    session.results.add(f"{subject}/{receiver.library}/cpu_ns", cpu_ns)
    if highest.sender_limited:
        shared = 2e9 / (1e9 / highest.pps + cpu_ns)
        session.results.add(f"{subject}-shared/{receiver.library}/pps", shared)


def measure_jumbo(session: Session) -> None:
    """Measure the highest rate of 8 KiB packets of which none is lost."""
    if not session.may_use_network():
        return
    plan = session.plan.search
    search = plan._replace(low=10e3, high=500e3, max_loss=0.0, hold_s=plan.hold_s / 5)
    load = session.load(payload=JUMBO_PAYLOAD, generator=JUMBO_GENERATOR)
    with session.veth(load, mtu=JUMBO_MTU) as bench:
        sending.switch_off_segmentation(bench.lab.tx)

        def steps() -> Iterator[Step]:
            for receiver in receivers(session, {"xdp"}):
                yield functools.partial(_jumbo, session, bench, receiver, search)

        session.rounds("jumbo", steps, session.plan.runs)
