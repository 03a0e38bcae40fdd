"""Marks: what a preset cannot know stands in its text as a question; pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

FILL_IN = "FILL IN: "
_MARK = re.compile(r"[\"']FILL IN: ([^\"'\n]*)[\"']")


@dataclass(frozen=True, slots=True)
class Mark:
    """A question that is not answered yet.

    Args:
        line: from 1.
        column: from 1.
        question: what to ask, and whom.
    """

    line: int
    column: int
    question: str


def mark(question: str) -> str:
    """The question as a value of YAML."""
    if set(question) & set("\"'\n\\"):
        raise ValueError(f"{question!r} cannot stand in quotes")
    return f'"{FILL_IN}{question}"'


def unanswered(text: str) -> list[Mark]:
    """The marks of a configuration, in its order; those in comments do not count."""
    found: list[Mark] = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("#"):
            continue
        found += [Mark(number, match.start() + 1, match[1]) for match in _MARK.finditer(line)]
    return found
