"""Running as a service: unit and receiver of the manual, and the privileges that suffice."""

from __future__ import annotations

import configparser
import re
import runpy
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from target import need_tree_open_to_all
from wire import simple_heap
from xdplab import Lab

pytestmark = pytest.mark.ours

#: Seconds that another process may take, starting Python on a busy machine included.
DEADLINE = 50.0
EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
UNIT = EXAMPLES / "spead-receiver.service"
PORT = 7300


@pytest.fixture
def lab():
    with Lab() as lab:
        yield lab


# ------------------------------------------------------------------ the unit


def test_unit_of_the_manual_is_understood_by_systemd(tmp_path):
    text = UNIT.read_text().replace("/opt/spead/bin/python", sys.executable)
    copy = tmp_path / UNIT.name
    copy.write_text(text.replace("User=spead", "User=root"))
    if shutil.which("systemd-analyze") is None:
        parser = configparser.ConfigParser(strict=True, interpolation=None)
        parser.optionxform = str  # type: ignore[assignment, method-assign]
        parser.read(copy)
        assert parser.sections() == ["Unit", "Service", "Install"]
        assert all(value for section in parser.values() for value in section.values())
        return
    done = subprocess.run(
        ["systemd-analyze", "verify", copy],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    complaints = [line for line in done.stderr.splitlines() if UNIT.name in line]
    assert complaints == []


def test_unit_grants_what_features_ask_for():
    from xdpspead import _features

    asked = re.search(r"AmbientCapabilities=((?:CAP_\w+ ?)+)", _features._HOW_TO_GRANT)
    assert asked is not None
    for key in ("AmbientCapabilities", "CapabilityBoundingSet"):
        assert f"\n{key}={asked[1].strip()}\n" in UNIT.read_text()


# ------------------------------------------------------------------ the receiver


@pytest.mark.xdp
def test_receiver_of_the_manual_is_ready_alive_and_ends_when_told(lab, tmp_path):
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(path)
        systemd.settimeout(DEADLINE)
        receiver = lab.rx.popen(
            [
                *("env", f"NOTIFY_SOCKET={path}", sys.executable, EXAMPLES / "receiver.py"),
                *(lab.rx.interface, f"{lab.rx.ipv4}:{PORT}"),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert systemd.recv(100) == b"READY=1"
        assert systemd.recv(100) == b"WATCHDOG=1"
        sender = lab.sender(PORT)
        heap = runpy.run_path(str(EXAMPLES / "sender.py"))["heap"]
        for packet in heap(1, samples=np.arange(10)):
            sender.send(packet)
        assert systemd.recv(100) == b"WATCHDOG=1"
        receiver.terminate()
        last = b""
        while last != b"STOPPING=1":
            last = systemd.recv(100)
    out, err = receiver.communicate(timeout=DEADLINE)
    assert (receiver.returncode, err) == (0, "")
    assert re.search(r"^user +1 +1 +0", out, re.MULTILINE), out


# ------------------------------------------------------------------ privileges

#: Becomes nobody with certain capabilities, and receives; with so little memory that it may be
#: locked. All is done once before, because only root can read some of what is imported.
NOBODY = """
import ctypes, os, struct
import target
def new_stream():
    stream = target.new_stream()
    stream.add_udp_xdp_reader(target.recv.UdpXdpConfig(
        endpoints=[({host!r}, {port}), ("239.1.2.3", {port})], interface={interface!r},
        buffer_size=1 << 20))
    return stream
new_stream().stop()
BITS = {{"CAP_NET_RAW": 13, "CAP_NET_ADMIN": 12, "CAP_BPF": 39}}
libc = ctypes.CDLL(None, use_errno=True)
PR_SET_KEEPCAPS = 8
assert libc.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) == 0
os.setgroups([]); os.setgid(65534); os.setuid(65534)
masks = [0] * 6
for name in {names!r}:
    for half in range(2):  # effective, permitted
        masks[BITS[name] // 32 * 3 + half] |= 1 << BITS[name] % 32
header = ctypes.create_string_buffer(struct.pack("<Ii", 0x20080522, 0))
assert libc.capset(header, struct.pack("<6I", *masks)) == 0
stream = new_stream()
print("ready", os.getuid(), flush=True)
print(target.next_heap(stream).cnt)
"""


@pytest.mark.xdp
def test_ordinary_user_with_the_capabilities_of_the_unit_receives(lab):
    need_tree_open_to_all()
    (granted,) = re.findall(r"^AmbientCapabilities=(.*)$", UNIT.read_text(), re.MULTILINE)
    process = lab.python(
        NOBODY.format(
            names=granted.split(),
            host=lab.rx.ipv4,
            interface=lab.rx.interface,
            port=PORT,
        )
    )
    assert process.stdout.readline() == "ready 65534\n", process.stderr.read()
    sender = lab.sender(PORT)
    for packet in simple_heap(3, 100).packets(1000):
        sender.send(packet.encode())
    out, err = process.communicate(timeout=DEADLINE)
    assert (out, err) == ("3\n", "")
