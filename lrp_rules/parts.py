"""What a rule is made of: parts. Each has one denominator, through which its relevance flows back.

    d = sum A(change(w)) v + bias(b)        s = R / S(d)
    r = sum over parts of  coefficient * sum v * A(change(w))^T s

A term is a pair: a change of the parameters, and a vector v that is made from the input. If a part has a gate, s is 0
at outputs where the gate is closed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from lrp_rules.layers.layer import Layer

    Parts = tuple["Part", ...]
    Term = tuple["Change", "Change | Vector"]

#: Maps a tensor (a weight, a bias, or the input) to one of the same shape.
Change = Callable[..., "Tensor"]


class Vector(Protocol):
    """A vector that needs more than the input, such as bounds."""

    def at(self, layer: Layer) -> Tensor:
        """Return v for one call of the layer."""


class Part(NamedTuple):
    """One denominator, and the relevance that flows back through it."""

    terms: tuple[Term, ...]
    #: Change of the bias in the denominator; None if the bias is not in it.
    bias: Change | None = None
    coefficient: float = 1.0
    #: 1: open where the layer's real output z > 0. -1: open where z < 0. 0: open everywhere.
    gate: int = 0

    @property
    def changes_weights(self) -> bool:
        """Whether it uses other weights than the layer's own."""
        return any(change is not same for change, _ in self.terms)


def same(v: Tensor, out: Tensor | None = None) -> Tensor:
    """Return v."""
    return v if out is None else out.copy_(v)


def positive(v: Tensor, out: Tensor | None = None) -> Tensor:
    """Return v+."""
    return torch.clamp_min(v, 0, out=out)


def negative(v: Tensor, out: Tensor | None = None) -> Tensor:
    """Return v-."""
    return torch.clamp_max(v, 0, out=out)


squared: Change = torch.square


def one(v: Tensor, out: Tensor | None = None) -> Tensor:
    """Return ones."""
    return torch.ones_like(v) if out is None else out.fill_(1)


@dataclass(frozen=True)
class Increased:
    """The change v + g v+ or v + g v-. Two with equal fields are equal, so a changed weight can be reused."""

    g: float
    part: Change

    def __call__(self, v: Tensor, out: Tensor | None = None) -> Tensor:
        return torch.add(v, self.part(v), alpha=self.g, out=out)


def gamma(g: float) -> Parts:
    """Return the parts of Gamma. Both the rule and a rewriting (``two_maps``) need them."""
    up, down = Increased(g, positive), Increased(g, negative)
    above = Part(((up, positive), (down, negative)), bias=up, gate=+1)
    below = Part(((down, positive), (up, negative)), bias=down, gate=-1)
    return above, below
