"""Random packet sequences: the package under test, the plain model and spead2 must agree.

Each sequence goes through a buffer reader and through an in-process queue. What is compared: the
heaps in their order, with all that a heap shows, and every core statistic. What is not compared
with spead2, in one place: see `NOT_COMPARED`.

``XDPSPEAD_EXAMPLES`` sets the number of sequences for a longer search.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import model
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from target import OURS, PARSER_REASONS, drain, recv, refusals, show, sp
from wire import Packet, addr, heap_of_values, imm, pattern

EXAMPLES = int(os.environ.get("XDPSPEAD_EXAMPLES", "600"))

#: Statistics whose values may differ from spead2's, and the name of the difference in
#: docs/differences.md, where the reason stands.
NOT_COMPARED = {"search_dist": "search-dist"}
#: Statistics that spead2 does not have are not compared either; all of them have this prefix.
OUR_PREFIX = "xdpspead."

#: Heaps that spead2 has memory for; what we do with larger ones is the difference `bounds`.
SURVIVED_BYTES = 1 << 20

#: spead2 makes a heap of whatever its memory holds when a queue gets an empty packet.
EMPTY_PACKETS = "inproc-empty-packet"

RING_HEAPS = 256  # more than any sequence makes, so that no worker ever blocks


search = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="XDPSPEAD_EXAMPLES" not in os.environ,  # the same every time, unless searching
    suppress_health_check=list(HealthCheck),
)

configs = st.builds(
    model.Config,
    max_heaps=st.integers(1, 4),
    substreams=st.sampled_from([1, 1, 2, 3]),
    stop_on_stop_item=st.booleans(),
    allow_unsized_heaps=st.booleans(),
    allow_out_of_order=st.booleans(),
    contiguous_only=st.booleans(),
    incomplete_keep_payload_ranges=st.booleans(),
)

flavours = st.sampled_from([48, 48, 40, 56, 16, 8, 32])

small = st.integers(0, 9)
item_ids = st.sampled_from([0, 1, 2, 3, 4, 5, 6, 0x20, 0x21, 0x22])
pointers = st.one_of(
    st.builds(addr, item_ids, small),
    # Immediates of the ids 1 to 4 would rename the heap or move the payload: they are drawn below.
    st.builds(imm, st.sampled_from([0, 5, 6, 0x20, 0x21, 0x22]), st.integers(0, 4)),
)


@st.composite
def wild_packets(draw, address_bits: int) -> Packet:
    """Draw a packet whose fields have little to do with those of its neighbours."""
    data = draw(st.binary(max_size=6))
    offset = draw(st.sampled_from([0, 0, 0, 1, 2, 3, 4, 6]))
    end = offset + len(data)
    length = draw(st.sampled_from([None, 6, 6, 6, end, 7, 9]))
    if length is not None and length < end and draw(st.integers(0, 15)):
        length = end  # mostly keep it decodable
    return Packet(
        cnt=draw(st.integers(1, 5)),
        payload=data,
        offset=offset,
        heap_length=length,
        items=tuple(draw(st.lists(pointers, max_size=4))),
        address_bits=draw(st.sampled_from([address_bits] * 15 + [40])),
        items_first=draw(st.booleans()),
    )


@st.composite
def wild_sequences(draw) -> list[Packet]:
    """Draw a sequence of unrelated packets over few heaps."""
    return draw(st.lists(wild_packets(draw(flavours)), min_size=1, max_size=16))


@st.composite
def network_sequences(draw) -> list[Packet]:
    """Draw heaps as a sender makes them and let a network lose, double, move and cut packets."""
    bits = draw(flavours)
    packets: list[Packet] = []
    for cnt in range(draw(st.integers(1, 7))):
        length = draw(st.integers(0, 60))
        values = [(0x20, pattern(cnt, length)), (0x21, cnt), (0x22, b"tail")]
        sized = draw(st.integers(0, 3)) > 0
        heap = heap_of_values(cnt, values, address_bits=bits, sized=sized)
        packets += heap.packets(
            draw(st.sampled_from([7, 16, 30, 64])), repeat_items=draw(st.booleans())
        )
    stop = draw(st.integers(0, 5))
    if stop == 0:
        where = draw(st.integers(0, len(packets) - 1))
        packets[where] = packets[where].but(items=(*packets[where].items, imm(6, 2)))
    out: list[tuple[float, Packet]] = []
    for i, packet in enumerate(packets):
        fate = draw(st.integers(0, 19))
        if fate == 0:
            continue  # lost
        late = draw(st.sampled_from([0.0] * 12 + [1.5, 2.5, 9.5]))
        if fate == 1:
            out.append((i + draw(st.sampled_from([0.1, 3.1, 20.1])), packet))  # doubled
        if fate == 2 and packet.payload:
            # Cut: less payload than the heap needs at this place.
            packet = packet.but(payload=packet.payload[: len(packet.payload) // 2])
        if fate == 3 and packet.offset:
            packet = packet.but(offset=packet.offset - 1, payload=b"!" + packet.payload)  # overlaps
        out.append((i + late, packet))
    return [packet for _, packet in sorted(out, key=lambda pair: pair[0])]


@dataclass(frozen=True)
class Flags:
    """The part of `StreamConfig` that must make no difference to what comes out."""

    nontemporal: bool = False
    allocator: str = "plain"
    explicit_start: bool = False
    stream_id: int = 0
    bug_compat: int = 0


@dataclass(frozen=True)
class Case:
    """What is sent, and to what kind of stream."""

    config: model.Config
    packets: list[bytes]
    flags: Flags = field(default_factory=Flags)


def without_empty(case: Case) -> Case:
    return replace(case, packets=[packet for packet in case.packets if packet])


flags = st.builds(
    Flags,
    nontemporal=st.booleans(),
    allocator=st.sampled_from(["plain", "mmap", "pool"]),
    explicit_start=st.booleans(),
    stream_id=st.sampled_from([0, 7]),
    bug_compat=st.sampled_from([0, 0, 1, 7]),
)


@st.composite
def spoilt(draw, packet: bytes) -> bytes:
    """Draw what a faulty device makes of a packet."""
    fate = draw(st.integers(0, 4))
    if fate == 0:
        return packet[: draw(st.integers(0, len(packet)))]
    if fate == 1:
        return packet + draw(st.binary(min_size=1, max_size=12))
    if fate == 2:
        return draw(st.binary(max_size=40))
    if not packet:
        return b"\0"
    where = draw(st.integers(0, min(len(packet), 48) - 1))
    wrong = packet[where] ^ draw(st.integers(1, 255))
    return packet[:where] + bytes([wrong]) + packet[where + 1 :]


def harmless(packet: bytes) -> bool:
    """Return whether spead2 survives the packet: its worker dies when memory cannot be had."""
    try:
        decoded = model.decode(packet)
    except model.Reject:
        return True
    addresses = [pointer.value for pointer in decoded.pointers if not pointer.immediate]
    return max(decoded.heap_length or 0, decoded.offset, *addresses, 0) < SURVIVED_BYTES


@st.composite
def cases(draw) -> Case:
    sequence = draw(st.one_of(wild_sequences(), network_sequences()))
    packets = [packet.encode() for packet in sequence]
    for i in (
        draw(st.lists(st.integers(0, len(packets)), max_size=2)) if draw(st.booleans()) else ()
    ):
        if i < len(packets):
            packet = draw(spoilt(packets[i]))
            if harmless(packet):
                packets[i] = packet
    return Case(draw(configs), packets, draw(flags))


# ------------------------------------------------------------------ running a case


def allocator(package: Any, kind: str) -> Any:
    if kind == "mmap":
        return package.MmapAllocator()
    if kind == "pool":
        pool = package.MemoryPool(4, 32, 3, 2)
        pool.warn_on_empty = False
        return pool
    return package.MemoryAllocator()


def by_buffer(package: Any, stream: Any, packets: list[bytes]) -> None:
    stream.add_buffer_reader(b"".join(packets))


def by_queue(package: Any, stream: Any, packets: list[bytes]) -> None:
    queue = package.InprocQueue()
    stream.add_inproc_reader(queue)
    for packet in packets:
        queue.add_packet(packet)
    queue.stop()


Feed = Callable[[Any, Any, list[bytes]], None]
FEEDS: dict[str, Feed] = {"buffer": by_buffer, "inproc": by_queue}
each_transport = pytest.mark.parametrize("transport", list(FEEDS))


def outcome(
    package: Any, recv_module: Any, pool: Any, case: Case, transport: str
) -> tuple[list[Any], Any]:
    """Return the heaps and the statistics that a package makes of a sequence."""
    config, extra = case.config, case.flags
    stream = recv_module.Stream(
        pool,
        recv_module.StreamConfig(
            max_heaps=config.max_heaps,
            substreams=config.substreams,
            stop_on_stop_item=config.stop_on_stop_item,
            allow_unsized_heaps=config.allow_unsized_heaps,
            allow_out_of_order=config.allow_out_of_order,
            memcpy=package.MEMCPY_NONTEMPORAL if extra.nontemporal else package.MEMCPY_STD,
            memory_allocator=allocator(package, extra.allocator),
            explicit_start=extra.explicit_start,
            stream_id=extra.stream_id,
            bug_compat=extra.bug_compat,
        ),
        recv_module.RingStreamConfig(
            heaps=RING_HEAPS,
            contiguous_only=config.contiguous_only,
            incomplete_keep_payload_ranges=config.incomplete_keep_payload_ranges,
        ),
    )
    FEEDS[transport](package, stream, case.packets)
    if extra.explicit_start:
        stream.start()
    heaps = drain(stream) if package is sp else list(stream)
    stream.stop()
    return heaps, stream.stats


def encoded(*packets: Packet) -> list[bytes]:
    return [packet.encode() for packet in packets]


def expected(case: Case, transport: str) -> model.Result:
    if transport == "buffer":
        return model.receive_buffer(b"".join(case.packets), case.config)
    return model.receive_datagrams(case.packets, case.config, end=True)


@pytest.fixture(scope="module")
def pool():
    return sp.ThreadPool()


@pytest.fixture(scope="module")
def peer():
    package = pytest.importorskip("spead2", reason="spead2, the peer, is not installed")
    return package, importlib.import_module("spead2.recv"), package.ThreadPool()


@pytest.fixture(autouse=True)
def quiet_peer(caplog):
    caplog.set_level("CRITICAL", logger="spead2")
    caplog.set_level("CRITICAL", logger="xdpspead")


STOP_IN_REFUSED = Case(
    model.Config(contiguous_only=False),
    encoded(Packet(5, b"abc", 0, 6), Packet(5, b"a", 0, 6, (imm(6, 2),)), Packet(5, b"def", 3, 6)),
)
TWO_LIVE_HEAPS_OF_ONE_NAME = Case(
    model.Config(allow_out_of_order=True, contiguous_only=False),
    encoded(
        Packet(4, b"abc", 0, 7),
        Packet(4, b"abcdef", 0, 6, (addr(0x20, 7),)),
        Packet(4, b"d", 3, 7),
    ),
)
UNSIZED_RUNS_PAST_THE_LENGTH = Case(
    model.Config(contiguous_only=False),
    encoded(Packet(4, b"abcde", 0, 6), Packet(4, b"xyz", 5)),
)
ITEM_PAST_THE_LENGTH = Case(
    model.Config(allow_out_of_order=True, contiguous_only=False),
    encoded(Packet(1, b"", 0, 7, (addr(0x20, 8),)), Packet(1, b"x", 6, 7)),
)
BAD_PACKETS_ONLY = Case(model.Config(), [b"", b"S", b"not SPEAD at all"])


def corners(test: Any) -> Any:
    """Try the sequences that once told two of the three apart, beside the random ones."""
    for case in (
        STOP_IN_REFUSED,
        TWO_LIVE_HEAPS_OF_ONE_NAME,
        UNSIZED_RUNS_PAST_THE_LENGTH,
        ITEM_PAST_THE_LENGTH,
        BAD_PACKETS_ONLY,
    ):
        test = example(case=case)(test)
    return test


class TestModel:
    """The package under test against the plain model, also where spead2 is not installed."""

    @pytest.fixture(autouse=True)
    def _pool(self, pool):
        type(self).pool = pool

    @each_transport
    @search
    @corners
    @given(case=cases())
    def test_same_heaps_and_statistics_as_the_model(self, transport, case):
        if transport == "inproc" and not OURS:
            case = without_empty(case)
        wanted = expected(case, transport)
        heaps, stats = outcome(sp, recv, self.pool, case, transport)
        assert [show(heap) for heap in heaps] == wanted.heaps
        assert {name: stats[name] for name in wanted.stats} == wanted.stats
        if transport == "buffer":
            assert stats.max_batch == stats.packets
            assert stats.batches == (stats.packets > 0)
        if OURS:
            # A packet can be wrong in two ways at once, and which one is seen first is free.
            counted = refusals(stats)
            parser = sum(n for reason, n in counted.items() if reason in PARSER_REASONS)
            assert parser == sum(wanted.parser.values())
            assert sum(counted.values()) - parser == sum(wanted.window.values())
            # There is no heap that could refuse a late packet for another reason.
            assert counted.get("late", 0) == wanted.window["late"]


@pytest.mark.ours
class TestPeer:
    """The package under test against spead2, through the same calls."""

    @pytest.fixture(autouse=True)
    def _setup(self, pool, peer):
        type(self).pool = pool
        type(self).peer = peer

    @each_transport
    @search
    @corners
    @given(case=cases())
    def test_same_heaps_and_statistics_as_spead2(self, transport, case):
        if transport == "inproc":
            case = without_empty(case)
        peer_package, peer_recv, peer_pool = self.peer
        theirs, their_stats = outcome(peer_package, peer_recv, peer_pool, case, transport)
        mine, my_stats = outcome(sp, recv, self.pool, case, transport)
        assert [show(heap) for heap in mine] == [
            show(heap, incomplete=peer_recv.IncompleteHeap) for heap in theirs
        ]
        assert [heap.flavour.bug_compat for heap in mine] == [
            heap.flavour.bug_compat for heap in theirs
        ]
        names = [n for n in their_stats if n not in NOT_COMPARED]
        assert not any(n.startswith(OUR_PREFIX) for n in names)
        assert {n: my_stats[n] for n in names} == {n: their_stats[n] for n in names}


def test_every_statistic_left_out_is_a_documented_difference():
    page = Path(__file__).parents[1] / "docs/differences.md"
    text = page.read_text()
    for name in [*NOT_COMPARED.values(), EMPTY_PACKETS, "bounds"]:
        assert f"`{name}`" in text
