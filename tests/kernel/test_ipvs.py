"""IPVS by netlink, against the kernel: ipvsadm is the witness of what lbdr wrote and changed."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Iterator, Sequence
from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from netlab import wait_for

from lbdr.datapath import ipvs_text
from lbdr.datapath.ipvs import BATCH, Ipvs
from lbdr.errors import KernelError
from lbdr.model import (
    SCHEDULER_FLAGS,
    Counters,
    ForwardingMethod,
    MarkKey,
    ObservedService,
    Persistence,
    Protocol,
    RealServer,
    Service,
    ServiceKey,
    Timeouts,
)
from lbdr.operations import (
    AddRealServer,
    AddService,
    DeleteRealServer,
    DeleteService,
    IpvsOperation,
    SetRealServer,
    SetService,
    SetTimeouts,
)
from tests.directors import add_ethernet, fresh_namespace, ip, ipvsadm, rules, run

VIP, VIP6 = ip_address("10.77.0.10"), ip_address("fd77::10")
WEB = ServiceKey(Protocol.TCP, VIP, 80)
WEB6 = ServiceKey(Protocol.TCP, VIP6, 80)
MISSING_SCHEDULER = "twos"  # newer than the guest's kernel
SCHEDULERS = sorted(SCHEDULER_FLAGS.keys() - {MISSING_SCHEDULER})
WITHOUT_FLAGS = [name for name in SCHEDULERS if not SCHEDULER_FLAGS[name]]

IN_A_GUEST = settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    # an example costs half a second, and shrinking one takes hundreds
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)


@pytest.fixture
def ipvs(namespace: None) -> Iterator[Ipvs]:  # noqa: ARG001  # it is entered
    """IPVS of the test's own namespace."""
    with opened() as connection:
        yield connection


def opened() -> Ipvs:
    return asyncio.run(Ipvs.open())


def server(address: str, port: int = 80, weight: int = 1, **more: int) -> RealServer:
    return RealServer(ip_address(address), port, weight, **more)  # type: ignore[arg-type]


def additions(service: Service) -> list[IpvsOperation]:
    """What adds a service with its real servers."""
    added = [AddRealServer(service.key, entry) for entry in service.real_servers]
    return [AddService(service), *added]


def done(ipvs: Ipvs, operations: Sequence[IpvsOperation]) -> None:
    """Do operations, none of which may fail."""
    for start in range(0, len(operations), BATCH):
        assert not any(ipvs.apply(operations[start : start + BATCH]))


def refused(ipvs: Ipvs, operation: IpvsOperation) -> KernelError:
    """The kernel's refusal of an operation; nothing has changed by it."""
    before = rules()
    (error,) = ipvs.apply([operation])
    assert isinstance(error, KernelError)
    assert error.message.startswith(operation.command)
    assert rules() == before
    return error


def as_listed(service: Service) -> Service:
    """A service as the kernel lists it: the real server that was added last comes first."""
    return replace(service, real_servers=service.real_servers[::-1])


def observed(ipvs: Ipvs) -> dict[ServiceKey | MarkKey, Service]:
    return {entry.service.key: entry.service for entry in ipvs.observe()}


# --- what lbdr writes, ipvsadm reads -------------------------------------------------------------

SERVERS = (server("10.77.0.21"), server("10.77.0.22"))
SERVERS6 = (server("fd77::21"), server("fd77::22"))
CASES = {
    "TCP": (
        Service(WEB, "wlc", real_servers=SERVERS),
        [
            "-A -t 10.77.0.10:80 -s wlc",
            "-a -t 10.77.0.10:80 -r 10.77.0.21:80 -g -w 1",
            "-a -t 10.77.0.10:80 -r 10.77.0.22:80 -g -w 1",
        ],
    ),
    "UDP": (
        Service(ServiceKey(Protocol.UDP, VIP, 514), "wrr"),
        ["-A -u 10.77.0.10:514 -s wrr"],
    ),
    "UDP, one packet": (
        Service(ServiceKey(Protocol.UDP, VIP, 514), "rr", one_packet=True),
        ["-A -u 10.77.0.10:514 -s rr -o"],
    ),
    "SCTP": (
        Service(
            ServiceKey(Protocol.SCTP, VIP, 2905), "rr", real_servers=(server("10.77.0.21", 2905),)
        ),
        [
            "-A --sctp-service 10.77.0.10:2905 -s rr",
            "-a --sctp-service 10.77.0.10:2905 -r 10.77.0.21:2905 -g -w 1",
        ],
    ),
    "IPv6": (
        Service(WEB6, "lc", real_servers=SERVERS6),
        [
            "-A -t [fd77::10]:80 -s lc",
            "-a -t [fd77::10]:80 -r [fd77::21]:80 -g -w 1",
            "-a -t [fd77::10]:80 -r [fd77::22]:80 -g -w 1",
        ],
    ),
    "weights": (
        Service(
            WEB,
            "wlc",
            real_servers=(
                server("10.77.0.21", weight=0),
                server("10.77.0.22", weight=1),
                server("10.77.0.23", weight=65535),
            ),
        ),
        [
            "-A -t 10.77.0.10:80 -s wlc",
            "-a -t 10.77.0.10:80 -r 10.77.0.21:80 -g -w 0",
            "-a -t 10.77.0.10:80 -r 10.77.0.22:80 -g -w 1",
            "-a -t 10.77.0.10:80 -r 10.77.0.23:80 -g -w 65535",
        ],
    ),
    "any port, persistent": (
        Service(
            ServiceKey(Protocol.TCP, VIP, 0),
            "wlc",
            persistence=Persistence(300, 32),
            real_servers=(server("10.77.0.21", 0),),
        ),
        [
            "-A -t 10.77.0.10:0 -s wlc -p 300",
            "-a -t 10.77.0.10:0 -r 10.77.0.21:0 -g -w 1",
        ],
    ),
    "granularity": (
        Service(WEB, "sh", frozenset({"sh-port"}), persistence=Persistence(7, 22)),
        ["-A -t 10.77.0.10:80 -s sh -p 7 -M 255.255.252.0 -b sh-port"],
    ),
    "granularity of one bit": (
        Service(WEB, "rr", persistence=Persistence(2678400, 1)),
        ["-A -t 10.77.0.10:80 -s rr -p 2678400 -M 128.0.0.0"],
    ),
    "IPv6, any port, granularity": (
        Service(ServiceKey(Protocol.UDP, VIP6, 0), "rr", persistence=Persistence(60, 64)),
        ["-A -u [fd77::10]:0 -s rr -p 60 -M 64"],
    ),
    "IPv6, persistent": (
        Service(WEB6, "rr", persistence=Persistence(60, 128)),
        ["-A -t [fd77::10]:80 -s rr -p 60"],
    ),
    "mark": (
        Service(MarkKey(7, 4), "fo", real_servers=(server("10.77.0.21", 0),)),
        ["-A -f 7 -s fo", "-a -f 7 -r 10.77.0.21:0 -g -w 1"],
    ),
    "IPv6 mark": (
        Service(MarkKey(7, 6), "ovf", persistence=Persistence(9, 48)),
        ["-A -f 7 -6 -s ovf -p 9 -M 48"],
    ),
}
SCHEDULING = [
    *((name, ()) for name in WITHOUT_FLAGS),
    *(
        (name, flags)
        for name in ("sh", "mh")
        for flags in (
            (),
            (f"{name}-fallback",),
            (f"{name}-port",),
            (f"{name}-fallback", f"{name}-port"),
        )
    ),
]


@pytest.mark.parametrize(("service", "lines"), CASES.values(), ids=CASES)
def test_what_lbdr_writes_ipvsadm_reads(ipvs: Ipvs, service: Service, lines: list[str]) -> None:
    done(ipvs, additions(service))
    assert rules() == sorted(lines)
    assert observed(ipvs) == {service.key: as_listed(service)}


def test_every_scheduler_with_every_combination_of_its_flags(ipvs: Ipvs) -> None:
    services = [
        Service(ServiceKey(Protocol.TCP, VIP, port), name, frozenset(flags))
        for port, (name, flags) in enumerate(SCHEDULING, start=1)
    ]
    done(ipvs, [AddService(service) for service in services])
    assert rules() == sorted(
        f"-A -t 10.77.0.10:{port} -s {name}" + (f" -b {','.join(flags)}" if flags else "")
        for port, (name, flags) in enumerate(SCHEDULING, start=1)
    )
    assert observed(ipvs) == {service.key: service for service in services}


def test_thresholds(ipvs: Ipvs) -> None:
    highest = 2**31 - 1
    service = Service(
        WEB,
        "wlc",
        real_servers=(
            server("10.77.0.21"),
            server("10.77.0.22", upper_threshold=100),
            server("10.77.0.23", upper_threshold=highest, lower_threshold=highest - 1),
        ),
    )
    done(ipvs, additions(service))
    listing = run("ipvsadm", "-Ln", "--thresholds").splitlines()
    assert sorted(line.split()[1:4] for line in listing if "10.77.0.2" in line) == [
        ["10.77.0.21:80", "0", "0"],
        ["10.77.0.22:80", "100", "0"],
        ["10.77.0.23:80", str(highest), str(highest - 1)],
    ]
    assert observed(ipvs) == {WEB: as_listed(service)}


def test_timeouts(ipvs: Ipvs) -> None:
    assert ipvs.timeouts() == Timeouts(900, 120, 300)
    done(ipvs, [SetTimeouts(Timeouts(7200, 60, 30))])
    assert "Timeout (tcp tcpfin udp): 7200 60 30" in run("ipvsadm", "-L", "--timeout")
    done(ipvs, [SetTimeouts(Timeouts(udp=45))])
    assert "Timeout (tcp tcpfin udp): 7200 60 45" in run("ipvsadm", "-L", "--timeout")
    run("ipvsadm", "--set", "1", "2", "3")
    assert ipvs.timeouts() == Timeouts(1, 2, 3)


def test_changes_and_deletions(ipvs: Ipvs) -> None:
    service = Service(WEB, "wlc", real_servers=SERVERS)
    done(ipvs, additions(service))
    changed = replace(
        service, scheduler="mh", flags=frozenset({"mh-port"}), persistence=Persistence(60, 24)
    )
    heavier = replace(SERVERS[0], weight=9, upper_threshold=5, lower_threshold=4)
    done(ipvs, [SetService(changed), SetRealServer(WEB, heavier)])
    assert rules() == [
        "-A -t 10.77.0.10:80 -s mh -p 60 -M 255.255.255.0 -b mh-port",
        "-a -t 10.77.0.10:80 -r 10.77.0.21:80 -g -w 9",
        "-a -t 10.77.0.10:80 -r 10.77.0.22:80 -g -w 1",
    ]
    assert observed(ipvs) == {WEB: replace(changed, real_servers=(SERVERS[1], heavier))}
    done(ipvs, [SetService(service), DeleteRealServer(WEB, SERVERS[0])])
    assert rules() == [
        "-A -t 10.77.0.10:80 -s wlc",
        "-a -t 10.77.0.10:80 -r 10.77.0.22:80 -g -w 1",
    ]
    done(ipvs, [DeleteService(WEB)])
    assert rules() == []


# --- any service ---------------------------------------------------------------------------------


ADDRESSES = {
    4: st.ip_addresses(network="10.64.0.0/10"),
    6: st.ip_addresses(network="fd77::/16"),
}


@st.composite
def any_service(draw: st.DrawFn) -> Service:
    """A service that lbdr could ask for."""
    version = draw(st.sampled_from([4, 6]))
    mark = draw(st.integers(1, 2**32 - 1)) if draw(st.integers(0, 4)) == 0 else 0
    scheduler = draw(st.sampled_from(SCHEDULERS))
    persistence = draw(
        st.none()
        | st.builds(
            Persistence, st.integers(1, 2678400), st.integers(1, 32 if version == 4 else 128)
        )
    )
    protocol = draw(st.sampled_from(Protocol))
    port = 0
    if not mark:
        port = draw(st.integers(0 if persistence else 1, 65535))
    key: ServiceKey | MarkKey = MarkKey(mark, version)
    if not mark:
        key = ServiceKey(protocol, draw(ADDRESSES[version]), port)
    addresses = draw(st.lists(ADDRESSES[version], unique=True, max_size=4))
    thresholds = st.integers(0, 2**31 - 1).flatmap(
        lambda upper: st.tuples(st.just(upper), st.integers(0, upper))
    )
    return Service(
        key=key,
        scheduler=scheduler,
        flags=frozenset(flag for flag in sorted(SCHEDULER_FLAGS[scheduler]) if draw(st.booleans())),
        persistence=persistence,
        one_packet=not mark and protocol is Protocol.UDP and draw(st.booleans()),
        real_servers=tuple(
            RealServer(
                address,
                port,
                draw(st.integers(0, 65535)),
                ForwardingMethod.DR,
                *draw(thresholds),
            )
            for address in addresses
        ),
    )


@given(st.lists(any_service(), min_size=1, max_size=4, unique_by=lambda service: service.key))
@IN_A_GUEST
def test_any_service_reads_back_and_its_command_means_the_same(services: list[Service]) -> None:
    operations = [operation for service in services for operation in additions(service)]
    with fresh_namespace(), opened() as ipvs:
        done(ipvs, operations)
        ours, by_ours = observed(ipvs), rules()
    assert ours == {service.key: as_listed(service) for service in services}
    with fresh_namespace(), opened() as ipvs:
        ipvsadm(*(operation.command.removeprefix("ipvsadm ") for operation in operations))
        assert observed(ipvs) == ours
        assert rules() == by_ours


# --- what others made ----------------------------------------------------------------------------


def test_what_ipvsadm_makes_is_understood(ipvs: Ipvs) -> None:
    ipvsadm(
        "-A -t 10.77.0.10:80 -s rr",
        "-a -t 10.77.0.10:80 -r 10.77.0.21:8080 -m -w 5",
        "-a -t 10.77.0.10:80 -r 10.77.0.22:80 -i -w 6",
        "-a -t 10.77.0.10:80 -r 10.77.0.23:80 -i -w 7 --tun-type gue --tun-port 6080",
        "-a -t 10.77.0.10:80 -r [fd77::24]:80 -i -w 8",
        "-A -f 9 -s wlc -p 33 -M 255.255.0.0",
        "-a -f 9 -r 10.77.0.21 -g -x 8 -y 2",
        "-A -f 9 -6 -s mh -b flag-1",
        "-a -f 9 -6 -r [fd77::21]:0 -m",
        "-A -t [fd77::10]:443 -s sh -b sh-port -p 44 -M 56",
        "-a -t [fd77::10]:443 -r [fd77::21]:443 -g",
        "-A -u 10.77.0.10:53 -s rr --ops --pe sip",
    )
    masquerade, tunnel = ForwardingMethod.MASQUERADE, ForwardingMethod.TUNNEL
    expected = [
        Service(
            WEB,
            "rr",
            real_servers=(
                RealServer(ip_address("fd77::24"), 80, 8, tunnel),
                RealServer(ip_address("10.77.0.23"), 80, 7, tunnel),
                RealServer(ip_address("10.77.0.22"), 80, 6, tunnel),
                RealServer(ip_address("10.77.0.21"), 8080, 5, masquerade),
            ),
        ),
        Service(
            MarkKey(9, 4),
            "wlc",
            persistence=Persistence(33, 16),
            real_servers=(server("10.77.0.21", 0, upper_threshold=8, lower_threshold=2),),
        ),
        Service(
            MarkKey(9, 6),
            "mh",
            frozenset({"mh-fallback"}),
            real_servers=(RealServer(ip_address("fd77::21"), 0, 1, masquerade),),
        ),
        Service(
            ServiceKey(Protocol.TCP, VIP6, 443),
            "sh",
            frozenset({"sh-port"}),
            persistence=Persistence(44, 56),
            real_servers=(server("fd77::21", 443),),
        ),
        Service(ServiceKey(Protocol.UDP, VIP, 53), "rr", one_packet=True),
    ]
    assert observed(ipvs) == {service.key: service for service in expected}
    for service in expected:
        found = ipvs.service(service.key)
        assert found is not None
        assert found.service == service


def test_one_service_of_many(ipvs: Ipvs) -> None:
    done(ipvs, additions(Service(WEB, "wlc", real_servers=SERVERS)))
    done(ipvs, additions(Service(WEB6, "rr", real_servers=SERVERS6)))
    found = ipvs.service(WEB6)
    assert found is not None
    assert found.service == as_listed(Service(WEB6, "rr", real_servers=SERVERS6))
    assert ipvs.service(ServiceKey(Protocol.UDP, VIP, 80)) is None
    assert ipvs.service(MarkKey(1, 4)) is None
    assert ipvs.real_servers(ServiceKey(Protocol.UDP, VIP, 80)) == ()


def test_a_large_table_is_read_whole(ipvs: Ipvs) -> None:
    """Many datagrams of answers, and many requests in a full batch."""
    services = [
        Service(
            ServiceKey(Protocol.TCP, VIP, port),
            "rr",
            real_servers=tuple(server(f"10.77.1.{last}", port) for last in range(1, 40)),
        )
        for port in range(1, 41)
    ]
    done(ipvs, [operation for service in services for operation in additions(service)])
    assert len(rules()) == 40 * 40
    assert observed(ipvs) == {service.key: as_listed(service) for service in services}


# --- errors --------------------------------------------------------------------------------------


def test_unknown_scheduler(ipvs: Ipvs) -> None:
    error = refused(ipvs, AddService(Service(WEB, MISSING_SCHEDULER)))
    assert error.errno == errno.ENOENT
    assert "no scheduler twos: modprobe ip_vs_twos" in error.hint


def test_change_to_an_unknown_scheduler(ipvs: Ipvs) -> None:
    done(ipvs, additions(Service(WEB, "wlc", real_servers=SERVERS)))
    error = refused(ipvs, SetService(Service(WEB, MISSING_SCHEDULER)))
    assert error.errno == errno.ENOENT
    assert "no scheduler twos: modprobe ip_vs_twos" in error.hint


def test_what_is_there_already(ipvs: Ipvs) -> None:
    service = Service(WEB, "wlc", real_servers=SERVERS)
    done(ipvs, additions(service))
    for operation in (AddService(replace(service, scheduler="rr")), AddRealServer(WEB, SERVERS[0])):
        error = refused(ipvs, operation)
        assert error.errno == errno.EEXIST
        assert error.transient
        assert error.hint


@pytest.mark.parametrize(
    "operation",
    [
        SetService(Service(WEB, "rr")),
        AddRealServer(WEB, SERVERS[0]),
        SetRealServer(WEB, SERVERS[0]),
    ],
    ids=lambda operation: type(operation).__name__,
)
def test_missing_service(ipvs: Ipvs, operation: IpvsOperation) -> None:
    error = refused(ipvs, operation)
    assert error.errno == errno.ESRCH
    assert error.transient


def test_missing_real_server(ipvs: Ipvs) -> None:
    done(ipvs, additions(Service(WEB, "wlc")))
    assert refused(ipvs, SetRealServer(WEB, SERVERS[0])).errno == errno.ENOENT


def test_a_real_server_of_the_other_ip_version(ipvs: Ipvs) -> None:
    done(ipvs, additions(Service(WEB, "wlc")))
    error = refused(ipvs, AddRealServer(WEB, SERVERS6[0]))
    assert error.errno == errno.EINVAL
    assert not error.transient


def test_deleting_what_is_gone_is_done(ipvs: Ipvs) -> None:
    done(
        ipvs, [DeleteService(WEB), DeleteRealServer(WEB, SERVERS[0]), DeleteService(MarkKey(1, 6))]
    )
    done(ipvs, additions(Service(WEB, "wlc")))
    done(ipvs, [DeleteRealServer(WEB, SERVERS[0])])
    assert rules() == ["-A -t 10.77.0.10:80 -s wlc"]


def test_an_error_in_the_middle_stops_nothing_after_it(ipvs: Ipvs) -> None:
    operations: list[IpvsOperation] = [
        AddService(Service(WEB, "wlc")),
        AddRealServer(WEB, SERVERS[0]),
        AddRealServer(WEB, SERVERS6[0]),
        AddService(Service(WEB6, MISSING_SCHEDULER)),
        AddRealServer(WEB6, SERVERS6[0]),
        AddRealServer(WEB, SERVERS[1]),
    ]
    errors = ipvs.apply(operations)
    numbers = [error.errno if isinstance(error, KernelError) else error for error in errors]
    assert numbers == [None, None, errno.EINVAL, errno.ENOENT, errno.ESRCH, None]
    assert rules() == sorted(CASES["TCP"][1])
    # the answers did not get out of step
    assert observed(ipvs) == {WEB: as_listed(Service(WEB, "wlc", real_servers=SERVERS))}


def test_a_whole_batch_of_errors(ipvs: Ipvs) -> None:
    errors = ipvs.apply([SetService(Service(WEB, "wlc"))] * BATCH)
    numbers = {error.errno for error in errors if isinstance(error, KernelError)}
    assert (len(errors), numbers) == (BATCH, {errno.ESRCH})
    with pytest.raises(ValueError, match="at most"):
        ipvs.apply([DeleteService(WEB)] * (BATCH + 1))


# --- counters ------------------------------------------------------------------------------------


def test_counters_move_with_traffic(ipvs: Ipvs) -> None:
    """The kernel adds them up every two seconds."""
    add_ethernet()
    ip(f"address add {VIP}/32 dev lo")
    keys = {False: ServiceKey(Protocol.UDP, VIP, 5000), True: ServiceKey(Protocol.UDP, VIP, 5001)}
    for one_packet, key in keys.items():
        real_server = server("10.77.0.1", key.port)
        done(ipvs, additions(Service(key, "rr", frozenset(), None, one_packet, (real_server,))))
    table = ipvs_text.read()
    for key in keys.values():
        exchange_datagrams(key)
    found = wait_for(lambda: counted(ipvs, 20), "20 packets are counted")
    witness = run("ipvsadm", "-Ln", "--stats", "--exact")
    for one_packet, key in keys.items():
        connections = 20 if one_packet else 1
        expected = Counters(connections=connections, packets_in=20, bytes_in=20 * 128)
        (entry,) = found[key].real_servers
        for counters in (found[key].counters, entry.counters):
            rates = {"connection_rate": 0, "packet_rate_in": 0, "byte_rate_in": 0}
            assert replace(counters, **rates) == expected
        assert entry.inactive_connections == (0 if one_packet else 1)
        assert f"{VIP}:{key.port} {connections} 20 0 2560 0" in " ".join(witness.split())
    now = ipvs_text.read()
    assert now != table
    assert ipvs_text.configuration(now) == ipvs_text.configuration(table)


def exchange_datagrams(key: ServiceKey) -> None:
    """Send 20 datagrams of 100 bytes from one port to a service; all of them arrive."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as real_server,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        real_server.settimeout(5)
        real_server.bind(("", key.port))
        for _ in range(20):
            client.sendto(bytes(100), (str(key.address), key.port))
            assert real_server.recv(200) == bytes(100)


def counted(ipvs: Ipvs, packets: int) -> dict[ServiceKey | MarkKey, ObservedService]:
    """All services, once each has counted so many packets; until then nothing."""
    found = {entry.service.key: entry for entry in ipvs.observe()}
    everywhere = all(entry.counters.packets_in == packets for entry in found.values())
    return found if everywhere else {}


# --- the text table ------------------------------------------------------------------------------

KEYS = {
    "-t 10.77.0.10:80": ("10.77.0.21:80", "10.77.0.22:80"),
    "-t 10.77.0.10:443": ("10.77.0.21:443", "10.77.0.22:443"),
    "-u 10.77.0.10:80": ("10.77.0.21:80", "10.77.0.22:80"),
    "--sctp-service 10.77.0.10:80": ("10.77.0.21:80", "10.77.0.22:80"),
    "-t [fd77::10]:80": ("[fd77::21]:80", "[fd77::22]:80"),
    "-t [fd77:0:0:1:1:0:0:10]:80": ("[fd77::21]:80", "[fd77::22]:80"),
    "-f 5": ("10.77.0.21:0", "10.77.0.22:0"),
}
SERVICE_WORDS = ("-s rr", "-s wlc", "-s rr -p 60", "-s rr -p 61", "-s rr -p 60 -M 255.255.0.0")
SERVICE6_WORDS = ("-s rr", "-s mh", "-s rr -p 60", "-s rr -p 60 -M 64")
SERVER_WORDS = ("-g -w 1", "-g -w 2", "-g -w 0", "-m -w 1", "-i -w 1")


Table = dict[str, dict[str, str]]
"""Services by ipvsadm's words for them, and the words for their servers."""


@st.composite
def any_table(draw: st.DrawFn) -> tuple[Table, list[str]]:
    """Some services with some servers, and the rules that make them."""
    table: Table = {}
    rules = []
    for key in draw(st.lists(st.sampled_from(sorted(KEYS)), unique=True, min_size=3)):
        rules.append(f"-A {key} {draw(service_words(key))}")
        table[key] = {
            server: draw(st.sampled_from(SERVER_WORDS))
            for server in draw(st.lists(st.sampled_from(KEYS[key]), unique=True, min_size=1))
        }
        rules += [f"-a {key} -r {server} {words}" for server, words in table[key].items()]
    return table, rules


def service_words(key: str) -> st.SearchStrategy[str]:
    return st.sampled_from(SERVICE6_WORDS if "[" in key else SERVICE_WORDS)


@st.composite
def any_edits(draw: st.DrawFn, table: Table) -> list[str]:
    """Rules that change a table, up to one for each service."""
    edits: list[str] = []
    for key in draw(st.lists(st.sampled_from(sorted(KEYS)), unique=True, min_size=1)):
        if key not in table:
            edits.append(f"-A {key} {draw(service_words(key))}")
            continue
        server = draw(st.sampled_from(KEYS[key]))
        words = draw(st.sampled_from(SERVER_WORDS))
        kind = draw(st.sampled_from(["delete", "change", "server", "server", "server", "order"]))
        if kind == "delete":
            edits.append(f"-D {key}")
        elif kind == "change":
            edits.append(f"-E {key} {draw(service_words(key))}")
        elif server not in table[key]:
            edits.append(f"-a {key} -r {server} {words}")
        elif kind == "server":
            edits.append(
                draw(st.sampled_from([f"-e {key} -r {server} {words}", f"-d {key} -r {server}"]))
            )
        else:  # the same again, in another place of the list
            edits += [f"-d {key} -r {server}", f"-a {key} -r {server} {table[key][server]}"]
    return edits


def content(service: Service) -> Service:
    """What of a service the text has: no scheduler's flags, and no order of history."""
    ordered = sorted(service.real_servers, key=lambda entry: str(entry.key))
    return replace(service, flags=frozenset(), real_servers=tuple(ordered))


@given(st.data())
@IN_A_GUEST
def test_the_text_table_changes_where_netlink_does(data: st.DataObject) -> None:
    table, made = data.draw(any_table())
    with fresh_namespace(), opened() as ipvs:
        ipvsadm(*made)
        text, before = ipvs_text.configuration(ipvs_text.read()), observed(ipvs)
        ipvsadm(*data.draw(any_edits(table)))
        after = observed(ipvs)
        changed = ipvs_text.changed(text, ipvs_text.configuration(ipvs_text.read()))
    assert len(before) == len(table)
    differing = {
        key
        for key in before.keys() | after.keys()
        if key not in before or key not in after or content(before[key]) != content(after[key])
    }
    marks = {key for key in differing if isinstance(key, MarkKey)}
    # a mark's line is the same for its service of the other IP version
    assert changed == differing | {MarkKey(key.mark, 10 - key.version) for key in marks}


def test_the_text_table_does_not_tell_the_mark_of_one_ip_version_from_the_other(ipvs: Ipvs) -> None:
    """As ipvs_text says; a caller treats both."""
    empty = ipvs_text.configuration(ipvs_text.read())
    done(ipvs, [AddService(Service(MarkKey(3, 6), "rr"))])
    now = ipvs_text.configuration(ipvs_text.read())
    # the text does not tell IPv4 from IPv6
    assert ipvs_text.changed(empty, now) == {MarkKey(3, 4), MarkKey(3, 6)}
