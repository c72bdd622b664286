"""The numbers of one case as a person reads them: formula, layer, tensors, what is expected, where relevance went."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from reference.ledger import Shares
from verify.formats.headers import header
from verify.reports.terminal import say

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from rich.console import Console

    from verify.explaining.asked import Numbers

    Array = NDArray[np.float64]

#: How many numbers of a tensor, and how many rows of a table, are printed where a case may be large.
MOST = 64
_TABLE = 160  # columns that a table may take, also on a narrower terminal
_WIDEST = 1000  # characters of parameters


def heads(console: Console, lines: Mapping[str, str]) -> None:
    """Print what is said in a line each."""
    for head, text in lines.items():
        say(console, Text(f"{head:<11} ", style="dim").append(text, style="not dim"))


def written(options: Mapping[str, Any]) -> str:
    """Return parameters or options in one line; tensors are lists here."""
    return ", ".join(f"{name}={json.dumps(value)}" for name, value in options.items()) or "none"


def tensor(console: Console, name: str, dtype: str, values: Array, most: int | None = None) -> None:
    """Print a tensor row by row, and no more than so many numbers of it."""
    say(console, Text(f"\n{name} ", style="bold").append(f"{dtype} {list(values.shape)}", style="dim"))
    rows = values.reshape(-1, values.shape[-1]) if values.ndim > 1 else values.reshape(1, -1)
    left = values.size if most is None else most
    for row in rows:
        if left > 0:
            say(console, "  " + " ".join(f"{value:>14.9g}" for value in row[:left]))
            left -= row.size
    if most is not None and values.size > most:
        say(console, f"  ... the first {most} of {values.size} numbers", "dim")


def entries(
    console: Console, x: Array, expected: Array, bound: Array, got: Array | None = None, most: int | None = None
) -> None:
    """Print what is expected of each entry, and what came where that is known; all arrays in the shape of x.

    Of more than ``most``, those are printed that are furthest from what is expected.
    """
    columns = ["entry", "x", *([] if got is None else ["got"]), "expected relevance", "bound"]
    table = _table(*columns, *([] if got is None else ["|got - expected| / bound"]))
    ratios = None if got is None else _ratios(got, expected, bound)
    places = list(np.ndindex(expected.shape))
    shown = places
    if most is not None and len(places) > most:
        order = places if ratios is None else sorted(places, key=lambda place: -ratios[place])
        shown = sorted(order[:most])
    for place in shown:
        row = [str(list(place)), f"{x[place]:.9g}", f"{expected[place]:.17g}", f"{bound[place]:.3g}"]
        style = ""
        if got is not None and ratios is not None:
            row.insert(2, f"{got[place]:.17g}")
            row.append(f"{ratios[place]:.3g}" if np.isfinite(bound[place]) else "inconclusive")
            style = "red" if ratios[place] > 1 else ""
        table.add_row(*map(Text, row), style=style)
    console.print()
    _print(console, table)
    if len(shown) < len(places):
        which = "the first" if ratios is None else "those with the largest ratios"
        say(console, f"  ... {len(shown)} of {len(places)} entries, {which}", "dim")


def _ratios(got: Array, expected: Array, bound: Array) -> Array:
    """|got - expected| / bound, for people: NaN in what came is infinitely far off."""
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        ratio = np.abs(got - expected) / bound
    return np.where(got == expected, 0.0, np.where(np.isnan(ratio), np.inf, ratio))


def ledger(
    console: Console, rows: Sequence[Shares], sums: Sequence[float] | None = None, most: int | None = None
) -> None:
    """Print where the relevance of each sample went, and beside it the sum of what came, where that is known."""
    names = [name.replace("_", " ") for name in Shares._fields]
    table = _table("sample", *([] if sums is None else ["sum(got)"]), *names, "sum")
    for sample, row in list(enumerate(rows))[:most]:
        values = [*([] if sums is None else [sums[sample]]), *row, sum(row)]
        table.add_row(str(sample), *(f"{value:.6g}" for value in values))
    must = "" if sums is None else ": sum(got) must equal what the inputs get"
    say(console, f"\nWhere the relevance goes (the ledger){must}", "bold")
    _print(console, table)
    if most is not None and len(rows) > most:
        say(console, f"  ... the first {most} of {len(rows)} samples", "dim")


def _print(console: Console, table: Table) -> None:
    """Print a table whole: a number that is cut is none."""
    width = console.width
    console.width = max(width, _TABLE)
    console.print(table)
    console.width = width


def _table(*names: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def show(rule: str, dtype: str, case: Numbers, console: Console) -> None:
    """Print all numbers of a case of the grid, as those of a test vector are, beside what the implementation gave."""
    given = written(case.parameters) if case.parameters else "defaults"
    heads(
        console,
        {
            "rule": f"{rule}: {header(rule)['formula']}",
            "parameters": given if len(given) <= _WIDEST else f"{given[:_WIDEST]} ... (cut)",
            "layer": f"{case.layer_name}: {written(case.layer)}",
            "dtype": dtype,
        },
    )
    for name, values in case.tensors.items():
        tensor(console, name, dtype, values, MOST)
    for name, values in case.denominators.items():
        tensor(console, f"denominator {name},", "before the stabilizer, one row per sample", values, MOST)
    if case.got is None:
        say(
            console,
            "\nThe implementation gave no relevance of the input's shape, so there is no column `got`",
            "yellow",
        )
    entries(console, case.tensors["x"], case.expected, case.bound, case.got, MOST)
    if case.ledgers:
        ledger(console, case.ledgers, case.sums, MOST)
    console.print()
