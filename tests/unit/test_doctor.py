"""What doctor says of facts: every rule, what it leaves unsaid, and the whole text of one host."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import ip_address, ip_interface
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import lbdr.datapath.addresses
import lbdr.datapath.host_facts
from lbdr.cli.main import lbdr as command
from lbdr.doctor import counts, examine, uses
from lbdr.doctor_facts import (
    AttachedProgram,
    Channels,
    Device,
    Feature,
    Finding,
    FirewallChain,
    HostFacts,
    Ipvs,
    Level,
    Place,
)
from lbdr.errors import Problem
from lbdr.model import (
    Configuration,
    Forwarding,
    HostNetwork,
    Interface,
    Persistence,
    PortRange,
    Ports,
    RealServer,
    VirtualService,
)

VIP = ip_address("192.0.2.10")
RIPS = {"web1": ip_address("192.0.2.21"), "web2": ip_address("198.51.100.22")}
SERVERS = tuple(RealServer(address, 80, name=name) for name, address in RIPS.items())
MH = VirtualService("WEB", VIP, scheduler="mh", real_servers=SERVERS)
NETWORK = HostNetwork(
    {
        name: Interface(name, index, addresses=(ip_interface(address),))
        for index, (name, address) in enumerate(
            {"eth0": "192.0.2.1/24", "eth1": "198.51.100.1/24", "eth2": "203.0.113.1/24"}.items(), 2
        )
    }
)
GOOD = Device(
    "eth0", driver="ixgbe", uses=(f"VIP {VIP}",), channels=Channels(combined=2, max_combined=8)
)
JIT = {"net.core.bpf_jit_enable": "1", "kernel.unprivileged_bpf_disabled": "2"}
HOST = HostFacts(
    kernel="6.1.0", cpus=2, devices=(GOOD,), mh_table_size=4093, sysctls=JIT, lockdown="none"
)
CHAIN = FirewallChain(
    "nft chain inet filter input", "input", "filter", 3, True, "nft list chain inet filter input"
)


def findings(facts: HostFacts, *services: VirtualService) -> list[Finding]:
    return examine(facts, Configuration(virtual_services=services or (MH,)))


def of_device(device: Device, facts: HostFacts = HOST) -> list[Finding]:
    return [each for each in findings(replace(facts, devices=(device,))) if each.subject == "eth0"]


def test_rules_about_marks_matter_to_services_that_a_mark_tells() -> None:
    facts = replace(HOST, firewall=(replace(CHAIN, marks=True),))
    several = replace(MH, ports=Ports((PortRange(104, 105),)))
    (found,) = [each for each in findings(facts, several) if "packet marks" in each.what]
    assert (found.level, found.subject) == (Level.WARNING, "firewall")
    assert found.what == (
        "nft chain inet filter input (input) is of a table whose rules set or match packet marks"
    )
    assert f"IPVS knows {several.name} by marks of 12288-12543" in found.why
    assert "`nft list chain inet filter input`" in found.remedy
    one = replace(MH, ports=Ports((PortRange(104, 104),)))
    for other in (findings(facts, one), findings(replace(HOST, firewall=(CHAIN,)), several)):
        assert not [each for each in other if "packet marks" in each.what]


def bad(found: list[Finding]) -> list[tuple[Level, str]]:
    return [(each.level, each.remedy) for each in found if each.level is not Level.OK]


def test_a_good_host_is_good_all_through() -> None:
    assert bad(findings(HOST)) == []
    assert [each.subject for each in findings(HOST)] == [
        "eth0",
        "ipvs",
        "ipvs",
        "firewall",
        "bpf",
        "bpf",
    ]


def test_uses_are_by_the_subnets_and_by_name() -> None:
    named = replace(MH, name="B", address=ip_address("203.0.113.9"), interface="eth1")
    spare = replace(MH, name="C", address=ip_address("203.0.113.7"), forwarding=Forwarding.PROXY)
    configuration = Configuration(virtual_services=(MH, named, spare))
    everybody = {**RIPS, "unused": ip_address("203.0.113.5")}
    assert uses(configuration, everybody, NETWORK) == {
        "eth0": ("VIP 192.0.2.10", "real server web1"),
        "eth1": ("VIP 203.0.113.9", "real server web2"),
    }


def test_what_has_no_interface_here_is_left_to_the_host_rules() -> None:
    lost = replace(MH, address=ip_address("10.0.0.1"), interface="eth9", real_servers=())
    assert uses(Configuration(virtual_services=(lost,)), {}, NETWORK) == {}
    problem = Problem("no interface eth9", "a.yaml", 3, 5, "correct the name")
    found = examine(replace(HOST, devices=()), Configuration(), [problem])
    assert found[0] == Finding(
        Level.FAULT,
        "configuration",
        "a.yaml:3:5: no interface eth9",
        "the director refuses this configuration on this machine",
        "correct the name",
    )
    assert (found[1].level, found[1].subject) == (Level.NOTE, "interfaces")


@pytest.mark.parametrize(
    ("feature", "vlans", "level", "remedy"),
    [
        ("rx-lro", (), Level.FAULT, "ethtool -K eth0 lro off"),
        ("rx-gro-hw", (), Level.WARNING, "ethtool -K eth0 rx-gro-hw off"),
        ("rx-vlan-hw-parse", ("eth0.5",), Level.WARNING, "ethtool -K eth0 rxvlan off"),
    ],
)
def test_a_feature_that_must_be_off(
    feature: str, vlans: tuple[str, ...], level: Level, remedy: str
) -> None:
    on = replace(GOOD, vlans=vlans, features={feature: Feature(active=True, changeable=True)})
    off = replace(GOOD, vlans=vlans, features={feature: Feature(active=False, changeable=True)})
    fixed = replace(on, features={feature: Feature(active=True, changeable=False)})
    assert bad(of_device(on)) == [(level, remedy)]
    assert bad(of_device(off)) == []
    assert "ethtool -K" not in bad(of_device(fixed))[0][1]
    assert "hypervisor" in bad(of_device(replace(fixed, driver="virtio_net")))[0][1]


def test_stripping_is_nobodys_concern_without_vlans() -> None:
    stripping = {"rx-vlan-hw-parse": Feature(active=True, changeable=True)}
    assert bad(of_device(replace(GOOD, features=stripping))) == []


@pytest.mark.parametrize(
    ("mtu", "frags", "levels"),
    [
        (3500, False, []),
        (3501, False, [Level.WARNING]),
        (9000, True, [Level.NOTE]),
        (9000, None, [Level.NOTE]),
    ],
)
def test_a_large_mtu_needs_frags(mtu: int, frags: bool | None, levels: list[Level]) -> None:
    found = of_device(replace(GOOD, mtu=mtu), replace(HOST, xdp_frags=frags))
    assert [level for level, _ in bad(found)] == levels


@pytest.mark.parametrize(
    ("channels", "expected"),
    [
        (Channels(combined=4, max_combined=8), []),
        (Channels(combined=1, max_combined=8), [(Level.WARNING, "ethtool -L eth0 combined 4")]),
        (Channels(combined=1, max_combined=2), [(Level.WARNING, "ethtool -L eth0 combined 2")]),
        (Channels(rx=2, tx=4, max_rx=4, max_tx=4), [(Level.WARNING, "ethtool -L eth0 rx 4")]),
        (Channels(rx=4, tx=1, max_rx=4, max_tx=4), [(Level.WARNING, "ethtool -L eth0 tx 4")]),
        (None, []),
    ],
)
def test_queues_and_cpus(channels: Channels | None, expected: list[tuple[Level, str]]) -> None:
    facts = replace(HOST, cpus=4)
    assert bad(of_device(replace(GOOD, channels=channels), facts)) == expected


def test_a_device_without_more_queues_gets_no_command() -> None:
    ((level, remedy),) = bad(
        of_device(replace(GOOD, channels=Channels(combined=1, max_combined=1)))
    )
    assert level is Level.NOTE
    assert "ethtool" not in remedy


@pytest.mark.parametrize("kind", ["bridge", "macvlan", "dummy"])
def test_kinds_without_native_xdp(kind: str) -> None:
    (mode,) = of_device(replace(GOOD, kind=kind, driver=kind, channels=None))
    assert mode.level is Level.NOTE
    assert f"{kind} has no native XDP" in mode.what
    assert "tc ingress" in mode.why


def test_lo_has_no_native_xdp() -> None:
    (mode,) = of_device(replace(GOOD, driver="", loopback=True, mtu=65536, channels=None))
    assert "lo has no native XDP" in mode.what


def test_a_bond_goes_by_its_ports_and_a_vlan_by_what_it_sits_on() -> None:
    (bond,) = of_device(replace(GOOD, kind="bond", driver="bonding", ports=("eth1", "eth2")))
    assert (bond.level, "eth1, eth2" in bond.what) == (Level.OK, True)
    (vlan,) = of_device(replace(GOOD, kind="vlan", driver="802.1Q", lower="eth9", mtu=9000))
    assert (vlan.level, "is on eth9" in vlan.what) == (Level.OK, True)


def test_an_unknown_driver_is_a_note() -> None:
    (mode,) = of_device(replace(GOOD, driver="e1000e"))
    assert (mode.level, "not known" in mode.what) == (Level.NOTE, True)


@pytest.mark.parametrize(
    ("place", "level"),
    [(Place.NATIVE, Level.OK), (Place.TC, Level.NOTE), (Place.GENERIC, Level.NOTE)],
)
def test_our_own_program_says_where_it_runs(place: Place, level: Level) -> None:
    ours = AttachedProgram(place, 7, "lbdr_xdp", ours=True)
    (mode,) = of_device(replace(GOOD, programs=(ours,)))
    assert (mode.level, f"runs as {place}" in mode.what) == (level, True)
    # where the driver can no better, it is as good as it gets
    (mode,) = of_device(replace(GOOD, driver="e1000e", programs=(ours,)))
    assert mode.level is Level.OK


def test_somebody_elses_xdp_program() -> None:
    theirs = AttachedProgram(Place.NATIVE, 42, "katran", ours=False, holders=("kat (pid 9)",))
    (found,) = [each for each in of_device(replace(GOOD, programs=(theirs,))) if each.why]
    assert found.level is Level.WARNING
    assert found.what == "program 42 (katran) is attached as native XDP, held by kat (pid 9)"
    assert "ip link set dev eth0 xdp off" in found.remedy
    unknown = replace(theirs, ours=None, name=None, holders=())
    (found,) = [each for each in of_device(replace(GOOD, programs=(unknown,))) if each.why]
    assert (found.level, "without root" in found.what) == (Level.NOTE, True)


def test_rp_filter_martians_and_promiscuity_are_notes() -> None:
    loose = replace(GOOD, sysctls={"rp_filter": 2, "log_martians": 0})
    assert bad(of_device(loose)) == []
    strict = replace(GOOD, promiscuous=True, sysctls={"rp_filter": 1, "log_martians": 1})
    assert [level for level, _ in bad(of_device(strict))] == [Level.NOTE] * 3


@pytest.mark.parametrize(
    ("service", "ipvs", "level"),
    [
        (MH, Ipvs.LOADABLE, Level.OK),
        (MH, Ipvs.UNKNOWN, Level.NOTE),
        (MH, Ipvs.ABSENT, Level.WARNING),
        (replace(MH, scheduler="wlc"), Ipvs.ABSENT, Level.FAULT),
        (replace(MH, persistence=Persistence(300, 32)), Ipvs.ABSENT, Level.FAULT),
        (replace(MH, scheduler="wlc", forwarding=Forwarding.PROXY), Ipvs.ABSENT, Level.WARNING),
    ],
)
def test_a_kernel_without_ipvs(service: VirtualService, ipvs: Ipvs, level: Level) -> None:
    found = findings(replace(HOST, ipvs=ipvs), service)
    assert next(each.level for each in found if each.subject == "ipvs") is level


def test_the_table_size_matters_to_mh_alone() -> None:
    unknown = replace(HOST, mh_table_size=None)
    assert [level for level, _ in bad(findings(unknown))] == [Level.NOTE]
    assert bad(findings(unknown, replace(MH, scheduler="wlc"))) == []


def test_ipvs_sysctls_that_differ() -> None:
    name, sloppy = "net.ipv4.vs.conntrack", "net.ipv4.vs.sloppy_tcp"
    facts = replace(HOST, sysctls={**JIT, name: "1", sloppy: "1"}, wanted_sysctls={name: "0"})
    assert bad(findings(facts)) == [
        (Level.NOTE, f"lbdr daemon, or once: sysctl -w {name}=0"),
        (Level.WARNING, f"sysctl -w {sloppy}=0"),
    ]
    assert bad(findings(replace(facts, wanted_sysctls={name: "1", sloppy: "1"}))) == []


@pytest.mark.parametrize(
    ("chain", "expected"),
    [
        (CHAIN, (Level.WARNING, "(input) has 3 rules, policy drop")),
        (replace(CHAIN, rules=1, drops=False), (Level.WARNING, "(input) has 1 rule")),
        (replace(CHAIN, rules=0), (Level.WARNING, "(input) has 0 rules, policy drop")),
        (replace(CHAIN, rules=None, drops=False), (Level.WARNING, "(input) has rules")),
        (replace(CHAIN, kind="nat"), (Level.NOTE, "(input) has 3 rules, policy drop")),
        (replace(CHAIN, rules=0, drops=False), (Level.OK, "that the fast path bypasses")),
    ],
)
def test_firewall_chains(chain: FirewallChain, expected: tuple[Level, str]) -> None:
    found = findings(replace(HOST, firewall=(chain,)))
    (finding,) = [each for each in found if each.subject == "firewall"]
    assert finding.level is expected[0]
    assert finding.what.endswith(expected[1])


def test_what_was_not_seen_is_said_and_not_called_good() -> None:
    facts = replace(HOST, firewall_seen=False, not_seen=(("nftables rules", "not permitted"),))
    found = findings(facts)
    assert not [each for each in found if each.subject == "firewall"]
    assert found[-1].what == "nftables rules: not permitted"
    assert found[-1].level is Level.NOTE


@pytest.mark.parametrize(
    ("facts", "level", "words"),
    [
        (replace(HOST, bpffs=False), Level.WARNING, "mount -t bpf bpf /sys/fs/bpf"),
        (
            replace(HOST, sysctls={**JIT, "net.core.bpf_jit_enable": "0"}),
            Level.WARNING,
            "sysctl -w net.core.bpf_jit_enable=1",
        ),
        (replace(HOST, config={"CONFIG": "y"}), Level.WARNING, "CONFIG_BPF_JIT"),
        (
            replace(HOST, sysctls={**JIT, "kernel.unprivileged_bpf_disabled": "0"}),
            Level.WARNING,
            "sysctl -w kernel.unprivileged_bpf_disabled=1",
        ),
        (replace(HOST, sysctls={}), Level.NOTE, "sysctl net.core.bpf_jit_enable"),
        (replace(HOST, memlock=64 << 10), Level.WARNING, "ulimit -l unlimited"),
        (replace(HOST, lockdown="confidentiality"), Level.NOTE, ""),
        (replace(HOST, xdp_link=True, tcx=False), Level.NOTE, ""),
    ],
)
def test_bpf(facts: HostFacts, level: Level, words: str) -> None:
    ((found, remedy),) = bad(findings(facts))
    assert found is level
    assert words in remedy


# --- the command ----------------------------------------------------------------------------------

CONFIG = """\
real_servers:
  web1: {address: 192.0.2.21}
virtual_services:
  WEB:
    address: 192.0.2.10
    ports: [80]
    scheduler: mh
    forwarding: dr
    real_servers: [web1]
"""
GOLDEN = """\
ok       eth0: NIC, driver ixgbe (VIP 192.0.2.10): native XDP is likely
fault    eth0: LRO is on
         why: it merges frames into ones that can be neither forwarded nor split again, and drivers
              refuse native XDP with it
         do:  ethtool -K eth0 lro off
ok       ipvs: loaded
ok       ipvs: mh tables have 4093 slots
warning  firewall: nft chain inet filter input (input) has 3 rules, policy drop
         why: IPVS obeys them, the fast path runs before them: packets of VIPs are not filtered
              there
         do:  read them (`nft list chain inet filter input`); what is to hold for VIPs belongs
              before the director, or on the real servers
ok       bpf: /sys/fs/bpf is a BPF file system
ok       bpf: the JIT compiler is on

1 fault, 1 warning, 0 notes, 5 ok; Linux 6.1.0, 2 CPUs
"""


def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, facts: HostFacts, *options: str) -> Result:
    """Run the command on made-up facts."""
    file = tmp_path / "lbdr.yaml"
    file.write_text(CONFIG)
    monkeypatch.setattr(lbdr.datapath.addresses, "observe_network", lambda: NETWORK)
    monkeypatch.setattr(lbdr.datapath.host_facts, "gather", lambda *_: facts)
    return CliRunner().invoke(command, ["doctor", "-c", str(file), *options])


def test_the_text_of_a_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lro = replace(GOOD, features={"rx-lro": Feature(active=True, changeable=True)})
    result = run(monkeypatch, tmp_path, replace(HOST, devices=(lro,), firewall=(CHAIN,)))
    assert result.output == GOLDEN
    assert result.exit_code == 1


def test_json_and_a_clean_exit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    result = run(monkeypatch, tmp_path, replace(HOST, firewall=(CHAIN,)), "--json")
    said = json.loads(result.output)
    assert said["counts"] == {"ok": 5, "note": 0, "warning": 1, "fault": 0}
    assert {each["level"] for each in said["findings"]} == {"ok", "warning"}
    assert said["devices"][0]["channels"]["combined"] == 2
    assert result.exit_code == 0


def test_counts_name_every_level() -> None:
    assert counts([]) == dict.fromkeys(Level, 0)


def test_help_has_examples() -> None:
    assert "lbdr doctor --json | jq" in CliRunner().invoke(command, ["doctor", "--help"]).output
