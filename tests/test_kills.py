"""A receiver that is killed leaves nothing behind, at whatever moment, and hurts nobody else.

One life after the other is ended by SIGKILL while packets come to its endpoint all the time: while
it opens its reader, while it receives, and while it stops. How long each of that takes is measured
once, and the moment is drawn from there. Meanwhile a socket that has nothing to do with any of it
receives on the same interface.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import select
import signal
import socket
import struct
import tempfile
import textwrap
import time
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import pytest
from target import DEADLINE, OURS, in_thread, wait_for

pytestmark = [pytest.mark.ours, pytest.mark.xdp]

if OURS:
    from test_lifetimes import Nursery
    from test_steering import preloaded
    from xdplab import Lab, Load, bpf_orphans

#: AddressSanitizer makes each life many times as long.
KILLS = 100

_SO_RCVBUFFORCE = 33

PORT = 7400
OTHER_PORT = 7401

#: It says each step: (o)pening, (r)eceiving, (s)topping.
LIFE = """
    config = dict(endpoints=[({host!r}, {port})], interface={interface!r}, buffer_size=1 << 20)
    pool = sp.ThreadPool(2)
    while True:
        os.write(1, b"o")
        stream = new_stream(pool=pool)
        stream.add_udp_xdp_reader(recv.UdpXdpConfig(**config, **{options}))
        for n, heap in enumerate(stream):
            if n == 0:
                os.write(1, b"r")
            if n == 10:
                break
        os.write(1, b"s")
        stream.stop()
"""

#: Ways to receive, each with something of its own that could be left behind.
OPTIONS: list[dict[str, Any]] = [
    {"mode": "native"},
    {"mode": "generic"},
    {"mode": "native", "workers": 2},
    {"mode": "native", "busy_poll": True},  # knobs of the interface, and the process that has them
    {"mode": "native", "steer": "ntuple"},  # receive-flow rules, likewise
]


class Life:
    """A receiver, from its fork to its end."""

    def __init__(self, nursery: Nursery, lab: Lab, options: dict[str, Any]) -> None:
        self._nursery = nursery
        scene = textwrap.dedent(LIFE).format(
            host=lab.rx.ipv4, port=PORT, interface=lab.rx.interface, options=options
        )
        self._steps, theirs = os.pipe()
        self._err = tempfile.TemporaryFile()  # noqa: SIM115 (closed when it is killed)
        self.pid = nursery.begin(scene, [theirs, self._err.fileno()])
        os.close(theirs)

    def step(self, wanted: bytes) -> float:
        """Wait until it says that it takes this step; return when it did."""
        while True:
            ready, _, _ = select.select([self._steps], [], [], DEADLINE)
            step = os.read(self._steps, 1) if ready else b""
            if step == wanted:
                return time.monotonic()
            assert step, f"it does not begin {wanted!r}:\n{self.complaint()}"

    def complaint(self) -> str:
        self._err.seek(0)
        return self._err.read().decode()

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        assert self._nursery.end() == -signal.SIGKILL, self.complaint()
        os.close(self._steps)
        self._err.close()


class Bystander:
    """An ordinary socket that receives what is sent to it, packet by packet."""

    def __init__(self, lab: Lab) -> None:
        self._sender = lab.sender(OTHER_PORT)
        self._receiver = lab.listen(OTHER_PORT)
        self._receiver.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1 << 22)
        self._ended = False
        self.sent = 0
        self.came: list[int] = []
        self._threads = [in_thread(self._send), in_thread(self._receive)]

    def _send(self) -> None:
        while not self._ended:
            self._sender.send(struct.pack("!I", self.sent))
            self.sent += 1
            time.sleep(0.001)

    def _receive(self) -> None:
        with contextlib.suppress(OSError):  # closed with the laboratory
            while True:
                self.came += struct.unpack("!I", self._receiver.recv(100))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self._ended = True
        self._threads[0].join(DEADLINE)


def in_namespace(lab: Lab) -> set[int]:
    """Return the processes that live in the receiving namespace."""
    inode = os.stat(lab.rx.path).st_ino
    found = set()
    for path in Path("/proc").glob("[0-9]*/ns/net"):
        with contextlib.suppress(OSError):
            if path.stat().st_ino == inode:
                found.add(int(path.parts[2]))
    return found


def namespaces_of(processes: set[int]) -> list[str]:
    """Return the named network namespaces that these processes made, or died while making."""
    names = re.compile(r"xdpspead-(\d+)-")
    found = [(names.match(name), name) for name in os.listdir("/run/netns")]
    return [name for match, name in found if match and int(match[1]) in processes]


def knobs(lab: Lab) -> list[str]:
    """Return what defers the interrupts of the receiving interface."""
    script = "for f in napi_defer_hard_irqs gro_flush_timeout; do cat /sys/class/net/veth0/$f; done"
    command = ["sh", "-c", f"mount -t sysfs none /sys && {script}"]
    done = lab.rx.run(["unshare", "-m", *command], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.fixture
def lab() -> Iterator[Lab]:
    # GRO keeps the NAPI of a veth. Without it the driver throws away what is on its way whenever a
    # program comes or goes, whoever it is for.
    with Lab(queues=2, gro=True) as lab:
        yield lab


def test_kill_9_at_any_moment_leaves_nothing_behind_and_hurts_nobody(lab, shim, tmp_path):
    seed = random.randrange(1 << 32)
    print("seed", seed)  # shown if it fails
    chance = random.Random(seed)
    variables = {**preloaded(shim), "SHIM_DIR": str(tmp_path)}
    knobs_before = knobs(lab)
    orphans = bpf_orphans()
    moments: Counter[bytes] = Counter()
    killed = set()
    with (
        pytest.MonkeyPatch.context() as patch,
        Bystander(lab) as bystander,
        Load(lab, PORT, pause=0.001),
    ):
        for name, value in variables.items():
            patch.setenv(name, value)
        with Nursery(lab.rx.popen) as nursery:
            strangers = in_namespace(lab)
            life = Life(nursery, lab, OPTIONS[0])
            begins = [life.step(step) for step in (b"o", b"r", b"s", b"o")]
            lasts = {
                step: end - begin
                for step, (begin, end) in zip((b"o", b"r", b"s"), pairwise(begins), strict=True)
            }
            life.kill()
            for _ in range(KILLS):
                life = Life(nursery, lab, chance.choice(OPTIONS))
                step = chance.choice(list(lasts))
                life.step(step)
                time.sleep(chance.uniform(0, lasts[step]))
                life.kill()
                killed.add(life.pid)
                moments[step] += 1
            # The next one starts at once.
            life = Life(nursery, lab, OPTIONS[0])
            life.step(b"r")
            life.kill()
            wait_for(lambda: in_namespace(lab) == strangers, f"no process but {strangers}")
    print("killed while opening, receiving, stopping:", dict(moments), lasts)
    assert sum(moments.values()) == KILLS
    wait_for(lambda: bpf_orphans() <= orphans, "no program, map or link")
    lab.wait_detached()
    assert (tmp_path / "rules").read_text() == ""
    assert knobs(lab) == knobs_before
    assert not namespaces_of(killed)
    wait_for(lambda: len(bystander.came) >= bystander.sent, "all packets of the bystander", 2)
    assert bystander.came == list(range(bystander.sent))
    stream, port = lab.receiver()
    lab.assert_receives(stream, port)
