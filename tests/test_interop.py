"""A spead2 sender into the receiver under test, on every transport it shares with us."""

from __future__ import annotations

import importlib
import itertools
import socket
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from target import DEADLINE, in_thread, new_stream, next_heap, payload, sp

spead2 = pytest.importorskip("spead2", reason="spead2, the peer, is not installed")
send = importlib.import_module("spead2.send")

FLAVOURS = [
    (bits, compat) for bits in (16, 24, 32, 40, 48, 56) for compat in (0, 1, 2, 4, 7)
]  # SPEAD-64-8 has no room for a heap with descriptors


def flavour(bits: int, compat: int) -> Any:
    return spead2.Flavour(4, 64, bits, compat)


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


def send_group(stream: Any, group: Any, heaps: int = 3) -> None:
    """Send a group `heaps` times, the descriptors once, and the end of the stream."""
    for _ in range(heaps):
        stream.send_heap(group.get_heap(descriptors="stale", data="all"))
    stream.send_heap(group.get_end())


def config(**kwargs: Any) -> Any:
    return send.StreamConfig(**{"max_packet_size": 1472, "rate": 20e6, **kwargs})


def by_buffer(stream: Any, feed: Callable[[Any], None], **options: Any) -> None:
    sender = send.BytesStream(spead2.ThreadPool(), config(**options))
    feed(sender)
    stream.add_buffer_reader(sender.getvalue())


def by_udp(stream: Any, feed: Callable[[Any], None], **options: Any) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        stream.add_udp_reader(sock)
        endpoint = sock.getsockname()
    sender = send.UdpStream(spead2.ThreadPool(), [endpoint], config(**options))
    in_thread(lambda: feed(sender))


TRANSPORTS = {"buffer": by_buffer, "udp": by_udp}


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(("bits", "compat"), FLAVOURS)
def test_values_of_every_kind_arrive(transport, bits, compat):
    group = sent_group(bits, compat)
    stream = new_stream(bug_compat=compat, max_heaps=2)
    TRANSPORTS[transport](stream, lambda sender: send_group(sender, group))
    received = sp.ItemGroup()
    for _ in range(3):
        heap = next_heap(stream)
        assert heap.flavour.heap_address_bits == bits
        received.update(heap)
        assert_same(received, group)
    with pytest.raises(sp.Stopped):
        next_heap(stream)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("packet_size", [100, 1472, 8972, 9200])
def test_large_heaps_in_packets_of_any_size(transport, packet_size):
    length = min(1_000_000, packet_size * 400)
    group = send.ItemGroup(flavour=flavour(48, 0))
    data = np.random.default_rng(2).integers(0, 256, length, np.uint8)
    group.add_item(0x1000, "data", "", (length,), np.uint8, value=data)
    stream = new_stream()
    TRANSPORTS[transport](
        stream, lambda sender: send_group(sender, group), max_packet_size=packet_size, rate=40e6
    )
    received = sp.ItemGroup()
    for _ in range(3):
        received.update(next_heap(stream))
        np.testing.assert_array_equal(received["data"].value, data)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_repeated_pointers_and_interleaved_heaps(transport):
    heaps = []
    for cnt in range(4):
        heap = send.Heap(flavour(48, 0))
        heap.repeat_pointers = True
        value = np.full(10_000, cnt, np.uint8)
        heap.add_item(spead2.Item(0x1000, "x", "", value.shape, value.dtype, value=value))
        heaps.append(send.HeapReference(heap, cnt=cnt + 1))
    stream = new_stream(max_heaps=4)
    TRANSPORTS[transport](
        stream, lambda sender: sender.send_heaps(heaps, send.GroupMode.ROUND_ROBIN)
    )
    got = {}
    for _ in range(4):
        heap = next_heap(stream)
        got[heap.cnt] = payload(heap)
    assert got == {cnt + 1: bytes([cnt]) * 10_000 for cnt in range(4)}
    stream.stop()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_start_item_and_heap_counts(transport):
    def feed(sender):
        sender.set_cnt_sequence(10, 3)
        heap = send.Heap(flavour(48, 0))
        heap.add_start()
        sender.send_heap(heap)
        sender.send_heap(send.Heap(flavour(48, 0)))

    stream = new_stream()
    TRANSPORTS[transport](stream, feed)
    first, second = next_heap(stream), next_heap(stream)
    assert (first.cnt, first.is_start_of_stream()) == (10, True)
    assert (second.cnt, second.is_start_of_stream()) == (13, False)
    stream.stop()


def test_hundreds_of_heaps_at_a_rate_without_loss():
    data = np.random.default_rng(3).integers(0, 256, (500, 4096), np.uint8)
    stream = new_stream(heaps=64)

    def feed(sender):
        for cnt, row in enumerate(data):
            heap = send.Heap(flavour(48, 0))
            heap.add_item(spead2.Item(0x1000, "x", "", row.shape, row.dtype, value=row))
            sender.send_heap(heap, cnt=cnt)

    by_udp(stream, feed, max_packet_size=1024 + 72, rate=10e6)
    for cnt in range(len(data)):
        heap = next_heap(stream, DEADLINE)
        assert (heap.cnt, payload(heap)) == (cnt, data[cnt].tobytes())
    stream.stop()


@pytest.mark.ours
@pytest.mark.xdp
def test_values_of_every_kind_arrive_through_af_xdp():
    from xdplab import Lab

    with Lab() as lab:
        stream = lab.stream(max_heaps=2)
        port = lab.add_reader(stream)
        group = sent_group()
        with lab.tx.enter():
            sender = send.UdpStream(
                spead2.ThreadPool(), [(lab.rx.ipv4, port)], config(max_packet_size=1400)
            )
        in_thread(lambda: send_group(sender, group))
        received = sp.ItemGroup()
        for _ in range(3):
            received.update(next_heap(stream))
            assert_same(received, group)
        with pytest.raises(sp.Stopped):
            next_heap(stream)
