"""DICOM: the association request is read and judged before any real server sees a byte of it."""

from __future__ import annotations

from lbdr.haproxy.model import ProxyService
from lbdr.haproxy.render import rules
from lbdr.haproxy.render.text import chunks, line, seconds

BUFFER = 40960  # more costs every service: memory, and the processor's cache
MAX_REQUEST = 39900  # of BUFFER, less what HAProxy reserves (tune.maxrewrite 1024)
REFUSALS = "lbdr:refused"
"""The table of refused associations: `service/reason` -> how many."""
_REFUSAL = "txn.lbdr_refusal"
# A worker that ends after a reload counts no server at all, and still serves what it has accepted.
_SERVING = ("!{", "stopping", "}")
_COUNTED = 10_000


def frontend(service: ProxyService) -> list[str]:
    """The lines of a frontend that take an association, route it or refuse it."""
    lines = [
        line("tcp-request", "inspect-delay", seconds(service.timeouts.request)),
        line("acl", "refused", f"var({_REFUSAL})", "-m", "found"),
        line("tcp-request", "content", "lua.lbdr_dicom"),
        # A connection on which nothing came, such as a monitor's, is no association.
        line(
            "tcp-request",
            "content",
            "reject",
            "if",
            "{",
            f"var({_REFUSAL})",
            "-m",
            "str",
            "empty",
            "}",
        ),
    ]
    lines += _known("called_aes", rules.CALLED, service.called_aes, "called-ae")
    lines += _known("calling_aes", rules.CALLING, service.calling_aes, "calling-ae")
    lines += rules.matching(service)
    refusing = rules.refusing(service)
    if refusing:
        lines.append(_refuse("rule", *rules.by_number(refusing)))
    lines += _without_server(service)
    lines += [
        line(
            "tcp-request",
            "content",
            "set-var-fmt(txn.lbdr_counted)",
            f"{service.name}/%[var({_REFUSAL})]",
            "if",
            "refused",
        ),
        line(
            "tcp-request",
            "content",
            "track-sc0",
            "var(txn.lbdr_counted)",
            "table",
            REFUSALS,
            "if",
            "refused",
        ),
        line("tcp-request", "content", "use-service", "lua.lbdr_dicom_refuse", "if", "refused"),
    ]
    lines += rules.acting(service)
    return lines


def refusals(peers: str) -> list[str]:
    """The lines of the table that counts refusals."""
    words = ("type", "string", "len", 96, "size", _COUNTED, "store", "conn_cnt", "peers", peers)
    return [f"backend {REFUSALS}", line("stick-table", *words)]


def _known(name: str, variable: str, titles: tuple[str, ...], reason: str) -> list[str]:
    if not titles:
        return []
    lines = [
        line("acl", name, f"var({variable})", "-m", "str", "--", *part)
        for part in chunks(title.strip(" ") for title in titles)
    ]
    return [*lines, _refuse(reason, f"!{name}")]


def _without_server(service: ProxyService) -> list[str]:
    """A pool in which no server can serve: the sender is told to come again."""
    lines: list[str] = []
    elsewhere: list[int] = []
    for name, numbers in rules.targets(service):
        elsewhere += numbers
        empty = ("{", f"nbsrv({name})", "eq", "0", "}", *_SERVING)
        lines.append(_refuse("no-server", *rules.by_number(numbers), *empty))
    empty = ("{", f"nbsrv({service.name})", "eq", "0", "}", *_SERVING)
    own = ("!{", *rules.by_number(elsewhere)[1:]) if elsewhere else ()
    lines.append(_refuse("no-server", *own, *empty))
    return lines


def _refuse(reason: str, *condition: str) -> str:
    words = (f"set-var({_REFUSAL})", f"str({reason})", "if", "!refused", *condition)
    return line("tcp-request", "content", *words)
