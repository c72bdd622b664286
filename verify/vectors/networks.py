"""What the vectors ask of the rules for networks: on which operations, with which parameters, with which numbers."""

from collections.abc import Iterator
from dataclasses import replace
from math import prod

import numpy as np

from reference.windows import Array, Shape
from verify.vectors.layers import Layer
from verify.vectors.numbers import rounded
from verify.vectors.parameters import Parameters
from verify.vectors.questions import KINDS, Question, draw

#: The parameters of each rule, written out.
DEFAULTS: dict[str, Parameters] = {
    "Uniform": {},
    "SignalTakesAll": {"signal": None},
    "Bilinear": {"stabilizer": 1e-6},
    "Softmax": {},
    "Stop": {},
    "LayerNormRule": {"stabilizer": 1e-6, "zero_params": []},
}
RULES = tuple(DEFAULTS)


def _operation(name: str, kind: str, *shapes: Shape, constant: int | None = None) -> Layer:
    size = sum(prod(shape) for k, shape in enumerate(shapes) if k != constant)
    tensors = {} if constant is None else {f"constant_{constant}": shapes[constant]}
    return Layer(name, {"type": kind, "shapes": [list(shape) for shape in shapes]}, (size,), tensors)


def _norm(name: str, kind: str, input_shape: Shape, parameters: Shape, eps: float, **options: int) -> Layer:
    tensors = {"weight": parameters, "bias": parameters} if parameters else {}
    if kind == "RMSNorm":
        tensors.pop("bias", None)
    return Layer(name, {"type": kind, **options, "eps": eps}, input_shape, tensors)


PRODUCTS = (
    _operation("product", "Product", (2, 3), (2, 3)),
    _operation("product-broadcast", "Product", (2, 3), (1, 3)),
    _operation("product-of-3", "Product", (2, 3, 2), (2, 1, 2), (1, 3, 1)),
    _operation("product-constant", "Product", (2, 1, 2), (2, 3, 2), (2, 3, 2), constant=1),
)
MATRIX_PRODUCTS = (
    _operation("matmul", "MatMul", (2, 3), (3, 4)),
    _operation("matmul-broadcast", "MatMul", (2, 1, 2, 3), (1, 3, 3, 2)),
    _operation("matmul-constant-right", "MatMul", (2, 3), (3, 2), constant=1),
)
SOFTMAX = (
    Layer("softmax-last", {"type": "Softmax", "axis": 1}, (2, 3)),
    Layer("softmax-first", {"type": "Softmax", "axis": 0}, (3, 2)),
)
NORMS = (
    _norm("layernorm", "LayerNorm", (3, 4), (4,), 1e-5, axes=1),
    _norm("layernorm-2-axes", "LayerNorm", (2, 3, 2), (3, 2), 1e-5, axes=2),
    _norm("layernorm-plain-large-eps", "LayerNorm", (5,), (), 0.5, axes=1),
    _norm("rmsnorm", "RMSNorm", (3, 4), (4,), 1e-3, axes=1),
    _norm("groupnorm", "GroupNorm", (4, 3), (4,), 1e-5, num_groups=2),
    _norm("instancenorm", "GroupNorm", (3, 4), (3,), 1e-5, num_groups=3),
)
LAYERS = (*PRODUCTS, *MATRIX_PRODUCTS, *SOFTMAX, *NORMS)
#: Where None does not tell the signal, and the positions that are named as it besides.
_TOLD = {"product": (0, 1), "product-broadcast": (1,), "product-of-3": (2,), "product-constant": (1,)}
_STABILIZERS: dict[str, object] = {
    "0.3": 0.3,
    "10": 10.0,
    "clip": {"epsilon": 0.5, "clip": True, "norm_scale": False},
    "norm-scale": {"epsilon": 0.1, "clip": False, "norm_scale": True},
}


def _asked(rule: str) -> Iterator[tuple[str, str, Parameters, Layer]]:
    """Yield family, variant, parameters and layer."""
    defaults = DEFAULTS[rule]
    layers = {
        "Uniform": PRODUCTS, "SignalTakesAll": PRODUCTS[1:], "Bilinear": (*MATRIX_PRODUCTS, *PRODUCTS),
        "Softmax": SOFTMAX, "Stop": SOFTMAX[:1], "LayerNormRule": NORMS,
    }[rule]  # fmt: skip
    for layer in layers:
        yield "layers", "default", defaults, layer
    if rule == "SignalTakesAll":
        for layer in PRODUCTS:
            for place in _TOLD[layer.name]:
                yield "signal", f"signal-{place}", {"signal": place}, layer
    if "stabilizer" in defaults:
        for name, value in _STABILIZERS.items():
            yield "stabilizer", f"stabilizer-{name}", {**defaults, "stabilizer": value}, layers[0]
    if "zero_params" in defaults:
        for name in ("bias", "weight"):
            yield "zero-params", f"zero-params-{name}", {**defaults, "zero_params": [name]}, layers[0]


def questions() -> Iterator[Question]:
    """Yield all questions, by rule and family."""
    for rule in RULES:
        for family, variant, parameters, layer in _asked(rule):
            for kind, dtype in _data(layer, family):
                yield _question(rule, family, variant, parameters, layer, kind, dtype)


def _data(layer: Layer, family: str) -> Iterator[tuple[str, str]]:
    yield "signed", "float64"
    yield "signed", "float32"
    if layer not in NORMS:  # where all entries are equal, a deviation is eps alone, and every bound is wide
        yield "zeros", "float64"
    if layer in SOFTMAX and family == "layers":
        yield "masked", "float64"


def _question(
    rule: str, family: str, variant: str, parameters: Parameters, layer: Layer, kind: str, dtype: str
) -> Question:
    tensors = draw(f"{layer.name}/{kind}", layer, "signed" if kind == "masked" else kind, dtype, 2)
    if kind == "masked" and rule != "Stop":
        tensors = {**tensors, "x": _masked(tensors["x"])}
    flags = {"zeros": ("ExactZeros",), "masked": ("Masked",)}.get(kind, ())
    words = "scores of which some are masked by -inf" if kind == "masked" else KINDS[kind]
    id_ = f"{rule.lower()}-{variant}-{layer.name}-{kind}-{dtype}"
    asked = Question(rule, family, parameters, layer, id_, f"{rule} on {layer.name}: {words}", dtype, tensors, flags)
    return replace(asked, tensors={name: rounded(values, dtype) for name, values in tensors.items()})


def _masked(x: Array) -> Array:
    """The second entry of every axis is masked, of each sample."""
    masked = x.copy()
    masked[:, 1, 1] = -np.inf
    return masked
