"""What is wrong: which known variant of a rule explains all that a subject fails.

Asked again of some of the cases that a run has failed and passed, the subject's answers are held against every known
variant of the rule (`reference.conventions`), each within its own bound of rounding. A variant is named if it agrees
with all of these answers and no other variant does. A wrong name would be worse than none.
"""

from __future__ import annotations

import random
import time
import warnings
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch

from reference.conventions import Answer, Question, RefusedError, of_rule
from reference.layers import affine
from reference.precision import model_for
from verify.checks import agreement
from verify.checks.comparator import compare
from verify.explaining.asked import Setup
from verify.explaining.diagnoses import DEFAULT, Diagnosis, Known
from verify.formats.torch_layers import array, describe
from verify.model import TIME_LIMIT, Verdict
from verify.questions.covering.rows import Covered
from verify.questions.variants import Sample
from verify.subjects.asking import relevance_by_call

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from reference.conventions import Convention
    from reference.layers import Affine
    from reference.rules import Parts
    from verify.model import Case, Level, Outcome, Subject
    from verify.questions.layers import LayerCase
    from verify.questions.variants import Variant

    Array = NDArray[np.float64]
    #: Gives the relevance of a case, one row a sample; None is an error in the place of an answer.
    Ask = Callable[[Case], Array | None]

#: How many cases that a rule fails, and as many that it passes, are asked again.
ENOUGH = 40
#: Seconds of work for all rules together, and how many times as long it may take: other processes' load says nothing.
SECONDS, _WAITING = 10.0, 6
#: More variants than these that cannot be told apart explain nothing.
_ALTERNATIVES = 3
_DTYPES = ("float64", "float32")


def diagnose(
    outcomes: Iterable[Outcome], cases: Mapping[str, Case], ask: Ask, *, seconds: float = SECONDS
) -> list[Diagnosis]:
    """Return what explains the failures of each rule, in the order of the outcomes; nothing for what nothing explains.

    ``cases`` are those of the run, by id. ``ask`` is `asking` a subject, in this process and without a time limit, so
    that only cases are asked that came to an end in the run; or a look-up in answers that were recorded.
    """
    groups: dict[tuple[str, Level], tuple[list[Case], list[Case]]] = {}
    for outcome in outcomes:
        case = cases.get(outcome.id)
        if case is None or not _told_apart(case):
            continue
        failing, passing = groups.setdefault((outcome.rule, outcome.level), ([], []))
        if outcome.verdict in {Verdict.FAIL, Verdict.ERROR}:
            failing.append(case)
        elif outcome.verdict is Verdict.PASS:
            passing.append(case)
    asked = [(key, *group) for key, group in groups.items() if group[0]]
    found: list[Diagnosis] = []
    clock = _clock()
    for index, ((rule, level), failing, passing) in enumerate(asked):
        now = clock()
        search = _Search(rule, ask, clock, now + max(0.0, seconds - now) / (len(asked) - index))
        found.extend(search.diagnose(level, failing, passing))
    return [_narrowed(one, found) for one in found]


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

    def ask(case: Case) -> Array | None:
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


def _questions(case: Case) -> list[Question]:
    """Return what the reference is asked in a case, one question a sample."""
    setup = Setup(case)
    problem, variant = setup.problem, setup.variant
    described = describe(problem.module, setup.layer.sample_shape)
    x, relevance = (agreement.rows(t, batched=True) for t in (problem.x, problem.relevance))
    shape = tuple(problem.x.shape)
    model = model_for(str(problem.x.dtype), case.device)
    given = {name: array(v) if isinstance(v, torch.Tensor) else v for name, v in setup.arguments.items()}

    def question(index: int, x: Array, R: Array) -> Question:
        if variant is None:
            return Question(case.rule, affine(described, x), R, model=model, given=given, index=index, batch=shape)
        sample, layer = Sample(index, shape, batched=True), affine(described, x, variant.zero_params)
        parts_of = partial(_parts_of, variant, sample)
        return Question(case.rule, layer, R, variant.stabilizer, model, parts_of, given, index, shape)

    return [question(i, x_i, R_i) for i, (x_i, R_i) in enumerate(zip(x, relevance, strict=True))]


def _parts_of(variant: Variant, sample: Sample, layer: Affine) -> Parts:
    return variant.parts(layer, sample)


@dataclass
class _Asked:
    """What a subject gave in a case, what it was asked, and what the rule itself gives."""

    got: Array | None
    batch: list[Question]
    right: list[Answer]


class _Search:
    """Leaves out one variant of a rule after the other, by the answers of a subject."""

    def __init__(self, rule: str, ask: Ask, clock: Callable[[], float], end: float) -> None:
        self._rule, self._ask, self._clock, self._end = rule, ask, clock, end
        self._known: dict[str, _Asked] = {}

    def diagnose(self, level: Level, failing: Sequence[Case], passing: Sequence[Case]) -> Iterator[Diagnosis]:
        """Yield what explains all cases; or else, for a rule with a second mistake, those with default parameters."""
        found = self._explaining(level, failing, passing)
        if found is None:
            at_default = [[case for case in cases if _parameters(case) == DEFAULT] for cases in (failing, passing)]
            if at_default[0] and at_default != [failing, passing]:
                found = self._explaining(level, *at_default)
                found = None if found is None else replace(found, default=True)
        if found is not None:
            yield found

    def _explaining(self, level: Level, failing: Sequence[Case], passing: Sequence[Case]) -> Diagnosis | None:
        """Return what explains all failing and all passing cases; or else the passing ones on the failing layers."""
        failed_on = tuple(sorted({_name(case) for case in failing}))
        failing, passing = _spread(failing), _spread(passing, failed_on)
        layers: tuple[str, ...] = ()
        found = self._explained(failing, passing)
        if not found:
            layers = failed_on
            elsewhere = [case for case in passing if _name(case) not in layers]
            passing = [case for case in passing if _name(case) in layers]
            found = self._explained(failing, passing)
            if not self._told_by_layer(found, failing, elsewhere):
                return None
        if not 0 < len(found) <= _ALTERNATIVES:
            return None
        failed, passed = (sum(case.id in self._known for case in cases) for cases in (failing, passing))
        known = tuple(Known(one.name, one.sentence, one.seen, one.published) for one in found)
        return Diagnosis(self._rule, level, known, failed, passed, layers)

    def _explained(self, failing: Sequence[Case], passing: Sequence[Case]) -> tuple[Convention, ...]:
        """The variants that agree with every case, and differ from the rule where the subject does."""
        left = list(of_rule(self._rule))
        evidence: dict[int, set[str]] = defaultdict(set)
        for case in (*failing[:ENOUGH], *passing[:ENOUGH]):
            if not left or self._clock() > self._end:
                return ()
            left = self._agreeing(left, case, evidence)
        # what is left may differ in other cases
        for case in (*failing[ENOUGH:], *passing[ENOUGH:]):
            if len({one.name for one in left}) <= 1 or self._clock() > self._end:
                break
            if _differ(left, _questions(case)):
                left = self._agreeing(left, case, evidence)
        named: dict[str, Convention] = {}
        for one in left:
            if evidence[id(one)] == _NEEDED:
                named.setdefault(one.name, one)  # the first form stands for all of a name
        return tuple(named.values())

    def _told_by_layer(self, found: Iterable[Convention], failing: Sequence[Case], elsewhere: Sequence[Case]) -> bool:
        """Whether it is the layer that decides, and not the parameters or the data of the failing cases.

        On another layer, one of the same parameters and data has to pass although each of these variants differs.
        """
        alike = {_beside_layer(case) for case in failing}
        left = list(found)
        for case in [case for case in elsewhere if _beside_layer(case) in alike][:ENOUGH]:
            if not left or self._clock() > self._end:
                break
            asked = self._asked(case)
            left = [one for one in left if _agreement(one, asked) is not None]
        return not left

    def _agreeing(
        self, conventions: Sequence[Convention], case: Case, evidence: dict[int, set[str]]
    ) -> list[Convention]:
        asked, kept = self._asked(case), []
        for convention in conventions:
            found = _agreement(convention, asked)
            if found is not None:
                kept.append(convention)
                evidence[id(convention)] |= found
        return kept

    def _asked(self, case: Case) -> _Asked:
        if case.id not in self._known:
            batch = _questions(case)
            self._known[case.id] = _Asked(self._ask(case), batch, [question.answer() for question in batch])
        return self._known[case.id]


#: What speaks for a variant: it agrees where the rule itself does not, and in some number other than zero.
_NEEDED = frozenset({"not the rule", "a number"})


def _agreement(convention: Convention, asked: _Asked) -> set[str] | None:
    """What speaks for a variant in a case; None where it does not agree with what the subject gave."""
    with np.errstate(all="ignore"):
        try:
            answers = convention.form(asked.batch)
        except RefusedError:
            return {"not the rule"} if asked.got is None else None
        if asked.got is None or len(asked.got) != len(answers):
            return None
        evidence: set[str] = set()
        for got, answer, right in zip(asked.got, answers, asked.right, strict=True):
            if not _holds(got, answer):
                return None
            decided = np.isfinite(answer.worst)
            outside = ~(np.abs(got - right.relevance) <= right.worst)
            if (outside & (decided | ~np.isfinite(got))).any():
                evidence.add("not the rule")
            if (decided & np.isfinite(got) & (got != 0)).any():
                evidence.add("a number")
        return evidence


def _differ(conventions: Sequence[Convention], batch: list[Question]) -> bool:
    """Whether some subject that follows one of these would be told from the others by this case."""
    found: list[list[Answer] | None] = []
    with np.errstate(all="ignore"):
        for convention in conventions:
            try:
                found.append(list(convention.form(batch)))
            except RefusedError:
                found.append(None)
    first = found[0]
    return any(
        (one is None) != (first is None)
        or any(not _holds(a.relevance, b) for a, b in zip(one or (), first or (), strict=True))
        for one in found[1:]
    )


def _holds(got: Array, answer: Answer) -> bool:
    r, worst, digits = answer
    if got.shape != r.shape:
        return False
    if not np.isfinite(r).all():
        # 0 * inf spreads over whatever an implementation multiplies with: where to is no part of a convention
        return not np.isfinite(got).all()
    if digits is not None:
        mantissa = np.ldexp(np.frexp(got)[0], digits)
        if not (mantissa == np.rint(mantissa)).all():
            return False
    return compare(got, r, worst).holds


def _name(case: Case) -> str:
    return case.id.split("/")[2]


def _parameters(case: Case) -> str:
    return case.id.split("/")[3]


def _beside_layer(case: Case) -> tuple[str, ...]:
    return tuple(case.id.split("/")[3:])


def _spread(cases: Sequence[Case], first: Collection[str] = ()) -> list[Case]:
    """Return the cases so that the first of them differ in as much as possible, those in float64 first.

    First there is one of each parameter of the rule, then one of each layer, then of each pair of what an id names;
    among equals, those on the layers named in `first`, where a difference is most likely to be seen.
    """
    left = list(cases)
    random.Random(0).shuffle(left)
    left.sort(key=lambda case: (case.dtype != "float64", _name(case) not in first))
    found: list[Case] = []
    for tells in (lambda words: {words[3]}, lambda words: set(words[2:5]), lambda words: set(pairwise(words))):
        seen = {told for case in found for told in tells(case.id.split("/"))}
        waiting: list[Case] = []
        for case in left:
            told = tells(case.id.split("/"))
            (waiting if told <= seen else found).append(case)
            seen |= told
        left = waiting
    return found + left
