"""Where the daemon listens: IPv6 as well as IPv4, the messages for wrong addresses, and every HTTP method."""

from __future__ import annotations

import errno
import http.client
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from streamcl import config
from streamcl.bench.local import LocalDaemon
from streamcl.daemon import sockets
from streamcl.daemon.http import HttpServer
from streamcl.errors import ConfigError

IPV6 = {"stream": "tcp://[::1]:0", "predict": "tcp://[::1]:*", "admin": "tcp://[::1]:0", "http": "[::1]:0"}
MODEL = {"factory": "streamcl.models:linear", "classes": 3}
X, Y = np.random.default_rng(0).normal(size=(32, 4)).astype("<f4"), np.arange(32) % 3
needs_ipv6 = pytest.mark.skipif(not sockets._has_ipv6(), reason="this machine has no IPv6")


@needs_ipv6
@pytest.mark.campaign
def test_every_endpoint_may_be_ipv6(start: Callable[..., LocalDaemon], tmp_path: Path) -> None:
    daemon = start({"endpoints": IPV6, "model": MODEL})
    assert all("[::1]:" in endpoint and not endpoint.endswith(":0") for endpoint in daemon.endpoints.values())
    with daemon.producer() as producer, daemon.reader() as reader, daemon.admin() as admin:
        producer.send(X, Y, "a")
        assert producer.boundary("a")["samples"] == 32
        assert reader.predict(X).probs.shape == (32, 3)
        assert admin.status()["tasks"] == 1
    daemon.kill_all()
    daemon.start()  # and again where it was
    np.savez(tmp_path / "b.npz", x=X, y=Y)
    for words in (
        ("health",),
        ("send", str(tmp_path / "b.npz"), "--task", "b", "--boundary"),
        ("predict", str(tmp_path / "b.npz")),
    ):
        command = [sys.executable, "-m", "streamcl", *words, "--state-dir", str(daemon.state_dir)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr


@needs_ipv6
def test_another_daemon_is_blamed_only_where_something_listens() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=r"another daemon\?"):
            sockets.bind_router(f"tcp://[::1]:{port}")
    with pytest.raises(ConfigError, match="no network interface of this machine has that address") as refused:
        sockets.bind_router("tcp://[2001:db8::1]:0")
    assert "another daemon" not in str(refused.value)
    with pytest.raises(ConfigError, match="no network interface") as refused:
        HttpServer(("2001:db8::1", 0), None, {}, lambda: None)  # type: ignore[arg-type]
    assert "endpoints.http [2001:db8::1]:0" in str(refused.value)
    assert "another daemon" not in str(refused.value)


def test_a_machine_without_ipv6_is_said_to_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "_has_ipv6", lambda: False)
    said = sockets.cannot_listen(zmq.ZMQError(errno.ENODEV), "tcp://[::1]:0")
    assert "has no IPv6" in said
    assert "another daemon" not in said


@pytest.mark.parametrize(
    ("endpoint", "ipv6"),
    [("tcp://[::1]:5757", True), ("tcp://127.0.0.1:5757", False), ("[::1]:0", True), ("ipc:///tmp/a:b:c", False)],
)
def test_what_is_an_ipv6_address(endpoint: str, ipv6: bool) -> None:
    assert config.is_ipv6(endpoint) is ipv6


def test_loopback_of_ipv6_needs_no_keys_and_a_port_beyond_the_last_is_refused() -> None:
    config.from_tree({"endpoints": IPV6})
    with pytest.raises(ConfigError, match="expected a port up to 65535"):
        config.from_tree({"endpoints": {"stream": "tcp://127.0.0.1:99999"}})
    with pytest.raises(ConfigError, match="security"):
        config.from_tree({"endpoints": {"stream": "tcp://[::]:5757"}})


# -- methods -----------------------------------------------------------------------------------------------------------


def ask(daemon: LocalDaemon, method: str, path: str, body: Any = None) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(daemon.endpoints["http"], timeout=120)
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def test_head_is_get_without_the_body_and_other_methods_are_405(start: Callable[..., LocalDaemon]) -> None:
    daemon = start({"model": MODEL})
    for path in ("/healthz", "/readyz", "/status", "/tasks", "/metrics", "/", "/history", "/nowhere"):
        got, asked = ask(daemon, "GET", path), ask(daemon, "HEAD", path)
        assert asked[0] == got[0], path
        assert asked[1]["Content-Type"] == got[1]["Content-Type"]
        assert int(asked[1]["Content-Length"]) > 0
        assert asked[2] == b""
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "WHATEVER"):
        status, headers, body = ask(daemon, method, "/healthz", b"x" * 1000 if method == "POST" else None)
        assert (status, headers["Allow"]) == (405, "GET, HEAD")
        assert method.encode() in body


def test_curl_asks_with_head(start: Callable[..., LocalDaemon]) -> None:
    daemon = start({"model": MODEL})
    with socket.create_connection(daemon.endpoints["http"].rsplit(":", 1), timeout=120) as plain:  # type: ignore[arg-type]
        plain.sendall(b"HEAD /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = b"".join(iter(lambda: plain.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.0 200 ")
    assert answer.endswith(b"\r\n\r\n")


def test_a_request_that_cannot_be_read_is_a_bad_one(start: Callable[..., LocalDaemon]) -> None:
    host, port = start({}).endpoints["http"].split(":")
    for address, accept in (("http://[::1", "*/*"), ("/metrics", "application/openmetrics-text; version=abc")):
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            connection.sendall(f"GET {address} HTTP/1.1\r\nHost: a\r\nAccept: {accept}\r\n\r\n".encode())
            assert connection.recv(100).startswith(b"HTTP/1.0 400 ")
