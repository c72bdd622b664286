"""A rule on a module whose parts have rules of their own: A is the Jacobian of the whole, whatever these say."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn

from lrp_rules import BasicHook, Flat, Hook, Norm, Pass, ReLUDeconvNet, ZPlus
from tests.lrp_rules.cases import FORMULAS, Square, integers, power_of_two, relevance

if TYPE_CHECKING:
    from collections.abc import Callable

OUTSIDE: dict[str, Callable[[], Hook]] = {name: make for name, (make, _) in FORMULAS.items()}
OUTSIDE["BasicHook"] = lambda: BasicHook(stabilizer=power_of_two)


class Nothing(Hook):
    """Gives no relevance at all."""

    def backward(self, module: nn.Module, grad_input: tuple[Tensor, ...], grad_output: object) -> tuple[Tensor]:
        return (grad_input[0] * 0,)


#: Rules for the parts of ``network``: a layer, an activation, a container.
INSIDE: dict[str, dict[int, Callable[[], Hook]]] = {
    "on-a-layer": {0: lambda: ZPlus(0.5)},
    "on-an-activation": {1: Pass},
    "on-a-container": {2: lambda: Norm(0.5)},
    "everywhere": {0: lambda: Flat(0.5), 1: ReLUDeconvNet, 2: lambda: BasicHook(stabilizer=0.5)},
    "plain-hooks": {0: Nothing, 1: Nothing, 2: Nothing},
}


def network() -> nn.Sequential:
    made = nn.Sequential(nn.Linear(3, 4), Square(), nn.Sequential(nn.Linear(4, 2), Square()))
    for seed, parameter in enumerate(made.parameters()):
        parameter.data = integers(parameter.shape, 10 + seed)
    return made


def with_rules_inside(module: nn.Sequential, inside: str) -> ExitStack:
    stack = ExitStack()
    for index, rule in INSIDE[inside].items():
        stack.enter_context(rule().register(module[index]))
    return stack


#: Others change parameters, which are in the parts here.
ON_THE_WHOLE = [rule for rule, make in OUTSIDE.items() if make().changed_parameters is None]


@pytest.mark.parametrize("inside", INSIDE)
@pytest.mark.parametrize("outside", ON_THE_WHOLE)
def test_rules_inside_change_nothing_of_a_rule_on_the_whole(outside: str, inside: str) -> None:
    module, x, R = network(), integers((2, 3), 1), integers((2, 2), 2)
    expected = relevance(OUTSIDE[outside](), module, x, R)
    with with_rules_inside(module, inside):
        assert torch.equal(relevance(OUTSIDE[outside](), module, x, R), expected)


@pytest.mark.parametrize("inside", INSIDE)
def test_they_change_what_a_plain_hook_on_the_whole_is_given(inside: str) -> None:
    # as in torch's own hooks, grad_input is what comes out of the whole
    module, x, R = network(), integers((2, 3), 1), integers((2, 2), 2)
    with with_rules_inside(module, inside):
        alone = torch.autograd.grad(module(x.requires_grad_()), x, R)[0]
        assert torch.equal(relevance(Hook(), module, x, R), alone)
    assert not torch.equal(relevance(Hook(), module, x, R), alone)


@pytest.mark.parametrize("inside", [name for name in INSIDE if name != "plain-hooks"])
@pytest.mark.parametrize("outside", ["Epsilon", "Norm", "BasicHook"])
def test_nor_do_they_change_its_derivatives(outside: str, inside: str) -> None:
    def derivatives() -> tuple[Tensor, ...]:
        x, R = integers((2, 3), 1).requires_grad_(), integers((2, 2), 2).requires_grad_()
        r = relevance(OUTSIDE[outside](), module, x, R, create_graph=True)
        return torch.autograd.grad(r, (x, R, *module.parameters()), integers((2, 3), 3))

    module = network()
    expected = derivatives()
    with with_rules_inside(module, inside):
        assert all(map(torch.equal, derivatives(), expected))


def test_a_plain_hook_inside_is_in_the_way_of_derivatives_by_parameters_alone() -> None:
    module, x = network(), integers((2, 3), 1).requires_grad_()
    with with_rules_inside(module, "plain-hooks"), Norm(power_of_two).register(module):
        (r,) = torch.autograd.grad(module(x).sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match=r"Nothing on Linear.*cannot be taken by its parameters"):
            torch.autograd.grad(r.sum(), x)
        module.requires_grad_(requires_grad=False)
        (r,) = torch.autograd.grad(module(x).sum(), x, create_graph=True)
        (by_x,) = torch.autograd.grad(r.sum(), x)
    (r,) = torch.autograd.grad(relevance(Norm(power_of_two), module, x, torch.ones(2, 2), create_graph=True).sum(), x)
    assert torch.equal(by_x, r)


def test_a_relevance_found_inside_a_derivative_leaves_it_one() -> None:
    # a rule on the whole that takes a Jacobian does not end the derivative that it is part of
    first, x = network(), integers((2, 3), 1).requires_grad_()
    module = nn.Sequential(first, nn.Linear(2, 2))
    with Norm(power_of_two).register(first), with_rules_inside(first, "everywhere"):
        got = torch.autograd.grad(module(x).sum(), x, create_graph=True)[0]
        twice = torch.autograd.grad((got * integers((2, 3), 2)).sum() + module(x).sum(), x)[0]
    with Norm(power_of_two).register(first):
        got = torch.autograd.grad(module(x).sum(), x, create_graph=True)[0]
        assert torch.equal(torch.autograd.grad((got * integers((2, 3), 2)).sum() + module(x).sum(), x)[0], twice)
