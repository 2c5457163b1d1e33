"""What becomes of a stream when its interface changes while packets come.

Either the stream goes on, and says in the log what happened; or it ends, with an error that does.
The page docs/interface-changes.md promises which. Traffic flows through all of it, and afterwards
the statistics account for every packet.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import re
import sys
import time

import pytest
from target import (
    DEADLINE,
    LOGGER,
    drain,
    free_port,
    in_thread,
    new_stream,
    next_heap,
    payload,
    recv,
    sp,
    take,
    wait_for,
)
from wire import pattern, simple_heap

pytestmark = [pytest.mark.ours, pytest.mark.xdp]

if not os.environ.get("XDPSPEAD_TEST_PEER"):
    from xdplab import Lab, Load, assert_ledger

    from xdpspead.recv.asyncio import Stream as AsyncStream


@pytest.fixture
def lab():
    with Lab(queues=2) as lab:
        yield lab


def ip(namespace, *args: str, check: bool = True):
    return namespace.run(["ip", *args], check=check, timeout=DEADLINE, capture_output=True)


def channels(namespace, direction: str, n: int) -> bool:
    """Give an interface `n` queues that receive or transmit; return whether the kernel did it."""
    command = ["ethtool", "-L", namespace.interface, direction, str(n)]
    return not namespace.run(command, capture_output=True, timeout=DEADLINE).returncode


def receiver(lab, *, heaps=4096, workers=1, **config):
    """Return a stream whose ring holds all that comes while nobody reads, and its port."""
    stream = lab.stream(heaps=heaps, pool=sp.ThreadPool(workers), allow_out_of_order=True)
    return stream, lab.add_reader(stream, workers=workers, **config)


def one_packet(cnt: int) -> bytes:
    return simple_heap(cnt, Load.LENGTH).packets(Load.LENGTH)[0].encode()


def read_until_the_error(stream):
    """Return the heaps up to the end of a stream, and the error that is there."""
    heaps = []
    try:
        while True:
            heaps.append(next_heap(stream))
    except recv.XdpError as error:
        return heaps, error


def assert_right(stream, heaps):
    """Check heaps, of a stream that has stopped, and that no packet is missing in its account."""
    for heap in heaps:
        assert payload(heap) == pattern(heap.cnt, Load.LENGTH)
    assert len({heap.cnt for heap in heaps}) == len(heaps)
    assert_ledger(stream.stats)
    assert stream.stats.heaps == len(heaps) + stream.stats["xdpspead.heaps_dropped_stop"]
    assert stream.ledger()


# The stream goes on


def down_and_up(lab):
    ip(lab.rx, "link", "set", "dev", lab.rx.interface, "down")
    time.sleep(0.02)  # packets are sent meanwhile, and lost in front of the interface
    ip(lab.rx, "link", "set", "dev", lab.rx.interface, "up")


def carrier_lost_and_found(lab):
    ip(lab.tx, "link", "set", "dev", lab.tx.interface, "down")
    wait_for(lambda: lab.link()["operstate"] != "UP", "no carrier")
    time.sleep(0.02)
    ip(lab.tx, "link", "set", "dev", lab.tx.interface, "up")


def renamed(lab):
    ip(lab.rx, "link", "set", "dev", lab.rx.interface, "name", "capture0")
    lab.rx.interface = "capture0"


def mtu_lowered(lab):
    ip(lab.rx, "link", "set", "dev", lab.rx.interface, "mtu", "1400")


def mtu_raised(lab):
    ip(lab.rx, "link", "set", "dev", lab.rx.interface, "mtu", "9000")


GOES_ON = {
    down_and_up: [
        ("WARNING", r"veth0 is down, .* until it is up again \('ip link set dev veth0 up'\)"),
        ("INFO", r"veth0 is up again, and read as before"),
    ],
    carrier_lost_and_found: [
        ("WARNING", r"veth0 has no carrier, .*"),
        ("INFO", r"veth0 is up again, and read as before"),
    ],
    renamed: [("INFO", r"veth0 is called capture0 now; it is read as before")],
    mtu_lowered: [("INFO", r"veth0: its MTU was 1500 and is 1400 now; it is read as before")],
    mtu_raised: [
        ("WARNING", r"veth0: its MTU was 1500 and is 9000 now, but packets of more than 1770 .*")
    ],
}


@pytest.mark.parametrize(
    ("change", "mode"),
    [(change, "native") for change in GOES_ON] + [(down_and_up, "generic"), (renamed, "generic")],
)
def test_stream_goes_on_and_the_log_says_what_happened(lab, caplog, change, mode):
    stream, port = receiver(lab, mode=mode, workers=2)
    caplog.set_level("INFO", LOGGER)
    with Load(lab, port) as load:
        heaps = take(stream, 100)
        change(lab)
        before = load.sent
        while heaps[-1].cnt < before + 100:  # sent after the change
            heaps.append(next_heap(stream))
    lines = GOES_ON[change]

    def told():
        records = [r for r in caplog.records if not r.getMessage().startswith("reading queues")]
        return [(r.levelname, r.getMessage()) for r in records]

    wait_for(lambda: len(told()) >= len(lines), f"{lines} in the log, there is {told()}")
    for (level, text), (expected_level, expected) in zip(told(), lines, strict=True):
        assert level == expected_level
        assert re.fullmatch(expected, text), text
    stream.stop()
    assert_right(stream, heaps + drain(stream))


def test_another_name_of_another_interface_says_nothing(lab, caplog):
    stream, port = receiver(lab)
    caplog.set_level("INFO", LOGGER)
    ip(lab.rx, "link", "add", "dummy0", "type", "veth", "peer", "name", "dummy9")
    ip(lab.rx, "link", "set", "dev", "dummy0", "name", "dummy1", "mtu", "9000", "up")
    ip(lab.rx, "link", "del", "dev", "dummy1")
    lab.assert_receives(stream, port)
    assert not caplog.records


def test_queue_that_is_read_cannot_be_taken_away(lab):
    stream, port = receiver(lab)
    with Load(lab, port):
        heaps = take(stream, 50)
        assert not channels(lab.rx, "rx", 1)
        heaps += take(stream, 200)
    stream.stop()
    assert_right(stream, heaps + drain(stream))
    wait_for(lambda: channels(lab.rx, "rx", 1), "a queue taken away that nobody reads any more")


def test_queue_that_is_not_read_is_taken_away_and_given_back(lab):
    assert channels(lab.tx, "tx", 1)  # a veth in native mode wants a receiving queue for each
    stream, port = receiver(lab, queues=[0])
    with Load(lab, port):
        heaps = take(stream, 50)
        assert channels(lab.rx, "rx", 1)
        heaps += take(stream, 100)
        assert channels(lab.rx, "rx", 2)
        heaps += take(stream, 100)
    stream.stop()
    assert_right(stream, heaps + drain(stream))


def test_packets_of_a_queue_that_is_new_pass_to_the_kernel(lab):
    assert channels(lab.tx, "tx", 1)
    assert channels(lab.rx, "rx", 1)
    stream, port = receiver(lab, mode="native")
    assert stream.readers[0].queues == (0,)
    assert channels(lab.rx, "rx", 2)
    assert channels(lab.tx, "tx", 2)
    ordinary = lab.listen(port)
    passed = []

    def collect():
        with contextlib.suppress(OSError):  # it is closed with the laboratory
            while True:
                passed.append(ordinary.recv(2000))

    in_thread(collect)
    sent = 0
    while not passed or not stream.stats.packets:  # each socket keeps to a queue
        sock = lab.sender(port)
        for _ in range(10):
            sock.send(one_packet(sent))
            sent += 1
        assert sent < 1000
        wait_for(lambda n=sent: stream.stats.packets + len(passed) == n, f"{sent} packets")
    stream.stop()
    assert_right(stream, drain(stream))


# The stream ends


def deleted(lab):
    ip(lab.rx, "link", "del", "dev", lab.rx.interface)


def deleted_by_its_peer(lab):
    ip(lab.tx, "link", "del", "dev", lab.tx.interface)


def moved(lab):
    target = lab.tx.name
    ip(lab.rx, "link", "set", "dev", lab.rx.interface, "netns", target, "name", "moved0")


def program_taken_off(lab):
    lab.detach_program()


ENDS = {
    deleted: (errno.ENODEV, r"the interface veth0 \(index \d+\) was deleted while"),
    deleted_by_its_peer: (errno.ENODEV, r"the interface veth0 \(index \d+\) was deleted while"),
    moved: (errno.ENODEV, r"the interface veth0 \(index \d+\) was moved to another network name"),
    program_taken_off: (errno.ENOLINK, r"the XDP program \(id \d+\) was taken off the interface v"),
}


@pytest.mark.parametrize(
    ("change", "workers", "mode"),
    [
        (deleted, 1, "native"),
        (deleted, 2, "native"),
        (deleted, 2, "generic"),
        (deleted_by_its_peer, 2, "native"),
        (moved, 1, "generic"),
        (moved, 2, "native"),
        (program_taken_off, 2, "native"),
    ],
)
def test_stream_ends_with_an_error_after_all_finished_heaps(lab, change, workers, mode):
    stream, port = receiver(lab, mode=mode, workers=workers)
    program = lab.program()
    with Load(lab, port):
        heaps = take(stream, 100)
        change(lab)
        rest, error = read_until_the_error(stream)
    number, text = ENDS[change]
    assert error.errno == number
    assert error.step == "receive"
    assert re.match(f"receive: {text}", str(error)), str(error)
    assert f"id {program})" in str(error) or change is not program_taken_off
    assert_right(stream, heaps + rest)
    assert not stream.stats["xdpspead.heaps_dropped_stop"]
    with pytest.raises(recv.XdpError):  # and again, whoever asks
        stream.get()


def test_end_is_in_the_log_too(lab, caplog):
    stream, _ = receiver(lab)
    deleted(lab)
    read_until_the_error(stream)
    wait_for(
        lambda: any(
            r.levelname == "ERROR" and "veth0 (index" in r.getMessage() for r in caplog.records
        ),
        "an error in the log",
    )


def test_iteration_does_not_end_as_if_all_was_well(lab):
    stream, port = receiver(lab)
    lab.sender(port).send(one_packet(1))
    wait_for(lambda: stream.ringbuffer.size() == 1, "a heap")
    deleted(lab)
    heaps = []
    with pytest.raises(recv.XdpError, match="was deleted"):
        heaps.extend(heap.cnt for heap in stream)
    assert heaps == [1]
    with pytest.raises(recv.XdpError, match="was deleted"):
        stream.get_nowait()


def test_merged_streams_tell_the_end_of_one_and_go_on_with_the_others(lab):
    stream, port = receiver(lab)
    queue = sp.InprocQueue()
    other = new_stream()
    other.add_inproc_reader(queue)
    merged = recv.MergedStreams([other, stream])
    lab.sender(port).send(one_packet(1))
    wait_for(lambda: stream.ringbuffer.size() == 1, "a heap")
    deleted(lab)
    pairs = []
    with pytest.raises(recv.XdpError, match="was deleted"):
        pairs.extend(merged)
    queue.add_packet(one_packet(2))
    queue.stop()
    pairs.extend(merged)
    assert [(which, heap.cnt) for which, heap in pairs] == [(stream, 1), (other, 2)]


def test_thread_that_waits_in_get_is_told(lab):
    stream, _ = receiver(lab)
    told = []

    def wait():
        try:
            stream.get()
        except recv.XdpError as error:
            told.append(error.errno)

    threads = [in_thread(wait) for _ in range(3)]
    deleted(lab)
    for thread in threads:
        thread.join(DEADLINE)
    assert told == [errno.ENODEV] * 3


def test_coroutines_that_wait_are_told(lab):
    async def main():
        stream = AsyncStream(sp.ThreadPool(), recv.StreamConfig())
        port = lab.add_reader(stream)
        waiting = [asyncio.ensure_future(stream.get()) for _ in range(3)]
        lab.sender(port).send(one_packet(1))
        assert (await asyncio.wait_for(waiting[0], DEADLINE)).cnt == 1
        deleted(lab)
        results = await asyncio.wait_for(
            asyncio.gather(*waiting[1:], return_exceptions=True), DEADLINE
        )
        assert [result.errno for result in results] == [errno.ENODEV] * 2
        with pytest.raises(recv.XdpError, match="was deleted"):
            async for _ in stream:
                pass
        stream.stop()

    asyncio.run(main())


def test_stream_that_polls_its_device_ends_too(lab):
    stream, port = receiver(lab, mode="native", busy_poll=True)
    with Load(lab, port):
        heaps = take(stream, 50)
        deleted(lab)
        rest, _ = read_until_the_error(stream)
    assert_right(stream, heaps + rest)


def test_heaps_of_a_stream_that_nobody_reads_are_there_before_the_error(lab):
    stream, port = receiver(lab, heaps=4, queues=[0, 1], workers=2)
    with Load(lab, port):
        wait_for(lambda: stream.stats.worker_blocked, "a full ring")
        deleted(lab)
        wait_for(lambda: not lab_has(lab), "the interface gone")
    heaps, _ = read_until_the_error(stream)
    assert len(heaps) > 4
    stream.stop()
    assert_right(stream, heaps)
    assert stream.stats.heaps == len(heaps)


def lab_has(lab) -> bool:
    return ip(lab.rx, "link", "show", "dev", lab.rx.interface, check=False).returncode == 0


@pytest.mark.timing
def test_stop_is_quick_though_nobody_reads_and_the_interface_is_gone(lab):
    stream, port = receiver(lab, heaps=4)
    with Load(lab, port):
        wait_for(lambda: stream.stats.worker_blocked, "a full ring")
        deleted(lab)
    start = time.monotonic()
    stream.stop()
    assert time.monotonic() - start < 1
    assert len(drain_any(stream)) >= 4
    assert_ledger(stream.stats)


def drain_any(stream):
    """Return the heaps up to the end, whatever that is."""
    heaps = []
    try:
        while True:
            heaps.append(next_heap(stream))
    except (sp.Stopped, recv.XdpError):
        return heaps


def test_end_that_the_user_wanted_first_is_no_error(lab):
    stream, _ = receiver(lab)
    stream.stop()
    deleted(lab)
    with pytest.raises(sp.Stopped):
        stream.get()


def test_other_readers_of_the_stream_end_with_it(lab):
    stream, port = receiver(lab)
    other = free_port()
    stream.add_udp_reader(other, bind_hostname="127.0.0.1")
    lab.assert_receives(stream, port)
    deleted(lab)
    _, error = read_until_the_error(stream)
    assert error.errno == errno.ENODEV
    assert_ledger(stream.stats)


def test_other_streams_of_the_process_go_on(lab):
    stream, _ = receiver(lab)
    with Lab() as second:
        survivor, port = receiver(second)
        deleted(lab)
        read_until_the_error(stream)
        second.assert_receives(survivor, port)


def test_all_streams_of_the_interface_are_told(lab):
    streams = [receiver(lab)[0] for _ in range(3)]
    deleted(lab)
    for stream in streams:
        assert read_until_the_error(stream)[1].errno == errno.ENODEV


def test_new_stream_receives_where_the_program_was_taken_off(lab):
    stream, _ = receiver(lab)
    program_taken_off(lab)
    second, _ = receiver(lab)  # which the first may not know yet
    assert read_until_the_error(second)[1].errno == errno.ENOLINK
    assert read_until_the_error(stream)[1].errno == errno.ENOLINK
    third, port = receiver(lab)
    lab.assert_receives(third, port)


def test_new_stream_receives_at_once_when_the_interface_is_there_again(lab):
    stream, _ = receiver(lab)
    moved(lab)
    read_until_the_error(stream)
    lab.tx.run(
        ["ip", "link", "set", "dev", "moved0", "netns", lab.rx.name, "name", lab.rx.interface],
        check=True,
    )
    ip(lab.rx, "link", "set", "dev", lab.rx.interface, "up")
    ip(lab.rx, "addr", "add", f"{lab.rx.ipv4}/24", "dev", lab.rx.interface)
    again, port = receiver(lab)
    lab.assert_receives(again, port)


def test_command_line_says_it_and_fails(lab):
    command = [sys.executable, "-P", "-m", "xdpspead", "receive", "--json"]
    command += ["--interface", lab.rx.interface, f"{lab.rx.ipv4}:7300"]
    process = lab.rx.popen(command, stdout=-1, stderr=-1, text=True)
    assert "receiving" in process.stderr.readline()
    deleted(lab)
    out, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 1
    assert "error: receive: the interface veth0 (index" in err
    assert json.loads(out)["ledger"]
