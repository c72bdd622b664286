"""The numbers of a row: weights, inputs and relevances of the signs and sizes that its levels name."""

from __future__ import annotations

import math
import zlib
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


class Source:
    """Where the numbers of one case come from; each thing that is drawn has a stream of its own."""

    def __init__(self, text: str) -> None:
        self.text = text

    def stream(self, name: str) -> torch.Generator:
        """Return the stream of that name."""
        return torch.Generator().manual_seed(zlib.crc32(f"{self.text}/{name}".encode()))

    def within(self, name: str, least: float, most: float) -> float:
        """Return a number from a range, log-uniformly."""
        share = torch.rand((), generator=self.stream(name), dtype=torch.float64).item()
        return math.exp(math.log(least) + share * (math.log(most) - math.log(least)))


def ranged(source: Source, name: str, level: str) -> float:
    """Return the number that a level is, or one from the range that it is."""
    least, dots, most = level.partition("..")
    return source.within(name, float(least), float(most)) if dots else float(level)


def _normal(generator: torch.Generator, shape: Sequence[int]) -> Tensor:
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float64)


def _integers(generator: torch.Generator, shape: Sequence[int]) -> Tensor:
    return torch.randint(-2, 3, tuple(shape), generator=generator).double()


def _spread(generator: torch.Generator, shape: Sequence[int], least: int, most: int) -> Tensor:
    return _normal(generator, shape) * torch.randint(least, most + 1, tuple(shape), generator=generator).double().exp2()


def parameters(module: nn.Module, row: Mapping[str, str], source: Source) -> None:
    """Fill the parameters and buffers of a layer, in float64."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            level = row.get("w" if name == "weight" else "b", "signed")
            parameter.copy_(_parameter(level, source.stream(name), parameter.shape, bias=name != "weight"))
        for name, buffer in module.named_buffers():
            if name == "running_mean":
                buffer.copy_(0.5 * _normal(source.stream(name), buffer.shape))
            elif name == "running_var":
                buffer.copy_(0.5 + _normal(source.stream(name), buffer.shape).square())


def _parameter(level: str, generator: torch.Generator, shape: Sequence[int], *, bias: bool) -> Tensor:
    values = _normal(generator, shape) * (0.5 if bias else 1.0)
    if level == "spread":
        return _spread(generator, shape, -12, 3)
    if level == "integers":
        return _integers(generator, shape)
    if level == "dead":
        values[0] = 0.0
        # the first of the inputs, too, where there is more than one
        if values.ndim > 1 and values.shape[1] > 1:
            values[:, 0] = 0.0
        return values
    return _PARAMETERS[level](values)


_PARAMETERS: dict[str, Callable[[Tensor], Tensor]] = {
    "signed": lambda v: v,
    "positive": lambda v: v.abs() + 0.0625,
    "negative": lambda v: -v.abs() - 0.0625,
    "small": lambda v: v * 1e-5,
    "large": lambda v: v * 100,
    "zero": torch.zeros_like,
}


def inputs(level: str, source: Source, shape: Sequence[int], *, batched: bool) -> Tensor:
    """Return an input in float64, with exact zeros and -0.0 where its level leaves them."""
    generator = source.stream("x")
    x = _normal(generator, shape)
    if level == "single":
        return x * _one_per_sample(x, generator, batched=batched)
    if level == "sample-zero":
        x[-1] = 0.0
        return x
    if level == "integers":
        return _integers(generator, shape)
    if level == "spread":
        return _spread(generator, shape, -12, 6)
    if level in _SCALES:
        return x * source.within("x-scale", *_SCALES[level])
    return _INPUTS[level](x)


_SCALES = {"large": (300.0, 3e5), "tiny": (1e-9, 1e-4)}
_INPUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "signed": lambda x: x,
    "positive": lambda x: x.abs() + 0.25,
    "negative": lambda x: -x.abs() - 0.25,
    "nonnegative": lambda x: x.clamp(min=0),
    "nonpositive": lambda x: -x.abs(),
    "zero": lambda x: x * 0,
}


def _samples(values: Tensor, *, batched: bool) -> Tensor:
    return values.reshape(values.shape[0] if batched else 1, -1)


def _one_per_sample(like: Tensor, generator: torch.Generator, *, batched: bool) -> Tensor:
    mask = torch.zeros_like(_samples(like, batched=batched))
    mask[torch.arange(len(mask)), torch.randint(mask.shape[1], (len(mask),), generator=generator)] = 1.0
    return mask.reshape(like.shape)


def relevance(level: str, source: Source, z: Tensor, *, batched: bool) -> Tensor:
    """Return a relevance in float64 of the shape of z, which it has nothing to do with, but at the level of output."""
    generator = source.stream("R")
    R = _normal(generator, z.shape)
    R = R * (torch.rand(tuple(z.shape), generator=generator) > 0.2)  # a fifth is zero
    if level == "output":
        return z.detach().clone()
    if level == "one-hot":
        return _one_per_sample(R, generator, batched=batched)
    if level == "sample-zero":
        R[0] = 0.0
        return R
    if level == "spread":
        return _spread(generator, z.shape, -30, 12)
    if level == "sum-zero":
        rows = (_samples(R, batched=batched) * 64).round() / 64  # so that the sum is zero, and not nearly
        rows[:, 0] -= rows.sum(1)
        return rows.reshape(z.shape)
    return _RELEVANCES[level](R)


_RELEVANCES: dict[str, Callable[[Tensor], Tensor]] = {
    "signed": lambda R: R,
    "nonnegative": torch.abs,
    "nonpositive": lambda R: -R.abs(),
    "positive": lambda R: R.abs() + 0.0625,
    "tiny": lambda R: R * 1e-10,
}


def laid_out(x: Tensor, level: str) -> Tensor:
    """Return the same values in another layout of memory."""
    match level:
        case "strided":
            wide = x.new_zeros(*x.shape[:-1], 2 * x.shape[-1])
            wide[..., ::2] = x
            return wide[..., ::2]
        case "channels-last":
            return x.to(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)
        case "expanded":
            return x[:1].expand(x.shape)
        case "offset":
            longer = torch.cat([x.new_full((3,), 7.0), x.reshape(-1), x.new_full((2,), -5.0)])
            return longer[3:-2].view(x.shape)
        case "transposed":
            return x.movedim(-1, 0).contiguous().movedim(0, -1)
    return x


def box(level: str, source: Source, shape: Sequence[int], *, batched: bool) -> dict[str, Any]:
    """Return the bounds of a box, numbers or tensors of float64; low is below high everywhere."""
    if level in _BOXES:
        return dict(zip(("low", "high"), _BOXES[level], strict=True))
    # a sample's axes: the first of them holds channels
    leading = (1,) * batched
    channels = (*leading, shape[len(leading)], *(1,) * (len(shape) - len(leading) - 1))
    sizes: dict[str, Sequence[int]] = {
        "scalars": (), "channels": channels, "mixed": channels, "samples": shape[:1], "entries": shape,
        "longer": (shape[0] + 2, *shape[1:]),
    }  # fmt: skip
    generator = source.stream("box")
    low, high = (
        middle + torch.rand(tuple(sizes[level]), generator=generator, dtype=torch.float64) for middle in (-3.0, 2.0)
    )
    return {"low": low, "high": 2.6 if level == "mixed" else high}


#: With decimals that float32 does not have, and boxes that do not hold zero.
_BOXES: dict[str, tuple[float, float]] = {
    "around": (-2.1, 2.6), "0..1": (0.0, 1.0), "above": (0.3, 1.7), "below": (-2.1, -0.4), "far": (-1300.1, 900.7),
    "integers": (-4, 3),
}  # fmt: skip
