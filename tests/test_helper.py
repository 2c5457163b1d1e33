"""``xdpspead-helper``: ordinary users receive through AF_XDP what they are allowed to.

The receivers are processes of users that have no capability at all (``receiver_child.py``).
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from target import DEADLINE, drain, sp, take, wait_for
from wire import simple_heap

from xdpspead.recv import XdpError

pytestmark = [pytest.mark.ours, pytest.mark.xdp]

if not os.environ.get("XDPSPEAD_TEST_PEER"):
    from helperlab import CAPABILITY_BITS, NOBODY, PROGRAM, SOMEBODY, Helper, Receiver
    from xdplab import Lab, program_is_loaded

ANYTHING = "".join(f"allow user={user} interface={{eth}}\n" for user in ("nobody", SOMEBODY, 0))
PORT = 20_100
QUEUES = 2
EXAMPLES = Path(__file__).resolve().parents[1] / "docs" / "examples"
PROBE, PROBES = 1000, 16
FEW = os.environ.get("XDPSPEAD_FEW_VARIANTS") == "1"

#: struct xps_helper_request: kinds, and the head of a reply.
OPEN, TAKE_SLOT, OPEN_QUEUE, OPEN_SOCKET = 1, 2, 3, 4
HEAD = struct.Struct("=IIi4x")


@pytest.fixture
def lab():
    with Lab(queues=QUEUES) as lab:
        yield lab


def endpoint(lab, port=PORT):
    return {"endpoints": [(lab.rx.ipv4, port)]}


def send(sock, cnts, length=4000):
    """Send heaps of 1000 bytes a packet."""
    for cnt in cnts:
        for packet in simple_heap(cnt, length).packets(1000):
            while True:
                # What came in before on a queue that nobody reads has been refused.
                with contextlib.suppress(ConnectionRefusedError):
                    sock.send(packet.encode())
                    break


def came_in(lab):
    stats = lab.ethtool(lab.rx)
    return [stats[f"rx_queue_{queue}_xdp_packets"] for queue in range(QUEUES)]


def sender_on(lab, port, queue):
    """Return a socket whose packets come in on a queue, and the heaps that it has sent there.

    A connected socket keeps to one queue, which the kernel chooses.
    """
    number, found = PROBE, None
    while found != [queue]:
        sock, before = lab.sender(port), came_in(lab)
        probes = range(number, number := number + PROBES)
        send(sock, probes, 1000)
        # More than anything else sends meanwhile.
        wait_for(lambda before=before: grown(lab, before), "probes that came in")
        found = grown(lab, before)
    return sock, list(probes)


def grown(lab, before):
    pairs = enumerate(zip(before, came_in(lab), strict=True))
    return [queue for queue, (old, new) in pairs if new - old >= PROBES]


def receive(lab, helper, stream=None, **config):
    """Return a stream of our own that receives through the helper, and its port."""
    stream = lab.stream() if stream is None else stream
    return stream, lab.add_reader(stream, helper=str(helper.socket), **config)


def refused(lab, helper, **config):
    """Return the error when the helper does not let us receive."""
    with pytest.raises(XdpError) as caught:
        receive(lab, helper, **config)
    return caught.value


def open_request(lab, sequence=1, version=1, namespace=None):
    with lab.rx.enter():
        inode = os.stat("/proc/thread-self/ns/net").st_ino
    name = lab.rx.interface.encode()
    return struct.pack("=IIIiQ16s", OPEN, sequence, version, 0, namespace or inode, name)


def ask(sock, request):
    """Return the result of a request, and its text if it is an error."""
    sock.send(request)
    _, _, result = HEAD.unpack_from(reply := sock.recv(65536))
    return result, reply[HEAD.size + 36 :].partition(b"\0")[0].decode()


# Receiving


def test_nobody_receives_byte_for_byte_and_the_ledger_is_exact(lab):
    with Helper(lab, ANYTHING) as helper, Receiver(lab, helper, **endpoint(lab)) as receiver:
        said = receiver.ready()
        assert said["uid"] == [NOBODY] * 3
        assert said["capabilities"] == 0
        assert (said["ready"], said["mode"]) == ([str(helper.socket)], "native")
        program = lab.program()
        sock = lab.sender(PORT)
        for begin in range(0, 40, 8):
            send(sock, range(begin, begin + 8))
            assert receiver.take(8) == list(range(begin, begin + 8))
        end = receiver.stop()
        assert end["counts"] == {
            **dict.fromkeys(end["counts"], 0),
            "matched": 160,
            "redirected": 160,
        }
        assert (end["end"]["packets"], end["end"]["heaps"], end["balanced"]) == (160, 40, True)
        lab.wait_detached()
    wait_for(lambda: not program_is_loaded(program), "the program unloaded")


def test_receiver_that_is_not_read_costs_others_nothing_and_counts_its_losses(lab):
    small = {"queues": [0], "buffer_size": 1 << 17, "endpoints": [(lab.rx.ipv4, PORT)]}
    with (
        Helper(lab, ANYTHING) as helper,
        Receiver(lab, helper, reads=False, stream={"heaps": 2}, **small) as idle,
        Receiver(lab, helper, uid=SOMEBODY, queues=[1], **endpoint(lab, PORT + 1)) as other,
    ):
        idle.ready(), other.ready()
        sock, probes = sender_on(lab, PORT, 0)
        for begin in range(0, 400, 8):
            send(sock, range(begin, begin + 8), 1000)
        sock, probes = sender_on(lab, PORT + 1, 1)
        send(sock, range(8))
        assert other.take(PROBES + 8) == [*probes, *range(8)]
        assert other.stop()["balanced"]
        end = idle.stop()
        # 64 frames, and two heaps in the ring
        assert end["counts"]["rx_dropped"] + end["counts"]["unread_drops"] > 300
        assert end["balanced"]


# A sanitizer reads /proc/self, which is not a privileged program's own.
@pytest.mark.parametrize("of_file", [False] if FEW else [False, True])
def test_helper_needs_no_more_than_its_capabilities(lab, of_file):
    with Helper(lab, ANYTHING, uid=SOMEBODY, of_file=of_file) as helper:
        with open(f"/proc/{helper.process.pid}/status") as status:
            lines = dict(line.split(":", 1) for line in status)
        assert lines["Uid"].split()[1] == str(SOMEBODY)
        assert int(lines["CapEff"], 16) == CAPABILITY_BITS
        assert lines["NoNewPrivs"].strip() == "1"
        stream, port = receive(lab, helper)
        lab.assert_receives(stream, port, n=8)


def test_helper_is_found_by_who_lacks_privileges(lab):
    with (
        Helper(lab, ANYTHING) as helper,
        Receiver(lab, helper, variable=True, **endpoint(lab)) as receiver,
    ):
        assert receiver.ready()["ready"] == [str(helper.socket)]


def test_who_has_privileges_does_without_helper(lab, monkeypatch):
    monkeypatch.setenv("XDPSPEAD_HELPER", "/nowhere")
    stream, _ = lab.receiver()
    assert stream.readers[0].helper is None


def test_features_tell_of_the_helper(lab, monkeypatch):
    with Helper(lab, "allow user=0 interface={eth}\n") as helper:
        monkeypatch.setenv("XDPSPEAD_HELPER", str(helper.socket))
        assert str(helper.socket) in sp.features.helper.detail
        assert sp.features.helper
        helper.write("allow user=nobody interface={eth}\n")
        helper.process.send_signal(signal.SIGHUP)
        wait_for(lambda: "read again" in helper.said(), "the new rules")
        assert "user 0, process" in sp.features.helper.detail
        assert not sp.features.helper
    assert "there is no xdpspead-helper" in sp.features.helper.detail


def test_several_streams_of_a_process_share_its_queues(lab):
    with Helper(lab, ANYTHING) as helper:
        received = [receive(lab, helper) for _ in range(2)]
        for stream, port in received:
            lab.assert_receives(stream, port, n=8)
        for stream, _ in received:
            stream.stop()
            assert stream.stats["xdpspead.xdp_redirected"] == 32
            assert stream.ledger().balanced
        lab.wait_detached()


@pytest.mark.parametrize("setting", [{"steer": "ntuple"}, {"busy_poll": True}])
def test_what_the_helper_does_not_do_is_refused(lab, setting):
    with pytest.raises(XdpError, match="does for nobody") as caught:
        lab.receiver(helper="/nowhere", **setting)
    assert (caught.value.errno, caught.value.step) == (errno.EOPNOTSUPP, "choose helper")


def test_helper_that_is_not_there_is_told(lab):
    with pytest.raises(XdpError, match=r"/nowhere: No such file.*Is it running") as caught:
        lab.receiver(helper="/nowhere")
    assert caught.value.errno == errno.ENOENT


# Several processes on one interface


def test_processes_of_different_users_receive_on_different_queues(lab):
    with (
        Helper(lab, ANYTHING) as helper,
        Receiver(lab, helper, queues=[0], **endpoint(lab, PORT)) as first,
        Receiver(lab, helper, uid=SOMEBODY, queues=[1], **endpoint(lab, PORT + 1)) as second,
    ):
        first.ready(), second.ready()
        for queue, receiver, port in ((0, first, PORT), (1, second, PORT + 1)):
            sock, probes = sender_on(lab, port, queue)
            send(sock, range(8))
            assert receiver.take(PROBES + 8) == [*probes, *range(8)]
            end = receiver.stop()
            counts = end["counts"]
            assert (counts["redirected"], end["balanced"]) == (PROBES + 32, True)
            # Those that came in on the other queue.
            assert counts["matched"] == counts["redirected"] + counts["no_socket"]
            if receiver is first:
                assert lab.program() is not None  # the other one's, too


def test_queue_and_endpoint_of_another_process_are_refused_with_whose_they_are(lab):
    with (
        Helper(lab, ANYTHING) as helper,
        Receiver(lab, helper, queues=[0], stream={"stream_id": 77}, **endpoint(lab)) as first,
    ):
        first.ready()
        owner = f"user nobody, process {first.process.pid}: stream_id 77, queues 0"
        error = refused(lab, helper, queues=[0])
        assert error.errno == errno.EBUSY
        assert f"queue 0 of {lab.rx.interface} is taken by another reader ({owner}" in str(error)
        error = refused(lab, helper, queues=[1], **endpoint(lab))
        assert error.errno == errno.EADDRINUSE
        assert f"is taken: another reader ({owner}" in str(error)
        assert first.stop()["balanced"]


def test_another_program_on_the_interface_is_told_by_its_id(lab):
    link = lab.attach_foreign_program()
    try:
        with Helper(lab, ANYTHING) as helper:
            error = refused(lab, helper)
    finally:
        os.close(link)
    assert error.errno == errno.EBUSY
    assert "Another XDP program (id " in str(error)


# Who may


@pytest.mark.parametrize(
    ("rule", "config", "number", "text"),
    [
        ("user=1 interface={eth}", {}, errno.EACCES, "may not receive anything here"),
        ("user=0 interface=eth77", {}, errno.EACCES, "may not receive on veth0"),
        (
            "user=0 interface={eth} queues=1",
            {"queues": [0]},
            errno.EACCES,
            "may not receive on queue 0 of veth0: line 1 of",
        ),
        (
            "user=0 interface={eth} ports=5000-6000,7000",
            {},
            errno.EACCES,
            "may not receive port 20100: line 1 of",
        ),
        (
            "user=0 interface={eth} memory=1M",
            {"queues": [0]},
            errno.ENOBUFS,
            "1048576 bytes that line 1 of",
        ),
        (
            "user=0 interface={eth} mode=generic",
            {"mode": "native"},
            errno.EACCES,
            "allows generic mode only",
        ),
    ],
    ids=["user", "interface", "queue", "port", "memory", "mode"],
)
def test_what_no_rule_allows_is_refused_and_says_which_line_would(lab, rule, config, number, text):
    with Helper(lab, f"allow {rule}\n") as helper:
        error = refused(lab, helper, **config, **endpoint(lab))
        assert (error.errno, text in str(error)) == (number, True), error
        assert str(helper.config) in str(error)
        lab.wait_detached()


def test_number_of_readers_is_bounded(lab):
    with Helper(lab, "allow user=0 interface={eth} readers=1\n") as helper:
        receive(lab, helper)
        error = refused(lab, helper)
        assert error.errno == errno.EDQUOT
        assert "has the 1 readers that line 1 of" in str(error)


def test_memory_is_bounded_for_all_readers_of_a_user_together(lab):
    with Helper(lab, "allow user=0 interface={eth} memory=3M\n") as helper:
        first, _ = receive(lab, helper, queues=[0], buffer_size=1 << 21)
        error = refused(lab, helper, queues=[1], buffer_size=1 << 21)
        assert error.errno == errno.ENOBUFS
        first.stop()  # and gives back what it had
        receive(lab, helper, queues=[1], buffer_size=1 << 21)


def test_rules_hold_for_groups_and_the_mode_is_theirs(lab):
    rules = "allow group=4321 interface={eth} mode=generic\n"
    with (
        Helper(lab, rules) as helper,
        Receiver(lab, helper, uid=SOMEBODY, gids=[777, 4321], **endpoint(lab)) as receiver,
    ):
        assert receiver.ready()["mode"] == "generic"


def test_configuration_is_read_again_and_a_bad_one_changes_nothing(lab):
    with Helper(lab, ANYTHING) as helper:
        stream, port = receive(lab, helper)
        helper.write("allow user=nobody\n")
        helper.process.send_signal(signal.SIGHUP)
        wait_for(lambda: "go on to hold" in helper.said(), "the bad rules refused")
        assert "line 1: the rule does not say which interface" in helper.said()
        lab.assert_receives(stream, port, n=8)
        helper.write(f"allow user={SOMEBODY} interface={{eth}}\n")
        helper.process.send_signal(signal.SIGHUP)
        with pytest.raises(XdpError, match="has taken back what it gave"):
            drain(stream)
        lab.wait_detached()


def test_check_prints_what_is_allowed(tmp_path):
    config = tmp_path / "helper.conf"
    config.write_text("allow user=nobody interface=eth1 queues=0-3,7 memory=1G # us\n")
    done = subprocess.run(
        [PROGRAM, "--config", config, "--check"], capture_output=True, text=True, timeout=DEADLINE
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        "line 1: user nobody (65534) may receive on eth1: queues 0-3,7, ports 1024-65535, "
        "1024 MiB of memory, 16 readers, any mode\n"
    )


def test_examples_of_the_manual_are_understood(tmp_path):
    config = tmp_path / "helper.conf"
    text = re.sub("(user|group)=[a-z]+", r"\1=1000", (EXAMPLES / "helper.conf").read_text())
    config.write_text(text)
    command = [PROGRAM, "--config", config, "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 3)


def test_socket_may_be_made_by_systemd(lab, tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(tmp_path / "sock"))
        listener.listen()
        fd = listener.fileno()
        config = tmp_path / "helper.conf"
        config.write_text(f"allow user=0 interface={lab.rx.interface}\n")
        become = (
            f"import os, sys; os.dup2({fd}, 3)\n"
            "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1')\n"
            "os.execv(sys.argv[1], sys.argv[1:])"
        )
        options = ["--config", config, "--socket", "/nowhere/x"]
        command = [sys.executable, "-c", become, PROGRAM, *options]
        lab.rx.popen(command, pass_fds=[fd])  # ended by the laboratory
        stream = lab.stream()
        port = lab.add_reader(stream, helper=str(tmp_path / "sock"))
        lab.assert_receives(stream, port, n=8)


@pytest.mark.parametrize(
    ("text", "mode", "said"),
    [
        ("allow user=nobody interface=eth1\nalow", 0o644, "line 2: it begins with 'alow'"),
        ("allow user=nobody interface=eth1", 0o664, "Others can write to"),
        (None, 0, "No such file"),
    ],
    ids=["syntax", "writable", "missing"],
)
def test_bad_configuration_is_refused_with_its_place(tmp_path, text, mode, said):
    config = tmp_path / "helper.conf"
    if text is not None:
        config.write_text(text)
        config.chmod(mode)
    done = subprocess.run(
        [PROGRAM, "--config", config, "--socket", tmp_path / "sock"],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    assert done.returncode == 1
    assert said in done.stderr
    assert str(config) in done.stderr


# Ends


def test_receiver_that_is_killed_leaves_nothing_and_the_next_starts_at_once(lab):
    with Helper(lab, ANYTHING) as helper:
        for _ in range(2):
            with Receiver(lab, helper, **endpoint(lab)) as receiver:
                receiver.ready()
                send(lab.sender(PORT), range(8))
                assert receiver.take(8) == list(range(8))
                receiver.kill()
        lab.wait_detached()
        wait_for(lambda: helper.said().count("no longer receives") == 2, "the helper's word")


def test_helper_that_is_killed_ends_its_streams_with_an_error_and_leaves_nothing(lab, caplog):
    with Helper(lab, ANYTHING) as helper:
        stream, port = receive(lab, helper)
        lab.assert_receives(stream, port, n=8)
        program = lab.program()
        helper.kill()
        with pytest.raises(XdpError, match="xdpspead-helper has ended") as caught:
            drain(stream)
        assert (caught.value.errno, caught.value.step) == (errno.EPIPE, "ask xdpspead-helper")
        lab.wait_detached()
        wait_for(lambda: f"{lab.rx.interface}: xdpspead-helper has ended" in caplog.text, "the log")
    wait_for(lambda: not program_is_loaded(program), "the program unloaded")


def test_helper_that_is_killed_leaves_a_stream_that_is_not_read_asleep(lab):
    pool = sp.ThreadPool(1)
    with Helper(lab, ANYTHING) as helper:
        stream, port = receive(lab, helper, lab.stream(pool=pool, heaps=2))
        send(lab.sender(port), range(32), 1000)
        wait_for(lambda: stream.stats["worker_blocked"], "a stream that is blocked")
        helper.kill()
        lab.wait_detached()
        before = pool.cpu_time
        time.sleep(0.3)  # time in which a worker that is woken again and again would work
        assert pool.cpu_time - before < 0.05
        assert [heap.cnt for heap in take(stream, 32)] == list(range(32))
        with pytest.raises(XdpError, match="xdpspead-helper has ended"):
            drain(stream)


def test_helper_that_stands_still_does_not_stop_statistics_or_reception(lab):
    with Helper(lab, "allow user=0 interface={eth}\n") as helper:
        stream, port = receive(lab, helper)
        lab.assert_receives(stream, port, n=8)
        before = stream.stats["xdpspead.xdp_redirected"]
        helper.process.send_signal(signal.SIGSTOP)
        try:
            for _ in range(20):
                assert stream.stats["xdpspead.xdp_redirected"] == before
            lab.assert_receives(stream, port, n=8)
        finally:
            helper.process.send_signal(signal.SIGCONT)
        wait_for(lambda: stream.stats["xdpspead.xdp_redirected"] == 2 * before, "fresh counters")
        stream.stop()
        assert stream.ledger().balanced


# Hostile clients


def send_for_ever(sock, message):
    for _ in range(5_000):
        sock.send(message)


def test_garbage_on_the_socket_ends_that_connection_and_nothing_else(lab):
    with Helper(lab, ANYTHING) as helper:
        stream, port = receive(lab, helper)
        dice = random.Random(5)
        for _ in range(200):
            with helper.connect() as sock:
                size = dice.choice([1, 8, 12, 100, 40_000])
                if dice.random() < 0.5:
                    sock.send(dice.randbytes(size))
                else:
                    sock.send(struct.pack("=II", dice.randrange(14), 1) + dice.randbytes(size))
        # Many requests, and no look at the replies.
        with helper.connect() as sock, pytest.raises(OSError, match=r"Broken pipe|reset"):
            send_for_ever(sock, struct.pack("=II", 7, 1))
        assert helper.process.poll() is None
        lab.assert_receives(stream, port, n=8)


def test_requests_out_of_turn_and_of_what_is_others_are_refused(lab):
    with Helper(lab, ANYTHING) as helper:
        stream, port = receive(lab, helper, queues=[0])
        with helper.connect() as sock:
            take = struct.pack("=II128s", TAKE_SLOT, 2, b"\x1b[31m me")
            assert ask(sock, take)[0] == -errno.EPROTO
            assert "version" in ask(sock, open_request(lab, version=9))[1]
            assert "another network namespace" in ask(sock, open_request(lab, namespace=1))[1]
            assert ask(sock, open_request(lab))[0] == 0
            assert ask(sock, open_request(lab))[0] == -errno.EPROTO
            # Slot 0 and queue 0 are the other receiver's.
            assert (
                ask(sock, struct.pack("=IIII", 9, 3, 0, 0))[1] == "slot 0 is not this connection's."
            )
            assert ask(sock, take)[0] == 1
            socket_on = struct.pack("=IIIIII", OPEN_SOCKET, 4, 1, 0, 0, 0)
            assert ask(sock, socket_on)[1] == "queue 0 is not this connection's."
            huge = struct.pack("=IIIIQiI", OPEN_QUEUE, 5, 1, 1, 1 << 62, 0, 0)
            assert ask(sock, huge)[0] == -errno.ENOBUFS
        send(lab.sender(port), [1], 1000)
        stream.stop()
        assert stream.ledger().balanced


def open_queue(sock, size):
    """Return the memory and the base socket of queue 0, for slot 0."""
    request = struct.pack("=IIIIQiI", OPEN_QUEUE, 3, 0, 0, size, 0, 0)
    sock.send(request)
    reply, (memory,), _, _ = socket.recv_fds(sock, 65536, 4)
    assert HEAD.unpack_from(reply)[2] == -errno.EAGAIN
    # As long as nobody has looked at it the helper does not use it: that takes its time.
    assert ask(sock, request)[0] == -errno.EAGAIN
    with mmap.mmap(memory, size, prot=mmap.PROT_READ) as frames:
        assert not any(frames[:: mmap.PAGESIZE])
    os.close(memory)
    sock.send(request)
    reply, fds, _, _ = socket.recv_fds(sock, 65536, 4)
    assert HEAD.unpack_from(reply)[2] == 0
    return fds


def test_what_is_passed_on_cannot_be_turned_into_more(lab):
    with Helper(lab, "allow user=0 interface={eth}\n") as helper, helper.connect() as sock:
        assert ask(sock, open_request(lab))[0] == 0
        assert ask(sock, struct.pack("=II128s", TAKE_SLOT, 2, b"me"))[0] == 0
        fds = open_queue(sock, 1 << 20)
        sock.send(struct.pack("=IIIIII", OPEN_SOCKET, 4, 0, 0, 0, 0))
        _, more, _, _ = socket.recv_fds(sock, 65536, 4)
        frames, *sockets = [*fds, *more]
        assert len(sockets) == 2
        try:
            with pytest.raises(PermissionError):
                os.ftruncate(frames, 4096)
            with pytest.raises(PermissionError):
                os.write(frames, b"x")
            for fd in sockets:
                xsk = socket.socket(44, socket.SOCK_RAW, 0, fileno=os.dup(fd))
                with xsk:
                    for option in (2, 3, 5, 6):  # XDP_RX_RING, TX_RING, UMEM's FILL, COMPLETION
                        with pytest.raises(OSError, match="busy") as caught:
                            xsk.setsockopt(283, option, struct.pack("I", 64))
                        assert caught.value.errno == errno.EBUSY
                    with pytest.raises(OSError, match="buffer space"):
                        xsk.send(b"", socket.MSG_DONTWAIT)
        finally:
            for fd in (frames, *sockets):
                os.close(fd)


def test_one_user_cannot_have_all_connections(lab):
    with Helper(lab, ANYTHING) as helper:
        mine = [helper.connect() for _ in range(40)]
        try:
            _, _, result = HEAD.unpack_from(reply := mine[-1].recv(65536))
            assert (result, b"too many processes" in reply) == (-errno.EBUSY, True)
            with Receiver(lab, helper, **endpoint(lab)) as receiver:
                receiver.ready()
        finally:
            for sock in mine:
                sock.close()
