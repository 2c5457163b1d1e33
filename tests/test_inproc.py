"""Streams that read queues within the process: order, sharing, ends, refusals, statistics."""

from __future__ import annotations

import os
import threading
import time

import numpy as np
import pytest
from target import (
    DEADLINE,
    descriptors,
    drain,
    in_thread,
    new_stream,
    next_heap,
    payload,
    receive,
    recv,
    refusals,
    sp,
    take,
    wait_for,
)
from wire import STOP, Packet, join, pattern, simple_heap, stop_packet


def one_packet(cnt: int, length: int = 10) -> bytes:
    return simple_heap(cnt, length).packets(length)[0].encode()


def queue_of(*packets: bytes, stop: bool = False):
    queue = sp.InprocQueue()
    for packet in packets:
        queue.add_packet(packet)
    if stop:
        queue.stop()
    return queue


def receive_queued(packets, **config):
    """Return the heaps and the final statistics of a stream that gets these packets."""
    stream = new_stream(**config)
    stream.add_inproc_reader(queue_of(*packets, stop=True))
    heaps = drain(stream)
    stream.stop()
    return heaps, stream.stats


@pytest.fixture
def stream():
    stream = new_stream()
    yield stream
    stream.stop()


# What goes in


@pytest.mark.parametrize(
    "buffer",
    [
        bytes,
        bytearray,
        memoryview,
        lambda data: np.frombuffer(data, np.uint8),
        lambda data: np.frombuffer(data, np.uint16),
        lambda data: np.frombuffer(data, np.uint8).reshape(2, -1),
    ],
    ids=["bytes", "bytearray", "memoryview", "uint8", "uint16", "two dimensions"],
)
def test_packet_is_any_contiguous_buffer(stream, buffer):
    stream.add_inproc_reader(queue_of(buffer(one_packet(1, 12)), stop=True))
    assert payload(next_heap(stream)) == pattern(1, 12)


def test_packet_is_copied(stream):
    packet = bytearray(one_packet(1))
    queue = queue_of(packet)
    packet[:] = bytes(len(packet))
    stream.add_inproc_reader(queue)
    assert payload(next_heap(stream)) == pattern(1, 10)


@pytest.mark.parametrize("bad", [None, 1, "text", [1, 2, 3]])
def test_packet_must_be_a_buffer(bad):
    with pytest.raises(TypeError):
        sp.InprocQueue().add_packet(bad)


def test_packet_must_be_contiguous():
    data = np.frombuffer(one_packet(1) * 2, np.uint8)
    queue = sp.InprocQueue()
    with pytest.raises((ValueError, BufferError)):
        queue.add_packet(data[::2])
    with pytest.raises((ValueError, BufferError)):
        queue.add_packet(memoryview(data)[::-1])


@pytest.mark.ours
def test_what_is_not_contiguous_is_both_errors():
    # spead2 raises the one or the other, depending on who made the buffer.
    for error in (ValueError, BufferError):
        with pytest.raises(error, match="contiguous"):
            sp.InprocQueue().add_packet(memoryview(b"abcd")[::2])


def test_big_packets_arrive_whole():
    size = 3_000_000
    heaps, stats = receive_queued([one_packet(cnt, size) for cnt in range(3)])
    assert [payload(heap) for heap in heaps] == [pattern(cnt, size) for cnt in range(3)]
    assert stats.packets == stats.single_packet_heaps == 3


@pytest.mark.parametrize(
    # None ends spead2 with a segmentation fault.
    "bad",
    [pytest.param(None, marks=pytest.mark.ours), 5, b"abc"],
)
def test_argument_must_be_a_queue(stream, bad):
    with pytest.raises(TypeError):
        stream.add_inproc_reader(bad)


# What comes out


def test_packets_keep_their_order(stream):
    queue = queue_of(*(one_packet(cnt) for cnt in range(20)))
    stream.add_inproc_reader(queue)
    assert [heap.cnt for heap in take(stream, 20)] == list(range(20))
    for cnt in range(20, 30):
        queue.add_packet(one_packet(cnt))
        assert next_heap(stream).cnt == cnt


def test_heap_is_put_together_from_its_packets(stream):
    packets = [packet.encode() for packet in simple_heap(5, 1000).packets(300)]
    stream.add_inproc_reader(queue_of(*packets, stop=True))
    (heap,) = drain(stream)
    assert (heap.cnt, payload(heap)) == (5, pattern(5, 1000))


def test_each_packet_is_a_batch():
    packets = [p.encode() for cnt in range(4) for p in simple_heap(cnt, 100).packets(30)]
    packets.append(b"this is no packet")
    heaps, stats = receive_queued(packets)
    assert len(heaps) == stats.heaps == 4
    assert (stats.packets, stats.batches, stats.max_batch) == (16, 17, 1)


def test_statistics_are_those_of_the_same_packets_in_memory():
    packets = [
        packet.encode()
        for cnt in range(12)
        for packet in simple_heap(cnt, 90).packets(30)[: 3 - (cnt % 4 == 1)]
    ]
    heaps, stats = receive_queued(packets)
    other_heaps, other = receive([join(packets)])
    assert [heap.cnt for heap in heaps] == [heap.cnt for heap in other_heaps]
    # The search distance depends on where a stream's table happens to lie.
    same = [name for name in stats if name not in ("batches", "max_batch", "search_dist")]
    assert {name: stats[name] for name in same} == {name: other[name] for name in same}
    # Heaps 1 and 5 in time, heap 9 at the end.
    assert (stats.incomplete_heaps_evicted, stats.incomplete_heaps_flushed) == (2, 1)


def test_full_ring_loses_nothing():
    stream = new_stream(heaps=2)
    stream.add_inproc_reader(queue_of(*(one_packet(cnt) for cnt in range(200)), stop=True))
    wait_for(lambda: stream.stats.worker_blocked, "the worker blocks")
    assert [heap.cnt for heap in drain(stream)] == list(range(200))


def test_empty_queue_that_is_stopped_ends_the_stream(stream):
    stream.add_inproc_reader(queue_of(stop=True))
    assert drain(stream) == []


@pytest.mark.ours
def test_empty_and_broken_packets_are_counted():
    # spead2 makes a heap of whatever its memory holds when it gets an empty packet.
    heaps, stats = receive_queued([b"", one_packet(1), one_packet(2)[:-1], one_packet(3) + b"!"])
    assert [heap.cnt for heap in heaps] == [1]
    assert stats.packets == 1
    assert refusals(stats) == {"empty_datagram": 1, "short_packet": 1, "long_packet": 1}


# Ends


def test_stopped_queue_takes_no_packet():
    queue = queue_of(stop=True)
    queue.stop()
    with pytest.raises(sp.Stopped):
        queue.add_packet(one_packet(1))


def test_queue_can_be_stopped_from_any_thread_while_streams_wait():
    pool = sp.ThreadPool(2)
    for _ in range(20):
        queue = sp.InprocQueue()
        streams = [new_stream(pool=pool) for _ in range(4)]
        for stream in streams:
            stream.add_inproc_reader(queue)
        stoppers = [in_thread(queue.stop) for _ in range(2)]
        assert [drain(stream) for stream in streams] == [[]] * 4
        for stopper in stoppers:
            stopper.join(DEADLINE)


def test_end_comes_after_the_heaps_also_when_the_ring_was_full_then():
    stream = new_stream(heaps=1)
    queue = queue_of(*(one_packet(cnt) for cnt in range(5)))
    stream.add_inproc_reader(queue)
    wait_for(lambda: stream.stats.worker_blocked, "the worker blocks")
    queue.stop()
    assert [heap.cnt for heap in drain(stream)] == list(range(5))


def test_stop_item_leaves_the_rest_to_the_next_stream():
    queue = queue_of(one_packet(1), stop_packet().encode(), one_packet(2), stop=True)
    first, second = new_stream(), new_stream()
    first.add_inproc_reader(queue)
    assert [heap.cnt for heap in drain(first)] == [1]
    second.add_inproc_reader(queue)
    assert [heap.cnt for heap in drain(second)] == [2]


# spead2 takes and loses a few packets more, or all of them if the queue has been stopped.
@pytest.mark.ours
@pytest.mark.parametrize("queue_stops_first", [False, True])
def test_blocked_stream_that_is_stopped_leaves_the_rest_to_the_next_stream(queue_stops_first):
    queue = queue_of(*(one_packet(cnt) for cnt in range(100)), stop=queue_stops_first)
    first, second = new_stream(heaps=1), new_stream()
    first.add_inproc_reader(queue)
    wait_for(lambda: first.stats.worker_blocked, "the worker blocks")
    first.stop()
    assert [heap.cnt for heap in drain(first)] == [0]
    assert first.stats.packets == first.stats.batches == 2  # the ring was full for the second
    queue.stop()
    second.add_inproc_reader(queue)
    assert [heap.cnt for heap in drain(second)] == list(range(2, 100))


@pytest.mark.ours
def test_heap_for_which_the_ring_was_full_is_counted_when_the_stream_is_stopped():
    stream = new_stream(heaps=1)
    stream.add_inproc_reader(queue_of(*(one_packet(cnt) for cnt in range(9))))
    wait_for(lambda: stream.stats.worker_blocked, "the worker blocks")
    stream.stop()
    assert stream.stats["xdpspead.heaps_dropped_stop"] == 1


def test_stream_that_is_stopped_leaves_the_queue_open(stream):
    queue = sp.InprocQueue()
    other = new_stream()
    other.add_inproc_reader(queue)
    other.stop()
    queue.add_packet(one_packet(1))
    stream.add_inproc_reader(queue)
    assert next_heap(stream).cnt == 1


def test_reader_added_to_a_stopped_stream_takes_nothing(stream):
    queue = queue_of(one_packet(1), stop=True)
    other = new_stream()
    other.stop()
    other.add_inproc_reader(queue)
    assert drain(other) == []
    stream.add_inproc_reader(queue)
    assert [heap.cnt for heap in drain(stream)] == [1]


def test_end_of_a_queue_ends_a_stream_that_reads_another_too(stream):
    first, second = queue_of(one_packet(1)), queue_of(one_packet(2))
    stream.add_inproc_reader(first)
    stream.add_inproc_reader(second)
    assert {heap.cnt for heap in take(stream, 2)} == {1, 2}
    first.stop()
    assert drain(stream) == []
    second.add_packet(one_packet(3))


def test_explicit_start_leaves_the_queue_alone_until_then():
    stream = new_stream(explicit_start=True)
    queue = queue_of(one_packet(1), stop=True)
    stream.add_inproc_reader(queue)
    time.sleep(0.05)  # there is nothing to wait for
    assert stream.stats.packets == 0
    stream.start()
    assert [heap.cnt for heap in drain(stream)] == [1]


def test_queue_may_be_dropped_while_a_stream_reads_it(stream):
    queue = queue_of(one_packet(1))
    stream.add_inproc_reader(queue)
    del queue
    assert next_heap(stream).cnt == 1


# Several at once


@pytest.mark.parametrize("ring", [1, 64])
def test_several_threads_feed_one_stream_and_every_heap_is_complete(ring):
    producers, each = 4, 300
    queue = sp.InprocQueue()

    def produce(first: int) -> None:
        for cnt in range(first, producers * each, producers):
            for packet in simple_heap(cnt, 100).packets(40):
                queue.add_packet(packet.encode())

    # A window for each thread: one that is held up in the middle of a heap does not lose it.
    stream = new_stream(heaps=ring, substreams=producers)
    stream.add_inproc_reader(queue)
    threads = [threading.Thread(target=produce, args=(i,), daemon=True) for i in range(producers)]
    for thread in threads:
        thread.start()

    def finish() -> None:
        for thread in threads:
            thread.join()
        queue.stop()

    in_thread(finish)
    got: dict[int, list[int]] = {i: [] for i in range(producers)}
    for heap in drain(stream):
        assert payload(heap) == pattern(heap.cnt, 100)
        got[heap.cnt % producers].append(heap.cnt)
    for i, cnts in got.items():
        assert cnts == list(range(i, producers * each, producers))
    stream.stop()
    assert stream.stats.packets == stream.stats.batches == producers * each * 3


@pytest.mark.parametrize("threads", [1, 3])
def test_several_streams_share_the_packets_and_each_comes_out_once(threads):
    pool = sp.ThreadPool(threads)
    queue = sp.InprocQueue()
    # A pool of one thread must not be blocked by one of its streams: room for all in each.
    streams = [new_stream(pool=pool, heaps=2000) for _ in range(3)]
    for stream in streams:
        stream.add_inproc_reader(queue)
    for cnt in range(2000):
        queue.add_packet(one_packet(cnt))
    queue.stop()
    got = [[heap.cnt for heap in drain(stream)] for stream in streams]
    for cnts in got:
        assert cnts == sorted(cnts)
    assert sorted(sum(got, [])) == list(range(2000))


def test_queue_read_twice_by_one_stream_gives_each_packet_once(stream):
    queue = sp.InprocQueue()
    stream.add_inproc_reader(queue)
    stream.add_inproc_reader(queue)
    for cnt in range(100):
        queue.add_packet(one_packet(cnt))
    queue.stop()
    assert [heap.cnt for heap in drain(stream)] == list(range(100))


def test_blocked_stream_keeps_no_packet_from_another():
    pool = sp.ThreadPool(2)
    queue = sp.InprocQueue()
    unread, stream = new_stream(pool=pool, heaps=1), new_stream(pool=pool)
    unread.add_inproc_reader(queue)
    for cnt in range(50):
        queue.add_packet(one_packet(cnt))
    wait_for(lambda: unread.stats.worker_blocked, "the worker blocks")
    stream.add_inproc_reader(queue)
    assert [heap.cnt for heap in take(stream, 48)] == list(range(2, 50))
    queue.stop()
    assert drain(stream) == []
    assert [heap.cnt for heap in drain(unread)] == [0, 1]


@pytest.mark.ours
def test_stream_that_nobody_reads_does_not_hold_up_one_on_the_same_thread():
    pool = sp.ThreadPool(1)
    full, queue = queue_of(*(one_packet(cnt) for cnt in range(9))), sp.InprocQueue()
    unread, stream = new_stream(pool=pool, heaps=1), new_stream(pool=pool)
    unread.add_inproc_reader(full)
    wait_for(lambda: unread.stats.worker_blocked, "the worker blocks")
    stream.add_inproc_reader(queue)
    queue.add_packet(one_packet(1))
    assert next_heap(stream).cnt == 1


def test_stop_item_among_several_streams_ends_one_of_them():
    queue = sp.InprocQueue()
    streams = [new_stream() for _ in range(2)]
    for stream in streams:
        stream.add_inproc_reader(queue)
    queue.add_packet(Packet(cnt=1, heap_length=0, items=(STOP,)).encode())
    ended = []

    def one_has_ended() -> bool:
        for stream in streams:
            try:
                stream.get_nowait()
            except sp.Stopped:
                ended.append(stream)
            except sp.Empty:
                pass
        return bool(ended)

    wait_for(one_has_ended, "one stream ends")
    (left,) = [stream for stream in streams if stream is not ended[0]]
    queue.add_packet(one_packet(2))
    assert next_heap(left).cnt == 2
    queue.stop()
    assert drain(left) == []


@pytest.mark.ours
def test_queue_shows_in_the_list_of_readers(stream):
    stream.add_inproc_reader(sp.InprocQueue())
    assert stream.readers == [recv.ReaderInfo("inproc")]


@pytest.mark.ours
def test_queue_belongs_to_the_process_that_made_it(stream):
    queue = queue_of(one_packet(1))
    child = os.fork()
    if child == 0:
        try:
            queue.add_packet(one_packet(2))
        except RuntimeError as error:
            os._exit(0 if "fork" in str(error) else 2)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    queue.add_packet(one_packet(3))
    stream.add_inproc_reader(queue)
    assert [heap.cnt for heap in take(stream, 2)] == [1, 3]


@pytest.mark.ours
def test_queues_and_readers_leave_no_descriptor_and_no_packet_behind():
    def once() -> None:
        stream = new_stream(heaps=1)
        queue = queue_of(*[one_packet(1, 100_000)] * 20)
        stream.add_inproc_reader(queue)
        stream.add_inproc_reader(queue)
        wait_for(lambda: stream.stats.worker_blocked, "the worker blocks")
        stream.stop()

    def resident() -> int:
        with open("/proc/self/maps") as file:
            if "libasan" in file.read():  # which keeps what is freed for a while
                return 0
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    for _ in range(5):
        once()
    before, memory = descriptors(), resident()
    for _ in range(100):
        once()
    assert descriptors() == before
    assert resident() < memory + 50_000_000, "200 MB went through"
