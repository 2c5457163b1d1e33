"""Capture files."""

from __future__ import annotations

import os

from .. import _core
from ._reader import Begin, ReaderInfo


def prepare(filename: str | bytes | os.PathLike[str], expression: str, *, stopped: bool) -> Begin:
    """Check the arguments of ``add_udp_pcap_file_reader``, and open the file.

    It is opened at once, also with ``explicit_start``, so that what is wrong with it is an error of
    that call. Only for a stream that has `stopped` it is not.
    """
    if not isinstance(expression, str):
        raise TypeError(f"filter must be a str, not {expression!r}")
    path = os.fsencode(filename)
    if b"\0" in path or "\0" in expression:
        raise ValueError("embedded null byte")
    if stopped:
        return lambda stream: []
    capture = _core.Capture(path, expression.encode())

    def begin(stream: _core.Stream) -> list[ReaderInfo]:
        stream.add_pcap_reader(capture)
        return [ReaderInfo("pcap")]

    return begin
