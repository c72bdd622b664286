"""The rules with the parameters they are tried with, each beside the reference function that says what is expected."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from reference import rules as ref
from reference.restriction import Cut
from reference.rounding import CallableStabilizer
from verify.model import Level

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from reference.layers import Affine
    from reference.rules import Part
    from verify.questions.layers import LayerCase

    Array = NDArray[np.float64]
    Shape = tuple[int, ...]


@dataclass(frozen=True)
class Sample:
    """One sample of the batch that a rule gets: for parameters that depend on it, such as the bounds of ZBox."""

    index: int
    batch_shape: Shape
    batched: bool


@dataclass(frozen=True)
class Variant:
    """A rule with parameters.

    ``arguments(shape, dtype)`` are those for the subject, ``parts(layer, sample)`` and ``stabilizer`` those for the
    reference. ``name`` is part of the id of a case; the variant ``default`` is made without any argument, so that
    defaults are tested.
    """

    rule: str
    name: str
    parts: Callable[[Affine, Sample], tuple[Part, ...]]
    arguments: Callable[[Shape, torch.dtype], dict[str, Any]] = field(default=lambda _shape, _dtype: {})
    stabilizer: Any = field(default_factory=lambda: ref.Stabilizer(1e-6))
    zero_params: tuple[str, ...] = ()
    #: Kinds of input that leave nothing to compare, such as exact zeros without a stabilizer.
    without: frozenset[str] = frozenset()
    #: In half precision, a denominator that nothing stabilizes may be zero by rounding.
    dtypes: frozenset[str] = frozenset({"float64", "float32", "float16", "bfloat16"})
    #: Names of layers, for what needs one of its own; None is those that variants are tried on.
    only: frozenset[str] | None = None
    #: Kinds of input, for what needs some of its own; None is those that variants are tried on.
    kinds: tuple[str, ...] | None = None
    level: Level = Level.MUST


def level(rule: str, layer: LayerCase) -> Level:
    """Return how binding the formula of a rule is on a layer."""
    # The specification fixes b as the constant of z = A(w) x + b; that a running mean belongs to it is not what all
    # would say
    split = layer.family == "BatchNorm" and rule not in {"Epsilon", "Norm", "Pass"}
    return Level.SHOULD if split else Level.MUST


def _given(**arguments: Any) -> Callable[[Shape, torch.dtype], dict[str, Any]]:
    # a list of its own for each rule, which may append to it
    return lambda _shape, _dtype: copy.deepcopy(arguments)


def unsigned(d: torch.Tensor) -> torch.Tensor:
    """Stabilize by a callable that is never negative, so that a rule cannot have replaced it by a number."""
    return (d * d + 4.0).sqrt()


def _unsigned(d: Array) -> Array:
    return np.sqrt(d * d + 4.0)


def clipped(d: torch.Tensor) -> torch.Tensor:
    """Keep every denominator at 0.5 or more in magnitude."""
    return torch.where(d < 0, d.clamp(max=-0.5), d.clamp(min=0.5))


#: Where a denominator that nothing stabilizes is not zero by rounding.
_UNROUNDED = frozenset({"float64", "float32"})
#: With 60 inputs of both signs, no half of them is empty: 0 / 0 is not met even without a stabilizer.
_NEVER_ZERO = frozenset({"linear-60-20"})
_UNSIGNED = CallableStabilizer(_unsigned)
_CLIPPED = ref.Stabilizer(0.5, clip=True)


def _with_stabilizers(
    rule: str, parts: Callable[[Affine, Sample], tuple[Part, ...]], name: str = "stabilizer", **arguments: Any
) -> tuple[Variant, ...]:
    """Variants that every rule with a stabilizer has: default, a large number, callables."""
    return (
        Variant(rule, "default", parts, _given(**arguments)),
        Variant(rule, f"{name}=0.3", parts, _given(**arguments, **{name: 0.3}), ref.Stabilizer(0.3)),
        Variant(rule, f"{name}=callable", parts, _given(**arguments, **{name: unsigned}), _UNSIGNED),
        Variant(rule, f"{name}=clip", parts, _given(**arguments, **{name: clipped}), _CLIPPED),
        Variant(
            rule,
            f"{name}=0",
            parts,
            _given(**arguments, **{name: 0.0}),
            ref.Stabilizer(0.0),
            without=frozenset({"zeros", "single", "nonnegative", "nonpositive"}),
            dtypes=_UNROUNDED,
            only=_NEVER_ZERO if rule in {"ZPlus", "AlphaBeta"} else None,
        ),
    )


def _no_bias(rule: str, parts: Callable[[Affine, Sample], tuple[Part, ...]], **arguments: Any) -> tuple[Variant, ...]:
    return (
        Variant(rule, "zero_params=bias", parts, _given(**arguments, zero_params="bias"), zero_params=("bias",)),
        Variant(rule, "zero_params=list", parts, _given(**arguments, zero_params=["bias"]), zero_params=("bias",)),
        # a name matches whole: 'bias_' is not the bias, and the letters of a string are no names
        Variant(rule, "zero_params=other", parts, _given(**arguments, zero_params="bias_weight")),
        Variant(rule, "zero_params=weight", parts, _given(**arguments, zero_params="weight"), zero_params=("weight",)),
        *(_zeroing(rule, parts, names, **arguments) for names in (["weight", "bias"], ["bias", "weight"])),
        *(_zeroing(rule, parts, names, **arguments) for names in (["scale", "bias"], ["bias", "scale"])),
    )


def _zeroing(
    rule: str,
    parts: Callable[[Affine, Sample], tuple[Part, ...]],
    names: list[str],
    level: Level = Level.MUST,
    **arguments: Any,
) -> Variant:
    """Several names at once, some of which the layer may not have."""
    return Variant(
        rule,
        f"zero_params={'+'.join(names)}",
        parts,
        _given(**arguments, zero_params=names),
        zero_params=tuple(names),
        only=frozenset({"linear-5-4", "conv2d-circular"}),
        kinds=("signed",),
        level=level,
    )


def _alpha_beta(alpha: float, beta: float) -> Callable[[Affine, Sample], tuple[Part, ...]]:
    return lambda layer, _: ref.alpha_beta(layer, alpha, beta)


def _gamma(gamma: float) -> Callable[[Affine, Sample], tuple[Part, ...]]:
    return lambda layer, _: ref.gamma(layer, gamma)


def _box(low: Any, high: Any) -> Callable[[Affine, Sample], tuple[Part, ...]]:
    """Bounds as a function of the batch's shape, expanded to it as the specification says, for one sample."""

    def of_sample(bound: Any, sample: Sample) -> Array:
        shape = sample.batch_shape
        values = np.asarray(bound(shape) if callable(bound) else bound, np.float64)
        if 0 < values.ndim < len(shape):
            values = values.reshape(values.shape + (1,) * (len(shape) - values.ndim))
        if sample.batched and values.ndim == len(shape) and values.shape[0] > shape[0]:
            values = values[: shape[0]]
        whole = np.broadcast_to(values, shape)
        return whole[sample.index] if sample.batched else whole

    def parts(layer: Affine, sample: Sample) -> tuple[Part, ...]:
        bounds = (of_sample(low, sample), of_sample(high, sample))
        if isinstance(layer.layer, Cut):
            bounds = (bounds[0].ravel()[layer.layer.columns], bounds[1].ravel()[layer.layer.columns])
        return ref.zbox(layer, *bounds)

    return parts


def _tensors(low: Any, high: Any) -> Callable[[Shape, torch.dtype], dict[str, Any]]:
    def arguments(shape: Shape, dtype: torch.dtype) -> dict[str, Any]:
        return {
            "low": torch.tensor(low(shape), dtype=dtype) if callable(low) else low,
            "high": torch.tensor(high(shape), dtype=dtype) if callable(high) else high,
        }

    return arguments


def _channels(scale: float) -> Callable[[Shape], Array]:
    """A bound for each channel, as (1, C, 1, ...); multiples of 1/8, exact in every dtype."""
    return lambda shape: np.asarray(
        scale * (1 + 0.125 * np.arange(shape[1])).reshape(1, -1, *(1,) * (len(shape) - 2)), np.float64
    )


def _per_sample(scale: float, extra: int) -> Callable[[Shape], Array]:
    """A bound for each sample, with fewer dimensions than the input, and more samples than there are."""
    return lambda shape: np.asarray(scale * (1 + 0.25 * np.arange(shape[0] + extra)), np.float64)


def _full(scale: float) -> Callable[[Shape], Array]:
    """A bound for each entry of the input, and two more samples than there are."""
    return lambda shape: np.asarray(
        (
            scale
            * (1 + 0.125 * (np.arange(np.prod(shape) + 2 * np.prod(shape[1:])) % 7)).reshape(shape[0] + 2, *shape[1:])
        ),
        np.float64,
    )


VARIANTS: tuple[Variant, ...] = (
    *_with_stabilizers("Epsilon", lambda layer, _: ref.epsilon(layer), "epsilon"),
    *_no_bias("Epsilon", lambda layer, _: ref.epsilon(layer)),
    *_with_stabilizers("Norm", lambda layer, _: ref.norm(layer)),
    *_with_stabilizers("ZPlus", lambda layer, _: ref.zplus(layer)),
    *_no_bias("ZPlus", lambda layer, _: ref.zplus(layer)),
    Variant("ZPlus", "stabilizer=0", lambda layer, _: ref.zplus(layer), _given(stabilizer=0.0), ref.Stabilizer(0.0),
            dtypes=_UNROUNDED, kinds=("positive",)),
    *_with_stabilizers("AlphaBeta", _alpha_beta(2, 1)),
    *_no_bias("AlphaBeta", _alpha_beta(2, 1)),
    *(
        Variant("AlphaBeta", f"alpha={a:g}-beta={b:g}", _alpha_beta(a, b), _given(alpha=a, beta=b))
        for a, b in ((1.0, 0.0), (1.5, 0.5), (4.0, 3.0))
    ),
    # nothing contributes to the second half, 0 * (R / 0), but there is none
    Variant("AlphaBeta", "alpha=1-beta=0-stabilizer=0", _alpha_beta(1, 0),
            _given(alpha=1.0, beta=0.0, stabilizer=0.0), ref.Stabilizer(0.0), dtypes=_UNROUNDED, kinds=("positive",)),
    *_with_stabilizers("Gamma", _gamma(0.25)),
    *_no_bias("Gamma", _gamma(0.25)),
    *(Variant("Gamma", f"gamma={g:g}", _gamma(g), _given(gamma=g)) for g in (0.0, 1.0, 10.0, 1000.0)),
    *_with_stabilizers("ZBox", _box(-4.0, 3.0), low=-4.0, high=3.0),
    *_no_bias("ZBox", _box(-4.0, 3.0), low=-4.0, high=3.0),
    Variant("ZBox", "low=0-high=1", _box(0.0, 1.0), _given(low=0.0, high=1.0)),
    # decimals that float32 does not have: a bound that is rounded to it shows in float64
    Variant("ZBox", "low=-2.1-high=2.6", _box(-2.1, 2.6), _given(low=-2.1, high=2.6)),
    Variant("ZBox", "channels", _box(_channels(-3.0), _channels(4.0)), _tensors(_channels(-3.0), _channels(4.0))),
    Variant("ZBox", "low-channels-high=5", _box(_channels(-3.0), 5.0), _tensors(_channels(-3.0), 5.0)),
    Variant("ZBox", "samples", _box(_per_sample(-3.0, 0), _per_sample(4.0, 0)),
            _tensors(_per_sample(-3.0, 0), _per_sample(4.0, 0))),
    Variant("ZBox", "longer-batch", _box(_full(-3.0), _full(4.0)), _tensors(_full(-3.0), _full(4.0))),
    *_with_stabilizers("WSquare", lambda layer, _: ref.wsquare(layer)),
    *_no_bias("WSquare", lambda layer, _: ref.wsquare(layer)),
    *_with_stabilizers("Flat", lambda layer, _: ref.flat(layer)),
    Variant("Flat", "zero_params=bias", lambda layer, _: ref.flat(layer), _given(zero_params="bias"),
            zero_params=("bias",)),
    # parameters are zeroed first, and then replaced by ones
    *(
        _zeroing("Flat", lambda layer, _: ref.flat(layer), names, Level.SHOULD)
        for names in (["weight"], ["weight", "bias"], ["scale", "weight"])
    ),
)  # fmt: skip


#: The box that makes ZBox the Epsilon rule without bias.
BOX_OF_ZERO = Variant("ZBox", "low=0-high=0", _box(0.0, 0.0), _given(low=0.0, high=0.0))


def variant(rule: str, name: str = "default") -> Variant:
    """Return the variant of that name."""
    return next(v for v in VARIANTS if v.rule == rule and v.name == name)


def drawn(rule: str, arguments: dict[str, Any]) -> Variant:
    """Return a rule with the arguments that a search has drawn: numbers, and names of parameters."""
    epsilon = arguments.get("epsilon" if rule == "Epsilon" else "stabilizer", 1e-6)
    parts: dict[str, Callable[[Affine, Sample], tuple[Part, ...]]] = {
        "Epsilon": lambda layer, _: ref.epsilon(layer),
        "Norm": lambda layer, _: ref.norm(layer),
        "ZPlus": lambda layer, _: ref.zplus(layer),
        "AlphaBeta": _alpha_beta(arguments.get("alpha", 2.0), arguments.get("beta", 1.0)),
        "Gamma": _gamma(arguments.get("gamma", 0.25)),
        "ZBox": _box(arguments.get("low", 0.0), arguments.get("high", 0.0)),
        "WSquare": lambda layer, _: ref.wsquare(layer),
        "Flat": lambda layer, _: ref.flat(layer),
    }
    given = arguments.get("zero_params")
    zero = (given,) if isinstance(given, str) else tuple(given or ())
    return Variant(rule, "drawn", parts[rule], _given(**arguments), ref.Stabilizer(epsilon), zero_params=zero)
