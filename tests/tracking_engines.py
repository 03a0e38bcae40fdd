"""Where a frame goes, asked of one engine or of all of them on the same maps."""

from __future__ import annotations

from lbdr.datapath import xdp_layout as layout
from lbdr.datapath.bpf_programs import RunResult
from lbdr.tracking import Record
from tests.fastpath import World, tick
from tests.tracking_control import SERVER_MAC

_GUARD_FULL = 1 << 30
_ZERO = layout.U32.pack(0)

Answer = tuple[int | None, dict[bytes, Record]]
"""The server, and the records that became others, but for their ticks."""


class EnginesDifferError(Exception):
    """The engines send one frame to several servers, or leave other records."""


class Engines:
    """XDP, its director alone, and tc ingress.

    Args:
        world: programs and maps.
    """

    def __init__(self, world: World) -> None:
        self.guarded = False
        """Each CPU has written as many records as it may in this tick."""
        self._world = world
        self._records = world.maps["records"]
        self._guard = world.maps["guard"]

    def one(self, frame: bytes) -> int | None:
        """The server that XDP sends a frame to; None for none."""
        self._write_guard()
        return _server(self._world.run_xdp(frame))

    def all(self, frame: bytes) -> int | None:
        """The same, asked of all engines, each on the maps as they were before.

        Raises:
            EnginesDifferError: the engines do not agree.
        """
        before = dict(self._records.items())
        began = -1
        answers: list[Answer] = []
        while began != tick():  # the guard is another one in another tick
            began = tick()
            runs = (self._world.run_tc, self._world.run_director, self._world.run_xdp)
            answers = []
            for run in runs:
                self._records.delete_many(set(self._records.keys()) - before.keys())
                self._records.update_many(before)
                self._write_guard()
                answers.append((_server(run(frame)), self._changed(before)))
        if any(answer != answers[0] for answer in answers):
            raise EnginesDifferError(f"tc, director and XDP differ: {answers}")
        return answers[0][0]

    def _changed(self, before: dict[bytes, bytes]) -> dict[bytes, Record]:
        return {
            flow: Record.unpack(value)._replace(tick=0)
            for flow, value in self._records.items()
            if before.get(flow) != value
        }

    def _write_guard(self) -> None:
        if self.guarded:
            full = layout.GUARD.pack(tick(), _GUARD_FULL)
            self._guard.update(_ZERO, full * (self._guard.value_size // len(full)))


def _server(result: RunResult) -> int | None:
    mac = result.data[:6]
    return mac[5] if mac[:5] == SERVER_MAC else None
