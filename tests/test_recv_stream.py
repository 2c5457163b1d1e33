"""The life of a stream: configuration, get, iteration, stop, back-pressure, payload lifetime."""

from __future__ import annotations

import copy
import gc
import pickle
import select
import signal
import socket
import threading
import time

import numpy as np
import pytest
from child import run_python, run_signalled
from target import (
    DEADLINE,
    LOGGER,
    OURS,
    PACKAGE,
    Sender,
    descriptors,
    drain,
    free_port,
    in_thread,
    new_stream,
    next_heap,
    payload,
    receive,
    recv,
    settled,
    show,
    sp,
    take,
    udp_stream,
    wait_for,
)
from wire import Packet, addr, imm, join, pattern, simple_heap, stop_packet


def one_packet(cnt: int, length: int = 10) -> bytes:
    return simple_heap(cnt, length).packets(length)[0].encode()


def is_bound(port: int) -> bool:
    """Return whether somebody holds this UDP port of 127.0.0.1."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


@pytest.fixture
def stream():
    stream = new_stream()
    yield stream
    stream.stop()


# Configuration


def test_defaults_of_the_stream_configuration():
    config = recv.StreamConfig()
    assert config.max_heaps == recv.StreamConfig.DEFAULT_MAX_HEAPS == 4
    assert config.substreams == 1
    assert config.bug_compat == 0
    assert config.memcpy == sp.MEMCPY_STD
    assert type(config.memory_allocator) is sp.MemoryAllocator
    assert config.stop_on_stop_item is True
    assert config.allow_unsized_heaps is True
    assert config.allow_out_of_order is False
    assert config.stream_id == 0
    assert config.explicit_start is False


def test_defaults_of_the_ring_configuration():
    config = recv.RingStreamConfig()
    assert config.heaps == recv.RingStreamConfig.DEFAULT_HEAPS == 4
    assert config.room_bytes == recv.RingStreamConfig.DEFAULT_ROOM_BYTES == 2 << 20
    assert config.contiguous_only is True
    assert config.incomplete_keep_payload_ranges is False


STREAM_OPTIONS = {
    "max_heaps": 7,
    "substreams": 3,
    "bug_compat": 5,
    "memcpy": sp.MEMCPY_NONTEMPORAL,
    "memory_allocator": sp.MmapAllocator(),
    "stop_on_stop_item": False,
    "allow_unsized_heaps": False,
    "allow_out_of_order": True,
    "stream_id": 2**63,
    "explicit_start": True,
}
RING_OPTIONS = {"heaps": 9, "contiguous_only": False, "incomplete_keep_payload_ranges": True}


@pytest.mark.parametrize(
    ("cls", "options"), [(recv.StreamConfig, STREAM_OPTIONS), (recv.RingStreamConfig, RING_OPTIONS)]
)
def test_options_are_keywords_and_properties(cls, options):
    by_keyword = cls(**options)
    by_property = cls()
    for name, value in options.items():
        setattr(by_property, name, value)
    for name, value in options.items():
        assert getattr(by_keyword, name) == getattr(by_property, name) == value


def test_stream_keeps_a_copy_of_its_configuration():
    config, ring = recv.StreamConfig(max_heaps=3), recv.RingStreamConfig(heaps=5)
    stream = recv.Stream(sp.ThreadPool(), config, ring)
    config.max_heaps = ring.heaps = 9
    stream.config.max_heaps = stream.ring_config.heaps = 11
    assert (stream.config.max_heaps, stream.ring_config.heaps) == (3, 5)
    with pytest.raises(AttributeError):
        stream.config = config
    with pytest.raises(AttributeError):
        stream.ring_config = ring


def test_configuration_gives_back_the_very_allocator():
    pool = sp.MemoryPool(1, 2, 3, 0)
    stream = new_stream(memory_allocator=pool)
    assert stream.config.memory_allocator is pool


def test_stream_takes_its_arguments_by_keyword():
    stream = recv.Stream(
        thread_pool=sp.ThreadPool(),
        config=recv.StreamConfig(max_heaps=2),
        ring_config=recv.RingStreamConfig(heaps=3),
    )
    assert (stream.config.max_heaps, stream.ring_config.heaps) == (2, 3)


@pytest.mark.parametrize(
    ("cls", "options", "error"),
    [
        (recv.StreamConfig, {"max_heaps": 0}, ValueError),
        (recv.StreamConfig, {"max_heaps": -1}, TypeError),
        (recv.StreamConfig, {"max_heaps": "a"}, TypeError),
        (recv.StreamConfig, {"max_heaps": 1.5}, TypeError),
        (recv.StreamConfig, {"substreams": 0}, ValueError),
        (recv.StreamConfig, {"substreams": -1}, TypeError),
        (recv.StreamConfig, {"bug_compat": 8}, ValueError),
        (recv.StreamConfig, {"memcpy": 17}, ValueError),
        (recv.StreamConfig, {"memcpy": 1.0}, TypeError),
        (recv.StreamConfig, {"max_heaps": 2**64}, TypeError),
        (recv.StreamConfig, {"stop_on_stop_item": "False"}, TypeError),
        (recv.StreamConfig, {"allow_unsized_heaps": "no"}, TypeError),
        (recv.StreamConfig, {"allow_out_of_order": []}, TypeError),
        (recv.StreamConfig, {"explicit_start": "no"}, TypeError),
        (recv.RingStreamConfig, {"contiguous_only": "no"}, TypeError),
        (recv.RingStreamConfig, {"incomplete_keep_payload_ranges": ""}, TypeError),
        (recv.StreamConfig, {"stream_id": -1}, TypeError),
        (recv.StreamConfig, {"memory_allocator": 3}, TypeError),
        (recv.StreamConfig, {"nope": 1}, TypeError),
        (recv.RingStreamConfig, {"heaps": 0}, ValueError),
        (recv.RingStreamConfig, {"heaps": -1}, TypeError),
        (recv.RingStreamConfig, {"nope": 1}, TypeError),
    ],
)
def test_bad_options_are_refused_at_once(cls, options, error):
    with pytest.raises(error):
        cls(**options)
    (name, value) = next(iter(options.items()))
    if name != "nope":
        config = cls()
        with pytest.raises(error):
            setattr(config, name, value)


@pytest.mark.parametrize(
    "arguments",
    [(), (None,), (3,), (sp.ThreadPool(), 3), (sp.ThreadPool(), recv.StreamConfig(), 3)],
    ids=repr,
)
def test_stream_refuses_wrong_arguments(arguments):
    with pytest.raises(TypeError):
        recv.Stream(*arguments)


@pytest.mark.parametrize("value", [1, 0, None, 1.0, np.bool_(True)])
def test_flags_may_be_anything_that_is_true_or_false_by_itself(value):
    config = recv.StreamConfig(stop_on_stop_item=value)
    assert config.stop_on_stop_item is bool(value)


@pytest.mark.parametrize("cls", [recv.StreamConfig, recv.RingStreamConfig])
def test_misspelt_options_are_refused(cls):
    with pytest.raises(AttributeError):
        cls().max_heap = 3


# spead2 can neither copy nor pickle them.
@pytest.mark.ours
@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda config: pickle.loads(pickle.dumps(config))]
)
def test_copies_of_a_configuration_are_apart(duplicate):
    config = recv.StreamConfig(max_heaps=7)
    config.add_stat("mine")
    other = duplicate(config)
    other.max_heaps = 8
    other.add_stat("more")
    assert (config.max_heaps, [s.name for s in config.stats][9:]) == (7, ["mine"])
    assert (other.max_heaps, [s.name for s in other.stats][9:]) == (8, ["mine", "more"])


def test_configurations_take_no_positional_arguments():
    for cls in (recv.StreamConfig, recv.RingStreamConfig):
        with pytest.raises(TypeError):
            cls(4)


def test_reader_constants():
    assert recv.Stream.DEFAULT_UDP_MAX_SIZE == 9200
    assert recv.Stream.DEFAULT_UDP_BUFFER_SIZE == 8 * 1024 * 1024


@pytest.mark.parametrize("threads", [0, -1])
def test_thread_pool_needs_a_thread(threads):
    with pytest.raises(ValueError, match="thread"):
        sp.ThreadPool(threads)


# get, get_nowait, iteration


def test_exceptions_are_distinct_and_plain():
    for cls in (sp.Stopped, sp.Empty, sp.Full):
        assert cls.__mro__[1] is Exception


def test_get_nowait_tells_empty_from_stopped(stream):
    with pytest.raises(sp.Empty):
        stream.get_nowait()
    stream.stop()
    with pytest.raises(sp.Stopped):
        stream.get_nowait()


def test_heaps_in_the_ring_are_returned_before_stopped(stream):
    stream.add_buffer_reader(one_packet(1) + one_packet(2))
    wait_for(lambda: stream.ringbuffer.size() == 2, "two heaps in the ring")
    stream.stop()
    assert stream.get().cnt == 1
    assert stream.get_nowait().cnt == 2
    for get in (stream.get, stream.get_nowait):
        with pytest.raises(sp.Stopped):
            get()


def test_get_waits_for_a_heap():
    stream, sender = udp_stream()
    got = []
    thread = in_thread(lambda: got.append(stream.get().cnt))
    with sender:
        sender.send(one_packet(7))
        thread.join(DEADLINE)
    stream.stop()
    assert got == [7]


def test_stop_wakes_every_get():
    stream, sender = udp_stream()
    sender.socket.close()
    stopped = []
    entered = threading.Barrier(4)

    def wait():
        entered.wait(DEADLINE)
        try:
            stream.get()
        except sp.Stopped:
            stopped.append(True)

    threads = [in_thread(wait) for _ in range(3)]
    entered.wait(DEADLINE)
    time.sleep(0.05)  # no promise hangs on it: it makes it likely that all three wait
    stream.stop()
    for thread in threads:
        thread.join(DEADLINE)
    assert stopped == [True] * 3


def test_iteration_ends_with_the_stream(stream):
    stream.add_buffer_reader(join(p for c in range(5) for p in simple_heap(c, 30).packets(10)))
    assert [heap.cnt for heap in stream] == [0, 1, 2, 3, 4]
    assert list(stream) == []


def test_stream_is_its_own_iterator(stream):
    assert iter(stream) is stream
    stream.add_buffer_reader(one_packet(1))
    assert next(stream).cnt == 1
    with pytest.raises(StopIteration):
        next(stream)


def test_several_threads_share_a_stream_without_losing_or_doubling_a_heap():
    stream = new_stream(heaps=2)
    got: list[list[int]] = [[], [], []]
    threads = [in_thread(lambda mine=mine: mine.extend(h.cnt for h in stream)) for mine in got]
    stream.add_buffer_reader(b"".join(one_packet(i) for i in range(500)))
    for thread in threads:
        thread.join(DEADLINE)
    assert sorted(sum(got, [])) == list(range(500))
    assert all(mine == sorted(mine) for mine in got)


# fd and ringbuffer


def test_fd_is_readable_while_heaps_wait_and_after_the_end(stream):
    def readable() -> bool:
        return bool(select.select([stream.fd], [], [], 0)[0])

    assert not readable()
    stream.add_buffer_reader(one_packet(1) + one_packet(2))
    wait_for(lambda: stream.ringbuffer.size() == 2, "two heaps in the ring")
    assert readable()
    stream.get()
    assert readable()
    stream.get()
    wait_for(readable, "a readable descriptor at the end")
    with pytest.raises(sp.Stopped):
        stream.get()
    assert readable()


def test_fd_is_not_readable_once_an_open_stream_is_drained():
    stream, sender = udp_stream()
    with sender:
        for cnt in range(3):
            sender.send(one_packet(cnt))
            assert select.select([stream.fd], [], [], DEADLINE)[0]
            assert stream.get().cnt == cnt
            assert not select.select([stream.fd], [], [], 0)[0]
    stream.stop()


def test_fd_is_one_number_for_life(stream):
    fd = stream.fd
    stream.add_buffer_reader(one_packet(1))
    drain(stream)
    assert stream.fd == fd


def test_ringbuffer_shows_capacity_and_fill():
    stream = new_stream(heaps=3)
    assert (stream.ringbuffer.capacity(), stream.ringbuffer.size()) == (3, 0)
    stream.add_buffer_reader(b"".join(one_packet(i) for i in range(5)))
    wait_for(lambda: stream.stats.worker_blocked, "a full ring")
    assert stream.ringbuffer.size() == 3
    stream.stop()


@pytest.mark.parametrize(
    ("options", "room_bytes", "fit"),
    [
        ({}, 2 << 20, 256),
        ({"heaps": 4}, 0, 4),
        ({"heaps": 300}, 0, 300),
        ({"heaps": 4, "room_bytes": 1 << 20}, 1 << 20, 256),
        ({"room_bytes": 0}, 0, 4),
        ({"heaps": 300, "room_bytes": 1 << 20}, 1 << 20, 300),
    ],
)
def test_small_heaps_have_more_room(options, room_bytes, fit):
    ring = recv.RingStreamConfig(**options)
    assert ring.room_bytes == room_bytes
    stream = recv.Stream(sp.ThreadPool(), ring_config=ring)
    stream.add_buffer_reader(b"".join(one_packet(i) for i in range(400)))
    wait_for(lambda: stream.stats.worker_blocked, "a full ring")
    assert stream.ringbuffer.size() == fit
    assert [heap.cnt for heap in stream] == list(range(400))


def test_large_heaps_have_room_for_four():
    stream = recv.Stream(sp.ThreadPool())
    stream.add_buffer_reader(b"".join(one_packet(i, 2 << 20) for i in range(10)))
    wait_for(lambda: stream.stats.worker_blocked, "a full ring")
    assert stream.ringbuffer.size() == stream.ringbuffer.capacity() == 4
    assert [heap.cnt for heap in stream] == list(range(10))


def test_room_goes_where_heaps_are_set_later():
    ring = recv.RingStreamConfig()
    ring.heaps = 9
    assert ring.room_bytes == 0
    ring.room_bytes = 5
    ring.heaps = 8
    assert ring.room_bytes == 5


# start and stop


def test_stop_twice_is_fine(stream):
    stream.stop()
    stream.stop()


def test_stop_returns_at_once_while_the_ring_is_full():
    stream = new_stream(heaps=1)
    stream.add_buffer_reader(b"".join(one_packet(i) for i in range(100)))
    wait_for(lambda: stream.stats.worker_blocked, "a full ring")
    start = time.monotonic()
    stream.stop()
    assert time.monotonic() - start < 2
    assert [h.cnt for h in drain(stream)] == [0]


def test_full_ring_loses_nothing():
    stream = new_stream(heaps=1)
    stream.add_buffer_reader(b"".join(one_packet(i) for i in range(300)))
    wait_for(lambda: stream.stats.worker_blocked, "a full ring")
    assert [h.cnt for h in drain(stream)] == list(range(300))


def test_live_heaps_are_lost_when_the_user_stops():
    stream, sender = udp_stream(ring={"contiguous_only": False})
    with sender:
        sender.send(simple_heap(1, 100).packets(50)[0])
        settled(stream, 1)
    stream.stop()
    assert drain(stream) == []
    assert (stream.stats.heaps, stream.stats.incomplete_heaps_flushed) == (1, 1)


def test_stop_closes_the_sockets():
    stream, port = new_stream(), free_port()
    stream.add_udp_reader(port, buffer_size=0, bind_hostname="127.0.0.1")
    assert is_bound(port)
    stream.stop()
    wait_for(lambda: not is_bound(port), "the port free again")


def test_stop_item_closes_the_sockets_of_every_reader():
    stream = new_stream()
    ports = [free_port(), free_port()]
    for port in ports:
        stream.add_udp_reader(port, buffer_size=0, bind_hostname="127.0.0.1")
    with Sender(ports[0]) as sender:
        sender.send(stop_packet())
    assert drain(stream) == []
    wait_for(lambda: not any(map(is_bound, ports)), "both ports free again")


def test_readers_added_after_the_stop_do_nothing(stream):
    stream.stop()
    port = free_port()
    stream.add_udp_reader(port, buffer_size=0, bind_hostname="127.0.0.1")
    stream.add_buffer_reader(one_packet(1))
    assert not is_bound(port)
    assert drain(stream) == []


def test_explicit_start_holds_every_reader_back():
    stream = new_stream(explicit_start=True)
    port = free_port()
    stream.add_udp_reader(port, buffer_size=0, bind_hostname="127.0.0.1")
    assert not is_bound(port)
    stream.start()
    assert is_bound(port)
    stream.start()
    stream.stop()


def test_explicit_start_holds_a_buffer_back():
    stream = new_stream(explicit_start=True)
    stream.add_buffer_reader(one_packet(1))
    with pytest.raises(sp.Empty):
        stream.get_nowait()
    stream.start()
    assert [h.cnt for h in drain(stream)] == [1]


def test_no_reader_can_join_after_an_explicit_start():
    stream = new_stream(explicit_start=True)
    stream.start()
    with pytest.raises(RuntimeError):
        stream.add_buffer_reader(one_packet(1))
    with pytest.raises(RuntimeError):
        stream.add_udp_reader(free_port(), buffer_size=0)
    stream.stop()


def test_start_is_harmless_without_explicit_start(stream):
    stream.start()
    stream.add_buffer_reader(one_packet(1))
    assert [h.cnt for h in drain(stream)] == [1]
    stream.start()


def test_stream_that_is_dropped_while_it_reads_lets_go_of_its_port():
    stream, port = new_stream(), free_port()
    stream.add_udp_reader(port, buffer_size=0, bind_hostname="127.0.0.1")
    del stream
    gc.collect()
    wait_for(lambda: not is_bound(port), "the port free again")


def test_hundred_streams_come_and_go_without_leaking_descriptors():
    def one_life():
        stream, sender = udp_stream()
        with sender:
            sender.send(one_packet(1))
            next_heap(stream)
        stream.stop()

    one_life()
    gc.collect()
    before = descriptors()
    for _ in range(100):
        one_life()
    gc.collect()
    wait_for(lambda: descriptors() <= before, f"no more than {before} open descriptors")


# Threads


def test_streams_share_a_pool_of_one_thread():
    pool = sp.ThreadPool(1)
    pairs = [udp_stream(pool=pool) for _ in range(4)]
    for cnt, (stream, sender) in enumerate(pairs):
        with sender:
            sender.send(one_packet(cnt))
        assert next_heap(stream).cnt == cnt
    for stream, _ in pairs:
        stream.stop()


def test_blocked_stream_does_not_hold_up_another_one_of_a_larger_pool():
    pool = sp.ThreadPool(2)
    blocked = new_stream(heaps=1, pool=pool)
    blocked.add_buffer_reader(b"".join(one_packet(i) for i in range(9)))
    wait_for(lambda: blocked.stats.worker_blocked, "a blocked stream")
    stream, sender = udp_stream(pool=pool)
    with sender:
        sender.send(one_packet(1))
    assert next_heap(stream).cnt == 1
    stream.stop()
    blocked.stop()


def test_thread_pool_may_be_dropped_before_its_streams():
    pool = sp.ThreadPool()
    stream, sender = udp_stream(pool=pool)
    del pool
    gc.collect()
    with sender:
        sender.send(one_packet(1))
    assert next_heap(stream).cnt == 1
    stream.stop()


def test_thread_pool_stops_after_its_streams():
    pool = sp.ThreadPool(2)
    stream, sender = udp_stream(pool=pool)
    sender.socket.close()
    stream.stop()
    pool.stop()
    pool.stop()


# Payload


def test_payload_outlives_heap_stream_and_pool():
    heaps, _ = receive(simple_heap(1, 100_000).packets(1000))
    array = np.asarray(heaps[0].get_items()[0])
    del heaps
    gc.collect()
    receive(p for c in range(20) for p in simple_heap(c, 100_000).packets(1000))  # reuse memory
    assert array.tobytes() == pattern(1, 100_000)


def test_arrays_view_the_payload_without_a_copy():
    items = (addr(0x1000, 0), addr(0x1001, 40))
    (heap,), _ = receive([Packet(1, pattern(1, 100), 0, 100, items=items)])
    first, second = (np.asarray(item) for item in heap.get_items())
    again = np.asarray(heap.get_items()[0])
    assert np.shares_memory(first, again)
    address = first.__array_interface__["data"][0]
    assert second.__array_interface__["data"][0] == address + 40
    again[0] ^= 0xFF
    assert first[0] == again[0]


def test_payload_is_writable_and_heaps_do_not_share_it():
    heaps, _ = receive(simple_heap(1, 64).packets() * 2)
    first, second = (np.asarray(heap.get_items()[0]) for heap in heaps)
    first[:] = 0
    assert second.tobytes() == pattern(1, 64)


def test_payload_is_aligned_for_vector_loads():
    heaps, _ = receive(p for c in range(9) for p in simple_heap(c, 1000 + c).packets(100))
    for heap in heaps:
        assert np.asarray(heap.get_items()[0]).__array_interface__["data"][0] % 16 == 0


def test_items_outlive_their_heap():
    (heap,), _ = receive([Packet(1, b"abc", 0, 3, items=(addr(0x1000, 0), imm(0x1001, 9)))])
    items = heap.get_items()
    del heap
    gc.collect()
    assert bytes(memoryview(items[0])) == b"abc"
    assert items[1].immediate_value == 9


def test_buffer_is_held_until_the_stream_is_gone():
    data = bytearray(one_packet(1))
    stream = new_stream()
    stream.add_buffer_reader(data)
    heaps = drain(stream)
    del stream
    gc.collect()
    data.extend(b"free again")  # BufferError as long as anybody holds an export
    assert payload(heaps[0]) == pattern(1, 10)


@pytest.mark.parametrize("bad", ["abc", 3, None])
def test_buffer_reader_needs_a_buffer(stream, bad):
    with pytest.raises(TypeError):
        stream.add_buffer_reader(bad)


def test_buffer_reader_needs_a_contiguous_buffer(stream):
    with pytest.raises(ValueError, match="contiguous"):
        stream.add_buffer_reader(np.zeros((4, 4), "u1")[:, ::2])


# Logging


def test_incomplete_heap_that_is_dropped_is_logged(caplog):
    with caplog.at_level("INFO", logger=LOGGER):
        receive([simple_heap(11, 100).packets(50)[0]])
        wait_for(lambda: "incomplete heap" in caplog.text, "a warning on the dropped heap")
    record = next(r for r in caplog.records if "incomplete heap" in r.getMessage())
    assert (record.levelname, record.name) == ("WARNING", LOGGER)


def test_blocked_network_reader_is_logged(caplog):
    with caplog.at_level("WARNING", logger=LOGGER):
        stream, sender = udp_stream(heaps=1)
        with sender:
            sender.send(*(one_packet(i) for i in range(5)))
            wait_for(lambda: stream.stats.worker_blocked, "a full ring")
            wait_for(lambda: "ring" in caplog.text, "a warning on the full ring")
        stream.stop()


# Ctrl-C and exit


@pytest.mark.parametrize("wait", ["stream.get()", "next(stream)", "list(stream)"])
def test_ctrl_c_interrupts_a_blocked_get(wait):
    code = f"""
        import target
        stream, sender = target.udp_stream()
        print("ready", flush=True)
        try:
            {wait}
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        """
    assert run_signalled(code) == "interrupted\n"


def test_signal_handler_runs_during_get_and_get_goes_on():
    code = """
        import signal, target
        stream, sender = target.udp_stream()
        def handler(*args):
            print("handled", flush=True)
            sender.send(target.wire.simple_heap(3, 10).packets()[0])
        signal.signal(signal.SIGUSR1, handler)
        print("ready", flush=True)
        print(stream.get().cnt, flush=True)
        """
    assert run_signalled(code, signal.SIGUSR1) == "handled\n3\n"


@pytest.mark.parametrize(
    "state",
    [
        "",
        "target.next_heap(stream)",
        "heap = target.next_heap(stream)",
        "stream.stop()",
        "import threading; threading.Thread(target=lambda: list(stream), daemon=True).start()",
    ],
)
def test_interpreter_exits_cleanly_with_a_live_stream(state):
    code = f"""
        import target
        stream, sender = target.udp_stream()
        sender.send(target.wire.simple_heap(3, 10).packets()[0])
        {state}
        """
    assert run_python(code, timeout=DEADLINE) == ""


# Ours


@pytest.mark.ours
def test_large_heap_length_has_a_documented_bound():
    assert OURS
    assert PACKAGE == "xdpspead"
    assert 2**30 <= recv.StreamConfig().max_heap_size <= 2**40


@pytest.mark.ours
def test_heap_larger_than_the_bound_is_refused_and_counted():
    packets = [Packet(1, b"abc", 0, 1001), *simple_heap(2, 1000).packets(100)]
    heaps, stats = receive(packets, max_heap_size=1000)
    assert [show(h).cnt for h in heaps] == [2]
    assert stats["xdpspead.too_large"] == 1


@pytest.mark.ours
def test_readers_say_what_they_are():
    stream, sender = udp_stream(explicit_start=False)
    sender.socket.close()
    (reader,) = stream.readers
    assert reader.transport == "udp"
    stream.stop()
    stream = new_stream(explicit_start=True)
    stream.add_buffer_reader(one_packet(1))
    assert stream.readers == []  # it has not begun
    stream.start()
    assert [r.transport for r in stream.readers] == ["buffer"]
    stream.stop()


@pytest.mark.ours
def test_heaps_lost_by_a_stop_are_counted():
    stream = new_stream(heaps=1)
    stream.add_buffer_reader(b"".join(one_packet(i) for i in range(4)))
    wait_for(lambda: stream.stats.worker_blocked, "a full ring")
    stream.stop()
    assert [h.cnt for h in take(stream, 1)] == [0]
    assert stream.stats.heaps == 4
    assert stream.stats["xdpspead.heaps_dropped_stop"] == 3


@pytest.mark.ours
def test_public_objects_have_a_useful_repr():
    stream, sender = udp_stream()
    with sender:
        sender.send(one_packet(17))
    heap = next_heap(stream)
    stream.stop()
    assert "17" in repr(heap)
    shown = (heap, heap.get_items()[0], stream, stream.stats, stream.config, stream.ring_config)
    for thing in shown:
        assert " object at 0x" not in repr(thing)
