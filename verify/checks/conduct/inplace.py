"""Conduct: modules with an attribute ``inplace`` that says something else than that they write to their input."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from verify.checks.conduct.probing import (
    WEIGHED,
    R,
    Topic,
    X,
    attached,
    differs,
    fill,
    fresh,
    grad,
    leaf,
    linear,
    make,
    same_bits,
    unless_refused,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from verify.model import Subject


class _Hswish(nn.Module):
    """The one of many a MobileNetV3: ``inplace`` is that of x + 4, and not of x; 4 and 8 are exact, unlike 3 and 6."""

    def __init__(self, *, inplace: bool) -> None:
        super().__init__()
        self.inplace = inplace

    def forward(self, input: Tensor) -> Tensor:
        return input * nn.functional.hardtanh(input + 4.0, 0.0, 8.0, inplace=self.inplace) / 8.0


class _ConvModule(nn.Module):
    """Like mmcv's: it hands ``inplace`` to its activation, which writes to what the convolution gave."""

    def __init__(self, *, inplace: bool) -> None:
        super().__init__()
        self.inplace = inplace
        self.conv, self.activate = linear(), nn.ReLU(inplace=inplace)

    def forward(self, input: Tensor) -> Tensor:
        y: Tensor = self.activate(self.conv(input))
        return y


class _Narrow(_ConvModule):
    """The same with an output that would fit into the input by broadcasting."""

    def __init__(self, *, inplace: bool) -> None:
        super().__init__(inplace=inplace)
        self.conv = nn.Linear(3, 1, dtype=torch.float64)
        fill(self.conv, weight=[[0.5, -1.0, 2.0]], bias=[0.75])


class _Trained(nn.Module):
    """It writes to its input, in train mode alone."""

    def __init__(self, *, inplace: bool) -> None:
        super().__init__()
        self.inplace = inplace

    def forward(self, input: Tensor) -> Tensor:
        return input.mul_(2) if self.training and self.inplace else input * 2


class _LinearReLU(nn.Linear):
    """A layer and its activation in one, as fused modules have it."""

    def __init__(self, *_: object, inplace: bool) -> None:
        super().__init__(3, 3, dtype=torch.float64)
        fill(self, weight=linear().weight, bias=linear().bias)
        self.inplace = inplace

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.relu(super().forward(input), inplace=self.inplace)


_MODULES = (_Hswish, _ConvModule, _Narrow, _Trained, _LinearReLU)


def _unwritten(rule: str, subject: Subject) -> Iterator[str]:
    """The output and the caller's tensor are what they are without the rule, or there is an error."""

    def ask(module: nn.Module, x: Tensor) -> Iterator[str]:
        alone = X * 1
        plain = module(alone)
        # as anywhere in a network: the input is the output of another layer, and somebody else needs it, too
        h = x * 1
        with attached(make(subject, rule), module):
            y = module(h)
        if not same_bits(y, plain):
            yield f"{module}: the output is {y.tolist()}, without the rule {plain.tolist()}"
        if not same_bits(h, alone):
            yield f"{module}: the caller's tensor is {h.tolist()} afterwards, without the rule {alone.tolist()}"

    for kind in _MODULES:
        for training, x in ((False, leaf(X)), (True, leaf(X)), (False, X.clone())):
            yield from unless_refused(ask(kind(inplace=True).train(training), x))


def _relevance(rule: str, subject: Subject) -> Iterator[str]:
    """Whether a module works in place inside makes no difference to the relevance."""

    def ask(kind: type[_Hswish | _ConvModule | _Trained | _LinearReLU]) -> Iterator[str]:
        relevance = R[:, :1] if kind is _Narrow else R
        expected, x = fresh(subject, rule, kind(inplace=False).eval(), X, relevance), leaf(X)
        with attached(make(subject, rule), module := kind(inplace=True).eval()):
            found = grad(module(x * 1), x, relevance)
        yield from differs(found, expected, f"{module}: the relevance")

    for kind in _MODULES:
        yield from unless_refused(ask(kind))


TOPICS = (
    Topic("inplace-inside", _unwritten),
    Topic("inplace-inside-relevance", _relevance, (*WEIGHED, "Pass")),
)
