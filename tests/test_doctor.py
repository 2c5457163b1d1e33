"""`python -m xdpspead doctor`: it judges facts rightly, finds them, and changes nothing."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import textwrap
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import target
from doctor_samples import (
    ADDRESSES,
    CARDS,
    FAR,
    PORTS,
    card,
    machine,
    offloads,
    small_machine,
)
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from xdplab import Lab, program_is_loaded

from xdpspead import _drivers
from xdpspead.__main__ import main
from xdpspead._doctor import (
    _examine,
    _interface,
    _judge_machine,
    _machine,
    _programs,
    _report,
)
from xdpspead._doctor._facts import (
    NEEDS_ROOT,
    Coalescing,
    IdleState,
    Irq,
    Losses,
    Pause,
    Pcie,
    Program,
    Queues,
    Rings,
    Softnet,
    Unknown,
)
from xdpspead._netdev import XdpFeatures

pytestmark = pytest.mark.ours

#: Seconds that another process may take, starting Python on a busy machine included.
DEADLINE = 50.0
MANUAL = Path(__file__).parents[1] / "docs" / "doctor.md"
CHECKS = [*_examine.MACHINE_CHECKS, *_examine.INTERFACE_CHECKS]


def findings(the_machine, the_card):
    return _examine.conclude(the_machine, [the_card], the_card.name).findings


def found(check, the_machine, the_card):
    """Return the one finding of a check."""
    (finding,) = (f for f in findings(the_machine, the_card) if f.check == check)
    return finding


# ------------------------------------------------------------------ judging


def test_machine_and_card_that_are_as_they_should_be_are_good_throughout():
    levels = {finding.check: finding.level for finding in findings(machine(), card())}
    assert levels == dict.fromkeys(CHECKS, "good")


@pytest.mark.parametrize("driver", CARDS)
def test_card_is_judged_by_what_is_known_of_its_kind(driver):
    the_machine, the_card, expected = CARDS[driver]
    levels = {f.check: str(f.level) for f in findings(the_machine, the_card) if f.level != "good"}
    assert levels == expected


DEEP = (IdleState("C1", 2), IdleState("C6", 133))
FOREIGN = Program(12, "native", "their_filter", ())

#: check, what is wrong with the machine and the card, level, and the commands that mend it.
WRONG = {
    "compiler off": ("bpf", {"jit": 0}, {}, "costs", ["sysctl -w net.core.bpf_jit_enable=1"]),
    "memory not lockable": (
        "memlock",
        {"memlock": (False, "at most 8 MiB may be locked")},
        {},
        "costs",
        ["ulimit -l unlimited"],
    ),
    "small socket buffers": (
        "rmem-max",
        {"rmem_max": 212_992, "missing": ("CAP_NET_ADMIN",)},
        {},
        "loses",
        ["sysctl -w net.core.rmem_max=8388608"],
    ),
    "CPU queues full now": (
        "backlog",
        {"softnet": Softnet(1000, 50, 0, dropping=3)},
        {},
        "loses",
        ["sysctl -w net.core.netdev_max_backlog=10000"],
    ),
    "CPU queues full once": (
        "backlog",
        {"softnet": Softnet(1000, 50, 0), "backlog": 8000},
        {},
        "costs",
        ["sysctl -w net.core.netdev_max_backlog=16000"],
    ),
    "no time": (
        "budget",
        {"softnet": Softnet(100_000, 0, 101)},
        {},
        "costs",
        ["sysctl -w net.core.netdev_budget=600 net.core.netdev_budget_usecs=8000"],
    ),
    "powersave": (
        "governor",
        {"governors": frozenset({"powersave", "performance"})},
        {},
        "costs",
        ["cpupower frequency-set -g performance"],
    ),
    "deep sleep": (
        "idle-states",
        {"idle_states": DEEP},
        {},
        "costs",
        ["cpupower idle-set -D 10"],
    ),
    "irqbalance": (
        "irqbalance",
        {"irqbalance": True},
        {},
        "costs",
        ["systemctl disable --now irqbalance"],
    ),
    "memory moves": (
        "numa-memory",
        {"numa_balancing": 1},
        {},
        "costs",
        ["sysctl -w kernel.numa_balancing=0"],
    ),
    "switched off": ("link", {}, {"up": False}, "loses", ["ip link set dev eth1 up"]),
    "no cable": ("link", {}, {"carrier": False}, "loses", []),
    "losing now": (
        "losses",
        {},
        {"losses": Losses({}, {"rx_missed_errors": 3, "rx_dropped": 1}, 0.5)},
        "loses",
        ["ethtool -S eth1"],
    ),
    "nobody wanted them": (
        "losses",
        {},
        {"losses": Losses({}, {"rx_dropped": 1}, 0.5)},
        "costs",
        ["ip -s -s link show dev eth1"],
    ),
    "small ring": (
        "rings",
        {},
        {"rings": Rings(512, 8192)},
        "loses",
        ["ethtool -G eth1 rx 8192"],
    ),
    "one queue": (
        "queues",
        {},
        {"queues": Queues(1, 63)},
        "costs",
        ["ethtool -L eth1 combined 4"],
    ),
    "too many queues": (
        "queues",
        {},
        {"queues": Queues(63, 63, combined=False)},
        "costs",
        ["ethtool -L eth1 rx 8"],
    ),
    "blind hash": (
        "hash",
        {},
        {"hashes": {"udp4": ADDRESSES, "udp6": PORTS}},
        "costs",
        ["ethtool -N eth1 rx-flow-hash udp4 sdfn"],
    ),
    "all on one queue": (
        "spread",
        {},
        {"table": (2, 2, 2, 2)},
        "costs",
        ["ethtool -X eth1 default"],
    ),
    "no rules": (
        "steering",
        {},
        {"offloads": offloads(rx_ntuple_filter=False)},
        "costs",
        ["ethtool -K eth1 ntuple on"],
    ),
    "no rules at all": ("steering", {}, {"offloads": {"rx-gro": True}}, "costs", []),
    "rules without ports": ("steering", {}, {"driver": "igb"}, "costs", []),
    "later than the ring lasts": (
        "coalescing",
        {},
        {"coalescing": Coalescing(500, 0, adaptive=False), "rings": Rings(1024, 1024)},
        "loses",
        ["ethtool -C eth1 rx-usecs 62"],
    ),
    "late": (
        "coalescing",
        {},
        {"coalescing": Coalescing(1500, 0, adaptive=False)},
        "costs",
        ["ethtool -C eth1 rx-usecs 50"],
    ),
    "pause frames": (
        "pause",
        {},
        {"pause": Pause(rx=False, tx=True)},
        "costs",
        ["ethtool -A eth1 autoneg off rx off tx off"],
    ),
    "process elsewhere": (
        "numa",
        {"allowed": FAR},
        {},
        "costs",
        ["taskset -c 8-15 COMMAND"],
    ),
    "interrupt elsewhere": (
        "interrupts",
        {},
        {"irqs": (Irq(80, frozenset({8})), Irq(81, frozenset({0, 9})), Irq(82, frozenset({1})))},
        "costs",
        ["echo 8 > /proc/irq/81/smp_affinity_list", "echo 9 > /proc/irq/82/smp_affinity_list"],
    ),
    "narrow slot": ("pcie", {}, {"pcie": Pcie(4, 8, 5.0, 8.0)}, "loses", []),
    "strict about sources": (
        "rp-filter",
        {},
        {"rp_filter": 1},
        "costs",
        ["sysctl -w net.ipv4.conf.eth1.rp_filter=2"],
    ),
    "old querier": (
        "igmp",
        {},
        {"igmp": 2},
        "costs",
        ["sysctl -w net.ipv4.conf.eth1.force_igmp_version=3"],
    ),
    "no native mode": (
        "driver",
        {},
        {"driver": "e1000", "xdp": XdpFeatures(False, 0)},
        "costs",
        [],
    ),
    "bond": ("driver", {}, {"kind": "bond", "members": ("eth2", "eth3")}, "loses", []),
    "too long for the driver": (
        "mtu",
        {},
        {"driver": "ena", "mtu": 9000, "xdp": XdpFeatures(False, 0, native=True)},
        "costs",
        [],
    ),
    "not offered now": (
        "zero-copy",
        {},
        {"xdp": XdpFeatures(False, 0, native=True, multi_buffer=True)},
        "costs",
        [],
    ),
    "somebody's program": (
        "programs",
        {},
        {"programs": (FOREIGN,)},
        "loses",
        ["ip link set dev eth1 xdp off"],
    ),
    "somebody's process": (
        "programs",
        {},
        {"programs": (replace(FOREIGN, holders=("99 (suricata)",)),)},
        "loses",
        [],
    ),
    "merging card": (
        "lro",
        {},
        {"offloads": offloads(rx_lro=True, rx_gro_hw=True)},
        "costs",
        ["ethtool -K eth1 lro off", "ethtool -K eth1 rx-gro-hw off"],
    ),
    "merging host": (
        "lro",
        {},
        {"offloads": offloads(rx_gro_hw=True), "fixed": frozenset({"rx-gro-hw"})},
        "costs",
        [],
    ),
    "merging kernel": (
        "gro-forwarding",
        {},
        {"offloads": offloads(rx_udp_gro_forwarding=True), "xdp": XdpFeatures(False, 0)},
        "loses",
        ["ethtool -K eth1 rx-udp-gro-forwarding off"],
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named_with_the_command_that_mends_it(name):
    check, of_machine, of_card, level, commands = WRONG[name]
    finding = found(check, machine(**of_machine), card(**of_card))
    assert (finding.level, list(finding.commands)) == (level, commands)
    assert finding.why


def test_many_interrupts_are_dealt_out_by_one_command(tmp_path):
    far = tuple(Irq(80 + i, frozenset({i % 8})) for i in range(12))
    (command,) = found("interrupts", machine(), card(irqs=far)).commands
    for irq in far:
        (tmp_path / str(irq.number)).mkdir()
    script = command.replace("/proc/irq", str(tmp_path))
    subprocess.run(["sh", "-euc", script], check=True, timeout=DEADLINE)
    put = [(tmp_path / str(irq.number) / "smp_affinity_list").read_text() for irq in far]
    assert put == [f"{8 + i % 8}\n" for i in range(12)]


@pytest.mark.xdp
def test_commands_are_such_as_ip_and_ethtool_understand(lab):
    commands = [c for *_, listed in WRONG.values() for c in listed]
    ours = [c.split() for c in commands if c.startswith(("ethtool ", "ip "))]
    assert len(ours) > 15
    for words in ours:
        here = [lab.rx.interface if word == "eth1" else word for word in words]
        done = lab.rx.run(here, capture_output=True, text=True, timeout=DEADLINE)
        # The driver of a veth may not be able to, but that is another thing.
        for wrong in ("bad command line", "Usage", "usage", "is unknown", "unrecognized"):
            assert wrong not in done.stderr, here
    for command in commands:
        for setting in re.findall(r"(\S+)=\d+", command) if "sysctl" in command else []:
            path = Path("/proc/sys", setting.replace(".", "/").replace("eth1", "lo"))
            assert path.exists() or setting == "kernel.numa_balancing", setting


def test_privileges_that_are_missing_are_named():
    finding = found("privileges", machine(missing=("CAP_BPF",)), card())
    assert finding.level == "costs"
    assert "CAP_BPF" in finding.what
    assert "+bpf" in finding.commands[0]


def test_who_is_served_by_the_helper_misses_nothing():
    served = machine(
        missing=("CAP_BPF",), helper="it serves this user", memlock=(False, "8 MiB at most")
    )
    for check in ("privileges", "memlock"):
        assert found(check, served, card()).level == "good"
    unserved = machine(missing=("CAP_BPF",), memlock=(False, "8 MiB at most"))
    for check in ("privileges", "memlock"):
        assert found(check, unserved, card()).level == "costs"


def test_sleep_that_somebody_has_limited_costs_nothing():
    limited = machine(idle_states=DEEP, idle_limit_us=2)
    assert found("idle-states", limited, card()).level == "good"


def test_sleep_that_may_be_limited_is_told_with_that_doubt():
    doubtful = machine(idle_states=DEEP, idle_limit_us=NEEDS_ROOT)
    assert "needs root" in found("idle-states", doubtful, card()).why


def test_own_program_is_no_obstacle():
    ours = Program(5, "native", "steer", ("python3 (77)",))
    finding = found("programs", machine(), card(programs=(ours,)))
    assert finding.level == "good"
    assert "python3 (77)" in finding.what


def test_driver_is_looked_up_where_the_kernel_does_not_tell():
    silent = {"xdp": Unknown("this kernel does not tell")}
    assert found("driver", machine(release="6.1.0"), card(**silent)).level == "good"
    assert found("driver", machine(release="4.8.0"), card(**silent)).level == "costs"
    assert found("driver", machine(), card(driver="other", **silent)).level == "unknown"


@pytest.mark.parametrize(
    ("release", "level", "lacks"),
    [
        ("5.4.0", "costs", ["AF_XDP readers (5.11)", "jumbo frames through AF_XDP (6.6)"]),
        ("5.15.0-100-generic", "costs", ["native mode with jumbo frames (5.18)"]),
        ("6.8.0", "good", ["interrupt deferral for single queues (6.13)"]),
        ("6.18.0", "good", []),
    ],
)
def test_kernel_is_told_what_it_lacks(release, level, lacks):
    finding = found("kernel", machine(release=release), card())
    assert finding.level == level
    assert all(lack in finding.what for lack in lacks)


def test_fact_that_needs_root_is_unknown_and_not_left_out():
    the_machine = machine(jit=NEEDS_ROOT)
    finding = found("bpf", the_machine, card())
    assert (finding.level, finding.what) == ("unknown", "needs root")
    report = _report.as_text(_examine.conclude(the_machine, [card()], "eth1"))
    assert "bpf: unknown: needs root" in report


# ------------------------------------------------------------------ showing


@pytest.mark.parametrize("driver", CARDS)
def test_report_fits_80_columns_and_commands_are_whole(driver):
    the_machine, the_card, _ = CARDS[driver]
    examination = _examine.conclude(the_machine, [the_card], "eth1")
    lines = _report.as_text(examination).splitlines()
    commands = [c for finding in examination.findings for c in finding.commands]
    for line in lines:
        assert len(line) <= 80 or line.strip() in commands
    assert {f"      {command}" for command in commands} <= set(lines)


def test_report_begins_with_the_worst():
    the_machine, the_card, _ = CARDS["ixgbe"]
    report = _report.as_text(_examine.conclude(the_machine, [the_card], "eth1"))
    titles = [line for line in report.splitlines() if line in _report._TITLES.values()]
    assert titles == list(_report._TITLES.values())
    assert titles[0] == "Loses packets"


def test_every_interface_has_a_line_when_none_is_named():
    idle = card(name="eth2", up=False)
    examination = _examine.conclude(machine(), [card(losses=Losses({}, {"x": 1}, 0.5)), idle])
    lines = _report.as_text(examination).splitlines()
    (used,) = (line for line in lines if "eth1 " in line)
    assert used.endswith("1 lose, 0 cost")
    (unused,) = (line for line in lines if "eth2 " in line)
    assert unused.endswith("switched off")


def test_exit_status_is_1_only_if_something_loses_packets():
    def status(the_card):
        return _report.exit_status(_examine.conclude(machine(), [the_card], the_card.name))

    assert status(card()) == 0
    assert status(card(pause=Pause(rx=True, tx=True))) == 0
    assert status(card(rings=Rings(128, 4096))) == 1


def test_interface_that_is_not_in_use_makes_the_machine_no_worse():
    assert _report.exit_status(_examine.conclude(machine(), [card(up=False)])) == 0


def test_json_has_the_keys_of_the_manual():
    the_machine, the_card, _ = CARDS["mlx5_core"]
    report = json.loads(_report.as_json(_examine.conclude(the_machine, [the_card], "eth1")))
    text = MANUAL.read_text()
    named = set(re.findall(r"^\| `(\w+)` \|", text.split("## JSON")[1], re.MULTILINE))
    assert set(report) | set(report["interfaces"]["eth1"]) | set(report["findings"][0]) == named
    assert f"`version` is {report['version']}" in text
    assert (report["loses"], report["costs"]) == (1, 6)


def test_example_of_the_manual_is_a_report():
    the_machine, the_card, _ = CARDS["mlx5_core"]
    slow = replace(the_machine, governors=frozenset({"powersave"}))
    report = _report.as_text(_examine.conclude(slow, [the_card], "eth1"))
    (shown,) = re.findall(r"^```\n(Linux .*?)^```", MANUAL.read_text(), re.MULTILINE | re.DOTALL)
    parts = [re.escape(part) for part in shown.split("  ...\n")]
    assert re.fullmatch(".*".join(parts), report, re.DOTALL), report


def test_every_check_is_explained_in_the_manual():
    text = MANUAL.read_text().split("## JSON")[0]
    rows = re.findall(r"^\| `([a-z-]+)` \| .{20,} \|$", text, re.MULTILINE)
    assert rows == CHECKS


# ------------------------------------------------------------------ finding out


def write(root, files):
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")


def test_machine_is_read_from_its_files(tmp_path):
    cpu = "sys/devices/system/cpu"
    write(
        tmp_path,
        {
            "sys/devices/system/node/node0/cpulist": "0-3,8",
            "sys/devices/system/node/node1/cpulist": "4-7",
            f"{cpu}/cpufreq/policy0/scaling_governor": "powersave",
            f"{cpu}/cpufreq/policy1/scaling_governor": "powersave",
            f"{cpu}/cpufreq/policy1/energy_performance_preference": "performance",
            f"{cpu}/cpuidle/current_driver": "intel_idle",
            f"{cpu}/cpu0/cpuidle/state0/name": "POLL",
            f"{cpu}/cpu0/cpuidle/state0/latency": "0",
            f"{cpu}/cpu0/cpuidle/state0/disable": "0",
            f"{cpu}/cpu0/cpuidle/state1/name": "C6",
            f"{cpu}/cpu0/cpuidle/state1/latency": "133",
            f"{cpu}/cpu0/cpuidle/state1/disable": "1",
            "proc/sys/net/core/rmem_max": "212992",
            "proc/sys/net/core/netdev_max_backlog": "1000",
            "proc/net/softnet_stat": "00000010 00000002 00000001 0\n000000ff 00000001 00000000 0",
            "proc/17/comm": "irqbalance",
        },
    )
    facts = _machine.gather_machine(tmp_path)
    assert facts.nodes == {0: frozenset({0, 1, 2, 3, 8}), 1: frozenset({4, 5, 6, 7})}
    assert facts.governors == {"powersave", "performance"}
    assert facts.idle_states == (IdleState("POLL", 0),)
    assert (facts.rmem_max, facts.backlog) == (212_992, 1000)
    assert facts.softnet == Softnet(0x10F, 3, 1)
    assert facts.irqbalance is True
    assert isinstance(facts.jit, Unknown)


@pytest.fixture
def slot(tmp_path, monkeypatch):
    """A card as sysfs shows it, with a kernel that does not tell its queues' interrupts."""
    monkeypatch.setattr(_interface._netdev, "queue_interrupts", lambda index: frozenset())
    bus = "sys/bus/pci/devices/0000:81:00.0"
    names = ["mlx5_async0@pci:0000:81:00.0", "mlx5_comp0@pci:0000:81:00.0", "eth1-rx-1", "eth1"]
    write(
        tmp_path,
        {
            **{f"{bus}/msi_irqs/{80 + i}": "msix" for i in range(4)},
            **{f"sys/kernel/irq/{80 + i}/actions": name for i, name in enumerate(names)},
            **{f"proc/irq/{80 + i}/smp_affinity_list": "0-15" for i in range(4)},
            "proc/irq/81/effective_affinity_list": "3",
            f"{bus}/current_link_width": "8",
            f"{bus}/max_link_width": "16",
            f"{bus}/current_link_speed": "8.0 GT/s PCIe",
            f"{bus}/max_link_speed": "16.0 GT/s PCIe",
        },
    )
    return tmp_path / bus


def test_interrupts_of_queues_are_told_from_others(slot, tmp_path):
    irqs = _interface._irqs("eth1", 1, slot, tmp_path)
    assert irqs == (Irq(81, frozenset({3})), Irq(82, frozenset(range(16))))


@pytest.mark.parametrize(
    ("name", "serves"),
    [
        ("mlx5_comp3@pci:0000:81:00.0", True),
        ("mlx5_async0@pci:0000:81:00.0", False),
        ("ice-mgmt0-TxRx-5", True),
        ("ice-0000:81:00.0:misc", False),
        ("irdma-0000:81:00.0-AEQ", False),
        ("i40e-mgmt0-TxRx-0", True),
        ("i40e-0000:81:00.0:fdir-TxRx-0", False),
        ("mgmt0-TxRx-0", True),  # ixgbe, igb, bnxt_en
        ("mgmt0-rx-0", True),
        ("mgmt0-tx-0", False),
        ("mgmt0", False),
        ("mgmt0-Tx-Rx-2", True),  # ena
        ("ena-mgmnt@pci:0000:00:05.0", False),
        ("gve-ntfy-blk0@pci:0000:00:04.0", True),
        ("virtio2-input.0", True),
        ("virtio2-output.0", False),
        ("virtio2-config", False),
        ("idpf-Mailbox-0", False),
    ],
)
def test_interrupts_of_drivers_are_known_by_their_names(name, serves):
    assert _interface.serves_queue(name, "mgmt0") is serves


def test_only_interrupt_of_a_device_is_its_queues(slot, tmp_path):
    for irq in (80, 81, 82):
        (slot / "msi_irqs" / str(irq)).unlink()
    assert [irq.number for irq in _interface._irqs("eth1", 1, slot, tmp_path)] == [83]


def test_slot_is_read(slot):
    assert _interface._pcie(slot) == Pcie(8, 16, 8.0, 16.0)


def test_slot_that_cannot_be_seen_is_unknown(slot):
    (slot / "current_link_speed").write_text("Unknown\n")
    assert isinstance(_interface._pcie(slot), Unknown)


def test_igmp_version_is_that_of_the_interface(tmp_path):
    table = "Idx\tDevice    : Count Querier\n1\tlo        :     1      V3\n\t\t\t010000E0     1\n"
    write(tmp_path, {"proc/thread-self/net/igmp": table + "4\teth1      :     1      V2"})
    assert _interface._igmp("eth1", tmp_path) == 2
    assert isinstance(_interface._igmp("eth2", tmp_path), Unknown)


def test_vlans_of_an_interface_are_those_above_it():
    def link(below):
        data = {"attrs": [("IFLA_VLAN_ID", 100)]}
        info = {"attrs": [("IFLA_INFO_KIND", "vlan"), ("IFLA_INFO_DATA", data)]}
        message = ifinfmsg()
        message["attrs"] = [("IFLA_LINK", below), ("IFLA_LINKINFO", info)]
        message.encode()
        answer = ifinfmsg(message.data)
        answer.decode()
        return answer

    links = {"eth1.100": link(3), "eth2.100": link(4)}
    assert list(_interface._vlan_ids(3, links)) == [100]
    assert list(_interface._vlan_ids(5, links)) == []


# ------------------------------------------------------------------ on a veth pair


@pytest.fixture
def lab():
    with Lab(queues=2) as lab:
        yield lab


def examine(lab):
    with lab.rx.enter():
        return _examine.examine(lab.rx.interface)


@pytest.mark.xdp
def test_interface_is_what_ip_and_ethtool_say(lab):
    examination = examine(lab)
    (interface,) = examination.interfaces
    link = lab.link()
    assert interface.mtu == link["mtu"] == 1500
    assert interface.kind == interface.driver == "veth"
    assert (interface.up, interface.carrier) == (True, True)
    assert (interface.queues.n, interface.queues.most) == (2, 2)
    shown = lab.rx.run(
        ["ethtool", "-k", lab.rx.interface], stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    for name in ("rx-gro-list", "rx-vlan-filter", "rx-udp-gro-forwarding"):
        assert interface.offloads.get(name, False) == (f"{name}: on" in shown)
        assert (name in interface.offloads) == (f"{name}: off [fixed]" not in shown)
    assert found_in(examination, "driver").level == "good"
    assert found_in(examination, "zero-copy").level == "costs"
    assert found_in(examination, "pcie", missing=True) is None


def found_in(examination, check, *, missing=False):
    listed = [finding for finding in examination.findings if finding.check == check]
    assert len(listed) == (0 if missing else 1)
    return listed[0] if listed else None


@pytest.mark.xdp
def test_packets_that_are_dropped_while_it_looks_are_counted(lab):
    # Nobody wants this type of Ethernet frame, so the kernel drops it.
    frame = bytes.fromhex(lab.rx.mac.replace(":", "")) + bytes(6) + b"\x88\xb5" + bytes(46)
    over = threading.Event()

    def send():
        for _ in range(2000):
            lab.inject(frame)
            if over.wait(0.01):
                return

    sending = threading.Thread(target=send)
    sending.start()
    try:
        finding = found_in(examine(lab), "losses")
    finally:
        over.set()
        sending.join()
    assert finding.level == "costs"
    counted = re.match(r"the kernel dropped (\d+) packets in", finding.what)
    assert counted is not None, finding.what
    assert 0 < int(counted[1]) <= 2000


@pytest.mark.xdp
def test_members_are_those_whose_master_it_is(lab):
    lab.ip("link", "add", "br0", "type", "bridge")
    try:
        lab.ip("link", "set", lab.rx.interface, "master", "br0")
        with lab.rx.enter():
            (bridge,) = _interface.gather_interfaces(["br0"])
    finally:
        lab.ip("link", "del", "br0")
    assert (bridge.kind, bridge.members) == ("bridge", (lab.rx.interface,))
    assert bridge.up is False


@pytest.mark.xdp
def test_driver_is_understood_as_linux_ethtool_h_says(lab, tmp_path):
    library = tmp_path / "shim.so"
    command = ["cc", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror"]
    source = Path(__file__).with_name("doctor_shim.c")
    subprocess.run([*command, source, "-o", library, "-ldl"], check=True)
    preload = f"{os.environ.get('LD_PRELOAD', '')} {library}".strip()
    code = """
        import dataclasses, json
        from xdpspead._doctor._interface import gather_interfaces
        from xdpspead._ethtool import bus_address
        (veth,) = gather_interfaces(["veth0"])
        facts = [dataclasses.asdict(x) for x in (veth.pause, veth.coalescing)]
        print(json.dumps([veth.driver, bus_address("veth0"), veth.hashes, veth.table, *facts]))
    """
    done = lab.rx.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "LD_PRELOAD": preload},
        stdout=subprocess.PIPE,
        check=True,
        timeout=DEADLINE,
    )
    assert json.loads(done.stdout) == [
        "shim",
        "0000:81:00.0",
        {"udp4": ADDRESSES, "udp6": PORTS},
        [1] * 8,
        {"rx": False, "tx": True},
        {"usecs": 2000, "frames": 0, "adaptive": False},
    ]


@pytest.mark.xdp
def test_own_receiver_is_named_with_its_process(lab):
    lab.receiver()
    finding = found_in(examine(lab), "programs")
    assert finding.level == "good"
    assert f"program {lab.program()} (steer)" in finding.what
    assert f"{os.getpid()} (" in finding.what


@pytest.mark.xdp
def test_program_of_somebody_else_is_named_with_its_process(lab):
    fd = lab.attach_foreign_program()
    try:
        finding = found_in(examine(lab), "programs")
        assert finding.level == "loses"
        assert f"program {lab.program()} " in finding.what
        assert f"{os.getpid()} (" in finding.what
    finally:
        os.close(fd)


@pytest.mark.xdp
def test_program_that_nobody_holds_has_no_process(lab):
    fd = lab.attach_foreign_program()
    number = lab.program()
    assert _programs._holders(number)
    os.close(fd)
    target.wait_for(lambda: not program_is_loaded(number), "the program has gone")
    assert _programs._holders(number) == ()


@pytest.mark.xdp
def test_interface_that_is_down_exits_with_1(lab, capsys):
    lab.ip("link", "set", lab.rx.interface, "down")
    with lab.rx.enter():
        assert main(["doctor", lab.rx.interface]) == 1
    assert f"      ip link set dev {lab.rx.interface} up\n" in capsys.readouterr().out


def test_interface_that_does_not_exist_exits_with_2(capsys):
    assert main(["doctor", "nosuchif0"]) == 2
    error = capsys.readouterr().err
    assert "'nosuchif0'" in error
    assert "lo" in error


def test_wrong_command_line_exits_with_2(capsys):
    with pytest.raises(SystemExit) as info:
        main(["doctor", "lo", "eth0"])
    assert info.value.code == 2


def settings(lab):
    """Return all that can be set of the interface and its namespace, as other programs see it."""
    name = lab.rx.interface
    shown = []
    for command in (
        ["ip", "-d", "link", "show"],
        ["ip", "addr", "show"],
        *(["ethtool", option, name] for option in ("-k", "-l", "-g", "-c", "-a", "-n", "-x")),
        # Those of the namespace; others may be changed by other tests.
        ["sysctl", "-a", "-r", r"^net\.ipv[46]\."],
    ):
        done = lab.rx.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        shown.append(done.stdout)
    assert len(shown[-1]) > 10_000
    return shown


@pytest.mark.xdp
def test_nothing_is_changed(lab):
    lab.receiver()
    before, program = settings(lab), lab.program()
    examine(lab)
    assert settings(lab) == before
    assert lab.program() == program


#: Lets nothing be opened for writing, run, or asked of a driver but questions.
READ_ONLY = """
import ctypes, os, socket, struct, sys
QUESTIONS = {
    0x01, 0x03, 0x0E, 0x10, 0x12, 0x14, 0x16, 0x18, 0x1B, 0x1D, 0x1E, 0x21, 0x23, 0x25,
    0x29, 0x2B, 0x37, 0x38, 0x3A, 0x3C, 0x4C,
}
WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
refused = []

def watch(event, arguments):
    if event == "open" and arguments[2] & WRITE:
        refused.append(f"opens {arguments[0]} for writing")
    elif event == "fcntl.ioctl" and arguments[1] == 0x8946:
        (address,) = struct.unpack_from("16xP", bytes(arguments[2]))
        command = ctypes.c_uint32.from_address(address).value
        if command not in QUESTIONS:
            refused.append(f"ethtool command {command:#x}")
    elif event == "fcntl.ioctl" and arguments[1] != 0x8910:  # SIOCGIFNAME
        refused.append(f"ioctl {arguments[1]:#x}")
    elif event.split(".")[0] in ("subprocess", "shutil") or event in (
        "os.system", "os.exec", "os.fork", "os.remove", "os.rename", "os.mkdir", "os.chmod",
        "os.kill", "socket.connect", "socket.sethostname",
    ):
        refused.append(event)
    elif event == "socket.sendto" and arguments[0].family != socket.AF_NETLINK:
        refused.append(event)

from xdpspead.__main__ import main
main(["features", "--json"])  # what is imported late is imported now
sys.addaudithook(watch)
"""


@pytest.mark.xdp
def test_it_opens_nothing_for_writing_and_asks_drivers_questions_only(lab):
    program = READ_ONLY + textwrap.dedent("""
        main(["doctor", "veth0"])
        print("\\0".join(["", *refused]), file=sys.stderr)
    """)
    child = lab.python(program)
    out, err = child.communicate(timeout=DEADLINE)
    assert "Good" in out
    assert child.returncode == 0
    assert err.strip("\n") == ""


@pytest.mark.xdp
def test_ordinary_user_is_told_what_needs_root(lab):
    target.need_tree_open_to_all()
    fd = lab.attach_foreign_program()
    # Python itself may be where only root can read, so it becomes ordinary when all is imported.
    child = lab.python("""
        import contextlib, io, os, sys
        from xdpspead.__main__ import main
        with contextlib.redirect_stdout(io.StringIO()):
            main(["doctor", "veth0", "--json"])
        os.setgroups([]); os.setgid(65534); os.setuid(65534)
        sys.exit(main(["doctor", "veth0", "--json"]))
    """)
    out, err = child.communicate(timeout=DEADLINE)
    os.close(fd)
    assert err == ""
    levels = {f["check"]: (f["level"], f["what"]) for f in json.loads(out)["findings"]}
    assert set(levels) >= set(_examine.MACHINE_CHECKS)
    level, what = levels["programs"]
    assert level == "unknown"
    assert "needs root" in what
    assert levels["privileges"][0] == "costs"


def test_overview_says_something_of_every_interface(capsys):
    with contextlib.suppress(SystemExit):
        assert main(["doctor", "--json"]) in (0, 1)
    report = json.loads(capsys.readouterr().out)
    assert list(report["interfaces"]) == _interface.names()


def test_guest_without_governors_is_pointed_to_its_host():
    finding = found("governor", small_machine(), card(node=-1))
    assert finding.level == "good"
    assert "host" in finding.what


# ------------------------------------------------------------------ the manual


def test_table_of_drivers_in_the_manual_is_the_one_that_is_used():
    page = (MANUAL.parent / "which-nic.md").read_text().split("## Drivers")[1]
    rows = re.findall(
        r"^\| `(\S+)` \| [^|]+ \| (\S+) \| (\S*) ?\| ([\d,]*) ?\|$", page, re.MULTILINE
    )
    written = {driver: rest for driver, *rest in rows}

    def version(kernel):
        return ".".join(map(str, kernel)) if kernel else ""

    used = {
        driver: [version(known.since), version(known.multi_buffer)]
        for driver, known in _drivers.NATIVE.items()
    }
    assert {driver: rest[:2] for driver, rest in written.items()} == used
    assert list(written) == sorted(written)
    for driver, (*_, mtu) in written.items():
        known = _drivers.NATIVE[driver].max_mtu
        assert int(mtu.replace(",", "")) == known if mtu else known == _drivers.SAFE_MTU


def test_page_of_kernels_names_what_the_doctor_says_that_old_ones_lack():
    page = (MANUAL.parent / "which-kernel.md").read_text()
    for (major, minor), what in _judge_machine.LACKS:
        (row,) = re.findall(rf"^\| {major}\.{minor} \| (.*) \|$", page, re.MULTILINE)
        assert f"**{what}**" in row
