"""What the calling thread is privileged to do."""

from __future__ import annotations

from typing import Final

CAP_NET_ADMIN: Final = 12
CAP_NET_RAW: Final = 13
CAP_IPC_LOCK: Final = 14
CAP_SYS_ADMIN: Final = 21
CAP_BPF: Final = 39


def effective_capabilities() -> int:
    """Return the bit mask of what this thread may do."""
    try:
        with open("/proc/thread-self/status") as status:
            for line in status:
                if line.startswith("CapEff:"):
                    return int(line.split()[1], 16)
    except OSError:
        pass
    return 0


def can_use_xdp() -> bool:
    """Return whether this thread has the capabilities that AF_XDP readers need."""
    mask = effective_capabilities()
    bpf = mask >> CAP_BPF & 1 or mask >> CAP_SYS_ADMIN & 1
    return bool(bpf and mask >> CAP_NET_RAW & 1 and mask >> CAP_NET_ADMIN & 1)
