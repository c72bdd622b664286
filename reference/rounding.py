"""How far rounding can take each formula: a bound for every entry of the relevance, from the reference's own matrices.

An implementation is judged by |got - reference| / bound. The bound is the most that rounding explains, in any order of
summation and in any of the forms named in `reference.rules`; no constant in it was chosen to make anything pass.

Notation. u is the unit roundoff, gamma(k) = k u / (1 - k u) bounds the relative error of k roundings in a row (Higham
2002, lemma 3.1). M_j = sum_tk A_t(|w|)_jk |v_tk| + |bias_j| is the sum of magnitudes behind d_j, n_j its number of
nonzero products; T is the number of terms, c the roundings of a parameter or input before it is used. An operation
whose result underflows is off by at most tiny, half the smallest subnormal number.

    d     every product is rounded once and then takes part in at most n_j additions, n_j - 1 without a constant:
              e_d = gamma(n_j + additions + c) M_j + n_j tiny
          In half precision sums are in float32, and T - 1 partial results, the constant and at last d are stored:
              e_d = (gamma32(n_j + additions) (+) gamma(c + T)) M_j + u |d|,     a (+) b = (1 + a) (1 + b) - 1
          e_d = 0 where the sum is exact in any order: all products and the constant are multiples of one power of two
          q that is no smaller than the smallest subnormal number, and M_j / q is at most 1 / u, so that every partial
          sum is a representable number.
    S     number: eps is rounded, the sum is rounded:    e_S = e_d + u eps + u (|S| + e_d + u eps)
          clip: max has Lipschitz constant 1:            e_S = max(e_d, u eps) near eps, e_d above it
          norm_scale: |rms(d') - rms(d)| <= rms(d' - d): u eps becomes eps0 rms(e_d) + gamma(m + 2 + 5) eps
          callable with Lipschitz constant L on each side of 0, intermediate results up to |S| + 2 L |d|, which is
          what the summands of a d + c come to:          e_S = L e_d + gamma(roundings) (|S| + 2 L |d| + L e_d)
          All this holds if the sign of d is decided: |d| > e_d, or e_d = 0.
    s     |R / S' - R / S| <= |R / S| e_S / (|S| - e_S), and a quotient or a product with a reciprocal rounds twice:
              e_s = |s| (q + (1 + q) gamma(2)) + tiny (1 + |R|),   q = e_S / (|S| - e_S)
          Before it goes back it may be scaled, and underflow once more: by a coefficient c, or R by it before; and
          twice where it is scaled in place of parameters, as (1 + g/2) s and g/2 s for A(w + g w+):
              e_s += tiny (1 + 1 / |S|) / |c| + 2 tiny
    r     the products, the parameters, times v, the coefficient and times it, and m_i - 1 additions in any order over
          outputs, terms and parts, m_i the number of all nonzero products for input i:
              e_r = sum |coefficient| |v| (A(|w|)^T e_s + gamma(m_i + c + 1 + 2) A(|w|)^T (|s| + e_s) + m_i tiny)
          In half precision the sum of each term is stored and then added up.

The reference is float64 and suffers the same, with the unit of float64: its own bound is added. Where a sign (of d, or
of the z that opens Gamma's gate) is undecided there is no finite bound: every input that such an output reaches gets
inf, which is *inconclusive*, and never a pass. The whole sample gets it where the result itself may not be finite,
since 0 * inf spreads: a denominator that may be zero (epsilon = 0), or an overflow.

The worst case grows with n, real errors with its root. `probable` is the same with what Higham and Mary (2019, theorem
2.4) put in place of gamma(k), exp(lambda sqrt(k) u + k u^2 / (1 - u)) - 1, wherever that is smaller: for independent
rounding errors of mean zero it holds with a probability of at least 1 - 2 exp(-lambda^2 (1 - u)^2 / 2) for each
accumulated product of k factors 1 + error; lambda is `Model.confidence`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from reference.pointwise import LIBRARY, sigmoid
from reference.precision import FLOAT32, FLOAT64, Model, model_for, probable, worst
from reference.rules import Gate, Part, Parts, Stabilize, Stabilizer, stabilizer
from reference.windows import Array

__all__ = ["Bound", "CallableStabilizer", "Model", "beta_smooth_bound", "bound", "model_for", "product_bound"]


@dataclass(frozen=True)
class CallableStabilizer:
    """A stabilizer d -> S(d) of one's own, with what `bound` must know of it.

    lipschitz   |S(d) - S(d')| <= lipschitz |d - d'| for d and d' of one sign, each entry by itself
    roundings   operations in evaluating S, on numbers up to |S(d)| + 2 lipschitz |d|
    jumps       whether S may jump where d changes its sign; if not, the constant holds across zero
    """

    function: Callable[[Array], Array]
    lipschitz: float = 1.0
    roundings: int = 4
    jumps: bool = True

    def __call__(self, d: Array) -> Array:
        """S(d)."""
        return np.asarray(self.function(d), np.float64)


@dataclass(frozen=True, eq=False)
class Bound:
    """The most that rounding explains.

    worst, probable   for each entry of r (n,); inf where nothing finite holds
    undecided         for each part, the outputs (m,) whose sign or gate rounding may change
    overflows         entries of r (n,) that may even be NaN: on the way, something may overflow or be divided by zero
    """

    worst: Array
    probable: Array
    undecided: tuple[Gate, ...]
    overflows: Gate

    @cached_property
    def inconclusive(self) -> Gate:
        """Entries of r (n,) about which nothing can be said."""
        return np.isinf(self.worst)

    def ratio(self, got: Array, expected: Array, *, probable: bool = False) -> Array:
        """|got - expected| / bound (n,): at most 1 for a correct result, 0 where inconclusive; NaN is a failure."""
        limit = self.probable if probable else self.worst
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            miss = np.abs(np.asarray(got, np.float64).ravel() - expected)
            ratio = np.where(miss == 0, 0.0, miss / limit)
        return np.where(self.inconclusive, 0.0, ratio)


def _column(rows: tuple[Model, ...], name: str) -> Array:
    return np.array([[float(getattr(row, name))] for row in rows])


class _Analysis:
    """Three analyses at once, as rows: the model's worst case, its probable case, the reference's own worst case."""

    def __init__(self, model: Model) -> None:
        rows = (model, model, FLOAT64)
        self.model = model
        self.unit, self.sum_unit = _column(rows, "unit"), _column(rows, "sum_unit")
        self.tiny, self.sum_tiny = _column(rows, "tiny"), _column(rows, "sum_tiny")
        self.stored = _column(rows, "stored")
        read = _column(rows, "input_unit")
        self.read = read * (2 + read)  # both factors of a product
        self.coarsest = _column(rows, "coarsest")
        self._known: dict[Part, tuple[Array, Array]] = {}  # both parts of Gamma ask for the denominator of its gate

    def _gamma(self, k: Array, unit: Array, *, unbiased: bool) -> Array:
        grown = worst(k, unit)
        if unbiased:
            grown[1] = probable(k[1], unit[1].item(), self.model.confidence)
        return grown

    def relative(self, k: Array | float, stores: Array | float = 0.0) -> Array:
        """gamma(k) outside of sums; `stores` more where finished sums are stored once more. Rows of (3, len(k))."""
        return self._gamma(k + stores * self.stored, self.unit, unbiased=True)

    def summed(self, sums: Array, k: float, stores: Array | float = 0.0) -> Array:
        """gamma(sums) inside a sum of products (+) gamma(k) outside (3, len(sums))."""
        if self.model.unit == self.model.sum_unit:
            return self.relative(sums + k, stores)
        inside = self._gamma(sums + 0 * self.unit, self.sum_unit, unbiased=self.model.unbiased)
        outside = self.relative(k, stores)
        return np.asarray(np.expm1(np.log1p(inside) + np.log1p(outside) + np.log1p(self.read)))

    def denominator(self, part: Part) -> tuple[Array, Array]:
        """e_d of a part (3, m), and how far d may have been off before a rounding that keeps its sign (m,)."""
        if part not in self._known:
            self._known[part] = self._denominator(part)
        return self._known[part]

    def _denominator(self, part: Part) -> tuple[Array, Array]:
        sizes, d = part.known_sizes, np.abs(part.denominator)
        magnitude, products = part.magnitude, part.products
        largest = max(np.abs(v).max(initial=0.0) for _, v in part.terms)
        constants = np.where(sizes.bias != 0, sizes.bias_terms, 0)
        additions = np.maximum(products + constants - 1, 0)
        partial = len(part.terms) - 1 + float(constants.any())
        error = self.summed(np.where(products > 0, 1, 0) + additions, sizes.roundings, partial) * magnitude
        # a changed parameter may underflow too, and is then multiplied with v; and so may what is stored
        error += self.sum_tiny * products + self.tiny * (
            (sizes.roundings > 0) * products * largest + self.stored * (partial + 1)
        )
        whole = (sizes.grain >= 2 * self.tiny) & (magnitude <= sizes.grain / self.coarsest) & (magnitude > 0)
        exact = whole | (products + constants == 0)
        error = np.where(exact, 0.0, error)
        return error + self.stored * self.unit * (d + error), error[0] + error[2]

    def stabilized(
        self, stabilize: Stabilizer | CallableStabilizer, d: Array, e_d: Array, undecided: Gate
    ) -> tuple[Array, Array, Array]:
        """S(d) (m,), its error where the sign of d is decided, and a floor under |S| that holds in any case (3, m)."""
        S = stabilize(d)
        if isinstance(stabilize, CallableStabilizer):
            moved = stabilize.lipschitz * e_d
            error = moved + self.relative(stabilize.roundings) * (
                np.abs(S) + 2 * stabilize.lipschitz * np.abs(d) + moved
            )
            error += stabilize.roundings * self.tiny
            nearest = stabilize(np.where(undecided, 0.0, d)) if stabilize.jumps else S
            return S, error, np.abs(nearest) - error - error[2]
        eps, e_eps = self._scale(stabilize, d, e_d)
        least = np.abs(d) - e_d - e_d[2]  # the reference's own d is off too
        if stabilize.clip:
            error = np.where(least > eps + e_eps, e_d, np.maximum(e_d, e_eps))
            return S, error, np.maximum(least, eps - e_eps)
        once = self.relative(1.0)
        error = e_d + e_eps + once * (np.abs(S) + e_d + e_eps)
        return S, error, (np.maximum(least, 0) + eps - e_eps) * (1 - once)

    def _scale(self, stabilize: Stabilizer, d: Array, e_d: Array) -> tuple[float, Array]:
        """The eps in use and its error (3, 1)."""
        eps = stabilize.scale(d)
        if not eps:
            return eps, np.sqrt(np.mean(e_d * e_d, 1, keepdims=True)) * stabilize.epsilon * stabilize.norm_scale
        if not stabilize.norm_scale:
            return eps, eps * self.relative(1.0) + self.tiny
        # squares, their sum, the mean, the root; eps itself and the product. Squares that underflow move the root by
        # at most sqrt(tiny)
        off = np.sqrt(np.mean(e_d * e_d, 1, keepdims=True)) + np.sqrt(self.tiny)
        return eps, stabilize.epsilon * off + (eps + stabilize.epsilon * off) * self.relative(d.size + 6.0) + self.tiny


def _number_or_known(given: Stabilize) -> Stabilizer | CallableStabilizer:
    known = stabilizer(given)
    if isinstance(known, (Stabilizer, CallableStabilizer)):
        return known
    message = (
        f"bound: given the callable {given!r} as stabilizer, expected a number, a Stabilizer or a CallableStabilizer; "
        "wrap it as CallableStabilizer(function, lipschitz), or rounding in it cannot be bounded"
    )
    raise TypeError(message)


def bound(parts: Parts, R: Array, stabilize: Stabilize, model: Model) -> Bound:
    """Return how far rounding can take `rules.relevance(parts, R, stabilize)` in the precision of the model.

    The derivation stands at the top of this file. Raises TypeError for a callable whose Lipschitz constant is unknown.
    """
    R = np.asarray(R, np.float64).ravel()
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        return _bound(parts, R, _number_or_known(stabilize), _Analysis(model))


class _Flow(NamedTuple):
    """What flows back through one part: |s| (m,) and its error (3, m), zero where undecided or without relevance."""

    s: Array
    error: Array
    active: Gate
    lost: Gate
    spoilt: bool


def _flow(part: Part, R: Array, stabilize: Stabilizer | CallableStabilizer, analysis: _Analysis) -> _Flow:
    d, huge = part.denominator, analysis.model.huge / 2
    e_d, off = analysis.denominator(part)
    open_, unsure = _gate(part, analysis)
    unsigned = (off > 0) & ~(np.abs(d) > off)
    S, e_S, floor = analysis.stabilized(stabilize, d, e_d, unsigned)
    if isinstance(stabilize, CallableStabilizer) and not stabilize.jumps:
        unsigned = np.zeros_like(unsigned)
    unsigned |= ~(np.abs(S) > e_S[0] + e_S[2])
    lost = unsure | (open_ & unsigned)

    live = open_ & ~lost & (R != 0)
    s = np.where(live, np.abs(R / S), 0.0)
    q = e_S / (np.abs(S) - e_S)
    sizes, factor = part.known_sizes, abs(part.coefficient)
    scaled = np.full_like(s, 2.0 * (sizes.roundings > 0))
    if factor and (factor < 1 or np.frexp(factor)[0] != 0.5):
        scaled += (1 + 1 / np.abs(S)) / factor
    error = s * (q + (1 + q) * analysis.relative(2.0)) + analysis.tiny * (1 + np.abs(R) + scaled)
    error = np.where(live, error, 0.0)

    # What overflows, or is divided by zero, spreads over the whole sample: 0 * inf.
    finite = (floor.min(0) > 0) & (part.magnitude <= huge)
    # Where the sign is undecided, s may be as large as R over the least |S|.
    largest = np.where(lost, np.abs(R) / floor.min(0), s + error[0])
    spoilt = not bool(finite[open_ | unsure].all() and (largest <= huge)[open_ | unsure].all())
    if sizes.roundings:
        spoilt |= not all(sizes.scale * matrix.max(initial=0.0) <= huge for matrix in sizes.matrices)
    if isinstance(stabilize, Stabilizer) and stabilize.norm_scale:
        spoilt |= not bool((d * d * (1 if analysis.model.stored else d.size) <= huge).all())
    return _Flow(s, error, (open_ | unsure) & (R != 0), lost & (R != 0), spoilt)


def _bound(parts: Parts, R: Array, stabilize: Stabilizer | CallableStabilizer, analysis: _Analysis) -> Bound:
    flows = [_flow(part, R, stabilize, analysis) for part in parts]
    n = len(parts[0].terms[0][1])
    products, received = np.zeros(n), np.zeros(n)
    carried, reached = np.zeros((3, n)), np.zeros(n, np.bool_)
    overflows = np.full(n, any(flow.spoilt for flow in flows))
    # An implementation may add up the products of all terms and parts in one sum.
    for part, flow in zip(parts, flows, strict=True):
        active = np.stack([flow.active, flow.lost]).astype(np.float32)
        for (_, v), count in zip(part.terms, part.known_sizes.counts, strict=True):
            own, strays = active @ count
            products += np.where(v != 0, own, 0.0)
            received += v != 0
            reached |= (strays > 0) & (v != 0)
    for part, flow in zip(parts, flows, strict=True):
        sizes, factor = part.known_sizes, abs(part.coefficient)
        rounds = sizes.roundings + 1 + (0.0 if np.frexp(factor)[0] == 0.5 else 2.0)
        relative = analysis.summed(products, rounds, received)
        lost_below = analysis.sum_tiny * products + analysis.tiny * (
            (sizes.roundings > 0) * products * flow.s.max(initial=0.0) + analysis.stored
        )
        for (_, v), matrix in zip(part.terms, sizes.matrices, strict=True):
            back = sizes.scale * (np.vstack([flow.s, flow.error]) @ matrix)
            size = np.abs(v)
            carried += factor * size * (back[1:] * (1 + relative) + relative * back[0] + lost_below)
            carried += analysis.tiny * (1 + factor) * ((size > 0) & (products > 0))
            overflows |= ~(back[0] * np.maximum(1, size) * max(1.0, factor) <= analysis.model.huge / 2)
    # These sums are of nonnegative numbers in float64; the last factor covers their own rounding.
    total = (carried[:2] + carried[2]) * (1 + FLOAT64.gamma(len(R) + n + 64.0))
    total[np.isnan(total)] = np.inf  # a relative error without a bound, of 0
    total[:, reached | overflows] = np.inf
    return Bound(total[0], total[1], tuple(flow.lost for flow in flows), overflows)


def _gate(part: Part, analysis: _Analysis) -> tuple[Gate, Gate]:
    """Outputs whose gate is open, and those about which rounding decides (m,)."""
    unsure = np.zeros(len(part.bias), np.bool_)
    if part.gate is None:
        return ~unsure, unsure
    opener = part.known_sizes.gate
    if opener is not None:
        _, off = analysis.denominator(opener)
        unsure = (off > 0) & ~(np.abs(opener.denominator) > off)
    return part.gate, unsure


def product_bound(size: Array, R: Array, roundings: int, model: Model) -> Bound:
    """Return the bound of a product r = f R whose factor f was rounded `roundings` times relative to `size` >= |f|.

    For ReLUGuidedBackprop f is the slope, size and roundings are those of `pointwise.Point`; Pass and ReLUDeconvNet do
    not round at all: size 0. The product is rounded once more.
    """
    analysis = _Analysis(model)
    R = np.abs(np.asarray(R, np.float64).ravel())
    error = analysis.relative(roundings + 1.0) * size.ravel() * R
    # exp overflows where the factor is below 1 / huge, and gives 0
    error = np.where(error > 0, error + analysis.tiny + R / np.array([[min(FLOAT32.huge, model.huge)]]), error)
    return Bound(error[0] + error[2], error[1] + error[2], (), np.zeros(len(R), np.bool_))


def beta_smooth_bound(x: Array, R: Array, beta: float, model: Model) -> Bound:
    """Return the bound of ReLUBetaSmooth, r = sigmoid(beta x) R.

    beta is rounded, and t = beta x, which moves sigmoid by |t| sigmoid'(t) gamma(2). What computes the gate, as
    1 / (1 + exp(-t)) or (1 + tanh(t / 2)) / 2, does so with an absolute error: the gate lies between 0 and 1, and the
    bound is in units of |R|.
    """
    t = beta * np.asarray(x, np.float64).ravel()
    return product_bound(1 + np.abs(t) * sigmoid(t) * sigmoid(-t), R, LIBRARY + 4, model)
