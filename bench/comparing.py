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
                f"expected the same" + (", or --other-machine to compare all the same" if what == "machine" else "")
            )
            raise TableError(msg)
    found = list(_changes(old, new))
    if not found:
        msg = f"{old.folder} and {new.folder} have no cell in common; expected two runs of the same cells"
        raise TableError(msg)
    return found


def _changes(old: Run, new: Run) -> Iterator[Change]:
    before, after = _cells(old), _cells(new)
    quads = _quads(old), _quads(new)
    for cell, row in after.items():
        if cell not in before:
            continue
        was = before[cell]
        if was["status"] != "ok" or row["status"] != "ok":
            note = f"was {was['status']}, is {row['status']} {row['reason']}".rstrip()
            yield Change(cell, None, None, "" if was["status"] == row["status"] else note)
            continue
        found = change(quads[0][cell], quads[1][cell])
        floor = max(float(was["floor"]), float(row["floor"]))
        yield Change(cell, found, verdict(found, floor))


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
