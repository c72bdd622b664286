"""Layers that are not linear: value, Jacobian, and how large the numbers are from which both are computed."""

# ruff: noqa: D102 - what a method answers is said once, in reference.base
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np

from reference.base import NonlinearLayer
from reference.pointwise import FUNCTIONS, LIBRARY, Parameters, Point
from reference.windows import Array, Index, Shape, combine, pooled, taps, wrap


@dataclass(frozen=True, eq=False)
class MaxPool(NonlinearLayer):
    """Maximum over windows of (..., *spatial), padded with minus infinity; of equal maxima the first one wins."""

    kernel_size: Shape
    stride: Shape
    padding: Shape
    dilation: Shape
    ceil_mode: bool = False

    @property
    def output_shape(self) -> Shape:
        dims = len(self.kernel_size)
        axes = zip(self.input_shape[-dims:], self.kernel_size, self.stride, self.padding, self.dilation, strict=True)
        spatial = (
            pooled(n, spread * (k - 1) + 1, step, pad, ceil_mode=self.ceil_mode) for n, k, step, pad, spread in axes
        )
        return (*self.input_shape[:-dims], *spatial)

    @cached_property
    def _position(self) -> Index:
        dims = len(self.kernel_size)
        lengths, outputs = self.input_shape[-dims:], self.output_shape[-dims:]
        axes = zip(lengths, outputs, self.kernel_size, self.stride, self.padding, self.dilation, strict=True)
        positions = [wrap(taps(out, k, step, pad, spread), n, "zeros") for n, out, k, step, pad, spread in axes]
        return combine(positions, lengths)

    def _winners(self, x: Array) -> Index:
        """Flat input index of each output's maximum (m,)."""
        inputs = prod(self.input_shape[-len(self.kernel_size) :])
        channels = x.reshape(-1, inputs)
        windows = np.where(self._position >= 0, channels[:, self._position], -np.inf)
        rows = np.arange(len(self._position))
        best = self._position[rows, windows.argmax(-1)]  # argmax takes the first of equals
        return np.asarray((np.arange(len(channels))[:, None] * inputs + best).ravel())

    def value(self, x: Array) -> Array:
        return np.asarray(x.ravel()[self._winners(x)])

    def jacobian(self, x: Array) -> Array:
        winners = self._winners(x)
        matrix = np.zeros((len(winners), x.size))
        matrix[np.arange(len(winners)), winners] = 1
        return matrix


@dataclass(frozen=True, eq=False)
class Elementwise(NonlinearLayer):
    """A function of each entry: identity, relu, leaky_relu, tanh, sigmoid, softplus, gelu, silu or elu.

    Each function reads only its own parameters, which are named and preset as in torch.
    """

    function: str
    negative_slope: float = 0.01
    alpha: float = 1.0
    beta: float = 1.0
    threshold: float = 20.0
    approximate: str = "none"

    def __post_init__(self) -> None:
        if self.function not in FUNCTIONS:
            message = f"Elementwise: given function {self.function!r}, expected one of {', '.join(FUNCTIONS)}"
            raise ValueError(message)

    @property
    def output_shape(self) -> Shape:
        return self.input_shape

    def at(self, x: Array) -> Point:
        """Value, slope and their sizes at x, flattened."""
        given = Parameters(self.negative_slope, self.alpha, self.beta, self.threshold, self.approximate)
        return FUNCTIONS[self.function](x.ravel(), given)

    def value(self, x: Array) -> Array:
        return self.at(x).value

    def jacobian(self, x: Array) -> Array:
        return np.diag(self.at(x).slope)

    def sizes(self, x: Array) -> tuple[Array, Array]:
        point = self.at(x)
        return point.value_size, np.diag(point.slope_size)

    @property
    def roundings(self) -> int:
        return self.at(np.zeros(1)).roundings


@dataclass(frozen=True, eq=False)
class Softmax(NonlinearLayer):
    """exp(x) / sum(exp(x)) along one axis of a sample."""

    axis: int

    @property
    def output_shape(self) -> Shape:
        return self.input_shape

    def value(self, x: Array) -> Array:
        x = x.reshape(self.input_shape)
        y = np.exp(x - x.max(self.axis, keepdims=True))
        return np.asarray((y / y.sum(self.axis, keepdims=True)).ravel())

    @cached_property
    def _groups(self) -> Index:
        """Flat positions of the entries that are normalised together (groups, length)."""
        position = np.arange(prod(self.input_shape)).reshape(self.input_shape)
        return np.moveaxis(position, self.axis, -1).reshape(-1, self.input_shape[self.axis])

    def blocks(self, values: Array) -> Array:
        """A square matrix with one block (length, length) for each group."""
        groups = self._groups
        matrix = np.zeros((groups.size, groups.size))
        matrix[groups[:, :, None], groups[:, None, :]] = values
        return matrix

    def jacobian(self, x: Array) -> Array:
        y = self.value(x)
        return np.diag(y) - self.blocks(y[self._groups][:, :, None] * y[self._groups][:, None, :])

    def sizes(self, x: Array) -> tuple[Array, Array]:
        # x - max is rounded before exp amplifies it; the Jacobian subtracts y y^T from diag(y)
        y = self.value(x)
        x = x.reshape(self.input_shape)
        y_size = y * (1 + (x.max(self.axis, keepdims=True) - x).ravel())
        pairs = y_size[self._groups][:, :, None] * y[self._groups][:, None, :]
        return y_size, np.diag(y_size) + self.blocks(pairs + pairs.swapaxes(1, 2))

    @property
    def roundings(self) -> int:
        # numerator and denominator each: x - max, exp, and the denominator's additions; then the quotient and products
        return 2 * (LIBRARY + 1) + self.input_shape[self.axis] + 3
