"""`lrp-vectors show`: a case as a person reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.text import Text

from reference.ledger import Shares
from verify.formats.tensor_json import decode, widen
from verify.reports import numbers
from verify.reports.terminal import say

if TYPE_CHECKING:
    from rich.console import Console

Json = dict[str, Any]

_ADVICE = {
    "valid": "",
    "invalid": "an error is expected, of kind {error}",
    "implementation-defined": "any answer is accepted",
}


def show(document: Json, group: Json, case: Json, console: Console) -> None:
    """Print the formula, the layer, every number, what is expected, and where the relevance went."""
    say(console, case["id"], "bold")
    say(console, case["comment"])
    numbers.heads(
        console,
        {
            "rule": f"{document['rule']}: {document['formula']}",
            "parameters": _written(group["parameters"]),
            "layer": _written(group["layer"]),
            "dtype": case["dtype"],
            "result": _result(case),
        },
    )
    for name, form in case["tensors"].items():
        numbers.tensor(console, name, form["dtype"], widen(decode(form)))
    if case["result"] == "valid":
        x, relevance, bound = (widen(decode(form)) for form in (case["tensors"]["x"], case["relevance"], case["bound"]))
        numbers.entries(console, x, relevance, bound)
        if "ledger" in case:
            sinks = (case["ledger"][name] for name in Shares._fields)
            numbers.ledger(console, [Shares(*row) for row in zip(*sinks, strict=True)])
    for flag in case["flags"]:
        note = document["notes"][flag]
        say(
            console,
            Text(f"\n{flag}: ", style="yellow").append(f"{note['description']} {note['link']}", style="default"),
        )


def _result(case: Json) -> str:
    words = [case["result"], _ADVICE[case["result"]].format(error=case.get("error"))]
    if "advice" in case:
        words.append(f"an error of kind {case['advice']} is recommended")
    if case.get("inconclusive"):
        words.append(f"{case['inconclusive']} values are inconclusive")
    return "; ".join(filter(None, words))


def _written(options: Json) -> str:
    plain = {
        name: widen(decode(value)).tolist() if isinstance(value, dict) and "hex" in value else value
        for name, value in options.items()
    }
    return numbers.written(plain)
