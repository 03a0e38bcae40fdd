"""The schema for editors and programs, and the reference for people; both from the models."""

from __future__ import annotations

from typing import Any

from pydantic.fields import FieldInfo

from lbdr.config import schema
from lbdr.config.check_schema import TYPES
from lbdr.config.durations import Duration
from lbdr.config.section import Section
from lbdr.config.values import Name, Value, Whole

_TITLE = "lbdr configuration"
_SHORTHANDS: dict[str, dict[str, Any]] = {
    "RealServerUse": Name().json_schema(),
    "SorryServer": Name().json_schema(),
    "Persistence": Duration("1s", "31d", whole=True).json_schema(),
    "Check": {"type": "string", "enum": list(TYPES)},
    "Quorum": Whole(1, 1 << 24).json_schema(),
}
"""What may stand in place of the mapping."""


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of a configuration."""
    whole: dict[str, Any] = _without_null(schema.Document.model_json_schema())
    for name, alone in _SHORTHANDS.items():
        section = whole["$defs"][name]
        description = section.pop("description", "")
        whole["$defs"][name] = {"description": description, "anyOf": [alone, section]}
    whole["title"] = _TITLE
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **whole}


def _without_null(node: Any) -> Any:
    """The schema without null, which stands for a key that is left out and is refused."""
    if isinstance(node, list):
        return [_without_null(item) for item in node]
    if not isinstance(node, dict):
        return node
    result = {
        key: _without_null(value)
        for key, value in node.items()
        if not (key == "default" and value is None)
    }
    options = result.get("anyOf")
    if isinstance(options, list):
        kept = [option for option in options if option != {"type": "null"}]
        if len(kept) == 1:
            del result["anyOf"]
            result |= kept[0]
        else:
            result["anyOf"] = kept
    return result


_INTRODUCTION = """\
# Configuration

One YAML 1.2 file, `/etc/lbdr/lbdr.yaml` where no other is named. `lbdr check FILE` tells whether
it is valid, on any machine and without root; `lbdr check --host FILE` adds what depends on the
machine. This page is made from the schema by `lbdr schema --format markdown`; `lbdr schema` prints
the JSON Schema, by which editors complete and check.

```yaml
director:
  name: lb1

real_servers:                      # named once; the names are used everywhere
  web1: {address: 192.168.10.31}
  web2: {address: 192.168.10.32}
  sorry: {address: 192.168.10.39}

virtual_services:
  WEB:
    address: 192.168.10.50         # the VIP
    ports: [80]
    scheduler: wlc
    persistence: 5m
    real_servers: [web1, {server: web2, weight: 2}]
    sorry_server: sorry
```

- Durations: `100ms`, `6s`, `5m`, `12h`, `1d`, or a plain number of seconds.
- Names: a letter, then at most 63 letters, digits, `_`, `-` or `.`.
- `yes`, `no`, `on` and `off` are text, as in YAML 1.2; a truth value is `true` or `false`.
- Anchors and aliases work; merge keys (`<<`), which YAML 1.2 does not have, and tags are refused,
  and so is a key that stands twice.
- A key that this version does not know is an error, never ignored.
"""

_HEADINGS: dict[str, str] = {
    "Document": "The file",
    "Director": "`director`",
    "RealServer": "`real_servers`",
    "VirtualService": "`virtual_services`",
    "RealServerUse": "`real_servers` of a virtual service",
    "SorryServer": "`sorry_server`",
    "Persistence": "`persistence`",
    "AddressProbe": "`director: address_probe`",
    "GratuitousArp": "`director: gratuitous_arp`",
    "Timeouts": "`director: timeouts`",
    "Check": "`check`",
    "Health": "`health`",
    "Quorum": "`health: quorum`",
    "Damping": "`health: damping`",
    "Feedback": "`health: feedback`",
    "Dependency": "`depends_on` of a real server",
}

_RULES = """\
## What must fit together

On any machine (`lbdr check`):

- A real server's port is the service's: DR cannot translate ports.
- A service has each port once, and no two services have the same address, protocol and port. An
  exact port beside `any` is clear: the exact one wins.
- Several ports, or any, need one decision: persistence, or scheduler mh or sh without a -port flag.
  They are tcp's or udp's, with at most 16 ranges for each VIP and protocol; any port of sctp needs
  persistence.
- A scheduler flag belongs to its scheduler; `one_packet` is for udp, and not with persistence.
- Real servers, sorry server and VIP of a service have the same IP version.
- A sorry server is not a real server of its service; a real server stands in a service once.
- A VIP is no real server's own address; neither is a loopback, multicast, link-local, broadcast or
  unspecified address; a VIP is on one interface.
- `lower_threshold` is not above `upper_threshold`; weight 0 everywhere drains the service.

On this machine (`lbdr check --host`):

- Every real server in use lies in a subnet of an interface that is up.
- Every VIP lies in a subnet of an interface that is up, or names its interface; it is not the
  machine's own address there, nor the first or last address of the subnet.
- Several ports, and any port without persistence, need a packet mark, which lbdr's program sets at
  tc ingress of the VIP's interface, also with `fastpath: off`: so such a service needs bcc
  (python3-bpfcc) and the right to load BPF programs. Each service gets a mark of `director: marks`
  and keeps it, in the state directory; virtual services that others made in IPVS must not use marks
  of that range, and rules of the firewall must not set or match them.
- Such a service is another one to IPVS than that of one port. Where a service of one port gets
  more, open connections stay, and the old service lingers in IPVS while it has any; clients that
  persistence bound are bound anew. Where a service with several ports gets down to one, its
  connections end, unless mh decides. Ports that are added to several, or taken from them, disturb
  none.
- Where the kernel has no IPVS, XDP or tc forwards alone: every service is of scheduler mh, for tcp
  or udp, without persistence, `one_packet`, thresholds and `fastpath: off`; the director has
  neither `timeouts` nor `fastpath: off`.
"""


def reference() -> str:
    """docs/configuration.md: every key with what it allows, its default and its meaning."""
    parts = [_INTRODUCTION]
    for section in schema.SECTIONS:
        about = " ".join((section.__doc__ or "").split())
        rows = [_row(section, key, field) for key, field in section.model_fields.items()]
        table = "\n".join(("| key | allowed | default | meaning |", "|---|---|---|---|", *rows))
        parts.append(f"## {_HEADINGS[section.__name__]}\n\n{about}\n\n{table}\n")
    return "\n".join((*parts, _RULES))


def _row(section: type[Section], key: str, field: FieldInfo) -> str:
    cells = (f"`{key}`", _allowed(section, key, field), _default(field), field.description or "")
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


_ALLOWED: dict[str, str] = {
    "director": "a mapping, below",
    "address_probe": "a mapping, below",
    "gratuitous_arp": "a mapping, below",
    "timeouts": "a mapping, below",
    "virtual_services": "names, each with a mapping, below",
    "scheduler_flags": "a list of " + ", ".join(schema.FLAGS),
    "ports": "a list of ports and ranges, or any",
    "persistence": "a duration, or a mapping, below",
    "sorry_server": "a name, or a mapping, below",
    "Check.ports": "a list of ports",
    "check": "a type, a mapping, below, or a list of them",
    "health": "a mapping, below",
    "quorum": "a number, or a mapping, below",
    "damping": "a mapping, below",
    "feedback": "a mapping, below",
    "depends_on": "a list of mappings, below",
    "standby_for": "a list of names",
    "arguments": "a list of words",
    "acknowledge": "a list of codes",
    "status": "a list of codes and ranges, such as [200, 300-399]",
}


def _allowed(section: type[Section], key: str, field: FieldInfo) -> str:
    own = _ALLOWED.get(f"{section.__name__}.{key}")
    if own is not None:
        return own
    if key == "real_servers":
        whole = field.default_factory is not None
        return "names, each with a mapping, below" if whole else "a list, below"
    if key in _ALLOWED:
        return _ALLOWED[key]
    return next(value.text() for value in field.metadata if isinstance(value, Value))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.default
    if field.default_factory is not None or default in (None, ""):
        return ""
    if isinstance(default, bool):
        return "`true`" if default else "`false`"
    if any(isinstance(value, Duration) for value in field.metadata):
        return f"`{default * 1000:g}ms`" if default < 1 else f"`{default:g}s`"
    return f"`{default}`"
