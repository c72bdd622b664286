"""The data that a layer is asked about, and its weights. All randomness of the verifier is here."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from verify.model import Problem
from verify.questions.layers import LayerCase

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Kinds of data. Relevance has both signs and exact zeros in all of them, and nothing to do with the output.
KINDS = {
    "signed": "inputs of both signs",
    "nonnegative": "inputs as after a ReLU, exact zeros among them",
    "nonpositive": "no input above zero",
    "zeros": "small integers: exact zeros everywhere, outputs that cancel to zero exactly, a dead unit",
    "single": "one input other than zero, so that one contribution is all of an output",
}
#: Kinds of which one or the other half of a signed rule is empty.
ONE_SIGN = {
    "positive": "inputs, weights and biases above zero: every contribution is positive",
    "negative": "weights above zero, inputs and biases below: every contribution is negative",
}
#: Ways to lay out or to size the signed data.
LAYOUTS = {
    "noncontiguous": "every other element of a wider tensor",
    "channels-last": "channels last in memory",
    "expanded": "one sample, expanded to a batch",
    "batch-of-1": "one sample",
    "batch-of-0": "no sample",
}

Draw = Callable[[LayerCase, str, str], Problem]


def draw(layer: LayerCase, kind: str, dtype: str, seed: int = 0, device: str = "cpu") -> Problem:
    """Draw the data of one case. In float32 it is that of float64, rounded."""
    source = _Source(zlib.crc32(f"{seed}/{layer.name}/{kind}".encode()), integers=kind == "zeros")
    target = getattr(torch, dtype)
    module, x = _module(layer, source), _inputs(layer, kind, source)
    if kind in ONE_SIGN:
        x = _one_sign(module, x, kind)
    with torch.no_grad():
        if source.integers:
            _cancel(module, x)
        shape = module(x).shape  # in float64: torch may not have the layer in every dtype
    module, x = module.to(device, target), _layout(x.to(device, target), kind)
    relevance = torch.randn(tuple(shape), generator=source.generator, dtype=torch.float64)
    relevance = relevance * (torch.rand(tuple(shape), generator=source.generator) > 0.2)  # a fifth is zero
    if target == torch.float16:
        relevance = relevance / 256  # R / 1e-6 stays in range
    return Problem(module, x, relevance.to(device, target), layer.batched)


class _Source:
    """Where the numbers of one case come from: normal ones, or small integers."""

    def __init__(self, seed: int, *, integers: bool) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.integers = integers

    def __call__(self, shape: Sequence[int], scale: float = 1.0) -> Tensor:
        if self.integers:
            return torch.randint(-2, 3, tuple(shape), generator=self.generator).double()
        return scale * torch.randn(tuple(shape), generator=self.generator, dtype=torch.float64)


def _module(layer: LayerCase, source: _Source) -> nn.Module:
    module = layer.build().double().eval()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(source(parameter.shape, 0.5 if name == "bias" else 1.0))
            if source.integers:
                parameter[0] = 0.0  # a dead unit: no weights, no bias
        for name, buffer in module.named_buffers():
            if name == "running_mean":
                buffer.copy_(source(buffer.shape, 0.5))
            elif name == "running_var":
                buffer.copy_(1.0 + source(buffer.shape).square())
    return module


def _one_sign(module: nn.Module, x: Tensor, kind: str) -> Tensor:
    sign = 1 if kind == "positive" else -1
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(parameter.abs() * (sign if name == "bias" else 1))
    return sign * x.abs()


def _cancel(module: nn.Module, x: Tensor) -> None:
    """Choose the second unit's bias so that its first output is zero though its contributions are not."""
    bias = getattr(module, "bias", None)
    if (
        isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d)
        or not isinstance(bias, Tensor)
        or len(bias) < 2
    ):
        return
    z = module(x)
    channel = -1 if isinstance(module, nn.Linear) else -1 - len(getattr(module, "kernel_size", ()))
    bias[1] -= z.movedim(channel, -1).reshape(-1, len(bias))[0, 1]


def _inputs(layer: LayerCase, kind: str, source: _Source) -> Tensor:
    shape = list(layer.shape)
    if kind in {"batch-of-1", "batch-of-0"}:
        shape[0] = int(kind[-1])
    x = source(shape)
    if kind == "nonnegative":
        return x.clamp(min=0)
    if kind == "nonpositive":
        return -x.abs()
    if kind == "single":
        return x * _one_per_sample(x, layer, source.generator)
    return x


def _layout(x: Tensor, kind: str) -> Tensor:
    if kind == "expanded":
        return x[:1].expand(x.shape)
    if kind == "noncontiguous":
        wide = x.new_zeros(*x.shape[:-1], 2 * x.shape[-1])
        wide[..., ::2] = x
        return wide[..., ::2]
    if kind == "channels-last" and x.ndim in {4, 5}:
        return x.to(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)
    return x


def _one_per_sample(x: Tensor, layer: LayerCase, generator: torch.Generator) -> Tensor:
    samples = x.shape[0] if layer.batched else 1
    mask = torch.zeros(samples, x.numel() // samples, dtype=x.dtype)
    mask[torch.arange(samples), torch.randint(mask.shape[1], (samples,), generator=generator)] = 1
    return mask.view(x.shape)
