"""Rules that people write themselves: by a backward, by modifiers, by a formula."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from lrp_rules import (
    BasicHook,
    Epsilon,
    Hook,
    Pass,
)
from tests.lrp_rules.cases import (
    CASES,
    Add,
    Square,
    handles,
    integers,
    power_of_two,
    relevance,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from lrp_rules.layers.known import Layer

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


class TimesOutput(Times):
    def forward(self, module: nn.Module, input: Tensors, output: Tensors) -> None:  # noqa: A002
        self.kept = output[0]


class TimesTuple(Times):
    def forward(self, module: nn.Module, input: Tensors, output: Tensors) -> None:  # noqa: A002
        self.kept = input

    def backward(self, module: nn.Module, grad_input: Any, grad_output: Tensors) -> Tensors:
        return (self.kept[0] * grad_output[0],)


def test_what_a_hook_is_given() -> None:
    hook, module = Recorder(), nn.Linear(3, 2)
    x, R = integers((4, 3), 1).requires_grad_(), integers((4, 2), 2)
    with hook.register(module):
        output = module(x)
    (r,) = torch.autograd.grad(output, x, R)
    (forward, of, inputs, outputs), (backward, at, grad_input, grad_output) = hook.log
    assert (forward, backward) == ("forward", "backward")
    assert of is module
    assert at is module
    assert [type(given) for given in (inputs, outputs, grad_input, grad_output)] == [tuple] * 4
    assert [len(given) for given in (inputs, outputs, grad_input, grad_output)] == [1] * 4
    assert inputs[0] is x
    assert torch.equal(outputs[0], output)
    assert torch.equal(grad_output[0], R)
    assert torch.equal(grad_input[0], R @ module.weight.detach())
    assert torch.equal(r, grad_input[0])


def test_what_a_hook_is_given_of_several_tensors() -> None:
    class Both(nn.Module):
        def forward(self, x: Tensor, flag: bool, *, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            return x + y, {"product": x * y if flag else x}

    hook, module = Recorder(), Both()
    x, y, R, Q = (integers((2, 3), seed) for seed in (1, 2, 3, 4))
    x.requires_grad_()
    y.requires_grad_()
    with hook.register(module):
        output, more = module(x, True, y=y)
    got = torch.autograd.grad((output, more["product"]), (x, y), (R, Q))
    (_, _, inputs, outputs), (_, _, grad_input, grad_output) = hook.log
    assert [torch.equal(a, b) for a, b in zip(inputs, (x, y), strict=True)] == [True, True]
    assert [torch.equal(a, b) for a, b in zip(outputs, (x + y, x * y), strict=True)] == [True, True]
    assert [torch.equal(a, b) for a, b in zip(grad_output, (R, Q), strict=True)] == [True, True]
    assert torch.equal(grad_input[0], R + Q * y)
    assert torch.equal(grad_input[1], R + Q * x)
    assert all(map(torch.equal, got, grad_input))


def test_the_plain_hook_keeps_the_gradient() -> None:
    for module in (nn.Linear(3, 3), nn.Tanh(), nn.Softmax(-1), Square()):
        x, R = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3)
        (gradient,) = torch.autograd.grad(module(x), x, R)
        assert torch.equal(relevance(Hook(), module, x, R), gradient)


@pytest.mark.parametrize("answer", [lambda R: R, lambda R: (R,), lambda R: [R]], ids=["tensor", "tuple", "list"])
def test_forms_of_an_answer(answer: Callable[[Tensor], Any]) -> None:
    class Answers(Hook):
        def backward(self, module: nn.Module, grad_input: Any, grad_output: Tensors) -> Any:
            return answer(2 * grad_output[0])

    x, R = torch.randn(2, 3), torch.randn(2, 3)
    assert torch.equal(relevance(Answers(), nn.Tanh(), x, R), 2 * R)


WRONG_ANSWERS: dict[str, Callable[[Tensor], Any]] = {
    "too-many": lambda R: (R, R),
    "none-at-all": lambda _: (),
    "wrong-shape": lambda R: (R[:, :2],),
    "would-broadcast": lambda R: (R.sum(0, keepdim=True),),
}


@pytest.mark.parametrize("answer", WRONG_ANSWERS)
def test_answers_that_do_not_fit_are_refused(answer: str) -> None:
    class Wrong(Hook):
        def backward(self, module: nn.Module, grad_input: Any, grad_output: Tensors) -> Any:
            return WRONG_ANSWERS[answer](grad_output[0])

    with pytest.raises(TypeError, match=r"Wrong on Tanh\(\).*expected one tensor for each input"):
        relevance(Wrong(), nn.Tanh(), torch.randn(2, 3), torch.randn(2, 3))


def test_none_for_one_of_several_inputs() -> None:
    class First(Hook):
        def backward(self, module: nn.Module, grad_input: Any, grad_output: Tensors) -> tuple[Tensor, None]:
            return (grad_output[0], None)

    x, y, R = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True), torch.randn(2, 3)
    module = Add()
    with First().register(module):
        output = module(x, y)
    of_x, of_y = torch.autograd.grad(output, (x, y), R, allow_unused=True, materialize_grads=True)
    assert torch.equal(of_x, R)
    assert not of_y.any()


def test_grad_input_costs_nothing_where_it_is_not_wanted() -> None:
    class Expensive(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *grad: Tensor) -> Tensor:
            raise AssertionError

    class Module(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            result = Expensive.apply(x)  # type: ignore[no-untyped-call]
            assert isinstance(result, Tensor)
            return result

    x, R = torch.randn(2, 3), torch.randn(2, 3)
    assert torch.equal(relevance(Pass(), Module(), x, R), R)
    assert torch.equal(relevance(Times(), Module(), x, R), x * R)


@pytest.mark.parametrize("cls", [Times, TimesOutput, TimesTuple])
def test_each_call_has_a_state_of_its_own(cls: type[Times]) -> None:
    hook, module = cls(), nn.Identity()
    x, y, R = integers((2, 3), 1).requires_grad_(), integers((2, 3), 2).requires_grad_(), integers((2, 3), 3)
    with hook.register(module):
        first, second = module(x), module(y)
    for output, given in ((second, y), (first, x), (second, y)):
        (r,) = torch.autograd.grad(output, given, R, retain_graph=True)
        assert torch.equal(r, given * R)
    assert not [name for name, value in vars(hook).items() if isinstance(value, Tensor | tuple)]


def test_a_module_that_sees_its_own_output() -> None:
    hook, module = Times(), nn.Identity()
    x, R = integers((2, 3), 1).requires_grad_(), integers((2, 3), 3)
    with hook.register(module):
        output = module(module(module(x) * 2) * 3)
    (r,) = torch.autograd.grad(output, x, R)
    assert torch.equal(r, x * 2 * (2 * x) * 3 * (6 * x) * R)


def test_what_forward_keeps_can_be_differentiated() -> None:
    x, R = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3)
    for hook in (Times(), TimesTuple()):
        r = relevance(hook, nn.Tanh(), x, R, create_graph=True)
        assert torch.equal(torch.autograd.grad(r.sum(), x)[0], R)


def test_arguments_that_are_tensors() -> None:
    class Scaled(Hook):
        needs_grad_input: ClassVar[bool] = False

        def __init__(self, scale: Tensor) -> None:
            self.scale = scale

        def forward(self, module: nn.Module, input: Tensors, output: Tensors) -> None:  # noqa: A002
            self.kept = input[0]

        def backward(self, module: nn.Module, grad_input: Any, grad_output: Tensors) -> Tensor:
            return self.scale * self.kept * grad_output[0]

    x, R, scale = integers((2, 3), 1), integers((2, 3), 2), torch.tensor(2.0)
    hook = Scaled(scale)
    assert torch.equal(relevance(hook, nn.Tanh(), x, R), 2 * x * R)
    assert torch.equal(relevance(hook.copy(), nn.Tanh(), x, R), 2 * x * R)
    assert hook.scale is scale


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_an_exception_of_the_user_leaves_nothing(where: str) -> None:
    class Raises(Hook):
        def forward(self, module: nn.Module, input: Tensors, output: Tensors) -> None:  # noqa: A002
            if where == "forward":
                raise KeyError(where)

        def backward(self, module: nn.Module, grad_input: Any, grad_output: Tensors) -> None:
            raise KeyError(where)

    module = nn.Linear(3, 3)
    with pytest.raises(KeyError, match=where):
        relevance(Raises(), module, torch.randn(2, 3), torch.randn(2, 3))
    assert handles(module) == []
    relevance(Pass(), module, torch.randn(2, 3), torch.randn(2, 3))


@pytest.mark.parametrize("base", [BasicHook, Epsilon])
def test_backward_of_a_subclass_of_a_rule_is_called(base: type[BasicHook]) -> None:
    class Own(base):  # type: ignore[misc, valid-type]
        def backward(self, module: nn.Module, grad_input: Any, grad_output: Tensors) -> Tensors:
            return (torch.full((2, 3), 7.0),)

    assert torch.equal(relevance(Own(), nn.Linear(3, 2), torch.randn(2, 3), torch.randn(2, 2)), torch.full((2, 3), 7.0))


def test_backward_of_a_subclass_may_change_what_the_rule_answers() -> None:
    class Twice(Epsilon):
        def backward(self, module: nn.Module, grad_input: Any, grad_output: Tensors) -> Tensors:
            answer = super().backward(module, grad_input, grad_output)
            assert isinstance(answer, tuple)
            return (2 * answer[0],)

    x, R, module = integers((2, 4), 1), integers((2, 3), 2), CASES["linear"].module()
    assert torch.equal(relevance(Twice(power_of_two), module, x, R), 2 * relevance(Epsilon(power_of_two), module, x, R))
    with pytest.raises(RuntimeError, match=r"Twice\.backward belongs to a call of the module"):
        Twice().backward(module, (None,), (R,))


@pytest.mark.parametrize("create_graph", [False, True], ids=["once", "differentiable"])
def test_an_input_may_get_no_relevance(create_graph: bool) -> None:
    class ToTheRight(Hook):
        needs_grad_input = False

        def backward(self, module: nn.Module, grad_input: Any, grad_output: Tensors) -> tuple[None, Tensor]:
            return None, grad_output[0]

    left, right = (integers((2, 3), seed).requires_grad_() for seed in (1, 2))
    R, module = integers((2, 3), 3), Add()
    with ToTheRight().register(module):
        output = module(left, right)
    given: tuple[Tensor | None, ...] = torch.autograd.grad(
        output, (left, right), R, create_graph=create_graph, allow_unused=True
    )
    of_left, of_right = given
    assert of_left is None
    assert of_right is not None
    assert torch.equal(of_right, R)


def test_a_tensor_that_a_modifier_returns_is_left_as_it_is() -> None:
    constant = integers((2, 4), 3)
    relevance(BasicHook([lambda _: constant]), nn.Linear(4, 3), torch.randn(2, 4), torch.randn(2, 3))
    assert not constant.requires_grad
    assert constant.grad_fn is None


def test_forward_of_a_subclass_of_a_rule_is_called() -> None:
    calls = []

    class Own(Epsilon):
        def forward(self, module: nn.Module, input: Tensors, output: Tensors) -> None:  # noqa: A002
            calls.append(module)

    relevance(Own(), nn.Linear(3, 2), torch.randn(2, 3), torch.randn(2, 2))
    assert len(calls) == 1


def test_a_formula_of_ones_own() -> None:
    class HalfOfEpsilon(BasicHook):
        def relevance(self, layer: Layer, R: Tensor) -> Tensor:
            return layer.x * (layer.matrix().T @ (R / (2 * self.stabilizer(layer.z))))

    x, R, module = integers((2, 4), 1), integers((2, 3), 2), CASES["linear"].module()
    half, whole = (
        relevance(HalfOfEpsilon(stabilizer=power_of_two), module, x, R),
        relevance(Epsilon(power_of_two), module, x, R),
    )
    assert torch.equal(2 * half, whole)
