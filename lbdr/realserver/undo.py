"""Taking back what solve-arp did on this host, and nothing else."""

from __future__ import annotations

from dataclasses import replace

from lbdr.datapath import sysctl
from lbdr.errors import EXIT_NO, EXIT_OK
from lbdr.model import Address, VirtualAddress
from lbdr.operations import DeleteAddress, SetSysctl
from lbdr.realserver import observe, persist
from lbdr.realserver.findings import ServerState
from lbdr.realserver.memory import Memory, MemoryFile, RememberedSysctl, RememberedVip
from lbdr.realserver.report import Report, Request, apply, memory_file, need_root, own_vips


def undo(request: Request, report: Report) -> None:
    """Take back what lbdr did: addresses first, then, with the last VIP, sysctls.

    What lbdr did not do, and what somebody changed since, is left alone and noted.

    Raises:
        LbdrError: as for solve.
    """
    file = memory_file(request.paths)
    memory, after = _plan_undoing(request, report, file)
    if request.dry_run or (not report.operations and memory == after):
        return
    need_root(report)
    with file.locked():
        memory, after = _plan_undoing(request, report, file)
        apply(report)
        file.save(after)


def _plan_undoing(request: Request, report: Report, file: MemoryFile) -> tuple[Memory, Memory]:
    memory = file.load()
    state = observe.server_state(request.interface)
    own = own_vips(request.paths, memory)
    report.notes.clear()
    report.exit_code = EXIT_OK
    targets = request.vips or tuple(own)
    report.vips = targets
    report.operations = []
    for address in targets:
        report.operations += _undo_vip(report, state, own, address)
    left = {address: vip for address, vip in own.items() if address not in targets}
    after = replace(memory, vips={a: vip for a, vip in memory.vips.items() if a not in targets})
    # sysctls are IPv4's: with the last VIP of that version they go
    if not any(address.version == 4 for address in left):
        for name, value in reversed(list(memory.sysctls.items())):
            report.operations += _undo_sysctl(report, state, name, value)
        after = replace(after, sysctls={})
    unit = persist.read_unit(request.paths)
    if unit is not None:
        kept = {address: name for address, name in unit.vips.items() if address not in targets}
        unit = replace(unit, vips=kept)
    settings = dict(persist.read_sysctl_file(request.paths) or {})
    if unit is None or not any(address.version == 4 for address in unit.vips):
        settings = {}
    report.operations += persist.plan_files(request.paths, unit, settings)
    if unit is None or not unit.vips:
        after = replace(after, persisted=False)
    return memory, after


def _undo_vip(
    report: Report, state: ServerState, own: dict[Address, RememberedVip], address: Address
) -> list[DeleteAddress]:
    holders = state.network.holders(address)
    if address not in own:
        if holders:
            report.exit_code = EXIT_NO
            where = ", ".join(holders)
            report.notes.append(f"{address} on {where} is not lbdr's doing: left as it is")
        else:
            report.notes.append(f"{address} is not lbdr's, and not here")
        return []
    vip = own[address]
    if not vip.added:
        if holders:
            report.notes.append(
                f"{address} was on {', '.join(holders)} before lbdr came: it stays there"
            )
        return []
    place = state.network.interfaces.get(vip.interface)
    if place is None or not any(
        own_address.ip == address and own_address.network.prefixlen == address.max_prefixlen
        for own_address in place.addresses
    ):
        report.notes.append(f"{address} is gone from {vip.interface} already")
        return []
    return [DeleteAddress(VirtualAddress(address, vip.interface))]


def _undo_sysctl(
    report: Report, state: ServerState, name: str, value: RememberedSysctl
) -> list[SetSysctl]:
    now = state.sysctls[name] if name in state.sysctls else sysctl.read(name)
    if now == value.after:
        return [SetSysctl(name, value.before)]
    if now is None:
        report.notes.append(f"{name} is gone with its interface")
    elif now != value.before:
        report.notes.append(
            f"{name} is {now}: somebody changed it after lbdr had set it to {value.after}; it stays"
        )
    return []
