"""Keeps the verdicts on real servers, and decides by them who serves: a task of the daemon.

A changed decision marks its service; what the kernel is to hold follows from it. When the daemon
stops, IPVS stays as it was decided last, and the next one begins with what this one knew.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import replace

from lbdr.director import Director
from lbdr.events import EventKind
from lbdr.health.decision import Decision, Presence, Share
from lbdr.health.engine import Engine
from lbdr.health.feedback import Agents
from lbdr.health.results import Failed, FailureKind, Result
from lbdr.health.services import Facts, ServerOf, ServiceHealth, Services
from lbdr.health.spec import Agent, Probe
from lbdr.health.verdicts import Tally, Verdict
from lbdr.health_memory import HealthMemory, Known, name_of
from lbdr.marks import key_of
from lbdr.operator_states import next_deadline
from lbdr.status import ServerHealth

log = logging.getLogger(__name__)

_SAVE_EVERY = 1.0  # seconds between two writes of what is known, at least


class HealthKeeper:
    """The health of a running director's virtual services.

    Args:
        director: whose services they are.
    """

    def __init__(self, director: Director) -> None:
        self._director = director
        self._memory = HealthMemory(director.paths.run)
        known = self._memory.load()
        self._known: Mapping[str, Verdict] = known.verdicts
        self._services = Services(known.memories)
        self._engine = Engine(self._changed, runner=self._run)
        self._agents = Agents(self._heard)
        self._wake = asyncio.Event()
        self._unsaved = False
        self._looked = time.time()  # for drains that became halts

    def configure(self, names: Collection[str] | None = None) -> None:
        """Take what is wanted from now on: the file's, with the operator's weights and states.

        Those whose decision changed are marked.

        Args:
            names: virtual services that may be decided otherwise by it; None for all.
        """
        loaded, state = self._director.loaded, self._director.reconciler.state
        services = {
            name: _weighted(name, health, state.weights) for name, health in loaded.health.items()
        }
        self._services.configure(services)
        known = {
            probe: verdict
            for probe in self._services.probes
            if (verdict := self._known.get(name_of(probe))) is not None
        }
        self._engine.watch(self._services.probes, known)
        self._known = {}  # from now on the engine knows
        self._agents.watch(agent for one in services.values() for agent in one.agents.values())
        self._decide(services if names is None else names)

    async def run(self) -> None:
        """Check and decide, until cancelled."""
        try:
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._pause()):
                        await self._wake.wait()
                self._wake.clear()
                self._take_deadlines()
                self._decide(self._services.due(asyncio.get_running_loop().time()))
                if self._unsaved:
                    self._save()
                    await asyncio.sleep(_SAVE_EVERY)
        finally:
            self._save()
            await self._engine.close()
            await self._agents.close()

    def fail_back(self, virtual_service: str, standby: str | None) -> None:
        """Hand back what a service's standby servers took over.

        Args:
            virtual_service: its name.
            standby: this one alone; None for all of them.
        """
        self._services.fail_back(virtual_service, None if standby is None else [standby])
        self._decide([virtual_service])

    def verdict(self, probe: Probe) -> Verdict:
        """What is known by a probe under watch."""
        return self._engine.tally(probe).verdict

    def status(self) -> dict[ServerOf, ServerHealth]:
        """What is known of each real server of each virtual service, and why it does not serve."""
        facts, found = self._facts(), {}
        ahead = time.time() - asyncio.get_running_loop().time()
        for name, decision in self._services.decisions.items():
            for server, share in decision.shares.items():
                verdict = self._services.verdict((name, server), facts)
                serves = share.presence is Presence.SERVE
                found[name, server] = ServerHealth(
                    verdict="unchecked" if verdict is None else verdict.status.value,
                    serves=serves,
                    reason="" if serves else share.reason,
                    why="" if verdict is None else verdict.why,
                    since=None if verdict is None else verdict.since + ahead,
                    latency=None if verdict is None else verdict.latency,
                )
        return found

    # --- what is heard ---------------------------------------------------------------------------

    def _changed(self, probe: Probe, _tally: Tally, _was: Verdict) -> None:
        self._decide(self._services.concerned(probe))

    def _heard(self, _agent: Agent, _report: object) -> None:
        self._decide(self._director.loaded.health)

    async def _run(self, probe: Probe) -> Result:
        """Run a check; while this host's own link is down, what fails is no server's fault."""
        result = await self._engine.check_now(probe)
        if isinstance(result, Failed):
            interface = self._director.network.interface_for(probe.target.address)
            if interface is not None and not interface.up:
                words = f"this director's interface {interface.name} is down"
                return replace(result, words=words, kind=FailureKind.LOCAL)
        return result

    # --- deciding --------------------------------------------------------------------------------

    def _facts(self) -> Facts:
        states = self._director.operator_states()
        operators = {where: state.standing for where, state in states.items()}
        agents = {
            (name, server): report
            for name, health in self._director.loaded.health.items()
            for server, agent in health.agents.items()
            if (report := self._agents.report(agent)) is not None
        }
        return Facts(self.verdict, operators, agents)

    def _take_deadlines(self) -> None:
        """Decide again where a drain became a halt since this was asked last."""
        now, operator = time.time(), self._director.reconciler.state.operator
        deadline = next_deadline(operator, self._looked)
        self._looked = now
        if deadline is not None and deadline <= now:
            self._decide(self._director.loaded.health)

    def _decide(self, names: Collection[str]) -> None:
        if not names:
            return
        before = self._services.decisions
        now = asyncio.get_running_loop().time()
        changed = self._services.decide(names, self._facts(), now)
        self._unsaved = True
        self._wake.set()
        if not changed:
            return
        director = self._director
        director.decisions = self._services.decisions
        for name, decision in changed.items():
            self._tell(name, before.get(name), decision)
        marks = director.reconciler.state.marks
        virtual_services = director.loaded.configuration.virtual_services
        keys = (key_of(one, marks) for one in virtual_services if one.name in changed)
        director.dirty.mark(key for key in keys if key is not None)

    def _tell(self, name: str, before: Decision | None, decision: Decision) -> None:
        for server, share in decision.shares.items():
            was = before.shares.get(server) if before is not None else None
            if was is None:
                if share.presence is Presence.SERVE or _by_operator(share):
                    continue  # as it was begun
            elif was.presence is share.presence or _by_operator(was, share):
                continue  # the operator's word is an event of its own
            self._director.tell(EventKind.HEALTH, _words(name, server, share), name, server)
        if before is not None and before.sorry is not decision.sorry:
            words = "the sorry server serves" if decision.sorry else "real servers serve again"
            self._director.tell(EventKind.HEALTH, f"{name}: {words}", name)

    def _pause(self) -> float | None:
        """Seconds until something is to be decided though nothing is heard."""
        again = self._services.again
        deadline = next_deadline(self._director.reconciler.state.operator, self._looked)
        waits = [] if again is None else [again - asyncio.get_running_loop().time()]
        waits += [] if deadline is None else [deadline - time.time()]
        return max(0.0, min(waits)) if waits else None

    def _save(self) -> None:
        self._unsaved = False
        verdicts = {name_of(probe): self.verdict(probe) for probe in self._engine.probes}
        reason = self._memory.save(Known(verdicts, self._services.memories))
        self._director.set_trouble("keeping what is known of real servers", reason)


def _weighted(
    name: str, health: ServiceHealth, weights: Mapping[tuple[str, str], int]
) -> ServiceHealth:
    """With the operator's weights over the file's."""
    members = {
        server: replace(member, weight=weights.get((name, server), member.weight))
        for server, member in health.policy.members.items()
    }
    return replace(health, policy=replace(health.policy, members=members))


def _by_operator(*shares: Share) -> bool:
    return any(share.reason.endswith("by the operator") for share in shares)


def _words(name: str, server: str, share: Share) -> str:
    presence = {
        Presence.SERVE: "serves",
        Presence.QUIESCE: "takes no new connections",
        Presence.OUT: "is out",
    }
    return f"{server} in {name} {presence[share.presence]}: {share.reason}"
