"""Packets for the examples to receive, as lists of bytes.

A program that sends has no use for this: it makes a stream of `xdpspead.send` and gives it heaps.
The examples want to look at packets, to lose some, and to send them in another order. So here a
heap becomes a list of packets first, and that is sent as it is then.
"""

import socket
import struct
from collections.abc import Iterable
from typing import Any

import numpy as np

import xdpspead
import xdpspead.send

FLAVOUR = xdpspead.Flavour(4, 64, 48)
HEADER = 8 + 4 * 8  # bytes in front of the items' pointers


def heap(cnt: int, packet_size: int = 1024, **values: Any) -> list[bytes]:
    """Return the packets of a heap with these values, and with the descriptors of them all.

    Parameters
    ----------
    cnt : int
        Heap identifier; each heap of a stream has another one.
    packet_size : int
        Bytes of payload in each packet but the last, a multiple of eight.
    **values : array-like
        The items: name and value. The first has identifier 0x1000, the next 0x1001, and so on.
    """
    result = xdpspead.send.Heap(FLAVOUR)
    result.repeat_pointers = True  # so that all packets have the same header
    for identifier, (name, data) in enumerate(values.items(), start=0x1000):
        array = np.asarray(data)
        item = xdpspead.Item(identifier, name, "", array.shape, array.dtype, value=array)
        result.add_descriptor(item)
        result.add_item(item)
    pointers = 8 * 2 * len(values)
    return list(xdpspead.send.PacketGenerator(result, cnt, HEADER + pointers + packet_size))


def stop(cnt: int = 0) -> list[bytes]:
    """Return the packet that ends a stream."""
    result = xdpspead.send.Heap(FLAVOUR)
    result.add_end()
    return list(xdpspead.send.PacketGenerator(result, cnt, 1024))


def send_udp(host: str, port: int, packets: Iterable[bytes], interface: str = "") -> None:
    """Send packets as UDP datagrams; `interface` is the address to send multicast from."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        if interface:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(interface))
        for data in packets:
            sock.sendto(data, (host, port))


def send_tcp(host: str, port: int, packets: Iterable[bytes]) -> None:
    """Send packets over a TCP connection, one after the other."""
    with socket.create_connection((host, port)) as sock:
        sock.sendall(b"".join(packets))


def write_pcap(filename: str, port: int, packets: Iterable[bytes]) -> None:
    """Write packets to a capture file, as UDP datagrams from 192.0.2.1 to 192.0.2.2."""
    with open(filename, "wb") as file:
        file.write(struct.pack("=IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 101))  # 101: raw IP
        for i, data in enumerate(packets):
            udp = struct.pack(">HHHH", 7777, port, 8 + len(data), 0) + data
            ip = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0)
            frame = ip + bytes([192, 0, 2, 1, 192, 0, 2, 2]) + udp
            file.write(struct.pack("=IIII", i, 0, len(frame), len(frame)) + frame)
