"""The numbers of the vectors: the same on every machine and in every version of Python and NumPy.

`random.Random.random` is promised to give the same sequence for the same seed; NumPy's generators are not. Only
operations that IEEE 754 rounds correctly are done with what it gives.
"""

import random
from math import prod

import numpy as np

from reference.windows import Array, Shape

#: How far a bound that was rounded up may be above what it was: relative to itself.
TIDIED = 2.0**-11


class Source:
    """Where the numbers of one case come from; the same name gives the same numbers."""

    def __init__(self, name: str) -> None:
        self._random = random.Random(name)

    def uniform(self, shape: Shape, scale: float = 2.0) -> Array:
        """Numbers between -scale and scale, with all their digits."""
        drawn = [self._random.random() for _ in range(prod(shape))]
        return np.asarray(scale * (2 * np.array(drawn, np.float64).reshape(shape) - 1))

    def integers(self, shape: Shape, largest: int = 2) -> Array:
        """Integers from -largest to largest: many exact zeros, sums and products that are exact."""
        return np.asarray(np.floor((self.uniform(shape, 1.0) + 1) / 2 * (2 * largest + 1)) - largest)

    def relevance(self, shape: Shape) -> Array:
        """A relevance that has nothing to do with any output: both signs, and a fifth of it exact zeros."""
        drawn = self.uniform(shape)
        return np.where(self.uniform(shape, 1.0) > -0.6, drawn, 0.0)


def with_negative_zeros(values: Array) -> Array:
    """Make every second zero a -0.0."""
    zeros = np.flatnonzero(values == 0)
    changed = values.copy()
    changed.ravel()[zeros[::2]] = -0.0
    return changed


def rounded(values: Array, dtype: str) -> Array:
    """Return the values as float64, after they were rounded to the dtype."""
    return values.astype(dtype).astype(np.float64)


def tidied(bound: Array) -> Array:
    """Return the bounds rounded up to twelve bits, in float32.

    They are sums in float64, whose last digits depend on the order in which a machine adds; nobody needs those.
    """
    fraction, exponent = np.frexp(bound)
    short = np.ldexp(np.ceil(np.ldexp(fraction, 12)), exponent - 12)
    smallest = np.finfo(np.float32).smallest_normal
    with np.errstate(over="ignore"):
        return np.where((bound > 0) & (short < smallest), smallest, short).astype(np.float32).astype(np.float64)
