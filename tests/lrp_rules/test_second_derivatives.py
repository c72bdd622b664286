"""Relevance differentiated again, against finite differences."""

from __future__ import annotations

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


@pytest.mark.parametrize(
    "rules",
    [
        (Epsilon(0.5), Norm(0.5), Epsilon(0.5), Norm(0.5)),
        (None, ReLUBetaSmooth(2), None, None),
        (None, Pass(), None, None),
    ],
    ids=["everywhere", "ReLUBetaSmooth-in-the-middle", "Pass-in-the-middle"],
)
def test_second_derivative_through_a_network_is_refused(rules: tuple[Hook | None, ...]) -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2), Square())
    x, R, v = torch.randn(2, 3), torch.randn(2, 2), torch.randn(2, 3)

    def value(x: Tensor, *, create_graph: bool = False) -> Tensor:
        registered = [rule.register(module) for rule, module in zip(rules, network, strict=True) if rule is not None]
        output = network(x.requires_grad_())
        for registration in registered:
            registration.remove()
        (r,) = torch.autograd.grad(output, x, R, create_graph=create_graph)
        return (r * v).sum()

    total = value(x, create_graph=True)
    with pytest.raises(RuntimeError, match="would be propagated by the rule, not differentiated"):
        torch.autograd.grad(total, x)
    value(x)  # another propagation is none of its business
