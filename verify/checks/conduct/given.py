"""Conduct: what a rule is given, in forms that are seldom tried, and halves of a formula that take no part.

Each topic was the mistake of somebody who knew the specification alone, and was found by no case before.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from verify.checks.conduct.probing import (
    OTHER,
    OTHER_R,
    R,
    Topic,
    X,
    attached,
    differs,
    fill,
    fresh,
    grad,
    layer,
    leaf,
    linear,
    make,
    power,
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


#: The numbers of a rule, each of which gives another relevance.
_VALUES: dict[str, tuple[dict[str, Any], ...]] = {
    "Epsilon": ({"epsilon": 1.0}, {"epsilon": 0.25}, {"zero_params": "bias"}),
    "Norm": ({"stabilizer": 1.0}, {"stabilizer": 0.25}),
    "ZPlus": ({"stabilizer": 1.0}, {"stabilizer": 0.25}, {"zero_params": "bias"}),
    "AlphaBeta": ({"alpha": 2.0, "beta": 1.0}, {"alpha": 4.0, "beta": 3.0}, {"zero_params": "bias"}),
    "Gamma": ({"gamma": 0.25}, {"gamma": 2.0}, {"zero_params": "bias"}),
    "ZBox": ({"low": -4.0, "high": 3.0}, {"low": -6.0, "high": 3.5}, {"low": -4.0, "high": 8.0}),
    "WSquare": ({"stabilizer": 1.0}, {"stabilizer": 0.25}, {"zero_params": "bias"}),
    "Flat": ({"stabilizer": 1.0}, {"stabilizer": 0.25}),
    "ReLUBetaSmooth": ({"beta_smooth": 1.0}, {"beta_smooth": 4.0}),
}


def _another(rule: str, subject: Subject) -> Iterator[str]:
    """Do what this rule says, though another one of its class with other numbers was on the layer before."""
    module, others = layer(rule), _VALUES[rule]

    def ask(given: dict[str, Any], on: nn.Module) -> Tensor:
        return relevance_of(make(subject, rule, **given), on, X.clone(), R.clone())

    expected = [ask(given, layer(rule)) for given in others]
    for given, wanted in [*zip(others, expected, strict=True), (others[0], expected[0])]:
        yield from differs(ask(given, module), wanted, f"after rules with other numbers, with {given} the relevance")


def _nan(rule: str, subject: Subject) -> Iterator[str]:
    """Show NaN in an output as NaN in the relevance of what it was made of."""
    module = layer(rule)
    with torch.no_grad():
        module.get_parameter("bias")[0] = torch.nan
    found = fresh(subject, rule, module, OTHER, OTHER_R)
    if not bool(found.isnan().any()):
        yield f"an output is NaN, and all relevance is finite: {found.tolist()}"


def _half(rule: str, subject: Subject) -> Iterator[str]:
    """Stabilize by the number that is given also in 16 bits, where it is far below what the dtype resolves at 1."""
    name = "epsilon" if rule == "Epsilon" else "stabilizer"
    box = {"low": -1.0, "high": 0.0} if rule == "ZBox" else {"gamma": 1.0} if rule == "Gamma" else {}
    # w, and d for x = 1: with S(d) = 2 d, half of the relevance is left
    weight, d = {"Gamma": (2.0**-13, 2.0**-12), "WSquare": (2.0**-6, 2.0**-12)}.get(rule, (2.0**-12, 2.0**-12))
    share = 1.0 if rule == "AlphaBeta" else 0.5  # of alpha = 2
    for dtype in (torch.float16, torch.bfloat16):
        module = nn.Linear(1, 1, bias=False, dtype=dtype)
        with torch.no_grad():
            module.weight.fill_(weight)
        x = torch.tensor([[0.0 if rule == "ZBox" else 1.0], [1.0]], dtype=dtype)[:1]

        def ask(module: nn.Module = module, x: Tensor = x, dtype: torch.dtype = dtype) -> Iterator[str]:
            rule_ = subject.get(rule)(**box, **{name: d})
            found = relevance_of(rule_, module, x, torch.ones(1, 1, dtype=dtype))
            yield from differs(
                found,
                torch.full((1, 1), share, dtype=dtype),
                f"in {dtype} with {name}={d}, where d is the same, the relevance",
            )

        yield from unless_refused(ask())


def _elsewhere(rule: str, subject: Subject) -> Iterator[str]:
    """Give on another thread than that of the forward pass what is given on the same."""
    module = layer(rule)
    expected, found = fresh(subject, rule, module), list[Tensor | Exception]()

    def backward(y: Tensor, x: Tensor) -> None:
        try:
            found.append(grad(y, x, R))
        except Exception as error:
            found.append(error)

    with attached(make(subject, rule), module):
        x = leaf(X)
        thread = threading.Thread(target=backward, args=(module(x), x))
        thread.start()
        thread.join()
    if isinstance(found[0], Exception):
        raise found[0]
    yield from differs(found[0], expected, "on another thread, the relevance")


class _Named(nn.Linear):
    """A layer with two parameters, the name of one of which begins with the name of the other."""

    def __init__(self) -> None:
        super().__init__(3, 3, dtype=torch.float64)
        self.bias_k = nn.Parameter(tensor([2.0, -0.5, 1.0]))

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + self.bias_k


def _named(rule: str, subject: Subject) -> Iterator[str]:
    """Set to zero the parameter that is named, and none whose name is part of that name, or the other way round."""
    kept = linear()
    for zeroed, bias in (("bias_k", kept.bias), ("bias", tensor([2.0, -0.5, 1.0]))):
        expected_of, module = linear(), _Named()
        fill(expected_of, bias=bias.detach())
        fill(module, weight=kept.weight.detach(), bias=kept.bias.detach())
        expected = relevance_of(make(subject, rule), expected_of, X.clone(), R.clone())

        def ask(zeroed: str = zeroed, module: nn.Module = module, expected: Tensor = expected) -> Iterator[str]:
            found = relevance_of(make(subject, rule, zero_params=zeroed), module, X.clone(), R.clone())
            yield from differs(
                found, expected, f"of a layer with bias and bias_k, with zero_params={zeroed!r} the relevance"
            )

        yield from unless_refused(ask())


class _Sum(nn.Module):
    """Two inputs."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a + 2 * b


class _Fork(nn.Module):
    """Two outputs."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return 3 * x, x + 1


def _inputs(rule: str, subject: Subject) -> Iterator[str]:
    """Give each of two inputs its share, or refuse them."""

    def ask() -> Iterator[str]:
        with attached(make(subject, rule), module := _Sum()):
            a, b = leaf(X), leaf(OTHER[:2])
            found = torch.autograd.grad(module(a, b), (a, b), R.clone(), allow_unused=True)
        s = R / power(X + 2 * OTHER[:2])
        for got, wanted, which in zip(found, (X * s, OTHER[:2] * 2 * s), ("first", "second"), strict=True):
            yield from differs(torch.zeros_like(X) if got is None else got, wanted, f"the share of the {which} input")

    yield from unless_refused(ask())


def _outputs(rule: str, subject: Subject) -> Iterator[str]:
    """Take the relevance of both of two outputs, or refuse them."""

    def ask() -> Iterator[str]:
        with attached(make(subject, rule), module := _Fork()):
            x = leaf(X)
            found = torch.autograd.grad(module(x), x, (R.clone(), -2 * R))[0]
        expected = X * (3 * (R / power(3 * X)) - 2 * R / power(X + 1))
        yield from differs(found, expected, "with two outputs, the relevance")

    yield from unless_refused(ask())


_BIASED = ("Epsilon", "Norm", "ZPlus", "AlphaBeta", "Gamma", "WSquare")
_STABILIZED = (*_BIASED, "ZBox")

TOPICS = (
    Topic("another-value", _another, tuple(_VALUES)),
    Topic("output-is-nan", _nan, _BIASED),
    Topic("backward-elsewhere", _elsewhere),
    Topic("half-precision", _half, _STABILIZED),
    Topic("names-match-whole", _named, ("Epsilon", "ZPlus", "WSquare")),
    Topic("each-input-its-share", _inputs, ("Epsilon", "Norm")),
    Topic("each-output-counts", _outputs, ("Epsilon", "Norm")),
    Topic("relevance-expanded", _expanded),
    Topic("input-entry-is-nan", _entry, _OF_INPUT),
    Topic("bounds-are-kept", _kept, ("ZBox",)),
    Topic("bounds-lead", _leading, ("ZBox",)),
    Topic("a-batch-counts-once", _counted, _ANYWHERE),
    Topic("half-without-part", _untaken, ("Gamma", "AlphaBeta")),
    Topic("nothing-stabilizes-zero", _divided, ("Epsilon", "Norm"), Level.SHOULD),
)
