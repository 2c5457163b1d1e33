"""What the peer's receive manual promises, section by section.

Run as it is, this checks both packages: ours, and the peer if it is installed. Where the manual is
older than the package that it comes with, the test says so.
"""

from __future__ import annotations

import importlib
import importlib.util
import socket
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import target
import wire

PACKAGES = ["xdpspead", "spead2"]


def build(package: str) -> SimpleNamespace:
    """Return the package with one object of each class that the manual describes."""
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    sp = importlib.import_module(package)
    recv = importlib.import_module(package + ".recv")
    config, ring_config = recv.StreamConfig(), recv.RingStreamConfig(heaps=8, contiguous_only=False)
    pool = sp.ThreadPool()
    stream = recv.Stream(pool, config, ring_config)
    whole, part = wire.simple_heap(1, 10).packets(), wire.simple_heap(2, 10).packets(5)[:1]
    stream.add_buffer_reader(wire.join([*whole, *part]))
    heap, incomplete = list(stream)
    return SimpleNamespace(
        sp=sp,
        recv=recv,
        pool=pool,
        stream_config=config,
        ring_config=ring_config,
        stream=stream,
        heap=heap,
        incomplete=incomplete,
        stats=stream.stats,
        ringbuffer=stream.ringbuffer,
        memory_pool=sp.MemoryPool(1, 2, 3, 0),
    )


_built: dict[str, SimpleNamespace] = {}


@pytest.fixture(params=PACKAGES)
def has(request) -> SimpleNamespace:
    package = request.param
    if package not in _built:
        _built[package] = build(package)
    return _built[package]


@pytest.fixture
def stream(has):
    """Return a stream that nothing has been added to."""
    stream = has.recv.Stream(has.pool)
    yield stream
    stream.stop()


#: Section -> object -> attributes that can be read and not set.
READ_ONLY = {
    "Receiving": {"heap": ["cnt", "flavour"]},
    "Blocking receive": {"stream": ["config", "ring_config", "fd", "stats", "ringbuffer"]},
    "Incomplete Heaps": {
        "incomplete": ["cnt", "flavour", "heap_length", "received_length", "payload_ranges"]
    },
}
#: Attributes that can be set.
SETTABLE = {
    "Configuration": {
        "stream_config": [
            "max_heaps",
            "bug_compat",
            "memcpy",
            "memory_allocator",
            "stop_on_stop_item",
            "allow_unsized_heaps",
            "allow_out_of_order",
        ],
        "ring_config": ["heaps", "contiguous_only", "incomplete_keep_payload_ranges"],
    },
    "Memory allocators": {"memory_pool": ["warn_on_empty"]},
    # The manual does not say that they may be set, the stubs do.
    "Statistics": {
        "stats": [
            "heaps",
            "incomplete_heaps_evicted",
            "incomplete_heaps_flushed",
            "packets",
            "batches",
            "worker_blocked",
            "max_batch",
            "single_packet_heaps",
            "search_dist",
        ]
    },
}
#: Methods without arguments, and what they return here.
METHODS = {
    "Receiving": {"heap": {"is_start_of_stream": False, "is_end_of_stream": False}},
    "Incomplete Heaps": {"incomplete": {"is_start_of_stream": False, "is_end_of_stream": False}},
    "Statistics": {"ringbuffer": {"size": 0, "capacity": 8}},
}
#: Calls in all the ways that the manual writes them.
CALLS: dict[str, dict[str, Callable[[Any], object]]] = {
    "Configuration": {
        "StreamConfig by keyword": lambda has: has.recv.StreamConfig(
            max_heaps=3,
            bug_compat=has.sp.BUG_COMPAT_PYSPEAD_0_5_2,
            memcpy=has.sp.MEMCPY_NONTEMPORAL,
            memory_allocator=has.sp.MemoryAllocator(),
            stop_on_stop_item=False,
            allow_unsized_heaps=False,
            allow_out_of_order=True,
        ),
        "RingStreamConfig by keyword": lambda has: has.recv.RingStreamConfig(
            heaps=3, contiguous_only=False, incomplete_keep_payload_ranges=True
        ),
    },
    "Blocking receive": {
        "Stream of a pool": lambda has: has.recv.Stream(has.pool),
        "Stream by position": lambda has: has.recv.Stream(
            has.pool, has.recv.StreamConfig(), has.recv.RingStreamConfig()
        ),
        "Stream by keyword": lambda has: has.recv.Stream(
            thread_pool=has.pool,
            config=has.recv.StreamConfig(),
            ring_config=has.recv.RingStreamConfig(),
        ),
        "Stream with a ring alone": lambda has: has.recv.Stream(
            has.pool, ring_config=has.recv.RingStreamConfig()
        ),
    },
    "Memory allocators": {
        "MemoryAllocator": lambda has: has.sp.MemoryAllocator(),
        "MmapAllocator": lambda has: has.sp.MmapAllocator(),
        "MmapAllocator by position": lambda has: has.sp.MmapAllocator(0),
        "MmapAllocator by keyword": lambda has: has.sp.MmapAllocator(flags=0),
        "MemoryPool by position": lambda has: has.sp.MemoryPool(1, 2, 3, 0),
        "MemoryPool on an allocator": lambda has: has.sp.MemoryPool(
            1, 2, 3, 0, has.sp.MmapAllocator()
        ),
        "MemoryPool by keyword": lambda has: has.sp.MemoryPool(
            lower=1, upper=2, max_free=3, initial=0, allocator=has.sp.MemoryAllocator()
        ),
    },
}
GROUP = "239.77.9.9"
#: Calls that add a reader; PORT stands for a port that is free.
READERS: dict[str, Callable[[Any, int], object]] = {
    "buffer": lambda stream, port: stream.add_buffer_reader(b""),
    "buffer by keyword": lambda stream, port: stream.add_buffer_reader(buffer=b""),
    "udp port": lambda stream, port: stream.add_udp_reader(port),
    "udp port by position": lambda stream, port: stream.add_udp_reader(port, 1500, 0, "127.0.0.1"),
    "udp port by keyword": lambda stream, port: stream.add_udp_reader(
        port=port, max_size=1500, buffer_size=0, bind_hostname="127.0.0.1"
    ),
    "udp port on an address": lambda stream, port: stream.add_udp_reader(
        port, buffer_size=0, bind_hostname="127.0.0.1"
    ),
    "udp interface by position": lambda stream, port: stream.add_udp_reader(
        GROUP, port, 1500, 0, "127.0.0.1"
    ),
    "udp interface by keyword": lambda stream, port: stream.add_udp_reader(
        multicast_group=GROUP,
        port=port,
        max_size=1500,
        buffer_size=0,
        interface_address="127.0.0.1",
    ),
    "udp unicast that is the interface's": lambda stream, port: stream.add_udp_reader(
        "127.0.0.1", port, interface_address="127.0.0.1", buffer_size=0
    ),
    "udp index by position": lambda stream, port: stream.add_udp_reader(
        "ff15::77", port, 1500, 0, socket.if_nametoindex("lo")
    ),
    "udp index by keyword": lambda stream, port: stream.add_udp_reader(
        multicast_group="ff15::77",
        port=port,
        max_size=1500,
        buffer_size=0,
        interface_index=socket.if_nametoindex("lo"),
    ),
    "tcp port": lambda stream, port: stream.add_tcp_reader(port),
    "tcp port by position": lambda stream, port: stream.add_tcp_reader(port, 1500, 0, "127.0.0.1"),
    "tcp port by keyword": lambda stream, port: stream.add_tcp_reader(
        port=port, max_size=1500, buffer_size=0, bind_hostname="127.0.0.1"
    ),
}


def flat(table: dict[str, dict[str, Any]]) -> list[Any]:
    """Return (object, entry) of every entry, named by its section."""
    return [
        pytest.param(thing, entry, id=f"{section}: {thing}.{entry}")
        for section, things in table.items()
        for thing, entries in things.items()
        for entry in entries
    ]


@pytest.mark.parametrize(("thing", "attribute"), flat(READ_ONLY))
def test_attribute_can_be_read_and_not_set(has, thing, attribute):
    value = getattr(getattr(has, thing), attribute)
    with pytest.raises(AttributeError):
        setattr(getattr(has, thing), attribute, value)


@pytest.mark.parametrize(("thing", "attribute"), flat(SETTABLE))
def test_attribute_can_be_set(has, thing, attribute):
    value = getattr(getattr(has, thing), attribute)
    setattr(getattr(has, thing), attribute, value)
    assert getattr(getattr(has, thing), attribute) == value


@pytest.mark.parametrize(("thing", "method"), flat(METHODS))
def test_method_returns(has, thing, method):
    expected = next(things[thing][method] for things in METHODS.values() if thing in things)
    assert getattr(getattr(has, thing), method)() == expected


@pytest.mark.parametrize(
    "call",
    [pytest.param(c, id=f"{s}: {n}") for s, calls in CALLS.items() for n, c in calls.items()],
)
def test_call_is_accepted(has, call):
    call(has)


@pytest.mark.parametrize("add", READERS.values(), ids=READERS)
def test_reader_is_added(stream, add):
    add(stream, target.free_port())


@pytest.mark.parametrize("max_size", [{}, {"max_size": 1500}])
def test_readers_take_sockets(stream, max_size):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        stream.add_udp_reader(sock, **max_size)
        stream.add_udp_reader(socket=sock, **max_size)
    for by_keyword in (False, True):
        with socket.create_server(("127.0.0.1", 0)) as acceptor:
            if by_keyword:
                stream.add_tcp_reader(acceptor=acceptor, **max_size)
            else:
                stream.add_tcp_reader(acceptor, **max_size)


def test_queues_and_captures_are_readers(has, stream, tmp_path):
    stream.add_inproc_reader(has.sp.InprocQueue())
    stream.add_inproc_reader(queue=has.sp.InprocQueue())
    with pytest.raises(RuntimeError):
        stream.add_udp_pcap_file_reader(str(tmp_path / "none"))
    with pytest.raises(RuntimeError):
        stream.add_udp_pcap_file_reader(filename=str(tmp_path / "none"))


def test_constants_that_the_signatures_name(has):
    names = ["UDP_MAX_SIZE", "UDP_BUFFER_SIZE", "TCP_MAX_SIZE", "TCP_BUFFER_SIZE"]
    values = [getattr(has.recv.Stream, f"DEFAULT_{name}") for name in names]
    assert values == [9200, 8 * 1024 * 1024, 65536, 208 * 1024]


def test_exceptions(has, stream):
    with pytest.raises(has.sp.Empty):
        stream.get_nowait()
    stream.stop()
    for get in (stream.get, stream.get_nowait):
        with pytest.raises(has.sp.Stopped):
            get()
    assert list(stream) == []
    # The stubs say RuntimeError, but `except RuntimeError` catches none of them in spead2.
    for error in (has.sp.Stopped, has.sp.Empty, has.sp.Full):
        assert error.__bases__ == (Exception,)


@pytest.mark.parametrize("name", ["StreamConfig", "RingStreamConfig"])
def test_zero_is_a_value_error(has, name):
    with pytest.raises(ValueError, match="heaps"):
        getattr(has.recv, name)(**{"max_heaps" if name == "StreamConfig" else "heaps": 0})


def test_configuration_cannot_be_changed_once_a_stream_is_made(has, stream):
    stream.config.max_heaps = 77
    stream.ring_config.heaps = 77
    assert (stream.config.max_heaps, stream.ring_config.heaps) == (4, 4)


def test_names_of_classes_inside_classes(has):
    assert isinstance(has.ringbuffer, has.recv.Stream.Ringbuffer)
    assert isinstance(has.memory_pool, has.sp.MemoryAllocator)
    assert issubclass(has.sp.MmapAllocator, has.sp.MemoryAllocator)


# Where the manual is behind: what it writes neither package takes.

OLD: dict[str, Callable[[Any], object]] = {
    "stream_config=, in the signature of Stream": lambda has: has.recv.Stream(
        has.pool, stream_config=has.recv.StreamConfig()
    ),
    "ring_heaps, in RingStreamConfig and the statistics": lambda has: has.recv.RingStreamConfig(
        ring_heaps=4
    ),
    "socket=, beside the port": lambda has: has.recv.Stream(has.pool).add_udp_reader(
        port=1, socket=socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    ),
}


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("call", OLD.values(), ids=OLD)
def test_what_only_the_manual_has_is_refused(has, call):
    with pytest.raises(TypeError):
        call(has)


def test_memory_pool_with_threads_is_made_by_us_and_not_by_the_peer(has):
    def make() -> object:
        return has.sp.MemoryPool(has.pool, 1, 2, 3, 2, 1)

    if has.sp.__name__ == "spead2":  # 4.5.1 does not take its own ThreadPool
        with pytest.raises(TypeError):
            make()
    else:
        make()
