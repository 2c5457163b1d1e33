"""Entry point of the tests in virtual machines: see `vm.cli`.

Only the folder above this one goes onto the module path, so that ``import xdpspead`` finds the
installed package and never the bare sources beside it.
"""

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
if str(TESTS) not in sys.path:
    sys.path.insert(0, str(TESTS))


def main() -> int:
    """Run the tests."""
    from vm import cli

    return cli.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
