"""The verifier is verified: which check finds which of the mistakes in :mod:`verify.selftests.mutants`.

A mutant is killed by a case that it fails and that ``lrp_rules`` itself passes. It is asked until one kills it, first
the case that is written down for it in ``kills.json``; ``--record`` writes that file.

For the whole matrix (``--all``), each check is asked of each mutant until one of its cases kills it, or until enough of
them have not: ``ENOUGH`` for a mutant that another check kills, and all there are for one that no check does. So a dot
in the matrix says that a check does not find the mistake at once, and a row of dots that nothing finds it at all.

It is longer than other files because the matrix, the processes that fill it and its table are of one piece.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
import warnings
from collections import defaultdict
from concurrent.futures import as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch
from pebble import ProcessPool
from rich.console import Console
from rich.table import Table

import lrp_rules
from verify.model import BAD, Case, Finding, Level, NotOfferedError, Subject, Verdict
from verify.questions.spreading import spread
from verify.runs.outcomes import reseed
from verify.runs.worker import Source
from verify.selftests.mutants import MUTANTS, Mutant
from verify.selftests.mutants.registry import found

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from concurrent.futures import Future
    from contextlib import AbstractContextManager

#: How many cases of a check a mutant must survive for its blank in the matrix, if another check kills it.
ENOUGH = 80
#: The same for checks whose cases take long.
ENOUGH_OF = {"second-order": 2, "network": 2, "laws": 20}
#: Checks in the order in which they are asked: those that answer at once come first.
ORDER = ("api", "errors", "agreement", "conservation", "laws", "conduct", "second-order", "network")
#: How many of the cases that do not count are named.
_SHOWN = 20
#: Columns of what is printed to a file.
_WIDTH = 160
#: Seconds for one mutant.
TIME_LIMIT = 120.0
#: The case that kills a mutant, by the names of mutants.
KILLS = Path(__file__).parent / "kills.json"
SOURCE = Source(("float64", "float32"))

#: Mutants that are no mistakes after all, each with the reason why.
EQUIVALENT: Mapping[str, str] = {}


@dataclass(frozen=True)
class Kill:
    """A case that a mutant fails, and what it says. ``level`` tells whether it decides for every subject."""

    case: str
    level: Level
    reason: str


@dataclass(frozen=True)
class Row:
    """One mutant: by which checks it is killed, and how many cases each check asked."""

    mutant: str
    kills: Mapping[str, Kill]
    asked: Mapping[str, int]
    trouble: str = ""


@dataclass(frozen=True)
class Matrix:
    """All rows, in the order of the mutants, and the cases that were not used because ``lrp_rules`` fails them."""

    rows: tuple[Row, ...]
    checks: tuple[str, ...]
    unusable: tuple[str, ...] = ()
    seconds: float = 0.0
    why: Mapping[str, str] = field(default_factory=dict)

    @property
    def survivors(self) -> tuple[str, ...]:
        """Mutants that no check kills and that are not listed as equivalent."""
        return tuple(row.mutant for row in self.rows if not row.kills and row.mutant not in EQUIVALENT)

    @property
    def killed(self) -> int:
        """How many mutants some check kills."""
        return sum(bool(row.kills) for row in self.rows)

    @property
    def held(self) -> bool:
        """Whether the verifier found every mistake, and there were some."""
        return bool(self.rows) and not self.survivors


class Judge:
    """Asks cases of mutants, and of ``lrp_rules`` whether a failure counts."""

    def __init__(self, cases: Iterable[Case]) -> None:
        self._by_rule: dict[str, dict[str, list[Case]]] = defaultdict(lambda: defaultdict(list))
        self._spread: dict[tuple[str, str], list[Case]] = {}
        self._by_id: dict[str, Case] = {}
        for case in cases:
            self._by_id[case.id] = case
            self._by_rule[case.rule][case.check].append(case)
        self._real = Subject("lrp_rules", lrp_rules, lrp_rules.__version__)
        self._passed: dict[str, bool] = {}

    def row(self, mutant: Mutant, *, once: bool = False, first: str = "") -> tuple[Row, list[str]]:
        """Return the row of a mutant, and the cases that ``lrp_rules`` fails.

        ``once`` stops at the first kill; ``first`` names the case that is asked before all others.
        """
        subject, unusable = mutant.subject(), list[str]()
        kills: dict[str, Kill] = {}
        asked: dict[str, int] = {}
        known = self._by_id.get(first)
        if known is not None and (reason := self._failure(known, subject)) is not None and self._usable(known):
            return Row(mutant.name, {known.check: Kill(known.id, known.level, reason)}, {known.check: 1}), unusable
        # first what finds most at little cost; what is left of each check is asked of mutants that survive all of it
        waiting = {check: self._relevant(mutant, check) for check in self._checks(mutant)}
        for rest in (False, True):
            if rest and kills:
                break
            for check, cases in waiting.items():
                limit = None if rest else ENOUGH_OF.get(check, ENOUGH)
                for case in cases[asked.get(check, 0) : limit]:
                    asked[check] = asked.get(check, 0) + 1
                    if (reason := self._failure(case, subject)) is None:
                        continue
                    if not self._usable(case):
                        unusable.append(case.id)
                        continue
                    kills[check] = Kill(case.id, case.level, reason)
                    if once:
                        return Row(mutant.name, kills, asked), unusable
                    break
        return Row(mutant.name, kills, asked), unusable

    def _usable(self, case: Case) -> bool:
        if case.id not in self._passed:
            self._passed[case.id] = self._failure(case, self._real) is None
        return self._passed[case.id]

    def _failure(self, case: Case, subject: Subject) -> str | None:
        """Ask a case, and return what is wrong, or None."""
        reseed(0)
        torch.set_grad_enabled(True)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                finding = case.run(subject)
        except NotOfferedError:
            return None
        except Exception as error:  # noqa: BLE001  a mutant may raise anything; that is its failure
            finding = Finding(Verdict.ERROR, reason=f"{type(error).__name__}: {error}")
        return finding.reason or finding.verdict if finding.verdict in BAD else None

    def _checks(self, mutant: Mutant) -> list[str]:
        return sorted(self._by_rule[mutant.rule], key=_place)

    def _relevant(self, mutant: Mutant, check: str) -> list[Case]:
        # cases about all rules at once come after those about this one
        return [case for rule in (mutant.rule, "all") for case in self._ordered(rule, check)]

    def _ordered(self, rule: str, check: str) -> list[Case]:
        if (rule, check) not in self._spread:
            # what decides for every subject comes before advice
            order = sorted(spread(self._by_rule[rule][check]), key=lambda case: case.level is not Level.MUST)
            self._spread[rule, check] = order
        return self._spread[rule, check]


def _place(check: str) -> int:
    return ORDER.index(check) if check in ORDER else len(ORDER)


# --- over processes ---------------------------------------------------------------------------------------------------

_judge: list[Judge] = []


def _begin(source: Source, ids: frozenset[str] | None) -> None:
    """Build the cases in a worker; they hold functions, which do not travel."""
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))
    torch.set_num_threads(1)
    _judge.append(Judge(case for id_, case in source.cases().items() if ids is None or id_ in ids))


def _row(name: str, first: str | None) -> tuple[Row, list[str]]:
    return _judge[0].row(found[name], once=first is not None, first=first or "")


def recorded() -> dict[str, str]:
    """Return the case that is known to kill a mutant, by the names of mutants."""
    known: dict[str, str] = json.loads(KILLS.read_text(encoding="utf-8"))
    return known


def record(matrix: Matrix) -> None:
    """Write down which case kills which mutant; of several, that of the check that answers first."""
    known = {row.mutant: next(iter(row.kills.values())).case for row in matrix.rows if row.kills}
    KILLS.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")


class Judges:
    """Processes that ask mutants; a context manager. ``first`` as in :func:`kill_matrix`."""

    def __init__(
        self, workers: int, source: Source, ids: frozenset[str] | None, first: Mapping[str, str] | None
    ) -> None:
        self._first = first
        self._running: dict[Future[tuple[Row, list[str]]], str] = {}
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPool(workers, initializer=_begin, initargs=(source, ids), context=context)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.stop()  # type: ignore[no-untyped-call]  # pebble leaves out the "-> None" of this one
        self._pool.join()

    def abandon(self) -> None:
        """End what is asked now, from another thread than that which asks."""
        for future in self._running:
            future.cancel()

    def rows(self, names: Sequence[str]) -> Iterator[tuple[Row, list[str]]]:
        """Yield the rows of mutants as they come, and the cases that ``lrp_rules`` fails."""
        self._running = {
            self._pool.schedule(_row, args=(name, self._known(name)), timeout=TIME_LIMIT): name for name in names
        }
        for future in as_completed(self._running):
            try:
                yield future.result()
            except Exception as error:  # noqa: BLE001  no verdict on this mutant, and the others go on
                yield Row(self._running[future], {}, {}, f"{type(error).__name__}: {error}"), []

    def _known(self, name: str) -> str | None:
        return None if self._first is None else self._first.get(name, "")


def kill_matrix(
    mutants: Sequence[Mutant] = MUTANTS,
    cases: Sequence[Case] | None = None,
    workers: int = 1,
    source: Source = SOURCE,
    first: Mapping[str, str] | None = None,
    judges: Callable[..., AbstractContextManager[Judges]] = Judges,
) -> Matrix:
    """Ask every check of every mutant; where ``first`` is given, of each only until one case kills it.

    ``first`` names the case that is asked of a mutant before all others. ``judges`` are started as `Judges` is.
    Workers build the cases again from ``source``, and ask those that are among ``cases``; by default all. With
    ``workers=0`` all is done here, for mutants that are not in the registry and for a debugger.
    """
    start = time.perf_counter()
    if workers and any(found.get(mutant.name) is not mutant for mutant in mutants):
        msg = "workers know mutants of verify.selftests.mutants alone; ask others with workers=0"
        raise ValueError(msg)
    if workers and mutants:
        ids = None if cases is None else frozenset(case.id for case in cases)
        with judges(min(workers, len(mutants)), source, ids, first) as asked_by:
            results = list(asked_by.rows([mutant.name for mutant in mutants]))
    else:
        judge = Judge(source.cases().values() if cases is None else cases)
        results = [
            judge.row(mutant, once=first is not None, first=(first or {}).get(mutant.name, "")) for mutant in mutants
        ]
    rows = {row.mutant: row for row, _ in results}
    unusable = dict.fromkeys(id_ for _, ids in results for id_ in ids)
    asked = dict.fromkeys(check for row in rows.values() for check in row.asked)
    return Matrix(
        tuple(rows[mutant.name] for mutant in mutants),
        tuple(sorted(asked, key=_place)),
        tuple(sorted(unusable)),
        time.perf_counter() - start,
        {mutant.name: mutant.why for mutant in mutants},
    )


# --- what is printed --------------------------------------------------------------------------------------------------


def table(matrix: Matrix) -> Table:
    """Return the matrix: an X where a check kills a mutant, an x where only strict runs would count it."""
    shown = Table(
        title="Which check finds which mistake", caption="X found, x found as advice, · not found, - not asked"
    )
    shown.add_column("mutant", no_wrap=True)
    for check in matrix.checks:
        shown.add_column(check, justify="center")
    shown.add_column("checks", justify="right")
    for row in matrix.rows:
        cells = [_cell(row, check) for check in matrix.checks]
        shown.add_row(row.mutant, *cells, str(len(row.kills)), style=None if row.kills else "bold red")
    totals = [sum(check in row.kills for row in matrix.rows) for check in matrix.checks]
    shown.add_section()
    shown.add_row("all", *map(str, totals), str(matrix.killed), style="bold")
    return shown


def _cell(row: Row, check: str) -> str:
    if check in row.kills:
        return "X" if row.kills[check].level is Level.MUST else "x"
    return "·" if row.asked.get(check) else "-"


def show(matrix: Matrix, console: Console, *, once: bool = False) -> None:
    """Print the matrix, and what the verifier does not find; ``once``: each mutant was asked until it was killed."""
    if once:
        totals = {check: sum(check in row.kills for row in matrix.rows) for check in matrix.checks}
        spelled = "by " + ", ".join(f"{check} {count}" for check, count in totals.items() if count)
    else:
        console.print(table(matrix))
        by: dict[int, int] = defaultdict(int)
        for row in matrix.rows:
            by[len(row.kills)] += 1
        spelled = f"by how many checks: {', '.join(f'{count} by {checks}' for checks, count in sorted(by.items()))}"
    share = 100 * matrix.killed / max(len(matrix.rows), 1)
    console.print(
        f"{matrix.killed} of {len(matrix.rows)} mutants are killed ({share:.1f} %) in {matrix.seconds:.0f} s; {spelled}"
    )
    for name, reason in EQUIVALENT.items():
        console.print(f"equivalent: {name}: {reason}")
    if matrix.unusable:
        console.print(f"{len(matrix.unusable)} cases do not count, since lrp_rules itself fails them:")
        console.print("\n".join(f"  {id_}" for id_ in matrix.unusable[:_SHOWN]))
    for row in matrix.rows:
        if row.mutant in matrix.survivors:
            console.print(f"SURVIVES: {row.mutant}: {matrix.why[row.mutant]} {row.trouble}", style="bold red")


def main(
    *,
    workers: int | None = None,
    mutants: Sequence[Mutant] = MUTANTS,
    whole: bool = False,
    write: bool = False,
    judges: Callable[..., AbstractContextManager[Judges]] = Judges,
) -> int:
    """Run the self-test and print it; return the exit status, 1 if a mutant survives."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    first = None if whole else recorded()
    matrix = kill_matrix(mutants, workers=count if workers is None else workers, first=first, judges=judges)
    console = Console(highlight=False, emoji=False, markup=False)
    if not console.is_terminal:
        console.width = _WIDTH  # a log has no width, and all columns are wanted
    show(matrix, console, once=not whole)
    if write:
        record(matrix)
        console.print(f"{KILLS}: a case for each of {matrix.killed} mutants")
    return 0 if matrix.held else 1


if __name__ == "__main__":
    sys.exit(main())
