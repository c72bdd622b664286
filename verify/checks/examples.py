"""Check ``search``: agreement and conservation of one example that a search has found."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from verify.checks import agreement
from verify.model import Case, Finding, Level, Subject, Verdict
from verify.questions.examples import CHECK, FOUND, Example
from verify.questions.variants import drawn

if TYPE_CHECKING:
    from collections.abc import Iterator


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
