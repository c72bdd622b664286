"""Convolutions and transposed convolutions as matrices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lrp_rules.layers.blocks import plain, stands_for_many
from lrp_rules.layers.layer import TERMS, Grid, GridMap, Map, Matrix, WeightedLayer, nothing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.nn.modules.conv import _ConvNd

    from lrp_rules.layers.layer import Change


#: Fewer weights than these are not added up: it would not be faster.
ADDED = 2**12
#: With up to this many input channels, memory limits the speed of a convolution, and not arithmetic.
FEW = 16


@dataclass
class WindowLayer(WeightedLayer):
    """What convolutions and transposed convolutions have in common."""

    module: _ConvNd

    #: The dimension of the weight that has an entry for each channel of the input.
    input_dim: ClassVar[int]

    def matrix_of_ones(self) -> Matrix:
        # A(1) has rank one in the channels: it adds up all inputs of a group, and all outputs of the group are equal
        weight, groups, dim = self.parameters["weight"], self.module.groups, -self._dims - 1
        assert weight is not None
        thin = self.but(
            inputs=(self.x.narrow(dim, 0, groups),),
            given={"weight": weight.new_ones((groups, 1, *weight.shape[2:])), "bias": None},
            zero_params=(),
        )
        A, inside, outside = thin.matrix(), self.x.shape[dim] // groups, self.shape[dim] // groups
        return Map(
            lambda v: _spread(A @ _gather(v, groups, dim), outside, groups, dim),
            lambda s: _spread(A.T @ _gather(s, groups, dim), inside, groups, dim),
        )

    def ones(self) -> Tensor:
        one = self.x[:1] if self.batched else self.x
        return one.new_ones(()).expand(one.shape)

    def _product(self, v: Tensor, weight: Tensor) -> Tensor:
        """Return A(weight) v. If all channels of v are one tensor, the weights are added up first."""
        dim, groups = -self._dims - 1, self.module.groups
        if v.stride(dim) == 0 and v.shape[dim] > groups and weight.numel() > ADDED:
            # a convolution's weight holds the input channels of one group, a transposed convolution's those of all
            in_weight = 1 if self.input_dim == 1 else groups
            v, weight = v.narrow(dim, 0, groups), _gather(weight, in_weight, self.input_dim - weight.ndim)
        return self.run_with(v, weight, None)

    def excess(self) -> Tensor | None:
        x, weight, bias, dim = self.x, self.given["weight"], self.given["bias"], -self._dims - 1
        assert weight is not None
        assert bias is not None
        some = -(-TERMS // weight[0, 0].numel())
        if x.device.type != "cpu" or self.module.groups > 1 or x.shape[dim] <= some:
            return None
        return self.run_with(x.narrow(dim, 0, some).abs(), weight.narrow(self.input_dim, 0, some).abs(), -bias.abs())


def _side_by_side(tensors: Sequence[Tensor], dim: int) -> Tensor:
    # torch copies a single tensor, too
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim)


def _gather(v: Tensor, groups: int, dim: int) -> Tensor:
    """Add up the channels of each group; ``dim`` counts from the end."""
    if v.shape[dim] == groups:
        return v
    if groups > 1:  # is_grads_batched does not support unflatten
        v = v.reshape(*v.shape[:dim], groups, v.shape[dim] // groups, *v.shape[v.ndim + dim + 1 :])
    gathered: Tensor = v.sum(dim, keepdim=groups == 1)
    return gathered


def _spread(v: Tensor, count: int, groups: int, dim: int) -> Tensor:
    """Give each of the ``count`` channels of a group the value of the group; a single group is left to broadcast."""
    return v if groups == 1 or count == 1 else v.repeat_interleave(count, dim)


@dataclass
class ConvLayer(WindowLayer):
    """:class:`torch.nn.Conv1d`, Conv2d and Conv3d, with every option they have."""

    module: nn.Conv1d | nn.Conv2d | nn.Conv3d

    input_dim: ClassVar[int] = 1

    def run_with(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        output: Tensor = self.module._conv_forward(x, weight, bias)
        return output

    def matrix(self, change: Change | None = None) -> Matrix:
        weight, module, n = self._weight(change), self.module, self._dims
        convolve = (F.conv1d, F.conv2d, F.conv3d)[n - 1]
        pads, mode = self._pads(), module.padding_mode
        # a transposed convolution can leave out what was padded with zeros, as many on either side; any other padding
        # is a map of its own before it
        inside = mode == "zeros" and all(before == after for before, after in pads)
        padding = [before for before, _ in pads] if inside else [0] * n
        channels, *spatial = self.x.shape[-n - 1 :]
        added = [0 if inside else sum(pair) for pair in pads]
        padded = [size + more for size, more in zip(spatial, added, strict=True)]

        def transposed(s: Tensor) -> Tensor:
            if inside and len(weight) == channels == max(module.stride) == 1 and s.dtype != torch.bfloat16:
                # torch takes several times as long for the transpose of a single channel as for a convolution, and with
                # the kernel turned around, this is one; but one of bfloat16 spreads NaN further than it reaches
                sizes = zip(module.dilation, module.kernel_size, padding, strict=True)
                around = [d * (k - 1) - p for d, k, p in sizes]
                if min(around) >= 0:
                    turned = weight.flip(list(range(2, n + 2)))
                    return convolve(s, turned, None, module.stride, around, module.dilation)
            batch = s if s.ndim == n + 2 else s[None]
            size = (batch.shape[0], channels, *padded)
            # only shape and layout of the input matter
            like = self.x if self.x.shape == size else batch.new_empty(size)
            options = (module.stride, padding, module.dilation, False, [0] * n, module.groups)
            r: Tensor = torch.ops.aten.convolution_backward(batch, like, weight, None, *options, [True, False, False])[
                0
            ]
            if not inside:
                outside = [side for pair in reversed(pads) for side in pair]
                r = _pad_transposed(r, (batch.shape[0], channels, *spatial), outside, mode)
            return r if s.ndim == n + 2 else r[0]

        def forward(v: Tensor) -> Tensor:
            alone = v.ndim == 5 and v.shape[0] == 1 and v.dtype == torch.float32
            if alone and v.device.type == "cpu" and not plain():
                # for a single 3d sample, torch uses code that takes three times as long as its code for two samples
                return self._product(v.expand(2, *v.shape[1:]), weight)[:1]
            return self._product(v, weight)

        return Map(forward, transposed, fresh=True)

    def grid(self, *rows: Sequence[Change | None]) -> Grid:
        dim, count = -self._dims - 1, len(rows[0])
        channels = self.x.shape[dim]
        if len(rows) * count == 1 or self.module.groups > 1 or channels > FEW or any(nothing in row for row in rows):
            return super().grid(*rows)
        # a convolution with few channels takes as long with twice as many: put both side by side, the sum is free
        weight = _side_by_side([_side_by_side([self._weight(change) for change in row], 1) for row in rows], 0)
        wide = self.x.narrow(dim, 0, 1).expand(*self.x.shape[:dim], count * channels, *self.x.shape[dim + 1 :])
        A = self.but(
            inputs=(wide,), given={"weight": weight, "bias": None}, zero_params=(), memo={}, scratch=None
        ).matrix()
        return GridMap(
            lambda vectors: (A @ _side_by_side(vectors, dim)).chunk(len(rows), dim),
            lambda s: (A.T @ _side_by_side(s, dim)).split(channels, dim),
        )

    def _pads(self) -> list[tuple[int, int]]:
        """How much is padded before and after, for each dimension."""
        module = self.module
        if module.padding == "valid":
            return [(0, 0) for _ in module.kernel_size]
        if module.padding == "same":
            # if the total is odd, the extra element is at the end
            totals = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
            return [(total // 2, total - total // 2) for total in totals]
        assert not isinstance(module.padding, str)
        return [(p, p) for p in module.padding]


def _pad_transposed(g: Tensor, shape: tuple[int, ...], pads: list[int], mode: str) -> Tensor:
    """Transpose of ``F.pad``: each padded element is added to the element that it is a copy of."""
    if mode == "zeros":
        return F.pad(g, [-side for side in pads])
    if stands_for_many():  # where autograd is not available
        return _pad_transposed_by_index(g, shape, pads, mode)
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        v = g.new_zeros(shape, requires_grad=True)
        padded = F.pad(v, pads, mode=mode)
    return torch.autograd.grad(padded, v, g, create_graph=create_graph)[0]


def _pad_transposed_by_index(g: Tensor, shape: tuple[int, ...], pads: list[int], mode: str) -> Tensor:
    for dim, sides in zip(range(-1, -len(pads) // 2 - 1, -1), zip(pads[::2], pads[1::2], strict=True), strict=True):
        size = shape[dim]
        # float64 represents every index exactly
        places = torch.arange(size, dtype=torch.float64, device=g.device)[None, None]
        index = F.pad(places, sides, mode=mode)[0, 0].long()
        zeros = torch.zeros([*g.shape[:dim], size, *g.shape[g.ndim + dim + 1 :]], dtype=g.dtype, device=g.device)
        g = zeros.index_add(g.ndim + dim, index, g)
    return g


@dataclass
class ConvTransposeLayer(WindowLayer):
    """:class:`torch.nn.ConvTranspose1d`, ConvTranspose2d and ConvTranspose3d, also with ``output_size`` in the call."""

    module: nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d

    input_dim: ClassVar[int] = 0

    def excess(self) -> Tensor | None:
        # if windows do not overlap, an output has few products for each channel, and the check would take too long
        return super().excess() if max(self.module.stride) == 1 else None

    def run_with(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        module, n = self.module, self._dims
        run = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[n - 1]
        assert not isinstance(module.padding, str)
        padding: tuple[int, ...] = module.padding
        # output_size is an argument of the call, so only the shape of the output tells how much was added at the end
        sizes = zip(self.shape[-n:], x.shape[-n:], strict=True)
        geometry = zip(sizes, module.stride, padding, module.dilation, module.kernel_size, strict=True)
        extra = [out - ((size - 1) * s - 2 * p + d * (k - 1) + 1) for (out, size), s, p, d, k in geometry]
        return run(x, weight, bias, module.stride, padding, extra, module.groups, module.dilation)

    def matrix(self, change: Change | None = None) -> Matrix:
        weight, module, n = self._weight(change), self.module, self._dims
        convolve = (F.conv1d, F.conv2d, F.conv3d)[n - 1]

        def transposed(s: Tensor) -> Tensor:
            r = convolve(s, weight, None, module.stride, module.padding, module.dilation, module.groups)
            # an output_padding of one stride or more adds outputs that no input reaches
            for dim, size in enumerate(self.x.shape[-n:], start=-n):
                r = r.narrow(dim, 0, size)
            return r

        return Map(lambda v: self._product(v, weight), transposed, fresh=True)
