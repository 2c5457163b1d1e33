"""What stands between this machine and the full rate: ``python -m xdpspead doctor``.

It looks and changes nothing. What is known (`_facts`) is gathered from the machine (`_machine`), an
interface (`_interface`) and its programs (`_programs`), and then judged by functions that see
nothing but these facts (`_judge_machine`, `_judge_interface`, `_judge_xdp`), so that the judgement
of cards that nobody has here can be tested. `_report` shows it. To add a check: a fact, a function
and its name in the table at the end of a `_judge_*`, and its row in ``docs/doctor.md``.
"""

from __future__ import annotations

import sys

from ._examine import examine
from ._interface import names
from ._report import as_json, as_text, exit_status

__all__ = ["run"]


def run(interface: str = "", *, as_json_object: bool = False) -> int:
    """Look, print what was found, and return the exit status.

    Parameters
    ----------
    interface : str
        Its name; empty for the machine as a whole.
    as_json_object : bool
        Print one JSON object instead of text.

    Returns
    -------
    int
        0 if nothing was found that loses packets, 1 if something was, 2 if there is no such
        interface.
    """
    try:
        examination = examine(interface)
    except LookupError:
        there = ", ".join(names())
        print(
            f"python -m xdpspead doctor: no interface is called {interface!r}; there are: {there}",
            file=sys.stderr,
        )
        return 2
    sys.stdout.write(as_json(examination) if as_json_object else as_text(examination))
    return exit_status(examination)
