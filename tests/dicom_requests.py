"""Association requests of every kind, and what a client hears when it sends one."""

from __future__ import annotations

import contextlib
import random
import socket

from hypothesis import strategies as st
from netlab import Lab

from lbdr.haproxy.association import Association, build
from lbdr.haproxy.sop_classes import MODALITIES, OTHERS

CT, ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1"
ECHO = "1.2.840.10008.1.1"
UIDS = (
    *OTHERS,
    *(uid for table in MODALITIES.values() for uid in table),
    "1.2.3",
    CT + "2",
    CT + ".0",
)
TITLES = ("PACS", "PACS_STAT", "pacs", "CT_ER", "OLD CT", "A", "X" * 16, "it's #1 %[sr]", "A  B")

associations = st.builds(
    Association,
    st.sampled_from(TITLES),
    st.sampled_from(TITLES),
    st.lists(st.sampled_from(UIDS), min_size=1, max_size=6).map(tuple),
)

LEGAL = build(Association("PACS", "CT_ER", (CT, ECHO)))


def mutated(chance: random.Random) -> bytes:
    """A request with a few bytes changed, lost, doubled or put in, or with one length wrong."""
    data = bytearray(LEGAL)
    for _ in range(chance.choice((1, 1, 1, 2, 4, 16))):
        at = chance.randrange(len(data))
        match chance.randrange(6):
            case 0:
                data[at] = chance.randrange(256)
            case 1:
                del data[at : at + chance.choice((1, 2, 9))]
            case 2:
                data[at:at] = chance.randbytes(chance.choice((1, 2, 9)))
            case 3:
                data[at:at] = data[at : at + chance.choice((4, 20))]
            case 4:
                data[at] ^= 1 << chance.randrange(8)
            case _:
                start = chance.choice((2, 76, 99, 103, 126, 150, 180))
                data[start : start + 2] = chance.choice((b"\0\0", b"\xff\xff", b"\0\1", b"\x7f\0"))
        if not data:
            data = bytearray(b"\1")
    return bytes(data)


def exchange(
    lab: Lab,
    address: str,
    port: int,
    data: bytes,
    *,
    pieces: int = 0,
    finish: bool = True,
    source: str = "",
    timeout: float = 20.0,
) -> bytes:
    """Send something and hear everything until the other side closes.

    Args:
        lab: from its client.
        address: where to.
        port: where to.
        data: what is sent.
        pieces: bytes of each segment; 0 for all at once.
        finish: tell that nothing more comes.
        source: the client's address; its first one by default.
        timeout: seconds of silence.
    """
    with lab.entered("client"):
        connection = socket.create_connection(
            (address, port), timeout, source_address=(source, 0) if source else None
        )
    heard = b""
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(ConnectionError):
            for start in range(0, len(data), pieces or len(data) or 1):
                connection.sendall(data[start : start + (pieces or len(data))])
            if finish:
                connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            while part := connection.recv(65536):
                heard += part
    return heard
