"""What a rule leaves behind, and the circumstances under which it is another: modes, autocast, frozen parameters."""
# ruff: noqa: D102  a mutant leaves out what it should use, and says so once, in the docstring of its class
# ruff: noqa: SLF001  a mutant reaches where it should not

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from lrp_rules import AlphaBeta, Epsilon, Flat, Gamma, Pass, Registration, ReLUBetaSmooth, WSquare
from verify.selftests.mutants.registry import Handles, mutant

if TYPE_CHECKING:
    from torch import Tensor

    from lrp_rules.layers.layer import Layer

    Tensors = tuple[Tensor, ...]


@mutant()
class EpsilonHandleDoesNothing(Epsilon):
    """remove() does nothing, so that the rule stays on the module."""

    def register(self, module: nn.Module) -> Registration:
        registration = super().register(module)
        registration._handles = []
        return registration


@mutant()
class FlatHookLeft(Flat):
    """remove() takes away one of two hooks."""

    def register(self, module: nn.Module) -> Registration:
        module.register_forward_pre_hook(_nothing)
        return super().register(module)


def _nothing(_module: nn.Module, _args: Any) -> None:
    pass


@mutant()
class PassRemovesAllHooks(Pass):
    """remove() takes the hooks of others away, too."""

    def register(self, module: nn.Module) -> Registration:
        return _ClearingAll(self, module)


class _ClearingAll(Registration):
    def __init__(self, hook: Pass, module: nn.Module) -> None:
        super().__init__(hook, module)
        self._module = module

    def remove(self) -> None:
        self._module._forward_hooks.clear()
        super().remove()


@mutant()
class ReLUBetaSmoothExceptionLeavesHook(ReLUBetaSmooth):
    """A hook that each call puts on the module and takes away stays there if the module raises."""

    def register(self, module: nn.Module) -> Registration:
        return Handles(self, module, module.register_forward_pre_hook(_for_a_while))


def _for_a_while(module: nn.Module, _args: Any) -> None:
    def end(_module: nn.Module, _args: Any, _output: Any) -> None:
        handle.remove()

    handle = module.register_forward_hook(end)


# Modes


@mutant()
class WSquareNeedsGradient(WSquare):
    """A forward pass without a gradient is refused."""

    def register(self, module: nn.Module) -> Registration:
        return Handles(self, module, module.register_forward_hook(_refuse))


def _refuse(_module: nn.Module, _args: Any, output: Tensor) -> None:
    if not output.requires_grad:
        msg = "the output does not require a gradient"
        raise RuntimeError(msg)


@mutant()
class GammaAutocastGradient(Gamma):
    """Under autocast, input and output differ in dtype, and the rule gives way to the plain gradient."""

    def _propagate(self, call: Any, inputs: Tensors, saved: Tensors, relevance: Tensors) -> Any:
        if relevance[0].dtype == inputs[0].dtype or not isinstance(call.module, nn.Linear):
            return super()._propagate(call, inputs, saved, relevance)
        return (relevance[0].to(inputs[0].dtype) @ call.module.weight,)


@mutant()
class AlphaBetaFrozenInputAlone(AlphaBeta):
    """A module whose parameters are frozen keeps its plain gradient."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        own = list(layer.module.parameters())
        frozen = own and not any(p.requires_grad for p in own)
        return layer.matrix().T @ R if frozen else super().relevance(layer, R)
