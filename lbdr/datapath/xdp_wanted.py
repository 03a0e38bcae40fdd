"""What the fast path is to have: services, their real servers, connections that are known."""

from __future__ import annotations

from dataclasses import dataclass

from lbdr.datapath.xdp_layout import FastServer, Place, ServiceFlag
from lbdr.model import Address, Traffic


@dataclass(frozen=True, slots=True)
class WantedServer:
    """A real server of a service of the fast path.

    Args:
        address: its RIP.
        weight: as IPVS has it now.
        reach: how frames get there.
    """

    address: Address
    weight: int
    reach: FastServer


@dataclass(frozen=True, slots=True)
class WantedService:
    """A service as the fast path is to have it.

    Args:
        vip: where its frames come in.
        flags: ServiceFlag; LEARNED for one that IPVS decides.
        real_servers: in the order of IPVS's list.
        traffic: its packets.
        timeout: ticks after which IPVS forgets a flow that it does not see.
        mark: that tc ingress sets, where IPVS tells the service by one; 0 for none.
        marked_only: IPVS forwards it, and only the mark is set.
    """

    vip: Place
    flags: ServiceFlag
    real_servers: tuple[WantedServer, ...]
    traffic: Traffic
    timeout: int = 0
    mark: int = 0
    marked_only: bool = False


@dataclass(frozen=True, slots=True)
class KnownFlow:
    """A connection, and who has it.

    Args:
        client: its address.
        client_port: its port.
        port: of the service.
        server: the RIP.
        closing: it had a FIN or RST.
    """

    client: Address
    client_port: int
    port: int
    server: Address
    closing: bool = False
