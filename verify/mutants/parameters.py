"""Arguments: zero_params, zero_bias, the parameter modifiers, and defaults."""
# ruff: noqa: D102  a mutant says its mistake once, in the docstring of its class
# ruff: noqa: A002  the API calls its parameters min and max

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

import lrp_rules
from lrp_rules import (
    AlphaBeta,
    ClampMod,
    Epsilon,
    Flat,
    Gamma,
    GammaMod,
    NoMod,
    Norm,
    ReLUBetaSmooth,
    WSquare,
    ZBox,
    ZPlus,
)
from lrp_rules.rules import propagate
from verify.mutants.registry import Stabilized, mutant, signed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn

    from lrp_rules.layer import Layer

    Names = str | list[str] | None
    Stabilizing = float | Callable[[Tensor], Tensor]
    Parameters = Mapping[str, Tensor | None]


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
        ones = layer.at_ones()
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
    """A string is searched for 'bias', and a name that contains it counts as the bias (zennit)."""
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
class ClampModSwapped(ClampMod):
    """The bounds are swapped."""

    def __init__(self, min: float | None = None, max: float | None = None, **kwargs: Any) -> None:
        super().__init__(max, min, **kwargs)


@mutant()
class ClampModZeroIsNone(ClampMod):
    """A bound of 0 is falsy, and taken for none."""

    def __init__(self, min: float | None = None, max: float | None = None, **kwargs: Any) -> None:
        super().__init__(min or None, max or None, **kwargs)


@mutant()
class ClampModMaxIgnored(ClampMod):
    """The upper bound is not used."""

    def __init__(self, min: float | None = None, max: float | None = None, **kwargs: Any) -> None:  # noqa: ARG002
        super().__init__(min, None, **kwargs)


@mutant()
class ClampModWeightAlone(ClampMod):
    """By default, the weight is clamped and the bias is not."""

    def __init__(self, min: float | None = None, max: float | None = None, **kwargs: Any) -> None:
        super().__init__(min, max, **{"param_keys": ["weight"]} | kwargs)


@mutant()
class ClampModKeysIgnored(ClampMod):
    """All parameters are clamped, whichever are named."""

    def parameters(self, module: nn.Module, values: Parameters) -> dict[str, Tensor | None]:
        super().parameters(module, values)
        return ClampMod.parameters(_all_keys(self), module, values)


def _all_keys(mod: ClampMod) -> ClampMod:
    every = ClampMod(zero_params=mod.zero_params)
    every.modifier = mod.modifier
    return every


@mutant()
class ClampModNoKeysIsAll(ClampMod):
    """An empty list of names is falsy, and taken for all of them."""

    def parameters(self, module: nn.Module, values: Parameters) -> dict[str, Tensor | None]:
        return ClampMod.parameters(_all_keys(self), module, values) if self.param_keys == [] else super().parameters(module, values)


@mutant()
class ClampModMissingAccepted(ClampMod):
    """A parameter that the module lacks is passed over, whatever require_params says."""

    def __init__(self, min: float | None = None, max: float | None = None, **kwargs: Any) -> None:
        super().__init__(min, max, **kwargs | {"require_params": False})


@mutant()
class ClampModMissingRefused(ClampMod):
    """A parameter that the module lacks is an error, whatever require_params says."""

    def __init__(self, min: float | None = None, max: float | None = None, **kwargs: Any) -> None:
        super().__init__(min, max, **kwargs | {"require_params": True})


@mutant()
class ClampModWrittenInPlace(ClampMod):
    """The module's own parameters are clamped, and stay so."""

    def parameters(self, module: nn.Module, values: Parameters) -> dict[str, Tensor | None]:
        changed = super().parameters(module, values)
        for name, value in values.items():
            new = changed[name]
            if value is not None and new is not None:
                value.data.copy_(new.data)
        return changed


@mutant()
class ClampModOptionsLost(ClampMod):
    """The signature has no further arguments."""

    def __init__(self, min: float | None = None, max: float | None = None) -> None:
        super().__init__(min, max)


@mutant()
class GammaModReplaces(GammaMod):
    """Gamma times the clamped parameter stands alone, and the parameter itself is not added."""

    def parameters(self, module: nn.Module, values: Parameters) -> dict[str, Tensor | None]:
        changed = super().parameters(module, values)
        return {n: None if v is None or (w := values[n]) is None else v - w for n, v in changed.items()}


@mutant()
class GammaModDefault(GammaMod):
    """Gamma is 0.5 by default."""

    def __init__(self, gamma: float = 0.5, min: float | None = None, max: float | None = None, **kwargs: Any) -> None:
        super().__init__(gamma, min, max, **kwargs)


@mutant()
class GammaModUnclamped(GammaMod):
    """The whole parameter is scaled."""

    def __init__(self, gamma: float = 0.25, min: float | None = None, max: float | None = None, **kwargs: Any) -> None:  # noqa: ARG002
        super().__init__(gamma, None, None, **kwargs)


@mutant()
class GammaModFixed(GammaMod):
    """Gamma is 0.25 whatever number is given."""

    def __init__(self, gamma: float = 0.25, min: float | None = None, max: float | None = None, **kwargs: Any) -> None:  # noqa: ARG002
        super().__init__(0.25, min, max, **kwargs)


@mutant()
class GammaModZeroedLast(GammaMod):
    """What zero_params names is left as it is."""

    def __init__(self, gamma: float = 0.25, min: float | None = None, max: float | None = None, **kwargs: Any) -> None:
        super().__init__(gamma, min, max, **kwargs | {"zero_params": None})


@mutant()
class NoModZeroParamsIgnored(NoMod):
    """What zero_params names is left as it is."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs | {"zero_params": None})


@mutant()
class NoModZeroParamsSubstring(NoMod):
    """A parameter is zeroed if its name is found inside of a given one (zennit)."""

    def parameters(self, module: nn.Module, values: Parameters) -> dict[str, Tensor | None]:
        names = [name for name in values if any(name in given for given in self.zero_params or ())]
        return NoMod(zero_params=names).parameters(module, values)


@mutant()
class NoModZeroesAll(NoMod):
    """Naming one parameter zeroes them all."""

    def parameters(self, module: nn.Module, values: Parameters) -> dict[str, Tensor | None]:
        return NoMod(zero_params=list(values) if self.zero_params else None).parameters(module, values)


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
