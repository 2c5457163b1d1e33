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
import threading
from collections.abc import Sequence
from typing import Final

from .. import _core
from .._addresses import is_unspecified
from .._errors import TransportError, XdpError
from .._log import LOGGER
from . import _sockets, _udp, _zero_copy
from ._endpoints import Endpoint, few, resolve_endpoint, united
from ._groups import join_groups
from ._interface import (
    Interface,
    attached_program,
    choose_queues,
    find_interface,
    link_is_back,
)
from ._owner import Owner
from ._reader import Begin, ReaderInfo
from ._through import choose_helper
from ._xdp_config import UdpXdpConfig

#: Beyond this MTU the program is loaded so that it takes packets in several buffers; the drivers
#: that cannot do without draw the line from 3046 to 3520 bytes.
_LARGEST_MTU_OF_ONE_FRAME: Final = 3000

# ------------------------------------------------------------------ ports

#: Held while a reader is opened. Who only has to tidy up, as when a signal's handler or a finalizer
#: stops a stream in the middle of that, must not wait for it: see release_ports().
_lock = threading.Lock()
_ports: dict[tuple[int, int, str], _core.XdpPort] = {}
_stale = False


def _forget_parent() -> None:
    """Begin anew in a forked child: interfaces, and who has the lock, are its parent's."""
    global _lock
    _lock = threading.Lock()
    for port in _ports.values():
        port.forget()
    _ports.clear()


os.register_at_fork(after_in_child=_forget_parent)


def _open_port(config: UdpXdpConfig, interface: Interface, helper: str) -> _core.XdpPort:
    """Return the port of an interface: all streams of the process share it. Lock held."""
    _forget_unused()
    key = (interface.namespace, interface.index, helper)
    if key not in _ports:
        _ports[key] = _core.XdpPort(
            ifindex=interface.index,
            mode=config.mode,
            n_queues=interface.n_queues,
            mtu=interface.mtu,
            multi_buffer=interface.mtu > _LARGEST_MTU_OF_ONE_FRAME,
            helper=helper,
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


def prepare(config: UdpXdpConfig, owner: Owner) -> Begin:
    """Check the configuration of an AF_XDP reader."""
    if not isinstance(config, UdpXdpConfig):
        raise TypeError(f"config must be a UdpXdpConfig, not {config!r}")
    config = config._copy()
    config._check(owner.n_threads)
    _zero_copy.check_environment()

    def begin(stream: _core.Stream) -> list[ReaderInfo]:
        try:
            info = open_reader(stream, config, owner)
        except XdpError as error:
            if not config.fallback or takes_from_us(error):
                raise
            LOGGER.warning("%s; reading ordinary UDP sockets instead", error)
            return _read_fallback(stream, config)
        return [] if info is None else [info]

    return begin


def takes_from_us(error: XdpError) -> bool:
    """Whether another reader has an endpoint: its packets would never come to a socket instead."""
    return error.errno == errno.EADDRINUSE


def _fallback_interface(config: UdpXdpConfig, family: int) -> str | int:
    if not config.interface:
        return config.interface_address if family == socket.AF_INET else 0
    try:
        return socket.if_nametoindex(config.interface)
    except OSError as error:
        text = f"find interface: no interface is called {config.interface!r}"
        raise TransportError(error.errno or 0, text, "find interface") from None


def _check_fallback(endpoint: Endpoint) -> None:
    if endpoint.source and is_unspecified(endpoint.address):
        text = (
            f"bind: an ordinary socket cannot receive {endpoint}: it takes one source of any "
            f"address to be one of its own addresses. Say which address in the endpoint"
        )
        raise TransportError(errno.EOPNOTSUPP, text, "bind")


def _read_fallback(stream: _core.Stream, config: UdpXdpConfig) -> list[ReaderInfo]:
    """Read a socket for each endpoint; or none, if one of them cannot be had."""
    sockets: dict[Endpoint, socket.socket] = {}
    with contextlib.ExitStack() as stack:
        for endpoint in united(map(resolve_endpoint, config.endpoints)):
            _check_fallback(endpoint)
            where = (endpoint.family, endpoint.address, endpoint.port)
            sockets[endpoint] = stack.enter_context(
                _sockets.open_socket(
                    *where,
                    config.buffer_size,
                    _fallback_interface(config, endpoint.family),
                    endpoint.source,
                    [s for e, s in sockets.items() if (e.family, e.address, e.port) == where],
                )
            )
        return [
            _udp.read(stream, sock, config.max_size, endpoint.source)
            for endpoint, sock in sockets.items()
        ]


def _describe(endpoints: Sequence[Endpoint], queues: Sequence[int], owner: Owner) -> str:
    """Return how a user may recognise a reader, when another wants one of its endpoints."""
    stream = f"stream_id {owner.stream_id}, " if owner.stream_id else ""
    return f"{stream}queues {few(queues, 8)}, endpoints {few(endpoints, 2)}"


def _steer(
    config: UdpXdpConfig,
    interface: Interface,
    endpoints: Sequence[Endpoint],
    queues: Sequence[int],
    settings: contextlib.ExitStack,
) -> tuple[str, ...]:
    if config.steer == "none":
        return ()
    from .._guard import Guard
    from . import _steering

    guard = settings.enter_context(Guard())
    rules = _steering.rules_for([endpoint.packed_all for endpoint in endpoints], queues)
    return _steering.steer(guard, interface, rules, queues)


def _whose_program(interface: Interface | None, number: int | None, step: str) -> str:
    """Return a sentence that says who holds the program that is in the way, if one is."""
    if interface is None or (number, step) != (errno.EBUSY, "attach program"):
        return ""
    from .._bpf_holders import holders

    program = attached_program(interface.index)
    processes = holders(program).processes if program else ()
    if not processes:
        return ""
    return f" Process {', '.join(processes)} has program {program}."


def open_reader(stream: _core.Stream, config: UdpXdpConfig, owner: Owner) -> ReaderInfo | None:
    """Add an AF_XDP reader to the stream and tell what it is; None if the stream has stopped.

    Raises
    ------
    XdpError
        If that cannot be done; nothing is left behind.
    """
    groups, settings = contextlib.ExitStack(), contextlib.ExitStack()
    port: _core.XdpPort | None = None
    interface: Interface | None = None
    try:
        helper = choose_helper(config)
        endpoints = [resolve_endpoint(endpoint) for endpoint in config.endpoints]
        interface = find_interface(config, [endpoint.address for endpoint in endpoints])
        queues = choose_queues(config, interface)
        joined = join_groups(endpoints, interface.index, interface.name, groups)
        counted = owner.devices.adding(
            interface.namespace, interface.index, interface.name, interface.driver
        )
        with _lock, counted:
            port = _open_port(config, interface, helper)
            owner.devices.watch(interface.namespace, interface.index, port)
            # After the program: drivers that reset themselves for it may forget their rules.
            steer = _steer(config, interface, endpoints, queues, settings)
            zero_copy = _zero_copy.choose(config, interface, port.mode)
            obtained = stream.add_xdp_reader(
                port,
                _describe(endpoints, queues, owner),
                [endpoint.packed_all for endpoint in endpoints],
                [sock.fileno() for sock in joined],
                queues,
                max(config.buffer_size // len(queues), 1),
                config.max_size,
                zero_copy.ask,
                config.max_poll,
                config.workers,
                config.busy_poll_budget if config.busy_poll else 0,
            )
        if obtained is not None:
            # Who stops the stream may do so at interpreter exit, and can import nothing then.
            owner.settings.callback(release_ports)
            if obtained.busy_poll is not False:
                from ._napi import defer_interrupts

                settings.callback(defer_interrupts(interface, obtained.napi_ids))
            owner.settings.push(settings.pop_all())
        if stream.stopped:  # meanwhile, and maybe before it could see them
            owner.close()
    except XdpError:
        raise
    except OSError as error:
        step = getattr(error, "step", "")
        text = f"{error}{_whose_program(interface, error.errno, step)}"
        raise XdpError(error.errno or 0, text, step) from None
    finally:
        groups.close()
        settings.close()
        # Whoever keeps an error keeps this frame, which must not keep the program attached.
        port = None
        release_ports()
    if obtained is None:
        return None
    if not link_is_back(interface):
        LOGGER.warning(
            "%s had a link before this reader was made and has none now: nothing comes until the "
            "driver and the other end agree on one again",
            interface.name,
        )
    info = ReaderInfo(
        "udp_xdp",
        endpoints=tuple(endpoint.shown for endpoint in endpoints),
        interface=interface.name,
        queues=tuple(queues),
        mode="native" if obtained.native else "generic",
        zero_copy=obtained.zero_copy,
        memory=obtained.memory,
        workers=config.workers,
        busy_poll=obtained.busy_poll,
        driver=interface.driver or None,
        why_copy=zero_copy.outcome(zero_copy=obtained.zero_copy) or None,
        steer=steer,
        helper=helper or None,
    )
    _log(info)
    return info


def _log(info: ReaderInfo) -> None:
    LOGGER.info(
        "reading queues %s of %s (driver %s) in %s mode%s, %s",
        ", ".join(map(str, info.queues)),
        info.interface,
        info.driver or "unknown",
        info.mode,
        f" through the helper at {info.helper}" if info.helper else "",
        "zero-copy" if info.zero_copy else f"packets are copied: {info.why_copy}",
    )
