"""Names and signatures are those of the peer's stubs.

The stubs that spead2 installs (``*.pyi``) say which names there are and which calls are allowed.
They are read with `ast`, and every name must be here too, every allowed call be accepted, and what
may be set there may be set here. What is left out is listed with the reason.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import importlib.util
import inspect
import itertools
import socket
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import wire
from target import new_stream, next_heap

import xdpspead
import xdpspead.recv
import xdpspead.send
import xdpspead.send.asyncio

pytestmark = pytest.mark.ours

MODULES = {
    "": "__init__.pyi",
    "recv": "recv/__init__.pyi",
    "recv.stream_stat_indices": "recv/stream_stat_indices.pyi",
    "recv.asyncio": "recv/asyncio.pyi",
    "send": "send/__init__.pyi",
    "send.asyncio": "send/asyncio.pyi",
}

#: Names of the stubs that are not here, and why.
LEFT_OUT = {
    "recv.Chunk": "chunks are not built yet",
    "recv._ChunkRingbuffer": "chunks are not built yet",
    "recv.ChunkRingbuffer": "chunks are not built yet",
    "recv.ChunkRingPair": "chunks are not built yet",
    "recv.ChunkRingStream": "chunks are not built yet",
    "recv.ChunkStreamConfig": "chunks are not built yet",
    "recv.ChunkStreamGroupConfig": "chunks are not built yet",
    "recv.ChunkStreamRingGroup": "chunks are not built yet",
    "recv.ChunkStreamGroupMember": "chunks are not built yet",
    "recv.asyncio.ChunkRingbuffer": "chunks are not built yet",
    "recv.UdpIbvConfig": "ibverbs: here AF_XDP does what it is for (UdpXdpConfig)",
    "recv._Stream.add_udp_ibv_reader": "ibverbs: here AF_XDP does (add_udp_xdp_reader)",
    "send.UdpIbvConfig": "ibverbs: here AF_XDP does what it is for (UdpXdpConfig)",
    "send._UdpIbvStream": "ibverbs: here AF_XDP does (UdpXdpStream)",
    "send.UdpIbvStream": "ibverbs: here AF_XDP does (UdpXdpStream)",
    "send.asyncio.UdpIbvStream": "ibverbs: here AF_XDP does (UdpXdpStream)",
    "recv.StreamStats.incomplete_Heaps_flushed": "misspelt in the stub: it is all lower case",
}

#: Names that have another owner here. What is in them goes with them.
ELSEWHERE = {
    "recv._RingStream.__iter__": "recv.Stream.__iter__",
    "send._UdpStream": "send._udp._UdpStream",
    "send._TcpStream": "send._tcp._TcpStream",
    "send._InprocStream": "send._inproc._InprocStream",
}

#: Properties of the stubs that are methods in spead2 itself.
METHODS_IN_TRUTH = {"Descriptor.is_variable_size", "Descriptor.allow_immediate"}

#: Bases in the stubs that spead2 itself does not have: `except RuntimeError` catches neither there.
WRONG_BASES = {("Stopped", "RuntimeError"), ("Empty", "RuntimeError")}

#: Calls with keywords that the stub allows by its spelling, and spead2 refuses.
POSITIONAL_ONLY = {
    "recv.StreamStats.get",
    "InprocQueue.add_packet",
    "recv.StreamStatConfig.combine",
}

#: Read-only there. Here they are attributes of an array, which nothing depends on.
MAY_BE_SET_HERE = {
    "recv.RawItem.id",
    "recv.RawItem.is_immediate",
    "recv.RawItem.immediate_value",
}


def stub_folder() -> Path:
    spec = importlib.util.find_spec("spead2")
    if spec is None or spec.origin is None:
        pytest.skip("spead2 is not installed", allow_module_level=True)
    return Path(spec.origin).parent


# Reading the stubs


@dataclass
class Name:
    """One name of a stub: every definition that it has there."""

    path: str  #: "recv.Stream.get"
    nodes: list[ast.stmt] = field(default_factory=list)
    owner: str | None = None  #: the class, "recv.Stream"

    def __str__(self) -> str:
        return self.path


def decorators(node: ast.stmt) -> set[str]:
    assert isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    return {ast.unparse(d) for d in node.decorator_list}


def names_in(body: list[ast.stmt], prefix: str, owner: str | None) -> Iterator[Name]:
    """Return the names that statements define, with those of the classes among them."""
    found: dict[str, Name] = {}
    for node in body:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                name = node.name
            case ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name)]):
                pass
            case _:
                continue
        path = f"{prefix}.{name}" if prefix else name
        found.setdefault(name, Name(path, owner=owner)).nodes.append(node)
    for name in found.values():
        yield name
        for node in name.nodes:
            if isinstance(node, ast.ClassDef) and name.path not in LEFT_OUT:
                yield from names_in(node.body, name.path, name.path)


def stub_names() -> list[Name]:
    folder = stub_folder()
    names = []
    for module, file in MODULES.items():
        names += names_in(ast.parse((folder / file).read_text()).body, module, None)
    return names


NAMES = stub_names()
WANTED = [name for name in NAMES if name.path not in LEFT_OUT]
CLASSES = [name for name in WANTED if isinstance(name.nodes[0], ast.ClassDef)]
FUNCTIONS = [
    name
    for name in WANTED
    if isinstance(name.nodes[0], (ast.FunctionDef, ast.AsyncFunctionDef))
    and not any("property" in decorators(n) for n in name.nodes)
]
PROPERTIES = [
    name
    for name in WANTED
    if isinstance(name.nodes[0], ast.FunctionDef) and "property" in decorators(name.nodes[0])
]
VARIABLES = [
    name for name in WANTED if isinstance(name.nodes[0], (ast.AnnAssign, ast.Assign)) and name.owner
]


def ours(path: str) -> Any:
    """Return what has this name here."""
    for there, here in ELSEWHERE.items():
        if path == there or path.startswith(f"{there}."):
            path = here + path.removeprefix(there)
    module = max((m for m in MODULES if path.startswith(m)), key=len)
    thing = importlib.import_module(f"xdpspead.{module}" if module else "xdpspead")
    for part in path.removeprefix(module).strip(".").split("."):
        thing = getattr(thing, part)
    return thing


# Calls


@dataclass(frozen=True)
class Call:
    """A way to call a function: how many arguments by position, and which by keyword."""

    n_positional: int
    keywords: frozenset[str]

    def __str__(self) -> str:
        return ", ".join(["_"] * self.n_positional + [f"{k}=_" for k in sorted(self.keywords)])

    def is_accepted_by(self, signature: inspect.Signature) -> bool:
        try:
            signature.bind(*[None] * self.n_positional, **dict.fromkeys(self.keywords))
        except TypeError:
            return False
        return True


def is_told_by_trying(function: Any) -> bool:
    """Whether the signature says nothing: the function sorts out its arguments itself."""
    kinds = [p.kind for s in signatures(function) for p in s.parameters.values()]
    return inspect.Parameter.VAR_KEYWORD in kinds and inspect.Parameter.VAR_POSITIONAL in kinds


def complaint(cls: Any, call: Call, arguments: ast.arguments) -> str:
    """Return what a constructor says when it is called so, with None for all but a socket."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        values = {a.arg: sock if a.arg == "socket" else None for a in arguments.args[1:]}
        positional = list(values.values())[: call.n_positional]
        with pytest.raises(TypeError) as error:
            cls(*positional, **{name: values.get(name) for name in call.keywords})
    return str(error.value)


def allowed_calls(arguments: ast.arguments, first: int, by_keyword: bool) -> Iterator[Call]:
    """Return the calls that a signature allows: every split, with none, one or all options."""
    positional = [a.arg for a in arguments.posonlyargs + arguments.args][first:]
    n_defaults = len(arguments.defaults)
    required = set(positional[: len(positional) - n_defaults])
    keyword_only = [a.arg for a in arguments.kwonlyargs]
    required |= {a for a, d in zip(keyword_only, arguments.kw_defaults, strict=True) if d is None}
    for n in range(len(positional) + 1):
        rest = positional[n:] + keyword_only
        if not by_keyword and required & set(rest):
            continue
        must = frozenset(required & set(rest))
        options = [a for a in rest if a not in required] if by_keyword else []
        yield Call(n, must)
        yield Call(n, must | frozenset(options))
        for option in options:
            yield Call(n, must | {option})


def signatures(function: Any) -> list[inspect.Signature]:
    """Return the signatures of a function: those of its overloads, if it has some."""
    overloads = typing.get_overloads(function) if inspect.isfunction(function) else []
    return [inspect.signature(f) for f in overloads or [function]]


def without_first(signature: inspect.Signature) -> inspect.Signature:
    return signature.replace(parameters=list(signature.parameters.values())[1:])


# The tests


@pytest.mark.parametrize("name", WANTED, ids=str)
def test_name_is_here(name):
    if name.path in VALUES_OF_INSTANCES:
        assert hasattr(instance(name.owner), name.path.rpartition(".")[2])
    else:
        ours(name.path)


@pytest.mark.parametrize("path", LEFT_OUT)
def test_what_is_left_out_is_in_the_stubs_and_not_here(path):
    assert path in {name.path for name in NAMES}
    with pytest.raises((AttributeError, ImportError)):
        ours(path)


@pytest.mark.parametrize("name", FUNCTIONS, ids=str)
def test_every_allowed_call_is_accepted(name):
    function = ours(name.path)
    is_method = name.owner is not None and "staticmethod" not in decorators(name.nodes[0])
    is_bound = inspect.ismethod(function)  # a class method
    special = name.path.rpartition(".")[2].startswith("__") and not name.path.endswith("__init__")
    accepting = signatures(function)
    if is_method and not is_bound:
        accepting = [without_first(s) for s in accepting]
    for node in name.nodes:
        assert isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        by_keyword = not special and name.path not in POSITIONAL_ONLY
        for call in allowed_calls(node.args, int(is_method), by_keyword):
            if is_told_by_trying(function):
                told = complaint(ours(name.owner or ""), call, node.args)
                # It has understood which argument is which, and looks at the first.
                assert told.startswith(("thread_pool must", "not a TCP")), f"{call}: {told}"
                continue
            assert any(call.is_accepted_by(s) for s in accepting), f"{name}({call})"


@pytest.mark.parametrize("name", FUNCTIONS, ids=str)
def test_defaults_that_the_stub_tells_are_ours(name):
    for node in name.nodes:
        assert isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        arguments = node.args.args[len(node.args.args) - len(node.args.defaults) :]
        for argument, default in zip(arguments, node.args.defaults, strict=True):
            value = ast.literal_eval(default)
            if value is ... or name.path in POSITIONAL_ONLY:
                continue
            told = [s.parameters.get(argument.arg) for s in signatures(ours(name.path))]
            assert value in [p.default for p in told if p is not None]


@pytest.mark.parametrize("name", FUNCTIONS, ids=str)
def test_coroutines_are_coroutines_and_others_are_not(name):
    is_async = isinstance(name.nodes[0], ast.AsyncFunctionDef)
    assert inspect.iscoroutinefunction(ours(name.path)) is is_async


@pytest.mark.parametrize("name", CLASSES, ids=str)
def test_classes_have_the_bases_of_the_stubs(name):
    node = name.nodes[0]
    assert isinstance(node, ast.ClassDef)
    for base in map(ast.unparse, node.bases):
        if (name.path, base) in WRONG_BASES or base.startswith("collections."):
            continue
        if base == "enum.Enum":
            found: Any = importlib.import_module("enum").Enum
        elif hasattr(builtins, base):
            found = getattr(builtins, base)
        elif base.startswith("spead2."):
            found = ours(base.removeprefix("spead2."))
        else:
            module = name.path.rpartition(".")[0]
            found = ours(f"{module}.{base}" if module else base)
        assert issubclass(ours(name.path), found)


# Values

_stream = new_stream(ring={"contiguous_only": False})
_stream.add_buffer_reader(
    wire.join([*wire.simple_heap(1, 10).packets(), wire.simple_heap(2, 10).packets(5)[0]])
)
_heap = next_heap(_stream)
_incomplete = next_heap(_stream)
_pool = xdpspead.ThreadPool()
_udp_sender = xdpspead.send.UdpStream(_pool, [("127.0.0.1", 9)])
_inproc_sender = xdpspead.send.InprocStream(_pool, [xdpspead.InprocQueue()])

#: An object of each class that has properties or attributes in the stubs.
INSTANCES: dict[str, Any] = {
    "Flavour": xdpspead.Flavour(),
    "MemoryPool": xdpspead.MemoryPool(1, 2, 3, 1),
    "RawDescriptor": xdpspead.RawDescriptor(),
    "Descriptor": xdpspead.Descriptor(0x1000, "name", "", (), "u1"),
    "Item": xdpspead.Item(0x1000, "name", "", (), "u1", value=3),
    "recv.RawItem": _heap.get_items()[0],
    "recv._HeapBase": _heap,
    "recv.Heap": _heap,
    "recv.IncompleteHeap": _incomplete,
    "recv.StreamStatConfig": xdpspead.recv.StreamStatConfig("name"),
    "recv.StreamStatConfig.Mode": xdpspead.recv.StreamStatConfig.Mode,
    "recv.StreamStats": _stream.stats,
    "recv.StreamConfig": xdpspead.recv.StreamConfig(),
    "recv.RingStreamConfig": xdpspead.recv.RingStreamConfig(),
    "recv._Stream": _stream,
    "recv._RingStream": _stream,
    "recv.Stream": _stream,
    "send.Heap": xdpspead.send.Heap(),
    "send.HeapReference": xdpspead.send.HeapReference(xdpspead.send.Heap()),
    "send.RateMethod": xdpspead.send.RateMethod,
    "send.StreamConfig": xdpspead.send.StreamConfig(),
    "send.GroupMode": xdpspead.send.GroupMode,
    "send.Stream": _udp_sender,
    "send._UdpStream": _udp_sender,
    "send._TcpStream": xdpspead.send.TcpStream,
    "send._InprocStream": _inproc_sender,
    "send.asyncio.AsyncStream": xdpspead.send.asyncio.UdpStream(_pool, [("127.0.0.1", 9)]),
}
#: Their members stand in the stubs as if they could be set.
ENUMERATIONS = {"recv.StreamStatConfig.Mode", "send.RateMethod", "send.GroupMode"}
VALUES_OF_INSTANCES = {name.path for name in [*PROPERTIES, *VARIABLES]}


def instance(owner: str | None) -> Any:
    assert owner is not None
    return INSTANCES[owner]


def is_class_variable(name: Name) -> bool:
    node = name.nodes[0]
    told = isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation).startswith("ClassVar")
    return told or name.owner in ENUMERATIONS


@pytest.mark.parametrize("name", [n for n in VARIABLES if not is_class_variable(n)], ids=str)
def test_attribute_may_be_set_to_what_it_is(name):
    thing, attribute = instance(name.owner), name.path.rpartition(".")[2]
    before = getattr(thing, attribute)
    setattr(thing, attribute, before)
    assert getattr(thing, attribute) == before


@pytest.mark.parametrize("name", [n for n in VARIABLES if is_class_variable(n)], ids=str)
def test_class_variable_is_found_on_the_class(name):
    ours(name.path)


@pytest.mark.parametrize("name", PROPERTIES, ids=str)
def test_property_may_be_set_only_if_the_stub_says_so(name):
    thing, attribute = instance(name.owner), name.path.rpartition(".")[2]
    value = getattr(thing, attribute)
    assert callable(value) is (name.path in METHODS_IN_TRUTH)
    if callable(value):
        return
    settable = any(f"{attribute}.setter" in decorators(n) for n in name.nodes)
    if settable or name.path in MAY_BE_SET_HERE:
        setattr(thing, attribute, value)
    else:
        with pytest.raises(AttributeError):
            setattr(thing, attribute, value)


def test_what_the_lists_name_is_in_the_stubs():
    paths = {name.path for name in NAMES}
    for path in itertools.chain(
        ELSEWHERE, METHODS_IN_TRUTH, POSITIONAL_ONLY, MAY_BE_SET_HERE, INSTANCES, ENUMERATIONS
    ):
        assert path in paths, path


def test_constants_have_the_values_of_the_peer():
    peer = pytest.importorskip("spead2")
    pytest.importorskip("spead2.recv.stream_stat_indices")
    for module, theirs in (("", peer), ("recv.stream_stat_indices", peer.recv.stream_stat_indices)):
        names = [
            name.nodes[0].target.id
            for name in names_in(
                ast.parse((stub_folder() / MODULES[module]).read_text()).body, module, None
            )
            if isinstance(name.nodes[0], ast.AnnAssign) and name.owner is None
        ]
        compared = 0
        for constant in names:
            if constant.isupper() and hasattr(theirs, constant):
                path = f"{module}.{constant}" if module else constant
                assert ours(path) == getattr(theirs, constant), constant
                compared += 1
        assert compared >= 9
