"""Which rule goes on which module of a model."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Self

from torch import nn
from torch.nn.utils import parametrize

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from lrp_rules.hooks import Hook
    from lrp_rules.registration import Registration

    Key = str | type[nn.Module]
    # the keys of a Mapping are invariant: a dict with names alone would be none of Key
    Rules = Mapping[Any, Hook]


class Attachment:
    """Rules on a model, until ``remove()`` or the end of the ``with`` block."""

    def __init__(self, registrations: list[Registration]) -> None:
        self.registrations = registrations

    def remove(self) -> None:
        """Take all rules off the model."""
        while self.registrations:
            self.registrations.pop().remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.remove()


def attach(model: nn.Module, rules: Rules, ignore: Key | Iterable[Key] = ()) -> Attachment:
    """Put rules on all modules of a model.

    Parameters
    ----------
    model
        Any module, and all modules below it.
    rules
        Maps types of modules, or names as in ``model.named_modules()``, to rules. Names may be glob patterns, where
        ``*`` also spans dots. The first key that matches a module decides. A pattern or type that matches a module
        takes the whole of it: modules below a matched one are left alone. Patterns with wildcards match only modules
        that have parameters of their own or nothing below them, so that ``'*'`` is every layer and not the
        containers.
    ignore
        Type or name, or several, of modules that keep their gradient.

    Returns
    -------
    Attachment
        A context manager; its ``remove()`` takes all rules off.

    Raises
    ------
    ValueError
        If a module with parameters of its own matches nothing, or a name in ``rules`` or ``ignore`` matches no module.
    TypeError
        If a key is neither a type of module nor a name.

    Examples
    --------
    >>> from lrp_rules import Epsilon, Pass, ZPlus
    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    >>> with attach(model, {nn.Conv2d: ZPlus(), nn.ReLU: Pass(), "3": Epsilon()}) as attached:
    ...     len(attached.registrations)
    3
    """
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    ignored = _listed(ignore)
    table: dict[Key, Hook] = dict(rules)
    _check_keys([*table, *ignored], names)

    chosen: list[tuple[Hook, nn.Module]] = []
    unmatched: list[str] = []
    taken: set[nn.Module] = set()
    for module, own in names.items():
        if module in taken:
            continue
        key = next((key for key in [*ignored, *table] if _matches(key, module, own)), None)
        if key is None:
            if next(module.parameters(recurse=False), None) is not None:
                unmatched.append(f"{own[0] or 'the model itself'} ({type(module).__name__})")
            continue
        taken.update(module.modules())
        if key not in ignored:
            chosen.append((table[key], module))
    if unmatched:
        msg = (
            f"no rule for {', '.join(unmatched)}; expected one for each module with parameters. "
            "Add the type or name to rules, or to ignore where the gradient is meant"
        )
        raise ValueError(msg)

    attachment = Attachment([])
    try:
        for rule, module in chosen:
            attachment.registrations.append(rule.register(module))
    except BaseException:
        attachment.remove()
        raise
    return attachment


def _listed(keys: Key | Iterable[Key]) -> list[Key]:
    """Return one key or several as a list; what is no key is left to ``_check_keys``, which names it."""
    if isinstance(keys, (str, type)) or not isinstance(keys, Iterable):
        return [keys]
    return list(keys)


def _matches(key: Key, module: nn.Module, names: list[str]) -> bool:
    if isinstance(key, type):
        return isinstance(module, key)
    if not any(c in key for c in "*?["):
        return key in names
    own = next(module.parameters(recurse=False), None) is not None or parametrize.is_parametrized(module)
    return (own or next(module.children(), None) is None) and any(fnmatchcase(name, key) for name in names)


def _check_keys(keys: list[Key], names: Mapping[nn.Module, list[str]]) -> None:
    for key in keys:
        if isinstance(key, str):
            if not any(_matches(key, module, own) for module, own in names.items()):
                known = ", ".join(name for own in names.values() for name in own if name)
                msg = f"{key!r} matches no module; the model has {known}"
                raise ValueError(msg)
        elif not (isinstance(key, type) and issubclass(key, nn.Module)):
            msg = f"{key!r} is a {type(key).__name__}; expected a type of module, or a name or pattern"
            raise TypeError(msg)
