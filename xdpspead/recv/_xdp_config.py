"""What the user asks of an AF_XDP reader."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Final

from .._addresses import endpoint_with_source
from .._arguments import Config, count, flag
from ._endpoints import UserEndpoint

_MODES: Final = ("auto", "native", "generic")
_MOST_WORKERS: Final = 64
_STEER: Final = ("none", "ntuple")


class UdpXdpConfig(Config):
    """What an AF_XDP reader receives, and how.

    All parameters are keywords and can also be set as attributes.

    Parameters
    ----------
    endpoints : list of (str, int) or (str, int, str)
        Addresses (or host names) and UDP ports to receive, at least one. Everything else passes to
        the kernel. Multicast groups are joined. With a third element only packets that this host
        sends are received; several endpoints may name several sources. Endpoints of one reader may
        overlap, those of different readers on one interface may not.
    interface : str
        Name of the network interface. If empty it is found by `interface_address`, or by an
        endpoint that is an address of this machine.
    interface_address : str
        An address of the interface.
    queues : list of int, optional
        Receive queues to read; None for all queues of the interface.
    buffer_size : int
        Bytes of packet memory, shared out between the queues. If another stream of this process
        reads the queues already, its memory is shared.
    max_size : int
        Largest UDP payload that is accepted, in bytes; larger packets are counted.
    mode : str
        ``"native"``: the driver runs the program. ``"generic"``: the kernel does, slower, on any
        interface. ``"auto"``: native if the driver can.
    zero_copy : bool, optional
        True: the device must write into the packet memory itself. False: it must not. None: it does
        with drivers and kernels that are known to do it well; with ``XDPSPEAD_ZERO_COPY=try`` in
        the environment, with all that say they can.
    steer : str
        ``"ntuple"``: have the card bring the packets of the endpoints to the queues, by
        receive-flow rules that go with the reader. ``"none"``: leave it to the card where they go.
    max_poll : int
        How often an empty ring is looked at before the worker sleeps. More is quicker and costs CPU
        time.
    workers : int
        Threads of the stream's pool that read the queues, which are dealt out among them in turn.
        With 1 all readers of the stream share one window, as with every other transport. With more,
        each worker has a window of its own, so that they do not wait for each other; packets of one
        heap must then come through one queue (they do if they come from one flow: one sender
        address and port to one destination), and heaps of different workers come in no particular
        order. Memory for partial heaps is bounded by workers x substreams x max_heaps.
    busy_poll : bool
        Whether the worker calls the device's driver itself, all the time, instead of sleeping until
        an interrupt does. It uses up a core. Interrupts of the queues are deferred meanwhile.
    busy_poll_budget : int
        Packets that the driver may handle in one such call, 1 to 65535.
    fallback : bool
        Whether to read an ordinary UDP socket, with a warning, if AF_XDP cannot be had. Not where
        another reader of this process has the endpoint: no packet would come to the socket.
    helper : str, optional
        The socket of ``xdpspead-helper``, which does what takes privileges. None: if this process
        has not got them, the one that ``XDPSPEAD_HELPER`` in the environment names, or
        ``/run/xdpspead/helper.sock`` if that is there. ``""``: none. Through the helper a reader
        cannot poll its device or have the card steer, and there are at most 1,024 endpoints.
    """

    DEFAULT_BUFFER_SIZE: ClassVar[int] = 32 * 1024 * 1024
    DEFAULT_MAX_SIZE: ClassVar[int] = 9200
    DEFAULT_MAX_POLL: ClassVar[int] = 0
    DEFAULT_BUSY_POLL_BUDGET: ClassVar[int] = 64

    __slots__ = (
        "_buffer_size",
        "_busy_poll",
        "_busy_poll_budget",
        "_endpoints",
        "_fallback",
        "_helper",
        "_interface",
        "_interface_address",
        "_max_poll",
        "_max_size",
        "_mode",
        "_queues",
        "_steer",
        "_workers",
        "_zero_copy",
    )

    def __init__(self, **kwargs: Any) -> None:
        self._endpoints: list[UserEndpoint] = []
        self._interface = ""
        self._interface_address = ""
        self._queues: list[int] | None = None
        self._buffer_size = self.DEFAULT_BUFFER_SIZE
        self._max_size = self.DEFAULT_MAX_SIZE
        self._mode = "auto"
        self._zero_copy: bool | None = None
        self._steer = "none"
        self._max_poll = self.DEFAULT_MAX_POLL
        self._workers = 1
        self._busy_poll = False
        self._busy_poll_budget = self.DEFAULT_BUSY_POLL_BUDGET
        self._fallback = False
        self._helper: str | None = None
        self._set(kwargs)

    @property
    def endpoints(self) -> list[UserEndpoint]:
        """Addresses and ports to receive, and maybe from whom."""
        return list(self._endpoints)

    @endpoints.setter
    def endpoints(self, value: Sequence[UserEndpoint]) -> None:
        self._endpoints = [endpoint_with_source(endpoint) for endpoint in value]

    @property
    def interface(self) -> str:
        """Name of the network interface."""
        return self._interface

    @interface.setter
    def interface(self, value: str) -> None:
        if not isinstance(value, str):
            raise TypeError(f"interface must be a name, not {value!r}")
        self._interface = value

    @property
    def interface_address(self) -> str:
        """An address of the interface."""
        return self._interface_address

    @interface_address.setter
    def interface_address(self, value: str) -> None:
        if not isinstance(value, str):
            raise TypeError(f"interface_address must be a str, not {value!r}")
        self._interface_address = value

    @property
    def queues(self) -> list[int] | None:
        """Receive queues to read; None for all."""
        return None if self._queues is None else list(self._queues)

    @queues.setter
    def queues(self, value: Sequence[int] | None) -> None:
        if value is None:
            self._queues = None
            return
        queues = [count("queue", queue) for queue in value]
        if not queues or len(set(queues)) != len(queues):
            raise ValueError(f"queues must be different, and at least one: {queues}")
        self._queues = queues

    @property
    def buffer_size(self) -> int:
        """Bytes of packet memory."""
        return self._buffer_size

    @buffer_size.setter
    def buffer_size(self, value: int) -> None:
        self._buffer_size = count("buffer_size", value) or self.DEFAULT_BUFFER_SIZE

    @property
    def max_size(self) -> int:
        """Largest UDP payload that is accepted, in bytes."""
        return self._max_size

    @max_size.setter
    def max_size(self, value: int) -> None:
        self._max_size = count("max_size", value, 1)

    @property
    def mode(self) -> str:
        """``"auto"``, ``"native"`` or ``"generic"``."""
        return self._mode

    @mode.setter
    def mode(self, value: str) -> None:
        if value not in _MODES:
            raise ValueError(f"mode must be one of {', '.join(_MODES)}, not {value!r}")
        self._mode = value

    @property
    def zero_copy(self) -> bool | None:
        """Whether the device must (True), must not (False) or may (None) write to our memory."""
        return self._zero_copy

    @zero_copy.setter
    def zero_copy(self, value: bool | None) -> None:
        self._zero_copy = None if value is None else bool(value)

    @property
    def steer(self) -> str:
        """``"none"`` or ``"ntuple"``."""
        return self._steer

    @steer.setter
    def steer(self, value: str) -> None:
        if value not in _STEER:
            raise ValueError(f"steer must be one of {', '.join(_STEER)}, not {value!r}")
        self._steer = value

    @property
    def max_poll(self) -> int:
        """How often an empty ring is looked at before the worker sleeps."""
        return self._max_poll

    @max_poll.setter
    def max_poll(self, value: int) -> None:
        self._max_poll = count("max_poll", value)

    @property
    def workers(self) -> int:
        """Threads that read the queues."""
        return self._workers

    @workers.setter
    def workers(self, value: int) -> None:
        workers = count("workers", value, 1)
        if workers > _MOST_WORKERS:
            raise ValueError(f"workers cannot be {workers}, it must be at most {_MOST_WORKERS}")
        self._workers = workers

    @property
    def busy_poll(self) -> bool:
        """Whether the worker calls the device's driver itself."""
        return self._busy_poll

    @busy_poll.setter
    def busy_poll(self, value: bool) -> None:
        self._busy_poll = flag("busy_poll", value)

    @property
    def busy_poll_budget(self) -> int:
        """Packets that the driver may handle in one such call."""
        return self._busy_poll_budget

    @busy_poll_budget.setter
    def busy_poll_budget(self, value: int) -> None:
        budget = count("busy_poll_budget", value, 1)
        if budget > 65535:
            raise ValueError(f"busy_poll_budget must be at most 65535, not {budget}")
        self._busy_poll_budget = budget

    @property
    def fallback(self) -> bool:
        """Whether to read ordinary sockets if AF_XDP cannot be had."""
        return self._fallback

    @fallback.setter
    def fallback(self, value: bool) -> None:
        self._fallback = bool(value)

    @property
    def helper(self) -> str | None:
        """The socket of ``xdpspead-helper``; None for whichever is there if it is needed."""
        return self._helper

    @helper.setter
    def helper(self, value: str | None) -> None:
        if value is not None and not isinstance(value, str):
            raise TypeError(f"helper must be a path or None, not {value!r}")
        self._helper = value

    def _check(self, threads: int) -> None:
        """Raise ValueError if a stream on a pool of so many threads cannot have such a reader."""
        if not self._endpoints:
            raise ValueError("endpoints is empty: say which addresses and ports to receive")
        if self._queues is not None and self._workers > len(self._queues):
            raise ValueError(
                f"workers is {self._workers}, more than there are queues to read "
                f"({len(self._queues)})"
            )
        if self._workers > threads:
            raise ValueError(
                f"workers is {self._workers}, more than the stream's thread pool has threads "
                f"({threads}): ask for fewer, or make the pool with ThreadPool({self._workers})"
            )
