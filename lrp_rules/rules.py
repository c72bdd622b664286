"""The rules: one class each, its formula in the docstring.

Notation, as everywhere in this project: z = A(w) x + b is the output of the layer, R the relevance at its output, r
the relevance at its input, S(d) a stabilized denominator (:class:`Stabilizer`), v+ = max(v, 0), v- = min(v, 0), and
products of vectors are elementwise. A layer that is not linear has its Jacobian at x as A, and what the linearisation
leaves over as b. Shapes: R is like the output of the layer, r like its input; the first dimension holds samples.

References (cited by the classes)
    Bach et al. 2015, doi:10.1371/journal.pone.0130140. Zeiler and Fergus 2014, arXiv:1311.2901. Springenberg et al.
    2015, arXiv:1412.6806. Montavon et al. 2017, doi:10.1016/j.patcog.2016.11.008. Montavon et al. 2019,
    doi:10.1007/978-3-030-28954-6_10. Lapuschkin et al. 2019, doi:10.1038/s41467-019-08987-4. Dombrowski et al. 2019,
    arXiv:1906.07983. Andeol et al. 2021, arXiv:2106.04923.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lrp_rules.constants import number
from lrp_rules.formula import FormulaRule
from lrp_rules.hooks import Hook, LayerHook
from lrp_rules.layer import nothing
from lrp_rules.linear_map import ReLULayer, gated
from lrp_rules.parts import into, plain, whole
from lrp_rules.stabilizer import Stabilizer

if TYPE_CHECKING:
    from collections.abc import Callable

    from lrp_rules.formula import Names, Stabilizing
    from lrp_rules.layer import Layer, Matrix, Tensors


def positive(v: Tensor, out: Tensor | None = None) -> Tensor:
    """Return v+."""
    return torch.clamp_min(v, 0, out=out)


def negative(v: Tensor, out: Tensor | None = None) -> Tensor:
    """Return v-."""
    return torch.clamp_max(v, 0, out=out)


@dataclass(frozen=True)
class Increased:
    """v + g v+ or v + g v-, as a change that is known by its g: what was changed so once is not changed again."""

    g: float
    part: Callable[..., Tensor]

    def __call__(self, v: Tensor, out: Tensor | None = None) -> Tensor:
        return torch.add(v, self.part(v), alpha=self.g, out=out)


def nonnegative(x: Tensor) -> bool:
    """Whether x- is known to vanish. Asked on the CPU alone: elsewhere the answer would have to be waited for."""
    return x.is_cpu and x.numel() > 0 and x.amin().item() >= 0


def split(layer: Layer) -> tuple[Tensor, ...]:
    """Return x+ and x-, or x alone: where x- vanishes, and where both meet the same matrix whatever the rule."""
    x = layer.x
    return (x,) if layer.fixed or nonnegative(x) else (positive(x), negative(x))


def _times(v: Tensor, factor: float) -> Tensor:
    """Return v times the factor; v is not needed any more."""
    # as for a number that is no tensor, the operation rounds it, or computes with more digits than v has
    dtype = torch.float64 if v.dtype == torch.float64 else torch.float32
    return torch.mul(v, number(factor, dtype), out=into(v))


class Epsilon(FormulaRule):
    """LRP-Epsilon (Bach et al. 2015): relevance in proportion to the contributions to the output.

    Used in middle layers; ``epsilon=0`` is LRP-0, used in upper layers; a large epsilon absorbs what is weak.

        d = A(w) x + b        r = x * A(w)^T (R / S(d))

    Modules with several inputs or outputs give each input its share, x_k * J_k^T (R / S(d)).

    Parameters
    ----------
    epsilon
        Added to the denominator with its sign; or a callable d -> S(d).
    zero_params
        Name or names of parameters that are set to zero, such as 'bias'.

    Raises
    ------
    TypeError, ValueError
        If epsilon is neither a number nor callable; if it is negative or not finite.

    """

    allows_several: ClassVar[bool] = True
    uses_output: ClassVar[bool] = True
    changes_weights: ClassVar[bool] = False

    def __init__(self, epsilon: Stabilizing = 1e-6, zero_params: Names = None) -> None:
        super().__init__(epsilon, zero_params)

    def coefficients(self, layer: Layer, vectors: Tensors, R: Tensor) -> Tensors:
        return layer.pull((self.shares(R, layer.linear_outputs[0]),))

    def relevances(self, layer: Layer, R: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if len(layer.inputs) == len(R) == 1:
            return super().relevances(layer, R)
        s = tuple(R_k / self.stabilizer(d) for R_k, d in zip(R, layer.linear_outputs, strict=True))
        return tuple(x * c for x, c in zip(layer.inputs, layer.pull(s), strict=True))


class Norm(Epsilon):
    """Normalise by the output, weigh by the contribution: Epsilon for any module, also without parameters.

        d = f(x)        r = x * J^T (R / S(d)),  J the Jacobian of f at x

    For sums, poolings, normalisations, and modules with several inputs, each of which gets its share.

    Parameters
    ----------
    stabilizer
        Number or callable, as in :class:`Stabilizer`.

    """

    def __init__(self, stabilizer: Stabilizing = 1e-6) -> None:
        super().__init__(epsilon=stabilizer)


class ZPlus(FormulaRule):
    """LRP-ZPlus (Bach et al. 2015; Montavon et al. 2017): relevance to positive contributions alone.

    For convolutions below the middle of a network; r is not negative where R is not. The same as AlphaBeta(1, 0).

        d = A(w+) x+ + A(w-) x- + b+        s = R / S(d)
        r = x+ * A(w+)^T s + x- * A(w-)^T s

    Parameters
    ----------
    stabilizer
        Number or callable, as in :class:`Stabilizer`.
    zero_params
        Name or names of parameters that are set to zero, such as 'bias'.

    """

    def vectors(self, layer: Layer) -> Tensors:
        return split(layer)

    def coefficients(self, layer: Layer, vectors: Tensors, R: Tensor) -> Tensors:
        A = layer.grid((positive, negative)[: len(vectors)])
        (d,) = A @ vectors
        return A.T @ [self.shares(R, layer.plus(d, positive(layer.bias)))]


class AlphaBeta(FormulaRule):
    """LRP-AlphaBeta (Bach et al. 2015): alpha times the positive share minus beta times the negative.

    For lower layers, mostly with (1, 0) or (2, 1).

        da = A(w+) x+ + A(w-) x- + b+        sa = R / S(da)
        db = A(w-) x+ + A(w+) x- + b-        sb = R / S(db)
        r = alpha * [x+ * A(w+)^T sa + x- * A(w-)^T sa] - beta * [x+ * A(w-)^T sb + x- * A(w+)^T sb]

    Parameters
    ----------
    alpha, beta
        Not negative, with alpha - beta = 1.
    stabilizer
        Number or callable, as in :class:`Stabilizer`.
    zero_params
        Name or names of parameters that are set to zero, such as 'bias'.

    Raises
    ------
    ValueError
        If alpha or beta is negative or not finite, or if they do not differ by 1.

    """

    def __init__(
        self, alpha: float = 2.0, beta: float = 1.0, stabilizer: Stabilizing = 1e-6, zero_params: Names = None
    ) -> None:
        for name, value in (("alpha", alpha), ("beta", beta)):
            if not 0 <= value < math.inf:
                msg = f"{name} is {value!r}; expected a finite number that is not negative"
                raise ValueError(msg)
        # written in decimals, both carry an error of half a unit in the last place, and so does their difference
        if not abs(alpha - beta - 1) <= math.ulp(1.0) + math.ulp(alpha) / 2 + math.ulp(beta) / 2:
            msg = f"alpha - beta is {alpha!r} - {beta!r} = {alpha - beta!r}; expected 1, as in (2, 1) or (1, 0)"
            raise ValueError(msg)
        super().__init__(stabilizer, zero_params)
        self.alpha, self.beta = alpha, beta

    def vectors(self, layer: Layer) -> Tensors:
        return split(layer)

    def coefficients(self, layer: Layer, vectors: Tensors, R: Tensor) -> Tensors:
        n, b = len(vectors), layer.bias
        halves = ((positive, negative)[:n], (negative, positive)[:n])
        if self.beta == 0:
            A = layer.grid(halves[0])
            (da,) = A @ vectors
            return A.T @ [self.shares(R, layer.plus(da, positive(b)))]  # alpha is 1
        A = layer.grid(*halves)
        da, db = A @ vectors
        sa = self.shares(R, layer.plus(da, positive(b)))
        sb = self.shares(R, layer.plus(db, negative(b)))
        return A.T @ [_times(sa, self.alpha), _times(sb, -self.beta)]


class Gamma(FormulaRule):
    """Generalised LRP-Gamma (Montavon et al. 2019; Andeol et al. 2021): Epsilon that favours the output's sign.

    For convolutions in the middle of a network; from Epsilon at gamma = 0 towards ZPlus as gamma grows.

        where z > 0:  d = A(w + g w+) x+ + A(w + g w-) x- + (b + g b+)
                      r = x+ * A(w + g w+)^T s + x- * A(w + g w-)^T s
        where z < 0:  d = A(w + g w-) x+ + A(w + g w+) x- + (b + g b-)
                      r = x+ * A(w + g w-)^T s + x- * A(w + g w+)^T s

    with s = R / S(d) and z the real output of the layer, bias and weights in. Where z = 0, the relevance goes nowhere.

    Parameters
    ----------
    gamma
        g, finite and not negative.
    stabilizer
        Number or callable, as in :class:`Stabilizer`.
    zero_params
        Name or names of parameters that are set to zero, such as 'bias'.

    Raises
    ------
    ValueError
        If gamma is negative or not finite.

    """

    uses_output: ClassVar[bool] = True

    def __init__(self, gamma: float = 0.25, stabilizer: Stabilizing = 1e-6, zero_params: Names = None) -> None:
        if not 0 <= gamma < math.inf:
            msg = f"gamma is {gamma!r}; expected a finite number that is not negative, such as 0.25"
            raise ValueError(msg)
        super().__init__(stabilizer, zero_params)
        self.gamma = gamma

    def vectors(self, layer: Layer) -> Tensors:
        return (layer.x, layer.x.abs()) if self._is_in_two_maps(layer) else split(layer)

    def coefficients(self, layer: Layer, vectors: Tensors, R: Tensor) -> Tensors:
        if self._is_in_two_maps(layer):
            return self._in_two_maps(layer, vectors, R)
        n, b, g, z = len(vectors), layer.bias, self.gamma, layer.z
        up, down = Increased(g, positive), Increased(g, negative)
        A = layer.grid((up, down)[:n], (down, up)[:n])
        above, below = A @ vectors
        s_above = gated(self.shares(R, layer.plus(above, up(b))), z)
        s_below = gated(self.shares(R, layer.plus(below, down(b))), -z)
        return A.T @ [s_above, s_below]

    def _is_in_two_maps(self, layer: Layer) -> bool:
        # what looks at several denominators is to see all of one sign's
        return self.gamma <= 1 and layer.additive and self.stabilizes_entries

    def _in_two_maps(self, layer: Layer, vectors: Tensors, R: Tensor) -> Tensors:
        # With w+ = (w + |w|) / 2 and w- = (w - |w|) / 2, and alike for x and b, all sums above become
        #     d = (1 + g/2) (A(w) x + b) +- g/2 (A(|w|) |x| + |b|),     + where z > 0, - where z < 0, two maps in
        # place of four, the first of which the forward pass has done. d has the sign of z, so nothing cancels there.
        # In r it does: the terms that the formula leaves at x w are differences of terms (1 + g) times as large, so a
        # large gamma takes the way above.
        z, half = layer.z, self.gamma / 2
        sgn = z.sign()
        d = layer.plus(layer.matrix(torch.abs) @ vectors[1], layer.bias.abs())
        d = torch.mul(_times(d, half), sgn, out=into(d))
        d = torch.add(d, layer.linear_outputs[0], alpha=1 + half, out=into(d))
        s = self.shares(R, d)
        s = gated(s, z.abs(), into(s))
        s_abs = torch.mul(s, sgn, out=into(sgn))
        A = layer.grid((None, nothing), (nothing, torch.abs))
        return A.T @ [_times(s, 1 + half), _times(s_abs, half)]


class ZBox(FormulaRule):
    """LRP-ZBox (Montavon et al. 2017): for the first layer, when inputs such as pixels are bounded.

        d = A(w) x - A(w+) l - A(w-) h        s = R / S(d)
        r = x * A(w)^T s - l * A(w+)^T s - h * A(w-)^T s

    The bias cancels.

    Parameters
    ----------
    low, high
        l and h, the bounds of x, in its units: numbers, or tensors that broadcast to x. A tensor with fewer
        dimensions gets trailing ones; one with a longer batch is cut to the batch.
    stabilizer
        Number or callable, as in :class:`Stabilizer`.
    zero_params
        Name or names of parameters that are set to zero.

    Raises
    ------
    ValueError
        If low > high anywhere, or, when applied, if a bound does not broadcast to the input.

    """

    uses_output: ClassVar[bool] = True

    @property
    def samples_apart(self) -> bool:  # type: ignore[override]
        """Whether the bounds are the same for all samples."""
        low, high = self.low, self.high
        return (low.ndim == 0 or len(low) == 1) and (high.ndim == 0 or len(high) == 1)

    def __init__(
        self, low: float | Tensor, high: float | Tensor, stabilizer: Stabilizing = 1e-6, zero_params: Names = None
    ) -> None:
        super().__init__(stabilizer, zero_params)
        # a number keeps all its digits until it meets the input
        self.low = low if isinstance(low, Tensor) else torch.as_tensor(low, dtype=torch.float64)
        self.high = high if isinstance(high, Tensor) else torch.as_tensor(high, dtype=torch.float64)
        if self.low.ndim == 0 or self.high.ndim == 0 or self.low.shape == self.high.shape:
            self._check_order(self.low, self.high)  # bounds of different shapes meet only at the input

    def vectors(self, layer: Layer) -> Tensors:
        low, high = self._bounds(layer)
        if self.low.ndim > 0 and self.high.ndim > 0 and self.low.shape != self.high.shape:
            self._check_order(low, high)
        x = layer.x
        # with A(w) = A(w+) + A(w-), all terms of a matrix together have one sign inside the box, and nothing cancels
        return (x - low, x - high) if layer.additive else (x, -low.expand_as(x), -high.expand_as(x))

    def coefficients(self, layer: Layer, vectors: Tensors, R: Tensor) -> Tensors:
        A = layer.grid((None, positive, negative)[-len(vectors) :])
        if layer.additive and self.samples_apart and not layer.small:
            # A(w) x is in the output already, and the bounds are the same for all samples
            d = layer.linear_outputs[0] - layer.once(ZBox, lambda: (A @ self._box(layer))[0] + layer.bias)
        else:
            (d,) = A @ vectors
        return A.T @ [self.shares(R, d)]

    def _bounds(self, layer: Layer) -> tuple[Tensor, Tensor]:
        return _expand(self.low, layer, "low"), _expand(self.high, layer, "high")

    def _box(self, layer: Layer) -> Tensors:
        """Return the bounds of one sample."""
        one = layer.x[:1] if layer.batched else layer.x
        return [bound.expand_as(one) for bound in self._bounds(layer)]

    @staticmethod
    def _check_order(low: Tensor, high: Tensor) -> None:
        if bool((low > high).any()):
            msg = f"low is above high somewhere: low is {low}, high is {high}; expected the bounds of x"
            raise ValueError(msg)


def _expand(bound: Tensor, layer: Layer, name: str) -> Tensor:
    """Return a bound in a shape that broadcasts to x."""
    x = layer.x
    if bound.ndim == 0 and bound.is_cpu and x.is_cpu and not bound.requires_grad:
        return number(bound.item(), x.dtype)
    if bound.ndim == 0 and bound.is_cpu and not bound.requires_grad:
        return x.new_full((), bound.item())  # a copy to another device would be waited for
    expanded = bound.to(x)
    if 0 < bound.ndim < x.ndim:
        expanded = expanded.view(bound.shape + (1,) * (x.ndim - bound.ndim))
    elif layer.batched and bound.ndim == x.ndim and bound.shape[0] > x.shape[0]:
        expanded = expanded[: x.shape[0]]
    try:
        expanded.expand_as(x)
    except RuntimeError:
        msg = (
            f"{name} has shape {tuple(bound.shape)}, which does not broadcast to the input of {layer.module}, of shape "
            f"{tuple(x.shape)}. Give a number, or a tensor such as (1, channels, 1, 1)"
        )
        raise ValueError(msg) from None
    return expanded


class _ByWeights(FormulaRule):
    """A rule with ones as its vector, whatever the input: all samples have the same denominators."""

    samples_apart: ClassVar[bool] = False

    def matrix_and_bias(self, ones: Layer) -> tuple[Matrix, Tensor | None]:
        """Return A and the constant, of a layer whose input is ones."""
        raise NotImplementedError

    def vectors(self, layer: Layer) -> Tensors:
        return (layer.ones(),)

    def coefficients(self, layer: Layer, vectors: Tensors, R: Tensor) -> Tensors:
        A, bias = self.matrix_and_bias(layer.at(vectors[0]))
        d = A @ vectors[0] if bias is None else A @ vectors[0] + bias
        # computed once for all samples; but one's own callable may look at whole samples
        S = self.stabilizer(d if isinstance(self.stabilizer, Stabilizer) else d.expand_as(R))
        if layer.small or not isinstance(self.stabilizer, Stabilizer):
            return (layer.back(A, R / S),)
        return (layer.by_samples(lambda _layer, R, _out: layer.back(A, R / S), R),)

    def _total(self, layer: Layer, vectors: Tensors, coefficients: Tensors, out: Tensor | None) -> Tensor:
        (c,) = coefficients
        # times ones, unless there is one entry for several inputs
        alike = c.shape == layer.x.shape and whole(c)
        return c if alike else super()._total(layer, vectors, coefficients, out)


class WSquare(_ByWeights):
    """LRP-WSquare (Montavon et al. 2017): by the squared weights alone, whatever the input.

    For the first layer, when its inputs are not bounded.

        d = A(w^2) 1 + b^2        r = A(w^2)^T (R / S(d))

    The ones are padded like any input, so that borders count fewer.

    Parameters
    ----------
    stabilizer
        Number or callable, as in :class:`Stabilizer`.
    zero_params
        Name or names of parameters that are set to zero, such as 'bias'.

    """

    def matrix_and_bias(self, ones: Layer) -> tuple[Matrix, Tensor]:
        return ones.matrix(torch.square), ones.bias.square()


class Flat(_ByWeights):
    """LRP-Flat (Lapuschkin et al. 2019): evenly to all inputs that reach an output.

    For the first layers, where single inputs mean little.

        d = A(1) 1        r = A(1)^T (R / S(d))

    A module without parameters is used as it is, with ones as its input.

    Parameters
    ----------
    stabilizer
        Number or callable, as in :class:`Stabilizer`.
    zero_params
        Accepted for the sake of the API: all parameters are replaced by ones, and the bias by zero.

    """

    #: A(1) is not read from memory.
    outputs_apart: ClassVar[bool] = False

    def matrix_and_bias(self, ones: Layer) -> tuple[Matrix, None]:
        return ones.matrix_of_ones(), None


class Pass(Hook):
    """Relevance as it is, r = R: for elementwise modules whose gradient is not wanted."""

    needs_grad_input: ClassVar[bool] = False

    def backward(self, module: nn.Module, grad_input: Any, grad_output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return the relevance of the outputs."""
        return grad_output


class ReLUDeconvNet(Hook):
    """DeconvNet (Zeiler and Fergus 2014): r = max(R, 0), whatever the input of the ReLU."""

    needs_grad_input: ClassVar[bool] = False
    allows_several: ClassVar[bool] = False

    def backward(self, module: nn.Module, grad_input: Any, grad_output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return the positive part of the relevance."""
        return (positive(grad_output[0]),)


class _ByEntries(LayerHook):
    """A rule for modules whose outputs are functions of the input's entries at the same places."""

    def relevances(self, layer: Layer, R: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if R[0].shape != layer.x.shape:
            msg = (
                f"{type(self).__name__} on {layer.module}: it turns an input of shape {tuple(layer.x.shape)} into an "
                f"output of shape {tuple(R[0].shape)}; expected a module such as nn.ReLU, whose output looks like its "
                "input"
            )
            raise TypeError(msg)
        return (self.relevance(layer, R[0]),)


class ReLUGuidedBackprop(_ByEntries):
    """Guided backpropagation (Springenberg et al. 2015): r = f'(x) R where R > 0, else 0."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        R = R.to(layer.x.dtype)
        (r,) = layer.pull((R,))
        if isinstance(layer, ReLULayer):
            return F.relu(r, inplace=not plain())  # r is R or 0
        return gated(r, R)


#: R times the derivative of log(1 + exp(beta x)) / beta, in one step.
_softplus_backward = torch.ops.aten.softplus_backward.default


class ReLUBetaSmooth(_ByEntries):
    """Gradient of a softplus in place of a ReLU's (Dombrowski et al. 2019): r = sigmoid(beta_smooth * x) R.

    Makes explanations of ReLU networks differentiable in x.

    Parameters
    ----------
    beta_smooth
        Sharpness, in units of 1 / x; finite and positive. The larger, the closer to the ReLU's own gradient.

    Raises
    ------
    ValueError
        If beta_smooth is not positive or not finite.

    """

    def __init__(self, beta_smooth: float = 10.0) -> None:
        if not 0 < beta_smooth < math.inf:
            msg = f"beta_smooth is {beta_smooth!r}; expected a finite number above 0, such as 10"
            raise ValueError(msg)
        self.beta_smooth = beta_smooth

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        x = layer.x
        # torch computes in float32 at least, and refuses what it cannot hold
        beta = min(float(self.beta_smooth), torch.finfo(torch.promote_types(x.dtype, torch.float32)).max)
        # above 40, a sigmoid is 1 in every dtype, and what torch makes it of would overflow
        r: Tensor = _softplus_backward(R.to(x.dtype), x, beta, 40)
        return r
