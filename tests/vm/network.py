"""The two cards of a guest: one receives, the other sends from a network namespace of its own."""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import AbstractContextManager
from pathlib import Path

from vm.emulator import RECEIVER_MAC, SENDER_MAC
from xdpspead import _netlab

RECEIVER = "rx0"
SENDER = "tx0"
RECEIVER_ADDRESS = "192.0.2.2"
SENDER_ADDRESS = "192.0.2.1"
_CARRIER_S = 60.0


def ip(*arguments: str) -> str:
    """Run ``ip`` and return what it says."""
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr}")
    return done.stdout


def _find(mac: str) -> str:
    for path in Path("/sys/class/net").iterdir():
        if (path / "address").read_text().strip() == mac:
            return path.name
    raise RuntimeError(f"there is no card {mac}")


class Network:
    """Both cards, with addresses, and each with the other's as its neighbour."""

    def __init__(self) -> None:
        self._sender = _netlab.Namespace("sender", SENDER_ADDRESS, "")
        _netlab._make_namespace(self._sender.path)
        ip("link", "set", "lo", "up")
        ip("link", "set", _find(RECEIVER_MAC), "down", "name", RECEIVER)
        ip("link", "set", _find(SENDER_MAC), "down", "name", SENDER, "netns", "sender")
        self._start(RECEIVER, RECEIVER_ADDRESS, SENDER_ADDRESS, SENDER_MAC)
        with self.sender():
            self._start(SENDER, SENDER_ADDRESS, RECEIVER_ADDRESS, RECEIVER_MAC)
        self.wait_carrier()

    def _start(self, name: str, address: str, other: str, mac: str) -> None:
        Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")
        ip("link", "set", name, "up")
        ip("addr", "add", f"{address}/24", "dev", name)
        ip("neigh", "replace", other, "lladdr", mac, "dev", name, "nud", "permanent")

    def sender(self) -> AbstractContextManager[None]:
        """Return a context manager that moves the calling thread to the sending card."""
        return self._sender.enter()

    def set_mtu(self, mtu: int) -> None:
        """Set the MTU of both cards."""
        ip("link", "set", RECEIVER, "mtu", str(mtu))
        with self.sender():
            ip("link", "set", SENDER, "mtu", str(mtu))
        self.wait_carrier()

    def wait_carrier(self) -> None:
        """Wait until both cards have a link."""
        end = time.monotonic() + _CARRIER_S
        while not self.has_carrier():
            if time.monotonic() > end:
                raise RuntimeError(f"no link within {_CARRIER_S} s: {ip('link')}")
            time.sleep(0.05)

    def has_carrier(self) -> bool:
        """Return whether both cards have a link."""
        with self.sender():
            other = ip("link", "show", "dev", SENDER)
        return all("LOWER_UP" in text for text in (ip("link", "show", "dev", RECEIVER), other))


def driver() -> str:
    """Return the driver of the receiving card, as sysfs knows it."""
    return os.path.basename(os.path.realpath(f"/sys/class/net/{RECEIVER}/device/driver"))
