"""Check ``search``, with a budget: in rounds over the rules, until it is used up. See `verify.checks.examples`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from verify.checks.examples import RULES, looked_for
from verify.model import Finding, Level, Outcome, Verdict
from verify.questions.examples import CHECK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from verify.model import Subject
    from verify.questions.examples import Example

#: Examples in one round; a round is one rule.
ROUND = 100


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
    begun = time.perf_counter()
    if not subject.offers(rule):
        return _outcome(
            f"{CHECK}/{rule}", rule, Finding(Verdict.NOT_OFFERED, reason=f"{subject.spec} has no {rule}"), 0.0
        )
    try:
        example, finding = looked_for(subject, rule, dtypes, seed, count)
    finally:
        progress(count)
    name = example.id if example else f"{CHECK}/{rule}/seed-{seed}/{count}-examples"
    return _outcome(name, rule, finding, time.perf_counter() - begun, example)


def _outcome(id_: str, rule: str, finding: Finding, seconds: float, example: Example | None = None) -> Outcome:
    layer, dtype = (example.kind, example.dtype) if example else ("-", "-")
    return Outcome(id_, rule, layer, CHECK, dtype, Level.MUST, seconds=seconds, **vars(finding))
