"""The rules, one function a formula.

A rule is a tuple of parts. Each part has one denominator and one way back,

    d = sum_t A_t v_t + bias        s = gate * R / S(d)        r = sum_parts coefficient * sum_t v_t * (A_t^T s)

and a function here says only which matrices, inputs and constants those are. `relevance` adds up.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from reference.affine import Affine, Change, Counts, negative, positive, quantum, same
from reference.pointwise import sigmoid
from reference.windows import Array

Gate = npt.NDArray[np.bool_]
Parts = tuple["Part", ...]


def sign(d: Array) -> Array:
    """Sign of d with sgn(0) = +1, for -0.0 too.

    >>> sign(np.array([-2.0, -0.0, 0.0]))
    array([-1.,  1.,  1.])
    """
    return np.where(d < 0, -1.0, 1.0)


@dataclass(frozen=True)
class Stabilizer:
    """S(d) = d + eps sgn(d), or sgn(d) max(|d|, eps) with `clip`; `norm_scale` scales eps.

    The scale is the root mean square of d, the denominator of one sample (m,), over all of it.
    """

    epsilon: float = 1e-6
    clip: bool = False
    norm_scale: bool = False

    def scale(self, d: Array) -> float:
        """The eps that is used beside this d."""
        return self.epsilon * float(np.sqrt(np.mean(d * d))) if self.norm_scale and d.size else self.epsilon

    def __call__(self, d: Array) -> Array:
        """S(d)."""
        eps = self.scale(d)
        return sign(d) * np.maximum(np.abs(d), eps) if self.clip else d + eps * sign(d)


Stabilize = float | Callable[[Array], Array]


def stabilizer(given: Stabilize) -> Callable[[Array], Array]:
    """Return d -> S(d): a number is the eps of `Stabilizer`, a callable is used as it is."""
    return given if callable(given) else Stabilizer(given)


@dataclass(frozen=True, eq=False)
class Sizes:
    """From what a denominator is added up, as far as |A_t|, |v_t| and |bias| do not tell; read by `reference.rounding`.

    matrices, counts  magnitudes A(|w|) and numbers of parameters behind each entry of each A_t
    bias, bias_terms  magnitudes that are added up to the constant, and how many
    roundings         of a changed parameter, input or constant before it is multiplied or added
    grain             power of two that divides every product and the constant, in any evaluation allowed; 0.0 for none
    gate              the part whose denominator is the z that opens the gate
    scale             factor of all these magnitudes
    """

    matrices: tuple[Array, ...]
    counts: tuple[Counts, ...]
    bias: Array
    bias_terms: int = 1
    roundings: int = 0
    grain: float = 0.0
    gate: "Part | None" = None
    scale: float = 1.0


@dataclass(frozen=True, eq=False)
class Part:
    """One denominator of a rule and what flows back through it.

    terms        pairs of a matrix A_t (m, n) and an input v_t (n,)
    bias         the constant in the denominator (m,)
    coefficient  factor of what flows back
    gate         the outputs (m,) that take part; None is all
    sizes        asked only by `reference.rounding`; None is: as |A_t| and |bias| say, parameters rounded four times
    """

    terms: tuple[tuple[Array, Array], ...]
    bias: Array
    coefficient: float = 1.0
    gate: Gate | None = None
    sizes: Callable[[], Sizes] | None = None

    @cached_property
    def contributions(self) -> Array:
        """sum_t A_t v_t (m,): what the inputs contribute to the denominator."""
        total = np.zeros(len(self.bias))
        for matrix, v in self.terms:
            total = total + matrix @ v
        return total

    @cached_property
    def denominator(self) -> Array:
        """The d = sum_t A_t v_t + bias (m,)."""
        return self.contributions + self.bias

    @cached_property
    def magnitude(self) -> Array:
        """Sum of the magnitudes from which the denominator is added up (m,)."""
        pairs = zip(self.known_sizes.matrices, self.terms, strict=True)
        total = sum((matrix @ np.abs(v) for matrix, (_, v) in pairs), self.known_sizes.bias)
        return np.asarray(self.known_sizes.scale * total)

    @cached_property
    def products(self) -> Array:
        """Number of nonzero products in that sum (m,)."""
        pairs = zip(self.known_sizes.counts, self.terms, strict=True)
        return np.asarray(sum(count @ np.asarray(v != 0, np.float32) for count, (_, v) in pairs), np.float64)

    def shares(self, R: Array, stabilize: Callable[[Array], Array]) -> Array:
        """The s = gate * R / S(d) (m,); a closed gate gives 0, whatever the denominator."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            s = R / stabilize(self.denominator)
        return s if self.gate is None else np.where(self.gate, s, 0.0)

    @cached_property
    def known_sizes(self) -> Sizes:
        """The sizes, those that follow from the terms alone where none were given."""
        if self.sizes is not None:
            return self.sizes()
        matrices = tuple(np.abs(matrix) for matrix, _ in self.terms)
        counts = tuple(np.asarray(matrix != 0, np.float32) for matrix in matrices)
        return Sizes(matrices, counts, np.abs(self.bias), roundings=4)


def relevance(parts: Parts, R: Array, stabilize: Stabilize = 1e-6) -> Array:
    """Return r (n,), the relevance of the inputs, for the relevance R (m,) of the outputs.

    Where a stabilized denominator is zero (epsilon = 0) the result is not finite, as the formula says.
    """
    R = np.asarray(R, np.float64).ravel()
    r = np.zeros(len(parts[0].terms[0][1]))
    with np.errstate(invalid="ignore", over="ignore"):
        for part in parts:
            s = part.shares(R, stabilizer(stabilize))
            for matrix, v in part.terms:
                r = r + part.coefficient * (v * (matrix.T @ s))
    return r


def _grain(layer: Affine, *inputs: Array) -> float:
    """Power of two that divides every product of a parameter and an input, and the constant."""
    parameters = layer.weight_grain
    if not parameters:
        return 0.0
    grains = [quantum(v) for v in inputs]
    return min(*(parameters * grain for grain in grains), layer.real.bias_grain) if all(grains) else 0.0


def epsilon(layer: Affine) -> Parts:
    """Epsilon: d = A x + b, r = x * A^T (R / S(d)). LRP-0 where S(d) = d. Bach et al. 2015."""

    def sizes() -> Sizes:
        # Where the bias is set to zero, the output minus the bias is as good a denominator as a sum without it.
        return Sizes(
            (layer.size(),),
            (layer.count(),),
            np.maximum(layer.offset_size(), layer.real.offset_size()),
            bias_terms=2 if layer.zero_params else 1,
            roundings=layer.layer.roundings,
            grain=_grain(layer, layer.x),
        )

    return (Part(((layer.A(), layer.x),), layer.b, sizes=sizes),)


def norm(layer: Affine) -> Parts:
    """Norm: Epsilon on the layer as it is, parameters untouched; J at x and f(x) - J x where it is not linear."""
    return epsilon(layer.real)


def _signed(layer: Affine, first: Change, second: Change) -> Part:
    """Half of a signed rule: d = A(first w) x+ + A(second w) x- + first b, and the same matrices back."""
    plus, minus = positive(layer.x), negative(layer.x)

    def sizes() -> Sizes:
        return Sizes(
            (layer.size(first), layer.size(second)),
            (layer.count(first), layer.count(second)),
            layer.offset_size(first),
            roundings=layer.layer.roundings,
            grain=_grain(layer, layer.x),
        )

    return Part(((layer.A(first), plus), (layer.A(second), minus)), layer.offset(first), sizes=sizes)


def zplus(layer: Affine) -> Parts:
    """ZPlus: d = A(w+) x+ + A(w-) x- + b+, r = x+ * A(w+)^T s + x- * A(w-)^T s. Montavon et al. 2017."""
    return (_signed(layer, positive, negative),)


def alpha_beta(layer: Affine, alpha: float = 2.0, beta: float = 1.0) -> Parts:
    """AlphaBeta: alpha times ZPlus minus beta times its mirror, db = A(w-) x+ + A(w+) x- + b-. Bach et al. 2015.

    With beta = 0 there is no second half, so that it cannot contribute 0 * inf.
    """
    first, second = _signed(layer, positive, negative), _signed(layer, negative, positive)
    halves = ((first, alpha), (second, -beta))
    return tuple(Part(half.terms, half.bias, factor, sizes=half.sizes) for half, factor in halves if factor)


def gamma(layer: Affine, gamma: float = 0.25) -> Parts:
    """Gamma: where z > 0, ZPlus with w + g w+ for w+ and w + g w- for w-; where z < 0, the two exchanged.

    z is the layer's real output, nothing set to zero; where it is exactly 0 the relevance goes nowhere (zero branch).
    Montavon et al. 2019; Andeol et al. 2021.
    """

    def up(parameter: Array) -> Array:
        return parameter + gamma * positive(parameter)

    def down(parameter: Array) -> Array:
        return parameter + gamma * negative(parameter)

    (opener,), (whole,) = norm(layer), epsilon(layer)

    def part(first: Change, second: Change, gate: Gate) -> Part:
        direct = _signed(layer, first, second)

        def sizes() -> Sizes:
            # gamma itself, times the parameter, plus the parameter; or, in the other form, gamma / 2 and 1 + gamma / 2,
            # their product with a sum, and the sum of the two. A changed parameter may underflow before its product.
            grain = min(_grain(layer, layer.x), layer.weight_grain) * min(1.0, quantum(np.array(gamma / 2)))
            if gamma > 1:
                known = direct.known_sizes
                return replace(known, roundings=known.roundings + 3, grain=grain, gate=opener)
            # Where z > 0, d = (1 + g/2) z + (g/2) (A(|w|) |x| + |b|), and minus where z < 0: nothing cancels there.
            known = whole.known_sizes
            return replace(
                known,
                matrices=known.matrices * 2,
                counts=known.counts * 2,
                roundings=known.roundings + 4,
                grain=grain,
                gate=opener,
                scale=1 + gamma,
            )

        return Part(direct.terms, direct.bias, gate=gate, sizes=sizes)

    return part(up, down, layer.z > 0), part(down, up, layer.z < 0)


def box(bound: float | Array, shape: tuple[int, ...]) -> Array:
    """Return a bound of ZBox for every input (n,): a number, or an array that gets trailing ones and is broadcast."""
    given = np.asarray(bound, np.float64)
    trailing = (1,) * max(0, len(shape) - given.ndim)
    try:
        return np.broadcast_to(given.reshape(*given.shape, *trailing), shape).ravel()
    except ValueError:
        message = f"zbox: given a bound of shape {given.shape}, expected one that broadcasts to the sample's {shape}"
        raise ValueError(message) from None


def zbox(layer: Affine, low: float | Array, high: float | Array) -> Parts:
    """ZBox: d = A(w) x - A(w+) l - A(w-) h, r = x * A(w)^T s - l * A(w+)^T s - h * A(w-)^T s. Montavon et al. 2017.

    low and high are bounds of one sample: numbers, or arrays that get trailing ones and are broadcast to its shape.
    """
    shape = layer.layer.input_shape
    low, high = box(low, shape), box(high, shape)
    changes = (same, positive, negative)

    def sizes() -> Sizes:
        return Sizes(
            tuple(layer.size(change) for change in changes),
            tuple(layer.count(change) for change in changes),
            # The bias cancels, b - b+ - b- = 0, and an implementation may leave that to the arithmetic.
            2 * layer.offset_size(),
            bias_terms=3,
            # the bounds themselves; x - l and x - h, where those are the inputs of w+ and w-
            roundings=layer.layer.roundings + 2,
            grain=_grain(layer, layer.x, low, high),
        )

    inputs = (layer.x, -low, -high)
    terms = tuple((layer.A(change), v) for change, v in zip(changes, inputs, strict=True))
    return (Part(terms, np.zeros(len(terms[0][0])), sizes=sizes),)


def wsquare(layer: Affine) -> Parts:
    """WSquare: d = A(w^2) 1 + b^2, r = A(w^2)^T (R / S(d)); without parameters: at ones. Montavon et al. 2017."""
    ones = layer.at(np.ones_like(layer.x))

    def sizes() -> Sizes:
        grain = min(ones.weight_grain, ones.real.bias_grain)
        # w^2 as a product is rounded once, as a power in the library twice; b^2 doubles what b was off before
        return Sizes(
            (ones.size(np.square),),
            (ones.count(np.square),),
            ones.offset_size(np.square),
            roundings=2 * layer.layer.roundings + 2,
            grain=grain * grain,
        )

    return (Part(((ones.A(np.square), ones.x),), ones.offset(np.square), sizes=sizes),)


def flat(layer: Affine) -> Parts:
    """Flat: d = A(1) 1 without bias, r = A(1)^T (R / S(d)); without parameters: at ones. Lapuschkin et al. 2019."""
    ones = layer.at(np.ones_like(layer.x))

    def sizes() -> Sizes:
        size = ones.size(np.ones_like)
        weight = 1.0 if layer.weight is not None else ones.weight_grain
        grain = 0.0 if layer.layer.roundings else weight
        return Sizes((size,), (ones.count(np.ones_like),), np.zeros(len(size)), 1, layer.layer.roundings, grain)

    matrix = ones.A(np.ones_like)
    return (Part(((matrix, ones.x),), np.zeros(len(matrix)), sizes=sizes),)


def pass_(R: Array) -> Array:
    """Pass: r = R."""
    return np.array(R, np.float64)


def relu_deconvnet(R: Array) -> Array:
    """ReLUDeconvNet: r = max(R, 0). Zeiler and Fergus 2014."""
    return np.maximum(R, 0.0)


def relu_guided(slope: Array, R: Array) -> Array:
    """ReLUGuidedBackprop: r = f'(x) R where R > 0, else 0; slope is f'(x). Springenberg et al. 2015."""
    return np.where(R > 0, slope * R, 0.0)


def relu_beta_smooth(x: Array, R: Array, beta: float = 10.0) -> Array:
    """ReLUBetaSmooth: r = sigmoid(beta x) R. Dombrowski et al. 2019."""
    return sigmoid(beta * np.asarray(x, np.float64)) * R
