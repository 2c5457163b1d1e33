"""``python -m xdpspead receive`` ends when it should and prints a ledger that adds up."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import target
from wire import simple_heap, stop_packet

from xdpspead import __main__ as command_line

pytestmark = pytest.mark.ours

if target.OURS:
    from xdplab import Lab

TIMEOUT_S = 30.0
COMMAND = [sys.executable, "-P", "-m", "xdpspead", "receive"]

Start = Callable[..., subprocess.Popen[str]]


def packets(cnt: int) -> list[bytes]:
    return [packet.encode() for packet in simple_heap(cnt, 100).packets(25)]


def send(port: int, *data: bytes, host: str = "127.0.0.1") -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.connect((host, port))
        for packet in data:
            sock.send(packet)


@pytest.fixture
def start() -> Iterator[Start]:
    """Return a function that starts the command and waits until it receives."""
    started = []

    def begin(*arguments: str, popen: Any = subprocess.Popen, **kwargs: Any) -> Any:
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **kwargs}
        process = popen([*COMMAND, *arguments], **options)
        started.append(process)
        line = process.stderr.readline()
        assert line.startswith("receiving: "), line + process.stderr.read()
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )


def test_it_ends_with_the_stream_and_tells_that_nothing_was_lost(start: Start) -> None:
    port = target.free_port()
    process = start(f"127.0.0.1:{port}", "--json")
    send(port, *packets(1), *packets(2), stop_packet().encode())
    output, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0
    report = json.loads(output)
    assert (report["heaps"], report["bytes"]) == (2, 200)
    assert report["readers"][0]["transport"] == "udp"
    assert report["ledger"]["balanced"] is True
    assert report["ledger"]["losses"] == []
    parser = next(s for s in report["ledger"]["stages"] if s["name"] == "parser")
    assert parser["entered"] == 9


def test_loss_is_named_in_the_table_and_in_the_status(start: Start) -> None:
    port = target.free_port()
    process = start(f"127.0.0.1:{port}")
    send(port, *packets(1), b"junk", b"junk", stop_packet().encode())
    output, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 3
    assert "1 heaps with 100 bytes of payload" in output
    assert "Packets that came to the socket: 7. All are accounted for." in output
    assert "The stage that loses most: parser (truncated_header 2)." in output


def test_packets_in_any_order_are_received_on_request(start: Start) -> None:
    port = target.free_port()
    process = start(f"127.0.0.1:{port}", "--out-of-order", "--max-heaps", "2", "--buffer", "1M")
    send(port, *packets(1)[::-1], stop_packet().encode())
    process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0


def test_several_endpoints_are_received(start: Start) -> None:
    ports = [target.free_port() for _ in range(2)]
    process = start(str(ports[0]), f"127.0.0.1:{ports[1]}", "--seconds", "1", "--json")
    for cnt, port in enumerate(ports):
        send(port, *packets(cnt))
    output, _ = process.communicate(timeout=TIMEOUT_S)
    report = json.loads(output)
    assert report["heaps"] == 2
    assert [reader["endpoints"][0][1] for reader in report["readers"]] == ports


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_it_with_the_ledger(start: Start, number: signal.Signals) -> None:
    port = target.free_port()
    process = start(f"127.0.0.1:{port}")
    process.send_signal(number)
    output, errors = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 4  # nothing came
    assert "Packets that came to the socket: 0." in output
    assert "Traceback" not in errors


def test_what_was_under_way_at_the_end_is_no_loss(start: Start) -> None:
    port = target.free_port()
    process = start(f"127.0.0.1:{port}", "--seconds", "1", "--json")
    send(port, *packets(1), packets(2)[0])
    output, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0
    ledger = json.loads(output)["ledger"]
    assert [(loss["reason"], loss["count"]) for loss in ledger["losses"]] == [
        ("heaps_discarded", 1)
    ]


def test_nothing_comes() -> None:
    done = run(f"127.0.0.1:{target.free_port()}", "--seconds", "0.1")
    assert done.returncode == 4
    assert "Nothing was lost." in done.stdout


def capture(path: Path, datagrams: list[bytes]) -> None:
    """Write a capture file of raw IPv4 packets (link type 101)."""
    data = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 101)
    for datagram in datagrams:
        udp = struct.pack(">HHHH", 1, 7148, 8 + len(datagram), 0) + datagram
        ip = struct.pack(">BBHHHBBH8x", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0) + udp
        data += struct.pack("<IIII", 0, 0, len(ip), len(ip)) + ip
    path.write_bytes(data)


@pytest.mark.skipif(target.OURS and not target.sp.features.pcap, reason="built without libpcap")
def test_capture_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "a.pcap"
    capture(file, [*packets(1), *packets(2)])
    done = run("--pcap", str(file), "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["heaps"], report["ledger"]["stages"][0]["name"]) == (2, "reader")
    assert run("--pcap", str(file), "--filter", "port 1 and port 2").returncode == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "what to receive"),
        (["nowhere"], "port"),
        (["::1:8888"], "[ADDRESS]:PORT"),
        ([":8888"], "PORT"),
        (["127.0.0.1:0"], "1 to 65535"),
        (["8888", "--pcap", "x"], "--filter"),
        (["8888", "--filter", "udp"], "--pcap"),
        (["8888", "--queues", "0"], "--interface"),
        (["8888", "--workers", "2"], "--interface"),
        (["8888", "--busy-poll"], "--interface"),
        (["127.0.0.1:8888@10.0.0.1"], "--interface"),
        (["127.0.0.1:8888@"], "source"),
        (["8888", "--interface", "eth1"], "ADDRESS:PORT"),
        (["127.0.0.1:8888", "--interface", "eth1", "--queues", "a"], "--queues"),
        (["8888", "--buffer", "0"], "positive"),
        (["8888", "--max-heaps", "0"], "positive"),
    ],
    ids=repr,
)
def test_wrong_command_line_says_what_is_wrong(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        command_line.main(["receive", *arguments])
    assert caught.value.code == 2
    assert words in capsys.readouterr().err


def test_what_cannot_be_received_is_an_error() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        done = run(f"127.0.0.1:{taken.getsockname()[1]}")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    done = run("127.0.0.1:8888", "--interface", "nope0")
    assert done.returncode == 1
    assert "nope0" in done.stderr or "AF_XDP" in done.stderr
    assert run("--pcap", "/nonexistent.pcap").returncode == 1


def test_progress_is_shown_on_a_terminal(start: Start) -> None:
    port = target.free_port()
    terminal, end = pty.openpty()
    process = start(f"127.0.0.1:{port}", stdout=end)
    os.close(end)
    send(port, *packets(1), b"junk")
    shown = b""
    deadline = time.monotonic() + TIMEOUT_S
    while b"lost: parser 1" not in shown:
        left = deadline - time.monotonic()
        assert left > 0, shown
        if select.select([terminal], [], [], left)[0]:
            shown += os.read(terminal, 4096)
    assert b"Gb/s" in shown
    assert b"1 heaps" in shown
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(OSError):  # the other end is closed
        while True:
            shown += os.read(terminal, 4096)
    assert process.wait(TIMEOUT_S) == 3
    assert b"All are accounted for." in shown
    os.close(terminal)


@pytest.mark.xdp
@pytest.mark.parametrize("mode", ["native", "generic"])
def test_af_xdp_is_read_by_queue(start: Start, mode: str) -> None:
    with Lab(queues=2) as lab:
        port = target.free_port()
        process = start(
            f"{lab.rx.ipv4}:{port}",
            *("--interface", lab.rx.interface, "--mode", mode, "--queues", "0-1", "--json"),
            popen=lab.rx.popen,
        )
        sock = lab.sender(port)
        for packet in [*packets(1), *packets(2), stop_packet().encode()]:
            sock.send(packet)
        output, errors = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 0, errors
        report = json.loads(output)
        assert report["heaps"] == 2
        (reader,) = report["readers"]
        assert (reader["transport"], reader["mode"], reader["queues"]) == ("udp_xdp", mode, [0, 1])
        program = next(s for s in report["ledger"]["stages"] if s["name"] == "program")
        assert (program["entered"], program["passed"]) == (9, 9)
        assert {part["queue"] for part in program["parts"]} == {0, 1}
        lab.wait_detached()


@pytest.mark.xdp
def test_af_xdp_is_read_from_one_source_by_several_workers(start: Start) -> None:
    with Lab(queues=2) as lab:
        port = target.free_port()
        process = start(
            *(f"{lab.rx.ipv4}:{port}@{lab.tx.ipv4}", f"{lab.rx.ipv4}:{port + 1}@192.0.2.77"),
            *("--interface", lab.rx.interface, "--workers", "2", "--json"),
            popen=lab.rx.popen,
        )
        lab.sender(port + 1).send(packets(1)[0])  # from none of its sources
        sock = lab.sender(port)
        for packet in [*packets(2), stop_packet().encode()]:
            sock.send(packet)
        output, _ = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 0  # what was not asked for is no loss
        report = json.loads(output)
        assert report["heaps"] == 1
        (reader,) = report["readers"]
        assert reader["workers"] == 2
        assert reader["endpoints"][0] == [lab.rx.ipv4, port, lab.tx.ipv4]
        program = next(s for s in report["ledger"]["stages"] if s["name"] == "program")
        assert program["notes"]["xdp_other_source"] == 1
