"""What network devices count: packets that they received and that no program or socket ever saw.

The numbers are those of the whole interface, whoever the packets were for.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import re
import socket
import struct
import threading
import weakref
from collections.abc import Mapping
from dataclasses import replace
from typing import Final, Protocol

from . import _ethtool, _netlink
from ._device_stats import DeviceStats

_TIMEOUT_S: Final = 1.0
#: No answer: there is no such interface, or no socket any more.
_ERRORS: Final = (OSError, ValueError)

_GETSTATS: Final = 94  # RTM_GETSTATS
_LINK_64: Final = 1  # IFLA_STATS_LINK_64
_STATS: Final = struct.Struct("=BxHII")  # struct if_stats_msg

#: Those of ``struct rtnl_link_stats64`` that count packets lost on their way in, and their places.
#: The kernel's ``rx_errors`` is left out: it is the sum of others.
LINK_LOSSES: Final[Mapping[str, int]] = {
    "rx_dropped": 6,
    "rx_length_errors": 10,
    "rx_over_errors": 11,
    "rx_crc_errors": 12,
    "rx_frame_errors": 13,
    "rx_fifo_errors": 14,
    "rx_missed_errors": 15,
}

_SIOCGIFNAME: Final = 0x8910

#: Names in ``ethtool -S`` of what a device or its driver lost for want of memory, descriptors or
#: time, by the drivers that have them. Some count each queue, and the sum of all besides.
DRIVER_LOSSES: Final[tuple[tuple[str, str], ...]] = (
    ("bnxt_en", r"rx_total_discard_pkts|rx_total_buf_errors|\[\d+\]: rx_discards"),
    ("ena", r"rx_drops|rx_overruns|queue_\d+_rx_page_alloc_fail|(bw_in|pps)_allowance_exceeded"),
    ("gve", r"rx_no_buffers_posted|rx_(skb|buf)_alloc_fail(\[\d+\])?"),
    ("i40e, ice", r"rx_dropped(\.nic)?|port\.rx_(discards|dropped)|rx_(pg_)?alloc_fail"),
    ("igb, igc, e1000e", r"rx_missed_errors|rx_no_buffer_count|rx_queue_\d+_(drops|alloc_failed)"),
    ("ixgbe", r"rx_no_dma_resources|alloc_rx_(page|buff)_failed"),
    ("mlx5_core", r"rx_out_of_buffer|rx_discards_phy|rx_oversize_pkts_buffer"),
    ("mlx5_core", r"rx\d*_(xsk_)?buff_alloc_err"),
    ("qede", r"no_buff_discards"),
    ("sfc", r"port_rx_nodesc_drops|port_rx_overflow|rx_nodesc_trunc"),
    ("stmmac", r"mmc_rx_fifo_overflow|rx_(missed|overflow)_cntr"),
    ("tg3", r"rx_discards|rxbds_empty"),
    ("veth", r"rx_queue_\d+_drops"),
    ("virtio_net", r"rx(_queue_)?\d+_drops|rx\d*_hw_drops"),
)
_DRIVER_LOSS: Final = re.compile("|".join(f"(?:{pattern})" for _, pattern in DRIVER_LOSSES))


class Program(Protocol):
    """What counts the packets of an interface that are for nobody here."""

    def passed(self) -> dict[str, int]:
        """Return how many there were, by kind."""


class Device:
    """The loss counters of one interface from now on, in the calling thread's network namespace.

    Parameters
    ----------
    index : int
        Number of the interface.
    name, driver : str
        Its name, and that of its driver.
    """

    def __init__(self, index: int, name: str, driver: str) -> None:
        self._index = index
        self._process = os.getpid()
        # It stays in the namespace, wherever the thread goes that asks later.
        self._socket = _netlink.connect(_netlink.NETLINK_ROUTE, _TIMEOUT_S)
        self._lock = threading.RLock()  # re-entrant for the sake of signals' handlers
        self._serial = itertools.count(1)
        self._places: dict[str, int] | None = None
        self._n_counters = 0
        self._link = self._ask_link()
        self._ethtool = self._ask_ethtool()
        link, ethtool = dict.fromkeys(self._link, 0), dict.fromkeys(self._ethtool, 0)
        self._last = DeviceStats(name, driver, link, ethtool)
        self._program: weakref.ref[Program] | None = None
        self._passed: dict[str, int] = {}  # before that program counted, less what it had then

    def before(self) -> tuple[dict[str, int], dict[str, int]]:
        """Return what the kernel and the driver had counted in the beginning, by name."""
        return dict(self._link), dict(self._ethtool)

    def read(self) -> DeviceStats:
        """Return what was counted since the beginning; the last known of one that has gone."""
        if os.getpid() != self._process:  # a forked child must not take its parent's answers
            return self._last
        with self._lock:
            link = _since(self._link, self._ask_link(), self._last.link)
            ethtool = _since(self._ethtool, self._ask_ethtool(), self._last.ethtool)
            self._last = replace(self._last, link=link, ethtool=ethtool, passed=self._ask_program())
            return self._last

    def watch(self, program: Program) -> None:
        """Count what the program passes from now on; it is not kept alive."""
        with self._lock:
            if self._program is not None and self._program() is program:
                return
            before = self._ask_program()
            self._passed = {
                kind: before.get(kind, 0) - count for kind, count in program.passed().items()
            }
            self._program = weakref.ref(program)

    def _ask_program(self) -> dict[str, int]:
        program = None if self._program is None else self._program()
        if program is None:
            return self._last.passed
        return {kind: self._passed[kind] + count for kind, count in program.passed().items()}

    def close(self) -> None:
        """Ask no more: what is known now is the last."""
        with self._lock:
            self._socket.close()

    # ---------------------------------------------------------- netlink

    def _ask_link(self) -> dict[str, int]:
        body = _STATS.pack(socket.AF_UNSPEC, 0, self._index, 1 << (_LINK_64 - 1))
        question = _netlink.request(_GETSTATS, body, serial=next(self._serial))
        try:
            answers = _netlink.exchange(self._socket, question)
        except _ERRORS:
            return {}
        return _link_losses(answers[0]) if answers else {}

    # ---------------------------------------------------------- ethtool

    def _name(self) -> str:
        """Return what the interface is called now."""
        ask = struct.pack("16si20x", b"", self._index)
        answer = fcntl.ioctl(self._socket, _SIOCGIFNAME, ask)
        return answer[:16].partition(b"\0")[0].decode()

    def _ask_ethtool(self) -> dict[str, int]:
        try:
            name = self._name()
            if self._places is None:
                names = _ethtool.statistic_names(name, self._socket)
                self._n_counters = len(names)
                # The places of those that matter.
                self._places = {n: i for i, n in enumerate(names) if _DRIVER_LOSS.fullmatch(n)}
            if not self._places:
                return {}
            values = _ethtool.statistic_values(name, self._n_counters, self._socket)
        except _ERRORS:
            return {}
        return {name: values[i] for name, i in self._places.items() if i < len(values)}


def _link_losses(answer: bytes) -> dict[str, int]:
    """Return the losses in an RTM_NEWSTATS message, without its header."""
    packed = _netlink.attributes(answer[_STATS.size :]).get(_LINK_64, b"")
    values = struct.unpack_from(f"={len(packed) // 8}Q", packed)
    return {name: values[i] for name, i in LINK_LOSSES.items() if i < len(values)}


def _since(
    base: Mapping[str, int], now: Mapping[str, int], last: Mapping[str, int]
) -> dict[str, int]:
    # A device that is reset begins at zero again; what it had lost stays.
    return {name: max(now.get(name, 0) - value, last.get(name, 0)) for name, value in base.items()}
