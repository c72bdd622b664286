"""Two runs of one machine: which cells have become slower or faster, beyond the noise of both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.statistics import Estimate, Verdict, change, verdict
from bench.subjects import GRADIENT
from bench.table import CELL, TableError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd

    from bench.statistics import Array
    from bench.table import Run


@dataclass(frozen=True)
class Change:
    """One cell in both runs. Without an estimate there is no time in one of them, and ``note`` says why."""

    cell: tuple[Any, ...]
    estimate: Estimate | None
    verdict: Verdict | None
    note: str = ""

    @property
    def name(self) -> str:
        """The cell in a line."""
        return " ".join(str(part) for part in self.cell if str(part) not in {"", "layer"})

    @property
    def regression(self) -> bool:
        """Whether the new run is worse: slower, or refused where it was not before."""
        return self.verdict is Verdict.SLOWER or self.note.startswith("was ok")


def compared(old: Run, new: Run, *, other_machine: bool = False) -> list[Change]:
    """Compare the times of the subject, in gradients of the same run, cell by cell.

    A machine may do one kind of work slower than it did and another as fast, so that ratios change though no code has.
    What is the same in both runs tells: the gradient's own time, and each peer's in gradients. A change that is no
    larger than theirs is called none.

    Parameters
    ----------
    old, new
        Each a run of the same subject.
    other_machine
        Whether runs of different machines may be compared: their ratios to the gradient differ for reasons of their
        own.

    Raises
    ------
    TableError
        If the runs are of different machines or subjects, or have no cell in common.

    """
    for what, allowed in (("machine", other_machine), ("subject", False)):
        if old.facts.get(what) != new.facts.get(what) and not allowed:
            msg = (
                f"{old.folder} is of the {what} {old.facts.get(what)!r} and {new.folder} of {new.facts.get(what)!r}; "
                f"expected the same" + (", or --other-machine to compare them anyway" if what == "machine" else "")
            )
            raise TableError(msg)
    found = list(_changes(old, new))
    if not found:
        msg = f"{old.folder} and {new.folder} have no measurement in common; expected two runs of the same measurements"
        raise TableError(msg)
    return found


def _changes(old: Run, new: Run) -> Iterator[Change]:
    before, after = _cells(old), _cells(new)
    quads, moves = (_quads(old), _quads(new)), _moved(old, new)
    for cell, row in after.items():
        if cell not in before:
            continue
        was = before[cell]
        if was["status"] != "ok" or row["status"] != "ok":
            note = f"was {was['status']}, is {row['status']} {row['reason']}".rstrip()
            yield Change(cell, None, None, "" if was["status"] == row["status"] else note)
            continue
        found = change(quads[0][cell], quads[1][cell])
        floor, moved = max(float(was["floor"]), float(row["floor"])), moves.get(cell, 0.0)
        says = verdict(found, floor)
        if says in (Verdict.SLOWER, Verdict.FASTER) and verdict(found, max(floor, moved)) is not says:
            note = f"ambiguous: the gradient or another library changed by {100 * moved:.2g} %"
            yield Change(cell, found, Verdict.AMBIGUOUS, note)
        else:
            yield Change(cell, found, says)


def _moved(old: Run, new: Run) -> dict[tuple[Any, ...], float]:
    """Return by which share what is the same in both runs takes longer in one of them, at most, by cell."""
    before, found = _same(old), dict[tuple[Any, ...], float]()
    for key, value in _same(new).items():
        if key in before:
            share = max(value / before[key], before[key] / value) - 1
            found[key[0]] = max(found.get(key[0], 0.0), share)
    return found


def _same(run: Run) -> dict[tuple[Any, ...], float]:
    """Return the gradient's seconds and each peer's ratio to them, by cell and by all that makes them what they are."""
    table = run.table[(run.table.baseline == GRADIENT) & (run.table.status == "ok")]
    gradient = (GRADIENT, run.facts["machine"], run.facts["versions"]["torch"])
    found: dict[tuple[Any, ...], float] = {}
    for row in table.to_dict("records"):
        cell = tuple(row[name] for name in CELL)
        if row["subject"] == _subject(run):
            found[cell, *gradient] = float(row["baseline_seconds"])
        else:
            found[cell, row["subject"], row["subject_version"]] = float(row["ratio"])
    return found


def _subject(run: Run) -> Any:
    return run.facts.get("subject")


def _cells(run: Run) -> dict[tuple[Any, ...], dict[str, Any]]:
    table = run.table[(run.table.subject == _subject(run)) & (run.table.baseline == GRADIENT)]
    return {tuple(row[name] for name in CELL): row for row in table.to_dict("records")}


def _quads(run: Run) -> dict[tuple[Any, ...], list[Array]]:
    """Return the quads of each process, by cell."""
    samples = run.samples[(run.samples.subject == _subject(run)) & (run.samples.baseline == GRADIENT)]
    found: dict[tuple[Any, ...], list[Array]] = {}
    for key, part in samples.groupby([*CELL, "process"], sort=True):
        found.setdefault(tuple(key)[:-1], []).append(_array(part))
    return found


def _array(part: pd.DataFrame) -> Array:
    ordered = part.sort_values(["quad", "position"])
    return np.asarray(ordered.seconds, np.float64).reshape(-1, 4)
