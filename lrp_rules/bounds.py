"""Bounds of an input, such as those of pixels, and the vectors that ZBox makes from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lrp_rules.layers.numbers import number

if TYPE_CHECKING:
    from torch import Tensor

    from lrp_rules.layers.layer import Layer


@dataclass(frozen=True, eq=False)
class Bound:
    """A number, or a tensor that broadcasts to the input."""

    value: Tensor
    name: str

    @classmethod
    def of(cls, value: float | Tensor, name: str) -> Bound:
        """Return a bound. A number keeps all its digits until the dtype of the input is known."""
        return cls(value if isinstance(value, torch.Tensor) else torch.as_tensor(value, dtype=torch.float64), name)

    @property
    def shared(self) -> bool:
        """Whether the bound is the same for all samples."""
        return self.value.ndim == 0 or len(self.value) == 1

    def at(self, layer: Layer) -> Tensor:
        """Return the bound in a shape that broadcasts to x.

        Raises
        ------
        ValueError
            If it does not broadcast.

        """
        value, x = self.value, layer.x
        if value.ndim == 0 and value.is_cpu and x.is_cpu and not value.requires_grad:
            return number(value.item(), x.dtype)
        if value.ndim == 0 and value.is_cpu and not value.requires_grad:
            return x.new_full((), value.item())  # a copy to another device would be waited for
        expanded = value.to(x)
        if 0 < value.ndim < x.ndim:
            expanded = expanded.view(value.shape + (1,) * (x.ndim - value.ndim))
        elif layer.batched and value.ndim == x.ndim and value.shape[0] > x.shape[0]:
            expanded = expanded[: x.shape[0]]
        try:
            expanded.expand_as(x)
        except RuntimeError:
            msg = (
                f"{self.name} has shape {tuple(value.shape)}, which does not broadcast to the input of "
                f"{layer.module}, of shape {tuple(x.shape)}. Give a number, or a tensor such as (1, channels, 1, 1)"
            )
            raise ValueError(msg) from None
        return expanded


@dataclass(frozen=True)
class Minus:
    """The vector -l of a bound l."""

    bound: Bound

    def at(self, layer: Layer) -> Tensor:
        """Return -l, as large as x."""
        return -self.bound.at(layer).expand_as(layer.x)


@dataclass(frozen=True)
class Distance:
    """The vector x - l of a bound l."""

    bound: Bound

    def at(self, layer: Layer) -> Tensor:
        """Return x - l."""
        return layer.x - self.bound.at(layer)
