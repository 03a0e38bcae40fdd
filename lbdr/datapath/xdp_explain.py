"""Asking the director what it would do with a packet, and why; nothing is written, nothing counted.

bpf/explain.c is the director compiled once more, on the live maps, and attached nowhere. It is
compiled when it is first asked for, by the same child as the others, and stays pinned with them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

from lbdr.datapath import bpf, xdp_layout, xdp_loader
from lbdr.datapath.bpf_links import device
from lbdr.datapath.bpf_maps import Map
from lbdr.datapath.bpf_programs import Program
from lbdr.datapath.bpf_wire import MapKind, ProgramKind, Verdict, xdp_context
from lbdr.datapath.xdp_layout import FALLBACK, OLD_SHIFT, TRACKED, Reason, ServerFlag, ServiceFlag
from lbdr.datapath.xdp_maps import DirectorMaps
from lbdr.datapath.xdp_programs import EXPLAIN_PIN, RECORDS_PER_TICK
from lbdr.errors import KernelError
from lbdr.model import Address, Protocol
from lbdr.tracking import CURRENT, Record

_MEMORY_PIN = "explaining"
_MEMORY = 192  # bytes, bpf/explain.h
_COUNTERS = ("served", "reasons")  # a program that does not have them cannot count
_EXPLAINED = struct.Struct("=8I")  # before a record, a learned flow and a server
_FOUND_SLOT, _FOUND_RECORD, _FOUND_LEARNED, _FOUND_SERVER = 1, 2, 4, 8
_NOBODY = 0xFFFF
_LOOPBACK = 1
_SYN, _ACK = 2, 16
_PAYLOAD = bytes(56)  # the answer is written over the frame


class By(IntEnum):
    """How the server of a packet was found (BY_ of bpf/explain.h)."""

    NOTHING = 0
    CURRENT = 1
    OLD = 2
    RECORD = 3
    LEARNED = 4


class LearnedFlow(NamedTuple):
    """A value of `flows4` or `flows`.

    Args:
        server: the index of who has it.
        state: LearnedState.
        refreshed: tick of the last packet that IPVS saw.
    """

    server: int
    state: int
    refreshed: int


@dataclass(frozen=True, slots=True)
class Leaving:
    """How frames reach a server.

    Args:
        device: by name.
        mac: they go to; "" where it is not known.
        vlans: (TPID, VID) of each tag, the outermost first.
    """

    device: str
    mac: str
    vlans: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Explained:
    """What the director would do with a packet.

    Args:
        service: its index.
        reason: why it is not forwarded; RECORD for one that is, and should have had a record.
        by: how its server was found.
        server: its index; None where it is not forwarded.
        slot: its number in the table; None for none.
        word: what that slot holds.
        tries: of the fallback loop.
        record: as it was found.
        learned: as it was found.
        leaving: how frames reach the server that was found, whether it is forwarded or not.
        verdict: of XDP.
    """

    service: int
    reason: Reason | None
    by: By
    server: int | None
    slot: int | None
    word: int
    tries: int
    record: Record | None
    learned: LearnedFlow | None
    leaving: Leaving | None
    verdict: Verdict

    @property
    def tracked(self) -> bool:
        """Whether old connections of its slot may go elsewhere than new ones."""
        return bool(self.word & TRACKED)

    @property
    def drained(self) -> bool:
        """Whether its slot's own server takes no new connections."""
        return self.slot is not None and self.word & CURRENT == FALLBACK

    @property
    def old(self) -> int:
        """The index of its slot's old server."""
        return self.word >> OLD_SHIFT


@dataclass(frozen=True, slots=True)
class Question:
    """A packet of a client for a VIP.

    Args:
        protocol: TCP or UDP.
        client: its address.
        client_port: its port.
        vip: where to.
        port: where to.
        new: it begins a connection (a SYN), which UDP does not tell.
    """

    protocol: Protocol
    client: Address
    client_port: int
    vip: Address
    port: int
    new: bool

    def frame(self, mac: bytes = bytes(6), tags: bytes = b"", sequence: int = 0) -> bytes:
        """As it would come in, without checksums, which nobody looks at here.

        Args:
            mac: where to.
            tags: TPID and TCI of each VLAN tag.
            sequence: of TCP.
        """
        ports = struct.pack("!HH", self.client_port, self.port)
        if self.protocol is Protocol.TCP:
            flags = _SYN if self.new else _ACK
            l4 = ports + struct.pack("!IIBBHHH", sequence, 0, 5 << 4, flags, 65535, 0, 0)
        else:
            l4 = ports + struct.pack("!HH", 8 + len(_PAYLOAD), 0)
        l4 += _PAYLOAD
        number, ends = self.protocol.number, self.client.packed + self.vip.packed
        if self.vip.version == 6:
            kind, ip = b"\x86\xdd", struct.pack("!IHBB", 6 << 28, len(l4), number, 64)
        else:
            size = 20 + len(l4)
            kind, ip = b"\x08\x00", struct.pack("!BBHHHBBH", 0x45, 0, size, 0, 0, 64, number, 0)
        return mac + bytes(6) + tags + kind + ip + ends + l4


class Explainer:
    """The program that is asked, open.

    Args:
        maps: the live ones.
        program: of `open_explainer`.
    """

    def __init__(self, maps: DirectorMaps, program: Program) -> None:
        self._maps = maps
        self.program = program

    def ask(self, question: Question) -> Explained | None:
        """What would become of a packet; None where it is for no service.

        Raises:
            KernelError: the service's device is gone.
        """
        unplaced = self.run(question.frame())
        if not unplaced.service:
            return None
        value = self._maps.read_service(unplaced.service)
        decision, ifindex, _, mac, count, *tag_words, _, _, _, _ = xdp_layout.SERVICE.unpack(value)
        tags = struct.pack("<2I", *tag_words)[: 4 * count]
        if not decision >> 32 & ServiceFlag.ACTIVE:
            ifindex = ifindex or _LOOPBACK
        asked = self.run(question.frame(mac, tags), ifindex)
        if asked.record is not None:
            # data that goes on with the SYN of the record, or a SYN that is another one
            sequence = asked.record.sequence + (1 << 31 if question.new else 1)
            asked = self.run(question.frame(mac, tags, sequence & 0xFFFFFFFF), ifindex)
        return asked

    def run(self, frame: bytes, ifindex: int = _LOOPBACK) -> Explained:
        """What would become of a frame that comes in on a device.

        Raises:
            KernelError: ENODEV: the device is gone; EINVAL: the frame is too short.
        """
        done = self.program.test_run(frame, xdp_context(len(frame), ifindex=ifindex))
        return parse(done.data, Verdict(done.returned))


def parse(answer: bytes, verdict: Verdict) -> Explained:
    """What the program wrote over a frame."""
    service, reason, by, slot, word, tries, server, found = _EXPLAINED.unpack_from(answer)
    at = _EXPLAINED.size
    record = Record._make(xdp_layout.RECORD.unpack_from(answer, at))
    at += xdp_layout.RECORD.size
    learned = LearnedFlow._make(xdp_layout.LEARNED.unpack_from(answer, at))
    at += xdp_layout.LEARNED.size
    forwarded = verdict in {Verdict.TX, Verdict.REDIRECT}
    return Explained(
        service=service,
        reason=Reason(reason) if reason else None,
        by=By(by),
        server=server if forwarded and server != _NOBODY else None,
        slot=slot if found & _FOUND_SLOT else None,
        word=word,
        tries=tries,
        record=record if found & _FOUND_RECORD else None,
        learned=learned if found & _FOUND_LEARNED else None,
        leaving=_leaving(answer, at) if found & _FOUND_SERVER else None,
        verdict=verdict,
    )


def _leaving(answer: bytes, at: int) -> Leaving:
    mac, flags, _, _, ifindex, _, count, *words = xdp_layout.SERVER.unpack_from(answer, at)
    tags = struct.unpack("!4H", struct.pack("<2I", *words))
    vlans = tuple(zip(tags[::2], tags[1::2], strict=True))[:count]
    known = mac.hex(":") if flags & ServerFlag.RESOLVED else ""
    return Leaving(device(ifindex) if ifindex else "", known, vlans)


def compile_explainer(directory: Path, maps: DirectorMaps) -> None:
    """Compile, load and pin the program, unless it is there; may take a second.

    Args:
        directory: of the director's pins.
        maps: that are pinned there.

    Raises:
        KernelError: the compiler or the verifier refuses, or other programs use the maps.
    """
    macros = xdp_layout.macros(maps.capacity, records_per_tick=RECORDS_PER_TICK)
    if maps.version != xdp_loader.version(macros):
        raise KernelError(
            f"the programs pinned in {directory} are those of another version of lbdr",
            hint="start the daemon of this version: it exchanges them, and no connection breaks",
        )
    if (directory / EXPLAIN_PIN).exists():
        return
    memory = directory / _MEMORY_PIN
    pins = {name: str(directory / name) for name in maps if name not in _COUNTERS}
    with Map.create(MapKind.PERCPU_ARRAY, 4, _MEMORY, 1, name="lbdr_explaining") as made:
        made.pin(memory, replace=True)
        try:
            xdp_loader.load(
                xdp_loader.Job(
                    {**pins, "packet": str(memory), "explaining": str(memory)},
                    macros,
                    [xdp_loader.explain_program(directory / EXPLAIN_PIN)],
                )
            )
        finally:
            bpf.unpin(memory)


@contextmanager
def open_explainer(directory: Path, maps: DirectorMaps) -> Iterator[Explainer]:
    """The program that `compile_explainer` pinned.

    Raises:
        KernelError, PrivilegeError: it cannot be opened.
    """
    with Program.open(directory / EXPLAIN_PIN, ProgramKind.XDP) as program:
        yield Explainer(maps, program)
