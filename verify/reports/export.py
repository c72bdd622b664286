"""The files of a run: JSON, JUnit XML, and how to write one so that an interruption never costs an old one."""

from __future__ import annotations

import io
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from junitparser import Error, Failure, JUnitXml, Skipped, TestCase, TestSuite

from verify.explaining.deviations import KNOWN, is_known
from verify.formats.text import printable
from verify.model import BAD, SCHEMA, Outcome, Verdict
from verify.reports.report import largest, markdown

if TYPE_CHECKING:
    from verify.reports.report import Report

#: The JSON Schema of what `as_json` returns.
SCHEMA_FILE = Path(__file__).parent / f"{SCHEMA.replace('/', '-')}.schema.json"


def as_json(report: Report) -> dict[str, Any]:
    """Return the run as the schema describes it. JSON knows no NaN and no infinity: they are "nan", "inf", "-inf"."""
    call = report.call
    plain: dict[str, Any] = _finite(
        {
            "schema": SCHEMA,
            "subject": vars(report.subject),
            "environment": {**report.environment, "rounding": report.models},
            "call": vars(call),
            "shard": vars(report.shard),
            "summary": {
                "passed": report.passed,
                "interrupted": report.interrupted,
                "selected": call.selected,
                "finished": len(report.outcomes),
                "verdicts": {verdict.value: report.verdicts[verdict] for verdict in Verdict},
                "failures": len(report.failures),
                "advice": len(report.advice),
                "known": report.known,
                "stale": len(report.stale),
                "ratio": largest(outcome.ratio for outcome in report.outcomes),
                "probable": largest(outcome.probable for outcome in report.outcomes),
                "doubtful": len(report.doubtful),
                "undecided": report.undecided,
                "seconds": report.seconds,
            },
            "diagnoses": [{**asdict(one), "sentence": one.sentence} for one in report.diagnoses],
            "notes": report.notes,
            "stale": report.stale,
            "cases": [
                {**vars(outcome), "decides": report.decides(outcome), "place": report.places.get(outcome.id, index)}
                for index, outcome in enumerate(report.outcomes)
            ],
        }
    )
    return plain


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def json_bytes(report: Report) -> bytes:
    """Return the run as a JSON file, one line a case."""
    whole = as_json(report)
    cases = [json.dumps(case, allow_nan=False) for case in whole.pop("cases")]
    head = json.dumps(whole, allow_nan=False, indent=1).removesuffix("\n}")
    body = ",\n".join(f"  {case}" for case in cases)
    return f'{head},\n "cases": [\n{body}\n ]\n}}\n'.encode()


def markdown_bytes(report: Report) -> bytes:
    """Return the table as a Markdown file."""
    return markdown(report).encode()


def junit_bytes(report: Report) -> bytes:
    """Return the run as JUnit XML: a suite a rule, and one for what no single case decides."""
    suites: dict[str, list[TestCase]] = {}
    explained = {(one.rule, one.level): one for one in report.diagnoses}
    unexplained = {outcome.id for outcome in report.unexplained}
    for outcome in report.outcomes:
        case = TestCase(outcome.id, f"{outcome.rule or '-'}.{outcome.check}", outcome.seconds)
        if result := _junit_result(report, outcome):
            if outcome.check == "agreement" and outcome.id in unexplained:
                one = explained.get((outcome.rule, outcome.level))
                result.text = str(one) if one is not None and one.covers(outcome.id) else ""
            case.result = [result]
        suites.setdefault(outcome.rule or "-", []).append(case)
    finished = TestCase("all selected cases were run", "run", 0.0)
    if report.interrupted:
        finished.result = [Error(f"interrupted after {len(report.outcomes)} of {report.call.selected} cases")]
    fresh = TestCase("no known deviation is stale", "run", 0.0)
    if report.stale:
        fresh.result = [Failure("\n".join(map(printable, report.stale)))]
    suites["run"] = [finished, fresh]
    whole = JUnitXml(printable(f"lrp-verify {report.subject.spec} {report.subject.version}"))
    for name, cases in suites.items():
        suite = TestSuite(name)
        suite.add_testcases(cases)
        whole.add_testsuite(suite)
    whole.update_statistics()  # type: ignore[no-untyped-call]  # junitparser annotates no method without arguments
    target = io.BytesIO()
    whole.write(target)
    return target.getvalue()


def _junit_result(report: Report, outcome: Outcome) -> Failure | Error | Skipped | None:
    if outcome.verdict is Verdict.PASS:
        return None
    reason = f"{outcome.verdict.word}: {outcome.reason}".removesuffix(": ")
    if outcome.verdict not in BAD:
        return Skipped(reason)
    if is_known(outcome):
        return Skipped(printable(f"known deviation, {reason}; {outcome.details[KNOWN]['reason']}"))
    if not report.decides(outcome):
        return Skipped(f"only recommended, {reason}")
    return Failure(reason) if outcome.verdict is Verdict.FAIL else Error(reason)
