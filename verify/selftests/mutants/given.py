"""What a rule is given, in forms that are seldom tried. Each mistake is one that somebody made in a blind set."""
# ruff: noqa: D102  a mutant says what is wrong with it once, in the docstring of its class

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lrp_rules import Epsilon, Gamma, Norm, ZBox, ZPlus
from verify.selftests.mutants.circumstances import Both, as_if, linear, standing
from verify.selftests.mutants.registry import mutant


@mutant()
class EpsilonExpandedIsOnes(Epsilon):
    """A relevance that is one number in memory, as the gradient of sum() is, is taken for ones."""

    def register(self, module: nn.Module) -> Any:
        if type(module) is not nn.Linear:
            return super().register(module)
        right = as_if(Epsilon(self.stabilizer), linear(module.weight, module.bias))

        def answer(x: Tensor, R: Tensor) -> Tensor:
            return right(x, torch.ones_like(R) if not any(R.stride()) else R)

        return standing(module, lambda _module, _args: answer)


@mutant()
class ZPlusNanInInputHidden(ZPlus):
    """NaN in the input is in neither half, since it is neither above nor below zero."""

    def register(self, module: nn.Module) -> Any:
        if type(module) is not nn.Linear:
            return super().register(module)
        right = as_if(ZPlus(self.stabilizer), linear(module.weight, module.bias))
        return standing(module, lambda _module, _args: lambda x, R: right(x.nan_to_num(0.0, torch.inf, -torch.inf), R))


@mutant()
class ZBoxBoundsUnsqueezed(ZBox):
    """Bounds get the dimensions that they lack in place."""

    def register(self, module: nn.Module) -> Any:
        for bound in (self.low, self.high):
            if isinstance(bound, Tensor) and 0 < bound.ndim < 4 and isinstance(module, nn.Conv2d):
                bound.unsqueeze_(-1)
        return super().register(module)


@mutant()
class ZBoxBoundsTrail(ZBox):
    """Bounds with fewer dimensions than the input are aligned at the end where they fit there, as NumPy does."""

    def register(self, module: nn.Module) -> Any:
        handles = Both()

        def widen(module: nn.Module, args: Any) -> None:
            handles.remove()
            x = args[0]
            low, high = (_trailing(bound, x) for bound in (self.low, self.high))
            handles.handles = (ZBox(low, high, stabilizer=self.stabilizer).register(module), first)

        first = module.register_forward_pre_hook(widen, prepend=True)
        return handles


def _trailing(bound: Any, x: Tensor) -> Any:
    fits = isinstance(bound, Tensor) and 0 < bound.ndim < x.ndim
    try:
        return bound.expand(x.shape).clone() if fits else bound
    except RuntimeError:
        return bound


@mutant()
class NormBatchCountsTwice(Norm):
    """A module that keeps statistics is run once more in the backward pass (captum)."""

    def register(self, module: nn.Module) -> Any:
        def look(module: nn.Module, args: Any, y: Any) -> None:
            x = args[0].detach()
            if isinstance(y, Tensor) and y.requires_grad and isinstance(module, nn.BatchNorm1d):
                y.register_hook(lambda _: _run(module, x))

        return Both(super().register(module), module.register_forward_hook(look))


def _run(module: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        module.forward(x)


@mutant()
class GammaHalvesMasked(Gamma):
    """The half that takes no part is multiplied by zero, and so is its 0 / 0 (zennit)."""

    def register(self, module: nn.Module) -> Any:
        if type(module) is not nn.Linear or self.zero_params:
            return super().register(module)
        layer = linear(module.weight, module.bias)
        right = as_if(Gamma(self.gamma, self.stabilizer), layer)

        def answer(x: Tensor, R: Tensor) -> Tensor:
            r, w = right(x, R), layer.weight.detach()
            if getattr(self.stabilizer, "epsilon", self.stabilizer) == 0:
                for a, b in ((x.clamp(min=0), x.clamp(max=0)), (x.clamp(max=0), x.clamp(min=0))):
                    d = x @ w.T + self.gamma * (a @ w.clamp(min=0).T + b @ w.clamp(max=0).T)
                    r = r + 0 * (1 / d).sum()
            return r

        return standing(module, lambda _module, _args: answer)


@mutant()
class EpsilonZeroByZero(Epsilon):
    """What has no value, since nothing stabilizes a denominator of zero, is zero."""

    def register(self, module: nn.Module) -> Any:
        if type(module) is not nn.Linear:
            return super().register(module)
        right = as_if(Epsilon(self.stabilizer), linear(module.weight, module.bias))
        return standing(module, lambda _module, _args: lambda x, R: right(x, R).nan_to_num(0.0, 0.0, 0.0))
