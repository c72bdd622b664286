"""Copies of rules, and what a rule remembers from one call to the next."""
# ruff: noqa: D102  a mutant leaves out what it should use, and says so once, in the docstring of its class

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self
from weakref import WeakKeyDictionary

import torch

from lrp_rules import (
    AlphaBeta,
    Epsilon,
    Flat,
    Gamma,
    Norm,
    Pass,
    Registration,
    ReLUBetaSmooth,
    ReLUDeconvNet,
    WSquare,
    ZBox,
    ZPlus,
)
from verify.selftests.mutants.registry import mutant

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lrp_rules.layers.layer import Layer

    Tensors = tuple[Tensor, ...]


@mutant()
class EpsilonCopyForgetsZeroParams(Epsilon):
    """The copy has epsilon, and not zero_params."""

    def copy(self) -> Self:
        return type(self)(self.stabilizer)


@mutant()
class AlphaBetaCopyForgetsBeta(AlphaBeta):
    """The copy has alpha and beta of the default (a copy that passes the tests of zennit)."""

    def copy(self) -> Self:
        return type(self)(stabilizer=self.stabilizer, zero_params=self.zero_params)


@mutant()
class GammaCopyForgetsGamma(Gamma):
    """The copy has gamma of the default."""

    def copy(self) -> Self:
        return type(self)(stabilizer=self.stabilizer, zero_params=self.zero_params)


@mutant()
class GammaCopyForgetsZeroParams(Gamma):
    """The copy has gamma and stabilizer, and not zero_params."""

    def copy(self) -> Self:
        return type(self)(self.gamma, self.stabilizer)


@mutant()
class WSquareCopyForgetsStabilizer(WSquare):
    """The copy has the stabilizer of the default."""

    def copy(self) -> Self:
        return type(self)(zero_params=self.zero_params)


@mutant()
class ZBoxCopySwapsBounds(ZBox):
    """The copy has the bounds of opposite sign in each other's place, which is right for symmetric ones alone."""

    def copy(self) -> Self:
        return type(self)(-self.high, -self.low, self.stabilizer, self.zero_params)


@mutant()
class ReLUBetaSmoothCopyForgetsBeta(ReLUBetaSmooth):
    """The copy has the beta of the default."""

    def copy(self) -> Self:
        return type(self)()


@mutant()
class ZPlusCopyIsItself(ZPlus):
    """A copy is the rule itself."""

    def copy(self) -> Self:
        return self


@mutant()
class FlatCopyForgetsToReturn(Flat):
    """A copy is made, and not returned."""

    def copy(self) -> Any:
        super().copy()


@mutant()
class NormDeepcopyForgets(Norm):
    """A deep copy has the stabilizer of the default."""

    def __deepcopy__(self, memo: Any) -> Norm:
        return NormDeepcopyForgets()


@mutant()
class ReLUDeconvNetWithoutDeepcopy(ReLUDeconvNet):
    """A deep copy fails, so that a model with rules beside it cannot be copied."""

    def __deepcopy__(self, memo: Any) -> Norm:
        msg = "cannot copy a rule"
        raise TypeError(msg)


@mutant()
class WSquareWithoutPickle(WSquare):
    """A rule holds a function of its own, and cannot be pickled."""

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"square": lambda w: w * w}


@mutant()
class NormLastInputForAll(Norm):
    """The input is remembered on the rule, so that of two calls both get the second one's."""

    def _record(self, call: Any, inputs: Tensors, outputs: Tensors) -> Any:
        vars(self)["last"] = tuple(x.detach() for x in inputs)
        return super()._record(call, inputs, outputs)

    def relevances(self, layer: Layer, R: Tensors) -> Tensors:
        last: Tensors = vars(self)["last"]
        same = all(x.shape == y.shape for x, y in zip(last, layer.inputs, strict=False))
        return super().relevances(replace(layer, inputs=last, outputs=None) if same else layer, R)


@mutant()
class EpsilonLastOutputForAll(Epsilon):
    """The output is remembered on the module, so that a module that is called twice is divided by the second one's."""

    def _record(self, call: Any, inputs: Tensors, outputs: Tensors) -> Any:
        _LAST[call.module] = tuple(z.detach() for z in outputs)
        return super()._record(call, inputs, outputs)

    def relevances(self, layer: Layer, R: Tensors) -> Tensors:
        last = _LAST.get(layer.module, ())
        known = [(z.shape, z.dtype) for z in last] == [(R_k.shape, layer.x.dtype) for R_k in R]
        if self.zero_params or torch.is_grad_enabled() or not known:
            return super().relevances(layer, R)
        s = tuple(R_k / self.stabilizer(z) for R_k, z in zip(R, last, strict=True))
        return tuple(x * c for x, c in zip(layer.inputs, layer.pull(s), strict=True))


_LAST: WeakKeyDictionary[nn.Module, Tensors] = WeakKeyDictionary()


@mutant()
class ReLUBetaSmoothLastInputForAll(ReLUBetaSmooth):
    """The input is remembered on the rule, so that of two calls both get the second one's (zennit)."""

    def forward(self, module: nn.Module, input: Tensors, output: Tensors) -> None:  # noqa: A002, ARG002  the API's names
        _INPUTS[self.beta_smooth] = input[0]

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        last = _INPUTS[self.beta_smooth]
        return super().relevance(replace(layer, inputs=(last,)) if last.shape == R.shape else layer, R)


_INPUTS: dict[float, Tensor] = {}


@mutant()
class AlphaBetaFirstAnswerKept(AlphaBeta):
    """The answer to the first call is given to all calls of that shape."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        kept = vars(self).setdefault("kept", {})
        if R.shape not in kept:
            kept[R.shape] = super().relevance(layer, R).detach()
        found: Tensor = kept[R.shape]
        return found


@mutant()
class ZPlusWeightsOfFirstCall(ZPlus):
    """The clamped weights are computed once, and serve a rule's other modules, too."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        own = layer.given.get("weight")
        weight = vars(self).setdefault("weight", own)
        if weight is None or own is None or weight.shape != own.shape:
            return super().relevance(layer, R)
        return super().relevance(replace(layer, given={**layer.given, "weight": weight}), R)


@mutant()
class ZBoxTensorsKept(ZBox):
    """Inputs are collected on the rule, and live as long as it does (captum #1055)."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        vars(self).setdefault("kept", []).append(layer.x)
        return super().relevance(layer, R)


@mutant()
class WSquareOneModuleAlone(WSquare):
    """A second registration silently ends the first."""

    def register(self, module: nn.Module) -> Registration:
        first = vars(self).get("registration")
        if first is not None:
            first.remove()
        registration = vars(self)["registration"] = Registration(self, module)
        return registration


@mutant()
class GammaAppliedTwice(Gamma):
    """Registered twice on one module, the relevance is scaled twice."""

    def register(self, module: nn.Module) -> Registration:
        try:
            return super().register(module)
        except RuntimeError:
            return _Second(self, module)


class _Second(Registration):
    def __init__(self, hook: Gamma, module: nn.Module) -> None:
        self.hook = hook
        self._handles = [module.register_forward_hook(_doubled)]


def _doubled(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
    return 2 * output - output.detach()


@mutant()
class FlatFirstRelevanceKept(Flat):
    """The relevance that came first goes back again in each further pass through a graph."""

    def _propagate(self, call: Any, inputs: Tensors, saved: Tensors, relevance: Tensors) -> Any:
        if "first" not in vars(call):
            vars(call)["first"] = relevance
        return super()._propagate(call, inputs, saved, vars(call)["first"])


@mutant()
class PassGraphFreed(Pass):
    """A graph can be gone through once, also with retain_graph=True."""

    def _propagate(self, call: Any, inputs: Tensors, saved: Tensors, relevance: Tensors) -> Any:
        if "done" in vars(call):
            msg = "the relevance of this call has been propagated already"
            raise RuntimeError(msg)
        vars(call)["done"] = True
        return super()._propagate(call, inputs, saved, relevance)
