"""Keys of rules: types and names of modules, and functions; which of them matches which module."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.nn.utils import parametrize

from lrp_rules.hooks.hook import Hook
from lrp_rules.networks.operations import OPERATIONS, operation_of

if TYPE_CHECKING:
    from collections.abc import Mapping

Key = str | type[nn.Module] | Callable[..., Any]

#: How many modules without a rule are named one by one.
NAMED = 8


def flat(rules: Mapping[Any, Hook]) -> dict[Any, Hook]:
    """Return rules by single keys; the first that was given for a key decides."""
    found: dict[Any, Hook] = {}
    for keys, rule in rules.items():
        for key in keys if isinstance(keys, tuple) else (keys,):
            found.setdefault(key, rule)
    return found


def chosen(
    names: Mapping[nn.Module, list[str]], table: Mapping[Key, Hook], ignored: list[Key], *, demands: bool
) -> tuple[dict[nn.Module, Hook], set[nn.Module]]:
    """Return the rule of each module that has one, and all modules that these, or who ignores them, answer for."""
    decided: dict[nn.Module, Hook] = {}
    unmatched: dict[str, list[str]] = {}
    taken: set[nn.Module] = set()
    for module, own in names.items():
        if module in taken:
            continue
        matching = (key for key in [*ignored, *table] if matches(key, module, own))
        # a subclass that computes in a way of its own calls functions, and a composite has rules for these
        key = next((key for key in matching if demands or key in ignored or not goes_its_own_way(key, module)), None)
        if key is None:
            # what a container has of its own is used by functions
            if demands and next(module.parameters(recurse=False), None) is not None and not contains_layers(module):
                unmatched.setdefault(type(module).__name__, []).append(own[0] or "the model itself")
            continue
        taken.update(module.modules())
        if key not in ignored:
            decided[module] = table[key]
    if unmatched:
        many = sum(map(len, unmatched.values())) > NAMED
        listed = [
            f"{len(own)} {kind} ({own[0]}, ...)"
            if many and len(own) > 1
            else ", ".join(f"{one} ({kind})" for one in own)
            for kind, own in unmatched.items()
        ]
        msg = (
            f"no rule for {', '.join(listed)}; expected one for each module with parameters. "
            "Add the type or name to rules, or to ignore where the gradient is meant"
        )
        if any("BatchNorm" in kind for kind in unmatched):
            msg += ". A batch norm is folded into the layer before it by {nn.BatchNorm2d: FoldBatchNorm(Epsilon())}"
        raise ValueError(msg)
    return decided, taken


def by_function(keys: Mapping[Any, Any]) -> tuple[dict[str, Any], dict[Any, Any]]:
    """Return what is given for functions, by their operation, and the rest."""
    functions, others = {}, {}
    for key, rule in keys.items():
        if isinstance(key, (str, type, nn.Module)) or not callable(key):
            others[key] = rule
            continue
        operation = operation_of(key)
        if operation is None:
            known = ", ".join(sorted(set(OPERATIONS.values())))
            msg = (
                f"{key!r} is no function that a rule can be given for; expected a function of torch that does one of "
                f"{known}. Put it in a module of its own, and the rule on that"
            )
            raise ValueError(msg)
        functions[operation] = rule
    return functions, others


def goes_its_own_way(key: Key, module: nn.Module) -> bool:
    """Whether a module is a subclass of torch's that computes its output in another way."""
    if not isinstance(key, type) or not key.__module__.startswith("torch.nn.modules"):
        return False
    own, theirs = type(module), getattr(key, "forward", None)
    return own.forward is not theirs or getattr(own, "_conv_forward", 0) is not getattr(key, "_conv_forward", 0)


def contains_layers(module: nn.Module) -> bool:
    """Whether a module has modules with parameters below it."""
    return any(True for child in module.children() for _ in child.parameters())


def check_rules(table: Mapping[Key, Any]) -> None:
    """Refuse what is no rule."""
    for key, rule in table.items():
        if not isinstance(rule, Hook):
            made = f"{rule.__name__}()" if isinstance(rule, type) else "such as Epsilon()"
            msg = f"the rule for {key!r} is {rule!r}; expected an object of a rule, {made}"
            raise TypeError(msg)


def listed(keys: Key | Iterable[Key]) -> list[Key]:
    """Return one key or several as a list; what is no key is left to ``check_keys``, which names it."""
    if isinstance(keys, (str, type)) or not isinstance(keys, Iterable):
        return [keys]
    return list(keys)


def matches(key: Key, module: nn.Module, names: list[str]) -> bool:
    """Whether a key is meant for a module, given its names."""
    if isinstance(key, type):
        return isinstance(module, key)
    if not isinstance(key, str):
        return False
    if not any(c in key for c in "*?["):
        return key in names
    if contains_layers(module) and not parametrize.is_parametrized(module):
        return False
    own = next(module.parameters(recurse=False), None) is not None or parametrize.is_parametrized(module)
    return (own or next(module.children(), None) is None) and any(fnmatchcase(name, key) for name in names)


def check_keys(keys: list[Key], names: Mapping[nn.Module, list[str]], *, any_model: bool) -> None:
    """Refuse what is no key, and names that match nothing."""
    for key in keys:
        if isinstance(key, str):
            if not any_model and not any(matches(key, module, own) for module, own in names.items()):
                known = ", ".join(name for own in names.values() for name in own if name)
                type_ = f"; for a type of module, give nn.{key}" if isinstance(getattr(nn, key, None), type) else ""
                msg = f"{key!r} matches no module; the model has {known}{type_}"
                raise ValueError(msg)
        elif not (isinstance(key, type) and issubclass(key, nn.Module)):
            msg = f"{key!r} is a {type(key).__name__}; expected a type of module, a name or pattern, or a function"
            raise TypeError(msg)
