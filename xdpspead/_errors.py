"""The exceptions of this package."""


class Stopped(Exception):
    """The stream has stopped, and all its heaps have been read."""


class Empty(Exception):
    """No heap is waiting at the moment."""


class Full(Exception):
    """There is no room at the moment."""


class NotContiguousError(ValueError, BufferError):
    """A buffer's bytes do not stand one after the other in memory."""


class TransportError(OSError, RuntimeError):
    """A source of packets could not be set up.

    It is an :class:`OSError` with its ``errno``, and a :class:`RuntimeError` because that is what
    spead2 raises.

    Attributes
    ----------
    step : str
        What was being done when it failed, a word or two: ``"bind"``.
    """

    step: str

    def __init__(self, errno: int, text: str, step: str = "") -> None:
        super().__init__(errno, text)
        self.step = step

    def __str__(self) -> str:
        return str(self.strerror)


class XdpError(TransportError):
    """AF_XDP cannot be had.

    Attributes
    ----------
    step : str
        Which step failed: ``"bind"``.
    errno : int
        The system's error number.
    """
