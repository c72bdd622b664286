"""Check ``laws``: what holds for a rule whatever its numbers are, from one run of the subject to another.

Most transformations are by powers of two, by permutations or by zeros, which floating point does exactly: there only
the order of sums may differ, and the room is the bound of ``reference.rounding`` for each of the two runs.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from reference.rules import Stabilizer
from verify.checks.agreement import Expected, judge, rows
from verify.checks.probing import relevance_of
from verify.layers import LayerCase
from verify.model import Case, Finding, Level, Verdict
from verify.variants import BOX_OF_ZERO, Variant, variant

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from verify.cases import Draw
    from verify.problem import Problem
    from verify.subjects import Subject

#: Rules whose relevance is an input times what flows back to it.
PROPORTIONAL = ("Epsilon", "Norm", "ZPlus", "AlphaBeta", "Gamma")
WITH_PARAMETERS = ("Epsilon", "ZPlus", "AlphaBeta", "Gamma", "ZBox", "WSquare", "Flat")
ALL = ("Epsilon", "Norm", "ZPlus", "AlphaBeta", "Gamma", "ZBox", "WSquare", "Flat")


@dataclass(frozen=True)
class Side:
    """One of the two runs that a law compares."""

    problem: Problem
    variant: Variant

    def run(self, subject: Subject) -> Tensor:
        """Return the subject's relevance."""
        problem = self.problem
        arguments = self.variant.arguments(tuple(problem.x.shape), problem.x.dtype)
        return relevance_of(subject.get(self.variant.rule)(**arguments), problem.module, problem.x, problem.relevance)

    def expected(self, layer: LayerCase) -> Expected:
        """Return what the reference says, for its bounds."""
        sample = tuple(self.problem.x.shape[1:])
        return Expected(self.problem, replace(layer, shape=(self.problem.x.shape[0], *sample)), self.variant, "cpu")


def cases(draw: Draw, layers: Sequence[LayerCase], dtypes: Sequence[str]) -> Iterator[Case]:
    """Yield the cases of this check: every law, for every rule it is about, on each of the layers."""
    for name, rules, law in _LAWS:
        for rule in rules:
            for layer in layers:
                for dtype in dtypes:
                    problem = partial(draw, layer, "signed", dtype)
                    yield _case(name, rule, layer, dtype, partial(_compare, law, problem, layer, variant(rule)))
    for layer in layers:
        for dtype in dtypes:
            problem = partial(draw, layer, "signed", dtype)
            nonnegative = partial(draw, layer, "nonnegative", dtype)
            for name, rule, run in (
                *(("additive-in-relevance", rule, partial(_additive, problem, layer, variant(rule))) for rule in ALL),
                (
                    "equals-alphabeta-1-0",
                    "ZPlus",
                    partial(_same, problem, layer, variant("ZPlus"), variant("AlphaBeta", "alpha=1-beta=0")),
                ),
                (
                    "gamma-0-is-epsilon",
                    "Gamma",
                    partial(_same, problem, layer, variant("Gamma", "gamma=0"), variant("Epsilon")),
                ),
                (
                    "zbox-0-0-is-epsilon-without-bias",
                    "ZBox",
                    partial(_same, problem, layer, BOX_OF_ZERO, variant("Epsilon", "zero_params=bias")),
                ),
                ("norm-is-epsilon", "Norm", partial(_same, problem, layer, variant("Norm"), variant("Epsilon"))),
                ("nonnegative-for-nonnegative-relevance", "ZPlus", partial(_nonnegative, problem)),
                ("large-gamma-is-zplus", "Gamma", partial(_large_gamma, nonnegative, layer)),
                ("independent-of-input", "WSquare", partial(_independent_of_input, problem, "WSquare")),
                ("independent-of-input", "Flat", partial(_independent_of_input, problem, "Flat")),
                ("independent-of-weights", "Flat", partial(_independent_of_weights, problem)),
            ):
                yield _case(name, rule, layer, dtype, run)
    for rule in ALL:
        for dtype in dtypes:
            yield Case(
                id=f"laws/{rule}/conv-of-1-is-linear/{dtype}", rule=rule, layer="Conv2d", check="laws", dtype=dtype,
                level=Level.MUST, run=partial(_conv_is_linear, draw, rule, dtype),
            )  # fmt: skip


def _case(name: str, rule: str, layer: LayerCase, dtype: str, run: Callable[[Subject], Finding]) -> Case:
    return Case(
        id=f"laws/{rule}/{name}/{layer.name}/{dtype}", rule=rule, layer=layer.family, check="laws", dtype=dtype,
        level=Level.MUST, run=run,
    )  # fmt: skip


def _compare(law: Any, problem_of: Callable[[], Problem], layer: LayerCase, of: Variant, subject: Subject) -> Finding:
    problem = problem_of()
    first, second, back = law(layer, problem, of)
    return _near(first, second, back, layer, subject)


def _near(first: Side, second: Side, back: Callable[[Tensor], Tensor], layer: LayerCase, subject: Subject) -> Finding:
    """Check that ``back`` of the second relevance is the first, within what rounding explains of both."""
    got, wanted = first.run(subject), second.run(subject)
    expected = first.expected(layer), second.expected(layer)
    shape = second.problem.x.shape
    room = expected[0].worst + rows(back(torch.from_numpy(expected[1].worst).reshape(shape)), batched=True)
    return judge(rows(got, batched=True), rows(back(wanted), batched=True), room, None, expected[0].model.name)


def _same(
    problem_of: Callable[[], Problem], layer: LayerCase, one: Variant, other: Variant, subject: Subject
) -> Finding:
    problem = problem_of()
    return _near(Side(problem, one), Side(problem, other), _identity, layer, subject)


def _identity(r: Tensor) -> Tensor:
    return r


def _changed(
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


def _additive(problem_of: Callable[[], Problem], layer: LayerCase, of: Variant, subject: Subject) -> Finding:
    """Check that r(R1) + r(R2) = r(R1 + R2), for R1 and R2 whose sum is exact, with signs of their own."""
    problem = problem_of()
    first = (problem.relevance * 64).round() / 64
    second = -2 * first.flip(1).roll(1, 0)
    sides = [Side(replace(problem, relevance=R), of) for R in (first, second, first + second)]
    one, two, both = (rows(side.run(subject), batched=True) for side in sides)
    expected = [side.expected(layer) for side in sides]
    room = sum((e.worst for e in expected), start=np.zeros_like(one))
    # the sum of the two relevances is taken here, in float64
    room += np.finfo(np.float64).eps * (np.abs(one) + np.abs(two))
    return judge(both, one + two, room, None, expected[0].model.name)


def _sample_alone(_layer: LayerCase, problem: Problem, of: Variant) -> Any:
    alone = replace(problem, x=problem.x[:1], relevance=problem.relevance[:1])
    return Side(alone, of), Side(problem, of), lambda r: r[:1]


def _scaled_weights(_layer: LayerCase, problem: Problem, of: Variant) -> Any:
    # z, and with it every denominator, is 64 times as large, and so is the stabilizer
    power = 64.0
    large, small = _stabilized(of, 0.375 * (power**2 if of.rule == "WSquare" else power)), _stabilized(of, 0.375)
    changed = _changed(problem, weight=lambda w: w * power, bias=lambda b: b * power)
    return Side(changed, large), Side(problem, small), _identity


def _scaled_inputs(_layer: LayerCase, problem: Problem, of: Variant) -> Any:
    changed = _changed(problem, bias=lambda b: b / 8, x=problem.x / 8)
    return Side(changed, _stabilized(of, 0.375 / 8)), Side(problem, _stabilized(of, 0.375)), _identity


def _mirrored(_layer: LayerCase, problem: Problem, of: Variant) -> Any:
    return Side(_changed(problem, weight=torch.neg, x=-problem.x), of), Side(problem, of), _identity


def _permuted_outputs(layer: LayerCase, problem: Problem, of: Variant) -> Any:
    axis = 1 if "Transpose" in layer.family else 0
    n = problem.module.weight.shape[axis]  # type: ignore[index]
    order = torch.arange(int(n)).roll(1)
    changed = _changed(
        problem,
        weight=lambda w: w.index_select(axis, order),
        bias=lambda b: b[order],
        relevance=problem.relevance[:, order],
    )
    return Side(changed, of), Side(problem, of), _identity


def _permuted_inputs(layer: LayerCase, problem: Problem, of: Variant) -> Any:
    axis = 0 if "Transpose" in layer.family else 1
    order = torch.arange(problem.x.shape[1]).roll(1)
    changed = _changed(problem, weight=lambda w: w.index_select(axis, order), x=problem.x[:, order])
    return Side(problem, of), Side(changed, of), lambda r: r[:, order.argsort()]


def _dead_unit(layer: LayerCase, problem: Problem, of: Variant) -> Any:
    """One more output, with weights and bias of zero, whose relevance is lost whole."""
    axis = 1 if "Transpose" in layer.family else 0
    extra = problem.relevance[:, :1] + 3
    changed = _changed(
        problem,
        weight=lambda w: torch.cat([w, torch.zeros_like(w.narrow(axis, 0, 1))], axis),
        bias=lambda b: torch.cat([b, b.new_zeros(1)]),
        relevance=torch.cat([problem.relevance, extra], 1),
    )
    return Side(_sized(changed, outputs=1), of), Side(problem, of), _identity


def _dead_input(layer: LayerCase, problem: Problem, of: Variant) -> Any:
    """One more input channel, of zeros: all others keep their relevance."""
    axis = 0 if "Transpose" in layer.family else 1
    changed = _changed(
        problem,
        weight=lambda w: torch.cat([w, torch.ones_like(w.narrow(axis, 0, 1))], axis),
        x=torch.cat([problem.x, torch.zeros_like(problem.x[:, :1])], 1),
    )
    return Side(problem, of), Side(_sized(changed, inputs=1), of), lambda r: r[:, :-1]


def _split_input(layer: LayerCase, problem: Problem, of: Variant) -> Any:
    """The first input channel twice, with half of the weight each: together they get what it got."""
    axis = 0 if "Transpose" in layer.family else 1

    def halves(w: Tensor) -> Tensor:
        half = w.narrow(axis, 0, 1) / 2
        return torch.cat([half, w.narrow(axis, 1, w.shape[axis] - 1), half], axis)

    changed = _changed(problem, weight=halves, x=torch.cat([problem.x, problem.x[:, :1]], 1))
    return (
        Side(problem, of),
        Side(_sized(changed, inputs=1), of),
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


_LAWS: tuple[tuple[str, tuple[str, ...], Any], ...] = (
    ("sample-alone", ALL, _sample_alone),
    ("scaled-weights", (*PROPORTIONAL, "ZBox", "WSquare"), _scaled_weights),
    ("scaled-inputs", PROPORTIONAL, _scaled_inputs),
    ("mirrored", PROPORTIONAL, _mirrored),
    ("permuted-outputs", ALL, _permuted_outputs),
    ("permuted-inputs", ALL, _permuted_inputs),
    ("dead-unit", (*PROPORTIONAL, "ZBox", "WSquare"), _dead_unit),
    ("dead-input", PROPORTIONAL, _dead_input),
    ("split-input", (*PROPORTIONAL, "ZBox"), _split_input),
)


def _nonnegative(problem_of: Callable[[], Problem], subject: Subject) -> Finding:
    problem = problem_of()
    r = relevance_of(subject.get("ZPlus")(), problem.module, problem.x, problem.relevance.abs())
    # sums of products that are not negative: no rounding can make one negative
    if not bool((r >= 0).all()):
        return Finding(Verdict.FAIL, reason=f"relevance {float(r.min())} for a relevance without negative entries")
    return Finding(Verdict.PASS, 0.0)


def _large_gamma(problem_of: Callable[[], Problem], layer: LayerCase, subject: Subject) -> Finding:
    """As gamma grows, Gamma tends to ZPlus where x >= 0 and z > 0; what is missing is of the order of 1 / gamma."""
    problem = problem_of()
    with torch.no_grad():
        problem = replace(problem, relevance=problem.relevance * (problem.module(problem.x) > 0))
    large, limit = Side(problem, variant("Gamma", "gamma=1000")), Side(problem, variant("ZPlus"))
    expected = large.expected(layer), limit.expected(layer)
    left = np.abs(expected[0].relevance - expected[1].relevance)
    got, wanted = (rows(side.run(subject), batched=True) for side in (large, limit))
    found = judge(got, wanted, expected[0].worst + expected[1].worst + left, None, expected[0].model.name)
    # what is left of gamma uses up the room, and says nothing of rounding
    return replace(found, ratio=None, probable=None) if found.verdict is Verdict.PASS else found


def _independent_of_input(problem_of: Callable[[], Problem], rule: str, subject: Subject) -> Finding:
    problem = problem_of()
    make = subject.get(rule)
    first = relevance_of(make(), problem.module, problem.x, problem.relevance)
    other = relevance_of(make(), problem.module, -3 * problem.x.flip(0) + 1, problem.relevance)
    return _bits(first, other, "another input gives another relevance")


def _independent_of_weights(problem_of: Callable[[], Problem], subject: Subject) -> Finding:
    problem = problem_of()
    other = _changed(problem, weight=lambda w: w.flip(0).exp() - 2, bias=lambda b: b - 7)
    make = subject.get("Flat")
    first = relevance_of(make(), problem.module, problem.x, problem.relevance)
    return _bits(
        first,
        relevance_of(make(), other.module, problem.x, problem.relevance),
        "other parameters give another relevance",
    )


def _bits(first: Tensor, other: Tensor, reason: str) -> Finding:
    return Finding(Verdict.PASS, 0.0) if torch.equal(first, other) else Finding(Verdict.FAIL, reason=reason)


def _conv_is_linear(draw: Draw, rule: str, dtype: str, subject: Subject) -> Finding:
    """A 1 x 1 convolution is a Linear at each position."""
    layer = LayerCase("law-conv2d-k1", "Conv2d", lambda: nn.Conv2d(3, 4, 1), (2, 3, 2, 3))
    problem = draw(layer, "signed", dtype)
    module: Any = problem.module
    linear = nn.Linear(3, 4, dtype=problem.x.dtype)
    with torch.no_grad():
        linear.weight.copy_(module.weight[:, :, 0, 0])
        linear.bias.copy_(module.bias)
    flat = replace(
        problem,
        module=linear,
        x=problem.x.movedim(1, -1).reshape(-1, 3),
        relevance=problem.relevance.movedim(1, -1).reshape(-1, 4),
    )
    one, other = Side(problem, variant(rule)), Side(flat, variant(rule))
    room = one.expected(layer).worst

    def back(r: Tensor) -> Tensor:
        return r.reshape(2, 2, 3, 3).movedim(-1, 1)

    as_linear = LayerCase("law-linear", "Linear", lambda: nn.Linear(3, 4), (12, 3))
    expected = other.expected(as_linear)
    room = room + rows(back(torch.from_numpy(expected.worst)), batched=True)
    return judge(
        rows(one.run(subject), batched=True),
        rows(back(other.run(subject)), batched=True),
        room,
        None,
        expected.model.name,
    )
