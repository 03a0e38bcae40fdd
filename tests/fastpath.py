"""The director's programs in a test: maps, services and frames, without any device but lo."""

from __future__ import annotations

import contextlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lbdr.datapath import xdp_layout as layout
from lbdr.datapath.bpf_programs import RunResult
from lbdr.datapath.bpf_wire import skb_context, xdp_context
from lbdr.datapath.xdp_layout import (
    Capacity,
    FastServer,
    FastService,
    Place,
    Reason,
    ServiceFlag,
)
from lbdr.datapath.xdp_maps import DirectorMaps
from lbdr.datapath.xdp_programs import DirectorPrograms
from lbdr.maglev import MaglevServer, MaglevTable
from lbdr.model import Address, Protocol
from tests.bpf_programs import private_bpffs

OWN = "02:00:00:00:00:01"
LO = 1
VIP_PLACE = Place(LO, OWN)


def slot(
    current: int, old: int | None = None, *, tracked: bool = False, anticipate: bool = False
) -> int:
    """A slot's word; old is current where it is not given."""
    word = current | (current if old is None else old) << layout.OLD_SHIFT
    return word | tracked * layout.TRACKED | anticipate * layout.ANTICIPATE


@dataclass
class World:
    """Programs and maps, and what was put into them."""

    programs: DirectorPrograms
    addresses: set[Address] = field(default_factory=set)

    @property
    def maps(self) -> DirectorMaps:
        return self.programs.maps

    def service(
        self,
        index: int,
        address: Address,
        port: int,
        protocol: Protocol = Protocol.TCP,
        **fields: object,
    ) -> None:
        """Add a service; `fields` are FastService's, active and on lo unless told otherwise."""
        settings: dict[str, object] = {"vip": VIP_PLACE, "flags": ServiceFlag.ACTIVE, **fields}
        self.maps.write_service(index, FastService(**settings).pack())  # type: ignore[arg-type]
        name = f"services{address.version}"
        key = layout.key_of(address, port, protocol.number)
        self.maps[name].update(key, layout.U32.pack(index))
        self.addresses.add(address)
        self.maps.write_vips(self.addresses)

    def server(self, index: int, mac: str | None, vip: Place = VIP_PLACE, **fields: object) -> None:
        """Add a server; `fields` are FastServer's, on the VIP's place unless told otherwise."""
        settings: dict[str, object] = {"out": VIP_PLACE, "mac": mac, **fields}
        self.maps.write_server(index, FastServer(**settings).pack(vip))  # type: ignore[arg-type]

    def table(self, line: int, words: Sequence[int]) -> None:
        """Write a table, by lines of slots."""
        self.maps.write_table(line, array("I", words))

    def run_xdp(self, frame: bytes, *, ifindex: int = LO, repeat: int = 1) -> RunResult:
        """The verdict of XDP, the steady program first."""
        context = xdp_context(len(frame), ifindex=ifindex)
        return self.programs.steady.test_run(frame, context, repeat=repeat)

    def run_director(self, frame: bytes, *, ifindex: int = LO) -> RunResult:
        """The verdict of the XDP director alone, without the steady program before it."""
        return self.programs.director.test_run(frame, xdp_context(len(frame), ifindex=ifindex))

    def run_tc(self, frame: bytes, *, ifindex: int = LO) -> RunResult:
        """The verdict of tc ingress."""
        context = skb_context(ifindex=ifindex, ingress_ifindex=ifindex)
        return self.programs.tc.test_run(frame, context)

    def reasons(self, service: int, *, tc: bool = False) -> dict[Reason, int]:
        """How often packets of a service were not forwarded, by reason; zeros left out."""
        counts = self.maps["reasons"]
        first = service * layout.REASONS + tc * layout.REASONS_OF_TC
        found = {}
        for reason in Reason:
            value = counts.lookup(layout.U32.pack(first + reason)) or b""
            (count,) = counts.totals(value)
            if count:
                found[reason] = count
        return found

    def served(self, server: int) -> tuple[int, int]:
        """Packets and bytes that a server got."""
        served = self.maps["served"]
        packets, octets = served.totals(served.lookup(layout.U32.pack(server)) or b"")
        return packets, octets


@contextlib.contextmanager
def fast_path(path: Path, capacity: Capacity | None = None) -> Iterator[World]:
    """Programs and empty maps on a bpffs that nobody else sees."""
    with private_bpffs(path) as root:
        programs, _ = DirectorPrograms.open(root, capacity or Capacity())
        with programs:
            yield World(programs)


def mh_words(addresses: Sequence[Address], port: int, first: int = 0) -> list[int]:
    """The slots of an mh table of servers of weight 1, in the kernel's order, from an index on."""
    servers = [MaglevServer(address, port, 1) for address in addresses]
    return [slot(first + place) for place in MaglevTable(servers).slots]
