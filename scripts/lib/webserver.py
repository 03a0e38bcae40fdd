"""A web server that says who it is and whom it sees: `webserver.py NAME [PORT]`."""

from __future__ import annotations

import json
import socket
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = json.dumps(
            {
                "server": sys.argv[1],
                "client": self.client_address[0],
                "address": self.connection.getsockname()[0],
            }
        ).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class _Server(ThreadingHTTPServer):
    address_family = socket.AF_INET6  # and IPv4 by its mapped addresses
    daemon_threads = True


if __name__ == "__main__":
    port = int(sys.argv[2]) if len(sys.argv) > 2 else 80
    _Server(("::", port), _Handler).serve_forever()
