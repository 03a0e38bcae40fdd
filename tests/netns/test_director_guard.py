"""The guard: without IPVS, what comes another way than the VIP's never reaches the local stack."""

from __future__ import annotations

import pytest

from lbdr.datapath.bpf_wire import Verdict
from lbdr.datapath.xdp_layout import Place, Reason, ServiceFlag
from tests.director_frames import ALONE, PORT, VIP, VIP6, ip4, ip6, segment
from tests.fastpath import OWN, Engine, Outcome, World

GUARDED = ALONE | ServiceFlag.GUARDED
THIS_DEVICE = "00:00:00:00:00:00"  # lo's own MAC: the local stack would take the frame
ELSEWHERE = Place(77, OWN)  # where the VIP is
OTHERS = [ServiceFlag.ACTIVE, ALONE, GUARDED & ~ServiceFlag.ACTIVE]
FRAMES = {4: ip4(segment(), mac=THIS_DEVICE), 6: ip6(segment(), mac=THIS_DEVICE)}


def serve(world: World, flags: ServiceFlag, vip: Place = ELSEWHERE) -> None:
    world.service(1, VIP, PORT, flags=flags, vip=vip)
    world.key(1, VIP6, PORT)


@pytest.mark.parametrize("version", [4, 6])
def test_tc_drops_and_counts_it(world: World, version: int) -> None:
    serve(world, GUARDED)
    assert world.run(Engine.TC, FRAMES[version]).verdict == Verdict.DROP
    assert world.reasons(1, tc=True) == {Reason.OTHER_HOST: 1}


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("engine", [Engine.XDP, Engine.DIRECTOR])
def test_xdp_leaves_it_to_tc(world: World, engine: Engine, version: int) -> None:
    serve(world, GUARDED)
    assert world.run(engine, FRAMES[version]) == Outcome(Verdict.PASS, FRAMES[version])


@pytest.mark.parametrize("flags", OTHERS, ids=str)
def test_with_ipvs_or_a_server_here_or_on_a_standby_it_passes(
    world: World, flags: ServiceFlag
) -> None:
    serve(world, flags)
    assert world.run(Engine.TC, FRAMES[4]) == Outcome(Verdict.PASS, FRAMES[4])


def test_a_frame_for_another_host_passes(world: World) -> None:
    """A bridge or a tap may have it; the local stack has not."""
    serve(world, GUARDED)
    frame = ip4(segment(), mac="02:00:00:00:00:77")
    assert world.run(Engine.TC, frame) == Outcome(Verdict.PASS, frame)


def test_another_port_passes(world: World) -> None:
    serve(world, GUARDED)
    frame = ip4(segment(dport=PORT + 1), mac=THIS_DEVICE)
    assert world.run(Engine.TC, frame) == Outcome(Verdict.PASS, frame)
