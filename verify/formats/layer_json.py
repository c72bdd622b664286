"""Layers in JSON: options as plain data, tensors beside them, as vectors and the process protocol carry them.

    {"type": "Conv2d", "stride": [2, 1], "padding": [[1, 1], [0, 0]], "dilation": [1, 1], "groups": 1, "padding_mode": "zeros"}

with the tensors `weight` and `bias` (absent where the layer has none). Every option is written out, none has a default;
names and meanings are torch's, but that a convolution's padding is (before, after) for each axis, and that the axis of
Softmax counts the axes of one sample, without that of the batch. Linear acts on the last axis. An operation has the
shapes of its operands; those that are constant are the tensors `constant_0`, `constant_1`, ..., and the input has the
others side by side.

>>> import numpy as np
>>> layer = layer_of({"type": "Linear"}, {"weight": np.array([[1.0, -2.0]])}, (2,))
>>> layer.output_shape, describe(layer)
((1,), {'type': 'Linear'})
"""  # noqa: E501 - a line of JSON

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from reference import layers as ref
from reference import operations as ops
from reference.base import Layer
from reference.pointwise import FUNCTIONS

#: Names of the tensors that a layer may have, in the order in which they are written.
TENSORS = ("weight", "bias", "running_mean", "running_var")
_CONSTANT = "constant_{}"

#: The options of each type, in the order in which they are written; `...d` stands for 1d, 2d and 3d.
OPTIONS = {
    "Linear": (),
    "Conv...d": ("stride", "padding", "dilation", "groups", "padding_mode"),
    "ConvTranspose...d": ("stride", "padding", "output_padding", "dilation", "groups"),
    "AvgPool...d": ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
    "AdaptiveAvgPool...d": ("output_size",),
    "MaxPool...d": ("kernel_size", "stride", "padding", "dilation", "ceil_mode"),
    "BatchNorm": ("eps",),
    "Softmax": ("axis",),
    "LayerNorm": ("axes", "eps"),
    "RMSNorm": ("axes", "eps"),
    "GroupNorm": ("num_groups", "eps"),
    "Sum": ("shapes",),
    "Product": ("shapes",),
    "MatMul": ("shapes",),
}
#: The options of each elementwise function beside its name.
ELEMENTWISE: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(FUNCTIONS, ()),
    "leaky_relu": ("negative_slope",),
    "softplus": ("beta", "threshold"),
    "gelu": ("approximate",),
    "elu": ("alpha",),
}
_CLASSES: dict[str, Callable[..., Layer]] = {
    "Linear": ref.Linear,
    "Conv...d": ref.Conv,
    "ConvTranspose...d": ref.ConvTranspose,
    "AvgPool...d": ref.AvgPool,
    "AdaptiveAvgPool...d": ref.AdaptiveAvgPool,
    "MaxPool...d": ref.MaxPool,
    "BatchNorm": ref.BatchNorm,
    "Softmax": ref.Softmax,
    "LayerNorm": ops.LayerNorm,
    "RMSNorm": ops.RMSNorm,
    "GroupNorm": ops.GroupNorm,
    "Sum": ops.Sum,
    "Product": ops.Product,
    "MatMul": ops.MatMul,
    "Elementwise": ref.Elementwise,
}
_PARAMETERS = {
    **dict.fromkeys(
        ("Linear", "Conv...d", "ConvTranspose...d", "LayerNorm", "RMSNorm", "GroupNorm"), ("weight", "bias")
    ),
    "BatchNorm": TENSORS,
}


def options_of(layer: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the options that a layer in JSON has beside its type. ValueError for an unknown type."""
    kind = layer.get("type")
    if kind == "Elementwise":
        function = layer.get("function")
        if function not in ELEMENTWISE:
            message = f"layer: given function {function!r}, expected one of {', '.join(ELEMENTWISE)}"
            raise ValueError(message)
        return ("function", *ELEMENTWISE[function])
    stem = _stem(kind)
    if stem not in OPTIONS:
        message = f"layer: given type {kind!r}, expected Elementwise or one of {', '.join(OPTIONS)}"
        raise ValueError(message)
    return OPTIONS[stem]


def layer_of(layer: Mapping[str, Any], tensors: Mapping[str, Any], input_shape: tuple[int, ...]) -> Layer:
    """Return the layer as the reference knows it, for one sample of `input_shape`; the tensors in float64.

    ValueError where options or tensors are missing, unknown, or contradict each other.
    """
    names = options_of(layer)
    if set(layer) != {"type", *names}:
        message = f"layer: given {sorted(layer)}, expected {['type', *names]} for {layer['type']}"
        raise ValueError(message)
    stem = _stem(layer["type"])
    own = _PARAMETERS.get(stem, tuple(_CONSTANT.format(k) for k in range(len(layer.get("shapes", ())))))
    if unknown := set(tensors) - set(own):
        message = f"layer: given the tensors {sorted(unknown)}, expected {list(own)} for {layer['type']}"
        raise ValueError(message)
    given: dict[str, Any] = {name: np.asarray(tensors[name], np.float64) if name in tensors else None for name in own}
    given = given if stem in _PARAMETERS or not given else {"constants": tuple(given.values())}
    return _CLASSES[stem](input_shape, **given, **{name: _tuple(layer[name]) for name in names})


def describe(layer: Layer) -> dict[str, Any]:
    """Return the type and options of a layer of the reference, without its tensors."""
    stem = next(stem for stem, kind in _CLASSES.items() if type(layer) is kind)
    names = ("function", *ELEMENTWISE[layer.function]) if isinstance(layer, ref.Elementwise) else OPTIONS[stem]
    options = {name: _list(getattr(layer, name)) for name in names}
    if isinstance(layer, ref.Conv):
        options["padding"] = [[p, p] if isinstance(p, int) else p for p in options["padding"]]
    size = next((len(value) for value in options.values() if isinstance(value, list)), 0)
    return {"type": stem.replace("...", str(size)), **options}


def tensors_of(layer: Layer) -> dict[str, Any]:
    """Return the tensors that a layer of the reference has, by name."""
    if isinstance(layer, ops.Operation):
        return {_CONSTANT.format(k): value for k, value in enumerate(layer.constants) if value is not None}
    known = {field.name for field in fields(layer)}
    return {name: getattr(layer, name) for name in TENSORS if name in known and getattr(layer, name) is not None}


def family(layer: Mapping[str, Any]) -> str:
    """Return the column of the conformance table that a layer in JSON belongs to."""
    kind = str(layer["type"])
    if kind in {"Elementwise", "Softmax"}:
        return "Activation"
    if kind in {"LayerNorm", "RMSNorm", "GroupNorm"}:
        return "Normalization"
    return kind[:-2] if "Pool" in kind else kind


def _stem(kind: object) -> str:
    text = str(kind)
    return f"{text[:-2]}...d" if text.endswith(("1d", "2d", "3d")) else text


def _tuple(value: Any) -> Any:
    return tuple(map(_tuple, value)) if isinstance(value, list) else value


def _list(value: Any) -> Any:
    return list(map(_list, value)) if isinstance(value, tuple) else value
