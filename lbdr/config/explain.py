"""pydantic's errors in the user's words: what was found, what is allowed, what to write."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import ValidationError

from lbdr.config import schema, words
from lbdr.config.check_schema import Check
from lbdr.config.finding import Finding
from lbdr.config.health_schema import Damping, Dependency, Feedback, Health, Quorum
from lbdr.config.section import Section
from lbdr.config.values import WRONG
from lbdr.config.yaml12 import Path, Source
from lbdr.config.yaml_errors import short


@dataclass(frozen=True, slots=True)
class Fault:
    """A value that the schema refuses.

    Args:
        finding: what to tell the user.
        cut: the smallest part of the document without which the rest can still be judged.
    """

    finding: Finding
    cut: Path


_SECTIONS: Mapping[Path, type[Section]] = {
    (): schema.Document,
    ("director",): schema.Director,
    ("director", "address_probe"): schema.AddressProbe,
    ("director", "gratuitous_arp"): schema.GratuitousArp,
    ("director", "timeouts"): schema.Timeouts,
    ("real_servers", "*"): schema.RealServer,
    ("virtual_services", "*"): schema.VirtualService,
    ("virtual_services", "*", "real_servers", "*"): schema.RealServerUse,
    ("virtual_services", "*", "sorry_server"): schema.SorryServer,
    ("virtual_services", "*", "persistence"): schema.Persistence,
    ("virtual_services", "*", "health"): Health,
    ("virtual_services", "*", "health", "quorum"): Quorum,
    ("virtual_services", "*", "health", "damping"): Damping,
    ("virtual_services", "*", "health", "feedback"): Feedback,
    ("real_servers", "*", "depends_on", "*"): Dependency,
    ("director", "check", "*"): Check,
    ("virtual_services", "*", "check", "*"): Check,
    ("real_servers", "*", "depends_on", "*", "check", "*"): Check,
}


def section_of(path: Path) -> type[Section] | None:
    """The section that stands at a path; None where the schema has none there."""
    named = path[:1] in (("real_servers",), ("virtual_services",))
    pattern = tuple(
        "*" if isinstance(step, int) or (named and position == 1) else step
        for position, step in enumerate(path)
    )
    if pattern[-1:] == ("check",):  # alone, it is no list
        pattern = (*pattern, "*")
    return _SECTIONS.get(pattern)


@cache
def _elsewhere() -> Mapping[str, str]:
    found: dict[str, str] = {}
    for section in schema.SECTIONS:
        for key in section.model_fields:
            found.setdefault(key, section.where)
    return found


def faults(error: ValidationError, source: Source) -> list[Fault]:
    """Every error of a validation as a fault.

    Args:
        error: what pydantic found wrong with the whole document.
        source: the document.
    """
    listed = error.errors(include_url=False, include_input=True, include_context=True)
    return [_fault(dict(item), source) for item in listed]


def as_written(path: Path, data: Any) -> Path:
    """A path without positions in lists whose only entry stands alone, as a check may.

    Args:
        path: keys, and list positions from 0.
        data: the whole document.
    """
    found: list[str | int] = []
    for step in path:
        if isinstance(step, int) and not isinstance(data, list):
            continue
        found.append(step)
        inside = isinstance(data, dict) and step in data
        inside = inside or (isinstance(data, list) and isinstance(step, int) and step < len(data))
        data = data[step] if inside else None
    return tuple(found)


def _fault(item: dict[str, Any], source: Source) -> Fault:
    path: Path = as_written(item["loc"], source.data)
    kind: str = item["type"]
    if kind == "extra_forbidden":
        return _unknown(path, source)
    if kind == "missing":
        return _missing(path)
    key = kind == WRONG and path[-1:] == ("[key]",)
    if key:
        path = path[:-1]
    if kind == WRONG:
        expected, hint = item["ctx"]["expected"], item["ctx"]["hint"]
    else:
        expected, hint = _expected(kind, path), ""
    written = source.existing(path)  # less than the path where a word stands for a mapping
    found = f"`{short(str(path[-1]))}`" if key else _found(item["input"], source.text(written))
    prefix = "" if key else _prefix(written)
    message = f"{prefix}expected {expected}, found {found}"
    return Fault(Finding(path, message, hint, key), _cut(path))


def _expected(kind: str, path: Path) -> str:
    section = section_of(path)
    if section is not None:
        return section.noun
    if kind == "list_type":
        return "a list"
    if path in (("real_servers",), ("virtual_services",)):
        return "names, each with its settings"
    return "another value"


def _unknown(path: Path, source: Source) -> Fault:
    parent, key = path[:-1], str(path[-1])
    section = section_of(parent)
    allowed = tuple(section.model_fields) if section is not None else ()
    elsewhere = {word: where for word, where in _elsewhere().items() if word not in allowed}
    siblings = _mapping(source.data, parent)
    unknown = words.unknown_key(key, allowed, elsewhere, siblings)
    hint = unknown.hint
    if unknown.meant and unknown.meant not in siblings:
        hint = words.with_value(hint, unknown.meant, siblings[key])
    finding = Finding(path, unknown.message, hint, key=True)
    # a misspelt key leaves its section half known; at the top, each section is judged by itself
    return Fault(finding, _cut(parent) if unknown.meant and parent else path)


def _mapping(data: Any, path: Path) -> Mapping[str, Any]:
    for step in path:
        data = data[step]
    return data if isinstance(data, Mapping) else {}


def _missing(path: Path) -> Fault:
    parent, key = path[:-1], str(path[-1])
    section = section_of(parent)
    examples = section.model_fields[key].examples if section is not None else None
    hint = f"add `{key}: {examples[0]}`" if examples else ""
    names = [str(step) for step in parent if isinstance(step, str)]
    where = f" in `{short(names[-1])}`" if names else ""
    return Fault(Finding(parent, f"`{key}` is missing{where}", hint), _cut(parent))


def _prefix(path: Path) -> str:
    """The key whose value is wrong; a name that the user chose is no key."""
    if not path:
        return ""
    if section_of(path) in (schema.RealServer, schema.VirtualService):
        return f"`{short(str(path[-1]))}`: "
    keys = [str(step) for step in path if isinstance(step, str)]
    return f"`{short(keys[-1])}`: "


def _found(value: Any, text: str | None) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    if value is None:
        return "nothing"
    shown = text if text is not None else str(value)
    return f"`{short(shown)}`"


def _cut(path: Path) -> Path:
    """What to leave out so that a wrong part causes no further errors."""
    match path:
        case ("virtual_services", str(), "real_servers", int(), *_):
            return path[:4]
        case ("virtual_services" | "real_servers", str(), *_):
            return path[:2]
    return path[:1]
