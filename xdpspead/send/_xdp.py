"""AF_XDP: what the user asks for, and where datagrams go.

The C core does the work (``csrc/writer_xdp.c``). Here it is found out, once, what stands in front
of each datagram: see :mod:`xdpspead._nexthop`.
"""

from __future__ import annotations

import errno
import os
import socket
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from .. import _core, _nexthop
from .._addresses import endpoint_pair, is_multicast, port_number, resolve, socket_name
from .._arguments import Config, count
from .._errors import XdpError
from .._threads import ThreadPool
from . import _sockets
from ._config import StreamConfig
from ._stream import Stream, SyncStream, checked

_MULTICAST_TTL = 1
_UNICAST_TTL = 64


@dataclass(frozen=True)
class XdpSenderInfo:
    """What a stream that sends through AF_XDP really is.

    Attributes
    ----------
    interface : str
        Name of the network interface.
    queue : int
        Its transmit queue.
    zero_copy : bool
        Whether the device reads the stream's memory itself; otherwise the kernel copies packets.
    multi_buffer : bool
        Whether packets may take several frames.
    memory : int
        Bytes of packet buffers.
    sources : tuple of (str, int)
        Address and port that datagrams to each endpoint come from.
    next_hops : tuple of str
        Ethernet address that they go to.
    """

    interface: str
    queue: int
    zero_copy: bool
    multi_buffer: bool
    memory: int
    sources: tuple[tuple[str, int], ...]
    next_hops: tuple[str, ...]


class UdpXdpConfig(Config):
    """Where a stream sends through AF_XDP, and how.

    All parameters are keywords and can also be set as attributes.

    Parameters
    ----------
    endpoints : list of (str, int)
        Address (or host name) and UDP port of each substream, at least one.
    interface : str
        Name of the network interface. If empty it is the one that the route to the endpoints says.
    queue : int
        Transmit queue of the interface. A queue serves one AF_XDP socket of one process, those that
        receive included.
    buffer_size : int
        Bytes of packet memory: what may be on its way to the device.
    ttl : int, optional
        Hops that packets may make, 1 to 255; None for 1 to a multicast group and 64 otherwise.
    source_address : str
        Address that packets come from; empty for the one that the kernel would choose.
    source_port : int
        UDP port that packets come from; 0 for one that is free.
    next_hop_mac : str
        Ethernet address (``"aa:bb:cc:dd:ee:ff"``) of the next hop on the way to endpoints that are
        no groups. If empty the kernel is asked for it; it is not asked again later.
    zero_copy : bool, optional
        True: the device must read the packet memory itself. False: it must not. None: as it can.
    """

    DEFAULT_BUFFER_SIZE: ClassVar[int] = 4 * 1024 * 1024

    __slots__ = (
        "_buffer_size",
        "_endpoints",
        "_interface",
        "_next_hop_mac",
        "_queue",
        "_source_address",
        "_source_port",
        "_ttl",
        "_zero_copy",
    )

    def __init__(self, **kwargs: Any) -> None:
        self._endpoints: list[tuple[str, int]] = []
        self._interface = ""
        self._queue = 0
        self._buffer_size = self.DEFAULT_BUFFER_SIZE
        self._ttl: int | None = None
        self._source_address = ""
        self._source_port = 0
        self._next_hop_mac = ""
        self._zero_copy: bool | None = None
        self._set(kwargs)

    @property
    def endpoints(self) -> list[tuple[str, int]]:
        """Address and port of each substream."""
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
    def queue(self) -> int:
        """Transmit queue of the interface."""
        return self._queue

    @queue.setter
    def queue(self, value: int) -> None:
        self._queue = count("queue", value)

    @property
    def buffer_size(self) -> int:
        """Bytes of packet memory."""
        return self._buffer_size

    @buffer_size.setter
    def buffer_size(self, value: int) -> None:
        self._buffer_size = count("buffer_size", value) or self.DEFAULT_BUFFER_SIZE

    @property
    def ttl(self) -> int | None:
        """Hops that packets may make; None for what is usual."""
        return self._ttl

    @ttl.setter
    def ttl(self, value: int | None) -> None:
        if value is not None:
            value = count("ttl", value, 1)
            if value > 255:
                raise ValueError(f"ttl cannot be {value}, it must be at most 255")
        self._ttl = value

    @property
    def source_address(self) -> str:
        """Address that packets come from."""
        return self._source_address

    @source_address.setter
    def source_address(self, value: str) -> None:
        if not isinstance(value, str):
            raise TypeError(f"source_address must be a str, not {value!r}")
        self._source_address = value

    @property
    def source_port(self) -> int:
        """UDP port that packets come from."""
        return self._source_port

    @source_port.setter
    def source_port(self, value: int) -> None:
        self._source_port = port_number(value)

    @property
    def next_hop_mac(self) -> str:
        """Ethernet address of the next hop."""
        return self._next_hop_mac

    @next_hop_mac.setter
    def next_hop_mac(self, value: str) -> None:
        if not isinstance(value, str):
            raise TypeError(f"next_hop_mac must be a str, not {value!r}")
        if value:
            _nexthop.parse_mac(value)
        self._next_hop_mac = value

    @property
    def zero_copy(self) -> bool | None:
        """Whether the device must (True), must not (False) or may (None) read our memory."""
        return self._zero_copy

    @zero_copy.setter
    def zero_copy(self, value: bool | None) -> None:
        self._zero_copy = None if value is None else bool(value)


def _free_port(family: int, address: str) -> int:
    """Return a UDP port that nobody uses at the moment."""
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        try:
            sock.bind(socket_name(family, address, 0))
        except OSError:  # the address is none of this machine's
            sock.bind(("", 0))
        return int(sock.getsockname()[1])


def _pack(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def _destinations(
    config: UdpXdpConfig,
    wanted: Sequence[_sockets.Endpoint],
    link: _nexthop.Link,
    hops: Sequence[_nexthop.Hop],
) -> list[_core.XdpDestination]:
    zone = f"%{link.index}"
    source_port = config.source_port or _free_port(wanted[0][0], hops[0].source + zone)
    return [
        _core.XdpDestination(
            source_mac=link.mac,
            mac=hop.mac,
            source_address=_pack(hop.source),
            address=_pack(hop.address),
            source_port=source_port,
            port=port,
            ttl=config.ttl or (_MULTICAST_TTL if is_multicast(hop.address) else _UNICAST_TTL),
        )
        for (_, _, port), hop in zip(wanted, hops, strict=True)
    ]


def _check_queue(queue: int, link: _nexthop.Link) -> None:
    if queue >= link.n_queues:
        step = "choose queue"
        raise XdpError(
            errno.EINVAL,
            f"{step}: {link.name} has {link.n_queues} transmit queues (0 to {link.n_queues - 1}), "
            f"queue {queue} is none of them; see `ethtool -l {link.name}`",
            step,
        )


def open_xdp_sender(
    pool: _core.Pool, config: StreamConfig, xdp: UdpXdpConfig
) -> tuple[_core.Sender, XdpSenderInfo]:
    """Return a sender through AF_XDP, and what it is.

    Raises
    ------
    XdpError
        If that cannot be had; nothing is left behind.
    """
    try:
        wanted = _sockets.endpoints(xdp.endpoints)
        source = resolve(xdp.source_address, wanted[0][0])[1] if xdp.source_address else ""
        link, hops = _nexthop.find(
            [address for _, address, _ in wanted],
            xdp.interface,
            source.partition("%")[0],
            _nexthop.parse_mac(xdp.next_hop_mac) if xdp.next_hop_mac else None,
        )
        _check_queue(xdp.queue, link)
        destinations = _destinations(xdp, wanted, link, hops)
        sender, obtained = _core.Sender.xdp(
            pool,
            config,
            (link.index, xdp.queue, link.mtu),
            destinations,
            xdp.buffer_size,
            xdp.zero_copy,
        )
    except XdpError:
        raise
    except OSError as error:
        raise XdpError(error.errno or 0, str(error), getattr(error, "step", "")) from None
    _senders.add(sender)
    return sender, XdpSenderInfo(
        interface=link.name,
        queue=xdp.queue,
        zero_copy=obtained.zero_copy,
        multi_buffer=obtained.multi_buffer,
        memory=obtained.memory,
        sources=tuple(
            (hop.source, to.source_port) for hop, to in zip(hops, destinations, strict=True)
        ),
        next_hops=tuple(hop.mac.hex(":") for hop in hops),
    )


#: Those that there are, for a forked child: it must not keep their queues.
_senders: weakref.WeakSet[_core.Sender] = weakref.WeakSet()


def _disown_all() -> None:
    for sender in list(_senders):
        sender.disown()
    _senders.clear()


os.register_at_fork(after_in_child=_disown_all)


class _UdpXdpStream(Stream):
    """AF_XDP, blocking and not."""

    def __init__(
        self, thread_pool: ThreadPool, config: StreamConfig, udp_xdp_config: UdpXdpConfig
    ) -> None:
        pool, config = checked(thread_pool, config)
        if not isinstance(udp_xdp_config, UdpXdpConfig):
            raise TypeError(f"udp_xdp_config must be a send.UdpXdpConfig, not {udp_xdp_config!r}")
        core, self._info = open_xdp_sender(pool, config, udp_xdp_config._copy())
        self._begin(thread_pool, config, core)

    @property
    def info(self) -> XdpSenderInfo:
        """What the stream really is: interface, copies, addresses."""
        return self._info


class UdpXdpStream(_UdpXdpStream, SyncStream):
    """Send heaps as UDP datagrams through AF_XDP: past the kernel's sockets, routes and firewall.

    Interface, source address and next hop are found as the kernel would, once. What goes out is a
    copy of the heap; there are no UDP checksums on IPv4, and on IPv6 they are computed.

    Parameters
    ----------
    thread_pool : ThreadPool
        Threads that send what nobody waits for.
    config : StreamConfig
        How to send. A copy is kept. With `max_packet_size` packets must fit the interface's MTU:
        they are not fragmented.
    udp_xdp_config : UdpXdpConfig
        Where to send, and through what. A copy is kept.

    Raises
    ------
    XdpError
        If AF_XDP cannot be had, or there is no way to an endpoint; it says why, and how to mend it.
    ValueError
        If there is no endpoint, or IPv4 and IPv6 are mixed.
    TypeError
        If an argument has the wrong type.
    """
