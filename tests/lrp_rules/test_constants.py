"""Numbers that are kept as tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lrp_rules import AlphaBeta, Gamma, ZBox
from lrp_rules.layers import numbers
from lrp_rules.layers.numbers import number
from tests.lrp_rules.cases import integers, relevance

if TYPE_CHECKING:
    from collections.abc import Callable

    from lrp_rules import Hook


@pytest.fixture(autouse=True)
def none_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numbers, "_made", {})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_a_number_is_made_once(dtype: torch.dtype) -> None:
    first = number(0.1, dtype)
    assert (first.dtype, first.shape, first.device.type) == (dtype, (), "cpu")
    assert first == torch.tensor(0.1, dtype=dtype)
    assert number(0.1, dtype) is first
    assert number(0.2, dtype) is not first


def test_so_many_are_kept_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numbers, "_KEPT", 2)
    found = [number(float(k), torch.float32) for k in range(4)]
    assert [number(float(k), torch.float32) is found[k] for k in range(4)] == [True, True, False, False]
    assert [number(float(k), torch.float32).item() for k in range(4)] == [0, 1, 2, 3]


def test_one_that_was_made_in_inference_mode_can_be_differentiated_with() -> None:
    with torch.inference_mode():
        number(2.0, torch.float32)
    x = torch.ones(3, requires_grad=True)
    assert torch.equal(torch.autograd.grad((x * number(2.0, torch.float32)).sum(), x)[0], torch.full((3,), 2.0))


def test_they_are_on_the_cpu_whatever_the_default() -> None:
    with torch.device("meta"):
        assert number(2.0, torch.float32).item() == 2


def test_tensors_without_values_are_not_kept() -> None:
    with FakeTensorMode():
        number(2.0, torch.float32)
    assert type(number(2.0, torch.float32)) is torch.Tensor


RULES: dict[str, tuple[Callable[[], Hook], Callable[[], Hook]]] = {
    "AlphaBeta": (lambda: AlphaBeta(2.0, 1.0), lambda: AlphaBeta(3.0, 2.0)),
    "Gamma": (lambda: Gamma(0.25), lambda: Gamma(0.5)),
    "ZBox": (lambda: ZBox(-3.0, 3.0), lambda: ZBox(-4.0, 5.0)),
}


@pytest.mark.parametrize("rule", RULES)
def test_nothing_writes_to_them(rule: str) -> None:
    # the second relevance would be made of what the first has left
    module, x, R = nn.Linear(4, 3).double(), integers((2, 4), 1), integers((2, 3), 2)
    one, other = RULES[rule]
    first, second = relevance(one(), module, x, R), relevance(other(), module, x, R)
    assert torch.equal(relevance(one(), module, x, R), first)
    assert not torch.equal(first, second)
    assert all(made.item() == value for (value, _), made in numbers._made.items())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("alpha", [1.1, 2.7])
def test_alpha_keeps_the_digits_that_the_relevance_has_not(alpha: float, dtype: torch.dtype) -> None:
    # with weight, input and denominators of 1, alpha R is all that is rounded: as where alpha is no tensor
    module, x = nn.Linear(1, 1, bias=False).to(dtype), torch.ones(64, 1, dtype=dtype)
    module.weight.data.fill_(1.0)
    R = torch.linspace(1, 2, 64, dtype=dtype)[:, None]
    assert torch.equal(relevance(AlphaBeta(alpha, alpha - 1, stabilizer=torch.ones_like), module, x, R), R * alpha)
