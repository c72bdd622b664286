"""Arguments of rules: zero_params, zero_bias, names, order and defaults."""
# ruff: noqa: D102  a mutant leaves out what it should use, and says so once, in the docstring of its class

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

import lrp_rules
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
from verify.selftests.mutants.registry import Stabilized, mutant, propagate, signed

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from lrp_rules.layers.layer import Layer

    Names = str | list[str] | None
    Stabilizing = float | Callable[[Tensor], Tensor]


@mutant()
class ZPlusZeroParamsSubstring(ZPlus):
    """A parameter is zeroed if its name is found inside of a given one (zennit)."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        names = tuple(name for name in layer.given if any(name in given for given in self.zero_params))
        return super().relevance(replace(layer, zero_params=names), R)


@mutant()
class GammaZeroParamsLetters(Gamma):
    """A string is split into its letters, and names nothing."""

    def __init__(self, gamma: float = 0.25, stabilizer: Stabilizing = 1e-6, zero_params: Names = None) -> None:
        super().__init__(gamma, stabilizer, list(zero_params or ()))


@mutant()
class AlphaBetaZeroParamsIgnored(AlphaBeta):
    """The argument is taken and not used."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        return super().relevance(replace(layer, zero_params=()), R)


@mutant()
class EpsilonZeroParamsBiasAlone(Epsilon):
    """Only the bias can be zeroed."""

    def relevances(self, layer: Layer, R: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        names = tuple(name for name in self.zero_params if name == "bias")
        return super().relevances(replace(layer, zero_params=names), R)


@mutant()
class WSquareZeroParamsFirstAlone(WSquare):
    """Of several names, the first is used."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        return super().relevance(replace(layer, zero_params=self.zero_params[:1]), R)


@mutant()
class ZBoxZeroParamsUnknownRefused(ZBox):
    """A name that the module does not have is an error."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        unknown = set(self.zero_params) - set(layer.given)
        if unknown:
            msg = f"no parameter {sorted(unknown)}"
            raise RuntimeError(msg)
        return super().relevance(layer, R)


@mutant()
class FlatZeroParamsLast(Flat):
    """Parameters are zeroed after they became ones, so that a zeroed weight stays zero."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        ones = layer.at(layer.ones())
        factor = 0.0 if "weight" in self.zero_params else 1.0
        return propagate([(ones.matrix(lambda w: torch.full_like(w, factor)), ones.x)], 0.0, R, self.stabilizer)


@mutant()
class NormZeroesBias(Norm):
    """The bias is zeroed as zero_bias would have it, though Norm takes parameters as they are."""

    def relevances(self, layer: Layer, R: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return super().relevances(replace(layer, zero_params=("bias",)), R)


def _zeroes(zero_params: Names) -> list[str]:
    return lrp_rules.zero_bias(zero_params)


@mutant()
def zero_bias__in_place(zero_params: Names = None) -> list[str]:
    """The list that is given is appended to."""
    if isinstance(zero_params, list):
        if "bias" not in zero_params:
            zero_params.append("bias")
        return list(zero_params)
    return _zeroes(zero_params)


@mutant()
def zero_bias__same_list(zero_params: Names = None) -> list[str]:
    """A list with the bias in it is returned itself, and not a new one."""
    return zero_params if isinstance(zero_params, list) and "bias" in zero_params else _zeroes(zero_params)


@mutant()
def zero_bias__replaces(zero_params: Names = None) -> list[str]:  # noqa: ARG001
    """The bias stands in the place of what is given."""
    return ["bias"]


@mutant()
def zero_bias__twice(zero_params: Names = None) -> list[str]:
    """The bias is appended, also where it is there already."""
    given = [] if zero_params is None else [zero_params] if isinstance(zero_params, str) else zero_params
    return [*given, "bias"]


@mutant()
def zero_bias__substring(zero_params: Names = None) -> list[str]:
    """A string is searched for 'bias', and a name that contains it counts as the bias."""
    return [zero_params] if isinstance(zero_params, str) and "bias" in zero_params else _zeroes(zero_params)


@mutant()
def zero_bias__letters(zero_params: Names = None) -> list[str]:
    """A string is split into its letters."""
    return _zeroes(list(zero_params or ()))


@mutant()
def zero_bias__in_front(zero_params: Names = None) -> list[str]:
    """The bias comes first, in place of last."""
    return ["bias", *(name for name in _zeroes(zero_params) if name != "bias")]


@mutant()
def zero_bias__required(zero_params: Names) -> list[str]:
    """The argument has no default."""
    return _zeroes(zero_params)


@mutant()
class EpsilonDefault(Epsilon):
    """Epsilon is 10^-3 by default."""

    def __init__(self, epsilon: Stabilizing = 1e-3, zero_params: Names = None) -> None:
        super().__init__(epsilon, zero_params)


@mutant()
class NormDefaultOverridden(Stabilized, Norm):
    """The signature says 10^-6, and a constant of 10^-9 is used in its place."""

    @staticmethod
    def stabilize(d: Tensor, epsilon: float) -> Tensor:
        return signed(d, 1e-9 if epsilon == 1e-6 else epsilon)


@mutant()
class AlphaBetaDefault(AlphaBeta):
    """Alpha and beta are 1 and 0 by default."""

    def __init__(
        self, alpha: float = 1.0, beta: float = 0.0, stabilizer: Stabilizing = 1e-6, zero_params: Names = None
    ) -> None:
        super().__init__(alpha, beta, stabilizer, zero_params)


@mutant()
class GammaDefault(Gamma):
    """Gamma is 0.5 by default."""

    def __init__(self, gamma: float = 0.5, stabilizer: Stabilizing = 1e-6, zero_params: Names = None) -> None:
        super().__init__(gamma, stabilizer, zero_params)


@mutant()
class ReLUBetaSmoothDefault(ReLUBetaSmooth):
    """Beta is 1 by default, as in torch's softplus."""

    def __init__(self, beta_smooth: float = 1.0) -> None:
        super().__init__(beta_smooth)


@mutant()
class ZBoxBoundsByDefault(ZBox):
    """The bounds have a default of 0 and 1, though nobody can know them."""

    def __init__(
        self,
        low: float | Tensor = 0.0,
        high: float | Tensor = 1.0,
        stabilizer: Stabilizing = 1e-6,
        zero_params: Names = None,
    ) -> None:
        super().__init__(low, high, stabilizer, zero_params)


@mutant()
class ZPlusStabilizerIsEpsilon(ZPlus):
    """The stabilizer is called epsilon, as in the rule of that name."""

    def __init__(self, epsilon: Stabilizing = 1e-6, zero_params: Names = None) -> None:
        super().__init__(epsilon, zero_params)


@mutant()
class WSquareArgumentsSwapped(WSquare):
    """By position, zero_params comes first."""

    def __init__(self, zero_params: Names = None, stabilizer: Stabilizing = 1e-6) -> None:
        super().__init__(stabilizer, zero_params)
