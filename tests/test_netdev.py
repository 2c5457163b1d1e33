"""Questions to the kernel's netlink family "netdev"."""

from __future__ import annotations

import errno
import os
import socket
import sys

import pytest
from target import OURS

pytestmark = pytest.mark.ours

if OURS:
    from xdpspead import _netdev

_DEV_GET, _IFINDEX = 1, 1


@pytest.fixture(autouse=True)
def family() -> None:
    try:
        _netdev.request(_DEV_GET, {})
    except FileNotFoundError:
        pytest.skip("this kernel has no netlink family netdev (Linux 6.3)")


def test_dump_names_every_interface():
    answers = _netdev.ask(_netdev.request(_DEV_GET, {}, dump=True))
    found = {int.from_bytes(answer[_IFINDEX], sys.byteorder) for answer in answers}
    assert found == {index for index, _ in socket.if_nameindex()}


def test_question_about_one_interface_has_one_answer():
    index = socket.if_nametoindex("lo")
    (answer,) = _netdev.ask(_netdev.request(_DEV_GET, {_IFINDEX: index}))
    assert int.from_bytes(answer[_IFINDEX], sys.byteorder) == index


def test_error_is_the_kernels():
    with pytest.raises(OSError, match=os.strerror(errno.ENODEV)):
        _netdev.xdp_features(2**31 - 1)


def test_loopback_has_no_zero_copy():
    assert _netdev.xdp_features(socket.if_nametoindex("lo")) == _netdev.XdpFeatures(False, 0)


def test_loopback_has_no_interrupts():
    assert _netdev.queue_interrupts(socket.if_nametoindex("lo")) == frozenset()


def test_kernel_that_does_not_know_the_family_tells_nothing(monkeypatch):
    def ask(message: bytes) -> list[dict[int, bytes]]:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr(_netdev, "ask", ask)
    assert _netdev.xdp_features(1) is None
