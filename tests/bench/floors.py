"""Receivers that do the least possible work: what the others are held against.

``floor`` counts what arrives: through ``recvmmsg`` with GRO, or from an AF_XDP ring, reading every
SPEAD header. ``floor+copy`` copies each payload of an AF_XDP packet to its place in a heap too.
They know no heap that is incomplete, no late packet and no Python: see docs/benchmarks.md for what
each of them is a floor of. A floor runs in a process of its own that answers the same lines as a
receiver's (receive.py), so all is measured alike; its thread is written in C.
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

FLOOR = "floor"
COPYING = "floor+copy"
#: Heap-sized buffers that a copying floor writes to in turn: as many as a stream has in use that
#: Python reads at once. memcpy takes the same time with 3 and with 40.
BUFFERS = 4
#: Frames of an AF_XDP socket and bytes of a UDP socket's buffer: as xdpspead has by default.
FRAMES = 16384
SOCKET_BUFFER = 8 << 20
#: How long floors sleep while packets come, in nanoseconds: xdpspead's default, 1 ms.
NAP_NS = 1_000_000
_PR_SET_PDEATHSIG = 1
_SO_RCVBUFFORCE = 33
_UDP_GRO = 104
_ERROR_SIZE = 256


class Counts(ctypes.Structure):
    """``struct floor_counts``."""

    _fields_ = (
        ("packets", ctypes.c_uint64),
        ("bytes", ctypes.c_uint64),
        ("other", ctypes.c_uint64),
        ("messages", ctypes.c_uint64),
        ("calls", ctypes.c_uint64),
    )


class HeapBuffers:
    """Buffers of one heap each, and a C array of pointers to them."""

    def __init__(self, heap_size: int, n: int = BUFFERS) -> None:
        self.blocks = [ctypes.create_string_buffer(heap_size) for _ in range(n)]
        self.pointers = (ctypes.c_void_p * n)(*[ctypes.addressof(block) for block in self.blocks])


def child(arguments: dict[str, Any]) -> None:
    """Receive until told to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's business
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    os.sched_setaffinity(0, {arguments["core"]})
    kinds = {"udp": _UdpFloor, "xdp": _XdpFloor}
    try:
        floor = kinds[arguments["transport"]](arguments)
    except Exception as error:  # noqa: BLE001 (told to the parent, which ends this process)
        _answer({"error": f"{type(error).__name__}: {error}"})
        return
    thread = threading.Thread(target=floor.loop, name="floor")
    thread.start()
    _answer({"ready": True, "buffer_size": floor.buffer_size})
    for line in sys.stdin:
        command = line.strip()
        if command == "snap":
            _answer(floor.snap())
        elif command == "check":
            _answer({"wrong": floor.wrong()})
        else:
            break
    floor.stop.value = 1
    thread.join()
    floor.close()


def _answer(value: dict[str, Any]) -> None:
    print(json.dumps(value), flush=True)


class _Floor:
    """A thread in C, and its counts."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self.payload = arguments["payload"]
        self.per_heap = arguments["packets_per_heap"]
        self.counts = Counts()
        self.stop = ctypes.c_int(0)
        self.buffer_size = 0
        self.result = 0

    def loop(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        pass

    def wrong(self) -> str:
        """Return what is wrong with what was received, or an empty string."""
        counts = self.counts
        if self.result < 0:
            return os.strerror(-self.result)
        if counts.other:
            return f"{counts.other} packets were not those of the generator"
        # 4 item pointers in each packet, one more in the first of each heap.
        without = counts.packets * (self.payload + 8 + 4 * 8)
        pointers = (counts.bytes - without) / 8
        if not 0 <= pointers <= counts.packets:
            return f"{counts.packets} packets of {counts.bytes} bytes are not what was sent"
        return ""

    def snap(self) -> dict[str, Any]:
        stats = {name: getattr(self.counts, name) for name, _ in Counts._fields_}
        return {
            "cpu_ns": time.process_time_ns() - time.thread_time_ns(),
            "python_ns": library.thread_cpu_ns()[os.getpid()],
            "rss": library.rss(),
            "heaps": stats["packets"] // self.per_heap,
            "stats": stats,
            "readers": [],
        }


class _UdpFloor(_Floor):
    """``recvmmsg`` with GRO."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        super().__init__(arguments)
        self._lib = ctypes.CDLL(arguments["floors"]["udp"])
        self._socket = sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, SOCKET_BUFFER)
        sock.setsockopt(socket.IPPROTO_UDP, _UDP_GRO, 1)
        sock.bind((arguments["address"], arguments["port"]))
        # The kernel doubles what is set, for its own bookkeeping.
        self.buffer_size = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2

    def loop(self) -> None:
        self.result = self._lib.floor_udp_run(
            self._socket.fileno(),
            ctypes.c_uint64(NAP_NS),
            ctypes.byref(self.counts),
            ctypes.byref(self.stop),
        )

    def close(self) -> None:
        self._socket.close()


class _XdpFloor(_Floor):
    """Peek, read the header, release; maybe copy the payload first."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        super().__init__(arguments)
        files = arguments["floors"]
        self._lib = lib = ctypes.CDLL(files["xdp"])
        lib.floor_xdp_open.restype = ctypes.c_void_p
        error = ctypes.create_string_buffer(_ERROR_SIZE)
        handle = lib.floor_xdp_open(
            files["program"].encode(),
            ctypes.c_uint(socket.if_nametoindex(arguments["interface"])),
            ctypes.c_uint16(arguments["port"]),
            ctypes.c_uint32(FRAMES),
            error,
            ctypes.c_size_t(_ERROR_SIZE),
        )
        if not handle:
            raise OSError(error.value.decode())
        self._handle = ctypes.c_void_p(handle)
        self._heap_size = self.payload * self.per_heap
        self._heaps: HeapBuffers | None = None
        if arguments["library"] == COPYING:
            self._heaps = HeapBuffers(self._heap_size)

    def loop(self) -> None:
        heaps = self._heaps
        self.result = self._lib.floor_xdp_run(
            self._handle,
            heaps.pointers if heaps else None,
            ctypes.c_size_t(len(heaps.blocks) if heaps else 0),
            ctypes.c_size_t(self._heap_size),
            ctypes.c_uint64(NAP_NS),
            ctypes.byref(self.counts),
            ctypes.byref(self.stop),
        )

    def wrong(self) -> str:
        if self._heaps and self.counts.packets >= (len(self._heaps.blocks) + 1) * self.per_heap:
            for block in self._heaps.blocks:
                wrong = self._wrong_heap(block.raw)
                if wrong:
                    return wrong
        return super().wrong()

    def _wrong_heap(self, data: bytes) -> str:
        """Compare what a buffer holds with what was sent: packets of two heaps at the most."""
        for index in range(self.per_heap):
            packet = data[index * self.payload : (index + 1) * self.payload]
            heap_id = int.from_bytes(packet[: packets.STAMP_SIZE], "big") >> 16
            if packet != packets.expected_packet(heap_id, index, self.payload).tobytes():
                return f"wrong bytes were copied for packet {index} of heap {heap_id}"
        return ""

    def close(self) -> None:
        self._lib.floor_xdp_close(self._handle)
