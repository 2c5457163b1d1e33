"""Draw losses.svg: the way of a packet, and what counts the losses at each place.

python docs/figures/losses.py        # needs matplotlib
"""

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

HERE = Path(__file__).parent

#: Place, what happens there, what counts the packets that stay behind. None: nobody here does.
PLACES = [
    ("network", "sender,\nswitches", "their own\ncounters"),
    ("device", "receive ring", "ethtool -S\nrx_missed_errors\nrx_dropped …"),
    ("program", "is it ours?", "xdp_no_socket\nxdp_bad_length …"),
    (
        "socket,\nreader",
        "buffer\nor UMEM",
        "udp_kernel_drops\nxdp_rx_dropped\nxdp_unread_drops",
    ),
    ("parser", "is it SPEAD?", "bad_magic\nshort_packet …"),
    ("window", "does it fit\nits heap?", "gap, late\nduplicate\ntoo_large …"),
    ("heaps", "wait until\ncomplete", "incomplete_\nheaps_evicted\nheaps_discarded …"),
    ("user", "wait in\nthe ring", "worker_blocked\n(no loss by itself)"),
]
WIDTH, GAP = 1.0, 0.18


def draw(axes: Axes) -> None:
    """Draw the places from left to right, with the counters below."""
    for i, (name, what, counters) in enumerate(PLACES):
        left = i * (WIDTH + GAP)
        ours = i >= 2
        box = FancyBboxPatch(
            (left, 0), WIDTH, 0.62, boxstyle="round,pad=0,rounding_size=0.06",
            facecolor="#dce8f4" if ours else "#eeeeee", edgecolor="#4477aa" if ours else "#888888",
        )  # fmt: skip
        axes.add_patch(box)
        middle = left + WIDTH / 2
        axes.text(middle, 0.46, name, ha="center", va="center", weight="bold")
        axes.text(middle, 0.2, what, ha="center", va="center", fontsize=8)
        if i:
            axes.annotate(
                "", (left, 0.31), (left - GAP, 0.31), arrowprops={"arrowstyle": "->", "shrinkA": 0}
            )
        axes.annotate(
            "", (middle, -0.2), (middle, 0), arrowprops={"arrowstyle": "->", "color": "#cc3311"}
        )
        axes.text(middle, -0.24, counters, ha="center", va="top", fontsize=7.5, color="#99220c")
    end = len(PLACES) * (WIDTH + GAP)
    axes.annotate("", (end, 0.31), (end - GAP, 0.31), arrowprops={"arrowstyle": "->"})
    axes.text(end + 0.05, 0.31, "you", va="center", weight="bold")
    axes.set_xlim(-0.05, end + 0.4)
    axes.set_ylim(-0.88, 0.66)
    axes.axis("off")


if __name__ == "__main__":
    plt.style.use(HERE / "style.mplstyle")
    figure, axes = plt.subplots(figsize=(8, 1.95), layout="constrained")
    draw(axes)
    figure.savefig(HERE / "losses.svg", metadata={"Date": None})
