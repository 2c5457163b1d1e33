"""Receive-flow rules: which packets a driver brings to which queue (``ethtool -N``).

Layouts and numbers are those of ``linux/ethtool.h``. Only the requests that
:meth:`FlowRule.request` and :func:`delete_request` make need a privilege, and others send them.
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass
from typing import Final

from ._ethtool import RXNFC_SIZE, UDP_FLOWS, ioctl

_GFLAGS: Final = 0x25
_GRXCLSRLCNT: Final = 0x2E
_GRXCLSRULE: Final = 0x2F
_GRXCLSRLALL: Final = 0x30
_SRXCLSRLDEL: Final = 0x31
_SRXCLSRLINS: Final = 0x32

_FLAG_NTUPLE: Final = 1 << 27  # ETH_FLAG_NTUPLE

#: struct ethtool_rxnfc up to `rule_cnt`, with struct ethtool_rx_flow_spec in it: cmd, flow_type,
#: data; flow_type, h_u, h_ext, m_u, m_ext, ring_cookie, location, padding; rule_cnt.
_RXNFC: Final = struct.Struct("@IIQI52s20s52s20sQI0QI")
_LOCATION_AT: Final = struct.calcsize("@IIQI52s20s52s20sQ")
#: Where the location of a rule stands in a request and in its answer.
LOCATION: Final = (_LOCATION_AT, _LOCATION_AT + 4)

_LOCATION_SPECIAL: Final = 0x80000000  # RX_CLS_LOC_SPECIAL
#: The driver may choose where to put a rule (RX_CLS_LOC_ANY).
ANY_LOCATION: Final = 0xFFFFFFFF

_FLOW_RSS: Final = 0x20000000
#: Name and layout of the addresses and ports, type of service last, by IP version:
#: struct ethtool_tcpip4_spec, and ethtool_tcpip6_spec.
_UDP: Final = {
    4: ("udp4", struct.Struct("!4s4sHHB")),
    6: ("udp6", struct.Struct("!16s16sHHB")),
}


def ntuple_is_on(interface: str) -> bool:
    """Return whether receive-flow rules are switched on (``ethtool -k``: ntuple-filters)."""
    _, flags = struct.unpack("=II", ioctl(interface, struct.pack("=II", _GFLAGS, 0)))
    return bool(flags & _FLAG_NTUPLE)


@dataclass(frozen=True)
class FlowMatch:
    """Which packets a rule is for, as the kernel says it; a bit of `mask` that is 1 counts."""

    flow_type: int
    header: bytes
    mask: bytes

    @classmethod
    def of(cls, flow_type: int, header: bytes, mask: bytes) -> FlowMatch:
        """Return what is matched, alike for rules that differ in bits that do not count."""
        masked = bytes(h & m for h, m in zip(header, mask, strict=True))
        return cls(flow_type & ~_FLOW_RSS, masked, mask)


@dataclass(frozen=True)
class FlowRule:
    """A receive-flow rule: UDP datagrams that go to a queue.

    Attributes
    ----------
    version : int
        4 or 6.
    address : bytes
        Destination address; all zeroes for any.
    port : int
        Destination port.
    queue : int
        The receive queue.
    source : bytes
        Source address; empty or all zeroes for any.
    """

    version: int
    address: bytes
    port: int
    queue: int
    source: bytes = b""

    @property
    def match(self) -> FlowMatch:
        """Which packets it is for."""
        flow, layout = _UDP[self.version]
        length = len(self.address)
        source = self.source or bytes(length)

        def mask(address: bytes) -> bytes:
            return b"\xff" * length if any(address) else bytes(length)

        header = layout.pack(source, self.address, 0, self.port, 0)
        masks = layout.pack(mask(source), mask(self.address), 0, 0xFFFF, 0)
        return FlowMatch.of(UDP_FLOWS[flow], header.ljust(52, b"\0"), masks.ljust(52, b"\0"))

    def request(self, location: int) -> bytes:
        """Return the request that inserts it at a location (ETHTOOL_SRXCLSRLINS)."""
        match = self.match
        return _request(
            _SRXCLSRLINS,
            location=location,
            flow_type=match.flow_type,
            header=match.header,
            mask=match.mask,
            cookie=self.queue,
        )

    def words(self) -> str:
        """Return what ``ethtool -N`` takes."""
        words = ["flow-type", _UDP[self.version][0]]
        for name, address in (("src-ip", self.source), ("dst-ip", self.address)):
            if any(address):
                words += [name, str(ipaddress.ip_address(address))]
        return " ".join([*words, "dst-port", str(self.port), "action", str(self.queue)])


@dataclass(frozen=True)
class FlowTable:
    """The receive-flow rules of an interface.

    Attributes
    ----------
    size : int
        How many there can be; 0 if the driver does not tell.
    chooses : bool
        Whether the driver chooses locations (ANY_LOCATION).
    rules : dict
        Location -> what is matched, and the queue; or None if it does not go to a queue.
    """

    size: int
    chooses: bool
    rules: dict[int, tuple[FlowMatch, int | None]]

    @classmethod
    def read(cls, interface: str) -> FlowTable:
        """Return what there is.

        Raises
        ------
        OSError
            EOPNOTSUPP if the driver has no receive-flow rules.
        """
        answer = ioctl(interface, _request(_GRXCLSRLCNT))
        counted = _RXNFC.unpack_from(answer)
        about, n = counted[2], counted[-1]
        # Others may add some meanwhile.
        room = n + 16
        answer = ioctl(interface, _request(_GRXCLSRLALL, count=room) + bytes(4 * room))
        listed = _RXNFC.unpack_from(answer)
        locations = struct.unpack_from(f"={min(listed[-1], room)}I", answer, _RXNFC.size)
        rules = {}
        for location in locations:
            rule = _read_rule(interface, location)
            if rule is not None:
                rules[location] = rule
        size = listed[2] or about & ~_LOCATION_SPECIAL
        return cls(size, bool(about & _LOCATION_SPECIAL), rules)

    def find(self, match: FlowMatch) -> tuple[int, int | None] | None:
        """Return location and queue of the rule for these packets, if there is one."""
        for location, (found, queue) in self.rules.items():
            if found == match:
                return location, queue
        return None

    def free_location(self) -> int | None:
        """Return where a rule can be put: where it comes last, after all that are there."""
        if self.chooses:
            return ANY_LOCATION
        free = (i for i in range(self.size - 1, -1, -1) if i not in self.rules)
        return next(free, None)


def check_request() -> bytes:
    """Return the request that asks for a rule, whose location is to be filled in."""
    return _request(_GRXCLSRULE)


def delete_request() -> bytes:
    """Return the request that deletes a rule, whose location is to be filled in."""
    return _request(_SRXCLSRLDEL)


def location_of(answer: bytes) -> int:
    """Return the location in the answer to :meth:`FlowRule.request`."""
    return int(struct.unpack_from("=I", answer, _LOCATION_AT)[0])


def _request(
    command: int,
    *,
    location: int = 0,
    flow_type: int = 0,
    header: bytes = b"",
    mask: bytes = b"",
    cookie: int = 0,
    count: int = 0,
) -> bytes:
    rule = (flow_type, header, b"", mask, b"", cookie, location)
    packed = _RXNFC.pack(command, 0, 0, *rule, count)
    return packed if count else packed.ljust(RXNFC_SIZE, b"\0")


def _read_rule(interface: str, location: int) -> tuple[FlowMatch, int | None] | None:
    try:
        answer = ioctl(interface, _request(_GRXCLSRULE, location=location))
    except OSError:  # somebody has deleted it meanwhile
        return None
    # Extensions count only if a flag in the type says so, and then the type is none of ours.
    _, _, _, flow_type, header, _, mask, _, cookie, _, _ = _RXNFC.unpack_from(answer)
    queue = cookie if not flow_type & _FLOW_RSS and cookie < 1 << 32 else None
    return FlowMatch.of(flow_type, header, mask), queue
