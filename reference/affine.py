"""A layer at one input, as the rules see it: matrices under a parameter change, the constant, the real output."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import inf, prod

import numpy as np
import numpy.typing as npt

from reference.base import Layer, LinearLayer, NonlinearLayer, Weighted, agree
from reference.windows import Array

Change = Callable[[Array], Array]
Counts = npt.NDArray[np.float32]  # integers, in the type that is multiplied fastest


def same(parameter: Array) -> Array:
    """Return the parameter itself: no change."""
    return parameter


def positive(parameter: Array) -> Array:
    """v+ = max(v, 0)."""
    return np.maximum(parameter, 0)


def negative(parameter: Array) -> Array:
    """v- = min(v, 0)."""
    return np.minimum(parameter, 0)


def quantum(values: Array) -> float:
    """Return the largest power of two of which every value is an integer multiple below 2^53; 0.0 if there is none.

    >>> quantum(np.array([3.0, -0.75])), quantum(np.array([0.1, 1.0])), quantum(np.zeros(2))
    (0.25, 0.0, inf)
    """
    grain = inf
    for part in (values.ravel()[:16], values.ravel()):  # random numbers give themselves away at once
        nonzero = part[part != 0]
        if nonzero.size:
            if not np.isfinite(nonzero).all():
                return 0.0
            fraction, exponent = np.frexp(nonzero)
            integer = np.abs(np.ldexp(fraction, 53)).astype(np.int64)
            grain = float(np.ldexp((integer & -integer).astype(np.float64), exponent - 53).min())
            if not 0 < float(np.abs(nonzero).max()) < 2.0**53 * grain:
                return 0.0
    return grain


@dataclass(frozen=True, eq=False)
class Affine:
    """A layer at x (n,) as z = A(w) x + b, after the parameters named in `zero_params` were set to zero.

    Where there is no weight to change, A is the layer's own matrix, or its Jacobian at x; the constant of a layer that
    is not linear is f(x) - J x, what the linearisation leaves over.
    """

    layer: Layer
    x: Array
    zero_params: tuple[str, ...] = ()
    # A rule asks for the same matrix more than once: AlphaBeta's halves share theirs, and so do Gamma's.
    _made: dict[tuple[str, Change], Array] = field(default_factory=dict, init=False, repr=False)
    _counted: dict[Change, Counts] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        agree("affine: number of inputs", self.x.shape, (prod(self.layer.input_shape),))

    def _parameter(self, name: str) -> Array | None:
        value: Array | None = getattr(self.layer, name) if isinstance(self.layer, Weighted) else None
        return np.zeros_like(value) if value is not None and name in self.zero_params else value

    @cached_property
    def weight(self) -> Array | None:
        """The layer's weight, zero if `zero_params` says so; None where there is none."""
        return self._parameter("weight")

    @cached_property
    def bias(self) -> Array | None:
        """The layer's bias, zero if `zero_params` says so; None where there is none."""
        return self._parameter("bias")

    def A(self, change: Change = same) -> Array:  # noqa: N802 - as the formulas call it
        """The matrix (m x n) of the changed weight."""
        return self._once("A", self._unchanged(change), self._build)

    def _once(self, what: str, change: Change, build: Callable[[Change], Array]) -> Array:
        if (what, change) not in self._made:
            self._made[what, change] = build(change)
        return self._made[what, change]

    def _unchanged(self, change: Change) -> Change:
        return same if self.weight is None else change

    def _build(self, change: Change) -> Array:
        if isinstance(self.layer, NonlinearLayer):
            return self.layer.jacobian(self.x)
        return self._matrix(None if self.weight is None else change(self.weight))

    def _matrix(self, weight: Array | None) -> Array:
        assert isinstance(self.layer, LinearLayer)
        return self.layer.matrix(weight)

    def offset(self, change: Change = same) -> Array:
        """change(b), where b (m,) is the constant of z = A x + b, whatever it is made of."""
        return change(self.b)

    @cached_property
    def b(self) -> Array:
        """The constant (m,)."""
        if isinstance(self.layer, NonlinearLayer):
            return self.layer.value(self.x) - self.A() @ self.x
        assert isinstance(self.layer, LinearLayer)
        return self.layer.offset(self.bias, self.weight)

    @cached_property
    def real(self) -> "Affine":
        """The layer with nothing set to zero."""
        return Affine(self.layer, self.x) if self.zero_params else self

    @cached_property
    def z(self) -> Array:
        """The layer's real output (m,), nothing set to zero."""
        if isinstance(self.layer, NonlinearLayer):
            return self.layer.value(self.x)
        return np.asarray(self.real.A() @ self.x + self.real.b)

    def at(self, x: Array) -> "Affine":
        """Return the same layer at another input."""
        return Affine(self.layer, x, self.zero_params)

    # What follows is for reference.rounding: magnitudes of the numbers that are added up.

    def size(self, change: Change = same) -> Array:
        """A(|change(w)|): the magnitudes that are added up; above |A| where parameters cancel within one entry."""
        return self._once("size", self._unchanged(change), self._build_size)

    def _build_size(self, change: Change) -> Array:
        if isinstance(self.layer, NonlinearLayer):
            return self.layer.sizes(self.x)[1]
        if self.weight is None or not self._gathers:
            return np.abs(self.A(change))
        return self._matrix(np.abs(change(self.weight)))

    def count(self, change: Change = same) -> Counts:
        """How many nonzero parameters are added up in each entry of A(change(w))."""
        change = self._unchanged(change)
        if change not in self._counted:
            self._counted[change] = self._build_count(change)
        return self._counted[change]

    def _build_count(self, change: Change) -> Counts:
        if self.weight is None or not self._gathers:
            return np.asarray(self.size(change) != 0, np.float32)
        return np.asarray(self._matrix(np.asarray(change(self.weight) != 0, np.float64)), np.float32)

    @property
    def _gathers(self) -> bool:
        return isinstance(self.layer, LinearLayer) and self.layer.gathers

    def offset_size(self, change: Change = same) -> Array:
        """Sum of the magnitudes from which change(b) is computed, for the sign that the change leaves larger."""
        if isinstance(self.layer, NonlinearLayer):
            size = self.layer.sizes(self.x)[0]
        else:
            assert isinstance(self.layer, LinearLayer)
            size = self.layer.offset_size(self.bias, self.weight)
        # A constant that nothing cancelled in has its sign for certain: a negative bias leaves nothing of b+.
        certain = size == np.abs(self.b)
        return np.where(certain, np.abs(change(self.b)), np.maximum(np.abs(change(size)), np.abs(change(-size))))

    @cached_property
    def bias_grain(self) -> float:
        """Power of two that divides the constant."""
        return 0.0 if self.layer.roundings else quantum(self.b)

    @cached_property
    def weight_grain(self) -> float:
        """Power of two that divides every parameter behind the matrix; 0.0 where its entries are computed."""
        if self.layer.roundings:
            return 0.0
        return quantum(self.A() if self.weight is None else self.weight)


def affine(layer: Layer, x: Array, zero_params: str | Sequence[str] | None = ()) -> Affine:
    """Return the layer at the input x of one sample (any shape), for the rules.

    `zero_params` takes None, one name or several; a name matches whole.
    """
    names = (zero_params,) if isinstance(zero_params, str) else tuple(zero_params or ())
    return Affine(layer, np.asarray(x, np.float64).ravel(), names)
