"""The rules for what lies between layers: the operations and normalisations they are tried on, and their parameters."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from reference import network_rules as ref
from reference import rules
from verify.formats.operands import Add, MatMul, Multiply, Operands
from verify.model import Level
from verify.questions.drawing import draw
from verify.questions.layers import LayerCase
from verify.questions.variants import Variant, clipped, unsigned, variant

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from reference.layers import Affine
    from reference.rules import Part
    from verify.model import Problem
    from verify.questions.variants import Sample

    Parts = tuple[Part, ...]
    Shapes = tuple[tuple[int, ...], ...]


def _operands(
    name: str, family: str, operation: type[nn.Module], shapes: Shapes, constant: int | None = None, samples: int = 2
) -> LayerCase:
    """An operation; no samples means that the operands have no batch, so that they may differ in rank."""
    constants = {}
    if constant is not None:
        size = torch.Size(shapes[constant])
        # multiples of 1/4 of both signs, exact in every dtype
        constants[constant] = ((torch.arange(size.numel()) * 5 % 7 - 3) / 4).double().reshape(size)
    sizes = [torch.Size(shape).numel() for k, shape in enumerate(shapes) if k != constant]
    shape = (samples, sum(sizes)) if samples else (sum(sizes),)
    return LayerCase(
        name, family, lambda: Operands(operation(), shapes, constants), shape,
        linear=False, weighted=False, batched=samples > 0,
    )  # fmt: skip


def _norm(name: str, build: Callable[[], nn.Module], *shape: int, weighted: bool = True) -> LayerCase:
    return LayerCase(name, "Normalization", build, shape, linear=False, weighted=weighted)


SUMS = (
    _operands("sum", "Sum", Add, ((2, 3), (2, 3))),
    _operands("sum-broadcast", "Sum", Add, ((2, 3), (2, 1), (1, 3))),
    _operands("sum-constant", "Sum", Add, ((2, 3), (2, 3)), constant=1),
)
PRODUCTS = (
    _operands("product", "Product", Multiply, ((2, 3), (2, 3))),
    _operands("product-broadcast", "Product", Multiply, ((2, 3), (1, 3))),
    _operands("product-of-3", "Product", Multiply, ((2, 3, 2), (2, 1, 2), (1, 3, 1))),
    _operands("product-outer", "Product", Multiply, ((4, 1), (1, 3))),
    _operands("product-constant", "Product", Multiply, ((2, 1, 2), (2, 3, 2), (2, 3, 2)), constant=1),
    _operands("product-unbatched", "Product", Multiply, ((3, 1), (2, 3, 2)), samples=0),
)
MATRIX_PRODUCTS = (
    _operands("matmul", "MatMul", MatMul, ((2, 3), (3, 4))),
    _operands("matmul-batched", "MatMul", MatMul, ((3, 2, 4), (3, 4, 2))),
    _operands("matmul-broadcast", "MatMul", MatMul, ((2, 1, 2, 3), (1, 3, 3, 2))),
    _operands("matmul-inner-1", "MatMul", MatMul, ((3, 1), (1, 2))),
    _operands("matmul-constant-left", "MatMul", MatMul, ((2, 3), (3, 2)), constant=0),
    _operands("matmul-constant-right", "MatMul", MatMul, ((2, 3), (3, 2)), constant=1),
    _operands("matmul-unbatched", "MatMul", MatMul, ((2, 3), (4, 3, 2)), samples=0),
)
SOFTMAX = (
    LayerCase("softmax-last", "Activation", lambda: nn.Softmax(dim=-1), (2, 2, 3, 4), linear=False, weighted=False),
    LayerCase("softmax-first", "Activation", lambda: nn.Softmax(dim=1), (2, 3, 2), linear=False, weighted=False),
    LayerCase("softmax-middle", "Activation", lambda: nn.Softmax(dim=2), (2, 2, 3, 2), linear=False, weighted=False),
    LayerCase("softmax-of-1", "Activation", lambda: nn.Softmax(dim=-1), (2, 3, 1), linear=False, weighted=False),
)
NORMS = (
    _norm("layernorm", lambda: nn.LayerNorm(5), 3, 5),
    _norm("layernorm-of-sequences", lambda: nn.LayerNorm(4), 2, 3, 4),
    _norm("layernorm-2-axes-nobias", lambda: nn.LayerNorm((3, 4), bias=False), 2, 2, 3, 4),
    _norm("layernorm-plain", lambda: nn.LayerNorm(4, elementwise_affine=False), 2, 3, 4, weighted=False),
    # an eps that is felt
    _norm("layernorm-large-eps", lambda: nn.LayerNorm(4, eps=0.5), 2, 4),
    _norm("rmsnorm", lambda: nn.RMSNorm(4, eps=1e-3), 2, 3, 4),
    _norm("groupnorm", lambda: nn.GroupNorm(2, 4, eps=0.25), 2, 4, 3),
    _norm("groupnorm-of-1", lambda: nn.GroupNorm(1, 3), 2, 3, 2, 2),
    _norm("instancenorm1d", lambda: nn.InstanceNorm1d(3, affine=True), 2, 3, 4),
    _norm("instancenorm2d-plain", lambda: nn.InstanceNorm2d(2), 2, 2, 3, 2, weighted=False),
)
LAYERS = (*SUMS, *PRODUCTS, *MATRIX_PRODUCTS, *SOFTMAX, *NORMS)
#: Of each kind one, for variants, laws and derivatives.
CORE = ("product", "product-broadcast", "matmul", "matmul-broadcast", "softmax-last", "layernorm", "groupnorm")


def named(*names: str) -> list[LayerCase]:
    """Return the layers of these names."""
    return [next(layer for layer in LAYERS if layer.name == name) for name in names]


_UNSIGNED = variant("Epsilon", "epsilon=callable").stabilizer


def _variant(rule: str, name: str, parts: Callable[[Affine], Parts], arguments: dict[str, Any], **how: Any) -> Variant:
    def of_sample(layer: Affine, _: Sample) -> Parts:
        return parts(layer)

    def given(_shape: tuple[int, ...], _dtype: torch.dtype) -> dict[str, Any]:
        return {k: list(v) if isinstance(v, list) else v for k, v in arguments.items()}

    return Variant(rule, name, of_sample, given, **how)


def _stabilized(rule: str, parts: Callable[[Affine], Parts]) -> tuple[Variant, ...]:
    return (
        _variant(rule, "default", parts, {}),
        _variant(rule, "stabilizer=0.3", parts, {"stabilizer": 0.3}, stabilizer=rules.Stabilizer(0.3)),
        _variant(rule, "stabilizer=callable", parts, {"stabilizer": unsigned}, stabilizer=_UNSIGNED),
        _variant(rule, "stabilizer=clip", parts, {"stabilizer": clipped}, stabilizer=rules.Stabilizer(0.5, clip=True)),
    )


def _without(*names: str) -> Variant:
    arguments = {"zero_params": names[0] if len(names) == 1 else list(names)}
    return _variant("LayerNormRule", f"zero_params={'+'.join(names)}", ref.layer_norm, arguments, zero_params=names)


def _signal_takes_all(expected: int, **arguments: Any) -> Variant:
    """Return SignalTakesAll with the operand at this position as what is expected to be the signal."""
    name = "-".join(f"{k}={v}" for k, v in arguments.items()) or "default"

    def parts(layer: Affine) -> Parts:
        return ref.signal_takes_all(layer, expected)

    return _variant("SignalTakesAll", name, parts, arguments, stabilizer=ref.COUNTED)


UNIFORM = _variant("Uniform", "default", ref.uniform, {}, stabilizer=ref.COUNTED)
BILINEAR = _stabilized("Bilinear", ref.bilinear)
STOP = _variant("Stop", "default", ref.stop, {})
LAYER_NORM = (
    *_stabilized("LayerNormRule", ref.layer_norm),
    *(_without(*names) for names in (("bias",), ("weight",), ("bias", "weight"))),
)
#: Of the dimension that the module itself has.
SOFTMAX_OF_MODULE = _variant("Softmax", "default", ref.softmax, {}, stabilizer=ref.UNDIVIDED)
#: On each product: which operand is the signal, and what tells so.
SIGNALS = {
    "product": (_signal_takes_all(0, signal=0), _signal_takes_all(1, signal=1)),
    "product-broadcast": (_signal_takes_all(0), _signal_takes_all(1, signal=1)),
    "product-of-3": (_signal_takes_all(0), _signal_takes_all(2, signal=2)),
    "product-outer": (_signal_takes_all(0, signal=0),),
    # the only one of the others that is as large as the output; the constant itself
    "product-constant": (_signal_takes_all(2), _signal_takes_all(1, signal=1)),
    "product-unbatched": (_signal_takes_all(1),),
}
_KINDS = ("signed", "zeros", "nonnegative", "nonpositive", "single")


def variants_on(layer: LayerCase) -> Iterator[Variant]:
    """Yield the variants that a layer is asked about; all there are on one layer of each kind."""
    whole = layer.name in CORE
    if layer in SUMS:
        yield variant("Norm")
    elif layer in PRODUCTS:
        yield UNIFORM
        yield from SIGNALS[layer.name]
        yield from BILINEAR if whole else BILINEAR[:1]
    elif layer in MATRIX_PRODUCTS:
        yield from BILINEAR if whole else BILINEAR[:1]
    elif layer in SOFTMAX:
        softmax: Any = layer.build()
        dim = softmax.dim
        yield SOFTMAX_OF_MODULE
        yield _variant("Softmax", f"dim={dim}", ref.softmax, {"dim": dim}, stabilizer=ref.UNDIVIDED)
        if whole:
            yield STOP
    else:
        yield from LAYER_NORM if whole else LAYER_NORM[:1]


def grid() -> Iterator[tuple[LayerCase, str, Variant]]:
    """Yield what is asked: the defaults on all kinds of data, variants on few."""
    for layer in LAYERS:
        for of in variants_on(layer):
            routed = of.rule in {"Uniform", "SignalTakesAll", "Stop"}
            kinds: tuple[str, ...] = _KINDS if layer.name in CORE else _KINDS[:3]
            kinds = _KINDS[:2] if routed or of.name != "default" else kinds
            for kind in (*kinds, "masked") if layer in SOFTMAX and of.rule != "Stop" else kinds:
                yield layer, kind, of


def level(rule: str) -> Level:
    """Return how binding a formula is; that Norm shares among several inputs is advice."""
    return Level.SHOULD if rule == "Norm" else Level.MUST


def drawn(layer: LayerCase, kind: str, dtype: str, seed: int = 0, device: str = "cpu") -> Problem:
    """Draw the data of one case; ``masked`` is signed data with entries of -inf, as under the mask of attention."""
    if kind != "masked":
        return draw(layer, kind, dtype, seed, device)
    problem = draw(layer, "signed", dtype, seed, device)
    places = torch.arange(problem.x.numel(), device=problem.x.device).reshape(problem.x.shape) % 3 == 1
    # of each row, something is left
    softmax: Any = problem.module
    places &= (~places).any(softmax.dim, keepdim=True)
    return replace(problem, x=problem.x.masked_fill(places, -torch.inf))
