"""Arrays of every type that can be sent; a byte in the wrong place changes their values."""

from __future__ import annotations

from typing import Any

import numpy as np

_NUMBERS = [
    f"{order}{kind}"
    for kind in ("i2", "i4", "i8", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16")
    for order in "<>"
]
_OTHERS = ["?", "i1", "u1", "S7", "V5", "<U3", ">U3", "<M8[ns]", ">M8[D]", "<m8[us]"]
_RECORDS = {
    "record": [("time", "<u8"), ("adc", ">i2"), ("gain", "<f4")],
    "nested": [("id", "u1"), ("pol", [("re", "<f4"), ("im", ">f4")]), ("taps", "<i2", (2, 3))],
}
#: What `numpy.dtype` takes, by name.
TYPES: dict[str, Any] = {d: d for d in _NUMBERS + _OTHERS} | _RECORDS


def fill(array: Any, rng: np.random.Generator) -> None:
    """Put values into an array that its type can hold, the same for every run."""
    kind, shape = array.dtype.kind, array.shape
    if array.dtype.names:
        for name in array.dtype.names:
            fill(array[name], rng)
    elif kind == "b":
        array[...] = rng.integers(0, 2, shape)
    elif kind in "iu":
        native, limits = array.dtype.newbyteorder("="), np.iinfo(array.dtype)
        array[...] = rng.integers(limits.min, limits.max, shape, native, endpoint=True)
    elif kind in "fc":
        array[...] = rng.standard_normal(shape)
        array.reshape(-1)[:2] = [np.inf, np.nan][: array.size]
    elif kind in "SU":
        width = array.dtype.itemsize // (4 if kind == "U" else 1)
        letters = rng.choice(list("SPEAD"), (*shape, width))
        array[...] = np.apply_along_axis("".join, -1, letters)
    elif kind in "mM":
        array[...] = rng.integers(0, 1 << 40, shape).astype(f"{kind}8[s]").astype(array.dtype)
    else:
        array[...] = np.frombuffer(rng.bytes(array.nbytes), array.dtype).reshape(shape)


def sample(dtype: Any, shape: tuple[int, ...], order: Any = "C") -> Any:
    """Return an array full of values, the same ones each time."""
    array = np.empty(shape, dtype, order)
    fill(array, np.random.default_rng(len(shape)))
    return array
