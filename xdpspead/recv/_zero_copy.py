"""Whether the device of an AF_XDP reader is to write into the packet memory itself."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import Final, NamedTuple

from .. import _core
from .._drivers import (
    MTU_OF_ONE_FRAME,
    hint_if_refused,
    kernel_version,
    why_no_zero_copy,
    why_not_even_demanded,
)
from .._errors import XdpError
from .._netdev import xdp_features
from ._interface import Interface
from ._xdp_config import UdpXdpConfig

_VARIABLE: Final = "XDPSPEAD_ZERO_COPY"


class Choice(NamedTuple):
    """What is asked of the kernel, and why, if that is copying."""

    ask: _core.ZeroCopy
    why_copy: str = ""
    if_refused: str = ""

    def outcome(self, *, zero_copy: bool) -> str:
        """Return why packets are copied; empty if they are not."""
        if zero_copy:
            return ""
        if self.why_copy:
            return self.why_copy
        hint = f" ({self.if_refused})" if self.if_refused else ""
        return f"the driver has refused it{hint}, or readers before this one copy"


def check_environment() -> None:
    """Raise ValueError if the variable says what is not understood."""
    value = os.environ.get(_VARIABLE, "")
    if value not in ("", "try"):
        raise ValueError(f"{_VARIABLE} must be 'try', or not set, not {value!r}")


def choose(config: UdpXdpConfig, interface: Interface, mode: str) -> Choice:
    """Choose by what the user, driver and kernel say; `mode` is that of the program.

    Where nobody insists, a reader that joins others on a queue takes what these have.

    Raises
    ------
    XdpError
        EMSGSIZE if the user insists where packets would be lost that nobody counts.
    """
    if config.zero_copy is not None:
        if config.zero_copy:
            _check_demand(interface)
            return Choice(_core.ZeroCopy.DEMAND)
        return Choice(_core.ZeroCopy.REFUSE, "zero_copy=False")
    why = _why_copy(interface, mode)
    if why:
        return Choice(_core.ZeroCopy.JOIN, why)
    return Choice(_core.ZeroCopy.TRY, if_refused=_hint(interface))


def _hint(interface: Interface) -> str:
    kernel = kernel_version(os.uname().release)
    if why_no_zero_copy(interface.driver, kernel, interface.mtu):
        return ""  # that is reason enough
    return hint_if_refused(interface.driver)


def _check_demand(interface: Interface) -> None:
    why = why_not_even_demanded(interface.driver, interface.mtu)
    if why:
        text = (
            f"choose zero-copy: {why}, and {interface.name} has MTU {interface.mtu}. Set a smaller "
            f"MTU, or leave zero_copy at None, or say False"
        )
        raise XdpError(errno.EMSGSIZE, text, "choose zero-copy")


def _why_copy(interface: Interface, mode: str) -> str:
    if mode != "native":
        return "generic mode copies"
    if interface.mtu > MTU_OF_ONE_FRAME:
        return f"packets of MTU {interface.mtu} take several frames each"
    if os.environ.get(_VARIABLE) == "try":
        return ""
    kernel = kernel_version(os.uname().release)
    why = why_no_zero_copy(interface.driver, kernel, interface.mtu)
    if why:
        return why
    with contextlib.suppress(OSError):  # binding will tell
        features = xdp_features(interface.index)
        if features is not None and not features.zero_copy:
            return f"the kernel says that {interface.name} does not have it now"
    return ""
