"""Rules on a whole model: ``attach``, and composites, which are rules for any model."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from lrp_rules.hooks.calls import is_wrapper
from lrp_rules.hooks.refusals import check_module, check_scripted
from lrp_rules.hooks.registration import Registration
from lrp_rules.layers.convolution import ConvLayer, ConvTransposeLayer
from lrp_rules.layers.known import LinearLayer, layer_type
from lrp_rules.networks.attachment import Attachment
from lrp_rules.networks.between import Between
from lrp_rules.networks.flow import Flow
from lrp_rules.networks.folding import FoldBatchNorm, Folding
from lrp_rules.networks.keeping import ends_for, parameters
from lrp_rules.networks.keys import by_function, check_keys, check_rules, chosen, flat, listed, matches
from lrp_rules.networks.watch import Watch, flow_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from lrp_rules.hooks.call import HookInterface
    from lrp_rules.hooks.hook import Hook
    from lrp_rules.networks.keys import Key

    # the keys of a Mapping are invariant: a dict with names alone would be none of Key
    Rules = Mapping[Any, Hook]


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
        self.rules, self.first = flat(rules), flat(first or {})
        self.gradient, self.canonizers = gradient, tuple(canonizers or ())

    def register(self, model: nn.Module) -> Attachment:
        """Attach the rules; what is returned has ``remove()``."""
        return attach(model, self)

    @contextmanager
    def context(self, model: nn.Module) -> Iterator[nn.Module]:
        """Attach the rules for a ``with`` block, which gets the model."""
        with attach(model, self):
            yield model


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
    def hook(self) -> HookInterface:
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
    keep: str | Iterable[str] = (),
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
    keep
        Name or names of modules at whose outputs the relevance is wanted, too, or of weights and biases whose own
        relevance is wanted: see ``Attachment.kept``.

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
        ``ignore`` matches no module; if no rule can be given for a function; if ``keep`` names a parameter that is not
        the weight or bias of a linear layer or convolution with a rule that says how much relevance passes through it.
    TypeError
        If the model is no module; if the rules are neither a dictionary nor a composite; if a key is neither a type of
        module nor a name nor a function, or a rule is none, such as a class in place of its object.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from lrp_rules import Epsilon, Pass, ZPlus
    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    >>> with attach(model, {nn.Conv2d: ZPlus(), nn.ReLU: Pass(), "3": Epsilon()}) as attached:
    ...     output = model(torch.rand(1, 1, 4, 4, requires_grad=True))
    ...     len(attached.registrations)
    3
    """
    _check(model, rules)
    composite = rules if isinstance(rules, Composite) else None
    given: dict[Any, Hook] = flat(rules.rules if isinstance(rules, Composite) else rules)
    special: dict[Any, Hook] = {} if composite is None else composite.first
    check_rules({**given, **special})
    functions, table = by_function(given)
    keeps, ignored = by_function(dict.fromkeys(listed(ignore)))
    left_out, kept = listed(unused), listed(keep)
    canonized = [one for canonizer in (composite.canonizers if composite else ()) for one in canonizer.apply(model)]
    quiet = composite is not None and composite.gradient
    early, first = by_function(special)
    between = Between(functions, early, keeps, strict=strict, quiet=quiet)
    try:
        names: dict[nn.Module, list[str]] = {}
        for name, module in model.named_modules(remove_duplicate=False):
            names.setdefault(module, []).append(name)
        check_keys([*table, *ignored, *left_out], names, any_model=composite is not None)
        wanted = parameters(model, kept)
        missing = {*kept} - {*wanted} - {name for own in names.values() for name in own}
        _check_kept(missing, names)
        decided, taken = chosen(names, table, list(ignored), demands=composite is None)
        roots = [module for module, own in names.items() if any(matches(key, module, own) for key in left_out)]
        left = [module for module, own in names.items() if any(matches(key, module, own) for key in ignored)]
    except BaseException:
        for instance in reversed(canonized):
            instance.remove()
        raise
    attachment = Attachment(model, between, [part for root in roots for part in root.modules()], left)
    attachment._canonized = canonized
    between.around = partial(Flow.around, between, model)
    try:
        in_force = {
            module: [rule, *(other for key, other in first.items() if matches(key, module, names[module]))][:2]
            for module, rule in decided.items()
        }
        between.asked, ends = ends_for(wanted, model, in_force, functions.get("linear"))
        attachment.kept.update(ends)
        for module, own in names.items():
            for name in {*own} & {*kept}:
                attachment.keep(name, module)
            if is_wrapper(module) or (module in taken and module not in decided and module not in left):
                continue
            registration = None
            if module in decided:
                at_first = next((rule for key, rule in first.items() if matches(key, module, own)), None)
                registration = _registered(attachment, decided[module], at_first, module)
                if registration is not None:
                    registration.asked, registration.around = between.asked, between.around
            attachment._watches.append(Watch(between, own[0], module, registration, is_open=module not in taken))
    except BaseException:
        attachment._remove()
        raise
    return attachment


def _check_kept(missing: Collection[Any], names: Mapping[nn.Module, list[str]]) -> None:
    """Refuse names that are those of no module, and of no parameter."""
    if not missing:
        return
    known = ", ".join(name for own in names.values() for name in own if name)
    given = ", ".join(repr(name) for name in sorted(missing, key=str))
    msg = f"{given} matches no module of the model, nor a parameter of one; the model has {known}"
    raise ValueError(msg)


def _check(model: Any, rules: Any) -> None:
    """Refuse what is no model, and what maps nothing to rules."""
    if not isinstance(model, nn.Module):
        msg = f"attach was given {model!r}, a {type(model).__name__}, as the model; expected a module"
        raise TypeError(msg)
    check_scripted("attach", model)
    if not isinstance(rules, Mapping | Composite):
        msg = (
            f"the rules are {rules!r}; expected a dictionary from types or names of modules to rules, such as "
            "{nn.Linear: Epsilon()}, or a composite, such as EpsilonPlus(); one rule alone has register(module)"
        )
        raise TypeError(msg)


def _registered(attachment: Attachment, rule: Hook, at_first: Hook | None, module: nn.Module) -> Registration | None:
    """Put a rule on a module, and on the functions that use its weight."""
    between = attachment.between
    registration: Registration | None = None
    # nn.MultiheadAttention does not call that part of it
    if not (between.rules and isinstance(module, NonDynamicallyQuantizableLinear)):
        if isinstance(rule, FoldBatchNorm):
            registration = Folding(rule, module, lambda: flow_of(between))
        else:
            registration = rule.register(module) if at_first is None else _OfTwo(at_first, rule, module)
        attachment.registrations.append(registration)
        attachment._made.append(registration)
    weight = module._parameters.get("weight")
    if weight is not None and layer_type(module) in {LinearLayer, ConvLayer, ConvTransposeLayer}:
        between.by_weight[id(weight)] = (rule, registration)
    return registration
