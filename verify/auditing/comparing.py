"""What was got, and what was expected: for each input once, and whether rounding explains the difference."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lrp_rules.networks.operations import operation_of
from verify.auditing.calls import key_of
from verify.auditing.formulas import Answer, NoFormulaError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from verify.auditing.calls import Call


def places(call: Call) -> list[int]:
    """Return which of its inputs a rule sees: those that the model's input reaches; all of a sum, for their shares."""
    if call.function is not None and operation_of(call.function) == "add":
        return list(range(len(call.inputs)))
    return [place for place, reached in enumerate(call.reached) if reached]


def merged(answer: Answer, call: Call) -> tuple[list[Tensor], list[Tensor] | None]:
    """Return expected values and bounds of the ends that the model's input reaches, each once."""
    if len(answer.r) != len(places(call)):
        msg = "it has another number of inputs than its rule knows"
        raise NoFormulaError(msg)
    r: dict[tuple[int, int], Tensor] = {}
    b: dict[tuple[int, int], Tensor] = {}
    for at, place in enumerate(places(call)):
        if call.reached[place]:
            key = key_of(call.ends[place])
            r[key] = answer.r[at] + r[key] if key in r else answer.r[at]
            if answer.bound is not None:
                b[key] = answer.bound[at] + b[key] if key in b else answer.bound[at]
    return list(r.values()), None if answer.bound is None else list(b.values())


def within(off: Sequence[Tensor], bounds: Sequence[Tensor] | None, whole: float) -> bool:
    """Whether rounding explains every difference; as a whole, where entries have no bounds."""
    if bounds is None:
        return total([v.abs() for v in off]) <= whole
    return all(bool((v.abs() <= bound + 2.0**-1000).all()) for v, bound in zip(off, bounds, strict=True))


def excess(off: Sequence[Tensor], bounds: Sequence[Tensor] | None, whole: float) -> float:
    """Return the largest difference in units of its bound: at most 1 is explained by rounding. NaN is infinite."""
    if bounds is None:
        found = total([v.abs() for v in off])
        return found / whole if found else 0.0
    ratios = [
        float((v.abs() / (b + 2.0**-1000)).nan_to_num(torch.inf).max())
        for v, b in zip(off, bounds, strict=True)
        if v.numel()
    ]
    return max(ratios, default=0.0)


def total(values: Sequence[Tensor]) -> float:
    """Return the sum of all entries."""
    return sum(float(v.double().sum()) for v in values)


def size(values: Sequence[Tensor]) -> int:
    """Return the number of entries."""
    return sum(v.numel() for v in values)
