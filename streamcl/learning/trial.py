"""Whether a model can be learned: everything that a task will ask of it, on a few rows of the first batch.

Evaluation, a training step, single rows and the Fisher are tried, on a network that is thrown away afterwards; what would
fail at the boundary fails here, before the batch is acknowledged. Guarantees: whatever a model raises becomes a
ModelRefused, with the exception's type and text and a remedy; random generators are left as they were.

A model is also refused if something about it could not be learned: state that training changes and the posterior does not
hold, rows that are not one sample each, outputs that are not reproducible.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from streamcl import models
from streamcl.config import Config
from streamcl.core.fisher import Fisher
from streamcl.core.gradients import parameter_gradients, random_like, same_outputs
from streamcl.errors import ModelRefused, StreamclError, in_words
from streamcl.learning import growing
from streamcl.learning.curvature import LARGEST_FULL
from streamcl.learning.network import DTYPES, Network
from streamcl.schema import LabelMap, Signature

FISHER_ROWS = 4
REPEATED = 1e-6  # by how much outputs that are computed twice in the same way may differ, relatively
NAMED = 3  # of many names, in one sentence

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Trial:
    """A model to be tried on rows x, y of a first batch.

    new_labels: those that the batch adds to the empty label map. look_up: called between two parts of the trial.
    factory: of the model, instead of the configured one.
    """

    config: Config
    signature: Signature
    device: torch.device
    x: Array
    y: Array
    new_labels: tuple[int, ...] = ()
    look_up: Callable[[], None] = field(default=lambda: None)
    factory: Callable[..., nn.Module] | None = None

    def run(self) -> None:
        """Raise ModelRefused (or ConfigError) unless the model can be learned."""
        with _in_words("the model cannot be tried"), models.seeded(self.config.train.seed):
            labels = LabelMap(self.config.model.outputs)
            labels.add(self.new_labels)
            network = self._network(labels, first_width(self.config, self.factory, self.signature, self.x, labels.known))
            self._check_size(network.parameters.size)
            self._check_task(network)
            rows = self._rows(network)
            _Rows(self.config, network, *rows, self.look_up).run()
            if network.grows:
                self.look_up()
                self._check_growth(network, labels, rows[0])

    def _check_task(self, network: Network) -> None:
        """Whether the model is told its task where it has to be, and something comes of telling it."""
        model = self.config.model
        if model.scenario != "task" and models.needs_task(network.module):
            raise ModelRefused(
                "the model's forward takes `task`, and nobody tells it: set model.scenario to task, or give it a default"
            )
        if model.scenario == "task" and model.likelihood != "categorical" and not network.told:
            raise ModelRefused(
                f"model.scenario task tells a model with {model.likelihood} targets nothing: expected a forward(x, task)"
            )

    def _network(self, labels: LabelMap, classes: int) -> Network:
        return Network(self.config, self.signature, labels, self.device, factory=self.factory, classes=classes)

    def _check_growth(self, network: Network, labels: LabelMap, x: Tensor) -> None:
        """Whether the model can have an output more, which changes none of the others."""
        outputs = network.likelihood.outputs(())
        wider = self._network(labels, outputs + 1)
        try:
            wider.widen(network)
        except ModelRefused as error:
            raise ModelRefused(f"the model cannot have another output: {error}; {models.GROWTH_REMEDY}") from error
        with wider.evaluating(), network.evaluating():
            more, before = wider.module(x.clone()), network.module(x.clone())
        if more.shape == (len(x), outputs + 1) and _normalised(before) and _normalised(more):
            raise ModelRefused(
                "the model ends with a softmax, so that its outputs are no logits and another one changes all of them; "
                "streamcl applies the softmax itself: let the model end before it"
            )
        if more.shape != (len(x), outputs + 1) or not same_outputs(more[:, :outputs], before, REPEATED):
            raise ModelRefused(
                f"the model cannot have another output: with {outputs + 1} of them it returns {list(more.shape)} for "
                f"{len(x)} rows, and the first {outputs} are not what they were before; {models.GROWTH_REMEDY}"
            )

    def _check_size(self, size: int) -> None:
        if self.config.posterior.curvature == "full" and size > LARGEST_FULL:
            raise ModelRefused(
                f"posterior.curvature full holds a number for any two of the model's {size} parameters; expected at most "
                f"{LARGEST_FULL} of them: set posterior.curvature to auto, which has full blocks for small layers"
            )

    def _rows(self, network: Network) -> tuple[Tensor, Tensor]:
        """At least two rows: a batch of one is a training step too, but shows nothing about neighbouring rows."""
        places = np.arange(max(2, len(self.x))) % len(self.x)
        return network.conversion.x(self.x[places]), network.conversion.y(self.y[places])


class _Rows:
    """The parts of a trial, on rows as the model takes them."""

    def __init__(self, config: Config, network: Network, x: Tensor, y: Tensor, look_up: Callable[[], None]) -> None:
        self.config = config
        self.network = network
        self.x, self.y = x, y
        self.look_up = look_up
        self.fixed = {name: tensor.clone() for name, tensor in network.fixed().items()}
        self.theta = network.parameters.theta.detach().clone()
        self.overflows = False  # the rows' own numbers overflow; such a batch is set aside later

    def run(self) -> None:
        parts = [self._evaluation, self._training, self._memory, self._alone, self._single_steps]
        for part in (*parts, self._fisher, self._reached):
            self.look_up()
            part()

    # -- evaluation ----------------------------------------------------------------------------------------------

    def _evaluation(self) -> None:
        self.before = self._evaluated(self.x, "in evaluation mode")
        self._check_unwritten("an evaluation", training=False)
        self._check_theta()
        if not same_outputs(self._evaluated(self.x, "in evaluation mode"), self.before, REPEATED):
            raise ModelRefused(
                "the model's outputs for the same rows differ from one evaluation to the next; expected the same ones: let "
                "it draw random numbers only in training mode, as in F.dropout(x, p, self.training), and keep no state"
            )

    def _evaluated(self, x: Tensor, when: str) -> Tensor:
        given = x.clone()
        with self._trying(when, len(x)), self.network.evaluating():
            output = self._checked(self.network.module(given), len(x), when)
            nll = self.network.likelihood.nll(output, self.y[: len(x)])
            self._check_input(given, x)
            self.network.predict(given)
        self.overflows = bool(torch.isfinite(output).all() and not torch.isfinite(nll).all())
        if not torch.isfinite(nll).all() and not self.overflows:
            raise ModelRefused(
                f"the loss of the first rows is {float(nll[~torch.isfinite(nll)][0])} before anything was learned; "
                "expected a finite one: scale the inputs, and look for a division by zero or a row that is entirely masked"
            )
        return output

    def _check_input(self, given: Tensor, x: Tensor) -> None:
        if not torch.equal(given, x):
            raise ModelRefused("the model writes into its input, which other steps learn from too; use x = x.clone() first")

    def _checked(self, output: Any, rows: int, when: str) -> Tensor:
        """The output, if it is one tensor of the likelihood's shape."""
        expected = self._expected()
        if not isinstance(output, Tensor):
            raise ModelRefused(
                f"the model returns {_kind(output)} {when}; expected one tensor {expected}: return only the outputs, in "
                "training and in evaluation mode, from a wrapper module if need be"
            )
        if output.layout != torch.strided or not output.is_floating_point():
            raise ModelRefused(
                f"the model returns {output.dtype} in layout {output.layout} {when}; expected real numbers {expected}: "
                "logits or means, not classes (argmax), and not complex numbers"
            )
        if output.ndim == 0 or len(output) != rows:
            raise ModelRefused(
                f"the model returns {list(output.shape)} for {_rows(rows)} {when}; expected {expected}, one output a row: "
                "look for squeeze() without a dimension, for a mean over the rows, and for layers with batch_first=False"
            )
        return output

    def _expected(self) -> str:
        if self.config.model.family == "categorical":
            return f"[n, {self.network.likelihood.outputs(())}]"
        return f"[n, {', '.join(map(str, self.network.signature.y_shape))}]" if self.network.signature.y_shape else "[n]"

    # -- training ------------------------------------------------------------------------------------------------

    def _training(self) -> None:
        """A forward and a backward pass, as in a training step; buffers are reported first, whatever else is wrong."""
        given = self.x.clone()
        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                output = self._trained(given, "in training mode")
        finally:
            self._check_unwritten("a training step", training=True)
        if any("None of the inputs have requires_grad" in str(warning.message) for warning in said):
            raise ModelRefused(
                "torch.utils.checkpoint with use_reentrant=True gets inputs without a gradient, so the parameters "
                "inside get none either and would never be learned; use use_reentrant=False"
            )
        self._check_input(given, self.x)
        self._check_theta()
        if not output.requires_grad:
            raise ModelRefused(
                "the model's outputs depend on no trainable parameter, so nothing could be learned; look for detach(), "
                "no_grad(), argmax or requires_grad_(False) on the way from the parameters to the outputs"
            )
        if not self.overflows and not torch.isfinite(self.network.parameters.grad).all():
            raise ModelRefused(
                "a gradient on the first rows is not finite; look for sqrt, log or a norm at zero, and for masks of -inf "
                "over a whole row"
            )

    def _check_theta(self) -> None:
        if not torch.equal(self.theta, self.network.parameters.theta):
            raise ModelRefused(
                "a forward pass changes the parameters by itself (max_norm of an embedding does); expected only training "
                "to: normalise in forward instead, as in F.normalize(self.embedding(x), dim=-1)"
            )

    def _trained(self, x: Tensor, when: str) -> Tensor:
        self.network.parameters.grad.zero_()
        with self._trying(when, len(x)):
            output = self._checked(self.network.training_output(x), len(x), when)
            nll = self.network.likelihood.nll(output, self.y[: len(x)])
            if output.requires_grad:
                torch.autograd.backward(nll.mean())
        return output

    def _check_unwritten(self, what: str, training: bool) -> None:
        """Refuse buffers and frozen parameters that are written to: a later task would overwrite what they learn."""
        changed = self.network.changed(self.fixed)
        if not changed:
            return
        self.network.put_back(self.fixed)
        owners = sorted({name.rpartition(".")[0] for name in changed})
        remedy = self._remedy(owners) if training else None
        raise ModelRefused(
            f"{what} changes {_listed(changed)}, which the posterior does not hold: every task would overwrite what it "
            f"says of the tasks before. {remedy or REPLACE}"
        )

    def _remedy(self, owners: list[str]) -> str | None:
        """Suggest evaluation mode for the modules that own what is written, if that is found to help."""
        parts = [self.network.module.get_submodule(owner) for owner in owners]
        flags = [(part, part.training) for owner in parts for part in owner.modules()]
        for part, _ in flags:
            part.training = False
        try:
            with torch.no_grad():
                self.network.module(self.x)
            helps = not self.network.changed(self.fixed)
        except Exception:
            helps = False
        self.network.put_back(self.fixed)
        for part, flag in flags:
            part.training = flag
        return f"{_instead(parts)}call .eval() in the factory on {_modules(owners)}: its flags are kept" if helps else None

    def _memory(self) -> None:
        """A training step must leave nothing behind but gradients."""
        if not same_outputs(self._evaluated(self.x, "in evaluation mode"), self.before, REPEATED):
            raise ModelRefused(
                "the model evaluates the same rows to something else after a training step that changed no parameter: it "
                f"keeps state of its own. {REPLACE}"
            )

    # -- other numbers of rows -----------------------------------------------------------------------------------

    def _alone(self) -> None:
        """Rows by themselves: a sample's likelihood must not depend on its neighbouring rows."""
        alone = [self._evaluated_row(n, "in evaluation mode") for n in range(len(self.x))]
        if not same_outputs(torch.cat(alone), self.before):
            raise ModelRefused(
                "what the model gives for a row depends on the rows beside it, so that a row by itself has no likelihood; "
                f"expected each row's output to be its own{self._mixers()}; use constants of the factory rather than means "
                "or scales over the batch, and pad to a fixed length"
            )

    def _evaluated_row(self, n: int, when: str) -> Tensor:
        with self._trying(when, 1), self.network.evaluating():
            return self._checked(self.network.module(self.x[n : n + 1].clone()), 1, when)

    def _mixers(self) -> str:
        """Layers that take statistics over the batch, with the remedy."""
        named = self.network.module.named_modules()
        found = [name for name, part in named if isinstance(part, _BatchNorm) and _by_the_batch(part)]
        if not found:
            return ""
        return (
            f"; {_modules(found)} normalises by the batch's own statistics: use GroupNorm or LayerNorm, or running "
            "statistics (track_running_stats=True) that are frozen by .eval() in the factory"
        )

    def _single_steps(self) -> None:
        """The last batch of an epoch may be a single row."""
        output = self._trained(self.x[:1].clone(), "in training mode")
        del output
        self.network.put_back(self.fixed)
        self.network.parameters.grad.zero_()

    # -- the Fisher ----------------------------------------------------------------------------------------------

    def _fisher(self) -> None:
        """Every way in which the Fisher may be computed, and the loop, on a few rows and with few cotangents."""
        network, rows = self.network, slice(0, FISHER_ROWS)
        x, y = self.x[rows], self.y[rows]
        kind = self.config.posterior.fisher
        with self._trying("for the Fisher", len(x)):
            generator = torch.Generator(device=network.device).manual_seed(0)
            values = self.before[rows]
            network.likelihood.cotangents(values, kind, y, generator)
            few = _Few(network.likelihood)
            fisher = Fisher(network.module, network.parameters, few, kind, generator)
            fisher.add(x, y)
            self.look_up()
            fisher.verified()
            self._check_loop(x)
            finite = torch.isfinite(fisher.total).all()
        if not finite and not self.overflows:
            raise ModelRefused(
                "the Fisher of the first rows is not finite; look for sqrt, log or a norm at zero on the way to the outputs"
            )

    def _check_loop(self, x: Tensor) -> None:
        """The plain loop, to which everything else may fall back, must work."""
        if self._gradients(x[:1]) is None:
            raise ModelRefused(
                "the model's outputs have no gradient in evaluation mode, so there is no Fisher; compute without "
                "gradients (no_grad, detach, quantised layers) only what is not trained"
            )

    def _gradients(self, x: Tensor) -> Sequence[Tensor | None] | None:
        """The parameters', for one random cotangent of all rows; None where the outputs have none at all."""
        with self.network.evaluating(), torch.enable_grad():
            output = self.network.module(x)
            if not output.requires_grad:
                return None
            return parameter_gradients(
                output, self.network.parameters.parameters, random_like(output.detach(), 1, seed=0)[0]
            )

    def _reached(self) -> None:
        """Refuse parameters that the outputs depend on and have no gradient of; those of a branch that no row has taken are
        no part of this."""
        parameters = self.network.parameters
        with self._trying("for the Fisher", len(self.x)):
            gradients = self._gradients(self.x.clone()) or [None] * len(parameters.names)
            pairs = zip(parameters.names, parameters.parameters, gradients, strict=True)
            without = [(name, parameter) for name, parameter, gradient in pairs if gradient is None]
            wrong = [name for name, parameter in without if self._matters(parameter)]
        if wrong:
            raise ModelRefused(
                f"the outputs depend on {_listed(wrong)} and have no gradient there (no_grad, detach, a comparison): "
                "the prior alone would move it, to zero. If it is not to be learned, say so in the factory with "
                "requires_grad_(False); else compute with gradients"
            )

    @torch.no_grad()
    def _matters(self, parameter: Tensor) -> bool:
        """Whether the outputs are others with another value of a parameter."""
        before = parameter.detach().clone()
        try:
            parameter.add_(1 + parameter.abs().mean())
            with self.network.evaluating():
                return not same_outputs(self.network.module(self.x.clone()), self.before, REPEATED)
        finally:
            parameter.copy_(before)

    # -- words ---------------------------------------------------------------------------------------------------

    @contextmanager
    def _trying(self, when: str, rows: int) -> Iterator[None]:
        """The message about what a model raised, and when."""
        shape = list(self.network.signature.x_shape)
        with _in_words(f"the model fails {when} on {_rows(rows)} of shape {shape} of the first batch", self._hint):
            yield

    def _hint(self) -> str:
        """What may be the cause, and what is expected."""
        expected = f"; expected {self._expected()} for any rows and any number of them, a single one too"
        return expected + self._mixers() + self._own_dtypes()

    def _own_dtypes(self) -> str:
        """Tensors that were left in their own dtype, with the remedy."""
        floating = {name: t.dtype for name, t in self.network.fixed().items() if t.is_floating_point()}
        other = [f"{name} ({dtype})" for name, dtype in floating.items() if dtype != self.network.dtype]
        if not other:
            return ""
        return (
            f"; {_listed(other)} was left as it is, since train.dtype {self.config.train.dtype} would change it: cast it "
            "in the factory or in forward, or set train.dtype"
        )


def _normalised(output: Tensor) -> bool:
    """Whether rows of several outputs are probabilities that sum to 1, or their logarithms."""
    if output.ndim != 2 or output.shape[1] < 2:
        return False
    one = torch.ones(len(output), dtype=output.dtype)
    plain = bool((output >= 0).all()) and same_outputs(output.sum(1).cpu(), one, REPEATED)
    return plain or (bool((output <= 0).all()) and same_outputs(output.exp().sum(1).cpu(), one, REPEATED))


REPLACE = (
    "Use a layer without such state (GroupNorm or LayerNorm for a batch or instance norm that tracks statistics), make it "
    "a parameter, or let the factory compute it once"
)


def _instead(parts: list[nn.Module]) -> str:
    if any(isinstance(part, _BatchNorm) for part in parts):
        return "Use GroupNorm or LayerNorm, or "
    return "Use a layer without such state, or "


def first_width(
    config: Config, factory: Callable[..., nn.Module] | None, signature: Signature, x: Array, known: int
) -> int:
    """The outputs that a network begins with on rows like x [n, ...], for so many labels.

    A factory that is not told how many there are to be makes its own number, which holds where it is enough.
    """
    model, wanted = config.model, growing.width(known, config.model.scenario)
    if model.outputs is not None or config.model.family != "categorical":
        return model.outputs or wanted
    maker = factory or model.factory
    if models.takes_outputs(maker, model.args):
        return wanted
    told = (lambda: 0) if model.scenario == "task" else None
    module = models.build(maker, model.args, signature.x_shape, wanted, config.train.seed, signature.x_integer, task=told)
    own = _own_width(module.eval(), torch.from_numpy(np.ascontiguousarray(x[:1])), config)
    return wanted if own is None or own < known else own


def _own_width(module: nn.Module, row: Tensor, config: Config) -> int | None:
    """How many outputs a module has for a row; None where it cannot be had, which the trial finds a reason for."""
    row = row.to(DTYPES[config.train.dtype]) if row.is_floating_point() or row.dtype == torch.uint8 else row.long()
    try:
        with torch.no_grad(), models.seeded(config.train.seed):
            output = module.to(dtype=DTYPES[config.train.dtype])(row)
    except (Exception, SystemExit):
        return None
    return output.shape[1] if isinstance(output, Tensor) and output.ndim == 2 else None


class _Few:
    """A likelihood whose exact Fisher takes two cotangents rather than one for each of many outputs."""

    def __init__(self, whole: Any) -> None:
        self._whole = whole

    def cotangents(self, output: Tensor, kind: Any, target: Tensor | None, generator: Any) -> Tensor:
        cotangents: Tensor = self._whole.cotangents(output, kind, target, generator)
        if len(cotangents) <= 2:
            return cotangents
        weights = torch.randn((2, len(cotangents)), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        return torch.einsum("jk,k...->j...", weights.to(cotangents), cotangents)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._whole, name)


def _by_the_batch(part: _BatchNorm) -> bool:
    return part.training or part.running_mean is None


@contextmanager
def _in_words(what: str, hint: Callable[[], str] = lambda: "") -> Iterator[None]:
    """Turns whatever is raised into ModelRefused; sys.exit() in a model must not end our process either."""
    try:
        yield
    except StreamclError:
        raise
    except (Exception, SystemExit, KeyboardInterrupt) as error:  # signals never reach this process as exceptions
        raise ModelRefused(f"{what}: {in_words(error)}"[:1500] + hint(), private=True) from error


def _kind(output: object) -> str:
    """What a model has returned, described by its contents."""
    if isinstance(output, Mapping):
        return f"a mapping ({type(output).__name__} with {_listed([str(key) for key in output])})"
    if isinstance(output, tuple | list):
        return f"a {type(output).__name__} of {len(output)} ({_listed([type(each).__name__ for each in output])})"
    return f"a {type(output).__name__}"


def _listed(names: list[str]) -> str:
    names = [name or "the model itself" for name in names]
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _modules(names: list[str]) -> str:
    return _listed([f"module {name!r}" if name else "" for name in names])


def _rows(number: int) -> str:
    return "a single row" if number == 1 else f"{number} rows"
