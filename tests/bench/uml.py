"""What a forwarded packet costs IPVS and the fast path, in one guest with one CPU.

The kernel's own live frames come over a veth pair, and go back over it to where they are counted
and dropped. What the sender costs, a director that drops all of them tells: that is taken off.
User-mode-linux interprets BPF, while IPVS is machine code there. In QEMU, Debian's own kernel has
both as machine code, and all of it is emulated alike.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from netlab import Lab, entered

from lbdr.datapath.bpf_arrays import Array
from lbdr.datapath.bpf_links import Link
from lbdr.datapath.bpf_programs import Program
from lbdr.datapath.bpf_wire import (
    F_XDP_HAS_FRAGS,
    AttachPoint,
    MapKind,
    ProgramKind,
    Verdict,
    XdpFlag,
)
from lbdr.datapath.xdp_layout import Place
from tests.bench.xdp_costs import NOTHING, SWAP, load, wanted
from tests.bench.xdp_packets import MH, VIP, frame, port_of, segment
from tests.bench.xdp_report import Row
from tests.bench.xdp_wire import send_live
from tests.bpf_programs import returns
from tests.fastpath import OWN, World, fast_path, slot

HOSTS = {"client": 100, "director": 1}
PAIR = "pair"
RIP, SERVER_MAC = "192.0.2.21", "02:00:00:00:01:00"
PACKETS = 5_000
ROUNDS = 15
_SLOTS = 4093
_PATIENCE = 60.0
_CHUNK = 200  # a veth has room for 256 (VETH_RING_SIZE)


class Uml:
    """The benchmark.

    Args:
        lab: with HOSTS.
        world: programs and empty maps.
        pins: a directory of bpffs for the benchmark's own programs.
    """

    def __init__(self, lab: Lab, world: World, pins: Path) -> None:
        self._lab = lab
        self._world = world
        self._pins = pins
        self._stack = ExitStack()

    def rows(self) -> Iterator[Row]:
        """Measure in turns, and say what came out."""
        with self._stack:
            self._build()
            found: dict[str, list[float]] = {name: [] for name in self._modes}
            for turn in range(ROUNDS):
                names = list(self._modes)
                for name in (*names[turn % len(names) :], *names[: turn % len(names)]):
                    found[name].append(self._cost(name))
        sender = found.pop("sender")
        yield Row("sender alone", statistics.median(sender), "ns")
        net = {
            name: [a - b for a, b in zip(costs, sender, strict=True)]
            for name, costs in found.items()
        }
        for name, limit in (("IPVS", None), ("MAC swap", None), ("fast path", 1 / 3)):
            ratio = statistics.median(a / b for a, b in zip(net[name], net["IPVS"], strict=True))
            row = f"{name}, CPU per packet, to IPVS"
            yield Row(row, statistics.median(net[name]), "ns", ratio, limit and round(limit, 3))
        gross = zip(found["fast path"], found["IPVS"], strict=True)
        ratio = statistics.median(a / b for a, b in gross)
        row = "fast path, the sender included, to IPVS so"
        yield Row(row, statistics.median(found["fast path"]), "ns", ratio)

    def _build(self) -> None:
        lab, director = self._lab, self._lab["director"].namespace
        for host in HOSTS:  # nothing of their own goes there
            lab.sysctl(host, "net.ipv6.conf.default.disable_ipv6", "1")
        lab.ip("client", f"link add {PAIR} up type veth peer name {PAIR} netns {director}")
        lab.ip(
            "director",
            f"link set {PAIR} up address {OWN}",
            f"address add 192.0.2.1/24 dev {PAIR}",
            f"address add {VIP}/32 dev {PAIR}",
            f"neighbour add {RIP} lladdr {SERVER_MAC} dev {PAIR}",
            f"route add 10.0.0.0/8 dev {PAIR}",
        )
        service = f"{VIP}:{port_of(MH)}"
        lab.run("director", ["ipvsadm", "-A", "-t", service, "-s", "mh"])
        lab.run("director", ["ipvsadm", "-a", "-t", service, "-r", RIP, "-g"])
        lab.sysctl("director", "net.ipv4.vs.sloppy_tcp", "1")
        with lab.entered("client"):
            self._generator = socket.if_nametoindex(PAIR)
        with lab.entered("director"):
            ifindex = socket.if_nametoindex(PAIR)
        self._sink = self._stack.enter_context(
            Array.create(MapKind.PERCPU_ARRAY, 4, 8, 1, name="bench_sink")
        )
        self._sink.pin(self._pins / "count")
        generate = {"RESTORE": 1, "GENERATE": self._generator}
        programs = {"swap": {"BEHIND": SWAP}, "sink": {"SINK": 1}, "generate": generate}
        macros = {name: {"BEHIND": NOTHING, **given} for name, given in programs.items()}
        jobs = [wanted(self._pins, name, given) for name, given in macros.items()]
        load(self._world, jobs, {"sink": str(self._pins / "count")})
        opened = {
            name: self._stack.enter_context(Program.open(self._pins / name)) for name in programs
        }
        self._generate = opened["generate"]
        self._modes = {
            "sender": self._simple(Verdict.DROP),
            "IPVS": self._simple(Verdict.PASS),
            "MAC swap": opened["swap"],
            "fast path": self._world.programs.steady,
        }
        self._attach(self._lab["client"].namespace, self._generator, opened["sink"])
        self._link = self._attach(director, ifindex, self._modes["IPVS"])
        place = Place(ifindex, OWN)
        self._world.server(0, SERVER_MAC, place, out=place)
        self._world.table(0, [slot(0)] * _SLOTS)
        self._world.service(MH, VIP, port_of(MH), vip=place)

    def _simple(self, verdict: Verdict) -> Program:
        code, kind = returns(verdict), ProgramKind.XDP
        flags, at = F_XDP_HAS_FRAGS, AttachPoint.XDP  # as the director's own has it
        program = Program.load(code, kind, name="bench", attach=at, flags=flags)
        return self._stack.enter_context(program)

    def _attach(self, namespace: str, ifindex: int, program: Program) -> Link:
        with entered(namespace):
            link = Link.create(program, ifindex, AttachPoint.XDP, XdpFlag.NATIVE)
        return self._stack.enter_context(link)

    def _cost(self, name: str) -> float:
        """What a packet costs in ns.

        Raises:
            RuntimeError: not all were forwarded, or by another.
        """
        self._link.update(self._modes[name])
        packet = frame(segment(MH))
        expected = 0 if name == "sender" else PACKETS
        before, served = self._counted(), self._world.served(0)[0]
        with self._lab.entered("client"):
            begin, spent = time.perf_counter_ns(), _spent()
            for chunk in range(1, PACKETS // _CHUNK + 1):
                send_live(self._generate, packet, self._generator, _CHUNK)
                while self._counted() - before < min(chunk * _CHUNK, expected):
                    if time.perf_counter_ns() - begin > _PATIENCE * 1e9:
                        break
            taken = _spent() - spent
        if (came := self._counted() - before) != expected:
            raise RuntimeError(f"{name}: {came} of {PACKETS} packets came back, not {expected}")
        if self._world.served(0)[0] - served != PACKETS * (name == "fast path"):
            raise RuntimeError(f"{name}: another one forwarded")
        return taken / PACKETS

    def _counted(self) -> int:
        (count,) = self._sink.totals(self._sink.lookup(bytes(4)) or b"")
        return count


def _spent() -> int:
    """CPU time in ns, softirqs too; in UML, whose scheduler counts ticks, time: nothing waits."""
    if "User Mode" in Path("/proc/cpuinfo").read_text():
        return time.perf_counter_ns()
    softirq = next(
        one.parent
        for one in Path("/proc").glob("[0-9]*/comm")
        if one.read_text().startswith("ksoftirqd/0")
    )
    return time.thread_time_ns() + int((softirq / "schedstat").read_text().split()[0])


def main() -> int:
    """Print all rows; 1 where a limit is not kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one object a line")
    arguments = parser.parse_args()
    if not arguments.json:
        print(f"on {os.environ.get('LBDR_MACHINE', os.uname().release)}")
    kept = True
    with (
        tempfile.TemporaryDirectory(prefix="lbdr-bench-") as directory,
        Lab(HOSTS) as lab,
        fast_path(Path(directory)) as world,
    ):
        (Path(directory) / "uml").mkdir()
        for row in Uml(lab, world, Path(directory) / "uml").rows():
            kept &= row.kept
            print(row.json() if arguments.json else row, flush=True)
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
