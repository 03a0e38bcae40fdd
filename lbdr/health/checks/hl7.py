"""hl7-mllp: a message, and its acknowledgement (HL7 v2 Transport Specification, MLLP)."""

from __future__ import annotations

from lbdr.health.checks.attempt import Attempt, CheckError, plain
from lbdr.health.checks.stream import connected
from lbdr.health.results import FailureKind
from lbdr.health.spec import Hl7Mllp

_START, _END = b"\x0b", b"\x1c\r"
_LIMIT = 65536
_CODES = {
    "AE": "application error",
    "AR": "application reject",
    "CE": "commit error",
    "CR": "commit reject",
}


async def hl7_mllp(check: Hl7Mllp, attempt: Attempt) -> str:
    """Whether a message is acknowledged."""
    message = check.message.replace("\r\n", "\r").replace("\n", "\r").rstrip("\r") + "\r"
    async with connected(attempt, check.tls) as stream:
        attempt.missing = "accepted the connection, but did not acknowledge the HL7 message"
        await stream.send(_START + message.encode() + _END)
        await stream.begins(_START + b"MSH", "MLLP")
        answer = await stream.until(_END, _LIMIT, "an HL7 acknowledgement")
    if len(answer) < 6:
        raise CheckError("answered by an empty message", FailureKind.PROTOCOL)
    separator = answer[4:5]
    segments = [segment.split(separator) for segment in answer[1:].split(b"\r")]
    for fields in segments:
        if fields[0] == b"MSA" and len(fields) > 1:
            code = plain(fields[1])
            if code in check.expect:
                return f"acknowledged by MSA|{code}"
            said = plain(fields[3]) if len(fields) > 3 else ""
            said = said or next((_error(each) for each in segments if each[0] == b"ERR"), "")
            meaning = _CODES.get(code, "not expected")
            words = f"acknowledged by MSA|{code} ({meaning})" + (f": {said}" if said else "")
            raise CheckError(words, FailureKind.REJECTED)
    raise CheckError("answered without an MSA segment", FailureKind.PROTOCOL)


def _error(fields: list[bytes]) -> str:
    return plain(b" ".join(field for field in fields[1:] if field))
