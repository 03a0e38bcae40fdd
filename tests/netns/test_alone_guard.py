"""Without IPVS in the kernel the local stack never answers for a service, wherever packets come in.

Refused means that it did: a reset, which would end a connection that goes on elsewhere.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from netlab import INTERFACE, Lab

from lbdr.control.protocol import ReloadRequest, RoleRequest, WeightRequest, WithdrawRequest
from lbdr.datapath.bpf_links import Link
from lbdr.datapath.bpf_programs import Program
from lbdr.datapath.bpf_wire import AttachPoint, ProgramKind, Verdict, XdpFlag
from lbdr.model import Role
from tests.alone import FOLLOWED, HASHED, Knocking, alone_lab, configure, refused, service, serving
from tests.bpf_programs import returns
from tests.kernel.daemons import LBDR, VIP, Daemon, soon
from tests.kernel.open_connections import Connections

OTHER = "10.78.0.1"  # the director's address on its other interface


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with alone_lab() as built:
        yield built


@pytest.fixture(scope="module")
def running(lab: Lab) -> Iterator[Daemon]:
    with serving(lab, {"WEB": HASHED}) as started:
        yield started


@pytest.fixture
def daemon(running: Daemon, lab: Lab) -> Daemon:
    """With WEB as at first, and connections to it at the beginning."""
    with Connections(lab, VIP, 80, 20) as open_:
        assert not open_.wrong()
    return running


@contextmanager
def second_way(lab: Lab) -> Iterator[None]:
    """Another link between client and director."""
    namespace = lab["director"].namespace
    lab.ip("client", f"link add other type veth peer name other netns {namespace}")
    lab.ip("director", "link set other up", f"address add {OTHER}/24 dev other")
    lab.ip("client", "link set other up", "address add 10.78.0.2/24 dev other")
    try:
        yield
    finally:
        lab.ip("client", "link del other")


def not_forwarded(daemon: Daemon) -> int:
    return sum(service(daemon).fastpath.not_forwarded.values())


def test_a_device_that_comes_later_is_guarded(lab: Lab, daemon: Daemon) -> None:
    """A host answers for its addresses on every interface; what comes by another is dropped."""
    with Connections(lab, VIP, 80, 20) as open_:
        with second_way(lab):
            lab.ip("client", f"route add {VIP}/32 via {OTHER}")
            soon(lambda: not refused(lab, (VIP, 80), 0.5), "the device is guarded", 2.0)
            before = not_forwarded(daemon)
            for _ in range(5):
                assert not refused(lab, (VIP, 80), 0.2)
            assert not_forwarded(daemon) - before >= 5
            assert refused(lab, (VIP, 81))  # no service: the host's own, as on any host
            assert refused(lab, (OTHER, 80))
        assert not open_.wrong()


def test_a_server_that_cannot_be_reached(lab: Lab, daemon: Daemon) -> None:
    """Its clients meet silence, counted, and not the local stack."""
    lab.ip("web1", f"link set {INTERFACE} down")
    lab.ip("director", "neigh flush all")
    with Knocking(lab) as knocking:
        soon(lambda: service(daemon).fastpath.not_forwarded.get("neighbour"), "counted", 20.0)
        soon(lambda: knocking.met["silence"], "silence")
        lab.ip("web1", f"link set {INTERFACE} up")
        soon(lambda: took(lab) == {"web1", "web2"}, "it is back", 20.0)
    assert not knocking.met["ECONNREFUSED"]


def took(lab: Lab) -> set[str]:
    """Who has new connections."""
    with Connections(lab, VIP, 80, 20) as open_:
        return set(open_.owners)


def test_a_service_without_servers(lab: Lab, daemon: Daemon) -> None:
    for name in ("web1", "web2"):
        daemon.ask(WeightRequest(real_server=name, weight=0))
    with Knocking(lab) as knocking:
        soon(lambda: service(daemon).fastpath.not_forwarded.get("no_server"), "dropped", FOLLOWED)
        for name in ("web1", "web2"):
            daemon.ask(WeightRequest(real_server=name))
        before = knocking.met["open"]
        soon(lambda: knocking.met["open"] > before, "open again")
    assert not knocking.met["ECONNREFUSED"]


def test_roles_change_and_nobody_is_refused(lab: Lab, daemon: Daemon) -> None:
    with Knocking(lab) as knocking:
        soon(lambda: knocking.met["open"], "open")
        for role in (Role.STANDBY, Role.ACTIVE, Role.STANDBY, Role.ACTIVE):
            daemon.ask(RoleRequest(role=role))
            held = f"{VIP}/32" in daemon.addresses()
            assert held is (role is Role.ACTIVE)
        before = knocking.met["open"]
        soon(lambda: knocking.met["open"] > before + 20, "open again")
    assert not knocking.met["ECONNREFUSED"]


def test_a_vip_that_moves_to_another_interface(lab: Lab, daemon: Daemon) -> None:
    """Clients that know its former place yet meet silence."""
    with Knocking(lab) as knocking:
        with second_way(lab):
            moved = {**HASHED, "interface": "other"}
            configure(daemon, {"WEB": moved})
            daemon.ask(ReloadRequest())
            assert f"{VIP}/32" not in daemon.addresses()
            soon(lambda: knocking.met["silence"] > 5, "silence")
            configure(daemon, {"WEB": HASHED})
            daemon.ask(ReloadRequest())
            assert f"{VIP}/32" in daemon.addresses()
        before = knocking.met["open"]
        soon(lambda: knocking.met["open"] > before + 20, "open again")
    assert not knocking.met["ECONNREFUSED"]


def test_a_vip_that_leaves_the_file(lab: Lab, daemon: Daemon) -> None:
    with Knocking(lab) as knocking:
        soon(lambda: knocking.met["open"], "open")
        configure(daemon, {"ELSE": {**HASHED, "address": "10.77.0.60"}})
        daemon.ask(ReloadRequest())
        assert f"{VIP}/32" not in daemon.addresses()
        configure(daemon, {"WEB": HASHED})
        daemon.ask(ReloadRequest())
        before = knocking.met["open"]
        soon(lambda: knocking.met["open"] > before + 20, "open again")
    assert not knocking.met["ECONNREFUSED"]


def test_where_native_xdp_is_not_to_be_had(lab: Lab, daemon: Daemon) -> None:
    """Somebody else's XDP program is there: tc alone forwards, and it is said."""
    daemon.stop()
    lab.run("director", [str(LBDR), "withdraw", *daemon.places])
    code = returns(Verdict.PASS)
    with (
        Program.load(code, ProgramKind.XDP, name="others", attach=AttachPoint.XDP) as program,
        lab.entered("director"),
    ):
        link = Link.create(program, socket.if_nametoindex(INTERFACE), flags=XdpFlag.NATIVE)
    with link:
        daemon.start()
        with Connections(lab, VIP, 80, 100) as open_, Knocking(lab) as knocking:
            assert set(open_.by_server) == {"web1", "web2"}
            daemon.kill()
            assert not open_.wrong()
            daemon.start()
            assert not open_.wrong()
        assert knocking.met.keys() == {"open"}
        shown = lab.run("director", [str(LBDR), "status", *daemon.places]).stdout
        assert f"forwards: tc alone on {INTERFACE} (" in shown


def test_a_daemon_that_withdraws(lab: Lab, daemon: Daemon) -> None:
    """The VIP goes first, and the programs last."""
    with Knocking(lab) as knocking:
        soon(lambda: knocking.met["open"], "open")
        daemon.ask(WithdrawRequest())
        assert daemon.wait() == 0
        assert f"{VIP}/32" not in daemon.addresses()
        assert not list(daemon.paths.bpf.glob("*/v*"))
        filters = ["tc", "filter", "show", "dev", INTERFACE, "ingress"]
        assert "lbdr" not in lab.run("director", filters, check=False).stdout
    assert not knocking.met["ECONNREFUSED"]
