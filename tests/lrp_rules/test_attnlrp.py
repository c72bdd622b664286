"""The rules of AttnLRP, as LXT has them: the same but for its stabilizer, which has no sign."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the name everyone knows

from lrp_rules import Bilinear, Hook, LayerNormRule, Softmax, Uniform
from lrp_rules.layers.numbers import agree

if TYPE_CHECKING:
    from collections.abc import Callable

peer: Any = pytest.importorskip("lxt.explicit.functional", reason="needs the extra `peers`")


def unsigned(d: Tensor) -> Tensor:
    """What LXT does in the place of S(d), at its own epsilon for a normalisation."""
    return d + 1e-6


class Call(nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Tensor) -> Tensor:
        return self.function(*args)


def norm() -> nn.LayerNorm:
    module = nn.LayerNorm(4)
    nn.init.normal_(module.weight)
    nn.init.normal_(module.bias)
    return module


def both(
    rule: Hook, module: nn.Module, other: Callable[..., Tensor], *shapes: tuple[int, ...], constant: bool = False
) -> None:
    inputs = [torch.randn(shape).requires_grad_(not constant or place == 0) for place, shape in enumerate(shapes)]
    wanted = [x for x in inputs if x.requires_grad]
    with rule.register(module):
        output = module(*inputs)
    theirs = other(*inputs)
    assert agree(output, theirs)
    R = torch.randn_like(output)
    for ours, found in zip(torch.autograd.grad(output, wanted, R), torch.autograd.grad(theirs, wanted, R), strict=True):
        assert agree(ours, found)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_softmax() -> None:
    both(Softmax(), nn.Softmax(-1), lambda x: peer.softmax(x, -1), (2, 3, 4))


@pytest.mark.parametrize("constant", [False, True])
def test_product(constant: bool) -> None:
    both(Uniform(), Call(torch.mul), peer.mul2, (2, 3), (2, 3), constant=constant)


def test_matrix_product() -> None:
    both(Bilinear(unsigned), Call(torch.matmul), lambda a, v: peer.matmul(a, v, epsilon=1e-6), (2, 3, 4), (2, 4, 5))


def test_layer_norm() -> None:
    module = norm()
    both(
        LayerNormRule(unsigned), module, lambda x: peer.layer_norm(x, module.weight, module.bias, module.eps), (2, 3, 4)
    )


@pytest.mark.parametrize("masked", [False, True])
def test_attention(masked: bool) -> None:
    mask = torch.ones(3, 3).tril().log() if masked else torch.zeros(3, 3)
    q, k, v = (torch.randn(2, 3, 4).requires_grad_() for _ in range(3))
    scores, softmax, out = Call(torch.matmul), nn.Softmax(-1), Call(torch.matmul)
    with Bilinear(unsigned).register(scores), Softmax().register(softmax), Bilinear(unsigned).register(out):
        output = out(softmax(scores(q, k.mT) + mask), v)
    theirs = peer.matmul(peer.softmax(peer.matmul(q, k.mT, epsilon=1e-6) + mask, -1), v, epsilon=1e-6)
    assert agree(output, theirs)
    assert agree(output, F.scaled_dot_product_attention(q, k, v, mask, scale=1.0))
    R = torch.randn_like(output)
    found = zip(torch.autograd.grad(output, (q, k, v), R), torch.autograd.grad(theirs, (q, k, v), R), strict=True)
    assert all(agree(a, b) for a, b in found)
