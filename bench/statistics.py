"""From samples to a verdict. NumPy alone: no clock, no torch.

A *quad* is four calls in the order A B B A: two pairs, between which drift in one direction cancels. A process gives an
array of quads (q, 4) in seconds. All ratios are A over B.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Array = NDArray[np.float64]

#: A difference below this is never called one, however narrow the interval is.
LEAST_DIFFERENCE = 0.02
RESAMPLES = 1000
LEVEL = 0.95
#: To what an exponent is found, and the unknowns of its fit.
_RESOLUTION = 0.001
_UNKNOWNS = 3


class Verdict(StrEnum):
    """How the subject stands beside its baseline."""

    FASTER = "faster"
    SLOWER = "slower"
    SAME = "same"
    AMBIGUOUS = "ambiguous"


@dataclass(frozen=True)
class Estimate:
    """The exponential of the median log ratio, and the ends of its interval."""

    ratio: float
    low: float
    high: float


def log_ratios(quads: Array) -> Array:
    """Return the mean log ratio of the two pairs of each quad (q,).

    >>> np.exp(log_ratios(np.array([[2.0, 1.0, 2.0, 4.0]]))).round(12)  # everything slows down twofold on the way
    array([2.])

    """
    first, second, third, fourth = np.log(quads).T
    return np.asarray((first - second + fourth - third) / 2)


def resampled(processes: Sequence[Array], draw: np.random.Generator, resamples: int = RESAMPLES) -> Array:
    """Return medians of log ratios under resampling of processes, and of quads within each (resamples,).

    Quads of one process share its memory layout and its neighbours on the machine: to resample them alone would take
    what they share for the truth.
    """
    lengths = np.array([len(values) for values in processes])
    longest = np.arange(lengths.max())
    padded = np.stack([np.resize(values, len(longest)) for values in processes])
    chosen = draw.integers(len(processes), size=(resamples, len(processes)))
    taken = lengths[chosen][:, :, None]
    quads = (draw.random((*chosen.shape, len(longest))) * taken).astype(np.intp)
    # a shorter process fills its row with infinities, which lie behind all medians
    values = np.where(longest < taken, padded[chosen[:, :, None], quads], np.inf).reshape(resamples, -1)
    values.sort(axis=1)
    count, row = lengths[chosen].sum(1), np.arange(resamples)
    return np.asarray((values[row, (count - 1) // 2] + values[row, count // 2]) / 2)


def estimate(processes: Sequence[Array], seed: int = 0) -> Estimate:
    """Return the ratio with its interval, from the quads (q, 4) of each process.

    Raises
    ------
    ValueError
        If there are no quads, or a time is not a positive number.

    """
    if not processes or any(quads.ndim != 2 or quads.shape[1] != 4 or not len(quads) for quads in processes):
        msg = f"given {[quads.shape for quads in processes]}, expected at least one quad of four calls in each process"
        raise ValueError(msg)
    if not all((np.isfinite(quads) & (quads > 0)).all() for quads in processes):
        msg = "a call took no positive time; expected seconds"
        raise ValueError(msg)
    ratios = [log_ratios(quads) for quads in processes]
    medians = resampled(ratios, np.random.default_rng(seed))
    return _estimate(float(np.median(np.concatenate(ratios))), medians)


def change(old: Sequence[Array], new: Sequence[Array], seed: int = 0) -> Estimate:
    """Return how the ratio of A to B has changed from one run to another, new over old.

    Each run has its own baseline beside it, so that a machine that became slower as a whole changes nothing.
    """
    draw = np.random.default_rng(seed)
    before, after = ([log_ratios(quads) for quads in run] for run in (old, new))
    middle = float(np.median(np.concatenate(after)) - np.median(np.concatenate(before)))
    return _estimate(middle, resampled(after, draw) - resampled(before, draw))


def _estimate(middle: float, medians: Array) -> Estimate:
    low, high = np.quantile(medians, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(*(float(np.exp(value)) for value in (middle, low, high)))


def verdict(found: Estimate, floor: float) -> Verdict:
    """Return what the interval says, if everything within the noise floor (or 2 %) of 1 is no difference.

    >>> verdict(Estimate(1.1, 1.08, 1.12), floor=0.01)
    <Verdict.SLOWER: 'slower'>
    >>> verdict(Estimate(1.1, 1.08, 1.12), floor=0.1)
    <Verdict.AMBIGUOUS: 'ambiguous'>

    """
    most = 1 + max(floor, LEAST_DIFFERENCE)
    least = 1 / most
    if found.high < least:
        return Verdict.FASTER
    if found.low > most:
        return Verdict.SLOWER
    if least <= found.low and found.high <= most:
        return Verdict.SAME
    return Verdict.AMBIGUOUS


def floor(same: Sequence[Estimate]) -> float:
    """Return how far from 1 the intervals of A/A comparisons reach: the noise floor.

    >>> round(floor([Estimate(1.001, 0.98, 1.01)]), 4)
    0.0204

    """
    return max((max(found.high, 1 / found.low) - 1 for found in same), default=0.0)


def outliers(seconds: Array) -> tuple[int, int]:
    """Return how many samples are mild and how many severe outliers: beyond 1.5 and 3 interquartile ranges."""
    low, high = np.quantile(seconds, [0.25, 0.75])
    beyond = np.maximum(low - seconds, seconds - high)
    severe = int((beyond > 3 * (high - low)).sum())
    return int((beyond > 1.5 * (high - low)).sum()) - severe, severe


@dataclass(frozen=True)
class Growth:
    """What a call costs whatever the size, in seconds, and how the rest grows: overhead + c size^exponent."""

    overhead: float
    exponent: float


def growth(sizes: Array, seconds: Array) -> Growth:
    """Fit seconds = a + c sizes^k by least squares of relative errors; a and c are not negative.

    A line through logarithms would take the overhead that bounds small sizes for slow growth. k is found to 0.001, up
    to 4. Without three different sizes there are fewer of them than unknowns, and both are NaN.

    >>> sizes = np.array([1.0, 2.0, 4.0, 8.0])
    >>> growth(sizes, 5 + 3 * sizes**2)
    Growth(overhead=5.0, exponent=2.0)

    """
    if len(np.unique(sizes)) < _UNKNOWNS:
        return Growth(float("nan"), float("nan"))
    exponents, step = np.arange(0.1, 4.05, 0.1), 0.1
    while True:
        (_, overhead), k = min(((_fitted(sizes, seconds, k), k) for k in exponents), key=lambda found: found[0])
        if step <= _RESOLUTION:
            return Growth(round(overhead, 12), round(float(k), 3))
        step /= 10
        exponents = np.clip(k + step * np.arange(-10, 11), _RESOLUTION, 4)


def _fitted(sizes: Array, seconds: Array, k: float) -> tuple[float, float]:
    """Return the sum of squared errors of the best a + c sizes^k, and its a."""
    least = seconds.min()
    terms = np.stack([least / seconds, (sizes / sizes.max()) ** k * seconds.max() / seconds])
    both = np.linalg.lstsq(terms.T, np.ones(len(seconds)), rcond=None)[0]
    # where that is not allowed, the best that is lies on the edge: one of the two is zero
    allowed = [both] if (both >= 0).all() else [*np.diag(terms.sum(1) / (terms**2).sum(1))]
    return min((float(((found @ terms - 1) ** 2).sum()), float(found[0] * least)) for found in allowed)
