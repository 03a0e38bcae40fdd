"""How the kernel's subsystems are given a plan: what goes together, what is skipped, and told."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from ipaddress import ip_address
from typing import cast

import pytest

from lbdr.datapath import arp, sysctl
from lbdr.datapath import kernel as kernel_module
from lbdr.datapath.addresses import Addresses
from lbdr.datapath.announce import Announcer
from lbdr.datapath.ipvs import BATCH, Ipvs
from lbdr.datapath.kernel import Kernel, Outcome
from lbdr.errors import AddressInUseError, KernelError, LbdrError
from lbdr.model import (
    AddressProbe,
    HostNetwork,
    Protocol,
    RealServer,
    Service,
    ServiceKey,
    Timeouts,
    VirtualAddress,
)
from lbdr.operations import (
    AddAddress,
    AddRealServer,
    AddService,
    AnnounceAddress,
    DeleteAddress,
    DeleteRealServer,
    DeleteService,
    IpvsOperation,
    Operation,
    ProbeAddress,
    SetRealServer,
    SetSysctl,
    SetTimeouts,
)
from tests.unit.simulated import run_in_loop

Key = ServiceKey
WEB = ServiceKey(Protocol.TCP, ip_address("10.0.0.50"), 80)
DNS = ServiceKey(Protocol.UDP, ip_address("10.0.0.50"), 53)
VIP = VirtualAddress(ip_address("10.0.0.50"), "eth0")
VIP2 = VirtualAddress(ip_address("10.0.0.51"), "eth0")
MAC = "02:00:00:00:00:99"
REFUSED = KernelError("refused", errno=22)


def server(number: int) -> RealServer:
    return RealServer(ip_address("10.0.1.0") + number, 80)


def added(key: ServiceKey, count: int) -> list[Operation]:
    """A service with so many real servers."""
    return [AddService(Service(key, "wlc")), *(AddRealServer(key, server(n)) for n in range(count))]


class FakeIpvs:
    """Refuses some operations; keeps what it was given in each send."""

    def __init__(self) -> None:
        self.batches: list[list[Operation]] = []
        self.refuse: Callable[[Operation], bool] = lambda _: False

    def apply(self, operations: Sequence[IpvsOperation]) -> list[LbdrError | None]:
        # Linux answers an empty message with ENODATA (net/netlink/af_netlink.c, netlink_sendmsg)
        assert operations, "an empty batch was sent"
        assert len(operations) <= BATCH
        self.batches.append(list(operations))
        return [REFUSED if self.refuse(operation) else None for operation in operations]


class FakeAddresses:
    """Refuses some addresses; keeps what it was given at once."""

    def __init__(self) -> None:
        self.calls: list[list[Operation]] = []
        self.refuse: set[VirtualAddress] = set()

    async def apply_many(
        self, operations: Sequence[AddAddress | DeleteAddress]
    ) -> list[LbdrError | None]:
        self.calls.append(list(operations))
        return [REFUSED if operation.vip in self.refuse else None for operation in operations]


class FakeAnnouncer:
    def __init__(self) -> None:
        self.vips: set[VirtualAddress] = set()

    def add(self, vips: Sequence[VirtualAddress]) -> None:
        self.vips |= set(vips)

    def discard(self, vips: Sequence[VirtualAddress]) -> None:
        self.vips -= set(vips)

    async def flush(self) -> None:
        """Send nothing."""


class Lab:
    """A Kernel with nothing but fakes below it, and a log of what reached them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ipvs, self.addresses = FakeIpvs(), FakeAddresses()
        self.kernel = Kernel(cast("Ipvs", self.ipvs), cast("Addresses", self.addresses))
        self.probed: list[list[VirtualAddress]] = []
        self.announced: list[tuple[VirtualAddress, int]] = []
        self.taken: dict[VirtualAddress, str] = {}
        self.bad_interfaces: set[str] = set()
        self.sysctls: list[str] = []
        self.outcomes: list[Outcome] = []
        monkeypatch.setattr(arp, "probe", self._probe)
        monkeypatch.setattr(kernel_module, "announce", self._announce)
        monkeypatch.setattr(sysctl, "apply", self._sysctl)

    def apply(
        self,
        operations: Sequence[Operation],
        between: Callable[[], Awaitable[Collection[Key]]] | None = None,
    ) -> list[str]:
        """Apply, and tell each operation with what became of it."""
        self.outcomes.clear()
        run_in_loop(self.kernel.apply(operations, HostNetwork(), self.outcomes.append, between))
        return [told(outcome) for outcome in self.outcomes]

    async def _probe(
        self, vips: Sequence[VirtualAddress], network: HostNetwork, settings: AddressProbe
    ) -> dict[VirtualAddress, str]:
        assert settings is self.kernel.probe
        assert network == HostNetwork()
        self.probed.append(list(vips))
        if any(vip.interface in self.bad_interfaces for vip in vips):
            raise KernelError("arping", errno=100)
        return {vip: mac for vip, mac in self.taken.items() if vip in vips}

    async def _announce(self, vips: Sequence[VirtualAddress], repeat: int = 1) -> None:
        if any(vip.interface in self.bad_interfaces for vip in vips):
            raise KernelError("arping", errno=100)
        self.announced += [(vip, repeat) for vip in vips]

    def _sysctl(self, operation: SetSysctl) -> None:
        if operation.value == "bad":
            raise KernelError(operation.command, errno=22)
        self.sysctls.append(operation.name)


def told(outcome: Outcome) -> str:
    state = "skipped" if outcome.skipped else "failed" if outcome.error else "done"
    return f"{state}: {outcome.operation.command}"


def done(operations: Sequence[Operation]) -> list[str]:
    return [f"done: {operation.command}" for operation in operations]


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> Lab:
    return Lab(monkeypatch)


# --- order ----------------------------------------------------------------------------------------


def test_a_plan_is_done_in_its_order_and_all_of_it_is_told(lab: Lab) -> None:
    operations = [
        SetSysctl("a", "1"),
        DeleteAddress(VIP2),
        DeleteService(DNS),
        SetTimeouts(Timeouts(7200)),
        *added(WEB, 2),
        ProbeAddress(VIP),
        AddAddress(VIP),
        AnnounceAddress(VIP, repeat=3),
        SetSysctl("b", "0"),
    ]
    assert lab.apply(operations) == done(operations)
    assert lab.ipvs.batches == [operations[2:5], operations[5:7]]
    assert lab.addresses.calls == [[DeleteAddress(VIP2)], [AddAddress(VIP)]]
    assert lab.probed == [[VIP]]
    assert lab.announced == [(VIP, 3)]
    assert lab.sysctls == ["a", "b"]


def test_nothing_to_do_touches_nothing(lab: Lab) -> None:
    assert lab.apply([]) == []
    assert lab.ipvs.batches == []


def test_many_operations_go_in_few_sends(lab: Lab) -> None:
    """A service goes before its real servers, which wait until the kernel has answered for it."""
    operations = [*added(WEB, 2 * BATCH), *added(DNS, 1)]
    assert lab.apply(operations) == done(operations)
    assert [len(batch) for batch in lab.ipvs.batches] == [1, BATCH, BATCH, 1, 1]
    assert [operation for batch in lab.ipvs.batches for operation in batch] == operations


# --- what VIPs need is ready before they are claimed ---------------------------------------------


class Readiness:
    """What is asked before a VIP is claimed, and what was done until then."""

    def __init__(self, lab: Lab, unready: Collection[VirtualAddress] = ()) -> None:
        self._lab = lab
        self._unready = unready
        self.asked: list[set[VirtualAddress]] = []
        lab.kernel.before_claim = self._ready

    async def _ready(self, vips: Collection[VirtualAddress]) -> dict[VirtualAddress, LbdrError]:
        assert not self._lab.probed
        assert not self._lab.addresses.calls
        self.asked.append(set(vips))
        return {vip: KernelError("nothing forwards") for vip in vips if vip in self._unready}


def test_who_forwards_is_ready_after_the_services_and_before_the_vips(lab: Lab) -> None:
    readiness = Readiness(lab)
    claim: list[Operation] = [ProbeAddress(VIP), AddAddress(VIP), AnnounceAddress(VIP)]
    operations = [*added(WEB, 2), *claim]
    assert lab.apply(operations) == done(operations)
    assert readiness.asked == [{VIP}]
    assert lab.ipvs.batches


def test_who_forwards_is_asked_also_where_nobody_is_probed(lab: Lab) -> None:
    readiness = Readiness(lab)
    operations: list[Operation] = [AddAddress(VIP), AnnounceAddress(VIP)]
    assert lab.apply(operations) == done(operations)
    assert readiness.asked == [{VIP}]


def test_nobody_is_asked_where_no_vip_is_claimed(lab: Lab) -> None:
    readiness = Readiness(lab)
    operations = [DeleteAddress(VIP), *added(WEB, 1), SetSysctl("a", "1")]
    lab.apply(operations)
    assert readiness.asked == []


@pytest.mark.parametrize("probes", [[ProbeAddress(VIP), ProbeAddress(VIP2)], []])
def test_a_vip_for_which_nothing_forwards_is_not_claimed(
    lab: Lab, probes: list[ProbeAddress]
) -> None:
    """It is told once, and does not leave the interface where it is."""
    Readiness(lab, [VIP])
    former = VirtualAddress(VIP.address, "eth9")
    told = lab.apply(
        [
            *probes,
            *map(AddAddress, (VIP, VIP2)),
            AnnounceAddress(VIP),
            AnnounceAddress(VIP2),
            DeleteAddress(former),
        ]
    )
    refused = [line for line in told if line.startswith("failed")]
    assert refused == [f"failed: {(probes[0] if probes else AddAddress(VIP)).command}"]
    assert [call for call in lab.addresses.calls if call] == [[AddAddress(VIP2)]]
    assert [vip for vip, _ in lab.announced] == [VIP2]
    assert f"skipped: {DeleteAddress(former).command}" in told


# --- services -------------------------------------------------------------------------------------


def test_a_service_that_is_refused_takes_its_real_servers_along_and_no_others(lab: Lab) -> None:
    operations = [*added(WEB, 2), *added(DNS, 1)]
    # the kernel refuses a real server of a service that is not there
    lab.ipvs.refuse = lambda operation: operation in added(WEB, 2)
    assert lab.apply(operations) == [
        "failed: ipvsadm -A -t 10.0.0.50:80 -s wlc",
        "skipped: ipvsadm -a -t 10.0.0.50:80 -r 10.0.1.0:80 -g -w 1",
        "skipped: ipvsadm -a -t 10.0.0.50:80 -r 10.0.1.1:80 -g -w 1",
        *done(added(DNS, 1)),
    ]
    assert lab.outcomes[0].error is REFUSED


@pytest.mark.parametrize("count", [BATCH + 5, 3 * BATCH])
def test_a_refused_service_larger_than_a_send(lab: Lab, count: int) -> None:
    """Its real servers are not tried, and nothing empty is sent in their stead."""
    refused = added(WEB, count)
    lab.ipvs.refuse = lambda operation: operation in refused
    outcomes = lab.apply([*refused, *added(DNS, 1)])
    assert len(outcomes) == count + 3
    assert [outcome.split(":")[0] for outcome in outcomes[: count + 1]] == (
        ["failed"] + ["skipped"] * count
    )
    assert outcomes[count + 1 :] == done(added(DNS, 1))
    assert [len(batch) for batch in lab.ipvs.batches] == [1, 1, 1]


@pytest.mark.parametrize(
    "refused",
    [
        AddRealServer(WEB, server(0)),
        SetRealServer(WEB, server(0)),
        DeleteRealServer(WEB, server(0)),
    ],
)
def test_a_real_server_that_is_refused_stops_no_other(lab: Lab, refused: Operation) -> None:
    lab.ipvs.refuse = lambda operation: operation == refused
    operations = [refused, AddRealServer(WEB, server(1)), SetTimeouts(Timeouts(1))]
    assert lab.apply(operations) == [f"failed: {refused.command}", *done(operations[1:])]


def test_between_sends_something_urgent_has_its_turn(lab: Lab) -> None:
    turns: list[int] = []

    async def between() -> Collection[Key]:
        turns.append(len(lab.ipvs.batches))
        return ()

    lab.apply(added(WEB, 2 * BATCH), between)
    assert turns == [1, 2, 3]


def test_what_is_out_of_date_is_not_done(lab: Lab) -> None:
    async def between() -> Collection[Key]:
        return {WEB}

    operations = [*added(WEB, BATCH + 9), *added(DNS, 1)]
    outcomes = lab.apply(operations, between)
    assert outcomes[:1] == done(operations[:1])
    assert {outcome.split(":")[0] for outcome in outcomes[1 : BATCH + 10]} == {"skipped"}
    assert outcomes[BATCH + 10 :] == done(added(DNS, 1))


# --- addresses ------------------------------------------------------------------------------------


def claim(*vips: VirtualAddress) -> list[Operation]:
    return [
        *(ProbeAddress(vip) for vip in vips),
        *(AddAddress(vip) for vip in vips),
        *(AnnounceAddress(vip) for vip in vips),
    ]


def test_vips_are_probed_together_and_added_together(lab: Lab) -> None:
    assert lab.apply(claim(VIP, VIP2)) == done(claim(VIP, VIP2))
    assert lab.probed == [[VIP, VIP2]]
    assert lab.addresses.calls == [[AddAddress(VIP), AddAddress(VIP2)]]


def test_a_vip_that_another_host_has_is_left_to_it(lab: Lab) -> None:
    lab.taken = {VIP: MAC}
    assert lab.apply(claim(VIP, VIP2)) == [
        "failed: arping -D -c 2 -I eth0 10.0.0.50",
        "done: arping -D -c 2 -I eth0 10.0.0.51",
        "skipped: ip address add 10.0.0.50/32 dev eth0",
        "done: ip address add 10.0.0.51/32 dev eth0",
        "skipped: arping -U -c 5 -I eth0 10.0.0.50",
        "done: arping -U -c 5 -I eth0 10.0.0.51",
    ]
    error = lab.outcomes[0].error
    assert isinstance(error, AddressInUseError)
    assert MAC in error.message
    assert "lbdr solve-arp" in error.hint


def test_one_bad_interface_keeps_no_other_vip_from_being_claimed(lab: Lab) -> None:
    lab.bad_interfaces = {"eth9"}
    bad = VirtualAddress(ip_address("10.9.0.50"), "eth9")
    lab.taken = {VIP2: MAC}
    outcomes = lab.apply(claim(VIP, bad, VIP2))
    assert [outcome.split(":")[0] for outcome in outcomes] == [
        *["done", "failed", "failed"],
        *["skipped", "skipped", "done"],  # told before they are given to the kernel
        *["skipped", "skipped", "done"],
    ]
    assert lab.addresses.calls == [[AddAddress(VIP)]]
    assert [vip for vip, _ in lab.announced] == [VIP]


def test_a_vip_that_cannot_be_added_is_not_announced(lab: Lab) -> None:
    lab.addresses.refuse = {VIP}
    assert [outcome.split(":")[0] for outcome in lab.apply(claim(VIP, VIP2))] == [
        *["done", "done"],
        *["failed", "done"],
        *["skipped", "done"],
    ]


def test_a_vip_that_moves_stays_where_it_is_when_it_cannot_go_there(lab: Lab) -> None:
    """Better on the wrong interface than nowhere: deleting it needs the other one added."""
    there = VirtualAddress(VIP.address, "eth1")
    lab.addresses.refuse = {there}
    outcomes = lab.apply([AddAddress(there), AnnounceAddress(there), DeleteAddress(VIP)])
    assert [outcome.split(":")[0] for outcome in outcomes] == ["failed", "skipped", "skipped"]


def test_a_failed_announcement_is_told_for_each_vip(lab: Lab) -> None:
    lab.bad_interfaces = {"eth0"}
    outcomes = lab.apply([AnnounceAddress(VIP), AnnounceAddress(VIP2)])
    assert [outcome.split(":")[0] for outcome in outcomes] == ["failed", "failed"]


def test_the_announcer_of_a_daemon_announces_and_forgets(lab: Lab) -> None:
    announcer = FakeAnnouncer()
    lab.kernel.announcer = cast("Announcer", announcer)
    lab.apply(claim(VIP, VIP2))
    assert announcer.vips == {VIP, VIP2}
    assert lab.announced == []
    lab.addresses.refuse = {VIP2}  # it stays, and so does its announcement
    lab.apply([DeleteAddress(VIP), DeleteAddress(VIP2)])
    assert announcer.vips == {VIP2}


# --- sysctls --------------------------------------------------------------------------------------


def test_a_sysctl_that_is_refused_stops_no_other(lab: Lab) -> None:
    outcomes = lab.apply([SetSysctl("a", "bad"), SetSysctl("b", "1"), *added(WEB, 1)])
    assert [outcome.split(":")[0] for outcome in outcomes] == ["failed", "done", "done", "done"]
    assert lab.sysctls == ["b"]


def test_what_is_told_of_a_claim_waits_for_the_announcement(lab: Lab) -> None:
    """A hundred lines in the journal take longer than the frames."""

    class Watching(FakeAnnouncer):
        def add(self, vips: Sequence[VirtualAddress]) -> None:
            assert lab.outcomes == []
            super().add(vips)

    announcer = Watching()
    lab.kernel.announcer = cast("Announcer", announcer)
    assert lab.apply(claim(VIP, VIP2)) == done(claim(VIP, VIP2))
    assert announcer.vips == {VIP, VIP2}
