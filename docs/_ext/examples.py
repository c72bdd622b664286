"""The worked example of each card, computed by the reference when the site is built."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from facts import FUNCTIONS, GRADIENT, table

from reference import layers, rules
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


def _number(value: float) -> str:
    return f"{value + 0.0:.10g}"


def _vector(values: Array) -> str:
    return "(" + ", ".join(map(_number, values)) + ")"


def example(rule: str) -> str:
    """Return the example in Markdown."""
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
    book = ledger(found, R, EPSILON).total()
    sinks = ("inputs: sum(r)", "bias", "stabilizer", "zero branch", "together: sum(R)")
    numbers = (float(r.sum()), book.bias, book.stabilizer, book.zero_branch, float(R.sum()))
    text.append(table(("part", "relevance"), zip(sinks, map(_number, numbers), strict=True)))
    return "\n\n".join(text)
