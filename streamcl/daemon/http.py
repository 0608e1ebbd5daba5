"""The HTTP port: /metrics, /healthz, /readyz, JSON, and the dashboard at /. Reads only; nothing here changes state.

HEAD is answered as GET, without the body; every other method with 405.

Serves from threads of the ingest process, which read what the loop goes on changing (`view` says what that means). At most
`MOST_CONNECTIONS` at once, each for at most `CONNECTION_SECONDS`. With a token, nothing is shown without it: as
`Authorization: Bearer TOKEN` or, in browsers, as the password with any user name. With a certificate it speaks TLS only.
"""

from __future__ import annotations

import base64
import contextlib
import hmac
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qsl, urlsplit

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from streamcl.config import Security
from streamcl.daemon.dashboard import PAGE, POLICY
from streamcl.daemon.shown import Json, Query, encode
from streamcl.daemon.sockets import cannot_listen
from streamcl.errors import ConfigError, Refused
from streamcl.keys import read_private

Readiness = Callable[[], str | None]
Routes = dict[str, Callable[[Query, str], tuple[int, str, bytes]]]

MOST_CONNECTIONS = 32
SHORTEST_TOKEN = 16
CONNECTION_SECONDS = 15.0
LOOK_SECONDS = 0.05  # until whoever closes is noticed
MOST_BODY = 64 * 1024  # of a request, which should have none
TEXT = "text/plain; charset=utf-8"
UNAUTHORISED = b"expected the token: Authorization: Bearer TOKEN\n"
SAFE_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": POLICY,
}


class HttpServer:
    """Answers GET requests until `close`.

    shown: paths answered with JSON. not_ready: the reason the daemon is not ready, or None. page: at /, or nothing.
    """

    def __init__(
        self,
        address: tuple[str, int],
        registry: CollectorRegistry,
        shown: Mapping[str, Json],
        not_ready: Readiness,
        security: Security | None = None,
        page: str | None = PAGE,
    ) -> None:
        front = {} if page is None else {"/": lambda query, accept: (200, "text/html; charset=utf-8", page.encode())}

        class Handler(_Handler):
            routes: ClassVar[Routes] = {
                "/metrics": lambda query, accept: _metrics(registry, accept),
                "/healthz": lambda query, accept: (200, TEXT, b"ok\n"),
                "/readyz": lambda query, accept: _readiness(not_ready()),
                **front,
                **{path: _json(answer) for path, answer in shown.items()},
            }

        self._security = security or Security()
        try:
            self._server = _Server(address, Handler)
        except OSError as error:
            place = _host_port(*address)
            raise ConfigError(
                f"endpoints.http {place}: cannot listen there: {cannot_listen(error, place)}, or give another address "
                "(--endpoints.http; port 0 is any free one)"
            ) from None
        self._take_secrets()
        self._thread = threading.Thread(target=self._server.serve_forever, args=(LOOK_SECONDS,), name="http", daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        """HOST:PORT as bound."""
        host, port = self._server.server_address[:2]
        return _host_port(str(host), port)

    def _take_secrets(self) -> None:
        self._server.token, self._server.context = read_secrets(self._security)
        self.certificate_expiry = expiry(Path(self._security.http_certificate)) if self._server.context else None

    def reload(self) -> str | None:
        """Read token and certificate again; if one is wrong both stay as they were, and the reason is returned."""
        try:
            self._take_secrets()
        except ConfigError as error:
            return str(error)
        return None

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


def _host_port(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def read_secrets(security: Security) -> tuple[str | None, ssl.SSLContext | None]:
    """The token and the certificate, if they are configured; raises ConfigError."""
    token = read_private(Path(security.http_token)).strip() if security.http_token else None
    if token is not None and len(token) < SHORTEST_TOKEN:
        raise ConfigError(f"security.http_token: {security.http_token}: expected at least {SHORTEST_TOKEN} characters")
    try:
        return token, _tls(security) if security.http_certificate else None
    except OSError as error:
        raise ConfigError(f"security.http_certificate, http_key: expected PEM files that fit: {error}") from None


def _tls(security: Security) -> ssl.SSLContext:
    read_private(Path(security.http_key))  # for its permissions
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(security.http_certificate, security.http_key)
    return context


def expiry(certificate: Path) -> float | None:
    """When a PEM certificate expires, Unix seconds; None, and a warning in the log, if it serves but cannot be read."""
    from cryptography import x509  # here, because only TLS should wait for it

    try:
        return x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc.timestamp()
    except (ValueError, OSError) as error:
        structlog.get_logger().warning(
            "when the certificate expires is not shown", file=str(certificate), reason=str(error)
        )
        return None


class _Server(ThreadingHTTPServer):
    """Threads, but not more than `MOST_CONNECTIONS`, and none for longer than `CONNECTION_SECONDS`."""

    daemon_threads = True
    request_queue_size = 64
    token: str | None = None
    context: ssl.SSLContext | None = None

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._open: dict[int, tuple[socket.socket, float]] = {}
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give it a thread, if there is one left."""
        if len(self._open) >= MOST_CONNECTIONS:
            self.shutdown_request(request)
            return
        self._open[id(request)] = (request, time.monotonic())
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """The TLS handshake, in a thread where nobody else waits for it."""
        accepted = id(request)
        try:
            request.settimeout(_Handler.timeout)
            if self.context is not None:
                request = self.context.wrap_socket(request, server_side=True, do_handshake_on_connect=False)
                self._open[accepted] = (request, self._open[accepted][1])
                request.do_handshake()
            super().process_request_thread(request, client_address)
        except OSError:  # not TLS, or gone
            self.shutdown_request(request)
        finally:
            self._open.pop(accepted, None)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is not worth reporting."""

    def service_actions(self) -> None:
        """End those that are slower than any honest client."""
        for connection, since in list(self._open.values()):
            if time.monotonic() - since > CONNECTION_SECONDS:
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(connection, socket.SHUT_RDWR)


def _metrics(registry: CollectorRegistry, accept: str) -> tuple[int, str, bytes]:
    try:
        encode, content_type = choose_encoder(accept)
        return 200, content_type, encode(registry)
    except (ValueError, TypeError) as error:  # a version that is none
        return 400, TEXT, f"Accept: {error}\n".encode()


def _json(answer: Json) -> Callable[[Query, str], tuple[int, str, bytes]]:
    def route(query: Query, accept: str) -> tuple[int, str, bytes]:
        try:
            return 200, "application/json", encode(answer(query))
        except Refused as refused:
            return 400, TEXT, f"{refused.message}\n".encode()

    return route


def _readiness(reason: str | None) -> tuple[int, str, bytes]:
    return (200 if reason is None else 503), TEXT, f"{reason or 'ready'}\n".encode()


class _Handler(BaseHTTPRequestHandler):
    routes: ClassVar[Routes] = {}
    server_version = "streamcl"
    sys_version = ""
    timeout = 10

    def do_GET(self) -> None:
        """Answer a known path, 404 for any other; HEAD likewise, without the body."""
        if not self._may():
            self._reply(401, TEXT, UNAUTHORISED)
            return
        try:
            address = urlsplit(self.path)
        except ValueError as error:
            self._reply(400, TEXT, f"not an address: {error}\n".encode())
            return
        route = self.routes.get(address.path)
        if route is None:
            known = ", ".join(self.routes)
            self._reply(404, TEXT, f"not found; expected one of {known}\n".encode())
        else:
            self._reply(*route(dict(parse_qsl(address.query)), self.headers.get("Accept", "")))

    do_HEAD = do_GET

    def _not_allowed(self) -> None:
        """405: nothing here changes anything."""
        with contextlib.suppress(ValueError):  # or the answer may be lost with what was not read
            self.rfile.read(min(int(self.headers.get("Content-Length", 0)), MOST_BODY))
        if self._may():
            self._reply(405, TEXT, f"expected GET or HEAD, got {self.command}\n".encode())
        else:
            self._reply(401, TEXT, UNAUTHORISED)

    def __getattr__(self, name: str) -> Any:
        """`do_` followed by any other method's name."""
        if name.startswith("do_"):
            return self._not_allowed
        raise AttributeError(name)

    def _may(self) -> bool:
        """Whether the request brings the token, compared in constant time."""
        token = getattr(self.server, "token", None)
        if token is None:
            return True
        scheme, _, given = self.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "basic":
            with contextlib.suppress(ValueError):
                return _same(base64.b64decode(given, validate=True).decode().partition(":")[2], token)
        return scheme.lower() == "bearer" and _same(given.strip(), token)

    def _reply(self, code: int, content_type: str, body: bytes) -> None:
        self.send_response(code)
        if code == 401:
            self.send_header("WWW-Authenticate", 'Basic realm="streamcl"')
        if code == 405:
            self.send_header("Allow", "GET, HEAD")
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        for name, value in SAFE_HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are counted by nobody and logged nowhere."""


def _same(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode(), token.encode())
