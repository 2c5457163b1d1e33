"""What drivers can do, from which kernel on; and where zero-copy is tried when nobody insists.

In zero-copy the device writes packets straight into the packet memory. Drivers that can, but whose
first versions lose packets or crash, do so without an error; so it is tried only where something
speaks for it. Where an entry says no, packets are copied, which any driver can do.

Everywhere a frame is a page (4096 bytes), because some drivers cut packets short in smaller ones,
and frames are there before the socket is bound, because some never look again. Packets that take
several frames are copied: only a few drivers have both, and some lose them without a count.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple, TypeAlias

#: Major and minor number.
Kernel: TypeAlias = tuple[int, int]

#: Packets of a larger MTU do not fit a frame: 4096 bytes without the 256 that the kernel keeps in
#: front of them, and without Ethernet header and two VLAN tags.
MTU_OF_ONE_FRAME: Final = 4096 - 256 - 22
#: Up to this one they surely do, whatever drivers add in front.
SAFE_MTU: Final = 3000


class ZeroCopy(NamedTuple):
    """What is known of zero-copy with a driver.

    Attributes
    ----------
    since : Kernel
        First kernel with which it is tried.
    why : str
        Why that one, and what else there is to know.
    source : str
        Where that comes from.
    max_mtu : int
        Largest MTU of which packets are known to fit.
    broken : tuple of Kernel
        Later kernels with which it is not tried.
    loses_larger : bool
        Whether packets of a larger MTU are lost and nobody counts them, so that not even who
        insists gets it.
    if_refused : str
        What may be missing if the driver refuses it all the same.
    """

    since: Kernel
    why: str
    source: str
    max_mtu: int = SAFE_MTU
    broken: tuple[Kernel, ...] = ()
    loses_larger: bool = False
    if_refused: str = ""


_TABLE: Final = "driver table of the eBPF documentation (ebpf-docs, Linux 6.19)"

#: By the name that ``ethtool -i`` shows.
ZERO_COPY: Final[dict[str, ZeroCopy]] = {
    "fsl_dpaa2_eth": ZeroCopy((6, 2), "the first with it", _TABLE),
    "gve": ZeroCopy(
        (6, 4),
        "the first with it, with queues of the format GQI-QPL; the kernel tells which it is",
        _TABLE,
        max_mtu=2032,
    ),
    "i40e": ZeroCopy(
        (5, 12),
        "5.11 has a wake-up bug that keeps cores busy",
        "xdp-newbies, 'i40e: softirq at 100 % idle'",
        max_mtu=3046,
    ),
    "ice": ZeroCopy(
        (6, 12),
        "6.1, 6.6 and 6.11 have crashed when a socket was closed",
        "commit 'ice: remove af_xdp_zc_qps bitmap'; intel/ethernet-linux-ice, issues 23 and 61",
        max_mtu=3046,
    ),
    "icssg-prueth": ZeroCopy((6, 19), "the first with it", _TABLE),
    "idpf": ZeroCopy((6, 18), "the first with it", _TABLE),
    "igb": ZeroCopy(
        (6, 14),
        "the first with it; in frames of 2048 bytes it cuts packets short",
        "measured in a virtual machine on 6.18 and 7.3",
        max_mtu=3046,
    ),
    "igc": ZeroCopy((5, 14), "the first with it", _TABLE, max_mtu=1500),
    "ixgbe": ZeroCopy((4, 20), "the first with it", _TABLE, max_mtu=3050),
    "mlx5_core": ZeroCopy(
        (6, 1),
        "earlier ones number the queues otherwise, and 6.4 is not trusted in native mode",
        "xdp-newbies on commit 3db4c85cde7a; Firedancer's list of what its test beds bear out",
        max_mtu=3498,
        broken=((6, 4),),
    ),
    "nfp": ZeroCopy((5, 18), "the first with it", _TABLE),
    "st_gmac": ZeroCopy((5, 13), "the first with it", _TABLE, max_mtu=1500),
    "st_xgmac": ZeroCopy((5, 13), "the first with it", _TABLE, max_mtu=1500),
    "tsnep": ZeroCopy((6, 4), "the first with it", _TABLE),
    "virtio_net": ZeroCopy(
        (6, 13),
        "6.11 and 6.12 have part of it and refuse; larger packets are lost without a count",
        "measured in a virtual machine on 6.12, 6.18 and 7.3",
        max_mtu=3502,
        loses_larger=True,
        if_refused="in a virtual machine it needs iommu_platform=on from the host",
    ),
}


class Native(NamedTuple):
    """What is known of programs in native mode with a driver.

    Attributes
    ----------
    since : Kernel
        First kernel with which the driver runs them.
    multi_buffer : Kernel or None
        First with which it takes packets in several buffers; None if there is none so far.
    max_mtu : int
        Largest MTU without that.
    """

    since: Kernel
    multi_buffer: Kernel | None = None
    max_mtu: int = SAFE_MTU


#: By the name that ``ethtool -i`` shows, and from the same table. For kernels that do not tell
#: (before 6.3), and for people who choose.
NATIVE: Final[dict[str, Native]] = {
    "atlantic": Native((5, 19), (5, 19)),
    "bnxt_en": Native((4, 11), (5, 19), 3502),
    "ena": Native((5, 6), None, 3498),
    "fbnic": Native((6, 18), (6, 18)),
    "fsl_dpaa2_eth": Native((5, 0)),
    "gve": Native((6, 4), None, 2032),
    "hv_netvsc": Native((5, 6)),
    "i40e": Native((4, 13), (6, 4), 3046),
    "ice": Native((5, 5), (6, 3), 3046),
    "icssg-prueth": Native((6, 15)),
    "idpf": Native((6, 18)),
    "igb": Native((5, 10), None, 3046),
    "igc": Native((5, 13), None, 1500),
    "ionic": Native((6, 9), (6, 9)),
    "ixgbe": Native((4, 12), None, 3050),
    "mana": Native((5, 17)),
    "mlx4_en": Native((4, 8)),
    "mlx5_core": Native((4, 9), (6, 4), 3498),
    "nfp": Native((4, 10)),
    "qede": Native((4, 10)),
    "sfc": Native((5, 5)),
    "st_gmac": Native((5, 13), None, 1500),
    "tsnep": Native((6, 3)),
    "veth": Native((4, 19), (5, 18), 3520),
    "virtio_net": Native((4, 10), (6, 3), 3506),
    "vmxnet3": Native((6, 6)),
}

#: Those whose receive-flow rules know no UDP ports: they match Ethernet types and addresses only
#: (``igb_ethtool.c``, ``igc_ethtool.c``).
RULES_WITHOUT_PORTS: Final = frozenset({"igb", "igc"})


def kernel_version(release: str) -> Kernel:
    """Return the version in the name of a release (``uname -r``); (0, 0) if there is none."""
    found = re.match(r"(\d+)\.(\d+)", release)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def why_no_zero_copy(driver: str, kernel: Kernel, mtu: int) -> str:
    """Return why zero-copy is not tried; empty if it is.

    Parameters
    ----------
    driver : str
        Name of the driver, empty if it is not known.
    kernel : Kernel
        The running kernel.
    mtu : int
        MTU of the interface.
    """
    known = ZERO_COPY.get(driver)
    if known is None:
        name = f"driver {driver}" if driver else "the driver"
        return f"{name} is not known to have it"
    if kernel < known.since:
        return f"with driver {driver} it needs Linux {_text(known.since)}: {known.why}"
    if kernel in known.broken:
        return f"with driver {driver} it is not used on Linux {_text(kernel)}: {known.why}"
    if mtu > known.max_mtu:
        return f"with driver {driver} it needs an MTU of at most {known.max_mtu}, which is {mtu}"
    return ""


def why_not_even_demanded(driver: str, mtu: int) -> str:
    """Return why zero-copy cannot be had even if somebody insists; empty if it may be tried.

    Parameters
    ----------
    driver, mtu
        As for `why_no_zero_copy`.
    """
    known = ZERO_COPY.get(driver)
    if known is None or not known.loses_larger or mtu <= known.max_mtu:
        return ""
    return (
        f"with driver {driver} packets of an MTU above {known.max_mtu} are lost in zero-copy "
        f"without being counted"
    )


def hint_if_refused(driver: str) -> str:
    """Return what may be missing if a driver of the table refuses; empty if that is not known."""
    known = ZERO_COPY.get(driver)
    return known.if_refused if known is not None else ""


def _text(kernel: Kernel) -> str:
    return f"{kernel[0]}.{kernel[1]}"
