"""What a run and a comparison print on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from bench.subjects import GRADIENT
from bench.table import CELL
from bench.workloads import CLASSIFIER

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd
    from rich.console import Console

    from bench.comparing import Change
    from bench.false_alarms import Alarms


class Bar:
    """A progress bar with the time that is left, on a terminal; a line a cell elsewhere."""

    def __init__(self, console: Console) -> None:
        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
        self._console = console
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._progress.add_task("")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, done: int, of: int, name: str) -> None:
        """Say how many cells are done, of how many, and which one is next."""
        if self._console.is_terminal:
            self._progress.update(self._task, completed=done, total=of, description=name)
        else:
            self._console.print(f"{done + 1} of {of}: {name}", soft_wrap=True, highlight=False)


def shown(table: pd.DataFrame, facts: Mapping[str, Any], console: Console) -> None:
    """Print one line a cell: the subject in gradient times, and beside each peer; then why there is no time."""
    subject = facts.get("subject")
    own = table[(table.subject == subject) & (table.baseline == GRADIENT)]
    peers = list(dict.fromkeys(table[(table.subject == subject) & (table.baseline != GRADIENT)].baseline))
    against = {
        (*(row[name] for name in CELL), row["baseline"]): row
        for row in table[table.subject == subject].to_dict("records")
    }
    heads = ("measurement", "rule", "gradient", "in gradient times", *(f"in times of {peer}" for peer in peers))
    lines = Table(*heads, box=SIMPLE_HEAD)
    for row in own.to_dict("records"):
        key = tuple(row[name] for name in CELL)
        dtype = "" if row["dtype"] == "float32" else f" {row['dtype']}"
        classes = ", all classes" if row["kind"] == CLASSIFIER else ""
        where = f"{row['workload']} batch {row['batch']} {row['signs']}{dtype}{classes}"
        beside = [_ratio(against.get((*key, peer))) for peer in peers]
        lines.add_row(where, row["rule"], _milliseconds(row), _ratio(row), *beside)
    console.print(lines)
    for peer in peers:
        ratios = table[(table.subject == subject) & (table.baseline == peer)].ratio.dropna()
        if len(ratios):
            mean = float(np.exp(np.log(ratios).mean()))
            console.print(f"{mean:.3g} times the time of {peer}: geometric mean of {len(ratios)} measurements")
    floor = ", ".join(f"{regime} {100 * value:.2g} %" for regime, value in facts.get("floor", {}).items())
    console.print(
        f"{facts['machine']}; noise floor: {floor or 'not measured'}; brackets: 95 % intervals; *: no clear difference",
        highlight=False,
    )
    for reason in dict.fromkeys(f"{row['status']}, {row['rule']}: {row['reason']}" for row in own.to_dict("records")):
        if not reason.startswith("ok, "):
            console.print(reason, highlight=False, soft_wrap=True)


def _milliseconds(row: Mapping[Any, Any]) -> str:
    return "" if row["status"] != "ok" else f"{1e3 * row['baseline_seconds']:.3g} ms"


def _ratio(row: Mapping[Any, Any] | None) -> str:
    if row is None or row["status"] != "ok":
        return "" if row is None else str(row["status"])
    mark = "*" if row["verdict"] == "ambiguous" else ""
    return f"{row['ratio']:.3g} [{row['ratio_low']:.3g}, {row['ratio_high']:.3g}]{mark}"


def changes_shown(changes: Sequence[Change], console: Console) -> None:
    """Print the verdict of each cell that has changed, and how many have not."""
    lines = Table("measurement", "new / old", "verdict", box=SIMPLE_HEAD)
    counts: dict[str, int] = {}
    for change in changes:
        word = change.note or str(change.verdict or "no time in either")
        counts[str(change.verdict or "without a time")] = counts.get(str(change.verdict or "without a time"), 0) + 1
        if word != "same":
            found = change.estimate
            lines.add_row(
                change.name, "" if found is None else f"{found.ratio:.3g} [{found.low:.3g}, {found.high:.3g}]", word
            )
    if lines.rows:
        console.print(lines)
    console.print(", ".join(f"{count} {word}" for word, count in counts.items()), highlight=False)


def alarms_shown(found: Alarms, runs: int, console: Console) -> None:
    """Print the false alarms, and how often there was one."""
    if found.alarms:
        changes_shown(found.alarms, console)
    verdicts = ", ".join(f"{count} {verdict}" for verdict, count in found.verdicts.items())
    console.print(
        f"{runs} runs, each compared with the one before: {len(found.alarms)} false alarms in "
        f"{found.verdicts.total()} comparisons of {len(found.cells)} measurements "
        f"({100 * found.rate:.2g} %); {verdicts or 'nothing compared'}",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
