"""The network of the AF_XDP tests: two namespaces joined by a veth pair, and a few questions.

Everything that a test makes in it is taken away again at the end of the ``with`` block: streams,
sockets, child processes, the link, the namespaces.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import json
import mmap
import os
import socket
import struct
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
from target import (
    DEADLINE,
    PARSER_REASONS,
    REASONS,
    XDP,
    in_thread,
    new_stream,
    next_heap,
    payload,
    recv,
    sp,
    wait_for,
)
from wire import pattern, simple_heap

from xdpspead._netlab import VethLab

_REQUIRED = os.environ.get("XDPSPEAD_REQUIRE_XDP") == "1"

#: None that target.free_port() gives out: readers of both may be on one interface.
_ports = itertools.count(2_000)

_SOL_XDP = 283
_AF_XDP = 44
_XDP_RX_RING, _XDP_UMEM_REG, _XDP_UMEM_FILL_RING, _XDP_UMEM_COMPLETION_RING = 2, 4, 5, 6
_SYS_BPF = {"x86_64": 321, "aarch64": 280}
_BPF_PROG_LOAD, _BPF_PROG_GET_FD_BY_ID, _BPF_LINK_CREATE = 5, 13, 28
_BPF_LINK_GET_FD_BY_ID, _BPF_LINK_DETACH = 30, 34
_BPF_NEXT_ID = {"prog_id": 11, "map_id": 12, "link_id": 31}
_BPF_PROG_TYPE_XDP, _BPF_XDP = 6, 37

_libc = ctypes.CDLL(None, use_errno=True)


def missing(reason: str) -> None:
    """Skip the test, or fail it where XDP must work."""
    if _REQUIRED:
        pytest.fail(f"XDPSPEAD_REQUIRE_XDP=1, but {reason}")
    pytest.skip(reason)


def require_xdp() -> None:
    """Skip the test with the reason, unless AF_XDP and network namespaces can be had."""
    if os.geteuid() != 0:
        missing("AF_XDP tests need root")
    if not sp.features.udp_xdp:
        missing(str(sp.features.udp_xdp))


class Lab:
    """A veth pair between a sending and a receiving namespace.

    Parameters are those of `VethLab`.
    """

    def __init__(self, **kwargs: Any) -> None:
        require_xdp()
        self._lab = VethLab(**kwargs)
        self._streams: list[Any] = []
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> Self:
        try:
            self._lab.__enter__()
        except PermissionError as error:
            missing(f"network namespaces cannot be made: {error}")
        self.tx, self.rx = self._lab.tx, self._lab.rx
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            for stream in self._streams:
                stream.stop()
            for sock in self._sockets:
                sock.close()
        finally:
            self._lab.__exit__(kind, value, traceback)

    # Receiving

    def stream(self, **kwargs: Any) -> Any:
        """Return a stream that is stopped with the laboratory."""
        stream = new_stream(**kwargs)
        self._streams.append(stream)
        return stream

    def add_reader(self, stream: Any, **config: Any) -> int:
        """Add an AF_XDP reader on the receiving interface and return its port, a fresh one.

        Keywords are those of `UdpXdpConfig`; `host` stands for the address of its one endpoint.
        """
        port = next(_ports)
        host = config.pop("host", self.rx.ipv4)
        config = {"endpoints": [(host, port)], "interface": self.rx.interface, **config}
        with self.rx.enter():
            stream.add_udp_xdp_reader(recv.UdpXdpConfig(**config))
        return port

    def receiver(self, **config: Any) -> tuple[Any, int]:
        """Return a stream with an AF_XDP reader, and its port."""
        stream = self.stream()
        return stream, self.add_reader(stream, **config)

    def listen(self, port: int, host: str | None = None) -> socket.socket:
        """Return an ordinary UDP socket of the receiving namespace."""
        with self.rx.enter():
            return self._socket("bind", port, self.rx.ipv4 if host is None else host)

    # Sending

    def sender(self, port: int, host: str | None = None) -> socket.socket:
        """Return a UDP socket of the sending namespace, connected to the receiving one."""
        with self.tx.enter():
            return self._socket("connect", port, self.rx.ipv4 if host is None else host)

    def _socket(self, call: str, port: int, host: str) -> socket.socket:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_DGRAM)
        self._sockets.append(sock)
        sock.settimeout(DEADLINE)
        getattr(sock, call)((host, port))
        return sock

    def assert_receives(self, stream: Any, port: int, n: int = 20, **kwargs: Any) -> None:
        """Send `n` heaps of several packets and check that each arrives byte for byte."""
        sock = self.sender(port, **kwargs)
        for cnt in range(n):
            for packet in simple_heap(cnt, 4000).packets(1000):
                sock.send(packet.encode())
            if cnt % 8 == 7 or cnt == n - 1:  # at most 32 packets under way
                for expected in range(cnt - cnt % 8, cnt + 1):
                    heap = next_heap(stream)
                    assert (heap.cnt, payload(heap)) == (expected, pattern(expected, 4000))

    def inject(self, *frames: Any) -> None:
        """Send Ethernet frames, as scapy packets or bytes, through the sending interface."""
        with self.tx.enter():
            raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        with raw:
            raw.bind((self.tx.interface, 0))
            for frame in frames:
                raw.send(bytes(frame))

    # Questions

    def link(self) -> dict[str, Any]:
        """Return what ``ip -j link show`` says of the receiving interface."""
        command = ["ip", "-j", "link", "show", "dev", self.rx.interface]
        done = self.rx.run(command, stdout=subprocess.PIPE, check=True, timeout=DEADLINE)
        (link,) = json.loads(done.stdout)
        assert isinstance(link, dict)
        return link

    def program(self) -> int | None:
        """Return the id of the XDP program on the receiving interface, or None."""
        xdp = self.link().get("xdp")
        return None if xdp is None else int(xdp["prog"]["id"])

    def wait_detached(self) -> None:
        """Wait until no program is on the receiving interface."""
        wait_for(lambda: self.program() is None, "the XDP program detached")

    def ethtool(self, namespace: Any) -> dict[str, int]:
        """Return the driver's statistics of a namespace's interface."""
        command = ["ethtool", "-S", namespace.interface]
        done = namespace.run(command, stdout=subprocess.PIPE, check=True, text=True)
        pairs = (line.split(":") for line in done.stdout.splitlines()[1:])
        return {name.strip(): int(value) for name, value in pairs}

    def ip(self, *args: str) -> None:
        """Run ``ip`` in the receiving namespace."""
        self.rx.run(["ip", *args], check=True, timeout=DEADLINE)

    def python(self, code: str) -> subprocess.Popen[str]:
        """Start Python with `code` in the receiving namespace; it finds the test modules."""
        paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        return self.rx.popen(
            [sys.executable, "-P", "-c", textwrap.dedent(code)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        )

    # Other users of the interface

    def attach_foreign_program(self) -> int:
        """Attach a program that passes everything, and return the descriptor of its link."""
        # r0 = XDP_PASS; exit
        code = ctypes.create_string_buffer(struct.pack("<BBhiBBhi", 0xB7, 0, 0, 2, 0x95, 0, 0, 0))
        text = ctypes.create_string_buffer(b"GPL")
        load = struct.pack(
            "<IIQQ", _BPF_PROG_TYPE_XDP, 2, ctypes.addressof(code), ctypes.addressof(text)
        )
        program = _bpf(_BPF_PROG_LOAD, load)
        try:
            with self.rx.enter():
                create = struct.pack("<IIII", program, self.rx.ifindex, _BPF_XDP, 0)
                return _bpf(_BPF_LINK_CREATE, create)
        finally:
            os.close(program)

    def detach_program(self) -> None:
        """Take the program off, as ``bpftool link detach`` does."""
        ours = self.program()
        for program, fd in _links():
            if program == ours:
                _bpf(_BPF_LINK_DETACH, struct.pack("I", fd))
            os.close(fd)

    def occupy_queue(self, queue: int = 0) -> tuple[socket.socket, mmap.mmap]:
        """Bind a foreign AF_XDP socket to a queue, as another process would."""
        with self.rx.enter():
            xsk = socket.socket(_AF_XDP, socket.SOCK_RAW, 0)
            self._sockets.append(xsk)
            memory = mmap.mmap(-1, 1 << 20)
            address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
            umem = struct.pack("<QQIII4x", address, len(memory), 4096, 0, 0)
            xsk.setsockopt(_SOL_XDP, _XDP_UMEM_REG, umem)
            for ring in (_XDP_UMEM_FILL_RING, _XDP_UMEM_COMPLETION_RING, _XDP_RX_RING):
                xsk.setsockopt(_SOL_XDP, ring, struct.pack("<I", 64))
            bind_xdp(xsk.fileno(), self.rx.ifindex, queue)
        return xsk, memory


class Load:
    """Traffic that flows all the time: heaps of one packet of 1,000 bytes, numbered as they go.

    They come whether or not anybody receives them, and while the link between the two ends is
    broken they are not sent.

    Parameters
    ----------
    lab : Lab
        Where.
    port : int
        To which port of the receiving end.
    pause : float
        Seconds between two packets.
    most : int
        It ends by itself after so many.
    """

    LENGTH = 1000

    def __init__(self, lab: Lab, port: int, pause: float = 0.0005, most: int = 50_000) -> None:
        with lab.tx.enter():
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._address = (lab.rx.ipv4, port)
        self._pause, self._most = pause, most
        self._enough = threading.Event()
        self.sent = 0  #: how many have been

    def _send(self) -> None:
        while self.sent < self._most and not self._enough.wait(self._pause):
            packet = simple_heap(self.sent, self.LENGTH).packets(self.LENGTH)[0].encode()
            with contextlib.suppress(OSError):
                self._socket.sendto(packet, self._address)
                self.sent += 1

    def __enter__(self) -> Self:
        self._thread = in_thread(self._send)
        return self

    def __exit__(self, *args: object) -> None:
        self._enough.set()
        self._thread.join(DEADLINE)
        self._socket.close()


def assert_ledger(stats: Any) -> None:
    """Check that the statistics of a stream that has stopped account for every packet."""
    count = {short: stats[name] for short, name in XDP.items()}
    assert count["matched"] == count["redirected"] + count["no_socket"] + count["bad_length"]
    refused = sum(stats[REASONS[reason]] for reason in PARSER_REASONS)
    lost = sum(count[name] for name in ("bad_frame", "unread_drops", "rx_dropped", "rx_ring_full"))
    after_stop = stats["xdpspead.after_stop"]
    assert count["redirected"] == stats["packets"] + refused + after_stop + lost, stats


def bind_xdp(fd: int, ifindex: int, queue: int) -> None:
    """bind(2) with a struct sockaddr_xdp, which Python does not know."""
    name = struct.pack("<HHIII", _AF_XDP, 0, ifindex, queue, 0)
    if _libc.bind(fd, name, len(name)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _bpf(command: int, attributes: bytes) -> int:
    buffer = ctypes.create_string_buffer(attributes.ljust(128, b"\0"))
    fd = int(_libc.syscall(_SYS_BPF[os.uname().machine], command, buffer, 128))
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"bpf({command}): {os.strerror(number)}")
    return fd


def _links() -> Iterator[tuple[int, int]]:
    """Yield the program of each XDP link that there is, and a descriptor of the link, to close."""
    for kind, number in _bpf_ids():
        if kind != "link_id":
            continue
        try:
            fd = _bpf(_BPF_LINK_GET_FD_BY_ID, struct.pack("I", number))
        except FileNotFoundError:
            continue  # it was that of a test beside this one, which has just ended
        info = dict(
            line.split(":\t")
            for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
            if ":\t" in line
        )
        yield int(info.get("prog_id", 0)), fd


def _bpf_ids() -> set[tuple[str, int]]:
    found = set()
    for kind, command in _BPF_NEXT_ID.items():
        attributes = ctypes.create_string_buffer(128)
        while not _libc.syscall(_SYS_BPF[os.uname().machine], command, attributes, 128):
            (number,) = struct.unpack_from("I", attributes, 4)
            found.add((kind, number))
            struct.pack_into("II", attributes, 0, number, 0)
    return found


def _bpf_held() -> set[tuple[str, int]]:
    held = set()
    for fd in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):  # it has just been closed
            if "bpf" not in os.readlink(fd):
                continue
            for line in (fd.parents[1] / "fdinfo" / fd.name).read_text().splitlines():
                kind, _, number = line.partition(":")
                if kind in _BPF_NEXT_ID:
                    held.add((kind, int(number)))
    return held


def bpf_orphans() -> set[tuple[str, int]]:
    """Return the programs, maps and links that are there though no process holds them."""
    there = _bpf_ids()
    return there - _bpf_held() if there else there


def program_is_loaded(number: int) -> bool:
    """Return whether the kernel has a BPF program with this id."""
    try:
        fd = _bpf(_BPF_PROG_GET_FD_BY_ID, struct.pack("I", number))
    except OSError as error:
        if error.errno == errno.ENOENT:
            return False
        raise
    os.close(fd)
    return True
