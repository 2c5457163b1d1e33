"""A receiver that systemd looks after: it says when it is ready, and that it is alive.

python receiver.py eth1 239.1.2.3:8888 [239.1.2.4:8888 ...]
"""

import os
import select
import signal
import socket
import sys
import time

import xdpspead
import xdpspead.recv as recv


def notify(state):
    """Tell systemd, if that has started us (sd_notify(3))."""
    name = os.environ.get("NOTIFY_SOCKET")
    if name:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(state.encode(), "\0" + name[1:] if name[0] == "@" else name)


def endpoint(text):
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def use(items):
    """Here goes what you do with the data."""


def main(interface, *endpoints):
    ending = []
    signal.signal(signal.SIGTERM, lambda *_: ending.append(True))
    items = xdpspead.ItemGroup()
    told = 0.0
    with recv.Stream(xdpspead.ThreadPool(), recv.StreamConfig(max_heaps=4)) as stream:
        config = recv.UdpXdpConfig(endpoints=list(map(endpoint, endpoints)), interface=interface)
        stream.add_udp_xdp_reader(config)
        print(stream.readers[0], flush=True)
        notify("READY=1")
        while not ending:
            if time.monotonic() > told + 1:
                notify("WATCHDOG=1")
                told = time.monotonic()
            try:
                heap = stream.get_nowait()
            except xdpspead.Empty:
                select.select([stream.fd], [], [], 1.0)
            except xdpspead.Stopped:
                break
            else:
                use(items.update(heap))
        notify("STOPPING=1")
    print(stream.ledger(), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
