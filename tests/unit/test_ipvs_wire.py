"""IPVS's netlink messages, against literal bytes and against pyroute2's classes as a witness."""

from __future__ import annotations

import socket
import struct
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyroute2.netlink.generic.ipvs import ipvsmsg

from lbdr.datapath import ipvs_wire as wire
from lbdr.model import (
    Counters,
    ForwardingMethod,
    Key,
    MarkKey,
    ObservedRealServer,
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
from tests.unit.strategies import KEYS, services

FAMILY = 29
SEQUENCE = 7
WEB = ServiceKey(Protocol.TCP, ip_address("192.0.2.1"), 80)
WEB6 = ServiceKey(Protocol.TCP, ip_address("2001:db8::50"), 443)
RS = RealServer(ip_address("192.0.2.31"), 80, weight=3, upper_threshold=200, lower_threshold=150)
COUNTERS = Counters(*range(1, 11))


def sent(operation: IpvsOperation) -> str:
    return wire.encode(operation, FAMILY, SEQUENCE).hex()


def literal(*words: str) -> str:
    return "".join(words).replace(" ", "")


# --- literal bytes (a little-endian machine's; addresses and ports in network order) --------------


def test_bytes_of_a_service() -> None:
    service = Service(WEB, "mh", frozenset({"mh-port"}), Persistence(300, 24))
    assert sent(AddService(service)) == literal(
        "68000000 1d00 0500 07000000 00000000",  # length 104, NLM_F_REQUEST | NLM_F_ACK
        "01 01 0000",  # IPVS_CMD_NEW_SERVICE, version 1
        "5400 0180",  # IPVS_CMD_ATTR_SERVICE, nested
        "0600 0100 0200 0000",  # AF_INET
        "0600 0200 0600 0000",  # IPPROTO_TCP
        "1400 0300 c0000201 00000000 00000000 00000000",  # union nf_inet_addr
        "0600 0400 0050 0000",
        "0700 0600 6d6800 00",  # "mh" with its end
        "0c00 0700 11000000 ffffffff",  # PERSISTENT | SCHED2, mask
        "0800 0800 2c010000",
        "0800 0900 ffffff00",  # 255.255.255.0
    )


def test_bytes_of_an_ipv6_service_by_mark() -> None:
    assert sent(SetService(Service(MarkKey(258, 6), "rr", one_packet=True))) == literal(
        "4c000000 1d00 0500 07000000 00000000 02 01 0000 3800 0180",
        "0600 0100 0a00 0000",
        "0800 0500 02010000",
        "0700 0600 727200 00",
        "0c00 0700 04000000 ffffffff",  # ONEPACKET
        "0800 0800 00000000",
        "0800 0900 80000000",  # 128: a prefix length, needed also without persistence
    )


KEY6 = literal(
    "3000 0180 0600 0100 0a00 0000 0600 0200 0600 0000",
    "1400 0300 20010db8 00000000 00000000 00000050 0600 0400 01bb 0000",
)
SERVER6 = literal(
    "1400 0100 20010db8 00000000 00000000 00000031 0600 0200 01bb 0000 0600 0b00 0a00 0000"
)


def test_bytes_of_a_real_server() -> None:
    server = RealServer(ip_address("2001:db8::31"), 443, weight=65535, upper_threshold=9)
    values = "0800 0300 03000000 0800 0400 ffff0000 0800 0500 09000000 0800 0600 00000000"
    rest = literal("0000", KEY6, "4800 0280", SERVER6, values)
    head = "8c000000 1d00 0500 07000000 00000000"
    assert sent(AddRealServer(WEB6, server)) == literal(head, "05 01", rest)
    assert sent(SetRealServer(WEB6, server)) == literal(head, "06 01", rest)
    assert sent(DeleteRealServer(WEB6, server)) == literal(
        "6c000000 1d00 0500 07000000 00000000 07 01 0000", KEY6, "2800 0280", SERVER6
    )


def test_bytes_of_the_rest() -> None:
    head = "1d00 0500 07000000 00000000"
    assert sent(DeleteService(replace(WEB, protocol=Protocol.SCTP))) == literal(
        "44000000",
        head,
        "03 01 0000 3000 0180 0600 0100 0200 0000 0600 0200 8400 0000",
        "1400 0300 c0000201 00000000 00000000 00000000 0600 0400 0050 0000",
    )
    assert sent(SetTimeouts(Timeouts(7200, 0, 60))) == literal(
        "2c000000", head, "0c 01 0000 0800 0400 201c0000 0800 0500 00000000 0800 0600 3c000000"
    )
    dump = "14000000 1d00 0103 07000000 00000000 04 01 0000"  # NLM_F_REQUEST | NLM_F_DUMP
    assert wire.dump_services(FAMILY, SEQUENCE).hex() == literal(dump)
    assert wire.get_timeouts(FAMILY, SEQUENCE).hex() == literal("14000000", head, "0d 01 0000")
    assert wire.get_service(FAMILY, SEQUENCE, WEB6).hex() == literal(
        "44000000", head, "04 01 0000", KEY6
    )
    assert wire.dump_real_servers(FAMILY, SEQUENCE, WEB6).hex() == literal(
        "44000000 1d00 0103 07000000 00000000 08 01 0000", KEY6
    )


# --- pyroute2 as a witness ------------------------------------------------------------------------


def witness(data: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """What pyroute2 reads in a message: the service's attributes and the real server's."""
    message = ipvsmsg(data)
    message.decode()
    found: list[dict[str, Any]] = []
    for name in ("SERVICE", "DEST"):
        part = message.get_attr(f"IPVS_CMD_ATTR_{name}")
        found.append({str(n).split("ATTR_")[1]: v for n, v, *_ in part["attrs"]} if part else {})
    return found[0], found[1]


def service_words(service: Service) -> dict[str, Any]:
    """The attributes that ipvsadm would send, in pyroute2's terms."""
    bits = {"mh-port": 0x10, "mh-fallback": 8, "sh-port": 0x10, "sh-fallback": 8}
    persistence = service.persistence
    flags = sum(bits[flag] for flag in service.flags)
    flags |= (1 if persistence else 0) | (4 if service.one_packet else 0)
    version = key_version(service.key)
    length = persistence.granularity if persistence else 32 if version == 4 else 128
    # pyroute2 shows the field as an IPv4 address; a prefix length is a number in it
    masks = {24: "255.255.255.0", 32: "255.255.255.255"}
    return key_words(service.key) | {
        "SCHED_NAME": service.scheduler,
        "FLAGS": {"flags": flags, "mask": 0xFFFFFFFF},
        "TIMEOUT": persistence.timeout if persistence else 0,
        "NETMASK": masks[length] if version == 4 else f"{length}.0.0.0",
    }


def key_version(key: Key) -> int:
    return key.version if isinstance(key, MarkKey) else key.address.version


def key_words(key: Key) -> dict[str, Any]:
    words: dict[str, Any] = {"AF": socket.AF_INET if key_version(key) == 4 else socket.AF_INET6}
    if isinstance(key, MarkKey):
        return words | {"FWMARK": key.mark}
    number = {Protocol.TCP: 6, Protocol.UDP: 17, Protocol.SCTP: 132}[key.protocol]
    return words | {"PROTOCOL": number, "ADDR": str(key.address), "PORT": key.port}


def server_words(server: RealServer) -> dict[str, Any]:
    return {
        "ADDR": str(server.address),
        "PORT": server.port,
        "ADDR_FAMILY": socket.AF_INET if server.address.version == 4 else socket.AF_INET6,
    }


any_service = st.sampled_from(KEYS).flatmap(services)


@settings(max_examples=60, deadline=None)
@given(any_service)
def test_pyroute2_reads_what_is_sent(service: Service) -> None:
    for operation in (AddService(service), SetService(service)):
        data = wire.encode(operation, FAMILY, SEQUENCE)
        assert witness(data) == (service_words(service), {})
    data = wire.encode(DeleteService(service.key), FAMILY, SEQUENCE)
    assert witness(data) == (key_words(service.key), {})
    for server in service.real_servers:
        words = server_words(server)
        data = wire.encode(DeleteRealServer(service.key, server), FAMILY, SEQUENCE)
        assert witness(data) == (key_words(service.key), words)
        words |= {
            "FWD_METHOD": 3,
            "WEIGHT": server.weight,
            "U_THRESH": server.upper_threshold,
            "L_THRESH": server.lower_threshold,
        }
        data = wire.encode(AddRealServer(service.key, server), FAMILY, SEQUENCE)
        assert witness(data) == (key_words(service.key), words)


def answer(**parts: dict[str, Any]) -> memoryview:
    """A kernel's answer as pyroute2 would send it, after the netlink header."""
    message = ipvsmsg()
    message["cmd"], message["version"] = 1, 1
    for part, words in parts.items():
        prefix = {"SERVICE": "IPVS_SVC_ATTR_", "DEST": "IPVS_DEST_ATTR_"}[part]
        attributes = [(prefix + name, value) for name, value in words.items()]
        message["attrs"].append((f"IPVS_CMD_ATTR_{part}", {"attrs": attributes}))
    message.encode()
    return memoryview(bytes(message.data))[16:]


def statistics(counters: Counters) -> dict[str, Any]:
    names = ["CONNS", "INPKTS", "OUTPKTS", "INBYTES", "OUTBYTES"]
    names += ["CPS", "INPPS", "OUTPPS", "INBPS", "OUTBPS"]
    values = (
        counters.connections,
        counters.packets_in,
        counters.packets_out,
        counters.bytes_in,
        counters.bytes_out,
        counters.connection_rate,
        counters.packet_rate_in,
        counters.packet_rate_out,
        counters.byte_rate_in,
        counters.byte_rate_out,
    )
    pairs = zip(names, values, strict=True)
    return {"attrs": [(f"IPVS_STATS_ATTR_{name}", value) for name, value in pairs]}


@settings(max_examples=60, deadline=None)
@given(any_service, st.builds(Counters, *[st.integers(0, 2**64 - 1)] * 10))
def test_what_pyroute2_sends_is_read(service: Service, counters: Counters) -> None:
    words = service_words(service)
    # the kernel adds a flag of its own: the service is in its hash table
    words["FLAGS"] = {"flags": words["FLAGS"]["flags"] | 2, "mask": 0xFFFFFFFF}
    found = wire.parse_service(answer(SERVICE=words | {"STATS64": statistics(counters)}))
    assert found == ObservedService(replace(service, real_servers=()), counters=counters)
    for server in service.real_servers:
        words = server_words(server) | {
            "FWD_METHOD": 3 | 0x0100,  # IP_VS_CONN_F_INACTIVE is no method
            "WEIGHT": server.weight,
            "U_THRESH": server.upper_threshold,
            "L_THRESH": server.lower_threshold,
            "ACTIVE_CONNS": 4,
            "INACT_CONNS": 5,
            "PERSIST_CONNS": 6,
            "STATS64": statistics(counters),
        }
        observed = wire.parse_real_server(answer(DEST=words), key_version(service.key))
        assert observed == ObservedRealServer(server, 4, 5, 6, counters)


# --- answers as the kernel lays them out ----------------------------------------------------------


def attribute(kind: int, payload: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(payload), kind) + payload + bytes(-len(payload) % 4)


def kernel_counters(*, padded: bool) -> bytes:
    """IPVS_SVC_ATTR_STATS64; a machine that wants 64-bit values aligned puts paddings between."""
    pad = attribute(11, b"") if padded else b""  # IPVS_STATS_ATTR_PAD
    return attribute(12, b"".join(pad + attribute(n, struct.pack("=Q", n)) for n in range(1, 11)))


def kernel_service(name: bytes = b"wlc\0", *, padded: bool = False) -> bytes:
    """A service as ip_vs_genl_fill_service writes it."""
    content = (
        attribute(1, struct.pack("=H", socket.AF_INET))
        + attribute(2, struct.pack("=H", 6))
        + attribute(3, bytes([192, 0, 2, 1]) + bytes(12))
        + attribute(4, struct.pack("!H", 80))
        + attribute(6, name)
        + attribute(7, struct.pack("=II", 0x1 | 0x2, 0xFFFFFFFF))
        + attribute(8, struct.pack("=I", 300))
        + attribute(9, bytes([255, 255, 0, 0]))
        + attribute(10, b"".join(attribute(n, struct.pack("=I", 99)) for n in range(1, 11)))
        + kernel_counters(padded=padded)
    )
    return bytes([1, 1, 0, 0]) + attribute(0x8001, content)


def kernel_real_server(*, names_family: bool = True) -> bytes:
    """A real server as ip_vs_genl_fill_dest writes it; kernels before 3.18 name no family."""
    numbers = {3: 0x0103, 4: 3, 5: 200, 6: 150, 7: 11, 8: 12, 9: 13}
    content = (
        attribute(1, bytes([192, 0, 2, 31]) + bytes(12))
        + attribute(2, struct.pack("!H", 80))
        + b"".join(attribute(kind, struct.pack("=I", n)) for kind, n in numbers.items())
        + attribute(13, b"\0")  # tunnel type, port and flags
        + attribute(14, b"\0\0")
        + attribute(15, b"\0\0")
        + (attribute(11, struct.pack("=H", socket.AF_INET)) if names_family else b"")
        + kernel_counters(padded=False)
    )
    return bytes([5, 1, 0, 0]) + attribute(0x8002, content)


@pytest.mark.parametrize("padded", [False, True])
def test_a_service_from_the_kernel(padded: bool) -> None:
    service = Service(WEB, "wlc", persistence=Persistence(300, 16))
    found = wire.parse_service(memoryview(kernel_service(padded=padded)))
    assert found == ObservedService(service, counters=COUNTERS)


@pytest.mark.parametrize("names_family", [True, False])
def test_a_real_server_from_the_kernel(names_family: bool) -> None:
    data = kernel_real_server(names_family=names_family)
    # the service's version is only for those that name none
    found = wire.parse_real_server(memoryview(data), 6 if names_family else 4)
    assert found == ObservedRealServer(RS, 11, 12, 13, COUNTERS)


def test_counters_are_told_by_their_numbers_and_not_by_their_places() -> None:
    in_order = kernel_counters(padded=False)
    shuffled = in_order[:4] + in_order[16:] + in_order[4:16]
    for data in (kernel_service(), kernel_real_server()):
        assert data.endswith(in_order)
    found = wire.parse_service(memoryview(kernel_service().replace(in_order, shuffled)))
    assert found.counters == COUNTERS


def test_timeouts_from_the_kernel() -> None:
    content = b"".join(attribute(kind, struct.pack("=I", kind * 60)) for kind in (4, 5, 6))
    assert wire.parse_timeouts(memoryview(bytes(4) + content)) == Timeouts(240, 300, 360)


@pytest.mark.parametrize("method", list(ForwardingMethod))
def test_every_forwarding_method_survives(method: ForwardingMethod) -> None:
    server = replace(RS, method=method)
    words = witness(wire.encode(AddRealServer(WEB, server), FAMILY, SEQUENCE))[1]
    words |= {"ACTIVE_CONNS": 0, "INACT_CONNS": 0, "PERSIST_CONNS": 0}
    words |= {"STATS64": statistics(Counters())}
    assert wire.parse_real_server(answer(DEST=words), 4).real_server == server


@pytest.mark.parametrize(
    ("scheduler", "flags"),
    [(b"sh\0", {"sh-fallback"}), (b"mh\0", {"mh-fallback"}), (b"wlc\0", set())],
)
def test_a_flag_bit_is_named_by_the_scheduler(scheduler: bytes, flags: set[str]) -> None:
    data = kernel_service(scheduler).replace(
        struct.pack("=I", 3) + b"\xff" * 4, struct.pack("=I", 0xA) + b"\xff" * 4
    )
    assert wire.parse_service(memoryview(data)).service.flags == flags


# --- bytes that no kernel sends -------------------------------------------------------------------

PARSERS = [
    (wire.parse_service, kernel_service()),
    (lambda data: wire.parse_real_server(data, 4), kernel_real_server()),
    (wire.parse_timeouts, bytes(4) + b"".join(attribute(kind, bytes(4)) for kind in (4, 5, 6))),
]
NAMES = ["service", "real server", "timeouts"]


@pytest.mark.parametrize(("parse", "good"), PARSERS, ids=NAMES)
def test_truncated_anywhere(parse: Any, good: bytes) -> None:
    for end in range(len(good)):
        with pytest.raises((ValueError, KeyError)):
            parse(memoryview(good[:end]))


@pytest.mark.parametrize(("parse", "good"), PARSERS, ids=NAMES)
def test_any_byte_changed_is_read_or_refused(parse: Any, good: bytes) -> None:
    unexpected = set()
    for place in range(len(good)):
        for value in (0, 1, 4, 5, 0x7F, 0xFF):
            data = bytearray(good)
            data[place] = value
            try:
                parse(memoryview(data))
            except (ValueError, KeyError):
                pass
            except Exception as error:  # noqa: BLE001  # it is what the test is about
                unexpected.add(f"byte {place} = {value}: {error!r}")
    assert not sorted(unexpected)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_noise_is_refused(data: bytes) -> None:
    for parse, _ in PARSERS:
        try:
            parse(memoryview(data))
        except (ValueError, KeyError):
            pass
        else:
            raise AssertionError(f"{data!r} was taken for something")
