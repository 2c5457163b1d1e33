"""What is lost while Python does something else, and what more room for packets costs.

Python takes no heap for 5 to 100 ms while 500,000 packets arrive in each second, into buffers of
the default sizes. What was lost of all that was sent is counted, and so is what is lost at that
rate without any stall. Then AF_XDP's packet memory is made smaller and larger: what is lost in the
longest stall, and what a packet costs at 400 kpps without any, because more memory in use means
fewer packets that are still in a cache.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator

from bench import network
from bench.library import OURS
from bench.network import Receiver
from bench.session import Session, Step

RATE = 500e3
STALLS_MS = (0, 5, 20, 100)
#: The stall begins so long after the first packet, and so much is sent after its end.
_BEFORE_S, _AFTER_S = 0.1, 0.3
#: Packet memory of an AF_XDP reader, in MiB.
UMEM_MIB = (4, 8, 16, 32, 64, 128, 256)
UMEM_RATE = 400e3


def measure(session: Session) -> None:
    """Measure what is lost in stalls of several lengths."""
    if not session.may_use_network():
        return
    ways = [Receiver(name, "udp") for name in session.libraries]
    if session.xdp:
        ways.append(Receiver(OURS, "xdp"))
    with session.veth(session.load()) as bench:

        def steps() -> Iterator[Step]:
            for way in ways:
                yield functools.partial(_stalls, session, bench, way)

        def room_steps() -> Iterator[Step]:
            for size in UMEM_MIB:
                yield functools.partial(_room, session, bench, size)

        session.rounds("stalls", steps, session.plan.curve_runs)
        if session.xdp:
            session.rounds("packet memory", room_steps, 1)


def _stalls(session: Session, bench: network.Bench, receiver: Receiver) -> None:
    with bench.receiver(receiver) as running:
        running.trial(RATE / 4, 0.1)
        for stall in STALLS_MS:
            trial = _stalled(running, stall / 1e3)
            session.keep(receiver, trial)
            lost = trial.sent - trial.received
            session.results.add(f"stalls/{stall}/{receiver}/lost_packets", lost)
            if trial.sender_limited:
                session.results.note(f"stalls: {RATE:.0f} packets/s were not reached")


def _stalled(running: network.Running, stall_s: float) -> network.Trial:
    def during() -> None:
        time.sleep(_BEFORE_S)
        if stall_s:
            running.tell(f"stall {stall_s}")

    return running.trial(RATE, _BEFORE_S + stall_s + _AFTER_S, during)


def _room(session: Session, bench: network.Bench, size_mib: int) -> None:
    receiver = Receiver(OURS, "xdp", settings={"reader": {"buffer_size": size_mib << 20}})
    prefix = f"umem/{size_mib}/{OURS}"
    with bench.receiver(receiver) as running:
        running.trial(UMEM_RATE, session.plan.trial_s / 4)
        steady = network.sustained(running, UMEM_RATE, session.plan.trial_s)
        stalled = _stalled(running, STALLS_MS[-1] / 1e3)
    session.keep(receiver, steady, stalled)
    session.results.add(f"{prefix}/cpu_ns", steady.cpu_ns)
    session.results.add(f"{prefix}/lost_packets", stalled.sent - stalled.received)
