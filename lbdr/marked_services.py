"""Whether virtual services that a packet mark tells can be had, before anything is changed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from lbdr.config.load import Loaded
from lbdr.config.mark_host import collisions, unmarkable
from lbdr.datapath.kernel import Kernel
from lbdr.errors import ConfigError, LbdrError
from lbdr.marks import needing
from lbdr.model import DesiredState, MarkKey
from lbdr.plan import Ownership, service_operations


async def refuse_collisions(
    loaded: Loaded,
    kernel: Kernel,
    desired: DesiredState,
    owned: Ownership,
    *,
    adopt: bool = False,
) -> None:
    """Refuse a range of marks by which others already tell services.

    One that is exactly as wanted is no other's: whoever lost the state made it.

    Args:
        loaded: the configuration.
        kernel: to be asked.
        desired: what it is to hold.
        owned: what lbdr made.
        adopt: those that are wanted are taken over, whatever they are.

    Raises:
        ConfigError: there are some.
    """
    if not needing(loaded.configuration):
        return
    others = []
    for key in kernel.service_keys() - owned.services:
        if not isinstance(key, MarkKey):
            continue
        wanted = desired.services.get(key)
        if wanted is not None and (
            adopt or not any(service_operations(wanted, kernel.ipvs.service(key)))
        ):
            continue
        others.append(key)
    problems = collisions(loaded, others)
    if problems:
        raise ConfigError(problems)


async def be_able_to_mark(loaded: Loaded, open_programs: Callable[[], Awaitable[None]]) -> None:
    """Have the programs that set marks, where a service needs one.

    Args:
        loaded: the configuration.
        open_programs: adopts or loads them.

    Raises:
        ConfigError: they cannot be had.
    """
    if not needing(loaded.configuration):
        return
    try:
        await open_programs()
    except LbdrError as error:
        reason = error.message + (f" ({error.hint})" if error.hint else "")
        raise ConfigError(unmarkable(loaded, reason)) from error
