"""What keeps a denominator away from zero: the sign, the sign of zero, whose number is used, and Stabilizer itself."""
# ruff: noqa: D102  a mutant leaves out what it should use, and says so once, in the docstring of its class

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Self

import torch

from lrp_rules import AlphaBeta, Epsilon, Flat, Gamma, Norm, Stabilizer, WSquare, ZBox, ZPlus
from verify.selftests.mutants.registry import Stabilized, mutant, negative, positive, propagate, signed, split

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from lrp_rules.layers.layer import Layer


@mutant("epsilon-unsigned")
class EpsilonUnsigned(Stabilized, Epsilon):
    """Epsilon is added without the sign of the denominator: a pole at z = -epsilon (LXT)."""

    @staticmethod
    def stabilize(d: Tensor, epsilon: float) -> Tensor:
        return d + epsilon


@mutant("epsilon-subtracted")
class EpsilonSubtracted(Stabilized, Epsilon):
    """Epsilon moves the denominator towards zero and across it."""

    @staticmethod
    def stabilize(d: Tensor, epsilon: float) -> Tensor:
        return signed(d, -epsilon)


@mutant("zero-unstabilized")
class EpsilonZeroSignZero(Stabilized, Epsilon):
    """The sign is torch.sign, which is 0 at 0, so that a denominator of 0 stays 0."""

    @staticmethod
    def stabilize(d: Tensor, epsilon: float) -> Tensor:
        return d + epsilon * d.sign()


@mutant("zero-negative")
class ZPlusZeroSignNegative(Stabilized, ZPlus):
    """The sign of 0 is -1 (TorchLRP)."""

    @staticmethod
    def stabilize(d: Tensor, epsilon: float) -> Tensor:
        return torch.where(d > 0, d + epsilon, d - epsilon)


@mutant("epsilon-clip")
class NormSmallOnesReplaced(Stabilized, Norm):
    """Denominators below epsilon become epsilon, and all others stay as they are."""

    @staticmethod
    def stabilize(d: Tensor, epsilon: float) -> Tensor:
        return torch.where(d < 0, d.clamp(max=-epsilon), d.clamp(min=epsilon))


@mutant("epsilon-only-at-zero")
class FlatOnlyZeroReplaced(Stabilized, Flat):
    """Only denominators of exactly 0 are stabilized."""

    @staticmethod
    def stabilize(d: Tensor, epsilon: float) -> Tensor:
        return torch.where(d == 0, d + epsilon, d)


@mutant()
class GammaStabilizerHardCoded(Stabilized, Gamma):
    """The stabilizer is 1e-6 whatever number is given."""

    @staticmethod
    def stabilize(d: Tensor, epsilon: float) -> Tensor:  # noqa: ARG004
        return signed(d, 1e-6)


@mutant()
class NormStabilizerHardCoded(Norm):
    """The argument is taken and not used (BasicHook of zennit)."""

    def __init__(self, stabilizer: float | Callable[[Tensor], Tensor] = 1e-6) -> None:
        super().__init__(stabilizer)
        self.stabilizer = Stabilizer(1e-6)


@mutant("epsilon-relative")
class WSquareStabilizerRelative(Stabilized, WSquare):
    """Epsilon is multiplied by the largest denominator."""

    @staticmethod
    def stabilize(d: Tensor, epsilon: float) -> Tensor:
        return signed(d, epsilon * d.abs().amax() if d.numel() else epsilon)


@mutant("epsilon-relative")
class EpsilonRelative(Stabilized, Epsilon):
    """Epsilon is a share of each denominator."""

    @staticmethod
    def stabilize(d: Tensor, epsilon: float) -> Tensor:
        return torch.where(d == 0, d + epsilon, d * (1 + epsilon))


@mutant("epsilon-squared")
class AlphaBetaEpsilonSquared(Stabilized, AlphaBeta):
    """The magnitude is stabilized as the root of d^2 + epsilon^2."""

    @staticmethod
    def stabilize(d: Tensor, epsilon: float) -> Tensor:
        return torch.where(d < 0, -1.0, 1.0) * (d.square() + epsilon**2).sqrt()


@mutant()
class ZBoxCallableIgnored(ZBox):
    """A callable is replaced by the default number."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        rule = copy.copy(self)
        if not isinstance(self.stabilizer, Stabilizer):
            rule.stabilizer = Stabilizer()
        return super(ZBoxCallableIgnored, rule).relevance(layer, R)


@mutant()
class EpsilonCallableAdded(Epsilon):
    """What a callable returns is added to the denominator, and not put in its place."""

    def relevances(self, layer: Layer, R: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        rule, given = copy.copy(self), self.stabilizer
        if not isinstance(given, Stabilizer):
            rule.stabilizer = lambda d: d + given(d)
        return super(EpsilonCallableAdded, rule).relevances(layer, R)


class _Halves(AlphaBeta):
    """AlphaBeta with another stabilizer in its second half."""

    def second(self, d: Tensor) -> Tensor:
        raise NotImplementedError

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        plus, minus, b = layer.matrix(positive), layer.matrix(negative), layer.bias
        r = self.alpha * propagate(split(layer.x, plus, minus), positive(b), R, self.stabilizer)
        if self.beta == 0:
            return r
        return r - self.beta * propagate(split(layer.x, minus, plus), negative(b), R, self.second)


@mutant("epsilon-unsigned")
class AlphaBetaSecondHalfUnsigned(_Halves):
    """The stabilizer of the negative half has the sign of the positive one (one of the layers of lrp_toolbox)."""

    def second(self, d: Tensor) -> Tensor:
        return d + self.stabilizer.epsilon if isinstance(self.stabilizer, Stabilizer) else self.stabilizer(d)


@mutant()
class AlphaBetaSecondHalfUnstabilized(_Halves):
    """Only the positive half is stabilized: 0 / 0 where nothing is negative (NaN, as lrp_toolbox has it)."""

    def second(self, d: Tensor) -> Tensor:
        return d


@mutant()
class AlphaBetaSecondHalfDefault(_Halves):
    """The negative half has the default stabilizer."""

    def second(self, d: Tensor) -> Tensor:
        return signed(d, 1e-6)


@mutant()
class StabilizerClipAdds(Stabilizer):
    """With clip, epsilon is added all the same."""

    def __call__(self, denominator: Tensor) -> Tensor:
        return Stabilizer(self.epsilon, norm_scale=self.norm_scale, dim=self.dim)(denominator)


@mutant("zero-negative")
class StabilizerZeroByBit(Stabilizer):
    """The sign is copied from the sign bit, which a zero has, too."""

    def __call__(self, denominator: Tensor) -> Tensor:
        magnitude = super().__call__(denominator.abs())
        return torch.copysign(magnitude, denominator)


@mutant()
class StabilizerClipWithoutSign(Stabilizer):
    """With clip, a negative denominator above -epsilon becomes +epsilon."""

    def __call__(self, denominator: Tensor) -> Tensor:
        found = super().__call__(denominator)
        return torch.where(denominator.abs() < self.epsilon, found.abs(), found) if self.clip else found


@mutant()
class StabilizerNormIgnored(Stabilizer):
    """The norm is not looked at."""

    def __call__(self, denominator: Tensor) -> Tensor:
        return Stabilizer(self.epsilon, clip=self.clip)(denominator)


@mutant()
class StabilizerNormOverBatch(Stabilizer):
    """By default, the mean goes over the batch, too, so that samples depend on each other."""

    def __call__(self, denominator: Tensor) -> Tensor:
        dim = tuple(range(denominator.ndim)) if self.dim is None else self.dim
        return Stabilizer(self.epsilon, self.clip, self.norm_scale, dim)(denominator)


@mutant()
class StabilizerDimIgnored(Stabilizer):
    """The mean goes over all but the batch, whatever dim says."""

    def __call__(self, denominator: Tensor) -> Tensor:
        return Stabilizer(self.epsilon, self.clip, self.norm_scale)(denominator)


@mutant()
class StabilizerNormIsNoMean(Stabilizer):
    """Epsilon is multiplied by the norm: the root of the sum of squares, not of their mean."""

    def __call__(self, denominator: Tensor) -> Tensor:
        found = super().__call__(denominator)
        n = (
            denominator[:1].numel()
            if self.dim is None
            else denominator.shape[self.dim]
            if isinstance(self.dim, int)
            else 1
        )
        return denominator + (found - denominator) * n**0.5 if self.norm_scale else found


@mutant()
class StabilizerEnsureWraps(Stabilizer):
    """A callable given to ensure is wrapped, and stabilized once more."""

    @classmethod
    def ensure(cls, value: Any) -> Any:
        if callable(value):
            return lambda d: cls()(value(d))
        return super().ensure(value)


@mutant()
class StabilizerNegativeAccepted(Stabilizer):
    """A negative epsilon is taken."""

    def __post_init__(self) -> None:
        if not isinstance(self.epsilon, str):
            return
        super().__post_init__()


@mutant()
class StabilizerEnsureTakesText(Stabilizer):
    """Text that spells a number is turned into one by ensure."""

    @classmethod
    def ensure(cls, value: Any) -> Callable[[Tensor], Tensor] | Self:
        return super().ensure(float(value) if isinstance(value, str) else value)
