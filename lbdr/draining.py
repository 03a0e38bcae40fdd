"""Whether a drained real server is empty, by one status after another; pure.

IPVS counts open connections. Of an mh service that the fast path forwards nobody does, nor where
there is no IPVS: there the server is empty when no packet went to it for a minute (QUIET).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from lbdr.status import RealServerStatus, Status, VirtualServiceStatus

QUIET = 60.0
"""Seconds without a packet after which a server that nobody counts connections of is empty."""


@dataclass(frozen=True, slots=True)
class Remaining:
    """What a real server still has of a virtual service.

    Args:
        virtual_service: its name.
        state: of the real server there.
        connections: that are open; None where they cannot be counted.
        quiet: seconds for which no packet went to the server; None where connections are counted.
    """

    virtual_service: str
    state: str
    connections: int | None
    quiet: float | None = None

    @property
    def empty(self) -> bool:
        """Whether nothing is left that a stop of the server would cut."""
        if self.state in ("halt", "missing"):
            return True
        if self.connections is not None:
            return self.connections == 0
        return self.quiet is not None and self.quiet >= QUIET


@dataclass(slots=True)
class Draining:
    """Follows a real server that drains.

    Args:
        real_server: its name.
        virtual_service: in this one alone; None for all that have it.
    """

    real_server: str
    virtual_service: str | None = None
    _packets: dict[str, tuple[int, float]] = field(default_factory=dict)

    def look(self, status: Status, now: float) -> list[Remaining]:
        """What is left of each virtual service; none where no service has the server.

        Args:
            status: of this moment.
            now: seconds of a clock that never goes back.
        """
        return [
            self._remaining(service, server, now)
            for service in status.virtual_services
            if self.virtual_service in (None, service.name)
            for server in service.real_servers
            if server.name == self.real_server and server.state not in ("spare", "sorry")
        ]

    def _remaining(
        self, service: VirtualServiceStatus, server: RealServerStatus, now: float
    ) -> Remaining:
        active, inactive = server.active_connections, server.inactive_connections
        if active is not None and inactive is not None and not _is_uncounted(service):
            # of UDP IPVS calls none active
            connections = active + inactive if service.protocol == "udp" else active
            return Remaining(service.name, server.state, connections)
        packets, since = self._packets.get(service.name, (-1, now))
        if packets != server.totals.packets_in:
            packets, since = server.totals.packets_in, now
        self._packets[service.name] = packets, since
        return Remaining(service.name, server.state, None, now - since)


def _is_uncounted(service: VirtualServiceStatus) -> bool:
    """Whether packets go by IPVS, which then knows of no connections."""
    forwards = service.fastpath.state == "forwards"
    return forwards and service.scheduler == "mh" and service.persistence is None
