"""Operations in place: before a rule, behind it, and in the module itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from lrp_rules import (
    Norm,
    Pass,
)
from tests.lrp_rules.cases import (
    RULES,
    Add,
    handles,
    integers,
    power_of_two,
    relevance,
)
from tests.lrp_rules.conduct import (
    MODULES,
    each_pair,
    each_rule,
    each_rule_in_place,
    some_input,
)

if TYPE_CHECKING:
    from collections.abc import Callable


BEHIND: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "relu_": (F.relu_, F.relu),
    "mul_": (lambda y: y.mul_(2), lambda y: y * 2),
    "zero_": (lambda y: y.zero_(), lambda y: y * 0),
    "add_-clamp_": (lambda y: y.add_(1).clamp_(min=0), lambda y: (y + 1).clamp(min=0)),
}


@pytest.mark.parametrize("behind", BEHIND)
@each_pair
def test_in_place_operations_behind(rule: str, module: str, behind: str) -> None:
    layer, x, R = MODULES[module](), some_input(), torch.randn(2, 3, 4)
    if module != "dropout-train":  # in eval mode it returns its input itself, see below
        layer.eval()
    answers = []
    for operation in BEHIND[behind]:
        torch.manual_seed(1)
        with RULES[rule]().register(layer):
            output = operation(layer(x * 1))
        answers.append((output.detach(), torch.autograd.grad(output, x, R)[0]))
    (in_place, r_in_place), (elsewhere, r_elsewhere) = answers
    assert torch.equal(in_place, elsewhere)
    assert torch.equal(r_in_place, r_elsewhere)


@pytest.mark.parametrize(
    "module", [nn.Identity(), nn.Flatten(), nn.Dropout().eval(), nn.Dropout2d().eval()], ids=lambda m: type(m).__name__
)
@pytest.mark.parametrize("rule", [Pass])
def test_in_place_operations_behind_a_module_that_returns_its_input(rule: type[Pass], module: nn.Module) -> None:
    x, R = torch.randn(2, 3, 1, 1, requires_grad=True), torch.randn(2, 3, 1, 1)
    if isinstance(module, nn.Flatten):
        x, R = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3)
    with rule().register(module):
        output = F.relu_(module(x * 1))
    (r,) = torch.autograd.grad(output, x, R)
    assert torch.equal(r, R * (x > 0))


@each_rule
def test_in_place_operations_before(rule: str) -> None:
    layer, relu = nn.Linear(4, 4), nn.ReLU(inplace=True)
    x, R = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4)
    with RULES[rule]().register(layer):
        output = layer(relu(x * 1))
    (got,) = torch.autograd.grad(output, x, R)
    assert torch.equal(got, relevance(RULES[rule](), layer, F.relu(x.detach()), R) * (x > 0))


@pytest.mark.parametrize("module", [nn.ReLU, nn.LeakyReLU, nn.Hardtanh, nn.SiLU], ids=lambda cls: cls.__name__)
@each_rule_in_place
def test_rules_on_modules_that_work_in_place(rule: str, module: type[nn.ReLU]) -> None:
    x, R = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4)
    given = x * 1
    with RULES[rule]().register(layer := module(inplace=True)):
        output = layer(given)
    (got,) = torch.autograd.grad(output, x, R)
    assert torch.equal(output, module()(x))
    assert torch.equal(got, relevance(RULES[rule](), module(), x, R))


@each_rule_in_place
def test_a_whole_network_in_place(rule: str) -> None:
    def network(inplace: bool) -> nn.Sequential:
        torch.manual_seed(2)
        return nn.Sequential(
            nn.Linear(4, 4), nn.ReLU(inplace), nn.Dropout(0.5, inplace), nn.Linear(4, 4), nn.LeakyReLU(inplace=inplace)
        ).eval()

    x, R = torch.randn(3, 4), torch.randn(3, 4)
    answers = []
    for inplace in (False, True):
        model, leaf = network(inplace), x.clone().requires_grad_()
        registered = [RULES[rule]().register(module) for module in model]
        answers.append(torch.autograd.grad(model(leaf), leaf, R)[0])
        for registration in registered:
            registration.remove()
        assert handles(model) == []
    assert torch.equal(*answers)


def test_an_input_that_is_read_after_it_was_overwritten() -> None:
    relu, x = nn.ReLU(inplace=True), torch.randn(3, 4, requires_grad=True)

    def preactivation_block() -> Tensor:
        hidden = x * 1
        branch = relu(hidden)
        assert isinstance(branch, Tensor)
        return branch + hidden  # of what the activation has left in there

    plain = preactivation_block()
    with Pass().register(relu):
        assert torch.equal(preactivation_block(), plain)


class Doubles(nn.Module):
    """Writes to its input, and does not say so."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(2)


@pytest.mark.parametrize("rule", ["Pass", "Norm", "Epsilon", "ReLUBetaSmooth", "ZPlus"])
def test_rules_on_a_module_that_writes_to_its_input_unannounced(rule: str) -> None:
    x = torch.randn(3, 4, requires_grad=True)
    with RULES[rule]().register(layer := Doubles()), pytest.raises(RuntimeError, match="it writes to its input"):
        layer(x * 1)


def test_rules_on_a_container_that_begins_in_place() -> None:
    x = torch.randn(3, 4, requires_grad=True)
    block = nn.Sequential(nn.LeakyReLU(0.5, inplace=True), nn.Linear(4, 4))
    with Norm(power_of_two).register(block), pytest.raises(RuntimeError, match="it writes to its input"):
        block(x * 1)


def test_one_tensor_given_twice_to_a_module_that_works_in_place() -> None:
    class AddInPlace(Add):
        inplace = True

        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return left.add_(right.clone())

    x, R = integers((2, 3), 1).requires_grad_(), integers((2, 3), 2)
    hidden = x * 1
    with Norm(power_of_two).register(layer := AddInPlace()):
        output = layer(hidden, hidden)
    assert torch.equal(torch.autograd.grad(output, x, R)[0], 2 * x * (R / power_of_two(2 * x.detach())))
