"""Copies and pickles, of rules and of modules with rules."""

from __future__ import annotations

import copy
import io
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from lrp_rules import (
    AlphaBeta,
    BasicHook,
    Epsilon,
    Flat,
    Gamma,
    Norm,
    ReLUBetaSmooth,
    Stabilizer,
    WSquare,
    ZBox,
    ZPlus,
)
from tests.lrp_rules.cases import (
    RULES,
    handles,
    pickled,
    relevance,
)
from tests.lrp_rules.conduct import (
    each_rule,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from lrp_rules import Hook


@pytest.mark.parametrize(
    "way",
    [copy.copy, copy.deepcopy, pickled, lambda v: v.copy()],
    ids=["copy", "deepcopy", "pickle", "method"],
)
@each_rule
def test_copies_of_rules(rule: str, way: Callable[[Hook], Hook]) -> None:
    hook = RULES[rule]()
    other = way(hook)
    assert type(other) is type(hook)
    for layer in (nn.Linear(4, 4), nn.Tanh()):
        x, R = torch.randn(3, 4), torch.randn(3, 4)
        assert torch.equal(relevance(other, layer, x, R), relevance(hook, layer, x, R))


#: Arguments that are all others than the defaults, so that a copy that forgets one is seen.
UNUSUAL: dict[str, Hook] = {
    "Epsilon": Epsilon(0.5, "bias"),
    "Norm": Norm(0.5),
    "ZPlus": ZPlus(0.5, ["bias"]),
    "AlphaBeta": AlphaBeta(4, 3, 0.5, "bias"),
    "Gamma": Gamma(0.75, 0.5, "bias"),
    "ZBox": ZBox(torch.tensor([[-1.0, -2, -3, -4]]), 5, 0.5, "weight"),
    "WSquare": WSquare(Stabilizer(0.5, clip=True), "bias"),
    "Flat": Flat(Stabilizer(0.5, norm_scale=True)),
    "ReLUBetaSmooth": ReLUBetaSmooth(0.5),
    "BasicHook": BasicHook(stabilizer=0.5),
}


@pytest.mark.parametrize(
    "way",
    [copy.copy, copy.deepcopy, pickled, lambda v: v.copy()],
    ids=["copy", "deepcopy", "pickle", "method"],
)
@pytest.mark.parametrize("rule", UNUSUAL)
def test_copies_forget_nothing(rule: str, way: Callable[[Hook], Hook]) -> None:
    layer, x, R = nn.Linear(4, 4), torch.randn(3, 4), torch.randn(3, 4)
    expected = relevance(UNUSUAL[rule], layer, x, R)
    assert torch.equal(relevance(way(UNUSUAL[rule]), layer, x, R), expected)
    assert not torch.equal(relevance(RULES[rule](), layer, x, R), expected)


def registration_of(module: nn.Module) -> Any:
    (hook,) = module._forward_hooks.values()
    return getattr(hook, "__self__")  # noqa: B009  that only bound methods have


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
@each_rule
def test_copies_of_modules_with_rules(rule: str, way: str) -> None:
    def twin(module: nn.Module) -> nn.Module:
        if way == "deepcopy":
            return copy.deepcopy(module)
        if way == "pickle":
            return pickled(module)  # type: ignore[no-any-return]
        file = io.BytesIO()
        torch.save(module, file)
        file.seek(0)
        return torch.load(file, weights_only=False)  # type: ignore[no-any-return]

    for layer in (nn.Linear(4, 4), nn.ReLU()):
        x, R = torch.randn(3, 4), torch.randn(3, 4)
        (gradient,) = torch.autograd.grad(layer((leaf := x.clone().requires_grad_()) * 1), leaf, R)
        registration = RULES[rule]().register(layer)
        other = twin(layer)
        registration.remove()
        assert handles(layer) == []
        assert torch.equal(torch.autograd.grad(layer(leaf * 1), leaf, R)[0], gradient)
        # the copy has no rule, and loses what is left of it at its first call, or when it gets one
        if way == "deepcopy":
            with RULES[rule]().register(copy.deepcopy(other)) as own:
                assert handles(own.module) != []
            assert handles(own.module) == []
        assert torch.equal(torch.autograd.grad(other(leaf * 1), leaf, R)[0], gradient)
        assert handles(other) == []


@each_rule
def test_deepcopy_of_a_module_after_a_graph(rule: str) -> None:
    # torch refuses to copy tensors that hang on a graph; a rule must not leave such a tensor anywhere
    layer, x = nn.Linear(4, 4), torch.randn(3, 4, requires_grad=True)
    with RULES[rule]().register(layer):
        output = layer(x)
        copy.deepcopy(layer)
        torch.autograd.grad(output, x, torch.ones_like(output), create_graph=True)
        copy.deepcopy(layer)
    copy.deepcopy(layer)
