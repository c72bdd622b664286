"""The rules for networks and their operations: numbers worked by hand, ledgers, and bounds that honest codes keep."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from reference import network_rules, rules
from reference.affine import affine
from reference.base import NonlinearLayer
from reference.ledger import ledger
from reference.nonlinear import Softmax
from reference.operations import GroupNorm, LayerNorm, MatMul, Normalization, Product, RMSNorm, Sum
from reference.precision import FLOAT32
from reference.rounding import bound
from reference.rules import Parts, Stabilizer
from reference.windows import Array

BARE = Stabilizer(0.0)


def _product(*shapes: tuple[int, ...], constants: tuple[Array | None, ...] | None = None) -> Product:
    given = constants or (None,) * len(shapes)
    count = sum(int(np.prod(s)) for s, constant in zip(shapes, given, strict=True) if constant is None)
    return Product((count,), shapes, given)


def _matmul(left: tuple[int, ...], right: tuple[int, ...]) -> MatMul:
    return MatMul((int(np.prod(left)) + int(np.prod(right)),), (left, right), (None, None))


#: Worked by hand: layer, x, R, parts, stabilizer, relevance, and the sinks inputs, bias, stabilizer, zero branch.
WORKED: dict[str, tuple[Any, ...]] = {
    # (2, 3) times 5, read by both: 4 and 6 are halved, and the second factor gets the halves of both
    "uniform": (
        _product((2,), (1,)), [2.0, 3, 5], [4.0, 6], network_rules.uniform, network_rules.COUNTED, [2.0, 3, 5],
        (10.0, 0, 0, 0),
    ),
    "uniform-constant": (
        _product((2,), (2,), constants=(None, np.array([7.0, 0]))), [2.0, 3], [4.0, 6], network_rules.uniform,
        network_rules.COUNTED, [4.0, 6], (10.0, 0, 0, 0),
    ),
    "signal": (
        _product((2,), (1,)), [2.0, 3, 5], [4.0, 6], lambda layer: network_rules.signal_takes_all(layer, 1),
        network_rules.COUNTED, [0.0, 0, 10], (10.0, 0, 0, 0),
    ),
    "signal-constant": (
        _product((2,), (2,), constants=(None, np.array([7.0, 0]))), [2.0, 3], [4.0, 6],
        lambda layer: network_rules.signal_takes_all(layer, 1), network_rules.COUNTED, [0.0, 0], (0.0, 0, 0, 10),
    ),
    # O = 1 * 3 + 2 * 5 = 13, S(26) = 32: s = 2
    "bilinear": (
        _matmul((1, 2), (2, 1)), [1.0, 2, 3, 5], [64.0], network_rules.bilinear, Stabilizer(6.0), [6.0, 20, 6, 20],
        (52.0, 0, 12, 0),
    ),
    # s = 1/2, 1/2: 3 (4 - 5) and 3 (6 - 5)
    "softmax": (
        Softmax((2,), axis=0), [3.0, 3], [4.0, 6], network_rules.softmax, network_rules.UNDIVIDED, [-3.0, 3],
        (0.0, 10, 0, 0),
    ),
    "softmax-masked": (
        Softmax((3,), axis=0), [2.0, 2, -np.inf], [1.0, 3, 4], network_rules.softmax, network_rules.UNDIVIDED,
        [-6.0, -2, 0], (-8.0, 16, 0, 0),
    ),
    "stop": (
        Softmax((2,), axis=0), [3.0, 3], [4.0, 6], network_rules.stop, BARE, [0.0, 0], (0.0, 0, 0, 10),
    ),
    # mean 3/2, variance 1/4, deviation 1: z = (2 / 2 + 1, -4 / 2 + 2) = (2, 0), stabilized to (4, 2); s = (1, 2), and
    # g s = (2, 8) less its mean 5
    "layernorm": (
        LayerNorm((2,), np.array([2.0, 4]), np.array([1.0, 2]), 0.75, axes=1), [2.0, 1], [4.0, 4],
        network_rules.layer_norm, Stabilizer(2.0), [-6.0, 3], (-3.0, 5, 6, 0),
    ),
    # mean square 5/2, deviation 2: z = (1/2, 1)
    "rmsnorm": (
        RMSNorm((2,), None, None, 1.5, axes=1), [1.0, 2], [4.0, 6], network_rules.layer_norm, BARE, [4.0, 6],
        (10.0, 0, 0, 0),
    ),
    # two channels, one each: the mean of one entry is itself, and only the bias is left
    "groupnorm-of-one": (
        GroupNorm((2, 1), None, np.array([1.0, 2]), 0.25, num_groups=2), [2.0, 1], [4.0, 6], network_rules.layer_norm,
        BARE, [0.0, 0], (0.0, 10, 0, 0),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WORKED)
def test_relevance_and_ledger_worked_by_hand(name: str) -> None:
    layer, x, R, parts_of, stabilize, r, sinks = WORKED[name]
    parts: Parts = parts_of(affine(layer, np.array(x)))
    R = np.array(R)
    assert rules.relevance(parts, R, stabilize).tolist() == r
    account = ledger(parts, R, stabilize)
    assert tuple(account.total()) == sinks
    assert (np.abs(account.imbalance()) <= account.balance).all()


def _random(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape)


LAYERS: dict[str, NonlinearLayer] = {
    "sum": Sum((7,), ((2, 3), (1,)), (None, None)),
    "product-of-3": _product((2, 3, 2), (2, 1, 2), (3, 1)),
    "matmul": _matmul((2, 3), (3, 4)),
    "matmul-broadcast": _matmul((2, 1, 2, 3), (3, 3, 2)),
    "layernorm": LayerNorm((3, 4), _random(4), _random(4), 0.25, axes=1),
    "layernorm-2-axes": LayerNorm((2, 3, 2), _random(3, 2), None, 0.25, axes=2),
    "rmsnorm": RMSNorm((3, 4), _random(4), None, 0.25, axes=1),
    "groupnorm": GroupNorm((4, 3), _random(4), _random(4), 0.25, num_groups=2),
    "instancenorm": GroupNorm((2, 2, 3), _random(2), _random(2), 0.25, num_groups=2),
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_jacobian_is_that_of_the_value(name: str) -> None:
    layer = LAYERS[name]
    x = _random(int(np.prod(layer.input_shape)))
    steps = np.eye(len(x)) * 2.0**-10
    # fourth order: the error is of the order of 2^-40
    near, far = ([layer.value(x + k * e) - layer.value(x - k * e) for e in steps] for k in (1, 2))
    slopes = (8 * np.array(near) - np.array(far)) / (12 * 2.0**-10)
    assert np.abs(slopes.T - layer.jacobian(x)).max() < 2.0**-30


@pytest.mark.parametrize("name", [name for name, layer in LAYERS.items() if isinstance(layer, Normalization)])
def test_a_frozen_normalisation_is_the_same_at_its_input_and_linear_elsewhere(name: str) -> None:
    layer = LAYERS[name]
    assert isinstance(layer, Normalization)
    x = _random(int(np.prod(layer.input_shape)))
    frozen = affine(layer.frozen(x), x)
    assert np.array_equal(frozen.z, layer.value(x)) or np.abs(frozen.z - layer.value(x)).max() < 2.0**-48
    moved = layer.frozen(x).matrix(layer.weight) @ (2 * x) - 2 * (layer.frozen(x).matrix(layer.weight) @ x)
    assert np.abs(moved).max() < 2.0**-48


def _textbook(x: Array, eps: float) -> Array:
    """1 / sqrt(E[x^2] - E[x]^2 + eps) in float32, the form that cancels."""
    x = x.astype(np.float32)
    mean = x.mean(-1, keepdims=True, dtype=np.float32)
    square = (x * x).mean(-1, keepdims=True, dtype=np.float32)
    return np.asarray(np.float32(1) / np.sqrt(square - mean * mean + np.float32(eps)))


def _two_passes(x: Array, eps: float) -> Array:
    x = x.astype(np.float32)
    centred = x - x.mean(-1, keepdims=True, dtype=np.float32)
    return np.asarray(np.float32(1) / np.sqrt((centred * centred).mean(-1, keepdims=True) + np.float32(eps)))


@pytest.mark.parametrize("shift", [0.0, 3.0, 30.0])
@pytest.mark.parametrize("deviation", [_textbook, _two_passes])
def test_an_honest_layer_norm_in_float32_keeps_its_bound(
    deviation: Callable[[Array, float], Array], shift: float
) -> None:
    source = np.random.default_rng(0)
    for _ in range(20):
        x = (source.standard_normal((3, 8)) + shift).astype(np.float32).astype(np.float64)
        R = source.standard_normal((3, 8)).astype(np.float32).astype(np.float64)
        layer = LayerNorm((3, 8), None, None, 1e-3, axes=1)
        parts = network_rules.layer_norm(affine(layer, x))
        expected, limit = rules.relevance(parts, R, 0.3), bound(parts, R.ravel(), Stabilizer(0.3), FLOAT32)
        single, scale = x.astype(np.float32), deviation(x, 1e-3)
        z = (single - single.mean(-1, keepdims=True)) * scale
        s = R.astype(np.float32) / (z + np.where(z < 0, np.float32(-0.3), np.float32(0.3))) * scale
        r = single * (s - s.mean(-1, keepdims=True))
        assert (limit.ratio(r.astype(np.float64), expected) <= 1).all()


def test_a_layer_norm_whose_eps_is_left_out_does_not_keep_it() -> None:
    x, R = _random(3, 8), _random(2, 12).reshape(3, 8)
    layer = LayerNorm((3, 8), None, None, 1e-3, axes=1)
    parts = network_rules.layer_norm(affine(layer, x))
    expected, limit = rules.relevance(parts, R, 0.3), bound(parts, R.ravel(), Stabilizer(0.3), FLOAT32)
    z = layer.value(x.ravel())
    s = R.ravel() / (z + np.where(z < 0, -0.3, 0.3)) / np.sqrt(layer.deviation(x) ** 2 - 1e-3)
    r = x.ravel() * (layer.centring @ s)
    assert not (limit.ratio(r, expected) <= 1).all()


def test_norm_loses_nearly_all_on_a_normalisation() -> None:
    """Why Norm is not the rule for it: its output does not grow with its input, so that J x is nothing but eps."""
    layer = LayerNorm((8,), None, None, 1e-9, axes=1)
    x, R = _random(8), _random(2, 4).ravel()
    lost = rules.relevance(rules.norm(affine(layer, x)), R, BARE)
    kept = rules.relevance(network_rules.layer_norm(affine(layer, x)), R, BARE)
    assert abs(lost.sum()) < 1e-6 * np.abs(R).sum()
    assert abs(kept.sum() - R.sum()) < 1e-12 * np.abs(kept).sum()
