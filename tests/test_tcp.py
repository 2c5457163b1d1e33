"""Streams that read TCP connections: forms of the call, bytes cut anywhere, losses, ends.

That the framing finds the same packets wherever the bytes are cut is proven by ``tests/fuzz`` and
``tests/c/test_framing.c``; here it goes through a real connection.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import importlib
import random
import socket
import struct
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from target import (
    DEADLINE,
    LOGGER,
    OURS,
    drain,
    free_port,
    has_ipv6,
    in_thread,
    new_stream,
    next_heap,
    payload,
    recv,
    refusals,
    sp,
    take,
    wait_for,
)
from transports import FEW
from wire import Packet, imm, join, pattern, simple_heap, stop_packet

#: Bytes of a connection that are in no packet that could be decoded.
SKIPPED = "xdpspead.tcp_skipped_bytes"


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="no IPv6 address ::1 on this machine")


@pytest.fixture
def stream():
    stream = new_stream()
    yield stream
    stream.stop()


@pytest.fixture
def port():
    return free_port()


def connect(port: int, host: str = "127.0.0.1") -> socket.socket:
    sock = socket.create_connection((host, port), DEADLINE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


@contextlib.contextmanager
def connection(stream: Any, **kwargs: Any) -> Iterator[socket.socket]:
    """A connection to a stream, by the socket form."""
    with socket.create_server(("127.0.0.1", 0)) as acceptor:
        stream.add_tcp_reader(acceptor, **kwargs)
        port = acceptor.getsockname()[1]
    with connect(port) as sock:
        yield sock


def receive_bytes(*pieces: bytes, max_size: int = 65536, **config: Any) -> tuple[list[Any], Any]:
    """Send the pieces one by one, close; return the heaps and the final statistics."""
    stream = new_stream(**config)
    with connection(stream, max_size=max_size) as sock:
        for piece in pieces:
            sock.sendall(piece)
    heaps = drain(stream)
    stream.stop()
    return heaps, stream.stats


def encode(cnt: int, length: int = 100, payload_size: int = 1024) -> bytes:
    return join(simple_heap(cnt, length).packets(payload_size))


def cnts(heaps: list[Any]) -> list[int]:
    return [heap.cnt for heap in heaps]


def proc_row(sock: socket.socket) -> list[str]:
    """Return what /proc/net/tcp says of the receiving end of a connection."""
    local, remote = (f":{name[1]:04X}" for name in (sock.getpeername(), sock.getsockname()))
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        row = line.split()
        if row[1].endswith(local) and row[2].endswith(remote):
            return row
    raise AssertionError("no such connection")


def wait_until_read(sock: socket.socket) -> None:
    """Wait until the receiver has taken all that was sent out of its socket."""

    def nothing_left() -> bool:
        unsent = fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4))
        return not any(unsent) and proc_row(sock)[4].endswith(":00000000")

    wait_for(nothing_left, "all bytes read")


def assert_receives(stream: Any, sock: socket.socket, cnt: int = 1) -> None:
    sock.sendall(encode(cnt, 1000, 300))
    heap = next_heap(stream)
    assert (heap.cnt, payload(heap)) == (cnt, pattern(cnt, 1000))


# Forms of the call


def test_port_form_listens_on_every_address(stream, port):
    stream.add_tcp_reader(port)
    with connect(port, "127.0.0.2") as sock:
        assert_receives(stream, sock)


def test_bind_hostname_chooses_the_address(stream, port):
    stream.add_tcp_reader(port, bind_hostname="127.0.0.2")
    with pytest.raises(ConnectionRefusedError):
        connect(port, "127.0.0.1")
    with connect(port, "127.0.0.2") as sock:
        assert_receives(stream, sock)


@needs_ipv6
def test_ipv6_address(stream):
    port = free_port()
    stream.add_tcp_reader(port, bind_hostname="::1")
    with connect(port, "::1") as sock:
        assert_receives(stream, sock)


def test_positional_arguments(stream, port):
    stream.add_tcp_reader(port, 9200, 0, "127.0.0.1")
    with connect(port) as sock:
        assert_receives(stream, sock)


def test_keyword_arguments(stream, port):
    stream.add_tcp_reader(bind_hostname="127.0.0.1", buffer_size=0, max_size=9200, port=port)
    with connect(port) as sock:
        assert_receives(stream, sock)


def test_socket_form_takes_a_copy_of_the_socket(stream):
    acceptor = socket.create_server(("127.0.0.1", 0))
    port = acceptor.getsockname()[1]
    stream.add_tcp_reader(acceptor)
    acceptor.close()
    with connect(port) as sock:
        assert_receives(stream, sock)


def test_socket_form_by_keyword_with_max_size(stream):
    with socket.create_server(("127.0.0.1", 0)) as acceptor:
        stream.add_tcp_reader(acceptor=acceptor, max_size=500)
        with connect(acceptor.getsockname()[1]) as sock:
            assert_receives(stream, sock)


@needs_ipv6
def test_socket_form_takes_ipv6(stream):
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as acceptor:
        stream.add_tcp_reader(acceptor)
        with connect(acceptor.getsockname()[1], "::1") as sock:
            assert_receives(stream, sock)


def test_socket_form_takes_a_connection_that_waits_with_data(stream):
    with socket.create_server(("127.0.0.1", 0)) as acceptor:
        with connect(acceptor.getsockname()[1]) as sock:
            sock.sendall(encode(1))
        stream.add_tcp_reader(acceptor)
    assert cnts(drain(stream)) == [1]


def test_defaults_are_those_of_the_manual():
    assert recv.Stream.DEFAULT_TCP_MAX_SIZE == 65536
    assert recv.Stream.DEFAULT_TCP_BUFFER_SIZE == 208 * 1024


@pytest.mark.parametrize(
    "args", [(), (-1,), (65536,), ("x",), (1.5,), (None,), (1, -1), (1, 1, -1), (1, 1, 1, 1)]
)
def test_arguments_that_fit_no_form_are_type_errors(stream, args):
    with pytest.raises(TypeError):
        stream.add_tcp_reader(*args)


@pytest.mark.parametrize(
    ("family", "kind"),
    [(socket.AF_INET, socket.SOCK_DGRAM), (socket.AF_UNIX, socket.SOCK_STREAM)],
    ids=["udp", "unix"],
)
def test_sockets_that_are_not_tcp_are_type_errors(stream, family, kind):
    with socket.socket(family, kind) as sock, pytest.raises(TypeError):
        stream.add_tcp_reader(sock)


@pytest.mark.ours
def test_socket_that_does_not_listen_is_refused(stream):
    with (
        socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock,
        pytest.raises(sp.TransportError, match=r"listen\(\)"),
    ):
        stream.add_tcp_reader(sock)


@pytest.mark.ours
def test_max_size_beyond_what_can_be_buffered_is_refused(stream, port):
    with pytest.raises(sp.TransportError, match="max_size"):
        stream.add_tcp_reader(port, max_size=2**32)


def test_port_in_use_is_an_error(stream):
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(RuntimeError) as info:
        stream.add_tcp_reader(taken.getsockname()[1], bind_hostname="127.0.0.1")
    assert "bind" in str(info.value)


@pytest.mark.ours
def test_port_in_use_is_an_os_error_with_its_number(stream):
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(OSError, match="bind") as info,
    ):
        stream.add_tcp_reader(taken.getsockname()[1], bind_hostname="127.0.0.1")
    assert info.value.errno == errno.EADDRINUSE
    assert info.value.step == "bind"


def test_name_that_does_not_resolve_is_an_error(stream):
    with pytest.raises(RuntimeError, match="resolve"):
        stream.add_tcp_reader(7148, bind_hostname="no.such.name.invalid")


def test_port_can_be_used_again_after_a_connection(port):
    for cnt in range(3):
        stream = new_stream()
        stream.add_tcp_reader(port)
        with connect(port) as sock:
            assert_receives(stream, sock, cnt)
            stream.stop()  # this side closes first, and has the TIME_WAIT


def test_stopped_stream_does_not_listen(port):
    stream = new_stream()
    stream.stop()
    stream.add_tcp_reader(port)
    with pytest.raises(ConnectionRefusedError):
        connect(port)


def test_stopped_stream_does_not_mind_a_port_in_use():
    stream = new_stream()
    stream.stop()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        stream.add_tcp_reader(taken.getsockname()[1], bind_hostname="127.0.0.1")


def test_explicit_start_listens_at_once_and_reads_when_started(port):
    stream = new_stream(explicit_start=True)
    stream.add_tcp_reader(port)
    with connect(port) as sock:
        sock.sendall(encode(1))
        with pytest.raises(sp.Empty):
            stream.get_nowait()
        stream.start()
        assert next_heap(stream).cnt == 1
    stream.stop()


def test_explicit_start_says_at_once_that_the_port_is_in_use():
    stream = new_stream(explicit_start=True)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(RuntimeError):
        stream.add_tcp_reader(taken.getsockname()[1], bind_hostname="127.0.0.1")
    stream.stop()


def test_stream_that_is_stopped_before_it_is_started_gives_the_port_back(port):
    stream = new_stream(explicit_start=True)
    stream.add_tcp_reader(port)
    stream.stop()
    with pytest.raises(ConnectionRefusedError):
        connect(port)


@pytest.mark.ours
def test_buffer_size_is_that_of_the_connection(stream, port, caplog):
    stream.add_tcp_reader(port, buffer_size=2**31 - 1)
    assert "socket buffer size" in caplog.text
    stream.add_tcp_reader(free_port(), buffer_size=100_000, bind_hostname="127.0.0.1")
    assert stream.readers[1].memory == 200_000  # the kernel doubles it


@pytest.mark.ours
def test_reader_shows_its_transport_and_endpoint(stream, port):
    stream.add_tcp_reader(port, bind_hostname="127.0.0.1")
    (reader,) = stream.readers
    assert reader.transport == "tcp"
    assert reader.endpoints == (("127.0.0.1", port),)
    assert reader.memory > 0


# Packets in a stream of bytes


def test_packet_that_comes_byte_by_byte(stream):
    with connection(stream) as sock:
        for byte in encode(5):
            sock.sendall(bytes([byte]))
        assert payload(next_heap(stream)) == pattern(5, 100)


def test_packets_cut_at_every_position(stream):
    size = len(encode(0, 20) + encode(0, 3))
    with connection(stream) as sock:
        for cut in range(1, size):
            data = encode(2 * cut, 20) + encode(2 * cut + 1, 3)
            sock.sendall(data[:cut])
            wait_until_read(sock)
            sock.sendall(data[cut:])
            heaps = take(stream, 2)
            assert cnts(heaps) == [2 * cut, 2 * cut + 1]
            assert payload(heaps[0]) == pattern(2 * cut, 20)
            assert payload(heaps[1]) == pattern(2 * cut + 1, 3)


@pytest.mark.parametrize("seed", range(1 if FEW else 4))
def test_many_packets_cut_anywhere(seed):
    rng = random.Random(seed)
    lengths = [rng.choice([0, 1, 7, 300, 5000, 60_000]) for _ in range(400)]
    data = b"".join(
        encode(c, n, rng.choice([100, 1472, 9000, 65_000])) for c, n in enumerate(lengths)
    )
    stream = new_stream(heaps=8)

    def send(sock: socket.socket) -> None:
        position = 0
        while position < len(data):
            size = rng.choice([1, 8, 100, 1448, 65_536, 1_000_000])
            sock.sendall(data[position : position + size])
            position += size
        sock.close()

    with connection(stream) as sock:
        thread = in_thread(lambda: send(sock))
        got = drain(stream)
        thread.join(DEADLINE)
    assert cnts(got) == list(range(400))
    for heap, length in zip(got, lengths, strict=True):
        values = [bytes(memoryview(item)) for item in heap.get_items()]
        assert values == ([pattern(heap.cnt, length)] if length else [])


def test_large_heap():
    length = 5_000_000
    (heap,), stats = receive_bytes(encode(1, length, 60_000))
    assert payload(heap) == pattern(1, length)
    assert stats.packets == -(-length // 60_000)


def test_large_packet_when_max_size_allows_it():
    length = 2_000_000
    (heap,), stats = receive_bytes(encode(1, length, length), max_size=length + 100)
    assert payload(heap) == pattern(1, length)
    assert stats.packets == 1


def test_connection_without_bytes_ends_the_stream():
    heaps, stats = receive_bytes()
    assert heaps == []
    assert stats.packets == 0


def test_incomplete_heap_is_flushed_at_the_end():
    stream = new_stream(ring={"contiguous_only": False})
    with connection(stream) as sock:
        sock.sendall(join(simple_heap(1, 3000).packets(1000)[:2]))
    (heap,) = drain(stream)
    assert isinstance(heap, recv.IncompleteHeap)
    assert heap.received_length == 2000


# Bytes that are no packets


@pytest.mark.parametrize("n", [8, 80, 8000, 800_000])
def test_packets_after_bytes_that_are_none_are_found(n):
    heaps, stats = receive_bytes(b"x" * n + encode(1) + b"y" * n + encode(2))
    assert cnts(heaps) == [1, 2]
    assert stats.packets == 2


def test_packet_that_begins_at_no_multiple_of_eight_is_not_found():
    heaps, stats = receive_bytes(b"x" * 5 + encode(1) + encode(2))
    assert heaps == []
    assert stats.packets == 0


def test_header_without_payload_length_is_skipped():
    bad = Packet(cnt=5, omit_payload_length=True, heap_length=0)
    heaps, _ = receive_bytes(join([bad]) + encode(1))
    assert cnts(heaps) == [1]


@pytest.mark.parametrize(
    "bad",
    [
        Packet(cnt=None, payload=b"odd number of bytes", heap_length=30),
        Packet(cnt=1, payload=b"odd number of bytes", heap_length=30, offset=None),
        Packet(cnt=1, payload=b"odd number of bytes", heap_length=18),
    ],
    ids=["no heap cnt", "no offset", "beyond the heap"],
)
def test_bad_packet_that_tells_its_length_is_skipped_as_a_whole(bad):
    heaps, stats = receive_bytes(join([bad]) + encode(1))
    assert cnts(heaps) == [1]
    assert stats.packets == 1


def test_packet_longer_than_max_size_is_skipped_and_the_next_is_received():
    size = len(encode(1, 2000, 2000))
    heaps, stats = receive_bytes(
        encode(1, 2000, 2000) + encode(2, 2001, 2001) + encode(3), max_size=size
    )
    assert cnts(heaps) == [1, 3]
    assert stats.packets == 2


def test_packet_much_longer_than_every_buffer_is_skipped():
    heaps, _ = receive_bytes(encode(1, 5_000_000, 5_000_000) + encode(2))
    assert cnts(heaps) == [2]


def test_header_longer_than_max_size_is_skipped():
    items = tuple(imm(0x1000, i) for i in range(60_000))
    heaps, _ = receive_bytes(join([Packet(cnt=1, heap_length=0, items=items)]) + encode(2))
    assert cnts(heaps) == [2]


def resident_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS")


def test_packet_of_petabytes_costs_no_memory_and_lasts_until_the_end(stream):
    chunk = b"S" * (1 << 20)
    huge = Packet(cnt=9, payload_length=1 << 47, heap_length=1 << 47)
    with connection(stream) as sock:
        assert_receives(stream, sock)
        before = resident_bytes()
        sock.sendall(huge.encode())
        for _ in range(256):
            sock.sendall(chunk)
        sock.sendall(encode(2))
        wait_until_read(sock)
        assert resident_bytes() - before < 16 << 20
    assert drain(stream) == []


def test_partial_packet_at_the_end_is_dropped():
    data = encode(1) + encode(2)
    for cut in (1, 5, 20, 60, 100):
        heaps, stats = receive_bytes(data[:-cut])
        assert cnts(heaps) == [1]
        assert stats.packets == 1


# Ours: what was lost is counted


def account(data: bytes, packets: bytes, **kwargs: Any) -> dict[str, int]:
    """Return the reasons counted; check that bytes of packets and bytes skipped add up."""
    _, stats = receive_bytes(data, **kwargs)
    assert stats[SKIPPED] == len(data) - len(packets)
    return refusals(stats)


@pytest.mark.ours
def test_skipped_bytes_are_counted_and_their_reason_once_for_each_run():
    good = encode(1) + encode(2)
    data = bytes(800) + encode(1) + bytes(80) + encode(2)
    assert account(data, good) == {"bad_magic": 2}


@pytest.mark.ours
def test_reasons_of_bad_packets_are_told():
    good = encode(1)
    bad = {
        "bad_flavour": Packet(cnt=1, item_id_bytes=3, address_bytes=6, payload=bytes(8)),
        "missing_item": Packet(cnt=None, payload=b"some"),
        "offset_overflow": Packet(cnt=1, payload=b"some", heap_length=3),
        "truncated_datagram": simple_heap(1, 70_000).packets(70_000)[0],
    }
    for reason, packet in bad.items():
        assert account(packet.encode() + good, good) == {reason: 1}


@pytest.mark.ours
@pytest.mark.parametrize(
    ("left", "reason"),
    [
        (1, "truncated_header"),
        (9, "truncated_header"),
        (47, "truncated_header"),
        (48, "short_packet"),
        (147, "short_packet"),
    ],
)
def test_partial_packet_at_the_end_is_counted(left, reason):
    good = encode(1)
    assert len(good) == 148
    assert account(good + encode(2)[:left], good) == {reason: 1}


@pytest.mark.ours
def test_rest_of_a_long_packet_at_the_end_is_counted_with_it():
    good = encode(1)
    assert account(good + encode(2, 5000, 5000)[:3000], good, max_size=1000) == {
        "truncated_datagram": 1
    }


@pytest.mark.ours
def test_skipped_bytes_show_while_the_connection_lasts(stream):
    with connection(stream) as sock:
        sock.sendall(bytes(80))
        wait_for(lambda: stream.stats[SKIPPED] == 80, "80 bytes counted")


@pytest.mark.ours
def test_bytes_of_packets_that_were_used_are_not_skipped():
    data = join(packet for cnt in range(100) for packet in simple_heap(cnt, 5000).packets(999))
    assert account(data, data) == {}


# Ends


def test_stop_item_ends_the_stream_and_the_connection(stream):
    with connection(stream) as sock:
        sock.sendall(encode(1) + stop_packet().encode())
        assert cnts(drain(stream)) == [1]
        sock.settimeout(DEADLINE)
        assert sock.recv(1) == b""


def test_stop_item_may_be_ignored():
    heaps, _ = receive_bytes(
        encode(1) + stop_packet().encode() + encode(2), stop_on_stop_item=False
    )
    assert cnts(heaps) == [1, 99, 2]


@pytest.mark.ours
def test_reset_ends_the_stream_with_a_warning(stream, caplog):
    with caplog.at_level("WARNING", logger=LOGGER):
        with connection(stream) as sock:
            assert_receives(stream, sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert drain(stream) == []
        wait_for(lambda: "reset" in caplog.text, "a warning")


def test_close_ends_the_stream_without_a_warning(stream, caplog):
    with caplog.at_level("WARNING", logger=LOGGER):
        with connection(stream) as sock:
            assert_receives(stream, sock)
        assert drain(stream) == []
        stream.stop()
    assert caplog.text == ""


def test_half_closed_connection_ends_the_stream(stream):
    with connection(stream) as sock:
        sock.sendall(encode(1))
        sock.shutdown(socket.SHUT_WR)
        assert cnts(drain(stream)) == [1]


def test_second_connection_is_refused(stream, port):
    stream.add_tcp_reader(port)
    with connect(port) as sock:
        assert_receives(stream, sock)
        with pytest.raises(ConnectionRefusedError):
            connect(port)
        assert_receives(stream, sock, 2)


def test_stop_without_a_connection_closes_the_port(stream, port):
    stream.add_tcp_reader(port)
    stream.stop()
    with pytest.raises(ConnectionRefusedError):
        connect(port)


def test_stop_closes_the_connection(stream):
    with connection(stream) as sock:
        assert_receives(stream, sock)
        stream.stop()
        sock.settimeout(DEADLINE)
        assert sock.recv(1) == b""


def test_stop_while_the_sender_is_blocked(port):
    stream = new_stream(heaps=1)
    stream.add_tcp_reader(port)
    with connect(port) as sock:

        def send() -> None:
            with contextlib.suppress(OSError):
                while True:
                    sock.sendall(encode(1, 10_000))

        thread = in_thread(send)
        wait_for(lambda: stream.stats.worker_blocked, "a full ring")
        stream.stop()
        thread.join(DEADLINE)
        assert not thread.is_alive()


@pytest.mark.ours
def test_vanished_sender_is_looked_for(stream):
    with connection(stream) as sock:
        assert_receives(stream, sock)
        assert proc_row(sock)[5].startswith("02:")  # the keepalive timer runs


# Back-pressure


def test_full_ring_holds_the_sender_back_and_nothing_is_lost():
    n, length = 100, 60_000  # 6 MB: more than all buffers between
    stream = new_stream(heaps=2)
    data = b"".join(encode(cnt, length) for cnt in range(n))
    with connection(stream) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        thread = in_thread(lambda: (sock.sendall(data), sock.close()))
        wait_for(lambda: stream.stats.worker_blocked, "a full ring")
        assert thread.is_alive()
        heaps = drain(stream)
        thread.join(DEADLINE)
    assert cnts(heaps) == list(range(n))
    assert all(payload(heap) == pattern(heap.cnt, length) for heap in heaps)
    assert stream.stats.packets == n * -(-length // 1024)


def test_blocked_stream_does_not_hold_up_another_of_its_thread():
    pool = sp.ThreadPool(1 if OURS else 2)  # a worker of the peer waits
    unread, other = new_stream(heaps=1, pool=pool), new_stream(pool=pool)
    with connection(unread) as first, connection(other) as second:
        first.sendall(b"".join(encode(cnt) for cnt in range(10)))
        wait_for(lambda: unread.stats.worker_blocked, "a full ring")
        assert_receives(other, second)
    unread.stop()
    other.stop()


# spead2's sender


@pytest.mark.parametrize("length", [1, 1000, 3_000_001])
def test_heaps_of_the_sender_of_spead2(length):
    np = pytest.importorskip("numpy")
    spead2 = pytest.importorskip("spead2", reason="spead2, the peer, is not installed")
    send = importlib.import_module("spead2.send")
    stream = new_stream()
    value = np.frombuffer(pattern(1, length), np.uint8)
    with socket.create_server(("127.0.0.1", 0)) as acceptor:
        stream.add_tcp_reader(acceptor)
        endpoint = acceptor.getsockname()
    sender = send.TcpStream(
        spead2.ThreadPool(), [endpoint], send.StreamConfig(max_packet_size=1473)
    )
    group = send.ItemGroup()
    group.add_item(0x1000, "x", "bytes", (length,), np.uint8, value=value)
    for _ in range(3):
        sender.send_heap(group.get_heap(descriptors="all", data="all"))
    sender.send_heap(group.get_end())
    items = sp.ItemGroup()
    for heap in take(stream, 3):
        items.update(heap)
        np.testing.assert_array_equal(items["x"].value, value)
    assert drain(stream) == []
    stream.stop()
    if OURS:
        assert refusals(stream.stats) == {}
