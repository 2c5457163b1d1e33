"""What is known of a machine and of an interface, before anybody judges it.

A fact that could not be had is an :class:`Unknown`, which says why. One that is None does not
apply: a virtual interface has no PCIe slot.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

from .._drivers import Kernel, kernel_version
from .._netdev import XdpFeatures

_T = TypeVar("_T")


@dataclass(frozen=True)
class Unknown:
    """What could not be found out, and why."""

    why: str


NEEDS_ROOT: Final = Unknown("needs root")
DRIVER_SILENT: Final = Unknown("the driver does not tell")
KERNEL_SILENT: Final = Unknown("this kernel does not tell")


class NotKnownError(Exception):
    """A judgement needs a fact that could not be found out."""

    def __init__(self, fact: Unknown) -> None:
        super().__init__(fact.why)
        self.fact = fact


def need(fact: _T | Unknown) -> _T:
    """Return a fact.

    Raises
    ------
    NotKnownError
        If it is not known.
    """
    if isinstance(fact, Unknown):
        raise NotKnownError(fact)
    return fact


# ------------------------------------------------------------------ the machine


@dataclass(frozen=True)
class IdleState:
    """A state in which a CPU sleeps, and the time that it takes to wake up, in microseconds."""

    name: str
    latency_us: int


@dataclass(frozen=True)
class Softnet:
    """What the kernel's network interrupts counted, all CPUs together.

    Attributes
    ----------
    processed, dropped, squeezed : int
        Since the machine was started: packets; those for which a CPU's queue had no room; and how
        often the kernel stopped for want of time (``/proc/net/softnet_stat``).
    dropping : int
        How many were dropped while we looked.
    """

    processed: int
    dropped: int
    squeezed: int
    dropping: int = 0


@dataclass(frozen=True)
class Machine:
    """What is known of the machine, and of what this process may do.

    Attributes
    ----------
    release : str
        Of the kernel.
    nodes : dict
        NUMA node -> its CPUs.
    allowed : frozenset of int
        CPUs on which this process may run.
    jit : int
        ``net.core.bpf_jit_enable``.
    btf : bool
        Whether the kernel has type information of itself.
    governors : frozenset of str
        Of the CPUs' frequency; empty if nobody governs it here.
    idle_states : tuple of IdleState
        Those that are not switched off.
    idle_limit_us : int
        The longest time to wake up that somebody has asked for (``/dev/cpu_dma_latency``).
    built : bool
        Whether this build has the AF_XDP reader.
    missing : tuple of str
        Capabilities that the AF_XDP reader needs and this process lacks.
    helper : str
        How ``xdpspead-helper`` serves this user; empty if it does not.
    memlock : tuple of bool and str
        Whether packet memory of the default size may be locked, and what was found.
    rmem_max, udp_buffer : int
        The largest buffer of a UDP socket, and the one that readers ask for by default, in bytes.
    backlog, budget : int
        ``net.core.netdev_max_backlog``, ``net.core.netdev_budget``.
    softnet : Softnet
        Losses of the kernel's network interrupts.
    irqbalance : bool
        Whether it runs.
    numa_balancing : int
        ``kernel.numa_balancing``.
    """

    release: str
    nodes: Mapping[int, frozenset[int]]
    allowed: frozenset[int]
    jit: int | Unknown
    btf: bool
    governors: frozenset[str] | Unknown
    idle_states: tuple[IdleState, ...] | Unknown
    idle_limit_us: int | Unknown
    built: bool
    missing: tuple[str, ...]
    helper: str
    memlock: tuple[bool, str]
    rmem_max: int | Unknown
    udp_buffer: int
    backlog: int | Unknown
    budget: int | Unknown
    softnet: Softnet | Unknown
    irqbalance: bool | Unknown
    numa_balancing: int | Unknown

    @property
    def kernel(self) -> Kernel:
        """Major and minor number."""
        return kernel_version(self.release)

    @property
    def n_cpus(self) -> int:
        """How many CPUs there are."""
        return sum(map(len, self.nodes.values()))


# ------------------------------------------------------------------ an interface


@dataclass(frozen=True)
class Program:
    """An XDP program that is attached.

    Attributes
    ----------
    number : int
        Its id.
    mode : str
        "native", "generic" or "offloaded".
    name : str
        What it is called.
    holders : tuple of str
        Processes that hold it or its link, as ``name (pid)``; none if it was attached to stay.
    """

    number: int
    mode: str
    name: str | Unknown
    holders: tuple[str, ...] | Unknown


@dataclass(frozen=True)
class Rings:
    """Packets that the card's receive ring of a queue holds, and at most could hold."""

    rx: int
    rx_max: int


@dataclass(frozen=True)
class Queues:
    """Receive queues that are in use, and how many there could be (0: not known)."""

    n: int
    most: int
    combined: bool = True


@dataclass(frozen=True)
class Coalescing:
    """When the card interrupts: after that time or so many packets; or it chooses by itself."""

    usecs: int
    frames: int
    adaptive: bool


@dataclass(frozen=True)
class Pause:
    """Whether the card obeys pause frames, and sends them."""

    rx: bool
    tx: bool


@dataclass(frozen=True)
class Irq:
    """An interrupt of a queue: its number and the CPUs to which it goes."""

    number: int
    cpus: frozenset[int]


@dataclass(frozen=True)
class Pcie:
    """Lanes and transfers per second of each, in use and possible."""

    width: int
    max_width: int
    gigatransfers: float
    max_gigatransfers: float


@dataclass(frozen=True)
class Losses:
    """What the device and its driver counted as lost.

    Attributes
    ----------
    before : dict of str to int
        Before we looked, counters that are not zero.
    growing : dict of str to int
        While we looked.
    seconds : float
        How long that was.
    """

    before: Mapping[str, int]
    growing: Mapping[str, int]
    seconds: float


@dataclass(frozen=True)
class Interface:
    """What is known of an interface.

    Attributes
    ----------
    name, driver, kind : str
        Its name, its driver, and the kind of a virtual one ("veth", "bond"), else empty.
    members : tuple of str
        Interfaces that belong to it, if it is a bond or bridge.
    up, carrier : bool
        Whether it is switched on, and has a link.
    mtu : int
        In bytes.
    speed : int
        In Mb/s.
    xdp : XdpFeatures
        What the driver says that it can do.
    programs : tuple of Program
        Attached to it.
    rings, queues, coalescing, pause, pcie, losses
        See there.
    hashes : dict
        "udp4" and "udp6" -> bits of what the card's hash takes in (RXH_* in linux/ethtool.h).
    table : tuple of int
        The queue for each value of the hash.
    offloads : dict of str to bool
        Those that are on or can be switched on, by the kernel's names of them.
    fixed : frozenset of str
        Those that are on and cannot be switched off.
    node : int
        NUMA node of the card; -1 if the firmware does not tell.
    irqs : tuple of Irq
        Interrupts of its queues.
    vlans : tuple of int
        VLANs in which it has interfaces.
    rp_filter : int
        ``net.ipv4.conf.*.rp_filter`` as it counts for the interface.
    default_route : bool
        Whether the default route goes through it.
    igmp : int
        Version of IGMP that is spoken there.
    """

    name: str
    driver: str
    kind: str
    up: bool
    carrier: bool
    mtu: int
    members: tuple[str, ...] = ()
    speed: int | Unknown = DRIVER_SILENT
    xdp: XdpFeatures | Unknown = KERNEL_SILENT
    programs: tuple[Program, ...] | Unknown = ()
    rings: Rings | Unknown = DRIVER_SILENT
    queues: Queues | Unknown = DRIVER_SILENT
    hashes: Mapping[str, int] | Unknown = DRIVER_SILENT
    table: tuple[int, ...] | Unknown = DRIVER_SILENT
    offloads: Mapping[str, bool] | Unknown = DRIVER_SILENT
    fixed: frozenset[str] = frozenset()
    coalescing: Coalescing | Unknown = DRIVER_SILENT
    pause: Pause | Unknown = DRIVER_SILENT
    node: int | Unknown | None = None
    irqs: tuple[Irq, ...] | Unknown | None = None
    pcie: Pcie | Unknown | None = None
    losses: Losses | Unknown = DRIVER_SILENT
    vlans: tuple[int, ...] = ()
    rp_filter: int | Unknown = KERNEL_SILENT
    default_route: bool = False
    igmp: int | Unknown = KERNEL_SILENT
