"""The guests of ``make test-vm`` name what exists; they themselves are too slow for every run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from target import OURS
from vm import cli, plan

pytestmark = pytest.mark.ours

if OURS:
    from vm import cases

RUN = Path(__file__).parent / "vm" / "run.py"
MANUAL = Path(__file__).parents[1] / "docs" / "verified-on.md"


def test_every_case_of_a_guest_exists_and_every_case_has_a_guest():
    asked = {case.partition(":")[0] for guest in plan.GUESTS for case in guest.cases}
    assert asked == set(cases.CASES)


def test_guests_have_names_of_their_own():
    names = [guest.name for guest in plan.GUESTS]
    assert len(set(names)) == len(names)


def test_manual_names_cases_and_guests_that_there_are():
    text = MANUAL.read_text().split("## Traps")[1]
    known = set(cases.CASES) | {guest.name for guest in plan.GUESTS}
    for line in re.findall(r"^\| .*\| ([^|]*) \|$", text, re.MULTILINE)[2:]:
        for name in re.findall(r"`(\w+)`", line):
            assert name in known, line


def test_guest_that_there_is_not_is_an_error_that_names_those_that_there_are():
    done = subprocess.run(
        [sys.executable, "-P", str(RUN), "vax"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "no guest vax" in done.stderr
    assert "virtio-5.10" in done.stderr


@pytest.mark.parametrize(
    ("results", "allow_missing", "status"),
    [
        (["ok", "ok"], False, 0),
        (["ok", "FAILED"], True, 1),
        (["ok", "NOT RUN"], False, 1),
        (["ok", "NOT RUN"], True, 0),
    ],
)
def test_guest_that_was_not_run_is_a_failure_unless_allowed(results, allow_missing, status, capsys):
    rows = [cli.Row("guest", "kernel", "case", result, "why") for result in results]
    assert cli.judge(rows, allow_missing=allow_missing) == status
    assert ("NOT RUN" in capsys.readouterr().err) == ("NOT RUN" in results)
