"""Machines and network cards that nobody has here, as facts for the doctor.

They are made up, after what the manuals of ethtool and of the drivers show for cards of these
kinds; no real machine was recorded.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from xdpspead._doctor._facts import (
    DRIVER_SILENT,
    KERNEL_SILENT,
    Coalescing,
    IdleState,
    Interface,
    Irq,
    Losses,
    Machine,
    Pause,
    Pcie,
    Queues,
    Rings,
    Softnet,
    Unknown,
)
from xdpspead._netdev import XdpFeatures

NEAR, FAR = frozenset(range(8, 16)), frozenset(range(8))
#: RXH_IP_SRC | RXH_IP_DST, and with both ports.
ADDRESSES, PORTS = 0x30, 0xF0


def machine(**changes: Any) -> Machine:
    """Return a server with two NUMA nodes that is as it should be."""
    good = Machine(
        release="6.18.1-server",
        nodes={0: FAR, 1: NEAR},
        allowed=NEAR | FAR,
        jit=1,
        btf=True,
        governors=frozenset({"performance"}),
        idle_states=(IdleState("POLL", 0), IdleState("C1", 2)),
        idle_limit_us=2_000_000_000,
        built=True,
        missing=(),
        helper="",
        memlock=(True, "memory locking is not limited"),
        rmem_max=16 << 20,
        udp_buffer=8 << 20,
        backlog=1000,
        budget=300,
        softnet=Softnet(10_000_000, 0, 20),
        irqbalance=False,
        numa_balancing=0,
    )
    return replace(good, **changes)


def small_machine(**changes: Any) -> Machine:
    """Return a guest with four CPUs and one node."""
    cpus = frozenset(range(4))
    return machine(**{"nodes": {0: cpus}, "allowed": cpus, "governors": frozenset(), **changes})


def card(**changes: Any) -> Interface:
    """Return a card for 25 Gb/s on the second node, as it should be."""
    good = Interface(
        name="eth1",
        driver="mlx5_core",
        kind="",
        up=True,
        carrier=True,
        mtu=1500,
        speed=25_000,
        xdp=XdpFeatures(zero_copy=True, max_segments=1, native=True, multi_buffer=True),
        rings=Rings(8192, 8192),
        queues=Queues(4, 63),
        hashes={"udp4": PORTS, "udp6": PORTS},
        table=(0, 1, 2, 3) * 32,
        offloads={
            "rx-lro": False,
            "rx-gro-hw": False,
            "rx-gro-list": False,
            "rx-udp-gro-forwarding": False,
            "rx-ntuple-filter": True,
            "rx-vlan-hw-parse": True,
            "rx-vlan-filter": True,
        },
        coalescing=Coalescing(8, 128, adaptive=True),
        pause=Pause(rx=False, tx=False),
        node=1,
        irqs=tuple(Irq(80 + i, frozenset({8 + i})) for i in range(4)),
        pcie=Pcie(8, 8, 8.0, 8.0),
        losses=Losses({}, {}, 0.5),
        rp_filter=2,
        igmp=3,
    )
    return replace(good, **changes)


def offloads(**changes: bool) -> dict[str, bool]:
    """Return those of `card`, with changes; "_" in a name stands for "-"."""
    good = card().offloads
    assert isinstance(good, dict)
    return {**good, **{name.replace("_", "-"): on for name, on in changes.items()}}


#: driver -> machine, card, and what is to be found but that all else is good.
CARDS: dict[str, tuple[Machine, Interface, dict[str, str]]] = {
    # A 100 Gb/s card with jumbo frames, as it comes out of the box, in the wrong slot for its node.
    "mlx5_core": (
        machine(),
        card(
            mtu=9000,
            speed=100_000,
            rings=Rings(1024, 8192),
            offloads=offloads(rx_ntuple_filter=False),
            pause=Pause(rx=True, tx=True),
            irqs=tuple(Irq(80 + i, frozenset({i})) for i in range(4)),
            pcie=Pcie(16, 16, 8.0, 16.0),
            losses=Losses({"rx_out_of_buffer": 12}, {}, 0.5),
        ),
        {
            "losses": "costs",
            "rings": "loses",
            "steering": "costs",
            "pause": "costs",
            "interrupts": "costs",
            "pcie": "costs",
            "zero-copy": "costs",
        },
    ),
    # A 25 Gb/s card of which half the lanes are connected, with a kernel that crashes zero-copy.
    "ice": (
        machine(release="6.6.30"),
        card(driver="ice", rings=Rings(4096, 8160), pcie=Pcie(4, 8, 8.0, 8.0)),
        {"pcie": "costs", "zero-copy": "costs"},
    ),
    # Jumbo frames with Debian 12: the kernel does not tell, and is too old for them.
    "i40e": (
        machine(release="6.1.0-23-amd64"),
        card(
            driver="i40e",
            mtu=9000,
            speed=10_000,
            xdp=KERNEL_SILENT,
            rings=Rings(512, 4096),
            coalescing=Coalescing(50, 0, adaptive=False),
        ),
        {"kernel": "costs", "mtu": "costs", "zero-copy": "costs"},
    ),
    # It hashes UDP by addresses only, merges packets, and all interrupts are on one CPU.
    "ixgbe": (
        machine(),
        card(
            driver="ixgbe",
            speed=10_000,
            xdp=XdpFeatures(zero_copy=True, max_segments=1, native=True),
            rings=Rings(512, 4096),
            hashes={"udp4": ADDRESSES, "udp6": ADDRESSES},
            offloads=offloads(rx_lro=True),
            irqs=tuple(Irq(80 + i, frozenset({8})) for i in range(4)),
        ),
        {"rings": "loses", "hash": "costs", "interrupts": "costs", "lro": "costs"},
    ),
    # A guest of a cloud that has used up what it may receive.
    "ena": (
        small_machine(),
        card(
            driver="ena",
            speed=DRIVER_SILENT,
            xdp=XdpFeatures(zero_copy=False, max_segments=0, native=True),
            rings=Rings(1024, 16384),
            queues=Queues(4, 4),
            offloads={"rx-gro": True},
            pause=DRIVER_SILENT,
            node=-1,
            irqs=tuple(Irq(30 + i, frozenset({i})) for i in range(4)),
            pcie=Unknown("no PCIe link can be seen"),
            losses=Losses({}, {"bw_in_allowance_exceeded": 7}, 0.5),
            igmp=Unknown("no group is joined there"),
        ),
        {
            "losses": "loses",
            "rings": "costs",
            "steering": "costs",
            "pause": "unknown",
            "pcie": "unknown",
            "igmp": "unknown",
            "zero-copy": "costs",
        },
    ),
    # A guest whose host merges packets for it.
    "virtio_net": (
        small_machine(release="6.12.5"),
        card(
            driver="virtio_net",
            speed=DRIVER_SILENT,
            xdp=XdpFeatures(zero_copy=True, max_segments=1, native=True, multi_buffer=True),
            rings=Rings(256, 256),
            queues=Queues(1, 1),
            hashes=DRIVER_SILENT,
            table=DRIVER_SILENT,
            offloads=offloads(rx_gro_hw=True, rx_udp_gro_forwarding=True, rx_ntuple_filter=False),
            pause=DRIVER_SILENT,
            node=-1,
            irqs=(Irq(38, frozenset({1})),),
            pcie=Unknown("no PCIe link can be seen"),
        ),
        {"pause": "unknown", "pcie": "unknown", "lro": "costs", "zero-copy": "costs"},
    ),
}
