"""Elementwise functions and Softmax, correctly rounded: their last digit differs between mathematical libraries.

`reference.nonlinear` says the same in NumPy; `lrp-vectors check` compares the two within the bound.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import mpmath
import numpy as np

from reference.base import Layer
from reference.nonlinear import Elementwise, Softmax
from reference.operations import Normalization
from reference.rules import Part, Parts
from reference.windows import Array

_mp = mpmath.mp.clone()
_mp.prec = 400


class Point(NamedTuple):
    """Value and derivative of a function, as mpmath's numbers."""

    value: Any
    slope: Any


def _logistic(t: Any) -> Any:
    return 1 / (1 + _mp.exp(-t))


def _tanh(x: Any, _: Elementwise) -> Point:
    return Point(_mp.tanh(x), 1 - _mp.tanh(x) ** 2)


def _sigmoid(x: Any, _: Elementwise) -> Point:
    y = _logistic(x)
    return Point(y, y * (1 - y))


def _softplus(x: Any, layer: Elementwise) -> Point:
    t = x * layer.beta
    if t > layer.threshold:
        return Point(x, _mp.mpf(1))
    return Point(_mp.log1p(_mp.exp(t)) / layer.beta, _logistic(t))


def _gelu(x: Any, _: Elementwise) -> Point:
    below = _mp.ncdf(x)
    return Point(x * below, below + x * _mp.npdf(x))


def _silu(x: Any, _: Elementwise) -> Point:
    y = _logistic(x)
    return Point(x * y, y * (1 + x * (1 - y)))


def _elu(x: Any, layer: Elementwise) -> Point:
    return Point(x, _mp.mpf(1)) if x > 0 else Point(layer.alpha * _mp.expm1(x), layer.alpha * _mp.exp(x))


FUNCTIONS: dict[str, Callable[[Any, Elementwise], Point]] = {
    "tanh": _tanh,
    "sigmoid": _sigmoid,
    "softplus": _softplus,
    "gelu": _gelu,
    "silu": _silu,
    "elu": _elu,
}


def sigmoid(t: Array) -> Array:
    """1 / (1 + exp(-t)), correctly rounded."""
    return np.array([float(_logistic(_mp.mpf(float(value)))) for value in t])


def slopes(layer: Elementwise, x: Array) -> Array:
    """f'(x), correctly rounded."""
    if layer.function not in FUNCTIONS:  # those are exact
        return np.asarray(np.diagonal(layer.jacobian(x)))
    return np.array([float(FUNCTIONS[layer.function](_mp.mpf(float(value)), layer).slope) for value in x])


def parts_of(layer: Layer, x: Array, parts: Parts) -> Parts:
    """Return the one part of Epsilon or Norm on a smooth layer with Jacobian and constant correctly rounded."""
    numbers = [_mp.mpf(float(value)) for value in x]
    if isinstance(layer, Elementwise) and layer.function in FUNCTIONS:
        points = [FUNCTIONS[layer.function](number, layer) for number in numbers]
        rest = [point.value - point.slope * number for point, number in zip(points, numbers, strict=True)]
        jacobian = np.diag([float(point.slope) for point in points])
    elif isinstance(layer, Softmax):
        jacobian, rest = _softmax(layer, numbers)
    else:
        return parts
    (part,) = parts
    return (replace(part, terms=((jacobian, x),), bias=np.array([float(value) for value in rest])),)


def of_networks(layer: Layer, x: Array, parts: Parts, zero_params: tuple[str, ...]) -> Parts:
    """Return the one part of Softmax or LayerNormRule with its matrix and constant correctly rounded."""
    (part,) = parts
    if isinstance(layer, Softmax):
        return (_of_softmax(layer, x, part),)
    assert isinstance(layer, Normalization)
    numbers = [_mp.mpf(float(value)) for value in x]
    one = np.ones_like(x)
    weight, bias = (
        0 * one if name in zero_params else absent if given is None else layer.spread(given)
        for name, given, absent in (("weight", layer.weight, one), ("bias", layer.bias, 0 * one))
    )
    matrix = np.zeros((len(x), len(x)))
    for group in layer.groups:
        mean = _mp.fsum(numbers[i] for i in group) / len(group) if layer.centred else _mp.mpf(0)
        variance = _mp.fsum((numbers[i] - mean) ** 2 for i in group) / len(group)
        deviation = _mp.sqrt(variance + _mp.mpf(layer.eps))
        for j in group:
            scale = _mp.mpf(float(weight[j])) / deviation
            for i in group:
                shared = _mp.mpf(1) / len(group) if layer.centred else _mp.mpf(0)
                matrix[j, i] = float(scale * ((1 if i == j else 0) - shared))
    return (replace(part, terms=((matrix, x),), bias=np.asarray(bias)),)


def _of_softmax(layer: Softmax, x: Array, part: Part) -> Part:
    ((_, finite),) = part.terms
    matrix, bias = np.zeros((len(x), len(x))), np.zeros(len(x))
    position = np.arange(len(x)).reshape(layer.input_shape)
    for group in np.moveaxis(position, layer.axis, -1).reshape(-1, layer.input_shape[layer.axis]):
        total = _mp.fsum(_mp.exp(_mp.mpf(float(x[i]))) for i in group)
        s = {i: _mp.exp(_mp.mpf(float(x[i]))) / total for i in group}
        mean = _mp.fsum(s[i] * _mp.mpf(float(finite[i])) for i in group)
        for j in group:
            bias[j] = float(1 - _mp.mpf(float(finite[j])) + mean)
            for i in group:
                matrix[j, i] = float((1 if i == j else 0) - s[i])
    return replace(part, terms=((matrix, finite),), bias=bias)


def _softmax(layer: Softmax, numbers: list[Any]) -> tuple[Array, list[Any]]:
    position = np.arange(len(numbers)).reshape(layer.input_shape)
    groups = np.moveaxis(position, layer.axis, -1).reshape(-1, layer.input_shape[layer.axis])
    jacobian, rest = np.zeros((len(numbers), len(numbers))), [_mp.mpf(0)] * len(numbers)
    for group in groups:
        total = _mp.fsum(_mp.exp(numbers[i]) for i in group)
        y = {i: _mp.exp(numbers[i]) / total for i in group}
        mean = _mp.fsum(y[i] * numbers[i] for i in group)
        for i in group:
            rest[i] = y[i] - y[i] * (numbers[i] - mean)
            for k in group:
                jacobian[i, k] = float(y[i] * ((1 if i == k else 0) - y[k]))
    return jacobian, rest
