"""Zero-copy is tried with drivers and kernels that are known to do it well, and it is told why not.

No virtual interface here has it, so what is tested with sockets is that packets are copied and why.
"""

from __future__ import annotations

import errno
import itertools
import logging
import re
from pathlib import Path

import pytest
from target import LOGGER, OURS, recv

pytestmark = pytest.mark.ours

if OURS:
    from xdplab import Lab

    from xdpspead import _drivers
    from xdpspead._drivers import kernel_version, why_no_zero_copy, why_not_even_demanded
    from xdpspead._ethtool import driver_name

MANUAL = Path(__file__).parents[1] / "docs" / "zero-copy.md"

#: The rules once more, read from the sources and written another way: driver, first kernel, kernel
#: that is left out, largest MTU.
RULES = """
    fsl_dpaa2_eth 6.2  -    3000
    gve           6.4  -    2032
    i40e          5.12 -    3046
    ice           6.12 -    3046
    icssg-prueth  6.19 -    3000
    idpf          6.18 -    3000
    igb           6.14 -    3046
    igc           5.14 -    1500
    ixgbe         4.20 -    3050
    mlx5_core     6.1  6.4  3498
    nfp           5.18 -    3000
    st_gmac       5.13 -    1500
    st_xgmac      5.13 -    1500
    tsnep         6.4  -    3000
    virtio_net    6.13 -    3502
"""
KERNELS = [
    *((4, minor) for minor in (19, 20)),
    *((5, minor) for minor in range(20)),
    *((6, minor) for minor in range(20)),
    *((7, minor) for minor in range(4)),
]
MTUS = (1280, 1500, 1501, 2032, 2033, 3000, 3001, 3046, 3047, 3050, 3051, 3498, 3499, 3502, 3503)


def is_tried(rule: list[str], kernel: tuple[int, int], mtu: int) -> bool:
    """Judge by a line of RULES; versions in the order in which they came out."""
    order = ["{}.{}".format(*k) for k in KERNELS]
    _, since, without, largest = rule
    version = "{}.{}".format(*kernel)
    return order.index(version) >= order.index(since) and version != without and mtu <= int(largest)


def test_table_is_what_the_sources_say():
    rules = [line.split() for line in RULES.split("\n") if line.strip()]
    assert [rule[0] for rule in rules] == sorted(_drivers.ZERO_COPY)
    for rule, kernel, mtu in itertools.product(rules, KERNELS, MTUS):
        assert (not why_no_zero_copy(rule[0], kernel, mtu)) == is_tried(rule, kernel, mtu), (
            rule,
            kernel,
            mtu,
        )


def test_drivers_without_it_are_not_in_the_table():
    without = ["veth", "ena", "mlx4_en", "bnxt_en", "e1000e", "vmxnet3", "hv_netvsc", "tun", ""]
    for driver, kernel in itertools.product(without, KERNELS):
        assert "is not known to have it" in why_no_zero_copy(driver, kernel, 1500)


def test_reason_says_what_would_be_needed():
    assert "it needs Linux 6.12: 6.1, 6.6" in why_no_zero_copy("ice", (6, 11), 1500)
    assert "is not used on Linux 6.4" in why_no_zero_copy("mlx5_core", (6, 4), 1500)
    assert "an MTU of at most 3502, which is 9000" in why_no_zero_copy("virtio_net", (6, 18), 9000)


def test_demand_is_refused_where_larger_packets_are_lost_without_a_count():
    assert why_not_even_demanded("virtio_net", 3502) == ""
    assert "MTU above 3502 are lost" in why_not_even_demanded("virtio_net", 3503)
    for driver in ("i40e", "igb", "veth", ""):
        assert why_not_even_demanded(driver, 9000) == ""


@pytest.mark.parametrize(
    ("release", "version"),
    [
        ("6.18.44-fc-v657", (6, 18)),
        ("5.10.0-46-cloud-amd64", (5, 10)),
        ("7.3.4+deb13-amd64", (7, 3)),
        ("6.4-rc1", (6, 4)),
        ("unknown", (0, 0)),
    ],
)
def test_version_of_a_kernel(release, version):
    assert kernel_version(release) == version


def test_manual_has_the_table():
    rows = re.findall(
        r"^\| `([\w-]+)` \| ([\d.]+)(?:, not ([\d.]+))? \| (\d[\d,]*) \|",
        MANUAL.read_text(),
        re.MULTILINE,
    )
    found = [
        f"{driver} {since} {without or '-'} {mtu.replace(',', '')}"
        for driver, since, without, mtu in rows
    ]
    assert found == [" ".join(line.split()) for line in RULES.split("\n") if line.strip()]


# Readers


@pytest.fixture
def lab():
    with Lab() as lab:
        yield lab


def reader_of(lab, **config):
    stream, _ = lab.receiver(buffer_size=1 << 20, **config)
    (reader,) = stream.readers
    assert reader.zero_copy is False
    return reader


@pytest.mark.xdp
def test_name_of_the_driver_is_told(lab):
    assert reader_of(lab).driver == "veth"
    assert driver_name("no such if") == ""


@pytest.mark.xdp
@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({}, "driver veth is not known to have it"),
        ({"zero_copy": False}, "zero_copy=False"),
        ({"mode": "generic"}, "generic mode copies"),
    ],
    ids=repr,
)
def test_reader_tells_why_it_copies(lab, config, why):
    assert reader_of(lab, **config).why_copy == why


@pytest.mark.xdp
def test_one_line_in_the_log_says_what_was_obtained(lab, caplog):
    with caplog.at_level(logging.INFO, LOGGER):
        reader_of(lab)
    assert [record.getMessage() for record in caplog.records if record.name == LOGGER] == [
        "reading queues 0 of veth0 (driver veth) in native mode, packets are copied: driver veth "
        "is not known to have it"
    ]


@pytest.mark.xdp
def test_kernel_has_its_say_about_drivers_of_the_table(lab, monkeypatch):
    monkeypatch.setitem(_drivers.ZERO_COPY, "veth", _drivers.ZERO_COPY["ixgbe"])
    assert reader_of(lab).why_copy == "the kernel says that veth0 does not have it now"


@pytest.mark.xdp
def test_environment_has_it_tried_with_any_driver(lab, monkeypatch):
    monkeypatch.setenv("XDPSPEAD_ZERO_COPY", "try")
    assert reader_of(lab).why_copy.startswith("the driver has refused it")


@pytest.mark.xdp
def test_reader_tells_what_a_driver_that_refuses_may_lack(lab, monkeypatch):
    monkeypatch.setitem(_drivers.ZERO_COPY, "veth", _drivers.ZERO_COPY["virtio_net"])
    monkeypatch.setattr("xdpspead.recv._zero_copy.xdp_features", lambda index: None)
    assert "refused it (in a virtual machine it needs iommu_platform=on" in reader_of(lab).why_copy


@pytest.mark.xdp
def test_packets_that_do_not_fit_a_frame_are_copied_even_if_it_is_to_be_tried(monkeypatch):
    monkeypatch.setenv("XDPSPEAD_ZERO_COPY", "try")
    with Lab(mtu=9000) as lab:
        assert reader_of(lab).why_copy == "packets of MTU 9000 take several frames each"


@pytest.mark.xdp
def test_environment_that_is_not_understood_is_an_error(lab, monkeypatch):
    monkeypatch.setenv("XDPSPEAD_ZERO_COPY", "yes")
    with pytest.raises(ValueError, match="XDPSPEAD_ZERO_COPY must be 'try'"):
        lab.receiver()


@pytest.mark.xdp
def test_readers_that_do_not_insist_share_a_queue_with_one_that_copies(lab):
    reader_of(lab, zero_copy=False)
    reader_of(lab)


@pytest.mark.xdp
def test_zero_copy_that_is_demanded_is_not_kept_back_by_the_table(lab):
    with pytest.raises(recv.XdpError, match="zero-copy on queue 0") as refused:
        lab.receiver(zero_copy=True)
    assert refused.value.step == "bind"


@pytest.mark.xdp
def test_demand_that_would_lose_packets_is_an_error_that_says_what_works(monkeypatch):
    monkeypatch.setitem(_drivers.ZERO_COPY, "veth", _drivers.ZERO_COPY["virtio_net"])
    with Lab(mtu=3503) as lab:
        with pytest.raises(recv.XdpError, match=r"above 3502 .* MTU 3503") as refused:
            lab.receiver(zero_copy=True)
        assert (refused.value.step, refused.value.errno) == ("choose zero-copy", errno.EMSGSIZE)
        assert "zero_copy at None" in str(refused.value)
        lab.wait_detached()
