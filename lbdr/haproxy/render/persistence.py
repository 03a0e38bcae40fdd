"""Persistence: stick tables, kept over reloads by peers, and cookies."""

from __future__ import annotations

import hashlib

from lbdr.haproxy.model import PersistenceKind, ProxyPersistence
from lbdr.haproxy.render.text import line, seconds

PEERS = "lbdr"
_FORWARDED = "txn.lbdr_forwarded"
_HELLO_WAIT = 5  # seconds in which a client shows its cookie or session
_SESSION_ID = 32  # bytes (RFC 5246 7.4.1.2)


MARKERS = {"ip": "0.0.0.0", "ipv6": "::", "string": "lbdr-handed-over"}  # noqa: S104  # a key
"""A key of each type of table that no client has: it is handed over last."""


def of_backend(name: str, persistence: ProxyPersistence, *, ipv6: bool, secure: bool) -> list[str]:
    """The lines of a backend.

    Args:
        name: the pool's.
        persistence: what is wanted.
        ipv6: the table has to take IPv6 addresses too.
        secure: every client speaks TLS.
    """
    match persistence.kind:
        case PersistenceKind.SOURCE:
            kind = "ipv6" if ipv6 else "ip"
            return [
                _table(persistence, kind),
                *_handed_over(name, kind),
                line("stick", "on", _masked("src", persistence)),
            ]
        case PersistenceKind.FORWARDED_FOR:
            return [
                _table(persistence, "ipv6"),  # whatever our own addresses are
                *_handed_over(name, "ipv6"),
                # Taken before our own proxy adds the address that it sees.
                line(
                    "http-request",
                    f"set-var({_FORWARDED})",
                    "req.hdr_ip(X-Forwarded-For,-1)",
                ),
                line("stick", "on", _masked(f"var({_FORWARDED})", persistence)),
                line("stick", "on", _masked("src", persistence)),
            ]
        case PersistenceKind.COOKIE:
            words = ["cookie", persistence.cookie, "insert", "indirect", "nocache", "httponly"]
            if secure:
                words.append("secure")
            if persistence.timeout:
                words += ["maxidle", seconds(persistence.timeout)]
            return [line(*words)]
        case PersistenceKind.RDP_COOKIE:
            return [
                _table(persistence, "string", "len", "128"),
                *_handed_over(name, "string"),
                line("tcp-request", "content", "accept", "if", "RDP_COOKIE"),
                line("persist", "rdp-cookie"),  # what a session broker answered
                line("stick", "on", "req.rdp_cookie(mstshash)"),
            ]
        case PersistenceKind.TLS_SESSION:
            return [
                _table(persistence, "binary", "len", str(_SESSION_ID)),
                line("acl", "client_hello", "req.ssl_hello_type", 1),
                line("acl", "server_hello", "res.ssl_hello_type", 2),
                line("tcp-request", "inspect-delay", seconds(_HELLO_WAIT)),
                line("tcp-request", "content", "accept", "if", "client_hello"),
                line("tcp-response", "content", "accept", "if", "server_hello"),
                # record 5, handshake 4, version 2, random 32: the session's id and its length
                line("stick", "on", "req.payload_lv(43,1)", "if", "client_hello"),
                line("stick", "store-response", "res.payload_lv(43,1)", "if", "server_hello"),
            ]


def has_cookie(persistence: ProxyPersistence | None) -> bool:
    """Whether servers need a cookie's value."""
    return persistence is not None and persistence.kind is PersistenceKind.COOKIE


def _table(persistence: ProxyPersistence, *kind: str) -> str:
    return line(
        "stick-table",
        "type",
        *kind,
        "size",
        persistence.size,
        "expire",
        seconds(persistence.timeout),
        "peers",
        PEERS,
    )


def _handed_over(name: str, kind: str) -> list[str]:
    """After a reload, the first connections wait for what the worker before knows."""
    whole = f"proc.lbdr_whole_{hashlib.sha256(name.encode()).hexdigest()[:12]}"
    first = ("if", "!whole")
    return [
        line("acl", "whole", f"var({whole})", "-m", "found"),
        line("tcp-request", "inspect-delay", seconds(_HELLO_WAIT)),
        line("tcp-request", "content", "lua.lbdr_handover", name, MARKERS[kind], *first),
        line("tcp-request", "content", f"set-var({whole})", "bool(true)", *first),
    ]


def _masked(fetch: str, persistence: ProxyPersistence) -> str:
    if persistence.granularity == 32 and persistence.granularity6 == 128:
        return fetch
    return f"{fetch},ipmask({persistence.granularity},{persistence.granularity6})"
