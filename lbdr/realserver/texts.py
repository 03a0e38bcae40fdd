"""The texts of the files that make a solved ARP problem survive a reboot. Pure."""

from __future__ import annotations

import ipaddress
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field

from lbdr.model import Address

HEADER = "# Written by `lbdr solve-arp --persist`; `lbdr solve-arp --undo` removes it."


@dataclass(frozen=True, slots=True)
class Unit:
    """What the unit of ours says.

    Args:
        command: the words that start lbdr, as ExecStart is to have them.
        environment: a line of its own, or nothing.
        vips: the VIPs, and where each goes.
    """

    command: str
    environment: str = ""
    vips: Mapping[Address, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The unit file."""
        by_interface: dict[str, list[Address]] = {}
        for address, interface in self.vips.items():
            by_interface.setdefault(interface, []).append(address)
        starts = []
        for interface, addresses in by_interface.items():
            words = [f"--vip {address}" for address in addresses]
            words += [] if interface == "lo" else [f"--interface {quote(interface)}"]
            starts.append(f"ExecStart={self.command} solve-arp {' '.join(words)}")
        return _UNIT_TEXT.format(
            header=HEADER,
            ordering=_ordering(sorted(by_interface.keys() - {"lo"})),
            starts="\n".join([*([self.environment] if self.environment else []), *starts]),
        )


_UNIT_TEXT = """\
{header}
[Unit]
Description=VIPs of a real server behind a Direct Routing director, and silence about them
Documentation=man:arp(7)
DefaultDependencies=no
{ordering}
Conflicts=shutdown.target
Before=shutdown.target

[Service]
Type=oneshot
RemainAfterExit=yes
{starts}
StateDirectory=lbdr
CapabilityBoundingSet=CAP_NET_ADMIN
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=read-only
PrivateDevices=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
# sysctls are what it is for
ProtectKernelTunables=no
RestrictAddressFamilies=AF_NETLINK AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service

[Install]
WantedBy=multi-user.target
"""


def _ordering(other_interfaces: list[str]) -> str:
    """When the unit runs.

    With lo, which is there from the first moment: after the sysctls of sysctl.d, before any NIC is
    configured. Another interface is made by the network's own configuration, so that the unit has
    to wait for it; the sysctls are in force by then all the same.
    """
    if not other_interfaces:
        return (
            "After=local-fs.target systemd-sysctl.service\n"
            "Wants=network-pre.target\n"
            "Before=network-pre.target"
        )
    devices = " ".join(
        f"sys-subsystem-net-devices-{_device(name)}.device" for name in other_interfaces
    )
    return f"Wants={devices}\nAfter=local-fs.target systemd-sysctl.service {devices}"


def _device(name: str) -> str:
    """An interface's name as systemd.unit(5) escapes it in a device unit's."""
    escaped = "".join(
        letter
        if letter.isascii() and (letter.isalnum() or letter in ":_.")
        else "".join(f"\\x{byte:02x}" for byte in letter.encode())
        for letter in name
    )
    return f"\\x2e{escaped[1:]}" if escaped.startswith(".") else escaped


def quote(word: str) -> str:
    """A word of ExecStart (systemd.service(5), command lines; systemd.unit(5), specifiers)."""
    word = word.replace("\\", "\\\\").replace("%", "%%").replace("$", "$$")
    if any(letter.isspace() or letter in "\"';" for letter in word):
        return '"' + word.replace('"', '\\"') + '"'
    return word


def parse_unit(text: str) -> Unit:
    """What a unit of ours says.

    Raises:
        ValueError: it is none, or was edited beyond recognition.
    """
    if not text.startswith(HEADER):
        raise ValueError("it does not begin with lbdr's header")
    command, environment = "", ""
    vips: dict[Address, str] = {}
    for line in text.splitlines():
        if line.startswith("Environment="):
            environment = line
        if not line.startswith("ExecStart="):
            continue
        command, separator, flags = line.removeprefix("ExecStart=").partition(" solve-arp ")
        words = shlex.split(flags)
        options = list(zip(words[::2], words[1::2], strict=True))
        interface = dict(options).get("--interface", "lo").replace("%%", "%").replace("$$", "$")
        if not separator or not {name for name, _ in options} <= {"--vip", "--interface"}:
            raise ValueError(f"{line!r} is not lbdr's")
        vips |= {
            ipaddress.ip_address(value): interface for name, value in options if name == "--vip"
        }
    return Unit(command, environment, vips)


def sysctl_text(settings: Mapping[str, str]) -> str:
    """The sysctl.d file (sysctl.d(5) reads the same names as sysctl(8) does)."""
    lines = [f"{name} = {value}" for name, value in sorted(settings.items())]
    return "\n".join([HEADER, *lines, ""])


def parse_sysctls(text: str) -> dict[str, str]:
    """The settings of a sysctl.d file, by name; names with a leading slash-separated part too."""
    settings = {}
    for raw in text.splitlines():
        line = raw.strip()
        name, separator, value = line.partition("=")
        name = name.strip().removeprefix("-")
        if not separator or line[:1] in ("#", ";"):
            continue
        if "/" in name and "." not in name.partition("/")[0]:
            name = name.translate(str.maketrans("./", "/."))
        settings[name] = value.strip()
    return settings
