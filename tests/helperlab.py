"""What the tests of ``xdpspead-helper`` work with: a helper, and receivers that are ordinary users.

Both run in the receiving namespace of a laboratory (`xdplab`), and end with the ``with`` block.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from target import DEADLINE, need_tree_open_to_all, wait_for
from xdplab import Lab

#: The program of the environment that the tests run in.
PROGRAM = Path(sys.prefix) / "bin" / "xdpspead-helper"

NOBODY = 65534
#: Another user, whom no file knows.
SOMEBODY = 54321

#: What the helper needs.
_CAPABILITIES = "-all,+net_admin,+net_raw,+bpf,+ipc_lock"
#: The same as bits: CAP_NET_ADMIN, CAP_NET_RAW, CAP_IPC_LOCK, CAP_BPF.
CAPABILITY_BITS = 1 << 12 | 1 << 13 | 1 << 14 | 1 << 39


class Helper:
    """A running helper.

    Parameters
    ----------
    lab : Lab
        Where it runs.
    rules : str
        Its configuration; ``{eth}`` stands for the receiving interface.
    uid : int
        The user that it runs as; not as root it has nothing but the capabilities that it needs.
    of_file : bool
        Whether it has those from its file, as ``setcap`` sets them, and not from who starts it.
    """

    def __init__(self, lab: Lab, rules: str, uid: int = 0, *, of_file: bool = False) -> None:
        self._lab = lab
        self.folder = Path(tempfile.mkdtemp(prefix="xdpspead-helper-"))
        self.folder.chmod(0o755)
        os.chown(self.folder, uid, uid)
        self.config = self.folder / "helper.conf"
        self.socket = self.folder / "helper.sock"
        self.log = self.folder / "log"
        self.write(rules)
        program = self._copy_with_capabilities() if of_file else PROGRAM
        command = [str(program), "--config", str(self.config), "--socket", str(self.socket)]
        if uid:
            drop = [f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
            given = "-all" if of_file else _CAPABILITIES
            sets = [f"--{name}={given}" for name in ("inh-caps", "ambient-caps")]
            command = ["setpriv", *drop, *sets, *command]
        with self.log.open("w") as log:
            self.process = lab.rx.popen(command, stderr=log)

    def _copy_with_capabilities(self) -> Path:
        copy = self.folder / PROGRAM.name
        shutil.copy(PROGRAM, copy)
        low, high = CAPABILITY_BITS & 0xFFFFFFFF, CAPABILITY_BITS >> 32
        # struct vfs_cap_data of linux/capability.h: revision 2, effective
        value = struct.pack("<IIIII", 0x02000001, low, 0, high, 0)
        os.setxattr(copy, "security.capability", value)
        return copy

    def write(self, rules: str) -> None:
        """Write the configuration."""
        self.config.write_text(rules.format(eth=self._lab.rx.interface))
        self.config.chmod(0o644)

    def said(self) -> str:
        """Return its log."""
        return self.log.read_text()

    def wait_ready(self) -> None:
        """Wait until it listens."""
        wait_for(lambda: "ready" in self.said() or self.process.poll() is not None, "a helper")
        assert self.process.poll() is None, self.said()

    def connect(self) -> socket.socket:
        """Return a connection of our own, which knows no protocol."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.connect(str(self.socket))
        sock.settimeout(DEADLINE)
        return sock

    def kill(self, number: int = signal.SIGKILL) -> None:
        """End it."""
        self.process.send_signal(number)
        self.process.wait(DEADLINE)

    def __enter__(self) -> Self:
        self.wait_ready()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.kill(signal.SIGTERM)
            assert self.process.returncode == 0, self.said()
        shutil.rmtree(self.folder)


class Receiver:
    """A process that receives through a helper, as a user who may nothing.

    Parameters
    ----------
    lab : Lab
        Where it runs.
    helper : Helper
        Whom it asks.
    uid : int
        Its user.
    gids : list of int
        Its groups.
    readers : list of dict
        Configurations of its readers; one on the receiving interface if there is none.
    reads : bool
        Whether it takes heaps from its stream.
    **config
        Of the one reader.
    """

    def __init__(
        self,
        lab: Lab,
        helper: Helper,
        *,
        uid: int = NOBODY,
        gids: list[int] | None = None,
        readers: list[dict[str, Any]] | None = None,
        stream: dict[str, Any] | None = None,
        reads: bool = True,
        variable: bool = False,
        **config: Any,
    ) -> None:
        if uid:
            need_tree_open_to_all()
        common = {"interface": lab.rx.interface}
        if not variable:
            common["helper"] = str(helper.socket)
        asked = {
            "uid": uid,
            "gids": gids or [NOBODY],
            "stream": stream or {},
            "readers": [{**common, **reader} for reader in readers or [config]],
            "reads": reads,
        }
        paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        child = str(Path(__file__).with_name("receiver_child.py"))
        self.process = lab.rx.popen(
            [sys.executable, "-P", child, json.dumps(asked)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, paths)),
                **({"XDPSPEAD_HELPER": str(helper.socket)} if variable else {}),
            },
        )
        self._rest = b""
        self._over = False
        self.log: list[str] = []

    def _line(self, end: float) -> dict[str, Any]:
        stdout = self.process.stdout
        assert stdout is not None
        while b"\n" not in self._rest:
            ready, _, _ = select.select([stdout], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"nothing more within {DEADLINE} s; log: {self.log}"
            more = os.read(stdout.fileno(), 65536)
            assert more, f"the receiver has ended; log: {self.log}"
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\n")
        said = json.loads(line)
        assert isinstance(said, dict)
        return said

    def next(self, kind: str) -> dict[str, Any]:
        """Return the next thing it says, which is of a kind; lines of its log are put aside."""
        end = time.monotonic() + 3 * DEADLINE  # Python begins slowly on a busy machine
        while True:
            said = self._line(end)
            if "log" in said:
                self.log.append(f"{said['level']}: {said['log']}")
                continue
            assert kind in said, said
            return said

    def ready(self) -> dict[str, Any]:
        """Wait until it receives."""
        return self.next("ready")

    def take(self, n: int) -> list[int]:
        """Return the numbers of its next heaps, each intact."""
        heaps = [self.next("heap") for _ in range(n)]
        assert all(heap["intact"] for heap in heaps)
        return [heap["heap"] for heap in heaps]

    def stop(self) -> dict[str, Any]:
        """Stop its stream, and return what it says of it at the end."""
        stdin = self.process.stdin
        assert stdin is not None
        stdin.write(b"\n")
        stdin.flush()
        return self.end()

    def end(self) -> dict[str, Any]:
        """Wait until its stream has ended, and return what it says of it."""
        said = self.next("end")
        assert self.process.wait(DEADLINE) == 0
        return said

    def kill(self) -> None:
        """End it by SIGKILL."""
        self.process.kill()
        self.process.wait(DEADLINE)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.process.wait(DEADLINE)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
