"""Many heaps in one call: how many, in which order, how long it waits, and who gets them."""

from __future__ import annotations

import asyncio
import gc
import importlib
import math
import time
from typing import Any

import pytest
from child import run_signalled
from coroutines import run, turns
from target import DEADLINE, PACKAGE, in_thread, new_stream, recv, sp, udp_stream, wait_for
from wire import join, simple_heap

pytestmark = pytest.mark.ours  # the peer has no such call

recv_asyncio: Any = importlib.import_module(PACKAGE + ".recv.asyncio")


def one_packet(cnt: int, length: int = 10) -> bytes:
    return simple_heap(cnt, length).packets(length)[0].encode()


def packets(n: int) -> bytes:
    return b"".join(map(one_packet, range(n)))


def counts(heaps: list[Any]) -> list[int]:
    return [heap.cnt for heap in heaps]


def filled(n: int, heaps: int, **options: Any) -> Any:
    """Return a stream to which `n` heaps came, as many of them in the ring as fit."""
    stream = new_stream(heaps=heaps, **options)
    stream.add_buffer_reader(packets(n))
    wait_for(lambda: stream.ringbuffer.size() == min(n, heaps), "heaps in the ring")
    return stream


@pytest.mark.parametrize(("max_heaps", "n"), [(1, 1), (3, 3), (5, 5), (6, 5), (10**12, 5)])
def test_takes_what_is_there_up_to_as_many_as_asked_for(max_heaps, n):
    stream = filled(5, heaps=8)
    assert counts(stream.get_many(max_heaps)) == list(range(n))
    stream.stop()


def test_takes_more_heaps_than_a_small_batch_at_once():
    stream = filled(1000, heaps=1000)
    assert counts(stream.get_many(5000)) == list(range(1000))


def test_heaps_at_the_end_come_before_stopped():
    stream = filled(5, heaps=8)
    stream.stop()
    assert counts(stream.get_many(3)) == [0, 1, 2]
    assert counts(stream.get_many(3)) == [3, 4]
    with pytest.raises(sp.Stopped):
        stream.get_many(3)
    with pytest.raises(sp.Stopped):
        stream.get_many(3, timeout=0)


def test_waits_for_the_first_heap_only():
    stream, sender = udp_stream()
    got: list[list[int]] = []
    thread = in_thread(lambda: got.append(counts(stream.get_many(3))))
    with sender:
        sender.send(one_packet(7))
        thread.join(DEADLINE)
    stream.stop()
    assert got == [[7]]


def test_stop_wakes_who_waits():
    stream, sender = udp_stream()
    sender.socket.close()
    ended: list[bool] = []

    def wait() -> None:
        try:
            stream.get_many(3)
        except sp.Stopped:
            ended.append(True)

    thread = in_thread(wait)
    time.sleep(0.05)  # no promise hangs on it: it makes it likely that the thread waits
    stream.stop()
    thread.join(DEADLINE)
    assert ended == [True]


@pytest.mark.parametrize("timeout", [0, 0.01, 0.25])
def test_no_heap_in_time_is_an_empty_list(timeout):
    stream = new_stream()
    start = time.monotonic()
    assert stream.get_many(3, timeout=timeout) == []
    assert time.monotonic() - start >= timeout
    stream.stop()


@pytest.mark.parametrize("timeout", [0, 5, math.inf])
def test_heaps_that_are_there_come_whatever_the_timeout(timeout):
    stream = filled(5, heaps=8)
    assert counts(stream.get_many(3, timeout=timeout)) == [0, 1, 2]
    stream.stop()


def test_arguments_that_make_no_sense_are_refused():
    stream = filled(5, heaps=8)
    for bad in (0, -1, -(10**30)):
        with pytest.raises(ValueError, match="max_heaps"):
            stream.get_many(bad)
    for bad in (1.0, "1", None):
        with pytest.raises(TypeError):
            stream.get_many(bad)
    for bad in (-1, -1e-9, math.nan):
        with pytest.raises(ValueError, match="timeout"):
            stream.get_many(1, timeout=bad)
    assert counts(stream.get_many(8)) == list(range(5))  # nothing was taken


def test_incomplete_heaps_come_in_their_place_if_they_are_wanted():
    stream = new_stream(heaps=8, ring={"contiguous_only": False})
    half = simple_heap(1, 100).packets(50)[0].encode()
    stream.add_buffer_reader(one_packet(0) + half + one_packet(2))
    wait_for(lambda: stream.ringbuffer.size() == 3, "three heaps")
    heaps = stream.get_many(8)
    kinds = {heap.cnt: type(heap) for heap in heaps}
    assert kinds == {0: recv.Heap, 1: recv.IncompleteHeap, 2: recv.Heap}


def test_follows_iteration_and_get_without_losing_a_heap():
    stream = new_stream(heaps=32)
    stream.add_buffer_reader(packets(200))
    got: list[int] = []
    try:
        while True:
            for heap in stream:
                got.append(heap.cnt)
                if len(got) % 7 == 3:
                    break
            got += counts(stream.get_many(5))
            got.append(stream.get().cnt)
    except sp.Stopped:
        pass
    assert got == list(range(200))


def test_iteration_keeps_no_more_heaps_than_the_ring_holds():
    stream = new_stream(heaps=8)
    stream.add_buffer_reader(packets(100))
    for _ in stream:
        time.sleep(0.001)  # no promise hangs on it: the worker has the time to put in too many
        assert stream.ringbuffer.size() <= 8


def test_memory_of_a_heap_is_free_as_soon_as_the_heap_is_dropped():
    memory = sp.MemoryPool(1, 64, 16, 16)
    stream = filled(8, heaps=16, memory_allocator=memory)
    heaps = stream.get_many(8)
    assert memory.free == 8
    while heaps:
        del heaps[len(heaps) // 2]
        assert memory.free == 16 - len(heaps)


def test_several_threads_share_a_stream_without_losing_or_doubling_a_heap():
    stream = new_stream(heaps=16)
    got: list[list[int]] = [[], [], []]

    def read(mine: list[int]) -> None:
        try:
            while True:
                heaps = stream.get_many(4)
                assert 1 <= len(heaps) <= 4
                mine.extend(counts(heaps))
        except sp.Stopped:
            pass

    threads = [in_thread(lambda mine=mine: read(mine)) for mine in got]
    stream.add_buffer_reader(packets(1000))
    for thread in threads:
        thread.join(DEADLINE)
    assert sorted(sum(got, [])) == list(range(1000))
    assert all(mine == sorted(mine) for mine in got)


def test_ctrl_c_while_it_waits_takes_no_heap_away():
    code = """
        import target, wire
        stream, sender = target.udp_stream()
        print("ready", flush=True)
        try:
            stream.get_many(3)
        except KeyboardInterrupt:
            pass
        for cnt in range(10, 13):
            sender.send(wire.simple_heap(cnt, 10).packets(10)[0].encode())
        got = []
        while len(got) < 3:
            got += [heap.cnt for heap in stream.get_many(3)]
        print(got, flush=True)
        """
    assert run_signalled(code) == "[10, 11, 12]\n"


# asyncio


class Fed:
    """An asynchronous stream, and the queue that it reads."""

    def __init__(self, heaps: int = 256) -> None:
        self.queue = sp.InprocQueue()
        self.stream = recv_asyncio.Stream(
            sp.ThreadPool(), recv.StreamConfig(), recv.RingStreamConfig(heaps=heaps)
        )
        self.stream.add_inproc_reader(self.queue)
        self.sent = 0

    def send_and_see(self, n: int) -> None:
        """Send heaps and wait, without letting the event loop run, until they are finished."""
        before = self.stream.ringbuffer.size()
        for _ in range(n):
            self.queue.add_packet(one_packet(self.sent))
            self.sent += 1
        wait_for(lambda: self.stream.ringbuffer.size() == before + n, f"{n} heaps in the ring")


@pytest.fixture
def fed():
    fed = Fed()
    yield fed
    fed.stream.stop()


def test_coroutine_gets_what_is_there_and_then_the_end(fed):
    async def main():
        fed.send_and_see(5)
        assert counts(await fed.stream.get_many(3)) == [0, 1, 2]
        assert counts(await fed.stream.get_many(3)) == [3, 4]
        fed.queue.stop()
        with pytest.raises(sp.Stopped):
            await fed.stream.get_many(3)

    run(main)


def test_coroutine_waits_for_the_first_heap(fed):
    async def main():
        task = asyncio.ensure_future(fed.stream.get_many(8))
        await turns()
        assert not task.done()
        fed.send_and_see(1)
        assert counts(await asyncio.wait_for(task, DEADLINE)) == [0]

    run(main)


@pytest.mark.parametrize("bad", [0, -3])
def test_coroutine_refuses_less_than_one(fed, bad):
    async def main():
        with pytest.raises(ValueError, match="max_heaps"):
            await fed.stream.get_many(bad)

    run(main)


def test_coroutines_get_their_heaps_in_the_order_of_their_calls(fed):
    async def main():
        first = asyncio.ensure_future(fed.stream.get_many(3))
        second = asyncio.ensure_future(fed.stream.get())
        third = asyncio.ensure_future(fed.stream.get_many(3))
        await turns()
        fed.send_and_see(6)
        assert counts(await asyncio.wait_for(first, DEADLINE)) == [0, 1, 2]
        assert (await asyncio.wait_for(second, DEADLINE)).cnt == 3
        got = counts(await asyncio.wait_for(third, DEADLINE))
        while len(got) < 2:
            got += counts(await fed.stream.get_many(3))
        assert got == [4, 5]

    run(main)


@pytest.mark.parametrize("n_turns", range(6))
def test_cancelled_coroutine_takes_no_heap(fed, n_turns):
    async def main():
        task = asyncio.ensure_future(fed.stream.get_many(8))
        await turns()
        fed.send_and_see(3)
        await turns(n_turns)
        task.cancel()
        await asyncio.wait([task], timeout=DEADLINE)
        got = [] if task.cancelled() else counts(task.result())
        while len(got) < 3:
            got += counts(await asyncio.wait_for(fed.stream.get_many(8), DEADLINE))
        assert got == [0, 1, 2]

    run(main)


def test_coroutine_takes_first_what_iteration_left(fed):
    async def main():
        fed.send_and_see(20)
        assert (await anext(fed.stream)).cnt == 0
        got = []
        while len(got) < 19:
            got += counts(await fed.stream.get_many(50))
        assert got == list(range(1, 20))

    run(main)


def test_heaps_of_a_stream_that_is_gone_are_freed():
    memory = sp.MemoryPool(1, 64, 32, 32)
    stream = filled(20, heaps=32, memory_allocator=memory)
    assert next(stream).cnt == 0  # and more have left the ring
    stream.stop()
    del stream
    gc.collect()
    wait_for(lambda: memory.free == 32, "all blocks back")


def test_heap_of_parts_comes_out_whole():
    stream = new_stream(heaps=4)
    stream.add_buffer_reader(join(p for c in range(4) for p in simple_heap(c, 30).packets(10)))
    got: list[int] = []
    while len(got) < 4:
        got += counts(stream.get_many(4))
    assert got == [0, 1, 2, 3]
