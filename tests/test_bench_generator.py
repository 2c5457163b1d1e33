"""The benchmark's packet generator sends valid SPEAD packets, as many and as fast as asked for."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import select
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
from bench import build, network, packets

PORT = 7148
DEADLINE_S = 10.0
ETH_P_ALL = 3
SO_RCVBUFFORCE = 33  # not in Python's socket module
# Room for everything that a test sends, a page or more per packet, however late it is read.
ROOM = 8 << 20
#: The option that sends through a socket, not from within the kernel.
SOCKET = ("--socket",)

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0, reason="packets into a veth pair need root: run the tests with sudo"
)

Send = Callable[..., dict[str, Any]]


class Frame(NamedTuple):
    """One Ethernet frame, taken apart by hand."""

    destination: bytes
    source: bytes
    ip: bytes
    udp: bytes
    items: dict[int, int]
    n_items: int
    payload: bytes


def internet_sum(data: bytes) -> int:
    """Return the one's complement sum of RFC 1071."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def take_apart(data: bytes) -> Frame:
    """Decode a frame that the generator sent; anything unexpected is a failed assertion."""
    assert data[12:14] == b"\x08\x00"
    ip, udp, spead = data[14:34], data[34:42], data[42:]
    assert ip[0] == 0x45
    assert ip[9] == socket.IPPROTO_UDP
    assert internet_sum(ip) == 0xFFFF
    assert struct.unpack_from(">H", ip, 2)[0] == len(data) - 14
    assert struct.unpack_from(">H", udp, 4)[0] == len(data) - 34
    assert spead[:6] == bytes([0x53, 4, 2, 6, 0, 0])
    (n_items,) = struct.unpack_from(">H", spead, 6)
    items = {}
    for (pointer,) in struct.iter_unpack(">Q", spead[8 : 8 + 8 * n_items]):
        items[pointer >> 48] = pointer & (1 << 48) - 1
    payload = spead[8 + 8 * n_items :]
    return Frame(data[:6], data[6:12], ip, udp, items, n_items, payload)


IMMEDIATE = 1 << 15
HEAP_CNT, HEAP_LENGTH, PAYLOAD_OFFSET, PAYLOAD_LENGTH = (IMMEDIATE | i for i in (1, 2, 3, 4))


@pytest.fixture(scope="module")
def programs() -> tuple[Path, Path]:
    """The generator and its BPF program."""
    if shutil.which("clang") is None:
        pytest.skip("clang is missing: apt-get install clang libbpf-dev")
    return build.generator()


@pytest.fixture(scope="module")
def lab() -> Iterator[Any]:
    netlab: ModuleType = network.netlab()
    with netlab.VethLab(mtu=4000, gro=True) as lab:
        yield lab


@pytest.fixture
def send(programs: tuple[Path, Path], lab: Any) -> Send:
    """Run the generator to its end and return what it printed."""
    program, bpf_object = programs

    def run(*options: str | int) -> dict[str, Any]:
        done = lab.tx.run(
            [
                *(program, "--object", bpf_object, "--interface", lab.tx.interface),
                *("--dst-mac", lab.rx.mac, "--dst-ip", lab.rx.ipv4, "--src-ip", lab.tx.ipv4),
                *("--port", str(PORT), *(str(option) for option in options)),
            ],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    return run


@pytest.fixture
def tap(lab: Any) -> Iterator[Callable[[int], list[Frame]]]:
    """Return a function that takes so many UDP frames apart that arrived at the other end."""
    with lab.rx.enter():
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, ROOM)
        sock.bind((lab.rx.interface, 0))

    def take(count: int) -> list[Frame]:
        frames: list[Frame] = []
        deadline = time.monotonic() + DEADLINE_S
        while len(frames) < count:
            left = deadline - time.monotonic()
            assert left > 0, f"{len(frames)} of {count} packets arrived"
            if select.select([sock], [], [], left)[0]:
                data = sock.recv(65536)
                # The interface talks IPv6 and ARP on its own.
                if data[12:14] == b"\x08\x00" and data[23] == socket.IPPROTO_UDP:
                    frames.append(take_apart(data))
        return frames

    with sock:
        yield take


def test_every_packet_has_the_fields_and_payload_asked_for(send: Send, tap: Any, lab: Any) -> None:
    options = ("--payload", 100, "--packets-per-heap", 3, "--first-heap", 70000, "--rate", 5000)
    sent = send("--count", 9, *options)
    assert sent["sent"] == 9
    for number, frame in enumerate(tap(9)):
        index = number % 3
        cnt = 70000 + number // 3
        assert frame.destination.hex(":") == lab.rx.mac
        assert frame.source.hex(":") == lab.tx.mac
        assert socket.inet_ntoa(frame.ip[12:16]) == lab.tx.ipv4
        assert socket.inet_ntoa(frame.ip[16:20]) == lab.rx.ipv4
        assert struct.unpack(">HH", frame.udp[:4]) == (20000, PORT)
        assert frame.udp[6:8] == b"\0\0"
        wanted = {HEAP_CNT: cnt, HEAP_LENGTH: 300, PAYLOAD_OFFSET: 100 * index, PAYLOAD_LENGTH: 100}
        if index == 0:
            wanted[packets.ITEM_ID] = 0
        assert frame.items == wanted
        assert frame.n_items == len(wanted)
        assert frame.payload[:8] == (cnt << 16 | index).to_bytes(8, "big")
        assert frame.payload[8:] == bytes(range(8, 100))


@pytest.mark.parametrize(
    ("payload", "more"), [(8, ()), (1001, ()), (3200, ()), (1001, ("--timestamp",))]
)
def test_udp_checksums_are_valid_when_asked_for(
    send: Send, tap: Any, payload: int, more: tuple[str, ...]
) -> None:
    options = ("--count", 130, "--rate", 50000, "--udp-checksum", "--flows", 2, *more)
    send("--payload", payload, *options)
    for frame in tap(130):
        body = struct.pack(">Q", 0x53040206_00000000 | frame.n_items)
        for item, value in frame.items.items():
            body += struct.pack(">Q", item << 48 | value)
        body += frame.payload
        pseudo = frame.ip[12:20] + struct.pack(">HH", socket.IPPROTO_UDP, 8 + len(body))
        assert frame.udp[6:8] != b"\0\0"
        assert internet_sum(pseudo + frame.udp + body) == 0xFFFF


def test_flows_take_turns_and_have_their_own_ports_and_heaps(send: Send, tap: Any) -> None:
    send("--flows", 3, "--port-step", 2, "--packets-per-heap", 2, "--count", 12, "--rate", 5000)
    seen = [
        (
            *struct.unpack(">HH", frame.udp[:4]),
            frame.items[HEAP_CNT],
            frame.items[PAYLOAD_OFFSET] // 1024,
        )
        for frame in tap(12)
    ]
    assert seen == [
        (20000 + flow, PORT + 2 * flow, 1 + 3 * heap + flow, index)
        for heap in range(2)
        for index in range(2)
        for flow in range(3)
    ]


def test_flows_take_turns_heap_by_heap_when_asked_to(send: Send, tap: Any) -> None:
    options = ("--flows", 3, "--packets-per-heap", 2, "--whole-heaps", "--rate", 5000)
    send("--count", 12, *options)
    seen = [
        (struct.unpack(">HH", frame.udp[:4])[1], frame.items[HEAP_CNT], frame.items[PAYLOAD_OFFSET])
        for frame in tap(12)
    ]
    assert seen == [
        (PORT + flow, 1 + 3 * heap + flow, 1024 * index)
        for heap in range(2)
        for flow in range(3)
        for index in range(2)
    ]


def test_timestamps_are_the_monotonic_time_of_each_packet(send: Send, tap: Any) -> None:
    before = time.monotonic_ns()
    send("--timestamp", "--payload", 20, "--count", 9, "--packets-per-heap", 3, "--rate", 5000)
    after = time.monotonic_ns()
    frames = tap(9)
    times = [int.from_bytes(frame.payload[8:16], "big") for frame in frames]
    assert before < times[0]
    assert times[-1] < after
    assert times == sorted(set(times))
    assert {frame.payload[16:] for frame in frames} == {bytes(range(16, 20))}


@pytest.mark.parametrize("how", [(), SOCKET])
def test_the_rate_is_kept_by_catching_up(send: Send, how: tuple[str, ...]) -> None:
    # A burst of 1000 packets makes up for half a second on another process's account.
    sent = send(*how, "--rate", 2000, "--seconds", 0.5, "--burst", 1000)
    assert sent["sent"] == 1000
    assert sent["slips"] == 0
    assert sent["pps"] == pytest.approx(2000, rel=0.05)


@pytest.mark.parametrize("how", [(), SOCKET])
def test_a_rate_that_is_not_kept_is_reported_as_slips(send: Send, how: tuple[str, ...]) -> None:
    for _ in range(5):
        sent = send(*how, "--rate", 100_000, "--seconds", 0.2, "--burst", 100)
        assert sent["pps"] < 101_000
        assert sent["slips"] or sent["pps"] > 99_000


def test_the_report_counts_what_the_other_end_refused(send: Send, lab: Any) -> None:
    lab.rx.run(["ip", "link", "set", lab.rx.interface, "down"], check=True)
    try:
        sent = send("--count", 100, "--rate", 10_000)
    finally:
        lab.rx.run(["ip", "link", "set", lab.rx.interface, "up"], check=True)
    assert sent["sent"] == 100
    assert sent["dropped"] == 100


@pytest.mark.parametrize("how", [(), SOCKET])
def test_a_signal_ends_it_at_once_with_a_report(
    programs: tuple[Path, Path], lab: Any, how: tuple[str, ...]
) -> None:
    program, bpf_object = programs
    child = lab.tx.popen(
        [
            *(program, "--object", bpf_object, "--interface", lab.tx.interface, "--wait"),
            *("--dst-mac", lab.rx.mac, "--dst-ip", lab.rx.ipv4, "--src-ip", lab.tx.ipv4),
            *(*how, "--rate", "1000", "--seconds", "60"),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout.readline() == "ready\n"
    child.stdin.write("go\n")
    child.stdin.flush()
    time.sleep(0.2)  # so that it is sending; a signal before that ends it as well
    child.terminate()
    output, _ = child.communicate(timeout=5)
    assert child.returncode == 130
    assert json.loads(output)["interrupted"] is True


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--payload", 3201), "--payload: 3201 is more than 3200, which takes --socket"),
        (("--payload", 65001), "--payload: '65001' is not a number from 8 to 65000"),
        (("--socket", "--flows", 2), "--socket goes with neither --flows nor --timestamp"),
        (("--rate", "fast"), "--rate: 'fast' is not a number"),
        (("--port", 65000, "--flows", 1000), "the last of 1000 flows would have port 65999"),
        (("--timestamp", "--payload", 15), "--timestamp: needs a payload of at least 16 bytes"),
        (("--interface", "nowhere"), "interface 'nowhere': No such device"),
        (("--object", "/nowhere.o"), "/nowhere.o: No such file or directory"),
    ],
)
def test_a_bad_option_is_named(
    programs: tuple[Path, Path], lab: Any, options: tuple[str | int, ...], message: str
) -> None:
    program, bpf_object = programs
    done = lab.tx.run(
        [
            *(program, "--object", bpf_object, "--interface", lab.tx.interface),
            *("--dst-mac", lab.rx.mac, "--dst-ip", lab.rx.ipv4, "--src-ip", lab.tx.ipv4),
            *(str(option) for option in options),
        ],
        capture_output=True,
        text=True,
        timeout=10,
    )
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("payload", "how"),
    [(64, ()), (1024, ()), (3200, ()), (64, SOCKET), (1024, SOCKET), (3800, SOCKET)],
)
def test_spead2_receives_every_heap_with_its_content(
    send: Send, lab: Any, payload: int, how: tuple[str, ...]
) -> None:
    spead2 = pytest.importorskip("spead2", reason="spead2 is missing: pip install spead2==4.5.1")
    recv = pytest.importorskip("spead2.recv")
    with lab.rx.enter():
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, ROOM)
        sock.bind((lab.rx.ipv4, PORT))
    stream = recv.Stream(spead2.ThreadPool(), ring_config=recv.RingStreamConfig(heaps=50))
    with sock, contextlib.closing(Stopper(stream)):
        stream.add_udp_reader(sock)
        sent = send(*how, "--payload", payload, "--packets-per-heap", 10, "--count", 200)
        assert sent["sent"] == 200
        heaps: list[Any] = []
        deadline = time.monotonic() + DEADLINE_S
        while len(heaps) < 20:
            left = deadline - time.monotonic()
            assert left > 0, f"{len(heaps)} of 20 heaps arrived"
            select.select([stream.fd], [], [], left)
            heaps.extend(iter(functools.partial(get_or_none, stream, spead2.Empty), None))
    assert [heap.cnt for heap in heaps] == list(range(1, 21))
    for heap in heaps:
        assert packets.check_heap(heap, payload, 10) == ""


class Stopper:
    """Stops a stream when closed, so that a failed test gives its port back."""

    def __init__(self, stream: Any) -> None:
        self.close = stream.stop


def get_or_none(stream: Any, empty: type[Exception]) -> Any:
    """Return the next heap if there is one."""
    try:
        return stream.get_nowait()
    except empty:
        return None


def test_memory_packets_are_those_that_the_generator_sends(send: Send, tap: Any) -> None:
    """Both halves of the benchmark measure the same bytes."""
    send("--payload", 64, "--packets-per-heap", 4, "--count", 8, "--rate", 5000)
    wire = b"".join(
        struct.pack(">Q", 0x53040206_00000000 | frame.n_items)
        + b"".join(struct.pack(">Q", item << 48 | value) for item, value in frame.items.items())
        + frame.payload
        for frame in tap(8)
    )
    assert packets.make(64, 4, 2).buffer.tobytes() == wire
