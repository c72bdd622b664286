"""The rules against numbers worked out by hand: small integers, so that every expectation is exact."""

from collections.abc import Callable

import numpy as np
import pytest

from reference import layers as ref
from reference import rules
from reference.rules import Parts, Stabilize, Stabilizer
from reference.windows import Array

# The layer of most examples: z1 = 2*3 - 1*(-2) + 1 = 9, z2 = 1*3 + 3*(-2) - 2 = -5.
X = np.array([3.0, -2.0])
LAYER = ref.Linear((2,), np.array([[2.0, -1.0], [1.0, 3.0]]), np.array([1.0, -2.0]))


def at(layer: ref.Layer = LAYER, x: Array = X, zero_params: str | None = None) -> ref.Affine:
    return ref.affine(layer, x, zero_params)


def row(*weights: float, bias: float | None = None) -> ref.Linear:
    """A layer with one output."""
    return ref.Linear((len(weights),), np.array([weights]), None if bias is None else np.array([bias]))


def assert_relevance(parts: Parts, R: list[float], expected: list[float], stabilize: Stabilize = 0.0) -> None:
    got = rules.relevance(parts, np.array(R), stabilize)
    assert np.array_equal(got, expected), f"got {got}, expected {expected}"


def test_epsilon_zero() -> None:
    """By hand: s = (18 / 9, -10 / -5) = (2, 2); A^T s = (2*2 + 1*2, -1*2 + 3*2) = (6, 4)."""
    assert_relevance(rules.epsilon(at()), [18, -10], [3 * 6, -2 * 4])


def test_epsilon_follows_the_sign_of_the_output() -> None:
    """S = (9 + 1, -5 - 1); s = (10 / 10, 6 / -6) = (1, -1); A^T s = (2 - 1, -1 - 3) = (1, -4)."""
    assert_relevance(rules.epsilon(at()), [10, 6], [3 * 1, -2 * -4], 1.0)


def test_epsilon_without_bias() -> None:
    """By hand: d = (8, -3); s = (2, 1); A^T s = (4 + 1, -2 + 3) = (5, 1)."""
    assert_relevance(rules.epsilon(at(zero_params="bias")), [16, -3], [3 * 5, -2 * 1])


def test_norm_leaves_parameters_untouched() -> None:
    """As epsilon with the bias, whatever is to be set to zero."""
    assert_relevance(rules.norm(at(zero_params="bias")), [18, -10], [18, -8])


@pytest.mark.parametrize("rule", [rules.epsilon, rules.zplus, rules.flat], ids=lambda rule: str(rule.__name__))
def test_sign_of_zero_is_plus(rule: Callable[[ref.Affine], Parts]) -> None:
    """By hand: d = 0, S = +0.5, s = 2 / 0.5 = 4.

    Epsilon of 1 - 1, ZPlus without a positive contribution, Flat where a window sees only padding.
    """
    if rule is rules.epsilon:
        assert_relevance(rule(at(row(1, 1), np.array([1.0, -1.0]))), [2], [4, -4], 0.5)
    elif rule is rules.zplus:
        (part,) = rule(at(row(1, 1), np.array([-1.0, -1.0])))
        assert np.array_equal(part.shares(np.array([2.0]), Stabilizer(0.5)), [4])
    else:
        window = ref.Conv((1, 1), np.ones((1, 1, 1)), None, (1,), ((2, 0),), (1,))
        (part,) = rule(at(window, np.array([7.0])))
        assert np.array_equal(part.shares(np.array([2.0, 2.0, 3.0]), Stabilizer(0.5)), [4, 4, 2])


def test_zplus() -> None:
    """w+ = (2, 0; 1, 3), w- = (0, -1; 0, 0), x+ = (3, 0), x- = (0, -2).

    d = (2*3 + (-1)(-2) + 1, 1*3 + 0 + 0) = (9, 3), the bias -2 of the second output not being positive; s = (1, 2).
    r1 = 3 (2*1 + 1*2) = 12; r2 = -2 (-1*1) = 2. The bias takes 1 * s1 = 1 of 9 + 6.
    """
    assert_relevance(rules.zplus(at()), [9, 6], [12, 2])


def test_zplus_takes_the_positive_bias_once() -> None:
    """x+ and x- are both there, b+ = 4 only once: d = 1*1 + (-2)(-1) + 4 = 7."""
    (part,) = rules.zplus(at(row(1, -2, bias=4), np.array([1.0, -1.0])))
    assert np.array_equal(part.denominator, [7])


def test_alpha_beta() -> None:
    """By hand: da = (9, 3) as in ZPlus, db = (0, 3 (-2) - 2) = (0, -8); S = (10, 4) and (1, -9).

    sa = (1, 9), sb = (10, -4); r = 2 first - second, where
    first = (3 (2*1 + 1*9), -2 (-1*1)) = (33, 2) and second = (3 * 0, -2 (0*10 + 3*(-4))) = (0, 24).
    """
    assert_relevance(rules.alpha_beta(at(), 2, 1), [10, 36], [66, 4 - 24], 1.0)


def test_alpha_beta_on_a_positive_layer_gives_twice_the_relevance() -> None:
    """Nothing is negative: the second half has no contributions, and sum(r) = 2 sum(R) = 20.

    d = (3, 7), s = (1, 1), A^T s = (4, 6); clipping leaves these denominators as they are.
    """
    layer = ref.Linear((2,), np.array([[1.0, 2.0], [3.0, 4.0]]), None)
    parts = rules.alpha_beta(at(layer, np.ones(2)), 2, 1)
    assert_relevance(parts, [3, 7], [8, 12], Stabilizer(1e-6, clip=True))


def test_beta_zero_leaves_the_second_half_out() -> None:
    """On the same layer without a stabilizer: 0 * inf would be NaN."""
    layer = ref.Linear((2,), np.array([[1.0, 2.0], [3.0, 4.0]]), None)
    parts = rules.alpha_beta(at(layer, np.ones(2)), 1, 0)
    assert len(parts) == 1
    assert_relevance(parts, [3, 7], [4, 6])
    assert not np.isfinite(rules.relevance(rules.alpha_beta(at(layer, np.ones(2)), 2, 1), np.ones(2), 0.0)).any()


def test_gamma() -> None:
    """By hand: gamma = 1: w + w+ = (4, -1; 2, 6), w + w- = (2, -2; 1, 3), b + b+ = (2, -2), b + b- = (1, -4).

    z1 > 0: dp = 4*3 + (-2)(-2) + 2 = 18. z2 < 0: dn = 1*3 + 6 (-2) - 4 = -13. s = (18 / 18, 13 / -13) = (1, -1).
    r1 = 3 (4*1 + 1*(-1)) = 9; r2 = -2 (-2*1 + 6*(-1)) = 16. The biases take 2*1 + (-4)(-1) = 6 of 31.
    """
    assert_relevance(rules.gamma(at(), 1.0), [18, 13], [9, 16])


def test_gamma_does_not_ask_for_the_sign_of_the_relevance() -> None:
    assert_relevance(rules.gamma(at(), 1.0), [-18, -13], [-9, -16])


def test_gamma_where_the_output_is_zero() -> None:
    """By hand: z = 1 - 1 = 0: neither branch, although dp = 2*1 - 1 = 1 and dn = 1 - 2 = -1."""
    parts = rules.gamma(at(row(1, 1), np.array([1.0, -1.0])), 1.0)
    assert np.array_equal(parts[0].denominator, [1])
    assert np.array_equal(parts[1].denominator, [-1])
    for stabilize in (0.0, 1e-6, Stabilizer(0.5, clip=True)):
        assert_relevance(parts, [5], [0, 0], stabilize)


def test_gamma_asks_the_real_output() -> None:
    """By hand: w = (3, -1), x = (1, 1), b = -4: z = -2 < 0, and stays so with the bias set to zero in the rule.

    dn = 3*1 + (-1 - 1)*1 = 1, s = 1. By the sign of w x = 2 it would be dp = 6 - 1 = 5.
    """
    assert_relevance(rules.gamma(at(row(3, -1, bias=-4), np.ones(2), "bias"), 1.0), [1], [3, -2])


def test_gamma_zero_is_epsilon() -> None:
    R = np.array([10.0, 6.0])
    assert np.array_equal(rules.relevance(rules.gamma(at(), 0.0), R, 1.0), rules.relevance(rules.epsilon(at()), R, 1.0))


def test_zbox() -> None:
    """By hand: l = -3, h = 4, no bias: d1 = 8 - 2(-3) - (-1)4 = 18, d2 = -3 - (1 + 3)(-3) - 0 = 9; s = (1, 2).

    A^T s = (4, 5), A(w+)^T s = (4, 6), A(w-)^T s = (0, -1); r = (3*4 + 3*4 - 0, -2*5 + 3*6 - 4 (-1)) = (24, 12).
    """
    assert_relevance(rules.zbox(at(), -3, 4), [18, 18], [24, 12])


def test_zbox_of_zero_is_epsilon_without_bias() -> None:
    assert_relevance(rules.zbox(at(), 0, 0), [16, -3], [15, -2])


def test_box_gets_trailing_ones() -> None:
    assert np.array_equal(rules.box(np.array([1.0, 2.0]), (2, 3)), [1, 1, 1, 2, 2, 2])
    assert np.array_equal(rules.box(np.array([[1.0, 2.0, 3.0]]), (2, 3)), [1, 2, 3, 1, 2, 3])
    assert np.array_equal(rules.box(4.0, (2,)), [4, 4])


def test_box_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"given a bound of shape \(3,\), expected one that broadcasts .*\(2, 3\)"):
        rules.box(np.ones(3), (2, 3))


def test_wsquare() -> None:
    """By hand: d = (4 + 1 + 1, 1 + 9 + 4) = (6, 14); s = (1, 2); r = (4*1 + 1*2, 1*1 + 9*2). b^2 takes 1 + 8 of 34."""
    assert_relevance(rules.wsquare(at()), [6, 28], [6, 19])
    assert_relevance(rules.wsquare(at(x=np.array([-1.0, 5.0]))), [6, 28], [6, 19])


def test_flat() -> None:
    """By hand: d = (2, 2) without bias; s = (1, 2); every input gets 3."""
    assert_relevance(rules.flat(at()), [2, 4], [3, 3])


def test_flat_counts_fewer_at_a_border() -> None:
    """A window of 3 over 3 inputs between zeros: d = (2, 3, 2), s = (1, 1, 1), and input k is seen 2, 3, 2 times."""
    layer = ref.Conv((1, 3), np.array([[[5.0, 6.0, 7.0]]]), np.array([9.0]), (1,), (1,), (1,))
    assert_relevance(rules.flat(at(layer, np.zeros(3))), [2, 3, 2], [2, 3, 2])


def test_circular_padding_clamps_parameters_not_entries() -> None:
    """By hand: w = (1, -3, -1) around a ring of two: A(w+) = (0, 1; 1, 0), while A(w)+ = 0.

    x = (1, 2): d = (2, 1), s = (2 / 2, 3 / 1) = (1, 3), r = (1 * 3, 2 * 1).
    """
    layer = ref.Conv((1, 2), np.array([[[1.0, -3.0, -1.0]]]), None, (1,), (1,), (1,), 1, "circular")
    assert_relevance(rules.zplus(at(layer, np.array([1.0, 2.0]))), [2, 3], [3, 2])


def test_norm_of_layers_without_parameters() -> None:
    """Mean of (1, 3) = 2, s = 4 / 2: each input its half times 2. Maximum: all to the 3. Leaky ReLU keeps every R."""
    pool = ref.AvgPool((1, 2), (2,), (2,), (0,))
    assert_relevance(rules.norm(at(pool, np.array([1.0, 3.0]))), [4], [1, 3])
    largest = ref.MaxPool((1, 2), (2,), (2,), (0,), (1,))
    assert_relevance(rules.norm(at(largest, np.array([1.0, 3.0]))), [4], [0, 4])
    leaky = ref.Elementwise((2,), "leaky_relu", negative_slope=0.5)
    assert_relevance(rules.norm(at(leaky, np.array([-2.0, 4.0]))), [3, 8], [3, 8])


def test_flat_of_layers_without_parameters() -> None:
    """Their own matrix, with ones as input: a mean of two ones is 1, each gets half of R. WSquare there likewise."""
    pool = ref.AvgPool((1, 2), (2,), (2,), (0,))
    for rule in (rules.flat, rules.wsquare):
        assert_relevance(rule(at(pool, np.array([1.0, 3.0]))), [4], [2, 2])


def test_zero_inputs_get_nothing() -> None:
    parts = rules.epsilon(at(row(5, 7, 1), np.array([0.0, -0.0, 2.0])))
    assert_relevance(parts, [6], [0, 0, 6])


def test_division_by_zero_is_not_hidden() -> None:
    parts = rules.epsilon(at(row(1, 1), np.array([1.0, -1.0])))
    assert not np.isfinite(rules.relevance(parts, np.array([1.0]), 0.0)).any()


def test_a_convolution_of_one_tap_is_linear() -> None:
    weight = np.array([[1.0, -2.0], [3.0, 4.0]])
    window = at(ref.Conv((2, 1), weight[:, :, None], None, (1,), (0,), (1,)), X)
    dense = at(ref.Linear((2,), weight, None), X)
    R = np.array([1.0, -2.0])
    for rule in (rules.epsilon, rules.zplus, rules.alpha_beta, rules.gamma, rules.wsquare, rules.flat):
        assert np.array_equal(rules.relevance(rule(window), R), rules.relevance(rule(dense), R))


@pytest.mark.parametrize(
    ("stabilize", "d", "expected"),
    [
        (Stabilizer(0.5), [2.0, -2.0, 0.0, -0.0], [2.5, -2.5, 0.5, 0.5]),
        (Stabilizer(0.5, clip=True), [2.0, -0.25, 0.0, -0.0], [2.0, -0.5, 0.5, 0.5]),
        (Stabilizer(0.2, norm_scale=True), [1.0, -7.0], [2.0, -8.0]),  # rms = sqrt((1 + 49) / 2) = 5
        (Stabilizer(0.2, clip=True, norm_scale=True), [0.5, -7.05], [1.0, -7.05]),
        (Stabilizer(), [0.0], [1e-6]),
    ],
    ids=["sum", "clip", "norm_scale", "both", "default"],
)
def test_stabilizer(stabilize: Stabilizer, d: list[float], expected: list[float]) -> None:
    if stabilize.clip and stabilize.norm_scale:
        d = [0.5, -np.sqrt(49.75)]  # rms = sqrt((0.25 + 49.75) / 2) = 5
        expected = [1.0, d[1]]
    assert np.array_equal(stabilize(np.array(d)), expected)


def test_stabilizer_given_as_a_function() -> None:
    """S = 2 d = 18 and -10, for s = (1, 1)."""
    assert_relevance(rules.epsilon(at()), [18, -10], [9, -4], lambda d: 2 * d)


def test_rules_of_the_gradient() -> None:
    R, x = np.array([2.0, -2.0, 0.0, 3.0]), np.array([1.0, 1.0, 1.0, -1.0])
    assert np.array_equal(rules.pass_(R), R)
    assert np.array_equal(rules.relu_deconvnet(R), [2, 0, 0, 3])
    assert np.array_equal(rules.relu_guided(np.array([1.0, 1.0, 1.0, 0.0]), R), [2, 0, 0, 0])
    assert np.array_equal(rules.relu_beta_smooth(np.zeros(4), R), R / 2)
    # sigmoid(t) + sigmoid(-t) = 1: what x and -x get is R together
    both = rules.relu_beta_smooth(x, R, 3.0) + rules.relu_beta_smooth(-x, R, 3.0)
    assert np.all(np.abs(both - R) <= 4 * 2.0**-53 * np.abs(R))
    # far out on the left it is exp(beta x), and not 0
    assert 0 < rules.relu_beta_smooth(np.array([-70.0]), np.ones(1), 10.0)[0] <= np.exp(-690)


def test_pass_returns_a_copy() -> None:
    R = np.ones(2)
    assert rules.pass_(R) is not R
