"""What must outlive the daemon: what in the kernel is lbdr's, and what the operator set.

One JSON file, replaced whole. The generation before it is kept beside it and serves when the newer
one cannot be read.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from lbdr.desired import SYSCTLS
from lbdr.errors import PrivilegeError, StateError
from lbdr.model import (
    MAX_WEIGHT,
    Key,
    MarkKey,
    Protocol,
    RealServer,
    Role,
    Service,
    ServiceKey,
    Standing,
    Timeouts,
    VirtualAddress,
)
from lbdr.operator_states import OperatorState, OperatorStates
from lbdr.plan import Ownership

log = logging.getLogger(__name__)

_NAME = "state.json"
_PREVIOUS = "state.json.previous"


@dataclass(frozen=True, slots=True)
class State:
    """What the state directory holds.

    Args:
        owned: what lbdr made.
        role: the role set at run time; None leaves the configuration's.
        weights: set by the operator: (virtual service, real server) -> weight.
        fastpath_off: virtual services that the operator left to IPVS; "" is all of them.
        marks: packet marks by virtual service (lbdr.marks).
        operator: real servers that the operator drains or halts.
        table: where the kernel has no IPVS, what stands in its place (lbdr.datapath.own_table).
    """

    owned: Ownership = field(default_factory=Ownership)
    role: Role | None = None
    weights: Mapping[tuple[str, str], int] = field(default_factory=dict)
    fastpath_off: frozenset[str] = frozenset()
    marks: Mapping[str, int] = field(default_factory=dict)
    operator: OperatorStates = field(default_factory=dict)
    table: tuple[Service, ...] = ()


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _ServiceEntry(_Strict):
    protocol: Protocol
    address: IPv4Address | IPv6Address
    port: int = Field(ge=0, le=65535)


class _MarkEntry(_Strict):
    mark: int = Field(gt=0, lt=1 << 32)
    version: Literal[4, 6]


class _AddressEntry(_Strict):
    address: IPv4Address | IPv6Address
    interface: str


class _WeightEntry(_Strict):
    virtual_service: str
    real_server: str
    weight: int = Field(ge=0, le=MAX_WEIGHT)


class _OperatorEntry(_Strict):
    virtual_service: str
    real_server: str
    standing: Standing
    since: float
    deadline: float | None = None


def _known_sysctl(name: str) -> str:
    if name not in SYSCTLS:
        raise ValueError(f"{name} is no sysctl that lbdr sets")
    return name


class _TimeoutsEntry(_Strict):
    tcp: int = Field(ge=0)
    tcp_fin: int = Field(ge=0)
    udp: int = Field(ge=0)


class _TableServer(_Strict):
    address: IPv4Address | IPv6Address
    port: int = Field(ge=0, le=65535)
    weight: int = Field(ge=0, le=MAX_WEIGHT)


class _TableEntry(_Strict):
    key: _ServiceEntry | _MarkEntry
    scheduler: str
    flags: list[str]
    real_servers: list[_TableServer]


class _File(_Strict):
    version: Literal[1] = 1
    kernel: str = ""
    services: list[_ServiceEntry | _MarkEntry] = []
    addresses: list[_AddressEntry] = []
    sysctls: dict[Annotated[str, AfterValidator(_known_sysctl)], str] = {}
    timeouts: _TimeoutsEntry | None = None
    role: Role | None = None
    weights: list[_WeightEntry] = []
    fastpath_off: list[str] = []
    marks: dict[str, Annotated[int, Field(gt=0, lt=1 << 32)]] = {}
    operator: list[_OperatorEntry] = []
    table: list[_TableEntry] = []


class StateStore:
    """The state directory.

    Args:
        directory: made with mode 0700 when it is first written to.
        kernel: names the namespace and the boot (lbdr.datapath.namespace). What was owned in
            another one is gone with it, and is not taken for lbdr's when somebody makes it anew.
    """

    def __init__(self, directory: Path, kernel: str = "") -> None:
        self.directory = directory
        self._kernel = kernel
        self.path = directory / _NAME

    def load(self) -> State:
        """What was saved last; an empty state where nothing ever was.

        Raises:
            StateError: neither the file nor the generation before it can be read.
        """
        problems: list[str] = []
        for path in (self.path, self.directory / _PREVIOUS):
            try:
                state = _parse(path.read_bytes(), self._kernel)
            except FileNotFoundError:
                continue
            except PermissionError as error:
                raise PrivilegeError(f"{path}: permission denied", hint="run as root") from error
            except (OSError, ValueError) as error:
                problems.append(f"{path}: {_one_line(error)}")
                continue
            for problem in problems:
                log.error("state file unreadable, using the one before it: %s", problem)
            return state
        if problems:
            raise StateError(
                "the state file cannot be read: " + "; ".join(problems),
                hint=f"nothing was changed. Mend {self.path}, or move it away: lbdr then adopts "
                f"services that are as the configuration wants them, leaves others alone, and "
                f"forgets weights and role set at run time",
            )
        return State()

    def save(self, state: State) -> None:
        """Replace what was saved, whole or not at all.

        Raises:
            StateError: it cannot be written (full disk, read-only, not permitted).
        """
        temporary = self.directory / f".{_NAME}.new"
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            with suppress(FileNotFoundError):
                temporary.unlink()
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(temporary, flags, 0o600)
            try:
                with open(descriptor, "wb") as file:  # noqa: PTH123  # a descriptor, not a path
                    file.write(_render(state, self._kernel))
                    file.flush()
                    os.fsync(file.fileno())
                self._keep_previous()
                temporary.replace(self.path)
            finally:
                for left in (temporary, self._link):
                    with suppress(FileNotFoundError):
                        left.unlink()
            _sync_directory(self.directory)
        except OSError as error:
            raise StateError(
                f"{self.path} cannot be written: {error.strerror}",
                hint="make room, or name another directory with --state-dir",
            ) from error

    @property
    def _link(self) -> Path:
        return self.directory / f".{_PREVIOUS}.new"

    def _keep_previous(self) -> None:
        with suppress(FileNotFoundError):
            self._link.unlink()
        try:
            os.link(self.path, self._link)
        except FileNotFoundError:
            return  # the first time
        self._link.replace(self.directory / _PREVIOUS)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _parse(data: bytes, kernel: str) -> State:
    file = _File.model_validate_json(data)
    weights = {(entry.virtual_service, entry.real_server): entry.weight for entry in file.weights}
    off = frozenset(file.fastpath_off)
    operator = {
        (entry.virtual_service, entry.real_server): OperatorState(
            entry.standing, entry.since, entry.deadline
        )
        for entry in file.operator
    }
    if file.kernel != kernel:
        log.info("the state is of another boot or network namespace: nothing here is lbdr's yet")
        return State(
            role=file.role,
            weights=weights,
            fastpath_off=off,
            marks=file.marks,
            operator=operator,
        )
    return State(
        owned=Ownership(
            services=frozenset(map(_key, file.services)),
            addresses=frozenset(
                VirtualAddress(entry.address, entry.interface) for entry in file.addresses
            ),
            sysctls=file.sysctls,
            timeouts=Timeouts(**file.timeouts.model_dump()) if file.timeouts else None,
        ),
        role=file.role,
        weights=weights,
        fastpath_off=off,
        marks=file.marks,
        operator=operator,
        table=tuple(
            Service(
                _key(entry.key),
                entry.scheduler,
                frozenset(entry.flags),
                real_servers=tuple(
                    RealServer(server.address, server.port, server.weight)
                    for server in entry.real_servers
                ),
            )
            for entry in file.table
        ),
    )


def _key(entry: _ServiceEntry | _MarkEntry) -> Key:
    if isinstance(entry, _MarkEntry):
        return MarkKey(entry.mark, entry.version)
    return ServiceKey(entry.protocol, entry.address, entry.port)


def _entry(key: Key) -> _ServiceEntry | _MarkEntry:
    if isinstance(key, MarkKey):
        return _MarkEntry(mark=key.mark, version=6 if key.version == 6 else 4)
    return _ServiceEntry(protocol=key.protocol, address=key.address, port=key.port)


def _render(state: State, kernel: str) -> bytes:
    file = _File(
        kernel=kernel,
        services=[
            _entry(key) for key in sorted(state.owned.services, key=lambda key: key.sort_key)
        ],
        addresses=[
            _AddressEntry(address=vip.address, interface=vip.interface)
            for vip in sorted(state.owned.addresses, key=str)
        ],
        sysctls=dict(sorted(state.owned.sysctls.items())),
        timeouts=(_TimeoutsEntry(**asdict(state.owned.timeouts)) if state.owned.timeouts else None),
        role=state.role,
        weights=[
            _WeightEntry(virtual_service=virtual, real_server=real, weight=weight)
            for (virtual, real), weight in sorted(state.weights.items())
        ],
        fastpath_off=sorted(state.fastpath_off),
        marks=dict(sorted(state.marks.items())),
        operator=[
            _OperatorEntry(virtual_service=virtual, real_server=real, **asdict(entry))
            for (virtual, real), entry in sorted(state.operator.items())
        ],
        table=[
            _TableEntry(
                key=_entry(service.key),
                scheduler=service.scheduler,
                flags=sorted(service.flags),
                real_servers=[
                    _TableServer(address=server.address, port=server.port, weight=server.weight)
                    for server in service.real_servers
                ],
            )
            for service in state.table
        ],
    )
    return file.model_dump_json(indent=1).encode() + b"\n"


def _one_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        return f"{place}: {first['msg']}" if place else str(first["msg"])
    return str(error)
