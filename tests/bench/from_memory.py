"""Without a network: reassembly from memory, iteration over small heaps, a capture file."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import build, floors, pcap
from bench.paths import BUILD
from bench.session import BUFFER_SIZE, PACKETS_PER_HEAP, PAYLOAD, Session, Step

CORE_PAYLOADS = (64, 1024, 8192)
ITERATE_PAYLOADS = (1024, 8192)
ITERATE_HEAPS = 20_000


def child(session: Session, mode: str, payload: int, per_heap: int, **more: Any) -> dict[str, Any]:
    """Measure one thing from memory in a process of its own."""
    arguments = {
        "mode": mode,
        "payload": payload,
        "packets_per_heap": per_heap,
        "buffer_size": BUFFER_SIZE,
        "max_heaps": 1_000_000,
        "worker_core": session.options.receiver_core,
        "python_core": session.options.sender_core,
        "seconds": session.plan.memory_s,
    }
    return session.child("memory", {**arguments, **more})


def memcpy(session: Session, payload: int, per_heap: int, **more: Any) -> dict[str, Any]:
    """Return the nanoseconds that memcpy takes for the payload of a packet."""
    library = str(build.memcpy_floor())
    return child(
        session, "memcpy", payload, per_heap, floor=library, buffers=floors.BUFFERS, **more
    )


# ---- reassembly ---------------------------------------------------------------------------------


def measure_core(session: Session) -> None:
    """Measure reassembly from memory, Python on another core, and memcpy of the same payloads."""

    def steps() -> Iterator[Step]:
        for payload in CORE_PAYLOADS:
            for name in session.libraries:
                yield functools.partial(
                    _core, session, name, payload, "two_cores", session.options.sender_core
                )
            yield functools.partial(_memcpy, session, payload)

    session.rounds("core", steps, session.plan.runs)


def measure_one_core(session: Session) -> None:
    """Measure reassembly from memory with Python on the worker's core."""

    def steps() -> Iterator[Step]:
        for payload in CORE_PAYLOADS:
            for name in session.libraries:
                yield functools.partial(
                    _core, session, name, payload, "one_core", session.options.receiver_core
                )

    session.rounds("core, one core", steps, session.plan.runs)


def _core(session: Session, name: str, payload: int, placement: str, core: int) -> None:
    done = child(session, "core", payload, PACKETS_PER_HEAP, library=name, python_core=core)
    for metric in ("wall_ns", "worker_ns"):
        session.results.add(f"memory/{payload}/{name}/{placement}_{metric}", done[metric])


def _memcpy(session: Session, payload: int) -> None:
    done = memcpy(session, payload, PACKETS_PER_HEAP)
    for metric in ("wall_ns", "cpu_ns"):
        session.results.add(f"memory/{payload}/memcpy/{metric}", done[metric])


# ---- one-packet heaps ---------------------------------------------------------------------------


def measure_iteration(session: Session) -> None:
    """Measure how many one-packet heaps Python takes, with and without an item group."""
    session.rounds("iteration", lambda: _iterate_steps(session), session.plan.runs)


def _iterate_steps(session: Session) -> Iterator[Step]:
    for mode in ("iterate", "many", "update", "no_pool"):
        for payload in ITERATE_PAYLOADS:
            for name in session.libraries:
                yield functools.partial(_iterate, session, mode, payload, name)
    for payload in ITERATE_PAYLOADS:
        yield functools.partial(_iterate_memcpy, session, payload)


def _iterate(session: Session, mode: str, payload: int, name: str) -> None:
    done = child(session, mode, payload, 1, library=name, max_heaps=ITERATE_HEAPS)
    session.results.add(f"iterate/{mode}-{payload}/{name}/heaps_per_s", done["heaps_per_s"])


def _iterate_memcpy(session: Session, payload: int) -> None:
    done = memcpy(session, payload, 1, max_heaps=ITERATE_HEAPS)
    session.results.add(f"iterate/iterate-{payload}/memcpy/heaps_per_s", 1e9 / done["wall_ns"])


# ---- a capture file -----------------------------------------------------------------------------


def measure_pcap(session: Session) -> None:
    """Measure how fast a capture file in the page cache is read."""
    with _capture(session) as (path, n_packets):
        size = path.stat().st_size

        def steps() -> Iterator[Step]:
            for name in session.libraries:
                yield functools.partial(_pcap, session, name, path, n_packets, size)

        session.rounds("pcap", steps, session.plan.runs)


@contextlib.contextmanager
def _capture(session: Session) -> Iterator[tuple[Path, int]]:
    path = BUILD / "traffic.pcap"
    print(f"pcap: writing {session.plan.pcap_size / 1e9:g} GB to {path}", file=sys.stderr)
    try:
        yield path, pcap.write(path, PAYLOAD, PACKETS_PER_HEAP, session.plan.pcap_size)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def _pcap(session: Session, name: str, path: Path, n_packets: int, size: int) -> None:
    arguments = {
        "library": name,
        "path": str(path),
        "packets": n_packets,
        "payload": PAYLOAD,
        "packets_per_heap": PACKETS_PER_HEAP,
        "worker_core": session.options.receiver_core,
        "python_core": session.options.sender_core,
    }
    seconds = session.child("pcap", arguments)["seconds"]
    session.results.add(f"pcap/file/{name}/bytes_per_s", size / seconds)
