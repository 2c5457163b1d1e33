"""Entry point of the benchmark and of each process that it starts.

Every measurement runs in a fresh process: ``run.py CHILD JSON``, with one of the names in
``CHILDREN``. Only the folder above this one goes onto the module path, so that ``import xdpspead``
finds the installed package and never the bare sources beside it.
"""

import importlib
import json
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
if str(TESTS) not in sys.path:
    sys.path.insert(0, str(TESTS))

CHILDREN = {
    "memory": "bench.memory",
    "receive": "bench.receive",
    "floor": "bench.floors",
    "pcap": "bench.pcap",
    "send": "bench.send",
    "library": "bench.library",
}


def main() -> int:
    """Run the benchmark, or one child of it."""
    if len(sys.argv) == 3 and sys.argv[1] in CHILDREN:
        importlib.import_module(CHILDREN[sys.argv[1]]).child(json.loads(sys.argv[2]))
        return 0
    from bench import cli

    return cli.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
