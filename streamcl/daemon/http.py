"""The HTTP port: /metrics, /healthz, /readyz, /status and a status page at /. Reads only; nothing here changes state.

Serves from threads of the ingest process; what it shows are whole snapshots that the loop replaces.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from streamcl.daemon.page import PAGE

Readiness = Callable[[], str | None]
Status = Callable[[], dict[str, Any]]
Routes = dict[str, Callable[[str], tuple[int, str, bytes]]]

SAFE_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'",
}


class HttpServer:
    """Answers GET requests until `close`. not_ready: the reason the daemon is not ready, or None."""

    def __init__(self, address: tuple[str, int], registry: CollectorRegistry, status: Status, not_ready: Readiness) -> None:
        class Handler(_Handler):
            routes: ClassVar[Routes] = {
                "/metrics": lambda accept: _metrics(registry, accept),
                "/healthz": lambda accept: (200, "text/plain; charset=utf-8", b"ok\n"),
                "/readyz": lambda accept: _readiness(not_ready()),
                "/status": lambda accept: (200, "application/json", json.dumps(status()).encode()),
                "/": lambda accept: (200, "text/html; charset=utf-8", PAGE.encode()),
            }

        self._server = ThreadingHTTPServer(address, Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="http", daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        """HOST:PORT as bound."""
        host, port = self._server.server_address[:2]
        return f"{host!s}:{port}"

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


def _metrics(registry: CollectorRegistry, accept: str) -> tuple[int, str, bytes]:
    encode, content_type = choose_encoder(accept)
    return 200, content_type, encode(registry)


def _readiness(reason: str | None) -> tuple[int, str, bytes]:
    return (200 if reason is None else 503), "text/plain; charset=utf-8", f"{reason or 'ready'}\n".encode()


class _Handler(BaseHTTPRequestHandler):
    routes: ClassVar[Routes] = {}
    server_version = "streamcl"
    sys_version = ""
    timeout = 10

    def do_GET(self) -> None:
        """Answer a known path, 404 for any other."""
        route = self.routes.get(self.path.partition("?")[0])
        if route is None:
            known = ", ".join(self.routes)
            self._reply(404, "text/plain; charset=utf-8", f"not found; there are {known}\n".encode())
        else:
            self._reply(*route(self.headers.get("Accept", "")))

    def _reply(self, code: int, content_type: str, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        for name, value in SAFE_HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are counted by nobody and logged nowhere."""
