"""What is said on the control socket: requests and answers, checked at both ends.

A request is one line, its answer is one line. Both carry the version of the protocol; a daemon
answers a version that it does not speak with an error that names its own.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from lbdr.events import Event, EventKind
from lbdr.model import MAX_WEIGHT, Role
from lbdr.operator_states import Standing

VERSION = 1
LINE_LIMIT = 64 << 20
"""Bytes in a line: the status of some thousands of services."""
REQUEST_LIMIT = 1 << 16
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
    | EventsRequest
    | FastPathRequest
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


class PlanResult(_Message):
    """What a pass would do, as commands, and the conflicts it would leave alone."""

    operations: list[str] = []
    conflicts: list[str] = []


ENVELOPE: TypeAdapter[Envelope] = TypeAdapter(Envelope)
