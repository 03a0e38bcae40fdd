"""What the programs counted, read from their maps: also by who does not keep them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lbdr.datapath import xdp_layout as layout
from lbdr.datapath.xdp_keys import read_keys
from lbdr.datapath.xdp_layout import PASSED_UP, Reason
from lbdr.datapath.xdp_maps import DirectorMaps
from lbdr.model import Address, Traffic


@dataclass(frozen=True, slots=True)
class Counted:
    """What was counted of a service.

    Args:
        servers: packets and bytes that each real server got.
        reasons: packets that were not forwarded, where there is no IPVS.
    """

    servers: dict[Address, tuple[int, int]] = field(default_factory=dict)
    reasons: Mapping[Reason, int] = field(default_factory=dict)


def served(maps: DirectorMaps, place: int) -> tuple[int, int]:
    """Packets and bytes that the real server at a place got."""
    counts = maps["served"]
    packets, octets = counts.totals(counts.lookup(layout.U32.pack(place)) or b"")
    return packets, octets


def reasons(maps: DirectorMaps, service: int, *, tc: bool) -> dict[Reason, int]:
    """Packets of the service at a place that were not forwarded; 0 is of none yet.

    Args:
        maps: open.
        service: its place.
        tc: counted at tc ingress, which sees what XDP passed up, instead of in XDP.
    """
    first = service * layout.REASONS + tc * layout.REASONS_OF_TC
    counts = maps.array("reasons")
    size = counts.value_size
    values = counts.read_range(first, layout.REASONS_OF_TC)
    totals = {
        reason: counts.totals(values[reason * size : (reason + 1) * size])[0] for reason in Reason
    }
    return {reason: count for reason, count in totals.items() if count}


def without_ipvs(xdp: Mapping[Reason, int], tc: Mapping[Reason, int]) -> dict[Reason, int]:
    """Reasons of both programs where there is no IPVS: XDP drops most packets itself.

    Args:
        xdp: what it counted.
        tc: what tc ingress counted, with what XDP passed up.
    """
    found = dict(tc)
    for reason, count in xdp.items():
        if reason not in PASSED_UP:
            found[reason] = found.get(reason, 0) + count
    return found


def read_pinned(directory: Path) -> dict[Traffic, Counted]:
    """What was counted of each service of a director without IPVS, by its packets.

    Args:
        directory: of the pins.

    Raises:
        PrivilegeError, KernelError: the maps cannot be opened.
    """
    with DirectorMaps.open(directory) as maps:
        services = read_keys(maps)
        found = {
            index: Counted(
                reasons=without_ipvs(*(reasons(maps, index, tc=tc) for tc in (False, True)))
            )
            for index in services
        }
        for key, value in maps["places"].items():
            index, rip = layout.placed_of(key)
            if index in found:
                found[index].servers[rip] = served(maps, layout.PLACED.unpack(value)[0])
    return {services[index]: counted for index, counted in found.items()}
