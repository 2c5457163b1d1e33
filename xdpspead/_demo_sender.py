"""The sending half of the demo: ``python -m xdpspead._demo_sender``.

A program of its own, so that it knows nothing of the receiver, and that both are what users write.
It sends one array and its timestamp in each heap, and descriptors in heaps of their own now and
then. Word ``i`` of the array in heap ``cnt`` is ``cnt * MULTIPLIER + i`` modulo 2**64, so that each
byte tells where it belongs: :func:`expected_words` is all a receiver needs to check it.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from xdpspead import Flavour, ThreadPool, send

HEAP_BYTES = 65536
PACKET_BYTES = 1024
WORDS_PER_HEAP = HEAP_BYTES // 8
MULTIPLIER = 0x9E3779B97F4A7C15

SAMPLES_NAME = "samples"
TIMESTAMP_NAME = "timestamp"

_ADDRESS_BITS = 48
_HEADER_BYTES = 8 + 6 * 8  # four items of the protocol, two of the heap
# At many Gb/s larger bursts are cheaper to send; still larger ones would only test the size of the
# receiver's queues.
_BURST_HEAPS = 4
_DESCRIPTORS_EVERY_S = 1.0
_SETTLE_S = 0.05  # for the address of the receiver to be resolved
_STOP_REPEATS = 3
_PR_SET_PDEATHSIG = 1


@dataclass
class Report:
    """What was sent, printed as JSON on the standard output at the end."""

    first_cnt: int
    last_cnt: int
    heaps: int
    """Heaps with samples."""
    descriptor_heaps: int
    packets: int
    batches: int
    """Calls of the kernel that took them."""
    payload_bytes: int
    seconds: float
    late_s: float
    """Time by which the sender was behind its rate at the end, in seconds."""


def expected_words(cnt: int) -> npt.NDArray[np.uint64]:
    """Return the content of the heap *cnt*: shape ``(WORDS_PER_HEAP,)``."""
    start = np.uint64(cnt * MULTIPLIER % 2**64)
    words: npt.NDArray[np.uint64] = _WORDS + start
    return words


_WORDS = np.arange(WORDS_PER_HEAP, dtype=np.uint64)


def timestamp(cnt: int) -> int:
    """Return the value of the item *timestamp* in the heap *cnt*."""
    return cnt * WORDS_PER_HEAP % (1 << _ADDRESS_BITS)


def items() -> send.ItemGroup:
    """Return the two items that are sent, without values."""
    group = send.ItemGroup(flavour=Flavour(4, 64, _ADDRESS_BITS, 0))
    shape = (WORDS_PER_HEAP,)
    group.add_item(0x1000, SAMPLES_NAME, "consecutive numbers", shape, dtype="<u8")
    index = [("u", _ADDRESS_BITS)]
    group.add_item(0x1001, TIMESTAMP_NAME, "index of the first number", (), format=index)
    return group


def data_heap(group: send.ItemGroup, cnt: int) -> send.Heap:
    """Return the heap *cnt*, of packets that are all alike."""
    group[SAMPLES_NAME].value = expected_words(cnt)
    group[TIMESTAMP_NAME].value = timestamp(cnt)
    heap = group.get_heap(descriptors="none")
    heap.repeat_pointers = True
    return heap


def configuration(gbps: float) -> send.StreamConfig:
    """Return how to send, at a payload rate of *gbps*."""
    packet_bytes = _HEADER_BYTES + PACKET_BYTES
    rate = gbps * 1e9 / 8 * packet_bytes / PACKET_BYTES
    burst = _BURST_HEAPS * HEAP_BYTES // PACKET_BYTES * packet_bytes
    return send.StreamConfig(max_packet_size=packet_bytes, rate=rate, burst_size=burst)


def open_stream(host: str, port: int, config: send.StreamConfig, transport: str) -> send.SyncStream:
    """Return a stream that sends by ``"udp"`` or ``"udp_xdp"``."""
    if transport == "udp":
        return send.UdpStream(ThreadPool(), [(host, port)], config)
    return send.UdpXdpStream(ThreadPool(), config, send.UdpXdpConfig(endpoints=[(host, port)]))


def run(stream: send.SyncStream, *, gbps: float, seconds: float) -> Report:
    """Send heaps for some time, then a heap that ends the stream."""
    group = items()
    cnt = descriptor_heaps = 1
    stream.send_heap(group.get_heap(data="none"), cnt)
    time.sleep(_SETTLE_S)
    begin = time.monotonic()
    descriptors_due = begin + _DESCRIPTORS_EVERY_S
    while (now := time.monotonic()) < begin + seconds:
        cnt += 1
        if now < descriptors_due:
            stream.send_heap(data_heap(group, cnt), cnt)
            continue
        stream.send_heap(group.get_heap(descriptors="all", data="none"), cnt)
        descriptor_heaps += 1
        descriptors_due += _DESCRIPTORS_EVERY_S
    elapsed = time.monotonic() - begin
    stats = stream.stats
    for repeat in range(_STOP_REPEATS):
        stream.send_heap(group.get_end(), cnt + 1 + repeat)
        time.sleep(_SETTLE_S)
    payload_bytes = (cnt - descriptor_heaps) * HEAP_BYTES
    return Report(
        first_cnt=1,
        last_cnt=cnt,
        heaps=stats["heaps"] - descriptor_heaps,
        descriptor_heaps=descriptor_heaps,
        packets=stats["packets"],
        batches=stats["batches"],
        payload_bytes=payload_bytes,
        seconds=elapsed,
        late_s=elapsed - payload_bytes * 8 / (gbps * 1e9),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Send as the command line says and print a report."""
    parser = argparse.ArgumentParser(description="Send a SPEAD stream that can be checked.")
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--gbps", type=float, required=True, help="payload in 10**9 bit/s")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--send", choices=["udp", "udp_xdp"], default="udp")
    parser.add_argument("--parent", type=int, help="pid of the process to die with")
    options = parser.parse_args(arguments)
    if options.parent is not None:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != options.parent:  # it died before that
            return 1
    config = configuration(options.gbps)
    stream = open_stream(options.host, options.port, config, options.send)
    report = run(stream, gbps=options.gbps, seconds=options.seconds)
    print(json.dumps(asdict(report)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
