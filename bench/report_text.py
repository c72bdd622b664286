"""How the report writes numbers: three significant digits, with a unit, and a word where there is none."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

#: What stands where a number is missing. A report says why beside it.
MISSING = "—"

#: What stands for a cell without a time, by its status; 'absent' where the run has no such cell.
MARKS = {"disagrees": "≠", "failed": "!", "out-of-memory": "▣", "unsupported": "-", "absent": "·"}

_SECONDS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
_BYTES = ((2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "B"))


def number(value: float | None) -> str:
    """Return a number with three significant digits, never in powers of ten.

    >>> number(0.012345), number(9.996), number(12345.0), number(None)
    ('0.0123', '10.0', '12300', '—')

    """
    if value is None or math.isnan(value):
        return MISSING
    if math.isinf(value) or value == 0:
        return "0" if value == 0 else str(value)
    decimals = 2 - int(f"{value:.2e}".partition("e")[2])  # the exponent after rounding: 9.996 has that of 10
    return f"{round(value, decimals):.{max(decimals, 0)}f}"


def seconds(value: float | None) -> str:
    """Return a duration in the unit that leaves one to three digits before the point.

    >>> seconds(0.00012345), seconds(0.99999), seconds(250.0)
    ('123 µs', '1.00 s', '250 s')

    """
    return _quantity(value, _SECONDS)


def size(value: float | None) -> str:
    """Return a number of bytes in binary units.

    >>> size(1536.0), size(3 * 2**20)
    ('1.50 KiB', '3.00 MiB')

    """
    return _quantity(value, _BYTES)


def ratio(value: float | None) -> str:
    """Return a ratio: a number with the sign of multiplication."""
    text = number(value)
    return text if text == MISSING else f"{text}\N{MULTIPLICATION SIGN}"


def interval(low: float | None, high: float | None) -> str:
    """Return an interval in brackets, or nothing where either end is missing."""
    ends = number(low), number(high)
    return "" if MISSING in ends else f"[{ends[0]}, {ends[1]}]"


def percent(share: float | None) -> str:
    """Return a share in percent.

    >>> percent(0.02), percent(0.00234)
    ('2.00 %', '0.234 %')

    """
    text = number(None if share is None else 100 * share)
    return text if text == MISSING else f"{text} %"


def geometric_mean(values: Iterable[float]) -> float | None:
    """Return the geometric mean of positive numbers, None of no numbers: the mean that suits ratios."""
    logs = [math.log(value) for value in values]
    return math.exp(math.fsum(logs) / len(logs)) if logs else None


def plural(count: int, noun: str) -> str:
    """Return a count with its noun."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _quantity(value: float | None, units: tuple[tuple[float, str], ...]) -> str:
    if value is None or math.isnan(value):
        return MISSING
    # 0.9996 s is written 1.00 s, not 1000 ms: choose by the rounded value
    rounded = float(f"{value:.2e}")
    factor, unit = next((entry for entry in units if abs(rounded) >= entry[0]), units[-1])
    return f"{number(value / factor)} {unit}"
