"""AF_XDP readers: from what the user asks for to sockets on the queues of an interface.

The C core does the work (``csrc/transport_xdp.c``). Here multicast groups are joined, and the
interfaces that this process has a program on are remembered, because all its streams share one
program.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import threading
from collections.abc import Sequence
from typing import Final

from .. import _core
from .._addresses import is_multicast, resolve
from .._errors import TransportError, XdpError
from .._guard import Guard
from .._log import LOGGER
from . import _sockets, _steering, _udp, _zero_copy
from ._interface import Interface, choose_queues, find_interface
from ._napi import defer_interrupts
from ._reader import Begin, ReaderInfo
from ._xdp_config import UdpXdpConfig

#: Beyond this MTU the program is loaded so that it takes packets in several buffers; the drivers
#: that cannot do without draw the line from 3046 to 3520 bytes.
_LARGEST_MTU_OF_ONE_FRAME: Final = 3000

# ------------------------------------------------------------------ ports

#: Held while a reader is opened. Who only has to tidy up, as when a signal's handler or a finalizer
#: stops a stream in the middle of that, must not wait for it: see release_ports().
_lock = threading.Lock()
_ports: dict[tuple[int, int], _core.XdpPort] = {}
_stale = False


def _forget_parent() -> None:
    """Begin anew in a forked child: interfaces, and who has the lock, are its parent's."""
    global _lock
    _lock = threading.Lock()
    for port in _ports.values():
        port.forget()
    _ports.clear()


os.register_at_fork(after_in_child=_forget_parent)


def _open_port(config: UdpXdpConfig, interface: Interface) -> _core.XdpPort:
    """Return the port of an interface: all streams of the process share it. Lock held."""
    _forget_unused()
    key = (interface.namespace, interface.index)
    if key not in _ports:
        _ports[key] = _core.XdpPort(
            ifindex=interface.index,
            mode=config.mode,
            n_queues=interface.n_queues,
            mtu=interface.mtu,
            multi_buffer=interface.mtu > _LARGEST_MTU_OF_ONE_FRAME,
        )
    port = _ports[key]
    if config.mode not in ("auto", port.mode):
        raise XdpError(
            errno.EBUSY,
            f"choose mode: a stream of this process uses {interface.name} in {port.mode} mode "
            f"already; all have to use the same, or mode='auto'",
            "choose mode",
        )
    return port


def _forget_unused() -> None:
    for key in [key for key, port in _ports.items() if not port.in_use]:
        del _ports[key]


def release_ports() -> None:
    """Forget the ports that no reader uses any more, and with them their programs and maps."""
    global _stale
    _stale = True
    # Whoever has the lock now looks once more when it is free.
    while _stale and _lock.acquire(blocking=False):
        try:
            _stale = False
            _forget_unused()
        finally:
            _lock.release()


# ------------------------------------------------------------------ readers


def join_groups(
    endpoints: Sequence[tuple[int, bytes, int]], index: int, sockets: contextlib.ExitStack
) -> None:
    """Join the multicast groups among the endpoints, with new `sockets`, until those are closed.

    AF_XDP cannot join groups: the kernel must, so that it answers queries and the device and the
    switch let the packets through.
    """
    for family in (socket.AF_INET, socket.AF_INET6):
        version = 4 if family == socket.AF_INET else 6
        groups = {
            address
            for found, address, _ in endpoints
            if found == version and is_multicast(socket.inet_ntop(family, address))
        }
        if not groups:
            continue
        sock = sockets.enter_context(socket.socket(family, socket.SOCK_DGRAM))
        for group in groups:
            if version == 4:
                membership = struct.pack("4s4si", group, b"\0" * 4, index)
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
            else:
                membership = struct.pack("16si", group, index)
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, membership)


def _steer(
    config: UdpXdpConfig,
    interface: Interface,
    endpoints: Sequence[tuple[int, bytes, int]],
    queues: Sequence[int],
    guards: contextlib.ExitStack,
) -> tuple[str, ...]:
    if config.steer == "none":
        return ()
    guard = guards.enter_context(Guard())
    rules = _steering.rules_for([(*endpoint, b"") for endpoint in endpoints], queues)
    return _steering.steer(guard, interface, rules, queues)


def _resolve(config: UdpXdpConfig) -> list[tuple[int, bytes, int]]:
    endpoints = []
    for host, port in config.endpoints:
        family, address = resolve(host)
        packed = socket.inet_pton(family, address.partition("%")[0])
        endpoints.append((4 if family == socket.AF_INET else 6, packed, port))
    return endpoints


def prepare(config: UdpXdpConfig, joined: contextlib.ExitStack) -> Begin:
    """Check the configuration of an AF_XDP reader.

    `joined` will hold the sockets that joined multicast groups for it.
    """
    if not isinstance(config, UdpXdpConfig):
        raise TypeError(f"config must be a UdpXdpConfig, not {config!r}")
    config = config._copy()
    config._check()
    _zero_copy.check_environment()

    def begin(stream: _core.Stream) -> list[ReaderInfo]:
        try:
            info = open_reader(stream, config, joined)
        except XdpError as error:
            if not config.fallback or takes_from_us(error):
                raise
            LOGGER.warning("%s; reading ordinary UDP sockets instead", error)
            return [_read_fallback(stream, config, *endpoint) for endpoint in config.endpoints]
        return [] if info is None else [info]

    return begin


def takes_from_us(error: XdpError) -> bool:
    """Whether another reader has an endpoint: its packets would never come to a socket instead."""
    return error.errno == errno.EADDRINUSE


def _read_fallback(stream: _core.Stream, config: UdpXdpConfig, host: str, port: int) -> ReaderInfo:
    family, address = resolve(host)
    interface: str | int = config.interface_address if family == socket.AF_INET else 0
    if config.interface:
        try:
            interface = socket.if_nametoindex(config.interface)
        except OSError as error:
            text = f"find interface: no interface is called {config.interface!r}"
            raise TransportError(error.errno or 0, text, "find interface") from None
    sock = _sockets.open_socket(family, address, port, config.buffer_size, interface)
    return _udp.read(stream, sock, config.max_size)


def open_reader(
    stream: _core.Stream, config: UdpXdpConfig, joined: contextlib.ExitStack
) -> ReaderInfo | None:
    """Add an AF_XDP reader to the stream and tell what it is; None if the stream has stopped.

    Sockets that have joined the endpoints' multicast groups are put into `joined`; the groups are
    received as long as they are open.

    Raises
    ------
    XdpError
        If that cannot be done; nothing is left behind.
    """
    groups = contextlib.ExitStack()
    port: _core.XdpPort | None = None
    try:
        endpoints = _resolve(config)
        addresses = [
            socket.inet_ntop(socket.AF_INET if family == 4 else socket.AF_INET6, packed)
            for family, packed, _ in endpoints
        ]
        interface = find_interface(config, addresses)
        queues = choose_queues(config, interface)
        with _lock:
            port = _open_port(config, interface)
            join_groups(endpoints, interface.index, groups)
            # After the program: drivers that reset themselves for it may forget their rules.
            steer = _steer(config, interface, endpoints, queues, groups)
            zero_copy = _zero_copy.choose(config, interface, port.mode)
            obtained = stream.add_xdp_reader(
                port,
                endpoints,
                queues,
                max(config.buffer_size // len(queues), 1),
                config.max_size,
                zero_copy.ask,
                config.max_poll,
                config.busy_poll_budget if config.busy_poll else 0,
            )
        if obtained is not None:
            if obtained.busy_poll is not False:
                groups.callback(defer_interrupts(interface, obtained.napi_ids))
            joined.push(groups.pop_all())
            if stream.stopped:  # meanwhile, and maybe before it could see the sockets
                joined.close()
    except XdpError:
        raise
    except OSError as error:
        step = getattr(error, "step", "")
        raise XdpError(error.errno or 0, str(error), step) from None
    finally:
        groups.close()
        # Whoever keeps an error keeps this frame, which must not keep the program attached.
        port = None
        release_ports()
    if obtained is None:
        return None
    info = ReaderInfo(
        "udp_xdp",
        endpoints=tuple(zip(addresses, (port for _, _, port in endpoints), strict=True)),
        interface=interface.name,
        queues=tuple(queues),
        mode="native" if obtained.native else "generic",
        zero_copy=obtained.zero_copy,
        memory=obtained.memory,
        busy_poll=obtained.busy_poll,
        driver=interface.driver or None,
        why_copy=zero_copy.outcome(zero_copy=obtained.zero_copy) or None,
        steer=steer,
    )
    _log(info)
    return info


def _log(info: ReaderInfo) -> None:
    LOGGER.info(
        "reading queues %s of %s (driver %s) in %s mode, %s",
        ", ".join(map(str, info.queues)),
        info.interface,
        info.driver or "unknown",
        info.mode,
        "zero-copy" if info.zero_copy else f"packets are copied: {info.why_copy}",
    )
