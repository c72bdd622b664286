"""Rules that people write themselves: by a backward, by modifiers, by a formula."""

from __future__ import annotations

import contextlib
import copy
import pickle
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from lrp_rules import (
    AlphaBeta,
    BasicHook,
    ClampMod,
    Epsilon,
    Flat,
    Gamma,
    GammaMod,
    Hook,
    NoMod,
    Norm,
    ParamMod,
    Pass,
    Registration,
    WSquare,
    ZBox,
    ZPlus,
    zero_bias,
)
from tests.lrp_rules.cases import (
    CASES,
    Add,
    Case,
    Square,
    down,
    handles,
    integers,
    output_of,
    power_of_two,
    relevance,
    up,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lrp_rules.linear_map import Layer

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
    got = torch.autograd.grad(output, (x, y), R, allow_unused=True)
    assert torch.equal(got[0], R)
    assert got[1] is None or not got[1].any()


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


@pytest.mark.xfail(
    strict=True, reason="BUG basic-backward: BasicHook never calls an overridden backward", raises=AssertionError
)
@pytest.mark.parametrize("base", [BasicHook, Epsilon])
def test_backward_of_a_subclass_of_a_rule_is_called(base: type[BasicHook]) -> None:
    class Own(base):  # type: ignore[misc, valid-type]
        def backward(self, module: nn.Module, grad_input: Any, grad_output: Tensors) -> Tensors:
            return (torch.full((2, 3), 7.0),)

    assert torch.equal(relevance(Own(), nn.Linear(3, 2), torch.randn(2, 3), torch.randn(2, 2)), torch.full((2, 3), 7.0))


@pytest.mark.xfail(
    strict=True, reason="BUG basic-backward: BasicHook never calls an overridden forward", raises=AssertionError
)
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


# ------------------------------------------------------------------------------------------------- made of modifiers


def same(v: Tensor) -> Tensor:
    return v


def made_of_modifiers(name: str) -> BasicHook:
    """The rules in the words of the API."""
    S = power_of_two
    both = [up, down]
    clamps = [ClampMod(min=0.0), ClampMod(max=0.0, zero_params=zero_bias())]
    opposite = [ClampMod(max=0.0), ClampMod(min=0.0, zero_params="bias")]
    match name:
        case "Epsilon":
            return BasicHook(stabilizer=S)
        case "Epsilon(zero_params='bias')":
            return BasicHook(param_modifiers=[NoMod(zero_params="bias")], stabilizer=S)
        case "ZPlus":
            return BasicHook(both, clamps, gradient_mapper=lambda R, z: [R / S(z[0] + z[1])] * 2)
        case "AlphaBeta":
            return BasicHook(
                both * 2,
                clamps + opposite,
                gradient_mapper=lambda R, z: [R / S(z[0] + z[1])] * 2 + [R / S(z[2] + z[3])] * 2,
                reducer=lambda x, c: 2 * (x[0] * c[0] + x[1] * c[1]) - (x[2] * c[2] + x[3] * c[3]),
            )
        case "Gamma":
            return BasicHook(
                [*both, *both, same],
                [
                    GammaMod(0.25, min=0.0),
                    GammaMod(0.25, max=0.0, zero_params="bias"),
                    GammaMod(0.25, max=0.0),
                    GammaMod(0.25, min=0.0, zero_params=["bias"]),
                    NoMod(),
                ],
                gradient_mapper=lambda R, z: (
                    [(z[4] > 0) * R / S(z[0] + z[1])] * 2 + [(z[4] < 0) * R / S(z[2] + z[3])] * 2 + [0 * R]
                ),
            )
        case "ZBox":
            return BasicHook(
                [same, lambda x: torch.full_like(x, -1), lambda x: torch.full_like(x, 2)],
                [NoMod(), ClampMod(min=0.0), ClampMod(max=0.0)],
                [same, torch.neg, torch.neg],
                gradient_mapper=lambda R, z: [R / S(z[0] + z[1] + z[2])] * 3,
            )
        case "WSquare":
            return BasicHook([torch.ones_like], [lambda p, _: p**2], stabilizer=S)
        case "Flat":
            return BasicHook(
                [torch.ones_like], [lambda p, name: 0 * p if name == "bias" else torch.ones_like(p)], stabilizer=S
            )
        case _:
            raise KeyError(name)


OURS: dict[str, Callable[[], BasicHook]] = {
    "Epsilon": lambda: Epsilon(power_of_two),
    "Epsilon(zero_params='bias')": lambda: Epsilon(power_of_two, "bias"),
    "ZPlus": lambda: ZPlus(power_of_two),
    "AlphaBeta": lambda: AlphaBeta(2, 1, power_of_two),
    "Gamma": lambda: Gamma(0.25, power_of_two),
    "ZBox": lambda: ZBox(-1, 2, power_of_two),
    "WSquare": lambda: WSquare(power_of_two),
    "Flat": lambda: Flat(power_of_two),
}
# a statistic is no parameter, so modifiers cannot say what the rules mean on a batch norm
MODIFIED = [name for name in CASES if "batchnorm" not in name]


@pytest.mark.parametrize("layer", MODIFIED)
@pytest.mark.parametrize("rule", OURS)
def test_rules_are_what_their_modifiers_say(rule: str, layer: str) -> None:
    module, x = CASES[layer].module(), CASES[layer].input()
    R = integers(output_of(module, x).shape, 2)
    assert torch.equal(relevance(OURS[rule](), module, x, R), relevance(made_of_modifiers(rule), module, x, R))


def test_planted_modifiers_are_caught() -> None:
    module, x = CASES["conv2d-circular"].module(), CASES["conv2d-circular"].input()
    R = integers(output_of(module, x).shape, 2)
    careless = BasicHook(
        [up, down],
        [ClampMod(min=0.0), ClampMod(max=0.0)],
        gradient_mapper=lambda R, z: [R / power_of_two(z[0] + z[1])] * 2,
    )  # the bias is in both of them
    assert not torch.equal(relevance(careless, module, x, R), relevance(ZPlus(power_of_two), module, x, R))


def test_modifiers_get_what_the_api_says() -> None:
    seen: dict[str, list[Any]] = {name: [] for name in ("input", "param", "output", "mapper", "reducer")}

    def mapper(R: Tensor, outputs: Sequence[Tensor]) -> list[Tensor]:
        seen["mapper"].append((R, tuple(outputs)))
        return [R, 2 * R]

    def reducer(inputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
        seen["reducer"].append((tuple(inputs), tuple(gradients)))
        return inputs[0] * gradients[0] + gradients[1]

    def note(name: str, factor: float) -> Callable[..., Tensor]:
        return lambda v, *more: (seen[name].append((v.shape, *more)), factor * v)[1]

    hook = BasicHook(
        [note("input", 1), note("input", 2)],
        [note("param", 1), note("param", -1)],
        [note("output", 1), note("output", 3)],
        mapper,
        reducer,
    )
    module, x, R = nn.Linear(4, 3), integers((2, 4), 1), integers((2, 3), 2)
    with torch.no_grad():
        module.weight.copy_(integers((3, 4), 3))
        module.bias.copy_(integers((3,), 4))
    r = relevance(hook, module, x, R)
    w, b = module.weight.detach(), module.bias.detach()
    assert seen["input"] == [(x.shape,)] * 2
    assert sorted(map(str, seen["param"])) == sorted(map(str, [(w.shape, "weight"), (b.shape, "bias")] * 2))
    assert seen["output"] == [(R.shape,)] * 2
    ((given, outputs),) = seen["mapper"]
    assert torch.equal(given, R)
    assert torch.equal(outputs[0], x @ w.T + b)
    assert torch.equal(outputs[1], 3 * (2 * x @ -w.T - b))
    ((inputs, gradients),) = seen["reducer"]
    assert torch.equal(inputs[1], 2 * x)
    assert torch.equal(
        gradients[1], 3 * (2 * R) @ -w
    )  # by the modified input: the input modifier is not differentiated
    assert torch.equal(r, x * (R @ w) + gradients[1])


def test_stabilizer_of_a_basic_hook_is_used() -> None:
    module, x, R = CASES["linear"].module(), CASES["linear"].input(), integers((3, 3), 2)
    assert torch.equal(
        relevance(BasicHook(stabilizer=lambda d: d + 100), module, x, R),
        relevance(Epsilon(lambda d: d + 100), module, x, R),
    )
    hook = BasicHook(stabilizer=4)
    assert torch.equal(relevance(hook.copy(), module, x, R), relevance(hook, module, x, R))


@pytest.mark.parametrize(
    "lists",
    [
        {"input_modifiers": [same], "param_modifiers": [NoMod(), NoMod()]},
        {"output_modifiers": [same] * 3, "input_modifiers": [same]},
    ],
    ids=["one-and-two", "three-and-one"],
)
def test_lists_of_different_lengths_are_refused(lists: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="lists of modifiers have lengths") as error:
        BasicHook(**lists)
    assert str(sorted({len(given) for given in lists.values()})) in str(error.value)


def test_tuples_of_modifiers() -> None:
    module, x, R = CASES["linear"].module(), CASES["linear"].input(), integers((3, 3), 2)
    hook = BasicHook((same,), (ParamMod(lambda p, _: p),), (same,), lambda R, z: (R / power_of_two(z[0]),))
    assert torch.equal(relevance(hook, module, x, R), relevance(Epsilon(power_of_two), module, x, R))


@pytest.mark.xfail(
    strict=True,
    reason="BUG mapper-tensor: zennit's own rules give one tensor for one output",
    raises=(ValueError, RuntimeError),
)
@pytest.mark.parametrize("samples", [1, 3])
def test_a_mapper_may_give_one_tensor_for_one_output(samples: int) -> None:
    module, x, R = CASES["linear"].module(), CASES["linear"].input(samples), integers((samples, 3), 2)
    hook = BasicHook(gradient_mapper=lambda R, z: R / power_of_two(z[0]))
    assert torch.equal(relevance(hook, module, x, R), relevance(Epsilon(power_of_two), module, x, R))


def test_missing_parameters_are_named() -> None:
    hook = BasicHook(param_modifiers=[ClampMod(min=0, param_keys=["weight", "scale"])])
    with pytest.raises(RuntimeError, match="no parameter 'scale'"):
        relevance(hook, nn.Linear(3, 2), torch.randn(2, 3), torch.randn(2, 2))


def test_a_stabilizer_that_raises_leaves_nothing() -> None:
    def raises(d: Tensor) -> Tensor:
        raise KeyError(d)

    module = nn.Linear(3, 2)
    state = copy.deepcopy(module.state_dict())
    for hook in (Epsilon(raises), ZPlus(raises), BasicHook(stabilizer=raises), Gamma(stabilizer=raises)):
        with pytest.raises(KeyError):
            relevance(hook, module, torch.randn(2, 3), torch.randn(2, 2))
        assert handles(module) == []
        assert all(torch.equal(state[name], value) for name, value in module.state_dict().items())


# ------------------------------------------------------------------------------------------------------ registration


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
    module.register_forward_hook(lambda _, __, output: (seen.append("post"), 2 * output)[1])
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
    ids=lambda h: type(h).__name__ + str(len(vars(h))) + str(vars(h).get("stabilizer", "")),
)
def test_copies_and_pickles_of_hooks(hook: Hook) -> None:
    x, R, module = integers((2, 3), 1), integers((2, 3), 2), nn.Linear(3, 3)
    expected = relevance(hook, module, x, R)
    for other in (
        hook.copy(),
        copy.copy(hook),
        copy.deepcopy(hook),
        pickle.loads(pickle.dumps(hook)) if not isinstance(hook, Recorder) else hook,
    ):
        assert torch.equal(relevance(other, module, x, R), expected)


def test_a_context_left_by_an_exception() -> None:
    module = nn.Linear(3, 2)
    with contextlib.suppress(KeyError), Epsilon().register(module):
        raise KeyError
    assert handles(module) == []
