"""The stabilized denominator. This is the only place that decides sgn(0)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING

import torch

from lrp_rules.layers.blocks import into

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


@dataclass(frozen=True)
class Stabilizer:
    """Keep a denominator away from zero without changing its sign.

    S(d) = d + eps * sgn(d), with sgn(0) = +1, so that no 0 / 0 occurs.

    Parameters
    ----------
    epsilon
        eps, in units of the denominator; finite and not negative.
    clip
        Use S(d) = sgn(d) * max(|d|, eps) instead, which leaves large denominators unchanged.
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
    _numbers: dict[torch.dtype, tuple[Tensor, ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        epsilon = self.epsilon
        if isinstance(epsilon, bool) or not isinstance(epsilon, Real):  # numpy's numbers are Real, too
            msg = f"epsilon is {epsilon!r}, a {type(epsilon).__name__}; expected a number"
            raise TypeError(msg)
        if not 0 <= epsilon < math.inf:
            msg = f"epsilon is {epsilon!r}; expected a finite number that is not negative, such as 1e-6"
            raise ValueError(msg)
        object.__setattr__(self, "epsilon", float(epsilon))  # numpy's, and fractions
        # numbers would be made into tensors at each call, which takes longer than the arithmetic of a small layer; and
        # those that are made in inference mode are of no use to a graph
        with torch.inference_mode(mode=False):
            tensors = {
                dtype: tuple(torch.tensor(number, dtype=dtype, device="cpu") for number in (self.epsilon, 0.0, -1.0))
                for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16)
            }
        object.__setattr__(self, "_numbers", tensors)

    def __call__(self, denominator: Tensor) -> Tensor:
        """Return S(d), of the shape of ``denominator``."""
        if not denominator.is_floating_point():
            denominator = denominator.to(torch.result_type(denominator, 0.0))
        epsilon, zero, minus_one = (denominator.is_cpu and self._numbers.get(denominator.dtype)) or (
            denominator.new_full((), number) for number in (self.epsilon, 0.0, -1.0)
        )
        if self.norm_scale:
            dim = tuple(range(1, denominator.ndim)) if self.dim is None else self.dim
            # torch takes an empty tuple for "all dimensions"; one value a sample is its own mean
            square = denominator.square()
            mean = square if dim == () else square.mean(dim=dim, keepdim=True)
            epsilon = self.epsilon * mean.sqrt()
        # 2 (d >= 0) - 1, so that both zeros have the sign +; torch.copysign takes as long as all of it
        sgn = torch.ge(denominator, zero, out=into(torch.empty_like(denominator)))
        sgn = torch.add(minus_one, sgn, alpha=2, out=into(sgn))
        if self.clip:
            return torch.mul(sgn, torch.maximum(denominator.abs(), epsilon), out=into(sgn))
        return torch.addcmul(denominator, sgn, epsilon, out=into(sgn))

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
