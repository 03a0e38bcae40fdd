"""IPVS's generic netlink messages: operations to bytes, bytes to what the kernel holds.

Messages are packed here and not by pyroute2's nla classes: those take many times as long, and a
director of 10,000 real servers sends and reads that many (docs/architecture.md). The names and
numbers are pyroute2's.

Source: include/uapi/linux/ip_vs.h and net/netfilter/ipvs/ip_vs_ctl.c, ip_vs_genl_*.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
import sys

from pyroute2.netlink import NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST
from pyroute2.netlink.generic import ipvs as uapi

from lbdr.model import (
    Address,
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
    family,
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

GENL_VERSION = 1
NLA_F_NESTED = 0x8000
_NLA_TYPE_MASK = 0x3FFF

# enum ipvs_cmd_attr, ipvs_svc_attr, ipvs_dest_attr (include/uapi/linux/ip_vs.h)
CMD_SERVICE, CMD_DEST, CMD_DAEMON, CMD_TIMEOUT_TCP, CMD_TIMEOUT_TCP_FIN, CMD_TIMEOUT_UDP = range(
    1, 7
)
(
    SVC_AF,
    SVC_PROTOCOL,
    SVC_ADDR,
    SVC_PORT,
    SVC_FWMARK,
    SVC_SCHED_NAME,
    SVC_FLAGS,
    SVC_TIMEOUT,
    SVC_NETMASK,
    SVC_STATS,
    SVC_PE_NAME,
    SVC_STATS64,
) = range(1, 13)
(
    DEST_ADDR,
    DEST_PORT,
    DEST_FWD_METHOD,
    DEST_WEIGHT,
    DEST_U_THRESH,
    DEST_L_THRESH,
    DEST_ACTIVE_CONNS,
    DEST_INACT_CONNS,
    DEST_PERSIST_CONNS,
    DEST_STATS,
    DEST_ADDR_FAMILY,
    DEST_STATS64,
) = range(1, 13)

# service flags (IP_VS_SVC_F_*)
F_PERSISTENT = 0x0001
F_ONEPACKET = 0x0004
F_SCHED1 = 0x0008
F_SCHED2 = 0x0010
_SCHEDULER_BITS = {
    "sh-fallback": F_SCHED1,
    "sh-port": F_SCHED2,
    "mh-fallback": F_SCHED1,
    "mh-port": F_SCHED2,
}

_METHODS = {  # IP_VS_CONN_F_FWD_MASK
    ForwardingMethod.MASQUERADE: 0,
    ForwardingMethod.LOCAL: 1,
    ForwardingMethod.TUNNEL: 2,
    ForwardingMethod.DR: 3,
    ForwardingMethod.BYPASS: 4,
}
_METHOD_NAMES = {number: method for method, number in _METHODS.items()}
_METHOD_MASK = 0x7

_COMMANDS: dict[type, int] = {
    AddService: uapi.IPVS_CMD_NEW_SERVICE,
    SetService: uapi.IPVS_CMD_SET_SERVICE,
    DeleteService: uapi.IPVS_CMD_DEL_SERVICE,
    AddRealServer: uapi.IPVS_CMD_NEW_DEST,
    SetRealServer: uapi.IPVS_CMD_SET_DEST,
    DeleteRealServer: uapi.IPVS_CMD_DEL_DEST,
    SetTimeouts: uapi.IPVS_CMD_SET_CONFIG,
}

_NLMSGHDR = struct.Struct("=IHHII")
_GENLMSGHDR = struct.Struct("=BBH")
_NLATTR = struct.Struct("=HH")
_U16 = struct.Struct("=H")
_U32 = struct.Struct("=I")
_BE16 = struct.Struct("!H")
_STATS64 = tuple(range(1, 11))
_STATS = struct.Struct("=" + "HHQ" * 10)


def message(family_id: int, sequence: int, command: int, payload: bytes, *, flags: int) -> bytes:
    """A generic netlink message of IPVS's family.

    Args:
        family_id: the number the kernel gave the family.
        sequence: by which its answers are told.
        command: IPVS_CMD_*.
        payload: encoded attributes.
        flags: beside NLM_F_REQUEST.
    """
    body = _GENLMSGHDR.pack(command, GENL_VERSION, 0) + payload
    header = _NLMSGHDR.pack(16 + len(body), family_id, NLM_F_REQUEST | flags, sequence, 0)
    return header + body


def encode(operation: IpvsOperation, family_id: int, sequence: int) -> bytes:
    """An operation as a netlink message that asks to be acknowledged."""
    match operation:
        case AddService(service) | SetService(service):
            payload = _nested(CMD_SERVICE, _key(service.key) + _service(service))
        case DeleteService(key):
            payload = _nested(CMD_SERVICE, _key(key))
        case AddRealServer(key, server) | SetRealServer(key, server):
            payload = _nested(CMD_SERVICE, _key(key)) + _nested(
                CMD_DEST, _real_server_key(server) + _real_server(server)
            )
        case DeleteRealServer(key, server):
            payload = _nested(CMD_SERVICE, _key(key)) + _nested(CMD_DEST, _real_server_key(server))
        case SetTimeouts(timeouts):
            payload = (
                _u32(CMD_TIMEOUT_TCP, timeouts.tcp)
                + _u32(CMD_TIMEOUT_TCP_FIN, timeouts.tcp_fin)
                + _u32(CMD_TIMEOUT_UDP, timeouts.udp)
            )
    return message(family_id, sequence, _COMMANDS[type(operation)], payload, flags=NLM_F_ACK)


def dump_services(family_id: int, sequence: int) -> bytes:
    """The request for all virtual services."""
    return message(family_id, sequence, uapi.IPVS_CMD_GET_SERVICE, b"", flags=NLM_F_DUMP)


def get_service(family_id: int, sequence: int, key: Key) -> bytes:
    """The request for one virtual service."""
    payload = _nested(CMD_SERVICE, _key(key))
    return message(family_id, sequence, uapi.IPVS_CMD_GET_SERVICE, payload, flags=NLM_F_ACK)


def dump_real_servers(family_id: int, sequence: int, key: Key) -> bytes:
    """The request for all real servers of a virtual service."""
    payload = _nested(CMD_SERVICE, _key(key))
    return message(family_id, sequence, uapi.IPVS_CMD_GET_DEST, payload, flags=NLM_F_DUMP)


def get_timeouts(family_id: int, sequence: int) -> bytes:
    """The request for IPVS's timeouts."""
    return message(family_id, sequence, uapi.IPVS_CMD_GET_CONFIG, b"", flags=NLM_F_ACK)


def parse_service(payload: memoryview) -> ObservedService:
    """A virtual service, without its real servers, from a message after its netlink header."""
    attributes = _command_attributes(payload, CMD_SERVICE)
    address_family = _number(attributes, SVC_AF, _U16)
    version = 6 if address_family == socket.AF_INET6 else 4
    flags = _number(attributes, SVC_FLAGS, _U32)
    scheduler = bytes(attributes[SVC_SCHED_NAME]).rstrip(b"\0").decode("ascii")
    key: Key
    if SVC_FWMARK in attributes:
        key = MarkKey(_number(attributes, SVC_FWMARK, _U32), version)
    else:
        key = ServiceKey(
            Protocol.from_number(_number(attributes, SVC_PROTOCOL, _U16)),
            _address(attributes[SVC_ADDR], version),
            _number(attributes, SVC_PORT, _BE16),
        )
    persistence = None
    if flags & F_PERSISTENT:
        persistence = Persistence(
            timeout=_number(attributes, SVC_TIMEOUT, _U32),
            granularity=_granularity(bytes(attributes[SVC_NETMASK]), version),
        )
    service = Service(
        key=key,
        scheduler=scheduler,
        flags=frozenset(
            name
            for name, bit in _SCHEDULER_BITS.items()
            if flags & bit and name.startswith(f"{scheduler}-")
        ),
        persistence=persistence,
        one_packet=bool(flags & F_ONEPACKET),
    )
    return ObservedService(service=service, counters=_counters(attributes, SVC_STATS64))


def parse_real_server(payload: memoryview, version: int) -> ObservedRealServer:
    """A real server from a message after its netlink header.

    Args:
        payload: generic netlink header and attributes.
        version: the service's IP version, for kernels that name no family (before 3.18).
    """
    attributes = _command_attributes(payload, CMD_DEST)
    if DEST_ADDR_FAMILY in attributes:
        own = _number(attributes, DEST_ADDR_FAMILY, _U16)
        version = 6 if own == socket.AF_INET6 else 4
    real_server = RealServer(
        address=_address(attributes[DEST_ADDR], version),
        port=_number(attributes, DEST_PORT, _BE16),
        weight=_number(attributes, DEST_WEIGHT, _U32),
        method=_METHOD_NAMES[_number(attributes, DEST_FWD_METHOD, _U32) & _METHOD_MASK],
        upper_threshold=_number(attributes, DEST_U_THRESH, _U32),
        lower_threshold=_number(attributes, DEST_L_THRESH, _U32),
    )
    return ObservedRealServer(
        real_server=real_server,
        active_connections=_number(attributes, DEST_ACTIVE_CONNS, _U32),
        inactive_connections=_number(attributes, DEST_INACT_CONNS, _U32),
        persistent_connections=_number(attributes, DEST_PERSIST_CONNS, _U32),
        counters=_counters(attributes, DEST_STATS64),
    )


def parse_timeouts(payload: memoryview) -> Timeouts:
    """IPVS's timeouts from a message after its netlink header."""
    attributes = _attributes(payload[_GENLMSGHDR.size :])
    return Timeouts(
        tcp=_number(attributes, CMD_TIMEOUT_TCP, _U32),
        tcp_fin=_number(attributes, CMD_TIMEOUT_TCP_FIN, _U32),
        udp=_number(attributes, CMD_TIMEOUT_UDP, _U32),
    )


# --- encoding -----------------------------------------------------------------------------------


def _attribute(kind: int, payload: bytes) -> bytes:
    length = _NLATTR.size + len(payload)
    return _NLATTR.pack(length, kind) + payload + bytes(-length % 4)


def _nested(kind: int, payload: bytes) -> bytes:
    return _attribute(kind | NLA_F_NESTED, payload)


def _u16(kind: int, value: int) -> bytes:
    return _attribute(kind, _U16.pack(value))


def _u32(kind: int, value: int) -> bytes:
    return _attribute(kind, _U32.pack(value))


def _key(key: Key) -> bytes:
    if isinstance(key, MarkKey):
        return _u16(SVC_AF, family(key.version)) + _u32(SVC_FWMARK, key.mark)
    return (
        _u16(SVC_AF, family(key.address.version))
        + _u16(SVC_PROTOCOL, key.protocol.number)
        + _attribute(SVC_ADDR, _nf_inet_addr(key.address))
        + _attribute(SVC_PORT, _BE16.pack(key.port))
    )


def _nf_inet_addr(address: Address) -> bytes:
    return address.packed.ljust(16, b"\0")


def _service(service: Service) -> bytes:
    version = service.key.version
    flags = F_ONEPACKET if service.one_packet else 0
    for name in service.flags:
        flags |= _SCHEDULER_BITS[name]
    timeout, length = 0, 128 if version == 6 else 32
    if service.persistence is not None:
        flags |= F_PERSISTENT
        timeout, length = service.persistence.timeout, service.persistence.granularity
    return (
        _attribute(SVC_SCHED_NAME, service.scheduler.encode("ascii") + b"\0")
        + _attribute(SVC_FLAGS, struct.pack("=II", flags, 0xFFFFFFFF))
        + _u32(SVC_TIMEOUT, timeout)
        + _attribute(SVC_NETMASK, _netmask(length, version))
    )


def _netmask(length: int, version: int) -> bytes:
    """The kernel wants a mask for IPv4 and, in the same field, a prefix length for IPv6."""
    if version == 6:
        return _U32.pack(length)
    return struct.pack("!I", (0xFFFFFFFF << (32 - length)) & 0xFFFFFFFF)


def _granularity(netmask: bytes, version: int) -> int:
    if version == 6:
        return int(_U32.unpack(netmask)[0])
    return int.from_bytes(netmask, "big").bit_count()


def _real_server_key(server: RealServer) -> bytes:
    return (
        _attribute(DEST_ADDR, _nf_inet_addr(server.address))
        + _attribute(DEST_PORT, _BE16.pack(server.port))
        + _u16(DEST_ADDR_FAMILY, family(server.address.version))
    )


def _real_server(server: RealServer) -> bytes:
    return (
        _u32(DEST_FWD_METHOD, _METHODS[server.method])
        + _u32(DEST_WEIGHT, server.weight)
        + _u32(DEST_U_THRESH, server.upper_threshold)
        + _u32(DEST_L_THRESH, server.lower_threshold)
    )


# --- decoding -----------------------------------------------------------------------------------


def _attributes(buffer: memoryview) -> dict[int, memoryview]:
    found: dict[int, memoryview] = {}
    offset, end = 0, len(buffer)
    while offset + _NLATTR.size <= end:
        length, kind = _NLATTR.unpack_from(buffer, offset)
        if length < _NLATTR.size or offset + length > end:
            raise ValueError(f"netlink attribute of length {length} at {offset} of {end}")
        found[kind & _NLA_TYPE_MASK] = buffer[offset + _NLATTR.size : offset + length]
        offset += length + (-length % 4)
    return found


def _command_attributes(payload: memoryview, kind: int) -> dict[int, memoryview]:
    return _attributes(_attributes(payload[_GENLMSGHDR.size :])[kind])


def _number(attributes: dict[int, memoryview], kind: int, layout: struct.Struct) -> int:
    value = attributes[kind]
    if len(value) < layout.size:
        raise ValueError(f"attribute {kind} has {len(value)} bytes, not {layout.size}")
    return int(layout.unpack_from(value)[0])


def _address(packed: memoryview, version: int) -> Address:
    if version == 6:
        return ipaddress.IPv6Address(bytes(packed[:16]))
    return ipaddress.IPv4Address(bytes(packed[:4]))


def _counters(attributes: dict[int, memoryview], kind: int) -> Counters:
    """IPVS_STATS_ATTR_*, 64 bits wide, in the order of the fields of Counters."""
    nested = attributes[kind]
    if len(nested) == _STATS.size:  # as the kernel lays them out where it needs no padding
        words = _STATS.unpack(nested)
        if words[1::3] == _STATS64:
            return Counters(*words[2::3])
    values = _attributes(nested)
    return Counters(*(int.from_bytes(values[number], sys.byteorder) for number in _STATS64))
