"""Functions with rules where a part of a model is a closure that is checkpointed, or under torch.func; products."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the name that everyone knows it by
from torch.utils.checkpoint import CheckpointError, checkpoint

import verify
from lrp_rules import Epsilon, Norm, SignalTakesAll, Uniform, attach
from lrp_rules.composites import CPLRP, AttnLRP, EpsilonPlus, EpsilonPlusFlat

if TYPE_CHECKING:
    from collections.abc import Callable

    from lrp_rules import Composite


class Block(nn.Module):
    """A closure over a layer, checkpointed or not."""

    def __init__(self, reentrant: bool | None, behind: Callable[[Tensor], Tensor] = torch.relu) -> None:
        super().__init__()
        self.layer, self.reentrant, self.behind = nn.Linear(4, 4), reentrant, behind

    def forward(self, x: Tensor) -> Tensor:
        def part(x: Tensor) -> Tensor:
            return self.behind(torch.tanh(self.layer(x)) + x)

        if self.reentrant is None:
            return part(x)
        found: Tensor = checkpoint(part, x, use_reentrant=self.reentrant)
        return found


def model(reentrant: bool | None, **given: Any) -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(Block(reentrant, **given), Block(reentrant, **given), nn.Linear(4, 2)).double()


def explained(network: nn.Module, composite: Composite) -> Tensor:
    x = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    R = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with attach(network, composite, strict=True):
        network(x).backward(R)
    assert x.grad is not None
    return x.grad


@pytest.mark.parametrize("composite", [EpsilonPlus(), EpsilonPlusFlat(), AttnLRP()], ids=lambda one: type(one).__name__)
def test_a_checkpointed_closure_has_the_rules_when_it_is_called_again(composite: Composite) -> None:
    assert torch.equal(explained(model(False), composite), explained(model(None), composite))


def test_and_no_others_once_they_are_removed() -> None:
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    network = model(False)
    with attach(network, EpsilonPlus()):
        output = network(x)
    with pytest.raises(CheckpointError) as caught:
        output.sum().backward()
    assert any("backward pass before the rules are removed" in note for note in caught.value.__notes__)


def test_an_end_that_torch_keeps_something_of_is_an_error_and_no_gradient() -> None:
    """The backward pass of max_pool1d is torch's, and calls the closure again outside of all rules."""
    network = model(False, behind=lambda x: F.max_pool1d(x, 1))
    with pytest.raises(CheckpointError):
        explained(network, EpsilonPlus())


def test_a_reentrant_checkpoint_of_a_closure_is_refused() -> None:
    with pytest.raises(RuntimeError, match="give checkpoint a module, or use use_reentrant=False"):
        explained(model(True), EpsilonPlus())


class Attention(nn.Module):
    """Sums, products of two signals, a softmax, a mean, and layers that are not known."""

    def __init__(self) -> None:
        super().__init__()
        self.value, self.pool, self.norm = nn.Linear(4, 4), nn.AdaptiveAvgPool1d(2), nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.softmax(x @ x.transpose(-1, -2), -1)
        found: Tensor = self.pool(self.norm(x + weights @ self.value(x)))
        return found.mean(-2) - x.sum(-2)[:2]


@pytest.mark.parametrize("composite", [EpsilonPlus(), AttnLRP(), CPLRP()], ids=lambda one: type(one).__name__)
def test_functions_and_layers_that_are_not_known_under_torch_func(composite: Composite) -> None:
    torch.manual_seed(4)
    network, x = Attention().double(), torch.randn(3, 4, dtype=torch.float64)
    leaf, units = x.clone().requires_grad_(), torch.eye(2, dtype=torch.float64)
    with attach(network, composite, strict=True):
        output = network(leaf)
        expected = torch.stack([torch.autograd.grad(output, leaf, one, retain_graph=True)[0] for one in units])
        made: Any = torch.func.vjp(network, x)
        explained = {
            "vjp": torch.stack([made[1](one)[0] for one in units]),
            "vmap": torch.func.vmap(lambda one: made[1](one)[0])(units),
            "jacrev": torch.func.jacrev(network)(x),
            "grad": torch.stack([torch.func.grad(lambda v, k=k: network(v)[k])(x) for k in range(2)]),
        }
    room = 2**8 * torch.finfo(x.dtype).eps * expected.abs().amax()
    for way, found in explained.items():
        assert bool(((found - expected).abs() <= room).all()), way
    assert not torch.equal(torch.func.jacrev(network)(x), expected)  # without rules


@pytest.mark.parametrize("rule", [Norm(), Epsilon()], ids=["Norm", "Epsilon"])
def test_what_another_run_changes_is_refused_there(rule: Epsilon) -> None:
    class Counting(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            type(self).calls += 1
            return x.tanh() * self.calls

    module = Counting()
    with rule.register(module), pytest.raises(RuntimeError, match="gives another output than the call did"):
        torch.func.grad(lambda x: module(x).sum())(torch.randn(2, 3, dtype=torch.float64))


class Product(nn.Module):
    def __init__(self, product: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.gate, self.up, self.product = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False), product
        self.scale = nn.Parameter(torch.rand(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.product(self.gate(x), self.up(x))


def gelu_new(h: Tensor, _: Tensor) -> Tensor:
    return 0.5 * h * (1.0 + torch.tanh(0.7978845608 * (h + 0.044715 * torch.pow(h, 3.0))))


PRODUCTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "swiglu": lambda gate, up: F.silu(gate) * up,
    "geglu": lambda gate, up: F.gelu(gate) * up,
    "gelu-new": gelu_new,
    "mish": lambda h, _: h * torch.tanh(F.softplus(h)),
}


@pytest.mark.parametrize("composite", [CPLRP, EpsilonPlus])
@pytest.mark.parametrize("product", PRODUCTS)
def test_a_product_that_nobody_can_decide_is_refused_and_what_is_said_works(
    product: str, composite: Callable[..., Composite]
) -> None:
    network = Product(PRODUCTS[product]).double()
    x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    unused = "up" if product in {"gelu-new", "mish"} else ()
    with pytest.raises(ValueError, match=r"torch\.mul.*CPLRP\(layer_map=\{torch\.mul: Uniform\(\)\}\)") as caught:  # noqa: SIM117
        with attach(network, composite(), unused=unused):
            network(x)
    assert "AttnLRP" in str(caught.value)
    for rules in (
        composite(layer_map={torch.mul: Uniform()}),
        composite(layer_map={torch.mul: SignalTakesAll(1)}),
        AttnLRP(),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with attach(network, rules, unused=unused):
                output = network(x)
        (r,) = torch.autograd.grad(output.sum(), x)
        # a product by a constant is linear, whatever is called its signal
        audit = verify.audit(network, x.detach(), rules, target=torch.ones_like(output))
        assert not audit.faults
        assert torch.equal(audit.relevance[0], r)  # type: ignore[arg-type]
