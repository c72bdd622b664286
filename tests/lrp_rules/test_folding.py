"""Batch norms that are folded into the layer before them, against the layer that torch makes of both."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the name that everyone knows it by
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from lrp_rules import AlphaBeta, Epsilon, FoldBatchNorm, Gamma, Norm, Pass, WSquare, ZPlus, attach
from lrp_rules.layers.numbers import agree

if TYPE_CHECKING:
    from collections.abc import Callable

    from lrp_rules import Hook

FOLD = {
    nn.BatchNorm1d: FoldBatchNorm(Epsilon()),
    nn.BatchNorm2d: FoldBatchNorm(Epsilon()),
    nn.BatchNorm3d: FoldBatchNorm(Epsilon()),
}
PAIRS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(6, 4), lambda: nn.BatchNorm1d(4), (3, 6)),
    "conv1d": (lambda: nn.Conv1d(6, 4, 3, groups=2), lambda: nn.BatchNorm1d(4), (3, 6, 7)),
    "conv2d": (lambda: nn.Conv2d(6, 4, 3, padding=1, stride=2), lambda: nn.BatchNorm2d(4), (3, 6, 7, 5)),
    "conv2d-no-bias": (lambda: nn.Conv2d(6, 4, 3, bias=False), lambda: nn.BatchNorm2d(4), (3, 6, 7, 5)),
    "conv2d-circular": (
        lambda: nn.Conv2d(6, 4, 3, padding=1, padding_mode="circular"), lambda: nn.BatchNorm2d(4), (3, 6, 7, 5)
    ),
    "conv3d": (lambda: nn.Conv3d(2, 4, 2, dilation=2), lambda: nn.BatchNorm3d(4), (2, 2, 5, 4, 5)),
    "transposed1d": (lambda: nn.ConvTranspose1d(6, 4, 3, stride=2), lambda: nn.BatchNorm1d(4), (3, 6, 5)),
    "transposed2d": (
        lambda: nn.ConvTranspose2d(6, 4, 3, groups=2, stride=2, output_padding=1), lambda: nn.BatchNorm2d(4),
        (3, 6, 3, 4),
    ),
    "not-affine": (lambda: nn.Conv2d(6, 4, 3), lambda: nn.BatchNorm2d(4, affine=False), (3, 6, 7, 5)),
}  # fmt: skip
RULES: dict[str, Hook] = {
    "Epsilon": Epsilon(1e-2), "ZPlus": ZPlus(1e-2), "AlphaBeta": AlphaBeta(2, 1, 1e-2), "Gamma": Gamma(0.25, 1e-2),
    "WSquare": WSquare(1e-2), "no-bias": Epsilon(1e-2, zero_params="bias"),
}  # fmt: skip


def pair(name: str) -> tuple[nn.Sequential, Tensor]:
    generator = torch.Generator().manual_seed(3)
    layer, norm, shape = PAIRS[name]
    model = nn.Sequential(layer(), norm()).double().eval()
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if value.is_floating_point():
                drawn = torch.randn(value.shape, generator=generator, dtype=torch.float64)
                value.copy_(drawn.abs() + 0.5 if "var" in key else drawn)
    return model, torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def fused(model: nn.Sequential) -> nn.Module:
    layer: Any
    norm: Any
    layer, norm = copy.deepcopy(model)
    if isinstance(layer, nn.ConvTranspose2d):  # torch fuses these without their groups
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        each = layer.in_channels // layer.groups
        with torch.no_grad():
            for i in range(layer.in_channels):
                for o in range(layer.weight.shape[1]):
                    layer.weight[i, o] *= scale[i // each * layer.weight.shape[1] + o]
            assert layer.bias is not None
            layer.bias.copy_((layer.bias - norm.running_mean) * scale + norm.bias)
        one: nn.Module = layer
    elif isinstance(layer, nn.Linear):
        one = fuse_linear_bn_eval(layer, norm)
    else:
        one = fuse_conv_bn_eval(layer, norm, transpose="Transpose" in type(layer).__name__)
    return one


def relevance(output: Tensor, x: Tensor, **kwargs: Any) -> Tensor:
    R = torch.randn(output.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    return torch.autograd.grad(output, x, R, **kwargs)[0]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", PAIRS)
def test_a_folded_pair_is_the_layer_that_torch_makes_of_it(name: str, rule: str) -> None:
    model, x = pair(name)
    plain = model(x).detach()
    with attach(model, {type(model[0]): RULES[rule], **FOLD}) as rules:
        output = model(x)
        assert torch.equal(output, plain)  # the batch norm's own output, to the last bit
        found = relevance(output, x)
    assert "folded" in repr(rules)
    one = fused(model)
    with RULES[rule].register(one):
        expected = relevance(one(x), x)
    # both are within the bound of their own rounding, of which a small multiple of all relevance is an upper limit
    assert agree(found, expected)


@pytest.mark.parametrize("name", ["linear", "conv2d"])
def test_derivatives_of_a_folded_pair_reach_the_parameters_of_both(name: str) -> None:
    model, x = pair(name)
    with attach(model, {type(model[0]): Epsilon(0.5), **FOLD}):
        r = relevance(model(x), x, create_graph=True)
    found = torch.autograd.grad(r.square().sum(), list(model.parameters()), allow_unused=True)

    layer: Any
    norm: Any
    layer, norm = model

    def by_hand(*parameters: Tensor) -> Tensor:
        named = dict(zip((name for name, _ in model.named_parameters()), parameters, strict=True))
        output = torch.func.functional_call(model, named, (x,))
        scale = named["1.weight"] / (norm.running_var + norm.eps).sqrt()
        R = torch.randn(output.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
        s = R / (output + 0.5 * torch.where(output.detach() < 0, -1.0, 1.0))
        s = s * scale.view(-1, *[1] * (output.ndim - 2))
        pull = (
            F.linear(s, named["0.weight"].T)
            if name == "linear"
            else F.conv_transpose2d(
                s, named["0.weight"], stride=layer.stride, padding=layer.padding, output_padding=(0, 0)
            )
        )
        assert pull.shape == x.shape
        return (x * pull).square().sum()

    expected = torch.autograd.grad(by_hand(*model.parameters()), list(model.parameters()), allow_unused=True)
    for a, b in zip(found, expected, strict=True):
        assert a is not None
        assert b is not None
        assert agree(a, b)


def test_who_else_uses_the_layers_output_gets_the_layer_alone() -> None:
    class Forked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.norm = pair("conv2d")[0]

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            z = self.layer(x)
            return self.norm(z), z

    model, x = Forked(), pair("conv2d")[1]
    with attach(model, {nn.Conv2d: ZPlus(), **FOLD}):
        found = relevance(model(x)[1], x)
    with ZPlus().register(model.layer):
        assert torch.equal(found, relevance(model.layer(x), x))


def test_a_batch_norm_that_follows_no_layer_has_its_other_rule() -> None:
    (_, norm), x = pair("conv2d")
    x = x[:, :4].detach().requires_grad_()
    model = nn.Sequential(norm, nn.Conv2d(4, 2, 3).double()).eval()
    with attach(model, {nn.Conv2d: Pass(), nn.BatchNorm2d: FoldBatchNorm(Norm(0.5))}, ignore="1") as rules:
        found = relevance(model(x), x)
    assert "Norm" in repr(rules)
    with Norm(0.5).register(norm):
        assert torch.equal(found, relevance(model(x), x))


def test_functions_are_folded_too() -> None:
    model, x = pair("conv2d-no-bias")

    class Functions(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            layer, norm = model
            z = F.conv2d(x, layer.weight)  # type: ignore[arg-type]
            return F.batch_norm(z, norm.running_mean, norm.running_var, norm.weight, norm.bias)  # type: ignore[arg-type]

    functions = Functions()
    with attach(functions, {F.conv2d: ZPlus(), F.batch_norm: FoldBatchNorm(Epsilon())}):
        found = relevance(functions(x), x)
    with attach(model, {nn.Conv2d: ZPlus(), **FOLD}):
        assert torch.equal(found, relevance(model(x), x))


def test_train_mode_is_refused_with_what_to_do() -> None:
    model, x = pair("conv2d")
    model.train()
    with (
        pytest.raises(RuntimeError, match=r"statistics of its batch.*model\.eval\(\)"),
        attach(model, {nn.Conv2d: ZPlus(), **FOLD}),
    ):
        model(x)


def test_it_stands_for_nothing_alone() -> None:
    with pytest.raises(TypeError, match="only attach knows"):
        FoldBatchNorm(Epsilon()).register(nn.BatchNorm2d(3))
    with pytest.raises(TypeError, match="expected the rule of a batch norm that follows no layer"):
        FoldBatchNorm(Epsilon)  # type: ignore[arg-type]
