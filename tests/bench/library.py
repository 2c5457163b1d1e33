"""Load the package under test or the peer, which have the same API.

The parent process imports neither of them; it asks a child what there is.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

OURS = "xdpspead"
PEER = "spead2"
LIBRARIES = (OURS, PEER)


class Library(NamedTuple):
    """A package with spead2's API."""

    name: str
    base: Any
    recv: Any


def load(name: str) -> Library:
    """Import the package *name* and its ``recv`` module."""
    if name not in LIBRARIES:
        raise ValueError(f"{name!r} is not one of {', '.join(LIBRARIES)}")
    return Library(name, importlib.import_module(name), importlib.import_module(f"{name}.recv"))


def memory_pool(library: Library, heap_size: int, in_flight: int) -> Any:
    """Return a memory pool that never runs empty while *in_flight* heaps are somewhere."""
    # The range is as narrow as the manual advises, and wide enough for heaps of one size only.
    return library.base.MemoryPool(heap_size, heap_size, in_flight, in_flight)


def thread_cpu_ns() -> dict[int, int]:
    """Return the CPU time of each thread of this process, in nanoseconds."""
    times = {}
    for thread in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{thread}/schedstat") as file:
            times[int(thread)] = int(file.read().split()[0])
    return times


def rss() -> int:
    """Return how many bytes of this process's memory are resident."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def child(arguments: dict[str, Any]) -> None:
    """Print, as JSON, what the installed package *name* is; see that it has bytecode."""
    import compileall  # of which receivers are to have nothing in memory

    try:
        library = load(arguments["name"])
    except ImportError as error:
        print(json.dumps({"error": str(error)}))
        return
    compileall.compile_dir(Path(library.base.__file__).parent, quiet=2)
    version = getattr(library.base, "__version__", "unknown")
    xdp = hasattr(library.recv, "UdpXdpConfig")
    facts = {"version": version, "xdp": xdp, "path": library.base.__file__}
    with contextlib.suppress(ImportError):
        send = importlib.import_module(f"{arguments['name']}.send")
        facts["send"] = hasattr(send, "UdpStream")
        facts["send_xdp"] = hasattr(send, "UdpXdpStream")
    print(json.dumps(facts))
