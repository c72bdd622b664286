"""The formulas of the audit are those of the reference, and so is their ledger; their bound covers its bound."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import lrp_rules as lrp
from reference import ledger as ledgers
from reference import rules as ref
from reference.affine import Affine, affine
from reference.precision import FLOAT64
from reference.rounding import bound
from verify.auditing import formulas, layers
from verify.formats.torch_layers import describe

LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(6, 5), (6,)),
    "conv": (lambda: nn.Conv2d(4, 6, (3, 2), stride=2, padding=1, groups=2), (4, 5, 4)),
    "circular": (lambda: nn.Conv1d(2, 3, 3, padding=1, padding_mode="circular"), (2, 7)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 2, 3, stride=2, padding=1, output_padding=1, groups=2), (4, 3, 2)),
}
RULES: dict[str, tuple[Any, Any]] = {
    "Epsilon": (lrp.Epsilon(0.25), ref.epsilon),
    "ZPlus": (lrp.ZPlus(1e-6), ref.zplus),
    "AlphaBeta": (lrp.AlphaBeta(2, 1, 0.1), lambda layer: ref.alpha_beta(layer, 2, 1)),
    "Gamma": (lrp.Gamma(0.5), lambda layer: ref.gamma(layer, 0.5)),
    "ZBox": (lrp.ZBox(-3.0, 3.0), lambda layer: ref.zbox(layer, -3.0, 3.0)),
    "WSquare": (lrp.WSquare(), ref.wsquare),
    "Flat": (lrp.Flat(), ref.flat),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("layer", LAYERS)
def test_a_rule_on_a_layer(layer: str, rule: str) -> None:
    make, shape = LAYERS[layer]
    module, (mine, theirs) = make(), RULES[rule]
    x = torch.randn(2, *shape)
    x[:, 0] = 0
    R = torch.randn_like(module(x)).detach()
    R[0].view(-1)[::3] = 0
    found = layers.layer_of(module)
    assert found is not None
    answer = formulas.by_parts(mine, found, x, R, FLOAT64.unit)
    assert answer.bound is not None
    sums = np.zeros(3)
    for sample in range(2):
        seen: Affine = affine(describe(module, shape), x[sample].numpy().ravel())
        parts, own = theirs(seen), R[sample].numpy().ravel()
        eps = mine.stabilizer.epsilon
        expected, worst = ref.relevance(parts, own, eps), bound(parts, own, eps, FLOAT64).worst
        off = np.abs(answer.r[0][sample].numpy().ravel() - expected)
        theirs_and_ours = answer.bound[0][sample].numpy().ravel() + worst
        assert np.isfinite(theirs_and_ours).all()
        assert not (off > theirs_and_ours).any()
        total = ledgers.ledger(parts, own, eps).total()
        sums += np.array([total.bias, total.stabilizer, total.zero_branch])
    got = np.array([answer.bias, answer.stabilizer + answer.dead, 0.0])
    if rule == "Gamma":
        got, sums = np.array([got[0], got[1]]), np.array([sums[0], sums[1] + sums[2]])
    else:
        assert sums[2] == 0
    room = float(FLOAT64.gamma(64 * R.numel() * x.numel())) * float(R.abs().sum() + np.abs(sums).sum())
    assert not (np.abs(got - sums[: len(got)]) > room).any()


@pytest.mark.parametrize("change", ["a weight", "the bias", "the stabilizer"])
def test_the_bound_is_close_enough_to_see_a_change(change: str) -> None:
    module, x = nn.Conv2d(3, 4, 3), torch.randn(1, 3, 6, 6)
    layer = layers.layer_of(module)
    assert layer is not None
    assert layer.bias is not None
    R = torch.randn(1, 4, 4, 4)
    answer = formulas.by_parts(lrp.ZPlus(), layer, x, R, FLOAT64.unit)
    rule = lrp.ZPlus(1e-6 * (1 + 1e-3) if change == "the stabilizer" else 1e-6)
    if change == "a weight":
        layer.weight[0, 0, 0, 0] *= 1 + 1e-9
    if change == "the bias":
        layer = layer._replace(bias=layer.bias * (1 + 1e-9))
    other = formulas.by_parts(rule, layer, x, R, FLOAT64.unit)
    assert answer.bound is not None
    assert bool(((answer.r[0] - other.r[0]).abs() > answer.bound[0]).any())


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_a_batch_norm_in_the_layer_before_it(kind: Any) -> None:
    module, norm = kind(4, 6, 3, groups=2), nn.BatchNorm2d(6).eval()
    for value in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
        assert value is not None
        value.data.uniform_(0.5, 2)
    x = torch.randn(2, 4, 5, 5)
    layer = layers.layer_of(module)
    assert layer is not None
    whole = layers.folded(layer, module, norm)
    assert whole.bias is not None
    z = whole.apply(whole.weight, x)
    z = z + whole.constant(whole.bias, z)
    assert bool(((z - norm(module(x))).abs() <= float(FLOAT64.gamma(400)) * (1 + z.abs().max())).all())
