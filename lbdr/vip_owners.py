"""Who answers for the VIPs that this director does not hold."""

from __future__ import annotations

import logging

from lbdr.datapath import arp
from lbdr.errors import LbdrError
from lbdr.model import Configuration, HostNetwork, VirtualAddress

log = logging.getLogger(__name__)

_WAIT = 0.1  # seconds


async def vip_owners(configuration: Configuration, network: HostNetwork) -> dict[str, str]:
    """MACs by VIP, of other hosts that answer; all VIPs are asked for at once.

    An interface that cannot be asked leaves its VIPs without an answer.

    Args:
        configuration: whose VIPs are meant.
        network: this host's interfaces.
    """
    missing: list[VirtualAddress] = []
    for virtual in configuration.virtual_services:
        place = network.interface_for(virtual.address)
        name = virtual.interface or (place.name if place else "")
        interface = network.interfaces.get(name)
        if interface is not None and interface.up and not network.holders(virtual.address):
            missing.append(VirtualAddress(virtual.address, name))
    try:
        answers = await arp.answerers(list(dict.fromkeys(missing)), network, _WAIT)
    except LbdrError as error:
        log.debug("nobody was asked for VIPs: %s", error)
        return {}
    return {str(vip.address): mac for vip, mac in answers.items()}
