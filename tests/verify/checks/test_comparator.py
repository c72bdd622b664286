"""The comparator rejects what it must: everything else rests on it."""

import numpy as np
import pytest

from verify.checks import comparator
from verify.checks.comparator import ComparatorError, check_itself, compare

EXPECTED = np.array([[1.0, -2.0, 3.0], [0.5, 0.0, -0.25]])
BOUND = np.full((2, 3), 1e-3)


def test_equal_data_hold_with_ratio_zero() -> None:
    found = compare(EXPECTED, EXPECTED, BOUND)
    assert (found.ratio, found.undecided, found.holds) == (0.0, 0.0, True)


def test_a_deviation_of_ten_times_the_bound_is_rejected() -> None:
    got = EXPECTED.copy()
    got[1, 2] += 10 * BOUND[1, 2]
    found = compare(got, EXPECTED, BOUND)
    assert found.refuted
    assert found.ratio == pytest.approx(10, rel=1e-12)
    assert found.index == 5


def test_nan_is_rejected_also_where_rounding_decides() -> None:
    for bound in (BOUND, np.full((2, 3), np.inf)):
        got = EXPECTED.copy()
        got[0, 1] = np.nan
        assert compare(got, EXPECTED, bound).refuted


def test_nan_is_nothing_known_only_where_numbers_overflow() -> None:
    got, bound, overflows = EXPECTED.copy(), BOUND.copy(), np.zeros((2, 3), np.bool_)
    got[0, 1], bound[0, 1], overflows[0, 1] = np.nan, np.inf, True
    found = compare(got, EXPECTED, bound, None, overflows)
    assert found.holds
    assert found.undecided == 1 / 6
    assert compare(got, EXPECTED, BOUND, None, overflows).refuted
    assert compare(got, EXPECTED, bound, None, ~overflows).refuted


def test_infinity_is_rejected() -> None:
    got = EXPECTED.copy()
    got[0, 0] = np.inf
    assert compare(got, EXPECTED, BOUND).refuted


@pytest.mark.parametrize("shape", [(3, 2), (6,), (2, 2)], ids=str)
def test_another_shape_is_rejected(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected \(2, 3\)"):
        compare(np.resize(EXPECTED, shape), EXPECTED, BOUND)


def test_a_permuted_batch_is_rejected() -> None:
    assert compare(EXPECTED[::-1].copy(), EXPECTED, BOUND).refuted


def test_where_there_is_no_room_only_equality_holds() -> None:
    bound = np.zeros((2, 3))
    assert compare(EXPECTED, EXPECTED, bound).holds
    assert compare(EXPECTED + np.array([0, 0, 1e-300]), EXPECTED, bound).holds  # 3.0 + 1e-300 is 3.0
    assert compare(EXPECTED + np.array([0, 1e-15, 0]), EXPECTED, bound).refuted


def test_undecided_entries_are_counted_and_never_judged() -> None:
    bound = BOUND.copy()
    bound[0] = np.inf
    found = compare(EXPECTED + np.array([[5.0], [0.0]]), EXPECTED, bound)
    assert found.holds
    assert found.undecided == 0.5


def test_a_bound_that_is_not_a_number_is_no_bound() -> None:
    bound = BOUND.copy()
    bound[1, 1] = np.nan
    assert compare(EXPECTED + 1e-9, EXPECTED, bound).refuted


def test_the_comparator_holds_for_itself() -> None:
    check_itself()


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("never refuses", lambda *_: comparator.Comparison(0.0, 0.0, 0.0, None)),
        (
            "lets NaN pass",
            lambda got, expected, *bounds: compare(np.nan_to_num(got, nan=expected[0]), expected, *bounds),
        ),
        (
            "lets NaN pass where undecided",
            lambda got, wanted, limit, *_: compare(got, wanted, limit, None, limit == np.inf),
        ),
        ("lets no NaN pass", lambda got, expected, *bounds: compare(got, expected, *bounds[:2])),
        ("is twice as lenient", lambda got, expected, bound, *more: compare(got, expected, 2 * bound, *more)),
        ("takes sorted data", lambda got, expected, *bounds: compare(np.sort(got), np.sort(expected), *bounds)),
    ],
    ids=lambda v: v.replace(" ", "-") if isinstance(v, str) else "",
)
def test_a_wrong_comparator_is_noticed_before_the_run(
    monkeypatch: pytest.MonkeyPatch, name: str, wrong: object
) -> None:
    monkeypatch.setattr(comparator, "compare", wrong)
    with pytest.raises(ComparatorError):
        check_itself()
