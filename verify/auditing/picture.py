"""The flow down a network as a picture: a strip as wide as the relevance on its way, from which sinks branch off.

Behind each operation, all relevance that is on its way is what lies across the network there. Colours are those of
Okabe and Ito, which all can tell apart, and nothing is said by a colour alone.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from verify.auditing.account import HELD, Row
from verify.auditing.text import blocks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from verify.auditing.account import Account

#: How many parts the name of a block in a picture of many operations may have.
_DEEPEST = 4

#: Letters of a name.
_LONGEST = 30

STRIP, FAULT = "#0072b2", "#d55e00"
#: What may take relevance, and what it is drawn with.
SINKS = {
    "bias": "#cc79a7", "stabilizer": "#56b4e9", "dead": "#999999", "constants": "#009e73", "unexplained": "#d55e00",
}  # fmt: skip


class Branch(NamedTuple):
    """What a sink takes, and how wide that is; the widest strip has width 1."""

    name: str
    colour: str
    width: float


class Step(NamedTuple):
    """One operation, or several that held, between a strip of one width and of another."""

    rows: Sequence[Row]
    place: int
    above: float
    below: float
    branches: Sequence[Branch]

    @property
    def held(self) -> bool:
        """Whether all of it held."""
        return all(row.verdict == HELD for row in self.rows)

    @property
    def label(self) -> str:
        """What it is called."""
        if len(self.rows) > 1:
            return f"{len(self.rows)} operations"
        row = self.rows[0]
        module = row.module if len(row.module) <= _LONGEST else f"…{row.module[-_LONGEST:]}"
        return f"{'' if self.held else '✗ '}{row.operation[:_LONGEST]} {module}".rstrip()


class Picture(NamedTuple):
    """The strip down the network, and the names of its blocks with how many steps each has."""

    steps: Sequence[Step]
    blocks: Sequence[tuple[str, int]]
    logarithmic: bool


def picture(audit: Account, most: int | None = None) -> Picture:
    """Return the flow; of more than ``most`` operations, those of a block that held in a row are one step."""
    groups = [(name, [[row] for row in rows]) for name, rows in blocks(audit.rows)]
    if most is not None and len(audit.rows) > most:
        for depth in range(_DEEPEST, 0, -1):  # blocks as small as leave no more steps
            groups = [(name, _groups(rows)) for name, rows in blocks(audit.rows, depth)]
            if sum(len(parts) for _, parts in groups) <= most:
                break
    totals = [audit.put_in]
    for _, parts in groups:
        for rows in parts:
            totals.append(totals[-1] + sum(row.relevance_out - row.relevance_in for row in rows))
    largest = max((abs(t) for t in totals if math.isfinite(t)), default=0.0) or 1.0
    least = min((abs(t) for t in totals if t and math.isfinite(t)), default=1.0)
    logarithmic = largest / least > 100

    def width(value: float) -> float:
        if not value or not math.isfinite(value):
            return 0.0
        if logarithmic:
            return max(1 / 300, math.log1p(abs(value) / least) / math.log1p(largest / least))
        return max(1 / 300, abs(value) / largest)

    steps: list[Step] = []
    place = 0
    for rows in (rows for _, parts in groups for rows in parts):
        scale = max(max(row.gross_in, row.gross_out) for row in rows)
        taken = {name: sum(getattr(row, name) for row in rows) for name in SINKS}
        branches = [
            Branch(name, SINKS[name], width(value)) for name, value in taken.items() if abs(value) > 1e-3 * scale
        ]
        at = len(steps)
        steps.append(Step(rows, place, width(totals[at]), width(totals[at + 1]), branches))
        place += len(rows)
    return Picture(steps, [(name, len(parts)) for name, parts in groups], logarithmic)


def _groups(rows: Sequence[Row]) -> list[list[Row]]:
    found: list[list[Row]] = []
    for row in rows:
        if found and row.verdict == HELD == found[-1][-1].verdict:
            found[-1].append(row)
        else:
            found.append([row])
    return found
