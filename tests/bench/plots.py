"""The figures of docs/benchmarks.md, from the JSON of a run: one PNG for each part with curves.

Parts that were not measured are left out, and so is their figure. Colours belong to libraries, and
marks to ways of receiving, in all figures alike.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import batching, build, stalls, tails
from bench.floors import FLOOR
from bench.library import OURS, PEER
from bench.paths import ROOT
from bench.results import size_name

_STYLE = ROOT / "docs" / "figures" / "style.mplstyle"
_DPI = 110
_COLOURS = 64
# Told apart by people who see no colours too: by the marks.
_LOOKS = {
    OURS: ("#4477aa", "o"),
    PEER: ("#cc3311", "s"),
    "memcpy": ("#888888", "^"),
    f"{OURS} XDP": ("#4477aa", "o"),
    f"{OURS} UDP": ("#66ccee", "D"),
    f"{PEER} UDP": ("#cc3311", "s"),
    f"{FLOOR} XDP": ("#888888", "^"),
}
_NAMES = {f"{OURS} XDP": f"{OURS} AF_XDP", f"{FLOOR} XDP": "AF_XDP floor", "memcpy": "memcpy"}

Points = list[tuple[float, float]]


def check() -> None:
    """Raise ValueError if figures cannot be drawn."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("matplotlib, which draws, is missing: .ci/setup test bench")


def draw(data: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw all figures that there are results for, and return their paths."""
    check()
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    from PIL import Image

    plt.style.use(_STYLE)
    folder.mkdir(parents=True, exist_ok=True)
    figures = _Figures(data["figures"])
    written = []
    kinds: dict[str, Callable[[Any, _Figures], Any]] = {
        "growth": _growth,
        "losses": _losses,
        "tails": _tails,
        "stalls": _stalls,
        "batching": _batching,
    }
    for name, kind in kinds.items():
        figure = kind(plt, figures)
        if figure is None:
            continue
        path = folder / f"bench-{name}.png"
        figure.savefig(path, dpi=_DPI, metadata={"Software": None})
        plt.close(figure)
        with Image.open(path) as image:  # a third of the size, with all colours that there are
            few = image.convert("RGB").quantize(_COLOURS)
        few.save(path, optimize=True)
        build.hand_over(path)
        print(f"drawn: {path}", file=sys.stderr)
        written.append(path)
    return written


class _Figures:
    """Figures by the parts of their names."""

    def __init__(self, figures: Mapping[str, float]) -> None:
        self._by_name = {tuple(name.split("/")): value for name, value in figures.items()}

    def curve(self, part: str, subject: str, metric: str) -> Points:
        """Return the points of a curve, by the numbers that its cases are."""
        return sorted(
            (float(case), value)
            for (a_part, case, a_subject, a_metric), value in self._by_name.items()
            if (a_part, a_subject, a_metric) == (part, subject, metric)
        )

    def get(self, *name: str) -> float | None:
        """Return one figure, None if it was not measured."""
        return self._by_name.get(name)

    def subjects(self, part: str) -> list[str]:
        """Return whatever was measured in a part, in the order of the results."""
        return list(dict.fromkeys(name[2] for name in self._by_name if name[0] == part))


def _plot(axes: Any, points: Points, subject: str, label: str | None = None, **more: Any) -> None:
    colour, mark = _LOOKS[subject]
    label = label or _NAMES.get(subject, subject)
    x, y = zip(*points, strict=True)
    style = {"color": colour, "marker": mark, "markersize": 4, "linewidth": 1.2, **more}
    axes.plot(x, y, label=label, **style)


def _finish(axes: Any, x_label: str, y_label: str = "") -> None:
    axes.set_xlabel(x_label)
    if y_label:
        axes.set_ylabel(y_label)
    axes.grid(visible=True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


def _log2(axes: Any, ticks: Sequence[float], name: Callable[[int], str] = str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(ticks), [name(int(tick)) for tick in ticks])
    axes.minorticks_off()


# ---- one figure each ----------------------------------------------------------------------------

_CURVES = {
    "packet_size": "payload of a packet",
    "heap_size": "size of a heap, packets of 1 KiB",
    "max_heaps": "max_heaps (dashed: all of them under way, 64 B packets)",
    "substreams": "substreams",
    "streams": "streams for 64 flows (dashed: a thread each; dotted: one flow each)",
    "endpoints": "endpoints of a stream, 400 kpps together",
}
#: What stands in the same place, by the end of its name, and its line.
_OTHERS = {"full": "--", "threads": "--", "alone": ":"}


def _growth(plt: Any, figures: _Figures) -> Any:
    if not any(figures.subjects(part) for part in _CURVES):
        return None
    figure, grid = plt.subplots(3, 2, figsize=(8, 8), layout="constrained")
    for axes, (part, label) in zip(grid.flat, _CURVES.items(), strict=True):
        over_network = part in ("streams", "endpoints")
        ticks: list[float] = []
        for subject in (OURS, PEER, "memcpy"):
            points = figures.curve(part, subject, "cpu_ns")
            if not points:
                continue
            name = subject
            if over_network:
                name += {OURS: " AF_XDP", PEER: " UDP"}[subject]
            _plot(axes, points, subject, name)
            ticks = [x for x, _ in points]
            for other, line in _OTHERS.items():
                points = figures.curve(f"{part}_{other}", subject, "cpu_ns")
                if points:
                    _plot(axes, points, subject, "_", linestyle=line)
        sizes = part in ("packet_size", "heap_size")
        if ticks:
            _log2(axes, ticks, size_name if sizes else str)
            axes.legend(fontsize=7)
        if part == "packet_size":
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
        what = "CPU time of all" if over_network else "worker's CPU time"
        _finish(axes, label, f"{what}, ns/packet")
    return figure


def _losses(plt: Any, figures: _Figures) -> Any:
    subjects = figures.subjects("loss")
    if not subjects:
        return None
    figure, axes = plt.subplots(figsize=(6.5, 3), layout="constrained")
    for subject in subjects:
        lost = figures.curve("loss", subject, "lost")
        sent = dict(figures.curve("loss", subject, "sent_pps"))
        points = sorted((sent[rate] / 1e6, 100 * part) for rate, part in lost)
        _plot(axes, points, subject)
    axes.set_yscale("symlog", linthresh=0.01)
    ticks = (0, 0.01, 0.1, 1, 10, 100)
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_ylim(0, 100)
    axes.set_xlim(left=0)
    _finish(axes, "packets of 1 KiB sent, millions per second", "lost, %")
    axes.legend()
    return figure


def _tails(plt: Any, figures: _Figures) -> Any:
    subjects = figures.subjects("tails")
    if not subjects:
        return None
    figure, grid = plt.subplots(
        1, 2, figsize=(8, 0.9 + 0.32 * len(subjects)), sharey=True, layout="constrained"
    )
    titles = {
        "idle": f"idle: {tails.IDLE_RATE:,.0f} packets/s, each a heap",
        "busy": "half of its highest rate, 64 packets a heap",
    }
    marks = {"p50_us": "o", "p99_us": "D", "p99.9_us": ">"}
    for axes, (load, title) in zip(grid, titles.items(), strict=True):
        for i, subject in enumerate(subjects):
            values = [figures.get("tails", load, subject, metric) for metric in marks]
            if None in values:
                continue
            colour = _LOOKS[OURS if subject.startswith(OURS) else PEER][0]
            axes.plot(values, [i] * len(values), color=colour, linewidth=1)
            for value, (metric, mark) in zip(values, marks.items(), strict=True):
                label = f"{tails.PERCENTILES[metric]:g} %" if i == 0 else None
                axes.plot(value, i, mark, color=colour, markersize=5, label=label)
        axes.set_xscale("log")
        axes.set_title(title, fontsize=9)
        _finish(axes, "from arrival to the heap in Python, µs")
    grid[0].set_yticks(range(len(subjects)), subjects)
    grid[0].invert_yaxis()
    grid[1].legend(fontsize=7, title="within", title_fontsize=7)
    return figure


def _stalls(plt: Any, figures: _Figures) -> Any:
    subjects = figures.subjects("stalls")
    if not subjects:
        return None
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(8, 2.9), width_ratios=(3, 2), layout="constrained"
    )
    width = 0.8 / len(subjects)
    for i, subject in enumerate(subjects):
        points = figures.curve("stalls", subject, "lost_packets")
        at = [j + (i - (len(subjects) - 1) / 2) * width for j in range(len(points))]
        heights = [lost for _, lost in points]
        label = _NAMES.get(subject, subject)
        bars = left.bar(at, heights, 0.92 * width, color=_LOOKS[subject][0], label=label)
        left.bar_label(bars, [f"{lost:,.0f}" for lost in heights], fontsize=6, padding=1)
    left.margins(y=0.12)
    left.set_xticks(range(len(stalls.STALLS_MS)), [f"{ms} ms" for ms in stalls.STALLS_MS])
    _finish(left, f"nobody reads for, at {stalls.RATE / 1e3:.0f},000 packets/s", "packets lost")
    left.legend(fontsize=7)
    lost = figures.curve("umem", OURS, "lost_packets")
    if lost:
        _plot(right, figures.curve("umem", OURS, "cpu_ns"), OURS, "CPU time, ns/packet")
        _log2(right, [size for size, _ in lost])
        right.set_ylim(bottom=0)
        _finish(right, "packet memory of AF_XDP, MiB", "CPU time of all, ns/packet")
        more = right.twinx()
        label = f"lost in {stalls.STALLS_MS[-1]} ms"
        more.plot(*zip(*lost, strict=True), color="#888888", marker="^", markersize=4, label=label)
        more.set_ylabel("packets lost (grey)", color="#666666")
        more.set_ylim(bottom=0)
    return figure


def _batching(plt: Any, figures: _Figures) -> Any:
    if not any(figures.subjects(batching.part(rate)) for rate in batching.RATES):
        return None
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.1), layout="constrained")

    def by_step(points: Points) -> Points:
        return [(batching.ADDED_US.index(int(us)), value) for us, value in points]

    shades = ("#99bbdd", "#4477aa", "#1a3d66")
    for rate, shade in zip(batching.RATES, shades, strict=True):
        part, label = batching.part(rate), f"{rate / 1e3:,.0f} kpps"
        points = by_step(figures.curve(part, OURS, "cpu_ns"))
        if not points:
            continue
        _plot(left, points, OURS, label, color=shade)
        peer = figures.curve(part, PEER, "cpu_ns")
        if peer:
            left.axhline(peer[0][1], color=_LOOKS[PEER][0], alpha=0.35 + 0.3 * shades.index(shade),
                         linewidth=1, linestyle=":", label=f"{PEER} UDP, {label}")  # fmt: skip
        median = by_step(figures.curve(part, OURS, "p50_us"))
        _plot(right, median, OURS, f"{label}, median", color=shade)
        most = by_step(figures.curve(part, OURS, "p99_us"))
        _plot(right, most, OURS, f"{label}, 99 %", color=shade, linestyle="--", marker="D")
    for axes in (left, right):
        axes.set_xticks(range(len(batching.ADDED_US)), [str(us) for us in batching.ADDED_US])
    left.set_ylim(bottom=0)
    right.set_yscale("log")
    _finish(left, "max_added_latency, µs", "CPU time of all, ns/packet")
    _finish(right, "max_added_latency, µs", "from arrival to the heap in Python, µs")
    left.legend(fontsize=6.5)
    right.legend(fontsize=6.5)
    return figure
