"""The child that compiles the director's programs, loads and pins them, and exits.

LLVM takes a hundred megabytes and never gives them back, so it lives in a process of its own:
`python -m lbdr.datapath.xdp_loader`, with a `Job` as JSON on its standard input. What went wrong is
on its standard error. Kernel headers are not needed: bpf/include has the few that bcc asks for.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lbdr.datapath import bpf, bpf_clock
from lbdr.datapath.bpf_maps import Map
from lbdr.datapath.bpf_programs import Program, VerifierError
from lbdr.datapath.bpf_wire import F_XDP_HAS_FRAGS, AttachPoint, ProgramKind
from lbdr.errors import KernelError, LbdrError

_CLONE = Path(__file__).parents[2] / "bpf"
_INSTALLED = Path(sysconfig.get_path("data")) / "share" / "lbdr" / "bpf"
SOURCES = _CLONE if _CLONE.is_dir() else _INSTALLED
"""Where the programs' sources are: of a clone, or as pip installed them."""

_FUNCTION = b"lbdr_director"
_LONGEST = 60.0  # seconds; an emulated machine takes 25
_SHOWN = 30  # lines of what the compiler said


@dataclass(frozen=True, slots=True)
class Wanted:
    """A program that is to be compiled.

    Args:
        name: as the kernel shows it, at most 15 letters.
        source: file of bpf/ with the function lbdr_director.
        kind: a ProgramKind's number.
        attach: an AttachPoint's number; 0 for tc.
        defines: macros of this program alone.
        pin: where it goes.
    """

    name: str
    source: str
    kind: int
    attach: int
    defines: Mapping[str, int]
    pin: str


@dataclass(frozen=True, slots=True)
class Job:
    """What the child does.

    Args:
        maps: pins by the name that the programs have for them.
        macros: of all programs.
        programs: to be compiled.
    """

    maps: Mapping[str, str]
    macros: Mapping[str, int]
    programs: Sequence[Wanted]


def xdp_program(pin: Path, *, frags: bool = False) -> Wanted:
    """The director for XDP, who has what `steady_program` leaves.

    Args:
        pin: where it goes.
        frags: frames may be longer than a page: needs Linux 5.18, and drivers' consent.
    """
    defines = {"XDP_FRAGS": 1} if frags else {}
    return Wanted(
        "lbdr_director", "director.c", ProgramKind.XDP, AttachPoint.XDP, defines, str(pin)
    )


def steady_program(pin: Path, *, frags: bool = False) -> Wanted:
    """The XDP program that is attached: the steady state, with the director behind it.

    Args:
        pin: where it goes.
        frags: as for the director: the kernel lets only like call like.
    """
    defines = {"XDP_FRAGS": 1} if frags else {}
    return Wanted("lbdr_steady", "steady.c", ProgramKind.XDP, AttachPoint.XDP, defines, str(pin))


def tc_program(pin: Path) -> Wanted:
    """The director for tc ingress."""
    defines = {"DIRECTOR_TC": 1}
    return Wanted("lbdr_tc", "director.c", ProgramKind.SCHED_CLS, 0, defines, str(pin))


def learn_program(pin: Path) -> Wanted:
    """What learns IPVS's choices, for tc egress."""
    return Wanted("lbdr_learn", "learn.c", ProgramKind.SCHED_CLS, 0, {}, str(pin))


def explain_program(pin: Path) -> Wanted:
    """What is asked where a packet would go; it is attached nowhere."""
    return Wanted("lbdr_explain", "explain.c", ProgramKind.XDP, 0, {}, str(pin))


def version(macros: Mapping[str, int]) -> int:
    """What tells programs of these sources and macros from others: 64 bits of a hash.

    Args:
        macros: of all programs.
    """
    digest = hashlib.blake2b(digest_size=8)
    digest.update(Path(__file__).read_bytes())
    digest.update(json.dumps(macros, sort_keys=True).encode())
    for path in sorted(SOURCES.rglob("*.[ch]")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return int.from_bytes(digest.digest(), "little")


def load(job: Job) -> None:
    """Have a child do a job; the programs are pinned then.

    Raises:
        KernelError: bcc is not installed, the compiler or the verifier refused; the message has
            their words.
    """
    command = [sys.executable, "-m", "lbdr.datapath.xdp_loader"]
    try:
        done = subprocess.run(
            command,
            input=json.dumps(asdict(job)),
            capture_output=True,
            text=True,
            check=False,
            timeout=_LONGEST,
            cwd="/",  # clang leaves it, and what is beside it is no module
        )
    except subprocess.TimeoutExpired as error:
        raise KernelError(
            f"compiling the fast path took longer than {_LONGEST:.0f} s",
            hint="is the machine busy?",
        ) from error
    except OSError as error:
        raise KernelError(f"starting {command[0]}", errno=error.errno or 0) from error
    if done.returncode:
        words = done.stderr.strip().splitlines()[-_SHOWN:]
        raise KernelError("\n  ".join(["the fast path's programs cannot be loaded:", *words]))


# --- in the child --------------------------------------------------------------------------------


def main() -> int:
    """Do the job on standard input; the exit status."""
    given = json.load(sys.stdin)
    programs = [Wanted(**program) for program in given["programs"]]
    job = Job(given["maps"], given["macros"], programs)
    return _told(lambda: _compile(job))


def _compile(job: Job) -> int:
    """Compile all programs at once, each in a process of its own; the worst of their ends."""
    os.environ["BCC_KERNEL_SOURCE"] = str(SOURCES)
    try:
        import bcc  # type: ignore[import-untyped]  # noqa: PLC0415  # only in the child
    except ImportError as error:
        raise KernelError(
            f"bcc cannot be imported: {error}",
            hint="apt install python3-bpfcc; the venv needs --system-site-packages",
        ) from error
    with ExitStack() as stack:
        macros = dict(job.macros)
        if _needs_alignment():
            macros["STRICT_ALIGNMENT"] = 1
        macros |= bpf_clock.macros()
        for name, path in job.maps.items():
            pinned = stack.enter_context(Map(bpf.open_kind(Path(path), Map), f"pinned {path}"))
            macros[f"MAP_{name}"] = pinned.fd
        children = []
        for wanted in job.programs:
            child = os.fork()
            if not child:
                os._exit(_told(partial(_build, bcc.BPF, wanted, macros)))
            children.append(child)
        return max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0 for child in children)


def _build(compiler: Any, wanted: Wanted, macros: Mapping[str, int]) -> int:
    """Compile, load and pin a program."""
    flags = [f"-D{name}={value}" for name, value in {**macros, **wanted.defines}.items()]
    text = (SOURCES / wanted.source).read_text()
    try:
        instructions = compiler(text=text, cflags=[*_COMMON, *flags]).dump_func(_FUNCTION)
    except Exception as error:
        raise KernelError(f"bcc cannot compile bpf/{wanted.source}: {error}") from error
    with Program.load(
        instructions,
        ProgramKind(wanted.kind),
        name=wanted.name,
        attach=wanted.attach,
        flags=F_XDP_HAS_FRAGS if "XDP_FRAGS" in wanted.defines else 0,
    ) as program:
        program.pin(Path(wanted.pin), replace=True)
    return 0


def _told(work: Callable[[], int]) -> int:
    """What work returns; 1 where it failed, with the reason on standard error."""
    try:
        return work()
    except LbdrError as error:
        print(error, file=sys.stderr, flush=True)  # noqa: T201  # what the parent reads
        return 1


def _needs_alignment() -> bool:
    """Whether the verifier demands aligned access to packets (no efficient unaligned access)."""
    data, end, start = 2, 3, 1
    load, add, move, greater, set_, leave = 0x61, 0x07, 0xBF, 0x2D, 0xB7, 0x95
    steps = [
        (load, start << 4 | data, 0, 0),
        (load, start << 4 | end, 4, 0),
        (move, data << 4 | 4, 0, 0),
        (add, 4, 0, 8),
        (greater, end << 4 | 4, 1, 0),
        (load, data << 4, 1, 0),  # a word, one byte into the frame
        (set_, 0, 0, 2),
        (leave, 0, 0, 0),
    ]
    code = b"".join(struct.pack("=BBhi", *step) for step in steps)
    try:
        Program.load(code, ProgramKind.XDP, name="lbdr_unaligned").close()
    except VerifierError as error:
        if "misaligned" in error.log:
            return True
        raise
    return False


# bcc adds headers of its own, and those warn
_COMMON = [f"-I{SOURCES}", "-Wno-everything"]

if __name__ == "__main__":
    sys.exit(main())
