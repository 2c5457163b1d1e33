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
    _add_demo(commands)
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


if __name__ == "__main__":
    sys.exit(main())
