"""Kernels of Debian: an image to boot, and the modules that a guest loads.

What is kept in the cache is small: of a kernel's package, which unpacks to 100 MB and more, only
the image and some twenty modules.
"""

from __future__ import annotations

import json
import lzma
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vm.packages import NotToBeHadError, Suites

#: What guests load, if their kernel has it as a module. Cloud kernels have no physical cards.
_WANTED = ("virtio_pci", "virtio_net", "veth", "af_packet", "igb", "e1000e", "vmxnet3")


@dataclass(frozen=True)
class Kernel:
    """A kernel to be had from Debian.

    Attributes
    ----------
    name : str
        What it is called here, and in the cache.
    suite : str
        Suite of Debian.
    flavour : str
        ``"cloud-amd64"``: small, for virtual machines; ``"amd64"``: with all drivers.
    series : str
        Beginning of its version, where it is not what the suite has now: ``"6.18."``.
    """

    name: str
    suite: str
    flavour: str
    series: str = ""


@dataclass(frozen=True)
class Unpacked:
    """A kernel in the cache.

    Attributes
    ----------
    release : str
        As ``uname -r`` says.
    image : Path
        What boots.
    modules : list of Path
        In the order in which they have to be loaded.
    """

    release: str
    image: Path
    modules: list[Path]


def _versions(names: Iterable[str]) -> list[str]:
    """Sort by the numbers in the names."""
    return sorted(names, key=lambda name: [int(number) for number in re.findall(r"\d+", name)])


def _packages(kernel: Kernel, suites: Suites) -> tuple[str, list[str]]:
    """Return the release, and the packages that hold image and modules."""
    suite = suites[kernel.suite]
    pattern = re.compile(rf"linux-image-({re.escape(kernel.series)}\d\S*-{kernel.flavour})")
    if kernel.series:
        names = suite.names(f"linux-image-{kernel.series}")
        if kernel.flavour == "amd64":
            names = [name for name in names if not re.search("-(cloud|rt)-", name)]
    else:
        names = suite.depends(f"linux-image-{kernel.flavour}").replace(",", " ").split()
    found = _versions(name for name in names if pattern.fullmatch(name))
    if not found:
        raise NotToBeHadError(
            f"suite {kernel.suite} has no kernel linux-image-{kernel.series}…{kernel.flavour} now"
        )
    release = found[-1].removeprefix("linux-image-")
    # Newer kernels come in two packages, and the old name stands for both.
    if suite.names(f"linux-binary-{release}"):
        return release, [f"linux-binary-{release}", f"linux-modules-{release}"]
    return release, [found[-1]]


def fetch(kernel: Kernel, suites: Suites, cache: Path, *, update: bool) -> Unpacked:
    """Return a kernel from the cache, or download it.

    Raises
    ------
    NotToBeHadError
        If it is not in the cache and cannot be downloaded.
    """
    folder = cache / "kernels" / kernel.name
    record = folder / "kernel.json"
    if record.exists() and not update:
        return _read(folder, record)
    release, packages = _packages(kernel, suites)
    if record.exists() and _read(folder, record).release == release:
        return _read(folder, record)
    tree = folder.with_name(f"{kernel.name}.unpacked")
    shutil.rmtree(tree, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for package in packages:
        suites[kernel.suite].unpack(package, tree)
    (image,) = [*tree.glob("boot/vmlinuz-*"), *tree.glob("usr/lib/modules/*/vmlinuz")]
    shutil.copy(image, folder / "vmlinuz")
    modules = _copy_modules(tree, folder)
    record.write_text(json.dumps({"release": release, "modules": modules}, indent=1))
    shutil.rmtree(tree)
    return _read(folder, record)


def _read(folder: Path, record: Path) -> Unpacked:
    known = json.loads(record.read_text())
    modules = [folder / name for name in known["modules"]]
    return Unpacked(known["release"], folder / "vmlinuz", modules)


# ------------------------------------------------------------------ modules


def _name(path: Path) -> str:
    return path.name.split(".ko")[0].replace("-", "_")


def _contents(path: Path) -> bytes:
    return lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()


def _needs(module: bytes) -> list[str]:
    """Return the names of modules that a module depends on: it says so itself."""
    found = re.search(rb"\0depends=([\w,-]*)\0", module)
    names = found[1].decode() if found else ""
    return [name.replace("-", "_") for name in names.split(",") if name]


def _copy_modules(tree: Path, folder: Path) -> list[str]:
    """Copy what guests load and all that it needs; return the names in the order of loading."""
    files = {_name(path): path for path in tree.glob("**/*.ko*")}
    order: list[str] = []

    def add(name: str) -> None:
        target = f"{name}.ko"
        if name not in files or target in order:
            return  # built in, or not to be had
        contents = _contents(files[name])
        for needed in _needs(contents):
            add(needed)
        (folder / target).write_bytes(contents)
        order.append(target)

    for name in _WANTED:
        add(name)
    return order
