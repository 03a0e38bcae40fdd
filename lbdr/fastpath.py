"""Which services the fast path can serve, and what their maps are to hold; pure.

The fast path repeats what IPVS *has*, not what it is to have: the order of its lists and its
weights as they are read from the kernel decide.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from lbdr.model import FastPathUse, Key, Protocol, Service, VirtualService

OFF = "`fastpath: off` in the file"


@dataclass(frozen=True, slots=True)
class Mh:
    """Whether the running kernel's mh scheduler is lbdr's.

    Args:
        versions: the IP versions for which it was seen to be.
        reason: why not for all.
    """

    versions: Collection[int] = ()
    reason: str = ""


def unfit(service: Service, mh: Mh) -> str:
    """Why IPVS alone serves a service; empty where the fast path can.

    Args:
        service: as the kernel is to hold it.
        mh: of the running kernel.
    """
    if service.traffic is None or service.traffic.protocol is Protocol.SCTP:
        return "SCTP is IPVS's alone"
    if is_table(service):
        if any(server.upper_threshold for server in service.real_servers):
            return "thresholds count connections, and the fast path of an mh service has none"
        if service.key.version not in mh.versions:
            return mh.reason or "this kernel's mh was not compared with lbdr's yet"
    elif service.one_packet:
        return "one_packet schedules every datagram anew"
    return ""


def is_table(service: Service) -> bool:
    """Whether a table alone decides, with nothing to be learned from IPVS."""
    return service.scheduler == "mh" and service.persistence is None


def chosen(
    services: Mapping[Key, Service],
    virtual_services: Sequence[VirtualService],
    mh: Mh,
    left: Collection[str] = (),
    *,
    nothing: str = "",
) -> tuple[dict[Key, Service], dict[str, str]]:
    """The services of the fast path, and why the others are not, by name.

    Args:
        services: as the kernel is to hold them.
        virtual_services: as the user wrote them.
        mh: of the running kernel.
        left: those that the operator left to IPVS; "" is all of them.
        nothing: why no service is to use it; empty where they may.
    """
    off = {virtual.name for virtual in virtual_services if virtual.fastpath is FastPathUse.OFF}
    fast: dict[Key, Service] = {}
    slow: dict[str, str] = {}
    for key, service in services.items():
        if nothing:
            reason = nothing
        elif service.name in off:
            reason = OFF
        elif service.name in left or "" in left:
            reason = "left to IPVS by `lbdr fastpath off`"
        else:
            reason = unfit(service, mh)
        if reason:
            slow[service.name] = reason
        else:
            fast[key] = service
    return fast, slow
