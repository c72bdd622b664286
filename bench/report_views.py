"""What the report says: how we stand beside peers, the most important cells, the heat map. Plain numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from bench.report_data import GRADIENT, measured, unique
from bench.report_text import MISSING, geometric_mean, number, plural, ratio
from bench.table import CELL

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bench.report_data import Row

REGIMES = {
    "compute": "compute-bound",
    "memory": "memory-bound",
    "overhead": "overhead-bound (small layers)",
}


# --- peers ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Peer:
    """How we stand beside one peer, over all cells that both were measured in."""

    baseline: str
    rows: list[Row]
    #: The peer's time in gradients over the pass-count limit, in each of the cells that have one.
    over_limit: list[float]

    @property
    def mean(self) -> float | None:
        """How many times faster we are: the inverse of the geometric mean of the ratios."""
        mean = geometric_mean(row["ratio"] for row in self.rows)
        return None if mean is None else 1 / mean

    @property
    def at_limit(self) -> float | None:
        """How many times faster something would be that takes no more than its passes: the most there is to reach."""
        return geometric_mean(self.over_limit)

    def count(self, verdict: str) -> int:
        """Return the number of cells with this verdict."""
        return sum(row["verdict"] == verdict for row in self.rows)


def peers(rows: Iterable[Row]) -> list[Peer]:
    """Return one entry a peer."""
    groups: dict[str, list[Row]] = {}
    in_gradients: dict[tuple[Any, ...], float] = {}
    for row in rows:
        if not measured(row):
            continue
        if row["baseline"] == GRADIENT:
            in_gradients[_cell_of(row, row["subject"])] = row["ratio"]
        else:
            groups.setdefault(row["baseline"], []).append(row)
    return [
        Peer(
            baseline,
            found,
            [
                in_gradients[_cell_of(row, baseline)] / row["passes_limit"]
                for row in found
                if row["passes_limit"] is not None and _cell_of(row, baseline) in in_gradients
            ],
        )
        for baseline, found in groups.items()
    ]


def _cell_of(row: Row, subject: str) -> tuple[Any, ...]:
    return (subject, *(row[name] for name in CELL))


# --- the headline ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Headline:
    """The most important cells in one table: rules and inputs x layers. ``peer`` stands in parentheses, if any does."""

    peer: str
    layers: list[str]
    lines: list[tuple[str, float | None, list[str]]]


#: How many layers fit beside each other on a page.
_COLUMNS = 4


def headline(rows: Iterable[Row], own: str) -> Headline | None:
    """Return the first layers of the run that have goals and are bound by arithmetic, None without any."""
    rows = [row for row in rows if row["kind"] == "layer"]
    peer = next((row["baseline"] for row in rows if row["subject"] == own and row["baseline"] != GRADIENT), "")
    times = {(row["subject"], *_place(row)): row for row in rows if row["baseline"] == GRADIENT}
    ours = [
        row for row in rows
        if (row["subject"], row["baseline"], row["regime"]) == (own, GRADIENT, "compute") and row["goal"] is not None
    ]  # fmt: skip
    layers = unique((row["workload"], row["batch"]) for row in ours)[:_COLUMNS]
    lines = {}
    for row in ours:
        if (row["workload"], row["batch"]) in layers:
            rule = (row["rule"], row["signs"])
            cells = [
                _beside(*(times.get((subject, *layer, *rule)) for subject in (own, peer))) for layer in layers
            ]  # fmt: skip
            lines[rule] = (f"{row['rule']}, {row['signs']}", row["passes_limit"], cells)
    names = [f"{workload}, batch {batch}" for workload, batch in layers]
    return Headline(peer, names, list(lines.values())) if lines else None


def _place(row: Row) -> tuple[Any, ...]:
    return row["workload"], row["batch"], row["rule"], row["signs"]


def _beside(own: Row | None, peer: Row | None) -> str:
    """Return a ratio, and the peer's in parentheses; the status where there is none."""
    if own is None:
        return MISSING
    text = number(own["ratio"]) if measured(own) else str(own["status"])
    return text if peer is None else f"{text} ({number(peer['ratio']) if measured(peer) else peer['status']})"


# --- the heat map -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HeatCell:
    """The rows of one rule on one type of layer. ``state``: ok, ambiguous, a status, or 'absent'."""

    rows: list[Row]

    @cached_property
    def timed(self) -> list[Row]:
        """The rows with a ratio."""
        return [row for row in self.rows if measured(row)]

    @property
    def state(self) -> str:
        """Whether there is a number to show, and else why not."""
        if not self.rows:
            return "absent"
        if not self.timed:
            return str(self.rows[0]["status"])
        unsure = sum(row["verdict"] == "ambiguous" for row in self.timed)
        return "ambiguous" if 2 * unsure >= len(self.timed) else "ok"

    @property
    def mean(self) -> float | None:
        """The geometric mean of the ratios."""
        return geometric_mean(row["ratio"] for row in self.timed)

    @property
    def slowest(self) -> float | None:
        """The largest ratio."""
        return max((row["ratio"] for row in self.timed), default=None)

    @property
    def warmth(self) -> int:
        """Where the ratio lies on the colour scale: -100 is an eighth of the gradient's time, 100 eight times."""
        return 0 if self.mean is None else round(100 * max(-1.0, min(1.0, math.log(self.mean, 8))))

    @property
    def explanation(self) -> str:
        """What stands behind the number."""
        if not self.rows:
            return "not in this run"
        if not self.timed:
            return f"{self.state}: {self.rows[0]['reason']}"
        ratios = [row["ratio"] for row in self.timed]
        words = [plural(len(ratios), "measurement")]
        words += [f"{ratio(min(ratios))} to {ratio(max(ratios))}"] if len(ratios) > 1 else []
        for verdict in ("faster", "same", "ambiguous"):
            if count := sum(row["verdict"] == verdict for row in self.timed):
                words.append(f"{count} {verdict}")
        if missing := len(self.rows) - len(self.timed):
            words.append(f"{missing} without a time")
        return ", ".join(words)


@dataclass(frozen=True)
class Heat:
    """The ratio to the gradient of one subject in one regime: (rule, signs) x type of layer."""

    regime: str
    layers: list[str]
    lines: list[tuple[str, str]]
    cells: dict[tuple[str, str, str], HeatCell]

    def cell(self, line: tuple[str, str], layer: str) -> HeatCell:
        """Return the cell, without rows where the run has none."""
        return self.cells.get((*line, layer), HeatCell([]))


def heats(rows: Iterable[Row], subject: str) -> list[Heat]:
    """Return one heat map a regime."""
    ours = [row for row in rows if (row["subject"], row["baseline"], row["kind"]) == (subject, GRADIENT, "layer")]
    found = []
    for regime in sorted({row["regime"] for row in ours}, key=lambda name: [*REGIMES, name].index(name)):
        cells: dict[tuple[str, str, str], list[Row]] = {}
        for row in ours:
            if row["regime"] == regime:
                cells.setdefault((row["rule"], row["signs"], row["layer"]), []).append(row)
        rules = unique(rule for rule, _, _ in cells)
        lines = sorted({key[:2] for key in cells}, key=lambda line: (rules.index(line[0]), line[1] == "signed"))
        layers = unique(layer for *_, layer in cells)
        found.append(Heat(regime, layers, lines, {key: HeatCell(group) for key, group in cells.items()}))
    return found
