"""What is checked, how and how often: data, as the configuration will give it; no I/O.

Every kind of check is a dataclass of its own. A `Probe` is one check of one target: equal probes
are one probe, so that services which share a server and a check ask it once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

from lbdr.model import Address, endpoint


class Transport(StrEnum):
    """What a negotiate check speaks over."""

    TCP = "tcp"
    TLS = "tls"
    UDP = "udp"


class LdapSecurity(StrEnum):
    """How an LDAP check is encrypted: not, by StartTLS (RFC 4513), or from the first byte."""

    NONE = "none"
    STARTTLS = "starttls"
    LDAPS = "ldaps"


class Initial(StrEnum):
    """What a server counts as until its checks have decided."""

    UP = "up"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class Timing:
    """When a check runs, and how many results in a row decide.

    Args:
        interval: seconds from one start to the next.
        timeout: seconds in which an answer must be complete.
        rise: passes in a row that bring a server up.
        fall: failures in a row that take it down.
        fast_interval: seconds between starts while a server is changing; None for interval.
        jitter: up to this share of an interval is left out at random, so that checks spread out;
            an interval never gets longer by it.
    """

    interval: float = 6.0
    timeout: float = 3.0
    rise: int = 2
    fall: int = 3
    fast_interval: float | None = None
    jitter: float = 0.1


@dataclass(frozen=True, slots=True)
class Target:
    """What a check is about.

    Args:
        address: the RIP.
        port: where its service listens; 0 where there is none (ping).
        source: own address that connections come from; None lets the kernel choose.
        vip: of the virtual service, for those checks that need it (`external`, `vip`). Leave it
            out for others, or services cannot share what they find.
        vip_port: 0 for any port.
    """

    address: Address
    port: int = 0
    source: Address | None = None
    vip: Address | None = None
    vip_port: int = 0

    def __str__(self) -> str:
        return endpoint(self.address, self.port) if self.port else str(self.address)


@dataclass(frozen=True, slots=True)
class Tls:
    """How a TLS connection is made.

    Args:
        server_name: sent as SNI, and the name that a verified certificate must have; empty for the
            server's address.
        verify: whether the certificate must be valid.
        ca_file: PEM file of the authorities; empty for the system's.
        certificate: PEM file of the client's certificate; empty for none.
        key: PEM file of its key; empty where the certificate's file has it.
    """

    server_name: str = ""
    verify: bool = False
    ca_file: str = ""
    certificate: str = ""
    key: str = ""


@dataclass(frozen=True, slots=True)
class Connect:
    """The port accepts a connection."""


@dataclass(frozen=True, slots=True)
class Negotiate:
    """Something is sent, and something is expected.

    Args:
        send: sent at once; empty waits for the server's greeting.
        expect: must occur in the answer; empty is satisfied by any answer.
        transport: tcp, tls or udp.
        tls: for tls.
        limit: bytes of an answer that are looked at.
    """

    send: bytes = b""
    expect: bytes = b""
    transport: Transport = Transport.TCP
    tls: Tls = field(default_factory=Tls)
    limit: int = 65536


@dataclass(frozen=True, slots=True)
class Http:
    """A request by HTTP/1.1 is answered as expected.

    Args:
        method: such as GET.
        path: with a query, if any.
        host: the Host header; empty for the server's address. It is SNI too, where tls names none.
        expect: status codes as ranges, both ends included.
        body: a regular expression to be found in the body; empty for none.
        body_limit: bytes of the body that are looked at.
        tls: None for plain HTTP.
    """

    method: str = "GET"
    path: str = "/"
    host: str = ""
    expect: tuple[tuple[int, int], ...] = ((200, 299),)
    body: str = ""
    body_limit: int = 65536
    tls: Tls | None = None


@dataclass(frozen=True, slots=True)
class External:
    """A program of the user's says so: exit status 0 is healthy.

    It gets VIP, VIP port, RIP and RIP port as arguments, and as VIP, VPT, RIP and RPT in its
    environment; a port is 0 where there is none.

    Args:
        command: absolute path.
        user: who runs it; empty for the daemon's own user, where that is not root.
        arguments: further ones, after the four.
    """

    command: str
    user: str = "nobody"
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Ping:
    """An echo request by ICMP or ICMPv6 is answered.

    Args:
        size: bytes of data.
    """

    size: int = 56


@dataclass(frozen=True, slots=True)
class Dns:
    """A resolver answers a query.

    Args:
        name: asked for.
        record: type of record: A, AAAA, SOA, NS, MX, PTR, TXT or SRV.
        expect: address that must be among the answers; None for any answer without an error.
        tcp: by TCP instead of UDP.
    """

    name: str
    record: str = "A"
    expect: Address | None = None
    tcp: bool = False


@dataclass(frozen=True, slots=True)
class DicomEcho:
    """A DICOM application entity answers a C-ECHO (PS3.7 section 9.3.5).

    Args:
        called_ae: the server's AE title, up to 16 characters.
        calling_ae: ours.
        tls: None for plain DICOM.
    """

    called_ae: str = "ANY-SCP"
    calling_ae: str = "LBDR"
    tls: Tls | None = None


@dataclass(frozen=True, slots=True)
class Hl7Mllp:
    """An HL7 v2 message by MLLP is acknowledged. A live system may act on it.

    Args:
        message: segments separated by carriage returns, without MLLP's own bytes.
        expect: acknowledgement codes (MSA-1) that are well.
        tls: None for plain MLLP.
    """

    message: str
    expect: tuple[str, ...] = ("AA", "CA")
    tls: Tls | None = None


@dataclass(frozen=True, slots=True)
class OracleTns:
    """An Oracle listener answers.

    Args:
        service_name: the listener must hand out connections to it; empty pings the listener alone.
    """

    service_name: str = ""


@dataclass(frozen=True, slots=True)
class Ldap:
    """A directory accepts a bind (RFC 4511).

    Args:
        security: none, starttls or ldaps.
        tls: for the latter two.
        bind_dn: empty for an anonymous bind.
        password: of bind_dn.
    """

    security: LdapSecurity = LdapSecurity.NONE
    tls: Tls = field(default_factory=Tls)
    bind_dn: str = ""
    password: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Smtp:
    """A mail server greets and answers EHLO (RFC 5321).

    Args:
        hello: the name that we give.
        starttls: whether STARTTLS must work.
        tls: for STARTTLS.
    """

    hello: str = "lbdr.invalid"
    starttls: bool = False
    tls: Tls = field(default_factory=Tls)


@dataclass(frozen=True, slots=True)
class Vip:
    """The service answers on the VIP itself, on this one server: it still has the VIP.

    A SYN goes to the VIP in a frame to the server's MAC; TCP only.
    """


@dataclass(frozen=True, slots=True)
class On:
    """Always up."""


@dataclass(frozen=True, slots=True)
class Off:
    """Always down."""


Check: TypeAlias = (
    Connect
    | Negotiate
    | Http
    | External
    | Ping
    | Dns
    | DicomEcho
    | Hl7Mllp
    | OracleTns
    | Ldap
    | Smtp
    | Vip
    | On
    | Off
)

KINDS: dict[type[Check], str] = {
    Connect: "connect",
    Negotiate: "negotiate",
    Http: "http",
    External: "external",
    Ping: "ping",
    Dns: "dns",
    DicomEcho: "dicom-echo",
    Hl7Mllp: "hl7-mllp",
    OracleTns: "oracle-tns",
    Ldap: "ldap",
    Smtp: "smtp",
    Vip: "vip",
    On: "on",
    Off: "off",
}
"""Every kind of check, and its name in the file."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One check of one target.

    Args:
        target: what is checked.
        check: how.
        timing: when, and how many results decide.
        initial: what the target counts as before they have.
    """

    target: Target
    check: Check
    timing: Timing = field(default_factory=Timing)
    initial: Initial = Initial.DOWN

    def __str__(self) -> str:
        return f"{KINDS[type(self.check)]} {self.target}"


@dataclass(frozen=True, slots=True)
class Agent:
    """A feedback agent on a real server, by HAProxy's agent-check protocol.

    Args:
        target: address and port, 3333 by custom.
        interval: seconds from one question to the next.
        timeout: seconds in which its line must be complete.
        send: sent first, with its line end; empty for nothing.
    """

    target: Target
    interval: float = 5.0
    timeout: float = 3.0
    send: bytes = b""
