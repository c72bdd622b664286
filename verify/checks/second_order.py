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
from reference.operations import Normalization
from reference.precision import model_for
from reference.rounding import bound
from verify.checks.agreement import content, gradient_rule, judge, rows
from verify.checks.differences import Value, differentiate, pattern, signs
from verify.formats.operands import ruled
from verify.formats.remembered import remembered
from verify.formats.torch_layers import array, describe
from verify.model import Case, Finding
from verify.questions.fixed import arguments_as_fixed, as_fixed
from verify.questions.variants import Sample, Variant, level, variant
from verify.subjects.answering import told

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from reference.layers import Layer
    from verify.model import Problem, Subject
    from verify.questions.drawing import Draw
    from verify.questions.layers import LayerCase

    Array = NDArray[np.float64]

#: Those with a stabilizer that is felt.
VARIANTS = (
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
MODEL = model_for("float64")
#: Output entries nearer to zero than this get no relevance where parameters move, and with them each denominator.
_MARGIN = 0.125


def cases(
    draw: Draw, layers: Sequence[LayerCase], gradient: Sequence[tuple[str, dict[str, float], LayerCase]]
) -> Iterator[Case]:
    """Yield the cases of this check; in float64, where finite differences mean something.

    ``gradient`` holds the rules that look only at the gradient, with arguments and a layer each.
    """
    for (rule, name), layer in product(VARIANTS, layers):
        if not layer.linear and rule not in {"Epsilon", "Norm"}:
            continue
        of = variant(rule, name)
        yield _case(name, rule, layer, partial(by_input, draw, layer, of))
        if layer.weighted:
            yield _case(f"{name}/parameters", rule, layer, partial(by_parameters, draw, layer, of))
    for rule, arguments, layer in gradient:
        name = "-".join(f"{key}={value:g}" for key, value in arguments.items()) or "default"
        yield _case(name, rule, layer, partial(_of_gradient_rule, draw, layer, rule, arguments))


def _case(name: str, rule: str, layer: LayerCase, run: Callable[[Subject], Finding]) -> Case:
    return Case(
        id=f"second-order/{rule}/{layer.name}/{name}", rule=rule, layer=layer.family, check="second-order",
        dtype="float64", level=level(rule, layer), run=run,
    )  # fmt: skip


def by_input(draw: Draw, layer: LayerCase, of: Variant, subject: Subject) -> Finding:
    """Check the derivative of a relevance by the input."""
    problem, of = away_from_zero(draw(layer, "signed", "float64")), as_fixed(of, subject)
    rule = subject.get(of.rule)(**of.arguments(tuple(problem.x.shape), problem.x.dtype))
    (got,) = derivatives([(rule, problem.module)], problem, lambda x: [x])
    described = describe(problem.module, layer.sample_shape)
    given = (described, content(of, problem))
    wanted, room = of_each_sample(problem, lambda data, x: _value(described, of, replace(data, x=x)), given)
    return finding(rows(got, batched=problem.batched), wanted, room)


def by_parameters(draw: Draw, layer: LayerCase, of: Variant, subject: Subject) -> Finding:
    """Check the derivative of a relevance by the parameters of the layer."""
    problem, of = away_from_zero(draw(layer, "signed", "float64")), as_fixed(of, subject)
    module: Any = problem.module
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(outwards(parameter))
        z = module(problem.x)
    problem = replace(problem, relevance=problem.relevance * (z.abs() > _MARGIN))
    rule = subject.get(of.rule)(**of.arguments(tuple(problem.x.shape), problem.x.dtype))
    names = [name for name, _ in module.named_parameters()]
    gradients = derivatives([(rule, module)], problem, lambda _: list(module.parameters()))
    described = describe(module, layer.sample_shape)
    assert isinstance(described, Weighted | Normalization)
    data = samples(problem)

    def value(name: str, at: Array) -> Value:
        parameter: Any = {name: at.reshape(getattr(described, name).shape)}
        changed = replace(described, **parameter)
        return Value.total([_value(changed, of, one) for one in data])

    return of_parameters(
        (
            (partial(value, name), array(getattr(module, name)), array(gradient))
            for name, gradient in zip(names, gradients, strict=True)
        ),
        (described, content(of, problem), data, names),
    )


def _of_gradient_rule(
    draw: Draw, layer: LayerCase, rule_name: str, arguments: dict[str, float], subject: Subject
) -> Finding:
    problem = away_from_zero(draw(layer, "signed", "float64"))
    arguments = arguments_as_fixed(rule_name, arguments, subject)
    (got,) = derivatives([(subject.get(rule_name)(**arguments), problem.module)], problem, lambda x: [x])
    described = describe(problem.module, layer.sample_shape)

    def value(data: Data, x: Array) -> Value:
        r, limit = gradient_rule(rule_name, described, x, data.relevance, arguments, MODEL)
        return Value(float(r @ data.weights), float(np.abs(data.weights) @ limit.worst), ((x < 0).tobytes(),))

    return finding(
        rows(got, batched=problem.batched), *of_each_sample(problem, value, (described, rule_name, arguments))
    )


def directional(problem_of: Callable[[], Problem], layer: LayerCase, of: Variant, by: str, subject: Subject) -> Finding:
    """Compare the derivative of a problem by its input, or by its parameters, along two directions."""
    problem, of = away_from_zero(problem_of()), as_fixed(of, subject)
    module: Any = problem.module
    parameters = dict(module.named_parameters()) if by == "parameters" else {}
    if parameters:
        with torch.no_grad():
            for parameter in parameters.values():
                parameter.add_(outwards(parameter))
            z = module(problem.x)
        problem = replace(problem, relevance=problem.relevance * (z.abs() > _MARGIN))
    rule = subject.get(of.rule)(**of.arguments(tuple(problem.x.shape), problem.x.dtype))
    found = derivatives([(rule, module)], problem, lambda x: list(parameters.values()) or [x])
    described = describe(module, layer.sample_shape)
    data = samples(problem)

    def of_parameter(name: str, at: Array) -> Value:
        parameter: Any = {name: at.reshape(getattr(described, name).shape)}
        changed = replace(described, **parameter)
        return Value.total([_value(changed, of, one) for one in data])

    def of_input(at: Array) -> Value:
        moved = at.reshape(len(data), -1)
        return Value.total([_value(described, of, replace(one, x=x)) for one, x in zip(data, moved, strict=True)])

    given = (described, content(of, problem), data, list(parameters))
    if not parameters:
        (gradient,) = found
        return of_parameters([(of_input, array(problem.x), array(gradient))], given)
    return of_parameters(
        (
            (partial(of_parameter, name), array(parameter), array(gradient))
            for (name, parameter), gradient in zip(parameters.items(), found, strict=True)
        ),
        given,
    )


def of_parameters(parameters: Iterable[tuple[Callable[[Array], Value], Array, Array]], given: object) -> Finding:
    """Compare along two directions for each parameter; each entry takes part in both, with other factors.

    A parameter is given by the value as its function, by where it stands, and by the gradient that a subject has found;
    ``given`` is all that the values depend on, as plain data, see `verify.formats.remembered`.
    """
    got, wanted, room = [], [], []
    for number, (value, start, gradient) in enumerate(parameters):
        directions = np.array([pattern(start.size), pattern(start.size)[::-1]])
        slopes, limits = _slopes(value, start.ravel(), directions, "by parameters", number, given)
        got.append(directions @ gradient.ravel())
        wanted.append(slopes)
        room.append(limits)
    return finding(np.array(got), np.array(wanted), np.array(room))


def of_each_sample(problem: Problem, value: Callable[[Data, Array], Value], given: object) -> tuple[Array, Array]:
    """Return the slopes by each entry of the input, and their limits; one row a sample. ``given``: as above."""
    found = [
        _slopes(partial(value, data), data.x, np.eye(len(data.x)), "by inputs", data, given)
        for data in samples(problem)
    ]
    return np.array([slopes for slopes, _ in found]), np.array([limits for _, limits in found])


def _slopes(value: Callable[[Array], Value], start: Array, directions: Array, *given: object) -> tuple[Array, Array]:
    known = remembered(
        lambda: dict(zip(("slopes", "limits"), differentiate(value, start, directions), strict=True)),
        "differences", start, directions, given,
    )  # fmt: skip
    return known["slopes"], known["limits"]


def finding(got: Array, wanted: Array, room: Array) -> Finding:
    """Compare derivatives with the differences of the reference; one row a sample, or a parameter."""
    return judge(got, wanted, room, None, "finite differences of the reference")


# --- the subject ------------------------------------------------------------------------------------------------------


def away_from_zero(problem: Problem) -> Problem:
    """Move the input away from zero, where clamped inputs have a kink."""
    return replace(problem, x=problem.x + outwards(problem.x))


def outwards(t: Tensor) -> Tensor:
    """Return a step away from zero."""
    return torch.where(t < 0, -0.25, 0.25).to(t)


def derivatives(
    rules: Sequence[tuple[Any, nn.Module]], problem: Problem, by: Callable[[Tensor], list[Tensor]]
) -> list[Tensor]:
    """Return the derivatives of <r, weights> by what ``by`` names, given the input; zero where there is no graph.

    ``rules`` holds each rule with the module it is put on, the problem's own or parts of it.
    """
    return told(rules[0][0], lambda: _derivatives(rules, problem, by))


def _derivatives(
    rules: Sequence[tuple[Any, nn.Module]], problem: Problem, by: Callable[[Tensor], list[Tensor]]
) -> list[Tensor]:
    x = problem.x.detach().requires_grad_()
    handles: list[Any] = []
    try:
        handles.extend(rule.register(ruled(module)) for rule, module in rules)
        (r,) = torch.autograd.grad(problem.module(x), x, problem.relevance, create_graph=True)
        value, of = (r * _weights(x)).sum(), by(x)
        found = torch.autograd.grad(value, of, allow_unused=True) if value.requires_grad else [None] * len(of)
    finally:
        for handle in reversed(handles):
            handle.remove()
    return [torch.zeros_like(t) if d is None else d for t, d in zip(of, found, strict=True)]


def _weights(x: Tensor) -> Tensor:
    return torch.from_numpy(pattern(x.numel())).reshape(x.shape)


# --- the reference ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Data:
    """One sample; ``weights`` are those of the relevances in the sum that is differentiated."""

    sample: Sample
    x: Array
    relevance: Array
    weights: Array


def samples(problem: Problem) -> list[Data]:
    """Return the samples of a problem."""
    data = [
        rows(t, batched=problem.batched) for t in (problem.x.detach(), problem.relevance, _weights(problem.x.detach()))
    ]
    shape = tuple(problem.x.shape)
    return [Data(Sample(i, shape, problem.batched), *of_sample) for i, of_sample in enumerate(zip(*data, strict=True))]


def _value(described: Layer, of: Variant, data: Data) -> Value:
    parts = of.parts(affine(described, data.x, of.zero_params), data.sample)
    r = ref.relevance(parts, data.relevance, of.stabilizer)
    off = bound(parts, data.relevance, of.stabilizer, MODEL).worst
    parameters = (
        [(p < 0).tobytes() for p in (described.weight, described.bias) if p is not None]
        if isinstance(described, Weighted)
        else []
    )
    return Value(
        float(r @ data.weights),
        float(np.abs(data.weights) @ off),
        ((data.x < 0).tobytes(), *signs(parts, data.relevance), *parameters),
    )
