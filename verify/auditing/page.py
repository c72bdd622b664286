"""An audit as one page: the flow down the network as a picture, and a table that filters and sorts.

It needs nothing else, and no network. Colours are those of Okabe and Ito, which all can tell apart, and nothing is said
by a colour alone.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jinja2

from verify.auditing.account import HELD, Row
from verify.auditing.text import blocks, shown_where, summary
from verify.formats.files import write

if TYPE_CHECKING:
    from verify.auditing.account import Account

#: What may take relevance, and what it is drawn with.
SINKS = {
    "bias": "#0072b2", "stabilizer": "#56b4e9", "dead": "#999999", "constants": "#009e73", "unexplained": "#d55e00",
}  # fmt: skip
_MIDDLE, _WIDEST, _HEIGHT = 260.0, 300.0, 18.0


class Step(NamedTuple):
    """One operation in the picture, from y to y + height: a strip that goes from one width to another."""

    y: float
    row: Row
    place: int
    points: str
    total: float
    #: Colour, name, width, and path of what branches off.
    branches: list[tuple[str, str, float, str]]


class Picture(NamedTuple):
    """The strip down the network."""

    steps: list[Step]
    blocks: list[tuple[str, float, float]]
    height: float
    logarithmic: bool


def picture(audit: Account) -> Picture:
    """Return the flow: behind each operation, all relevance that is on its way is what lies across the network."""
    totals = [audit.put_in]
    for row in audit.rows:
        totals.append(totals[-1] + row.relevance_out - row.relevance_in)
    largest = max(map(abs, totals), default=0.0) or 1.0
    least = min((abs(t) for t in totals if t), default=1.0)
    logarithmic = largest / least > 100

    def width(value: float) -> float:
        share = abs(value) / largest
        if logarithmic:
            share = math.log1p(abs(value) / least) / math.log1p(largest / least)
        return max(1.0, _WIDEST * share) if value else 0.0

    steps = []
    for index, (row, above, below) in enumerate(zip(audit.rows, totals, totals[1:], strict=False)):
        y, (a, b) = index * _HEIGHT, (width(above) / 2, width(below) / 2)
        corners = [(_MIDDLE - a, y), (_MIDDLE + a, y), (_MIDDLE + b, y + _HEIGHT), (_MIDDLE - b, y + _HEIGHT)]
        branches: list[tuple[str, str, float, str]] = []
        at = max(a, b)
        for name, colour in SINKS.items():
            value = getattr(row, name)
            if abs(value) > 1e-3 * max(row.gross_in, row.gross_out):
                thick = max(1.5, min(_HEIGHT / 3, width(value)))
                start, side = _MIDDLE + at, y + 4 + 7 * (len(branches) % 3)
                branches.append((colour, name, thick, f"M{start:.1f},{side:.1f} h24"))
        points = " ".join(f"{x:.1f},{at:.1f}" for x, at in corners)
        steps.append(Step(y, row, index, points, below, branches))
    marks, y = [], 0.0
    for name, rows in blocks(audit.rows):
        marks.append((name, y, len(rows) * _HEIGHT))
        y += len(rows) * _HEIGHT
    return Picture(steps, marks, y, logarithmic)


def page(audit: Account) -> str:
    """Return the page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters["number"] = _number
    environment.filters["where"] = shown_where
    template = environment.get_template("page.html.j2")
    return template.render(audit=audit, picture=picture(audit), summary=summary(audit), sinks=SINKS, held=HELD)


def write_page(audit: Account, path: str | Path) -> None:
    """Write the page to a file."""
    write(Path(path), page(audit).encode())


def _number(value: float) -> str:
    return "" if value == 0 else "?" if value != value else f"{value:.4g}"  # noqa: PLR0124  NaN
