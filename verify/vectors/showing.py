"""`lrp-vectors show`: a case as a person reads it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from verify.formats.tensor_json import decode, widen
from verify.reports.terminal import say
from verify.vectors.answers import SINKS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

Json = dict[str, Any]

_ADVICE = {
    "valid": "",
    "invalid": "an error is expected, of kind {error}",
    "implementation-defined": "any answer will do",
}


def show(document: Json, group: Json, case: Json, console: Console) -> None:
    """Print the formula, the layer, every number, what is expected, and where the relevance went."""
    say(console, case["id"], "bold")
    say(console, case["comment"])
    for head, text in (
        ("rule", f"{document['rule']}: {document['formula']}"),
        ("parameters", _written(group["parameters"])),
        ("layer", _written(group["layer"])),
        ("dtype", case["dtype"]),
        ("result", _result(case)),
    ):
        say(console, Text(f"{head:<11} ", style="dim").append(text, style="not dim"))
    for name, form in case["tensors"].items():
        _tensor(console, name, form)
    if case["result"] == "valid":
        console.print()
        console.print(_entries(case))
        if "ledger" in case:
            console.print(_ledger(case))
    for flag in case["flags"]:
        note = document["notes"][flag]
        say(
            console,
            Text(f"\n{flag}: ", style="yellow").append(f"{note['description']} {note['link']}", style="default"),
        )


def _result(case: Json) -> str:
    words = [case["result"], _ADVICE[case["result"]].format(error=case.get("error"))]
    if "advice" in case:
        words.append(f"an error of kind {case['advice']} is advised")
    if case.get("inconclusive"):
        words.append(f"{case['inconclusive']} entries are inconclusive")
    return "; ".join(filter(None, words))


def _written(options: Json) -> str:
    words = [
        f"{name}={widen(decode(value)).tolist() if isinstance(value, dict) and 'hex' in value else json.dumps(value)}"
        for name, value in options.items()
    ]
    return ", ".join(words) or "none"


def _tensor(console: Console, name: str, form: Json) -> None:
    say(console, Text(f"\n{name} ", style="bold").append(f"{form['dtype']} {form['shape']}", style="dim"))
    values = widen(decode(form))
    rows = values.reshape(-1, values.shape[-1]) if values.ndim > 1 else values.reshape(1, -1)
    for row in rows:
        say(console, "  " + " ".join(f"{value:>14.9g}" for value in row))


def _entries(case: Json) -> Table:
    relevance, bound = widen(decode(case["relevance"])), widen(decode(case["bound"]))
    table = _table("entry", "x", "expected relevance", "bound")
    x = widen(decode(case["tensors"]["x"]))
    for place, value in np.ndenumerate(relevance):
        table.add_row(Text(str(list(place))), f"{x[place]:.9g}", f"{value:.17g}", f"{bound[place]:.3g}")
    return table


def _ledger(case: Json) -> Table:
    table = _table("sample", *(name.replace("_", " ") for name in SINKS), "sum")
    rows: Sequence[tuple[float, ...]] = list(zip(*(case["ledger"][name] for name in SINKS), strict=True))
    for sample, row in enumerate(rows):
        table.add_row(str(sample), *(f"{value:.6g}" for value in (*row, sum(row))))
    return table


def _table(*names: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    return table
