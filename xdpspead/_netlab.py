"""A throw-away network: two network namespaces joined by a veth pair.

The demo, the tests and the benchmarks send real packets through it without touching any interface
of the machine::

    with VethLab() as lab:
        sender = lab.tx.popen([sys.executable, "send.py", lab.rx.ipv4])
        with lab.rx.enter():
            ...  # sockets made here live in the receiving namespace

It needs root (``CAP_SYS_ADMIN`` and ``CAP_NET_ADMIN``), makes nothing outside its own namespaces
and takes everything away again, in reverse order, also after an exception, Ctrl-C or SIGTERM.
Only SIGKILL can leave something behind; the next laboratory sweeps it up.

``/sys`` goes on showing the interfaces of the namespace that mounted it: code that runs under
:meth:`Namespace.enter` has to ask netlink, or ``/proc/thread-self``, instead.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import ctypes
import errno
import fcntl
import itertools
import os
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self

from pyroute2 import IPRoute

from xdpspead._signals import signals_to_exceptions, undisturbed

__all__ = ["Namespace", "VethLab", "sweep"]

PREFIX = "xdpspead-"
NETNS_DIR = "/run/netns"

_CLONE_NEWNET = 0x40000000
_MS_BIND = 0x1000
_MNT_DETACH = 2
_IFA_F_NODAD = 0x02
_IFF_UP = 0x1
_IFF_RUNNING = 0x40
_SIOCETHTOOL = 0x8946
_ETHTOOL_GGRO = 0x2B
_ETHTOOL_SGRO = 0x2C

_INTERFACE = "veth0"
_IPV4_PREFIX = 24
_IPV6_PREFIX = 64
_TX_ADDRESSES = ("192.0.2.1", "fd78:6470:7370::1")
_RX_ADDRESSES = ("192.0.2.2", "fd78:6470:7370::2")

_LINK_TIMEOUT_S = 5.0
_CHILD_TIMEOUT_S = 3.0

_libc = ctypes.CDLL(None, use_errno=True)
_serial = itertools.count()


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _setns(fd: int) -> None:
    """Move the calling thread into the network namespace behind *fd*."""
    _check(_libc.setns(fd, _CLONE_NEWNET), "setns")


@contextlib.contextmanager
def _inside(path: str) -> Iterator[None]:
    """Run the body with the calling thread in the network namespace at *path*."""
    outer = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        inner = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _setns(inner)
        finally:
            os.close(inner)
        try:
            yield
        finally:
            _setns(outer)
    finally:
        os.close(outer)


def _make_namespace(path: str) -> None:
    """Make a network namespace and give it the name *path*."""
    failure: list[BaseException] = []

    def unshare_and_bind() -> None:
        # In a thread of its own, because unshare() moves the caller into the new namespace.
        try:
            _check(_libc.unshare(_CLONE_NEWNET), "unshare(CLONE_NEWNET)")
            source = b"/proc/thread-self/ns/net"
            _check(
                _libc.mount(source, path.encode(), b"none", ctypes.c_ulong(_MS_BIND), None),
                f"mount {path}",
            )
        except BaseException as error:  # noqa: BLE001 (raised again by the caller's thread)
            failure.append(error)

    os.makedirs(NETNS_DIR, exist_ok=True)
    os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444))
    try:
        thread = threading.Thread(target=unshare_and_bind, name="xdpspead-netlab")
        thread.start()
        thread.join()
        if failure:
            raise failure[0]
    except BaseException:
        _remove_namespace(path)
        raise


def _remove_namespace(path: str) -> None:
    """Take the name *path* away; the kernel removes the namespace with its last user."""
    if _libc.umount2(path.encode(), _MNT_DETACH) != 0:
        number = ctypes.get_errno()
        if number not in (errno.EINVAL, errno.ENOENT):  # not mounted, not there
            raise OSError(number, f"umount {path}: {os.strerror(number)}")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _set_gro(interface: str, on: bool) -> None:
    """Switch generic receive offload of *interface* in the current namespace.

    On veth this is also the switch that turns NAPI on for the receiving end.
    """
    value = array.array("I", [_ETHTOOL_SGRO, int(on)])
    address, _ = value.buffer_info()
    request = struct.pack("16sP16x", interface.encode(), address)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, _SIOCETHTOOL, request)
        value[0], value[1] = _ETHTOOL_GGRO, 0
        fcntl.ioctl(sock, _SIOCETHTOOL, request)
    if bool(value[1]) is not on:
        raise OSError(errno.EOPNOTSUPP, f"{interface}: the driver did not switch GRO")


class Namespace:
    """One end of a :class:`VethLab`: a named network namespace and the interface in it.

    Attributes
    ----------
    name, path : str
        Name for ``ip netns exec`` and the path of the namespace file.
    interface : str
        Name of the veth interface inside the namespace.
    ifindex : int
        Its index inside the namespace.
    ipv4, ipv6 : str
        Its addresses, without prefix length.
    mac : str
        Its Ethernet address as ``aa:bb:cc:dd:ee:ff``.
    """

    def __init__(self, name: str, ipv4: str, ipv6: str) -> None:
        self.name = name
        self.path = os.path.join(NETNS_DIR, name)
        self.interface = _INTERFACE
        self.ifindex = 0
        self.ipv4 = ipv4
        self.ipv6 = ipv6
        self.mac = ""
        self._children: list[subprocess.Popen[Any]] = []

    def __repr__(self) -> str:
        return f"<Namespace {self.name}: {self.interface} {self.ipv4} {self.ipv6} {self.mac}>"

    def enter(self) -> contextlib.AbstractContextManager[None]:
        """Return a context manager that moves the calling thread in, and back out.

        Threads and processes started in the body are born inside; a socket stays where it was
        made, also after the body.
        """
        return _inside(self.path)

    def popen(self, args: Sequence[str | os.PathLike[str]], **kwargs: Any) -> subprocess.Popen[Any]:
        """Start a child process inside the namespace.

        Parameters
        ----------
        args
            Program and arguments, as for :class:`subprocess.Popen`.
        **kwargs
            Passed on to :class:`subprocess.Popen`.

        Returns
        -------
        subprocess.Popen
            The child. The laboratory ends it on exit if it is still running then.
        """
        # A child inherits the namespace of the thread that forks it, so that nothing has to run
        # between fork and exec, which would not be safe in a process with threads.
        with self.enter(), undisturbed():
            child = subprocess.Popen(args, **kwargs)
            self._children.append(child)
        return child

    def run(
        self, args: Sequence[str | os.PathLike[str]], **kwargs: Any
    ) -> subprocess.CompletedProcess[Any]:
        """Run a command inside the namespace to its end, as :func:`subprocess.run` does."""
        with self.enter():
            return subprocess.run(args, **kwargs)

    def _end_children(self) -> None:
        running = [child for child in self._children if child.poll() is None]
        for child in running:
            child.terminate()
        deadline = time.monotonic() + _CHILD_TIMEOUT_S
        for child in running:
            try:
                child.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        self._children.clear()


class VethLab:
    """Two network namespaces joined by a veth pair, for the time of a ``with`` block.

    Parameters
    ----------
    queues
        Number of receive and of transmit queues of both ends.
    mtu
        MTU of both ends in bytes.
    gro
        Switch generic receive offload, and with it NAPI, on at the receiving end.

    Attributes
    ----------
    tx, rx : Namespace
        The sending and the receiving end. They are alike but for *gro*.

    Raises
    ------
    PermissionError
        If the process may not make network namespaces.
    """

    def __init__(self, queues: int = 1, mtu: int = 1500, gro: bool = False) -> None:
        if queues < 1:
            raise ValueError(f"queues must be at least 1, not {queues}")
        self.queues = queues
        self.mtu = mtu
        self.gro = gro
        stem = f"{PREFIX}{os.getpid()}-{next(_serial)}"
        self.tx = Namespace(f"{stem}-tx", *_TX_ADDRESSES)
        self.rx = Namespace(f"{stem}-rx", *_RX_ADDRESSES)
        self._owner = os.getpid()
        self._undo = contextlib.ExitStack()
        self._restore_signals: Callable[[], None] = lambda: None

    def __repr__(self) -> str:
        return f"<VethLab {self.tx.name} -> {self.rx.name}, {self.queues} queues, MTU {self.mtu}>"

    def __enter__(self) -> Self:
        try:
            sweep()
            self._restore_signals = signals_to_exceptions()
            atexit.register(self.close)
            self._undo.callback(atexit.unregister, self.close)
            # Each step is noted before it is taken: an interrupt between the two then undoes a
            # step that was not taken, which does nothing, and never leaves one behind.
            for end in (self.tx, self.rx):
                self._undo.callback(_remove_namespace, end.path)
                _make_namespace(end.path)
            self._undo.callback(_delete_link, self.tx.path)
            self._make_link()
            for end in (self.tx, self.rx):
                self._undo.callback(end._end_children)
                self._configure(end)
            if self.gro:
                with self.rx.enter():
                    _set_gro(self.rx.interface, True)
            for end in (self.tx, self.rx):
                _wait_running(end)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the children, then remove link and namespaces; does nothing the second time."""
        if os.getpid() != self._owner:  # a forked child must not take its parent's network away
            return
        try:
            with undisturbed():
                self._undo.close()
        finally:
            self._restore_signals()

    def _make_link(self) -> None:
        queues = {"num_tx_queues": self.queues, "num_rx_queues": self.queues}
        peer_ns = os.open(self.rx.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            with self.tx.enter(), IPRoute() as netlink:
                netlink.link(
                    "add",
                    ifname=self.tx.interface,
                    kind="veth",
                    mtu=self.mtu,
                    **queues,
                    peer={
                        "ifname": self.rx.interface,
                        "net_ns_fd": peer_ns,
                        "mtu": self.mtu,
                        **queues,
                    },
                )
        finally:
            os.close(peer_ns)

    def _configure(self, end: Namespace) -> None:
        with end.enter(), IPRoute() as netlink:
            end.ifindex = netlink.link_lookup(ifname=end.interface)[0]
            loopback = netlink.link_lookup(ifname="lo")[0]
            link = netlink.link("get", index=end.ifindex)[0]
            end.mac = str(link.get("address"))
            _trust_addresses(end.interface)
            netlink.link("set", index=loopback, state="up")
            netlink.link("set", index=end.ifindex, state="up")
            netlink.addr("add", index=end.ifindex, address=end.ipv4, prefixlen=_IPV4_PREFIX)
            netlink.addr(
                "add",
                index=end.ifindex,
                address=end.ipv6,
                prefixlen=_IPV6_PREFIX,
                flags=_IFA_F_NODAD,
            )
            # So that a sender reaches any group without naming the interface.
            netlink.route("add", dst="224.0.0.0/4", oif=end.ifindex)


def _trust_addresses(interface: str) -> None:
    """Have IPv6 use the addresses of an interface at once.

    Otherwise the kernel first looks for two seconds whether somebody else has its link-local
    address, and meanwhile finds no neighbours for who only asks for one.
    """
    with open(f"/proc/sys/net/ipv6/conf/{interface}/accept_dad", "w") as file:
        file.write("0")


def _wait_running(end: Namespace) -> None:
    """Wait until the interface of *end* has its carrier and passes packets."""
    deadline = time.monotonic() + _LINK_TIMEOUT_S
    wanted = _IFF_UP | _IFF_RUNNING
    with end.enter(), IPRoute() as netlink:
        while netlink.link("get", index=end.ifindex)[0]["flags"] & wanted != wanted:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{end.interface} in {end.name} did not come up")
            time.sleep(0.005)


def _delete_link(path: str) -> None:
    """Delete the veth interface in the namespace at *path*, and with it the other end.

    The kernel would do so with the namespace, but later, and not while a process still lives in it.
    """
    with _inside(path), IPRoute() as netlink:
        for index in netlink.link_lookup(ifname=_INTERFACE):
            netlink.link("del", index=index)


def sweep() -> list[str]:
    """Remove the namespaces of laboratories whose process is gone.

    Returns
    -------
    list of str
        The names of the namespaces that were removed.
    """
    removed = []
    for name in sorted(_listdir(NETNS_DIR)):
        if not name.startswith(PREFIX):
            continue
        pid = name[len(PREFIX) :].split("-", 1)[0]
        if not pid.isdecimal() or os.path.exists(f"/proc/{pid}"):
            continue
        path = os.path.join(NETNS_DIR, name)
        with contextlib.suppress(OSError):  # a bare file, when the process died before the mount
            _delete_link(path)
        try:
            _remove_namespace(path)
        except OSError:
            continue  # another process swept it at the same time, or mounted something over it
        removed.append(name)
    return removed


def _listdir(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except FileNotFoundError:
        return []
