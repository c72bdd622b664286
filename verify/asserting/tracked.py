"""Numbers that know how far rounding may have taken them, for formulas of which no bound was derived by hand.

Put into arrays (`tracked_array`), they go through a formula written in NumPy once; its result then says what the
formula gives and how far any implementation of it may be off in the precision of a model, whatever the order in which
it adds up and wherever it multiplies out.

Notation as in `reference.rounding`: u is the unit roundoff, gamma(k) = k u / (1 - k u). A number is a sum of n terms
t_i that is not rounded yet. Of these it keeps sum t_i (``value``), sum |t_i| (``size``), n (``terms``), and sum e_i
(``error``), by which the terms themselves are off. Whenever the sum is used as one number, it is off by at most

    off = e + gamma(n - 1) (M + e),     M = sum |t_i|, e = sum e_i

    a + b    the terms of both:                n = n_a + n_b, M = M_a + M_b, e = e_a + e_b; a zero is no term
    a b      multiplied out, each rounded:     n = n_a n_b, M = M_a M_b,
                 e = e' + u (M + e') + n tiny,    e' = M_a e_b + M_b e_a + e_a e_b
             To add up first is covered: n_a - 1 + n_b - 1 <= n_a n_b - 1.
    a / b    with q = off_b / (|b| - off_b), a quotient or a product with a reciprocal:
                 M = M_a / |b|,  e = e' + gamma(2) (M + e') + n tiny (1 + M_a),    e' = e_a (1 + q) / |b| + M q
             Infinite if b may be zero, or its sign is undecided: |b| <= off_b.
    |a|, max, min   move no more than their arguments.
    sqrt     e = min(off / sqrt(a), sqrt(off)) + u (sqrt(a) + that)
    a < b    decided if |a - b| > off_a + off_b, or both are exact. What an undecided comparison chooses is infinitely
             off, unless both choices are the same; one that decides the course of the program raises UndecidedError.

What is compared, divided by, or asked for its magnitude has been added up before: from then on it is one term that is
off by off. Integer multiples of a power of two (``grain``) are exact in any order while M <= grain / u, if the grain
itself is not lost below the smallest number: then e = 0. A constant such as 1e-6 is rounded to the precision. The
values here are computed in float64, where they are off themselves: all of the above is convex in u and zero for u =
0, so by at most 2^-53 / u of the same bound (``slack``).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from reference.precision import FLOAT64

if TYPE_CHECKING:
    from collections.abc import Callable

    from reference.precision import Model


class UndecidedError(ArithmeticError):
    """Rounding decides a comparison on which the course of the formula depends: nothing can be said of its result."""


class Tracked:
    """A number of a formula, see above. All of NumPy that the operators of Python are enough for takes it."""

    __slots__ = ("error", "grain", "model", "size", "terms", "value")

    def __init__(self, value: float, size: float, terms: float, error: float, grain: float, model: Model) -> None:
        self.value, self.size, self.terms, self.error, self.grain = value, size, terms, error, grain
        self.model = model

    @classmethod
    def of(cls, number: Any, model: Model) -> Tracked:
        """Return a number as it is written in a formula: rounded, where the precision does not have it."""
        if isinstance(number, Tracked):
            return number
        if isinstance(number, Decision):
            return number.number()
        value = float(number)
        known = model.unit <= FLOAT64.unit or float(np.float32(value)) == value
        error = 0.0 if known else model.unit * abs(value) + model.tiny
        return cls(value, abs(value), float(value != 0), error, _grain(value), model)

    @property
    def off(self) -> float:
        """How far the finished number may be off; inf where nothing finite holds."""
        e, size = self.error, self.size
        if e or (self.terms > 1 and not size <= self.grain / self.model.unit):
            ku = max(self.terms - 1, 0) * self.model.unit
            e += ku / (1 - ku) * (size + e) if ku < 1 else math.inf
        # NaN is infinite too
        return e if e < math.inf and size <= self.model.huge / 2 else math.inf

    @property
    def exact(self) -> bool:
        """Whether no evaluation rounds it."""
        return self.off == 0

    def finish(self) -> Self:
        """Add up: from now on this is one term."""
        if self.terms > 1:
            off = self.off
            self.size, self.terms, self.error = abs(self.value), float(self.value != 0), off
            self.grain = _grain(self.value) if off == 0 else 0.0
        return self

    def farther(self, off: float) -> bool:
        """Whether it is farther from zero than rounding reaches, its own rounding in float64 included."""
        return off == 0 or abs(self.value) > off * slack(self.model)

    def __repr__(self) -> str:
        return f"{self.value!r} ± {self.off:.3g}"

    # --- arithmetic ---------------------------------------------------------------------------------------------------

    def __add__(self, other: Any) -> Tracked:
        if isinstance(other, np.ndarray):  # which asks each of its entries
            return NotImplemented
        b = Tracked.of(other, self.model)
        if not (b.size or b.error):
            return self
        if not (self.size or self.error):
            return b
        return Tracked(
            self.value + b.value,
            self.size + b.size,
            self.terms + b.terms,
            self.error + b.error,
            min(self.grain, b.grain),
            self.model,
        )

    __radd__ = __add__

    def __neg__(self) -> Tracked:
        return Tracked(-self.value, self.size, self.terms, self.error, self.grain, self.model)

    def __pos__(self) -> Tracked:
        return self

    def __sub__(self, other: Any) -> Tracked:
        return NotImplemented if isinstance(other, np.ndarray) else self + -Tracked.of(other, self.model)

    def __rsub__(self, other: Any) -> Any:
        return -self + other

    def __mul__(self, other: Any) -> Tracked:
        if isinstance(other, np.ndarray):
            return NotImplemented
        b = Tracked.of(other, self.model)
        for zero, factor in ((self, b), (b, self)):
            # what is undecided is some number, but what is not finite makes NaN of zero
            if not (zero.size or zero.error) and math.isfinite(factor.value):
                return zero
        size, grain, unit = self.size * b.size, self.grain * b.grain, self.model.unit
        error = (self.size * b.error if b.error else 0.0) + (b.size * self.error if self.error else 0.0)
        error += self.error * b.error if self.error and b.error else 0.0
        terms = max(self.terms, 1.0) * max(b.terms, 1.0)
        if error or not size <= grain / unit or grain < 2 * self.model.tiny:
            error += unit * (size + error) + terms * self.model.tiny
        return Tracked(self.value * b.value, size, terms, error, grain, self.model)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Tracked:
        if isinstance(other, np.ndarray):
            return NotImplemented
        b = Tracked.of(other, self.model).finish()
        value = self.value / b.value if b.value else math.nan
        off, magnitude = b.off, abs(b.value)
        room = magnitude - off * slack(self.model)
        if not room > 0:
            return Tracked(value, abs(value), 1.0, math.inf, 0.0, self.model)
        if not (self.size or self.error):
            return self
        grain = self.grain / magnitude
        if not off and self.exact and math.frexp(magnitude)[0] == 0.5 and grain >= 2 * self.model.tiny:
            return Tracked(value, self.size / magnitude, self.terms, 0.0, grain, self.model)
        size, q = self.size / magnitude, off / room
        error = self.error * (1 + q) / magnitude + size * q
        two = 2 * self.model.unit / (1 - 2 * self.model.unit)
        error += two * (size + error) + max(self.terms, 1.0) * self.model.tiny * (1 + self.size)
        return Tracked(value, size, self.terms, error, 0.0, self.model)

    def __rtruediv__(self, other: Any) -> Tracked:
        return Tracked.of(other, self.model) / self

    def __pow__(self, power: Any) -> Tracked:
        if power == 0.5:
            return self.sqrt()
        if power != int(power) or power < 0:
            msg = f"a tracked number to the power of {power}; expected 0, 1, 2, ... or 0.5, or a product, or np.sqrt"
            raise TypeError(msg)
        result = Tracked.of(1.0, self.model)
        for _ in range(int(power)):
            result = result * self
        if result.error:  # a library's power rounds once more than a product
            result.error += self.model.unit * (result.size + result.error)
        return result

    def __abs__(self) -> Tracked:
        self.finish()
        return Tracked(abs(self.value), self.size, self.terms, self.error, self.grain, self.model)

    def sqrt(self) -> Tracked:
        """Return the square root; NumPy calls it."""
        value, off = math.sqrt(self.value) if self.value >= 0 else math.nan, self.off
        error = min(off / value, math.sqrt(off)) if value else math.sqrt(off)
        error += self.model.unit * (value + error)
        return Tracked(value, value, float(value != 0), error, 0.0, self.model)

    # --- comparisons --------------------------------------------------------------------------------------------------

    def _decide(self, other: Any, compare: Callable[[float, float], bool]) -> Decision:
        b = Tracked.of(other, self.model).finish()
        off = self.finish().off + b.off
        apart = Tracked(self.value - b.value, 0.0, 0.0, 0.0, 0.0, self.model)
        return Decision(compare(self.value, b.value), apart.farther(off), self.model)

    def __lt__(self, other: Any) -> Decision:
        return self._decide(other, float.__lt__)

    def __le__(self, other: Any) -> Decision:
        return self._decide(other, float.__le__)

    def __gt__(self, other: Any) -> Decision:
        return self._decide(other, float.__gt__)

    def __ge__(self, other: Any) -> Decision:
        return self._decide(other, float.__ge__)

    def __eq__(self, other: object) -> Decision:  # type: ignore[override]  # as arrays do
        return self._decide(other, float.__eq__)

    def __ne__(self, other: object) -> Decision:  # type: ignore[override]  # as arrays do
        return self._decide(other, float.__ne__)

    __hash__ = None  # type: ignore[assignment]  # two numbers that compare equal need not be the same number

    def __bool__(self) -> bool:
        return bool(self != 0)


class Decision:
    """The outcome of a comparison, and whether rounding could have turned it."""

    __slots__ = ("decided", "model", "value")

    def __init__(self, value: bool, decided: bool, model: Model) -> None:  # noqa: FBT001  what it holds
        self.value, self.decided, self.model = value, decided, model

    @classmethod
    def of(cls, given: Any, model: Model) -> Decision:
        """Return anything that is true or false as a decision."""
        return given if isinstance(given, Decision) else cls(bool(given), decided=True, model=model)

    def __bool__(self) -> bool:
        if not self.decided:
            msg = "rounding decides a comparison"
            raise UndecidedError(msg)
        return self.value

    def __repr__(self) -> str:
        return str(self.value) if self.decided else f"{self.value}?"

    def __invert__(self) -> Decision:
        return Decision(not self.value, self.decided, self.model)

    def __and__(self, other: Any) -> Decision:
        b = Decision.of(other, self.model)
        refuted = (self.decided and not self.value) or (b.decided and not b.value)
        return Decision(self.value and b.value, refuted or (self.decided and b.decided), self.model)

    __rand__ = __and__

    def __or__(self, other: Any) -> Decision:
        return ~(~self & ~Decision.of(other, self.model))

    __ror__ = __or__

    def number(self) -> Tracked:
        """1 or 0, infinitely off if undecided."""
        one = Tracked.of(float(self.value), self.model)
        return one if self.decided else Tracked(one.value, 1.0, 1.0, math.inf, 0.0, self.model)

    def choose(self, a: Any, b: Any) -> Any:
        """Return a if true, else b."""
        if self.decided:
            return a if self.value else b
        first, second = Tracked.of(a, self.model), Tracked.of(b, self.model)
        if first.exact and second.exact and first.value == second.value:
            return a
        chosen = first if self.value else second
        return Tracked(chosen.value, abs(chosen.value), 1.0, math.inf, 0.0, self.model)

    def __add__(self, other: Any) -> Any:
        return self.number() + other

    def __sub__(self, other: Any) -> Any:
        return self.number() - other

    def __rsub__(self, other: Any) -> Any:
        return other - self.number()

    def __mul__(self, other: Any) -> Any:
        return self.number() * other

    def __truediv__(self, other: Any) -> Any:
        return self.number() / other

    def __neg__(self) -> Tracked:
        return -self.number()

    __radd__, __rmul__ = __add__, __mul__


def _grain(value: float) -> float:
    """Return the largest power of two that divides a number; inf for zero, 0 where there is none."""
    if not math.isfinite(value):
        return 0.0
    numerator, denominator = value.as_integer_ratio()
    return (numerator & -numerator) / denominator if numerator else math.inf


def slack(model: Model) -> float:
    """Return 1 + 2^-53 / u, see the top, and a little for the rounding of all these sizes and errors themselves."""
    return (1 + FLOAT64.unit / model.unit) * (1 + 2.0**-20)
