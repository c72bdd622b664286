"""How far rounding alone can take what is computed from logarithms of times."""

import numpy as np

EPS = float(np.finfo(np.float64).eps)


def of_log_ratios(*seconds: float) -> float:
    """Bound the error of (log a - log b + log d - log c) / 2, and with it the relative one of its exponential.

    Each logarithm is off by at most an eps of its size L, each of three sums by half an eps of at most 2 L, and half of
    all that is left; the exponential adds an eps.
    """
    largest = max(abs(float(np.log(one))) for one in seconds)
    return (4 + 3) / 2 * largest * EPS + EPS


def of_exponent(sizes: np.ndarray, seconds: np.ndarray) -> float:
    """Bound the error of a line fitted to logarithms, by that of its data and of the n sums of n terms of a fit."""
    x = np.log(sizes)
    weights = np.abs(x - x.mean()).sum() / ((x - x.mean()) ** 2).sum()
    return float(len(x) ** 2 * max(1.0, weights) * of_log_ratios(*sizes, *seconds))
