"""The exceptions of this package."""


class Stopped(Exception):
    """The stream has stopped, and all its heaps have been read.

    Not raised where a stream has come to an end that nobody wanted: that is an :class:`OSError`.
    """


class Empty(Exception):
    """No heap is waiting at the moment."""


class Full(Exception):
    """There is no room at the moment."""


class NotContiguousError(ValueError, BufferError):
    """A buffer's bytes do not stand one after the other in memory."""


class TransportError(OSError, RuntimeError):
    """A source of packets could not be set up, or has failed since.

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
    """AF_XDP cannot be had; or not any more, because the interface is gone.

    Attributes
    ----------
    step : str
        Which step failed: ``"bind"``. ``"receive"`` if that had begun.
    errno : int
        The system's error number.
    """
