"""The core's messages on their way to ``logging.getLogger("xdpspead")``.

Workers put messages into a bounded queue of the core and never wait for Python. One daemon thread
takes them out and logs them.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
from typing import Final

from ._core import Log

LOGGER: Final = logging.getLogger("xdpspead")

#: The thread looks up this often even if nothing happens, ms.
_TIMEOUT_MS: Final = 60_000

#: A finalizer or the handler of a signal may make a stream while its thread is in here.
_lock = threading.RLock()
_log: Log | None = None


def _forget_parent() -> None:
    """Begin anew in a forked child: the thread, and who has the lock, are its parent's."""
    global _lock, _log
    _lock = threading.RLock()
    _log = None


os.register_at_fork(after_in_child=_forget_parent)


def _drain(log: Log) -> None:
    while (lines := log.take(_TIMEOUT_MS)) is not None:
        for level, text in lines:
            try:
                LOGGER.log(level, "%s", text)
            except Exception:  # noqa: BLE001 (whatever a handler of the user's raises)
                # Told as that of a thread, which ends by it; but this one has more to log.
                args = (*sys.exc_info(), threading.current_thread())
                threading.excepthook(threading.ExceptHookArgs(args))


def core_log() -> Log:
    """Return the one queue of this process; the thread that empties it runs from then on."""
    global _log
    with _lock:
        if _log is None:
            log = _log = Log()
            thread = threading.Thread(target=_drain, args=(log,), name="xdpspead-log", daemon=True)
            thread.start()

            @atexit.register
            def finish() -> None:
                log.close()
                thread.join(1.0)

        return _log
