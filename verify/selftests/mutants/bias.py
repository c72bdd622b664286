"""Where the bias goes: forgotten, counted twice, in the wrong half, changed or not changed."""
# ruff: noqa: D102  a mutant leaves out what it should use, and says so once, in the docstring of its class

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch

from lrp_rules import AlphaBeta, Epsilon, Flat, Gamma, Norm, WSquare, ZBox, ZPlus
from verify.selftests.mutants.registry import mutant, negative, positive, propagate, split, with_bias, without_bias

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from lrp_rules.layers.layer import Layer


@mutant("bias-dropped")
class EpsilonWithoutBias(Epsilon):
    """The denominator is A x, so that nothing is left for the bias."""

    def relevances(self, layer: Layer, R: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return super().relevances(with_bias(layer, torch.zeros_like), R)


@mutant("bias-doubled")
class EpsilonBiasTwice(Epsilon):
    """The layer is run with its bias, and the bias is added to what it gives."""

    def relevances(self, layer: Layer, R: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return super().relevances(with_bias(layer, lambda b: 2 * b), R)


@mutant("bias-shared")
class EpsilonBiasShared(Epsilon):
    """What the bias takes is handed out to the inputs in equal parts (the bias factor of LRP_for_LSTM)."""

    def relevances(self, layer: Layer, R: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        r, *others = super().relevances(layer, R)
        if others or layer.given.get("bias") is None or not r.numel():
            return (r, *others)
        taken = (layer.bias * R[0] / self.stabilizer(layer.linear_outputs[0])).flatten(1).sum(1)
        return (r + taken.view(-1, *(1,) * (r.ndim - 1)) / r[0].numel() if layer.batched and r.ndim > 1 else r,)


@mutant("bias-dropped")
class NormWithoutBias(Norm):
    """It normalises by what the inputs contribute, and not by the output."""

    def relevances(self, layer: Layer, R: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return super().relevances(with_bias(layer, torch.zeros_like), R)


@mutant("bias-dropped")
class ZPlusWithoutBias(ZPlus):
    """The bias is left out of the denominator."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        return super().relevance(without_bias(layer), R)


@mutant("bias-doubled")
class ZPlusBiasInBothHalves(ZPlus):
    """The half of x+ and the half of x- are each run with b+, so that it enters twice."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        return super().relevance(with_bias(layer, lambda b: 2 * b), R)


@mutant("bias-unclamped")
class ZPlusBiasUnclamped(ZPlus):
    """Only the weights are clamped, and b stands in the place of b+ (captum's Alpha1_Beta0_Rule)."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        terms = split(layer.x, layer.matrix(positive), layer.matrix(negative))
        return propagate(terms, layer.bias, R, self.stabilizer)


@mutant("bias-both-signs")
class ZPlusBiasOfBothSigns(ZPlus):
    """The half of x+ brings b+ and the half of x- brings b-: together they are b."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        terms = split(layer.x, layer.matrix(positive), layer.matrix(negative))
        return propagate(terms, positive(layer.bias) - negative(layer.bias), R, self.stabilizer)


class _BiasOfHalves(AlphaBeta):
    """AlphaBeta with other biases in its halves."""

    first: Callable[[Tensor], Tensor] = staticmethod(positive)
    second: Callable[[Tensor], Tensor] = staticmethod(negative)

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        plus, minus, b = layer.matrix(positive), layer.matrix(negative), layer.bias
        r = self.alpha * propagate(split(layer.x, plus, minus), self.first(b), R, self.stabilizer)
        if self.beta == 0:
            return r
        return r - self.beta * propagate(split(layer.x, minus, plus), self.second(b), R, self.stabilizer)


@mutant("bias-dropped")
class AlphaBetaWithoutBias(_BiasOfHalves):
    """Neither half has a bias."""

    first = second = staticmethod(torch.zeros_like)


@mutant("bias-in-both-halves")
class AlphaBetaBiasInBothHalves(_BiasOfHalves):
    """Each half has the whole bias, b+ and b- (innvestigate)."""

    first = second = staticmethod(torch.positive)


@mutant("bias-halves-swapped")
class AlphaBetaBiasSwapped(_BiasOfHalves):
    """The first half has b-, the second b+."""

    first, second = staticmethod(negative), staticmethod(positive)


@mutant()
class AlphaBetaBiasOnlyInFirst(_BiasOfHalves):
    """The second half has no bias."""

    second = staticmethod(torch.zeros_like)


@mutant()
class AlphaBetaBiasTwiceInSecond(_BiasOfHalves):
    """The second half is put together from two runs of the layer, each with b-."""

    second = staticmethod(lambda b: 2 * negative(b))


@mutant()
class AlphaBetaPositiveBiasInSecond(_BiasOfHalves):
    """The second half has b+ besides b-."""

    second = staticmethod(torch.positive)


class _BiasOfGamma(Gamma):
    """Gamma with other biases above and below zero."""

    @staticmethod
    def above(b: Tensor, g: float) -> Tensor:
        return b + g * positive(b)

    @staticmethod
    def below(b: Tensor, g: float) -> Tensor:
        return b + g * negative(b)

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        z, g, b = layer.z, self.gamma, layer.bias
        plus, minus = layer.matrix(lambda w: w + g * positive(w)), layer.matrix(lambda w: w + g * negative(w))
        above = propagate(split(layer.x, plus, minus), self.above(b, g), R * (z > 0), self.stabilizer)
        below = propagate(split(layer.x, minus, plus), self.below(b, g), R * (z < 0), self.stabilizer)
        return above + below


@mutant("bias-dropped")
class GammaWithoutBias(_BiasOfGamma):
    """The bias is left out of both denominators, though not of the gate."""

    @staticmethod
    def above(b: Tensor, g: float) -> Tensor:  # noqa: ARG004
        return 0 * b

    below = above


@mutant("bias-unscaled")
class GammaBiasUnscaled(_BiasOfGamma):
    """Gamma is applied to the weights alone, so that b stands where b + g b+ or b + g b- should."""

    @staticmethod
    def above(b: Tensor, g: float) -> Tensor:  # noqa: ARG004
        return b

    below = above


@mutant()
class GammaBiasUnscaledBelow(_BiasOfGamma):
    """Where z < 0, gamma is not applied to the bias."""

    @staticmethod
    def below(b: Tensor, g: float) -> Tensor:  # noqa: ARG004
        return b


@mutant("bias-scaled-whole")
class GammaBiasScaledWhole(_BiasOfGamma):
    """The whole bias is scaled, and not its positive or negative part: (1 + g) b."""

    @staticmethod
    def above(b: Tensor, g: float) -> Tensor:
        return b + g * b

    below = above


@mutant("bias-halves-swapped")
class GammaBiasSwapped(_BiasOfGamma):
    """Where z > 0, the negative part of the bias is scaled, and where z < 0 the positive."""

    above, below = staticmethod(_BiasOfGamma.below), staticmethod(_BiasOfGamma.above)


@mutant("bias-doubled")
class GammaBiasTwice(_BiasOfGamma):
    """The half of x+ and the half of x- are each run with the bias, so that it enters twice."""

    @staticmethod
    def above(b: Tensor, g: float) -> Tensor:
        return 2 * (b + g * positive(b))

    @staticmethod
    def below(b: Tensor, g: float) -> Tensor:
        return 2 * (b + g * negative(b))


@mutant("bias-kept")
class ZBoxBiasKept(ZBox):
    """The layer of x is run with its bias and those of the bounds without, so that it does not cancel."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        rule, given, b = copy.copy(self), self.stabilizer, layer.bias
        rule.stabilizer = lambda d: given(d + b)
        return super(ZBoxBiasKept, rule).relevance(layer, R)


@mutant("bias-dropped")
class WSquareWithoutBias(WSquare):
    """b^2 is left out."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        return super().relevance(without_bias(layer), R)


@mutant("bias-unsquared")
class WSquareBiasUnsquared(WSquare):
    """The weights are squared, and b is added as it is."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        ones = layer.at(layer.ones())
        return propagate([(ones.matrix(torch.square), ones.x)], ones.bias, R, self.stabilizer)


@mutant("bias-kept")
class FlatBiasKept(Flat):
    """The weights become ones, and the bias stays."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        ones = layer.at(layer.ones())
        return propagate([(ones.matrix(torch.ones_like), ones.x)], ones.bias, R, self.stabilizer)


@mutant("bias-one")
class FlatBiasOne(Flat):
    """All parameters become ones, the bias among them."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        one = 0.0 if layer.given.get("bias") is None else 1.0
        ones = layer.at(layer.ones())
        return propagate([(ones.matrix(torch.ones_like), ones.x)], one, R, self.stabilizer)


@mutant("bias-both-signs")
class EpsilonBiasMagnitude(Epsilon):
    """The magnitude of the bias is added."""

    def relevances(self, layer: Layer, R: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return super().relevances(with_bias(layer, torch.abs), R)
