"""The published table: implementation x rule x family of layers, from the JSON of several runs.

``python -m verify.conformance ours.json zennit.json > docs/conformance.md``
"""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verify.layers import FAMILIES
from verify.model import BAD, SCHEMA, Level, Verdict
from verify.subjects import RULES

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    Run = dict[str, Any]

_COMPARED = frozenset({"agreement", "conservation", "laws", "second-order", "network"})
_HEAD = """# Conformance

Which implementation of which rule is what the reference says, on which layers. Generated; `lrp-verify --subject S
--json FILE` for each subject, then `python -m verify.conformance FILES > docs/conformance.md`.

✓ every case holds; the number is the largest |got - expected| / bound. ✗ n of m: n of m cases do not hold. (✗) only
what is advised (level *should*) does not hold. An empty cell: not offered, or no case.
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
    columns = ("implementation", "version", "torch", "date", "cases", "held", "inconclusive", "did not hold")
    lines = [_HEAD, "| " + " | ".join((*columns, "advised only", "not offered")) + " |"]
    lines.append("|---|---|---|---|--:|--:|--:|--:|--:|--:|")
    lines += [_summary(run) for run in runs]
    for rule in RULES:
        lines += ["", f"## {rule}", "", "| implementation | " + " | ".join((*FAMILIES, "no layer")) + " |"]
        lines.append("|---|" + ":-:|" * (len(FAMILIES) + 1))
        for run in runs:
            cells: dict[str, list[dict[str, Any]]] = defaultdict(list)
            for case in run["cases"]:
                if case["rule"] == rule:
                    cells[case["layer"]].append(case)
            name = f"{run['subject']['spec']} {run['subject']['version']}"
            lines.append(f"| {name} | " + " | ".join(_cell(cells[family]) for family in (*FAMILIES, "-")) + " |")
    return "\n".join(lines) + "\n"


def _summary(run: Run) -> str:
    subject, environment = run["subject"], run["environment"]
    counts = Counter(_kind(case) for case in run["cases"])
    numbers = (len(run["cases"]), counts["held"], counts["open"], counts["wrong"], counts["advice"], counts["missing"])
    return (
        f"| {subject['spec']} | {subject['version']} | {environment['torch']} | {environment['date'][:10]} | "
        + " | ".join(map(str, numbers))
        + " |"
    )


def _kind(case: dict[str, Any]) -> str:
    verdict = Verdict(case["verdict"])
    if verdict in BAD:
        return "advice" if case["level"] == Level.SHOULD else "wrong"
    if verdict is Verdict.INCONCLUSIVE:
        return "open"
    return "missing" if verdict in {Verdict.NOT_OFFERED, Verdict.SKIPPED} else "held"


def _cell(cases: Iterable[dict[str, Any]]) -> str:
    asked = [case for case in cases if _kind(case) != "missing"]
    if not asked:
        return ""
    counts = Counter(_kind(case) for case in asked)
    if counts["wrong"]:
        return f"✗ {counts['wrong']} of {len(asked)}"
    if counts["advice"]:
        return f"(✗) {counts['advice']} of {len(asked)}"
    ratios = [float(case["ratio"]) for case in asked if case["ratio"] is not None and case["check"] in _COMPARED]
    return f"✓ {max(ratios):.2g}" if ratios else "✓"


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
