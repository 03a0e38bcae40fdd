"""Flows handed over to IPVS by its sync protocol; ipvsadm and ip are the witnesses."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from itertools import product

import pytest
from netlab import INTERFACE, Lab, wait_for

from lbdr.datapath import ipvs_connections, ipvs_sync
from lbdr.datapath.ipvs_sync import hand_over
from lbdr.datapath.ipvs_sync_wire import Flow, FlowState
from lbdr.errors import KernelError
from lbdr.model import Address, Protocol
from tests.directors import add_ethernet, ip, ipvsadm, run

VIPS = {4: ip_address("10.77.0.10"), 6: ip_address("fd77::10")}
SERVERS = {
    4: (ip_address("10.77.0.21"), ip_address("10.77.0.22")),
    6: (ip_address("fd77::21"), ip_address("fd77::22")),
}
CLIENTS = {4: ip_address("10.100.0.0"), 6: ip_address("fd77:1::")}
PORTS = {Protocol.TCP: 80, Protocol.UDP: 53}


def endpoint(address: Address, port: int) -> str:
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


def rules(version: int, protocol: Protocol, weight: int = 1) -> list[str]:
    """A service with both servers; the weight is that of the first one."""
    service = f"-{protocol[0]} {endpoint(VIPS[version], PORTS[protocol])}"
    first, second = (endpoint(server, PORTS[protocol]) for server in SERVERS[version])
    return [
        f"-A {service} -s rr",
        f"-a {service} -r {first} -g -w {weight}",
        f"-a {service} -r {second} -g",
    ]


def flows(number: int, version: int = 4, protocol: Protocol = Protocol.TCP) -> list[Flow]:
    """Flows of as many clients, of both servers in turn."""
    return [
        Flow(
            protocol,
            CLIENTS[version] + index,
            1000 + index % 60000,
            VIPS[version],
            PORTS[protocol],
            SERVERS[version][index % 2],
        )
        for index in range(number)
    ]


def give(given: list[Flow]) -> int:
    return asyncio.run(hand_over(given))


def listed() -> set[tuple[str, ...]]:
    """By ipvsadm's words: protocol, state, client, virtual service and real server."""
    lines = run("ipvsadm", "-Lnc").splitlines()[2:]
    return {(line.split()[0], *line.split()[2:]) for line in lines}


def as_listed(flow: Flow, state: str = "ESTABLISHED") -> tuple[str, ...]:
    return (
        flow.protocol.name,
        "UDP" if flow.protocol is Protocol.UDP else state,
        endpoint(flow.client, flow.client_port),
        endpoint(flow.virtual, flow.virtual_port),
        endpoint(flow.server, flow.virtual_port),
    )


def counts() -> list[tuple[int, int]]:
    """Active and inactive connections of every real server, as ipvsadm lists them."""
    lines = [line.split() for line in run("ipvsadm", "-Ln").splitlines() if " Route " in line]
    return [(int(line[-2]), int(line[-1])) for line in lines]


def nothing_left() -> bool:
    return ipvs_sync.INTERFACE not in run("ip", "link") and not run("ipvsadm", "-L", "--daemon")


@pytest.fixture
def services(namespace: None) -> None:  # noqa: ARG001  # it is entered
    ipvsadm(*(rule for v, p in product((4, 6), PORTS) for rule in rules(v, p)))


@pytest.mark.usefixtures("services")
def test_flows_arrive() -> None:
    given = [flow for v, p in product((4, 6), PORTS) for flow in flows(20, v, p)]
    assert give(given) == 80
    assert listed() == {as_listed(flow) for flow in given}
    # as many as IPVS would count itself: a UDP connection is never active
    assert Counter(counts()) == {(10, 0): 4, (0, 10): 4}
    assert nothing_left()


@pytest.mark.usefixtures("services")
def test_nothing_to_give_changes_nothing() -> None:
    assert give([]) == 0
    assert nothing_left()


@pytest.mark.usefixtures("services")
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", PORTS)
def test_an_entry_that_disagrees_is_replaced(version: int, protocol: Protocol) -> None:
    first, second = SERVERS[version]
    before = [replace(flow, server=second) for flow in flows(5, version, protocol)]
    after = [replace(flow, server=first) for flow in before[:3]]
    give(before)
    assert give(after) == 3
    wait_for(lambda: len(listed()) == 5, "the replaced entries to go")
    assert listed() == {as_listed(flow) for flow in after + before[3:]}
    # nothing is counted twice, or for ever
    assert sorted(map(sum, counts())) == [0] * 6 + [2, 3]


@pytest.mark.usefixtures("services")
def test_an_entry_that_agrees_gets_state_and_timeout() -> None:
    given = flows(4)
    give([replace(flow, state=FlowState.CLOSING, timeout=50) for flow in given])
    assert listed() == {as_listed(flow, "FIN_WAIT") for flow in given}
    found = ipvs_connections.parse(ipvs_connections.read()).connections
    assert all(40 <= connection.expires <= 50 for connection in found)
    give([replace(flow, timeout=5000) for flow in given])
    assert listed() == {as_listed(flow) for flow in given}
    found = ipvs_connections.parse(ipvs_connections.read()).connections
    assert all(4990 <= connection.expires <= 5000 for connection in found)
    assert Counter(counts()) == {(2, 0): 2, (0, 0): 6}


@pytest.mark.usefixtures("namespace")
def test_a_flow_of_a_firewall_mark_counts_at_its_server() -> None:
    ipvsadm("-A -f 7 -s rr", "-a -f 7 -r 10.77.0.21 -g")
    give([replace(flow, fwmark=7, server=SERVERS[4][0]) for flow in flows(3)])
    assert counts() == [(3, 0)]


@pytest.mark.usefixtures("namespace")
def test_without_a_service() -> None:
    """As when a service is added only after its flows: they go where they are to go."""
    assert give(flows(3)) == 3
    assert listed() == {as_listed(flow) for flow in flows(3)}


@pytest.mark.usefixtures("services")
def test_twenty_thousand_arrive() -> None:
    given = flows(20_000)
    told: list[tuple[int, int]] = []
    assert asyncio.run(hand_over(given, lambda sent, total: told.append((sent, total)))) == 20_000
    assert told[-1] == (20_000, 20_000)
    assert told == sorted(told)
    table = ipvs_connections.parse(ipvs_connections.read())
    assert {(entry.client, entry.client_port, entry.server) for entry in table.connections} == {
        (flow.client, flow.client_port, flow.server) for flow in given
    }
    assert Counter(counts()) == {(10_000, 0): 2, (0, 0): 6}


# --- others' daemon, and failures -----------------------------------------------------------------


@pytest.mark.usefixtures("services")
def test_the_backup_daemon_of_someone_else_is_left_alone() -> None:
    add_ethernet()
    run("ipvsadm", "--start-daemon", "backup", "--mcast-interface", INTERFACE, "--syncid", "51")
    before = run("ipvsadm", "-L", "--daemon").casefold()
    assert "backup" in before
    with pytest.raises(KernelError) as caught:
        give(flows(3))
    assert caught.value.errno == errno.EEXIST
    assert caught.value.message.startswith(
        "ipvsadm --start-daemon backup --mcast-interface lbdr-sync --syncid 219"
    )
    assert "eth0 with syncid 51" in caught.value.hint
    assert run("ipvsadm", "-L", "--daemon").casefold() == before
    assert ipvs_sync.INTERFACE not in run("ip", "link")
    assert listed() == set()


@pytest.mark.usefixtures("services")
def test_a_master_daemon_is_no_obstacle() -> None:
    add_ethernet()
    run("ipvsadm", "--start-daemon", "master", "--mcast-interface", INTERFACE, "--syncid", "51")
    before = run("ipvsadm", "-L", "--daemon")
    assert give(flows(3)) == 3
    assert run("ipvsadm", "-L", "--daemon") == before


@pytest.mark.usefixtures("services")
def test_what_a_killed_hand_over_left_is_cleared() -> None:
    ip(f"link add {ipvs_sync.INTERFACE} up type dummy")
    run("ipvsadm", "--start-daemon", "backup", "--mcast-interface", ipvs_sync.INTERFACE)
    assert give(flows(3)) == 3
    assert nothing_left()


@pytest.mark.usefixtures("services")
def test_an_interface_of_someone_else_is_left_alone() -> None:
    ip(f"link add {ipvs_sync.INTERFACE} type veth peer name other")
    with pytest.raises(KernelError, match=r"ip link add lbdr-sync .*EEXIST"):
        give(flows(3))
    assert "other@lbdr-sync" in run("ip", "link")
    assert not run("ipvsadm", "-L", "--daemon")


@pytest.mark.usefixtures("services")
def test_nothing_is_left_after_a_failure_in_the_middle() -> None:
    def fail(sent: int, total: int) -> None:
        assert not nothing_left()
        raise RuntimeError(f"{sent} of {total}")

    with pytest.raises(RuntimeError, match="of 5000"):
        asyncio.run(hand_over(flows(5000), fail))
    assert nothing_left()


@pytest.mark.usefixtures("services")
def test_nothing_is_left_after_a_failure_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel does not answer who stops a daemon whose thread has not run yet."""

    async def fail(*_: object) -> None:
        raise RuntimeError("at once")

    monkeypatch.setattr(ipvs_sync, "_deliver", fail)
    for _ in range(10):
        with pytest.raises(RuntimeError, match="at once"):
            give(flows(1))
        assert nothing_left()


@pytest.mark.usefixtures("services")
@pytest.mark.parametrize(
    "command",
    [
        ("ipvsadm", "--stop-daemon", "backup"),
        ("ip", "link", "delete", ipvs_sync.INTERFACE),
    ],
)
def test_flows_that_do_not_arrive_are_counted(
    command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody ends the daemon, or its interface, when the first 1,280 have been sent."""
    monkeypatch.setattr(ipvs_sync, "_SILENT_SECONDS", 0.3)
    ended: list[str] = []

    def end(_sent: int, _total: int) -> None:
        if not ended:
            ended.append(run(*command))

    with pytest.raises(KernelError) as caught:
        asyncio.run(hand_over(flows(5000), end))
    if command[0] == "ipvsadm":
        assert "3720 of 5000 flows handed over did not reach IPVS" in caught.value.message
    assert nothing_left()


# --- a real connection ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A client that reaches either the director or, as by the fast path, web1 itself."""
    with Lab() as built:
        for name in ("web1", "web2"):
            built.sysctl(name, "net.ipv4.conf.all.arp_ignore", "1")
            built.sysctl(name, "net.ipv4.conf.all.arp_announce", "2")
            built.ip(name, f"address add {VIPS[4]}/32 dev lo", f"address add {VIPS[6]} dev lo")
        built.ip(
            "director",
            f"address add {VIPS[4]}/32 dev {INTERFACE}",
            f"address add {VIPS[6]}/128 dev {INTERFACE} nodad",
        )
        built.sysctl("director", "net.ipv4.vs.sloppy_tcp", "1")
        with built.entered("director"):
            # new connections, and those that IPVS does not know, go to web2
            ipvsadm(*(rule for v in (4, 6) for rule in rules(v, Protocol.TCP, weight=0)))
        yield built


def point(lab: Lab, vip: Address, host: str) -> None:
    """Frames of the client's to the VIP go to a host from now on."""
    lab.ip("client", f"neigh replace {vip} lladdr {lab[host].mac} dev {INTERFACE} nud permanent")


@pytest.mark.parametrize("version", [4, 6])
def test_a_real_connection_goes_on(lab: Lab, version: int) -> None:
    vip = VIPS[version]
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with lab.entered("web1"):
        listener = socket.create_server((str(vip), 80), family=family)
    with lab.entered("web2"):
        other = socket.create_server((str(vip), 80), family=family)
    point(lab, vip, "web1")
    with listener, other, lab.entered("client"):
        listener.settimeout(5)
        with (
            socket.create_connection((str(vip), 80), 5) as handed,
            listener.accept()[0] as handed_end,
            socket.create_connection((str(vip), 80), 5) as forgotten,
            listener.accept()[0],
        ):
            client, port = handed.getsockname()[:2]
            flow = Flow(
                Protocol.TCP, ip_address(client), port, vip, 80, SERVERS[version][0], timeout=900
            )
            with lab.entered("director"):
                give([flow])
            point(lab, vip, "director")
            for number in range(20):
                words = f"still there? {number}".encode()
                handed.sendall(words)
                handed_end.settimeout(5)
                assert handed_end.recv(100) == words
                handed_end.sendall(words)
                assert handed.recv(100) == words
            with lab.entered("director"):
                assert as_listed(flow) in listed()
            # the same without a hand-over
            forgotten.sendall(b"still there?")
            with pytest.raises(ConnectionResetError):
                forgotten.recv(100)


def test_templates_of_a_live_kernel(lab: Lab) -> None:
    vip = VIPS[4]
    with lab.entered("director"):
        ipvsadm(f"-A -t {vip}:81 -s rr -p 300", f"-a -t {vip}:81 -r {SERVERS[4][1]}:81 -g")
    with lab.entered("web2"):
        listener = socket.create_server((str(vip), 81))
    point(lab, vip, "director")
    with listener, lab.entered("client"), socket.create_connection((str(vip), 81), 5) as opened:
        port = opened.getsockname()[1]
        with lab.entered("director"):
            table = ipvs_connections.parse(ipvs_connections.read())
        (template,) = table.templates
        assert (template.protocol, template.client, template.client_port) == (
            Protocol.TCP,
            lab["client"].ipv4,
            0,
        )
        assert (template.virtual, template.virtual_port, template.server) == (
            vip,
            81,
            SERVERS[4][1],
        )
        assert 300 <= template.expires + 10 <= 400
        assert [entry.client_port for entry in table.connections if entry.virtual_port == 81] == [
            port
        ]
