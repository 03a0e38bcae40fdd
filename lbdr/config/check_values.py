"""Values of health checks as users write them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from lbdr.config.values import JsonSchema, Value, wrong


@dataclass(frozen=True, slots=True)
class Line(Value):
    """Text of one line.

    Args:
        noun: what it is.
        longest: characters.
        pattern: that it matches as a whole; empty for any printable text.
    """

    noun: str
    longest: int = 255
    pattern: str = ""

    def read(self, value: Any) -> str:
        if (
            isinstance(value, str)
            and 0 < len(value) <= self.longest
            and value.isprintable()
            and (not self.pattern or re.fullmatch(self.pattern, value))
        ):
            return value
        number = isinstance(value, int | float) and not isinstance(value, bool)
        raise wrong(self.noun, f"write '{value}', in quotes" if number else "")

    def json_schema(self) -> JsonSchema:
        schema: JsonSchema = {"type": "string", "minLength": 1, "maxLength": self.longest}
        return schema | ({"pattern": f"^(?:{self.pattern})$"} if self.pattern else {})

    def text(self) -> str:
        return self.noun


@dataclass(frozen=True, slots=True)
class Content(Value):
    """Text of any number of lines, at most 64 KiB."""

    def read(self, value: Any) -> str:
        if isinstance(value, str) and 0 < len(value.encode()) <= 65536:
            return value
        number = isinstance(value, int | float) and not isinstance(value, bool)
        raise wrong("text of at most 64 KiB", f"write '{value}', in quotes" if number else "")

    def json_schema(self) -> JsonSchema:
        return {"type": "string", "minLength": 1, "maxLength": 65536}

    def text(self) -> str:
        return "text"


@dataclass(frozen=True, slots=True)
class HexBytes(Value):
    """Bytes in hexadecimal digits; blanks and colons may stand between them."""

    def read(self, value: Any) -> bytes:
        if isinstance(value, str) and value:
            digits = re.sub(r"[\s:]", "", value)
            if re.fullmatch(r"(?:[0-9A-Fa-f]{2}){1,65536}", digits):
                return bytes.fromhex(digits)
        number = isinstance(value, int) and not isinstance(value, bool)
        hint = "put it in quotes" if number else "such as '0b 4d 53 48'"
        raise wrong("bytes in pairs of hexadecimal digits", hint)

    def json_schema(self) -> JsonSchema:
        return {"type": "string", "pattern": r"^[0-9A-Fa-f\s:]+$"}

    def text(self) -> str:
        return "pairs of hexadecimal digits"


@dataclass(frozen=True, slots=True)
class Expression(Value):
    """A regular expression of Python's re."""

    def read(self, value: Any) -> str:
        if isinstance(value, str) and 0 < len(value) <= 1024:
            try:
                re.compile(value.encode())
            except re.error as error:
                raise wrong("a regular expression", str(error)) from None
            return value
        raise wrong("a regular expression of 1 to 1024 characters")

    def json_schema(self) -> JsonSchema:
        return {"type": "string", "format": "regex", "minLength": 1, "maxLength": 1024}

    def text(self) -> str:
        return "a regular expression"


@dataclass(frozen=True, slots=True)
class StatusCodes(Value):
    """An HTTP status code, or a range of them."""

    def read(self, value: Any) -> tuple[int, int]:
        if type(value) is int and 100 <= value <= 599:
            return value, value
        match = re.fullmatch(r"([1-5][0-9]{2})-([1-5][0-9]{2})", str(value))
        if match and int(match[1]) <= int(match[2]):
            return int(match[1]), int(match[2])
        family = re.fullmatch(r"([1-5])xx", str(value).lower())
        hint = f"write {family[1]}00-{family[1]}99" if family else ""
        raise wrong("a status code, or a range such as 200-299", hint)

    def json_schema(self) -> JsonSchema:
        return {
            "anyOf": [
                {"type": "integer", "minimum": 100, "maximum": 599},
                {"type": "string", "pattern": "^[1-5][0-9]{2}-[1-5][0-9]{2}$"},
            ]
        }

    def text(self) -> str:
        return "a status code, or a range such as 200-299"


AE_TITLE = Line("an AE title: 1 to 16 characters of ASCII, no backslash", 16, r"(?! +$)[ -\[\]-~]+")
"""DICOM PS3.5 section 6.2: leading and trailing blanks mean nothing, so one of blanks is none."""

FILE = Line("a file's absolute path", 4095, r"/.*[^/]")
HOST_NAME = Line("a host name", 253, r"[A-Za-z0-9_](?:[A-Za-z0-9_.:\[\]-]*[A-Za-z0-9\]])?")
DOMAIN_NAME = Line("a domain name", 253, r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9.])?")
"""Also such as _ldap._tcp.example.org."""
