"""What solve-arp is asked for, what came of it, and the doing itself."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from lbdr.datapath import namespace, sysctl
from lbdr.datapath.addresses import Addresses
from lbdr.errors import EXIT_OK, PrivilegeError
from lbdr.model import Address
from lbdr.operations import AddAddress, DeleteAddress, SetSysctl
from lbdr.realserver import observe, persist
from lbdr.realserver.findings import Finding
from lbdr.realserver.memory import Memory, MemoryFile, RememberedVip
from lbdr.realserver.persist import FileOperation, Paths

KernelOperation = SetSysctl | AddAddress | DeleteAddress
Operation = KernelOperation | FileOperation


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for.

    Args:
        vips: none for all of lbdr's (not for solving).
        interface: where missing VIPs go.
        dry_run: only say what would be done.
        persist: over reboots, too.
        paths: where files are.
    """

    vips: tuple[Address, ...] = ()
    interface: str = "lo"
    dry_run: bool = False
    persist: bool = False
    paths: Paths = field(default_factory=Paths)


@dataclass(slots=True)
class Report:
    """What came of it; filled as things happen, so that it is right after an error too.

    Args:
        vips: those that it was about.
        findings: before anything was done.
        operations: what was to be done, in order.
        done: how many of them were done.
        notes: what else there is to say.
        exit_code: for the process.
    """

    vips: tuple[Address, ...] = ()
    findings: list[Finding] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    done: int = 0
    notes: list[str] = field(default_factory=list)
    exit_code: int = EXIT_OK


def memory_file(paths: Paths) -> MemoryFile:
    """What lbdr remembers of this network namespace."""
    return MemoryFile(
        paths.memory,
        boot=namespace.boot_id(),
        namespace=namespace.namespace_id(),
        machine=observe.in_machine_namespace(),
    )


def own_vips(paths: Paths, memory: Memory) -> dict[Address, RememberedVip]:
    """The VIPs that lbdr was asked for here, by what it remembers and what its unit says.

    Raises:
        ConfigError: the unit is somebody else's.
    """
    unit = persist.read_unit(paths)
    from_unit = unit.vips if unit is not None else {}
    return {
        address: RememberedVip(interface, added=True) for address, interface in from_unit.items()
    } | dict(memory.vips)


def need_root(report: Report) -> None:
    """Refuse to go on without root.

    Raises:
        PrivilegeError: this is not root; says what was to be done.
    """
    if not observe.is_root():
        commands = "\n".join(f"    {operation.command}" for operation in report.operations)
        raise PrivilegeError(
            f"root is needed to change this host; to be done:\n{commands}",
            hint="run it as root (sudo); --check and --dry-run work without",
        )


def apply(report: Report) -> None:
    """Do all operations, in order; the report says how many were done, after an error too.

    Raises:
        LbdrError: the kernel or the file system refused one.
    """
    report.done = 0
    for operation in report.operations:
        if isinstance(operation, SetSysctl):
            sysctl.apply(operation)
        elif isinstance(operation, AddAddress | DeleteAddress):
            asyncio.run(_apply_address(operation))
        else:
            persist.apply_file(operation)
        report.done += 1


async def _apply_address(operation: AddAddress | DeleteAddress) -> None:
    async with Addresses() as addresses:
        await addresses.apply(operation)
