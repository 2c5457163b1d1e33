"""What drivers are asked by SIOCETHTOOL: names, queues, statistics, hashes, pauses.

Layouts and numbers are those of ``linux/ethtool.h``. Nothing here needs a privilege.
"""

from __future__ import annotations

import array
import fcntl
import socket
import struct
from typing import Final, Literal

_SIOCETHTOOL: Final = 0x8946
_GDRVINFO: Final = 0x03
_GPAUSEPARAM: Final = 0x12
_GSTRINGS: Final = 0x1B
_GSTATS: Final = 0x1D
_GRXFH: Final = 0x29
_GSSET_INFO: Final = 0x37
_GRXFHINDIR: Final = 0x38
_GCHANNELS: Final = 0x3C

_DRVINFO_SIZE: Final = 196
_DRIVER: Final = slice(4, 36)
_BUS: Final = slice(100, 132)
_SS_STATS: Final = 1  # ETH_SS_STATS
_STRING_SIZE: Final = 32

#: Size of struct ethtool_rxnfc.
RXNFC_SIZE: Final = struct.calcsize("@IIQI52s20s52s20sQI0QI0Q")
#: Flow types of UDP over either version of IP: UDP_V4_FLOW, UDP_V6_FLOW.
UDP_FLOWS: Final = {"udp4": 0x02, "udp6": 0x06}


def ioctl(interface: str, request: bytes, sock: socket.socket | None = None) -> bytes:
    """Return what the kernel makes of a request; by a socket, in whose network namespace."""
    if sock is None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            return ioctl(interface, request, sock)
    buffer = array.array("B", request)
    address, _ = buffer.buffer_info()
    fcntl.ioctl(sock, _SIOCETHTOOL, struct.pack("16sP16x", interface.encode(), address))
    return buffer.tobytes()


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode(errors="replace")


def _driver_info(interface: str, field: slice) -> str:
    try:
        info = ioctl(interface, struct.pack("=I", _GDRVINFO).ljust(_DRVINFO_SIZE, b"\0"))
    except OSError:
        return ""
    return _text(info[field])


def driver_name(interface: str) -> str:
    """Return the name of an interface's driver; empty if it does not tell."""
    return _driver_info(interface, _DRIVER)


def bus_address(interface: str) -> str:
    """Return where an interface's device is, "0000:03:00.0" on PCI; empty if it is nowhere."""
    return _driver_info(interface, _BUS)


def statistic_names(interface: str, sock: socket.socket) -> list[str]:
    """Return the names of a driver's statistics (``ethtool -S``), empty if it has none."""
    ask = struct.pack("=IIQI", _GSSET_INFO, 0, 1 << _SS_STATS, 0)
    _, _, known, n = struct.unpack("=IIQI", ioctl(interface, ask, sock))
    if not known:
        return []
    ask = struct.pack("=III", _GSTRINGS, _SS_STATS, n)
    text = ioctl(interface, ask + bytes(n * _STRING_SIZE), sock)[len(ask) :]
    return [_text(text[i : i + _STRING_SIZE]) for i in range(0, n * _STRING_SIZE, _STRING_SIZE)]


def statistic_values(interface: str, n: int, sock: socket.socket) -> tuple[int, ...]:
    """Return the values of a driver's `n` statistics, in the order of their names."""
    answer = ioctl(interface, struct.pack("=II", _GSTATS, n) + bytes(n * 8), sock)
    (found,) = struct.unpack_from("=I", answer, 4)
    return struct.unpack_from(f"={min(found, n)}Q", answer, 8)


#: struct ethtool_channels: cmd; the most there can be: rx, tx, other, combined; and how many are.
_CHANNELS: Final = struct.Struct("=I4I4I")


def queues_in_use(interface: str, direction: Literal["rx", "tx"]) -> int:
    """Return how many queues an interface receives with, or transmits; 0 if it does not tell."""
    try:
        answer = ioctl(interface, _CHANNELS.pack(_GCHANNELS, *bytes(8)))
    except OSError:
        return 0
    rx, tx, _, combined = _CHANNELS.unpack(answer)[5:]
    return int(combined + (rx if direction == "rx" else tx))


# ------------------------------------------------------------------ hashes and pauses


def hash_fields(interface: str, flow: str) -> int:
    """Return what a device's hash takes in of packets of a flow, "udp4" or "udp6".

    Returns
    -------
    int
        RXH_* bits; 1 << 6 and 1 << 7 are the ports.

    Raises
    ------
    OSError
        EOPNOTSUPP if the driver does not tell.
    """
    request = struct.pack("=IIQ", _GRXFH, UDP_FLOWS[flow], 0).ljust(RXNFC_SIZE, b"\0")
    _, _, fields = struct.unpack_from("=IIQ", ioctl(interface, request))
    return int(fields)


def hash_table(interface: str) -> tuple[int, ...]:
    """Return the receive queue for each value of a device's hash (``ethtool -x``).

    Raises
    ------
    OSError
        EOPNOTSUPP if the driver does not tell.
    """
    _, size = struct.unpack("=II", ioctl(interface, struct.pack("=II", _GRXFHINDIR, 0)))
    answer = ioctl(interface, struct.pack("=II", _GRXFHINDIR, size) + bytes(4 * size))
    return struct.unpack_from(f"={size}I", answer, 8)


def pause_frames(interface: str) -> tuple[bool, bool]:
    """Return whether a device obeys pause frames, and whether it sends some.

    Raises
    ------
    OSError
        EOPNOTSUPP if the driver does not tell.
    """
    answer = ioctl(interface, struct.pack("=IIII", _GPAUSEPARAM, 0, 0, 0))
    _, _, rx, tx = struct.unpack("=IIII", answer)
    return bool(rx), bool(tx)
