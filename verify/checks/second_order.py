"""Check ``second-order``: the derivative of a relevance by the input, against finite differences of the reference."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from reference import rules as ref
from reference.layers import affine
from reference.precision import model_for
from reference.rounding import bound
from verify.checks.agreement import judge, rows
from verify.model import Case, Finding, Level
from verify.torch_layers import describe
from verify.variants import Sample, Variant, variant

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from reference.layers import Layer
    from verify.cases import Draw
    from verify.layers import LayerCase
    from verify.subjects import Subject

    Array = NDArray[np.float64]

#: Those whose relevance depends on the input, with a stabilizer that is felt.
_VARIANTS = (
    ("Epsilon", "epsilon=0.3"),
    ("Epsilon", "epsilon=callable"),
    ("Epsilon", "zero_params=bias"),
    ("Norm", "stabilizer=0.3"),
    ("ZPlus", "stabilizer=0.3"),
    ("AlphaBeta", "stabilizer=0.3"),
    ("AlphaBeta", "alpha=4-beta=3"),
    ("Gamma", "stabilizer=0.3"),
    ("Gamma", "gamma=10"),
    ("ZBox", "stabilizer=0.3"),
    ("WSquare", "stabilizer=0.3"),
    ("Flat", "stabilizer=0.3"),
)
_STEP = 2.0**-10


def cases(draw: Draw, layers: Sequence[LayerCase]) -> Iterator[Case]:
    """Yield the cases of this check; in float64, where finite differences mean something."""
    for rule, name in _VARIANTS:
        for layer in layers:
            if not layer.linear and rule not in {"Epsilon", "Norm"}:
                continue
            yield Case(
                id=f"second-order/{rule}/{layer.name}/{name}", rule=rule, layer=layer.family, check="second-order",
                dtype="float64", level=Level.MUST, run=partial(_derivative_agrees, draw, layer, variant(rule, name)),
            )  # fmt: skip


def _derivative_agrees(draw: Draw, layer: LayerCase, of: Variant, subject: Subject) -> Finding:
    problem = draw(layer, "signed", "float64")
    # away from x = 0, where clamped inputs have a kink
    x = problem.x + torch.where(problem.x < 0, -0.25, 0.25)
    weights = torch.cos(torch.arange(x.numel(), dtype=x.dtype)).reshape(x.shape)

    x = x.requires_grad_()
    arguments = of.arguments(tuple(x.shape), x.dtype)
    handle = subject.get(of.rule)(**arguments).register(problem.module)
    try:
        (r,) = torch.autograd.grad(problem.module(x), x, problem.relevance, create_graph=True)
        value = (r * weights).sum()
        derivative = torch.autograd.grad(value, x, allow_unused=True)[0] if value.requires_grad else None
    finally:
        handle.remove()
    got = rows(torch.zeros_like(x) if derivative is None else derivative, batched=problem.batched)
    data = [rows(t, batched=problem.batched) for t in (x, problem.relevance, weights)]
    described = describe(problem.module, layer.sample_shape)
    wanted, room = [], []
    for index, (x_i, relevance_i, weights_i) in enumerate(zip(*data, strict=True)):
        sample = Sample(index, tuple(x.shape), problem.batched)
        slopes, limits = _slopes(described, of, sample, x_i, relevance_i, weights_i)
        wanted.append(slopes)
        room.append(limits)
    return judge(got, np.array(wanted), np.array(room), None, "finite differences of the reference")


def _slopes(
    described: Layer, of: Variant, sample: Sample, x: Array, relevance: Array, weights: Array
) -> tuple[Array, Array]:
    """Return d<r, weights>/dx and how far it can be off: truncation, told by halving the step, and rounding.

    Where a sign of x, of a denominator or of a gate changes on the way, there is a kink, and no bound.
    """
    model = model_for("float64")

    def value(at: Array) -> tuple[float, float, tuple[bytes, ...]]:
        parts = of.parts(affine(described, at, of.zero_params), sample)
        r = ref.relevance(parts, relevance, of.stabilizer)
        off = bound(parts, relevance, of.stabilizer, model).worst
        signs = tuple(
            (part.denominator < 0).tobytes() + (b"" if part.gate is None else part.gate.tobytes()) for part in parts
        )
        return float(r @ weights), float(np.abs(weights) @ off), ((at < 0).tobytes(), *signs)

    slopes, limits = np.zeros_like(x), np.zeros_like(x)
    for entry in range(len(x)):
        points: dict[float, tuple[float, float, tuple[bytes, ...]]] = {}
        for factor in (-2.0, -1.0, -0.5, 0.5, 1.0, 2.0):
            moved = x.copy()
            moved[entry] += factor * _STEP
            points[factor] = value(moved)
        # fourth order: (8 (f(h) - f(-h)) - (f(2h) - f(-2h))) / 12h, for h and for h / 2
        coarse, fine = (
            (8 * (points[k][0] - points[-k][0]) - (points[2 * k][0] - points[-2 * k][0])) / (12 * k * _STEP)
            for k in (1.0, 0.5)
        )
        rounding = max(off for _, off, _ in points.values()) * 18 / (12 * 0.5 * _STEP)
        kink = len({signs for _, _, signs in points.values()}) > 1
        # the error of the fine one is a sixteenth of the coarse one's: their difference is fifteen times as large
        slopes[entry] = fine
        limits[entry] = np.inf if kink else abs(coarse - fine) + rounding
    return slopes, limits
