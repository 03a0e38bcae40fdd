"""VLAN tags that come in and those that leave, and what becomes of their priorities."""

from __future__ import annotations

from tests.director_frames import tag

Q, AD = 0x8100, 0x88A8
OUTER, INNER = 5 << 13 | 1 << 12, 3 << 13  # priority and drop eligibility of the tags that come in

COME = {
    "no tag": (None, ()),
    "a tag": (tag(7, 5, dei=1), ((Q, 7),)),
    "an 802.1ad tag": (tag(7, 5, dei=1, outer=True), ((AD, 7),)),
    "two tags": (tag(7, 5, dei=1, outer=True) / tag(8, 3), ((AD, 7), (Q, 8))),
    "two 802.1Q tags": (tag(7, 5, dei=1) / tag(8, 3), ((Q, 7), (Q, 8))),
}
LEAVE: dict[str, tuple[tuple[int, int], ...]] = {
    "no tag": (),
    "a tag": ((Q, 100),),
    "an 802.1ad tag": ((AD, 100),),
    "two tags": ((AD, 100), (Q, 101)),
    "the last VLANs": ((Q, 4094), (Q, 4094)),
}


def tags_out(come: str, leave: str) -> tuple[tuple[int, int], ...]:
    """The tags that leave: the server's, with the priorities that came in."""
    priorities = (0, 0) if come == "no tag" else (OUTER, INNER if "two" in come else OUTER)
    return tuple(
        (tpid, vid | priority)
        for (tpid, vid), priority in zip(LEAVE[leave], priorities, strict=False)
    )
