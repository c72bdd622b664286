"""How far rounding takes a relevance through a layer, in numbers that floating point has."""

import numpy as np

from reference.precision import model_for
from reference.rounding import bound
from reference.rules import Part, Stabilizer
from verify.checks.carrying import carried

# r = v * A^T (R / d) with A v = d = (2, 4): r_0 = R_0 / 2 + 2 R_1 / 4, r_1 = R_0 / 2 + 2 R_1 / 4, r_2 = 0
PART = Part(((np.array([[1.0, 1.0, 0.0], [2.0, 2.0, 5.0]]), np.array([1.0, 1.0, 0.0])),), np.zeros(2))
R = np.array([3.0, -1.0])
EXACT = Stabilizer(0.0)
MODEL = model_for("float64")


def carried_on(error: list[list[float]]) -> np.ndarray:
    return carried((PART,), R, np.array(error), EXACT, MODEL)


def test_without_an_error_it_is_the_bound_of_the_layer() -> None:
    own = bound((PART,), R, EXACT, MODEL)
    assert np.array_equal(carried_on([[0.0, 0.0], [0.0, 0.0]]), np.stack([own.worst, own.probable]))


def test_an_error_goes_the_way_of_a_relevance() -> None:
    error = [[0.5, 0.25], [0.125, 0.0]]
    larger = bound((PART,), np.abs(R) + error[0], EXACT, MODEL)
    moved = np.array([[0.375, 0.375, 0.0], [0.0625, 0.0625, 0.0]])
    assert np.array_equal(carried_on(error), np.stack([larger.worst, larger.probable]) + moved)


def test_what_is_unbounded_reaches_the_inputs_behind_it_alone() -> None:
    worst, probable = carried_on([[np.inf, 0.0], [0.0, 0.0]])
    assert np.isinf(worst).tolist() == [True, True, False]
    assert np.isfinite(probable).all()
