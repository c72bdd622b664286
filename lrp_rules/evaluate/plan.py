"""Plans: how to compute the parts of a rule, all matrices in one grid, or in a way that ``rewriting`` found."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch

from lrp_rules.bounds import Distance, Minus
from lrp_rules.evaluate.declared import at
from lrp_rules.layers.blocks import into, whole
from lrp_rules.layers.known import gated
from lrp_rules.layers.layer import Grid, nothing
from lrp_rules.layers.numbers import times
from lrp_rules.parts import negative, one, positive, same
from lrp_rules.stabilizer import Stabilizer

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from lrp_rules.bounds import Bound
    from lrp_rules.layers.layer import Change, Layer, Tensors
    from lrp_rules.parts import Part, Parts


def takes_entries(stabilizer: Callable[[Tensor], Tensor]) -> bool:
    """Whether a stabilizer is known to look at one entry of a denominator at a time."""
    return isinstance(stabilizer, Stabilizer) and not stabilizer.norm_scale


class Plan(ABC):
    """A way to compute the parts: vectors, their coefficients, and r = sum v * c.

    A large layer is computed in blocks of samples or outputs, if formula and stabilizer treat these independently.
    """

    #: Whether samples are independent; whether the coefficients are a sum over outputs, in one ``A.T @ s``.
    samples_apart = True
    outputs_apart = True

    def __init__(self, parts: Parts, stabilizer: Callable[[Tensor], Tensor]) -> None:
        self.parts, self.stabilizer = parts, stabilizer
        self.changes_weights = any(part.changes_weights for part in parts)
        self.in_blocks = False

    @abstractmethod
    def vectors(self, layer: Layer) -> Tensors:
        """Return the vectors that share the relevance."""

    @abstractmethod
    def coefficients(self, layer: Layer, vectors: Tensors, R: Tensor) -> Tensors:
        """Return the coefficient of each vector."""

    def total(self, layer: Layer, vectors: Tensors, coefficients: Tensors, out: Tensor | None) -> Tensor:
        """Return r = sum v * c."""
        return layer.total(vectors, coefficients, out)

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        """Return the relevance of the input."""
        if not self.in_blocks:
            vectors = self.vectors(layer)
            return self.total(layer, vectors, self.coefficients(layer, vectors, R), None)
        return layer.by_samples(self._of_samples, R) if self.samples_apart else self._of_samples(layer, R)

    def _of_samples(self, layer: Layer, R: Tensor, out: Tensor | None = None) -> Tensor:
        vectors = self.vectors(layer)
        if self.outputs_apart:
            found = layer.by_outputs(self.coefficients, vectors, R, changes_weights=self.changes_weights)
        else:
            found = self.coefficients(layer, vectors, R)
        return self.total(layer, vectors, found, out)

    def shares(self, R: Tensor, d: Tensor) -> Tensor:
        """Return s = R / S(d). It may write over d."""
        S = self.stabilizer(d)
        # a callable of the user may keep a reference to what it returns
        own = type(self.stabilizer) is Stabilizer and S.shape == R.shape
        return torch.div(R, S, out=into(S) if own else None)


class Together(Plan):
    """All matrices in one grid: a row for each part, a column for each vector."""

    def __init__(self, parts: Parts, stabilizer: Callable[[Tensor], Tensor]) -> None:
        super().__init__(parts, stabilizer)
        self.columns = tuple(dict.fromkeys(vector for part in parts for _, vector in part.terms))
        self.rows = [self._row(part) for part in parts]
        self.has_bias = any(part.bias is not None for part in parts)
        bounds = [vector.bound for vector in self.columns if isinstance(vector, Minus | Distance)]
        self.samples_apart = all(bound.shared for bound in bounds)

    def _row(self, part: Part) -> list[Change | None]:
        changes = {vector: None if change is same else change for change, vector in part.terms}
        return [changes.get(vector, nothing) for vector in self.columns]

    def vectors(self, layer: Layer) -> Tensors:
        return [at(vector, layer) for vector in self.columns]

    def coefficients(self, layer: Layer, vectors: Tensors, R: Tensor) -> Tensors:
        A = layer.grid(*self.rows)
        return self._through(A, A @ vectors, layer, R)

    def _through(self, A: Grid, denominators: Tensors, layer: Layer, R: Tensor) -> Tensors:
        b = layer.bias if self.has_bias else None
        found = []
        for part, d in zip(self.parts, denominators, strict=True):
            s = self.shares(R, d if part.bias is None else layer.plus(d, part.bias(b)))
            if part.gate:
                s = gated(s, layer.z if part.gate > 0 else -layer.z)
            found.append(s if part.coefficient == 1 else times(s, part.coefficient))
        return A.T @ found


class Signed(Together):
    """The same for the vectors x+ and x-. If x- is 0, or if both meet the same matrix, x alone is enough."""

    def vectors(self, layer: Layer) -> Tensors:
        x = layer.x
        return (x,) if layer.fixed or nonnegative(x) else (positive(x), negative(x))

    def coefficients(self, layer: Layer, vectors: Tensors, R: Tensor) -> Tensors:
        A = layer.grid(*(self.rows if len(vectors) > 1 else [row[:1] for row in self.rows]))
        return self._through(A, A @ vectors, layer, R)


def nonnegative(x: Tensor) -> bool:
    """Whether x- is known to be 0. Only asked on the CPU: on a GPU, the program would have to wait for the answer."""
    return x.is_cpu and x.numel() > 0 and x.amin().item() >= 0


class FromOutput(Plan):
    """One part whose denominator the forward pass has computed already: d = A(w) x + b."""

    def vectors(self, layer: Layer) -> Tensors:
        return (layer.x,)

    def coefficients(self, layer: Layer, vectors: Tensors, R: Tensor) -> Tensors:
        return layer.pull((self.shares(R, layer.linear_outputs[0]),))


class Boxed(Together):
    """ZBox with the same bounds for all samples: A(w) x is in the output already, and the rest is computed once."""

    def __init__(self, parts: Parts, stabilizer: Callable[[Tensor], Tensor], bounds: tuple[Bound, Bound]) -> None:
        super().__init__(parts, stabilizer)
        self.bounds = bounds

    def coefficients(self, layer: Layer, vectors: Tensors, R: Tensor) -> Tensors:
        A = layer.grid(*self.rows)
        sample = layer.x[:1] if layer.batched else layer.x
        bounds = [bound.at(layer).expand_as(sample) for bound in self.bounds]
        d = layer.linear_outputs[0] - layer.once(Boxed, lambda: (A @ bounds)[0] + layer.bias)
        return A.T @ [self.shares(R, d)]


class InTwoMaps(Plan):
    """Gamma with two maps in place of four: A(w) x, which the forward pass has computed, and A(|w|) |x|.

    With w+ = (w + |w|) / 2 and w- = (w - |w|) / 2, and alike for x and b, all its sums become

        d = (1 + g/2) (A(w) x + b) +- g/2 (A(|w|) |x| + |b|),     + where z > 0, - where z < 0

    d has the sign of z, so nothing cancels in it. In r something does: a term x w of the formula is computed as the
    difference of two terms that are up to (1 + g) times as large.
    """

    def __init__(self, parts: Parts, stabilizer: Callable[[Tensor], Tensor], g: float) -> None:
        super().__init__(parts, stabilizer)
        self.half = g / 2

    def vectors(self, layer: Layer) -> Tensors:
        return (layer.x, layer.x.abs())

    def coefficients(self, layer: Layer, vectors: Tensors, R: Tensor) -> Tensors:
        z, half = layer.z, self.half
        sgn = z.sign()
        d = layer.plus(layer.matrix(torch.abs) @ vectors[1], layer.bias.abs())
        d = torch.mul(times(d, half), sgn, out=into(d))
        d = torch.add(d, layer.linear_outputs[0], alpha=1 + half, out=into(d))
        s = self.shares(R, d)
        s = gated(s, z.abs(), into(s))
        s_abs = torch.mul(s, sgn, out=into(sgn))
        A = layer.grid((None, nothing), (nothing, torch.abs))
        return A.T @ [times(s, 1 + half), times(s_abs, half)]


class ByWeights(Plan):
    """One part whose vector is ones. It does not depend on the input, so all samples have the same denominators.

    A(1) has rank one: it adds up all inputs of a group, and all outputs of the group are equal.
    """

    samples_apart = False

    def __init__(self, parts: Parts, stabilizer: Callable[[Tensor], Tensor], *, rank_one: bool, shared: bool) -> None:
        super().__init__(parts, stabilizer)
        (((self.change, _),), self.bias, *_rest) = parts[0]
        self.rank_one, self.shared = rank_one and self.change is one, shared
        self.outputs_apart = self.change is not one  # A(1) needs no memory

    def vectors(self, layer: Layer) -> Tensors:
        return (layer.ones() if self.shared else torch.ones_like(layer.x),)

    def coefficients(self, layer: Layer, vectors: Tensors, R: Tensor) -> Tensors:
        ones = layer.at(vectors[0])
        A = ones.matrix_of_ones() if self.rank_one else ones.matrix(self.change)
        d = A @ vectors[0]
        if self.bias is not None:
            d = d + self.bias(ones.bias)
        # computed once for all samples, unless a callable of the user may look at whole samples
        builtin = isinstance(self.stabilizer, Stabilizer)
        S = self.stabilizer(d if builtin else d.expand_as(R))
        if layer.small or not builtin or not self.shared:
            return (layer.back(A, R / S),)
        return (layer.by_samples(lambda _layer, R, _out: layer.back(A, R / S), R),)

    def total(self, layer: Layer, vectors: Tensors, coefficients: Tensors, out: Tensor | None) -> Tensor:
        (c,) = coefficients
        # times ones, unless one entry stands for several inputs
        return c if c.shape == layer.x.shape and whole(c) else super().total(layer, vectors, coefficients, out)
