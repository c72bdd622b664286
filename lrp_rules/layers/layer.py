"""A layer as a matrix and a constant, z = A(w) x + b, and what makes rules fast: the matrix is never formed.

``A @ x`` runs the layer without its bias, ``A.T @ s`` runs its transpose.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import reduce
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn

from lrp_rules.layers.blocks import into, large, parts, plain, whole
from lrp_rules.params import zeroed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    #: An elementwise change. Like functions of torch, it takes ``out``.
    Change = Callable[..., Tensor]
    Parameters = Mapping[str, Tensor | None]
    Tensors = Sequence[Tensor]
    #: Gives a relevance; it may write it to ``out``.
    Formula = Callable[["Layer", Tensor, Tensor | None], Tensor]
    #: Gives the coefficients of the vectors.
    Coefficients = Callable[["Layer", Tensors, Tensor], Tensors]


def nothing(v: Tensor, out: Tensor | None = None) -> Tensor:
    """Return zeros: the change that makes the matrix zero."""
    return torch.mul(v, 0, out=out)


class Matrix:
    """A matrix, given by its products ``A @ v`` and ``A.T @ s``.

    ``plus(v, d)`` is d + A v, and ``onto(s, c)`` is c + A^T s. If the results of a matrix are ``fresh``, used by nobody
    else, these two may write to d and c.
    """

    __slots__ = ()

    forward: Callable[[Tensor], Tensor]
    transposed: Callable[[Tensor], Tensor]
    fresh: bool

    def __matmul__(self, vector: Tensor) -> Tensor:
        return self.forward(vector)

    @property
    def T(self) -> Matrix:
        """The transpose."""
        return Map(self.transposed, self.forward, self.fresh)

    def plus(self, v: Tensor, d: Tensor) -> Tensor:
        """Return d + A v."""
        return torch.add(d, self.forward(v), out=into(d) if self.fresh else None)

    def onto(self, s: Tensor, c: Tensor) -> Tensor:
        """Return c + A^T s."""
        return torch.add(c, self.transposed(s), out=into(c) if self.fresh else None)


@dataclass(slots=True)  # making a frozen dataclass takes longer than a small product
class Map(Matrix):
    """A matrix made of two functions."""

    forward: Callable[[Tensor], Tensor]
    transposed: Callable[[Tensor], Tensor]
    fresh: bool = False


class Grid:
    """Matrices A_jk in rows: ``A @ v`` is sum_k A_jk v_k for each j, ``A.T @ s`` is sum_j A_jk^T s_j for each k.

    None stands for a matrix of zeros. ``start`` is added to the result of ``A.T @ s``.
    """

    __slots__ = ("rows", "start")

    def __init__(self, rows: Sequence[Sequence[Matrix | None]], start: Tensors | None) -> None:
        self.rows, self.start = rows, start

    def __matmul__(self, vectors: Tensors) -> Tensors:
        sums = []
        for row in self.rows:
            d: Tensor | None = None
            for A, v in zip(row, vectors, strict=True):
                if A is not None:
                    d = A.forward(v) if d is None else A.plus(v, d)
            assert d is not None
            sums.append(d)
        return sums

    def pull(self, s: Tensors) -> Tensors:
        """Return ``A.T @ s``."""
        sums = []
        for k in range(len(self.rows[0])):
            c = None if self.start is None else self.start[k]
            for row, s_j in zip(self.rows, s, strict=True):
                A = row[k]
                if A is not None:
                    c = A.transposed(s_j) if c is None else A.onto(s_j, c)
            assert c is not None
            sums.append(c)
        return sums

    @property
    def T(self) -> _Transposed:
        """The transpose."""
        return _Transposed(self)


class _Transposed:
    __slots__ = ("grid",)

    def __init__(self, grid: Grid) -> None:
        self.grid = grid

    def __matmul__(self, s: Tensors) -> Tensors:
        return self.grid.pull(s)


class GridMap(Grid):
    """A grid made of two functions."""

    __slots__ = ("forward", "transposed")

    def __init__(self, forward: Callable[[Tensors], Tensors], transposed: Callable[[Tensors], Tensors]) -> None:
        self.forward, self.transposed = forward, transposed

    def __matmul__(self, vectors: Tensors) -> Tensors:
        return self.forward(vectors)

    def pull(self, s: Tensors) -> Tensors:
        return self.transposed(s)


#: A layer with up to this many pairs of an input and an output is small. It has no more products than pairs.
SMALL = 2**20


@dataclass
class Layer:
    """One call of a module, as rules see it: z = A(w) x + b.

    Parameters
    ----------
    module
        The module that was called.
    inputs
        The tensors it was called with; most rules know one, ``x``.
    outputs
        What it returned. None if that is no longer known, as after an in-place operation behind the module.
    shape
        The shape of the output.
    given
        The parameters that the call used, by name.
    zero_params
        Names of those that the rule sets to zero.
    run
        Repeats the call: ``run(parameters, *inputs)`` returns its outputs.
    buffers
        Buffers that the call used, by name.
    start
        If this is one of several parts of the outputs: the sum of the coefficients of the parts before it.
    memo
        Values that ``once`` has made, the same for all samples.
    known_right
        Names of properties of the module that were checked and found true. They are not checked again.

    """

    module: nn.Module
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...] | None
    shape: torch.Size
    given: Parameters
    zero_params: tuple[str, ...] = ()
    run: Callable[..., tuple[Tensor, ...]] = field(kw_only=True)
    buffers: Parameters = field(kw_only=True, default_factory=dict)
    start: Tensors | None = field(kw_only=True, default=None)
    memo: dict[Any, Tensor] = field(kw_only=True, default_factory=dict)
    known_right: set[str] = field(kw_only=True, default_factory=set)

    #: Names of the parameters that A and b are made of.
    used_parameters: ClassVar[frozenset[str]] = frozenset()
    #: Names of buffers that A and b are made of; their values are in ``buffers``.
    used_buffers: ClassVar[tuple[str, ...]] = ()

    def matrix(self, change: Change | None = None) -> Matrix:
        """Return A(w), or A(change(w))."""
        raise NotImplementedError

    def grid(self, *rows: Sequence[Change | None]) -> Grid:
        """Return the matrices A(change(w)), in the rows of the changes."""
        if len(rows) == len(rows[0]) == 1:
            return Grid(((self.matrix(rows[0][0]),),), self.start)
        if self.fixed and not any(nothing in row for row in rows):
            # all entries are the same matrix: apply it to the sum
            A, height, width = self.matrix(), len(rows), len(rows[0])
            return GridMap(
                lambda vectors: [A @ reduce(torch.add, vectors)] * height,
                lambda s: [A.T @ reduce(torch.add, s)] * width,
            )
        made = {change: None if change is nothing else self.matrix(change) for row in rows for change in row}
        return Grid([[made[change] for change in row] for row in rows], self.start)

    def matrix_of_ones(self) -> Matrix:
        """Return A(1). Its results may have one channel in place of several equal ones."""
        return self.matrix(torch.ones_like)

    @property
    def bias(self) -> Tensor:
        """b, in a shape that broadcasts to the output."""
        raise NotImplementedError

    def plus(self, d: Tensor, b: Tensor) -> Tensor:
        """Return d + b. It may write to d, which a matrix of this layer gave."""
        return d + b

    def output(self) -> Tensor:
        """Return the output of the module again, equal to the last bit."""
        raise NotImplementedError

    def but(self, **fields: Any) -> Self:
        """Return the layer with some fields replaced."""
        other = object.__new__(type(self))  # dataclasses.replace takes longer than a small product
        vars(other).update(vars(self), **fields)
        return other

    def once(self, key: Any, make: Callable[[], Tensor]) -> Tensor:
        """Return what ``make`` makes, which is the same for all samples, and make it once for all parts of a batch."""
        if key not in self.memo:
            self.memo[key] = make()
        return self.memo[key]

    def at(self, x: Tensor) -> Self:
        """Return the layer at another input."""
        return self.but(inputs=(x,), outputs=None)

    def ones(self) -> Tensor:
        """Return ones in the shape of one sample of the input."""
        return torch.ones_like(self.x[:1] if self.batched else self.x)

    def by_samples(self, formula: Formula, R: Tensor) -> Tensor:
        """Return ``formula(self, R)``, in parts of the batch if that is faster. Samples must be independent in it."""
        x = self.x
        takes = large(x, R) and self.takes_samples and self.start is None and self.batched
        cuts = parts(R.shape[0], x, R) if takes else None
        if cuts is None:
            return formula(self, R, None)
        r = torch.empty_like(x)
        for part in cuts:
            outputs = None if self.outputs is None else (self.outputs[0][part],)
            layer = self.but(inputs=(x[part],), outputs=outputs, shape=R[part].shape)
            out = r[part]
            found = formula(layer, R[part], out)
            if found is not out:
                out.copy_(found)
        return r

    def by_outputs(self, coefficients: Coefficients, vectors: Tensors, R: Tensor, *, changes_weights: bool) -> Tensors:
        """Return ``coefficients(self, vectors, R)``, the ``A.T @ s`` of a grid, in parts of s if that is better.

        It saves time where weights are changed, and memory in any case.
        """
        return coefficients(self, vectors, R)

    def total(self, vectors: Tensors, coefficients: Tensors, out: Tensor | None = None) -> Tensor:
        """Return r = sum v * c over vectors and their coefficients. It may write to the coefficients."""
        r = torch.mul(vectors[0], coefficients[0], out=self._into(coefficients[0]) if out is None else out)
        for v, c in zip(vectors[1:], coefficients[1:], strict=True):
            r = torch.addcmul(r, v, c, out=into(r))
        return r

    def _into(self, coefficient: Tensor) -> Tensor | None:
        """Return the coefficient if r may be written over it, as nobody else uses its memory."""
        return None

    def pull(self, s: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return A^T s for each input."""
        return (self.back(self.matrix(), s[0]),)

    def back(self, A: Matrix, s: Tensor) -> Tensor:
        """Return A^T s plus the result of the parts of the outputs before this one."""
        return A.transposed(s) if self.start is None else A.onto(s, self.start[0])

    @property
    def real_outputs(self) -> tuple[Tensor, ...]:
        """The outputs of the module, whatever the rule sets to zero."""
        return self.outputs if self.outputs is not None else (self.output(),)

    @property
    def linear_outputs(self) -> tuple[Tensor, ...]:
        """A(w) x + b. If the rule sets nothing to zero, the forward pass has computed it already."""
        # not z - b: if b is much larger than A x, the difference has lost the digits of A x
        return (self.plus(self.matrix() @ self.x, self.bias),) if self.zeroes else self.real_outputs

    @property
    def x(self) -> Tensor:
        """The only input."""
        return self.inputs[0]

    @property
    def z(self) -> Tensor:
        """The only output of the module."""
        return self.real_outputs[0]

    @property
    def zeroes(self) -> bool:
        """Whether ``zero_params`` names a parameter of this layer."""
        return any(self.given.get(name) is not None for name in self.zero_params)

    @property
    def parameters(self) -> Parameters:
        """The parameters, with those in ``zero_params`` set to zero."""
        return zeroed(self.given, self.zero_params) if self.zero_params and self.zeroes else self.given

    @property
    def batched(self) -> bool:
        """Whether the first dimension of the input holds samples."""
        return True

    @property
    def small(self) -> bool:
        """Whether the layer is so small that the number of operations determines the time. Blocks do not help then."""
        return self.x.numel() * self.shape.numel() <= SMALL

    @property
    def takes_samples(self) -> bool:
        """Whether it may be faster to compute the samples in parts."""
        return True

    @property
    def fixed(self) -> bool:
        """Whether A does not depend on the parameters."""
        return False

    @property
    def additive(self) -> bool:
        """Whether A(v + w) = A(v) + A(w), so that rewritings may combine maps."""
        return self.parameters.get("weight") is not None


#: With up to this many products, A x is computed again, and not taken as z - b.
ANEW = 2**21
#: So many products of an output are summed to see whether they are larger than its bias.
TERMS = 64


@dataclass
class WeightedLayer(Layer):
    """What the layers with one weight and at most one bias have in common.

    ``scratch`` is memory for changed weights, where there is some.
    """

    used_parameters: ClassVar[frozenset[str]] = frozenset({"weight", "bias"})

    scratch: dict[Change, Tensor] | None = field(kw_only=True, default=None)

    @property
    def additive(self) -> bool:
        return True

    @property
    def batched(self) -> bool:
        return self.x.ndim == self._dims + 2

    @property
    def bias(self) -> Tensor:
        bias = self.parameters["bias"]
        return self.x.new_zeros(()) if bias is None else self._per_output(bias)

    def plus(self, d: Tensor, b: Tensor) -> Tensor:
        return torch.add(d, b, out=into(d))

    @property
    def linear_outputs(self) -> tuple[Tensor, ...]:
        if not self.zero_params:
            return self.real_outputs
        bias, out = self.given["bias"], self.outputs
        if bias is None or out is None or self.zero_params != ("bias",) or self.multiply_adds <= ANEW:
            return (self._anew(),)
        # z - b is A x within rounding, unless b is larger than A(|w|) |x| and A x has lost its digits. A(|w|) |x| is
        # at least |A x|, and at least what some of the inputs contribute to it.
        excess = None if plain() else self.excess()
        if excess is not None:
            difference = out[0] - self._per_output(bias)
            if excess.amin() >= 0:
                return (difference,)
            if torch.maximum(excess, difference.abs() - self._per_output(bias.abs())).amin() >= 0:
                return (difference,)
        return (self._anew(),)

    def _anew(self) -> Tensor:
        d, bias = self.matrix() @ self.x, self.parameters["bias"]
        return d if bias is None else self.plus(d, self._per_output(bias))

    @property
    def parameters(self) -> Parameters:
        # a bias of zeros counts as no bias
        return {**self.given, "bias": None} if self.zero_params == ("bias",) else super().parameters

    @property
    def multiply_adds(self) -> int:
        """The approximate number of products in A x."""
        weight = self.given["weight"]
        assert weight is not None
        return weight.numel() * self.shape.numel() // max(1, weight.shape[0])

    def excess(self) -> Tensor | None:
        """Return a part of A(|w|) |x| minus |b|; None if that takes as long as A x, or would make the program wait."""
        raise NotImplementedError

    def _into(self, coefficient: Tensor) -> Tensor | None:
        fits = not plain() and coefficient.shape == self.x.shape and whole(coefficient)
        return coefficient if fits else None

    def run_with(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return what the module would return with these parameters."""
        raise NotImplementedError

    def output(self) -> Tensor:
        weight = self.given["weight"]
        assert weight is not None
        return self.run_with(self.x, weight, self.given["bias"])

    def _weight(self, change: Change | None) -> Tensor:
        weight = self.parameters["weight"]
        assert weight is not None
        if change is None:
            return weight
        return self.once(change, lambda: self._changed(change, weight))

    def _changed(self, change: Change, weight: Tensor) -> Tensor:
        if self.scratch is None:
            return change(weight)
        if change not in self.scratch:
            self.scratch[change] = torch.empty_like(weight)
        return change(weight, out=self.scratch[change][: len(weight)])

    def _per_output(self, bias: Tensor) -> Tensor:
        return bias.view((-1,) + (1,) * self._dims)

    @property
    def _dims(self) -> int:
        """How many spatial dimensions the layer has."""
        size = self.module.kernel_size
        assert isinstance(size, tuple)
        return len(size)
