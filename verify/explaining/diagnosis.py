"""What is wrong: which known variant of a rule explains all that a subject fails.

Asked again of some of the cases that a run has failed and passed, the subject's answers are held against every known
variant of the rule (`reference.conventions`), each within its own bound of rounding, and then against several of them
at once. A variant is named if it agrees with all of these answers and no other variant does: a wrong name would be
worse than none. Where none does, hints say which comes nearest, and what tells the failing cases from the others.
"""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from verify.checks import agreement
from verify.explaining import hints
from verify.explaining.asked import Setup
from verify.explaining.diagnoses import DEFAULT, Diagnosis, Known
from verify.explaining.search import Search
from verify.model import TIME_LIMIT, Level, Verdict
from verify.questions.covering.rows import Covered
from verify.subjects.asking import relevance_by_call

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from verify.explaining.search import Ask, Found
    from verify.model import Case, Outcome, Subject
    from verify.questions.layers import LayerCase

#: Seconds of work for each rule, and how many times as long it may take: other processes' load says nothing.
SECONDS, _WAITING = 4.0, 6
_DTYPES = ("float64", "float32")


class Explained(NamedTuple):
    """What explains the failures of rules; and, a line each, what is known of those that nothing explains."""

    diagnoses: list[Diagnosis]
    hints: list[str]


@dataclass(frozen=True)
class Told:
    """The cases of one rule and level that tell variants apart, by their verdict."""

    failing: list[Case] = field(default_factory=list)
    passing: list[Case] = field(default_factory=list)
    raising: list[Case] = field(default_factory=list)

    def only(self, wanted: Callable[[Case], bool]) -> Told:
        """Return those cases of which this is so."""
        return Told(*([case for case in cases if wanted(case)] for cases in (self.failing, self.passing, self.raising)))


def diagnose(
    outcomes: Iterable[Outcome], cases: Mapping[str, Case], ask: Ask, *, seconds: float = SECONDS
) -> Explained:
    """Return what explains the failures of each rule, in the order of the outcomes; and hints where nothing does.

    ``cases`` are those of the run, by id. ``ask`` is `asking` a subject, in this process and without a time limit, so
    that only cases are asked that came to an end in the run; or a look-up in answers that were recorded. An exception
    is no evidence against a formula: cases that raised one are left out. ``seconds`` are those for each rule.
    """
    groups: dict[tuple[str, Level], Told] = {}
    for outcome in outcomes:
        case = cases.get(outcome.id)
        if case is None or not _told_apart(case):
            continue
        told = groups.setdefault((outcome.rule, outcome.level), Told())
        place = {Verdict.FAIL: told.failing, Verdict.PASS: told.passing, Verdict.ERROR: told.raising}
        place.get(outcome.verdict, []).append(case)
    found: list[Diagnosis] = []
    said: list[str] = []
    raised = []
    clock = _clock()
    for (rule, level), told in groups.items():
        if not told.failing and not told.raising:
            continue
        search = Search(rule, ask, clock, clock() + seconds)
        one = _diagnosis(search, rule, level, told)
        found.extend([] if one is None else [one])
        if level is Level.MUST and one is None and told.failing:
            said.extend(hints.unexplained(search, rule, told.failing, told.passing))
        if level is Level.MUST and told.raising:
            raised.append((rule, told.raising, [*told.failing, *told.passing]))
    return Explained([_narrowed(one, found) for one in found], [*said, *hints.errors(raised)])


def _diagnosis(search: Search, rule: str, level: Level, told: Told) -> Diagnosis | None:
    """Return what explains all cases; or else, for a rule with another mistake, those with default parameters."""
    at_default = told.only(lambda case: case.id.split("/")[3] == DEFAULT)
    for part in (told, at_default) if at_default.failing and at_default != told else (told,):
        found = search.explaining(part.failing, part.passing, part.raising)
        if found is not None:
            return replace(_said(found, rule, level), default=part is at_default)
    return None


def _said(found: Found, rule: str, level: Level) -> Diagnosis:
    known = tuple(Known(one.name, one.sentence, one.seen, one.published) for one in found.variants)
    return Diagnosis(rule, level, known, found.failing, found.passing, found.layers)


def _clock() -> Callable[[], float]:
    """Return what tells the seconds of work since now."""
    own, all_ = time.process_time(), time.perf_counter()
    return lambda: max(time.process_time() - own, (time.perf_counter() - all_) / _WAITING)


def _narrowed(one: Diagnosis, found: Sequence[Diagnosis]) -> Diagnosis:
    """Of variants that cannot be told apart, the one that the rule follows where another level tells it."""
    certain = {other.names[0] for other in found if other.rule == one.rule and len(other.names) == 1}
    kept = tuple(variant for variant in one.variants if variant.name in certain)
    return replace(one, variants=kept) if len(kept) == 1 else one


def asking(subject: Subject) -> Ask:
    """Return what asks a subject."""

    def ask(case: Case) -> agreement.Array | None:
        setup = Setup(case)
        torch.manual_seed(0)
        torch.set_grad_enabled(True)
        try:
            with warnings.catch_warnings(), subject.asking(case, TIME_LIMIT):
                warnings.simplefilter("ignore")
                rule = subject.get(case.rule)(**setup.arguments)
                r = relevance_by_call(rule, setup.problem)
                if r.shape != setup.problem.x.shape or r.dtype != setup.problem.x.dtype:
                    return np.empty((0, 0))  # no relevance of this input
                return agreement.rows(r, batched=True)
        except KeyboardInterrupt:
            raise
        except BaseException:  # noqa: BLE001  a subject may raise anything; that is its answer
            return None

    return ask


def _told_apart(case: Case) -> bool:
    """Whether a case tells variants apart: it compares a relevance, in some precision, over at least one sample.

    A layer that is called without a batch tells what a subject takes for a sample, and not its formula.
    """
    run = case.run
    if not isinstance(run, partial) or run.func not in {agreement.agrees, agreement.gradient_agrees}:
        return False
    layer: LayerCase = run.args[1]
    if isinstance(layer, Covered):  # where many options meet, few variants are all that is wrong
        return False
    return case.dtype in _DTYPES and layer.batched and "batch-of-0" not in case.id
