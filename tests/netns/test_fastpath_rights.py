"""The fast path with CAP_NET_ADMIN alone: adopted, attached and removed, but never loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from netlab import INTERFACE, Lab

from lbdr.datapath import mh_check
from lbdr.datapath.xdp_maps import DirectorMaps
from lbdr.fastpath_pins import _alone_in
from lbdr.paths import Paths
from tests.bpf_programs import private_bpffs

RIGHTS = "-all,+net_admin"
CONFINED = [
    *("setpriv", "--no-new-privs", f"--inh-caps={RIGHTS}", f"--bounding-set={RIGHTS}"),
    *(sys.executable, "-c"),
]
ADOPT = f"""
import asyncio, socket, sys
from pathlib import Path
from lbdr import fastpath_pins, mh_verdict
from lbdr.datapath.xdp_attach import Attachments
from lbdr.datapath.xdp_layout import Capacity
from lbdr.errors import LbdrError
from lbdr.paths import Paths

async def main():
    paths = Paths(run=Path(sys.argv[1]), bpf=Path(sys.argv[2]))
    index = socket.if_nametoindex("{INTERFACE}")
    try:
        fast, adopted, opened = await fastpath_pins.open_pinned(paths, Capacity())
    except LbdrError as error:
        sys.exit(f"{{type(error).__name__}}: {{error}}")
    with opened:
        (device,) = await Attachments(fast.programs).keep([index], [index], [index])
        fast.sweep()
        print(adopted, device.xdp, mh_verdict.find(paths).outcome)

asyncio.run(main())
"""


@pytest.fixture
def paths(lab: Lab, tmp_path: Path) -> Iterator[Paths]:
    """Of a director whose programs root has loaded."""
    assert lab
    (tmp_path / "bpf").mkdir()
    with private_bpffs(tmp_path / "bpf") as bpffs:
        found = Paths(tmp_path / "lbdr.yaml", tmp_path / "run", tmp_path / "state", bpffs / "lbdr")
        configure(found)
        yield found


def configure(paths: Paths, **director: str) -> None:
    document = {
        "director": {"name": "lab", **director},
        "real_servers": {"web1": {"address": "10.77.0.21"}},
        "virtual_services": {
            "WEB": {"address": "10.77.0.50", "ports": [80], "real_servers": ["web1"]}
        },
    }
    paths.config.write_text(yaml.safe_dump(document))


def load(lab: Lab, paths: Paths) -> dict[str, str]:
    command = [sys.executable, "-m", "lbdr", "fastpath", "load", "--json"]
    places = [f"--config={paths.config}", f"--run-dir={paths.run}", f"--bpf-dir={paths.bpf}"]
    found: dict[str, str] = json.loads(lab.run("director", [*command, *places]).stdout)
    return found


def adopt(lab: Lab, paths: Paths) -> subprocess.CompletedProcess[str]:
    places = [str(paths.run), str(paths.bpf)]
    return lab.run("director", [*CONFINED, ADOPT, *places], check=False)


def test_what_root_loaded_can_be_used(lab: Lab, paths: Paths) -> None:
    paths.bpf.mkdir(mode=0o755)  # as others with another umask may have left it
    assert load(lab, paths)["programs"] == "loaded"
    assert load(lab, paths)["programs"] == "there already"
    found = adopt(lab, paths)
    # a kernel without IPVS: tried by root, told by the file
    with lab.entered("director"):
        outcome = mh_check.probe().outcome
    assert found.stdout.split() == ["True", "True", outcome], found.stderr
    assert [*paths.bpf.glob("*/v*/xdp-*")]


def test_nothing_is_loaded_without_the_right(lab: Lab, paths: Paths) -> None:
    """And nothing is left of the attempt."""
    paths.bpf.mkdir(mode=0o700)
    found = adopt(lab, paths)
    assert found.stderr.startswith("PrivilegeError: the fast path is not loaded: ")
    assert "lbdr fastpath load" in found.stderr
    assert not [*paths.bpf.glob("*/v*")]


def test_what_cannot_be_used_is_taken_away(lab: Lab, paths: Paths) -> None:
    """Programs of another version, still attached, whose tables nobody would write."""
    load(lab, paths)
    adopt(lab, paths)
    (directory,) = paths.bpf.glob("*/v*")
    with DirectorMaps.open(directory) as maps:
        maps.set_version(1)
    found = adopt(lab, paths)
    assert "PrivilegeError: the fast path is not loaded: " in found.stderr
    assert not directory.exists()
    assert "xdp" not in lab.run("director", ["ip", "link", "show", INTERFACE]).stdout
    for direction in ("ingress", "egress"):
        command = ["tc", "filter", "show", "dev", INTERFACE, direction]
        assert not lab.run("director", command).stdout


def test_what_has_another_layout_is_taken_away(lab: Lab, paths: Paths) -> None:
    """A device runs one program: the next version could not attach its own."""
    load(lab, paths)
    adopt(lab, paths)
    (directory,) = paths.bpf.glob("*/v*")
    older = directory.rename(directory.with_name("v0"))
    with _alone_in(older):  # its daemon runs
        assert load(lab, paths)["programs"] == "a daemon uses them"
    assert [*older.glob("xdp-*")]
    assert load(lab, paths)["programs"] == "loaded"
    assert [*paths.bpf.glob("*/v*")] == [directory]
    assert "xdp" not in lab.run("director", ["ip", "link", "show", INTERFACE]).stdout
    assert adopt(lab, paths).stdout.startswith("True True ")


def test_a_file_without_a_fast_path_loads_nothing(lab: Lab, paths: Paths) -> None:
    """But the directory is there: a daemon that is confined to it may need it later."""
    configure(paths, fastpath="off")
    assert load(lab, paths)["programs"] == "not loaded: `fastpath: off` in the file"
    assert not [*paths.bpf.iterdir()]
    assert paths.bpf.stat().st_mode & 0o777 == 0o700


def test_a_process_that_has_it_open_is_left_alone(lab: Lab, paths: Paths) -> None:
    load(lab, paths)
    (directory,) = paths.bpf.glob("*/v*")
    with _alone_in(directory):
        assert load(lab, paths)["programs"] == "a daemon uses them"
