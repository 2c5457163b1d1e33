"""The binding to the C core: the only module that knows cffi.

Every class here owns one C object, every method is allocate, call, check. What the functions do is
written in ``csrc/xdpspead.h``.
"""

from __future__ import annotations

import enum
import errno
import math
import os
import struct
import time
from array import array
from collections import deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, NoReturn, TypeAlias

from ._errors import Stopped, TransportError, XdpError
from ._native import HeapHandle, HeapQueue, ffi, lib

if TYPE_CHECKING:
    from typing_extensions import Buffer

CMemory: TypeAlias = Any
"""What `memory` returns."""

HEAP_START: Final[int] = lib.XPS_HEAP_START
HEAP_STOP: Final[int] = lib.XPS_HEAP_STOP

_SEND_ITEMS = ffi.typeof("struct xps_send_item *")
_ADDRESS = ffi.typeof("uintptr_t")

N_CORE_STATS: Final[int] = lib.XPS_N_CORE_STATS
N_STATS: Final[int] = lib.XPS_N_STATS
N_QUEUE_STATS: Final[int] = lib.XPS_N_QUEUE_STATS


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
    if step in ("make stream", "start threads", "make heap", "make packets"):
        raise ValueError(text) if code == errno.EINVAL else RuntimeError(text)
    raise TransportError(code, f"{step}: {text}" if step else text, step)


def has_xdp() -> bool:
    """Whether this build can receive through AF_XDP."""
    return bool(lib.xps_has_xdp())


def has_pcap() -> bool:
    """Whether this build can read capture files."""
    return bool(lib.xps_has_pcap())


def load_pcap() -> None:
    """Load libpcap, which is not there before the first capture file is opened.

    Raises
    ------
    TransportError
        ENOSYS if it cannot be had.
    """
    fail = ffi.new("struct xps_fail *")
    code = lib.xps_load_pcap(fail)
    if code < 0:
        _raise(code, fail)


def find_libbpf() -> None:
    """See whether libbpf is there, which is opened to load the BPF program and closed after that.

    Raises
    ------
    TransportError
        ELIBACC if it cannot be had, ENOTSUP if this build has no use for it.
    """
    fail = ffi.new("struct xps_fail *")
    code = lib.xps_find_libbpf(fail)
    if code < 0:
        _raise(code, fail)


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


def memory(buffer: Buffer) -> CMemory:
    """Return the bytes of a buffer where they are, held; it has a length.

    Raises
    ------
    TypeError
        If it is no buffer.
    ValueError, BufferError
        If it is not contiguous.
    """
    return ffi.from_buffer(buffer)


class SendHeap:
    """What is in a heap that is to be sent.

    Parameters
    ----------
    items : list of (int, int or memory)
        Identifier, and value of an immediate item or `memory` of an addressed one, which is held.
    """

    __slots__ = ("_held", "address", "c")

    _fails: ClassVar[deque[Any]] = deque(maxlen=8)

    def __init__(
        self, items: Sequence[tuple[int, int | CMemory]], address_bits: int, repeat_pointers: bool
    ) -> None:
        self._held: list[Any] = []
        flat: list[int] = []
        for item_id, value in items:
            if isinstance(value, int):
                flat += (item_id, 1, value, 0, 0)
                continue
            self._held.append(value)
            flat += (item_id, 0, 0, int(ffi.cast(_ADDRESS, value)), len(value))
        packed = ffi.from_buffer(_SEND_ITEMS, array("Q", flat))
        # Making one costs as much as all else here, so a heap that could be made leaves it behind.
        try:
            fail = self._fails.pop()
        except IndexError:
            fail = ffi.new("struct xps_fail *")
        heap = lib.xps_send_heap_new(packed, len(items), address_bits, repeat_pointers, fail)
        if not heap:
            _raise(-errno.ENOMEM, fail)
        self._fails.append(fail)
        self.c = ffi.gc(heap, lib.xps_send_heap_free)
        self.address = int(ffi.cast("uintptr_t", heap))


class PacketGenerator:
    """The packets of one heap."""

    def __init__(self, heap: SendHeap, cnt: int, max_packet_size: int) -> None:
        fail = ffi.new("struct xps_fail *")
        generator = lib.xps_packet_generator_new(heap.c, cnt, max_packet_size, fail)
        if not generator:
            _raise(-errno.ENOMEM, fail)
        self.c = ffi.gc(generator, lib.xps_packet_generator_free)
        self._heap = heap
        self._packet = ffi.new("uint8_t[]", max_packet_size)

    def next(self) -> bytes | None:
        """Return the next packet, None after the last."""
        n = lib.xps_packet_generator_next(self.c, self._packet)
        return bytes(ffi.buffer(self._packet, n)) if n else None


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


# ------------------------------------------------------------------ streams

QueueRow: TypeAlias = tuple[str, int, bool, list[int]]
"""Interface, queue, whether it is read, and the last `N_QUEUE_STATS` of the statistics."""


class ZeroCopy(enum.IntEnum):
    """What an AF_XDP reader asks of the kernel."""

    DEMAND = 1
    REFUSE = 0
    TRY = -1
    #: As the queue has it that another reader has opened; else copy.
    JOIN = -2


class XdpObtained(NamedTuple):
    """What an AF_XDP reader or sender really got; `native` is a reader's."""

    native: bool
    zero_copy: bool
    multi_buffer: bool
    frame_size: int
    memory: int
    busy_poll: bool | None  # None: not known until a packet comes
    napi_ids: tuple[int, ...] = ()  # those that are known

    @classmethod
    def of(cls, obtained: Any, napi_ids: Iterable[int] = ()) -> XdpObtained:
        """Return what a ``struct xps_xdp_obtained`` says."""
        return cls(
            native=obtained.mode == lib.XPS_XDP_NATIVE,
            zero_copy=bool(obtained.zero_copy),
            multi_buffer=bool(obtained.multi_buffer),
            frame_size=int(obtained.frame_size),
            memory=int(obtained.memory),
            busy_poll={lib.XPS_XDP_SLEEPS: False, lib.XPS_XDP_BUSY_POLLS: True}.get(
                obtained.busy_poll
            ),
            napi_ids=tuple(filter(None, napi_ids)),
        )


class XdpDestination(NamedTuple):
    """All that stands in front of the UDP payload; addresses as bytes."""

    source_mac: bytes
    mac: bytes
    source_address: bytes
    address: bytes
    source_port: int
    port: int
    ttl: int


class XdpPort:
    """An interface on which packets are steered into this process's AF_XDP sockets.

    With the path of a `helper` that does it for this process.
    """

    def __init__(
        self, ifindex: int, mode: str, n_queues: int, mtu: int, multi_buffer: bool, helper: str = ""
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
        if helper:
            port = lib.xps_xdp_port_through(os.fsencode(helper), config, fail)
        else:
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

    def passed(self) -> dict[str, int]:
        """Packets that the program passed because they were for no reader, since it was loaded."""
        unparsed, others = ffi.new("uint64_t *"), ffi.new("uint64_t *")
        lib.xps_xdp_port_passed(self.c, unparsed, others)
        return {"unparsed": int(unparsed[0]), "others": int(others[0])}

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


_REFERENCE = struct.Struct("=QqQd")
_REFERENCES = ffi.typeof("struct xps_heap_reference[]")
_RESULT = ffi.typeof("struct xps_send_result *")


class Group:
    """Heaps that are sent together, with identifier, destination and rate of each."""

    __slots__ = ("_heaps", "n", "packed")

    def __init__(self, heaps: Sequence[SendHeap], packed: bytes) -> None:
        self._heaps = heaps  # which are needed until they have been sent
        self.packed = packed
        self.n = len(heaps)

    @classmethod
    def of_one(cls, heap: SendHeap, cnt: int, substream: int, rate: float) -> Group:
        """Return a group of one heap; struct.error if a number is none or does not fit."""
        return cls((heap,), _REFERENCE.pack(heap.address, cnt, substream, rate))

    @classmethod
    def of_many(cls, references: Sequence[tuple[SendHeap, int, int, float]]) -> Group:
        """Return a group of heaps."""
        pack = _REFERENCE.pack
        heaps = [heap for heap, _, _, _ in references]
        return cls(heaps, b"".join([pack(h.address, c, s, r) for h, c, s, r in references]))


#: What is wrong with a group of heaps that is refused.
_REFUSED: Final[dict[int, tuple[int, str]]] = {
    errno.EAGAIN: (
        errno.EAGAIN,
        "the queue is full: wait for heaps to be sent, or raise StreamConfig.max_heaps",
    ),
    errno.ECHRNG: (errno.EINVAL, "there is no such substream: substream_index is too large"),
    errno.ERANGE: (errno.EINVAL, "cnt does not fit in the address bits of the heap's flavour"),
    errno.EINVAL: (errno.EINVAL, "there is no heap in the group"),
    errno.EPIPE: (errno.EPIPE, "the stream or its thread pool has been stopped"),
    errno.ENOMEM: (errno.ENOMEM, os.strerror(errno.ENOMEM)),
}


def _refused(code: int) -> Exception:
    if code == -errno.ECHILD:
        return RuntimeError(
            "this stream was made before a fork and belongs to the parent process: make thread "
            "pools and streams in the process that uses them"
        )
    if code == -errno.EMSGSIZE:
        return ValueError(
            "StreamConfig.max_packet_size is too small for this heap: a packet has no room for its "
            "header and eight bytes of payload"
        )
    return OSError(*_REFUSED[-code])


def _send_error(code: int) -> OSError:
    if code == -errno.ECANCELED:
        return OSError(errno.ECANCELED, "not sent: the receiving queue or the stream was stopped")
    return OSError(-code, f"send: {os.strerror(-code)}")


SEND_STAT_NAMES: Final[tuple[str, ...]] = tuple(
    _text(lib.xps_send_stat_name(i)) for i in range(lib.XPS_N_SEND_STATS)
)


class Sender:
    """A queue of heaps and what sends them.

    The items of a heap stay where they are until it has been sent, whatever becomes of the call.
    """

    _SLICE_MS = 200
    _RESULTS = 64

    def __init__(self, sender: Any, fail: Any) -> None:
        if not sender:
            _raise(-errno.ENOMEM, fail)
        self.c = ffi.gc(sender, lib.xps_sender_free)
        # Heaps of calls that a signal's handler ended, by the last ticket that they can have.
        self._left: deque[tuple[int, Group]] = deque()

    @staticmethod
    def _config(config: Any) -> Any:
        return ffi.new(
            "struct xps_sender_config *",
            {
                "max_packet_size": config.max_packet_size,
                "max_heaps": config.max_heaps,
                "burst_size": config.burst_size,
                "rate": config.rate,
                "burst_rate_ratio": config.burst_rate_ratio,
            },
        )

    @classmethod
    def udp(
        cls, pool: Pool, config: Any, fd: int, addresses: Sequence[bytes], segmentation: bool
    ) -> Sender:
        """Send through a UDP socket, which is duplicated, to a ``struct sockaddr`` each."""
        fail = ffi.new("struct xps_fail *")
        packed = b"".join(address.ljust(28, b"\0") for address in addresses)
        c = lib.xps_udp_sender_new(
            pool.c, cls._config(config), fd, packed, len(addresses), segmentation, fail
        )
        return cls(c, fail)

    @classmethod
    def tcp(cls, pool: Pool, config: Any, fd: int) -> Sender:
        """Send through a connected socket, which is duplicated."""
        fail = ffi.new("struct xps_fail *")
        return cls(lib.xps_tcp_sender_new(pool.c, cls._config(config), fd, fail), fail)

    @classmethod
    def inproc(cls, pool: Pool, config: Any, queues: Sequence[InprocQueue]) -> Sender:
        """Send to a queue each."""
        fail = ffi.new("struct xps_fail *")
        c_queues = ffi.new("struct xps_inproc_queue *[]", [queue.c for queue in queues])
        c = lib.xps_inproc_sender_new(pool.c, cls._config(config), c_queues, len(queues), fail)
        return cls(c, fail)

    @classmethod
    def to_bytes(cls, pool: Pool, config: Any) -> Sender:
        """Send into memory."""
        fail = ffi.new("struct xps_fail *")
        return cls(lib.xps_bytes_sender_new(pool.c, cls._config(config), fail), fail)

    @classmethod
    def xdp(
        cls,
        pool: Pool,
        config: Any,
        link: tuple[int, int, int],
        destinations: Sequence[XdpDestination],
        buffer_size: int,
        zero_copy: bool | None,
    ) -> tuple[Sender, XdpObtained]:
        """Send through one queue of an interface; `link` is its index, the queue and its MTU."""
        fail = ffi.new("struct xps_fail *")
        ifindex, queue, mtu = link
        c_destinations = ffi.new(
            "struct xps_xdp_destination[]",
            [
                {
                    "source_mac": to.source_mac,
                    "mac": to.mac,
                    "source_address": to.source_address.ljust(16, b"\0"),
                    "address": to.address.ljust(16, b"\0"),
                    "source_port": to.source_port,
                    "port": to.port,
                    "family": 4 if len(to.address) == 4 else 6,
                    "ttl": to.ttl,
                }
                for to in destinations
            ],
        )
        xdp = ffi.new(
            "struct xps_xdp_sender_config *",
            {
                "ifindex": ifindex,
                "queue": queue,
                "mtu": mtu,
                "destinations": c_destinations,
                "n_destinations": len(destinations),
                "buffer_size": buffer_size,
                "zero_copy": -1 if zero_copy is None else int(zero_copy),
            },
        )
        obtained = ffi.new("struct xps_xdp_obtained *")
        c = lib.xps_xdp_sender_new(pool.c, cls._config(config), xdp, obtained, fail)
        return cls(c, fail), XdpObtained.of(obtained)

    def disown(self) -> None:
        """Of one through AF_XDP, in a forked child: let go of the parent's socket."""
        lib.xps_xdp_sender_disown(self.c)

    def value(self) -> bytes:
        """Return what was sent into memory."""
        length = lib.xps_bytes_sender_value(self.c, ffi.NULL, 0)
        data = bytearray(length)
        lib.xps_bytes_sender_value(
            self.c, ffi.cast("uint8_t *", ffi.from_buffer(data)) if length else ffi.NULL, length
        )
        return bytes(data)

    @property
    def n_substreams(self) -> int:
        """Number of destinations."""
        return int(lib.xps_sender_n_substreams(self.c))

    def set_cnt_sequence(self, next_: int, step: int) -> None:
        """Choose the identifiers of heaps that have none."""
        lib.xps_sender_set_cnt_sequence(self.c, next_, step)

    def send(self, group: Group, mode: int) -> int:
        """Send heaps and return how many bytes of packets they were, waiting until they are sent.

        Raises
        ------
        OSError
            If that failed.
        """
        if self._left:
            self._let_go()
        result = ffi.new(_RESULT)
        heaps = ffi.from_buffer(_REFERENCES, group.packed)
        try:
            code = lib.xps_sender_send(self.c, heaps, group.n, mode, self._SLICE_MS, result)
            # A signal may have come, whose handler runs before the next call.
            while code > 0 and not result.done:
                lib.xps_sender_wait(self.c, code, self._SLICE_MS, result)
        except BaseException:
            lib.xps_sender_forget(self.c, result.ticket)
            self._left.append((lib.xps_sender_last_ticket(self.c), group))
            raise
        if code < 0:
            raise _refused(code)
        if result.error:
            raise _send_error(result.error)
        return int(result.bytes)

    def _let_go(self) -> None:
        done = lib.xps_sender_done_ticket(self.c)
        while self._left and self._left[0][0] <= done:
            self._left.popleft()

    def post(self, group: Group, mode: int) -> tuple[int, int | Exception | None]:
        """Queue heaps; return a ticket, and the outcome if it is known at once.

        Without an outcome the caller holds the group until :meth:`take` tells it. If the heaps are
        refused the ticket is 0, and the outcome is what is wrong with them.
        """
        result = ffi.new(_RESULT)
        heaps = ffi.from_buffer(_REFERENCES, group.packed)
        code = lib.xps_sender_post(self.c, heaps, group.n, mode, result)
        if code < 0:
            return 0, _refused(code)
        return code, self._outcome(result) if result.done else None

    @staticmethod
    def _outcome(result: Any) -> int | OSError:
        return _send_error(result.error) if result.error else int(result.bytes)

    def take(self) -> list[tuple[int, int | OSError]]:
        """Return ticket and outcome of posted groups that have been done since, in order."""
        results = ffi.new("struct xps_send_result[]", self._RESULTS)
        taken: list[tuple[int, int | OSError]] = []
        while (n := lib.xps_sender_take(self.c, results, self._RESULTS)) > 0:
            taken += [(int(result.ticket), self._outcome(result)) for result in results[0:n]]
        return taken

    def flush(self, timeout_s: float = math.inf) -> bool:
        """Wait until everything that is in the queue has been sent or has failed: whether it is."""
        deadline = time.monotonic() + timeout_s
        while (left := deadline - time.monotonic()) > 0:
            code = lib.xps_sender_flush(self.c, round(min(self._SLICE_MS, left * 1e3)))
            if code > 0:
                return True
            if code < 0 and code != -errno.EINTR:
                raise _refused(code)
        return False

    def stop(self) -> None:
        """Send no more."""
        lib.xps_sender_stop(self.c)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to be sent."""
        return bool(lib.xps_sender_done_ticket(self.c) == lib.xps_sender_last_ticket(self.c))

    @property
    def fd(self) -> int:
        """Descriptor that is readable while there are results."""
        fd = lib.xps_sender_fd(self.c)
        if fd < 0:
            raise _refused(fd)
        return int(fd)

    def stats(self) -> dict[str, int]:
        """Return a consistent snapshot of the statistics."""
        stats = ffi.new("uint64_t[]", lib.XPS_N_SEND_STATS)
        lib.xps_sender_stats(self.c, stats)
        return dict(zip(SEND_STAT_NAMES, stats, strict=True))


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

    #: A call for more heaps than this looks first how many there are.
    _FEW = 256

    def __init__(
        self,
        pool: Pool,
        allocator: Allocator,
        log: Log,
        config: dict[str, int | bool],
        kinds: tuple[type[HeapHandle], type[HeapHandle]],
        bug_compat: int,
    ) -> None:
        c_config = ffi.new("struct xps_stream_config *", config)
        fail = ffi.new("struct xps_fail *")
        stream = lib.xps_stream_new(pool.c, c_config, allocator.c, log.c, fail)
        if not stream:
            _raise(-errno.ENOMEM, fail)
        self.c = ffi.gc(stream, lib.xps_stream_free)
        self.held: list[Any] = []
        self._queue_room = 8
        address = int(ffi.cast(_ADDRESS, stream))
        #: Heaps that have left the ring and were handed to nobody.
        self.popped: HeapQueue[Any] = HeapQueue(self.c, self.held, address, kinds, bug_compat)

    def stop(self) -> None:
        """Stop receiving; see the header."""
        lib.xps_stream_stop(self.c)

    def take(self, n: int, timeout_ms: int, ahead: int = 0) -> list[Any]:
        """Take up to `n` heaps that are there, or wait for one; none on time-out or on a signal.

        Those that were popped ahead come alone. If a signal's handler raises, none is taken.

        Parameters
        ----------
        n : int
            At most so many.
        timeout_ms : int
            How long to wait; 0 does not.
        ahead : int, optional
            How many to pop, of which all but `n` are kept for later, in the room of the ring; so
            there are at most as many as fill half of it. 0 to pop no more than are taken.

        Raises
        ------
        Stopped
            If the stream has stopped and no heap is left.
        XdpError
            Likewise, if that is because the interface of an AF_XDP reader failed.
        """
        if n > self._FEW:
            n = min(n, max(self._FEW, self.ring_size))
        # After a call a signal's handler may run, and raise, before anything has been done with
        # what it returned. So `map` makes the call, and no other comes on the way to the user.
        [(code, heaps)] = map(self.popped.take, (n,), (ahead,), (timeout_ms,))
        if heaps:
            return heaps
        if code == -errno.EPIPE:
            self.raise_end()
        if code == -errno.ECHILD:
            self.require_own_process()
        if code < 0 and code != -errno.EINTR:
            _raise(code)
        return []

    def raise_end(self) -> NoReturn:
        """Raise Stopped, or what ended the stream if that was an error."""
        fail = ffi.new("struct xps_fail *")
        code = lib.xps_stream_failure(self.c, fail)
        if code == 0:
            raise Stopped("ring buffer has been stopped")
        step = _text(fail.step)  # only AF_XDP readers fail so
        raise XdpError(-code, f"{step}: {_text(fail.text)}", step)

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

    def stats(self) -> tuple[list[int], list[QueueRow]]:
        """Return a consistent snapshot of the statistics, and each queue's part in it."""
        stats = ffi.new("uint64_t[]", N_STATS)
        while True:
            room = self._queue_room
            rows = ffi.new("struct xps_queue_stats[]", room)
            n = lib.xps_stream_queue_stats(self.c, stats, rows, room)
            if n <= room:
                return list(stats), [
                    (_text(row.interface), row.queue, bool(row.read), list(row.values))
                    for row in rows[0:n]
                ]
            self._queue_room = n

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
        owner: str,
        endpoints: Sequence[tuple[int, bytes, int, bytes]],
        joined: Sequence[int],
        queues: Sequence[int],
        buffer_size: int,
        max_size: int,
        zero_copy: ZeroCopy,
        max_poll: int,
        workers: int,
        busy_poll_budget: int,
    ) -> XdpObtained | None:
        """Receive on `queues` of the port.

        `endpoints` are 4 or 6, packed address, port, and packed source, empty for any; `joined` are
        descriptors of sockets that have joined their groups, which are duplicated. `owner` is how
        the user knows the reader. Returns None if the stream had stopped already.
        """
        c_endpoints = ffi.new(
            "struct xps_xdp_endpoint[]",
            [
                {
                    "family": family,
                    "address": address.ljust(16, b"\0"),
                    "port": number,
                    "source": source.ljust(16, b"\0"),
                }
                for family, address, number, source in endpoints
            ],
        )
        c_owner = ffi.new("char[]", owner.encode())
        c_joined = ffi.new("int[]", list(joined))
        c_queues = ffi.new("uint32_t[]", list(queues))
        c_napi_ids = ffi.new("uint32_t[]", len(queues))
        config = ffi.new(
            "struct xps_xdp_reader_config *",
            {
                "owner": c_owner,
                "endpoints": c_endpoints,
                "n_endpoints": len(endpoints),
                "joined": c_joined,
                "n_joined": len(joined),
                "queues": c_queues,
                "n_queues": len(queues),
                "buffer_size": buffer_size,
                "max_size": max_size,
                "zero_copy": zero_copy,
                "max_poll": max_poll,
                "n_workers": workers,
                "busy_poll_budget": busy_poll_budget,
                "napi_ids": c_napi_ids,
            },
        )
        obtained = ffi.new("struct xps_xdp_obtained *")
        fail = ffi.new("struct xps_fail *")
        code = lib.xps_add_xdp_reader(self.c, port.c, config, obtained, fail)
        if code < 0:
            _raise(code, fail)
        if obtained.mode == lib.XPS_XDP_AUTO:
            return None
        return XdpObtained.of(obtained, map(int, c_napi_ids))
