"""The rules for what lies between layers, one function a formula, as in `reference.rules`.

An operation of several operands has them side by side as its one input x; r is that of all of them, side by side.
"""

from dataclasses import replace

import numpy as np

from reference.affine import Affine, quantum
from reference.nonlinear import Softmax
from reference.operations import Normalization, Operation, Product
from reference.pointwise import LIBRARY
from reference.rounding import CallableStabilizer
from reference.rules import Part, Parts, Sizes, Stabilizer, epsilon

#: S(d) = d, of Uniform and SignalTakesAll, whose denominators count factors.
COUNTED = Stabilizer(0.0)
#: S(d) = 1, of Softmax, which divides by nothing.
UNDIVIDED = CallableStabilizer(np.ones_like, lipschitz=0.0, roundings=0, jumps=False)


def _routed(layer: Affine, receiving: tuple[int, ...]) -> Parts:
    """The same share to each receiving factor, summed where it was broadcast: d is their number, v ones."""
    operation = layer.layer
    assert isinstance(operation, Product)
    matrix = np.concatenate([operation.reads(k) * (k in receiving) for k in operation.variables], axis=1)

    def sizes() -> Sizes:
        return Sizes((matrix,), (np.asarray(matrix, np.float32),), np.zeros(len(matrix)), grain=1.0)

    # where the signal is a constant, its relevance is in the zero branch
    gate = None if set(receiving) & set(operation.variables) else np.zeros(len(matrix), np.bool_)
    return (Part(((matrix, np.ones_like(layer.x)),), np.zeros(len(matrix)), gate=gate, sizes=sizes),)


def uniform(layer: Affine) -> Parts:
    """Uniform: r_k = R / n to each of n factors that are not constant, with `COUNTED`. Achtibat et al. 2024."""
    assert isinstance(layer.layer, Product)
    return _routed(layer, layer.layer.variables)


def signal_takes_all(layer: Affine, signal: int) -> Parts:
    """SignalTakesAll: r = R for the signal and 0 for its gates, with `COUNTED`. Arras et al. 2017."""
    return _routed(layer, (signal,))


def bilinear(layer: Affine) -> Parts:
    """Bilinear: d = n O, r_k = x_k * J_k^T (R / S(d)), for an operation linear in each of n operands.

    n O is the sum of J_k x_k over the operands that are not constant. Achtibat et al. 2024.
    """
    operation = layer.layer
    assert isinstance(operation, Operation)
    matrix = layer.A()

    def sizes() -> Sizes:
        # n itself is multiplied with O, or there are n sums as long as O's
        exact = 0.0 if operation.roundings else quantum(matrix) * quantum(layer.x)
        grain = exact if np.isfinite(exact) else 0.0
        return Sizes((layer.size(),), (layer.count(),), np.zeros(len(matrix)), 1, operation.roundings + 1, grain)

    return (Part(((matrix, layer.x),), np.zeros(len(matrix)), sizes=sizes),)


def softmax(layer: Affine) -> Parts:
    """Softmax: r = x * (R - s * sum R) with `UNDIVIDED`. Achtibat et al. 2024.

    As contributions R_j ((x_j - <s, x>) + (1 - x_j + <s, x>)): the second is the constant of a Taylor expansion at x.
    A masked input, -inf, is none.
    """
    soft = layer.layer
    assert isinstance(soft, Softmax)
    s = soft.value(layer.x)
    x = np.where(np.isneginf(layer.x), 0.0, layer.x)
    together = soft.blocks(np.ones((1, soft.input_shape[soft.axis], soft.input_shape[soft.axis])))
    matrix = np.eye(len(x)) - together * s

    def sizes() -> Sizes:
        # x - max is rounded before exp amplifies it
        highest = layer.x.reshape(soft.input_shape).max(soft.axis, keepdims=True)
        far = np.broadcast_to(highest, soft.input_shape).ravel() - layer.x
        size = np.eye(len(x)) + together * (s * (1 + np.where(s > 0, far, 0.0)))
        roundings = soft.roundings + 2 * LIBRARY
        return Sizes((size,), (np.asarray(size != 0, np.float32),), np.ones(len(x)), 1, roundings)

    return (Part(((matrix, x),), 1 - matrix @ x, sizes=sizes),)


def stop(layer: Affine) -> Parts:
    """Stop: r = 0; all relevance is in the zero branch. Ali et al. 2022."""
    matrix = np.zeros((int(np.prod(layer.layer.output_shape)), len(layer.x)))
    return (Part(((matrix, np.zeros_like(layer.x)),), np.zeros(len(matrix)), gate=np.zeros(len(matrix), np.bool_)),)


def layer_norm(layer: Affine) -> Parts:
    """LayerNormRule: Epsilon on the normalisation with its deviation as a constant. Ali et al. 2022."""
    norm = layer.layer
    assert isinstance(norm, Normalization)
    frozen = Affine(norm.frozen(layer.x), layer.x, layer.zero_params)
    (part,) = epsilon(frozen)

    def sizes() -> Sizes:
        # the mean is taken away after it was added up; and the deviation, a sum over the group, is behind each entry
        scale = np.abs(norm.scale(layer.x, frozen.weight))[:, None]
        size = scale * (np.eye(len(layer.x)) + norm.averaging * norm.centred)
        behind = 1 + (norm.groups.shape[1] + 6) * norm.worse(layer.x)
        count = np.asarray(np.ceil(behind) * (size != 0), np.float32)
        return replace(part.known_sizes, matrices=(size,), counts=(count,), grain=0.0)

    return (replace(part, sizes=sizes),)
