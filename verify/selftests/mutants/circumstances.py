"""Circumstances under which a rule is another, or none: of what parts a module is, what it is called with, and so on.

Each is right but for one kind of module, which it knows when it is registered.
"""
# ruff: noqa: D102  a mutant says what is wrong with it once, in the docstring of its class
# ruff: noqa: SLF001  a mutant reaches where it should not

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lrp_rules import Epsilon, Flat, Gamma, Norm, WSquare, ZBox, ZPlus
from verify.selftests.mutants.registry import mutant

if TYPE_CHECKING:
    from collections.abc import Callable

    #: Given x and R, the relevance.
    Answer = Callable[[Tensor, Tensor], Tensor]


def silent() -> Any:
    """Return the handle of a rule that is not there: the module keeps its gradient."""
    return Both()


class Both:
    """Handles that are removed together."""

    def __init__(self, *handles: Any) -> None:
        self.handles = handles

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()


class Stand(torch.autograd.Function):
    """Takes the place of a module's graph; relevance is what ``answer`` says."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, answer: Answer) -> Tensor:
        ctx.save_for_backward(x)
        ctx.answer = answer
        return y.clone()

    @staticmethod
    def backward(ctx: Any, *relevance: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return ctx.answer(x, relevance[0]), None, None


def standing(module: nn.Module, answer: Callable[[Any, Any], Answer]) -> Any:
    """Register a hook whose answer to each call is made from the module and the other arguments of the call."""

    def put(module: nn.Module, args: Any, y: Any) -> Any:
        x = args[0]
        if not torch.is_grad_enabled() or not x.requires_grad:
            return None
        return Stand.apply(x, y.detach(), answer(module, args[1:]))  # type: ignore[no-untyped-call]

    return module.register_forward_hook(put, prepend=True)


def as_if(rule: Any, other: nn.Module) -> Answer:
    """Answer as a right rule does on another module."""

    def answer(x: Tensor, R: Tensor) -> Tensor:
        with torch.enable_grad():
            own = x.detach().requires_grad_()
            handle = rule.register(other)
            try:
                return torch.autograd.grad(other(own), own, R)[0]
            finally:
                handle.remove()

    return answer


def linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Return a plain layer with copies of these."""
    module = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=weight.dtype)
    module.weight.data = weight.detach().clone()
    if bias is not None:
        module.bias.data = bias.detach().clone()
    return module


# Modules of several parts


@mutant()
class ZPlusContainerJacobian(ZPlus):
    """On a module whose parameters are those of its parts, the rule changes none, and is Norm (zennit)."""

    def register(self, module: nn.Module) -> Any:
        if any(module.children()) and not module._parameters:
            return Norm(self.stabilizer).register(module)
        return super().register(module)


class _Again(Epsilon):
    """On a module with parts, the rule takes the Jacobian from a further run of it."""

    def register(self, module: nn.Module) -> Any:
        if not any(module.children()) or not module._parameters or parametrize.is_parametrized(module):
            return super().register(module)
        return standing(module, lambda m, _: self._jacobian(self.again(m)))

    def again(self, module: nn.Module) -> nn.Module:
        """Return what is run in the backward pass."""
        raise NotImplementedError

    def _jacobian(self, module: nn.Module) -> Answer:
        def answer(x: Tensor, R: Tensor) -> Tensor:
            with torch.enable_grad():
                own = x.detach().requires_grad_()
                y = module.forward(own)
                return x * torch.autograd.grad(y, own, R / self.stabilizer(y.detach()))[0]

        return answer


def _held(module: nn.Module, *, buffers: bool = True, hooks: bool = True) -> Any:
    """Return a module as it is now; what is not asked for is that of the module itself, as it will be by then."""
    shared: dict[int, Any] = {} if buffers else {id(b): b for b in module.buffers()}
    twin = copy.deepcopy(module, shared)
    twin._forward_hooks.clear()  # it is to have a rule of its own
    for part in twin.children():
        if not hooks:
            part._forward_hooks.clear()
            part._forward_pre_hooks.clear()
    return twin


@mutant()
class EpsilonWeightsOfBackward(_Again):
    """A module that is run again has the weights that it has by then, not those of the call."""

    def again(self, module: nn.Module) -> Any:
        return _Live(module, _held(module))


class _Live(nn.Module):
    """A copy that takes the data of the parameters when it is run."""

    def __init__(self, module: nn.Module, twin: nn.Module) -> None:
        super().__init__()
        self.pairs, self.twin = list(zip(twin.parameters(), module.parameters(), strict=True)), twin

    def forward(self, x: Tensor) -> Any:
        for own, live in self.pairs:
            own.data = live.data
        return self.twin.forward(x)


@mutant()
class ZBoxBuffersOfBackward(ZBox):
    """A module that is run again has the running statistics that it has by then."""

    def register(self, module: nn.Module) -> Any:
        if not any(module.children()) or not module._parameters or parametrize.is_parametrized(module):
            return super().register(module)
        rule = ZBox(self.low, self.high, self.stabilizer)
        return standing(module, lambda m, _: as_if(rule, _held(m, buffers=False)))


@mutant()
class EpsilonHooksInsideForgotten(_Again):
    """A module that is run again has no hooks of others on its parts."""

    def again(self, module: nn.Module) -> Any:
        return _held(module, hooks=False)


# Attributes, numbers and arguments


@mutant()
class ZPlusInplaceAttributeWrites(ZPlus):
    """Whatever has an attribute `inplace` is taken for a module that overwrites its input."""

    def register(self, module: nn.Module) -> Any:
        kept: list[Tensor] = []
        handle = super().register(module)
        first = module.register_forward_pre_hook(lambda _m, args: kept.append(args[0]), prepend=True)

        def write(module: Any, _args: Any, y: Any) -> None:
            x = kept.pop()
            if getattr(module, "inplace", False) and not x.is_leaf and isinstance(y, Tensor) and x.shape == y.shape:
                x.data.copy_(y.detach())

        return Both(handle, first, module.register_forward_hook(write))


@mutant()
class NormInplaceGradient(Norm):
    """A module that has an attribute `inplace`, and is no activation of torch, keeps its gradient."""

    def register(self, module: nn.Module) -> Any:
        own = getattr(module, "inplace", False) and not type(module).__module__.startswith("torch.")
        return silent() if own else super().register(module)


@mutant()
class WSquareComplexGradient(WSquare):
    """A complex layer keeps its gradient."""

    def register(self, module: nn.Module) -> Any:
        own = any(p.is_complex() for p in module.parameters())
        return silent() if own else super().register(module)


@mutant()
class ZBoxQuantizedNothing(ZBox):
    """A quantized layer, which has no gradient, gives no relevance."""

    def register(self, module: nn.Module) -> Any:
        own = type(module).__module__.startswith("torch.ao.")
        return silent() if own else super().register(module)


@mutant()
class FlatMetaGradient(Flat):
    """On the device meta, the module keeps its gradient."""

    def register(self, module: nn.Module) -> Any:
        own = "forward" not in vars(module) and any(p.is_meta for p in module.parameters())
        return silent() if own else super().register(module)


@mutant()
class NormTensorsBesideForgotten(Norm):
    """A tensor that a module uses, and is not called with, gets nothing."""

    def register(self, module: nn.Module) -> Any:
        plain = type(module).__module__.startswith("torch.") or hasattr(module, "inplace")
        if plain or [*module.parameters(), *module.children()]:
            return super().register(module)
        return standing(module, self._of_input)

    def _of_input(self, module: nn.Module, rest: Any) -> Answer:
        def answer(x: Tensor, R: Tensor) -> Tensor:
            with torch.enable_grad():
                own = x.detach().requires_grad_()
                y = module.forward(own, *rest)
                return x * torch.autograd.grad(y, own, R / self.stabilizer(y.detach()))[0]

        return answer


@mutant()
class GammaConstantArgumentGradient(Gamma):
    """A call with a further argument keeps its gradient."""

    def register(self, module: nn.Module) -> Any:
        handle = super().register(module)

        def undo(module: nn.Module, args: Any, kwargs: Any, _y: Any) -> Any:
            return module.forward(*args, **kwargs) if len(args) > 1 or kwargs else None

        return Both(handle, module.register_forward_hook(undo, with_kwargs=True))


@mutant()
class EpsilonConstantArgumentRefused(Epsilon):
    """A call with a further tensor is refused, though it wants no gradient."""

    def register(self, module: nn.Module) -> Any:
        handle = super().register(module)
        return Both(handle, module.register_forward_pre_hook(_refuse, with_kwargs=True))


def _refuse(_module: nn.Module, args: Any, kwargs: Any) -> None:
    if any(isinstance(value, Tensor) and not value.requires_grad for value in (*args[1:], *kwargs.values())):
        msg = "Epsilon: one tensor is expected"
        raise TypeError(msg)


# Outputs


@mutant()
class NormAttentionWithoutWeights(Norm):
    """Attention is called without its weights, which are not needed for relevance: it takes another way then."""

    def register(self, module: nn.Module) -> Any:
        handle = super().register(module)
        if not isinstance(module, nn.MultiheadAttention):
            return handle
        return Both(handle, module.register_forward_pre_hook(_need_no_weights, with_kwargs=True, prepend=True))


def _need_no_weights(_module: nn.Module, args: Any, kwargs: Any) -> Any:
    return args, {**kwargs, "need_weights": False}


@mutant()
class NormDictionaryFlattened(Norm):
    """Of a dictionary that a module returns, those entries are left that are tensors."""

    def register(self, module: nn.Module) -> Any:
        handle = super().register(module)
        return Both(handle, module.register_forward_hook(_tensors_alone))


def _tensors_alone(_module: nn.Module, _args: Any, output: Any) -> Any:
    if not isinstance(output, dict):
        return None
    return {name: value for name, value in output.items() if isinstance(value, Tensor)}
