"""What this build of xdpspead and this machine can do, and how to get the rest.

Nothing is looked at before it is asked for, and nothing here needs a privilege: a missing one is
an answer.
"""

from __future__ import annotations

import errno
import os
import platform
import re
import resource
import socket
import struct
import sys
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from . import _bpf
from ._capabilities import CAP_BPF, CAP_IPC_LOCK, CAP_NET_ADMIN, CAP_NET_RAW, CAP_SYS_ADMIN
from ._capabilities import effective_capabilities as _effective_capabilities
from ._helper import ask_helper, helper_socket

__all__ = ["Feature", "Features", "features"]

_KERNEL_FLOOR = (5, 11)
_KERNEL_MULTI_BUFFER = (6, 6)

_WIDTH = 100

_AF_XDP = 44
_BPF_MAP_CREATE = 0
_BPF_MAP_TYPE_XSKMAP = 17


# Always all of them, because granting replaces what was granted before.
_HOW_TO_GRANT = (
    "Run as root, or grant CAP_NET_RAW, CAP_NET_ADMIN and CAP_BPF to the service (systemd: "
    "AmbientCapabilities=CAP_NET_RAW CAP_NET_ADMIN CAP_BPF) or to the interpreter "
    "(sudo setcap cap_net_raw,cap_net_admin,cap_bpf+ep {interpreter})."
)
_HOW_TO_REBUILD = "then build xdpspead from source again."


@dataclass(frozen=True)
class Feature:
    """One thing that works here, or does not.

    Attributes
    ----------
    name : str
        Its name, which is also the attribute of :class:`Features`.
    available : bool
        Whether it works. A feature used as a condition means this.
    detail : str
        What was found.
    remedy : str
        What to install or grant to get it; empty if it is there.
    """

    name: str
    available: bool
    detail: str
    remedy: str = ""

    def __bool__(self) -> bool:
        return self.available

    def __str__(self) -> str:
        text = f"{self.name}: {'yes' if self else 'no'} ({self.detail})"
        return f"{text}. {self.remedy}" if self.remedy else text


class Features:
    """What this build and this machine can do, found out at each question.

    Attributes
    ----------
    xdp : Feature
        The AF_XDP reader, which is left out of a build when what it needs is not there.
    kernel, multi_buffer, af_xdp, bpf, net_raw, net_admin, cap_bpf, memlock : Feature
        What the machine, its kernel and the privileges of this thread allow.
    helper : Feature
        Whether ``xdpspead-helper`` runs here and this user may receive something through it, which
        takes no privilege.
    udp_xdp : Feature
        All of it together: whether :meth:`.Stream.add_udp_xdp_reader` can work.
    pcap, pcap_gzip, pcap_zstd : Feature
        Capture files (:meth:`.Stream.add_udp_pcap_file_reader`), and compressed ones, which are
        left out of a build when the libraries that they need are not there.
    """

    @property
    def xdp(self) -> Feature:
        """Whether this build has the AF_XDP reader."""
        if _build_has_xdp():
            detail = "built with the AF_XDP reader"
            if _libbpf_is_there():
                return Feature("xdp", True, detail)
            return Feature(
                "xdp",
                False,
                f"{detail}, but libbpf is missing now, which loads its BPF program",
                "Install it (Debian, Ubuntu: apt install libbpf1; Fedora: dnf install libbpf).",
            )
        return Feature(
            "xdp",
            False,
            "built without the AF_XDP reader, because clang or libbpf was missing",
            "Install clang and libbpf (Debian, Ubuntu: apt install clang libbpf-dev pkg-config; "
            f"Fedora: dnf install clang libbpf-devel pkgconf-pkg-config), {_HOW_TO_REBUILD}",
        )

    @property
    def pcap(self) -> Feature:
        """Whether this build can read capture files."""
        return _library("pcap", "capture files", "libpcap", "libpcap")

    @property
    def pcap_gzip(self) -> Feature:
        """Whether this build can read capture files that gzip compressed."""
        return _library("pcap_gzip", "capture files compressed with gzip", "zlib1g", "zlib")

    @property
    def pcap_zstd(self) -> Feature:
        """Whether this build can read capture files that Zstandard compressed."""
        return _library(
            "pcap_zstd", "capture files compressed with Zstandard", "libzstd", "libzstd"
        )

    @property
    def kernel(self) -> Feature:
        """Whether the kernel is new enough for the AF_XDP reader."""
        return _kernel_feature("kernel", _KERNEL_FLOOR, "the AF_XDP reader")

    @property
    def multi_buffer(self) -> Feature:
        """Whether AF_XDP sockets take packets larger than a page (jumbo frames)."""
        return _kernel_feature("multi_buffer", _KERNEL_MULTI_BUFFER, "jumbo frames through AF_XDP")

    @property
    def af_xdp(self) -> Feature:
        """Whether this thread can create an AF_XDP socket."""
        number = _try_af_xdp_socket()
        if number == 0:
            return Feature("af_xdp", True, "an AF_XDP socket can be created")
        detail = f"creating an AF_XDP socket failed: {os.strerror(number)}"
        if number == errno.EPERM:
            return Feature("af_xdp", False, detail, _how_to_grant())
        return Feature("af_xdp", False, detail, "Use a kernel that has CONFIG_XDP_SOCKETS.")

    @property
    def bpf(self) -> Feature:
        """Whether this thread can create the maps of an XDP program."""
        number = _try_xskmap()
        if number == 0:
            return Feature("bpf", True, "an XSKMAP can be created")
        detail = f"creating an XSKMAP failed: {os.strerror(number)}"
        if number == errno.EPERM:
            return Feature("bpf", False, detail, _how_to_grant())
        return Feature(
            "bpf",
            False,
            detail,
            "Use a kernel that has CONFIG_BPF_SYSCALL and CONFIG_XDP_SOCKETS; in a container, allow"
            " the system call bpf().",
        )

    @property
    def net_raw(self) -> Feature:
        """Whether this thread has CAP_NET_RAW."""
        return _capability("net_raw", "CAP_NET_RAW", CAP_NET_RAW)

    @property
    def net_admin(self) -> Feature:
        """Whether this thread has CAP_NET_ADMIN."""
        return _capability("net_admin", "CAP_NET_ADMIN", CAP_NET_ADMIN)

    @property
    def cap_bpf(self) -> Feature:
        """Whether this thread has CAP_BPF, or CAP_SYS_ADMIN, which includes it."""
        return _capability("cap_bpf", "CAP_BPF", CAP_BPF, CAP_SYS_ADMIN)

    @property
    def memlock(self) -> Feature:
        """Whether packet buffers of the default size may be locked in memory."""
        soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        if soft == resource.RLIM_INFINITY:
            return Feature("memlock", True, "memory locking is not limited")
        detail = f"at most {_mebibytes(soft)} may be locked (RLIMIT_MEMLOCK)"
        if _has_capability(CAP_IPC_LOCK):
            return Feature("memlock", True, f"{detail}, which CAP_IPC_LOCK lifts")
        needed = _default_buffer_bytes()
        if soft >= needed:
            return Feature("memlock", True, f"{detail}, a reader takes {_mebibytes(needed)}")
        return Feature(
            "memlock",
            False,
            f"{detail}, but a reader takes {_mebibytes(needed)}",
            "Raise the limit (ulimit -l unlimited; systemd: LimitMEMLOCK=infinity; "
            "/etc/security/limits.conf: memlock), or grant CAP_IPC_LOCK.",
        )

    @property
    def helper(self) -> Feature:
        """Whether this user can receive through ``xdpspead-helper``."""
        path = helper_socket()
        why_not = ask_helper(path)
        if not why_not:
            return Feature("helper", True, f"xdpspead-helper serves this user at {path}")
        return Feature(
            "helper",
            False,
            why_not,
            "Only receivers without privileges need it: see the manual, 'Unprivileged receivers'.",
        )

    @property
    def udp_xdp(self) -> Feature:
        """Whether a stream can receive through AF_XDP."""
        # Capabilities are left out: what they are needed for is tried.
        needed = (self.xdp, self.kernel, self.af_xdp, self.bpf, self.memlock)
        missing = [feature for feature in needed if not feature]
        if not missing:
            return Feature("udp_xdp", True, "streams can be received through AF_XDP")
        if self.xdp and self.kernel and self.helper:
            detail = "streams can be received through AF_XDP, by xdpspead-helper"
            return Feature("udp_xdp", True, detail)
        return Feature(
            "udp_xdp",
            False,
            "; ".join(feature.detail for feature in missing),
            # The same privilege may mend two of them.
            " ".join(dict.fromkeys(feature.remedy for feature in missing)),
        )

    def build(self) -> Mapping[str, Feature]:
        """Return the features of this build by name."""
        return _by_name(self.xdp, self.pcap, self.pcap_gzip, self.pcap_zstd)

    def machine(self) -> Mapping[str, Feature]:
        """Return the features of this machine and of the privileges of this thread by name."""
        return _by_name(
            self.kernel,
            self.multi_buffer,
            self.af_xdp,
            self.bpf,
            self.net_raw,
            self.net_admin,
            self.cap_bpf,
            self.memlock,
            self.helper,
        )

    def readers(self) -> Mapping[str, Feature]:
        """Return by name which kinds of readers a stream can have here."""
        return _by_name(
            Feature("buffer", True, "streams can be read from memory"),
            Feature("udp", True, "streams can be received from UDP sockets"),
            self.udp_xdp,
            self.pcap,
        )

    def __repr__(self) -> str:
        everything = {**self.build(), **self.machine(), **self.readers()}
        listing = " ".join(
            f"{name}={'yes' if feature else 'no'}" for name, feature in everything.items()
        )
        return f"<xdpspead.features {listing}>"

    def __str__(self) -> str:
        sections = {
            "This build": self.build(),
            "This machine": self.machine(),
            "Streams": self.readers(),
        }
        return "\n\n".join(
            "\n".join([title, *map(_line, section.values())]) for title, section in sections.items()
        )


def _line(feature: Feature) -> str:
    found = f"{feature.name:<13} {'yes' if feature else 'no':<4} {feature.detail}"
    return textwrap.fill(
        f"{found}. {feature.remedy}" if feature.remedy else found,
        width=_WIDTH,
        initial_indent=" " * 2,
        subsequent_indent=" " * 21,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _by_name(*found: Feature) -> Mapping[str, Feature]:
    return MappingProxyType({feature.name: feature for feature in found})


def _build_has_xdp() -> bool:
    from xdpspead._core import has_xdp

    return has_xdp()


def _build_has_library(name: str) -> bool:
    from xdpspead import _core

    return {"pcap": _core.has_pcap, "pcap_gzip": _core.has_gzip, "pcap_zstd": _core.has_zstd}[
        name
    ]()


def _libbpf_is_there() -> bool:
    from xdpspead import _core

    return _is_there(_core.find_libbpf)


def _libpcap_is_there() -> bool:
    from xdpspead import _core

    return _is_there(_core.load_pcap)


def _is_there(find: Callable[[], None]) -> bool:
    try:
        find()
    except OSError:
        return False
    return True


def _library(name: str, purpose: str, debian: str, fedora: str) -> Feature:
    if _build_has_library(name):
        detail = f"built to read {purpose}"
        if _libpcap_is_there():
            return Feature(name, True, detail)
        return Feature(
            name,
            False,
            f"{detail}, but libpcap is missing now",
            "Install it (Debian, Ubuntu: apt install libpcap0.8; Fedora: dnf install libpcap).",
        )
    missing = "libpcap" if name != "pcap" and not _build_has_library("pcap") else fedora
    packages = {"libpcap-dev": "libpcap-devel"} if missing == "libpcap" else {}
    packages[f"{debian}-dev"] = f"{fedora}-devel"
    return Feature(
        name,
        False,
        f"built without {purpose}, because {missing} was missing",
        f"Install {' and '.join(dict.fromkeys([missing, fedora]))} (Debian, Ubuntu: "
        f"apt install {' '.join(packages)} pkg-config; Fedora: "
        f"dnf install {' '.join(packages.values())} pkgconf-pkg-config), {_HOW_TO_REBUILD}",
    )


def _default_buffer_bytes() -> int:
    """Bytes that an AF_XDP reader locks unless told otherwise."""
    from xdpspead.recv import UdpXdpConfig

    return int(UdpXdpConfig.DEFAULT_BUFFER_SIZE)


def _kernel_feature(name: str, floor: tuple[int, int], purpose: str) -> Feature:
    wanted = ".".join(map(str, floor))
    if sys.platform != "linux":
        return Feature(name, False, f"this is {platform.system()}", "Use Linux.")
    release = platform.release()
    version = _kernel_version(release)
    if version >= floor:
        return Feature(name, True, f"Linux {release}, {purpose} needs {wanted}")
    return Feature(
        name, False, f"Linux {release} is too old for {purpose}", f"Use Linux {wanted} or newer."
    )


def _kernel_version(release: str) -> tuple[int, int]:
    match = re.match(r"(\d+)\.(\d+)", release)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _try_af_xdp_socket() -> int:
    """Return 0 if an AF_XDP socket can be created, or the errno."""
    try:
        socket.socket(_AF_XDP, socket.SOCK_RAW | socket.SOCK_CLOEXEC).close()
    except OSError as error:
        return error.errno or errno.EINVAL
    return 0


def _try_xskmap() -> int:
    """Return 0 if a map of AF_XDP sockets can be created, or the errno."""
    # map_type, key_size, value_size, max_entries
    attributes = struct.pack("=IIII", _BPF_MAP_TYPE_XSKMAP, 4, 4, 1)
    try:
        os.close(_bpf.call(_BPF_MAP_CREATE, attributes))
    except OSError as error:
        return error.errno or errno.EINVAL
    return 0


def _has_capability(*bits: int) -> bool:
    """Return whether this thread has one of the capabilities *bits*."""
    mask = _effective_capabilities()
    return any(mask >> bit & 1 for bit in bits)


def _capability(name: str, capability: str, *bits: int) -> Feature:
    if _has_capability(*bits):
        return Feature(name, True, f"this process has {capability}")
    return Feature(name, False, f"this process lacks {capability}", _how_to_grant())


def _how_to_grant() -> str:
    return _HOW_TO_GRANT.format(interpreter=os.path.realpath(sys.executable))


def _mebibytes(n_bytes: int) -> str:
    return f"{n_bytes / 2**20:.4g} MiB"


features = Features()
