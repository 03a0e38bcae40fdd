"""What of this machine decides about the fast path and DR, and what to do about it; pure.

The fast path is a BPF program: native XDP where the driver can, else the same program at tc
ingress. What it does not take, IPVS does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lbdr.doctor_devices import DEVICE_RULES
from lbdr.doctor_facts import Finding, HostFacts, Level
from lbdr.doctor_host import HOST_RULES
from lbdr.errors import Problem
from lbdr.model import Address, Configuration, Forwarding, HostNetwork


def uses(
    configuration: Configuration, real_servers: Mapping[str, Address], network: HostNetwork
) -> dict[str, tuple[str, ...]]:
    """The interfaces that a configuration needs, and what for.

    Args:
        configuration: the model.
        real_servers: addresses by name.
        network: this machine's interfaces; what has no place in it is left out.
    """
    found: dict[str, list[str]] = {}
    served: set[str] = set()
    for service in configuration.virtual_services:
        if service.forwarding is not Forwarding.DR:
            continue
        place = network.interface_for(service.address)
        name = service.interface or (place.name if place else "")
        if name in network.interfaces:
            found.setdefault(name, []).append(f"VIP {service.address}")
        sorry = (service.sorry_server,) if service.sorry_server else ()
        served.update(server.name for server in (*service.real_servers, *sorry))
    for server, address in real_servers.items():
        place = network.interface_for(address)
        if server in served and place is not None:
            found.setdefault(place.name, []).append(f"real server {server}")
    return {name: tuple(dict.fromkeys(words)) for name, words in found.items()}


def examine(
    facts: HostFacts, configuration: Configuration, problems: Iterable[Problem] = ()
) -> list[Finding]:
    """Everything there is to say, in the order of the subjects.

    Args:
        facts: what was seen.
        configuration: the model.
        problems: what keeps the configuration from running here (lbdr.config.host).
    """
    found = [
        Finding(
            Level.FAULT,
            "configuration",
            str(Problem(each.message, each.file, each.line, each.column)),
            "the director refuses this configuration on this machine",
            each.hint,
        )
        for each in problems
    ]
    if not facts.devices:
        found.append(
            Finding(
                Level.NOTE,
                "interfaces",
                "no interface of this machine has a VIP or leads to a real server",
                "there is nothing for the fast path to be attached to",
                "lbdr check --host",
            )
        )
    for device in facts.devices:
        for rule in DEVICE_RULES:
            found += rule(device, facts)
    for check in HOST_RULES:
        found += check(facts, configuration)
    found += [
        Finding(Level.NOTE, "not seen", f"{what}: {why}", "nothing is said about it")
        for what, why in facts.not_seen
    ]
    return found


def counts(findings: Iterable[Finding]) -> dict[Level, int]:
    """How many there are of each level."""
    levels = [finding.level for finding in findings]
    return {level: levels.count(level) for level in Level}
