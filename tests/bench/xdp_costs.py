"""What one packet costs, by kind: the programs on their maps, run by BPF_PROG_TEST_RUN."""

from __future__ import annotations

import statistics
import struct
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

from lbdr.datapath import xdp_layout as layout
from lbdr.datapath import xdp_loader
from lbdr.datapath.bpf_programs import Program
from lbdr.datapath.bpf_wire import AttachPoint, ProgramKind, skb_context, xdp_context
from lbdr.datapath.xdp_loader import Wanted
from tests.bench.xdp_packets import NEW, REPEATS, SERVERS, Kind, as_is, fill, kinds
from tests.bench.xdp_report import Row
from tests.fastpath import LO, World

ROUNDS = 31
SOURCE = str(Path(__file__).with_name("xdp_rows.c"))
NOTHING, STEADY, TC, SWAP = range(4)  # BEHIND, in xdp_rows.c
_PASS, _TX = 2, 3  # include/uapi/linux/bpf.h
_UNSPEC, _REDIRECT = 0xFFFFFFFF, 7  # include/uapi/linux/pkt_cls.h
_AS_IS_CALLS, _AS_IS_REPEATS = 5, 200  # fewer than a TTL
_HASHES = ("records", "flows4", "flows", "fragments", "macs")


def wanted(pins: Path, name: str, macros: Mapping[str, int], *, at_tc: bool = False) -> Wanted:
    """A program of xdp_rows.c.

    Args:
        pins: a directory of bpffs.
        name: of the pin.
        macros: what it is.
        at_tc: it is a program for tc.
    """
    defaults = {"BEHIND": NOTHING, "RESTORE": 0, "FLOWS": 0, "V6": 0, "TAGS": 0}
    defaults |= {"GENERATE": 0, "SINK": 0}
    if at_tc:
        defines = {**defaults, "DIRECTOR_TC": 1, **macros}
        return Wanted("bench", SOURCE, ProgramKind.SCHED_CLS, 0, defines, str(pins / name))
    # with frags, as the director's are: the kernel lets only like call like
    defines = {**defaults, "XDP_FRAGS": 1, **macros}
    return Wanted("bench", SOURCE, ProgramKind.XDP, AttachPoint.XDP, defines, str(pins / name))


def load(world: World, programs: list[Wanted], others: Mapping[str, str] | None = None) -> None:
    """Compile the benchmark's programs on the director's maps, and pin them.

    Args:
        world: whose maps.
        programs: to be compiled.
        others: pins of more maps, by name.
    """
    maps = {name: str(world.programs.directory / name) for name in world.maps} | dict(others or {})
    macros = layout.macros(world.maps.capacity, records_per_tick=2 * NEW)
    xdp_loader.load(xdp_loader.Job(maps, macros, programs))


class PacketCosts:
    """The rows of BPF_PROG_TEST_RUN.

    Args:
        world: programs and empty maps.
        pins: a directory of bpffs for the benchmark's own programs.
    """

    def __init__(self, world: World, pins: Path) -> None:
        self._world = world
        self._pins = pins
        self._kinds = kinds()
        self._programs: dict[str, Program] = {}
        self._seed = 0

    def rows(self) -> Iterator[Row]:
        """Measure all of them in turns, and say what came out.

        Raises:
            RuntimeError: a row went another way than its name says, or a map has grown.
        """
        fill(self._world)
        with ExitStack() as stack:
            self._load(stack)
            self._known = set(self._world.maps["records"].keys())
            before = self._entries()
            for kind in self._kinds:
                self._prove_path(kind)
            rounds = [self._round(turn) for turn in range(ROUNDS)]
            after = self._entries()
        if after != before:
            raise RuntimeError(f"a map has grown: {before} entries before, {after} after")
        costs = {row: [one[row] for one in rounds] for row in rounds[0]}
        swap = costs["swap"]
        yield Row("plain MAC swap, XDP_TX", statistics.median(swap), "ns", 1.0)
        yield _row("empty program, PASS", None, costs["empty"], swap)
        for kind in self._kinds:
            yield _row(kind.row, kind.limit, costs[kind.row], swap)
        yield _row("mh, one flow, nothing restored", None, costs["as is"], costs["swap as is"])

    def _load(self, stack: ExitStack) -> None:
        programs = {
            "swap": wanted(self._pins, "swap", {"BEHIND": SWAP}),
            "empty": wanted(self._pins, "empty", {}),
            "empty tc": wanted(self._pins, "empty tc", {}, at_tc=True),
        }
        for kind in self._kinds:
            if kind.restore is not None:
                for behind in (NOTHING, TC if kind.at_tc else STEADY):
                    name, macros = _name(kind, behind), {**kind.restore, "BEHIND": behind}
                    macros["RESTORE"] = 1
                    programs[name] = wanted(self._pins, name, macros, at_tc=kind.at_tc)
        load(self._world, list(programs.values()))
        for name in programs:
            self._programs[name] = stack.enter_context(Program.open(self._pins / name))
        self._programs["steady"] = self._world.programs.steady

    def _round(self, turn: int) -> dict[str, float]:
        """The costs of one round, in ns; each round begins with another row."""
        plain = self._kinds[0].frame
        found = {
            name: self._time(name, plain, REPEATS, verdict)
            for name, verdict in {"swap": _TX, "empty": _PASS, "empty tc": _UNSPEC}.items()
        }
        found["swap as is"] = self._time_as_is("swap")
        served = self._served()
        found["as is"] = self._time_as_is("steady")
        self._require("as is", self._served() - served, _AS_IS_CALLS * _AS_IS_REPEATS)
        first = turn % len(self._kinds)
        for kind in (*self._kinds[first:], *self._kinds[:first]):
            found[kind.row] = self._measured(kind)
            if kind.restore is not None:
                name, passed = _name(kind, NOTHING), _UNSPEC if kind.at_tc else _PASS
                restoring = self._time(name, self._frame(kind), kind.repeats, passed)
                found[kind.row] += found["empty tc" if kind.at_tc else "empty"] - restoring
        return found

    def _measured(self, kind: Kind) -> float:
        """Send packets of a kind, and see that they went the way they should.

        Raises:
            RuntimeError: they did not.
        """
        served, reasons = self._served(), self._reasons(kind)
        if kind.inserts:
            guard = self._world.maps["guard"]
            guard.update(bytes(4), bytes(len(guard.lookup(bytes(4)) or b"")))
        verdict = (_REDIRECT if kind.at_tc else _TX) if kind.forwarded else _PASS
        name = "steady" if kind.restore is None else _name(kind, TC if kind.at_tc else STEADY)
        cost = self._time(name, self._frame(kind), kind.repeats, verdict)
        self._require(kind.row, self._served() - served, kind.repeats * kind.forwarded)
        if self._reasons(kind) != reasons:
            raise RuntimeError(f"{kind.row}: reasons counted: {self._reasons(kind)}")
        if kind.inserts:
            records = self._world.maps["records"]
            new = set(records.keys()) - self._known
            self._require(kind.row, len(new), kind.repeats)
            records.delete_many(new)
        return cost

    def _prove_path(self, kind: Kind) -> None:
        """See what the steady program does alone: with no director behind it, the rest passes.

        Raises:
            RuntimeError: that is not what the row says.
        """
        if kind.at_tc or not kind.forwarded:
            return
        programs, director = self._world.maps["programs"], self._world.programs.director
        programs.delete(bytes(4))
        served, count = self._served(), 100
        verdict = _PASS if kind.deep else _TX
        self._time(_name(kind, STEADY), self._frame(kind), count, verdict)
        self._require(f"{kind.row}, steady", self._served() - served, count * (not kind.deep))
        programs.update(bytes(4), layout.U32.pack(director.fd))

    def _frame(self, kind: Kind) -> bytes:
        """A packet of a kind; where each is a new flow, also new to those of earlier rounds."""
        if (kind.restore or {}).get("FLOWS") != 1:
            return kind.frame
        counter = 14 + 20 + 20
        self._seed += kind.repeats
        seed = struct.pack("=I", self._seed)
        return kind.frame[:counter] + seed + kind.frame[counter + len(seed) :]

    def _time(self, name: str, data: bytes, repeats: int, verdict: int) -> float:
        """The cost of a packet in ns, by this thread's CPU time: the kernel says whole ns only.

        Raises:
            RuntimeError: the last packet had another verdict.
        """
        program = self._programs[name]
        context = skb_context(LO, LO) if name.endswith("tc") else xdp_context(len(data), LO)
        begin = time.thread_time_ns()
        returned = program.test_run(data, context, repeat=repeats).returned
        taken = time.thread_time_ns() - begin
        self._require(f"verdict of {name}", returned, verdict)
        return taken / repeats

    def _time_as_is(self, name: str) -> float:
        """The cost of a packet as the kernel says it, in runs so short that nothing is restored."""
        data, program = as_is(), self._programs[name]
        context = xdp_context(len(data), LO)
        runs = [
            program.test_run(data, context, repeat=_AS_IS_REPEATS).duration
            for _ in range(_AS_IS_CALLS)
        ]
        return statistics.fmean(runs)

    def _served(self) -> int:
        return sum(self._world.served(server)[0] for server in range(2 * SERVERS + 1))

    def _reasons(self, kind: Kind) -> dict[layout.Reason, int]:
        return self._world.reasons(kind.service, tc=kind.at_tc)

    def _entries(self) -> dict[str, int]:
        return {name: len(self._world.maps[name].keys()) for name in _HASHES}

    @staticmethod
    def _require(what: str, found: int, expected: int) -> None:
        if found != expected:
            raise RuntimeError(f"{what}: {found}, not {expected}: another path was measured")


def _name(kind: Kind, behind: int) -> str:
    """Of the program that runs a kind; kinds that are restored alike share it."""
    macros = "".join(f" {name}{value}" for name, value in (kind.restore or {}).items())
    return f"behind{behind}{macros}".replace(" ", "-") + (" tc" if kind.at_tc else "")


def _row(name: str, limit: float | None, costs: list[float], swap: list[float]) -> Row:
    ratio = statistics.median(a / b for a, b in zip(costs, swap, strict=True))
    return Row(name, statistics.median(costs), "ns", ratio, limit)
