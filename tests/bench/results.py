"""What was measured: samples by name, and the tables, ratios and verdicts made from them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bench.library import OURS, PEER

FORMAT = 2
JUMBO_PAYLOAD = 8192


class Ratio(NamedTuple):
    """A line of the first table: one figure divided by another, and which way is good."""

    name: str
    over: str
    under: str
    lower_is_better: bool


class Results:
    """Samples by name; the figure of a name is the median of its samples.

    Names read ``part/case/subject/metric``; the metric ends with the unit: see `_UNITS`. Times are
    those of a packet. The case of a curve's point is a number: where the point is.
    """

    def __init__(self) -> None:
        self.samples: dict[str, list[float]] = {}
        self.notes: list[str] = []
        self.trials: list[dict[str, Any]] = []
        self.machine: dict[str, Any] = {}
        self.options: dict[str, Any] = {}
        self.verdicts: list[dict[str, Any]] = []

    def add(self, name: str, value: float) -> None:
        """Add a sample."""
        self.samples.setdefault(name, []).append(value)

    def note(self, text: str) -> None:
        """Add a remark, once."""
        if text not in self.notes:
            self.notes.append(text)

    def figure(self, name: str) -> float | None:
        """Return the median of the samples, None without any."""
        samples = self.samples.get(name)
        return statistics.median(samples) if samples else None

    def ratio(self, over: str, under: str) -> float | None:
        """Return the quotient of two figures, None unless both were measured."""
        top, bottom = self.figure(over), self.figure(under)
        return None if top is None or not bottom else top / bottom

    def ratios(self) -> Iterator[tuple[Ratio, float]]:
        """Yield each ratio between ours and a peer or a floor that was measured."""
        for ratio in _possible_ratios(self.samples):
            value = self.ratio(ratio.over, ratio.under)
            if value is not None:
                yield ratio, value

    def to_json(self) -> dict[str, Any]:
        """Return everything, ready for :func:`json.dump`."""
        return {
            "format": FORMAT,
            "machine": self.machine,
            "options": self.options,
            "ratios": {ratio.name: value for ratio, value in self.ratios()},
            "table": self.verdicts,
            "figures": {name: self.figure(name) for name in self.samples},
            "samples": self.samples,
            "notes": self.notes,
            "trials": self.trials,
        }


# ---- names and the questions asked of them ------------------------------------------------------

_MEMORY_METRICS = {
    "two_cores_wall_ns": "time per packet, worker and Python on two cores",
    "two_cores_worker_ns": "CPU time of the worker per packet, on two cores",
    "one_core_wall_ns": "time per packet, worker and Python on one core",
    "one_core_worker_ns": "CPU time of the worker per packet, on one core",
}


_TAKEN = {
    "iterate": "iterated over",
    "many": "taken many at a time",
    "update": "put into an ItemGroup",
    "no_pool": "iterated over without a memory pool",
}


def size_name(size: int) -> str:
    """Return 64 as "64 B", 8192 as "8 KiB" and 1048576 as "1 MiB"."""
    for unit, name in ((1 << 20, "MiB"), (1 << 10, "KiB")):
        if size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} B"


def _possible_ratios(samples: dict[str, list[float]]) -> Iterator[Ratio]:
    """Yield a ratio for every name of ours and whatever there is to compare it with."""
    for name in samples:
        part, case, subject, metric = name.split("/")
        if subject != OURS:
            continue
        theirs = f"{part}/{case}/{PEER}/{metric}"
        if part == "memory":
            size = size_name(int(case))
            what = _MEMORY_METRICS[metric]
            yield Ratio(f"core, {size}: {what}, of {PEER}'s", name, theirs, True)
            if metric == "two_cores_wall_ns":
                floor = f"memory/{case}/memcpy/wall_ns"
                yield Ratio(f"core, {size}: speed, of memcpy's", floor, name, False)
        elif part == "iterate":
            mode, _, size_text = case.partition("-")
            how = _TAKEN[mode]
            size = size_name(int(size_text))
            what = f"one-packet heaps of {size} {how} per second"
            yield Ratio(f"{what}, of {PEER}'s", name, theirs, False)
        elif part == "send":
            yield _sending_ratio(name, case, metric)
        elif part in ("udp", "xdp"):
            # spead2 has no AF_XDP: its UDP is what both of ours are compared with.
            theirs = f"udp/{case}/{PEER}/{metric}"
            transport = "AF_XDP" if part == "xdp" else "UDP"
            if metric == "cpu_ns" and case.isdecimal():
                what = f"CPU time per packet at {int(case) // 1000} kpps"
                yield Ratio(f"{transport}: {what}, of {PEER} UDP's", name, theirs, True)
            elif metric == "pps":
                what = _HIGHEST[case]
                yield Ratio(f"{transport}: {what}, of {PEER} UDP's", name, theirs, False)


_HIGHEST = {
    "highest": "highest rate with under 0.01 % loss, default settings",
    "highest-tuned": "highest rate with under 0.01 % loss, tuned",
    "jumbo": "highest rate of 8 KiB packets without loss",
    "jumbo-shared": "rate of 8 KiB packets if both cores shared all the work without loss",
}
_HOWS = {
    "sync": "one call each",
    "list": "in prepared lists",
    "asyncio": "by coroutines, several under way",
}


def _sending_ratio(name: str, case: str, metric: str) -> Ratio:
    """Return the ratio of one of our senders to spead2's, for AF_XDP too to its UDP."""
    transport, _, size = case.partition("-")
    if transport == "heaps":
        where, _, how = size.partition("-")
        what = f"heaps of 1 KiB sent per second, {where.upper()}, {_HOWS[how]}"
        return Ratio(f"{what}, of {PEER}'s", name, f"send/{case}/{PEER}/{metric}", False)
    label = {"udp": "UDP", "xdp": "AF_XDP"}[transport]
    lower = metric == "cpu_ns"
    what = "CPU time per packet" if lower else "packets per second"
    theirs = f"send/udp-{size}/{PEER}/{metric}"
    packet = size_name(int(size))
    return Ratio(f"sending {packet} by {label}: {what}, of {PEER} UDP's", name, theirs, lower)


# ---- printing -----------------------------------------------------------------------------------


_UNITS = {
    "ns": (1.0, "{:,.1f} ns"),
    "us": (1.0, "{:,.1f} µs"),
    "pps": (1e-6, "{:,.3f} Mpps"),
    "bytes": (2**-20, "{:,.1f} MiB"),
    "bytes_per_s": (1e-9, "{:,.2f} GB/s"),
    "heaps_per_s": (1.0, "{:,.0f} heaps/s"),
    "lost": (100.0, "{:,.3f} %"),
    "packets": (1.0, "{:,.0f} packets"),
}


def format_value(metric: str, value: float | None) -> str:
    """Return a value with the unit that the metric's name ends with."""
    if value is None:
        return "not measured"
    unit = next(unit for unit in sorted(_UNITS, key=len, reverse=True) if metric.endswith(unit))
    factor, text = _UNITS[unit]
    return text.format(value * factor)


def _format_figure(name: str, value: float) -> str:
    part, case, _, metric = name.split("/")
    text = format_value(metric, value)
    if part == "memory" and metric.endswith("_ns"):
        text += f"  {8 * int(case) / value:,.1f} Gb/s"
    if case.startswith("jumbo") and metric == "pps":
        text += f"  {8 * JUMBO_PAYLOAD * value / 1e9:,.1f} Gb/s"
    return text


def _spread(samples: list[float]) -> str:
    return f"{min(samples):,.4g} … {max(samples):,.4g} ({len(samples)})"


def print_results(results: Results) -> None:
    """Print ratios first, then figures, notes and the machine."""
    rows = [
        (f"{value:7.2f}x  {'lower' if ratio.lower_is_better else 'higher'} is better", ratio.name)
        for ratio, value in results.ratios()
    ]
    print("Ratios")
    for left, right in rows or [("none", f"only one of {OURS} and {PEER} was measured")]:
        print(f"  {left:30}  {right}")
    print("\nFigures: median, then range (samples)")
    for name, samples in sorted(results.samples.items()):
        value = results.figure(name)
        assert value is not None
        print(f"  {name:48} {_format_figure(name, value):36} {_spread(samples)}")
    if results.notes:
        print("\nNotes")
        for note in results.notes:
            print(f"  {note}")
    print("\nMachine")
    for name, fact in results.machine.items():
        print(f"  {name:16} {fact}")


def print_comparison(old_path: Path, results: Results) -> None:
    """Print how each figure changed since an earlier run.

    Raises
    ------
    ValueError
        If the file is not one that this benchmark wrote.
    """
    old = read(old_path)
    print(f"\nCompared with {old_path}")
    for fact in ("cpu", "cores", "kernel"):
        before, now = old["machine"].get(fact), results.machine.get(fact)
        if before != now:
            print(f"  another {fact}: {before} then, {now} now; only ratios compare")
    for name in sorted(results.samples):
        before = old["figures"].get(name)
        value = results.figure(name)
        assert value is not None
        if not before:
            print(f"  {name:48} {'new':>9}  {_format_figure(name, value)}")
            continue
        change = 100 * (value / before - 1)
        was = _format_figure(name, before)
        print(f"  {name:48} {change:+8.1f}%  {was}  ->  {_format_figure(name, value)}")
    missing = len(set(old["figures"]) - set(results.samples))
    if missing:
        print(f"  {missing} figures of then were not measured now")


def read(path: Path) -> dict[str, Any]:
    """Read the JSON that an earlier run wrote."""
    try:
        data: Any = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ValueError(f"{path} was not written by this version of the benchmark")
    return data
