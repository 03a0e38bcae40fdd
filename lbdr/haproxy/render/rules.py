"""Rules: the first that matches is remembered by its number, and the number decides."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

from lbdr.haproxy import sop_classes
from lbdr.haproxy.matching import (
    Condition,
    Redirect,
    Refuse,
    Rule,
    ToBackend,
    ToServer,
)
from lbdr.haproxy.model import ProxyProtocol, ProxyService
from lbdr.haproxy.render.text import chunks, formatted, line

RULE = "txn.lbdr_rule"
CALLED = "txn.lbdr_called"
CALLING = "txn.lbdr_calling"
SOP_CLASSES = "txn.lbdr_sop_classes"
"""All UIDs that an association proposes, each between two spaces."""

_SIMPLE = {
    "source": ("src",),
    "path": ("path", "-m", "str"),
    "path_prefix": ("path", "-m", "beg"),
    "path_suffix": ("path", "-m", "end"),
    "path_regex": ("path", "-m", "reg"),
    "method": ("method",),
    "tls_server_name": ("req.ssl_sni", "-i", "-m", "str"),
    "called_ae": (f"var({CALLED})", "-m", "str"),
    "calling_ae": (f"var({CALLING})", "-m", "str"),
}


def matching(service: ProxyService) -> list[str]:
    """The lines of a frontend that find the rule's number."""
    lines: list[str] = []
    for number, rule in enumerate(service.rules, 1):
        names: list[str] = []
        for name, *criterion in _criteria(rule.when, f"r{number}_"):
            names.append(name)
            lines.append(line("acl", name, *criterion))
        names = list(dict.fromkeys(names))
        if number > 1:
            names.insert(0, "!decided")
        condition = ("if", *names) if names else ()
        lines.append(line(*_ruleset(service), f"set-var({RULE})", f"int({number})", *condition))
    if len(service.rules) > 1:
        lines.insert(0, line("acl", "decided", f"var({RULE})", "-m", "found"))
    return lines


def acting(service: ProxyService) -> list[str]:
    """The lines of a frontend that do what the rule says, but for leading to a pool."""
    lines: list[str] = []
    for number, rule in enumerate(service.rules, 1):
        chosen = _chosen(number)
        if rule.priority:
            priority = f"int({rule.priority})"
            lines.append(line(*_ruleset(service), "set-priority-class", priority, *chosen))
        match rule.action:
            case Redirect(to, code):
                where = ("location", formatted(to), "code", code)
                lines.append(line("http-request", "redirect", *where, *chosen))
            case Refuse() if service.protocol is ProxyProtocol.HTTP:
                lines.append(line("http-request", "deny", "deny_status", 403, *chosen))
            case Refuse() if service.protocol is ProxyProtocol.TCP:
                lines.append(line("tcp-request", "content", "reject", *chosen))
    return lines


def leading(service: ProxyService) -> list[str]:
    """The lines of a frontend that lead to a pool."""
    return [
        line("use_backend", rule.action.backend, *_chosen(number))
        for number, rule in enumerate(service.rules, 1)
        if isinstance(rule.action, ToBackend)
    ]


def servers(service: ProxyService) -> list[str]:
    """The lines of a backend that lead to one of its servers."""
    return [
        line("use-server", rule.action.server, *_chosen(number))
        for number, rule in enumerate(service.rules, 1)
        if isinstance(rule.action, ToServer)
    ]


def refusing(service: ProxyService) -> list[int]:
    """The numbers of the rules that refuse."""
    return [
        number for number, rule in enumerate(service.rules, 1) if isinstance(rule.action, Refuse)
    ]


def targets(service: ProxyService) -> list[tuple[str, list[int]]]:
    """The other pools that rules lead to, with the numbers of the rules."""
    found: dict[str, list[int]] = {}
    for number, rule in enumerate(service.rules, 1):
        if isinstance(rule.action, ToBackend):
            found.setdefault(rule.action.backend, []).append(number)
    return list(found.items())


def needs_tls_hello(rules: tuple[Rule, ...]) -> bool:
    """Whether a rule looks at the first message of TLS that passes through."""
    return any(rule.when.tls_server_name for rule in rules)


def by_number(numbers: list[int]) -> tuple[str, ...]:
    """An anonymous condition: one of these rules decided."""
    return ("{", f"var({RULE})", "-m", "int", *(str(number) for number in numbers), "}")


def _chosen(number: int) -> tuple[str, ...]:
    return ("if", *by_number([number]))


def _ruleset(service: ProxyService) -> tuple[str, ...]:
    if service.protocol is ProxyProtocol.HTTP:
        return ("http-request",)
    return ("tcp-request", "content")


def _criteria(when: Condition, prefix: str) -> Iterator[tuple[str, ...]]:
    """Name, criterion and patterns; lines of one name are alternatives."""
    for key, criterion in _SIMPLE.items():
        values = [
            str(value).strip(" ") if "_ae" in key else str(value) for value in getattr(when, key)
        ]
        yield from _patterns(prefix + key, criterion, values)
    host = ("req.hdr(host),host_only", "-i", "-m")
    exact = [name for name in when.host if not name.startswith("*.")]
    below = [name.removeprefix("*") for name in when.host if name.startswith("*.")]
    yield from _patterns(prefix + "host", (*host, "str"), exact)
    yield from _patterns(prefix + "host", (*host, "end"), below)
    numbers = count(1)
    for header in when.headers:
        name, fetch = f"{prefix}header{next(numbers)}", f"req.fhdr({header.name})"
        yield from _patterns(name, (fetch, "-m", "str"), header.values)
        yield from _patterns(name, (fetch, "-m", "reg"), header.patterns)
        if not header.values and not header.patterns:
            yield (name, fetch, "-m", "found")
    for parameter in when.query:
        name, fetch = f"{prefix}query{next(numbers)}", f"urlp({parameter.name})"
        yield from _patterns(name, (fetch, "-m", "str"), parameter.values)
        if not parameter.values:
            yield (name, fetch, "-m", "found")
    uids = [f" {uid} " for uid in when.sop_class]
    yield from _patterns(prefix + "sop_class", (f"var({SOP_CLASSES})", "-m", "sub"), uids)
    uids = [f" {uid} " for name in when.modality for uid in sop_classes.of_modality(name)]
    yield from _patterns(prefix + "modality", (f"var({SOP_CLASSES})", "-m", "sub"), uids)


def _patterns(
    name: str, criterion: tuple[str, ...], values: list[str] | tuple[str, ...]
) -> Iterator[tuple[str, ...]]:
    for part in chunks(values):
        yield (name, *criterion, "--", *part)
