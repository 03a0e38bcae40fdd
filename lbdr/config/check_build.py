"""From a health check as written to what the health engine asks; and which keys go together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from lbdr.config.check_schema import Check
from lbdr.config.finding import Finding
from lbdr.config.yaml12 import Path
from lbdr.health import spec
from lbdr.model import Address, Ports

_TLS = frozenset({"verify", "ca", "certificate", "key", "server_name"})
_HTTP = frozenset({"method", "path", "host", "status", "body"})
_COMMON = frozenset(
    {"type", "interval", "timeout", "rise", "fall", "fast_interval", "initial", "ports", "source"}
)

OPTIONS: Mapping[str, frozenset[str]] = {
    "connect": frozenset(),
    "negotiate": _TLS | {"transport", "send", "send_hex", "expect", "expect_hex"},
    "http": _HTTP,
    "https": _HTTP | _TLS,
    "external": frozenset({"command", "arguments", "user"}),
    "ping": frozenset({"size"}),
    "dns": frozenset({"name", "record", "answer", "transport"}),
    "dicom-echo": _TLS | {"called_ae", "calling_ae", "tls"},
    "hl7-mllp": _TLS | {"message", "acknowledge", "tls"},
    "oracle-tns": frozenset({"service_name"}),
    "ldap": _TLS | {"security", "bind_dn", "password"},
    "smtp": _TLS | {"hello", "starttls"},
    "vip": frozenset(),
    "on": frozenset(),
    "off": frozenset(),
}
"""The keys of each type, beside those of all."""

_PORTLESS = ("ping", "on", "off")
_MOST_PORTS = 16  # of a service, that are checked where nothing is said
_NEEDED = {"external": "command", "dns": "name", "hl7-mllp": "message"}
_DEFAULT_TIMING = {
    "external": spec.Timing(interval=15.0, timeout=10.0),
    "dicom-echo": spec.Timing(timeout=5.0),
}


def findings(base: Path, check: Check) -> Iterator[Finding]:
    """What is wrong between the keys of a check.

    Args:
        base: where it stands.
        check: each of whose values is valid by itself.
    """
    yield from _foreign(base, check)
    yield from _needed(base, check)
    yield from _tls_findings(base, check, check.model_fields_set)
    if check.type == "dns" and check.transport == "tls":
        yield Finding((*base, "transport"), "a dns check goes by udp or tcp", "write tcp")
    if check.fast_interval is not None and check.fast_interval > timing(check).interval:
        yield Finding(
            (*base, "fast_interval"),
            "`fast_interval` is longer than the interval",
            "it is for servers that are changing: make it shorter, or leave it out",
        )
    if check.type in _PORTLESS and check.ports is not None:
        yield Finding(
            (*base, "ports"), f"a check of type {check.type} has no ports", "leave out `ports`"
        )


def _foreign(base: Path, check: Check) -> Iterator[Finding]:
    for key in sorted(check.model_fields_set - OPTIONS[check.type] - _COMMON):
        owners = [name for name, keys in OPTIONS.items() if key in keys]
        message = f"`{key}` means nothing for a check of type {check.type}"
        yield Finding((*base, key), message, f"it belongs to {', '.join(owners)}", key=True)


def _needed(base: Path, check: Check) -> Iterator[Finding]:
    written = check.model_fields_set
    needed = _NEEDED.get(check.type)
    if needed is not None and needed not in written:
        yield Finding(base, f"a check of type {check.type} needs `{needed}`", f"add `{needed}`")
    for key in ("send", "expect"):
        if {key, f"{key}_hex"} <= written:
            path = (*base, f"{key}_hex")
            yield Finding(path, f"`{key}` and `{key}_hex` both stand here", "remove one")
    if check.type == "negotiate":
        sends = bool(written & {"send", "send_hex"})
        if not sends and not written & {"expect", "expect_hex"}:
            message = "a negotiate check needs something to send, or to expect"
            yield Finding(base, message, "add `send` or `expect`")
        elif not sends and check.transport == "udp":
            message = "a negotiate check by UDP needs something to send"
            yield Finding(base, message, "add `send`")
    if (check.password is None) != (check.bind_dn is None):
        yield Finding(base, "`bind_dn` and `password` go together", "write both, or neither")


def needs_ports(base: Path, check: Check, ports: Ports) -> Iterator[Finding]:
    """A check that must say which ports it is about, for its service has any or too many.

    Args:
        base: where it stands.
        check: of the service.
        ports: the service's.
    """
    if check.ports is not None or check.type in {*_PORTLESS, "external"}:
        return
    if not are_few(ports):
        has = "any port" if ports.any else f"more than {_MOST_PORTS} ports"
        message = f"the service has {has}: which of them are to be checked?"
        yield Finding(base, message, "add `ports` to the check, such as ports: [104]")


def _tls_findings(base: Path, check: Check, written: set[str]) -> Iterator[Finding]:
    used = written & _TLS & OPTIONS[check.type]
    if used and tls(check) is None:
        switch = {
            "negotiate": "transport: tls",
            "ldap": "security: starttls",
            "smtp": "starttls: true",
        }.get(check.type, "tls: true")
        for key in sorted(used):
            yield Finding((*base, key), f"`{key}` is for TLS", f"add `{switch}`", key=True)
    if "ca" in used and not check.verify:
        yield Finding(
            (*base, "ca"), "`ca` means nothing while nothing is verified", "add `verify: true`"
        )
    if "key" in used and "certificate" not in used:
        yield Finding((*base, "key"), "`key` without `certificate`", "add `certificate`")


def timing(check: Check) -> spec.Timing:
    """When a check runs."""
    default = _DEFAULT_TIMING.get(check.type, spec.Timing())
    return replace(
        default,
        interval=check.interval if check.interval is not None else default.interval,
        timeout=check.timeout if check.timeout is not None else default.timeout,
        rise=check.rise,
        fall=check.fall,
        fast_interval=check.fast_interval,
    )


def tls(check: Check) -> spec.Tls | None:
    """How a check is encrypted; None where it is not."""
    wanted = (
        check.type == "https"
        or bool(check.tls)
        or bool(check.starttls)
        or (check.type == "negotiate" and check.transport == "tls")
        or check.security not in (None, "none")
    )
    if not wanted:
        return None
    return spec.Tls(
        server_name=check.server_name or "",
        verify=bool(check.verify),
        ca_file=check.ca or "",
        certificate=check.certificate or "",
        key=check.key or "",
    )


def check_of(check: Check) -> spec.Check:
    """What a check asks.

    Args:
        check: one in which `findings` found nothing wrong.
    """
    return _BUILDERS[check.type](check)


def probes_of(check: Check, server: Address, vip: Address, ports: Ports) -> tuple[spec.Probe, ...]:
    """What is asked of a real server of a virtual service: each port by a probe of its own.

    A program of the user's runs once, with the port 0 where the service has not exactly one.

    Args:
        check: one in which `findings` and `needs_ports` found nothing wrong.
        server: the RIP.
        vip: of the service.
        ports: the service's.
    """
    if check.type in _PORTLESS:
        numbers: Sequence[int] = (0,)
    elif check.ports is not None:
        numbers = sorted(set(check.ports))
    elif check.type == "external":
        numbers = (ports.single or 0,)
    else:
        numbers = _each(ports)
    with_vip = check.type in ("external", "vip")
    asked, when = check_of(check), timing(check)
    return tuple(
        spec.Probe(
            spec.Target(
                server,
                number,
                check.source,
                vip if with_vip else None,
                number if with_vip else 0,
            ),
            asked,
            when,
            spec.Initial(check.initial),
        )
        for number in numbers
    )


def are_few(ports: Ports) -> bool:
    """Whether ports can be checked one by one, all of them."""
    return not ports.any and len(_each(ports)) <= _MOST_PORTS


def _each(ports: Ports) -> list[int]:
    """The ports one by one; a few more than may be checked at most."""
    found: list[int] = []
    for part in ports.ranges:
        found += range(part.first, min(part.last, part.first + _MOST_PORTS) + 1)
    return found


def _negotiate(check: Check) -> spec.Negotiate:
    return spec.Negotiate(
        send=check.send_hex or (check.send or "").encode(),
        expect=check.expect_hex or (check.expect or "").encode(),
        transport=spec.Transport(check.transport or "tcp"),
        tls=tls(check) or spec.Tls(),
    )


def _http(check: Check) -> spec.Http:
    default = spec.Http()
    return spec.Http(
        method=check.method or default.method,
        path=check.path or default.path,
        host=check.host or "",
        expect=tuple(check.status) if check.status else default.expect,
        body=check.body or "",
        tls=tls(check),
    )


def _external(check: Check) -> spec.External:
    user = check.user or spec.External("").user
    return spec.External(check.command or "", user, tuple(check.arguments or ()))


def _dns(check: Check) -> spec.Dns:
    return spec.Dns(check.name or "", check.record or "A", check.answer, check.transport == "tcp")


def _dicom(check: Check) -> spec.DicomEcho:
    default = spec.DicomEcho()
    return spec.DicomEcho(
        check.called_ae or default.called_ae, check.calling_ae or default.calling_ae, tls(check)
    )


def _hl7(check: Check) -> spec.Hl7Mllp:
    accepted = tuple(check.acknowledge or spec.Hl7Mllp("").expect)
    return spec.Hl7Mllp(check.message or "", accepted, tls(check))


def _ldap(check: Check) -> spec.Ldap:
    return spec.Ldap(
        spec.LdapSecurity(check.security or "none"),
        tls(check) or spec.Tls(),
        check.bind_dn or "",
        check.password or "",
    )


def _smtp(check: Check) -> spec.Smtp:
    hello = check.hello or spec.Smtp().hello
    return spec.Smtp(hello, bool(check.starttls), tls(check) or spec.Tls())


_BUILDERS: Mapping[str, Callable[[Check], spec.Check]] = {
    "connect": lambda _: spec.Connect(),
    "negotiate": _negotiate,
    "http": _http,
    "https": _http,
    "external": _external,
    "ping": lambda check: spec.Ping(check.size or spec.Ping().size),
    "dns": _dns,
    "dicom-echo": _dicom,
    "hl7-mllp": _hl7,
    "oracle-tns": lambda check: spec.OracleTns(check.service_name or ""),
    "ldap": _ldap,
    "smtp": _smtp,
    "vip": lambda _: spec.Vip(),
    "on": lambda _: spec.On(),
    "off": lambda _: spec.Off(),
}
