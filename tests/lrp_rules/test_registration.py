"""Registering a hook, and what else is on the module."""

from __future__ import annotations

import contextlib
import copy
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from lrp_rules import (
    BasicHook,
    Epsilon,
    Hook,
    Norm,
    Pass,
    Registration,
)
from tests.lrp_rules.cases import (
    Case,
    handles,
    integers,
    output_of,
    pickled,
    power_of_two,
    relevance,
)

Tensors = tuple[Tensor, ...]


class Recorder(Hook):
    """Writes down what it is given."""

    def __init__(self) -> None:
        self.log: list[tuple[str, nn.Module, Any, Any]] = []

    def forward(self, module: nn.Module, input: Tensors, output: Tensors) -> None:  # noqa: A002
        self.log.append(("forward", module, input, output))

    def backward(self, module: nn.Module, grad_input: Any, grad_output: Tensors) -> None:
        self.log.append(("backward", module, grad_input, grad_output))


class Times(Hook):
    """Relevance times something that was kept."""

    needs_grad_input: ClassVar[bool] = False
    kept: Any

    def forward(self, module: nn.Module, input: Tensors, output: Tensors) -> None:  # noqa: A002
        self.kept = input[0]

    def backward(self, module: nn.Module, grad_input: Any, grad_output: Tensors) -> Tensors:
        return (self.kept * grad_output[0],)


def test_register_gives_a_handle_and_a_context() -> None:
    module = nn.Linear(3, 2)
    registration = Epsilon().register(module)
    assert isinstance(registration, Registration)
    assert len(handles(module)) >= 1
    registration.remove()
    registration.remove()
    assert handles(module) == []
    with Epsilon().register(module) as entered:
        assert isinstance(entered, Registration)
    assert handles(module) == []


@pytest.mark.parametrize("second", [Epsilon(), Norm(), Pass(), Recorder()], ids=lambda hook: type(hook).__name__)
@pytest.mark.parametrize("module", [nn.Linear(3, 2), nn.ReLU()], ids=lambda module: type(module).__name__)
def test_a_second_rule_is_refused(module: nn.Module, second: Hook) -> None:
    first = Epsilon()
    with first.register(module):
        before = handles(module)
        for hook in (first, second):
            with pytest.raises(RuntimeError, match="Remove that one first") as error:
                hook.register(module)
            assert type(hook).__name__ in str(error.value)
            assert "Epsilon" in str(error.value)
        assert handles(module) == before
    with second.register(module):
        pass
    assert handles(module) == []


def test_one_rule_on_two_modules() -> None:
    rule = Epsilon(power_of_two)
    first, second = Case(lambda: nn.Linear(3, 4), (3,)).module(1), Case(lambda: nn.Linear(4, 2), (4,)).module(2)
    x, R = integers((2, 3), 1).requires_grad_(), integers((2, 2), 2)
    with rule.register(first), rule.register(second):
        output = second(first(x))
    (r,) = torch.autograd.grad(output, x, R)
    hidden = output_of(first, x)
    assert torch.equal(
        r, relevance(Epsilon(power_of_two), first, x, relevance(Epsilon(power_of_two), second, hidden, R))
    )


def test_hooks_of_others_stay_in_their_order() -> None:
    module, x = nn.Linear(3, 3), torch.randn(2, 3, requires_grad=True)
    seen: list[str] = []
    module.register_forward_pre_hook(lambda *_: seen.append("pre"))

    def doubles(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        seen.append("post")
        return 2 * output

    module.register_forward_hook(doubles)
    module.register_full_backward_hook(lambda *_: seen.append("backward"))
    before = handles(module)
    plain = module(x)
    with Pass().register(module):
        output = module(x)
    R = torch.randn(2, 3)
    (r,) = torch.autograd.grad(output, x, R)
    assert torch.equal(plain, output)
    assert torch.equal(r, 2 * R)  # the factor of the other hook lies behind the rule
    assert seen == ["pre", "post"] * 2 + ["backward"]
    assert handles(module) == before


@pytest.mark.parametrize(
    "hook",
    [Times(), Recorder(), BasicHook(), BasicHook(stabilizer=0.5), Epsilon(0.25, "bias")],
    ids=["Times", "Recorder", "BasicHook", "BasicHook(stabilizer)", "Epsilon"],
)
def test_copies_and_pickles_of_hooks(hook: Hook) -> None:
    x, R, module = integers((2, 3), 1), integers((2, 3), 2), nn.Linear(3, 3)
    expected = relevance(hook, module, x, R)
    for other in (
        hook.copy(),
        copy.copy(hook),
        copy.deepcopy(hook),
        pickled(hook) if not isinstance(hook, Recorder) else hook,
    ):
        assert torch.equal(relevance(other, module, x, R), expected)


def test_a_context_left_by_an_exception() -> None:
    module = nn.Linear(3, 2)
    with contextlib.suppress(KeyError), Epsilon().register(module):
        raise KeyError
    assert handles(module) == []
