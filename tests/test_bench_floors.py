"""The benchmark's floors do what they are floors of, and its verdicts are those of the figures."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench import network, packets, pcap, table
from bench.results import Results
from scapy.layers.inet import IP, UDP
from scapy.utils import rdpcap

PAYLOAD, PER_HEAP = 1024, 64
RATE, SECONDS = 20_000.0, 0.2

root_only = pytest.mark.skipif(
    os.geteuid() != 0, reason="packets into a veth pair need root: run the tests with sudo"
)


@pytest.fixture(scope="module")
def bench() -> Iterator[network.Bench]:
    cores = sorted(os.sched_getaffinity(0))
    load = network.Load(PAYLOAD, PER_HEAP, True, cores[0], cores[-1])
    with network.netlab().VethLab(gro=True) as lab:
        yield network.Bench(lab, load)


@root_only
@pytest.mark.parametrize(
    ("library", "transport"), [("floor", "udp"), ("floor", "xdp"), ("floor+copy", "xdp")]
)
def test_a_floor_counts_every_packet_and_byte(
    bench: network.Bench, library: str, transport: str
) -> None:
    with bench.receiver(network.Receiver(library, transport)) as running:
        trial = running.trial(RATE, SECONDS)  # which also has it checked
    assert trial.received == trial.sent > PER_HEAP  # fewer than asked for on a busy machine
    headers = trial.sent * (8 + 4 * 8) + -(-trial.sent // PER_HEAP) * 8
    assert trial.stats["bytes"] == trial.sent * PAYLOAD + headers
    assert trial.stats["other"] == 0


@root_only
def test_a_copying_floor_notices_bytes_that_it_did_not_expect(bench: network.Bench) -> None:
    bench.load = bench.load._replace(timestamp=True)
    try:
        with (
            bench.receiver(network.Receiver("floor+copy", "xdp")) as running,
            pytest.raises(network.MeasurementError, match="wrong bytes were copied"),
        ):
            running.trial(RATE, SECONDS)
    finally:
        bench.load = bench.load._replace(timestamp=False)


@root_only
def test_the_udp_floor_takes_packets_that_gro_put_together(bench: network.Bench) -> None:
    with bench.receiver(network.Receiver("floor", "udp")) as running:
        # Thousands at once, which also fit into the socket's buffer.
        trial = running.trial(1e6, 0.004)
    assert trial.received == trial.sent > 0
    assert trial.stats["messages"] < trial.received


def test_a_capture_file_holds_valid_packets_with_heaps_that_go_on(tmp_path: Path) -> None:
    path = tmp_path / "traffic.pcap"
    n_packets = pcap.write(path, 100, 3, 5000)
    frames = rdpcap(str(path))
    assert len(frames) == n_packets >= 12
    for number, frame in enumerate(frames):
        ip = frame[IP]
        given = ip.chksum
        del ip.chksum
        assert IP(bytes(ip)).chksum == given
        assert (frame[UDP].len, ip.len) == (len(frame[UDP]), len(ip))
        stamp = bytes(frame[UDP].payload)[-100:][:8]
        assert int.from_bytes(stamp, "big") == (1 + number // 3) << 16 | number % 3


def test_interleaved_heaps_take_turns_packet_by_packet() -> None:
    traffic = packets.make(64, 2, 4)
    mixed = bytes(packets.interleave(traffic, 64, 2))
    stamps = [
        int.from_bytes(mixed[at - 64 : at - 56], "big")
        for at in np.cumsum([112 if i % 4 < 2 else 104 for i in range(8)])
    ]
    heaps_in_turn = ((1, 0), (2, 0), (1, 1), (2, 1), (3, 0), (4, 0), (3, 1), (4, 1))
    assert stamps == [heap << 16 | index for heap, index in heaps_in_turn]


def verdicts(**figures: float) -> dict[tuple[str, str], Any]:
    results = Results()
    for name, value in figures.items():
        results.add(name, value)
    return {(verdict.path, verdict.against): verdict for verdict in table.verdicts(results)}


@pytest.mark.parametrize(("ours", "word"), [(24.9, "PASS"), (25.1, "FAIL")])
def test_a_time_passes_when_it_is_short_enough(ours: float, word: str) -> None:
    figures = {"xdp/400000/xdpspead/cpu_ns": ours, "udp/400000/spead2/cpu_ns": 100.0}
    (verdict,) = [v for v in verdicts(**figures).values() if v.against == "spead2's UDP"]
    assert verdict.word == word


@pytest.mark.parametrize(("ours", "word"), [(39.0, "PASS"), (41.0, "FAIL")])
def test_a_speed_is_the_inverse_of_a_time(ours: float, word: str) -> None:
    figures = {
        "memory/64/xdpspead/two_cores_wall_ns": ours,
        "memory/64/spead2/two_cores_wall_ns": 100,
    }
    (verdict,) = [v for v in verdicts(**figures).values() if v.against == "spead2"]
    assert (verdict.word, verdict.ratio) == (word, pytest.approx(100 / ours))


def test_a_floor_of_two_parts_is_their_sum_and_needs_both() -> None:
    figures = {"xdp/400000/xdpspead/cpu_ns": 320.0, "xdp/400000/floor/cpu_ns": 100.0}
    path = "AF_XDP, 1 KiB packets, 64 per heap: CPU time per packet at 400 kpps"
    assert verdicts(**figures)[path, "AF_XDP floor + memcpy"].word == "SKIP"
    figures["memory/1024/memcpy/cpu_ns"] = 100.0
    verdict = verdicts(**figures)[path, "AF_XDP floor + memcpy"]
    assert (verdict.ratio, verdict.word) == (pytest.approx(1.6), "PASS")


@pytest.mark.parametrize(("largest", "word"), [(129.0, "PASS"), (131.0, "FAIL")])
def test_a_curve_is_flat_when_its_largest_figure_is_near_its_smallest(
    largest: float, word: str
) -> None:
    figures = {
        f"max_heaps/{n}/xdpspead/cpu_ns": y for n, y in ((4, 110), (64, largest), (256, 100))
    }
    (verdict,) = verdicts(**figures).values()
    assert verdict.word == word
