"""The rules' parts in exact arithmetic, rounded once at the end: the same digits on every machine, however it adds up.

The matrices are those of `reference`; what is done with them here is the definition of a part,

    d = sum_t A_t v_t + bias        s = gate * R / S(d)        r = sum_parts coefficient * sum_t v_t * (A_t^T s)

in integers k that stand for k / 2^600. Sums and products of the numbers that come in are exact; only quotients and
roots have no end there. What is left of that where terms cancel is rounded away at 2^-300.
"""

from dataclasses import dataclass
from math import isqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from reference.rounding import CallableStabilizer
from reference.rules import Part, Parts, Stabilizer
from reference.windows import Array

Fixed = npt.NDArray[Any]  # of int: k stands for k / 2^600

_SCALE, _KEPT = 600, 300


@dataclass(frozen=True)
class Answer:
    """Relevance (n,) and sinks of one sample, each correctly rounded; `poles`: a stabilized denominator is 0."""

    relevance: Array
    sinks: dict[str, float]
    poles: bool = False


def integers(values: Array) -> tuple[Fixed, int]:
    """Return integers k and an exponent e, values = k / 2^e exactly.

    >>> integers(np.array([0.75, -2.0]))
    (array([3, -8], dtype=object), 2)
    """
    ratios = [value.as_integer_ratio() for value in values.ravel().tolist()]
    exponent = max((denominator for _, denominator in ratios), default=1).bit_length() - 1
    return _objects([(numerator << exponent) // denominator for numerator, denominator in ratios], values), exponent


def fixed(values: Array) -> Fixed:
    """Return the numbers as integers, exactly. ValueError for one that has digits below 2^-600."""
    numbers, exponent = integers(values)
    if exponent > _SCALE // 2:
        message = f"exact: given a number with digits at 2^-{exponent}, expected none below 2^-{_SCALE // 2}"
        raise ValueError(message)
    return numbers << (_SCALE - exponent)


def _objects(numbers: list[int], like: Array) -> Fixed:
    found = np.empty(len(numbers), object)
    found[:] = numbers
    return found.reshape(like.shape)


def product(matrix: Array, v: Fixed) -> Fixed:
    """A v (m,)."""
    A, exponent = integers(matrix)
    return np.asarray((A @ v) >> exponent)


def contributions(part: Part) -> Fixed:
    """What the inputs contribute to the denominators of a part (m,)."""
    return np.asarray(sum(product(matrix, fixed(v)) for matrix, v in part.terms))


def stabilized(d: Fixed, stabilizer: Stabilizer | CallableStabilizer) -> Fixed:
    """S(d), with sgn(0) = +1; a callable is that of a rule that divides by 1."""
    if not isinstance(stabilizer, Stabilizer):
        return fixed(stabilizer(np.zeros(len(d))))
    eps = int(fixed(np.array(stabilizer.epsilon)))
    if stabilizer.norm_scale:
        eps = eps * isqrt(int((d * d).sum()) // len(d)) >> _SCALE
    sign = np.where(d < 0, -1, 1).astype(object)
    return np.asarray(sign * np.maximum(abs(d), eps) if stabilizer.clip else d + sign * eps)


def answer(parts: Parts, R: Array, stabilizer: Stabilizer | CallableStabilizer) -> Answer:
    """Return the relevance of the inputs and where the rest went; nothing of it where a denominator is a pole."""
    given = fixed(R)
    closed = np.ones(len(R), np.bool_)
    relevance: Any = 0
    inputs = bias = stabilized_away = 0
    for index, part in enumerate(parts):
        contributed, constant, factor = contributions(part), fixed(part.bias), int(fixed(np.array(part.coefficient)))
        d = contributed + constant
        S, open_ = stabilized(d, stabilizer), _open(part, index)
        if not all(S):  # also where a gate is closed: 0 times infinity is not everyone's 0
            return Answer(np.full(len(part.terms[0][1]), np.nan), {}, poles=True)
        s = factor * np.where(open_, (given << _SCALE) // S, 0).astype(object) >> _SCALE
        for matrix, v in part.terms:
            relevance = relevance + (fixed(v) * product(matrix.T, s) >> _SCALE)
        inputs += (s * contributed).sum()
        bias += (s * constant).sum()
        stabilized_away += (s * (S - d)).sum()
        closed &= ~open_
    zero_branch = given[closed].sum() << _SCALE
    sinks = {"inputs": inputs, "bias": bias, "stabilizer": stabilized_away, "zero_branch": zero_branch}
    return Answer(
        np.array([_rounded(value) for value in relevance]),
        {name: _rounded(int(value) >> _SCALE) for name, value in sinks.items()},
    )


def _open(part: Part, index: int) -> npt.NDArray[np.bool_]:
    """Which outputs take part: all, or for Gamma those above zero in its first part and those below in its second."""
    if part.gate is None:
        return np.ones(len(part.bias), np.bool_)
    opener = part.known_sizes.gate
    if opener is None:  # closed, or open, whatever the numbers are
        return part.gate
    z = contributions(opener) + fixed(opener.bias)
    return np.asarray(z > 0 if index == 0 else z < 0, np.bool_)


def _rounded(value: int) -> float:
    """The nearest float of a number that is first rounded to 2^-300; a quotient of integers is rounded correctly."""
    shift = _SCALE - _KEPT
    return ((value + (1 << (shift - 1))) >> shift) / (1 << _KEPT)
