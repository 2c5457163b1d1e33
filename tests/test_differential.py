"""Random packet sequences: the package under test, the plain model and spead2 must agree.

What is compared: the heaps in their order, with all that a heap shows, and every core statistic.
What is not compared with spead2, in one place and with the reason: see `NOT_COMPARED`.

``XDPSPEAD_EXAMPLES`` sets the number of sequences for a longer search.
"""

from __future__ import annotations

import importlib
import os

import model
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from target import OURS, PARSER_REASONS, drain, recv, refusals, show, sp
from wire import Packet, addr, heap_of_values, imm, join, pattern

EXAMPLES = int(os.environ.get("XDPSPEAD_EXAMPLES", "600"))

#: Statistics whose values may differ from spead2's.
NOT_COMPARED = {
    # The length of a walk through spead2's hash table: it describes how a heap is found, and its
    # manual says that it may go without notice.
    "search_dist",
}
#: Statistics that spead2 does not have are not compared either; all of them have this prefix.
OUR_PREFIX = "xdpspead."

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


@st.composite
def cases(draw):
    sequence = draw(st.one_of(wild_sequences(), network_sequences()))
    data = join(sequence)
    if draw(st.integers(0, 19)) == 0:
        data += draw(st.binary(max_size=40))  # the buffer ends in something else
    return draw(configs), data


def outcome(package, recv_module, pool, config: model.Config, data: bytes):
    """Return the heaps and the statistics that a package makes of a buffer."""
    stream = recv_module.Stream(
        pool,
        recv_module.StreamConfig(
            max_heaps=config.max_heaps,
            substreams=config.substreams,
            stop_on_stop_item=config.stop_on_stop_item,
            allow_unsized_heaps=config.allow_unsized_heaps,
            allow_out_of_order=config.allow_out_of_order,
        ),
        recv_module.RingStreamConfig(
            heaps=RING_HEAPS,
            contiguous_only=config.contiguous_only,
            incomplete_keep_payload_ranges=config.incomplete_keep_payload_ranges,
        ),
    )
    stream.add_buffer_reader(data)
    heaps = drain(stream) if package is sp else list(stream)
    stream.stop()
    return heaps, stream.stats


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


STOP_IN_REFUSED = (
    model.Config(contiguous_only=False),
    join([Packet(5, b"abc", 0, 6), Packet(5, b"a", 0, 6, (imm(6, 2),)), Packet(5, b"def", 3, 6)]),
)
TWO_LIVE_HEAPS_OF_ONE_NAME = (
    model.Config(allow_out_of_order=True, contiguous_only=False),
    join(
        [
            Packet(4, b"abc", 0, 7),
            Packet(4, b"abcdef", 0, 6, (addr(0x20, 7),)),
            Packet(4, b"d", 3, 7),
        ]
    ),
)
UNSIZED_RUNS_PAST_THE_LENGTH = (
    model.Config(contiguous_only=False),
    join([Packet(4, b"abcde", 0, 6), Packet(4, b"xyz", 5)]),
)
ITEM_PAST_THE_LENGTH = (
    model.Config(allow_out_of_order=True, contiguous_only=False),
    join([Packet(1, b"", 0, 7, (addr(0x20, 8),)), Packet(1, b"x", 6, 7)]),
)


class TestModel:
    """The package under test against the plain model, also where spead2 is not installed."""

    @pytest.fixture(autouse=True)
    def _pool(self, pool):
        type(self).pool = pool

    @search
    @example(STOP_IN_REFUSED)
    @example(TWO_LIVE_HEAPS_OF_ONE_NAME)
    @example(UNSIZED_RUNS_PAST_THE_LENGTH)
    @example(ITEM_PAST_THE_LENGTH)
    @given(cases())
    def test_same_heaps_and_statistics_as_the_model(self, case):
        config, data = case
        wanted = model.receive_buffer(data, config)
        heaps, stats = outcome(sp, recv, self.pool, config, data)
        assert [show(heap) for heap in heaps] == wanted.heaps
        assert {name: stats[name] for name in wanted.stats} == wanted.stats
        assert stats.max_batch == stats.packets
        assert stats.batches == (stats.packets > 0)
        if OURS:
            # A packet can be wrong in two ways at once, and which one is seen first is free.
            counted = refusals(stats)
            parser = {r: n for r, n in counted.items() if r in PARSER_REASONS}
            assert parser == dict(wanted.parser)
            assert sum(counted.values()) - sum(parser.values()) == sum(wanted.window.values())


@pytest.mark.ours
class TestPeer:
    """The package under test against spead2, through the same calls."""

    @pytest.fixture(autouse=True)
    def _setup(self, pool, peer):
        type(self).pool = pool
        type(self).peer = peer

    @search
    @example(STOP_IN_REFUSED)
    @example(TWO_LIVE_HEAPS_OF_ONE_NAME)
    @example(UNSIZED_RUNS_PAST_THE_LENGTH)
    @example(ITEM_PAST_THE_LENGTH)
    @given(cases())
    def test_same_heaps_and_statistics_as_spead2(self, case):
        config, data = case
        peer_package, peer_recv, peer_pool = self.peer
        theirs, their_stats = outcome(peer_package, peer_recv, peer_pool, config, data)
        mine, my_stats = outcome(sp, recv, self.pool, config, data)
        assert [show(heap) for heap in mine] == [
            show(heap, incomplete=peer_recv.IncompleteHeap) for heap in theirs
        ]
        names = [n for n in their_stats if n not in NOT_COMPARED]
        assert not any(n.startswith(OUR_PREFIX) for n in names)
        assert {n: my_stats[n] for n in names} == {n: their_stats[n] for n in names}
