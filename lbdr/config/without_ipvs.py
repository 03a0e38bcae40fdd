"""What a configuration asks of IPVS, and cannot have where the kernel has none, with its place."""

from __future__ import annotations

from lbdr.alone import Need, needs
from lbdr.config.load import Loaded
from lbdr.errors import Problem
from lbdr.model import FastPathUse, Forwarding

_A_KERNEL = "run a kernel with CONFIG_IP_VS"


def needs_ipvs(loaded: Loaded) -> list[Problem]:
    """Everything that only IPVS can do.

    Args:
        loaded: the configuration.
    """
    director = loaded.configuration.director
    found: list[Problem] = []
    if director.fastpath is FastPathUse.OFF:
        need = Need(("fastpath",), "`fastpath: off`", nothing=True)
        found.append(_problem(loaded, ("director",), need))
    if director.timeouts is not None:
        found.append(_problem(loaded, ("director",), Need(("timeouts",), "`timeouts`")))
    for service in loaded.configuration.virtual_services:
        if service.forwarding is Forwarding.DR:
            base = ("virtual_services", service.name)
            found += [_problem(loaded, base, need) for need in needs(service)]
    return found


def _problem(loaded: Loaded, base: tuple[str, ...], need: Need) -> Problem:
    why = "nothing else would forward" if need.nothing else "XDP alone forwards, and cannot do it"
    return loaded.problem(
        (*base, *need.path),
        f"{need.what} needs IPVS, which this kernel does not have: {why}",
        f"{need.instead}, or {_A_KERNEL}" if need.instead else _A_KERNEL,
    )
