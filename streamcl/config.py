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
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from streamcl.conventions import Convention, to_scale
from streamcl.errors import ConfigError

Positive = Annotated[int, msgspec.Meta(ge=1)]
PositiveFloat = Annotated[float, msgspec.Meta(gt=0.0)]
NonNegative = Annotated[float, msgspec.Meta(ge=0.0)]
Auto = Literal["auto"]
NOTED_RATE, RATE = 1e-3, 3e-3  # of steps in the parameters' own coordinates, and in the penalty's
ROWS = 64  # automatically, in a step at a boundary, and while data arrive where the stream does not choose
EPOCHS, STEPS = (5, 20), 500  # automatically: within these bounds, passes that make so many steps
LAST_PORT = 65535
PERCEPTRON, RANDOM_FEATURES = (
    "streamcl.models:mlp",
    "streamcl.models:random_features",
)  # what a learner's model is by default
OF_NETWORKS = (  # keys that say nothing to an exact learner
    "train.optimizer",
    "train.learning_rate",
    "train.batch_size",
    "train.epochs",
    "train.tolerance",
    "train.autocast",
    "posterior.prior_mean",
    "posterior.convention",
    "posterior.gamma",
    "posterior.curvature",
    "posterior.expectation",
    "posterior.fisher",
    "posterior.share",
    "model.scenario",
)
DETECTORS: Mapping[str, Mapping[str, float]] = {  # River's, and what it calls their settings; of false alarms, see howto.md
    "adwin": {"clock": 32, "max_buckets": 5, "min_window_length": 5},  # drift_delta is its delta
    "page_hinkley": {"min_instances": 30, "delta": 0.02, "threshold": 50.0, "alpha": 0.9999},
    "kswin": {"alpha": 1e-4, "window_size": 300, "stat_size": 100},
    "ddm": {"warm_start": 500, "drift_threshold": 4.0},
    "hddm_a": {"drift_confidence": 1e-5},
    "hddm_w": {"drift_confidence": 1e-6, "lambda_val": 0.02},
}
IPC_PATH_BYTES = 107  # what the kernel takes
MORE_EXPECTED = {  # of a key, where its type does not say it all
    "posterior.half_life": "; half-lives are in rows (5000), not in time: a record carries none that a replay could trust",
}
LIKE, VERY_LIKE = 0.65, 0.8  # a name and one that may have been meant, from 0 to 1
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
    """The network and its likelihood; or, with learner exact, the map of rows to features beneath a Gaussian head.

    learner: network (trained) or exact (sums, solved for). classes: how many labels a network takes at most; auto: any
    number, its outputs grow as labels come. An exact learner takes any labels. scenario: whether tasks bring labels
    (class), share them (domain), or are told by name to whoever asks for a prediction (task). likelihood: auto is gaussian
    where the first batch is of a table whose targets are real numbers, else categorical.
    """

    learner: Literal["network", "exact"] = "network"
    factory: str = PERCEPTRON
    args: dict[str, Any] = {}
    likelihood: Literal["auto", "categorical", "bernoulli", "gaussian"] = "auto"
    classes: Positive | Auto = "auto"
    scenario: Literal["class", "domain", "task"] = "class"
    noise_variance: PositiveFloat | Auto = "auto"

    @property
    def family(self) -> Literal["categorical", "bernoulli", "gaussian"]:
        """How targets are distributed; where that is left to the first batch, categorical until `settled` says more."""
        return "categorical" if self.likelihood == "auto" else self.likelihood

    @property
    def maker(self) -> str:
        """The factory; an exact learner's default is random features, where a network's is a perceptron."""
        return RANDOM_FEATURES if self.learner == "exact" and self.factory == PERCEPTRON else self.factory

    @property
    def outputs(self) -> int | None:
        """How many labels there may be; None for any number."""
        return None if self.learner == "exact" or self.classes == "auto" else self.classes


class Train(_Section, frozen=True):
    """Incremental steps while data arrives, then `epochs` over the whole task at its boundary.

    workers: processes of this machine that share the rows of every step and sum; under `torchrun`, its own number holds.
    elastic: under `torchrun`, end where others do not come any more, so that it forms a group of fewer.
    """

    optimizer: Literal["adam", "sgd", "lbfgs"] = "adam"
    learning_rate: PositiveFloat | Auto = "auto"
    batch_size: Positive | Auto = "auto"
    epochs: Positive | Auto = "auto"
    tolerance: NonNegative = 0.0
    device: str = "auto"
    dtype: Literal["float32", "float64"] = "float32"
    autocast: Literal["off", "bfloat16"] = "off"
    seed: Annotated[int, msgspec.Meta(ge=0)] = 0
    watchdog_seconds: Annotated[float, msgspec.Meta(ge=5.0)] = 300.0
    workers: Positive = 1
    elastic: bool = False

    @property
    def rows(self) -> int:
        """In a step over a whole task."""
        return ROWS if self.batch_size == "auto" else self.batch_size


class Posterior(_Section, frozen=True):
    """The quadratic penalty: its form, where its curvature is taken, and how much each task weighs.

    prior_precision: automatically 1, or what the evidence says of an exact learner. half_life: of what an exact learner
    knows, in rows; 0 forgets nothing.
    share: how much of a task's factor a revisit takes out (power EP's alpha); damping: how far the factor then goes to the
    new one. keep: how many of the last boundaries can be rolled back.
    """

    mode: Literal["single", "factors", "multi-anchor", "online"] = "single"
    prior_precision: Annotated[float, msgspec.Meta(gt=0.0, le=1e30)] | Auto = "auto"
    half_life: NonNegative = 0.0
    prior_mean: Literal["zero", "init"] = "zero"
    scale: Annotated[float, msgspec.Meta(ge=0.0, le=1e20)] = 1.0
    convention: Convention = "streamcl"
    gamma: Annotated[float, msgspec.Meta(gt=0.0, le=1.0)] = 0.95
    curvature: Literal["auto", "diagonal", "kronecker", "full"] = "auto"
    expectation: Literal["posterior", "mode"] = "posterior"
    fisher: Literal["exact", "mc", "empirical"] = "exact"
    share: Annotated[float, msgspec.Meta(gt=0.0, le=1.0)] | Auto = "auto"
    damping: Annotated[float, msgspec.Meta(gt=0.0, le=1.0)] | Auto = "auto"
    keep: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 3

    @property
    def effective_scale(self) -> float:
        """The scale in ``lambda_t = scale * N_t``, converted from `convention`."""
        return to_scale(self.convention, self.scale)

    @property
    def effective_prior_precision(self) -> float:
        """Of a network's parameters."""
        return 1.0 if self.prior_precision == "auto" else self.prior_precision

    @property
    def as_in_the_note(self) -> bool:
        """Whether it is Huszár's: a diagonal at the optimum, with what goes with it."""
        return self.curvature == "diagonal" and self.expectation == "mode"

    @property
    def keeps_middle(self) -> bool:
        """Whether the mean of the tasks' optima is kept beside the penalty, to follow what they lose together."""
        return self.mode in ("single", "online") and not self.as_in_the_note

    @property
    def effective_share(self) -> float:
        """Of a task's factor that a revisit takes out: all of it in the note."""
        return self.share if self.share != "auto" else 1.0 if self.as_in_the_note else 0.3

    @property
    def effective_damping(self) -> float:
        """Of a revisit, unless it says so itself."""
        return self.damping if self.damping != "auto" else 0.5 if self.as_in_the_note else 1.0


class Input(_Section, frozen=True):
    """What becomes of rows before the model has them, by their columns.

    scale: numbers to mean 0 and variance 1, far ones drawn in: tables (those with a schema; plain arrays are taken as they
    are), auto (plain arrays too) or none. missing: numbers are the column's mean, and an input says so; or refused.
    categories: words are an input each, or a fixed direction each (embedding), or refused.
    """

    scale: Literal["tables", "auto", "none"] = "tables"
    missing: Literal["mean", "refuse"] = "mean"
    categories: Literal["one-hot", "embedding", "refuse"] = "one-hot"


class Stream(_Section, frozen=True):
    """The terms for producers: when tasks close, how much they may send ahead and store.

    on_failure: whether new tasks wait (hold) or go on (set-aside) while one that could not be learned is kept.
    drift_delta: ADWIN's significance. drift_rows: of a task before drift may close it. boundary_rows: of a task that closes
    by its rows; boundary_seconds: of one that closes by its age. budget_seconds: that boundaries may take a day.
    least_rows: of a task before its age, the budget or a fall of the score may close it. score_fall: that closes a task,
    from its best `score_window` rows to its newest. drift_detector: River's; drift_args: its settings, by River's names;
    drift_on: what it watches. recurring: whether a task that is like an earlier one is told to be, or learned as a revisit
    of it; recurring_distance: how far apart they may be.
    """

    boundary: Literal["explicit", "on-change", "rows", "time", "budget", "score", "drift"] = "explicit"
    boundary_rows: Positive = 10_000
    boundary_seconds: PositiveFloat = 86_400.0
    budget_seconds: Annotated[float, msgspec.Meta(gt=0.0, le=86_400.0)] = 3_600.0
    least_rows: Positive = 500
    score_fall: Annotated[float, msgspec.Meta(gt=0.0, lt=1.0)] = 0.1
    score_window: Annotated[int, msgspec.Meta(ge=10)] = 1000
    drift_delta: Annotated[float, msgspec.Meta(gt=0.0, lt=1.0)] = 0.002
    drift_rows: Positive = 500
    drift_detector: Literal["adwin", "page_hinkley", "kswin", "ddm", "hddm_a", "hddm_w"] = "adwin"
    drift_args: dict[str, Any] = {}
    drift_on: Literal["score", "inputs"] = "score"
    recurring: Literal["off", "tell", "revisit"] = "off"
    recurring_distance: PositiveFloat = 0.2
    task_bytes: Positive = 8589934592
    on_failure: Literal["hold", "set-aside"] = "hold"
    credit: Positive = 16
    tasks: Positive = 100_000
    producers: Positive = 100_000

    @property
    def ends_tasks(self) -> bool:
        """Whether the daemon itself ends tasks, so that what producers name is a stream of them."""
        return self.boundary not in ("explicit", "on-change")


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


class Follow(_Section, frozen=True):
    """Of `streamcl follow`: whose predictions are served here. None of it concerns a daemon that learns.

    endpoint: where the daemon answers predictions. key: the follower's secret key file. server_key: the daemon's public
    key, or its file. interval: seconds between two publications that are fetched, at least.
    """

    endpoint: str = ""
    key: str = ""
    server_key: str = ""
    interval: NonNegative = 0.0


class Log(_Section, frozen=True):
    """The daemon's log on standard error: from which level on, and in which format (auto: for people on a terminal)."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "human", "json"] = "auto"


class Config(_Section, frozen=True):
    """A whole, checked configuration.

    >>> Config().train.rows
    64
    """

    state_dir: str = "./streamcl-state"
    endpoints: Endpoints = Endpoints()
    model: Model = Model()
    train: Train = Train()
    posterior: Posterior = Posterior()
    input: Input = Input()
    stream: Stream = Stream()
    evaluation: Evaluation = Evaluation()
    security: Security = Security()
    follow: Follow = Follow()
    log: Log = Log()

    @property
    def rate(self) -> float:
        """The learning rate."""
        if self.train.learning_rate != "auto":
            return self.train.learning_rate
        return NOTED_RATE if self.posterior.as_in_the_note else RATE

    @property
    def learns_rate(self) -> bool:
        """Whether the stream chooses rate and minibatches while data arrive: Adam's, where neither is set."""
        train = self.train
        left = train.learning_rate == "auto" and train.batch_size == "auto" and train.optimizer == "adam"
        return left and not self.posterior.as_in_the_note

    def epochs(self, samples: int) -> int:
        """Passes over a task of so many rows at its boundary; automatically, as many as make enough steps."""
        if self.train.epochs != "auto":
            return self.train.epochs
        if self.posterior.as_in_the_note:
            return EPOCHS[0]
        needed = -(-STEPS * self.train.rows // max(1, samples))
        return min(max(EPOCHS[0], needed), EPOCHS[1])


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
                problems.append(Problem(key, _expected(str(error), hint, value) + MORE_EXPECTED.get(key, "")))
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


@cache
def all_keys() -> tuple[tuple[str, Any, Any], ...]:
    """Every key as (dotted name, annotated type, default), in the file's order; the same objects at each call."""
    keys: list[tuple[str, Any, Any]] = []
    for name, hint, default in _fields(Config):
        if isinstance(default, _Section):
            keys += [(f"{name}.{inner}", *rest) for inner, *rest in _fields(type(default))]
        else:
            keys.append((name, hint, default))
    return tuple(keys)


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


@cache
def _variables() -> Mapping[str, str]:
    """Every key by its environment variable."""
    return {variable(key): key for key, _, _ in all_keys()}


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
    known = _variables()
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
        said = f"expected a TOML value such as {_example(key)}, got {text!r}{MORE_EXPECTED.get(key, '')}"
        gathered.unread.append(Problem(key, said, origin))
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
    if hint is None or bare is str or get_origin(bare) is Literal or (text == "auto" and Auto in get_args(hint)):
        return text
    return tomllib.loads(f"value = {text}")["value"]


def _bare(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _example(key: str) -> str:
    hint, default = next(((hint, default) for name, hint, default in all_keys() if name == key), (int, 1))
    if default == "auto" and ("int" in str(hint) or "float" in str(hint)):  # or a number
        return "5" if "int" in str(hint) else "0.5"
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
    """The key meant: of this name in another section, else of a name near in this section, also at its beginning, else of
    one that is very near in another."""
    section, _, leaf = key.rpartition(".")
    leaves = {name.rpartition(".")[2]: name for name in known}
    here = {name.rpartition(".")[2]: name for name in known if name.rpartition(".")[0] == section}
    beginnings = {name[: len(leaf)]: name for name in reversed(here)}
    for names, cutoff in ((here, LIKE), (beginnings, VERY_LIKE), (leaves, VERY_LIKE)):
        near = [leaf] if leaf in names else difflib.get_close_matches(leaf, names, n=1, cutoff=cutoff)
        if near:
            found = beginnings[near[0]] if names is beginnings else near[0]
            return here[found] if names is beginnings else names[found]
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


def settled(config: Config, real: bool) -> Config:
    """The configuration once the first batch has come. real: its targets are real numbers."""
    if config.model.likelihood != "auto":
        return config
    model = msgspec.structs.replace(config.model, likelihood="gaussian" if real else "categorical")
    return msgspec.structs.replace(config, model=model)


OF_MODEL = ("model", "train", "posterior", "input")  # the sections that say how rows become predictions


def of_model(config: Config) -> dict[str, Any]:
    """The sections that a prediction depends on, as plain containers; no place, address or secret is among them."""
    return {name: msgspec.to_builtins(getattr(config, name)) for name in OF_MODEL}


def with_model(config: Config, sections: Mapping[str, Any]) -> Config:
    """A configuration with the sections that `of_model` gave; raises ConfigError where another version made them."""
    made = from_tree({name: sections[name] for name in OF_MODEL if name in sections})
    return msgspec.structs.replace(config, **{name: getattr(made, name) for name in OF_MODEL})


def finds_likelihood(config: Config) -> bool:
    """Whether the first batch decides it: not where labels are all that makes sense."""
    return config.model.likelihood == "auto" and not config.evaluation.directory and config.model.scenario == "class"


def for_labels_only(config: Config) -> str:
    """The setting beside the likelihood that real targets cannot be learned with; empty where there is none."""
    if config.evaluation.directory:
        return "evaluation.directory"
    return "model.scenario = 'domain'" if config.model.scenario == "domain" else ""


def _whole(config: Config) -> Iterator[Problem]:
    """What no single key's type can express."""
    train, posterior = config.train, config.posterior
    if train.autocast != "off" and (train.dtype != "float32" or train.optimizer == "lbfgs"):
        text = f"{train.autocast} requires train.dtype float32 and optimizer adam or sgd, got {train.dtype} and "
        yield Problem("train.autocast", text + train.optimizer, also=("train.dtype", "train.optimizer"))
    if config.evaluation.directory and config.model.likelihood == "gaussian":
        text = "an accuracy is a share of right answers; expected model.likelihood categorical or bernoulli, got gaussian"
        yield Problem("evaluation.directory", text, also=("model.likelihood",))
    yield from _of_learner(config)
    yield from _of_stream(config.stream, train.optimizer)
    yield from _of_recurring(config)
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
    followed = config.follow.endpoint
    wrong = (_wrong_endpoint(followed) or _no_port(followed)) if followed else None
    if wrong is not None:
        yield Problem("follow.endpoint", wrong)


def _of_stream(stream: Stream, optimizer: str) -> Iterator[Problem]:
    """Keys about when tasks end."""
    if (stream.boundary, stream.drift_on) in (("drift", "score"), ("score", "score")) and optimizer == "lbfgs":
        what = "drift" if stream.boundary == "drift" else "a fall of the score"
        text = f"{what} shows in the errors of a model that learns while data arrive; expected train.optimizer adam or "
        text += "sgd, got lbfgs, which learns only at boundaries"
        yield Problem("stream.boundary", text, also=("train.optimizer",))
    if stream.drift_on == "inputs" and stream.boundary == "score":
        yield Problem("stream.drift_on", "inputs have no score; expected score with stream.boundary score, got inputs")
    if stream.drift_on == "inputs" and stream.drift_detector == "ddm":
        text = "ddm finds a rise only, of errors; expected adwin, page_hinkley, kswin, hddm_a or hddm_w with drift_on "
        yield Problem("stream.drift_detector", f"{text}inputs, got ddm", also=("stream.drift_on",))
    if stream.drift_detector != "adwin" and stream.drift_delta != Stream().drift_delta and stream.boundary == "drift":
        text = f"ADWIN's significance, which {stream.drift_detector} has not; its own settings are stream.drift_args: "
        yield Problem("stream.drift_delta", text + ", ".join(DETECTORS[stream.drift_detector]))
    for name, value in stream.drift_args.items():
        wrong = _wrong_setting(stream.drift_detector, name, value)
        if wrong is not None:
            yield Problem("stream.drift_args", wrong, also=("stream.drift_detector",))
    yield from _of_kswin(stream)


def _of_recurring(config: Config) -> Iterator[Problem]:
    stream, mode = config.stream, config.posterior.mode
    if stream.recurring != "off" and not stream.ends_tasks:
        text = "tasks that come back are recognised where the daemon ends them; expected stream.boundary rows, time, "
        text += f"budget, score or drift, got {stream.boundary}"
        yield Problem("stream.recurring", text, also=("stream.boundary",))
    elif stream.recurring == "revisit" and mode != "factors":
        text = f"a revisit takes the task's own factor out: expected posterior.mode factors, got {mode}; or recurring tell"
        yield Problem("stream.recurring", text, also=("posterior.mode",))


def _wrong_setting(detector: str, name: str, value: Any) -> str | None:
    """What is wrong with one of a detector's settings."""
    known = DETECTORS[detector]
    if name not in known:
        own = "; its delta is stream.drift_delta" if detector == "adwin" else ""
        return f"{detector} has no {name!r} here; expected {', '.join(known)}{own}"
    whole = isinstance(known[name], int)
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not value > 0:
        return f"{name}: expected a {'whole ' if whole else ''}number greater than 0, got {value!r}"
    if name in ("alpha", "drift_confidence", "lambda_val") and value >= 1:
        return f"{name}: expected a number between 0 and 1, got {value!r}"
    return None


def _of_kswin(stream: Stream) -> Iterator[Problem]:
    sizes = {**DETECTORS["kswin"], **stream.drift_args}
    given = [sizes["window_size"], sizes["stat_size"]]
    if stream.drift_detector == "kswin" and all(isinstance(size, int) for size in given) and given[0] < 2 * given[1]:
        text = f"kswin compares stat_size rows with as many older ones; expected window_size of at least {2 * given[1]}"
        yield Problem("stream.drift_args", f"{text}, got {given[0]}", also=("stream.drift_detector",))


def _of_learner(config: Config) -> Iterator[Problem]:
    """Keys that have no effect on the configured learner."""
    if config.model.learner == "network":
        if config.posterior.half_life:
            text = "a half-life is an exact learner's: expected model.learner exact, or posterior.half_life 0"
            yield Problem("posterior.half_life", text, also=("model.learner",))
        if config.model.scenario == "domain" and config.model.family != "categorical":
            text = f"tasks that share their labels have labels: expected categorical, got {config.model.likelihood!r}"
            yield Problem("model.scenario", text, also=("model.likelihood",))
        return
    for key, _, default in all_keys():
        if key in OF_NETWORKS and (value := _value(config, key)) != default:
            text = f"has no effect with model.learner exact, which takes no steps; leave it out, got {value!r}"
            yield Problem(key, text, also=("model.learner",))
    if config.posterior.mode not in ("single", "factors"):
        text = f"expected single or factors with model.learner exact, got {config.posterior.mode!r}"
        yield Problem("posterior.mode", text, also=("model.learner",))


def _value(config: Config, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _numbers(config: Config) -> Iterator[tuple[str, float]]:
    for key, _, _ in all_keys():
        value = _value(config, key)
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


def _no_port(endpoint: str) -> str | None:
    """What is wrong with an endpoint that is to be connected to."""
    if endpoint.startswith("tcp://") and endpoint.rpartition(":")[2] in ("*", "0"):
        return f"expected the port that the daemon answers predictions at, as tcp://HOST:5758, got {endpoint!r}"
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
