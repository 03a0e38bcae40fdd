"""Which real server a client gets, by a configuration file alone; pure."""

from __future__ import annotations

from collections.abc import Sequence

from lbdr.desired import service_for
from lbdr.explain import Asked, Choice, Explanation, InTable, QuestionError, by_table
from lbdr.fastpath import is_table
from lbdr.maglev import DEFAULT_INDEX
from lbdr.model import RealServer


def offline(
    question: Asked, order: Sequence[str] | None = None, index: int = DEFAULT_INDEX
) -> Explanation:
    """The answer of a file alone: that of a director which just began.

    Args:
        question: about a service of the file.
        order: names of its real servers as they were added; None for the file's order.
        index: CONFIG_IP_VS_MH_TAB_INDEX of the kernel.

    Raises:
        QuestionError: the order does not name each of the real servers once.
    """
    service = service_for(question.virtual, {})
    if not is_table(service):
        sticks = " and its persistence" if service.persistence else ""
        why = f"IPVS decides at the first packet, by {service.scheduler}{sticks}: by connections "
        why += "and turns, which no file has"
        return question.answer(
            Choice(by="ipvs", why=why),
            offline=True,
            notes=["on the director, without --offline, it is known for open connections"],
        )
    servers = service.real_servers if order is None else _ordered(service.real_servers, order)
    # the kernel puts a new one before the others
    listed = [
        InTable(server.address, server.port, server.weight, server.weight)
        for server in reversed(servers)
    ]
    names = ", ".join(server.name or str(server.address) for server in servers)
    whose = "" if order else ", that of the file"
    unknown = "drains and weights that were set while the director runs are not known here, nor "
    unknown += "servers that failed, nor what was open before a change"
    notes = [unknown, f"added in this order: {names}{whose}; --order says another one"]
    if any(not server.weight for server in servers):
        notes.append("who began with weight 0 has no slot; who is drained later keeps its slots")
    found = by_table(question, listed, index)
    return question.answer(found, offline=True, table=found, notes=notes)


def _ordered(servers: Sequence[RealServer], order: Sequence[str]) -> list[RealServer]:
    by_name = {server.name: server for server in servers}
    if sorted(order) != sorted(by_name):
        raise QuestionError(
            f"--order names {', '.join(order) or 'nobody'}",
            hint=f"name each real server of the service once: {','.join(by_name)}",
        )
    return [by_name[name] for name in order]
