"""The rules for what lies between the layers of a network: products, gates, attention, normalisations.

Like those of :mod:`lrp_rules.rules`, they are registered on modules; each says which operation its module is to be.
Tensors that need no gradient are constants, a part of what the module is, as for Norm: only the others get relevance.

References (cited by the classes)
    Achtibat et al. 2024 (AttnLRP), arXiv:2402.05602. Ali et al. 2022 (CP-LRP), arXiv:2202.07304. Arras et al. 2017,
    doi:10.18653/v1/W17-5221.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from lrp_rules.errors import see
from lrp_rules.hooks.hook import Hook, LayerHook
from lrp_rules.layers.blocks import stands_for_many
from lrp_rules.layers.normalization import NormalizationLayer, added_to_variance, is_affine, is_normalization
from lrp_rules.layers.numbers import agree
from lrp_rules.rules import Epsilon, Norm

if TYPE_CHECKING:
    from lrp_rules.formula import Names, Stabilizing
    from lrp_rules.layers.layer import Layer

    Tensors = tuple[Tensor, ...]


class _Factor(NamedTuple):
    """What a rule has to know of a factor of a product."""

    shape: torch.Size
    needs_grad: bool

    def share(self, R: Tensor) -> Tensor:
        """Return relevance of the output as that of the factor: summed where the factor was broadcast."""
        leading = R.ndim - len(self.shape)
        repeated = [
            dim for dim in range(R.ndim) if dim < leading or (self.shape[dim - leading] == 1 and R.shape[dim] != 1)
        ]
        return R.sum(repeated).reshape(self.shape) if repeated else R


class _ProductRule(Hook):
    """A rule for elementwise products: it looks at shapes, and at no number."""

    needs_grad_input: ClassVar[bool] = False

    def forward(self, module: nn.Module, input: Tensors, output: Tensors) -> None:
        """Note the factors of one call.

        Raises
        ------
        ValueError
            If the output is not like a product of the inputs.

        """
        shapes = [tuple(x.shape) for x in input]
        outputs = [tuple(z.shape) for z in output]
        try:  # a constant factor may be larger than these
            fits = len(outputs) == 1 and tuple(torch.broadcast_shapes(*shapes, outputs[0])) == outputs[0]
        except RuntimeError:  # they do not broadcast
            fits = False
        if not fits:
            msg = (
                f"{type(self).__name__} on {module}: inputs of shapes {shapes} and outputs of "
                f"{outputs}; expected an elementwise product, as large as its factors "
                f"together. Use Bilinear on matrix products{see('operations-that-a-rule-is-not-for')}"
            )
            raise ValueError(msg)
        self.factors = [_Factor(x.shape, x.requires_grad) for x in input]


class Uniform(_ProductRule):
    """The uniform rule for products (Achtibat et al. 2024, proposition 3.2): the same share to each of n factors.

        r_k = R / n, summed over the dimensions in which factor k was broadcast

    For products of two signals, such as the gated units of a transformer's feed-forward part, in AttnLRP. n counts
    the factors that require a gradient: a product by constants is linear, and all relevance goes to the other factor.
    Nothing is lost. The module is an elementwise product, such as ``forward(a, b): return a * b``.

    Raises
    ------
    ValueError
        When the module is called, if its output is not as large as its inputs together.

    """

    def backward(self, module: nn.Module, grad_input: Any, grad_output: Tensors) -> list[Tensor]:
        """Return the share of each factor; nobody asks for those of constants."""
        part = grad_output[0] / sum(factor.needs_grad for factor in self.factors)
        return [factor.share(part) for factor in self.factors]


class SignalTakesAll(_ProductRule):
    """A gate lets relevance pass (Arras et al. 2017, section 3.1): all to the signal, none to its gates.

        r_signal = R, summed over the dimensions in which the signal was broadcast;        r_gate = 0

    For the products of LSTM and GRU, and for gates such as those of squeeze-and-excitation. The module is an
    elementwise product, such as ``forward(signal, gate): return signal * gate``.

    Parameters
    ----------
    signal
        Which of the module's floating-point tensors is the signal, counted from 0. If it is a constant, the relevance
        is the constant's. None: the only one that requires a gradient; else the only one that is as large as the
        output, its gates being broadcast.

    Raises
    ------
    TypeError, ValueError
        If signal is not a number from 0; when the module is called, if there is no such tensor, if None does not
        decide, or if the output is not as large as the inputs together.

    """

    def __init__(self, signal: int | None = None) -> None:
        if signal is not None and (isinstance(signal, bool) or not isinstance(signal, int)):
            msg = f"signal is {signal!r}, a {type(signal).__name__}; expected None, or the position of the signal, as 0"
            raise TypeError(msg)
        if signal is not None and signal < 0:
            msg = f"signal is {signal!r}; expected None, or the position of the signal, counted from 0"
            raise ValueError(msg)
        self.signal = signal

    def forward(self, module: nn.Module, input: Tensors, output: Tensors) -> None:
        """Note the factors of one call, and which is the signal."""
        super().forward(module, input, output)
        self.signal = self._signal(module, output[0].shape)

    def backward(self, module: nn.Module, grad_input: Any, grad_output: Tensors) -> list[Tensor]:
        """Return all for the signal, and zeros for its gates."""
        (R,) = grad_output
        return [
            factor.share(R) if place == self.signal else R.new_zeros(factor.shape)
            for place, factor in enumerate(self.factors)
        ]

    def _signal(self, module: nn.Module, whole: torch.Size) -> int:
        given = [f"{tuple(f.shape)}{'' if f.needs_grad else ' (a constant)'}" for f in self.factors]
        called = f"{type(self).__name__} on {module}: it was called with tensors of shapes {', '.join(given)}"
        if self.signal is not None:
            if self.signal >= len(self.factors):
                msg = f"{called}; expected one at position {self.signal}, which is to be the signal. Count from 0"
                raise ValueError(msg)
            return self.signal
        wanted = [place for place, factor in enumerate(self.factors) if factor.needs_grad]
        for found in (wanted, [place for place in wanted if self.factors[place].shape == whole]):
            if len(found) == 1:
                return found[0]
        msg = (
            f"{called}; expected one signal, as large as the output, and gates that are broadcast to it. Say which is "
            "the signal: SignalTakesAll(signal=0) takes the first, and Uniform() gives each the same, as AttnLRP does. "
            "For a function, give the rule to torch.mul, as in CPLRP(layer_map={torch.mul: Uniform()})"
            f"{see('operations-that-a-rule-is-not-for')}"
        )
        raise ValueError(msg)


class Bilinear(Norm):
    """Epsilon, then the uniform rule (Achtibat et al. 2024, proposition 3.3): for matrix products of two signals.

        O = A V        r_A = A * ((R / S(2 O)) V^T)        r_V = V * (A^T (R / S(2 O)))

    For both products of attention, in AttnLRP. In general, for a module that is linear in each of n inputs by itself,
    such as ``torch.matmul``, ``torch.bmm``, ``torch.einsum`` or a product:

        r_k = x_k * J_k^T (R / S(n O)),  J_k the Jacobian of O by x_k

    n counts the inputs that require a gradient: where one factor is a constant, this is Epsilon.

    Parameters
    ----------
    stabilizer
        Number or callable, as in :class:`Stabilizer`, of the denominator n O.

    Raises
    ------
    ValueError
        When relevance is propagated, if the module is not linear in each of its inputs.

    """

    def relevances(self, layer: Layer, R: Tensors) -> Tensors:
        if len(R) != 1:
            msg = f"{type(self).__name__} on {layer.module}: it gave {len(R)} tensors; expected one product"
            raise TypeError(msg)
        z = layer.linear_outputs[0]
        s = R[0] / self.stabilizer(len(layer.inputs) * z)
        r = tuple(x * c for x, c in zip(layer.inputs, layer.pull((s,)), strict=True))
        self._check_linear(layer, r, s * z)
        return r

    def _check_linear(self, layer: Layer, r: Tensors, flow: Tensor) -> None:
        """Refuse a module in which the products of an input do not add up to the output."""
        if "bilinear" in layer.known_right or stands_for_many() or flow.is_meta:
            return
        with torch.no_grad():
            for place, share in enumerate(r):
                difference = (share.sum() - flow.sum()).abs()
                room = math.sqrt(torch.finfo(share.dtype).eps) * (share.abs().sum() + flow.abs().sum())
                if not bool((difference <= room) | ~difference.isfinite()):
                    msg = (
                        f"{type(self).__name__} on {layer.module}: its output is not linear in input {place} of "
                        f"{len(r)}; expected a product of its inputs, such as torch.matmul(a, b), without anything "
                        "added. Put the rule on a module that only multiplies, and Norm on sums"
                        f"{see('operations-that-a-rule-is-not-for')}"
                    )
                    raise ValueError(msg)
        layer.known_right.add("bilinear")


class Softmax(LayerHook):
    """The rule for softmax s = softmax(x) (Achtibat et al. 2024, proposition 3.1): a Taylor expansion at x.

        r = x * (R - s * sum R),  the sum over the dimension of the softmax

    For the weights of attention, in AttnLRP. It does not conserve: the constant term of the expansion, s - J x for
    each output, keeps its share, as a bias does. Where x is -inf, as under a mask, r is 0.

    Parameters
    ----------
    dim
        The dimension of the softmax. None: the attribute ``dim`` of the module, as in ``nn.Softmax(dim=-1)``.

    Raises
    ------
    TypeError, ValueError
        If dim is not a number; when relevance is propagated, if the module has no ``dim`` and none was given, or if
        its output is not the softmax of its input over that dimension.

    """

    def __init__(self, dim: int | None = None) -> None:
        if dim is not None and (isinstance(dim, bool) or not isinstance(dim, int)):
            msg = f"dim is {dim!r}, a {type(dim).__name__}; expected None, or a dimension such as -1"
            raise TypeError(msg)
        self.dim = dim

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        x, s = layer.x, layer.z
        dim = self._dim(layer)
        if "softmax" not in layer.known_right and not stands_for_many():
            if not -x.ndim <= dim < x.ndim or not agree(torch.softmax(x, dim), s):
                msg = (
                    f"{type(self).__name__} on {layer.module}: its output is not the softmax of its input, of shape "
                    f"{tuple(x.shape)}, over dimension {dim}; expected nn.Softmax, or a module like it. Give the "
                    "dimension as Softmax(dim=...), and take masks and scales out of the module"
                    f"{see('operations-that-a-rule-is-not-for')}"
                )
                raise ValueError(msg)
            layer.known_right.add("softmax")
        x = x.masked_fill(x == -math.inf, 0)  # what is masked is no signal, and 0 * inf no number
        return x * (R - s * R.sum(dim, keepdim=True))

    def _dim(self, layer: Layer) -> int:
        if self.dim is not None:
            return self.dim
        module = layer.module
        if isinstance(module, nn.Softmax2d):
            return -3
        dim = getattr(module, "dim", None)
        if isinstance(dim, int):
            return dim
        if isinstance(module, nn.Softmax):
            return 0 if layer.x.ndim in {0, 1, 3} else 1  # as torch chooses, with a warning
        msg = (
            f"{type(self).__name__} on {module}: it has no attribute `dim`, and the rule was given none; expected the "
            f"dimension of the softmax. Use Softmax(dim=-1) for the last one{see('operations-that-a-rule-is-not-for')}"
        )
        raise ValueError(msg)


class Stop(Hook):
    """No relevance passes, r = 0: what comes out is taken for a constant.

    For the softmax of attention in CP-LRP (Ali et al. 2022, section 4.1), with Norm on the product of its weights and
    the values, which gives the values all relevance. Any module.
    """

    needs_grad_input: ClassVar[bool] = False
    is_constant: ClassVar[bool] = True

    def forward(self, module: nn.Module, input: Tensors, output: Tensors) -> None:
        """Note what zeros are to look like."""
        self.like = [(x.shape, x.dtype, x.device) for x in input]

    def backward(self, module: nn.Module, grad_input: Any, grad_output: Tensors) -> list[Tensor]:
        """Return zeros."""
        return [grad_output[0].new_zeros(shape, dtype=dtype, device=device) for shape, dtype, device in self.like]


class LayerNormRule(Epsilon):
    """The rule for normalisations (Ali et al. 2022, section 4.2): Epsilon, the deviation being a constant.

        z = A x + b,  A = g / sd * (1 - mean)        r = x * A^T (R / S(z))

    with g and b the weight and bias of the module, and sd the root of the variance plus eps. nn.RMSNorm has no mean to
    take away. For nn.LayerNorm, nn.RMSNorm, nn.GroupNorm and nn.InstanceNorm1d, 2d and 3d. Under Norm, Epsilon or the
    gradient, a normalisation keeps nearly all relevance for itself: it does not grow with its input, so that J x is
    about 0.

    Parameters
    ----------
    stabilizer
        Number or callable, as in :class:`Stabilizer`.
    zero_params
        Name or names of parameters that are set to zero, such as 'bias'.

    Raises
    ------
    TypeError
        When a module of another kind is called.

    """

    allows_several: ClassVar[bool] = False

    def __init__(self, stabilizer: Stabilizing = 1e-6, zero_params: Names = None) -> None:
        super().__init__(stabilizer, zero_params)

    def forward(self, module: nn.Module, input: Tensors, output: Tensors) -> None:
        """Note what one call normalises by.

        Raises
        ------
        TypeError
            If the module is none that is known.

        """
        if not is_normalization(module):
            msg = (
                f"{type(self).__name__} on {module}, a {type(module).__name__}; expected nn.LayerNorm, nn.RMSNorm, "
                "nn.GroupNorm or nn.InstanceNorm1d, 2d or 3d, with torch's own forward. Use Pass on other "
                f"normalisations, and Epsilon on a batch norm{see('operations-that-a-rule-is-not-for')}"
            )
            raise TypeError(msg)
        self.added = None if is_affine(module) else added_to_variance(module, input[0])

    def relevances(self, layer: Layer, R: Tensors) -> Tensors:
        # by statistics that were learned, it is affine as it is
        seen = layer if self.added is None else NormalizationLayer.of(layer, self.added)
        return super().relevances(seen, R)
