"""Conduct: what a rule is given, in forms that are seldom tried, and halves of a formula that take no part.

Each topic was the mistake of somebody who knew the specification alone, and was found by no case before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from verify.checks.conduct.probing import (
    R,
    Topic,
    X,
    attached,
    differs,
    fresh,
    grad,
    layer,
    leaf,
    make,
    tensor,
    unless_refused,
)
from verify.model import Level
from verify.subjects.asking import relevance_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from verify.model import Subject

#: Rules whose relevance is made of the input.
_OF_INPUT = ("Epsilon", "Norm", "ZPlus", "AlphaBeta", "Gamma", "ZBox")
#: Those that can be put on a batch normalisation that learns.
_ANYWHERE = ("Epsilon", "Norm", "Pass")


def _expanded(rule: str, subject: Subject) -> Iterator[str]:
    """Take a relevance that is one number in memory, as `sum()` and `expand` make it, for what it is."""
    module = layer(rule)
    for value in (3.0, -0.5):
        whole = torch.full_like(R, value)
        expected = fresh(subject, rule, module, relevance=whole)
        with attached(make(subject, rule), module):
            x = leaf(X)
            (found,) = torch.autograd.grad(module(x), x, tensor(value).expand(R.shape))
        yield from differs(found, expected, f"with a relevance of {value:g} that is expanded, the relevance")


def _entry(rule: str, subject: Subject) -> Iterator[str]:
    """Show NaN in an entry of the input in the relevance of that entry."""
    module = layer(rule)
    for index in range(X.shape[1]):
        x = X.clone()
        x[0, index] = torch.nan
        found = fresh(subject, rule, module, x)
        if not bool(found[0, index].isnan()):
            yield f"entry {index} of the input is NaN, and its relevance is {found[0, index].item():g}"


def _kept(rule: str, subject: Subject) -> Iterator[str]:
    """Leave bounds as they were: their numbers, shape and memory."""
    module, x = nn.Conv2d(3, 2, 2).double(), torch.ones(1, 3, 3, 3, dtype=torch.float64)
    ones = torch.ones(1, 2, 2, 2, dtype=torch.float64)
    low, high = tensor([[-1.0, -2.0, -3.0]]), tensor([[[1.0], [2.0], [4.0]]])
    for bound in (low, high):
        before = bound.clone()
        given = {"low": bound, "high": 5.0} if bound is low else {"low": -4.0, "high": bound}
        relevance_of(subject.get(rule)(**given), module, x, ones)
        if bound.shape != before.shape or not torch.equal(bound, before):
            now = f"{tuple(bound.shape)} afterwards, and the numbers {bound.flatten().tolist()}"
            yield f"a bound of shape {tuple(before.shape)} has shape {now}"


def _leading(rule: str, subject: Subject) -> Iterator[str]:
    """Align bounds with fewer dimensions at the front, also where they would fit at the end."""
    module = nn.Conv2d(3, 2, 2).double()
    x = torch.linspace(-2, 2, 54, dtype=torch.float64).reshape(2, 3, 3, 3)
    with torch.no_grad():
        ones = torch.ones_like(module(x))
    for low in (tensor([[-5.0, -4.0, -3.0]]), tensor([[[-5.0], [-4.0], [-3.0]]])):
        full = low.reshape(1, 3, 1, 1).expand(1, 3, 3, 3)
        found, expected = (
            relevance_of(subject.get(rule)(low=bound, high=4.0), module, x, ones) for bound in (low, full.clone())
        )
        yield from differs(found, expected, f"with a lower bound of shape {tuple(low.shape)}, the relevance")


def _counted(rule: str, subject: Subject) -> Iterator[str]:
    """Run a module that keeps statistics once: a backward pass is no further batch."""

    def ask() -> Iterator[str]:
        alone, module = (nn.BatchNorm1d(3).double() for _ in range(2))
        alone(X)
        with attached(make(subject, rule), module):
            x = leaf(X)
            grad(module(x), x, R)
        for name, buffer in alone.named_buffers():
            yield from differs(module.get_buffer(name).double(), buffer.double(), f"after one batch, {name}")

    yield from unless_refused(ask())


#: Weights with the relevance of inputs of 1 that share 3, where the other half's denominator is zero.
_HALVES = {
    # with gamma = 1, d = 4 - 1 for z = 1, and d = 1 - 4 for z = -1; the other half's is 2 - 2
    "Gamma": ({"gamma": 1.0}, (((2.0, -1.0), (4.0, -1.0)), ((1.0, -2.0), (-1.0, 4.0)))),
    # without negative contributions, the half that beta = 0 leaves out is 0 / 0
    "AlphaBeta": ({"alpha": 1.0, "beta": 0.0}, (((2.0, 1.0), (2.0, 1.0)),)),
}


def _untaken(rule: str, subject: Subject) -> Iterator[str]:
    """Leave out a half of the formula that takes no part, also where its denominator is zero and nothing stabilizes."""
    module = nn.Linear(2, 1, bias=False).double()
    arguments, examples = _HALVES[rule]
    for weights, expected in examples:
        with torch.no_grad():
            module.weight.copy_(tensor([weights]))
        hook = subject.get(rule)(stabilizer=0.0, **arguments)
        found = relevance_of(hook, module, tensor([[1.0, 1.0]]), tensor([[3.0]]))
        yield from differs(found, tensor([expected]), f"with stabilizer=0 and weights {weights}, the relevance")


def _divided(rule: str, subject: Subject) -> Iterator[str]:
    """Do not make relevance vanish where nothing stabilizes a denominator of zero: what has no value is no zero."""
    module = nn.Linear(2, 1, bias=False).double()
    with torch.no_grad():
        module.weight.copy_(tensor([[1.0, -1.0]]))
    name = "epsilon" if rule == "Epsilon" else "stabilizer"
    found = relevance_of(subject.get(rule)(**{name: 0.0}), module, tensor([[1.0, 1.0]]), tensor([[3.0]]))
    if bool(found.isfinite().all()):
        yield f"3 / 0 with {name}=0 gives the relevance {found.tolist()}"


TOPICS = (
    Topic("relevance-expanded", _expanded),
    Topic("input-entry-is-nan", _entry, _OF_INPUT),
    Topic("bounds-are-kept", _kept, ("ZBox",)),
    Topic("bounds-lead", _leading, ("ZBox",)),
    Topic("a-batch-counts-once", _counted, _ANYWHERE),
    Topic("half-without-part", _untaken, ("Gamma", "AlphaBeta")),
    Topic("nothing-stabilizes-zero", _divided, ("Epsilon", "Norm"), Level.SHOULD),
)
