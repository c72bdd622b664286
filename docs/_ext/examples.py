"""The worked example of each card, computed by the reference when the site is built."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from facts import FUNCTIONS, GRADIENT, NETWORKS, table

from reference import layers, network_rules, operations, rules
from reference.ledger import ledger

if TYPE_CHECKING:
    from reference.rules import Parts
    from reference.windows import Array

WEIGHT = np.array([[1.0, 1.0, -1.0], [-2.0, -1.0, 0.0]])
BIAS = np.array([0.5, -1.0])
X = np.array([2.0, -1.0, 1.0])
R = np.array([1.0, -2.0])
EPSILON = 0.5
ARGUMENTS = {"Gamma": {"gamma": 0.25}, "AlphaBeta": {"alpha": 2.0, "beta": 1.0}, "ZBox": {"low": -2.0, "high": 3.0}}
GIVEN = np.array([2.0, -1.0, 0.0])
SENT = np.array([1.0, -2.0, 3.0])


def parts(rule: str) -> Parts:
    """Return the parts of a rule on the layer of the example."""
    layer = layers.affine(layers.Linear((3,), WEIGHT, BIAS), X)
    found: Parts = getattr(rules, FUNCTIONS[rule])(layer, **ARGUMENTS.get(rule, {}))
    return found


def gradient(rule: str) -> Array:
    """Return the relevance of a rule that looks only at the gradient, on ReLU."""
    function = getattr(rules, FUNCTIONS[rule])
    inputs = {"ReLUGuidedBackprop": (np.where(GIVEN > 0, 1.0, 0.0), SENT), "ReLUBetaSmooth": (GIVEN, SENT)}
    found: Array = function(*inputs.get(rule, (SENT,)))
    return found


def network(rule: str) -> tuple[str, Parts, Array, Any]:
    """Return what a rule for networks is shown on: in words, its parts, R, and its stabilizer."""
    product = operations.Product((3,), ((2,), (1,)), (None, None))
    matmul = operations.MatMul((4,), ((1, 2), (2, 1)), (None, None))
    norm = operations.LayerNorm((2,), np.array([2.0, 4.0]), np.array([1.0, 2.0]), 0.75, axes=1)
    softmax = layers.Softmax((2,), axis=0)
    given: dict[str, tuple[str, Any, list[float], list[float], Any]] = {
        "Uniform": ("The product of (2, 3) and 5", product, [2.0, 3.0, 5.0], [4.0, 6.0], network_rules.COUNTED),
        "SignalTakesAll": (
            "The product of (2, 3), the signal, and 5, its gate", product, [2.0, 3.0, 5.0], [4.0, 6.0],
            network_rules.COUNTED,
        ),
        "Bilinear": (
            f"A = (1, 2) times V = (3, 5): O = 13. The stabilizer is {_number(6.0)}", matmul, [1.0, 2.0, 3.0, 5.0],
            [64.0], rules.Stabilizer(6.0),
        ),
        "Softmax": ("A softmax of (3, 3): s = (1/2, 1/2)", softmax, [3.0, 3.0], [4.0, 6.0], network_rules.UNDIVIDED),
        "Stop": ("A softmax of (3, 3)", softmax, [3.0, 3.0], [4.0, 6.0], rules.Stabilizer(EPSILON)),
        "LayerNormRule": (
            "A LayerNorm with weight (2, 4), bias (1, 2) and eps = 3/4: sigma is 1. The stabilizer is 2", norm,
            [2.0, 1.0], [4.0, 4.0], rules.Stabilizer(2.0),
        ),
    }  # fmt: skip
    words, operation, x, R, stabilizer = given[rule]
    layer = layers.affine(operation, np.array(x))
    if rule == "SignalTakesAll":
        return words, network_rules.signal_takes_all(layer, 0), np.array(R), stabilizer
    return words, getattr(network_rules, NETWORKS[rule])(layer), np.array(R), stabilizer


def _of_network(rule: str) -> str:
    words, found, R, stabilizer = network(rule)
    r = rules.relevance(found, R, stabilizer)
    return "\n\n".join(
        (
            f"{words}. The relevance sent back is R = {_vector(R)}.",
            f"Relevance of the inputs, one after the other: **r = {_vector(r)}**.",
            "The [ledger](../mathematics/ledger.md), which says where R went:",
            _sinks(found, R, stabilizer, r),
        )
    )


def _sinks(found: Parts, R: Array, stabilizer: Any, r: Array) -> str:
    book = ledger(found, R, stabilizer).total()
    sinks = ("inputs: sum(r)", "bias", "stabilizer", "zero branch", "together: sum(R)")
    numbers = (float(r.sum()), book.bias, book.stabilizer, book.zero_branch, float(R.sum()))
    return table(("part", "relevance"), zip(sinks, map(_number, numbers), strict=True))


def _number(value: float) -> str:
    return f"{value + 0.0:.10g}"


def _vector(values: Array) -> str:
    return "(" + ", ".join(map(_number, values)) + ")"


def example(rule: str) -> str:
    """Return the example in Markdown."""
    if rule in NETWORKS:
        return _of_network(rule)
    if rule in GRADIENT:
        rows = zip(map(_number, GIVEN), map(_number, SENT), map(_number, gradient(rule)), strict=True)
        return "A ReLU with three inputs:\n\n" + table(("x", "R", "r"), rows)
    arguments = "".join(f", {name} = {_number(value)}" for name, value in ARGUMENTS.get(rule, {}).items())
    weight = ", ".join(map(_vector, WEIGHT))
    opening = (
        f"A linear layer with w = ({weight}), b = {_vector(BIAS)}, at x = {_vector(X)}. It puts out "
        f"z = {_vector(WEIGHT @ X + BIAS)}; the relevance sent back is R = {_vector(R)}. "
        f"The stabilizer is {_number(EPSILON)}{arguments}."
    )
    text = [opening]
    found = parts(rule)
    stabilize = rules.Stabilizer(EPSILON)
    for number, part in enumerate(found, 1):
        closed = np.zeros(len(R), np.bool_) if part.gate is None else ~part.gate
        d = part.denominator
        rows = [
            (j + 1, _number(d[j]), _number(stabilize(d)[j]), "closed" if closed[j] else _number(s))
            for j, s in enumerate(part.shares(R, stabilize))
        ]
        name = f"Part {number}, coefficient {_number(part.coefficient)}:" if len(found) > 1 else "Denominators:"
        text += [name, table(("output", "d", "S(d)", "s = R / S(d)"), rows)]
    r = rules.relevance(found, R, EPSILON)
    text += [
        f"Relevance of the inputs: **r = {_vector(r)}**.",
        "The [ledger](../mathematics/ledger.md), which says where R went:",
    ]
    text.append(_sinks(found, R, EPSILON, r))
    return "\n\n".join(text)
