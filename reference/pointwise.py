"""Elementwise functions: value, slope, and how large the numbers are from which each is computed.

The sizes are for `reference.rounding`: an implementation in a precision of unit roundoff u misses the value by at most
gamma(roundings) * value_size and the slope by gamma(roundings) * slope_size. They exceed |value| and |slope| where the
usual evaluation cancels (1 - tanh^2, 1 + erf) or where an argument is rounded before a function that amplifies it.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from reference.windows import Array

# exp, erf, tanh, expm1 and log1p as vector libraries offer them: at most 4 units in the last place, which is 8 u.
LIBRARY = 8


class Parameters(NamedTuple):
    """What the functions can be given; each reads only its own."""

    negative_slope: float
    alpha: float
    beta: float
    threshold: float
    approximate: str


class Point(NamedTuple):
    """One function at x."""

    value: Array
    slope: Array
    value_size: Array
    slope_size: Array
    roundings: int


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), without overflow and with a small relative error on both sides.

    >>> float(sigmoid(np.array(0.0)))
    0.5
    """
    return np.asarray(np.exp(np.minimum(x, 0)) / (1 + np.exp(-np.abs(x))))


def _erf(x: Array) -> Array:
    return np.array([math.erf(value) for value in x.ravel()]).reshape(x.shape)


def _exact(value: Array, slope: Array, roundings: int = 0) -> Point:
    return Point(value, slope, np.abs(value), np.abs(slope), roundings)


def _identity(x: Array, _: Parameters) -> Point:
    return _exact(x, np.ones_like(x))


def _relu(x: Array, _: Parameters) -> Point:
    return _exact(np.maximum(x, 0), (x > 0).astype(np.float64))


def _leaky_relu(x: Array, given: Parameters) -> Point:
    slope = np.where(x > 0, 1.0, given.negative_slope)
    return _exact(slope * x, slope, 2)  # the slope itself, the product


def _tanh(x: Array, _: Parameters) -> Point:
    t = np.tanh(x)
    # 1 - t^2: t^2 is off by 2 LIBRARY + 1 roundings of itself, the difference by one more; |1 - t^2| + t^2 = 1
    return Point(t, 1 - t * t, np.abs(t), np.ones_like(t), 2 * LIBRARY + 2)


def _logistic(x: Array, _: Parameters) -> Point:
    y = sigmoid(x)
    # y (1 - y): the error of 1 - y is relative to y and to 1 - y, that of the product adds y (1 - y)
    return Point(y, y * sigmoid(-x), y, y, 2 * LIBRARY + 6)


def _softplus(x: Array, given: Parameters) -> Point:
    t = given.beta * x
    linear = t > given.threshold
    y = sigmoid(t)
    value = np.where(linear, x, np.logaddexp(0, t) / given.beta)
    slope = np.where(linear, 1.0, y)
    # t is rounded twice, which moves the value by |t| sigmoid(t) / beta and the slope by at most |t| sigmoid(t)
    return Point(
        value,
        slope,
        np.where(linear, np.abs(x), value + np.abs(t) * y / given.beta),
        np.where(linear, 1.0, y * (1 + np.abs(t))),
        2 * LIBRARY + 6,
    )


def _gelu(x: Array, given: Parameters) -> Point:
    size = np.abs(x)
    if given.approximate == "tanh":
        scale, cubic = math.sqrt(2 / math.pi), 0.044715
        inner = scale * (x + cubic * x**3)
        inner_slope = scale * (1 + 3 * cubic * x * x)
        t = np.tanh(inner)
        # inner is rounded six times, which moves tanh by |inner| (1 - t^2); 1 + t and 1 - t^2 cancel
        moved = 1 + np.abs(inner) * (1 - t * t)
        return Point(
            0.5 * x * (1 + t),
            0.5 * (1 + t) + 0.5 * x * (1 - t * t) * inner_slope,
            size * moved,
            (1 + 0.5 * size * inner_slope) * moved,
            2 * LIBRARY + 14,
        )
    density = np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    below = 0.5 * (1 + _erf(x / math.sqrt(2)))
    # 1 + erf cancels for x < 0; x / sqrt(2) is rounded twice, which moves erf by |x| density; x^2 / 2 moves exp by x^2
    return Point(
        x * below,
        below + x * density,
        size * (1 + size * density),
        1 + size * density * (1 + x * x),
        2 * LIBRARY + 8,
    )


def _silu(x: Array, _: Parameters) -> Point:
    y, size = sigmoid(x), np.abs(x)
    return Point(x * y, y * (1 + x * sigmoid(-x)), size * y, y * (1 + size), 2 * LIBRARY + 8)


def _elu(x: Array, given: Parameters) -> Point:
    positive = x > 0
    below = np.minimum(x, 0)
    # exp(x) - 1 and, for the slope, value + alpha cancel where an implementation writes them so: both as large as alpha
    size = abs(given.alpha)
    return Point(
        np.where(positive, x, given.alpha * np.expm1(below)),
        np.where(positive, 1.0, given.alpha * np.exp(below)),
        np.where(positive, x, size),
        np.where(positive, 1.0, size),
        LIBRARY + 4,
    )


FUNCTIONS: dict[str, Callable[[Array, Parameters], Point]] = {
    "identity": _identity,
    "relu": _relu,
    "leaky_relu": _leaky_relu,
    "tanh": _tanh,
    "sigmoid": _logistic,
    "softplus": _softplus,
    "gelu": _gelu,
    "silu": _silu,
    "elu": _elu,
}
