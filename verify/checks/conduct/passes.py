"""Conduct: relevance in a loss, beside the output. One pass of autograd then is no propagation of relevance any more.

There a layer is differentiated as it is, whatever else is in the loss, in whatever order autograd comes by the layers,
and on whatever thread: the gradient of a sum is the sum of the gradients.
"""

from __future__ import annotations

import contextlib
import threading
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from verify.checks.conduct.probing import (
    OTHER,
    WEIGHED,
    R,
    Topic,
    X,
    attached,
    differs,
    fill,
    grad,
    leaf,
    linear,
    make,
    tensor,
    unless_refused,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from verify.model import Subject

    #: Given the model, its input and another one, the relevance, and the output that is beside it in the loss.
    Pass = Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor]]

#: What relevance and output are multiplied by in the loss.
_V, _U = tensor([[1.0, -0.5, 2.0], [0.5, 1.5, -1.0]]), tensor([[-1.0, 2.0, 0.5], [3.0, -0.25, 1.0]])
#: More operations than the models here have.
_MANY = 100
#: The relevance of Flat depends on nothing that could be differentiated.
_RULES = tuple(rule for rule in WEIGHED if rule != "Flat")


@contextlib.contextmanager
def _explained(subject: Subject, rule: str, model: nn.Sequential) -> Iterator[None]:
    with attached(make(subject, rule), model[0]), attached(make(subject, rule), model[2]):
        yield


def _beside(model: nn.Module, x: Tensor, _other: Tensor) -> tuple[Tensor, Tensor]:
    y = model(x)
    return grad(y, x, R, create_graph=True), y


def _before(model: nn.Module, x: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    z = model(other)
    return grad(model(x), x, R, create_graph=True), z


def _after(model: nn.Module, x: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    r = grad(model(x), x, R, create_graph=True)
    return r, model(other)


def _on_a_thread(model: nn.Module, x: Tensor, _other: Tensor) -> tuple[Tensor, Tensor]:
    # autograd goes through nodes in an order that is counted by each thread for itself, and this one may be far ahead
    ahead = leaf(x)
    for _ in range(_MANY):
        ahead = ahead * 1
    y = model(x)
    found: list[Tensor] = []
    thread = threading.Thread(target=lambda: found.append(grad(y, x, R, create_graph=True)))
    thread.start()
    thread.join()
    return found[0], y


def _gradients(loss: Tensor, of: Sequence[Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(loss, of, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for t, g in zip(of, found, strict=True)]


def _sum(way: Pass, rule: str, subject: Subject) -> Iterator[str]:
    """The gradient of <r, v> + <y, u> is that of <r, v>, in a pass of its own, and that of <y, u> without a rule."""
    model = nn.Sequential(linear(), nn.ReLU(), linear(scale=-0.5))
    # where another input wants no gradient, the first layer has no rule to follow, but parameters all the same
    for requires_grad in (True, False) if way is _after else (True,):
        x, other = leaf(X), OTHER[:2].clone().requires_grad_(requires_grad)
        of = {"input": x, **dict(model.named_parameters())} | ({"other input": other} if requires_grad else {})
        with _explained(subject, rule, model):
            r, y = way(model, x, other)
            # while the rules are there, as in training
            found = _gradients((r * _V).sum() + (y * _U).sum(), list(of.values()))
        with _explained(subject, rule, model):
            r = grad(model(x), x, R, create_graph=True)
        of_relevance = _gradients((r * _V).sum(), list(of.values()))
        of_output = _gradients((model(other if way in _OTHERS else x) * _U).sum(), list(of.values()))
        for name, together, first, second in zip(of, found, of_relevance, of_output, strict=True):
            what = f"the gradient of a loss of relevance and output by {name}, expected the sum of both alone,"
            yield from differs(together, first + second, what)


_OTHERS = (_before, _after)

#: Weight, bias and arguments with which r = a x / (a x + 1), with a the weight times the factor, for one input x.
_ONE = {
    "Epsilon": (1.0, 0.75, 1.0, {"epsilon": 0.25}),
    "Norm": (1.0, 0.75, 1.0, {"stabilizer": 0.25}),
    "ZPlus": (1.0, 0.75, 1.0, {"stabilizer": 0.25}),
    "AlphaBeta": (1.0, 0.75, 1.0, {"alpha": 1.0, "beta": 0.0, "stabilizer": 0.25}),
    "Gamma": (0.5, 0.375, 2.0, {"gamma": 1.0, "stabilizer": 0.25}),
    "ZBox": (1.0, 0.0, 1.0, {"low": 0.0, "high": 4.0, "stabilizer": 1.0}),
}


def _third(rule: str, subject: Subject) -> Iterator[str]:
    """Derivatives of a relevance, three times in a row, by the input and by the weight, are right or refused.

    With u = a x = 1 all are exact: r' = 1 / (u + 1)^2, then -2 / (u + 1)^3 and 6 / (u + 1)^4, times the factors.
    """
    weight, bias, factor, given = _ONE[rule]

    def ask(by: str) -> Iterator[str]:
        module = torch.nn.Linear(1, 1, dtype=torch.float64)
        fill(module, weight=[[weight]], bias=[bias])
        x = leaf(tensor([[1.0]]))
        of, inner = (x, 1.0) if by == "input" else (module.weight, factor)
        with attached(subject.get(rule)(**given), module):
            found = grad(module(x), x, torch.ones_like(x), create_graph=True).sum()
            for times, expected in enumerate((0.25, -0.25, 0.375), 1):
                # what depends on nothing has the derivative zero
                slope: Tensor | None = None
                if found.requires_grad:
                    (slope,) = torch.autograd.grad(found, of, create_graph=times < 3, allow_unused=True)
                slope = torch.zeros_like(of) if slope is None else slope
                wanted = torch.full_like(of, expected * inner**times)
                yield from differs(slope.detach(), wanted.detach(), f"derivative {times} of a relevance by the {by}")
                found = slope.sum()

    for by in ("input", "weight"):
        yield from unless_refused(ask(by))


TOPICS = (
    Topic("output-beside-relevance", partial(_sum, _beside), _RULES),
    Topic("output-before-relevance", partial(_sum, _before), _RULES),
    Topic("output-after-relevance", partial(_sum, _after), _RULES),
    Topic("relevance-from-a-thread", partial(_sum, _on_a_thread), _RULES),
    Topic("three-derivatives", _third, tuple(_ONE)),
)
