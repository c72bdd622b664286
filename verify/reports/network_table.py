"""The trained network in the report: for each layer, how well it agrees and where its relevance went."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from verify.model import BAD

if TYPE_CHECKING:
    from collections.abc import Iterable

    from verify.model import Outcome

SINKS = ("inputs", "bias", "stabilizer", "zero branch")


def table(outcomes: Iterable[Outcome]) -> Table | None:
    """Return a row for each layer, from the output of the network to its input; None where it was not asked.

    Shares are per cent of what came in, over all images; those of the first dtype: rounding does not show in them.
    """
    layers: dict[str, dict[str, Outcome]] = {}
    for outcome in outcomes:
        if outcome.check == "network" and "ledger" in outcome.details:
            layers.setdefault(outcome.id.split("/")[1], {})[outcome.dtype] = outcome
    if not layers:
        return None
    dtypes = list(dict.fromkeys(dtype for found in layers.values() for dtype in found))
    made = Table(
        title="Real images through a trained network, shares in per cent",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1),
    )
    for name in ("layer", "rule", *dtypes, "inputs", "bias", "stabi-\nlizer", "zero\nbranch"):
        made.add_column(name, no_wrap=True, justify="left" if name in {"layer", "rule"} else "right")
    for name, found in sorted(layers.items(), key=lambda item: -int(item[0].split("-")[0])):
        first = next(iter(found.values()))
        incoming = sum(first.details["incoming"])
        shares = (sum(first.details["ledger"][sink]) / incoming if incoming else 0.0 for sink in SINKS)
        ratios = (_ratio(found[dtype]) if dtype in found else "" for dtype in dtypes)
        made.add_row(name, first.rule, *ratios, *map(_percent, shares))
    return made


def _ratio(outcome: Outcome) -> str:
    ratio = "-" if outcome.ratio is None else f"{outcome.ratio:.2g}"
    return f"{ratio} failed" if outcome.verdict in BAD else ratio


def _percent(share: float) -> str:
    return "0" if share == 0 else f"{100 * share:.2f}" if abs(share) >= 1e-4 else f"{100 * share:.0e}"
