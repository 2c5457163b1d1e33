"""What a stream's statistics say of network devices."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class DeviceStats:
    """What one network interface lost since a stream began to read it.

    Not only this stream's packets are in it, but those of all who use the interface.

    Attributes
    ----------
    interface : str
        Its name.
    driver : str
        Its driver, empty if it does not say.
    link : dict of str to int
        The losses that the kernel counts for every interface, as ``ip -s -s link`` shows them.
    ethtool : dict of str to int
        The counters of losses that the driver has, as ``ethtool -S`` shows them. They may count
        the same packets again, for each queue or under the name that the manufacturer gives it.
    passed : dict of str to int
        No losses: packets that our program left to the kernel because they are for no reader.
        ``"unparsed"``: they may be IP, but have more than two VLAN tags, or headers that are cut
        short or contradict themselves. ``"others"``: all else, for other ports, addresses and
        protocols.
    """

    interface: str
    driver: str
    link: dict[str, int]
    ethtool: dict[str, int]
    passed: dict[str, int] = field(default_factory=dict)
