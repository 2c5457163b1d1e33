"""A receiver in a process of its own, pinned to one core, ruled by lines on its standard input.

``snap`` prints counters and CPU times, ``check`` compares the latest heap with what was sent,
``stall SECONDS`` stops the iteration for so long, ``latencies`` prints in nanoseconds how long each
heap took since the last call, ``quit`` (or the end of the input) ends it. Python iterates over the
heaps and drops them, in one thread for each stream, or in one for all.

Either everything is left at the library's defaults, or the stream is tuned as spead2's manual
advises: a memory pool, a longer ring, and a socket buffer of 8 MiB whatever the machine allows.
On top of either come the settings:

``stream``, ``reader``
    Keywords for ``StreamConfig`` and ``UdpXdpConfig``.
``streams``
    How many streams there are, each at ports of its own.
``merged``
    Whether one thread takes the heaps of all of them (`recv.MergedStreams`).
``endpoints``
    How many ports each stream receives.
``python_core``
    Core of the threads that iterate, if it is not to be that of all others.

The time that a heap took is that from the timestamp in its last packet (see generate.h) to the
return of ``next`` with it.
"""

from __future__ import annotations

import ctypes
import json
import os
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
    settings = arguments["settings"]
    n_streams = settings.get("streams", 1)
    pool = lib.base.ThreadPool(1, [arguments["core"]])
    streams = [_make_stream(lib, pool, arguments) for _ in range(n_streams)]
    ready = {"ready": True}
    try:
        for i, stream in enumerate(streams):
            ready |= _add_reader(lib, stream, arguments, _ports(arguments, i))
    except Exception as error:  # noqa: BLE001 (told to the parent, which ends this process)
        _answer({"error": f"{type(error).__name__}: {error}"})
        return
    if settings.get("merged"):
        heaps = (heap for _, heap in lib.recv.MergedStreams(streams))
        receivers = [_Receiver(streams, heaps, arguments)]
    else:
        receivers = [_Receiver([stream], stream, arguments) for stream in streams]
    control = threading.Thread(target=obey, args=(receivers,), name="control", daemon=True)
    others = [threading.Thread(target=other.iterate) for other in receivers[1:]]
    for thread in others:
        thread.start()
    _answer(ready)
    control.start()
    receivers[0].iterate()
    control.join()  # it may still be stopping the stream, which must not go away under it
    for thread in others:
        thread.join()


def _ports(arguments: dict[str, Any], i: int) -> range:
    """Return the ports of stream number *i*."""
    n: int = arguments["settings"].get("endpoints", 1)
    first: int = arguments["port"] + i * n
    return range(first, first + n)


def _answer(value: dict[str, Any]) -> None:
    print(json.dumps(value), flush=True)


def _make_stream(lib: library.Library, pool: Any, arguments: dict[str, Any]) -> Any:
    config = dict(arguments["settings"].get("stream", {}))
    if not arguments["tuned"]:
        return lib.recv.Stream(pool, lib.recv.StreamConfig(**config))
    heap_size = arguments["payload"] * arguments["packets_per_heap"]
    in_flight = TUNED_RING_HEAPS + TUNED_MAX_HEAPS + 8
    memory = library.memory_pool(lib, heap_size, in_flight)
    config = {"max_heaps": TUNED_MAX_HEAPS, "memory_allocator": memory, **config}
    return lib.recv.Stream(
        pool, lib.recv.StreamConfig(**config), lib.recv.RingStreamConfig(heaps=TUNED_RING_HEAPS)
    )


def _add_reader(
    lib: library.Library, stream: Any, arguments: dict[str, Any], ports: range
) -> dict[str, int]:
    """Add the reader asked for; return the sizes of its socket buffer and of its UMEM."""
    address = arguments["address"]
    if arguments["transport"] == "xdp":
        config = lib.recv.UdpXdpConfig(
            endpoints=[(address, port) for port in ports],
            interface=arguments["interface"],
            **arguments["settings"].get("reader", {}),
        )
        stream.add_udp_xdp_reader(config)
        return {"buffer_size": 0, "umem": config.buffer_size}
    for port in ports:
        stream.add_udp_reader(port, bind_hostname=address)
    with _udp_socket(ports[0]) as sock:
        if arguments["tuned"]:
            # The kernel caps what a socket may ask for at net.core.rmem_max, which the manual tells
            # users to raise. Root may go above it for one socket; the machine stays as it was.
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, TUNED_SOCKET_BUFFER)
        # The kernel doubles what is set, for its own bookkeeping.
        size = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2
        return {"buffer_size": size, "umem": 0}


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
    """Streams, the heaps that came out of them, and how long they took."""

    def __init__(self, streams: list[Any], source: Any, arguments: dict[str, Any]) -> None:
        self.streams = streams
        self.source = source
        self.payload = arguments["payload"]
        self.packets_per_heap = arguments["packets_per_heap"]
        self.timestamp = arguments["timestamp"]
        self.last: Any = None
        self.heaps = 0
        self.stall_s = 0.0
        self.latencies: list[int] = []
        self.thread = 0
        self.core = arguments["settings"].get("python_core", arguments["core"])

    def iterate(self) -> None:
        self.thread = threading.get_native_id()
        os.sched_setaffinity(self.thread, {self.core})
        if self.timestamp:
            self._iterate_timed()
            return
        for heap in self.source:
            self.last = heap
            self.heaps += 1
            if self.stall_s:
                seconds, self.stall_s = self.stall_s, 0.0
                time.sleep(seconds)

    def _iterate_timed(self) -> None:
        # The timestamp of the last packet that the heap has.
        at = (self.packets_per_heap - 1) * self.payload + packets.STAMP_SIZE
        now_ns = time.monotonic_ns
        for heap in self.source:
            now = now_ns()
            self.last = heap
            self.heaps += 1
            for item in heap.get_items():
                if item.id == packets.ITEM_ID:
                    sent = bytes(memoryview(item)[at : at + packets.TIMESTAMP_SIZE])
                    self.latencies.append(now - int.from_bytes(sent, "big"))

    def check(self) -> str:
        """Compare the latest heap with what was sent; return what is wrong."""
        if self.last is None:
            return ""
        return packets.check_heap(
            self.last, self.payload, self.packets_per_heap, timestamp=self.timestamp
        )


def obey(receivers: list[_Receiver]) -> None:
    """Do what the lines on the standard input say."""
    for line in sys.stdin:
        command, _, argument = line.strip().partition(" ")
        if command == "snap":
            _answer(_snap(receivers))
        elif command == "check":
            _answer({"wrong": "".join(receiver.check() for receiver in receivers)})
        elif command == "stall":
            for receiver in receivers:
                receiver.stall_s = float(argument)
        elif command == "latencies":
            taken = [receiver.latencies for receiver in receivers]
            for receiver in receivers:
                receiver.latencies = []
            _answer({"ns": [ns for some in taken for ns in some]})
        else:
            break
    for stream in _streams(receivers):
        stream.stop()


def _streams(receivers: list[_Receiver]) -> list[Any]:
    return [stream for receiver in receivers for stream in receiver.streams]


def _snap(receivers: list[_Receiver]) -> dict[str, Any]:
    threads = library.thread_cpu_ns()
    stats: dict[str, int] = {}
    streams = _streams(receivers)
    for stream in streams:
        for name, value in stream.stats.items():
            stats[name] = stats.get(name, 0) + value
    return {
        # Without this thread, which asks every stream and is no part of receiving.
        "cpu_ns": time.process_time_ns() - time.thread_time_ns(),
        "rss": library.rss(),
        "python_ns": sum(threads.get(receiver.thread, 0) for receiver in receivers),
        "heaps": sum(receiver.heaps for receiver in receivers),
        "stats": stats,
        "readers": [str(reader) for reader in getattr(streams[0], "readers", [])],
    }
