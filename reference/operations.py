"""Operations of several operands, and normalisations: what a network computes between its layers.

The operands of an operation are one input, side by side and each flattened: a layer of the reference has one input. A
constant operand is part of the operation.
"""

# ruff: noqa: D102 - what a method answers is said once, in reference.base
from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from math import ceil, prod

import numpy as np

from reference.base import NonlinearLayer, Weighted
from reference.windows import Array, Index, Shape


@dataclass(frozen=True, eq=False)
class Operation(NonlinearLayer):
    """An operation of operands of these shapes; one that is a constant has its value among ``constants``, others None.

    ``input_shape`` is (n,), the sizes of all operands that are not constant, added up.
    """

    shapes: tuple[Shape, ...]
    constants: tuple[Array | None, ...]

    @property
    def variables(self) -> tuple[int, ...]:
        """Positions of the operands that are not constant."""
        return tuple(k for k, constant in enumerate(self.constants) if constant is None)

    def operands(self, x: Array) -> list[Array]:
        """Return all operands, flattened."""
        sizes = [prod(self.shapes[k]) for k in self.variables]
        parts = iter(np.split(x.ravel(), np.cumsum(sizes)[:-1]))
        return [next(parts) if constant is None else constant.ravel() for constant in self.constants]

    @abstractmethod
    def by_operand(self, x: Array, *, magnitudes: bool = False) -> list[Array]:
        """The Jacobian by each operand (m, n_k), constants among them; of the operands' magnitudes, if so wanted."""

    def jacobian(self, x: Array) -> Array:
        found = self.by_operand(x)
        return np.concatenate([found[k] for k in self.variables], axis=1)

    def sizes(self, x: Array) -> tuple[Array, Array]:
        found = self.by_operand(x, magnitudes=True)
        value = sum(np.asarray(J @ np.abs(v)) for J, v in zip(found, self.operands(x), strict=True))
        return np.asarray(value), np.concatenate([found[k] for k in self.variables], axis=1)


@dataclass(frozen=True, eq=False)
class _Elementwise(Operation):
    """An operation of entries at the same place, where operands are broadcast."""

    @property
    def output_shape(self) -> Shape:
        return np.broadcast_shapes(*self.shapes)

    @cached_property
    def positions(self) -> list[Index]:
        """For each operand, which of its entries each output reads (m,)."""
        whole = self.output_shape
        return [np.broadcast_to(np.arange(prod(shape)).reshape(shape), whole).ravel() for shape in self.shapes]

    def reads(self, operand: int) -> Array:
        """Return which entries of an operand each output reads: a matrix of ones (m, n_k)."""
        return np.eye(prod(self.shapes[operand]))[self.positions[operand]]


@dataclass(frozen=True, eq=False)
class Sum(_Elementwise):
    """Operands added up."""

    def value(self, x: Array) -> Array:
        pairs = zip(self.operands(x), self.positions, strict=True)
        return np.asarray(sum(v[position] for v, position in pairs))

    def by_operand(self, x: Array, *, magnitudes: bool = False) -> list[Array]:  # noqa: ARG002 - ones in any case
        return [self.reads(k) for k in range(len(self.shapes))]


@dataclass(frozen=True, eq=False)
class Product(_Elementwise):
    """Operands multiplied."""

    def value(self, x: Array) -> Array:
        pairs = zip(self.operands(x), self.positions, strict=True)
        return np.asarray(np.prod([v[position] for v, position in pairs], axis=0))

    def by_operand(self, x: Array, *, magnitudes: bool = False) -> list[Array]:
        read = [v[position] for v, position in zip(self.operands(x), self.positions, strict=True)]
        read = [np.abs(v) for v in read] if magnitudes else read
        others = [np.prod(read[:k] + read[k + 1 :], axis=0) for k in range(len(read))]
        return [np.atleast_1d(other)[:, None] * self.reads(k) for k, other in enumerate(others)]

    @property
    def roundings(self) -> int:
        return max(0, len(self.shapes) - 2)


@dataclass(frozen=True, eq=False)
class MatMul(Operation):
    """O = A V: matrices in the last two axes, the axes before them are broadcast."""

    @property
    def output_shape(self) -> Shape:
        left, right = self.shapes
        return (*np.broadcast_shapes(left[:-2], right[:-2]), left[-2], right[-1])

    @cached_property
    def _products(self) -> tuple[Index, Index]:
        """For each output, the entries of A and of V that are multiplied (m, inner)."""
        (left, right), whole = self.shapes, self.output_shape
        A, V = (np.arange(prod(shape)).reshape(shape) for shape in (left, right))
        A = np.broadcast_to(A, (*whole[:-2], *left[-2:]))[..., :, None, :]  # rows, columns, inner
        V = np.broadcast_to(V, (*whole[:-2], *right[-2:])).swapaxes(-1, -2)[..., None, :, :]
        full = (*whole, left[-1])
        return tuple(np.broadcast_to(read, full).reshape(-1, left[-1]) for read in (A, V))  # type: ignore[return-value]

    def value(self, x: Array) -> Array:
        (a, v), (of_a, of_v) = self.operands(x), self._products
        return np.asarray((a[of_a] * v[of_v]).sum(-1))

    def by_operand(self, x: Array, *, magnitudes: bool = False) -> list[Array]:
        operands, read = self.operands(x), self._products
        rows = np.arange(len(read[0]))[:, None]
        by_left, by_right = (np.zeros((len(rows), prod(shape))) for shape in self.shapes)
        by_left[rows, read[0]] = operands[1][read[1]]
        by_right[rows, read[1]] = operands[0][read[0]]
        return [np.abs(found) if magnitudes else found for found in (by_left, by_right)]


@dataclass(frozen=True, eq=False)
class Normalization(NonlinearLayer):
    """y = (x - mean) w / sqrt(var + eps) + bias, by the statistics of groups of entries of the sample itself.

    None is a parameter that is absent.
    """

    weight: Array | None
    bias: Array | None
    eps: float

    #: Whether the mean is taken away; if not, var is the mean square.
    centred = True

    @property
    def output_shape(self) -> Shape:
        return self.input_shape

    @property
    @abstractmethod
    def groups(self) -> Index:
        """Flat positions of the entries that are normalised together (groups, length)."""

    @abstractmethod
    def spread(self, parameter: Array) -> Array:
        """Return a parameter for every entry (n,)."""

    @cached_property
    def centring(self) -> Array:
        """The matrix C of x -> x - mean (n, n); the identity where nothing is taken away."""
        return np.eye(prod(self.input_shape)) - (self.averaging if self.centred else 0)

    @cached_property
    def averaging(self) -> Array:
        """The matrix of x -> mean (n, n)."""
        n = prod(self.input_shape)
        matrix = np.zeros((n, n))
        matrix[self.groups[:, :, None], self.groups[:, None, :]] = 1 / self.groups.shape[1]
        return matrix

    def deviation(self, x: Array) -> Array:
        """Sqrt(var + eps) for every entry (n,)."""
        return np.sqrt(self.averaging @ (self.centring @ x.ravel()) ** 2 + self.eps)

    def scale(self, x: Array, weight: Array | None) -> Array:
        """Return w / sqrt(var + eps) for every entry (n,)."""
        return np.asarray((1.0 if weight is None else self.spread(weight)) / self.deviation(x))

    def value(self, x: Array) -> Array:
        offset = 0.0 if self.bias is None else self.spread(self.bias)
        return self.scale(x, self.weight) * (self.centring @ x.ravel()) + offset

    def jacobian(self, x: Array) -> Array:
        normal = (self.centring @ x.ravel()) / self.deviation(x)
        curved = self.centring - self.averaging * np.outer(normal, normal)
        return self.scale(x, self.weight)[:, None] * curved

    def sizes(self, x: Array) -> tuple[Array, Array]:
        size, deviation = np.abs(x.ravel()), self.deviation(x)
        # a rounding of the variance moves all of it
        scale = np.abs(self.scale(x, self.weight)) * self.worse(x)
        normal = (size + self.averaging @ size) / deviation
        curved = np.eye(len(size)) + self.averaging * (1 + np.outer(normal, normal))
        offset = 0.0 if self.bias is None else np.abs(self.spread(self.bias))
        return scale * normal * deviation + offset, scale[:, None] * curved

    @property
    def roundings(self) -> int:
        # the variance as two means, and all that is made of it
        return int(self.groups.shape[1]) + 20

    def worse(self, x: Array) -> float:
        """Return how many times larger a rounding may be in the deviation than in the numbers it is made of.

        The variance may be computed as the mean square less the square of the mean: relative to it, a rounding is as
        many times larger as their sum is.
        """
        x = x.ravel()
        sizes = self.averaging @ x**2 + (self.averaging @ x) ** 2 * self.centred
        return float((sizes / self.deviation(x) ** 2).max(initial=1.0))

    def frozen(self, x: Array) -> "FrozenNormalization":
        """Return the normalisation with the deviation that it has at x, whatever its input."""
        return FrozenNormalization(self.input_shape, self.weight, self.bias, self, x)


@dataclass(frozen=True, eq=False)
class FrozenNormalization(Weighted):
    """A normalisation by the deviation at one input: a linear layer, A(w) = w / sqrt(var + eps) C."""

    of: Normalization
    at: Array

    @property
    def output_shape(self) -> Shape:
        return self.input_shape

    def matrix(self, weight: Array | None = None) -> Array:
        scale = self.of.scale(self.at, self.weight if weight is None else weight)
        return np.asarray(scale[:, None] * self.of.centring)

    def offset(self, bias: Array | None = None, weight: Array | None = None) -> Array:
        return super().offset(bias, weight) if bias is None else self.of.spread(bias)

    @property
    def roundings(self) -> int:
        # the mean, x - mean, its square, the mean of these and what is subtracted; then eps, the sum, the root, its
        # reciprocal, the weight, and the mean that is taken away from x and from what flows back
        return ceil(6 * self.of.worse(self.at)) + 8


@dataclass(frozen=True, eq=False)
class LayerNorm(Normalization):
    """Over the last ``axes`` axes, which are those of the parameters."""

    axes: int

    @property
    def groups(self) -> Index:
        return np.arange(prod(self.input_shape)).reshape(-1, prod(self.input_shape[-self.axes :]))

    def spread(self, parameter: Array) -> Array:
        return np.tile(parameter.ravel(), len(self.groups))


@dataclass(frozen=True, eq=False)
class RMSNorm(LayerNorm):
    """The same by the root of the mean square, without a mean."""

    centred = False


@dataclass(frozen=True, eq=False)
class GroupNorm(Normalization):
    """Over groups of the channels of (C, *spatial) and all their positions; one parameter a channel.

    With as many groups as channels it is InstanceNorm.
    """

    num_groups: int

    @property
    def groups(self) -> Index:
        return np.arange(prod(self.input_shape)).reshape(self.num_groups, -1)

    def spread(self, parameter: Array) -> Array:
        return np.repeat(parameter, prod(self.input_shape[1:]))
