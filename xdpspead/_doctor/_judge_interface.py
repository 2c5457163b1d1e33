"""Judgements on an interface's link, card and kernel settings: facts in, findings out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from .._drivers import RULES_WITHOUT_PORTS
from ._facts import Interface, Losses, Machine, Queues, Rings, need
from ._files import ranges
from ._findings import Check, Finding, costs, good, loses, unknown


@dataclass(frozen=True)
class Case:
    """An interface, and the machine that it is in."""

    interface: Interface
    machine: Machine


#: RXH_L4_B_0_1 and RXH_L4_B_2_3 of linux/ethtool.h: both ports.
_PORTS: Final = 0xC0
#: Preamble, header, checksum and gap of an Ethernet frame, in bytes.
_FRAME_EXTRA: Final = 38
#: The kernel may come so late, in microseconds: a time slice, and what else is under way.
_LATE_US: Final = 1000
#: From here on one core hardly takes a whole link, in Mb/s.
_FAST: Final = 25_000
#: Queues that are proposed, where there are enough CPUs.
_SOME_QUEUES: Final = 4
#: Interrupts that get a command each.
_FEW_IRQS: Final = 8
#: Part of what lanes carry that is left for packets, and how many bits of a transfer are payload.
_PCIE_SHARE: Final = 0.85
_OLD_CODING, _NEW_CODING = 8 / 10, 128 / 130
_LAST_OLD_CODING: Final = 5.0  # GT/s


def _link(case: Case) -> Iterator[Finding]:
    interface = case.interface
    name = interface.name
    if not interface.up:
        yield loses("it is switched off", "nothing arrives", f"ip link set dev {name} up")
    elif not interface.carrier:
        yield loses("it has no link", "nothing arrives: look at the cable and the switch")
    else:
        yield good(f"it has a link{_at_speed(interface)}")


def _at_speed(interface: Interface) -> str:
    if not isinstance(interface.speed, int):
        return ""
    return f" at {gigabits(interface.speed)}"


def gigabits(speed: int) -> str:
    """Return a speed in Mb/s for people."""
    return f"{speed / 1000:g} Gb/s"


def _losses(case: Case) -> Iterator[Finding]:
    losses = need(case.interface.losses)
    name = case.interface.name
    # The kernel counts what nobody wanted as "dropped", too.
    growing = {n: count for n, count in losses.growing.items() if n != "rx_dropped"}
    if growing:
        yield loses(
            f"it loses packets: {_counts(growing)} in {losses.seconds:.1f} s",
            "the card was not emptied in time, or could not deliver",
            f"ethtool -S {name}",
        )
    elif losses.growing:
        yield costs(
            f"the kernel dropped {losses.growing['rx_dropped']} packets in {losses.seconds:.1f} s",
            "for want of time or memory, or because nobody wanted them",
            f"ip -s -s link show dev {name}",
        )
    elif losses.before:
        yield costs(
            f"it lost packets once, but not now: {_counts(losses.before)}",
            "look again while data come",
            f"ethtool -S {name}",
        )
    else:
        yield good(_nothing_lost(losses))


def _counts(counters: Mapping[str, int]) -> str:
    most = sorted(counters.items(), key=lambda item: -item[1])[:3]
    more = len(counters) - len(most)
    return ", ".join(f"{n} {count}" for n, count in most) + (f" and {more} more" if more else "")


def _nothing_lost(losses: Losses) -> str:
    return f"the device has counted no losses, nor any in the last {losses.seconds:.1f} s"


def _rings(case: Case) -> Iterator[Finding]:
    interface = case.interface
    rings = need(interface.rings)
    command = f"ethtool -G {interface.name} rx {rings.rx_max}"
    holds = f"the card holds {rings.rx} packets for each queue"
    if not isinstance(interface.speed, int):
        if rings.rx < rings.rx_max:
            yield costs(f"{holds} of at most {rings.rx_max}", "more ride out more", command)
        else:
            yield good(f"{holds}, as many as it can")
        return
    lasts = _lasts(rings, interface.mtu, interface.speed)
    holds += f", {lasts:.0f} µs of {gigabits(interface.speed)}"
    if rings.rx >= rings.rx_max:
        yield good(f"{holds}, as many as it can")
    elif lasts < _LATE_US:
        yield loses(
            holds,
            f"the kernel may come {_LATE_US} µs late; it could hold {rings.rx_max}",
            command,
        )
    else:
        yield good(f"{holds}; it could hold {rings.rx_max}")


def _queues(case: Case) -> Iterator[Finding]:
    interface, machine = case.interface, case.machine
    queues = need(interface.queues)
    kind = "combined" if queues.combined else "rx"
    n_cpus = len(_near(case)) or machine.n_cpus
    most = min(queues.most, n_cpus)
    fast = isinstance(interface.speed, int) and interface.speed >= _FAST
    if queues.n > machine.n_cpus:
        yield costs(
            f"{queues.n} receive queues for {machine.n_cpus} CPUs",
            "several share a core, and each needs memory",
            f"ethtool -L {interface.name} {kind} {n_cpus}",
        )
    elif queues.n == 1 < most and fast:
        yield costs(
            "one receive queue, so one core takes all packets",
            f"{_at_speed(interface).removeprefix(' at ')} may be too much for it",
            f"ethtool -L {interface.name} {kind} {min(most, _SOME_QUEUES)}",
        )
    else:
        yield good(f"{_plural(queues.n, 'receive queue')} of {max(queues.most, queues.n)}")


def _plural(n: int, noun: str) -> str:
    return f"{n} {noun}{'s' * (n != 1)}"


def _hash(case: Case) -> Iterator[Finding]:
    interface = case.interface
    if need(interface.queues).n == 1:
        yield good("there is one queue only, so it does not matter")
        return
    hashes = need(interface.hashes)
    blind = [flow for flow in hashes if hashes[flow] & _PORTS != _PORTS]
    if blind:
        yield costs(
            f"the hash does not take in ports of {' and '.join(blind)}",
            "all packets between two addresses come on one queue",
            *(f"ethtool -N {interface.name} rx-flow-hash {flow} sdfn" for flow in blind),
        )
    else:
        yield good("the hash takes in addresses and ports of UDP")


def _spread(case: Case) -> Iterator[Finding]:
    interface = case.interface
    n = need(interface.queues).n
    if n == 1:
        yield good("there is one queue only, so there is nothing to spread")
        return
    table = need(interface.table)
    left_out = set(range(n)) - set(table)
    if left_out and len(left_out) == n - 1:
        yield costs(
            f"the hash puts everything on queue {table[0]}",
            "one core takes all packets that no rule brings elsewhere",
            f"ethtool -X {interface.name} default",
        )
    elif left_out:
        queues = ranges(left_out)
        yield good(f"the hash spreads over queues {ranges(table)}; {queues} are for rules")
    else:
        yield good(f"the hash spreads over all {n} queues")


def _steering(case: Case) -> Iterator[Finding]:
    interface = case.interface
    offloads = need(interface.offloads)
    elsewhere = "streams come on the queues that the hash chooses (no steer='ntuple')"
    if isinstance(interface.queues, Queues) and interface.queues.n == 1:
        yield good("receive-flow rules are not needed with one queue")
    elif "rx-ntuple-filter" not in offloads:
        yield costs("the driver has no receive-flow rules", elsewhere)
    elif interface.driver in RULES_WITHOUT_PORTS:
        yield costs(f"receive-flow rules of {interface.driver} know no ports", elsewhere)
    elif offloads["rx-ntuple-filter"]:
        yield good("receive-flow rules are on (steer='ntuple')")
    else:
        yield costs(
            "receive-flow rules are off", elsewhere, f"ethtool -K {interface.name} ntuple on"
        )


def _coalescing(case: Case) -> Iterator[Finding]:
    interface = case.interface
    found = need(interface.coalescing)
    if found.adaptive:
        yield good("the card chooses itself when to interrupt (adaptive)")
        return
    what = f"the card interrupts after {found.usecs} µs or {found.frames} packets"
    rings, speed = interface.rings, interface.speed
    if isinstance(rings, Rings) and isinstance(speed, int):
        lasts = _lasts(rings, interface.mtu, speed)
        if found.usecs > lasts / 2 and not 0 < found.frames < rings.rx / 2:
            yield loses(
                what,
                f"its ring is full after {lasts:.0f} µs",
                f"ethtool -C {interface.name} rx-usecs {max(1, int(lasts / 8))}",
            )
            return
    if found.usecs > _LATE_US:
        yield costs(what, "packets wait so long", f"ethtool -C {interface.name} rx-usecs 50")
    else:
        yield good(what)


def _lasts(rings: Rings, mtu: int, speed: int) -> float:
    """Return for how many microseconds of long packets at full rate a ring has room."""
    return rings.rx * (mtu + _FRAME_EXTRA) * 8 / speed


def _pause(case: Case) -> Iterator[Finding]:
    interface = case.interface
    if need(interface.pause).tx:
        yield costs(
            "the card sends pause frames when it is full",
            "the switch then holds packets back, and loses them where nobody here counts",
            f"ethtool -A {interface.name} autoneg off rx off tx off",
        )
    else:
        yield good("the card does not hold the switch up (no pause frames)")


def _near(case: Case) -> frozenset[int]:
    """Return the CPUs of the card's NUMA node; empty if that is not known."""
    node = case.interface.node
    return case.machine.nodes.get(node, frozenset()) if isinstance(node, int) else frozenset()


def _numa(case: Case) -> Iterator[Finding]:
    node = case.interface.node
    if node is None:
        return
    if len(case.machine.nodes) == 1:
        yield good("one NUMA node: the card is near to all CPUs")
        return
    if need(node) < 0:
        yield unknown("the firmware does not tell on which NUMA node the card is")
        return
    near = _near(case)
    if near & case.machine.allowed:
        yield good(f"the card is on NUMA node {node}: take CPUs {ranges(near)}")
    else:
        yield costs(
            f"this process may run on CPUs {ranges(case.machine.allowed)}, the card is on NUMA "
            f"node {node} with CPUs {ranges(near)}",
            "packets cross between the nodes",
            f"taskset -c {ranges(near)} COMMAND",
        )


def _interrupts(case: Case) -> Iterator[Finding]:
    if case.interface.irqs is None:
        return
    irqs = need(case.interface.irqs)
    near = _near(case)
    far = [irq.number for irq in irqs if near and not irq.cpus <= near]
    used = frozenset().union(*(irq.cpus for irq in irqs))
    if far:
        yield costs(
            f"{_plural(len(far), 'interrupt')} of {len(irqs)} may go to CPUs that are not on the "
            f"card's NUMA node ({ranges(far)})",
            "packets cross between the nodes",
            *_put(far, sorted(near)),
        )
    elif len(used) == 1 < min(len(irqs), case.machine.n_cpus):
        yield costs(
            f"the interrupts of all queues go to CPU {ranges(used)}",
            "one core takes all packets",
            *_put([irq.number for irq in irqs], sorted(near) or _all_cpus(case)),
        )
    else:
        yield good(f"{_plural(len(irqs), 'interrupt')}, on CPUs {ranges(used)}")


def _all_cpus(case: Case) -> list[int]:
    return sorted(frozenset().union(*case.machine.nodes.values()))


def _put(irqs: list[int], cpus: list[int]) -> Iterator[str]:
    """Yield commands that deal interrupts out to CPUs."""
    if len(irqs) <= _FEW_IRQS:
        for i, irq in enumerate(irqs):
            yield f"echo {cpus[i % len(cpus)]} > /proc/irq/{irq}/smp_affinity_list"
        return
    yield (
        f"i=0; for irq in {' '.join(map(str, irqs))}; do set -- {' '.join(map(str, cpus))}; "
        "shift $((i % $#)); echo $1 > /proc/irq/$irq/smp_affinity_list; i=$((i + 1)); done"
    )


def _pcie(case: Case) -> Iterator[Finding]:
    if case.interface.pcie is None:
        return
    pcie = need(case.interface.pcie)
    coding = _OLD_CODING if pcie.gigatransfers <= _LAST_OLD_CODING else _NEW_CODING
    room = pcie.width * pcie.gigatransfers * coding * _PCIE_SHARE
    what = f"{pcie.width} lanes at {pcie.gigatransfers:g} GT/s carry about {room:.0f} Gb/s"
    possible = f"the card could use {pcie.max_width} at {pcie.max_gigatransfers:g} GT/s"
    speed = case.interface.speed
    if isinstance(speed, int) and room < speed / 1000:
        yield loses(f"{what}, the link {gigabits(speed)}", f"{possible}: put it into another slot")
    elif (pcie.width, pcie.gigatransfers) < (pcie.max_width, pcie.max_gigatransfers):
        yield costs(what, f"{possible}: another slot would do more")
    else:
        yield good(what)


def _rp_filter(case: Case) -> Iterator[Finding]:
    interface = case.interface
    if need(interface.rp_filter) != 1:
        yield good("sources are not checked against routes (rp_filter)")
    elif interface.default_route:
        yield good("sources are checked (rp_filter 1), but the default route is here")
    else:
        yield costs(
            "sources are checked against routes (rp_filter 1)",
            "ordinary sockets lose what senders send that have no route through here (AF_XDP does "
            "not)",
            f"sysctl -w net.ipv4.conf.{interface.name}.rp_filter=2",
        )


def _igmp(case: Case) -> Iterator[Finding]:
    version = need(case.interface.igmp)
    if version >= 3:
        yield good(f"IGMPv{version} is spoken here")
    else:
        yield costs(
            f"a querier makes the kernel speak IGMPv{version}",
            "groups cannot be joined for one source; packets of all sources come",
            f"sysctl -w net.ipv4.conf.{case.interface.name}.force_igmp_version=3",
        )


#: By name, in the order in which they are shown.
CARD_CHECKS: Final[Mapping[str, Check[Case]]] = {
    "link": _link,
    "losses": _losses,
    "rings": _rings,
    "queues": _queues,
    "hash": _hash,
    "spread": _spread,
    "steering": _steering,
    "coalescing": _coalescing,
    "pause": _pause,
    "numa": _numa,
    "interrupts": _interrupts,
    "pcie": _pcie,
    "rp-filter": _rp_filter,
    "igmp": _igmp,
}
