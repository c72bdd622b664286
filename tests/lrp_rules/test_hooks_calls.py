"""What a call keeps and hands to a hook, its derivatives, and the parameters and modules it finds."""

from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.utils import parametrizations, parametrize, prune

from lrp_rules import (
    AlphaBeta,
    BasicHook,
    Epsilon,
    Flat,
    Gamma,
    Hook,
    Norm,
    ParamMod,
    Pass,
    ReLUBetaSmooth,
    ReLUDeconvNet,
    WSquare,
    ZBox,
    ZPlus,
    attach,
)
from lrp_rules.modules import effective_parameters
from tests.lrp_rules.cases import Add, Case, Square, TracedLinear, integers, output_of, power_of_two, relevance

if TYPE_CHECKING:
    from collections.abc import Callable

    from lrp_rules.layers.known import Layer

Tensors = tuple[Tensor, ...]


def whole(make: Callable[[], nn.Module]) -> nn.Module:
    """A layer from 3 to 3 with whole numbers, so that everything below is exact."""
    return Case(make, (3,)).module()


# ---------------------------------------------------------------------------------------------------- derivatives


class SquareOfInput(BasicHook):
    """r = x² R: a relevance whose derivative goes down to what has computed x."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        return layer.x.square() * R


def to_all(base: type[Hook]) -> Hook:
    """A rule that gives all of R to each input, and has the derivative that its base class gives it."""

    class ToAll(base):  # type: ignore[misc, valid-type]
        needs_grad_input: ClassVar[bool] = base is not Hook

        def backward(self, module: nn.Module, grad_input: Tensors, grad_output: Tensors) -> Tensors:
            return (grad_output[0],) * len(grad_input)

    made: Hook = ToAll()
    return made


def gradients(value: Tensor, of: Tensors, *, create_graph: bool = False) -> Tensors:
    if not value.requires_grad:
        return tuple(torch.zeros_like(one) for one in of)
    return torch.autograd.grad(
        value.sum(), of, retain_graph=True, create_graph=create_graph, allow_unused=True, materialize_grads=True
    )


def same_derivatives(hook: Hook, module: nn.Module, inputs: Tensors, of: Tensors, *, calls: int = 1) -> list[bool]:
    """Whether the relevance of ``of[0]``, z² R for the output z, has the first two derivatives that it is to have."""
    top, R = nn.Identity(), integers(inputs[0].shape, 7)

    def output() -> Tensor:
        z = module(*inputs)
        for _ in range(calls - 1):
            z = module(z)
        first: Tensor = z[0] if isinstance(z, tuple) else z
        return first

    with hook.register(module), SquareOfInput().register(top):
        found = top(output())
    (got,) = torch.autograd.grad(found, of[0], R, create_graph=True)
    expected = output().square() * R
    pairs: list[tuple[Tensors, Tensors]] = [((got,), (expected,))]
    for _ in range(2):
        pairs.append((gradients(got, of), gradients(expected, of)))
        got, expected = (
            torch.stack([one.sum() for one in gradients(value, of, create_graph=True)]).sum()
            for value in (got, expected)
        )
        pairs.append(((got,), (expected,)))
    return [all(map(torch.equal, *pair)) for pair in pairs]


class Product(nn.Module):
    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return left * right


class LeavesOneOut(nn.Module):
    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return left.square()


class Constant(nn.Module):
    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return 2 * left.detach()


class AndConstant(nn.Module):
    def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        return left * right, right.detach()


BASES = [Hook, Epsilon]
TWO_INPUTS = [Add, Product, LeavesOneOut, Constant, AndConstant]


@pytest.mark.parametrize("needing", ["both", "left", "right"])
@pytest.mark.parametrize("module", TWO_INPUTS)
@pytest.mark.parametrize("base", BASES)
def test_derivatives_of_modules_of_two_inputs(base: type[Hook], module: type[nn.Module], needing: str) -> None:
    inputs = integers((2, 3), 1), integers((2, 3), 2)
    of = {"both": inputs, "left": inputs[:1], "right": inputs[1:]}[needing]
    for one in of:
        one.requires_grad_()
    if base is Epsilon and (module is Constant or (module is LeavesOneOut and needing == "right")):
        with pytest.raises(RuntimeError, match="its output has no graph to its input"):
            same_derivatives(to_all(base), module(), inputs, of)
        return
    assert all(same_derivatives(to_all(base), module(), inputs, of))
    assert [one.requires_grad for one in inputs] == [needing != "right", needing != "left"]


@pytest.mark.parametrize("base", BASES)
def test_derivatives_of_one_tensor_given_twice(base: type[Hook]) -> None:
    class ToFirst(base):  # type: ignore[misc, valid-type]
        def backward(self, module: nn.Module, grad_input: Tensors, grad_output: Tensors) -> tuple[Tensor, None]:
            return grad_output[0], None

    x = integers((2, 3), 1).requires_grad_()
    assert all(same_derivatives(ToFirst(), Product(), (x, x), (x,)))


SQUARE_LAYERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(3, 3),
    "linear-no-bias": lambda: nn.Linear(3, 3, bias=False),
    "traced-linear": lambda: TracedLinear(3, 3),
    "traced-linear-no-bias": lambda: TracedLinear(3, 3, bias=False),
    "batchnorm": lambda: nn.BatchNorm1d(3, eps=0.0),
    "batchnorm-not-affine": lambda: nn.BatchNorm1d(3, eps=0.0, affine=False),
    "container": lambda: nn.Sequential(nn.Linear(3, 3), Square()),
}


@pytest.mark.parametrize("calls", [1, 2])
@pytest.mark.parametrize("layer", SQUARE_LAYERS)
@pytest.mark.parametrize("trained", [True, False], ids=["trained", "frozen"])
def test_derivatives_of_a_layer_below_others(layer: str, trained: bool, calls: int) -> None:
    module, x = whole(SQUARE_LAYERS[layer]).requires_grad_(trained), integers((2, 3), 1).requires_grad_()
    parameters = tuple(module.parameters())
    assert all(same_derivatives(to_all(Epsilon), module, (x,), (x, *(parameters if trained else ())), calls=calls))
    assert all(parameter.requires_grad == trained for parameter in parameters)
    assert all(parameter.grad is None for parameter in parameters)


def test_a_derivative_takes_the_statistics_of_the_call() -> None:
    module, x = whole(lambda: nn.BatchNorm1d(3, eps=0.0)), integers((2, 3), 1).requires_grad_()
    top, R = nn.Identity(), integers((2, 3), 2)
    with to_all(Epsilon).register(module), SquareOfInput().register(top):
        output = top(module(x))
    (expected,) = torch.autograd.grad((module(x).square() * R).sum(), x)
    module.load_state_dict({name: 4 * value for name, value in module.state_dict().items()}, assign=True)
    (r,) = torch.autograd.grad(output, x, R, create_graph=True)
    (got,) = torch.autograd.grad(r.sum(), x)
    assert torch.equal(got, expected)


# --------------------------------------------------------------------------------------------------- what is kept


NOT_KEPT: dict[str, Callable[[], tuple[Hook, nn.Module]]] = {
    "Pass-linear": lambda: (Pass(), nn.Linear(4, 4)),
    "Pass-pooling": lambda: (Pass(), nn.AvgPool1d(1)),
    "BetaSmooth-pooling": lambda: (ReLUBetaSmooth(), nn.AvgPool1d(1)),
    "BasicHook-linear": lambda: (BasicHook(), nn.Linear(4, 4)),
    "ZPlus-linear": lambda: (ZPlus(), nn.Linear(4, 4)),
    "WSquare-batchnorm": lambda: (WSquare(), nn.BatchNorm1d(4).eval()),
    # these need the values, and have them of their own
    "Norm-pooling": lambda: (Norm(), nn.AdaptiveAvgPool1d(4)),
    "BasicHook-traced-linear": lambda: (BasicHook(), TracedLinear(4, 4)),
}


@pytest.mark.parametrize("name", NOT_KEPT)
def test_the_memory_of_an_output_is_not_kept_where_no_rule_needs_it(name: str) -> None:
    rule, module = NOT_KEPT[name]()
    x = torch.randn(4, 4, requires_grad=True)
    with rule.register(module):
        output = module(x)
    total, memory = output.sum(), StorageWeakRef(output.untyped_storage())
    assert not memory.expired()
    del output
    assert memory.expired()
    torch.autograd.grad(total, x)


class Pooling(nn.Module):
    """Knows whether the memory of its output is still there."""

    memory: StorageWeakRef

    def forward(self, x: Tensor) -> Tensor:
        output = nn.functional.avg_pool1d(x, 1)
        self.memory = StorageWeakRef(output.untyped_storage())
        return output


@pytest.mark.parametrize("rule", [Pass, ReLUDeconvNet])
def test_an_output_is_not_even_kept_as_a_copy_where_no_rule_needs_it(rule: Callable[[], Hook]) -> None:
    x, module = torch.randn(4, 4, requires_grad=True), Pooling()
    with rule().register(module):
        total = module(x).sum()
    assert module.memory.expired()
    torch.autograd.grad(total, x)


class Keeps(Hook):
    """Relevance times a tensor that was made for the call."""

    needs_grad_input: ClassVar[bool] = False

    def forward(self, module: nn.Module, input: Tensors, output: Tensors) -> None:  # noqa: A002
        self.kept = 2 * input[0].detach()
        self.reference = weakref.ref(self.kept)
        references.append(self.reference)

    def backward(self, module: nn.Module, grad_input: Any, grad_output: Tensors) -> Tensor:
        return self.kept * grad_output[0]


references: list[weakref.ref[Tensor]] = []


def test_what_forward_keeps_goes_when_the_graph_was_used() -> None:
    references.clear()
    x, module = torch.randn(2, 3, requires_grad=True), nn.Tanh()
    with Keeps().register(module):
        output = module(x)
    assert references[0]() is not None
    torch.autograd.grad(output.sum(), x)
    gc.collect()
    assert references[0]() is None
    assert output.grad_fn is not None


@pytest.mark.parametrize("base", BASES)
def test_what_forward_keeps_does_not_hide_what_the_rule_needs(base: type[Hook]) -> None:
    class Keeping(base):  # type: ignore[misc, valid-type]
        def forward(self, module: nn.Module, input: Tensors, output: Tensors) -> None:  # noqa: A002
            self.of_input, self.of_output = input[0] + 1, output[0] + 2

    module, x, R = whole(lambda: nn.Linear(3, 3)), integers((2, 3), 1), integers((2, 3), 2)
    assert torch.equal(relevance(Keeping(), module, x, R), relevance(base(), module, x, R))


@pytest.mark.parametrize("base", [*BASES, BasicHook])
def test_forward_and_backward_see_the_same_call(base: type[Hook]) -> None:
    class Kept(base):  # type: ignore[misc, valid-type]
        def forward(self, module: nn.Module, input: Tensors, output: Tensors) -> None:  # noqa: A002
            (self.of_input,), (self.of_output,) = input, output

        def backward(self, module: nn.Module, grad_input: Any, grad_output: Tensors) -> Tensor:
            return self.of_input + 10 * self.of_output + 100 * grad_output[0]

    module, x, R = whole(lambda: nn.Linear(3, 3)), integers((2, 3), 1), integers((2, 3), 2)
    assert torch.equal(relevance(Kept(), module, x, R), x + 10 * output_of(module, x) + 100 * R)


@pytest.mark.parametrize("base", BASES)
def test_a_backward_without_gradients_gets_none_for_each_input(base: type[Hook]) -> None:
    seen: list[Any] = []

    class Looks(base):  # type: ignore[misc, valid-type]
        needs_grad_input: ClassVar[bool] = base is not Hook

        def backward(self, module: nn.Module, grad_input: Any, grad_output: Tensors) -> None:
            seen.append(grad_input)

    x, y, module = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True), Add()
    with Looks().register(module):
        output = module(x, y)
    found: tuple[Tensor | None, ...] = torch.autograd.grad(output.sum(), (x, y), allow_unused=True)
    assert found == (None, None)
    assert seen == [(None, None)]


def test_what_a_backward_or_a_formula_notes_down_is_found_on_the_rule() -> None:
    class NotesBackward(Hook):
        def backward(self, module: nn.Module, grad_input: Any, grad_output: Tensors) -> None:
            self.seen = grad_output[0]

    class NotesFormula(BasicHook):
        def relevance(self, layer: Layer, R: Tensor) -> Tensor:
            self.seen = R
            return super().relevance(layer, R)

    R = integers((2, 3), 2)
    for hook in (NotesBackward(), NotesFormula()):
        relevance(hook, nn.Linear(3, 3), torch.randn(2, 3), R)
        assert torch.equal(hook.seen, R)


def test_a_rule_holds_nothing_of_a_call_that_is_over() -> None:
    class Own(Epsilon):
        def backward(self, module: nn.Module, grad_input: Any, grad_output: Tensors) -> Any:
            return super().backward(module, grad_input, grad_output)

    hook, module = Own(), nn.Linear(3, 3)
    before = set(vars(hook))
    relevance(hook, module, torch.randn(2, 3), torch.randn(2, 3))
    assert set(vars(hook)) == before
    with pytest.raises(RuntimeError, match=r"Own\.backward belongs to a call of the module"):
        hook.backward(module, (None,), (torch.randn(2, 3),))


# -------------------------------------------------------------------------------------------------------- dtypes


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("rule", [Epsilon, ZPlus, BasicHook, WSquare])
def test_a_layer_in_float16_loses_no_digits_on_the_way(rule: type[BasicHook], bias: bool) -> None:
    module, x, R = nn.Linear(40, 3, bias=bias).half(), torch.randn(8, 40).half(), torch.randn(8, 3).half()
    got = relevance(rule(), module, x, R)
    expected = relevance(rule(), module.float(), x.float(), R.float())
    assert got.dtype == torch.float16
    assert torch.equal(got, expected.half())


def test_a_mapper_gets_relevance_in_the_digits_of_the_outputs() -> None:
    # four times this relevance is beyond float16
    module, x, R = nn.Linear(1, 1).half(), torch.ones(1, 1).half(), torch.full((1, 1), 4e4).half()
    hook = BasicHook(gradient_mapper=lambda R, z: [4 * R / torch.full_like(z[0], 8)])
    expected = module.weight.detach() * (R / 2)
    assert torch.equal(relevance(hook, module, x, R), expected)


def test_a_module_whose_parameters_have_more_digits_is_not_run_again() -> None:
    calls = []

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor([2.0, 3.0, 4.0], dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            calls.append(x)
            return x * self.scale

    x, R = integers((2, 3), 1).float(), integers((2, 3), 2)
    got = relevance(Norm(power_of_two), module := Scaled(), x, R)
    s = R / power_of_two(x * module.scale.detach())
    assert torch.equal(got, (x * (s * module.scale.detach()).float()))
    assert len(calls) == 1


# ------------------------------------------------------------------------------------------------------- modifiers


def test_lists_that_are_not_given_are_as_long_as_those_that_are() -> None:
    module, x, R = whole(lambda: nn.Linear(3, 3)), integers((2, 3), 1), integers((2, 3), 2)
    once = relevance(BasicHook(stabilizer=power_of_two), module, x, R)
    for twice in (
        BasicHook(param_modifiers=[lambda p, _: p] * 2, stabilizer=power_of_two),
        BasicHook(input_modifiers=[lambda x: x] * 2, stabilizer=power_of_two),
        BasicHook(output_modifiers=[lambda z: z] * 2, stabilizer=power_of_two),
    ):
        assert torch.equal(relevance(twice, module, x, R), 2 * once)


def test_no_modifiers_give_no_relevance() -> None:
    x = torch.randn(2, 3)
    assert torch.equal(relevance(BasicHook([]), nn.Linear(3, 3), x, torch.randn(2, 3)), torch.zeros(2, 3))


STABILIZED: dict[str, Callable[[Callable[[Tensor], Tensor]], Hook]] = {
    "Epsilon": Epsilon,
    "Epsilon, no bias": lambda s: Epsilon(s, "bias"),
    "Norm": Norm,
    "ZPlus": ZPlus,
    "ZPlus, no bias": lambda s: ZPlus(s, "bias"),
    "AlphaBeta": lambda s: AlphaBeta(2, 1, s),
    "Gamma": lambda s: Gamma(0.25, s),
    "Gamma, no bias": lambda s: Gamma(0.25, s, "bias"),
    "ZBox": lambda s: ZBox(-1.0, 1.0, s),
    "WSquare": WSquare,
    "Flat": Flat,
}


@pytest.mark.parametrize("layer", [nn.Linear, TracedLinear])
@pytest.mark.parametrize("rule", STABILIZED)
def test_a_stabilizer_may_use_numpy(rule: str, layer: type[nn.Linear]) -> None:
    # what it is given has no graph, where nobody asked for one
    module, x, R = layer(3, 2).double(), integers((4, 3), 1), integers((4, 2), 2)
    expected = relevance(STABILIZED[rule](lambda d: d + 1), module, x, R)
    assert torch.equal(relevance(STABILIZED[rule](lambda d: torch.from_numpy(d.numpy() + 1)), module, x, R), expected)


def test_modifiers_and_mappers_may_use_numpy() -> None:
    module, R = whole(lambda: nn.Linear(3, 3)), integers((2, 3), 2)
    x = 1 * integers((2, 3), 1).requires_grad_()
    hook = BasicHook(
        [lambda x: torch.from_numpy(x.numpy().clip(0, None))],
        gradient_mapper=lambda R, z: [R * torch.from_numpy(z[0].numpy().clip(0, None))],
    )
    assert isinstance(module, nn.Linear)
    v, weight = x.detach().clamp(min=0), module.weight.detach()
    assert torch.equal(relevance(hook, module, x, R), v * ((R * output_of(module, v).clamp(min=0)) @ weight))


def test_what_a_mapper_writes_down_holds_no_graph() -> None:
    seen: list[Tensor] = []

    def mapper(R: Tensor, z: Any) -> Tensor:
        seen.extend(z)
        return R

    relevance(BasicHook(gradient_mapper=mapper), nn.Linear(3, 3), torch.randn(2, 3), torch.randn(2, 3))
    assert [z.grad_fn for z in seen] == [None]


# ------------------------------------------------------------------------------------------------------ parameters


def test_a_parameter_hidden_by_an_attribute_is_not_used() -> None:
    module, other = whole(lambda: nn.Linear(3, 3)), integers((3, 3), 9)
    module.__dict__["weight"] = other
    x, R = integers((2, 3), 1), integers((2, 3), 2)
    assert effective_parameters(module)["weight"] is other
    got = relevance(Epsilon(power_of_two), module, x, R)
    assert torch.equal(got, x * ((R / power_of_two(output_of(module, x))) @ other))


class Named:
    """A pre-hook that has a name, as many objects do."""

    name = "logger"

    def __call__(self, module: nn.Module, args: Tensors) -> None: ...


def test_pre_hooks_of_others_change_no_parameters() -> None:
    module, x, R = whole(lambda: nn.Linear(3, 3)), integers((2, 3), 1), integers((2, 3), 2)
    expected = relevance(Epsilon(power_of_two), module, x, R)
    seen: dict[nn.Module, Any] = {}
    for hook in (Named(), seen.__setitem__):
        handle = module.register_forward_pre_hook(hook)
        assert torch.equal(relevance(Epsilon(power_of_two), module, x, R), expected)
        handle.remove()
    assert list(seen) == [module]


def test_norm_on_a_pruned_module_that_is_not_known() -> None:
    module, x, R = whole(lambda: TracedLinear(3, 3)), integers((2, 3), 1), integers((2, 3), 2)
    prune.l1_unstructured(module, "weight", amount=4)
    weight = module.weight
    assert isinstance(weight, Tensor)
    assert (weight == 0).sum() >= 4
    got = relevance(Norm(power_of_two), module, x, R)
    assert torch.equal(got, x * ((R / power_of_two(output_of(module, x))) @ weight.detach()))


@pytest.mark.parametrize("nested", [False, True], ids=["itself", "nested"])
def test_a_dropout_of_parameters_is_the_one_of_the_call(nested: bool) -> None:
    module, x, R = whole(lambda: nn.Linear(3, 3)), integers((2, 3), 1), integers((2, 3), 2)
    expected = relevance(Epsilon(power_of_two), module, x, R)
    dropout = nn.Dropout(0.5)
    parametrize.register_parametrization(module, "weight", nn.Sequential(dropout) if nested else dropout)
    assert torch.equal(relevance(Epsilon(power_of_two), module.eval(), x, R), expected)
    used: list[Tensor] = []
    module.get_submodule("parametrizations.weight").register_forward_hook(
        lambda _module, _args, weight: used.append(weight.detach())
    )
    with Epsilon(power_of_two).register(module.train()):
        leaf = x.clone().requires_grad_()
        outputs = [module(leaf) for _ in range(2)]  # two draws
    assert not torch.equal(*used)
    for z, weight in zip(outputs, used, strict=True):
        (found,) = torch.autograd.grad(z, leaf, R)
        assert torch.equal(found, x * ((R / power_of_two(z.detach())) @ weight))


def test_what_is_done_to_the_modified_module_leaves_the_module_alone() -> None:
    module = nn.Linear(3, 3)
    before = dict(module.named_parameters())
    with ParamMod(lambda p, _: 2 * p)(module) as modified:
        modified.requires_grad_(requires_grad=False)
        modified.weight = nn.Parameter(torch.zeros(3, 3))
        modified.register_parameter("scale", nn.Parameter(torch.zeros(3)))
    assert {name: id(p) for name, p in module.named_parameters()} == {name: id(p) for name, p in before.items()}
    assert all(p.requires_grad for p in module.parameters())


# ------------------------------------------------------------------------------------------------- running it again


class Remembers(nn.Module):
    """Passes its input on, and keeps it for :class:`AddsRemembered`."""

    def forward(self, x: Tensor) -> Tensor:
        self.remembered = x
        return x


class AddsRemembered(nn.Module):
    def __init__(self, memory: Remembers) -> None:
        super().__init__()
        self.memory = memory

    def forward(self, x: Tensor) -> Tensor:
        return x + self.memory.remembered


def test_a_module_found_in_two_places_is_one_when_it_is_run_again() -> None:
    memory = Remembers()
    module = nn.Sequential(memory, Square(), AddsRemembered(memory))
    x, R = integers((2, 3), 1), integers((2, 3), 2)
    # A is the Jacobian of x² + x at ones
    assert torch.equal(relevance(Flat(torch.ones_like), module, x, R), 3 * R)


def test_a_module_that_lacks_a_part_is_run_again_without_it() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part: nn.Module | None = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return 2 * x if self.part is None else self.part(x)

    module = Block()
    module.part = None
    R = integers((2, 3), 2)
    assert torch.equal(relevance(Flat(lambda d: d), module, integers((2, 3), 1), R), R)


@pytest.mark.parametrize("inside", [False, True], ids=["itself", "inside"])
def test_a_forward_of_its_own_is_run_again_with_its_own_parameters(inside: bool) -> None:
    layer = whole(lambda: nn.Linear(3, 3))
    own = layer.forward
    layer.forward = lambda x: own(x)  # noqa: PLW0108
    module, x, R = nn.Sequential(layer) if inside else layer, integers((2, 3), 1), integers((2, 3), 2)
    assert isinstance(layer.weight, Tensor)
    expected = x * ((R / power_of_two(output_of(module, x))) @ layer.weight.detach())
    assert torch.equal(relevance(BasicHook(stabilizer=power_of_two), module, x, R), expected)


# ------------------------------------------------------------------------------------------------------- composite


def test_a_pattern_takes_a_layer_with_parts_that_has_parameters_of_its_own() -> None:
    layer = parametrizations.weight_norm(nn.Linear(3, 3))
    x, R = integers((2, 3), 1), integers((2, 3), 2)
    expected = relevance(Norm(power_of_two), layer, x, R)
    with attach(nn.Sequential(layer, nn.Tanh()), {"*": Norm(power_of_two)}) as attached:
        assert len(attached.registrations) == 2
        x.requires_grad_()
        (got,) = torch.autograd.grad(layer(x), x, R)
    assert torch.equal(got, expected)


def test_a_key_without_a_module_names_those_of_the_model() -> None:
    with pytest.raises(ValueError, match=r"^'2' matches no module; the model has 0, 1$"):
        attach(nn.Sequential(nn.Linear(3, 3), nn.Tanh()), {"2": Pass()})


class Slotted(Hook):
    """Keeps a number outside of ``__dict__``, and a tensor of each call inside."""

    __slots__ = ("factor",)
    needs_grad_input: ClassVar[bool] = False

    def __init__(self) -> None:
        self.factor = 2.0

    def forward(self, module: nn.Module, input: Tensors, output: Tensors) -> None:  # noqa: A002
        self.kept = input[0]

    def backward(self, module: nn.Module, grad_input: Any, grad_output: Tensors) -> Tensors:
        return (grad_output[0] * self.kept * self.factor,)


def test_what_a_hook_has_in_slots_is_there_for_each_call() -> None:
    x, R = integers((3, 4), 1), integers((3, 4), 2)
    assert torch.equal(relevance(Slotted(), nn.ReLU(), x, R), 2 * x * R)
