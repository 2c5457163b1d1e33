"""What is promised: each path against spead2 and against its floor, and what stays flat."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from bench.floors import COPYING, FLOOR
from bench.library import OURS, PEER
from bench.results import Results, format_value, size_name


class Against(NamedTuple):
    """What a figure of ours is compared with: the sum of some figures, and the limit."""

    what: str
    figures: tuple[str, ...]
    at_most: float | None = None
    at_least: float | None = None

    @property
    def asked(self) -> str:
        """The limit as text."""
        if self.at_most is not None:
            return f"<= {self.at_most:g}"
        return f">= {self.at_least:g}" if self.at_least is not None else "told"


class Row(NamedTuple):
    """A line of the table.

    Attributes
    ----------
    path
        What is measured, in words.
    ours
        Name of our figure.
    against
        What it is compared with.
    speed
        The figures are times, but the ratio is one of speeds: theirs over ours.
    """

    path: str
    ours: str
    against: tuple[Against, ...]
    speed: bool = False


class Verdict(NamedTuple):
    """What became of one comparison; values are None where they were not measured."""

    path: str
    against: str
    asked: str
    ours: float | None
    other: float | None
    ratio: float | None
    word: str
    unit: str

    def to_json(self) -> dict[str, Any]:
        """Return it as a dictionary."""
        return self._asdict()


# ---- the table ----------------------------------------------------------------------------------

#: Rates at which CPU time is compared: all receivers sustain them.
CPU_RATE = 400_000


def _network_rows() -> Iterator[Row]:
    xdp, udp = f"xdp/{CPU_RATE}", f"udp/{CPU_RATE}"
    yield Row(
        f"AF_XDP, 1 KiB packets, 64 per heap: CPU time per packet at {CPU_RATE // 1000} kpps",
        f"{xdp}/{OURS}/cpu_ns",
        (
            Against(f"{PEER}'s UDP", (f"{udp}/{PEER}/cpu_ns",), at_most=0.25),
            Against(
                "AF_XDP floor + memcpy",
                (f"{xdp}/{FLOOR}/cpu_ns", "memory/1024/memcpy/cpu_ns"),
                at_most=1.6,
            ),
            Against("AF_XDP floor that copies", (f"{xdp}/{COPYING}/cpu_ns",)),
        ),
    )
    yield Row(
        "the same: highest rate with under 0.01 % loss over 5 s",
        f"xdp/highest/{OURS}/pps",
        (
            Against(f"{PEER}'s UDP", (f"udp/highest/{PEER}/pps",), at_least=3),
            Against("AF_XDP floor", (f"xdp/highest/{FLOOR}/pps",), at_least=0.8),
        ),
    )
    yield Row(
        "AF_XDP, 8 KiB packets (multi-buffer): highest rate without loss",
        f"xdp/jumbo/{OURS}/pps",
        (Against(f"{PEER}'s UDP", (f"udp/jumbo/{PEER}/pps",), at_least=2),),
    )
    yield Row(
        "the same, if both cores shared all the work without loss",
        f"xdp/jumbo-shared/{OURS}/pps",
        (Against(f"{PEER}'s UDP", (f"udp/jumbo/{PEER}/pps",)),),
    )
    yield Row(
        "the same: CPU time per packet at that rate",
        f"xdp/jumbo/{OURS}/cpu_ns",
        (Against(f"{PEER}'s UDP", (f"udp/jumbo/{PEER}/cpu_ns",)),),
    )
    yield Row(
        f"UDP sockets, 1 KiB packets: CPU time per packet at {CPU_RATE // 1000} kpps",
        f"{udp}/{OURS}/cpu_ns",
        (
            Against(f"{PEER}'s UDP", (f"{udp}/{PEER}/cpu_ns",), at_most=0.85),
            Against("recvmmsg that counts", (f"{udp}/{FLOOR}/cpu_ns",), at_most=1.25),
        ),
    )


def _memory_rows() -> Iterator[Row]:
    for size, peer, memcpy in ((64, 2.5, None), (1024, 1.5, 0.8), (8192, 1.3, 0.9)):
        yield Row(
            f"core from memory, {size_name(size)}: packets per second",
            f"memory/{size}/{OURS}/two_cores_wall_ns",
            (
                Against(PEER, (f"memory/{size}/{PEER}/two_cores_wall_ns",), at_least=peer),
                Against(
                    "memcpy into the same buffers",
                    (f"memory/{size}/memcpy/wall_ns",),
                    at_least=memcpy,
                ),
            ),
            speed=True,
        )
    modes = (
        ("iterate", "iterated over", 5),
        ("no_pool", "iterated over without a memory pool", None),
        ("update", "ItemGroup.update", 4),
    )
    for mode, how, limit in modes:
        for size in (1024, 8192):
            case = f"iterate/{mode}-{size}"
            against = [Against(PEER, (f"{case}/{PEER}/heaps_per_s",), at_least=limit)]
            if mode == "iterate":
                memcpy = Against("memcpy of the payloads", (f"{case}/memcpy/heaps_per_s",))
                against.append(memcpy)
            yield Row(
                f"one-packet heaps of {size_name(size)}, {how}: heaps per second",
                f"{case}/{OURS}/heaps_per_s",
                tuple(against),
            )
    yield Row(
        "capture file of 1 GB in the page cache",
        f"pcap/file/{OURS}/bytes_per_s",
        (Against(PEER, (f"pcap/file/{PEER}/bytes_per_s",), at_least=1.5),),
    )
    theirs = f"udp/memory/{PEER}/bytes"
    umem = (theirs, "xdp/memory/umem/bytes")
    yield Row(
        "resident memory while receiving, AF_XDP",
        f"xdp/memory/{OURS}/bytes",
        (Against(f"{PEER}'s UDP + the UMEM", umem, at_most=1),),
    )
    yield Row(
        "resident memory while receiving, UDP",
        f"udp/memory/{OURS}/bytes",
        (Against(f"{PEER}'s", (theirs,), at_most=1),),
    )


def _sending_rows() -> Iterator[Row]:
    for size in (1024, 8192):
        peer = f"send/udp-{size}/{PEER}"
        name = f"sending {size_name(size)} by"
        yield Row(
            f"{name} UDP: packets per second",
            f"send/udp-{size}/{OURS}/pps",
            (Against(PEER, (f"{peer}/pps",), at_least=1),),
        )
        yield Row(
            f"{name} UDP: CPU time per packet",
            f"send/udp-{size}/{OURS}/cpu_ns",
            (Against(PEER, (f"{peer}/cpu_ns",), at_most=1),),
        )
        yield Row(
            f"{name} AF_XDP: packets per second",
            f"send/xdp-{size}/{OURS}/pps",
            (Against(f"{PEER}'s UDP", (f"{peer}/pps",), at_least=2),),
        )


ROWS = (*_network_rows(), *_memory_rows(), *_sending_rows())

#: Curves that stay flat: by name of the part, what grows. The largest figure of a curve is at most
#: so many times the smallest.
FLAT = 1.3
FLAT_CURVES = {
    "max_heaps": "max_heaps",
    "substreams": "substreams",
    "streams": "streams on one interface",
    "endpoints": "endpoints of a stream",
}


# ---- what became of it --------------------------------------------------------------------------


def curve(results: Results, part: str, subject: str, metric: str) -> list[tuple[float, float]]:
    """Return the points of a curve: the number in the name of the case, and the figure."""
    points = []
    for name in results.samples:
        its_part, case, its_subject, its_metric = name.split("/")
        if (its_part, its_subject, its_metric) == (part, subject, metric):
            value = results.figure(name)
            assert value is not None
            points.append((float(case), value))
    return sorted(points)


def verdicts(results: Results) -> Iterator[Verdict]:
    """Yield what became of each promise for which anything at all was measured."""
    for row in ROWS:
        ours = results.figure(row.ours)
        if ours is None:
            continue
        unit = row.ours.rpartition("/")[2]
        for against in row.against:
            parts = [results.figure(name) for name in against.figures]
            other = None if None in parts else sum(part for part in parts if part is not None)
            ratio = None
            if other and ours:
                ratio = other / ours if row.speed else ours / other
            word = _word(ratio, against)
            yield Verdict(row.path, against.what, against.asked, ours, other, ratio, word, unit)
    for part, what in FLAT_CURVES.items():
        points = curve(results, part, OURS, "cpu_ns")
        if len(points) < 2:
            continue
        low, high = min(y for _, y in points), max(y for _, y in points)
        against = Against("the smallest of its curve", (), at_most=FLAT)
        path = f"largest CPU time per packet, {points[0][0]:g} to {points[-1][0]:g} {what}"
        ratio = high / low
        word = _word(ratio, against)
        yield Verdict(path, against.what, against.asked, high, low, ratio, word, "cpu_ns")


def _word(ratio: float | None, against: Against) -> str:
    if ratio is None:
        return "SKIP"
    if against.at_most is None and against.at_least is None:
        return ""
    good = (against.at_most is None or ratio <= against.at_most) and (
        against.at_least is None or ratio >= against.at_least
    )
    return "PASS" if good else "FAIL"


def print_table(results: Results) -> None:
    """Print each path with what it is compared with, one comparison a line."""
    print("\nThe table: ours, then theirs, the ratio, what is asked of it")
    path = ""
    for verdict in verdicts(results):
        if verdict.path != path:
            path = verdict.path
            print(f"  {path:72} {format_value(verdict.unit, verdict.ours)}")
        ratio = f"{verdict.ratio:7.2f}" if verdict.ratio is not None else "      -"
        other = format_value(verdict.unit, verdict.other)
        print(f"      {verdict.against:36} {other:>18}  {ratio}  {verdict.asked:8}  {verdict.word}")
