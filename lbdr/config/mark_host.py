"""What virtual services that are told by a packet mark need of the machine."""

from __future__ import annotations

from collections.abc import Collection

from lbdr.config.load import Loaded
from lbdr.errors import Problem
from lbdr.marks import needing
from lbdr.model import MarkKey


def unmarkable(loaded: Loaded, reason: str) -> list[Problem]:
    """The services that cannot be served where no mark can be set.

    Args:
        loaded: the configuration.
        reason: why not.
    """
    return [
        loaded.problem(
            ("virtual_services", virtual.name, "ports"),
            f"{'any port' if virtual.ports.any else 'several ports'} as one decision "
            f"({virtual.ports}) need a packet mark, and it cannot be set here: {reason}",
            "mend that, or make a virtual service for each port",
        )
        for virtual in needing(loaded.configuration)
    ]


def collisions(loaded: Loaded, others: Collection[MarkKey]) -> list[Problem]:
    """Marks of the range by which others already tell a service.

    Args:
        loaded: the configuration.
        others: IPVS's virtual services that lbdr did not make.
    """
    allowed = loaded.configuration.director.marks
    found = sorted({key.mark for key in others if key.mark in allowed})
    if not found or not needing(loaded.configuration):
        return []
    return [
        loaded.problem(
            ("director", "marks"),
            f"the packet marks {allowed} are lbdr's to give, and IPVS has virtual services of "
            f"others there: {', '.join(map(str, found))}",
            "write a range that nobody else uses, such as `director: {marks: "
            f"{_beyond(allowed.last, others, len(allowed))}}}`",
        )
    ]


def _beyond(last: int, others: Collection[MarkKey], length: int) -> str:
    first = max([last, *(key.mark for key in others)]) + 1
    if first + length > 1 << 32:
        return "FIRST-LAST"
    return f"{first}-{first + length - 1}"
