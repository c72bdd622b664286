"""Check ``second-order`` through two layers with the rule, and one between them: the derivative goes through all three.

In a derivative of a relevance, a layer that relevance has come through is an ordinary layer: its rule is no part of
that pass. One layer alone cannot tell, since nothing is below it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from reference import rules as ref
from reference.base import NonlinearLayer
from reference.layers import Weighted, affine
from reference.rounding import bound, product_bound
from verify.checks.agreement import content, gradient_rule, rows
from verify.checks.carrying import carried
from verify.checks.differences import Value, signs
from verify.checks.second_order import (
    MODEL,
    VARIANTS,
    away_from_zero,
    derivatives,
    finding,
    of_each_sample,
    of_parameters,
    outwards,
    samples,
)
from verify.formats.torch_layers import array, describe
from verify.model import Case, Finding, Level, NotOfferedError
from verify.questions.fixed import as_fixed
from verify.questions.layers import LayerCase
from verify.questions.variants import Variant, variant

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from reference.affine import Affine
    from verify.checks.second_order import Data
    from verify.model import Problem, Subject
    from verify.questions.drawing import Draw

    Array = NDArray[np.float64]


@dataclass(frozen=True)
class Chain:
    """Two layers with an activation between them, which has a rule of its own, or none."""

    lower: LayerCase
    upper: LayerCase
    between: type[nn.Tanh | nn.ReLU]
    rule: str | None = None

    @property
    def name(self) -> str:
        """Part of the ids."""
        return f"{self.lower.name}-{self.between.__name__.lower()}-{self.upper.name}"


_LINEAR = (
    LayerCase("linear-4-3", "Linear", lambda: nn.Linear(4, 3), (2, 4)),
    LayerCase("linear-3-2", "Linear", lambda: nn.Linear(3, 2), (2, 3)),
)
_CONV = (
    LayerCase("conv1d-1-2", "Conv1d", lambda: nn.Conv1d(1, 2, 3, padding=1), (2, 1, 4)),
    LayerCase("conv1d-2-1", "Conv1d", lambda: nn.Conv1d(2, 1, 2, stride=2), (2, 2, 4)),
)
#: Each rule is put on both layers; then the rules for activations between two layers with Epsilon.
CHAINS = (Chain(*_LINEAR, nn.Tanh, "Pass"), Chain(*_CONV, nn.Tanh))
_ACTIVATIONS = ("Pass", "ReLUDeconvNet", "ReLUGuidedBackprop", "ReLUBetaSmooth")


def cases(draw: Draw) -> Iterator[Case]:
    """Yield the cases; in float64, where finite differences mean something."""
    for (rule, name), chain in product(VARIANTS, CHAINS):
        yield from _cases(f"second-order/{rule}/{chain.name}/{name}", rule, chain, draw, variant(rule, name))
    epsilon = variant("Epsilon", "epsilon=0.3")
    for rule in _ACTIVATIONS:
        chain = Chain(*_LINEAR, nn.ReLU, rule)
        yield from _cases(f"second-order/{rule}/{chain.name}/default", rule, chain, draw, epsilon)


def _cases(id_: str, rule: str, chain: Chain, draw: Draw, of: Variant) -> Iterator[Case]:
    family = "Activation" if rule == chain.rule else chain.lower.family
    for which, run in (("", _by_input), ("/parameters", _by_parameters)):
        yield Case(
            id=id_ + which, rule=rule, layer=family, check="second-order", dtype="float64", level=Level.MUST,
            run=partial(run, draw, chain, of),
        )  # fmt: skip


def _by_input(draw: Draw, chain: Chain, of: Variant, subject: Subject) -> Finding:
    problem, of = _problem(draw, chain), as_fixed(of, subject)
    (got,) = derivatives(_rules(subject, of, chain, problem), problem, lambda x: [x])
    layers = _Layers.of(problem.module, chain)
    wanted, room = of_each_sample(problem, partial(_value, layers, of), (chain, layers, content(of, problem)))
    return finding(rows(got, batched=True), wanted, room)


def _by_parameters(draw: Draw, chain: Chain, of: Variant, subject: Subject) -> Finding:
    problem, of = _problem(draw, chain), as_fixed(of, subject)
    module: Any = problem.module
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(outwards(parameter))
    gradients = derivatives(_rules(subject, of, chain, problem), problem, lambda _: list(module.parameters()))
    layers, data = _Layers.of(module, chain), samples(problem)

    def value(which: str, name: str, at: Array) -> Value:
        changed = layers.but(which, name, at)
        return Value.total([_value(changed, of, one, one.x) for one in data])

    places = product(("lower", "upper"), ("weight", "bias"))
    return of_parameters(
        (
            (partial(value, which, name), array(getattr(getattr(module, which), name)), array(gradient))
            for (which, name), gradient in zip(places, gradients, strict=True)
        ),
        (chain, layers, content(of, problem), data),
    )


# --- the subject ------------------------------------------------------------------------------------------------------


class _Network(nn.Module):
    def __init__(self, lower: nn.Module, between: nn.Module, upper: nn.Module) -> None:
        super().__init__()
        self.lower, self.between, self.upper = lower, between, upper

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.upper(self.between(self.lower(x)))
        return out


def _problem(draw: Draw, chain: Chain) -> Problem:
    below, above = (draw(layer, "signed", "float64") for layer in (chain.lower, chain.upper))
    return away_from_zero(replace(above, module=_Network(below.module, chain.between(), above.module), x=below.x))


def _rules(subject: Subject, of: Variant, chain: Chain, problem: Problem) -> list[tuple[Any, nn.Module]]:
    network: Any = problem.module
    if chain.rule is not None and subject.parameters.get(chain.rule):
        msg = f"{subject.spec} fixes parameters of {chain.rule}; between two layers, it is asked with the default"
        raise NotOfferedError(msg)
    rule = subject.get(of.rule)
    pairs = [
        (rule(**of.arguments(layer.shape, problem.x.dtype)), module)
        for layer, module in ((chain.lower, network.lower), (chain.upper, network.upper))
    ]
    return pairs if chain.rule is None else [*pairs, (subject.get(chain.rule)(), network.between)]


# --- the reference ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Layers:
    """The network as the reference knows it."""

    lower: Weighted
    upper: Weighted
    chain: Chain

    @classmethod
    def of(cls, network: Any, chain: Chain) -> _Layers:
        lower = describe(network.lower, chain.lower.sample_shape)
        upper = describe(network.upper, chain.upper.sample_shape)
        assert isinstance(lower, Weighted)
        assert isinstance(upper, Weighted)
        return cls(lower, upper, chain)

    def but(self, which: str, name: str, value: Array) -> _Layers:
        """Return the network with another parameter."""
        layer = getattr(self, which)
        parameter: Any = {name: value.reshape(getattr(layer, name).shape)}
        changed: Any = {which: replace(layer, **parameter)}
        return replace(self, **changed)


def _value(layers: _Layers, of: Variant, data: Data, x: Array) -> Value:
    chain, zero_params, stabilizer = layers.chain, of.zero_params, of.stabilizer
    below = affine(layers.lower, x, zero_params)
    between = affine(describe(chain.between(), below.z.shape), below.z)
    upper = replace(data.sample, batch_shape=chain.upper.shape)
    above = of.parts(affine(layers.upper, between.z, zero_params), upper)
    R, limit = ref.relevance(above, data.relevance, stabilizer), bound(above, data.relevance, stabilizer, MODEL)
    down, off = _down(between, chain.rule, R, np.stack([limit.worst, limit.probable]))
    parts = of.parts(below, data.sample)
    r, off = ref.relevance(parts, down, stabilizer), carried(parts, down, off, stabilizer, MODEL)
    parameters = [p for layer in (layers.lower, layers.upper) for p in (layer.weight, layer.bias) if p is not None]
    kinks = (
        *((v < 0).tobytes() for v in (x, below.z, R, *parameters)),
        *signs(above, data.relevance),
        *signs(parts, down),
    )
    return Value(float(r @ data.weights), float(np.abs(data.weights) @ off[0]), kinks)


def _down(between: Affine, rule: str | None, R: Array, off: Array) -> tuple[Array, Array]:
    """Return what the activation hands down, and how far rounding can take that: no activation here has a slope > 1."""
    if rule is not None:
        r, limit = gradient_rule(rule, between.layer, between.x, R, {}, MODEL)
        return r, off + limit.worst
    assert isinstance(between.layer, NonlinearLayer)
    slope, size = np.diagonal(between.A()), np.diagonal(between.layer.sizes(between.x)[1])
    return slope * R, off + product_bound(size, R, between.layer.roundings, MODEL).worst
