"""Gathers what `lbdr doctor` judges; reads only, loads no module, and works without root.

What cannot be looked at is said in HostFacts.not_seen. It is the calling thread's network
namespace that is looked at.
"""

from __future__ import annotations

import gzip
import os
import re
import resource
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from lbdr.datapath import bpf_attached, ethtool, firewall, sysctl
from lbdr.datapath.bpf_features import Features, probe
from lbdr.datapath.bpf_fs import on_bpffs
from lbdr.datapath.mh_check import table_index
from lbdr.doctor_devices import FEATURES
from lbdr.doctor_facts import Device, HostFacts, Ipvs
from lbdr.errors import KernelError, LbdrError
from lbdr.maglev import TABLE_SIZES

T = TypeVar("T")

_IFF_LOOPBACK = 0x8
_BPFFS = Path("/sys/fs/bpf")
_IPVS_TABLE = Path("/proc/thread-self/net/ip_vs")
_LOCKDOWN = Path("/sys/kernel/security/lockdown")
_OPTION = re.compile(rb"^(CONFIG_(?:BPF_JIT|BPF_JIT_ALWAYS_ON|IP_VS))=([ym])$", re.MULTILINE)
_COUNTED_BY_CGROUP = (5, 11)  # Linux from which BPF memory is no locked memory
_SYSCTLS = ("net.core.bpf_jit_enable", "kernel.unprivileged_bpf_disabled")
_MARTIANS = ("rp_filter", "log_martians")


def gather(uses: Mapping[str, tuple[str, ...]], wanted_sysctls: Mapping[str, str]) -> HostFacts:
    """Look at everything.

    Args:
        uses: the interfaces that matter, and what for; devices below them are looked at as well.
        wanted_sysctls: what the director of this configuration sets.

    Raises:
        KernelError: the kernel refuses even to list its interfaces.
    """
    not_seen: list[tuple[str, str]] = []
    devices = tuple(_devices(uses, not_seen))
    found = _seen("what BPF programs can be attached", not_seen, probe)
    features = found if isinstance(found, Features) else None
    names = (*_SYSCTLS, *wanted_sysctls, "net.ipv4.vs.sloppy_tcp")
    sysctls = {
        name: _seen(f"sysctl {name}", not_seen, partial(sysctl.read, name)) for name in names
    }
    config = kernel_config()
    index = table_index()
    nftables = _seen("nftables rules", not_seen, firewall.nft_chains)
    legacy = _seen("legacy iptables rules", not_seen, firewall.legacy_chains)
    return HostFacts(
        kernel=os.uname().release,
        cpus=os.sysconf("SC_NPROCESSORS_ONLN"),
        devices=devices,
        ipvs=_ipvs(config),
        mh_table_size=TABLE_SIZES[index - 8] if index is not None else None,
        sysctls=sysctls,
        wanted_sysctls=wanted_sysctls,
        firewall=(*(nftables or ()), *(legacy or ())),
        firewall_seen=nftables is not None and legacy is not None,
        bpffs=_seen(str(_BPFFS), not_seen, partial(on_bpffs, _BPFFS)),
        xdp_frags=features.xdp_frags if features else None,
        xdp_link=features.xdp_link if features else None,
        tcx=features.tcx_link if features else None,
        config=config,
        lockdown=_lockdown(),
        memlock=_memlock(),
        not_seen=tuple(not_seen),
    )


def _seen(what: str, not_seen: list[tuple[str, str]], look: Callable[[], T]) -> T | None:
    """What a look gives; None and a word about it where it is refused."""
    try:
        return look()
    except LbdrError as error:
        hint = f" ({error.hint})" if error.hint else ""
        not_seen.append((what, error.message + hint))
        return None


# --- devices ------------------------------------------------------------------------------------


def _devices(
    uses: Mapping[str, tuple[str, ...]], not_seen: list[tuple[str, str]]
) -> Iterator[Device]:
    try:
        with IPRoute() as route:
            links = {link["index"]: link for link in route.get_links()}
    except NetlinkError as error:
        raise KernelError("ip link show", errno=error.code) from error
    names = {index: str(link.get_attr("IFLA_IFNAME")) for index, link in links.items()}
    wanted: dict[int, list[str]] = {}
    pending = [(index, word) for index, name in names.items() for word in uses.get(name, ())]
    while pending:
        index, word = pending.pop(0)
        known = wanted.setdefault(index, [])
        if word not in known:
            known.append(word)
            pending += [(below, f"under {names[index]}") for below in _below(links, index)]
    for index, words in wanted.items():
        look = partial(_device, links, names, index, words, not_seen)
        device = _seen(names[index], not_seen, look)
        if device is not None:
            yield device


def _below(links: Mapping[int, Any], index: int) -> list[int]:
    """The devices that carry a VLAN device's or a bond's frames."""
    kind = _kind(links[index])
    if kind == "vlan":
        lower = links[index].get_attr("IFLA_LINK")
        # in another namespace it is not seen here, or its number is another device's
        there = lower in links and links[index].get_attr("IFLA_LINK_NETNSID") is None
        return [lower] if there else []
    if kind == "bond":
        return [port for port, link in links.items() if link.get_attr("IFLA_MASTER") == index]
    return []


def _kind(link: Any) -> str:
    return str(link.get(("linkinfo", "kind")) or "")


def _device(
    links: Mapping[int, Any],
    names: Mapping[int, str],
    index: int,
    uses: Iterable[str],
    not_seen: list[tuple[str, str]],
) -> Device:
    link, name, kind = links[index], names[index], _kind(links[index])
    below = _below(links, index)
    features = ethtool.features(name)
    return Device(
        name=name,
        kind=kind,
        driver=ethtool.driver(name),
        mtu=link.get_attr("IFLA_MTU"),
        uses=tuple(uses),
        loopback=bool(link["flags"] & _IFF_LOOPBACK),
        lower=names[below[0]] if kind == "vlan" and below else "",
        vlans=tuple(
            names[above]
            for above, other in links.items()
            if _kind(other) == "vlan" and index in _below(links, above)
        ),
        ports=tuple(
            names[port] for port, other in links.items() if other.get_attr("IFLA_MASTER") == index
        ),
        features={key: features[key] for key in FEATURES if key in features},
        channels=ethtool.channels(name),
        programs=bpf_attached.programs(index, not_seen),
        promiscuous=bool(link.get_attr("IFLA_PROMISCUITY")),
        sysctls={setting: _effective(name, setting) for setting in _MARTIANS},
    )


def _effective(name: str, setting: str) -> int | None:
    """The greater one of `all` and the interface (Documentation/networking/ip-sysctl.rst)."""
    values = [
        sysctl.read(f"net.ipv4.conf.{each.replace('.', '/')}.{setting}") for each in ("all", name)
    ]
    return max((int(value) for value in values if value is not None), default=None)


# --- the host -----------------------------------------------------------------------------------


def kernel_config() -> dict[str, str]:
    """The running kernel's build options that matter, `y` or `m`; empty where no file tells."""
    release = os.uname().release
    for file in (Path("/proc/config.gz"), Path(f"/boot/config-{release}")):
        try:
            text = file.read_bytes()
            text = gzip.decompress(text) if file.suffix == ".gz" else text
        except (OSError, EOFError, zlib.error):
            continue  # not there, or not readable: the next one may tell
        found = {"CONFIG": "y"}  # told, whatever is in it
        return found | {name.decode(): value.decode() for name, value in _OPTION.findall(text)}
    return {}


def ipvs_here() -> Ipvs:
    """Whether this kernel has IPVS, as far as can be seen without loading it."""
    return _ipvs(kernel_config())


def _ipvs(config: Mapping[str, str]) -> Ipvs:
    if _IPVS_TABLE.exists():
        return Ipvs.LOADED
    modules = Path("/lib/modules", os.uname().release, "modules.dep")
    try:
        return Ipvs.LOADABLE if "/ip_vs.ko" in modules.read_text() else Ipvs.ABSENT
    except OSError:
        return Ipvs.ABSENT if config and "CONFIG_IP_VS" not in config else Ipvs.UNKNOWN


def _lockdown() -> str | None:
    try:
        found = re.search(r"\[(\w+)\]", _LOCKDOWN.read_text())
    except OSError:
        return None
    return found[1] if found else None


def _memlock() -> int | None:
    release = tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2])
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    limited = release < _COUNTED_BY_CGROUP and soft != resource.RLIM_INFINITY
    return soft if limited else None
