"""Addresses, ports and the like as users write them."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Any

from lbdr.config.values import JsonSchema, Value, wrong
from lbdr.model import Address, MarkRange, PortRange


@dataclass(frozen=True, slots=True)
class InterfaceName(Value):
    """A network interface's name as the kernel allows it (net/core/dev.c, dev_valid_name)."""

    def read(self, value: Any) -> str:
        if (
            isinstance(value, str)
            and re.fullmatch(r"[^\s/:]{1,15}", value)
            and value.isprintable()
            and len(value.encode()) <= 15
            and value not in (".", "..")
        ):
            return value
        raise wrong("an interface's name of 1 to 15 characters", "`ip link` lists them")

    def json_schema(self) -> JsonSchema:
        return {"type": "string", "pattern": r"^[^\s/:]{1,15}$"}

    def text(self) -> str:
        return "an interface's name"


@dataclass(frozen=True, slots=True)
class IpAddress(Value):
    """An IPv4 or IPv6 address."""

    def read(self, value: Any) -> Address:
        if isinstance(value, str):
            try:
                address = ipaddress.ip_address(value)
            except ValueError:
                raise wrong("an IPv4 or IPv6 address", _address_hint(value)) from None
            if address.version == 6 and address.scope_id is not None:
                raise wrong("an address without `%`", f"write {str(address).partition('%')[0]}")
            return address
        raise wrong("an IPv4 or IPv6 address", "such as 192.168.10.50 or 2001:db8::50")

    def json_schema(self) -> JsonSchema:
        return {"type": "string", "anyOf": [{"format": "ipv4"}, {"format": "ipv6"}]}

    def text(self) -> str:
        return "an IPv4 or IPv6 address"


def _address_hint(text: str) -> str:
    bare = text.strip().strip("[]")
    prefixed, slash, _ = bare.partition("/")
    head, colon, port = bare.rpartition(":")
    host = head.strip("[]")
    hint = "such as 192.168.10.50 or 2001:db8::50"
    if slash and _is_address(prefixed):
        hint = f"leave out the prefix length: write {prefixed}"
    elif colon and port.isdigit() and _is_address(host):
        hint = f"a port has a key of its own: write {host}"
    elif _is_address(bare):
        hint = f"write {bare}"
    elif re.fullmatch(r"[0-9]{1,8}(\.[0-9]{1,8}){3}", text):
        plain = ".".join(str(int(octet)) for octet in text.split("."))
        hint = "each of the four numbers is 0 to 255"
        if _is_address(plain):
            hint = f"leading zeros are ambiguous: write {plain}"
    elif re.fullmatch(r"(?=.*[A-Za-z])[A-Za-z0-9_.-]+", text):
        hint = "names are not resolved: write the address itself"
    return hint


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Granularity(Value):
    """A prefix length; the rule for each IP version is in rules, which know the VIP."""

    def read(self, value: Any) -> int:
        text = value if isinstance(value, str) else f"/{value}"
        match = re.fullmatch(r"/?([0-9]{1,3})", text)
        if match and not isinstance(value, bool) and 1 <= int(match[1]) <= 128:
            return int(match[1])
        raise wrong("a prefix length from /1 to /32 (IPv4) or /128 (IPv6)", _netmask_hint(value))

    def json_schema(self) -> JsonSchema:
        return {
            "anyOf": [
                {"type": "string", "pattern": "^/?[0-9]{1,3}$"},
                {"type": "integer", "minimum": 1, "maximum": 128},
            ]
        }

    def text(self) -> str:
        return "`/1` to `/32` or `/128`, with or without `/`"


def _netmask_hint(value: Any) -> str:
    if isinstance(value, str) and "." in value:
        try:
            return f"write /{ipaddress.IPv4Network(f'0.0.0.0/{value}').prefixlen}"
        except ValueError:
            return ""
    return ""


@dataclass(frozen=True, slots=True)
class PortEntry(Value):
    """A port, or a range of them."""

    def read(self, value: Any) -> PortRange:
        if type(value) is int and 1 <= value <= 65535:
            return PortRange(value, value)
        match = (
            re.fullmatch(r"([0-9]{1,5})-([0-9]{1,5})", value) if isinstance(value, str) else None
        )
        if match:
            first, last = int(match[1]), int(match[2])
            if 1 <= first <= last <= 65535:
                return PortRange(first, last)
            if 1 <= last < first <= 65535:
                raise wrong("a range from the lower port to the higher", f"write {last}-{first}")
        hint = ""
        if value == "any":
            hint = "`ports: any`, without a list, means every port"
        elif isinstance(value, str) and value.isdecimal() and len(value) < 6:
            hint = f"write {int(value)} without quotes"
        raise wrong("a port from 1 to 65535, or a range such as 4001-4005", hint)

    def json_schema(self) -> JsonSchema:
        return {
            "anyOf": [
                {"type": "integer", "minimum": 1, "maximum": 65535},
                {"type": "string", "pattern": "^[0-9]{1,5}-[0-9]{1,5}$"},
            ]
        }

    def text(self) -> str:
        return "a port, or a range"


PORTS_SCHEMA: JsonSchema = {
    "anyOf": [
        {"const": "any"},
        {"type": "array", "minItems": 1, "items": PortEntry().json_schema()},
    ]
}


def list_of_ports(value: Any) -> list[Any]:
    """The entries of `ports`; none at all stands for `any`."""
    expected = "a list of ports and ranges, such as [80, 443] or [4001-4005], or any"
    if value == "any":
        return []
    if not isinstance(value, list):
        raise wrong(expected, _ports_hint(value))
    if not value:
        raise wrong(expected, "`any` means every port")
    return value


def _ports_hint(value: Any) -> str:
    if isinstance(value, str) and value.lower() in ("any", "all", "*"):
        return "write any"
    if isinstance(value, int) and not isinstance(value, bool):
        return "write `any` for every port" if value == 0 else f"write [{value}]"
    if isinstance(value, str) and re.fullmatch(r"[0-9][0-9, -]{0,80}", value):
        return f"write [{', '.join(part.strip() for part in value.split(',') if part.strip())}]"
    return ""


@dataclass(frozen=True, slots=True)
class Marks(Value):
    """A range of packet marks."""

    def read(self, value: Any) -> MarkRange:
        if isinstance(value, MarkRange):
            return value
        number = "(0x[0-9a-fA-F]{1,8}|[0-9]{1,10})"
        match = re.fullmatch(f"{number}-{number}", value) if isinstance(value, str) else None
        if match:
            first, last = (int(one, 16 if one[:2] == "0x" else 10) for one in match.groups())
            if 1 <= first <= last < 1 << 32:
                return MarkRange(first, last)
            if 1 <= last < first < 1 << 32:
                raise wrong("a range from the lower mark to the higher", f"write {last}-{first}")
        one = type(value) is int and 1 <= value < 1 << 32
        hint = f"write {value}-{value}" if one else "a mark is 1 to 4294967295"
        raise wrong("a range of packet marks, such as 12288-12543 or 0x3000-0x30ff", hint)

    def json_schema(self) -> JsonSchema:
        number = "(0x[0-9a-fA-F]{1,8}|[0-9]{1,10})"
        return {"type": "string", "pattern": f"^{number}-{number}$"}

    def text(self) -> str:
        return "a range of packet marks, decimal or hexadecimal"
