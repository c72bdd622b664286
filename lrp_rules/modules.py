"""A module's parameters as its forward pass uses them, and twins of modules that use others.

A *twin* of a module shares everything with it but the parameters. A changed parameter is in a twin, and nothing here
writes to the module itself: references of an optimizer, tied weights and other threads never see the change.
"""

from __future__ import annotations

from collections import OrderedDict
from types import MethodType
from typing import TYPE_CHECKING
from weakref import finalize

from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils import parametrize

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from torch import Tensor


#: Names of properties, by the id of a class: a dict of weak references takes as long as a small operation. What classes
#: leave that go again, such as those that torch makes for parametrized modules, goes with them.
_properties: dict[int, frozenset[str]] = {}


def properties(kind: type[nn.Module]) -> frozenset[str]:
    """Return the names of a class's properties. A property hides a parameter of its name, and may return anything."""
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

    They differ from ``module.named_parameters()`` under a parametrization, ``weight_norm`` or ``spectral_norm``, in
    replicas, and where weights are buffers or plain attributes. ``known`` are names that the forward pass is known to
    use. ``used`` are the values that it was seen to use, since a parametrization may draw random numbers or depend on
    the mode. Values that were not seen are evaluated again after the forward pass, in eval mode, which changes no
    state.
    """
    own = module._parameters
    simple = not module._forward_pre_hooks and not module._modules and own.keys().isdisjoint(module.__dict__)
    if simple and own.keys().isdisjoint(properties(type(module))):
        # nothing computes other parameters from these, or hides them
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
    """Whether the value of each parameter is known: it is a plain tensor, or was seen when it was used."""
    there = (module._parameters, module._buffers, module.__dict__, used)
    hidden = properties(type(module)) - used.keys()
    return all(name not in hidden and any(name in place for place in there) for name in known)


def _settled(parametrization: nn.Module) -> nn.Module:
    """Return a twin in eval mode, which changes no state when it is evaluated."""

    def settle(copy: nn.Module, _original: nn.Module) -> None:
        copy.training = False

    return tree(parametrization, settle)


def modules_of(module: nn.Module) -> list[nn.Module]:
    """Return a module and all modules in it. If it has none, torch's own walk would take as long as an operation."""
    return list(module.modules()) if module._modules else [module]


def tree(
    module: nn.Module,
    change: Callable[[nn.Module, nn.Module], None],
    made: dict[nn.Module, nn.Module] | None = None,
) -> nn.Module:
    """Return twins of a module and of all modules in it, each changed in place by ``change(twin, original)``."""
    made = {} if made is None else made
    if module not in made:
        made[module] = copy = twin(module, {})
        change(copy, module)
        copy._modules = {name: None if m is None else tree(m, change, made) for name, m in module._modules.items()}
    return made[module]


def twin(module: nn.Module, values: Mapping[str, Tensor | None]) -> nn.Module:
    """Return a module that computes what ``module`` does, without its hooks, with ``values`` as its parameters.

    It shares everything else. ``module`` is not touched.
    """
    parametrized = parametrize.is_parametrized(module) and bool(values)
    other: nn.Module = object.__new__(type(module).__mro__[1] if parametrized else type(module))
    state = dict(module.__dict__)
    state.update({name: OrderedDict() for name in state if name.endswith("_hooks")})
    state["_buffers"] = dict(module._buffers)
    # an attribute is found before a parameter of its name, and may be any tensor
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
