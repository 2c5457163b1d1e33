"""What is lost while Python does something else: with the default buffers, and with twice as many.

Python takes no heap for 5 to 100 ms while 500,000 packets arrive in each second. What was lost of
all that was sent is counted, and so is what is lost at that rate without any stall.
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
                yield functools.partial(_stall, session, bench, way)

        session.rounds("stalls", steps, session.plan.curve_runs)


def _stall(session: Session, bench: network.Bench, receiver: Receiver) -> None:
    with bench.receiver(receiver) as running:
        running.trial(RATE / 4, 0.1)
        for stall in STALLS_MS:

            def during(seconds: float = stall / 1e3) -> None:
                time.sleep(_BEFORE_S)
                if seconds:
                    running.tell(f"stall {seconds}")

            trial = running.trial(RATE, _BEFORE_S + stall / 1e3 + _AFTER_S, during)
            session.keep(receiver, trial)
            prefix = f"stalls/{stall}/{receiver}"
            session.results.add(f"{prefix}/lost_packets", trial.sent - trial.received)
            if trial.sender_limited:
                session.results.note(f"stalls: {RATE:.0f} packets/s were not reached")
