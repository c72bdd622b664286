"""How often two runs of the same code are called different: what ``lrp-bench false-alarms`` asks."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bench.comparing import compared
from bench.statistics import Verdict
from bench.table import TableError, read

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from bench.comparing import Change


@dataclass
class Alarms:
    """How many comparisons of cells came to which verdict, and the alarms among them."""

    verdicts: Counter[Verdict] = field(default_factory=Counter)
    alarms: list[Change] = field(default_factory=list)
    cells: set[tuple[Any, ...]] = field(default_factory=set)

    def add(self, changes: Sequence[Change]) -> None:
        """Count the changes from one run to the next of the same code."""
        for change in changes:
            if change.verdict is None:
                continue  # no time in either run, which is no verdict
            self.verdicts[change.verdict] += 1
            self.cells.add(change.cell)
            if change.verdict in (Verdict.SLOWER, Verdict.FASTER):
                self.alarms.append(change)

    @property
    def rate(self) -> float:
        """The share of the comparisons that are alarms; 0 where there is none."""
        return len(self.alarms) / max(1, self.verdicts.total())


def runs(folder: Path, count: int, options: Sequence[str]) -> Iterator[Path]:
    """Make ``count`` runs and one more, each in a process of its own, and yield the folder of each as it is finished.

    Each goes on with what is there: nothing, if it was finished, and all that is left, if it was interrupted.

    Raises
    ------
    TableError
        If a run fails, as one does in the folder of another one.

    """
    for index in range(count + 1):
        one = folder / f"{index:03}"
        command = [
            sys.executable,
            "-m",
            "lrp_entry.commands",
            "lrp-bench",
            "run",
            *options,
            "--resume",
            "--out",
            str(one),
        ]
        made = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603  this project
        if made.returncode:
            msg = f"lrp-bench run {' '.join(options)} ended with {made.returncode}: {made.stderr or made.stdout}"
            raise TableError(msg)
        yield one


def asked(folder: Path, count: int, options: Sequence[str]) -> Iterator[tuple[int, Alarms]]:
    """Compare each of the runs with the one before it, and yield how many are compared and what was found so far."""
    found, before = Alarms(), None
    for index, one in enumerate(runs(folder, count, options)):
        run = read(one)
        if before is not None:
            found.add(compared(before, run))
        before = run
        yield index, found
