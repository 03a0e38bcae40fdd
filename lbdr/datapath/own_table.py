"""The virtual services of a director whose kernel has no IPVS: a list of lbdr's own.

It stands where IPVS would: it takes the same operations, answers the same questions and keeps its
real servers in the same order, which decides the mh table. So all else plans, applies and follows
as it does beside IPVS. It lives in the process; who opens it loads it with what was kept.

Source of the rules: net/netfilter/ipvs/ip_vs_ctl.c.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from lbdr.datapath.ipvs_text import Scheduled
from lbdr.errors import KernelError, LbdrError
from lbdr.model import Key, ObservedRealServer, ObservedService, RealServer, Service, Timeouts
from lbdr.operations import (
    AddRealServer,
    AddService,
    DeleteRealServer,
    DeleteService,
    IpvsOperation,
    SetRealServer,
    SetService,
    SetTimeouts,
)
from lbdr.own_words import words

_ROUTE = "Route"  # IPVS's word for Direct Routing


class OwnTable:
    """Virtual services, each with its real servers: the one added last is the first."""

    def __init__(self) -> None:
        self._services: dict[Key, Service] = {}

    def load(self, services: Iterable[Service]) -> None:
        """Begin with what an earlier process kept, instead of what is there."""
        self._services = {service.key: service for service in services}

    @property
    def kept(self) -> tuple[Service, ...]:
        """What the next process is to load."""
        return tuple(self._services[key] for key in sorted(self._services, key=_order))

    def close(self) -> None:
        """Nothing is open."""

    # --- what is there ---------------------------------------------------------------------------

    def services(self) -> list[ObservedService]:
        """All virtual services, without their real servers."""
        return [ObservedService(replace(each, real_servers=())) for each in self.kept]

    def service(self, key: Key) -> ObservedService | None:
        """One virtual service with its real servers; None where there is none."""
        found = self._services.get(key)
        return None if found is None else _observed(found)

    def observe(self) -> Iterator[ObservedService]:
        """All virtual services with their real servers."""
        return (_observed(each) for each in self.kept)

    def timeouts(self) -> Timeouts:
        """None: nothing is remembered here."""
        return Timeouts()

    def schedules(self) -> dict[Key, tuple[str, tuple[Scheduled, ...]]]:
        """As lbdr.datapath.ipvs_text.schedules tells of IPVS."""
        return {
            key: (
                service.scheduler,
                tuple(
                    Scheduled(server.address, server.port, _ROUTE, server.weight)
                    for server in service.real_servers
                ),
            )
            for key, service in self._services.items()
        }

    # --- do it -----------------------------------------------------------------------------------

    def apply(self, operations: Sequence[IpvsOperation]) -> list[LbdrError | None]:
        """Do operations; None for each that is now as asked, or the error that IPVS would give."""
        return [self._refused(operation) for operation in operations]

    def _refused(self, operation: IpvsOperation) -> LbdrError | None:
        number = self._do(operation)
        return KernelError(words(operation, alone=True), errno=number) if number else None

    def _do(self, operation: IpvsOperation) -> int:
        """Do one; the error number, 0 for done."""
        match operation:
            case AddService(service):
                if service.key in self._services:
                    return errno.EEXIST
                self._services[service.key] = replace(service, real_servers=())
            case SetService(service):
                there = self._services.get(service.key)
                if there is None:
                    return errno.ESRCH
                self._services[service.key] = replace(service, real_servers=there.real_servers)
            case DeleteService(key):
                self._services.pop(key, None)
            case AddRealServer(key, server) | SetRealServer(key, server):
                return self._put(key, server, new=isinstance(operation, AddRealServer))
            case DeleteRealServer(key, server):
                if key in self._services:
                    self._write(key, (each for each in self._of(key) if each.key != server.key))
            case SetTimeouts():
                return errno.EOPNOTSUPP
        return 0

    def _put(self, key: Key, server: RealServer, *, new: bool) -> int:
        if key not in self._services:
            return errno.ESRCH
        is_there = any(each.key == server.key for each in self._of(key))
        if new == is_there:
            return errno.EEXIST if new else errno.ENOENT
        if new:  # list_add: the last one added is the first of the list
            self._write(key, (server, *self._of(key)))
        else:
            self._write(key, (server if each.key == server.key else each for each in self._of(key)))
        return 0

    def _of(self, key: Key) -> tuple[RealServer, ...]:
        return self._services[key].real_servers

    def _write(self, key: Key, servers: Iterable[RealServer]) -> None:
        self._services[key] = replace(self._services[key], real_servers=tuple(servers))


def _order(key: Key) -> tuple[int, int, str, int]:
    return key.sort_key


def _observed(service: Service) -> ObservedService:
    return ObservedService(service, tuple(map(ObservedRealServer, service.real_servers)))
