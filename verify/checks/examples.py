"""Check ``search``: Hypothesis looks for numbers on which a rule is wrong, and shrinks what it finds.

The grid draws numbers of ordinary size; here they are those on which floating point breaks: zeros of both signs,
subnormal, huge, tiny and nearly cancelling ones. Each run looks at the same few, and at what searches have found so
far; ``--check search`` looks on, within a budget.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from verify.checks import agreement
from verify.checks.probing import of_python
from verify.formats.remembered import forgetting
from verify.model import BAD, Case, Finding, Level, NotOfferedError, Subject, Verdict
from verify.questions.examples import CHECK, FOUND, Example
from verify.questions.variants import drawn

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: Rules that are searched: those with a formula.
RULES = ("Epsilon", "Norm", "ZPlus", "AlphaBeta", "Gamma", "ZBox", "WSquare", "Flat")
#: Examples that each run looks at, of each rule and dtype.
EACH_RUN = 40


def case_of(example: Example) -> Case:
    """Return the case that asks for agreement and conservation."""
    return Case(
        id=example.id, rule=example.rule, layer=example.kind, check=CHECK, dtype=example.dtype, level=Level.MUST,
        run=partial(_ask, example),
    )  # fmt: skip


def _ask(example: Example, subject: Subject) -> Finding:
    variant = drawn(example.rule, example.arguments)
    both = [
        check(example.problem, example.layer, variant, "cpu", subject)
        for check in (agreement.agrees, agreement.conserves)
    ]
    told = next((found for found in both if found.verdict is not Verdict.PASS), both[0])
    # the larger share, whichever of the two is told: what the reference leaves must not depend on who is asked
    return replace(told, undecided=max(found.undecided for found in both))


def found() -> Iterator[Case]:
    """Yield the examples that searches have found so far."""
    for line in FOUND.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            yield case_of(Example.from_id(line))


def cases(*, seed: int, dtypes: Sequence[str]) -> Iterator[Case]:
    """Yield a small search with a fixed seed for each rule and dtype; what it finds is in the reason."""
    for rule in RULES:
        for dtype in dtypes:
            yield Case(
                id=f"{CHECK}/{rule}/seed-{seed}/{EACH_RUN}-examples/{dtype}", rule=rule, layer="-", check=CHECK,
                dtype=dtype, level=Level.MUST, run=partial(of_python, partial(_look, rule, dtype, seed)),
            )  # fmt: skip


def _look(rule: str, dtype: str, seed: int, subject: Subject) -> Finding:
    subject.get(rule)  # says so where it is not offered
    example, finding = looked_for(subject, rule, (dtype,), seed, EACH_RUN)
    return finding if example is None else replace(finding, reason=f"{finding.reason} (--case {example.id})")


class _FoundError(Exception):
    """A rule is wrong on an example; Hypothesis shrinks what raises it."""


def looked_for(
    subject: Subject, rule: str, dtypes: Sequence[str], seed: int, count: int
) -> tuple[Example | None, Finding]:
    """Try so many examples; return the simplest on which the rule is wrong, or None, and what was found."""
    import hypothesis  # noqa: PLC0415  a quarter of a second, for nothing in most of what a worker asks
    from hypothesis import HealthCheck, Phase, settings  # noqa: PLC0415
    from hypothesis.errors import Flaky  # noqa: PLC0415

    from verify.questions.strategies import examples  # noqa: PLC0415

    wrong: list[tuple[Example, Finding]] = []
    best = 0.0

    def ask(example: Example) -> None:
        nonlocal best
        finding = _finding(example, subject)
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
    with forgetting():  # nobody asks for these again
        try:
            run()
        except (_FoundError, Flaky):
            return _simplest(*wrong[-1], subject)  # the last that failed is the smallest
    return None, Finding(Verdict.PASS, best)


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
    try:
        return case_of(example).run(subject)
    except NotOfferedError as error:
        return Finding(Verdict.NOT_OFFERED, reason=str(error))
    except Exception as error:  # noqa: BLE001  the subject may raise anything
        return Finding(Verdict.ERROR, reason=f"{type(error).__name__}: {error}")
