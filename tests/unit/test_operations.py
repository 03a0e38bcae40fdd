"""Every operation reads as the command that an administrator would type."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from lbdr.model import (
    ForwardingMethod,
    MarkKey,
    Persistence,
    Protocol,
    RealServer,
    Service,
    ServiceKey,
    Timeouts,
    VirtualAddress,
)
from lbdr.operations import (
    AddAddress,
    AddRealServer,
    AddService,
    AnnounceAddress,
    DeleteAddress,
    DeleteRealServer,
    DeleteService,
    Operation,
    ProbeAddress,
    SetRealServer,
    SetService,
    SetSysctl,
    SetTimeouts,
)

TCP4 = ServiceKey(Protocol.TCP, ip_address("192.0.2.50"), 80)
TCP6 = ServiceKey(Protocol.TCP, ip_address("2001:db8::50"), 443)
UDP4 = ServiceKey(Protocol.UDP, ip_address("192.0.2.50"), 53)
SCTP6 = ServiceKey(Protocol.SCTP, ip_address("2001:db8::50"), 3868)
ANY4 = ServiceKey(Protocol.TCP, ip_address("192.0.2.50"), 0)
RS4 = RealServer(ip_address("192.0.2.31"), 80)
RS6 = RealServer(ip_address("2001:db8::31"), 443, weight=0)
VIP4 = VirtualAddress(ip_address("192.0.2.50"), "eth0")
VIP6 = VirtualAddress(ip_address("2001:db8::50"), "eth0.100")

COMMANDS: list[tuple[Operation, str]] = [
    (AddService(Service(TCP4, "wlc")), "ipvsadm -A -t 192.0.2.50:80 -s wlc"),
    (AddService(Service(TCP6, "rr")), "ipvsadm -A -t [2001:db8::50]:443 -s rr"),
    (
        AddService(Service(UDP4, "sh", frozenset({"sh-port", "sh-fallback"}), one_packet=True)),
        "ipvsadm -A -u 192.0.2.50:53 -s sh -b sh-fallback,sh-port -o",
    ),
    (
        AddService(Service(SCTP6, "mh", frozenset({"mh-port"}))),
        "ipvsadm -A --sctp-service [2001:db8::50]:3868 -s mh -b mh-port",
    ),
    # the default granularity is not spoken of
    (
        AddService(Service(ANY4, "wlc", persistence=Persistence(300, 32))),
        "ipvsadm -A -t 192.0.2.50:0 -s wlc -p 300",
    ),
    (
        AddService(Service(ANY4, "wlc", persistence=Persistence(300, 23))),
        "ipvsadm -A -t 192.0.2.50:0 -s wlc -p 300 -M 255.255.254.0",
    ),
    (
        AddService(Service(TCP6, "wlc", persistence=Persistence(60, 128))),
        "ipvsadm -A -t [2001:db8::50]:443 -s wlc -p 60",
    ),
    (
        SetService(Service(TCP6, "wlc", persistence=Persistence(60, 64))),
        "ipvsadm -E -t [2001:db8::50]:443 -s wlc -p 60 -M 64",
    ),
    (AddService(Service(MarkKey(7, 4), "wlc")), "ipvsadm -A -f 7 -s wlc"),
    (
        AddService(Service(MarkKey(7, 6), "wlc", persistence=Persistence(60, 64))),
        "ipvsadm -A -f 7 -6 -s wlc -p 60 -M 64",
    ),
    (DeleteService(TCP6), "ipvsadm -D -t [2001:db8::50]:443"),
    (DeleteService(MarkKey(7, 6)), "ipvsadm -D -f 7 -6"),
    (AddRealServer(TCP4, RS4), "ipvsadm -a -t 192.0.2.50:80 -r 192.0.2.31:80 -g -w 1"),
    (AddRealServer(TCP6, RS6), "ipvsadm -a -t [2001:db8::50]:443 -r [2001:db8::31]:443 -g -w 0"),
    (
        SetRealServer(TCP4, replace(RS4, weight=65535, upper_threshold=200, lower_threshold=150)),
        "ipvsadm -e -t 192.0.2.50:80 -r 192.0.2.31:80 -g -w 65535 -x 200 -y 150",
    ),
    (
        AddRealServer(TCP4, replace(RS4, method=ForwardingMethod.TUNNEL)),
        "ipvsadm -a -t 192.0.2.50:80 -r 192.0.2.31:80 -i -w 1",
    ),
    (
        AddRealServer(TCP4, replace(RS4, method=ForwardingMethod.MASQUERADE)),
        "ipvsadm -a -t 192.0.2.50:80 -r 192.0.2.31:80 -m -w 1",
    ),
    (DeleteRealServer(UDP4, RS4), "ipvsadm -d -u 192.0.2.50:53 -r 192.0.2.31:80"),
    (SetTimeouts(Timeouts(tcp=7200, udp=60)), "ipvsadm --set 7200 0 60"),
    (SetSysctl("net.ipv4.vs.conntrack", "0"), "sysctl -w net.ipv4.vs.conntrack=0"),
    # what needs quoting in a shell is quoted
    (
        SetSysctl("net.ipv4.ip_local_port_range", "1 9"),
        "sysctl -w 'net.ipv4.ip_local_port_range=1 9'",
    ),
    (ProbeAddress(VIP4), "arping -D -c 2 -I eth0 192.0.2.50"),
    (ProbeAddress(VIP6), "ndptool -t ns -i eth0.100 -T 2001:db8::50 send"),
    (AddAddress(VIP4), "ip address add 192.0.2.50/32 dev eth0"),
    (AddAddress(VIP6), "ip address add 2001:db8::50/128 dev eth0.100 nodad preferred_lft 0"),
    (DeleteAddress(VIP4), "ip address del 192.0.2.50/32 dev eth0"),
    (DeleteAddress(VIP6), "ip address del 2001:db8::50/128 dev eth0.100"),
    (AnnounceAddress(VIP4, repeat=3), "arping -U -c 3 -I eth0 192.0.2.50"),
    (AnnounceAddress(VIP6), "ndptool -t na -U -i eth0.100 -T 2001:db8::50 send"),
]


@pytest.mark.parametrize(("operation", "command"), COMMANDS)
def test_command(operation: Operation, command: str) -> None:
    assert operation.command == command


def test_names_of_the_user_are_in_no_command() -> None:
    service = Service(TCP4, "wlc", name="WEB; rm -rf /")
    server = replace(RS4, name="$(reboot)")
    for operation in (AddService(service), SetService(service), AddRealServer(TCP4, server)):
        assert ";" not in operation.command
        assert "$" not in operation.command
