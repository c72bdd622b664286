"""How far rounding takes a product of many factors: at worst, and probably."""

from __future__ import annotations

import numpy as np

from reference.precision import FLOAT32, probable


class Likely(float):
    """A unit of rounding for bounds that hold with near certainty, not always: see `reference.precision.probable`."""

    __slots__ = ()


def gamma(n: float, u: float) -> float:
    """N u / (1 - n u): how far n roundings of unit u take a product; how far they probably do, for a Likely one."""
    if isinstance(u, Likely):
        return float(probable(np.asarray(n, np.float64), float(u), FLOAT32.confidence))
    return n * u / (1 - n * u) if n * u < 0.5 else float("inf")
