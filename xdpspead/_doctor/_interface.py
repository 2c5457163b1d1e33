"""Facts about an interface, from netlink, its driver, and sysfs."""

from __future__ import annotations

import contextlib
import errno
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeVar

from .. import _ethtool, _netdev
from .._device import Device
from .._event_loops import outside_event_loops
from ._facts import (
    DRIVER_SILENT,
    KERNEL_SILENT,
    NEEDS_ROOT,
    Coalescing,
    Interface,
    Irq,
    Losses,
    Pause,
    Pcie,
    Queues,
    Rings,
    Unknown,
)
from ._files import ROOT, cpus, number, text
from ._programs import programs_of

_T = TypeVar("_T")

#: How long the counters of losses are looked at, in seconds.
WATCHED_S: Final = 0.5
_NO_SLOT: Final = Unknown("no PCIe link can be seen")
_UP, _RUNNING = 0x1, 0x40  # IFF_UP, IFF_RUNNING

#: What names of interrupts speak of that serve no receive queue.
_NO_QUEUE: Final = re.compile(
    r"async|config|control|ctrl|mgmn?t|mailbox|misc|adminq|cmd|fdir|oicr|ptp|irdma|"
    r"output|-tx(?!-?rx)|xmit",
    re.IGNORECASE,
)


def _tried(ask: Callable[[], _T | Unknown]) -> _T | Unknown:
    """Return what a driver answers, or why not."""
    try:
        return ask()
    except PermissionError:
        return NEEDS_ROOT
    except OSError as error:
        silent = error.errno in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENODEV)
        return DRIVER_SILENT if silent else Unknown(error.strerror or str(error))
    except Exception:  # noqa: BLE001 (pyroute2 raises many)
        return DRIVER_SILENT


class _Watch:
    """The losses of an interface from now on."""

    def __init__(self, index: int, name: str, driver: str) -> None:
        self._began = time.monotonic()
        self._device = Device(index, name, driver)

    def losses(self) -> Losses:
        """Return what was lost before and since, once it has been watched for long enough."""
        time.sleep(max(0.0, self._began + WATCHED_S - time.monotonic()))
        link, driver = self._device.before()
        now = self._device.read()
        seconds = time.monotonic() - self._began
        self._device.close()
        before = {name: count for name, count in {**link, **driver}.items() if count}
        growing = {name: count for name, count in {**now.link, **now.ethtool}.items() if count}
        return Losses(before, growing, seconds)


# ------------------------------------------------------------------ netlink


@contextlib.contextmanager
def _netlink() -> Iterator[Any]:
    from pyroute2 import IPRoute

    with IPRoute() as netlink:
        yield netlink


@outside_event_loops
def names() -> list[str]:
    """Return the names of the interfaces, in the order of their numbers."""
    with _netlink() as netlink:
        links = sorted(netlink.get_links(), key=lambda link: int(link["index"]))
        return [str(link.get("IFLA_IFNAME")) for link in links]


@outside_event_loops
def gather_interfaces(wanted: Sequence[str], root: Path = ROOT) -> list[Interface]:
    """Look at interfaces, for half a second.

    Parameters
    ----------
    wanted : sequence of str
        Their names.
    root : Path
        Where ``proc`` and ``sys`` are.

    Raises
    ------
    LookupError
        If there is none of a name.
    """
    with _netlink() as netlink:
        links = {str(link.get("IFLA_IFNAME")): link for link in netlink.get_links()}
        routes = {route.get("RTA_OIF") for route in netlink.get_default_routes()}
    for name in wanted:
        if name not in links:
            raise LookupError(name)
    watches = [
        _Watch(int(links[name]["index"]), name, _ethtool.driver_name(name)) for name in wanted
    ]
    found = [_look(name, links, routes, root) for name in wanted]
    return [
        replace(interface, losses=watch.losses())
        for interface, watch in zip(found, watches, strict=True)
    ]


def _look(name: str, links: dict[str, Any], routes: set[int], root: Path) -> Interface:
    link = links[name]
    index = int(link["index"])
    flags = int(link["flags"])
    settings = _settings(name)
    bus = root / "sys/bus/pci/devices" / (_ethtool.bus_address(name) or "none")
    on_bus = bus.is_dir()
    return Interface(
        name=name,
        driver=_ethtool.driver_name(name),
        kind=_kind(link),
        up=bool(flags & _UP),
        carrier=bool(flags & _RUNNING),
        mtu=int(link.get("IFLA_MTU")),
        members=tuple(n for n, other in links.items() if other.get("IFLA_MASTER") == index),
        speed=settings.speed,
        xdp=_xdp_features(index),
        programs=programs_of(link),
        rings=settings.rings,
        queues=settings.queues,
        hashes=_tried(lambda: {f: _ethtool.hash_fields(name, f) for f in ("udp4", "udp6")}),
        table=_tried(lambda: _ethtool.hash_table(name)),
        offloads=settings.offloads,
        fixed=settings.fixed,
        coalescing=settings.coalescing,
        pause=_tried(lambda: Pause(*_ethtool.pause_frames(name))),
        node=number(bus / "numa_node") if on_bus else None,
        irqs=_tried(lambda: _irqs(name, index, bus, root)) if on_bus else None,
        pcie=_pcie(bus) if on_bus else None,
        vlans=tuple(sorted(_vlan_ids(index, links))),
        rp_filter=_rp_filter(name, root),
        default_route=index in routes,
        igmp=_igmp(name, root),
    )


def _kind(link: Any) -> str:
    info = link.get("IFLA_LINKINFO")
    return str(info.get_attr("IFLA_INFO_KIND") or "") if info is not None else ""


def _vlan_ids(index: int, links: dict[str, Any]) -> Iterator[int]:
    for other in links.values():
        if other.get("IFLA_LINK") == index and _kind(other) == "vlan":
            data = other.get("IFLA_LINKINFO").get_attr("IFLA_INFO_DATA")
            if data is not None and (vlan := data.get_attr("IFLA_VLAN_ID")) is not None:
                yield int(vlan)


def _xdp_features(index: int) -> _netdev.XdpFeatures | Unknown:
    found = _tried(lambda: _netdev.xdp_features(index))
    return KERNEL_SILENT if found is None else found


# ------------------------------------------------------------------ ethtool


@dataclass(frozen=True)
class _Settings:
    """What the driver tells through pyroute2's ethtool."""

    rings: Rings | Unknown
    queues: Queues | Unknown
    coalescing: Coalescing | Unknown
    speed: int | Unknown
    offloads: dict[str, bool] | Unknown
    fixed: frozenset[str]


def _settings(name: str) -> _Settings:
    from pyroute2 import Ethtool

    with Ethtool() as ethtool:
        features = _tried(lambda: ethtool.get_features(name).features)
        there = {} if isinstance(features, Unknown) else features
        return _Settings(
            rings=_tried(lambda: _rings(ethtool.get_rings(name))),
            queues=_tried(lambda: _queues(ethtool.get_channels(name))),
            coalescing=_tried(lambda: _coalescing(ethtool.get_coalesce(name))),
            speed=_tried(lambda: _speed(ethtool.get_link_mode(name))),
            offloads=features
            if isinstance(features, Unknown)
            else {what: bool(f.enable) for what, f in there.items() if f.enable or f.available},
            fixed=frozenset(what for what, f in there.items() if f.enable and not f.available),
        )


def _given(*values: Any) -> None:
    if any(value is None for value in values):
        raise OSError(errno.EOPNOTSUPP, "not told")


def _rings(answer: Any) -> Rings:
    _given(answer.rx, answer.rx_max)
    return Rings(int(answer.rx), int(answer.rx_max))


def _queues(answer: Any) -> Queues:
    n = int(answer.combined_count or 0) + int(answer.rx_count or 0)
    if not n:
        raise OSError(errno.EOPNOTSUPP, "not told")
    if answer.combined_count:
        return Queues(n, int(answer.max_combined or 0))
    return Queues(n, int(answer.max_rx or 0), combined=False)


def _coalescing(answer: Any) -> Coalescing:
    return Coalescing(
        int(answer["rx_coalesce_usecs"]),
        int(answer["rx_max_coalesced_frames"]),
        bool(answer["use_adaptive_rx_coalesce"]),
    )


def _speed(answer: Any) -> int:
    _given(answer.speed)
    speed = int(answer.speed)
    if not 0 < speed < 1 << 31:
        raise OSError(errno.EOPNOTSUPP, "not told")
    return speed


# ------------------------------------------------------------------ sysfs and procfs


def _irqs(name: str, index: int, bus: Path, root: Path) -> tuple[Irq, ...] | Unknown:
    """Return the interrupts of the receive queues.

    The kernel tells them since 6.8, if the driver does; else they are those of the device whose
    names do not speak of something else, or its only one.
    """
    numbers = set(_netdev.queue_interrupts(index))
    if not numbers:
        folder = bus / "msi_irqs"
        everything = [int(file.name) for file in folder.iterdir()] if folder.is_dir() else []
        actions = {irq: text(root / f"sys/kernel/irq/{irq}/actions") for irq in everything}
        used = {irq: action for irq, action in actions.items() if isinstance(action, str)}
        numbers = {irq for irq, action in used.items() if serves_queue(action, name)}
        if len(used) == 1:
            numbers = set(used)
    if not numbers:
        return DRIVER_SILENT
    found = []
    for irq in sorted(numbers):
        listed = text(root / f"proc/irq/{irq}/effective_affinity_list")
        if not listed or isinstance(listed, Unknown):
            listed = text(root / f"proc/irq/{irq}/smp_affinity_list")
        if isinstance(listed, Unknown):
            return listed
        found.append(Irq(irq, cpus(listed)))
    return tuple(found)


def serves_queue(action: str, interface: str) -> bool:
    """Return whether an interrupt is one of a receive queue, by its name."""
    # Who is called like the interface, and nothing else, tells of the link.
    rest = action.replace(interface, "")
    return bool(rest) and not _NO_QUEUE.search(rest)


def _pcie(bus: Path) -> Pcie | Unknown:
    read = [
        text(bus / f"{which}_link_{what}")
        for what in ("width", "speed")
        for which in ("current", "max")
    ]
    try:
        width, max_width = (int(str(fact)) for fact in read[:2])
        now, most = (float(str(fact).split()[0]) for fact in read[2:])
    except ValueError:  # "Unknown", or no such file
        return _NO_SLOT
    # A device inside another chip says 0 or 255 lanes.
    if not 0 < width < 255:
        return _NO_SLOT
    return Pcie(width, max_width, now, most)


def _rp_filter(name: str, root: Path) -> int | Unknown:
    folder = root / "proc/sys/net/ipv4/conf"
    values = [number(folder / which / "rp_filter") for which in ("all", name)]
    for value in values:
        if isinstance(value, Unknown):
            return value
    return max(value for value in values if isinstance(value, int))


def _igmp(name: str, root: Path) -> int | Unknown:
    # /proc/net is that of the process, and another thread may be somewhere else.
    table = text(root / "proc/thread-self/net/igmp")
    if isinstance(table, Unknown):
        return table
    found = re.search(rf"^\d+\s+{re.escape(name)}\s*:\s*\d+\s+V(\d)", table, re.MULTILINE)
    return int(found[1]) if found else Unknown("no group is joined there")
