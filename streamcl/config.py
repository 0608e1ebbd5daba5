"""The configuration: frozen, typed sections; one TOML file, every key optional, every key also a variable and a flag.

Guarantees: a `Config` that exists has been checked in full, and whoever asks learns of every problem at once and where
each value came from: a flag takes precedence over the environment, that over the file, and that over the default. Reads no
environment of its own; knows nothing of torch, sockets or the state directory's contents.
"""

from __future__ import annotations

import dataclasses
import difflib
import ipaddress
import math
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from streamcl.conventions import Convention, to_scale
from streamcl.errors import ConfigError

Positive = Annotated[int, msgspec.Meta(ge=1)]
PositiveFloat = Annotated[float, msgspec.Meta(gt=0.0)]
NonNegative = Annotated[float, msgspec.Meta(ge=0.0)]
LAST_PORT = 65535
IPC_PATH_BYTES = 107  # what the kernel takes
PREFIX = "STREAMCL_"  # of environment variables: STREAMCL_TRAIN__EPOCHS


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What every section shares: immutable, and an unknown key is an error."""


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
    """The quadratic penalty: its form, and how much each task weighs.

    keep: how many of the last boundaries can be rolled back.
    """

    mode: Literal["single", "factors", "multi-anchor", "online"] = "single"
    prior_precision: PositiveFloat = 1.0
    prior_mean: Literal["zero", "init"] = "zero"
    scale: NonNegative = 1.0
    convention: Convention = "streamcl"
    gamma: Annotated[float, msgspec.Meta(gt=0.0, le=1.0)] = 0.95
    curvature: Literal["diagonal", "kronecker"] = "diagonal"
    fisher: Literal["exact", "mc", "empirical"] = "exact"
    damping: Annotated[float, msgspec.Meta(gt=0.0, le=1.0)] = 0.5
    keep: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 3

    @property
    def effective_scale(self) -> float:
        """The scale in ``lambda_t = scale * N_t``, converted from `convention`."""
        return to_scale(self.convention, self.scale)


class Stream(_Section, frozen=True):
    """The terms for producers: when tasks close, how much they may send ahead and store.

    on_failure: whether new tasks wait (hold) or go on (set-aside) while one that could not be learned is kept.
    drift_delta: ADWIN's significance. drift_rows: of a task before drift may close it.
    """

    boundary: Literal["explicit", "on-change", "drift"] = "explicit"
    drift_delta: Annotated[float, msgspec.Meta(gt=0.0, lt=1.0)] = 0.002
    drift_rows: Positive = 500
    task_bytes: Positive = 8589934592
    on_failure: Literal["hold", "set-aside"] = "hold"
    credit: Positive = 16
    tasks: Positive = 100_000
    producers: Positive = 100_000


class Evaluation(_Section, frozen=True):
    """Rows that are only ever scored: a directory of files TASK.npz, TASK.parquet and TASK.csv; empty for none."""

    directory: str = ""


class Security(_Section, frozen=True):
    """Who is let in. All are files; none is needed as long as every endpoint is on loopback.

    server_key: of `streamcl keygen`; with it all three sockets speak CURVE. policy: what each client's key may do.
    http_token: what HTTP clients must bring. http_certificate, http_key: TLS, PEM.
    """

    server_key: str = ""
    policy: str = ""
    http_token: str = ""
    http_certificate: str = ""
    http_key: str = ""


class Log(_Section, frozen=True):
    """The daemon's log on standard error: from which level on, and in which format (auto: for people on a terminal)."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "human", "json"] = "auto"


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
    evaluation: Evaluation = Evaluation()
    security: Security = Security()
    log: Log = Log()


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value comes from; name: the file's path, the variable or the flag."""

    kind: Literal["default", "file", "environment", "flag"]
    name: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.name}".strip()


DEFAULT = Origin("default")


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a key, and what was expected; also: other keys by which it may be corrected."""

    key: str
    text: str
    origin: Origin = DEFAULT
    also: tuple[str, ...] = ()

    def __str__(self) -> str:
        where = "" if self.origin.kind == "default" else f" ({self.origin})"
        return f"{self.key}: {self.text}{where}"


@dataclass(slots=True)
class Gathered:
    """Values from everywhere, not checked yet: a nested mapping, where each key comes from, and what could not be read."""

    tree: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, Origin] = field(default_factory=dict)
    unread: list[Problem] = field(default_factory=list)

    def origin(self, key: str) -> Origin:
        """Where a key's value comes from."""
        return self.origins.get(key, DEFAULT)

    def problems(self) -> list[Problem]:
        """Everything that is wrong, in the file's order; wrong values are left out of checks that look at several."""
        return self._checked()[1]

    def config(self) -> Config:
        """The configuration, checked in full; raises ConfigError with everything that is wrong."""
        config, problems = self._checked()
        if problems:
            raise ConfigError(in_words(problems))
        return config

    def _checked(self) -> tuple[Config, list[Problem]]:
        problems = [*self.unread, *_unknown_keys(self.tree)]
        values: dict[str, Any] = {}
        for key, hint, _ in all_keys():
            try:
                if (value := lookup(self.tree, key)) is not None:
                    _set(values, key, msgspec.convert(value, hint))
            except msgspec.ValidationError as error:
                problems.append(Problem(key, _expected(str(error), hint, value)))
        config = msgspec.convert(values, Config)
        wrong = {problem.key for problem in problems}
        problems += [found for found in _whole(config) if not wrong & {found.key, *found.also}]
        return config, [self._located(problem) for problem in problems]

    def _located(self, problem: Problem) -> Problem:
        """A problem, with the origin of its value; of several keys, the first that was set explicitly."""
        set_by = (self.origin(key) for key in (problem.key, *problem.also))
        origin = next((origin for origin in set_by if origin.kind != "default"), problem.origin)
        return dataclasses.replace(problem, origin=origin)


def load(
    path: Path | None = None, flags: Mapping[str, str] | None = None, environment: Mapping[str, str] | None = None
) -> Config:
    """The configuration of a TOML file (or none), overridden by `STREAMCL_` variables, and these by flags such as
    ``{"train.epochs": "3"}``. The environment is that which is given, not the process's.

    Raises ConfigError naming every key that is wrong, what was expected and, for an unknown key, the nearest known one.
    """
    return gather(path, flags, environment).config()


def gather(
    path: Path | None = None, flags: Mapping[str, str] | None = None, environment: Mapping[str, str] | None = None
) -> Gathered:
    """All values and where each comes from, unchecked. Raises ConfigError only where the file cannot be read."""
    tree = _read_toml(path) if path is not None else {}
    gathered = Gathered(tree, {key: Origin("file", str(path)) for key in _dotted(tree, _sections())})
    for variable, text in (environment or {}).items():
        _take_variable(gathered, variable, text)
    for key, text in (flags or {}).items():
        _take_text(gathered, key, text, Origin("flag", f"--{key}"))
    return gathered


def from_tree(tree: Mapping[str, Any]) -> Config:
    """Check a nested mapping in full and make it a Config; raises ConfigError."""
    return Gathered(dict(tree)).config()


def in_words(problems: Sequence[Problem]) -> str:
    """Problems as an error's message: one in a line, several under each other."""
    if len(problems) == 1:
        return f"configuration: {problems[0]}"
    return "\n  ".join([f"configuration: {len(problems)} problems:", *map(str, problems)])


def all_keys() -> Iterator[tuple[str, Any, Any]]:
    """Every key as (dotted name, annotated type, default), in the file's order."""
    for name, hint, default in _fields(Config):
        if isinstance(default, _Section):
            for inner, inner_hint, inner_default in _fields(type(default)):
                yield f"{name}.{inner}", inner_hint, inner_default
        else:
            yield name, hint, default


def lookup(tree: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key in a nested mapping, or None."""
    value: Any = tree
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def variable(key: str) -> str:
    """The environment variable of a key.

    >>> variable("train.epochs")
    'STREAMCL_TRAIN__EPOCHS'
    """
    return PREFIX + key.upper().replace(".", "__")


def _sections() -> set[str]:
    return {key.split(".")[0] for key, _, _ in all_keys() if "." in key}


def _fields(section: type[msgspec.Struct]) -> Iterator[tuple[str, Any, Any]]:
    hints = get_type_hints(section, include_extras=True)
    for field_ in msgspec.structs.fields(section):
        default = field_.default if field_.default is not msgspec.NODEFAULT else field_.default_factory()
        yield field_.name, hints[field_.name], default


# -- reading -----------------------------------------------------------------------------------------------------------


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"configuration file {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"configuration file {path}: not TOML: {error}") from None


def _take_variable(gathered: Gathered, name: str, text: str) -> None:
    """A variable that is a key, or would be but for a slip; others belong to other programs.

    Kubernetes, for one, sets STREAMCL_PORT and its like for a service called streamcl: so only what has the two
    underscores between section and key is taken for a key.
    """
    known = {variable(key): key for key, _, _ in all_keys()}
    if name in known:
        _take_text(gathered, known[name], text, Origin("environment", name))
        return
    flat = {one.replace("__", "_"): one for one in known}
    if name.startswith(PREFIX) and ("__" in name or name in flat):
        near = _near(name.removeprefix(PREFIX).lower().replace("__", "."), list(known.values()))
        meant = flat.get(name) or (variable(near) if near else None)
        hint = f"did you mean {meant}?" if meant else f"expected {PREFIX}SECTION__KEY, such as {variable('train.epochs')}"
        gathered.unread.append(Problem(name, f"no key has this variable; {hint}", Origin("environment")))


def _take_text(gathered: Gathered, key: str, text: str, origin: Origin) -> None:
    try:
        value = _parse(key, text)
    except tomllib.TOMLDecodeError:
        gathered.unread.append(Problem(key, f"expected a TOML value such as {_example(key)}, got {text!r}", origin))
    else:
        _set(gathered.tree, key, value)
    gathered.origins[key] = origin


def _set(tree: dict[str, Any], key: str, value: Any) -> None:
    *sections, leaf = key.split(".")
    for section in sections:
        if not isinstance(tree.get(section), dict):
            tree[section] = {}
        tree = tree[section]
    tree[leaf] = value


def _parse(key: str, text: str) -> Any:
    """A flag's or variable's text in the type of its key: strings as they are, the rest as a TOML value."""
    hint = next((hint for name, hint, _ in all_keys() if name == key), None)
    bare = _bare(hint)
    if hint is None or bare is str or get_origin(bare) is Literal:
        return text
    return tomllib.loads(f"value = {text}")["value"]


def _bare(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _example(key: str) -> str:
    default = next((default for name, _, default in all_keys() if name == key), 1)
    return "{ hidden = [256, 256] }" if isinstance(default, dict) else str(default)


# -- checking ----------------------------------------------------------------------------------------------------------


def _unknown_keys(tree: Mapping[str, Any]) -> Iterator[Problem]:
    known, sections = [name for name, _, _ in all_keys()], _sections()
    for key in _dotted(tree, sections):
        if key in sections:
            yield Problem(key, f"expected a table ([{key}]), got {tree[key]!r}")
        elif key not in known:
            yield Problem(key, f"unknown key; {_nearest(key, known, sections)}")


def _nearest(key: str, known: list[str], sections: set[str]) -> str:
    """What may have been meant, as text."""
    if "." not in key and (near := difflib.get_close_matches(key, sections, n=1)):
        return f"did you mean [{near[0]}]?"
    meant = _near(key, known)
    return f"did you mean {meant}?" if meant else f"known: {', '.join(known)}"


def _near(key: str, known: list[str]) -> str | None:
    """The key meant: of this name in another section, else of the nearest name in this section, else in any."""
    section, _, leaf = key.rpartition(".")
    leaves = {name.rpartition(".")[2]: name for name in known}
    here = {name.rpartition(".")[2]: name for name in known if name.rpartition(".")[0] == section}
    for names in (here, leaves):
        near = [leaf] if leaf in names else difflib.get_close_matches(leaf, names, n=1)
        if near:
            return names[near[0]]
    near = difflib.get_close_matches(key, [name for name in known if "." not in name], n=1)
    return near[0] if near else None


def _dotted(tree: Mapping[str, Any], sections: set[str]) -> Iterator[str]:
    for key, value in tree.items():
        if key in sections and isinstance(value, Mapping):
            yield from (f"{key}.{inner}" for inner in value)
        else:
            yield key


def _expected(error: str, hint: Any, value: Any) -> str:
    """msgspec's complaint in our words."""
    bare = _bare(hint)
    if get_origin(bare) is Literal:
        return f"expected one of {' | '.join(get_args(bare))}, got {value!r}"
    wanted = error.partition(", got")[0].replace("`", "").removeprefix("Expected ").partition(" - at")[0]
    return f"expected {wanted}, got {value!r}"


def _whole(config: Config) -> Iterator[Problem]:
    """What no single key's type can express; also options that this version does not have yet."""
    train, posterior = config.train, config.posterior
    if posterior.curvature == "kronecker":
        yield Problem("posterior.curvature", "'kronecker' is not available in this version of streamcl")
    if train.autocast != "off" and (train.dtype != "float32" or train.optimizer == "lbfgs"):
        text = f"{train.autocast} requires train.dtype float32 and optimizer adam or sgd, got {train.dtype} and "
        yield Problem("train.autocast", text + train.optimizer, also=("train.dtype", "train.optimizer"))
    if config.evaluation.directory and config.model.likelihood == "gaussian":
        text = "an accuracy is a share of right answers; expected model.likelihood categorical or bernoulli, got gaussian"
        yield Problem("evaluation.directory", text, also=("model.likelihood",))
    if config.stream.boundary == "drift" and train.optimizer == "lbfgs":
        text = "drift shows in the errors of a model that learns while data arrive; expected train.optimizer adam or sgd, "
        text += "got lbfgs, which learns only at boundaries"
        yield Problem("stream.boundary", text, also=("train.optimizer",))
    for key, number in _numbers(config):
        if not math.isfinite(number):
            yield Problem(key, f"expected a finite number, got {number}")
    if posterior.convention == "laplace-torch" and posterior.scale == 0:
        text = "expected a temperature greater than 0 (convention laplace-torch), got 0"
        yield Problem("posterior.scale", text, also=("posterior.convention",))
    if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", config.model.factory):
        yield Problem("model.factory", f"expected 'package.module:callable', got {config.model.factory!r}")
    yield from _addresses(config.endpoints)
    yield from _exposure(config.endpoints, config.security)


def _numbers(config: Config) -> Iterator[tuple[str, float]]:
    for key, _, _ in all_keys():
        value: Any = config
        for part in key.split("."):
            value = getattr(value, part)
        if isinstance(value, float):
            yield key, value


def _addresses(endpoints: Endpoints) -> Iterator[Problem]:
    for name in ("stream", "predict", "admin"):
        text = _wrong_endpoint(getattr(endpoints, name))
        if text is not None:
            yield Problem(f"endpoints.{name}", text)
    try:
        split_host_port(endpoints.http)
    except ConfigError:
        yield Problem("endpoints.http", f"expected HOST:PORT, got {endpoints.http!r}")


def _wrong_endpoint(endpoint: str) -> str | None:
    tcp = re.fullmatch(r"tcp://[^\s/]+:(\d{1,5}|\*)", endpoint)
    if tcp is not None and tcp[1] != "*" and int(tcp[1]) > LAST_PORT:
        return f"expected a port up to {LAST_PORT}, got {endpoint!r}"
    if tcp is not None:
        return None
    if not re.fullmatch(r"ipc://[^@].*", endpoint):  # an abstract name (@) has no permissions
        return f"expected tcp://HOST:PORT or ipc://PATH, got {endpoint!r}"
    if len(endpoint.removeprefix("ipc://").encode()) > IPC_PATH_BYTES:
        return f"expected a path of at most {IPC_PATH_BYTES} bytes, got {endpoint!r}"
    return None


def _exposure(endpoints: Endpoints, security: Security) -> Iterator[Problem]:
    """Beyond loopback only with keys; half a security configuration is an error."""
    keys = ("security.server_key", "security.policy")
    tls = ("security.http_certificate", "security.http_key")
    if bool(security.server_key) != bool(security.policy):
        yield Problem(
            "security", "expected both server_key and policy, or neither: see `streamcl keygen --help`", also=keys
        )
    if bool(security.http_certificate) != bool(security.http_key):
        yield Problem("security", "expected both http_certificate and http_key, or neither", also=tls)
    for name in ("stream", "predict", "admin"):
        endpoint = getattr(endpoints, name)
        if not security.server_key and _wrong_endpoint(endpoint) is None and not is_local(endpoint):
            text = (
                f"{endpoint} can be reached from other machines; expected security.server_key and security.policy first "
                "(`streamcl keygen --help` shows how), or an endpoint on loopback"
            )
            yield Problem(f"endpoints.{name}", text, also=keys)
    secured = security.http_token and security.http_certificate
    if not secured and ":" in endpoints.http and not is_local(f"tcp://{endpoints.http}"):
        text = (
            f"{endpoints.http} can be reached from other machines; expected security.http_token, http_certificate and "
            "http_key first, or an address on loopback"
        )
        yield Problem("endpoints.http", text, also=("security.http_token", *tls))


def is_ipv6(endpoint: str) -> bool:
    """Whether an endpoint, or HOST:PORT, names a numerical IPv6 address: ``tcp://[::1]:5757``."""
    return ":" in endpoint.removeprefix("tcp://").rpartition(":")[0] and not endpoint.startswith("ipc://")


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
    """``127.0.0.1:5780`` as ("127.0.0.1", 5780), ``[::1]:5780`` as ("::1", 5780); port 0 or * means any free one.

    Raises ConfigError.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not host or not (port == "*" or (port.isdigit() and int(port) <= LAST_PORT)):
        raise ConfigError(f"endpoints.http: expected HOST:PORT, got {address!r}")
    return host.strip("[]"), 0 if port == "*" else int(port)
