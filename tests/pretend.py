"""A second device without one: tensors that say they are on ``cuda`` and compute on the CPU.

    with Pretended() as device:
        torch.ones(3, device="cuda") + torch.ones(3)   # raises as CUDA would
        device.synchronised                            # what waited for the device so far

Mistakes that only a GPU would show are errors here: tensors of two devices in one operation, a generator of another
device, an array made of device memory. What it cannot show is what a kernel does: every operation is the CPU's.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
CUDA, META = torch.device("cuda", 0), torch.device("meta")
COPIES = {"aten::copy_", "aten::_to_copy", "aten::_copy_from", "aten::_copy_from_and_resize"}  # between devices
BY_INDEX = {
    "aten::index",
    "aten::index_put",
    "aten::index_put_",
    "aten::_index_put_impl_",
}  # whose indices may be on the host
WAITING = {  # for the device: their result, or its size, is needed on the host
    "aten::_local_scalar_dense", "aten::equal", "aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::bincount",
    "aten::unique_dim", "aten::is_nonzero", "aten::unique_consecutive",
}  # fmt: skip


class OnDevice(Tensor):
    """A tensor that says it is on the device. held: its numbers, on the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> OnDevice:
        made: OnDevice = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device="meta",  # which every build of PyTorch knows; Python is told otherwise
            requires_grad=False,
        )
        made.held = held
        return made

    def __repr__(self, **_: Any) -> str:
        return f"OnDevice({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func}: a tensor of the pretended device outlived it")

    __torch_function__ = torch._C._disabled_torch_function_impl

    @property
    def device(self) -> torch.device:
        return CUDA

    @property
    def is_cuda(self) -> bool:
        return True

    @property
    def is_cpu(self) -> bool:
        return False

    def new_tensor(self, data: Any, **how: Any) -> Tensor:
        return torch.tensor(data, **{"dtype": self.dtype, **how}).to(CUDA)

    def __getitem__(self, index: Any) -> Tensor:
        return super().__getitem__(_listed(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(_listed(index), value)

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")

    __array__ = numpy

    def tolist(self) -> Any:
        return self.cpu().tolist()

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, other: Tensor) -> None:
        if not isinstance(other, OnDevice):
            raise RuntimeError("pretended device: data of another device")
        Tensor.data.__set__(self, other)  # type: ignore[attr-defined]
        self.held = other.held


def _listed(index: Any) -> Any:
    """With lists of places as tensors, which PyTorch itself would make on the device that stands for this one."""
    return tree_map(
        lambda each: torch.tensor(each) if isinstance(each, list) else each,
        index,
        is_leaf=lambda each: isinstance(each, list),
    )


class Generator(torch.Generator):
    """One that says on which device it is."""

    def __new__(cls, device: Any = "cpu") -> Generator:
        made = super().__new__(cls)
        made.claimed = "cpu" if str(device) == "cpu" else "cuda"
        return made

    claimed: str

    @property
    def device(self) -> torch.device:
        return CUDA if self.claimed == "cuda" else torch.device("cpu")


class Named(TorchFunctionMode):
    """What is asked to be on ``cuda`` is asked to be on the device that stands for it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.device:
            return func(*args, **(kwargs or {}))
        args, kwargs = tree_map(_standing_for, (args, dict(kwargs or {})))
        generator = kwargs.get("generator")
        if generator is not None:
            here = any(isinstance(each, OnDevice) for each in tree_leaves(args)) or kwargs.get("device") == META
            claimed = getattr(generator, "claimed", "cpu")
            if (claimed == "cuda") is not here:
                raise RuntimeError(f"{func}: expected a generator of {'cuda' if here else 'cpu'}, got one of {claimed}")
        if func is torch.tensor and kwargs.pop("device", None) == META:  # which never asks how it is made
            return torch.tensor(*args, **kwargs).to(META)
        return func(*args, **kwargs)


def _standing_for(value: Any) -> Any:
    if (isinstance(value, str) and value.partition(":")[0] == "cuda") or (
        isinstance(value, torch.device) and value.type == "cuda"
    ):
        return torch.device("meta")
    return value


class Pretended(TorchDispatchMode):
    """While entered, there is a device ``cuda``. synchronised: what waited for it, by the operation's name."""

    def __init__(self) -> None:
        super().__init__()
        self.synchronised: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = func._schema.name
        every = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        here = [each for each in every if isinstance(each, OnDevice)]
        target = self._target(name, func, kwargs, here)
        self._check(name, func, args, kwargs, every, here)
        if here and (name in WAITING or self._masked(name, args)):
            self.synchronised[name] += 1
        held = tree_map(lambda each: each.held if isinstance(each, OnDevice) else each, (args, kwargs))
        found = func(*held[0], **held[1])
        return self._given_back(func, args, kwargs, found, target)

    def _target(self, name: str, func: Any, kwargs: dict[str, Any], here: list[OnDevice]) -> bool:
        """Whether the result is on the device; device and pinned memory are taken out of the arguments."""
        kwargs.pop("pin_memory", None)
        asked = kwargs.pop("device", None)
        non_blocking = kwargs.get("non_blocking", False)
        target = bool(here) if asked is None else torch.device(asked).type != "cpu"
        if here and not target and not non_blocking:
            self.synchronised[f"{name} to the host"] += 1
        return target

    def _check(self, name: str, func: Any, args: Any, kwargs: Any, every: list[Tensor], here: list[OnDevice]) -> None:
        if not here or len(here) == len(every):
            return
        if name in COPIES:
            if not isinstance(args[0], OnDevice):
                self.synchronised[f"{name} to the host"] += 1
            return
        written = {argument.name for argument in func._schema.arguments if argument.is_write}
        places = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | kwargs
        for argument, value in places.items():
            if name in BY_INDEX and argument == "indices" and isinstance(args[0], OnDevice):
                continue
            for each in tree_leaves(value):
                if not isinstance(each, Tensor) or isinstance(each, OnDevice):
                    continue
                if each.ndim == 0 and argument not in written and torch.Tag.pointwise in func.tags:
                    continue
                if each.ndim == 0 and name in ("aten::index_put_", "aten::_index_put_impl_", "aten::fill_"):
                    continue
                if each.numel() == 0 and name == "aten::cat":
                    continue
                raise RuntimeError(
                    f"{name}: expected all tensors to be on the same device, but {argument} {list(each.shape)} is on cpu"
                )

    def _masked(self, name: str, args: Any) -> bool:
        return name in BY_INDEX and any(
            isinstance(each, Tensor) and each.dtype in (torch.bool, torch.uint8) for each in tree_leaves(args[1])
        )

    def _given_back(self, func: Any, args: Any, kwargs: Any, found: Any, target: bool) -> Any:
        places = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | kwargs
        written = {
            next(iter(argument.alias_info.before_set)): places.get(argument.name)
            for argument in func._schema.arguments
            if argument.is_write and argument.alias_info is not None and argument.type.kind() != "ListType"
        }

        def wrapped(value: Any, alias: str | None) -> Any:
            if alias in written and written[alias] is not None:
                return written[alias]
            return tree_map(lambda each: OnDevice(each) if target and isinstance(each, Tensor) else each, value)

        returns = func._schema.returns
        aliases = [next(iter(each.alias_info.before_set), None) if each.alias_info else None for each in returns]
        if len(returns) == 1:
            return wrapped(found, aliases[0])
        if not returns:
            return found
        return type(found)(map(wrapped, found, aliases)) if isinstance(found, tuple) else found

    # -- the rest of CUDA ----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def entered(self) -> Iterator[Pretended]:
        """As `with`, together with what `torch.cuda` says of the device."""
        state = torch.zeros(16, dtype=torch.uint8)
        _device_constructors()  # which remembers what `torch.empty` is when it is first asked
        replaced = {
            "torch.cuda._lazy_init": lambda: None,
            "torch.cuda.is_available": lambda: True,
            "torch.cuda.manual_seed": lambda seed: None,
            "torch.cuda.get_rng_state": lambda device=None: state,
            "torch.cuda.set_rng_state": lambda new, device=None: None,
            "torch.cuda.is_bf16_supported": lambda *_, **__: True,
            "torch.Generator": Generator,
            "torch.empty": _unpinned(torch.empty),
        }
        with contextlib.ExitStack() as stack:
            for name, value in replaced.items():
                stack.enter_context(patch(name, value))
            stack.enter_context(patch("streamcl.learning.tensors.check_storable", lambda name, tensor: None))
            stack.enter_context(self)
            stack.enter_context(Named())
            yield self


def _unpinned(empty: Any) -> Any:
    def made(*args: Any, pin_memory: bool = False, **how: Any) -> Tensor:
        found: Tensor = empty(*args, **how)
        return found

    return made
