"""The ledger: every sink by hand, the balance within its bound, and planted mistakes that it sees."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from reference import layers as ref
from reference import rules
from reference.ledger import Ledger, Shares, ledger
from reference.precision import FLOAT32, FLOAT64
from reference.rounding import bound
from reference.rules import Parts, Stabilizer
from reference.windows import Array

# z = (2*3 - 1*(-2) + 1, 1*3 + 3*(-2) - 2) = (9, -5), as in test_rules
LAYER = ref.Linear((2,), np.array([[2.0, -1.0], [1.0, 3.0]]), np.array([1.0, -2.0]))
X = np.array([3.0, -2.0])

RULES: dict[str, Callable[[ref.Affine], Parts]] = {
    "epsilon": rules.epsilon,
    "norm": rules.norm,
    "zplus": rules.zplus,
    "alpha_beta": rules.alpha_beta,
    "alpha_beta, rounded": lambda layer: rules.alpha_beta(layer, 1.4, 0.4),
    "gamma": rules.gamma,
    "zbox": lambda layer: rules.zbox(layer, -3.0, 4.0),
    "wsquare": rules.wsquare,
    "flat": rules.flat,
}


def random_layer(seed: int) -> tuple[ref.Affine, Array]:
    """A layer with a dead output and a dead input, and a relevance that knows nothing of either."""
    rng = np.random.default_rng(seed)
    W, b = rng.standard_normal((15, 25)), rng.standard_normal(15)
    W[3], b[3], W[:, 4] = 0, 0, 0
    return ref.affine(ref.Linear((25,), W, b), rng.standard_normal(25)), rng.standard_normal(15)


def assert_balanced(account: Ledger) -> None:
    off = np.abs(account.imbalance())
    assert (off <= account.balance).all(), (off / account.balance).max()


def test_epsilon_by_hand() -> None:
    """S = (10, -6), s = (1, -1) for R = (10, 6): contributions (8, -3), bias (1, -2), S - d = (1, -1), each times s."""
    account = ledger(rules.epsilon(ref.affine(LAYER, X)), np.array([10.0, 6.0]), 1.0)
    assert account.inputs.tolist() == [8, 3]
    assert account.bias.tolist() == [1, 2]
    assert account.stabilizer.tolist() == [1, 1]
    assert account.total() == Shares(11, 3, 2, 0)
    assert not account.imbalance().any()


def test_alpha_beta_by_hand() -> None:
    """R = (10, 36), and each half has its own s, which its contributions, its bias and S - d share.

    First: sa = (1, 9) times (8, 3), (1, 0), (1, 1). Second: sb = (10, -4) times (0, -6), (0, -2), (1, -1).
    Twice the first less the second: (16 - 0, 54 - 24), (2 - 0, 0 - 8), (2 - 10, 18 - 4).
    """
    account = ledger(rules.alpha_beta(ref.affine(LAYER, X)), np.array([10.0, 36.0]), 1.0)
    assert account.inputs.tolist() == [16, 30]
    assert account.bias.tolist() == [2, -8]
    assert account.stabilizer.tolist() == [-8, 14]
    assert not account.imbalance().any()


def test_a_half_without_contributions_gives_all_to_the_stabilizer() -> None:
    """A positive layer: the inputs get 2 sum(R) = 20, and minus 10 is the stabilizer's."""
    layer = ref.Linear((2,), np.array([[1.0, 2.0], [3.0, 4.0]]), None)
    account = ledger(
        rules.alpha_beta(ref.affine(layer, np.ones(2))), np.array([3.0, 7.0]), Stabilizer(2.0**-20, clip=True)
    )
    assert account.total() == Shares(20, 0, -10, 0)


def test_zero_branch_of_gamma() -> None:
    """Outputs 1 - 1 and 2 - 1: all of R_1 = 5 goes nowhere, and R_2 = 3 to the inputs."""
    layer = ref.Linear((2,), np.array([[1.0, 1.0], [2.0, 1.0]]), None)
    account = ledger(rules.gamma(ref.affine(layer, np.array([1.0, -1.0])), 1.0), np.array([5.0, 3.0]), 0.0)
    assert account.zero_branch.tolist() == [5, 0]
    assert account.inputs.tolist() == [0, 3]
    assert account.total() == Shares(3, 0, 0, 5)


def test_what_the_linearisation_leaves_over() -> None:
    """A sigmoid at 0: J x = 0, all of f(x) = 0.5 is the bias term, and with S = 0.5 + 0.5 half of R the stabilizer."""
    account = ledger(rules.norm(ref.affine(ref.Elementwise((1,), "sigmoid"), np.zeros(1))), np.array([4.0]), 0.5)
    assert account.total() == Shares(0, 2, 2, 0)


@pytest.mark.parametrize(
    "stabilize",
    [1e-6, 0.3, Stabilizer(0.5, clip=True), Stabilizer(0.1, norm_scale=True), lambda d: 1.5 * d + 40],
    ids=["small", "large", "clip", "norm_scale", "callable"],
)
@pytest.mark.parametrize("name", RULES)
def test_every_ledger_balances(name: str, stabilize: rules.Stabilize) -> None:
    for seed in range(10):
        layer, R = random_layer(seed)
        assert_balanced(ledger(RULES[name](layer), R, stabilize))


@pytest.mark.parametrize("name", RULES)
def test_the_inputs_share_is_what_the_inputs_get(name: str) -> None:
    for seed in range(10):
        layer, R = random_layer(seed)
        parts = RULES[name](layer)
        account, r = ledger(parts, R), rules.relevance(parts, R)
        assert abs(r.sum() - account.inputs.sum()) <= account.transposition
        limit = bound(parts, R, 1e-6, FLOAT64)
        assert abs(r.sum() - account.total().inputs) <= account.inputs_bound(limit, r)


@pytest.mark.parametrize(("weight", "x"), [(3.5, 5e-324), (2.0**-520, 2.0**-521 * 3), (1.5e-160, -7e-163)])
@pytest.mark.parametrize("name", RULES)
def test_products_that_underflow_lose_digits_on_one_side_alone(name: str, weight: float, x: float) -> None:
    # w v is a subnormal number or none, and then multiplied with s; w s and v are of the usual size
    parts = RULES[name](ref.affine(ref.Linear((1,), np.array([[weight]]), np.zeros(1)), np.array([x])))
    R = np.ones(1)
    account, r = ledger(parts, R), rules.relevance(parts, R)
    assert abs(r.sum() - account.total().inputs) <= account.transposition


def test_a_sum_in_float32_needs_the_bound_of_float32() -> None:
    layer, R = random_layer(0)
    parts = rules.epsilon(layer)
    account, r = ledger(parts, R), rules.relevance(parts, R)
    r = r * (1 + FLOAT32.unit)
    off = abs(r.sum() - account.total().inputs)
    assert account.inputs_bound(bound(parts, R, 1e-6, FLOAT64), r) < off
    assert off <= account.inputs_bound(bound(parts, R, 1e-6, FLOAT32), r)


@pytest.mark.parametrize("sink", ["inputs", "bias", "stabilizer", "zero_branch"])
def test_a_planted_mistake_in_a_sink_is_seen(sink: str) -> None:
    layer, R = random_layer(1)
    account = ledger(rules.gamma(layer), R)
    assert_balanced(account)
    wrong = getattr(account, sink).copy()
    wrong[7] += 1e-9
    with pytest.raises(AssertionError):
        assert_balanced(replace(account, **{sink: wrong}))


@pytest.mark.parametrize("mistake", ["bias forgotten", "bias doubled", "coefficients that do not add up"])
def test_a_rule_that_loses_relevance_is_seen(mistake: str) -> None:
    """Each part balances in itself; what it takes from sum(r) shows against the ledger of the right rule."""
    layer, R = random_layer(2)
    right = rules.zplus(layer)
    part, wrong = right[0], right
    if mistake == "bias forgotten":
        wrong = (replace(part, bias=np.zeros_like(part.bias)),)
    elif mistake == "bias doubled":
        wrong = (replace(part, bias=2 * part.bias),)
    else:
        wrong = (replace(part, coefficient=2.0), replace(part, coefficient=-0.5))
        with pytest.raises(AssertionError):
            assert_balanced(ledger(wrong, R))
    account, r = ledger(right, R), rules.relevance(wrong, R)
    assert not (abs(r.sum() - account.total().inputs) <= account.inputs_bound(bound(right, R, 1e-6, FLOAT32), r))


def test_a_vanishing_denominator_does_not_balance() -> None:
    layer = ref.Linear((2,), np.array([[1.0, 1.0]]), None)
    account = ledger(rules.epsilon(ref.affine(layer, np.array([1.0, -1.0]))), np.ones(1), 0.0)
    with pytest.raises(AssertionError):
        assert_balanced(account)


def test_gathered_parameters_balance() -> None:
    weight = np.random.default_rng(3).standard_normal((4, 2, 3, 3))
    layer = ref.Conv((2, 3, 4), weight, np.ones(4), (1, 2), (2, 1), (1, 1), 1, "circular")
    at = ref.affine(layer, np.random.default_rng(4).standard_normal((2, 3, 4)))
    R = np.random.default_rng(5).standard_normal(np.prod(layer.output_shape))
    for rule in RULES.values():
        assert_balanced(ledger(rule(at), R))
