"""The exact meaning of every statistic, and the faces of the object that holds them."""

from __future__ import annotations

import copy
import pickle
import socket

import pytest
from target import (
    OURS,
    Sender,
    drain,
    in_thread,
    new_stream,
    next_heap,
    receive,
    recv,
    settled,
    sp,
    take,
    udp_stream,
    wait_for,
)
from wire import Packet, simple_heap, stop_packet

#: The statistics that every stream has, in the order of their indices.
CORE = [
    "heaps",
    "incomplete_heaps_evicted",
    "incomplete_heaps_flushed",
    "packets",
    "batches",
    "max_batch",
    "single_packet_heaps",
    "search_dist",
    "worker_blocked",
]

COUNTER = recv.StreamStatConfig.Mode.COUNTER
MAXIMUM = recv.StreamStatConfig.Mode.MAXIMUM


def nonzero(stats) -> dict[str, int]:
    """Return what counted, without `search_dist`, which describes an implementation."""
    core = {name: stats[name] for name in CORE if name != "search_dist"}
    return {name: value for name, value in core.items() if value}


@pytest.fixture
def stats():
    """Return the statistics of one heap in four packets and one in a single packet."""
    return receive([*simple_heap(1, 100).packets(25), *simple_heap(2, 10).packets()])[1]


# Meaning


def test_all_statistics_of_an_ordinary_run(stats):
    assert nonzero(stats) == {
        "heaps": 2,
        "packets": 5,
        "batches": 1,
        "max_batch": 5,
        "single_packet_heaps": 1,
    }


def test_a_new_stream_has_counted_nothing():
    assert nonzero(new_stream().stats) == {}


def test_heaps_are_complete_ones_plus_evicted_plus_flushed():
    packets = [simple_heap(c, 100).packets(50)[0] for c in range(7)]
    _, stats = receive([*packets, *simple_heap(9, 100).packets(50)], max_heaps=3)
    assert (stats.incomplete_heaps_evicted, stats.incomplete_heaps_flushed) == (5, 2)
    assert stats.heaps == 8


def test_heaps_include_incomplete_ones_that_nobody_is_shown():
    heaps, stats = receive([simple_heap(1, 100).packets(50)[0]])
    assert heaps == []
    assert stats.heaps == 1


def test_stop_heap_is_in_packets_and_not_in_heaps():
    _, stats = receive([*simple_heap(1, 10).packets(), stop_packet()])
    assert (stats.heaps, stats.packets) == (1, 2)


def test_packets_after_the_stop_item_are_not_counted():
    _, stats = receive([stop_packet(), *simple_heap(1, 10).packets()])
    assert (stats.packets, stats.max_batch) == (1, 1)


def test_packets_include_those_that_their_heap_refused():
    first, second = simple_heap(1, 100).packets(50)
    refused = [first, Packet(1, b"x", 7, 200), simple_heap(8, 10, sized=False).packets()[0]]
    _, stats = receive([first, *refused, second], allow_unsized_heaps=False)
    assert (stats.packets, stats.heaps) == (5, 1)


def test_packets_that_cannot_be_decoded_are_in_no_core_statistic():
    _, stats = receive([Packet(1, b"abc", 0, 2)])
    assert nonzero(stats) == {}


def test_single_packet_heaps_counts_every_copy():
    _, stats = receive(simple_heap(1, 10).packets() * 3)
    assert (stats.heaps, stats.single_packet_heaps) == (3, 3)


def test_unsized_heap_of_one_packet_is_not_a_single_packet_heap():
    _, stats = receive(simple_heap(1, 10, sized=False).packets())
    assert (stats.single_packet_heaps, stats.incomplete_heaps_flushed) == (0, 1)


@pytest.mark.parametrize("n", [1, 64, 65, 1000])
def test_a_buffer_is_one_batch(n):
    _, stats = receive([p for i in range(n) for p in simple_heap(i, 4).packets()], heaps=n)
    assert (stats.packets, stats.batches, stats.max_batch) == (n, 1, n)


def test_datagrams_that_arrive_alone_are_batches_of_one():
    stream, sender = udp_stream()
    with sender:
        for i in range(3):
            sender.send(*simple_heap(i, 10).packets())
            assert next_heap(stream).cnt == i
            settled(stream, i + 1)
    stream.stop()
    assert (stream.stats.batches, stream.stats.max_batch) == (3, 1)


def test_a_udp_batch_is_at_most_64_messages():
    stream = new_stream()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        # All of them wait in the kernel before the first is read.
        with Sender(sock.getsockname()[1]) as sender:
            sender.send(*(p for i in range(100) for p in simple_heap(i, 4).packets()))
        stream.add_udp_reader(sock)
    take(stream, 100)
    stats = settled(stream, 100)
    stream.stop()
    assert (stats.batches, stats.max_batch) == (2, 64)


def test_datagrams_without_a_packet_are_batches_of_none():
    stream, sender = udp_stream()
    with sender:
        for n, junk in enumerate((b"no", b"", b"packet" * 9), start=1):
            sender.send(junk)
            wait_for(lambda n=n: stream.stats.batches == n, f"batch {n}")
        assert nonzero(stream.stats) == {"batches": 3}
        sender.send(*simple_heap(1, 10).packets())
        next_heap(stream)
    stats = settled(stream, 1)
    stream.stop()
    assert (stats.packets, stats.max_batch, stats.batches) == (1, 1, 4)


def test_a_buffer_that_begins_with_no_packet_is_no_batch():
    _, stats = receive([b"no packet, no packet"])
    assert nonzero(stats) == {}


def test_worker_blocked_counts_each_heap_that_finds_the_ring_full():
    stream = new_stream(heaps=2)
    stream.add_buffer_reader(b"".join(simple_heap(i, 4).packets()[0].encode() for i in range(5)))
    # The ring takes two; the worker blocks on the third before the batch is over.
    for blocked in (1, 2, 3):
        wait_for(lambda n=blocked: stream.stats.worker_blocked == n, f"worker_blocked {blocked}")
        assert stream.ringbuffer.size() == 2
        next_heap(stream)
    assert [h.cnt for h in drain(stream)] == [3, 4]
    stream.stop()
    assert nonzero(stream.stats)["worker_blocked"] == 3


def test_statistics_and_stop_do_not_wait_for_a_blocked_worker():
    stream = new_stream(heaps=1)
    stream.add_buffer_reader(b"".join(simple_heap(i, 4).packets()[0].encode() for i in range(9)))
    wait_for(lambda: stream.stats.worker_blocked, "a blocked worker")
    assert stream.stats.heaps <= 9
    stream.stop()
    assert [h.cnt for h in drain(stream)] == [0]


def test_statistics_are_a_snapshot():
    stream, sender = udp_stream()
    before = stream.stats
    with sender:
        sender.send(*simple_heap(1, 10).packets())
        next_heap(stream)
    settled(stream, 1)
    stream.stop()
    assert (before.packets, stream.stats.packets) == (0, 1)


def test_every_snapshot_of_a_stream_at_work_is_consistent():
    stream, sender = udp_stream(heaps=4, substreams=1, max_heaps=4)
    n, per_heap = 3000, 4
    packets = [[p.encode() for p in simple_heap(cnt, 80).packets(20)] for cnt in range(64)]
    received = [0]

    def send() -> None:
        for i in range(n):
            sender.send(*packets[i % 64])
            # Few enough under way to fit the kernel's buffer, enough to fill the ring.
            wait_for(lambda i=i: received[0] > i - 16, "the receiver keeping up")

    def receive_all() -> None:
        for _ in range(n):
            next_heap(stream)
            received[0] += 1

    threads = [in_thread(send), in_thread(receive_all)]
    before = [0] * len(CORE)
    n_snapshots = n_different = 0
    while received[0] < n:
        stats = stream.stats
        now = [stats[name] for name in CORE]
        assert all(a <= b for a, b in zip(before, now, strict=True)), (before, now)
        assert per_heap * stats.heaps <= stats.packets
        assert stats.batches <= stats.packets <= stats.batches * stats.max_batch
        assert stats.single_packet_heaps == stats.incomplete_heaps_evicted == 0
        assert stats.max_batch <= 64
        n_snapshots += 1
        n_different += now != before
        before = now
        if not any(thread.is_alive() for thread in threads):
            break
    for thread in threads:
        thread.join(60)
    assert n_snapshots > 100
    assert n_different > 10
    stats = settled(stream, per_heap * n)
    stream.stop()
    assert (stats.heaps, stats.packets) == (n, per_heap * n)


# Faces


def test_names_and_indices_of_the_core_statistics(stats):
    assert list(stats)[: len(CORE)] == CORE
    for index, name in enumerate(CORE):
        assert stats[index] == stats[name] == getattr(stats, name)


def test_constants_for_the_indices():
    indices = recv.stream_stat_indices
    assert {name: getattr(indices, name.upper()) for name in CORE} == {
        name: index for index, name in enumerate(CORE)
    }


def test_mapping_face(stats):
    assert len(stats) == len(list(stats)) == len(stats.config)
    assert list(stats.keys()) == list(stats)
    assert list(stats.values()) == [stats[name] for name in stats]
    assert list(stats.items()) == list(zip(stats.keys(), stats.values(), strict=True))
    assert dict(stats)["packets"] == 5
    assert "packets" in stats
    assert "nope" not in stats
    assert stats.get("packets") == 5
    assert stats.get("nope") is None
    assert stats.get("nope", 7) == 7


def test_unknown_statistics(stats):
    with pytest.raises(KeyError):
        stats["nope"]
    with pytest.raises(IndexError):
        stats[len(stats)]
    with pytest.raises(TypeError):
        stats[-1]
    with pytest.raises(TypeError):
        stats[1.5]
    with pytest.raises(AttributeError):
        _ = stats.nope
    with pytest.raises(KeyError):
        stats["nope"] = 1
    with pytest.raises(IndexError):
        stats[len(stats)] = 1


def test_statistics_can_be_set_on_the_snapshot(stats):
    stats.heaps = 17
    stats["packets"] = 18
    stats[recv.stream_stat_indices.BATCHES] = 19
    assert (stats[0], stats.packets, stats["batches"]) == (17, 18, 19)


@pytest.mark.parametrize("value", [-1, "many", 1.5, 2**64])
def test_statistics_cannot_be_set_to_nonsense(stats, value):
    with pytest.raises(TypeError):
        stats[0] = value


@pytest.mark.parametrize("key", [0, None])
def test_names_are_strings(stats, key):
    with pytest.raises(TypeError):
        stats.get(key)
    with pytest.raises(TypeError):
        _ = key in stats


def test_faces_are_iterators(stats):
    for face in (stats.keys(), stats.values(), stats.items(), iter(stats)):
        assert iter(face) is face
        next(face)


# spead2 can neither copy nor pickle them.
@pytest.mark.ours
@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda stats: pickle.loads(pickle.dumps(stats))]
)
def test_copies_are_apart(stats, duplicate):
    other = duplicate(stats)
    assert list(other.items()) == list(stats.items())
    other.heaps = 77
    assert stats.heaps == 2
    assert (stats + other).heaps == 79


def test_sum_adds_counters_and_takes_the_larger_maximum(stats):
    _, other = receive(simple_heap(1, 100).packets(50))
    both = stats + other
    assert (both.packets, both.heaps, both.batches) == (7, 3, 2)
    assert both.max_batch == 5
    assert stats.packets == 5


def test_in_place_sum(stats):
    _, other = receive(simple_heap(1, 100).packets(50))
    same = stats
    same += other
    assert same is stats
    assert stats.packets == 7


def test_sum_with_something_else_is_an_error(stats):
    with pytest.raises(TypeError):
        stats + 1
    other = new_stream()
    config = recv.StreamConfig()
    config.add_stat("mine")
    other = recv.Stream(sp.ThreadPool(), config)
    with pytest.raises(ValueError, match="config"):
        stats + other.stats


def test_statistics_have_no_public_constructor():
    with pytest.raises(TypeError):
        recv.StreamStats()


def test_configuration_of_the_core_statistics(stats):
    modes = {c.name: c.mode for c in stats.config[: len(CORE)]}
    assert modes == {name: MAXIMUM if name == "max_batch" else COUNTER for name in CORE}


# Custom statistics


def test_custom_statistics_follow_the_core_ones():
    config = recv.StreamConfig()
    assert config.next_stat_index() == len(CORE)
    assert config.add_stat("mine") == len(CORE)
    assert config.add_stat("peak", MAXIMUM) == len(CORE) + 1
    assert config.next_stat_index() == len(CORE) + 2
    assert config.get_stat_index("mine") == len(CORE)
    assert config.get_stat_index("heaps") == 0
    assert [(c.name, c.mode) for c in config.stats[len(CORE) : len(CORE) + 2]] == [
        ("mine", COUNTER),
        ("peak", MAXIMUM),
    ]
    stats = recv.Stream(sp.ThreadPool(), config).stats
    assert list(stats)[len(CORE) : len(CORE) + 2] == ["mine", "peak"]
    assert (stats["mine"], stats["peak"]) == (0, 0)


def test_custom_statistics_are_added_by_their_mode():
    config = recv.StreamConfig()
    config.add_stat("mine")
    config.add_stat("peak", mode=MAXIMUM)
    a = recv.Stream(sp.ThreadPool(), config).stats
    b = recv.Stream(sp.ThreadPool(), config).stats
    a["mine"], a["peak"], b["mine"], b["peak"] = 3, 3, 4, 4
    both = a + b
    assert (both["mine"], both["peak"]) == (7, 4)


def test_name_of_a_statistic_is_taken_once():
    config = recv.StreamConfig()
    config.add_stat("mine")
    for name in ("mine", "heaps"):
        with pytest.raises(ValueError, match=name):
            config.add_stat(name)


def test_index_of_an_unknown_statistic():
    with pytest.raises(IndexError):
        recv.StreamConfig().get_stat_index("nope")


def test_statistic_configuration_object():
    config = recv.StreamStatConfig("a")
    assert (config.name, config.mode) == ("a", COUNTER)
    assert config.combine(3, 4) == 7
    assert recv.StreamStatConfig("a", MAXIMUM).combine(3, 4) == 4
    assert recv.StreamStatConfig("a", mode=COUNTER) == config
    assert recv.StreamStatConfig("a", MAXIMUM) != config
    assert recv.StreamStatConfig("b") != config
    with pytest.raises(TypeError):
        recv.StreamStatConfig(3)


# Ours


@pytest.mark.ours
def test_every_further_statistic_has_our_prefix_and_follows_the_custom_ones():
    config = recv.StreamConfig()
    config.add_stat("mine")
    names = list(recv.Stream(sp.ThreadPool(), config).stats)
    ours = names[len(CORE) + 1 :]
    assert ours
    assert all(name.startswith("xdpspead.") for name in ours)
    assert names.index("mine") == len(CORE)


@pytest.mark.ours
def test_our_prefix_cannot_be_taken_by_a_custom_statistic():
    assert OURS
    with pytest.raises(ValueError, match=r"xdpspead\."):
        recv.StreamConfig().add_stat("xdpspead.bad_magic")
