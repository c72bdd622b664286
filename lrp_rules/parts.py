"""What a rule is: parts, each with one denominator and one way back.

    d = sum A(change(w)) v + bias(b)        s = R / S(d)
    r = sum over parts of  coefficient * sum v * A(change(w))^T s

A term is a change of the parameters and a vector v made of the input. Where a part has a gate, s is 0 at the outputs
where the gate is closed.
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

#: Of a tensor, to one of its shape: a weight, a bias, or the input.
Change = Callable[..., "Tensor"]


class Vector(Protocol):
    """A vector that is not just a change of the input."""

    def at(self, layer: Layer) -> Tensor:
        """Return v for one call of the layer."""


class Part(NamedTuple):
    """One denominator and what flows back through it."""

    terms: tuple[Term, ...]
    #: Of the bias, in the denominator; None where the bias has no share in it.
    bias: Change | None = None
    coefficient: float = 1.0
    #: 1: open where the layer's real output z > 0; -1: where z < 0; 0: open everywhere.
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
    """v + g v+ or v + g v-, as a change that is known by its g: what was changed so once is not changed again."""

    g: float
    part: Change

    def __call__(self, v: Tensor, out: Tensor | None = None) -> Tensor:
        return torch.add(v, self.part(v), alpha=self.g, out=out)


def gamma(g: float) -> Parts:
    """Return the parts of Gamma: here, since the rule declares them and a faster way of it has to know them."""
    up, down = Increased(g, positive), Increased(g, negative)
    above = Part(((up, positive), (down, negative)), bias=up, gate=+1)
    below = Part(((down, positive), (up, negative)), bias=down, gate=-1)
    return above, below
