"""How far two runs of a subject may be apart under a law, also where it computes another formula than the reference.

The bounds of the reference are those of the specification's formula. Where an implementation agrees with it, they hold
for both runs. Another published convention rounds otherwise: with a denominator d' in place of d, the relevance is
|d / d'| times as large, and its rounding error the square of that, as it is |R| e / d'^2. So the room grows with the
square of the subject's own size. Where that leaves nothing to tell, the law is inconclusive: agreement has failed, and
a law accuses nobody for rounding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from verify.checks.agreement import judge
from verify.model import Finding, Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from verify.checks.agreement import Expected

    Array = NDArray[np.float64]
    #: What a subject gave in one run, one row a sample, and what the reference says of it.
    Run = tuple[Array, Expected]


def disagrees(run: Run) -> bool:
    """Whether a run is outside the bounds of the reference, where it has any."""
    got, expected = run
    decided = np.isfinite(expected.worst)
    return bool((decided & ~(np.abs(got - expected.relevance) <= expected.worst)).any())


def judged(got: Array, wanted: Array, room: Array, runs: Sequence[Run]) -> Finding:
    """Judge two relevances that a law makes equal; ``room`` is that of the reference, ``runs`` are all of the law."""
    name = runs[0][1].model.name
    # numbers that are not finite have no size, and are nobody's formula
    if not any(map(disagrees, runs)) or not all(np.isfinite(values).all() for values, _ in runs):
        return judge(got, wanted, room, None, name)
    wide = _own(room, runs)
    size = max(float(np.abs(values).max(initial=0.0)) for values in (got, wanted))
    if wide >= size > 0:
        return inconclusive("the rule computes another formula here, whose rounding may be as large as its relevance")
    return judge(got, wanted, np.maximum(room, wide), None, name)


def inconclusive(reason: str) -> Finding:
    """Return that nothing can be said, by no fault of the numbers."""
    return Finding(Verdict.INCONCLUSIVE, None, None, 1.0, reason, undecidable=1.0)


def _own(room: Array, runs: Sequence[Run]) -> float:
    """Return a room for every entry, by the largest of the reference and the size of what the subject gives."""
    largest = float(room[np.isfinite(room)].max(initial=0.0))
    growth, rounding = 1.0, 0.0
    for got, expected in runs:
        size, right = (float(np.abs(values).max(initial=0.0)) for values in (got, expected.relevance))
        growth = max(growth, size / right if right else np.inf)
        # whatever the formula, so many numbers of this size were summed
        rounding += float(expected.model.gamma(got.shape[1] + 2)) * size
    return largest * growth**2 + rounding
