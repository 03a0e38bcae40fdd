"""Changes to the kernel, as data; each prints as the command an administrator would type.

Sources for the texts: ipvsadm(8), ip-address(8), sysctl(8), arping(8), ndptool(8).
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from lbdr.model import (
    ForwardingMethod,
    Key,
    MarkKey,
    Protocol,
    RealServer,
    Service,
    Timeouts,
    VirtualAddress,
    endpoint,
)

_METHOD_OPTION = {
    ForwardingMethod.DR: "-g",
    ForwardingMethod.TUNNEL: "-i",
    ForwardingMethod.MASQUERADE: "-m",
    # ipvsadm has no option for these two; -g is what they were made with
    ForwardingMethod.LOCAL: "-g",
    ForwardingMethod.BYPASS: "-g",
}


def service_option(key: Key) -> str:
    """The words by which ipvsadm names a virtual service."""
    if isinstance(key, MarkKey):
        return f"-f {key.mark}" + (" -6" if key.version == 6 else "")
    letter = {Protocol.TCP: "-t", Protocol.UDP: "-u", Protocol.SCTP: "--sctp-service"}
    return f"{letter[key.protocol]} {endpoint(key.address, key.port)}"


def _service_words(service: Service) -> str:
    words = [service_option(service.key), f"-s {service.scheduler}"]
    if service.persistence is not None:
        words.append(f"-p {service.persistence.timeout}")
        mask = _granularity_word(service)
        if mask:
            words.append(mask)
    if service.flags:
        words.append(f"-b {','.join(sorted(service.flags))}")
    if service.one_packet:
        words.append("-o")
    return " ".join(words)


def _granularity_word(service: Service) -> str:
    if service.persistence is None:
        return ""
    length = service.persistence.granularity
    version = service.key.version
    if version == 6:
        return "" if length == 128 else f"-M {length}"
    mask = (0xFFFFFFFF << (32 - length)) & 0xFFFFFFFF
    dotted = ".".join(str(mask >> shift & 0xFF) for shift in (24, 16, 8, 0))
    return "" if length == 32 else f"-M {dotted}"


def _real_server_words(key: Key, server: RealServer) -> str:
    words = [
        service_option(key),
        f"-r {endpoint(server.address, server.port)}",
        _METHOD_OPTION[server.method],
        f"-w {server.weight}",
    ]
    if server.upper_threshold or server.lower_threshold:
        words.append(f"-x {server.upper_threshold} -y {server.lower_threshold}")
    return " ".join(words)


def _quoted(vip: VirtualAddress) -> str:
    """The interface's name as a word: Linux allows any character but slash and space in it."""
    return shlex.quote(vip.interface)


@dataclass(frozen=True, slots=True)
class AddService:
    """Add a virtual service, without its real servers."""

    service: Service

    @property
    def command(self) -> str:
        """The ipvsadm line."""
        return f"ipvsadm -A {_service_words(self.service)}"


@dataclass(frozen=True, slots=True)
class SetService:
    """Change a virtual service's scheduler, flags or persistence."""

    service: Service

    @property
    def command(self) -> str:
        """The ipvsadm line."""
        return f"ipvsadm -E {_service_words(self.service)}"


@dataclass(frozen=True, slots=True)
class DeleteService:
    """Delete a virtual service with its real servers."""

    key: Key

    @property
    def command(self) -> str:
        """The ipvsadm line."""
        return f"ipvsadm -D {service_option(self.key)}"


@dataclass(frozen=True, slots=True)
class AddRealServer:
    """Add a real server to a virtual service."""

    key: Key
    real_server: RealServer

    @property
    def command(self) -> str:
        """The ipvsadm line."""
        return f"ipvsadm -a {_real_server_words(self.key, self.real_server)}"


@dataclass(frozen=True, slots=True)
class SetRealServer:
    """Change a real server's weight, thresholds or forwarding method."""

    key: Key
    real_server: RealServer

    @property
    def command(self) -> str:
        """The ipvsadm line."""
        return f"ipvsadm -e {_real_server_words(self.key, self.real_server)}"


@dataclass(frozen=True, slots=True)
class DeleteRealServer:
    """Delete a real server from a virtual service."""

    key: Key
    real_server: RealServer

    @property
    def command(self) -> str:
        """The ipvsadm line."""
        server = endpoint(self.real_server.address, self.real_server.port)
        return f"ipvsadm -d {service_option(self.key)} -r {server}"


@dataclass(frozen=True, slots=True)
class SetTimeouts:
    """Set IPVS's timeouts of this network namespace; 0 leaves one as it is."""

    timeouts: Timeouts

    @property
    def command(self) -> str:
        """The ipvsadm line."""
        return f"ipvsadm --set {self.timeouts.tcp} {self.timeouts.tcp_fin} {self.timeouts.udp}"


@dataclass(frozen=True, slots=True)
class SetSysctl:
    """Set a sysctl.

    Args:
        name: dotted, as sysctl(8) writes it.
        value: as text.
    """

    name: str
    value: str

    @property
    def command(self) -> str:
        """The sysctl line."""
        return f"sysctl -w {shlex.quote(f'{self.name}={self.value}')}"


@dataclass(frozen=True, slots=True)
class ProbeAddress:
    """Ask whether another host has a VIP, before it is claimed."""

    vip: VirtualAddress

    @property
    def command(self) -> str:
        """The arping or ndptool line."""
        if self.vip.address.version == 6:
            return f"ndptool -t ns -i {_quoted(self.vip)} -T {self.vip.address} send"
        return f"arping -D -c 2 -I {_quoted(self.vip)} {self.vip.address}"


@dataclass(frozen=True, slots=True)
class AddAddress:
    """Add an address to an interface, with a host prefix."""

    vip: VirtualAddress

    @property
    def command(self) -> str:
        """The ip line.

        IPv6 without the kernel's DAD, since it was probed before, and deprecated, so that this host
        does not choose it as the source of its own connections (RFC 6724, rule 3).
        """
        options = " nodad preferred_lft 0" if self.vip.address.version == 6 else ""
        target = f"{self.vip.address}/{self.vip.prefix_length}"
        return f"ip address add {target} dev {_quoted(self.vip)}{options}"


@dataclass(frozen=True, slots=True)
class DeleteAddress:
    """Delete an address from an interface."""

    vip: VirtualAddress

    @property
    def command(self) -> str:
        """The ip line."""
        target = f"{self.vip.address}/{self.vip.prefix_length}"
        return f"ip address del {target} dev {_quoted(self.vip)}"


@dataclass(frozen=True, slots=True)
class AnnounceAddress:
    """Announce a VIP by gratuitous ARP or unsolicited neighbour advertisements."""

    vip: VirtualAddress
    repeat: int = 5

    @property
    def command(self) -> str:
        """The arping or ndptool line."""
        if self.vip.address.version == 6:
            return f"ndptool -t na -U -i {_quoted(self.vip)} -T {self.vip.address} send"
        return f"arping -U -c {self.repeat} -I {_quoted(self.vip)} {self.vip.address}"


IpvsOperation = (
    AddService
    | SetService
    | DeleteService
    | AddRealServer
    | SetRealServer
    | DeleteRealServer
    | SetTimeouts
)
AddressOperation = ProbeAddress | AddAddress | DeleteAddress | AnnounceAddress
Operation = IpvsOperation | AddressOperation | SetSysctl


def service_key(operation: Operation) -> Key | None:
    """The virtual service that an operation is about; None for the others."""
    match operation:
        case AddService(service) | SetService(service):
            return service.key
        case DeleteService(key) | AddRealServer(key) | SetRealServer(key) | DeleteRealServer(key):
            return key
    return None
