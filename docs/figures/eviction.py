"""Draw eviction.svg: which heap is under construction when, and which one is evicted.

    python docs/figures/eviction.py      # needs matplotlib and xdpspead

What it shows is measured: the receiver gets the packets one by one, and says after each what it has
done. Only the drawing is made here.
"""

import sys
import time
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "examples"))

import sender  # noqa: E402

import xdpspead  # noqa: E402
import xdpspead.recv as recv  # noqa: E402

MAX_HEAPS = 3
HEAPS = range(1, 7)
PACKETS = 4
PACKET_SIZE = 64  # bytes of payload: what makes four packets of a heap
LOST = (2, 2)  # heap, index of the packet
COLOURS = {"complete": "#4477aa", "waiting": "#ccbb44", "evicted": "#cc3311"}


def arrivals() -> list[tuple[int, int, bytes]]:
    """Return heap, index and bytes of the packets that arrive."""
    packets = [
        (cnt, index, data)
        for cnt in HEAPS
        for index, data in enumerate(sender.heap(cnt, packet_size=PACKET_SIZE, x=range(9)))
    ]
    assert len(packets) == len(HEAPS) * PACKETS
    return [packet for packet in packets if packet[:2] != LOST]


def outcome() -> tuple[dict[int, int], dict[int, int]]:
    """Return after which packet each heap came out: the complete ones, and the evicted ones."""
    complete, evicted = {}, {}
    with recv.Stream(
        xdpspead.ThreadPool(),
        recv.StreamConfig(max_heaps=MAX_HEAPS),
        recv.RingStreamConfig(heaps=16, contiguous_only=False),
    ) as stream:
        stream.add_udp_reader(0, bind_hostname="127.0.0.1")
        ((host, port),) = stream.readers[0].endpoints
        for time_, (_, _, data) in enumerate(arrivals()):
            sender.send_udp(host, port, [data])
            while stream.stats.packets <= time_:
                time.sleep(0.001)
            while True:
                try:
                    heap = stream.get_nowait()
                except xdpspead.Empty:
                    break
                (complete if isinstance(heap, recv.Heap) else evicted)[heap.cnt] = time_
    return complete, evicted


def draw(axes: Axes) -> None:
    """Draw one row per heap and one column per packet."""
    packets = arrivals()
    complete, evicted = outcome()
    first = {cnt: min(t for t, packet in enumerate(packets) if packet[0] == cnt) for cnt in HEAPS}
    for cnt in HEAPS:
        end = complete.get(cnt, evicted.get(cnt))
        assert end is not None
        colour = COLOURS["complete" if cnt in complete else "waiting"]
        stop = end + 1 if cnt in complete else end
        axes.barh(cnt, stop - first[cnt], left=first[cnt], height=0.62, color=colour, zorder=2)
        if cnt in evicted:
            axes.plot(end, cnt, "X", color=COLOURS["evicted"], markersize=11, zorder=4)
            axes.plot([end, end], [cnt, cnt + MAX_HEAPS], color=COLOURS["evicted"], zorder=3)
            text = f"evicted by the first packet of heap {cnt + MAX_HEAPS}"
            axes.text(end + 0.45, cnt, text, va="center", color=COLOURS["evicted"])
        if cnt == LOST[0]:
            axes.text((first[cnt] + end) / 2, cnt, "a packet is missing", ha="center", va="center")
        else:
            axes.text(
                (first[cnt] + end + 1) / 2, cnt, "complete", color="w", ha="center", va="center"
            )
    for time_, (cnt, _, _) in enumerate(packets):
        axes.plot(time_ + 0.5, cnt - 0.42, ".", color="black", markersize=3.5)
    axes.set_yticks(list(HEAPS), [f"heap {cnt}" for cnt in HEAPS])
    axes.set_ylim(max(HEAPS) + 0.6, min(HEAPS) - 0.7)
    axes.set_xlim(-0.3, len(packets) + 0.3)
    axes.set_xticks([])
    axes.set_xlabel("packets in the order in which they arrive (dots)  →")
    axes.set_title(f"max_heaps={MAX_HEAPS}: a heap is evicted by the third that begins after it")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0)


if __name__ == "__main__":
    plt.style.use(HERE / "style.mplstyle")
    figure, axes = plt.subplots(figsize=(7.2, 2.9), layout="constrained")
    draw(axes)
    figure.savefig(HERE / "eviction.svg", metadata={"Date": None})
