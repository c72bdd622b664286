"""Check ``laws``: what holds for a rule whatever its numbers are, from one run of the subject to another.

Most transformations are by powers of two, by permutations or by zeros, which floating point does exactly: there only
the order of sums may differ, and the room is the bound of ``reference.rounding`` for each of the two runs.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from verify.checks.agreement import rows
from verify.checks.laws_changes import ALL, CHANGES, Side, changed, identity
from verify.checks.laws_room import disagrees, inconclusive, judged
from verify.model import Case, Finding, Level, NotOfferedError, Verdict
from verify.questions.fixed import as_fixed
from verify.questions.layers import LayerCase
from verify.questions.variants import BOX_OF_ZERO, Variant, variant
from verify.subjects.asking import relevance_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from verify.checks.laws_room import Run
    from verify.model import Problem, Subject
    from verify.questions.drawing import Draw

    Array = NDArray[np.float64]

#: Rules that are proportional to a factor of their input, and not to the input.
_GRADIENT_RULES = ("Pass", "ReLUDeconvNet", "ReLUGuidedBackprop", "ReLUBetaSmooth")
_RELU = LayerCase("relu", "Activation", nn.ReLU, (3, 5), linear=False, weighted=False)
#: Exponents of the factors of a relevance; in float32, 2^24 is where integers are no longer exact.
_POWERS = (20, 24)


def cases(draw: Draw, layers: Sequence[LayerCase], dtypes: Sequence[str]) -> Iterator[Case]:
    """Yield the cases of this check: every law, for every rule it is about, on each of the layers."""
    for rule, layer, dtype in product(ALL, layers, dtypes):
        run = partial(_samples_alone, partial(draw, layer, "signed", dtype), layer, variant(rule))
        yield _case("sample-alone", rule, layer, dtype, run)
    for name, rules, law in CHANGES:
        for rule, layer, dtype in product(rules, layers, dtypes):
            problem = partial(draw, layer, "signed", dtype)
            yield _case(name, rule, layer, dtype, partial(_compare, law, problem, layer, variant(rule)))
    for layer, dtype in product(layers, dtypes):
        yield from _of_one_rule(draw, layer, dtype)
    for rule, layer, dtype, k in (
        *product(ALL, layers, dtypes, _POWERS),
        *product(_GRADIENT_RULES, (_RELU,), dtypes, _POWERS),
    ):
        problem = partial(draw, layer, "signed", dtype)
        yield _case(f"relevance-times-2-to-{k}", rule, layer, dtype, partial(_scaled, problem, rule, k))
    for rule, dtype in product(ALL, dtypes):
        yield Case(
            id=f"laws/{rule}/conv-of-1-is-linear/{dtype}", rule=rule, layer="Conv2d", check="laws", dtype=dtype,
            level=Level.MUST, run=partial(_conv_is_linear, draw, rule, dtype),
        )  # fmt: skip


def _of_one_rule(draw: Draw, layer: LayerCase, dtype: str) -> Iterator[Case]:
    problem = partial(draw, layer, "signed", dtype)
    nonnegative = partial(draw, layer, "nonnegative", dtype)
    for name, rule, run in (
        *(("additive-in-relevance", rule, partial(additive, problem, layer, variant(rule))) for rule in ALL),
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


def _case(name: str, rule: str, layer: LayerCase, dtype: str, run: Callable[[Subject], Finding]) -> Case:
    return Case(
        id=f"laws/{rule}/{name}/{layer.name}/{dtype}", rule=rule, layer=layer.family, check="laws", dtype=dtype,
        level=Level.MUST, run=run,
    )  # fmt: skip


def _compare(law: Any, problem_of: Callable[[], Problem], layer: LayerCase, of: Variant, subject: Subject) -> Finding:
    problem = problem_of()
    first, second, back = law(layer, problem, of)
    return near(first, second, back, layer, subject)


def near(first: Side, second: Side, back: Callable[[Tensor], Tensor], layer: LayerCase, subject: Subject) -> Finding:
    """Check that ``back`` of the second relevance is the first, within what rounding explains of both."""
    return _near(first, second, back, layer, subject)[0]


def _near(
    first: Side, second: Side, back: Callable[[Tensor], Tensor], layer: LayerCase, subject: Subject, left: Any = 0.0
) -> tuple[Finding, Run]:
    """Return the same, and the second run; ``left`` is what the two may differ by besides, as (first, second)."""
    got, wanted = (rows(side.run(subject), batched=True) for side in (first, second))
    expected = first.expected(layer, subject), second.expected(layer, subject)

    def taken(values: Array) -> Array:
        return rows(back(torch.from_numpy(values).reshape(second.problem.x.shape)), batched=True)

    room = expected[0].worst + taken(expected[1].worst)
    if left:
        room = room + left(*expected)
    runs = (got, expected[0]), (wanted, expected[1])
    return judged(got, taken(wanted), room, runs), runs[1]


def _samples_alone(problem_of: Callable[[], Problem], layer: LayerCase, of: Variant, subject: Subject) -> Finding:
    """Check that each sample gets the relevance alone that it gets in its batch."""
    problem = problem_of()
    each = [slice(index, index + 1) for index in range(len(problem.x))]
    sides = [Side(problem, of)]
    sides += [Side(replace(problem, x=problem.x[one], relevance=problem.relevance[one]), of) for one in each]
    runs = [(rows(side.run(subject), batched=True), side.expected(layer, subject)) for side in sides]
    (together, expected), alone = runs[0], runs[1:]
    room = expected.worst + np.concatenate([of_one.worst for _, of_one in alone])
    return judged(together, np.concatenate([got for got, _ in alone]), room, runs)


def _same(
    problem_of: Callable[[], Problem], layer: LayerCase, one: Variant, other: Variant, subject: Subject
) -> Finding:
    problem = problem_of()
    asked = [as_fixed(of, subject) for of in (one, other)]
    if asked[0].stabilizer != asked[1].stabilizer:
        msg = f"{subject.spec} fixes another stabilizer for {one.rule} than for {other.rule}; the law needs the same"
        raise NotOfferedError(msg)
    return _of_two_rules(*_near(Side(problem, one), Side(problem, other), identity, layer, subject), other.rule)


def _of_two_rules(found: Finding, other: Run, name: str) -> Finding:
    """Return the finding on a rule; a failure says nothing of it where the other rule computes something else."""
    if found.verdict is Verdict.FAIL and disagrees(other):
        return inconclusive(f"{name}, with which the rule is compared, computes another formula here")
    return found


def additive(problem_of: Callable[[], Problem], layer: LayerCase, of: Variant, subject: Subject) -> Finding:
    """Check that r(R1) + r(R2) = r(R1 + R2), for R1 and R2 whose sum is exact, with signs of their own."""
    problem = problem_of()
    first = (problem.relevance * 64).round() / 64
    second = -2 * first.flip(1).roll(1, 0)
    sides = [Side(replace(problem, relevance=R), of) for R in (first, second, first + second)]
    one, two, both = (rows(side.run(subject), batched=True) for side in sides)
    expected = [side.expected(layer, subject) for side in sides]
    room = sum((e.worst for e in expected), start=np.zeros_like(one))
    # the sum of the two relevances is taken here, in float64
    room += np.finfo(np.float64).eps * (np.abs(one) + np.abs(two))
    return judged(both, one + two, room, list(zip((one, two, both), expected, strict=True)))


def _scaled(problem_of: Callable[[], Problem], rule: str, k: int, subject: Subject) -> Finding:
    """Check that r(2^k R) = 2^k r(R) in every bit: all that is done to R is linear, and scales exactly."""
    problem = problem_of()
    large = replace(problem, relevance=problem.relevance * 2.0**k)
    one, other = (_run(subject, rule, side) for side in (large, problem))
    return bits(one, other * 2.0**k, f"a relevance 2^{k} times as large does not give one 2^{k} times as large")


def _run(subject: Subject, rule: str, problem: Problem) -> Tensor:
    if rule in ALL:
        return Side(problem, variant(rule)).run(subject)
    return relevance_of(subject.get(rule)(), problem.module, problem.x, problem.relevance)


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
    found, run = _near(
        large, limit, identity, layer, subject, lambda one, other: np.abs(one.relevance - other.relevance)
    )
    found = _of_two_rules(found, run, "ZPlus")
    # what is left of gamma uses up the room, and says nothing of rounding
    return replace(found, ratio=None, probable=None) if found.verdict is Verdict.PASS else found


def _independent_of_input(problem_of: Callable[[], Problem], rule: str, subject: Subject) -> Finding:
    problem = problem_of()
    make = subject.get(rule)
    first = relevance_of(make(), problem.module, problem.x, problem.relevance)
    other = relevance_of(make(), problem.module, -3 * problem.x.flip(0) + 1, problem.relevance)
    return bits(first, other, "another input gives another relevance")


def _independent_of_weights(problem_of: Callable[[], Problem], subject: Subject) -> Finding:
    problem = problem_of()
    other = changed(problem, weight=lambda w: w.flip(0).exp() - 2, bias=lambda b: b - 7)
    make = subject.get("Flat")
    first = relevance_of(make(), problem.module, problem.x, problem.relevance)
    return bits(
        first,
        relevance_of(make(), other.module, problem.x, problem.relevance),
        "other parameters give another relevance",
    )


def bits(first: Tensor, other: Tensor, reason: str) -> Finding:
    """Check that two relevances agree in every bit."""
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
    as_linear = LayerCase("law-linear", "Linear", lambda: nn.Linear(3, 4), (12, 3))
    runs = [
        (rows(side.run(subject), batched=True), side.expected(on, subject))
        for side, on in ((one, layer), (other, as_linear))
    ]
    (got, of_conv), (of_positions, of_linear) = runs

    def back(values: Array) -> Array:
        return rows(torch.from_numpy(values).reshape(2, 2, 3, 3).movedim(-1, 1), batched=True)

    return judged(got, back(of_positions), of_conv.worst + back(of_linear.worst), runs)
