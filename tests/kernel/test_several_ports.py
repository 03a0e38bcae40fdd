"""Virtual services with several ports beside real IPVS: one decision, by a mark that tc sets."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from netlab import INTERFACE, Lab

from lbdr.control import client
from lbdr.control.protocol import ExplainRequest, ReloadRequest, WithdrawRequest
from lbdr.datapath.bpf_wire import Verdict, xdp_context
from lbdr.datapath.ipvs import Ipvs
from lbdr.datapath.xdp_layout import Capacity
from lbdr.datapath.xdp_maps import DirectorMaps
from lbdr.datapath.xdp_programs import DirectorPrograms
from lbdr.errors import ConfigError, LbdrError
from lbdr.explain import Explanation
from lbdr.maglev import MaglevServer, MaglevTable
from lbdr.model import Address, MarkKey, ObservedRealServer, Protocol
from tests.kernel.daemons import LBDR, Daemon, soon
from tests.kernel.open_connections import Connections, talking
from tests.kernel.several_ports import (
    ALL,
    CLIENTS,
    CLIENTS6,
    DATAGRAMS,
    FIRST_MARK,
    HASHED,
    KEPT,
    MARKS,
    SERVERS,
    SERVICES,
    SIX,
    SOURCE,
    Changes,
    datagram,
    datagrams_owner,
    errors_of,
    owner,
    owners,
    send_errors,
    services,
    several_ports_lab,
)
from tests.kernel.test_fastpath import forwards, packets, remembered, service, switch, xdp

_FOLLOWED = 20.0
_BURST = 100
_COMPILING = 120.0  # seconds in a guest on a busy machine
_TRIO = list(SERVERS)
_FILTERS = ["tc", "filter", "show", "dev", INTERFACE, "ingress"]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with several_ports_lab() as built:
        yield built


@pytest.fixture(scope="module")
def daemon(lab: Lab) -> Iterator[Daemon]:
    with Daemon(lab) as running:
        running.configure(services({}), fastpath="auto")
        running.start(seconds=_COMPILING)
        soon(lambda: forwards(running), "it forwards", _FOLLOWED)
        for vip in (KEPT, SIX):  # neighbours are found late on a busy machine
            soon(partial(is_there, lab, vip), f"{vip} answers", _FOLLOWED)
        yield running


def is_there(lab: Lab, vip: str) -> bool:
    with contextlib.suppress(OSError):
        return bool(owner(lab, (CLIENTS6 if ":" in vip else CLIENTS)[0], vip, 104))
    return False


def by_ipvs(lab: Lab) -> set[tuple[Address, int]]:
    """The clients, with their ports, whose connections IPVS has, though a table decides."""
    return {
        (one.client, one.client_port)
        for one in remembered(lab, 104)
        if str(one.virtual) in (HASHED, SIX)
    }


def reload(
    daemon: Daemon, changes: Changes | None = None, *, fastpath: str = "auto", **director: object
) -> None:
    daemon.configure(services(changes or {}), fastpath=fastpath, **director)
    daemon.ask(ReloadRequest())


def test_every_port_of_a_client_reaches_one_server(lab: Lab, daemon: Daemon) -> None:
    """Forwarded by XDP; then by IPVS, with the same choices."""
    vips = {"KEPT": KEPT, "HASHED": HASHED, "SOURCE": SOURCE, "SIX": SIX, "ALL": ALL}
    before = {name: packets(daemon, name) for name in vips}
    earlier = by_ipvs(lab)  # who asked before the neighbours were found
    fast = {name: owners(lab, vip) for name, vip in vips.items()}
    assert all(packets(daemon, name) > before[name] for name in vips)
    assert not by_ipvs(lab) - earlier
    assert not switch(daemon, on=False).forwards
    assert not xdp(lab)
    assert {name: owners(lab, vip) for name, vip in vips.items()} == fast
    assert len(remembered(lab, 4003)) >= len(vips) * len(CLIENTS)
    assert set(switch(daemon, on=True).forwards) == set(SERVICES)
    assert {name: owners(lab, vip) for name, vip in vips.items()} == fast


def test_datagrams_of_a_client_reach_one_server(lab: Lab, daemon: Daemon) -> None:
    def everybody() -> dict[str, set[str]]:
        """Also in fragments, of which only the first one has ports."""
        return {
            one: {datagrams_owner(lab, one, port, size) for port in DATAGRAMS for size in (3, 3000)}
            for one in CLIENTS
        }

    fast = everybody()
    assert all(len(who) == 1 for who in fast.values())
    assert len(set.union(*fast.values())) > 1
    switch(daemon, on=False, service="NAMES")
    assert everybody() == fast
    assert len(remembered(lab, 514)) >= len(CLIENTS)
    switch(daemon, on=True)


@pytest.mark.parametrize("on", [True, False], ids=["on", "off"])
def test_ports_that_no_service_has_are_the_hosts_own(lab: Lab, daemon: Daemon, on: bool) -> None:
    switch(daemon, on=on)
    for port in (105, 4000, 4006):
        with pytest.raises(ConnectionRefusedError):
            owner(lab, CLIENTS[0], KEPT, port)
    switch(daemon, on=True)


@pytest.mark.parametrize("on", [True, False], ids=["on", "off"])
@pytest.mark.parametrize("vip", [KEPT, HASHED])
def test_icmp_errors_reach_the_right_server(lab: Lab, daemon: Daemon, vip: str, on: bool) -> None:
    """Path MTU discovery works, also for connections that IPVS has no entry of."""
    switch(daemon, on=on)
    who = owner(lab, CLIENTS[0], vip, 104)
    before = errors_of(lab, who)
    send_errors(lab, CLIENTS[0], vip, 10)
    soon(lambda: errors_of(lab, who) - before >= 10, "ten errors", 5.0)
    switch(daemon, on=True)


def test_status_and_ipvs_show_it(daemon: Daemon) -> None:
    shown = service(daemon, "KEPT")
    assert (shown.state, shown.ports) == ("online", "104,2104,4001-4005")
    assert [server.state for server in shown.real_servers] == ["online", "online"]
    rules = [line.strip() for line in daemon.ipvs()]
    assert f"-A -f {MARKS['KEPT']} -s wlc -p 300" in rules
    assert f"-a -f {MARKS['SIX']} -6 -r [fd77::22]:0 -g -w 1" in rules
    assert not daemon.status().foreign_services


@pytest.mark.parametrize(("name", "vip"), [("KEPT", KEPT), ("HASHED", HASHED), ("SIX", SIX)])
def test_explain_tells_who_gets_a_client(lab: Lab, daemon: Daemon, name: str, vip: str) -> None:
    """By the template of the mark, and by the mark's table, on whatever port."""
    for source, who in list(owners(lab, vip).items())[:4]:
        request = ExplainRequest(virtual_service=name, client=source, client_port=999, port=4002)
        answer = client.ask(daemon.paths, request, timeout=_COMPILING).result
        found = Explanation.model_validate(answer)
        assert found.server == (who.replace("web", "six") if ":" in vip else who)
        assert ("persistence" in found.why) == (name == "KEPT")


@pytest.fixture
def open_connections(lab: Lab, daemon: Daemon) -> Iterator[list[Connections]]:
    """Whatever a test does, none of them breaks or changes server."""
    assert forwards(daemon)
    with contextlib.ExitStack() as stack:
        found = [
            stack.enter_context(Connections(lab, vip, port, len(sources), sources))
            for vip, sources in (
                (KEPT, CLIENTS),
                (HASHED, CLIENTS),
                (SOURCE, CLIENTS),
                (SIX, CLIENTS6),
            )
            for port in (104, 4003)
        ]
        assert all(len(each.by_server) > 1 for each in found)
        yield found
        assert not wrong(found)


def wrong(open_: list[Connections]) -> list[str]:
    return [line for each in open_ for line in each.wrong()]


def test_a_daemon_that_is_killed(
    lab: Lab, daemon: Daemon, open_connections: list[Connections]
) -> None:
    """Marks are set on, and the next daemon gives the same ones."""
    rules = daemon.ipvs()
    daemon.kill()
    assert not wrong(open_connections)
    owners(lab, KEPT)
    daemon.start(seconds=_COMPILING)
    soon(lambda: forwards(daemon), "adopted", _FOLLOWED)
    assert daemon.lines("fast path: adopted")
    assert daemon.ipvs() == rules
    assert not daemon.lines("applied:")


def test_the_fast_path_goes_and_comes(daemon: Daemon, open_connections: list[Connections]) -> None:
    for name in ("KEPT", None):
        switch(daemon, on=False, service=name)
        assert not wrong(open_connections)
        switch(daemon, on=True, service=name)
        assert not wrong(open_connections)


def test_ipvs_is_given_what_it_would_place_elsewhere(
    lab: Lab, daemon: Daemon, open_connections: list[Connections]
) -> None:
    mark = daemon.mark()
    reload(daemon, {"HASHED": {"real_servers": _TRIO}})
    soon(partial(daemon.lines, "table of mark", since=mark), "the flip", _FOLLOWED)
    with Connections(lab, HASHED, 4001, len(CLIENTS), CLIENTS) as later:
        everyone = [*open_connections, later]
        with talking(everyone):
            assert switch(daemon, on=False, service="HASHED").handed_over > 0
        assert not wrong(everyone)
        assert "HASHED" in switch(daemon, on=True).forwards
        assert not wrong(everyone)
        reload(daemon)
        later.drop("web3")
        assert not wrong(everyone)


def test_fastpath_off_in_the_file(
    lab: Lab, daemon: Daemon, open_connections: list[Connections]
) -> None:
    """The mark is set all the same, by tc alone."""
    reload(daemon, fastpath="off")
    soon(lambda: not xdp(lab), "XDP is gone", _FOLLOWED)
    assert not wrong(open_connections)
    assert service(daemon, "KEPT").fastpath.reason == "`fastpath: off` in the file"
    owners(lab, KEPT)
    owners(lab, HASHED)
    reload(daemon)
    soon(lambda: xdp(lab), "XDP is back", _FOLLOWED)


def test_without_such_services_nothing_is_attached(lab: Lab, daemon: Daemon) -> None:
    (about,) = daemon.paths.bpf.glob("*/v*/about")
    reload(daemon, fastpath="off")
    soon(lambda: not xdp(lab), "XDP is gone", _FOLLOWED)
    assert about.exists()
    plain = {"PLAIN": {"address": KEPT, "ports": [80], "real_servers": ["web1"]}}
    daemon.configure(plain, fastpath="off")
    daemon.ask(ReloadRequest())
    soon(lambda: not about.exists(), "all of it is gone", _FOLLOWED)
    assert not lab.run("director", _FILTERS).stdout
    reload(daemon)
    soon(lambda: xdp(lab), "XDP is back", _FOLLOWED)
    owners(lab, KEPT)


def test_a_program_that_is_detached_by_hand(
    lab: Lab, daemon: Daemon, open_connections: list[Connections]
) -> None:
    """Without a mark IPVS would not know the service."""
    switch(daemon, on=False)
    mark = daemon.mark()
    lab.run("director", ["tc", "qdisc", "delete", "dev", INTERFACE, "clsact"])
    soon(lambda: lab.run("director", _FILTERS).stdout, "it is back", 5.0)
    assert daemon.lines("drift", "detached from tc", since=mark)
    owners(lab, KEPT)
    assert not wrong(open_connections)
    switch(daemon, on=True)


def test_programs_of_another_version(daemon: Daemon, open_connections: list[Connections]) -> None:
    daemon.kill()
    (about,) = daemon.paths.bpf.glob("*/v*/about")
    with DirectorMaps.open(about.parent) as maps:
        maps.set_version(1)
    daemon.start(seconds=_COMPILING)
    soon(lambda: forwards(daemon), "loaded", _FOLLOWED)
    assert daemon.lines("replaced the XDP program")
    assert not wrong(open_connections)


def test_a_port_that_is_added_and_removed(
    lab: Lab, daemon: Daemon, open_connections: list[Connections]
) -> None:
    def is_refused() -> bool:
        try:
            owner(lab, CLIENTS[0], KEPT, 2104)
        except ConnectionRefusedError:
            return True
        return False

    rules = daemon.ipvs()
    reload(daemon, {"KEPT": {"ports": [104, "4001-4003"]}})
    soon(is_refused, "2104 is gone")
    assert not wrong(open_connections)
    reload(daemon)
    soon(lambda: not is_refused(), "2104 is back")
    owners(lab, KEPT)
    assert daemon.ipvs() == rules


def test_a_service_that_gets_a_second_port(lab: Lab, daemon: Daemon) -> None:
    """Its open connections stay, by learning and by mh, while new ones are one decision."""
    quickly = {"tcp_fin": "1s"}
    one_port = {"KEPT": {"ports": [104]}, "HASHED": {"ports": [104]}}
    mark = daemon.mark()
    reload(daemon, one_port, timeouts=quickly)
    one = f"-A -t {KEPT}:104 -s wlc -p 300"

    def rules() -> list[str]:
        return [line.strip() for line in daemon.ipvs()]

    flipped = partial(daemon.lines, f"table of tcp {HASHED}:104", since=mark)
    soon(flipped, "the flip to one port", _FOLLOWED)
    assert one in rules()
    soon(lambda: len(forwarded(daemon)) == len(SERVICES), "it is followed", _FOLLOWED)
    with (
        Connections(lab, KEPT, 104, len(CLIENTS), CLIENTS) as kept,
        Connections(lab, HASHED, 104, len(CLIENTS), CLIENTS) as hashed,
    ):
        assert not wrong([kept, hashed])
        mark = daemon.mark()
        reload(daemon, timeouts=quickly)
        assert not wrong([kept, hashed])
        flipped = partial(daemon.lines, f"table of mark {MARKS['HASHED']}", since=mark)
        soon(flipped, "the flip", _FOLLOWED)
        assert not wrong([kept, hashed])
        assert one in rules()
        owners(lab, KEPT)
        owners(lab, HASHED)
        assert not wrong([kept, hashed])
    soon(lambda: one not in rules(), "the old service is deleted", _FOLLOWED)
    assert not daemon.lines("drift", "-D", since=mark)
    reload(daemon)


def forwarded(daemon: Daemon) -> list[str]:
    services = daemon.status().virtual_services
    return [one.name for one in services if one.fastpath.state == "forwards"]


def test_servers_that_come_drain_and_go(
    daemon: Daemon, open_connections: list[Connections]
) -> None:
    drained = [{"server": "web1", "weight": 0}, "web2", "web3"]
    for servers in (_TRIO, drained, _TRIO, _TRIO[:2]):
        mark = daemon.mark()
        four = ("KEPT", "HASHED", "SOURCE")
        reload(daemon, {name: {"real_servers": servers} for name in four})
        assert not wrong(open_connections)
        flipped = partial(daemon.lines, f"table of mark {MARKS['HASHED']}", since=mark)
        soon(flipped, "the flip", _FOLLOWED)
        assert not wrong(open_connections)


@pytest.mark.parametrize(("name", "vip"), [("NAMES", HASHED), ("NAMES6", SIX)])
def test_mh_by_a_mark_is_the_kernels(lab: Lab, daemon: Daemon, name: str, vip: str) -> None:
    """IPVS, the table and the program choose alike for 1,200 clients on two ports."""
    servers = ["six1", "six2"] if ":" in vip else _TRIO
    weighted = [{"server": one, "weight": 3 + 4 * place} for place, one in enumerate(servers)]
    reload(daemon, {name: {"real_servers": weighted}})
    switch(daemon, on=False, service=name)
    chance = random.Random(name)  # noqa: S311  # clients
    frames = {
        (client, client_port, port): datagram(lab, client, client_port, vip, port)
        for _ in range(1200)
        for client in [str(_anybody(chance, vip))]
        for client_port in [chance.randint(1024, 65535)]
        for port in DATAGRAMS
    }
    everywhere = "::/0" if ":" in vip else "0.0.0.0/0"
    lab.ip("director", f"route replace {everywhere} dev {INTERFACE}")
    with lab.entered("director"):
        ipvs = asyncio.run(Ipvs.open())
    with ipvs:
        key = MarkKey(MARKS[name], ip_address(vip).version)
        kernels = _chosen_by_ipvs(lab, partial(ipvs.real_servers, key), frames)
        order = [entry.real_server for entry in ipvs.real_servers(key)]
    table = MaglevTable([MaglevServer(one.address, 0, one.weight) for one in order])
    ours = {}
    for one in frames:
        place = table.choose(ip_address(one[0]), 0)
        assert place is not None
        ours[one] = str(order[place].address)
    assert {one: kernels[one] for one in frames} == ours
    assert len(set(ours.values())) == len(servers)
    switch(daemon, on=True)
    assert _chosen_by_the_program(lab, daemon, frames) == ours
    lab.ip("director", f"route delete {everywhere} dev {INTERFACE}")
    reload(daemon)


def _anybody(chance: random.Random, vip: str) -> Address:
    if ":" in vip:
        return IPv6Address(0x2 << 124 | chance.getrandbits(124))
    return IPv4Address(chance.randint(0x0B000000, 0x7EFFFFFF))


_Datagram = tuple[str, int, int]


def _chosen_by_ipvs(
    lab: Lab,
    real_servers: Callable[[], Sequence[ObservedRealServer]],
    frames: dict[_Datagram, bytes],
) -> dict[_Datagram, str]:
    def chosen() -> dict[_Datagram, str]:
        return {
            (str(one.client), one.client_port, port): str(one.server)
            for port in DATAGRAMS
            for one in remembered(lab, port)
            if one.protocol is Protocol.UDP
        }

    def arrived(count: int) -> bool:
        servers = real_servers()
        return sum(one.active_connections + one.inactive_connections for one in servers) >= count

    with lab.entered("client"):
        sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        sender.bind((INTERFACE, 0))
    with sender:
        for start in range(0, len(frames), _BURST):
            burst = list(frames.values())[start : start + _BURST]
            for data in burst:
                sender.send(data)
            # what comes faster than the kernel reads is dropped
            soon(partial(arrived, start + len(burst)), "a burst is in")
    soon(lambda: chosen().keys() >= frames.keys(), "the last ones are in")
    return chosen()


def _chosen_by_the_program(
    lab: Lab, daemon: Daemon, frames: dict[_Datagram, bytes]
) -> dict[_Datagram, str]:
    four = {lab[host].mac: f"10.77.0.{last}" for host, last in SERVERS.items()}
    six = {lab[host].mac: f"fd77::{last}" for host, last in SERVERS.items()}
    (about,) = daemon.paths.bpf.glob("*/v*/about")
    found = {}
    with lab.entered("director"):
        index = socket.if_nametoindex(INTERFACE)
        programs, _ = DirectorPrograms.open(about.parent, Capacity())
        with programs:
            for key, data in frames.items():
                result = programs.steady.test_run(data, xdp_context(len(data), ifindex=index))
                assert result.returned == Verdict.TX
                rips = six if ":" in key[0] else four
                found[key] = rips[result.data[:6].hex(":")]
    return found


def test_services_of_others_are_left_alone(daemon: Daemon) -> None:
    """Also those that are told by a mark; one of the range is refused, and named."""
    daemon.ipvsadm("-A -f 77 -s rr")
    daemon.ipvsadm(f"-A -f {FIRST_MARK + 99} -s rr")
    before = daemon.ipvs()
    with pytest.raises(LbdrError) as refused:
        daemon.ask(ReloadRequest())
    assert f"services of others there: {FIRST_MARK + 99}" in str(refused.value)
    assert daemon.ipvs() == before
    daemon.ipvsadm(f"-D -f {FIRST_MARK + 99}")
    daemon.ask(ReloadRequest())
    assert "-A -f 77 -s rr" in [line.strip() for line in daemon.ipvs()]
    daemon.ipvsadm("-D -f 77")


@pytest.mark.parametrize(
    "rule", [f"-f {MARKS['KEPT']} -r 10.77.0.21:0", f"-f {MARKS['SIX']} -6 -r [fd77::21]:0"]
)
def test_drift_is_put_back(daemon: Daemon, rule: str) -> None:
    before, mark = sorted(daemon.ipvs()), daemon.mark()
    daemon.ipvsadm(f"-d {rule}")
    put_back = partial(daemon.lines, "drift, put back", f"ipvsadm -a {rule}", since=mark)
    soon(put_back, "put back", 5.0)
    assert sorted(daemon.ipvs()) == before


def test_a_vip_that_is_deleted_by_hand(lab: Lab, daemon: Daemon) -> None:
    """Put back, and packets for it are marked again."""
    lab.ip("director", f"address del {KEPT}/32 dev {INTERFACE}")
    soon(lambda: f"{KEPT}/32" in daemon.addresses(), "put back")
    owners(lab, KEPT)


def test_a_withdrawal_leaves_nothing(lab: Lab, daemon: Daemon) -> None:
    (about,) = daemon.paths.bpf.glob("*/v*/about")
    daemon.ask(WithdrawRequest())
    daemon.wait()
    assert not daemon.ipvs()
    assert not xdp(lab)
    assert not lab.run("director", _FILTERS).stdout
    assert not about.parent.exists()


def test_apply_without_a_daemon(lab: Lab, daemon: Daemon) -> None:
    """IPVS forwards, and marks are set from before the VIP is there until it is gone."""
    assert daemon.running.poll() is not None
    planned = lab.run("director", [str(LBDR), "plan", *daemon.places]).stdout
    assert f"ipvsadm -A -f {MARKS['KEPT']} -s wlc -p 300" in planned
    lab.run("director", [str(LBDR), "apply", *daemon.places])
    assert not xdp(lab)
    owners(lab, KEPT)
    owners(lab, HASHED)
    again = lab.run("director", [str(LBDR), "apply", *daemon.places]).stdout
    assert "ipvsadm" not in again
    assert not xdp(lab)
    lab.run("director", [str(LBDR), "withdraw", *daemon.places])
    assert not daemon.ipvs()
    assert not list(daemon.paths.bpf.glob("*/v*"))


def test_without_a_right_to_bpf_it_is_refused(lab: Lab, daemon: Daemon) -> None:
    """With the line of the file, and what to do."""
    before = daemon.addresses()
    command = ["setpriv", "--bounding-set", "-bpf,-sys_admin,-perfmon", str(LBDR), "daemon"]
    done = lab.popen("director", [*command, *daemon.places], stderr=subprocess.PIPE)
    _, said = done.communicate(timeout=60)
    lab.stop(done)
    assert done.returncode == ConfigError.exit_code
    assert "several ports as one decision (104,2104,4001-4005) need a packet mark" in said
    assert "make a virtual service for each port" in said
    assert daemon.addresses() == before
    assert not daemon.ipvs()
