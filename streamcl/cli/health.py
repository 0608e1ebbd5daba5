"""``streamcl health``: asks /readyz as a service manager, a container or a load balancer would; imports little."""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import ssl
from pathlib import Path
from typing import Any

from streamcl import config
from streamcl.cli.common import add_json, command, print_json
from streamcl.config import Security
from streamcl.errors import ConfigError, Unreachable
from streamcl.keys import read_private

HERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "*": "127.0.0.1"}  # every address of this machine: any one will do


def add_commands(commands: Any) -> None:
    """Add this module's commands."""
    parser = command(
        commands,
        "health",
        health,
        "Ask the daemon on this machine whether it is ready (with --live: alive); exit status 0, or 1 with the "
        "reason. Token "
        "and certificate are those of the configuration file.",
        "streamcl health --config /etc/streamcl/streamcl.toml",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="the daemon's configuration file")
    parser.add_argument(
        "--state-dir", help="the daemon's state directory, where its address is found (default: the file's)"
    )
    parser.add_argument("--live", action="store_true", help="ask only whether it answers at all")
    parser.add_argument(
        "--timeout", type=float, default=5.0, metavar="SECONDS", help="how long to wait for an answer (default: 5)"
    )
    add_json(parser)


def health(options: argparse.Namespace) -> int:
    """Print whether the daemon is ready, or alive."""
    flags = {} if options.state_dir is None else {"state_dir": options.state_dir}
    settings = config.load(options.config, flags)
    said = ask(
        settings.security, _address(Path(settings.state_dir)), "/healthz" if options.live else "/readyz", options.timeout
    )
    status, text = said
    if options.json:
        print_json({"ready": status == 200, "status": status, "reason": text})
        return 0 if status == 200 else 1
    if status == 401:
        raise Unreachable(f"the daemon asks for its token: {text}; name its configuration with --config")
    if status != 200:
        raise Unreachable(f"not ready: {text}")
    print(text)
    return 0


def ask(security: Security, address: tuple[str, int], path: str, timeout: float) -> tuple[int, str]:
    """Status and text of a path; raises Unreachable. The token is shown only to whoever holds the certificate's key."""
    headers = {"Connection": "close"}
    if security.http_token:
        headers["Authorization"] = f"Bearer {read_private(Path(security.http_token)).strip()}"
    connection = _connection(security, address, timeout)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read(65536).decode(errors="replace").strip()
    except ssl.SSLCertVerificationError as error:
        raise Unreachable(
            f"the daemon's certificate is not the one in {security.http_certificate} ({error.verify_message}); "
            "if that was renewed, have the daemon read it: kill -HUP, or a restart"
        ) from None
    except (OSError, http.client.HTTPException) as error:
        raise Unreachable(f"no answer at {address[0]}:{address[1]}: {error}") from None
    finally:
        connection.close()


def _connection(security: Security, address: tuple[str, int], timeout: float) -> http.client.HTTPConnection:
    if not security.http_certificate:
        return http.client.HTTPConnection(*address, timeout=timeout)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # not by its name, but as exactly this certificate
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    try:
        context.load_verify_locations(security.http_certificate)
    except OSError as error:
        raise ConfigError(f"security.http_certificate: {security.http_certificate}: {error}") from None
    return http.client.HTTPSConnection(*address, timeout=timeout, context=context)


def _address(state_dir: Path) -> tuple[str, int]:
    """Where the running daemon of a state directory has bound its HTTP port."""
    path = state_dir / "daemon.json"
    with contextlib.suppress(ValueError, KeyError):
        try:
            host, port = config.split_host_port(json.loads(path.read_text())["endpoints"]["http"])
        except OSError as error:
            raise Unreachable(f"no daemon is ready on {state_dir}: {path}: {error.strerror}") from None
        return HERE.get(host, host), port
    raise Unreachable(f"{path}: expected the endpoints of a running daemon")
