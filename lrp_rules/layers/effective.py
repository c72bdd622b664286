"""The one matrix that a module with several parameters makes of them: LoRA, weight standardisation.

A rule changes *the* weight of a layer. A module may compute its weight from several parameters, such as W + B A, or W
minus its mean. Changing those parameters is not the same as changing that weight.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from lrp_rules.errors import see
from lrp_rules.layers.convolution import ConvLayer
from lrp_rules.layers.known import LinearLayer
from lrp_rules.layers.numbers import agree, probe
from lrp_rules.layers.traced import pull

if TYPE_CHECKING:
    from lrp_rules.layers.layer import Layer
    from lrp_rules.layers.traced import TracedLayer


def effective(rule: object, layer: TracedLayer) -> Layer:
    """Return the layer as a rule that changes parameters must see it.

    That is the layer with its one matrix, if there is one. Otherwise it is the layer itself, if its matrix is
    proportional to its parameters.
    """
    module = layer.module
    parts = [part for name, part in module.named_children() if name != "parametrizations"]
    alone = not any(True for part in parts for _ in part.parameters())
    if layer.fixed or (alone and type(module).forward.__module__.startswith("torch.nn.")):
        return layer  # torch's own layers use their parameters as they are
    # zero_params names parameters of the module; only the bias is also one of the effective layer
    found = None if set(layer.zero_params) & set(layer.given) - {"bias"} else _linear(layer) or _convolution(layer)
    if found is not None and layer.zeroes and not _is_only_constant(layer):
        found = None
    ambiguous = not alone and found is not None and _is_proportional(layer)  # the own weight, or the one of the whole
    if found is not None and not ambiguous:
        return found
    if alone and _is_one_weight(layer) and _is_proportional(layer):
        return layer
    names = ", ".join(name for name, value in layer.given.items() if value is not None)
    msg = (
        f"{type(rule).__name__} on {module}: the rule changes the weight of a layer, and what this module computes is "
        f"not proportional to its own parameters ({names}), nor is it one linear layer or convolution of its input; "
        "expected one of these. Put rules on its parts, merge its weights, or use Epsilon, Norm or Pass on the whole"
        f"{see('containers')}"
    )
    raise RuntimeError(msg)


def _is_only_constant(layer: TracedLayer) -> bool:
    """Whether nothing but the module's own bias is added to its output, so that it is the bias of the whole."""
    with torch.no_grad():
        rest = layer.run(layer.parameters, torch.zeros_like(layer.x))[0]
    return not bool(rest.any())


def _is_one_weight(layer: TracedLayer) -> bool:
    """Whether the matrix is made of one parameter, and of its positive parts where that is positive."""
    weights = [name for name, value in layer.given.items() if value is not None and name != "bias"]
    if len(weights) > 1:
        return False
    if not isinstance(layer.module, (nn.Linear, _ConvNd)):
        return True
    with torch.no_grad():
        positive = layer.but(zero_params=()).matrix(torch.abs).T @ probe(layer.real_outputs[0]).abs()
    return bool((positive >= 0).all() | ~positive.isfinite().all())


def _half(value: Tensor) -> Tensor:
    return value * 0.5


def _is_proportional(layer: TracedLayer) -> bool:
    """Whether half the parameters give half the matrix. Halving is exact in floating point, so any vector shows it."""
    real = layer.but(zero_params=())
    s = probe(real.real_outputs[0])
    with torch.no_grad():
        whole, half = (real.matrix(change).T @ s for change in (None, _half))
    return agree(2 * half, whole)


def _linear(layer: TracedLayer) -> Layer | None:
    """Return a linear layer over the last dimension that gives the same, if there is one."""
    x, z = layer.x, layer.real_outputs[0]
    if x.ndim == 0 or x.shape[:-1] != z.shape[:-1]:
        return None
    outputs = z.shape[-1]
    shape = (outputs, *[1] * (x.ndim - 2), x.shape[-1])
    one_each = torch.eye(outputs, dtype=z.dtype, device=z.device).view(outputs, *[1] * (max(x.ndim, 2) - 2), outputs)
    made = _at_zero(layer, shape, one_each)
    if made is None:
        return None
    weight, constant = made
    given = {"weight": weight.reshape(outputs, -1), "bias": constant.reshape(outputs, -1)[0]}
    return _checked(layer, LinearLayer, given)


def _convolution(layer: TracedLayer) -> Layer | None:
    """Return a convolution with the module's geometry that gives the same, if there is one."""
    module = layer.module
    if not isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return None
    # large enough that the window of an output in the middle does not touch the padding
    reach = [d * (k - 1) + 1 for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    sizes = [5 * size + 4 * stride for size, stride in zip(reach, module.stride, strict=True)]
    zeros = layer.x.new_zeros((1, module.in_channels, *sizes))
    with torch.no_grad():
        spatial = layer.run(layer.given, zeros)[0].shape[2:]
    middle: list[Any] = [size // 2 for size in spatial]
    outputs = module.out_channels
    s = zeros.new_zeros((outputs, outputs, *spatial))
    each_output = torch.arange(outputs)
    s[(each_output, each_output, *middle)] = 1
    made = _at_zero(layer, (outputs, module.in_channels, *sizes), s)
    if made is None:
        return None
    gradient, constant = made
    probing = ConvLayer(module, (zeros,), None, torch.Size(), {}, run=layer.run)
    windows: list[slice] = [slice(None), slice(None)]
    for place, stride, (pad, _), dilation, size in zip(
        middle, module.stride, probing._pads(), module.dilation, reach, strict=True
    ):
        start = place * stride - pad
        if start < 0:
            return None
        windows.append(slice(start, start + size, dilation))
    kernels = gradient[tuple(windows)]
    inside, each = module.in_channels // module.groups, outputs // module.groups
    weight = torch.cat(
        [kernels[g * each : (g + 1) * each, g * inside : (g + 1) * inside] for g in range(module.groups)]
    )
    if weight.shape[2:] != tuple(module.kernel_size):
        return None
    return _checked(layer, ConvLayer, {"weight": weight, "bias": constant[0][(slice(None), *middle)]})


def _at_zero(layer: TracedLayer, shape: tuple[int, ...], s: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return A^T s and the constant, at an input of zeros."""
    with torch.enable_grad():
        zeros = layer.x.new_zeros(shape, requires_grad=True)
        try:
            constant = layer.run(layer.given, zeros)[0]
        except RuntimeError:  # the module does not accept every batch size
            return None
    if constant.shape != s.shape or not constant.requires_grad:
        return None
    return pull((constant,), (zeros,), (s,), create_graph=torch.is_grad_enabled())[0], constant


def _checked(layer: TracedLayer, kind: type[Layer], given: dict[str, Tensor]) -> Layer | None:
    """Return the layer if it gives the same output as the module did."""
    weighed = {name: value if torch.is_grad_enabled() else value.detach() for name, value in given.items()}
    found = kind(layer.module, layer.inputs, None, layer.shape, weighed, layer.zero_params, run=layer.run)
    with torch.no_grad():
        same = agree(found.output(), layer.real_outputs[0])
    return found if same else None
