"""Operations of several tensors as modules of one: what is asked about a layer can then be asked about them."""

from __future__ import annotations

from functools import reduce
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Shape = tuple[int, ...]


class Add(nn.Module):
    """A sum."""

    def forward(self, *terms: Tensor) -> Tensor:
        """Add them up."""
        return reduce(torch.add, terms)


class Multiply(nn.Module):
    """An elementwise product."""

    def forward(self, *factors: Tensor) -> Tensor:
        """Multiply them."""
        return reduce(torch.mul, factors)


class MatMul(nn.Module):
    """A matrix product."""

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """Multiply them."""
        return torch.matmul(left, right)


class Operands(nn.Module):
    """Calls an operation with operands of these shapes, which its input has side by side in its last axis.

    The rule is meant for ``operation``. Operands at the positions of ``constants`` are those.
    """

    def __init__(
        self, operation: nn.Module, shapes: Sequence[Shape], constants: Mapping[int, Tensor] | None = None
    ) -> None:
        super().__init__()
        self.operation, self.shapes = operation, tuple(shapes)
        for position, value in (constants or {}).items():
            self.register_buffer(f"constant_{position}", value)

    def constant(self, position: int) -> Tensor | None:
        """Return the operand at this position, if it is a constant."""
        return getattr(self, f"constant_{position}", None)

    def forward(self, x: Tensor) -> Tensor:
        """Call the operation."""
        constants = [self.constant(position) for position in range(len(self.shapes))]
        pairs = list(zip(self.shapes, constants, strict=True))
        parts = iter(x.split([prod(shape) for shape, constant in pairs if constant is None], -1))
        operands = [
            next(parts).reshape(*x.shape[:-1], *shape) if constant is None else constant for shape, constant in pairs
        ]
        found: Tensor = self.operation(*operands)
        return found


def ruled(module: nn.Module) -> nn.Module:
    """Return the module that a rule is registered on."""
    return module.operation if isinstance(module, Operands) else module
