"""How inputs, parameters and matrices are split into positive and negative, changed, and put together again."""
# ruff: noqa: D102  a mutant leaves out what it should use, and says so once, in the docstring of its class

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lrp_rules import AlphaBeta, Epsilon, Flat, Gamma, Norm, WSquare, ZPlus
from lrp_rules.layers.known import ConvLayer
from verify.selftests.mutants.registry import entrywise, mutant, negative, positive, propagate, split

if TYPE_CHECKING:
    from torch import Tensor

    from lrp_rules.layers.layer import Layer


@mutant("inputs-unsplit")
class ZPlusInputsUnsplit(ZPlus):
    """Only the weights are clamped, and negative inputs take part as they are (captum's Alpha1_Beta0_Rule)."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        return propagate([(layer.matrix(positive), layer.x)], positive(layer.bias), R, self.stabilizer)


@mutant("positive-inputs-only")
class ZPlusNegativeInputsDropped(ZPlus):
    """The half of the negative inputs is not there, as in a network of ReLUs."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        return propagate([(layer.matrix(positive), positive(layer.x))], positive(layer.bias), R, self.stabilizer)


@mutant("separate-denominators")
class ZPlusSeparateDenominators(ZPlus):
    """Each half is divided by a denominator of its own."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        x, b = layer.x, positive(layer.bias)
        first = propagate([(layer.matrix(positive), positive(x))], b, R, self.stabilizer)
        return first + propagate([(layer.matrix(negative), negative(x))], 0.0, R, self.stabilizer)


@mutant("half-denominator")
class ZPlusDenominatorOfFirstHalf(ZPlus):
    """The denominator of the half of the positive inputs serves both."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        x, plus, minus = layer.x, layer.matrix(positive), layer.matrix(negative)
        s = R / self.stabilizer(plus @ positive(x) + positive(layer.bias))
        return positive(x) * (plus.T @ s) + negative(x) * (minus.T @ s)


@mutant()
class ZPlusSignsCrossed(ZPlus):
    """Positive inputs meet negative weights, and negative inputs positive ones."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        terms = split(layer.x, layer.matrix(negative), layer.matrix(positive))
        return propagate(terms, positive(layer.bias), R, self.stabilizer)


@mutant()
class ZPlusOneNumerator(ZPlus):
    """The gradient goes back through A(w+) alone, and is weighed by all of x."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        x, plus, minus = layer.x, layer.matrix(positive), layer.matrix(negative)
        s = R / self.stabilizer(plus @ positive(x) + minus @ negative(x) + positive(layer.bias))
        return x * (plus.T @ s)


@mutant("magnitudes")
class ZPlusMagnitudes(ZPlus):
    """The magnitudes of weights and inputs take part, so that negative contributions count as positive ones."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        return propagate([(layer.matrix(torch.abs), layer.x.abs())], positive(layer.bias), R, self.stabilizer)


@mutant("output-clamped")
class ZPlusOutputClamped(ZPlus):
    """The sum of all contributions is clamped, and not each of them."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        A = layer.matrix()
        s = R / self.stabilizer(positive(A @ layer.x) + positive(layer.bias))
        return layer.x * (A.T @ s)


@mutant("matrix-clamped")
class ZPlusMatrixClamped(ZPlus):
    """A(w)+ in the place of A(w+): another thing where padding makes several parameters meet in one entry."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        if not isinstance(layer, ConvLayer) or not layer.x.numel():
            return super().relevance(layer, R)
        terms = split(layer.x, entrywise(layer, positive), entrywise(layer, negative))
        return propagate(terms, positive(layer.bias), R, self.stabilizer)


@mutant("inputs-unsplit")
class AlphaBetaInputsUnsplit(AlphaBeta):
    """Only weights and bias are clamped, as is enough for inputs that are not negative."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        x, b = layer.x, layer.bias
        r = self.alpha * propagate([(layer.matrix(positive), x)], positive(b), R, self.stabilizer)
        if self.beta == 0:
            return r
        return r - self.beta * propagate([(layer.matrix(negative), x)], negative(b), R, self.stabilizer)


class _Halves(AlphaBeta):
    """AlphaBeta with its two halves, to be put together wrongly."""

    def halves(self, layer: Layer, R: Tensor) -> tuple[Tensor, Tensor]:
        """Return the halves without alpha and beta."""
        plus, minus, b = layer.matrix(positive), layer.matrix(negative), layer.bias
        first = propagate(split(layer.x, plus, minus), positive(b), R, self.stabilizer)
        return first, propagate(split(layer.x, minus, plus), negative(b), R, self.stabilizer)


@mutant("alpha-beta-swapped")
class AlphaBetaSwapped(_Halves):
    """Beta scales the positive half, and alpha the negative one."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        first, second = self.halves(layer, R)
        return self.beta * first - self.alpha * second


@mutant("beta-added")
class AlphaBetaBetaAdded(_Halves):
    """The negative half is added: alpha + beta = 1 is the other way to write the rule, with a beta below 0."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        first, second = self.halves(layer, R)
        return self.alpha * first + self.beta * second if self.beta else self.alpha * first


@mutant()
class AlphaBetaOnlyAlphaScales(_Halves):
    """The negative half is subtracted as it is, whatever beta is above 0."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        first, second = self.halves(layer, R)
        return self.alpha * first - second if self.beta else self.alpha * first


@mutant()
class AlphaBetaOnlyBetaScales(_Halves):
    """The positive half is taken as it is, whatever alpha is."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        first, second = self.halves(layer, R)
        return first - self.beta * second if self.beta else first


@mutant()
class AlphaBetaSecondHalfAtZero(_Halves):
    """With beta = 0, the second half is evaluated all the same: 0 * inf where nothing contributes to it."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        first, second = self.halves(layer, R)
        return self.alpha * first - self.beta * second


@mutant("one-denominator")
class AlphaBetaOneDenominator(AlphaBeta):
    """Both halves are divided by the output."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        plus, minus, x = layer.matrix(positive), layer.matrix(negative), layer.x
        s = R / self.stabilizer(layer.matrix() @ x + layer.bias)
        first = positive(x) * (plus.T @ s) + negative(x) * (minus.T @ s)
        return self.alpha * first - self.beta * (positive(x) * (minus.T @ s) + negative(x) * (plus.T @ s))


@mutant("inputs-unsplit")
class GammaInputsUnsplit(Gamma):
    """The signs of inputs are not looked at."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        x, z, g, b = layer.x, layer.z, self.gamma, layer.bias
        plus, minus = layer.matrix(lambda w: w + g * positive(w)), layer.matrix(lambda w: w + g * negative(w))
        above = propagate([(plus, x)], b + g * positive(b), R * (z > 0), self.stabilizer)
        return above + propagate([(minus, x)], b + g * negative(b), R * (z < 0), self.stabilizer)


@mutant("gamma-squared-weight")
class GammaSquaredWeight(Gamma):
    """What is added is gamma times the square of the positive or negative weight (TorchLRP)."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        z, g, b = layer.z, self.gamma, layer.bias
        plus = layer.matrix(lambda w: w + g * positive(w).square())
        minus = layer.matrix(lambda w: w - g * negative(w).square())
        above = propagate(split(layer.x, plus, minus), b + g * positive(b), R * (z > 0), self.stabilizer)
        return above + propagate(split(layer.x, minus, plus), b + g * negative(b), R * (z < 0), self.stabilizer)


@mutant("gamma-replaces-weight")
class GammaWeightReplaced(Gamma):
    """The scaled positive part stands alone, and the weight itself is not added."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        z, g, b = layer.z, self.gamma, layer.bias
        plus, minus = layer.matrix(lambda w: g * positive(w)), layer.matrix(lambda w: g * negative(w))
        above = propagate(split(layer.x, plus, minus), b + g * positive(b), R * (z > 0), self.stabilizer)
        return above + propagate(split(layer.x, minus, plus), b + g * negative(b), R * (z < 0), self.stabilizer)


@mutant("gamma-weights-swapped")
class GammaWeightsSwapped(Gamma):
    """Negative weights are favoured where z > 0, and positive ones where z < 0."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        z, g, b = layer.z, self.gamma, layer.bias
        plus, minus = layer.matrix(lambda w: w + g * positive(w)), layer.matrix(lambda w: w + g * negative(w))
        above = propagate(split(layer.x, minus, plus), b + g * positive(b), R * (z > 0), self.stabilizer)
        return above + propagate(split(layer.x, plus, minus), b + g * negative(b), R * (z < 0), self.stabilizer)


@mutant()
class GammaFixed(Gamma):
    """Gamma is 0.25 whatever number is given."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        return Gamma(0.25, self.stabilizer, self.zero_params).relevance(layer, R)


@mutant("weights-magnitude")
class WSquareMagnitudes(WSquare):
    """The magnitude of the weights stands in the place of their square."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        ones = layer.at(layer.ones())
        return propagate([(ones.matrix(torch.abs), ones.x)], ones.bias.square(), R, self.stabilizer)


@mutant("weights-unsquared")
class WSquareUnsquared(WSquare):
    """The weights are not squared, so that they cancel."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        ones = layer.at(layer.ones())
        return propagate([(ones.matrix(), ones.x)], ones.bias.square(), R, self.stabilizer)


@mutant("at-input")
class WSquareTimesInput(WSquare):
    """The squares are weighed by the input."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        return propagate([(layer.matrix(torch.square), layer.x)], layer.bias.square(), R, self.stabilizer)


@mutant("zero-weights-left-out")
class FlatZeroWeightsLeftOut(Flat):
    """Weights of exactly 0 stay 0, and all others become 1."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        ones = layer.at(layer.ones())
        return propagate([(ones.matrix(lambda w: (w != 0).to(w)), ones.x)], 0.0, R, self.stabilizer)


@mutant("weights-signed")
class FlatWeightsSigned(Flat):
    """The weights become their signs."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        ones = layer.at(layer.ones())
        return propagate([(ones.matrix(torch.sign), ones.x)], 0.0, R, self.stabilizer)


@mutant("at-input")
class FlatAtInput(Flat):
    """The ones are weighed by the input."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        return propagate([(layer.matrix(torch.ones_like), layer.x)], 0.0, R, self.stabilizer)


@mutant("input-not-multiplied")
class NormInputNotMultiplied(Norm):
    """What comes back through the Jacobian is the answer, and is not weighed by the input."""

    def relevances(self, layer: Layer, R: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return layer.pull(tuple(R_k / self.stabilizer(d) for R_k, d in zip(R, layer.linear_outputs, strict=True)))


@mutant("input-magnitude")
class EpsilonInputMagnitude(Epsilon):
    """The magnitude of the input weighs what comes back."""

    def relevances(self, layer: Layer, R: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(
            r * (1 - 2 * (x < 0).to(r)) for r, x in zip(super().relevances(layer, R), layer.inputs, strict=True)
        )


@mutant()
class EpsilonStabilizedTwice(Epsilon):
    """The denominator is stabilized when it is made, and once more when it divides."""

    def relevances(self, layer: Layer, R: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        s = tuple(R_k / self.stabilizer(self.stabilizer(d)) for R_k, d in zip(R, layer.linear_outputs, strict=True))
        return tuple(x * c for x, c in zip(layer.inputs, layer.pull(s), strict=True))
