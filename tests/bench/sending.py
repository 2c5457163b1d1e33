"""How fast the senders of the two libraries are: through a veth pair, and with small heaps.

The far end of the pair is no receiver at all: packets go to an address of the network whose
Ethernet address is nobody's, so that the receiving interface counts a packet and the kernel drops
it as somebody else's, at the same small cost for everyone. What a sender says it has sent is
compared with what that interface has counted. The sending interface does not segment datagrams
itself: a super-packet is cut up by the kernel before it gets there, in the sender's CPU time, as on
a card that cannot do it. Sending and the kernel's half of receiving share the sender's core.
"""

from __future__ import annotations

import contextlib
import functools
import subprocess
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

from bench import network
from bench.session import Session, Step

PAYLOADS = (1024, 8192)
#: One packet with its headers, of SPEAD, UDP and IPv4.
MTU = 8192 + 48 + 28
HOWS = ("sync", "list", "asyncio")
TRANSPORTS = ("udp", "inproc")
PORT = 8889
_NOBODY = "192.0.2.99"
_NOBODYS_MAC = "02:00:00:00:00:99"
#: Packets that are nobody's measurement: router and neighbour solicitations.
_STRAY = 20


class Speed(NamedTuple):
    """What a sender did: units per second, CPU time of each in nanoseconds."""

    per_s: float
    cpu_ns: float


@contextlib.contextmanager
def far_end() -> Iterator[Any]:
    """Make the network, with an address that leads to nobody."""
    from pyroute2 import IPRoute

    with network.netlab().VethLab(mtu=MTU) as lab:
        with lab.tx.enter(), IPRoute() as netlink:
            netlink.neigh(
                "replace",
                dst=_NOBODY,
                lladdr=_NOBODYS_MAC,
                ifindex=lab.tx.ifindex,
                state="permanent",
            )
        switch_off_segmentation(lab.tx)
        yield lab


def switch_off_segmentation(end: Any) -> None:
    """Have the kernel cut super-packets up before the interface of *end* gets them."""
    from pyroute2 import Ethtool

    with end.enter(), contextlib.closing(Ethtool()) as ethtool:
        features = ethtool.get_features(end.interface)
        features.features["tx-udp-segmentation"].enable = False
        ethtool.set_features(end.interface, features)
        if ethtool.get_features(end.interface).features["tx-udp-segmentation"].enable:
            raise network.MeasurementError("veth: datagram segmentation cannot be switched off")


def _received(lab: Any) -> int:
    """Return how many packets the receiving interface has counted."""
    from pyroute2 import IPRoute

    with lab.rx.enter(), IPRoute() as netlink:
        link = netlink.link("get", index=lab.rx.ifindex)[0]
        return int(link.get_attr("IFLA_STATS64")["rx_packets"])


def packets(
    lab: Any, library: str, transport: str, payload: int, core: int, seconds: float, log: IO[str]
) -> Speed:
    """Send as many packets as go out, and see that they came out at the other end.

    Raises
    ------
    MeasurementError
        If the receiving interface counted another number.
    """
    arguments = {
        "mode": "network",
        "library": library,
        "transport": transport,
        "payload": payload,
        "core": core,
        "seconds": seconds,
        "address": _NOBODY,
        "port": PORT,
        "interface": lab.tx.interface,
    }
    child = network.start_sender(lab.tx.popen, arguments, log)
    try:
        child.answer()
        before = _received(lab)
        done = child.ask("go")
        received = _received(lab) - before
    finally:
        child.end()
    if not -_STRAY <= received - done["packets"] <= _STRAY:
        raise network.MeasurementError(
            f"{library} {transport}: {done['packets']} packets sent, {received} received"
        )
    return Speed(done["per_s"], done["cpu_ns"])


def heaps(library: str, transport: str, how: str, core: int, seconds: float, log: IO[str]) -> Speed:
    """Send as many small heaps as Python can."""
    arguments = {
        "mode": "heaps",
        "library": library,
        "transport": transport,
        "how": how,
        "core": core,
        "seconds": seconds,
    }
    child = network.start_sender(subprocess.Popen, arguments, log)
    try:
        child.answer()
        done = child.ask("go")
    finally:
        child.end()
    return Speed(done["per_s"], done["cpu_ns"])


# ---- what is measured ---------------------------------------------------------------------------


def measure(session: Session) -> None:
    """Measure packets per second through a veth pair, and small heaps per second."""
    for name in session.libraries:
        if not session.senders[name]:
            session.results.note(f"this {name} cannot send")
    with contextlib.ExitStack() as stack:
        lab = stack.enter_context(far_end()) if session.may_use_network() else None
        session.rounds("send", lambda: _steps(session, lab), session.plan.curve_runs)


def _steps(session: Session, lab: Any) -> Iterator[Step]:
    senders = [(name, by) for name in session.libraries for by in session.senders[name]]
    if lab is not None:
        for payload in PAYLOADS:
            for name, transport in senders:
                yield functools.partial(_packets, session, lab, name, transport, payload)
    for transport in TRANSPORTS:
        for how in HOWS:
            for name in session.libraries:
                if session.senders[name]:
                    yield functools.partial(_heaps, session, name, transport, how)


def _packets(session: Session, lab: Any, name: str, transport: str, payload: int) -> None:
    core, seconds = session.options.sender_core, session.plan.trial_s / 2
    speed = packets(lab, name, transport, payload, core, seconds, session.log)
    prefix = f"send/{transport}-{payload}/{name}"
    session.results.add(f"{prefix}/pps", speed.per_s)
    session.results.add(f"{prefix}/cpu_ns", speed.cpu_ns)


def _heaps(session: Session, name: str, transport: str, how: str) -> None:
    core, seconds = session.options.sender_core, session.plan.trial_s / 2
    speed = heaps(name, transport, how, core, seconds, session.log)
    session.results.add(f"send/heaps-{transport}-{how}/{name}/heaps_per_s", speed.per_s)
