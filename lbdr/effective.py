"""From decisions on who serves to the weights that the kernel is to hold; pure."""

from __future__ import annotations

from collections.abc import Mapping

from lbdr.desired import Weights
from lbdr.health.decision import Decision, Presence


def by_health(decisions: Mapping[str, Decision]) -> Weights:
    """The weight of each real server: None where it is out, 0 where it takes nothing new.

    Args:
        decisions: by virtual service.
    """
    return {
        (name, server): None if share.presence is Presence.OUT else share.weight
        for name, decision in decisions.items()
        for server, share in decision.shares.items()
    }
