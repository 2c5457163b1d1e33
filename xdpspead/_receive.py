"""Receive a stream and tell what became of it, as ``python -m xdpspead receive`` does."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import select
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Final

import xdpspead
from xdpspead import recv

#: Exit statuses. 2 is that of a wrong command line.
COMPLETE: Final = 0
CANNOT_RECEIVE: Final = 1
LOST: Final = 3
NOTHING_CAME: Final = 4

_PROGRESS_S: Final = 1.0
_POLL_S: Final = 0.1

Endpoint = tuple[str, int] | tuple[str, int, str]


@dataclass(frozen=True)
class Plan:
    """What to receive, and how."""

    endpoints: Sequence[Endpoint] = ()
    interface: str | None = None
    pcap: str | None = None
    pcap_filter: str = ""
    queues: Sequence[int] | None = None
    mode: str = "auto"
    workers: int = 1
    steer: str = "none"
    busy_poll: bool = False
    buffer_size: int | None = None
    max_size: int | None = None
    max_heaps: int = 4
    ring_heaps: int = 32
    out_of_order: bool = False
    seconds: float | None = None
    as_json: bool = False


@dataclass
class Tally:
    """What came."""

    heaps: int = 0
    bytes: int = 0
    began: float = field(default_factory=time.monotonic)

    def add(self, heap: recv.Heap | recv.IncompleteHeap) -> None:
        self.heaps += 1
        self.bytes += heap._received

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began


def run(plan: Plan) -> int:
    """Receive until the stream ends, the time is over or a signal comes, and print the ledger.

    Returns
    -------
    int
        0 if packets came and none was lost, 1 if nothing can be received, or not any more, 3 if
        something was lost, 4 if nothing came. What was under way when it ended is not lost.
    """
    try:
        stream = _open(plan)
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return CANNOT_RECEIVE
    with stream, _signals() as ended:
        for reader in stream.readers:
            print(f"receiving: {_describe(reader)}", file=sys.stderr, flush=True)
        tally = Tally()
        progress = _Progress(stream, tally, on=_on_terminal(plan))
        failure: recv.XdpError | None = None
        try:
            _drain(stream, plan.seconds, tally, progress, ended)
        except recv.XdpError as error:
            failure = error
        seconds = tally.seconds
        before = stream.ledger()
    _print(plan, stream, tally, seconds)
    if failure is not None:
        print(f"error: {failure}", file=sys.stderr)
        return CANNOT_RECEIVE
    return _status(before)


# ------------------------------------------------------------------ what to read


def _open(plan: Plan) -> recv.Stream:
    stream = recv.Stream(
        xdpspead.ThreadPool(plan.workers),
        recv.StreamConfig(max_heaps=plan.max_heaps, allow_out_of_order=plan.out_of_order),
        recv.RingStreamConfig(heaps=plan.ring_heaps),
    )
    try:
        _add_readers(stream, plan)
    except BaseException:
        stream.stop()
        raise
    return stream


def _add_readers(stream: recv.Stream, plan: Plan) -> None:
    if plan.pcap is not None:
        stream.add_udp_pcap_file_reader(plan.pcap, plan.pcap_filter)
        return
    sizes: dict[str, Any] = {
        name: value
        for name in ("buffer_size", "max_size")
        if (value := getattr(plan, name)) is not None
    }
    if plan.interface is not None:
        config = recv.UdpXdpConfig(
            endpoints=list(plan.endpoints),
            interface=plan.interface,
            queues=None if plan.queues is None else list(plan.queues),
            mode=plan.mode,
            workers=plan.workers,
            steer=plan.steer,
            busy_poll=plan.busy_poll,
            **sizes,
        )
        stream.add_udp_xdp_reader(config)
        return
    for host, port, *_ in plan.endpoints:
        stream.add_udp_reader(port, bind_hostname=host, **sizes)


def _describe(reader: recv.ReaderInfo) -> str:
    endpoints = ", ".join(
        f"{host}:{port}" + "".join(f" from {source}" for source in sources)
        for host, port, *sources in reader.endpoints
    )
    if reader.transport != "udp_xdp":
        return f"{reader.transport} {endpoints}".rstrip()
    queues = ", ".join(map(str, reader.queues))
    copy = "zero-copy" if reader.zero_copy else "copy"
    where = f"{reader.interface} queue {queues}"
    return f"{reader.transport} {endpoints} on {where}, {reader.mode} {copy}"


# ------------------------------------------------------------------ receiving


class _Ended:
    """Whether a signal has asked to end."""

    def __init__(self) -> None:
        self.yes = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.yes = True


@contextlib.contextmanager
def _signals() -> Iterator[_Ended]:
    """Note SIGINT and SIGTERM instead of dying of them."""
    ended = _Ended()
    former = {number: signal.signal(number, ended) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield ended
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


class _Progress:
    """A line on a terminal, and nothing elsewhere."""

    def __init__(self, stream: recv.Stream, tally: Tally, *, on: bool) -> None:
        self._stream = stream
        self._tally = tally
        self._on = on
        self._last = time.monotonic()
        self._bytes = self._packets = 0

    def show(self) -> None:
        """Show what came in the last second, if that is over."""
        now = time.monotonic()
        elapsed = now - self._last
        if not self._on or elapsed < _PROGRESS_S:
            return
        ledger, tally = self._stream.ledger(), self._tally
        packets = ledger["parser"].entered or 0
        rate = (tally.bytes - self._bytes) * 8 / elapsed / 1e9
        packet_rate = (packets - self._packets) / elapsed
        lost = ", ".join(f"{s.name} {s.n_lost:,}" for s in ledger.stages if s.n_lost) or "nothing"
        print(
            f"\r{tally.seconds:6.0f} s   {rate:7.3f} Gb/s   {packet_rate:10,.0f} packets/s"
            f"   {tally.heaps:,} heaps   lost: {lost}\x1b[K",
            end="",
            flush=True,
        )
        self._last, self._bytes, self._packets = now, tally.bytes, packets

    def clear(self) -> None:
        """Take the line away."""
        if self._on:
            print("\r\x1b[K", end="", flush=True)


def _on_terminal(plan: Plan) -> bool:
    return sys.stdout.isatty() and not plan.as_json


def _drain(
    stream: recv.Stream, seconds: float | None, tally: Tally, progress: _Progress, ended: _Ended
) -> None:
    deadline = None if seconds is None else time.monotonic() + seconds
    try:
        while not ended.yes and (deadline is None or time.monotonic() < deadline):
            progress.show()
            try:
                tally.add(stream.get_nowait())
            except xdpspead.Empty:
                left = _POLL_S if deadline is None else deadline - time.monotonic()
                select.select([stream.fd], [], [], max(min(left, _POLL_S), 0))
            except xdpspead.Stopped:
                break
    finally:
        progress.clear()


# ------------------------------------------------------------------ what came of it


def _print(plan: Plan, stream: recv.Stream, tally: Tally, seconds: float) -> None:
    ledger = stream.ledger()
    if plan.as_json:
        report = {
            "seconds": seconds,
            "heaps": tally.heaps,
            "bytes": tally.bytes,
            "readers": [dataclasses.asdict(reader) for reader in stream.readers],
            "ledger": ledger.to_dict(),
        }
        print(json.dumps(report, indent=2))
        return
    rate = tally.bytes * 8 / seconds / 1e9 if seconds else 0.0
    print(
        f"{seconds:.1f} s, {tally.heaps:,} heaps with {tally.bytes:,} bytes of payload, "
        f"{rate:.3f} Gb/s\n\n{ledger}"
    )


def _status(ledger: recv.Ledger) -> int:
    """Return the exit status; `ledger` is from before the end, which loses what is under way."""
    if any(loss.stage != "device" for loss in ledger.losses):
        return LOST
    return COMPLETE if ledger["parser"].entered else NOTHING_CAME
