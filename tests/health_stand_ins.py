"""Peers that no package serves, and peers that are wrong in themselves; processes of their own.

python health_stand_ins.py KIND PORT...
python health_stand_ins.py drip PORT=PEER...
"""

from __future__ import annotations

import socket
import socketserver
import struct
import sys
import threading
import time
from collections.abc import Callable

HOST = "127.0.0.1"
GARBAGE = bytes(range(254, 0, -1)) * 8


class Mllp(socketserver.StreamRequestHandler):
    """Acknowledges messages; one whose control ID says so is refused."""

    def handle(self) -> None:
        data = b""
        while b"\x1c\r" not in data:
            more = self.request.recv(4096)
            if not more:
                return
            data += more
        control = data.split(b"\r")[0].split(b"|")[9]
        code, said = (b"AE", b"unknown patient") if control == b"BAD" else (b"AA", b"")
        header = b"MSH|^~\\&|HIS|HOSP|LBDR|HOSP|20260101||ACK|1|P|2.3\r"
        self.request.sendall(b"\x0b" + header + b"MSA|" + b"|".join((code, control, said)))
        self.request.sendall(b"\r\x1c\r")


class Tns(socketserver.StreamRequestHandler):
    """Answers a ping as Oracle's listener does, and knows one service, PACS."""

    def handle(self) -> None:
        (length,) = struct.unpack("!H", self.rfile.read(2))
        asked = self.rfile.read(length - 2)
        kind, data = 4, b"(DESCRIPTION=(TMP=)(VSNNUM=318767104)(ERR=0)(ALIAS=LISTENER))"
        if b"SERVICE_NAME=PACS)" in asked:
            kind, data = 2, b""
        elif b"SERVICE_NAME=MOVED)" in asked:
            kind, data = 5, b"(ADDRESS=(PROTOCOL=TCP)(HOST=127.0.0.1)(PORT=1522))"
        elif b"SERVICE_NAME" in asked:
            data = (
                b"(DESCRIPTION=(TMP=)(VSNNUM=318767104)(ERR=12514)"
                b"(ERROR_STACK=(ERROR=(CODE=12514)(EMFI=4))))"
            )
        body = struct.pack("!BBH", 34, 0, len(data)) + data
        self.request.sendall(struct.pack("!HHBBH", 8 + len(body), 0, kind, 0, 0) + body)


class Reset(socketserver.BaseRequestHandler):
    """Answers by a RST."""

    def handle(self) -> None:
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.request.close()


class Close(socketserver.BaseRequestHandler):
    """Hangs up on what was said."""

    def handle(self) -> None:
        self.request.settimeout(0.2)
        try:
            self.request.recv(65536)
        except TimeoutError:
            return


class Garbage(socketserver.BaseRequestHandler):
    """Says what belongs to no protocol, and waits."""

    def handle(self) -> None:
        self.request.sendall(GARBAGE)
        while self.request.recv(65536):
            pass


class GarbageDatagrams(socketserver.BaseRequestHandler):
    """Answers datagrams by what belongs to no protocol."""

    def handle(self) -> None:
        self.request[1].sendto(GARBAGE, self.client_address)


def dripping(peer: int) -> type[socketserver.BaseRequestHandler]:
    """A handler that passes on a real peer's own answers, a byte a second."""

    class Drip(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.create_connection((HOST, peer)) as real:
                threading.Thread(target=_forward, args=(self.request, real), daemon=True).start()
                while byte := real.recv(1):
                    self.request.sendall(byte)
                    time.sleep(1)

    return Drip


def _forward(client: socket.socket, real: socket.socket) -> None:
    try:
        while data := client.recv(65536):
            real.sendall(data)
    except OSError:
        return  # either end has gone


class Server(socketserver.ThreadingTCPServer):
    """One of them by TCP."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: object) -> None:
        """A checker that hangs up is no error."""


KINDS: dict[str, Callable[[int], socketserver.BaseServer]] = {
    "mllp": lambda port: Server((HOST, port), Mllp),
    "tns": lambda port: Server((HOST, port), Tns),
    "reset": lambda port: Server((HOST, port), Reset),
    "close": lambda port: Server((HOST, port), Close),
    "garbage": lambda port: Server((HOST, port), Garbage),
    "garbage-datagrams": lambda port: socketserver.UDPServer((HOST, port), GarbageDatagrams),
}


def main() -> None:
    """Serve what the arguments name, for ever."""
    kind, *ports = sys.argv[1:]
    if kind == "drip":
        pairs = [pair.partition("=")[::2] for pair in ports]
        servers = [Server((HOST, int(port)), dripping(int(peer))) for port, peer in pairs]
    else:
        servers = [KINDS[kind](int(port)) for port in ports]  # type: ignore[misc]
    threads = [threading.Thread(target=server.serve_forever) for server in servers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
