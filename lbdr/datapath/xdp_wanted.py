"""What the fast path is to have: services, their real servers, connections that are known."""

from __future__ import annotations

from dataclasses import dataclass

from lbdr.datapath.xdp_layout import FastServer, Place, ServiceFlag
from lbdr.model import Address


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
        timeout: ticks after which IPVS forgets a flow that it does not see.
    """

    vip: Place
    flags: ServiceFlag
    real_servers: tuple[WantedServer, ...]
    timeout: int = 0


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
