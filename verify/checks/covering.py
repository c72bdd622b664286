"""Agreement, conservation and derivatives where options meet: the rows of the covering arrays as cases."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from verify.checks import agreement
from verify.checks.probing import of_python
from verify.checks.second_order import directional
from verify.model import Case
from verify.questions.covering.factors import GRADIENTS
from verify.questions.covering.rows import questions
from verify.questions.variants import level

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from verify.model import Finding, Subject
    from verify.questions.covering.rows import Question

#: Of so many rows, one is asked for conservation, too: agreement of every entry says more.
CONSERVED = 8


def cases(*, depth: int, seed: int, dtypes: Sequence[str], device: str) -> Iterator[Case]:
    """Yield the cases of a depth."""
    for index, question in enumerate(questions(depth, seed)):
        problem, layer = partial(question.problem, device), question.layer
        if question.dtype not in dtypes:
            continue
        if question.rule in GRADIENTS:
            arguments = question.gradient_arguments
            run = partial(agreement.gradient_agrees, problem, layer, question.rule, arguments, device)
            yield _case("agreement", question, run, device)
        elif question.space == "derivatives":
            # finite differences mean something in float64 alone, and where the reference is
            run = partial(directional, question.problem, layer, question.variant, question.row["by"])
            yield _case("second-order", question, run, "cpu")
        else:
            yield _case(
                "agreement", question, partial(agreement.agrees, problem, layer, question.variant, device), device
            )
            if index % CONSERVED == 0:
                run = partial(agreement.conserves, problem, layer, question.variant, device)
                yield _case("conservation", question, run, device)


def _case(check: str, question: Question, run: Callable[[Subject], Finding], device: str) -> Case:
    return Case(
        id=f"{check}/{question.id}",
        rule=question.rule,
        layer=question.layer.family,
        check=check,
        dtype=question.dtype,
        level=level(question.rule, question.layer),
        run=partial(of_python, run),
        device=device,
    )
