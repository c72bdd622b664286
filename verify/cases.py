"""The grid: which rule is tried on which layer with which data. All randomness of the verifier is here."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from verify import network
from verify.checks import agreement, api, conduct, errors, laws, second_order, second_order_chain
from verify.examples import found
from verify.layers import CORE, LAYERS, LayerCase
from verify.model import Case, Level
from verify.problem import Problem
from verify.variants import VARIANTS, Variant, level

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


DTYPES = ("float64", "float32", "float16", "bfloat16")
DEFAULT_DTYPES = ("float64", "float32")

#: Kinds of data. Relevance has both signs and exact zeros in all of them, and nothing to do with the output.
KINDS = {
    "signed": "inputs of both signs",
    "nonnegative": "inputs as after a ReLU, exact zeros among them",
    "nonpositive": "no input above zero",
    "zeros": "small integers: exact zeros everywhere, outputs that cancel to zero exactly, a dead unit",
    "single": "one input other than zero, so that one contribution is all of an output",
}
#: Kinds of which one or the other half of a signed rule is empty.
ONE_SIGN = {
    "positive": "inputs, weights and biases above zero: every contribution is positive",
    "negative": "weights above zero, inputs and biases below: every contribution is negative",
}
#: Ways to lay out or to size the signed data.
LAYOUTS = {
    "noncontiguous": "every other element of a wider tensor",
    "channels-last": "channels last in memory",
    "expanded": "one sample, expanded to a batch",
    "batch-of-1": "one sample",
    "batch-of-0": "no sample",
}

#: Layers that the laws and the derivatives are tried on: dense, strided, transposed, gathering, not linear.
_OF_LAWS = ("linear-5-4", "conv2d-k3x2-s2x1-p1x0", "convtranspose2d-s2-p1-op1")
_OF_DERIVATIVES = (
    "linear-5-4",
    "conv1d-k3-s2-p1-d2",
    "conv2d-circular",
    "convtranspose1d-k3",
    "avgpool1d",
    "batchnorm1d",
    "tanh",
    "softmax",
)

_GRADIENT_RULES = ("Pass", "ReLUDeconvNet", "ReLUGuidedBackprop", "ReLUBetaSmooth")


Draw = Callable[[LayerCase, str, str], Problem]


def draw(layer: LayerCase, kind: str, dtype: str, seed: int = 0, device: str = "cpu") -> Problem:
    """Draw the data of one case. In float32 it is that of float64, rounded."""
    source = _Source(zlib.crc32(f"{seed}/{layer.name}/{kind}".encode()), integers=kind == "zeros")
    target = getattr(torch, dtype)
    module, x = _module(layer, source), _inputs(layer, kind, source)
    if kind in ONE_SIGN:
        x = _one_sign(module, x, kind)
    with torch.no_grad():
        if source.integers:
            _cancel(module, x)
        shape = module(x).shape  # in float64: torch may not have the layer in every dtype
    module, x = module.to(device, target), _layout(x.to(device, target), kind)
    relevance = torch.randn(tuple(shape), generator=source.generator, dtype=torch.float64)
    relevance = relevance * (torch.rand(tuple(shape), generator=source.generator) > 0.2)  # a fifth is zero
    if target == torch.float16:
        relevance = relevance / 256  # R / 1e-6 stays in range
    return Problem(module, x, relevance.to(device, target), layer.batched)


class _Source:
    """Where the numbers of one case come from: normal ones, or small integers."""

    def __init__(self, seed: int, *, integers: bool) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.integers = integers

    def __call__(self, shape: Sequence[int], scale: float = 1.0) -> Tensor:
        if self.integers:
            return torch.randint(-2, 3, tuple(shape), generator=self.generator).double()
        return scale * torch.randn(tuple(shape), generator=self.generator, dtype=torch.float64)


def _module(layer: LayerCase, source: _Source) -> nn.Module:
    module = layer.build().double().eval()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(source(parameter.shape, 0.5 if name == "bias" else 1.0))
            if source.integers:
                parameter[0] = 0.0  # a dead unit: no weights, no bias
        for name, buffer in module.named_buffers():
            if name == "running_mean":
                buffer.copy_(source(buffer.shape, 0.5))
            elif name == "running_var":
                buffer.copy_(1.0 + source(buffer.shape).square())
    return module


def _one_sign(module: nn.Module, x: Tensor, kind: str) -> Tensor:
    sign = 1 if kind == "positive" else -1
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(parameter.abs() * (sign if name == "bias" else 1))
    return sign * x.abs()


def _cancel(module: nn.Module, x: Tensor) -> None:
    """Choose the second unit's bias so that its first output is zero though its contributions are not."""
    bias = getattr(module, "bias", None)
    if (
        isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d)
        or not isinstance(bias, Tensor)
        or len(bias) < 2
    ):
        return
    z = module(x)
    channel = -1 if isinstance(module, nn.Linear) else -1 - len(getattr(module, "kernel_size", ()))
    bias[1] -= z.movedim(channel, -1).reshape(-1, len(bias))[0, 1]


def _inputs(layer: LayerCase, kind: str, source: _Source) -> Tensor:
    shape = list(layer.shape)
    if kind in {"batch-of-1", "batch-of-0"}:
        shape[0] = int(kind[-1])
    x = source(shape)
    if kind == "nonnegative":
        return x.clamp(min=0)
    if kind == "nonpositive":
        return -x.abs()
    if kind == "single":
        return x * _one_per_sample(x, layer, source.generator)
    return x


def _layout(x: Tensor, kind: str) -> Tensor:
    if kind == "expanded":
        return x[:1].expand(x.shape)
    if kind == "noncontiguous":
        wide = x.new_zeros(*x.shape[:-1], 2 * x.shape[-1])
        wide[..., ::2] = x
        return wide[..., ::2]
    if kind == "channels-last" and x.ndim in {4, 5}:
        return x.to(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)
    return x


def _one_per_sample(x: Tensor, layer: LayerCase, generator: torch.Generator) -> Tensor:
    samples = x.shape[0] if layer.batched else 1
    mask = torch.zeros(samples, x.numel() // samples, dtype=x.dtype)
    mask[torch.arange(samples), torch.randint(mask.shape[1], (samples,), generator=generator)] = 1
    return mask.view(x.shape)


def all_cases(*, seed: int = 0, dtypes: Sequence[str] = DEFAULT_DTYPES, device: str = "cpu") -> tuple[Case, ...]:
    """Return the whole grid, in the order of the report."""
    return tuple(_all_cases(seed, dtypes, device))


def _all_cases(seed: int, dtypes: Sequence[str], device: str) -> Iterator[Case]:
    yield from api.cases()
    for rule in dict.fromkeys(variant.rule for variant in VARIANTS):
        for layer, kind, variant in _linear_grid(rule):
            yield from _comparisons(layer, kind, variant, dtypes, device, seed)
    for rule in _GRADIENT_RULES:
        for layer in LAYERS:
            if not _takes_gradient_rule(rule, layer):
                continue
            for kind in ("signed", "nonnegative", "zeros"):
                for arguments in agreement.GRADIENT_ARGUMENTS.get(rule, ({},)):
                    yield from _gradient_cases(rule, arguments, layer, kind, dtypes, device, seed)
    yield from errors.cases()
    yield from conduct.cases()
    yield from network.cases(seed=seed, dtypes=dtypes, device=device)
    drawn = partial(draw, seed=seed)
    yield from laws.cases(
        drawn, [_layer(name) for name in _OF_LAWS], [dtype for dtype in dtypes if dtype in DEFAULT_DTYPES]
    )
    yield from found()
    yield from second_order.cases(
        drawn,
        [_layer(name) for name in _OF_DERIVATIVES],
        [
            (rule, arguments, layer)
            for rule in _GRADIENT_RULES
            for layer in LAYERS
            if _takes_gradient_rule(rule, layer)
            for arguments in agreement.GRADIENT_ARGUMENTS.get(rule, ({},))
        ],
    )
    yield from second_order_chain.cases(drawn)


def _linear_grid(rule: str) -> Iterator[tuple[LayerCase, str, Variant]]:
    """Defaults everywhere, on all kinds of data; variants and layouts on one layer of each kind.

    Parameters are set to zero on a BatchNorm, too: it has a constant without its bias.
    """
    for variant in VARIANTS:
        if variant.rule != rule:
            continue
        for layer in LAYERS:
            if not layer.linear and rule not in {"Epsilon", "Norm"}:
                continue
            core = CORE | {"batchnorm1d"} if variant.zero_params else CORE
            if variant.name != "default" and layer.name not in (variant.only or core):
                continue
            kinds = list(KINDS)
            if variant.name == "default" and layer.name in CORE:
                kinds += [*ONE_SIGN, *LAYOUTS]
            elif variant.name != "default":
                kinds = list(variant.kinds or ("signed", "nonnegative", "zeros"))
            for kind in kinds:
                if kind not in variant.without:
                    yield layer, kind, variant


def _layer(name: str) -> LayerCase:
    return next(layer for layer in LAYERS if layer.name == name)


def _takes_gradient_rule(rule: str, layer: LayerCase) -> bool:
    if rule == "Pass":
        return layer.name in {"identity", "relu", "tanh", "softmax", "batchnorm2d"}
    return layer.name == "relu" or (rule == "ReLUGuidedBackprop" and layer.name in {"leakyrelu", "tanh", "softplus"})


def _comparisons(
    layer: LayerCase, kind: str, variant: Variant, dtypes: Sequence[str], device: str, seed: int
) -> Iterator[Case]:
    for dtype in dtypes:
        if dtype not in variant.dtypes:
            continue
        problem = partial(draw, layer, kind, dtype, seed, device)
        for check, run in (("agreement", agreement.agrees), ("conservation", agreement.conserves)):
            yield Case(
                id=f"{check}/{variant.rule}/{layer.name}/{variant.name}/{kind}/{dtype}",
                rule=variant.rule,
                layer=layer.family,
                check=check,
                dtype=dtype,
                level=Level.SHOULD if variant.level is Level.SHOULD else level(variant.rule, layer),
                run=partial(run, problem, layer, variant, device),
                device=device,
            )


def _gradient_cases(
    rule: str,
    arguments: dict[str, float],
    layer: LayerCase,
    kind: str,
    dtypes: Sequence[str],
    device: str,
    seed: int,
) -> Iterator[Case]:
    name = "-".join(f"{key}={value:g}" for key, value in arguments.items()) or "default"
    for dtype in dtypes:
        problem: Callable[[], Problem] = partial(draw, layer, kind, dtype, seed, device)
        yield Case(
            id=f"agreement/{rule}/{layer.name}/{name}/{kind}/{dtype}",
            rule=rule,
            layer=layer.family,
            check="agreement",
            dtype=dtype,
            level=level(rule, layer),
            run=partial(agreement.gradient_agrees, problem, layer, rule, arguments, device),
            device=device,
        )
