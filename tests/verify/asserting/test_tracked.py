"""Tracked numbers: what they say of rounding is never below what rounding does, and as sharp as a bound by hand."""

import contextlib
import operator
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from reference import rules as ref
from reference.layers import affine
from reference.precision import FLOAT32, FLOAT64, Model, model_for
from reference.rounding import bound as derived
from verify.asserting.tracked import Decision, Tracked, UndecidedError
from verify.asserting.tracked_array import Matrix, TrackedArray, bound, exact
from verify.checks.agreement import rows
from verify.formats.torch_layers import describe
from verify.questions.drawing import draw
from verify.questions.layers import LAYERS

MODELS = [FLOAT64, FLOAT32]
LAYER = {layer.name: layer for layer in LAYERS}
NAMES = ["linear-5-4", "linear-60-20", "conv2d-k3x2-s2x1-p1x0", "conv2d-circular", "convtranspose2d-s2-p1-op1"]


def positive(v: Any) -> Any:
    return np.maximum(v, 0)


def negative(v: Any) -> Any:
    return np.minimum(v, 0)


def stabilized(d: Any) -> Any:
    return np.where(d < 0, d - 1e-6, d + 1e-6)


def epsilon(A: Any, x: Any, b: Any, R: Any) -> Any:
    return x * (A.T @ (R / stabilized(A @ x + b)))


def zplus(A: Any, x: Any, b: Any, R: Any) -> Any:
    plus, minus = A.of(positive), A.of(negative)
    s = R / stabilized(plus @ positive(x) + minus @ negative(x) + positive(b))
    return positive(x) * (plus.T @ s) + negative(x) * (minus.T @ s)


def gamma(A: Any, x: Any, b: Any, R: Any) -> Any:
    def up(w: Any) -> Any:
        return w + 0.25 * positive(w)

    def down(w: Any) -> Any:
        return w + 0.25 * negative(w)

    z, high, low = A @ x + b, A.of(up), A.of(down)
    sp = np.where(z > 0, R / stabilized(high @ positive(x) + low @ negative(x) + up(b)), 0)
    sn = np.where(z < 0, R / stabilized(low @ positive(x) + high @ negative(x) + down(b)), 0)
    return positive(x) * (high.T @ sp + low.T @ sn) + negative(x) * (low.T @ sp + high.T @ sn)


FORMULAS: dict[str, tuple[Callable[..., Any], Callable[..., ref.Parts]]] = {
    "epsilon": (epsilon, ref.epsilon),
    "zplus": (zplus, ref.zplus),
    "gamma": (gamma, ref.gamma),
}


class Plain(np.ndarray[Any, Any]):
    """A matrix of floats with ``of``, for the same formulas without tracking."""

    of: Any = None


def plain(build: Callable[[Any], Any], weight: Any) -> Any:
    def matrix(parameter: Any) -> Any:
        made = np.asarray(build(parameter.astype(np.float64)), weight.dtype).view(Plain)
        made.of = lambda change: matrix(change(weight))
        return made

    return matrix(weight)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("kind", ["signed", "nonnegative", "zeros"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rule", FORMULAS)
def test_against_the_bound_derived_by_hand(rule: str, name: str, kind: str, dtype: str) -> None:
    formula, parts_of = FORMULAS[rule]
    problem, model = draw(LAYER[name], kind, dtype), model_for(dtype)
    described: Any = describe(problem.module, LAYER[name].sample_shape)
    x, R = (rows(t, batched=True)[0] for t in (problem.x, problem.relevance))
    layer = affine(described, x)
    A = Matrix.gathered(described.matrix, exact(described.weight, model), model)
    values, room = bound(formula(A, exact(x, model), exact(layer.b, model), exact(R, model)), model)

    parts = parts_of(layer)
    by_hand = derived(parts, R, 1e-6, model)
    expected = ref.relevance(parts, R, 1e-6)
    assert np.array_equal(np.isinf(room), by_hand.inconclusive)
    assert np.array_equal(room == 0, by_hand.worst == 0)
    finite = np.isfinite(room) & (room > 0)
    ratio = room[finite] / by_hand.worst[finite]
    # it follows the formula as it is written, and the other one the ways in which the rule may be computed
    assert ratio.min() >= 1 / 4
    assert ratio.max() <= 4
    assert (np.abs(values - expected) <= room)[np.isfinite(room)].all()

    # what NumPy makes of it in that precision, with sums in another order
    order, target = np.random.default_rng(0).permutation(x.size), np.dtype(dtype)
    shuffled = plain(lambda w: described.matrix(w)[:, order], described.weight.astype(target))
    got = formula(shuffled, *(v.astype(target) for v in (x[order], layer.b, R)))
    assert got.dtype == target
    assert (np.abs(got.astype(np.float64) - values[order]) <= room[order]).all()


# --- any expression ---------------------------------------------------------------------------------------------------

BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "max": np.maximum,
    "min": np.minimum,
}
NUMBERS = st.one_of(
    st.integers(-4, 4).map(float),
    st.floats(-8, 8, width=32),
    st.sampled_from((1 / 3, 1e-6, 1 + 2.0**-23, -1.0 - 2.0**-23, 1e-3)).map(lambda v: float(np.float32(v))),
)
TREES = st.recursive(
    NUMBERS,
    lambda inner: st.one_of(
        st.tuples(st.sampled_from(sorted(BINARY)), inner, inner),
        st.tuples(st.just("abs"), inner),
        st.tuples(st.just("where"), inner, inner, inner),
    ),
    max_leaves=12,
)


def _tracked(tree: Any, model: Model) -> Any:
    if isinstance(tree, float):
        return exact([tree], model)
    name, *rest = tree
    values = [_tracked(part, model) for part in rest]
    if name == "where":
        return np.where(values[0] < values[1], values[1], values[2])
    return np.abs(values[0]) if name == "abs" else BINARY[name](*values)


def _plainly(tree: Any, number: Callable[[float], Any]) -> Any:
    if isinstance(tree, float):
        return number(tree)
    name, *rest = tree
    values = [_plainly(part, number) for part in rest]
    if name == "where":
        return values[1] if values[0] < values[1] else values[2]
    if name == "abs":
        return abs(values[0])
    if name in {"max", "min"}:
        return (max if name == "max" else min)(*values)
    return BINARY[name](*values)


@settings(max_examples=400, deadline=None)
@given(tree=TREES)
@example(tree=("*", 0.03125, 2.0**-149 * 848))  # exact, but for what is lost below the smallest number
@example(tree=("/", 2.0**-149, 4.0))
@example(tree=("where", ("/", 0.0, 0.0), 0.0, 0.0))
def test_no_expression_is_farther_off_than_it_is_said_to_be(tree: Any) -> None:
    (value,), (room,) = bound(_tracked(tree, FLOAT32), FLOAT32)
    if np.isfinite(room):
        with np.errstate(all="ignore"):
            got = _plainly(tree, np.float32)
        assert abs(Fraction(float(got)) - Fraction(float(value))) <= Fraction(room)
        # a choice between equals may depend on 0 / 0, which Fraction refuses
        with contextlib.suppress(ZeroDivisionError):
            assert abs(Fraction(float(got)) - _plainly(tree, Fraction)) <= Fraction(room)


# --- what is undecided ------------------------------------------------------------------------------------------------


def cancelled(model: Model) -> Any:
    """0.1 + 0.2 - 0.3 and 1 + 2 - 3."""
    third = exact([0.3, 3.0], model)
    return exact([0.1, 1.0], model) + exact([0.2, 2.0], model) - third


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_the_sign_of_what_cancels_is_open_unless_the_sum_is_exact(model: Model) -> None:
    d = cancelled(model)
    assert [decision.decided for decision in np.ravel(d >= 0)] == [False, True]
    for chosen in (
        np.where(d >= 0, 1.0, -1.0),
        (d >= 0) * 2 - 1,
        1 - 2 * (d < 0),
        np.copysign(1.0, d),
        np.heaviside(d, 1.0),
        1.0 / (d + 1e-30),
    ):
        assert np.isinf(bound(chosen, model)[1]).tolist() == [True, False]
    assert np.isinf(bound(np.sign(d), model)[1]).tolist() == [True, False]
    assert bound(np.sign(d), model)[0][1] == 0


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_a_choice_between_equals_is_none(model: Model) -> None:
    values, room = bound(np.where(cancelled(model) >= 0, 2.0, 2.0), model)
    assert (values.tolist(), room.tolist()) == ([2.0, 2.0], [0.0, 0.0])


def test_continuous_functions_of_what_is_open_are_bounded() -> None:
    d = cancelled(FLOAT64)
    for result in (np.maximum(d, 0), np.abs(d), np.minimum(d, 1e-300), np.clip(d, -1, 1), d.clip(min=0)):
        _, room = bound(result, FLOAT64)
        assert 0 < room[0] < 1e-15
        assert room[1] == 0


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(lambda d: 1.0 if d[0] >= 0 else -1.0, id="if"),
        pytest.param(lambda d: d[d > 0], id="mask"),
        pytest.param(lambda d: d.__setitem__(d == 0, 1.0), id="assignment to a mask"),
        pytest.param(lambda d: [v for v in d if v], id="truth"),
        pytest.param(max, id="max of Python"),
    ],
)
def test_the_course_of_a_program_must_be_decided(program: Callable[[Any], Any]) -> None:
    with pytest.raises(UndecidedError):
        program(cancelled(FLOAT64))


def test_decided_masks_are_masks() -> None:
    d: Any = exact([1.0, 0.0, -2.0], FLOAT32)
    d[d == 0] = 0.5
    assert bound(d, FLOAT32)[0].tolist() == [1.0, 0.5, -2.0]
    assert bound(d[d > 0], FLOAT32)[0].tolist() == [1.0, 0.5]


def test_logic_knows_what_is_decided() -> None:
    opened, true, false = (Decision(v, d, FLOAT64) for v, d in ((True, False), (True, True), (False, True)))
    assert [(opened & other).decided for other in (opened, true, false)] == [False, False, True]
    assert [(opened | other).decided for other in (opened, true, false)] == [False, True, False]
    d = cancelled(FLOAT64)
    for both in ((d > 0) & (d > -1), np.logical_and(d > 0, d > -1), ~(d > 0), np.logical_or(d > 0, d > 1)):
        assert [decision.decided for decision in np.ravel(both)] == [False, True]


# --- what is exact, and what is not -----------------------------------------------------------------------------------


def test_small_integers_are_exact_until_they_are_not_small() -> None:
    assert exact(np.ones(100), FLOAT32).sum().exact
    assert (exact(np.ones(100), FLOAT32) * 2.0**100).sum().exact
    assert exact([2.0**23, 2.0**23 - 1, 1.0], FLOAT32).sum().exact
    assert not exact([2.0**23, 2.0**23, 1.0], FLOAT32).sum().exact
    assert exact([2.0**23, 2.0**23, 1.0], FLOAT64).sum().exact


def test_a_constant_is_rounded_to_the_precision() -> None:
    one = exact([1.0], FLOAT32)
    assert (one * 0.5)[0].exact
    assert not (one * 1e-6)[0].exact
    assert not (exact([1.0], FLOAT64) * 0.1)[0].off


def test_dividing_by_zero_is_inconclusive_and_zero_times_it_is_no_number() -> None:
    zero, one = exact([0.0, 1.0], FLOAT64)
    quotient = one / zero
    values, room = bound(exact([quotient, quotient * zero], FLOAT64), FLOAT64)
    assert np.isnan(values).all()
    assert np.isinf(room).all()


def test_zero_times_what_is_undecided_is_zero() -> None:
    undecided = 1 / cancelled(FLOAT64)[0]
    assert undecided.off == np.inf
    assert (undecided * 0).exact


def test_overflow_is_inconclusive() -> None:
    large: Any = exact([3e38], FLOAT32)
    assert np.isinf(bound(large + large, FLOAT32)[1]).all()


def test_what_numpy_offers_around_numbers() -> None:
    A, x = exact(np.arange(6.0).reshape(2, 3), FLOAT64), exact([1.0, -2.0, 3.0], FLOAT64)
    expected = np.arange(6.0).reshape(2, 3) * np.array([1.0, -2.0, 3.0])
    for got, wanted in (
        (np.einsum("ij,j->ij", A, x), expected),
        ((A * x).sum(axis=1), expected.sum(1)),
        (np.outer(x, x), np.outer([1, -2, 3], [1, -2, 3])),
        (np.dot(A, x), expected.sum(1)),
        (np.concatenate([x, x]), [1, -2, 3, 1, -2, 3]),
        (x**2, [1, 4, 9]),
        (np.square(x), [1, 4, 9]),
        (np.sqrt(x * x), [1, 2, 3]),
        ((x * x) ** 0.5, [1, 2, 3]),
        (A.max(axis=0), [3, 4, 5]),
        (x / np.array([2.0, 4.0, 8.0]), [0.5, -0.5, 0.375]),
        (np.array([2.0, 4.0, 8.0]) - x, [1, 6, 5]),
        (np.ones_like(x) + x, [2, -1, 4]),
        (np.mean(x * 3), 2),
    ):
        values, room = bound(got if isinstance(got, TrackedArray) else exact([got], FLOAT64), FLOAT64)
        assert np.allclose(values.ravel(), np.ravel(wanted), rtol=1e-15)
        assert (room < 1e-14).all()


def test_what_it_cannot_follow_is_refused() -> None:
    with pytest.raises(TypeError):
        np.exp(exact([1.0], FLOAT64))
    with pytest.raises(TypeError, match="power of"):
        exact([1.0], FLOAT64) ** -1
    with pytest.raises(TypeError):
        np.asarray(exact([1.0], FLOAT64), np.float64)


def test_a_matrix_of_another_shape_is_refused() -> None:
    A = Matrix.gathered(lambda w: w, exact(np.ones((2, 3)), FLOAT64), FLOAT64)
    with pytest.raises(ValueError, match="a change of the weight gives shape"):
        A.of(lambda w: w[0])
    with pytest.raises(AttributeError, match="of\\(\\) belongs to the matrix A"):
        A.T.of(lambda w: w)


def test_repr() -> None:
    assert repr(Tracked.of(1e-6, FLOAT32)) == "1e-06 ± 5.96e-14"
    assert repr(cancelled(FLOAT64)[0] > 0) == "True?"
