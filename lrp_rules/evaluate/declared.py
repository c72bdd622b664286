"""The plain path: relevance and ledger computed exactly as a rule declares them, without anything for speed."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from lrp_rules.layers.known import gated, pull
from lrp_rules.parts import one, same

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from lrp_rules.layers.layer import Layer, Matrix
    from lrp_rules.parts import Change, Part, Parts, Vector


def at(vector: Change | Vector, layer: Layer) -> Tensor:
    """Return the vector v of a term, for one call of the layer."""
    v: Tensor = vector(layer.x) if callable(vector) else vector.at(layer)
    return v


def relevance(parts: Parts, layer: Layer, R: Tensor, stabilizer: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the relevance of the input."""
    r = torch.zeros_like(layer.x)
    for part, terms, d in _denominators(parts, layer):
        s = _open(part, layer, R / stabilizer(d))
        for A, v in terms:
            r = r + part.coefficient * (v * (A.T @ s))
    return r


class Ledger(NamedTuple):
    """Where the relevance of each output goes: four tensors like R, which add up to it."""

    inputs: Tensor
    bias: Tensor
    stabilizer: Tensor
    #: R of outputs at which all gates of the rule are closed.
    zero_branch: Tensor


def ledger(parts: Parts, layer: Layer, R: Tensor, stabilizer: Callable[[Tensor], Tensor]) -> Ledger:
    """Return where the relevance of each output goes."""
    inputs, bias, stabilized, closed = (torch.zeros_like(R) for _ in range(4))
    if any(part.gate for part in parts):
        closed = torch.where(layer.z == 0, R, closed)
    for part, terms, d in _denominators(parts, layer):
        S = stabilizer(d)
        s = part.coefficient * _open(part, layer, R / S)
        # summed from the products: d - b may have lost their digits
        inputs = inputs + s * sum(A @ v for A, v in terms)
        bias = bias + s * (0 if part.bias is None else part.bias(layer.bias))
        stabilized = stabilized + s * (S - d)
    return Ledger(inputs, bias, stabilized, closed)


def parameter_relevance(
    parts: Parts, layer: Layer, R: Tensor, stabilizer: Callable[[Tensor], Tensor], name: str
) -> Tensor:
    """Return the relevance of each entry of the weight or the bias: the sum of what passes through it.

    All weights have what all inputs have, and all biases what the ledger's bias has.
    """
    like = layer.given[name]
    assert like is not None
    found = torch.zeros_like(like)
    for part, terms, d in _denominators(parts, layer):
        s = part.coefficient * _open(part, layer, R / stabilizer(d))
        if name == "bias":
            if part.bias is not None and layer.parameters["bias"] is not None:
                b = part.bias(layer.bias)
                found = found + (s * b).sum_to_size(b.shape).reshape(like.shape)
            continue
        weight = layer.parameters[name]
        assert weight is not None
        for (change, _), (_, v) in zip(part.terms, terms, strict=True):
            w = change(weight)
            # A(w) v is linear in w: w times its derivative is the share of each w
            derived = w.requires_grad and torch.is_grad_enabled()
            end = w.view_as(w) if derived else w.detach().requires_grad_()
            with torch.enable_grad():
                output = layer.but(given={**layer.given, name: end}, zero_params=(), memo={}, start=None).matrix() @ v
            (c,) = pull((output,), (end,), (s,), create_graph=torch.is_grad_enabled())
            found = found + w * c
    return found


def _denominators(parts: Parts, layer: Layer) -> Iterator[tuple[Part, list[tuple[Matrix, Tensor]], Tensor]]:
    """Yield each part with its matrices, their vectors, and its denominator."""
    for part in parts:
        # a rule that does not use the input linearises a nonlinear module at ones
        here = layer.at(torch.ones_like(layer.x)) if all(vector is one for _, vector in part.terms) else layer
        terms = [(here.matrix(None if change is same else change), at(vector, layer)) for change, vector in part.terms]
        (A, v), *more = terms
        d = A @ v
        for A, v in more:
            d = d + A @ v
        yield part, terms, d if part.bias is None else d + part.bias(here.bias)


def _open(part: Part, layer: Layer, s: Tensor) -> Tensor:
    """Return s where the gate of the part is open, 0 elsewhere."""
    return s if part.gate == 0 else gated(s, layer.z if part.gate > 0 else -layer.z)
