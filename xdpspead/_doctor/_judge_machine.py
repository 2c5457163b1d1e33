"""Judgements on a machine: facts in, findings out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from .._drivers import Kernel
from ._facts import IdleState, Machine, Unknown, need
from ._files import ranges
from ._findings import Check, Finding, costs, good, loses

#: What kernels before that one lack.
LACKS: Final[tuple[tuple[Kernel, str], ...]] = (
    ((5, 11), "AF_XDP readers"),
    ((5, 18), "native mode with jumbo frames"),
    ((6, 3), "drivers that tell what they can do"),
    ((6, 6), "jumbo frames through AF_XDP"),
    ((6, 13), "interrupt deferral for single queues"),
)
#: A CPU that takes longer to wake up keeps packets waiting, in microseconds.
_SLOW_WAKE_UP_US: Final = 10
#: Of so many packets, one is expected to find a CPU out of time.
_SQUEEZED: Final = 1000
_FEW_SQUEEZES: Final = 100


def _kernel(machine: Machine) -> Iterator[Finding]:
    lacks = [(since, what) for since, what in LACKS if machine.kernel < since]
    listed = ", ".join(f"{what} ({since[0]}.{since[1]})" for since, what in lacks)
    if not lacks:
        yield good(f"Linux {machine.release} has all that is used")
    elif machine.kernel < (5, 11):
        yield costs(f"Linux {machine.release} lacks: {listed}", "only ordinary sockets remain")
    elif machine.kernel < (6, 6):
        yield costs(f"Linux {machine.release} lacks: {listed}", "a newer one does more")
    else:
        yield good(f"Linux {machine.release}; it lacks: {listed}")


def _bpf(machine: Machine) -> Iterator[Finding]:
    jit = need(machine.jit)
    btf = "has" if machine.btf else "lacks"
    if jit:
        yield good(f"the BPF compiler is on; the kernel {btf} BTF, which is not needed")
    else:
        yield costs(
            "the BPF compiler is off",
            "the program that looks at each packet is interpreted",
            "sysctl -w net.core.bpf_jit_enable=1",
        )


def _privileges(machine: Machine) -> Iterator[Finding]:
    if not machine.built:
        yield costs(
            "this build has no AF_XDP reader",
            "only ordinary sockets remain; python -m xdpspead features says what was missing",
        )
    if not machine.missing:
        yield good("this process may use AF_XDP")
        return
    if machine.helper:
        yield good(f"AF_XDP without privileges: {machine.helper}")
        return
    yield costs(
        f"this process lacks {', '.join(machine.missing)}",
        "AF_XDP will be refused; a service has them from AmbientCapabilities= in its unit, a "
        "command from:",
        "setpriv --reuid=USER --regid=GROUP --init-groups --inh-caps=+net_raw,+net_admin,+bpf "
        "--ambient-caps=+net_raw,+net_admin,+bpf COMMAND",
    )


def _memlock(machine: Machine) -> Iterator[Finding]:
    enough, detail = machine.memlock
    if enough:
        yield good(detail)
        return
    if machine.missing and machine.helper:
        yield good("xdpspead-helper locks the packet memory")
        return
    yield costs(
        detail,
        "AF_XDP will be refused (ENOBUFS); in a unit: LimitMEMLOCK=infinity",
        "ulimit -l unlimited",
    )


def _rmem_max(machine: Machine) -> Iterator[Finding]:
    limit, wanted = need(machine.rmem_max), machine.udp_buffer
    if limit >= wanted:
        yield good(f"sockets may have buffers of {_mebibytes(limit)}")
    elif "CAP_NET_ADMIN" not in machine.missing:
        yield good("sockets may have any buffer, because of CAP_NET_ADMIN")
    else:
        yield loses(
            f"sockets may have buffers of {_mebibytes(limit)}, UDP readers want "
            f"{_mebibytes(wanted)}",
            "what comes while nobody reads is lost (AF_XDP does not need it)",
            f"sysctl -w net.core.rmem_max={wanted}",
        )


def _backlog(machine: Machine) -> Iterator[Finding]:
    softnet, limit = need(machine.softnet), need(machine.backlog)
    command = f"sysctl -w net.core.netdev_max_backlog={max(2 * limit, 10_000)}"
    why = f"a CPU's queue was full (netdev_max_backlog {limit})"
    if softnet.dropping:
        yield loses(f"the kernel drops packets: {softnet.dropping} just now", why, command)
    elif softnet.dropped:
        yield costs(
            f"the kernel dropped {softnet.dropped} packets since the machine was started, none now",
            why,
            command,
        )
    else:
        yield good(f"no queue of a CPU was ever full (netdev_max_backlog {limit})")


def _budget(machine: Machine) -> Iterator[Finding]:
    softnet, budget = need(machine.softnet), need(machine.budget)
    often = softnet.squeezed > softnet.processed / _SQUEEZED and softnet.squeezed > _FEW_SQUEEZES
    if often:
        yield costs(
            f"network interrupts ran out of time {softnet.squeezed} times for "
            f"{softnet.processed} packets",
            f"netdev_budget {budget} is small, or a core has too much to do",
            f"sysctl -w net.core.netdev_budget={2 * budget} net.core.netdev_budget_usecs=8000",
        )
    else:
        yield good(f"network interrupts have time enough (netdev_budget {budget})")


def _governor(machine: Machine) -> Iterator[Finding]:
    governors = need(machine.governors)
    slow = sorted(governors - {"performance"})
    if not governors:
        yield good("nobody governs the CPUs' frequency here; in a guest, ask its host")
    elif slow:
        yield costs(
            f"the CPUs' frequency is governed by {', '.join(slow)}",
            "it follows the load, and lags behind bursts",
            "cpupower frequency-set -g performance",
        )
    else:
        yield good("the CPUs' frequency is governed by performance")


def _idle(machine: Machine) -> Iterator[Finding]:
    states = need(machine.idle_states)
    limit = machine.idle_limit_us
    allowed = [s for s in states if not isinstance(limit, int) or s.latency_us <= limit]
    deep = [state for state in allowed if state.latency_us > _SLOW_WAKE_UP_US]
    doubt = f" (whether somebody forbids it: {limit.why})" if isinstance(limit, Unknown) else ""
    if deep:
        yield costs(
            f"CPUs may sleep so deeply that they take {deep[-1].latency_us} µs to wake up "
            f"({deep[-1].name})",
            f"packets wait meanwhile{doubt}; keep to the shallow states:",
            f"cpupower idle-set -D {_SLOW_WAKE_UP_US}",
        )
    elif states:
        yield good(f"CPUs wake up within {_deepest(allowed)} µs")
    else:
        yield good("CPUs do not sleep here; in a guest, ask its host")


def _deepest(states: list[IdleState]) -> int:
    return max((state.latency_us for state in states), default=0)


def _irqbalance(machine: Machine) -> Iterator[Finding]:
    if need(machine.irqbalance):
        yield costs(
            "irqbalance runs",
            "it moves interrupts about, also those that you have put somewhere",
            "systemctl disable --now irqbalance",
        )
    else:
        yield good("irqbalance does not run: interrupts stay where you put them")


def _numa(machine: Machine) -> Iterator[Finding]:
    nodes = machine.nodes
    if len(nodes) == 1:
        yield good("one NUMA node")
        return
    if need(machine.numa_balancing):
        yield costs(
            f"the kernel moves memory between {len(nodes)} NUMA nodes by itself",
            "threads wait for pages that it looks at",
            "sysctl -w kernel.numa_balancing=0",
        )
        return
    listed = "; ".join(f"{node}: CPUs {ranges(cpus)}" for node, cpus in sorted(nodes.items()))
    yield good(f"memory stays where it is ({listed})")


def _mebibytes(n_bytes: int) -> str:
    return f"{n_bytes / 2**20:.3g} MiB"


#: By name, in the order in which they are shown.
MACHINE_CHECKS: Final[Mapping[str, Check[Machine]]] = {
    "kernel": _kernel,
    "bpf": _bpf,
    "privileges": _privileges,
    "memlock": _memlock,
    "rmem-max": _rmem_max,
    "backlog": _backlog,
    "budget": _budget,
    "governor": _governor,
    "idle-states": _idle,
    "irqbalance": _irqbalance,
    "numa-memory": _numa,
}
