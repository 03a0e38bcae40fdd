"""Passes over a simulated kernel: write-ahead, verification, retries, crashes, and the report."""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbdr import reconcile as reconcile_module
from lbdr.datapath.kernel import Outcome
from lbdr.errors import (
    AddressInUseError,
    KernelError,
    LbdrError,
    PrivilegeError,
    StateError,
    VerificationError,
)
from lbdr.model import (
    DesiredState,
    Key,
    MarkKey,
    Ports,
    Protocol,
    RealServer,
    Role,
    Service,
    ServiceKey,
    Traffic,
    VirtualAddress,
)
from lbdr.operations import (
    AddRealServer,
    AddService,
    AnnounceAddress,
    DeleteService,
    Operation,
    SetService,
    SetSysctl,
)
from lbdr.plan import Conflict, Ownership, make_plan
from lbdr.reconcile import Reconciler
from lbdr.report import Report, Scope
from lbdr.state import State, StateStore
from tests.unit.simulated import SimulatedKernel, World, run, run_in_loop, subject
from tests.unit.strategies import changed, desired_states, worlds

WEB = ServiceKey(Protocol.TCP, ip_address("10.0.0.50"), 80)
DNS = ServiceKey(Protocol.UDP, ip_address("10.0.0.50"), 53)
VIP = VirtualAddress(WEB.address, "eth0")
RS1 = RealServer(ip_address("10.0.0.31"), 80, name="rs1")
RS2 = RealServer(ip_address("10.0.0.32"), 80, name="rs2")
CONNTRACK = "net.ipv4.vs.conntrack"


def holding(
    *services: Service, vips: Collection[VirtualAddress] = (), **sysctls: str
) -> DesiredState:
    names = {f"net.ipv4.vs.{name}": value for name, value in sysctls.items()}
    return DesiredState({service.key: service for service in services}, frozenset(vips), names)


DESIRED = holding(
    Service(WEB, "wlc", real_servers=(RS1, RS2), name="WEB"), vips=[VIP], expire_nodest_conn="1"
)


class Store(StateStore):
    """Keeps what is saved in memory, and refuses when it is told to."""

    def __init__(self) -> None:
        super().__init__(Path("/nonexistent"))
        self.saved: list[State] = []
        self.refuse: Callable[[], bool] = lambda: False

    def save(self, state: State) -> None:
        if self.refuse():
            raise StateError("state.json cannot be written", hint="nothing was changed; make room")
        self.saved.append(state)

    @property
    def last(self) -> State:
        return self.saved[-1] if self.saved else State()


class Lab:
    """A reconciler over a simulated kernel; `restart` is what a crash and a new start do."""

    def __init__(self, world: World | None = None) -> None:
        self.world = world or World()
        self.store = Store()
        self.restart()

    def restart(self) -> None:
        self.kernel = SimulatedKernel(self.world)
        self.reconciler = Reconciler(self.kernel, self.store, self.store.last)

    def reconcile(self, desired: DesiredState = DESIRED, *args: Any, **settings_: Any) -> Report:
        """A pass that has nothing to wait for."""
        return run(self.reconciler.reconcile(desired, *args, **settings_))

    def patiently(self, desired: DesiredState = DESIRED, **settings_: Any) -> Report:
        """A pass that tries again, in an event loop."""
        return run_in_loop(self.reconciler.reconcile(desired, **settings_))

    @property
    def owned(self) -> Ownership:
        return self.store.last.owned

    def fail(self, *kinds: type[Operation], times: int = 1, code: int = errno.ENOMEM) -> None:
        """The kernel refuses the next operations of some kinds."""
        left = [times]

        def before(operation: Operation) -> None:
            if isinstance(operation, kinds) and left[0]:
                left[0] -= 1
                raise KernelError(operation.command, errno=code)

        self.kernel.before = before


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconcile_module, "_LONGEST_WAIT", 0.001)


def commands(operations: Collection[Operation]) -> list[str]:
    return [operation.command for operation in operations]


# --- a pass ---------------------------------------------------------------------------------------


def test_a_pass_does_the_plan_and_the_next_one_finds_nothing() -> None:
    lab = Lab()
    before = lab.world.dump()
    report = lab.reconcile()
    assert report.clean
    assert report.error() is None
    assert report.applied == lab.kernel.tried
    assert len(report.applied) == 7
    assert lab.owned == Ownership(
        frozenset({WEB}), frozenset({VIP}), {"net.ipv4.vs.expire_nodest_conn": "0"}
    )
    saved = len(lab.store.saved)
    assert lab.reconcile().applied == []
    assert len(lab.store.saved) == saved
    lab.restart()
    assert lab.reconcile().applied == []
    assert lab.reconcile(DesiredState()).clean
    assert lab.world.dump() == before
    assert lab.owned == Ownership()


def test_what_was_set_at_run_time_outlives_a_pass() -> None:
    lab = Lab()
    lab.reconciler.save(role=Role.STANDBY, weights={("WEB", "rs1"): 0})
    lab.reconcile()
    assert (lab.store.last.role, lab.store.last.weights) == (Role.STANDBY, {("WEB", "rs1"): 0})


def test_every_operation_is_logged_once_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "lbdr"):
        report = Lab().reconcile(why="drift, put back")
    told = [record.getMessage() for record in caplog.records]
    assert told == [f"drift, put back: {command}" for command in commands(report.applied)]


def test_a_scope_leaves_the_rest_alone() -> None:
    lab = Lab()
    dns = Service(DNS, "rr")
    desired = holding(*DESIRED.services.values(), dns, vips=[VIP], conntrack="1")
    report = lab.reconcile(desired, Scope(services=frozenset({DNS}), host=False))
    assert report.applied == [AddService(dns)]
    assert lab.owned == Ownership(services=frozenset({DNS}))
    report = lab.reconcile(desired, Scope(services=frozenset(), host=True))
    assert AddService(DESIRED.services[WEB]) not in report.applied
    assert {VIP, CONNTRACK} <= {subject(operation) for operation in report.applied}
    # a service that is no longer wanted is deleted within its scope only
    rest = holding(vips=[VIP], conntrack="1")
    assert lab.reconcile(rest, Scope(services=frozenset({WEB}), host=False)).applied == []
    report = lab.reconcile(rest, Scope(services=frozenset({DNS}), host=False))
    assert report.applied == [DeleteService(DNS)]
    assert lab.owned == Ownership(frozenset(), frozenset({VIP}), {CONNTRACK: "0"})


# --- ownership goes first -------------------------------------------------------------------------


def test_ownership_is_on_disk_before_the_first_operation() -> None:
    lab = Lab()

    def before(operation: Operation) -> None:
        owned = lab.owned
        assert WEB in owned.services
        assert VIP in owned.addresses
        assert owned.sysctls == {"net.ipv4.vs.expire_nodest_conn": "0"}
        assert operation

    lab.kernel.before = before
    assert lab.reconcile().clean


def test_what_is_deleted_is_owned_until_it_is_gone() -> None:
    lab = Lab()
    lab.reconcile()
    everything = lab.owned

    def before(operation: Operation) -> None:
        assert lab.owned == everything, operation

    lab.kernel.before = before
    lab.reconcile(DesiredState())
    assert lab.owned == Ownership()


def test_without_a_state_file_nothing_is_done() -> None:
    lab = Lab()
    before = lab.world.dump()
    lab.store.refuse = lambda: True
    with pytest.raises(StateError):
        lab.reconcile()
    assert lab.kernel.tried == []
    assert lab.world.dump() == before
    assert lab.reconciler.state == State()


def test_a_disk_that_fills_up_during_a_pass_is_not_reported_as_nothing_changed() -> None:
    lab = Lab()
    lab.reconcile()
    lab.store.refuse = lambda: bool(lab.kernel.tried)
    lab.kernel.tried.clear()
    try:
        report = lab.reconcile(DesiredState())
    except StateError as error:
        assert "nothing was changed" not in str(error)  # noqa: PT017
    else:
        assert len(report.applied) == 3
    assert lab.world.services == {}
    # the disk has room again: what is kept may be too much, and is never too little
    lab.store.refuse = lambda: False
    lab.restart()
    assert lab.reconcile().clean
    assert lab.reconcile(DesiredState()).clean
    assert lab.owned == Ownership()


# --- ownership of what is gone --------------------------------------------------------------------


def test_a_service_that_others_deleted_is_no_longer_lbdrs() -> None:
    """Else a service that somebody makes there later would be taken for lbdr's, and deleted."""
    lab = Lab()
    lab.reconcile()
    lab.world.do(DeleteService(WEB))
    assert lab.reconcile(DesiredState()).clean
    assert lab.owned.services == frozenset()
    theirs = Service(WEB, "rr")
    lab.world.do(AddService(theirs))
    assert lab.reconcile(DesiredState()).applied == []
    assert lab.world.services == {WEB: theirs}


def test_a_vip_that_others_deleted_is_no_longer_lbdrs() -> None:
    lab = Lab()
    lab.reconcile()
    own = lab.world.interfaces["eth0"].pop()
    assert lab.reconcile(DesiredState()).clean
    lab.world.interfaces["eth0"].append(own)  # by hand
    assert lab.reconcile(DesiredState()).applied == []
    assert own in lab.world.interfaces["eth0"]


def test_a_sysctl_that_others_put_back_is_no_longer_lbdrs() -> None:
    lab = Lab()
    lab.reconcile(holding(conntrack="1"))
    lab.world.sysctls[CONNTRACK] = "0"
    assert lab.reconcile(DesiredState()).clean
    lab.world.sysctls[CONNTRACK] = "1"  # later, by hand, with nothing of lbdr's in the kernel
    assert lab.reconcile(DesiredState()).applied == []
    assert lab.world.sysctls[CONNTRACK] == "1"


def test_a_service_that_the_kernel_refused_is_not_lbdrs() -> None:
    lab = Lab(World(schedulers={"rr"}))
    assert lab.reconcile().failed
    assert WEB not in lab.owned.services
    theirs = Service(WEB, "rr")
    lab.world.do(AddService(theirs))
    report = lab.reconcile()
    assert [conflict.key for conflict in report.conflicts] == [WEB]
    assert lab.world.services == {WEB: theirs}


def test_a_vip_that_another_host_answered_for_is_not_lbdrs() -> None:
    lab = Lab(World(others={VIP.address: "02:00:00:00:00:99"}))
    assert lab.reconcile().failed
    assert VIP not in lab.owned.addresses


# --- trying again ---------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.ENOMEM, errno.ENOBUFS, errno.EBUSY, errno.EAGAIN])
def test_what_fails_by_chance_is_tried_again(code: int) -> None:
    lab = Lab()
    lab.fail(AddRealServer, AddService, times=2, code=code)
    report = lab.patiently()
    assert report.clean
    assert make_plan(DESIRED, lab.world.observe(), lab.owned).operations == ()
    # what was done in all attempts, in order, and nothing twice
    assert len(set(commands(report.applied))) == len(report.applied) == 7


def test_an_entry_that_appears_meanwhile_is_planned_around() -> None:
    """Somebody adds the same real server between the plan and its doing."""
    lab = Lab()

    def before(operation: Operation) -> None:
        if operation == AddRealServer(WEB, RS2):
            lab.kernel.before = lambda _: None
            lab.world.do(operation)

    lab.kernel.before = before
    assert lab.patiently().clean


def test_what_fails_on_and_on_is_given_up() -> None:
    lab = Lab()
    lab.fail(AddRealServer, times=1000)
    report = lab.patiently(attempts=3)
    assert sum(isinstance(operation, AddRealServer) for operation in lab.kernel.tried) == 3 * 2
    assert [outcome.operation for outcome in report.failed] == [
        AddRealServer(WEB, RS1),
        AddRealServer(WEB, RS2),
    ]
    assert len(report.applied) == 5  # all else; of each attempt once
    error = report.error()
    assert isinstance(error, KernelError)
    assert "applied: 5 operations, which stay" in error.message


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EOPNOTSUPP, errno.ERANGE])
def test_what_is_wrong_for_good_is_tried_once(code: int) -> None:
    lab = Lab()
    lab.fail(AddRealServer, code=code)
    report = lab.reconcile()  # run() would notice a wait
    assert [outcome.operation for outcome in report.failed] == [AddRealServer(WEB, RS1)]
    assert AddRealServer(WEB, RS2) in report.applied


@pytest.mark.parametrize("there", [False, True])
def test_a_scheduler_that_the_kernel_lacks_does_not_appear(there: bool) -> None:
    """The errno is ENOENT, which may pass by itself elsewhere; not for a scheduler."""
    lab = Lab(World(schedulers={"rr"}))
    if there:
        lab.reconcile(holding(Service(WEB, "rr", real_servers=(RS1, RS2))))
        lab.kernel.tried.clear()
    lab.patiently()
    kind = SetService if there else AddService
    assert sum(isinstance(operation, kind) for operation in lab.kernel.tried) == 1


def test_a_right_that_is_missing_is_tried_once() -> None:
    lab = Lab()

    def before(operation: Operation) -> None:
        raise PrivilegeError(f"{operation.command}: not permitted", hint="run as root")

    lab.kernel.before = before
    error = lab.reconcile().error()
    assert isinstance(error, PrivilegeError)
    assert error.exit_code == PrivilegeError.exit_code


def test_an_announcement_that_failed_is_not_forgotten() -> None:
    """Once the VIP is there no plan announces it: the second attempt must not call that clean."""
    lab = Lab()
    lab.fail(AnnounceAddress)
    report = lab.patiently()
    announced = [operation for operation in report.applied if operation == AnnounceAddress(VIP)]
    assert announced or not report.clean


def test_what_does_not_stay_is_no_success() -> None:
    lab = Lab(_Forgetful())
    report = lab.patiently()
    assert commands(report.remaining) == ["sysctl -w net.ipv4.vs.expire_nodest_conn=1"]
    error = report.error()
    assert isinstance(error, VerificationError)
    assert "not in the kernel although applied: sysctl -w" in error.message


class _Forgetful(World):
    """Somebody else puts a sysctl back at once."""

    __slots__ = ()

    def do(self, operation: Operation) -> None:
        World.do(self, operation)
        self.sysctls["net.ipv4.vs.expire_nodest_conn"] = "0"


# --- the report -----------------------------------------------------------------------------------

KERNEL = Outcome(AddRealServer(WEB, RS1), KernelError("ipvsadm -a", errno=errno.EINVAL))
IN_USE = Outcome(AddRealServer(WEB, RS2), AddressInUseError("10.0.0.50 is in use", hint="look"))


@pytest.mark.parametrize(
    ("report", "kind"),
    [
        (Report(failed=[KERNEL]), KernelError),
        (Report(failed=[KERNEL, KERNEL], skipped=[KERNEL.operation]), KernelError),
        (Report(failed=[IN_USE]), AddressInUseError),
        (Report(failed=[KERNEL, IN_USE]), VerificationError),
        (Report(failed=[KERNEL], conflicts=(Conflict(WEB, "WEB"),)), VerificationError),
        (Report(conflicts=(Conflict(WEB, "WEB"),)), VerificationError),
        (Report(remaining=(KERNEL.operation,)), VerificationError),
        (Report(skipped=[KERNEL.operation]), VerificationError),
    ],
)
def test_the_class_of_an_error_says_who_acts(report: Report, kind: type[LbdrError]) -> None:
    error = report.error()
    assert type(error) is kind
    assert error.exit_code == kind.exit_code
    assert not report.clean


def test_an_error_tells_all_of_it() -> None:
    error = Report(
        applied=[AddService(Service(WEB, "wlc"))],
        failed=[KERNEL, IN_USE],
        skipped=[SetSysctl("a", "1")],
        conflicts=(Conflict(DNS, "DNS"),),
    ).error()
    assert error is not None
    assert error.message.splitlines() == [
        "ipvsadm -a: Invalid argument (EINVAL)",
        "10.0.0.50 is in use",
        "  hint: look",
        "not tried: sysctl -w a=1",
        str(Conflict(DNS, "DNS")),
        "applied: 1 operations, which stay",
    ]
    assert "--adopt" in error.message


# --- something urgent in between ------------------------------------------------------------------


def test_between_operations_another_pass_may_run() -> None:
    """As the daemon does: a service that was marked is served, its old operations are dropped."""
    lab = Lab()
    lab.reconcile()
    heavy = replace(RS2, weight=3)
    old = holding(
        Service(WEB, "rr", real_servers=(RS1, heavy), name="WEB"),
        Service(DNS, "rr", real_servers=(replace(RS1, port=53),)),
        vips=[VIP],
        expire_nodest_conn="1",
    )
    drained = replace(old.services[WEB], real_servers=(replace(RS1, weight=0), heavy))
    new = replace(old, services={**old.services, WEB: drained})
    served: set[Key] = set()

    async def between() -> Collection[Key]:
        if not served:
            served.add(WEB)
            scope = Scope(services=frozenset({WEB}), host=False)
            inner = await lab.reconciler.reconcile(new, scope, attempts=1)
            assert inner.clean
        return served

    # the outer pass began before the operator drained rs1
    report = lab.patiently(old, between=between)
    there = lab.world.service(WEB)
    assert there is not None
    assert {server.key: server.weight for server in there.service.real_servers} == {
        RS1.key: 0,
        RS2.key: 3,
    }, "the pass that began earlier undid the newer one"
    assert lab.world.serves(DNS)
    assert report.error() is None, "who waits for the earlier pass is told of a failure"


def test_what_was_added_in_between_stays_lbdrs() -> None:
    """As when the drift watch sees a service that a long pass adds, and has it looked at."""
    lab = Lab()
    dns = Service(DNS, "rr", real_servers=(replace(RS1, port=53),))
    wanted = holding(Service(WEB, "rr", real_servers=(RS1,), name="WEB"), dns, vips=[VIP])
    served: set[Key] = set()

    async def between() -> Collection[Key]:
        if not served:
            served.update({WEB, DNS} - lab.kernel.service_keys())
            assert served, "the pass was through with services"
            scope = Scope(services=frozenset(served), host=False)
            inner = await lab.reconciler.reconcile(wanted, scope, attempts=1)
            assert inner.clean
        return served

    assert lab.patiently(wanted, between=between).error() is None
    assert lab.reconciler.state.owned.services == {WEB, DNS}


# --- crashes --------------------------------------------------------------------------------------


class Crash(BaseException):
    """The process ends here: no handler runs."""


def crash_at(lab: Lab, desired: DesiredState, count: int) -> bool:
    """A pass that is killed before an operation; whether it came so far."""
    left = [count]

    def before(_: Operation) -> None:
        if not left[0]:
            raise Crash
        left[0] -= 1

    lab.kernel.before = before
    try:
        lab.reconcile(desired)
    except Crash:
        return True
    finally:
        lab.restart()
    return False


def without_timeouts(state: DesiredState) -> DesiredState:
    """They are not put back: nothing tells whose they were."""
    return replace(state, timeouts=None)


@settings(max_examples=60, deadline=None)
@given(
    worlds(),
    st.lists(
        st.tuples(desired_states().map(without_timeouts), st.integers(0, 12)),
        min_size=1,
        max_size=3,
    ),
)
def test_after_crashes_anywhere_the_goal_is_reached_and_withdrawn(
    world: World, steps: list[tuple[DesiredState, int]]
) -> None:
    lab = Lab(world)
    for desired, _ in steps:  # what is exactly as wanted becomes lbdr's, and leaves with it
        for key in make_plan(desired, world.observe(), Ownership()).adopted:
            world.services.pop(key, None)
            world.real_servers.pop(key, None)
    before = world.dump()
    for desired, count in steps:
        crash_at(lab, desired, count)
    goal = steps[-1][0]
    lab.reconcile(goal)
    assert lab.reconcile(goal).applied == []
    crash_at(lab, DesiredState(), steps[0][1])
    assert lab.reconcile(DesiredState()).clean
    assert world.dump() == before
    assert lab.owned == Ownership()


@settings(max_examples=40, deadline=None)
@given(desired_states().flatmap(lambda state: st.tuples(st.just(state), changed(state))))
def test_a_crash_between_any_two_operations_of_a_change(
    states: tuple[DesiredState, DesiredState],
) -> None:
    first, second = map(without_timeouts, states)
    count = 0
    while True:
        lab = Lab()
        before = lab.world.dump()
        lab.reconcile(first)
        crashed = crash_at(lab, second, count)
        assert lab.reconcile(second).clean
        assert make_plan(second, lab.world.observe(), lab.owned).operations == ()
        assert lab.reconcile(DesiredState()).clean
        assert lab.world.dump() == before
        if not crashed:
            break
        count += 1


# --- a VIP with nothing behind it -----------------------------------------------------------------


def test_a_vip_whose_service_was_refused_is_not_claimed() -> None:
    """Not by a later pass either, which is about VIPs alone."""
    lab = Lab(World(schedulers={"rr"}))
    assert lab.reconcile(replace(DESIRED, addresses=frozenset())).failed
    report = lab.reconcile(DESIRED, Scope(services=frozenset()))
    assert report.applied == []
    assert lab.world.observe().network.holders(VIP.address) == ()


def test_a_vip_whose_service_is_somebody_elses_is_not_claimed() -> None:
    lab = Lab()
    lab.world.do(AddService(Service(WEB, "rr")))
    report = lab.reconcile()
    assert [conflict.key for conflict in report.conflicts] == [WEB]
    assert lab.world.observe().network.holders(VIP.address) == ()


@pytest.mark.parametrize("there", [False, True], ids=["at once", "in a later pass"])
def test_a_vip_of_a_service_that_a_mark_tells_is_claimed(there: bool) -> None:
    key, traffic = MarkKey(7, 4), Traffic(Protocol.TCP, VIP.address, Ports())
    marked = Service(key, "mh", real_servers=(replace(RS1, port=0),), marked=traffic)
    desired, lab = holding(marked, vips=[VIP]), Lab()
    if there:
        lab.reconcile(holding(marked))
    assert lab.reconcile(desired, Scope(services=frozenset()) if there else Scope()).clean
    assert lab.world.observe().network.holders(VIP.address) == ("eth0",)
    assert lab.owned.services == {key}


def test_a_vip_of_a_marked_service_that_was_refused_is_not_claimed() -> None:
    traffic = Traffic(Protocol.TCP, VIP.address, Ports())
    marked = Service(MarkKey(7, 4), "mh", real_servers=(replace(RS1, port=0),), marked=traffic)
    lab = Lab(World(schedulers={"rr"}))
    assert lab.reconcile(holding(marked, vips=[VIP])).failed
    report = lab.reconcile(holding(marked, vips=[VIP]), Scope(services=frozenset()))
    assert report.applied == []


def test_a_standby_that_becomes_active_claims_what_it_serves() -> None:
    lab = Lab()
    lab.reconcile(replace(DESIRED, addresses=frozenset()))
    assert lab.reconcile(DESIRED, Scope(services=frozenset())).clean
    assert lab.world.observe().network.holders(VIP.address) == ("eth0",)


def test_what_is_undone_is_told_by_service() -> None:
    lab = Lab(World(schedulers={"rr"}))
    undone = lab.reconcile().undone()
    assert set(undone) == {WEB}
    assert "ipvsadm -A" in undone[WEB][0]
