"""Philips Vue PACS: its virtual services as a configuration to start from; pure.

The services, ports, persistence and health checks are those of the published table "Load balancing
Philips Vue PACS" (2025). What the table does not say stands as a mark, never as a guess: the path
that leads to CHAT, where CHAT listens, and what the portal's script tests.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from lbdr.config.presets.marks import mark
from lbdr.model import Address

PERSISTENCE = "5m"


@dataclass(frozen=True, slots=True)
class Row:
    """A virtual service of the table with an address of its own.

    Args:
        name: as in the table.
        what: for the comment.
        ports: as in the table.
        protocol: what lbdr makes of it.
        chat: the name of its backend for CHAT; empty for none.
        standby: whether the standby portal's servers serve it.
        may_route: whether Direct Routing is a choice: clients and servers agree on the ports, and
            nothing looks into the connection.
    """

    name: str
    what: str
    ports: tuple[int, ...]
    protocol: str
    chat: str = ""
    standby: bool = False
    may_route: bool = False


ROWS: tuple[Row, ...] = (
    Row("DICOM_VIP", "images from modalities, queries and retrieval", (2104,), "dicom",
        may_route=True),
    Row("DMWL_VIP", "modality worklist", (3320,), "dicom", may_route=True),
    Row("PORTAL_VIP", "the web portal", (80,), "http", chat="CHAT"),
    Row("PORTAL_VIP_STANDBY", "the standby web portal", (80,), "http", chat="CHAT_STANDBY",
        standby=True),
    Row("CLIENT_VIP", "workstations", (80, 443, 514, 2104, 22104, 32338), "tcp"),
    Row("CLIENT_DB_VIP", "the workstations' database connections (Oracle)", (1521,), "tcp"),
    Row("HL7_VIP", "HL7 messages from RIS and HIS", (10010, 4001, 4003, 4005), "tcp"),
)  # fmt: skip
"""The rows with an address; CHAT and CHAT_STANDBY are backends of the two portals."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What only the user knows.

    Args:
        addresses: VIPs by the names of ROWS; a missing one becomes a mark.
        servers: PACS servers by name; none become two marks.
        standby_servers: servers of the standby portal by name.
        chat_path: the path that leads to CHAT.
        chat_port: where CHAT listens on the servers.
        portal_script: the script that tests the portal.
        dicom_routing: serve the DICOM services by Direct Routing.
    """

    addresses: Mapping[str, Address] = field(default_factory=lambda: MappingProxyType({}))
    servers: Mapping[str, Address] = field(default_factory=lambda: MappingProxyType({}))
    standby_servers: Mapping[str, Address] = field(default_factory=lambda: MappingProxyType({}))
    chat_path: str = ""
    chat_port: int = 0
    portal_script: str = ""
    dicom_routing: bool = False


def config_text(answers: Answers) -> str:
    """The configuration.

    Raises:
        ValueError: an address is of a name that the table does not have.
    """
    unknown = set(answers.addresses) - {row.name for row in ROWS}
    if unknown:
        raise ValueError(f"no virtual service of Philips Vue PACS: {', '.join(sorted(unknown))}")
    lines = [
        "# Philips Vue PACS. Addresses are yours to write. A value that begins with FILL IN is a",
        "# question: `lbdr check` reminds you of each until it is answered.",
        "real_servers:",
        *_servers(answers),
        "",
        "virtual_services:",
    ]
    for row in ROWS:
        lines += [*_service(row, answers), ""]
    lines.append("backends: # reached by the portals' rules alone")
    for row in ROWS:
        if row.chat:
            lines += [*_chat(row, answers), ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def _names(answers: Answers, *, standby: bool) -> Sequence[str]:
    if standby:
        return list(answers.standby_servers) or ["portal_standby1"]
    return list(answers.servers) or ["pacs1", "pacs2"]


def _servers(answers: Answers) -> Iterator[str]:
    known = {**answers.servers, **answers.standby_servers}
    for standby in (False, True):
        for name in _names(answers, standby=standby):
            value = str(known[name]) if name in known else mark(f"the address of {name}")
            yield f"  {name}: {{address: {_quoted(value)}}}"


def _service(row: Row, answers: Answers) -> Iterator[str]:
    routed = answers.dicom_routing and row.may_route
    address = answers.addresses.get(row.name)
    yield f"  {row.name}: # {row.what}"
    yield f"    address: {_quoted(str(address)) if address else mark(f'the VIP of {row.name}')}"
    yield f"    ports: [{', '.join(str(port) for port in row.ports)}]"
    if routed:
        yield "    forwarding: dr # servers see the sender's address; run `lbdr solve-arp` on each"
    else:
        yield "    forwarding: proxy"
        yield f"    protocol: {row.protocol}"
    yield f"    persistence: {PERSISTENCE}"
    if row.chat:
        script = answers.portal_script or mark(
            "the script that tests the portal: ask Philips what it has to test; "
            "examples/checks/portal is one to start from"
        )
        yield "    check:"
        yield "      type: external"
        yield f"      command: {_quoted(script)}"
        yield "      interval: 15s"
        yield "      timeout: 10s"
        path = answers.chat_path or mark("the path that leads to CHAT: ask Philips")
        yield "    rules:"
        yield f"      - {{path_prefix: {_quoted(path)}, backend: {row.chat}}}"
    else:
        yield "    check: {type: connect}"
        if row.protocol == "dicom":
            yield "    # check: {type: dicom-echo, called_ae: ...} tests more than an open port,"
            yield "    # and leaves no abandoned associations in the PACS: ask for the AE title"
    yield f"    real_servers: [{', '.join(_names(answers, standby=row.standby))}]"


def _chat(row: Row, answers: Answers) -> Iterator[str]:
    port = str(answers.chat_port) if answers.chat_port else mark("the port of CHAT: ask Philips")
    path = answers.chat_path or mark("a path of CHAT that answers with 200: ask Philips")
    yield f"  {row.chat}: # of {row.name}"
    yield "    protocol: http"
    yield f"    port: {port}"
    yield "    tls: {verify: false} # the servers' certificates are often self-signed"
    yield f"    check: {{type: http, path: {_quoted(path)}, tls: {{}}}}"
    yield f"    real_servers: [{', '.join(_names(answers, standby=row.standby))}]"


def _quoted(value: str) -> str:
    """A value of YAML, in quotes where it is not plainly a word."""
    if value.startswith('"') or value.replace(".", "").replace("/", "").replace("_", "").isalnum():
        return value
    return "'" + value.replace("'", "''") + "'"
