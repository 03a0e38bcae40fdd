"""Where an association goes and why, decided as HAProxy decides it; pure.

For `lbdr explain`: before a modality is plugged in, an administrator sees what will become of its
associations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lbdr.haproxy import sop_classes
from lbdr.haproxy.association import Association
from lbdr.haproxy.matching import Condition, Refuse, Rule, ToBackend, ToServer
from lbdr.haproxy.model import Proxy, ProxyConfiguration, ProxyService
from lbdr.model import Address


@dataclass(frozen=True, slots=True)
class Route:
    """What becomes of an association.

    Args:
        why: for a person.
        pool: the service or backend whose real servers take it; empty when it is refused.
        servers: the real servers of which one takes it: the pool's choice, where there are several.
        refusal: the reason, a key of lbdr.haproxy.association.ANSWERS; empty when it is taken.
        rule: the rule that decided, from 1; 0 for none.
        priority: in the queues of the real servers.
    """

    why: str
    pool: str = ""
    servers: tuple[str, ...] = ()
    refusal: str = ""
    rule: int = 0
    priority: int = 0


Down = Mapping[str, frozenset[str]]
"""Real servers that take no connections now, by the name of the pool."""


def route(
    association: Association,
    client: Address,
    service: ProxyService,
    configuration: ProxyConfiguration,
    down: Down | None = None,
) -> Route:
    """Where an association goes that a client opens with a DICOM service.

    Persistence may choose among `servers` a client's own; it leads nowhere else.

    Args:
        association: what it says of itself.
        client: its address.
        service: the one that it is opened with.
        configuration: where rules of the service lead to.
        down: servers that take no connections; None for none.
    """
    if service.called_aes and association.called_ae not in _titles(service.called_aes):
        return Route(f"called AE {association.called_ae} is not in called_aes", refusal="called-ae")
    if service.calling_aes and association.calling_ae not in _titles(service.calling_aes):
        return Route(
            f"calling AE {association.calling_ae} is not in calling_aes", refusal="calling-ae"
        )
    number, rule = _deciding(association, client, service)
    if rule is None:
        why = "no rule holds" if service.rules else "the service has no rules"
    else:
        why = f"rule {number}: {_words(rule.when)}"
        if isinstance(rule.action, Refuse):
            return Route(f"{why}: refused", refusal="rule", rule=number)
    priority = rule.priority if rule else 0
    target = rule.action.backend if rule and isinstance(rule.action, ToBackend) else service.name
    ready = _ready(target, configuration, down or {})
    if not ready:
        return Route(f"{why}; no real server of {target} serves", refusal="no-server", rule=number)
    if rule and isinstance(rule.action, ToServer):
        if rule.action.server in ready:
            ready = (rule.action.server,)
        else:
            why = f"{why}; {rule.action.server} is down, the others stand in"
    return Route(why, target, ready, rule=number, priority=priority)


def holds(when: Condition, association: Association, client: Address) -> bool:
    """Whether everything that a condition looks at is so; for the keys that DICOM has."""
    by_class = not when.sop_class or bool(set(when.sop_class) & set(association.sop_classes))
    by_modality = not when.modality or any(
        uid in association.sop_classes
        for name in when.modality
        for uid in sop_classes.of_modality(name)
    )
    return (
        (not when.source or any(client in network for network in when.source))
        and (not when.called_ae or association.called_ae in _titles(when.called_ae))
        and (not when.calling_ae or association.calling_ae in _titles(when.calling_ae))
        and by_class
        and by_modality
    )


def _deciding(
    association: Association, client: Address, service: ProxyService
) -> tuple[int, Rule | None]:
    for number, rule in enumerate(service.rules, 1):
        if holds(rule.when, association, client):
            return number, rule
    return 0, None


def _ready(name: str, configuration: ProxyConfiguration, down: Down) -> tuple[str, ...]:
    """The real servers that serve; the sorry server alone when none of them does."""
    proxies: list[Proxy] = [*configuration.services, *configuration.backends]
    for proxy in proxies:
        if proxy.name == name:
            out = down.get(name, frozenset())
            ready = tuple(one.name for one in proxy.pool.servers if one.name not in out)
            sorry = proxy.pool.sorry_server
            if not ready and sorry is not None and sorry.name not in out:
                return (sorry.name,)
            return ready
    return ()


def _titles(given: tuple[str, ...]) -> set[str]:
    return {title.strip(" ") for title in given}


def _words(when: Condition) -> str:
    return ", ".join(
        f"{key} {' or '.join(str(value) for value in getattr(when, key))}" for key in when.given
    )
