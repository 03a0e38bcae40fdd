"""The scalars that a configuration is made of, each read by a rule with words of its own.

Each class is metadata of an Annotated type: it reads what YAML gave, and describes itself in
JSON Schema. None reads null: an unset value is one that is not written.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from lbdr.config import words

WRONG = "lbdr"  # the type of errors whose words are ours

JsonSchema = dict[str, Any]


def wrong(expected: str, hint: str = "") -> PydanticCustomError:
    """A value that is not what is allowed.

    Args:
        expected: what is allowed, fit to follow "expected".
        hint: the remedy.
    """
    return PydanticCustomError(WRONG, "{expected}", {"expected": expected, "hint": hint})


class Value:
    """What pydantic asks of every scalar here."""

    __slots__ = ()

    def read(self, value: Any) -> Any:
        """The value as the schema keeps it; `wrong` for one that is not allowed."""
        raise NotImplementedError

    def json_schema(self) -> JsonSchema:
        """What it allows, as JSON Schema."""
        raise NotImplementedError

    def text(self) -> str:
        """What it allows, for the reference."""
        raise NotImplementedError

    def __get_pydantic_core_schema__(
        self, _source: Any, _handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.read)

    def __get_pydantic_json_schema__(
        self, _schema: CoreSchema, _handler: GetJsonSchemaHandler
    ) -> JsonSchema:
        return self.json_schema()


@dataclass(frozen=True, slots=True)
class Whole(Value):
    """A whole number.

    Args:
        minimum: the least allowed.
        maximum: the most allowed.
    """

    minimum: int
    maximum: int

    def read(self, value: Any) -> int:
        if type(value) is int and self.minimum <= value <= self.maximum:
            return value
        hint = ""
        if isinstance(value, str) and re.fullmatch(r"[0-9][0-9_]*", value):
            hint = f"write {int(value)}, with no quotes or underscores" if len(value) < 20 else ""
        raise wrong(f"a whole number from {self.minimum} to {self.maximum}", hint)

    def json_schema(self) -> JsonSchema:
        return {"type": "integer", "minimum": self.minimum, "maximum": self.maximum}

    def text(self) -> str:
        return f"{self.minimum} to {self.maximum}"


@dataclass(frozen=True, slots=True)
class Switch(Value):
    """true or false."""

    def read(self, value: Any) -> bool:
        if isinstance(value, bool):
            return value
        meant = {"yes": "true", "on": "true", "no": "false", "off": "false"}
        word = meant.get(str(value).lower())
        raise wrong("true or false", f"write {word}" if word else "")

    def json_schema(self) -> JsonSchema:
        return {"type": "boolean"}

    def text(self) -> str:
        return "true, false"


@dataclass(frozen=True, slots=True)
class Choice(Value):
    """One of several words.

    Args:
        allowed: the words.
        foreign: the key of `words.VALUES` for other programs' words.
    """

    allowed: tuple[str, ...]
    foreign: str

    def read(self, value: Any) -> str:
        if isinstance(value, str) and value in self.allowed:
            return value
        expected = (
            self.allowed[0] if len(self.allowed) == 1 else f"one of {', '.join(self.allowed)}"
        )
        raise wrong(expected, words.value_hint(self.foreign, value, self.allowed))

    def json_schema(self) -> JsonSchema:
        return {"type": "string", "enum": list(self.allowed)}

    def text(self) -> str:
        return ", ".join(self.allowed)


@dataclass(frozen=True, slots=True)
class Text(Value):
    """Free text of one line, at most 64 characters."""

    def read(self, value: Any) -> str:
        if isinstance(value, str) and 0 < len(value) <= 64 and value.isprintable():
            return value
        number = isinstance(value, int | float)
        raise wrong("text of 1 to 64 characters", "put it in quotes" if number else "")

    def json_schema(self) -> JsonSchema:
        return {"type": "string", "minLength": 1, "maxLength": 64}

    def text(self) -> str:
        return "text of 1 to 64 characters"


@dataclass(frozen=True, slots=True)
class Name(Value):
    """A name of something that the user names: it becomes a word of commands and of metrics."""

    _PATTERN = r"[A-Za-z][A-Za-z0-9_.-]{0,63}"

    def read(self, value: Any) -> str:
        if isinstance(value, str) and re.fullmatch(self._PATTERN, value):
            return value
        raise wrong(
            "a name: a letter, then at most 63 letters, digits, `_`, `-` or `.`",
            _name_hint(value),
        )

    def json_schema(self) -> JsonSchema:
        return {"type": "string", "pattern": f"^{self._PATTERN}$"}

    def text(self) -> str:
        return "a name"


def _name_hint(value: Any) -> str:
    if isinstance(value, bool):
        return "this is YAML's word for a truth value: put it in quotes"
    text = re.sub(r"[^A-Za-z0-9_.-]+", "_", str(value)).strip("_") if value is not None else ""
    if text and not text[0].isalpha():
        text = f"s{text}"
    return f"for example {text[:64]}" if text and isinstance(value, str | int) else ""
