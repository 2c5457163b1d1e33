"""The manual is true: its examples run, show what they print, and it names all there is.

The Python blocks of a page run in their order, as one program. What a block prints is compared with
the ``text`` block that follows it at once, in which ``...`` stands for anything. Port 8888 of the
examples is replaced by a free one. A comment in front of a block says what is special about it:

``<!-- test: xdp -->``
    It receives from 239.1.2.3 on an interface called eth1: it runs by itself, in a network
    namespace that has one, and with a sender at the other end.
``<!-- test: xdp_send -->``
    Likewise, it sends to 239.1.2.3 through eth1, and there is a receiver at the other end.
``<!-- test: compile: REASON -->``
    It cannot run here. It is compiled.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import target

import xdpspead
import xdpspead.recv
import xdpspead.send
import xdpspead.send.asyncio
from xdpspead._netlab import VethLab

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
#: Seconds that the examples of a page may take.
DEADLINE = 60.0

_BLOCK = re.compile(
    r"(?:^<!-- test: (?P<mark>\w+)(?:: (?P<reason>[^>]+))? -->\n)?"
    r"^```python\n(?P<code>.*?)^```\n"
    r"(?:\n*^```text\n(?P<output>.*?)^```\n)?",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """One example."""

    page: str
    line: int
    mark: str
    reason: str
    code: str
    output: str | None

    def compile(self) -> None:
        compile("\n" * self.line + self.code, self.page, "exec")


def blocks_of(path: Path) -> list[Block]:
    text = path.read_text()
    return [
        Block(
            str(path.relative_to(ROOT)),
            text.count("\n", 0, found.start("code")),
            found["mark"] or "",
            found["reason"] or "",
            found["code"],
            found["output"],
        )
        for found in _BLOCK.finditer(text)
    ]


PAGES = {
    path.stem: blocks
    for path in [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
    if (blocks := blocks_of(path))
}
ALL = [block for blocks in PAGES.values() for block in blocks]
XDP = [block for block in ALL if block.mark == "xdp"]
XDP_SEND = [block for block in ALL if block.mark == "xdp_send"]


def program(blocks: list[Block], port: int) -> str:
    """Return the blocks as one program that says between them which one begins."""
    parts = [
        "import faulthandler",
        f"faulthandler.dump_traceback_later({DEADLINE - 5}, exit=True)",
        "import logging",
        "logging.basicConfig(level=logging.CRITICAL)",  # an example that wants messages says so
    ]
    for i, block in enumerate(blocks):
        block.compile()
        code = "\n" * block.line + block.code.replace("8888", str(port))
        parts.append(f"print('\\x00{i}\\x00', end='', flush=True)")
        parts.append(f"exec(compile({code!r}, {block.page!r}, 'exec'))")
    return "\n".join(parts) + "\n"


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(DOCS / "examples"), "PYTHONSAFEPATH": "1"}


def matches(expected: str, printed: str) -> bool:
    pattern = ".*?".join(map(re.escape, expected.strip().split("...")))
    return re.fullmatch(pattern, printed.strip(), re.DOTALL) is not None


def check(blocks: list[Block], printed: str, port: int) -> None:
    outputs = dict(zip(*[iter(printed.split("\0")[1:])] * 2, strict=True))
    for i, block in enumerate(blocks):
        if block.output is not None:
            shown = outputs[str(i)].replace(str(port), "8888")
            assert matches(block.output, shown), f"{block.page}:{block.line} prints\n{shown}"


@pytest.mark.parametrize("page", PAGES)
def test_examples_run_and_print_what_the_page_shows(page, tmp_path):
    blocks = [block for block in PAGES[page] if not block.mark]
    port = target.free_port()
    done = subprocess.run(
        [sys.executable, "-c", program(blocks, port)],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    check(blocks, done.stdout, port)


def test_examples_that_cannot_run_are_few_and_say_why():
    unusual = [block for block in ALL if block.mark not in ("", "xdp", "xdp_send")]
    assert all(block.mark == "compile" and block.reason for block in unusual)
    assert len(unusual) <= 3
    for block in unusual:
        block.compile()


# ------------------------------------------------------------------ AF_XDP


@contextlib.contextmanager
def eth1() -> Iterator[VethLab]:
    """Two namespaces; the interface of the one called rx, where the example runs, is eth1."""
    from xdplab import missing

    if os.geteuid() != 0:
        missing("AF_XDP examples need root")
    with contextlib.ExitStack() as stack:
        try:
            lab = stack.enter_context(VethLab())
        except PermissionError as error:
            missing(f"network namespaces cannot be made: {error}")
        with lab.rx.enter():
            for command in (
                ["set", lab.rx.interface, "down"],
                ["set", lab.rx.interface, "name", "eth1"],
                ["set", "eth1", "up"],
            ):
                subprocess.run(["ip", "link", *command], check=True)
        yield lab


SEND = """
import sys, numpy as np, sender
host, port, interface = sys.argv[1:]
for cnt in range(1, 4):
    packets = sender.heap(cnt, samples=np.arange(2000), gain=2.5)
    sender.send_udp(host, int(port), packets, interface)
sender.send_udp(host, int(port), sender.stop(), interface)
"""

#: Tells once that the reader is there, so that nothing is sent before.
READY = """
import os, xdpspead.recv as _recv
def _ready(stream, config, _add=_recv.Stream.add_udp_xdp_reader):
    _add(stream, config)
    os.write(2, b"\\0ready\\n")
_recv.Stream.add_udp_xdp_reader = _ready
"""


@pytest.mark.xdp
@pytest.mark.parametrize("block", XDP, ids=lambda block: f"{block.page}:{block.line}")
def test_af_xdp_example_receives(block):
    port = target.free_port()
    with eth1() as lab:
        receiver = lab.rx.popen(
            [sys.executable, "-c", READY + program([block], port)],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        errors: list[str] = []

        def send_when_ready() -> None:
            assert receiver.stderr is not None
            for line in receiver.stderr:
                if "\0ready" not in line:
                    errors.append(line)
                    continue
                lab.tx.run(
                    [sys.executable, "-c", SEND, "239.1.2.3", str(port), lab.tx.ipv4],
                    env=environment(),
                    timeout=DEADLINE,
                )

        # Whatever hangs: its end is the end of the pipes that are read here.
        deadline = threading.Timer(DEADLINE, receiver.kill)
        deadline.start()
        watcher = threading.Thread(target=send_when_ready)
        watcher.start()
        assert receiver.stdout is not None
        printed = receiver.stdout.read()
        watcher.join(DEADLINE)
        deadline.cancel()
        assert receiver.wait(DEADLINE) == 0, "".join(errors)
    check([block], printed, port)
    assert "samples" in printed, "".join(errors)


#: Says when it listens, and then what it gets.
RECEIVE = """
import sys, xdpspead, xdpspead.recv as recv
group, port, interface = sys.argv[1:]
stream = recv.Stream(xdpspead.ThreadPool())
stream.add_udp_reader(group, int(port), interface_address=interface)
print("ready", flush=True)
items = xdpspead.ItemGroup()
for heap in stream:
    print(*items.update(heap), flush=True)
print("end", flush=True)
"""


@pytest.mark.xdp
@pytest.mark.parametrize("block", XDP_SEND, ids=lambda block: f"{block.page}:{block.line}")
def test_af_xdp_example_sends(block):
    port = target.free_port()
    with eth1() as lab:
        receiver = lab.tx.popen(
            [sys.executable, "-c", RECEIVE, "239.1.2.3", str(port), lab.tx.ipv4],
            stdout=subprocess.PIPE,
            text=True,
        )
        deadline = threading.Timer(DEADLINE, receiver.kill)
        deadline.start()
        assert receiver.stdout is not None
        assert receiver.stdout.readline() == "ready\n"
        sent = lab.rx.run(
            [sys.executable, "-c", program([block], port)],
            env=environment(),
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
        assert sent.returncode == 0, sent.stderr
        received = receiver.stdout.read().splitlines()
        deadline.cancel()
        assert receiver.wait(DEADLINE) == 0
    check([block], sent.stdout, port)
    assert received[-1] == "end"
    assert "samples" in received[:-1]


# ------------------------------------------------------------------ what the pages name


def test_every_public_name_is_in_the_reference():
    reference = (DOCS / "api.md").read_text()
    for module in (xdpspead, xdpspead.recv, xdpspead.send, xdpspead.send.asyncio):
        for name in module.__all__:
            if name.isupper() or name == "stream_stat_indices":
                assert f"`{name}`" in reference, name
            else:
                full = re.escape(f"{module.__name__}.{name}")
                assert re.search(rf"^\.\. auto\w+:: {full}$", reference, re.MULTILINE), name


def test_every_statistic_is_explained():
    page = (DOCS / "statistics.md").read_text()
    for name in xdpspead.recv.Stream(xdpspead.ThreadPool()).stats:
        assert f"`{name.removeprefix('xdpspead.')}`" in page, name


def test_every_statistic_of_senders_is_explained():
    page = (DOCS / "sending.md").read_text()
    table = page.split("(send-statistics)=")[1]
    for name in xdpspead.send.BytesStream(xdpspead.ThreadPool()).stats:
        assert re.search(rf"^\| `{name}` \| .{{20,}} \|$", table, re.MULTILINE), name


def test_differences_have_names_and_reasons():
    text = (DOCS / "differences.md").read_text()
    sections = re.split(r"^### ", text, flags=re.MULTILINE)[1:]
    names = [re.match(r"`([a-z0-9-]+)`\n", section) for section in sections]
    assert all(names)
    assert len({name[1] for name in names if name}) == len(names) > 10
    for section in sections:
        for part in ("**spead2:** ", "**xdpspead:** ", "**Why:** "):
            assert section.count(part) == 1, section


def test_differences_are_referred_to_by_names_that_exist():
    names = set(
        re.findall(r"^### `([a-z0-9-]+)`$", (DOCS / "differences.md").read_text(), re.MULTILINE)
    )
    for path in [ROOT / "README.md", *DOCS.glob("*.md")]:
        for name in re.findall(r"differences\.md#([a-z0-9-]+)", path.read_text()):
            assert name in names, f"{path.name}: {name}"


def test_readme_links_lead_somewhere():
    for link in re.findall(r"\]\(((?!http)[^)#]+)", (ROOT / "README.md").read_text()):
        assert (ROOT / link).exists(), link


def test_figures_are_those_that_the_scripts_draw():
    drawn = {path.stem for path in (DOCS / "figures").glob("*.py")}
    assert {path.stem for path in (DOCS / "figures").glob("*.svg")} == drawn
