"""The published tables: implementation x rule x question, and the numbers by layer, from the JSON of several runs.

``python -m verify.reports.conformance ours.json zennit.json --json docs/conformance.json > docs/conformance.md``
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verify.formats.files import write
from verify.model import BAD, RULES, SCHEMA, Level, Verdict
from verify.questions.layers import FAMILIES
from verify.reports.merging import diagnosis_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    Run = dict[str, Any]

#: The JSON beside the page, for badges.
JSON = "lrp-conformance/1"
#: What is asked, and the checks that ask it.
QUESTIONS: dict[str, tuple[str, ...]] = {
    "is the number right?": ("agreement", "network", "search"),
    "does it conserve?": ("conservation",),
    "do the laws hold?": ("laws",),
    "can it be differentiated?": ("second-order",),
    "does it behave?": ("conduct",),
    "API and bad arguments": ("api", "errors"),
}
_COMPARED = frozenset({"agreement", "conservation", "laws", "second-order", "network"})
_HEAD = r"""# Conformance

What `lrp-verify` found for lrp_rules and for other libraries. This page is generated from complete runs:

```
lrp-verify --subject lrp_rules --json ours.json
lrp-verify --subject zennit.rules --json zennit.json
lrp-verify --subject verify.subjects.captum --json captum.json
lrp-verify --subject verify.subjects.lxt --json lxt.json
lrp-verify --subject verify.subjects.autolrp --json autolrp.json
python -m verify.reports.conformance ours.json zennit.json captum.json lxt.json autolrp.json \
    --json docs/conformance.json > docs/conformance.md
```

Each rule has two tables: what came of each question, and the numbers layer by layer.

| mark | meaning |
|---|---|
| ✓ 0.26 | all cases passed; the number is the largest difference from the reference, in units of its rounding bound |
| ✗ 24 of 312 | 24 of 312 cases failed |
| ≠ 58 of 98 | 58 of 98 cases failed, because the rule follows another published convention, named below the tables |
| (✗) 68 of 84 | only cases that are recommended (level *should*) failed |
| empty | not offered, or no case; an implementation without the rule has no row |

`verify/explaining/deviations` says what is known of each failure, and where it was reported.
[conformance.json](conformance.json) has the same for programs, with a badge for each implementation.
"""


def load(path: Path) -> Run:
    """Read the JSON of one run.

    Raises
    ------
    ValueError
        If it is not one, or was interrupted.

    """
    try:
        run: Run = json.loads(path.read_text(encoding="utf-8"))
        schema, interrupted = run["schema"], run["summary"]["interrupted"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        msg = f"{path} is no report of lrp-verify: {error}; write one with lrp-verify --json {path}"
        raise ValueError(msg) from error
    if schema != SCHEMA or interrupted:
        msg = f"{path} has schema {schema!r}, interrupted: {interrupted}; expected a whole run of schema {SCHEMA!r}"
        raise ValueError(msg)
    return run


def render(runs: Sequence[Run]) -> str:
    """Return the page in Markdown."""
    columns = ("implementation", "version", "torch", "date", "cases", "passed", "inconclusive", "failed")
    more = ("other convention", "recommended only", "not offered")
    lines = [_HEAD, "| " + " | ".join((*columns, *more)) + " |"]
    lines.append("|---|---|---|---|" + "--:|" * 7)
    lines += [_summary(run) for run in runs]
    for rule in RULES:
        of_rule = [(run, [case for case in run["cases"] if case["rule"] == rule]) for run in runs]
        lines += ["", f"## {rule}", ""]
        lines += _table(QUESTIONS, of_rule, _by_question)
        lines += ["", "Agreement by layer:", ""]
        lines += _table(FAMILIES, of_rule, _by_layer)
        told = [f"- {_name(run)} {one['sentence']}" for run in runs for one in run["diagnoses"] if one["rule"] == rule]
        lines += ["", *dict.fromkeys(told)] if told else []
    return "\n".join(lines) + "\n"


def _by_question(case: dict[str, Any]) -> str:
    return next((question for question, checks in QUESTIONS.items() if case["check"] in checks), "")


def _by_layer(case: dict[str, Any]) -> str:
    return str(case["layer"]) if case["check"] == "agreement" else ""


def _table(columns: Iterable[str], rows: Sequence[tuple[Run, list[dict[str, Any]]]], column: Any) -> list[str]:
    """Return a table with a row for each run that has something; ``column`` says where a case stands."""
    names = list(columns)
    lines = ["| implementation | " + " | ".join(names) + " |", "|---|" + ":-:|" * len(names)]
    for run, cases in rows:
        cells: dict[str, list[str | float]] = defaultdict(list)
        for case in cases:
            cells[column(case)].append(_told(case, run))
        row = [_cell(cells[name]) for name in names]
        if any(row):
            lines.append(f"| {_name(run)} | " + " | ".join(row) + " |")
    return lines


def as_json(runs: Sequence[Run]) -> dict[str, Any]:
    """Return the same for programs: of each implementation what each rule has for each question, and a badge."""
    return {"schema": JSON, "implementations": [_of_run(run) for run in runs]}


def _of_run(run: Run) -> dict[str, Any]:
    rules: dict[str, dict[str, Any]] = {}
    for rule in RULES:
        cells: dict[str, list[str | float]] = defaultdict(list)
        for case in run["cases"]:
            if case["rule"] == rule:
                cells[_by_question(case)].append(_told(case, run))
        rules[rule] = {question: found for question in QUESTIONS if (found := _counted(cells[question]))}
    numbers = [found["is the number right?"] for found in rules.values() if "is the number right?" in found]
    decided = sum(found["cases"] - found.get("inconclusive", 0) for found in numbers)
    right = sum(found.get("passed", 0) for found in numbers)
    # not rounded up: 100% is all of them
    share = f"{100 * right // decided}% of {decided:,} numbers right" if decided else "nothing offered"
    return {
        "name": run["subject"]["spec"],
        "version": run["subject"]["version"],
        "torch": run["environment"]["torch"],
        "date": run["environment"]["date"][:10],
        "rules": rules,
        "badge": {
            "schemaVersion": 1,
            "label": "LRP rules",
            "message": share,
            "color": "lightgrey" if not decided else "brightgreen" if right == decided else "yellow",
        },
    }


def _counted(told: Sequence[str | float]) -> dict[str, Any]:
    """Return how many cases of each kind there are, and the largest ratio; nothing where none was asked."""
    asked = [one for one in told if one != "missing"]
    if not asked:
        return {}
    counts = Counter(one if isinstance(one, str) else "passed" for one in asked)
    ratios = [one for one in asked if isinstance(one, float)]
    return {"cases": len(asked), **counts, **({"ratio": max(ratios)} if ratios else {})}


def _name(run: Run) -> str:
    return f"{run['subject']['spec']} {run['subject']['version']}"


def _summary(run: Run) -> str:
    subject, environment = run["subject"], run["environment"]
    counts = Counter(_kind(case, run) for case in run["cases"])
    kinds = ("passed", "inconclusive", "failed", "convention", "advice", "missing")
    numbers = (len(run["cases"]), *(counts[kind] for kind in kinds))
    return (
        f"| {subject['spec']} | {subject['version']} | {environment['torch']} | {environment['date'][:10]} | "
        + " | ".join(map(str, numbers))
        + " |"
    )


def _kind(case: dict[str, Any], run: Run) -> str:
    verdict = Verdict(case["verdict"])
    if verdict in BAD:
        if any(_explains(one, case) for one in run["diagnoses"]):
            return "convention"
        return "advice" if case["level"] == Level.SHOULD else "failed"
    if verdict is Verdict.INCONCLUSIVE:
        return "inconclusive"
    return "missing" if verdict in {Verdict.NOT_OFFERED, Verdict.SKIPPED} else "passed"


def _explains(diagnosis: dict[str, Any], case: dict[str, Any]) -> bool:
    """Whether a case fails because its rule follows another published convention."""
    one = diagnosis_of(diagnosis)
    alike = (one.rule, one.level) == (case["rule"], case["level"])
    return alike and one.conventional(case["check"], case["verdict"]) and one.covers(case["id"])


def _told(case: dict[str, Any], run: Run) -> str | float:
    """What became of a case, or its ratio where it passed and has one."""
    kind = _kind(case, run)
    compared = kind == "passed" and case["ratio"] is not None and case["check"] in _COMPARED
    return float(case["ratio"]) if compared else kind


def _cell(told: Iterable[str | float]) -> str:
    asked = [one for one in told if one != "missing"]
    counts = Counter(one for one in asked if isinstance(one, str))
    for kind, sign in (("failed", "✗"), ("convention", "≠"), ("advice", "(✗)")):
        if counts[kind]:
            return f"{sign} {counts[kind]} of {len(asked)}"
    ratios = [one for one in asked if isinstance(one, float)]
    return f"✓ {max(ratios):.2g}" if ratios else "✓" if asked else ""


def main() -> int:
    """Print the page for the files named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m verify.reports.conformance", description=main.__doc__)
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN.json", help="JSON of a whole run, of lrp-verify --json"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the same for programs, too")
    given = parser.parse_args()
    try:
        runs = [load(path) for path in given.runs]
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(render(runs))
    if given.json is not None:
        write(given.json, (json.dumps(as_json(runs), indent=1, ensure_ascii=False) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
