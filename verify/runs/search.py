"""Check ``search``: Hypothesis looks for numbers on which a rule is wrong, and shrinks what it finds.

The grid asks the same questions in every run; the search asks new ones, with the numbers on which floating point
breaks: zeros of both signs, subnormal, huge, tiny and nearly cancelling ones.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import hypothesis
from hypothesis import HealthCheck, Phase, settings
from hypothesis.errors import Flaky

from verify.checks.examples import RULES, case_of
from verify.formats.remembered import forgetting
from verify.formats.text import text_of
from verify.model import BAD, TIME_LIMIT, Finding, NotOfferedError, UnansweredError, Verdict
from verify.questions.examples import CHECK, Example
from verify.questions.strategies import examples
from verify.runs.rounds import Round

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from verify.model import Outcome, Subject

    Asked = Callable[[Iterable[Round]], Iterator[tuple[Round, Outcome]]]

#: Examples in one round; a round is one rule.
ROUND = 100


class _FoundError(Exception):
    """A rule is wrong on an example; Hypothesis shrinks what raises it."""


def search(
    subject: Subject,
    *,
    seconds: float | None = None,
    count: int | None = None,
    rules: Sequence[str] = RULES,
    dtypes: Sequence[str] = ("float64", "float32"),
    seed: int = 0,
    progress: Callable[[int], None] = lambda _: None,
    asked: Asked | None = None,
) -> Iterator[Outcome]:
    """Search until the budget is used up, in rounds over the rules; yield one outcome for each round.

    A rule that was found wrong is not searched again. ``progress`` is told how many examples were tried. ``asked``
    searches rounds elsewhere, and yields each with its outcome, in their order.
    """
    if seconds is None and count is None:
        msg = "search has no budget; give seconds, or a count of examples"
        raise ValueError(msg)
    start, left, number, tried = time.monotonic(), list(rules), 0, 0
    spent = False

    def over_the_rules() -> Iterator[Round]:
        nonlocal number, tried, spent
        for rule in list(left):
            spent = seconds is not None and time.monotonic() - start >= seconds
            spent |= count is not None and tried >= count
            if spent:
                return
            size = ROUND if count is None else min(ROUND, count - tried)
            one = Round(rule, tuple(dtypes), seed + number, size)
            number, tried = number + 1, tried + size
            yield one

    here: Asked = partial(map, lambda one: (one, searched(subject, one)))
    while left and not spent:
        for one, outcome in (asked or here)(over_the_rules()):
            progress(one.count)
            if outcome.verdict is not Verdict.PASS:
                left.remove(one.rule)
            yield outcome


def searched(subject: Subject, one: Round) -> Outcome:
    """Search one round."""
    wrong: list[tuple[Example, Finding]] = []
    best, offered = 0.0, False

    def ask(example: Example) -> None:
        nonlocal best, offered
        finding = _finding(example, subject)
        offered |= finding.verdict is not Verdict.NOT_OFFERED
        best = max(best, finding.ratio or 0.0)
        if finding.verdict in BAD:
            wrong.append((example, finding))
            raise _FoundError

    run = hypothesis.seed(one.seed)(
        settings(
            max_examples=one.count, deadline=None, database=None, phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck), print_blob=False,
        )(hypothesis.given(examples(one.rule, one.dtypes))(ask))
    )  # fmt: skip
    begun = time.perf_counter()
    missing = one.outcome(Finding(Verdict.NOT_OFFERED, reason=f"{subject.spec} has no {one.rule}"))
    if not subject.offers(one.rule):
        return missing
    try:
        with forgetting():  # nobody asks for these examples again
            run()
    except (_FoundError, Flaky):
        # the last that failed is the smallest
        example, finding = _simplest(*wrong[-1], subject)
        found = replace(one.outcome(finding), id=example.id, layer=example.kind, dtype=example.dtype)
        return replace(found, seconds=time.perf_counter() - begun)
    if not offered:
        return missing
    passed = one.outcome(Finding(Verdict.PASS, best))
    name = f"{CHECK}/{one.rule}/seed-{one.seed}/{one.count}-examples"
    return replace(passed, id=name, seconds=time.perf_counter() - begun)


def _simplest(example: Example, finding: Finding, subject: Subject) -> tuple[Example, Finding]:
    """Go on where Hypothesis stops: it changes one number, or the length of one list, and here both have to change."""
    left = _simpler(example)
    while (simpler := next(left, None)) is not None:
        if (found := _finding(simpler, subject)).verdict is finding.verdict:
            example, finding = simpler, found
            left = _simpler(example)
    return example, finding


def _simpler(example: Example) -> Iterator[Example]:
    """Yield the example with one number in place of a list, and with fewer features."""
    for name in ("weight", "bias", "x", "relevance"):
        values: tuple[float, ...] = getattr(example, name)
        for value in dict.fromkeys(values) if len(values) > 1 else ():
            yield replace(example, **{name: (value,)})  # type: ignore[arg-type]  # names of tuples
    if example.kind == "Linear":
        n, features = example.shape
        for options, shape in (
            ({"out_features": 1}, (n, features)),
            ({"in_features": 1}, (n, 1)),
            ({}, (1, features)),
        ):
            simpler = replace(example, options=example.options | options, shape=shape)
            if simpler != example:
                yield simpler


def _finding(example: Example, subject: Subject) -> Finding:
    case = case_of(example)
    try:
        with subject.asking(case, TIME_LIMIT):
            return case.run(subject)
    except NotOfferedError as error:
        return Finding(Verdict.NOT_OFFERED, reason=text_of(error))
    except UnansweredError as error:
        return error.finding
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return Finding(Verdict.ERROR, reason=f"{type(error).__name__}: {text_of(error)}")
