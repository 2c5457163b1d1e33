"""The ledger of a stream: what became of every packet, stage by stage.

It is made of one snapshot of the statistics. Which statistic is a loss at which stage, and what
helps against it, is in one table: `REASONS`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from ._reader import ReaderInfo
from ._stats import QueueStats, StreamStats

_PREFIX: Final = "xdpspead."
_XDP: Final = "xdp_"

#: Transports whose packets are counted nowhere before they are decoded.
_UNCOUNTED: Final = frozenset({"buffer", "tcp", "inproc"})

#: Drivers whose ``rx_dropped`` has the packets too that an AF_XDP socket refused, in native mode.
_COUNTS_REFUSED: Final = frozenset({"veth"})

#: A device's counters cover other people's packets too. They are taken for the cause of what is
#: missing only if they are at least this part of it.
_DEVICE_PART: Final = 0.01


@dataclass(frozen=True)
class Reason:
    """Why packets or heaps stay behind at a stage.

    A `consequence` shows that something is missing, which may have been lost at any stage before.
    """

    stage: str
    name: str
    advice: str
    consequence: bool = False


_RING = "ethtool -G for longer receive rings, more queues, or interrupts on a core that is free"
_MEMORY = "a larger buffer_size; if worker_blocked counts too, take heaps faster"
_UNREAD = "take heaps faster, or a longer ring (RingStreamConfig.heaps) and a larger buffer_size"
_NO_SPEAD = "these are no SPEAD packets of the kind that is expected: see who sends there, and what"
_CAPTURE = "what the capture file holds cannot be used: capture whole datagrams, from their sender"
_ELSEWHERE = (
    "nothing before this stage lost them: look at the sender and at the switches; if packets "
    "overtake each other, allow_out_of_order=True"
)
_NUMBERS = "two senders use the same heap numbers, or the network doubles packets"
_BOUNDS = "the sender makes heaps of more parts than a stream takes"

#: In the order of a packet's way. What a device counts comes before all of them.
REASONS: Final[tuple[Reason, ...]] = (
    Reason(
        "program", "xdp_no_socket", "read all queues, or have the device steer to those you read"
    ),
    Reason(
        "program",
        "xdp_bad_length",
        "lengths in their headers disagree: a sender that leaves segmentation to a device that has "
        "none? Native mode gets such packets one by one",
    ),
    Reason("program", "xdp_fragments", "let packets fit the MTU all the way: no fragments"),
    Reason(
        "program", "xdp_extension_headers", "a sender that puts no IPv6 options into its packets"
    ),
    Reason("socket", "xdp_rx_dropped", _MEMORY),
    Reason("socket", "xdp_rx_ring_full", _MEMORY),
    Reason(
        "socket",
        "udp_kernel_drops",
        f"{_MEMORY} (see also net.core.rmem_max); or receive by AF_XDP",
    ),
    Reason("reader", "xdp_unread_drops", _UNREAD),
    Reason("reader", "xdp_bad_frame", "see what sends them: they are no whole datagrams"),
    Reason("reader", "pcap_filtered", "the filter drops them"),
    Reason("reader", "pcap_not_udp", _CAPTURE),
    Reason("reader", "pcap_fragments", _CAPTURE),
    Reason("reader", "pcap_bad_length", _CAPTURE),
    Reason("reader", "pcap_snapped", "capture with a larger snapshot length (tcpdump -s 0)"),
    Reason("parser", "empty_datagram", _NO_SPEAD),
    Reason("parser", "truncated_datagram", "a larger max_size"),
    Reason("parser", "bad_magic", _NO_SPEAD),
    Reason("parser", "bad_flavour", _NO_SPEAD),
    Reason("parser", "truncated_header", _NO_SPEAD),
    Reason("parser", "missing_item", _NO_SPEAD),
    Reason("parser", "short_packet", _NO_SPEAD),
    Reason(
        "parser",
        "long_packet",
        "bytes follow the packet: several packets in one datagram, or a capture of datagrams that "
        "were still to be segmented",
    ),
    Reason("parser", "offset_overflow", _NO_SPEAD),
    Reason("parser", "after_stop", "they came after the stop item: stop_on_stop_item=False"),
    Reason("window", "gap", _ELSEWHERE, consequence=True),
    Reason(
        "window",
        "late",
        "a larger max_heaps, if heaps are interleaved that deeply",
        consequence=True,
    ),
    Reason("window", "behind", f"{_NUMBERS}; or they overtake each other: allow_out_of_order=True"),
    Reason("window", "duplicate", _NUMBERS),
    Reason("window", "overlap", _NUMBERS),
    Reason("window", "length_mismatch", _NUMBERS),
    Reason("window", "flavour_mismatch", _NUMBERS),
    Reason("window", "unsized", "allow_unsized_heaps=True, or a sender that tells heap lengths"),
    Reason("window", "too_large", "a larger max_heap_size, if heaps may be that large"),
    Reason("window", "too_many_items", _BOUNDS),
    Reason("window", "too_many_ranges", _BOUNDS),
    Reason("window", "no_memory", "more memory, or fewer heaps at a time (max_heaps)"),
    Reason(
        "heaps",
        "heaps_discarded",
        "packets of theirs are missing; if no stage lost any, look at the sender and at the "
        "switches, or try a larger max_heaps",
        consequence=True,
    ),
    Reason("user", "heaps_dropped_stop", "take all heaps before you call stop()"),
)

_BY_STAGE: Final[Mapping[str, tuple[str, ...]]] = {
    stage: tuple(reason.name for reason in REASONS if reason.stage == stage)
    for stage in ("program", "socket", "reader", "parser", "window", "heaps", "user")
}
#: What the program counts beside `matched`.
_NOT_MATCHED: Final = frozenset({"xdp_fragments", "xdp_extension_headers"})


@dataclass(frozen=True)
class LedgerPart:
    """One interface's, or one queue's, part of a stage.

    Attributes
    ----------
    interface : str
        Network interface.
    queue : int or None
        Its receive queue; None: all of it.
    entered, passed : int or None
        Packets that came in and went on; None where nobody counts them.
    lost : dict of str to int
        Packets that stayed behind, by reason.
    """

    interface: str
    queue: int | None
    entered: int | None
    passed: int | None
    lost: dict[str, int]


@dataclass(frozen=True)
class LedgerStage:
    """One place on a packet's way.

    Attributes
    ----------
    name : str
        ``"device"``, ``"program"``, ``"socket"``, ``"reader"``, ``"parser"``, ``"window"``,
        ``"heaps"`` or ``"user"``.
    unit : str
        What is counted: ``"packets"`` or ``"heaps"``.
    entered, passed : int or None
        How many came in and went on; None where nobody counts them.
    lost : dict of str to int
        How many stayed behind, by reason: the statistic's name without ``xdpspead.``, or the
        device's counter.
    notes : dict of str to int
        What else is known: how heaps left the window, how many wait for the user, what the device's
        driver counts, what the program left to the kernel because nobody asked for it, packets of
        readers that are counted only when they are decoded.
    parts : tuple of LedgerPart
        The same for each interface or queue.
    """

    name: str
    unit: str
    entered: int | None
    passed: int | None
    lost: dict[str, int]
    notes: dict[str, int] = field(default_factory=dict)
    parts: tuple[LedgerPart, ...] = ()

    @property
    def n_lost(self) -> int:
        """How many stayed behind here."""
        return sum(self.lost.values())


@dataclass(frozen=True)
class Loss:
    """Packets or heaps that stayed behind at one stage for one reason.

    Attributes
    ----------
    stage, reason, unit : str
        As in :class:`LedgerStage`.
    count : int
        How many.
    advice : str
        What helps.
    consequence : bool
        Whether this shows only that something is missing that was lost before.
    """

    stage: str
    reason: str
    count: int
    unit: str
    advice: str
    consequence: bool


@dataclass(frozen=True)
class Ledger:
    """What became of every packet of a stream. Printed it is a table.

    Attributes
    ----------
    stages : tuple of LedgerStage
        The places on a packet's way, in its order; those that the stream's transports have.
    stopped : bool
        Whether the stream had stopped, so that no packet is on its way any more.
    difference : int
        Packets that were counted at the beginning of their way and at no end. While the stream runs
        these are on their way; when it has stopped it is 0. Packets of TCP, of memory and of queues
        of this process are counted only when they are decoded, and cannot differ.
    """

    stages: tuple[LedgerStage, ...]
    stopped: bool
    difference: int

    @property
    def balanced(self) -> bool:
        """Whether the sums agree: every packet that was counted is accounted for."""
        return self.difference == 0

    @property
    def losses(self) -> tuple[Loss, ...]:
        """What was lost, in the order of a packet's way."""
        advice = {(reason.stage, reason.name): reason for reason in REASONS}
        return tuple(
            _loss(stage, name, count, advice.get((stage.name, name)))
            for stage in self.stages
            for name, count in stage.lost.items()
        )

    @property
    def worst(self) -> Loss | None:
        """The largest loss at the stage that loses most; None if nothing was lost.

        Stages where packets are lost come before those where something is found to be missing. The
        device, whose counters cover all that the interface receives, is believed if it accounts for
        a hundredth of what is missing or more.
        """
        found = self.losses
        missing = sum(loss.count for loss in found if loss.consequence and loss.unit == "packets")
        causes = [loss for loss in found if not loss.consequence]
        device = [loss for loss in causes if loss.stage == "device"]
        if sum(loss.count for loss in device) < _DEVICE_PART * missing:
            causes = [loss for loss in causes if loss.stage != "device"]
        return _largest(causes) or _largest(found)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain values, for JSON."""
        worst = self.worst
        return {
            "stopped": self.stopped,
            "balanced": self.balanced,
            "difference": self.difference,
            "stages": [asdict(stage) for stage in self.stages],
            "losses": [asdict(loss) for loss in self.losses],
            "worst": None if worst is None else asdict(worst),
        }

    def __getitem__(self, name: str) -> LedgerStage:
        """Return the stage of this name."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise KeyError(name)

    def __str__(self) -> str:
        return "\n".join([*_table(self.stages), "", *self._verdict()])

    def _verdict(self) -> Iterator[str]:
        first = next(stage for stage in self.stages if stage.entered is not None)
        if self.balanced:
            came = f"Packets that came to the {first.name}: {first.entered:,}."
            yield f"{came} All are accounted for."
        elif not self.stopped:
            yield f"Packets on their way: {self.difference:,}."
        else:
            yield f"Packets NOT accounted for: {self.difference:,}. This is a bug of xdpspead."
        worst = self.worst
        if worst is None:
            yield "Nothing was lost."
            return
        yield f"The stage that loses most: {worst.stage} ({worst.reason} {worst.count:,})."
        yield f"What helps: {worst.advice}."


def _loss(stage: LedgerStage, name: str, count: int, reason: Reason | None) -> Loss:
    if reason is None:  # a counter of the device
        return Loss(stage.name, name, count, stage.unit, _RING, consequence=False)
    return Loss(stage.name, name, count, stage.unit, reason.advice, reason.consequence)


def _largest(losses: Sequence[Loss]) -> Loss | None:
    """Return the largest loss of the stage that has most; packets come before heaps."""
    packets = [loss for loss in losses if loss.unit == "packets"] or list(losses)
    totals: dict[str, int] = {}
    for loss in packets:
        totals[loss.stage] = totals.get(loss.stage, 0) + loss.count
    if not totals:
        return None
    stage = max(totals, key=totals.__getitem__)
    return max((loss for loss in packets if loss.stage == stage), key=lambda loss: loss.count)


# ------------------------------------------------------------------ making it


def make_ledger(
    stats: StreamStats, readers: Sequence[ReaderInfo], *, stopped: bool, waiting: int
) -> Ledger:
    """Make the ledger of a stream with `waiting` heaps in its ring."""
    transports = {reader.transport for reader in readers}
    stages: list[LedgerStage] = []
    if "udp_xdp" in transports:
        stages += [_device(stats, readers), _program(stats)]
    if transports & {"udp", "udp_xdp"}:
        stages.append(_socket(stats))
    parser, window = _parser(stats), _window(stats)
    counted = stages[-1].passed or 0 if stages else 0
    if "pcap" in transports:
        counted += stats["xdpspead.pcap_packets"]
    reader = _reader(stats, counted, transports, parser)
    if transports & {"udp_xdp", "pcap"} or (stages and transports & _UNCOUNTED):
        stages.append(reader)
    stages += [parser, window, _heaps(stats), _user(stats, waiting)]
    difference = (reader.passed or 0) - (parser.entered or 0) + _unexplained_matches(stats)
    return Ledger(tuple(stages), stopped, difference)


def _lost(values: Any, stage: str, prefix: str = _PREFIX) -> dict[str, int]:
    """Return the losses at a stage by reason, without zeros."""
    found = {name: int(values[prefix + name]) for name in _BY_STAGE[stage]}
    return {name: count for name, count in found.items() if count}


def _queue_lost(queue: QueueStats, stage: str) -> dict[str, int]:
    values = {_XDP + name: value for name, value in vars(queue).items()}
    names = (name for name in _BY_STAGE[stage] if name.startswith(_XDP))
    return {name: values[name] for name in names if values[name]}


def _device(stats: StreamStats, readers: Sequence[ReaderInfo]) -> LedgerStage:
    native = {reader.interface for reader in readers if reader.mode == "native"}
    lost: dict[str, int] = {}
    notes: dict[str, int] = {}
    parts = []
    for device in stats.devices:
        mine = {name: count for name, count in device.link.items() if count}
        if device.driver in _COUNTS_REFUSED and device.interface in native:
            refused = _refused(stats, device.interface)
            mine["rx_dropped"] = max(mine.get("rx_dropped", 0) - refused, 0)
            notes[f"{device.interface} refused_by_socket"] = refused
        mine = {name: count for name, count in mine.items() if count}
        for name, count in mine.items():
            lost[name] = lost.get(name, 0) + count
        notes |= {f"{device.interface} {name}": n for name, n in device.ethtool.items()}
        parts.append(LedgerPart(device.interface, None, None, None, mine))
    notes = {name: count for name, count in notes.items() if count}
    return LedgerStage("device", "packets", None, None, lost, notes, tuple(parts))


def _refused(stats: StreamStats, interface: str) -> int:
    """Return the packets that the sockets of an interface would not take."""
    return sum(q.rx_dropped + q.rx_ring_full for q in stats.queues if q.interface == interface)


def _program(stats: StreamStats) -> LedgerStage:
    parts = []
    for queue in stats.queues:
        lost = _queue_lost(queue, "program")
        entered = queue.redirected + sum(lost.values())
        parts.append(LedgerPart(queue.interface, queue.queue, entered, queue.redirected, lost))
    lost = _lost(stats, "program")
    passed = stats["xdpspead.xdp_redirected"]
    others = stats["xdpspead.xdp_other_source"]  # were not asked for
    notes = {"xdp_other_source": others} | {
        f"{device.interface} {kind}": count
        for device in stats.devices
        for kind, count in device.passed.items()
    }
    notes = {name: count for name, count in notes.items() if count}
    return LedgerStage(
        "program", "packets", passed + sum(lost.values()), passed, lost, notes, tuple(parts)
    )


def _unexplained_matches(stats: StreamStats) -> int:
    lost = _lost(stats, "program")
    matched = sum(count for name, count in lost.items() if name not in _NOT_MATCHED)
    return stats["xdpspead.xdp_matched"] - stats["xdpspead.xdp_redirected"] - matched


def _socket(stats: StreamStats) -> LedgerStage:
    parts = []
    for queue in stats.queues:
        if queue.read:
            lost = _queue_lost(queue, "socket")
            passed = queue.redirected - sum(lost.values())
            parts.append(LedgerPart(queue.interface, queue.queue, queue.redirected, passed, lost))
    lost = _lost(stats, "socket")
    entered = stats["xdpspead.xdp_redirected"] + stats["xdpspead.udp_packets"]
    entered += stats["xdpspead.udp_kernel_drops"]
    return LedgerStage(
        "socket", "packets", entered, entered - sum(lost.values()), lost, {}, tuple(parts)
    )


def _reader(
    stats: StreamStats, counted: int, transports: set[str], parser: LedgerStage
) -> LedgerStage:
    parts = []
    for queue in stats.queues:
        if queue.read:
            lost = _queue_lost(queue, "reader")
            entered = queue.redirected - sum(_queue_lost(queue, "socket").values())
            passed = entered - sum(lost.values())
            parts.append(LedgerPart(queue.interface, queue.queue, entered, passed, lost))
    lost = _lost(stats, "reader")
    joined = stats["xdpspead.pcap_joined"]
    passed = counted - sum(lost.values()) - joined
    others = max((parser.entered or 0) - passed, 0) if transports & _UNCOUNTED else 0
    notes = {"pcap_joined": joined, "uncounted": others}
    return LedgerStage(
        "reader",
        "packets",
        counted + others,
        passed + others,
        lost,
        {name: count for name, count in notes.items() if count},
        tuple(parts),
    )


def _parser(stats: StreamStats) -> LedgerStage:
    lost = _lost(stats, "parser")
    packets = stats.packets
    notes = {}
    if stats["xdpspead.tcp_skipped_bytes"]:
        notes["tcp_skipped_bytes"] = stats["xdpspead.tcp_skipped_bytes"]
    return LedgerStage("parser", "packets", packets + sum(lost.values()), packets, lost, notes)


def _window(stats: StreamStats) -> LedgerStage:
    lost = _lost(stats, "window")
    return LedgerStage("window", "packets", stats.packets, stats.packets - sum(lost.values()), lost)


def _heaps(stats: StreamStats) -> LedgerStage:
    lost = _lost(stats, "heaps")
    evicted, flushed = stats.incomplete_heaps_evicted, stats.incomplete_heaps_flushed
    notes = {"complete": stats.heaps - evicted - flushed, "evicted": evicted, "flushed": flushed}
    return LedgerStage("heaps", "heaps", stats.heaps, stats.heaps - sum(lost.values()), lost, notes)


def _user(stats: StreamStats, waiting: int) -> LedgerStage:
    lost = _lost(stats, "user")
    entered = stats.heaps - stats["xdpspead.heaps_discarded"]
    # Heaps in the ring that are not in the statistics yet are counted with their batch.
    passed = max(entered - sum(lost.values()) - waiting, 0)
    notes = {"waiting": waiting, "worker_blocked": stats.worker_blocked}
    return LedgerStage(
        "user", "heaps", entered, passed, lost, {k: v for k, v in notes.items() if v}
    )


# ------------------------------------------------------------------ printing it

_HEAD: Final = ("came in", "went on", "lost", "")


def _number(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _why(lost: Mapping[str, int], notes: Mapping[str, int]) -> str:
    told = ", ".join(f"{name} {count:,}" for name, count in lost.items())
    more = ", ".join(f"{name} {count:,}" for name, count in notes.items() if count)
    return f"{told} ({more})" if told and more else told or (f"({more})" if more else "")


def _rows(stages: Sequence[LedgerStage]) -> Iterator[tuple[str, ...]]:
    for stage in stages:
        why = _why(stage.lost, stage.notes)
        numbers = (_number(stage.entered), _number(stage.passed), f"{stage.n_lost:,}")
        yield (stage.name, *numbers, why)
        # What the program steers to each queue is told; later stages, only if they lose something.
        parts = [part for part in stage.parts if part.lost or stage.name == "program"]
        for part in parts if len(stage.parts) > 1 else ():
            where = f"  {part.interface}"
            if part.queue is not None:
                where += f" queue {part.queue}"
            lost = f"{sum(part.lost.values()):,}"
            yield (where, _number(part.entered), _number(part.passed), lost, _why(part.lost, {}))


def _table(stages: Sequence[LedgerStage]) -> Iterator[str]:
    n_packet_stages = sum(stage.unit == "packets" for stage in stages)
    blocks = [stages[:n_packet_stages], stages[n_packet_stages:]]
    rows = [[*_rows(block)] for block in blocks]
    heads = [("packets", *_HEAD), ("heaps", *_HEAD)]
    everything = [*heads, *rows[0], *rows[1]]
    widths = [max(len(row[i]) for row in everything) for i in range(4)]
    for head, block in zip(heads, rows, strict=True):
        for row in (head, *block):
            cells = [row[0].ljust(widths[0]), *(row[i].rjust(widths[i]) for i in range(1, 4))]
            yield "  ".join([*cells, row[4]]).rstrip()
        if head is heads[0]:
            yield ""
