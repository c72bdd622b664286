"""The files of a run: what they hold."""

import importlib
import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from junitparser import JUnitXml, Skipped

from verify.explaining.deviations import KNOWN
from verify.explaining.diagnoses import Diagnosis, Known
from verify.formats.environment import environment
from verify.model import Level, Outcome, Verdict
from verify.reports import export
from verify.reports.report import Call, Report
from verify.runs.worker import SubjectInfo

jsonschema = importlib.import_module("jsonschema")  # ships no types

SCHEMA = json.loads(export.SCHEMA_FILE.read_text(encoding="utf-8"))


def outcome(verdict: Verdict = Verdict.PASS, **fields: Any) -> Outcome:
    defaults = {"id": f"{verdict}", "rule": "Gamma", "layer": "Linear", "check": "agreement", "dtype": "float64"}
    return Outcome(**(defaults | {"level": Level.MUST, "verdict": verdict} | fields))


def report(*outcomes: Outcome, interrupted: bool = False) -> Report:
    call = Call(len(outcomes), ("float64", "float32"), workers=2, time_limit=20.0)
    subject = SubjectInfo("their.rules", "1.2")
    return Report(subject, call, outcomes, interrupted=interrupted, environment=environment("cpu"))


ANYTHING = report(
    *(outcome(verdict, ratio=0.5, reason="why") for verdict in Verdict),
    outcome(Verdict.FAIL, ratio=math.inf, probable=math.nan, undecided=0.5, details={"deep": [{"value": -math.inf}]}),
    outcome(Verdict.FAIL, level=Level.SHOULD),
    interrupted=True,
)


def _strict(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("given", [ANYTHING, report()], ids=["anything", "empty"])
def test_json_follows_its_schema(given: Report) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(_strict(export.json_bytes(given).decode()), SCHEMA)


def test_json_says_what_is_not_finite() -> None:
    *_, far, _ = _strict(export.json_bytes(ANYTHING).decode())["cases"]
    assert (far["ratio"], far["probable"], far["details"]) == ("inf", "nan", {"deep": [{"value": "-inf"}]})


def test_the_file_is_that_json() -> None:
    assert _strict(export.json_bytes(ANYTHING).decode()) == export.as_json(ANYTHING)


def _damage(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda case: case.update(changes)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(_damage(verdict="good"), id="verdict"),
        pytest.param(_damage(ratio="-inf"), id="ratio"),
        pytest.param(_damage(ratio=-1), id="negative ratio"),
        pytest.param(_damage(undecided=2), id="share"),
        pytest.param(_damage(undecidable=2), id="share of the reference"),
        pytest.param(_damage(id=""), id="id"),
        pytest.param(_damage(more=1), id="unknown field"),
        pytest.param(lambda case: case.pop("level"), id="missing field"),
    ],
)
def test_schema_refuses(damage: Callable[[dict[str, Any]], None]) -> None:
    whole = export.as_json(report(outcome()))
    jsonschema.validate(whole, SCHEMA)
    damage(whole["cases"][0])
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(whole, SCHEMA)


def test_junit() -> None:
    xml = JUnitXml.fromstring(export.junit_bytes(ANYTHING))
    assert (xml.tests, xml.failures, xml.errors, xml.skipped) == (len(ANYTHING.outcomes) + 2, 2, 3 + 1, 3 + 1)
    assert {suite.name for suite in xml} == {"Gamma", "run"}


def test_junit_of_a_run_that_held() -> None:
    xml = JUnitXml.fromstring(export.junit_bytes(report(outcome())))
    assert (xml.tests, xml.failures, xml.errors, xml.skipped) == (3, 0, 0, 0)


# --- what explains failures -------------------------------------------------------------------------------------------

DIAGNOSIS = Diagnosis("Gamma", Level.MUST, (Known("bias-dropped", "the bias is left out", "a library"),), 3, 4)
STALE = "their.toml, deviation 2: errors/* matches no case; correct it, or delete it"
KNOWN_ONE = outcome(Verdict.FAIL, id="known", reason="far off", details={KNOWN: {"reason": "they round"}})
EXPLAINED = replace(
    report(outcome(Verdict.FAIL), outcome(Verdict.FAIL, id="law", check="laws"), KNOWN_ONE),
    diagnoses=(DIAGNOSIS,),
    notes=("read from another version",),
    stale=(STALE,),
)


def test_json_says_what_explains_failures() -> None:
    whole = _strict(export.json_bytes(EXPLAINED).decode())
    jsonschema.validate(whole, SCHEMA)
    [diagnosis] = whole["diagnoses"]
    assert diagnosis["sentence"] == DIAGNOSIS.sentence
    assert diagnosis["variants"] == [
        {"name": "bias-dropped", "sentence": "the bias is left out", "seen": "a library", "published": False}
    ]
    assert (whole["notes"], whole["stale"]) == (["read from another version"], [STALE])
    assert {name: whole["summary"][name] for name in ("passed", "failures", "known", "stale")} == {
        "passed": False,
        "failures": 2,
        "known": 1,
        "stale": 1,
    }
    assert [case["decides"] for case in whole["cases"]] == [True, True, False]


def test_junit_says_what_explains_failures() -> None:
    xml = JUnitXml.fromstring(export.junit_bytes(EXPLAINED))
    found = {case.name: case for suite in xml for case in suite}
    assert found["fail"].result[0].text == str(DIAGNOSIS)
    assert found["law"].result[0].text is None  # what is asked of the relevance alone
    assert isinstance(found["known"].result[0], Skipped)
    assert found["known"].result[0].message == "known deviation, failed: far off; they round"
    assert found["no known deviation is stale"].result[0].message == STALE


def test_markdown_says_what_explains_failures() -> None:
    text = export.markdown_bytes(EXPLAINED).decode()
    assert text.endswith(
        f"\n\n- Diagnosis: {DIAGNOSIS}\n- read from another version\n- Stale known deviation: {STALE}\n"
    )
