"""How operations are told where the kernel has no IPVS, and nobody could type ipvsadm; pure."""

from __future__ import annotations

from lbdr.model import Key, RealServer, endpoint
from lbdr.operations import (
    AddRealServer,
    AddService,
    DeleteRealServer,
    DeleteService,
    Operation,
    SetRealServer,
    SetService,
)


def words(operation: Operation, *, alone: bool) -> str:
    """An operation as it is shown.

    Args:
        operation: any.
        alone: the kernel has no IPVS, and its operations are done to lbdr's own table.
    """
    told = _of_table(operation) if alone else ""
    return f"table: {told}" if told else operation.command


def _of_table(operation: Operation) -> str:
    match operation:
        case AddService(service) | SetService(service):
            verb = "add" if isinstance(operation, AddService) else "set"
            told = f"{verb} {service.key} {' '.join((service.scheduler, *sorted(service.flags)))}"
        case DeleteService(key):
            told = f"delete {key}"
        case AddRealServer(key, server) | SetRealServer(key, server):
            verb = "add" if isinstance(operation, AddRealServer) else "set"
            told = f"{verb} {_of(key, server)} weight {server.weight}"
        case DeleteRealServer(key, server):
            told = f"delete {_of(key, server)}"
        case _:
            told = ""
    return told


def _of(key: Key, server: RealServer) -> str:
    return f"{key} real server {endpoint(server.address, server.port)}"
