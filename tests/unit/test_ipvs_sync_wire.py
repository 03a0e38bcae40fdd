"""IPVS's sync messages, against literal bytes (net/netfilter/ipvs/ip_vs_sync.c, version 1)."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from lbdr.datapath.ipvs_sync_wire import Flow, FlowState, encode
from lbdr.model import Protocol

FLOW = Flow(
    Protocol.TCP,
    ip_address("192.0.2.7"),
    50000,
    ip_address("198.51.100.1"),
    443,
    ip_address("198.51.100.21"),
    timeout=900,
    fwmark=7,
)
FLOW_BYTES = bytes.fromhex(
    "00 06 0024  00000003  0001 c350 01bb 01bb  00000007 00000384  c0000207 c6336401 c6336415"
)
FLOW6 = Flow(
    Protocol.UDP,
    ip_address("2001:db8::7"),
    1024,
    ip_address("2001:db8:1::1"),
    53,
    ip_address("2001:db8:1::21"),
)
FLOW6_BYTES = bytes.fromhex(
    "01 11 0048  00000103  0000 0400 0035 0035  00000000 00000000"
    "20010db8000000000000000000000007"
    "20010db8000100000000000000000001"
    "20010db8000100000000000000000021"
)
PAYLOAD = 1500 - 20 - 8


def test_ipv4() -> None:
    assert encode([FLOW]) == [bytes.fromhex("00 db 002c 01 01 0000") + FLOW_BYTES]


def test_ipv6() -> None:
    assert encode([FLOW6]) == [bytes.fromhex("00 db 0050 01 01 0000") + FLOW6_BYTES]


def test_both_in_one_message() -> None:
    message = bytes.fromhex("00 db 0074 02 01 0000") + FLOW_BYTES + FLOW6_BYTES
    assert encode([FLOW, FLOW6]) == [message]


def test_nothing() -> None:
    assert encode([]) == []


@pytest.mark.parametrize(
    ("protocol", "state", "number", "inactive"),
    [
        (Protocol.TCP, FlowState.OPENING, 3, False),
        (Protocol.TCP, FlowState.ESTABLISHED, 1, False),
        (Protocol.TCP, FlowState.CLOSING, 4, True),
        (Protocol.UDP, FlowState.ESTABLISHED, 0, True),
        (Protocol.SCTP, FlowState.ESTABLISHED, 8, False),
        (Protocol.SCTP, FlowState.CLOSING, 9, True),
    ],
)
def test_states(protocol: Protocol, state: FlowState, number: int, inactive: bool) -> None:
    """The replacing message is the same, but for the flag by which the kernel would ignore it."""
    flow = replace(FLOW, protocol=protocol, state=state)
    (message,) = encode([flow])
    assert (message[9], int.from_bytes(message[16:18], "big")) == (protocol.number, number)
    assert int.from_bytes(message[12:16], "big") == (0x103 if inactive else 0x3)
    (replacing,) = encode([flow], replacing=True)
    assert replacing == message[:12] + bytes.fromhex("00000003") + message[16:]


@pytest.mark.parametrize(("flow", "fitting"), [(FLOW, 40), (FLOW6, 20)])
def test_messages_fit_a_frame(flow: Flow, fitting: int) -> None:
    full, rest = encode([flow] * (fitting + 1))
    assert len(full) <= PAYLOAD < len(full) + len(rest)
    assert (full[4], rest[4]) == (fitting, 1)
    for message in (full, rest):
        assert int.from_bytes(message[2:4], "big") == len(message)
    assert len(encode([flow] * fitting)) == 1


@pytest.mark.parametrize(
    "wrong",
    [{"client": FLOW6.client}, {"server": FLOW6.server}, {"client_port": 0}],
)
def test_what_ipvs_would_take_for_something_else_is_no_flow(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="no flow of direct routing"):
        replace(FLOW, **wrong)  # type: ignore[arg-type]
