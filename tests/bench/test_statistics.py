"""The statistics find an effect that was planted, and none where none was."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from bench.statistics import Estimate, Growth, change, estimate, floor, growth, log_ratios, outliers, resampled, verdict
from tests.bench.rounding import EPS, of_log_ratios

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]


def run(draw: np.random.Generator, ratio: float = 1.0, *, between: float = 0.0, drift: float = 0.0) -> list[Array]:
    """Five processes of 40 quads: 3 % noise with a long tail, ``between`` processes, ``drift`` from call to call."""
    processes: list[Array] = []
    for _ in range(5):
        noise = draw.lognormal(0, 0.03, (40, 4)) + (draw.random((40, 4)) < 0.05) * draw.exponential(0.5, (40, 4))
        side = ratio * np.exp(between * draw.standard_normal())
        slower = np.exp(drift * np.arange(160).reshape(40, 4))
        processes.append(1e-3 * noise * slower * np.array([side, 1, 1, side]))
    return processes


@pytest.mark.parametrize(("ratio", "expected"), [(0.5, "faster"), (0.94, "faster"), (1.06, "slower"), (2.0, "slower")])
def test_a_planted_effect_is_found(ratio: float, expected: str) -> None:
    found = estimate(run(np.random.default_rng(1), ratio))
    assert verdict(found, floor=0.005) == expected
    assert found.low <= ratio <= found.high


def test_no_effect_is_the_same() -> None:
    assert verdict(estimate(run(np.random.default_rng(2))), floor=0.0) == "same"


def test_drift_cancels_exactly() -> None:
    [quads] = [1e-3 * np.exp(0.1 * np.arange(160).reshape(40, 4))]
    # 0.1 n and its exponential are rounded, too: by an eps of at most 16 and of 1
    assert not np.abs(log_ratios(quads)).max() > of_log_ratios(*quads.flat) + 2 * (16 + 1) * EPS


def test_all_of_a_then_all_of_b_would_see_drift() -> None:
    # the planted mistake: the same calls, read as if the order were A A B B
    quads = 1e-3 * np.exp(0.1 * np.arange(160).reshape(40, 4))
    assert np.abs(log_ratios(quads[:, [0, 2, 3, 1]])).min() > 0.04


def test_false_alarms_of_the_verdict() -> None:
    # noise within, and effects of 0.5 % that a whole process shares: neither is ever called a difference
    draw = np.random.default_rng(3)
    verdicts = [verdict(estimate(run(draw, between=0.005), seed), floor=0.0) for seed in range(60)]
    assert not {"faster", "slower"} & {str(found) for found in verdicts}


def test_the_interval_covers_the_truth() -> None:
    draw = np.random.default_rng(4)
    found = [estimate(run(draw, 1.3), seed) for seed in range(100)]
    covered = sum(one.low <= 1.3 <= one.high for one in found)
    assert 90 <= covered <= 100


def test_effects_that_a_process_shares_widen_the_interval() -> None:
    processes = [log_ratios(quads) for quads in run(np.random.default_rng(5), between=0.05)]
    both = np.std(resampled(processes, np.random.default_rng(0)))
    quads_alone = np.std(resampled([np.concatenate(processes)], np.random.default_rng(0)))
    assert both > 3 * quads_alone


def test_resampling_is_that_of_processes_and_then_of_their_quads() -> None:
    # three processes of different lengths, each of one value: a median is decided by which were chosen
    values = [np.full(length, value) for length, value in ((2, 1.0), (3, 10.0), (4, 100.0))]
    medians = resampled(values, np.random.default_rng(0), 20000)
    chosen = np.random.default_rng(1).integers(3, size=(20000, 3))
    expected = [np.median(np.concatenate([values[p] for p in row])) for row in chosen]
    for value in (1.0, 10.0, 55.0, 100.0):
        share = np.mean(medians == value)
        other = np.mean(np.array(expected) == value)
        # two shares of 20,000 draws: five standard deviations of their difference
        assert abs(share - other) <= 5 * np.sqrt(2 * other * (1 - other) / 20000)
    assert set(np.unique(medians)) == set(np.unique(expected))


@pytest.mark.parametrize(
    ("found", "noise", "expected"),
    [
        (Estimate(0.9, 0.88, 0.92), 0.0, "faster"),
        (Estimate(0.9, 0.88, 0.99), 0.0, "ambiguous"),
        (Estimate(0.9, 0.88, 0.92), 0.15, "same"),
        (Estimate(1.0, 0.99, 1.01), 0.0, "same"),
        (Estimate(1.0, 0.9, 1.1), 0.0, "ambiguous"),
        (Estimate(1.03, 1.025, 1.035), 0.0, "slower"),
        (Estimate(1.03, 1.025, 1.035), 0.03, "ambiguous"),
    ],
)
def test_verdict(found: Estimate, noise: float, expected: str) -> None:
    assert verdict(found, noise) == expected


def test_change_has_the_machine_taken_out() -> None:
    draw = np.random.default_rng(6)
    old, new = run(draw, 1.5), [3 * quads for quads in run(draw, 1.8)]  # a machine three times slower
    found = change(old, new)
    assert found.low <= 1.2 <= found.high
    assert verdict(found, 0.0) == "slower"
    assert verdict(change(old, run(draw, 1.5)), 0.0) == "same"


def test_floor_reaches_as_far_as_the_worst_interval() -> None:
    assert floor([Estimate(1.0, 0.8, 1.1), Estimate(1.0, 0.99, 1.2)]) == 1 / 0.8 - 1
    assert floor([]) == 0


def test_outliers_are_told_apart() -> None:
    seconds = np.array([*np.linspace(1.0, 2.0, 101), 3.0, 9.0, 9.0])  # quartiles 1.25 and 1.75, about
    assert outliers(seconds) == (1, 2)


@pytest.mark.parametrize(
    "quads", [[], [np.ones((0, 4))], [np.ones((3, 2))]], ids=["no process", "no quad", "no quads of four"]
)
def test_nothing_to_estimate_from_is_refused(quads: list[Array]) -> None:
    with pytest.raises(ValueError, match="expected at least one quad of four calls"):
        estimate(quads)


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
def test_times_that_are_none_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="no positive time"):
        estimate([np.array([[1.0, 1.0, bad, 1.0]])])


SIZES = np.array([4.0**n for n in range(4, 13)])  # multiply-adds of small and large layers


@pytest.mark.parametrize("k", [0.001, 0.25, 0.937, 1.0, 2.5, 4.0])
@pytest.mark.parametrize("overhead", [0.0, 2.0**-14])
def test_a_growth_is_found_to_the_third_decimal_of_its_exponent(overhead: float, k: float) -> None:
    found = growth(SIZES, overhead + 1e-9 * SIZES**k)
    if overhead == 0 or k > 0.001:  # which of two constants is which, nothing could tell
        assert found.exponent == k
    if k >= 0.25:
        assert round(found.overhead, 9) == round(overhead, 9)


def test_overhead_is_not_taken_for_slow_growth() -> None:
    seconds = 1e-4 + 1e-9 * SIZES
    line = np.polyfit(np.log(SIZES), np.log(seconds), 1)[0]  # what a straight line through logarithms would say
    assert line < 0.5
    assert growth(SIZES, seconds) == Growth(0.0001, 1.0)


def test_the_fit_is_the_one_of_least_relative_errors() -> None:
    seconds = 1e-4 + 1e-9 * SIZES * np.random.default_rng(7).uniform(0.9, 1.1, len(SIZES))
    found = growth(SIZES, seconds)

    def errors(overhead: float, k: float) -> float:
        powers = SIZES**k / seconds
        missing = 1 - overhead / seconds
        return float(((missing @ powers / (powers @ powers) * powers - missing) ** 2).sum())

    least = errors(found.overhead, found.exponent)
    for overhead in (0.99 * found.overhead, 1.01 * found.overhead):
        assert errors(overhead, found.exponent) > least
    for k in (found.exponent - 0.002, found.exponent + 0.002):
        assert errors(found.overhead, k) > least


def test_what_falls_or_stays_is_no_growth() -> None:
    assert growth(SIZES, np.full(len(SIZES), 0.5)).overhead == 0.5
    assert growth(SIZES, 1 / SIZES).exponent == 0.001


def test_fewer_sizes_than_unknowns_say_nothing() -> None:
    assert growth(np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 3.0])) == Growth(0.0, 1.0)
    for sizes in ([1.0, 2.0, 2.0], [1.0, 2.0], [1.0], []):
        found = growth(np.array(sizes), np.ones(len(sizes)))
        assert np.isnan([found.overhead, found.exponent]).all()
