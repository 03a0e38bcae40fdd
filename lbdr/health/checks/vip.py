"""vip: the service answers on the VIP itself, on this one server."""

from __future__ import annotations

from lbdr.datapath.vip_probe import VipAnswer, VipProber
from lbdr.errors import LbdrError
from lbdr.health.checks.attempt import Attempt, CheckError
from lbdr.health.results import FailureKind
from lbdr.health.spec import Vip


async def vip(_check: Vip, attempt: Attempt, prober: VipProber) -> str:
    """Whether the server still has the VIP, and listens on it."""
    target = attempt.target
    if target.vip is None or not target.vip_port:
        words = "could not be asked: a vip check needs a VIP and a port"
        raise CheckError(words, FailureKind.LOCAL)
    attempt.missing = (
        f"did not answer for the VIP {target.vip} port {target.vip_port}: it lost the VIP, or its "
        "service hangs; `lbdr solve-arp --check` on the server tells"
    )
    try:
        answer = await prober.probe(target.vip, target.vip_port, target.address)
    except LbdrError as error:
        raise CheckError(f"could not be asked: {error.message}", FailureKind.LOCAL) from error
    if answer is VipAnswer.REFUSED:
        words = f"has the VIP {target.vip}, but nothing listens on its port {target.vip_port}"
        raise CheckError(words, FailureKind.REFUSED)
    return f"answers on the VIP {target.vip} port {target.vip_port}"
