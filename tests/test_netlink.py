"""Messages of netlink: what is made is what pyroute2 makes, and no bytes do harm when read."""

from __future__ import annotations

import errno
import os
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink import nlmsg
from target import OURS

pytestmark = pytest.mark.ours

if OURS:
    from xdpspead import _netlink

_GETLINK = 18
_IFINFO = struct.Struct("=BxHiII")


class Attributes(nlmsg):
    """Attributes of bytes, of kinds 1 to 3, and nothing in front of them."""

    prefix = "X_"
    nla_map = (("X_NONE", "none"), ("X_A", "cdata"), ("X_B", "cdata"), ("X_C", "cdata"))


def pyroute2_bytes(values: dict[int, bytes]) -> bytes:
    """Return the attributes as pyroute2 packs them, without the header of the message."""
    message = Attributes()
    message["attrs"] = [(f"X_{'ABC'[kind - 1]}", value) for kind, value in values.items()]
    message.encode()
    return bytes(message.data)[16:]


some_attributes = st.dictionaries(st.integers(1, 3), st.binary(min_size=1, max_size=40), max_size=3)


@given(some_attributes)
def test_attributes_are_packed_as_pyroute2_packs_them(values):
    assert _netlink.pack(values) == pyroute2_bytes(values)


@given(some_attributes)
def test_attributes_of_pyroute2_are_read(values):
    assert _netlink.attributes(pyroute2_bytes(values)) == values


@given(some_attributes, st.integers(0, 200))
def test_attributes_that_are_cut_short_are_left_out(values, length):
    packed = pyroute2_bytes(values)[:length]
    found = _netlink.attributes(packed)
    assert list(found.items()) == list(values.items())[: len(found)]
    whole = [4 + len(value) for value in values.values()]
    places = [sum((size + 3) & ~3 for size in whole[:i]) + whole[i] for i in range(len(whole))]
    assert len(found) == sum(place <= len(packed) for place in places)


def test_flags_of_an_attribute_are_not_its_kind():
    nested = struct.pack("=HHI", 8, 0x8000 | 5, 7)
    assert _netlink.attributes(nested) == {5: struct.pack("=I", 7)}


@given(st.binary(max_size=200))
def test_no_bytes_do_harm(data):
    for value in _netlink.attributes(data).values():
        assert value in data
    for message in _netlink.messages(data):
        assert message.body in data


@pytest.mark.parametrize("length", [0, 3, 9, 0xFFFF])
def test_attribute_with_an_impossible_length_ends_the_reading(length):
    good = _netlink.pack({1: b"abcd"})
    assert _netlink.attributes(good + struct.pack("=HHI", length, 2, 0)) == {1: b"abcd"}


@pytest.mark.parametrize("length", [0, 15, 21, 1 << 31])
def test_message_with_an_impossible_length_ends_the_reading(length):
    good = _netlink.request(7, b"abcd")
    bad = struct.pack("=IHHIII", length, 8, 0, 1, 0, 0)
    assert [message.body for message in _netlink.messages(good + bad)] == [b"abcd"]


# ------------------------------------------------------------------ the kernel


def question(index: int, serial: int = 1) -> bytes:
    return _netlink.request(_GETLINK, _IFINFO.pack(0, 0, index, 0, 0), serial=serial)


def test_error_is_the_kernels():
    with pytest.raises(OSError, match=os.strerror(errno.ENODEV)) as caught:
        _netlink.ask(_netlink.NETLINK_ROUTE, question(2**31 - 1))
    assert caught.value.errno == errno.ENODEV


def test_answer_that_nobody_waited_for_is_not_taken_for_the_next():
    lo = socket.if_nametoindex("lo")
    with _netlink.connect(_netlink.NETLINK_ROUTE) as sock:
        sock.send(question(2**31 - 1, serial=1))
        (answer,) = _netlink.exchange(sock, question(lo, serial=2))
    assert _IFINFO.unpack_from(answer)[2] == lo


class Kernel:
    """What a socket's peer says, one datagram after the other."""

    def __init__(self, *datagrams: bytes, port: int = 0, flags: int = 0) -> None:
        self._datagrams = list(datagrams)
        self._port, self._flags = port, flags

    def send(self, message: bytes) -> None:
        self.asked = message

    def recvmsg(self, size: int) -> tuple[bytes, list[bytes], int, tuple[int, int]]:
        if not self._datagrams:
            raise TimeoutError
        return self._datagrams.pop(0), [], self._flags, (self._port, 0)


def message(kind: int, body: bytes, flags: int = 0) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, flags, 1, 0) + body


DONE = message(3, bytes(4), flags=2)


def test_list_that_changed_meanwhile_is_asked_for_again():
    interrupted = 0x10
    kernel = Kernel(message(16, b"old", interrupted).ljust(20), DONE, message(16, b"new!"), DONE)
    assert _netlink.exchange(kernel, _netlink.request(18, b"", dump=True)) == [b"new!"]


def test_list_that_always_changes_is_an_error():
    kernel = Kernel(*[message(3, bytes(4), flags=0x10)] * 100)
    with pytest.raises(InterruptedError, match="changes all the time"):
        _netlink.exchange(kernel, _netlink.request(18, b"", dump=True))


def test_what_another_process_says_is_not_believed():
    with pytest.raises(TimeoutError):
        _netlink.exchange(Kernel(DONE, port=1234), _netlink.request(18, b""))


def test_answer_that_was_cut_is_an_error():
    with pytest.raises(OSError, match="longer than 65536 bytes"):
        _netlink.exchange(Kernel(DONE, flags=socket.MSG_TRUNC), _netlink.request(18, b""))


def test_end_without_a_result_is_an_error():
    with pytest.raises(OSError, match="without a result"):
        _netlink.exchange(Kernel(message(2, b"")), _netlink.request(18, b""))
