"""lbdr's one-shot commands against a real kernel: check, plan, apply, status, withdraw."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from netlab import INTERFACE, Lab

from lbdr.paths import exclusive
from tests.directors import Director, ip

CONFIG = """\
director: {name: lb1}
real_servers:
  a: {address: 10.77.0.21}
  b: {address: 10.77.0.22}
  c: {address: 10.77.0.23}
  a6: {address: "fd77::21"}
  sorry: {address: 10.77.0.29}
virtual_services:
  WEB:
    address: 10.77.0.10
    ports: [80]
    real_servers: [a, {server: b, weight: 2}]
    sorry_server: sorry
  TLS:
    address: 10.77.0.10
    ports: [443]
    scheduler: sh
    scheduler_flags: [sh-port]
    real_servers: [{server: a, upper_threshold: 9, lower_threshold: 3}]
  WEB6:
    address: fd77::10
    ports: [80]
    scheduler: wrr
    real_servers: [a6]
  LOG:
    address: 10.77.0.11
    protocol: udp
    ports: [514]
    scheduler: rr
    one_packet: true
    real_servers: [b]
  ANY:
    address: 10.77.0.11
    ports: any
    persistence: {timeout: 5m, granularity: /24}
    real_servers: [a]
"""
PLAN = [
    "sysctl -w net.ipv4.vs.expire_nodest_conn=1",
    "sysctl -w net.ipv4.vs.expire_quiescent_template=1",
    "sysctl -w net.ipv4.vs.schedule_icmp=1",
    "ipvsadm -A -t 10.77.0.10:80 -s wlc",
    "ipvsadm -a -t 10.77.0.10:80 -r 10.77.0.21:80 -g -w 1",
    "ipvsadm -a -t 10.77.0.10:80 -r 10.77.0.22:80 -g -w 2",
    "ipvsadm -A -t 10.77.0.10:443 -s sh -b sh-port",
    "ipvsadm -a -t 10.77.0.10:443 -r 10.77.0.21:443 -g -w 1 -x 9 -y 3",
    "ipvsadm -A -t 10.77.0.11:0 -s wlc -p 300 -M 255.255.255.0",
    "ipvsadm -a -t 10.77.0.11:0 -r 10.77.0.21:0 -g -w 1",
    "ipvsadm -A -u 10.77.0.11:514 -s rr -o",
    "ipvsadm -a -u 10.77.0.11:514 -r 10.77.0.22:514 -g -w 1",
    "ipvsadm -A -t [fd77::10]:80 -s wrr",
    "ipvsadm -a -t [fd77::10]:80 -r [fd77::21]:80 -g -w 1",
    "arping -D -c 2 -I eth0 10.77.0.10",
    "arping -D -c 2 -I eth0 10.77.0.11",
    "ndptool -t ns -i eth0 -T fd77::10 send",
    "ip address add 10.77.0.10/32 dev eth0",
    "ip address add 10.77.0.11/32 dev eth0",
    "ip address add fd77::10/128 dev eth0 nodad preferred_lft 0",
    "arping -U -c 5 -I eth0 10.77.0.10",
    "arping -U -c 5 -I eth0 10.77.0.11",
    "ndptool -t na -U -i eth0 -T fd77::10 send",
]
WITHDRAWAL = [
    "ip address del 10.77.0.10/32 dev eth0",
    "ip address del 10.77.0.11/32 dev eth0",
    "ip address del fd77::10/128 dev eth0",
    "ipvsadm -D -t 10.77.0.10:80",
    "ipvsadm -D -t 10.77.0.10:443",
    "ipvsadm -D -t 10.77.0.11:0",
    "ipvsadm -D -u 10.77.0.11:514",
    "ipvsadm -D -t [fd77::10]:80",
    "sysctl -w net.ipv4.vs.expire_nodest_conn=0",
    "sysctl -w net.ipv4.vs.expire_quiescent_template=0",
    "sysctl -w net.ipv4.vs.schedule_icmp=0",
]
OWN_ADDRESSES = ["10.77.0.1/24", "fd77::1/64"]
ADDRESSES = sorted([*OWN_ADDRESSES, "10.77.0.10/32", "10.77.0.11/32", "fd77::10/128"])
FOREIGN = [
    "-A -f 5 -s rr",
    "-A -t 10.77.0.10:8080 -s rr",
    "-A -t 10.77.0.99:80 -s wlc -p 60",
    "-a -t 10.77.0.10:8080 -r 10.77.0.21:80 -m -w 1",
]


def rules_of(commands: list[str]) -> list[str]:
    """The lines of `ipvsadm -Sn` to which the additions of a plan lead; it shows no thresholds."""
    words = [command.split(" -x ")[0].removeprefix("ipvsadm ") for command in commands]
    return [line for line in words if line.startswith(("-A", "-a"))]


def test_a_whole_life(director: Director) -> None:
    director.ipvsadm(*FOREIGN)
    ip("link set dev lo mtu 60000")  # not everything is as it was at boot
    before = director.snapshot()
    director.configure(CONFIG)

    check = director.lbdr("check")
    assert (check.exit_code, check.stdout) == (0, "5 virtual services, 5 real servers: valid\n")
    assert director.lbdr("check", "--host").exit_code == 0
    plan = director.lbdr("plan", "--exit-code")
    assert (plan.exit_code, plan.stdout.splitlines(), plan.stderr) == (1, PLAN, "")
    assert director.snapshot() == before

    apply = director.lbdr("apply")
    assert (apply.exit_code, apply.stdout.splitlines(), apply.stderr) == (0, PLAN, "")
    assert director.rules() == sorted([*FOREIGN, *rules_of(PLAN)])
    assert director.addresses() == ADDRESSES
    sysctls = director.sysctls("net/ipv4/vs")
    for name in ("expire_nodest_conn", "expire_quiescent_template", "schedule_icmp"):
        assert sysctls[f"/proc/sys/net/ipv4/vs/{name}"] == b"1\n"

    again = director.lbdr("plan", "--exit-code")
    assert (again.exit_code, again.stdout, again.stderr) == (0, "", "nothing to do\n")
    again = director.lbdr("apply")
    assert (again.exit_code, again.stdout, again.stderr) == (0, "", "nothing to do\n")

    withdrawn = director.lbdr("withdraw")
    assert (withdrawn.exit_code, withdrawn.stdout.splitlines()) == (0, WITHDRAWAL)
    assert director.snapshot() == before
    assert director.lbdr("withdraw").stderr == "nothing to do\n"


def test_as_json(director: Director) -> None:
    director.configure(CONFIG)
    assert director.lbdr("plan", "--json").json == {"operations": PLAN, "conflicts": []}
    assert director.lbdr("apply", "--json").json == {"operations": PLAN}
    assert director.lbdr("withdraw", "--json").json == {"operations": WITHDRAWAL}


def test_status(director: Director) -> None:
    director.configure(CONFIG)
    director.ipvsadm(*FOREIGN)
    missing = director.lbdr("status", "--json", "--exit-code")
    assert missing.exit_code == 1
    assert {entry["state"] for entry in missing.json["virtual_services"]} == {"missing"}

    director.apply()
    found = director.lbdr("status", "--json", "--exit-code")
    assert found.exit_code == 0
    assert found.json["role"] == "active"
    assert found.json["daemon"] is None
    assert found.json["problems"] == []
    assert found.json["foreign_services"] == [
        "mark 5 (IPv4)",
        "tcp 10.77.0.10:8080",
        "tcp 10.77.0.99:80",
    ]
    services = {entry["name"]: entry for entry in found.json["virtual_services"]}
    assert {entry["state"] for entry in services.values()} == {"online"}
    assert services["ANY"]["ports"] == "any"
    assert services["WEB"]["vip"] == {
        "address": "10.77.0.10",
        "interface": INTERFACE,
        "owner": "this director",
    }
    web = {entry["name"]: entry for entry in services["WEB"]["real_servers"]}
    assert [entry["weight"] for entry in web.values()] == [1, 2, None]
    assert [entry["state"] for entry in web.values()] == ["online", "online", "spare"]

    shown = director.lbdr("status")
    assert shown.exit_code == 0
    for word in ("lb1", "WEB6", "sh sh-port", "rr one-packet", "this director", "[fd77::10]:80"):
        assert word in shown.stdout, shown.stdout

    director.ipvsadm(
        "-d -t 10.77.0.10:80 -r 10.77.0.21:80",
        "-a -t 10.77.0.10:80 -r 10.77.0.77:80 -g -w 4",
        "-e -t 10.77.0.10:443 -r 10.77.0.21:443 -g -w 0",
    )
    drifted = director.lbdr("status", "--json", "--exit-code")
    assert drifted.exit_code == 1
    services = {entry["name"]: entry for entry in drifted.json["virtual_services"]}
    states = {entry["address"]: entry["state"] for entry in services["WEB"]["real_servers"]}
    assert states["10.77.0.21"] == "missing"
    assert states["10.77.0.77"] == "foreign"
    assert services["WEB"]["state"] == "degraded"
    assert services["TLS"]["state"] == "drain"


CHANGES = {
    "a weight": (
        ("{server: b, weight: 2}", "{server: b, weight: 5}"),
        ["ipvsadm -e -t 10.77.0.10:80 -r 10.77.0.22:80 -g -w 5"],
    ),
    "one server for another": (
        ("real_servers: [a, {server: b, weight: 2}]", "real_servers: [a, c]"),
        [
            "ipvsadm -a -t 10.77.0.10:80 -r 10.77.0.23:80 -g -w 1",
            "ipvsadm -d -t 10.77.0.10:80 -r 10.77.0.22:80",
        ],
    ),
    "all drained, and the sorry server comes": (
        ("[a, {server: b, weight: 2}]", "[{server: a, weight: 0}, {server: b, weight: 0}]"),
        [
            "ipvsadm -a -t 10.77.0.10:80 -r 10.77.0.29:80 -g -w 1",
            "ipvsadm -e -t 10.77.0.10:80 -r 10.77.0.21:80 -g -w 0",
            "ipvsadm -e -t 10.77.0.10:80 -r 10.77.0.22:80 -g -w 0",
        ],
    ),
    "a scheduler, with what it needs of the host": (
        ("scheduler: wrr", "scheduler: mh"),
        [
            "sysctl -w net.ipv4.vs.sloppy_sctp=1",
            "sysctl -w net.ipv4.vs.sloppy_tcp=1",
            "ipvsadm -E -t [fd77::10]:80 -s mh -b mh-fallback",
        ],
    ),
    "scheduler flags": (
        ("[sh-port]", "[sh-fallback]"),
        ["ipvsadm -E -t 10.77.0.10:443 -s sh -b sh-fallback"],
    ),
    "persistence": (
        ("scheduler: wrr", "persistence: {timeout: 1m, granularity: /64}"),
        ["ipvsadm -E -t [fd77::10]:80 -s wlc -p 60 -M 64"],
    ),
    "no one-packet": (
        ("    one_packet: true\n", ""),
        ["ipvsadm -E -u 10.77.0.11:514 -s rr"],
    ),
    "thresholds": (
        ("upper_threshold: 9, lower_threshold: 3", "upper_threshold: 10"),
        ["ipvsadm -e -t 10.77.0.10:443 -r 10.77.0.21:443 -g -w 1 -x 10 -y 0"],
    ),
    "a port": (
        ("ports: [514]", "ports: [515]"),
        [
            "ipvsadm -D -u 10.77.0.11:514",
            "ipvsadm -A -u 10.77.0.11:515 -s rr -o",
            "ipvsadm -a -u 10.77.0.11:515 -r 10.77.0.22:515 -g -w 1",
        ],
    ),
    "a VIP": (
        ("fd77::10", "fd77::12"),
        [
            "ip address del fd77::10/128 dev eth0",
            "ipvsadm -D -t [fd77::10]:80",
            "ipvsadm -A -t [fd77::12]:80 -s wrr",
            "ipvsadm -a -t [fd77::12]:80 -r [fd77::21]:80 -g -w 1",
            "ndptool -t ns -i eth0 -T fd77::12 send",
            "ip address add fd77::12/128 dev eth0 nodad preferred_lft 0",
            "ndptool -t na -U -i eth0 -T fd77::12 send",
        ],
    ),
    "a service less on a VIP of two": (
        (CONFIG[CONFIG.index("  LOG:") : CONFIG.index("  ANY:")], ""),
        ["ipvsadm -D -u 10.77.0.11:514"],
    ),
    "timeouts": (
        ("{name: lb1}", "{name: lb1, timeouts: {tcp: 2h}}"),
        ["ipvsadm --set 7200 0 0"],
    ),
    "the role": (
        ("{name: lb1}", "{name: lb1, role: standby}"),
        WITHDRAWAL[:3],
    ),
    "names": (
        ("{name: lb1}", "{name: lb2}"),
        [],
    ),
}


@pytest.mark.parametrize(("change", "commands"), CHANGES.values(), ids=CHANGES)
def test_a_change_is_planned_exactly(
    director: Director, change: tuple[str, str], commands: list[str]
) -> None:
    sysctls = director.sysctls("net/ipv4/vs")
    director.configure(CONFIG)
    director.apply()
    assert CONFIG.count(change[0]) == 1
    director.configure(CONFIG.replace(*change))
    assert director.commands() == commands
    report = director.apply()
    assert report.clean
    assert [operation.command for operation in report.applied] == commands
    assert director.commands() == []
    assert {*rules_of(commands)} <= set(director.rules())
    assert director.withdraw().clean
    assert director.rules() == []
    assert director.sysctls("net/ipv4/vs") == sysctls


def test_withdrawal_puts_timeouts_back(director: Director) -> None:
    before = director.run("ipvsadm", "-L", "--timeout")
    director.configure(CONFIG.replace("{name: lb1}", "{timeouts: {tcp: 2h, tcp_fin: 1m}}"))
    director.apply()
    assert "Timeout (tcp tcpfin udp): 7200 60 300" in director.run("ipvsadm", "-L", "--timeout")
    director.withdraw()
    assert director.run("ipvsadm", "-L", "--timeout") == before


def test_sysctls_come_back_as_they_were(director: Director) -> None:
    """A value that was as wanted before is not lbdr's to reset; another one comes back."""
    folder = Path("/proc/sys/net/ipv4/vs")
    for name, value in (("expire_nodest_conn", "1"), ("conn_reuse_mode", "0"), ("conntrack", "1")):
        (folder / name).write_text(value)
    before = director.snapshot()
    director.configure(CONFIG)
    director.apply()
    assert (folder / "conn_reuse_mode").read_text() == "1\n"
    assert (folder / "conntrack").read_text() == "0\n"
    director.withdraw()
    assert director.snapshot() == before


def test_an_address_of_others_stays(director: Director) -> None:
    ip("address add 10.77.0.10/32 dev eth0", "address add fd77::10/128 dev eth0 nodad")
    before = director.snapshot()
    director.configure(CONFIG)
    assert not any(
        "10.77.0.10/" in command or "fd77::10/" in command for command in director.commands()
    )
    director.apply()
    assert director.commands() == []
    director.withdraw()
    assert director.snapshot() == before


def test_an_ipv6_vip_is_never_a_source_address(director: Director) -> None:
    director.configure(CONFIG)
    director.apply()
    shown = director.run("ip", "-6", "-o", "address", "show", "to", "fd77::10")
    assert "deprecated" in shown
    assert "tentative" not in shown
    assert "src fd77::1 " in director.run("ip", "-6", "route", "get", "fd77::21")
    assert "src 10.77.0.1 " in director.run("ip", "route", "get", "10.77.0.21")


def test_standby_programs_everything_but_the_vips(director: Director) -> None:
    before = director.snapshot()
    director.configure(CONFIG.replace("{name: lb1}", "{role: standby}"))
    commands = director.commands()
    assert commands == [line for line in PLAN if line.startswith(("sysctl", "ipvsadm"))]
    assert director.apply().clean
    assert director.rules() == sorted(rules_of(PLAN))
    assert director.addresses() == sorted(OWN_ADDRESSES)
    assert director.status().role == "standby"
    assert director.status().virtual_services[0].vip.owner == ""
    director.withdraw()
    assert director.snapshot() == before


# --- services of others --------------------------------------------------------------------------


def test_a_service_of_others_that_differs_is_left_alone(director: Director) -> None:
    theirs = ["-A -t 10.77.0.10:80 -s rr", "-a -t 10.77.0.10:80 -r 10.77.0.99:80 -m -w 7"]
    director.ipvsadm(*theirs)
    before = director.snapshot()
    director.configure(CONFIG)
    plan = director.lbdr("plan", "--exit-code")
    assert plan.exit_code == 1
    assert plan.stderr.count("\n") == 1
    assert "conflict: virtual service WEB (tcp 10.77.0.10:80)" in plan.stderr
    assert "--adopt" in plan.stderr
    assert director.snapshot() == before

    refused = director.lbdr("apply")
    assert refused.exit_code == 7
    assert "virtual service WEB (tcp 10.77.0.10:80) exists in IPVS" in refused.stderr
    assert "hint: " in refused.stderr
    assert "`lbdr apply --adopt` takes it over" in refused.stderr
    others = [line for line in rules_of(PLAN) if " 10.77.0.10:80 " not in line]
    assert director.rules() == sorted([*theirs, *others])
    assert director.lbdr("apply", "--json").json["error"]["exit_code"] == 7

    director.withdraw()
    assert director.snapshot() == before


def test_adopting_a_service_that_differs(director: Director) -> None:
    director.ipvsadm("-A -t 10.77.0.10:80 -s rr", "-a -t 10.77.0.10:80 -r 10.77.0.99:80 -m -w 7")
    director.configure(CONFIG)
    planned = director.lbdr("plan", "--adopt").stdout.splitlines()
    assert [line for line in planned if " 10.77.0.10:80" in line] == [
        "ipvsadm -E -t 10.77.0.10:80 -s wlc",
        "ipvsadm -a -t 10.77.0.10:80 -r 10.77.0.21:80 -g -w 1",
        "ipvsadm -a -t 10.77.0.10:80 -r 10.77.0.22:80 -g -w 2",
        "ipvsadm -d -t 10.77.0.10:80 -r 10.77.0.99:80",
    ]
    assert director.lbdr("apply", "--adopt").exit_code == 0
    assert director.rules() == sorted(rules_of(PLAN))
    assert director.commands() == []
    director.withdraw()
    assert director.rules() == []


def test_a_service_of_others_that_is_as_wanted_is_adopted_unwritten(director: Director) -> None:
    director.ipvsadm(
        "-A -t 10.77.0.10:80 -s wlc",
        "-a -t 10.77.0.10:80 -r 10.77.0.22:80 -g -w 2",  # in another order
        "-a -t 10.77.0.10:80 -r 10.77.0.21:80 -g -w 1",
    )
    director.configure(CONFIG)
    report = director.apply()
    assert report.clean
    written = [operation.command for operation in report.applied]
    assert [line for line in written if line.startswith("ipvsadm") and ".10:80" in line] == []
    director.withdraw()
    assert director.rules() == []


def test_what_others_make_after_a_withdrawal_is_theirs(director: Director) -> None:
    """Nothing of what was lbdr's once is taken for its own again: services, VIPs, sysctls."""
    director.configure(CONFIG)
    director.apply()
    director.withdraw()
    director.ipvsadm("-A -t 10.77.0.10:80 -s rr")
    ip("address add 10.77.0.11/32 dev eth0")
    Path("/proc/sys/net/ipv4/vs/schedule_icmp").write_text("1")
    before = director.snapshot()
    assert director.withdraw().applied == []
    assert director.snapshot() == before
    assert director.lbdr("apply").exit_code == 7
    director.withdraw()
    assert director.snapshot() == before


def test_what_others_made_in_place_of_what_was_lbdrs_is_theirs(director: Director) -> None:
    """A service that somebody deletes is lbdr's no more, once lbdr has seen it."""
    director.configure(CONFIG)
    director.apply()
    director.ipvsadm("-D -t 10.77.0.10:80")
    director.configure(
        CONFIG.replace(
            "ports: [80]\n    real_servers: [a, {", "ports: [81]\n    real_servers: [a, {"
        )
    )
    director.apply()
    director.ipvsadm("-A -t 10.77.0.10:80 -s rr")
    assert director.commands() == []
    director.withdraw()
    assert director.rules() == ["-A -t 10.77.0.10:80 -s rr"]


# --- what this machine cannot do -----------------------------------------------------------------

REFUSALS = {
    "a VIP in no subnet": (
        "ports: [80]\n    address: 192.0.2.10",
        "the VIP 192.0.2.10 is in no subnet of an interface of this machine (eth0 10.77.0.0/24)",
        "interface: eth0",
    ),
    "an interface that is not there": (
        "ports: [80]\n    address: 192.0.2.10\n    interface: eth7",
        "this machine has no interface eth7; it has: cable, eth0, lo",
        "correct the name",
    ),
    "a real server out of reach": (
        "ports: [80]\n    sorry_server: far",
        "real server far (192.0.2.21) is in no subnet of an interface of this machine",
        "give the director an interface",
    ),
}
REFUSED = """\
real_servers:
  a: {address: 10.77.0.21}
  far: {address: 192.0.2.21}
virtual_services:
  WEB:
    address: 10.77.0.10
    real_servers: [a]
    SETTINGS
"""


@pytest.mark.parametrize(("settings", "message", "remedy"), REFUSALS.values(), ids=REFUSALS)
def test_what_this_machine_cannot_do_is_refused_whole(
    director: Director, settings: str, message: str, remedy: str
) -> None:
    before = director.snapshot()
    text = REFUSED.replace("SETTINGS", settings)
    if "address: 192" in settings:
        text = text.replace("    address: 10.77.0.10\n", "")
    director.configure(text)
    assert director.lbdr("check").exit_code == 0
    subject = message.split(" ", maxsplit=1)[0]
    for command in (("check", "--host"), ("plan",), ("apply",), ("apply", "--adopt")):
        refused = director.lbdr(*command)
        assert (refused.exit_code, refused.stdout) == (3, ""), subject
        (line,) = refused.stderr.splitlines()
        assert message in line
        assert remedy in line
        place = line.removeprefix(f"{director.paths.config}:").split(":")
        assert int(place[0]) in (3, 6, 7, 8, 9)
        assert int(place[1]) > 1
    assert director.snapshot() == before


def test_a_vip_outside_of_every_subnet_on_a_named_interface(director: Director) -> None:
    settings = "ports: [80]\n    interface: eth0"
    text = REFUSED.replace("SETTINGS", settings).replace("10.77.0.10", "192.0.2.10")
    director.configure(text)
    assert director.lbdr("apply").exit_code == 0
    assert "192.0.2.10/32" in director.addresses()
    assert director.commands() == []
    director.withdraw()
    assert director.addresses() == sorted(OWN_ADDRESSES)


def test_a_second_one_at_the_same_time(director: Director) -> None:
    director.configure(CONFIG)
    before = director.snapshot()
    with exclusive(director.paths, who="daemon"):
        for command in ("apply", "withdraw"):
            refused = director.lbdr(command)
            assert refused.exit_code == 9
            assert "error: another lbdr works on this director: daemon, pid " in refused.stderr
            assert "hint: " in refused.stderr
            assert "--run-dir" in refused.stderr
    assert director.snapshot() == before
    assert director.lbdr("apply").exit_code == 0


# --- several directors ---------------------------------------------------------------------------


def test_directors_in_two_namespaces_do_not_disturb_each_other(tmp_path: Path) -> None:
    """At the same time, with files of their own."""
    with Lab({"one": 1, "two": 2}) as lab:
        one, two = (Director(tmp_path / name, partial(lab.entered, name)) for name in lab.hosts)
        untouched = two.snapshot()
        one.configure(CONFIG)
        two.configure(CONFIG.replace("10.77.0.1", "10.77.0.3").replace("fd77::1", "fd77::3"))
        with ThreadPoolExecutor(2) as pool:
            assert all(pool.map(lambda director: director.apply().clean, (one, two)))
        assert one.rules() == sorted(rules_of(PLAN))
        assert two.rules() != one.rules()
        assert one.commands() == two.commands() == []
        kept = one.snapshot()
        assert two.withdraw().clean
        assert two.snapshot() == untouched
        assert one.snapshot() == kept
        assert one.commands() == []
