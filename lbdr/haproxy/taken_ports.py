"""Ports that another program holds, found before a reload.

HAProxy finds them too, but to make sure that it is not in its own way it stops taking connections
for a moment, on every service.
"""

from __future__ import annotations

import errno
import re
import socket
from collections.abc import Iterator
from ipaddress import ip_address

from lbdr.model import Address, endpoint

_BIND = re.compile(r"^    bind (\[?[0-9a-f.:]+?\]?):(\d+)(?:-(\d+))? ", re.MULTILINE)
_IP_FREEBIND = 15  # include/uapi/linux/in.h; the VIP may be another director's for now


def taken(text: str, before: str) -> list[str]:
    """What a configuration binds, the one before did not, and somebody else has.

    Args:
        text: the configuration to come.
        before: the one that is served; empty for none.
    """
    held = set(_binds(before))
    return [
        endpoint(address, port)
        for address, port in _binds(text)
        if (address, port) not in held and _in_use(address, port)
    ]


def _binds(text: str) -> Iterator[tuple[Address, int]]:
    for match in _BIND.finditer(text):
        first = int(match[2])
        for port in range(first, int(match[3] or first) + 1):
            yield ip_address(match[1].strip("[]")), port


def _in_use(address: Address, port: int) -> bool:
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
            trial.bind((str(address), port))
    except OSError as error:
        return error.errno == errno.EADDRINUSE  # a right that we lack is no answer
    return False
