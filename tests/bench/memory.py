"""One measurement from a memory buffer, in a process of its own.

The buffer is larger than the core's caches. It is read again and again, each time by a new stream,
until the time is over; the first reading warms everything up and is not counted.
"""

from __future__ import annotations

import ctypes
import json
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from bench import floors, library, packets

MAX_HEAPS = 4
#: How many heaps Python takes at a time, and spead2's ring holds: its default of four would slow it
#: down. Ours has room for small heaps by default.
RING_HEAPS = 32
#: Of heaps with no more bytes than this, so many are in our ring.
SMALL_HEAP, SMALL_HEAPS = 8192, 256


def child(arguments: dict[str, Any]) -> None:
    """Measure what *arguments* ask for and print it as JSON."""
    modes = {
        "core": measure_stream,
        "iterate": measure_stream,
        "many": measure_stream,
        "update": measure_stream,
        "no_pool": measure_stream,
        "memcpy": measure_memcpy,
    }
    print(json.dumps(modes[arguments["mode"]](arguments)))


def _traffic(arguments: dict[str, Any]) -> packets.Traffic:
    payload, per_heap = arguments["payload"], arguments["packets_per_heap"]
    n_heaps = max(16, arguments["buffer_size"] // ((payload + 40) * per_heap))
    n_heaps = min(n_heaps, arguments["max_heaps"])
    at_once = arguments.get("interleave", 1)
    if at_once == 1:
        return packets.make(payload, per_heap, n_heaps)
    traffic = packets.make(payload, per_heap, max(1, n_heaps // at_once) * at_once)
    return traffic._replace(buffer=packets.interleave(traffic, payload, at_once))


def _drain(stream: Any) -> Any:
    last = None
    for heap in stream:
        last = heap
    return last


def _drain_many(stream: Any) -> Any:
    """Take heaps many at a time; one by one where there is no call for that."""
    if not hasattr(stream, "get_many"):
        return _drain(stream)
    last = None
    while True:
        try:
            heaps = stream.get_many(RING_HEAPS)
        except Exception as error:  # each library has its own Stopped
            if type(error).__name__ != "Stopped":
                raise
            return last
        for heap in heaps:
            last = heap


def _update_into(group: Any) -> Callable[[Any], Any]:
    def drain(stream: Any) -> Any:
        last = None
        for heap in stream:
            group.update(heap)
            last = heap
        return last

    return drain


class _Reading:
    """Streams that read one buffer, one after the other, with the same threads and memory."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self.lib = lib = library.load(arguments["library"])
        self.payload = arguments["payload"]
        self.per_heap = arguments["packets_per_heap"]
        self.traffic = _traffic(arguments)
        # Threads that a library starts inherit the core of the thread that starts them.
        os.sched_setaffinity(0, {arguments["worker_core"]})
        self.pool = lib.base.ThreadPool(1, [arguments["worker_core"]])
        os.sched_setaffinity(0, {arguments["python_core"]})
        heap_size = self.payload * self.per_heap
        self.config = {"max_heaps": MAX_HEAPS, **arguments.get("stream", {})}
        # In the ring, being built, and in the hands of Python and the worker.
        in_ring = RING_HEAPS if heap_size > SMALL_HEAP else SMALL_HEAPS
        if arguments["mode"] != "no_pool":
            pool = library.memory_pool(lib, heap_size, in_ring + MAX_HEAPS + 8)
            self.config["memory_allocator"] = pool
        self.ring = {} if arguments["library"] == library.OURS else {"heaps": RING_HEAPS}
        self.drain: Callable[[Any], Any] = _drain
        if arguments["mode"] == "many":
            self.drain = _drain_many
        if arguments["mode"] == "update":
            group = lib.base.ItemGroup()
            group.add_item(packets.ITEM_ID, "data", "payload", (heap_size,), np.uint8)
            self.drain = _update_into(group)

    def once(self) -> tuple[float, int, int]:
        """Read the buffer; return wall time in s, CPU time of Python's thread and of all others."""
        stream = self.lib.recv.Stream(
            self.pool,
            self.lib.recv.StreamConfig(**self.config),
            self.lib.recv.RingStreamConfig(**self.ring),
        )
        before = library.thread_cpu_ns()
        start = time.perf_counter()
        stream.add_buffer_reader(self.traffic.buffer)
        last = self.drain(stream)
        wall = time.perf_counter() - start
        time.sleep(0.002)  # the kernel accounts for a thread when it leaves its core
        after = library.thread_cpu_ns()
        _check(stream, last, self.traffic, self.payload, self.per_heap)
        me = threading.get_native_id()
        total = sum(after.values()) - sum(before.values())
        python = after[me] - before[me]
        return wall, python, total - python


def measure_stream(arguments: dict[str, Any]) -> dict[str, float]:
    """Measure a stream that reads the buffer.

    Returns
    -------
    dict
        ``worker_ns`` (CPU time of all threads but Python's), ``python_ns`` (CPU time of Python's)
        and ``wall_ns``, each per packet; ``heaps_per_s``; ``packets`` counted.
    """
    reading = _Reading(arguments)
    reading.once()
    wall, python, worker, rounds = 0.0, 0, 0, 0
    while wall < arguments["seconds"]:
        once = reading.once()
        wall += once[0]
        python += once[1]
        worker += once[2]
        rounds += 1
    n_heaps = rounds * reading.traffic.n_heaps
    n_packets = n_heaps * reading.per_heap
    return {
        "worker_ns": worker / n_packets,
        "python_ns": python / n_packets,
        "wall_ns": 1e9 * wall / n_packets,
        "heaps_per_s": n_heaps / wall,
        "packets": n_packets,
    }


def _check(stream: Any, last: Any, traffic: packets.Traffic, payload: int, per_heap: int) -> None:
    stats = stream.stats
    if stats["packets"] != traffic.n_heaps * per_heap or stats["heaps"] != traffic.n_heaps:
        raise RuntimeError(
            f"{stats['heaps']} heaps of {stats['packets']} packets came out of "
            f"{traffic.n_heaps} heaps of {traffic.n_heaps * per_heap} packets"
        )
    if last is None or last.cnt != traffic.n_heaps:
        raise RuntimeError("the last heap did not arrive last")
    wrong = packets.check_heap(last, payload, per_heap)
    if wrong:
        raise RuntimeError(wrong)


def measure_memcpy(arguments: dict[str, Any]) -> dict[str, float]:
    """Measure memcpy of the same payloads, out of a buffer with the same packets in it.

    It goes into `buffers` buffers of the size of a heap, in turn: a pool hands out the buffer that
    came back last, so that few are in use at a time.
    """
    payload, per_heap = arguments["payload"], arguments["packets_per_heap"]
    traffic = _traffic(arguments)
    os.sched_setaffinity(0, {arguments["worker_core"]})
    lib = ctypes.CDLL(arguments["floor"])
    lib.floor_memcpy.restype = None
    size = ctypes.c_size_t
    n_buffers = arguments["buffers"]
    heaps = floors.HeapBuffers(payload * per_heap, n_buffers)

    def one_round() -> float:
        start = time.perf_counter()
        lib.floor_memcpy(
            ctypes.c_void_p(traffic.buffer.ctypes.data),
            size(traffic.n_heaps),
            size(traffic.heap_stride),
            ctypes.c_void_p(traffic.payload_at.ctypes.data),
            size(per_heap),
            size(payload),
            heaps.pointers,
            size(n_buffers),
        )
        return time.perf_counter() - start

    one_round()
    total, rounds, cpu = 0.0, 0, time.thread_time_ns()
    while total < arguments["seconds"]:
        total += one_round()
        rounds += 1
    cpu = time.thread_time_ns() - cpu
    last = (traffic.n_heaps - 1) % n_buffers
    wanted = [packets.expected_packet(traffic.n_heaps, i, payload) for i in range(per_heap)]
    if heaps.blocks[last].raw != np.concatenate(wanted).tobytes():
        raise RuntimeError("the floor copied wrong bytes")
    n_packets = rounds * traffic.n_heaps * per_heap
    return {
        "wall_ns": 1e9 * total / n_packets,
        "cpu_ns": cpu / n_packets,
        "packets": n_packets,
    }
