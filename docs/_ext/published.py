"""The published results as the site shows them: conformance by layer, times by regime."""

from __future__ import annotations

import re

from facts import DOCS, library, table, turned

_HEADS = {
    "other convention": "≠ convention",
    "recommended only": "(✗) recommended",
}


def conformance(page: str) -> str:
    """Return the published results for the site: an overview, then a table for each rule, layers as rows."""
    summary, *rules = re.split(r"^## (?=\w)", page, flags=re.MULTILINE)
    [counts] = re.findall(r"^\| implementation .*?(?=\n\n)", summary, re.MULTILINE | re.DOTALL)
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in counts.splitlines()]
    rows = list(zip(*lines[:1], *lines[2:], strict=True))
    totals = table(
        ("", *(library(f"{name} {version}") for name, version in zip(rows[0][1:], rows[1][1:], strict=True))),
        [(_HEADS.get(name, name), *(cell.removesuffix("+cpu") for cell in cells)) for name, *cells in rows[2:]],
    )
    overview = {rule.partition("\n")[0]: _overall(rule) for rule in rules}
    libraries = list(dict.fromkeys(name for found in overview.values() for name in found))
    marks = table(
        ("rule", *libraries), [(rule, *(found.get(one, "") for one in libraries)) for rule, found in overview.items()]
    )
    tables = []
    for rule in rules:
        name, text = rule.split("\n", 1)
        text = re.sub(
            r"^\|.*?(?=\n\n|\Z)", lambda found: turned(found[0]), text.strip(), flags=re.MULTILINE | re.DOTALL
        )
        tables.append(f"## {name}\n\n" + re.sub(r"^- (verify\.subjects\.|)(\S+)", r"- \2", text, flags=re.MULTILINE))
    return "\n\n".join((_CONFORMANCE.format(totals=totals, marks=marks), *tables))


def _overall(rule: str) -> dict[str, str]:
    """Return for each implementation what its numbers are: the first column of the first table, without the counts."""
    found = {}
    by_question = rule.partition("\nAgreement by layer")[0]
    for line in re.findall(r"^\| (?!implementation|-)(.*) \|$", by_question, re.MULTILINE):
        name, right, *_ = (cell.strip() for cell in line.split("|"))
        found[library(name)] = right.partition(" ")[0]
    return found


_CONFORMANCE = """# Conformance

What `lrp-verify` found for lrp_rules and for other libraries.

{totals}

## Overview

Whether the numbers of a rule are right; ✓ only if all cases passed:

{marks}

| mark | meaning |
|---|---|
| ✓ 0.26 | all cases passed; the number is the largest [ratio](glossary.md#ratio) |
| ✗ 24 of 312 | 24 of 312 cases failed |
| ≠ 58 of 98 | 58 of 98 cases failed, because the rule follows another published convention, named below the table |
| (✗) 68 of 84 | only cases that are [recommended](glossary.md#required-recommended) failed |
| empty | not offered, or no case |

✗ does not mean that every result is wrong. The [pages of the rules](rules/index.md) say what is known of each failure,
and link to the reports.

To repeat a column, run `lrp-verify --subject zennit.rules`; or name `verify.subjects.captum`,
`verify.subjects.lxt`, `verify.subjects.autolrp`."""


#: Regimes as the tables name them, in the order of the page.
REGIMES = {"compute": "compute-bound", "memory": "memory-bound", "overhead": "overhead-bound"}


def times(regime: str) -> str:
    """Return the mean times of a regime in gradient times: a row for each rule, a column for each library."""
    import numpy as np  # noqa: PLC0415  with pandas, a second
    import pandas as pd  # noqa: PLC0415

    from bench.subjects import GRADIENT as PLAIN  # noqa: PLC0415  imports torch
    from bench.subjects import OURS  # noqa: PLC0415

    found = pd.read_csv(DOCS / "performance/table.csv")
    found = found[(found["regime"] == regime) & (found["dtype"] == "float32") & found["axis"].isna()]
    found = found[(found["kind"] == "layer") & (found["baseline"] == PLAIN) & (found["status"] == "ok")]
    found = found[found["subject"] != PLAIN]  # beside itself: the noise floor
    libraries = [OURS, *sorted(set(found["subject"]) - {OURS}, reverse=True)]
    head = ("rule, input", "n", "pass count", *(one.replace("_", r"\_") for one in libraries))
    rows = []
    for (rule, signs), group in found.groupby(["rule", "signs"], sort=False):
        limit = group["passes_limit"].dropna()
        # long names may be broken where a zero-width space stands
        name = re.sub(r"(ReLU(?=[A-Z])|\((?=zero)|=(?='))", "\\1\u200b", f"{rule}, {signs}")
        name = name.replace(">", r"\>").replace("_", r"\_")
        cells = [name, f"{limit.iloc[0]:g}" if len(limit) else ""]
        most = int(group.groupby("subject").size().max())
        for one in libraries:
            ratios = group.loc[group["subject"] == one, "ratio"].dropna()
            few = f" ({len(ratios)})" if len(ratios) < most else ""
            cells.append(f"{np.exp(np.log(ratios).mean()):.2f}{few}" if len(ratios) else "")
        cells.insert(1, str(most))
        rows.append(cells)
    return table(head, rows)
