"""Layers whose weights are made for each call, and modules with a forward of their own."""

from __future__ import annotations

import copy
import types
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils import parametrizations, parametrize

from lrp_rules import (
    Epsilon,
)
from tests.lrp_rules.cases import (
    CASES,
    FORMULAS,
    RULES,
    TracedLinear,
    integers,
    power_of_two,
    relevance,
)
from tests.lrp_rules.conduct import (
    Snapshot,
    each_rule,
)

if TYPE_CHECKING:
    from collections.abc import Callable


def _old(wrap: Callable[..., nn.Module], **kwargs: Any) -> Callable[[nn.Module], nn.Module]:
    def apply(module: nn.Module) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # that they are old
            return wrap(module, **kwargs)

    return apply


NORMS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weight_norm": _old(nn.utils.weight_norm),
    "spectral_norm": _old(nn.utils.spectral_norm),
    "weight_norm-parametrized": parametrizations.weight_norm,
    "spectral_norm-parametrized": parametrizations.spectral_norm,
}


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("cls", [nn.Linear, TracedLinear], ids=["known", "traced"])
@pytest.mark.parametrize("norm", NORMS)
@each_rule
def test_normed_layers_use_the_effective_weights(rule: str, norm: str, cls: type[nn.Linear], training: bool) -> None:
    layer = NORMS[norm](cls(4, 4)).train(training)
    plain, x, R = cls(4, 4), torch.randn(3, 4, requires_grad=True), torch.randn(3, 4)
    with RULES[rule]().register(layer):
        output = layer(x)
    state = copy.deepcopy(layer.state_dict())
    before = Snapshot(layer)
    (got,) = torch.autograd.grad(output, x, R)
    before.assert_same(layer)
    assert all(torch.equal(state[name], value) for name, value in layer.state_dict().items())
    layer.eval()
    with torch.no_grad():
        layer(x)  # leaves the weight of the older ones as it was used
        assert isinstance(layer.weight, Tensor)
        assert isinstance(layer.bias, Tensor)
        plain.weight.copy_(layer.weight)
        plain.bias.copy_(layer.bias)
    assert torch.equal(got, relevance(RULES[rule](), plain, x, R))


def test_a_random_parametrization() -> None:
    layer = nn.Linear(16, 16, bias=False)
    with torch.no_grad():
        layer.weight.copy_(integers((16, 16), 1))
    used: list[Tensor] = []

    class Drops(nn.Dropout):
        def forward(self, weight: Tensor) -> Tensor:
            used.append(super().forward(weight))
            return used[-1]

    parametrize.register_parametrization(layer, "weight", Drops(0.5))
    used.clear()
    x, R = integers((2, 16), 2).requires_grad_(), integers((2, 16), 3)
    with Epsilon(power_of_two).register(layer):
        z = layer(x)
    (weight,) = used  # the rule does not draw again
    (r,) = torch.autograd.grad(z, x, R)
    assert torch.equal(r, x.detach() * ((R / power_of_two(z.detach())) @ weight.detach()))


def test_a_forward_of_its_own_that_cannot_be_run_with_other_parameters() -> None:
    layer, x = CASES["linear"].module(), CASES["linear"].input()
    own = layer.forward
    layer.forward = lambda input: own(input)  # noqa: A006, PLW0108
    with pytest.raises(RuntimeError, match="cannot be run with other parameters"):
        relevance(FORMULAS["ZPlus"][0](), layer, x, integers((3, 3), 2))


@pytest.mark.parametrize("rule", ["Epsilon", "Norm"])
def test_a_module_with_a_forward_of_its_own(rule: str) -> None:
    layer, x = CASES["linear"].module(), CASES["linear"].input()
    assert isinstance(layer, nn.Linear)
    R = integers((3, 3), 2)
    expected = relevance(FORMULAS[rule][0](), layer, x, R)
    own = layer.forward
    layer.forward = lambda input: own(input)  # type: ignore[method-assign]  # noqa: A006, PLW0108
    assert torch.equal(relevance(FORMULAS[rule][0](), layer, x, R), expected)


@pytest.mark.parametrize("rule", ["ZPlus", "AlphaBeta(2,1)", "Gamma(0.25)", "ZBox(-1,2)", "WSquare", "Flat"])
def test_parameters_change_under_a_patched_forward(rule: str) -> None:
    # as libraries do that move modules between devices: module.forward = a wrapper, bound to the module
    layer, x = CASES["linear"].module(), CASES["linear"].input()
    R = integers((3, 3), 2)
    expected = relevance(FORMULAS[rule][0](), layer, x, R)
    layer.forward = types.MethodType(lambda self, v: F.linear(v, self.weight, self.bias), layer)
    assert torch.equal(relevance(FORMULAS[rule][0](), layer, x, R), expected)
