"""How soon the fast path is there, is there again, and follows a change."""

from __future__ import annotations

import statistics
import time
from array import array
from collections.abc import Iterator
from pathlib import Path

from lbdr.datapath.bpf import unpin
from lbdr.datapath.bpf_links import Link
from lbdr.datapath.bpf_wire import AttachPoint, XdpFlag
from lbdr.datapath.xdp_layout import Capacity
from lbdr.datapath.xdp_programs import DirectorPrograms, prepare
from lbdr.maglev import MaglevServer, MaglevTable
from tests.bench.xdp_packets import CLIENT, MH, RIPS, VIP, frame, port_of, segment
from tests.bench.xdp_report import Row
from tests.fastpath import World, slot

LOADS = 5
CHANGES = 15


def coming(root: Path, ifindex: int) -> Iterator[Row]:
    """From nothing to attached, and from what a process left behind to adopted.

    Args:
        root: a bpffs.
        ifindex: of a device in this thread's namespace, with native XDP.
    """
    loads, adoptions = [], []
    for number in range(LOADS):
        begin = time.perf_counter()
        place = prepare(root / f"coming{number}")
        programs, there = DirectorPrograms.open(place, Capacity())
        link = Link.create(programs.steady, ifindex, AttachPoint.XDP, XdpFlag.NATIVE)
        loads.append(time.perf_counter() - begin)
        assert not there
        programs.close()
        begin = time.perf_counter()
        programs, there = DirectorPrograms.open(place, Capacity())
        adoptions.append(1000 * (time.perf_counter() - begin))
        assert there
        link.close()
        with programs:
            for pin in place.iterdir():
                unpin(pin)
    yield Row("loading to attached", statistics.median(loads), "s", None, 1.5)
    yield Row("adopting after a restart", statistics.median(adoptions), "ms", None, 300)


def change(world: World) -> Row:
    """A table of 10 servers computed, written and switched to, until a packet goes by it.

    Args:
        world: empty.
    """
    for place in range(len(RIPS)):
        world.server(place, f"02:00:00:00:01:{place:02x}")
    ack = frame(segment(MH))
    times: list[float] = []
    before = None
    turn = 0
    while len(times) < CHANGES:
        turn += 1
        begin = time.perf_counter()
        servers = [
            # another one in each turn has nearly all clients
            MaglevServer(rip, port_of(MH), 50 if place == turn % len(RIPS) else 1)
            for place, rip in enumerate(RIPS)
        ]
        table = MaglevTable(servers)
        line = world.maps.capacity.lines * (turn % 2)
        world.maps.write_table(line, array("I", map(slot, table.slots)))
        world.service(MH, VIP, port_of(MH), table=line)
        server = world.run_xdp(ack).data[5]
        taken = time.perf_counter() - begin
        if server != table.choose(CLIENT):
            raise RuntimeError(f"after a change a packet went to {server}")
        if before not in (None, server):
            times.append(1000 * taken)
        before = server
    return Row("table change, until a packet goes by it", statistics.median(times), "ms", None, 50)
