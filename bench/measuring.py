"""One cell in one process: the gate, memory, and the paired loop of each comparison. What comes back is plain data."""

from __future__ import annotations

import gc
import traceback
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from bench.cuda import EventClock, full_precision, graph_seconds
from bench.memory import peak_bytes
from bench.pairing import Effort, paired, wall_clock
from bench.subjects import GRADIENT, Contender, Gate, contender
from bench.workloads import Cell, pose
from verify.model import NotOfferedError, SubjectError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from bench.agreement import Agreement
    from verify.model import Problem

#: DISAGREES: with the reference, by a mistake or by another published convention; there is no telling here.
OK, UNSUPPORTED, DISAGREES, OUT_OF_MEMORY, FAILED = "ok", "unsupported", "disagrees", "out-of-memory", "failed"
_LONGEST_REASON = 300
#: The most that glibc's malloc learns from, see mallopt(3): 32 MiB, with what it needs itself.
_LEARNT_FROM = 2**25 - 2**13


@dataclass(frozen=True)
class Task:
    """What a process is asked: a cell, which subjects against which, and how much of it.

    ``gated`` asks for agreement and memory besides the times: one process of several does that, before the others.
    ``excused`` names subjects that are not to be timed, because they were refused there.
    """

    cell: Cell
    comparisons: tuple[tuple[str, str], ...]
    effort: Effort
    seed: int = 0
    gated: bool = False
    excused: frozenset[str] = frozenset()


@dataclass
class Standing:
    """Where a subject stands in a cell: its status with the reason, agreement, memory."""

    status: str = OK
    reason: str = ""
    version: str = ""
    agreement_ratio: float | None = None
    agreement_entries: int = 0
    peak_bytes: int | None = None
    graph_seconds: float | None = None


@dataclass
class Answer:
    """What a process has found: the standing of each subject, and quads of seconds for each comparison."""

    standings: dict[str, Standing] = field(default_factory=dict)
    quads: dict[tuple[str, str], list[list[float]]] = field(default_factory=dict)


def refused(standings: Mapping[str, Standing]) -> frozenset[str]:
    """Return the subjects that are not ok."""
    return frozenset(name for name, standing in standings.items() if standing.status != OK)


def settle(standings: dict[str, Standing], later: Mapping[str, Standing]) -> None:
    """Take over what is learnt later: of subjects not known, and of known ones that are ok no more."""
    for name, standing in later.items():
        if name not in standings or (standings[name].status == OK and standing.status != OK):
            standings[name] = standing


def settle_heap() -> None:
    """Bring malloc into the state of a process that has been at work for a while.

    glibc gives free memory at the end of the heap back to the system once it is more than twice the largest block that
    was ever mapped by itself and freed. In a young process, that is little: a call may fault in the same pages again
    and again, or not at all, as chance has laid out the heap, and take half as long again. One large block ends that.
    """
    torch.empty(_LEARNT_FROM, dtype=torch.uint8)


def measure(task: Task) -> Answer:
    """Answer a task in this process."""
    torch.set_num_threads(task.cell.threads)
    full_precision()
    answer = Answer()
    subjects: dict[str, Contender] = {}
    for name in dict.fromkeys(name for pair in task.comparisons for name in pair):
        if name in task.excused:
            continue
        answer.standings[name] = _attempt(partial(_loaded, subjects, name))
    try:
        problem = pose(task.cell, task.seed)
    except (RuntimeError, MemoryError, NotImplementedError) as error:
        answer.standings = dict.fromkeys(answer.standings, _standing(error))
        return answer
    if task.gated:
        gate = Gate(task.cell, problem)
        for name, subject in subjects.items():
            answer.standings[name] = _attempt(partial(_gated, task, subject, problem, gate))
    gc.collect()
    clock = EventClock() if task.cell.device.startswith("cuda") else wall_clock
    for pair in task.comparisons:
        if any(name not in answer.standings or answer.standings[name].status != OK for name in pair):
            continue
        failed = _attempt(partial(_timed, task, answer, pair, subjects, problem, clock))
        if failed.status != OK:
            answer.standings[pair[0]] = failed
    return answer


def _loaded(subjects: dict[str, Contender], name: str) -> Standing:
    subjects[name] = contender(name)
    return Standing(version=subjects[name].version)


def _gated(task: Task, subject: Contender, problem: Problem, gate: Gate) -> Standing:
    """Ask agreement and memory of one subject."""
    standing = Standing(version=subject.version)
    with subject.on(task.cell, problem) as (call, module):
        if subject.name != GRADIENT:
            found: Agreement = gate.judge(call, module)
            standing.agreement_ratio, standing.agreement_entries = found.ratio, found.entries
            if not found.holds:
                standing.status, standing.reason = DISAGREES, _shortened(found.reason)
                return standing
        standing.peak_bytes = peak_bytes(call, task.cell.device)
        if task.cell.device.startswith("cuda"):
            try:
                standing.graph_seconds = graph_seconds(call, EventClock())
            except RuntimeError as error:
                standing.reason = _shortened(f"no CUDA graph: {error}")
    return standing


def _timed(
    task: Task,
    answer: Answer,
    pair: tuple[str, str],
    subjects: Mapping[str, Contender],
    problem: Problem,
    clock: Callable[[Callable[[], Any]], float],
) -> Standing:
    """Run the paired loop of one comparison."""
    with subjects[pair[0]].on(task.cell, problem) as (a, _), subjects[pair[1]].on(task.cell, problem) as (b, _):
        answer.quads[pair] = paired(a, b, task.effort, clock).tolist()
    return Standing()


def _attempt(step: Callable[[], Standing]) -> Standing:
    """Take a step; an exception is where the subject stands."""
    try:
        return step()
    except Exception as error:  # noqa: BLE001  a subject may raise anything, and it is a result
        return _standing(error)


def _standing(error: Exception) -> Standing:
    reason = _shortened(f"{type(error).__name__}: {error}")
    if isinstance(error, NotOfferedError):
        return Standing(UNSUPPORTED, str(error))
    if isinstance(error, SubjectError):
        return Standing(UNSUPPORTED, _shortened(str(error)))
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "not enough memory" in str(error):
        return Standing(OUT_OF_MEMORY, reason)
    if "not implemented for" in str(error):
        return Standing(UNSUPPORTED, reason)
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return Standing(FAILED, f"{reason} ({frame.filename.rpartition('/')[2]}:{frame.lineno})")


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST_REASON else line[: _LONGEST_REASON - 1] + "…"
