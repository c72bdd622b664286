"""Linear layers in float64, of any size, and batch norms as a part of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Callable

BatchNorm = nn.modules.batchnorm._BatchNorm
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class Layer(NamedTuple):
    """A linear layer: weight, bias, v -> A(weight) v, and the most products in a sum of it or of its transpose."""

    weight: Tensor
    bias: Tensor | None
    apply: Callable[[Tensor, Tensor], Tensor]
    products: int

    def constant(self, bias: Tensor, like: Tensor) -> Tensor:
        """Return a bias as it is added to the output."""
        if like.ndim < 2 or self.apply.__name__ == "linear":
            return bias.expand_as(like)
        return bias.view(-1, *[1] * (like.ndim - 2)).expand_as(like)


def layer_of(module: nn.Module) -> Layer | None:
    """Return a linear layer in float64; None for other modules."""
    if not isinstance(module, (nn.Linear, *_CONVOLUTIONS, *_TRANSPOSED)):
        return None
    weight = module.weight.detach().double()
    bias = None if module.bias is None else module.bias.detach().double()
    first, second, taps = weight.shape[0], weight.shape[1], weight[0, 0].numel()
    if isinstance(module, nn.Linear):

        def linear(w: Tensor, v: Tensor) -> Tensor:
            return F.linear(v, w)

        return Layer(weight, bias, linear, max(weight.shape))
    groups = module.groups
    if isinstance(module, _CONVOLUTIONS):
        conv: Any = module

        def convolve(w: Tensor, v: Tensor) -> Tensor:
            return conv._conv_forward(v, w, None)  # type: ignore[no-any-return]

        return Layer(weight, bias, convolve, taps * max(first // groups, second))
    transpose = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[weight.ndim - 3]
    m: Any = module

    def spread(w: Tensor, v: Tensor) -> Tensor:
        return transpose(v, w, None, m.stride, m.padding, m.output_padding, groups, m.dilation)

    return Layer(weight, bias, spread, taps * max(first // groups, second))


def folded(layer: Layer, module: nn.Module, norm: BatchNorm) -> Layer:
    """Return a layer with the batch norm behind it in it."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    own = torch.ones_like(mean) if norm.weight is None else norm.weight.detach().double()
    scale = own / (variance + norm.eps).sqrt()
    shift = torch.zeros_like(mean) if norm.bias is None else norm.bias.detach().double()
    bias = ((0 if layer.bias is None else layer.bias) - mean) * scale + shift
    if isinstance(module, _TRANSPOSED):
        groups = int(module.groups)
        weight = layer.weight.unflatten(0, (groups, -1)) * scale.view(groups, 1, -1, *[1] * (layer.weight.ndim - 2))
        return layer._replace(weight=weight.flatten(0, 1), bias=bias)
    return layer._replace(weight=layer.weight * scale.view(-1, *[1] * (layer.weight.ndim - 1)), bias=bias)
