"""Judgements on what stands between an interface and AF_XDP: facts in, findings out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from .._drivers import MTU_OF_ONE_FRAME, NATIVE, SAFE_MTU, why_no_zero_copy
from ._facts import NotKnownError, Unknown, need
from ._findings import Check, Finding, costs, good, loses, unknown
from ._judge_interface import Case

#: What our own programs are called.
_OURS: Final = frozenset({"steer", "steer_old"})
_MULTI_BUFFER: Final = (6, 6)


def _native_mode(case: Case) -> bool:
    """Return whether the driver runs programs itself.

    Raises
    ------
    NotKnownError
        If neither the kernel nor the table of drivers tells.
    """
    interface = case.interface
    if not isinstance(interface.xdp, Unknown):
        return interface.xdp.native
    if interface.driver in NATIVE:
        return case.machine.kernel >= NATIVE[interface.driver].since
    raise NotKnownError(interface.xdp)


def _driver(case: Case) -> Iterator[Finding]:
    interface = case.interface
    driver = interface.driver or "a driver without a name"
    if interface.kind in ("bond", "team"):
        listed = ", ".join(interface.members) or "none so far"
        yield loses(
            f"it is a {interface.kind}",
            f"in native mode AF_XDP receives nothing there; name a member instead: {listed}",
        )
    elif _native_mode(case):
        yield good(f"{driver} runs XDP programs itself (native mode)")
    else:
        yield costs(
            f"{driver} does not run XDP programs",
            "generic mode is left, in which the kernel copies each packet first",
        )


def _mtu(case: Case) -> Iterator[Finding]:
    interface, kernel = case.interface, case.machine.kernel
    mtu = interface.mtu
    if mtu > MTU_OF_ONE_FRAME and kernel < _MULTI_BUFFER:
        yield costs(
            f"MTU {mtu}: a packet takes several frames, and Linux {case.machine.release} is too "
            "old for that",
            f"AF_XDP will be refused; it needs Linux 6.6, or an MTU of {MTU_OF_ONE_FRAME}",
        )
    elif not _native_mode(case):
        yield good(f"MTU {mtu}: generic mode takes it")
    elif _multi_buffer(case):
        yield good(f"MTU {mtu}: the driver takes packets in several buffers")
    elif mtu <= (limit := _largest_mtu(interface.driver)):
        yield good(f"MTU {mtu}: the driver takes it in one buffer")
    else:
        yield costs(
            f"MTU {mtu}: {interface.driver} takes {limit} in native mode",
            "generic mode is left, in which the kernel copies each packet first; a smaller MTU "
            "helps only if senders keep to it",
        )


def _largest_mtu(driver: str) -> int:
    return NATIVE[driver].max_mtu if driver in NATIVE else SAFE_MTU


def _multi_buffer(case: Case) -> bool:
    interface = case.interface
    if not isinstance(interface.xdp, Unknown):
        return interface.xdp.multi_buffer
    since = NATIVE[interface.driver].multi_buffer if interface.driver in NATIVE else None
    return since is not None and case.machine.kernel >= since


def _zero_copy(case: Case) -> Iterator[Finding]:
    interface = case.interface
    why = why_no_zero_copy(interface.driver, case.machine.kernel, interface.mtu)
    if not why and not isinstance(interface.xdp, Unknown) and not interface.xdp.zero_copy:
        why = "the driver says that it does not have it now"
    if why:
        yield costs("packets are copied once more", why)
    else:
        yield good(f"zero-copy is tried with {interface.driver}")


def _programs(case: Case) -> Iterator[Finding]:
    interface = case.interface
    programs = need(interface.programs)
    for program in programs:
        what = f"program {program.number} is attached, in {program.mode} mode"
        if isinstance(program.name, Unknown):
            yield unknown(f"{what}; what it is: {program.name.why}")
            continue
        what = f"program {program.number} ({program.name or 'without a name'}) is attached, in "
        what += f"{program.mode} mode"
        held = not isinstance(program.holders, Unknown) and program.holders
        if held:
            what += f", by {', '.join(held)}"
        if program.name in _OURS:
            yield good(f"{what}: xdpspead receives here")
            continue
        yield loses(
            what,
            "it has each packet first, and AF_XDP readers are refused; "
            + ("end that process" if held else "take it off, if nobody needs it:"),
            *([] if held else [f"ip link set dev {interface.name} xdp off"]),
        )
    if not programs:
        yield good("no other XDP program is attached")


def _offload(case: Case, name: str) -> bool:
    return need(case.interface.offloads).get(name, False)


def _lro(case: Case) -> Iterator[Finding]:
    words = {"rx-lro": "lro", "rx-gro-hw": "rx-gro-hw"}
    merging = [name for name in words if _offload(case, name)]
    fixed = [name for name in merging if name in case.interface.fixed]
    if not merging:
        yield good("the card does not merge packets (LRO, rx-gro-hw)")
        return
    who = "; it cannot be switched off here: in a guest, ask its host" if fixed else ""
    yield costs(
        f"the card merges packets ({', '.join(words[name] for name in merging)})",
        f"many drivers refuse native mode then{who}",
        *(
            f"ethtool -K {case.interface.name} {words[name]} off"
            for name in merging
            if name not in fixed
        ),
    )


def _gro_forwarding(case: Case) -> Iterator[Finding]:
    names = ("rx-udp-gro-forwarding", "rx-gro-list")
    merging = [name for name in names if _offload(case, name)]
    if not merging:
        yield good("the kernel does not merge UDP packets (rx-udp-gro-forwarding)")
        return
    what = f"the kernel merges UDP packets ({', '.join(merging)})"
    if _native_mode(case):
        yield good(f"{what}, but after native mode has seen them")
        return
    yield loses(
        what,
        "generic mode gets several datagrams in one, which fit no frame",
        *(f"ethtool -K {case.interface.name} {name} off" for name in merging),
    )


def _vlan(case: Case) -> Iterator[Finding]:
    stripped = _offload(case, "rx-vlan-hw-parse")
    filtered = _offload(case, "rx-vlan-filter")
    tags = "stripped by the card: streams of several VLANs look alike" if stripped else "kept"
    if not filtered:
        yield good(f"VLAN tags are {tags}")
        return
    vlans = case.interface.vlans
    listed = f"of VLAN {', '.join(map(str, vlans))}" if vlans else "without a tag"
    yield good(f"VLAN tags are {tags}; only packets {listed} are let in (rx-vlan-filter)")


#: By name, in the order in which they are shown.
XDP_CHECKS: Final[Mapping[str, Check[Case]]] = {
    "driver": _driver,
    "mtu": _mtu,
    "zero-copy": _zero_copy,
    "programs": _programs,
    "lro": _lro,
    "gro-forwarding": _gro_forwarding,
    "vlan": _vlan,
}
