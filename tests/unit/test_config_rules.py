"""The static rules: each refusal with its reason and place, and what must not be refused."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from lbdr.config.load import Loaded, parse
from lbdr.errors import ConfigError, Problem

SERVERS = """\
real_servers:
  rs1: {address: 10.0.0.1}
  rs2: {address: 10.0.0.2}
  six: {address: "2001:db8::6"}
virtual_services:
"""
FIRST = len(SERVERS.splitlines()) + 1  # the line of the first service


def read(*services: str) -> Loaded:
    """Services in flow style, one a line, the first on line FIRST."""
    lines = [f"  {service}" for service in services]
    return parse((SERVERS + "\n".join(lines) + "\n").encode(), "f")


def problems(*services: str) -> list[Problem]:
    with pytest.raises(ConfigError) as caught:
        read(*services)
    return caught.value.problems


def only(*services: str) -> Problem:
    found = problems(*services)
    assert len(found) == 1, "\n".join(map(str, found))
    return found[0]


def one(keys: str, *, address: str = "10.0.0.9", servers: str = "[rs1, rs2]") -> str:
    """A service WEB with some keys."""
    return f"WEB: {{address: '{address}', real_servers: {servers}, {keys}}}"


WRONG = [
    (
        one("ports: [80]", servers="[{server: rs1, port: 8080}]"),
        "8080",
        (
            "real server rs1 has port 8080, and the service port 80: DR cannot translate ports, "
            "since the packet reaches the real server unchanged"
        ),
        "leave out `port`, and let rs1 listen on 80",
    ),
    (
        one("ports: [80], sorry_server: {server: rs2, port: 81}", servers="[rs1]"),
        "81",
        (
            "real server rs2 has port 81, and the service port 80: DR cannot translate ports, "
            "since the packet reaches the real server unchanged"
        ),
        "leave out `port`, and let rs2 listen on 80",
    ),
    (
        one("ports: any, persistence: 5m", servers="[{server: rs1, port: 8080}]"),
        "8080",
        (
            "real server rs1 has port 8080, and the service any port: DR cannot translate ports, "
            "so the real server gets what the client sent"
        ),
        "leave out `port`",
    ),
    (
        one("ports: [104, 2104], persistence: 5m", servers="[{server: rs1, port: 104}]"),
        "104}",
        (
            "real server rs1 has port 104, and the service several ports: DR cannot translate "
            "ports, so the real server gets what the client sent"
        ),
        "leave out `port`",
    ),
    (
        one("forwarding: proxy, ports: [80]"),
        "proxy",
        "this version programs dr only: Layer 7 services (proxy) are not there yet",
        "write dr, or leave this service out",
    ),
    (
        one("persistence: 5m, ports: [80, 80]"),
        "80]",
        "`ports`: 80 stands twice",
        "remove one",
    ),
    (
        one("persistence: 5m, ports: [70-90, 80-100]"),
        "80-100",
        "`ports`: 70-90 and 80-100 overlap",
        "remove one",
    ),
    (
        one("ports: [80, 443]"),
        "[80",
        (
            "several ports need one decision, or a client's connections end up on different real "
            "servers: wlc decides for each connection"
        ),
        "add `persistence: 5m`, or use scheduler mh or sh without a -port flag",
    ),
    (
        one("ports: [4001-4005]"),
        "[4001",
        (
            "several ports need one decision, or a client's connections end up on different real "
            "servers: wlc decides for each connection"
        ),
        "add `persistence: 5m`, or use scheduler mh or sh without a -port flag",
    ),
    (
        one("ports: any"),
        "any",
        (
            "any port needs one decision, or a client's connections end up on different real "
            "servers: wlc decides for each connection"
        ),
        "add `persistence: 5m`, or use scheduler mh or sh without a -port flag",
    ),
    (
        one("ports: [80, 443], scheduler: mh, scheduler_flags: [mh-port]"),
        "[80",
        (
            "several ports need one decision, or a client's connections end up on different real "
            "servers: mh with mh-port decides for each port"
        ),
        "add `persistence: 5m`, or use scheduler mh or sh without a -port flag",
    ),
    (
        one("ports: any, scheduler: sh, scheduler_flags: [sh-fallback, sh-port]"),
        "any",
        (
            "any port needs one decision, or a client's connections end up on different real "
            "servers: sh with sh-port decides for each port"
        ),
        "add `persistence: 5m`, or use scheduler mh or sh without a -port flag",
    ),
    (
        one("ports: [80], scheduler_flags: [mh-port]"),
        "mh-port",
        "scheduler wlc has no flags, not mh-port",
        "mh-port belongs to scheduler mh",
    ),
    (
        one("ports: [80], scheduler: mh, scheduler_flags: [sh-port]"),
        "sh-port",
        "scheduler mh has mh-fallback and mh-port, not sh-port",
        "sh-port belongs to scheduler sh",
    ),
    (
        one("ports: [80], scheduler: mh, scheduler_flags: [mh-port, mh-port]"),
        "mh-port]",
        "scheduler flag mh-port stands twice",
        "remove one",
    ),
    (
        one("ports: [80], one_packet: true"),
        "true",
        (
            "one_packet schedules every datagram on its own: it is for udp, not tcp, whose "
            "connections must stay with one real server"
        ),
        "remove `one_packet`",
    ),
    (
        one("ports: [53], protocol: udp, persistence: 5m, one_packet: true"),
        "true",
        (
            "one_packet spreads a client's datagrams over the real servers, and persistence keeps "
            "them on one: only one of the two can be meant"
        ),
        "remove `one_packet` or `persistence`",
    ),
    (
        one("ports: [80], persistence: {timeout: 5m, granularity: /64}"),
        "/64",
        "the clients of an IPv4 service have addresses of 32 bits, found a granularity of /64",
        "write /1 to /32",
    ),
    (
        one("ports: [80]", servers="[{server: rs1, upper_threshold: 5, lower_threshold: 6}]"),
        "6}",
        "lower_threshold 6 of rs1 is above its upper_threshold 5",
        "new connections stop above the upper one and begin again below the lower one",
    ),
    (
        one("ports: [80]", servers="[{server: rs1, lower_threshold: 6}]"),
        "6}",
        "lower_threshold of rs1 has no effect without upper_threshold",
        "add `upper_threshold`, or remove this",
    ),
    (
        one("ports: [80]", servers="[rs1, {server: rs1, weight: 2}]"),
        "{server",
        "real server rs1 stands twice in this service",
        "remove one, and give the other the weight that is meant",
    ),
    (
        one("ports: [80], sorry_server: rs2"),
        "rs2}",
        "rs2 is a real server of this service: a sorry server serves when none of them can",
        "name another server, or remove it from `real_servers`",
    ),
    (
        one("ports: [80]", servers="[rs1, rs22]"),
        "rs22",
        "no real server is named rs22; named are: rs1, rs2, six",
        "did you mean rs2?",
    ),
    (
        one("ports: [80], sorry_server: spare"),
        "spare",
        "no real server is named spare; named are: rs1, rs2, six",
        "add `spare: {address: ...}` to `real_servers` at the top of the file",
    ),
    (
        one("ports: [80]", servers="[rs1, {server: six}]"),
        "six",
        (
            "real server six (2001:db8::6) has an IPv6 address, and the service (10.0.0.9) is "
            "IPv4: DR passes packets on as they are"
        ),
        "name a real server of the same IP version, or make a service for each",
    ),
    (
        one("ports: [80]", address="2001:db8::9", servers="[rs1]"),
        "rs1",
        (
            "real server rs1 (10.0.0.1) has an IPv4 address, and the service (2001:db8::9) is "
            "IPv6: DR passes packets on as they are"
        ),
        "name a real server of the same IP version, or make a service for each",
    ),
    (
        one("ports: [80]", address="10.0.0.2", servers="[rs1]"),
        "'10.0.0.2'",
        (
            "the VIP 10.0.0.2 is the own address of real server rs2: it would answer ARP for the "
            "VIP itself, past the director"
        ),
        "write an address that no machine has as its own",
    ),
]


@pytest.mark.parametrize(("service", "at", "message", "hint"), WRONG)
def test_a_service_that_cannot_be(service: str, at: str, message: str, hint: str) -> None:
    problem = only(service)
    assert problem.message == message
    assert problem.hint == hint
    assert problem.line == FIRST
    assert f"  {service}"[problem.column - 1 :].startswith(at)


RIGHT = [
    one("ports: [80]", servers="[{server: rs1, port: 80}]"),
    one("ports: any, persistence: 5m"),
    one("ports: any, scheduler: mh"),
    one("ports: [80, 443], scheduler: sh, scheduler_flags: [sh-fallback]"),
    one("ports: [80, 443], scheduler: mh, scheduler_flags: [mh-port], persistence: 5m"),
    one("ports: [80], scheduler: mh, scheduler_flags: [mh-port, mh-fallback]"),
    one("ports: [80-80]"),
    one("ports: [53], protocol: udp, one_packet: true"),
    one("ports: [80]", servers="[{server: rs1, weight: 0}, {server: rs2, weight: 0}]"),
    one("ports: [80]", servers="[{server: rs1, upper_threshold: 5, lower_threshold: 5}]"),
    one(
        "ports: [80], scheduler: mh", servers="[{server: rs1, upper_threshold: 5}]"
    ),  # an overloaded server's clients are refused, or fall back: IPVS does it
    one(
        "ports: [80], persistence: {timeout: 31d, granularity: 128}",
        address="2001:db8::9",
        servers="[six]",
    ),
    one("ports: [80], sorry_server: rs2", servers="[rs1]"),
]


@pytest.mark.parametrize("service", RIGHT)
def test_a_service_that_can_be(service: str) -> None:
    assert len(read(service).configuration.virtual_services) == 1


@pytest.mark.parametrize(
    "scheduler",
    ["rr", "wrr", "lc", "wlc", "lblc", "lblcr", "sh", "mh", "dh", "sed", "nq", "fo", "ovf", "twos"],
)
def test_every_scheduler_of_the_kernel(scheduler: str) -> None:
    loaded = read(one(f"ports: [80], scheduler: {scheduler}"))
    assert loaded.configuration.virtual_services[0].scheduler == scheduler


UNUSABLE = [
    ("0.0.0.0", "the unspecified address"),
    ("0.1.2.3", 'in "this network" (0.0.0.0/8)'),
    ("127.0.0.1", "a loopback address, which never leaves a machine"),
    ("224.0.0.1", "a multicast address"),
    ("255.255.255.255", "the broadcast address"),
    ("169.254.1.1", "a link-local address, which no router passes on"),
    ("::", "the unspecified address"),
    ("::1", "a loopback address, which never leaves a machine"),
    ("ff02::1", "a multicast address"),
    ("fe80::1", "a link-local address, which no router passes on"),
    ("::ffff:10.0.0.1", "an IPv4 address in IPv6 notation: write 10.0.0.1"),
]


@pytest.mark.parametrize(("address", "why"), UNUSABLE)
def test_an_address_that_can_be_neither_vip_nor_real_server(address: str, why: str) -> None:
    text = (
        f"real_servers:\n  rs: {{address: '{address}'}}\n"
        f"virtual_services:\n  A: {{address: '{address}', ports: [80], real_servers: [rs]}}\n"
    )
    with pytest.raises(ConfigError) as caught:
        parse(text.encode(), "f")
    assert [(p.line, p.column, p.message) for p in caught.value.problems] == [
        (2, 17, f"{ip_address(address)} cannot be a real server's address: it is {why}"),
        (4, 16, f"{ip_address(address)} cannot be a VIP: it is {why}"),
    ]


@pytest.mark.parametrize(
    "address", ["10.0.0.255", "192.0.2.0", "100.64.0.1", "240.0.0.1", "fd00::1"]
)
def test_addresses_that_only_look_special(address: str) -> None:
    servers = "[six]" if ":" in address else "[rs1]"
    assert read(one("ports: [80]", address=address, servers=servers))


def test_an_address_of_two_real_servers() -> None:
    text = (
        "real_servers: {a: {address: '2001:db8::1'}, b: {address: '2001:db8:0::1'}}\n"
        "virtual_services: {}\n"
    )
    with pytest.raises(ConfigError) as caught:
        parse(text.encode(), "f")
    problem = caught.value.problems[0]
    assert (problem.line, problem.column) == (1, 58)
    assert problem.message == ("b has the address of a, 2001:db8::1: a real server is named once")


def service(name: str, keys: str, address: str = "10.0.0.9") -> str:
    return f"{name}: {{address: {address}, real_servers: [rs1], persistence: 5m, {keys}}}"


BOTH = "both have tcp 10.0.0.9 port"
OVERLAPS = [
    ("ports: [80]", "ports: [80]", f"B and A {BOTH} 80"),
    ("ports: [70-90]", "ports: [80]", f"B and A {BOTH} 80"),
    ("ports: [80]", "ports: [70-90]", f"A and B {BOTH} 80"),
    ("ports: [70-90]", "ports: [80-100]", f"B and A {BOTH} 80-90"),
    ("ports: [1, 2, 3]", "ports: [3, 2, 9]", f"B and A {BOTH} 2"),
    ("ports: any", "ports: any", "B and A both have any port of tcp 10.0.0.9"),
]


@pytest.mark.parametrize(("first", "second", "message"), OVERLAPS)
def test_two_services_of_the_same_packets(first: str, second: str, message: str) -> None:
    problem = only(service("A", first), service("B", second))
    assert problem.message == message
    assert problem.line == (FIRST if message.startswith("A and") else FIRST + 1)
    assert problem.hint


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (service("A", "ports: [80]"), service("B", "ports: [81]")),
        (service("A", "ports: [80]"), service("B", "ports: any")),
        (service("A", "ports: any"), service("B", "ports: [4001-4005]")),
        (service("A", "ports: [53]"), service("B", "ports: [53], protocol: udp")),
        (service("A", "ports: [80]"), service("B", "ports: [80]", address="10.0.0.8")),
        (service("A", "ports: [70-79]"), service("B", "ports: [80-90]")),
        (service("A", "ports: [80], interface: e0"), service("B", "ports: [81], interface: e0")),
    ],
)
def test_two_services_of_different_packets(first: str, second: str) -> None:
    assert len(read(first, second).configuration.virtual_services) == 2


def test_three_services_of_the_same_port_are_two_problems() -> None:
    found = problems(*(service(name, "ports: [80]") for name in "ABC"))
    assert [p.line for p in found] == [FIRST + 1, FIRST + 2]


def test_a_vip_on_two_interfaces() -> None:
    problem = only(
        service("A", "ports: [80], interface: eth0"), service("B", "ports: [81], interface: eth1")
    )
    assert problem.message == (
        "10.0.0.9 is on eth0 in A and on eth1 here: a VIP is on one interface"
    )
    assert problem.line == FIRST + 1


def test_the_answer_does_not_depend_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object) -> None:
        raise AssertionError("a static check asked the machine")

    for name in ("socket", "getaddrinfo", "gethostname", "if_nameindex"):
        monkeypatch.setattr(f"socket.{name}", refuse)
    assert read(one("ports: [80], interface: nosuch0"))
