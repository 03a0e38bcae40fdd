"""The command `lbdr solve-arp`."""

from __future__ import annotations

import argparse
import ipaddress
import json
import sys
from pathlib import Path
from typing import Any

from lbdr.errors import LbdrError
from lbdr.model import Address
from lbdr.realserver import boot, persist
from lbdr.realserver.findings import Finding, Severity, conf
from lbdr.realserver.findings import solved as is_solved
from lbdr.realserver.persist import WriteFile
from lbdr.realserver.report import Report, Request
from lbdr.realserver.solve import check, solve
from lbdr.realserver.undo import undo

_EPILOG = """\
exit codes: 0 done, or solved; 1 not solved (--check), or nothing of lbdr's to undo; 2 wrong usage;
3 something only you can put right; 4 not root; 5 the kernel refused; 7 done and yet not solved;
8 files.  Documentation: docs/solve-arp.md
"""


def main(arguments: list[str]) -> int:
    """Run `lbdr solve-arp`.

    Args:
        arguments: those after the command's name.

    Returns:
        The exit code.
    """
    options = _parse(arguments)
    mode = "check" if options.check else "undo" if options.undo else "solve"
    request = Request(
        vips=tuple(dict.fromkeys(options.vip)),
        interface=options.interface,
        dry_run=options.dry_run,
        persist=options.persist,
        paths=persist.Paths(options.root),
    )
    report = Report()
    error: LbdrError | None = None
    boot_lines: list[str] = []
    boot_json: dict[str, Any] | None = None
    try:
        {"check": check, "undo": undo, "solve": solve}[mode](request, report)
        if mode == "check":
            boot_lines, boot_json = _at_boot(request, report)
    except LbdrError as caught:
        error = caught
        report.exit_code = caught.exit_code
    if options.json:
        sys.stdout.write(json.dumps(_as_json(mode, request, report, error, boot_json)) + "\n")
    else:
        _print(mode, request, report, error, boot_lines)
    return report.exit_code


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="lbdr solve-arp",
        description="Solve the ARP problem on a real server: hold the VIPs, and be silent about "
        "them. Without --check or --undo: do what is missing.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--vip",
        action="append",
        default=[],
        type=_vip,
        metavar="ADDRESS",
        help="a VIP, IPv4 or IPv6; may be repeated. --check and --undo without one: all of lbdr's",
    )
    parser.add_argument(
        "--interface",
        default="lo",
        metavar="NAME",
        help="where a missing VIP goes: lo (the default) or a dummy interface, never a NIC",
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--check", action="store_true", help="only say what is wrong")
    mode.add_argument("--undo", action="store_true", help="take back what solve-arp did")
    parser.add_argument("--dry-run", action="store_true", help="only print the commands")
    parser.add_argument(
        "--persist", action="store_true", help="over reboots, by a sysctl.d file and a systemd unit"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--root",
        type=Path,
        default=Path("/"),
        metavar="FOLDER",
        help="where etc and var are: for images that are being made, and for tests",
    )
    options = parser.parse_args(arguments)
    if options.check and options.dry_run:
        parser.error("--check changes nothing: --dry-run says nothing more")
    if options.persist and (options.check or options.undo):
        parser.error("--persist is for solving; --undo takes back what --persist did, too")
    if not options.vip and not options.check and not options.undo:
        parser.error("which VIP? --vip ADDRESS")
    return options


def _vip(text: str) -> Address:
    address_text, separator, prefix = text.partition("/")
    try:
        address = ipaddress.ip_address(address_text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not an IPv4 or IPv6 address") from None
    if separator and prefix != str(address.max_prefixlen):
        raise argparse.ArgumentTypeError(
            f"{text}: a VIP has no subnet; write {address}, which becomes "
            f"{address}/{address.max_prefixlen}"
        )
    wrong = (
        "a multicast address"
        if address.is_multicast
        else "the unspecified address"
        if address.is_unspecified
        else "a loopback address"
        if address.is_loopback
        else "a link-local address"
        if address.version == 6 and address.is_link_local
        else "an IPv4 address in IPv6's clothes"
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None
        else "the broadcast address"
        if str(address) == "255.255.255.255"
        else ""
    )
    if wrong:
        raise argparse.ArgumentTypeError(f"{text} is {wrong}, and no VIP")
    return address


def _at_boot(request: Request, report: Report) -> tuple[list[str], dict[str, Any]]:
    """What will be there after a reboot, as far as files say; no part of the verdict."""
    names = [conf("all", "arp_ignore"), conf("all", "arp_announce")]
    names = names if any(address.version == 4 for address in report.vips) else []
    shown: dict[str, Any] = {"sysctls": {}, "unit": {"enabled": False, "vips": []}, "error": None}
    lines: list[str] = []
    try:
        settings = boot.boot_settings(request.paths, names)
        for setting in settings:
            lines.append(f"at boot: {setting.name}={setting.value} ({setting.file})")
            shown["sysctls"][setting.name] = {"value": setting.value, "file": str(setting.file)}
        lines += [
            f"at boot: no sysctl.d file sets {name}"
            for name in names
            if name not in shown["sysctls"]
        ]
        unit = persist.read_unit(request.paths)
        if unit is None:
            lines.append(f"at boot: no {persist.UNIT}; other means to add VIPs are not looked at")
        else:
            vips = [str(address) for address in unit.vips]
            enabled = request.paths.wants.is_symlink()
            state = "enabled" if enabled else "NOT enabled"
            lines.append(f"at boot: {persist.UNIT}, {state}, adds {', '.join(vips)}")
            shown["unit"] = {"enabled": enabled, "vips": vips}
    except LbdrError as error:
        lines.append(f"at boot: unknown: {error}")
        shown["error"] = error.message
    return lines, shown


def _print(
    mode: str, request: Request, report: Report, error: LbdrError | None, boot_lines: list[str]
) -> None:
    out = sys.stdout
    shown = len(report.operations) if request.dry_run else report.done
    for operation in report.operations[:shown]:
        out.write(f"{operation.command}\n")
        if request.dry_run and isinstance(operation, WriteFile):
            out.writelines(f"    {line}\n" for line in operation.text.splitlines())
    if mode == "check":
        _print_findings(report.findings)
    for note in report.notes:
        out.write(f"note: {note}\n")
    out.writelines(f"{line}\n" for line in boot_lines)
    out.flush()
    if error is not None:
        sys.stderr.write(f"error: {error}\n")
        if report.operations and not request.dry_run and report.done:
            left = report.operations[report.done :]
            sys.stderr.writelines(f"  not done: {operation.command}\n" for operation in left)
        return
    out.write(_summary(mode, request, report) + "\n")


def _print_findings(findings: list[Finding]) -> None:
    for finding in findings:
        word = "wrong" if finding.severity is Severity.ERROR else "note"
        remedy = f"\n  remedy: {finding.remedy}" if finding.remedy else ""
        sys.stdout.write(f"{word}: {finding.message}{remedy}\n")


def _summary(mode: str, request: Request, report: Report) -> str:
    vips = ", ".join(str(address) for address in report.vips)
    if mode == "check":
        return f"solved: {vips}" if is_solved(report.findings) else f"not solved: {vips}"
    if not report.operations:
        return f"nothing to do: {vips} solved" if mode == "solve" else "nothing to undo"
    if request.dry_run:
        return "dry run: nothing was changed"
    return f"solved: {vips}" if mode == "solve" else f"undone: {vips}"


def _as_json(
    mode: str,
    request: Request,
    report: Report,
    error: LbdrError | None,
    boot_json: dict[str, Any] | None,
) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "mode": mode,
        "dry_run": request.dry_run,
        "vips": [str(address) for address in report.vips],
        "exit_code": report.exit_code,
        "findings": [
            {
                "code": finding.code,
                "severity": finding.severity.value,
                "message": finding.message,
                "remedy": finding.remedy,
                "fixable": finding.fixable,
                "vips": [str(address) for address in finding.vips],
                "interfaces": list(finding.interfaces),
            }
            for finding in report.findings
        ],
        "operations": [
            {"command": operation.command, "done": number < report.done}
            | ({"text": operation.text} if isinstance(operation, WriteFile) else {})
            for number, operation in enumerate(report.operations)
        ],
        "notes": report.notes,
    }
    if mode == "check":
        shown["solved"] = error is None and is_solved(report.findings)
        shown["at_boot"] = boot_json
    shown["error"] = (
        None
        if error is None
        else {"kind": type(error).__name__, "message": error.message, "hint": error.hint}
    )
    return shown
