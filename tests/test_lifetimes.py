"""Ends: of streams, pools, threads, forks and of the interpreter, in any order and at any moment.

None of them may hang, crash, leak or complain. Each test plays its scene in a child of its own, see
``lifetime_child.py``, which must end with status 0 before a deadline, with nothing on its standard
error (warnings are errors, so this covers sockets that nobody closed and exceptions that were
ignored) and with the expected output.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from target import OURS, Sender, sp

#: A child that takes longer hangs.
CHILD_DEADLINE = 60.0

Play = Callable[..., str]


def _environment() -> dict[str, str]:
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


_PYTHON = (sys.executable, "-X", "dev", "-W", "error", "-P")


def _run_python(*args: str) -> str:
    done = subprocess.run(
        [*_PYTHON, *args],
        capture_output=True,
        text=True,
        timeout=CHILD_DEADLINE,
        env=_environment(),
        check=False,
    )
    return _check(done.returncode, done.stdout, done.stderr)


def _check(status: int, out: str, err: str) -> str:
    assert (status, err) == (0, ""), f"status {status}, after it printed\n{out}\n{err}"
    return out


class Nursery:
    """A Python that has imported what children need, and forks one for each scene.

    It has no thread, stream or pool itself. Starting Python takes longer than most of the scenes.
    The peer has threads as soon as it is imported, so there each scene has a Python of its own.
    """

    def __init__(self, popen: Callable[..., subprocess.Popen[bytes]] = subprocess.Popen) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [*_PYTHON, "-c", "import lifetime_child; lifetime_child.serve()"]
            self._process = popen(
                command, stdin=theirs.fileno(), stdout=subprocess.DEVNULL, env=_environment()
            )

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *args: object) -> None:
        self._socket.close()
        self._process.wait(CHILD_DEADLINE)

    def begin(self, scene: str, fds: list[int], transport: str = "buffer", *, xdp: str = "") -> int:
        """Begin a scene in a child and return its process; `fds` are its standard output, …."""
        message = json.dumps([textwrap.dedent(scene), transport, xdp])
        self._socket.settimeout(CHILD_DEADLINE)
        socket.send_fds(self._socket, [message.encode()], fds)
        return int(self._socket.recv(100))

    def end(self) -> int:
        """Wait until the child ends and return its status."""
        return int(self._socket.recv(100))

    def play(self, scene: str, transport: str = "buffer", *, xdp: str = "", fd: int = -1) -> str:
        """Run `scene` in a child and return what it printed.

        `fd` is a descriptor that it needs, by the number that is in `xdp`.
        """
        if not OURS:
            code = (
                "import sys, lifetime_child as c; c.set_transport(sys.argv[1]); c.run(sys.argv[2])"
            )
            return _run_python("-c", code, transport, textwrap.dedent(scene))
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            fds = [out.fileno(), err.fileno(), *([fd] if fd >= 0 else [])]
            pid = self.begin(scene, fds, transport, xdp=xdp)
            try:
                status = self.end()
            except TimeoutError:
                os.kill(pid, signal.SIGABRT)  # faulthandler tells where every thread was
                self._socket.recv(100)
                status = -signal.SIGABRT
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)  # its children
            for file in (out, err):
                file.seek(0)
            return _check(status, out.read().decode(), err.read().decode())


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as nursery:
        yield nursery


@pytest.fixture
def play(nursery: Nursery) -> Play:
    """Play a scene that needs no transport but the buffer."""
    return nursery.play


# ------------------------------------------------------------------ transports


@pytest.fixture(scope="module")
def lab() -> Iterator[Any]:
    """Two namespaces, for AF_XDP."""
    from xdplab import Lab

    with Lab() as lab:
        yield lab


def _skip_unless_built(transport: str) -> None:
    if transport == "pcap" and OURS and not sp.features.pcap:
        pytest.skip(str(sp.features.pcap))  # libpcap is an option of the build


TRANSPORTS = [
    "buffer",
    "udp",
    "tcp",
    "inproc",
    "pcap",
    pytest.param("xdp", marks=pytest.mark.ours),
]


@pytest.fixture(scope="module")
def play_in_lab(lab: Any) -> Iterator[Play]:
    """Play a scene over AF_XDP."""
    with Nursery(lab.rx.popen) as nursery:

        def play(scene: str) -> str:
            with lab.tx.enter():
                sender = Sender(9, lab.rx.ipv4).socket
            with sender:
                where = f"{lab.rx.interface} {lab.rx.ipv4}"
                out = nursery.play(scene, "xdp", xdp=where, fd=sender.fileno())
            lab.wait_detached()
            return out

        yield play


def _player(request: pytest.FixtureRequest, transport: str) -> Play:
    if transport == "xdp":
        player: Play = request.getfixturevalue("play_in_lab")
        return player
    _skip_unless_built(transport)
    nursery: Nursery = request.getfixturevalue("nursery")
    return lambda scene: nursery.play(scene, transport)


@pytest.fixture(params=TRANSPORTS)
def over(request: pytest.FixtureRequest) -> Play:
    """Play a scene over each transport."""
    return _player(request, request.param)


@pytest.fixture(params=["udp", pytest.param("xdp", marks=pytest.mark.ours)])
def over_network(request: pytest.FixtureRequest) -> Play:
    """Play a scene over each transport that loses packets."""
    return _player(request, request.param)


# ------------------------------------------------------------------ stop


def test_stop_wakes_every_thread_in_get(over):
    scene = """
    for n in (1, 10):
        stream = new_stream()
        source = idle(stream)
        entered, outcomes = threading.Barrier(n + 1), []

        def wait():
            entered.wait(DEADLINE)
            outcomes.append(outcome(stream.get))

        waiting = [in_thread(wait) for _ in range(n)]
        entered.wait(DEADLINE)
        time.sleep(0.05)  # no promise hangs on it: it makes it likely that all of them wait
        stream.stop()
        for thread in waiting:
            thread.join(DEADLINE)
        print(n, set(outcomes), len(outcomes))
        if source:
            source.close()
    """
    assert over(scene) == "1 {'Stopped'} 1\n10 {'Stopped'} 10\n"


def test_stop_ends_a_stream_whose_ring_is_full(over):
    scene = """
    for stoppers in (0, 1, 8):
        stream = new_stream(heaps=2)
        source = full(stream)
        ready = threading.Barrier(stoppers + 1)

        def stop():
            ready.wait(DEADLINE)
            stream.stop()

        others = [in_thread(stop) for _ in range(stoppers)]
        ready.wait(DEADLINE)
        start = time.monotonic()
        stream.stop()
        stream.stop()
        for thread in others:
            thread.join(DEADLINE)
        assert time.monotonic() - start < 5
        assert [heap.cnt for heap in drain(stream)] == [0, 1]
        source.close()
    print("ok")
    """
    assert over(scene) == "ok\n"


def test_stop_from_many_threads_while_heaps_come_and_are_read(over):
    scene = """
    for i in range(10):
        stream = new_stream(heaps=4)
        source = flood(stream)
        reader = in_thread(lambda: [heap.cnt for heap in stream])
        next_heap(stream)
        stoppers = [in_thread(stream.stop) for _ in range(8)]
        for thread in [reader, *stoppers]:
            thread.join(DEADLINE)
            assert not thread.is_alive()
        source.close()
    print("ok")
    """
    assert over(scene) == "ok\n"


HANDLER_SCENES = {
    "get": "while True: stream.get()",
    "iteration": "list(stream); stream.get()",
    "get_nowait": """
                while True:
                    try: stream.get_nowait()
                    except sp.Empty: pass""",
    "stop": """
                while not interrupts.n: other.stop(); stream.stats
                stream.get()""",
    "statistics": """
                while not interrupts.n: stream.stats, repr(stream), stream.fd
                stream.get()""",
    "making streams": """
                while not interrupts.n: new_stream(pool=pool)
                drain(stream); stream.get()""",
    "adding readers": """
                while not interrupts.n and sources.append(Source(stream, 1)) is None: pass
                drain(stream); stream.get()""",
}


@pytest.mark.ours  # the peer hangs now and then
@pytest.mark.parametrize("action", HANDLER_SCENES)
def test_stop_in_a_signal_handler_during(action, over_network):
    scene = f"""
    pool = sp.ThreadPool()
    for i in range(10 if where.transport == "xdp" else 30):
        stream = new_stream(heaps=4, pool=pool)
        sources = [flood(stream, 1)]
        other = new_stream(pool=pool)
        with Interrupts(lambda: (stream.stop(), other.stop())) as interrupts:
            try:
                {HANDLER_SCENES[action]}
            except sp.Stopped:
                pass
        assert interrupts.n == 1
        for source in sources:
            source.close()
        stream.stop()
        other.stop()
    print("ok")
    """
    assert over_network(scene) == "ok\n"


def test_stop_from_finalizers(over):
    scene = """
    class Owner:
        def __init__(self, stream, cycle):
            self.stream, self.me = stream, cycle and self

        def __del__(self):
            self.stream.stop()
            print("stopped")

    for fill in (full, flood):
        for cycle in (False, True):
            stream = new_stream(heaps=4)
            owner = Owner(stream, cycle)
            source = fill(stream)
            del owner
            gc.collect()
            drain(stream)
            source.close()
    stream = new_stream(heaps=4)
    source = flood(stream)
    keep = lambda: None
    weakref.finalize(keep, stream.stop)
    del keep
    drain(stream)
    source.close()

    last = new_stream(heaps=1)
    keep = full(last)
    atexit.register(keep.close)
    atexit.register(lambda: print(len(drain(last))))
    atexit.register(last.stop)
    """
    assert over(scene) == 4 * "stopped\n" + "1\n"


@pytest.mark.parametrize(
    "wait", ["stream.get()", "next(stream)", "list(stream)", "while True: poll_once(stream)"]
)
def test_ctrl_c_interrupts_at_once_and_the_stream_goes_on(wait, over_network):
    scene = f"""
    def poll_once(stream):
        try:
            stream.get_nowait()
        except sp.Empty:
            pass

    def press():
        wait_for(lambda: ready, "the main thread")
        time.sleep(0.05)  # no promise hangs on it: it makes it likely that the main thread waits
        pressed.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    stream = new_stream()
    source = idle(stream)
    for i in range(3):
        ready, pressed = [], []
        thread = in_thread(press)
        try:
            ready.append(True)
            {wait}
        except KeyboardInterrupt:
            assert time.monotonic() - pressed[0] < 5
        thread.join(DEADLINE)
        source.send(i)
        print(stream.get().cnt)
    stream.stop()
    source.close()
    """
    assert over_network(scene) == "0\n1\n2\n"


@pytest.mark.ours
@pytest.mark.parametrize(
    "read", ["next(stream).cnt", "stream.get().cnt", "stream.get_many(1)[0].cnt"]
)
def test_interrupted_reading_loses_at_most_the_heap_in_hand_and_leaks_none(read, play):
    scene = f"""
    def interrupt():
        if reading and not ended:
            raise KeyboardInterrupt

    n, n_blocks = 60_000, 400
    memory = sp.MemoryPool(1, 64, n_blocks, n_blocks)
    memory.warn_on_empty = False
    stream = new_stream(heaps=64, memory_allocator=memory)
    stream.add_buffer_reader(b"".join(map(one, range(n))))
    got, reading, ended = [], False, False
    # A handler runs at calls and loops only, so none can come between the end and its note.
    with Interrupts(interrupt, 1e-5, 2e-4) as interrupts:
        while not ended:
            try:
                reading = True
                interrupts.arm()
                while True:
                    got.append({read})
            except KeyboardInterrupt:
                pass
            except (sp.Stopped, StopIteration):
                ended = True
    stream.stop()
    assert interrupts.n > 20, interrupts.n
    assert got == sorted(set(got))
    assert n - len(got) <= interrupts.n, (n, len(got), interrupts.n)
    gc.collect()
    print(memory.free - n_blocks)
    """
    assert play(scene) == "0\n"


# ------------------------------------------------------------------ the interpreter's exit


@pytest.mark.ours  # the peer aborts now and then
@pytest.mark.parametrize("n", [1, 10])
def test_interpreter_exits_while_daemon_threads_wait(n, over):
    scene = f"""
    stream, busy = new_stream(), new_stream(heaps=4)
    idle(stream)
    flood(busy)
    entered = threading.Barrier({n} + 1)

    def read(stream):
        entered.wait(DEADLINE)
        list(stream)

    for i in range({n}):
        in_thread(lambda: read(stream if i % 2 else busy))
    entered.wait(DEADLINE)
    print("end")
    """
    assert over(scene) == "end\n"


def test_interpreter_waits_for_a_thread_until_another_stops_the_stream(over):
    scene = """
    stream = new_stream()
    source = idle(stream)

    def stop():
        threading.main_thread().join(DEADLINE)
        time.sleep(0.05)  # no promise hangs on it: the interpreter is at its exit by then
        stream.stop()
        if source:
            source.close()

    def read():
        print(outcome(stream.get))

    threading.Thread(target=read).start()
    threading.Thread(target=stop).start()
    """
    assert over(scene) == "Stopped\n"


#: Ways to leave everything behind. Each is the end of a fresh fork of the child.
PLACES = """
def leave(place, things):
    if place == "module":
        globals().update(zip(order, things))
    elif place == "cycle":
        things.append(things)
        globals()["_cycle"] = things
    elif place == "builtins":
        builtins.things = things
    elif place == "module that stays":
        sys.modules["things"] = type(sys)("things")
        sys.modules["things"].__dict__.update(zip(order, things))
        sys.things = sys.modules["things"]
    elif place == "thread":
        local.things = things
    elif place == "owner with a finalizer":
        builtins.owner = Owner(things)

class Owner:
    def __init__(self, things):
        self.things = things

    def __del__(self):
        for thing in self.things:
            if hasattr(thing, "stop"):
                thing.stop()

local = threading.local()
NAMES = ["pool", "stream", "source", "memory", "heap", "array", "config"]
order = list(NAMES)

def cast(start):
    pool = sp.ThreadPool(2)
    memory = sp.MemoryPool(pool, 1, 100, 16, 8, 8)
    memory.warn_on_empty = False
    config = recv.StreamConfig(memory_allocator=memory)
    stream = recv.Stream(pool, config, recv.RingStreamConfig(heaps=4))
    source = start(stream)
    heap = stream.get() if start is not idle else None
    array = None if heap is None else array_of(heap)
    return dict(zip(NAMES, (pool, stream, source, memory, heap, array, config)))
"""


@pytest.mark.ours
@pytest.mark.parametrize("place", ["module", "cycle", "builtins", "owner with a finalizer"])
def test_interpreter_exits_with_everything_alive_in(place, over):
    assert over(exit_from(place)) == "ok\n"


@pytest.mark.ours
@pytest.mark.parametrize("place", ["module that stays", "thread"])
def test_interpreter_exits_with_everything_alive_in_a(place, play):
    assert play(exit_from(place)) == "ok\n"


def exit_from(place: str) -> str:
    scene = f"""
    some(1000, 64)
    for start in (idle, flood, full):
        with forked() as child:
            if child:
                things = cast(start)
                leave({place!r}, list(things.values()))
                del things
    print("ok")
    """
    return PLACES + textwrap.dedent(scene)


@pytest.mark.ours
def test_interpreter_exits_with_everything_alive_in_any_order(play):
    scene = """
    some(1000, 64)
    orders = list(itertools.permutations(NAMES))
    for order in random.sample(orders, 30):
        with forked() as child:
            if child:
                things = cast(flood)
                leave("module", [things[name] for name in order])
                del things
    print("ok")
    """
    assert play(PLACES + textwrap.dedent(scene)) == "ok\n"


@pytest.mark.ours
def test_everything_can_be_dropped_in_any_order(play):
    scene = """
    names = ["pool", "stream", "memory", "heap", "array", "config"]
    data = b"".join(map(one, range(30)))
    for i, order in enumerate(itertools.permutations(names)):
        things = cast(lambda stream: stream.add_buffer_reader(data))
        for name in order:
            if name == "array":
                assert things["array"].tobytes() == pattern(0, 64)
            del things[name]
    print(i + 1)
    """
    assert play(PLACES + textwrap.dedent(scene)) == "720\n"


# ------------------------------------------------------------------ thread pools


@pytest.mark.ours
def test_stopping_a_pool_stops_its_streams(over):
    scene = """
    for start, stopper in itertools.product((idle, flood, full), ("here", "thread", "with")):
        pool = sp.ThreadPool(2)
        streams = [new_stream(heaps=2, pool=pool) for _ in range(3)]
        sources = [start(stream) for stream in streams]
        waiting = [in_thread(lambda: outcome(lambda: list(stream))) for stream in streams[:2]]
        if stopper == "with":
            with pool:
                pass
        elif stopper == "thread":
            stoppers = [in_thread(pool.stop) for _ in range(3)]
            for thread in stoppers:
                thread.join(DEADLINE)
        else:
            pool.stop()
        pool.stop()
        for thread in waiting:
            thread.join(DEADLINE)
            assert not thread.is_alive()
        for stream in streams:
            drain(stream)
            assert outcome(stream.get) == outcome(stream.get_nowait) == "Stopped"
        for stream, source in zip(streams, sources):
            stream.stop()
            if source:
                source.close()
    print("ok")
    """
    assert over(scene) == "ok\n"


@pytest.mark.ours
def test_heaps_lost_with_the_pool_are_counted(play):
    scene = """
    pool = sp.ThreadPool()
    stream = new_stream(heaps=2, pool=pool)
    stream.add_buffer_reader(b"".join(map(one, range(5))))
    wait_for(lambda: stream.stats.worker_blocked, "a full ring")
    pool.stop()
    print(stream.stats.heaps, stream.stats["xdpspead.heaps_dropped_stop"], len(drain(stream)))
    """
    assert play(scene) == "5 3 2\n"


@pytest.mark.ours
def test_stopped_pool_takes_no_streams_and_its_streams_no_readers(over):
    scene = """
    pool = sp.ThreadPool()
    memory = sp.MemoryPool(pool, 1, 100, 8, 4, 4)
    stream = new_stream(pool=pool)
    pool.stop()
    with contextlib.suppress(ConnectionRefusedError):  # TCP: nobody listens
        Source(stream, 0 if where.open_ended else 1).close()
    print(outcome(stream.get), stream.readers)
    try:
        new_stream(pool=pool)
    except RuntimeError as error:
        print("stopped" in str(error))
    stream = new_stream(memory_allocator=memory)
    stream.add_buffer_reader(b"".join(map(one, range(30))))
    print(len(drain(stream)))
    """
    assert over(scene) == "Stopped []\nTrue\n30\n"


def test_pool_is_dropped_while_its_streams_run(over):
    scene = """
    pool = sp.ThreadPool(2)
    streams = [new_stream(heaps=4, pool=pool) for _ in range(2)]
    sources = [full(streams[0]), flood(streams[1], 1)]  # in this order: they may share buffers
    del pool
    gc.collect()
    print([next_heap(stream).cnt for stream in streams])
    for stream, source in zip(streams, sources):
        stream.stop()
        source.close()
    """
    assert over(scene) == "[0, 0]\n"


@pytest.mark.ours
def test_with_statement_stops_the_stream_and_lets_exceptions_out(over):
    scene = """
    class Oops(Exception):
        pass

    for managed in ("pool first", "stream alone"):
        pool = sp.ThreadPool()
        with contextlib.suppress(Oops):
            with contextlib.ExitStack() as stack:
                if managed == "pool first":
                    assert stack.enter_context(pool) is pool
                stream = new_stream(heaps=2, pool=pool)
                assert stack.enter_context(stream) is stream
                source = stack.enter_context(full(stream))
                raise Oops
            print("not reached")
        print(len(drain(stream)))
        pool.stop()
    """
    assert over(scene) == "2\n2\n"


@pytest.mark.ours
def test_with_statement_of_the_pool_inside_that_of_the_stream(over):
    scene = """
    pool = sp.ThreadPool()
    with new_stream(heaps=2, pool=pool) as stream, pool, full(stream):
        pass
    print(len(drain(stream)))
    """
    assert over(scene) == "2\n"


# ------------------------------------------------------------------ arrays


@pytest.mark.ours
def test_arrays_outlive_everything_and_are_freed_once(over):
    scene = """
    n = 40
    base = sp.MmapAllocator()
    memory = sp.MemoryPool(1400, 1400, n, n, base)
    stream = new_stream(memory_allocator=memory)
    source = Source(stream, n, 1400)
    heaps = take(stream, n)
    arrays = [array_of(heap) for heap in heaps]
    source.close()
    stream.stop()
    print(memory.free)
    del stream, heaps, source
    gc.collect()
    print(memory.free)

    def use(mine):
        for cnt, array in mine:
            assert array.tobytes() == pattern(cnt, 1400)
            array[:] = cnt
            assert (array == cnt).all()

    shares = [list(enumerate(arrays))[i::4] for i in range(4)]
    users = [threading.Thread(target=use, args=(share,)) for share in shares]
    for user in users:
        user.start()
    for user in users:
        user.join()
    del shares, users, arrays[n // 2 :]
    gc.collect()
    print(memory.free)
    del memory, base
    gc.collect()
    assert [int(array[7]) for array in arrays] == list(range(n // 2))
    """
    assert over(scene) == "0\n0\n20\n"


@pytest.mark.ours
def test_heaps_that_nobody_read_are_freed(over):
    scene = """
    n = 64
    memory = sp.MemoryPool(1400, 1400, n, n)
    for stop in (True, False):
        stream = new_stream(heaps=8, memory_allocator=memory)
        source = full(stream, 1400)
        if stop:
            stream.stop()
        assert memory.free < n
        del stream
        source.close()
        gc.collect()
        print(memory.free)
    """
    assert over(scene) == "64\n64\n"


@pytest.mark.ours
def test_buffer_stays_while_a_stream_in_a_cycle_is_collected(play):
    scene = """
    packets = b"".join(map(one, range(20_000)))
    for i in range(30):
        data = np.frombuffer(packets, "u1").copy()  # large enough to be unmapped when it is freed
        stream = new_stream(heaps=20_000)
        stream.me = [stream, data]
        stream.add_buffer_reader(data)
        del stream, data
        gc.collect()
    print("ok")
    """
    assert play(scene) == "ok\n"


# ------------------------------------------------------------------ fork


FORK_ENDS = {
    "os._exit": "os._exit(0)",
    "sys.exit": "sys.exit(0)",
    "drop": "del stream, heap, array, memory, pool; gc.collect()",
    "stop": "stream.stop(); pool.stop(); stream.stop()",
}


@pytest.mark.ours
@pytest.mark.parametrize("end", FORK_ENDS)
def test_forked_child_ends_and_its_parent_goes_on(end, over):
    scene = f"""
    pool = sp.ThreadPool()
    memory = sp.MemoryPool(pool, 1, 100, 16, 8, 8)
    memory.warn_on_empty = False
    stream = new_stream(heaps=2, pool=pool, memory_allocator=memory)
    source = full(stream)
    heap = stream.get()
    array = array_of(heap)
    for i in range(4):
        with forked() as child:
            if child:
                assert array.tobytes() == pattern(0, 64)
                {FORK_ENDS[end]}
        assert stream.get().cnt == i + 1
    assert array.tobytes() == pattern(0, 64)
    print([heap.cnt for heap in take(stream, 20)])
    stream.stop()
    source.close()
    """
    assert over(scene) == f"{list(range(5, 25))}\n"


@pytest.mark.ours
def test_forks_at_any_moment_of_the_worker(over):
    scene = """
    pool = sp.ThreadPool()
    memory = sp.MemoryPool(pool, 1, 100, 64, 32, 32)
    memory.warn_on_empty = False
    stream = new_stream(heaps=32, pool=pool, memory_allocator=memory, allow_out_of_order=True)
    source = flood(stream, 1000)
    for i in range(15):
        arrays = [array_of(heap) for heap in take(stream, 8)]
        with forked() as child:
            if child:
                stream.stats, repr(stream), memory.free, stream.ringbuffer.size()
                stream.stop()
                del arrays
                gc.collect()
                del stream, memory, pool
                gc.collect()
    stream.stop()
    drain(stream)
    source.close()
    print("ok")
    """
    assert over(scene) == "ok\n"


@pytest.mark.ours
def test_forked_child_may_not_use_its_parents_streams_but_make_its_own(over):
    scene = """
    pool = sp.ThreadPool()
    memory = sp.MemoryPool(pool, 1, 100, 16, 8, 8)
    stream = new_stream(pool=pool, memory_allocator=memory)
    source = idle(stream)
    heaps = []
    with forked() as child:
        if child:
            uses = [stream.get, stream.get_nowait, lambda: next(stream), lambda: stream.fd]
            uses += [lambda: stream.add_buffer_reader(one(1)), lambda: new_stream(pool=pool)]
            print({outcome(use) for use in uses}, flush=True)
            try:
                stream.get()
            except RuntimeError as error:
                print("fork" in str(error), flush=True)
            own = new_stream(memory_allocator=memory)
            own.add_buffer_reader(b"".join(map(one, range(30))))
            print([array_of(heap).tobytes() for heap in take(own, 30)] ==
                  [pattern(cnt, 64) for cnt in range(30)], flush=True)
            own.stop()
            if source:
                source.close()
    stream.stop()
    if source:
        source.close()
    """
    assert over(scene) == "{'RuntimeError'}\nTrue\nTrue\n"


@pytest.mark.ours
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing_beside_a_stream(method, tmp_path):
    # Not `-c`, because a spawned child imports its parent's main module.
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        import multiprocessing, sys
        from lifetime_child import *

        def work(cnt):
            stream = new_stream()
            stream.add_buffer_reader(one(cnt))
            (heap,) = drain(stream)
            return array_of(heap).tobytes() == pattern(cnt, 64)

        if __name__ == "__main__":
            stream = new_stream(heaps=2)
            stream.add_buffer_reader(b"".join(map(one, range(9))))
            wait_for(lambda: stream.stats.worker_blocked, "a full ring")
            context = multiprocessing.get_context(sys.argv[1])
            with context.Pool(2) as workers:
                print(workers.map(work, range(6)))
                workers.close()
                workers.join()
            print(len(drain(stream)))
        """)
    )
    assert _run_python(str(script), method) == f"{[True] * 6}\n9\n"


@pytest.mark.ours
def test_program_goes_with_the_last_stream_though_a_forked_child_lives_on(play_in_lab):
    scene = """
    import json, subprocess
    from lifetime_child import where

    def attached():
        command = ["ip", "-j", "link", "show", "dev", where.interface]
        (link,) = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
        return "xdp" in link

    stream = new_stream()
    source = idle(stream)
    print(attached())
    r, w = os.pipe()
    with forked() as child:
        if child:
            os.close(w)
            os.read(r, 1)
        else:
            stream.stop()
            wait_for(lambda: not attached(), "the program detached")
            source.close()
            again = new_stream()
            source = Source(again, 3)
            print([heap.cnt for heap in take(again, 3)])
            again.stop()
            source.close()
            os.close(w)
    """
    assert play_in_lab(scene) == "True\n[0, 1, 2]\n"


# ------------------------------------------------------------------ leaks


@pytest.mark.ours
def test_three_hundred_lives_leave_nothing_behind(over):
    scene = """
    import xdplab
    import xdpspead.recv._xdp as xdp

    def life(i):
        pool = sp.ThreadPool(2)
        memory = sp.MemoryPool(pool, 1, 1400, 8, 4, 4)
        memory.warn_on_empty = False
        stream = new_stream(heaps=2 + i % 8, pool=pool, memory_allocator=memory)
        with Source(stream, 6, 1400) as source:
            programs.update(port.program_id for port in xdp._ports.values())
            array = array_of(next_heap(stream))
            if i % 3 == 0:
                stream.stop()
            elif i % 3 == 1:
                pool.stop()
            assert array.tobytes() == pattern(0, 1400)

    def state():
        gc.collect()
        return descriptors(), threads()

    programs = set()
    lives = 25 if where.transport == "xdp" else 300
    for i in range(lives // 5):
        life(i)
    before, memory = state(), resident()
    for i in range(lives):
        life(i)
    xdp.release_ports()
    if where.transport == "xdp":
        assert programs
        wait_for(lambda: not any(map(xdplab.program_is_loaded, programs)), "the programs unloaded")
    wait_for(lambda: state() <= before, f"no more than {before} descriptors and threads")
    grown = resident() - memory
    # A UMEM is 1 MiB; elsewhere 300 * 6 * 1400 bytes came.
    assert grown < (4 if where.transport == "xdp" else 1) << 20, f"{grown} bytes more"
    print("ok")
    """
    assert over(scene) == "ok\n"


@pytest.mark.ours
def test_refused_arguments_leave_nothing_behind(play):
    scene = """
    import logging
    logging.disable()
    taken = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    taken.bind(("127.0.0.1", 0))
    port = taken.getsockname()[1]
    closed = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    closed.close()
    pool, stream = sp.ThreadPool(), new_stream()
    refused = [
        lambda: sp.ThreadPool(0),
        lambda: sp.ThreadPool("a"),
        lambda: sp.ThreadPool(1, ["a"]),
        lambda: recv.Stream(None),
        lambda: recv.Stream(pool, recv.StreamConfig(max_heaps=2**62)),
        lambda: recv.Stream(pool, None, recv.RingStreamConfig(heaps=2**62)),
        lambda: sp.MemoryPool(1, 2**62, 4, 4),
        lambda: sp.MemoryPool(pool, 1, 2**62, 4, 4, 2),
        lambda: sp.MemoryPool(1, 2, 3, 4, 5),
        lambda: stream.add_udp_reader(port, bind_hostname="127.0.0.1"),
        lambda: stream.add_udp_reader("239.1.2.3", 9, interface_address="192.0.2.1"),
        lambda: stream.add_udp_reader(70_000),
        lambda: stream.add_udp_reader(closed),
        lambda: stream.add_buffer_reader("text"),
        lambda: stream.add_buffer_reader(np.zeros((4, 4), "u1")[:, ::2]),
        lambda: stream.add_udp_xdp_reader(recv.UdpXdpConfig()),
        lambda: stream.add_udp_xdp_reader(
            recv.UdpXdpConfig(interface="none", endpoints=[("239.1.2.3", 9)])),
    ]

    def refuse():
        outcomes = [outcome(call) for call in refused]
        assert "ok" not in outcomes, outcomes

    refuse()
    gc.collect()
    before, memory = (descriptors(), threads()), resident()
    for _ in range(60):
        refuse()
    gc.collect()
    assert (descriptors(), threads()) == before
    assert resident() - memory < 4 << 20, resident() - memory
    taken.close()
    stream.stop()
    print("ok")
    """
    assert play(scene) == "ok\n"
