"""Solving the ARP problem on this host, and checking it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lbdr.errors import EXIT_NO, EXIT_OK, ConfigError, Problem, VerificationError
from lbdr.model import Address, VirtualAddress
from lbdr.operations import AddAddress, SetSysctl
from lbdr.realserver import observe, persist
from lbdr.realserver.arp_problem import ARP_ANNOUNCE_SAFE, ARP_IGNORE_SILENT, judge, solution
from lbdr.realserver.findings import ServerState, Severity, conf, solved
from lbdr.realserver.memory import Memory, MemoryFile, RememberedSysctl, RememberedVip
from lbdr.realserver.report import (
    KernelOperation,
    Report,
    Request,
    apply,
    memory_file,
    need_root,
    own_vips,
)
from lbdr.realserver.texts import Unit


def check(request: Request, report: Report) -> None:
    """Find everything that is wrong; changes nothing.

    Raises:
        LbdrError: something cannot be read, or there are no VIPs to check.
    """
    wanted = _wanted(request)
    if not request.vips:
        own = own_vips(request.paths, memory_file(request.paths).load())
        wanted = [VirtualAddress(address, vip.interface) for address, vip in own.items()]
        if not wanted:
            raise ConfigError(
                [Problem("lbdr holds no VIP here to check", hint="name one: --vip ADDRESS")]
            )
    report.vips = tuple(vip.address for vip in wanted)
    state = observe.server_state(request.interface)
    report.findings = judge(state, wanted)
    report.exit_code = EXIT_OK if solved(report.findings) else EXIT_NO


def solve(request: Request, report: Report) -> None:
    """Put right what is wrong: sysctls first, then addresses, then files.

    Raises:
        ConfigError: something is wrong that only the administrator can put right.
        PrivilegeError: there is something to do, and the caller is not root.
        VerificationError: all was done, and the problem is not solved.
        LbdrError: the kernel or the file system refused; the report says what was done.
    """
    report.vips = request.vips
    file = memory_file(request.paths)
    memory, after = _plan_solving(request, report, file)
    if request.dry_run or (not report.operations and memory == after):
        return
    need_root(report)
    with file.locked():
        memory, after = _plan_solving(request, report, file)  # as it is now that others wait
        file.save(after)
        try:
            apply(report)
        except BaseException:
            file.save(_what_became_of(after, memory, report))
            raise
    remaining = judge(observe.server_state(request.interface), _wanted(request))
    if not solved(remaining):
        wrong = "\n".join(f.message for f in remaining if f.severity is Severity.ERROR)
        raise VerificationError(
            f"everything was done, and it is not solved:\n{wrong}",
            hint="does something else on this host set these sysctls or addresses?",
        )


def _wanted(request: Request) -> list[VirtualAddress]:
    return [VirtualAddress(address, request.interface) for address in request.vips]


def _plan_solving(request: Request, report: Report, file: MemoryFile) -> tuple[Memory, Memory]:
    wanted = _wanted(request)
    memory = file.load()
    state = observe.server_state(request.interface)
    report.notes.clear()
    report.findings = judge(state, wanted)
    beyond_us = [
        Problem(finding.message, hint=finding.remedy)
        for finding in report.findings
        if finding.severity is Severity.ERROR and not finding.fixable
    ]
    if beyond_us:
        raise ConfigError(beyond_us)
    operations = solution(state, wanted)
    after = _remembering(memory, state, wanted, operations)
    report.operations = list(operations)
    if request.persist:
        after = replace(after, persisted=True, vips=_all_remembered(after, wanted))
        report.operations += _files_to_persist(request, state, after)
        if not observe.in_machine_namespace():
            report.notes.append(
                "this is not the machine's own network namespace: at boot the unit and the "
                "sysctl.d file work in that one, not in this"
            )
        elif not request.paths.systemd_runs:
            report.notes.append(
                f"systemd does not run here: {persist.UNIT} works where it does, from its next boot"
            )
    return memory, after


def _remembering(
    memory: Memory,
    state: ServerState,
    wanted: Sequence[VirtualAddress],
    operations: Sequence[KernelOperation],
) -> Memory:
    sysctls = dict(memory.sysctls)
    vips = dict(memory.vips)
    for operation in operations:
        if isinstance(operation, SetSysctl):
            # the value now is not one that lbdr set, or there were nothing to do: it is the
            # original, or what somebody put in its place
            before = str(state.sysctls.get(operation.name))
            sysctls[operation.name] = RememberedSysctl(before, operation.value)
        elif isinstance(operation, AddAddress):
            vips[operation.vip.address] = RememberedVip(operation.vip.interface, added=True)
    after = replace(memory, sysctls=sysctls, vips=vips)
    # a VIP that was there already counts, too, as long as lbdr's sysctls keep the host silent
    # about it: they stay until the last VIP is given up
    return replace(after, vips=_all_remembered(after, wanted)) if sysctls else after


def _all_remembered(
    memory: Memory, wanted: Sequence[VirtualAddress]
) -> dict[Address, RememberedVip]:
    there = {vip.address: RememberedVip(vip.interface, added=False) for vip in wanted}
    return {**there, **memory.vips}


def _what_became_of(after: Memory, before: Memory, report: Report) -> Memory:
    """What to remember when only some of the operations were done."""
    sysctls, vips = dict(after.sysctls), dict(after.vips)
    for operation in report.operations[report.done :]:
        if isinstance(operation, SetSysctl):
            sysctls.pop(operation.name, None)
            if operation.name in before.sysctls:
                sysctls[operation.name] = before.sysctls[operation.name]
        elif isinstance(operation, AddAddress):
            vips.pop(operation.vip.address, None)
            if operation.vip.address in before.vips:
                vips[operation.vip.address] = before.vips[operation.vip.address]
    return replace(after, sysctls=sysctls, vips=vips)


def _files_to_persist(
    request: Request, state: ServerState, memory: Memory
) -> list[persist.FileOperation]:
    command, environment = persist.this_command()
    before = persist.read_unit(request.paths)
    vips = dict(before.vips if before is not None else {})
    vips |= {address: memory.vips[address].interface for address in request.vips}
    settings: dict[str, str] = {}
    if any(address.version == 4 for address in vips):
        settings = dict(persist.read_sysctl_file(request.paths) or {})
        settings |= {
            name: value.after for name, value in memory.sysctls.items() if "rp_filter" in name
        }
        ignore, announce = conf("all", "arp_ignore"), conf("all", "arp_announce")
        # a stricter value that works is kept, as it is while the machine runs
        settings[ignore] = str(
            state.value(ignore) if state.value(ignore) in ARP_IGNORE_SILENT else 1
        )
        settings[announce] = str(ARP_ANNOUNCE_SAFE)
    unit = Unit(command, environment, vips)
    return persist.plan_files(request.paths, unit, settings)
