"""Modules with several inputs or outputs, and tensors passed by keyword."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn

from lrp_rules import (
    Epsilon,
    Hook,
    Norm,
    Pass,
    Stabilizer,
)
from tests.lrp_rules.cases import (
    RULES,
    Add,
    integers,
    power_of_two,
)

if TYPE_CHECKING:
    from collections.abc import Callable


class Halves(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return 2 * x, x - 1


class Weighted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(3.0))

    def forward(self, x: Tensor, *, other: Tensor) -> Tensor:
        return self.weight * x - other


ONE_TENSOR = [
    "ZPlus",
    "AlphaBeta",
    "Gamma",
    "ZBox",
    "WSquare",
    "Flat",
    "ReLUDeconvNet",
    "ReLUGuidedBackprop",
    "ReLUBetaSmooth",
]


def _calls(x: Tensor, y: Tensor) -> dict[str, tuple[nn.Module, tuple[Tensor, ...], dict[str, Tensor]]]:
    return {
        "two-inputs": (Add(), (x, y), {}),
        "a-keyword": (Add(), (x,), {"right": y}),
        "only-a-keyword": (nn.Linear(3, 3), (), {"input": x}),
        "two-outputs": (Halves(), (x,), {}),
        "bilinear": (nn.Bilinear(3, 3, 2), (x, y), {}),
        "own-weight": (Weighted(), (x,), {"other": y}),
    }


@pytest.mark.parametrize("call", list(_calls(torch.ones(1), torch.ones(1))))
@pytest.mark.parametrize("rule", ONE_TENSOR)
def test_rules_for_one_tensor_refuse_several(rule: str, call: str) -> None:
    x, y = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    module, args, kwargs = _calls(x, y)[call]
    with RULES[rule]().register(module), pytest.raises(TypeError) as error:
        module(*args, **kwargs)
    assert rule in str(error.value)
    assert type(module).__name__ in str(error.value)
    with RULES[rule]().register(module), torch.no_grad():
        module(*args, **kwargs)  # no relevance is asked for


@pytest.mark.parametrize("rule", [Epsilon, Norm])
@pytest.mark.parametrize("how", ["positions", "keywords", "both"])
def test_each_input_gets_its_share(rule: Callable[..., Hook], how: str) -> None:
    x, y, R = (integers((2, 3), seed) for seed in (1, 2, 3))
    x.requires_grad_()
    y.requires_grad_()
    args, kwargs = {"positions": ((x, y), {}), "keywords": ((), {"left": x, "right": y}), "both": ((x,), {"right": y})}[
        how
    ]
    module = Add()
    with rule(power_of_two).register(module):
        output = module(*args, **kwargs)
    s = R / power_of_two((x + y).detach())
    got = torch.autograd.grad(output, (x, y), R)
    assert torch.equal(got[0], x * s)
    assert torch.equal(got[1], y * s)


def test_one_tensor_given_twice_gets_both_shares() -> None:
    x, R = integers((2, 3), 1).requires_grad_(), integers((2, 3), 3)
    module = Add()
    with Norm(power_of_two).register(module):
        output = module(x, x)
    (got,) = torch.autograd.grad(output, x, R)
    assert torch.equal(got, 2 * x * (R / power_of_two(2 * x.detach())))


def test_inputs_that_depend_on_each_other() -> None:
    x, R = integers((2, 3), 1).requires_grad_(), integers((2, 3), 3)
    module = Add()
    with Norm(power_of_two).register(module):
        output = module(x, 3 * x)
    s = R / power_of_two(4 * x.detach())
    (got,) = torch.autograd.grad(output, x, R)
    assert torch.equal(
        got, x * s + 3 * (3 * x * s)
    )  # the second share goes on through the multiplication as a gradient


def test_several_outputs() -> None:
    x, R, Q = integers((2, 3), 1).requires_grad_(), integers((2, 3), 3), integers((2, 3), 4)
    module = Halves()
    with Norm(power_of_two).register(module):
        outputs = module(x)
    assert isinstance(outputs, tuple)
    (got,) = torch.autograd.grad(outputs, x, (R, Q))
    v = x.detach()
    assert torch.equal(got, v * (2 * (R / power_of_two(2 * v)) + Q / power_of_two(v - 1)))


def test_an_output_without_relevance() -> None:
    x, R = integers((2, 3), 1).requires_grad_(), integers((2, 3), 3)
    module = Halves()
    with Norm(power_of_two).register(module):
        outputs = module(x)
    (got,) = torch.autograd.grad(outputs[0], x, R)
    v = x.detach()
    assert torch.equal(got, v * (2 * (R / power_of_two(2 * v))))


def test_pass_gives_each_input_the_relevance_of_its_output() -> None:
    class Both(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            return x * 2, y * 3

    x, y, R, Q = (integers((2, 3), seed) for seed in (1, 2, 3, 4))
    module = Both()
    with Pass().register(module):
        outputs = module(x.requires_grad_(), y.requires_grad_())
    got = torch.autograd.grad(outputs, (x, y), (R, Q))
    assert torch.equal(got[0], R)
    assert torch.equal(got[1], Q)


def test_pass_where_it_is_not_defined_is_refused() -> None:
    x, y = torch.ones(2, 3, requires_grad=True), torch.ones(2, 3, requires_grad=True)
    module = Add()
    with Pass().register(module):
        output = module(x, y)
    with pytest.raises(TypeError, match=r"Pass on Add.*expected one tensor for each input"):
        torch.autograd.grad(output, (x, y), output)


def test_epsilon_with_own_parameters_and_a_keyword() -> None:
    x, y, R = (integers((2, 3), seed) for seed in (1, 2, 3))
    module = Weighted()
    for zero, factor in ((None, 3.0), ("weight", 0.0)):
        with Epsilon(power_of_two, zero).register(module):
            output = module(x.requires_grad_(), other=y.requires_grad_())
        got = torch.autograd.grad(output, (x, y), R)
        s = R / power_of_two((factor * x - y).detach())
        assert torch.equal(got[0], x * (factor * s))
        assert torch.equal(got[1], y * -s)


def test_recurrent_and_attention_modules_give_shares() -> None:
    for module, args in (
        (nn.LSTM(3, 2), (torch.randn(5, 1, 3),)),
        (nn.MultiheadAttention(4, 2), tuple(torch.randn(5, 1, 4) for _ in range(3))),
    ):
        inputs = [x.requires_grad_() for x in args]
        plain = module(*inputs)[0]
        with Norm(0.5).register(module):
            output = module(*inputs)[0]
        assert torch.equal(plain, output)
        R = torch.randn_like(output)
        s = R / Stabilizer(0.5)(plain.detach())
        expected = [x.detach() * g for x, g in zip(inputs, torch.autograd.grad(plain, inputs, s), strict=True)]
        assert all(map(torch.equal, torch.autograd.grad(output, inputs, R), expected))


def test_a_tensor_inside_an_unknown_object_is_no_silent_gradient() -> None:
    class Answer:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor

    class Wrapped(nn.Module):
        def forward(self, x: Tensor) -> Answer:
            return Answer(x * x)

    x = torch.full((1, 2), 3.0, requires_grad=True)
    module = Wrapped()
    try:
        with Norm(0).register(module):
            output = module(x).tensor
    except TypeError:
        return
    (got,) = torch.autograd.grad(output, x, torch.ones(1, 2))
    assert got.tolist() == [[2 / 3, 2 / 3]]  # the gradient would be 6
