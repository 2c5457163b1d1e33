"""The ledger adds up: packets sent = packets accounted for, at each stage and for each reason.

What is to be expected is counted by whoever sends, made of packets by the plain model, or read from
the driver of the veth pair.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import itertools
import json
import os
import pickle
import socket
import struct
import subprocess
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import model
import numpy as np
import pytest
import target
from bench import build
from target import (
    DEADLINE,
    XDP,
    descriptors,
    drain,
    new_stream,
    next_heap,
    recv,
    sp,
    udp_stream,
    wait_for,
)
from wire import Packet, imm, join, pattern, simple_heap, stop_packet

pytestmark = pytest.mark.ours

if target.OURS:
    from xdplab import Lab

    import xdpspead.recv.asyncio
    from xdpspead import send
    from xdpspead._device import DeviceStats
    from xdpspead.recv import _ledger
    from xdpspead.recv._stats import QUEUE_STATS

ROOT = Path(__file__).resolve().parents[1]
MODES = ("native", "generic")


def one(cnt: int, length: int = 100) -> bytes:
    """Return a heap of one packet."""
    return simple_heap(cnt, length).packets(length)[0].encode()


def lost(ledger: Any) -> dict[str, int]:
    """Return every loss of a ledger by reason."""
    return {loss.reason: loss.count for loss in ledger.losses}


def assert_flows(ledger: Any) -> None:
    """Check that what goes on from a stage is what comes into the next, and nothing vanishes."""
    assert ledger.balanced, f"\n{ledger}"
    packets = [s for s in ledger.stages if s.unit == "packets" and s.entered is not None]
    for stage in ledger.stages:
        if stage.entered is not None:
            waiting = stage.notes.get("waiting", 0)
            joined = stage.notes.get("pcap_joined", 0)
            assert stage.entered == stage.passed + stage.n_lost + waiting + joined, f"\n{ledger}"
        for part in stage.parts:
            if part.entered is not None:
                assert part.entered == part.passed + sum(part.lost.values()), f"\n{ledger}"
        if stage.parts and stage.name == "program":
            assert stage.entered == sum(part.entered for part in stage.parts)
            assert Counter(stage.lost) == sum(
                map(Counter, (p.lost for p in stage.parts)), Counter()
            )
    for before, after in itertools.pairwise(packets):
        assert before.passed == after.entered, f"{before.name} to {after.name}\n{ledger}"


# ------------------------------------------------------------------ packets of every kind

#: Packets that the decoder refuses, each reason as often as it says.
BAD = {
    "empty_datagram": [b""] * 3,
    "bad_magic": [Packet(1, b"x", 0, 1, magic=0).encode()] * 2,
    "bad_flavour": [Packet(1, b"x", 0, 1, item_id_bytes=3).encode()] * 3,
    "truncated_header": [b"S"] * 2 + [Packet(1, b"x", 0, 1, n_items=99).encode()] * 2,
    "missing_item": [Packet(None, b"x", 0, 1).encode()] * 5,
    "short_packet": [Packet(1, b"x", 0, 9, payload_length=9).encode()] * 6,
    "long_packet": [Packet(1, b"x", 0, 1, tail=b"!").encode()] * 7,
    "offset_overflow": [Packet(1, b"abc", 0, 2).encode()] * 8,
}
MAX_SIZE, MAX_HEAP_SIZE = 1100, 10_000
#: What the model does not know: bounds that are set by the user.
BOUNDS = {"truncated_datagram": [one(1, 1200)] * 2, "too_large": [Packet(1, b"x", 0, 20_000)] * 4}

IN_ORDER = model.Config(max_heaps=3, allow_unsized_heaps=False)
ANY_ORDER = replace(IN_ORDER, allow_out_of_order=True)


def in_order() -> tuple[list[Any], Counter[str]]:
    """Return packets for a stream that wants them in order, and what its heaps refuse of them."""
    whole = [p for cnt in range(20) for p in simple_heap(cnt, 100).packets(25)]
    half = simple_heap(50, 100).packets(50)[0]
    others = [
        *[half] * 2,  # behind
        *[Packet(50, b"x", 60, 100)] * 3,  # gap
        *[Packet(777, b"x", 60, 100)] * 2,  # gap: nobody knows it
        *[Packet(50, b"x", 50, 101)] * 4,  # length_mismatch
        *[Packet(50, b"x", 50, 100, address_bits=40)] * 5,  # flavour_mismatch
        *[Packet(50, b"x", 50)] * 6,  # unsized
        *simple_heap(19, 100).packets(25)[1:],  # late
    ]
    evicted = [simple_heap(cnt, 100).packets(50)[0] for cnt in range(60, 65)]
    refused = Counter(behind=1, gap=5, length_mismatch=4, flavour_mismatch=5, unsized=6, late=3)
    return [*whole, *others, *evicted], refused


def any_order() -> tuple[list[Any], Counter[str]]:
    """Return packets for a stream that takes them in any order, and what its heaps refuse."""
    first, second = simple_heap(1, 100).packets(50)
    packets = [
        second,
        *[second] * 2,  # duplicate
        *[Packet(1, bytes(20), 40, 100)] * 3,  # overlap
        first,
    ]
    return packets, Counter(duplicate=2, overlap=3)


KINDS = {"in order": (IN_ORDER, in_order), "any order": (ANY_ORDER, any_order)}


def expected(config: model.Config, packets: list[Any], refused: Counter[str]) -> model.Result:
    """Return what the model makes of packets, and see that each reason is in it as it should."""
    datagrams = [p if isinstance(p, bytes) else p.encode() for p in packets]
    result = model.receive_datagrams(datagrams, config, end=True)
    assert result.window == refused
    return result


def stream_config(config: model.Config) -> dict[str, Any]:
    return {
        "max_heaps": config.max_heaps,
        "allow_unsized_heaps": config.allow_unsized_heaps,
        "allow_out_of_order": config.allow_out_of_order,
        "max_heap_size": MAX_HEAP_SIZE,
    }


def assert_as_expected(ledger: Any, wanted: model.Result, extra: Counter[str]) -> None:
    """Compare the stages behind the sockets with what the model says."""
    assert_flows(ledger)
    assert ledger["parser"].lost == {
        reason: n for reason, n in (wanted.parser + extra).items() if reason != "too_large"
    }
    window = wanted.window + Counter({"too_large": extra["too_large"]})
    assert ledger["window"].lost == dict(window)
    heaps = ledger["heaps"]
    stats = wanted.stats
    evicted, flushed = stats["incomplete_heaps_evicted"], stats["incomplete_heaps_flushed"]
    assert heaps.entered == stats["heaps"]
    assert heaps.notes == {
        "complete": stats["heaps"] - evicted - flushed,
        "evicted": evicted,
        "flushed": flushed,
    }
    assert heaps.passed == len(wanted.heaps)
    assert heaps.n_lost == stats["heaps"] - len(wanted.heaps)


# ------------------------------------------------------------------ transports without AF_XDP


@pytest.mark.parametrize("kind", KINDS)
def test_udp_ledger_has_every_packet_of_every_kind(kind):
    config, make = KINDS[kind]
    packets, refused = make()
    bad = [p for packets in BAD.values() for p in packets]
    sent = [*bad, *packets, *BOUNDS["too_large"], *BOUNDS["truncated_datagram"]]
    stream = new_stream(**stream_config(config))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        stream.add_udp_reader(sock, MAX_SIZE)
        with target.Sender(sock.getsockname()[1]) as sender:
            sender.send(*sent)
        wait_for(lambda: stream.ledger()["parser"].entered == len(sent), f"{stream.ledger()}")
    stream.stop()
    ledger = stream.ledger()
    assert ledger.stages[0].name == "socket"
    assert ledger["socket"].entered == len(sent)
    extra = Counter({reason: len(packets) for reason, packets in BOUNDS.items()})
    assert_as_expected(ledger, expected(config, [*bad, *packets], refused), extra)
    assert ledger["parser"].lost == {reason: len(p) for reason, p in BAD.items()} | {
        "truncated_datagram": 2
    }


def test_udp_ledger_of_a_stream_that_nobody_reads():
    sent = 3000
    stream, sender = udp_stream(heaps=1)
    with sender:
        sender.send(*[one(5, 1000)] * sent)
        wait_for(lambda: stream.stats.worker_blocked, "a full ring")
    stream.stop()
    ledger = stream.ledger()
    assert_flows(ledger)
    socket_ = ledger["socket"]
    # What lay in the socket's buffer when it was closed is nobody's any more.
    assert socket_.entered <= sent
    assert socket_.lost.get("udp_kernel_drops", 0) > 0
    assert ledger.worst.reason == "udp_kernel_drops"


def test_ledger_of_memory_begins_at_the_decoder():
    packets = [p for cnt in range(5) for p in simple_heap(cnt, 100).packets(25)]
    stream = new_stream()
    stream.add_buffer_reader(join([*packets, packets[-1]]))
    assert len(drain(stream)) == 5
    stream.stop()
    ledger = stream.ledger()
    assert [stage.name for stage in ledger.stages] == ["parser", "window", "heaps", "user"]
    assert_flows(ledger)
    assert ledger["parser"].entered == 21
    assert lost(ledger) == {"late": 1}
    assert ledger["user"].passed == 5


def test_bounds_of_a_heap_are_in_the_ledger():
    bound, per_packet = 65_536, 512
    items = [
        Packet(
            1, b"x", i, 1 << 20, tuple(imm(0x1000, i * per_packet + k) for k in range(per_packet))
        )
        for i in range(bound // per_packet + 2)
    ]
    ranges = [Packet(2, b"x", 2 * i, 1 << 20) for i in range(bound + 3)]
    stream = new_stream(allow_out_of_order=True)
    stream.add_buffer_reader(join([*items, *ranges]))
    drain(stream)
    stream.stop()
    ledger = stream.ledger()
    assert_flows(ledger)
    assert ledger["window"].lost == {"too_many_items": 2, "too_many_ranges": 3}


def test_ledger_of_a_queue_of_this_process():
    queue = sp.InprocQueue()
    stream = new_stream()
    stream.add_inproc_reader(queue)
    for cnt in range(7):
        queue.add_packet(one(cnt))
    queue.add_packet(b"junk")
    queue.stop()
    drain(stream)
    stream.stop()
    ledger = stream.ledger()
    assert_flows(ledger)
    assert (ledger["parser"].entered, lost(ledger)) == (8, {"truncated_header": 1})


def test_ledger_of_tcp_tells_what_was_skipped():
    stream = new_stream()
    with socket.create_server(("127.0.0.1", 0)) as server:
        stream.add_tcp_reader(server)
        with socket.create_connection(server.getsockname()) as client:
            client.sendall(one(1) + bytes(16) + one(2))
    assert len(drain(stream)) == 2
    stream.stop()
    ledger = stream.ledger()
    assert_flows(ledger)
    assert ledger["parser"].notes == {"tcp_skipped_bytes": 16}


def capture(frames: list[bytes]) -> bytes:
    """Return a pcap file of Ethernet frames."""
    head = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
    return head + b"".join(struct.pack("<IIII", 0, 0, len(f), len(f)) + f for f in frames)


@pytest.mark.skipif(target.OURS and not sp.features.pcap, reason="built without libpcap")
def test_ledger_of_a_capture_file(tmp_path):
    ends = ("192.0.2.1", "192.0.2.2")
    first, second = fragments(ends, 9000, one(9, 1000))
    frames = [
        *[udp_frame(ends, 9000, one(cnt)) for cnt in range(4)],
        udp_frame(ends, 9001, one(1)),  # filtered
        udp_frame(ends, 9000, b"junk"),
        udp_frame(ends, 9000, one(1), udp_length=50),
        b"\xff" * 12 + b"\x12\x34" + bytes(46),  # not UDP
        first,
        second,
        first,  # of a datagram that is not complete
    ]
    file = tmp_path / "a.pcap"
    file.write_bytes(capture(frames))
    stream = new_stream()
    stream.add_udp_pcap_file_reader(str(file), "not udp port 9001")
    assert [heap.cnt for heap in drain(stream)] == [0, 1, 2, 3, 9]
    stream.stop()
    ledger = stream.ledger()
    assert_flows(ledger)
    reader = ledger["reader"]
    assert reader.entered == len(frames)
    assert reader.lost == {
        "pcap_filtered": 1, "pcap_not_udp": 1, "pcap_fragments": 1, "pcap_bad_length": 1
    }  # fmt: skip
    assert reader.notes == {"pcap_joined": 1}


def test_ledger_of_several_transports_in_one_stream():
    queue = sp.InprocQueue()
    stream, sender = udp_stream()
    stream.add_inproc_reader(queue)
    with sender:
        for cnt in range(3):
            queue.add_packet(one(cnt))
            sender.send(one(10 + cnt), b"junk")
        wait_for(lambda: stream.ledger()["parser"].entered == 9, f"{stream.ledger()}")
    stream.stop()
    ledger = stream.ledger()
    assert ledger.balanced
    assert ledger["socket"].passed == 6
    assert (ledger["reader"].passed, ledger["reader"].notes) == (9, {"uncounted": 3})


def test_asyncio_stream_has_a_ledger():
    async def main() -> Any:
        stream = xdpspead.recv.asyncio.Stream(sp.ThreadPool())
        stream.add_buffer_reader(join([one(1), one(2)]))
        async for _ in stream:
            pass
        stream.stop()
        return stream.ledger()

    ledger = asyncio.run(main())
    assert_flows(ledger)
    assert ledger["user"].passed == 2


def test_heaps_that_wait_for_the_user_are_in_the_ledger():
    stream = new_stream(heaps=2)
    stream.add_buffer_reader(join([one(cnt) for cnt in range(5)]))
    wait_for(lambda: stream.stats.worker_blocked, "a full ring")
    stream.stop()
    user = stream.ledger()["user"]
    assert (user.entered, user.passed, user.lost) == (5, 0, {"heaps_dropped_stop": 3})
    assert user.notes == {"waiting": 2, "worker_blocked": 1}
    next_heap(stream)
    assert stream.ledger()["user"].passed == 1


# ------------------------------------------------------------------ what it says


def snapshot(**counts: int) -> Any:
    """Return statistics with these values, by their names without a prefix."""
    stats = new_stream().stats
    for name, count in counts.items():
        stats[name if name in stats else f"xdpspead.{name}"] = count
    return stats


def ledger_of(
    transport: str = "udp_xdp", *, stopped: bool = True, link: int = 0, **counts: int
) -> Any:
    stats = snapshot(**counts)
    device = DeviceStats("eth1", "ice", {"rx_missed_errors": link}, {"rx_dropped.nic": link})
    stats = recv.StreamStats(stats.config, list(stats.values()), (), (device,))
    readers = [recv.ReaderInfo(transport, interface="eth1", mode="native")]
    return _ledger.make_ledger(stats, readers, stopped=stopped, waiting=0)


def test_every_loss_is_a_statistic_with_advice_and_on_the_page():
    stats = new_stream().stats
    page = (ROOT / "docs/statistics.md").read_text()
    for reason in _ledger.REASONS:
        assert f"xdpspead.{reason.name}" in stats
        assert reason.advice
        assert f"`{reason.name}`" in page


def test_every_statistic_of_ours_has_a_place_in_the_ledger():
    seen = {reason.name for reason in _ledger.REASONS}
    counted = {"udp_packets", "pcap_packets", "pcap_joined", "xdp_matched", "xdp_redirected"}
    informative = {
        "tcp_skipped_bytes",
        "xdp_rx_invalid",
        "xdp_fill_ring_empty",
        "xdp_busy_polls",
        "xdp_other_source",
    }
    ours = {name.removeprefix("xdpspead.") for name in new_stream().stats if "." in name}
    assert ours == seen | counted | informative


def test_the_stage_that_loses_most_is_named_with_what_helps():
    ledger = ledger_of(
        xdp_matched=100, xdp_redirected=90, xdp_no_socket=10, xdp_rx_dropped=20,
        packets=70, gap=60, heaps=3, heaps_discarded=3,
    )  # fmt: skip
    assert ledger.balanced
    assert (ledger.worst.stage, ledger.worst.reason, ledger.worst.count) == (
        "socket", "xdp_rx_dropped", 20
    )  # fmt: skip
    text = str(ledger)
    assert "Packets that came to the program: 100. All are accounted for." in text
    assert "The stage that loses most: socket (xdp_rx_dropped 20)." in text
    assert "larger buffer_size" in text.splitlines()[-1]


def test_gaps_are_named_only_when_nothing_else_is_to_blame():
    counts = {"xdp_matched": 100, "xdp_redirected": 100, "packets": 100, "gap": 60}
    assert ledger_of(**counts).worst.reason == "gap"
    counts |= {"packets": 99, "bad_magic": 1}
    assert ledger_of(**counts).worst.reason == "bad_magic"


@pytest.mark.parametrize(("missed", "reason"), [(1, "rx_missed_errors"), (0, "gap")])
def test_device_is_believed_if_it_explains_what_is_missing(missed, reason):
    counts = {"xdp_matched": 200, "xdp_redirected": 200, "packets": 200, "gap": 99}
    assert ledger_of(link=missed, **counts).worst.reason == reason
    counts["gap"] = 101
    assert ledger_of(link=missed, **counts).worst.reason == "gap"


def test_nothing_lost_is_said_so():
    ledger = ledger_of(xdp_matched=5, xdp_redirected=5, packets=5)
    assert (ledger.worst, ledger.losses) == (None, ())
    assert "Nothing was lost." in str(ledger)


def test_packets_on_their_way_are_told_from_packets_that_vanished():
    counts = {"xdp_matched": 5, "xdp_redirected": 5, "packets": 3}
    running, stopped = ledger_of(stopped=False, **counts), ledger_of(**counts)
    assert running.difference == stopped.difference == 2
    assert not stopped.balanced
    assert "Packets on their way: 2." in str(running)
    assert "Packets NOT accounted for: 2." in str(stopped)


def test_ledger_as_plain_values_is_all_of_it():
    ledger = ledger_of(link=3, xdp_matched=9, xdp_redirected=9, xdp_rx_dropped=2, packets=7)
    plain = json.loads(json.dumps(ledger.to_dict()))
    assert [stage["name"] for stage in plain["stages"]] == [s.name for s in ledger.stages]
    assert plain["balanced"] is True
    assert plain["worst"]["reason"] == "rx_missed_errors"
    assert plain["losses"][1] == {
        "stage": "socket", "reason": "xdp_rx_dropped", "count": 2, "unit": "packets",
        "advice": ledger.losses[1].advice, "consequence": False,
    }  # fmt: skip


def test_unknown_stage():
    with pytest.raises(KeyError):
        ledger_of()["card"]


# ------------------------------------------------------------------ by queue and device


def test_fields_of_a_queue_are_the_statistics_of_af_xdp():
    names = [field.name for field in fields(recv.QueueStats)]
    assert names == ["interface", "queue", "read", *QUEUE_STATS]
    assert {f"xdpspead.xdp_{name}" for name in QUEUE_STATS} <= set(new_stream().stats)


def with_queues(*queues: Any) -> Any:
    stats = snapshot()
    return recv.StreamStats(stats.config, list(stats.values()), queues)


def test_sum_of_snapshots_adds_up_queues():
    one, two = recv.QueueStats("eth1", 0, True, matched=3), recv.QueueStats("eth1", 1, True, 4)
    also = recv.QueueStats("eth1", 1, False, 5, no_socket=5)
    other = recv.QueueStats("eth0", 1, True, 7)
    total = with_queues(two, one) + with_queues(also, other)
    both = recv.QueueStats("eth1", 1, True, matched=9, no_socket=5)
    assert total.queues == (other, one, both)
    total += with_queues(one)
    assert total.queues[1].matched == 6


def test_sum_of_snapshots_counts_an_interface_once():
    stats = snapshot()
    devices = [
        [DeviceStats("eth1", "ice", {"rx_missed_errors": n}, {}) for n in (3, 5)],
        [DeviceStats("eth1", "ice", {}, {}, {"others": n}) for n in (3, 5)],
    ]
    for few, more in devices:
        a, b = (recv.StreamStats(stats.config, list(stats.values()), (), (d,)) for d in (few, more))
        assert (a + b).devices == (b + a).devices == (more,)


@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda stats: pickle.loads(pickle.dumps(stats))]
)
def test_copies_have_queues_and_devices(duplicate):
    queue = recv.QueueStats("eth1", 0, True, matched=3)
    device = DeviceStats("eth1", "ice", {"rx_missed_errors": 1}, {})
    stats = snapshot(heaps=3)
    stats = recv.StreamStats(stats.config, list(stats.values()), (queue,), lambda: (device,))
    other = duplicate(stats)
    assert (other.heaps, other.queues, other.devices) == (3, (queue,), (device,))


# ------------------------------------------------------------------ AF_XDP

xdp = pytest.mark.xdp


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF - total


def ip_frame(
    ends: tuple[str, str], body: bytes, fragment: int = 0, macs: bytes = bytes(12)
) -> bytes:
    source, destination = map(socket.inet_aton, ends)
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(body), 7, fragment, 64, 17, 0)
    sum_ = struct.pack(">H", checksum(head + source + destination))
    return macs + b"\x08\x00" + head[:10] + sum_ + source + destination + body


def udp_frame(
    ends: tuple[str, str],
    port: int,
    data: bytes,
    udp_length: int | None = None,
    macs: bytes = bytes(12),
) -> bytes:
    """Return an Ethernet frame with a UDP datagram, of another length if need be."""
    length = 8 + len(data) if udp_length is None else udp_length
    return ip_frame(ends, struct.pack(">HHHH", 1234, port, length, 0) + data, macs=macs)


def fragments(
    ends: tuple[str, str], port: int, data: bytes, macs: bytes = bytes(12)
) -> list[bytes]:
    """Return the two fragments of a datagram."""
    body = struct.pack(">HHHH", 1234, port, 8 + len(data), 0) + data
    return [
        ip_frame(ends, body[:512], 0x2000, macs),
        ip_frame(ends, body[512:], 512 // 8, macs),
    ]


@contextlib.contextmanager
def quiet_lab(**kwargs: Any) -> Any:
    """Return a laboratory in which nothing is sent but what a test sends, and ARP."""
    with Lab(**kwargs) as lab:
        for end in (lab.tx, lab.rx):
            with end.enter():
                path = Path(f"/proc/sys/net/ipv6/conf/{end.interface}/disable_ipv6")
                path.write_text("1")
        yield lab


def transmit_queues(lab: Any, n: int) -> None:
    """Let the sending end use so many queues; packets of queue i come on queue i."""
    command = ["ethtool", "-L", lab.tx.interface, "tx", str(n)]
    lab.tx.run(command, check=True, timeout=DEADLINE)


def macs(lab: Any) -> bytes:
    return bytes.fromhex(f"{lab.rx.mac}{lab.tx.mac}".replace(":", ""))


def sender_drops(lab: Any) -> int:
    """Return what the sending end of the pair could not hand over."""
    command = ["ip", "-j", "-s", "link", "show", "dev", lab.tx.interface]
    done = lab.tx.run(command, stdout=subprocess.PIPE, check=True, timeout=DEADLINE)
    (link,) = json.loads(done.stdout)
    return int(link["stats64"]["tx"]["dropped"])


def send_on_queue(lab: Any, queue: int, port: int, n: int) -> None:
    """Send `n` packets, heaps of one packet each, through a transmit queue."""
    with lab.tx.enter():
        config = send.UdpXdpConfig(
            endpoints=[(lab.rx.ipv4, port)], interface=lab.tx.interface, queue=queue
        )
        stream = send.UdpXdpStream(sp.ThreadPool(), send.StreamConfig(rate=0), config)
    items = send.ItemGroup()
    items.add_item(0x1000, "a", "", (10,), np.uint8, value=np.zeros(10, np.uint8))
    heap = items.get_heap(descriptors="none", data="all")
    with stream:
        for _ in range(n):
            stream.send_heap(heap)
        assert stream.stats["packets"] == n


@xdp
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_packets_sent_are_packets_accounted_for(mode, kind):
    config, make = KINDS[kind]
    packets, refused = make()
    bad = [p for packets in BAD.values() for p in packets]
    with quiet_lab(queues=2) as lab:
        transmit_queues(lab, 1)
        stream = lab.stream(**stream_config(config))
        port = lab.add_reader(stream, mode=mode, queues=[0], max_size=MAX_SIZE)
        ends, addresses = (lab.tx.ipv4, lab.rx.ipv4), macs(lab)
        neighbour = lab.listen(port + 1)
        sock, other = lab.sender(port), lab.sender(port + 1)
        sent = [*bad, *packets, *BOUNDS["too_large"], *BOUNDS["truncated_datagram"]]
        for packet in sent:
            sock.send(packet if isinstance(packet, bytes) else packet.encode())
            other.send(b"not ours")
        n_fragments, n_bad_length = 10, 7
        # In generic mode all packets of a veth come on queue 0.
        n_unread = 12 if mode == "native" else 0
        for _ in range(n_fragments // 2):
            lab.inject(*fragments(ends, port, one(1, 1000), addresses))
        for length in (0, 7, 30, 149, 151, 1000, 65535):
            lab.inject(udp_frame(ends, port, one(1), length, addresses))
        frame = udp_frame(ends, port, one(1), macs=addresses)
        tags = bytes.fromhex("81000064") * 3  # one more than the program walks over
        lab.inject(*[frame[:12] + tags + frame[12:]] * 5)
        transmit_queues(lab, 2)
        send_on_queue(lab, 1, port, n_unread)
        total = len(sent) + n_fragments + n_bad_length + n_unread
        wait_for(lambda: stream.ledger()["program"].entered == total, f"{total} packets")
        wait_for(lambda: stream.ledger().balanced, f"{stream.ledger()}")
        assert {neighbour.recv(100) for _ in sent} == {b"not ours"}
        stream.stop()
        ledger = stream.ledger()
        extra = Counter({reason: len(packets) for reason, packets in BOUNDS.items()})
        assert_as_expected(ledger, expected(config, [*bad, *packets], refused), extra)
        program = ledger["program"]
        assert (program.entered, program.passed) == (total, len(sent))
        assert Counter(program.lost) == Counter(
            xdp_no_socket=n_unread, xdp_bad_length=n_bad_length, xdp_fragments=n_fragments
        )
        by_queue = [(p.interface, p.queue, p.entered, p.passed) for p in program.parts]
        read = ("veth0", 0, total - n_unread, len(sent))
        assert by_queue == [read, ("veth0", 1, n_unread, 0)][: 1 + (n_unread > 0)]
        (device,) = stream.stats.devices
        assert device.passed["unparsed"] == 5
        n_arp = device.passed["others"] - len(sent)  # nobody has asked for the neighbour's packets
        assert 0 <= n_arp <= 8, f"\n{ledger}"
        # The kernel does not know what to do with the frames of three tags either.
        assert ledger["device"].lost == {"rx_dropped": 5}
        for stage in ("socket", "reader"):
            assert ledger[stage].lost == {}, f"\n{ledger}"


@xdp
def test_totals_are_the_sums_over_queues_at_any_time():
    with quiet_lab(queues=4) as lab:
        stream = lab.stream(heaps=1000)
        port = lab.add_reader(stream, queues=[1, 2])

        def check() -> Any:
            stats = stream.stats
            for name in QUEUE_STATS:
                total = sum(getattr(queue, name) for queue in stats.queues)
                assert stats[f"xdpspead.xdp_{name}"] == total, name
            return stats

        assert [(q.queue, q.read, q.matched) for q in check().queues] == [
            (1, True, 0),
            (2, True, 0),
        ]
        for queue, n in enumerate((5, 7, 11, 13)):
            send_on_queue(lab, queue, port, n)
        wait_for(lambda: check()["xdpspead.xdp_matched"] == 36, "36 packets")
        counts = {q.queue: (q.read, q.matched, q.redirected, q.no_socket) for q in check().queues}
        assert counts == {
            0: (False, 5, 0, 5), 1: (True, 7, 7, 0), 2: (True, 11, 11, 0), 3: (False, 13, 0, 13)
        }  # fmt: skip
        driver = lab.ethtool(lab.rx)
        assert [driver[f"rx_queue_{q}_xdp_redirect"] for q in range(4)] == [0, 7, 11, 0]
        before = check().queues
        stream.stop()
        assert check().queues == before


@xdp
def test_queues_of_a_reader_that_has_ended_stay():
    with quiet_lab() as lab:
        stream = lab.stream()
        port = lab.add_reader(stream)
        lab.sender(port).send(one(1))
        lab.sender(port).send(stop_packet().encode())
        assert [heap.cnt for heap in drain(stream)] == [1]
        lab.wait_detached()
        (queue,) = stream.stats.queues
        assert (queue.interface, queue.queue, queue.matched, queue.redirected) == ("veth0", 0, 2, 2)


@xdp
@pytest.mark.parametrize("mode", MODES)
def test_packets_behind_the_stop_item_are_accounted_for(mode):
    with quiet_lab() as lab:
        stream = lab.stream(heaps=1)
        port = lab.add_reader(stream, mode=mode)
        sock = lab.sender(port)
        for cnt in range(2):
            sock.send(one(cnt))
        wait_for(lambda: stream.stats.worker_blocked, "a full ring")
        # These wait in the socket's ring, more than a batch of them.
        behind = 200
        sock.send(stop_packet().encode())
        for cnt in range(behind):
            sock.send(one(cnt))
        wait_for(lambda: stream.ledger()["program"].entered == 3 + behind, "all packets")
        assert [heap.cnt for heap in drain(stream)] == [0, 1]
        lab.wait_detached()
        stream.stop()
        ledger = stream.ledger()
        assert_flows(ledger)
        assert ledger["program"].entered == 3 + behind
        assert ledger["window"].entered == 3
        after_stop, unread = ledger["parser"].lost["after_stop"], ledger["reader"].lost
        assert 0 < after_stop < 64
        assert unread == {"xdp_unread_drops": behind - after_stop}


@xdp
@pytest.mark.parametrize("mode", MODES)
def test_overload_of_a_stream_that_nobody_reads_is_accounted_for(mode):
    sent = 3000  # more than the ring and the packet memory hold
    with quiet_lab() as lab:
        stream = lab.stream(heaps=1)
        port = lab.add_reader(stream, mode=mode, buffer_size=1 << 20)
        sock = lab.sender(port)
        data = one(5, 1000)
        before = sender_drops(lab)
        for _ in range(sent):
            sock.send(data)
        not_sent = sender_drops(lab) - before
        arrived = sent - not_sent
        wait_for(lambda: stream.ledger()["program"].entered == arrived, f"{arrived} packets")
        stream.stop()
        ledger = stream.ledger()
        assert_flows(ledger)
        assert ledger["program"].entered == ledger["program"].passed == arrived
        assert ledger["socket"].lost["xdp_rx_dropped"] > 0
        assert ledger["reader"].lost["xdp_unread_drops"] > 0
        assert ledger.worst.stage == "socket"
        # Each packet was a heap: what is not lost waits in the ring or was dropped by stop().
        heaps = ledger["user"]
        n_lost = ledger["socket"].n_lost + ledger["reader"].n_lost
        assert heaps.entered == arrived - n_lost
        assert heaps.notes["waiting"] == 1
        assert heaps.lost == {"heaps_dropped_stop": heaps.entered - 1}
        # The driver counts those that the socket refused as dropped by itself; the ledger does not.
        if mode == "native":
            driver = lab.ethtool(lab.rx)
            refused = ledger["socket"].lost["xdp_rx_dropped"]
            assert driver["rx_queue_0_drops"] == refused
            assert ledger["device"].notes["veth0 refused_by_socket"] == refused
        assert ledger["device"].lost == {}


def napi_threads() -> set[int]:
    """Return the kernel's threads that serve devices."""
    found = set()
    for process in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{process}/comm").read_text().startswith("napi/"):
                found.add(int(process))
    return found


def serve_last(lab: Any, core: int) -> None:
    """Let the receiving device be served on one core only, and when nobody else wants that."""
    before = napi_threads()
    switch = f"echo 1 > /sys/class/net/{lab.rx.interface}/threaded"
    command = ["ip", "netns", "exec", lab.rx.name, "sh", "-c", switch]
    lab.rx.run(command, check=True, timeout=DEADLINE)
    threads = napi_threads() - before
    assert threads
    for thread in threads:
        os.sched_setaffinity(thread, {core})
        os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))


def generate(lab: Any, port: int, n: int, core: int) -> int:
    """Send `n` packets from within the kernel, as fast as it can; return how many that were.

    From one core: a veth adds to its counters without a lock, and loses count when several do.
    """
    program, bpf_object = build.generator()
    command = [
        *("taskset", hex(1 << core), program, "--object", bpf_object),
        *("--interface", lab.tx.interface, "--rate", 0, "--dst-mac", lab.rx.mac),
        *("--dst-ip", lab.rx.ipv4, "--src-ip", lab.tx.ipv4, "--port", port),
        *("--count", n, "--seconds", 60, "--batch", 256),
    ]
    done = lab.tx.run([*map(str, command)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return int(json.loads(done.stdout)["sent"])


@xdp
def test_overload_of_the_device_is_accounted_for():
    core = min(os.sched_getaffinity(0))
    with quiet_lab() as lab:
        stream = lab.stream(heaps=1)
        port = lab.add_reader(stream, mode="native", buffer_size=1 << 20)
        serve_last(lab, core)
        sent = 0
        for _ in range(6):  # the packet memory has room for 512, the device's ring for 256
            sent += generate(lab, port, 20_000, core)
            not_taken = lab.ethtool(lab.tx)["tx_queue_0_xdp_xmit_errors"]
            arrived = sent - not_taken
            wait_for(lambda n=arrived: stream.ledger()["program"].entered >= n, "all packets")
        stream.stop()
        ledger = stream.ledger()
        assert_flows(ledger)
        assert (sent, ledger["program"].entered) == (120_000, arrived)
        assert ledger["device"].n_lost == not_taken == sent - arrived, f"\n{ledger}"
        assert ledger["device"].n_lost > 0
        assert ledger["socket"].n_lost > 0


@xdp
def test_device_counts_from_the_beginning_and_stays_known_when_it_has_gone():
    with quiet_lab() as lab:
        junk = bytes.fromhex("ff" * 6 + "02" * 6 + "1234") + bytes(46)  # nobody takes that
        lab.inject(*[junk] * 5)
        stream, port = lab.receiver()
        lab.assert_receives(stream, port, n=2)
        (device,) = stream.stats.devices
        assert (device.interface, device.driver) == ("veth0", "veth")
        assert device.link["rx_dropped"] == 0
        lab.inject(*[junk] * 3)
        wait_for(lambda: stream.stats.devices[0].link["rx_dropped"] == 3, "3 dropped")
        lab.tx.run(["ip", "link", "del", "dev", lab.tx.interface], check=True)
        assert stream.stats.devices[0].link["rx_dropped"] == 3
        stream.stop()
        assert stream.stats.devices[0].link["rx_dropped"] == 3


@xdp
def test_device_is_asked_no_more_after_the_stop():
    with quiet_lab() as lab:
        stream, port = lab.receiver()
        lab.assert_receives(stream, port, n=2)
        before = descriptors()
        stream.stop()
        assert descriptors() < before
        lab.inject(*[bytes.fromhex("ff" * 6 + "02" * 6 + "1234") + bytes(46)] * 3)
        assert stream.stats.devices[0].link["rx_dropped"] == 0


@xdp
def test_statistics_do_not_ask_the_device():
    with quiet_lab() as lab:
        stream, _ = lab.receiver()
        early = stream.stats
        lab.inject(*[bytes.fromhex("ff" * 6 + "02" * 6 + "1234") + bytes(46)] * 3)
        wait_for(lambda: stream.stats.devices[0].link["rx_dropped"] == 3, "3 dropped")
        assert early.devices[0].link["rx_dropped"] == 3  # asked only now,
        lab.inject(bytes.fromhex("ff" * 6 + "02" * 6 + "1234") + bytes(46))
        wait_for(lambda: stream.stats.devices[0].link["rx_dropped"] == 4, "4 dropped")
        assert early.devices[0].link["rx_dropped"] == 3  # and once


def test_names_of_the_xdp_counters_are_those_of_the_tests():
    assert set(XDP) <= set(QUEUE_STATS)
    assert pattern(1, 4)
