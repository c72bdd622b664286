"""Relevance of weights and biases by name: against the reference, beside the ledger, and where it is refused."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from lrp_rules import (
    AlphaBeta,
    BasicHook,
    Epsilon,
    Flat,
    Gamma,
    Norm,
    Pass,
    WSquare,
    ZBox,
    ZPlus,
    attach,
)
from lrp_rules.composites import EpsilonPlus, SpecialFirstLayerMapComposite
from lrp_rules.recurrent import written_out
from reference import rules as formulas
from reference.layers import affine
from reference.parameters import of_parameters
from reference.precision import FLOAT64
from verify.formats.torch_layers import array, describe

if TYPE_CHECKING:
    from collections.abc import Callable

    from lrp_rules import Hook

RULES: dict[str, tuple[Hook, Callable[..., Any]]] = {
    "epsilon": (Epsilon(0.1), formulas.epsilon),
    "zplus": (ZPlus(0.1), formulas.zplus),
    "alpha-beta": (AlphaBeta(2, 1, 0.1), formulas.alpha_beta),
    "gamma": (Gamma(0.5, 0.1), lambda layer: formulas.gamma(layer, 0.5)),
    "zbox": (ZBox(-4.0, 4.0, 0.1), lambda layer: formulas.zbox(layer, -4.0, 4.0)),
    "wsquare": (WSquare(0.1), formulas.wsquare),
    "flat": (Flat(0.1), formulas.flat),
    "no-bias": (Epsilon(0.1, zero_params="bias"), formulas.epsilon),
}
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(5, 4), (3, 5)),
    "linear-positions": (lambda: nn.Linear(5, 4), (3, 2, 5)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), (3, 4, 7)),
    "conv2d": (lambda: nn.Conv2d(2, 3, 2, dilation=2, padding="same"), (2, 2, 4, 5)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 4, 3, stride=2, groups=2, output_padding=1), (2, 4, 2, 3)),
    "no-bias": (lambda: nn.Conv1d(2, 3, 3, bias=False), (2, 2, 6)),
}


def drawn(create: Callable[[], nn.Module], shape: tuple[int, ...], seed: int = 5) -> tuple[Any, Tensor]:
    torch.manual_seed(seed)
    module, x = create().double(), torch.randn(shape, dtype=torch.float64)
    x.view(-1)[0] = 0
    return module, x.requires_grad_()


def asked(module: nn.Module, rule: Hook, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return R, and the relevance of the input and of the parameters of one layer."""
    names = [name for name, _ in module.named_parameters()]
    with attach(nn.Sequential(module), {"0": rule}, keep=[f"0.{name}" for name in names]) as rules:
        output = module(x)
    R = torch.randn(output.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = torch.autograd.grad(output, [x, *[rules.kept[f"0.{name}"] for name in names]], R)
    return R, dict(zip(["x", *names], found, strict=True))


def misses(found: dict[str, Tensor], module: nn.Module, x: Tensor, R: Tensor, rule: str) -> dict[str, float]:
    """Return the largest |got - reference| / bound for each parameter: up to 1 where it is right."""
    layer = describe(module, tuple(x.shape[1:]))
    zero = ("bias",) if rule == "no-bias" else ()
    books = []
    for sample, relevance in zip(x, R, strict=True):
        seen = affine(layer, array(sample).ravel(), zero)
        books.append(of_parameters(RULES[rule][1](seen), seen, array(relevance), 0.1))
    ratios: dict[str, float] = {}
    for name in ("weight", "bias"):
        if name not in found:
            continue
        values = [getattr(book, name) for book in books]
        room = sum(getattr(book, f"{name}_bound") for book in books)
        room = room + FLOAT64.gamma(len(books)) * sum(map(np.abs, values)) + FLOAT64.tiny
        with np.errstate(over="ignore"):
            ratios[name] = float((np.abs(array(found[name]) - sum(values)) / room).max())
    return ratios


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("layer", LAYERS)
def test_each_parameter_has_what_the_reference_says(layer: str, rule: str) -> None:
    module, x = drawn(*LAYERS[layer])
    R, found = asked(module, RULES[rule][0], x)
    assert found["weight"].shape == module.weight.shape
    assert max(misses(found, module, x, R, rule).values()) <= 1


@pytest.mark.parametrize("rule", ["zplus", "gamma", "alpha-beta", "wsquare"])
def test_weight_times_gradient_is_noticed(rule: str) -> None:
    module, x = drawn(*LAYERS["conv1d"])
    R, found = asked(module, RULES[rule][0], x)
    output = module(x)
    wrong = torch.autograd.grad(output, [module.weight, module.bias], R / (output + 0.1 * output.sign()))
    found.update(weight=module.weight.detach() * wrong[0], bias=module.bias.detach() * wrong[1])
    assert min(misses(found, module, x, R, rule).values()) > 1


def test_only_what_is_asked_for_is_computed_and_no_parameter_gets_a_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = drawn(*LAYERS["linear"])
    with attach(module, {nn.Linear: Epsilon()}, keep=["weight", "bias"]) as rules:
        output = module(x)
    names: list[str] = []

    def noted(_: Epsilon, layer: Any, _R: Tensor, name: str) -> Any:
        names.append(name)
        return layer.given[name]

    monkeypatch.setattr(Epsilon, "parameter_relevance", noted)
    torch.autograd.grad(output.sum(), x, retain_graph=True)
    assert not names
    torch.autograd.grad(output.sum(), rules.kept["bias"], retain_graph=True)
    assert names == ["bias"]
    output.sum().backward()
    assert module.weight.grad is None
    assert rules.kept["weight"].grad.shape == module.weight.shape


class Twice(nn.Module):
    """One layer called twice, and its weight in a function."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = torch.relu(self.layer(torch.relu(self.layer(x))))
        return nn.functional.linear(found, self.layer.weight)


def test_calls_are_summed_those_of_functions_included() -> None:
    model, x = drawn(Twice, (3, 4))
    with attach(model, EpsilonPlus(), keep=["layer.weight", "layer.bias", "layer"]) as rules:
        output = model(x)
    R = torch.randn(3, 4, dtype=torch.float64)
    r, weight, bias = torch.autograd.grad(output, [x, rules.kept["layer.weight"], rules.kept["layer.bias"]], R)
    apart = copy.deepcopy(model.layer), copy.deepcopy(model.layer), nn.Linear(4, 4, bias=False).double()
    apart[2].weight.data.copy_(model.layer.weight.data)
    chain = nn.Sequential(apart[0], nn.ReLU(), apart[1], nn.ReLU(), apart[2])
    names = ["0.weight", "2.weight", "4.weight", "0.bias", "2.bias"]
    with attach(chain, EpsilonPlus(), keep=names) as other:
        again = chain(x)
    s, *found = torch.autograd.grad(again, [x, *[other.kept[name] for name in names]], R)
    assert torch.equal(r, s)
    room = 8 * torch.finfo(torch.float64).eps
    assert bool(((weight - sum(found[:3])).abs() <= room * sum(map(torch.abs, found[:3]))).all())
    assert bool(((bias - sum(found[3:])).abs() <= room * sum(map(torch.abs, found[3:]))).all())


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_the_weights_of_a_recurrent_layer_are_those_of_its_parts(kind: type[nn.RNNBase]) -> None:
    layer, x = drawn(lambda: kind(3, 2, batch_first=True), (2, 4, 3))  # type: ignore[call-arg,arg-type]
    R = torch.randn(2, 4, 2, dtype=torch.float64)
    found = {}
    for model, names in (
        (layer, ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")),
        (
            written_out(layer),
            [f"cells.0.of_{one}" for one in ("input.weight", "state.weight", "input.bias", "state.bias")],
        ),
    ):
        with attach(model, EpsilonPlus(), keep=names) as rules:
            output, _ = model(x)
        found[model] = torch.autograd.grad(output, [rules.kept[name] for name in names], R)
    whole, parts = found.values()
    assert all(bool(one.any()) for one in whole)
    for one, other in zip(whole, parts, strict=True):
        assert bool(((one - other).abs() <= 2**-44 * other.abs().sum()).all())


def folded() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)).eval()
    for buffer in (model[1].running_mean, model[1].running_var):
        nn.init.uniform_(buffer, 0.5, 2)  # type: ignore[arg-type]
    return model


def test_the_weight_of_a_layer_with_a_folded_batch_norm_is_that_of_the_fused_one() -> None:
    model, x = drawn(folded, (2, 2, 5, 5))
    with attach(model, EpsilonPlus(), keep="0.weight") as rules:
        output = model(x)
    R = torch.randn(output.shape, dtype=torch.float64)
    (found,) = torch.autograd.grad(output, [rules.kept["0.weight"]], R)
    fused = torch.nn.utils.fusion.fuse_conv_bn_eval(model[0], model[1])
    with attach(nn.Sequential(fused), EpsilonPlus(), keep="0.weight") as rules:
        output = fused(x)
    (expected,) = torch.autograd.grad(output, [rules.kept["0.weight"]], R)
    assert bool(((found - expected).abs() <= 2**-40 * expected.abs().sum()).all())


def test_its_bias_is_refused() -> None:
    model, x = drawn(folded, (2, 2, 5, 5))
    with pytest.raises(ValueError, match="folded into that layer"), attach(model, EpsilonPlus(), keep="0.bias"):
        model(x)


def test_a_second_derivative() -> None:
    module, x = drawn(*LAYERS["linear"])
    R = torch.randn(3, 4, dtype=torch.float64)

    def weight_relevance(x: Tensor) -> Tensor:
        with attach(module, {nn.Linear: ZPlus(0.1)}, keep="weight") as rules:
            output = module(x)
        (found,) = torch.autograd.grad(output, [rules.kept["weight"]], R, create_graph=True)
        return found

    assert torch.autograd.gradcheck(weight_relevance, ((x.detach().abs() + 0.1).requires_grad_(),))


def test_several_relevances_at_once() -> None:
    module, x = drawn(*LAYERS["conv1d"])
    with attach(module, {nn.Conv1d: ZPlus(0.1)}, keep=["weight", "bias"]) as rules:
        output = module(x)
    R, ends = torch.randn(2, *output.shape, dtype=torch.float64), list(rules.kept.values())
    batched = torch.autograd.grad(output, ends, R, is_grads_batched=True, retain_graph=True)
    one_by_one = [torch.autograd.grad(output, ends, one, retain_graph=True) for one in R]
    for found, expected in zip(batched, map(torch.stack, zip(*one_by_one, strict=True)), strict=True):
        assert bool(((found - expected).abs() <= 2**-44 * expected.abs().sum()).all())


def test_inside_a_checkpoint() -> None:
    module, x = drawn(*LAYERS["linear"])
    R, expected = asked(module, Epsilon(0.1), x)
    for reentrant in (False, True):
        model = nn.Sequential(module)
        x.grad = None
        with attach(model, {"0": Epsilon(0.1)}, keep="0.weight") as rules:
            checkpoint(model, x, use_reentrant=reentrant).backward(R)
        assert torch.equal(rules.kept["0.weight"].grad, expected["weight"])


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(x)
        return found


class Own(Epsilon):
    def relevance(self, layer: Any, R: Tensor) -> Tensor:
        return 2 * super().relevance(layer, R)


def in_eval(*modules: nn.Module) -> nn.Module:
    return nn.Sequential(*modules).eval()


REFUSED: dict[str, tuple[Callable[[], nn.Module], Any, str, str]] = {
    "batch-norm": (
        lambda: in_eval(nn.Linear(3, 3), nn.BatchNorm1d(3)), {nn.Linear: Epsilon(), nn.BatchNorm1d: Epsilon()},
        "1.bias", "belongs to a BatchNorm1d",
    ),
    "layer-norm": (lambda: nn.Sequential(nn.LayerNorm(3)), EpsilonPlus(), "0.weight", "belongs to a LayerNorm"),
    "pass": (lambda: nn.Sequential(nn.Linear(3, 3)), {"0": Pass()}, "0.weight", "its rule, Pass,"),
    "modifiers": (lambda: nn.Sequential(nn.Linear(3, 3)), {"0": BasicHook()}, "0.weight", "its rule, BasicHook,"),
    "own formula": (lambda: nn.Sequential(nn.Linear(3, 3)), {"0": Own()}, "0.weight", "its rule, Own,"),
    "first layer": (
        lambda: nn.Sequential(nn.Linear(3, 3)),
        SpecialFirstLayerMapComposite([(nn.Linear, Epsilon())], [(nn.Linear, Pass())]),
        "0.weight", "its rule, Pass,",
    ),
    "whole": (lambda: nn.Sequential(nn.Sequential(nn.Linear(3, 3))), {"0": Norm()}, "0.0.weight", "has no rule"),
    "attention": (
        lambda: nn.Sequential(nn.TransformerEncoderLayer(4, 2, 4)), EpsilonPlus(), "0.self_attn.in_proj_weight",
        "belongs to a MultiheadAttention",
    ),
    "recurrent": (lambda: nn.Sequential(nn.LSTM(3, 3)), {"0": Pass()}, "0.weight_hh_l0", "belongs to a LSTM"),
    "tied": (Tied, {nn.Linear: Epsilon(), nn.Embedding: Pass()}, "head.weight", "belongs to a Embedding"),
    "computed": (
        lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 3))), {"0": Epsilon()},
        "0.parametrizations.weight.original0", "belongs to a ParametrizationList",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_defined_is_refused(case: str) -> None:
    create, rules, name, why = REFUSED[case]
    model = create()
    with pytest.raises(ValueError, match="relevance is not defined") as caught:
        attach(model, rules, keep=name)
    assert why in str(caught.value)
    assert not any(module._forward_hooks for module in model.modules())


def test_a_bias_that_is_not_there_is_no_name() -> None:
    with pytest.raises(ValueError, match=r"'0\.bias' matches no module"):
        attach(nn.Sequential(nn.Linear(3, 3, bias=False)), EpsilonPlus(), keep="0.bias")


def test_autocast() -> None:
    module, x = nn.Linear(5, 4).float(), torch.randn(3, 5, dtype=torch.float32, requires_grad=True)
    with attach(module, {nn.Linear: Epsilon()}, keep="weight") as rules, torch.autocast("cpu", torch.bfloat16):
        output = module(x)
    (found,) = torch.autograd.grad(output.float().sum(), rules.kept["weight"])
    assert found.dtype == torch.float32
    assert bool(found.isfinite().all())


def test_a_name_that_is_kept_and_is_nowhere_is_refused_with_those_that_there_are() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    with pytest.raises(ValueError, match=r"'nope' matches no module of the model.*; the model has 0, 1$"):
        attach(model, {nn.Linear: Epsilon(), nn.ReLU: Pass()}, keep=["nope"])
