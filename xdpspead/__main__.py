"""The command line: ``python -m xdpspead``."""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any

from xdpspead._features import Feature, features


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit status."""
    options = _parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = options.run
    return run(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m xdpspead",
        description="Receive and send SPEAD streams through AF_XDP or ordinary sockets.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_features(commands)
    _add_doctor(commands)
    _add_demo(commands)
    _add_receive(commands)
    return parser


def _add_features(commands: Any) -> None:
    command = commands.add_parser(
        "features",
        help="what this build and this machine can do",
        description="Print what this build and this machine can do, and how to get the rest.",
    )
    command.add_argument("--json", action="store_true", help="print it as one JSON object")
    command.set_defaults(run=_run_features)


def _run_features(options: argparse.Namespace) -> int:
    version = metadata.version("xdpspead")
    if not options.json:
        python = platform.python_version()
        print(f"xdpspead {version}, Python {python}, {platform.platform()}\n\n{features}")
        return 0
    report = {
        "version": version,
        "build": _plain(features.build()),
        "machine": _plain(features.machine()),
        "readers": _plain(features.readers()),
    }
    print(json.dumps(report, indent=2))
    return 0


def _plain(section: Mapping[str, Feature]) -> dict[str, dict[str, Any]]:
    return {name: dataclasses.asdict(feature) for name, feature in section.items()}


def _add_doctor(commands: Any) -> None:
    command = commands.add_parser(
        "doctor",
        help="what stands between this machine and the full rate",
        description=(
            "Look at the machine and an interface, change nothing, and print what loses packets, "
            "what costs performance and what is good, with the commands that mend it."
        ),
        epilog=(
            "Exit status: 0 if nothing was found that loses packets, 1 if something was, 2 for a "
            "wrong command line. Root sees more."
        ),
    )
    command.add_argument(
        "interface", nargs="?", default="", help="its name (default: all, a line for each)"
    )
    command.add_argument("--json", action="store_true", help="print it as one JSON object")
    command.set_defaults(run=_run_doctor)


def _run_doctor(options: argparse.Namespace) -> int:
    from xdpspead import _doctor

    return _doctor.run(options.interface, as_json_object=options.json)


def _add_demo(commands: Any) -> None:
    command = commands.add_parser(
        "demo",
        help="receive real traffic for a few seconds",
        description=(
            "Send a SPEAD stream from one process to another and check every byte: through AF_XDP "
            "between two network namespaces as root, over loopback UDP otherwise."
        ),
    )
    command.add_argument(
        "--seconds", type=float, default=5.0, help="how long to send (default: %(default)g)"
    )
    command.add_argument(
        "--rate", type=float, default=1.0, help="payload in Gb/s (default: %(default)g)"
    )
    command.add_argument(
        "--transport",
        choices=["auto", "udp_xdp", "udp"],
        default="auto",
        help="how to receive; auto: udp_xdp as root, udp otherwise (default: %(default)s)",
    )
    command.add_argument(
        "--send",
        choices=["udp", "udp_xdp"],
        default="udp",
        help="how to send; udp_xdp only with --transport udp_xdp (default: %(default)s)",
    )
    command.set_defaults(run=_run_demo)


def _run_demo(options: argparse.Namespace) -> int:
    from xdpspead import _demo

    return _demo.run(
        seconds=options.seconds,
        gbps=options.rate,
        transport=options.transport,
        sending=options.send,
    )


def _add_receive(commands: Any) -> None:
    command = commands.add_parser(
        "receive",
        help="receive a stream and tell what was lost, and where",
        description=(
            "Receive a stream, throw its heaps away and print what became of every packet: through "
            "AF_XDP with --interface, from ordinary UDP sockets without, or from a capture file. "
            "It ends with the stream, after --seconds, or with Ctrl-C or SIGTERM."
        ),
        epilog=(
            "Exit status: 0 if packets came and none was lost, 1 if it cannot receive, 2 for a "
            "wrong command line, 3 if something was lost, 4 if nothing came."
        ),
    )
    command.add_argument(
        "endpoints",
        nargs="*",
        type=_endpoint,
        metavar="ENDPOINT",
        help=(
            "ADDRESS:PORT, [ADDRESS]:PORT for IPv6, or PORT for all of IPv4 (not with AF_XDP); "
            "with AF_XDP also ADDRESS:PORT@SOURCE, to take what one address sends"
        ),
    )
    command.add_argument("--interface", help="receive through AF_XDP on this interface")
    command.add_argument("--pcap", metavar="FILE", help="read a capture file instead")
    command.add_argument("--filter", default="", help="part of it to read, as for tcpdump")
    command.add_argument(
        "--queues", type=_queues, metavar="LIST", help="queues to read, like 0,2-5 (default: all)"
    )
    command.add_argument(
        "--mode",
        choices=["auto", "native", "generic"],
        default="auto",
        help="how the AF_XDP program runs (default: %(default)s)",
    )
    command.add_argument(
        "--workers",
        type=_positive,
        default=1,
        metavar="N",
        help="threads that read the queues (default: %(default)s)",
    )
    command.add_argument(
        "--steer",
        choices=["none", "ntuple"],
        default="none",
        help="let the device bring the packets to the queues, by receive-flow rules",
    )
    command.add_argument(
        "--busy-poll", action="store_true", help="call the driver instead of waiting for interrupts"
    )
    command.add_argument(
        "--buffer",
        type=_size,
        metavar="BYTES",
        help="socket buffer or AF_XDP packet memory; k, M and G mean 1024 and so on",
    )
    command.add_argument(
        "--max-size", type=_size, metavar="BYTES", help="largest datagram that is accepted"
    )
    command.add_argument(
        "--max-heaps",
        type=_positive,
        default=4,
        metavar="N",
        help="heaps under construction at a time (default: %(default)s)",
    )
    command.add_argument(
        "--ring",
        type=_positive,
        default=32,
        metavar="N",
        help="finished heaps that may wait (default: %(default)s)",
    )
    command.add_argument(
        "--out-of-order", action="store_true", help="packets of a heap may overtake each other"
    )
    command.add_argument("--seconds", type=float, metavar="S", help="how long to receive")
    command.add_argument("--json", action="store_true", help="print the result as one JSON object")
    command.set_defaults(run=_run_receive, error=command.error)


def _endpoint(text: str) -> tuple[str, int] | tuple[str, int, str]:
    where, at, source = text.partition("@")
    host, colon, port = where.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host or (colon and not host):
        raise argparse.ArgumentTypeError(f"{text!r} is not ADDRESS:PORT, [ADDRESS]:PORT or PORT")
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} has no port from 1 to 65535")
    if at and not source:
        raise argparse.ArgumentTypeError(f"{text!r} has no source behind the @")
    return (host, int(port), source) if at else (host, int(port))


def _queues(text: str) -> list[int]:
    from xdpspead import parse_range_list

    queues = parse_range_list(text)
    if not queues or min(queues) < 0:
        raise argparse.ArgumentTypeError(f"{text!r} names no queues")
    return queues


def _size(text: str) -> int:
    factor = {"k": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:], 0)
    size = int(text[:-1]) * factor if factor else int(text)
    if size < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of bytes")
    return size


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not positive")
    return number


def _check_receive(options: argparse.Namespace) -> str | None:
    """Return what is wrong with a combination of options."""
    from xdpspead import _receive

    if options.pcap is not None:
        if options.endpoints or options.interface is not None:
            return "--pcap reads a file: give neither endpoints nor --interface (see --filter)"
    elif not options.endpoints:
        return "say what to receive: one or more endpoints, or --pcap FILE"
    elif options.filter:
        return "--filter is for --pcap"
    if options.interface is None:
        for name in ("queues", "mode", "workers", "steer", "busy_poll"):
            if getattr(options, name) != getattr(_receive.Plan, name):
                return f"--{name.replace('_', '-')} is for AF_XDP: give --interface too"
        if any(len(endpoint) > 2 for endpoint in options.endpoints):
            return "ADDRESS:PORT@SOURCE is for AF_XDP: give --interface too"
    elif not all(endpoint[0] for endpoint in options.endpoints):
        return "AF_XDP needs the address of each endpoint: ADDRESS:PORT"
    return None


def _run_receive(options: argparse.Namespace) -> int:
    wrong = _check_receive(options)
    if wrong:
        options.error(wrong)
    from xdpspead import _receive

    return _receive.run(
        _receive.Plan(
            endpoints=options.endpoints,
            interface=options.interface,
            pcap=options.pcap,
            pcap_filter=options.filter,
            queues=options.queues,
            mode=options.mode,
            workers=options.workers,
            steer=options.steer,
            busy_poll=options.busy_poll,
            buffer_size=options.buffer,
            max_size=options.max_size,
            max_heaps=options.max_heaps,
            ring_heaps=options.ring,
            out_of_order=options.out_of_order,
            seconds=options.seconds,
            as_json=options.json,
        )
    )


if __name__ == "__main__":
    sys.exit(main())
