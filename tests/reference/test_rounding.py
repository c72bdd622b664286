"""The bound: honest evaluations stay within it in any order and precision, mistakes exceed it, and it is sharp."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from reference import layers as ref
from reference import rules
from reference.precision import FLOAT32, FLOAT64, Model, model_for
from reference.rounding import Bound, CallableStabilizer, beta_smooth_bound, bound, product_bound
from reference.rules import Part, Parts, Stabilize, Stabilizer
from reference.windows import Array

Numbers = Any  # arrays of the precision under test


@dataclass
class Arithmetic:
    """One precision: everything that is stored is of one type, a sum of products runs in another, in shuffled order."""

    stored: Any
    summed: Any
    shuffle: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    bits_cut: int = 0  # of each factor of a product, as TF32 does

    def put(self, values: Any) -> Numbers:
        return np.asarray(values, self.stored)

    def dot(self, matrix: Numbers, v: Numbers) -> Numbers:
        products = self._read(matrix) * self._read(v)
        order = self.shuffle.permutation(products.shape[1])
        # cumsum adds one after the other, which is the order with the largest bound
        return self.put(np.cumsum(products[:, order], axis=1, dtype=self.summed)[:, -1])

    def _read(self, values: Numbers) -> Numbers:
        values = values.astype(self.summed)
        if self.bits_cut:
            values = (values.view(np.uint32) >> self.bits_cut << self.bits_cut).view(np.float32)
        return values


PRECISIONS: dict[str, tuple[Arithmetic, Model]] = {
    "float64": (Arithmetic(np.float64, np.float64), FLOAT64),
    "float32": (Arithmetic(np.float32, np.float32), FLOAT32),
    "float16": (Arithmetic(np.float16, np.float32), model_for("float16")),
    "tf32": (Arithmetic(np.float32, np.float32, bits_cut=13), model_for("float32", "cuda", tf32=True)),
}


@dataclass
class Problem:
    """A dense layer and all that a rule is given, in the numbers of one precision."""

    W: Numbers
    b: Numbers
    x: Numbers
    R: Numbers
    eps: float = 1e-6

    def affine(self, zero_params: str | None = None) -> ref.Affine:
        W, b, x = (np.asarray(value, np.float64) for value in (self.W, self.b, self.x))
        return ref.affine(ref.Linear(x.shape, W, b), x, zero_params)

    @property
    def relevance(self) -> Array:
        return np.asarray(self.R, np.float64)


def problem(arithmetic: Arithmetic, seed: int, m: int = 20, n: int = 60, eps: float = 1e-6) -> Problem:
    """R is independent of the output, of both signs, and zero here and there; so is x."""
    rng = np.random.default_rng(seed)
    W, b, x, R = rng.standard_normal((m, n)) / 8, rng.standard_normal(m), rng.standard_normal(n), rng.standard_normal(m)
    x[rng.random(n) < 0.2] = 0
    R[rng.random(m) < 0.2] = 0
    return Problem(arithmetic.put(W), arithmetic.put(b), arithmetic.put(x), arithmetic.put(R), eps)


def pos(v: Numbers) -> Numbers:
    return np.maximum(v, 0)


def neg(v: Numbers) -> Numbers:
    return np.minimum(v, 0)


def ratios(
    p: Problem, parts: Parts, got: Numbers, model: Model, stabilize: Stabilize | None = None
) -> tuple[Bound, Array]:
    given = p.eps if stabilize is None else stabilize
    limit = bound(parts, p.relevance, given, model)
    return limit, limit.ratio(got, rules.relevance(parts, p.relevance, given))


# ---------------------------------------------------------------------------------------------------------------------
# Plain evaluations, and the other forms that good implementations use. S is d -> d + eps sgn(d) in the same numbers.

Stabilized = Callable[[Numbers], Numbers]
Evaluation = Callable[[Arithmetic, Problem, Stabilized], Numbers]
GAMMA, LOW, HIGH = 0.3, -1.7, 2.3


def plain_epsilon(a: Arithmetic, p: Problem, S: Stabilized) -> Numbers:
    return p.x * a.dot(p.W.T, p.R / S(a.dot(p.W, p.x) + p.b))


def epsilon_reciprocal(a: Arithmetic, p: Problem, S: Stabilized) -> Numbers:
    return p.x * a.dot(p.W.T, p.R * (a.put(1) / S(p.b + a.dot(p.W, p.x))))


def epsilon_output_minus_bias(a: Arithmetic, p: Problem, S: Stabilized) -> Numbers:
    return p.x * a.dot(p.W.T, p.R / S((a.dot(p.W, p.x) + p.b) - p.b))


def half(a: Arithmetic, p: Problem, S: Stabilized, first: Numbers, second: Numbers, bias: Numbers) -> Numbers:
    s = p.R / S((a.dot(first, pos(p.x)) + bias) + a.dot(second, neg(p.x)))
    return pos(p.x) * a.dot(first.T, s) + neg(p.x) * a.dot(second.T, s)


def plain_zplus(a: Arithmetic, p: Problem, S: Stabilized) -> Numbers:
    return half(a, p, S, pos(p.W), neg(p.W), pos(p.b))


def plain_alpha_beta(a: Arithmetic, p: Problem, S: Stabilized) -> Numbers:
    second = half(a, p, S, neg(p.W), pos(p.W), neg(p.b))
    return a.put(2.3) * plain_zplus(a, p, S) - a.put(1.3) * second


def alpha_beta_joined(a: Arithmetic, p: Problem, S: Stabilized) -> Numbers:
    """Both halves in one sum on the way back, with alpha and beta in the relevance."""
    first = S(a.dot(np.hstack([pos(p.W), neg(p.W)]), np.hstack([pos(p.x), neg(p.x)])) + pos(p.b))
    second = S(a.dot(np.hstack([neg(p.W), pos(p.W)]), np.hstack([pos(p.x), neg(p.x)])) + neg(p.b))
    s = np.hstack([a.put(2.3) * p.R / first, -(a.put(1.3) * p.R) / second])
    plus, minus = np.vstack([pos(p.W), neg(p.W)]), np.vstack([neg(p.W), pos(p.W)])
    return pos(p.x) * a.dot(plus.T, s) + neg(p.x) * a.dot(minus.T, s)


def plain_gamma(a: Arithmetic, p: Problem, S: Stabilized) -> Numbers:
    g = a.put(GAMMA)
    z = a.dot(p.W, p.x) + p.b
    up, down = p.W + g * pos(p.W), p.W + g * neg(p.W)
    gated = [Problem(p.W, p.b, p.x, a.put(np.where(gate, p.R, 0))) for gate in (z > 0, z < 0)]
    positive = half(a, gated[0], S, up, down, p.b + g * pos(p.b))
    return positive + half(a, gated[1], S, down, up, p.b + g * neg(p.b))


def gamma_in_two_maps(a: Arithmetic, p: Problem, S: Stabilized) -> Numbers:
    """Gamma by d = (1 + g/2) z +- (g/2) (|W| |x| + |b|), and the same two maps back."""
    part = a.put(GAMMA) / a.put(2)
    z = a.dot(p.W, p.x) + p.b
    total = a.dot(np.abs(p.W), np.abs(p.x)) + np.abs(p.b)
    sign = a.put(np.sign(z))
    s = np.where(z == 0, a.put(0), p.R / S((a.put(1) + part) * z + sign * (part * total)))
    back = p.x * ((a.put(1) + part) * a.dot(p.W.T, s))
    return back + np.abs(p.x) * (part * a.dot(np.abs(p.W).T, sign * s))


def plain_zbox(a: Arithmetic, p: Problem, S: Stabilized) -> Numbers:
    low, high = np.full_like(p.x, LOW), np.full_like(p.x, HIGH)
    s = p.R / S(a.dot(p.W, p.x) - a.dot(pos(p.W), low) - a.dot(neg(p.W), high))
    return p.x * a.dot(p.W.T, s) - low * a.dot(pos(p.W).T, s) - high * a.dot(neg(p.W).T, s)


def zbox_with_biases(a: Arithmetic, p: Problem, S: Stabilized) -> Numbers:
    """The bias in each of the three maps, left to cancel."""
    low, high = np.full_like(p.x, LOW), np.full_like(p.x, HIGH)
    below = a.dot(pos(p.W), low) + pos(p.b) + (a.dot(neg(p.W), high) + neg(p.b))
    s = p.R / S((a.dot(p.W, p.x) + p.b) - below)
    return p.x * a.dot(p.W.T, s) - (low * a.dot(pos(p.W).T, s) + high * a.dot(neg(p.W).T, s))


def zbox_of_distances(a: Arithmetic, p: Problem, S: Stabilized) -> Numbers:
    """W+ (x - l) + W- (x - h)."""
    to_low, to_high = p.x - a.put(LOW), p.x - a.put(HIGH)
    s = p.R / S(a.dot(pos(p.W), to_low) + a.dot(neg(p.W), to_high))
    return to_low * a.dot(pos(p.W).T, s) + to_high * a.dot(neg(p.W).T, s)


def plain_wsquare(a: Arithmetic, p: Problem, S: Stabilized) -> Numbers:
    squares = p.W * p.W
    return a.dot(squares.T, p.R / S(a.dot(squares, np.ones_like(p.x)) + p.b * p.b))


def plain_flat(a: Arithmetic, p: Problem, S: Stabilized) -> Numbers:
    ones = np.ones_like(p.W)
    return a.dot(ones.T, p.R / S(a.dot(ones, np.ones_like(p.x))))


def _gamma(layer: ref.Affine) -> Parts:
    return rules.gamma(layer, GAMMA)


def _alpha_beta(layer: ref.Affine) -> Parts:
    return rules.alpha_beta(layer, 2.3, 1.3)


def _zbox(layer: ref.Affine) -> Parts:
    return rules.zbox(layer, LOW, HIGH)


FORMS: dict[str, tuple[Callable[[ref.Affine], Parts], Evaluation, str | None]] = {
    "epsilon": (rules.epsilon, plain_epsilon, None),
    "epsilon, reciprocal": (rules.epsilon, epsilon_reciprocal, None),
    "epsilon, output minus bias": (rules.epsilon, epsilon_output_minus_bias, "bias"),
    "zplus": (rules.zplus, plain_zplus, None),
    "alpha_beta": (_alpha_beta, plain_alpha_beta, None),
    "alpha_beta, joined": (_alpha_beta, alpha_beta_joined, None),
    "gamma": (_gamma, plain_gamma, None),
    "gamma, two maps": (_gamma, gamma_in_two_maps, None),
    "zbox": (_zbox, plain_zbox, None),
    "zbox, biases": (_zbox, zbox_with_biases, None),
    "zbox, distances": (_zbox, zbox_of_distances, None),
    "wsquare": (rules.wsquare, plain_wsquare, None),
    "flat": (rules.flat, plain_flat, None),
}


def number(a: Arithmetic, eps: float) -> Stabilized:
    return lambda d: a.put(d + a.put(eps) * a.put(rules.sign(d)))


@pytest.mark.parametrize("eps", [1e-6, 0.25])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("form", FORMS)
def test_honest_evaluations_stay_within_the_bound(form: str, precision: str, eps: float) -> None:
    (rule, evaluate, zero), (arithmetic, model) = FORMS[form], PRECISIONS[precision]
    missed = 0.0
    for seed in range(8):
        p = problem(arithmetic, seed, eps=eps)
        _, ratio = ratios(p, rule(p.affine(zero)), evaluate(arithmetic, p, number(arithmetic, eps)), model)
        assert not (ratio > 1).any(), ratio.max()
        assert not np.isnan(ratio).any()
        missed = max(missed, ratio.max())
    assert missed > 0  # there was rounding to explain


@pytest.mark.parametrize("form", FORMS)
def test_few_entries_are_inconclusive_in_float64(form: str) -> None:
    rule, _, zero = FORMS[form]
    for seed in range(8):
        p = problem(PRECISIONS["float64"][0], seed)
        assert not bound(rule(p.affine(zero)), p.relevance, 1e-6, FLOAT64).inconclusive.any()


def test_tf32_is_not_float32() -> None:
    """Factors cut to ten bits exceed what float32 explains."""
    arithmetic, model = PRECISIONS["tf32"]
    p = problem(arithmetic, 1, eps=0.25)
    got = plain_zplus(arithmetic, p, number(arithmetic, 0.25))
    assert ratios(p, rules.zplus(p.affine()), got, model)[1].max() <= 1
    assert ratios(p, rules.zplus(p.affine()), got, FLOAT32)[1].max() > 1


# ---------------------------------------------------------------------------------------------------------------------
# Mistakes


def bias_dropped(a: Arithmetic, p: Problem, S: Stabilized) -> Numbers:
    return p.x * a.dot(p.W.T, p.R / S(a.dot(p.W, p.x)))


def epsilon_unsigned(a: Arithmetic, p: Problem, _: Stabilized) -> Numbers:
    return p.x * a.dot(p.W.T, p.R / (a.dot(p.W, p.x) + p.b + p.eps))


def epsilon_subtracted(a: Arithmetic, p: Problem, _: Stabilized) -> Numbers:
    d = a.dot(p.W, p.x) + p.b
    return p.x * a.dot(p.W.T, p.R / (d - p.eps * np.sign(d)))


def float32_inside(a: Arithmetic, p: Problem, S: Stabilized) -> Numbers:
    return p.x * a.dot(p.W.T, (p.R / S(a.dot(p.W, p.x) + p.b)).astype(np.float32).astype(np.float64))


def separate_denominators(a: Arithmetic, p: Problem, S: Stabilized) -> Numbers:
    first = pos(p.x) * a.dot(pos(p.W).T, p.R / S(a.dot(pos(p.W), pos(p.x)) + pos(p.b)))
    return first + neg(p.x) * a.dot(neg(p.W).T, p.R / S(a.dot(neg(p.W), neg(p.x))))


def bias_doubled(a: Arithmetic, p: Problem, S: Stabilized) -> Numbers:
    return half(a, p, S, pos(p.W), neg(p.W), 2 * pos(p.b))


def halves_swapped(a: Arithmetic, p: Problem, S: Stabilized) -> Numbers:
    return 2.3 * half(a, p, S, neg(p.W), pos(p.W), neg(p.b)) - 1.3 * plain_zplus(a, p, S)


def gate_of_the_relevance(a: Arithmetic, p: Problem, S: Stabilized) -> Numbers:
    up, down = p.W + GAMMA * pos(p.W), p.W + GAMMA * neg(p.W)
    gated = [Problem(p.W, p.b, p.x, clip(p.R)) for clip in (pos, neg)]
    positive = half(a, gated[0], S, up, down, p.b + GAMMA * pos(p.b))
    return positive + half(a, gated[1], S, down, up, p.b + GAMMA * neg(p.b))


def bounds_averaged(a: Arithmetic, p: Problem, S: Stabilized) -> Numbers:
    middle = np.full_like(p.x, (LOW + HIGH) / 2)
    s = p.R / S(a.dot(p.W, p.x) - a.dot(p.W, middle))
    return (p.x - middle) * a.dot(p.W.T, s)


def squares_without_bias(a: Arithmetic, p: Problem, S: Stabilized) -> Numbers:
    squares = p.W * p.W
    return a.dot(squares.T, p.R / S(a.dot(squares, np.ones_like(p.x))))


def flat_with_bias(a: Arithmetic, p: Problem, S: Stabilized) -> Numbers:
    ones = np.ones_like(p.W)
    return a.dot(ones.T, p.R / S(a.dot(ones, np.ones_like(p.x)) + 1))


MISTAKES: dict[str, tuple[Callable[[ref.Affine], Parts], Evaluation]] = {
    "bias dropped": (rules.epsilon, bias_dropped),
    "epsilon unsigned": (rules.epsilon, epsilon_unsigned),
    "epsilon subtracted": (rules.epsilon, epsilon_subtracted),
    "float32 inside": (rules.epsilon, float32_inside),
    "separate denominators": (rules.zplus, separate_denominators),
    "bias doubled": (rules.zplus, bias_doubled),
    "halves swapped": (_alpha_beta, halves_swapped),
    "gate of the relevance": (_gamma, gate_of_the_relevance),
    "bounds averaged": (_zbox, bounds_averaged),
    "squares without bias": (rules.wsquare, squares_without_bias),
    "flat with bias": (rules.flat, flat_with_bias),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_exceed_the_float64_bound_by_far(mistake: str) -> None:
    (rule, evaluate), arithmetic = MISTAKES[mistake], PRECISIONS["float64"][0]
    p = problem(arithmetic, 3)
    _, ratio = ratios(p, rule(p.affine()), evaluate(arithmetic, p, number(arithmetic, p.eps)), FLOAT64)
    assert ratio.max() > 1000


def test_sign_of_zero_is_seen() -> None:
    """Integers that cancel: d = 0 is decided in every precision, and sgn(0) = 0 makes the denominator vanish."""
    W, x, R = np.array([[2.0, 3.0, 1.0], [1.0, 1.0, 1.0]]), np.array([3.0, -2.0, 0.0]), np.array([2.0, 1.0])
    p = Problem(W, np.zeros(2), x, R, 0.5)
    got = x * (W.T @ (R / np.array([0.5, 1.5])))
    with np.errstate(divide="ignore", invalid="ignore"):
        wrong = x * (W.T @ (R / np.array([0.0, 1.5])))
    for _, model in PRECISIONS.values():
        limit, ratio = ratios(p, rules.epsilon(p.affine()), got, model)
        assert not limit.inconclusive.any()
        assert not limit.undecided[0].any()
        assert ratio.max() <= 1
        assert not (limit.ratio(wrong, rules.relevance(rules.epsilon(p.affine()), R, 0.5)) <= 1).all()


# ---------------------------------------------------------------------------------------------------------------------
# Sharpness


def test_six_roundings_of_a_single_product() -> None:
    """One product, epsilon 0: w x, S + 0, a quotient or product with a reciprocal (2), w s, x times it: six."""
    p = Problem(np.array([[1.7]]), np.zeros(1), np.array([0.3]), np.array([1.1]), 0.0)
    parts = rules.epsilon(p.affine())
    r = abs(rules.relevance(parts, p.relevance, 0.0)[0])
    worst = bound(parts, p.relevance, 0.0, FLOAT32).worst[0]
    assert 6 * FLOAT32.unit * r <= worst <= 6 * FLOAT32.unit * r * (1 + 2.0**-20)


def test_the_bound_grows_with_the_number_of_nonzero_products() -> None:
    """Zeros in x and in W round nothing: 64 inputs of which one counts are bounded as one alone is."""
    W, x = np.zeros((1, 64)), np.ones(64)
    W[0, 5], x[7:] = 1.7, 0.0
    alone = Problem(W[:, 5:6], np.zeros(1), x[5:6], np.ones(1), 0.1)
    among = Problem(W, np.zeros(1), x, np.ones(1), 0.1)
    one, many = (bound(rules.epsilon(p.affine()), np.ones(1), 0.1, FLOAT32).worst for p in (alone, among))
    # equal but for the last factor, which counts the length of the vectors themselves
    assert one[0] <= many[5] <= one[0] * (1 + FLOAT64.gamma(256))
    assert not np.delete(many, 5).any()


def test_worst_case_is_nearly_reached() -> None:
    """Adding ones to a number that they vanish beside loses them all: the error of d is of the order of its bound."""
    n = 257
    x = np.ones(n, np.float32)
    x[0] = 2.0**24
    got = np.cumsum(x, dtype=np.float32)[-1]
    exact = float(x.astype(np.float64).sum())
    assert FLOAT32.gamma(n) * exact / 2 < exact - float(got) <= FLOAT32.gamma(n) * exact


# ---------------------------------------------------------------------------------------------------------------------
# Undecided


def test_an_undecided_sign_makes_inconclusive_what_it_reaches() -> None:
    """0.1 + 0.2 - 0.3 is 5.6e-17 in float64 and something else elsewhere. Input 3 is not read by that output."""
    W = np.array([[0.1, 0.2, 0.3, 0.0], [1.0, 1.0, 1.0, 1.0]])
    x = np.array([1.0, 1.0, -1.0, 1.0])
    p = Problem(W, np.zeros(2), x, np.ones(2), 1e-6)
    limit = bound(rules.epsilon(p.affine()), p.relevance, 1e-6, FLOAT32)
    assert limit.undecided[0].tolist() == [True, False]
    assert limit.inconclusive.tolist() == [True, True, True, False]
    # without relevance at that output nothing is at stake
    assert not bound(rules.epsilon(p.affine()), np.array([0.0, 1.0]), 1e-6, FLOAT32).inconclusive.any()


def test_integers_in_units_of_a_power_of_two_are_exact() -> None:
    """Multiples of 1/8 below 2^24 of them cancel exactly in float32; beyond that they may not."""
    x = np.array([0.125, 0.25, -0.375])
    exact = Problem(np.ones((1, 3)), np.zeros(1), x, np.ones(1), 0.5)
    assert not bound(rules.epsilon(exact.affine()), np.ones(1), 0.5, FLOAT32).inconclusive.any()
    large = Problem(np.ones((1, 3)), np.zeros(1), x + np.array([2.0**22, 0, -(2.0**22)]), np.ones(1), 0.5)
    assert bound(rules.epsilon(large.affine()), np.ones(1), 0.5, FLOAT32).inconclusive.all()
    assert not bound(rules.epsilon(large.affine()), np.ones(1), 0.5, FLOAT64).inconclusive.any()


@pytest.mark.parametrize(("shift", "inconclusive"), [(0, True), (1, False)], ids=["underflows", "is-a-subnormal"])
def test_multiples_of_a_power_of_two_that_underflows_are_not_exact(shift: int, inconclusive: bool) -> None:
    """Of 2^-130 - (2^-130 + 2^-150), float32 has no 2^-150: the sum is 0, and its sign +. It has 2^-149."""
    x = np.array([1.0, 1.0 + 2.0**-20]) * 2.0 ** (shift - 65)
    p = Problem(2.0**-65 * np.array([[1.0, -1.0]], np.float32), np.zeros(1, np.float32), x, np.ones(1), 0.5)
    p.x, p.R = p.x.astype(np.float32), p.R.astype(np.float32)
    arithmetic, model = PRECISIONS["float32"]
    assert (arithmetic.dot(p.W[None, 0], p.x) == 0) == inconclusive
    limit, ratio = ratios(
        p, rules.epsilon(p.affine()), plain_epsilon(arithmetic, p, lambda d: d + np.where(d < 0, -0.5, 0.5)), model
    )
    assert (ratio <= 1).all()
    assert limit.inconclusive.all() == inconclusive


def test_a_changed_parameter_that_underflows_is_not_exact() -> None:
    """Half of 2^-149 is none in float32; an input that makes up for it comes too late."""
    W, x = 2.0**-149 * np.array([[1.0, -1.0]]), 2.0**20 * np.array([1.0, 1.0])
    p = Problem(W, np.zeros(1), x, np.ones(1))
    above, _ = rules.gamma(p.affine(), 0.5)
    assert above.known_sizes.grain < 2 * FLOAT32.tiny


def test_undecided_gate_of_gamma() -> None:
    """The sign of 0.1 + 0.2 - 0.3 decides between two branches, both far from zero; 1 - 1 is for neither."""
    W = np.array([[0.1, 0.2, 0.3], [1.0, 0.0, 1.0]])
    p = Problem(W, np.zeros(2), np.array([1.0, 1.0, -1.0]), np.array([1.0, 0.0]))
    assert bound(_gamma(p.affine()), p.relevance, 1e-6, FLOAT32).inconclusive.all()
    p.R = np.array([0.0, 1.0])
    whole = Problem(10 * W, np.zeros(2), p.x, np.array([1.0, 1.0]))
    whole.W[0] = [1, 2, 3]
    limit = bound(rules.gamma(whole.affine(), 0.5), whole.relevance, 1e-6, FLOAT32)
    assert not limit.inconclusive.any()
    assert not limit.worst.any()  # r = 0, exactly


def test_a_denominator_that_may_vanish_spoils_the_sample() -> None:
    """Without epsilon 0 / 0 spreads as NaN over all entries: nothing can be said, not even of input 3."""
    p = Problem(np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]), np.zeros(2), np.array([1.0, -1.0, 1.0]), np.ones(2))
    assert bound(rules.epsilon(p.affine()), p.relevance, 0.0, FLOAT64).inconclusive.all()
    assert not bound(rules.epsilon(p.affine()), p.relevance, 1e-6, FLOAT64).inconclusive.any()


def test_parameters_that_cancel_in_one_entry() -> None:
    """Around a ring of two, w = (1/3, 1, -1/3) 1e6: the entry is 0, the two products are not, and round one by one."""
    w = np.array([1e6 / 3, 1.0, -1e6 / 3], np.float32)
    x, R = np.array([0.7, 1.3], np.float32), np.array([1.0, -0.4])
    layer = ref.Conv((1, 2), w.astype(np.float64)[None, None], None, (1,), (1,), (1,), 1, "circular")
    (part,) = parts = rules.epsilon(ref.affine(layer, x.astype(np.float64)))
    d = (w[0] * x[::-1] + w[1] * x) + w[2] * x[::-1]
    s = R.astype(np.float32) / (d + np.float32(1e-6))
    got = x * ((w[0] * s[::-1] + w[1] * s) + w[2] * s[::-1])
    expected = rules.relevance(parts, R, 1e-6)
    assert bound(parts, R, 1e-6, FLOAT32).ratio(got, expected).max() <= 1
    blind = (Part(part.terms, part.bias),)
    assert bound(blind, R, 1e-6, FLOAT32).ratio(got, expected).max() > 1


# ---------------------------------------------------------------------------------------------------------------------
# Stabilizers, extremes, other layers


def clipped(a: Arithmetic) -> Stabilized:
    return lambda d: a.put(rules.sign(d)) * np.maximum(np.abs(d), a.put(0.7))


def scaled(a: Arithmetic) -> Stabilized:
    return lambda d: a.put(d + a.put(0.3) * np.sqrt(np.mean(d * d, dtype=a.summed)).astype(a.stored) * rules.sign(d))


STABILIZERS: dict[str, tuple[Stabilizer | CallableStabilizer, Callable[[Arithmetic], Stabilized]]] = {
    "clip": (Stabilizer(0.7, clip=True), clipped),
    "norm_scale": (Stabilizer(0.3, norm_scale=True), scaled),
    "callable": (CallableStabilizer(lambda d: 1.5 * d + 4, 1.5), lambda a: lambda d: a.put(1.5) * d + a.put(4)),
    "callable without jump": (
        CallableStabilizer(lambda d: 1.5 * d + 4, 1.5, jumps=False),
        lambda a: lambda d: a.put(1.5) * d + a.put(4),
    ),
}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", STABILIZERS)
def test_stabilizers(name: str, precision: str) -> None:
    (stabilize, evaluated), (arithmetic, model) = STABILIZERS[name], PRECISIONS[precision]
    decided = False
    for seed in range(8):
        p = problem(arithmetic, seed)
        parts, got = rules.epsilon(p.affine()), plain_epsilon(arithmetic, p, evaluated(arithmetic))
        limit, ratio = ratios(p, parts, got, model, stabilize)
        assert not (ratio > 1).any()
        decided |= not limit.inconclusive.any()  # 1.5 d + 4 comes close to zero in some of them
        if precision == "float64":
            assert limit.ratio(got * (1 + 1e-6), rules.relevance(parts, p.relevance, stabilize)).max() > 1000
    assert decided


def test_a_stabilizer_without_jump_needs_no_sign() -> None:
    W, x = np.array([[0.1, 0.2, 0.3]]), np.array([1.0, 1.0, -1.0])
    parts = rules.epsilon(Problem(W, np.zeros(1), x, np.ones(1)).affine())
    for jumps in (True, False):
        stabilize = CallableStabilizer(lambda d: d + 4, 1.0, jumps=jumps)
        assert bound(parts, np.ones(1), stabilize, FLOAT32).inconclusive.all() == jumps


def test_a_callable_of_unknown_error_is_refused() -> None:
    p = problem(PRECISIONS["float64"][0], 0)
    with pytest.raises(TypeError, match="expected a number, a Stabilizer or a CallableStabilizer; wrap it"):
        bound(rules.epsilon(p.affine()), p.relevance, lambda d: d + 1, FLOAT64)


@pytest.mark.parametrize("scale", [1e-4, 1e-2])
def test_underflow_in_half_precision(scale: float) -> None:
    """Squares of 1e-4 are below the smallest float16."""
    arithmetic, model = PRECISIONS["float16"]
    for seed in range(4):
        p = problem(arithmetic, seed, eps=0.25)
        p.W, p.b = arithmetic.put(scale * p.W), arithmetic.put(scale * p.b)
        for rule, evaluate in ((rules.wsquare, plain_wsquare), (rules.epsilon, plain_epsilon), (_gamma, plain_gamma)):
            _, ratio = ratios(p, rule(p.affine()), evaluate(arithmetic, p, number(arithmetic, 0.25)), model)
            assert not (ratio > 1).any()


def test_underflow_in_float32() -> None:
    arithmetic, model = PRECISIONS["float32"]
    p = problem(arithmetic, 0, eps=1e-40)
    p.W, p.x, p.b, p.R = (arithmetic.put(1e-20 * v) for v in (p.W, p.x, 1e-20 * p.b, p.R))
    _, ratio = ratios(p, rules.zplus(p.affine()), plain_zplus(arithmetic, p, number(arithmetic, 1e-40)), model)
    assert not (ratio > 1).any()
    assert ratio.max() > 0


@pytest.mark.parametrize("scaled", ["s", "R"])
@pytest.mark.parametrize("alpha", [1.0, 1.25, 1.5, 2.0, 3.0])
def test_a_quotient_that_is_scaled_may_underflow_twice(alpha: float, scaled: str) -> None:
    """R / 1e12 has few bits in float32, and 1e12 makes an error of what they lose; or R itself has, and S is small."""
    w, c = (np.float32(1e12), np.float32(alpha)) if scaled == "s" else (np.float32(1e-3), np.float32(alpha))
    worst = 0.0
    for k in range(1, 200):
        R = np.float32(k * (1e-33 if scaled == "s" else 2.0**-149))
        S = w + np.float32(1e-6)
        got = w * (c * (R / S)) if scaled == "s" else w * ((c * R) / S)
        assert got.dtype == np.float32
        p = Problem(np.array([[w]], np.float64), np.zeros(1), np.ones(1), np.array([R], np.float64))
        parts = rules.alpha_beta(p.affine(), alpha, alpha - 1)
        limit = bound(parts, p.relevance, 1e-6, FLOAT32)
        worst = max(worst, float(limit.ratio(np.array([got]), rules.relevance(parts, p.relevance, 1e-6))[0]))
    assert worst <= 1


@pytest.mark.parametrize("g", [0.25, 1.0])
def test_gamma_in_two_maps_may_underflow_more_often(g: float) -> None:
    """w+ and w- are (w + |w|) / 2 and (w - |w|) / 2, and so s is scaled by 1 + g/2 and by g/2 in place of weights."""
    w, half, worst = np.float32(1e12), np.float32(g / 2), 0.0
    for k in range(1, 200):
        R = np.float32(k * 1e-33)
        s = R / ((1 + half) * w + half * w + np.float32(1e-6))
        got = w * ((1 + half) * s) + w * (half * s)
        assert got.dtype == np.float32
        p = Problem(np.array([[w]], np.float64), np.zeros(1), np.ones(1), np.array([R], np.float64))
        parts = rules.gamma(p.affine(), g)
        limit = bound(parts, p.relevance, 1e-6, FLOAT32)
        worst = max(worst, float(limit.ratio(np.array([got]), rules.relevance(parts, p.relevance, 1e-6))[0]))
    assert worst <= 1


def test_overflow_is_inconclusive() -> None:
    """1e3 * 1e3 is no float16, and 1e-7 / 1e-4 a small one; float32 knows both."""
    p = Problem(np.full((2, 2), 1e3), np.zeros(2), np.array([1e3, 2e3]), np.ones(2))
    assert bound(rules.epsilon(p.affine()), p.relevance, 1e-6, model_for("float16")).inconclusive.all()
    assert not bound(rules.epsilon(p.affine()), p.relevance, 1e-6, FLOAT32).inconclusive.any()


def test_a_quotient_that_may_overflow_spoils_the_sample() -> None:
    """Undecided between +1e-6 and -1e-6, 1 / S is 1e6: no float16, and 0 * inf is NaN for input 3 too."""
    p = Problem(np.array([[0.1, 0.2, 0.3, 0.0]]), np.zeros(1), np.array([1.0, 1.0, -1.0, 1.0]), np.ones(1))
    parts = rules.epsilon(p.affine())
    half_precision = model_for("float16")
    assert bound(parts, np.ones(1), 1e-6, half_precision).inconclusive.all()
    assert bound(parts, np.ones(1), 1e-6, half_precision).overflows.all()
    small = bound(parts, np.array([1e-3]), 1e-6, half_precision)
    assert small.inconclusive.tolist() == [True, True, True, False]
    assert not small.overflows.any()  # anything, but finite
    assert bound(parts, np.ones(1), 1e-6, FLOAT32).inconclusive.tolist() == [True, True, True, False]


def test_a_sum_that_overflows_may_be_nan_where_the_input_is_zero() -> None:
    """1e15 * (1e15 / 1e-9) is no float32, and 0 * inf is NaN; beside it, input 2 has no weight there."""
    p = Problem(np.array([[1e15, 0.0], [0.0, 1.0]]), np.zeros(2), np.array([0.0, 1.0]), np.array([1e15, 1.0]))
    limit = bound(rules.epsilon(p.affine()), p.relevance, 1e-9, FLOAT32)
    assert limit.overflows.tolist() == limit.inconclusive.tolist() == [True, False]
    assert not bound(rules.epsilon(p.affine()), p.relevance, 1e-9, FLOAT64).overflows.any()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_negative_bias_leaves_nothing_of_b_plus(precision: str) -> None:
    """ZPlus without a positive contribution and with b = -0.3: d = 0 is certain, for a parameter has no rounding."""
    p = Problem(np.array([[-0.7, 0.0], [0.1, 0.2]]), np.array([-0.3, 0.1]), np.ones(2), np.array([0.01, 0.01]))
    limit = bound(rules.zplus(p.affine()), p.relevance, 1e-6, PRECISIONS[precision][1])
    assert not limit.undecided[0].any()
    assert not limit.inconclusive.any()


def test_a_computed_bias_that_cancels_may_have_either_sign() -> None:
    """A constant 0.3 - 0.1 * 3 of batch normalisation: whether b+ is zero rounding decides."""
    layer = ref.BatchNorm((1,), np.array([0.1]), np.array([0.3]), np.array([3.0]), np.array([1.0]), 0.0)
    (part,) = rules.zplus(ref.affine(layer, np.array([1.0])))
    assert part.known_sizes.bias[0] > 0.5


def test_an_epsilon_below_half_precision_is_no_stabilizer() -> None:
    p = Problem(np.ones((1, 2)), np.zeros(1), np.array([1.0, -1.0]), np.array([2.0**-7]))
    assert bound(rules.epsilon(p.affine()), p.relevance, 1e-8, model_for("float16")).inconclusive.all()
    assert not bound(rules.epsilon(p.affine()), p.relevance, 1e-6, model_for("float16")).inconclusive.any()


FUNCTIONS: dict[str, tuple[Callable[[Numbers], Numbers], Callable[[Numbers], Numbers]]] = {
    "relu": (pos, lambda x: (x > 0) * np.float32(1)),
    "tanh": (np.tanh, lambda x: 1 - np.tanh(x) ** 2),
    "sigmoid": (lambda x: 1 / (1 + np.exp(-x)), lambda x: (1 - 1 / (1 + np.exp(-x))) / (1 + np.exp(-x))),
    "silu": (
        lambda x: x / (1 + np.exp(-x)),
        lambda x: (1 + x * (1 - 1 / (1 + np.exp(-x)))) / (1 + np.exp(-x)),
    ),
    "elu": (
        lambda x: np.where(x > 0, x, np.exp(neg(x)) - 1),
        lambda x: np.where(x > 0, np.float32(1), np.exp(neg(x))),
    ),
    "softplus": (lambda x: np.log1p(np.exp(x)), lambda x: np.exp(x) / (np.exp(x) + 1)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_in_float32(name: str) -> None:
    """Norm and guided backpropagation, with value and slope as an implementation in float32 gets them."""
    value, slope = FUNCTIONS[name]
    rng = np.random.default_rng(7)
    x, R = (rng.normal(0, 3, 200).astype(np.float32) for _ in range(2))
    layer = ref.Elementwise((200,), name)
    point, R64 = layer.at(x.astype(np.float64)), R.astype(np.float64)
    parts = rules.norm(ref.affine(layer, x.astype(np.float64)))
    d = value(x)
    got = x * (slope(x) * (R / (d + np.float32(0.1) * rules.sign(d).astype(np.float32))))
    assert got.dtype == np.float32
    assert bound(parts, R64, 0.1, FLOAT32).ratio(got, rules.relevance(parts, R64, 0.1)).max() <= 1
    limit = product_bound(point.slope_size, R64, point.roundings, FLOAT32)
    expected = rules.relu_guided(point.slope, R64)
    assert limit.ratio(np.where(R > 0, slope(x) * R, 0), expected).max() <= 1
    assert limit.ratio(np.where(R < 0, slope(x) * R, 0), expected).max() > 1


def test_softmax_in_float32() -> None:
    rng = np.random.default_rng(8)
    x, R = (rng.normal(0, 3, 30).astype(np.float32) for _ in range(2))
    parts = rules.norm(ref.affine(ref.Softmax((3, 10), 1), x.astype(np.float64)))
    y = np.exp(x.reshape(3, 10) - x.reshape(3, 10).max(1, keepdims=True))
    y /= y.sum(1, keepdims=True)
    s = R.reshape(3, 10) / (y + np.float32(0.1))
    got = x * (y * (s - (y * s).sum(1, keepdims=True))).ravel()
    expected = rules.relevance(parts, R.astype(np.float64), 0.1)
    assert bound(parts, R.astype(np.float64), 0.1, FLOAT32).ratio(got, expected).max() <= 1
    assert bound(parts, R.astype(np.float64), 0.1, FLOAT64).ratio(got, expected).max() > 1000


def test_batch_norm_and_mean_in_float32() -> None:
    """The scale as w (1 / sqrt(var + eps)) and x - mean first; a mean over three as a sum and a quotient."""
    rng = np.random.default_rng(9)
    w, b, mean, x, R = (rng.standard_normal(50).astype(np.float32) for _ in range(5))
    var = rng.random(50).astype(np.float32)
    weight, bias, center, spread = (v.astype(np.float64) for v in (w, b, mean, var))
    layer = ref.BatchNorm((50,), weight, bias, center, spread, 1e-3)
    scale = w * (1 / np.sqrt(var + np.float32(1e-3)))
    d = (x - mean) * scale + b
    got = x * (scale * (R / (d + np.float32(0.1) * rules.sign(d).astype(np.float32))))
    parts = rules.epsilon(ref.affine(layer, x.astype(np.float64)))
    R64 = R.astype(np.float64)
    assert bound(parts, R64, 0.1, FLOAT32).ratio(got, rules.relevance(parts, R64, 0.1)).max() <= 1

    pool = rules.norm(ref.affine(ref.AvgPool((1, 48), (3,), (3,), (0,)), x[:48].astype(np.float64)))
    d = x[:48].reshape(16, 3).sum(1) / np.float32(3)
    s = R[:16] / (d + np.float32(0.1) * rules.sign(d).astype(np.float32))
    expected = rules.relevance(pool, R64[:16], 0.1)
    assert bound(pool, R64[:16], 0.1, FLOAT32).ratio(x[:48] * np.repeat(s / 3, 3), expected).max() <= 1


def test_beta_smooth_in_float32() -> None:
    rng = np.random.default_rng(10)
    x, R = (rng.normal(0, 4, 500).astype(np.float32) for _ in range(2))
    x[:3] = [0.0, -9.5, -30.0]
    with np.errstate(over="ignore"):
        got = R / (1 + np.exp(-(np.float32(10) * x)))
    x64, R64 = x.astype(np.float64), R.astype(np.float64)
    limit = beta_smooth_bound(x64, R64, 10.0, FLOAT32)
    assert limit.ratio(got, rules.relu_beta_smooth(x64, R64, 10.0)).max() <= 1
    assert limit.ratio(got, rules.relu_beta_smooth(x64, R64, 10.001)).max() > 1


def test_rules_that_do_not_round() -> None:
    R = np.array([1.0, -2.0, 0.0])
    limit = product_bound(np.zeros(3), R, 0, FLOAT32)
    assert not limit.worst.any()
    assert limit.ratio(R, R).max() == 0
    assert limit.ratio(R * (1 + 2.0**-40), R).max() == np.inf


# ---------------------------------------------------------------------------------------------------------------------
# Models and the comparison itself


def test_ratio_of_what_is_not_a_number() -> None:
    worst, probable = np.array([1.0, 1.0, 0.0, np.inf, 0.0]), np.array([0.5, 0.5, 0.0, np.inf, 0.0])
    limit = Bound(worst, probable, (), np.zeros(5, np.bool_))
    ratio = limit.ratio(np.array([np.nan, 2.0, 1.0, np.nan, 0.0]), np.array([0.0, 1.0, 1.0, 1.0, 1e-300]))
    assert not (ratio[0] <= 1)
    assert ratio[1:].tolist() == [1.0, 0.0, 0.0, np.inf]
    assert limit.ratio(np.full(5, 2.0), np.ones(5), probable=True)[1] == 2
    assert limit.inconclusive.tolist() == [False, False, False, True, False]


def test_the_bound_does_not_shrink_as_relevance_grows() -> None:
    """What is carried through a whole network relies on it."""
    p = problem(PRECISIONS["float32"][0], 2)
    for rule, _, _ in FORMS.values():
        parts = rule(p.affine())
        small, large = (bound(parts, R, 1e-6, FLOAT32) for R in (p.relevance, np.abs(p.relevance) + 0.1))
        assert (small.worst <= large.worst).all()


def test_probable_is_below_worst() -> None:
    p = problem(PRECISIONS["float32"][0], 2, m=300, n=400)
    limit = bound(rules.zplus(p.affine()), p.relevance, 1e-6, FLOAT32)
    assert (limit.probable <= limit.worst).all()
    assert (limit.probable < limit.worst).any()


def test_growth_of_roundings() -> None:
    """gamma(k) = k u / (1 - k u); of 10000 roundings about 5 * 100 are probable."""
    assert FLOAT32.gamma(4) == 4 * 2.0**-24 / (1 - 4 * 2.0**-24)
    assert FLOAT32.gamma(2**24) == np.inf
    assert FLOAT32.gamma(0) == FLOAT32.probable(0) == 0
    assert FLOAT32.probable(9) == FLOAT32.gamma(9)
    assert 500 * FLOAT32.unit <= FLOAT32.probable(10000) <= 501 * FLOAT32.unit


@pytest.mark.parametrize(
    ("dtype", "stored", "least"),
    [("float64", np.float64, 2.0**-1074), ("float32", np.float32, 2.0**-150), ("float16", np.float16, 2.0**-25)],
)
def test_models_know_their_type(dtype: str, stored: Any, least: float) -> None:
    model, limits = model_for(f"torch.{dtype}"), np.finfo(stored)
    assert (model.unit, model.tiny, model.huge) == (float(limits.eps) / 2, least, float(limits.max))
    assert model == model_for(dtype)


def test_models_of_other_devices() -> None:
    assert model_for("float32", "cuda:1") == FLOAT32
    for model in (model_for("float32", "cuda", tf32=True), model_for("bfloat16", "cuda")):
        assert not model.unbiased
        assert model.sum_unit > FLOAT32.unit
    assert model_for("bfloat16").unit == 2.0**-8
    names = {model_for(d, device).name for d in ("float16", "bfloat16") for device in ("cpu", "cuda")}
    assert len(names) == 4


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dtype": "int8"}, "given 'int8', expected float64, float32, float16 or bfloat16"),
        ({"dtype": "float64", "device": "cuda", "tf32": True}, "given tf32 with float64 on cuda"),
        ({"dtype": "float32", "tf32": True}, "given tf32 with float32 on cpu"),
    ],
    ids=["dtype", "tf32 of float64", "tf32 on cpu"],
)
def test_models_that_do_not_exist(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model_for(**given)
