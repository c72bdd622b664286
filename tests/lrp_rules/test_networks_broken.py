"""Networks on which relevance was once lost or made without a word: each is right now, or is refused."""

from __future__ import annotations

import copy
import gc
import math
import pickle
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the name that everyone knows it by
from torch.nn.utils import prune
from torch.overrides import _get_current_function_mode
from torch.utils.checkpoint import checkpoint

from lrp_rules import Epsilon, FoldBatchNorm, Norm, UnruledWarning, attach, composites
from lrp_rules.layers.numbers import agree
from tests.lrp_rules.test_functions import Calls

if TYPE_CHECKING:
    from collections.abc import Callable

TINY = 1e-30


def leaf(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


def linear(inputs: int = 4, outputs: int = 4) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False, dtype=torch.float64)


def conserves(model: Callable[..., Any], *inputs: Tensor, rules: Any = None, **kwargs: Any) -> None:
    attached = model if isinstance(model, nn.Module) else kwargs.pop("on")
    with attach(attached, composites.CPLRP(TINY) if rules is None else rules, strict=True, **kwargs):
        output = model(*inputs)
        R = torch.randn(output.shape, generator=torch.Generator().manual_seed(5), dtype=output.dtype)
        found = torch.autograd.grad(output, inputs, R, allow_unused=True)
    total = torch.stack([r.sum() for r in filter(torch.is_tensor, found)]).sum()
    assert abs(float(total - R.sum())) < 1e-9


def normed(layer: nn.Module, norm: nn.Module) -> nn.Sequential:
    model = nn.Sequential(layer, norm).double().eval()
    assert isinstance(norm.running_var, Tensor)
    norm.running_var.fill_(4.0)
    return model


@pytest.mark.parametrize("change", [
    lambda conv: prune.l1_unstructured(conv, "weight", 0.5), nn.utils.parametrizations.weight_norm,
    nn.utils.parametrizations.spectral_norm,
], ids=["pruned", "weight-norm", "spectral-norm"])  # fmt: skip
def test_weights_that_are_computed_are_folded(change: Callable[[nn.Module], Any]) -> None:
    layer = nn.Conv2d(2, 3, 3, bias=False)
    change(layer)
    conserves(normed(layer, nn.BatchNorm2d(3)), leaf(2, 2, 4, 4))


def _unseen(output: Tensor) -> None:
    output.detach().mul_(3)


class Activated(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.silu(super().forward(x)) * 0.5


def test_a_batch_norm_that_does_more_is_not_folded() -> None:
    model = normed(nn.Conv2d(2, 3, 3, bias=False), Activated(3))
    x, R = leaf(2, 2, 4, 4), torch.ones(2, 3, 2, 2, dtype=torch.float64)
    with attach(model, {nn.Conv2d: Epsilon(0), nn.BatchNorm2d: FoldBatchNorm(Norm(0))}) as rules:
        r = torch.autograd.grad(model(x), x, R)[0]
    assert "folded" not in repr(rules)
    with Epsilon(0).register(model[0]), Norm(0).register(model[1]):
        assert torch.equal(r, torch.autograd.grad(model(x), x, R)[0])


@pytest.mark.parametrize(
    "hook",
    [lambda *a: a[2] * 2, lambda *a: a[2].mul_(3), lambda *a: _unseen(a[2])],
    ids=["another", "in-place", "unseen"],
)
def test_an_output_that_a_hook_has_changed_is_not_folded(hook: Callable[..., Any]) -> None:
    model = normed(nn.Conv2d(2, 3, 1, bias=False), nn.BatchNorm2d(3))
    model[0].register_forward_hook(hook)
    with attach(model, composites.CPLRP(TINY)) as rules:
        model(leaf(2, 2, 4, 4))
    assert "folded" not in repr(rules)


def test_other_channels_than_those_of_the_batch_norm_are_not_folded() -> None:
    for layer, x in ((nn.Conv1d(2, 4, 1, bias=False), leaf(2, 4)), (nn.Conv2d(2, 4, 1, bias=False), leaf(2, 4, 4))):
        conserves(normed(layer, nn.BatchNorm1d(4)), x)


def test_a_batch_norm_in_train_mode_is_refused_by_keyword_too() -> None:
    norm = nn.BatchNorm2d(3).double()
    model = Calls(lambda conv, norm, x: norm(input=conv(x)), nn.Conv2d(2, 3, 1).double(), norm)
    with pytest.raises(RuntimeError, match=r"model\.eval\(\)"), attach(model, composites.CPLRP()):
        model(leaf(2, 2, 4, 4))


@pytest.mark.parametrize("float_mask", [False, True], ids=["bool", "float"])
def test_a_query_that_may_look_at_nothing(float_mask: bool) -> None:
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0]]).bool()
    given = torch.zeros(3, 3).double().masked_fill(~mask, -math.inf) if float_mask else mask
    model = Calls(
        lambda a, b, c, x: F.scaled_dot_product_attention(a(x), b(x), c(x), given), linear(), linear(), linear()
    )
    x = leaf(2, 3, 4)
    with attach(model, composites.CPLRP(TINY), strict=True):
        output = model(x)
    assert agree(output, model(x))
    R = torch.ones_like(output)
    R[:, 2] = 0  # nothing has contributed to it
    assert abs(float((torch.autograd.grad(output, x, R)[0].sum() - R.sum()).detach())) < 1e-9
    attention = nn.MultiheadAttention(4, 2, batch_first=True, bias=False).double()
    padded = torch.tensor([[False, False, True], [True, True, True]])
    model = Calls(lambda m, x: m(x, x, x, key_padding_mask=padded, need_weights=False)[0], attention)
    with attach(model, composites.CPLRP(TINY), strict=True):
        assert agree(model(x), Calls(model.function, attention)(x))


class Product(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w, self.layer = nn.Parameter(leaf(4, 4, seed=2).detach()), linear()
        self.masked = self.w * 2

    def forward(self, x: Tensor) -> Any:
        return self.layer(x @ self.w) @ self.masked


def test_tensors_that_the_model_holds_are_constants() -> None:
    model, x = Product(), leaf(2, 4)
    conserves(model, x)
    given = {name: value.detach().clone().requires_grad_() for name, value in model.named_parameters()}
    conserves(lambda x: torch.func.functional_call(model, given, (x,)), x, on=model)


def accumulated(layer: nn.Module, x: Tensor) -> Tensor:
    y: Tensor = layer(x) * 1
    return y.index_put_((torch.tensor([0, 1]),), x, accumulate=True)


def sampled(layer: nn.Module, x: Tensor) -> Tensor:
    return F.grid_sample(x, torch.tanh(layer(x.flatten(1)[:, :8])).view(1, 2, 2, 2), align_corners=False)


@pytest.mark.parametrize(("function", "shape"), [(accumulated, (2, 8)), (sampled, (1, 2, 2, 2))])
def test_what_is_neither_routing_nor_linear_is_said(function: Callable[..., Any], shape: tuple[int, ...]) -> None:
    model = Calls(function, linear(8, 8))
    with pytest.warns(UnruledWarning, match="index_put_|grid_sample"), attach(model, composites.CPLRP()):
        model(leaf(*shape))


@dataclass
class Data:
    x: Tensor


class OfData(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Sequential(linear(), nn.ReLU()), nn.Sequential(linear())

    def forward(self, data: Data) -> Any:
        return self.decoder(self.encoder(data.x))

    def explained(self, x: Tensor) -> Any:
        return self.decoder(self.encoder(x))


def test_first_layers_are_found_in_data_and_refused_in_parts() -> None:
    model, x = OfData(), leaf(2, 4)
    with attach(model, composites.EpsilonPlusFlat()) as rules:
        model(Data(x))
    assert rules.between.first == {model.encoder[0]}
    with pytest.raises(RuntimeError, match="was called by itself"), attach(model, composites.EpsilonPlusFlat()):
        model.explained(x)
    with pytest.raises(RuntimeError, match="was called by itself"), attach(model, composites.EpsilonPlusFlat()):
        model.encoder[0](x)


def test_a_forward_pass_that_goes_on_after_the_call_is_refused() -> None:
    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = linear()

        def forward(self, x: Tensor) -> Any:
            for _ in range(2):
                x = self.layer(x) + x
                yield x

    model = Steps()
    with pytest.raises(RuntimeError, match="gives a generator"), attach(model, composites.CPLRP(), unused=nn.Linear):
        list(model(leaf(2, 4)))


def test_a_normalisation_by_hand_passes_relevance_under_attnlrp() -> None:
    def normalised(norm: Any, x: Tensor) -> Any:
        return norm.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.eps))

    norm = nn.RMSNorm(4, eps=1e-5).double()
    conserves(Calls(normalised, norm), leaf(2, 4), rules=composites.AttnLRP(TINY), unused=nn.RMSNorm)


def test_a_model_that_ends_in_a_constant_is_refused() -> None:
    model = nn.Sequential(linear(), nn.Softmax(-1))
    with pytest.raises(RuntimeError, match="before its softmax"), attach(model, composites.EpsilonPlus()):
        model(leaf(2, 4))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.softmax(x, -1, torch.float32),
        lambda x: F.softmax(x, -1, dtype=torch.float32),
        lambda x: x.softmax(-1, torch.float32),
    ],
    ids=["torch", "functional", "method"],
)
def test_a_softmax_in_another_dtype(function: Callable[[Tensor], Tensor]) -> None:
    model, x = Calls(lambda layer, x: function(layer(x)), linear()), leaf(2, 4)
    with attach(model, composites.AttnLRP(), strict=True):
        output = model(x)
    assert output.dtype == torch.float32
    assert torch.equal(output, model(x))
    assert bool(torch.autograd.grad(output.sum(), x)[0].isfinite().all())


def test_nothing_of_an_interrupted_call_outlives_the_block() -> None:
    def interrupted(_layer: nn.Module, _x: Tensor) -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), attach(model := Calls(interrupted, linear()), composites.CPLRP()):
        model(leaf(2, 4))
    assert _get_current_function_mode() is None


def test_a_call_is_freed_when_its_output_is() -> None:
    model = Calls(lambda layer, x: layer(x) + x, linear())
    gc.collect()
    gc.disable()
    try:
        with attach(model, composites.CPLRP()):
            x = leaf(2, 4)
            output = model(x)
            kept = weakref.ref(x)
            del x, output
            assert kept() is None
    finally:
        gc.enable()


def test_attach_draws_nothing_and_moves_nothing() -> None:
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attach(model, composites.CPLRP()).remove()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = linear()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer(x), x * 1


def test_outputs_that_are_kept() -> None:
    model = nn.Sequential(Pair())
    rules = attach(model, composites.CPLRP(), keep="0")
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # noqa: S301  its own
        other(leaf(2, 4))
    assert rules.kept == {}
    rules.remove()
    with attach(model, composites.CPLRP(TINY), keep="0") as rules:
        first, second = model(leaf(2, 4))
    at = torch.autograd.grad([first, second], list(rules.kept["0"]), [torch.ones_like(first), torch.ones_like(second)])
    assert all(bool((r == 1).all()) for r in at)
    for name in ("*", "layer", "0.nothing"):
        with pytest.raises(ValueError, match="matches no module"):
            attach(model, composites.CPLRP(), keep=[name])


def test_a_reentrant_checkpoint_around_a_folded_pair() -> None:
    pair = normed(nn.Conv2d(2, 3, 1, bias=False), nn.BatchNorm2d(3))
    model, x = Calls(lambda part, x: checkpoint(part, x, use_reentrant=True), pair), leaf(2, 2, 4, 4)
    with attach(model, composites.CPLRP(TINY)):
        output = model(x)
        output.backward(torch.ones_like(output))
    assert x.grad is not None
    assert abs(float(x.grad.sum() - output.numel())) < 1e-9


CONSERVING: dict[str, tuple[Callable[..., Any], tuple[int, ...]]] = {
    "a signal smaller than its factor": (
        lambda layer, x: layer(x)[..., None] * torch.arange(1.0, 4.0).double(), (2, 4)
    ),
    "itself, in place": (lambda layer, x: (y := layer(x) * 1).add_(y), (2, 4)),
    "its square": (lambda layer, x: (y := layer(x)) * y, (2, 4)),
    "a gate of a view": (lambda layer, x: torch.sigmoid(layer(x)).chunk(2, 1)[0] * torch.tanh(x[:, :2]), (2, 4)),
    "a gate in place": (lambda layer, x: x * layer(x).sigmoid_(), (2, 4)),
    "layer_norm": (lambda layer, x: torch.layer_norm(layer(x), (4,), eps=1e-5, cudnn_enable=True), (2, 4)),
    "instance_norm": (lambda layer, x: F.instance_norm(layer(x)), (2, 3, 4)),
    "routing": (lambda layer, x: torch.nan_to_num(F.channel_shuffle(layer(x).cpu(), 2)).adjoint(), (2, 4, 4, 4)),
    "pooling with indices": (lambda layer, x: F.max_pool1d(layer(x), 2, return_indices=True)[0], (2, 3, 4)),
    "expit": (lambda layer, x: torch.special.expit(layer(x)), (2, 4)),
}  # fmt: skip


@pytest.mark.parametrize("name", CONSERVING)
def test_uses_that_were_refused_or_lost_relevance(name: str) -> None:
    function, shape = CONSERVING[name]
    conserves(Calls(function, linear()), leaf(*shape))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = linear()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.a(x) + x)


@pytest.mark.parametrize(
    "rules",
    [{nn.Linear: Epsilon(), torch.add: Norm()}, composites.EpsilonPlus()],
    ids=["functions", "composite"],
)
def test_rules_for_functions_are_refused_where_torch_compiles(rules: Any) -> None:
    model, x = Residual(), leaf(2, 4)
    torch._dynamo.reset()
    with pytest.raises(RuntimeError, match=r"torch\.compile runs"), attach(model, rules):
        torch.compile(model, backend="eager")(x)
    torch._dynamo.reset()
    with attach(model, rules):
        model(x)


@pytest.mark.skipif(not hasattr(torch.compiler, "set_stance"), reason="new in torch 2.6; 2.5 is supported")
@pytest.mark.parametrize("before", [False, True], ids=["after the rules", "before the rules"])
def test_a_compiled_model_that_is_forced_to_run_as_it_is_has_its_rules(before: bool) -> None:
    model, x, R = Residual(), leaf(2, 4), torch.ones(2, 4)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    if before:
        compiled(x)
    with attach(model, composites.EpsilonPlus()):
        (expected,) = torch.autograd.grad(model(x), x, R)
    with torch.compiler.set_stance("force_eager"), attach(model, composites.EpsilonPlus()):
        (found,) = torch.autograd.grad(compiled(x), x, R)
    torch._dynamo.reset()
    assert torch.equal(found, expected)
