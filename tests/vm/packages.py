"""Debian packages of any suite, without installing anything.

Each suite has a state of apt's of its own in the cache, so that the machine's own lists are left
alone, and one suite that cannot be reached does not spoil the others. The mirror's address comes
from the machine's apt configuration, in which only the suite is changed.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_TIMEOUT_S = 900
#: Architecture of the guests.
_ARCHITECTURE = "amd64"


class NotToBeHadError(Exception):
    """A suite or a package cannot be fetched."""


def _mirror(label: str) -> str:
    """Return the address of the archive that calls itself `label`."""
    fields = "$(CREATED_BY)|$(LABEL)|$(REPO_URI)"
    command = ["apt-get", "indextargets", "--format", fields]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise NotToBeHadError(f"apt-get cannot be asked for the mirror: {error}") from None
    for line in done.stdout.splitlines():
        created_by, found, address = line.split("|")
        if created_by == "Packages" and found == label:
            return address
    raise NotToBeHadError(
        f"apt's configuration names no archive labelled {label!r} (see `apt-cache policy`): run "
        "this on Debian, with lists that `apt-get update` has fetched"
    )


class Suite:
    """One suite of Debian.

    Parameters
    ----------
    name : str
        Such as ``"trixie-backports"``.
    cache : Path
        Folder for the state.

    Attributes
    ----------
    fetched : int
        Bytes that were downloaded.
    """

    def __init__(self, name: str, cache: Path) -> None:
        self.name = name
        self.fetched = 0
        self._root = cache / "apt" / name
        self._updated = False

    def _run(self, *command: str, folder: Path | None = None) -> str:
        root = self._root
        settings = {
            "Dir::Etc::SourceList": root / "sources.list",
            "Dir::Etc::SourceParts": "/dev/null",
            "Dir::State": root,
            "Dir::State::Lists": root / "lists",
            "Dir::State::Status": root / "status",
            "Dir::Cache": root / "cache",
            "Acquire::Languages": "none",
            "APT::Architecture": _ARCHITECTURE,
            "APT::Architectures": _ARCHITECTURE,
            "APT::Sandbox::User": "root",
            "APT::Update::Error-Mode": "any",
        }
        options = [f"-o{name}={value}" for name, value in settings.items()]
        program, *arguments = command
        try:
            done = subprocess.run(
                [program, *options, *arguments],
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=_TIMEOUT_S,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise NotToBeHadError(f"suite {self.name}: {error}") from None
        if done.returncode:
            said = " ".join(line for line in done.stderr.splitlines() if line.startswith("E:"))
            raise NotToBeHadError(f"suite {self.name}: {' '.join(command)} failed: {said}")
        return done.stdout

    def _update(self) -> None:
        if self._updated:
            return
        security = self.name.endswith("-security")
        address = _mirror("Debian-Security" if security else "Debian")
        for folder in ("lists/partial", "cache/archives/partial"):
            (self._root / folder).mkdir(parents=True, exist_ok=True)
        (self._root / "status").touch()
        signed = f" [signed-by={_KEYRING}]" if _KEYRING.exists() else ""
        (self._root / "sources.list").write_text(f"deb{signed} {address} {self.name} main\n")
        said = self._run("apt-get", "update")
        self.fetched += _bytes_fetched(said)
        self._updated = True

    def names(self, prefix: str) -> list[str]:
        """Return the names of packages that begin with `prefix`."""
        self._update()
        return self._run("apt-cache", "pkgnames", prefix).split()

    def depends(self, name: str) -> str:
        """Return what a package depends on, as apt writes it."""
        self._update()
        shown = self._run("apt-cache", "show", "--no-all-versions", name)
        found = re.search(r"^Depends: (.*)$", shown, re.MULTILINE)
        return found[1] if found else ""

    def unpack(self, name: str, into: Path) -> None:
        """Download a package and unpack it into a folder."""
        self._update()
        archives = into.with_name(f"{into.name}.deb")
        archives.mkdir(parents=True, exist_ok=True)
        into.mkdir(parents=True, exist_ok=True)
        self._run("apt-get", "download", name, folder=archives)
        for archive in archives.glob("*.deb"):
            self.fetched += archive.stat().st_size
            command = ["dpkg-deb", "--extract", str(archive), str(into)]
            subprocess.run(command, check=True, timeout=_TIMEOUT_S)
            archive.unlink()
        archives.rmdir()


def _bytes_fetched(said: str) -> int:
    units = {"B": 1, "kB": 1000, "MB": 1000**2, "GB": 1000**3}
    found = re.search(r"^Fetched ([\d.,]+) (\w+) in", said, re.MULTILINE)
    return int(float(found[1].replace(",", "")) * units[found[2]]) if found else 0


class Suites:
    """The suites that a run needs, by name."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self._suites: dict[str, Suite] = {}

    def __getitem__(self, name: str) -> Suite:
        """Return a suite."""
        return self._suites.setdefault(name, Suite(name, self._cache))

    def __iter__(self) -> Iterator[Suite]:
        """Go through the suites that were asked for."""
        return iter(self._suites.values())
