"""A spead2 sender into the receiver under test, on every transport.

Where spead2 has a sender for the transport it sends itself. Captures, and packets within this
process, are made of the bytes that it writes into memory.
"""

from __future__ import annotations

import importlib
import itertools
import os
from collections.abc import Iterator
from typing import Any

import model
import numpy as np
import pytest
from samples import TYPES, sample
from target import OURS, drain, payload, sp, stats_of, wait_for
from transports import Feeder, Mcast6, Rig, Switched, Transport, Xdp4, meanwhile, parameters

spead2 = pytest.importorskip("spead2", reason="spead2, the peer, is not installed")
send = importlib.import_module("spead2.send")

FLAVOURS = [
    (bits, compat) for bits in (16, 24, 32, 40, 48, 56) for compat in (0, 1, 2, 4, 7)
]  # SPEAD-64-8 has no room for a heap with descriptors

#: The sender of spead2 wants a buffer, and NumPy has none for dates.
SENDABLE = [name for name, dtype in TYPES.items() if np.dtype(dtype).kind not in "mM"]


@pytest.fixture(scope="module", params=parameters(lambda t: t is not Switched))
def transport(request):
    with request.param() as transport:
        yield transport


@pytest.fixture(scope="module")
def pool():
    return sp.ThreadPool()


@pytest.fixture(scope="module")
def peer_pool():
    # A sender that moves to another processor could overtake its own packets.
    return spead2.ThreadPool(1, [min(os.sched_getaffinity(0))])


@pytest.fixture
def rig(transport, pool, peer_pool):
    with PeerRig(transport, pool, peer_pool) as rig:
        yield rig


def flavour(bits: int = 48, compat: int = 0) -> Any:
    return spead2.Flavour(4, 64, bits, compat)


def packets_of(data: bytes) -> Iterator[bytes]:
    """Cut packets that stand back to back apart."""
    position = 0
    while position < len(data):
        size = model.decode(data[position : position + 65_536], datagram=False).size
        yield data[position : position + size]
        position += size


class PeerRig(Rig):
    """A rig whose sender is spead2."""

    def __init__(self, transport: Transport, pool: Any, peer_pool: Any) -> None:
        super().__init__(transport, pool)
        self._peer_pool = peer_pool

    def _sender(self, feeder: Feeder, config: Any) -> Any:
        """Return spead2's sender for this transport, or one into memory."""
        name, pool = self.transport.name, self._peer_pool
        if self.transport.loads_ahead or name == "inproc":
            return send.BytesStream(pool, config)
        endpoints = list(feeder.endpoints)  # type: ignore[attr-defined]
        if name.startswith("tcp"):
            return send.TcpStream(pool, endpoints, config)
        if name == "mcast4":
            where = {"ttl": 1, "interface_address": "127.0.0.1"}
            return send.UdpStream(pool, endpoints, config, **where)
        if isinstance(self.transport, Mcast6):
            with self.transport.lab.tx.enter():
                where = {"ttl": 1, "interface_index": self.transport.lab.tx.ifindex}
                return send.UdpStream(pool, endpoints, config, **where)
        if isinstance(self.transport, Xdp4):
            with self.transport.lab.tx.enter():
                return send.UdpStream(pool, endpoints, config)
        return send.UdpStream(pool, endpoints, config)

    def packet_size(self, wanted: int) -> int:
        """Return the packet size that comes nearest to the one wanted."""
        return min(wanted, self.transport.max_packet)

    def talk(
        self,
        groups_of_heaps: list[list[Any]],
        *,
        packet_size: int = 1400,
        round_robin: bool = False,
        **config: Any,
    ) -> list[Any]:
        """Let spead2 send, and return every heap up to the end of the stream.

        Each group of heaps is sent in one go; the next one follows when it has been received, so
        that what is under way fits into any receiver's buffer. The last group is the end.
        """
        stream = self.stream(**config)
        name = self.transport.name
        options = {"connect": False} if name.startswith("tcp") else {}
        feeder = self.transport.open(stream, **options)
        self._feeders.append(feeder)
        sender_config = send.StreamConfig(max_packet_size=packet_size, max_heaps=16)
        sender = self._sender(feeder, sender_config)
        mode = send.GroupMode.ROUND_ROBIN if round_robin else send.GroupMode.SERIAL
        in_memory = isinstance(sender, send.BytesStream)

        def feed() -> None:
            sent = 0
            for heaps in groups_of_heaps:
                references = [
                    h if isinstance(h, send.HeapReference) else send.HeapReference(h) for h in heaps
                ]
                sender.send_heaps(references, mode)
                sent += len(heaps)
                if not in_memory and heaps is not groups_of_heaps[-1]:
                    wait_for(
                        lambda sent=sent: stream.stats.heaps >= sent,
                        f"{sent} heaps received; {stats_of(stream)}",
                    )
            if in_memory:
                feeder.send(packets_of(sender.getvalue()))
                feeder.end()

        with meanwhile(feed):
            heaps = drain(stream)
            feeder.release()
        return heaps


def end() -> list[Any]:
    """Return the heap that ends a stream, as a group."""
    heap = send.Heap(flavour())
    heap.add_end()
    return [heap]


def heap_of(value: Any, bits: int = 48) -> Any:
    """Return a heap of one array without its descriptor."""
    heap = send.Heap(flavour(bits))
    heap.add_item(spead2.Item(0x1000, "x", "", value.shape, value.dtype, value=value))
    return heap


# What is in the heaps


def sent_group(address_bits: int = 48, compat: int = 0) -> Any:
    """Return a spead2 item group with one item of each kind that the wire knows."""
    group = send.ItemGroup(flavour=flavour(address_bits, compat))
    ids = itertools.count(0x40)  # SPEAD-64-56 leaves seven bits for an id
    rng = np.random.default_rng(1)
    for name, shape, dtype in [
        ("u1", (1000,), np.uint8),
        ("i2", (20, 30), ">i2"),
        ("f4", (3, 4, 5), "<f4"),
        ("c8", (17,), np.complex64),
    ]:
        value = (rng.random(shape) * 100).astype(dtype)
        group.add_item(next(ids), name, f"array {name}", shape, dtype, value=value)
    columns = np.asfortranarray(np.arange(24, dtype=np.int32).reshape(4, 6))
    group.add_item(next(ids), "fortran", "", (4, 6), np.int32, order="F", value=columns)
    group.add_item(next(ids), "immediate", "", (), format=[("u", address_bits)], value=1234 % 2**16)
    group.add_item(next(ids), "text", "", (None,), format=[("c", 8)], value="radio")
    group.add_item(next(ids), "bits", "", (10,), format=[("u", 4)], value=list(range(10)))
    return group


def assert_same(received: Any, sent: Any) -> None:
    """Check that every value that was sent has arrived."""
    for name in sent.keys():  # noqa: SIM118 (an item group is no mapping)
        got, wanted = received[name].value, sent[name].value
        np.testing.assert_array_equal(np.asarray(got), np.asarray(wanted), err_msg=name)


@pytest.mark.parametrize(("bits", "compat"), FLAVOURS)
def test_values_of_every_kind_arrive(rig, bits, compat):
    group = sent_group(bits, compat)
    heaps = rig.talk(
        [[group.get_heap(descriptors="stale", data="all")] for _ in range(3)] + [[group.get_end()]],
        bug_compat=compat,
        max_heaps=2,
    )
    assert len(heaps) == 3
    received = sp.ItemGroup()
    for heap in heaps:
        assert heap.flavour.heap_address_bits == bits
        received.update(heap)
        assert_same(received, group)


@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("shape", [(50, 7), (3,), ()], ids=str)
def test_arrays_of_every_dtype(rig, shape, order):
    sent = {name: sample(np.dtype(TYPES[name]), shape, order) for name in SENDABLE}
    heaps = []
    for number, (name, array) in enumerate(sent.items()):
        group = send.ItemGroup()
        item = (0x1000 + number, name, "", array.shape, array.dtype)
        group.add_item(*item, order=order, value=array)
        heaps.append(group.get_heap())
    received = sp.ItemGroup()
    for heap in rig.talk([[heap] for heap in heaps] + [end()]):
        received.update(heap)
    for name, array in sent.items():
        native = array.astype(array.dtype.newbyteorder("="))
        got = received[name].value
        assert (got.dtype, got.shape) == (native.dtype, shape), name
        assert got.tobytes() == native.tobytes(), name
        if len(shape) > 1:
            assert got.flags.f_contiguous == (order == "F")


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 0)], ids=str)
def test_array_without_elements_arrives(rig, shape):
    """spead2 sends an immediate zero for one, of which it cannot make an array itself."""
    group = send.ItemGroup()
    full = np.arange(100, dtype=np.int16)
    group.add_item(0x1000, "full", "", full.shape, full.dtype, value=full)
    first = group.get_heap()
    group.add_item(0x1001, "empty", "", shape, np.int16, value=np.empty(shape, np.int16))
    second = group.get_heap(data="all")
    group["full"].value = -full
    third = group.get_heap()
    heaps = rig.talk([[first], [second], [third], end()])
    received = sp.ItemGroup()
    received.update(heaps[0])
    if OURS:
        received.update(heaps[1])
        value = received["empty"].value
        assert (value.shape, value.dtype) == (shape, np.int16)
        np.testing.assert_array_equal(received["full"].value, full)
    else:
        with pytest.raises(ValueError):  # noqa: PT011 (NumPy has several texts)
            received.update(heaps[1])
    received.update(heaps[2])
    np.testing.assert_array_equal(received["full"].value, -full)


def test_descriptors_are_sent_again(rig):
    group = send.ItemGroup()
    array = np.arange(300, dtype=np.int32)
    group.add_item(0x1000, "x", "", array.shape, array.dtype, value=array)
    groups = [[group.get_heap(descriptors="all", data="all")] for _ in range(5)]
    versions, received = [], sp.ItemGroup()
    for heap in rig.talk([*groups, end()]):
        received.update(heap)
        np.testing.assert_array_equal(received["x"].value, array)
        versions.append(received["x"].version)
    assert versions == [3, 5, 7, 9, 11]


def test_item_takes_another_shape(rig):
    group = send.ItemGroup()
    groups = []
    for length in (100, 200, 200, 50):
        array = np.full(length, length, np.uint16)
        if "x" not in group or group["x"].shape != array.shape:
            group.add_item(0x1000, "x", "", array.shape, array.dtype)
        group["x"].value = array
        groups.append([group.get_heap()])
    lengths, received = [], sp.ItemGroup()
    for heap in rig.talk([*groups, end()]):
        received.update(heap)
        lengths.append(len(received["x"].value))
        assert set(received["x"].value.tolist()) == {lengths[-1]}
    assert lengths == [100, 200, 200, 50]


# How they are cut into packets


@pytest.mark.parametrize("packet_size", [100, 1472, 8972, 9200, 60_000])
def test_large_heaps_in_packets_of_any_size(rig, packet_size):
    size = rig.packet_size(packet_size)
    length = (1000 if rig.transport.lossless else 100) * (size - 72)
    length = min(length, 1_000_000 if rig.transport.lossless else 100_000)
    data = np.random.default_rng(2).integers(0, 256, (3, length), np.uint8)
    heaps = rig.talk([*([heap_of(row)] for row in data), end()], packet_size=size)
    assert [payload(heap) for heap in heaps] == [row.tobytes() for row in data]


def test_repeated_pointers_and_interleaved_heaps(rig):
    references = []
    for cnt in range(4):
        heap = heap_of(np.full(10_000, cnt, np.uint8))
        heap.repeat_pointers = True
        references.append(send.HeapReference(heap, cnt=cnt + 1))
    heaps = rig.talk([references, end()], round_robin=True, max_heaps=4)
    assert {heap.cnt: payload(heap) for heap in heaps} == {
        cnt + 1: bytes([cnt]) * 10_000 for cnt in range(4)
    }


def test_start_item_and_heap_counts(rig):
    first = send.Heap(flavour())
    first.add_start()
    second = send.Heap(flavour())
    references = [send.HeapReference(first, cnt=10), send.HeapReference(second, cnt=13)]
    heaps = rig.talk([references, end()])
    assert [(h.cnt, h.is_start_of_stream()) for h in heaps] == [(10, True), (13, False)]


def test_hundreds_of_heaps_without_loss(rig):
    data = np.random.default_rng(3).integers(0, 256, (500, 4096), np.uint8)
    references = [send.HeapReference(heap_of(row), cnt=cnt) for cnt, row in enumerate(data)]
    groups = [references[i : i + 16] for i in range(0, len(data), 16)]
    heaps = rig.talk([*groups, end()], packet_size=1024 + 72)
    assert [heap.cnt for heap in heaps] == list(range(500))
    assert [payload(heap) for heap in heaps] == [row.tobytes() for row in data]


def test_heap_doubled_and_cut_short(rig):
    value = np.arange(5000, dtype=np.uint16)
    generator = send.PacketGenerator(heap_of(value), 1, 1400)
    whole = list(generator)
    heaps, stats = rig.receive([*whole, *itertools.islice(whole, len(whole) - 1)])
    assert [payload(heap) for heap in heaps] == [value.tobytes()]
    assert (stats.heaps, stats.incomplete_heaps_flushed) == (2, 1)
