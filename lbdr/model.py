"""What everything else speaks: intent, the kernel's view of it, and observation.

Intent (`Configuration`, `VirtualService`) is what the user wrote. `Service`, `RealServer` and
`VirtualAddress` are what the kernel is to hold, and compare equal to what it holds. Observation
(`ObservedService`, `Counters`, `HostNetwork`) is what the kernel says.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
InterfaceAddress: TypeAlias = ipaddress.IPv4Interface | ipaddress.IPv6Interface

MAX_WEIGHT = 65535  # the kernel takes more, and its schedulers overflow (net/netfilter/ipvs)
MAX_RANGES = 16
"""Ranges of ports, `any` among them, of one VIP and protocol: the programs look through so many."""


class Protocol(StrEnum):
    """A transport protocol that IPVS balances."""

    TCP = "tcp"
    UDP = "udp"
    SCTP = "sctp"

    @property
    def number(self) -> int:
        """IP protocol number (IANA)."""
        return {Protocol.TCP: 6, Protocol.UDP: 17, Protocol.SCTP: 132}[self]

    @classmethod
    def from_number(cls, number: int) -> Protocol:
        """The protocol of an IP protocol number; ValueError for another one."""
        for protocol in cls:
            if protocol.number == number:
                return protocol
        raise ValueError(f"IP protocol {number} is none that IPVS balances")


class Forwarding(StrEnum):
    """How a virtual service's traffic reaches its real servers, in the user's words."""

    DR = "dr"
    PROXY = "proxy"


class ForwardingMethod(StrEnum):
    """IPVS's forwarding method of one real server (include/uapi/linux/ip_vs.h)."""

    MASQUERADE = "masquerade"
    LOCAL = "local"
    TUNNEL = "tunnel"
    DR = "dr"
    BYPASS = "bypass"


class FastPathUse(StrEnum):
    """Whether XDP repeats IPVS's decisions: where it can, or not at all."""

    AUTO = "auto"
    OFF = "off"


class Standing(StrEnum):
    """Whether a real server serves, by the operator's word; a later one is stricter."""

    ONLINE = "online"
    DRAIN = "drain"
    HALT = "halt"


class DrainPersistence(StrEnum):
    """What becomes of clients that persistence binds to a drained real server."""

    MOVE = "move"
    STAY = "stay"


class Role(StrEnum):
    """Who owns the VIPs: the active director; a standby programs everything else."""

    ACTIVE = "active"
    STANDBY = "standby"


SCHEDULER_FLAGS: Mapping[str, frozenset[str]] = {
    **{
        name: frozenset()
        for name in ("rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh", "sed", "nq", "fo", "ovf")
    },
    "twos": frozenset(),
    "sh": frozenset({"sh-port", "sh-fallback"}),
    "mh": frozenset({"mh-port", "mh-fallback"}),
}
"""Every IPVS scheduler, and the flags that it has (net/netfilter/ipvs/ip_vs_*.c, ipvsadm(8))."""


@dataclass(frozen=True, slots=True, order=True)
class PortRange:
    """Ports from first to last, both included; one port has first == last."""

    first: int
    last: int

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports of a virtual service; no range at all means any port."""

    ranges: tuple[PortRange, ...] = ()

    @property
    def any(self) -> bool:
        """Whether every port is meant."""
        return not self.ranges

    @property
    def single(self) -> int | None:
        """The port, where there is exactly one."""
        if len(self.ranges) == 1 and self.ranges[0].first == self.ranges[0].last:
            return self.ranges[0].first
        return None

    def __str__(self) -> str:
        return ",".join(str(part) for part in self.ranges) or "any"


@dataclass(frozen=True, slots=True)
class MarkRange:
    """Packet marks from first to last, both included.

    Args:
        first: at least 1: a packet that nobody marked has mark 0.
        last: at most 32 bits.
    """

    first: int
    last: int

    def __contains__(self, mark: int) -> bool:
        return self.first <= mark <= self.last

    def __len__(self) -> int:
        return self.last - self.first + 1

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"


@dataclass(frozen=True, slots=True)
class Traffic:
    """The packets of a virtual service.

    Args:
        protocol: the transport protocol.
        address: the VIP.
        ports: one, several, ranges, or any.
    """

    protocol: Protocol
    address: Address
    ports: Ports

    def overlaps(self, other: Traffic) -> bool:
        """Whether some packets are also another one's."""
        return (self.protocol, self.address) == (other.protocol, other.address) and (
            self.ports.any
            or other.ports.any
            or any(
                one.first <= part.last and part.first <= one.last
                for one in self.ports.ranges
                for part in other.ports.ranges
            )
        )

    def has(self, port: int) -> bool:
        """Whether those to a port are among them."""
        return self.ports.any or any(one.first <= port <= one.last for one in self.ports.ranges)


@dataclass(frozen=True, slots=True)
class Persistence:
    """A client's later connections go to the same real server.

    Args:
        timeout: seconds after the last connection ended.
        granularity: prefix length by which clients count as one.
    """

    timeout: int
    granularity: int


@dataclass(frozen=True, slots=True)
class RealServer:
    """One real server of one virtual service, as IPVS is to hold it.

    Args:
        address: the RIP.
        port: the same as the service's in DR; 0 for an any-port service.
        weight: 0 to 65535; 0 takes no new connections.
        method: IPVS's forwarding method.
        upper_threshold: no new connections above so many; 0 is no limit.
        lower_threshold: new connections again below so many; 0 is three quarters of upper.
        name: the user's name for it; IPVS does not know it, so it takes no part in comparing.
    """

    address: Address
    port: int
    weight: int = 1
    method: ForwardingMethod = ForwardingMethod.DR
    upper_threshold: int = 0
    lower_threshold: int = 0
    name: str = field(default="", compare=False)

    @property
    def key(self) -> RealServerKey:
        """What tells it from the other real servers of its service."""
        return (self.address, self.port)


RealServerKey: TypeAlias = tuple[Address, int]


@dataclass(frozen=True, slots=True)
class ServiceKey:
    """What tells one IPVS virtual service from another.

    Args:
        protocol: the transport protocol.
        address: the VIP.
        port: 0 for any port.
    """

    protocol: Protocol
    address: Address
    port: int

    @property
    def version(self) -> int:
        """Its IP version, 4 or 6."""
        return self.address.version

    @property
    def traffic(self) -> Traffic:
        """The packets that IPVS knows it by."""
        ports = Ports((PortRange(self.port, self.port),) if self.port else ())
        return Traffic(self.protocol, self.address, ports)

    @property
    def sort_key(self) -> tuple[int, int, str, int]:
        """An order over both IP versions."""
        return (self.address.version, int(self.address), self.protocol.value, self.port)

    def __str__(self) -> str:
        return f"{self.protocol.value} {endpoint(self.address, self.port)}"


@dataclass(frozen=True, slots=True)
class MarkKey:
    """An IPVS virtual service told by a packet mark, for one IP version.

    Args:
        mark: the firewall mark, not 0.
        version: 4 or 6.
    """

    mark: int
    version: int

    @property
    def sort_key(self) -> tuple[int, int, str, int]:
        """An order over both IP versions, beside that of ServiceKey."""
        return (self.version, -1, "mark", self.mark)

    def __str__(self) -> str:
        return f"mark {self.mark} (IPv{self.version})"


Key: TypeAlias = ServiceKey | MarkKey
"""What tells one IPVS virtual service from another, of either kind."""


@dataclass(frozen=True, slots=True)
class Service:
    """An IPVS virtual service with its real servers, as the kernel is to hold it.

    Args:
        key: protocol, address and port, or the mark.
        scheduler: IPVS's name of the scheduler.
        flags: the scheduler's flags, by ipvsadm's names.
        persistence: None for none.
        one_packet: every UDP datagram is a connection of its own.
        real_servers: in the order in which they are to be added.
        name: the user's name; takes no part in comparing.
        marked: the packets that get its mark, where it is told by one; IPVS does not know them, so
            they take no part in comparing.
    """

    key: ServiceKey | MarkKey
    scheduler: str
    flags: frozenset[str] = frozenset()
    persistence: Persistence | None = None
    one_packet: bool = False
    real_servers: tuple[RealServer, ...] = ()
    name: str = field(default="", compare=False)
    marked: Traffic | None = field(default=None, compare=False)

    @property
    def traffic(self) -> Traffic | None:
        """Its packets; None where others made it and know what they mark."""
        return self.key.traffic if isinstance(self.key, ServiceKey) else self.marked


@dataclass(frozen=True, slots=True)
class VirtualAddress:
    """A VIP on an interface of this host.

    Args:
        address: added with a host prefix (/32, /128).
        interface: the interface's name.
    """

    address: Address
    interface: str

    @property
    def prefix_length(self) -> int:
        """32 or 128: a VIP brings no route."""
        return self.address.max_prefixlen


@dataclass(frozen=True, slots=True)
class Timeouts:
    """IPVS's timeouts of this network namespace, in seconds; 0 leaves one as it is."""

    tcp: int = 0
    tcp_fin: int = 0
    udp: int = 0


# --- intent -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class VirtualService:
    """A virtual service as the user wrote it.

    Args:
        name: unique in the configuration.
        address: the VIP.
        protocol: the transport protocol.
        ports: one, several, ranges, or any.
        forwarding: dr or proxy.
        scheduler: a key of SCHEDULER_FLAGS.
        scheduler_flags: of those that the scheduler has.
        persistence: None for none.
        one_packet: every UDP datagram is scheduled on its own.
        interface: where the VIP goes; None lets its subnet decide.
        real_servers: in the order of the file; port 0 where the service has not exactly one.
        sorry_server: serves when no real server can.
        fastpath: whether XDP repeats IPVS's decisions for it.
    """

    name: str
    address: Address
    protocol: Protocol = Protocol.TCP
    ports: Ports = field(default_factory=Ports)
    forwarding: Forwarding = Forwarding.DR
    scheduler: str = "wlc"
    scheduler_flags: frozenset[str] = frozenset()
    persistence: Persistence | None = None
    one_packet: bool = False
    interface: str | None = None
    real_servers: tuple[RealServer, ...] = ()
    sorry_server: RealServer | None = None
    fastpath: FastPathUse = FastPathUse.AUTO

    @property
    def key(self) -> ServiceKey:
        """Its identity in IPVS, where one service there is enough for it (not needs_mark)."""
        return ServiceKey(self.protocol, self.address, self.ports.single or 0)

    @property
    def traffic(self) -> Traffic:
        """Its packets."""
        return Traffic(self.protocol, self.address, self.ports)

    @property
    def needs_mark(self) -> bool:
        """Whether one decision for its ports needs a packet mark.

        IPVS schedules a service of any port by itself only when it is persistent
        (net/netfilter/ipvs/ip_vs_core.c, ip_vs_schedule).
        """
        if self.ports.any:
            return self.persistence is None
        return self.ports.single is None


@dataclass(frozen=True, slots=True)
class AddressProbe:
    """How a VIP is probed before it is claimed (RFC 5227 section 2.1.1, RFC 4862 section 5.4).

    Args:
        count: probes sent; 0 claims without asking.
        interval: seconds between probes, and after the last one.
    """

    count: int = 2
    interval: float = 0.05


@dataclass(frozen=True, slots=True)
class GratuitousArp:
    """How a VIP is announced, by gratuitous ARP or unsolicited neighbour advertisements.

    Args:
        repeat: frames in a set.
        delay: seconds to the second set; 0 for none.
        refresh: seconds between later announcements; 0 for none.
        refresh_repeat: frames in a later announcement.
    """

    repeat: int = 5
    delay: float = 5.0
    refresh: float = 60.0
    refresh_repeat: int = 1


@dataclass(frozen=True, slots=True)
class Director:
    """This machine.

    Args:
        name: shown in status and logs.
        role: the role at the first start.
        address_probe: before a VIP is claimed.
        gratuitous_arp: after it was claimed.
        timeouts: IPVS's; None leaves the kernel's.
        drift_check: seconds between polls of what the kernel does not announce.
        fastpath: whether XDP repeats IPVS's decisions, for any service.
        marks: of which each service that needs a packet mark gets one.
        drain_persistence: whether a bound client's next connection leaves a drained real server.
    """

    name: str = ""
    role: Role = Role.ACTIVE
    address_probe: AddressProbe = field(default_factory=AddressProbe)
    gratuitous_arp: GratuitousArp = field(default_factory=GratuitousArp)
    timeouts: Timeouts | None = None
    drift_check: float = 1.5
    fastpath: FastPathUse = FastPathUse.AUTO
    # no bit that kube-proxy (0xc000), Cilium (0x0f00), Tailscale (0xff0000) or Calico (0xffff0000)
    # look at, and far above the small numbers that people write
    marks: MarkRange = MarkRange(0x3000, 0x30FF)
    drain_persistence: DrainPersistence = DrainPersistence.MOVE


@dataclass(frozen=True, slots=True)
class Configuration:
    """All that the user wrote, valid by itself; what depends on this machine is not checked."""

    director: Director = field(default_factory=Director)
    virtual_services: tuple[VirtualService, ...] = ()


# --- what is wanted -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DesiredState:
    """What the kernel is to hold.

    Args:
        services: IPVS's virtual services.
        addresses: VIPs on interfaces; none on a standby.
        sysctls: values by name, as sysctl(8) writes them.
        timeouts: IPVS's; None leaves the kernel's.
    """

    services: Mapping[ServiceKey | MarkKey, Service] = field(default_factory=dict)
    addresses: frozenset[VirtualAddress] = frozenset()
    sysctls: Mapping[str, str] = field(default_factory=dict)
    timeouts: Timeouts | None = None


# --- observation --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Counters:
    """IPVS's statistics; rates are the kernel's own two-second averages, per second."""

    connections: int = 0
    packets_in: int = 0
    packets_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    connection_rate: int = 0
    packet_rate_in: int = 0
    packet_rate_out: int = 0
    byte_rate_in: int = 0
    byte_rate_out: int = 0


@dataclass(frozen=True, slots=True)
class ObservedRealServer:
    """A real server as IPVS has it, with what it counted."""

    real_server: RealServer
    active_connections: int = 0
    inactive_connections: int = 0
    persistent_connections: int = 0
    counters: Counters = field(default_factory=Counters)


@dataclass(frozen=True, slots=True)
class ObservedService:
    """A virtual service as IPVS has it; its real servers in the kernel's list order."""

    service: Service
    real_servers: tuple[ObservedRealServer, ...] = ()
    counters: Counters = field(default_factory=Counters)


@dataclass(frozen=True, slots=True)
class Interface:
    """A network interface of this host.

    Args:
        name: its name.
        index: the kernel's number for it.
        mac: its link-layer address, colon-separated; empty where it has none.
        up: administratively up and with carrier.
        addresses: with their prefix lengths.
    """

    name: str
    index: int
    mac: str = ""
    up: bool = True
    addresses: tuple[InterfaceAddress, ...] = ()


@dataclass(frozen=True, slots=True)
class HostNetwork:
    """The interfaces of this host, by name."""

    interfaces: Mapping[str, Interface] = field(default_factory=dict)

    def interface_for(self, address: Address) -> Interface | None:
        """The interface in whose subnet an address lies; the longest prefix wins.

        Host prefixes (/32, /128) span no subnet: they are VIPs, this director's own included.
        """
        best: tuple[int, Interface] | None = None
        for interface in self.interfaces.values():
            for own in interface.addresses:
                length = own.network.prefixlen
                if own.version != address.version or length == address.max_prefixlen:
                    continue
                if address in own.network and (best is None or length > best[0]):
                    best = (length, interface)
        return best[1] if best else None

    def holders(self, address: Address) -> tuple[str, ...]:
        """The names of the interfaces that hold an address."""
        return tuple(
            interface.name
            for interface in self.interfaces.values()
            if any(own.ip == address for own in interface.addresses)
        )


@dataclass(frozen=True, slots=True)
class ObservedState:
    """What the kernel holds.

    Args:
        services: all of IPVS's virtual services, others' included.
        network: interfaces and addresses.
        sysctls: the values of those that were asked for; None for one that does not exist.
        timeouts: IPVS's.
    """

    services: Mapping[ServiceKey | MarkKey, ObservedService] = field(default_factory=dict)
    network: HostNetwork = field(default_factory=HostNetwork)
    sysctls: Mapping[str, str | None] = field(default_factory=dict)
    timeouts: Timeouts = field(default_factory=Timeouts)


def endpoint(address: Address, port: int) -> str:
    """Address and port as ipvsadm writes them: an IPv6 address in brackets."""
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


def family(version: int) -> int:
    """The address family of an IP version."""
    return socket.AF_INET6 if version == 6 else socket.AF_INET
