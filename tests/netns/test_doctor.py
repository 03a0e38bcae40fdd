"""What doctor sees of real devices, real firewall chains and real programs."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from netlab import INTERFACE, Lab
from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.nftables.expressions import genex, ipv4addr, verdict
from pyroute2.nftables.main import NFTables

from lbdr.datapath import ethtool
from lbdr.datapath.bpf_links import Link
from lbdr.datapath.bpf_programs import Program
from lbdr.datapath.bpf_wire import AttachPoint, ProgramKind, Verdict, XdpFlag
from lbdr.datapath.host_facts import gather
from lbdr.doctor_facts import AttachedProgram, Channels, Device, Feature, FirewallChain, Place
from lbdr.errors import KernelError
from tests.bpf_programs import returns
from tests.guest import missing

PROJECT = Path(__file__).parents[2]
NOBODY = 65534
CONFIG = """\
real_servers:
  web1: {address: 10.77.0.21}
virtual_services:
  WEB:
    address: 10.77.0.10
    ports: [80]
    scheduler: mh
    forwarding: dr
    real_servers: [web1]
"""


@pytest.fixture
def director(lab: Lab) -> Iterator[Lab]:
    """The lab, while the director's namespace is this thread's."""
    with lab.entered("director"):
        yield lab


def device(name: str) -> Device:
    """What is gathered of one device."""
    return next(each for each in gather({name: ("VIP",)}, {}).devices if each.name == name)


def program(name: str, kind: ProgramKind = ProgramKind.XDP) -> Program:
    attach = AttachPoint.XDP if kind is ProgramKind.XDP else AttachPoint.TCX_INGRESS
    return Program.load(
        returns(Verdict.PASS if kind is ProgramKind.XDP else -1), kind, name=name, attach=attach
    )


# --- ethtool --------------------------------------------------------------------------------------


def ethtool_says(lab: Lab, *arguments: str) -> str:
    return lab.run("director", ["ethtool", *arguments]).stdout


def test_driver_features_and_channels_are_those_of_ethtool(director: Lab) -> None:
    assert ethtool.driver(INTERFACE) == "veth"
    assert ethtool.driver("lo") == ""
    channels = ethtool.channels(INTERFACE)
    assert channels is not None
    told = [
        int(each) for each in re.findall(r"[RT]X:\s+(\d+)", ethtool_says(director, "-l", "eth0"))
    ]
    assert [channels.max_rx, channels.max_tx, channels.rx, channels.tx] == told
    assert ethtool.channels("lo") is None
    features = ethtool.features(INTERFACE)
    words = {"rx-lro": "large-receive-offload", "rx-vlan-hw-parse": "rx-vlan-offload"}
    for name, word in words.items():
        (state, fixed) = re.findall(
            rf"^{word}: (on|off)( \[fixed\])?", ethtool_says(director, "-k", "eth0"), re.MULTILINE
        )[0]
        assert features[name] == Feature(state == "on", not fixed), name


def test_a_feature_that_is_toggled_is_seen(director: Lab) -> None:
    for word, active in (("off", False), ("on", True)):
        ethtool_says(director, "-K", INTERFACE, "rxvlan", word)
        assert ethtool.features(INTERFACE)["rx-vlan-hw-parse"] == Feature(active, changeable=True)


@pytest.mark.parametrize("ask", [ethtool.driver, ethtool.features, ethtool.channels])
def test_a_device_that_is_not_there(director: Lab, ask: Any) -> None:  # noqa: ARG001
    with pytest.raises(KernelError) as caught:
        ask("nosuch")
    assert caught.value.errno == errno.ENODEV


# --- devices --------------------------------------------------------------------------------------


def test_a_veth_with_all_that_matters(director: Lab) -> None:
    director.ip("director", f"link set {INTERFACE} mtu 4000 promisc on")
    director.sysctl("director", f"net.ipv4.conf.{INTERFACE}.rp_filter", "2")
    director.sysctl("director", "net.ipv4.conf.all.log_martians", "1")
    found = device(INTERFACE)
    assert (found.kind, found.driver, found.mtu) == ("veth", "veth", 4000)
    assert found.promiscuous
    assert not found.loopback
    assert found.sysctls == {"rp_filter": 2, "log_martians": 1}
    assert isinstance(found.channels, Channels)
    assert found.programs == ()


def test_bridge_macvlan_and_lo(director: Lab) -> None:
    director.ip(
        "director",
        "link add br0 type bridge",
        f"link set {INTERFACE} master br0",
        "link add link br0 name m0 type macvlan",
    )
    names = ("br0", "m0", "lo")
    found = {each.name: each for each in gather(dict.fromkeys(names, ("VIP",)), {}).devices}
    assert [found[name].kind for name in names] == ["bridge", "macvlan", ""]
    assert found["br0"].ports == (INTERFACE,)
    assert found["lo"].loopback


# --- programs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [XdpFlag.NATIVE, XdpFlag.GENERIC])
def test_somebody_elses_xdp_program_and_who_holds_it(director: Lab, flags: XdpFlag) -> None:  # noqa: ARG001
    place = Place.NATIVE if flags is XdpFlag.NATIVE else Place.GENERIC
    with program("katran") as theirs:
        link = Link.create(theirs, socket.if_nametoindex(INTERFACE), flags=flags)
        (found,) = device(INTERFACE).programs
        assert (found.place, found.id, found.name) == (place, theirs.info().id, "katran")
        assert found.ours is False
        assert any(f"(pid {os.getpid()})" in holder for holder in found.holders), found.holders
        link.close()
        assert device(INTERFACE).programs == ()


def test_our_own_programs_are_ours(director: Lab) -> None:  # noqa: ARG001
    with program("lbdr_xdp") as ours:
        link = Link.create(ours, socket.if_nametoindex(INTERFACE))
        (found,) = device(INTERFACE).programs
        assert found == AttachedProgram(Place.NATIVE, ours.info().id, "lbdr_xdp", ours=True)
        link.close()


def test_programs_at_tc_ingress_by_links_and_by_filters(director: Lab) -> None:  # noqa: ARG001
    index = socket.if_nametoindex(INTERFACE)
    with program("theirs", ProgramKind.SCHED_CLS) as theirs:
        with IPRoute() as route:
            route.tc("add", "clsact", index)
            options = {"fd": theirs.fd, "name": "theirs", "parent": "ffff:fff2"}
            route.tc("add-filter", "bpf", index, ":1", classid=1, direct_action=True, **options)
        expected = [(Place.TC, theirs.info().id)]
        assert [(each.place, each.id) for each in device(INTERFACE).programs] == expected
        try:
            link = Link.create(theirs, index, AttachPoint.TCX_INGRESS)
        except KernelError as error:
            missing(f"no tcx: {error}")
        assert [(each.place, each.id) for each in device(INTERFACE).programs] == expected * 2
        link.close()


# --- firewall -------------------------------------------------------------------------------------


def test_nft_chains_at_input_and_not_those_that_matter_to_nobody(director: Lab) -> None:  # noqa: ARG001
    assert gather({}, {}).firewall == ()
    with NFTables(nfgen_family=2) as nftables:
        try:
            nftables.table("add", name="mine")
        except NetlinkError as error:
            missing(f"this kernel has no nftables: {error}")
        for name, hook in (("in", "input"), ("out", "output"), ("early", "prerouting")):
            nftables.chain("add", table="mine", name=name, hook=hook, type="filter", policy=1)
        for source in ("192.0.2.0/24", "198.51.100.0/24"):
            rule = (ipv4addr(src=source), verdict(code=0))
            nftables.rule("add", table="mine", chain="in", expressions=rule)
    chains = gather({}, {}).firewall
    expected = {"in": ("input", 2), "early": ("prerouting", 0)}
    assert set(chains) == {
        FirewallChain(
            f"nft chain ip mine {name}",
            hook,
            "filter",
            rules,
            drops=False,
            listing=f"nft list chain ip mine {name}",
        )
        for name, (hook, rules) in expected.items()
    }


def test_rules_about_packet_marks(director: Lab) -> None:  # noqa: ARG001
    """Of any chain of a table: base chains jump there."""
    with NFTables(nfgen_family=2) as nftables:
        try:
            nftables.table("add", name="marks")
        except NetlinkError as error:
            missing(f"this kernel has no nftables: {error}")
        nftables.table("add", name="others")
        for table in ("marks", "others"):
            nftables.chain("add", table=table, name="in", hook="input", type="filter", policy=1)
            rule = (ipv4addr(src="192.0.2.0/24"), verdict(code=0))
            nftables.rule("add", table=table, chain="in", expressions=rule)
        nftables.chain("add", table="marks", name="mine")
        load = genex("meta", {"dreg": 1, "key": 3})  # NFT_META_MARK
        nftables.rule("add", table="marks", chain="mine", expressions=([load],))
    found = {chain.where: chain.marks for chain in gather({}, {}).firewall}
    assert found == {"nft chain ip marks in": True, "nft chain ip others in": False}


def replace_filter_table(rules_at_input: int) -> None:
    """Do as `iptables-legacy -A INPUT -j DROP` does: give the kernel the whole filter table.

    Source: include/uapi/linux/netfilter_ipv4/ip_tables.h (struct ipt_replace, ipt_entry).
    """
    drop, accept = -1, -2

    def entry(target: bytes) -> bytes:
        return struct.pack("=88xHH4x16x", 112, 112 + len(target)) + target

    def standard(verdict_code: int) -> bytes:
        return entry(struct.pack("=H30xi4x", 40, verdict_code))

    error = entry(struct.pack("=H29sx30s2x", 64, b"ERROR", b"ERROR"))
    policy = 152 * rules_at_input  # where the policy of INPUT stands
    blob = standard(drop) * rules_at_input + standard(accept) * 3 + error
    hooks, policies = (
        (0, 0, policy + 152, policy + 304, 0),
        (0, policy, policy + 152, policy + 304, 0),
    )
    counters = ctypes.create_string_buffer(16 * 16)
    count = rules_at_input + 4
    head = (
        b"filter",
        0b1110,
        count,
        len(blob),
        *hooks,
        *policies,
        4,
        ctypes.addressof(counters),
    )
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        request = struct.pack("=32sIII5I5IIQ", *head) + blob
        try:
            raw.setsockopt(socket.IPPROTO_IP, 64, request)  # IPT_SO_SET_REPLACE
        except OSError as refused:
            if refused.errno != errno.ENOPROTOOPT:
                raise
            missing("this kernel has no legacy iptables")


@pytest.mark.parametrize("rules", [0, 1, 3])
def test_legacy_iptables(director: Lab, rules: int) -> None:  # noqa: ARG001
    replace_filter_table(rules)
    expected = FirewallChain(
        "iptables-legacy table filter chain INPUT",
        "input",
        "filter",
        None,
        drops=False,
        listing="iptables-legacy -t filter -S INPUT",
    )
    assert gather({}, {}).firewall == (expected,) * bool(rules)


# --- the command ----------------------------------------------------------------------------------


def doctor(lab: Lab, file: Path, *prefix: str) -> tuple[int, dict[str, Any]]:
    """Run the command on the director; its exit code and what it said."""
    argv = [*prefix, sys.executable, "-m", "lbdr", "doctor", "-c", str(file), "--json"]
    done = lab.run("director", argv, check=False, env={**os.environ, "PYTHONPATH": str(PROJECT)})
    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout)


def said(answer: dict[str, Any], subject: str) -> list[tuple[str, str]]:
    return [
        (each["level"], each["what"]) for each in answer["findings"] if each["subject"] == subject
    ]


def test_the_command_changes_nothing_and_needs_no_daemon(lab: Lab, tmp_path: Path) -> None:
    file = tmp_path / "lbdr.yaml"
    file.write_text(CONFIG)
    looks = (
        ["ip", "-d", "addr"],
        ["ethtool", "-k", INTERFACE],
        ["grep", "-rs", "", "/proc/sys/net/ipv4/conf"],
    )
    before = [lab.run("director", look).stdout for look in looks]
    code, answer = doctor(lab, file)
    assert [lab.run("director", look).stdout for look in looks] == before
    assert said(answer, INTERFACE)[0] == (
        "ok",
        "veth, driver veth (VIP 10.77.0.10, real server web1): native XDP is likely",
    )
    assert code == 0
    assert answer["counts"]["fault"] == 0
    assert said(answer, "not seen") == [], "root sees everything"


def test_a_fault_is_exit_code_1(lab: Lab, tmp_path: Path) -> None:
    file = tmp_path / "lbdr.yaml"
    file.write_text(CONFIG.replace("10.77.0.21", "10.78.0.21"))
    code, answer = doctor(lab, file)
    assert code == 1
    ((level, what),) = said(answer, "configuration")
    assert (level, "real server web1 (10.78.0.21) is in no subnet" in what) == ("fault", True)


def test_without_root_it_says_what_it_cannot_see(lab: Lab) -> None:
    # nobody else may be able to read this clone: root's user without a capability is as powerless
    nobody = ("setpriv", "--bounding-set", "-all")
    with program("katran") as theirs, lab.entered("director"):
        link = Link.create(theirs, socket.if_nametoindex(INTERFACE))
        code, answer = doctor(lab, Path(PROJECT, "examples", "demo.yaml"), *nobody)
        number = theirs.info().id
        link.close()
    assert code in (0, 1)  # 1 where the kernel has no IPVS for the example
    words = [what for _, what in said(answer, INTERFACE)]
    foreign = f"program {number} is attached as native XDP; without root it cannot be told whose"
    assert foreign in words
    unseen = " ".join(what for _, what in said(answer, "not seen"))
    for what in ("what BPF programs can be attached", "nftables rules", "run as root"):
        assert what in unseen
