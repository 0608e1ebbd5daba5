"""The model as the daemon sees it: a module from the operator's factory, its flat parameters and its likelihood.

Guarantees: the same configuration and signature build the same network to the bit, and building runs nothing of it but the
factory (and lazy layers once); evaluation leaves the training flags as the factory set them; frozen parameters and buffers
keep their values, whatever `train.dtype` is. Whether a model can be learned is determined on rows (`trial`). Knows nothing
of tasks, the log or sockets.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from streamcl import models
from streamcl.config import Config
from streamcl.core.growth import Growth
from streamcl.core.layout import Layout
from streamcl.core.likelihood import Categorical, Gaussian, Likelihood, likelihood
from streamcl.core.modes import TrainingFlags
from streamcl.core.parameters import FlatParameters
from streamcl.core.reduce import ALONE, Reduction
from streamcl.core.watched import called_at
from streamcl.errors import ConfigError
from streamcl.learning import growing, tensors
from streamcl.learning.coordinates import linear_layers
from streamcl.learning.data import Conversion
from streamcl.learning.growing import Widening
from streamcl.learning.targets import Targets
from streamcl.schema import LabelMap, Signature

DTYPES = {"float32": torch.float32, "float64": torch.float64}


class _Evaluating:
    """Of `Network.evaluating`. A class, since every prediction enters it, and a generator takes three times as long."""

    __slots__ = "_blocks", "_flags", "_gradients", "_parameters"

    def __init__(
        self, parameters: FlatParameters, flags: TrainingFlags, blocks: AbstractContextManager[None] | None
    ) -> None:
        self._parameters, self._flags, self._blocks, self._gradients = parameters, flags, blocks, torch.no_grad()

    def __enter__(self) -> None:
        self._parameters.theta  # noqa: B018  # up to date: the module itself does not ask
        self._flags.eval()
        self._gradients.__enter__()
        if self._blocks is not None:
            self._blocks.__enter__()

    def __exit__(self, *error: Any) -> None:
        if self._blocks is not None:
            self._blocks.__exit__(*error)
        self._gradients.__exit__(*error)
        self._flags.train()


def choose_device(name: str) -> torch.device:
    """``auto`` is CUDA if there is one, else the CPU; any other name is as PyTorch reads it.

    Raises ConfigError where there is no such device, or one without float64 (``mps``), in which all sums are taken.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, dtype=torch.float64, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ConfigError(
            f"train.device: expected auto, cpu or an available device with float64, got {name!r}: {error}"
        ) from None
    return device


class Network:
    """A built model; raises ModelRefused if the factory or its module cannot be used.

    config: the whole configuration. signature: shapes of one row. labels: the label map (categorical). steady: a training
    step computes what an evaluation does (no dropout), so that its outputs can be scored; False until `settle`. trained:
    False for predictions alone, which need no gradients. factory: instead of the configured one. reduction: who shares the
    rows. classes: outputs of a categorical one whose labels may come at any time, by default as many as the labels so far
    ask for. seed: of what the factory draws, the configured one by default.

    What holds it together: one module, and all that must be read and written with it so that its predictions stay the same:
    its flat parameters, its fixed tensors, its likelihood, and which of its outputs are shown.
    """

    def __init__(
        self,
        config: Config,
        signature: Signature,
        labels: LabelMap,
        device: torch.device,
        trained: bool = True,
        factory: Callable[..., nn.Module] | None = None,
        reduction: Reduction = ALONE,
        classes: int | None = None,
        seed: int | None = None,
    ) -> None:
        self._config = config
        bounded = config.model.outputs
        self.grows = bounded is None and self._labelled(config)
        self._classes = (classes or growing.width(labels.known, config.model.scenario)) if bounded is None else bounded
        self.task = 0
        self._visible: tuple[int, ...] | None = None
        self._seed = config.train.seed if seed is None else seed
        self._factory = factory or config.model.factory
        self.reduction = reduction
        self.signature = signature
        self.labels = labels
        self.device = device
        self.dtype = DTYPES[config.train.dtype]
        self.targets = _learned_targets(config, signature)
        self.likelihood: Likelihood = self._likelihood(config)
        self.autocast = config.train.autocast != "off"
        self.module = self._build(config)
        if not trained:
            self.module.eval()
        self.told = config.model.scenario == "task" and models.takes_task(self.module)
        self.flags = TrainingFlags(self.module)
        self.parameters = FlatParameters(self.module, gradients=trained)
        self.widening = Widening((self.parameters.layout,))
        self.blocks: growing.Blocks = {}
        self._blocks: list[tuple[nn.Linear, Sequence[int]]] = []
        labelled, real = self._labelled(config), config.model.family == "gaussian"
        kind = (
            torch.float64 if real else self.dtype
        )  # as precise as they are sent, until it is known what is lost otherwise
        self.conversion = Conversion(self.dtype, device, labels.to_outputs if labelled else None, kind)
        self.steady = False
        self._trained = trained
        self._loaded: Mapping[str, npt.NDArray[Any]] = {}  # for predictions alone: what `load` was given last
        self._output_shape: tuple[int, ...] | None = None
        for name, tensor in self.fixed().items():
            tensors.check_storable(name, tensor)

    def _likelihood(self, config: Config) -> Likelihood:
        if self.targets is not None:
            return self.targets.likelihood(self.device, self.dtype)
        settings = config.model
        noise = 1.0 if settings.noise_variance == "auto" else settings.noise_variance
        found = likelihood(settings.family, self._classes, noise)
        return replace(found, visible=self._visible) if isinstance(found, Categorical) else found

    def see(self, task: int, outputs: Iterable[int] | None) -> None:
        """Be asked about this task alone, of its number, whose labels have these outputs; None: about any."""
        seen = _seen(task, outputs)
        if seen != (self.task, self._visible):
            self.task, self._visible = seen
            self.likelihood = self._likelihood(self._config)

    def seeing(self, task: int, outputs: Iterable[int] | None) -> AbstractContextManager[None]:
        """As `see`, for as long as it takes; without a detour where it is asked about that already."""
        seen = _seen(task, outputs)
        return nullcontext() if seen == (self.task, self._visible) else self._seeing(*seen)

    @contextmanager
    def _seeing(self, task: int, outputs: Iterable[int] | None) -> Iterator[None]:
        before = self.task, self._visible
        self.see(task, outputs)
        try:
            yield
        finally:
            self.see(*before)

    def widen(self, narrower: Network) -> None:
        """Be as a network of fewer outputs was, but for what is new. Raises ModelRefused where it was another model's."""
        layouts = (*narrower.widening.layouts, self.parameters.layout)
        self.widening = Widening(layouts)
        growth = Growth(layouts[-2], layouts[-1])
        self.load(self.widened(narrower.state(), growth))
        self.steady = narrower.steady
        self.compute_in(self.widening.blocks())

    def widened(self, state: Mapping[str, npt.NDArray[Any]], growth: Growth) -> dict[str, npt.NDArray[Any]]:
        """What `state` gave of a network with fewer outputs, with this one's values for all that is new."""
        mine = self.state()
        theta = growth.vector(*(torch.tensor(each["theta"]) for each in (state, mine)))
        rest = {name: array for name, array in state.items() if name != "theta"}
        return {"theta": theta.numpy(), **growth.fixed(rest, mine)}

    def compute_in(self, blocks: growing.Blocks) -> None:
        """Compute outputs in these blocks (`growing.in_blocks`)."""
        self.blocks = blocks
        layers = {key[0]: each for key, each in linear_layers(self.module, self.parameters).items()}
        self._blocks = [(layer, rows) for name, rows in blocks.items() for layer in layers.get(name, ())]

    def retarget(self) -> None:
        """Take over what has been learned of the targets."""
        self.likelihood = self._likelihood(self._config)

    @staticmethod
    def _labelled(config: Config) -> bool:
        return config.model.family == "categorical"

    def _build(self, config: Config) -> nn.Module:
        module = models.build(
            self._factory,
            config.model.args,
            self.signature.x_shape,
            self.likelihood.outputs(self.signature.y_shape),
            self._seed,
            integers=self.signature.x_integer,
            grows=self.grows,
            task=(lambda: self.task) if config.model.scenario == "task" else None,
        )
        return _placed(module, self.device, self.dtype)

    def settle(self, x: Tensor) -> None:
        """Determine on some rows whether the model is steady; one that raises is not. Same rows, same answer."""
        try:
            self.steady = not self.autocast and self._is_steady(x)
        except (Exception, SystemExit, KeyboardInterrupt):  # it will be raised again when these rows are learned
            self.steady = False

    def settle_on_zeros(self) -> None:
        """As `settle`, for an older state directory, made when a model was tried on zeros."""
        zeros = np.zeros((2, *self.signature.x_shape), "<i8" if self.signature.x_integer else "<f4")
        self.settle(self.conversion.x(zeros))

    def no_outputs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """NLL [0] and output [0, ...] of none of some rows x [n, ...]."""
        if self._output_shape is None:
            with self.evaluating():
                self._output_shape = self.module(x[:1]).shape[1:]
        nothing = torch.empty((0, *self._output_shape), dtype=self.dtype, device=x.device)
        return nothing.new_empty(0), nothing

    def _is_steady(self, x: Tensor) -> bool:
        """Whether a training step draws no random numbers, changes no buffers and computes what evaluation computes."""
        before = {name: tensor.clone() for name, tensor in self.fixed().items()}
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.no_grad():
            states = _random_states(self.device)
            training = self.module(x)
            drew = any(not torch.equal(a, b) for a, b in zip(states, _random_states(self.device), strict=True))
        changed = self.changed(before)
        self.put_back(before)
        with self.evaluating():
            return not drew and not changed and torch.equal(training, self.module(x))

    def changed(self, before: Mapping[str, Tensor]) -> list[str]:
        """The names of fixed tensors that have changed, or were not there before."""
        now = self.fixed()
        missing = sorted(before.keys() ^ now.keys())
        return missing + [name for name in before if name in now and not _same(now[name], before[name])]

    def put_back(self, before: Mapping[str, Tensor]) -> None:
        """Restore the values of fixed tensors that have kept their shapes."""
        with torch.no_grad():
            for name, tensor in self.fixed().items():
                old = before.get(name)
                if old is not None and old.shape == tensor.shape and not _same(tensor, old):
                    tensor.copy_(old)

    def training_output(self, x: Tensor) -> Tensor:
        """The module's output for a training step; with `train.autocast`, in bfloat16 wherever PyTorch considers that safe.

        Scores before training, the Fisher and predictions are always computed in full precision.
        """
        with self.flags.differentiable():
            if not self.autocast:
                output: Tensor = self.module(x)
                return output
            with torch.autocast(self.device.type, torch.bfloat16):
                output = self.module(x)
        return output.to(self.dtype)

    def evaluating(self) -> AbstractContextManager[None]:
        """Evaluation mode without gradients; the training flags come back as the factory made them."""
        return _Evaluating(self.parameters, self.flags, growing.in_blocks(self._blocks) if self._blocks else None)

    def predict(self, x: Tensor) -> dict[str, Tensor]:
        """The predictive distribution of rows x, as the likelihood gives it; in the columns of `columns`."""
        with self.evaluating():
            output = self.shaped(self.module(x))
        order = self._order()
        if order is None:
            return self.likelihood.predict(output)
        return self._in_columns(Categorical(len(order)).predict(output[:, order])["probs"])

    @property
    def outputs(self) -> int:
        """Numbers that the module gives for a row."""
        return self.likelihood.outputs(self.signature.y_shape)

    def of_known_labels(self, output: Tensor) -> Tensor:
        """The outputs of labels that have come alone, where any may; those that are not visible are no answer."""
        output = self.likelihood.seen(output) if isinstance(self.likelihood, Categorical) else output
        return output[:, : self.labels.known] if self.grows and self.labels.known else output

    def _order(self) -> list[int] | None:
        """The outputs that a prediction shows, in the order of their labels; None: all of them, as they are."""
        if self._visible is None and not (self.grows and self.labels.known):
            return None
        return [output for output in self.labels.order() if self._visible is None or output in self._visible]

    def columns(self) -> npt.NDArray[np.int64]:
        """The label of every column of a prediction, -1 where none has come yet."""
        order = self._order()
        if order is None:
            return self.labels.labels()
        all_alike = self._visible is None and self._config.model.scenario == "class"
        return self.labels.columns() if all_alike else self.labels.labels()[order]

    def unseen(self) -> list[int] | None:
        """Of `columns`, those whose label has not come, where they are not told by -1, which is a label; else None."""
        own = self.labels.outputs.get(-1)
        if own is None:
            return None
        columns, spare = self.columns().tolist(), self._order() is None
        return [place for place, label in enumerate(columns) if spare and label == -1 and place != own]

    def _in_columns(self, probs: Tensor) -> dict[str, Tensor]:
        """Probabilities of the labels that have come, in their order, where `columns` has them; 0 for others."""
        columns = self.columns()
        if len(columns) == probs.shape[1]:
            return {"probs": probs}
        spread = probs.new_zeros(len(probs), len(columns))
        spread[:, np.flatnonzero(columns >= 0)] = probs
        return {"probs": spread}

    def of_known(self, predicted: dict[str, Tensor]) -> dict[str, Tensor]:
        """What all outputs have as what `columns` have: the spare ones' share is theirs."""
        order = self._order()
        if order is None:
            return predicted
        probs = predicted["probs"][:, order]
        return self._in_columns(probs / probs.sum(1, keepdim=True))

    def shaped(self, output: Tensor) -> Tensor:
        """Outputs in the targets' shape: for targets [n], the module may return [n, 1]."""
        if self.conversion.to_outputs is not None:
            return output
        return output.reshape(len(output), *self.signature.y_shape)

    def predicted(self, output: Tensor) -> Tensor:
        """Outputs in the targets' shape and, if those are real numbers, in their units."""
        shaped = self.shaped(output)
        match self.likelihood:
            case Gaussian() as gaussian:
                return gaussian.mean(shaped)
            case Categorical() as categorical:
                return categorical.seen(shaped)
        return shaped

    def fixed(self) -> dict[str, Tensor]:
        """Buffers and frozen parameters by name: what `theta` does not hold."""
        frozen = {name: p.detach() for name, p in self.module.named_parameters() if not p.requires_grad}
        return {**frozen, **dict(self.module.named_buffers())}

    def layout(self) -> dict[str, Any]:
        """For an export: what the factory was called with, and where each entry of `module.state_dict()` is kept.

        state: key, name (a trainable parameter's, or one of `state`), dtype and shape; tied entries share a name. left_out:
        keys that no such file can hold (sparse tensors, say): constants, which the factory makes again.
        """
        model = self._config.model
        outputs = self.likelihood.outputs(self.signature.y_shape)
        given = models.arguments(models.load_factory(self._factory), model.args, self.signature.x_shape, outputs)
        names = {id(p): name for name, p in self.module.named_parameters() if p.requires_grad}
        names |= {id(tensor): f"fixed.{name}" for name, tensor in self._kept_vars().items()}
        plain = json.loads(json.dumps(given, default=str))
        return {"arguments": plain, "outputs": outputs, **self._entries(names)}

    def _entries(self, names: Mapping[int, str]) -> dict[str, Any]:
        """Of the module's state; names: under which each tensor is kept, by its identity."""
        state: list[list[Any]] = []
        left_out = []
        for key, tensor in self.module.state_dict(keep_vars=True).items():
            if isinstance(tensor, Tensor) and id(tensor) in names and tensor.layout == torch.strided:
                state.append([key, names[id(tensor)], str(tensor.dtype).removeprefix("torch."), list(tensor.shape)])
            else:
                left_out.append(key)
        return {"state": state, "left_out": left_out}

    def _kept_vars(self) -> dict[str, Tensor]:
        """As `fixed`, but the module's own tensors instead of copies."""
        frozen = {name: p for name, p in self.module.named_parameters() if not p.requires_grad}
        return {**frozen, **dict(self.module.named_buffers())}

    def theta(self) -> npt.NDArray[Any]:
        """The flat trainable parameters on the host."""
        return tensors.host(self.parameters.theta)

    def outputs_at(self, theta: Tensor, x: Tensor) -> Tensor:
        """Outputs for rows x as the module takes them at other parameters theta [P], which the network does not take on."""
        tensors = self.parameters.split(theta.to(self.device, self.dtype))
        with self.evaluating():
            return called_at(self.module, self.parameters, tensors, x)

    def master(self) -> Tensor:
        """The flat trainable parameters as float64 on the host, [P]: what the posterior is made of."""
        return torch.tensor(self.theta(), dtype=torch.float64)

    def move_to(self, theta: Tensor) -> None:
        """Other parameters [P], wherever they are and in whatever precision."""
        self.parameters.load(theta.to(self.device, self.dtype))

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Everything that makes this network's predictions, as host arrays named for a file."""
        fixed = dict(part for name, tensor in self.fixed().items() for part in tensors.packed(f"fixed.{name}", tensor))
        targets = {} if self.targets is None else self.targets.state()
        return {"theta": self.theta(), **fixed, **targets}

    def takes(self, state: Mapping[str, npt.NDArray[Any]]) -> bool:
        """Whether these arrays come from a model like this one."""
        shapes = {name: array.shape for name, array in self.state().items()}
        return all(name in state and state[name].shape == shape for name, shape in shapes.items())

    def misfit(self, plain: Mapping[str, Any] | None) -> str | None:
        """Why flat vectors of this layout are not this model's, or None; of before layouts were kept, nothing is known."""
        return None if plain is None else Layout.from_plain(plain).difference(self.parameters.layout)

    def load(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take over what `state` gave; raises ConfigError if they come from another model.

        For predictions, which change nothing, an array that was loaded the last time is not copied again.
        """
        if state["theta"].shape != (self.parameters.size,):
            raise ConfigError(
                f"model: the state directory holds {state['theta'].size} parameters, the configured model has "
                f"{self.parameters.size}; use the configuration it was made with, or a new state_dir"
            )
        self.parameters.load(torch.tensor(state["theta"]))
        if self.targets is not None:
            self.targets.load(state)
            self.retarget()
        for name, tensor in self.fixed().items():
            key = f"fixed.{name}"
            if self._trained or key not in state or self._loaded.get(key) is not state[key]:
                tensors.unpack(key, tensor, state)
        self._loaded = {} if self._trained else {key: array for key, array in state.items() if key != "theta"}


def _learned_targets(config: Config, signature: Signature) -> Targets | None:
    """What is to be learned of the targets; None where the noise is given, or has nothing to do with them."""
    learned = config.model.family == "gaussian" and config.model.noise_variance == "auto"
    return Targets(math.prod(signature.y_shape)) if learned else None


def _placed(module: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """The module on its device; what is trained in `dtype`, and with it whatever has the same dtype and loses nothing.

    Other frozen parameters and buffers stay as they are: a table of 64-bit times, complex filters, a backbone in bfloat16.
    """
    own = {p.dtype for p in module.parameters() if p.requires_grad}

    def place(tensor: Tensor) -> Tensor:
        if tensor.is_quantized or not (tensor.is_floating_point() or tensor.is_complex()):
            return tensor.to(device)
        cast = tensor.to(dtype.to_complex() if tensor.is_complex() else dtype)
        if tensor.requires_grad:
            return tensor.to(device) if tensor.is_complex() else cast.to(device)
        alike = (tensor.real.dtype if tensor.is_complex() else tensor.dtype) in own
        narrower = cast.dtype.itemsize < tensor.dtype.itemsize
        return (cast if (alike or narrower) and _same(cast.to(tensor.dtype), tensor) else tensor).to(device)

    module._apply(place)  # type: ignore[no-untyped-call]
    return module


def _seen(task: int, outputs: Iterable[int] | None) -> tuple[int, tuple[int, ...] | None]:
    return task, None if outputs is None else tuple(sorted(outputs))


def _same(one: Tensor, other: Tensor) -> bool:
    """Bitwise, except that NaN equals itself; for sparse tensors, the values that they hold."""
    if one.layout != torch.strided:
        one, other = (t.coalesce().values() if t.layout == torch.sparse_coo else t.values() for t in (one, other))
    if one.is_quantized:
        one, other = one.int_repr(), other.int_repr()
    if one.is_complex():
        one, other = torch.view_as_real(one.resolve_conj()), torch.view_as_real(other.resolve_conj())
    if torch.equal(one, other) or one.shape != other.shape or not one.is_floating_point():
        return torch.equal(one, other)
    return bool(((one == other) | (one.isnan() & other.isnan())).all())


def _random_states(device: torch.device) -> list[Tensor]:
    """Of the generators that a model on this device may draw from."""
    return [torch.get_rng_state()] + ([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])
