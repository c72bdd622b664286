"""What libraries compute in place of a rule: with it, an entry excuses a case for what the library answered there.

A failing case says in its details which entry of the relevance was furthest off, and what the subject answered. That
number has to be the formula's, within what rounding explains of the formula.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from reference import rules as ref
from reference.affine import positive, same
from reference.layers import Affine, LinearLayer, affine
from reference.ledger import ledger
from reference.precision import model_for
from reference.rounding import CallableStabilizer, bound
from reference.rules import Part
from verify.cases import draw
from verify.checks.agreement import rows
from verify.layers import LAYERS
from verify.torch_layers import describe
from verify.variants import VARIANTS, Variant

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from verify.model import Outcome

    Array = NDArray[np.float64]
    Formula = Callable[[Affine, Mapping[str, Any], Variant], tuple[Part, Any]]


def _unsigned_epsilon(layer: Affine, arguments: Mapping[str, Any], _of: Variant) -> tuple[Part, Any]:
    """Epsilon, with d + epsilon for both signs of d."""
    epsilon = arguments.get("epsilon", 1e-6)
    (part,) = ref.epsilon(layer)
    return part, CallableStabilizer(lambda d: d + epsilon, lipschitz=1.0, roundings=1, jumps=False)


def _positive_weights(layer: Affine, _arguments: Mapping[str, Any], of: Variant) -> tuple[Part, Any]:
    """x * A(w+)^T s, with s = R / S(A(w+) x + b)."""
    return _on_weights(layer, positive), of.stabilizer


def _amplified_weights(layer: Affine, arguments: Mapping[str, Any], of: Variant) -> tuple[Part, Any]:
    """x * A(w + g w+)^T s, with s = R / S(A(w + g w+) x + b), whatever the sign of z."""
    gamma = arguments.get("gamma", 0.25)
    return _on_weights(layer, lambda w: w + gamma * positive(w)), of.stabilizer


def _on_weights(layer: Affine, change: Callable[[Array], Array]) -> Part:
    if layer.weight is None or not isinstance(layer.layer, LinearLayer):
        return Part(((layer.A(same), layer.x),), layer.b)
    return Part(((layer.A(change), layer.x),), layer.layer.offset(layer.bias, change(layer.weight)))


FORMULAS: dict[str, Formula] = {
    "unsigned-epsilon": _unsigned_epsilon,
    "positive-weights": _positive_weights,
    "amplified-weights": _amplified_weights,
}


def gives(formula: str, outcome: Outcome, *, seed: int = 0, device: str = "cpu") -> bool:
    """Whether the formula gives what the subject answered where it was furthest off."""
    where = outcome.details.get("worst entry")
    if outcome.check not in {"agreement", "conservation"} or where is None:
        return False
    _, rule, layer_name, variant_name, kind, dtype = outcome.id.split("/")
    layer = next(layer for layer in LAYERS if layer.name == layer_name)
    of = next(variant for variant in VARIANTS if (variant.rule, variant.name) == (rule, variant_name))
    problem = draw(layer, kind, dtype, seed)
    x, R = (rows(t, batched=problem.batched)[where["sample"]] for t in (problem.x, problem.relevance))
    at = affine(describe(problem.module, layer.sample_shape), x, of.zero_params)
    part, stabilizer = FORMULAS[formula](at, of.arguments(tuple(problem.x.shape), problem.x.dtype), of)
    relevance = ref.relevance((part,), R, stabilizer)
    limit = bound((part,), R, stabilizer, model_for(dtype, device))
    if outcome.check == "conservation":
        expected = float(relevance.sum())
        room = ledger((part,), R, stabilizer).inputs_bound(limit, relevance)
    else:
        expected, room = float(relevance[where["entry"]]), float(limit.worst[where["entry"]])
    # where rounding decides the sign of a denominator, the formula says nothing against the answer
    return room == np.inf or abs(where["got"] - expected) <= room
