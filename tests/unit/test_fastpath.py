"""Which services the fast path serves, and as what."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from lbdr.datapath.ipvs_text import Scheduled
from lbdr.datapath.xdp_layout import Place, ServiceFlag
from lbdr.fastpath import OFF, Mh, chosen, unfit
from lbdr.fastpath_wanted import only_marked, unforwarded, wanted_service
from lbdr.model import (
    FastPathUse,
    Key,
    MarkKey,
    Persistence,
    PortRange,
    Ports,
    Protocol,
    Service,
    ServiceKey,
    Timeouts,
    Traffic,
    VirtualService,
)

VIP = ip_address("10.0.0.50")
SEVERAL = Ports((PortRange(104, 104), PortRange(4001, 4005)))
MARKED = Traffic(Protocol.TCP, VIP, SEVERAL)
WEB = ServiceKey(Protocol.TCP, VIP, 80)
STORE = MarkKey(7, 4)
MH = Mh({4, 6})
PLACE = Place(3, "02:00:00:00:00:01")
TIMEOUTS = Timeouts(900, 120, 300)


def service(key: Key, scheduler: str = "mh", persistence: Persistence | None = None) -> Service:
    marked = MARKED if isinstance(key, MarkKey) else None
    name = "STORE" if marked else "WEB"
    return Service(key, scheduler, persistence=persistence, name=name, marked=marked)


def test_a_service_that_a_mark_tells_is_served_like_others() -> None:
    assert unfit(service(STORE), MH) == unfit(service(STORE, "wlc"), Mh()) == ""
    assert unfit(service(STORE), Mh({6}, "they differ")) == "they differ"


def test_what_lbdr_knows_no_packets_of_is_ipvs_s() -> None:
    assert unfit(Service(STORE, "mh"), MH)


@pytest.mark.parametrize(
    ("file", "left", "nothing", "reasons"),
    [
        (FastPathUse.AUTO, (), "", {}),
        (FastPathUse.OFF, (), "", {"STORE": OFF}),
        (FastPathUse.AUTO, {"STORE"}, "", {"STORE": "left to IPVS by `lbdr fastpath off`"}),
        (FastPathUse.AUTO, (), "no", {"STORE": "no", "WEB": "no"}),
    ],
)
def test_who_is_served(
    file: FastPathUse, left: set[str], nothing: str, reasons: dict[str, str]
) -> None:
    services: dict[Key, Service] = {key: service(key) for key in (WEB, STORE)}
    virtual = VirtualService("STORE", VIP, ports=SEVERAL, fastpath=file)
    fast, slow = chosen(services, [virtual], MH, left, nothing=nothing)
    assert slow == reasons
    assert {one.name for one in fast.values()} == {"WEB", "STORE"} - reasons.keys()


def test_what_is_wanted_of_it() -> None:
    scheduled = [Scheduled(ip_address("10.0.0.31"), 0, "Route", 2)]
    found = wanted_service(
        service(STORE, "wlc"), MARKED, scheduled, {}, PLACE, held=True, timeouts=TIMEOUTS
    )
    assert found.flags == ServiceFlag.ACTIVE | ServiceFlag.LEARNED | ServiceFlag.PORTS
    assert (found.vip, found.traffic, found.mark, found.marked_only) == (PLACE, MARKED, 7, False)
    assert [server.weight for server in found.real_servers] == [2]


def test_a_vip_that_is_about_to_be_claimed_is_marked_and_not_forwarded() -> None:
    found = wanted_service(service(STORE), MARKED, (), {}, PLACE, held=False, timeouts=TIMEOUTS)
    assert (found.flags, found.vip, found.mark) == (ServiceFlag.PORTS, PLACE, 7)


def test_a_service_of_one_port_has_no_mark() -> None:
    found = wanted_service(service(WEB), WEB.traffic, (), {}, PLACE, held=True, timeouts=TIMEOUTS)
    assert (found.flags, found.mark) == (ServiceFlag.ACTIVE, 0)
    assert found.traffic.ports.single == 80


def test_what_is_only_marked_has_no_server_and_no_table() -> None:
    found = only_marked(service(STORE), MARKED, PLACE)
    assert found.flags == ServiceFlag.LEARNED | ServiceFlag.PORTS
    assert (found.vip, found.traffic, found.mark, found.marked_only) == (PLACE, MARKED, 7, True)
    whole = wanted_service(
        service(STORE),
        MARKED,
        [Scheduled(ip_address("10.0.0.31"), 0, "Route", 2)],
        {},
        PLACE,
        held=True,
        timeouts=TIMEOUTS,
    )
    assert unforwarded(whole) == found
