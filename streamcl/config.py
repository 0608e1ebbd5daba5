"""The configuration: frozen, typed sections; one TOML file, every key optional, every key also a flag.

Guarantees: a `Config` that exists has been checked in full. Knows nothing of torch, sockets or the state
directory's contents.
"""

from __future__ import annotations

import difflib
import ipaddress
import math
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from streamcl.conventions import Convention, to_scale
from streamcl.errors import ConfigError

Positive = Annotated[int, msgspec.Meta(ge=1)]
PositiveFloat = Annotated[float, msgspec.Meta(gt=0.0)]
NonNegative = Annotated[float, msgspec.Meta(ge=0.0)]
IPC_PATH_BYTES = 107  # what the kernel takes


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What every section shares: immutable, and a stranger's key is an error."""


class Endpoints(_Section, frozen=True):
    """Where the daemon listens: tcp://HOST:PORT or ipc://PATH; port 0 or * picks a free one."""

    stream: str = "tcp://127.0.0.1:5757"
    predict: str = "tcp://127.0.0.1:5758"
    admin: str = "tcp://127.0.0.1:5759"
    http: str = "127.0.0.1:5780"


class Model(_Section, frozen=True):
    """The network and its likelihood."""

    factory: str = "streamcl.models:mlp"
    args: dict[str, Any] = {}
    likelihood: Literal["categorical", "bernoulli", "gaussian"] = "categorical"
    classes: Positive = 10
    noise_variance: PositiveFloat = 1.0


class Train(_Section, frozen=True):
    """Incremental steps while data arrives, then `epochs` over the whole task at its boundary."""

    optimizer: Literal["adam", "sgd", "lbfgs"] = "adam"
    learning_rate: PositiveFloat = 1e-3
    batch_size: Positive = 64
    epochs: Positive = 5
    tolerance: NonNegative = 0.0
    device: str = "auto"
    dtype: Literal["float32", "float64"] = "float32"
    autocast: Literal["off", "bfloat16"] = "off"
    seed: Annotated[int, msgspec.Meta(ge=0)] = 0
    watchdog_seconds: Annotated[float, msgspec.Meta(ge=5.0)] = 300.0


class Posterior(_Section, frozen=True):
    """The quadratic penalty: which form it has and how much each task weighs."""

    mode: Literal["single", "factors", "multi-anchor", "online"] = "single"
    prior_precision: PositiveFloat = 1.0
    prior_mean: Literal["zero", "init"] = "zero"
    scale: NonNegative = 1.0
    convention: Convention = "streamcl"
    gamma: Annotated[float, msgspec.Meta(gt=0.0, le=1.0)] = 0.95
    curvature: Literal["diagonal", "kronecker"] = "diagonal"
    fisher: Literal["exact", "mc", "empirical"] = "exact"
    damping: Annotated[float, msgspec.Meta(gt=0.0, le=1.0)] = 0.5

    @property
    def effective_scale(self) -> float:
        """The scale in ``lambda_t = scale * N_t``, converted from `convention`."""
        return to_scale(self.convention, self.scale)


class Stream(_Section, frozen=True):
    """What producers meet: when tasks close, how much they may send ahead and store.

    drift_delta: ADWIN's significance. drift_rows: of a task before drift may close it, and at the most that the log may be
    ahead of training then.
    """

    boundary: Literal["explicit", "on-change", "drift"] = "explicit"
    task_bytes: Positive = 8589934592
    credit: Positive = 16
    drift_delta: Annotated[float, msgspec.Meta(gt=0.0, lt=1.0)] = 0.002
    drift_rows: Positive = 500
    tasks: Positive = 100_000
    producers: Positive = 100_000


class Security(_Section, frozen=True):
    """Who is let in. Files; nothing here is needed as long as every endpoint is on loopback.

    server_key: of `streamcl keygen`; with it all three sockets speak CURVE. policy: what each client's key may do.
    http_token: what HTTP clients must bring. http_certificate, http_key: TLS, PEM.
    """

    server_key: str = ""
    policy: str = ""
    http_token: str = ""
    http_certificate: str = ""
    http_key: str = ""


class Config(_Section, frozen=True):
    """A whole, checked configuration.

    >>> Config().train.batch_size
    64
    """

    state_dir: str = "./streamcl-state"
    endpoints: Endpoints = Endpoints()
    model: Model = Model()
    train: Train = Train()
    posterior: Posterior = Posterior()
    stream: Stream = Stream()
    security: Security = Security()


def load(path: Path | None = None, flags: Mapping[str, str] | None = None) -> Config:
    """The configuration of a TOML file (or none), overridden by flags such as ``{"train.epochs": "3"}``.

    Raises ConfigError naming the key, what was expected and, for an unknown key, the nearest known one.
    """
    tree = _read_toml(path) if path is not None else {}
    for key, text in (flags or {}).items():
        _set(tree, key, _parse_flag(key, text))
    return from_tree(tree)


def from_tree(tree: Mapping[str, Any]) -> Config:
    """Check a nested mapping in full and make it a Config; raises ConfigError."""
    _refuse_unknown_keys(tree)
    try:
        config = msgspec.convert(tree, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(f"configuration: {error}") from None
    _check_whole(config)
    return config


def all_keys() -> Iterator[tuple[str, Any, Any]]:
    """Every key as (dotted name, annotated type, default), in the file's order."""
    for name, hint, default in _fields(Config):
        if isinstance(default, _Section):
            for inner, inner_hint, inner_default in _fields(type(default)):
                yield f"{name}.{inner}", inner_hint, inner_default
        else:
            yield name, hint, default


def _fields(section: type[msgspec.Struct]) -> Iterator[tuple[str, Any, Any]]:
    hints = get_type_hints(section, include_extras=True)
    for field in msgspec.structs.fields(section):
        default = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
        yield field.name, hints[field.name], default


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"configuration file {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"configuration file {path}: not TOML: {error}") from None


def _set(tree: dict[str, Any], key: str, value: Any) -> None:
    *sections, leaf = key.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
    tree[leaf] = value


def _parse_flag(key: str, text: str) -> Any:
    """A flag's text in the type of its key: strings as they are, the rest as a TOML value."""
    hint = next((hint for name, hint, _ in all_keys() if name == key), None)
    bare = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    if bare is str or get_origin(bare) is Literal:
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        raise ConfigError(f"--{key}: expected a TOML value such as {_example(key)}, got {text!r}") from None


def _example(key: str) -> str:
    default = next((default for name, _, default in all_keys() if name == key), 1)
    return "{ hidden = [256, 256] }" if isinstance(default, dict) else str(default)


def _refuse_unknown_keys(tree: Mapping[str, Any]) -> None:
    known = [name for name, _, _ in all_keys()]
    sections = {name.split(".")[0] for name in known if "." in name}
    for key in _dotted(tree, sections):
        if key not in known and key not in sections:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(known)}"
            raise ConfigError(f"configuration: unknown key {key}{hint}")


def _dotted(tree: Mapping[str, Any], sections: set[str]) -> Iterator[str]:
    for key, value in tree.items():
        if key in sections and isinstance(value, Mapping):
            yield from (f"{key}.{inner}" for inner in value)
        else:
            yield key


def _check_whole(config: Config) -> None:
    """What no single field's type can say; also options this version does not have yet."""
    _refuse_absent("posterior.curvature", config.posterior.curvature, "kronecker")
    if config.train.autocast != "off" and (config.train.dtype != "float32" or config.train.optimizer == "lbfgs"):
        raise ConfigError(
            f"train.autocast: {config.train.autocast} goes with train.dtype float32 and optimizers adam and sgd, got "
            f"{config.train.dtype} and {config.train.optimizer}"
        )
    if config.stream.boundary == "drift" and config.train.optimizer == "lbfgs":
        raise ConfigError(
            "stream.boundary: drift shows in the errors of a model that learns while data arrives; expected "
            "train.optimizer adam or sgd, got lbfgs, which learns at boundaries only"
        )
    for key, number in _numbers(config):
        if not math.isfinite(number):
            raise ConfigError(f"configuration: {key}: expected a finite number, got {number}")
    if config.posterior.convention == "laplace-torch" and config.posterior.scale == 0:
        raise ConfigError("posterior.scale: expected a temperature greater than 0 (convention laplace-torch), got 0")
    if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", config.model.factory):
        raise ConfigError(f"model.factory: expected 'package.module:callable', got {config.model.factory!r}")
    for name in ("stream", "predict", "admin"):
        _check_zmq_endpoint(name, getattr(config.endpoints, name))
    split_host_port(config.endpoints.http)
    _check_exposure(config.endpoints, config.security)


def _refuse_absent(key: str, value: str, absent: str) -> None:
    if value == absent:
        raise ConfigError(f"configuration: {key} = {absent!r} is not available in this version of streamcl")


def _numbers(config: Config) -> Iterator[tuple[str, float]]:
    for key, _, _ in all_keys():
        value: Any = config
        for part in key.split("."):
            value = getattr(value, part)
        if isinstance(value, float):
            yield key, value


def _check_zmq_endpoint(name: str, endpoint: str) -> None:
    if re.fullmatch(r"tcp://[^\s/]+:(\d{1,5}|\*)", endpoint):
        return
    if not re.fullmatch(r"ipc://[^@].*", endpoint):  # an abstract name (@) has no permissions
        raise ConfigError(f"endpoints.{name}: expected tcp://HOST:PORT or ipc://PATH, got {endpoint!r}")
    if len(endpoint.removeprefix("ipc://").encode()) > IPC_PATH_BYTES:
        raise ConfigError(f"endpoints.{name}: expected a path of at most {IPC_PATH_BYTES} bytes, got {endpoint!r}")


def _check_exposure(endpoints: Endpoints, security: Security) -> None:
    """Beyond loopback only with keys; half a configuration is none."""
    if bool(security.server_key) != bool(security.policy):
        raise ConfigError("security: expected both server_key and policy, or neither: see `streamcl keygen --help`")
    if bool(security.http_certificate) != bool(security.http_key):
        raise ConfigError("security: expected both http_certificate and http_key, or neither")
    for name in ("stream", "predict", "admin"):
        endpoint = getattr(endpoints, name)
        if not security.server_key and not is_local(endpoint):
            raise ConfigError(
                f"endpoints.{name}: {endpoint} can be reached from other machines; expected security.server_key and "
                "security.policy first (`streamcl keygen --help` shows how), or an endpoint on loopback"
            )
    if not (security.http_token and security.http_certificate) and not is_local(f"tcp://{endpoints.http}"):
        raise ConfigError(
            f"endpoints.http: {endpoints.http} can be reached from other machines; expected security.http_token, "
            "http_certificate and http_key first, or an address on loopback"
        )


def is_local(endpoint: str) -> bool:
    """Whether only this machine can reach an endpoint: ipc, or tcp on a loopback address."""
    if endpoint.startswith("ipc://"):
        return True
    host = endpoint.removeprefix("tcp://").rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def split_host_port(address: str) -> tuple[str, int]:
    """``127.0.0.1:5780`` as ("127.0.0.1", 5780); port 0 or * means any free one. Raises ConfigError."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not (port == "*" or (port.isdigit() and int(port) < 65536)):
        raise ConfigError(f"endpoints.http: expected HOST:PORT, got {address!r}")
    return host.strip("[]"), 0 if port == "*" else int(port)
