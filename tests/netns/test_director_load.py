"""Programs that the compiler or the verifier refuses: what the administrator reads then."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lbdr.datapath import xdp_layout, xdp_loader
from lbdr.datapath.bpf_wire import AttachPoint, ProgramKind
from lbdr.datapath.xdp_loader import Job, Wanted
from lbdr.datapath.xdp_maps import DirectorMaps
from lbdr.errors import KernelError
from tests.bpf_programs import private_bpffs
from tests.fastpath import SMALL

START = """
#include <uapi/linux/bpf.h>
#include "maps.h"
int lbdr_director(struct xdp_md *ctx)
{
"""
BROKEN = {
    "beyond the frame": ("return *(u8 *)(long)ctx->data;", "invalid access to packet"),
    "a map's value that may not be there": (
        "struct flow flow = {}; return *(u32 *)map_lookup(MAP(records), &flow);",
        "map_value_or_null",
    ),
    "no end": ("volatile u32 *p = (void *)0; for (;;) { } return 2;", "infinite loop"),
    "a number for an address": ("return map_lookup(MAP(guard), (void *)8) ? 2 : 1;", "expected=fp"),
}


@pytest.fixture
def pins(tmp_path: Path) -> Iterator[Path]:
    """All maps, pinned where nobody else sees them."""
    with private_bpffs(tmp_path) as path, DirectorMaps.create(SMALL) as maps:
        maps.pin(path)
        yield path


def refused(pins: Path, source: Path) -> str:
    """What loading a source says."""
    wanted = Wanted(
        "lbdr_broken", str(source), ProgramKind.XDP, AttachPoint.XDP, {}, str(pins / "broken")
    )
    names = xdp_layout.map_specs(SMALL)
    macros = xdp_layout.macros(SMALL, records_per_tick=1)
    job = Job({name: str(pins / name) for name in names}, macros, [wanted])
    with pytest.raises(KernelError) as error:
        xdp_loader.load(job)
    assert not (pins / "broken").exists()
    return str(error.value)


@pytest.mark.parametrize("name", BROKEN)
def test_the_verifiers_words_are_told(
    pins: Path, tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    body, words = BROKEN[name]
    source = tmp_path_factory.mktemp("source") / "broken.c"
    source.write_text(f"{START}{body}\n}}\n")
    told = refused(pins, source)
    lines = told.splitlines()
    assert lines[0] == "the fast path's programs cannot be loaded:"
    assert "bpftool prog load lbdr_broken type xdp" in lines[1]
    assert "the verifier's last words" in lines[1]
    assert words in told
    assert "Traceback" not in told
    assert len(lines) <= 32


def test_the_compilers_words_are_told(pins: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    source = tmp_path_factory.mktemp("source") / "broken.c"
    source.write_text(f"{START}return no_such_name;\n}}\n")
    told = refused(pins, source)
    assert "no_such_name" in told
    assert "cannot compile" in told
    assert "Traceback" not in told
