"""An audit as one page: the flow down the network as a picture, and a table that filters, sorts and shows entries.

It needs nothing else, and no network.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jinja2

from verify.auditing.account import HELD
from verify.auditing.picture import FAULT, SINKS, STRIP, Picture, picture
from verify.auditing.text import shown_where, summary
from verify.formats.files import write

if TYPE_CHECKING:
    from verify.auditing.account import Account, Row
    from verify.auditing.picture import Step

_MIDDLE, _WIDEST, _HEIGHT = 260.0, 300.0, 18.0


class _Drawn(NamedTuple):
    """A step of the picture in the page, from y on: corners of the strip, and the paths of what branches off."""

    step: Step
    row: Row
    y: float
    points: str
    #: Colour, name, width, path.
    branches: list[tuple[str, str, float, str]]


def _drawn(flow: Picture) -> list[_Drawn]:
    found = []
    for index, step in enumerate(flow.steps):
        y, a, b = index * _HEIGHT, _WIDEST * step.above / 2, _WIDEST * step.below / 2
        corners = [(_MIDDLE - a, y), (_MIDDLE + a, y), (_MIDDLE + b, y + _HEIGHT), (_MIDDLE - b, y + _HEIGHT)]
        branches = []
        for number, branch in enumerate(step.branches):
            thick = max(1.5, min(_HEIGHT / 3, _WIDEST * branch.width))
            start, side = _MIDDLE + max(a, b), y + 4 + 7 * (number % 3)
            branches.append((branch.colour, branch.name, thick, f"M{start:.1f},{side:.1f} h24"))
        found.append(_Drawn(step, step.rows[0], y, " ".join(f"{x:.1f},{at:.1f}" for x, at in corners), branches))
    return found


def page(audit: Account) -> str:
    """Return the page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters |= {"number": _number, "exact": _exact, "where": shown_where}
    flow = picture(audit)
    marks: list[tuple[str, float]] = []
    at = 0
    for name, count in flow.blocks:
        marks.append((name, at * _HEIGHT))
        at += count
    given: dict[str, Any] = {
        "audit": audit, "summary": summary(audit), "steps": _drawn(flow), "blocks": marks, "height": at * _HEIGHT,
        "logarithmic": flow.logarithmic, "sinks": SINKS, "held": HELD, "strip": STRIP, "fault": FAULT,
    }  # fmt: skip
    return environment.get_template("page.html.j2").render(given)


def write_page(audit: Account, path: str | Path) -> None:
    """Write the page to a file."""
    write(Path(path), page(audit).encode())


def _number(value: float) -> str:
    return "" if value == 0 else "?" if value != value else f"{value:.4g}"  # noqa: PLR0124  NaN


def _exact(value: float) -> str:
    return "?" if value != value else f"{value + 0.0:.10g}"  # noqa: PLR0124  NaN
