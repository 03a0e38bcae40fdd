"""What the programs, IPVS's table and its entries say of a client, put into words."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from lbdr.cli.flows import ending
from lbdr.control.protocol import FlowsResult, RememberedFlow
from lbdr.datapath.bpf_wire import Verdict
from lbdr.datapath.ipvs_connections import Connection
from lbdr.datapath.xdp_explain import By, Explained, LearnedFlow, Leaving
from lbdr.datapath.xdp_layout import FALLBACK, OLD_SHIFT, TRACKED, Reason, RecordState
from lbdr.explain import Asked, Choice
from lbdr.explain_live import NO_IPVS, Heard, explain, seconds
from lbdr.model import PortRange, Ports, Protocol, RealServer, VirtualService
from lbdr.tracking import Record

ONE, TWO = ip_address("10.0.0.11"), ip_address("10.0.0.12")
CLIENT, VIP = ip_address("192.168.1.1"), ip_address("10.0.0.50")
SERVERS = {3: ONE, 4: TWO}
WEB = VirtualService(
    "WEB",
    VIP,
    ports=Ports((PortRange(80, 80),)),
    scheduler="mh",
    real_servers=(RealServer(ONE, 80, name="rs1"), RealServer(TWO, 80, name="rs2")),
)
ETH0 = Leaving("eth0", "02:00:00:00:00:11", ((0x8100, 0xE007),))
TABLE = Choice(server="rs1", address=str(ONE), slot=7, by="slot", why="slot 7 of 4093 is its own")
NOW = 1000
SAID = Explained(1, None, By.CURRENT, 3, 7, 3 | 3 << OLD_SHIFT, 0, None, None, ETH0, Verdict.TX)
CHANGED = 3 | TRACKED | 4 << OLD_SHIFT
OLD = replace(SAID, by=By.OLD, server=4, word=CHANGED)
ENTRY = Connection(Protocol.TCP, CLIENT, 40000, VIP, 80, TWO, 80, "ESTABLISHED", 890)


_BEFORE = "no data confirmed it yet, seen 11 s ago)"


def left(reason: Reason) -> Explained:
    """What the programs leave to IPVS."""
    nobody = {"server": None, "by": By.NOTHING, "leaving": None, "verdict": Verdict.PASS}
    return replace(SAID, reason=reason, **nobody)  # type: ignore[arg-type]


def heard(
    new: Explained | None = SAID,
    established: Explained | None = SAID,
    virtual: VirtualService = WEB,
    **fields: object,
) -> Heard:
    question = Asked(virtual, CLIENT, 40000, 80)
    told: dict[str, object] = {"servers": SERVERS, "now": NOW, "table": TABLE, **fields}
    return Heard(question, new, established, **told)  # type: ignore[arg-type]


def test_steady() -> None:
    found = explain(heard())
    assert (found.server, found.address, found.slot) == ("rs1", str(ONE), 7)
    assert found.new == found.established
    assert found.new.by == "slot"
    assert found.leaves is not None
    assert (found.leaves.device, found.leaves.mac) == ("eth0", "02:00:00:00:00:11")
    assert found.leaves.vlans == [7]
    assert found.differences == []


def test_a_slot_that_changed_hands() -> None:
    found = explain(heard(replace(SAID, word=CHANGED), OLD))
    assert (found.server, found.why) == (
        "rs1",
        "slot 7 is its own since a change; before it was rs2's",
    )
    assert found.established is not None
    assert (found.established.server, found.established.by) == ("rs2", "old")
    assert (
        found.established.why == "slot 7 changed hands, and what has no record stays where it was"
    )
    (words,) = found.differences
    assert words.startswith("an open connection is rs2's, a new one rs1's: ")


def test_the_fallback() -> None:
    found = explain(heard(replace(SAID, word=FALLBACK | FALLBACK << OLD_SHIFT, tries=3)))
    assert found.new.by == "fallback"
    assert found.why == "slot 7 is a drained server's; the fallback finds this one, try 3"


@pytest.mark.parametrize(
    ("state", "server", "words"),
    [
        (RecordState.UNCONFIRMED, 3, "no data confirmed it yet, seen 11 s ago) names it"),
        (RecordState.UNCONFIRMED, 4, f"{_BEFORE} names it as the server of the connection before"),
        (RecordState.CONFIRMED, 3, "confirmed, seen 11 s ago) names it"),
        (RecordState.CLOSING, 3, "closing, seen 11 s ago) names it"),
    ],
)
def test_a_record(state: RecordState, server: int, words: str) -> None:
    record = Record(3, 4, 5, NOW - 10, state)
    said = replace(SAID, by=By.RECORD, server=server, word=CHANGED, record=record)
    found = explain(heard(established=said)).established
    assert found is not None
    assert (found.by, found.why) == ("record", f"a record ({words}; slot 7 changed hands")


def test_a_record_that_cannot_be_written() -> None:
    found = explain(heard(replace(OLD, reason=Reason.RECORD)))
    assert (found.server, found.new.by) == ("rs2", "old")
    assert found.why == "slot 7 changed hands, and no more records can be written just now"


def test_a_server_that_just_went() -> None:
    found = explain(heard(servers={}))
    assert (found.server, found.address) == ("server 3, just gone", None)


LEAST = replace(WEB, scheduler="wlc")


def test_a_learned_flow() -> None:
    said = replace(SAID, by=By.LEARNED, slot=None, server=4, learned=LearnedFlow(4, 0, NOW - 2))
    found = explain(heard(left(Reason.NOT_LEARNED), said, LEAST, table=None, entry=ENTRY))
    assert (found.server, found.new.by) == (None, "ipvs")
    assert found.why == "no flow is learned for it; IPVS decides at the first packet, by wlc"
    assert found.established is not None
    assert (found.established.server, found.established.by) == ("rs2", "learned")
    assert "saw it 2 s ago" in found.established.why
    assert found.ipvs is not None
    assert (found.ipvs.server, found.ipvs.why) == ("rs2", "ESTABLISHED, expires in 890 s")
    assert found.differences == []


def test_what_ipvs_has_itself() -> None:
    found = explain(
        heard(left(Reason.NOT_LEARNED), left(Reason.REFRESH), LEAST, table=None, entry=ENTRY)
    ).established
    assert found is not None
    assert (found.server, found.by) == ("rs2", "ipvs")
    assert found.why == (
        "IPVS is to see that the flow lives; IPVS has an entry for it (ESTABLISHED)"
    )


def test_a_connection_that_nobody_knows() -> None:
    nothing = left(Reason.NOT_LEARNED)
    found = explain(heard(nothing, nothing, LEAST, table=None)).established
    assert found is not None
    assert (found.server, found.by) == (None, "nobody")


def test_persistence() -> None:
    template = replace(ENTRY, client_port=0)
    nothing = left(Reason.NOT_LEARNED)
    found = explain(heard(nothing, nothing, LEAST, table=None, template=template))
    assert (found.server, found.new.by) == ("rs2", "ipvs")
    assert "persistence keeps the client there" in found.why
    assert found.ipvs is not None
    assert found.ipvs.why.startswith("persistence of the client")


@pytest.mark.parametrize(
    "reason", [Reason.INACTIVE, Reason.NEIGHBOUR, Reason.LOCAL, Reason.FALLBACK, Reason.MTU]
)
def test_what_mh_leaves_to_ipvs_has_the_same_server(reason: Reason) -> None:
    found = explain(heard(left(reason), left(reason)))
    for choice in (found.new, found.established):
        assert choice is not None
        assert (choice.server, choice.by, choice.slot) == ("rs1", "ipvs", 7)
        assert choice.why.endswith("IPVS goes by the same table: slot 7 of 4093 is its own")
    assert found.leaves is None


@pytest.mark.parametrize("reason", [Reason.FTP_DATA, Reason.MARTIAN])
def test_what_nobody_takes(reason: Reason) -> None:
    found = explain(heard(left(reason), left(reason)))
    assert (found.server, found.new.by) == (None, "nobody")
    assert found.differences == []


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_has_words(reason: Reason) -> None:
    found = explain(heard(left(reason)))
    assert found.why
    assert "_" not in found.why


def test_without_ipvs_it_is_dropped() -> None:
    said = replace(left(Reason.NEIGHBOUR), verdict=Verdict.DROP)
    found = explain(heard(said, said, table=None, absent="IPVS cannot be asked: no"))
    assert found.new.by == "nobody"
    assert found.why.startswith("dropped, since there is no IPVS here: the MAC")


def test_without_ipvs_and_the_fast_path() -> None:
    found = explain(heard(None, None, off="nothing is pinned", absent=NO_IPVS))
    assert (found.engine, found.server) == ("alone", None)
    assert found.why == f"nobody forwards (nothing is pinned); {NO_IPVS}"
    assert found.table == TABLE


def test_without_ipvs_a_table_that_changes_just_now() -> None:
    found = explain(heard(replace(SAID, server=4), absent=NO_IPVS))
    assert [words for words in found.differences if words.startswith("lbdr's table names rs1")]


def test_without_the_fast_path() -> None:
    found = explain(heard(None, None, off="`fastpath: off` in the file"))
    assert (found.server, found.new.by) == ("rs1", "ipvs")
    assert found.why.startswith("IPVS forwards (`fastpath: off` in the file); IPVS goes by")
    found = explain(
        heard(None, None, table=None, off="no", absent="IPVS does not have the service")
    )
    assert (found.server, found.why) == (None, "IPVS forwards (no); IPVS does not have the service")


def test_a_table_that_changes_just_now() -> None:
    other = TABLE.model_copy(update={"server": "rs2", "address": str(TWO)})
    (words,) = explain(heard(table=other)).differences
    assert words.startswith("IPVS's table names rs2 for a new connection, the fast path rs1: ")


def test_an_entry_from_before() -> None:
    (words,) = explain(heard(entry=ENTRY)).differences
    assert words.startswith("IPVS has an entry with rs2, and does not see")


@pytest.mark.parametrize(("ticks", "told"), [(0, 0), (1, 1), (100, 107), (-1, 0), (-(1 << 31), 0)])
def test_seconds(ticks: int, told: int) -> None:
    assert seconds(ticks) == told


# --- remembered flows ----------------------------------------------------------------------------

FLOW = RememberedFlow(
    service="WEB",
    client="10.1.2.3:40000",
    port=80,
    kind="record",
    state="confirmed",
    server="rs1",
    address=str(ONE),
    age=3,
)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (FlowsResult(reason="off"), ["no fast path, which remembers nothing then: off"]),
        (
            FlowsResult(),
            ["no connection is remembered: the tables alone say where each one goes"],
        ),
        (FlowsResult(flows=[FLOW], total=1), []),
        (FlowsResult(flows=[FLOW], total=9), ["and 8 more, older ones: --limit 9 shows them"]),
        (FlowsResult(flows=[FLOW], total=10_001), ["and 10000 more, older ones"]),
    ],
)
def test_how_the_list_ends(found: FlowsResult, words: list[str]) -> None:
    assert list(ending(found)) == words
