"""Which guests there are, and what is tested in each."""

from __future__ import annotations

from dataclasses import dataclass

from vm.kernels import Kernel

NEWEST_SMALL = Kernel("newest-cloud", "trixie-backports", "cloud-amd64")
NEWEST = Kernel("newest", "trixie-backports", "amd64")
LINUX_6_18 = Kernel("6.18", "trixie-backports", "amd64", series="6.18.")
LINUX_6_12 = Kernel("6.12-cloud", "bookworm-backports", "cloud-amd64")
LINUX_6_1 = Kernel("6.1-cloud", "bookworm-security", "cloud-amd64")
LINUX_5_10 = Kernel("5.10-cloud", "bullseye-security", "cloud-amd64")

#: Without a platform IOMMU in between, virtio_net refuses zero-copy.
_VIRTIO_IOMMU = "virtio-net-pci,iommu_platform=on,disable-legacy=on"
_VIRTIO = "virtio-net-pci"

#: Tests on veth pairs that are worth their time under an old kernel.
_SUITE = "suite:multicast_group+or+junk+or+kill_9_leaves_no_program_and"


@dataclass(frozen=True)
class Guest:
    """A machine to boot.

    Attributes
    ----------
    name : str
        By which it is chosen.
    kernel : Kernel
        What it boots.
    card : str
        The receiving card, as QEMU's device option.
    device : str
        What QEMU has to be able to emulate, so that a new one is found if this machine's is older.
    cases : tuple of str
        Names from `vm.cases`, and after a colon what they are given.
    """

    name: str
    kernel: Kernel
    card: str
    cases: tuple[str, ...]
    device: str = "virtio-net-pci"

    @property
    def cards(self) -> list[str]:
        """Both cards, as QEMU's device options; it is the receiving one that matters."""
        return [self.card, _VIRTIO]


GUESTS = (
    Guest(
        "virtio",
        NEWEST_SMALL,
        _VIRTIO_IOMMU,
        (
            "features",
            "receive:native,zc",
            "zero_copy",
            "copy",
            "large_frames:3502",
            "insisted_large_frames:3502",
            "jumbo:native",
            "killed:2",
            "busy_poll:zc",
        ),
    ),
    Guest(
        "virtio-no-iommu",
        NEWEST_SMALL,
        _VIRTIO,
        ("features", "receive:native,copy", "refused:EINVAL"),
    ),
    Guest(
        "virtio-6.12",
        LINUX_6_12,
        _VIRTIO_IOMMU,
        ("features", "receive:native,copy", "refused:EOPNOTSUPP", "jumbo:native"),
        # Under QEMU 7.2 a third of the boots of this kernel crash; what has igb is new enough.
        device="igb",
    ),
    Guest(
        "virtio-6.1",
        LINUX_6_1,
        _VIRTIO_IOMMU,
        (
            "features:multi_buffer",
            "receive:native,copy",
            "refused:EOPNOTSUPP",
            "copy",
            "jumbo_refused",
            "busy_poll",
            _SUITE,
        ),
    ),
    Guest(
        "virtio-5.10",
        LINUX_5_10,
        _VIRTIO_IOMMU,
        (
            "features:kernel,multi_buffer,udp_xdp",
            "receive:native,copy",
            "refused:EOPNOTSUPP",
            "copy",
            "jumbo_refused",
            "busy_poll_refused",
        ),
    ),
    Guest(
        "igb",
        NEWEST,
        "igb",
        (
            "features",
            "receive:native,zc",
            "zero_copy",
            "copy",
            "large_frames:3046",
            "native_refused:4000",
            "link",
            "killed:2",
        ),
        device="igb",
    ),
    Guest(
        "igb-6.18",
        LINUX_6_18,
        "igb",
        ("features", "receive:native,zc", "zero_copy", "copy", "link", "killed:2"),
        device="igb",
    ),
    Guest(
        "e1000e",
        LINUX_6_18,
        "e1000e",
        ("features", "receive:generic,copy", "no_native", "jumbo:generic"),
    ),
)
