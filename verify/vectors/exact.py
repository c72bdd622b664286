"""The rules' parts in exact arithmetic, rounded once at the end: the same digits on every machine, however it adds up.

The matrices are those of `reference`; what is done with them here is the definition of a part,

    d = sum_t A_t v_t + bias        s = gate * R / S(d)        r = sum_parts coefficient * sum_t v_t * (A_t^T s)

in integers over a power of two. Only a quotient and a root have no end: they get 2^-400. What is left of that where
terms cancel is rounded away at 2^-300.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import isqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from reference.rules import Part, Parts, Stabilizer
from reference.windows import Array

Exact = npt.NDArray[Any]  # of int or Fraction

_DIGITS, _KEPT = 400, 300


@dataclass(frozen=True)
class Answer:
    """Relevance (n,) and sinks of one sample, each correctly rounded; `poles`: a stabilized denominator is 0."""

    relevance: Array
    sinks: dict[str, float]
    poles: bool = False


def integers(values: Array) -> tuple[Exact, int]:
    """Return integers k and an exponent e, values = k / 2^e exactly.

    >>> integers(np.array([0.75, -2.0]))
    (array([3, -8], dtype=object), 2)
    """
    ratios = [float(value).as_integer_ratio() for value in values.ravel()]
    exponent = max((denominator.bit_length() - 1 for _, denominator in ratios), default=0)
    scaled = np.empty(len(ratios), object)
    scaled[:] = [(numerator << exponent) // denominator for numerator, denominator in ratios]
    return scaled.reshape(values.shape), exponent


def product(matrix: Array, v: Array) -> list[Fraction]:
    """A v (m,)."""
    (A, a), (x, e) = integers(matrix), integers(v)
    return [Fraction(int(value), 1 << (a + e)) for value in A @ x]


def contributions(part: Part) -> list[Fraction]:
    """What the inputs contribute to the denominators of a part (m,)."""
    terms = [product(matrix, v) for matrix, v in part.terms]
    return [sum(column, Fraction()) for column in zip(*terms, strict=True)]


def stabilized(d: Sequence[Fraction], stabilizer: Stabilizer) -> list[Fraction]:
    """S(d), with sgn(0) = +1."""
    eps = Fraction(stabilizer.epsilon)
    if stabilizer.norm_scale and d:
        mean = sum((value * value for value in d), Fraction()) / len(d)
        eps *= Fraction(isqrt((mean.numerator << 2 * _DIGITS) // mean.denominator), 1 << _DIGITS)
    signs = [-1 if value < 0 else 1 for value in d]
    if stabilizer.clip:
        return [sign * max(abs(value), eps) for sign, value in zip(signs, d, strict=True)]
    return [value + sign * eps for sign, value in zip(signs, d, strict=True)]


def answer(parts: Parts, R: Array, stabilizer: Stabilizer) -> Answer:
    """Return the relevance of the inputs and where the rest went; nothing of it where a denominator is a pole."""
    relevance = [Fraction()] * len(parts[0].terms[0][1])
    inputs = bias = stabilized_away = Fraction()
    given = _fractions(R)
    closed = [True] * len(given)
    for index, part in enumerate(parts):
        contributed, constant, factor = contributions(part), _fractions(part.bias), Fraction(part.coefficient)
        d = [own + b for own, b in zip(contributed, constant, strict=True)]
        S, open_ = stabilized(d, stabilizer), _open(part, index)
        if not all(S):  # also where a gate is closed: 0 times infinity is not everyone's 0
            return Answer(np.full(len(relevance), np.nan), {}, poles=True)
        s = [_cut(R_j / S_j) if is_open else 0 for R_j, S_j, is_open in zip(given, S, open_, strict=True)]
        for matrix, v in part.terms:
            A, a = integers(matrix)
            back = A.T @ np.array(s, object)
            scale = factor / (1 << (a + _DIGITS))
            relevance = [r + x * (scale * int(b)) for r, x, b in zip(relevance, _fractions(v), back, strict=True)]
        inputs += factor * _dot(s, contributed)
        bias += factor * _dot(s, constant)
        stabilized_away += factor * _dot(s, [S_j - d_j for S_j, d_j in zip(S, d, strict=True)])
        closed = [was and not is_open for was, is_open in zip(closed, open_, strict=True)]
    zero_branch = sum((R_j for R_j, shut in zip(given, closed, strict=True) if shut), Fraction())
    sinks = {"inputs": inputs, "bias": bias, "stabilizer": stabilized_away, "zero_branch": zero_branch}
    return Answer(np.array(list(map(_rounded, relevance))), {name: _rounded(value) for name, value in sinks.items()})


def _open(part: Part, index: int) -> list[bool]:
    """Which outputs take part: all, or for Gamma those above zero in its first part and those below in its second."""
    if part.gate is None:
        return [True] * len(part.bias)
    opener = part.known_sizes.gate
    assert opener is not None
    z = [own + b for own, b in zip(contributions(opener), _fractions(opener.bias), strict=True)]
    return [value > 0 if index == 0 else value < 0 for value in z]


def _fractions(values: Array) -> list[Fraction]:
    return [Fraction(float(value)) for value in values]


def _cut(value: Fraction) -> int:
    """The nearest multiple of 2^-400, as an integer."""
    return round(value * (1 << _DIGITS))


def _dot(s: Sequence[int], values: Sequence[Fraction]) -> Fraction:
    return sum((s_j * value for s_j, value in zip(s, values, strict=True)), Fraction()) / (1 << _DIGITS)


def _rounded(value: Fraction) -> float:
    return float(Fraction(round(value * (1 << _KEPT)), 1 << _KEPT))
