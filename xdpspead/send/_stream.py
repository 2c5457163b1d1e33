"""Streams that send: what all transports share."""

from __future__ import annotations

import atexit
import contextlib
import operator
import struct
import threading
import time
import weakref
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Final, Self

from .. import _core
from .._core import Group, Sender
from .._log import LOGGER
from .._threads import ThreadPool
from ._config import StreamConfig
from ._group import GroupMode, HeapReference, HeapReferenceList
from ._heap import Heap

#: How long the interpreter waits at its end for heaps of streams that nobody holds, seconds.
_EXIT_S: Final = 1.0


def checked(
    thread_pool: ThreadPool, config: StreamConfig | None
) -> tuple[_core.Pool, StreamConfig]:
    """Return the core's thread pool and a copy of the configuration.

    Raises
    ------
    TypeError
        If they are something else.
    """
    if not isinstance(thread_pool, ThreadPool):
        raise TypeError(f"thread_pool must be a ThreadPool, not {thread_pool!r}")
    config = StreamConfig() if config is None else config
    if not isinstance(config, StreamConfig):
        raise TypeError(f"config must be a send.StreamConfig, not {config!r}")
    return thread_pool._core, config._copy()


def group_of_one(heap: Heap, cnt: int, substream_index: int, rate: float) -> Group:
    """Return what the core takes.

    Raises
    ------
    TypeError
        If an argument has the wrong type, or is an integer of the wrong sign or size.
    """
    try:
        return Group.of_one(heap._core(), cnt, substream_index, rate)
    except (AttributeError, struct.error):
        if not isinstance(heap, Heap):
            raise TypeError(f"heap must be a send.Heap, not {heap!r}") from None
        # It says which of them is wrong.
        HeapReference(heap, cnt=cnt, substream_index=substream_index, rate=rate)
        raise


def group_of_many(heaps: Iterable[HeapReference] | HeapReferenceList) -> Group:
    """Return what the core takes.

    Raises
    ------
    TypeError
        If it has anything else than :class:`HeapReference`.
    """
    group = heaps._references if isinstance(heaps, HeapReferenceList) else list(heaps)
    try:
        return Group.of_many(
            [(h._heap._core(), h._cnt, h._substream_index, h._rate) for h in group]
        )
    except AttributeError:
        for h in group:
            if not isinstance(h, HeapReference):
                raise TypeError(f"heaps must be HeapReference objects, not {h!r}") from None
        raise


def mode_number(mode: GroupMode) -> int:
    """Return the core's number of a mode."""
    if not isinstance(mode, GroupMode):
        raise TypeError(f"mode must be a GroupMode, for example ROUND_ROBIN, not {mode!r}")
    return mode.value


class SendStats(Mapping[str, int]):
    """Counters of a stream that sends, a snapshot.

    ``heaps`` were sent in whole, ``failed_heaps`` not or in part; ``packets`` and ``bytes`` were
    taken by the transport, in ``batches`` calls, and ``failed_packets`` refused by it; ``blocked``
    calls found no room. Through AF_XDP, the completion ring has given back ``xdp_completed``
    packets; the device dropped ``xdp_dropped`` of them, because it had no carrier or its queue was
    full; and the kernel refused ``xdp_invalid`` descriptors.
    """

    def __init__(self, values: dict[str, int]) -> None:
        self._values = values

    def __getitem__(self, name: str) -> int:
        return self._values[name]

    def __iter__(self) -> Any:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"SendStats({self._values})"


#: Senders with a queue that is not empty, of streams that nobody holds any more.
_left: set[Sender] = set()
#: Those of all other streams.
_senders: weakref.WeakSet[Sender] = weakref.WeakSet()


def _finish(sender: Sender, held: object) -> None:
    """Nobody holds the stream any more: have what is in its queue sent all the same."""
    if sender.idle:
        return
    _left.add(sender)
    threading.Thread(target=_flush, args=(sender, held), name="xdpspead-flush", daemon=True).start()


def _flush(sender: Sender, held: object) -> None:
    with contextlib.suppress(OSError, RuntimeError):
        sender.flush()
    _left.discard(sender)
    del held


@atexit.register
def _finish_all() -> None:
    """Give what is in the queues some time before the interpreter ends."""
    deadline = time.monotonic() + _EXIT_S
    for sender in {*_left, *_senders}:
        if sender.idle:
            continue
        with contextlib.suppress(OSError, RuntimeError):
            if not sender.flush(max(deadline - time.monotonic(), 0)):
                LOGGER.warning("at the end of the program heaps had not been sent")


class Stream:
    """A stream that sends heaps. Make one of :class:`UdpStream` and the like."""

    _config: StreamConfig

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise TypeError(
            f"{type(self).__name__} has no transport: make a UdpStream, TcpStream, InprocStream, "
            "BytesStream or UdpXdpStream"
        )

    def _begin(self, thread_pool: ThreadPool, config: StreamConfig, core: _core.Sender) -> None:
        """Be a stream of this sender."""
        self._thread_pool = thread_pool
        self._config = config
        self._core = core
        #: Heaps on their way, by ticket.
        self._held: dict[int, Any] = {}
        _senders.add(core)
        weakref.finalize(self, _finish, core, self._held).atexit = False

    def set_cnt_sequence(self, next: int, step: int) -> None:
        """Choose the identifiers of heaps that are sent without one.

        Parameters
        ----------
        next : int
            Identifier of the next such heap.
        step : int
            Difference from one to the next, positive. Several streams that send to one receiver
            can so keep theirs apart: *n* streams begin with 1 to *n* and take steps of *n*.

        Raises
        ------
        ValueError
            If `step` is 0.
        TypeError
            If one is negative or too large.
        """
        next, step = operator.index(next), operator.index(step)
        if not (0 <= next < 1 << 64 and 0 <= step < 1 << 64):
            raise TypeError("next and step must be from 0 to 2**64 - 1")
        if step == 0:
            raise ValueError("step cannot be 0")
        self._core.set_cnt_sequence(next, step)

    @property
    def num_substreams(self) -> int:
        """Number of destinations."""
        return self._core.n_substreams

    @property
    def stats(self) -> SendStats:
        """What has been sent so far: a snapshot. An addition of this package."""
        return SendStats(self._core.stats())


class SyncStream(Stream):
    """A stream whose calls return when the heaps have been sent."""

    def send_heap(
        self, heap: Heap, cnt: int = -1, substream_index: int = 0, rate: float = -1.0
    ) -> int:
        """Send a heap, waiting until the transport has taken all its packets.

        It may be called by several threads at once. Ctrl-C ends the call; the heap is sent all the
        same.

        Parameters
        ----------
        heap : Heap
            What to send. Its arrays must not be changed before the call returns.
        cnt : int
            Identifier of the heap; negative for the next of the sequence.
        substream_index : int
            Which of the stream's destinations it goes to.
        rate : float
            Rate for this heap in bytes per second, 0 for as fast as possible, negative for that
            of the stream.

        Returns
        -------
        int
            Bytes of packets, headers of SPEAD included.

        Raises
        ------
        OSError
            If a packet could not be sent, with the errno of the first; the others were tried. With
            EINVAL if `substream_index` or `cnt` is too large. As BlockingIOError if as many threads
            as `StreamConfig.max_heaps` are at it already.
        ValueError
            If the packets of the stream are too small for the heap.
        TypeError
            If an argument has the wrong type.
        """
        return self._core.send(group_of_one(heap, cnt, substream_index, rate), 0)

    def send_heaps(
        self, heaps: Iterable[HeapReference] | HeapReferenceList, mode: GroupMode
    ) -> int:
        """Send a group of heaps, waiting until the transport has taken all their packets.

        Parameters
        ----------
        heaps : iterable of HeapReference, or HeapReferenceList
            What to send, at least one and at most `StreamConfig.max_heaps`.
        mode : GroupMode
            In which order.

        Returns
        -------
        int
            Bytes of packets, headers of SPEAD included.

        Raises
        ------
        OSError
            As of :meth:`send_heap`, also if there is no heap; BlockingIOError if there are too
            many. In these cases nothing is sent.
        TypeError
            If an argument has the wrong type.
        """
        return self._core.send(group_of_many(heaps), mode_number(mode))

    def __enter__(self) -> Self:
        """Return the stream, whose transport is let go at the end of the block."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._core.flush()
        self._core.stop()
