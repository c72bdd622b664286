"""What the rule cards say and nobody writes by hand: read from the code, its results and its lists, as Markdown."""

from __future__ import annotations

import inspect
import json
import re
import tomllib
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reference import network_rules
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
#: The rules for networks, and their functions in `reference.network_rules`.
NETWORKS = {
    "Uniform": "uniform",
    "SignalTakesAll": "signal_takes_all",
    "Bilinear": "bilinear",
    "Softmax": "softmax",
    "Stop": "stop",
    "LayerNormRule": "layer_norm",
}
LIBRARIES = {
    "autolrp": "https://github.com/Wa-lead/autoLRP",
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
    if rule in NETWORKS:
        names = [NETWORKS[rule]]
        if "_routed(" in inspect.getsource(getattr(network_rules, NETWORKS[rule])):
            names.append("_routed")
        return _included("network_rules", names)
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
    return _included("rules", names)


def _included(file: str, names: Sequence[str]) -> str:
    return "\n\n".join(
        f"```{{literalinclude}} ../../reference/{file}.py\n:pyobject: {one}\n:language: python\n```" for one in names
    )


def papers(rule: str) -> str:
    """Return the sources of a rule, as the vectors name them."""
    headers = tomllib.loads((ROOT / "verify/formats/headers.toml").read_text(encoding="utf-8"))
    sources = (one.rpartition(", ") for one in headers["rules"][rule]["source"])
    return "\n".join(f"- [{name}]({link})" for name, _, link in sources)


def verified(rule: str) -> str:
    """Return, for every question, what the conformance table says of each implementation."""
    page = (DOCS / "conformance.md").read_text(encoding="utf-8")
    found = re.search(rf"^## {rule}\n\n((?:\|.*\n?)+)", page, re.MULTILINE)
    if not found:
        msg = f"docs/conformance.md has no table for {rule}; generate it with python -m verify.reports.conformance"
        raise ValueError(msg)
    text = (
        "Results of `lrp-verify`: ✓ with the largest [ratio](../glossary.md#ratio), or how many cases fail. Results "
        "by layer, and the meaning of the marks, are [here](../conformance.md)."
    )
    return f"{text}\n\n{turned(found[1])}"


def turned(text: str) -> str:
    """Return a table of the conformance page with its rows as columns, which fits narrow screens."""
    lines = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in text.splitlines()]
    head, rows = lines[0], [line for line in lines[2:] if any(line[1:])]
    columns = list(zip(*rows, strict=True))
    body = [(name, *cells) for name, cells in zip(head[1:], columns[1:], strict=True) if any(cells)]
    return table(("layer" if "Linear" in head else "question", *map(library, columns[0])), body)


def library(name: str) -> str:
    """Return how pages call an implementation."""
    return name.removeprefix("verify.subjects.").replace("zennit.rules", "zennit").replace("_", r"\_")


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
            "\n\nMeasured in [gradient times](../glossary.md#gradient-time), in the compute-bound regime, with "
            f"intervals. A time can be below the pass count.\n\n{times}"
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
            layer = f"{row.workload}, batch {row.batch}, {row.signs}, {row.device} {row.dtype}"
            time = f"{row.ratio:.2f} ({row.ratio_low:.2f} to {row.ratio_high:.2f})"
            rows.append((layer, row.rule, time, f"{row.passes_limit:g}"))
    return table(("layer", "rule", "time", "pass count"), rows) if rows else ""


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
    for file in sorted((ROOT / "verify/explaining/deviations").glob("*.toml")):
        content = tomllib.loads(file.read_text(encoding="utf-8"))
        for entry in content.get("deviation", ()):
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
    text += [
        "#### Known variants",
        "If a rule fails, `lrp-verify` compares it with these, and names the one that explains every failure.",
    ]
    return "\n\n".join((*text, variants))


def _computed(entry: dict[str, Any]) -> bool:
    """Whether a deviation is one of numbers, and not of errors or conduct."""
    return any(check in str(entry["pattern"]) for check in ("agreement", "conservation", "laws", "second-order"))


def _prose(text: str) -> str:
    """Return plain text as Markdown: products are no emphasis."""
    text = " ".join(text.split())
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
