"""What is said on the control socket: requests and answers, checked at both ends.

A request is one line, its answer is one line. Both carry the version of the protocol; a daemon
answers a version that it does not speak with an error that names its own.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from lbdr.events import Event, EventKind
from lbdr.model import MAX_WEIGHT, Role, Standing

VERSION = 1
LINE_LIMIT = 64 << 20
"""Bytes in a line: the status of some thousands of services."""
REQUEST_LIMIT = 1 << 16
FLOWS_LIMIT = 10_000
"""Connections in one answer: some 2 MB, and a second of work for all that there can be."""
MOST_EVENTS = 100_000


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Request(_Message):
    model_config = ConfigDict(strict=True)  # a number is no text, and 1 is not true


class StatusRequest(_Request):
    """What the director does and holds."""

    command: Literal["status"] = "status"


class RoleRequest(_Request):
    """Become active or standby; neither asks, and reset returns to the configuration's."""

    command: Literal["role"] = "role"
    role: Role | None = None
    reset: bool = False


class WeightRequest(_Request):
    """Set a real server's weight over the file's; None returns to the file's."""

    command: Literal["weight"] = "weight"
    real_server: str
    virtual_service: str | None = None
    weight: Annotated[int, Field(ge=0, le=MAX_WEIGHT)] | None = None


class OperatorRequest(_Request):
    """Put a real server online, drain or halt it, in a virtual service or everywhere.

    Args:
        deadline: seconds after which a drain becomes a halt.
    """

    command: Literal["operator"] = "operator"
    real_server: str
    state: Standing
    virtual_service: str | None = None
    deadline: Annotated[float, Field(gt=0)] | None = None


class FailbackRequest(_Request):
    """Hand back what a virtual service's standby servers took over, or one of them."""

    command: Literal["failback"] = "failback"
    virtual_service: str
    real_server: str | None = None


class EventsRequest(_Request):
    """What happened, the newest last; see lbdr.events.Wanted."""

    command: Literal["events"] = "events"
    last: Annotated[int, Field(gt=0, le=MOST_EVENTS)] = 50
    after: int = 0
    since: float = 0
    kind: EventKind | None = None
    virtual_service: str | None = None
    real_server: str | None = None


class FastPathRequest(_Request):
    """Leave a virtual service, or all, to IPVS; or have the fast path serve again."""

    command: Literal["fastpath"] = "fastpath"
    on: bool
    virtual_service: str | None = None


class ExplainRequest(_Request):
    """Which real server a client gets, and why.

    Args:
        virtual_service: its name.
        client: its address.
        client_port: its port.
        port: where to; None for the service's first one.
    """

    command: Literal["explain"] = "explain"
    virtual_service: str
    client: str
    client_port: Annotated[int, Field(ge=1, le=65535)]
    port: Annotated[int, Field(ge=1, le=65535)] | None = None


class FlowsRequest(_Request):
    """The connections that the fast path remembers, the youngest first.

    Args:
        virtual_service: None for all.
        limit: at most so many are told of.
    """

    command: Literal["flows"] = "flows"
    virtual_service: str | None = None
    limit: Annotated[int, Field(ge=0, le=FLOWS_LIMIT)] = 1000


class PlanRequest(_Request):
    """What a pass would do now."""

    command: Literal["plan"] = "plan"


class ReloadRequest(_Request):
    """Read the configuration again."""

    command: Literal["reload"] = "reload"


class WithdrawRequest(_Request):
    """Take everything of lbdr's out of the kernel, and stop."""

    command: Literal["withdraw"] = "withdraw"


Request = (
    StatusRequest
    | RoleRequest
    | WeightRequest
    | OperatorRequest
    | FailbackRequest
    | EventsRequest
    | FastPathRequest
    | ExplainRequest
    | FlowsRequest
    | PlanRequest
    | ReloadRequest
    | WithdrawRequest
)


class Envelope(_Request):
    """A request with the version of the protocol that it is written in."""

    version: int
    request: Annotated[Request, Field(discriminator="command")]


class Failure(_Message):
    """Why a request was not done.

    Args:
        exit_code: that of the command (lbdr/errors.py).
        message: for a person.
        hint: the remedy.
    """

    exit_code: int
    message: str
    hint: str = ""


class Answer(_Message):
    """The answer to a request: a result, or a failure."""

    version: int = VERSION
    result: dict[str, Any] | None = None
    failure: Failure | None = None


class Done(_Message):
    """The result of a request that changes something.

    Args:
        operations: what was applied, as commands.
        role: the role now.
        virtual_services: how many are configured.
    """

    operations: list[str] = []
    role: Role
    virtual_services: int


class RoleResult(_Message):
    """The role and where it comes from.

    Args:
        role: now.
        configured: the configuration's.
        operations: what was applied, as commands.
    """

    role: Role
    configured: Role
    operations: list[str] = []


class EventsResult(_Message):
    """Events, the newest last."""

    events: list[Event] = []


class FastPathResult(_Message):
    """What the fast path serves now.

    Args:
        forwards: virtual services that it serves.
        off: why the others are IPVS's alone, by name.
        handed_over: flows that IPVS was given.
    """

    forwards: list[str] = []
    off: dict[str, str] = {}
    handed_over: int = 0


class RememberedFlow(_Message):
    """A connection that the fast path remembers.

    Args:
        client: address and port.
        port: of the service.
        kind: record, of an mh service after a change; or learned from IPVS.
        state: of a record, unconfirmed, confirmed or closing; of a learned flow, open or closing.
        server: the name of who has it; "" for one that is gone.
        address: its RIP; "" for one that is gone.
        previous: who has its packets until data confirms an unconfirmed record; else "".
        age: seconds since it was last seen; for a learned flow, since IPVS saw it.
    """

    service: str
    client: str
    port: int
    kind: Literal["record", "learned"]
    state: str
    server: str
    address: str
    previous: str = ""
    age: int


class FlowsResult(_Message):
    """What the fast path remembers.

    Args:
        flows: the youngest first, as many as were asked for.
        total: how many there are.
        reason: why there is no fast path; "" where there is one.
    """

    flows: list[RememberedFlow] = []
    total: int = 0
    reason: str = ""


class PlanResult(_Message):
    """What a pass would do, as commands, and the conflicts it would leave alone."""

    operations: list[str] = []
    conflicts: list[str] = []


ENVELOPE: TypeAdapter[Envelope] = TypeAdapter(Envelope)
