"""What the daemon does when it is asked on the control socket."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable
from typing import Any, Protocol

from pydantic import BaseModel

from lbdr import __version__
from lbdr.control.protocol import (
    Done,
    EventsRequest,
    EventsResult,
    ExplainRequest,
    FailbackRequest,
    FastPathRequest,
    FastPathResult,
    FlowsRequest,
    OperatorRequest,
    PlanRequest,
    PlanResult,
    ReloadRequest,
    Request,
    RoleRequest,
    RoleResult,
    StatusRequest,
    WeightRequest,
    WithdrawRequest,
)
from lbdr.director import Director
from lbdr.errors import ControlError
from lbdr.events import EventKind, Wanted, read
from lbdr.fastpath_keeper import FastPathKeeper
from lbdr.health_keeper import HealthKeeper
from lbdr.marks import key_of
from lbdr.model import Role, VirtualService
from lbdr.operator_states import EVERYWHERE, OperatorState, changed
from lbdr.questions import Questions
from lbdr.status import Status, director_status
from lbdr.status_alone import without_ipvs
from lbdr.vip_owners import vip_owners


class Serving(Protocol):
    """What serves a director: lbdr.daemon.Daemon."""

    fastpath: FastPathKeeper
    health: HealthKeeper

    async def reload(self) -> None:
        """Read the configuration again and mark everything."""


class Requests:
    """Does requests.

    Args:
        director: at run time.
        daemon: that serves it.
    """

    def __init__(
        self,
        director: Director,
        daemon: Serving,
    ) -> None:
        self._director = director
        self._fastpath = daemon.fastpath
        self._health = daemon.health
        self._reload = daemon.reload
        self._questions = Questions(director, daemon.fastpath)

    async def handle(self, request: Request) -> dict[str, Any]:
        """Do a request.

        Raises:
            LbdrError: it was not done, or left something undone.
        """
        return (await self._result(request)).model_dump(mode="json")

    async def _result(self, request: Request) -> BaseModel:  # noqa: C901  # a case for each
        match request:
            case StatusRequest():
                result: BaseModel = await self._status()
            case PlanRequest():
                result = await self._plan()
            case RoleRequest(role=role, reset=reset):
                result = await self._role(role, reset=reset)
            case WeightRequest():
                result = await self._weight(request)
            case OperatorRequest():
                result = await self._operator(request)
            case FailbackRequest():
                result = await self._failback(request)
            case EventsRequest():
                result = await self._events(request)
            case FastPathRequest():
                result = await self._fast_path(request)
            case ExplainRequest():
                result = await self._questions.explain(request)
            case FlowsRequest():
                result = await self._questions.flows(request)
            case ReloadRequest():
                await self._reload()
                result = await self._done()
            case WithdrawRequest():
                result = await self._withdraw()
        return result

    async def _status(self) -> Status:
        director = self._director
        status = director_status(
            director.loaded.configuration,
            role=director.role,
            services=await director.kernel.observe_services(),
            owned=director.reconciler.state.owned.services,
            network=director.network,
            weights=director.weights(),
            health=self._health.status(),
            marks=director.reconciler.state.marks,
            operator=director.operator_states(),
            owners=await vip_owners(director.loaded.configuration, director.network),
            problems=director.problems(),
            config=str(director.paths.config),
            version=__version__,
            kernel=os.uname().release,
            daemon=os.getpid(),
        )
        status = self._fastpath.status(status)
        return without_ipvs(status) if director.kernel.own_table is not None else status

    async def _plan(self) -> PlanResult:
        director = self._director
        plan, _ = await director.reconciler.plan(director.desired())
        return PlanResult(
            operations=plan.commands,
            conflicts=[str(conflict) for conflict in plan.conflicts],
        )

    async def _role(self, role: Role | None, *, reset: bool) -> RoleResult:
        director = self._director
        operations: list[str] = []
        if role is not None or reset:
            before = director.role
            director.reconciler.save(role=role)
            if director.role is not before:
                director.tell(EventKind.ROLE, f"{director.role} by the operator's word")
            if director.withdrawn:
                director.withdrawn = False
                director.dirty.mark_everything()
            director.dirty.mark(host=True)
            operations = (await self._done()).operations
        return RoleResult(
            role=director.role, configured=director.configured_role, operations=operations
        )

    async def _weight(self, request: WeightRequest) -> Done:
        director = self._director
        weights = dict(director.reconciler.state.weights)
        touched = self._having(request.real_server, request.virtual_service)
        for virtual in touched:
            if request.weight is None:
                weights.pop((virtual.name, request.real_server), None)
            else:
                weights[virtual.name, request.real_server] = request.weight
        director.reconciler.save(weights=weights)
        weight = "the file's" if request.weight is None else request.weight
        for virtual in touched:
            words = f"weight of {request.real_server} in {virtual.name}: {weight}"
            director.tell(EventKind.OPERATOR, words, virtual.name, request.real_server)
        self._health.configure([virtual.name for virtual in touched])
        self._mark(touched)
        return await self._done()

    async def _operator(self, request: OperatorRequest) -> Done:
        director = self._director
        states = director.reconciler.state.operator
        known = any(server == request.real_server for _, server in states)
        if not known or request.virtual_service:  # what left the file can be put online again
            self._having(request.real_server, request.virtual_service)
        now = time.time()
        deadline = None if request.deadline is None else now + request.deadline
        virtual_services = director.loaded.configuration.virtual_services
        found = changed(
            states,
            virtual_services,
            request.real_server,
            request.virtual_service or EVERYWHERE,
            OperatorState(request.state, now, deadline),
        )
        director.reconciler.save(operator=found)
        words = f"{request.real_server} in {request.virtual_service or 'all'}: {request.state}"
        if request.deadline is not None:
            words += f", halt in {request.deadline:g} s"
        director.tell(EventKind.OPERATOR, words, request.virtual_service, request.real_server)
        touched = [
            virtual
            for virtual in virtual_services
            if any(server.name == request.real_server for server in virtual.real_servers)
        ]
        self._health.configure([virtual.name for virtual in touched])
        self._mark(touched)
        return await self._done()

    def _mark(self, virtual_services: Iterable[VirtualService]) -> None:
        """Have services looked at again."""
        marks = self._director.reconciler.state.marks
        keys = (key_of(virtual, marks) for virtual in virtual_services)
        self._director.dirty.mark(key for key in keys if key is not None)

    async def _failback(self, request: FailbackRequest) -> Done:
        """Hand back what standby servers took over."""
        director = self._director
        virtual = self._known(request.virtual_service)
        self._health.fail_back(virtual.name, request.real_server)
        words = f"failback of {virtual.name}"
        director.tell(EventKind.OPERATOR, words, virtual.name, request.real_server or "")
        self._mark([virtual])
        return await self._done()

    def _known(self, name: str) -> VirtualService:
        """The virtual service of a name.

        Raises:
            ControlError: there is none.
        """
        for virtual in self._director.loaded.configuration.virtual_services:
            if virtual.name == name:
                return virtual
        raise ControlError(
            f"there is no virtual service {name}", hint="`lbdr status` shows the names"
        )

    def _having(self, real_server: str, virtual_service: str | None) -> list[VirtualService]:
        """The virtual services that have a real server, all or the one of a name.

        Raises:
            ControlError: there are none.
        """
        found = [
            virtual
            for virtual in self._director.loaded.configuration.virtual_services
            if virtual_service in (None, virtual.name)
            and any(server.name == real_server for server in virtual.real_servers)
        ]
        if not found:
            where = (
                f"virtual service {virtual_service}" if virtual_service else "any virtual service"
            )
            raise ControlError(
                f"there is no real server {real_server} in {where}",
                hint="`lbdr status` shows the names",
            )
        return found

    async def _fast_path(self, request: FastPathRequest) -> FastPathResult:
        director = self._director
        names = {virtual.name for virtual in director.loaded.configuration.virtual_services}
        name = request.virtual_service
        if name is not None and name not in names:
            raise ControlError(
                f"there is no virtual service {name}", hint="`lbdr status` shows the names"
            )
        if director.kernel.own_table is not None and not request.on:
            raise ControlError(
                f"{name or 'a service'} cannot be left to IPVS: this kernel has none, and nothing "
                "else would forward",
                hint="`lbdr role standby` gives the VIPs up, `lbdr withdraw` takes all down",
            )
        off = director.reconciler.state.fastpath_off & (names | {""})
        if request.on:
            off = off - {name} if name else frozenset()
            if name and "" in off:
                off = frozenset(names - {name})
        else:
            off |= {name or ""}
        director.reconciler.save(fastpath_off=off)
        words = f"fast path {'on' if request.on else 'off'} for {name or 'all'} by the operator"
        director.tell(EventKind.FASTPATH, words, name)
        return await self._fastpath.follow()

    async def _events(self, request: EventsRequest) -> EventsResult:
        """The last ones that are meant; reading them takes no time of the event loop's."""
        directory = self._director.paths.state
        wanted = Wanted(**request.model_dump(exclude={"command"}))
        found = await asyncio.to_thread(lambda: wanted.of(read(directory)))
        return EventsResult(events=found)

    async def _withdraw(self) -> Done:
        """Everything out, then the end; what the kernel refuses is tried again until it is out."""
        director = self._director
        director.withdrawn = True
        director.dirty.mark_everything()
        done = await self._done()
        director.stop.set()
        return done

    async def _done(self) -> Done:
        """Wait until what was marked has been looked at; an error where something is undone."""
        director = self._director
        report = await director.dirty.settled()
        error = report.error()
        if error is not None:
            raise error
        return Done(
            operations=report.commands,
            role=director.role,
            virtual_services=len(director.loaded.configuration.virtual_services),
        )
