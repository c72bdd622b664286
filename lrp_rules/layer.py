"""A layer as a matrix and a constant, z = A(w) x + b, and what makes rules fast: the matrix is never formed.

``A @ x`` runs the layer without its bias, ``A.T @ s`` runs its transpose.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import reduce
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from lrp_rules.params import zeroed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    #: Elementwise; as torch's own functions, it takes ``out``.
    Change = Callable[..., Tensor]
    Parameters = Mapping[str, Tensor | None]
    Formula = Callable[["Layer", Tensor], Tensor]


@dataclass
class Matrix:
    """A matrix known by what it does: ``A @ v`` and ``A.T @ s``."""

    forward: Callable[[Tensor], Tensor]
    transposed: Callable[[Tensor], Tensor]

    def __matmul__(self, vector: Tensor) -> Tensor:
        return self.forward(vector)

    @property
    def T(self) -> Matrix:
        """The transpose."""
        return Matrix(self.transposed, self.forward)


@dataclass(frozen=True)
class Row:
    """Matrices side by side, [A B]: ``row @ (v, u)`` is A v + B u, and ``row.T @ s`` is (A^T s, B^T s)."""

    forward: Callable[[Sequence[Tensor]], Tensor]
    transposed: Callable[[Tensor], Sequence[Tensor]]

    @classmethod
    def of(cls, matrices: Sequence[Matrix]) -> Row:
        """Return the row of these matrices."""
        return cls(
            lambda vectors: reduce(torch.add, (A @ v for A, v in zip(matrices, vectors, strict=True))),
            lambda s: [A.T @ s for A in matrices],
        )

    def __matmul__(self, vectors: Sequence[Tensor]) -> Tensor:
        return self.forward(vectors)

    @property
    def T(self) -> Column:
        """The transposes, one below the other."""
        return Column(self.transposed)


@dataclass(frozen=True)
class Column:
    """What a :class:`Row` is transposed to."""

    forward: Callable[[Tensor], Sequence[Tensor]]

    def __matmul__(self, vector: Tensor) -> Sequence[Tensor]:
        return self.forward(vector)


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
        What it returned. None where that is no longer known, as after an in-place operation behind the module.
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

    """

    module: nn.Module
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...] | None
    shape: torch.Size
    given: Parameters
    zero_params: tuple[str, ...] = ()
    run: Callable[..., tuple[Tensor, ...]] = field(kw_only=True)
    buffers: Parameters = field(kw_only=True, default_factory=dict)

    #: Names of buffers that A and b are made of; ``buffers`` has them as the call used them.
    used_buffers: ClassVar[tuple[str, ...]] = ()

    def matrix(self, change: Change | None = None) -> Matrix:
        """Return A(w), or A(change(w))."""
        raise NotImplementedError

    def row(self, changes: Sequence[Change | None]) -> Row:
        """Return [A(change(w)) ...], one matrix for each change."""
        return Row.of([self.matrix(change) for change in changes])

    def matrix_of_ones(self) -> Matrix:
        """Return A(1). What it gives may have one channel for all that are the same."""
        return self.matrix(torch.ones_like)

    @property
    def bias(self) -> Tensor:
        """b, in a shape that broadcasts to the output."""
        raise NotImplementedError

    def output(self) -> Tensor:
        """Return what the module returned, once more, to the last bit."""
        raise NotImplementedError

    def at_ones(self) -> Layer:
        """Return the layer with ones as its input: one sample of them, since all samples are the same."""
        return replace(self, inputs=(torch.ones_like(self.x[:1] if self.batched else self.x),), outputs=None)

    def by_samples(self, formula: Formula, R: Tensor) -> Tensor:
        """Return ``formula(self, R)``, for a formula that takes each sample by itself: by parts, if faster."""
        return formula(self, R)

    def by_outputs(self, formula: Formula, R: Tensor) -> Tensor:
        """Return ``formula(self, R)``, for a formula that sums over outputs: by parts, if faster."""
        return formula(self, R)

    def pull(self, s: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return A^T s for each input."""
        return (self.matrix().T @ s[0],)

    @property
    def real_outputs(self) -> tuple[Tensor, ...]:
        """What the module itself returned, whatever the rule sets to zero."""
        return self.outputs if self.outputs is not None else (self.output(),)

    @property
    def linear_outputs(self) -> tuple[Tensor, ...]:
        """A(w) x + b. Where nothing is set to zero, the forward pass has computed it already."""
        # not z - b: where b outweighs A x, that difference would have lost the digits of A x
        return (self.matrix() @ self.x + self.bias,) if self.zeroes else self.real_outputs

    @property
    def x(self) -> Tensor:
        """The only input."""
        return self.inputs[0]

    @property
    def z(self) -> Tensor:
        """The only output of the module itself."""
        return self.real_outputs[0]

    @property
    def zeroes(self) -> bool:
        """Whether ``zero_params`` names a parameter that is there."""
        return any(self.given.get(name) is not None for name in self.zero_params)

    @property
    def parameters(self) -> Parameters:
        """The parameters, with those in ``zero_params`` set to zero."""
        return zeroed(self.given, self.zero_params) if self.zeroes else self.given

    @property
    def batched(self) -> bool:
        """Whether the first dimension of the input holds samples."""
        return True

    @property
    def additive(self) -> bool:
        """Whether A(v + w) = A(v) + A(w), so that a formula may be put together from fewer maps."""
        return self.parameters.get("weight") is not None


@dataclass
class WeightedLayer(Layer):
    """What the layers with one weight and at most one bias have in common.

    ``scratch`` is memory for changed weights, where they are done block by block.
    """

    scratch: dict[Change, Tensor] | None = field(kw_only=True, default=None)

    @property
    def batched(self) -> bool:
        return self.x.ndim == self._dims + 2

    @property
    def bias(self) -> Tensor:
        bias = self.parameters["bias"]
        return self.x.new_zeros(()) if bias is None else bias.view((-1,) + (1,) * self._dims)

    def run_with(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return what the module would, with these parameters."""
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
        if self.scratch is None:
            return change(weight)
        if change not in self.scratch:
            self.scratch[change] = torch.empty_like(weight)
        return change(weight, out=self.scratch[change][: len(weight)])

    @property
    def _dims(self) -> int:
        """How many spatial dimensions the layer has."""
        size = self.module.kernel_size
        assert isinstance(size, tuple)
        return len(size)
