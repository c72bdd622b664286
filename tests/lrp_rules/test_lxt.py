"""AttnLRP and CPLRP on transformers, against the same networks written in the functions of LXT.

LXT adds its epsilon without a sign, so that it is made too small to matter here. It has no functions for activations
and for attention weights that are constants, and an epsilon of its own in layer norms: these are written out below.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the name that everyone knows it by

from lrp_rules import attach, composites
from lrp_rules.layers.numbers import agree
from tests.lrp_rules.networks import Decoder, prepared

if TYPE_CHECKING:
    from collections.abc import Callable

lf: Any = pytest.importorskip("lxt.explicit.functional", reason="LXT is not installed: pip install --no-deps lxt")
TINY = 1e-30


class Epsilon(torch.autograd.Function):
    """x times the gradient of R / f(x): LRP-0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        with torch.enable_grad():
            ctx.x = x.detach().requires_grad_()
            ctx.output = function(ctx.x)
        return ctx.output.detach()  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, relevance: Tensor) -> tuple[Tensor, None]:
        (gradient,) = torch.autograd.grad(ctx.output, ctx.x, relevance / ctx.output.detach())
        return ctx.x.detach() * gradient, None


def epsilon(x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    found: Tensor = Epsilon.apply(x, function)  # type: ignore[no-untyped-call]
    return found


def linear(layer: Any, x: Tensor) -> Any:
    return lf.linear_epsilon(x, layer.weight, layer.bias, TINY)


def add(a: Tensor, b: Tensor) -> Any:
    return lf.add2(a, b, False, TINY)


def norm(layer: Any, x: Tensor) -> Tensor:
    def normalised(x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        deviation = (centred.square().mean(-1, keepdim=True) + layer.eps).sqrt().detach()
        found: Tensor = centred / deviation * layer.weight.detach() + layer.bias.detach()
        return found

    return epsilon(x, normalised)


def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    return x + (F.gelu(x, approximate=approximate) - x).detach()  # relevance passes


def attention(rule: str, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Any:
    scores = lf.mul2(lf.matmul(q, k.transpose(-2, -1), False, TINY), 1 / math.sqrt(q.shape[-1]))
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    if rule == "CPLRP":
        weights = torch.softmax(scores, -1).detach()
        return epsilon(v, lambda v: weights @ v)
    return lf.matmul(lf.softmax(scores, -1), v, False, TINY)


def gpt(model: Any, x: Tensor, rule: str) -> Any:
    x = add(x, model.position)
    n, length, width = x.shape
    parts = linear(model.qkv, norm(model.norm1, x)).split(width, 2)
    q, k, v = (t.view(n, length, model.heads, -1).transpose(1, 2) for t in parts)
    attended = attention(rule, q, k, v, torch.ones(length, length).tril().bool())
    x = add(x, linear(model.project, attended.transpose(1, 2).reshape(n, length, width)))
    x = add(x, linear(model.down, gelu(linear(model.up, norm(model.norm2, x)), "tanh")))
    return x[:, -1]


def encoder(layer: Any, x: Tensor, rule: str) -> Any:
    attend = layer.self_attn

    def attended(x: Tensor) -> Any:
        n, length, width = x.shape
        pairs = zip(attend.in_proj_weight.chunk(3), attend.in_proj_bias.chunk(3), strict=True)
        q, k, v = (
            lf.linear_epsilon(x, w, b, TINY).view(n, length, attend.num_heads, -1).transpose(1, 2) for w, b in pairs
        )
        return linear(attend.out_proj, attention(rule, q, k, v).transpose(1, 2).reshape(n, length, width))

    def forward(x: Tensor) -> Any:
        return linear(layer.linear2, gelu(linear(layer.linear1, x)))

    if layer.norm_first:
        x = add(x, attended(norm(layer.norm1, x)))
        return add(x, forward(norm(layer.norm2, x)))
    x = norm(layer.norm1, add(x, attended(x)))
    return norm(layer.norm2, add(x, forward(x)))


def transformer(*, norm_first: bool) -> nn.Module:
    return nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, activation="gelu", batch_first=True, norm_first=norm_first)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[..., Any]]] = {
    "gpt": (Decoder, gpt),
    "bert": (lambda: transformer(norm_first=False), encoder),
    "vit": (lambda: transformer(norm_first=True), encoder),
}


@pytest.mark.parametrize("rule", ["AttnLRP", "CPLRP"])
@pytest.mark.parametrize("name", NETWORKS)
def test_transformers_have_the_relevance_that_lxt_gives_them(name: str, rule: str) -> None:
    make, peer = NETWORKS[name]
    generator = torch.Generator().manual_seed(3)
    model = prepared(make, constants=True)
    x = torch.randn(2, 5, 8, generator=generator, dtype=torch.float64).requires_grad_()
    with attach(model, getattr(composites, rule)(TINY)):
        output = model(x)
    R = torch.randn(output.shape, generator=generator, dtype=torch.float64)
    found = torch.autograd.grad(output, x, R)[0]
    theirs = peer(model, x, rule)
    assert agree(output, theirs)
    assert agree(found, torch.autograd.grad(theirs, x, R)[0])
