"""All virtual services' decisions: whom a verdict concerns, and what changes by it; pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from lbdr.health.decision import Condition, Decision, Memory
from lbdr.health.policy import Policy
from lbdr.health.ramps import AgentReport
from lbdr.health.rules import decide, fail_back
from lbdr.health.spec import Agent, Probe
from lbdr.health.verdicts import Verdict, combine, dependent
from lbdr.model import Standing

ServerOf = tuple[str, str]
"""A real server of a virtual service: (virtual service, real server)."""


@dataclass(frozen=True, slots=True)
class ServiceHealth:
    """What a virtual service's health is made of.

    Args:
        policy: its rules.
        probes: of each real server, all of which must pass; a server without any is up.
        needs: what each real server depends on: probes by the name of what is needed.
        agents: the feedback agent of each real server.
    """

    policy: Policy
    probes: Mapping[str, tuple[Probe, ...]] = field(default_factory=dict)
    needs: Mapping[str, Mapping[str, tuple[Probe, ...]]] = field(default_factory=dict)
    agents: Mapping[str, Agent] = field(default_factory=dict)

    def probes_of(self, server: str) -> Iterable[Probe]:
        """Everything that decides on a server."""
        yield from self.probes.get(server, ())
        for probes in self.needs.get(server, {}).values():
            yield from probes


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known beside the configuration.

    Args:
        verdict: on a probe.
        operators: what the operator wants; online where nothing is said.
        agents: the feedback agents' last words.
    """

    verdict: Callable[[Probe], Verdict]
    operators: Mapping[ServerOf, Standing] = field(default_factory=dict)
    agents: Mapping[ServerOf, AgentReport] = field(default_factory=dict)


class Services:
    """The decisions of all virtual services, and what must be remembered for the next ones.

    Args:
        memories: of an earlier process.
    """

    def __init__(self, memories: Mapping[str, Memory] | None = None) -> None:
        self._memories = dict(memories or {})
        self._services: Mapping[str, ServiceHealth] = {}
        self._concerned: dict[Probe, set[str]] = {}
        self._decisions: dict[str, Decision] = {}

    @property
    def probes(self) -> frozenset[Probe]:
        """What is to be watched."""
        return frozenset(self._concerned)

    @property
    def memories(self) -> Mapping[str, Memory]:
        """What must outlive the process, by service."""
        return dict(self._memories)

    @property
    def decisions(self) -> Mapping[str, Decision]:
        """What is in force, by service."""
        return dict(self._decisions)

    @property
    def again(self) -> float | None:
        """When some service is to be decided again although nothing was heard; None for never."""
        times = [each.again for each in self._decisions.values() if each.again is not None]
        return min(times, default=None)

    def configure(self, services: Mapping[str, ServiceHealth]) -> None:
        """Take a new configuration; what is remembered of services that stay is kept.

        Every service is to be decided afterwards.
        """
        self._services = services
        self._concerned = {}
        for name, service in services.items():
            for server in service.policy.members:
                for probe in service.probes_of(server):
                    self._concerned.setdefault(probe, set()).add(name)
        for gone in self._memories.keys() - services.keys():
            del self._memories[gone]
        for gone in self._decisions.keys() - services.keys():
            del self._decisions[gone]

    def concerned(self, probe: Probe) -> frozenset[str]:
        """The services that a probe's verdict is about."""
        return frozenset(self._concerned.get(probe, ()))

    def due(self, now: float) -> frozenset[str]:
        """The services that are to be decided again by now."""
        return frozenset(
            name
            for name, decision in self._decisions.items()
            if decision.again is not None and decision.again <= now
        )

    def decide(self, names: Iterable[str], facts: Facts, now: float) -> dict[str, Decision]:
        """Decide on services; those are returned whose decision is another one than before.

        Args:
            names: which of them; names that are not configured are left out.
            facts: verdicts, the operator's wishes, agents' words.
            now: on the verdicts' clock.
        """
        changed = {}
        for name in names:
            service = self._services.get(name)
            if service is None:
                continue
            conditions = {
                server: _condition(service, (name, server), facts)
                for server in service.policy.members
            }
            memory = self._memories.get(name, Memory())
            self._memories[name], decision = decide(service.policy, memory, conditions, now)
            if decision != self._decisions.get(name):
                changed[name] = decision
            self._decisions[name] = decision
        return changed

    def verdict(self, where: ServerOf, facts: Facts) -> Verdict | None:
        """What is known of a real server of a service; None where nothing checks it."""
        service = self._services.get(where[0])
        if service is None or not any(service.probes_of(where[1])):
            return None
        return _condition(service, where, facts).verdict

    def fail_back(self, name: str, standbys: Iterable[str] | None = None) -> None:
        """Hand back what a service's standby servers took over; decide on it afterwards."""
        self._memories[name] = fail_back(self._memories.get(name, Memory()), standbys)


def _condition(service: ServiceHealth, where: ServerOf, facts: Facts) -> Condition:
    server = where[1]
    verdicts = [facts.verdict(probe) for probe in service.probes.get(server, ())]
    for needed, probes in service.needs.get(server, {}).items():
        verdicts += [dependent(needed, facts.verdict(probe)) for probe in probes]
    return Condition(
        combine(verdicts), facts.operators.get(where, Standing.ONLINE), facts.agents.get(where)
    )
