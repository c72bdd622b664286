"""Failures of one cause are one group, whatever their rules and checks; others stay with their rule and check."""

from __future__ import annotations

from typing import Any

from verify.explaining.diagnoses import Diagnosis, Known
from verify.model import Level, Outcome, Verdict
from verify.reports.causes import grouped
from verify.reports.report import Call, Report
from verify.runs.worker import SubjectInfo

FOUND = Diagnosis("ZPlus", Level.MUST, (Known("bias-dropped", "the bias is left out"),), 1, 1)


def failures(count: int, *, rule: str = "ZPlus", check: str = "agreement", **fields: Any) -> list[Outcome]:
    fields = {"verdict": Verdict.FAIL, "reason": "got 1, expected 2", "level": Level.MUST} | fields
    kept = fields.pop("kept", "default")
    return [
        Outcome(f"{check}/{rule}/layer/{kept}/{index}", rule, "Linear", check, "float64", **fields)
        for index in range(count)
    ]


def sizes(*groups: list[Outcome], diagnoses: tuple[Diagnosis, ...] = ()) -> list[int]:
    outcomes = tuple(outcome for group in groups for outcome in group)
    report = Report(SubjectInfo("theirs", "1"), Call(len(outcomes), ("float64",)), outcomes, diagnoses=diagnoses)
    return [len(group) for group in grouped(report, outcomes)]


def raised(count: int, reason: str, **fields: Any) -> list[Outcome]:
    return failures(count, verdict=Verdict.ERROR, reason=reason, **fields)


def test_one_error_in_several_rules_and_checks_is_one_group() -> None:
    said = "TypeError: {}.__init__() got an unexpected keyword argument 'stabilizer' (theirs.py:{} in make)"
    one = raised(20, said.format("ZPlus", 3))
    other = raised(24, said.format("TheirGamma", 71), rule="Gamma", check="laws")
    assert sizes(one, other) == [44]


def test_another_message_is_another_cause() -> None:
    one, other = raised(4, "TypeError: no argument 'stabilizer'"), raised(3, "TypeError: no argument 'zero_params'")
    assert sizes(one, other) == [4, 3]
    assert sizes(raised(3, "TypeError: no"), raised(3, "ValueError: no", rule="Gamma")) == [3, 3]


def test_few_errors_stay_with_their_rule_and_check() -> None:
    assert sizes(raised(1, "TypeError: a"), raised(1, "TypeError: b", kept="other")) == [2]


def test_what_a_diagnosis_explains_is_one_group() -> None:
    groups = (failures(3), failures(3, check="conservation"), failures(3, check="laws"))
    assert sizes(*groups) == [3, 3, 3]
    assert sizes(*groups, diagnoses=(FOUND,)) == [6, 3]
    assert sizes(failures(3), failures(3, rule="Gamma"), diagnoses=(FOUND,)) == [3, 3]


def test_one_reason_in_several_rules_is_one_group_where_it_is_no_number() -> None:
    said = {"check": "conduct", "reason": "the weight is another object"}
    assert sizes(failures(2, **said), failures(2, rule="Gamma", **said)) == [4]
    assert sizes(failures(2), failures(2, rule="Gamma")) == [2, 2]
