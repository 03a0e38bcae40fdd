"""Programs attached to a real interface, by links and by netlink, under traffic."""

from __future__ import annotations

import errno
import os
import re
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from netlab import INTERFACE, Lab, wait_for

from lbdr.datapath import bpf, bpf_links, bpf_netlink
from lbdr.datapath.bpf_arrays import Array
from lbdr.datapath.bpf_features import Features, probe
from lbdr.datapath.bpf_links import Link
from lbdr.datapath.bpf_netlink import XdpAttachment, XdpMode
from lbdr.datapath.bpf_programs import Program
from lbdr.datapath.bpf_wire import (
    F_XDP_HAS_FRAGS,
    AttachPoint,
    Command,
    ProgramKind,
    Verdict,
    XdpFlag,
)
from lbdr.errors import KernelError, LbdrError, PrivilegeError
from tests.bpf_programs import marks, private_bpffs, returns

PROJECT = Path(__file__).parents[2]


@pytest.fixture
def pins(lab: Lab, tmp_path: Path) -> Iterator[Path]:
    """A directory on bpffs, while the director's namespace is this thread's.

    Neighbours are known for good: while frames are dropped, none is looked for and given up.
    """
    for host, other in (("client", lab["director"]), ("director", lab["client"])):
        neighbour = f"neigh replace {other.ipv4} lladdr {other.mac} nud permanent"
        lab.ip(host, f"{neighbour} dev {INTERFACE}")
    with lab.entered("director"), private_bpffs(tmp_path) as path:
        yield path


@pytest.fixture
def eth0(pins: Path) -> int:
    """The index of the director's interface."""
    assert pins.is_dir()
    return socket.if_nametoindex(INTERFACE)


def number(value: int) -> bytes:
    return struct.pack("=I", value)


def xdp(verdict: int) -> Program:
    return Program.load(
        returns(verdict), ProgramKind.XDP, name=f"returns_{verdict}", attach=AttachPoint.XDP
    )


def passes(lab: Lab) -> bool:
    """Whether the client's packet is answered, however slow this machine is."""
    return echoed(lab, 5)


def dropped(lab: Lab) -> bool:
    """Whether the client's packet is not answered in a time in which it would be."""
    return not echoed(lab, 0.2)


def echoed(lab: Lab, seconds: float) -> bool:
    """Send a packet to the director, which sends it back."""
    with lab.entered("client"):
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with client, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as director:
        director.bind((str(lab["director"].ipv4), 0))
        director.settimeout(seconds)
        client.settimeout(seconds)
        client.sendto(b"ping", director.getsockname())
        try:
            director.sendto(*director.recvfrom(100))
            return client.recv(100) == b"ping"
        except TimeoutError:
            return False


def refused_as(caught: pytest.ExceptionInfo[LbdrError], code: int, words: str) -> None:
    assert isinstance(caught.value, KernelError)
    assert caught.value.errno == code, caught.value
    assert words in str(caught.value)


# --- links ---------------------------------------------------------------------------------------


def test_a_link_attaches_is_updated_and_detaches(lab: Lab, eth0: int) -> None:
    assert passes(lab)
    with xdp(Verdict.DROP) as drop, xdp(Verdict.PASS) as let, xdp(Verdict.ABORTED) as other:
        link = Link.create(drop, eth0)
        info = link.info()
        assert (info.program_id, info.ifindex) == (drop.info().id, eth0)
        assert info.attach == AttachPoint.XDP
        assert bpf_netlink.attached(eth0) == (XdpAttachment(XdpMode.NATIVE, drop.info().id),)
        assert dropped(lab)

        link.update(let, expected=drop)
        assert passes(lab)
        with pytest.raises(LbdrError) as caught:
            link.update(other, expected=drop)
        refused_as(caught, errno.EBUSY, f"it has program {let.info().id}")
        assert link.info().program_id == let.info().id
        link.update(drop)
        assert dropped(lab)

        link.close()
        assert bpf_netlink.attached(eth0) == ()
        assert passes(lab)


def test_a_generic_link(lab: Lab, eth0: int) -> None:
    with xdp(Verdict.DROP) as drop, Link.create(drop, eth0, flags=XdpFlag.GENERIC):
        assert [each.mode for each in bpf_netlink.attached(eth0)] == [XdpMode.GENERIC]
        assert dropped(lab)


DYING = """
import os, sys
from pathlib import Path
from lbdr.datapath.bpf_arrays import Array
from lbdr.datapath.bpf_links import Link
from lbdr.datapath.bpf_programs import Program
from lbdr.datapath.bpf_wire import F_XDP_HAS_FRAGS, AttachPoint, MapKind, ProgramKind
from tests.bpf_programs import returns_entry

pins, ifindex = Path(sys.argv[1]), int(sys.argv[2])
verdict = Array.create(MapKind.ARRAY, 4, 4, 1, name="verdict")
verdict.update(bytes(4), bytes([1, 0, 0, 0]))
program = Program.load(returns_entry(verdict.fd), ProgramKind.XDP, name="verdict",
                       attach=AttachPoint.XDP)
link = Link.create(program, ifindex)
verdict.pin(pins / "verdict")
program.pin(pins / "program")
link.pin(pins / "link")
print("pinned", flush=True)
sys.stdin.read()
"""


def test_a_pinned_link_works_on_after_its_process_was_killed(
    lab: Lab, pins: Path, eth0: int
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", DYING, str(pins), str(eth0)],
        env={"PYTHONPATH": f"{PROJECT}:{PROJECT}/scripts/lib"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"pinned\n"
        process.send_signal(signal.SIGKILL)
    assert dropped(lab)
    with (
        Array.open(pins / "verdict", 4, 4, 1) as verdict,
        Program.open(pins / "program", ProgramKind.XDP) as program,
        Link.open(pins / "link") as link,
    ):
        assert link.info().program_id == program.info().id
        assert program.map_ids() == (verdict.info().id,)
        verdict.update(number(0), number(Verdict.PASS))
        assert passes(lab)
        with xdp(Verdict.DROP) as drop:
            link.update(drop, expected=program)
    assert dropped(lab)
    off = lab.run("director", ["ip", "link", "set", INTERFACE, "xdp", "off"], check=False)
    assert off.returncode
    assert bpf.unpin(pins / "link")
    wait_for(lambda: bpf_netlink.attached(eth0) == (), "detached with its last pin")
    assert passes(lab)


def test_detaching_leaves_an_empty_link(lab: Lab, eth0: int) -> None:
    with xdp(Verdict.DROP) as drop, xdp(Verdict.PASS) as let, Link.create(drop, eth0) as link:
        link.detach()
        assert passes(lab)
        assert link.info().ifindex == 0
        with pytest.raises(LbdrError) as caught:
            link.update(let)
        refused_as(caught, errno.ENOLINK, "attach anew")


def test_a_device_that_goes_takes_its_link_along(lab: Lab, eth0: int) -> None:
    lab.ip("director", "link add gone0 type veth peer name gone1")
    with xdp(Verdict.PASS) as program, xdp(Verdict.DROP) as drop:
        with Link.create(program, socket.if_nametoindex("gone0")) as link:
            lab.ip("director", "link del gone0")
            assert link.info().ifindex == 0
            with pytest.raises(LbdrError) as caught:
                link.update(drop, expected=program)
            refused_as(caught, errno.ENOLINK, "its device is gone: attach anew")
        assert eth0


def test_a_link_takes_no_place_that_is_taken(eth0: int) -> None:
    with xdp(Verdict.PASS) as one, xdp(Verdict.PASS) as two:
        with Link.create(one, eth0), pytest.raises(LbdrError) as caught:
            Link.create(two, eth0)
        refused_as(caught, errno.EBUSY, "another XDP program is attached")
        bpf_netlink.attach(one, eth0, XdpFlag.NATIVE)
        with pytest.raises(LbdrError) as caught:
            Link.create(two, eth0)
        refused_as(caught, errno.EBUSY, "bpftool net attach xdp name returns_2 dev eth0")
        with pytest.raises(LbdrError) as caught:
            Link.create(two, eth0, flags=XdpFlag.GENERIC)
        refused_as(caught, errno.EEXIST, "in the other mode")


def test_no_such_device(eth0: int) -> None:
    with xdp(Verdict.PASS) as program, pytest.raises(KernelError, match=r"dev #2147483647: "):
        Link.create(program, 0x7FFFFFFF)
    with pytest.raises(KernelError) as caught:
        bpf_netlink.attached(0x7FFFFFFF)
    assert caught.value.errno == errno.ENODEV
    assert eth0


def test_a_driver_without_native_xdp(lab: Lab, eth0: int) -> None:
    lab.ip("director", "link add bare0 type bridge")
    bare = socket.if_nametoindex("bare0")
    with xdp(Verdict.PASS) as program:
        with pytest.raises(LbdrError) as caught:
            Link.create(program, bare, flags=XdpFlag.NATIVE)
        refused_as(caught, errno.EOPNOTSUPP, "bpftool net attach xdpdrv name returns_2 dev bare0")
        assert "attach in generic mode, or at tc" in caught.value.hint
        with Link.create(program, bare):
            assert [each.mode for each in bpf_netlink.attached(bare)] == [XdpMode.GENERIC]
    assert eth0


def test_tcx_marks_and_is_updated(lab: Lab, eth0: int) -> None:
    """A drop at ingress, replaced by a program that marks and lets pass."""
    shot = Program.load(returns(2), ProgramKind.SCHED_CLS, name="shot")
    mark = Program.load(marks(7), ProgramKind.SCHED_CLS, name="mark")
    if not probe().tcx_link:
        with shot, mark, pytest.raises(LbdrError) as caught:
            Link.create(shot, eth0, AttachPoint.TCX_INGRESS)
        refused_as(caught, errno.EINVAL, "this kernel has no tcx (Linux 6.6)")
        return
    with shot, mark:
        with Link.create(shot, eth0, AttachPoint.TCX_INGRESS) as link:
            assert dropped(lab)
            info = link.info()
            assert (info.ifindex, info.attach) == (eth0, AttachPoint.TCX_INGRESS)
            link.update(mark, expected=shot)
            assert passes(lab)
        with Link.create(shot, eth0, AttachPoint.TCX_EGRESS) as link:
            assert link.info().attach == AttachPoint.TCX_EGRESS
            assert dropped(lab)
        assert passes(lab)


def test_an_xdp_program_is_none_for_tcx(eth0: int) -> None:
    with xdp(Verdict.PASS) as program, pytest.raises(LbdrError) as caught:
        Link.create(program, eth0, AttachPoint.TCX_INGRESS)
    refused_as(caught, errno.EINVAL, "bpftool net attach tcx_ingress name returns_2 dev eth0")


# --- netlink -------------------------------------------------------------------------------------


def test_netlink_replaces_only_what_is_expected(lab: Lab, eth0: int) -> None:
    with xdp(Verdict.DROP) as drop, xdp(Verdict.PASS) as let:
        bpf_netlink.attach(drop, eth0, XdpFlag.NATIVE)
        assert dropped(lab)
        for wrong in (None, let):
            with pytest.raises(LbdrError) as caught:
                bpf_netlink.attach(let, eth0, XdpFlag.NATIVE, expected=wrong)
            code = errno.EBUSY if wrong is None else errno.EEXIST
            refused_as(caught, code, "ip link set dev eth0 xdpdrv name returns_2")
        bpf_netlink.attach(let, eth0, XdpFlag.NATIVE, expected=drop)
        assert bpf_netlink.attached(eth0) == (XdpAttachment(XdpMode.NATIVE, let.info().id),)
        assert passes(lab)
        with pytest.raises(LbdrError):
            bpf_netlink.detach(eth0, XdpFlag.NATIVE, drop)
        bpf_netlink.detach(eth0, XdpFlag.NATIVE, let)
        assert bpf_netlink.attached(eth0) == ()


def test_netlink_in_generic_mode(lab: Lab, eth0: int) -> None:
    with xdp(Verdict.DROP) as drop:
        bpf_netlink.attach(drop, eth0, XdpFlag.GENERIC)
        assert bpf_netlink.attached(eth0) == (XdpAttachment(XdpMode.GENERIC, drop.info().id),)
        assert dropped(lab)
    assert dropped(lab)  # no fd holds it
    shown = lab.run("director", ["ip", "link", "show", INTERFACE]).stdout
    assert re.search(r"xdpgeneric", shown)


def test_the_kernel_s_own_words_are_the_hint(lab: Lab, eth0: int) -> None:
    """A veth whose peer's MTU does not fit into one page refuses in words."""
    lab.ip("director", "link add big0 mtu 9000 type veth peer name big1 mtu 9000")
    with xdp(Verdict.PASS) as program, pytest.raises(LbdrError) as caught:
        bpf_netlink.attach(program, socket.if_nametoindex("big0"), XdpFlag.NATIVE)
    refused_as(caught, errno.ERANGE, "the kernel says: veth: Peer MTU is too large to set XDP")
    with xdp(Verdict.PASS) as program, pytest.raises(LbdrError) as caught:
        Link.create(program, socket.if_nametoindex("big0"))
    refused_as(caught, errno.ERANGE, "xdp.frags")
    assert eth0


ATTACHING = """
import sys
from pathlib import Path
from lbdr.datapath import bpf_netlink
from lbdr.datapath.bpf_programs import Program
from lbdr.datapath.bpf_wire import XdpFlag
from lbdr.errors import PrivilegeError

try:
    bpf_netlink.attach(Program.open(Path(sys.argv[1])), int(sys.argv[2]), XdpFlag.NATIVE)
except PrivilegeError as error:
    print(error)
"""


LINKING = """
import sys
from pathlib import Path
from lbdr.datapath.bpf_links import Link
from lbdr.datapath.bpf_programs import Program

link = Link.create(Program.open(Path(sys.argv[1])), int(sys.argv[2]))
link.update(Program.open(Path(sys.argv[1])))
print(link.info().ifindex)
"""


def test_who_may_open_a_program_may_link_it(pins: Path, eth0: int) -> None:
    """Without any capability, since Linux 5.19: so pins are root's alone."""
    with xdp(Verdict.PASS) as program:
        program.pin(pins / "program")
    assert (pins.stat().st_mode & 0o777, (pins / "program").stat().st_mode & 0o777) == (
        0o700,
        0o600,
    )
    assert without_rights(LINKING, pins / "program", eth0) == f"{eth0}\n"


def without_rights(code: str, *arguments: object) -> str:
    """Run Python in another process of root's that has no capability; what it printed."""
    before = ["setpriv", "--bounding-set", "-all", sys.executable, "-c", code]
    return subprocess.run(
        [*before, *map(str, arguments)],
        env={"PYTHONPATH": str(PROJECT), "PATH": os.environ["PATH"]},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout


def test_netlink_needs_a_right(pins: Path, eth0: int) -> None:
    with xdp(Verdict.PASS) as program:
        program.pin(pins / "program")
    said = without_rights(ATTACHING, pins / "program", eth0)
    assert said.startswith(f"ip link set dev eth0 xdpdrv pinned {pins}/program: not permitted")
    assert "CAP_NET_ADMIN" in said


# --- features ------------------------------------------------------------------------------------


def test_features_are_what_attaching_shows(eth0: int) -> None:
    here = Path("/proc/thread-self/ns/net").readlink()
    found = probe()
    assert Path("/proc/thread-self/ns/net").readlink() == here
    with xdp(Verdict.PASS) as program:
        assert found.xdp_link == bool(Link.create(program, eth0).info().ifindex)
    assert found.xdp_frags == frags_load()


def frags_load() -> bool:
    try:
        Program.load(returns(2), ProgramKind.XDP, name="frags", flags=F_XDP_HAS_FRAGS)
    except KernelError:
        return False
    return True


def test_an_old_kernel_has_no_links(monkeypatch: pytest.MonkeyPatch, eth0: int) -> None:
    """As before Linux 5.7, where bpf(2) knows no such command."""
    real = bpf.call

    def call(command: int, attributes: bytearray) -> int:
        return -errno.EINVAL if command == Command.LINK_CREATE else real(command, attributes)

    monkeypatch.setattr(bpf, "call", call)
    assert eth0
    assert probe() == Features(xdp_link=False, tcx_link=False, xdp_frags=frags_load())


def test_without_rights_nothing_can_be_probed(monkeypatch: pytest.MonkeyPatch, eth0: int) -> None:
    monkeypatch.setattr(bpf, "call", lambda *_: -errno.EPERM)
    assert eth0
    with pytest.raises(PrivilegeError, match="bpftool prog load lbdr_probe type xdp: not permit"):
        probe()


def test_the_name_of_a_device_that_is_gone() -> None:
    assert bpf_links.device(0x7FFFFFFF) == "#2147483647"
