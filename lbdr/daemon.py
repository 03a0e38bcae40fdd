"""The daemon: keeps the kernel as the configuration wants it, and answers on the control socket.

Every event only marks what is to be looked at; one task reconciles. Stopping, or being killed,
leaves the datapath as it is: the next start finds it and plans nothing.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Collection
from contextlib import AsyncExitStack, suppress
from dataclasses import replace

from lbdr.config.host import host_problems
from lbdr.config.load import load
from lbdr.control.server import ControlServer
from lbdr.datapath.kernel import Kernel
from lbdr.datapath.notices import Change, ChangeKind
from lbdr.director import Director
from lbdr.drift import DriftWatch
from lbdr.errors import ConfigError, LbdrError
from lbdr.model import DesiredState, MarkKey, ServiceKey
from lbdr.notify import notify, watchdog
from lbdr.paths import Paths, exclusive
from lbdr.reconcile import Reconciler
from lbdr.report import Report, Scope
from lbdr.requests import Requests
from lbdr.state import StateStore

log = logging.getLogger(__name__)

Key = ServiceKey | MarkKey

_FIRST_RETRY = 1.0  # seconds
_LONGEST_RETRY = 30.0


async def run(paths: Paths) -> None:
    """Start, serve, and stop on SIGTERM, SIGINT or a withdrawal.

    Args:
        paths: of the director.

    Raises:
        LbdrError: it cannot start; nothing was changed then.
    """
    async with AsyncExitStack() as stack:
        stack.enter_context(exclusive(paths, who="daemon"))
        store = StateStore(paths.state)
        state = store.load()
        loaded = load(paths.config)
        kernel = await stack.enter_async_context(await Kernel.open())
        director = Director(paths, kernel, Reconciler(kernel, store, state), loaded)
        director.network = await kernel.addresses.observe()
        _refuse_what_never_works(director)
        await director.use(loaded)
        daemon = Daemon(director)
        server = ControlServer(paths, Requests(director, daemon.reload).handle)
        await server.start()
        stack.push_async_callback(server.close)
        await daemon.serve()


def _refuse_what_never_works(director: Director) -> None:
    """At boot an interface may come late: that alone is no reason not to serve the others."""
    problems = director.host_problems()
    if any(virtual.needs_mark for virtual in director.loaded.configuration.virtual_services):
        raise ConfigError(problems)
    for problem in problems:
        log.error("%s", problem)


class Daemon:
    """The tasks of a running director.

    Args:
        director: everything opened, nothing changed yet.
    """

    def __init__(self, director: Director) -> None:
        self._director = director
        self._retry = _FIRST_RETRY
        self._retry_timer: asyncio.TimerHandle | None = None
        self._served_between: set[Key] = set()
        self._in_force = DesiredState()  # what the kernel was seen to hold, as wanted

    async def serve(self) -> None:
        """Run until the director is to stop; a task that fails ends the daemon, loudly."""
        director = self._director
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, director.stop.set)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(coroutine)
                    for coroutine in (
                        self._reconcile(),
                        self._watch_network(),
                        self._watch_drift(),
                        watchdog(),
                    )
                ]
                loop.add_signal_handler(
                    signal.SIGHUP, lambda: tasks.append(group.create_task(self._hangup()))
                )
                await director.stop.wait()
                notify("STOPPING=1")
                for task in tasks:
                    task.cancel()
        finally:
            if self._retry_timer is not None:
                self._retry_timer.cancel()
            if director.kernel.announcer is not None:
                await director.kernel.announcer.close()
        log.info("stopped: %s", "all withdrawn" if director.withdrawn else "IPVS and VIPs stay")

    async def reload(self) -> None:
        """Read the configuration again, and put it in force where it is right.

        Problems with this machine that were there before are no reason to refuse.

        Raises:
            ConfigError: it is not right; nothing changes then.
        """
        director = self._director
        loaded = await asyncio.to_thread(load, director.paths.config)
        director.network = await director.kernel.addresses.observe()
        known = {problem.message for problem in director.host_problems()}
        found = host_problems(loaded, director.network)
        new = [problem for problem in found if problem.message not in known]
        if new:
            raise ConfigError(new)
        await director.use(loaded)
        log.info("configuration %s is in force", director.paths.config)
        director.dirty.mark_everything()

    async def _hangup(self) -> None:
        try:
            await self.reload()
        except LbdrError as error:
            self._director.set_trouble("reload refused, nothing changed", str(error))
        else:
            self._director.set_trouble("reload refused, nothing changed", "")

    # --- reconciling -----------------------------------------------------------------------------

    async def _reconcile(self) -> None:
        director = self._director
        while True:
            await director.dirty.wait()
            scope, waiting = director.dirty.take()
            try:
                report = await self._pass(scope)
            except LbdrError as error:
                self._fail(error, waiting)
            else:
                director.set_trouble("reconciling", "")
                _tell(waiting, report)

    async def _pass(self, scope: Scope) -> Report:
        director = self._director
        self._served_between.clear()
        if scope.host:
            director.network = await director.kernel.addresses.observe()
        desired = director.desired()
        report = await director.reconciler.reconcile(
            desired,
            scope,
            why="drift, put back" if self._was_in_force(desired, scope) else "applied",
            network=director.network,
            between=self._between,
        )
        director.take_report(report, scope)
        if report.failed or report.skipped or report.remaining:
            self._try_again()
            return report
        if scope.services is None:
            self._retry = _FIRST_RETRY
        self._put_in_force(desired, scope)
        return report

    def _was_in_force(self, desired: DesiredState, scope: Scope) -> bool:
        """Whether all that a pass is about was as wanted already: what differs now is drift."""
        keys = desired.services.keys() if scope.services is None else scope.services
        before = self._in_force
        return (not scope.host or _of_host(before) == _of_host(desired)) and all(
            before.services.get(key) == desired.services.get(key) for key in keys
        )

    def _put_in_force(self, desired: DesiredState, scope: Scope) -> None:
        keys = desired.services.keys() if scope.services is None else scope.services
        seen = {key: desired.services[key] for key in keys & desired.services.keys()}
        others = {} if scope.services is None else dict(self._in_force.services)
        host = desired if scope.host else self._in_force
        self._in_force = replace(host, services={**others, **seen})

    async def _between(self) -> Collection[Key]:
        """Serve services that were marked while a long pass is under way."""
        director = self._director
        services, waiting = director.dirty.take_services()
        if services:
            scope = Scope(services=services, host=False)
            try:
                report = await director.reconciler.reconcile(director.desired(), scope, attempts=1)
            except LbdrError as error:
                self._fail(error, waiting)
            else:
                director.take_report(report, scope)
                _tell(waiting, report)
            self._served_between |= services
        return self._served_between

    def _fail(self, error: LbdrError, waiting: list[asyncio.Future[Report]]) -> None:
        """A pass ended early: say so, tell those who wait, and look again later."""
        self._director.set_trouble("reconciling", str(error))
        self._try_again()
        for future in waiting:
            if not future.done():
                future.set_exception(error)

    def _try_again(self) -> None:
        """Look at everything again later, ever later while it goes on failing."""
        if self._retry_timer is None:
            loop = asyncio.get_running_loop()
            self._retry_timer = loop.call_later(self._retry, self._retry_now)
            self._retry = min(self._retry * 2, _LONGEST_RETRY)

    def _retry_now(self) -> None:
        self._retry_timer = None
        self._director.dirty.mark_everything()

    # --- watching --------------------------------------------------------------------------------

    async def _watch_drift(self) -> None:
        """The first pass, the word to the service manager, and then polling."""
        director = self._director
        director.dirty.mark_everything()
        with suppress(LbdrError):  # told as trouble, and tried again
            await director.dirty.settled()
        configuration = director.loaded.configuration
        count = len(configuration.virtual_services)
        log.info(
            "director %s ready: %s, %d virtual services",
            configuration.director.name,
            director.role,
            count,
        )
        notify("READY=1", f"STATUS={director.role}, {count} virtual services")
        self._announce_adopted()
        watch = DriftWatch(director.kernel)
        while True:
            if self._retry_timer is None:  # else what failed is looked at when its time comes
                self._poll(watch)
            await asyncio.sleep(director.loaded.configuration.director.drift_check)

    def _announce_adopted(self) -> None:
        """VIPs that were there before this process have no one to announce them yet."""
        announcer = self._director.kernel.announcer
        if announcer is not None:
            announcer.add(self._director.held() - announcer.vips)

    def _poll(self, watch: DriftWatch) -> None:
        director = self._director
        try:
            scope = watch.poll(director.desired(), director.reconciler.state.owned)
        except LbdrError as error:
            director.set_trouble("watching IPVS and sysctls", str(error))
            return
        director.set_trouble("watching IPVS and sysctls", "")
        if scope is not None:
            director.dirty.mark(scope.services or (), host=scope.host)

    async def _watch_network(self) -> None:
        director = self._director
        while True:
            try:
                async for change in director.kernel.addresses.changes():
                    director.set_trouble("watching interfaces", "")
                    self._take_change(change)
            except LbdrError as error:
                director.set_trouble("watching interfaces", str(error))
                await asyncio.sleep(_FIRST_RETRY)

    def _take_change(self, change: Change) -> None:
        director = self._director
        announcer = director.kernel.announcer
        if change.kind is ChangeKind.LINK_UP and announcer is not None:
            # a switch whose port was down has forgotten where the VIPs are
            announcer.add(vip for vip in announcer.vips if vip.interface == change.interface)
        director.dirty.mark(host=True)


def _of_host(state: DesiredState) -> DesiredState:
    """A state without its services."""
    return replace(state, services={})


def _tell(waiting: list[asyncio.Future[Report]], report: Report) -> None:
    for future in waiting:
        if not future.done():
            future.set_result(report)
