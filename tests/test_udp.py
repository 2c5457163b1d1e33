"""Streams that read UDP sockets: forms of the call, sockets, batches, sizes, losses."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import socket
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
from child import run_python
from target import (
    DEADLINE,
    KERNEL_DROPS,
    LOGGER,
    REASONS,
    Sender,
    drain,
    free_port,
    has_ipv6,
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
    udp_stream,
    wait_for,
)
from wire import Packet, addr, pattern, simple_heap, stop_packet

#: From the kernel's headers; Python's socket module does not know them.
UDP_SEGMENT = 103
SO_TIMESTAMPNS = 35


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="no IPv6 address ::1 on this machine")


@pytest.fixture
def stream():
    stream = new_stream()
    yield stream
    stream.stop()


@pytest.fixture
def port():
    return free_port()


def assert_receives(stream, sender: Sender, cnt: int = 1) -> None:
    sender.send(*simple_heap(cnt, 1000).packets(300))
    heap = next_heap(stream)
    assert (heap.cnt, payload(heap)) == (cnt, pattern(cnt, 1000))


# Forms of the call


def test_port_form_listens_on_every_address(stream, port):
    stream.add_udp_reader(port, buffer_size=0)
    with Sender(port) as sender, Sender(port, "127.0.0.2") as other:
        assert_receives(stream, sender, 1)
        assert_receives(stream, other, 2)


def test_bind_hostname_chooses_the_address(stream, port):
    stream.add_udp_reader(port, buffer_size=0, bind_hostname="127.0.0.2")
    with Sender(port, "127.0.0.2") as sender, Sender(port, "127.0.0.1") as wrong:
        wrong.socket.send(b"nobody listens here")
        with pytest.raises(ConnectionRefusedError):
            wrong.socket.recv(1)
        assert_receives(stream, sender)


def has_localhost() -> bool:
    try:
        return bool(socket.getaddrinfo("localhost", 1))
    except OSError:
        return False


@pytest.mark.skipif(not has_localhost(), reason="this machine does not know localhost")
def test_bind_hostname_is_resolved(stream, port):
    stream.add_udp_reader(port=port, max_size=2000, buffer_size=0, bind_hostname="localhost")
    with contextlib.ExitStack() as stack:
        for host in {info[4][0] for info in socket.getaddrinfo("localhost", port)}:
            with contextlib.suppress(OSError):
                sender = stack.enter_context(Sender(port, str(host)))
                sender.send(*simple_heap(1, 1000).packets(300))
        assert payload(next_heap(stream)) == pattern(1, 1000)


@needs_ipv6
def test_ipv6_address(stream):
    port = free_port()
    stream.add_udp_reader(port, buffer_size=0, bind_hostname="::1")
    with Sender(port, "::1") as sender:
        assert_receives(stream, sender)


def test_positional_arguments(stream, port):
    stream.add_udp_reader(port, 9200, 0, "127.0.0.1")
    with Sender(port) as sender:
        assert_receives(stream, sender)


def test_socket_form_takes_a_copy_of_the_socket(stream):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    port = sock.getsockname()[1]
    stream.add_udp_reader(sock)
    sock.close()
    with Sender(port) as sender:
        assert_receives(stream, sender)


def test_socket_form_by_keyword_with_max_size(stream):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        stream.add_udp_reader(socket=sock, max_size=500)
        with Sender(sock.getsockname()[1]) as sender:
            assert_receives(stream, sender)


def test_socket_form_leaves_the_port_to_the_user_after_the_stop():
    stream, sender = udp_stream()
    port = sender.socket.getpeername()[1]
    stream.stop()
    sender.socket.close()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        wait_for(lambda: not sock.bind(("127.0.0.1", port)), "the port free again")


def test_socket_form_reads_what_was_already_waiting(stream):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        with Sender(sock.getsockname()[1]) as sender:
            sender.send(*simple_heap(1, 1000).packets(300))
        stream.add_udp_reader(sock)
    assert payload(next_heap(stream)) == pattern(1, 1000)


OPTIONS = {
    "SO_RCVBUF": (socket.SOL_SOCKET, socket.SO_RCVBUF),
    "SO_REUSEADDR": (socket.SOL_SOCKET, socket.SO_REUSEADDR),
    "SO_REUSEPORT": (socket.SOL_SOCKET, socket.SO_REUSEPORT),
    "SO_TIMESTAMPNS": (socket.SOL_SOCKET, SO_TIMESTAMPNS),
    "IP_TOS": (socket.IPPROTO_IP, socket.IP_TOS),
    "IP_MULTICAST_TTL": (socket.IPPROTO_IP, socket.IP_MULTICAST_TTL),
}


def options(sock: socket.socket) -> dict[str, int]:
    """Return what the user may have set on a socket, and its flags."""
    told = {name: sock.getsockopt(*option) for name, option in OPTIONS.items()}
    return {**told, "flags": fcntl.fcntl(sock, fcntl.F_GETFL)}


def test_socket_form_leaves_the_options_of_the_socket_alone(stream):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for name, value in (("SO_RCVBUF", 40_000), ("SO_REUSEPORT", 1), ("IP_TOS", 0x10)):
            sock.setsockopt(*OPTIONS[name], value)
        sock.bind(("127.0.0.1", 0))
        before = options(sock)
        stream.add_udp_reader(sock)
        with Sender(sock.getsockname()[1]) as sender:
            assert_receives(stream, sender)
        assert options(sock) == before
        stream.stop()
        assert options(sock) == before


@pytest.mark.ours
def test_socket_is_the_users_again_after_the_stop(stream):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        stream.add_udp_reader(sock)
        stream.stop()
        sock.settimeout(DEADLINE)
        with Sender(sock.getsockname()[1]) as sender:
            # With UDP_GRO, which the stream had switched on, they would come glued together.
            segments(sender, 100, [b"a" * 100, b"b" * 100])
        assert [sock.recv(1000)[:1] for _ in range(2)] == [b"a", b"b"]


def multicast_sender(group: str, port: int) -> Sender:
    sender = Sender(port, group)
    sender.socket.setsockopt(
        socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1")
    )
    return sender


def test_multicast_group_on_an_interface(stream, port):
    stream.add_udp_reader("239.77.1.1", port, buffer_size=0, interface_address="127.0.0.1")
    with multicast_sender("239.77.1.1", port) as sender:
        assert_receives(stream, sender)


def test_two_streams_read_one_multicast_group(stream, port):
    second = new_stream()
    for each in (stream, second):
        each.add_udp_reader("239.77.1.1", port, buffer_size=0, interface_address="127.0.0.1")
    with multicast_sender("239.77.1.1", port) as sender:
        sender.send(*simple_heap(1, 1000).packets(300))
    for each in (stream, second):
        assert payload(next_heap(each)) == pattern(1, 1000)
    second.stop()


def test_unicast_with_its_own_interface_address(stream, port):
    stream.add_udp_reader("127.0.0.1", port, buffer_size=0, interface_address="127.0.0.1")
    with Sender(port) as sender:
        assert_receives(stream, sender)


# Wrong calls


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"port": "x"},
        {"port": -1},
        {"port": 70000},
        {"port": 1.5},
        {"port": 5000, "max_size": -1},
        {"port": 5000, "buffer_size": -1},
        {"port": 5000, "nope": 1},
        {"socket": 3},
    ],
    ids=repr,
)
def test_wrong_arguments_are_type_errors(stream, arguments):
    with pytest.raises(TypeError):
        stream.add_udp_reader(**arguments)


def test_stream_sockets_are_refused(stream):
    with socket.socket() as sock, pytest.raises(TypeError):
        stream.add_udp_reader(sock)


def test_foreign_interface_address_for_unicast_is_a_value_error(stream, port):
    with pytest.raises(ValueError, match="multicast"):
        stream.add_udp_reader("127.0.0.1", port, interface_address="127.0.0.2")


def occupied_port(stack: contextlib.ExitStack) -> int:
    sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    sock.bind(("127.0.0.1", 0))
    return int(sock.getsockname()[1])


def test_occupied_port_is_a_runtime_error(stream):
    with contextlib.ExitStack() as stack, pytest.raises(RuntimeError, match="in use"):
        stream.add_udp_reader(occupied_port(stack), buffer_size=0)


def test_foreign_address_is_a_runtime_error(stream, port):
    with pytest.raises(RuntimeError, match="assign requested address"):
        stream.add_udp_reader(port, buffer_size=0, bind_hostname="192.0.2.77")


def test_unknown_host_is_a_runtime_error(stream, port):
    with pytest.raises(RuntimeError):
        stream.add_udp_reader(port, bind_hostname="no-such-host.invalid")


def test_stream_goes_on_after_a_failed_call(stream, port):
    with contextlib.ExitStack() as stack, pytest.raises(RuntimeError):
        stream.add_udp_reader(occupied_port(stack), buffer_size=0)
    stream.add_udp_reader(port, buffer_size=0)
    with Sender(port) as sender:
        assert_receives(stream, sender)


@pytest.mark.ours
def test_errors_of_the_system_carry_their_number_and_name_the_address(stream):
    with contextlib.ExitStack() as stack:
        port = occupied_port(stack)
        with pytest.raises(OSError, match=str(port)) as caught:
            stream.add_udp_reader(port, buffer_size=0)
    assert isinstance(caught.value, RuntimeError)
    assert caught.value.errno == 98


# Buffer size


def test_small_kernel_buffer_is_a_warning(stream, port, caplog):
    with caplog.at_level("WARNING", logger=LOGGER):
        # No kernel gives as much: it doubles the size and counts it in an int.
        stream.add_udp_reader(port, buffer_size=2**31 - 1, bind_hostname="127.0.0.1")
        wait_for(lambda: "socket buffer size" in caplog.text, "a warning on the buffer size")
    assert "2147483647" in caplog.text
    with Sender(port) as sender:
        assert_receives(stream, sender)


def test_buffer_size_zero_is_the_default_of_the_system_without_a_warning(stream, port, caplog):
    with caplog.at_level("WARNING", logger=LOGGER):
        stream.add_udp_reader(port, buffer_size=0, bind_hostname="127.0.0.1")
        with Sender(port) as sender:
            assert_receives(stream, sender)
        stream.stop()
    assert "buffer size" not in caplog.text


#: Takes CAP_NET_ADMIN away, with which the limit on buffers would not hold.
DROP_NET_ADMIN = """
    import ctypes, struct
    libc = ctypes.CDLL(None, use_errno=True)
    header = struct.pack("<Ii", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3
    sets = ctypes.create_string_buffer(24)
    assert libc.capget(header, sets) == 0
    words = list(struct.unpack("<6I", sets.raw))
    for i in range(3):
        words[i] &= ~(1 << 12)
    assert libc.capset(header, struct.pack("<6I", *words)) == 0
    """


def test_buffer_beyond_the_limit_is_a_warning_and_the_stream_goes_on():
    limit = int(Path("/proc/sys/net/core/rmem_max").read_text())
    told = run_python(
        DROP_NET_ADMIN,
        f"""
        import logging, sys, target
        logging.basicConfig(format="%(levelname)s %(name)s %(message)s", stream=sys.stdout)
        stream, port = target.new_stream(), target.free_port()
        stream.add_udp_reader(port, buffer_size={2 * limit}, bind_hostname="127.0.0.1")
        with target.Sender(port) as sender:
            sender.send(target.wire.simple_heap(7, 10).packets()[0])
        print("heap", target.next_heap(stream).cnt)
        stream.stop()
        """,
    )
    lines = told.splitlines()
    assert "heap 7" in lines
    (warning,) = [line for line in lines if line.startswith("WARNING")]
    assert warning.startswith(f"WARNING {LOGGER} ")
    assert str(2 * limit) in warning
    assert str(limit) in warning.replace(str(2 * limit), "")


@pytest.mark.ours
@pytest.mark.skipif(os.geteuid() != 0, reason="needs CAP_NET_ADMIN")
def test_limit_on_buffers_does_not_hold_with_net_admin(stream, port, caplog):
    limit = int(Path("/proc/sys/net/core/rmem_max").read_text())
    with caplog.at_level("WARNING", logger=LOGGER):
        stream.add_udp_reader(port, buffer_size=2 * limit, bind_hostname="127.0.0.1")
    assert caplog.messages == []
    assert stream.readers[0].memory >= 2 * limit


# Sizes


def datagram(cnt: int, size: int) -> bytes:
    """Return a heap of one packet that is `size` bytes long."""
    empty = len(simple_heap(cnt, 1).packets()[0].encode()) - 1
    return simple_heap(cnt, size - empty).packets(size)[0].encode()


@pytest.mark.parametrize("max_size", [60, 500, 1500, 9200])
def test_datagram_of_max_size_is_taken_and_a_larger_one_is_not(stream, port, max_size):
    stream.add_udp_reader(port, max_size=max_size, buffer_size=0, bind_hostname="127.0.0.1")
    with Sender(port) as sender:
        sender.send(datagram(1, max_size), datagram(2, max_size + 1), datagram(3, max_size))
        assert [h.cnt for h in take(stream, 2)] == [1, 3]
    assert settled(stream, 2).packets == 2


def test_largest_datagram_of_all(stream, port):
    stream.add_udp_reader(port, max_size=65507, bind_hostname="127.0.0.1")
    with Sender(port) as sender:
        sender.send(datagram(1, 65507))
        assert next_heap(stream).cnt == 1


@pytest.mark.ours
def test_datagram_above_max_size_is_counted(stream, port):
    stream.add_udp_reader(port, max_size=500, buffer_size=0, bind_hostname="127.0.0.1")
    with Sender(port) as sender:
        sender.send(datagram(1, 501), datagram(2, 4000), datagram(3, 500))
        assert next_heap(stream).cnt == 3
    settled(stream, 1)
    assert refusals(stream.stats) == {"truncated_datagram": 2}


# Many datagrams


def test_thousands_of_heaps_arrive_byte_for_byte():
    stream, sender = udp_stream(max_heaps=4)
    with sender:
        for cnt in range(2000):
            sender.send(*simple_heap(cnt, 4000).packets(1000))
            if cnt % 8 == 7:  # never more than 32 datagrams under way
                for heap in take(stream, 8):
                    assert payload(heap) == pattern(heap.cnt, 4000)
    stats = settled(stream, 8000)
    stream.stop()
    assert (stats.heaps, stats.packets) == (2000, 8000)
    assert stats.incomplete_heaps_evicted == 0


def segments(sender: Sender, size: int, packets: list[bytes]) -> None:
    """Send packets of equal size in one call, as one super-packet that the kernel cuts."""
    sender.socket.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, size)
    sender.socket.send(b"".join(packets))
    sender.socket.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 0)


def test_packets_of_a_segmenting_sender_are_counted_one_by_one():
    stream, sender = udp_stream()
    packets = [datagram(cnt, 200) for cnt in range(30)]
    with sender:
        segments(sender, 200, packets)
        heaps = take(stream, 30)
    assert [(h.cnt, payload(h)) for h in heaps] == [(c, pattern(c, 152)) for c in range(30)]
    stats = settled(stream, 30)
    stream.stop()
    assert (stats.packets, stats.max_batch, stats.batches) == (30, 30, 1)


def test_last_segment_may_be_shorter():
    stream, sender = udp_stream()
    with sender:
        segments(sender, 200, [*(datagram(c, 200) for c in range(10)), datagram(10, 77)])
        assert [h.cnt for h in take(stream, 11)] == list(range(11))
    stream.stop()


def test_segments_that_are_no_packets_leave_the_others_alone():
    stream, sender = udp_stream()
    with sender:
        segments(sender, 200, [datagram(0, 200), b"x" * 200, datagram(1, 200), b"tail"])
        assert [h.cnt for h in take(stream, 2)] == [0, 1]
    assert settled(stream, 2).packets == 2
    stream.stop()


@pytest.mark.parametrize("size", [63, 64, 65, 199, 1399])
def test_heap_from_segments_of_any_size(size):
    stream, sender = udp_stream()
    chunk = size - 48
    packets = [
        Packet(
            1,
            pattern(1, 40 * chunk)[i * chunk : (i + 1) * chunk],
            i * chunk,
            40 * chunk,
            (addr(0x1000, 0),),
        ).encode()
        for i in range(40)
    ]
    assert {len(p) for p in packets} == {size}
    with sender:
        segments(sender, size, packets)
        assert payload(next_heap(stream)) == pattern(1, 40 * chunk)
    stream.stop()


# Several readers


def test_readers_of_one_stream_build_heaps_together(stream):
    ports = [free_port() for _ in range(3)]
    for port in ports:
        stream.add_udp_reader(port, buffer_size=0, bind_hostname="127.0.0.1")
    packets = simple_heap(1, 900).packets(300)
    for i, (port, packet) in enumerate(zip(ports, packets, strict=True)):
        with Sender(port) as sender:
            sender.send(packet)
            settled(stream, i + 1)
    assert payload(next_heap(stream)) == pattern(1, 900)


def test_readers_on_several_threads_lose_nothing():
    stream = new_stream(heaps=64, substreams=4)
    socks = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(4)]
    for sock in socks:
        sock.bind(("127.0.0.1", 0))
        stream.add_udp_reader(sock)

    def send(lane: int) -> None:
        with Sender(socks[lane].getsockname()[1]) as sender:
            for i in range(100):
                sender.send(*simple_heap(4 * i + lane, 600).packets(200))
                progress[lane] = i
                wait_for(lambda i=i: received[lane] > i - 10, "the receiver keeping up")

    received = [0] * 4
    progress = [0] * 4
    threads = [in_thread(lambda lane=lane: send(lane)) for lane in range(4)]
    seen = set()
    for _ in range(400):
        heap = next_heap(stream)
        assert payload(heap) == pattern(heap.cnt, 600)
        seen.add(heap.cnt)
        received[heap.cnt % 4] += 1
    for thread in threads:
        thread.join(10)
    for sock in socks:
        sock.close()
    stream.stop()
    assert seen == set(range(400))


def test_stop_item_ends_the_stream_with_its_live_heaps_flushed():
    stream, sender = udp_stream(ring={"contiguous_only": False})
    with sender:
        sender.send(simple_heap(1, 100).packets(50)[0], stop_packet())
    (heap,) = drain(stream)
    assert isinstance(heap, recv.IncompleteHeap)


def test_full_ring_holds_the_reader_and_datagrams_wait_in_the_kernel():
    stream, sender = udp_stream(heaps=2)
    with sender:
        for cnt in range(50):
            sender.send(*simple_heap(cnt, 100).packets())
        wait_for(lambda: stream.stats.worker_blocked, "a full ring")
        assert [h.cnt for h in take(stream, 50)] == list(range(50))
    stream.stop()


# Ours: losses


def tiny_stream() -> tuple[Any, Sender, socket.socket]:
    """Return a stream with next to no room in ring and kernel, a sender to it, and its socket."""
    stream = new_stream(heaps=1)
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    stream.add_udp_reader(sock)
    return stream, Sender(sock.getsockname()[1]), sock


def flood(sender: Sender, n: int) -> None:
    sender.send(*(simple_heap(cnt, 100).packets()[0] for cnt in range(n)))


def drain_until(stream: Any, sent: int) -> Any:
    """Take heaps until packets and drops account for all that was sent; return the statistics."""

    def accounted() -> bool:
        with contextlib.suppress(sp.Empty):
            while True:
                stream.get_nowait()
        stats = stream.stats
        return stats.packets + stats[KERNEL_DROPS] == sent

    wait_for(accounted, f"{sent} datagrams in the account, there are {stats_of(stream)}")
    return stream.stats


@pytest.mark.ours
def test_what_the_kernel_dropped_is_counted_at_once_and_nothing_is_missing():
    stream, sender, sock = tiny_stream()
    with sender, sock:
        for n in (500, 1000, 1500):
            # Nobody reads: the last of them are dropped, and no datagram follows to tell.
            flood(sender, 500)
            assert stream.stats[KERNEL_DROPS] > 0
            stats = drain_until(stream, n)
            assert stats.packets + stats[KERNEL_DROPS] == n
        stream.stop()
        assert stream.stats[KERNEL_DROPS] == stats[KERNEL_DROPS]
        flood(sender, 500)
    assert stream.stats[KERNEL_DROPS] == stats[KERNEL_DROPS]


@pytest.mark.ours
def test_drops_from_before_the_reader_are_not_the_streams():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        with Sender(sock.getsockname()[1]) as sender:
            flood(sender, 500)
            for _ in range(2):  # also none of one stream's in the next
                stream = new_stream()
                stream.add_udp_reader(sock)
                next_heap(stream)
                stream.stop()
                assert stream.stats[KERNEL_DROPS] == 0
                sender.send(*simple_heap(1, 100).packets())


@pytest.mark.ours
def test_kernel_drops_are_logged_and_the_lines_add_up():
    told = run_python(
        """
        import logging, sys, test_udp
        from test_udp import KERNEL_DROPS
        logging.basicConfig(format="%(levelname)s %(message)s", stream=sys.stdout)
        stream, sender, sock = test_udp.tiny_stream()
        for n in (300, 600):
            test_udp.flood(sender, 300)
            test_udp.drain_until(stream, n)
        test_udp.flood(sender, 300)  # drops that no datagram follows
        stream.stop()
        # In one piece: lines of the log may still be written by another thread.
        sys.stdout.write(f"drops {stream.stats[KERNEL_DROPS]}\\n")
        """
    )
    lines = [line.split(maxsplit=1) for line in told.splitlines()]
    logged = [text for level, text in lines if level == "WARNING" and "kernel" in text]
    (drops,) = [int(text) for level, text in lines if level == "drops"]
    assert drops > 300
    assert sum(int(m.split()[0]) if m[0].isdigit() else 1 for m in logged) == drops
    assert len(logged) <= 11


# Sockets that are never read


def n_sockets() -> int:
    """Return how many sockets this process has open."""
    n = 0
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the one that listed the folder
            n += os.readlink(f"/proc/self/fd/{fd}").startswith("socket:")
    return n


@pytest.mark.parametrize("end", ["stop", "drop"])
def test_sockets_that_were_never_started_are_closed(end):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", 0))
            stream = new_stream(explicit_start=True)
            before = n_sockets()
            stream.add_udp_reader(sock)
            assert n_sockets() > before
            if end == "stop":
                stream.stop()
            else:
                del stream
                gc.collect()
            assert n_sockets() == before
    assert [str(w.message) for w in caught] == []


def test_socket_that_comes_after_the_stop_is_closed(stream):
    stream.stop()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", 0))
            before = n_sockets()
            stream.add_udp_reader(sock)
            gc.collect()
            assert n_sockets() == before
    assert [str(w.message) for w in caught] == []


@pytest.mark.ours
def test_reader_shows_its_transport_and_memory(stream, port):
    stream.add_udp_reader(port, max_size=9200, bind_hostname="127.0.0.1")
    (reader,) = stream.readers
    assert reader.transport == "udp"
    assert reader.memory >= 64 * 9200


@pytest.mark.ours
def test_every_reason_has_its_statistic(stream):
    assert set(REASONS.values()) <= set(stream.stats)


@pytest.mark.ours
def test_readers_that_nap_wake_their_worker_together():
    nap_s, step_s, n_streams, bin_s = 0.2, 0.025, 8, 0.02
    pool = sp.ThreadPool(1)
    config = recv.StreamConfig(max_added_latency=nap_s)
    arrivals: list[float] = []
    with contextlib.ExitStack() as stack:
        sending = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        addresses = []
        for _ in range(n_streams):
            stream = recv.Stream(pool, config, recv.RingStreamConfig(heaps=64))
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.bind(("127.0.0.1", 0))
                addresses.append(sock.getsockname())
                stream.add_udp_reader(sock)
            reading = threading.Thread(
                target=lambda stream=stream: arrivals.extend(time.monotonic() for _ in stream)
            )
            reading.start()
            stack.callback(reading.join)
            stack.callback(stream.stop)
        # One after the other begins to receive, and so to nap, all over the length of a nap.
        for turn in range(5 * n_streams):
            for address in addresses[: turn + 1]:
                sending.sendto(datagram(turn + 1, 100), address)
            time.sleep(step_s)
    settled_at = min(arrivals) + n_streams * step_s + nap_s
    bins = {int(at / bin_s) for at in arrivals if settled_at < at}
    total = (max(arrivals) - settled_at) / bin_s
    # Heaps come out twice in a nap, not at eight different moments of it.
    assert len(bins) < 0.4 * total, sorted(arrivals)


@pytest.mark.timing
@pytest.mark.ours
def test_naps_are_not_longer_than_the_socket_has_room_for():
    """A nap of 200 ms would see 400 packets; the socket holds about half of them."""
    config = recv.StreamConfig(max_added_latency=0.2)
    stream = recv.Stream(sp.ThreadPool(1), config, recv.RingStreamConfig(heaps=4096))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
        address = sock.getsockname()
        stream.add_udp_reader(sock)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sending:
        for cnt in range(2000):
            sending.sendto(datagram(cnt + 1, 100), address)
            if cnt % 10 == 9:
                time.sleep(0.005)
    wait_for(lambda: stream.stats["heaps"] == 2000, "every heap")
    assert stream.stats["batches"] < 1000, "it did not nap"
    stream.stop()
