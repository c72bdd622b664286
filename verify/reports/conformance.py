"""The published table: implementation x rule x family of layers, from the JSON of several runs.

``python -m verify.reports.conformance ours.json zennit.json > docs/conformance.md``
"""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verify.model import BAD, RULES, SCHEMA, Level, Verdict
from verify.questions.layers import FAMILIES
from verify.reports.merging import diagnosis_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    Run = dict[str, Any]

_COMPARED = frozenset({"agreement", "conservation", "laws", "second-order", "network"})
_HEAD = """# Conformance

What `lrp-verify` found for lrp_rules and for three other libraries. This page is generated from complete runs:

```
lrp-verify --subject lrp_rules --json ours.json
lrp-verify --subject zennit.rules --json zennit.json
lrp-verify --subject verify.subjects.captum --json captum.json
lrp-verify --subject verify.subjects.lxt --json lxt.json
python -m verify.reports.conformance ours.json zennit.json captum.json lxt.json > docs/conformance.md
```

| mark | meaning |
|---|---|
| ✓ 0.26 | all cases passed; the number is the largest difference from the reference, in units of its rounding bound |
| ✗ 24 of 312 | 24 of 312 cases failed |
| ≠ 58 of 98 | 58 of 98 cases failed, because the rule follows another published convention, named below the table |
| (✗) 68 of 84 | only cases that are recommended (level *should*) failed |
| empty | not offered, or no case |

`verify/explaining/deviations` says what is known of each failure, and where it was reported.
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
        lines += ["", f"## {rule}", "", "| implementation | " + " | ".join((*FAMILIES, "no layer")) + " |"]
        lines.append("|---|" + ":-:|" * (len(FAMILIES) + 1))
        for run in runs:
            cells: dict[str, list[str | float]] = defaultdict(list)
            for case in run["cases"]:
                if case["rule"] == rule:
                    cells[case["layer"]].append(_told(case, run))
            lines.append(f"| {_name(run)} | " + " | ".join(_cell(cells[family]) for family in (*FAMILIES, "-")) + " |")
        told = [f"- {_name(run)} {one['sentence']}" for run in runs for one in run["diagnoses"] if one["rule"] == rule]
        lines += ["", *dict.fromkeys(told)] if told else []
    return "\n".join(lines) + "\n"


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
    try:
        runs = [load(Path(name)) for name in sys.argv[1:]]
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    if not runs:
        sys.stderr.write("no file is named; expected the JSON of one run or more, of lrp-verify --json\n")
        return 2
    sys.stdout.write(render(runs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
