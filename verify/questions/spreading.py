"""An order of cases in which the first of them say most, for those who ask a few of many."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from verify.model import Case


def spread(cases: Sequence[Case]) -> list[Case]:
    """Return the cases so that the first of them differ as much as can be, and the next in pairs of what they combine.

    A case comes early if it has a layer, a kind of data, an argument that none before it has: a part of its id. float64
    comes first, where rounding hides least; the order is the same in each run.
    """
    order = list(cases)
    random.Random(0).shuffle(order)
    order.sort(key=lambda case: case.dtype == "float32")
    for parts in (_pairs, lambda case: case.id.split("/")):
        seen: set[object] = set()
        tiers: tuple[list[Case], list[Case]] = ([], [])
        for case in order:
            own = set(parts(case))
            tiers[own <= seen].append(case)
            seen |= own
        order = tiers[0] + tiers[1]
    return order


def _pairs(case: Case) -> list[object]:
    return list(pairwise(case.id.split("/")))
