"""A receiver in a process of its own, pinned to one core, ruled by lines on its standard input.

``snap`` prints counters and CPU times, ``check`` compares the latest heap with what was sent,
``quit`` (or the end of the input) ends it. Python iterates over the heaps and drops them.

Either everything is left at the library's defaults, or the stream is tuned as spead2's manual
advises: a memory pool, a longer ring, and a socket buffer of 8 MiB whatever the machine allows.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import socket
import sys
import threading
import time
from typing import Any

from bench import library, packets

TUNED_MAX_HEAPS = 4
TUNED_RING_HEAPS = 64
TUNED_SOCKET_BUFFER = 8 << 20
_PR_SET_PDEATHSIG = 1
_SO_RCVBUFFORCE = 33


def child(arguments: dict[str, Any]) -> None:
    """Receive until told to stop."""
    # The parent ends this process; Ctrl-C reaches the whole group and is the parent's business.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    os.sched_setaffinity(0, {arguments["core"]})
    lib = library.load(arguments["library"])
    stream = _make_stream(lib, arguments)
    try:
        buffer_size = _add_reader(lib, stream, arguments)
    except Exception as error:  # noqa: BLE001 (told to the parent, which ends this process)
        _answer({"error": f"{type(error).__name__}: {error}"})
        return
    receiver = _Receiver(stream, arguments)
    control = threading.Thread(target=receiver.obey, name="control", daemon=True)
    _answer({"ready": True, "buffer_size": buffer_size})
    control.start()
    receiver.iterate()
    control.join()  # it may still be stopping the stream, which must not go away under it


def _answer(value: dict[str, Any]) -> None:
    print(json.dumps(value), flush=True)


def _make_stream(lib: library.Library, arguments: dict[str, Any]) -> Any:
    pool = lib.base.ThreadPool(1, [arguments["core"]])
    if not arguments["tuned"]:
        return lib.recv.Stream(pool)
    heap_size = arguments["payload"] * arguments["packets_per_heap"]
    in_flight = TUNED_RING_HEAPS + TUNED_MAX_HEAPS + 8
    memory = library.memory_pool(lib, heap_size, in_flight)
    return lib.recv.Stream(
        pool,
        lib.recv.StreamConfig(max_heaps=TUNED_MAX_HEAPS, memory_allocator=memory),
        lib.recv.RingStreamConfig(heaps=TUNED_RING_HEAPS),
    )


def _add_reader(lib: library.Library, stream: Any, arguments: dict[str, Any]) -> int:
    """Add the reader asked for; return the size of its socket buffer, 0 where there is none."""
    address, port = arguments["address"], arguments["port"]
    if arguments["transport"] == "xdp":
        config = lib.recv.UdpXdpConfig(
            endpoints=[(address, port)], interface=arguments["interface"]
        )
        stream.add_udp_xdp_reader(config)
        return 0
    stream.add_udp_reader(port, bind_hostname=address)
    with _udp_socket(port) as sock:
        if arguments["tuned"]:
            # The kernel caps what a socket may ask for at net.core.rmem_max, which the manual tells
            # users to raise. Root may go above it for one socket; the machine stays as it was.
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, TUNED_SOCKET_BUFFER)
        # The kernel doubles what is set, for its own bookkeeping.
        return sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2


def _udp_socket(port: int) -> socket.socket:
    """Return a second handle of this process's UDP socket at *port*."""
    with open("/proc/self/net/udp") as file:
        rows = [line.split() for line in file.readlines()[1:]]
    inodes = {row[9] for row in rows if int(row[1].rpartition(":")[2], 16) == port}
    for entry in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{entry}")
        except OSError:
            continue  # the descriptor that listed the folder
        if target.startswith("socket:[") and target[8:-1] in inodes:
            return socket.socket(fileno=os.dup(int(entry)))
    raise RuntimeError(f"this process has no UDP socket at port {port}")


class _Receiver:
    """The stream, the heaps that came out of it, and the thread that answers the parent."""

    def __init__(self, stream: Any, arguments: dict[str, Any]) -> None:
        self.stream = stream
        self.payload = arguments["payload"]
        self.packets_per_heap = arguments["packets_per_heap"]
        self.last: Any = None
        self.heaps = 0

    def iterate(self) -> None:
        for heap in self.stream:
            self.last = heap
            self.heaps += 1

    def obey(self) -> None:
        for line in sys.stdin:
            command = line.strip()
            if command == "snap":
                _answer(self.snap())
            elif command == "check":
                heap = self.last
                wrong = packets.check_heap(heap, self.payload, self.packets_per_heap)
                _answer({"wrong": wrong})
            else:
                break
        self.stream.stop()

    def snap(self) -> dict[str, Any]:
        threads = library.thread_cpu_ns()
        usage = resource.getrusage(resource.RUSAGE_SELF)
        stats = dict(self.stream.stats.items())
        return {
            "cpu_ns": time.process_time_ns(),
            "user_s": usage.ru_utime,
            "system_s": usage.ru_stime,
            "max_rss": usage.ru_maxrss * 1024,
            "python_ns": threads[os.getpid()],
            "time_ns": time.monotonic_ns(),
            "heaps": self.heaps,
            "stats": stats,
            "readers": [str(reader) for reader in getattr(self.stream, "readers", [])],
        }
