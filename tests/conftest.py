"""What all tests share: marks, the choice of the package under test, and a watchdog."""

from __future__ import annotations

import collections
import faulthandler
import gc
import logging
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest

PEER = os.environ.get("XDPSPEAD_TEST_PEER")

#: A test that runs longer hangs: every thread's stack is printed and the process ends.
WATCHDOG_S = 180.0

_stderr: IO[str] | None = None

# Hypothesis would make a folder in the current directory, which may not be ours.
os.environ.setdefault(
    "HYPOTHESIS_STORAGE_DIRECTORY", f"{tempfile.gettempdir()}/xdpspead-hypothesis-{os.getuid()}"
)


def pytest_configure(config: pytest.Config) -> None:
    # Who is started in the background by a shell ignores Ctrl-C, and so would the children whose
    # answer to it is tested.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # pytest captures sys.stderr from here on; the watchdog needs the true one.
    global _stderr
    _stderr = os.fdopen(os.dup(2), "w")
    config.addinivalue_line("markers", "ours: a promise of xdpspead that spead2 does not make")
    config.addinivalue_line("markers", "timing: bounds a time or a rate, and wants the processors")
    config.addinivalue_line("markers", "xdp: needs root, AF_XDP and veth")


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """With a peer under test, leave out the files that do not go through `target`."""
    if PEER and collection_path.name.startswith("test_") and collection_path.suffix == ".py":
        return "from target import" not in collection_path.read_text() or None
    return None


def pytest_collection_finish(session: pytest.Session) -> None:
    """Keep the collector away from what lives as long as the run, so that to call it is cheap."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # What bounds a time is tried three times: others may have the processors at any moment.
    for item in items:
        if item.get_closest_marker("timing"):
            item.add_marker(pytest.mark.flaky(reruns=2))
    if PEER:
        ours = [item for item in items if item.get_closest_marker("ours")]
        config.hook.pytest_deselected(items=ours)
        items[:] = [item for item in items if not item.get_closest_marker("ours")]


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a library, to be preloaded, that plays a driver: see ``ethtool_shim.c``."""
    library = tmp_path_factory.mktemp("shim") / "shim.so"
    command = ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror"]
    source = Path(__file__).with_name("ethtool_shim.c")
    subprocess.run([*command, source, "-o", library, "-ldl"], check=True)
    return library


_MISSING = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <string.h>
void *dlopen(const char *name, int flags)
{
	void *(*next)(const char *, int) = (void *(*)(const char *, int))dlsym(RTLD_NEXT, "dlopen");
	return next(name && strstr(name, MISSING) ? "none.so" : name, flags);
}
"""


@pytest.fixture
def without_library(tmp_path: Path) -> Callable[[str], dict[str, str]]:
    """Return what gives the variables of a process that finds no library of a certain name."""

    def without(name: str) -> dict[str, str]:
        source, library = tmp_path / "missing.c", tmp_path / "missing.so"
        source.write_text(_MISSING)
        command = ["cc", "-shared", "-fPIC", f'-DMISSING="{name}"', "-o", library, source, "-ldl"]
        subprocess.run(command, check=True)
        return {"LD_PRELOAD": f"{os.environ.get('LD_PRELOAD', '')} {library}".strip()}

    return without


#: When the last ten lines came that the package wrote to the log.
_last_lines: collections.deque[float] = collections.deque(maxlen=10)


class _Times(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        _last_lines.append(time.monotonic())


logging.getLogger(PEER or "xdpspead").addHandler(_Times())


@pytest.fixture(autouse=True)
def no_sums_of_others(request: pytest.FixtureRequest) -> None:
    """Keep lines that sum up a second in which another test may have run from tests of the log.

    Those that expect sums look at processes of their own. After ten lines in a second more of their
    kind are summed up, so where others have written so many a test begins when that is over.
    """
    if "caplog" in request.fixturenames:
        from target import wait_for  # which imports the package

        wait_for(
            lambda: len(_last_lines) < 10 or time.monotonic() - _last_lines[0] >= 1.5,
            "a second and a half with fewer than ten lines in the log",
        )
        handler = request.getfixturevalue("caplog").handler
        handler.addFilter(lambda record: not record.getMessage().endswith(" in the last second"))


@pytest.fixture(autouse=True)
def watchdog() -> Iterator[None]:
    """End the run, with every thread's stack, when a test hangs where Python cannot interrupt."""
    assert _stderr is not None
    faulthandler.dump_traceback_later(WATCHDOG_S, exit=True, file=_stderr)
    yield
    faulthandler.cancel_dump_traceback_later()
