"""The kernel's jiffies as a clock for BPF programs: one load, where the coarse clock is a call.

Jiffies count from a number of their own, in steps of TICK_NSEC. Where timers are exact the kernel
adds them up by CLOCK_MONOTONIC (tick_do_update_jiffies64 in kernel/time/tick-sched.c), so that a
multiplication and an addition make that clock of them, for as long as the machine is up.
"""

from __future__ import annotations

import logging
import struct
import sys
import time

from lbdr.datapath.bpf_programs import Program, VerifierError
from lbdr.datapath.bpf_wire import ProgramKind

log = logging.getLogger(__name__)

_CLOCK_MONOTONIC_COARSE = 6  # include/uapi/linux/time.h
_TRIES = 20
_PLACE = 6  # in the frame: 8 bytes there are aligned, since a frame begins 2 bytes off
_FRAME = bytes(64)

_JIFFIES64 = 118  # the helper's number; since Linux 5.6, and to BPF JITs no call
_STEPS = [
    (0xBF, 0x16, 0, 0),  # r6 = the context
    (0x85, 0, 0, _JIFFIES64),
    (0x61, 0x62, 0, 0),  # r2 = data
    (0x61, 0x63, 4, 0),  # r3 = data_end
    (0xBF, 0x24, 0, 0),
    (0x07, 0x04, 0, _PLACE + 8),
    (0x2D, 0x34, 1, 0),  # if r2 + 14 > r3, leave
    (0x7B, 0x02, _PLACE, 0),
    (0xB7, 0x00, 0, 2),  # XDP_PASS
    (0x95, 0, 0, 0),
]
CODE = b"".join(struct.pack("=BBhi", *step) for step in _STEPS)
"""An XDP program for `read`."""


def macros() -> dict[str, int]:
    """What bpf/track.h needs to make CLOCK_MONOTONIC of jiffies; nothing where it must not.

    JIFFY_NS is the length of one, and JIFFIES_ZERO the clock when they were 0, both in ns.

    Raises:
        PrivilegeError, KernelError: the kernel refuses.
    """
    jiffy = round(time.clock_getres(_CLOCK_MONOTONIC_COARSE) * 1e9)  # TICK_NSEC
    if time.clock_getres(time.CLOCK_MONOTONIC) >= jiffy * 1e-9:
        log.debug("without exact timers ticks may be lost: programs ask the coarse clock")
        return {}
    try:
        program = Program.load(CODE, ProgramKind.XDP, name="lbdr_jiffies")
    except VerifierError as error:
        log.debug("programs ask the coarse clock: %s", error)
        return {}
    with program:
        for _ in range(_TRIES):
            before = time.clock_gettime_ns(_CLOCK_MONOTONIC_COARSE)
            jiffies = read(program)
            if time.clock_gettime_ns(_CLOCK_MONOTONIC_COARSE) == before:
                break
    return {"JIFFY_NS": jiffy, "JIFFIES_ZERO": before - jiffies * jiffy}


def read(program: Program) -> int:
    """The jiffies of now.

    Args:
        program: of CODE.

    Raises:
        PrivilegeError, KernelError: the kernel refuses.
    """
    frame = program.test_run(_FRAME).data
    return int.from_bytes(frame[_PLACE : _PLACE + 8], sys.byteorder)
