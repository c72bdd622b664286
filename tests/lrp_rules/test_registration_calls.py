"""Calls of every form, what is left of them, and passes of autograd within each other."""

from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from lrp_rules import BasicHook, Epsilon, Flat, Hook, Norm, Pass, WSquare, ZPlus
from lrp_rules.layers import blocks
from lrp_rules.layers import blocks as parts
from lrp_rules.layers import layer as layer_module
from tests.lrp_rules.cases import (
    FORMULAS,
    RULES,
    Add,
    Square,
    TracedLinear,
    integers,
    power_of_two,
    relevance,
)
from tests.lrp_rules.test_second_derivatives import Chain, assert_is_derivative

if TYPE_CHECKING:
    from collections.abc import Callable


class Scaled(nn.Module):
    """Takes a number beside its tensor, in any order."""

    def forward(self, left: Any, right: Any) -> Any:
        return left * right


class Total(nn.Module):
    """Takes its tensors in a list."""

    def forward(self, tensors: list[Tensor]) -> Tensor:
        return torch.stack(tensors).sum(0)


class Constant(nn.Module):
    """Takes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self) -> Tensor:
        return 2 * self.weight


class Largest(nn.Module):
    """Gives no relevance a way."""

    def forward(self, x: Tensor) -> Tensor:
        return x.argmax(-1)


class Config:
    """What a module may take beside tensors."""

    factor = 3.0
    hidden: Tensor | None = None


class Configured(nn.Module):
    def forward(self, x: Tensor | None, config: Config) -> Tensor:
        given = config.hidden if x is None else x
        assert given is not None
        return config.factor * given


# --- forms of calls ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [Norm, Epsilon])
@pytest.mark.parametrize("count", [1, 2])
def test_tensors_in_a_list(rule: Callable[..., Hook], count: int) -> None:
    module, R = Total(), integers((2, 3), 9)
    xs = [integers((2, 3), seed).requires_grad_() for seed in range(1, 1 + count)]
    with rule(power_of_two).register(module):
        output = module(xs)
    s = R / power_of_two(output.detach())
    for x, r in zip(xs, torch.autograd.grad(output, xs, R), strict=True):
        assert torch.equal(r, x.detach() * s)


@pytest.mark.parametrize("rule", ["Norm", "BasicHook", "WSquare", "Flat"])
@pytest.mark.parametrize("first", ["number", "tensor"])
def test_a_number_beside_the_tensor_is_there_again_when_the_module_runs_again(rule: str, first: str) -> None:
    class Threefold(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 3.0 * x

    x, R = integers((2, 3), 1), integers((2, 3), 2)
    expected = relevance(RULES[rule](), Threefold(), x, R)
    module = Scaled()
    x.requires_grad_()
    with RULES[rule]().register(module):
        output = module(3.0, x) if first == "number" else module(x, 3.0)
    assert torch.equal(torch.autograd.grad(output, x, R)[0], expected)


def test_one_tensor_given_twice_by_position_and_by_keyword_gets_both_shares() -> None:
    x, R, module = integers((2, 3), 1).requires_grad_(), integers((2, 3), 3), Add()
    with Norm(power_of_two).register(module):
        output = module(x, right=x)
    (got,) = torch.autograd.grad(output, x, R)
    assert torch.equal(got, 2 * x * (R / power_of_two(2 * x.detach())))


class Appends(nn.Module):
    """Leaves what it has computed in the list that it was called with."""

    def forward(self, tensors: list[Tensor]) -> Tensor:
        tensors.append(2 * tensors[0])
        return tensors[-1]


def test_a_list_is_the_callers_own_where_no_relevance_is_asked_for() -> None:
    given = [integers((2, 3), 1)]
    with Norm().register(module := Appends()):
        z = module(given)
    assert given[1] is z


@pytest.mark.parametrize("rule", ["Norm", "ZPlus", "BasicHook", "Pass", "Hook"])
def test_a_module_that_is_called_without_arguments_is_left_as_it_is(rule: str) -> None:
    module = Constant()
    with RULES[rule]().register(module):
        module().sum().backward()
    assert module.weight.grad is not None
    assert module.weight.grad.tolist() == [2.0] * 3


@pytest.mark.parametrize("rule", ["Norm", "ZPlus", "BasicHook", "Pass", "Hook"])
def test_a_module_that_returns_no_floating_point_numbers_is_left_as_it_is(rule: str) -> None:
    module, x = Largest(), torch.randn(2, 3, requires_grad=True)
    with RULES[rule]().register(module):
        output = module(x)
    assert torch.equal(output, x.argmax(-1))
    assert output.grad_fn is None


@pytest.mark.parametrize("rule", [Pass, Hook])
def test_a_module_that_returns_complex_numbers_is_refused(rule: Callable[[], Hook]) -> None:
    class ToComplex(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.complex(x, 2 * x)

    module, x = ToComplex(), torch.randn(2, 3, requires_grad=True)
    with rule().register(module), pytest.raises(TypeError, match=r"ToComplex\(\) returned complex numbers"):
        module(x)


def test_an_object_beside_a_tensor_is_allowed() -> None:
    module, x, R = Configured(), integers((2, 3), 1).requires_grad_(), integers((2, 3), 2)
    with Norm(power_of_two).register(module):
        output = module(x, Config())
    (r,) = torch.autograd.grad(output, x, R)
    assert torch.equal(r, x.detach() * (3 * (R / power_of_two(3 * x.detach()))))


def test_a_tensor_inside_an_unknown_argument_is_no_silent_gradient() -> None:
    module, config = Configured(), Config()
    config.hidden = torch.randn(2, 3, requires_grad=True)
    with Norm(0.5).register(module), pytest.raises(TypeError, match=r"was given a Config with a tensor in it"):
        module(None, config)


# --- calls that nobody explains ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["no_grad", "constant", "keyword"])
@pytest.mark.parametrize("rule", ["Norm", "ZPlus", "BasicHook", "Pass", "Hook"])
def test_a_module_in_place_writes_to_its_input_where_no_relevance_is_asked_for(rule: str, call: str) -> None:
    module, x = nn.ReLU(inplace=True), torch.tensor([-1.0, 2.0])
    with RULES[rule]().register(module):
        if call == "no_grad":
            x.requires_grad_()
            with torch.no_grad():
                output = module(x)
        else:
            output = module(x) if call == "constant" else module(input=x)
    assert output is x
    assert x.tolist() == [0.0, 2.0]


@pytest.mark.parametrize("rule", ["Norm", "ZPlus", "BasicHook", "Epsilon"])
@pytest.mark.parametrize("cls", [nn.Linear, TracedLinear])
def test_parameters_train_as_usual_where_the_input_needs_no_gradient(rule: str, cls: type[nn.Linear]) -> None:
    module, x = cls(3, 2), torch.randn(4, 3)
    (expected,) = torch.autograd.grad(module(x).sum(), module.weight)
    with RULES[rule]().register(module):
        output = module(x)
    assert torch.equal(torch.autograd.grad(output.sum(), module.weight)[0], expected)


# --- what is left of a call -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["Norm", "Epsilon"])
def test_inputs_go_with_the_backward_pass_though_the_output_is_kept(rule: str) -> None:
    module, x, y = Scaled(), torch.randn(2, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    with RULES[rule]().register(module):
        hidden, other = x * 1, y * 1
        output = module(hidden, right=other)
    refs = [weakref.ref(hidden), weakref.ref(other)]
    gc.disable()
    try:
        torch.autograd.grad(output, (x, y), torch.ones_like(output))
        del hidden, other
        assert [ref() for ref in refs] == [None] * 2
    finally:
        gc.enable()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("make", [nn.ReLU, lambda: nn.Linear(3, 3)], ids=["relu", "linear"])
def test_an_accumulated_relevance_is_no_view_of_what_the_caller_gave(rule: str, make: Callable[[], nn.Module]) -> None:
    module, x, R = make(), torch.ones(2, 3, requires_grad=True), torch.ones(2, 3)
    with RULES[rule]().register(module):
        module(x).backward(R)
    assert x.grad is not None
    x.grad.zero_()
    assert torch.equal(R, torch.ones(2, 3))


# --- running a module again -------------------------------------------------------------------------------------------


def test_a_buffer_called_bias_is_there_when_the_module_runs_again() -> None:
    class Shifted(nn.Module):
        bias: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(2.0))
            self.register_buffer("bias", torch.tensor(1.0))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.weight + self.bias

    module, x, R = Shifted(), integers((2, 3), 1), integers((2, 3), 2)
    expected = relevance(Epsilon(power_of_two), module, x, R)
    assert torch.equal(relevance(BasicHook(stabilizer=power_of_two), module, x, R), expected)


@pytest.mark.parametrize("rule", ["Norm", "BasicHook", "ZPlus", "WSquare"])
def test_inputs_changed_by_a_later_pre_hook_of_somebody_else(rule: str) -> None:
    module, x, R = TracedLinear(3, 2), torch.randn(2, 3), torch.randn(2, 2)
    below = relevance(RULES[rule](), module, 2 * x, R)
    x.requires_grad_()
    with RULES[rule]().register(module):
        handle = module.register_forward_pre_hook(lambda _, args: (2 * args[0],))
        output = module(x)
        handle.remove()
    assert torch.equal(torch.autograd.grad(output, x, R)[0], 2 * below)


@pytest.mark.parametrize("rule", ["ZPlus", "AlphaBeta(2,1)", "Gamma(0.25)", "WSquare", "BasicHook"])
def test_a_module_runs_again_in_single_precision_with_all_its_digits(rule: str) -> None:
    # weights of more digits than bfloat16 has, and sums that are exact in float32
    make = (lambda: BasicHook(stabilizer=power_of_two)) if rule == "BasicHook" else FORMULAS[rule][0]
    module, x, R = TracedLinear(4, 3), integers((2, 4), 1), integers((2, 3), 2)
    for seed, parameter in enumerate(module.parameters()):
        parameter.data = integers(parameter.shape, 3 + seed, -999, 999)
    expected = relevance(make(), module, x, R)
    got = relevance(make(), module.float(), x.float(), R.float())
    assert got.dtype == torch.float32
    assert torch.equal(got, expected.float())


def test_autocast_loses_no_digits_of_a_known_layer_that_begins_a_container_with_a_rule() -> None:
    layer, x, R = nn.Linear(4, 4).float(), (integers((3, 4), 1) + 2.0**-12).float(), integers((3, 4), 2).float()
    for seed, parameter in enumerate(layer.parameters()):
        parameter.data = integers(parameter.shape, 3 + seed).float()
    expected = relevance(BasicHook(), layer, x, R)
    container = nn.Sequential(layer)
    x.requires_grad_()
    with Hook().register(container), BasicHook().register(layer), torch.autocast("cpu"):
        output = container(x)
    assert output.dtype == torch.bfloat16
    # the hook on the container keeps what the rule below gives as the gradient
    assert torch.equal(torch.autograd.grad(output, x, R.bfloat16())[0], expected)


# --- derivatives ------------------------------------------------------------------------------------------------------


def test_a_rule_below_a_container_whose_relevance_is_differentiated() -> None:
    inner = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
    chain = Chain(nn.Sequential(nn.Tanh(), inner, Square()), (None, Hook(), Norm(0.5)), (2, 3))
    inner.requires_grad_(requires_grad=False)
    with ZPlus(0.5).register(inner[0]), Pass().register(inner[1]):
        (by_x,) = torch.autograd.grad(chain.value(create_graph=True), chain.x)

        def value(x: Tensor) -> Tensor:
            chain.x = x.clone().requires_grad_()
            return chain.value()

        assert_is_derivative(value, chain.x.detach(), by_x, chain.magnitude)


@pytest.mark.parametrize("rule", [Hook, Pass])
def test_second_derivative_beside_an_input_that_needs_no_gradient(rule: Callable[[], Hook]) -> None:
    class Both(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            return x * y, x + y

    module, x, y = Both(), integers((2, 3), 1).requires_grad_(), integers((2, 3), 2)
    with rule().register(module):
        product, _ = module(x, y)
    with Hook().register(square := Square()):
        output = square(product)
    (r,) = torch.autograd.grad(output, x, torch.ones(2, 3), create_graph=True)
    (by_x,) = torch.autograd.grad(r, x, torch.ones(2, 3))
    # r is the gradient 2 x y of the square, times y for the gradient of the product, or as it is
    assert torch.equal(by_x, 2 * y * (y if rule is Hook else 1))


@pytest.mark.parametrize("rule", [Flat(0.5), WSquare(0.5)], ids=lambda rule: type(rule).__name__)
def test_third_derivative_where_the_second_knows_nothing_of_the_first(rule: Hook) -> None:
    # the relevance is linear in what comes from above, so that nothing of the first pass is left in its derivative
    chain = Chain(nn.Sequential(nn.Linear(3, 3), nn.Tanh()), (rule, Hook()), (2, 3))
    w = torch.randn_like(chain.x)

    def first() -> Tensor:
        (by_x,) = torch.autograd.grad(chain.value(create_graph=True), chain.x, create_graph=True)
        return (by_x * w).sum()

    chain.check(chain.derivatives(first()), first, 10 * chain.magnitude)


def test_second_derivatives_in_single_precision_have_all_their_digits() -> None:
    # integers of more digits than bfloat16 has; the plain hook keeps the gradient, and so its derivative
    linear, square = nn.Linear(4, 3).float().requires_grad_(requires_grad=False), Square()
    linear.weight.copy_(integers(linear.weight.shape, 3))
    x = integers((2, 4), 1, -500, 500).float().requires_grad_()
    R, v = integers((2, 3), 2).float(), integers((2, 4), 4, -500, 500).float()

    with Hook().register(linear), Hook().register(square):
        output = square(linear(x))
    (r,) = torch.autograd.grad(output, x, R, create_graph=True)
    (got,) = torch.autograd.grad(r, x, v)
    assert torch.equal(got.double(), (2 * R * (v @ linear.weight.T)).double() @ linear.weight.double())


def test_an_explanation_in_the_middle_of_a_derivative_is_one() -> None:
    chain = Chain(nn.Sequential(nn.Linear(3, 3), nn.Tanh()), (Epsilon(0.5), Norm(0.5)), (2, 3))
    module, x, R = nn.Linear(3, 2), torch.randn(2, 3), torch.randn(2, 2)
    expected = relevance(ZPlus(0.5), module, x, R)
    got: list[Tensor] = []
    value = chain.value(create_graph=True)

    def explain(_: Tensor) -> None:
        with torch.enable_grad():
            got.append(relevance(ZPlus(0.5), module, x, R))

    handle = chain.x.register_hook(explain)
    torch.autograd.grad(value, chain.x)
    handle.remove()
    assert len(got) == 1
    assert torch.equal(got[0], expected)


# --- parts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rule", ["Epsilon", "ZPlus", "Gamma", "ZBox", "WSquare", "ReLUGuidedBackprop", "ReLUBetaSmooth"]
)
@pytest.mark.parametrize("make", [lambda: nn.Conv2d(2, 2, 1), lambda: nn.Linear(3, 3)], ids=["conv2d", "linear"])
def test_derivatives_of_large_layers(rule: str, make: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = make(), torch.randn(4, 2, 3, 3, requires_grad=True)
    R, v = torch.randn(4, 2, 3, 3, requires_grad=True), torch.randn(4, 2, 3, 3)
    module.requires_grad_(requires_grad=False)

    def derivative() -> Tensor:
        r = relevance(RULES[rule](), module, x, R, create_graph=True)
        by_R: Tensor = torch.autograd.grad(r, R, v)[0]
        return by_R

    monkeypatch.setattr(layer_module, "SMALL", -1)
    small = derivative()
    monkeypatch.setattr(blocks, "PART", 1)
    assert torch.equal(derivative(), small)


@pytest.mark.parametrize(("threads", "samples"), [(1, 2), (2, 4), (3, 6)])
def test_a_part_is_as_large_as_all_threads_together_take(
    threads: int, samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "PART", 2 * 4 * 8)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    small, large = torch.zeros(10, 1), torch.zeros(10, 4)  # a sample of 4 numbers of 8 bytes
    with torch.no_grad():
        cuts = parts.parts(10, small, large)
    assert cuts is not None
    assert [large[cut].shape[0] for cut in cuts][:-1] == [samples] * ((10 - 1) // samples)
    assert torch.equal(torch.cat([torch.arange(10)[cut] for cut in cuts]), torch.arange(10))


@pytest.mark.parametrize("threads", [19, 20, 30])
def test_what_all_threads_take_together_is_left_whole(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "PART", 8)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    x = torch.zeros(20, dtype=torch.float64)  # of 8 bytes each
    with torch.no_grad():
        assert (parts.parts(20, x) is None) == (threads >= 20)


@pytest.mark.parametrize("rule", ["Pass", "ReLUDeconvNet", "ReLUGuidedBackprop", "ReLUBetaSmooth"])
def test_a_relevance_that_would_have_to_be_broadcast_is_refused(rule: str) -> None:
    with pytest.raises(TypeError, match=rf"{rule} on Linear.*expected"):
        relevance(RULES[rule](), nn.Linear(3, 1), torch.randn(4, 3), torch.randn(4, 1))


@pytest.mark.parametrize("kind", ["register_hook", "register_post_accumulate_grad_hook"])
@pytest.mark.parametrize("name", ["weight", "bias"])
def test_hooks_of_parameters_get_zeros_and_the_other_parameter_nothing(name: str, kind: str) -> None:
    layer = nn.Linear(3, 2)
    x = torch.ones(1, 3, requires_grad=True)
    seen: list[torch.Tensor] = []

    def note(given: torch.Tensor) -> None:
        seen.append(given if kind == "register_hook" else given.grad)  # type: ignore[arg-type]

    getattr(getattr(layer, name), kind)(note)
    with Epsilon().register(layer):
        layer(x).backward(torch.ones(1, 2))
    assert len(seen) == 1
    assert torch.equal(seen[0], torch.zeros_like(getattr(layer, name)))
    assert getattr(layer, "bias" if name == "weight" else "weight").grad is None
