"""Relevances whose derivative is not theirs: what they are made of is cut off, or a rule takes part in a derivative."""
# ruff: noqa: ARG002, D102  a mutant leaves out what it should use, and says so once, in the docstring of its class

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from lrp_rules import AlphaBeta, Epsilon, Gamma, Norm, Pass, ReLUBetaSmooth, ReLUDeconvNet, ZBox, ZPlus
from verify.selftests.mutants.registry import Stabilized, mutant, signed

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lrp_rules.layers.layer import Layer

    Tensors = tuple[Tensor, ...]


@mutant("denominator-detached")
class EpsilonDenominatorDetached(Stabilized, Epsilon):
    """The denominator is detached, so that a derivative of the relevance lacks a term."""

    @staticmethod
    def stabilize(d: Tensor, epsilon: float) -> Tensor:
        return signed(d, epsilon).detach()


@mutant("denominator-detached")
class ZPlusDenominatorDetached(Stabilized, ZPlus):
    """The denominator is computed without a graph, so that a derivative of the relevance lacks a term."""

    @staticmethod
    def stabilize(d: Tensor, epsilon: float) -> Tensor:
        return signed(d, epsilon).detach()


@mutant("input-detached")
class GammaInputDetached(Gamma):
    """The input is detached: a relevance that has no derivative by it."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        return super().relevance(replace(layer, inputs=(layer.x.detach(),), outputs=None), R)


class _Cut(torch.autograd.Function):
    """Nothing to a derivative, which is a constant from then on."""

    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.detach() + 0 * gradient


@mutant()
class ZPlusThirdDerivativeZero(ZPlus):
    """The derivative of a relevance is right, and is a constant to those who differentiate it once more."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        x: Tensor = _Cut.apply(layer.x)  # type: ignore[no-untyped-call]
        return super().relevance(replace(layer, inputs=(x,), outputs=None), R)


@mutant("input-detached")
class ZBoxInputDetached(ZBox):
    """The input is detached: a relevance that has no derivative by it."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        return super().relevance(replace(layer, inputs=(layer.x.detach(),), outputs=None), R)


@mutant("input-detached")
class ReLUBetaSmoothInputDetached(ReLUBetaSmooth):
    """The input is remembered without its graph, though this rule is there to be differentiated."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        return torch.sigmoid(self.beta_smooth * layer.x.detach()) * R


@mutant("relevance-detached")
class AlphaBetaRelevanceDetached(AlphaBeta):
    """The relevance is detached, so that a derivative stops at the rules above."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        return super().relevance(layer, R.detach())


@mutant("relevance-detached")
class ReLUDeconvNetRelevanceDetached(ReLUDeconvNet):
    """The relevance is detached, so that a derivative stops at the rules above."""

    def backward(self, module: nn.Module, grad_input: Any, grad_output: Tensors) -> Tensors:
        return (grad_output[0].detach().clamp(min=0),)


@mutant("parameters-detached")
class NormParametersDetached(Norm):
    """The denominator has no graph to the parameters, so that they cannot be trained by a relevance."""

    def relevances(self, layer: Layer, R: Tensors) -> Tensors:
        if layer.given.get("weight") is None:
            return super().relevances(layer, R)
        given = {name: None if value is None else value.detach() for name, value in layer.given.items()}
        return super().relevances(replace(layer, given=given, outputs=None), R)


@mutant()
class EpsilonInDerivatives(Epsilon):
    """The rule stays in force where its relevance is differentiated, in the place of the layer's gradient (zennit)."""

    def _differentiate(self, call: Any, inputs: Tensors, saved: Tensors, gradients: Tensors, edges: Any) -> Any:
        return (*self._propagate(call, inputs, saved, gradients), *[None] * call.parameters)


@mutant()
class GammaInDerivatives(Gamma):
    """The rule stays in force where its relevance is differentiated, in the place of the layer's gradient (zennit)."""

    def _differentiate(self, call: Any, inputs: Tensors, saved: Tensors, gradients: Tensors, edges: Any) -> Any:
        return (*self._propagate(call, inputs, saved, gradients), *[None] * call.parameters)


@mutant()
class PassInDerivatives(Pass):
    """Gradients are passed on as they are, too, where a relevance is differentiated (zennit)."""

    def _differentiate(self, call: Any, inputs: Tensors, saved: Tensors, gradients: Tensors, edges: Any) -> Any:
        return gradients


@mutant()
class ZPlusWithoutDerivativesOfParameters(ZPlus):
    """A derivative of the relevance below reaches the parameters of the layers above not at all."""

    def _differentiate(self, call: Any, inputs: Tensors, saved: Tensors, gradients: Tensors, edges: Any) -> Any:
        found = super()._differentiate(call, inputs, saved, gradients, edges)
        return (*found[: len(inputs)], *[None] * call.parameters)
