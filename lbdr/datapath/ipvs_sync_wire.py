"""Messages of IPVS's sync protocol, by which directors tell each other of flows; pure.

Sources: net/netfilter/ipvs/ip_vs_sync.c (version 1 of the protocol; ip_vs_proc_conn for what a
message does), include/net/ip_vs.h (states), include/uapi/linux/ip_vs.h (flags).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from lbdr.model import Address, Protocol

SYNC_ID = 219
"""Ours, so that the daemon takes only what we send; 0 would take everything."""

MTU = 1500
"""Of the interface, in bytes: the daemon's buffer is that long."""

_PAYLOAD = MTU - 20 - 8
_VERSION = 1
_TYPE_IPV4, _TYPE_IPV6 = 0, 1
_FLAG_DR, _FLAG_INACTIVE = 0x0003, 0x0100
_MESSAGE = struct.Struct("!BBHBBH")
_FLOW = struct.Struct("!BBHIHHHHII")


class FlowState(StrEnum):
    """Where a flow is in its life; UDP has one state only."""

    OPENING = "opening"
    ESTABLISHED = "established"
    CLOSING = "closing"


_STATES = {  # IP_VS_TCP_S_*, IP_VS_UDP_S_*, IP_VS_SCTP_S_*
    Protocol.TCP: {FlowState.OPENING: 3, FlowState.ESTABLISHED: 1, FlowState.CLOSING: 4},
    Protocol.UDP: {FlowState.OPENING: 0, FlowState.ESTABLISHED: 0, FlowState.CLOSING: 0},
    Protocol.SCTP: {FlowState.OPENING: 2, FlowState.ESTABLISHED: 8, FlowState.CLOSING: 9},
}
_ACTIVE = {  # which count as active connections of a real server (tcp_state_active_table)
    Protocol.TCP: {FlowState.OPENING, FlowState.ESTABLISHED},
    Protocol.UDP: set[FlowState](),
    Protocol.SCTP: {FlowState.ESTABLISHED},
}


@dataclass(frozen=True, slots=True)
class Flow:
    """A client's connection and the real server that it stays with, by direct routing.

    Args:
        protocol: of the service.
        client: the client.
        client_port: 1 to 65535.
        virtual: the VIP.
        virtual_port: the port that the client talks to; the real server's is the same in DR.
        server: the RIP.
        state: where the flow is in its life.
        timeout: seconds until it goes, if no packet comes; 0 for IPVS's own.
        fwmark: the service's firewall mark; 0 where it has none.
    """

    protocol: Protocol
    client: Address
    client_port: int
    virtual: Address
    virtual_port: int
    server: Address
    state: FlowState = FlowState.ESTABLISHED
    timeout: int = 0
    fwmark: int = 0

    def __post_init__(self) -> None:
        versions = {self.client.version, self.virtual.version, self.server.version}
        if len(versions) > 1 or not self.client_port:  # the kernel would take it for another one
            raise ValueError(f"no flow of direct routing: {self}")


def encode(flows: Sequence[Flow], *, replacing: bool = False) -> list[bytes]:
    """Messages that give flows to a backup daemon, each fit for one frame.

    Args:
        flows: in any order; IPv4 and IPv6 may be mixed.
        replacing: also where IPVS has a flow at another server. It takes an inactive entry for the
            end of one that was replaced already, and ignores it: so all are sent as active ones,
            and UDP counts among a real server's active connections.
    """
    messages: list[bytes] = []
    parts: list[bytes] = []
    length = _MESSAGE.size
    for flow in flows:
        part = _encode(flow, active=replacing or flow.state in _ACTIVE[flow.protocol])
        if length + len(part) > _PAYLOAD:
            messages.append(_message(parts, length))
            parts, length = [], _MESSAGE.size
        parts.append(part)
        length += len(part)
    if parts:
        messages.append(_message(parts, length))
    return messages


def _message(parts: list[bytes], length: int) -> bytes:
    return _MESSAGE.pack(0, SYNC_ID, length, len(parts), _VERSION, 0) + b"".join(parts)


def _encode(flow: Flow, *, active: bool) -> bytes:
    addresses = flow.client.packed + flow.virtual.packed + flow.server.packed
    return (
        _FLOW.pack(
            _TYPE_IPV4 if flow.virtual.version == 4 else _TYPE_IPV6,
            flow.protocol.number,
            _FLOW.size + len(addresses),  # the upper four bits are a version, 0
            _FLAG_DR if active else _FLAG_DR | _FLAG_INACTIVE,
            _STATES[flow.protocol][flow.state],
            flow.client_port,
            flow.virtual_port,
            flow.virtual_port,
            flow.fwmark,
            flow.timeout,
        )
        + addresses
    )
