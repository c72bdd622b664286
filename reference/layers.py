"""Layers as matrices: what a layer does to one sample, by index arithmetic.

A layer is plain data. A linear one answers `matrix(weight)`, the A(w) of x -> A(w) x, for *any* weight of its shape, so
that A(w+) is `layer.matrix(np.maximum(layer.weight, 0))`. The two differ, A(w+) != A(w)+, wherever one entry of the
matrix gathers several parameters (circular, reflect and replicate padding). One that is not linear answers `value(x)`
and `jacobian(x)`. There is no batch axis: a batch is independent samples. Inputs and outputs are flattened, row-major.
"""

# ruff: noqa: D102 - what a method answers is said once, in reference.base
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil, floor, frexp, prod

import numpy as np

from reference.affine import Affine, affine
from reference.base import Layer, LinearLayer, NonlinearLayer, Weighted, agree
from reference.nonlinear import Elementwise, MaxPool, Softmax
from reference.windows import Array, Index, Shape, channelwise, combine, convolve, pooled, taps, wrap

__all__ = [
    "AdaptiveAvgPool",
    "Affine",
    "AvgPool",
    "BatchNorm",
    "Conv",
    "ConvTranspose",
    "Elementwise",
    "Layer",
    "Linear",
    "LinearLayer",
    "MaxPool",
    "NonlinearLayer",
    "Softmax",
    "Weighted",
    "affine",
    "same_padding",
]

Pairs = tuple[tuple[int, int], ...]


def same_padding(kernel_size: Sequence[int], dilation: Sequence[int]) -> Pairs:
    """Return `padding='same'` as (before, after) for each spatial axis; of an odd total the extra one is behind.

    >>> same_padding((3, 4), (1, 1))
    ((1, 1), (1, 2))
    """
    totals = [spread * (k - 1) for k, spread in zip(kernel_size, dilation, strict=True)]
    return tuple((total // 2, total - total // 2) for total in totals)


@dataclass(frozen=True, eq=False)
class Linear(Weighted):
    """y = W x + b along the last axis, weight (out, in); the axes before it are positions of one sample."""

    weight: Array

    def __post_init__(self) -> None:
        agree("Linear: last axis of input_shape, second of weight", self.input_shape[-1], self.weight.shape[1])

    @property
    def output_shape(self) -> Shape:
        return (*self.input_shape[:-1], self.weight.shape[0])

    def matrix(self, weight: Array | None = None) -> Array:
        weight = self.weight if weight is None else weight
        positions = prod(self.input_shape[:-1])
        return np.array(weight, np.float64) if positions == 1 else channelwise(weight, positions)

    def offset(self, bias: Array | None = None, weight: Array | None = None) -> Array:
        if bias is None:
            return super().offset(bias, weight)
        return np.tile(bias, prod(self.input_shape[:-1]))


@dataclass(frozen=True, eq=False)
class _Channels(Weighted):
    """A layer whose first output axis is the channel, one bias each."""

    def offset(self, bias: Array | None = None, weight: Array | None = None) -> Array:
        if bias is None:
            return super().offset(bias, weight)
        return np.repeat(bias, prod(self.output_shape[1:]))


@dataclass(frozen=True, eq=False)
class Conv(_Channels):
    """Convolution over (C, *spatial), weight (O, C/groups, *kernel).

    `padding` is (p, ...) or ((before, after), ...), one for each spatial axis, as stride and dilation are.
    """

    weight: Array
    stride: Shape
    padding: Shape | Pairs
    dilation: Shape
    groups: int = 1
    padding_mode: str = "zeros"

    def __post_init__(self) -> None:
        agree("Conv: channels of input_shape", self.input_shape[0], self.weight.shape[1] * self.groups)

    @cached_property
    def _pad(self) -> Pairs:
        return tuple((p, p) if isinstance(p, int) else p for p in self.padding)

    @property
    def output_shape(self) -> Shape:
        axes = zip(self.input_shape[1:], self.weight.shape[2:], self.stride, self._pad, self.dilation, strict=True)
        spatial = ((n + sum(pad) - spread * (k - 1) - 1) // step + 1 for n, k, step, pad, spread in axes)
        return (self.weight.shape[0], *spatial)

    @cached_property
    def position(self) -> Index:
        axes = zip(
            self.input_shape[1:],
            self.output_shape[1:],
            self.weight.shape[2:],
            self.stride,
            self._pad,
            self.dilation,
            strict=True,
        )
        positions = [
            wrap(taps(out, k, step, pad[0], spread), n, self.padding_mode) for n, out, k, step, pad, spread in axes
        ]
        return combine(positions, self.input_shape[1:])

    def matrix(self, weight: Array | None = None) -> Array:
        weight = self.weight if weight is None else weight
        return convolve(weight, self.groups, self.position, prod(self.input_shape[1:]))

    @property
    def gathers(self) -> bool:
        return self.padding_mode != "zeros"


@dataclass(frozen=True, eq=False)
class ConvTranspose(_Channels):
    """Transposed convolution over (C, *spatial), weight (C, O/groups, *kernel): a convolution's map, transposed."""

    weight: Array
    stride: Shape
    padding: Shape
    output_padding: Shape
    dilation: Shape
    groups: int = 1

    def __post_init__(self) -> None:
        agree("ConvTranspose: channels of input_shape", self.input_shape[0], self.weight.shape[0])

    @property
    def output_shape(self) -> Shape:
        n, k = np.array(self.input_shape[1:]), np.array(self.weight.shape[2:])
        step, pad, extra, spread = map(np.array, (self.stride, self.padding, self.output_padding, self.dilation))
        spatial = (n - 1) * step - 2 * pad + spread * (k - 1) + extra + 1
        return (self.weight.shape[1] * self.groups, *map(int, spatial))

    @cached_property
    def position(self) -> Index:
        # The convolution that reads this layer's output at the taps where an input is written to.
        axes = zip(
            self.output_shape[1:],
            self.input_shape[1:],
            self.weight.shape[2:],
            self.stride,
            self.padding,
            self.dilation,
            strict=True,
        )
        positions = [wrap(taps(n, k, step, pad, spread), out, "zeros") for out, n, k, step, pad, spread in axes]
        return combine(positions, self.output_shape[1:])

    def matrix(self, weight: Array | None = None) -> Array:
        weight = self.weight if weight is None else weight
        return convolve(weight, self.groups, self.position, prod(self.output_shape[1:])).T


@dataclass(frozen=True, eq=False)
class BatchNorm(_Channels):
    """Batch normalisation in eval mode over (C, *spatial): y = (x - mean) w / sqrt(var + eps) + bias.

    Its constant is bias - A(w) mean. Without parameters (`affine=False`) w is one and bias zero.
    """

    running_mean: Array
    running_var: Array
    eps: float

    @property
    def output_shape(self) -> Shape:
        return self.input_shape

    def matrix(self, weight: Array | None = None) -> Array:
        return np.diag(self._spread(self._scale(self.weight if weight is None else weight)))

    def offset(self, bias: Array | None = None, weight: Array | None = None) -> Array:
        shift = self._scale(self.weight if weight is None else weight) * self.running_mean
        return self._spread((0 if bias is None else bias) - shift)

    def offset_size(self, bias: Array | None = None, weight: Array | None = None) -> Array:
        shift = self._scale(self.weight if weight is None else weight) * self.running_mean
        return self._spread((0 if bias is None else np.abs(bias)) + np.abs(shift))

    def _scale(self, weight: Array | None) -> Array:
        scale = 1 / np.sqrt(self.running_var + self.eps)
        return np.asarray(scale if weight is None else weight * scale)

    def _spread(self, channel: Array) -> Array:
        return np.repeat(channel, prod(self.input_shape[1:]))

    @property
    def roundings(self) -> int:
        # eps and var + eps; 1 / sqrt, which some hardware gives to two units in the last place; w times it; x - mean
        return 2 + 4 + 1 + 1


@dataclass(frozen=True, eq=False)
class _Average(LinearLayer):
    """A mean over windows, the same in every channel."""

    @property
    @abstractmethod
    def _window(self) -> Array:
        """Shares of the inputs of one channel in each of its outputs (P, N)."""

    def matrix(self, weight: Array | None = None) -> Array:  # noqa: ARG002 - it has no parameters
        window = self._window
        return channelwise(window, prod(self.input_shape) // window.shape[1])

    @property
    def roundings(self) -> int:
        # one over a power of two is exact, and so is a division by it
        return int(any(frexp(share)[0] != 0.5 for share in np.unique(self._window) if share))


@dataclass(frozen=True, eq=False)
class AvgPool(_Average):
    """Average over windows of (..., *spatial); padding is symmetric, stride and padding are one for each spatial axis.

    The divisor is `divisor_override`, else the window with its share of the padding (`count_include_pad`) or without.
    """

    kernel_size: Shape
    stride: Shape
    padding: Shape
    ceil_mode: bool = False
    count_include_pad: bool = True
    divisor_override: int | None = None

    @property
    def output_shape(self) -> Shape:
        axes = zip(self._lengths, self.kernel_size, self.stride, self.padding, strict=True)
        spatial = (pooled(n, k, step, pad, ceil_mode=self.ceil_mode) for n, k, step, pad in axes)
        return (*self.input_shape[: -len(self.kernel_size)], *spatial)

    @property
    def _lengths(self) -> Shape:
        return self.input_shape[-len(self.kernel_size) :]

    @cached_property
    def _window(self) -> Array:
        outputs = self.output_shape[-len(self.kernel_size) :]
        inside: Array = np.ones((1, 1))
        padded: Array = np.ones(1)
        for n, out, k, step, pad in zip(
            self._lengths, outputs, self.kernel_size, self.stride, self.padding, strict=True
        ):
            start = np.arange(out) * step - pad
            end = np.minimum(start + k, n + pad)  # under ceil_mode the last window may run past the padding
            position = np.arange(n)
            reads = (start[:, None] <= position) & (position < end[:, None])
            inside = np.asarray(np.kron(inside, reads), np.float64)
            padded = np.asarray(np.kron(padded, end - start), np.float64)
        if self.divisor_override is not None:
            return np.asarray(inside / self.divisor_override)
        return np.asarray(inside / (padded if self.count_include_pad else inside.sum(1))[:, None])


@dataclass(frozen=True, eq=False)
class AdaptiveAvgPool(_Average):
    """Average over `output_size` windows of (..., *spatial), which may overlap; None keeps an axis."""

    output_size: tuple[int | None, ...]

    @property
    def output_shape(self) -> Shape:
        axes = zip(self.output_size, self.input_shape[-len(self.output_size) :], strict=True)
        return (*self.input_shape[: -len(self.output_size)], *(n if out is None else out for out, n in axes))

    @cached_property
    def _window(self) -> Array:
        dims = len(self.output_size)
        window: Array = np.ones((1, 1))
        for out, n in zip(self.output_shape[-dims:], self.input_shape[-dims:], strict=True):
            spans = [(floor(o * n / out), ceil((o + 1) * n / out)) for o in range(out)]
            axis = np.array([[start <= i < end for i in range(n)] for start, end in spans], np.float64)
            window = np.asarray(np.kron(window, axis), np.float64)
        return np.asarray(window / window.sum(1, keepdims=True))
