"""Layer-wise relevance propagation in JAX: all rules, for dense layers, convolutions and elementwise functions.

A layer is a function of a weight and an input, linear in both where it has a weight. The map of changed parameters is
the same function with another weight, and its transpose is what `jax.vjp` gives. `relevance` is compiled once for each
rule, layer and shape.

>>> layer = Layer("Linear")
>>> w, x, R = jnp.array([[1.0, -2.0], [0.5, 1.0]]), jnp.array([[3.0, 1.0]]), jnp.array([[1.0, 2.5]])
>>> relevance("Epsilon", layer, {"weight": w}, x, R, epsilon=0.0)
Array([[ 4.5, -1. ]], dtype=float64)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

jax.config.update("jax_enable_x64", True)  # noqa: FBT003  float64 where it is asked for

DTYPES = ("float64", "float32")
_PAD = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}

# --- layers -----------------------------------------------------------------------------------------------------------


def softplus(x: Array, beta: float, threshold: float) -> Array:
    """log(1 + exp(beta x)) / beta, and x itself where beta x is above the threshold."""
    return jnp.where(beta * x > threshold, x, jax.nn.softplus(beta * x) / beta)


FUNCTIONS: dict[str, Callable[..., Array]] = {
    "identity": lambda x: x,
    "relu": jax.nn.relu,
    # the slope at 0 is that of the negative side: jax.nn.leaky_relu has 1 there
    "leaky_relu": lambda x, negative_slope: jnp.where(x > 0, x, negative_slope * x),
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "softplus": softplus,
    "gelu": lambda x, approximate: jax.nn.gelu(x, approximate=approximate == "tanh"),
    "silu": jax.nn.silu,
    "elu": jax.nn.elu,
}
LAYERS = ("Linear", "Conv1d", "Conv2d", "Conv3d", "Elementwise", "Softmax")


@dataclass(frozen=True)
class Layer:
    """What a layer is, but for its parameters: hashable, so that `jax.jit` compiles for it. The batch comes first.

    `options` are those of the vectors, as pairs: stride, padding [(before, after)], dilation, groups and padding_mode
    for a convolution, function and its numbers for Elementwise, the axis of a sample for Softmax.
    """

    type: str
    options: tuple[tuple[str, Any], ...] = ()

    def __call__(self, weight: Array | None, x: Array) -> Array:
        """A(w) x, or f(x) for a layer without parameters."""
        given = dict(self.options)
        if self.type == "Linear":
            return jnp.matmul(x, weight.T, precision=lax.Precision.HIGHEST)
        if self.type == "Elementwise":
            return FUNCTIONS[given.pop("function")](x, **given)
        if self.type == "Softmax":
            axis = given["axis"]
            return jax.nn.softmax(x, axis + 1 if axis >= 0 else axis)
        pads = ((0, 0), (0, 0), *given["padding"])
        return lax.conv_general_dilated(
            jnp.pad(x, pads, _PAD[given["padding_mode"]]),
            weight,
            given["stride"],
            "VALID",
            rhs_dilation=given["dilation"],
            feature_group_count=given["groups"],
            precision=lax.Precision.HIGHEST,
        )

    def constant(self, bias: Array | None) -> Array | float:
        """The bias, in a shape that is added to an output."""
        if bias is None:
            return 0.0
        return bias if self.type == "Linear" else bias.reshape(-1, *(1,) * int(self.type[-2]))


# --- what all rules share ---------------------------------------------------------------------------------------------


@partial(jax.tree_util.register_dataclass, data_fields=["epsilon"], meta_fields=["clip", "norm_scale"])
@dataclass(frozen=True)
class Stabilizer:
    """S(d) = d + eps sgn(d), or sgn(d) max(|d|, eps) with `clip`; with `norm_scale`, eps times the rms of d."""

    epsilon: float | Array = 1e-6
    clip: bool = False
    norm_scale: bool = False

    def __call__(self, d: Array) -> Array:
        """S(d)."""
        eps = self.epsilon
        if self.norm_scale:
            eps = eps * jnp.sqrt(jnp.mean(d * d, axis=tuple(range(1, d.ndim)), keepdims=True))
        sign = jnp.where(d < 0, -1, 1).astype(d.dtype)  # sgn(0) = +1, which jnp.sign is not
        return sign * jnp.maximum(jnp.abs(d), eps) if self.clip else d + eps * sign


def positive(p: Array | None) -> Array | None:
    """max(p, 0)."""
    return None if p is None else jnp.maximum(p, 0)


def negative(p: Array | None) -> Array | None:
    """min(p, 0)."""
    return None if p is None else jnp.minimum(p, 0)


@dataclass(frozen=True)
class Call:
    """One call of a rule: the layer with its parameters (`zero_params` already zero), and what flows into it."""

    layer: Layer
    weight: Array | None
    bias: Array | None
    x: Array
    R: Array
    stabilize: Stabilizer

    def flow(self, *terms: tuple[Array | None, Array], bias: Array | None = None, gate: Array | None = None) -> Array:
        """d = sum_t A(w_t) v_t + bias, s = gate R / S(d), r = sum_t v_t A(w_t)^T s."""
        outputs, backs = zip(*(jax.vjp(partial(self.layer, w), v) for w, v in terms), strict=True)
        s = self.R / self.stabilize(sum(outputs) + self.layer.constant(bias))
        s = s if gate is None else jnp.where(gate, s, 0)
        return sum(v * back(s)[0] for (_, v), back in zip(terms, backs, strict=True))

    def signed(self, first: Callable[[Any], Any], second: Callable[[Any], Any], gate: Array | None = None) -> Array:
        """Half of a signed rule: the positive inputs with one change of the weight, the negative ones with another."""
        terms = ((first(self.weight), positive(self.x)), (second(self.weight), negative(self.x)))
        return self.flow(*terms, bias=first(self.bias), gate=gate)


# --- the rules --------------------------------------------------------------------------------------------------------


def epsilon(call: Call) -> Array:
    """d = A x + b. Where the layer is not linear, d = f(x), and A is its Jacobian."""
    return call.flow((call.weight, call.x), bias=call.bias)


def zplus(call: Call) -> Array:
    """d = A(w+) x+ + A(w-) x- + b+."""
    return call.signed(positive, negative)


def alpha_beta(call: Call, alpha: Array, beta: Array | None) -> Array:
    """Alpha times ZPlus minus beta times its mirror, which is not evaluated where beta is None: no 0 * inf."""
    first = alpha * call.signed(positive, negative)
    return first if beta is None else first - beta * call.signed(negative, positive)


def gamma(call: Call, gamma: Array, z: Array) -> Array:
    """Parameters of one sign weigh more: those of the sign of z, the layer's real output; none where it is zero."""

    def up(p: Array | None) -> Array | None:
        return None if p is None else p + gamma * positive(p)

    def down(p: Array | None) -> Array | None:
        return None if p is None else p + gamma * negative(p)

    return call.signed(up, down, z > 0) + call.signed(down, up, z < 0)


def zbox(call: Call, low: Array, high: Array) -> Array:
    """d = A(w) x - A(w+) l - A(w-) h; the bias cancels."""
    w = call.weight
    return call.flow((w, call.x), (positive(w), -low), (negative(w), -high))


def wsquare(call: Call) -> Array:
    """d = A(w^2) 1 + b^2."""
    bias = None if call.bias is None else call.bias**2
    return call.flow((call.weight**2, jnp.ones_like(call.x)), bias=bias)


def flat(call: Call) -> Array:
    """d = A(1) 1."""
    return call.flow((jnp.ones_like(call.weight), jnp.ones_like(call.x)))


def guided(call: Call) -> Array:
    """r = f'(x) R where R > 0."""
    (r,) = jax.vjp(partial(call.layer, call.weight), call.x)[1](call.R)
    return jnp.where(call.R > 0, r, 0)


#: By name: the rule, and the defaults of its parameters.
RULES: dict[str, tuple[Callable[..., Array], dict[str, Any]]] = {
    "Epsilon": (epsilon, {"epsilon": 1e-6, "zero_params": ()}),
    "Norm": (epsilon, {"stabilizer": 1e-6}),
    "ZPlus": (zplus, {"stabilizer": 1e-6, "zero_params": ()}),
    "AlphaBeta": (alpha_beta, {"alpha": 2.0, "beta": 1.0, "stabilizer": 1e-6, "zero_params": ()}),
    "Gamma": (gamma, {"gamma": 0.25, "stabilizer": 1e-6, "zero_params": ()}),
    "ZBox": (zbox, {"low": None, "high": None, "stabilizer": 1e-6, "zero_params": ()}),
    "WSquare": (wsquare, {"stabilizer": 1e-6, "zero_params": ()}),
    "Flat": (flat, {"stabilizer": 1e-6, "zero_params": ()}),
    "Pass": (lambda call: call.R, {}),
    "ReLUDeconvNet": (lambda call: positive(call.R), {}),
    "ReLUGuidedBackprop": (guided, {}),
    "ReLUBetaSmooth": (lambda call, beta_smooth: jax.nn.sigmoid(beta_smooth * call.x) * call.R, {"beta_smooth": 10.0}),
}
#: Rules that change a weight: there must be one.
WEIGHTED = ("ZPlus", "AlphaBeta", "Gamma", "ZBox", "WSquare", "Flat")


def relevance(rule: str, layer: Layer, tensors: Mapping[str, Array], x: Array, R: Array, **parameters: Any) -> Array:
    """Return the relevance of the inputs x for the relevance R of the outputs, both with the batch first.

    `tensors` are the layer's weight and bias, where it has them. Parameters are named and preset as in the API.

    Raises
    ------
    TypeError
        If a parameter is no number, or has no such name.
    ValueError
        If it is a number that the rule cannot have, or a bound does not broadcast to x.

    """
    function, defaults = RULES[rule]
    if unknown := set(parameters) - set(defaults):
        message = f"{rule}: given {sorted(unknown)}, expected some of {list(defaults)}"
        raise TypeError(message)
    given = _checked(rule, {**defaults, **parameters}, x)
    zero = given.pop("zero_params", ())
    zeroed = {name: np.zeros(value.shape, value.dtype) if name in zero else value for name, value in tensors.items()}
    if given.get("beta") == 0:
        given["beta"] = None
    # numbers in the dtype of x; what they are is no reason to compile anew
    arrays = jax.tree.map(lambda value: np.asarray(value, x.dtype), given)
    return _compiled(function, layer, dict(tensors), zeroed, x, R, arrays)


@partial(jax.jit, static_argnums=(0, 1))
def _compiled(
    function: Callable[..., Array],
    layer: Layer,
    real: dict[str, Array],
    zeroed: dict[str, Array],
    x: Array,
    R: Array,
    given: dict[str, Any],
) -> Array:
    stabilize = given.pop("epsilon", given.pop("stabilizer", Stabilizer()))
    call = Call(layer, zeroed.get("weight"), zeroed.get("bias"), x, R, stabilize)
    if function is gamma:
        given["z"] = layer(real["weight"], x) + layer.constant(real.get("bias"))
    return function(call, **given)


# --- parameters -------------------------------------------------------------------------------------------------------


def _checked(rule: str, given: dict[str, Any], x: Array) -> dict[str, Any]:
    found = dict(given)
    for name, value in given.items():
        what = f"{rule}: {name}"
        if name in {"epsilon", "stabilizer"}:
            found[name] = _stabilizer(what, value)
        elif name in {"alpha", "beta", "gamma", "beta_smooth"}:
            found[name] = _finite(what, value)
        elif name in {"low", "high"}:
            found[name] = _bound(what, value, x)
    if rule == "AlphaBeta" and not (abs(found["alpha"] - found["beta"] - 1) <= 1e-15 * 4 * max(found["alpha"], 1)):
        message = f"AlphaBeta: given alpha {found['alpha']}, beta {found['beta']}, expected alpha - beta = 1"
        raise ValueError(message)
    if found.get("beta_smooth") == 0:
        message = "ReLUBetaSmooth: given beta_smooth 0.0, expected above 0"
        raise ValueError(message)
    if rule == "ZBox" and not bool((found["low"] <= found["high"]).all()):
        message = "ZBox: given low above high, expected low <= high everywhere"
        raise ValueError(message)
    return found


def _stabilizer(what: str, value: Any) -> Stabilizer:
    own = value if isinstance(value, Stabilizer) else Stabilizer(value)
    return Stabilizer(_finite(what, own.epsilon), own.clip, own.norm_scale)


def _finite(what: str, value: Any) -> float:
    if not isinstance(value, int | float):
        message = f"{what}: given {value!r}, expected a number"
        raise TypeError(message)
    if not 0 <= value < math.inf:
        message = f"{what}: given {float(value)}, expected a finite number of at least 0"
        raise ValueError(message)
    return float(value)


def _bound(what: str, value: Any, x: Array) -> np.ndarray:
    """A bound of ZBox for each entry of x: trailing ones, cut to the batch, broadcast."""
    if value is None or isinstance(value, str):
        message = f"{what}: given {value!r}, expected a number or an array"
        raise TypeError(message)
    bound = np.asarray(value, x.dtype)
    if bound.ndim:
        bound = bound.reshape(*bound.shape, *(1,) * (x.ndim - bound.ndim))
    if bound.ndim == x.ndim:
        bound = bound[: len(x)] if len(bound) > 1 else bound
    try:
        return np.broadcast_to(bound, x.shape)
    except ValueError:
        message = f"{what}: given an array of shape {np.shape(value)}, expected one that broadcasts to {x.shape}"
        raise ValueError(message) from None
