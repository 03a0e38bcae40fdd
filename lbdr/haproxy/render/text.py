"""Words of haproxy.cfg from what users write, so that nothing of it is read as configuration.

HAProxy reads a line in layers (configuration.txt, 2.2 and 8.2.4): words with quotes and
backslashes, then, in some places, a format in which `%` means something, then arguments of
functions. Every word goes through `quote`, every format through `formatted`; what stands inside a
function's parentheses is never a user's own text, but a value of which `lbdr.haproxy.values` knows
that it is harmless.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

_PLAIN = re.compile(r"[A-Za-z0-9_.:/@+,=\[\]()*!{}<>^?|;~&-]+")
_WORDS = 32  # of one list on a line; HAProxy takes 64 words (MAX_LINE_ARGS)
_PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([a-z_]+)\}")

PLACEHOLDERS = {
    "client_address": "%[src]",
    "client_port": "%[src_port]",
    "address": "%[dst]",
    "port": "%[dst_port]",
    "scheme": "%[ssl_fc,iif(https,http)]",
    "tls_server_name": "%[ssl_fc_sni]",
    "host": "%[req.hdr(host)]",
    "path": "%[path]",
    "query": "%[query]",
    "server": "%s",
}
"""What `{name}` in a header's value, a replacement or a redirection stands for."""
REQUEST_ONLY = frozenset({"host", "path", "query"})
"""Placeholders that an answer knows nothing of any more."""
RESPONSE_ONLY = frozenset({"server"})
"""Placeholders that a request knows nothing of yet."""


def quote(word: str) -> str:
    """One word of a line; single quotes keep everything but themselves as it is."""
    if _PLAIN.fullmatch(word):
        return word
    return "'" + word.replace("'", "'\\''") + "'"


def line(*words: str | int) -> str:
    """A line of a section."""
    return "    " + " ".join(quote(str(word)) for word in words)


def chunks(words: Iterable[str]) -> Iterator[Sequence[str]]:
    """A list in parts that are short enough for a line."""
    found = list(words)
    for start in range(0, len(found), _WORDS):
        yield found[start : start + _WORDS]


def formatted(text: str) -> str:
    """A format of HAProxy's from a text with placeholders; `{{` and `}}` are braces."""
    parts: list[str] = []
    last = 0
    for found in _PLACEHOLDER.finditer(text):
        parts.append(text[last : found.start()].replace("%", "%%"))
        if found[1]:
            parts.append(PLACEHOLDERS[found[1]])
        else:
            parts.append(found[0][0])
        last = found.end()
    return "".join(parts) + text[last:].replace("%", "%%")


def placeholders(text: str) -> list[str]:
    """The names that stand in braces, known or not."""
    return [found[1] for found in _PLACEHOLDER.finditer(text) if found[1]]


def stray_brace(text: str) -> bool:
    """Whether a brace is neither doubled nor part of a placeholder."""
    return any(brace in _PLACEHOLDER.sub("", text) for brace in "{}")


def seconds(value: float) -> str:
    """A time, in milliseconds where it is no whole number of seconds."""
    return f"{int(value)}s" if value == int(value) else f"{round(value * 1000)}ms"
