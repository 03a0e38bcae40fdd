"""From real servers to decisions: engine and rules together, in network namespaces."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from ipaddress import ip_address
from typing import Any

import pytest
from netlab import INTERFACE, Lab

from lbdr.health.decision import Decision, Presence
from lbdr.health.engine import Engine
from lbdr.health.policy import Member, OnFailure, Policy
from lbdr.health.services import Facts, ServiceHealth, Services
from lbdr.health.spec import Connect, Probe, Target, Timing, Vip
from lbdr.health.verdicts import Verdict, longest_outage

PORT = 104
VIP = ip_address("10.77.0.50")
TIMING = Timing(interval=0.3, timeout=0.3, rise=2, fall=3)
WEBS = ("web1", "web2")


class World:
    """One service on web1 and web2, each checked by its RIP and by the VIP."""

    def __init__(self, lab: Lab, policy: Policy) -> None:
        probes = {}
        for name in WEBS:
            rip = lab[name].ipv4
            probes[name] = (
                Probe(Target(rip, PORT), Connect(), TIMING),
                Probe(Target(rip, PORT, vip=VIP, vip_port=PORT), Vip(), TIMING),
            )
        self.services = Services()
        self.services.configure({"DICOM": ServiceHealth(policy, probes)})
        self.engine = Engine(self._changed)
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._decide("DICOM")
        self.engine.watch(self.services.probes)

    @property
    def decision(self) -> Decision:
        return self.services.decisions["DICOM"]

    @property
    def weights(self) -> dict[str, int]:
        return {name: share.weight for name, share in self.decision.shares.items()}

    async def until(self, weights: dict[str, int], limit: float) -> float:
        """Seconds until the weights are such."""
        begin = self._loop.time()
        async with asyncio.timeout(limit):
            while self.weights != weights:
                self._news.clear()
                again = self.services.again
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(again):
                        await self._news.wait()
                if again is not None and self._loop.time() >= again:
                    self._decide(*self.services.due(self._loop.time()))
        return self._loop.time() - begin

    def _changed(self, probe: Probe, *_: Any) -> None:
        self._decide(*self.services.concerned(probe))

    def _decide(self, *names: str) -> None:
        facts = Facts(self._verdict)
        if self.services.decide(names, facts, self._loop.time()):
            self._news.set()

    def _verdict(self, probe: Probe) -> Verdict:
        known = probe in self.engine.probes
        return self.engine.tally(probe).verdict if known else Verdict()


@pytest.fixture
def farm(lab: Lab) -> Iterator[Lab]:
    """The VIP on both servers, a service that listens, and the VIP on the director."""
    stopping = []
    for name in WEBS:
        lab.sysctl(name, "net.ipv4.conf.all.arp_ignore", "1")
        lab.sysctl(name, "net.ipv4.conf.all.arp_announce", "2")
        lab.ip(name, f"address add {VIP}/32 dev lo")
        with lab.entered(name):
            service = socket.create_server(("", PORT), backlog=100)
        thread = threading.Thread(target=accept, args=(service,))
        thread.start()
        stopping.append((service, thread))
    lab.ip("director", f"address add {VIP}/32 dev {INTERFACE}")
    yield lab
    for service, thread in stopping:
        service.shutdown(socket.SHUT_RDWR)
        thread.join()
        service.close()


def accept(service: socket.socket) -> None:
    while True:
        try:
            connection, _ = service.accept()
        except OSError:
            return
        connection.close()


def director(lab: Lab, policy: Policy, work: Callable[[World], Coroutine[Any, Any, None]]) -> None:
    """Run an engine in the director's namespace; the work begins when both servers serve."""

    async def limited() -> None:
        world = World(lab, policy)
        try:
            async with asyncio.timeout(40):
                await world.until(dict.fromkeys(WEBS, policy.scale), 10)
                await work(world)
        finally:
            await world.engine.close()

    with lab.entered("director"):
        asyncio.run(limited())


MEMBERS = {name: Member() for name in WEBS}


def test_a_server_that_dies_is_out_in_time_and_comes_back(farm: Lab) -> None:
    async def work(world: World) -> None:
        farm.ip("web1", f"link set {INTERFACE} down")
        seconds = await world.until({"web1": 0, "web2": 1}, 5)
        assert seconds <= longest_outage(TIMING) + 0.5
        assert world.decision.shares["web1"].presence is Presence.OUT
        assert world.decision.shares["web1"].reason.startswith("down: 10.77.0.21:104 ")
        farm.ip("web1", f"link set {INTERFACE} up")
        await world.until({"web1": 1, "web2": 1}, 10)

    director(farm, Policy(MEMBERS), work)


def test_a_server_that_lost_its_vip_is_caught(farm: Lab) -> None:
    """Its RIP answers all the while: clients would see a black hole."""

    async def work(world: World) -> None:
        farm.ip("web2", f"address del {VIP}/32 dev lo")
        seconds = await world.until({"web1": 1, "web2": 0}, 5)
        assert seconds <= longest_outage(TIMING) + 0.5
        assert f"did not answer for the VIP {VIP} port {PORT}: it lost" in (
            world.decision.shares["web2"].reason
        )
        by_rip = next(probe for probe in world.engine.probes if probe.target.vip is None)
        assert world.engine.tally(by_rip).verdict.up
        farm.ip("web2", f"address add {VIP}/32 dev lo")
        await world.until({"web1": 1, "web2": 1}, 10)

    director(farm, Policy(MEMBERS), work)


def test_a_server_that_comes_back_starts_slowly(farm: Lab) -> None:
    async def work(world: World) -> None:
        farm.ip("web1", f"address del {VIP}/32 dev lo")
        await world.until({"web1": 0, "web2": 100}, 5)
        assert world.decision.shares["web1"].presence is Presence.QUIESCE
        farm.ip("web1", f"address add {VIP}/32 dev lo")
        await world.until({"web1": 10, "web2": 100}, 5)
        before = 0.0
        for weight in range(20, 101, 10):
            before += await world.until({"web1": weight, "web2": 100}, 5)
            line = min(1.0, before / 2.0)
            assert abs(weight / 100 - line) <= 0.2

    policy = Policy(MEMBERS, slow_start=2.0, on_failure=OnFailure.QUIESCE)
    director(farm, policy, work)
