"""Check ``second-order``: the derivative of a relevance by input and parameters, against differences of the reference.

Where a sign of an input, a parameter, a denominator or a gate changes within a step, there is a kink, and no bound.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from reference import rules as ref
from reference.layers import Weighted, affine
from reference.precision import model_for
from reference.rounding import bound
from verify.checks.agreement import gradient_rule, judge, rows
from verify.model import Case, Finding
from verify.torch_layers import array, describe
from verify.variants import Sample, Variant, level, variant

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from reference.layers import Layer
    from verify.cases import Draw
    from verify.layers import LayerCase
    from verify.problem import Problem
    from verify.subjects import Subject

    Array = NDArray[np.float64]

#: Those with a stabilizer that is felt.
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
_MODEL = model_for("float64")
_STEP = 2.0**-10
#: Output entries nearer to zero than this get no relevance where parameters move, and with them each denominator.
_MARGIN = 0.125


def cases(
    draw: Draw, layers: Sequence[LayerCase], gradient: Sequence[tuple[str, dict[str, float], LayerCase]]
) -> Iterator[Case]:
    """Yield the cases of this check; in float64, where finite differences mean something.

    ``gradient`` holds the rules that look only at the gradient, with arguments and a layer each.
    """
    for (rule, name), layer in product(_VARIANTS, layers):
        if not layer.linear and rule not in {"Epsilon", "Norm"}:
            continue
        of = variant(rule, name)
        yield _case(name, rule, layer, partial(_by_input, draw, layer, of))
        if layer.weighted:
            yield _case(f"{name}/parameters", rule, layer, partial(_by_parameters, draw, layer, of))
    for rule, arguments, layer in gradient:
        name = "-".join(f"{key}={value:g}" for key, value in arguments.items()) or "default"
        yield _case(name, rule, layer, partial(_of_gradient_rule, draw, layer, rule, arguments))


def _case(name: str, rule: str, layer: LayerCase, run: Callable[[Subject], Finding]) -> Case:
    return Case(
        id=f"second-order/{rule}/{layer.name}/{name}", rule=rule, layer=layer.family, check="second-order",
        dtype="float64", level=level(rule, layer), run=run,
    )  # fmt: skip


def _by_input(draw: Draw, layer: LayerCase, of: Variant, subject: Subject) -> Finding:
    problem = _away_from_zero(draw(layer, "signed", "float64"))
    rule = subject.get(of.rule)(**of.arguments(tuple(problem.x.shape), problem.x.dtype))
    (got,) = _derivatives(rule, problem, lambda x: [x])
    described = describe(problem.module, layer.sample_shape)
    wanted, room = _of_each_sample(problem, lambda data, x: _value(described, of, replace(data, x=x)))
    return _finding(rows(got, batched=problem.batched), wanted, room)


def _by_parameters(draw: Draw, layer: LayerCase, of: Variant, subject: Subject) -> Finding:
    """Compare along two directions for each parameter; each entry takes part in both, with other factors."""
    problem = _away_from_zero(draw(layer, "signed", "float64"))
    module: Any = problem.module
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(_outwards(parameter))
        z = module(problem.x)
    problem = replace(problem, relevance=problem.relevance * (z.abs() > _MARGIN))
    rule = subject.get(of.rule)(**of.arguments(tuple(problem.x.shape), problem.x.dtype))
    names = [name for name, _ in module.named_parameters()]
    gradients = _derivatives(rule, problem, lambda _: list(module.parameters()))
    described = describe(module, layer.sample_shape)
    assert isinstance(described, Weighted)
    samples = _samples(problem)

    def value(name: str, at: Array) -> _Value:
        parameter: Any = {name: at.reshape(getattr(described, name).shape)}
        changed = replace(described, **parameter)
        values = [_value(changed, of, data) for data in samples]
        return _Value(sum(v.value for v in values), sum(v.off for v in values), tuple(v.signs for v in values))

    got, wanted, room = [], [], []
    for name, gradient in zip(names, gradients, strict=True):
        start = array(getattr(module, name)).ravel()
        directions = np.array([_pattern(start.size), _pattern(start.size)[::-1]])
        slopes, limits = _slopes(partial(value, name), start, directions)
        got.append(directions @ array(gradient).ravel())
        wanted.append(slopes)
        room.append(limits)
    return _finding(np.array(got), np.array(wanted), np.array(room))


def _of_gradient_rule(
    draw: Draw, layer: LayerCase, rule_name: str, arguments: dict[str, float], subject: Subject
) -> Finding:
    problem = _away_from_zero(draw(layer, "signed", "float64"))
    (got,) = _derivatives(subject.get(rule_name)(**arguments), problem, lambda x: [x])
    described = describe(problem.module, layer.sample_shape)

    def value(data: _Data, x: Array) -> _Value:
        r, limit = gradient_rule(rule_name, described, x, data.relevance, arguments, _MODEL)
        return _Value(float(r @ data.weights), float(np.abs(data.weights) @ limit.worst), ((x < 0).tobytes(),))

    return _finding(rows(got, batched=problem.batched), *_of_each_sample(problem, value))


def _finding(got: Array, wanted: Array, room: Array) -> Finding:
    return judge(got, wanted, room, None, "finite differences of the reference")


# --- the subject ------------------------------------------------------------------------------------------------------


def _away_from_zero(problem: Problem) -> Problem:
    """Move the input away from zero, where clamped inputs have a kink."""
    return replace(problem, x=problem.x + _outwards(problem.x))


def _outwards(t: Tensor) -> Tensor:
    return torch.where(t < 0, -0.25, 0.25).to(t)


def _derivatives(rule: Any, problem: Problem, by: Callable[[Tensor], list[Tensor]]) -> list[Tensor]:
    """Return the derivatives of <r, weights> by what ``by`` names, given the input; zero where there is no graph."""
    x = problem.x.detach().requires_grad_()
    handle = rule.register(problem.module)
    try:
        (r,) = torch.autograd.grad(problem.module(x), x, problem.relevance, create_graph=True)
        value, of = (r * _weights(x)).sum(), by(x)
        found = torch.autograd.grad(value, of, allow_unused=True) if value.requires_grad else [None] * len(of)
    finally:
        handle.remove()
    return [torch.zeros_like(t) if d is None else d for t, d in zip(of, found, strict=True)]


def _weights(x: Tensor) -> Tensor:
    return torch.from_numpy(_pattern(x.numel())).reshape(x.shape)


def _pattern(n: int) -> Array:
    """Return numbers of both signs without a period."""
    return np.cos(np.arange(n, dtype=np.float64))


# --- the reference ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Data:
    """One sample; ``weights`` are those of the relevances in the sum that is differentiated."""

    sample: Sample
    x: Array
    relevance: Array
    weights: Array


@dataclass(frozen=True)
class _Value:
    """<r, weights>, how far rounding can take it, and the signs that may not change on the way."""

    value: float
    off: float
    signs: tuple[Any, ...]


def _samples(problem: Problem) -> list[_Data]:
    data = [
        rows(t, batched=problem.batched) for t in (problem.x.detach(), problem.relevance, _weights(problem.x.detach()))
    ]
    shape = tuple(problem.x.shape)
    return [_Data(Sample(i, shape, problem.batched), *of_sample) for i, of_sample in enumerate(zip(*data, strict=True))]


def _of_each_sample(problem: Problem, value: Callable[[_Data, Array], _Value]) -> tuple[Array, Array]:
    found = [_slopes(partial(value, data), data.x, np.eye(len(data.x))) for data in _samples(problem)]
    return np.array([slopes for slopes, _ in found]), np.array([limits for _, limits in found])


def _value(described: Layer, of: Variant, data: _Data) -> _Value:
    parts = of.parts(affine(described, data.x, of.zero_params), data.sample)
    r = ref.relevance(parts, data.relevance, of.stabilizer)
    off = bound(parts, data.relevance, of.stabilizer, _MODEL).worst
    live = data.relevance != 0
    signs = [
        (part.denominator[live] < 0).tobytes() + (b"" if part.gate is None else part.gate[live].tobytes())
        for part in parts
    ]
    parameters = (
        [(p < 0).tobytes() for p in (described.weight, described.bias) if p is not None]
        if isinstance(described, Weighted)
        else []
    )
    return _Value(
        float(r @ data.weights), float(np.abs(data.weights) @ off), ((data.x < 0).tobytes(), *signs, *parameters)
    )


def _slopes(value: Callable[[Array], _Value], start: Array, directions: Array) -> tuple[Array, Array]:
    """Return the slopes along directions, and how far truncation, told by halving the step, and rounding take them."""
    slopes, limits = np.zeros(len(directions)), np.zeros(len(directions))
    for index, direction in enumerate(directions):
        points = {k: value(start + k * _STEP * direction) for k in (-2.0, -1.0, -0.5, 0.5, 1.0, 2.0)}
        # fourth order: (8 (f(h) - f(-h)) - (f(2h) - f(-2h))) / 12h, for h and for h / 2
        coarse, fine = (
            (8 * (points[k].value - points[-k].value) - (points[2 * k].value - points[-2 * k].value)) / (12 * k * _STEP)
            for k in (1.0, 0.5)
        )
        rounding = max(point.off for point in points.values()) * 18 / (12 * 0.5 * _STEP)
        kink = len({point.signs for point in points.values()}) > 1
        # the error of the fine one is a sixteenth of the coarse one's: their difference is fifteen times as large
        slopes[index] = fine
        limits[index] = np.inf if kink else abs(coarse - fine) + rounding
    return slopes, limits
