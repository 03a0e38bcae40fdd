"""Where a VIP is on a real server, and where it ought to be. Pure.

Sources: net/ipv4/arp.c (inet_confirm_addr), net/ipv6/ndisc.c (ndisc_recv_ns), and
net/ipv4/fib_frontend.c (fib_add_ifaddr: a prefix on a loopback interface is local as a whole).
"""

from __future__ import annotations

from lbdr.model import InterfaceAddress, VirtualAddress
from lbdr.operations import AddAddress
from lbdr.realserver.findings import Finding, ServerState, conf


def judge_place(state: ServerState, vip: VirtualAddress) -> list[Finding]:
    """What is wrong with the place of a VIP; nothing when it is on a quiet interface.

    Args:
        state: what was observed.
        vip: the VIP, with the interface that it is to go to when it is missing.
    """
    held = [
        (interface.name, own)
        for interface in state.network.interfaces.values()
        for own in interface.addresses
        if own.ip == vip.address
    ]
    findings = [_judge_holder(state, vip, name, own) for name, own in held]
    return (
        [found for found in findings if found is not None] if held else _judge_missing(state, vip)
    )


def _judge_holder(
    state: ServerState, vip: VirtualAddress, name: str, own: InterfaceAddress
) -> Finding | None:
    remove = f"ip address del {own} dev {name}"
    again = f"{remove}; lbdr solve-arp --vip {vip.address}"
    if name not in state.quiet:
        how = (
            "it answers ARP requests for an address of its own with arp_ignore=1 too"
            if vip.address.version == 4
            else "neighbour solicitations for an address of its own are answered always"
        )
        elsewhere = [holder for holder in state.network.holders(vip.address) if holder != name]
        also = f"; that {elsewhere[0]} has it too does not help" if elsewhere else ""
        remedy = f"the VIP belongs on lo, and out of {name}'s configuration: {again}"
        if own.network.prefixlen != vip.prefix_length:
            # no command that would cut the host off, if it was followed
            remedy = (
                f"{own} looks like this host's own address: was another VIP meant? If it is the "
                f"VIP, give {name} an address of its own, and then the VIP its place on lo"
            )
        else:
            remedy += " (not on a director, which holds its VIPs just so)"
        return _beyond_us(
            "vip-on-nic",
            f"{own} is on {name}, which neighbours can ask: {how}{also}",
            remedy,
            vip,
            name,
        )
    if own.network.prefixlen != vip.prefix_length:
        return _beyond_us(
            "vip-prefix",
            f"{own} is on {name} with its whole subnet: this host takes the addresses of "
            f"{own.network} for its own or for {name}'s, and no longer reaches its neighbours there"
            + ("; without arp_ignore it answers for all of them" if own.version == 4 else ""),
            f"a VIP is {vip.address}/{vip.prefix_length}: {again}",
            vip,
            name,
        )
    if name in state.down:
        return _down(f"{own} is on {name}, which is down", vip, name)
    return None


def _judge_missing(state: ServerState, vip: VirtualAddress) -> list[Finding]:
    name, address = vip.interface, vip.address
    if name not in state.network.interfaces:
        label = name.partition(":")[0]
        remedy = (
            f"{name} is a label of {label}: --interface {label}"
            if label != name and label in state.network.interfaces
            else "--interface lo, or make it first; `ip link` lists what there is"
        )
        message = f"there is no interface {name} for the VIP {address}"
        return [_beyond_us("no-interface", message, remedy, vip, name)]
    if name not in state.quiet:
        message = f"the VIP {address} cannot go to {name}: it answers for its own addresses"
        remedy = "--interface lo (the default), or a dummy interface"
        return [_beyond_us("interface-answers", message, remedy, vip, name)]
    if name in state.down:
        return [_down(f"{name}, where the VIP {address} is to go, is down", vip, name)]
    setting = conf(name, "disable_ipv6", version=6)
    if address.version == 6 and state.sysctls.get(setting) != "0":
        message = f"IPv6 is disabled on {name}: the VIP {address} cannot be there"
        remedy = (
            f"sysctl -w {setting}=0"
            if state.sysctls.get(setting) is not None
            else "this kernel runs without IPv6: boot it without ipv6.disable=1"
        )
        return [_beyond_us("ipv6-disabled", message, remedy, vip, name)]
    return [
        Finding(
            "vip-missing",
            f"{address} is on no interface: the director's packets for it are not accepted here "
            "(to clients, a black hole)",
            AddAddress(vip).command,
            vips=(address,),
            interfaces=(name,),
        )
    ]


def _down(what: str, vip: VirtualAddress, name: str) -> Finding:
    message = f"{what}: the host does not accept packets for an address there"
    return _beyond_us("interface-down", message, f"ip link set {name} up", vip, name)


def _beyond_us(code: str, message: str, remedy: str, vip: VirtualAddress, name: str) -> Finding:
    """Something that only the administrator can put right."""
    return Finding(code, message, remedy, fixable=False, vips=(vip.address,), interfaces=(name,))
