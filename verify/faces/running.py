"""What happens between a call and its report: the cases are asked, and what they come to is explained."""

from __future__ import annotations

import contextlib
import sys
import time
import warnings
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lrp_entry.extras import MissingExtraError, require
from verify.explaining import deviations as deviating
from verify.formats.environment import environment
from verify.model import BAD, Level, Verdict
from verify.reports.report import Call, Report, Shard
from verify.runs import searching, shards
from verify.runs.order import by_urgency
from verify.runs.outcomes import alive
from verify.runs.runner import Runner
from verify.runs.selection import UnusableError
from verify.runs.worker import LostError, SubjectInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from verify.explaining.asked import Numbers
    from verify.model import Case, Outcome
    from verify.runs.selection import Request
    from verify.runs.worker import Source

#: The verdicts after which there are numbers to show; a case that crashes or hangs is not asked again.
_COMPARED = frozenset({Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.ERROR})


def started(request: Request, source: Source, selected: Sequence[Case]) -> Runner:
    """Return the workers for the selected cases, and for what is asked after them."""
    if request.cluster is not None:
        require_cluster()
        from verify.runs.cluster.clustered import ClusterRunner  # noqa: PLC0415  imports Dask

        return ClusterRunner(request.cluster, source, time_limit=request.time_limit, subject=request.subject)
    workers = min(request.workers, max(len(selected), request.searching))
    return Runner(source, workers=workers, time_limit=request.time_limit, subjects=(request.subject,))


def require_cluster() -> None:
    """Raise UnusableError where what --cluster needs is not installed."""
    try:
        require("cluster", "--cluster")
    except MissingExtraError as error:
        raise UnusableError(str(error)) from error


def run(
    request: Request,
    source: Source,
    runner: Runner,
    whole: Sequence[Case],
    selected: Sequence[Case],
    begun: Callable[[SubjectInfo, Call], object] = lambda _subject, _call: None,
    known: deviating.Deviations | None = None,
) -> Report:
    """Run the selected ones of all cases, search, and come back with what there is when interrupted.

    ``begun`` is told what is tested, as soon as the subject is loaded and before any case is asked. ``known`` are the
    failures that do not end a run that ends with the first one.
    """
    start = time.perf_counter()
    workers = min(runner.workers, len(selected))
    call = Call(
        len(selected),
        source.dtypes,
        request.seed,
        request.device,
        workers,
        request.time_limit,
        request.strict,
    )
    info, interrupted, ended, lost = SubjectInfo(request.subject), False, False, ""
    outcomes: list[Outcome] = []
    try:
        info = runner.describe(request.subject)
        begun(info, call)
        with (
            _progress(request, len(selected), runner.where) as progress,
            contextlib.closing(runner.run(request.subject, by_urgency(selected))) as answers,
        ):
            for outcome in answers:
                outcomes.append(outcome)
                progress.show(outcomes)
                if request.exit_first and _decides(outcome, info, request, known):
                    ended = True
                    break
        if request.searching and not ended:
            with alive():  # what there is stays when it is interrupted
                asked = None if request.cluster is None else partial(runner.searched, request.subject)
                outcomes.extend(searching.run(request, runner.subject(request.subject), asked))
    except KeyboardInterrupt:
        interrupted = True
    except LostError as error:
        if not outcomes:
            raise
        interrupted, lost = True, f"The run ended early: {error}"
    places = {case.id: index for index, case in enumerate(whole)}
    for outcome in outcomes:
        places.setdefault(outcome.id, len(places))  # what the search has asked
    ordered = tuple(sorted(outcomes, key=lambda outcome: places[outcome.id]))
    call = replace(call, selected=len(selected) + len(places) - len(whole))
    part = Shard(*request.shard, shards.corpus(places), len(places))
    seconds = time.perf_counter() - start
    notes = (*([runner.note] if runner.note else []), *_fixed(info), *_met(request, selected, outcomes))
    if ended:
        notes = (*_fixed(info), f"-x: ended at the first failure, after {len(ordered)} of {len(selected)} cases")
    if lost:
        notes = (lost,)
    return Report(info, call, ordered, seconds, interrupted, environment(request.device), part, places, notes)


def _fixed(info: SubjectInfo) -> tuple[str, ...]:
    """Say which parameters a subject was asked with, if it cannot change them."""
    rules: dict[str, list[str]] = {}
    for rule, values in info.parameters.items():
        told = ", ".join(f"{name}={value if value != [] else None}" for name, value in values.items())
        rules.setdefault(told, []).append(rule)
    given = "; ".join(f"{', '.join(names)} with {told}" for told, names in rules.items() if told)
    return (f"Fixed parameters, in place of the defaults: {given}",) if given else ()


def _met(request: Request, selected: Sequence[Case], outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    """Say how many options were asked together, where all of the cases that do so were asked."""
    from verify.questions.covering import arrays  # noqa: PLC0415  reads a file

    whole = {case.id for case in selected if "," in case.id}
    found = arrays.coverage(request.depth).values()
    rows, seconds = sum(one.rows for one in found), sum(o.seconds for o in outcomes if o.id in whole)
    if not rows or len(whole) < rows:  # some were left out, as by --rule
        return ()
    covered, of = sum(one.covered for one in found), sum(one.of for one in found)
    what = {2: "pairs", 3: "triples"}[request.depth]
    return (f"options together: {covered:,} of {of:,} {what}, in {rows:,} cases, {seconds:.0f} s of one core",)


def _decides(outcome: Outcome, info: SubjectInfo, request: Request, known: deviating.Deviations | None) -> bool:
    if outcome.verdict not in BAD or not (outcome.level is Level.MUST or info.ours or request.strict):
        return False
    if known is None:
        return True
    ((marked,), _) = deviating.apply(
        (outcome,), known, seed=request.seed, device=request.device, ids=(outcome.id,), subject=info
    )
    return not deviating.is_known(marked)


class _Shown(Progress):
    """A progress bar on standard error, which is only there on a terminal."""

    def show(self, outcomes: Sequence[Outcome]) -> None:
        bad = outcomes[-1].verdict in BAD
        task = self.tasks[0]
        self.update(task.id, advance=1, bad=task.fields["bad"] + bad)


def _progress(request: Request, total: int, where: str) -> _Shown:
    console = Console(stderr=True)
    if where and not request.quiet:
        console.print(where, soft_wrap=True, markup=False, highlight=False)
    columns = TextColumn(f"{request.subject}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    hidden = request.quiet or not console.is_terminal
    shown = _Shown(*columns, TextColumn("{task.fields[bad]} failed"), console=console, transient=True, disable=hidden)
    shown.add_task("", total=total, bad=0)
    return shown


def known_deviations(names: Sequence[str], version: str = "") -> deviating.Deviations | None:
    """Load files of known deviations, for this version of a library; raise UnusableError if one cannot be used."""
    try:
        return deviating.load(*names, version=version) if names else None
    except deviating.DeviationError as error:
        raise UnusableError(str(error)) from error


def explained(report: Report, known: deviating.Deviations, source: Source) -> Report:
    """Mark the known deviations, and say which of them are stale, or doubtful for this version."""
    call = report.call
    outcomes, stale = deviating.apply(
        report.outcomes, known, seed=call.seed, device=call.device, ids=source.cases().keys(), subject=report.subject
    )
    notes = (*report.notes, *known.doubts(report.subject.version))
    marked = replace(report, outcomes=outcomes, notes=notes, stale=tuple(map(str, stale)))
    left = {(outcome.rule, outcome.level) for outcome in marked.unexplained}
    return replace(marked, diagnoses=tuple(one for one in marked.diagnoses if (one.rule, one.level) in left))


def numbers(request: Request, report: Report, runner: Runner, cases: Mapping[str, Case]) -> dict[str, Numbers]:
    """Ask again, for every number, the cases that compare a relevance with the reference's and gave one."""
    from verify.explaining import asked  # noqa: PLC0415  imports torch

    wanted = [o for o in report.outcomes if o.check in {"agreement", "conservation"} and o.verdict in _COMPARED]
    if not wanted:
        return {}
    subject = runner.subject(request.subject)
    with alive():
        found = {
            outcome.id: asked.numbers(cases[outcome.id], subject, seed=request.seed, seconds=request.time_limit)
            for outcome in wanted
        }
    return {id_: one for id_, one in found.items() if one is not None}


def diagnosed(report: Report, request: Request, runner: Runner, source: Source) -> Report:
    """Name the known variant of a rule that explains its failures, if one does; or say what is known of them.

    An interrupt ends the search for names alone: all cases were run, and their report is not lost.
    """
    from verify.explaining.asked import posed  # noqa: PLC0415  imports torch
    from verify.explaining.diagnosis import asking, diagnose  # noqa: PLC0415  likewise

    unexplained = {outcome.id for outcome in report.unexplained}
    outcomes = [o for o in report.outcomes if o.verdict not in BAD or o.id in unexplained]
    # its prints are not the report's, and torch's warnings of a layer are not its user's
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings(), alive():
        warnings.simplefilter("ignore")
        try:
            cases = {id_: asked for id_, case in source.cases().items() if (asked := posed(case, report.subject))}
            found = diagnose(outcomes, cases, asking(runner.subject(request.subject)))
        except KeyboardInterrupt:
            return replace(report, notes=(*report.notes, "Interrupted: no diagnosis was made"))
    return replace(report, diagnoses=tuple(found.diagnoses), notes=(*report.notes, *found.hints))


def draw(subject: str, path: Path, device: str) -> None:
    """Draw where the relevance of a subject goes in the network of digits, in this process."""
    from verify.reports import network_figure  # noqa: PLC0415  imports torch and matplotlib
    from verify.subjects.loading import load  # noqa: PLC0415  imports torch

    with contextlib.redirect_stdout(sys.stderr):
        network_figure.draw(load(subject), path, device=device)
