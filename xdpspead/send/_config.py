"""Configuration of a stream that sends."""

from __future__ import annotations

import enum
import math
from typing import Any, ClassVar

from .._arguments import Config, count


def number(name: str, value: Any) -> float:
    """Return `value` as a float.

    Raises
    ------
    TypeError
        If it is no number.
    """
    if not hasattr(type(value), "__float__") and not hasattr(type(value), "__index__"):
        raise TypeError(f"{name} must be a number, not {value!r}")
    return float(value)


class RateMethod(enum.Enum):
    """Who keeps to the rate."""

    SW = 0
    """This package."""
    HW = 1
    """The network card, where it can. As in spead2 this is a wish: elsewhere it means SW."""
    AUTO = 2
    """Whichever is better."""


class StreamConfig(Config):
    """How a stream sends.

    All parameters are keywords and can also be set as attributes afterwards, but not once a stream
    has been made with them: a stream keeps a copy.

    Parameters
    ----------
    max_packet_size : int
        Longest packet, in bytes of SPEAD header and payload: without the headers of Ethernet, IP
        and UDP. The default fits an Ethernet frame of 1500 bytes. What is too small for a heap is
        told when the heap is sent; 56 bytes are always enough without `Heap.repeat_pointers`.
    rate : float
        Bytes of packets in a second, headers of SPEAD included; 0 for as fast as possible.
    burst_size : int
        Bytes that may be sent at once, before looking at the time again.
    max_heaps : int
        Heaps, or groups of heaps, that may be waiting to be sent, at least 1.
    burst_rate_ratio : float
        How much faster than `rate` a stream may be while it catches up on a delay, at least 1.
    rate_method : RateMethod
        Who keeps to the rate.

    Raises
    ------
    ValueError
        If `rate` is negative, `max_heaps` zero or `burst_rate_ratio` less than 1, or one of the
        numbers is infinite or NaN.
    TypeError
        If a count is negative or no integer, a number no number, `rate_method` no `RateMethod`, or
        a keyword unknown.
    """

    DEFAULT_MAX_PACKET_SIZE: ClassVar[int] = 1472
    DEFAULT_MAX_HEAPS: ClassVar[int] = 4
    DEFAULT_BURST_SIZE: ClassVar[int] = 65536
    DEFAULT_BURST_RATE_RATIO: ClassVar[float] = 1.05
    DEFAULT_RATE_METHOD: ClassVar[RateMethod] = RateMethod.AUTO

    __slots__ = (
        "_burst_rate_ratio",
        "_burst_size",
        "_max_heaps",
        "_max_packet_size",
        "_rate",
        "_rate_method",
    )

    def __init__(
        self,
        *,
        max_packet_size: int = DEFAULT_MAX_PACKET_SIZE,
        rate: float = 0.0,
        burst_size: int = DEFAULT_BURST_SIZE,
        max_heaps: int = DEFAULT_MAX_HEAPS,
        burst_rate_ratio: float = DEFAULT_BURST_RATE_RATIO,
        rate_method: RateMethod = DEFAULT_RATE_METHOD,
    ) -> None:
        self.max_packet_size = max_packet_size
        self.rate = rate
        self.burst_size = burst_size
        self.max_heaps = max_heaps
        self.burst_rate_ratio = burst_rate_ratio
        self.rate_method = rate_method

    @property
    def max_packet_size(self) -> int:
        """Longest packet in bytes."""
        return self._max_packet_size

    @max_packet_size.setter
    def max_packet_size(self, value: int) -> None:
        self._max_packet_size = count("max_packet_size", value)

    @property
    def rate(self) -> float:
        """Bytes of packets in a second; 0 for as fast as possible."""
        return self._rate

    @rate.setter
    def rate(self, value: float) -> None:
        rate = number("rate", value)
        if not 0 <= rate < math.inf:
            raise ValueError(
                f"rate must be non-negative and finite, not {value}; 0 is as fast as possible"
            )
        self._rate = rate

    @property
    def burst_size(self) -> int:
        """Bytes that may be sent at once."""
        return self._burst_size

    @burst_size.setter
    def burst_size(self, value: int) -> None:
        self._burst_size = count("burst_size", value)

    @property
    def max_heaps(self) -> int:
        """Heaps, or groups of heaps, that may be waiting to be sent."""
        return self._max_heaps

    @max_heaps.setter
    def max_heaps(self, value: int) -> None:
        self._max_heaps = count("max_heaps", value, 1)

    @property
    def burst_rate_ratio(self) -> float:
        """How much faster than `rate` a stream may be while it catches up."""
        return self._burst_rate_ratio

    @burst_rate_ratio.setter
    def burst_rate_ratio(self, value: float) -> None:
        ratio = number("burst_rate_ratio", value)
        if not 1 <= ratio < math.inf:
            raise ValueError(f"burst_rate_ratio must be at least 1.0 and finite, not {value}")
        self._burst_rate_ratio = ratio

    @property
    def rate_method(self) -> RateMethod:
        """Who keeps to the rate."""
        return self._rate_method

    @rate_method.setter
    def rate_method(self, value: RateMethod) -> None:
        if not isinstance(value, RateMethod):
            raise TypeError(f"rate_method must be a RateMethod, for example AUTO, not {value!r}")
        self._rate_method = value

    @property
    def burst_rate(self) -> float:
        """Bytes in a second while a stream catches up: `rate` times `burst_rate_ratio`."""
        return self._rate * self._burst_rate_ratio
