"""Streams for asyncio: order of waiters, cancellation, ends, and loops that come and go."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import logging
import random
import subprocess
import sys
import textwrap
import time
import types
import warnings
import weakref
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from coroutines import run, turns
from target import DEADLINE, PACKAGE, in_thread, payload, recv, sp, stats_of, wait_for
from wire import Packet, join, pattern, simple_heap

recv_asyncio: Any = importlib.import_module(PACKAGE + ".recv.asyncio")


def one_packet(cnt: int, length: int = 10) -> bytes:
    return simple_heap(cnt, length).packets(length)[0].encode()


class Fed:
    """An asynchronous stream, and the queue that it reads."""

    def __init__(self, heaps: int = 256, pool: Any = None) -> None:
        self.queue = sp.InprocQueue()
        self.stream = recv_asyncio.Stream(
            sp.ThreadPool() if pool is None else pool,
            recv.StreamConfig(),
            recv.RingStreamConfig(heaps=heaps),
        )
        self.stream.add_inproc_reader(self.queue)
        self.sent = 0

    def send(self, n: int = 1) -> None:
        """Send the next `n` heaps, which are numbered from 0."""
        for _ in range(n):
            self.queue.add_packet(one_packet(self.sent))
            self.sent += 1

    def send_and_see(self, n: int = 1) -> None:
        """Send heaps and wait, without letting the event loop run, until they are finished."""
        before = self.stream.ringbuffer.size()
        self.send(n)
        wait_for(
            lambda: self.stream.ringbuffer.size() == before + n,
            f"{n} heaps in the ring, {stats_of(self.stream)}",
        )

    async def waiters(self, n: int) -> list[asyncio.Task[Any]]:
        """Return tasks that wait for a heap, in this order."""
        tasks = [asyncio.ensure_future(self.stream.get()) for _ in range(n)]
        await turns()
        assert not any(task.done() for task in tasks)
        return tasks


@pytest.fixture
def fed():
    fed = Fed()
    yield fed
    fed.stream.stop()


async def cnt_of(task: asyncio.Task[Any]) -> int:
    return int((await asyncio.wait_for(task, DEADLINE)).cnt)


async def cnts_of(tasks: list[asyncio.Task[Any]]) -> list[int]:
    return [await cnt_of(task) for task in tasks]


async def assert_cancelled(*tasks: asyncio.Task[Any]) -> None:
    await asyncio.wait(tasks, timeout=DEADLINE)
    assert all(task.cancelled() for task in tasks)


# Heaps


def test_get_returns_the_heaps_in_order(fed):
    fed.send(5)

    async def main():
        assert [(await fed.stream.get()).cnt for _ in range(5)] == list(range(5))

    run(main)


def test_get_waits_for_a_heap(fed):
    async def main():
        (waiter,) = await fed.waiters(1)
        fed.send()
        heap = await asyncio.wait_for(waiter, DEADLINE)
        assert (heap.cnt, payload(heap)) == (0, pattern(0, 10))

    run(main)


def test_iteration_ends_with_the_stream(fed):
    async def main():
        fed.send(100)
        fed.queue.stop()
        assert [heap.cnt async for heap in fed.stream] == list(range(100))
        assert [heap.cnt async for heap in fed.stream] == []

    run(main)


def test_iteration_waits_for_heaps_that_are_still_to_come(fed):
    async def main():
        got = []
        fed.send()
        async for heap in fed.stream:
            got.append(heap.cnt)
            if len(got) == 50:
                break
            asyncio.get_running_loop().call_soon(fed.send)
        assert got == list(range(50))

    run(main)


def test_heaps_that_iteration_left_can_still_be_got():
    async def main():
        fed = Fed()
        fed.send_and_see(40)
        async for heap in fed.stream:
            if heap.cnt == 1:
                break
        assert (await fed.stream.get()).cnt == 2
        assert fed.stream.get_nowait().cnt == 3
        assert fed.stream.ringbuffer.size() == 36
        fed.stream.stop()
        assert [heap.cnt async for heap in fed.stream] == list(range(4, 40))

    run(main)


def test_stream_is_its_own_asynchronous_iterator(fed):
    assert fed.stream.__aiter__() is fed.stream


def test_full_ring_loses_nothing():
    fed = Fed(heaps=2)
    fed.send(300)
    fed.queue.stop()

    async def main():
        wait_for(lambda: fed.stream.stats.worker_blocked, "the worker blocks")
        return [heap.cnt async for heap in fed.stream]

    assert run(main) == list(range(300))


def test_buffer_is_read_to_its_end():
    stream = recv_asyncio.Stream(sp.ThreadPool())
    stream.add_buffer_reader(join(one_packet(cnt) for cnt in range(100)))

    async def main():
        return [heap.cnt async for heap in stream]

    assert run(main) == list(range(100))


def test_everything_else_is_as_in_the_blocking_stream(fed):
    with pytest.raises(sp.Empty):
        fed.stream.get_nowait()
    fed.send_and_see()
    assert fed.stream.get_nowait().cnt == 0
    assert fed.stream.stats.heaps == 1
    assert fed.stream.config.max_heaps == recv.StreamConfig.DEFAULT_MAX_HEAPS
    assert fed.stream.ring_config.heaps == fed.stream.ringbuffer.capacity() == 256
    assert fed.stream.fd >= 0
    fed.stream.stop()
    with pytest.raises(sp.Stopped):
        fed.stream.get_nowait()


# Whose turn it is


def test_waiters_are_served_in_the_order_in_which_they_came(fed):
    async def main():
        waiters = await fed.waiters(20)
        fed.send(20)
        assert await cnts_of(waiters) == list(range(20))

    run(main)


def test_waiters_are_served_in_order_when_heaps_come_one_by_one(fed):
    async def main():
        waiters = await fed.waiters(10)
        for i, waiter in enumerate(waiters):
            fed.send()
            assert await cnt_of(waiter) == i
            await turns()
            assert not any(later.done() for later in waiters[i + 1 :])

    run(main)


def test_who_comes_later_does_not_get_in_front_of_those_who_wait(fed):
    async def main():
        waiters = await fed.waiters(2)
        fed.send_and_see(2)
        # The heaps are there, and the event loop has had no chance to hand them out.
        late = asyncio.ensure_future(fed.stream.get())
        fed.send()
        assert await cnts_of([*waiters, late]) == [0, 1, 2]

    run(main)


def test_who_comes_later_stands_behind_a_call_that_is_about_to_get_its_heap(fed):
    async def main():
        fed.send_and_see()
        tasks = [asyncio.ensure_future(fed.stream.get()) for _ in range(5)]
        fed.send(4)
        assert await cnts_of(tasks) == list(range(5))

    run(main)


@pytest.mark.parametrize("ready", [1, 3, 40])
def test_get_lets_others_run_also_when_heaps_are_there(fed, ready):
    async def main():
        trace = []

        async def other():
            while True:
                trace.append("other")
                await asyncio.sleep(0)

        fed.send_and_see(ready)
        task = asyncio.ensure_future(other())
        for _ in range(ready):
            heap = await fed.stream.get()
            trace.append(heap.cnt)
        task.cancel()
        assert trace == [x for cnt in range(ready) for x in ("other", cnt)]

    run(main)


def test_iteration_over_many_heaps_lets_others_run():
    async def main():
        fed = Fed(heaps=3000)
        fed.send_and_see(3000)
        fed.queue.stop()
        turns_of_others = 0

        async def other():
            nonlocal turns_of_others
            while True:
                turns_of_others += 1
                await asyncio.sleep(0)

        task = asyncio.ensure_future(other())
        async for _heap in fed.stream:
            pass
        task.cancel()
        assert turns_of_others >= 3000 // 32

    run(main)


def test_iteration_with_slow_work_lets_others_run_between_any_two_heaps():
    async def main():
        fed = Fed()
        fed.send_and_see(20)
        fed.queue.stop()
        trace = []

        async def other():
            while True:
                trace.append("other")
                await asyncio.sleep(0)

        task = asyncio.ensure_future(other())
        async for heap in fed.stream:
            trace.append(heap.cnt)
            time.sleep(0.003)  # work of the user, longer than a turn may take
        task.cancel()
        for cnt in range(19):
            assert "other" in trace[trace.index(cnt) : trace.index(cnt + 1)]

    run(main)


def test_heap_taken_by_get_nowait_leaves_the_waiter_waiting(fed):
    async def main():
        waiters = await fed.waiters(2)
        fed.send_and_see()
        assert fed.stream.get_nowait().cnt == 0
        await turns()
        assert not any(waiter.done() for waiter in waiters)
        fed.send(2)
        assert await cnts_of(waiters) == [1, 2]

    run(main)


@pytest.mark.parametrize("n_heaps", [1, 2, 3])
def test_heap_stolen_from_waiters_that_were_already_told_changes_no_order(fed, n_heaps):
    async def main():
        waiters = await fed.waiters(3)
        fed.send_and_see(n_heaps)
        # Right after the descriptor was seen, before the waiters run.
        stolen = []
        fd_seen = asyncio.Event()
        asyncio.get_running_loop().call_soon(fd_seen.set)
        await fd_seen.wait()
        with contextlib.suppress(sp.Empty):
            while True:
                stolen.append(fed.stream.get_nowait().cnt)
        fed.send(3)
        got = [
            (await asyncio.wait_for(waiter, DEADLINE)).cnt
            for waiter in waiters[: 3 + n_heaps - len(stolen)]
        ]
        assert sorted(stolen + got) == list(range(len(stolen + got)))
        assert got == sorted(got)

    run(main)


@types.coroutine
def with_a_look(coroutine: Coroutine[Any, Any, Any], after_step: Callable[[], None]) -> Any:
    """Run a coroutine, and a function each time when it begins to wait."""
    while True:
        try:
            future = coroutine.send(None)
        except StopIteration as end:
            return end.value
        after_step()
        yield future


@pytest.mark.ours
def test_heap_that_comes_between_two_waiters_who_found_nothing_goes_to_the_first(fed):
    async def main():
        steps = 0

        def after_step() -> None:
            nonlocal steps
            steps += 1
            if steps == 2:
                fed.send_and_see()

        async def first() -> Any:
            return await with_a_look(fed.stream.get(), after_step)

        tasks = [asyncio.ensure_future(first()), asyncio.ensure_future(fed.stream.get())]
        await turns()
        fed.send_and_see(2)
        await turns(2)  # both have been told, and neither has run
        assert [fed.stream.get_nowait().cnt, fed.stream.get_nowait().cnt] == [0, 1]
        await turns()
        assert steps == 2
        fed.send()
        assert await cnts_of(tasks) == [2, 3]

    run(main)


@pytest.mark.ours
def test_heap_that_came_along_with_another_ones_is_not_kept_from_who_waits(fed):
    async def main():
        loop = asyncio.get_running_loop()
        waiters = await fed.waiters(2)
        fed.send_and_see()
        stolen = []
        # A timer runs after the descriptor was seen and before it is looked at again.
        loop.call_later(0, lambda: stolen.append(fed.stream.get_nowait().cnt))
        await turns(2)
        assert stolen == [0]
        fed.send_and_see(2)  # for the first waiter, who was told, and the second, who was not
        assert await cnts_of(waiters) == [1, 2]

    run(main)


def test_iteration_does_not_get_in_front_of_those_who_wait(fed):
    async def main():
        fed.send_and_see(5)
        assert (await anext(fed.stream)).cnt == 0
        waiter = asyncio.ensure_future(fed.stream.get())
        await asyncio.sleep(0)
        assert not waiter.done()
        assert (await anext(fed.stream)).cnt == 2
        assert await cnt_of(waiter) == 1

    run(main)


def test_several_consumers_share_the_heaps_and_each_sees_them_in_order():
    async def main():
        fed = Fed(heaps=8)
        got: list[list[int]] = [[] for _ in range(20)]

        async def consume(mine: list[int], i: int) -> None:
            if i % 2:
                async for heap in fed.stream:
                    mine.append(heap.cnt)
                    if heap.cnt % 7 == i % 7:
                        await asyncio.sleep(0)
            else:
                with contextlib.suppress(sp.Stopped):
                    while True:
                        mine.append((await fed.stream.get()).cnt)

        def feed() -> None:
            fed.send(3000)
            fed.queue.stop()

        in_thread(feed)
        async with asyncio.TaskGroup() as group:
            for i, mine in enumerate(got):
                group.create_task(consume(mine, i))
        for mine in got:
            assert mine == sorted(mine)
        assert sorted(sum(got, [])) == list(range(3000))

    run(main)


# Cancellation


@pytest.mark.parametrize(
    "cancelled",
    [
        [0],
        [2],
        [4],
        [0, 1],
        [1, 3],
        [3, 4],
        [0, 2, 4],
        [4, 2, 0],
        [1, 2, 3, 4],
        [0, 1, 2, 3],
    ],
    ids=str,
)
def test_cancelled_waiters_take_no_heap_wherever_they_stand(fed, cancelled):
    async def main():
        waiters = await fed.waiters(5)
        for i in cancelled:
            waiters[i].cancel()
        left = [waiter for i, waiter in enumerate(waiters) if i not in cancelled]
        fed.send(len(left) + 1)
        assert await cnts_of(left) == list(range(len(left)))
        await assert_cancelled(*(waiters[i] for i in cancelled))
        assert (await fed.stream.get()).cnt == len(left)

    run(main)


def test_heap_is_there_for_the_next_call_when_all_waiters_are_cancelled(fed):
    async def main():
        waiters = await fed.waiters(3)
        for waiter in waiters:
            waiter.cancel()
        await assert_cancelled(*waiters)
        fed.send_and_see()
        await turns()
        assert fed.stream.get_nowait().cnt == 0
        fed.send()
        assert (await fed.stream.get()).cnt == 1

    run(main)


# spead2 loses the heap if the call is cancelled just when it has been given one.
@pytest.mark.ours
@pytest.mark.parametrize("n_turns", range(7))
@pytest.mark.parametrize("cancelled", [(0,), (1,), (0, 1), (0, 2), (2,), (0, 1, 2)], ids=str)
def test_waiter_cancelled_while_heaps_arrive_loses_none_and_changes_no_order(
    fed, n_turns, cancelled
):
    async def main():
        waiters = await fed.waiters(3)
        fed.send_and_see(3)
        await turns(n_turns)
        for i in cancelled:
            waiters[i].cancel()
        await asyncio.wait([waiters[i] for i in cancelled], timeout=DEADLINE)
        served = [waiter for waiter in waiters if not waiter.cancelled()]
        got = await cnts_of(served)
        while len(got) < 3:
            got.append((await asyncio.wait_for(fed.stream.get(), DEADLINE)).cnt)
        assert got == [0, 1, 2]

    run(main)


@pytest.mark.ours
@pytest.mark.parametrize("n_turns", range(4))
def test_heap_of_a_cancelled_call_goes_to_get_nowait(fed, n_turns):
    async def main():
        (waiter,) = await fed.waiters(1)
        fed.send_and_see(2)
        await turns(n_turns)
        waiter.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            assert (await waiter).cnt == 0
        assert fed.stream.get_nowait().cnt == (0 if waiter.cancelled() else 1)

    run(main)


def test_call_that_is_cancelled_before_it_began_takes_no_heap(fed):
    async def main():
        fed.send_and_see()
        task = asyncio.ensure_future(fed.stream.get())
        task.cancel()
        await assert_cancelled(task)
        assert (await fed.stream.get()).cnt == 0

    run(main)


@pytest.mark.ours
def test_heap_that_a_cancelled_call_was_about_to_get_goes_to_the_next_in_line(fed):
    async def main():
        fed.send_and_see(2)
        assert (await anext(fed.stream)).cnt == 0
        first = asyncio.ensure_future(fed.stream.get())
        second = asyncio.ensure_future(fed.stream.get())
        await asyncio.sleep(0)
        first.cancel()
        assert await cnt_of(second) == 1
        assert first.cancelled()

    run(main)


# A storm of time-outs: spead2 loses heaps in it.
@pytest.mark.ours
@pytest.mark.parametrize("n_consumers", [1, 5])
@pytest.mark.parametrize("how", ["wait_for", "timeout", "cancel"])
def test_storm_of_timeouts_loses_no_heap_and_changes_no_order(how, n_consumers):
    async def main():
        fed = Fed(heaps=16)
        total, seed = 1500, random.Random(how + str(n_consumers))
        # What one consumer has got it notes at once, so this is the order in which they came.
        got: list[int] = []
        timed_out = 0

        async def get() -> Any:
            delay = seed.choice([0, 0.00005, 0.0002, 0.001])
            if how == "wait_for":
                return await asyncio.wait_for(note(), delay)
            if how == "timeout":
                async with asyncio.timeout(delay):
                    return await note()
            task = asyncio.ensure_future(note())
            handle = asyncio.get_running_loop().call_later(delay, task.cancel)
            try:
                return await task
            except asyncio.CancelledError:
                raise TimeoutError from None
            finally:
                handle.cancel()

        async def note() -> None:
            got.append((await fed.stream.get()).cnt)

        async def consume() -> None:
            nonlocal timed_out
            while True:
                try:
                    await get()
                except TimeoutError:
                    timed_out += 1
                except sp.Stopped:
                    return

        def feed() -> None:
            slow = random.Random(1)
            while fed.sent < total:
                fed.send(slow.choice([1, 1, 2, 20]))
                time.sleep(slow.choice([0, 0.0001, 0.0003]))  # so that waiting and ready mix
            fed.queue.stop()

        in_thread(feed)
        async with asyncio.TaskGroup() as group:
            for _ in range(n_consumers):
                group.create_task(consume())
        assert got == list(range(fed.sent))
        assert timed_out > 10

    run(main)


def test_cancelled_calls_leave_nothing_behind_in_a_line_that_never_moves(fed):
    async def main():
        (waiter,) = await fed.waiters(1)
        for _ in range(200):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(fed.stream.get(), 0.00001)
        futures = [o for o in gc.get_objects() if isinstance(o, asyncio.Future) and not o.done()]
        assert len(futures) < 50
        fed.send()
        assert await cnt_of(waiter) == 0

    run(main)


# Ends


@pytest.mark.parametrize("who", ["loop", "thread", "queue"])
def test_every_waiter_hears_of_the_end(fed, who):
    async def main():
        waiters = await fed.waiters(10)
        if who == "loop":
            fed.stream.stop()
        elif who == "thread":
            in_thread(fed.stream.stop)
        else:
            fed.queue.stop()
        results = await asyncio.wait_for(asyncio.gather(*waiters, return_exceptions=True), DEADLINE)
        assert [type(result) for result in results] == [sp.Stopped] * 10
        with pytest.raises(sp.Stopped):
            await fed.stream.get()

    run(main)


def test_heaps_go_to_the_first_in_line_and_the_end_to_the_rest(fed):
    async def main():
        waiters = await fed.waiters(5)
        fed.send(2)
        fed.queue.stop()
        results = await asyncio.wait_for(asyncio.gather(*waiters, return_exceptions=True), DEADLINE)
        assert [heap.cnt for heap in results[:2]] == [0, 1]
        assert [type(result) for result in results[2:]] == [sp.Stopped] * 3

    run(main)


@pytest.mark.parametrize(
    "cancelled",
    [
        [0],
        # A cancelled call behind the first is an error in spead2 when the end comes.
        *(pytest.param(which, marks=pytest.mark.ours) for which in ([1], [4], [1, 3], [0, 2, 4])),
        [0, 1, 2, 3, 4],
    ],
    ids=str,
)
def test_end_reaches_everybody_among_cancelled_waiters(fed, cancelled):
    problems = []

    async def main():
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _loop, context: problems.append(context))
        waiters = await fed.waiters(5)
        for i in cancelled:
            waiters[i].cancel()
        fed.stream.stop()
        results = await asyncio.wait_for(asyncio.gather(*waiters, return_exceptions=True), DEADLINE)
        for i, result in enumerate(results):
            wanted = asyncio.CancelledError if i in cancelled else sp.Stopped
            assert isinstance(result, wanted), i

    run(main)
    assert problems == []


@pytest.mark.ours
def test_get_lets_others_run_also_after_the_end(fed):
    async def main():
        fed.stream.stop()
        ran = []
        asyncio.get_running_loop().call_soon(ran.append, 1)
        with pytest.raises(sp.Stopped):
            await fed.stream.get()
        assert ran

    run(main)


@pytest.mark.ours
def test_stream_is_a_context_manager_of_both_kinds():
    async def main():
        async with Fed().stream as stream:
            assert isinstance(stream, recv_asyncio.Stream)
        with pytest.raises(sp.Stopped):
            await stream.get()
        with Fed().stream as stream:
            pass
        with pytest.raises(sp.Stopped):
            await stream.get()

    run(main)


@pytest.mark.ours
def test_leaving_the_context_wakes_who_waits():
    async def main():
        fed = Fed()
        async with fed.stream:
            (waiter,) = await fed.waiters(1)
        with pytest.raises(sp.Stopped):
            await asyncio.wait_for(waiter, DEADLINE)

    run(main)


# Event loops


def test_stream_can_be_used_from_one_loop_after_the_other(fed):
    async def one():
        return (await fed.stream.get()).cnt

    async def wait_in_vain():
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(fed.stream.get(), 0.001)

    for cnt in range(5):
        run(wait_in_vain)
        fed.send()
        assert run(one) == cnt


def test_loop_that_ends_cancels_its_waiters_and_the_next_one_gets_the_heaps(fed):
    async def leave_waiters_behind():
        await fed.waiters(3)

    async def one():
        return (await fed.stream.get()).cnt

    run(leave_waiters_behind)
    fed.send(2)
    assert [run(one), run(one)] == [0, 1]


def close_under_waiters(fed: Fed, n: int) -> weakref.ref[asyncio.AbstractEventLoop]:
    """Close an event loop on which tasks wait for heaps, without cancelling them."""
    loop = asyncio.new_event_loop()
    tasks = [loop.create_task(fed.stream.get()) for _ in range(n)]
    loop.call_soon(loop.stop)
    loop.run_forever()  # one turn: they begin to wait
    loop.close()
    for task in tasks:
        # What asyncio itself has to say to that is not the point.
        task._log_destroy_pending = False
    return weakref.ref(loop)


@pytest.mark.ours
def test_loop_closed_under_its_waiters_leaves_the_stream_usable(fed):
    unraisable = []
    hook, sys.unraisablehook = sys.unraisablehook, unraisable.append
    try:
        close_under_waiters(fed, 3)
        fed.send(3)

        async def main():
            (waiter,) = [asyncio.ensure_future(fed.stream.get())]
            got = [await cnt_of(waiter)]
            got += [(await fed.stream.get()).cnt, (await anext(aiter(fed.stream))).cnt]
            waiters = await fed.waiters(2)
            fed.send(2)
            return got + await cnts_of(waiters)

        assert run(main) == list(range(5))
        gc.collect()
    finally:
        sys.unraisablehook = hook
    assert unraisable == []


@pytest.mark.ours
def test_loop_closed_under_its_waiters_is_let_go_by_the_next_call(fed):
    gone = close_under_waiters(fed, 3)
    fed.send()

    async def main():
        await fed.stream.get()

    run(main)
    gc.collect()
    assert gone() is None


@pytest.mark.ours
@pytest.mark.parametrize("heaps", [0, 3])
def test_stream_abandoned_with_a_closed_loop_is_collected_silently(heaps):
    unraisable = []
    hook, sys.unraisablehook = sys.unraisablehook, unraisable.append
    try:
        fed = Fed()

        if heaps:  # one is taken, and for one of the waiters there is none
            fed.send_and_see(heaps)
            run(fed.stream.get)
        close_under_waiters(fed, 3)
        gone = weakref.ref(fed.stream)
        del fed
        gc.collect()
    finally:
        sys.unraisablehook = hook
    assert gone() is None
    assert unraisable == []


@pytest.mark.ours
def test_waiters_of_a_loop_that_pauses_get_their_heaps_when_it_goes_on(fed):
    first, second = asyncio.new_event_loop(), asyncio.new_event_loop()
    try:
        paused = first.create_task(fed.stream.get())
        first.run_until_complete(turns())
        fed.send_and_see(10)

        async def iterate():
            return (await anext(aiter(fed.stream))).cnt

        # The other one must not keep what the first would then wait for in vain.
        assert second.run_until_complete(iterate()) == 0
        assert first.run_until_complete(asyncio.wait_for(paused, DEADLINE)).cnt == 1
    finally:
        first.close()
        second.close()


# spead2 does not tell every loop of the end.
@pytest.mark.ours
def test_loops_in_several_threads_share_the_heaps():
    fed = Fed(heaps=8)
    got: list[list[int]] = [[], [], []]

    def consume(mine: list[int], iterate: bool) -> None:
        async def main():
            if iterate:
                async for heap in fed.stream:
                    mine.append(heap.cnt)  # noqa: PERF401 - each as it comes
                return
            with contextlib.suppress(sp.Stopped):
                while True:
                    mine.append((await fed.stream.get()).cnt)

        run(main)

    threads = [in_thread(lambda i=i: consume(got[i], i != 1)) for i in range(3)]
    for _ in range(50):
        fed.send(40)
        time.sleep(0.0005)  # so that the loops get to wait in between
    fed.queue.stop()
    for thread in threads:
        thread.join(DEADLINE)
        assert not thread.is_alive()
    for mine in got:
        assert mine == sorted(mine)
    assert sorted(sum(got, [])) == list(range(2000))


@pytest.mark.ours
def test_heap_given_up_on_one_loop_is_taken_on_another(fed):
    here: list[int] = []
    there: list[int] = []

    def other() -> None:
        async def main():
            async for heap in fed.stream:
                there.append(heap.cnt)  # noqa: PERF401 - each as it comes

        run(main)

    async def main():
        for cnt in range(200):
            (waiter,) = await fed.waiters(1)
            fed.send()
            await turns(cnt % 5)
            waiter.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                here.append((await waiter).cnt)
            while len(here) + len(there) <= cnt:
                await asyncio.sleep(0.0001)

    thread = in_thread(other)
    run(main)
    fed.queue.stop()
    thread.join(DEADLINE)
    assert not thread.is_alive()
    assert sorted(here + there) == list(range(200))


@pytest.mark.ours
def test_stream_that_nobody_uses_any_more_is_collected():
    async def main():
        fed = Fed()
        (waiter,) = await fed.waiters(1)
        fed.send(3)
        await cnt_of(waiter)
        async for heap in fed.stream:
            if heap.cnt == 2:
                break
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(fed.stream.get(), 0.001)
        gone = weakref.ref(fed.stream)
        del fed, waiter, heap
        await turns()
        gc.collect()
        assert gone() is None

    run(main)


@pytest.mark.ours
def test_descriptor_is_watched_only_while_somebody_waits(fed):
    watched: set[int] = set()

    class Loop(asyncio.SelectorEventLoop):
        def add_reader(self, fd: int, callback: Any, *args: Any) -> None:
            watched.add(fd)
            super().add_reader(fd, callback, *args)

        def remove_reader(self, fd: int) -> bool:
            watched.discard(fd)
            return super().remove_reader(fd)

    async def main():
        fed.send_and_see(2)
        await fed.stream.get()
        await fed.stream.get()
        assert not watched
        waiters = await fed.waiters(3)
        assert watched == {fed.stream.fd}
        fed.send()
        await cnt_of(waiters[0])
        assert watched == {fed.stream.fd}
        waiters[1].cancel()
        waiters[2].cancel()
        await assert_cancelled(*waiters[1:])
        assert not watched

    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(main())


@pytest.mark.ours
def test_waiting_takes_no_turns_of_the_event_loop(fed):
    turns_taken = 0

    class Loop(asyncio.SelectorEventLoop):
        def _run_once(self) -> None:
            nonlocal turns_taken
            turns_taken += 1
            super()._run_once()

    async def main():
        nonlocal turns_taken
        waiters = await fed.waiters(3)
        fed.send()
        await cnt_of(waiters[0])
        turns_taken = 0
        await asyncio.sleep(0.2)
        assert turns_taken < 10
        for waiter in waiters[1:]:
            waiter.cancel()

    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(main())


@pytest.mark.ours
def test_iteration_over_heaps_that_are_there_takes_few_turns_of_the_event_loop():
    turns_taken = 0

    class Loop(asyncio.SelectorEventLoop):
        def _run_once(self) -> None:
            nonlocal turns_taken
            turns_taken += 1
            super()._run_once()

    async def main():
        nonlocal turns_taken
        fed = Fed(heaps=3200)
        fed.send_and_see(3200)
        fed.queue.stop()
        turns_taken = 0
        n = 0
        async for _heap in fed.stream:
            n += 1
        assert n == 3200
        assert turns_taken < 3200 / 4

    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(main())


def test_debug_mode_has_nothing_to_complain_about(caplog):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        caplog.set_level(logging.WARNING, logger="asyncio")

        async def main():
            asyncio.get_running_loop().slow_callback_duration = 5.0  # the machine may be busy
            fed = Fed()
            waiters = await fed.waiters(5)
            waiters[0].cancel()
            fed.send(50)
            in_thread(fed.queue.stop)
            assert await cnts_of(waiters[1:]) == [0, 1, 2, 3]
            async for _heap in fed.stream:
                pass
            fed.stream.stop()

        run(main, debug=True)
        gc.collect()
    assert [record for record in caplog.records if record.name == "asyncio"] == []


@pytest.mark.parametrize("state", ["waiting", "iterating", "closed under"])
def test_interpreter_exits_cleanly(state):
    program = f"""
        import asyncio
        import {PACKAGE} as sp, {PACKAGE}.recv as recv
        import {PACKAGE}.recv.asyncio
        stream = recv.asyncio.Stream(sp.ThreadPool())
        queue = sp.InprocQueue()
        stream.add_inproc_reader(queue)
        async def main():
            task = asyncio.ensure_future(stream.get())
            await asyncio.sleep(0.01)
            if {state == "iterating"}:
                queue.stop()
                async for heap in stream:
                    pass
        if {state == "closed under"}:
            loop = asyncio.new_event_loop()
            task = loop.create_task(stream.get())
            task._log_destroy_pending = False
            loop.run_until_complete(asyncio.sleep(0.01))
            loop.close()
        else:
            asyncio.run(main())
        print("done")
    """
    result = subprocess.run(
        [sys.executable, "-X", "dev", "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=150,  # it may have to be built first
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "done\n"
    if state != "iterating":  # its task ends with Stopped, which nobody asks for
        assert "Traceback" not in result.stderr, result.stderr


def test_module_can_be_imported_both_ways():
    program = f"""
        import {PACKAGE}.recv.asyncio
        from {PACKAGE}.recv import asyncio
        import asyncio as real
        assert asyncio.Stream is {PACKAGE}.recv.asyncio.Stream
        assert real.run and asyncio is not real
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, timeout=150)


def test_is_a_stream_that_can_be_iterated_without_a_loop_too():
    stream = recv_asyncio.Stream(sp.ThreadPool())
    assert isinstance(stream, recv.Stream)
    stream.add_buffer_reader(join([Packet(1, b"abc", 0, 3), Packet(2, b"abc", 0, 3)]))
    assert [heap.cnt for heap in stream] == [1, 2]
