"""What doctor sees on a kernel with IPVS, VLANs and bonds, which the host's kernel may not have."""

from __future__ import annotations

from pathlib import Path

import pytest

from lbdr.datapath.host_facts import gather
from lbdr.doctor_facts import Ipvs
from tests.directors import run

pytestmark = pytest.mark.usefixtures("namespace")


def links(*commands: str) -> None:
    for command in commands:
        run("ip", "link", *command.split())


def test_a_vlan_brings_what_it_sits_on() -> None:
    links(
        "add nic type veth peer name peer",
        "add link nic name nic.5 type vlan id 5",
        "add link nic.5 name inner type vlan id 6",
    )
    inner, outer, nic = gather({"inner": ("VIP",)}, {}).devices
    assert (inner.name, inner.kind, inner.lower) == ("inner", "vlan", "nic.5")
    assert (outer.name, outer.lower, outer.uses) == ("nic.5", "nic", ("under inner",))
    assert (nic.name, nic.lower, nic.uses) == ("nic", "", ("under nic.5",))
    assert nic.vlans == ("nic.5",)
    assert nic.has("rx-vlan-hw-parse")
    run("ethtool", "-K", "nic", "rxvlan", "off")
    assert not gather({"nic": ("VIP",)}, {}).devices[0].has("rx-vlan-hw-parse")


def test_a_bond_brings_its_ports() -> None:
    links(
        "add bond7 type bond",
        "add port type veth peer name peer",
        "set port master bond7",
        "add dummy7 type dummy",
    )
    bond, dummy, port = gather({"bond7": ("VIP",), "dummy7": ("VIP",)}, {}).devices
    assert (bond.kind, bond.driver, bond.ports) == ("bond", "bonding", ("port",))
    assert (dummy.kind, dummy.driver) == ("dummy", "dummy")
    assert (port.name, port.uses) == ("port", ("under bond7",))


def test_ipvs_its_table_and_its_sysctls() -> None:
    run("modprobe", "ip_vs")
    name = "net.ipv4.vs.conntrack"
    Path("/proc/sys", *name.split(".")).write_text("1")
    facts = gather({}, {name: "0"})
    assert facts.ipvs is Ipvs.LOADED
    assert facts.sysctls[name] == "1"
    assert facts.wanted_sysctls[name] == "0"
    assert facts.firewall == ()  # a kernel without nftables has no chains of it
    assert [what for what, _ in facts.not_seen] == []
