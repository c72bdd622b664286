"""Relevance differentiated again, against finite differences."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from lrp_rules import (
    AlphaBeta,
    BasicHook,
    Epsilon,
    Flat,
    Gamma,
    Hook,
    Norm,
    Pass,
    ReLUBetaSmooth,
    ReLUDeconvNet,
    ReLUGuidedBackprop,
    Stabilizer,
    WSquare,
    ZBox,
    ZPlus,
)
from lrp_rules.layers import derivative
from tests.lrp_rules.cases import (
    Square,
    TracedConv2d,
    TracedLinear,
    output_of,
    relevance,
)

if TYPE_CHECKING:
    from collections.abc import Callable


SMOOTH: dict[str, Callable[[], Hook]] = {
    "Epsilon": lambda: Epsilon(0.5),
    "Epsilon-zero-bias": lambda: Epsilon(0.5, "bias"),
    "Norm": lambda: Norm(0.5),
    "ZPlus": lambda: ZPlus(0.5),
    "AlphaBeta": lambda: AlphaBeta(2, 1, 0.5),
    "Gamma": lambda: Gamma(0.25, 0.5),
    "Gamma(2)": lambda: Gamma(2, 0.5),
    "ZBox": lambda: ZBox(-4, 4, 0.5),
    "WSquare": lambda: WSquare(0.5),
    "Flat": lambda: Flat(0.5),
    "norm_scale": lambda: Epsilon(Stabilizer(0.5, norm_scale=True)),
    "BasicHook": lambda: BasicHook(stabilizer=0.5),
    "BasicHook-same-input-twice": lambda: BasicHook([lambda x: x] * 2, stabilizer=0.5),
}
DIFFERENTIABLE: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(4, 3), (2, 4)),
    "conv2d-stride": (lambda: nn.Conv2d(2, 2, 2, stride=2, padding=1), (2, 2, 3, 3)),
    "conv2d-circular": (lambda: nn.Conv2d(1, 2, 2, padding=1, padding_mode="circular"), (1, 1, 3, 3)),
    "transposed2d": (lambda: nn.ConvTranspose2d(2, 1, 2, stride=2), (1, 2, 2, 2)),
    "batchnorm1d": (lambda: nn.BatchNorm1d(3).eval(), (2, 3)),
    "traced-linear": (lambda: TracedLinear(4, 3), (2, 4)),
    "traced-conv2d": (lambda: TracedConv2d(1, 2, 2), (1, 1, 3, 3)),
    "tanh": (nn.Tanh, (2, 3)),
    "square-of-linear": (lambda: nn.Sequential(TracedLinear(3, 2), Square()), (2, 3)),
    "softmax": (lambda: nn.Softmax(dim=-1), (2, 3)),
}


def away_from_zero(shape: tuple[int, ...]) -> Tensor:
    """Random numbers of both signs, none within 1/4 of the kink at zero."""
    x = torch.randn(shape)
    return x + 0.25 * torch.where(x < 0, -1.0, 1.0)


def assert_is_derivative(
    function: Callable[[Tensor], Tensor], at: Tensor, derivative: Tensor, magnitude: float
) -> None:
    """Hold <derivative, t> against central differences along a random direction t.

    D(h) = (f(x + h t) - f(x - h t)) / 2h = f' + c h^2 + O(h^4), so E = (4 D(h/2) - D(h)) / 3 errs by O(h^4). That is
    far below |D(h) - D(h/2)| = 3/4 c h^2, which is allowed. Rounding adds, to each f, at most one unit per term of its
    sums, of which there are fewer than 1000 here, relative to their magnitudes; and is divided by h.
    """
    t, h = torch.randn_like(at), 2.0**-10
    wide, narrow = ((function(at + k * t) - function(at - k * t)).item() / (2 * k) for k in (h, h / 2))
    truncation, rounding = abs(wide - narrow), 1000 * 2.0**-53 * magnitude / (h / 2)
    estimate, got = (4 * narrow - wide) / 3, (derivative * t).sum().item()
    # with a kink or a pole between the points, the differences would not say anything
    assert truncation <= 2**-6 * (abs(estimate) + magnitude)
    assert abs(got - estimate) <= truncation + rounding


def check_second_derivative(hook: Hook, module: nn.Module, shape: tuple[int, ...]) -> None:
    x = away_from_zero(shape)
    R, v = torch.randn_like(output_of(module, x)), torch.randn(shape)

    def value(x: Tensor, R: Tensor) -> Tensor:
        return (relevance(hook, module, x.detach(), R.detach()) * v).sum()

    magnitude = (relevance(hook, module, x, R).abs() * v.abs()).sum().item()
    x.requires_grad_()
    R.requires_grad_()
    r = relevance(hook, module, x, R, create_graph=True)
    if not r.requires_grad:
        by_x, by_R = torch.zeros_like(x), torch.zeros_like(R)
    else:
        by_x, by_R = torch.autograd.grad((r * v).sum(), (x, R), allow_unused=True, materialize_grads=True)
    assert_is_derivative(lambda at: value(at, R), x.detach(), by_x, magnitude)
    assert_is_derivative(lambda at: value(x, at), R.detach(), by_R, magnitude)


@pytest.mark.parametrize("layer", DIFFERENTIABLE)
@pytest.mark.parametrize("rule", SMOOTH)
def test_second_derivative(rule: str, layer: str) -> None:
    make, shape = DIFFERENTIABLE[layer]
    if layer == "square-of-linear" and SMOOTH[rule]().changed_parameters is not None:
        with pytest.raises(RuntimeError, match=r"those of this module are in its parts: '0' \(TracedLinear\)"):
            SMOOTH[rule]().register(make())
        return
    check_second_derivative(SMOOTH[rule](), make(), shape)


@pytest.mark.parametrize(
    "rule",
    [ReLUGuidedBackprop(), ReLUBetaSmooth(2), ReLUDeconvNet(), Pass(), Hook()],
    ids=lambda rule: type(rule).__name__,
)
@pytest.mark.parametrize("module", [nn.Tanh(), nn.Softplus(), nn.ReLU()], ids=repr)
def test_second_derivative_of_gradient_rules(rule: Hook, module: nn.Module) -> None:
    check_second_derivative(rule, module, (2, 3))


def test_second_derivative_of_shares() -> None:
    module = nn.Bilinear(3, 3, 2)
    x, y, R = away_from_zero((2, 3)), away_from_zero((2, 3)), torch.randn(2, 2)
    v, w = torch.randn(2, 3), torch.randn(2, 3)

    def value(x: Tensor, y: Tensor, *, create_graph: bool = False) -> Tensor:
        with Norm(0.5).register(module):
            output = module(x, y)
        r, q = torch.autograd.grad(output, (x, y), R, create_graph=create_graph)
        return (r * v).sum() + (q * w).sum()

    x.requires_grad_()
    y.requires_grad_()
    total = value(x, y, create_graph=True)
    by_x, by_y = torch.autograd.grad(total, (x, y))
    magnitude = 10 * abs(total.item()) + 10
    assert_is_derivative(lambda at: value(at.requires_grad_(), y), x.detach(), by_x, magnitude)
    assert_is_derivative(lambda at: value(x, at.requires_grad_()), y.detach(), by_y, magnitude)


@pytest.mark.parametrize("rule", [name for name in SMOOTH if name not in {"Flat", "BasicHook"}])
@pytest.mark.parametrize("cls", [nn.Linear, TracedLinear])
def test_derivative_of_relevance_by_the_weights(rule: str, cls: type[nn.Linear]) -> None:
    module, x, R, v = cls(4, 3), away_from_zero((2, 4)), torch.randn(2, 3), torch.randn(2, 4)
    with torch.no_grad():
        module.weight.copy_(away_from_zero((3, 4)))

    def value(weight: Tensor) -> Tensor:
        other = cls(4, 3)
        other.load_state_dict({"weight": weight.detach(), "bias": module.bias})
        return (relevance(SMOOTH[rule](), other, x, R) * v).sum()

    r = relevance(SMOOTH[rule](), module, x, R, create_graph=True)
    (by_weight,) = torch.autograd.grad((r * v).sum(), module.weight)
    assert_is_derivative(value, module.weight.detach(), by_weight, (r.abs() * v.abs()).sum().item() + 1)


def test_planted_second_derivative_without_the_denominator_is_caught() -> None:
    class Careless(Epsilon):
        def relevances(self, layer: Any, R: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            s = R[0] / self.stabilizer(layer.z.detach())
            return (layer.x * (layer.matrix().T @ s),)

    with pytest.raises(AssertionError):
        check_second_derivative(Careless(0.5), nn.Linear(4, 3), (2, 4))


class Chain:
    """A network with rules, and the value <r, v> as a function of its input and parameters."""

    def __init__(self, network: nn.Sequential, rules: tuple[Hook | None, ...], shape: tuple[int, ...]) -> None:
        self.network, self.rules = network, rules
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.copy_(away_from_zero(parameter.shape) / 2)
        self.x = away_from_zero(shape).requires_grad_()
        self.R, self.v = torch.randn_like(output_of(network, self.x)), torch.randn(shape)

    @property
    def variables(self) -> dict[str, Tensor]:
        return {"x": self.x, **dict(self.network.named_parameters())}

    def output(self) -> Tensor:
        pairs = zip(self.rules, self.network, strict=True)
        handles = [rule.register(module) for rule, module in pairs if rule is not None]
        output: Tensor = self.network(self.x)
        for handle in handles:
            handle.remove()
        return output

    def relevance(self, *, create_graph: bool = False) -> Tensor:
        (r,) = torch.autograd.grad(self.output(), self.x, self.R, create_graph=create_graph)
        return r

    def value(self, *, create_graph: bool = False) -> Tensor:
        return (self.relevance(create_graph=create_graph) * self.v).sum()

    def check(self, derivatives: dict[str, Tensor], function: Callable[[], Tensor], magnitude: float) -> None:
        """Hold the derivatives of a function of this chain against its finite differences."""
        for name, variable in self.variables.items():
            before = variable.detach().clone()

            def moved(to: Tensor, variable: Tensor = variable) -> Tensor:
                with torch.no_grad():
                    variable.copy_(to)
                return function().detach()

            assert_is_derivative(moved, before, derivatives[name], magnitude)
            moved(before)

    def derivatives(self, of: Tensor, *, create_graph: bool = False) -> dict[str, Tensor]:
        found = torch.autograd.grad(
            of, list(self.variables.values()), allow_unused=True, materialize_grads=True, create_graph=create_graph
        )
        return dict(zip(self.variables, found, strict=True))

    @property
    def magnitude(self) -> float:
        return (self.relevance().abs() * self.v.abs()).sum().item() + 1


def smooth_network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2), Square())


CHAINS: dict[str, Callable[[], Chain]] = {
    "everywhere": lambda: Chain(smooth_network(), (Epsilon(0.5), Norm(0.5), Epsilon(0.5), Norm(0.5)), (2, 3)),
    "signed-rules": lambda: Chain(smooth_network(), (ZPlus(0.5), Pass(), Gamma(0.25, 0.5), Norm(0.5)), (2, 3)),
    "BetaSmooth-in-the-middle": lambda: Chain(smooth_network(), (None, ReLUBetaSmooth(2), None, None), (2, 3)),
    "Pass-in-the-middle": lambda: Chain(smooth_network(), (None, Pass(), None, None), (2, 3)),
    "guided": lambda: Chain(
        nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)),
        (WSquare(0.5), ReLUGuidedBackprop(), AlphaBeta(2, 1, 0.5)),
        (2, 3),
    ),
    "in-place": lambda: Chain(
        nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)),
        (Epsilon(0.5), Pass(), ZPlus(0.5)),
        (2, 3),
    ),
    "convolutions": lambda: Chain(
        nn.Sequential(nn.Conv2d(1, 2, 2), nn.Softplus(), nn.ConvTranspose2d(2, 1, 2), nn.AvgPool2d(2)),
        (ZBox(-4, 4, 0.5), Pass(), Gamma(2, 0.5), Norm(0.5)),
        (2, 1, 4, 4),
    ),
    "containers": lambda: Chain(
        nn.Sequential(smooth_network(), nn.Linear(2, 2)), (Epsilon(0.5), BasicHook(stabilizer=0.5)), (2, 3)
    ),
    "weight-norm": lambda: Chain(
        nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)), nn.Tanh(), nn.Linear(3, 2)),
        (ZPlus(0.5), Pass(), Epsilon(0.5)),
        (2, 3),
    ),
    "one-layer-twice": lambda: Chain(
        nn.Sequential(linear := nn.Linear(3, 3), nn.Tanh(), linear), (Epsilon(0.5), Pass(), None), (2, 3)
    ),
}


@pytest.mark.parametrize("chain", CHAINS)
def test_second_derivative_through_a_network(chain: str) -> None:
    made = CHAINS[chain]()
    made.check(made.derivatives(made.value(create_graph=True)), made.value, made.magnitude)


def test_third_derivative_through_a_network() -> None:
    chain = CHAINS["signed-rules"]()
    weights = {name: torch.randn_like(variable) for name, variable in chain.variables.items()}

    def first() -> Tensor:
        found = chain.derivatives(chain.value(create_graph=True), create_graph=True)
        return torch.stack([(weights[name] * one).sum() for name, one in found.items()]).sum()

    chain.check(chain.derivatives(first()), first, 10 * chain.magnitude)


def test_a_loss_of_output_and_relevance() -> None:
    # trained on both: what comes down from the output is a gradient in that pass, too
    chain = CHAINS["everywhere"]()

    def loss() -> Tensor:
        output = chain.output()
        (r,) = torch.autograd.grad(output, chain.x, chain.R, create_graph=True)
        both: Tensor = (r * chain.v).sum() + output.square().sum()
        return both

    chain.check(chain.derivatives(loss()), loss, 10 * chain.magnitude)


def test_a_propagation_after_a_derivative_is_one_again() -> None:
    chain = CHAINS["everywhere"]()
    before = chain.relevance()
    chain.derivatives(chain.value(create_graph=True))
    assert torch.equal(chain.relevance(), before)


def test_no_relevance_goes_to_parameters() -> None:
    chain = CHAINS["everywhere"]()
    with Epsilon(0.5).register(chain.network[0]), Epsilon(0.5).register(chain.network[2]):
        chain.network(chain.x).backward(chain.R)
    assert chain.x.grad is not None
    assert all(parameter.grad is None for parameter in chain.network.parameters())


def test_a_hook_on_parameters_is_refused_rather_than_differentiated_without_them() -> None:
    def chain() -> Chain:
        return Chain(nn.Sequential(nn.Tanh(), nn.Linear(4, 4), nn.Tanh()), (None, Pass(), Norm(0.5)), (2, 4))

    trained = chain()
    with pytest.raises(RuntimeError, match=r"Pass on Linear.*cannot be taken by its parameters.*freeze"):
        trained.derivatives(trained.value(create_graph=True))
    frozen = chain()
    frozen.network.requires_grad_(requires_grad=False)
    (by_x,) = torch.autograd.grad(frozen.value(create_graph=True), frozen.x)

    def value(x: Tensor) -> Tensor:
        frozen.x = x.clone().requires_grad_()
        return frozen.value()

    assert_is_derivative(value, frozen.x.detach(), by_x, frozen.magnitude)


class FailsOnce(nn.Module):
    """Cannot be repeated."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls > 1:
            msg = "not again"
            raise ArithmeticError(msg)
        return x.square()


def test_nothing_is_left_of_a_derivative_that_fails() -> None:
    network = nn.Sequential(FailsOnce(), nn.Linear(3, 2))
    x = torch.randn(2, 3, requires_grad=True)
    with Norm(0.5).register(network[0]), Epsilon(0.5).register(network[1]):
        output = network(x)
    (r,) = torch.autograd.grad(output.sum(), x, create_graph=True)
    with pytest.raises(ArithmeticError, match="not again"):
        torch.autograd.grad(r.sum(), x)
    assert not derivative.Derivative.passes
    assert not derivative.Derivative.under_way()


def test_a_pass_that_ends_at_a_relevance_propagates() -> None:
    # it does not differentiate that relevance: the explanation of a model that is given an explanation
    first, second, x, R = nn.Linear(3, 3), nn.Linear(3, 2), torch.randn(2, 3), torch.randn(2, 2)
    r = relevance(Epsilon(0.5), first, x.requires_grad_(), torch.randn(2, 3), create_graph=True)
    with ZPlus(0.5).register(second):
        output = second(r)
    (found,) = torch.autograd.grad(output, r, R, retain_graph=True)
    assert torch.equal(found, relevance(ZPlus(0.5), second, r.detach(), R))
    # further down it does
    (by_x,) = torch.autograd.grad(output, x, R, retain_graph=True)
    assert torch.equal(by_x, torch.autograd.grad(r, x, R @ second.weight.detach())[0])


@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_a_derivative_beside_a_frozen_parameter(frozen: str) -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    network[0].get_parameter(frozen).requires_grad = False
    trained = network[0].get_parameter("bias" if frozen == "weight" else "weight")
    R, v, x = torch.randn(2, 2), torch.randn(2, 3), torch.randn(2, 3, requires_grad=True)

    def value() -> Tensor:
        with Epsilon(0.5).register(network[0]), Epsilon(0.5).register(network[1]):
            output = network(x)
        (r,) = torch.autograd.grad(output, x, R, create_graph=True)
        return (r * v).sum()

    (by_one,) = torch.autograd.grad(value(), trained)
    network.requires_grad_()
    (by_all, *_) = torch.autograd.grad(value(), [trained, *network.parameters()])
    assert torch.equal(by_one, by_all)


def test_what_is_known_of_a_pass_goes_with_it() -> None:
    chain = Chain(nn.Sequential(nn.Linear(3, 3), nn.Tanh()), (Epsilon(0.5), Norm(0.5)), (2, 3))
    value = chain.value(create_graph=True)
    assert derivative.Derivative.alive
    torch.autograd.grad(value, chain.x)
    assert not derivative.Derivative.passes
    assert not derivative.Derivative.linearised


def test_nothing_is_asked_of_the_engine_where_there_is_no_relevance_to_differentiate() -> None:
    class Sees(Hook):
        def backward(self, module: nn.Module, grad_input: Any, grad_output: Any) -> None:
            noted.append(dict(derivative.Derivative.passes))

    noted: list[dict[int, bool]] = []
    gc.collect()
    assert not derivative.Derivative.alive
    with Sees().register(module := nn.Linear(3, 2)):
        module(torch.ones(2, 3, requires_grad=True)).sum().backward()
    assert noted == [{}]
