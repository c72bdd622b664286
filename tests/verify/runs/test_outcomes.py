"""What becomes of a case: errors that are no failures."""

from __future__ import annotations

import pytest

from verify.model import Case, Finding, Level, Subject, Verdict
from verify.runs.outcomes import ask

SAYS = "ZPlus needs the parameter 'weight', which AvgPool2d lacks"


@pytest.mark.parametrize(
    ("id_", "rule", "error", "verdict"),
    [
        ("agreement/ZPlus/avgpool2d/default/signed/float64", "ZPlus", RuntimeError(SAYS), Verdict.NOT_OFFERED),
        ("agreement/ZPlus/batchnorm2d-plain/x=signed/float64", "ZPlus", RuntimeError(SAYS), Verdict.NOT_OFFERED),
        ("agreement/ZPlus/avgpool2d/default/signed/float64", "ZPlus", RuntimeError("boom"), Verdict.ERROR),
        ("agreement/ZPlus/avgpool2d/default/signed/float64", "ZPlus", ValueError(SAYS), Verdict.ERROR),
        ("agreement/Epsilon/avgpool2d/default/signed/float64", "Epsilon", RuntimeError(SAYS), Verdict.ERROR),
        ("agreement/ZPlus/linear-5-4/default/signed/float64", "ZPlus", RuntimeError(SAYS), Verdict.ERROR),
    ],
)
def test_a_layer_without_parameters_may_be_refused_by_a_rule_that_changes_them(
    id_: str, rule: str, error: Exception, verdict: Verdict
) -> None:
    def run(_subject: Subject) -> Finding:
        raise error

    case = Case(id_, rule, "-", "agreement", "float64", Level.MUST, run)
    assert ask(case, Subject("nobody", None, ""), 0, here=False).verdict is verdict
