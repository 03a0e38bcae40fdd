"""The firewall's chains that packets pass before IPVS has them; reads only, loads no module.

Sources: include/uapi/linux/netfilter/nf_tables.h, linux/netfilter.h (hook numbers),
linux/netfilter_ipv4/ip_tables.h (struct ipt_getinfo); net/netfilter/ipvs/ip_vs_core.c: IPVS takes a
packet at LOCAL_IN, behind the filter table.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.nftables.main import NFTables

from lbdr.doctor_facts import FirewallChain
from lbdr.errors import KernelError, PrivilegeError

_FAMILIES = {1: "inet", 2: "ip", 5: "netdev", 7: "bridge", 10: "ip6"}
_HOOKS = {0: "prerouting", 1: "input", 5: "ingress"}
_DROP = 0
_META_MARK = (3, "NFT_META_MARK")
_ABSENT = (errno.EINVAL, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT)
_GET_INFO = 64  # IPT_SO_GET_INFO and IP6T_SO_GET_INFO
_INFO = struct.Struct("=32sI5I5III")
_PREROUTING, _INPUT = 0, 1
_LEGACY = {
    "ip_tables_names": (socket.AF_INET, socket.IPPROTO_IP, "iptables-legacy"),
    "ip6_tables_names": (socket.AF_INET6, socket.IPPROTO_IPV6, "ip6tables-legacy"),
}
_libc = ctypes.CDLL(None, use_errno=True)


def nft_chains() -> tuple[FirewallChain, ...]:
    """The chains of nftables at those hooks, iptables-nft's among them.

    Raises:
        PrivilegeError: the caller lacks CAP_NET_ADMIN.
        KernelError: the kernel refuses to list them.
    """
    if _unloaded("nf_tables"):
        return ()
    try:
        with NFTables(nfgen_family=0) as nftables:
            chains = list(nftables.get_chains())
            every = list(nftables.get_rules())
    except NetlinkError as error:
        return _refused(error.code)
    except OSError as error:
        return _refused(error.errno or 0)
    rules = Counter(
        (
            rule["nfgen_family"],
            rule.get_attr("NFTA_RULE_TABLE"),
            rule.get_attr("NFTA_RULE_CHAIN"),
        )
        for rule in every
    )
    marking = {
        (rule["nfgen_family"], rule.get_attr("NFTA_RULE_TABLE"))
        for rule in every
        if _is_about_marks(rule)
    }
    return tuple(_nft_chains(chains, rules, marking))


def _is_about_marks(rule: Any) -> bool:
    """Whether a rule sets or matches packet marks, also by a module of iptables-nft."""
    for expression in rule.get_attr("NFTA_RULE_EXPRESSIONS") or ():
        kind, data = expression.get_attr("NFTA_EXPR_NAME"), expression.get_attr("NFTA_EXPR_DATA")
        if data is None:
            continue
        if kind == "meta" and data.get_attr("NFTA_META_KEY") in _META_MARK:
            return True
        name = {"match": "NFTA_MATCH_NAME", "target": "NFTA_TARGET_NAME"}.get(kind)
        if name is not None and data.get_attr(name) in ("mark", "MARK", "CONNMARK"):
            return True
    return False


def _refused(number: int) -> tuple[FirewallChain, ...]:
    """No chains where the kernel has no nftables, else an error."""
    if number in _ABSENT:
        return ()
    if number == errno.EPERM:
        raise PrivilegeError("nft list ruleset: not permitted", hint="run as root (CAP_NET_ADMIN)")
    raise KernelError("nft list ruleset", errno=number)


def _nft_chains(
    chains: list[Any], rules: Counter[Any], marking: Collection[Any]
) -> Iterator[FirewallChain]:
    for chain in chains:
        hook = chain.get_attr("NFTA_CHAIN_HOOK")
        family = _FAMILIES.get(chain["nfgen_family"])
        if hook is None or family is None:
            continue  # no base chain: its rules count where they are jumped to
        number = hook.get_attr("NFTA_HOOK_HOOKNUM")
        name = "ingress" if family == "netdev" and number == 0 else _HOOKS.get(number)
        if name is None or (family == "netdev" and number != 0):
            continue
        table, label = chain.get_attr("NFTA_CHAIN_TABLE"), chain.get_attr("NFTA_CHAIN_NAME")
        yield FirewallChain(
            where=f"nft chain {family} {table} {label}",
            hook=name,
            kind=chain.get_attr("NFTA_CHAIN_TYPE") or "filter",
            rules=rules[chain["nfgen_family"], table, label],
            drops=chain.get_attr("NFTA_CHAIN_POLICY") == _DROP,
            listing=f"nft list chain {family} {table} {label}",
            marks=(chain["nfgen_family"], table) in marking,
        )


def _unloaded(module: str) -> bool:
    """Whether it is a module that nobody has loaded, and that asking would load."""
    dependencies = Path("/lib/modules", os.uname().release, "modules.dep")
    try:
        is_module = f"/{module}.ko" in dependencies.read_text()
    except OSError:
        return False
    return is_module and not Path("/sys/module", module).exists()


def legacy_chains() -> tuple[FirewallChain, ...]:
    """The chains of iptables before nftables with rules; their number is not told.

    Raises:
        PrivilegeError, KernelError: they cannot be looked at.
    """
    return tuple(chain for names in _LEGACY for chain in _legacy(names))


def _legacy(names: str) -> Iterator[FirewallChain]:
    family, level, command = _LEGACY[names]
    try:
        tables = Path("/proc/thread-self/net", names).read_text().split()
    except FileNotFoundError:
        return
    except PermissionError as error:
        raise PrivilegeError(f"cat /proc/net/{names}: not permitted", hint="run as root") from error
    except OSError as error:
        raise KernelError(f"cat /proc/net/{names}", errno=error.errno or 0) from error
    for table in tables:  # only those that are there: asking for another one would make it
        entries, policies = _info(family, level, table, command)
        for hook, name in ((_PREROUTING, "PREROUTING"), (_INPUT, "INPUT")):
            if entries[hook] != policies[hook]:  # something stands before the policy
                yield FirewallChain(
                    where=f"{command} table {table} chain {name}",
                    hook=name.lower(),
                    kind="nat" if table == "nat" else "filter",
                    rules=None,
                    drops=False,
                    listing=f"{command} -t {table} -S {name}",
                    marks=table == "mangle",  # where marks are set; rules are not told
                )


def _info(
    family: int, level: int, table: str, command: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Where each hook's first rule and its policy stand in a table."""
    room = ctypes.create_string_buffer(_INFO.pack(table.encode(), *[0] * 13), _INFO.size)
    size = ctypes.c_uint32(_INFO.size)
    with socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        if _libc.getsockopt(raw.fileno(), level, _GET_INFO, room, ctypes.byref(size)):
            raise KernelError(f"{command} -t {table} -S", errno=ctypes.get_errno())
    found = _INFO.unpack(room.raw)
    valid, entries, policies = found[1], found[2:7], found[7:12]
    there = [bool(valid & 1 << hook) for hook in range(5)]
    return (
        tuple(each if is_there else 0 for each, is_there in zip(entries, there, strict=True)),
        tuple(each if is_there else 0 for each, is_there in zip(policies, there, strict=True)),
    )
