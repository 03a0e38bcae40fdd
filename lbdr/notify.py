"""Telling systemd how the daemon is (sd_notify(3)): a datagram to the socket it named."""

from __future__ import annotations

import asyncio
import logging
import os
import socket

log = logging.getLogger(__name__)


def notify(*assignments: str) -> None:
    """Send assignments such as READY=1; nothing where no service manager listens.

    Never waits: a service manager that does not listen must not stop a director.

    Source: sd_notify(3); an address beginning with @ is in the abstract namespace.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        with socket.socket(socket.AF_UNIX, kind) as sender:
            sender.sendto("\n".join(assignments).encode(), address)
    except OSError as error:
        log.warning("the service manager cannot be told: %s", error)


def watchdog_interval() -> float | None:
    """Seconds between two signs of life: half of what systemd allows; None where it asks none."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    allowed = os.environ.get("WATCHDOG_USEC", "")
    return int(allowed) / 2_000_000 if allowed.isdigit() and int(allowed) else None


async def watchdog() -> None:
    """Give signs of life for as long as the event loop turns."""
    interval = watchdog_interval()
    if interval is None:
        return
    while True:
        notify("WATCHDOG=1")
        await asyncio.sleep(interval)
