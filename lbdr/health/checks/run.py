"""Running any check, once: the time limit, and words for whatever goes wrong."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from lbdr.datapath.vip_probe import VipProber
from lbdr.health.checks import dicom, dns, external, hl7, http, ldap, oracle, ping, smtp, tcp
from lbdr.health.checks.attempt import Attempt, CheckError, Trace, describe
from lbdr.health.checks.vip import vip
from lbdr.health.results import Failed, FailureKind, Passed, Result
from lbdr.health.spec import (
    KINDS,
    Check,
    Connect,
    DicomEcho,
    Dns,
    External,
    Hl7Mllp,
    Http,
    Ldap,
    Negotiate,
    Off,
    On,
    OracleTns,
    Ping,
    Probe,
    Smtp,
    Vip,
)

_log = logging.getLogger(__name__)

_STALL = 0.5  # of a timeout: an event loop that comes so much later stood still

_FUNCTIONS: dict[type[Any], Callable[[Any, Attempt], Awaitable[str]]] = {
    Connect: tcp.connect,
    Negotiate: tcp.negotiate,
    Http: http.http,
    External: external.external,
    Ping: ping.ping,
    Dns: dns.dns,
    DicomEcho: dicom.dicom_echo,
    Hl7Mllp: hl7.hl7_mllp,
    OracleTns: oracle.oracle_tns,
    Ldap: ldap.ldap,
    Smtp: smtp.smtp,
}


async def run(
    probe: Probe, *, prober: VipProber | None = None, trace: Trace | None = None
) -> Result:
    """Run a check once; it ends within its timeout, and everything that it opened is closed.

    Args:
        probe: the check and its target.
        prober: for `vip` checks, shared by all of them.
        trace: told of what is sent and received.
    """
    loop = asyncio.get_running_loop()
    check, timeout = probe.check, probe.timing.timeout
    attempt = Attempt(probe.target, timeout, trace)
    start = loop.time()
    # an external program's end is seen to by its warden
    limit = timeout + external.GRACE if isinstance(check, External) else timeout
    try:
        async with asyncio.timeout(limit):
            words = await _call(check, attempt, prober)
    except CheckError as error:
        failure = error
    except TimeoutError:
        failure = _too_late(attempt, loop.time() - start - limit)
    except OSError as error:
        failure = describe(error)
    except Exception as error:  # noqa: BLE001  # one check's fault must not stop the others
        _log.exception("the check %s failed by itself", probe)
        failure = CheckError(f"could not be asked: {error!r}", FailureKind.LOCAL)
    else:
        return Passed(loop.time() - start, words)
    return Failed(loop.time() - start, f"{probe.target} {failure.words}", failure.kind)


def _too_late(attempt: Attempt, late: float) -> CheckError:
    """What a timeout means: the server's, or ours where this process itself stood still."""
    if late > _STALL * attempt.timeout:
        # an answer that came meanwhile was not read
        words = f"could not be asked: this director was busy for {late:.1f} s"
        return CheckError(words, FailureKind.LOCAL)
    return CheckError(f"{attempt.missing} (within {attempt.timeout:g} s)", FailureKind.TIMEOUT)


async def _call(check: Check, attempt: Attempt, prober: VipProber | None) -> str:
    if isinstance(check, On):
        return "is always up"
    if isinstance(check, Off):
        raise CheckError("is switched off by its check", FailureKind.REJECTED)
    if isinstance(check, Vip):
        if prober is None:
            raise CheckError("could not be asked: there is no VIP prober", FailureKind.LOCAL)
        return await vip(check, attempt, prober)
    function = _FUNCTIONS[type(check)]
    attempt.note(f"{KINDS[type(check)]}, at most {attempt.timeout:g} s")
    return await function(check, attempt)
