"""Bad input: what is accepted that should be refused, refused that should be accepted, or refused in wrong words."""
# ruff: noqa: D102  a mutant leaves out what it should use, and says so once, in the docstring of its class

from __future__ import annotations

from functools import partial
from math import inf, isfinite
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lrp_rules import (
    AlphaBeta,
    Epsilon,
    Flat,
    Gamma,
    Norm,
    ReLUBetaSmooth,
    WSquare,
    ZBox,
    ZPlus,
)
from verify.selftests.mutants.registry import mutant, signed

if TYPE_CHECKING:
    from collections.abc import Callable

    from lrp_rules.layers.layer import Layer

    Names = str | list[str] | None
    Stabilizing = float | Callable[[Tensor], Tensor]


class _Checked(AlphaBeta):
    """AlphaBeta with a check of its own."""

    def __init__(
        self, alpha: float = 2.0, beta: float = 1.0, stabilizer: Stabilizing = 1e-6, zero_params: Names = None
    ) -> None:
        self.check(alpha, beta)
        super().__init__(2.0, 1.0, stabilizer, zero_params)
        self.alpha, self.beta = alpha, beta

    @staticmethod
    def check(alpha: float, beta: float) -> None:
        raise NotImplementedError


def _refuse(*, wrong: bool, alpha: float, beta: float, kind: type[Exception] = ValueError) -> None:
    if wrong:
        msg = f"alpha is {alpha!r} and beta is {beta!r}; expected alpha - beta = 1"
        raise kind(msg)


@mutant()
class AlphaBetaAnythingAccepted(_Checked):
    """Alpha and beta are not looked at, so that (1, 1) is taken."""

    @staticmethod
    def check(alpha: float, beta: float) -> None:
        pass


@mutant()
class AlphaBetaExactDifference(_Checked):
    """The difference must be 1 to the last bit, which refuses (1.4, 0.4) (zennit)."""

    @staticmethod
    def check(alpha: float, beta: float) -> None:
        _refuse(wrong=alpha < 0 or beta < 0 or alpha - beta != 1 or not isfinite(alpha), alpha=alpha, beta=beta)


@mutant()
class AlphaBetaLooseDifference(_Checked):
    """A difference within 10^-6 of 1 is taken for 1."""

    @staticmethod
    def check(alpha: float, beta: float) -> None:
        _refuse(wrong=alpha < 0 or beta < 0 or not abs(alpha - beta - 1) < 1e-6, alpha=alpha, beta=beta)


@mutant()
class AlphaBetaSumMustBeOne(_Checked):
    """The sum must be 1, as in the other way to write the rule."""

    @staticmethod
    def check(alpha: float, beta: float) -> None:
        _refuse(wrong=abs(alpha + beta - 1) > 1e-9 and abs(alpha - beta - 1) > 1e-9, alpha=alpha, beta=beta)


@mutant()
class AlphaBetaNegativeAccepted(_Checked):
    """A beta below 0 is taken, as long as the difference is 1."""

    @staticmethod
    def check(alpha: float, beta: float) -> None:
        _refuse(wrong=not abs(alpha - beta - 1) <= 4e-16 * max(1, abs(alpha)), alpha=alpha, beta=beta)


@mutant()
class AlphaBetaNanAccepted(_Checked):
    """The comparison is written so that NaN passes: abs(alpha - beta - 1) > tolerance is false for it."""

    @staticmethod
    def check(alpha: float, beta: float) -> None:
        wrong = alpha < 0 or beta < 0 or inf in {alpha, beta} or abs(alpha - beta - 1) > 4e-16 * max(1, alpha)
        _refuse(wrong=wrong, alpha=alpha, beta=beta)


@mutant()
class AlphaBetaAssertionError(_Checked):
    """What is wrong with alpha and beta is asserted, and not raised as a ValueError."""

    @staticmethod
    def check(alpha: float, beta: float) -> None:
        wrong = not 0 <= alpha < inf or not 0 <= beta < inf or not abs(alpha - beta - 1) <= 4e-16 * max(1, alpha)
        _refuse(wrong=wrong, alpha=alpha, beta=beta, kind=AssertionError)


@mutant()
class AlphaBetaMessageWithoutNumbers(AlphaBeta):
    """The message does not say which numbers were given."""

    def __init__(
        self, alpha: float = 2.0, beta: float = 1.0, stabilizer: Stabilizing = 1e-6, zero_params: Names = None
    ) -> None:
        try:
            super().__init__(alpha, beta, stabilizer, zero_params)
        except ValueError:
            msg = "alpha and beta must be consistent"
            raise ValueError(msg) from None


@mutant()
class AlphaBetaIntegersRefused(AlphaBeta):
    """An int is not a float, and is refused."""

    def __init__(
        self, alpha: float = 2.0, beta: float = 1.0, stabilizer: Stabilizing = 1e-6, zero_params: Names = None
    ) -> None:
        if type(alpha) is not float or type(beta) is not float:
            msg = f"alpha is {alpha!r} and beta is {beta!r}; expected floats"
            raise ValueError(msg)
        super().__init__(alpha, beta, stabilizer, zero_params)


@mutant()
class EpsilonTextAccepted(Epsilon):
    """Text that spells a number is turned into one."""

    def __init__(self, epsilon: Stabilizing = 1e-6, zero_params: Names = None) -> None:
        super().__init__(float(epsilon) if isinstance(epsilon, str) else epsilon, zero_params)


@mutant()
class ZPlusNoneIsDefault(ZPlus):
    """None stands for the default stabilizer."""

    def __init__(self, stabilizer: Stabilizing = 1e-6, zero_params: Names = None) -> None:
        super().__init__(1e-6 if stabilizer is None else stabilizer, zero_params)


@mutant()
class WSquareStabilizerValueError(WSquare):
    """A stabilizer of a wrong type raises ValueError."""

    def __init__(self, stabilizer: Stabilizing = 1e-6, zero_params: Names = None) -> None:
        try:
            super().__init__(stabilizer, zero_params)
        except TypeError as error:
            raise ValueError(*error.args) from None


@mutant()
class FlatStabilizerUnchecked(Flat):
    """A stabilizer is added as it is, whatever it is: a tensor or a list fails late or broadcasts."""

    def __init__(self, stabilizer: Any = 1e-6, zero_params: Names = None) -> None:
        super().__init__(1e-6, zero_params)
        self.stabilizer = stabilizer if callable(stabilizer) else partial(signed, epsilon=stabilizer)


@mutant()
class NormMessageWithoutValue(Norm):
    """The message of the TypeError does not say what was given."""

    def __init__(self, stabilizer: Stabilizing = 1e-6) -> None:
        try:
            super().__init__(stabilizer)
        except TypeError:
            msg = "expected a number or a callable"
            raise TypeError(msg) from None


@mutant()
class NormFloatsAlone(Norm):
    """Only a Python float is a number: integers and those of NumPy are refused."""

    def __init__(self, stabilizer: Stabilizing = 1e-6) -> None:
        if not callable(stabilizer) and type(stabilizer) is not float:
            msg = f"the stabilizer is {stabilizer!r}; expected a float or a callable"
            raise TypeError(msg)
        super().__init__(stabilizer)


@mutant()
class ZBoxNegativeStabilizerAccepted(ZBox):
    """A negative stabilizer is taken, and moves denominators towards zero."""

    def __init__(
        self,
        low: float | Tensor,
        high: float | Tensor,
        stabilizer: Stabilizing = 1e-6,
        zero_params: Names = None,
    ) -> None:
        super().__init__(low, high, stabilizer if callable(stabilizer) else abs(stabilizer), zero_params)
        if isinstance(stabilizer, float):
            self.stabilizer = partial(signed, epsilon=stabilizer)


class _Unlimited(Gamma):
    """Gamma with a check of its own."""

    def __init__(self, gamma: float = 0.25, stabilizer: Stabilizing = 1e-6, zero_params: Names = None) -> None:
        self.check(gamma)
        super().__init__(0.25, stabilizer, zero_params)
        self.gamma = gamma

    @staticmethod
    def check(gamma: float) -> None:
        raise NotImplementedError


@mutant()
class GammaNegativeAccepted(_Unlimited):
    """A negative gamma is taken."""

    @staticmethod
    def check(gamma: float) -> None:
        if not isfinite(gamma):
            msg = f"gamma is {gamma!r}"
            raise ValueError(msg)


@mutant()
class GammaNanAccepted(_Unlimited):
    """The comparison is written so that NaN passes."""

    @staticmethod
    def check(gamma: float) -> None:
        if gamma < 0 or gamma == inf:
            msg = f"gamma is {gamma!r}"
            raise ValueError(msg)


@mutant()
class GammaZeroRefused(_Unlimited):
    """Gamma must be above 0."""

    @staticmethod
    def check(gamma: float) -> None:
        if not 0 < gamma < inf:
            msg = f"gamma is {gamma!r}"
            raise ValueError(msg)


@mutant()
class ReLUBetaSmoothZeroAccepted(ReLUBetaSmooth):
    """A beta of 0 is taken, with which the rule is half of the relevance everywhere."""

    def __init__(self, beta_smooth: float = 10.0) -> None:
        super().__init__(beta_smooth or 10.0)
        self.beta_smooth = beta_smooth


@mutant()
class ZBoxOrderUnchecked(ZBox):
    """A low bound above the high one is taken."""

    @staticmethod
    def _check_order(low: Tensor, high: Tensor) -> None:
        pass


@mutant()
class ZBoxOrderOfNumbersAlone(ZBox):
    """Only bounds that are numbers are compared."""

    @staticmethod
    def _check_order(low: Tensor, high: Tensor) -> None:
        if low.ndim == high.ndim == 0:
            ZBox._check_order(low, high)  # noqa: SLF001  what is replaced


@mutant()
class ZBoxOrderOnTheAverage(ZBox):
    """The means of the bounds are compared, so that one entry may be the wrong way round."""

    @staticmethod
    def _check_order(low: Tensor, high: Tensor) -> None:
        ZBox._check_order(low.double().mean(), high.double().mean())  # noqa: SLF001  what is replaced


@mutant()
class ZBoxShapeForced(ZBox):
    """A bound that does not broadcast is repeated and cut until it does: a wrong number, and no error."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        bounds = {name: getattr(self, name) for name in ("low", "high")}
        for name, bound in bounds.items():
            last = layer.x.shape[-1]
            if bound.ndim == layer.x.ndim and bound.shape[-1] not in {1, last}:
                bounds[name] = bound[..., :last]
        return ZBox(**bounds, stabilizer=self.stabilizer, zero_params=self.zero_params).relevance(layer, R)


@mutant()
class ZBoxShapeRuntimeError(ZBox):
    """A bound that does not broadcast raises what torch raises, which names neither bound nor input."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        try:
            return super().relevance(layer, R)
        except ValueError:
            torch.broadcast_tensors(self.low.to(layer.x), layer.x)
            torch.broadcast_tensors(self.high.to(layer.x), layer.x)
            raise
