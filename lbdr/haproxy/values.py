"""Single values of a proxy service: why one cannot be taken; pure.

Each function gives the reason, or nothing for a value that can be taken.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import urlsplit

from lbdr.haproxy.render.text import (
    PLACEHOLDERS,
    REQUEST_ONLY,
    RESPONSE_ONLY,
    placeholders,
    stray_brace,
)

MAX_TEXT = 1000  # a line holds several, and a person reads them
MAX_AE = 16  # DICOM PS3.5 6.2, AE
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
_TOKEN = re.compile(r"[A-Za-z0-9_.-]{1,100}")
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?")
_MIME = re.compile(r"[A-Za-z0-9.+-]+/[A-Za-z0-9.+*-]+")
_METHOD = re.compile(r"[A-Z]{1,20}")
_UID = re.compile(r"(?:0|[1-9][0-9]*)(?:\.(?:0|[1-9][0-9]*))+")
_REFERENCE = re.compile(r"\\[0-9]")

Reason = str
Check = Callable[[str], Reason]


def name(value: str) -> Reason:
    """A name that the user gave: it becomes a name of HAProxy's too."""
    if _NAME.fullmatch(value):
        return ""
    return "is no name: a letter, then at most 63 letters, digits, `_`, `-` or `.`"


def text(value: str) -> Reason:
    """Any text of one line."""
    if not value:
        return "is empty"
    if len(value) > MAX_TEXT:
        return f"is longer than {MAX_TEXT} characters"
    for character in value:
        if not character.isprintable():
            return f"has the character U+{ord(character):04X}, which cannot be printed"
    return ""


def ascii_text(value: str) -> Reason:
    """Text that stands in a request's line or header as it is."""
    if reason := text(value):
        return reason
    return "" if value.isascii() else "has characters that are not ASCII: encode them (%C3%A9)"


def url_text(value: str) -> Reason:
    """A piece of a path as clients send it."""
    if reason := ascii_text(value):
        return reason
    return "has a space: clients send it as %20" if " " in value else ""


def path(value: str) -> Reason:
    """A path, or its beginning."""
    if reason := url_text(value):
        return reason
    return "" if value.startswith("/") else "does not start with /"


def token(value: str) -> Reason:
    """A name of a header, a cookie or a parameter."""
    if _TOKEN.fullmatch(value):
        return ""
    return "is no name: at most 100 letters, digits, `_`, `-` or `.`"


def method(value: str) -> Reason:
    """An HTTP method."""
    return "" if _METHOD.fullmatch(value) else "is no HTTP method: GET, POST and the like"


def mime_type(value: str) -> Reason:
    """A MIME type."""
    return "" if _MIME.fullmatch(value) and len(value) <= MAX_TEXT else "is no MIME type"


def host_name(value: str) -> Reason:
    """A name in DNS; one label may stand alone."""
    if len(value) <= 253 and _HOST_NAME.fullmatch(value):
        return ""
    return "is no host name"


def host_pattern(value: str) -> Reason:
    """A host name, or `*.` and one."""
    return host_name(value.removeprefix("*."))


def file(value: str) -> Reason:
    """The path of a file."""
    if reason := text(value):
        return reason
    return "" if value.startswith("/") else "is no absolute path"


def regex(value: str) -> Reason:
    """A regular expression: HAProxy reads it with PCRE, which rarely differs from Python's."""
    if reason := ascii_text(value):
        return reason
    try:
        re.compile(value)
    except (re.error, OverflowError, RecursionError) as error:
        return f"is no regular expression: {error}"
    return ""


def template(value: str, *, response: bool = False, empty: bool = False) -> Reason:
    """A text with placeholders."""
    if reason := "" if empty and not value else ascii_text(value):
        return reason
    if stray_brace(value):
        return "has a brace that is no placeholder's: write {{ or }}"
    unknown_here = REQUEST_ONLY if response else RESPONSE_ONLY
    for found in placeholders(value):
        if found not in PLACEHOLDERS:
            return f"has {{{found}}}, which is none of {', '.join(sorted(PLACEHOLDERS))}"
        if found in unknown_here:
            return f"has {{{found}}}, which a {'response' if response else 'request'} does not know"
    return ""


def replacement(value: str, *, response: bool = False) -> Reason:
    """A template with references to groups."""
    if reason := template(value, response=response, empty=True):
        return reason
    if "\\" in _REFERENCE.sub("", value):
        return "has a backslash that is no reference: \\0 to \\9"
    return ""


def location(value: str) -> Reason:
    """Where a redirection leads."""
    if reason := template(value):
        return reason
    if " " in value:
        return "has a space: write %20"
    if value.startswith(("/", "{scheme}://")) or urlsplit(value).scheme in {"http", "https"}:
        return ""
    return "is neither a path nor a URL of http or https"


def ae_title(value: str) -> Reason:
    """An application entity's title (PS3.5 6.2): spaces around it mean nothing."""
    stripped = value.strip(" ")
    if not stripped or len(stripped) > MAX_AE:
        return f"is no AE title: 1 to {MAX_AE} characters, not all spaces"
    if not stripped.isascii() or not stripped.isprintable() or "\\" in stripped:
        return "is no AE title: ASCII without backslash and control characters"
    return ""


def uid(value: str) -> Reason:
    """A UID (PS3.5 9)."""
    return "" if len(value) <= 64 and _UID.fullmatch(value) else "is no UID"
