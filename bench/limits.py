"""What the measured times stand beside: the least that a rule needs, and the goals that were set.

The unit is the plain gradient of the same layer and input: one pass forward and one back over its linear map. The least
time of a rule is half the passes that its formula needs; passes over single entries are not counted. A goal is a ratio
to the gradient on the CPU in float32, or to a peer: never slower.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.subjects import GRADIENT, OURS
from bench.workloads import COMPUTE, NONNEGATIVE, SIGNED

if TYPE_CHECKING:
    from bench.workloads import Cell

#: Least passes, for inputs that are not negative and for signed ones: the forward's own output is the denominator of
#: Epsilon and Norm; where x >= 0 every term with x- vanishes; Gamma is a sum of A(w) x and A(|w|) |x|; the bounds of
#: ZBox here, and the ones of WSquare, do not vary over the batch; Flat sums one channel in place of all.
PASSES: dict[str, tuple[float, float]] = {
    "Epsilon": (2, 2),
    "Norm": (2, 2),
    "ZPlus": (3, 5),
    "AlphaBeta": (5, 9),
    "Gamma": (4, 4),
    "ZBox": (3, 3),
    "WSquare": (2, 2),
    "Flat": (1, 1),
}

_COMPUTE: dict[str, tuple[float, float]] = {
    "Epsilon": (1.15, 1.15),
    "Norm": (1.15, 1.15),
    "ZPlus": (1.65, 2.7),
    "AlphaBeta": (2.75, 4.8),
    "Gamma": (2.3, 2.3),
    "ZBox": (2.6, 2.6),
    "WSquare": (1.2, 1.2),
    "Flat": (0.6, 0.6),
    "Pass": (1.2, 1.2),
    "ReLUDeconvNet": (1.2, 1.2),
    "ReLUGuidedBackprop": (1.2, 1.2),
    "ReLUBetaSmooth": (1.2, 1.2),
}
_MODELS = {"EpsilonPlus": 1.7, "EpsilonGammaBox": 2.4, "EpsilonAlpha2Beta1Flat": 2.8}
#: The rules that have the lower goal on a tiny layer.
_SHORT = {"Epsilon", "Norm", "ZPlus", "WSquare", "Flat"}


def passes_limit(cell: Cell) -> float | None:
    """Return the least time in gradients, or None where no passes are counted.

    >>> from bench.workloads import Cell
    >>> passes_limit(Cell("conv2d-64-64-3x3@56", "AlphaBeta(2, 1)", "signed"))
    4.5

    """
    if cell.rule == GRADIENT:
        return 1.0
    found = PASSES.get(_name(cell))
    if cell.rule == "AlphaBeta(1, 0)":
        found = PASSES["ZPlus"]
    return None if found is None else found[cell.signs == SIGNED] / 2


def goal(cell: Cell, subject: str, baseline: str) -> float | None:
    """Return the ratio to reach, or None."""
    if subject != OURS or baseline != GRADIENT:
        return 1.0 if subject == OURS else None
    if (cell.device, cell.dtype) != ("cpu", "float32") or cell.kind not in {"layer", "model"}:
        return None
    if cell.is_model:
        return _MODELS[cell.rule] if cell.workload in {"vgg16@224", "resnet18@224"} else None
    name = _name(cell)
    if cell.workload == "linear-16-16":
        return 2.5 if name in _SHORT else 3.5
    if cell.rule == "AlphaBeta(1, 0)" or not (cell.regime == COMPUTE or cell.workload == "relu-64@56"):
        return None
    return _COMPUTE[name][cell.signs != NONNEGATIVE]


def _name(cell: Cell) -> str:
    return cell.rule.partition("(")[0]
