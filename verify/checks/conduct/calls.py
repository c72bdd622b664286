"""Conduct: calls do not know each other, nor do modules, copies and threads."""

from __future__ import annotations

import contextlib
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from verify.checks.conduct.looking import Look
from verify.checks.conduct.probing import (
    OTHER,
    OTHER_R,
    R,
    Topic,
    X,
    arguments,
    attached,
    complain,
    differs,
    fresh,
    grad,
    layer,
    leaf,
    linear,
    make,
    power,
    tensor,
    unclear,
    watched,
)
from verify.model import Level, NotOfferedError
from verify.subjects.asking import relevance_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from verify.model import Subject


def _same_answer(rule: str, subject: Subject) -> Iterator[str]:
    """Neither a second call nor calls with other inputs, nor a second registration change the answer."""
    for module in (layer(rule), watched(rule)):
        expected, other = fresh(subject, rule, module), fresh(subject, rule, module, OTHER, OTHER_R)
        instance = make(subject, rule)
        for again in ("", ", registered again"):
            with attached(instance, module):
                for when, given, relevance, wanted in (
                    ("in the first call", X, R, expected),
                    ("in a second call", X, R, expected),
                    ("with another batch", OTHER, OTHER_R, other),
                    ("after another batch", X, R, expected),
                ):
                    x = leaf(given)
                    yield from differs(grad(module(x), x, relevance), wanted, f"the relevance {when}{again}")


def _two_forwards(rule: str, subject: Subject) -> Iterator[str]:
    """Two forward passes before two backward passes, in the same order and in the opposite one."""
    for module in (layer(rule), watched(rule)):
        # of one shape, so that what is mixed up is a wrong number
        inputs, relevances = (X, OTHER[:2]), (R, OTHER_R[:2])
        expected = [fresh(subject, rule, module, *given) for given in zip(inputs, relevances, strict=True)]
        for order in ((0, 1), (1, 0)):
            with attached(make(subject, rule), module):
                xs = [leaf(x) for x in inputs]
                ys = [module(x) for x in xs]
                for k in order:
                    found = grad(ys[k], xs[k], relevances[k])
                    yield from differs(found, expected[k], f"backward passes in order {order}: relevance {k}")


def _called_twice(rule: str, subject: Subject) -> Iterator[str]:
    """A module called three times in one forward pass is like three modules with equal parameters."""

    def run(f: nn.Module, g: nn.Module, h: nn.Module, x: Tensor) -> Tensor:
        out: Tensor = f(g(x) - 1) + 2 * h(x)
        return out

    for module in (layer(rule), watched(rule)):
        f, g, h = (deepcopy(module) for _ in range(3))
        x = leaf(X)
        with (
            attached(make(subject, rule), f),
            attached(make(subject, rule), g),
            attached(make(subject, rule), h),
        ):
            expected = grad(run(f, g, h, x), x, R)
        with attached(make(subject, rule), module):
            found = grad(run(module, module, module, x), x, R)
        yield from differs(found, expected, "the relevance through a module called three times")


def _two_modules(rule: str, subject: Subject) -> Iterator[str]:
    """One instance on two modules works like two instances, or is refused."""
    first, second = layer(rule), layer(rule, scale=-0.5)
    x = leaf(X)
    with attached(make(subject, rule), first), attached(make(subject, rule), second):
        expected = grad(second(first(x) - 1), x, R)
    instance = make(subject, rule)
    try:
        with attached(instance, first), attached(instance, second):
            found = grad(second(first(x) - 1), x, R)
    except NotOfferedError:
        raise
    except Exception as error:
        yield from unclear(error)
        return
    yield from differs(found, expected, "the relevance through two modules with one rule")


class _Square(nn.Module):
    """Its Jacobian is exact, and depends on the input."""

    def forward(self, input: Tensor) -> Tensor:
        return input * input


def _rules_inside(rule: str, subject: Subject) -> Iterator[str]:
    """A rule on a module whose parts have rules, too, uses the Jacobian of the module, whatever these say."""
    first, second, third = linear(), _Square(), linear(scale=-0.5)
    module = nn.Sequential(first, second, third)
    expected = fresh(subject, rule, module)
    for parts in ((first,), (second,), (first, second, third)):
        with contextlib.ExitStack() as stack:
            stack.enter_context(attached(make(subject, rule), module))
            for part in parts:
                stack.enter_context(attached(make(subject, rule), part))
            x = leaf(X)
            found = grad(module(x), x, R)
        names = " and ".join(type(part).__name__.strip("_") for part in parts)
        yield from differs(found, expected, f"with rules on {names} inside the module, the relevance")


def _registered_twice(rule: str, subject: Subject) -> Iterator[str]:
    """A rule registered twice gives the relevance of one, or is refused; in either case remove() takes all away."""
    for kind in ("the same rule", "another rule of that kind"):
        module = layer(rule)
        expected, look = fresh(subject, rule, module), Look(module)
        instance = make(subject, rule)
        with attached(instance, module):
            try:
                with attached(instance if kind == "the same rule" else make(subject, rule), module):
                    x = leaf(X)
                    found = grad(module(x), x, R)
            except NotOfferedError:
                raise
            except Exception as error:
                yield from unclear(error)
            else:
                yield from differs(found, expected, f"{kind}, registered twice: the relevance")
            x = leaf(X)
            yield from differs(grad(module(x), x, R), expected, f"{kind}, once of two times left: the relevance")
        yield from complain(look.changes(), f"{kind}, registered twice and removed")


def shifted(d: Tensor) -> Tensor:
    """Stabilize by 8 with the opposite sign, which no number does; at module level, as users write it."""
    return torch.where(d < 0, d + 8.25, d - 8.25)


_NUMBER: dict[str, Any] = {"stabilizer": 0.5}
_CALLABLE: dict[str, Any] = {"stabilizer": shifted}
_ZERO: dict[str, Any] = {"zero_params": ["bias"]}
_LOW = tensor([[-4.0, -3.0, -2.5]])
#: Arguments other than the defaults: each alone, so that none hides another.
UNUSUAL: dict[str, tuple[dict[str, Any], ...]] = {
    "Epsilon": ({"epsilon": 0.5}, {"epsilon": shifted}, {"zero_params": "bias"}),
    "Norm": (_NUMBER, _CALLABLE),
    "ZPlus": (_NUMBER, _CALLABLE, _ZERO),
    "AlphaBeta": ({"alpha": 3.0, "beta": 2.0}, _NUMBER, _CALLABLE, _ZERO),
    "Gamma": ({"gamma": 3.0}, _NUMBER, _CALLABLE, _ZERO),
    "ZBox": ({"low": -2.0}, {"high": 5.0}, {"low": _LOW, "high": -2 * _LOW}, _NUMBER, _CALLABLE),
    "WSquare": (_NUMBER, _CALLABLE, _ZERO),
    "Flat": (_NUMBER, _CALLABLE),
    "Pass": ({},),
    "ReLUDeconvNet": ({},),
    "ReLUGuidedBackprop": ({},),
    "ReLUBetaSmooth": ({"beta_smooth": 3.0},),
    "Uniform": ({},),
    "SignalTakesAll": ({"signal": 0},),
    "Bilinear": (_NUMBER, _CALLABLE),
    "Softmax": ({"dim": 1},),
    "Stop": ({},),
    "LayerNormRule": (_NUMBER, _CALLABLE, _ZERO),
}


def _copied(way: str, duplicate: Callable[[Any], Any]) -> Callable[[str, Subject], Iterator[str]]:
    """Check that a duplicate has every argument, by the relevance that it gives."""

    def ask(rule: str, subject: Subject) -> Iterator[str]:
        module = layer(rule)
        for unusual in UNUSUAL[rule]:
            if way == "pickle" and shifted in unusual.values():
                continue
            box = {"low": -4.0, "high": 3.0} if rule == "ZBox" else {}
            original = subject.get(rule)(**box | deepcopy(unusual))
            for when in ("new", "used"):
                copied = duplicate(original)
                expected = relevance_of(original, module, X.clone(), R.clone())
                found = relevance_of(copied, module, X.clone(), R.clone())
                yield from differs(found, expected, f"{rule}({_names(unusual)}), {when}: the relevance of its {way}")

    return ask


def _names(values: dict[str, Any]) -> str:
    return ", ".join(f"{key}={getattr(value, '__name__', value)}" for key, value in values.items())


def _threads(rule: str, subject: Subject) -> Iterator[str]:
    """Two threads, each with a model of its own, wait for each other between all steps, and in the stabilizer."""
    barrier = threading.Barrier(2)

    def meet() -> None:
        with contextlib.suppress(threading.BrokenBarrierError):  # a subject may do one after the other
            barrier.wait(timeout=2)

    def meeting(d: Tensor) -> Tensor:
        meet()
        return power(d)

    def work(module: nn.Module, x: Tensor, relevance: Tensor) -> list[Tensor]:
        found = []
        with attached(subject.get(rule)(**arguments(rule, meeting)), module):
            for _ in range(2):
                x = leaf(x)
                meet()
                y = module(x)
                meet()
                found.append(grad(y, x, relevance))
        return found

    for kind in (layer, watched):
        tasks = [(kind(rule), X, R), (kind(rule, scale=-0.5), OTHER, OTHER_R)]
        expected = [fresh(subject, rule, *task) for task in tasks]
        barrier.reset()
        with ThreadPoolExecutor(2) as pool:
            results = [future.result() for future in [pool.submit(work, *task) for task in tasks]]
        for found, wanted in zip(results, expected, strict=True):
            for r in found:
                yield from differs(r, wanted, "the relevance of a model, while another is explained")


def _retained(rule: str, subject: Subject) -> Iterator[str]:
    """One graph may be gone through again, with the same relevance or another."""
    for module in (layer(rule), watched(rule)):
        expected, other = fresh(subject, rule, module), fresh(subject, rule, module, X, OTHER_R[:2])
        x = leaf(X)
        with attached(make(subject, rule), module):
            y = module(x)
            for relevance, wanted in ((R, expected), (R, expected), (OTHER_R[:2], other), (R, expected)):
                found = grad(y, x, relevance, retain_graph=True)
                yield from differs(found, wanted, "the relevance of a further backward pass through one graph")


def _create_graph(rule: str, subject: Subject) -> Iterator[str]:
    """A relevance can be differentiated again, by R say: it is linear in R, so <R, d<r, v>/dR> is <r, v>."""
    v = OTHER[:2]
    for module in (layer(rule), watched(rule)):
        expected = fresh(subject, rule, module)
        x, relevance = leaf(X), leaf(R)
        with attached(make(subject, rule), module):
            y = module(x)
            r = grad(y, x, relevance, create_graph=True)
            yield from differs(r, expected, "the relevance with create_graph=True")
            if not r.requires_grad:
                yield "the relevance with create_graph=True has no graph"
            by_R, by_x = torch.autograd.grad((r * v).sum(), (relevance, x), allow_unused=True, retain_graph=True)
            if by_R is None:
                yield "the relevance does not depend on R, expected to be linear in it"
            wanted = (r.detach() * v).sum()
            room = 0.0 if rule != "ReLUBetaSmooth" else 64 * torch.finfo(v.dtype).eps * (r.detach() * v).abs().sum()
            if not bool(((by_R * R).sum() - wanted).abs() <= room):
                yield f"<R, d<r, v>/dR> is {(by_R * R).sum()}, expected <r, v> = {wanted}"
            if by_x is not None and not bool(by_x.isfinite().all()):
                yield f"d<r, v>/dx is {by_x.tolist()}"
            yield from differs(grad(y, x, R), expected, "the relevance of a backward pass after a second derivative")


TOPICS = (
    Topic("same-answer", _same_answer),
    Topic("two-forwards", _two_forwards),
    Topic("called-twice", _called_twice),
    Topic("two-modules", _two_modules),
    Topic("registered-twice", _registered_twice),
    # The specification says that A is the Jacobian of the module, and nothing of rules on its parts
    Topic("rules-inside", _rules_inside, ("Epsilon", "Norm"), Level.SHOULD),
    Topic("copy", _copied("copy()", lambda rule: rule.copy())),
    # The specification asks for copy() alone
    Topic("deepcopy", _copied("deepcopy", deepcopy), level=Level.SHOULD),
    Topic("pickle", _copied("pickle", lambda rule: pickle.loads(pickle.dumps(rule))), level=Level.SHOULD),  # noqa: S301  our own
    Topic("threads", _threads, level=Level.SHOULD),
    Topic("retain-graph", _retained),
    Topic("create-graph", _create_graph),
)
