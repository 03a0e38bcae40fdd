"""IPVS's connection table, as kernels print it (ip_vs_conn_seq_show)."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

import pytest

from lbdr.datapath import ipvs_connections
from lbdr.datapath.ipvs_connections import (
    Connection,
    ConnectionTable,
    identity,
    parse,
    persistence_of,
    servers,
)
from lbdr.errors import KernelError
from lbdr.model import MarkKey, Protocol, ServiceKey

HEADER = b"""\
Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires PEName PEData
"""
TCP = b"TCP 0A640000 03E8 0A4D000A 0050 0A4D0015 0050 ESTABLISHED     899\n"
UDP6 = (
    b"UDP fd77:0000:0000:0000:0000:0000:0000:0064 C350 "
    b"fd77:0000:0000:0000:0000:0000:0000:0010 0035 "
    b"fd77:0000:0000:0000:0000:0000:0000:0021 0035 UDP             299\n"
)
SCTP = b"SCTP 0A640000 03E8 0A4D000A 0B59 0A4D0015 0B59 ESTABLISHED     899\n"
TEMPLATE = b"TCP 0A640000 0000 0A4D000A 0051 0A4D0015 0051 NONE            359\n"
MARK = b"IP  0A640000 0000 00000007 0000 0A4D0015 0000 ASSURED         360\n"
ENGINE = b"UDP 0A640000 0000 0A4D000A 13C4 0A4D0015 13C4 NONE            300 sip a@b c\n"
OTHERS = (
    b"ICMP 0A640000 0000 0A4D000A 0050 0A4D0015 0050 NONE              9\n",
    b"IP_50 0A640000 01F4 0A4D000A 01F4 0A4D0015 01F4 NONE             9\n",
)

TCP_CONNECTION = Connection(
    protocol=Protocol.TCP,
    client=ip_address("10.100.0.0"),
    client_port=1000,
    virtual=ip_address("10.77.0.10"),
    virtual_port=80,
    server=ip_address("10.77.0.21"),
    server_port=80,
    state="ESTABLISHED",
    expires=899,
)
UDP6_CONNECTION = Connection(
    protocol=Protocol.UDP,
    client=ip_address("fd77::64"),
    client_port=50000,
    virtual=ip_address("fd77::10"),
    virtual_port=53,
    server=ip_address("fd77::21"),
    server_port=53,
    state="UDP",
    expires=299,
)


def test_connections() -> None:
    found = parse(HEADER + TCP + UDP6 + SCTP)
    assert found.connections[:2] == (TCP_CONNECTION, UDP6_CONNECTION)
    assert found.connections[2].protocol is Protocol.SCTP
    assert not any(connection.template for connection in found.connections)
    assert not found.templates
    assert not found.others


def test_templates_are_no_connections() -> None:
    found = parse(HEADER + TEMPLATE + MARK + ENGINE + TCP)
    assert found.connections == (TCP_CONNECTION,)
    assert [template.protocol for template in found.templates] == [
        Protocol.TCP,
        None,
        Protocol.UDP,
    ]
    assert all(template.template for template in found.templates)
    _, mark, engine = found.templates
    assert (mark.virtual.packed, mark.state, mark.expires) == (b"\0\0\0\7", "ASSURED", 360)
    assert engine.expires == 300


def test_lines_of_other_protocols_are_kept_apart() -> None:
    found = parse(HEADER + b"".join(OTHERS) + TCP)
    assert found.connections == (TCP_CONNECTION,)
    assert found.others == tuple(line.rstrip(b"\n") for line in OTHERS)


@pytest.mark.parametrize("text", [b"", HEADER, b"\n"])
def test_a_table_without_connections(text: bytes) -> None:
    assert parse(text) == ConnectionTable(())


@pytest.mark.parametrize(
    "line",
    [
        b"    ",
        b"what is this",
        b"TCP",
        b"UDP what",
        b"TCP 0A640000 03E8",
        b"TCP 0A640000 03E8 0A4D000A 0050 0A4D0015 0050 ESTABLISHED",
        b"TCP 0A640000 03E8 0A4D000A 0050 0A4D0015 0050 ESTABLISHED soon",
        b"TCP 0A64000G 03E8 0A4D000A 0050 0A4D0015 0050 ESTABLISHED 899",
        b"TCP fd77::1::2 03E8 0A4D000A 0050 0A4D0015 0050 ESTABLISHED 899",
        b"TCP 0A640000 03E8 0A4D000A 0050 0A4D0015 0050 \xff 899",
    ],
)
def test_a_line_that_is_not_understood_is_named(line: bytes) -> None:
    with pytest.raises(KernelError) as caught:
        parse(HEADER + TCP + line + b"\n")
    assert repr(line) in caught.value.message


@pytest.mark.parametrize(("line", "connection"), [(TCP, TCP_CONNECTION), (UDP6, UDP6_CONNECTION)])
def test_what_tells_connections_apart(line: bytes, connection: Connection) -> None:
    """The quick way and the thorough one agree."""
    assert connection.protocol is not None
    name = identity(
        connection.protocol,
        connection.client,
        connection.client_port,
        connection.virtual,
        connection.virtual_port,
    )
    server = ipvs_connections.server(connection.server, connection.server_port)
    # the header has fields enough, and is nobody's identity
    assert list(servers(line)) == [(name, server)]
    assert name not in dict(servers(HEADER))


def test_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ip_vs_conn"
    monkeypatch.setattr(ipvs_connections, "_PATH", str(path))
    with pytest.raises(KernelError, match=r"cat /proc/net/ip_vs_conn: .*\(ENOENT\)"):
        ipvs_connections.read()
    large = HEADER + TCP * 30_000
    path.write_bytes(large)
    assert ipvs_connections.read() == large
    assert parse(large).connections == (TCP_CONNECTION,) * 30_000


def test_what_the_templates_of_a_service_have() -> None:
    """One that a mark tells is found by the mark, where others have the VIP."""
    (mark,) = parse(MARK).templates
    assert persistence_of(MarkKey(7, 4)) == (mark.protocol, mark.virtual, mark.virtual_port)
    assert persistence_of(MarkKey(7, 6)) == (None, ip_address("0:7::"), 0)
    key = ServiceKey(Protocol.TCP, ip_address("10.0.0.50"), 0)
    assert persistence_of(key) == (Protocol.TCP, key.address, 0)
