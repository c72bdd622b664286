"""Losses of relevance and output together, on a device that is not the CPU: gradients are the CPU's.

The backward pass of such a loss goes through nodes that the forward pass made and through nodes that a backward pass
made, on the device's thread, which numbers them by itself. Whether a number is above or below another tells nothing.

Parameters and inputs are small integers and denominators powers of two, so that sums are exact in any order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from lrp_rules import AlphaBeta, Epsilon, Flat, Gamma, Hook, Norm, Pass, WSquare, ZBox, ZPlus, attach
from tests.lrp_rules import fake_device
from tests.lrp_rules.cases import integers, power_of_two
from tests.lrp_rules.fake_device import DeviceTensor, on_device, to_device

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(autouse=True)
def _device() -> None:
    if fake_device.unavailable():
        pytest.skip(fake_device.unavailable())


RULES: dict[str, Callable[[], Hook]] = {
    "Epsilon": lambda: Epsilon(power_of_two),
    "ZPlus": lambda: ZPlus(power_of_two),
    "AlphaBeta": lambda: AlphaBeta(stabilizer=power_of_two),
    "Gamma(0.25)": lambda: Gamma(0.25, power_of_two),
    "Gamma(2)": lambda: Gamma(2, power_of_two),
    "ZBox": lambda: ZBox(-3, 3, power_of_two),
    "WSquare": lambda: WSquare(power_of_two),
    "Flat": lambda: Flat(power_of_two),
}
#: Of the relevance r, weighed by v, and the output y.
LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "relevance": lambda r, v, _: (r * v).sum(),
    "relevance-and-output": lambda r, v, y: (r * v).sum() + y.square().sum(),
    "output-and-relevance": lambda r, v, y: y.square().sum() + (r * v).sum(),
}


def _gradients(rule: Hook, loss: str, *, nested: bool, place: Callable[[Tensor], Tensor]) -> list[Tensor | None]:
    parts = nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)
    model = nn.Sequential(nn.Sequential(*parts[:2]), parts[2]) if nested else nn.Sequential(*parts)
    for seed, parameter in enumerate(model.parameters()):
        parameter.data = integers(parameter.shape, seed)
    if place is on_device:
        to_device(model)
    x, v, R = (place(integers(shape, 7)) for shape in ((2, 4), (2, 4), (2, 3)))
    x.requires_grad_()
    rules = {"0": Norm(power_of_two), "1": rule} if nested else {nn.Linear: rule, nn.ReLU: Pass()}
    inner = [rule.register(parts[0])] if nested else []
    with attach(model, rules):
        y = model(x)
    for registration in inner:
        registration.remove()
    (r,) = torch.autograd.grad(y, x, R, create_graph=True)
    return list(torch.autograd.grad(LOSSES[loss](r, v, y), [x, *model.parameters()], allow_unused=True))


#: Rules on layers, and one inside another. Where all other rules pass relevance on, Flat's depends on nothing.
CASES = [
    pytest.param(rule, loss, nested, id=f"{rule}-{loss}-{'rule-inside-a-rule' if nested else 'layers'}")
    for rule in RULES
    for loss in LOSSES
    for nested in (False, True)
    if (rule, loss, nested) != ("Flat", "relevance", False)
]


@pytest.mark.parametrize("ahead", [True, False], ids=["device-ahead", "device-behind"])
@pytest.mark.parametrize(("rule", "loss", "nested"), CASES)
def test_gradients_are_those_of_the_cpu(rule: str, loss: str, nested: bool, ahead: bool) -> None:
    expected = _gradients(RULES[rule](), loss, nested=nested, place=torch.clone)
    fake_device.number_nodes(device_ahead=ahead)
    found = _gradients(RULES[rule](), loss, nested=nested, place=on_device)
    assert any(g is not None and g.any() for g in expected)
    for on_the_device, gradient in zip(found, expected, strict=True):
        if gradient is None:
            assert on_the_device is None
        else:
            assert isinstance(on_the_device, DeviceTensor)
            assert torch.equal(on_the_device.held, gradient)


class Between(nn.Module):
    """Its middle may be on another device."""

    def __init__(self, *, elsewhere: bool) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        for seed, parameter in enumerate(self.parameters()):
            parameter.data = integers(parameter.shape, seed)
        self.elsewhere = elsewhere
        if elsewhere:
            to_device(self.middle)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        h = self.middle(h.to(fake_device.NAME) if self.elsewhere else h)
        output: Tensor = self.last(h.to("cpu") if self.elsewhere else h)
        return output


@pytest.mark.parametrize("create_graph", [False, True], ids=["relevance", "second-derivative"])
@pytest.mark.parametrize("inside", [False, True], ids=["alone", "with-rules-inside"])
def test_a_container_on_two_devices(inside: bool, create_graph: bool) -> None:
    found = []
    for elsewhere in (False, True):
        model, x, R = Between(elsewhere=elsewhere), integers((2, 3), 7).requires_grad_(), integers((2, 3), 8)
        inner = [ZPlus(0.5).register(model.middle), Epsilon(0.5).register(model.first)] if inside else []
        with Norm(power_of_two).register(model):
            y = model(x)
        for registration in inner:
            registration.remove()
        (r,) = torch.autograd.grad(y, x, R, create_graph=create_graph)
        found.append(torch.autograd.grad((r * integers((2, 3), 9)).sum(), x)[0] if create_graph else r)
    assert torch.equal(*found)


class AfterConstant(Between):
    """Returns a constant before what it computes."""

    def forward(self, x: Tensor) -> Any:
        return x.detach() * 2, super().forward(x)


@pytest.mark.parametrize("elsewhere", [False, True], ids=["one-device", "two-devices"])
def test_a_rule_inside_a_rule_beside_a_constant_output(elsewhere: bool) -> None:
    found = []
    for inside in (False, True):
        model, x, R = AfterConstant(elsewhere=elsewhere), integers((2, 3), 7).requires_grad_(), integers((2, 3), 8)
        inner = [ZPlus(0.5).register(model.middle)] if inside else []
        with Norm(power_of_two).register(model):
            outputs = model(x)
        for registration in inner:
            registration.remove()
        found.append(torch.autograd.grad(outputs, x, (R, R))[0])
    assert torch.equal(*found)
    assert found[0].any()
