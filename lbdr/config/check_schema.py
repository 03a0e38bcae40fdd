"""A health check as a user writes it: one section, in which `type` tells which keys mean something.

What belongs to which type, and what it needs, is in check_build.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from lbdr import model
from lbdr.config.check_values import (
    AE_TITLE,
    DOMAIN_NAME,
    FILE,
    HOST_NAME,
    Content,
    Expression,
    HexBytes,
    Line,
    StatusCodes,
)
from lbdr.config.durations import Duration
from lbdr.config.network_values import IpAddress
from lbdr.config.section import Section
from lbdr.config.values import Choice, Switch, Whole, wrong
from lbdr.health import spec

TYPES = (
    "connect",
    "negotiate",
    "http",
    "https",
    "external",
    "ping",
    "dns",
    "dicom-echo",
    "hl7-mllp",
    "oracle-tns",
    "ldap",
    "smtp",
    "vip",
    "on",
    "off",
)
RECORDS = ("A", "AAAA", "SOA", "NS", "MX", "PTR", "TXT", "SRV")
METHODS = ("GET", "HEAD", "OPTIONS", "POST")


class Check(Section):
    """How it is known whether a real server can serve."""

    noun = "settings of a health check, such as {type: connect}"
    where = "in `check`"

    type: Annotated[str, Choice(TYPES, "check")] = Field(
        description="What is asked.", examples=["connect"]
    )
    interval: Annotated[float | None, Duration("100ms", "1h")] = Field(
        default=None,
        description="From one start to the next: 6s where left out, 15s for external.",
    )
    timeout: Annotated[float | None, Duration("50ms", "5m")] = Field(
        default=None,
        description="In which the answer must be complete: 3s where left out, 5s for dicom-echo, "
        "10s for external.",
    )
    rise: Annotated[int, Whole(1, 100)] = Field(
        default=spec.Timing().rise, description="Passes in a row that bring a server up."
    )
    fall: Annotated[int, Whole(1, 100)] = Field(
        default=spec.Timing().fall, description="Failures in a row that take it down."
    )
    fast_interval: Annotated[float | None, Duration("100ms", "1h")] = Field(
        default=None, description="While a server is changing; the interval where left out."
    )
    initial: Annotated[str, Choice(tuple(spec.Initial), "initial")] = Field(
        default=spec.Initial.UP.value,
        description="What a server counts as until its first check: up, or down.",
    )
    ports: list[Annotated[int, Whole(1, 65535)]] | None = Field(
        default=None, description="Which are checked, each of them: the service's where left out."
    )
    source: Annotated[model.Address | None, IpAddress()] = Field(
        default=None, description="An address of this director that checks come from."
    )

    # --- http, https ---
    method: Annotated[str | None, Choice(METHODS, "method")] = Field(
        default=None, description="http: the method; GET where left out."
    )
    path: Annotated[str | None, Line("a path that begins with /", 2048, r"/[!-~]*")] = Field(
        default=None, description="http: with a query, if any; / where left out."
    )
    host: Annotated[str | None, HOST_NAME] = Field(
        default=None, description="http: the Host header, and SNI; the address where left out."
    )
    status: list[Annotated[tuple[int, int], StatusCodes()]] | None = Field(
        default=None, description="http: codes that are well; [200-299] where left out."
    )
    body: Annotated[str | None, Expression()] = Field(
        default=None, description="http: to be found in the first 64 KiB of the body."
    )

    # --- negotiate ---
    transport: Annotated[str | None, Choice(tuple(spec.Transport), "transport")] = Field(
        default=None, description="negotiate: tcp, tls or udp; dns: tcp or udp."
    )
    send: Annotated[str | None, Content()] = Field(
        default=None, description="negotiate: sent at once; the greeting is waited for without it."
    )
    send_hex: Annotated[bytes | None, HexBytes()] = Field(
        default=None, description="negotiate: the same, as bytes."
    )
    expect: Annotated[str | None, Content()] = Field(
        default=None, description="negotiate: must occur in the answer; any answer without it."
    )
    expect_hex: Annotated[bytes | None, HexBytes()] = Field(
        default=None, description="negotiate: the same, as bytes."
    )

    # --- external ---
    command: Annotated[str | None, FILE] = Field(
        default=None,
        description="external: run with VIP, VIP port, RIP and RIP port; status 0 is healthy.",
    )
    arguments: list[Annotated[str, Line("an argument", 1024)]] | None = Field(
        default=None, description="external: after these four."
    )
    user: Annotated[str | None, Line("a user's name", 32, r"[a-z_][a-z0-9_-]*\$?")] = Field(
        default=None, description="external: who runs it; nobody where left out, never root."
    )

    # --- ping, dns ---
    size: Annotated[int | None, Whole(8, 65000)] = Field(
        default=None, description="ping: bytes of data; 56 where left out."
    )
    name: Annotated[str | None, DOMAIN_NAME] = Field(
        default=None, description="dns: the name that is asked for."
    )
    record: Annotated[str | None, Choice(RECORDS, "record")] = Field(
        default=None, description="dns: the type of record; A where left out."
    )
    answer: Annotated[model.Address | None, IpAddress()] = Field(
        default=None, description="dns: an address that must be among the answers."
    )

    # --- dicom-echo, hl7-mllp, oracle-tns ---
    called_ae: Annotated[str | None, AE_TITLE] = Field(
        default=None, description="dicom-echo: the server's AE title; ANY-SCP where left out."
    )
    calling_ae: Annotated[str | None, AE_TITLE] = Field(
        default=None, description="dicom-echo: ours; LBDR where left out."
    )
    message: Annotated[str | None, Content()] = Field(
        default=None, description="hl7-mllp: an HL7 v2 message. A live system may act on it."
    )
    acknowledge: list[Annotated[str, Line("a code such as AA", 2, "[A-Z]{2}")]] | None = Field(
        default=None, description="hl7-mllp: codes in MSA-1 that are well; [AA, CA]."
    )
    service_name: Annotated[str | None, Line("a service's name", 255, r"[A-Za-z0-9_.#$-]+")] = (
        Field(default=None, description="oracle-tns: must be known; the listener alone without it.")
    )

    # --- ldap, smtp ---
    security: Annotated[str | None, Choice(tuple(spec.LdapSecurity), "security")] = Field(
        default=None, description="ldap: none, starttls or ldaps."
    )
    bind_dn: Annotated[str | None, Line("a distinguished name", 1024)] = Field(
        default=None, description="ldap: who binds; anonymous where left out."
    )
    password: Annotated[str | None, Line("a password", 255)] = Field(
        default=None, description="ldap: of bind_dn. Whoever reads this file reads it."
    )
    hello: Annotated[str | None, DOMAIN_NAME] = Field(
        default=None, description="smtp: the name that we give."
    )
    starttls: Annotated[bool | None, Switch()] = Field(
        default=None, description="smtp: whether STARTTLS must work."
    )

    # --- TLS ---
    tls: Annotated[bool | None, Switch()] = Field(
        default=None, description="dicom-echo, hl7-mllp: by TLS."
    )
    verify: Annotated[bool | None, Switch()] = Field(
        default=None, description="TLS: whether the certificate must be valid; false if left out."
    )
    ca: Annotated[str | None, FILE] = Field(
        default=None, description="TLS: the authorities, in PEM; the system's where left out."
    )
    certificate: Annotated[str | None, FILE] = Field(
        default=None, description="TLS: ours, in PEM, for a server that asks for one."
    )
    key: Annotated[str | None, FILE] = Field(
        default=None, description="TLS: of that certificate, where its file has none."
    )
    server_name: Annotated[str | None, DOMAIN_NAME] = Field(
        default=None, description="TLS: SNI, and the name that a valid certificate must have."
    )


def _several(value: Any) -> Any:
    """A word, a mapping, or a list of these."""
    if value is None or value == []:
        raise wrong("a check, such as connect or {type: dicom-echo}, or the key left out")
    checks = value if isinstance(value, list) else [value]
    return [{"type": check} if isinstance(check, str) else check for check in checks]


Checks = Annotated[list[Check], BeforeValidator(_several)]
"""One check or several, all of which must pass."""
