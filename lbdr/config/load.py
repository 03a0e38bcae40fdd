"""A configuration file to the model, or to all that is wrong with it."""

from __future__ import annotations

import gc
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from lbdr.config import build, explain, health_build, rules
from lbdr.config.finding import Finding
from lbdr.config.schema import Document
from lbdr.config.yaml12 import Path, Source
from lbdr.errors import ConfigError, Problem
from lbdr.health.services import ServiceHealth
from lbdr.model import Address, Configuration

MAX_BYTES = 16 * 1024 * 1024  # a file of 10,000 services with 10 servers has 5 MiB

# YAML 1.2, section 5.1; NEL and the line and paragraph separators would end lines for libyaml only
_UNPRINTABLE = re.compile(
    "[^\t\n\r\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]"
)


class Places:
    """The places of a valid document's values.

    They are seldom asked for, and the parsed tree takes fifty times the memory of the text: it is
    made again when they are.
    """

    def __init__(self, text: str, file: str) -> None:
        self._text = text
        self._file = file
        self._source: Source | None = None

    def place(self, path: Path) -> tuple[int, int]:
        """As Source.place."""
        if self._source is None:
            self._source = Source(self._text, self._file)
        return self._source.place(path)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A valid configuration, and where each of its values stands.

    Args:
        configuration: the model.
        file: as the user named it.
        real_servers: the addresses of all real servers of the file, used or not, by name.
        health: how each virtual service's real servers are checked, and who of them may serve.
    """

    configuration: Configuration
    file: str
    real_servers: Mapping[str, Address]
    health: Mapping[str, ServiceHealth]
    _places: Places = field(repr=False, compare=False)

    def place(self, path: Path) -> tuple[int, int]:
        """Line and column, from 1, of the value at a path, or of the deepest part that exists.

        Args:
            path: keys, and list positions from 0: ("virtual_services", "WEB", "ports", 0).
        """
        return self._places.place(path)

    def problem(self, path: Path, message: str, hint: str = "") -> Problem:
        """A problem at the place of a path."""
        return Problem(message, self.file, *self.place(path), hint)


def load(path: str | os.PathLike[str]) -> Loaded:
    """Read a configuration file.

    Args:
        path: as the user named it; problems name it the same.

    Raises:
        ConfigError: the file cannot be read or is wrong; it carries all problems at once.
    """
    return parse(_read(path), os.fspath(path))


def parse(content: bytes, file: str) -> Loaded:
    """Read a configuration from a file's content.

    Args:
        content: the bytes.
        file: the name in problems.

    Raises:
        ConfigError: it is wrong; it carries all problems at once.
    """
    text = _decode(content, file)
    with _garbage_collection_off():
        source = Source(text, file)
        if source.data is None and not source.problems:
            raise ConfigError(
                [Problem("the file holds no configuration", file, 1, 1, _EXAMPLE_HINT)]
            )
        document, findings = _validate(source)
        problems = list(source.problems)
        for finding in findings:
            path = explain.as_written(finding.path, source.data)
            place = source.place(path, key=finding.key)
            problems.append(Problem(finding.message, file, *place, finding.hint))
        if problems or document is None:
            raise ConfigError(sorted(problems, key=lambda p: (p.line, p.column)))
        return Loaded(
            configuration=build.configuration(document),
            file=file,
            real_servers={name: rs.address for name, rs in document.real_servers.items()},
            health=health_build.health(document),
            _places=Places(text, file),
        )


_MAX_FAULTS = 2000  # above, what is left of a document says little, and takes long to cut out
_EXAMPLE_HINT = "docs/configuration.md begins with an example"


def _validate(source: Source) -> tuple[Document | None, list[Finding]]:
    """The document, where it is valid, and everything that is wrong with it.

    The rules judge what is left when the parts that the schema refuses are taken out, so that one
    run shows all there is to say.
    """
    try:
        document = Document.model_validate(source.data)
    except ValidationError as error:
        faults = explain.faults(error, source)
    else:
        return document, rules.check(document, ())
    findings = [fault.finding for fault in faults]
    rest = source.data
    if len(faults) <= _MAX_FAULTS and all(fault.cut for fault in faults):
        for cut in sorted({fault.cut for fault in faults}, key=_cut_order, reverse=True):
            rest = _without(rest, cut)
        try:
            document = Document.model_validate(rest)
        except ValidationError:
            return None, findings
        findings += rules.check(document, _declared(source.data))
    return None, findings


def _cut_order(cut: Path) -> tuple[tuple[bool, str | int], ...]:
    """An order that compares keys with list positions, and puts later positions later."""
    return tuple((isinstance(step, str), step) for step in cut)


def _without(data: Any, path: Path) -> Any:
    """A copy without the part at a path; the parts beside it are shared."""
    step, rest = path[0], path[1:]
    if isinstance(data, dict) and step in data:
        if rest:
            return {**data, step: _without(data[step], rest)}
        return {key: value for key, value in data.items() if key != step}
    if isinstance(data, list) and isinstance(step, int) and step < len(data):
        inner = [_without(data[step], rest)] if rest else []
        return [*data[:step], *inner, *data[step + 1 :]]
    return data


def _declared(data: Mapping[str, Any]) -> list[str] | None:
    """The names of real servers in a document that is wrong; None where it does not tell."""
    servers = data.get("real_servers")
    return list(servers) if isinstance(servers, dict) else None


def _read(path: str | os.PathLike[str]) -> bytes:
    file = os.fspath(path)

    def fail(message: str, hint: str = "") -> ConfigError:
        return ConfigError([Problem(message, file, hint=hint)])

    try:
        with pathlib.Path(path).open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise fail("there is no such file", "name the configuration file") from None
    except IsADirectoryError:
        raise fail("this is a directory, not a file", "name the file in it") from None
    except PermissionError:
        raise fail(
            "the file cannot be read: permission denied", "ask its owner, or use sudo"
        ) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise fail(f"the file cannot be read: {reason}") from None
    if len(content) > MAX_BYTES:
        raise fail(f"the file is larger than {MAX_BYTES // 2**20} MiB", "is this the right file?")
    return content


def _decode(content: bytes, file: str) -> str:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ConfigError(
            [Problem("the file is UTF-16, not UTF-8", file, 1, 1, "save it as UTF-8")]
        )
    content = content.removeprefix(
        b"\xef\xbb\xbf"
    )  # YAML 1.2 section 5.2 allows a mark at the start
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        before = content[: error.start].decode()
        message = f"the byte 0x{content[error.start]:02x} is not UTF-8"
        raise ConfigError([Problem(message, file, *_at_end(before), "save it as UTF-8")]) from None
    odd = _UNPRINTABLE.search(text)
    if odd is not None:
        message = f"the character U+{ord(odd[0]):04X} is not allowed in YAML"
        hint = "is this a text file?" if odd[0] == "\0" else "remove it, or escape it in quotes"
        raise ConfigError([Problem(message, file, *_at_end(text[: odd.start()]), hint)])
    return text


def _at_end(text: str) -> tuple[int, int]:
    """Line and column of what comes after a text."""
    lines = re.split("\r\n|\r|\n", text)
    return len(lines), len(lines[-1]) + 1


@contextmanager
def _garbage_collection_off() -> Iterator[None]:
    """Loading makes many objects and no cycles: collecting meanwhile takes longer than loading."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
