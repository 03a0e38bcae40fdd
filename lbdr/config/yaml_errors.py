"""libyaml's syntax errors in the words of someone who edits a file."""

from __future__ import annotations

import yaml

from lbdr.errors import Problem

_SHOWN = 40  # characters of what was found


def short(text: str, limit: int = _SHOWN) -> str:
    """Text fit for one line: control characters escaped, a long one cut."""
    plain = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return plain if len(plain) <= limit else plain[: limit - 3] + "..."


MAX_DEPTH = 64  # the schema needs 8; libyaml's composer recurses on the C stack
TOO_DEEP = (
    f"values are nested more than {MAX_DEPTH} deep",
    "look for a bracket that is not closed, or an alias inside what it stands for",
)
_BY_PROBLEM: dict[str, tuple[str, str]] = {
    "mapping values are not allowed in this context": (
        "a key and its `:` cannot stand here",
        "check the indentation of this line and the one before, and quote text that holds `: `",
    ),
    "block sequence entries are not allowed in this context": (
        "a list item (`- `) cannot stand here",
        "put the list on the lines below its key, or in brackets: [a, b]",
    ),
    "found undefined alias": (
        "an alias (*name) without its anchor (&name) before it",
        "define the anchor first, or quote text that begins with *",
    ),
    "second occurrence": ("the same anchor (&name) twice", "give each anchor its own name"),
    "but found another document": (
        "a second document begins here, and one file holds one configuration",
        "remove the `---` line",
    ),
    "found unexpected end of stream": (
        "a quoted text is not closed before the end of the file",
        "close the quote where the text ends",
    ),
    "found unexpected document indicator": (
        "a quoted text is not closed before the end of the document",
        "close the quote where the text ends",
    ),
    "found unknown escape character": (
        'an unknown escape (\\) inside "double quotes"',
        "write \\\\ for a backslash, or use 'single quotes'",
    ),
    "could not find expected ':'": (
        "the line before is no `key: value`",
        "a key needs `: ` after it, with a space",
    ),
    "did not find expected key": (
        "a key was expected here",
        "check that keys of one mapping have the same indentation, and that quotes are closed",
    ),
    "did not find expected '-' indicator": (
        "a list item (`- `) was expected here",
        "check that the items of one list have the same indentation",
    ),
    "did not find expected ',' or '}'": (
        "`,` or `}` was expected here",
        "the bracket `{` was not closed",
    ),
    "did not find expected ',' or ']'": (
        "`,` or `]` was expected here",
        "the bracket `[` was not closed",
    ),
    "did not find expected node content": (
        "a value was expected here",
        "look for a bracket or a comma too many",
    ),
    "did not find expected <document start>": (
        "the document has ended before this line",
        "check the indentation: the first key decides it for the whole file",
    ),
    "found incompatible YAML document": ("a %YAML line of another version", "remove it"),
    "exceeded maximum nesting depth": TOO_DEEP,  # libyaml's own bound, which newer ones have
}
_TAB = (
    "a tab cannot indent YAML",
    "indent with spaces",
)


def explain(error: yaml.YAMLError, text: str, file: str) -> Problem:
    """A syntax error as a problem with its place.

    Args:
        error: what libyaml or PyYAML's composer raised.
        text: the document.
        file: its name in problems.
    """
    problem = str(getattr(error, "problem", None) or "")
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return Problem(f"no YAML: {short(str(error), 200)}", file, 1, 1)
    message, hint = _BY_PROBLEM.get(problem, ("", ""))
    if problem.startswith(("found a tab", "found character that cannot start")):
        character = _character(text, mark.line, mark.column)
        message, hint = _TAB if character == "\t" else _reserved(character)
    if not message:
        message, hint = f"no YAML: {short(problem, 200)}", "quote the text if it is meant as text"
    opened = getattr(error, "context_mark", None)
    if opened is not None and (opened.line, opened.column) != (mark.line, mark.column):
        start = f"line {opened.line + 1}, column {opened.column + 1}"
        if problem.startswith("did not find expected ','") or "not closed" in message:
            hint += f" (opened at {start})"
        elif problem == "second occurrence":
            message += f": first at {start}"
    return Problem(message, file, mark.line + 1, mark.column + 1, hint)


def _character(text: str, line: int, column: int) -> str:
    lines = text.splitlines()
    return lines[line][column : column + 1] if line < len(lines) else ""


def _reserved(character: str) -> tuple[str, str]:
    return (f"text cannot begin with `{short(character)}` in YAML", "put it in quotes")
