"""What is observed of a real server, and what is found wrong with it: data only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from lbdr.model import Address, HostNetwork


class Severity(StrEnum):
    """Whether a finding means that the problem is not solved."""

    ERROR = "error"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong on this real server, or worth knowing.

    Args:
        code: a stable word for it (docs/solve-arp.md lists them).
        message: what was found, and why it matters.
        remedy: what to do; empty where there is nothing to do.
        severity: a note does not make the problem unsolved.
        fixable: whether `lbdr solve-arp` puts it right by itself.
        vips: those that it is about.
        interfaces: those that it is about.
    """

    code: str
    message: str
    remedy: str = ""
    severity: Severity = Severity.ERROR
    fixable: bool = True
    vips: tuple[Address, ...] = ()
    interfaces: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ServerState:
    """What matters of a real server's network.

    Args:
        network: its interfaces and addresses.
        nics: interfaces on which ARP requests arrive and are answered.
        quiet: interfaces that no neighbour can ask, where a VIP may be (lo, dummy, tunnels).
        down: interfaces that are administratively down.
        sysctls: by name; None for one that does not exist.
    """

    network: HostNetwork
    nics: tuple[str, ...] = ()
    quiet: frozenset[str] = frozenset({"lo"})
    down: frozenset[str] = frozenset()
    sysctls: Mapping[str, str | None] = field(default_factory=dict)

    def value(self, name: str) -> int:
        """A sysctl as a number; 0 where it does not exist."""
        return int(self.sysctls.get(name) or 0)

    def effective(self, setting: str, interface: str) -> int:
        """The greater one of `all` and the interface, which is what the kernel goes by."""
        return max(self.value(conf("all", setting)), self.value(conf(interface, setting)))


def conf(interface: str, setting: str, version: int = 4) -> str:
    """The name of an interface's sysctl, as sysctl(8) writes it: a slash for a dot in the name."""
    return f"net.ipv{version}.conf.{interface.replace('.', '/')}.{setting}"


def wanted_sysctls(nics: Iterable[str], interface: str) -> list[str]:
    """The names of all sysctls that judging looks at.

    Args:
        nics: interfaces on which ARP requests arrive.
        interface: where the VIP is to be.
    """
    names = [
        conf(name, setting)
        for name in dict.fromkeys(["all", "default", "lo", interface, *nics])
        for setting in ("arp_ignore", "arp_announce", "rp_filter")
    ]
    return [*names, conf(interface, "disable_ipv6", version=6)]


def solved(findings: Iterable[Finding]) -> bool:
    """Whether no finding is an error."""
    return not any(finding.severity is Severity.ERROR for finding in findings)
