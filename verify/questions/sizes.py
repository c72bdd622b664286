"""Large layers: on both sides of the sizes at which an implementation may change its way, and with seams to forget.

Sizes are no powers of two, so that a block, a tile or a quarter leaves a remainder.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn

from verify.model import Problem
from verify.questions.covering.numbers import Source
from verify.questions.layers import LayerCase

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass(frozen=True)
class Large:
    """A large layer with what it is there for."""

    layer: LayerCase
    why: str


def _large(name: str, family: str, module: Callable[[], nn.Module], *shape: int, why: str) -> Large:
    return Large(LayerCase(name, family, module, shape), why)


LAYERS: tuple[Large, ...] = (
    _large("linear-1030-700", "Linear", partial(nn.Linear, 1030, 700), 3, 1030, why="above 2^19 weights"),
    _large(
        "linear-2050-1030-b33",
        "Linear",
        partial(nn.Linear, 2050, 1030),
        33,
        2050,
        why="above 2^21 weights and 2^26 products",
    ),
    _large("linear-4096-1100", "Linear", partial(nn.Linear, 4096, 1100), 2, 4096, why="above 2^22 weights"),
    _large("linear-300-200-b65", "Linear", partial(nn.Linear, 300, 200), 65, 300, why="a batch above 64"),
    _large("linear-130-70-tokens", "Linear", partial(nn.Linear, 130, 70), 3, 197, 130, why="many positions"),
    _large(
        "conv2d-64-64-at-56", "Conv2d", partial(nn.Conv2d, 64, 64, 3, padding=1), 2, 64, 56, 56, why="above 2^20 pairs"
    ),
    _large(
        "conv2d-3-33-k7-s2-at-112",
        "Conv2d",
        partial(nn.Conv2d, 3, 33, 7, stride=2, padding=3),
        2,
        3,
        112,
        113,
        why="few channels, a wide border",
    ),
    _large(
        "conv2d-17-18-b33",
        "Conv2d",
        partial(nn.Conv2d, 17, 18, 3, padding=1),
        33,
        17,
        12,
        11,
        why="above 16 channels, a batch above 32",
    ),
    _large(
        "conv2d-depthwise-at-40",
        "Conv2d",
        partial(nn.Conv2d, 48, 48, 3, padding=1, groups=48),
        5,
        48,
        40,
        41,
        why="many groups",
    ),
    _large(
        "conv2d-circular-at-48",
        "Conv2d",
        partial(nn.Conv2d, 10, 12, 5, padding=2, padding_mode="circular", groups=2),
        3,
        10,
        48,
        50,
        why="padding that is copied",
    ),
    _large("conv1d-k31-at-4099", "Conv1d", partial(nn.Conv1d, 5, 6, 31, padding=15), 2, 5, 4099, why="a long kernel"),
    _large(
        "conv3d-at-18", "Conv3d", partial(nn.Conv3d, 5, 6, 3, padding=1), 1, 5, 18, 17, 19, why="one sample of volumes"
    ),
    _large(
        "convtranspose2d-at-28",
        "ConvTranspose2d",
        partial(nn.ConvTranspose2d, 24, 18, 4, stride=2, padding=1),
        3,
        24,
        28,
        27,
        why="outputs that overlap",
    ),
    _large("batchnorm2d-at-56", "BatchNorm", partial(nn.BatchNorm2d, 66), 5, 66, 57, 56, why="above 2^20 entries"),
)


def draw(large: Large, dtype: str, kind: str, seed: int, device: str = "cpu") -> Problem:
    """Draw the data of a large layer; of both signs, or at kind ``nonnegative`` an input as after a ReLU."""
    layer = large.layer
    source = Source(f"{seed}/{layer.name}/{kind}")
    module = layer.build().double().eval()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            stream = source.stream(name)
            parameter.copy_(torch.randn(parameter.shape, generator=stream, dtype=torch.float64))
        for name, buffer in module.named_buffers():
            if name == "running_var":
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=source.stream(name), dtype=torch.float64))
            elif name == "running_mean":
                buffer.copy_(torch.randn(buffer.shape, generator=source.stream(name), dtype=torch.float64))
    target = getattr(torch, dtype)
    x = torch.randn(layer.shape, generator=source.stream("x"), dtype=torch.float64)
    x = x.clamp(min=0) if kind == "nonnegative" else x
    module = module.to(device, target)
    x = x.to(device, target)
    with torch.no_grad():
        shape = tuple(module(x[:1]).shape[1:])
    R = torch.randn((layer.shape[0], *shape), generator=source.stream("R"), dtype=torch.float64)
    return Problem(module, x, R.to(device, target), batched=True)


def samples(count: int) -> list[int]:
    """Return which samples are looked at: the ends, or the middle and the end of a large batch."""
    return sorted({count // 2, count - 1} if count > 8 else {0, count - 1})


def places(layer: LayerCase) -> list[int]:
    """Return which positions of a sample are looked at: corners, edges, next to them, and some between."""
    lengths = layer.shape[1:-1] if layer.family == "Linear" else layer.shape[2:]
    if not lengths:
        return [0]
    return list(dict.fromkeys(_flat(position, lengths) for position in _positions(lengths)))


def _positions(lengths: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    yield (0,) * len(lengths)
    yield tuple(n - 1 for n in lengths)
    yield (*(0 for _ in lengths[:-1]), lengths[-1] - 1)
    yield (lengths[0] - 2, *(n // 2 for n in lengths[1:]))
    yield tuple(n // 2 for n in lengths)
    yield tuple((5 * n) // 7 for n in lengths)


def _flat(position: tuple[int, ...], lengths: tuple[int, ...]) -> int:
    place = 0
    for at, length in zip(position, lengths, strict=True):
        place = place * length + at
    return place
