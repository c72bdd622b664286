"""One run: which cells, in which processes, how long; every finished cell is written at once, so that none is lost.

Several fresh worker processes live as long as the run, one at a time is at work, and each answers every cell. The first
of them also asks the gate: a subject that is refused there is timed nowhere. A worker that dies is replaced, and its
death is a result of the cell.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import time
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol, Self

from pebble import ProcessExpired, ProcessPool

from bench import machine, worker
from bench.measuring import FAILED, OUT_OF_MEMORY, Answer, Standing, Task, refused, settle
from bench.pairing import Effort
from bench.subjects import CLASS_BY_CLASS, GRADIENT, OURS
from bench.table import SCHEMA_VERSION, TableError, loaded, read_json, write_json
from bench.workloads import CLASSIFIER, Cell

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Seconds for one process to answer one cell; a large model takes one or two minutes.
TIME_LIMIT = 900.0
_KILLED = -9

FULL = Effort()
QUICK = Effort(processes=3, pairs_fast=120, pairs_slow=12, seconds=1.0)


@dataclass(frozen=True)
class Plan:
    """What a run measures, as plain data."""

    cells: tuple[Cell, ...]
    subject: str = OURS
    against: tuple[str, ...] = ()
    effort: Effort = FULL
    seed: int = 0
    quick: bool = False

    def comparisons(self, cell: Cell) -> tuple[tuple[str, str], ...]:
        """Return which subject is paired with which baseline in a cell."""
        if cell.rule == GRADIENT:
            return ((GRADIENT, GRADIENT),)
        peers = [pair for peer in self.against for pair in ((peer, GRADIENT), (self.subject, peer))]
        loop = [(self.subject, f"{self.subject}{CLASS_BY_CLASS}")] if cell.kind == CLASSIFIER else []
        return ((self.subject, GRADIENT), *loop, *peers)

    def with_floor(self) -> list[Cell]:
        """Return the cells, each regime's first one preceded by the gradient against itself: the noise floor."""
        cells, seen = [], set()
        for cell in self.cells:
            if cell.regime not in seen:
                seen.add(cell.regime)
                cells.append(replace(cell, rule=GRADIENT, kind="model" if cell.is_model else "layer", axis=""))
            cells.append(cell)
        return cells

    def as_json(self) -> dict[str, Any]:
        """Return the plan as plain data, by which a resumed run knows that it is the same."""
        own = dataclasses.asdict(self)
        return own | {"cells": [cell.id for cell in self.cells], "against": list(self.against)}


@dataclass
class Result:
    """What became of one cell: where each subject stands, and the quads of each process for each comparison."""

    cell: Cell
    standings: dict[str, Standing] = field(default_factory=dict)
    quads: dict[tuple[str, str], list[list[list[float]]]] = field(default_factory=dict)
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "cell": dataclasses.asdict(self.cell),
            "standings": {name: dataclasses.asdict(standing) for name, standing in self.standings.items()},
            "quads": [{"subject": a, "baseline": b, "processes": found} for (a, b), found in self.quads.items()],
            "seconds": self.seconds,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Return what :meth:`as_json` was made of."""
        return cls(
            Cell(**data["cell"]),
            {name: Standing(**standing) for name, standing in data["standings"].items()},
            {(one["subject"], one["baseline"]): one["processes"] for one in data["quads"]},
            data["seconds"],
        )


class Processes(Protocol):
    """What answers tasks: :class:`Workers`, or a stand-in."""

    def __len__(self) -> int:
        """How many there are."""

    def ask(self, index: int, task: Task) -> Answer:
        """Ask one of them."""


class Workers:
    """Fresh processes, asked one after another; a context manager."""

    def __init__(self, count: int, time_limit: float = TIME_LIMIT) -> None:
        self._time_limit = time_limit
        self._pools: list[ProcessPool | None] = [None] * count

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for index in range(len(self._pools)):
            self._stop(index)

    def __len__(self) -> int:
        return len(self._pools)

    def ask(self, index: int, task: Task) -> Answer:
        """Ask one process. If it dies or hangs, each comparison is asked by itself, to find out by whom."""
        try:
            answer: Answer = self._pool(index).schedule(worker.measure, args=[task], timeout=self._time_limit).result()
        except (ProcessExpired, BrokenProcessPool, TimeoutError) as error:
            self._stop(index)
            if len(task.comparisons) == 1:
                return Answer({task.comparisons[0][0]: _ended(error, self._time_limit)})
            answer = Answer()
            for pair in task.comparisons:
                alone = replace(task, comparisons=(pair,), excused=task.excused | refused(answer.standings))
                if not alone.excused & {*pair}:
                    one = self.ask(index, alone)
                    answer.quads |= one.quads
                    settle(answer.standings, one.standings)
        return answer

    def _pool(self, index: int) -> ProcessPool:
        pool = self._pools[index]
        if pool is None or not pool.active:
            context = multiprocessing.get_context("spawn")
            pool = self._pools[index] = ProcessPool(1, initializer=worker.begin, context=context)
        return pool

    def _stop(self, index: int) -> None:
        pool = self._pools[index]
        if pool is not None:
            pool.stop()  # type: ignore[no-untyped-call]  # pebble leaves out the "-> None" of this one
            pool.join()
            self._pools[index] = None


def _ended(error: Exception, time_limit: float) -> Standing:
    if isinstance(error, TimeoutError):
        return Standing(FAILED, f"no answer within {time_limit:g} seconds")
    code = getattr(error, "exitcode", None)
    if code == _KILLED:
        return Standing(OUT_OF_MEMORY, "the process was killed, as the system does where memory runs out")
    return Standing(FAILED, f"the process ended with exit code {code}")


def measure(plan: Plan, cell: Cell, workers: Processes) -> Result:
    """Measure one cell in all processes."""
    start = time.monotonic()
    task = Task(cell, plan.comparisons(cell), plan.effort, plan.seed, gated=True)
    result = Result(cell)
    for index in range(len(workers)):
        answer = workers.ask(index, task)
        settle(result.standings, answer.standings)
        for pair, quads in answer.quads.items():
            result.quads.setdefault(pair, []).append(quads)
        excused = refused(result.standings)
        pairs = tuple(pair for pair in task.comparisons if not excused & {*pair})
        result.quads = {pair: quads for pair, quads in result.quads.items() if pair in pairs}
        if not pairs:
            break
        task = replace(task, gated=False, excused=excused, comparisons=pairs)
    result.seconds = time.monotonic() - start
    return result


class Session:
    """A run in its folder: which cells are finished, and which are still to do."""

    def __init__(self, folder: Path, plan: Plan, command: str, *, resume: bool = False) -> None:
        self.folder, self.plan = folder, plan
        self._cells = folder / "cells"
        self.results: dict[str, Result] = {}
        self.left_out: list[str] = []
        header = folder / "run.json"
        if header.exists() and not resume:
            msg = f"{folder} holds a run already; give --resume to go on with it, or another --out"
            raise TableError(msg)
        if header.exists():
            self.facts: dict[str, Any] = loaded(header, read_json)
            self._check_same()
            self.results = {path.stem: loaded(path, _read) for path in sorted(self._cells.glob("*.json"))}
        else:
            self._cells.mkdir(parents=True, exist_ok=True)
            self.facts = _facts(plan, command)
            self.write_facts()

    def run(self, time_budget: float | None, workers: Processes) -> Iterator[tuple[int, int, Cell]]:
        """Measure the cells that are not finished, and say before each how many are done, of how many, and which.

        No cell is begun that would not end within the budget if it took as long as the mean of those before it.
        """
        cells = self.plan.with_floor()
        start, took = time.monotonic(), [result.seconds for result in self.results.values()]
        self.left_out = [cell.id for cell in cells if cell.id not in self.results]
        for done, cell in enumerate(cells):
            if cell.id in self.results:
                continue
            expected = sum(took) / len(took) if took else 0.0
            if time_budget is not None and time.monotonic() - start + expected > time_budget:
                break
            yield done, len(cells), cell
            result = measure(self.plan, cell, workers)
            write_json(self._cells / f"{cell.id}.json", result.as_json())
            self.results[cell.id] = result
            took.append(result.seconds)
            self.left_out.remove(cell.id)

    def ordered(self) -> list[Result]:
        """Return the finished cells in the order of the plan."""
        return [self.results[cell.id] for cell in self.plan.with_floor() if cell.id in self.results]

    def write_facts(self, **more: Any) -> None:
        """Write ``run.json``."""
        self.facts |= {"ended": _now(), "left_out": self.left_out, **more}
        write_json(self.folder / "run.json", self.facts)

    def _check_same(self) -> None:
        """Raise TableError if the folder's run is another than this one."""
        here = _facts(self.plan, "")
        for name, what in (("machine", "machine"), ("commit", "commit"), ("versions", "versions"), ("plan", "plan")):
            if self.facts.get(name) != here[name]:
                msg = (
                    f"{self.folder} holds a run of another {what}; resume it as it was begun "
                    f"({self.facts.get('command')}), or give another --out"
                )
                raise TableError(msg)


def _read(path: Path) -> Result:
    return Result.from_json(read_json(path))


def _facts(plan: Plan, command: str) -> dict[str, Any]:
    device = plan.cells[0].device if plan.cells else "cpu"
    started = datetime.now(UTC)
    return {
        "schema_version": SCHEMA_VERSION,
        "run_id": f"{started:%Y%m%dT%H%M%S}-{time.time_ns() % 10000:04d}",
        "started": _now(),
        "machine": machine.name(device),
        "commit": machine.commit(),
        "command": command,
        "subject": plan.subject,
        "seed": plan.seed,
        "facts": machine.facts(device) | {"threads": plan.cells[0].threads if plan.cells else None},
        "versions": machine.versions(),
        "options": dataclasses.asdict(plan.effort) | {"against": list(plan.against), "quick": plan.quick},
        "plan": json.loads(json.dumps(plan.as_json())),
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
