"""Check ``search``: Hypothesis looks for numbers on which a rule is wrong.

The grid draws numbers of ordinary size; here they are those on which floating point breaks: zeros of both signs,
subnormal, huge, tiny and nearly cancelling ones. Each run looks at the same few, and at what searches have found so
far; ``--check search`` looks on, within a budget, and shrinks what it finds.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from verify.checks import agreement
from verify.checks.probing import of_python
from verify.formats.remembered import forgetting
from verify.model import BAD, Case, Finding, Level, Subject, Verdict
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
    """Try examples, without shrinking what is found: a case asks the same questions whatever the answers are."""
    import hypothesis  # noqa: PLC0415  a quarter of a second, for nothing in most of what a worker asks
    from hypothesis import HealthCheck, Phase, settings  # noqa: PLC0415

    from verify.questions.strategies import examples  # noqa: PLC0415

    wrong: list[tuple[Example, Finding]] = []
    best = 0.0

    def ask(example: Example) -> None:
        # an exception ends the case, in the process of the subject as in that of the judge: answers come in one order
        nonlocal best
        finding = case_of(example).run(subject)
        best = max(best, finding.ratio or 0.0)
        if finding.verdict in BAD:
            wrong.append((example, finding))

    run = hypothesis.seed(seed)(
        settings(
            max_examples=EACH_RUN, deadline=None, database=None, phases=(Phase.generate,),
            suppress_health_check=list(HealthCheck),
        )(hypothesis.given(examples(rule, (dtype,)))(ask))
    )  # fmt: skip
    with forgetting():  # nobody asks for these examples again
        run()
    if not wrong:
        return Finding(Verdict.PASS, best)
    example, finding = min(wrong, key=lambda one: len(one[0].id))
    return replace(finding, reason=f"{finding.reason} (--case {example.id})")
