"""A receiver of ``test_helper.py``: a process of an ordinary user that does as it is told.

Its first argument says, as JSON, who it is and what it receives. It prints a line of JSON for
everything that happens; a line on its standard input stops it.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from typing import Any

from target import XDP, new_stream, payload, recv
from wire import pattern

from xdpspead._capabilities import effective_capabilities
from xdpspead._netdev import xdp_features
from xdpspead.recv._endpoints import resolve_endpoint
from xdpspead.recv._interface import find_interface


class Lines(logging.Handler):
    """Says what the log says."""

    def emit(self, record: logging.LogRecord) -> None:
        say(log=record.getMessage(), level=record.levelname)


def say(**what: Any) -> None:
    print(json.dumps(what), flush=True)


def import_everything() -> None:
    """Have Python read all files that it will need: it may be one that only its owner can read."""
    resolve_endpoint(("127.0.0.1", 1))
    find_interface(recv.UdpXdpConfig(interface="lo"), [])
    xdp_features(1)
    stream = new_stream()
    stream.ledger()
    stream.stop()


def become(uid: int, gids: list[int]) -> None:
    """Be that user, and able to do nothing else."""
    os.setgroups(gids[1:])
    os.setresgid(gids[0], gids[0], gids[0])
    os.setresuid(uid, uid, uid)


def stop_when_told(stream: Any, stopped: threading.Event) -> None:
    sys.stdin.readline()
    stream.stop()
    stopped.set()


def receive(stream: Any) -> None:
    for heap in stream:
        cnt = heap.cnt
        data = payload(heap)
        say(heap=cnt, intact=data == pattern(cnt, len(data)), length=len(data))


def main() -> None:
    asked = json.loads(sys.argv[1])
    import_everything()
    become(asked["uid"], asked["gids"])
    logging.getLogger("xdpspead").setLevel(logging.INFO)
    logging.getLogger("xdpspead").addHandler(Lines())
    stream = new_stream(**asked["stream"])
    try:
        for config in asked["readers"]:
            config["endpoints"] = [tuple(endpoint) for endpoint in config["endpoints"]]
            stream.add_udp_xdp_reader(recv.UdpXdpConfig(**config))
    except OSError as error:
        say(error=str(error), errno=error.errno, step=getattr(error, "step", ""))
        stream.stop()
        return
    say(
        ready=[reader.helper for reader in stream.readers],
        uid=os.getresuid(),
        capabilities=effective_capabilities(),
        mode=stream.readers[0].mode,
        memory=stream.readers[0].memory,
    )
    stopped = threading.Event()
    threading.Thread(target=stop_when_told, args=(stream, stopped), daemon=True).start()
    if asked["reads"]:
        receive(stream)
    else:
        stopped.wait()
    say(
        end=dict(stream.stats.items()),
        counts={short: stream.stats[name] for short, name in XDP.items()},
        balanced=stream.ledger().balanced,
    )


if __name__ == "__main__":
    main()
