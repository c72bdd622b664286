"""Two runs of a subject that a law compares, and the changes from one to the other that it knows the answer to.

Most are changes by powers of two, by permutations or by zeros, which floating point does exactly.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from reference.rules import Stabilizer
from verify.checks.agreement import Expected
from verify.questions.fixed import as_fixed
from verify.subjects.asking import relevance_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from verify.model import Problem, Subject
    from verify.questions.layers import LayerCase
    from verify.questions.variants import Variant

#: Rules whose relevance is an input times what flows back to it.
PROPORTIONAL = ("Epsilon", "Norm", "ZPlus", "AlphaBeta", "Gamma")
ALL = ("Epsilon", "Norm", "ZPlus", "AlphaBeta", "Gamma", "ZBox", "WSquare", "Flat")


@dataclass(frozen=True)
class Side:
    """One of the two runs that a law compares."""

    problem: Problem
    variant: Variant

    def run(self, subject: Subject) -> Tensor:
        """Return the subject's relevance."""
        problem, of = self.problem, as_fixed(self.variant, subject)
        arguments = of.arguments(tuple(problem.x.shape), problem.x.dtype)
        return relevance_of(subject.get(of.rule)(**arguments), problem.module, problem.x, problem.relevance)

    def expected(self, layer: LayerCase, subject: Subject) -> Expected:
        """Return what the reference says, for its bounds."""
        problem, of = self.problem, as_fixed(self.variant, subject)
        return Expected(problem, replace(layer, shape=tuple(problem.x.shape)), of, "cpu")


def identity(r: Tensor) -> Tensor:
    """Return the relevance as it is."""
    return r


def changed(
    problem: Problem,
    *,
    weight: Callable[[Tensor], Tensor] | None = None,
    bias: Callable[[Tensor], Tensor] | None = None,
    x: Tensor | None = None,
    relevance: Tensor | None = None,
) -> Problem:
    """Return a problem with a module of its own, changed."""
    module: Any = copy.deepcopy(problem.module)
    for change, name in ((weight, "weight"), (bias, "bias")):
        value = getattr(module, name)
        if change is not None and value is not None:
            setattr(module, name, nn.Parameter(change(value.detach())))
    return replace(
        problem,
        module=module,
        x=problem.x if x is None else x,
        relevance=problem.relevance if relevance is None else relevance,
    )


def _scaled_weights(_layer: LayerCase, problem: Problem, of: Variant) -> Any:
    # z, and with it every denominator, is 64 times as large, and so is the stabilizer
    power = 64.0
    large, small = _stabilized(of, 0.375 * (power**2 if of.rule == "WSquare" else power)), _stabilized(of, 0.375)
    other = changed(problem, weight=lambda w: w * power, bias=lambda b: b * power)
    return Side(other, large), Side(problem, small), identity


def _scaled_inputs(_layer: LayerCase, problem: Problem, of: Variant) -> Any:
    other = changed(problem, bias=lambda b: b / 8, x=problem.x / 8)
    return Side(other, _stabilized(of, 0.375 / 8)), Side(problem, _stabilized(of, 0.375)), identity


def _mirrored(_layer: LayerCase, problem: Problem, of: Variant) -> Any:
    return Side(changed(problem, weight=torch.neg, x=-problem.x), of), Side(problem, of), identity


def _permuted_outputs(layer: LayerCase, problem: Problem, of: Variant) -> Any:
    axis = 1 if "Transpose" in layer.family else 0
    n = problem.module.weight.shape[axis]  # type: ignore[index]
    order = torch.arange(int(n)).roll(1)
    other = changed(
        problem,
        weight=lambda w: w.index_select(axis, order),
        bias=lambda b: b[order],
        relevance=problem.relevance[:, order],
    )
    return Side(other, of), Side(problem, of), identity


def _permuted_inputs(layer: LayerCase, problem: Problem, of: Variant) -> Any:
    axis = 0 if "Transpose" in layer.family else 1
    order = torch.arange(problem.x.shape[1]).roll(1)
    other = changed(problem, weight=lambda w: w.index_select(axis, order), x=problem.x[:, order])
    return Side(problem, of), Side(other, of), lambda r: r[:, order.argsort()]


def _dead_unit(layer: LayerCase, problem: Problem, of: Variant) -> Any:
    """One more output, with weights and bias of zero, whose relevance is lost whole."""
    axis = 1 if "Transpose" in layer.family else 0
    extra = problem.relevance[:, :1] + 3
    other = changed(
        problem,
        weight=lambda w: torch.cat([w, torch.zeros_like(w.narrow(axis, 0, 1))], axis),
        bias=lambda b: torch.cat([b, b.new_zeros(1)]),
        relevance=torch.cat([problem.relevance, extra], 1),
    )
    return Side(_sized(other, outputs=1), of), Side(problem, of), identity


def _dead_input(layer: LayerCase, problem: Problem, of: Variant) -> Any:
    """One more input channel, of zeros: all others keep their relevance."""
    axis = 0 if "Transpose" in layer.family else 1
    other = changed(
        problem,
        weight=lambda w: torch.cat([w, torch.ones_like(w.narrow(axis, 0, 1))], axis),
        x=torch.cat([problem.x, torch.zeros_like(problem.x[:, :1])], 1),
    )
    return Side(problem, of), Side(_sized(other, inputs=1), of), lambda r: r[:, :-1]


def _split_input(layer: LayerCase, problem: Problem, of: Variant) -> Any:
    """The first input channel twice, with half of the weight each: together they get what it got."""
    axis = 0 if "Transpose" in layer.family else 1

    def halves(w: Tensor) -> Tensor:
        half = w.narrow(axis, 0, 1) / 2
        return torch.cat([half, w.narrow(axis, 1, w.shape[axis] - 1), half], axis)

    other = changed(problem, weight=halves, x=torch.cat([problem.x, problem.x[:, :1]], 1))
    return (
        Side(problem, of),
        Side(_sized(other, inputs=1), of),
        lambda r: torch.cat([r[:, :1] + r[:, -1:], r[:, 1:-1]], 1),
    )


def _sized(problem: Problem, *, inputs: int = 0, outputs: int = 0) -> Problem:
    """Let the module know how many channels its new weight has."""
    module: Any = problem.module
    for kind, more in (("in", inputs), ("out", outputs)):
        name = f"{kind}_features" if isinstance(module, nn.Linear) else f"{kind}_channels"
        setattr(module, name, getattr(module, name) + more)
    return problem


def _stabilized(of: Variant, epsilon: float) -> Variant:
    """Return the variant with another stabilizer."""
    name = "epsilon" if of.rule == "Epsilon" else "stabilizer"
    return replace(
        of,
        arguments=lambda shape, dtype: of.arguments(shape, dtype) | {name: epsilon},
        stabilizer=Stabilizer(epsilon),
    )


#: Name, rules, and (layer, problem, variant) -> the two runs, and what takes the second relevance to the first.
CHANGES: tuple[tuple[str, tuple[str, ...], Any], ...] = (
    ("scaled-weights", (*PROPORTIONAL, "ZBox", "WSquare"), _scaled_weights),
    ("scaled-inputs", PROPORTIONAL, _scaled_inputs),
    ("mirrored", PROPORTIONAL, _mirrored),
    ("permuted-outputs", ALL, _permuted_outputs),
    ("permuted-inputs", ALL, _permuted_inputs),
    ("dead-unit", (*PROPORTIONAL, "ZBox", "WSquare"), _dead_unit),
    ("dead-input", PROPORTIONAL, _dead_input),
    ("split-input", (*PROPORTIONAL, "ZBox"), _split_input),
)
