"""AF_XDP readers: what the user asks for, which interface that is, and who else is on it.

The C core does the work (``csrc/transport_xdp.c``). Here the questions are answered that the kernel
answers through netlink: which interface, how many queues, which MTU; multicast groups are joined;
and the interfaces that this process has a program on are remembered, because all its streams share
one program.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from .. import _core
from .._addresses import endpoint_pair, is_multicast, resolve
from .._arguments import Config, count
from .._errors import TransportError
from .._log import LOGGER
from .._netlink import outside_event_loops, queues_in_use
from . import _sockets, _udp
from ._reader import Begin, ReaderInfo

_MODES: Final = ("auto", "native", "generic")

#: Beyond this MTU the program is loaded so that it takes packets in several buffers; the drivers
#: that cannot do without draw the line from 3046 to 3520 bytes.
_LARGEST_MTU_OF_ONE_FRAME: Final = 3000


class XdpError(TransportError):
    """AF_XDP cannot be had.

    Attributes
    ----------
    step : str
        Which step failed: ``"bind"``.
    errno : int
        The system's error number.
    """


class UdpXdpConfig(Config):
    """What an AF_XDP reader receives, and how.

    All parameters are keywords and can also be set as attributes.

    Parameters
    ----------
    endpoints : list of (str, int)
        Addresses (or host names) and UDP ports to receive, at least one. Everything else passes to
        the kernel. Multicast groups are joined.
    interface : str
        Name of the network interface. If empty it is found by `interface_address`, or by an
        endpoint that is an address of this machine.
    interface_address : str
        An address of the interface.
    queues : list of int, optional
        Receive queues to read; None for all queues of the interface.
    buffer_size : int
        Bytes of packet memory, shared out between the queues. If another stream of this process
        reads the queues already, its memory is shared.
    max_size : int
        Largest UDP payload that is accepted, in bytes; larger packets are counted.
    mode : str
        ``"native"``: the driver runs the program. ``"generic"``: the kernel does, slower, on any
        interface. ``"auto"``: native if the driver can.
    zero_copy : bool, optional
        True: the device must write into the packet memory itself. False: it must not. None: as it
        can.
    max_poll : int
        How often an empty ring is looked at before the worker sleeps. More is quicker and costs CPU
        time.
    fallback : bool
        Whether to read an ordinary UDP socket, with a warning, if AF_XDP cannot be had.
    """

    DEFAULT_BUFFER_SIZE: ClassVar[int] = 32 * 1024 * 1024
    DEFAULT_MAX_SIZE: ClassVar[int] = 9200
    DEFAULT_MAX_POLL: ClassVar[int] = 0

    __slots__ = (
        "_buffer_size",
        "_endpoints",
        "_fallback",
        "_interface",
        "_interface_address",
        "_max_poll",
        "_max_size",
        "_mode",
        "_queues",
        "_zero_copy",
    )

    def __init__(self, **kwargs: Any) -> None:
        self._endpoints: list[tuple[str, int]] = []
        self._interface = ""
        self._interface_address = ""
        self._queues: list[int] | None = None
        self._buffer_size = self.DEFAULT_BUFFER_SIZE
        self._max_size = self.DEFAULT_MAX_SIZE
        self._mode = "auto"
        self._zero_copy: bool | None = None
        self._max_poll = self.DEFAULT_MAX_POLL
        self._fallback = False
        self._set(kwargs)

    @property
    def endpoints(self) -> list[tuple[str, int]]:
        """Addresses and ports to receive."""
        return list(self._endpoints)

    @endpoints.setter
    def endpoints(self, value: Sequence[tuple[str, int]]) -> None:
        self._endpoints = [endpoint_pair(endpoint) for endpoint in value]

    @property
    def interface(self) -> str:
        """Name of the network interface."""
        return self._interface

    @interface.setter
    def interface(self, value: str) -> None:
        if not isinstance(value, str):
            raise TypeError(f"interface must be a name, not {value!r}")
        self._interface = value

    @property
    def interface_address(self) -> str:
        """An address of the interface."""
        return self._interface_address

    @interface_address.setter
    def interface_address(self, value: str) -> None:
        if not isinstance(value, str):
            raise TypeError(f"interface_address must be a str, not {value!r}")
        self._interface_address = value

    @property
    def queues(self) -> list[int] | None:
        """Receive queues to read; None for all."""
        return None if self._queues is None else list(self._queues)

    @queues.setter
    def queues(self, value: Sequence[int] | None) -> None:
        if value is None:
            self._queues = None
            return
        queues = [count("queue", queue) for queue in value]
        if not queues or len(set(queues)) != len(queues):
            raise ValueError(f"queues must be different, and at least one: {queues}")
        self._queues = queues

    @property
    def buffer_size(self) -> int:
        """Bytes of packet memory."""
        return self._buffer_size

    @buffer_size.setter
    def buffer_size(self, value: int) -> None:
        self._buffer_size = count("buffer_size", value) or self.DEFAULT_BUFFER_SIZE

    @property
    def max_size(self) -> int:
        """Largest UDP payload that is accepted, in bytes."""
        return self._max_size

    @max_size.setter
    def max_size(self, value: int) -> None:
        self._max_size = count("max_size", value, 1)

    @property
    def mode(self) -> str:
        """``"auto"``, ``"native"`` or ``"generic"``."""
        return self._mode

    @mode.setter
    def mode(self, value: str) -> None:
        if value not in _MODES:
            raise ValueError(f"mode must be one of {', '.join(_MODES)}, not {value!r}")
        self._mode = value

    @property
    def zero_copy(self) -> bool | None:
        """Whether the device must (True), must not (False) or may (None) write to our memory."""
        return self._zero_copy

    @zero_copy.setter
    def zero_copy(self, value: bool | None) -> None:
        self._zero_copy = None if value is None else bool(value)

    @property
    def max_poll(self) -> int:
        """How often an empty ring is looked at before the worker sleeps."""
        return self._max_poll

    @max_poll.setter
    def max_poll(self, value: int) -> None:
        self._max_poll = count("max_poll", value)

    @property
    def fallback(self) -> bool:
        """Whether to read ordinary sockets if AF_XDP cannot be had."""
        return self._fallback

    @fallback.setter
    def fallback(self, value: bool) -> None:
        self._fallback = bool(value)

    def _check(self) -> None:
        if not self._endpoints:
            raise ValueError("endpoints is empty: say which addresses and ports to receive")


# ------------------------------------------------------------------ the interface


@dataclass(frozen=True)
class _Interface:
    """What netlink says of an interface."""

    index: int
    name: str
    mtu: int
    n_queues: int
    namespace: int


def _network_namespace() -> int:
    """Return a number for the network namespace of the calling thread."""
    return os.stat("/proc/thread-self/ns/net").st_ino


def _find_by_address(netlink: Any, addresses: Sequence[str]) -> int | None:
    for address in addresses:
        packed = socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)
        for message in netlink.get_addr():
            local = message.get("IFA_LOCAL") or message.get("IFA_ADDRESS")
            family = message["family"]
            if local and socket.inet_pton(family, local) == packed:
                return int(message["index"])
    return None


@outside_event_loops
def _find_interface(config: UdpXdpConfig, addresses: Sequence[str]) -> _Interface:
    """Find the interface that the configuration means.

    Raises
    ------
    XdpError
        If there is none, or it is down.
    """
    from pyroute2 import IPRoute

    with IPRoute() as netlink:
        if config.interface:
            found = netlink.link_lookup(ifname=config.interface)
            index = found[0] if found else None
            what = f"no interface is called {config.interface!r}"
            there = ", ".join(sorted(link.get("IFLA_IFNAME") for link in netlink.get_links()))
            what += f"; there are: {there}"
        elif config.interface_address:
            address = resolve(config.interface_address)[1]
            index = _find_by_address(netlink, [address])
            what = f"no interface has the address {config.interface_address}"
        else:
            index = _find_by_address(netlink, addresses)
            what = "no interface has the address of an endpoint: say which one with `interface`"
        if index is None:
            raise XdpError(errno.ENODEV, f"find interface: {what}", "find interface")
        (link,) = netlink.get_links(index)
    name = str(link.get("IFLA_IFNAME"))
    return _Interface(
        index,
        name,
        int(link.get("IFLA_MTU")),
        queues_in_use(name, link, "rx"),
        _network_namespace(),
    )


def _check_queues(config: UdpXdpConfig, interface: _Interface) -> list[int]:
    queues = list(range(interface.n_queues)) if config.queues is None else config.queues
    for queue in queues:
        if queue >= interface.n_queues:
            raise XdpError(
                errno.EINVAL,
                f"choose queues: {interface.name} has {interface.n_queues} receive queues "
                f"(0 to {interface.n_queues - 1}), queue {queue} is none of them; see "
                f"`ethtool -l {interface.name}`",
                "choose queues",
            )
    return queues


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


def _open_port(config: UdpXdpConfig, interface: _Interface) -> _core.XdpPort:
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

    def begin(stream: _core.Stream) -> list[ReaderInfo]:
        try:
            info = open_reader(stream, config, joined)
        except XdpError as error:
            if not config.fallback:
                raise
            LOGGER.warning("%s; reading ordinary UDP sockets instead", error)
            return [_read_fallback(stream, config, *endpoint) for endpoint in config.endpoints]
        return [] if info is None else [info]

    return begin


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
    try:
        endpoints = _resolve(config)
        addresses = [
            socket.inet_ntop(socket.AF_INET if family == 4 else socket.AF_INET6, packed)
            for family, packed, _ in endpoints
        ]
        interface = _find_interface(config, addresses)
        queues = _check_queues(config, interface)
        with _lock:
            port = _open_port(config, interface)
            join_groups(endpoints, interface.index, groups)
            obtained = stream.add_xdp_reader(
                port,
                endpoints,
                queues,
                max(config.buffer_size // len(queues), 1),
                config.max_size,
                config.zero_copy,
                config.max_poll,
            )
        if obtained is not None:
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
        release_ports()
    if obtained is None:
        return None
    return ReaderInfo(
        "udp_xdp",
        endpoints=tuple(zip(addresses, (port for _, _, port in endpoints), strict=True)),
        interface=interface.name,
        queues=tuple(queues),
        mode="native" if obtained.native else "generic",
        zero_copy=obtained.zero_copy,
        memory=obtained.memory,
    )
