"""The module graph in docs/architecture.md is the real one."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "architecture.md"


def documented(which: str) -> dict[str, set[str]]:
    """Return unit -> units it may use, in the order of the table."""
    text = DOCUMENT.read_text().split(f"<!-- graph: {which} -->")[1]
    rows = re.match(r"\s*((?:\|.*\n)+)", text)
    assert rows is not None
    graph = {}
    for row in rows[1].splitlines()[2:]:
        unit, _, uses = (cell.strip() for cell in row.strip("|").split("|"))
        graph[unit] = set(uses.split())
    return graph


def real_c() -> dict[str, set[str]]:
    graph: dict[str, set[str]] = {}
    for path in (ROOT / "csrc").glob("*.[ch]"):
        unit = path.name.split(".")[0]
        found = re.findall(r'^#include "(\w+)\.h"', path.read_text(), re.MULTILINE)
        graph.setdefault(unit, set()).update(set(found) - {unit, "xdpspead"})
    return graph


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT / "xdpspead").with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__") or "(top)"


def targets(node: ast.AST, package: list[str]) -> list[list[str]]:
    """Return what an import statement may refer to, as paths below the package."""
    if isinstance(node, ast.Import):
        modules = [alias.name.split(".") for alias in node.names]
        return [m[1:] for m in modules if m[0] == "xdpspead"]
    if not isinstance(node, ast.ImportFrom):
        return []
    if node.level:
        base = package[: len(package) - node.level + 1] + (node.module or "").split(".")
    elif (node.module or "").split(".")[0] == "xdpspead":
        base = (node.module or "").split(".")[1:]
    else:
        return []
    base = [part for part in base if part]
    return [[*base, alias.name] for alias in node.names]


def real_python() -> dict[str, set[str]]:
    paths = [p for p in (ROOT / "xdpspead").rglob("*.py") if "__pycache__" not in p.parts]
    names = {name_of(path) for path in paths} | {"_native"}
    graph: dict[str, set[str]] = {"_native": set()}
    for path in paths:
        name = name_of(path)
        own = [] if name == "(top)" else name.split(".")
        package = own if path.name == "__init__.py" else own[:-1]
        uses = graph.setdefault(name, set())
        for node in ast.walk(ast.parse(path.read_text())):
            for target in targets(node, package):
                while target and ".".join(target) not in names:
                    target = target[:-1]
                uses.add(".".join(target) or "(top)")
        uses.discard(name)
    return graph


@pytest.mark.parametrize(("which", "real"), [("c", real_c), ("python", real_python)])
def test_documented_graph_is_the_real_one(which, real):
    assert documented(which) == real()


@pytest.mark.parametrize("which", ["c", "python"])
def test_graph_points_only_upwards(which):
    seen = {"steer_bpf_o"}  # generated
    for unit, uses in documented(which).items():
        assert uses <= seen, f"{unit} uses what comes after it: {uses - seen}"
        seen.add(unit)


def test_every_function_of_the_journey_exists():
    journey = DOCUMENT.read_text().split("## One packet's journey")[1].split("## Decisions")[0]
    sources = [*ROOT.glob("csrc/*.c"), *ROOT.glob("bpf/*.c"), *ROOT.glob("xdpspead/**/*.py")]
    code = "\n".join(path.read_text() for path in sources)
    names = set(re.findall(r"`(?:Stream\.|ItemGroup\.)?([a-z_]\w*?)(?:\(\))?`", journey))
    names -= {"poll"}  # of the ops table
    assert {"steer", "xps_heap_add", "emit", "update"} <= names
    for name in names:
        assert re.search(rf"\b{name}\(", code), name
