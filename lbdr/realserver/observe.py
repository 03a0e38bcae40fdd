"""What a real server's kernel says; reads only, and needs no root."""

from __future__ import annotations

import os
from pathlib import Path

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from lbdr.datapath import sysctl
from lbdr.datapath.addresses import observe_network
from lbdr.datapath.namespace import namespace_id
from lbdr.errors import KernelError
from lbdr.realserver.findings import ServerState, wanted_sysctls

# include/uapi/linux/if.h, include/uapi/linux/if_arp.h
_IFF_UP = 0x1
_IFF_LOOPBACK = 0x8
_IFF_NOARP = 0x80
_ARPHRD_ETHER = 1
_NEVER_ASKED = frozenset({"dummy", "ifb", "nlmon", "vrf"})  # Ethernet by type, with no wire


def server_state(interface: str) -> ServerState:
    """All that judging goes by, of the calling thread's network namespace.

    Args:
        interface: where VIPs are to go.

    Raises:
        KernelError: the kernel refuses to list interfaces, or to read a sysctl.
    """
    network = observe_network()
    nics: list[str] = []
    quiet: set[str] = set()
    down: set[str] = set()
    try:
        with IPRoute() as route:
            links = list(route.get_links())
    except NetlinkError as error:
        raise KernelError("ip link show", errno=error.code) from error
    for link in links:
        name, flags = link.get_attr("IFLA_IFNAME"), link["flags"]
        if name not in network.interfaces:
            continue  # it came between the two dumps
        if not flags & _IFF_UP:
            down.add(name)
        silent = flags & _IFF_NOARP and (
            link["ifi_type"] != _ARPHRD_ETHER or link.get(("linkinfo", "kind")) in _NEVER_ASKED
        )
        if flags & _IFF_LOOPBACK or silent:
            quiet.add(name)
        else:  # one with `arp off` as well: neighbour solicitations it does answer
            nics.append(name)
    return ServerState(
        network=network,
        nics=tuple(nics),
        quiet=frozenset(quiet),
        down=frozenset(down),
        sysctls=sysctl.observe(wanted_sysctls(nics, interface)),
    )


def in_machine_namespace() -> bool:
    """Whether this is the network namespace of process 1, in which units run at boot.

    Without root that cannot be told; then nothing is written either, and the answer is yes.
    """
    try:
        return Path("/proc/1/ns/net").stat().st_ino == namespace_id()
    except OSError:
        return True


def is_root() -> bool:
    """Whether this process may change what root may."""
    return os.geteuid() == 0
