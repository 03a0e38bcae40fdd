"""What the programs counted, for status."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from lbdr.datapath.bpf_links import device as device_name
from lbdr.datapath.xdp import FastPath
from lbdr.datapath.xdp_attach import Attachment
from lbdr.datapath.xdp_layout import Reason
from lbdr.fastpath_status import FastCounts
from lbdr.model import Key
from lbdr.status import FastPathDevice, FastPathDirector


def told(
    fast: FastPath,
    names: Mapping[Key, str],
    devices: Iterable[Attachment],
    reasons: Callable[[Key | None], Mapping[Reason, int]],
) -> tuple[FastPathDirector, dict[str, FastCounts]]:
    """The fast path of a director, and the counters of each service by its name.

    Args:
        fast: whose maps are read.
        names: of the services.
        devices: that it is attached to.
        reasons: why packets of a service were not forwarded; of none for None.
    """
    counts = {
        name: FastCounts(
            {str(rip): served for rip, served in fast.served(key).items()}, _words(reasons(key))
        )
        for key, name in names.items()
        if key in fast.forwarded
    }
    director = FastPathDirector(
        state="forwards",
        devices=[
            FastPathDevice(
                device=device_name(each.ifindex),
                mode="native" if each.xdp else "tc",
                reason=each.reason,
            )
            for each in devices
        ],
        not_forwarded=_words(reasons(None)),
    )
    return director, counts


def _words(reasons: Mapping[Reason, int]) -> dict[str, int]:
    return {reason.name.lower(): count for reason, count in reasons.items()}
