"""Conduct that depends on the layer: what calls do to each other, and what they leave, on one layer of each kind."""

from __future__ import annotations

import contextlib
import random
import warnings
from copy import deepcopy
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from verify.checks.conduct.looking import Look
from verify.checks.conduct.probing import (
    GRADIENT,
    WEIGHED,
    Values,
    arguments,
    attached,
    complain,
    differs,
    grad,
    leaf,
    make,
    power,
    same_bits,
    unclear,
    unless_refused,
)
from verify.checks.conduct.settings import Setting, asked, kinds, setting
from verify.checks.probing import fail, passed
from verify.model import RULES, Case, Finding, Level, NotOfferedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from verify.model import Subject

    #: Asks a subject about one of its rules on a layer.
    Ask = Callable[[str, Subject, Setting], Iterator[str]]


def _twice(rule: str, subject: Subject, on: Setting) -> Iterator[str]:
    """Neither an earlier call nor one with other numbers changes the answer, and what was given stays as it is."""
    first, second = on.relevance(subject, rule), on.other_relevance(subject, rule)
    with attached(make(subject, rule), on.module):
        kept: list[tuple[Tensor, Tensor]] = []
        for given, R, wanted in ((on.x, on.R, first), (on.other, on.its_R, second), (on.x, on.R, first)):
            x = leaf(given)
            found = grad(on.module(x), x, R)
            yield from differs(found, wanted, "the relevance of one call after another")
            kept.append((found, wanted))
        for found, wanted in kept:
            yield from differs(found, wanted, "the relevance of an earlier call, after the later ones,")
        yield from _shared([found for found, _ in kept])


def _shared(tensors: list[Tensor]) -> Iterator[str]:
    places = [t.untyped_storage().data_ptr() for t in tensors]
    if len(set(places)) < len(places):
        yield "two calls give their relevance in the same memory"


def _order(rule: str, subject: Subject, on: Setting) -> Iterator[str]:
    """Two forward passes before two backward passes, in either order."""
    expected = [on.relevance(subject, rule), on.other_relevance(subject, rule)]
    for order in ((0, 1), (1, 0)):
        with attached(make(subject, rule), on.module):
            xs = [leaf(on.x), leaf(on.other)]
            ys = [on.module(x) for x in xs]
            for k in order:
                found = grad(ys[k], xs[k], (on.R, on.its_R)[k])
                yield from differs(found, expected[k], f"backward passes in order {order}: relevance {k}")


def _together(rule: str, subject: Subject, on: Setting) -> Iterator[str]:
    """A module that is called twice in one pass gives each call its own relevance."""
    first, second = on.relevance(subject, rule), on.other_relevance(subject, rule)
    with attached(make(subject, rule), on.module):
        x, other = leaf(on.x), leaf(on.other)
        y = torch.cat([on.module(x), on.module(other)])
        found = torch.autograd.grad(y, (x, other), torch.cat([on.R, on.its_R]))
    for got, wanted in zip(found, (first, second), strict=True):
        yield from differs(got, wanted, "the relevance of one of two calls in one pass")


def _stepped(rule: str, subject: Subject, on: Setting) -> Iterator[str]:
    """After a step of an optimizer, or other weights by any way, the relevance is that of the new weights."""
    parameters = list(on.module.parameters())
    optimizer = torch.optim.SGD(parameters, lr=0.5)

    def step() -> None:
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()

    def assign() -> None:
        for parameter in parameters:
            parameter.data = -parameter.data

    def load() -> None:
        on.module.load_state_dict({name: v * 2 for name, v in on.module.state_dict().items()})

    with attached(make(subject, rule), on.module):
        x = leaf(on.x)
        grad(on.module(x), x, on.R)
        for change in (step, assign, load):
            change()
            x = leaf(on.x)
            found = grad(on.module(x), x, on.R)
            expected = asked(subject, rule, on.clean(on.module), on.x, on.R)
            yield from differs(found, expected, f"after the weights have changed ({change.__name__}), the relevance")


def _late(rule: str, subject: Subject, on: Setting) -> Iterator[str]:
    """Weights that change between forward and backward: the relevance is that of the forward pass, or an error."""
    parameters = list(on.module.parameters())
    before, expected = [p.detach().clone() for p in parameters], on.relevance(subject, rule)

    def ask(frozen: str) -> Iterator[str]:
        with attached(make(subject, rule), on.module):
            x = leaf(on.x)
            y = on.module(x)
            with torch.no_grad():
                for parameter in parameters:
                    parameter.mul_(-2.0)
            found = grad(y, x, on.R)
        yield from differs(found, expected, f"with {frozen}weights that changed after the forward pass, the relevance")

    for learns in (True, False):
        with torch.no_grad():
            for parameter, value in zip(parameters, before, strict=True):
                parameter.requires_grad_(learns).copy_(value)
        yield from unless_refused(ask("" if learns else "frozen "))


def _removed(rule: str, subject: Subject, on: Setting) -> Iterator[str]:
    """A graph that was made with the rule keeps its relevance; the next call gives the gradient; twice is harmless."""
    expected, x = on.relevance(subject, rule), leaf(on.x)
    gradient, look, values = grad(on.module(x), x, on.R), Look(on.module), Values(on.module)
    handle = make(subject, rule).register(on.module)
    try:
        y = on.module(x)
    finally:
        handle.remove()
    yield from differs(grad(y, x, on.R), expected, "after remove(), the relevance of a graph from before")
    handle.remove()
    yield from complain(look.changes(), "after remove(), twice")
    yield from complain(values.changes(), "after remove(), twice")
    yield from differs(grad(on.module(x), x, on.R), gradient, "after remove(), the gradient")
    # nor does it take away what was registered later
    with attached(make(subject, rule), on.module):
        handle.remove()
        yield from differs(grad(on.module(x), x, on.R), expected, "after remove() of an earlier handle, the relevance")


def _untouched(rule: str, subject: Subject, on: Setting) -> Iterator[str]:
    """Input, relevance, output and parameters keep their bits and flags, and the output is that of the module alone."""
    values = Values(on.module)
    for needed in (True, False):
        x, R = on.x.clone().requires_grad_(needed), on.R.clone()
        plain = on.module(x)
        with attached(make(subject, rule), on.module):
            y = on.module(x)
            if not same_bits(y, plain) or y.stride() != plain.stride():
                yield f"the output is {y.tolist()}, expected that of the module alone, {plain.tolist()}"
            if y.requires_grad != plain.requires_grad:
                yield f"the output of an input with requires_grad={needed} has requires_grad={y.requires_grad}"
            if needed:
                (r,) = torch.autograd.grad(y, x, R)
                if r.untyped_storage().data_ptr() in {t.untyped_storage().data_ptr() for t in (x, y)}:
                    yield "the relevance lies in the memory of the input, or of the output"
        if x.requires_grad != needed:
            yield f"an input with requires_grad={needed} has requires_grad={x.requires_grad} afterwards"
        for name, now, before in (("input", x, on.x), ("relevance", R, on.R)):
            if not same_bits(now, before):
                yield f"the {name} was {before.tolist()} and is {now.tolist()}"
    yield from complain(values.changes(), "after forward and backward")


def _keyword(rule: str, subject: Subject, on: Setting) -> Iterator[str]:
    """A tensor by keyword gets its relevance, or there is an error: never the gradient without a word."""
    expected = on.relevance(subject, rule)

    def ask() -> Iterator[str]:
        with attached(make(subject, rule), on.module):
            x = leaf(on.x)
            found = grad(on.module(input=x), x, on.R)
        yield from differs(found, expected, "the relevance of a tensor passed by keyword")

    yield from unless_refused(ask())


def _hooks(rule: str, subject: Subject, on: Setting) -> Iterator[str]:
    """Hooks of others are called as often as without the rule, and what they return counts."""
    expected, calls = on.relevance(subject, rule), list[str]()

    def ask() -> Iterator[str]:
        x = leaf(on.x)
        x.register_hook(lambda _: calls.append("gradient of the input"))
        others = [
            on.module.register_forward_pre_hook(lambda *_: calls.append("forward pre-hook")),
            on.module.register_forward_hook(lambda *_: calls.append("forward hook")),
        ]
        with contextlib.ExitStack() as stack:
            for other in others:
                stack.callback(other.remove)
            stack.enter_context(attached(make(subject, rule), on.module))
            last = on.module.register_forward_hook(lambda *_: calls.append("forward hook, later"))
            stack.callback(last.remove)
            y = on.module(x)
            y.register_hook(lambda _: calls.append("gradient of the output"))
            found = grad(y, x, on.R)
        yield from differs(found, expected, "with hooks of others that look on, the relevance")

    yield from ask()
    wanted = ["forward pre-hook", "forward hook", "forward hook, later", "gradient of the output",
              "gradient of the input"]  # fmt: skip
    if sorted(calls) != sorted(wanted):
        yield f"of others' hooks these were called: {', '.join(calls)}; expected each once: {', '.join(wanted)}"


def _backward_hook(rule: str, subject: Subject, on: Setting) -> Iterator[str]:
    """A full backward hook of another is called, with the relevance; or the rule says that it cannot be."""
    expected, seen = on.relevance(subject, rule), list[Tensor]()

    def look(_module: nn.Module, gradients: Any, _relevances: Any) -> None:
        seen.append(gradients[0].detach().clone())

    def ask() -> Iterator[str]:
        handle = on.module.register_full_backward_hook(look)
        try:
            with attached(make(subject, rule), on.module):
                x = leaf(on.x)
                yield from differs(grad(on.module(x), x, on.R), expected, "with a backward hook, the relevance")
        finally:
            handle.remove()
        if len(seen) != 1:
            yield f"another's full backward hook is called {len(seen)} times"

    yield from unless_refused(ask())


class _BoomError(Exception):
    """What a stabilizer raises here."""


def _raising(rule: str, subject: Subject, on: Setting) -> Iterator[str]:
    """An exception of the stabilizer leaves nothing behind, and the next call is right."""
    expected, values, look = on.relevance(subject, rule), Values(on.module), Look(on.module)
    fuse = [True]

    def stabilizer(d: Tensor) -> Tensor:
        if fuse[0]:
            raise _BoomError
        return power(d)

    with attached(subject.get(rule)(**arguments(rule, stabilizer)), on.module):
        with contextlib.suppress(_BoomError):
            x = leaf(on.x)
            grad(on.module(x), x, on.R)
        yield from complain(values.changes(), "after an exception in the stabilizer")
        fuse[0] = False
        x = leaf(on.x)
        yield from differs(grad(on.module(x), x, on.R), expected, "after an exception in the stabilizer, the relevance")
    yield from complain(values.changes(), "after an exception in the stabilizer, and remove()")
    yield from complain(look.changes(), "after an exception in the stabilizer, and remove()")


def _world() -> dict[str, Any]:
    """Return what there is of global state: generators, and the switches of torch, NumPy and Python."""
    return {
        "Python's random numbers": random.getstate(),
        "NumPy's random numbers": str(np.random.get_state()),  # noqa: NPY002  the global one is what is looked at
        "torch's random numbers": torch.get_rng_state().numpy().tobytes(),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "anomaly mode": torch.is_anomaly_enabled(),
        "default dtype": torch.get_default_dtype(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "precision of products": torch.get_float32_matmul_precision(),
        "number of threads": torch.get_num_threads(),
        "cudnn.benchmark": torch.backends.cudnn.benchmark,
        "cudnn.deterministic": torch.backends.cudnn.deterministic,
        "cudnn.enabled": torch.backends.cudnn.enabled,
        "cudnn.allow_tf32": torch.backends.cudnn.allow_tf32,
        "matmul.allow_tf32": torch.backends.cuda.matmul.allow_tf32,
        "mkldnn": torch.backends.mkldnn.is_available() and torch._C._get_mkldnn_enabled(),  # noqa: SLF001  no public one
        "autocast": torch.is_autocast_enabled("cpu"),
        "multithreading of autograd": torch.autograd.is_multithreading_enabled()
        if hasattr(torch.autograd, "is_multithreading_enabled")
        else None,
        "print options": str(torch._tensor_str.PRINT_OPTS),  # noqa: SLF001  no public one
        "NumPy's errors": tuple(np.geterr().items()),
        "filters of warnings": len(warnings.filters),
        "subnormal numbers": float(torch.tensor(2.0**-1074, dtype=torch.float64) * 1) > 0,
    }


def _global(rule: str, subject: Subject, on: Setting) -> Iterator[str]:
    """No generator is drawn from and no switch is left in another position, by any step."""
    before = _world()

    def changes(when: str) -> Iterator[str]:
        now = _world()
        changed = [name for name, value in before.items() if now[name] != value]
        if changed:
            yield f"{when} changes {', '.join(changed)}"

    with attached(make(subject, rule), on.module):
        yield from changes("registering")
        x = leaf(on.x)
        y = on.module(x)
        yield from changes("the forward pass")
        grad(y, x, on.R)
        yield from changes("the backward pass")
        x = leaf(on.x)
        r = grad(on.module(x), x, on.R, create_graph=True)
        yield from changes("a backward pass with create_graph=True")
        del r
    yield from changes("remove()")


def _copied(rule: str, subject: Subject, on: Setting) -> Iterator[str]:
    """A copy of a module that has a rule has none; with one of its own, it has its own weights, too."""
    x = leaf(on.x)
    gradient = grad(on.module(x), x, on.R)
    with attached(make(subject, rule), on.module):
        grad(on.module(x), x, on.R)
        twin = deepcopy(on.module)
        yield from differs(grad(twin(x), x, on.R), gradient, "what a copy gives, no relevance,")
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(-2.0)
    expected = asked(subject, rule, on.clean(twin), on.x, on.R)
    yield from differs(asked(subject, rule, twin, on.x, on.R), expected, "the relevance of a copy with other weights")
    fresh = on.relevance(subject, rule)
    instance = make(subject, rule)
    with attached(instance, on.module), attached(deepcopy(instance), twin):
        yield from differs(
            grad(twin(x), x, on.R), expected, "the relevance of a copy with other weights, and a copy of the rule"
        )
        yield from differs(grad(on.module(x), x, on.R), fresh, "beside it, the relevance of the module")


def _again(rule: str, subject: Subject, on: Setting) -> Iterator[str]:
    """One graph may be gone through again, and with create_graph=True in between."""
    expected = on.relevance(subject, rule)
    with attached(make(subject, rule), on.module):
        x = leaf(on.x)
        y = on.module(x)
        for create in (False, True, False):
            found = grad(y, x, on.R, retain_graph=True, create_graph=create)
            yield from differs(found.detach(), expected, f"a further pass with create_graph={create}: the relevance")


def _linear(rule: str, subject: Subject, on: Setting) -> Iterator[str]:
    """A relevance is linear in R, and its derivative by R, twice, is that of a linear function."""
    v = on.other
    with attached(make(subject, rule), on.module):
        x, R = leaf(on.x), leaf(on.R)
        r = torch.autograd.grad(on.module(x), x, R, create_graph=True)[0]
        if not r.requires_grad:
            yield "the relevance with create_graph=True has no graph"
            return
        (by_R,) = torch.autograd.grad((r * v).sum(), R, create_graph=True, allow_unused=True)
        if by_R is None:
            yield "the relevance does not depend on R"
            return
        wanted, got = (r.detach() * v).sum(), (by_R * R).sum().detach()
        if rule in WEIGHED and not bool(got == wanted):
            yield f"<R, d<r, v>/dR> is {got}, expected <r, v> = {wanted}"


def _bad(rule: str, subject: Subject, on: Setting) -> Iterator[str]:
    """NaN and infinity in one sample reach no other, and are not hidden."""
    if rule in GRADIENT:
        return
    alone = on.relevance(subject, rule)
    for value in (torch.nan, torch.inf):
        x = on.x.clone()
        x[0].view(-1)[0] = value
        found = asked(subject, rule, on.module, x, on.R)
        yield from differs(found[1:], alone[1:], f"beside a sample with {value}, the relevance of the others")
        R = on.R.clone()
        R[1].view(-1)[-1] = value
        found = asked(subject, rule, on.module, on.x, R)
        yield from differs(found[:1], alone[:1], f"beside a relevance with {value}, that of the other samples")
        if rule != "Gamma" and bool(found[1].isfinite().all()) and bool((alone[1] != 0).all()):
            yield f"{value} in R is hidden: the relevance is {found[1].tolist()}"


def _batched(rule: str, subject: Subject, on: Setting) -> Iterator[str]:
    """Several relevances at once give what each of them gives, or are refused."""
    several = torch.stack([on.R, on.its_R, -2 * on.R])

    def constant(d: Tensor) -> Tensor:
        return torch.where(d < 0, torch.full_like(d, -4.0), torch.full_like(d, 8.0))

    given = arguments(rule, constant)

    def ask() -> Iterator[str]:
        with attached(subject.get(rule)(**given), on.module):
            x = leaf(on.x)
            y = on.module(x)
            expected = torch.stack([grad(y, x, R, retain_graph=True) for R in several])
            found = grad(y, x, several, is_grads_batched=True)
        yield from differs(found, expected, "the relevance with is_grads_batched=True")

    yield from unless_refused(ask())


def _without(rule: str, subject: Subject, on: Setting) -> Iterator[str]:
    """Under no_grad there is the output alone, and the call after it has its relevance."""
    expected = on.relevance(subject, rule)
    with attached(make(subject, rule), on.module):
        with torch.no_grad():
            y = on.module(on.x)
        if y.requires_grad:
            yield "under no_grad, the output requires a gradient"
        x = leaf(on.x)
        yield from differs(grad(on.module(x), x, on.R), expected, "after a call under no_grad, the relevance")


def _several(rule: str, subject: Subject, on: Setting) -> Iterator[str]:
    """One instance on two modules works as two instances do, or is refused; nor do instances know each other."""
    other = deepcopy(on.module)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(-0.5)
    expected = on.relevance(subject, rule), asked(subject, rule, other, on.x, on.R)
    instance = make(subject, rule)
    try:
        with attached(instance, other):
            with attached(instance, on.module):
                x = leaf(on.x)
                found = grad(on.module(x), x, on.R), grad(other(x), x, on.R)
            x = leaf(on.x)
            left = grad(other(x), x, on.R)
    except NotOfferedError:
        raise
    except Exception as error:
        yield from unclear(error)
        return
    for got, wanted in zip(found, expected, strict=True):
        yield from differs(got, wanted, "one rule on two modules: the relevance")
    yield from differs(left, expected[1], "one rule on two modules, and removed from one: the relevance of the other")


#: By name: how it is asked, of which rules.
_TOPICS: dict[str, tuple[Ask, tuple[str, ...]]] = {
    "calls-in-a-row": (_twice, RULES),
    "forwards-before-backwards": (_order, RULES),
    "two-calls-in-one-pass": (_together, RULES),
    "weights-after-a-step": (_stepped, (*WEIGHED, "Pass")),
    "weights-after-forward": (_late, WEIGHED),
    "graph-after-remove": (_removed, RULES),
    "bits-and-flags": (_untouched, RULES),
    "by-keyword": (_keyword, RULES),
    "hooks-of-others": (_hooks, RULES),
    "backward-hook-of-another": (_backward_hook, RULES),
    "stabilizer-raises": (_raising, WEIGHED),
    "global-state": (_global, RULES),
    "copies": (_copied, RULES),
    "one-graph-again": (_again, RULES),
    "derivative-by-relevance": (_linear, RULES),
    "nan-in-a-sample": (_bad, WEIGHED),
    "batched-relevance-of": (_batched, RULES),
    "after-no-grad": (_without, RULES),
    "one-rule-two-modules": (_several, RULES),
}


def cases() -> Iterator[Case]:
    """Yield the cases: each topic of each rule on each layer."""
    for rule in RULES:
        for what, (ask, rules) in _TOPICS.items():
            if rule in rules:
                for kind in kinds(rule):
                    if not _applies(what, setting(rule, kind).module):
                        continue
                    id_ = f"conduct/{rule}/{what}/{kind}"
                    yield Case(id_, rule, "-", "conduct", "-", Level.MUST, partial(_judge, ask, rule, kind))


def _applies(what: str, module: nn.Module) -> bool:
    """Whether there is something to ask of a layer."""
    if what in {"weights-after-a-step", "weights-after-forward"}:
        return next(module.parameters(), None) is not None
    return what != "by-keyword" or not isinstance(module, nn.MaxPool1d)


def _judge(ask: Ask, rule: str, kind: str, subject: Subject) -> Finding:
    for complaint in ask(rule, subject, setting(rule, kind)):
        return fail(complaint)
    return passed()
