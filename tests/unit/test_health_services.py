"""Whom a verdict concerns, and what all services decide."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

from lbdr.health.decision import Presence
from lbdr.health.policy import Member, Policy
from lbdr.health.services import Facts, ServiceHealth, Services
from lbdr.health.spec import Connect, DicomEcho, Ping, Probe, Target
from lbdr.health.verdicts import Status, Verdict
from lbdr.model import Standing

UP = Verdict(Status.UP, 0.0, "answered", 0.01)
DOWN = Verdict(Status.DOWN, 5.0, "refused", 0.01)
PACS = {name: Target(ip_address(f"192.0.2.{number}"), 104) for name, number in (("a", 1), ("b", 2))}
CONNECT = {name: Probe(target, Connect()) for name, target in PACS.items()}
ECHO = {name: Probe(target, DicomEcho("PACS")) for name, target in PACS.items()}
DATABASE = Probe(Target(ip_address("192.0.2.9")), Ping())


class World:
    """Two services on the same servers; one needs a database."""

    def __init__(self) -> None:
        policy = Policy(members={"a": Member(), "b": Member()}, slow_start=10)
        self.configuration = {
            "STORE": ServiceHealth(
                policy,
                {name: (CONNECT[name], ECHO[name]) for name in PACS},
                {"a": {"db1": (DATABASE,)}},
            ),
            "WEB": ServiceHealth(policy, {name: (CONNECT[name],) for name in PACS}),
        }
        self.verdicts = dict.fromkeys([*CONNECT.values(), *ECHO.values(), DATABASE], UP)
        self.operators: dict[tuple[str, str], Standing] = {}
        self.services = Services()
        self.services.configure(self.configuration)

    def decide(self, *names: str, now: float = 0.0) -> dict[str, dict[str, int]]:
        """The weights of the services that changed."""
        facts = Facts(self.verdicts.__getitem__, self.operators)
        decided = self.services.decide(names or ("STORE", "WEB"), facts, now)
        return {
            name: {server: share.weight for server, share in decision.shares.items()}
            for name, decision in decided.items()
        }


def test_services_share_what_they_ask_alike() -> None:
    world = World()
    assert len(world.services.probes) == 5
    assert world.services.concerned(CONNECT["a"]) == {"STORE", "WEB"}
    assert world.services.concerned(ECHO["a"]) == {"STORE"}
    assert world.services.concerned(DATABASE) == {"STORE"}
    assert world.services.concerned(Probe(PACS["a"], Ping())) == frozenset()


def test_only_what_changed_is_told() -> None:
    world = World()
    assert world.decide() == {
        "STORE": {"a": 100, "b": 100},
        "WEB": {"a": 100, "b": 100},
    }
    assert world.decide(now=1.0) == {}
    world.verdicts[ECHO["a"]] = DOWN
    assert world.decide(now=2.0) == {"STORE": {"a": 0, "b": 100}}


def test_a_server_goes_with_what_it_needs() -> None:
    world = World()
    world.verdicts[DATABASE] = DOWN
    assert world.decide()["STORE"] == {"a": 0, "b": 100}
    share = world.services.decisions["STORE"].shares["a"]
    assert share.presence is Presence.OUT
    assert share.reason == "down: depends on db1: refused"


def test_ramps_ask_to_be_decided_again() -> None:
    world = World()
    world.decide()
    assert world.services.again is None
    world.verdicts[ECHO["a"]] = DOWN
    world.decide(now=1.0)
    world.verdicts[ECHO["a"]] = UP
    assert world.decide(now=2.0)["STORE"]["a"] == 10
    assert world.services.again == 3.5
    assert world.services.due(3.4) == frozenset()
    assert world.services.due(3.5) == {"STORE"}
    assert world.decide("STORE", now=3.5)["STORE"]["a"] == 20


def test_a_reload_and_a_restart_forget_nothing() -> None:
    """A ramp goes on, and nobody begins one."""
    world = World()
    world.decide()
    world.verdicts[ECHO["a"]] = DOWN
    world.decide(now=1.0)
    world.verdicts[ECHO["a"]] = UP
    world.decide(now=2.0)
    services = dict(world.configuration)
    services["STORE"] = replace(services["STORE"], needs={})
    del services["WEB"]
    world.services.configure(services)
    assert world.services.decisions.keys() == {"STORE"}
    assert world.decide("STORE", "WEB", now=7.0)["STORE"] == {"a": 50, "b": 100}
    restarted = Services(world.services.memories)
    restarted.configure(services)
    world.services = restarted
    assert world.decide("STORE", now=7.0)["STORE"] == {"a": 50, "b": 100}


def test_the_operator_is_heard() -> None:
    world = World()
    world.operators["WEB", "a"] = Standing.DRAIN
    assert world.decide() == {"STORE": {"a": 100, "b": 100}, "WEB": {"a": 0, "b": 100}}


def test_a_failback_is_for_one_service() -> None:
    policy = Policy(members={"a": Member(), "b": Member(standby_for=frozenset("a"))})
    world = World()
    probes = {name: (CONNECT[name],) for name in PACS}
    world.services.configure({name: ServiceHealth(policy, probes) for name in ("STORE", "WEB")})
    world.verdicts[CONNECT["a"]] = DOWN
    assert world.decide() == {"STORE": {"a": 0, "b": 1}, "WEB": {"a": 0, "b": 1}}
    world.verdicts[CONNECT["a"]] = UP
    world.decide(now=1.0)
    world.services.fail_back("WEB")
    world.decide(now=2.0)
    weights = {
        name: {server: share.weight for server, share in decision.shares.items()}
        for name, decision in world.services.decisions.items()
    }
    assert weights == {"STORE": {"a": 0, "b": 1}, "WEB": {"a": 1, "b": 0}}
