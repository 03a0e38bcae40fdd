"""YAML 1.2 text to plain data that knows where each value stands.

Scalars are read by YAML 1.2's core schema (section 10.3.2): `no`, `on`, `12:30` and `1_000` are
text, `0o17` is 15 and `017` is 17. Merge keys (`<<`) are YAML 1.1 only and refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, TypeAlias

import yaml
from yaml._yaml import CParser  # libyaml; the one that CSafeLoader is made of

from lbdr.config import yaml_errors
from lbdr.errors import ConfigError, Problem

MAX_VALUES = 2_000_000  # a file of 10,000 services with 10 servers has about 700,000
MAX_ALIAS_VALUES = 100_000  # what aliases may add by standing for values again

Path: TypeAlias = tuple[str | int, ...]

_STR, _INT, _FLOAT, _BOOL, _NULL = "str", "int", "float", "bool", "null"
_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_REAL = re.compile(
    r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
_WORDS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), _NULL),
    **dict.fromkeys(("true", "True", "TRUE", "false", "False", "FALSE"), _BOOL),
}
_NUMBER_START = frozenset("-+.0123456789")
_MAX_DIGITS = 100  # no number here needs more, and Python refuses to read very long ones


def scalar_tag(text: str) -> str:
    """The core schema's type of a plain scalar."""
    word = _WORDS.get(text)
    if word is not None:
        return word
    if text[0] in _NUMBER_START and len(text) <= _MAX_DIGITS:
        if _INTEGER.fullmatch(text):
            return _INT
        if _REAL.fullmatch(text):
            return _FLOAT
    return _STR


class _Composer(CParser):
    """libyaml's parser with YAML 1.2 types, and bounds that hold before memory is spent."""

    def __init__(self, text: str, file: str) -> None:
        super().__init__(text)
        self.file = file
        self.depth = 0
        self.values = 0

    def resolve(self, kind: type[yaml.Node], value: str, implicit: Any) -> str:
        if kind is yaml.ScalarNode:
            return scalar_tag(value) if implicit[0] else _STR
        return ""

    def descend_resolver(self, parent: yaml.Node | None, _index: Any) -> None:
        self.depth += 1
        self.values += 1
        if self.depth > yaml_errors.MAX_DEPTH:
            raise _too_deep(parent, self.file)
        if self.values > MAX_VALUES:
            raise _error(parent, self.file, f"the file has more than {MAX_VALUES:,} values", "")

    def ascend_resolver(self) -> None:
        self.depth -= 1


def _error(node: yaml.Node | None, file: str, message: str, hint: str) -> ConfigError:
    line, column = mark_place(node.start_mark) if node is not None else (1, 1)
    return ConfigError([Problem(message, file, line, column, hint)])


def _too_deep(node: yaml.Node | None, file: str) -> ConfigError:
    return _error(
        node,
        file,
        *yaml_errors.TOO_DEEP,
    )


def mark_place(mark: Any) -> tuple[int, int]:
    """Line and column of a mark, from 1."""
    return (mark.line + 1, mark.column + 1)


def _is_name(key: yaml.Node) -> bool:
    return isinstance(key, yaml.ScalarNode)


class Source:
    """A parsed document: its data, the problems on the way to it, and the place of each value.

    Args:
        text: one YAML document.
        file: the file's name in problems.

    Raises:
        ConfigError: the text is no YAML document, or one beyond the bounds above.
    """

    def __init__(self, text: str, file: str) -> None:
        self.file = file
        self.problems: list[Problem] = []
        composer = _Composer(text, file)
        try:
            self.root: yaml.Node | None = composer.get_single_node()
        except yaml.YAMLError as error:
            raise ConfigError([yaml_errors.explain(error, text, file)]) from None
        finally:
            composer.dispose()
        self._known: dict[int, dict[str, tuple[yaml.Node, yaml.Node]]] = {}
        self._budget = composer.values + MAX_ALIAS_VALUES
        self.data: Any = None if self.root is None else self._value(self.root, 1)

    def _value(self, node: yaml.Node, depth: int) -> Any:
        self._budget -= 1
        if self._budget < 0:
            raise _error(
                node,
                self.file,
                f"aliases (*name) stand for more than {MAX_ALIAS_VALUES:,} values",
                "write the values out",
            )
        if depth > yaml_errors.MAX_DEPTH:
            raise _too_deep(node, self.file)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        if node.tag:
            self._refuse_tag(node)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, depth)
        return [self._value(item, depth + 1) for item in node.value]

    def _mapping(self, node: yaml.MappingNode, depth: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key, value in node.value:
            if key.value == "<<" and not getattr(key, "style", None):
                self._refuse_merge(key)
                other = self._value(value, depth + 1)
                merged |= other if isinstance(other, dict) else {}
                continue
            name = self._key(key)
            if name is None:
                continue
            if name in result:
                self._duplicate(node, key)
            else:
                result[name] = self._value(value, depth + 1)
        return {**merged, **result}  # refused or not: nothing is to seem missing besides

    def _key(self, key: yaml.Node) -> str | None:
        """A key's text: keys here are names, whatever type they would have as values."""
        if not _is_name(key):
            self._add(key, "a key must be a plain name, found a list or a mapping", "")
            return None
        return str(key.value)

    def _refuse_merge(self, key: yaml.Node) -> None:
        self._add(
            key,
            "merge keys (<<) belong to YAML 1.1, and this file is YAML 1.2",
            "repeat the keys, or let an alias (*name) stand for a whole value",
        )

    def _duplicate(self, node: yaml.MappingNode, key: yaml.Node) -> None:
        first, _ = self._entries(node)[key.value]
        line, column = mark_place(first.start_mark)
        self._add(
            key,
            f"`{yaml_errors.short(key.value)}` stands here twice: first at line {line}, "
            f"column {column}",
            "remove or rename one",
        )

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        text: str = node.value
        match node.tag:
            case "str" | "tag:yaml.org,2002:str":  # !!str is the one tag that has a use here
                return text
            case "int":
                return int(text, 0 if text[:2] in ("0o", "0x") else 10)
            case "float":
                return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
            case "bool":
                return text[0] in "tT"
            case "null":
                return None
        self._refuse_tag(node)
        return text

    def _refuse_tag(self, node: yaml.Node) -> None:
        tag = node.tag.replace("tag:yaml.org,2002:", "!!")
        self._add(node, f"the tag {yaml_errors.short(tag)} has no meaning here", "leave it out")

    def _add(self, node: yaml.Node, message: str, hint: str) -> None:
        self.problems.append(Problem(message, self.file, *mark_place(node.start_mark), hint))

    def _walk(self, path: Path) -> Iterator[tuple[yaml.Node | None, yaml.Node]]:
        """Key and value of each step of a path, as far as the document has them."""
        node = self.root
        for step in path:
            key: yaml.Node | None = None
            found: yaml.Node | None = None
            if isinstance(node, yaml.MappingNode):
                key, found = self._entries(node).get(str(step), (None, None))
            elif isinstance(node, yaml.SequenceNode) and isinstance(step, int):
                found = node.value[step] if step < len(node.value) else None
            if found is None:
                return
            yield key, found
            node = found

    def _entries(self, node: yaml.MappingNode) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """A mapping's keys and values by name; of a duplicate, the first."""
        entries = self._known.get(id(node))
        if entries is None:
            entries = {k.value: (k, v) for k, v in reversed(node.value) if _is_name(k)}
            self._known[id(node)] = entries
        return entries

    def place(self, path: Path, *, key: bool = False) -> tuple[int, int]:
        """Line and column, from 1, of the value at a path, or of the deepest part that exists.

        A value that spans lines (a mapping or list in block style) is placed at its key.

        Args:
            path: keys, and list positions from 0.
            key: the key's place instead of the value's.
        """
        steps = list(self._walk(path))
        if not steps:
            return mark_place(self.root.start_mark) if self.root is not None else (1, 1)
        name, value = steps[-1]
        block = isinstance(value, yaml.CollectionNode) and not value.flow_style
        wanted = name if name is not None and (key or block) else value
        return mark_place(wanted.start_mark)

    def text(self, path: Path) -> str | None:
        """A scalar as it is written; None where the path leads to none."""
        steps = list(self._walk(path))
        node = steps[-1][1] if len(steps) == len(path) and steps else None
        if not isinstance(node, yaml.ScalarNode):
            return None
        quote = node.style if node.style in ("'", '"') else ""
        return f"{quote}{node.value}{quote}"

    def existing(self, path: Path) -> Path:
        """A path as far as the document has it."""
        return path[: len(list(self._walk(path)))]
