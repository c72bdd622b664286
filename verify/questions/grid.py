"""The grid: which rule is tried with which parameters, on which layer, with which kind of data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from verify.questions.drawing import KINDS, LAYOUTS, ONE_SIGN
from verify.questions.layers import CORE, LAYERS, LayerCase
from verify.questions.variants import VARIANTS, Variant

if TYPE_CHECKING:
    from collections.abc import Iterator

DTYPES = ("float64", "float32", "float16", "bfloat16")
DEFAULT_DTYPES = ("float64", "float32")

#: Layers that the laws and the derivatives are tried on: dense, strided, transposed, gathering, not linear.
OF_LAWS = ("linear-5-4", "conv2d-k3x2-s2x1-p1x0", "convtranspose2d-s2-p1-op1")
OF_DERIVATIVES = (
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
_GRADIENT_ARGUMENTS: dict[str, tuple[dict[str, float], ...]] = {
    "ReLUBetaSmooth": ({}, {"beta_smooth": 0.5}, {"beta_smooth": 100.0})
}


def linear_grid(rule: str) -> Iterator[tuple[LayerCase, str, Variant]]:
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


def gradient_grid() -> Iterator[tuple[str, LayerCase, tuple[dict[str, float], ...]]]:
    """Yield the rules that look only at the gradient, the layers that they are tried on, and the arguments."""
    for rule in _GRADIENT_RULES:
        for layer in LAYERS:
            if _takes_gradient_rule(rule, layer):
                yield rule, layer, _GRADIENT_ARGUMENTS.get(rule, ({},))


def named(*names: str) -> list[LayerCase]:
    """Return the layers of these names."""
    return [next(layer for layer in LAYERS if layer.name == name) for name in names]


def _takes_gradient_rule(rule: str, layer: LayerCase) -> bool:
    if rule == "Pass":
        return layer.name in {"identity", "relu", "tanh", "softmax", "batchnorm2d"}
    return layer.name == "relu" or (rule == "ReLUGuidedBackprop" and layer.name in {"leakyrelu", "tanh", "softplus"})
