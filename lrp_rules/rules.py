"""The rules: one class each, its formula in the docstring.

Notation, as everywhere in this project: z = A(w) x + b is the output of the layer, R the relevance at its output, r
the relevance at its input, S(d) a stabilized denominator (:class:`Stabilizer`), v+ = max(v, 0), v- = min(v, 0), and
products of vectors are elementwise. For a layer that is not linear, z = f(x), A is its Jacobian at x, and
b = f(x) - A x. Shapes: R is like the output of the layer, r like its input; the first dimension holds samples.

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

    Use it in middle layers. ``epsilon=0`` is LRP-0, for upper layers. A large epsilon absorbs weak contributions.

        d = A(w) x + b        r = x * A(w)^T (R / S(d))

    Modules with several inputs or outputs give each input its share, x_k * J_k^T (R / S(d)).

    Parameters
    ----------
    epsilon
        Number that is added to the denominator with the denominator's sign; or a callable d -> S(d).
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
    """Epsilon for any module, also one without parameters: relevance in proportion to the contributions to the output.

        d = f(x)        r = x * J^T (R / S(d)),  J the Jacobian of f at x

    Use it for sums, means and poolings. A module may have several inputs: each gets its share. Do not use it for
    normalisations such as nn.LayerNorm, nor for softmax: their outputs do not grow with their inputs, so that J x is
    about 0, and nearly all relevance vanishes. Use :class:`LayerNormRule` or Pass there, and :class:`Softmax` or
    :class:`Stop`.

    Parameters
    ----------
    stabilizer
        Number or callable, as in :class:`Stabilizer`.

    """

    def __init__(self, stabilizer: Stabilizing = 1e-6) -> None:
        super().__init__(epsilon=stabilizer)


class ZPlus(FormulaRule):
    """LRP-ZPlus (Bach et al. 2015; Montavon et al. 2017): relevance to positive contributions alone.

    Use it for convolutions in the lower half of a network. r is never negative if R is not. Same as AlphaBeta(1, 0).

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

    Use it in lower layers, mostly with (alpha, beta) = (1, 0) or (2, 1).

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
        # alpha and beta written as decimals are each off by half a unit in the last place, and so is their difference
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
    """Generalised LRP-Gamma (Montavon et al. 2019; Andeol et al. 2021): Epsilon with more weight on the output's sign.

    Use it for convolutions in the middle of a network. It is Epsilon for gamma = 0, and tends to ZPlus as gamma grows.

        where z > 0:  d = A(w + g w+) x+ + A(w + g w-) x- + (b + g b+)
                      r = x+ * A(w + g w+)^T s + x- * A(w + g w-)^T s
        where z < 0:  d = A(w + g w-) x+ + A(w + g w+) x- + (b + g b-)
                      r = x+ * A(w + g w-)^T s + x- * A(w + g w+)^T s

    with s = R / S(d). z is the real output of the layer, with its weights and its bias. Where z = 0, R goes nowhere.

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
    """LRP-ZBox (Montavon et al. 2017): for a first layer whose inputs, such as pixels, have bounds.

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
            self._check_order(self.low, self.high)  # bounds of different shapes can only be compared at the input

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
    """LRP-WSquare (Montavon et al. 2017): in proportion to the squared weights, whatever the input is.

    Use it for a first layer whose inputs have no bounds.

        d = A(w^2) 1 + b^2        r = A(w^2)^T (R / S(d))

    The ones are padded like any input, so outputs at the border count fewer.

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
    """LRP-Flat (Lapuschkin et al. 2019): the same share for all inputs that reach an output.

    Use it in first layers, where single inputs mean little.

        d = A(1) 1        r = A(1)^T (R / S(d))

    A module without parameters is used as it is, with ones as its input.

    Parameters
    ----------
    stabilizer
        Number or callable, as in :class:`Stabilizer`.
    zero_params
        Has no effect, as all weights are replaced by ones and the bias by zero. It is there for a uniform API.

    """

    def declare(self) -> Parts:
        return (Part(((one, one),)),)


class Pass(Hook):
    """Pass relevance on unchanged, r = R: for activations, whose gradient is not part of LRP."""

    needs_grad_input: ClassVar[bool] = False

    def backward(self, module: nn.Module, grad_input: Any, grad_output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return the relevance of the outputs."""
        return grad_output


class ReLUDeconvNet(Hook):
    """DeconvNet (Zeiler and Fergus 2014): r = max(R, 0), whatever the input of the ReLU is."""

    needs_grad_input: ClassVar[bool] = False
    allows_several: ClassVar[bool] = False

    def backward(self, module: nn.Module, grad_input: Any, grad_output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return the positive part of the relevance."""
        return (positive(grad_output[0]),)


class _ByEntries(LayerHook):
    """A rule for elementwise modules: each output depends on the input at the same place only."""

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
    """The gradient of a softplus instead of a ReLU (Dombrowski et al. 2019): r = sigmoid(beta_smooth * x) R.

    It makes explanations of ReLU networks differentiable in x.

    Parameters
    ----------
    beta_smooth
        Sharpness, in units of 1 / x; finite and positive. A larger value is closer to the gradient of the ReLU.

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
        # torch computes in float32 or wider, and refuses a beta that is too large for that
        beta = min(float(self.beta_smooth), torch.finfo(torch.promote_types(x.dtype, torch.float32)).max)
        # above 40 a sigmoid is 1 in every dtype; without the threshold, exp would overflow
        r: Tensor = _softplus_backward(R.to(x.dtype), x, beta, 40)
        return r
