"""Streams between the cards of a guest: our sender on one, an AF_XDP reader on the other."""

from __future__ import annotations

import contextlib
import itertools
import socket
from collections.abc import Iterator
from typing import Any

import numpy as np
from target import new_stream, next_heap, payload, settled, xdp_counts
from wire import USER_ID, pattern, simple_heap

import xdpspead
from vm.network import RECEIVER, RECEIVER_ADDRESS, SENDER_ADDRESS, Network
from xdpspead import recv, send

#: An emulated processor that is shared with others may take this long for anything.
DEADLINE = 60.0
#: So few frames that each is used several times.
BUFFER_SIZE = 5 << 20
#: Packets under way at a time, so that nothing is lost for want of room.
_AT_A_TIME = 32
#: Bytes in front of a packet's payload: its header, four items that all have, and one that is ours.
_SPEAD_HEADER = 8 + 5 * 8
_IP_AND_UDP = 28

_ports = itertools.count(20_000)


class Receiver:
    """A stream with an AF_XDP reader on the receiving card, and a sender to it.

    Keywords are those of `UdpXdpConfig`.
    """

    def __init__(self, network: Network, **config: Any) -> None:
        self._network = network
        self.port = next(_ports)
        self.stream = new_stream()
        self._raw_packets = 0
        endpoint = (RECEIVER_ADDRESS, self.port)
        settings = {"endpoints": [endpoint], "interface": RECEIVER, "buffer_size": BUFFER_SIZE}
        try:
            self.stream.add_udp_xdp_reader(recv.UdpXdpConfig(**{**settings, **config}))
        except BaseException:
            self.stream.stop()
            raise
        (self.info,) = self.stream.readers
        # Not before the reader: whoever says so must be able to rely on the link.
        self.had_carrier = network.has_carrier()
        network.wait_carrier()
        self._sender = Sender(network, self.port)

    def __enter__(self) -> Receiver:
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.stop()

    def exchange(self, heaps: int = 40, size: int = 8000, packet: int = 1000) -> int:
        """Send heaps and compare every byte that arrives; return the number of packets.

        Parameters
        ----------
        heaps : int
            How many.
        size : int
            Bytes of payload of each.
        packet : int
            Bytes of payload of a packet, a multiple of 8.
        """
        before = self._sender.packets
        each = -(-size // packet)  # or fewer
        group = max(_AT_A_TIME // each, 1)
        for first in range(0, heaps, group):
            counts = range(first, min(first + group, heaps))
            for cnt in counts:
                self._sender.send(cnt, size, packet)
            for cnt in counts:
                heap = next_heap(self.stream, DEADLINE)
                assert heap.cnt == cnt, f"heap {heap.cnt} instead of {cnt}"
                assert payload(heap) == pattern(cnt, size), f"heap {cnt} is not what was sent"
        return self._sender.packets - before

    def exchange_longest(self, packets: int, mtu: int) -> None:
        """Send packets that are as long as the MTU allows, and compare every byte that arrives."""
        size = mtu - _IP_AND_UDP - _SPEAD_HEADER
        with plain_sockets(self._network, next(_ports)) as (sock, _):
            for cnt in range(packets):
                (packet,) = simple_heap(cnt, size).packets(size)
                assert len(packet.encode()) == mtu - _IP_AND_UDP
                sock.sendto(packet.encode(), (RECEIVER_ADDRESS, self.port))
                assert payload(next_heap(self.stream, DEADLINE)) == pattern(cnt, size)
        self._raw_packets += packets

    @property
    def packets(self) -> int:
        """How many packets have been sent to it."""
        return self._raw_packets + self._sender.packets

    def check_ledger(self) -> None:
        """Check that every packet was received and none counted as lost, anywhere."""
        stats = settled(self.stream, self.packets)
        counts = xdp_counts(stats)
        assert counts == {"matched": self.packets, "redirected": self.packets}, counts
        self.stream.stop()
        ledger = self.stream.ledger()
        assert ledger.balanced, str(ledger)
        assert not [loss for loss in ledger.losses if loss.stage != "device"], str(ledger)


class Sender:
    """Our own UDP sender, on the sending card."""

    def __init__(self, network: Network, port: int) -> None:
        self._network = network
        self._to = (RECEIVER_ADDRESS, port)
        self._streams: dict[int, Any] = {}

    @property
    def packets(self) -> int:
        """How many packets have been sent."""
        return sum(stream.stats["packets"] for stream in self._streams.values())

    def _stream(self, packet: int) -> Any:
        if packet not in self._streams:
            config = send.StreamConfig(max_packet_size=packet + _SPEAD_HEADER)
            with self._network.sender():
                self._streams[packet] = send.UdpStream(
                    xdpspead.ThreadPool(), [self._to], config, interface_address=SENDER_ADDRESS
                )
        return self._streams[packet]

    def send(self, cnt: int, size: int, packet: int) -> None:
        """Send a heap in packets of so many bytes of payload."""
        value = np.frombuffer(pattern(cnt, size), np.uint8)
        heap = send.Heap()
        heap.add_item(xdpspead.Item(USER_ID, "data", "", (size,), np.uint8, value=value))
        self._stream(packet).send_heap(heap, cnt)


@contextlib.contextmanager
def plain_sockets(network: Network, port: int) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Return ordinary UDP sockets: one of the sending card, connected to one of the other's."""
    with socket.socket(type=socket.SOCK_DGRAM) as listener, contextlib.ExitStack() as stack:
        listener.bind((RECEIVER_ADDRESS, port))
        listener.settimeout(DEADLINE)
        with network.sender():
            sender = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
        sender.connect((RECEIVER_ADDRESS, port))
        yield sender, listener
