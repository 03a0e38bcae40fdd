"""Checks that need frames: ping, and the VIP on one server, in network namespaces."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Coroutine
from ipaddress import ip_address
from typing import Any, TypeVar

import pytest
from netlab import INTERFACE, Lab

from lbdr.datapath.syn import ACK, RST, SYN, parse
from lbdr.datapath.vip_probe import VipProber
from lbdr.health.checks.run import run
from lbdr.health.results import Failed, FailureKind, Passed, Result
from lbdr.health.spec import Check, Connect, Ping, Probe, Target, Timing, Vip
from lbdr.model import Address

T = TypeVar("T")

VIPS: dict[int, Address] = {4: ip_address("10.77.0.50"), 6: ip_address("fd77::50")}
PORT = 104


def on(lab: Lab, host: str, work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in a host's namespace."""
    with lab.entered(host):
        return asyncio.run(asyncio.wait_for(work, 30))


def rip(lab: Lab, server: str, version: int) -> Address:
    return lab[server].ipv4 if version == 4 else lab[server].ipv6


def checked(lab: Lab, server: str, version: int, check: Check, timeout: float = 1.0) -> Result:
    """Check a server from the director."""
    target = Target(rip(lab, server, version), PORT, vip=VIPS[version], vip_port=PORT)

    async def work() -> Result:
        prober = VipProber()
        try:
            return await run(Probe(target, check, Timing(timeout=timeout)), prober=prober)
        finally:
            prober.close()

    return on(lab, "director", work())


def give_vip(lab: Lab, host: str, version: int) -> None:
    """Put the VIP on a server as solve-arp does, or on the director."""
    if host == "director":
        length = VIPS[version].max_prefixlen
        nodad = " nodad preferred_lft 0" if version == 6 else ""  # as lbdr adds it
        lab.ip(host, f"address add {VIPS[version]}/{length} dev {INTERFACE}{nodad}")
        return
    lab.sysctl(host, "net.ipv4.conf.all.arp_ignore", "1")
    lab.sysctl(host, "net.ipv4.conf.all.arp_announce", "2")
    lab.ip(host, f"address add {VIPS[version]}/{VIPS[version].max_prefixlen} dev lo")


class Listener:
    """A service on all addresses of a host, which counts what it accepts."""

    def __init__(self, lab: Lab, host: str) -> None:
        with lab.entered(host):
            self._socket = socket.create_server(
                ("::", PORT), family=socket.AF_INET6, dualstack_ipv6=True
            )
        self.accepted = 0
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.accepted += 1
            connection.close()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()


@pytest.mark.parametrize("version", [4, 6])
def test_ping(lab: Lab, version: int) -> None:
    result = checked(lab, "web1", version, Ping())
    assert isinstance(result, Passed), result
    assert result.words == "answered a ping"
    assert isinstance(checked(lab, "web1", version, Ping(size=1400)), Passed)
    lab.ip("web1", f"link set {INTERFACE} down")
    result = checked(lab, "web1", version, Ping())
    assert isinstance(result, Failed)
    assert result.kind in (FailureKind.TIMEOUT, FailureKind.UNREACHABLE)


def test_many_pings_do_not_take_each_others_answers(lab: Lab) -> None:
    """Half of them go to a server that is silent."""
    lab.sysctl("web2", "net.ipv4.icmp_echo_ignore_all", "1")

    async def work() -> list[Result]:
        probes = [
            Probe(Target(lab[server].ipv4), Ping(), Timing(timeout=1))
            for server in ("web1", "web2") * 20
        ]
        return list(await asyncio.gather(*(run(probe) for probe in probes)))

    results = on(lab, "director", work())
    assert all(isinstance(result, Passed) for result in results[::2])
    silent = [result for result in results[1::2] if isinstance(result, Failed)]
    assert len(silent) == 20
    assert {result.words for result in silent} == {"10.77.0.22 did not answer a ping (within 1 s)"}


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("active", [True, False], ids=["active", "standby"])
def test_the_vip_check_sees_the_vip_on_one_server(lab: Lab, version: int, active: bool) -> None:
    """web1 has it, web2 does not, and the RIPs of both answer."""
    give_vip(lab, "web1", version)
    if active:
        give_vip(lab, "director", version)
    listeners = [Listener(lab, name) for name in ("web1", "web2")]
    try:
        result = checked(lab, "web1", version, Vip())
        assert isinstance(result, Passed), result
        assert result.words == f"answers on the VIP {VIPS[version]} port {PORT}"
        assert isinstance(checked(lab, "web2", version, Connect()), Passed)
        result = checked(lab, "web2", version, Vip())
        assert isinstance(result, Failed), result
        assert result.kind is FailureKind.TIMEOUT
        assert f"did not answer for the VIP {VIPS[version]} port {PORT}: it lost" in result.words
    finally:
        for listener in listeners:
            listener.close()


@pytest.mark.parametrize("version", [4, 6])
def test_a_vip_on_which_nothing_listens(lab: Lab, version: int) -> None:
    give_vip(lab, "web1", version)
    give_vip(lab, "director", version)
    result = checked(lab, "web1", version, Vip())
    assert isinstance(result, Failed), result
    assert result.kind is FailureKind.REFUSED
    assert result.words.endswith(
        f"has the VIP {VIPS[version]}, but nothing listens on its port {PORT}"
    )


def test_a_server_that_forwards_does_not_answer_by_the_director(lab: Lab) -> None:
    """web2 has no VIP, forwards packets, and the director itself serves the port on its own VIP."""
    give_vip(lab, "director", 4)
    lab.sysctl("web2", "net.ipv4.ip_forward", "1")
    with lab.entered("director"):
        sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
        sniffer.bind((INTERFACE, 0x0800))
        sniffer.setblocking(False)
    listener = Listener(lab, "director")
    try:
        result = checked(lab, "web2", 4, Vip())
    finally:
        listener.close()
    assert isinstance(result, Failed), result
    assert listener.accepted == 0
    with sniffer:
        came_back = []
        while True:
            try:
                found = parse(sniffer.recv(2048))
            except BlockingIOError:
                break
            if found is not None and found[0].receiver == VIPS[4]:
                came_back.append(found[0])
    assert came_back == []


def test_the_connection_is_reset_at_once(lab: Lab) -> None:
    """The application never sees it, and the server keeps no half-open one."""
    give_vip(lab, "web1", 4)
    give_vip(lab, "director", 4)
    with lab.entered("web1"):
        sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
        sniffer.bind((INTERFACE, 0x0800))
        sniffer.settimeout(2)
    listener = Listener(lab, "web1")
    try:
        assert isinstance(checked(lab, "web1", 4, Vip()), Passed)
        assert isinstance(checked(lab, "web1", 4, Vip()), Passed)
    finally:
        listener.close()
    flags: list[int] = []
    with sniffer:
        while len(flags) < 4:
            found = parse(sniffer.recv(2048))
            if found is not None and found[0].receiver == VIPS[4]:
                flags.append(found[0].flags)
    assert flags == [SYN, RST, SYN, RST]
    assert listener.accepted == 0
    assert not any(flag & ACK for flag in flags)


def test_faults_of_the_director_are_no_verdict(lab: Lab) -> None:
    lab.ip("director", f"link set {INTERFACE} down")
    result = checked(lab, "web1", 4, Vip())
    assert isinstance(result, Failed), result
    assert result.kind is FailureKind.LOCAL
    assert "could not be asked: no route to 10.77.0.21" in result.words


def test_a_router_between_is_told(lab: Lab) -> None:
    """Direct Routing cannot work there either."""
    lab.ip("director", f"route add 192.0.2.0/24 via {lab['web1'].ipv4}")
    target = Target(ip_address("192.0.2.9"), PORT, vip=VIPS[4], vip_port=PORT)

    async def work() -> Result:
        return await run(Probe(target, Vip(), Timing(timeout=1)), prober=VipProber())

    result = on(lab, "director", work())
    assert isinstance(result, Failed)
    assert result.words.endswith("192.0.2.9 is not on a link of this director")


def test_another_mac_is_found_out(lab: Lab) -> None:
    """A server was exchanged: one check fails, the next one knows."""
    give_vip(lab, "web1", 4)
    give_vip(lab, "director", 4)
    target = Target(lab["web1"].ipv4, PORT, vip=VIPS[4], vip_port=PORT)
    probe = Probe(target, Vip(), Timing(timeout=1))
    listener = Listener(lab, "web1")

    async def work() -> None:
        prober = VipProber()
        assert isinstance(await run(probe, prober=prober), Passed)
        lab.ip("web1", f"link set {INTERFACE} address 02:77:00:00:00:99")
        # the kernel learns it by traffic of its own
        connect = Probe(Target(lab["web1"].ipv4, PORT), Connect(), Timing(timeout=10))
        lab.ip("director", f"neigh flush dev {INTERFACE}")
        assert isinstance(await run(connect), Passed)
        results = [await run(probe, prober=prober) for _ in range(2)]
        assert isinstance(results[0], Failed)
        assert isinstance(results[1], Passed)
        prober.close()

    try:
        on(lab, "director", work())
    finally:
        listener.close()


def test_a_server_that_is_off_times_out(lab: Lab) -> None:
    """Its MAC cannot be resolved: that is the server's fault, not the director's."""
    lab.ip("web1", f"link set {INTERFACE} down")
    result = checked(lab, "web1", 4, Vip())
    assert isinstance(result, Failed), result
    assert result.kind is FailureKind.TIMEOUT
