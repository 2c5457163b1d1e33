"""Whether ``xdpspead-helper`` makes an AF_XDP reader, and what such a one cannot have."""

from __future__ import annotations

import errno

from .._capabilities import can_use_xdp
from .._errors import XdpError
from .._helper import helper_is_there, helper_socket
from ._xdp_config import UdpXdpConfig


def choose_helper(config: UdpXdpConfig) -> str:
    """Return the helper's socket; empty if this process does it all itself.

    Raises
    ------
    XdpError
        If the helper does not do what is asked for.
    """
    if config.helper is not None:
        helper = config.helper
    else:
        helper = helper_socket() if helper_is_there() and not can_use_xdp() else ""
    if helper:
        _check(config, helper)
    return helper


def _check(config: UdpXdpConfig, helper: str) -> None:
    wanted = {
        "steer='ntuple'": config.steer == "ntuple",
        "busy_poll=True": config.busy_poll,
    }
    for setting, asked in wanted.items():
        if asked:
            text = (
                f"choose helper: {setting} changes the interface for everybody, which "
                f"xdpspead-helper ({helper}) does for nobody; leave it out, or grant this process "
                f"the privileges and say helper=''"
            )
            raise XdpError(errno.EOPNOTSUPP, text, "choose helper")
