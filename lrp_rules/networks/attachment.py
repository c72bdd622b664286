"""Which rule goes on which module of a model, and on which function between them."""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Iterable
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Self

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils import parametrize

from lrp_rules.errors import see
from lrp_rules.hooks.calls import Calls, is_compiled, is_wrapper, never_called
from lrp_rules.hooks.hook import Hook
from lrp_rules.hooks.refusals import check_module, check_scripted
from lrp_rules.hooks.registration import Registration
from lrp_rules.layers.convolution import ConvLayer, ConvTransposeLayer
from lrp_rules.layers.known import LinearLayer, layer_type
from lrp_rules.networks.flow import Between, Watch, flow_of
from lrp_rules.networks.folding import FoldBatchNorm, Folding
from lrp_rules.networks.operations import OPERATIONS, operation_of
from lrp_rules.networks.report import table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import TracebackType

    from lrp_rules.hooks.call import HookInterface

    Key = str | type[nn.Module] | Callable[..., Any]
    # the keys of a Mapping are invariant: a dict with names alone would be none of Key
    Rules = Mapping[Any, Hook]


class Attachment:
    """Rules on a model, until ``remove()`` or the end of the ``with`` block.

    Where the model was called and a rule was not, its module had the plain gradient: at the end, that is an error.
    """

    def __init__(
        self, model: nn.Module, between: Between, unused: Iterable[nn.Module] = (), ignored: Iterable[nn.Module] = ()
    ) -> None:
        self.registrations: list[Registration] = []
        #: What is known of the functions between the modules.
        self.between = between
        self._ignored, self._parts = set(ignored), set(model.modules())
        self._model, self._unused = model, set(unused)
        self._watches: list[Watch] = []
        self._made: list[Registration] = []
        self._canonized: list[Any] = []
        self._calls = Calls(model, self)

    def __repr__(self) -> str:
        return table(self._model, self._made, self.between)

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
        for watch in self._watches:
            watch.remove()
        self._watches.clear()
        for instance in reversed(self._canonized):
            instance.remove()
        self._canonized.clear()
        waiting = self._waiting()
        for registration in taken:
            try:
                registration.remove()
            except RuntimeError as error:
                waiting = waiting or str(error)
        return waiting or complaint

    def _waiting(self) -> str | None:
        """Return what is to be said of functions that a reentrant checkpoint is still to repeat."""
        waiting, self.between.unrepeated = self.between.unrepeated, 0
        if not waiting:
            return None
        return (
            f"functions with rules were called {waiting} times inside torch.utils.checkpoint with use_reentrant=True, "
            "and not again by a backward pass, or not as a part of a module there: they have the plain gradient. Do the "
            "backward pass before the rules are removed, give checkpoint a module, or use use_reentrant=False"
            f"{see('checkpoints')}"
        )

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


#: How many modules without a rule are named one by one.
NAMED = 8


class Composite:
    """Rules for the modules and functions of any model, as :func:`attach` takes them; it knows no model.

    Parameters
    ----------
    rules
        As for :func:`attach`. Tuples of keys are allowed, too. Modules that match nothing are no error: the functions
        that they call may have rules.
    first
        Rules for types of layers, where the model's input reaches them with no such layer between.
    gradient
        Whether everything else is meant to have its gradient, as in GuidedBackprop.
    canonizers
        Of zennit, applied to a model while the rules are on it.

    """

    def __init__(
        self, rules: Mapping[Any, Hook], first: Mapping[Any, Hook] | None = None, *, gradient: bool = False,
        canonizers: Iterable[Any] | None = None,
    ) -> None:  # fmt: skip
        self.rules, self.first = _flat(rules), _flat(first or {})
        self.gradient, self.canonizers = gradient, tuple(canonizers or ())

    def register(self, model: nn.Module) -> Attachment:
        """Attach the rules; what is returned has ``remove()``."""
        return attach(model, self)

    @contextmanager
    def context(self, model: nn.Module) -> Iterator[nn.Module]:
        """Attach the rules for a ``with`` block, which gets the model."""
        with attach(model, self):
            yield model


def _flat(rules: Mapping[Any, Hook]) -> dict[Any, Hook]:
    """Return rules by single keys; the first that was given for a key decides."""
    found: dict[Any, Hook] = {}
    for keys, rule in rules.items():
        for key in keys if isinstance(keys, tuple) else (keys,):
            found.setdefault(key, rule)
    return found


class _OfTwo(Registration):
    """A rule for calls that the model's input reaches first, and another one for all others."""

    def __init__(self, first: Hook, otherwise: Hook, module: nn.Module) -> None:
        self._rules, self._here = (first, otherwise), threading.local()
        super().__init__(otherwise, module)
        check_module(first, module)

    def choose(self, *, first: bool) -> None:
        self._here.first = first

    @property
    def rule_name(self) -> str:
        first, otherwise = (type(rule).__name__ for rule in self._rules)
        return f"{otherwise}, or {first} where the input comes first"

    @property
    def hook(self) -> HookInterface:  # type: ignore[override]
        first, otherwise = self._rules
        return first if vars(self._here).get("first") else otherwise

    @hook.setter
    def hook(self, value: HookInterface) -> None:
        """Both are known."""


def attach(
    model: nn.Module,
    rules: Rules | Composite,
    ignore: Key | Iterable[Key] = (),
    unused: Key | Iterable[Key] = (),
    *,
    strict: bool = False,
) -> Attachment:
    """Put rules on all modules of a model, and on the functions that are called between them.

    Parameters
    ----------
    model
        Any module, and all modules below it.
    rules
        Maps types of modules, or names as in ``model.named_modules()``, to rules. Names may be glob patterns, where
        ``*`` also spans dots. The first key that matches a module decides. A pattern or type that matches a module
        takes the whole of it: modules below a matched one are left alone. Patterns with wildcards match only modules
        that have nothing with parameters below them, so that ``'*'`` is every layer and not the containers.
        Functions are keys, too: ``torch.add`` stands for ``+``, ``+=``, ``-`` and all their spellings. Or a composite
        from ``lrp_rules.composites``.
    ignore
        Type, name or function, or several, of what keeps its gradient.
    unused
        Type or name, or several, of modules that a pass may leave out: branches that are not taken, auxiliary heads.
        They have their rules where they are called, and it is no error where they are not.
    strict
        Whether it is an error, and no warning, if relevance goes through a function that has no rule.

    Returns
    -------
    Attachment
        A context manager; its ``remove()`` takes all rules off. Both raise a RuntimeError where the model was called
        and a rule was not: by then, its module has had the plain gradient. ``print`` shows what got which rule, and
        what had none.

    Warns
    -----
    UnruledWarning
        After the first call of the model, if relevance will go through functions that have no rule: by their plain
        gradient, which doubles it at a sum.

    Raises
    ------
    ValueError
        If a module with parameters of its own, and none below it, matches nothing; if a name in ``rules`` or
        ``ignore`` matches no module; if no rule can be given for a function.
    TypeError
        If a key is neither a type of module nor a name nor a function, or a rule is none, such as a class in place of its object.

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
    composite = rules if isinstance(rules, Composite) else None
    given: dict[Any, Hook] = _flat(rules.rules if isinstance(rules, Composite) else rules)
    first = {} if composite is None else composite.first
    _check_rules({**given, **first})
    functions, table = _by_function(given)
    ignored, left_out = _listed(ignore), _listed(unused)
    keeps, ignored = _by_function(dict.fromkeys(ignored, None))
    canonized = [one for canonizer in (composite.canonizers if composite else ()) for one in canonizer.apply(model)]
    quiet = composite is not None and composite.gradient
    early, first = _by_function(first)
    between = Between(functions, early, keeps, strict=strict, quiet=quiet)
    try:
        names: dict[nn.Module, list[str]] = {}
        for name, module in model.named_modules(remove_duplicate=False):
            names.setdefault(module, []).append(name)
        _check_keys([*table, *ignored, *left_out], names, any_model=composite is not None)
        chosen, taken = _chosen(names, table, list(ignored), demands=composite is None)
        roots = [module for module, own in names.items() if any(_matches(key, module, own) for key in left_out)]
        left = [module for module, own in names.items() if any(_matches(key, module, own) for key in ignored)]
    except BaseException:
        for instance in reversed(canonized):
            instance.remove()
        raise
    attachment = Attachment(model, between, [part for root in roots for part in root.modules()], left)
    attachment._canonized = canonized
    between.parameters = {id(parameter) for parameter in model.parameters()}
    try:
        for module, own in names.items():
            rule = chosen.get(module)
            if (module in taken and rule is None and module not in left) or is_wrapper(module):
                continue
            registration = None
            if rule is not None and functions and isinstance(module, NonDynamicallyQuantizableLinear):
                # nn.MultiheadAttention uses its weight alone, in a function
                between.by_weight[id(module.weight)] = (rule, None)
            elif rule is not None:
                early = next((first[key] for key in first if _matches(key, module, own)), None)
                registration = _registered(rule, early, module, between)
                attachment.registrations.append(registration)
                attachment._made.append(registration)
                if layer_type(module) in {LinearLayer, ConvLayer, ConvTransposeLayer}:
                    between.by_weight[id(module.weight)] = (rule, registration)
            attachment._watches.append(Watch(between, own[0], module, registration, is_open=module not in taken))
    except BaseException:
        attachment._remove()
        raise
    return attachment


def _chosen(
    names: Mapping[nn.Module, list[str]], table: Mapping[Key, Hook], ignored: list[Key], *, demands: bool
) -> tuple[dict[nn.Module, Hook], set[nn.Module]]:
    """Return the rule of each module that has one, and all modules that these, or who ignores them, answer for."""
    chosen: dict[nn.Module, Hook] = {}
    unmatched: dict[str, list[str]] = {}
    taken: set[nn.Module] = set()
    for module, own in names.items():
        if module in taken:
            continue
        matching = (key for key in [*ignored, *table] if _matches(key, module, own))
        # a subclass that computes in a way of its own calls functions, and a composite has rules for these
        key = next((key for key in matching if demands or key in ignored or not _goes_its_own_way(key, module)), None)
        if key is None:
            # what a container has of its own is used by functions
            if demands and next(module.parameters(recurse=False), None) is not None and not _contains_layers(module):
                unmatched.setdefault(type(module).__name__, []).append(own[0] or "the model itself")
            continue
        taken.update(module.modules())
        if key not in ignored:
            chosen[module] = table[key]
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
    return chosen, taken


def _registered(rule: Hook, early: Hook | None, module: nn.Module, between: Between) -> Registration:
    if isinstance(rule, FoldBatchNorm):
        return Folding(rule, module, lambda: flow_of(between))
    return rule.register(module) if early is None else _OfTwo(early, rule, module)


def _by_function(keys: Mapping[Any, Any]) -> tuple[dict[str, Any], dict[Any, Any]]:
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


def _goes_its_own_way(key: Key, module: nn.Module) -> bool:
    if not isinstance(key, type) or not key.__module__.startswith("torch.nn.modules"):
        return False
    own = type(module)
    return own.forward is not key.forward or getattr(own, "_conv_forward", 0) is not getattr(key, "_conv_forward", 0)


def _contains_layers(module: nn.Module) -> bool:
    return any(True for child in module.children() for _ in child.parameters())


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
    if _contains_layers(module) and not parametrize.is_parametrized(module):
        return False
    own = next(module.parameters(recurse=False), None) is not None or parametrize.is_parametrized(module)
    return (own or next(module.children(), None) is None) and any(fnmatchcase(name, key) for name in names)


def _check_keys(keys: list[Key], names: Mapping[nn.Module, list[str]], *, any_model: bool) -> None:
    for key in keys:
        if isinstance(key, str):
            if not any_model and not any(_matches(key, module, own) for module, own in names.items()):
                known = ", ".join(name for own in names.values() for name in own if name)
                type_ = f"; for a type of module, give nn.{key}" if isinstance(getattr(nn, key, None), type) else ""
                msg = f"{key!r} matches no module; the model has {known}{type_}"
                raise ValueError(msg)
        elif not (isinstance(key, type) and issubclass(key, nn.Module)):
            msg = f"{key!r} is a {type(key).__name__}; expected a type of module, a name or pattern, or a function"
            raise TypeError(msg)
