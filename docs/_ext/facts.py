"""What the rule cards say and nobody writes by hand: read from the code, its results and its lists, as Markdown."""

from __future__ import annotations

import inspect
import json
import re
import tomllib
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reference import rules as formulas
from reference.conventions import of_rule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
#: Each rule and its function in `reference.rules`, in the order of the cards.
FUNCTIONS = {
    "Epsilon": "epsilon",
    "Gamma": "gamma",
    "ZPlus": "zplus",
    "AlphaBeta": "alpha_beta",
    "ZBox": "zbox",
    "Norm": "norm",
    "Pass": "pass_",
    "WSquare": "wsquare",
    "Flat": "flat",
    "ReLUDeconvNet": "relu_deconvnet",
    "ReLUGuidedBackprop": "relu_guided",
    "ReLUBetaSmooth": "relu_beta_smooth",
}
LIBRARIES = {
    "captum": "https://github.com/meta-pytorch/captum",
    "lxt": "https://github.com/rachtibat/LRP-eXplains-Transformers",
    "zennit": "https://github.com/chr5tphr/zennit",
}
GRADIENT = ("Pass", "ReLUDeconvNet", "ReLUGuidedBackprop", "ReLUBetaSmooth")


def slug(rule: str) -> str:
    """Return how files call a rule."""
    return rule.lower()


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    cells = ([str(cell).replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines)
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)


def reference(rule: str) -> str:
    """Return the rule's function and what it calls, included from the source."""
    name = FUNCTIONS[rule]
    source = inspect.getsource(getattr(formulas, name))
    names = [name]
    if rule == "Norm":
        names.append("epsilon")
    if "_signed(" in source:
        names.append("_signed")
    if rule == "ZBox":
        names.append("box")
    if rule not in GRADIENT:
        names += ["relevance", "sign"]
    return "\n\n".join(
        f"```{{literalinclude}} ../../reference/rules.py\n:pyobject: {one}\n:language: python\n```" for one in names
    )


def papers(rule: str) -> str:
    """Return the sources of a rule, as the vectors name them."""
    headers = tomllib.loads((ROOT / "verify/vectors/headers.toml").read_text(encoding="utf-8"))
    sources = (one.rpartition(", ") for one in headers["rules"][rule]["source"])
    return "\n".join(f"- [{name}]({link})" for name, _, link in sources)


def verified(rule: str) -> str:
    """Return, for every family of layers, what the conformance table says of each implementation."""
    page = (DOCS / "conformance.md").read_text(encoding="utf-8")
    found = re.search(rf"^## {rule}\n\n((?:\|.*\n?)+)", page, re.MULTILINE)
    if not found:
        msg = f"docs/conformance.md has no table for {rule}; generate it with python -m verify.conformance"
        raise ValueError(msg)
    text = (
        "Results of `lrp-verify`: ✓ with the largest [ratio](../glossary.md#ratio), or how many cases fail. *API* is the "
        "interface and bad arguments. All marks are explained [here](../conformance.md)."
    )
    return f"{text}\n\n{_turned(found[1])}"


def _turned(text: str) -> str:
    """Return a table of the conformance page with its rows as columns, which fits narrow screens."""
    lines = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in text.splitlines()]
    head, rows = lines[0], [line for line in lines[2:] if any(line[1:])]
    columns = list(zip(*rows, strict=True))
    layers = ["API" if layer == "no layer" else layer for layer in head[1:]]
    body = [(layer, *cells) for layer, cells in zip(layers, columns[1:], strict=True) if any(cells)]
    return table(("layer", *map(_library, columns[0])), body)


def _library(name: str) -> str:
    return name.removeprefix("verify.adapters.").replace("zennit.rules", "zennit").replace("_", r"\_")


_HEADS = {"inconclusive": "undecided", "did not hold": "fail", "other convention": "≠", "advised only": "advice"}


def conformance(page: str) -> str:
    """Return the published results for the site: an overview, then a table for each rule, layers as rows."""
    summary, *rules = re.split(r"^## (?=\w)", page, flags=re.MULTILINE)
    [counts] = re.findall(r"^\| implementation .*?(?=\n\n)", summary, re.MULTILINE | re.DOTALL)
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in counts.splitlines()]
    rows = list(zip(*lines[:1], *lines[2:], strict=True))
    totals = table(
        ("", *(_library(f"{name} {version}") for name, version in zip(rows[0][1:], rows[1][1:], strict=True))),
        [(_HEADS.get(name, name), *(cell.removesuffix("+cpu") for cell in cells)) for name, *cells in rows[2:]],
    )
    overview = {rule.partition("\n")[0]: _overall(rule) for rule in rules}
    libraries = list(dict.fromkeys(library for found in overview.values() for library in found))
    marks = table(("rule", *libraries), [(rule, *(found.get(one, "") for one in libraries)) for rule, found in overview.items()])
    tables = []
    for rule in rules:
        name, text = rule.split("\n", 1)
        text = re.sub(r"^\|.*?(?=\n\n|\Z)", lambda found: _turned(found[0]), text.strip(), flags=re.MULTILINE | re.DOTALL)
        tables.append(f"## {name}\n\n" + re.sub(r"^- (verify\.adapters\.|)(\S+)", r"- \2", text, flags=re.MULTILINE))
    return "\n\n".join((_CONFORMANCE.format(totals=totals, marks=marks), *tables))


def _overall(rule: str) -> dict[str, str]:
    """Return one mark for each implementation: the worst that it has on any layer."""
    found = {}
    for line in re.findall(r"^\| (?!implementation|-)(.*) \|$", rule, re.MULTILINE):
        name, *cells = (cell.strip() for cell in line.split("|"))
        counts = [cell.partition(" ")[0] for cell in cells if cell]
        found[_library(name)] = next((mark for mark in ("✗", "≠", "(✗)", "✓") if mark in counts), "")
    return found


_CONFORMANCE = """# Conformance

What `lrp-verify` found for lrp_rules and for three other libraries.

{totals}

## Overview

The worst mark that an implementation has for a rule, on any layer:

{marks}

| mark | meaning |
|---|---|
| ✓ 0.26 | all cases pass; the number is the largest [ratio](glossary.md#ratio) |
| ✗ 24 of 312 | 24 of 312 cases fail |
| ≠ 58 of 98 | 58 of 98 cases fail, because the rule follows another published convention. It is named below the table |
| (✗) 68 of 84 | only cases that are [recommended](glossary.md#required-recommended) fail |
| empty | not offered, or no case |

✗ does not mean that every result is wrong. The [pages of the rules](rules/index.md) say what is known of each failure, and link to the reports. *API* in the tables
is the interface and bad arguments.

To repeat a column, run `lrp-verify --subject zennit.rules`, or `--subject verify.adapters.captum`, `--subject verify.adapters.lxt`."""


def speed(rule: str) -> str:
    """Return the pass count of a rule, its measured times, and where all are."""
    from bench.limits import PASSES  # noqa: PLC0415  imports torch

    if rule not in PASSES:
        text = "The rule has no matrix product, so it has no [pass count](../glossary.md#pass-count)."
    else:
        nonnegative, signed = PASSES[rule]
        head = ("input", "matrix products", "[pass count](../glossary.md#pass-count), in gradient times")
        rows = [("x ≥ 0", nonnegative, nonnegative / 2), ("signed x", signed, signed / 2)]
        text = table(head, rows)
    times = measured(rule)
    if times:
        text += (
            "\n\nMeasured in [gradient times](../glossary.md#gradient-time), in the compute-bound regime, with intervals. "
            f"A time can be below the pass count.\n\n{times}"
        )
    pages = [path for path in (DOCS / "performance/index.md", DOCS / "performance/report.md") if path.exists()]
    if pages:
        text += f"\n\nAll times: [performance](../performance/{pages[0].name})."
    return text


def measured(rule: str) -> str:
    """Return the measured ratios of a rule from the published tables; empty where there are none."""
    import pandas as pd  # noqa: PLC0415  a second

    from bench.subjects import GRADIENT as PLAIN  # noqa: PLC0415  imports torch
    from bench.subjects import OURS  # noqa: PLC0415
    from bench.workloads import COMPUTE  # noqa: PLC0415

    rows = []
    for file in sorted((DOCS / "performance").rglob("*.csv")):
        found = pd.read_csv(file)
        if not {"rule", "subject", "baseline", "ratio", "regime", "passes_limit"} <= set(found):
            continue
        own = found[(found["subject"] == OURS) & (found["baseline"] == PLAIN) & found["ratio"].notna()]
        own = own[own["rule"].str.partition("(")[0].eq(rule) & own["regime"].eq(COMPUTE) & own["axis"].isna()]
        for row in own.itertuples():
            layer = f"{row.workload}, batch {row.batch}, {row.signs}"
            time = f"{row.ratio:.2f} ({row.ratio_low:.2f} to {row.ratio_high:.2f})"
            rows.append((layer, row.device, row.dtype, row.rule, time, f"{row.passes_limit:g}"))
    return table(("layer", "device", "dtype", "rule", "time", "pass count"), rows) if rows else ""


#: Regimes as the tables name them, in the order of the page.
REGIMES = {"compute": "compute-bound", "memory": "memory-bound", "overhead": "overhead-bound"}


def times(regime: str) -> str:
    """Return the mean times of a regime in gradient times: a row a rule, a column a library; float32, one thread count."""
    import numpy as np  # noqa: PLC0415  with pandas, a second
    import pandas as pd  # noqa: PLC0415

    from bench.subjects import GRADIENT as PLAIN  # noqa: PLC0415  imports torch
    from bench.subjects import OURS  # noqa: PLC0415

    found = pd.read_csv(DOCS / "performance/table.csv")
    found = found[(found["regime"] == regime) & (found["dtype"] == "float32") & found["axis"].isna()]
    found = found[(found["kind"] == "layer") & (found["baseline"] == PLAIN) & (found["status"] == "ok")]
    libraries = [OURS, *sorted(set(found["subject"]) - {OURS})]
    head = ("rule, input", "pass count", *(f"{one} (layers)".replace("_", r"\_") for one in libraries))
    rows = []
    for (rule, signs), group in found.groupby(["rule", "signs"], sort=False):
        limit = group["passes_limit"].dropna()
        cells = [f"{rule}, {signs}".replace(">", r"\>").replace("_", r"\_"), f"{limit.iloc[0]:g}" if len(limit) else ""]
        for library in libraries:
            ratios = group.loc[group["subject"] == library, "ratio"].dropna()
            cells.append(f"{np.exp(np.log(ratios).mean()):.2f} ({len(ratios)})" if len(ratios) else "")
        rows.append(cells)
    return table(head, rows)


def vectors(rule: str) -> str:
    """Return the files of vectors of a rule, with their numbers of cases."""
    files = sorted((ROOT / "vectors").glob(f"{slug(rule)}-*.json"))
    rows = []
    for file in files:
        cases = sum(len(group["cases"]) for group in json.loads(file.read_text(encoding="utf-8"))["groups"])
        rows.append((f"[{file.name}](../../vectors/{file.name})", cases))
    return table(("file", "cases"), rows)


def deviations(rule: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the library and the entry of each known deviation of a rule."""
    found = []
    for file in sorted((ROOT / "verify/deviations").glob("*.toml")):
        content = tomllib.loads(file.read_text(encoding="utf-8"))
        for entry in content["deviation"]:
            patterns = [entry["pattern"]] if isinstance(entry["pattern"], str) else entry["pattern"]
            if any(_names(pattern, rule) for pattern in patterns):
                found.append((f"{content['library']} {content['versions'][-1]}", entry))
    return found


def _names(pattern: str, rule: str) -> bool:
    """Whether a pattern of ids, check/rule/..., can be one of this rule; `*` alone names none in particular."""
    parts = re.sub(r"\{[^}]*\}", lambda found: found[0].replace("/", ""), pattern).split("/")
    choices = parts[1].strip("{}").split(",") if len(parts) > 1 else []
    return any(fnmatchcase(rule, choice) for choice in choices)


def peers(rule: str) -> list[dict[str, str]]:
    """Return what is known of libraries that the verifier does not run."""
    facts = tomllib.loads((DOCS / "rules/peers.toml").read_text(encoding="utf-8"))["fact"]
    return [fact for fact in facts if rule in fact["rules"]]


def conventions(rule: str) -> list[tuple[str, str, str]]:
    """Return name, sentence and where it was seen, of every variant that the diagnosis knows."""
    known = {}
    for one in of_rule(rule):
        known.setdefault(one.name, (one.name, one.sentence, one.seen))
    return list(known.values())


def differ(rule: str) -> str:
    """Return how other libraries differ, and the variants that a failure is compared with."""
    numbers, conduct = [], []
    for library, entry in deviations(rule):
        report = f" ([report]({entry['link']}))" if entry.get("link") else ""
        name, _, version = library.partition(" ")
        line = f"- **[{name}]({LIBRARIES[name]}) {version}**: {_prose(entry['reason'])}{report}"
        (numbers if _computed(entry) else conduct).append(line)
    numbers += [f"- **[{fact['library']}]({fact['link']})**: {fact['sentence']}" for fact in peers(rule)]
    variants = table(
        ("variant", "what is done", "seen in"),
        ((f"`{name}`", _prose(sentence), _prose(seen)) for name, sentence, seen in conventions(rule)),
    )
    opening = (
        "From the lists of [known deviations](../how-to/known-deviations.md), and from the libraries' sources. "
        "What is right is in the [specification](../specification.md)."
    )
    text = [opening]
    for heading, lines in (("In numbers", numbers), ("In arguments and side effects", conduct)):
        text += [f"#### {heading}", "\n".join(dict.fromkeys(lines)) or "None known."]
    text += ["#### Known variants", "If a rule fails, `lrp-verify` compares it with these, and names the one that explains every failure."]
    return "\n\n".join((*text, variants))


def _computed(entry: dict[str, Any]) -> bool:
    """Whether a deviation is one of numbers, and not of errors or conduct."""
    return any(check in str(entry["pattern"]) for check in ("agreement", "conservation", "laws", "second-order"))


def _prose(text: str) -> str:
    """Return plain text as Markdown: products are no emphasis, and readers have no RULES.md."""
    text = re.sub(r"(^|\. )RULES\.md", r"\1The specification", " ".join(text.split()))
    text = text.replace("RULES.md", "the specification")
    return text.replace("*", r"\*").replace("_", r"\_").replace("<", r"\<").replace("[", r"\[")


#: What a card may ask for, as `<<name>>`.
PARTS: dict[str, Callable[[str], str]] = {
    "reference": reference,
    "verified": verified,
    "speed": speed,
    "vectors": vectors,
    "differ": differ,
    "papers": papers,
}
