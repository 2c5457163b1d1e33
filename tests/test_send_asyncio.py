"""Senders for coroutines: results, room in the queue, cancellation, flushing, ends."""

from __future__ import annotations

import asyncio
import errno
import gc
import socket
import struct
import time
import weakref
from collections.abc import Callable, Coroutine
from typing import Any

import coroutines
import numpy as np
import pytest
import senders
from child import run_python
from senders import (
    HEADER,
    RECEIVERS,
    SendRig,
    TcpSink,
    bounded,
    cnts,
    content,
    drain,
    ending,
    heap_of,
    reference,
    send,
    took,
)
from target import PACKAGE, free_port, payload, sp, stats_of, wait_for
from transports import one_processor

SERIAL, ROUND_ROBIN = send.GroupMode.SERIAL, send.GroupMode.ROUND_ROBIN


def has_coroutines(outlet: type[senders.Outlet]) -> bool:
    return outlet.coroutines


def is_plain(outlet: type[senders.Outlet]) -> bool:
    return outlet.coroutines and outlet.plain


@pytest.fixture(scope="module", params=senders.parameters(has_coroutines))
def outlet(request):
    with request.param() as outlet:
        yield outlet


@pytest.fixture(scope="module")
def pool():
    return senders.sender_pool()


@pytest.fixture
def rig(outlet, pool):
    with SendRig(outlet, pool) as rig:
        yield rig


on_packets = pytest.mark.parametrize("outlet", senders.parameters(is_plain), indirect=True)
on_udp = pytest.mark.parametrize(
    "outlet", senders.parameters(lambda outlet: outlet.name == "udp4"), indirect=True
)


def run(main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Run a coroutine on a loop of its own, which must end before the deadline."""
    with one_processor():
        return coroutines.run(main)


def slow(max_heaps: int = 4) -> dict[str, Any]:
    """Return a configuration in which a heap of 1000 bytes takes 50 ms."""
    size = 1000 + HEADER
    return {"rate": 20.0 * size, "burst_size": size, "max_heaps": max_heaps}


# Heaps and their results


@pytest.mark.parametrize("receiver", RECEIVERS)
def test_every_byte_arrives(rig, receiver):
    if receiver != RECEIVERS[0] and not rig.outlet.mixes:
        receiver = RECEIVERS[0]
    data = [content(size, size) for size in (7, 1000, 20_000, 100_000)]

    async def main() -> list[Any]:
        stream, target = rig.reader(receiver)
        sender = await rig.connect(target)
        for number, value in enumerate(data):
            await bounded(sender.async_send_heap(heap_of(value)))
            if not rig.outlet.lossless:
                wait_for(lambda n=number: stream.stats.heaps > n, f"a heap, {stats_of(stream)}")
        await bounded(sender.async_send_heap(ending()))
        return drain(stream)

    assert [payload(heap) for heap in run(main)] == [value.tobytes() for value in data]


@on_packets
def test_result_is_the_bytes_of_the_packets(rig):
    async def main() -> None:
        sink = rig.sink()
        sender = await rig.connect(sink)
        one = sender.async_send_heap(heap_of(5000))
        assert asyncio.isfuture(one)
        assert await bounded(one) == sum(map(len, sink.rest()))
        group = sender.async_send_heaps([reference(heap_of(n)) for n in (10, 5000)], ROUND_ROBIN)
        assert asyncio.isfuture(group)
        assert await bounded(group) == sum(map(len, sink.rest()))

    run(main)


@on_packets
def test_heaps_are_sent_in_the_order_of_the_calls(rig):
    async def main() -> None:
        sink = rig.sink()
        sender = await rig.connect(sink, max_packet_size=200, max_heaps=8)
        futures = [sender.async_send_heap(heap_of(size)) for size in (400, 8, 600, 8)]
        futures.append(
            sender.async_send_heaps([reference(heap_of(400)), reference(heap_of(400))], ROUND_ROBIN)
        )
        await bounded(asyncio.gather(*futures))
        found = cnts(sink.rest())
        head, tail = [c for c in found if c < 5], [c for c in found if c >= 5]
        assert found == head + tail
        assert head == sorted(head)
        assert list(dict.fromkeys(head)) == [1, 2, 3, 4]
        assert tail == [5, 6] * (len(tail) // 2)

    run(main)


@on_packets
def test_futures_are_done_in_the_order_of_the_calls(rig):
    async def main() -> None:
        sender = await rig.connect(rig.sink(), max_heaps=16)
        done: list[int] = []
        futures = []
        for number in range(10):
            future = sender.async_send_heap(heap_of(10_000 if number % 2 else 8))
            future.add_done_callback(lambda _, number=number: done.append(number))
            futures.append(future)
        await bounded(asyncio.gather(*futures))
        assert done == list(range(10))

    run(main)


def test_loop_runs_while_heaps_are_sent(rig):
    async def main() -> None:
        target = rig.sink() if rig.outlet.plain else rig.reader()[1]
        sender = await rig.connect(target, **slow())
        future = sender.async_send_heap(heap_of(5000))
        turns = 0
        while not future.done():
            turns += 1
            await asyncio.sleep(0.001)
        assert turns > 20

    run(main)


@on_udp
def test_one_heap_many_times_at_once(rig):
    async def main() -> None:
        sink = rig.sink()
        sender = await rig.connect(sink)
        heap = heap_of(100)
        await bounded(asyncio.gather(*(sender.async_send_heap(heap) for _ in range(4))))
        assert cnts(sink.rest()) == [1, 2, 3, 4]

    run(main)


@on_udp
def test_same_arguments_as_those_of_the_calls_that_wait(rig):
    async def main() -> None:
        sink = rig.sink(lanes=2)
        sender = await rig.connect(sink)
        assert sender.num_substreams == 2
        sender.set_cnt_sequence(10, 2)
        for call in (
            sender.async_send_heap(heap_of(8)),
            sender.async_send_heap(heap_of(8), 5, 1, 0.0),
            sender.async_send_heap(heap=heap_of(8), cnt=-1, substream_index=1, rate=-1.0),
            sender.async_send_heaps(heaps=[reference(heap_of(8), cnt=3)], mode=SERIAL),
        ):
            await bounded(call)
        assert [cnts(sink.rest(lane)) for lane in (0, 1)] == [[10, 3], [5, 12]]

    run(main)


@on_udp
@pytest.mark.parametrize(
    "call",
    [
        lambda s: s.async_send_heap(None),
        lambda s: s.async_send_heap(heap_of(8), cnt="x"),
        lambda s: s.async_send_heap(heap_of(8), substream_index=-1),
        lambda s: s.async_send_heaps([heap_of(8)], SERIAL),
        lambda s: s.async_send_heaps([reference(heap_of(8))]),
        lambda s: s.async_send_heaps([reference(heap_of(8))], 1),
    ],
)
def test_wrong_types_are_errors_of_the_call(rig, call):
    async def main() -> None:
        sender = await rig.connect(rig.sink())
        with pytest.raises(TypeError):
            call(sender)

    run(main)


# What goes wrong is told by the future


async def failure(future: Any) -> Any:
    """Return the exception of a future that the call has returned."""
    assert asyncio.isfuture(future)
    (error,) = await bounded(asyncio.gather(future, return_exceptions=True))
    return error


@on_packets
def test_full_queue(rig):
    async def main() -> None:
        sink = rig.sink()
        sender = await rig.connect(sink, **slow(max_heaps=2))
        futures = [sender.async_send_heap(heap_of(3000)) for _ in range(4)]
        for future in futures[2:]:
            error = await failure(future)
            assert type(error) is BlockingIOError
            assert error.errno == errno.EAGAIN
        await bounded(asyncio.gather(*futures[:2]))
        await bounded(sender.async_send_heap(heap_of(8)))
        assert sorted(set(cnts(sink.rest()))) == [1, 2, 3]

    run(main)


@on_packets
def test_group_that_does_not_fit_beside_what_waits(rig):
    async def main() -> None:
        sink = rig.sink()
        sender = await rig.connect(sink, **slow(max_heaps=4))
        first = sender.async_send_heaps([reference(heap_of(3000)) for _ in range(3)], SERIAL)
        error = await failure(
            sender.async_send_heaps([reference(heap_of(8)) for _ in range(2)], SERIAL)
        )
        assert type(error) is BlockingIOError
        await bounded(first)
        assert sorted(set(cnts(sink.rest()))) == [1, 2, 3]

    run(main)


@on_udp
def test_room_is_free_as_soon_as_heaps_are_sent(rig):
    """Not only when the loop has heard of it."""

    async def main() -> None:
        sink = rig.sink()
        sender = await rig.connect(sink, max_heaps=2)
        futures = [sender.async_send_heap(heap_of(8)) for _ in range(2)]
        sink.take(2)
        time.sleep(0.05)
        futures.append(sender.async_send_heap(heap_of(8)))
        await bounded(asyncio.gather(*futures))

    run(main)


@on_udp
def test_substreams_share_the_queue(rig):
    async def main() -> None:
        sender = await rig.connect(rig.sink(lanes=2), **slow(max_heaps=2))
        futures = [sender.async_send_heap(heap_of(3000), substream_index=i % 2) for i in range(3)]
        assert type(await failure(futures[2])) is BlockingIOError
        await bounded(asyncio.gather(*futures[:2]))

    run(main)


@on_packets
def test_calls_that_are_refused(rig):
    async def main() -> None:
        sender = await rig.connect(rig.sink())
        for future in (
            sender.async_send_heap(heap_of(8), substream_index=9),
            sender.async_send_heap(heap_of(8), cnt=2**48),
            sender.async_send_heaps([], SERIAL),
        ):
            error = await failure(future)
            assert isinstance(error, OSError)
            assert error.errno == errno.EINVAL

    run(main)


@on_udp
def test_packet_too_long_for_a_datagram(rig):
    async def main() -> None:
        sink = rig.sink()
        module = senders.send_asyncio()
        sender = module.UdpStream(
            rig.pool, sink.endpoints, send.StreamConfig(max_packet_size=70_000)
        )
        futures = [sender.async_send_heap(heap_of(size)) for size in (100, 69_000, 100)]
        results = await bounded(asyncio.gather(*futures, return_exceptions=True))
        assert (results[0], results[1].errno, results[2]) == (148, errno.EMSGSIZE, 148)
        assert cnts(sink.rest()) == [1, 3]

    run(main)


def test_stopped_queue(pool):
    async def main() -> None:
        queue = sp.InprocQueue()
        sender = senders.send_asyncio().InprocStream(pool, [queue])
        queue.stop()
        for _ in range(2):
            error = await failure(sender.async_send_heap(heap_of(8)))
            assert isinstance(error, OSError)
            assert error.errno == errno.ECANCELED

    run(main)


# Cancelling


@on_packets
def test_cancelled_futures_do_not_stop_the_stream(rig):
    """The heaps are sent or they are not: the stream goes on, and its room comes back."""

    async def main() -> None:
        sink = rig.sink()
        sender = await rig.connect(sink, **slow(max_heaps=2))
        for _ in range(3):
            futures = [sender.async_send_heap(heap_of(1000)) for _ in range(2)]
            for future in futures:
                future.cancel()
            await bounded(sender.async_flush())
            sink.rest()
        sender.set_cnt_sequence(100, 1)
        sent = await bounded(
            asyncio.gather(*(sender.async_send_heap(heap_of(1000)) for _ in range(2)))
        )
        assert sent == [1000 + HEADER] * 2
        assert cnts(sink.rest()) == [100, 101]

    run(main)


@on_udp
def test_task_that_is_cancelled_while_it_sends(rig):
    async def main() -> None:
        sink = rig.sink()
        sender = await rig.connect(sink, **slow())

        async def work() -> None:
            await sender.async_send_heap(heap_of(3000))

        task = asyncio.ensure_future(work())
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await bounded(sender.async_send_heap(heap_of(100))) == 100 + HEADER

    run(main)


@on_udp
def test_payload_of_a_cancelled_send_lives_until_it_is_sent(rig):
    """Whatever is sent of it are its own bytes, although nobody else keeps them."""

    async def main() -> None:
        sink = rig.sink()
        sender = await rig.connect(sink, **slow())
        data = content(4000, 5)
        future = sender.async_send_heap(heap_of(data.copy()))
        future.cancel()
        del future
        for _ in range(20):
            np.full(4000, 0xEE, np.uint8)  # would take the place of freed memory
            gc.collect()
        await bounded(sender.async_flush())
        wanted = data.tobytes()
        packets = [senders.model.decode(packet) for packet in sink.rest()]
        for packet in packets:
            assert packet.payload == wanted[packet.offset : packet.offset + len(packet.payload)]
        # Ours takes nothing back; what the peer does is its own affair.
        assert PACKAGE == "spead2" or sum(len(packet.payload) for packet in packets) == len(wanted)

    run(main)


# Flushing


@on_packets
def test_async_flush_waits_for_all_heaps(rig):
    async def main() -> None:
        sender = await rig.connect(rig.sink(), **slow())
        futures = [sender.async_send_heap(heap_of(1000)) for _ in range(3)]
        assert await bounded(sender.async_flush()) is None
        assert all(future.done() for future in futures)
        assert [await future for future in futures] == [1000 + HEADER] * 3

    run(main)


@pytest.mark.ours
@on_packets
def test_async_flush_after_the_last_future_was_cancelled(rig):
    """spead2 does not wait then."""

    async def main() -> None:
        sink = rig.sink()
        sender = await rig.connect(sink, **slow(max_heaps=2))
        futures = [sender.async_send_heap(heap_of(3000)) for _ in range(2)]
        futures[1].cancel()
        await bounded(sender.async_flush())
        assert futures[0].done()
        futures = [sender.async_send_heap(heap_of(8)) for _ in range(2)]
        assert await bounded(asyncio.gather(*futures)) == [8 + HEADER] * 2

    run(main)


@on_packets
def test_flush_waits_for_all_heaps(rig):
    async def main() -> None:
        sink = rig.sink()
        sender = await rig.connect(sink, **slow())
        futures = [sender.async_send_heap(heap_of(1000)) for _ in range(3)]
        assert sender.flush() is None
        assert cnts(sink.take(3)) == [1, 2, 3]
        assert await bounded(asyncio.gather(*futures)) == [1000 + HEADER] * 3

    run(main)


def test_nothing_to_flush(rig):
    async def main() -> None:
        target = rig.sink() if rig.outlet.plain else rig.reader()[1]
        sender = await rig.connect(target)
        sender.flush()
        await bounded(sender.async_flush())
        await bounded(sender.async_send_heap(heap_of(8)))
        sender.flush()
        await bounded(sender.async_flush())

    run(main)


@on_udp
def test_flush_after_a_failure(rig):
    async def main() -> None:
        module = senders.send_asyncio()
        config = send.StreamConfig(max_packet_size=70_000)
        sender = module.UdpStream(rig.pool, rig.sink().endpoints, config)
        future = sender.async_send_heap(heap_of(69_000))
        await bounded(sender.async_flush())
        assert future.exception().errno == errno.EMSGSIZE

    run(main)


@on_udp
def test_descriptor_of_the_stream(rig):
    async def main() -> None:
        sender = await rig.connect(rig.sink())
        assert isinstance(sender.fd, int)
        assert sender.fd >= 0

    run(main)


# TCP


@pytest.fixture
def listener():
    sink = TcpSink("127.0.0.1")
    yield sink
    sink.close()


def test_connect_returns_a_stream(pool, listener):
    async def main() -> None:
        tcp = senders.send_asyncio().TcpStream
        for arguments, options, source in (
            ((pool, listener.endpoints), {}, "127.0.0.1"),
            ((pool, listener.endpoints, send.StreamConfig(), 65536), {}, "127.0.0.1"),
            ((pool, listener.endpoints), {"interface_address": "127.0.0.9"}, "127.0.0.9"),
        ):
            sender = await tcp.connect(*arguments, **options)
            assert isinstance(sender, tcp)
            listener.accept()
            assert listener.peer[0] == source
            await bounded(sender.async_send_heap(heap_of(8)))
            assert cnts(listener.take(1)) == [1]

    run(main)


def test_connection_refused(pool):
    async def main() -> None:
        endpoint = ("127.0.0.1", free_port())
        with pytest.raises(ConnectionRefusedError) as caught:
            await bounded(senders.send_asyncio().TcpStream.connect(pool, [endpoint]))
        assert caught.value.errno == errno.ECONNREFUSED

    run(main)


@pytest.mark.parametrize("n", [0, 2])
def test_connect_takes_one_endpoint(pool, n):
    async def main() -> None:
        with pytest.raises(ValueError):  # noqa: PT011 (each package has its own text)
            await senders.send_asyncio().TcpStream.connect(pool, [("127.0.0.1", 9)] * n)

    run(main)


def test_constructor_takes_no_endpoints(pool):
    """It would have to wait for the connection."""
    with pytest.raises(TypeError):
        senders.send_asyncio().TcpStream(pool, [("127.0.0.1", 9)])


@pytest.mark.ours
def test_tcp_stream_stays_broken(pool, listener):
    """The futures of spead2 are never done."""

    async def main() -> None:
        sender = await senders.send_asyncio().TcpStream.connect(pool, listener.endpoints)
        listener.accept()
        linger = struct.pack("ii", 1, 0)
        listener.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        listener.connection.close()
        await asyncio.sleep(0.05)
        for _ in range(3):
            error = await failure(sender.async_send_heap(heap_of(100)))
            assert isinstance(error, OSError)
            assert error.errno in (errno.EPIPE, errno.ECONNRESET)

    run(main)


def test_slow_tcp_receiver_does_not_hold_the_loop_back(pool, listener):
    async def main() -> None:
        config = send.StreamConfig(max_packet_size=9000)
        sender = await senders.send_asyncio().TcpStream.connect(pool, listener.endpoints, config)
        listener.accept()
        heap = heap_of(20_000_000)
        wanted = sum(len(packet) for packet in send.PacketGenerator(heap, 1, 9000))
        future = sender.async_send_heap(heap)
        await asyncio.sleep(0.1)
        assert not future.done()
        received = 0
        listener.connection.setblocking(False)
        loop = asyncio.get_running_loop()
        while received < wanted:
            received += len(await bounded(loop.sock_recv(listener.connection, 1 << 20)))
        assert received == await bounded(future)

    run(main)


# Lifetimes


@on_udp
def test_payload_is_released_after_the_send(rig):
    async def main() -> None:
        sender = await rig.connect(rig.sink())
        array = np.zeros(1000, np.uint8)
        watched = weakref.ref(array)
        future = sender.async_send_heap(heap_of(array))
        del array
        await bounded(future)
        gc.collect()
        assert watched() is None

    run(main)


@pytest.mark.timing
@on_udp
def test_heaps_of_a_stream_that_is_dropped_are_still_sent(rig):
    async def main() -> None:
        sink = rig.sink()
        sender = await rig.connect(sink, **slow())
        futures = [sender.async_send_heap(heap_of(1000)) for _ in range(4)]
        usual = took(gc.collect)
        start = time.monotonic()
        del sender
        gc.collect()
        held_up = time.monotonic() - start - usual
        assert held_up < 0.1, "dropping a stream holds the loop up"
        assert cnts(sink.take(4)) == [1, 2, 3, 4]
        del futures

    run(main)


@pytest.mark.ours
@on_udp
def test_futures_of_a_stream_that_is_dropped_are_done(rig):
    """Those of spead2 are pending for ever."""

    async def main() -> None:
        sender = await rig.connect(rig.sink(), **slow())
        futures = [sender.async_send_heap(heap_of(1000)) for _ in range(4)]
        del sender
        gc.collect()
        assert await bounded(asyncio.gather(*futures)) == [1000 + HEADER] * 4

    run(main)


@pytest.mark.ours
def test_stopped_pool_is_an_error():
    """The future of spead2 is never done."""

    async def main() -> None:
        pool = sp.ThreadPool()
        sender = senders.send_asyncio().UdpStream(pool, [("127.0.0.1", 9)], send.StreamConfig())
        pool.stop()
        with pytest.raises((OSError, RuntimeError)):
            await bounded(sender.async_send_heap(heap_of(8)))

    run(main)


@pytest.mark.ours
def test_pool_that_is_stopped_meanwhile():
    async def main() -> None:
        pool = sp.ThreadPool()
        config = send.StreamConfig(rate=1000.0, burst_size=100)
        sender = senders.send_asyncio().UdpStream(pool, [("127.0.0.1", 9)], config)
        futures = [sender.async_send_heap(heap_of(10_000)) for _ in range(2)]
        await asyncio.sleep(0.01)
        pool.stop()
        for future in futures:
            assert isinstance(await failure(future), OSError | RuntimeError)

    run(main)


def test_call_for_a_loop_that_runs_later():
    """As programs do that are older than ``asyncio.run``."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        queue = sp.InprocQueue()
        sender = senders.send_asyncio().InprocStream(sp.ThreadPool(), [queue])
        sent = loop.run_until_complete(asyncio.wait_for(sender.async_send_heap(heap_of(8)), 10))
        assert sent > 8
    finally:
        asyncio.set_event_loop(None)
        loop.close()


@on_udp
def test_packets_too_small_for_a_heap_are_told_by_the_call(rig):
    async def main() -> None:
        sender = await rig.connect(rig.sink(), max_packet_size=48)
        with pytest.raises(ValueError, match="too small"):
            sender.async_send_heap(heap_of(8))

    run(main)


@pytest.mark.ours
@on_udp
def test_call_outside_of_a_loop(rig):
    """spead2 returns a future that is never done."""

    async def connect() -> Any:
        return await rig.connect(rig.sink())

    sender = run(connect)
    with pytest.raises(RuntimeError):
        sender.async_send_heap(heap_of(8))


@on_udp
def test_one_stream_on_loops_that_follow_each_other(rig):
    async def first() -> Any:
        sink = rig.sink()
        sender = await rig.connect(sink)
        await bounded(sender.async_send_heap(heap_of(8)))
        return sender, sink

    sender, sink = run(first)

    async def second() -> None:
        await bounded(sender.async_send_heap(heap_of(8)))

    run(second)
    assert cnts(sink.take(2)) == [1, 2]


@pytest.mark.ours
def test_loop_that_ends_while_heaps_are_under_way():
    output = run_python(
        """
        import asyncio
        from senders import heap_of, send, send_asyncio, sp
        pool = sp.ThreadPool()
        async def main():
            config = send.StreamConfig(rate=20e3, burst_size=1000)
            sender = send_asyncio().UdpStream(pool, [("127.0.0.1", 9)], config)
            for _ in range(4):
                sender.async_send_heap(heap_of(1000))
            return sender
        sender = asyncio.run(main())
        print("over")
        """,
        timeout=30,
    )
    assert output == "over\n"


@on_udp
def test_many_in_flight(rig):
    async def main() -> None:
        sink = rig.sink()
        sender = await rig.connect(sink, max_heaps=16)
        under_way: list[Any] = []
        for _ in range(500):
            if len(under_way) == 8:
                await bounded(under_way.pop(0))
            under_way.append(sender.async_send_heap(heap_of(100)))
        await bounded(asyncio.gather(*under_way))
        assert cnts(sink.take(500)) == list(range(1, 501))

    run(main)
