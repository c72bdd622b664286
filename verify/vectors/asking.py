"""The vectors put to a subject in Python, which answers in the form of a port: `lrp-vectors answer`."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from reference.layers import same_padding
from verify.formats.operands import Add, MatMul, Multiply, Operands
from verify.formats.tensor_json import decode, encode
from verify.model import NotOfferedError
from verify.questions.fixed import DEFAULTS
from verify.subjects.asking import relevance_of
from verify.vectors.parameters import stabilizer_name

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from torch import Tensor

    from verify.model import Subject

Json = dict[str, Any]

_KINDS = ((TypeError, "type"), (ValueError, "value"), (LookupError, "missing"), (AttributeError, "missing"))
_FUNCTIONS: dict[str, type[nn.Module]] = {
    "identity": nn.Identity,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "elu": nn.ELU,
}
_OPERATIONS: dict[str, type[nn.Module]] = {"Sum": Add, "Product": Multiply, "MatMul": MatMul}
_WORDS = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": -float("inf")}


def answers(documents: Iterable[Json], subject: Subject, wanted: Collection[str]) -> Iterator[Json]:
    """Yield the answers of a subject to the cases with an id in `wanted`, as `lrp-vectors verify` reads them."""
    for document in documents:
        for group in document["groups"]:
            for case in group["cases"]:
                if case["id"] in wanted:
                    yield {"id": case["id"], **_answer(document["rule"], group, case, subject)}


def _answer(rule: str, group: Json, case: Json, subject: Subject) -> Json:
    tensors = {name: torch.from_numpy(decode(form)) for name, form in case["tensors"].items()}
    x, R = tensors.pop("x"), tensors.pop("R")
    try:
        made = subject.get(rule)(**arguments(rule, group["parameters"], x.dtype, subject))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Using padding='same' with even kernel")  # torch says how it does it
            relevance = relevance_of(made, module_of(group["layer"], tensors, x), x, R)
    except NotOfferedError as error:
        return {"skipped": str(error)}
    except Exception as error:  # noqa: BLE001  a subject may raise anything
        kind = next((kind for type_, kind in _KINDS if isinstance(error, type_)), "other")
        return {"error": kind, "message": str(error)}
    return {"relevance": encode(relevance.detach().numpy())}


def arguments(rule: str, parameters: Json, dtype: torch.dtype, subject: Subject) -> Json:
    """Return the parameters of a group as a rule in Python takes them."""
    made = {name: _value(value, dtype) for name, value in parameters.items()}
    for fixed in subject.parameters.get(rule, {}):  # a vector holds what our default gives: not offered otherwise
        made.setdefault(fixed, DEFAULTS[rule][fixed])
    name = stabilizer_name(rule)
    if isinstance(made.get(name), dict):
        made[name] = subject.get("Stabilizer")(**made[name])
    return made


def _value(given: Any, dtype: torch.dtype) -> Any:
    if isinstance(given, str):
        return _WORDS.get(given, given)
    if isinstance(given, dict) and "hex" in given:
        return torch.from_numpy(decode(given)).to(dtype)
    return given


def module_of(layer: Json, tensors: Mapping[str, Tensor], x: Tensor) -> nn.Module:
    """Return a layer in JSON as a module in eval mode, with these parameters and buffers; x is a batch for it."""
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in layer.items()}
    kind = str(options.pop("type"))
    if kind in _OPERATIONS:
        constants = {int(name.rpartition("_")[2]): values for name, values in tensors.items()}
        return Operands(_OPERATIONS[kind](), options["shapes"], constants)
    module = _built(kind, options, tensors, x).to(x.dtype).eval()
    with torch.no_grad():
        for name, values in tensors.items():
            getattr(module, name).copy_(values)
    return module


def _built(kind: str, options: Json, tensors: Mapping[str, Tensor], x: Tensor) -> nn.Module:
    weight, bias = tensors.get("weight"), "bias" in tensors
    if kind == "Elementwise":
        return _FUNCTIONS[options.pop("function")](**options)
    if kind == "Softmax":
        return nn.Softmax(dim=options["axis"] + 1)
    if "Norm" in kind:
        return _normalization(kind, options, x, affine=weight is not None)
    if weight is None:
        pool: nn.Module = getattr(nn, kind)(**_pooling(kind, options))
        return pool
    if kind == "Linear":
        return nn.Linear(weight.shape[1], weight.shape[0], bias=bias)
    channels, other = x.shape[1], weight.shape[0 if kind.startswith("Conv") else 1]
    outputs = weight.shape[1] * options["groups"] if kind.startswith("ConvTranspose") else other
    kernel = tuple(weight.shape[2:])
    if not kind.startswith("ConvTranspose"):
        options["padding"] = _padding(options["padding"], kernel, options["dilation"])
    convolution: nn.Module = getattr(nn, kind)(channels, outputs, kernel, bias=bias, **options)
    return convolution


def _normalization(kind: str, options: Json, x: Tensor, *, affine: bool) -> nn.Module:
    eps = options["eps"]
    if kind == "BatchNorm":
        norm = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[x.ndim - 2]
        return norm(x.shape[1], eps=eps, affine=affine)
    if kind == "GroupNorm":
        return nn.GroupNorm(options["num_groups"], x.shape[1], eps=eps, affine=affine)
    sizes = tuple(x.shape[x.ndim - options["axes"] :])
    if kind == "RMSNorm":
        return nn.RMSNorm(sizes, eps=eps, elementwise_affine=affine)
    return nn.LayerNorm(sizes, eps=eps, elementwise_affine=affine)


def _pooling(kind: str, options: Json) -> Json:
    if kind == "AvgPool1d":  # torch has no divisor there
        return {name: value for name, value in options.items() if name != "divisor_override"}
    return options


def _padding(pairs: tuple[Any, ...], kernel: tuple[int, ...], dilation: tuple[int, ...]) -> Any:
    pads = tuple(tuple(pair) for pair in pairs)
    if all(before == after for before, after in pads):
        return tuple(before for before, _ in pads)
    if pads != same_padding(kernel, dilation):
        message = (
            f"padding {pads}: torch has symmetric padding and 'same', which is {same_padding(kernel, dilation)} here"
        )
        raise NotOfferedError(message)
    return "same"
