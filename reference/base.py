"""What a layer is: the shapes of one sample, and either a matrix for any weight or a value and a Jacobian."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import prod

import numpy as np

from reference.windows import Array, Shape


@dataclass(frozen=True, eq=False)
class Layer(ABC):
    """Plain data; one sample, no batch axis."""

    input_shape: Shape

    @property
    @abstractmethod
    def output_shape(self) -> Shape:
        """Shape of one output sample."""

    @property
    def roundings(self) -> int:
        """How often an entry of the matrix (Jacobian, value) is rounded on its way from the parameters; 0 is exact."""
        return 0


@dataclass(frozen=True, eq=False)
class LinearLayer(Layer):
    """x -> A(w) x + b."""

    @abstractmethod
    def matrix(self, weight: Array | None = None) -> Array:
        """A(w), m x n, for any weight of this layer's shape; None is the layer's own, if it has one."""

    def offset(self, bias: Array | None = None, weight: Array | None = None) -> Array:  # noqa: ARG002 - see Weighted
        """The constant b (m,) of x -> A(w) x + b; without a bias it is zero."""
        return np.zeros(prod(self.output_shape))

    def offset_size(self, bias: Array | None = None, weight: Array | None = None) -> Array:
        """Sum of the magnitudes from which that constant is computed (m,)."""
        return np.abs(self.offset(bias, weight))

    @property
    def gathers(self) -> bool:
        """Whether one entry of the matrix may be a sum of several parameters, so that |A(w)| may be below A(|w|)."""
        return False


@dataclass(frozen=True, eq=False)
class Weighted(LinearLayer):
    """A linear layer with parameters; None is a parameter that is absent."""

    weight: Array | None
    bias: Array | None


@dataclass(frozen=True, eq=False)
class NonlinearLayer(Layer):
    """x -> f(x)."""

    @abstractmethod
    def value(self, x: Array) -> Array:
        """f(x), flattened (m,)."""

    @abstractmethod
    def jacobian(self, x: Array) -> Array:
        """df/dx at x, m x n."""

    def sizes(self, x: Array) -> tuple[Array, Array]:
        """How large the numbers are from which f(x) and the Jacobian are computed: see `reference.pointwise`."""
        return np.abs(self.value(x)), np.abs(self.jacobian(x))


def agree(what: str, given: object, expected: object) -> None:
    """Raise a ValueError where a layer's description contradicts itself."""
    if given != expected:
        message = f"{what}: given {given}, expected {expected}; check the layer's description"
        raise ValueError(message)
