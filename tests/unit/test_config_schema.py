"""What each key allows: every refusal with its place, what was found, what is allowed."""

from __future__ import annotations

import pytest

from lbdr.config import schema, words
from lbdr.config.check_schema import Check
from lbdr.config.explain import section_of
from lbdr.config.load import parse
from lbdr.errors import ConfigError, Problem

TEMPLATE = """\
director: {DIRECTOR}
real_servers:
  web1: {address: 10.0.0.1}
  web2: {address: 10.0.0.2}
  web3: {SERVER}
virtual_services:
  WEB:
    address: 10.0.0.9
    real_servers: [web1, {server: web2, USE}]
    SERVICE
"""


def problems(
    service: str = "ports: [80]",
    director: str = "name: x",
    use: str = "weight: 1",
    server: str = "",
) -> list[Problem]:
    """What is wrong with a configuration that holds a few keys."""
    text = TEMPLATE.replace("SERVICE", service).replace("DIRECTOR", director).replace("USE", use)
    text = text.replace("SERVER", server or "address: 10.0.0.3")
    with pytest.raises(ConfigError) as caught:
        parse(text.encode(), "f")
    return caught.value.problems


def only(**keys: str) -> Problem:
    """The one thing that is wrong."""
    found = problems(**keys)
    assert len(found) == 1, "\n".join(map(str, found))
    return found[0]


RANGE = "a port from 1 to 65535, or a range such as 4001-4005"
LIST = "a list of ports and ranges, such as [80, 443] or [4001-4005], or any"
NAME = "a name: a letter, then at most 63 letters, digits, `_`, `-` or `.`"
SERVICE_VALUES = [
    ("ports: 80", LIST, "`80`", "write [80]"),
    ("ports: 0", LIST, "`0`", "write `any` for every port"),
    ("ports: 80,443", LIST, "`80,443`", "write [80, 443]"),
    ("ports: ALL", LIST, "`ALL`", "write any"),
    ("ports: []", LIST, "an empty list", "`any` means every port"),
    ("ports: {a: 1}", LIST, "a mapping", ""),
    ("ports:", LIST, "nothing", ""),
    ("ports: [65536]", RANGE, "`65536`", ""),
    ("ports: [0]", RANGE, "`0`", ""),
    ("ports: [-1]", RANGE, "`-1`", ""),
    ("ports: [80.5]", RANGE, "`80.5`", ""),
    ("ports: [true]", RANGE, "`true`", ""),
    ("ports: ['80']", RANGE, "`'80'`", "write 80 without quotes"),
    ("ports: [any]", RANGE, "`any`", "`ports: any`, without a list, means every port"),
    ("ports: [90-80]", "a range from the lower port to the higher", "`90-80`", "write 80-90"),
    ("ports: [1-65536]", RANGE, "`1-65536`", ""),
    ("protocol: TCP", "one of tcp, udp, sctp", "`TCP`", "write tcp"),
    ("protocol: 6", "one of tcp, udp, sctp", "`6`", "write tcp"),
    (
        "protocol: dicom",
        "one of tcp, udp, sctp",
        "`dicom`",
        "Layer 7 services are not in this version: write tcp",
    ),
    ("forwarding: gate", "one of dr, proxy", "`gate`", "write dr"),
    ("forwarding: masq", "one of dr, proxy", "`masq`", "this version forwards by dr alone"),
    ("forwarding: NAT", "one of dr, proxy", "`NAT`", "this version forwards by dr alone"),
    ("forwarding: tun", "one of dr, proxy", "`tun`", "this version forwards by dr alone"),
    ("one_packet: yes", "true or false", "`yes`", "write true"),
    ("one_packet: 1", "true or false", "`1`", ""),
    ("interface: a/b", "an interface's name of 1 to 15 characters", "`a/b`", None),
    ("interface: 0123456789abcdef", "an interface's name of 1 to 15 characters", None, None),
    ("interface: ~", "an interface's name of 1 to 15 characters", "nothing", None),
    ("persistence: 5 minutes", "a duration from 1s to 31d", "`5 minutes`", "write 5m"),
    ("persistence: 5M", "a duration from 1s to 31d", "`5M`", "write 5m"),
    ("persistence: '300'", "a duration from 1s to 31d", "`'300'`", "write 300s"),
    ("persistence: 0", "a duration from 1s to 31d", "`0`", ""),
    ("persistence: -5", "a duration from 1s to 31d", "`-5`", ""),
    ("persistence: 32d", "a duration from 1s to 31d", "`32d`", ""),
    ("persistence: .nan", "a duration from 1s to 31d", "`.nan`", None),
    ("persistence: true", "a duration from 1s to 31d", "`true`", None),
    ("persistence: 5w", "a duration from 1s to 31d", "`5w`", None),
    (
        "persistence: 1500ms",
        "a duration from 1s to 31d in whole seconds",
        "`1500ms`",
        "the kernel counts in seconds here",
    ),
    (
        "persistence: 1:30",
        "a duration from 1s to 31d",
        "`1:30`",
        "write one number with one unit, such as 90s or 5m",
    ),
    ("persistence: [5m]", "a duration, or {timeout: 5m, granularity: /24}", "a list", ""),
    ("persistence:", "settings, or the key left out", "nothing", ""),
    (
        "persistence: {timeout: 5m, granularity: 255.255.255.0}",
        "a prefix length from /1 to /32 (IPv4) or /128 (IPv6)",
        "`255.255.255.0`",
        "write /24",
    ),
    (
        "persistence: {timeout: 5m, granularity: 0}",
        "a prefix length from /1 to /32 (IPv4) or /128 (IPv6)",
        "`0`",
        "",
    ),
    ("scheduler_flags: mh-port", "a list", "`mh-port`", ""),
    (
        "scheduler_flags: [mh_port]",
        "one of mh-fallback, mh-port, sh-fallback, sh-port",
        "`mh_port`",
        "write mh-port",
    ),
    ("sorry_server: [web3]", "a real server's name, or {server: NAME}", "a list", ""),
    ("sorry_server: we b3", NAME, "`we b3`", "for example we_b3"),
    ("sorry_server: true", "a real server's name, or {server: NAME}", "`true`", ""),
]


@pytest.mark.parametrize(("line", "expected", "found", "hint"), SERVICE_VALUES)
def test_a_services_value(line: str, expected: str, found: str | None, hint: str | None) -> None:
    ports = "" if line.startswith("ports") else "ports: [80], "
    problem = only(service=line if not ports else f"ports: [80]\n    {line}")
    key = line.partition(":")[0]
    inner = "granularity" if "granularity: " in line else key
    assert problem.message.startswith(f"`{inner}`: expected {expected}, found ")
    if found is not None:
        assert problem.message.endswith(f", found {found}")
    if hint is not None:
        assert problem.hint == hint
    assert problem.line == (10 if not ports else 11)
    assert problem.column >= 5 + len(key)


def test_a_scheduler() -> None:
    problem = only(service="ports: [80]\n    scheduler: wcl")
    assert problem.message == (
        "`scheduler`: expected one of rr, wrr, lc, wlc, lblc, lblcr, dh, sed, nq, fo, ovf, twos, "
        "sh, mh, found `wcl`"
    )
    assert problem.hint == "did you mean wlc?"


USE_VALUES = [
    ("weight: 65536", "a whole number from 0 to 65535, found `65536`", ""),
    ("weight: -1", "a whole number from 0 to 65535, found `-1`", ""),
    ("weight: 1.5", "a whole number from 0 to 65535, found `1.5`", ""),
    ("weight: '5'", "a whole number from 0 to 65535, found `'5'`", "write 5, with no quotes"),
    ("weight: 1_000", "a whole number from 0 to 65535, found `1_000`", "write 1000, with no quote"),
    ("weight: true", "a whole number from 0 to 65535, found `true`", ""),
    ("weight: ~", "a whole number from 0 to 65535, found nothing", ""),
    ("weight: {}", "a whole number from 0 to 65535, found a mapping", ""),
    ("port: 0", "a whole number from 1 to 65535, found `0`", ""),
    ("upper_threshold: 2147483648", "a whole number from 0 to 2147483647, found", ""),
    ("lower_threshold: x", "a whole number from 0 to 2147483647, found `x`", ""),
]


@pytest.mark.parametrize(("keys", "message", "hint"), USE_VALUES)
def test_a_real_servers_value_in_a_service(keys: str, message: str, hint: str) -> None:
    problem = only(use=keys)
    assert problem.message.startswith(f"`{keys.partition(':')[0]}`: expected {message}")
    assert problem.hint.startswith(hint)
    assert (problem.line, problem.column) == (9, 43 + keys.find(":"))


def test_an_entry_that_is_no_server() -> None:
    found = problems(use="weight: 1}, 7, [web1], {weight: 2")
    noun = "expected a real server's name, or {server: NAME, weight: 1}, found"
    assert [p.message for p in found] == [
        f"`real_servers`: {noun} `7`",
        f"`real_servers`: {noun} a list",
        "`server` is missing in `real_servers`",
    ]
    assert found[2].hint == "add `server: pacs1`"


ADDRESSES = [
    ("10.0.0.1/24", "leave out the prefix length: write 10.0.0.1"),
    ("10.0.0.1:80", "a port has a key of its own: write 10.0.0.1"),
    ("'[2001:db8::1]:80'", "a port has a key of its own: write 2001:db8::1"),
    ("'[2001:db8::1]'", "write 2001:db8::1"),
    ("' 10.0.0.1'", "write 10.0.0.1"),
    ("10.0.0.300", "each of the four numbers is 0 to 255"),
    ("010.0.0.1", "leading zeros are ambiguous: write 10.0.0.1"),
    ("pacs1.hospital.example", "names are not resolved: write the address itself"),
    ("10.0.1", "such as 192.168.10.50 or 2001:db8::50"),
    ("10.1", "such as 192.168.10.50 or 2001:db8::50"),
    ("167772161", "such as 192.168.10.50 or 2001:db8::50"),
    ("''", "such as 192.168.10.50 or 2001:db8::50"),
    ("~", "such as 192.168.10.50 or 2001:db8::50"),
]


@pytest.mark.parametrize(("written", "hint"), ADDRESSES)
def test_an_address(written: str, hint: str) -> None:
    problem = only(server=f"address: {written}")
    assert problem.message.startswith("`address`: expected an IPv4 or IPv6 address, found ")
    assert problem.hint == hint
    assert (problem.line, problem.column) == (5, 19)


def test_an_address_with_a_scope() -> None:
    assert only(server="address: fe80::1%eth0").hint == "write fe80::1"


DIRECTOR_VALUES = [
    ("name: 5", "text of 1 to 64 characters, found `5`", "put it in quotes"),
    ("name: ''", "text of 1 to 64 characters, found `''`", ""),
    ("role: MASTER", "one of active, standby, found `MASTER`", "write active"),
    ("role: backup", "one of active, standby, found `backup`", "write standby"),
    ("address_probe: {count: 11}", "a whole number from 0 to 10, found `11`", ""),
    ("address_probe: {interval: 1ms}", "a duration from 10ms to 10s, found `1ms`", ""),
    ("address_probe: 5", "settings of the address probe, found `5`", ""),
    ("gratuitous_arp: {repeat: 0}", "a whole number from 1 to 100, found `0`", ""),
    ("gratuitous_arp: {delay: 2h}", "a duration from 100ms to 1h, or 0 for no second set", ""),
    ("gratuitous_arp: {refresh: 10ms}", "a duration from 1s to 1d, or 0 for none, found", ""),
    ("timeouts: {tcp: 0}", "a duration from 1s to 24d, found `0`", ""),
    ("timeouts: {udp: 25d}", "a duration from 1s to 24d, found `25d`", ""),
    ("drift_check: 0", "a duration from 200ms to 1m, found `0`", ""),
]


@pytest.mark.parametrize(("keys", "message", "hint"), DIRECTOR_VALUES)
def test_a_directors_value(keys: str, message: str, hint: str) -> None:
    problem = only(director=keys)
    assert f": expected {message}" in problem.message
    assert problem.hint == hint
    assert problem.line == 1


def test_names() -> None:
    text = (
        "real_servers: {1a: {address: 10.0.0.1}, '': {address: 10.0.0.2}}\nvirtual_services: {}\n"
    )
    with pytest.raises(ConfigError) as caught:
        parse(text.encode(), "f")
    assert [(p.column, p.message, p.hint) for p in caught.value.problems] == [
        (16, f"expected {NAME}, found `1a`", "for example s1a"),
        (41, f"expected {NAME}, found ``", ""),
    ]


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("director: {name: a}\n", ["`virtual_services` is missing"]),
        (
            "virtual_services: []\n",
            ["`virtual_services`: expected names, each with its settings, found an empty list"],
        ),
        (
            "real_servers:\nvirtual_services: {}\n",
            ["`real_servers`: expected names, each with its settings, found nothing"],
        ),
        (
            "virtual_services: {WEB: 5}\n",
            ["`WEB`: expected settings of a virtual service, found `5`"],
        ),
        (
            "director: on\nvirtual_services: {}\n",
            ["`director`: expected settings of the director, found `on`"],
        ),
        (
            "real_servers: {a: 10.0.0.1}\nvirtual_services: {}\n",
            ["`a`: expected settings of a real server, found `10.0.0.1`"],
        ),
    ],
)
def test_the_sections(text: str, messages: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text.encode(), "f")
    assert [p.message for p in caught.value.problems] == messages


KEYS = [
    ("service", "delay_loop: 6", "write `interval` in `check`"),
    ("service", "checktype: connect", "write `check`"),
    ("service", "quorum: 2", "write `quorum` in `health` of a virtual service"),
    ("service", "inhibit_on_failure: true", "write `health`"),
    ("service", "checkport: 104", "write `ports`, which stands here already"),
    ("service", "lb_kind: gate", "write `forwarding: dr`"),
    ("service", "lb_kind: NAT", "write `forwarding`; this version forwards by dr alone"),
    ("service", "lb_algo: wlc", "write `scheduler`"),
    ("service", "lvs_sched: rr", "write `scheduler`"),
    ("service", "balance: roundrobin", "write `scheduler: rr`"),
    ("service", "lvs_method: DR", "write `forwarding`"),
    ("service", "gate: true", "write `forwarding`"),
    ("service", "persistence_timeout: 300", "write `persistence`"),
    ("service", "persistent: 300", "write `persistence`"),
    (
        "service",
        "persistence_granularity: 24",
        "write `granularity` in `persistence` of a virtual service",
    ),
    ("service", "ops: true", "write `one_packet`"),
    ("service", "sorryserver: web3", "write `sorry_server`"),
    ("service", "fallback: web3", "write `sorry_server`"),
    ("service", "real: web3", "write `real_servers`, which stands here already"),
    ("service", "real_server: web3", "write `real_servers`, which stands here already"),
    ("service", "ip: 10.0.0.8", "write `address`, which stands here already"),
    ("service", "vip: 10.0.0.8", "write `address`, which stands here already"),
    ("service", "port: 80", "write `ports`, which stands here already"),
    ("service", "quiescent: yes", "lbdr has no such switch: weight 0 drains a real server"),
    ("service", "sheduler: rr", "write `scheduler`"),
    ("service", "Scheduler: rr", "write `scheduler`"),
    ("service", "scheduler-flags: []", "write `scheduler_flags`"),
    ("service", "weight: 5", "write `weight` in an entry of a virtual service's `real_servers`"),
    ("service", "zzz: 5", ""),
    ("use", "wieght: 5", "write `weight`"),
    ("use", "ip: 10.0.0.8", "write `server`, which stands here already"),
    ("use", "uthreshold: 5", "write `upper_threshold`"),
    ("use", "u-threshold: 5", "write `upper_threshold`"),
    ("server", "rip: 10.0.0.8", "write `address`, which stands here already"),
    ("server", "weight: 5", "write `weight` in an entry of a virtual service's `real_servers`"),
    ("server", "port: 80", "write `port` in an entry of a virtual service's `real_servers`"),
    ("director", "router_id: x", "write `name`"),
    ("director", "state: MASTER", "write `role: active`"),
    ("director", "lvs_timeouts: {}", "write `timeouts`"),
    ("director", "garp_master_delay: 5", "write `delay` in `gratuitous_arp` of the director"),
    ("director", "scheduler: rr", "write `scheduler` in a virtual service"),
]


@pytest.mark.parametrize(("section", "line", "hint"), KEYS)
def test_an_unknown_key_names_ours(section: str, line: str, hint: str) -> None:
    key = line.partition(":")[0]
    keep = {
        "service": "ports: [80]\n    ",
        "use": "",
        "server": "address: 10.0.0.3, ",
        "director": "",
    }
    problem = only(**{section: keep[section] + line})
    assert problem.message.startswith(f"unknown key `{key}`; allowed here: ")
    assert problem.hint == hint
    # the key itself is the place
    assert (problem.line, problem.column) == {
        "service": (11, 5),
        "use": (9, 41),
        "server": (5, 29),
        "director": (1, 12),
    }[section]


@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("login", "logins in checks"),
        ("rules", "Layer 7 services"),
        ("fwmark", "packet marks of the user's"),
    ],
)
def test_a_key_of_what_this_version_has_not(key: str, what: str) -> None:
    problem = only(service=f"ports: [80]\n    {key}: x")
    assert problem.message == f"this version of lbdr does not know `{key}`: it has no {what}"
    assert problem.hint == "leave it out"


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("virtual_server: {}", "write `virtual_services`, which stands here already"),
        ("real_server: {}", "write `real_servers`, which stands here already"),
        ("global_defs: {}", "write `director`, which stands here already"),
        ("virtual_servces: {}", "write `virtual_services`, which stands here already"),
        ("scheduler: rr", "write `scheduler` in a virtual service"),
    ],
)
def test_an_unknown_key_at_the_top(line: str, hint: str) -> None:
    assert only(service=f"ports: [80]\n{line}").hint == hint


def test_a_misspelt_section_hides_no_other_problem_and_causes_none() -> None:
    text = TEMPLATE.replace("real_servers:\n  web1", "real_server:\n  web1", 1)
    text = text.replace("DIRECTOR", "role: x").replace("SERVER", "address: 10.0.0.3")
    text = text.replace("USE", "weight: 1").replace("SERVICE", "ports: [80]")
    with pytest.raises(ConfigError) as caught:
        parse(text.encode(), "f")
    assert [p.line for p in caught.value.problems] == [1, 2]


def test_a_wrong_part_causes_no_further_errors() -> None:
    # several ports need persistence: it was meant, and only misspelt
    problem = only(service="ports: [80, 443]\n    persistance: 5m")
    assert problem.hint == "write `persistence`"
    assert only(service="ports: [80, 443]\n    persistence: 5 m").hint == "write 5m"


def test_what_is_left_is_judged_by_the_rules() -> None:
    found = problems(
        service="ports: [80]\n    one_packet: true\n    zzz: 1", use="port: 8080}, {server: web3"
    )
    assert [p.line for p in found] == [9, 11, 12]


def test_foreign_words_are_not_our_own() -> None:
    sections = [section for section in schema.SECTIONS if section is not Check]
    ours = {key for section in sections for key in section.model_fields}
    for word in (*words._LATER, *words._WITHOUT):  # noqa: SLF001 (the tables are the data)
        assert word not in ours, word
    for kind, table in words.VALUES.items():
        for word in table:
            assert word == words.normal(word), (kind, word)


def test_every_section_is_found_by_its_path() -> None:
    paths = [
        (),
        ("director",),
        ("real_servers", "director"),
        ("virtual_services", "director"),
        ("virtual_services", "x", "real_servers", 3),
        ("virtual_services", "x", "sorry_server"),
        ("virtual_services", "x", "persistence"),
        ("virtual_services", "x", "check", 0),
        ("virtual_services", "x", "health"),
        ("virtual_services", "x", "health", "quorum"),
        ("virtual_services", "x", "health", "damping"),
        ("virtual_services", "x", "health", "feedback"),
        ("real_servers", "x", "depends_on", 0),
        ("director", "address_probe"),
        ("director", "gratuitous_arp"),
        ("director", "timeouts"),
    ]
    assert tuple(section_of(path) for path in paths) == schema.SECTIONS
    assert section_of(("virtual_services", "x", "ports", 0)) is None
    for alone in (("virtual_services", "x", "check"), ("director", "check")):
        assert section_of(alone) is Check
    assert section_of(("real_servers", "x", "depends_on", 0, "check", 1)) is Check
