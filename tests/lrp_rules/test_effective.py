"""Modules that make their one weight themselves, and where weights come from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import linear
from torch.nn.utils import parametrize

from lrp_rules import AlphaBeta, BasicHook, Epsilon, Flat, Gamma, Norm, WSquare, ZBox, ZPlus
from tests.lrp_rules.cases import integers, power_of_two, relevance

if TYPE_CHECKING:
    from collections.abc import Callable

    from lrp_rules import Hook

#: Rules that use other weights than the layer's own.
CHANGING: dict[str, Callable[[], Hook]] = {
    "ZPlus": lambda: ZPlus(power_of_two),
    "ZPlus(zero bias)": lambda: ZPlus(power_of_two, "bias"),
    "AlphaBeta": lambda: AlphaBeta(2, 1, power_of_two),
    "Gamma": lambda: Gamma(0.5, power_of_two),
    "Gamma(2)": lambda: Gamma(2, power_of_two),
    "ZBox": lambda: ZBox(-4, 4, power_of_two),
    "WSquare": lambda: WSquare(power_of_two),
    "Flat": lambda: Flat(power_of_two),
}
each_changing = pytest.mark.parametrize("rule", CHANGING)
each_rule = pytest.mark.parametrize("rule", ["Epsilon", "ZPlus", "Gamma"])
RULES: dict[str, Callable[[], Hook]] = {**CHANGING, "Epsilon": lambda: Epsilon(power_of_two)}


def fill(module: nn.Module, seed: int = 1) -> None:
    for parameter in module.parameters():
        parameter.data = integers(parameter.shape, seed)
        seed += 1


def like(module: nn.Module, weight: Tensor) -> nn.Module:
    """Return a plain layer with a weight."""
    plain: nn.Module
    if isinstance(module, nn.Linear):
        plain = nn.Linear(module.in_features, module.out_features)
    else:
        assert isinstance(module, nn.Conv2d)
        options: Any = module
        plain = nn.Conv2d(
            module.in_channels, module.out_channels, options.kernel_size, options.stride, options.padding,
            options.dilation, module.groups, padding_mode=options.padding_mode,
        )  # fmt: skip
    plain.weight = nn.Parameter(weight.detach())
    bias = module.bias
    assert isinstance(bias, Tensor)
    plain.bias = nn.Parameter(bias.detach())
    return plain


class LowRank(nn.Linear):
    def __init__(self) -> None:
        super().__init__(3, 4)
        self.A, self.B = nn.Parameter(torch.empty(2, 3)), nn.Parameter(torch.empty(4, 2))
        fill(self)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return super().forward(input) + input @ self.A.T @ self.B.T

    @property
    def merged(self) -> Tensor:
        return self.weight + self.B @ self.A


class Scaled(nn.Linear):
    """Proportional to what it holds, by a negative number: its positive weights are the negative ones."""

    def __init__(self) -> None:
        super().__init__(3, 4)
        fill(self)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return linear(input, -2 * self.weight, self.bias)

    @property
    def merged(self) -> Tensor:
        return -2 * self.weight


class Centred(nn.Conv2d):
    """A convolution less the mean of its kernel, in whole numbers."""

    def __init__(self, **options: Any) -> None:
        super().__init__(4, 6, **options)
        fill(self)

    @property
    def merged(self) -> Tensor:
        return self.weight.numel() * self.weight - self.weight.sum()

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        output: Tensor = self._conv_forward(input, self.merged, self.bias)
        return output


@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 5, 3)], ids=str)
@pytest.mark.parametrize("make", [LowRank, Scaled])
@each_changing
def test_a_linear_layer_of_several_parameters(rule: str, make: type[LowRank | Scaled], shape: tuple[int, ...]) -> None:
    module, x, R = make(), integers(shape, 5), integers((*shape[:-1], 4), 6)
    expected = relevance(RULES[rule](), like(module, module.merged), x, R)
    assert torch.equal(relevance(RULES[rule](), module, x, R), expected)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3},
        {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "groups": 2},
        {"kernel_size": 3, "padding": "same", "padding_mode": "circular"},
        {"kernel_size": 1, "stride": 3},
        {"kernel_size": 2, "padding": 1, "padding_mode": "reflect"},
    ],
    ids=str,
)
@each_changing
def test_a_convolution_whose_weight_is_computed(rule: str, options: dict[str, Any]) -> None:
    module, x = Centred(**options), integers((2, 4, 6, 7), 5)
    R = integers(module(x).shape, 6)
    expected = relevance(RULES[rule](), like(module, module.merged), x, R)
    assert torch.equal(relevance(RULES[rule](), module, x, R), expected)


def test_its_relevance_can_be_differentiated_by_what_it_holds() -> None:
    module, x, R = LowRank(), integers((2, 3), 5).requires_grad_(), integers((2, 4), 6)
    weight = module.merged.detach().requires_grad_()
    plain = like(module, weight)
    of = []
    for layer, wanted in ((module, (module.weight, module.A, module.B)), (plain, (plain.weight,))):
        with ZPlus(0.5).register(layer):
            z = layer(x)
        (r,) = torch.autograd.grad(z, x, R, create_graph=True)
        of.append(torch.autograd.grad((r * integers((2, 3), 7)).sum(), wanted))  # type: ignore[arg-type]
    (by_weight, by_A, by_B), (expected,) = of
    room = 64 * torch.finfo(expected.dtype).eps * expected.abs().max()
    assert bool(((by_weight - expected).abs() <= room).all())
    assert bool(((by_A - module.B.T @ expected).abs() <= 4 * room * module.B.abs().sum()).all())
    assert bool(((by_B - expected @ module.A.T).abs() <= 4 * room * module.A.abs().sum()).all())


class Bent(nn.Linear):
    """Neither linear nor proportional."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return super().forward(input) + (input * self.weight.square().sum()).tanh().sum(-1, keepdim=True)


@each_changing
def test_a_module_that_is_no_one_layer_is_refused(rule: str) -> None:
    module = Bent(3, 4)
    fill(module)
    with pytest.raises(RuntimeError, match=r"not proportional to its own parameters \(weight, bias\)"):
        relevance(RULES[rule](), module, integers((2, 3), 5) / 8, integers((2, 4), 6))


def test_a_weight_set_to_zero_is_refused_where_it_is_no_whole_weight() -> None:
    with pytest.raises(RuntimeError, match="not proportional"):
        relevance(ZPlus(zero_params="A"), LowRank(), integers((2, 3), 5), integers((2, 4), 6))


class TwoConstants(nn.Linear):
    """A further constant is added to the output, which is part of the effective bias and not of `bias`."""

    def __init__(self) -> None:
        super().__init__(3, 4)
        self.shift = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.shift


@each_changing
def test_a_further_constant_is_not_set_to_zero_with_the_bias(rule: str) -> None:
    module = TwoConstants()
    fill(module)
    x, R = integers((2, 3), 7), integers((2, 4), 8)
    if "zero bias" in rule:
        with pytest.raises(RuntimeError, match="not proportional"):
            relevance(CHANGING[rule](), module, x, R)
        return
    whole = like(module, module.weight)
    whole.bias = nn.Parameter((module.bias + module.shift).detach())
    assert torch.equal(relevance(CHANGING[rule](), module, x, R), relevance(CHANGING[rule](), whole, x, R))


# --- where weights come from ------------------------------------------------------------------------------------------


def plain() -> nn.Linear:
    module = nn.Linear(3, 4)
    fill(module)
    return module


def _as_buffer() -> nn.Module:
    module = plain()
    for name in ("weight", "bias"):
        value = getattr(module, name).detach()
        delattr(module, name)
        module.register_buffer(name, value)
    return module


def _as_attribute() -> nn.Module:
    module = plain()
    value = module.weight.detach()
    del module.weight
    module.weight = value
    return module


def _by_a_pre_hook() -> nn.Module:
    module = plain()
    half = nn.Parameter(module.weight.detach() / 2)
    del module.weight
    module.register_parameter("halved", half)
    module.register_forward_pre_hook(lambda m, _: setattr(m, "weight", 2 * m.halved))
    return module


class _Property(nn.Linear):
    @property
    def weight(self) -> Tensor:
        return self.get_parameter("halved") * 2

    @weight.setter
    def weight(self, value: Tensor) -> None:
        self.register_parameter("halved", nn.Parameter(value.detach() / 2))


def _by_a_property() -> nn.Module:
    module = _Property(3, 4)
    given = plain()
    module._parameters["halved"] = nn.Parameter(given.weight.detach() / 2)
    module.bias = given.bias
    return module


class _InTraining(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight if self.training else 3 * weight


def _by_mode() -> nn.Module:
    module = plain()
    parametrize.register_parametrization(module, "weight", _InTraining())
    return module


@pytest.mark.parametrize(
    "make", [_as_buffer, _as_attribute, _by_a_pre_hook, _by_a_property, _by_mode], ids=lambda make: make.__name__
)
@each_rule
def test_wherever_the_weight_is(rule: str, make: Callable[[], nn.Module]) -> None:
    x, R = integers((2, 3), 5), integers((2, 4), 6)
    assert torch.equal(relevance(RULES[rule](), make(), x, R), relevance(RULES[rule](), plain(), x, R))


class _Random(nn.Linear):
    """Each time, another weight."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.bias = 3, 4, nn.Parameter(torch.zeros(4))

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return torch.randn(4, 3)


def test_a_property_that_gives_another_weight_each_time_is_refused() -> None:
    with pytest.raises(RuntimeError, match="gives another output than the call did"):
        relevance(Epsilon(), _Random(), integers((2, 3), 5), integers((2, 4), 6))


@each_rule
def test_weights_of_functional_call(rule: str) -> None:
    module, other, x, R = plain(), nn.Linear(3, 4), integers((2, 3), 5).requires_grad_(), integers((2, 4), 6)
    fill(other, 11)
    with RULES[rule]().register(module):
        z = functional_call(module, dict(other.named_parameters()), (x,))
    (r,) = torch.autograd.grad(z, x, R)
    assert torch.equal(r, relevance(RULES[rule](), other, x.detach(), R))


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.child = nn.Parameter(torch.empty(4, 3)), nn.Linear(4, 4)
        fill(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.child(linear(x, self.weight))  # type: ignore[no-any-return]


def test_weights_of_functional_call_below_a_container() -> None:
    module, other, x, R = _Block(), _Block(), integers((2, 3), 5).requires_grad_(), integers((2, 4), 6)
    fill(other, 11)
    with BasicHook(stabilizer=power_of_two).register(module):
        z = functional_call(module, dict(other.named_parameters()), (x,))
    (r,) = torch.autograd.grad(z, x, R)
    assert torch.equal(r, relevance(BasicHook(stabilizer=power_of_two), other, x.detach(), R))


def test_a_replica() -> None:
    # as torch.nn.parallel.replicate makes one
    module, x, R = plain(), integers((2, 3), 5).requires_grad_(), integers((2, 4), 6)
    with ZPlus(power_of_two).register(module):
        replica = module._replicate_for_data_parallel()
        replica._former_parameters = dict(module._parameters)
        for name, parameter in module.named_parameters():
            setattr(replica, name, parameter * 1)
        z = replica(x)
    (r,) = torch.autograd.grad(z, x, R)
    assert torch.equal(r, relevance(ZPlus(power_of_two), module, x.detach(), R))


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("rule", ["Epsilon", "ZPlus"])
def test_sparse_weights(rule: str) -> None:
    module, x, R = plain(), integers((2, 3), 5), integers((2, 4), 6)
    expected = relevance(RULES[rule](), module, x, R)
    module.weight = nn.Parameter(module.weight.detach().to_sparse_csr())
    assert torch.equal(relevance(RULES[rule](), module, x, R), expected)


# --- between forward and backward -------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", ["known", "traced"])
def test_data_that_is_replaced_is_noticed(layer: str) -> None:
    module = plain() if layer == "known" else Scaled()
    x = integers((2, 3), 5).requires_grad_()
    with Epsilon(power_of_two).register(module):
        z = module(x)
    module.weight.data = module.weight.data.clone()
    with pytest.raises(RuntimeError, match=r"the data of a parameter of shape \(4, 3\) was replaced"):
        torch.autograd.grad(z, x, torch.ones_like(z))


@pytest.mark.parametrize("change", ["data", "child", "hook", "buffer"])
def test_a_rerun_that_does_not_repeat_the_call_is_refused(change: str) -> None:
    module = _Block()
    x = integers((2, 3), 5).requires_grad_()
    if change == "hook":
        module.child.register_forward_hook(lambda _module, _args, z: 2 * z)
    if change == "buffer":
        module.child = nn.BatchNorm1d(4).eval()  # type: ignore[assignment]
    with BasicHook(stabilizer=power_of_two).register(module):
        z = module(x)
    if change == "data":
        module.child.weight.data = 2 * module.child.weight.data
    if change == "child":
        module.child = nn.Linear(4, 4)
        fill(module.child, 20)
    if change == "buffer":
        module.child.running_mean = torch.ones(4)  # in its place it is torch that refuses
    R = torch.ones_like(z)
    if change == "child":  # its parameters are those of the call
        expected = relevance(BasicHook(stabilizer=power_of_two), _Block(), x.detach(), R)
        assert torch.equal(torch.autograd.grad(z, x, R)[0], expected)
        return
    with pytest.raises(RuntimeError, match="gives another output than the call did"):
        torch.autograd.grad(z, x, R)


def test_a_container_in_eval_mode_differentiated_after_its_statistics_moved_is_refused() -> None:
    module = nn.Sequential(nn.BatchNorm1d(3).eval())
    x = integers((2, 3), 5).requires_grad_()
    with Norm(0.5).register(module):
        (r,) = torch.autograd.grad(module(x).sum(), x, create_graph=True)
    module[0].running_mean.add_(1)  # type: ignore[operator]
    with pytest.raises(RuntimeError, match=r"gives another output than the call did|modified by an inplace operation"):
        torch.autograd.grad(r.sum(), x)
