"""What a user writes, as pydantic models: the source of the JSON Schema and of the reference.

Only the form is checked here, value by value; what values must have to do with each other is in
`rules`, and what they must have to do with this machine in `host`.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from lbdr import model
from lbdr.config.check_schema import Check, Checks
from lbdr.config.durations import Duration
from lbdr.config.health_schema import Damping, Dependency, Feedback, Health, Quorum
from lbdr.config.network_values import (
    PORTS_SCHEMA,
    Granularity,
    InterfaceName,
    IpAddress,
    Marks,
    PortEntry,
    list_of_ports,
)
from lbdr.config.section import Section, written
from lbdr.config.values import Choice, Name, Switch, Text, Whole, wrong

_PROBE = model.AddressProbe()
_ARP = model.GratuitousArp()
_DIRECTOR = model.Director()
FLAGS = tuple(sorted(flag for flags in model.SCHEDULER_FLAGS.values() for flag in flags))
_MAX_THRESHOLD = 2**31 - 1  # compared with signed counters (ip_vs_core.c, ip_vs_dest_totalconns)
_MAX_FRAMES = 100


def _server_list(value: Any) -> Any:
    if isinstance(value, str):
        raise wrong("a list of real servers", f"write [{value}]")
    if isinstance(value, list) and not value:
        raise wrong("at least one real server")
    return value


class AddressProbe(Section):
    """How a VIP is probed before it is claimed: another host that answers keeps it."""

    noun = "settings of the address probe"
    where = "in `address_probe` of the director"

    count: Annotated[int, Whole(0, 10)] = Field(
        default=_PROBE.count, description="Probes sent; 0 claims a VIP without asking."
    )
    interval: Annotated[float, Duration("10ms", "10s")] = Field(
        default=_PROBE.interval, description="Time between probes, and to wait after the last one."
    )


class GratuitousArp(Section):
    """How a VIP is announced: gratuitous ARP, for IPv6 unsolicited neighbour advertisements."""

    noun = "settings of gratuitous ARP"
    where = "in `gratuitous_arp` of the director"

    repeat: Annotated[int, Whole(1, _MAX_FRAMES)] = Field(
        default=_ARP.repeat, description="Frames at once, when a VIP is claimed."
    )
    delay: Annotated[float, Duration("100ms", "1h", zero="for no second set")] = Field(
        default=_ARP.delay, description="Time to a second set of frames; 0 sends none."
    )
    refresh: Annotated[float, Duration("1s", "1d", zero="for none")] = Field(
        default=_ARP.refresh, description="Time between later announcements; 0 sends none."
    )
    refresh_repeat: Annotated[int, Whole(1, _MAX_FRAMES)] = Field(
        default=_ARP.refresh_repeat, description="Frames in each later announcement."
    )


class Timeouts(Section):
    """IPVS's timeouts of connections; one that is left out stays as the kernel has it."""

    noun = "IPVS's timeouts"
    where = "in `timeouts` of the director"

    # the kernel refuses more than INT_MAX jiffies (ip_vs_ctl.c, ip_vs_set_timeout): 24 d at HZ 1000
    tcp: Annotated[int | None, Duration("1s", "24d", whole=True)] = Field(
        default=None, description="An idle TCP connection (the kernel's own value: 15m)."
    )
    tcp_fin: Annotated[int | None, Duration("1s", "24d", whole=True)] = Field(
        default=None, description="A TCP connection after a FIN (the kernel's own value: 2m)."
    )
    udp: Annotated[int | None, Duration("1s", "24d", whole=True)] = Field(
        default=None, description="A UDP flow after its last packet (the kernel's own value: 5m)."
    )


class Director(Section):
    """This machine. Interfaces follow from the addresses."""

    noun = "settings of the director"
    where = "in `director`"

    name: Annotated[str, Text()] = Field(default="", description="Shown in status and logs.")
    role: Annotated[str, Choice(tuple(model.Role), "role")] = Field(
        default=_DIRECTOR.role.value,
        description="The role at the first start: an active director owns the VIPs, a standby "
        "programs everything else.",
    )
    address_probe: AddressProbe = Field(
        default_factory=AddressProbe, description="The probe before a VIP is claimed."
    )
    gratuitous_arp: GratuitousArp = Field(
        default_factory=GratuitousArp, description="The announcements after a VIP was claimed."
    )
    timeouts: Timeouts = Field(
        default_factory=Timeouts, description="IPVS's timeouts of connections."
    )
    drift_check: Annotated[float, Duration("200ms", "1m")] = Field(
        default=_DIRECTOR.drift_check,
        description="Time between looks at what the kernel announces to nobody: IPVS and sysctls.",
    )
    fastpath: Annotated[str, Choice(tuple(model.FastPathUse), "fast path")] = Field(
        default=_DIRECTOR.fastpath.value,
        description="auto: XDP repeats IPVS's decisions wherever it can; off: IPVS alone forwards, "
        "and has to be in the kernel.",
    )
    marks: Annotated[model.MarkRange, Marks()] = Field(
        default=_DIRECTOR.marks,
        description="Packet marks for virtual services with several ports: each gets one, set by "
        "lbdr at tc ingress, by which IPVS knows it. Nothing else here may set or match them; the "
        "usual range has no bit that kube-proxy, Cilium, Calico or Tailscale look at.",
    )
    check: Checks = Field(
        default_factory=lambda: [Check(type="connect")],
        description="For services of tcp that say nothing themselves: connect where left out. A "
        "service with any port, or more than 16, has to say itself.",
    )
    drain_persistence: Annotated[str, Choice(tuple(model.DrainPersistence), "word")] = Field(
        default=_DIRECTOR.drain_persistence.value,
        description="Clients that persistence binds to a drained real server: move with their next "
        "connection, or stay until the persistence ends.",
    )


class RealServer(Section):
    """A real server, named once and used by its name."""

    noun = "settings of a real server"
    where = "in `real_servers` at the top of the file"

    address: Annotated[model.Address, IpAddress()] = Field(
        description="The RIP: its own address, in a subnet of an interface of the director.",
        examples=["192.168.10.31"],
    )
    depends_on: list[Dependency] = Field(
        default_factory=list,
        description="What it cannot serve without: it is down while one of them is.",
    )


class RealServerUse(Section):
    """A real server in a virtual service: its name alone, or a mapping."""

    noun = "a real server's name, or {server: NAME, weight: 1}"
    where = "in an entry of a virtual service's `real_servers`"

    server: Annotated[str, Name()] = Field(
        description="A name of `real_servers` at the top of the file.", examples=["pacs1"]
    )
    weight: Annotated[int, Whole(0, model.MAX_WEIGHT)] = Field(
        default=1, description="Its share; 0 drains it: no new connections, open ones finish."
    )
    port: Annotated[int | None, Whole(1, 65535)] = Field(
        default=None, description="The service's own port: DR cannot translate ports. Leave it out."
    )
    upper_threshold: Annotated[int, Whole(0, _MAX_THRESHOLD)] = Field(
        default=0, description="No new connections above so many; 0 is no limit."
    )
    lower_threshold: Annotated[int, Whole(0, _MAX_THRESHOLD)] = Field(
        default=0,
        description="After the upper threshold was passed, new connections again below so many; "
        "0 is three quarters of it.",
    )
    standby_for: list[Annotated[str, Name()]] = Field(
        default_factory=list,
        description="Real servers of this service: it serves only while none of them can.",
    )

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"server": value} if isinstance(value, str) else value


class SorryServer(Section):
    """The real server that serves while no other can: its name alone, or a mapping."""

    noun = "a real server's name, or {server: NAME}"
    where = "in `sorry_server` of a virtual service"

    server: Annotated[str, Name()] = Field(
        description="A name of `real_servers` at the top of the file.", examples=["sorry"]
    )
    port: Annotated[int | None, Whole(1, 65535)] = Field(
        default=None, description="The service's own port: DR cannot translate ports. Leave it out."
    )

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"server": value} if isinstance(value, str) else value


class Persistence(Section):
    """A client's later connections go to the same real server: a duration alone, or a mapping."""

    noun = "a duration, or {timeout: 5m, granularity: /24}"
    where = "in `persistence` of a virtual service"

    timeout: Annotated[int, Duration("1s", "31d", whole=True)] = Field(
        description="How long after the client's last connection.", examples=["5m"]
    )
    granularity: Annotated[int | None, Granularity()] = Field(
        default=None,
        description="Prefix length by which clients count as one; /32, or /128 for IPv6, where "
        "left out.",
    )

    @model_validator(mode="before")
    @classmethod
    def _duration_alone(cls, value: Any) -> Any:
        return {"timeout": value} if isinstance(value, str | int | float) else value


class VirtualService(Section):
    """A VIP with protocol and ports, and the real servers behind it."""

    noun = "settings of a virtual service"
    where = "in a virtual service"

    address: Annotated[model.Address, IpAddress()] = Field(
        description="The VIP: the address that clients connect to.", examples=["192.168.10.50"]
    )
    protocol: Annotated[str, Choice(tuple(model.Protocol), "protocol")] = Field(
        default=model.Protocol.TCP.value, description="The transport protocol."
    )
    ports: Annotated[
        list[Annotated[model.PortRange, PortEntry()]],
        BeforeValidator(list_of_ports),
        WithJsonSchema(PORTS_SCHEMA),
    ] = Field(
        description="Ports and ranges, such as [80, 443] or [4001-4005]; or any. Several ports "
        "need persistence, or mh or sh without ports, so that a client stays with one server.",
        examples=["[80]"],
    )
    forwarding: Annotated[str, Choice(tuple(model.Forwarding), "forwarding")] = Field(
        default=model.Forwarding.DR.value,
        description="How traffic reaches the real servers: dr (Direct Routing). This version does "
        "not know proxy yet.",
    )
    scheduler: Annotated[str, Choice(tuple(model.SCHEDULER_FLAGS), "scheduler")] = Field(
        default="wlc", description="IPVS's scheduler."
    )
    scheduler_flags: list[Annotated[str, Choice(FLAGS, "scheduler_flag")]] = Field(
        default_factory=list,
        description="mh: mh-port, mh-fallback; sh: sh-port, sh-fallback. -port hashes the client's "
        "port too; -fallback finds another server for a client whose own takes none.",
    )
    persistence: Annotated[Persistence | None, BeforeValidator(written)] = Field(
        default=None, description="Off where left out: a duration, or timeout and granularity."
    )
    one_packet: Annotated[bool, Switch()] = Field(
        default=False, description="UDP only: every datagram is scheduled on its own."
    )
    fastpath: Annotated[str, Choice(tuple(model.FastPathUse), "fast path")] = Field(
        default=model.FastPathUse.AUTO.value,
        description="off: IPVS alone forwards, and firewall rules of INPUT apply, which XDP "
        "passes by.",
    )
    interface: Annotated[str | None, InterfaceName()] = Field(
        default=None, description="Where the VIP goes; the interface of its subnet where left out."
    )
    real_servers: Annotated[list[RealServerUse], BeforeValidator(_server_list)] = Field(
        description="Names, or mappings with a weight and thresholds.", examples=["[pacs1, pacs2]"]
    )
    sorry_server: Annotated[SorryServer | None, BeforeValidator(written)] = Field(
        default=None, description="Serves while no real server can."
    )
    check: Checks | None = Field(
        default=None,
        description="How it is known that a real server can serve: a word, a mapping, or a list of "
        "which all must pass. Where left out: the director's, for tcp; else on.",
    )
    health: Health = Field(
        default_factory=Health, description="Who may serve, beyond what checks say."
    )


class Document(Section):
    """The file."""

    noun = "a mapping with virtual_services"
    where = "at the top of the file"

    director: Director = Field(default_factory=Director, description="This machine.")
    real_servers: dict[Annotated[str, Name()], RealServer] = Field(
        default_factory=dict, description="The real servers by name; names are used everywhere."
    )
    virtual_services: dict[Annotated[str, Name()], VirtualService] = Field(
        description="The virtual services by name.", examples=["{}"]
    )


SECTIONS: tuple[type[Section], ...] = (
    Document,
    Director,
    RealServer,
    VirtualService,
    RealServerUse,
    SorryServer,
    Persistence,
    Check,
    Health,
    Quorum,
    Damping,
    Feedback,
    Dependency,
    AddressProbe,
    GratuitousArp,
    Timeouts,
)
"""All of them, in the order of the reference."""
