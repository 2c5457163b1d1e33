"""Heaps of several streams in one thread: whose, in which order, until when, and who gets them."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import gc
import importlib
import itertools
import os
import random
import re
import select
import signal
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from child import run_signalled
from coroutines import run, turns
from target import DEADLINE, PACKAGE, in_thread, new_stream, recv, sp, udp_stream, wait_for
from wire import simple_heap

pytestmark = pytest.mark.ours  # the peer has no such call
recv_asyncio: Any = importlib.import_module(PACKAGE + ".recv.asyncio")


def one_packet(cnt: int, length: int = 10) -> bytes:
    return simple_heap(cnt, length).packets(length)[0].encode()


def packets(n: int, first: int = 0) -> bytes:
    return b"".join(one_packet(first + i) for i in range(n))


class Fed:
    """Streams, each with a queue that it reads."""

    def __init__(self, n: int, heaps: int = 64, pool: Any = None) -> None:
        self.pool = pool or sp.ThreadPool()
        self.queues = [sp.InprocQueue() for _ in range(n)]
        self.streams = [new_stream(pool=self.pool, heaps=heaps) for _ in range(n)]
        for stream, queue in zip(self.streams, self.queues, strict=True):
            stream.add_inproc_reader(queue)

    def send(self, i: int, *cnts: int) -> None:
        for cnt in cnts:
            self.queues[i].add_packet(one_packet(cnt))

    def send_and_see(self, i: int, *cnts: int) -> None:
        """Send heaps, and wait until they are in the ring."""
        before = self.streams[i].ringbuffer.size()
        self.send(i, *cnts)
        wait_for(
            lambda: self.streams[i].ringbuffer.size() == before + len(cnts), "heaps in the ring"
        )

    def end(self) -> None:
        for queue in self.queues:
            queue.stop()

    def merge(self) -> Any:
        return recv.MergedStreams(self.streams)

    def merge_for_tasks(self) -> Any:
        return recv_asyncio.MergedStreams(self.streams)

    def names(self, pairs: Any) -> list[tuple[int, int]]:
        """Return the index of the stream, and the heap's number, of each pair."""
        return [(self.streams.index(stream), heap.cnt) for stream, heap in pairs]


def by_stream(pairs: list[tuple[int, int]]) -> dict[int, list[int]]:
    heaps: dict[int, list[int]] = collections.defaultdict(list)
    for i, cnt in pairs:
        heaps[i].append(cnt)
    return dict(heaps)


def next_names(fed: Fed, merged: Any, n: int) -> list[tuple[int, int]]:
    return fed.names(next(merged) for _ in range(n))


def feed_at_random(fed: Fed, n: int) -> dict[int, list[int]]:
    """Send `n` heaps in another thread, and the end; return which each stream has."""
    rng = random.Random(3)
    choice = [rng.randrange(len(fed.streams)) for _ in range(n)]
    pauses = [rng.random() < 0.02 for _ in range(n)]

    def feed() -> None:
        for cnt, (i, pause) in enumerate(zip(choice, pauses, strict=True)):
            fed.send(i, cnt)
            if pause:
                time.sleep(0.001)  # who takes them may fall asleep; no promise hangs on it
        fed.end()

    in_thread(feed)
    return by_stream(list(zip(choice, range(n), strict=True)))


# what comes


def test_every_heap_comes_once_with_its_stream_and_each_stream_in_order():
    fed = Fed(7)
    merged = fed.merge()
    got: list[tuple[int, int]] = []
    reader = in_thread(lambda: got.extend(fed.names(merged)))
    sent = feed_at_random(fed, 3000)
    reader.join(DEADLINE)
    assert by_stream(got) == sent


def test_heaps_that_were_there_before_come_too():
    fed = Fed(3)
    fed.send_and_see(0, 1, 2)
    fed.send_and_see(2, 3)
    fed.end()
    assert by_stream(fed.names(fed.merge())) == {0: [1, 2], 2: [3]}


def test_heaps_that_iteration_has_popped_already_come_first():
    fed = Fed(2)
    fed.send_and_see(0, *range(20))
    assert next(fed.streams[0]).cnt == 0
    assert fed.streams[0].ringbuffer.size() == 19
    fed.send_and_see(1, 50)
    fed.end()
    assert by_stream(fed.names(fed.merge())) == {0: list(range(1, 20)), 1: [50]}


def test_streams_take_turns():
    fed = Fed(3, heaps=2000)
    fed.send_and_see(0, *range(1000))
    fed.send_and_see(1, 5000)
    fed.send_and_see(2, 6000)
    merged = fed.merge()
    # Before the heaps of the first are at their end, and before half of them.
    first = next_names(fed, merged, 500)
    assert {(1, 5000), (2, 6000)} <= set(first)
    assert by_stream(first)[0] == list(range(498))
    fed.send_and_see(1, 5001)
    assert (1, 5001) in next_names(fed, merged, 100)


def test_heap_that_comes_while_it_waits():
    fed = Fed(3)
    merged = fed.merge()
    for round_ in range(20):
        got: list[tuple[int, int]] = []
        reader = in_thread(lambda got=got: got.extend(next_names(fed, merged, 1)))
        if round_ % 2:
            time.sleep(0.01)  # it makes it likely that the thread waits; no promise hangs on it
        fed.send(round_ % 3, round_)
        reader.join(DEADLINE)
        assert got == [(round_ % 3, round_)]


def test_incomplete_heaps_come_in_their_place_if_they_are_wanted():
    stream = new_stream(heaps=8, ring={"contiguous_only": False})
    half = simple_heap(1, 100).packets(50)[0].encode()
    stream.add_buffer_reader(one_packet(0) + half + one_packet(2))
    wait_for(lambda: stream.ringbuffer.size() == 3, "three heaps")
    kinds = {heap.cnt: type(heap) for _, heap in recv.MergedStreams([stream])}
    assert kinds == {0: recv.Heap, 1: recv.IncompleteHeap, 2: recv.Heap}


def test_streams_of_several_pools_and_workers():
    n = 400
    fed = [Fed(2, pool=sp.ThreadPool()) for _ in range(3)]
    streams = [stream for some in fed for stream in some.streams]
    got: list[tuple[int, int]] = []

    def read() -> None:
        got.extend((streams.index(s), h.cnt) for s, h in recv.MergedStreams(streams))

    reader = in_thread(read)
    for cnt in range(n):
        for some in fed:
            some.send(cnt % 2, cnt)
    for some in fed:
        some.end()
    reader.join(DEADLINE)
    assert by_stream(got) == {i: list(range(i % 2, n, 2)) for i in range(6)}


def test_ring_that_was_full_goes_on():
    """A worker that waits for room is woken by whoever takes heaps, in this way too."""
    fed = Fed(3, heaps=2)
    for i in range(3):
        fed.send(i, *range(300))
    fed.end()
    for i in range(3):
        wait_for(lambda i=i: fed.streams[i].stats.worker_blocked, "a full ring")
    assert by_stream(fed.names(fed.merge())) == {i: list(range(300)) for i in range(3)}


def test_ring_holds_no_more_than_it_does_otherwise():
    fed = Fed(2, heaps=8)
    for i in range(2):
        fed.send(i, *range(100))
    fed.end()
    for _ in fed.merge():
        time.sleep(0.001)  # no promise hangs on it: the worker has the time to put in too many
        assert all(stream.ringbuffer.size() <= 8 for stream in fed.streams)


# the end


def test_iteration_ends_when_the_last_stream_does():
    fed = Fed(2)
    merged = fed.merge()
    fed.send(0, 1)
    fed.queues[0].stop()
    assert next_names(fed, merged, 1) == [(0, 1)]
    fed.send(1, 2, 3)
    fed.queues[1].stop()
    assert fed.names(merged) == [(1, 2), (1, 3)]
    assert list(merged) == []
    del merged
    assert list(fed.merge()) == []


def test_no_streams_have_no_heaps():
    assert list(recv.MergedStreams([])) == []


def test_streams_that_have_stopped_have_their_heaps():
    fed = Fed(2)
    fed.send_and_see(0, 1, 2)
    fed.streams[0].stop()
    fed.streams[1].stop()
    assert fed.names(fed.merge()) == [(0, 1), (0, 2)]


@pytest.mark.parametrize("how", ["merge", "streams", "pool"])
def test_stop_wakes_who_waits(how):
    fed = Fed(3)
    merged = fed.merge()
    ended = []
    reader = in_thread(lambda: ended.append(list(merged)))
    time.sleep(0.05)  # no promise hangs on it: it makes it likely that the thread waits
    start = time.monotonic()
    if how == "merge":
        merged.stop()
    elif how == "pool":
        fed.pool.stop()
    else:
        for stream in fed.streams:
            stream.stop()
    reader.join(DEADLINE)
    assert ended == [[]]
    assert time.monotonic() - start < DEADLINE / 2


def test_leaving_the_context_stops_all_streams():
    fed = Fed(2)
    with fed.merge() as merged:
        assert merged.streams == fed.streams
    for stream in fed.streams:
        with pytest.raises(sp.Stopped):
            stream.get()


# several who take


def test_several_threads_share_it_without_losing_or_doubling_a_heap():
    fed = Fed(4, heaps=16)
    merged = fed.merge()
    got: list[list[tuple[int, int]]] = [[], [], []]
    threads = [in_thread(lambda mine=mine: mine.extend(fed.names(merged))) for mine in got]
    for cnt in range(1000):
        fed.send(cnt % 4, cnt)
    fed.end()
    for thread in threads:
        thread.join(DEADLINE)
    everything = sum(got, [])
    assert sorted(everything) == sorted((cnt % 4, cnt) for cnt in range(1000))


def test_heap_that_is_taken_from_the_stream_itself_does_not_come():
    fed = Fed(2)
    merged = fed.merge()
    fed.send_and_see(0, 1, 2)
    fed.send_and_see(1, 3)
    assert fed.streams[0].get().cnt == 1
    assert sorted(next_names(fed, merged, 2)) == [(0, 2), (1, 3)]
    fed.send_and_see(0, 4)
    assert fed.streams[0].get().cnt == 4
    fed.send(1, 5)
    assert next_names(fed, merged, 1) == [(1, 5)]
    fed.end()
    assert fed.names(merged) == []


def test_threads_that_take_from_a_stream_itself_at_the_same_time():
    fed = Fed(2, heaps=8)
    merged = fed.merge()
    got: list[list[tuple[int, int]]] = [[], []]

    def steal() -> None:
        got[1].extend((0, heap.cnt) for heap in fed.streams[0])

    threads = [in_thread(lambda: got[0].extend(fed.names(merged))), in_thread(steal)]
    for cnt in range(1000):
        fed.send(cnt % 2, cnt)
    fed.end()
    for thread in threads:
        thread.join(DEADLINE)
    assert sorted(got[0] + got[1]) == sorted((cnt % 2, cnt) for cnt in range(1000))


# arguments, lifetimes


def test_stream_can_be_merged_once_at_a_time():
    fed = Fed(3)
    merged = recv.MergedStreams(fed.streams[:2])
    with pytest.raises(ValueError, match=r"Stream 1 .* merged already"):
        recv.MergedStreams([fed.streams[2], fed.streams[0]])
    with pytest.raises(ValueError, match=r"Stream 1 .* merged already"):
        recv.MergedStreams([fed.streams[2], fed.streams[2]])
    fed.send(0, 7)
    assert next_names(fed, merged, 1) == [(0, 7)]  # what failed has changed nothing
    del merged
    gc.collect()
    fed.send(1, 8)
    assert fed.names([next(fed.merge())]) == [(1, 8)]


@pytest.mark.parametrize("bad", [None, 1, "stream", [None], ["stream"]])
def test_what_is_no_stream_is_refused(bad):
    with pytest.raises(TypeError):
        recv.MergedStreams(bad)


def test_what_is_in_the_ring_stays_there_when_the_merge_goes():
    fed = Fed(2)
    merged = fed.merge()
    fed.send_and_see(0, *range(10))
    fed.send_and_see(1, 50)
    assert fed.names([next(merged)]) in ([(0, 0)], [(1, 50)])
    del merged
    fed.end()
    rest = [heap.cnt for stream in fed.streams for heap in stream]
    assert len(rest) == 10


def test_merge_keeps_its_streams():
    fed = Fed(2)
    merged = fed.merge()
    fed.send(1, 5)
    fed.streams.clear()
    gc.collect()
    stream, heap = next(merged)
    assert heap.cnt == 5
    assert stream is merged.streams[1]


def test_cycles_through_it_are_collected():
    class Stream(recv.Stream):
        pass

    streams = [Stream(sp.ThreadPool()) for _ in range(2)]
    merged = recv.MergedStreams(streams)
    streams[0].merged = merged
    merged.itself = merged
    gone = [weakref.ref(streams[0]), weakref.ref(merged)]
    del streams, merged
    gc.collect()
    assert [ref() for ref in gone] == [None, None]


def test_streams_are_whole_after_thousands_of_merges():
    fed = Fed(8)
    for cnt in range(2000):
        merged = fed.merge()
        fed.send(cnt % 8, cnt)
        assert next_names(fed, merged, 1) == [(cnt % 8, cnt)]
        del merged


def test_merges_come_and_go_while_heaps_come():
    fed = Fed(4, heaps=10_000)
    rng = random.Random(2)
    got: list[tuple[int, int]] = []
    n = 4000

    def feed() -> None:
        for cnt in range(n):
            fed.send(cnt % 4, cnt)
        fed.end()

    feeder = in_thread(feed)
    while len(got) < n:
        merged = fed.merge()
        got += fed.names(itertools.islice(merged, rng.randrange(1, 50)))
        del merged
    feeder.join(DEADLINE)
    assert by_stream(got) == {i: list(range(i, n, 4)) for i in range(4)}


def refused_in_child(merges: list[Any], *uses: Callable[[], object]) -> bool:
    """Return whether a forked child is refused each use, before the deadline.

    Then the merges go, which must not be seen by anybody else.
    """
    child = os.fork()
    if not child:
        refused = []
        try:
            for use in uses:
                try:
                    use()
                except RuntimeError as error:
                    refused.append(re.search("fork|process", str(error)))
            merges.clear()
        finally:  # whatever came: this is not to go on with the tests
            os._exit(0 if len(refused) == len(uses) and all(refused) else 1)
    child_fd = os.pidfd_open(child)
    if not select.select([child_fd], [], [], DEADLINE)[0]:
        os.kill(child, signal.SIGKILL)
    os.close(child_fd)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_forked_child_is_refused():
    fed = Fed(2)
    merges = [fed.merge()]
    fed.send_and_see(0, 1)
    assert refused_in_child(merges, lambda: next(merges[0]), fed.merge)
    assert next_names(fed, merges[0], 1) == [(0, 1)]


def test_ctrl_c_while_it_waits_takes_no_heap_away():
    code = """
        import target, wire
        streams = [target.udp_stream() for _ in range(3)]
        merged = target.recv.MergedStreams([stream for stream, _ in streams])
        print("ready", flush=True)
        try:
            next(merged)
        except KeyboardInterrupt:
            pass
        for cnt, (_, sender) in enumerate(streams):
            sender.send(wire.simple_heap(cnt, 10).packets(10)[0].encode())
        print(sorted(next(merged)[1].cnt for _ in range(3)), flush=True)
        """
    assert run_signalled(code) == "[0, 1, 2]\n"


def test_handler_of_a_signal_runs_while_it_waits_and_it_goes_on():
    fed = Fed(2)
    merged = fed.merge()
    caught = threading.Event()
    old = signal.signal(signal.SIGALRM, lambda *_: (caught.set(), fed.send(1, 9)))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        assert next_names(fed, merged, 1) == [(1, 9)]
    finally:
        signal.signal(signal.SIGALRM, old)
    assert caught.is_set()


def test_streams_that_read_sockets():
    made = [udp_stream() for _ in range(5)]
    merged = recv.MergedStreams([stream for stream, _ in made])
    for round_ in range(10):
        for i, (_, sender) in enumerate(made):
            sender.send(one_packet(10 * round_ + i))
        got = {next(merged)[1].cnt for _ in made}
        assert got == {10 * round_ + i for i in range(5)}
    merged.stop()


# for coroutines


async def take(merged: Any, into: list[Any]) -> None:
    into.extend([pair async for pair in merged])


async def waiting_tasks(merged: Any, n: int) -> list[asyncio.Task[Any]]:
    """Return tasks that wait for a heap, in this order."""
    tasks = [asyncio.ensure_future(anext(merged)) for _ in range(n)]
    await turns()
    assert not any(task.done() for task in tasks)
    return tasks


@pytest.mark.parametrize("kind", ["blocking", "asyncio"])
def test_tasks_get_every_heap_once_and_each_stream_in_order(kind):
    fed = Fed(7, heaps=8)
    if kind == "asyncio":
        fed.streams = [recv_asyncio.Stream(fed.pool) for _ in fed.queues]
        for stream, queue in zip(fed.streams, fed.queues, strict=True):
            stream.add_inproc_reader(queue)
    merged = fed.merge_for_tasks()
    sent = feed_at_random(fed, 3000)
    got: list[Any] = []
    run(lambda: take(merged, got))
    assert by_stream(fed.names(got)) == sent
    run(lambda: take(merged, got))  # it has ended
    assert len(got) == 3000


def test_tasks_of_no_streams_end():
    got: list[Any] = []
    run(lambda: take(recv_asyncio.MergedStreams([]), got))
    assert got == []


def test_tasks_get_what_iteration_has_popped_already():
    fed = Fed(2)
    fed.send_and_see(0, *range(20))
    assert next(fed.streams[0]).cnt == 0
    fed.send_and_see(1, 50)
    fed.end()
    got: list[Any] = []
    run(lambda: take(fed.merge_for_tasks(), got))
    assert by_stream(fed.names(got)) == {0: list(range(1, 20)), 1: [50]}


def test_tasks_are_served_in_the_order_in_which_they_came():
    async def main():
        fed = Fed(3)
        tasks = await waiting_tasks(fed.merge_for_tasks(), 9)
        for cnt in range(9):
            fed.send_and_see(cnt % 3, cnt)
            got = await asyncio.wait_for(tasks[cnt], DEADLINE)
            assert fed.names([got]) == [(cnt % 3, cnt)]
            assert not any(task.done() for task in tasks[cnt + 1 :])

    run(main)


def test_heaps_that_come_at_once_wake_all_tasks_that_they_are_for():
    async def main():
        fed = Fed(2)
        tasks = await waiting_tasks(fed.merge_for_tasks(), 6)
        fed.send_and_see(1, *range(5))
        got = [await asyncio.wait_for(task, DEADLINE) for task in tasks[:5]]
        assert fed.names(got) == [(1, cnt) for cnt in range(5)]
        fed.send(0, 9)
        assert fed.names([await asyncio.wait_for(tasks[5], DEADLINE)]) == [(0, 9)]

    run(main)


def test_end_reaches_every_task():
    async def main():
        fed = Fed(3)
        merged = fed.merge_for_tasks()
        tasks = await waiting_tasks(merged, 5)
        fed.send(2, 7)
        fed.end()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert fed.names(results[:1]) == [(2, 7)]
        assert [type(result) for result in results[1:]] == [StopAsyncIteration] * 4

    run(main)


@pytest.mark.parametrize("how", ["stop", "context"])
def test_stop_wakes_tasks(how):
    async def main():
        fed = Fed(3)
        async with contextlib.AsyncExitStack() as stack:
            merged = fed.merge_for_tasks()
            (task,) = await waiting_tasks(merged, 1)
            if how == "stop":
                merged.stop()
            else:
                await stack.enter_async_context(merged)
        with pytest.raises(StopAsyncIteration):
            await asyncio.wait_for(task, DEADLINE)
        for stream in fed.streams:
            with pytest.raises(sp.Stopped):
                stream.get()

    run(main)


def test_storm_of_timeouts_takes_no_heap_away():
    async def main():
        fed = Fed(4, heaps=16)
        merged = fed.merge_for_tasks()
        sent = feed_at_random(fed, 1500)
        rng = random.Random(4)
        got: list[Any] = []
        timed_out = 0

        async def consume() -> None:
            nonlocal timed_out
            while True:
                try:
                    async with asyncio.timeout(rng.choice([0, 0.00005, 0.0002, 0.001])):
                        got.append(await anext(merged))
                except TimeoutError:
                    timed_out += 1
                except StopAsyncIteration:
                    return

        async with asyncio.TaskGroup() as group:
            for _ in range(5):
                group.create_task(consume())
        assert by_stream(fed.names(got)) == sent
        assert timed_out > 10

    run(main)


def test_iteration_by_tasks_lets_others_run():
    async def main():
        fed = Fed(2, heaps=3000)
        for i in range(2):
            fed.send_and_see(i, *range(3000))
        fed.end()
        turns_of_others = 0

        async def other() -> None:
            nonlocal turns_of_others
            while True:
                turns_of_others += 1
                await asyncio.sleep(0)

        task = asyncio.ensure_future(other())
        begin = time.monotonic()
        async for _ in fed.merge_for_tasks():
            pass
        took = time.monotonic() - begin
        task.cancel()
        assert turns_of_others >= min(took / 0.01, 20)

    run(main)


def test_several_event_loops_share_it():
    fed = Fed(4, heaps=16)
    merged = fed.merge_for_tasks()
    sent = feed_at_random(fed, 3000)
    got: list[list[Any]] = [[], [], []]
    threads = [in_thread(lambda mine=mine: run(lambda: take(merged, mine))) for mine in got]
    for thread in threads:
        thread.join(DEADLINE)
        assert not thread.is_alive()
    everything = [name for mine in got for name in fed.names(mine)]
    assert sorted(everything) == sorted((i, cnt) for i, cnts in sent.items() for cnt in cnts)


def share_with_a_loop_that_sees_nothing(feed: Callable[[Fed], None]) -> list[Any]:
    """Return what two tasks get that wait on two event loops.

    The second loop sees of what is fed only what the descriptor says, or it is told, when the first
    task has got something.
    """
    fed = Fed(1)
    merged = fed.merge_for_tasks()
    there, taken = threading.Event(), threading.Event()
    got: list[Any] = []

    async def get(task: asyncio.Task[Any]) -> None:
        try:
            got.append((await task)[1].cnt)
        except StopAsyncIteration:
            got.append("end")

    def wait_elsewhere() -> None:
        async def main() -> None:
            (task,) = await waiting_tasks(merged, 1)
            there.set()
            assert taken.wait(DEADLINE)  # the loop does not go round meanwhile
            await get(task)

        run(main)

    async def main() -> None:
        (task,) = await waiting_tasks(merged, 1)
        thread = in_thread(wait_elsewhere)
        assert there.wait(DEADLINE)
        feed(fed)
        await get(task)
        taken.set()
        thread.join(DEADLINE)

    run(main)
    return got


def test_heap_that_one_loop_has_popped_ahead_goes_to_another_that_waits():
    """The descriptor says nothing of it any more."""
    assert share_with_a_loop_that_sees_nothing(lambda fed: fed.send_and_see(0, 1, 2)) == [1, 2]


def test_end_that_one_loop_has_seen_reaches_another_that_waits():
    assert share_with_a_loop_that_sees_nothing(Fed.end) == ["end", "end"]


def test_forked_child_may_not_take_by_tasks():
    fed = Fed(2)
    merges = [fed.merge_for_tasks()]
    fed.send_and_see(0, 1)
    assert refused_in_child(merges, lambda: anext(merges[0]).send(None), fed.merge_for_tasks)
    assert fed.names([run(lambda: anext(merges[0]))]) == [(0, 1)]


def test_merge_for_tasks_goes_with_its_last_reference():
    fed = Fed(2)
    fed.send(0, 1)

    async def main() -> weakref.ref[Any]:
        merged = fed.merge_for_tasks()
        assert fed.names([await anext(merged)]) == [(0, 1)]
        return weakref.ref(merged)

    assert run(main)() is None
    fed.end()
    assert fed.names(fed.merge()) == []
