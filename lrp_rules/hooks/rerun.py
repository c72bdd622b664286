"""A call once more: with other parameters or inputs, and without a trace of its own."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from lrp_rules.errors import see
from lrp_rules.layers.numbers import agree
from lrp_rules.modules import tree, twin

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Arguments(NamedTuple):
    """Arguments of a call whose tensors are not simply one by position."""

    leaves: list[Any]
    structure: Any
    positions: list[int]


@dataclass(frozen=True)
class Rerun:
    """What it takes to repeat a call as it was: arguments, modes (train or eval), autocast, and the random state.

    Buffers and the global random state stay as they are, so that statistics are not moved twice, and a dropout draws
    the mask that the call has drawn.
    """

    module: nn.Module
    arguments: Arguments | None = None
    modes: Mapping[nn.Module, bool] = field(default_factory=dict)
    random: Tensor | None = None
    autocast: torch.dtype | None = None

    def __call__(
        self, parameters: Mapping[str, Tensor | None], *inputs: Tensor, below: Sequence[Tensor] = ()
    ) -> tuple[Tensor, ...]:
        """Return the outputs of the call with these parameters and inputs.

        ``below`` stands for the parameters of the modules below, in their order.
        """
        like = inputs[0]
        current = parameters_below(self.module)
        others = dict(zip(map(id, current), below, strict=True)) if len(below) == len(current) else {}

        def settle(copy: nn.Module, original: nn.Module) -> None:
            buffers, own = original._buffers.items(), original._parameters.items()
            copy._buffers = {name: None if value is None else _own(value, like) for name, value in buffers}
            widened = {
                name: None if value is None else _widened(others.get(id(value), value), like) for name, value in own
            }
            copy.__dict__["_parameters"] = widened
            copy.training = self.modes.get(original, original.training)

        module = twin(tree(self.module, settle), parameters)
        if getattr(module, "inplace", False):
            inputs = tuple(x.clone() for x in inputs)
        kind, cast = like.device.type, self.autocast
        devices = [like.device] if kind == "cuda" else []
        with torch.random.fork_rng(devices=devices), autocast(kind, cast):
            if self.random is not None:
                set_random_state(self.random, like.device)
            return floats(module(*inputs) if self.arguments is None else self._called(module, inputs))

    def _called(self, module: nn.Module, inputs: Sequence[Tensor]) -> Any:
        assert self.arguments is not None
        leaves, structure, positions = self.arguments
        filled = [_widened(leaf, inputs[0]) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        for position, x in zip(positions, inputs, strict=True):
            filled[position] = x
        args, kwargs = tree_unflatten(filled, structure)
        return module(*args, **kwargs)


def check_repeated(rule: object, module: nn.Module, again: Sequence[Tensor], first: Sequence[Tensor]) -> None:
    """Refuse a rerun that gives other outputs than the call did: it would be that of another call."""
    if len(again) == len(first) and all(map(agree, again, first)):
        return
    msg = (
        f"{type(rule).__name__} on {module} has to run the module once more, and that gives another output than the "
        "call did; expected the same. Buffers or parts may have been changed since the call, a hook of somebody else "
        "may change values inside, or it draws random numbers of its own. Do the backward pass before the change, "
        f"remove that hook, or put rules on the parts{see('a-call-that-cannot-be-repeated')}"
    )
    raise RuntimeError(msg)


def autocast(device: str, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """Return a context with this autocast, or without any."""
    if not torch.amp.is_autocast_available(device):  # such as 'meta'
        return nullcontext()
    return torch.autocast(device, dtype=dtype, enabled=dtype is not None)


def parameters_below(module: nn.Module) -> list[Tensor]:
    """Return the parameters of the modules below one, of each child in turn."""
    return [parameter for child in module.children() for parameter in child.parameters()]


def _own(value: Tensor, like: Tensor) -> Tensor:
    return _widened(value, like).clone()


def _widened(value: Tensor, like: Tensor) -> Tensor:
    """Return a float16 tensor as float32 where that is what is computed in."""
    return value.to(like.dtype) if value.dtype == torch.float16 else value


def is_float(leaf: Any) -> bool:
    """Whether a leaf of arguments or results is a tensor that relevance can flow through."""
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def floats(results: Any) -> tuple[Tensor, ...]:
    """Return the floating-point tensors among what a module returned, in order."""
    return tuple(leaf for leaf in tree_flatten(results)[0] if is_float(leaf))


def random_state(device: torch.device) -> Tensor:
    """Return the state of the generator that a module on this device draws from."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def set_random_state(state: Tensor, device: torch.device) -> None:
    """Set that state."""
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)
