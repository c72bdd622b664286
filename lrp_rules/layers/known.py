"""Modules whose matrix is known: :func:`layer_type`. All others are traced.

A module that is not known is linearised at x: A is its Jacobian there, and b = f(x) - A x.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.utils import _single

from lrp_rules.layers.blocks import plain
from lrp_rules.layers.convolution import ConvLayer, ConvTransposeLayer
from lrp_rules.layers.layer import TERMS, Layer, Map, Matrix, WeightedLayer
from lrp_rules.layers.traced import TracedLayer, pull

if TYPE_CHECKING:
    from collections.abc import Callable

    from lrp_rules.layers.layer import Change, Coefficients, Tensors

#: How many weights are changed at a time, for each thread. A layer with many more is computed in blocks of outputs: the
#: changed block stays in cache and is used forwards and backwards, so each weight is read from memory once.
ROWS = 2**19
#: With more products than this, a quarter of the outputs is done at a time also where no weight is changed. R / S(d) is
#: as large as the output, and a quarter of it takes a quarter of that memory, for a per cent or two of the time.
QUARTERED = 2**26
#: A block has at least this many rows of the weight.
LEAST = 256

__all__ = [
    "BatchNormLayer",
    "ConvLayer",
    "ConvTransposeLayer",
    "Layer",
    "LinearLayer",
    "Map",
    "Matrix",
    "PoolLayer",
    "ReLULayer",
    "TracedLayer",
    "gated",
    "layer_type",
    "pull",
]


class Weight(Matrix):
    """A matrix that exists in memory: the weight of a linear layer."""

    __slots__ = ("weight",)
    fresh = True

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def forward(self, v: Tensor) -> Tensor:
        return F.linear(v, self.weight)

    def transposed(self, s: Tensor) -> Tensor:
        return s @ self.weight

    def onto(self, s: Tensor, c: Tensor) -> Tensor:
        if plain() or s.ndim != 2:
            return c + s @ self.weight
        return c.addmm_(s, self.weight)


@dataclass
class LinearLayer(WeightedLayer):
    """:class:`torch.nn.Linear`, over the last dimension of inputs of any rank."""

    def matrix(self, change: Change | None = None) -> Matrix:
        return Weight(self._weight(change))

    def run_with(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    def excess(self) -> Tensor | None:
        x, weight, bias = self.x, self.given["weight"], self.given["bias"]
        assert weight is not None
        assert bias is not None
        if x.device.type != "cpu" or x.shape[-1] <= TERMS:
            return None
        some = x[..., :TERMS].abs()
        # |w| in blocks no larger than the output: for few samples, a whole |w| would be the largest tensor of all
        step = max(LEAST, self.shape.numel() // TERMS)
        blocks = zip(weight[:, :TERMS].split(step), bias.split(step), strict=True)
        found = [F.linear(some, w.abs(), -b.abs()) for w, b in blocks]
        return found[0] if len(found) == 1 else torch.cat(found, -1)

    def matrix_of_ones(self) -> Matrix:
        return Map(_sum, _sum)

    def by_outputs(self, coefficients: Coefficients, vectors: Tensors, R: Tensor, *, changes_weights: bool) -> Tensors:
        weight, bias = self.given["weight"], self.given["bias"]
        assert weight is not None
        many = weight.numel() > ROWS if changes_weights else R.numel() * weight.shape[1] > QUARTERED
        if not many or R.device.type != "cpu" or plain():
            return coefficients(self, vectors, R)
        step = max(1, ROWS * torch.get_num_threads() // weight.shape[1]) if changes_weights else _quarter(len(weight))
        if step >= len(weight):
            return coefficients(self, vectors, R)
        found: Tensors | None = None
        scratch: dict[Change, Tensor] = {}
        for start in range(0, len(weight), step):
            rows = slice(start, start + step)
            given = {"weight": weight[rows], "bias": None if bias is None else bias[rows]}
            outputs = None if self.outputs is None else (self.outputs[0][..., rows],)
            part = R[..., rows]
            layer = self.but(given=given, outputs=outputs, shape=part.shape, scratch=scratch, memo={}, start=found)
            found = coefficients(layer, vectors, part)
        assert found is not None
        return found

    def ones(self) -> Tensor:
        # every leading dimension holds samples
        return self.x.new_ones((1,) * (self.x.ndim > 1) + self.x.shape[-1:])

    @property
    def batched(self) -> bool:
        return self.x.ndim > 1

    @property
    def takes_samples(self) -> bool:
        # each part of the samples would read and change every weight again
        weight = self.given["weight"]
        return weight is not None and weight.numel() <= ROWS

    @property
    def _dims(self) -> int:
        return 0

    def _per_output(self, bias: Tensor) -> Tensor:
        return bias


def _quarter(outputs: int) -> int:
    return max(LEAST, -(-outputs // 4))


def _sum(v: Tensor) -> Tensor:
    return v.sum(-1, keepdim=True)


@dataclass
class BatchNormLayer(Layer):
    """:class:`torch.nn.BatchNorm1d`, 2d and 3d in eval mode: a scale and a constant for each channel."""

    module: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d

    used_parameters: ClassVar[frozenset[str]] = frozenset({"weight", "bias"})
    used_buffers: ClassVar[tuple[str, ...]] = ("running_mean", "running_var")

    def matrix(self, change: Change | None = None) -> Matrix:
        scale = self._scale(change)
        return Map(lambda v: v * scale, lambda s: s * scale, fresh=True)

    def output(self) -> Tensor:
        mean, variance = self.buffers["running_mean"], self.buffers["running_var"]
        eps = self.module.eps
        return F.batch_norm(self.x, mean, variance, self.given["weight"], self.given["bias"], training=False, eps=eps)

    @property
    def bias(self) -> Tensor:
        mean, bias = self.buffers["running_mean"], self.parameters["bias"]
        assert mean is not None
        offset = -self._scale(None) * self._per_channel(mean)
        return offset if bias is None else offset + self._per_channel(bias)

    def _scale(self, change: Change | None) -> Tensor:
        variance, weight = self.buffers["running_var"], self.parameters["weight"]
        assert variance is not None
        deviation = (variance + self.module.eps).sqrt()
        if weight is None:
            return self._per_channel(deviation.reciprocal())
        return self._per_channel((weight if change is None else change(weight)) / deviation)

    def _per_channel(self, v: Tensor) -> Tensor:
        return v.view((-1,) + (1,) * (self.x.ndim - 2)).to(self.x.dtype)


class FixedLayer(Layer):
    """A known layer without parameters: z = A x."""

    @property
    def bias(self) -> Tensor:
        return self.x.new_zeros(())

    @property
    def fixed(self) -> bool:
        return True


@dataclass
class ReLULayer(FixedLayer):
    """:class:`torch.nn.ReLU`, not in place: a diagonal of ones where x > 0, and of zeros."""

    def matrix(self, change: Change | None = None) -> Matrix:
        x = self.x
        return Map(lambda v: gated(v, x), lambda s: gated(s, x))

    def output(self) -> Tensor:
        return F.relu(self.x)

    @property
    def batched(self) -> bool:
        return self.x.ndim > 1


@dataclass
class PoolLayer(FixedLayer):
    """:class:`torch.nn.AvgPool1d`, AvgPool2d and AvgPool3d: a matrix that no parameter and no input changes."""

    module: nn.AvgPool1d | nn.AvgPool2d | nn.AvgPool3d

    def matrix(self, change: Change | None = None) -> Matrix:
        return Map(self.module.forward, self._transposed)

    def output(self) -> Tensor:
        return self.module.forward(self.x)

    @property
    def batched(self) -> bool:
        return self.x.ndim == self._dims + 2

    @property
    def _dims(self) -> int:
        return 1 if isinstance(self.module, nn.AvgPool1d) else 2 if isinstance(self.module, nn.AvgPool2d) else 3

    def _transposed(self, s: Tensor) -> Tensor:
        n, module = self._dims, self.module
        like = s.new_empty((*s.shape[:-n], *self.x.shape[-n:]))  # only the shape of the input matters
        ends = (module.ceil_mode, module.count_include_pad)
        if isinstance(module, nn.AvgPool1d):
            # torch has this for two dimensions only
            sizes = ((1, *_single(module.kernel_size)), (1, *_single(module.stride)), (0, *_single(module.padding)))
            flat: Tensor = torch.ops.aten.avg_pool2d_backward(s[..., None, :], like[..., None, :], *sizes, *ends, None)
            return flat[..., 0, :]
        backward = torch.ops.aten.avg_pool2d_backward if n == 2 else torch.ops.aten.avg_pool3d_backward
        r: Tensor = backward(s, like, module.kernel_size, module.stride, module.padding, *ends, module.divisor_override)
        return r


#: The backward pass of a threshold: several times as fast as torch.where.
_threshold = torch.ops.aten.threshold_backward


def gated(v: Tensor, gate: Tensor, out: Tensor | None = None) -> Tensor:
    """Return v where the gate is above 0, else 0."""
    kept: Tensor = _threshold.default(v, gate, 0) if out is None else _threshold.grad_input(v, gate, 0, grad_input=out)
    return kept


_KNOWN: dict[Callable[..., Tensor], type[Layer]] = {
    nn.Linear.forward: LinearLayer,
    nn.Conv1d.forward: ConvLayer,
    nn.Conv2d.forward: ConvLayer,
    nn.Conv3d.forward: ConvLayer,
    nn.ConvTranspose1d.forward: ConvTransposeLayer,
    nn.ConvTranspose2d.forward: ConvTransposeLayer,
    nn.ConvTranspose3d.forward: ConvTransposeLayer,
    nn.BatchNorm1d.forward: BatchNormLayer,
    nn.ReLU.forward: ReLULayer,
    nn.AvgPool1d.forward: PoolLayer,
    nn.AvgPool2d.forward: PoolLayer,
    nn.AvgPool3d.forward: PoolLayer,
}
_CONVOLUTIONS = {nn.Conv1d._conv_forward, nn.Conv2d._conv_forward, nn.Conv3d._conv_forward}


def layer_type(module: nn.Module) -> type[Layer]:
    """Return the layer class for ``module``. A subclass with a forward method of its own is traced."""
    if "forward" in module.__dict__:
        return TracedLayer
    found = _KNOWN.get(type(module).forward, TracedLayer)
    if found is ConvLayer and getattr(type(module), "_conv_forward", None) not in _CONVOLUTIONS:
        return TracedLayer
    if found is BatchNormLayer and (module.training or module.running_mean is None):
        return TracedLayer
    if found is ReLULayer and module.inplace:
        return TracedLayer
    return found
