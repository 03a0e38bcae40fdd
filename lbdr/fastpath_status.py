"""What the fast path adds to a director's status; pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lbdr.status import (
    FastPathDirector,
    FastPathService,
    RealServerStatus,
    Status,
    Totals,
    VirtualServiceStatus,
)


@dataclass(frozen=True, slots=True)
class FastCounts:
    """What the programs counted for a service.

    Args:
        servers: packets and bytes that each real server got, by address.
        reasons: packets that were not forwarded, by reason.
    """

    servers: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    reasons: Mapping[str, int] = field(default_factory=dict)


def with_fast_path(
    status: Status,
    director: FastPathDirector,
    counts: Mapping[str, FastCounts],
    slow: Mapping[str, str],
) -> Status:
    """A status with the fast path's part; IPVS does not count what it does not see.

    Args:
        status: as IPVS has it.
        director: the fast path.
        counts: by virtual service's name, of those that the fast path has.
        slow: why it has not the others.
    """
    services = []
    for service in status.virtual_services:
        found = counts.get(service.name)
        if found is None:
            off = FastPathService(reason=slow.get(service.name, director.reason))
            services.append(service.model_copy(update={"fastpath": off}))
        else:
            services.append(_service(service, found))
    return status.model_copy(update={"fastpath": director, "virtual_services": services})


def _service(service: VirtualServiceStatus, counts: FastCounts) -> VirtualServiceStatus:
    packets = sum(packets for packets, _ in counts.servers.values())
    octets = sum(octets for _, octets in counts.servers.values())
    fast = FastPathService(
        state="forwards", packets=packets, bytes=octets, not_forwarded=dict(counts.reasons)
    )
    return service.model_copy(
        update={
            "fastpath": fast,
            "totals": _more(service.totals, packets, octets),
            "real_servers": [
                _server(server, *counts.servers.get(server.address, (0, 0)))
                for server in service.real_servers
            ],
        }
    )


def _server(server: RealServerStatus, packets: int, octets: int) -> RealServerStatus:
    return server.model_copy(update={"totals": _more(server.totals, packets, octets)})


def _more(totals: Totals, packets: int, octets: int) -> Totals:
    return totals.model_copy(
        update={
            "packets_in": totals.packets_in + packets,
            "bytes_in": totals.bytes_in + octets,
        }
    )
