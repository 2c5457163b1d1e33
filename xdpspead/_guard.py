"""Settings of interfaces that are put back when this process ends, however it ends.

Some settings outlive the process that made them: receive-flow rules, the knobs of a queue. So the
process does not make them itself but asks a second one, which makes each and remembers how to undo
it. That one ends when the first does, by whatever signal, and undoes them all before. There is one
way for both: closing a guard does nothing but end the connection, which is what death does too.

As the second process makes the settings, there is no moment at which one is made but would not be
undone; and it has proved that it has the privilege.
"""

from __future__ import annotations

import contextlib
import errno
import marshal
import os
import socket
import subprocess
import sys
import time
import weakref
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NoReturn, Self

from ._errors import TransportError
from ._log import LOGGER

#: Seconds within which the process has to start, or to make a setting.
_TIMEOUT_S: Final = 20.0
#: Seconds for which closing waits until all is undone.
CLOSE_TIMEOUT_S: Final = 5.0

_PROCESS: Final = Path(__file__).with_name("_guard_process.py")
_MAX_MESSAGE: Final = 1 << 16


class Guard:
    """Makes settings, and puts them back when it is closed or this process has ended.

    It costs nothing until the first setting is made; then it starts a process, in the network
    namespace of the calling thread. That process holds none of our descriptors, is not our child
    and does not end by Ctrl-C or SIGTERM. Only if it is killed itself, with SIGKILL, nothing is put
    back.

    Of a guard's methods only one at a time may be called. In a forked child it does nothing.
    """

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._pid = 0

    def make(self, what: str, kind: str, *arguments: Any) -> bytes:
        """Make a setting and return what the kernel answered.

        Parameters
        ----------
        what : str
            The setting's name, for messages.
        kind : str
            Which function of ``_guard_process.py`` makes it: ``"ethtool"``, ``"netlink"`` or
            ``"file"``.
        *arguments
            What that function takes.

        Raises
        ------
        TransportError
            If the guard's process cannot be started, or does not answer.
        OSError
            If the kernel refuses the setting, with its errno.
        """
        if self._socket is None:
            self._start()
        number, answer = self._ask((what, kind, arguments))
        if number:
            raise OSError(number, os.strerror(number))
        return bytes(answer)

    def close(self) -> None:
        """Put the settings back, the last one first; what cannot be is logged. Idempotent."""
        sock, self._socket = self._socket, None
        if sock is None:
            return
        with sock:
            # Also if a child has a copy of the descriptor.
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_WR)
            if not _log_failures(sock):
                LOGGER.warning(
                    "settings of an interface are still being put back, by process %d", self._pid
                )
                return
        # Orphans become children of the first process of a container, which may be this one.
        if self._pid:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self._pid, 0)

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket = ours
        _open_guards.add(self)
        with theirs:
            owner = _pidfd()
            try:
                _spawn(theirs.fileno(), owner)
            except (OSError, subprocess.SubprocessError) as error:
                number = getattr(error, "errno", None) or errno.ECHILD
                self._fail(number, f"cannot run {sys.executable!r}: {error}")
            finally:
                if owner >= 0:
                    os.close(owner)
        self._pid = self._receive()

    def _ask(self, request: tuple[str, str, tuple[Any, ...]]) -> Any:
        assert self._socket is not None
        try:
            self._socket.send(marshal.dumps(request))
        except OSError as error:
            self._fail(error.errno or 0, f"it is gone: {error}")
        return self._receive()

    def _receive(self) -> Any:
        assert self._socket is not None
        self._socket.settimeout(_TIMEOUT_S)
        try:
            message = self._socket.recv(_MAX_MESSAGE)
        except TimeoutError:
            self._fail(errno.ETIMEDOUT, "it does not answer")
        except OSError as error:
            self._fail(error.errno or 0, f"it is gone: {error}")
        if not message:
            self._fail(errno.ECHILD, f"it has ended; is {sys.executable!r} a Python?")
        return marshal.loads(message)

    def _fail(self, number: int, why: str) -> NoReturn:
        step = "start guard"
        raise TransportError(
            number, f"{step}: the process that is to put settings back later fails: {why}", step
        )

    def _forget(self) -> None:
        sock, self._socket = self._socket, None
        if sock is not None:
            sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "not started" if self._socket is None else f"process {self._pid}"
        return f"<{type(self).__name__} {state}>"


def _pidfd() -> int:
    """Return a descriptor that is readable when this process is dead, or -1."""
    try:
        return os.pidfd_open(os.getpid())
    except OSError:  # forbidden to some containers
        return -1


def _spawn(sock: int, owner: int) -> None:
    """Start the process and wait until its first half has ended, and with that has let it go."""
    if not sys.executable:
        raise FileNotFoundError(errno.ENOENT, "sys.executable is not set")
    subprocess.run(
        [sys.executable, "-I", "-S", str(_PROCESS), str(sock), str(owner)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=[fd for fd in (sock, owner) if fd >= 0],
        start_new_session=True,
        timeout=_TIMEOUT_S,
        check=True,
    )


def _log_failures(sock: socket.socket) -> bool:
    """Log what could not be undone, until the process has ended; False if it takes too long."""
    deadline = time.monotonic() + CLOSE_TIMEOUT_S
    while True:
        sock.settimeout(max(deadline - time.monotonic(), 0.001))
        try:
            message = sock.recv(_MAX_MESSAGE)
        except TimeoutError:
            return False
        except OSError:
            return True
        if not message:
            return True
        match marshal.loads(message):
            case str() as what, error:
                LOGGER.warning("cannot put back %s: %s", what, error)
            case _:  # an answer that nobody waited for
                pass


# ------------------------------------------------------------------ after a fork

_open_guards: weakref.WeakSet[Guard] = weakref.WeakSet()


def _forget_parent() -> None:
    """Let go, in a forked child, of what would keep the parent's guards from seeing its end."""
    for guard in list(_open_guards):
        guard._forget()


os.register_at_fork(after_in_child=_forget_parent)
