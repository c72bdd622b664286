"""What libraries compute in place of a rule: with it, an entry excuses a case for what the library answered there.

A failing case says in its details which entry of the relevance was furthest off, and what the subject answered. That
number has to be the formula's, within what rounding explains of the formula.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from reference import rules as ref
from reference.affine import negative, positive, same
from reference.layers import Affine, LinearLayer, affine
from reference.ledger import ledger
from reference.precision import model_for
from reference.rounding import CallableStabilizer, bound
from reference.rules import Part
from verify.checks.agreement import rows
from verify.checks.carrying import carried
from verify.formats.torch_layers import describe
from verify.questions import networks
from verify.questions.covering.arrays import DEPTHS
from verify.questions.covering.rows import by_id
from verify.questions.drawing import draw
from verify.questions.fixed import as_fixed
from verify.questions.layers import LAYERS, LayerCase
from verify.questions.variants import VARIANTS, Sample, Variant

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from reference.affine import Change
    from reference.precision import Model
    from verify.model import Outcome, Problem
    from verify.questions.fixed import Fixing

    Array = NDArray[np.float64]
    Arguments = Mapping[str, Any]
    #: A layer at one input, the rule's arguments, and what they are for the reference: to parts and a stabilizer.
    Formula = Callable[[Affine, Arguments, Variant], tuple[tuple[Part, ...], Any]]


def _unsigned_epsilon(layer: Affine, arguments: Arguments, _of: Variant) -> tuple[tuple[Part, ...], Any]:
    """Epsilon, with d + epsilon for both signs of d."""
    epsilon = arguments.get("epsilon", 1e-6)
    return ref.epsilon(layer), CallableStabilizer(lambda d: d + epsilon, roundings=1, jumps=False)


def _positive_weights(layer: Affine, _arguments: Arguments, of: Variant) -> tuple[tuple[Part, ...], Any]:
    """Relevance x * A(w+)^T s, with s = R / S(A(w+) x + b)."""
    return (_part(layer, (positive, same, layer.x)),), of.stabilizer


def _amplified_weights(layer: Affine, arguments: Arguments, of: Variant) -> tuple[tuple[Part, ...], Any]:
    """Relevance x * A(w + g w+)^T s, with s = R / S(A(w + g w+) x + b), whatever the sign of z."""
    return (_part(layer, (_more(arguments, positive), same, layer.x)),), of.stabilizer


def _module_with_changed_parameters(layer: Affine, arguments: Arguments, of: Variant) -> tuple[tuple[Part, ...], Any]:
    """Each pass runs the module itself, with parameters changed one by one; what else is constant in it stays.

    In batch normalisation, - A(w) running_mean is such a constant: it goes with the weight, and not with the bias.
    """
    return _passes(layer, arguments, of, same), of.stabilizer


def _zeroed_by_substring(layer: Affine, arguments: Arguments, of: Variant) -> tuple[tuple[Part, ...], Any]:
    """``zero_params`` is a text, and every parameter whose name is within it is zero.

    All but the passes without bias, which get a list: there names match whole.
    """
    return _passes(layer, arguments, of, np.zeros_like), of.stabilizer


def _bounds_in_single_precision(layer: Affine, arguments: Arguments, of: Variant) -> tuple[tuple[Part, ...], Any]:
    """ZBox, with bounds that are numbers rounded to float32."""
    rounded = {name: float(np.float32(arguments[name])) for name in ("low", "high")}
    return _passes(layer, {**arguments, **rounded}, of, same), of.stabilizer


def _bias_by_magnitude(layer: Affine, _arguments: Arguments, of: Variant) -> tuple[tuple[Part, ...], Any]:
    """The rule without the bias, of what `_left_by_the_bias` leaves of the relevance."""
    return of.parts(_without_bias(layer), Sample(0, (1,), batched=True)), of.stabilizer


def _left_by_the_bias(layer: Affine, of: Variant, model: Model) -> tuple[Array, Array]:
    """The share |z| / (|z| + |b| + epsilon) of each output, z without the bias b, and how far rounding can take it."""
    bare = _without_bias(layer)
    (part,) = ref.epsilon(bare)
    z, whole = np.abs(bare.z), np.abs(bare.z) + np.abs(layer.b) + of.stabilizer.epsilon
    left = np.divide(z, whole, out=np.zeros_like(z), where=whole > 0)
    # z is a rounded sum; then there are an addition or two, a division, and the product with the relevance
    moved = np.divide(part.magnitude, whole, out=np.zeros_like(z), where=whole > 0)
    return left, model.gamma(part.products + 4) * moved + model.gamma(8) * left


def _without_bias(layer: Affine) -> Affine:
    without: Any = layer.layer
    return affine(replace(without, bias=None) if layer.bias is not None else without, layer.x)


def _stabilizer_counts_twice(layer: Affine, _arguments: Arguments, of: Variant) -> tuple[tuple[Part, ...], Any]:
    """Bilinear with (R / 2) / S(O) in place of R / S(2 O)."""
    return of.parts(layer, Sample(0, (1,), batched=True)), ref.Stabilizer(2 * of.stabilizer.epsilon)


def _passes(layer: Affine, arguments: Arguments, of: Variant, first: Change) -> tuple[Part, ...]:
    """Return the passes of each rule; ``first`` changes all parameters of those that have the bias."""

    def with_bias(change: Change, v: Array) -> tuple[Change, Change, Array]:
        return (lambda w: first(change(w))), (lambda b: first(change(b))), v

    def without(change: Change, v: Array) -> tuple[Change, Change, Array]:
        return change, np.zeros_like, v

    x, plus, minus, ones = layer.x, positive(layer.x), negative(layer.x), np.ones_like(layer.x)
    if of.rule == "ZBox":
        low, high = (np.full_like(x, -arguments[name]) for name in ("low", "high"))
        box = [with_bias(same, x), with_bias(positive, low), with_bias(negative, high)]
        whole, *bounds = (_part(layer, term) for term in box)
        bias = whole.bias - bounds[0].bias - bounds[1].bias
        return (Part(tuple(term for part in (whole, *bounds) for term in part.terms), bias),)
    if of.rule in {"Gamma", "AlphaBeta", "ZPlus"}:
        more, less = (_more(arguments, half) if of.rule == "Gamma" else half for half in (positive, negative))
        first_half = _part(layer, with_bias(more, plus), without(less, minus))
        second_half = _part(layer, with_bias(less, plus), without(more, minus))
        if of.rule == "ZPlus":
            return (first_half,)
        if of.rule == "Gamma":
            return replace(first_half, gate=layer.z > 0), replace(second_half, gate=layer.z < 0)
        alpha, beta = arguments.get("alpha", 2.0), arguments.get("beta", 1.0)
        return replace(first_half, coefficient=alpha), replace(second_half, coefficient=-beta)
    term = {
        "Epsilon": with_bias(same, x),
        "WSquare": with_bias(np.square, ones),
        "Flat": without(np.ones_like, ones),
    }[of.rule]
    return (_part(layer, term),)


def _more(arguments: Arguments, half: Change) -> Change:
    gamma = arguments.get("gamma", 0.25)
    return lambda w: w + gamma * half(w)


def _part(layer: Affine, *terms: tuple[Change, Change, Array]) -> Part:
    """Return the part whose terms are passes through the module: changes of weight and bias, and an input v."""
    weight, module = layer.weight, layer.layer
    bias: Array = np.zeros(len(layer.z))
    for of_weight, of_bias, _ in terms:
        if isinstance(module, LinearLayer):
            constant = None if layer.bias is None else of_bias(layer.bias)
            bias = bias + module.offset(constant, None if weight is None else of_weight(weight))
        else:
            bias = bias + layer.b
    return Part(tuple((layer.A(of_weight), v) for of_weight, _, v in terms), bias)


FORMULAS: dict[str, Formula] = {
    "unsigned-epsilon": _unsigned_epsilon,
    "positive-weights": _positive_weights,
    "amplified-weights": _amplified_weights,
    "module-with-changed-parameters": _module_with_changed_parameters,
    "zeroed-by-substring": _zeroed_by_substring,
    "bounds-in-single-precision": _bounds_in_single_precision,
    "bias-by-magnitude": _bias_by_magnitude,
    "stabilizer-counts-twice": _stabilizer_counts_twice,
}
#: What a formula takes of the relevance before it divides it.
LEFT: dict[str, Callable[[Affine, Variant, Model], tuple[Array, Array]]] = {"bias-by-magnitude": _left_by_the_bias}


def _asked(id_: str, seed: int) -> tuple[LayerCase, Variant, Callable[[], Problem]] | None:
    """Return what a case asks; None for one of a large layer, of which some entries alone are known."""
    _, rest = id_.split("/", 1)
    for depth in DEPTHS:
        if question := by_id(depth, seed).get(rest):
            return question.layer, question.variant, question.problem
        if "," not in id_:
            break
    rule, layer_name, variant_name, kind, dtype = rest.split("/")
    layer = next((layer for layer in LAYERS if layer.name == layer_name), None)
    of = next((variant for variant in VARIANTS if (variant.rule, variant.name) == (rule, variant_name)), None)
    if layer is not None and of is not None:
        return layer, of, partial(draw, layer, kind, dtype, seed)
    for layer, its_kind, of in networks.grid():
        if (of.rule, layer.name, of.name, its_kind) == (rule, layer_name, variant_name, kind):
            return layer, of, partial(networks.drawn, layer, kind, dtype, seed)
    return None


def gives(formula: str, outcome: Outcome, *, seed: int = 0, device: str = "cpu", subject: Fixing | None = None) -> bool:
    """Whether the formula gives what the subject answered where it was furthest off."""
    where = outcome.details.get("worst entry")
    if outcome.check not in {"agreement", "conservation"} or where is None:
        return False
    found = _asked(outcome.id, seed)
    if found is None:
        return False
    layer, of, of_problem = found
    if subject is not None:
        of = as_fixed(of, subject)
    dtype = outcome.dtype
    if any(isinstance(of.arguments(layer.shape, torch.float64).get(name), torch.Tensor) for name in ("low", "high")):
        return False  # formulas here know bounds that are numbers
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of its layers
        problem = of_problem()
    x, R = (rows(t, batched=problem.batched)[where["sample"]] for t in (problem.x, problem.relevance))
    at = affine(describe(problem.module, layer.sample_shape), x, of.zero_params)
    parts, stabilizer = FORMULAS[formula](at, of.arguments(tuple(problem.x.shape), problem.x.dtype), of)
    model = model_for(dtype, device)
    if formula in LEFT:
        left, moved = LEFT[formula](at, of, model)
        off = np.stack([np.abs(R) * moved] * 2)
        R = left * R
    else:
        off = np.zeros((2, R.size))
    relevance = ref.relevance(parts, R, stabilizer)
    limit = bound(parts, R, stabilizer, model)
    if off.any():
        limit = replace(limit, worst=carried(parts, R, off, stabilizer, model)[0])
    if outcome.check == "conservation":
        expected = float(relevance.sum())
        room = ledger(parts, R, stabilizer).inputs_bound(limit, relevance)
    else:
        expected, room = float(relevance[where["entry"]]), float(limit.worst[where["entry"]])
    # where rounding decides the sign of a denominator, the formula says nothing against the answer
    return room == np.inf or abs(where["got"] - expected) <= room
