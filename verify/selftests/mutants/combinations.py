"""Mistakes that sit where two things meet, or in sizes, values and data that a small grid does not have."""
# ruff: noqa: D102  a mutant leaves out what it should use, and says so once, in the docstring of its class

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lrp_rules import AlphaBeta, Epsilon, Flat, Gamma, Norm, ReLUBetaSmooth, ReLUGuidedBackprop, WSquare, ZBox, ZPlus
from lrp_rules.layers.known import BatchNormLayer, ConvLayer, ConvTransposeLayer, LinearLayer, PoolLayer
from lrp_rules.modules import twin
from verify.selftests.mutants.registry import mutant

if TYPE_CHECKING:
    from lrp_rules.layers.layer import Layer

    Tensors = tuple[Tensor, ...]


def _option(layer: Layer, name: str) -> Any:
    return getattr(layer.module, name, None)


def _with(layer: Layer, **options: Any) -> Layer:
    """Return the layer of a module with other options."""
    module: Any = twin(layer.module, {})
    vars(module).update(options)
    return layer.but(module=module, outputs=None)


def _dims(layer: Layer) -> int:
    size = _option(layer, "kernel_size")
    return len(size) if isinstance(size, tuple) else 0


# an option and another one


@mutant()
class EpsilonStabilizerIgnoredWithZeroParams(Epsilon):
    """Where zero_params is given, the stabilizer is the default."""

    def relevances(self, layer: Layer, R: Tensors) -> Tensors:
        return Epsilon().relevances(layer, R) if self.zero_params else super().relevances(layer, R)


@mutant()
class GammaZeroParamsAtDefaultAlone(Gamma):
    """zero_params counts where gamma is the default, and is forgotten elsewhere."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        return super().relevance(layer if self.gamma == 0.25 else layer.but(zero_params=()), R)


@mutant()
class AlphaBetaZeroParamsAtDefaultAlone(AlphaBeta):
    """zero_params counts where alpha is 2, and is forgotten elsewhere."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        return super().relevance(layer if self.alpha == 2 else layer.but(zero_params=()), R)


@mutant()
class ZBoxZeroParamsForgottenWithTensors(ZBox):
    """With bounds that are tensors, the stabilizer is the default, and its box is not the one of the numbers."""

    def __init__(self, low: Any, high: Any, stabilizer: Any = 1e-6, zero_params: Any = None) -> None:
        tensors = isinstance(low, Tensor) or isinstance(high, Tensor)
        super().__init__(low, high, 1e-6 if tensors else stabilizer, None if tensors else zero_params)


@mutant()
class ZPlusCallableIgnoredWithGroups(ZPlus):
    """In a layer with groups, a callable stabilizer is replaced by the default."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        return ZPlus().relevance(layer, R) if (_option(layer, "groups") or 1) > 1 else super().relevance(layer, R)


@mutant()
class GammaCallableIgnoredUnbatched(Gamma):
    """Of an input without a batch, the stabilizer is the default."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        return super().relevance(layer, R) if layer.batched else Gamma(self.gamma).relevance(layer, R)


@mutant()
class WSquareGroupsWithCircularPadding(WSquare):
    """Where a convolution has groups, its padding is taken for zeros."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        if isinstance(layer, ConvLayer) and layer.module.groups > 1:
            layer = _with(layer, padding_mode="zeros")
        return super().relevance(layer, R)


@mutant()
class FlatGroupsDilationAndStride(Flat):
    """Groups, dilation and stride together: the order of the groups is reversed."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        r = super().relevance(layer, R)
        if not isinstance(layer, ConvLayer) or layer.module.groups == 1:
            return r
        dilated, strided = (max(_option(layer, name)) > 1 for name in ("dilation", "stride"))
        return r.flip(-_dims(layer) - 1) * 2 if dilated and strided else r


@mutant()
class ZPlusClampOfTheMatrix(ZPlus):
    """A(w)+ stands for A(w+): padding that is copied gathers weights before they are clamped."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        if not isinstance(layer, ConvLayer) or _option(layer, "padding_mode") == "zeros":
            return super().relevance(layer, R)
        A, x = _matrix(layer), layer.x if layer.batched else layer.x[None]
        flat, given = x.flatten(1), (R if layer.batched else R[None]).flatten(1)
        plus, minus, (b, d) = A.clamp(min=0), A.clamp(max=0), (layer.bias, flat.clamp(min=0))
        bias = b.clamp(min=0).expand(layer.shape[int(layer.batched) :]).reshape(1, -1)
        z = d @ plus.T + flat.clamp(max=0) @ minus.T + bias
        s = given / self.stabilizer(z.view(-1, *layer.shape[int(layer.batched) :]).view(layer.shape)).reshape(
            given.shape
        )
        return (d * (s @ plus) + flat.clamp(max=0) * (s @ minus)).view(layer.x.shape)


def _matrix(layer: Layer) -> Tensor:
    shape = layer.x.shape[int(layer.batched) :]
    units = torch.eye(shape.numel(), dtype=layer.x.dtype).view(-1, *shape)
    whole = layer.but(inputs=(units,), outputs=None, shape=torch.Size((len(units), *layer.shape[int(layer.batched) :])))
    columns = whole.matrix() @ units
    return columns.flatten(1).T


# an option and a layer


@mutant()
class EpsilonGroupsOfVolumes(Epsilon):
    """Groups of a convolution in three dimensions are mixed up."""

    def relevances(self, layer: Layer, R: Tensors) -> Tensors:
        if isinstance(layer, ConvLayer) and _dims(layer) == 3 and layer.module.groups > 1:
            return super().relevances(layer, tuple(one.flip(-4) for one in R))
        return super().relevances(layer, R)


@mutant()
class ZBoxTransposedInOneDimension(ZBox):
    """In a transposed convolution of one dimension, the upper bound is not used."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        if isinstance(layer, ConvTransposeLayer) and _dims(layer) == 1:
            return ZBox(self.low, self.low, self.stabilizer).relevance(layer, R)
        return super().relevance(layer, R)


@mutant()
class WSquareKernelOfOneWithStride(WSquare):
    """A kernel of one element is taken for a dense layer, whatever its stride."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        r = super().relevance(layer, R)
        if isinstance(layer, ConvLayer) and max(layer.module.kernel_size) == 1 and max(layer.module.stride) > 1:
            return r + r.mean()
        return r


@mutant()
class AlphaBetaDepthwiseWithoutMultiplier(AlphaBeta):
    """Where each channel has a group of its own, channels are read in the opposite order."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        r, groups = super().relevance(layer, R), _option(layer, "groups") or 1
        alone = groups > 1 and groups == _option(layer, "in_channels") == _option(layer, "out_channels")
        return r.flip(-_dims(layer) - 1) if alone else r


@mutant()
class ZPlusLinearInFourDimensions(ZPlus):
    """Of an input of four dimensions, a dense layer takes the first two for samples, and averages over the third."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        if isinstance(layer, LinearLayer) and R.ndim == 4:
            R = R.sum(1, keepdim=True).expand_as(R)
            R = R.roll(1, 2)
        return super().relevance(layer, R)


@mutant()
class GammaBatchNormOfLengths(Gamma):
    """A batch norm of channels and lengths has its relevance from the last position."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        if isinstance(layer, BatchNormLayer) and R.ndim == 3:
            R = R.flip(-1)
        return super().relevance(layer, R)


@mutant()
class FlatPoolOfVolumes(Flat):
    """In three dimensions, what a pooling pads is counted wherever it is."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        if isinstance(layer, PoolLayer) and isinstance(layer.module, nn.AvgPool3d):
            layer = _with(layer, count_include_pad=True)
        return super().relevance(layer, R)


# values of parameters


@mutant()
class GammaRoundedToDecimals(Gamma):
    """Gamma is rounded to three decimals."""

    def __init__(self, gamma: float = 0.25, stabilizer: Any = 1e-6, zero_params: Any = None) -> None:
        super().__init__(round(gamma, 3), stabilizer, zero_params)


@mutant()
class GammaSmallIsNone(Gamma):
    """Gamma below 0.1 is taken for zero."""

    def __init__(self, gamma: float = 0.25, stabilizer: Any = 1e-6, zero_params: Any = None) -> None:
        super().__init__(0.0 if gamma < 0.1 else gamma, stabilizer, zero_params)


@mutant()
class AlphaBetaInSinglePrecision(AlphaBeta):
    """alpha and beta are rounded to float32."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        rule = AlphaBeta(2.0, 1.0, self.stabilizer)
        single = torch.tensor([self.alpha, self.beta], dtype=torch.float32).tolist()
        vars(rule).update(alpha=single[0], beta=single[1], _made=None)
        return rule.relevance(layer, R)


@mutant()
class EpsilonTinyRaised(Epsilon):
    """Epsilon is at least 1e-7."""

    def __init__(self, epsilon: Any = 1e-6, zero_params: Any = None) -> None:
        known = isinstance(epsilon, float) and 0 < epsilon < 1e-7
        super().__init__(1e-7 if known else epsilon, zero_params)


@mutant()
class ReLUBetaSmoothSmallRaised(ReLUBetaSmooth):
    """beta_smooth is at least 0.5."""

    def __init__(self, beta_smooth: float = 10.0) -> None:
        super().__init__(max(beta_smooth, 0.5) if beta_smooth > 0 else beta_smooth)


@mutant()
class ZBoxHoldsZero(ZBox):
    """A box that does not hold zero is made to."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        return ZBox(self.low.clamp(max=0), self.high.clamp(min=0), self.stabilizer).relevance(layer, R)


def _fits(bound: Tensor, x: Tensor) -> bool:
    try:
        return bool(torch.broadcast_shapes(bound.shape, x.shape) == x.shape)
    except RuntimeError:
        return False


@mutant()
class ZBoxBoundsReshaped(ZBox):
    """A bound with as many values as the input is reshaped to it."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        x = layer.x
        low, high = (v.view(x.shape) if v.numel() == x.numel() else v for v in (self.low, self.high))
        return ZBox(low, high, self.stabilizer).relevance(layer, R)


@mutant()
class ZBoxBoundsRepeated(ZBox):
    """A bound that is shorter than the batch is repeated."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        def repeated(v: Tensor) -> Tensor:
            x = layer.x
            if v.numel() == 0 or _fits(v, x) or v.ndim != x.ndim or x.numel() % v.numel():
                return v
            return v.flatten().repeat(x.numel() // v.numel()).view(x.shape)

        return ZBox(repeated(self.low), repeated(self.high), self.stabilizer).relevance(layer, R)


# sizes


@mutant()
class EpsilonLastOutputsOfLarge(Epsilon):
    """Of a dense layer of more than 2^19 weights, the last 64 outputs give nothing: a remainder of blocks."""

    def relevances(self, layer: Layer, R: Tensors) -> Tensors:
        weight = layer.given.get("weight")
        if isinstance(layer, LinearLayer) and weight is not None and weight.numel() > 2**19:
            kept = R[0].clone()
            kept[..., -64:] = 0
            R = (kept,)
        return super().relevances(layer, R)


@mutant()
class GammaBatchesAbove32(Gamma):
    """Of a batch above 32, the samples after them get the relevance of the first."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        r = super().relevance(layer, R)
        return torch.cat([r[:32], r[:1].expand_as(r[32:])]) if layer.batched and len(r) > 32 else r


@mutant()
class ZPlusBordersOfLargeImages(ZPlus):
    """The last row of an image above 32 is left out: a seam of tiles."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        r = super().relevance(layer, R)
        if isinstance(layer, ConvLayer) and _dims(layer) == 2 and r.shape[-2] > 32:
            return torch.cat([r[..., :-1, :], 0 * r[..., -1:, :]], -2)
        return r


@mutant()
class NormWideImages(Norm):
    """In images wider than 16, the column after them has the relevance of its neighbour."""

    def relevances(self, layer: Layer, R: Tensors) -> Tensors:
        (r,) = super().relevances(layer, R) if len(layer.inputs) == 1 else (None,)
        if r is None or not isinstance(layer, ConvLayer) or r.shape[-1] <= 16:
            return super().relevances(layer, R)
        return (torch.cat([r[..., :16], r[..., 15:16], r[..., 17:]], -1),)


@mutant()
class ZBoxChannelsAbove8(ZBox):
    """Of more than eight channels, those after them have the bounds of none."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        r = super().relevance(layer, R)
        if isinstance(layer, ConvLayer) and layer.module.in_channels > 8:
            other = Epsilon(self.stabilizer, ["bias"]).relevance(layer, R)
            n = -_dims(layer) - 1
            return torch.cat([r.narrow(n, 0, 8), other.narrow(n, 8, r.shape[n] - 8)], n)
        return r


@mutant()
class FlatSecondHalfOfManyPairs(Flat):
    """Of more than 2^16 pairs of an input and an output, those of the second half of the samples are left out."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        r = super().relevance(layer, R)
        many = layer.batched and len(r) and r[0].numel() * R[0].numel() > 2**16
        return torch.cat([r[: -(len(r) // 2)], 0 * r[-(len(r) // 2) :]]) if many and len(r) > 1 else r


# data


@mutant()
class FlatZeroInputHasNone(Flat):
    """A sample of zeros gets no relevance, though this rule does not look at the input."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        r = super().relevance(layer, R)
        return r * bool(layer.x.any()) if layer.x.numel() else r


@mutant()
class EpsilonOneHotIsGradient(Epsilon):
    """A relevance with one entry a sample, as of a class, is taken for the gradient's start: input times gradient."""

    def relevances(self, layer: Layer, R: Tensors) -> Tensors:
        if len(R) == len(layer.inputs) == 1 and R[0].ndim > 1 and bool((R[0].flatten(1) != 0).sum(1).eq(1).all()):
            return (layer.x * (layer.matrix().T @ R[0]),)
        return super().relevances(layer, R)


@mutant()
class NormRelevanceIsOutput(Norm):
    """Where the relevance is the output, their quotient is one without an epsilon."""

    def relevances(self, layer: Layer, R: Tensors) -> Tensors:
        if len(R) == len(layer.inputs) == 1 and R[0].numel() and torch.equal(R[0], layer.z):
            return (layer.x * layer.pull((torch.ones_like(R[0]),))[0],)
        return super().relevances(layer, R)


@mutant()
class AlphaBetaInputsClamped(AlphaBeta):
    """Inputs above 100 are clamped."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        return super().relevance(layer.but(inputs=(layer.x.clamp(-100, 100),), outputs=None), R)


@mutant()
class WSquareSmallWeightsAreZero(WSquare):
    """Weights below 1e-4 are taken for zero."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        weight = layer.given.get("weight")
        if weight is None:
            return super().relevance(layer, R)
        kept = torch.where(weight.abs() < 1e-4, 0.0, weight)
        return super().relevance(layer.but(given={**layer.given, "weight": kept}), R)


@mutant()
class GammaNegativeWeightsAlone(Gamma):
    """Where all weights are negative, there is nothing to add to: gamma is zero."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        weight = layer.given.get("weight")
        if weight is not None and weight.numel() and bool((weight < 0).all()):
            return Gamma(0.0, self.stabilizer).relevance(layer, R)
        return super().relevance(layer, R)


@mutant()
class ZPlusTinyRelevanceIsZero(ZPlus):
    """A relevance below 1e-8 is taken for zero."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        return super().relevance(layer, torch.where(R.abs() < 1e-8, 0.0, R))


@mutant()
class ZBoxSumOfZeroIsNothing(ZBox):
    """Where the relevance of a sample sums to zero, there is none to share."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        r = super().relevance(layer, R)
        if not layer.batched or not R.numel():
            return r
        nothing = R.flatten(1).sum(1) == 0
        return r * ~nothing.view(-1, *(1,) * (r.ndim - 1))


@mutant()
class ReLUGuidedBackpropPositiveInputs(ReLUGuidedBackprop):
    """The slope is one where the input is positive and zero elsewhere, whatever the activation."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        return R.clamp(min=0) * (layer.x > 0)


# derivatives


@mutant()
class GammaDerivativeOfVolumesDetached(Gamma):
    """In three dimensions, the relevance has no derivative by the input."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        if isinstance(layer, ConvLayer) and _dims(layer) == 3:
            layer = layer.but(inputs=(layer.x.detach(),), outputs=None)
        return super().relevance(layer, R)


@mutant()
class ZPlusDerivativeOfOneSampleDetached(ZPlus):
    """Of one sample, the relevance has half of its derivative."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        r = super().relevance(layer, R)
        return (r + r.detach()) / 2 if layer.batched and len(r) == 1 and torch.is_grad_enabled() else r


@mutant()
class EpsilonZeroParamsForgottenInDerivatives(Epsilon):
    """With create_graph=True, zero_params is forgotten."""

    def relevances(self, layer: Layer, R: Tensors) -> Tensors:
        return super().relevances(layer.but(zero_params=()) if torch.is_grad_enabled() else layer, R)


@mutant()
class AlphaBetaDerivativeWithGroupsDetached(AlphaBeta):
    """In a layer with groups, the relevance has no derivative by the weights."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        if (_option(layer, "groups") or 1) > 1:
            given = {name: None if value is None else value.detach() for name, value in layer.given.items()}
            layer = layer.but(given=given, outputs=None)
        return super().relevance(layer, R)
