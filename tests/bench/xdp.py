"""The cost of the fast path, each figure beside a plain MAC swap that ran in the same minute."""

from __future__ import annotations

import argparse
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from netlab import INTERFACE, Lab

from tests.bench import xdp_times
from tests.bench.xdp_costs import PacketCosts
from tests.bench.xdp_report import Row
from tests.bench.xdp_wire import HOSTS, WireBench
from tests.fastpath import fast_path


def rows(lab: Lab, directory: Path) -> Iterator[Row]:
    """All rows, one after the other.

    Args:
        lab: with xdp_wire.HOSTS.
        directory: an empty one, for a bpffs.
    """
    with fast_path(directory) as world:
        (directory / "costs").mkdir()
        yield from PacketCosts(world, directory / "costs").rows()
    with fast_path(directory) as world:
        yield xdp_times.change(world)
    with fast_path(directory) as world:
        with lab.entered("director"):
            yield from xdp_times.coming(directory, socket.if_nametoindex(INTERFACE))
        (directory / "wire").mkdir()
        yield from WireBench(lab, world, directory / "wire").rows()


def main() -> int:
    """Print all rows; 1 where a limit is not kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one object a line")
    arguments = parser.parse_args()
    if not arguments.json:
        print(f"on {os.environ.get('LBDR_MACHINE', os.uname().release)}")
    kept = True
    with tempfile.TemporaryDirectory(prefix="lbdr-bench-") as directory, Lab(HOSTS) as lab:
        for row in rows(lab, Path(directory)):
            kept &= row.kept
            print(row.json() if arguments.json else row, flush=True)
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
