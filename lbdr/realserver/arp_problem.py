"""The ARP problem of a real server: what is wrong, and what solves it. Pure.

A real server holds the VIP so that it accepts the director's packets, and must stay silent about
it: no answer to a who-has for it, no request of its own in its name. Sources: net/ipv4/arp.c
(arp_ignore, arp_solicit), include/linux/inetdevice.h (IN_DEV_MAXCONF), net/ipv4/fib_frontend.c
(__fib_validate_source).
"""

from __future__ import annotations

from collections.abc import Sequence

from lbdr.model import Address, InterfaceAddress, VirtualAddress
from lbdr.operations import AddAddress, SetSysctl
from lbdr.realserver.findings import Finding, ServerState, Severity, conf
from lbdr.realserver.vip_place import judge_place

ARP_IGNORE_SILENT = frozenset({1, 2, 8})
"""Effective values under which no NIC answers for an address of another interface (arp_ignore()).

3 is silent about addresses of scope host only, which a VIP is not when `ip address add` or lbdr
made it; 4 to 7 are reserved and, as everything above 8, count as 0.
"""
ARP_ANNOUNCE_SAFE = 2  # all other values, greater ones too, can name the VIP (arp_solicit())
_STRICT = 1  # rp_filter
_LATER = "every NIC that comes (there is none now)"


def judge(state: ServerState, vips: Sequence[VirtualAddress]) -> list[Finding]:
    """Everything that is wrong with the VIPs on this real server, and what only looks right.

    Args:
        state: what was observed.
        vips: the VIPs, each with the interface that it is to go to when it is missing.

    Returns:
        Errors in the order in which one would put them right, then notes; the problem is solved
        when there is no error among them.
    """
    findings: list[Finding] = []
    ipv4 = tuple(vip.address for vip in vips if vip.address.version == 4)
    if ipv4:
        findings += _judge_arp_ignore(state, ipv4)
        findings += _judge_arp_announce(state, ipv4)
        findings += _judge_rp_filter(state)
    for vip in vips:
        findings += judge_place(state, vip)
    if any(finding.code in {"arp-ignore", "arp-announce"} for finding in findings):
        findings += _look_alikes(state, vips)
    elif ipv4:
        findings += _later_interfaces(state)
    return sorted(findings, key=lambda finding: finding.severity is Severity.NOTE)


def solution(state: ServerState, vips: Sequence[VirtualAddress]) -> list[SetSysctl | AddAddress]:
    """What puts every fixable finding right, in order: sysctls before addresses.

    The other order would have the host answer for its VIP in between. arp_ignore and arp_announce
    are set for `all`, because the VIP on lo belongs to the whole host: any NIC would answer for it,
    one that is plugged in tomorrow too. rp_filter is set for the NICs one by one: `all` would make
    a filter of NICs that have none.

    Args:
        state: what was observed.
        vips: the VIPs, each with the interface that it is to go to when it is missing.
    """
    operations: list[SetSysctl | AddAddress] = []
    for finding in judge(state, vips):
        if not finding.fixable or finding.severity is Severity.NOTE:
            continue
        if finding.code == "arp-ignore":
            operations.append(SetSysctl(conf("all", "arp_ignore"), "1"))
        elif finding.code == "arp-announce":
            operations.append(SetSysctl(conf("all", "arp_announce"), str(ARP_ANNOUNCE_SAFE)))
        elif finding.code == "rp-filter":
            operations += [SetSysctl(conf(nic, "rp_filter"), "2") for nic in finding.interfaces]
        elif finding.code == "vip-missing":
            operations += [AddAddress(vip) for vip in vips if vip.address in finding.vips]
    return list(dict.fromkeys(operations))


def _by_effective_value(state: ServerState, setting: str) -> dict[int, tuple[str, ...]]:
    groups: dict[int, tuple[str, ...]] = {}
    if not state.nics:  # one will come: in a container, or early at boot
        return {state.value(conf("all", setting)): ()}
    for nic in state.nics:
        value = state.effective(setting, nic)
        groups[value] = (*groups.get(value, ()), nic)
    return dict(sorted(groups.items()))


def _culprits(state: ServerState, setting: str, nics: tuple[str, ...], value: int) -> str:
    """The sysctl commands that lower a value, which lbdr leaves to the administrator."""
    wanted = 1 if setting == "arp_ignore" else ARP_ANNOUNCE_SAFE
    names = [conf("all", setting)] if state.value(conf("all", setting)) == value else []
    names += [conf(nic, setting) for nic in nics if state.value(conf(nic, setting)) == value]
    return "; ".join(f"sysctl -w {name}={wanted}" for name in names)


def _judge_arp_ignore(state: ServerState, vips: tuple[Address, ...]) -> list[Finding]:
    findings = []
    for value, nics in _by_effective_value(state, "arp_ignore").items():
        if value in ARP_IGNORE_SILENT:
            continue
        on = ", ".join(nics) or _LATER
        if value <= 0:
            findings.append(
                Finding(
                    "arp-ignore",
                    f"arp_ignore is 0 on {on}: a who-has for any address of this host is answered "
                    "there, the VIP on another interface included",
                    f"sysctl -w {conf('all', 'arp_ignore')}=1",
                    vips=vips,
                    interfaces=nics,
                )
            )
            continue
        why = (
            "which is silent about addresses of scope host only; a VIP has scope global"
            if value == 3
            else "which the kernel reserves or does not know, and treats as 0: it answers"
        )
        findings.append(
            Finding(
                "arp-ignore",
                f"arp_ignore is {value} on {on} (the greater one of all and the interface), {why}",
                f"lbdr never lowers a value: {_culprits(state, 'arp_ignore', nics, value)}",
                fixable=False,
                vips=vips,
                interfaces=nics,
            )
        )
    return findings


def _judge_arp_announce(state: ServerState, vips: tuple[Address, ...]) -> list[Finding]:
    findings = []
    for value, nics in _by_effective_value(state, "arp_announce").items():
        if value == ARP_ANNOUNCE_SAFE:
            continue
        on = ", ".join(nics) or _LATER
        why = {
            0: "an ARP request for an answer to a client is sent in the VIP's name",
            1: "a VIP in the subnet of that interface is still used as the sender of ARP requests",
        }.get(value, "which the kernel does not know, and treats as 0")
        too_high = value > ARP_ANNOUNCE_SAFE
        culprits = _culprits(state, "arp_announce", nics, value)
        findings.append(
            Finding(
                "arp-announce",
                f"arp_announce is {value} on {on}: {why}; every neighbour that hears one sends the "
                "VIP's traffic to this host, past the director",
                f"lbdr never lowers a value: {culprits}"
                if too_high
                else f"sysctl -w {conf('all', 'arp_announce')}={ARP_ANNOUNCE_SAFE}",
                fixable=not too_high,
                vips=vips,
                interfaces=nics,
            )
        )
    return findings


def _judge_rp_filter(state: ServerState) -> list[Finding]:
    addressed = [nic for nic in state.nics if _subnets(state, nic)]
    strict = tuple(nic for nic in addressed if state.effective("rp_filter", nic) == _STRICT)
    if len(addressed) < 2 or not strict:
        return []
    return [
        Finding(
            "rp-filter",
            f"rp_filter is 1 (strict) on {', '.join(strict)}, and this host has IPv4 addresses on "
            f"{len(addressed)} interfaces: a client's packet that the director sends to one of "
            "them is dropped when the route back to the client leaves by another",
            "; ".join(f"sysctl -w {conf(nic, 'rp_filter')}=2" for nic in strict),
            interfaces=strict,
        )
    ]


def _subnets(state: ServerState, interface: str) -> list[InterfaceAddress]:
    return [
        own
        for own in state.network.interfaces[interface].addresses
        if own.version == 4 and own.network.prefixlen < 32
    ]


def _look_alikes(state: ServerState, vips: Sequence[VirtualAddress]) -> list[Finding]:
    """Settings that are there, seem to be the solution, and are none."""
    places = dict.fromkeys(["lo", *(vip.interface for vip in vips)])
    reasons = {
        **{
            place: f"ARP requests arrive on a NIC, never on {place}"
            for place in places
            if place in state.quiet
        },
        "default": "it is only what interfaces that are made later begin with",
    }
    return [
        Finding(
            "looks-right",
            f"{conf(name, setting)}={state.value(conf(name, setting))} has no effect: {why}",
            severity=Severity.NOTE,
            interfaces=() if name == "default" else (name,),
        )
        for name, why in reasons.items()
        for setting in ("arp_ignore", "arp_announce")
        if state.value(conf(name, setting)) > 0
    ]


def _later_interfaces(state: ServerState) -> list[Finding]:
    settings = {
        "arp_ignore": state.value(conf("all", "arp_ignore")) in ARP_IGNORE_SILENT,
        "arp_announce": state.value(conf("all", "arp_announce")) == ARP_ANNOUNCE_SAFE,
    }
    wanted = {"arp_ignore": 1, "arp_announce": ARP_ANNOUNCE_SAFE}
    return [
        Finding(
            "later-interfaces",
            f"{setting} is set for each NIC and not for all: a NIC that comes later (a VLAN, a "
            "hot-plugged one) has only what conf.default gives it",
            f"sysctl -w {conf('all', setting)}={wanted[setting]}",
            severity=Severity.NOTE,
        )
        for setting, safe in settings.items()
        if not safe
    ]
