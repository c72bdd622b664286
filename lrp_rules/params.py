"""Changes of parameters as objects, for rules that are built from modifiers (:class:`BasicHook`)."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from lrp_rules.modules import effective_parameters, twin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor, nn

    Modifier = Callable[[Tensor, str], Tensor]


def zero_bias(zero_params: str | Iterable[str] | None = None) -> list[str]:
    """Return the names in ``zero_params`` with ``'bias'`` among them, as a new list.

    >>> zero_bias(), zero_bias("weight"), zero_bias(["bias"])
    (['bias'], ['weight', 'bias'], ['bias'])
    """
    names = list(parameter_names(zero_params))
    return names if "bias" in names else [*names, "bias"]


def parameter_names(names: str | Iterable[str] | None) -> tuple[str, ...]:
    """Return ``names`` (none, one or several) as a tuple of whole names."""
    if names is None or isinstance(names, str):
        return () if names is None else (names,)
    given = tuple(names) if isinstance(names, Iterable) else (names,)
    if not all(isinstance(name, str) for name in given):
        msg = f"parameter names are {names!r}; expected None, one name or several names, such as ['bias']"
        raise TypeError(msg)
    return given


def zeroed(values: Mapping[str, Tensor | None], names: Iterable[str]) -> dict[str, Tensor | None]:
    """Return ``values`` with those called ``names`` set to zero."""
    chosen = set(names)
    return {
        name: torch.zeros_like(value) if value is not None and name in chosen else value
        for name, value in values.items()
    }


class ParamMod:
    """Compute with changed parameters of a module, without touching the module.

    ``with mod(module) as modified:`` gives a module that computes with the changed parameters.

    Parameters
    ----------
    modifier
        ``modifier(parameter, name)`` returns the changed parameter.
    param_keys
        Names of the parameters to change; None (default) means every parameter of the module, ``[]`` none.
    zero_params
        Name or names that are set to zero first.
    require_params
        Whether a name in ``param_keys`` that the module lacks is an error.

    Raises
    ------
    RuntimeError
        When applied, if the module lacks a parameter that ``param_keys`` names; the message names it.

    """

    def __init__(
        self,
        modifier: Modifier,
        param_keys: str | Iterable[str] | None = None,
        zero_params: str | Iterable[str] | None = None,
        require_params: bool = True,
    ) -> None:
        if not callable(modifier):
            msg = f"modifier is {modifier!r}; expected a callable (parameter, name) -> parameter"
            raise TypeError(msg)
        self.modifier = modifier
        self.param_keys = None if param_keys is None else list(parameter_names(param_keys))
        self.zero_params = None if zero_params is None else list(parameter_names(zero_params))
        self.require_params = require_params

    def parameters(self, module: nn.Module, values: Mapping[str, Tensor | None]) -> dict[str, Tensor | None]:
        """Return ``values``, the effective parameters of ``module``, as this changes them."""
        keys = list(values) if self.param_keys is None else self.param_keys
        missing = [key for key in keys if key not in values]
        if missing and self.require_params:
            names = ", ".join(repr(key) for key in missing)
            msg = (
                f"{module} has no parameter {names}; it has {sorted(values)}. "
                "Name its own in param_keys, or pass require_params=False"
            )
            raise RuntimeError(msg)
        changed = zeroed(values, self.zero_params or ())
        for key in keys:
            value = changed.get(key)
            if value is not None:
                changed[key] = self.modifier(value, key)
        return changed

    @contextmanager
    def __call__(self, module: nn.Module) -> Iterator[nn.Module]:
        """Yield a twin of ``module`` with the changed parameters."""
        yield twin(module, self.parameters(module, effective_parameters(module)))

    @classmethod
    def ensure(cls, value: ParamMod | Modifier) -> ParamMod:
        """Pass a ParamMod through, and make one of a callable."""
        return value if isinstance(value, ParamMod) else cls(value)


class _Clamp:
    """p -> clamp(p), as an object, so that it can be pickled."""

    def __init__(self, minimum: float | None, maximum: float | None) -> None:
        self.minimum, self.maximum = minimum, maximum

    def __call__(self, parameter: Tensor, _name: str) -> Tensor:
        if self.minimum is None and self.maximum is None:
            return parameter
        return parameter.clamp(min=self.minimum, max=self.maximum)


class _AddClamped(_Clamp):
    """p -> p + gamma * clamp(p)."""

    def __init__(self, gamma: float, minimum: float | None, maximum: float | None) -> None:
        super().__init__(minimum, maximum)
        self.gamma = gamma

    def __call__(self, parameter: Tensor, name: str) -> Tensor:
        return parameter + self.gamma * super().__call__(parameter, name)


def _unchanged(parameter: Tensor, _name: str) -> Tensor:
    return parameter


class ClampMod(ParamMod):
    """p -> clamp(p, min, max); None leaves that side open. Further arguments as in :class:`ParamMod`."""

    def __init__(
        self,
        min: float | None = None,
        max: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(_Clamp(min, max), **kwargs)


class GammaMod(ParamMod):
    """p -> p + gamma * clamp(p, min, max). Further arguments as in :class:`ParamMod`."""

    def __init__(
        self,
        gamma: float = 0.25,
        min: float | None = None,
        max: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(_AddClamped(gamma, min, max), **kwargs)


class NoMod(ParamMod):
    """p -> p; for ``zero_params`` alone. Further arguments as in :class:`ParamMod`."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(_unchanged, **kwargs)
