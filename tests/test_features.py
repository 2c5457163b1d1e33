"""`xdpspead.features` tells the truth and what to do about it."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import target

import xdpspead
import xdpspead.recv
from xdpspead import _features
from xdpspead._features import Feature, Features

ALL_CAPABILITIES = 2**41 - 1


def without_privileges() -> None:
    """Drop all capabilities of this process, as its own user."""
    cap_last = 40
    libc = ctypes.CDLL(None, use_errno=True)
    pr_capbset_drop, pr_set_no_new_privs = 24, 38
    libc.prctl(pr_set_no_new_privs, 1, 0, 0, 0)
    for capability in range(cap_last + 1):
        libc.prctl(pr_capbset_drop, capability, 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this thread
    if libc.capset(header, (ctypes.c_uint32 * 6)()) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def run_features(*arguments: str, **kwargs: object) -> str:
    command = [sys.executable, "-m", "xdpspead", "features", *arguments]
    return subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=60, **kwargs
    ).stdout  # type: ignore[call-overload, no-any-return]


def test_features_is_an_object_that_prints_itself() -> None:
    assert isinstance(xdpspead.features, Features)
    assert repr(xdpspead.features).startswith("<xdpspead.features xdp=")
    assert "This build" in str(xdpspead.features)


def test_feature_is_true_when_it_is_available() -> None:
    assert Feature("x", True, "here")
    assert not Feature("x", False, "not here", "Get it.")


def test_everything_that_is_missing_says_how_to_get_it() -> None:
    found = xdpspead.features
    for section in (found.build(), found.machine(), found.readers()):
        for feature in section.values():
            assert feature.detail
            assert bool(feature.remedy) is not feature.available


def test_importing_asks_nothing_of_the_machine() -> None:
    # A process that may not create sockets, or read what it may do, can import all the same.
    program = (
        "import sys\n"
        "def refuse(event, arguments):\n"
        "    if event.startswith('socket.') or event == 'open' and '/status' in str(arguments):\n"
        "        raise RuntimeError(event)\n"
        "sys.addaudithook(refuse)\n"
        "import xdpspead._features\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@pytest.mark.parametrize(
    ("release", "kernel", "multi_buffer"),
    [
        ("5.10.0-30-amd64", False, False),
        ("5.11.0", True, False),
        ("6.1.0-25-amd64", True, False),
        ("6.6.0", True, True),
        ("6.18.44", True, True),
        ("10.0-rc1", True, True),
        ("unheard of", False, False),
    ],
)
def test_kernel_version_is_compared_with_the_floors(
    release: str, kernel: bool, multi_buffer: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.release", lambda: release)
    assert xdpspead.features.kernel.available is kernel
    assert xdpspead.features.multi_buffer.available is multi_buffer


def test_another_system_than_linux_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    assert xdpspead.features.kernel == Feature("kernel", False, "this is Darwin", "Use Linux.")


@pytest.mark.parametrize(
    ("mask", "net_raw", "net_admin", "cap_bpf"),
    [
        (0, False, False, False),
        (1 << 12, False, True, False),
        (1 << 13, True, False, False),
        (1 << 39, False, False, True),
        (1 << 21, False, False, True),  # CAP_SYS_ADMIN includes CAP_BPF
        (ALL_CAPABILITIES, True, True, True),
    ],
)
def test_capabilities_are_read_bit_by_bit(
    mask: int, net_raw: bool, net_admin: bool, cap_bpf: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_features, "_effective_capabilities", lambda: mask)
    found = xdpspead.features
    assert (bool(found.net_raw), bool(found.net_admin), bool(found.cap_bpf)) == (
        net_raw,
        net_admin,
        cap_bpf,
    )


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.EPERM, "CAP_NET_RAW"), (errno.EAFNOSUPPORT, "CONFIG_XDP_SOCKETS")],
)
def test_refused_socket_says_what_would_help(
    number: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_features, "_try_af_xdp_socket", lambda: number)
    assert not xdpspead.features.af_xdp
    assert os.strerror(number) in xdpspead.features.af_xdp.detail
    assert words in xdpspead.features.af_xdp.remedy


@pytest.mark.parametrize(
    ("number", "words"), [(errno.EPERM, "CAP_BPF"), (errno.ENOSYS, "CONFIG_BPF_SYSCALL")]
)
def test_refused_map_says_what_would_help(
    number: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_features, "_try_xskmap", lambda: number)
    assert not xdpspead.features.bpf
    assert words in xdpspead.features.bpf.remedy


@pytest.mark.parametrize(
    ("limit", "mask", "enough"),
    [
        (8 << 20, 0, False),
        (8 << 20, 1 << 14, True),  # CAP_IPC_LOCK
        (16 << 20, 0, True),
        (resource.RLIM_INFINITY, 0, True),
    ],
)
def test_memory_lock_limit_is_compared_with_what_a_reader_takes(
    limit: int, mask: int, enough: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (limit, limit))
    monkeypatch.setattr(_features, "_effective_capabilities", lambda: mask)
    monkeypatch.setattr(_features, "_default_buffer_bytes", lambda: 16 << 20)
    assert xdpspead.features.memlock.available is enough


def test_build_without_xdp_names_the_packages_of_the_distributions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_features, "_build_has_xdp", lambda: False)
    remedy = xdpspead.features.xdp.remedy
    assert "libbpf-dev" in remedy
    assert "libbpf-devel" in remedy
    assert not xdpspead.features.udp_xdp
    assert remedy in xdpspead.features.udp_xdp.remedy


@pytest.mark.parametrize(
    ("missing", "lost", "packages"),
    [
        ({"pcap", "pcap_gzip", "pcap_zstd"}, {"pcap", "pcap_gzip", "pcap_zstd"}, "libpcap-dev"),
        ({"pcap_gzip"}, {"pcap_gzip"}, "zlib1g-dev"),
        ({"pcap_zstd"}, {"pcap_zstd"}, "libzstd-devel"),
    ],
)
def test_build_without_a_library_of_capture_files_names_its_packages(
    missing: set[str], lost: set[str], packages: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_features, "_build_has_library", lambda name: name not in missing)
    found = xdpspead.features.build()
    assert {name for name in found if name.startswith("pcap") and not found[name]} == lost
    for name in lost:
        assert packages in found[name].remedy
    assert bool(xdpspead.features.readers()["pcap"]) is ("pcap" not in lost)


def test_library_probe_agrees_with_what_the_reader_can_do() -> None:
    stream = xdpspead.recv.Stream(xdpspead.ThreadPool())
    with pytest.raises(OSError, match="/no/such/file") as caught:
        stream.add_udp_pcap_file_reader("/no/such/file")
    assert caught.value.errno == (errno.ENOENT if xdpspead.features.pcap else errno.ENOSYS)


@pytest.mark.xdp
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to have something to lose")
def test_process_that_lost_its_privileges_is_told_which() -> None:
    assert xdpspead.features.net_raw
    found = json.loads(run_features("--json", preexec_fn=without_privileges))["machine"]
    lost = {name for name, feature in found.items() if not feature["available"]}
    assert {"net_raw", "net_admin", "cap_bpf", "af_xdp", "bpf"} <= lost
    assert "CAP_NET_RAW" in found["af_xdp"]["remedy"]


def test_probing_leaves_no_descriptor_open() -> None:
    before = target.descriptors()
    str(xdpspead.features)
    assert target.descriptors() == before


def test_socket_probe_agrees_with_the_socket_module() -> None:
    try:
        socket.socket(44, socket.SOCK_RAW).close()
        possible = True
    except OSError:
        possible = False
    assert xdpspead.features.af_xdp.available is possible


def test_command_prints_every_feature_by_name() -> None:
    output = run_features()
    found = xdpspead.features
    for name in [*found.build(), *found.machine(), *found.readers()]:
        assert f"  {name} " in output


def test_command_prints_json_on_request() -> None:
    report = json.loads(run_features("--json"))
    assert set(report) == {"version", "build", "machine", "readers"}
    for name, feature in report["machine"].items():
        assert feature["name"] == name
        assert feature["available"] is xdpspead.features.machine()[name].available


def test_command_is_quick(tmp_path: Path) -> None:
    # It must not import what only a reader needs.
    program = (
        "import sys\n"
        "from xdpspead.__main__ import main\n"
        "main(['features'])\n"
        "assert 'pyroute2' not in sys.modules\n"
    )
    subprocess.run(
        [sys.executable, "-c", program], check=True, timeout=60, cwd=tmp_path, capture_output=True
    )
