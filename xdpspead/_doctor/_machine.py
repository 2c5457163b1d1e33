"""Facts about the machine: kernel, CPUs, limits, and what this process may do."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Final

from .._features import features
from .._helper import helper_is_there
from ._facts import KERNEL_SILENT, NEEDS_ROOT, IdleState, Machine, Softnet, Unknown
from ._files import ROOT, cpus, number, processes, text

_CPU: Final = "sys/devices/system/cpu"
_CORE: Final = "proc/sys/net/core"


def gather_machine(root: Path = ROOT, dropping: int = 0) -> Machine:
    """Look at the machine.

    Parameters
    ----------
    root : Path
        Where ``proc``, ``sys`` and ``dev`` are.
    dropping : int
        How many packets the kernel dropped while we looked at other things.
    """
    from ..recv import Stream

    memlock = features.memlock
    needed = {
        "CAP_NET_RAW": features.net_raw,
        "CAP_NET_ADMIN": features.net_admin,
        "CAP_BPF": features.cap_bpf,
    }
    missing = tuple(name for name, feature in needed.items() if not feature)
    # Who has the privileges does not need it, and who has none may ask.
    helper = features.helper if missing and helper_is_there() else None
    return Machine(
        release=os.uname().release,
        nodes=_nodes(root),
        allowed=frozenset(os.sched_getaffinity(0)),
        jit=number(root / _CORE / "bpf_jit_enable"),
        btf=(root / "sys/kernel/btf/vmlinux").exists(),
        governors=_governors(root),
        idle_states=_idle_states(root),
        idle_limit_us=_idle_limit(root),
        built=bool(features.xdp),
        missing=missing,
        helper=helper.detail if helper else "",
        memlock=(bool(memlock), memlock.detail),
        rmem_max=number(root / _CORE / "rmem_max"),
        udp_buffer=Stream.DEFAULT_UDP_BUFFER_SIZE,
        backlog=number(root / _CORE / "netdev_max_backlog"),
        budget=number(root / _CORE / "netdev_budget"),
        softnet=softnet(root, dropping),
        irqbalance=_irqbalance(root),
        numa_balancing=number(root / "proc/sys/kernel/numa_balancing"),
    )


def _nodes(root: Path) -> dict[int, frozenset[int]]:
    found = {}
    for folder in (root / "sys/devices/system/node").glob("node[0-9]*"):
        listed = text(folder / "cpulist")
        if isinstance(listed, str):
            found[int(folder.name.removeprefix("node"))] = cpus(listed)
    if found:
        return found
    online = text(root / _CPU / "online")  # a kernel without NUMA
    return {0: cpus(online) if isinstance(online, str) else frozenset(os.sched_getaffinity(0))}


def _governors(root: Path) -> frozenset[str] | Unknown:
    found = set()
    for folder in (root / _CPU / "cpufreq").glob("policy[0-9]*"):
        governor = text(folder / "scaling_governor")
        if isinstance(governor, Unknown):
            return governor
        preference = text(folder / "energy_performance_preference")
        # Drivers that govern themselves call it "powersave", whatever they were asked to prefer.
        found.add("performance" if preference == "performance" else governor)
    return frozenset(found)


def _idle_states(root: Path) -> tuple[IdleState, ...] | Unknown:
    """Return the states that any CPU may enter."""
    driver = text(root / _CPU / "cpuidle/current_driver")
    if isinstance(driver, Unknown):
        return driver
    found = {}
    for folder in (root / _CPU).glob("cpu[0-9]*/cpuidle/state[0-9]*"):
        name, latency, off = (text(folder / file) for file in ("name", "latency", "disable"))
        if isinstance(name, Unknown) or isinstance(latency, Unknown):
            return KERNEL_SILENT
        if off != "1":
            found[name] = int(latency)
    states = (IdleState(name, latency) for name, latency in found.items())
    return tuple(sorted(states, key=lambda state: state.latency_us))


def _idle_limit(root: Path) -> int | Unknown:
    # To open it is to ask for nothing; only to write to it asks for something.
    try:
        with open(root / "dev/cpu_dma_latency", "rb", buffering=0) as file:
            return int(struct.unpack("=i", file.read(4))[0])
    except PermissionError:
        return NEEDS_ROOT
    except (OSError, struct.error):
        return KERNEL_SILENT


def softnet(root: Path = ROOT, dropping: int = 0) -> Softnet | Unknown:
    """Return what the network interrupts of all CPUs have counted."""
    table = text(root / "proc/net/softnet_stat")
    if isinstance(table, Unknown):
        return table
    if not table:
        return KERNEL_SILENT
    rows = [[int(word, 16) for word in line.split()[:3]] for line in table.splitlines()]
    processed, dropped, squeezed = (sum(column) for column in zip(*rows, strict=True))
    return Softnet(processed, dropped, squeezed, dropping)


def _irqbalance(root: Path) -> bool | Unknown:
    found = processes(root)
    if not found:
        return KERNEL_SILENT
    return any(text(folder / "comm") == "irqbalance" for folder in found)
