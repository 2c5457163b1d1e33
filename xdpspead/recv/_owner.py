"""What a stream has for the sake of its AF_XDP readers.

A stream has it whether it has such a reader or not, so nothing is imported here that takes memory.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .._device_stats import DeviceStats

if TYPE_CHECKING:
    from .._device import Device, Program


class Devices:
    """The interfaces of a stream."""

    def __init__(self) -> None:
        self._devices: dict[tuple[int, int], Device] = {}

    @contextlib.contextmanager
    def adding(self, namespace: int, index: int, name: str, driver: str) -> Iterator[None]:
        """Count what an interface loses from now on, unless the body fails.

        It is one of the calling thread's network namespace.
        """
        key = namespace, index
        if key in self._devices:
            yield
            return
        from .._device import Device

        self._devices[key] = Device(index, name, driver)
        try:
            yield
        except BaseException:
            self._devices.pop(key).close()
            raise

    def watch(self, namespace: int, index: int, program: Program) -> None:
        """Count what the program of an interface that has been added passes to the kernel."""
        self._devices[namespace, index].watch(program)

    def read(self) -> tuple[DeviceStats, ...]:
        """Return what each lost since it was added."""
        return tuple(device.read() for device in list(self._devices.values()))

    def close(self) -> None:
        """Ask them no more."""
        for device in list(self._devices.values()):
            device.close()


class Owner:
    """The stream that readers are made for.

    Attributes
    ----------
    n_threads : int
        Threads of its pool.
    stream_id : int
        Its number, if the user gave it one.
    settings : contextlib.ExitStack
        What its readers have changed about interfaces, and the ports that they use, to be closed
        when it has stopped.
    devices : Devices
        The interfaces, and what they have lost.
    """

    def __init__(self, n_threads: int, stream_id: int = 0) -> None:
        self.n_threads = n_threads
        self.stream_id = stream_id
        self.settings = contextlib.ExitStack()
        self.devices = Devices()

    def close(self) -> None:
        """Put the settings back, and ask the interfaces no more: the stream has stopped."""
        self.settings.close()
        self.devices.close()
