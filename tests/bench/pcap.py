"""A capture file of SPEAD packets, and one reading of it in a process of its own."""

from __future__ import annotations

import json
import os
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench import library, packets

_PORT = 8888
_MAX_HEAPS = 4
_RING_HEAPS = 32
_CHUNK = 64 << 20


def _headers(payload_size: int) -> bytes:
    """Return what stands in front of a UDP payload: pcap record, Ethernet, IPv4, UDP."""
    udp = struct.pack(">HHHH", 20000, _PORT, 8 + payload_size, 0)
    words = struct.pack(">BBHHHBBH4B4B", 0x45, 0, 28 + payload_size, 0, 0x4000, 64, 17, 0,
                        192, 0, 2, 1, 192, 0, 2, 2)  # fmt: skip
    total = sum(struct.unpack(">10H", words))
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    ip = words[:10] + struct.pack(">H", ~total & 0xFFFF) + words[12:]
    ethernet = bytes(11) + b"\x01" + struct.pack(">H", 0x0800)
    size = len(ethernet) + len(ip) + len(udp) + payload_size
    return struct.pack("<IIII", 0, 0, size, size) + ethernet + ip + udp


def write(path: Path, payload: int, packets_per_heap: int, size: int) -> int:
    """Write a capture file of about *size* bytes; return how many packets it holds.

    Heap ids go on from chunk to chunk, so that no heap comes twice.
    """
    heap_bytes = packets_per_heap * (payload + 100)
    n_heaps = max(4, min(size, _CHUNK) // heap_bytes)
    n_chunks = max(1, round(size / (n_heaps * heap_bytes)))
    with open(path, "wb") as file:
        file.write(struct.pack("<IHHIIII", 0xA1B2C3D4, 2, 4, 0, 0, 262144, 1))
        for chunk in range(n_chunks):
            traffic = packets.make(payload, packets_per_heap, n_heaps, 1 + chunk * n_heaps)
            heaps = traffic.buffer.reshape(n_heaps, traffic.heap_stride)
            columns = []
            start = 0
            for at in traffic.payload_at:
                end = int(at) + payload
                header = np.frombuffer(_headers(end - start), np.uint8)
                columns += [np.broadcast_to(header, (n_heaps, len(header))), heaps[:, start:end]]
                start = end
            file.write(np.concatenate(columns, axis=1))
    return n_chunks * n_heaps * packets_per_heap


def child(arguments: dict[str, Any]) -> None:
    """Read the file once and print how many seconds it took."""
    lib = library.load(arguments["library"])
    os.sched_setaffinity(0, {arguments["worker_core"]})
    pool = lib.base.ThreadPool(1, [arguments["worker_core"]])
    os.sched_setaffinity(0, {arguments["python_core"]})
    payload, per_heap = arguments["payload"], arguments["packets_per_heap"]
    memory = library.memory_pool(lib, payload * per_heap, _RING_HEAPS + _MAX_HEAPS + 8)
    stream = lib.recv.Stream(
        pool,
        lib.recv.StreamConfig(max_heaps=_MAX_HEAPS, memory_allocator=memory),
        lib.recv.RingStreamConfig(heaps=_RING_HEAPS),
    )
    with open(arguments["path"], "rb") as file:  # into the page cache, if it is not there
        while file.read(16 << 20):
            pass
    start = time.perf_counter()
    stream.add_udp_pcap_file_reader(arguments["path"])
    last = None
    for heap in stream:
        last = heap
    seconds = time.perf_counter() - start
    if stream.stats["packets"] != arguments["packets"]:
        raise RuntimeError(f"{stream.stats['packets']} of {arguments['packets']} packets were read")
    wrong = packets.check_heap(last, payload, per_heap)
    if wrong:
        raise RuntimeError(wrong)
    print(json.dumps({"seconds": seconds}))
