"""Which rule goes on which module of a model."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Self

from torch import nn
from torch.nn.utils import parametrize

from lrp_rules.errors import see
from lrp_rules.hooks.calls import Calls, is_compiled, never_called
from lrp_rules.hooks.hook import Hook
from lrp_rules.hooks.refusals import check_scripted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType

    from lrp_rules.hooks.registration import Registration

    Key = str | type[nn.Module]
    # the keys of a Mapping are invariant: a dict with names alone would be none of Key
    Rules = Mapping[Any, Hook]


class Attachment:
    """Rules on a model, until ``remove()`` or the end of the ``with`` block.

    Where the model was called and a rule was not, its module had the plain gradient: at the end, that is an error.
    """

    def __init__(self, model: nn.Module, unused: Iterable[nn.Module] = (), ignored: Iterable[nn.Module] = ()) -> None:
        self.registrations: list[Registration] = []
        self._ignored, self._parts = set(ignored), set(model.modules())
        self._model, self._unused = model, set(unused)
        self._calls = Calls(model, self)

    def remove(self) -> None:
        """Take all rules off the model.

        Raises
        ------
        RuntimeError
            If the model was called, and a rule was not; or if a rule was called inside a reentrant checkpoint, and its
            backward pass has not come yet. The rules are off all the same.

        """
        complaint = self._remove()
        if complaint:
            raise RuntimeError(complaint)

    def _remove(self) -> str:
        complaint = self._complaint()
        taken, self.registrations[:] = self.registrations[:], []
        self._calls.remove()
        waiting = None
        for registration in taken:
            try:
                registration.remove()
            except RuntimeError as error:
                waiting = waiting or str(error)
        return waiting or complaint

    def _complaint(self) -> str:
        """Return what is to be said of rules that were not called; nothing, if all is well."""
        idle = [one for one in self.registrations if not one.calls and one.module not in self._unused]
        if idle and (self._calls.number or (len(idle) == len(self.registrations) and is_compiled(self._model))):
            return never_called(self._model, [(one.hook, one.module) for one in idle])
        new = list(self._new(self._model, "")) if self._calls.number else []
        if new:
            return (
                f"{type(self._model).__name__} has modules with parameters that it had not when the rules were "
                f"attached, and that have the plain gradient: {', '.join(new)}. Attach the rules after the change, or "
                f"after a first call that makes them{see('a-rule-that-never-acts')}"
            )
        return ""

    def _new(self, module: nn.Module, name: str) -> Iterator[str]:
        """Find modules that came later, and that no rule and nobody else answers for."""
        if module in self._ignored or any(one.module is module for one in self.registrations):
            return
        if module not in self._parts and next(module.parameters(recurse=False), None) is not None:
            yield f"{name} ({type(module).__name__})"
        for part, child in module.named_children():
            yield from self._new(child, f"{name}.{part}" if name else part)

    def __enter__(self) -> Self:
        if not self._calls.counts:
            msg = (
                "these rules were removed, and would do nothing; expected an attachment that is in force. Call attach "
                f"again{see('a-rule-that-never-acts')}"
            )
            raise RuntimeError(msg)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:  # that exception is what there is to say
            self._remove()
            return
        if self.registrations and not self._calls.number and not any(one.calls for one in self.registrations):
            forward_outside = (
                f"{type(self._model).__name__} was not called between attach and the end of the block, so that no rule "
                "was in force in any call; expected the forward pass inside the block"
                f"{see('a-rule-that-never-acts')}"
            )
            self.remove()
            warnings.warn(forward_outside, RuntimeWarning, stacklevel=2)
        self.remove()

    def __del__(self) -> None:
        # with the model: it was never removed
        if self.registrations and not sys.is_finalizing():
            complaint = self._complaint()
            if complaint:
                warnings.warn(complaint, RuntimeWarning, stacklevel=1)


def attach(
    model: nn.Module, rules: Rules, ignore: Key | Iterable[Key] = (), unused: Key | Iterable[Key] = ()
) -> Attachment:
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
    unused
        Type or name, or several, of modules that a pass may leave out: branches that are not taken, auxiliary heads.
        They have their rules where they are called, and it is no error where they are not.

    Returns
    -------
    Attachment
        A context manager; its ``remove()`` takes all rules off. Both raise a RuntimeError where the model was called
        and a rule was not: by then, its module has had the plain gradient.

    Raises
    ------
    ValueError
        If a module with parameters of its own matches nothing, or a name in ``rules`` or ``ignore`` matches no module.
    TypeError
        If a key is neither a type of module nor a name, or a rule is none, such as a class in place of its object.

    Examples
    --------
    >>> import torch
    >>> from lrp_rules import Epsilon, Pass, ZPlus
    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    >>> with attach(model, {nn.Conv2d: ZPlus(), nn.ReLU: Pass(), "3": Epsilon()}) as attached:
    ...     output = model(torch.rand(1, 1, 4, 4, requires_grad=True))
    ...     len(attached.registrations)
    3
    """
    check_scripted("attach", model)
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    ignored, left_out = _listed(ignore), _listed(unused)
    table: dict[Key, Hook] = dict(rules)
    _check_rules(table)
    _check_keys([*table, *ignored, *left_out], names)

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

    roots = [module for module, own in names.items() if any(_matches(key, module, own) for key in left_out)]
    left = [module for module, own in names.items() if any(_matches(key, module, own) for key in ignored)]
    attachment = Attachment(model, [part for root in roots for part in root.modules()], left)
    try:
        for rule, module in chosen:
            attachment.registrations.append(rule.register(module))
    except BaseException:
        attachment._remove()
        raise
    return attachment


def _check_rules(table: Mapping[Key, Any]) -> None:
    for key, rule in table.items():
        if not isinstance(rule, Hook):
            made = f"{rule.__name__}()" if isinstance(rule, type) else "such as Epsilon()"
            msg = f"the rule for {key!r} is {rule!r}; expected an object of a rule, {made}"
            raise TypeError(msg)


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
                type_ = f"; for a type of module, give nn.{key}" if isinstance(getattr(nn, key, None), type) else ""
                msg = f"{key!r} matches no module; the model has {known}{type_}"
                raise ValueError(msg)
        elif not (isinstance(key, type) and issubclass(key, nn.Module)):
            msg = f"{key!r} is a {type(key).__name__}; expected a type of module, or a name or pattern"
            raise TypeError(msg)
