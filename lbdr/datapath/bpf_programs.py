"""Programs: loading instructions, looking at them, and running them on a packet of one's own.

Sources: kernel/bpf/syscall.c (bpf_prog_load), net/bpf/test_run.c.
"""

from __future__ import annotations

import ctypes
import errno
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from lbdr.datapath import bpf
from lbdr.datapath import bpf_wire as wire
from lbdr.datapath.bpf_infos import ProgramInfo, ask_program_maps, parse_program, program_maps
from lbdr.datapath.bpf_wire import Command, ProgramKind, kind_name
from lbdr.errors import KernelError, LbdrError

_INSTRUCTION = 8  # bytes
_LOG_SIZES = (1 << 16, 1 << 20, 1 << 24)  # ENOSPC: the log outgrew it
_LOG_SHOWN = 12  # lines of it in the message
_TRIES = 10
_OUT_ROOM = 4096  # bytes by which a program may lengthen a frame
_STATS_RUN_TIME = 0


class VerifierError(KernelError):
    """The verifier refused a program.

    Args:
        words: what was loaded.
        errno: the kernel's number.
        log: the verifier's whole log; the message has its last lines.
    """

    def __init__(self, words: str, *, errno: int, log: str) -> None:
        super().__init__(words, errno=errno)
        self.log = log
        shown = log.strip().splitlines()[-_LOG_SHOWN:]
        self.message = "\n  ".join([f"{self.message}; the verifier's last words:", *shown])


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a program did with a packet.

    Args:
        returned: what it returned, for XDP a Verdict.
        data: the packet afterwards.
        duration: ns of one run, the mean over all repeats.
        context: the context afterwards; empty where none was given.
    """

    returned: int
    data: bytes
    duration: int
    context: bytes


class Program(bpf.BpfObject):
    """A loaded program."""

    kind = "bpf-prog"
    noun = "prog"
    get_by_id = Command.PROG_GET_FD_BY_ID

    @classmethod
    def open(cls, path: Path, kind: ProgramKind | None = None) -> Self:
        """Open a pinned program.

        Args:
            path: of the pin.
            kind: that it must be of; None for any.

        Raises:
            LayoutError: the path is pinned to something else.
            PrivilegeError, KernelError: it cannot be opened.
        """
        opened = cls(bpf.open_kind(path, cls), f"pinned {path}")
        found = opened.info().kind
        if kind is not None and found != kind:
            opened.close()
            there, wanted = kind_name(found, ProgramKind), kind_name(kind, ProgramKind)
            raise bpf.LayoutError(
                f"the program pinned at {path} has another layout: type {there}, not {wanted}",
                hint="another version or another program made it; it is not used",
            )
        return opened

    @classmethod
    def load(
        cls,
        instructions: bytes,
        kind: ProgramKind,
        *,
        name: str,
        license_name: str = "GPL",
        attach: int = 0,
        flags: int = 0,
    ) -> Self:
        """Have the kernel verify and compile instructions.

        Args:
            instructions: `struct bpf_insn`s; maps in them are fds of this process.
            kind: of the program.
            name: at most 15 letters, digits, `_` and `.`.
            license_name: many helpers are for GPL programs alone.
            attach: AttachPoint for programs that links attach, else 0.
            flags: F_XDP_HAS_FRAGS.

        Raises:
            VerifierError: the verifier refused it, and says why.
            PrivilegeError, KernelError: the kernel refuses.
        """
        if not instructions or len(instructions) % _INSTRUCTION:
            raise ValueError(f"{len(instructions)} bytes are no instructions")
        words = f"bpftool prog load {name} type {kind_name(kind, ProgramKind)}"
        code = ctypes.create_string_buffer(instructions, len(instructions))
        licence = ctypes.create_string_buffer(license_name.encode())

        def load(log_size: int) -> tuple[int, str]:
            log = ctypes.create_string_buffer(max(log_size, 1))
            attributes = wire.program_load(
                kind,
                (len(instructions) // _INSTRUCTION, ctypes.addressof(code)),
                ctypes.addressof(licence),
                (1, log_size, ctypes.addressof(log)) if log_size else (0, 0, 0),
                flags=flags,
                name=name,
                attach=attach,
            )
            result = _patiently(Command.PROG_LOAD, attributes)
            return result, log.value.decode(errors="replace")

        fd, log = load(0)  # writing the log takes time, and is for failures only
        if fd < 0 and fd != -errno.EPERM:
            first = fd
            for size in _LOG_SIZES:
                fd, log = load(size)
                if fd != -errno.ENOSPC:
                    break
            if fd < 0:
                raise _load_refused(words, -first, log)
        if fd < 0:
            raise _load_refused(words, -fd, "")
        return cls(fd, f"name {name}")

    def info(self) -> ProgramInfo:
        """What the kernel says of it."""
        return parse_program(self._info())

    def map_ids(self) -> tuple[int, ...]:
        """The ids of the maps that it uses, in the order in which it names them first."""
        count = program_maps(self._info())
        ids = ctypes.create_string_buffer(max(count, 1) * 4)
        info = ask_program_maps(count, ctypes.addressof(ids))
        self._fill(info)
        return struct.unpack_from(f"={count}I", ids)

    def test_run(self, data: bytes, context: bytes = b"", repeat: int = 1) -> RunResult:
        """Run it on a packet; its maps are the live ones.

        Who may open the program may run it: since Linux 5.19 that takes no capability.

        What the program changes in the packet is not undone between repeats.

        Args:
            data: a frame of at least 14 bytes, from its Ethernet header on.
            context: from xdp_context or skb_context; empty for the kernel's own (device lo).
            repeat: how often.

        Raises:
            KernelError: EINVAL: the frame is too short, or the context is not understood; ENODEV:
                it names no device of this namespace.
            PrivilegeError: the caller may not.
        """
        data_in = ctypes.create_string_buffer(data, len(data) or 1)
        data_out = ctypes.create_string_buffer(len(data) + _OUT_ROOM)
        context_in = ctypes.create_string_buffer(context, len(context) or 1)
        context_out = ctypes.create_string_buffer(len(context) or 1)
        attributes = bytearray(
            wire.TEST.pack(
                self.fd,
                0,
                len(data),
                len(data_out),
                ctypes.addressof(data_in),
                ctypes.addressof(data_out),
                repeat,
                0,
                len(context),
                len(context),
                ctypes.addressof(context_in) if context else 0,
                ctypes.addressof(context_out) if context else 0,
                0,
                0,
                0,
            )
        )
        result = bpf.call(Command.PROG_TEST_RUN, attributes)
        if result < 0:
            words = f"bpftool prog run {self.label} data_in - repeat {repeat}"
            hint = "run as root (CAP_NET_ADMIN)" if result == -errno.EPERM else ""
            raise bpf.refused(words, -result, hint)
        fields = wire.TEST.unpack(attributes)
        return RunResult(
            returned=fields[1],
            data=data_out.raw[: fields[3]],
            duration=fields[7],
            context=context_out.raw[: fields[9]] if context else b"",
        )


class Counting(bpf.BpfObject):
    """While it is open the kernel counts every program's runs (ProgramInfo.run_count).

    It costs some ns a packet. Needs Linux 5.8 and CAP_SYS_ADMIN.
    """

    noun = "prog"

    @classmethod
    def start(cls) -> Self:
        """Begin.

        Raises:
            PrivilegeError, KernelError: the kernel refuses.
        """
        fd = bpf.call(Command.ENABLE_STATS, bytearray(struct.pack("=I", _STATS_RUN_TIME)))
        if fd < 0:
            raise bpf.refused("sysctl -w kernel.bpf_stats_enabled=1", -fd)
        return cls(fd, "statistics")


def _patiently(command: Command, attributes: bytearray) -> int:
    """Ask again while a signal interrupts the verifier (EAGAIN)."""
    result = bpf.call(command, attributes)
    for _ in range(_TRIES):
        if result != -errno.EAGAIN:
            break
        result = bpf.call(command, attributes)
    return result


def _load_refused(words: str, number: int, log: str) -> LbdrError:
    if log.strip():
        return VerifierError(words, errno=number, log=log)
    hint = ""
    if number == errno.EINVAL:
        hint = "this kernel does not know the program's type, attach type or flags"
    elif number == errno.E2BIG:
        hint = "the program has more instructions than this kernel takes"
    return bpf.refused(words, number, hint)
