"""The parameter modifiers: bounds, names, and what happens to the module."""
# ruff: noqa: ARG002, D102  a mutant leaves out what it should use, and says so once, in the docstring of its class
# ruff: noqa: A002  the API calls its parameters min and max

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lrp_rules import ClampMod, GammaMod, NoMod
from verify.selftests.mutants.registry import mutant

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    Parameters = Mapping[str, Tensor | None]


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

    def __init__(self, min: float | None = None, max: float | None = None, **kwargs: Any) -> None:
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
        return (
            ClampMod.parameters(_all_keys(self), module, values)
            if self.param_keys == []
            else super().parameters(module, values)
        )


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

    def __init__(self, gamma: float = 0.25, min: float | None = None, max: float | None = None, **kwargs: Any) -> None:
        super().__init__(gamma, None, None, **kwargs)


@mutant()
class GammaModFixed(GammaMod):
    """Gamma is 0.25 whatever number is given."""

    def __init__(self, gamma: float = 0.25, min: float | None = None, max: float | None = None, **kwargs: Any) -> None:
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
        return _zeroing(self, names).parameters(module, values)


@mutant()
class NoModZeroesAll(NoMod):
    """Naming one parameter zeroes them all."""

    def parameters(self, module: nn.Module, values: Parameters) -> dict[str, Tensor | None]:
        return _zeroing(self, list(values) if self.zero_params else []).parameters(module, values)


def _zeroing(mod: NoMod, names: list[str]) -> NoMod:
    return NoMod(param_keys=mod.param_keys, zero_params=names, require_params=mod.require_params)


@mutant()
class GammaModMissingKeyError(GammaMod):
    """A parameter that the module lacks raises KeyError."""

    def parameters(self, module: nn.Module, values: Parameters) -> dict[str, Tensor | None]:
        try:
            return super().parameters(module, values)
        except RuntimeError as error:
            raise KeyError(*error.args) from None


@mutant()
class NoModMissingUnnamed(NoMod):
    """A parameter that the module lacks is refused in words that do not name it."""

    def parameters(self, module: nn.Module, values: Parameters) -> dict[str, Tensor | None]:
        try:
            return super().parameters(module, values)
        except RuntimeError:
            msg = "a required parameter is missing"
            raise RuntimeError(msg) from None
