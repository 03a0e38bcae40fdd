"""What a director does and holds, for a person or a program; pure.

Built from the configuration and from what the kernel says; the daemon sends it, and without a
daemon the command builds it itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Literal

from pydantic import BaseModel, ConfigDict

from lbdr.desired import Weights, service_for
from lbdr.marks import Marks, key_of
from lbdr.model import (
    Configuration,
    Counters,
    HostNetwork,
    Key,
    MarkKey,
    ObservedRealServer,
    ObservedService,
    RealServer,
    Role,
    Standing,
    VirtualService,
    endpoint,
)
from lbdr.operator_states import OperatorState, OperatorStates


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Rates(_Model):
    """IPVS's two-second averages, per second; None where there is no IPVS."""

    connections: int | None = 0
    packets_in: int | None = 0
    packets_out: int | None = 0
    bytes_in: int | None = 0
    bytes_out: int | None = 0


class Totals(_Model):
    """Counters since the entry was made. In DR replies do not pass: out stays 0.

    Args:
        connections: IPVS's; None where there is no IPVS, and nobody counts them.
    """

    connections: int | None = 0
    packets_in: int = 0
    packets_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0


RealServerState = Literal[
    "online", "down", "standby", "drain", "halt", "sorry", "spare", "missing", "foreign"
]


class ServerHealth(_Model):
    """What is known of a real server of a virtual service.

    Args:
        verdict: of its checks; unchecked where there are none.
        serves: whether it is to have new connections.
        reason: why not; empty where it serves.
        why: the last deciding check's words.
        since: when the verdict began, seconds of Unix time.
        latency: seconds that the last answer took.
    """

    verdict: Literal["up", "down", "unknown", "unchecked"] = "unchecked"
    serves: bool = True
    reason: str = ""
    why: str = ""
    since: float | None = None
    latency: float | None = None


class RealServerStatus(_Model):
    """A real server of a virtual service.

    Args:
        state: online; down (its checks fail); standby (serves while others cannot); drain (weight
            0: open connections finish, no new ones); halt (out, by the operator's word); sorry
            (stands in); spare (a sorry server that is not needed); missing (wanted, and not in
            IPVS); foreign (in IPVS, and not wanted).
        configured_weight: the file's.
        weight: IPVS's, None where it is not there.
        reason: why it is not online, where somebody decided that.
        since: when that was, seconds of Unix time.
        deadline: when a drain becomes a halt, seconds of Unix time.
        active_connections: IPVS's, as the other two; None where there is no IPVS.
    """

    name: str
    address: str
    port: int
    state: RealServerState
    configured_weight: int
    weight: int | None = None
    method: str = "dr"
    active_connections: int | None = 0
    inactive_connections: int | None = 0
    persistent_connections: int | None = 0
    reason: str = ""
    since: float | None = None
    deadline: float | None = None
    health: ServerHealth = ServerHealth()
    totals: Totals = Totals()
    rates: Rates = Rates()


class VipStatus(_Model):
    """A VIP, and who owns it.

    Args:
        owner: "this director", a MAC that answers for it, or "" where nobody is seen to.
        interface: where it is, or would be.
    """

    address: str
    interface: str = ""
    owner: str = ""


class FastPathService(_Model):
    """What the fast path does for a virtual service.

    Args:
        state: forwards; or off, and IPVS alone forwards.
        reason: why it is off.
        packets: forwarded without IPVS; they are in the totals as well.
        bytes: of those.
        not_forwarded: packets that came by and were left to IPVS, by reason; dropped where there is
            no IPVS.
    """

    state: Literal["forwards", "off"] = "off"
    reason: str = ""
    packets: int = 0
    bytes: int = 0
    not_forwarded: dict[str, int] = {}


class FastPathDevice(_Model):
    """How a device with VIPs serves the fast path.

    Args:
        mode: native (XDP in the driver), or tc (at tc ingress).
        reason: why not native.
    """

    device: str
    mode: Literal["native", "tc"]
    reason: str = ""


class FastPathDirector(_Model):
    """The fast path of a director.

    Args:
        state: forwards; or off, and IPVS alone forwards.
        reason: why it is off.
        not_forwarded: packets for VIPs that are for no service yet, by reason.
    """

    state: Literal["forwards", "off"] = "off"
    reason: str = ""
    devices: list[FastPathDevice] = []
    not_forwarded: dict[str, int] = {}


Health = Mapping[tuple[str, str], ServerHealth]
"""By virtual service and real server."""


class VirtualServiceStatus(_Model):
    """A virtual service.

    Args:
        state: online; degraded (a real server is missing or down); drain (no server takes new
            connections); down (none can); missing (not in IPVS).
    """

    name: str
    protocol: str
    ports: str
    vip: VipStatus
    scheduler: str
    scheduler_flags: list[str] = []
    persistence: int | None = None
    granularity: int | None = None
    one_packet: bool = False
    state: Literal["online", "degraded", "drain", "down", "missing"]
    fastpath: FastPathService = FastPathService()
    totals: Totals = Totals()
    rates: Rates = Rates()
    real_servers: list[RealServerStatus] = []


class Status(_Model):
    """A director.

    Args:
        daemon: its pid; None where no daemon runs.
        engine: ipvs; or alone: this kernel has none, and the fast path forwards alone.
        configured_role: the file's; another one was set at run time.
        problems: what needs somebody, in words.
        foreign_services: virtual services in IPVS that lbdr did not make and leaves alone.
    """

    director: str
    role: Role
    configured_role: Role
    daemon: int | None = None
    version: str
    config: str
    kernel: str
    engine: Literal["ipvs", "alone"] = "ipvs"
    fastpath: FastPathDirector = FastPathDirector()
    virtual_services: list[VirtualServiceStatus] = []
    problems: list[str] = []
    foreign_services: list[str] = []


def virtual_service_status(
    virtual: VirtualService,
    observed: ObservedService | None,
    network: HostNetwork,
    weights: Weights,
    owners: Mapping[str, str],
    *,
    operator: OperatorStates | None = None,
    health: Health | None = None,
) -> VirtualServiceStatus:
    """The status of one virtual service.

    Args:
        virtual: as configured.
        observed: as IPVS has it; None where it has none.
        network: this host's interfaces.
        weights: what stands over the file's.
        owners: MAC by VIP, of those that others answer for.
        operator: real servers that the operator drains or halts.
        health: what is known of real servers.
    """
    found = _real_servers(virtual, observed, weights, operator or {})
    known = health or {}
    real_servers = [_by_health(one, known.get((virtual.name, one.name))) for one in found]
    counters = observed.counters if observed else Counters()
    return VirtualServiceStatus(
        name=virtual.name,
        protocol=virtual.protocol.value,
        ports=str(virtual.ports),
        vip=_vip(virtual, network, owners),
        scheduler=virtual.scheduler,
        scheduler_flags=sorted(service_for(virtual, weights).flags),
        persistence=virtual.persistence.timeout if virtual.persistence else None,
        granularity=virtual.persistence.granularity if virtual.persistence else None,
        one_packet=virtual.one_packet,
        state=_state(observed, real_servers),
        totals=_totals(counters),
        rates=_rates(counters),
        real_servers=real_servers,
    )


def _state(
    observed: ObservedService | None, servers: list[RealServerStatus]
) -> Literal["online", "degraded", "drain", "down", "missing"]:
    if observed is None:
        return "missing"
    if not any(server.state in ("online", "sorry", "missing") for server in servers):
        return "down" if any(server.state == "down" for server in servers) else "drain"
    if any(server.state in ("missing", "down") for server in servers):
        return "degraded"
    return "online"


def _real_servers(
    virtual: VirtualService,
    observed: ObservedService | None,
    weights: Weights,
    operator: OperatorStates,
) -> list[RealServerStatus]:
    there = {entry.real_server.key: entry for entry in observed.real_servers} if observed else {}
    wanted = service_for(virtual, weights).real_servers
    file_weight = {server.key: server.weight for server in virtual.real_servers}
    sorry = virtual.sorry_server
    result = []
    for server in wanted:
        entry = there.pop(server.key, None)
        is_sorry = sorry is not None and server.key == sorry.key
        found = _real_server(server, entry, file_weight.get(server.key, 1), sorry=is_sorry)
        result.append(_by_operator(found, operator.get((virtual.name, server.name))))
    for server in virtual.real_servers:
        if weights.get((virtual.name, server.name), 0) is None:
            out = _real_server(server, there.pop(server.key, None), server.weight)
            out = out.model_copy(update={"state": "halt"})
            result.append(_by_operator(out, operator.get((virtual.name, server.name))))
    if sorry is not None and all(server.key != sorry.key for server in wanted):
        result.append(
            RealServerStatus(
                name=sorry.name,
                address=str(sorry.address),
                port=sorry.port,
                state="spare",
                configured_weight=1,
            )
        )
    result += [_real_server(entry.real_server, entry, 0, foreign=True) for entry in there.values()]
    return result


def _real_server(
    wanted: RealServer,
    entry: ObservedRealServer | None,
    configured_weight: int,
    *,
    sorry: bool = False,
    foreign: bool = False,
) -> RealServerStatus:
    state: RealServerState
    if entry is None:
        state = "missing"
    elif foreign:
        state = "foreign"
    elif entry.real_server.weight == 0:
        state = "drain"
    else:
        state = "sorry" if sorry else "online"
    counters = entry.counters if entry else Counters()
    return RealServerStatus(
        name=wanted.name,
        address=str(wanted.address),
        port=wanted.port,
        state=state,
        configured_weight=configured_weight,
        weight=entry.real_server.weight if entry else None,
        method=(entry.real_server if entry else wanted).method.value,
        active_connections=entry.active_connections if entry else 0,
        inactive_connections=entry.inactive_connections if entry else 0,
        persistent_connections=entry.persistent_connections if entry else 0,
        totals=_totals(counters),
        rates=_rates(counters),
    )


def _by_health(status: RealServerStatus, health: ServerHealth | None) -> RealServerStatus:
    """A status with what is known by checks, which counts where the operator said nothing."""
    if health is None or status.state in ("foreign", "spare", "sorry"):
        return status
    update: dict[str, object] = {"health": health}
    if not health.serves and not status.reason:
        state = "down" if health.verdict in ("down", "unknown") else status.state
        if health.reason.startswith("standby for"):
            state = "standby"
        update |= {"state": state, "reason": health.reason, "since": health.since}
    return status.model_copy(update=update)


def _by_operator(status: RealServerStatus, operator: OperatorState | None) -> RealServerStatus:
    """A status with what the operator set."""
    if operator is None:
        return status
    word = "drained" if operator.standing is Standing.DRAIN else "halted"
    expired = operator.standing is Standing.HALT and operator.deadline is not None
    return status.model_copy(
        update={
            "reason": "drained by the operator, and the deadline came"
            if expired
            else f"{word} by the operator",
            "since": operator.since,
            "deadline": None if expired else operator.deadline,
        }
    )


def _vip(virtual: VirtualService, network: HostNetwork, owners: Mapping[str, str]) -> VipStatus:
    address = str(virtual.address)
    holders = network.holders(virtual.address)
    if holders:
        return VipStatus(address=address, interface=holders[0], owner="this director")
    place = network.interface_for(virtual.address)
    interface = virtual.interface or (place.name if place else "")
    return VipStatus(address=address, interface=interface, owner=owners.get(address, ""))


def _totals(counters: Counters) -> Totals:
    values = asdict(counters)
    return Totals(**{name: values[name] for name in Totals.model_fields})


def _rates(counters: Counters) -> Rates:
    return Rates(
        connections=counters.connection_rate,
        packets_in=counters.packet_rate_in,
        packets_out=counters.packet_rate_out,
        bytes_in=counters.byte_rate_in,
        bytes_out=counters.byte_rate_out,
    )


def director_status(
    configuration: Configuration,
    *,
    role: Role,
    services: Mapping[Key, ObservedService],
    owned: frozenset[Key],
    network: HostNetwork,
    weights: Weights,
    marks: Marks,
    owners: Mapping[str, str],
    problems: list[str],
    config: str,
    version: str,
    kernel: str,
    daemon: int | None,
    operator: OperatorStates | None = None,
    health: Health | None = None,
) -> Status:
    """The status of a director; arguments as in virtual_service_status and Status."""
    keys = {virtual.name: key_of(virtual, marks) for virtual in configuration.virtual_services}
    ours = owned | set(keys.values())
    return Status(
        director=configuration.director.name,
        role=role,
        configured_role=configuration.director.role,
        daemon=daemon,
        version=version,
        config=config,
        kernel=kernel,
        virtual_services=[
            virtual_service_status(
                virtual,
                services.get(key) if (key := keys[virtual.name]) is not None else None,
                network,
                weights,
                owners,
                operator=operator,
                health=health,
            )
            for virtual in configuration.virtual_services
        ],
        problems=problems,
        foreign_services=[
            _foreign(key)
            for key in sorted(services, key=lambda key: key.sort_key)
            if key not in ours
        ],
    )


def _foreign(key: Key) -> str:
    if isinstance(key, MarkKey):
        return str(key)
    return f"{key.protocol.value} {endpoint(key.address, key.port)}"
