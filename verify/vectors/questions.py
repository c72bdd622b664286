"""What the vectors ask: which rule, with which parameters, on which layer, with which numbers."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from reference.layers import Affine, affine
from reference.layers import Layer as LayerOfReference
from reference.windows import Array
from verify.formats.layer_json import layer_of
from verify.vectors.layers import CORE, LAYERS, Layer, named
from verify.vectors.numbers import Source, rounded, with_negative_zeros
from verify.vectors.parameters import FAMILIES, GRADIENT_RULES, Parameters, advised, invalid, neighbours, taken

DTYPES = ("float64", "float32")

#: Kinds of data, as they are called in an id.
KINDS = {
    "signed": "inputs of both signs",
    "nonnegative": "inputs as after a ReLU, exact zeros among them",
    "nonpositive": "no input above zero",
    "zeros": "small integers: exact zeros and -0.0, a dead unit, an output that cancels to zero exactly",
    "wide": "relevance from 2^-30 to 2^30",
    "empty": "a batch without a sample",
    "undecided": "an output so close to zero that rounding decides its sign",
}


@dataclass(frozen=True)
class Question:
    """One case without its answer.

    Tensors hold values of the dtype, as float64; the first axis of x and R is the batch. ``error`` is the kind of
    error that is expected (``must``) or advised.
    """

    rule: str
    family: str
    parameters: Parameters
    layer: Layer
    id: str
    comment: str
    dtype: str
    tensors: dict[str, Array]
    flags: tuple[str, ...] = ()
    error: str | None = None
    must: bool = True


def questions() -> Iterator[Question]:
    """Yield all questions, by rule and family."""
    for rule, families in FAMILIES.items():
        for family, variants in families.items():
            for variant, parameters in variants.items():
                for layer, kind, dtype in _grid(rule, family, variant):
                    yield _valid(rule, family, variant, parameters, layer, kind, dtype)
        yield from _arguments(rule)


def _grid(rule: str, family: str, variant: str) -> Iterator[tuple[Layer, str, str]]:
    if family == "layers":
        for layer in LAYERS:
            if taken(rule, layer):
                yield from ((layer, kind, dtype) for kind, dtype in _data(rule, layer))
        return
    for layer in _tried_on(rule, variant):
        yield from ((layer, kind, "float64") for kind in ("signed", "zeros"))
        yield layer, "signed", "float32"
    if family == "zero-params":
        yield named("batchnorm-images"), "signed", "float64"
    if family in {"gamma", "alpha-beta", "bounds"}:
        yield from ((named(name), "signed", "float64") for name in ("conv2d-circular", "convtranspose2d-s2-p1-op1"))


def _tried_on(rule: str, variant: str) -> tuple[Layer, ...]:
    if rule in GRADIENT_RULES:
        return (named("relu"),)
    strided = named("conv2d-k3x2-s2x1-p1x0")
    if variant not in {"epsilon-0", "stabilizer-0"}:
        return (named("linear-5-4"), strided)
    # without a stabilizer a half without contributions is a pole: enough inputs that none is met
    return (_DENSE,) if rule in {"ZPlus", "AlphaBeta"} else (_DENSE, strided)


_DENSE = Layer("linear-12-3", {"type": "Linear"}, (12,), {"weight": (3, 12), "bias": (3,)})


def _data(rule: str, layer: Layer) -> Iterator[tuple[str, str]]:
    yield "signed", "float64"
    yield "signed", "float32"
    yield "zeros", "float64"
    if layer.name in CORE and rule not in GRADIENT_RULES:
        yield "zeros", "float32"
        yield "nonnegative", "float64"
        yield "nonpositive", "float64"
    if layer.name in CORE[:2] and rule not in GRADIENT_RULES:
        yield "wide", "float64"
        yield "empty", "float64"
    if layer.name == "linear-5-4" and rule in {"Epsilon", "Norm", "Gamma"}:
        yield "undecided", "float64"
        yield "undecided", "float32"


def _valid(
    rule: str, family: str, variant: str, parameters: Parameters, layer: Layer, kind: str, dtype: str
) -> Question:
    # two samples of zeros: an output that is zero in one of them only
    samples = 0 if kind == "empty" else 2 if kind == "signed" or (kind, layer.name) == ("zeros", "linear-5-4") else 1
    tensors = draw(f"{layer.name}/{kind}", layer, kind, dtype, samples)
    comment = f"{rule} on {layer.name}: {KINDS[kind]}"
    id_ = f"{rule.lower()}-{variant}-{layer.name}-{kind}-{dtype}"
    return Question(rule, family, parameters, layer, id_, comment, dtype, tensors, _flags(rule, family, kind, layer))


def _flags(rule: str, family: str, kind: str, layer: Layer) -> tuple[str, ...]:
    of_output = (
        rule in {"Epsilon", "Norm", *GRADIENT_RULES} and family != "zero-params"
    )  # what b is made of is not seen
    holds = {
        "ExactZeros": kind == "zeros",
        "OneSign": kind in {"nonnegative", "nonpositive"},
        "Gathering": layer.options.get("padding_mode", "zeros") != "zeros",
        "ConstantOfBatchNorm": layer.type == "BatchNorm" and not of_output,
        "Linearised": layer.smooth and rule in {"Epsilon", "Norm"},
        "Ties": layer.type.startswith("MaxPool") and kind == "zeros",
    }
    return tuple(flag for flag, holds_here in holds.items() if holds_here)


def draw(name: str, layer: Layer, kind: str, dtype: str, samples: int) -> dict[str, Array]:
    """Draw the tensors of one case. In float32 they are those of float64, rounded."""
    source = Source(name)
    shape = (samples, *layer.input_shape)
    if kind == "undecided":
        return _undecided(dtype, source)
    if kind == "zeros":
        x = source.integers(shape, 1 if layer.type.startswith("MaxPool") else 2)
        if x.size > 1 and x.all():
            x.ravel()[-1] = 0.0
        if "AvgPool" in layer.type and layer_at(layer.options, {"x": x}).roundings:
            x = np.abs(x)  # where shares such as 1/3 are rounded, a sum that cancels is not zero but undecided
        tensors = {"x": x}
        tensors |= {key: source.integers(size) for key, size in layer.tensors.items()}
        _kill(layer, tensors)
    else:
        tensors = {"x": _signed(source.uniform(shape), kind)}
        tensors |= {key: source.uniform(size, 1.0) for key, size in layer.tensors.items()}
    if "running_var" in tensors:
        tensors["running_var"] = 0.5 + np.abs(tensors["running_var"])
    if kind == "zeros":
        _cancel(layer, tensors)
        tensors["x"] = with_negative_zeros(tensors["x"])
    shape = (samples, *layer_at(layer.options, tensors).output_shape)
    tensors["R"] = with_negative_zeros(source.relevance(shape))
    if kind == "wide":
        tensors["R"] = np.ldexp(tensors["R"], source.integers(shape, 30).astype(np.int64))
    return {key: rounded(values, dtype) for key, values in tensors.items()}


def _signed(x: Array, kind: str) -> Array:
    if kind == "nonnegative":
        return np.maximum(x, 0)
    return -np.abs(x) if kind == "nonpositive" else x


def _kill(layer: Layer, tensors: dict[str, Array]) -> None:
    """Make the first unit dead: no weights, no bias."""
    if "weight" in tensors:
        unit = (slice(None), 0) if layer.type.startswith("ConvTranspose") else 0
        tensors["weight"][unit] = 0.0
        if "bias" in tensors:
            tensors["bias"][0] = 0.0


def _cancel(layer: Layer, tensors: dict[str, Array]) -> None:
    """Choose the second unit's bias so that its first output is zero though its contributions are not."""
    if "bias" not in tensors or len(tensors["bias"]) < 2 or layer.type == "BatchNorm":
        return
    known = affine_of(layer.options, tensors, 0)
    z = known.z.reshape(known.layer.output_shape)
    tensors["bias"][1] -= z[0, 1] if layer.name == "linear-positions" else z[1].ravel()[0] if z.ndim > 1 else z[1]


def _undecided(dtype: str, source: Source) -> dict[str, Array]:
    """0.1 + 0.2 - 0.3 in the first unit, whatever sign rounding gives it; the others are far from zero."""
    weight = source.uniform((4, 5), 1.0)
    weight[0] = [1.0, 1.0, -1.0, 0.0, 0.0]
    weight[3] = [0.0, 0.0, 0.0, 1.0, 0.5]
    given = {
        "x": np.array([[0.1, 0.2, 0.3, 1.1, -0.7]]),
        "weight": weight,
        "bias": np.array([0.0, 0.5, -0.5, 0.25]),
        "R": np.array([[0.75, 0.0, 0.0, -1.5]]),
    }
    return {name: rounded(values, dtype) for name, values in given.items()}


def layer_at(options: dict[str, Any], tensors: dict[str, Array]) -> LayerOfReference:
    """Return the layer as the reference knows it."""
    own = {name: values for name, values in tensors.items() if name not in {"x", "R"}}
    return layer_of(options, own, tensors["x"].shape[1:])


def affine_of(options: dict[str, Any], tensors: dict[str, Array], sample: int, zero: tuple[str, ...] = ()) -> Affine:
    """Return the layer at one sample, as the rules of the reference take it."""
    return affine(layer_at(options, tensors), tensors["x"][sample], zero)


def _arguments(rule: str) -> Iterator[Question]:
    """Bad arguments, and legal ones that are close to them, on one small layer."""
    relu = rule in GRADIENT_RULES
    layer = named("relu") if relu else Layer("linear-3-2", {"type": "Linear"}, (3,), {"weight": (2, 3), "bias": (2,)})
    tensors = draw("arguments", layer, "signed", "float64", 2)
    for must, found in ((True, invalid(rule)), (False, advised(rule))):
        for name, (parameters, error, flag) in found.items():
            comment = f"{rule}: {'an error' if must else 'an error is advised'}, {error}"
            id_ = f"{rule.lower()}-{'invalid' if must else 'advised'}-{name}"
            yield Question(rule, "arguments", parameters, layer, id_, comment, "float64", tensors, (flag,), error, must)
    for name, parameters in neighbours(rule).items():
        yield Question(
            rule, "arguments", parameters, layer, f"{rule.lower()}-accepts-{name}",
            f"{rule}: legal, though close to what is not", "float64", tensors, ("LegalNeighbour",),
        )  # fmt: skip
