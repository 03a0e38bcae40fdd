"""The fast path end to end, on veth in namespaces: packets per second, and an upload."""

from __future__ import annotations

import asyncio
import ctypes
import os
import socket
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from netlab import INTERFACE, Lab, entered

from lbdr.datapath import bpf, tc
from lbdr.datapath import bpf_wire as wire
from lbdr.datapath.bpf_arrays import Array
from lbdr.datapath.bpf_links import Link
from lbdr.datapath.bpf_programs import Program
from lbdr.datapath.bpf_wire import AttachPoint, Command, MapKind, XdpFlag, xdp_context
from lbdr.datapath.xdp_layout import FastServer, Place
from lbdr.maglev import MaglevServer, MaglevTable
from tests.bench.xdp_costs import NOTHING, SWAP, load, wanted
from tests.bench.xdp_packets import FLOWS, MH, RIPS, VIP, frame, port_of, segment
from tests.bench.xdp_report import Row
from tests.fastpath import OWN, World, slot

HOSTS = {"client": 100, "director": 1, "server": 21}
PAIR = "direct0"
ROUNDS = 15
PACKETS = 400_000
UPLOAD_SECONDS = 0.5
_LIVE_FRAMES = 2  # BPF_F_TEST_XDP_LIVE_FRAMES, include/uapi/linux/bpf.h
_CHUNK = 1 << 18


class WireBench:
    """The rows that need devices.

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
        self._programs: dict[str, Program] = {}

    def rows(self) -> Iterator[Row]:
        """All rows, one after the other."""
        with self._stack:
            generator, director = self._make_pair()
            self._load(generator)
            self._attach(self._lab["client"].namespace, generator, self._programs["sink"])
            link = self._attach(
                self._lab["director"].namespace, director, self._world.programs.steady
            )
            place = Place(director, OWN)
            self._serve(place, [f"02:00:00:00:01:{n:02x}" for n in range(len(RIPS))])
            yield self._speed("one flow", link, generator, 0.8)
            yield self._speed("100,000 flows", link, generator, None)
            yield from self._uploads()

    def _make_pair(self) -> tuple[int, int]:
        """A pair from client to director beside the bridge; the index of each end."""
        namespace = self._lab["director"].namespace
        for host in ("client", "director"):  # nothing of their own goes there
            self._lab.sysctl(host, "net.ipv6.conf.default.disable_ipv6", "1")
        self._lab.ip("client", f"link add {PAIR} up type veth peer name {PAIR} netns {namespace}")
        self._lab.ip("director", f"link set {PAIR} up address {OWN}")
        with self._lab.entered("client"):
            generator = socket.if_nametoindex(PAIR)
        with self._lab.entered("director"):
            return generator, socket.if_nametoindex(PAIR)

    def _load(self, generator: int) -> None:
        """What sends, what swaps, what counts and drops, and what does nothing."""
        self._sink = self._stack.enter_context(
            Array.create(MapKind.PERCPU_ARRAY, 4, 8, 1, name="bench_sink")
        )
        self._sink.pin(self._pins / "count")
        macros: dict[str, dict[str, int]] = {
            "nothing": {"BEHIND": NOTHING},
            "swap": {"BEHIND": SWAP},
            "sink": {"SINK": 1},
            "one flow": {"RESTORE": 1, "GENERATE": generator},
            "100,000 flows": {"RESTORE": 1, "GENERATE": generator, "FLOWS": FLOWS},
        }
        programs = [wanted(self._pins, name, given) for name, given in macros.items()]
        load(self._world, programs, {"sink": str(self._pins / "count")})
        for name in macros:
            self._programs[name] = self._stack.enter_context(Program.open(self._pins / name))

    def _attach(self, namespace: str, ifindex: int, program: Program) -> Link:
        with entered(namespace):
            link = Link.create(program, ifindex, AttachPoint.XDP, XdpFlag.NATIVE)
        return self._stack.enter_context(link)

    def _serve(self, place: Place, macs: Sequence[str]) -> None:
        """The mh service of the VIP at a place, with servers of these MACs there."""
        for index, mac in enumerate(macs):
            self._world.maps.write_server(index, FastServer(place, mac).pack(place))
        table = MaglevTable([MaglevServer(rip, port_of(MH), 1) for rip in RIPS[: len(macs)]])
        self._world.table(0, [slot(server) for server in table.slots])
        self._world.service(MH, VIP, port_of(MH), vip=place)

    def _speed(self, flows: str, link: Link, generator: int, limit: float | None) -> Row:
        """Packets per second through a link's program and back, beside those of a MAC swap.

        The kernel's own live frames are sent: the fastest sender there is hides the least.
        """
        live, swap = self._world.programs.steady, self._programs["swap"]
        rates: list[float] = []
        ratios: list[float] = []
        for turn in range(ROUNDS):
            found = {}
            for program in (live, swap) if turn % 2 else (swap, live):
                link.update(program)
                served = self._served()
                found[program] = self._send(self._programs[flows], generator)
                expected = PACKETS if program is live else 0
                if self._served() - served != expected:
                    raise RuntimeError(f"{self._served() - served} served, not {expected}")
            rates.append(found[live] / 1e6)
            ratios.append(found[live] / found[swap])
        link.update(live)
        ratio = statistics.median(ratios)
        name = f"veth, packets/s, {flows}, to a MAC swap"
        return Row(name, statistics.median(rates), "Mpps", ratio, limit, at_least=True)

    def _send(self, program: Program, generator: int) -> float:
        """Send packets there and back; how many came back in a second."""
        before = self._counted()
        cores = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {max(cores)})
        try:
            with self._lab.entered("client"):
                begin = time.perf_counter()
                send_live(program, frame(segment(MH)), generator, PACKETS)
                while self._counted() - before < PACKETS and time.perf_counter() - begin < 10:
                    pass
                taken = time.perf_counter() - begin
        finally:
            os.sched_setaffinity(0, cores)
        came = self._counted() - before
        if came != PACKETS:
            raise RuntimeError(f"{came} of {PACKETS} packets came back")
        return PACKETS / taken

    def _counted(self) -> int:
        (count,) = self._sink.totals(self._sink.lookup(bytes(4)) or b"")
        return count

    def _served(self) -> int:
        return sum(self._world.served(server)[0] for server in range(len(RIPS)))

    def _uploads(self) -> Iterator[Row]:
        """Uploads to the VIP, beside those to the server itself: by XDP, and by tc alone.

        Both sides have the same offloads. Native XDP on veth forbids the sender its own, and would
        have it on one side only: there, each packet is a packet, and checksums are there. At tc all
        is as it comes.
        """
        switch = f"{self._lab.prefix}-switch"
        with entered(switch):
            port = socket.if_nametoindex("director")
        with self._lab.entered("director"):
            ifindex = socket.if_nametoindex(INTERFACE)
        director = self._lab["director"]
        self._serve(Place(ifindex, director.mac), [self._lab["server"].mac])
        # a director has a CPU of its own: its work is not done in the sender's time slice
        threaded = f"echo 1 >/sys/class/net/{INTERFACE}/threaded"
        self._lab.ip("server", f"address add {VIP}/32 dev lo")
        self._lab.ip(
            "client",
            f"route add {VIP}/32 dev {INTERFACE}",
            f"neighbour add {VIP} lladdr {director.mac} dev {INTERFACE}",
        )
        with ExitStack() as attached:
            for namespace, index, program in (
                (switch, port, self._programs["nothing"]),
                (director.namespace, ifindex, self._world.programs.steady),
            ):
                with entered(namespace):
                    link = Link.create(program, index, AttachPoint.XDP, XdpFlag.NATIVE)
                attached.enter_context(link)
            self._offload("off")
            command = ["ip", "netns", "exec", director.namespace, "sh", "-c", threaded]
            subprocess.run(command, check=True)
            yield self._upload("veth, upload, to one without a director", 0.9)
        with self._lab.entered("director"):
            asyncio.run(tc.attach(self._world.programs.tc, ifindex, tc.Direction.INGRESS))
        self._offload("on")
        yield self._upload("veth, upload by tc with offloads, to one without a director", 0.9)

    def _offload(self, switch: str) -> None:
        """Have offloads on all ends of links, or on none."""
        words = ["tx", switch, "gro", switch]
        for host in HOSTS:
            self._lab.run(host, ["ethtool", "-K", INTERFACE, *words])
            with entered(f"{self._lab.prefix}-switch"):
                subprocess.run(["ethtool", "-K", host, *words], check=True, capture_output=True)

    def _upload(self, name: str, limit: float) -> Row:
        """Upload to the VIP and to the server itself, in turns."""
        rates: list[float] = []
        ratios: list[float] = []
        for turn in range(ROUNDS):
            found = {}
            for to in (str(VIP), str(self._lab["server"].ipv4))[:: 1 if turn % 2 else -1]:
                served = self._served()
                found[to] = self._sent(to)
                # the last acknowledgements of the upload before may come late
                if (self._served() - served > 1000) != (to == str(VIP)):
                    raise RuntimeError(f"an upload to {to} took the other way")
            rates.append(found[str(VIP)] / 1e9)
            ratios.append(found[str(VIP)] / found[str(self._lab["server"].ipv4)])
        rate, ratio = statistics.median(rates), statistics.median(ratios)
        return Row(name, rate, "Gbit/s", ratio, limit, at_least=True)

    def _sent(self, to: str) -> float:
        """Upload for a while; bits that the server got in a second."""
        with self._lab.entered("server"):
            listener = socket.create_server(("", port_of(MH)))
            listener.settimeout(10)
        received = 0

        def receive() -> None:
            nonlocal received
            connection, _ = listener.accept()
            room = bytearray(_CHUNK)
            with connection:
                while size := connection.recv_into(room):
                    received += size

        with listener:
            receiver = threading.Thread(target=receive)
            receiver.start()
            with self._lab.entered("client"):
                client = socket.create_connection((to, port_of(MH)), timeout=10)
            with client:
                chunk = bytes(_CHUNK)
                begin = time.perf_counter()
                while time.perf_counter() - begin < UPLOAD_SECONDS:
                    client.sendall(chunk)
            receiver.join()
            return 8 * received / (time.perf_counter() - begin)


def send_live(program: Program, data: bytes, ifindex: int, repeats: int) -> None:
    """Have the kernel run a program on frames that go on from there as real ones.

    Args:
        program: of XDP; it redirects them.
        data: a frame.
        ifindex: that they come from, in this thread's namespace.
        repeats: how many.

    Raises:
        KernelError: the kernel refuses; it can since Linux 5.18.
    """
    context = xdp_context(len(data), ifindex)
    frame_in = ctypes.create_string_buffer(data, len(data))
    context_in = ctypes.create_string_buffer(context, len(context))
    addresses = ctypes.addressof(frame_in), 0
    contexts = ctypes.addressof(context_in), 0
    attributes = bytearray(
        wire.TEST.pack(
            program.fd, 0, len(data), 0, *addresses, repeats, 0, len(context), 0, *contexts,
            _LIVE_FRAMES, 0, 0,
        )
    )  # fmt: skip
    result = bpf.call(Command.PROG_TEST_RUN, attributes)
    if result < 0:
        raise bpf.refused("bpftool prog run with live frames", -result)
