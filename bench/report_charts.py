"""What the report draws: lines of points over a logarithmic axis, and curves of time against size. Plain numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from bench.report_data import GRADIENT, measured, unique
from bench.report_text import geometric_mean, interval, number, plural, ratio, seconds, size
from bench.statistics import growth

#: The curve that no implementation can be below.
LIMIT = "limit"

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from bench.report_data import Row
    from bench.statistics import Growth


@dataclass(frozen=True)
class Mark:
    """One point with its interval."""

    subject: str
    value: float
    low: float | None
    high: float | None
    text: str
    ambiguous: bool = False


@dataclass(frozen=True)
class Line:
    """One line of a chart; ``parts`` are the lines it sums up."""

    label: str
    marks: list[Mark]
    note: str = ""
    missing: list[str] = field(default_factory=list)
    parts: list[Line] = field(default_factory=list)

    def of(self, subject: str) -> float | None:
        """Return the value of a subject, None where it has none."""
        return next((mark.value for mark in self.marks if mark.subject == subject), None)


@dataclass(frozen=True)
class Axis:
    """A logarithmic axis from one tick to another."""

    ticks: list[float]

    def place(self, value: float) -> float:
        """Return where a value lies, in percent of the axis; beyond an end is at the end."""
        low, high = math.log(self.ticks[0]), math.log(self.ticks[-1])
        return round(100 * max(0.0, min(1.0, (math.log(value) - low) / (high - low))), 2)


def span(values: Iterable[float]) -> Axis:
    """Return the axis of 1, 2, 5, 10, ... that holds all values; of powers of ten where that is over nine ticks."""
    logs = [math.log10(value) for value in values]
    fine = _ticks(min(logs), max(logs), (1, 2, 5))
    return Axis(fine if len(fine) <= 9 else _ticks(min(logs), max(logs), (1,)))


def _ticks(low: float, high: float, steps: Sequence[int]) -> list[float]:
    decades = range(math.floor(low) - 1, math.ceil(high) + 2)
    ticks = [step * 10.0**decade for decade in decades for step in steps]
    first = max(i for i, tick in enumerate(ticks) if math.log10(tick) <= low + 1e-9)
    last = min(i for i, tick in enumerate(ticks) if math.log10(tick) >= high - 1e-9)
    return ticks[first : max(last, first + 1) + 1]


@dataclass(frozen=True)
class Chart:
    """Lines over one logarithmic axis."""

    lines: list[Line]

    @cached_property
    def axis(self) -> Axis:
        """The axis that holds every mark."""
        lines = [part for line in self.lines for part in (line, *line.parts)]
        marks = [value for line in lines for mark in line.marks for value in (mark.value, mark.low, mark.high) if value]
        return span([1.0, *marks])

    @property
    def subjects(self) -> list[str]:
        """The subjects that occur."""
        return unique(mark.subject for line in self.lines for mark in line.marks)


def _mark(row: Row) -> Mark:
    text = f"{ratio(row['ratio'])} {interval(row['ratio_low'], row['ratio_high'])} {row['verdict']}"
    times = f"{seconds(row['seconds'])} beside {seconds(row['baseline_seconds'])}"
    ends = row["ratio_low"], row["ratio_high"]
    return Mark(
        row["subject"], row["ratio"], *ends, f"{row['subject']}: {text}, {times}", row["verdict"] == "ambiguous"
    )


def _summary(subject: str, values: Sequence[float], write: Callable[[float | None], str] = ratio) -> Mark:
    mean = geometric_mean(values)
    assert mean is not None
    text = f"{subject}: {write(mean)}"
    text += f", {write(min(values))} to {write(max(values))} over {len(values)} measurements" if len(values) > 1 else ""
    return Mark(subject, mean, min(values), max(values), text)


def where(row: Row) -> str:
    """Return the cell without its rule."""
    kind = {"scaling": "scaling", "classifier": "all classes"}.get(row["kind"], "")
    words = (row["workload"], row["signs"], f"batch {row['batch']}", kind)
    return ", ".join(filter(None, words))


def peer_chart(rows: Iterable[Row], baseline: str) -> Chart:
    """Return our ratio to one peer: a line a rule, and below it one a cell."""
    ours = [row for row in rows if row["baseline"] == baseline and measured(row)]
    lines = []
    for rule, group in _by(ours, "rule"):
        parts = [Line(where(row), [_mark(row)]) for row in group]
        lines.append(
            Line(
                rule,
                [_summary(group[0]["subject"], [row["ratio"] for row in group])],
                plural(len(group), "measurement"),
                parts=parts,
            )
        )
    return Chart(lines)


def model_chart(rows: Iterable[Row]) -> Chart:
    """Return every subject beside the gradient of a whole model: a line a model and composite."""
    ours = [row for row in rows if row["kind"] == "model" and row["baseline"] == GRADIENT != row["subject"]]
    lines = []
    for label, group in _by(ours, "layer", "rule", "batch"):
        marks = [_mark(row) for row in group if measured(row)]
        missing = [f"{row['subject']}: {row['status']}" for row in group if not measured(row)]
        lines.append(Line(label.removesuffix(f", {group[0]['batch']}"), marks, f"batch {group[0]['batch']}", missing))
    return Chart(lines)


def memory_chart(rows: Iterable[Row]) -> Chart:
    """Return peak memory in units of the gradient's: a line a rule (geometric mean, range), a mark a subject."""
    ours = [
        row
        for row in rows
        if row["baseline"] == GRADIENT != row["subject"] and row["peak_bytes"] and row["baseline_peak_bytes"]
    ]
    lines = []
    for rule, group in _by(ours, "rule"):
        shares = [(row["subject"], row["peak_bytes"] / row["baseline_peak_bytes"]) for row in group]
        marks = [
            _summary(subject, [share for name, share in shares if name == subject])
            for subject in unique(name for name, _ in shares)
        ]
        largest = max(
            (row for row in group if row["subject"] == group[0]["subject"]), key=lambda r: float(r["peak_bytes"])
        )
        lines.append(Line(rule, marks, f"at most {size(largest['peak_bytes'])}"))
    return Chart(lines)


def _by(rows: Iterable[Row], *names: str) -> list[tuple[str, list[Row]]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(", ".join(str(row[name]) for name in names), []).append(row)
    return list(groups.items())


# --- time against size ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """Times of one subject over one axis."""

    subject: str
    points: list[tuple[float, float]]

    @cached_property
    def growth(self) -> Growth | None:
        """How the times grow along the axis; None where there are too few to tell."""
        found = growth(*np.array(self.points).T)
        return None if math.isnan(found.exponent) else found


@dataclass(frozen=True)
class Plot:
    """A panel in the coordinates of its drawing: ticks with their text, and curves as points."""

    across: Axis
    up: Axis
    x: list[tuple[float, str]]
    y: list[tuple[float, str]]
    curves: list[tuple[Curve, list[tuple[float, float]]]]


#: Left, right, bottom and top of the plot in its drawing.
FRAME = (52.0, 330.0, 180.0, 8.0)


@dataclass(frozen=True)
class Panel:
    """Time against size for one rule on one layer."""

    title: str
    axis: str
    curves: list[Curve]
    missing: list[str]

    @property
    def unit(self) -> str:
        """What the horizontal axis counts."""
        return {"batch": "batch (samples)", "size": "multiply-adds of a sample's forward pass"}.get(
            self.axis, self.axis
        )

    @property
    def description(self) -> str:
        """The panel in words."""
        words = [f"{self.title}: seconds against {self.unit}"]
        for curve in self.curves:
            points = ", ".join(f"{seconds(y)} at {number(x)}" for x, y in curve.points)
            words.append(f"{curve.subject} {points}")
        return "; ".join(words)

    @property
    def plot(self) -> Plot | None:
        """How it is drawn, or None without a single time."""
        points = [point for curve in self.curves for point in curve.points]
        if not points:
            return None
        left, right, bottom, top = FRAME
        across, up = span(x for x, _ in points), span(y for _, y in points)
        return Plot(
            across,
            up,
            [(_scaled(across, value, left, right), plain(value)) for value in across.ticks],
            [(_scaled(up, value, bottom, top), tidy(seconds(value))) for value in up.ticks],
            [
                (curve, [(_scaled(across, x, left, right), _scaled(up, y, bottom, top)) for x, y in curve.points])
                for curve in self.curves
            ],
        )


def _scaled(axis: Axis, value: float, start: float, end: float) -> float:
    return round(start + (end - start) * axis.place(value) / 100, 1)


def tidy(text: str) -> str:
    """Return a quantity without zeros behind the point: ticks are round."""
    amount, _, unit = text.partition(" ")
    return f"{float(amount):g} {unit}"


def plain(value: float) -> str:
    """Return a size in few characters: 1, 64, 10k, 1M, 10G."""
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g}{letter}"
    return f"{value:g}"


def _without_a_time(rows: list[Row]) -> str:
    """Say of a subject which points of a curve it lacks, and why: with the reason of the first of them."""
    first = rows[0]
    sizes = ", ".join(plain(row["size"] or 0) for row in rows)
    one = "" if len({row["reason"] for row in rows}) == 1 else "the first: "
    return f"{first['subject']}, {first['axis']} {sizes}: {first['status']}; {one}{first['reason']}"


def panels(rows: Iterable[Row], own: str) -> list[Panel]:
    """Return one panel for each scaling: every subject, ``own`` first, the gradient, and the pass-count limit."""
    scaling = [row for row in rows if row["kind"] == "scaling" and row["baseline"] == GRADIENT != row["subject"]]
    found = []
    for _, group in _by(scaling, "rule", "layer", "signs", "axis"):
        first = group[0]
        group.sort(key=lambda row: float(row["size"] or 0))
        timed = [row for row in group if measured(row) and row["size"]]
        by_subject = sorted(_by(timed, "subject"), key=lambda item: item[0] != own)
        curves = [Curve(subject, [(row["size"], row["seconds"]) for row in points]) for subject, points in by_subject]
        if by_subject:
            beside = by_subject[0][1]  # the gradient in the pairs with the first subject
            curves.append(Curve(GRADIENT, [(row["size"], row["baseline_seconds"]) for row in beside]))
            limit = [
                (row["size"], row["passes_limit"] * row["baseline_seconds"]) for row in beside if row["passes_limit"]
            ]
            curves += [Curve(LIMIT, limit)] if limit else []
        missing = [_without_a_time(rows) for _, rows in _by((r for r in group if not measured(r)), "subject", "status")]
        found.append(Panel(f"{first['rule']}, {first['layer']}, {first['signs']}", first["axis"], curves, missing))
    return found
