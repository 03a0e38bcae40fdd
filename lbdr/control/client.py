"""Asking the daemon."""

from __future__ import annotations

import socket
from contextlib import suppress

from pydantic import ValidationError

from lbdr.control.protocol import LINE_LIMIT, VERSION, Answer, Envelope, Request
from lbdr.errors import ControlError, LbdrError, PrivilegeError
from lbdr.paths import Paths

_SILENCE = "the user must be root or in the group lbdr; journalctl -u lbdr tells more"


class RemoteError(LbdrError):
    """The daemon did not do what it was asked; its exit code is that of the cause."""

    def __init__(self, message: str, *, hint: str, exit_code: int) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = exit_code


def running(paths: Paths) -> bool:
    """Whether a daemon answers on the socket."""
    try:
        _connect(paths).close()
    except ControlError:
        return False
    return True


def ask(paths: Paths, request: Request, *, timeout: float = 120.0) -> Answer:
    """Send a request and wait for its answer.

    Args:
        paths: of the director.
        request: what is asked.
        timeout: seconds without an answer after which the daemon counts as stuck.

    Raises:
        ControlError: no daemon, or none that understands.
        PrivilegeError: the caller may not use the socket.
        RemoteError: the daemon refuses.
    """
    line = Envelope(version=VERSION, request=request).model_dump_json().encode() + b"\n"
    with _connect(paths) as connection:
        connection.settimeout(timeout)
        try:
            with suppress(BrokenPipeError):  # a refusal may have come before the request
                connection.sendall(line)
            with connection.makefile("rb") as stream:
                reply = stream.readline(LINE_LIMIT)
        except OSError as error:
            raise ControlError(
                f"the daemon on {paths.socket} does not answer: {error}", hint=_SILENCE
            ) from error
    if not reply.endswith(b"\n"):
        raise ControlError(
            f"the daemon on {paths.socket} closed the connection without an answer", hint=_SILENCE
        )
    try:
        answer = Answer.model_validate_json(reply)
    except ValidationError as error:
        raise ControlError(
            f"the answer of the daemon on {paths.socket} is not understood",
            hint="the daemon is of another version than this command: restart it",
        ) from error
    if answer.failure is not None:
        failure = answer.failure
        raise RemoteError(failure.message, hint=failure.hint, exit_code=failure.exit_code)
    if answer.version != VERSION or answer.result is None:
        raise ControlError(
            f"the answer of the daemon on {paths.socket} is not understood",
            hint="the daemon is of another version than this command: restart it",
        )
    return answer


def _connect(paths: Paths) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(str(paths.socket))
    except PermissionError as error:
        connection.close()
        raise PrivilegeError(
            f"{paths.socket}: permission denied", hint="run as root, or join the group lbdr"
        ) from error
    except OSError as error:
        connection.close()
        raise ControlError(
            f"no daemon answers on {paths.socket}: {error.strerror or error}",
            hint="systemctl start lbdr, or `lbdr daemon`; --run-dir names another director's",
        ) from error
    return connection
