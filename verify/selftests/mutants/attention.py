"""The rules for softmax and normalisations, as people get them wrong."""
# ruff: noqa: A002, ARG002, D102  a mutant leaves out what it should use, and says so once, in the docstring of its class

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lrp_rules import LayerNormRule, Softmax, Stop
from verify.selftests.mutants.registry import mutant

if TYPE_CHECKING:
    from lrp_rules.layers.layer import Layer

    Tensors = tuple[Tensor, ...]


# --- softmax ----------------------------------------------------------------------------------------------------------


class _OfSoftmax(Softmax):
    """Softmax with another formula of x, s, R and the dimension."""

    @abstractmethod
    def formula(self, x: Tensor, s: Tensor, R: Tensor, dim: int) -> Tensor: ...

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        dim = self.dim if self.dim is not None else layer.module.dim
        assert isinstance(dim, int)
        return self.formula(layer.x.masked_fill(layer.x.isneginf(), 0), layer.z, R, dim)


@mutant("gradient")
class SoftmaxGradient(_OfSoftmax):
    """The softmax's own gradient, s * (R - sum s R)."""

    def formula(self, x: Tensor, s: Tensor, R: Tensor, dim: int) -> Tensor:
        return s * (R - (s * R).sum(dim, keepdim=True))


@mutant("gradient-times-input", name="softmax-gradient-times-input")
class SoftmaxGradientTimesInput(_OfSoftmax):
    """The gradient times the input: R is not divided by s."""

    def formula(self, x: Tensor, s: Tensor, R: Tensor, dim: int) -> Tensor:
        return x * s * (R - (s * R).sum(dim, keepdim=True))


@mutant("last-dimension")
class SoftmaxLastDimension(_OfSoftmax):
    """The relevance is summed over the last dimension, whatever the softmax's is (LXT)."""

    def formula(self, x: Tensor, s: Tensor, R: Tensor, dim: int) -> Tensor:
        return x * (R - s * R.sum(-1, keepdim=True))


@mutant("input-not-multiplied", name="softmax-input-not-multiplied")
class SoftmaxUnmultiplied(_OfSoftmax):
    """The input does not count: R - s * sum R, which adds up to 0."""

    def formula(self, x: Tensor, s: Tensor, R: Tensor, dim: int) -> Tensor:
        return R - s * R.sum(dim, keepdim=True)


@mutant("relevance-as-it-is")
class SoftmaxPassed(_OfSoftmax):
    """The relevance goes through as it is."""

    def formula(self, x: Tensor, s: Tensor, R: Tensor, dim: int) -> Tensor:
        return R


@mutant("mean-subtracted")
class SoftmaxMean(_OfSoftmax):
    """The mean of R is subtracted in the place of s * sum R, as if all weights were equal."""

    def formula(self, x: Tensor, s: Tensor, R: Tensor, dim: int) -> Tensor:
        return x * (R - R.mean(dim, keepdim=True))


@mutant()
class SoftmaxMaskIsNaN(Softmax):
    """A masked score, -inf, is multiplied with 0."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        dim = self.dim if self.dim is not None else layer.module.dim
        assert isinstance(dim, int)
        return layer.x * (R - layer.z * R.sum(dim, keepdim=True))


@mutant()
class SoftmaxUnchecked(_OfSoftmax):
    """Any module is taken for a softmax."""

    def formula(self, x: Tensor, s: Tensor, R: Tensor, dim: int) -> Tensor:
        return x * (R - s * R.sum(dim, keepdim=True))


# --- Stop -------------------------------------------------------------------------------------------------------------


@mutant("relevance-as-it-is", name="stop-relevance-as-it-is")
class StopPassed(Stop):
    """The relevance goes through as it is."""

    def backward(self, module: nn.Module, grad_input: Any, grad_output: Tensors) -> list[Tensor]:
        return [grad_output[0] for _ in self.like]


@mutant("gradient", name="stop-gradient")
class StopGradient(Stop):
    """The rule is not there: the module's own gradient."""

    needs_grad_input = True

    def backward(self, module: nn.Module, grad_input: Any, grad_output: Tensors) -> list[Tensor]:
        return list(grad_input)


@mutant()
class StopNone(Stop):
    """The input has no gradient at all, and a caller who asks for one gets an error."""

    def backward(self, module: nn.Module, grad_input: Any, grad_output: Tensors) -> list[Tensor]:
        return [None for _ in self.like]  # type: ignore[misc]


@mutant()
class StopAlmost(Stop):
    """A millionth of the relevance is left."""

    def backward(self, module: nn.Module, grad_input: Any, grad_output: Tensors) -> list[Tensor]:
        return [grad_output[0] * 1e-6 for _ in self.like]


# --- normalisations ---------------------------------------------------------------------------------------------------


class _OfNorm(LayerNormRule):
    """LayerNormRule with another layer, or another denominator."""

    def denominator(self, layer: Layer) -> Tensor:
        return layer.linear_outputs[0]

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        return layer.x * (layer.matrix().T @ (R / self.stabilizer(self.denominator(layer))))


@mutant("deviation-differentiated")
class LayerNormRuleNorm(LayerNormRule):
    """The deviation is no constant: Norm, which leaves next to nothing."""

    def forward(self, module: nn.Module, input: Tensors, output: Tensors) -> None:
        super().forward(module, input, output)
        self.added = None


@mutant("relevance-as-it-is", name="layernormrule-relevance-as-it-is")
class LayerNormRulePassed(LayerNormRule):
    """The relevance goes through as it is, the identity rule of AttnLRP."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        return R


@mutant("bias-dropped")
class LayerNormRuleBiasDropped(_OfNorm):
    """The bias takes no share: it is not in the denominator."""

    def denominator(self, layer: Layer) -> Tensor:
        return layer.matrix() @ layer.x


@mutant("centring-dropped")
class LayerNormRuleCentringDropped(_OfNorm):
    """The mean is a constant, too, so that nothing of it is taken away from what flows back."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        ones = torch.ones_like(layer.x)
        scale: Any = layer
        back = scale._scale() * ones if hasattr(scale, "_scale") else ones  # noqa: SLF001  its own layer
        return layer.x * back * (R / self.stabilizer(self.denominator(layer)))


@mutant("weight-dropped")
class LayerNormRuleWeightDropped(LayerNormRule):
    """The weight is left out of what flows back, though it is in the denominator."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        plain = layer.but(given=dict.fromkeys(layer.given))
        return layer.x * (plain.matrix().T @ (R / self.stabilizer(layer.linear_outputs[0])))


@mutant("epsilon-outside-the-root")
class LayerNormRuleEpsOutside(LayerNormRule):
    """The deviation of what flows back is that of the input alone: eps is not in it, while it is in the output."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        return layer.x * (layer.but(eps=0.0).matrix().T @ (R / self.stabilizer(layer.linear_outputs[0])))


@mutant()
class LayerNormRuleDeviationDetached(LayerNormRule):
    """The deviation is a constant even where a relevance is differentiated."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        with torch.no_grad():
            frozen = layer.matrix().T @ torch.ones_like(R)
            exact: Any = layer
            scale = exact._scale() if hasattr(exact, "_scale") else frozen  # noqa: SLF001  its own layer
        s = R / self.stabilizer(layer.linear_outputs[0]) * scale.detach()
        centred = exact._centred(s) if hasattr(exact, "_centred") else s  # noqa: SLF001  its own layer
        return layer.x * centred


@mutant()
class LayerNormRuleAnyModule(LayerNormRule):
    """A module that is no normalisation is taken as it is, without a word."""

    def forward(self, module: nn.Module, input: Tensors, output: Tensors) -> None:
        try:
            super().forward(module, input, output)
        except TypeError:
            self.added = None
