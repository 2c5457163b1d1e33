"""The files of a guest: Python, the package as it would be installed, and a few tools.

All of it is an initial RAM file system, so that a guest needs no disk and no driver for one. It has
three layers, which the kernel unpacks one over the other: what changes seldom, which is kept in the
cache; the package and these tests, made for each run; the modules of one kernel. They are not
compressed: an emulated processor would take longer to decompress them than a disk to bring them.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from vm.kernels import Unpacked

_TESTS = Path(__file__).resolve().parents[1]
_ROOT = _TESTS.parent
_SITE = "site"
#: What the package needs to run, and what some of its tests need.
_DISTRIBUTIONS = ("cffi", "numpy", "pyroute2", "pytest", "pluggy", "iniconfig", "packaging")
_DISTRIBUTIONS += ("pygments", "scapy", "hypothesis", "sortedcontainers")
_TOOLS = ("ip", "ethtool", "sh", "unshare", "mount", "ping")
#: Parts of the standard library and of others that no guest asks for.
_LEFT_OUT = re.compile(
    r"(^|/)(tests?|idlelib|lib2to3|tkinter|turtledemo|ensurepip|site-packages|__pycache__|pydoc_data"
    r"|config-3[^/]*|f2py|include|contrib)(/|$)|\.(a|pyi|h|exe|o)$"
)

# ------------------------------------------------------------------ cpio


class Archive:
    """A cpio archive as the kernel reads it ("newc").

    Paths are those in the guest, without a slash in front.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._seen: set[str] = set()

    def _entry(self, path: str, mode: int, contents: bytes) -> None:
        name = path.encode() + b"\0"
        fields = (len(self._seen) + 1, mode, 0, 0, 1, 0, len(contents), 0, 0, 0, 0, len(name), 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields) + name
        self._file.write(header + bytes(-len(header) % 4))
        self._file.write(contents + bytes(-len(contents) % 4))
        self._seen.add(path)

    def folder(self, path: str) -> None:
        """Add a folder, and those above it."""
        if path in ("", ".") or path in self._seen:
            return
        self.folder(str(Path(path).parent))
        self._entry(path, 0o040755, b"")

    def file(self, path: str, contents: bytes, mode: int = 0o644) -> None:
        """Add a file, and the folders above it, unless it is there."""
        if path in self._seen:
            return
        self.folder(str(Path(path).parent))
        self._entry(path, 0o100000 | mode, contents)

    def copy(self, source: Path, path: str | None = None) -> None:
        """Add a file of this machine; at the same place if no path is given."""
        mode = 0o755 if os.access(source, os.X_OK) else 0o644
        self.file(str(source).lstrip("/") if path is None else path, source.read_bytes(), mode)

    def tree(self, source: Path, path: str) -> None:
        """Add what is below a folder, without what is left out."""
        for file in sorted(source.rglob("*")):
            below = file.relative_to(source)
            if file.is_file() and not _LEFT_OUT.search(str(below)):
                self.copy(file, f"{path}/{below}")

    def close(self) -> None:
        """Write the end mark. Another archive may follow."""
        self._entry("TRAILER!!!", 0, b"")


def _libraries(program: Path) -> Iterator[Path]:
    """Go through the shared libraries that a program or an extension module loads."""
    done = subprocess.run(["ldd", str(program)], capture_output=True, text=True)
    for path in re.findall(r"(/\S+) \(0x", done.stdout):
        yield Path(path)


def _libpcap() -> Iterator[Path]:
    """Go through libpcap and what it loads; the package opens it by name, so ``ldd`` is silent."""
    code = "from xdpspead import _core; _core.load_pcap(); print(open('/proc/self/maps').read())"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    for path in sorted(set(re.findall(r"/\S*/libpcap\.so\S*", done.stdout))):
        yield from Path(path).parent.glob("libpcap.so.*")
        yield from _libraries(Path(path))


# ------------------------------------------------------------------ layers


def _python() -> Path:
    return Path(os.path.realpath(sys.executable))


def _files_of(name: str) -> Iterator[tuple[Path, str]]:
    """Go through the files of an installed distribution, and their paths in its folder."""
    for file in importlib.metadata.distribution(name).files or []:
        path = Path(str(file.locate()))
        if path.is_file() and ".." not in file.parts and not _LEFT_OUT.search(str(file)):
            yield path, str(file)


def _compile(folder: Path) -> None:
    """Compile the Python files below a folder, in a form that does not depend on their times."""
    command = [sys.executable, "-P", "-m", "compileall", "-q", "-j0", str(folder)]
    subprocess.run([*command, "--invalidation-mode", "unchecked-hash"], check=False)


def _base_key() -> str:
    """Return what the base layer depends on, as one word."""
    versions = [importlib.metadata.version(name) for name in _DISTRIBUTIONS]
    text = repr((sys.version, _python(), _DISTRIBUTIONS, versions, _TOOLS, _read_self()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _read_self() -> str:
    return Path(__file__).read_text()


def _stage(folder: Path) -> None:
    """Put copies of what is to be compiled into a folder."""
    library = Path(sysconfig.get_path("stdlib"))
    for file in library.rglob("*"):
        below = file.relative_to(library)
        if file.is_file() and not _LEFT_OUT.search(str(below)):
            _put(file, folder / "library" / below)
    for name in _DISTRIBUTIONS:
        for file, below_site in _files_of(name):
            _put(file, folder / _SITE / below_site)


def _put(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


def _write_base(archive: Archive) -> None:
    for folder in ("proc", "sys", "dev", "tmp", "run", "root", "usr/bin", "etc"):
        archive.folder(folder)
    archive.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n")
    archive.file("etc/hosts", b"127.0.0.1 localhost\n")
    programs = [_python()]
    archive.copy(_python())
    for name in _TOOLS:
        found = shutil.which(name)
        if found is not None:
            archive.copy(Path(found), f"usr/bin/{name}")
            programs.append(Path(found))
    shell = shutil.which("sh")
    assert shell is not None
    archive.copy(Path(shell), "bin/sh")
    library = sysconfig.get_path("stdlib").lstrip("/")
    with tempfile.TemporaryDirectory(prefix="xdpspead-vm-") as name:
        stage = Path(name)
        _stage(stage)
        _compile(stage)
        # Not through tree(), which leaves out what has been compiled.
        for part, path in (("library", library), (_SITE, _SITE)):
            for file in sorted((stage / part).rglob("*")):
                if file.is_file():
                    archive.copy(file, f"{path}/{file.relative_to(stage / part)}")
        programs += stage.rglob("*.so")
        for program in programs:
            for shared in _libraries(program):
                if stage not in shared.parents:
                    archive.copy(shared)


def base_layer(cache: Path) -> Path:
    """Return the layer with Python, what the package needs, and tools."""
    path = cache / f"base-{_base_key()}.cpio"
    if not path.exists():
        for old in cache.glob("base-*.cpio*"):
            old.unlink()
        unfinished = path.with_suffix(".cpio.new")
        with unfinished.open("wb") as file:
            archive = Archive(file)
            _write_base(archive)
            archive.close()
        unfinished.rename(path)
    return path


def package_layer(path: Path) -> Path:
    """Write the layer with the package, as installing it gives it, and these tests."""
    build = _ROOT / "build"
    with tempfile.TemporaryDirectory(prefix="xdpspead-vm-") as name, path.open("wb") as output:
        meson = Path(sys.executable).with_name("meson")
        command = [str(meson), "install", "-C", str(build), "--no-rebuild", "--quiet"]
        command += ["--tags", "python-runtime", "--destdir", name]
        subprocess.run(command, check=True)
        (package,) = Path(name).rglob("xdpspead/__init__.py")
        _compile(package.parent)
        archive = Archive(output)
        for source in sorted(package.parent.rglob("*")):
            if source.is_file():
                archive.copy(source, f"{_SITE}/xdpspead/{source.relative_to(package.parent)}")
        installed = importlib.metadata.distribution("xdpspead")
        for file in ("METADATA", "WHEEL"):
            text = installed.read_text(file) or ""
            archive.file(f"{_SITE}/xdpspead-{installed.version}.dist-info/{file}", text.encode())
        for module in package.parent.glob("*.so"):
            for shared in _libraries(module):
                archive.copy(shared)
        for shared in _libpcap():
            archive.copy(shared)
        for source in _TESTS.glob("*.py"):
            archive.copy(source, f"tests/{source.name}")
        for source in (_TESTS / "vm").glob("*.py"):
            archive.copy(source, f"tests/vm/{source.name}")
        archive.copy(_ROOT / "pyproject.toml", "pyproject.toml")
        archive.file("init", _init().encode(), 0o755)
        archive.close()
    return path


def _init() -> str:
    return (
        f"#!{_python()} -B\n"
        "import sys\n"
        f"sys.path[:0] = ['/{_SITE}', '/tests']\n"
        "from vm import init\n"
        "init.main(sys.argv[1:])\n"
    )


def write(path: Path, layers: Iterable[Path], kernel: Unpacked) -> None:
    """Join layers and a kernel's modules to what QEMU takes."""
    with path.open("wb") as file:
        for layer in layers:
            with layer.open("rb") as source:
                shutil.copyfileobj(source, file, 1 << 20)
        archive = Archive(file)
        for module in kernel.modules:
            archive.copy(module, f"modules/{module.name}")
        archive.file("modules/order", "\n".join(module.name for module in kernel.modules).encode())
        archive.close()
