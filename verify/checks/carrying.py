"""How far rounding can take a relevance that comes down through several layers, one after another.

Write M for what a layer's rule does to a relevance, r = M R. A subject's R~ that is off by at most e from the
reference's R leaves the layer as M R~ and its rounding, so

    |r~ - r| <= B(|R| + e) + |M| e        |M| e = sum |coefficient| sum_t |v_t| * (|A_t|^T (gate * e / |S|))

where B is the bound of `reference.rounding`: it grows with |R|, so that its value at |R| + e holds for every R~ that
can be there, and the part of it that is the reference's own covers the rounding of r and of |M| e. At the top e = 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from reference.rounding import bound

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from reference.precision import Model
    from reference.rules import Parts

    Array = NDArray[np.float64]


def carried(parts: Parts, R: Array, error: Array, stabilizer: Any, rounding: Model) -> Array:
    """B(|R| + e) + |M| e for the worst case and the probable one (2, n); inf where an unbounded entry is carried to."""
    unbounded = np.isinf(error)
    error = np.where(unbounded, 0.0, error)
    limits = bound(parts, np.abs(R) + error[0], stabilizer, rounding)
    total = np.stack([limits.worst, limits.probable])
    for part in parts:
        for case, (e, lost) in enumerate(zip(error, unbounded.astype(np.float64), strict=True)):
            share, reach = (np.abs(part.shares(v, stabilizer)) for v in (e, lost))
            for matrix, v in part.terms:
                size, moved = np.abs(matrix), abs(part.coefficient) * np.abs(v)
                total[case] += moved * (size.T @ share)
                total[case, moved * (size.T @ reach) > 0] = np.inf
    return total
