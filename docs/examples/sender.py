"""A small SPEAD sender in plain Python and NumPy, so that the examples have something to receive.

It is made to be read and not to be fast. A packet is a header of 8 bytes, item pointers of 8 bytes
each, and a piece of the heap's payload. An item pointer is one bit (is it a value or an address?),
15 bits of item identifier, and 48 bits of value, or of address in the payload: SPEAD-64-48.
"""

import socket
import struct
from collections.abc import Iterable
from typing import Any

import numpy as np

HEAP_CNT, HEAP_LENGTH, PAYLOAD_OFFSET, PAYLOAD_LENGTH, DESCRIPTOR, STREAM_CTRL = range(1, 7)
NAME, DTYPE, ID = 0x10, 0x15, 0x14


def value(item: int, number: int) -> bytes:
    """Return an item pointer that is the value itself."""
    return struct.pack(">Q", 1 << 63 | item << 48 | number)


def address(item: int, offset: int) -> bytes:
    """Return an item pointer that says where in the payload the value begins."""
    return struct.pack(">Q", item << 48 | offset)


def packet(cnt: int, offset: int, payload: bytes, length: int, items: Iterable[bytes]) -> bytes:
    """Return one packet: `payload` at `offset` of heap `cnt`, which is `length` bytes long."""
    pointers = [
        value(HEAP_CNT, cnt),
        value(HEAP_LENGTH, length),
        value(PAYLOAD_OFFSET, offset),
        value(PAYLOAD_LENGTH, len(payload)),
        *items,
    ]
    header = struct.pack(">BBBBHH", 0x53, 4, 2, 6, 0, len(pointers))
    return header + b"".join(pointers) + payload


def descriptor(item: int, name: str, array: np.ndarray[Any, Any]) -> bytes:
    """Return what tells the receiver name, type and shape of an item: a packet of its own."""
    dtype = str({"descr": array.dtype.str, "fortran_order": False, "shape": array.shape})
    payload = name.encode() + dtype.encode()
    items = [value(ID, item), address(NAME, 0), address(DTYPE, len(name))]
    return packet(1, 0, payload, len(payload), items)


def heap(cnt: int, packet_size: int = 1024, **values: Any) -> list[bytes]:
    """Return the packets of a heap with these values, and with the descriptors of them all.

    Parameters
    ----------
    cnt : int
        Heap identifier; each heap of a stream has another one.
    packet_size : int
        Bytes of payload in each packet.
    **values : array-like
        The items: name and value. The first has identifier 0x1000, the next 0x1001, and so on.
    """
    items, payload = [], b""
    for item, (name, data) in enumerate(values.items(), start=0x1000):
        array = np.asarray(data)
        for identifier, content in (
            (DESCRIPTOR, descriptor(item, name, array)),
            (item, array.tobytes()),
        ):
            items.append(address(identifier, len(payload)))
            payload += content
    starts = range(0, len(payload), packet_size) or [0]
    return [
        packet(cnt, i, payload[i : i + packet_size], len(payload), [] if i else items)
        for i in starts
    ]


def stop(cnt: int = 0) -> list[bytes]:
    """Return the packet that ends a stream."""
    return [packet(cnt, 0, b"", 0, [value(STREAM_CTRL, 2)])]


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
