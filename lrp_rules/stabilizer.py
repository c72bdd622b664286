"""The stabilized denominator: the one place where sgn(0) is chosen."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


_ZERO = torch.zeros((), device="cpu")


@dataclass(frozen=True)
class Stabilizer:
    """Keep a denominator away from zero without changing its sign.

    S(d) = d + eps * sgn(d), with sgn(0) = +1, so that no relevance is multiplied by 0 / 0.

    Parameters
    ----------
    epsilon
        eps, in units of the denominator; finite and not negative.
    clip
        Use S(d) = sgn(d) * max(|d|, eps) instead: large denominators stay as they are.
    norm_scale
        Multiply eps by the root mean square of d over ``dim``.
    dim
        Dimensions of that mean; all but the batch by default.

    Raises
    ------
    TypeError
        If ``epsilon`` is not a number.
    ValueError
        If ``epsilon`` is negative or not finite.

    """

    epsilon: float = 1e-6
    clip: bool = False
    norm_scale: bool = False
    dim: int | tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        epsilon = self.epsilon
        if isinstance(epsilon, bool) or not isinstance(epsilon, Real):  # numpy's numbers are Real, too
            msg = f"epsilon is {epsilon!r}, a {type(epsilon).__name__}; expected a number"
            raise TypeError(msg)
        if not 0 <= epsilon < math.inf:
            msg = f"epsilon is {epsilon!r}; expected a finite number that is not negative, such as 1e-6"
            raise ValueError(msg)
        object.__setattr__(self, "epsilon", float(epsilon))  # numpy's, and fractions
        # a number would be made into a tensor at each call, which takes longer than the arithmetic of a small layer
        object.__setattr__(self, "_number", torch.tensor(self.epsilon, dtype=torch.float64, device="cpu"))

    def __call__(self, denominator: Tensor) -> Tensor:
        """Return S(d), of the shape of ``denominator``."""
        # a scalar would take the dtype of another
        epsilon, zero = (
            (vars(self)["_number"], _ZERO) if denominator.ndim else (denominator.new_tensor(self.epsilon), 0.0)
        )
        if self.norm_scale:
            dim = tuple(range(1, denominator.ndim)) if self.dim is None else self.dim
            # torch takes an empty tuple for "all dimensions"; one value a sample is its own mean
            square = denominator.square()
            mean = square if dim == () else square.mean(dim=dim, keepdim=True)
            epsilon = self.epsilon * mean.sqrt()
        elif denominator.device.type != "cpu":
            epsilon = denominator.new_full((), self.epsilon)
        # -0.0 + 0.0 is 0.0, so that its sign is +; a sign has no derivative
        positive_zero = denominator.detach() + zero
        if self.clip:
            return torch.copysign(torch.maximum(denominator.abs(), epsilon), positive_zero)
        return denominator + torch.copysign(epsilon, positive_zero)

    @classmethod
    def ensure(cls, value: float | Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """Turn a number into a Stabilizer and pass a callable through.

        Raises
        ------
        TypeError
            If ``value`` is neither a number nor callable.

        """
        if callable(value):
            return value
        if isinstance(value, bool) or not isinstance(value, Real):
            msg = (
                f"the stabilizer is {value!r}, a {type(value).__name__}; expected a number such as 1e-6, "
                "or a callable that maps denominators to stabilized denominators"
            )
            raise TypeError(msg)
        return cls(epsilon=value)
