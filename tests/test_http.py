"""The HTTP port with token and TLS: nothing is shown without the token, nothing is sent in the clear."""

from __future__ import annotations

import base64
import socket
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from streamcl.config import Security
from streamcl.daemon import http
from streamcl.daemon.http import HttpServer, read_secrets
from streamcl.errors import ConfigError

TOKEN = "a-token-of-some-length"


@pytest.fixture
def secrets(tmp_path: Path) -> Security:
    certificate, key, token = (str(tmp_path / name) for name in ("cert.pem", "key.pem", "token"))
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate]
    subprocess.run(command, check=True, capture_output=True)
    Path(token).write_text(TOKEN + "\n")
    for path in (key, token):
        Path(path).chmod(0o600)
    return Security(http_token=token, http_certificate=certificate, http_key=key)


@pytest.fixture
def server(secrets: Security) -> Iterator[HttpServer]:
    shown = {"/status": lambda query: {"state": "idle"}}
    server = HttpServer(("127.0.0.1", 0), CollectorRegistry(), shown, lambda: None, secrets)
    yield server
    server.close()


def get(server: HttpServer, secrets: Security, authorization: str | None, path: str = "/status") -> tuple[int, str]:
    context = ssl.create_default_context(cafile=secrets.http_certificate)
    headers = {} if authorization is None else {"Authorization": authorization}
    request = urllib.request.Request(f"https://{server.address}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, context=context, timeout=60) as answer:
            return answer.status, answer.headers["Content-Security-Policy"]
    except urllib.error.HTTPError as error:
        return error.code, error.headers["WWW-Authenticate"]


def test_nothing_is_shown_without_the_token(server: HttpServer, secrets: Security) -> None:
    browser = base64.b64encode(f"anyone:{TOKEN}".encode()).decode()
    for good in (f"Bearer {TOKEN}", f"bearer {TOKEN}", f"Basic {browser}"):
        assert get(server, secrets, good)[0] == 200
    wrong = base64.b64encode(b"anyone:else").decode()
    for bad in (None, "", "Bearer", "Bearer x", f"Token {TOKEN}", TOKEN, f"Basic {wrong}", "Basic %", "Bearer \xff"):
        assert get(server, secrets, bad) == (401, 'Basic realm="streamcl"')
    for path in ("/", "/metrics", "/healthz", "/readyz", "/none"):
        assert get(server, secrets, None, path)[0] == 401


def test_nothing_is_said_in_the_clear(server: HttpServer, secrets: Security) -> None:
    context = read_secrets(secrets)[1]
    assert context is not None
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2  # OpenSSL itself may refuse what is older
    with pytest.raises((urllib.error.URLError, ConnectionError, OSError)):
        urllib.request.urlopen(f"http://{server.address}/status", timeout=60)
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"https://{server.address}/status", context=old, timeout=60)


def test_token_and_certificate_are_read_again(server: HttpServer, secrets: Security) -> None:
    Path(secrets.http_token).write_text("another-token-of-some-length")
    assert get(server, secrets, f"Bearer {TOKEN}")[0] == 200
    assert server.reload() is None
    assert get(server, secrets, f"Bearer {TOKEN}")[0] == 401
    Path(secrets.http_token).chmod(0o644)
    assert "chmod 600" in str(server.reload())
    assert get(server, secrets, "Bearer another-token-of-some-length")[0] == 200  # what was wrong changed nothing
    assert get(server, secrets, f"Bearer {TOKEN}")[0] == get(server, secrets, None)[0] == 401


def test_when_the_certificate_expires_is_read_of_the_first_in_the_file(secrets: Security, tmp_path: Path) -> None:
    command = ["openssl", "x509", "-in", secrets.http_certificate, "-noout", "-enddate"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip().removeprefix("notAfter=")
    chain = tmp_path / "chain.pem"
    chain.write_text(Path(secrets.http_key).read_text() + Path(secrets.http_certificate).read_text())
    for path in (Path(secrets.http_certificate), chain):
        assert http.expiry(path) == ssl.cert_time_to_seconds(said)
    assert http.expiry(Path(secrets.http_key)) is None


@pytest.mark.parametrize("name", ["http_token", "http_key"])
def test_a_secret_that_others_can_read_is_refused(secrets: Security, name: str) -> None:
    Path(getattr(secrets, name)).chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        HttpServer(("127.0.0.1", 0), CollectorRegistry(), {}, lambda: None, secrets)


def test_a_short_token_is_refused(secrets: Security) -> None:
    Path(secrets.http_token).write_text("x" * (http.SHORTEST_TOKEN - 1))
    with pytest.raises(ConfigError, match="at least 16"):
        read_secrets(secrets)


def test_pages_are_sent_with_the_headers_that_browsers_heed(server: HttpServer, secrets: Security) -> None:
    assert "default-src 'none'" in get(server, secrets, f"Bearer {TOKEN}", "/")[1]


def test_a_slow_connection_is_ended_and_one_too_many_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MOST_CONNECTIONS", 2)
    monkeypatch.setattr(http._Handler, "timeout", 60)
    server = HttpServer(("127.0.0.1", 0), CollectorRegistry(), {}, lambda: None)
    host, port = server.address.split(":")
    connections = [socket.create_connection((host, int(port)), timeout=60) for _ in range(3)]
    assert connections[2].recv(1) == b""  # while the first two are kept
    monkeypatch.setattr(http, "CONNECTION_SECONDS", 0.0)
    assert [connection.recv(1) for connection in connections[:2]] == [b"", b""]
    for connection in connections:
        connection.close()
    server.close()
