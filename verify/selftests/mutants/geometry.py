"""Shapes, strides, padding, groups, pooling, normalisation: what makes a layer another matrix than Linear's."""
# ruff: noqa: D102  a mutant leaves out what it should use, and says so once, in the docstring of its class

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lrp_rules import AlphaBeta, Epsilon, Flat, Gamma, Norm, WSquare, ZBox, ZPlus
from lrp_rules.layers.known import BatchNormLayer, ConvLayer, ConvTransposeLayer, LinearLayer, Map, Matrix, TracedLayer
from lrp_rules.modules import twin
from verify.selftests.mutants.registry import entrywise, mutant, propagate, traced

if TYPE_CHECKING:
    from collections.abc import Callable

    from lrp_rules.layers.layer import Change, Layer

    Tensors = tuple[Tensor, ...]


def _as(kind: type[Layer], layer: Layer) -> Layer:
    """Return the layer as another kind, without the output that the right kind remembered."""
    known: dict[str, Any] = {field.name: getattr(layer, field.name) for field in fields(layer)}
    return kind(**known | {"outputs": None})


@mutant("groups-ignored")
class FlatGroupsIgnored(Flat):
    """Every output is thought to see all channels, whatever the groups are."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        groups = getattr(layer.module, "groups", 1)
        weight = layer.given.get("weight")
        if groups == 1 or weight is None or not isinstance(layer, ConvLayer):
            return super().relevance(layer, R)
        module: Any = twin(layer.module, {})
        vars(module)["groups"] = 1
        dense = weight.repeat(1, groups, *(1,) * (weight.ndim - 2))
        return super().relevance(replace(layer, module=module, given={**layer.given, "weight": dense}, outputs=None), R)


@mutant("groups-ignored")
class WSquareGroupsMixed(WSquare):
    """The output channels of the groups are read in another order."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        groups = getattr(layer.module, "groups", 1)
        weight = layer.given.get("weight")
        if groups == 1 or weight is None or not isinstance(layer, ConvLayer):
            return super().relevance(layer, R)
        mixed = weight.view(groups, -1, *weight.shape[1:]).transpose(0, 1).reshape(weight.shape)
        return super().relevance(replace(layer, given={**layer.given, "weight": mixed}), R)


@mutant("padding-mode-ignored")
class ZPlusPaddingModeIgnored(ZPlus):
    """Every padding is of zeros."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        if not isinstance(layer, ConvLayer):
            return super().relevance(layer, R)
        module: Any = twin(layer.module, {})
        vars(module)["padding_mode"] = "zeros"
        return super().relevance(replace(layer, module=module, outputs=None), R)


@dataclass
class _SameInFront(ConvLayer):
    def _pads(self) -> list[tuple[int, int]]:
        return [(after, before) for before, after in super()._pads()]


@mutant()
class EpsilonSamePaddingInFront(Epsilon):
    """With padding 'same' and an even kernel, the extra element is in front and not behind."""

    def relevances(self, layer: Layer, R: Tensors) -> Tensors:
        return super().relevances(_as(_SameInFront, layer) if isinstance(layer, ConvLayer) else layer, R)


@dataclass
class _LeftoverInFront(ConvLayer):
    def matrix(self, change: Change | None = None) -> Matrix:
        A = super().matrix(change)
        sizes = zip(self.x.shape[-self._dims :], self._pads(), strict=True)
        over = [
            (size + before + after - d * (k - 1) - 1) % s if before + after == 0 else 0
            for (size, (before, after)), d, k, s in zip(
                sizes, self.module.dilation, self.module.kernel_size, self.module.stride, strict=True
            )
        ]
        return Map(A.forward, lambda s: A.transposed(s).roll(over, tuple(range(-self._dims, 0))))


@mutant()
class AlphaBetaLeftoverInFront(AlphaBeta):
    """Where a stride leaves inputs unseen, those are taken to be in front and not behind."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        return super().relevance(_as(_LeftoverInFront, layer) if isinstance(layer, ConvLayer) else layer, R)


@dataclass
class _OutputPaddingInFront(ConvTransposeLayer):
    def matrix(self, change: Change | None = None) -> Matrix:
        A = super().matrix(change)
        extra: Any = self.module.output_padding
        dims = tuple(range(-self._dims, 0))
        return Map(
            lambda v: A.forward(v).roll(tuple(extra), dims), lambda s: A.transposed(s.roll([-e for e in extra], dims))
        )


@mutant()
class ZBoxOutputPaddingInFront(ZBox):
    """The output_padding of a transposed convolution is taken to be in front and not behind."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        known = isinstance(layer, ConvTransposeLayer)
        return super().relevance(_as(_OutputPaddingInFront, layer) if known else layer, R)


@dataclass
class _KernelFlipped(ConvTransposeLayer):
    def _weight(self, change: Change | None) -> Tensor:
        return super()._weight(change).flip(tuple(range(-self._dims, 0)))


@mutant()
class GammaTransposedKernelFlipped(Gamma):
    """The kernel of a transposed convolution is flipped, as in that of signal processing."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        return super().relevance(_as(_KernelFlipped, layer) if isinstance(layer, ConvTransposeLayer) else layer, R)


@dataclass
class _Flipped(ConvLayer):
    def matrix(self, change: Change | None = None) -> Matrix:
        A, weight = super().matrix(change), self._weight(change)
        flipped = weight.flip(tuple(range(-self._dims, 0)))
        back = replace(self, given={**self.given, "weight": flipped})
        return Map(A.forward, ConvLayer.matrix(back).transposed)


@mutant()
class WSquareKernelFlipped(WSquare):
    """The way back goes through the flipped kernel: the confusion of convolution and correlation."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        return super().relevance(_as(_Flipped, layer) if isinstance(layer, ConvLayer) else layer, R)


def _inside(layer: ConvLayer, weight: Tensor) -> Tensor:
    """Return what a window sums to when all of it is inside the input."""
    return weight.sum(tuple(range(1, weight.ndim))).view(-1, *(1,) * (weight.ndim - 2)).expand(layer.shape)


class _Inside:
    """The denominator of a convolution, taken from the kernel alone."""

    def of_kernel(self, rule: Any, layer: Layer, R: Tensor, change: Callable[[Tensor], Tensor], bias: Tensor) -> Tensor:
        assert isinstance(layer, ConvLayer)
        weight = change(layer._weight(None))  # noqa: SLF001  a mutant knows what it breaks
        s = R / rule.stabilizer(_inside(layer, weight) + bias)
        r: Tensor = layer.matrix(change).T @ s
        return r


@mutant("border-inside")
class WSquareBorderInside(_Inside, WSquare):
    """The denominator is the sum over the whole kernel, so that the border counts as inside the input."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        if not isinstance(layer, ConvLayer):
            return super().relevance(layer, R)
        return self.of_kernel(self, layer, R, torch.square, layer.bias.square())


@mutant("border-inside")
class FlatBorderInside(_Inside, Flat):
    """The denominator is the number of elements of the kernel, so that the border counts as inside the input."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        if not isinstance(layer, ConvLayer):
            return super().relevance(layer, R)
        return self.of_kernel(self, layer, R, torch.ones_like, layer.bias.new_zeros(()))


@mutant("without-parameters-counted")
class FlatPoolCounted(Flat):
    """A pooling's own weights become ones, too: its denominator is a count and not a mean."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        if not isinstance(layer, TracedLayer) or not layer.x.numel():
            return super().relevance(layer, R)
        counted = entrywise(layer, lambda a: (a != 0).to(a))
        return propagate([(counted, torch.ones_like(layer.x))], 0.0, R, self.stabilizer)


@mutant("without-parameters-squared")
class WSquarePoolSquared(WSquare):
    """The entries of a pooling are squared as if they were weights."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        if not isinstance(layer, TracedLayer) or not layer.x.numel():
            return super().relevance(layer, R)
        return propagate([(entrywise(layer, torch.square), torch.ones_like(layer.x))], 0.0, R, self.stabilizer)


@mutant("pooling-ties-shared")
class NormPoolingTiesShared(Norm):
    """Equal maxima of a window share what belongs to the first of them (lrp_toolbox #5 is about such ties)."""

    def relevances(self, layer: Layer, R: Tensors) -> Tensors:
        module = layer.module
        if not isinstance(module, nn.MaxPool1d):
            return super().relevances(layer, R)
        size, step = (v[0] if isinstance(v, tuple) else v for v in (module.kernel_size, module.stride))
        return super().relevances(traced(layer, lambda x: x.unfold(-1, size, step).amax(-1)), R)


@mutant("pooling-averaged")
class NormMaxPoolAveraged(Norm):
    """A window of a max-pooling shares out its relevance as an average would."""

    def relevances(self, layer: Layer, R: Tensors) -> Tensors:
        module = layer.module
        if not isinstance(module, nn.MaxPool3d):
            return super().relevances(layer, R)
        return super().relevances(traced(layer, nn.AvgPool3d(module.kernel_size, module.stride)), R)


@dataclass
class _WithoutMean(BatchNormLayer):
    @property
    def bias(self) -> Tensor:
        bias = self.parameters["bias"]
        return self.x.new_zeros(()) if bias is None else self._per_channel(bias)


@mutant("running-mean-left-out")
class EpsilonRunningMeanLeftOut(Epsilon):
    """The running mean of a batch norm is not part of the constant."""

    def relevances(self, layer: Layer, R: Tensors) -> Tensors:
        return super().relevances(_as(_WithoutMean, layer) if isinstance(layer, BatchNormLayer) else layer, R)


@mutant("batch-norm-unscaled")
class ZPlusBatchNormUnscaled(ZPlus):
    """The weight of a batch norm is taken for the whole scale, without the running variance."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        return super().relevance(_as(_Unscaled, layer) if isinstance(layer, BatchNormLayer) else layer, R)


@dataclass
class _Unscaled(BatchNormLayer):
    def matrix(self, change: Change | None = None) -> Matrix:
        A = super().matrix(change)
        variance = self.module.running_var
        assert variance is not None
        deviation = self._per_channel((variance + self.module.eps).sqrt())
        return Map(lambda v: A.forward(v) * deviation, lambda s: A.transposed(s) * deviation)


@mutant()
class ZBoxMemoryOrder(ZBox):
    """The input is read in the order of its memory, as a kernel does that forgets about strides."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        x = layer.x
        strides = torch.empty(x.shape, device="meta").stride()
        dense = torch.as_strided(x, x.shape, strides) if x.untyped_storage().nbytes() >= x.nbytes else x
        return super().relevance(replace(layer, inputs=(dense,), outputs=None), R)


@mutant()
class AlphaBetaContiguousOnly(AlphaBeta):
    """The input is viewed as one row a sample, which fails for an input that is not contiguous."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        x = layer.x.view(layer.x.numel()).view(layer.x.shape)
        return super().relevance(replace(layer, inputs=(x,)), R)


@mutant()
class GammaEmptyBatchRefused(Gamma):
    """The largest output is asked for, which an empty batch does not have."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        return super().relevance(layer, R) + 0 * layer.z.amax()


@mutant()
class NormSamplesSqueezed(Norm):
    """All dimensions of size 1 are dropped on the way, the batch among them."""

    def relevances(self, layer: Layer, R: Tensors) -> Tensors:
        return tuple(r.squeeze() for r in super().relevances(layer, R))


@mutant()
class WSquareLeadingDimensionsMeant(WSquare):
    """The leading dimensions of a Linear's input are averaged over."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        if isinstance(layer, LinearLayer) and R.ndim > 2:
            R = R.mean(1, keepdim=True).expand_as(R)
        return super().relevance(layer, R)


@mutant()
class ZPlusUnbatchedAsBatch(ZPlus):
    """The channels of an input without a batch are taken for samples, and come out averaged."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        r = super().relevance(layer, R)
        return r if layer.batched or r.ndim < 3 else r.mean(0, keepdim=True).expand_as(r)


@mutant("half-result")
class FlatResultRoundedToHalf(Flat):
    """A result of float32 is rounded to bfloat16."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        r = super().relevance(layer, R)
        return r.bfloat16().to(r) if r.dtype == torch.float32 else r
