"""What the reference says of a case, against what the case says: another computation than the one that made it.

The corpus is made in exact arithmetic (`exact`); this is NumPy in float64, as `lrp-verify` uses it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from reference import rules
from reference.base import NonlinearLayer
from reference.ledger import Ledger, ledger
from reference.pointwise import sigmoid
from reference.precision import FLOAT64, model_for
from reference.rounding import bound
from verify.checks.comparator import compare
from verify.formats.layer_json import layer_of
from verify.formats.tensor_json import decode, widen
from verify.vectors.answers import SINKS, expected_of_gradient, parts_of, stabilizer_of
from verify.vectors.corpus import read
from verify.vectors.numbers import TIDIED, tidied
from verify.vectors.parameters import GRADIENT_RULES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reference.base import Layer
    from reference.windows import Array

Json = dict[str, Any]


def disagreements(rule: str, group: Json, case: Json) -> Iterator[str]:
    """Yield what the reference says otherwise: relevance, bound, how much is inconclusive, ledger."""
    if case["result"] != "valid":
        return
    tensors = {name: widen(decode(form)) for name, form in case["tensors"].items()}
    wrong = {name for name, form in case["tensors"].items() if form["dtype"] != case["dtype"]}
    if wrong:
        yield f"{', '.join(sorted(wrong))} is not in {case['dtype']}, the dtype of the case"
        return
    x, R = tensors.pop("x"), tensors.pop("R")
    layer = layer_of(group["layer"], tensors, x.shape[1:])
    given, limit = widen(decode(case["relevance"])), widen(decode(case["bound"]))
    if (len(R), *layer.output_shape) != R.shape or len(R) != len(x):
        yield f"R has the shape {R.shape}, expected {(len(x), *layer.output_shape)}"
        return
    if given.shape != x.shape or limit.shape != x.shape:
        yield f"relevance has the shape {given.shape}, bound {limit.shape}, expected that of x, {x.shape}"
        return
    found, worst, ledgers = _asked(rule, layer, read(group["parameters"]), x, R, case["dtype"])
    comparison = compare(found, given, limit)
    if comparison.refuted:
        index = int(comparison.index or 0)
        entry = f"entry {index}: {given.ravel()[index]!r}, the reference says {found.ravel()[index]!r}"
        yield f"the expected relevance is {comparison.ratio:.3g} times the bound away from the reference, {entry}"
    own = tidied(worst)
    with np.errstate(invalid="ignore"):
        apart = ~((own == limit) | (np.isfinite(limit) & (np.abs(own - limit) <= TIDIED * limit)))
    if apart.any():
        index = int(np.flatnonzero(apart)[0])
        yield f"bound, entry {index}: {limit.ravel()[index]:.4g}, the reference says {own.ravel()[index]:.4g}"
    if case["inconclusive"] != int(np.isinf(limit).sum()):
        yield f"inconclusive is {case['inconclusive']}, expected {int(np.isinf(limit).sum())}"
    if rule not in GRADIENT_RULES:
        yield from _unbalanced(case, ledgers, given, limit)
    elif "ledger" in case:
        yield "has a ledger, which this rule has not"


def _asked(
    rule: str, layer: Layer, parameters: Json, x: Array, R: Array, dtype: str
) -> tuple[Array, Array, list[Ledger]]:
    """Relevance, bound and ledgers of the reference."""
    model = model_for(dtype)
    if rule in GRADIENT_RULES:
        pairs = [
            expected_of_gradient(rule, layer, parameters, x_i.ravel(), R_i.ravel(), model, _Slopes)
            for x_i, R_i in zip(x, R, strict=True)
        ]
        found, worst = (np.array(values) for values in zip(*((r, limit.worst) for r, limit in pairs), strict=True))
        return found.reshape(x.shape), worst.reshape(x.shape), []
    stabilizer = stabilizer_of(rule, parameters)
    parts = [parts_of(rule, layer, x_i, parameters, sample, x.shape) for sample, x_i in enumerate(x)]
    asked = list(zip(parts, R, strict=True))
    return (
        np.array([rules.relevance(own, R_i, stabilizer) for own, R_i in asked]).reshape(x.shape),
        np.array([bound(own, R_i, stabilizer, model).worst for own, R_i in asked]).reshape(x.shape),
        [ledger(own, R_i, stabilizer) for own, R_i in asked],
    )


class _Slopes:
    """What the gradient rules read, as the reference has it."""

    @staticmethod
    def sigmoid(t: Array) -> Array:
        return sigmoid(t)

    @staticmethod
    def slopes(layer: Layer, x: Array) -> Array:
        assert isinstance(layer, NonlinearLayer)
        return np.asarray(np.diagonal(layer.jacobian(x)))


def _unbalanced(case: Json, ledgers: list[Ledger], given: Array, limit: Array) -> Iterator[str]:
    """The sinks of each sample add up to its relevance, and the inputs' is the sum of what is expected."""
    rows = [case.get("ledger", {}).get(name, ()) for name in SINKS]
    if any(len(row) != len(ledgers) for row in rows):
        yield f"the ledger has not {len(ledgers)} numbers for each of {', '.join(SINKS)}"
        return
    for sample, (account, sinks) in enumerate(zip(ledgers, zip(*rows, strict=True), strict=True)):
        room = float(account.balance.sum() + FLOAT64.gamma(8 + account.relevance.size) * np.abs(sinks).sum())
        off = abs(float(account.relevance.sum()) - sum(sinks))
        if not off <= room + float(FLOAT64.gamma(account.relevance.size) * np.abs(account.relevance).sum()):
            yield f"the ledger of sample {sample} does not balance: off by {off:.3g}"
        total = float(given[sample].sum())
        adding = float(FLOAT64.gamma(given[sample].size + 2) * np.abs(given[sample]).sum())
        if not abs(total - sinks[0]) <= adding + float(limit[sample].sum()):
            yield f"the inputs' share of sample {sample} is {sinks[0]!r}, and the relevance adds up to {total!r}"
