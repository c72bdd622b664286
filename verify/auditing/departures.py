"""What other tools compute in place of a rule: named where it is found, so that nobody has to guess.

Each answers as a rule does, in float64, without a bound for each entry.
"""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lrp_rules as lrp
from verify.auditing import formulas
from verify.auditing.formulas import Answer, NoFormulaError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from verify.auditing.question import Question

_ADDING = {"add", "sum", "mean"}


class ByMagnitude(NamedTuple):
    """abs(x_k) / sum abs(x_k) on sums, means and products: autoLRP."""

    epsilon: float

    def answer(self, question: Question, xs: list[Tensor], _u: float) -> Answer:
        """Return what it gives."""
        R, sizes = question.Rs[0].double(), [x.double().abs() for x in xs]
        if question.operation not in _ADDING:
            sizes = [size.expand_as(R) for size in torch.broadcast_tensors(*sizes)]
            s = R / (sum(sizes, torch.zeros_like(R)) + self.epsilon)
            return Answer([(size * s).sum_to_size(x.shape) for size, x in zip(sizes, xs, strict=True)], None)
        again = question.again()
        with torch.enable_grad():
            given = [size.requires_grad_() for size in sizes]
            (y,) = formulas.outputs(again(*given))
            many = given[0].numel() / y.numel() if question.operation == "mean" else 1.0
            rs = torch.autograd.grad(y, given, R / (y.detach() + self.epsilon / many))
        return Answer([size.detach() * r for size, r in zip(given, rs, strict=True)], None)


class BiasByMagnitude(NamedTuple):
    """R abs(z) / (abs(z) + abs(b)), z being the output without the bias, then the rule without the bias: autoLRP."""

    rule: Any
    epsilon: float

    def answer(self, question: Question, xs: list[Tensor], _u: float) -> Answer:
        """Return what it gives."""
        layer = question.layer(folded=False)
        if layer is None or layer.bias is None:
            raise NoFormulaError
        z = layer.apply(layer.weight, xs[0].double())
        b = layer.constant(layer.bias, z).abs()
        R = question.Rs[0].double() * z.abs() / (z.abs() + b + self.epsilon)
        rule = without_bias(self.rule, self.epsilon)
        return Answer(formulas.by_parts(rule, layer, xs[0], R, question.u).r, None)


class PassButForTheBias(NamedTuple):
    """R abs(y) / (abs(y) + abs(b)) on a LayerNorm, y being its output without the bias: autoLRP."""

    epsilon: float

    def answer(self, question: Question, xs: list[Tensor], _u: float) -> Answer:
        """Return what it gives."""
        norm: Any = question.module
        if not isinstance(norm, nn.LayerNorm) or norm.bias is None:
            raise NoFormulaError
        x, R, b = xs[0].double(), question.Rs[0].double(), norm.bias.detach().double().abs()
        y = F.layer_norm(x, norm.normalized_shape, norm.weight.detach().double(), None, norm.eps).abs()
        return Answer([R * y / (y + b + self.epsilon)], None)


class OverStabilizedInput(NamedTuple):
    """R x / (x + eps): Pass where R / x goes on, as LXT's efficient half computes it."""

    epsilon: float

    def answer(self, question: Question, xs: list[Tensor], _u: float) -> Answer:
        """Return what it gives."""
        x, R = xs[0].double(), question.Rs[0].double()
        return Answer([R * x / (x + self.epsilon)], None)


class ByRatio(NamedTuple):
    """R f(x) / x on an activation: autoLRP's and others' reading of proposition 3.2 of Achtibat et al. 2024."""

    epsilon: float

    def answer(self, question: Question, xs: list[Tensor], _u: float) -> Answer:
        """Return what it gives."""
        x, R = xs[0].double(), question.Rs[0].double()
        (y,) = formulas.outputs(question.again()(x))
        return Answer([R * y / lrp.Stabilizer(self.epsilon)(x)], None)


def without_bias(rule: Any, epsilon: float) -> Any:
    """Return a rule with another stabilizer that sees no bias."""
    other = copy(rule)
    vars(other).update(stabilizer=lrp.Stabilizer(epsilon), zero_params=("bias",), _made=None)
    return other


def departures(question: Question) -> Iterator[tuple[str, Any]]:
    """Give what may have been computed in place of the rule, with what to call it."""
    rule = question.rule
    if isinstance(rule, lrp.Pass):
        yield "Pass with 1e-10 added to the input that it is divided by, as LXT does", OverStabilizedInput(1e-10)
        for epsilon in (1e-6, 1e-11):
            yield "R f(x) / x, as autoLRP gives; not Pass", ByRatio(epsilon)
    if isinstance(question.module, nn.LayerNorm):
        for epsilon in (1e-6, 1e-11):
            told = "the bias takes abs(b) / (abs(y) + abs(b)), as in autoLRP; the rest is passed on"
            yield f"{told}, not by {_called(rule)}", PassButForTheBias(epsilon)
    if isinstance(rule, (lrp.SignalTakesAll, lrp.Uniform, lrp.Norm)):
        for epsilon in (1e-6, 1e-11):
            yield (
                f"shares by magnitude, abs(x) / sum abs(x), as autoLRP gives; not {_called(rule)}",
                ByMagnitude(epsilon),
            )
    if question.module is not None and hasattr(rule, "zero_params"):
        told = "the bias takes abs(b) / (abs(z) + abs(b)), as in autoLRP; the rest is {}"
        for kind in (rule, lrp.Epsilon(), lrp.ZPlus(), lrp.Gamma(0.25)):
            for epsilon in (1e-6, 1e-11):
                yield told.format(_called(kind)), BiasByMagnitude(kind, epsilon)


def _called(rule: Any) -> str:
    return type(rule).__name__
