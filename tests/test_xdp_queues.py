"""One stream over several receive queues, read by one worker or by several.

On a veth pair a packet comes in on the queue of the same number as it was sent on, and a connected
socket keeps to one queue, which the kernel chooses. So the tests make sockets until they have one
for each queue; the driver's counters say which it is.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import importlib
import json
import os
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from target import (
    DEADLINE,
    descriptors,
    drain,
    in_thread,
    new_stream,
    next_heap,
    payload,
    recv,
    refusals,
    settled,
    sp,
    stats_of,
    take,
    wait_for,
    xdp_counts,
)
from wire import pattern, simple_heap, stop_packet

pytestmark = [pytest.mark.ours, pytest.mark.xdp]

if not os.environ.get("XDPSPEAD_TEST_PEER"):
    from xdplab import Lab, assert_ledger

QUEUES = 4
PROBES = 16  # more packets than anything else sends meanwhile


@pytest.fixture
def lab():
    with Lab(queues=QUEUES) as lab:
        yield lab


def receiver(lab, workers, *, heaps=256, stream=None, **config):
    """Return a stream with a thread for each worker, and the port of its AF_XDP reader."""
    if stream is None:
        # Room for what a worker of several queues may see interleaved.
        stream = lab.stream(heaps=heaps, pool=sp.ThreadPool(workers), max_heaps=64)
    return stream, lab.add_reader(stream, workers=workers, **config)


def one_packet(cnt, length=100):
    return simple_heap(cnt, length).packets(length)[0].encode()


def queue_counts(lab):
    stats = lab.ethtool(lab.rx)
    return [stats[f"rx_queue_{q}_xdp_packets"] for q in range(QUEUES)]


class Senders:
    """A socket for each queue of the interface, whose packets come in on that queue."""

    def __init__(self, lab, stream, port):
        self.sent = 0
        self._sockets = {}
        while len(self._sockets) < QUEUES:
            sock = lab.sender(port)
            before = queue_counts(lab)
            for cnt in range(PROBES):
                self._send(sock, one_packet(cnt))
            if stream.readers[0].queues == tuple(range(QUEUES)):
                take(stream, PROBES)
            wait_for(lambda before=before: self._grown(lab, before), "probes that came in")
            self._sockets.setdefault(self._grown(lab, before)[0], sock)
        #: Packets sent so far, each a heap; read already if the stream has all queues.
        self.probes = self.sent

    @staticmethod
    def _grown(lab, before):
        pairs = enumerate(zip(before, queue_counts(lab), strict=True))
        return [queue for queue, (old, new) in pairs if new - old >= PROBES]

    def _send(self, sock, data):
        while True:
            try:
                sock.send(data)
            except ConnectionRefusedError:  # an earlier one came to a port that is closed by now
                continue
            self.sent += 1
            return

    def send(self, queue, data):
        """Send one packet to a queue."""
        self._send(self._sockets[queue], data)

    def send_heap(self, queue, cnt, length=4000):
        for packet in simple_heap(cnt, length).packets(1000):
            self.send(queue, packet.encode())


# All queues into one stream


@pytest.mark.parametrize("mode", ["native", "generic"])
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_heaps_of_every_queue_arrive_byte_for_byte_in_one_stream(lab, workers, mode):
    stream, port = receiver(lab, workers)
    senders = Senders(lab, stream, port)  # in native mode, whose driver counts queue by queue
    if mode == "generic":
        stream.stop()
        lab.wait_detached()
        stream = lab.stream(pool=sp.ThreadPool(workers), max_heaps=64)
        lab.add_reader(stream, workers=workers, mode=mode, endpoints=[(lab.rx.ipv4, port)])
        senders.sent = 0
    (reader,) = stream.readers
    assert (reader.queues, reader.workers, reader.mode) == ((0, 1, 2, 3), workers, mode)
    expected = [[100 * queue + i for i in range(10)] for queue in range(QUEUES)]
    for i in range(10):
        for queue in range(QUEUES):
            senders.send_heap(queue, expected[queue][i])
    heaps = take(stream, 10 * QUEUES)
    for heap in heaps:
        assert payload(heap) == pattern(heap.cnt, 4000)
    for cnts in expected:  # in order queue by queue
        assert [heap.cnt for heap in heaps if heap.cnt in cnts] == cnts
    stats = settled(stream, senders.sent)
    assert (stats.packets, refusals(stats)) == (senders.sent, {})
    assert xdp_counts(stats) == {"matched": senders.sent, "redirected": senders.sent}
    stream.stop()
    lab.wait_detached()
    assert_ledger(stream.stats)


def test_heap_may_come_through_several_queues_with_one_worker(lab):
    stream, port = receiver(lab, 1)
    senders = Senders(lab, stream, port)
    for i, packet in enumerate(simple_heap(1, 4000).packets(1000)):
        senders.send(i % QUEUES, packet.encode())
        settled(stream, senders.sent)
    assert payload(next_heap(stream)) == pattern(1, 4000)


def test_with_workers_only_the_queues_of_one_worker_build_heaps_together(lab):
    stream, port = receiver(lab, 2)
    senders = Senders(lab, stream, port)
    first, second = (packet.encode() for packet in simple_heap(77, 2000).packets(1000))
    for queue, packet in ((0, first), (1, second)):  # the second worker lacks what is before
        senders.send(queue, packet)
        settled(stream, senders.sent)
    assert refusals(stream.stats) == {"gap": 1}
    senders.send(2, second)  # dealt out in turn: 0 and 2, 1 and 3
    assert payload(next_heap(stream)) == pattern(77, 2000)


@pytest.mark.parametrize("queues", [[0], [2], [3, 1], [2, 0, 1]])
def test_chosen_queues_deliver_and_the_others_pass_to_the_kernel(lab, queues):
    workers = min(2, len(queues))
    stream, port = receiver(lab, workers)
    senders = Senders(lab, stream, port)
    stream.stop()
    lab.wait_detached()
    other = lab.listen(port)
    stream = lab.stream(pool=sp.ThreadPool(workers))
    lab.add_reader(stream, workers=workers, queues=queues, endpoints=[(lab.rx.ipv4, port)])
    assert stream.readers[0].queues == tuple(queues)
    for cnt in range(5 * QUEUES):
        senders.send(cnt % QUEUES, one_packet(cnt))
    mine = [cnt for cnt in range(5 * QUEUES) if cnt % QUEUES in queues]
    assert sorted(heap.cnt for heap in take(stream, len(mine))) == mine
    passed = [other.recv(1000)[15] for _ in range(5 * QUEUES - len(mine))]
    assert sorted([*mine, *passed]) == list(range(5 * QUEUES))
    stream.stop()
    counts = {"matched": 20, "redirected": len(mine), "no_socket": 20 - len(mine)}
    assert xdp_counts(stream.stats) == counts
    assert_ledger(stream.stats)


# Workers


def wakeups(thread):
    """Return how often a thread of this process has waited for something."""
    status = Path(f"/proc/self/task/{thread}/status").read_text()
    return int(status.split("voluntary_ctxt_switches:")[1].split()[0])


def test_each_worker_is_a_thread_that_serves_its_own_queues(lab):
    lab.stream()  # the first stream of a process also starts the thread that writes the log
    before = set(os.listdir("/proc/self/task"))
    # Who naps wakes a few times more after its last packet.
    quick = lab.stream(heaps=256, pool=sp.ThreadPool(2), max_added_latency=0)
    stream, port = receiver(lab, 2, stream=quick)
    threads = set(os.listdir("/proc/self/task")) - before
    assert len(threads) == 2
    senders = Senders(lab, stream, port)
    served = []
    for queue in range(QUEUES):
        counts = {thread: wakeups(thread) for thread in threads}
        for cnt in range(20):  # one by one, so that the thread has to wait in between
            senders.send(queue, one_packet(cnt))
            next_heap(stream)
        grown = {thread: wakeups(thread) - counts[thread] for thread in threads}
        thread = max(grown, key=lambda thread: grown[thread])
        assert grown[thread] >= 10, grown
        assert sum(grown.values()) - grown[thread] <= 2, grown
        served.append(thread)
    assert served[0] == served[2] != served[1] == served[3]


@pytest.mark.parametrize("queue", range(QUEUES))
def test_stop_item_on_any_queue_ends_the_whole_stream(lab, queue):
    stream = lab.stream(pool=sp.ThreadPool(4))
    stream, port = receiver(lab, 4, stream=stream)
    senders = Senders(lab, stream, port)
    for other in range(QUEUES):
        senders.send_heap(other, other)
        senders.send(other, simple_heap(10 + other, 2000).packets(1000)[0].encode())
    settled(stream, senders.sent)
    senders.send(queue, stop_packet().encode())
    assert sorted(heap.cnt for heap in drain(stream)) == [0, 1, 2, 3]
    lab.wait_detached()
    stats = stream.stats
    assert stats.incomplete_heaps_flushed == QUEUES
    assert stats.packets == senders.sent
    assert_ledger(stats)


def test_full_ring_holds_up_every_worker_and_no_heap_is_lost(lab):
    stream, port = receiver(lab, 4, heaps=1)
    senders = Senders(lab, stream, port)
    n = 50
    for i in range(n):
        for queue in range(QUEUES):
            senders.send(queue, one_packet(100 * queue + i))
    wait_for(lambda: stream.stats.worker_blocked >= QUEUES, "every worker blocked")
    cnts = [heap.cnt for heap in take(stream, n * QUEUES)]
    for queue in range(QUEUES):
        assert [cnt for cnt in cnts if cnt // 100 == queue] == [100 * queue + i for i in range(n)]
    stats = settled(stream, senders.sent)
    assert xdp_counts(stats) == {"matched": senders.sent, "redirected": senders.sent}


def test_stop_while_workers_are_blocked_is_quick_and_accounts_for_every_packet(lab):
    stream, port = receiver(lab, 4, heaps=1)
    senders = Senders(lab, stream, port)
    for i in range(300):
        for queue in range(QUEUES):
            senders.send(queue, one_packet(i))
    wait_for(lambda: stream.stats.worker_blocked >= QUEUES, "every worker blocked")
    start = time.monotonic()
    stream.stop()
    assert time.monotonic() - start < 2
    lab.wait_detached()
    stats = stream.stats
    assert stats["xdpspead.xdp_matched"] == senders.sent
    assert_ledger(stats)
    dropped = stats["xdpspead.heaps_dropped_stop"]
    assert stats.heaps == senders.probes + len(drain(stream)) + dropped


def kernel_count(lab, name):
    """Return what the kernel of the receiving namespace counts about UDP over IPv4."""
    done = lab.rx.run(["cat", "/proc/net/snmp"], capture_output=True, text=True, check=True)
    names, values = (line.split() for line in done.stdout.splitlines() if line.startswith("Udp:"))
    return int(values[names.index(name)])


def link_drops(lab):
    """Return the packets that found no room between the two ends of the link."""
    command = ["ip", "-j", "-s", "link", "show", "dev", lab.tx.interface]
    done = lab.tx.run(command, capture_output=True, check=True)
    return json.loads(done.stdout)[0]["stats64"]["tx"]["dropped"]


@pytest.mark.parametrize("end", ["stop", "stop item"])
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_end_in_the_middle_of_traffic_accounts_for_every_packet(lab, workers, end):
    stream, port = receiver(lab, workers)
    senders = Senders(lab, stream, port)
    drops_before = link_drops(lab)
    read = Counter()
    enough = threading.Event()

    def send():
        while not enough.wait(0.0002):  # or it would hardly let the reading thread run
            for queue in range(QUEUES):
                senders.send(queue, one_packet(queue, 1000))

    def read_all():
        read.update(heap.cnt for heap in stream)

    threads = [in_thread(send), in_thread(read_all)]
    wait_for(lambda: stream.stats.packets > 2000, "traffic")
    if end == "stop":
        stream.stop()
    else:
        senders.send(1, stop_packet().encode())
        wait_for(lambda: not threads[1].is_alive(), "the end of the stream")
    lab.wait_detached()
    enough.set()
    for thread in threads:
        thread.join(DEADLINE)
    stats = stream.stats
    assert_ledger(stats)
    dropped = stats["xdpspead.heaps_dropped_stop"]
    assert stats.heaps == senders.probes + sum(read.values()) + dropped
    # The rest went to the kernel, where nobody has the port.
    expected = senders.sent - stats["xdpspead.xdp_matched"] - (link_drops(lab) - drops_before)
    wait_for(
        lambda: kernel_count(lab, "NoPorts") == expected,
        f"{expected} packets in the kernel, there are {kernel_count(lab, 'NoPorts')}",
    )


def test_readers_of_all_kinds_share_a_stream_with_workers(lab):
    stream, port = receiver(lab, 2)
    senders = Senders(lab, stream, port)
    stream.add_udp_reader(lab.listen(7777))
    second = lab.add_reader(stream, workers=1)
    lab.sender(7777).send(one_packet(1))
    assert next_heap(stream).cnt == 1
    lab.sender(second).send(one_packet(2))
    assert next_heap(stream).cnt == 2
    senders.send(3, one_packet(3))
    assert next_heap(stream).cnt == 3
    lab.sender(7777).send(stop_packet().encode())
    assert drain(stream) == []
    lab.wait_detached()


def test_two_streams_with_workers_share_the_queues(lab):
    pool = sp.ThreadPool(2)
    streams = []
    for _ in range(2):
        stream = lab.stream(pool=pool)
        streams.append(receiver(lab, 2, stream=stream))
    senders = [Senders(lab, stream, port) for stream, port in streams]
    for _ in range(2):
        for (stream, _), sender in zip(streams, senders, strict=True):
            for queue in range(QUEUES):
                sender.send_heap(queue, queue)
            assert sorted(heap.cnt for heap in take(stream, QUEUES)) == [0, 1, 2, 3]
    streams[0][0].stop()
    senders[1].send_heap(2, 7)
    assert next_heap(streams[1][0]).cnt == 7
    for (stream, _), sender in zip(streams, senders, strict=True):
        stream.stop()
        assert stream.stats.packets == sender.sent
        assert_ledger(stream.stats)
    lab.wait_detached()


def test_receivers_with_workers_come_and_go_and_leave_nothing(lab):
    def one_life():
        stream = new_stream(pool=sp.ThreadPool(2))
        lab.add_reader(stream, workers=2)
        with pytest.raises(recv.XdpError):
            lab.add_reader(stream, workers=2, zero_copy=True)
        stream.stop()

    one_life()
    gc.collect()
    before = descriptors()
    for _ in range(10):
        one_life()
    gc.collect()
    wait_for(lambda: descriptors() <= before, f"no more than {before} open descriptors")
    lab.wait_detached()


def test_reader_that_begins_with_the_stream_has_its_workers(lab):
    stream = lab.stream(pool=sp.ThreadPool(2), explicit_start=True)
    port = lab.add_reader(stream, workers=2)
    assert lab.program() is None
    with lab.rx.enter():
        stream.start()
    senders = Senders(lab, stream, port)
    for queue in range(QUEUES):
        senders.send(queue, one_packet(queue))
    assert sorted(heap.cnt for heap in take(stream, QUEUES)) == [0, 1, 2, 3]


def test_workers_feed_an_asyncio_stream(lab):
    async def main():
        stream = importlib.import_module(f"{recv.__name__}.asyncio").Stream(sp.ThreadPool(2))
        with stream:
            port = lab.add_reader(stream, workers=2)
            await asyncio.to_thread(send_from_many_ports, port)
            cnts = [(await asyncio.wait_for(stream.get(), DEADLINE)).cnt for _ in range(100)]
            assert sorted(cnts) == list(range(100))

    def send_from_many_ports(port):
        for cnt in range(100):
            lab.sender(port).send(one_packet(cnt))

    asyncio.run(main())


def test_forked_child_leaves_the_workers_of_its_parent_alone(lab):
    stream, port = receiver(lab, 2)
    senders = Senders(lab, stream, port)
    ready_out, ready_in = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            stream.stop()
            status = int(stream.stats.packets != 0)
        finally:
            os.close(ready_in)
            os.read(ready_out, 1)  # until the parent is done
            os._exit(status)
    try:
        for queue in range(QUEUES):
            senders.send(queue, one_packet(queue))
        assert sorted(heap.cnt for heap in take(stream, QUEUES)) == [0, 1, 2, 3]
        stream.stop()
        lab.wait_detached()
        again, port = receiver(lab, 2)  # the child's copies do not keep the queues
        lab.assert_receives(again, port)
    finally:
        os.close(ready_in)
        os.close(ready_out)
        assert os.waitpid(child, 0) == (child, 0)
    assert_ledger(stream.stats)


# What cannot be


@pytest.mark.parametrize("workers", [0, 65])
def test_no_worker_and_too_many_are_refused_at_once(workers):
    with pytest.raises(ValueError, match=f"workers cannot be {workers}"):
        recv.UdpXdpConfig(workers=workers)


def config_of(**options):
    return recv.UdpXdpConfig(endpoints=[("192.0.2.2", 8888)], **options)


def test_more_workers_than_chosen_queues_are_refused_at_once():
    stream = new_stream(pool=sp.ThreadPool(4))
    with pytest.raises(ValueError, match=r"workers is 3, more than there are queues to read \(2\)"):
        stream.add_udp_xdp_reader(config_of(workers=3, queues=[0, 1]))
    stream.stop()


def test_more_workers_than_threads_are_refused_at_once():
    stream = new_stream(explicit_start=True)
    with pytest.raises(ValueError, match=r"workers is 2.*threads \(1\).*ThreadPool\(2\)"):
        stream.add_udp_xdp_reader(config_of(workers=2))
    stream.stop()


def test_more_workers_than_the_interface_has_queues(lab):
    stream = lab.stream(pool=sp.ThreadPool(5))
    with pytest.raises(recv.XdpError) as caught:
        lab.add_reader(stream, workers=5)
    assert caught.value.errno == errno.EINVAL
    for word in ("workers is 5", lab.rx.interface, "queues (4)", "ethtool -L"):
        assert word in str(caught.value)
    assert lab.program() is None
    assert stats_of(stream) == {}


def test_fallback_has_one_worker_and_says_so(lab):
    stream = lab.stream(pool=sp.ThreadPool(5))
    port = lab.add_reader(stream, workers=5, fallback=True)
    (reader,) = stream.readers
    assert (reader.transport, reader.workers) == ("udp", 1)
    lab.sender(port).send(one_packet(1))
    assert next_heap(stream).cnt == 1
