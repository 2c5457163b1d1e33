"""Memory allocators: where heaps live, and what is reused."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
from target import LOGGER, in_thread, payload, receive, recv, refusals, sp, wait_for
from wire import join, pattern, simple_heap

#: mmap(2) flags, from the kernel's ABI on x86-64 and arm64.
MAP_POPULATE = 0x8000
MAP_HUGETLB = 0x40000


def address(heap) -> int:
    return np.asarray(heap.get_items()[0]).__array_interface__["data"][0]


def heaps_in(allocator, lengths, **kwargs):
    """Receive one heap of each length into memory of `allocator`."""
    packets = [p for cnt, n in enumerate(lengths) for p in simple_heap(cnt, n).packets(1000)]
    heaps, _ = receive(packets, memory_allocator=allocator, **kwargs)
    assert [payload(h) for h in heaps] == [pattern(cnt, n) for cnt, n in enumerate(lengths)]
    return heaps


def addresses(allocator, lengths) -> list[int]:
    """Return where heaps of these lengths lie when all live at once; they are freed in order."""
    heaps = heaps_in(allocator, lengths)
    where = [address(h) for h in heaps]
    while heaps:
        heaps.pop(0)
        gc.collect()
    return where


def mapping_of(where: int) -> str | None:
    """Return the line of the process's memory map that holds an address."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(x, 16) for x in line.split()[0].split("-"))
        if first <= where < last:
            return line
    return None


ALLOCATORS = {
    "default": lambda: sp.MemoryAllocator(),
    "mmap": lambda: sp.MmapAllocator(),
    "mmap, huge pages if there are": lambda: sp.MmapAllocator(prefer_huge=True),
    "mmap with flags": lambda: sp.MmapAllocator(flags=MAP_POPULATE),
    "pool": lambda: sp.MemoryPool(1, 100_000, 4, 4),
    "pool on mmap": lambda: sp.MemoryPool(1, 100_000, 4, 4, sp.MmapAllocator()),
    "pool out of range": lambda: sp.MemoryPool(200_000, 300_000, 1, 1),
    "pool on pool": lambda: sp.MemoryPool(1, 10, 4, 4, allocator=sp.MemoryPool(11, 10**5, 4, 4)),
}


@pytest.mark.parametrize("name", ALLOCATORS)
@pytest.mark.parametrize("memcpy", [sp.MEMCPY_STD, sp.MEMCPY_NONTEMPORAL])
def test_every_allocator_delivers_every_byte(name, memcpy):
    lengths = [1, 10, 63, 64, 4096, 4097, 100_000]
    heaps_in(ALLOCATORS[name](), lengths, memcpy=memcpy)


@pytest.mark.parametrize("name", ALLOCATORS)
def test_unsized_heaps_grow_in_memory_of_every_allocator(name):
    packets = simple_heap(1, 50_000, sized=False).packets(999)
    (heap,), _ = receive(packets, memory_allocator=ALLOCATORS[name]())
    assert payload(heap) == pattern(1, 50_000)


def test_allocator_may_be_dropped_before_its_heaps():
    pool = sp.MemoryPool(1, 10_000, 4, 4)
    heaps = heaps_in(pool, [9000, 9001])
    del pool
    gc.collect()
    assert [payload(h) for h in heaps] == [pattern(0, 9000), pattern(1, 9001)]


# MmapAllocator


def test_mmap_allocator_maps_and_unmaps():
    (heap,) = heaps_in(sp.MmapAllocator(), [3_000_000])
    where = address(heap)
    line = mapping_of(where)
    assert line is not None
    assert "[heap]" not in line
    del heap
    gc.collect()
    assert mapping_of(where) != line


@pytest.mark.ours
def test_heap_whose_memory_cannot_be_had_is_refused_and_counted():
    flags = MAP_HUGETLB | 60 << 26  # huge pages of 2**60 bytes
    packets = simple_heap(1, 5000).packets(1000)
    heaps, stats = receive(packets, memory_allocator=sp.MmapAllocator(flags=flags))
    assert heaps == []
    assert refusals(stats).keys() == {"no_memory", "gap"}
    assert stats["xdpspead.no_memory"] == 1


# MemoryPool


@pytest.fixture
def pool():
    """Return a pool for heaps of 1,000 to 2,000 bytes that keeps up to four blocks."""
    pool = sp.MemoryPool(1000, 2000, 4, 2)
    pool.warn_on_empty = False
    return pool


def test_freed_blocks_are_reused_last_in_first_out(pool):
    first = addresses(pool, [1500] * 4)
    assert addresses(pool, [1500] * 4) == first[::-1]


def test_blocks_fit_every_size_from_lower_to_upper(pool):
    (first,) = addresses(pool, [1000])
    assert addresses(pool, [2000]) == [first]
    assert addresses(pool, [1001]) == [first]


@pytest.mark.parametrize("length", [999, 2001])
def test_sizes_outside_the_range_do_not_touch_the_pool(pool, length):
    kept = addresses(pool, [1500] * 4)
    assert not set(addresses(pool, [length] * 4)) & set(kept)
    assert addresses(pool, [1500] * 4) == kept[::-1]


def test_pool_keeps_at_most_max_free_blocks(pool):
    pool_on_mmap = sp.MemoryPool(100_000, 200_000, 2, 0, sp.MmapAllocator())
    pool_on_mmap.warn_on_empty = False
    first = addresses(pool_on_mmap, [150_000] * 5)
    # The first two to be freed were kept, the other three were given back to the system.
    assert [mapping_of(where) is not None for where in first[:2]] == [True, True]
    assert addresses(pool_on_mmap, [150_000] * 2) == [first[1], first[0]]


def test_block_is_in_use_until_the_last_view_of_it_is_gone(pool):
    (heap,) = heaps_in(pool, [1500])
    view = np.asarray(heap.get_items()[0])[10:20]
    where = address(heap)
    del heap
    gc.collect()
    assert where not in addresses(pool, [1500] * 2)
    assert view.tobytes() == pattern(0, 1500)[10:20]
    del view
    gc.collect()
    assert addresses(pool, [1500]) == [where]


def test_incomplete_heaps_give_their_block_back(pool):
    (kept,) = addresses(pool, [1500])
    receive([simple_heap(1, 1500).packets(1000)[0]], memory_allocator=pool)
    assert addresses(pool, [1500]) == [kept]


def test_two_streams_share_a_pool(pool):
    threads = [in_thread(lambda: heaps_in(pool, [1500] * 50)) for _ in range(2)]
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert len(set(addresses(pool, [1500] * 8))) == 8


def empty_warnings(caplog) -> int:
    return sum("memory pool is empty" in r.getMessage() for r in caplog.records)


def test_empty_pool_warns(caplog):
    pool = sp.MemoryPool(1000, 2000, 4, 2)
    assert pool.warn_on_empty is True
    with caplog.at_level("WARNING", logger=LOGGER):
        heaps = heaps_in(pool, [1500] * 2)
        assert empty_warnings(caplog) == 0  # the two initial blocks were enough
        # Again and again: after many such warnings of other tests those of a second are summed up.
        wait_for(
            lambda: heaps.extend(heaps_in(pool, [1500])) or empty_warnings(caplog),
            "a warning on the empty pool",
        )
    assert all(r.levelname == "WARNING" and r.name == LOGGER for r in caplog.records)


def test_warning_on_an_empty_pool_can_be_switched_off(caplog):
    pool = sp.MemoryPool(1000, 2000, 4, 0)
    pool.warn_on_empty = False
    assert pool.warn_on_empty is False
    loud = sp.MemoryPool(1000, 2000, 4, 0)
    with caplog.at_level("WARNING", logger=LOGGER):
        heaps = heaps_in(pool, [1400])
        # Later, so that its warning shows the other one is not coming.
        wait_for(
            lambda: heaps.extend(heaps_in(loud, [1500])) or empty_warnings(caplog),
            "a warning on the loud pool",
        )
    assert not any("allocating 1400" in r.getMessage() for r in caplog.records)


@pytest.mark.parametrize(
    "make",
    [
        lambda: sp.MemoryPool(1, 2),
        lambda: sp.MemoryPool(-1, 2, 3, 1),
        lambda: sp.MemoryPool(1, 2, 3, 1, 3),
        lambda: sp.MemoryPool("a", 2, 3, 1),
        lambda: sp.MmapAllocator("a"),
        lambda: sp.MemoryAllocator(1),
    ],
)
def test_wrong_arguments_are_refused(make):
    with pytest.raises(TypeError):
        make()


def test_arguments_have_names():
    pool = sp.MemoryPool(lower=1, upper=2, max_free=3, initial=1, allocator=None)
    assert isinstance(pool, sp.MemoryAllocator)
    assert isinstance(sp.MmapAllocator(flags=0, prefer_huge=True), sp.MemoryAllocator)


# The wheel of spead2 4.5.1 has this constructor and no way to call it: it does not take its own
# ThreadPool.
@pytest.mark.ours
def test_pool_refills_in_the_background_below_low_water(caplog):
    threads = sp.ThreadPool()
    pool = sp.MemoryPool(threads, 1000, 2000, 8, 8, 4)
    with caplog.at_level("WARNING", logger=LOGGER):
        held = heaps_in(pool, [1500] * 3)
        for _ in range(5):
            wait_for(lambda: pool.free >= 4, "at least low_water blocks in the pool again")
            held += heaps_in(pool, [1500] * 3)
    assert empty_warnings(caplog) == 0
    assert len({address(h) for h in held}) == len(held)


@pytest.mark.ours
def test_background_refill_goes_on_to_the_initial_number():
    threads = sp.ThreadPool()
    pool = sp.MemoryPool(threads, 1000, 2000, 16, 8, 4)
    held = heaps_in(pool, [1500] * 4)
    assert pool.free == 4  # not below low_water: nothing is done
    held += heaps_in(pool, [1500])
    wait_for(lambda: pool.free == 8, "as many free blocks as initially")
    del held
    gc.collect()
    assert pool.free == 13  # those that come back are kept up to max_free


@pytest.mark.ours
def test_refilling_pool_may_be_dropped_with_its_threads():
    threads = sp.ThreadPool()
    pool = sp.MemoryPool(
        thread_pool=threads, lower=1000, upper=2000, max_free=8, initial=4, low_water=3
    )
    heaps = heaps_in(pool, [1500] * 4)
    del pool, threads
    gc.collect()
    assert payload(heaps[3]) == pattern(3, 1500)


@pytest.mark.ours
@pytest.mark.parametrize(
    ("arguments", "word"),
    [((3, 2, 4, 1), "lower 3 > upper 2"), ((1, 2, 3, 4), "initial 4 > max_free 3")],
)
def test_pools_that_make_no_sense_are_warned_about(arguments, word, caplog):
    with caplog.at_level("WARNING", logger=LOGGER):
        sp.MemoryPool(*arguments)
    (warning,) = caplog.messages
    assert word in warning


@pytest.mark.ours
def test_blocks_of_a_pool_on_a_pool_come_home_to_both():
    inner = sp.MemoryPool(1000, 2000, 8, 6)
    outer = sp.MemoryPool(500, 1500, 2, 2, inner)
    assert (outer.free, inner.free) == (2, 4)
    held = heaps_in(outer, [1200] * 5)
    assert (outer.free, inner.free) == (0, 1)
    del held
    gc.collect()
    wait_for(lambda: (outer.free, inner.free) == (2, 4), "all blocks where they came from")


@pytest.mark.ours
def test_pool_too_large_for_the_machine_is_refused():
    with pytest.raises(MemoryError, match="blocks of"):
        sp.MemoryPool(1, 2**62, 3, 1)


# spead2 4.5.1 takes None and dies of a segmentation fault at the first heap.
@pytest.mark.ours
def test_none_stands_for_the_default_allocator():
    config = recv.StreamConfig(memory_allocator=None)
    stream = recv.Stream(sp.ThreadPool(), config)
    stream.add_buffer_reader(join(simple_heap(1, 100).packets(30)))
    assert payload(stream.get()) == pattern(1, 100)
