"""Check ``search``: Hypothesis looks for numbers on which a rule is wrong, and shrinks what it finds.

The grid asks the same questions in every run; the search asks new ones, with the numbers on which floating point
breaks: zeros of both signs, subnormal, huge, tiny and nearly cancelling ones.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import hypothesis
from hypothesis import HealthCheck, Phase, settings
from hypothesis.errors import Flaky

from verify.checks.examples import RULES, case_of
from verify.formats.remembered import forgetting
from verify.formats.text import text_of
from verify.model import BAD, TIME_LIMIT, Finding, Level, NotOfferedError, Outcome, UnansweredError, Verdict
from verify.questions.examples import CHECK, Example
from verify.questions.strategies import examples

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from verify.model import Subject

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
) -> Iterator[Outcome]:
    """Search until the budget is used up, in rounds over the rules; yield one outcome for each round.

    A rule that was found wrong is not searched again. ``progress`` is told how many examples were tried.
    """
    if seconds is None and count is None:
        msg = "search has no budget; give seconds, or a count of examples"
        raise ValueError(msg)
    start, tried, number, left = time.monotonic(), 0, 0, list(rules)
    while left:
        for rule in list(left):
            if (seconds is not None and time.monotonic() - start >= seconds) or (count is not None and tried >= count):
                return
            size = ROUND if count is None else min(ROUND, count - tried)
            outcome = _round(subject, rule, dtypes, seed + number, size, progress)
            number, tried = number + 1, tried + size
            if outcome.verdict is not Verdict.PASS:
                left.remove(rule)
            yield outcome


def _round(
    subject: Subject, rule: str, dtypes: Sequence[str], seed: int, count: int, progress: Callable[[int], None]
) -> Outcome:
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

    run = hypothesis.seed(seed)(
        settings(
            max_examples=count, deadline=None, database=None, phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck), print_blob=False,
        )(hypothesis.given(examples(rule, dtypes))(ask))
    )  # fmt: skip
    begun = time.perf_counter()
    missing = Finding(Verdict.NOT_OFFERED, reason=f"{subject.spec} has no {rule}")
    if not subject.offers(rule):
        return _outcome(f"{CHECK}/{rule}", rule, missing, 0.0)
    try:
        with forgetting():  # nobody asks for these examples again
            run()
    except (_FoundError, Flaky):
        # the last that failed is the smallest
        example, finding = _simplest(*wrong[-1], subject)
        return _outcome(example.id, rule, finding, time.perf_counter() - begun, example)
    finally:
        progress(count)
    if not offered:
        return _outcome(f"{CHECK}/{rule}", rule, missing, 0.0)
    name = f"{CHECK}/{rule}/seed-{seed}/{count}-examples"
    return _outcome(name, rule, Finding(Verdict.PASS, best), time.perf_counter() - begun)


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


def _outcome(id_: str, rule: str, finding: Finding, seconds: float, example: Example | None = None) -> Outcome:
    layer, dtype = (example.kind, example.dtype) if example else ("-", "-")
    return Outcome(id_, rule, layer, CHECK, dtype, Level.MUST, seconds=seconds, **vars(finding))
