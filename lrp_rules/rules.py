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
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lrp_rules.bounds import Bound, Minus
from lrp_rules.formula import FormulaRule
from lrp_rules.hooks.hook import Hook, LayerHook
from lrp_rules.layers.blocks import plain
from lrp_rules.layers.known import ReLULayer, gated
from lrp_rules.parts import Part, gamma, negative, one, positive, same, squared

if TYPE_CHECKING:
    from lrp_rules.formula import Names, Stabilizing
    from lrp_rules.layers.layer import Layer
    from lrp_rules.parts import Parts


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

    def __init__(self, epsilon: Stabilizing = 1e-6, zero_params: Names = None) -> None:
        super().__init__(epsilon, zero_params)

    def declare(self) -> Parts:
        return (Part(((same, same),), bias=same),)

    def relevances(self, layer: Layer, R: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if len(layer.inputs) == len(R) == 1:
            return super().relevances(layer, R)
        s = tuple(R_k / self.stabilizer(d) for R_k, d in zip(R, layer.linear_outputs, strict=True))
        return tuple(x * c for x, c in zip(layer.inputs, layer.pull(s), strict=True))


class Norm(Epsilon):
    """Normalise by the output, weigh by the contribution: Epsilon for any module, also without parameters.

        d = f(x)        r = x * J^T (R / S(d)),  J the Jacobian of f at x

    For sums, means, poolings, and modules with several inputs, each of which gets its share. Not for normalisations
    such as nn.LayerNorm, nor for softmax: their outputs do not grow with their inputs, so that J x is about 0, and
    what they are given nearly vanishes. Use :class:`LayerNormRule` or Pass, and :class:`Softmax` or :class:`Stop`.

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

    def declare(self) -> Parts:
        return (Part(((positive, positive), (negative, negative)), bias=positive),)


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

    def declare(self) -> Parts:
        first = Part(((positive, positive), (negative, negative)), bias=positive, coefficient=self.alpha)
        second = Part(((negative, positive), (positive, negative)), bias=negative, coefficient=-self.beta)
        return (first, second) if self.beta else (first,)


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

    def __init__(self, gamma: float = 0.25, stabilizer: Stabilizing = 1e-6, zero_params: Names = None) -> None:
        if not 0 <= gamma < math.inf:
            msg = f"gamma is {gamma!r}; expected a finite number that is not negative, such as 0.25"
            raise ValueError(msg)
        super().__init__(stabilizer, zero_params)
        self.gamma = gamma

    def declare(self) -> Parts:
        return gamma(self.gamma)


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

    def __init__(
        self, low: float | Tensor, high: float | Tensor, stabilizer: Stabilizing = 1e-6, zero_params: Names = None
    ) -> None:
        super().__init__(stabilizer, zero_params)
        self.low, self.high = Bound.of(low, "low").value, Bound.of(high, "high").value
        if self.low.ndim == 0 or self.high.ndim == 0 or self.low.shape == self.high.shape:
            self._check_order(self.low, self.high)  # bounds of different shapes meet only at the input

    def declare(self) -> Parts:
        low, high = Bound(self.low, "low"), Bound(self.high, "high")
        return (Part(((same, same), (positive, Minus(low)), (negative, Minus(high)))),)

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        if self.low.ndim > 0 and self.high.ndim > 0 and self.low.shape != self.high.shape:
            self._check_order(Bound(self.low, "low").at(layer), Bound(self.high, "high").at(layer))
        return super().relevance(layer, R)

    @staticmethod
    def _check_order(low: Tensor, high: Tensor) -> None:
        if bool((low > high).any()):
            msg = f"low is above high somewhere: low is {low}, high is {high}; expected the bounds of x"
            raise ValueError(msg)


class WSquare(FormulaRule):
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

    def declare(self) -> Parts:
        return (Part(((squared, one),), bias=squared),)


class Flat(FormulaRule):
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

    def declare(self) -> Parts:
        return (Part(((one, one),)),)


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
