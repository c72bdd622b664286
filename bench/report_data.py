"""What a report is made of: the rows of one run or several, checked and grouped by what is comparable."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import pandas as pd

from bench.report_text import plural
from bench.table import CELL, COLUMNS, ROW, SAMPLE_COLUMNS, SCHEMA_VERSION, Run, TableError, read

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    Row = dict[str, Any]

T = TypeVar("T")

GRADIENT = "gradient"

#: What a row without the status ok never has: a time, or anything made of one.
_TIMED = (
    "seconds", "baseline_seconds", "ratio", "ratio_low", "ratio_high", "verdict", "goal_met", "graph_seconds",
    "peak_bytes", "baseline_peak_bytes", "overhead_seconds", "exponent", "pairs", "processes", "outliers_mild",
    "outliers_severe",
)  # fmt: skip

#: How many of a row's calls a strip shows for each side.
STRIP = 25


@dataclass(frozen=True)
class Setting:
    """What is shown together: the rows of one run on one device, in one dtype, with so many threads."""

    number: int
    run: Run
    run_number: int
    device: str
    dtype: str
    threads: int
    rows: list[Row]

    @property
    def slug(self) -> str:
        """The name of its files and anchors."""
        return re.sub(r"[^A-Za-z0-9-]+", "-", f"run{self.run_number}-{self.device}-{self.dtype}-{self.threads}")

    @property
    def own(self) -> str:
        """Whose rules the run is about: what stands beside peers too."""
        return str(self.run.facts["subject"])

    @property
    def name(self) -> str:
        """What it is, with its machine."""
        return f"{self.run_number}. {self.run.facts['machine']}: {self.label.partition('. ')[2]}"

    @property
    def label(self) -> str:
        """What it is, in a few words."""
        return f"{self.run_number}. {self.device}, {self.dtype}, {plural(self.threads, 'thread')}"

    @property
    def subjects(self) -> list[str]:
        """The subjects that stand beside the gradient, our own first."""
        found = unique(row["subject"] for row in self.rows if row["baseline"] == GRADIENT)
        return sorted((subject for subject in found if subject != GRADIENT), key=lambda subject: subject != self.own)


def load(folders: Sequence[Path]) -> list[Setting]:
    """Read the runs in ``folders``, in this order.

    Raises
    ------
    TableError
        If a folder holds no run, one without cells or columns, or one that another folder holds too.

    """
    if not folders:
        msg = "no run is given; expected the folders that `lrp-bench run --out` has written"
        raise TableError(msg)
    settings: list[Setting] = []
    seen: dict[str, Path] = {}
    for number, folder in enumerate(folders, 1):
        run = read(folder)
        _check(run)
        run_id = str(run.facts["run_id"])
        if run_id in seen:
            msg = f"{folder} holds run {run_id}, which {seen[run_id]} holds too; give each run once"
            raise TableError(msg)
        seen[run_id] = folder
        groups: dict[tuple[str, str, int], list[Row]] = {}
        for row in _blamed(_rows(run.table)):
            groups.setdefault((row["device"], row["dtype"], row["threads"]), []).append(row)
        for key, rows in groups.items():
            settings.append(Setting(len(settings) + 1, run, number, *key, rows))
    return settings


def _check(run: Run) -> None:
    for name, table, columns in (("table", run.table, COLUMNS), ("samples", run.samples, SAMPLE_COLUMNS)):
        if absent := [column for column in columns if column not in table]:
            msg = (
                f"{run.folder}/{name}.parquet lacks {', '.join(absent)}; expected the columns of schema version "
                f"{SCHEMA_VERSION} (bench.table); measure it again with this version"
            )
            raise TableError(msg)
    if absent := [
        name for name in ("run_id", "started", "machine", "command", "subject", "floor") if name not in run.facts
    ]:
        msg = f"{run.folder}/run.json lacks {', '.join(absent)}; expected what `lrp-bench run --out` writes"
        raise TableError(msg)
    if run.table.empty:
        msg = f"{run.folder} has no measurements; finish it with `lrp-bench run --resume --out {run.folder}`"
        raise TableError(msg)


def _rows(table: pd.DataFrame) -> list[Row]:
    return [_published({name: _plain(row[name]) for name in COLUMNS}) for row in table.to_dict("records")]


def _plain(value: Any) -> Any:
    return None if value is None or (isinstance(value, float) and math.isnan(value)) else value


def _published(row: Row) -> Row:
    """Return the row as it may be shown. A second look at the gate: what disagrees has no time, whatever wrote it."""
    agreement = row["agreement_ratio"]
    if row["status"] == "ok" and agreement is not None and not agreement <= 1:
        row |= {"status": "disagrees", "reason": f"{agreement:.3g} times what rounding can explain"}
    if row["status"] != "ok":
        row |= dict.fromkeys(_TIMED)
    return row


def _blamed(rows: list[Row]) -> list[Row]:
    """Add to each row whose fault it is that it has no time: a pair has none where either of the two was refused."""
    refused = {(_cell(row), row["subject"]) for row in rows if row["baseline"] == GRADIENT and row["status"] != "ok"}
    for row in rows:
        others = (_cell(row), row["baseline"]) in refused and (_cell(row), row["subject"]) not in refused
        row["refused"] = "" if row["status"] == "ok" else row["baseline"] if others else row["subject"]
    return rows


def _cell(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in CELL)


def shown(settings: Iterable[Setting]) -> pd.DataFrame:
    """Return the rows as they are shown, of all settings, as one table."""
    table = pd.DataFrame([row for setting in settings for row in setting.rows], columns=list(COLUMNS))
    return table.astype({name: "Int64" for name, (dtype, _) in COLUMNS.items() if dtype == "int64"})


def unique(values: Iterable[T]) -> list[T]:
    """Return each value once, in the order of the table."""
    return list(dict.fromkeys(values))


def measured(row: Row) -> bool:
    """Whether a row has a ratio to show."""
    return row["status"] == "ok" and row["ratio"] is not None and row["ratio"] > 0


def problems(rows: Iterable[Row]) -> list[tuple[Row, list[Row]]]:
    """Return what has no time: one row of each subject, rule, status and reason, and all rows that it stands for.

    What disagrees with the reference does so by other numbers each time: that is one reason, told by the largest.

    A pair of which one was refused beside the gradient too is not told again.
    """
    rows = [row for row in rows if not measured(row)]
    told = {(_cell(row), row["subject"]) for row in rows if row["baseline"] == GRADIENT}
    groups: dict[tuple[str, ...], list[Row]] = {}
    for found in rows:
        if found["baseline"] == GRADIENT or (_cell(found), found["refused"]) not in told:
            row = found if found["status"] != "ok" else {**found, "status": "failed", "reason": "no ratio was recorded"}
            reason = "" if row["status"] == "disagrees" else row["reason"]
            groups.setdefault((row["subject"], row["status"], row["rule"], reason), []).append(row)
    order = ("disagrees", "failed", "out-of-memory", "unsupported")
    ranked = sorted(
        groups.values(), key=lambda group: order.index(status) if (status := group[0]["status"]) in order else -1
    )
    return [(max(group, key=_apart), group) for group in ranked]


def _apart(row: Row) -> float:
    """How far a row is from the reference; the first of those that say nothing of it."""
    ratio = row["agreement_ratio"] if row["status"] == "disagrees" else None
    return -1.0 if ratio is None else math.inf if math.isnan(ratio) else float(ratio)


def strips(setting: Setting) -> dict[tuple[Any, ...], dict[str, list[float]]]:
    """Return, for each row that has a time, quantiles of its raw samples in seconds, by side."""
    ours = {tuple(row[name] for name in ROW) for row in setting.rows if measured(row)}
    found: dict[tuple[Any, ...], dict[str, list[float]]] = {}
    for (*key, side), seconds in setting.run.samples.groupby([*ROW, "side"], sort=False)["seconds"]:
        if tuple(key) in ours:
            quantiles = seconds.quantile([i / (STRIP - 1) for i in range(STRIP)])
            found.setdefault(tuple(key), {})[str(side)] = [float(value) for value in quantiles]
    return found
