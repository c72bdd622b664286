"""Layer-wise relevance propagation in JAX: all rules, for all layers that the vectors know. One file, to be copied.

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
from functools import cache, partial
from itertools import product
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Shape = tuple[int, ...]
    Pairs = tuple[tuple[int, int], ...]

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


def elementwise(_: None, x: Array, function: str, **given: Any) -> Array:
    """y = f(x) for each entry."""
    return FUNCTIONS[function](x, **given)


def softmax(_: None, x: Array, axis: int) -> Array:
    """The axis is one of a sample."""
    return jax.nn.softmax(x, axis + 1 if axis >= 0 else axis)


def linear(weight: Array, x: Array) -> Array:
    """y = W x along the last axis."""
    return jnp.matmul(x, weight.T, precision=lax.Precision.HIGHEST)


def conv(weight: Array, x: Array, padding_mode: str, padding: Pairs, **given: Any) -> Array:
    """The padding is explicit: a mode is one of jnp.pad."""
    x = jnp.pad(x, ((0, 0), (0, 0), *padding), _PAD[padding_mode])
    return _valid(weight, x, ((0, 0),) * len(padding), **given)


def _valid(weight: Array, x: Array, padding: Pairs, stride: Shape, dilation: Shape, groups: int) -> Array:
    return lax.conv_general_dilated(
        x,
        weight,
        stride,
        padding,
        rhs_dilation=dilation,
        feature_group_count=groups,
        precision=lax.Precision.HIGHEST,
    )


def conv_transpose(weight: Array, x: Array, padding: Shape, output_padding: Shape, **given: Any) -> Array:
    """The transpose of the convolution that reads y where x is written to, and so never what output_padding adds."""
    axes = zip(x.shape[2:], weight.shape[2:], given["stride"], given["dilation"], padding, output_padding, strict=True)
    spatial = ((n - 1) * step - 2 * pad + spread * (k - 1) + more + 1 for n, k, step, spread, pad, more in axes)
    y = jax.ShapeDtypeStruct((len(x), weight.shape[1] * given["groups"], *spatial), x.dtype)
    pads = tuple((pad, pad - more) for pad, more in zip(padding, output_padding, strict=True))
    return jax.linear_transpose(lambda y: _valid(weight, y, pads, **given), y)(x)[0]


def batch_norm(weight: Array | None, x: Array, eps: float, running_var: Array) -> Array:
    """y = x w / sqrt(var + eps): the mean belongs to the constant."""
    scale = lax.rsqrt(running_var + eps)
    return x * _channels(scale if weight is None else weight * scale, x)


def _channels(values: Array, x: Array) -> Array:
    return values.reshape(-1, *(1,) * (x.ndim - 2))


def _behind(n: int, extent: int, step: int, pad: int) -> int:
    """Return how far the last window runs past the padding under ceil_mode; it begins before that padding."""
    outputs = -(-(n + 2 * pad - extent) // step) + 1
    outputs -= (outputs - 1) * step >= n + pad
    return max((outputs - 1) * step + extent - n - 2 * pad, 0)


def avg_pool(
    _: None,
    x: Array,
    *,
    kernel_size: Shape,
    stride: Shape,
    padding: Shape,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Array:
    """The sum of each window, divided by how many of its entries count."""
    axes = zip(x.shape[2:], kernel_size, stride, padding, strict=True)
    behind = [_behind(*axis) if ceil_mode else 0 for axis in axes]

    def total(v: Array, around: int) -> Array:
        v = jnp.pad(v, ((0, 0), (0, 0), *((pad, pad) for pad in padding)), constant_values=around)
        pads = ((0, 0), (0, 0), *((0, more) for more in behind))
        return lax.reduce_window(v, np.zeros((), v.dtype), lax.add, (1, 1, *kernel_size), (1, 1, *stride), pads)

    return total(x, 0) / (divisor_override or total(jnp.ones((1, 1, *x.shape[2:]), x.dtype), int(count_include_pad)))


def adaptive_avg_pool(_: None, x: Array, output_size: tuple[int | None, ...]) -> Array:
    """As many windows as asked for, which may overlap; None keeps an axis."""

    def total(v: Array) -> Array:
        for axis, (n, size) in enumerate(zip(v.shape[2:], output_size, strict=True), 2):
            out = size or n
            spans = ((o * n // out, -(-(o + 1) * n // out)) for o in range(out))
            v = jnp.stack([lax.slice_in_dim(v, *span, axis=axis).sum(axis) for span in spans], axis)
        return v

    return total(x) / total(jnp.ones((1, 1, *x.shape[2:]), x.dtype))


def max_pool(
    _: None, x: Array, *, kernel_size: Shape, stride: Shape, padding: Shape, dilation: Shape, ceil_mode: bool
) -> Array:
    """Of equal maxima the first one wins. A window is a list here: `lax.reduce_window`, dilated, has no gradient."""
    taps = [range(0, spread * k, spread) for k, spread in zip(kernel_size, dilation, strict=True)]
    extents = [tap[-1] + 1 for tap in taps]
    axes = zip(x.shape[2:], extents, stride, padding, strict=True)
    pads = [(axis[-1], axis[-1] + (_behind(*axis) if ceil_mode else 0)) for axis in axes]
    x = jnp.pad(x, ((0, 0), (0, 0), *pads), constant_values=-jnp.inf)
    starts = [n - extent + 1 for n, extent in zip(x.shape[2:], extents, strict=True)]

    def read(tap: Shape) -> Array:
        ends = (first + start for first, start in zip(tap, starts, strict=True))
        return lax.slice(x, (0, 0, *tap), (*x.shape[:2], *ends), (1, 1, *stride))

    windows = jnp.stack([read(tap) for tap in product(*taps)])
    return jnp.take_along_axis(windows, windows.argmax(0, keepdims=True), 0)[0]


def operands(x: Array, shapes: tuple[Shape, ...], constants: Mapping[str, Array]) -> list[Array]:
    """The operands of an operation: side by side in x, each flattened, but for those that are constant."""
    sizes = [
        math.prod(shape)
        for shape, k in zip(shapes, range(len(shapes)), strict=True)
        if k in _variables(shapes, constants)
    ]
    parts = iter(jnp.split(x, np.cumsum(sizes)[:-1], 1))
    return [
        constants[f"constant_{k}"][None] if f"constant_{k}" in constants else next(parts).reshape(-1, *shape)
        for k, shape in enumerate(shapes)
    ]


def _variables(shapes: tuple[Shape, ...], constants: Mapping[str, Array]) -> list[int]:
    return [k for k in range(len(shapes)) if f"constant_{k}" not in constants]


def add(_: None, x: Array, shapes: tuple[Shape, ...], **constants: Array) -> Array:
    """Operands added up, broadcast."""
    return sum(operands(x, shapes, constants))


def product_of(_: None, x: Array, shapes: tuple[Shape, ...], **constants: Array) -> Array:
    """Operands multiplied, broadcast."""
    return math.prod(operands(x, shapes, constants))


def matmul(_: None, x: Array, shapes: tuple[Shape, ...], **constants: Array) -> Array:
    """Matrices in the last two axes; the axes before them are broadcast."""
    return jnp.matmul(*operands(x, shapes, constants), precision=lax.Precision.HIGHEST)


def _normalised(x: Array, axes: Shape, eps: float, *, centred: bool, frozen: bool) -> Array:
    distance = x - x.mean(axes, keepdims=True) if centred else x
    scale = lax.rsqrt((distance * distance).mean(axes, keepdims=True) + eps)
    return distance * (lax.stop_gradient(scale) if frozen else scale)


def layer_norm(
    weight: Array | None, x: Array, axes: int, eps: float, *, centred: bool = True, frozen: bool = False
) -> Array:
    """Over the last axes. `frozen` takes the deviation for a number."""
    found = _normalised(x, tuple(range(x.ndim - axes, x.ndim)), eps, centred=centred, frozen=frozen)
    return found if weight is None else found * weight


def group_norm(weight: Array | None, x: Array, num_groups: int, eps: float, *, frozen: bool = False) -> Array:
    """Over groups of channels, and all positions."""
    grouped = x.reshape(len(x), num_groups, -1)
    found = _normalised(grouped, (2,), eps, centred=True, frozen=frozen).reshape(x.shape)
    return found if weight is None else found * _channels(weight, x)


NORMALISATIONS: dict[str, Callable[..., Array]] = {
    "LayerNorm": layer_norm,
    "RMSNorm": partial(layer_norm, centred=False),
    "GroupNorm": group_norm,
}
OPERATIONS: dict[str, Callable[..., Array]] = {"Sum": add, "Product": product_of, "MatMul": matmul}

#: By type: A(w) x. Only these have rules that change parameters.
LINEAR: dict[str, Callable[..., Array]] = {
    "Linear": linear,
    "BatchNorm": batch_norm,
    **{f"Conv{d}d": conv for d in (1, 2, 3)},
    **{f"ConvTranspose{d}d": conv_transpose for d in (1, 2, 3)},
    **{f"AvgPool{d}d": avg_pool for d in (1, 2, 3)},
    **{f"AdaptiveAvgPool{d}d": adaptive_avg_pool for d in (1, 2, 3)},
}
#: By type: f(x), and the same for the linear ones.
LAYERS: dict[str, Callable[..., Array]] = {
    **LINEAR,
    "Elementwise": elementwise,
    "Softmax": softmax,
    **{f"MaxPool{d}d": max_pool for d in (1, 2, 3)},
    **NORMALISATIONS,
    **OPERATIONS,
}


@dataclass(frozen=True)
class Layer:
    """What a layer is, but for its tensors: hashable, so that `jax.jit` compiles for it. The batch comes first.

    `options` are those of the vectors, as pairs, with tuples for lists.
    """

    type: str
    options: tuple[tuple[str, Any], ...] = ()

    def __call__(self, weight: Array | None, x: Array, **given: Any) -> Array:
        """A(w) x, or f(x) for a layer that is not linear."""
        return LAYERS[self.type](weight, x, **dict(self.options), **given)


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
    """One call of a rule: the layer as A(w) x + b (`zero_params` already zero), and what flows into it."""

    A: Callable[[Array | None, Array], Array]
    weight: Array | None
    b: Array | None
    x: Array
    R: Array
    stabilize: Stabilizer | None
    layer: Layer
    constants: Mapping[str, Array]

    def flow(self, *terms: tuple[Array | None, Array], b: Array | None = None, gate: Array | None = None) -> Array:
        """d = sum_t A(w_t) v_t + b, s = gate R / S(d), r = sum_t v_t A(w_t)^T s."""
        outputs, backs = zip(*(jax.vjp(partial(self.A, w), v) for w, v in terms), strict=True)
        s = self.R / self.stabilize(sum(outputs) if b is None else sum(outputs) + b)
        s = s if gate is None else jnp.where(gate, s, 0)
        return sum(v * back(s)[0] for (_, v), back in zip(terms, backs, strict=True))

    def signed(self, first: Callable[[Any], Any], second: Callable[[Any], Any], gate: Array | None = None) -> Array:
        """Half of a signed rule: the positive inputs with one change of the weight, the negative ones with another."""
        terms = ((first(self.weight), positive(self.x)), (second(self.weight), negative(self.x)))
        return self.flow(*terms, b=first(self.b), gate=gate)


# --- the rules --------------------------------------------------------------------------------------------------------


def epsilon(call: Call) -> Array:
    """d = A x + b. Where the layer is not linear, d = f(x), and A is its Jacobian."""
    return call.flow((call.weight, call.x), b=call.b)


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
    """d = A(w) x - A(w+) l - A(w-) h; the constant cancels."""
    w = call.weight
    return call.flow((w, call.x), (positive(w), -low), (negative(w), -high))


def wsquare(call: Call) -> Array:
    """d = A(w^2) 1 + b^2."""
    square = partial(jax.tree.map, jnp.square)  # None stays None
    return call.flow((square(call.weight), jnp.ones_like(call.x)), b=square(call.b))


def flat(call: Call) -> Array:
    """d = A(1) 1."""
    return call.flow((jax.tree.map(jnp.ones_like, call.weight), jnp.ones_like(call.x)))


def guided(call: Call) -> Array:
    """r = f'(x) R where R > 0."""
    (r,) = jax.vjp(partial(call.A, call.weight), call.x)[1](call.R)
    return jnp.where(call.R > 0, r, 0)


def bilinear(call: Call) -> Array:
    """d = n O for n operands, J_k the Jacobian by one."""
    z, back = jax.vjp(partial(call.A, None), call.x)
    count = len(_variables(dict(call.layer.options)["shapes"], call.constants))
    return call.x * back(call.R / call.stabilize(count * z))[0]


def layer_norm_rule(call: Call) -> Array:
    """Epsilon on the normalisation with its deviation as a constant."""
    return call.flow((call.weight, call.x), b=call.b)


def uniform(call: Call) -> Array:
    """r_k = R / n, summed where factor k was broadcast."""
    return _routed(call, _variables(dict(call.layer.options)["shapes"], call.constants))


def _routed(call: Call, receiving: list[int]) -> Array:
    """The same share to each of these factors: the transpose of adding them up."""
    shapes = dict(call.layer.options)["shapes"]

    def total(x: Array) -> Array:
        found = operands(x, shapes, call.constants)
        return jnp.zeros_like(call.R) + sum(found[k] for k in receiving)

    return jax.vjp(total, call.x)[1](call.R / len(receiving))[0]


@cache
def signal_takes_all(signal: int) -> Callable[[Call], Array]:
    """All to the signal. One function for each position, since `jax.jit` compiles for a function."""
    return lambda call: _routed(call, [signal])


def softmax_rule(call: Call) -> Array:
    """x (R - s sum R); what is masked, -inf, is no signal."""
    x, s, axis = call.x, call.A(None, call.x), dict(call.layer.options)["axis"]
    total = call.R.sum(axis + 1 if axis >= 0 else axis, keepdims=True)
    return jnp.where(jnp.isneginf(x), 0, x) * (call.R - s * total)


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
    "Uniform": (uniform, {}),
    "SignalTakesAll": (signal_takes_all, {"signal": None}),
    "Bilinear": (bilinear, {"stabilizer": 1e-6}),
    "Softmax": (softmax_rule, {"dim": None}),
    "Stop": (lambda call: jnp.zeros_like(call.x), {}),
    "LayerNormRule": (layer_norm_rule, {"stabilizer": 1e-6, "zero_params": ()}),
}
#: Rules for some layers only, and these.
FOR: dict[str, tuple[str, ...]] = {
    "Uniform": ("Product",),
    "SignalTakesAll": ("Product",),
    "Bilinear": ("Product", "MatMul"),
    "Softmax": ("Softmax",),
    "LayerNormRule": tuple(NORMALISATIONS),
}
#: Rules that change parameters, and need a layer that is LINEAR.
CHANGING = ("ZPlus", "AlphaBeta", "Gamma", "ZBox", "WSquare", "Flat")


def relevance(rule: str, layer: Layer, tensors: Mapping[str, Array], x: Array, R: Array, **parameters: Any) -> Array:
    """Return the relevance of the inputs x for the relevance R of the outputs, both with the batch first.

    `tensors` are the layer's weight, bias, running_mean and running_var, where it has them. Parameters are named and
    preset as in the API.

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
    if rule == "SignalTakesAll":
        function = signal_takes_all(_signal(layer, tensors, given.pop("signal")))
    if rule == "Softmax":
        _check_dim(layer, x, given.pop("dim"))
    zero = given.pop("zero_params", ())
    zeroed = {name: np.zeros(value.shape, value.dtype) if name in zero else value for name, value in tensors.items()}
    if given.get("beta") == 0:
        given["beta"] = None
    # numbers in the dtype of x; what they are, or what epsilon is called, is no reason to compile anew
    arrays = jax.tree.map(lambda value: np.asarray(value, x.dtype), given)
    stabilizer = arrays.pop("epsilon", None) or arrays.pop("stabilizer", None)
    return _compiled(function, layer, dict(tensors), zeroed, x, R, stabilizer, arrays)


@partial(jax.jit, static_argnums=(0, 1))
def _compiled(
    function: Callable[..., Array],
    layer: Layer,
    real: dict[str, Array],
    zeroed: dict[str, Array],
    x: Array,
    R: Array,
    stabilizer: Stabilizer | None,
    given: dict[str, Any],
) -> Array:
    constants = {name: value for name, value in real.items() if name.startswith("constant_")}
    A = partial(layer, running_var=real["running_var"]) if "running_var" in real else partial(layer, **constants)
    if function is layer_norm_rule:
        A = partial(layer, frozen=True)

    def b(tensors: dict[str, Array]) -> Array | None:
        constant = tensors.get("bias")
        if "running_mean" in real:
            constant = (0 if constant is None else constant) - A(tensors.get("weight"), real["running_mean"][None])[0]
        return constant if constant is None or layer.type in {"Linear", "LayerNorm"} else _channels(constant, x)

    if function is gamma:
        z, constant = A(real.get("weight"), x), b(real)
        given["z"] = z if constant is None else z + constant
    return function(Call(A, zeroed.get("weight"), b(zeroed), x, R, stabilizer, layer, constants), **given)


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


def _signal(layer: Layer, tensors: Mapping[str, Array], given: Any) -> int:
    """The position of the signal: None is the only operand that is not constant, else the only one like the output."""
    shapes = dict(layer.options)["shapes"]
    if given is not None and (isinstance(given, bool) or not isinstance(given, int)):
        message = f"SignalTakesAll: signal: given {given!r}, expected None or a position"
        raise TypeError(message)
    if given is not None:
        if 0 <= given < len(shapes):
            return given
        message = f"SignalTakesAll: signal: given {given}, expected the position of one of {len(shapes)} operands"
        raise ValueError(message)
    variables = _variables(shapes, tensors)
    for found in (variables, [k for k in variables if shapes[k] == np.broadcast_shapes(*shapes)]):
        if len(found) == 1:
            return found[0]
    message = "SignalTakesAll: signal: given None, expected a position: not one operand alone is as large as the output"
    raise ValueError(message)


def _check_dim(layer: Layer, x: Array, given: Any) -> None:
    axis = dict(layer.options)["axis"]
    own = axis + 1 if axis >= 0 else axis
    if given is not None and (isinstance(given, bool) or not isinstance(given, int)):
        message = f"Softmax: dim: given {given!r}, expected None or a dimension"
        raise TypeError(message)
    if given is not None and (given - own) % x.ndim:
        message = f"Softmax: dim: given {given}, expected that of the softmax, {own}"
        raise ValueError(message)


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
