"""From a document to the health of its virtual services: probes, and rules for who may serve."""

from __future__ import annotations

from collections.abc import Sequence

from lbdr import model
from lbdr.config import schema
from lbdr.config.check_build import are_few, probes_of
from lbdr.config.check_schema import Check
from lbdr.config.health_schema import Dependency, policy_of
from lbdr.health.policy import Member
from lbdr.health.services import ServiceHealth
from lbdr.health.spec import Agent, Probe, Target


def health(document: schema.Document) -> dict[str, ServiceHealth]:
    """The health of each virtual service by its name.

    Args:
        document: one in which `rules` found nothing wrong.
    """
    return {
        name: _service(service, document) for name, service in document.virtual_services.items()
    }


def checks_of(service: schema.VirtualService, director: schema.Director) -> Sequence[Check]:
    """The checks of a virtual service: its own, or the director's where it says nothing."""
    if service.check is not None:
        return service.check
    is_tcp = service.protocol == model.Protocol.TCP.value
    return director.check if is_tcp and are_few(model.Ports(tuple(service.ports))) else ()


def _service(service: schema.VirtualService, document: schema.Document) -> ServiceHealth:
    checks = checks_of(service, document.director)
    ports = model.Ports(tuple(service.ports))
    members, probes, needs, agents = {}, {}, {}, {}
    for use in service.real_servers:
        server = document.real_servers[use.server]
        members[use.server] = Member(use.weight, frozenset(use.standby_for))
        probes[use.server] = tuple(
            probe
            for check in checks
            if check.type != "on"
            for probe in probes_of(check, server.address, service.address, ports)
        )
        if server.depends_on:
            needs[use.server] = {
                one.name or str(one.address): _needed(one) for one in server.depends_on
            }
        if service.health.feedback is not None:
            feedback = service.health.feedback
            agents[use.server] = Agent(Target(server.address, feedback.port), feedback.interval)
    sorry = service.sorry_server is not None
    policy = policy_of(service.health, members, sorry=sorry)
    return ServiceHealth(policy, probes, needs, agents)


def _needed(dependency: Dependency) -> tuple[Probe, ...]:
    return tuple(
        probe
        for check in dependency.check
        for probe in probes_of(check, dependency.address, dependency.address, model.Ports())
    )
