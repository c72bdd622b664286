"""Parameters of a module: the effective ones, changed ones, and a module that uses them.

Nothing here writes to the module: a changed parameter lives in a twin of the module, so that an optimizer's
references, tied weights and other threads never see it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from contextlib import contextmanager
from types import MethodType
from typing import TYPE_CHECKING, Any
from weakref import finalize

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils import parametrize

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor

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


#: Names of properties, by the id of a class: a dict of weak references takes as long as a small operation. What classes
#: leave that go again, such as those that torch makes for parametrized modules, goes with them.
_properties: dict[int, frozenset[str]] = {}


def properties(kind: type[nn.Module]) -> frozenset[str]:
    """Return the names for which a class has a property: that hides a parameter, and may give anything."""
    found = _properties.get(id(kind))
    if found is None:
        members = (member for part in kind.__mro__ for member in vars(part).items())
        found = _properties[id(kind)] = frozenset(name for name, value in members if isinstance(value, property))
        finalize(kind, _properties.pop, id(kind), None).atexit = False
    return found


def effective_parameters(
    module: nn.Module, known: Iterable[str] = (), used: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor | None]:
    """Return the parameters that the module's forward pass uses, by the names under which it uses them.

    They differ from ``module.named_parameters()`` under a parametrization, ``weight_norm`` or ``spectral_norm``, where
    weights are buffers or plain attributes, and in replicas. ``known`` are names that the forward pass is known to use,
    ``used`` what it was seen to use: a parametrization may draw random numbers, or depend on the mode. What was not
    seen is evaluated once more, after the forward pass and in eval mode, so that no state is moved.
    """
    own = module._parameters
    simple = not module._forward_pre_hooks and not module._modules and own.keys().isdisjoint(module.__dict__)
    if simple and own.keys().isdisjoint(properties(type(module))):
        # nothing makes other parameters of these, nor hides them
        values: dict[str, Tensor | None] = dict(own)
        for name in known:
            if name not in own:
                values[name] = getattr(module, name)
        return values
    names = dict.fromkeys((*own, *vars(module).get("_former_parameters", ()), *known))
    for hook in module._forward_pre_hooks.values():
        # pruning, and the older torch.nn.utils.weight_norm and spectral_norm, are pre-hooks that set a plain attribute
        # before each call
        computed = getattr(hook, "name", getattr(hook, "_tensor_name", None))
        if type(hook).__module__.startswith("torch.nn.utils.") and isinstance(computed, str):
            for part in (f"{computed}_g", f"{computed}_v", f"{computed}_orig"):
                names.pop(part, None)
            names[computed] = None
    parametrized = _parametrized(module, used or {}) if parametrize.is_parametrized(module) else {}
    return {name: getattr(module, name) for name in names if name not in parametrized} | parametrized


def _parametrized(module: nn.Module, used: Mapping[str, Tensor]) -> dict[str, Tensor | None]:
    assert isinstance(module.parametrizations, nn.ModuleDict)
    values: dict[str, Tensor | None] = {}
    for name, parametrization in module.parametrizations.items():
        if name in used:
            values[name] = used[name]
        elif any(part.training and isinstance(part, _DropoutNd) for part in parametrization.modules()):
            msg = f"{name} of {module} is drawn at random in each call, so that no rule can know it; use eval mode"
            raise RuntimeError(msg)
        else:
            values[name] = _settled(parametrization)()
    return values


def is_seen(module: nn.Module, known: Iterable[str], used: Mapping[str, Tensor]) -> bool:
    """Whether each parameter is one tensor that is there, or was seen when it was used; a property may be anything."""
    there = (module._parameters, module._buffers, module.__dict__, used)
    hidden = properties(type(module)) - used.keys()
    return all(name not in hidden and any(name in place for place in there) for name in known)


def _settled(parametrization: nn.Module) -> nn.Module:
    """Return a twin in eval mode: evaluating it moves no state."""

    def settle(copy: nn.Module, _original: nn.Module) -> None:
        copy.training = False

    return tree(parametrization, settle)


def modules_of(module: nn.Module) -> list[nn.Module]:
    """Return a module and all below it, without torch's walk where nothing is: that takes as long as an operation."""
    return list(module.modules()) if module._modules else [module]


def tree(
    module: nn.Module,
    change: Callable[[nn.Module, nn.Module], None],
    made: dict[nn.Module, nn.Module] | None = None,
) -> nn.Module:
    """Return twins of a module and of all below it, each changed in place by ``change(twin, original)``."""
    made = {} if made is None else made
    if module not in made:
        made[module] = copy = twin(module, {})
        change(copy, module)
        copy._modules = {name: None if m is None else tree(m, change, made) for name, m in module._modules.items()}
    return made[module]


def twin(module: nn.Module, values: Mapping[str, Tensor | None]) -> nn.Module:
    """Return a module that computes what ``module`` does, without its hooks, with ``values`` as its parameters.

    It shares everything else, and lives as long as the caller needs it; ``module`` is not touched.
    """
    parametrized = parametrize.is_parametrized(module) and bool(values)
    other: nn.Module = object.__new__(type(module).__mro__[1] if parametrized else type(module))
    state = dict(module.__dict__)
    state.update({name: OrderedDict() for name in state if name.endswith("_hooks")})
    state["_buffers"] = dict(module._buffers)
    # an attribute comes before a parameter of that name, and is free to be any tensor
    state["_parameters"] = {name: value for name, value in module._parameters.items() if name not in values}
    state.update(values)
    own = state.get("forward")
    if own is not None:
        if getattr(own, "__self__", None) is module:
            state["forward"] = MethodType(own.__func__, other)
        elif any(value is not getattr(module, name) for name, value in values.items()):
            msg = (
                f"{module} has a forward of its own, {own!r}, which cannot be run with other parameters; expected a "
                "method of the module. Define forward in a subclass, or use Epsilon, Norm or Pass there"
            )
            raise RuntimeError(msg)
    other.__dict__ = state
    return other


class ParamMod:
    """Change the parameters of a module for a while, without touching the module.

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
