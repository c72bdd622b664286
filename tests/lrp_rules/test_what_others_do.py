"""What somebody who wanted a silent wrong number has tried: each is right or refused."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lrp_rules import Epsilon, Norm, Pass, UnruledWarning, ZPlus, attach
from tests.lrp_rules.cases import integers, power_of_two

if TYPE_CHECKING:
    from collections.abc import Callable


def leaf() -> Tensor:
    return integers((2, 3), 1).requires_grad_()


# --- arguments that are changed ---------------------------------------------------------------------------------------


class Takes(nn.Module):
    """Does something to the dict that it is called with."""

    def __init__(self, do: Callable[[nn.Module, dict[str, Tensor]], Tensor]) -> None:
        super().__init__()
        self.layer, self.do = nn.Linear(3, 3), do

    def forward(self, given: dict[str, Tensor]) -> Tensor:
        return self.do(self.layer, given)


def _pops(layer: nn.Module, given: dict[str, Tensor]) -> Tensor:
    return layer(given.pop("x"))  # type: ignore[no-any-return]


def _replaces(layer: nn.Module, given: dict[str, Tensor]) -> Tensor:
    given["x"] = layer(given["x"])
    return given["x"]


def _adds(layer: nn.Module, given: dict[str, Tensor]) -> Tensor:
    given["y"] = layer(given["x"])
    return given["y"]


@pytest.mark.parametrize("do", [_pops, _replaces, _adds], ids=lambda do: do.__name__)
@pytest.mark.parametrize("rule", [Norm(), Pass()], ids=["Norm", "Pass"])
def test_a_module_that_changes_the_dict_it_is_given_is_refused(rule: Any, do: Any) -> None:
    with rule.register(module := Takes(do)), pytest.raises(RuntimeError, match="changes a list or dict"):
        module({"x": leaf()})


class Kind(enum.Enum):
    ONE = 1


def test_an_object_without_tensors_beside_integers_is_none_that_is_refused() -> None:
    class Embeds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(5, 3)

        def forward(self, index: Tensor, kind: Kind) -> Tensor:
            assert isinstance(kind, Kind)
            return self.table(index)  # type: ignore[no-any-return]

    with Norm().register(module := Embeds()):
        assert module(torch.tensor([1]), Kind.ONE).shape == (1, 3)


# --- a second run -----------------------------------------------------------------------------------------------------


class KeepsItsMethod(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3))
        self.function = self._function

    def _function(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.weight.T)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class KeepsAList(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.parts = [self.layer, nn.Tanh()]

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        return x


@pytest.mark.parametrize("create_graph", [False, True], ids=["second", "third"])
@pytest.mark.parametrize("make", [KeepsItsMethod, KeepsAList])
def test_parameters_that_a_second_run_would_miss_are_noticed(make: Callable[[], nn.Module], create_graph: bool) -> None:
    module, x = make(), leaf()
    with Norm(0.5).register(module):
        y = module(x)
    (r,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="references beside its attributes"):
        torch.autograd.grad(y.square().sum() + r.square().sum(), x, create_graph=create_graph)


# --- derivatives ------------------------------------------------------------------------------------------------------


def test_a_derivative_through_a_reentrant_checkpoint() -> None:
    found = []
    for reentrant in (None, False, True):
        body, head, x = nn.Linear(3, 4), nn.Linear(4, 2), leaf()
        for seed, parameter in enumerate([*body.parameters(), *head.parameters()]):
            parameter.data = integers(parameter.shape, seed)
        with Epsilon(power_of_two).register(body), Epsilon(power_of_two).register(head):
            h = body(x) if reentrant is None else checkpoint(body, x, use_reentrant=reentrant)
            y = head(h)
            (r,) = torch.autograd.grad(y.sum(), h, create_graph=True)
            (y.square().sum() + (r * integers((2, 4), 9)).sum()).backward()
        assert x.grad is not None
        assert body.weight.grad is not None
        found.append((x.grad, body.weight.grad))
    for one in found[1:]:
        assert all(map(torch.equal, one, found[0]))


# --- modules in place -------------------------------------------------------------------------------------------------


def test_a_pre_hook_behind_the_rule_of_a_module_in_place_is_refused() -> None:
    module = nn.ReLU(inplace=True)
    with Pass().register(module):
        module.register_forward_pre_hook(lambda _module, args: (args[0] * -2,))
        with pytest.raises(RuntimeError, match="what it was given is not known any more"):
            module(leaf() * 1)


def test_a_module_that_is_set_in_place_after_the_rule_was_registered_is_refused() -> None:
    module = nn.ReLU()
    with Pass().register(module):
        module.inplace = True
        with pytest.raises(RuntimeError, match="`inplace` was set after the rule was registered"):
            module(leaf() * 1)


@pytest.mark.parametrize("behind", [False, True], ids=["alone", "behind-a-pre-hook"])
def test_a_module_in_place_is_refused_in_torch_func(behind: bool) -> None:
    # tensors of torch.func lie nowhere: whether the output is the input cannot be told
    module = nn.ReLU(inplace=True)
    with Pass().register(module):
        if behind:
            module.register_forward_pre_hook(lambda _module, args: (args[0] * -2,))
        with pytest.raises(RuntimeError, match=r"it works in place|it writes to its input"):
            torch.func.vjp(lambda x: module(x * 1), integers((2, 3), 1))


# --- weights ----------------------------------------------------------------------------------------------------------


class TwoKernels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[[1.0], [1.0]]]))
        self.delta = nn.Parameter(torch.tensor([[[-2.0], [1.0]]]))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv1d(x, self.weight + self.delta)


class Negative(nn.ConvTranspose1d):
    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:  # noqa: A002
        return -super().forward(input, output_size)


class Adapted(nn.Module):
    """A scale of its own, and a layer below."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.scale = nn.Linear(2, 2), nn.Parameter(torch.rand(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) * self.scale  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("make", "shape"), [(TwoKernels, (1, 2, 1)), (lambda: Negative(2, 1, 1), (1, 2, 1)), (Adapted, (1, 2))]
)
def test_weights_that_are_not_the_weight_are_refused(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    module, x = make(), integers(shape, 1).requires_grad_()
    with ZPlus().register(module):
        y = module(x)
    with pytest.raises(RuntimeError, match=r"not proportional to its own parameters"):
        torch.autograd.grad(y.sum(), x)


def test_a_bias_that_is_in_a_part_cannot_be_set_to_zero() -> None:
    with pytest.raises(RuntimeError, match=r"those of this module are in its parts: 'base' \(Linear\)"):
        Epsilon(zero_params="bias").register(Adapted())


# --- models that change -----------------------------------------------------------------------------------------------


class Lazy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), None

    def forward(self, x: Tensor) -> Tensor:
        if self.second is None:
            self.second = nn.Linear(4, 2)  # type: ignore[assignment]
        return self.second(self.first(x))  # type: ignore[misc, no-any-return]


def test_layers_that_came_after_the_rules_are_named() -> None:
    model = Lazy()
    attached = attach(model, {nn.Linear: Epsilon()})
    with pytest.warns(UnruledWarning, match=r"F\.linear"):
        model(leaf())
    with pytest.raises(RuntimeError, match=r"had not when the rules were attached.*second \(Linear\)"):
        attached.remove()
    with attach(model, {nn.Linear: Epsilon()}):
        model(leaf())


def test_a_layer_replaced_after_a_first_call_is_named() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    attached = attach(model, {nn.Linear: Epsilon()})
    model(leaf())
    model[1] = nn.Linear(4, 2)
    with pytest.warns(UnruledWarning, match=r"F\.linear"):
        model(leaf())
    with pytest.raises(RuntimeError, match=r"had not when the rules were attached.*1 \(Linear\)"):
        attached.remove()


@pytest.mark.parametrize("arguments", ["a-tensor", "a-list"])
def test_a_random_module_behind_a_global_hook_is_repeated_as_it_was(arguments: str) -> None:
    class Drops(nn.Module):
        def forward(self, xs: Tensor | list[Tensor]) -> Tensor:
            x = xs[0] if isinstance(xs, list) else xs
            return torch.nn.functional.dropout(x, 0.5, training=True)

    x, R = torch.ones(50, requires_grad=True), torch.arange(50.0)
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        module = Drops()
        with Pass().register(module):
            z = module([x] if arguments == "a-list" else x)
    finally:
        handle.remove()
    assert torch.equal(torch.autograd.grad(z, x, R)[0], R)


def test_a_hook_before_the_rule_that_puts_the_output_in_a_tuple() -> None:
    module, x, R = nn.Linear(3, 2), leaf(), integers((2, 2), 2)
    with Epsilon(power_of_two).register(module):
        (expected,) = torch.autograd.grad(module(x), x, R)
        handle = module.register_forward_hook(lambda _module, _args, output: (output,), prepend=True)
        (z,) = module(x)
        handle.remove()
    assert torch.equal(torch.autograd.grad(z, x, R)[0], expected)


class Sharded(Tensor):
    """Looks like one of torch.distributed's."""

    __module__ = "torch.distributed.tensor"


def test_a_layer_whose_weight_makes_its_output_another_kind_of_tensor() -> None:
    module = nn.Linear(3, 2, bias=False)
    module.weight = nn.Parameter(module.weight.detach().as_subclass(Sharded))
    with Epsilon().register(module), pytest.raises(TypeError, match="returned a Sharded"):
        module(leaf())


class Notes(nn.Module):
    """Notes each run in a list, which a rerun would find, too."""

    def __init__(self) -> None:
        super().__init__()
        self.runs: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.runs.append(len(x))
        return 2 * x


def test_a_module_is_run_once_where_nobody_comes_before_the_rule() -> None:
    module, x = Notes(), leaf()
    module.register_forward_hook(lambda *_: None)
    with Pass().register(module):
        torch.autograd.grad(module(x).sum(), x)
    assert module.runs == [2]
