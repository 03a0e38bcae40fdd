"""The status of a director whose kernel has no IPVS; pure."""

from __future__ import annotations

from lbdr.status import Rates, RealServerStatus, Status, VirtualServiceStatus

_NO_RATES = Rates(
    connections=None, packets_in=None, packets_out=None, bytes_in=None, bytes_out=None
)


def without_ipvs(status: Status) -> Status:
    """A status in which what only IPVS knows is unknown, not 0.

    Args:
        status: with what the fast path counted.
    """
    services = [_service(service) for service in status.virtual_services]
    return status.model_copy(update={"engine": "alone", "virtual_services": services})


def _service(service: VirtualServiceStatus) -> VirtualServiceStatus:
    return service.model_copy(
        update={
            "totals": service.totals.model_copy(update={"connections": None}),
            "rates": _NO_RATES,
            "real_servers": [_server(server) for server in service.real_servers],
        }
    )


def _server(server: RealServerStatus) -> RealServerStatus:
    return server.model_copy(
        update={
            "active_connections": None,
            "inactive_connections": None,
            "persistent_connections": None,
            "totals": server.totals.model_copy(update={"connections": None}),
            "rates": _NO_RATES,
        }
    )
