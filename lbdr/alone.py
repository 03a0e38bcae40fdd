"""What only IPVS can do for a virtual service: where the kernel has none, a table decides; pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lbdr.model import FastPathUse, Protocol, VirtualService

_MH = "`scheduler: mh`"


@dataclass(frozen=True, slots=True)
class Need:
    """A setting that needs IPVS.

    Args:
        path: of the setting, below the virtual service.
        what: in the user's words.
        instead: what to write; empty where there is nothing.
        nothing: without IPVS nothing at all would forward.
    """

    path: tuple[str | int, ...]
    what: str
    instead: str = "leave it out"
    nothing: bool = False


def needs(service: VirtualService) -> Iterator[Need]:
    """Everything of a virtual service that only IPVS can do.

    Args:
        service: as the user wrote it.
    """
    if service.scheduler != "mh":
        yield Need(("scheduler",), f"scheduler {service.scheduler}", f"write {_MH}")
    if service.persistence is not None:
        instead = f"leave it out: {_MH} without mh-port keeps a client on one server"
        yield Need(("persistence",), "persistence", instead)
    if service.protocol is Protocol.SCTP:
        yield Need(("protocol",), "SCTP", "")
    if service.one_packet:
        yield Need(("one_packet",), "`one_packet`")
    if service.fastpath is FastPathUse.OFF:
        yield Need(("fastpath",), "`fastpath: off`", nothing=True)
    for index, server in enumerate(service.real_servers):
        if server.upper_threshold:
            path = ("real_servers", index, "upper_threshold")
            yield Need(path, f"a threshold of {server.name}")
