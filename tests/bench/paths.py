"""Where things are."""

from pathlib import Path

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parents[1]
BUILD = ROOT / "build" / "bench"
RUN = BENCH / "run.py"
