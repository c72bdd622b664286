"""Derivatives by finite differences, and how far truncation and rounding can take those."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from reference.rules import Parts

    Array = NDArray[np.float64]

_STEP = 2.0**-10


@dataclass(frozen=True)
class Value:
    """<r, weights>, how far rounding can take it, and the signs that may not change on the way."""

    value: float
    off: float
    signs: tuple[Any, ...]

    @classmethod
    def total(cls, values: Sequence[Value]) -> Value:
        """Return the sum over samples."""
        return cls(sum(v.value for v in values), sum(v.off for v in values), tuple(v.signs for v in values))


def differentiate(value: Callable[[Array], Value], start: Array, directions: Array) -> tuple[Array, Array]:
    """Return the slopes along directions, and how far truncation, told by halving the step, and rounding take them."""
    slopes, limits = np.zeros(len(directions)), np.zeros(len(directions))
    for index, direction in enumerate(directions):
        points = {k: value(start + k * _STEP * direction) for k in (-2.0, -1.0, -0.5, 0.5, 1.0, 2.0)}
        # fourth order: (8 (f(h) - f(-h)) - (f(2h) - f(-2h))) / 12h, for h and for h / 2
        coarse, fine = (
            (8 * (points[k].value - points[-k].value) - (points[2 * k].value - points[-2 * k].value)) / (12 * k * _STEP)
            for k in (1.0, 0.5)
        )
        rounding = max(point.off for point in points.values()) * 18 / (12 * 0.5 * _STEP)
        kink = len({point.signs for point in points.values()}) > 1
        # the error of the fine one is a sixteenth of the coarse one's: their difference is fifteen times as large
        slopes[index] = fine
        limits[index] = np.inf if kink else abs(coarse - fine) + rounding
    return slopes, limits


def pattern(n: int) -> Array:
    """Return numbers of both signs without a period."""
    return np.cos(np.arange(n, dtype=np.float64))


def signs(parts: Parts, relevance: Array) -> list[bytes]:
    """Return the signs of the denominators that share a relevance, and their gates: where one changes, is a kink."""
    live = relevance != 0
    return [
        (part.denominator[live] < 0).tobytes() + (b"" if part.gate is None else part.gate[live].tobytes())
        for part in parts
    ]
