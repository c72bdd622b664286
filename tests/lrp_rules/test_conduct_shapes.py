"""Strides, batches, dtypes, autocast, and saved tensors that others pack."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lrp_rules import (
    AlphaBeta,
    BasicHook,
    Epsilon,
    Flat,
    Gamma,
    Norm,
    WSquare,
    ZBox,
    ZPlus,
)
from tests.lrp_rules.cases import (
    CASES,
    FORMULAS,
    RULES,
    TracedConv2d,
    TracedLinear,
    integers,
    output_of,
    relevance,
)
from tests.lrp_rules.conduct import (
    CHANGES_PARAMETERS,
    each_formula,
    each_rule,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from lrp_rules import Hook


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "strided": lambda x: torch.stack([x, x], dim=-1)[..., 1],
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "with-an-offset": lambda x: torch.cat([x, x])[3:],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "name",
    [
        "conv2d-asymmetric",
        "conv2d-circular",
        "conv2d-depthwise",
        "transposed2d-groups-dilation",
        "batchnorm2d",
        "avgpool2d",
    ],
)
@each_formula
def test_layouts(rule: str, name: str, layout: str) -> None:
    layer, x = CASES[name].module(), CASES[name].input()
    R = integers(output_of(layer, x).shape, 2)
    expected = relevance(FORMULAS[rule][0](), layer, x, R)
    given, R_given = LAYOUTS[layout](x), LAYOUTS[layout](R)
    assert torch.equal(given, x)
    assert torch.equal(relevance(FORMULAS[rule][0](), layer, given.requires_grad_(), R_given), expected)
    assert torch.equal(given, x)
    layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert torch.equal(relevance(FORMULAS[rule][0](), layer, given, R_given), expected)


@each_formula
def test_expanded_inputs_and_relevance(rule: str) -> None:
    layer = CASES["conv2d-circular"].module()
    one = CASES["conv2d-circular"].input(1)
    R = integers(output_of(layer, one).shape, 2)
    r = relevance(FORMULAS[rule][0](), layer, one, R)
    expanded = one.expand(3, -1, -1, -1).requires_grad_()
    assert torch.equal(relevance(FORMULAS[rule][0](), layer, expanded, R.expand(3, -1, -1, -1)), r.expand_as(expanded))


@pytest.mark.parametrize("name", CASES)
@each_formula
def test_samples_are_independent_and_batches_may_be_empty(rule: str, name: str) -> None:
    layer, x = CASES[name].module(), CASES[name].input(3)
    R = integers(output_of(layer, x).shape, 2)
    r = relevance(FORMULAS[rule][0](), layer, x, R)
    assert torch.equal(relevance(FORMULAS[rule][0](), layer, x[1:2], R[1:2]), r[1:2])
    assert relevance(FORMULAS[rule][0](), layer, x[:0], R[:0]).shape == x[:0].shape


@pytest.mark.parametrize("samples", [0, 1])
@each_rule
def test_small_batches(rule: str, samples: int) -> None:
    for layer in (nn.Linear(4, 4), TracedLinear(4, 4), nn.Tanh(), nn.BatchNorm1d(4).eval()):
        x = torch.randn(samples, 4, requires_grad=True) * 1
        assert relevance(RULES[rule](), layer, x, torch.randn(samples, 4)).shape == x.shape


@pytest.mark.parametrize(
    "name",
    ["linear", "conv1d", "conv2d-circular", "conv3d", "transposed1d", "avgpool2d", "traced-linear", "traced-conv2d"],
)
@each_formula
def test_unbatched_inputs(rule: str, name: str) -> None:
    layer, x = CASES[name].module(), CASES[name].input(1)
    R = integers(output_of(layer, x).shape, 2)
    expected = relevance(FORMULAS[rule][0](), layer, x, R)[0]
    assert torch.equal(relevance(FORMULAS[rule][0](), layer, x[0], R[0]), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@each_rule
def test_relevance_has_the_type_of_the_input(rule: str, dtype: torch.dtype) -> None:
    for layer in (nn.Linear(4, 4), TracedLinear(4, 4), nn.ReLU()):
        x, R = integers((3, 4), 1).to(dtype), integers((3, 4), 2).to(dtype)
        r = relevance(RULES[rule](), layer.to(dtype), x, R)
        assert r.dtype == dtype
        assert bool(r.isfinite().all())


BASIC = [rule for rule, make in RULES.items() if isinstance(make(), BasicHook)]


@pytest.mark.parametrize(
    ("rule", "dtype"),
    [
        pytest.param(rule, dtype)
        for rule in RULES
        if rule not in CHANGES_PARAMETERS
        for dtype in (torch.bfloat16, torch.float16)
    ],
    ids=str,
)
def test_containers_in_half_precision(rule: str, dtype: torch.dtype) -> None:
    layer = nn.Sequential(nn.Linear(4, 4), nn.Tanh()).to(dtype)
    r = relevance(RULES[rule](), layer, integers((3, 4), 1).to(dtype), integers((3, 4), 2).to(dtype))
    assert r.dtype == dtype


@pytest.mark.parametrize("layer", ["linear", "conv2d-circular", "transposed1d", "batchnorm2d", "avgpool2d"])
@pytest.mark.parametrize("rule", FORMULAS)
def test_float16_is_float32_rounded_at_the_end(rule: str, layer: str) -> None:
    # also the statistics of a batch norm are float16 there
    module, x = CASES[layer].module().half(), (CASES[layer].input() / 3).half()
    R = (integers(output_of(module, x).shape, 2) / 3).half()
    expected = relevance(FORMULAS[rule][0](), copy.deepcopy(module).float(), x.float(), R.float()).half()
    got = relevance(FORMULAS[rule][0](), module, x, R)
    assert got.dtype == torch.float16
    assert torch.equal(got, expected)


AUTOCAST_RULES: dict[str, Callable[[], Hook]] = {
    "Epsilon": Epsilon,
    "ZPlus": ZPlus,
    "AlphaBeta": AlphaBeta,
    "Gamma": Gamma,
    "Gamma(2)": lambda: Gamma(2),
    "ZBox": lambda: ZBox(-3, 3),
    "WSquare": WSquare,
    "Flat": Flat,
}


@pytest.mark.parametrize("inside", [False, True], ids=["backward-outside", "backward-inside"])
@pytest.mark.parametrize("rule", AUTOCAST_RULES)
def test_autocast_loses_no_digits_of_a_known_layer(rule: str, inside: bool) -> None:
    layer = CASES["conv2d-circular"].module().float()
    x = (CASES["conv2d-circular"].input() + 2.0**-12).float().requires_grad_()  # more digits than bfloat16 has
    R = integers(output_of(layer, x).shape, 2).float()
    expected = relevance(AUTOCAST_RULES[rule](), layer, x, R)
    with AUTOCAST_RULES[rule]().register(layer), torch.autocast("cpu"):
        output = layer(x)
    assert output.dtype == torch.bfloat16
    with torch.autocast("cpu", enabled=inside):
        (got,) = torch.autograd.grad(output, x, R.bfloat16())
    assert got.dtype == torch.float32
    assert torch.equal(got, expected)


@each_rule
def test_autocast_keeps_forward_and_types(rule: str) -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU()).float()
    x = torch.randn(3, 4).float().requires_grad_()
    with torch.autocast("cpu"):
        plain = network(x)
        registered = [RULES[rule]().register(module) for module in network]
        output = network(x)
    (r,) = torch.autograd.grad(output, x, torch.ones_like(output))
    for registration in registered:
        registration.remove()
    assert torch.equal(plain, output)
    assert r.dtype == torch.float32


@pytest.mark.parametrize("cls", [TracedLinear, TracedConv2d], ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("rule", ["ZPlus", "Gamma", "WSquare", "BasicHook"])
def test_autocast_of_traced_layers_behind_others(rule: str, cls: type[nn.Module]) -> None:
    layer = TracedLinear(4, 4).float() if cls is TracedLinear else TracedConv2d(1, 1, 1).float()
    x = torch.randn(3, 1, 4, 4).float().requires_grad_()
    with torch.autocast("cpu"), RULES[rule]().register(layer):
        output = layer(x.bfloat16())
    (r,) = torch.autograd.grad(output, x, torch.ones_like(output))
    assert r.dtype == torch.float32


@each_formula
def test_saved_tensors_packed_by_others(rule: str) -> None:
    layer, x = CASES["linear"].module(), CASES["linear"].input()
    R = integers((3, 3), 2)
    expected = relevance(FORMULAS[rule][0](), layer, x, R)
    x.requires_grad_()
    if FORMULAS[rule][0]().__class__ in {Epsilon, Norm, Gamma}:
        return  # the case below
    with (
        torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t),
        FORMULAS[rule][0]().register(layer),
    ):
        output = layer(x)
    assert torch.equal(torch.autograd.grad(output, x, R)[0], expected)


@pytest.mark.parametrize("rule", ["Epsilon", "Norm", "Gamma(0.25)"])
@pytest.mark.parametrize("how", ["save_on_cpu", "checkpoint"])
def test_saved_outputs_packed_by_others(how: str, rule: str) -> None:
    layer, x = CASES["linear"].module(), CASES["linear"].input()
    R = integers((3, 3), 2)
    expected = relevance(FORMULAS[rule][0](), layer, x, R)
    x.requires_grad_()
    with FORMULAS[rule][0]().register(layer):
        if how == "checkpoint":
            (got,) = torch.autograd.grad(checkpoint(layer, x, use_reentrant=False), x, R)
        else:
            with torch.autograd.graph.save_on_cpu():
                output = layer(x)
            (got,) = torch.autograd.grad(output, x, R)
    assert torch.equal(got, expected)


@each_formula
def test_reentrant_checkpoint(rule: str) -> None:
    layer, x = CASES["linear"].module(), CASES["linear"].input()
    R = integers((3, 3), 2)
    expected = relevance(FORMULAS[rule][0](), layer, x, R)
    x.requires_grad_()
    with FORMULAS[rule][0]().register(layer):
        checkpoint(layer, x, use_reentrant=True).backward(R)
    assert x.grad is not None
    assert torch.equal(x.grad, expected)
