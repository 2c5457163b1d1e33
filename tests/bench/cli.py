"""The benchmark's command line, and the order in which things are measured."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

from bench import (
    batching,
    build,
    from_memory,
    growth,
    machine,
    network,
    plots,
    rates,
    sending,
    stalls,
    table,
    tails,
)
from bench.library import LIBRARIES, OURS
from bench.paths import BUILD
from bench.results import Results, print_comparison, print_results, read
from bench.session import FULL, OutOfTimeError, Session, installed

GENERATORS = (*network.GENERATORS, "udp", "xdp")


class Part(NamedTuple):
    """Something that can be measured: how, what it is in a few words, and its seconds in full."""

    measure: Callable[[Session], None]
    what: str
    seconds: int


PARTS = {
    "memory": Part(from_memory.measure_core, "reassembly from memory, and memcpy", 55),
    "one_core": Part(from_memory.measure_one_core, "the same, Python on the worker's core", 40),
    "iterate": Part(from_memory.measure_iteration, "one-packet heaps in Python", 45),
    "pcap": Part(from_memory.measure_pcap, "a capture file of 1 GB", 25),
    "udp": Part(rates.measure, "UDP sockets: CPU time, highest rates", 160),
    "xdp": Part(rates.measure, "AF_XDP against UDP: CPU time, highest rates", 160),
    "jumbo": Part(rates.measure_jumbo, "8 KiB packets through AF_XDP", 80),
    "tuned": Part(rates.measure_tuned, "highest rates of tuned streams", 45),
    "send": Part(sending.measure, "senders", 60),
    "growth": Part(growth.measure, "what happens when there is more of something", 200),
    "tails": Part(tails.measure, "from a packet's arrival to the heap in Python", 55),
    "stalls": Part(stalls.measure, "what is lost while nobody reads", 60),
    "batching": Part(batching.measure, "latency against CPU time", 40),
}
GROUPS = {
    "table": ("memory", "iterate", "pcap", "udp", "xdp", "jumbo"),
    "curves": ("tuned", "send", "growth", "tails", "stalls", "batching"),
    "all": tuple(PARTS),
}


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parts = "\n".join(f"  {name:10}{part.what}" for name, part in PARTS.items())
    groups = "\n".join(f"  {name:10}{', '.join(members)}" for name, members in GROUPS.items())
    parser = argparse.ArgumentParser(
        prog="bench",
        description="Measure xdpspead and spead2 in one run on the same traffic.",
        epilog=f"parts:\n{parts}\n\ngroups of parts:\n{groups}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="one short run of each: a check that all works")
    add("--only", choices=LIBRARIES, help="measure one of the two")
    add("--parts", default="table", help="comma-separated, see below (default table)")
    add("--runs", type=_positive, help=f"samples of each figure (default {FULL.runs})")
    add("--time-limit", type=_positive, help=f"seconds (default {FULL.time_limit_s:g})")
    add("--sender-core", type=int, default=0, help="core of the packet generator (default 0)")
    add("--receiver-core", type=int, default=1, help="core of the receivers (default 1)")
    add(
        "--generator",
        choices=GENERATORS,
        default="kernel",
        help="what sends to the receivers: a program in the kernel or at a socket, or "
        f"{OURS}'s own sender over UDP or AF_XDP",
    )
    add("--udp-checksum", action="store_true", help="send valid UDP checksums, which lets GRO work")
    add("--json", type=Path, default=BUILD / "results.json", help="where to write the results")
    add("--figures", type=Path, metavar="FOLDER", help="draw the curves as PNG into this folder")
    add("--draw", type=Path, metavar="OLD.json", help="measure nothing, draw an earlier run's")
    add("--compare", type=Path, metavar="OLD.json", help="print the change since an earlier run")
    add("--check", action="store_true", help="end with status 1 if a promise is not kept")
    options = parser.parse_args(arguments)
    options.parts = [
        part for name in options.parts.split(",") for part in GROUPS.get(name, (name,))
    ]
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        parser.error(f"--parts: there is no {', '.join(sorted(unknown))}")
    if options.draw and not options.figures:
        parser.error("--draw: say where to, with --figures")
    return options


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a positive number")
    return value


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; return the exit status."""
    options = parse(arguments)
    try:
        if options.draw:
            plots.draw(read(options.draw), options.figures)
            return 0
        if options.figures:
            plots.check()
        if options.compare:
            read(options.compare)  # before minutes are spent
        BUILD.mkdir(parents=True, exist_ok=True)
        log_path = BUILD / "receivers.log"
        with open(log_path, "w") as log, installed():
            build.hand_over(log_path)
            return run(options, log)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except (build.BuildError, network.MeasurementError, OSError, ValueError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2


def run(options: argparse.Namespace, log: TextIO) -> int:
    """Measure, print and write; return the exit status."""
    session = Session(options, log)
    results = session.results
    _check_cores(options)
    results.machine = machine.facts()
    _watch_others(results, "before")
    session.probe_libraries()
    results.options = {
        "quick": options.quick,
        "udp_checksum": options.udp_checksum,
        "generator": options.generator,
        "sender_core": options.sender_core,
        "receiver_core": options.receiver_core,
        "plan": session.plan._asdict(),
    }
    complete = _measure(session)
    _watch_others(results, "after")
    results.verdicts = [verdict.to_json() for verdict in table.verdicts(results)]
    print_results(results)
    table.print_table(results)
    if options.compare:
        print_comparison(options.compare, results)
    _write(results, options)
    if not complete or session.failures:
        return 2
    failed = any(verdict["word"] == "FAIL" for verdict in results.verdicts)
    return 1 if options.check and failed else 0


def _check_cores(options: argparse.Namespace) -> None:
    usable = os.sched_getaffinity(0)
    for core in (options.sender_core, options.receiver_core):
        if core not in usable:
            raise ValueError(f"core {core} is not among the usable cores {sorted(usable)}")


def _watch_others(results: Results, when: str) -> None:
    busy = machine.busy_part()
    results.machine[f"others {when}"] = f"{100 * busy:.0f} % of all cores"
    if busy > machine.BUSY:
        results.note(
            f"other processes took {100 * busy:.0f} % of all cores {when} the run: "
            "its figures are not to be trusted, above all those of time and of highest rates"
        )


def _measure(session: Session) -> bool:
    """Measure all parts; return whether the time was enough."""
    done: set[Callable[[Session], None]] = set()
    chosen = [name for name in PARTS if name in session.options.parts]
    if not session.options.quick and not session.options.runs:
        seconds = sum(PARTS[name].seconds for name in chosen)
        print(f"coming: {', '.join(chosen)}; about {seconds / 60:.0f} minutes", file=sys.stderr)
    try:
        for name in chosen:
            measure = PARTS[name].measure
            if measure not in done:  # UDP and AF_XDP are measured in turns
                done.add(measure)
                measure(session)
    except OutOfTimeError:
        limit = session.plan.time_limit_s
        session.results.note(f"stopped at the time limit of {limit:g} s: samples are missing")
        return False
    return True


def _write(results: Results, options: argparse.Namespace) -> None:
    path: Path = options.json
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results.to_json(), indent=1) + "\n")
    build.hand_over(path)
    print(f"\nwritten to {path}")
    if options.figures:
        plots.draw(results.to_json(), options.figures)
