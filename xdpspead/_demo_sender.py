"""The sending half of ``python -m xdpspead demo``: a program that knows nothing of the receiver.

It builds SPEAD-64-48 packets itself from the wire format, so that receiver and sender cannot make
the same mistake, and it is started by its path, so that it does not even import the package.

The first heap carries descriptors (repeated now and then), the others one array each. Word ``i`` of
the array in heap ``cnt`` is ``cnt * MULTIPLIER + i`` modulo 2**64, so that each byte tells where it
belongs: :func:`expected_words` is all a receiver needs to check it.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

HEAP_BYTES = 65536
PACKET_BYTES = 1024
PACKETS_PER_HEAP = HEAP_BYTES // PACKET_BYTES
WORDS_PER_HEAP = HEAP_BYTES // 8
MULTIPLIER = 0x9E3779B97F4A7C15

SAMPLES_NAME = "samples"
TIMESTAMP_NAME = "timestamp"

_ADDRESS_BITS = 48
_IMMEDIATE = 1 << 63
_HEADER = struct.pack(">BBBBHH", 0x53, 4, 8 - _ADDRESS_BITS // 8, _ADDRESS_BITS // 8, 0, 0)[:6]

_HEAP_CNT = 0x01
_HEAP_LENGTH = 0x02
_PAYLOAD_OFFSET = 0x03
_PAYLOAD_LENGTH = 0x04
_DESCRIPTOR = 0x05
_STREAM_CTRL = 0x06
_STREAM_STOP = 2
_NAME = 0x10
_DESCRIPTION = 0x11
_SHAPE = 0x12
_FORMAT = 0x13
_ID = 0x14
_DTYPE = 0x15
_SAMPLES = 0x1000
_TIMESTAMP = 0x1001

_DESCRIPTOR_EVERY_S = 1.0
_SETTLE_S = 0.05  # for the address of the receiver to be resolved
_STOP_REPEATS = 3

_UDP_SEGMENT = 103
# The kernel takes at most 64 segments and 65,507 bytes a call.
_SEGMENTS_PER_CALL = 32
_PR_SET_PDEATHSIG = 1
_PR_SET_TIMERSLACK = 29
# A sender that was held up catches up so many heaps at once, and gives up the rest of its delay:
# a longer burst would only test the size of the receiver's queues.
_CATCH_UP_HEAPS = 4

_ITEMS = 6
_PACKET = np.dtype(
    [("header", "S8"), ("items", ">u8", (_ITEMS,)), ("payload", "<u8", (PACKET_BYTES // 8,))]
)


@dataclass
class Report:
    """What was sent, printed as JSON on the standard output at the end."""

    first_cnt: int
    last_cnt: int
    heaps: int
    """Heaps with samples."""
    descriptor_heaps: int
    packets: int
    payload_bytes: int
    seconds: float
    gso: bool
    """Whether the kernel cut the packets from larger buffers (UDP_SEGMENT)."""
    gave_up_s: float
    """Time by which the sender fell behind its rate, in seconds."""


def expected_words(cnt: int) -> npt.NDArray[np.uint64]:
    """Return the content of the heap *cnt*: shape ``(WORDS_PER_HEAP,)``."""
    start = np.uint64(cnt * MULTIPLIER % 2**64)
    words: npt.NDArray[np.uint64] = _WORDS + start
    return words


_WORDS = np.arange(WORDS_PER_HEAP, dtype=np.uint64)


def _immediate(item_id: int, value: int) -> int:
    return _IMMEDIATE | item_id << _ADDRESS_BITS | value


def _addressed(item_id: int, offset: int) -> int:
    return item_id << _ADDRESS_BITS | offset


def _packet(items: Sequence[int], payload: bytes = b"") -> bytes:
    header = _HEADER + struct.pack(">H", len(items))
    return header + struct.pack(f">{len(items)}Q", *items) + payload


def _whole_heap(cnt: int, items: Sequence[int], payload: bytes = b"") -> bytes:
    """Return a heap that fits in one packet."""
    special = [
        _immediate(_HEAP_CNT, cnt),
        _immediate(_HEAP_LENGTH, len(payload)),
        _immediate(_PAYLOAD_OFFSET, 0),
        _immediate(_PAYLOAD_LENGTH, len(payload)),
    ]
    return _packet([*special, *items], payload)


def _descriptor(item_id: int, fields: dict[int, bytes]) -> bytes:
    """Return an item descriptor: a SPEAD packet of its own, whose items are the fields."""
    items = [_immediate(_ID, item_id)]
    payload = b""
    for field, value in fields.items():
        items.append(_addressed(field, len(payload)))
        payload += value
    return _whole_heap(1, items, payload)


def _samples_descriptor() -> bytes:
    dtype = {"descr": "<u8", "fortran_order": False, "shape": (WORDS_PER_HEAP,)}
    fields = {
        _NAME: SAMPLES_NAME.encode(),
        _DESCRIPTION: b"consecutive numbers",
        _DTYPE: repr(dtype).encode(),
    }
    return _descriptor(_SAMPLES, fields)


def _timestamp_descriptor() -> bytes:
    # A scalar: no SHAPE. Each field of FORMAT is a letter and a number of bits.
    fields = {
        _NAME: TIMESTAMP_NAME.encode(),
        _DESCRIPTION: b"index of the first number",
        _FORMAT: b"u" + _ADDRESS_BITS.to_bytes(2, "big"),
    }
    return _descriptor(_TIMESTAMP, fields)


def descriptor_heap(cnt: int) -> bytes:
    """Return the packet of a heap that describes the items of the others."""
    items = []
    payload = b""
    for descriptor in (_samples_descriptor(), _timestamp_descriptor()):
        items.append(_addressed(_DESCRIPTOR, len(payload)))
        payload += descriptor
    return _whole_heap(cnt, items, payload)


def stop_heap(cnt: int) -> bytes:
    """Return the packet of a heap that ends the stream."""
    return _whole_heap(cnt, [_immediate(_STREAM_CTRL, _STREAM_STOP)])


def timestamp(cnt: int) -> int:
    """Return the value of the item *timestamp* in the heap *cnt*."""
    return cnt * WORDS_PER_HEAP % (1 << _ADDRESS_BITS)


class HeapBuilder:
    """Makes the packets of one heap after the other, in the same memory."""

    def __init__(self) -> None:
        self._packets = np.zeros(PACKETS_PER_HEAP, _PACKET)
        offsets = np.arange(PACKETS_PER_HEAP, dtype=np.uint64) * np.uint64(PACKET_BYTES)
        self._packets["header"] = _HEADER + struct.pack(">H", _ITEMS)
        items = self._packets["items"]
        items[:, 1] = _immediate(_HEAP_LENGTH, HEAP_BYTES)
        items[:, 2] = np.uint64(_immediate(_PAYLOAD_OFFSET, 0)) + offsets
        items[:, 3] = _immediate(_PAYLOAD_LENGTH, PACKET_BYTES)
        items[:, 4] = _addressed(_SAMPLES, 0)

    def build(self, cnt: int) -> memoryview:
        """Return the packets of the heap *cnt*, back to back, valid until the next call."""
        items = self._packets["items"]
        items[:, 0] = _immediate(_HEAP_CNT, cnt)
        items[:, 5] = _immediate(_TIMESTAMP, timestamp(cnt))
        self._packets["payload"] = expected_words(cnt).reshape(PACKETS_PER_HEAP, -1)
        return self._packets.view(np.uint8).data


class _Socket:
    """A UDP socket that sends many packets of one size at a call if the kernel can."""

    def __init__(self, host: str, port: int) -> None:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST)
        family, _, _, _, target = found[0]
        self._target = target
        self._plain = socket.socket(family, socket.SOCK_DGRAM)
        self._segmented = socket.socket(family, socket.SOCK_DGRAM)
        self.gso = True
        try:
            self._segmented.setsockopt(socket.IPPROTO_UDP, _UDP_SEGMENT, _PACKET.itemsize)
        except OSError:
            self.gso = False

    def send(self, packet: bytes) -> None:
        self._plain.sendto(packet, self._target)

    def send_heap(self, packets: memoryview) -> None:
        step = _SEGMENTS_PER_CALL * _PACKET.itemsize if self.gso else _PACKET.itemsize
        for start in range(0, len(packets), step):
            try:
                self._send_part(packets[start : start + step])
            except OSError:
                if not self.gso:
                    raise
                # The device cannot: nothing of this part was sent.
                self.gso = False
                self.send_heap(packets[start:])
                return

    def _send_part(self, part: memoryview) -> None:
        sock = self._segmented if self.gso else self._plain
        sock.sendto(part, self._target)


def send(host: str, port: int, *, gbps: float, seconds: float) -> Report:
    """Send heaps for some time at a steady rate, then a stop heap.

    Parameters
    ----------
    host, port
        Where to: a numeric address.
    gbps
        Payload rate in 10**9 bit/s.
    seconds
        How long.
    """
    sock = _Socket(host, port)
    builder = HeapBuilder()
    interval = HEAP_BYTES * 8 / (gbps * 1e9)
    cnt = first_cnt = 1
    heaps = descriptor_heaps = 0
    gave_up = 0.0

    sock.send(descriptor_heap(cnt))
    descriptor_heaps += 1
    time.sleep(_SETTLE_S)
    begin = due = time.monotonic()
    descriptor_due = begin + _DESCRIPTOR_EVERY_S
    while (now := time.monotonic()) < begin + seconds:
        cnt += 1
        if now >= descriptor_due:
            sock.send(descriptor_heap(cnt))
            descriptor_heaps += 1
            descriptor_due += _DESCRIPTOR_EVERY_S
            continue
        sock.send_heap(builder.build(cnt))
        heaps += 1
        due += interval
        behind = time.monotonic() - due
        if behind < 0:
            time.sleep(-behind)
        elif behind > _CATCH_UP_HEAPS * interval:
            gave_up += behind
            due += behind
    elapsed = time.monotonic() - begin
    last_cnt = cnt
    for _ in range(_STOP_REPEATS):
        cnt += 1
        with contextlib.suppress(ConnectionRefusedError):
            sock.send(stop_heap(cnt))
        time.sleep(_SETTLE_S)
    return Report(
        first_cnt=first_cnt,
        last_cnt=last_cnt,
        heaps=heaps,
        descriptor_heaps=descriptor_heaps,
        packets=heaps * PACKETS_PER_HEAP + descriptor_heaps,
        payload_bytes=heaps * HEAP_BYTES,
        seconds=elapsed,
        gso=sock.gso,
        gave_up_s=gave_up,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Send as the command line says and print a report."""
    parser = argparse.ArgumentParser(description="Send a SPEAD stream that can be checked.")
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--gbps", type=float, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--parent", type=int, help="pid of the process to die with")
    options = parser.parse_args(arguments)
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_TIMERSLACK, 1000)  # ns
    if options.parent is not None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != options.parent:  # it died before that
            return 1
    report = send(options.host, options.port, gbps=options.gbps, seconds=options.seconds)
    print(json.dumps(asdict(report)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
