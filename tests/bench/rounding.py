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
