"""The binding to the C core: the only module that knows cffi.

Every class here owns one C object, every method is allocate, call, check. What the functions do is
written in ``csrc/xdpspead.h``.
"""

from __future__ import annotations

import errno
import os
import struct
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat, takewhile
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeAlias

from ._errors import Stopped, TransportError
from ._native import ffi, lib

if TYPE_CHECKING:
    from typing_extensions import Buffer

CHeap: TypeAlias = Any
"""A ``struct xps_heap *`` that frees itself."""

HEAP_CONTIGUOUS: Final[int] = lib.XPS_HEAP_CONTIGUOUS
HEAP_START: Final[int] = lib.XPS_HEAP_START
HEAP_STOP: Final[int] = lib.XPS_HEAP_STOP

N_CORE_STATS: Final[int] = lib.XPS_N_CORE_STATS
N_STATS: Final[int] = lib.XPS_N_STATS


def _text(c_string: Any) -> str:
    return bytes(ffi.string(c_string)).decode("utf-8", "replace")


STAT_NAMES: Final[tuple[str, ...]] = tuple(_text(lib.xps_stat_name(i)) for i in range(N_STATS))
STAT_IS_MAXIMUM: Final[tuple[bool, ...]] = tuple(
    bool(lib.xps_stat_is_maximum(i)) for i in range(N_STATS)
)


def _raise(code: int, fail: Any = None) -> NoReturn:
    """Turn what a C function returned, and maybe said, into an exception."""
    if fail is not None and fail.err:
        code, text, step = fail.err, _text(fail.text), _text(fail.step)
    else:
        code, step = abs(code), ""
        text = os.strerror(code)
    if code == errno.ENOMEM:
        raise MemoryError(text)
    if step in ("make stream", "start threads"):
        raise ValueError(text) if code == errno.EINVAL else RuntimeError(text)
    raise TransportError(code, f"{step}: {text}" if step else text, step)


def has_xdp() -> bool:
    """Whether this build can receive through AF_XDP."""
    return bool(lib.xps_has_xdp())


def has_pcap() -> bool:
    """Whether this build can read capture files."""
    return bool(lib.xps_has_pcap())


def has_gzip() -> bool:
    """Whether this build can read capture files that gzip compressed."""
    return bool(lib.xps_has_gzip())


def has_zstd() -> bool:
    """Whether this build can read capture files that Zstandard compressed."""
    return bool(lib.xps_has_zstd())


def _owned(pointer: Any, free: Any) -> Any:
    if not pointer:
        raise MemoryError
    return ffi.gc(pointer, free)


class Log:
    """The queue of messages that the core has for the user."""

    _LINES = 64

    def __init__(self) -> None:
        self.c = _owned(lib.xps_log_new(), lib.xps_log_free)

    def take(self, timeout_ms: int) -> list[tuple[int, str]] | None:
        """Return (level, text) pairs, waiting for the first; None once the log is closed."""
        lines = ffi.new("struct xps_log_line[]", self._LINES)
        n = lib.xps_log_take(self.c, lines, self._LINES, timeout_ms)
        return None if n < 0 else [(lines[i].level, _text(lines[i].text)) for i in range(n)]

    def close(self) -> None:
        """Wake the thread that takes."""
        lib.xps_log_close(self.c)


class Pool:
    """Worker threads."""

    def __init__(self, n_threads: int, affinity: Sequence[int]) -> None:
        fail = ffi.new("struct xps_fail *")
        pool = lib.xps_pool_new(n_threads, list(affinity), len(affinity), fail)
        if not pool:
            _raise(-errno.ENOMEM, fail)
        self.c = ffi.gc(pool, lib.xps_pool_free)

    def stop(self) -> None:
        """End and join the threads."""
        lib.xps_pool_stop(self.c)

    def cpu_seconds(self) -> float:
        """CPU time used by the threads so far."""
        return float(lib.xps_pool_cpu_ns(self.c)) * 1e-9


class Allocator:
    """Where heap payloads live."""

    def __init__(self, c: Any) -> None:
        self.c = c

    @classmethod
    def plain(cls) -> Allocator:
        """Return the C library's."""
        return cls(_owned(lib.xps_allocator_new(), lib.xps_allocator_free))

    @classmethod
    def mmap(cls, flags: int, prefer_huge: bool) -> Allocator:
        """Return one that maps every payload by itself."""
        return cls(_owned(lib.xps_mmap_allocator_new(flags, prefer_huge), lib.xps_allocator_free))

    @classmethod
    def pool(
        cls,
        threads: Pool | None,
        lower: int,
        upper: int,
        max_free: int,
        initial: int,
        low_water: int,
        base: Allocator,
        log: Log,
    ) -> Allocator:
        """Return a pool of equal blocks."""
        fail = ffi.new("struct xps_fail *")
        pool = lib.xps_memory_pool_new(
            threads.c if threads else ffi.NULL,
            lower,
            upper,
            max_free,
            initial,
            low_water,
            base.c,
            log.c,
            fail,
        )
        if not pool:
            _raise(-errno.ENOMEM, fail)
        return cls(ffi.gc(pool, lib.xps_allocator_free))

    @property
    def warn_on_empty(self) -> bool:
        """Of a pool: whether an allocation that finds it empty is logged."""
        return bool(lib.xps_memory_pool_warn_on_empty(self.c))

    @warn_on_empty.setter
    def warn_on_empty(self, warn: bool) -> None:
        lib.xps_memory_pool_set_warn_on_empty(self.c, warn)

    def n_free(self) -> int:
        """Of a pool: blocks that are free now."""
        return int(lib.xps_memory_pool_n_free(self.c))


# ------------------------------------------------------------------ heaps

_ITEM = struct.Struct("=5Q")


def heap_items(heap: CHeap) -> list[tuple[int, int, int, int, int]]:
    """Return the items as (id, immediate value, offset, length, is immediate)."""
    if not heap.n_pointers:
        return []
    items = ffi.new("struct xps_item[]", heap.n_pointers)
    n = lib.xps_heap_items(heap, items)
    return list(_ITEM.iter_unpack(ffi.buffer(items, n * _ITEM.size)))


def heap_payload(heap: CHeap) -> Buffer | None:
    """Return the payload as a writable buffer that keeps it alive, None if there is none."""
    if not heap.size:
        return None
    payload = ffi.gc(lib.xps_heap_take_payload(heap), lib.xps_payload_free)
    buffer: Buffer = ffi.buffer(payload, heap.size)
    return buffer


def heap_ranges(heap: CHeap) -> list[tuple[int, int]]:
    """Return the ranges of payload that arrived, if they were kept."""
    return [(heap.ranges[2 * i], heap.ranges[2 * i + 1]) for i in range(heap.n_ranges)]


# ------------------------------------------------------------------ streams


@dataclass(frozen=True)
class XdpObtained:
    """What an AF_XDP reader really got."""

    native: bool
    zero_copy: bool
    multi_buffer: bool
    frame_size: int
    memory: int


class XdpPort:
    """An interface on which this process steers packets into AF_XDP sockets."""

    def __init__(
        self, ifindex: int, mode: str, n_queues: int, mtu: int, multi_buffer: bool
    ) -> None:
        modes = {
            "auto": lib.XPS_XDP_AUTO,
            "native": lib.XPS_XDP_NATIVE,
            "generic": lib.XPS_XDP_GENERIC,
        }
        config = ffi.new(
            "struct xps_xdp_port_config *",
            {
                "ifindex": ifindex,
                "mode": modes[mode],
                "n_queues": n_queues,
                "mtu": mtu,
                "multi_buffer": multi_buffer,
            },
        )
        fail = ffi.new("struct xps_fail *")
        port = lib.xps_xdp_port_new(config, fail)
        if not port:
            _raise(-errno.ENOMEM, fail)
        self.c = ffi.gc(port, lib.xps_xdp_port_free)

    def forget(self) -> None:
        """In a forked child: let go of the parent's sockets."""
        lib.xps_xdp_port_forget(self.c)

    @property
    def mode(self) -> str:
        """Mode in which the program is attached: ``"native"`` or ``"generic"``."""
        mode = lib.xps_xdp_port_mode(self.c)
        return "native" if mode == lib.XPS_XDP_NATIVE else "generic"

    @property
    def in_use(self) -> bool:
        """Whether it has a reader; without, the program is not attached."""
        return bool(lib.xps_xdp_port_in_use(self.c))

    @property
    def program_id(self) -> int:
        """The kernel's number for the attached program."""
        return int(lib.xps_xdp_port_program_id(self.c))


class InprocQueue:
    """Packets from this process."""

    def __init__(self) -> None:
        fail = ffi.new("struct xps_fail *")
        queue = lib.xps_inproc_queue_new(fail)
        if not queue:
            _raise(-errno.ENOMEM, fail)
        self.c = ffi.gc(queue, lib.xps_inproc_queue_free)

    def add(self, packet: Buffer) -> None:
        """Copy one packet into the queue.

        Raises
        ------
        Stopped
            If the queue has been stopped.
        ValueError
            If the packet is too long.
        """
        data = ffi.from_buffer(packet)
        code = lib.xps_inproc_queue_add(self.c, ffi.cast("uint8_t *", data), len(data))
        if code == -errno.EPIPE:
            raise Stopped("the in-process queue has been stopped")
        if code == -errno.ECHILD:
            raise RuntimeError(
                "this queue was made before a fork and belongs to the parent process: make it in "
                "the process that uses it"
            )
        if code == -errno.EMSGSIZE:
            raise ValueError(f"a packet of {len(data)} bytes: more than 4 GiB is too long")
        if code < 0:
            _raise(code)

    def stop(self) -> None:
        """No more packets."""
        lib.xps_inproc_queue_stop(self.c)


class Capture:
    """A capture file that is open."""

    def __init__(self, filename: bytes, filter_: bytes) -> None:
        fail = ffi.new("struct xps_fail *")
        capture = lib.xps_capture_open(filename, filter_, fail)
        if not capture:
            _raise(-errno.ENOMEM, fail)
        self.c = ffi.gc(capture, lib.xps_capture_free)


class Stream:
    """One stream: its window, its ring, its readers."""

    _BATCH = 32

    def __init__(
        self, pool: Pool, allocator: Allocator, log: Log, config: dict[str, int | bool]
    ) -> None:
        c_config = ffi.new("struct xps_stream_config *", config)
        fail = ffi.new("struct xps_fail *")
        stream = lib.xps_stream_new(pool.c, c_config, allocator.c, log.c, fail)
        if not stream:
            _raise(-errno.ENOMEM, fail)
        self.c = ffi.gc(stream, lib.xps_stream_free)
        self.held: list[Any] = []
        #: Heaps popped by a call that a signal's handler ended with an exception.
        self.leftover: deque[CHeap] = deque()

    def stop(self) -> None:
        """Stop receiving; see the header."""
        lib.xps_stream_stop(self.c)

    def pop(self, n: int, timeout_ms: int) -> list[CHeap]:
        """Pop up to `n` heaps that are there, or wait for one; none on time-out or on a signal.

        Raises
        ------
        Stopped
            If the stream has stopped and no heap is left.
        """
        # Other threads may be in here too while this one waits, so each call has its own array.
        n = min(n, self._BATCH)
        heaps = ffi.new("struct xps_heap *[]", n)
        # Takes each heap over once, whoever asks it to, and runs no Python code meanwhile.
        owned = map(ffi.gc, takewhile(bool, heaps), repeat(lib.xps_heap_free))
        try:
            popped = lib.xps_stream_pop(self.c, heaps, n, timeout_ms)
            result = [*owned]
        except BaseException:
            self.leftover.extend(owned)
            raise
        if popped == -errno.EPIPE:
            raise Stopped("ring buffer has been stopped")
        if popped == -errno.ECHILD:
            self.require_own_process()
        if popped < 0 and popped != -errno.EINTR:
            _raise(popped)
        return result

    def require_own_process(self) -> None:
        """Raise RuntimeError in a forked child."""
        if not lib.xps_stream_is_ours(self.c):
            raise RuntimeError(
                "this stream was made before a fork and belongs to the parent process: make thread "
                "pools and streams in the process that uses them"
            )

    @property
    def fd(self) -> int:
        """Descriptor that is readable while heaps are waiting, and after the end."""
        self.require_own_process()
        return int(lib.xps_stream_fd(self.c))

    @property
    def ring_size(self) -> int:
        """Heaps in the ring."""
        return int(lib.xps_stream_ring_size(self.c))

    @property
    def stopped(self) -> bool:
        """Whether no more heaps will be put into the ring."""
        return bool(lib.xps_stream_stopped(self.c))

    def stats(self) -> list[int]:
        """Return a consistent snapshot of the statistics."""
        stats = ffi.new("uint64_t[]", N_STATS)
        lib.xps_stream_stats(self.c, stats)
        return list(stats)

    def add_buffer_reader(self, buffer: Buffer) -> None:
        """Read packets from memory, which is held until the stream is gone."""
        data = ffi.from_buffer(buffer)
        self.held.append(data)
        code = lib.xps_add_buffer_reader(self.c, ffi.cast("uint8_t *", data), len(data))
        if code < 0:
            _raise(code)

    def add_udp_reader(self, fd: int, max_size: int) -> None:
        """Read datagrams from a bound socket, which is duplicated."""
        fail = ffi.new("struct xps_fail *")
        code = lib.xps_add_udp_reader(self.c, fd, max_size, fail)
        if code < 0:
            _raise(code, fail)

    def add_tcp_reader(self, fd: int, max_size: int) -> None:
        """Read one connection to a listening socket, which is duplicated."""
        fail = ffi.new("struct xps_fail *")
        code = lib.xps_add_tcp_reader(self.c, fd, max_size, fail)
        if code < 0:
            _raise(code, fail)

    def add_pcap_reader(self, capture: Capture) -> None:
        """Read a capture file, which no other stream can read then."""
        fail = ffi.new("struct xps_fail *")
        code = lib.xps_add_pcap_reader(self.c, capture.c, fail)
        if code < 0:
            _raise(code, fail)

    def add_inproc_reader(self, queue: InprocQueue) -> None:
        """Read a queue, which is held."""
        fail = ffi.new("struct xps_fail *")
        code = lib.xps_add_inproc_reader(self.c, queue.c, fail)
        if code < 0:
            _raise(code, fail)

    def add_xdp_reader(
        self,
        port: XdpPort,
        endpoints: Sequence[tuple[int, bytes, int]],
        queues: Sequence[int],
        buffer_size: int,
        max_size: int,
        zero_copy: bool | None,
        max_poll: int,
    ) -> XdpObtained | None:
        """Receive `endpoints`, (4 or 6, packed address, port), on `queues` of the port.

        Returns None if the stream had stopped already.
        """
        c_endpoints = ffi.new(
            "struct xps_xdp_endpoint[]",
            [
                {"family": family, "address": address.ljust(16, b"\0"), "port": number}
                for family, address, number in endpoints
            ],
        )
        c_queues = ffi.new("uint32_t[]", list(queues))
        config = ffi.new(
            "struct xps_xdp_reader_config *",
            {
                "endpoints": c_endpoints,
                "n_endpoints": len(endpoints),
                "queues": c_queues,
                "n_queues": len(queues),
                "buffer_size": buffer_size,
                "max_size": max_size,
                "zero_copy": -1 if zero_copy is None else int(zero_copy),
                "max_poll": max_poll,
            },
        )
        obtained = ffi.new("struct xps_xdp_obtained *")
        fail = ffi.new("struct xps_fail *")
        code = lib.xps_add_xdp_reader(self.c, port.c, config, obtained, fail)
        if code < 0:
            _raise(code, fail)
        if obtained.mode == lib.XPS_XDP_AUTO:
            return None
        return XdpObtained(
            native=obtained.mode == lib.XPS_XDP_NATIVE,
            zero_copy=bool(obtained.zero_copy),
            multi_buffer=bool(obtained.multi_buffer),
            frame_size=int(obtained.frame_size),
            memory=int(obtained.memory),
        )
