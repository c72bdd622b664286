"""Several calls of one module, calls that something changes behind, and train mode."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from lrp_rules import (
    BasicHook,
    Epsilon,
    Norm,
)
from tests.lrp_rules.cases import (
    FORMULAS,
    RULES,
    Case,
    TracedLinear,
    integers,
    power_of_two,
    relevance,
)
from tests.lrp_rules.conduct import (
    CHANGES_PARAMETERS,
    assert_as_it_was_or_refused,
    each_formula,
    each_rule,
)


@each_rule
def test_a_graph_outlives_its_registration(rule: str) -> None:
    layer, x, R = nn.Linear(3, 3), torch.randn(2, 3, requires_grad=True), torch.randn(2, 3)
    registration = RULES[rule]().register(layer)
    early, late = layer(x), layer(x)
    (expected,) = torch.autograd.grad(early, x, R)
    registration.remove()
    (got,) = torch.autograd.grad(late, x, R)
    assert torch.equal(got, expected)


@each_rule
def test_parameters_changed_between_forward_and_backward_are_noticed(rule: str) -> None:
    layer, x, R = nn.Linear(3, 3), torch.randn(2, 3, requires_grad=True), torch.randn(2, 3)
    expected = relevance(RULES[rule](), layer, x, R)
    with RULES[rule]().register(layer):
        output = layer(x)
    with torch.no_grad():
        layer.weight.mul_(2)
    assert_as_it_was_or_refused(output, x, R, expected)


@pytest.mark.parametrize("rule", ["Epsilon", "ZPlus", "Gamma", "Flat"])
def test_statistics_changed_between_forward_and_backward_are_noticed(rule: str) -> None:
    layer, x, R = nn.BatchNorm1d(3).eval(), torch.randn(2, 3, requires_grad=True), torch.randn(2, 3)
    expected = relevance(RULES[rule](), layer, x, R)
    with RULES[rule]().register(layer):
        output = layer(x)
    assert layer.running_var is not None
    layer.running_var.mul_(4)
    assert_as_it_was_or_refused(output, x, R, expected)


@each_formula
def test_one_module_called_twice_in_one_forward(rule: str) -> None:
    case = Case(lambda: nn.Linear(4, 4), (4,))
    layer, hook = case.module(), FORMULAS[rule][0]()
    x, y, R = case.input(), case.input(seed=5), integers((3, 4), 2)
    with hook.register(layer):
        first, second = layer(x.requires_grad_()), layer(y.requires_grad_())
    got = torch.autograd.grad(first + second, (x, y), R)
    assert torch.equal(got[0], relevance(hook, layer, x, R))
    assert torch.equal(got[1], relevance(hook, layer, y, R))
    # a chain, and the second call first
    with hook.register(layer):
        hidden = layer(x)
        output = layer(hidden)
    below = relevance(hook, layer, hidden.detach(), R)
    assert torch.equal(torch.autograd.grad(output, hidden, R, retain_graph=True)[0], below)
    assert torch.equal(torch.autograd.grad(output, x, R)[0], relevance(hook, layer, x, below))


@each_rule
def test_two_forwards_before_two_backwards(rule: str) -> None:
    for layer in (nn.Linear(4, 4), TracedLinear(4, 4), nn.Tanh()):
        hook, R = RULES[rule](), torch.randn(2, 4)
        inputs = [torch.randn(2, 4, requires_grad=True) for _ in range(3)]
        expected = [relevance(hook, layer, x, R) for x in inputs]
        with hook.register(layer):
            outputs = [layer(x) for x in inputs]
        for k in (1, 0, 2):
            assert torch.equal(torch.autograd.grad(outputs[k], inputs[k], R)[0], expected[k])


@each_rule
def test_two_threads(rule: str) -> None:
    layer, hook = nn.Conv1d(3, 3, 3, padding=1), RULES[rule]()
    inputs = [torch.randn(2, 3, 4) for _ in range(8)]
    R = torch.randn(2, 3, 4)
    expected = [relevance(hook, layer, x, R) for x in inputs]
    wrong: list[Any] = []

    def work(part: list[int]) -> None:
        for k in part * 4:
            x = inputs[k].clone().requires_grad_()
            (got,) = torch.autograd.grad(layer(x), x, R)
            if not torch.equal(got, expected[k]):
                wrong.append(k)

    with hook.register(layer):
        threads = [threading.Thread(target=work, args=(part,)) for part in ([0, 1, 2, 3], [4, 5, 6, 7])]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


@each_rule
def test_statistics_of_a_batch_norm_move_once(rule: str) -> None:
    for make in (lambda: nn.BatchNorm1d(3), lambda: nn.Sequential(nn.BatchNorm1d(3), nn.Identity())):
        layer, x = make(), torch.randn(5, 3)
        if isinstance(layer, nn.Sequential) and rule in CHANGES_PARAMETERS:
            continue
        plain = copy.deepcopy(layer)
        plain(x)
        relevance(RULES[rule](), layer, x, torch.randn(5, 3))
        for mine, alone in zip(layer.buffers(), plain.buffers(), strict=True):
            assert torch.equal(mine, alone)


@pytest.mark.parametrize("rule", [Norm, Epsilon], ids=lambda cls: cls.__name__)
def test_shares_follow_the_mask_of_the_forward_pass(rule: type[Epsilon]) -> None:
    layer, x = nn.Dropout(0.5), torch.ones(1, 64, requires_grad=True)
    with rule(power_of_two).register(layer):
        output = layer(x)
    torch.randn(7)  # the state has moved on
    (r,) = torch.autograd.grad(output, x, torch.ones(1, 64))
    # where kept, z = 2 and S = 4: r = 1 * 2 * 1 / 4
    assert torch.equal(r, torch.where(output.detach() != 0, 0.5, 0.0))
    assert 0 < int((output != 0).sum()) < 64


@pytest.mark.parametrize("rule", ["ZPlus", "AlphaBeta", "ZBox", "WSquare", "Flat", "BasicHook"])
def test_all_rules_follow_the_mask_of_the_forward_pass(rule: str) -> None:
    class Dropped(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:  # noqa: A002
            return F.dropout(super().forward(input), 0.5, self.training)

    layer, x = Dropped(4, 64), torch.rand(1, 4) + 1
    with torch.no_grad():
        layer.weight.copy_(torch.rand(64, 4) + 1)
    x.requires_grad_()
    hook = RULES[rule]()
    with hook.register(layer):
        output = layer(x)
    torch.randn(7)
    # relevance at an output that was dropped reaches no input; half of them are, so another mask is seen
    (r,) = torch.autograd.grad(output, x, (output == 0).double())
    assert not r.any()


def test_modes_of_a_container_that_holds_one_module_twice() -> None:
    shared = nn.Tanh()
    block = nn.Sequential(shared, nn.Dropout(0.5), shared, nn.BatchNorm1d(3), nn.Dropout(0.5)).eval()
    block[4].train()
    x, R = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3)
    answers = []
    for rule in (Norm(), BasicHook()):  # the same formula, by the graph of the call and by another call
        torch.manual_seed(1)
        with rule.register(block):
            output = block(x)
        answers.append(torch.autograd.grad(output, x, R)[0])
    assert torch.equal(*answers)


@pytest.mark.parametrize("rule", ["WSquare", "Flat", "BasicHook"])
def test_a_module_that_is_random_in_eval_mode(rule: str) -> None:
    class Always(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(x, 0.5, training=True)

    layer, x = Always().eval(), torch.ones(1, 64, requires_grad=True)
    with RULES[rule]().register(layer):
        output = layer(x)
    before = torch.get_rng_state()
    (r,) = torch.autograd.grad(output, x, torch.ones_like(output))
    assert torch.equal(r != 0, output != 0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("rule", ["Epsilon", "Norm", "BasicHook"])
def test_parameters_below_a_container_changed_between_forward_and_backward_are_noticed(rule: str) -> None:
    block, x, R = nn.Sequential(nn.Linear(3, 3)), torch.randn(2, 3, requires_grad=True), torch.randn(2, 3)
    expected = relevance(RULES[rule](), block, x, R)
    with RULES[rule]().register(block):
        output = block(x)
    with torch.no_grad():
        next(block.parameters()).mul_(2)
    assert_as_it_was_or_refused(output, x, R, expected)


@pytest.mark.parametrize("rule", ["ZPlus", "Flat", "BasicHook"])
def test_random_state_where_only_a_part_is_in_train_mode(rule: str) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.drop = nn.Parameter(torch.randn(3, 3)), nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            dropped = self.drop(F.linear(x, self.weight))
            assert isinstance(dropped, Tensor)
            return dropped

    layer, x = Block().eval(), torch.randn(2, 3, requires_grad=True)
    layer.drop.train()
    with RULES[rule]().register(layer):
        output = layer(x)
    before = torch.get_rng_state()
    torch.autograd.grad(output, x, torch.ones_like(output))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("rule", list(RULES))
def test_mode_switched_between_forward_and_backward(rule: str) -> None:
    layer, x, R = nn.BatchNorm1d(3).eval(), torch.randn(5, 3, requires_grad=True), torch.randn(5, 3)
    expected = relevance(RULES[rule](), layer, x, R)
    with RULES[rule]().register(layer):
        output = layer(x)
    layer.train()
    (got,) = torch.autograd.grad(output, x, R)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("rule", list(RULES))
def test_mode_switched_between_register_and_forward(rule: str) -> None:
    x, R = torch.randn(5, 3), torch.randn(5, 3)
    for before in (True, False):
        layer = nn.BatchNorm1d(3).train(before)
        hook = RULES[rule]()
        with hook.register(layer):
            y = layer.train(not before)(own := x.clone().requires_grad_())
        (got,) = torch.autograd.grad(y, own, R)
        assert torch.equal(got, relevance(RULES[rule](), nn.BatchNorm1d(3).train(not before), x, R))
