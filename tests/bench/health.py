"""The cost of health checks: 2,000 real servers, a connect check each every 6 seconds.

The servers are addresses of a network namespace of this machine. Then 200 of them freeze: what is
sent to them is dropped. The engine runs with a nice value of -10, as a director's daemon should: an
idle timer beside it, with the usual one, tells how busy the machine is.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import socket
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass
from ipaddress import IPv4Address
from typing import Any

from netlab import Lab

from lbdr.health.engine import Engine
from lbdr.health.results import Result
from lbdr.health.spec import Connect, Probe, Target, Timing
from lbdr.health.verdicts import Status, longest_outage

SERVERS, PORT = 2000, 104
FIRST = IPv4Address("10.77.64.0")
FROZEN = {"10.77.64.0/25": 128, "10.77.64.128/26": 64, "10.77.64.192/29": 8}
TIMING = Timing(interval=6.0, timeout=3.0)
WARM, STEADY = 15.0, 60.0  # seconds
HOSTS = {"director": 1, "farm": 2}


@dataclass(frozen=True, slots=True)
class Row:
    """A measured figure.

    Args:
        limit: that the value is to stay under.
    """

    row: str
    value: float
    unit: str
    limit: float

    @property
    def kept(self) -> bool:
        """Whether the limit is kept."""
        return self.value <= self.limit

    def __str__(self) -> str:
        verdict = "" if self.kept else ", NOT KEPT"
        return f"{self.row:44} {self.value:8.2f} {self.unit:12} limit {self.limit:g}{verdict}"


# --- the director: a process of its own, whose memory and CPU are the engine's alone --------------


class Director:
    """An engine, and what it did since it was last asked."""

    def __init__(self) -> None:
        self.engine = Engine(self._changed, runner=self._timed)
        self._loop = asyncio.get_running_loop()
        self._started: dict[Probe, float] = {}
        self._frozen = {FIRST + number for number in range(sum(FROZEN.values()))}
        self._delay = 0.0
        self._changed_at = 0.0
        self._asked = self._loop.time()
        self._before = (0, 0.0)

    def _changed(self, *_: Any) -> None:
        self._changed_at = self._loop.time()

    async def _timed(self, probe: Probe) -> Result:
        """Run a check, and note by how much it comes later than its interval."""
        now, before = self._loop.time(), self._started.get(probe)
        if before is not None and probe.target.address not in self._frozen:
            self._delay = max(self._delay, now - before - TIMING.interval)
        self._started[probe] = now
        return await self.engine.check_now(probe)

    def figures(self) -> dict[str, float]:
        """What happened since the last time."""
        usage = resource.getrusage(resource.RUSAGE_SELF)
        cpu, now = usage.ru_utime + usage.ru_stime, self._loop.time()
        seconds = now - self._asked
        status = [self.engine.tally(probe).verdict.status for probe in self.engine.probes]
        found = {
            "cpu": 100 * (cpu - self._before[1]) / seconds,
            "rate": (self.engine.ran - self._before[0]) / seconds,
            "late": self.engine.lateness(),
            "delay": self._delay,
            "changed": max(0.0, self._changed_at - self._asked),
            "up": status.count(Status.UP),
            "down": status.count(Status.DOWN),
            "memory": usage.ru_maxrss / 1024,
        }
        self._asked, self._before, self._delay = now, (self.engine.ran, cpu), 0.0
        return found


async def direct() -> None:
    """Check the farm; answer each line of the input by figures."""
    director = Director()
    director.engine.watch(
        Probe(Target(FIRST + number, PORT), Connect(), TIMING) for number in range(SERVERS)
    )
    while await asyncio.to_thread(sys.stdin.readline):
        print(json.dumps(director.figures()), flush=True)
    await director.engine.close()


# --- the bench ------------------------------------------------------------------------------------


def build_farm(lab: Lab) -> None:
    """A service on every address of the farm, which accepts and hangs up."""
    lab.ip("farm", f"route add local {FIRST}/20 dev lo")
    lab.ip("director", f"route add {FIRST}/20 via {lab['farm'].ipv4}")
    with lab.entered("farm"):
        service = socket.create_server(("", PORT), backlog=4096)

    def serve() -> None:
        while True:
            connection, _ = service.accept()
            connection.close()

    threading.Thread(target=serve, daemon=True).start()


class Asked:
    """The director's process."""

    def __init__(self, lab: Lab) -> None:
        command = ["nice", "-n", "-10", sys.executable, __file__, "--direct"]
        with lab.entered("director"):
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )

    def figures(self) -> dict[str, float]:
        """What it did since it was last asked."""
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise RuntimeError("no pipe")
        stdin.write("\n")
        stdin.flush()
        found: dict[str, float] = json.loads(stdout.readline())
        return found

    def close(self) -> None:
        """End it."""
        self._process.communicate(timeout=30)


class Idle:
    """A timer in a process of its own that has nothing else to do."""

    CODE = (
        "import sys, threading, time\n"
        "late, over = 0.0, threading.Event()\n"
        "threading.Thread(target=lambda: (sys.stdin.read(), over.set())).start()\n"
        "while not over.is_set():\n"
        "    due = time.monotonic() + 0.02\n"
        "    over.wait(0.02)\n"
        "    late = max(late, time.monotonic() - due)\n"
        "print(late)\n"
    )

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", self.CODE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def close(self) -> float:
        """End it; by how many seconds it was late at most."""
        return float(self._process.communicate(timeout=30)[0])


def measure(lab: Lab) -> list[Row]:
    """All rows."""
    build_farm(lab)
    director, pause = Asked(lab), threading.Event()
    try:
        pause.wait(WARM)
        warm = director.figures()
        idle = Idle()
        pause.wait(STEADY)
        late = idle.close()
        steady = director.figures()
        lab.ip("farm", *(f"route add blackhole {part} table local" for part in FROZEN))
        outage = longest_outage(TIMING)
        director.figures()
        pause.wait(outage + 2)
        frozen = director.figures()
    finally:
        director.close()
    count = sum(FROZEN.values())
    return [
        Row("servers that came up", warm["up"], f"of {SERVERS}", SERVERS),
        Row("servers that did not come up", SERVERS - warm["up"], "servers", 0),
        Row("checks", steady["rate"], "a second", float("inf")),
        Row("CPU", steady["cpu"], "% of a core", 15),
        Row("memory, at most", frozen["memory"], "MiB", 150),
        Row("an idle timer beside it", late, "s late", float("inf")),
        Row("latest check", steady["late"], "s late", 1),
        Row(f"{count} freeze: latest check", frozen["late"], "s late", 1),
        Row(f"{count} freeze: the others' longest delay", frozen["delay"], "s", 0.5),
        Row(f"{count} freeze: CPU", frozen["cpu"], "% of a core", 15),
        Row(f"{count} freeze: the last one is out", frozen["changed"], "s", outage),
        Row(f"{count} freeze: wrong verdicts", abs(frozen["down"] - count), "servers", 0),
    ]


def main() -> int:
    """Print all rows; 1 where a limit is not kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one object a line")
    parser.add_argument("--direct", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.direct:
        asyncio.run(direct())
        return 0
    if not arguments.json:
        print(f"on {os.environ.get('LBDR_MACHINE', os.uname().release)}")
    with Lab(HOSTS) as lab:
        rows = measure(lab)
    for row in rows:
        print(json.dumps(asdict(row)) if arguments.json else row, flush=True)
    return 0 if all(row.kept for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
