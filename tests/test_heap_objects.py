"""Heaps as Python objects: what they own, who gets them, and what happens when something fails."""

from __future__ import annotations

import copy
import gc
import importlib
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from target import PACKAGE, new_stream, receive, recv, sp, wait_for
from wire import imm, join, pattern, simple_heap

pytestmark = pytest.mark.ours  # the peer's heaps are other objects

#: A payload that is given back without holding up other Python threads.
MUCH = 3 << 20


def one_heap(length: int = 100, **config: Any) -> Any:
    (heap,), _ = receive(simple_heap(1, length).packets(), **config)
    return heap


def filled(n: int) -> Any:
    """Return a stream with `n` heaps, numbered from 0, in its ring."""
    stream = new_stream(heaps=n)
    stream.add_buffer_reader(join([simple_heap(cnt, 10).packets()[0] for cnt in range(n)]))
    wait_for(lambda: stream.ringbuffer.size() == n, f"{n} heaps in the ring")
    return stream


@pytest.mark.parametrize("kind", [recv.Heap, recv.IncompleteHeap])
def test_only_streams_make_heaps(kind):
    with pytest.raises(TypeError):
        kind()
    with pytest.raises(TypeError):
        object.__new__(kind)


def test_heap_has_no_attributes_but_its_own():
    heap = one_heap()
    with pytest.raises(AttributeError):
        heap.note = 1
    with pytest.raises(AttributeError):
        heap.cnt = 2
    assert heap.cnt == 1


def test_copy_of_a_heap_is_the_heap():
    heap = one_heap()
    assert copy.copy(heap) is heap
    with pytest.raises(TypeError):
        pickle.dumps(heap)


def test_heap_ends_with_its_last_reference():
    heap = one_heap()
    gone: list[str] = []
    reference = weakref.ref(heap, lambda _: gone.append("gone"))
    assert reference() is heap
    del heap
    assert (reference(), gone) == (None, ["gone"])


@pytest.mark.parametrize("sized", [True, False])
@pytest.mark.parametrize("length", [1, 100, MUCH])
def test_payload_goes_back_with_the_last_of_heap_and_items(length, sized):
    memory = sp.MemoryPool(1, 2 * MUCH, 8, 8)
    (heap,), _ = receive(
        simple_heap(1, length, sized=sized).packets(60_000),
        memory_allocator=memory,
        allow_unsized_heaps=True,
    )
    taken = 8 - memory.free
    assert taken > 0
    items, reference = heap.get_items(), weakref.ref(heap)
    del heap
    assert reference() is None
    assert memory.free < 8
    assert bytes(memoryview(items[-1])) == pattern(1, length)
    del items
    assert memory.free == 8


@pytest.mark.parametrize("length", [100, MUCH])
def test_payload_that_nobody_looked_at_goes_back_with_the_heap(length):
    memory = sp.MemoryPool(1, MUCH, 2, 2)
    heap = one_heap(length, memory_allocator=memory)
    assert memory.free == 1
    del heap
    assert memory.free == 2


@pytest.mark.parametrize("n", [1, 8, 9, 63, 64, 65, 66, 1000])
def test_every_item_is_there_however_many(n):
    packet = simple_heap(1, 10).packets()[0]
    immediates = [imm(0x2000 + i, i) for i in range(n)]
    (heap,), _ = receive([packet.but(items=(*packet.items, *immediates))])
    assert [item.id for item in heap.get_items()[-n:]] == [0x2000 + i for i in range(n)]


def test_finalizers_may_read_the_stream_while_it_hands_out_heaps():
    stream = filled(200)
    got: list[int] = []

    class Reader:
        def __init__(self) -> None:
            self.me = self  # for the collector

        def __del__(self) -> None:
            got.append(stream.get_nowait().cnt)

    before = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for _ in range(20):
            Reader()
            got += [heap.cnt for heap in stream.get_many(3)]
            Reader()
            got.append(next(iter(stream)).cnt)
    finally:
        gc.set_threshold(*before)
    gc.collect()
    stream.stop()
    assert len(got) > 80
    got += [heap.cnt for heap in stream]
    assert sorted(got) == list(range(200))


#: Ways to take heaps: one, or a list of some.
TAKERS: dict[str, Callable[[Any], Any]] = {
    "get": lambda stream: stream.get(),
    "get_nowait": lambda stream: stream.get_nowait(),
    "get_many": lambda stream: stream.get_many(5),
    "iteration": next,
}


@pytest.mark.parametrize("how", TAKERS)
def test_no_heap_is_lost_when_memory_is(how):
    failing = pytest.importorskip("_testcapi")
    take, n = TAKERS[how], 200
    stream = filled(n)
    got: list[int] = []
    failures = 0
    for nth in range(40):
        heaps: Any = []
        failing.set_nomemory(nth, nth + 1)
        try:
            heaps = take(stream)
        except MemoryError:
            failures += 1
        finally:
            failing.remove_mem_hooks()
        got += [heap.cnt for heap in (heaps if isinstance(heaps, list) else [heaps])]
    stream.stop()
    # Iteration asks for memory twice: for what holds many heaps, and for the first of them.
    assert failures == 2 if how == "iteration" else failures > 2
    got += [heap.cnt for heap in stream]
    assert got == list(range(n))


def test_queue_makes_nothing_but_heaps():
    native = importlib.import_module(PACKAGE + "._native")
    with pytest.raises(TypeError):
        native.HeapQueue(None, None, 0, (int, recv.Heap), 0)
    with pytest.raises(TypeError):
        native.HeapQueue(None, None, 0, (recv.IncompleteHeap, recv.Heap))


def test_collector_finds_heaps_of_classes_with_attributes_in_cycles():
    class Noted(recv.Heap):  # type: ignore[misc]
        pass

    native = importlib.import_module(PACKAGE + "._native")
    memory = sp.MemoryPool(1, 100, 1, 1)
    stream = new_stream(memory_allocator=memory)
    stream.add_buffer_reader(simple_heap(1, 10).packets()[0].encode())
    core = stream._core
    address = int(native.ffi.cast("uintptr_t", core.c))
    queue = native.HeapQueue(core.c, core.held, address, (Noted, Noted), 0)
    wait_for(lambda: stream.ringbuffer.size() == 1, "a heap in the ring")
    _, (heap,) = queue.take(1, 0, 0)
    heap.itself = heap
    assert (heap.cnt, memory.free) == (1, 0)
    del heap
    gc.collect()
    assert memory.free == 1


def test_iterator_takes_from_nothing_but_a_queue():
    stream = filled(2)
    with pytest.raises(TypeError):
        stream._popped = iter([1])
    with pytest.raises(TypeError):
        del stream._popped
    assert [next(stream).cnt, next(stream).cnt] == [0, 1]
    stream.stop()


def test_class_derived_from_a_stream_may_iterate_in_its_own_way():
    class Counts(recv.Stream):  # type: ignore[misc]
        def __next__(self) -> int:
            return int(super().__next__().cnt)

    stream = Counts(sp.ThreadPool())
    stream.add_buffer_reader(join([simple_heap(cnt, 10).packets()[0] for cnt in range(5)]))
    assert list(stream) == list(range(5))
