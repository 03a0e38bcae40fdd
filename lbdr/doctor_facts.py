"""What `lbdr doctor` looks at: data only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class Feature:
    """A device feature, as `ethtool -k` shows it.

    Args:
        active: it is on.
        changeable: `ethtool -K` can change it; else ethtool says "fixed".
    """

    active: bool
    changeable: bool


@dataclass(frozen=True, slots=True)
class Channels:
    """Queues of a device, as `ethtool -l` shows them; a combined one receives and sends."""

    rx: int = 0
    tx: int = 0
    combined: int = 0
    max_rx: int = 0
    max_tx: int = 0
    max_combined: int = 0

    @property
    def receiving(self) -> int:
        """Queues that receive now."""
        return self.rx + self.combined

    @property
    def sending(self) -> int:
        """Queues that send now."""
        return self.tx + self.combined


class Place(StrEnum):
    """Where a BPF program is attached to a device."""

    NATIVE = "native XDP"
    GENERIC = "generic XDP"
    OFFLOADED = "offloaded XDP"
    TC = "tc ingress"


@dataclass(frozen=True, slots=True)
class AttachedProgram:
    """A program on a device.

    Args:
        place: where.
        id: the kernel's number for it.
        name: as loaded; None where this caller may not ask.
        ours: whether lbdr loaded it; None where that cannot be told.
        holders: the processes that hold it or its link, as "name (pid N)".
    """

    place: Place
    id: int
    name: str | None = None
    ours: bool | None = None
    holders: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Device:
    """An interface that matters to the director.

    Args:
        name: its name.
        kind: the kernel's word for a virtual device (bridge, vlan, veth); empty for a NIC.
        driver: as `ethtool -i` shows it; empty where it has none.
        mtu: bytes.
        uses: what it is for: VIPs, real servers, and devices above it.
        loopback: it is lo.
        lower: the device that a VLAN device sits on; empty if none.
        vlans: VLAN devices that sit on it.
        ports: the devices that a bond or bridge is made of.
        features: by the kernel's names; empty where there are none to see.
        channels: None where the driver does not tell.
        programs: attached now.
        promiscuous: it takes frames for everybody.
        sysctls: rp_filter and log_martians, as they take effect here; None where not there.
    """

    name: str
    kind: str = ""
    driver: str = ""
    mtu: int = 1500
    uses: tuple[str, ...] = ()
    loopback: bool = False
    lower: str = ""
    vlans: tuple[str, ...] = ()
    ports: tuple[str, ...] = ()
    features: Mapping[str, Feature] = field(default_factory=dict)
    channels: Channels | None = None
    programs: tuple[AttachedProgram, ...] = ()
    promiscuous: bool = False
    sysctls: Mapping[str, int | None] = field(default_factory=dict)

    def has(self, feature: str) -> bool:
        """Whether a feature is there and on."""
        found = self.features.get(feature)
        return found is not None and found.active


@dataclass(frozen=True, slots=True)
class FirewallChain:
    """A chain that the packets of a DR service pass on their way to IPVS, and not in XDP.

    Args:
        where: as an administrator would name it: `nft chain inet filter input`.
        hook: ingress, prerouting or input.
        kind: filter, nat or route.
        rules: their number; None where only that there are some is known.
        drops: its policy is to drop.
        listing: the command that lists it.
        marks: rules of its table set or match packet marks.
    """

    where: str
    hook: str
    kind: str
    rules: int | None
    drops: bool
    listing: str
    marks: bool = False


class Ipvs(StrEnum):
    """Whether there is an IPVS."""

    LOADED = "loaded"
    LOADABLE = "a module that is not loaded"
    ABSENT = "absent"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class HostFacts:
    """All that was seen of this machine.

    Args:
        kernel: its release.
        cpus: that are online.
        devices: that matter, in order.
        ipvs: whether there is one.
        mh_table_size: slots of the mh scheduler's table; None where the kernel does not tell.
        sysctls: by name; None for one that is not there.
        wanted_sysctls: what this configuration's director sets.
        firewall: chains that packets pass on their way to IPVS.
        firewall_seen: those are all; else some could not be looked at.
        bpffs: whether /sys/fs/bpf is one; None where that cannot be seen.
        xdp_frags: whether frames of several buffers can be had; None where it was not tried.
        xdp_link: whether a program can be attached by a link; None where it was not tried.
        tcx: the same for tc.
        config: the kernel's build options that matter, `y` or `m`; empty where it does not tell.
        lockdown: none, integrity or confidentiality; None where the kernel does not tell.
        memlock: RLIMIT_MEMLOCK in bytes, where the kernel goes by it; None where it is no limit.
        not_seen: what could not be looked at, and why.
    """

    kernel: str = ""
    cpus: int = 1
    devices: tuple[Device, ...] = ()
    ipvs: Ipvs = Ipvs.LOADED
    mh_table_size: int | None = None
    sysctls: Mapping[str, str | None] = field(default_factory=dict)
    wanted_sysctls: Mapping[str, str] = field(default_factory=dict)
    firewall: tuple[FirewallChain, ...] = ()
    firewall_seen: bool = True
    bpffs: bool | None = True
    xdp_frags: bool | None = None
    xdp_link: bool | None = None
    tcx: bool | None = None
    config: Mapping[str, str] = field(default_factory=dict)
    lockdown: str | None = None
    memlock: int | None = None
    not_seen: tuple[tuple[str, str], ...] = ()


class Level(StrEnum):
    """How bad a finding is, from good to bad."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    FAULT = "fault"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Args:
        level: a fault keeps what is configured from working as DR; a warning costs the fast path,
            or goes round something that the administrator relies on; a note is worth knowing.
        subject: an interface, or the part of the host.
        what: what is.
        why: why it matters; empty where all is well.
        remedy: the command to type, or what to do; empty where there is nothing to do.
    """

    level: Level
    subject: str
    what: str
    why: str = ""
    remedy: str = ""
