"""Whether numbers agree within what rounding can explain. Everything that compares, compares here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """The largest test ratio |got - expected| / bound over the decided entries, and where it is.

    ``undecided`` is the share of entries whose bound is infinite: rounding decides the sign of a denominator there, or
    something leaves the range of numbers.
    """

    ratio: float
    probable: float
    undecided: float
    index: int | None

    @property
    def holds(self) -> bool:
        """Whether every decided entry lies within its bound. NaN does not."""
        return not self.refuted

    @property
    def refuted(self) -> bool:
        """Whether some decided entry lies outside its bound."""
        return not (self.ratio <= 1)


def compare(
    got: Array, expected: Array, bound: Array, probable: Array | None = None, overflows: NDArray[np.bool_] | None = None
) -> Comparison:
    """Compare entry by entry; those that overflow, and have an infinite bound, may even be NaN.

    Raises
    ------
    ValueError
        If the shapes differ: then no entry has a counterpart.

    """
    if got.shape != expected.shape:
        msg = f"shape {got.shape}, expected {expected.shape}"
        raise ValueError(msg)
    ratio = _ratios(got, expected, bound)
    # an undecided entry may be anything, but a rule of finite numbers is never NaN
    undecided = np.isposinf(bound) & (~np.isnan(got) | (False if overflows is None else overflows))
    decided = ratio[~undecided]
    share = float(undecided.mean()) if undecided.size else 0.0
    if not decided.size:
        return Comparison(0.0, 0.0, share, None)
    flat = np.where(undecided, -1.0, np.where(np.isnan(ratio), np.inf, ratio)).ravel()
    index = int(flat.argmax())
    likely = _ratios(got, expected, bound if probable is None else probable)[~undecided]
    return Comparison(_largest(decided), _largest(likely), share, index)


def _ratios(got: Array, expected: Array, bound: Array) -> Array:
    """|got - expected| / bound, where equal is 0 and unequal without any room is infinite. NaN stays."""
    same = got == expected  # also equal infinities
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        ratio = np.abs(got - expected) / bound
    ratio = np.where(bound == 0, np.inf, ratio)
    # what neither is equal nor has a finite distance is as far as can be; NaN in any of the three is no agreement
    unknown = np.isnan(got) | np.isnan(expected) | np.isnan(bound)
    return np.where(same & ~unknown, 0.0, np.where(unknown, np.nan, ratio))


def _largest(ratios: Array) -> float:
    return float(np.nan) if np.isnan(ratios).any() else float(ratios.max())


class ComparatorError(AssertionError):
    """The comparator itself is wrong: no verdict can be trusted."""


def check_itself() -> None:
    """Compare exactly representable data, of which every verdict is known.

    Raises
    ------
    ComparatorError
        If a verdict is another than it must be.

    """
    exact = np.array([1.0, -2.0, 0.0, 0.25])
    room = np.array([0.25, 0.5, 0.0, 0.125])
    nan, inf = np.nan, np.inf
    table: tuple[tuple[str, Array, Array, float], ...] = (
        ("equal", exact, room, 0.0),
        ("half of the bound", exact + room / 2, room, 0.5),
        ("on the bound", exact - room, room, 1.0),
        ("ten times the bound", exact + np.array([0, 5.0, 0, 0]), room, 10.0),
        ("off where there is no room", exact + np.array([0, 0, 1e-300, 0]), room, inf),
        ("permuted", exact[::-1].copy(), room, inf),
        ("infinite", np.array([inf, -2.0, 0.0, 0.25]), room, inf),
        ("NaN", np.array([1.0, nan, 0.0, 0.25]), room, nan),
        ("NaN where undecided", np.array([1.0, nan, 0.0, 0.25]), np.array([0.25, inf, 0.0, 0.125]), nan),
        ("anything where undecided", np.array([1.0, 7.0, 0.0, 0.25]), np.array([0.25, inf, 0.0, 0.125]), 0.0),
    )
    for name, got, bound, ratio in table:
        found = compare(got, exact, bound)
        same = found.ratio == ratio or (np.isnan(ratio) and np.isnan(found.ratio))
        if not same or found.holds != (ratio <= 1):
            msg = f"the comparator finds ratio {found.ratio} for data that is {name}; it must be {ratio}"
            raise ComparatorError(msg)
    may_overflow = np.array([False, True, True, False])
    for where in (1, 2, 3):
        # NaN is nothing known where both the bound is infinite and numbers overflow, and wrong where one of them is not
        bound = np.where(np.arange(4) == 2, room, np.inf)
        found = compare(np.where(np.arange(4) == where, nan, exact), exact, bound, None, may_overflow)
        if found.holds != (where == 1) or (found.holds and found.undecided != 0.75):
            msg = f"the comparator finds {found} for NaN in entry {where}; only entry 1 may be NaN"
            raise ComparatorError(msg)
    for wrong in (exact[:3], exact.reshape(2, 2)):
        try:
            compare(wrong, exact, room)
        except ValueError:
            continue
        msg = f"the comparator takes data of shape {wrong.shape} for {exact.shape}"
        raise ComparatorError(msg)
