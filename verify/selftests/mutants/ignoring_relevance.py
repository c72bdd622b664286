"""What is done to relevance that is not the rule's to do: ignored, replaced, rescaled, rounded, mixed over samples."""
# ruff: noqa: ARG002, D102  a mutant leaves out what it should use, and says so once, in the docstring of its class

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lrp_rules import (
    AlphaBeta,
    BasicHook,
    Epsilon,
    Flat,
    Gamma,
    Norm,
    Pass,
    ReLUBetaSmooth,
    WSquare,
    ZBox,
    ZPlus,
)
from verify.selftests.mutants.registry import Stabilized, mutant, signed

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lrp_rules.layers.layer import Layer

    Tensors = tuple[Tensor, ...]


class _Changed(BasicHook):
    """A rule that gets another relevance than it was given."""

    def changed(self, R: Tensor, layer: Layer) -> Tensor:
        raise NotImplementedError

    def relevances(self, layer: Layer, R: Tensors) -> Tensors:
        return super().relevances(layer, tuple(self.changed(R_k, layer) for R_k in R))


@mutant("relevance-ignored")
class NormIgnoringRelevance(_Changed, Norm):
    """The relevance is never read; the output stands for it (a Norm that passes the tests of zennit)."""

    def changed(self, R: Tensor, layer: Layer) -> Tensor:
        return layer.real_outputs[0]


@mutant("relevance-output")
class EpsilonStartsFromOutput(_Changed, Epsilon):
    """The relevance is weighed by the output, as if it were a gradient."""

    def changed(self, R: Tensor, layer: Layer) -> Tensor:
        return R * layer.real_outputs[0]


@mutant("relevance-normalised")
class ZPlusRelevanceNormalised(_Changed, ZPlus):
    """The relevance is divided by the sum of its magnitudes."""

    def changed(self, R: Tensor, layer: Layer) -> Tensor:
        return R / (R.abs().sum() + 1e-9)


@mutant("relevance-sign")
class AlphaBetaRelevanceSign(_Changed, AlphaBeta):
    """Only the sign of the relevance is used."""

    def changed(self, R: Tensor, layer: Layer) -> Tensor:
        return R.sign()


@mutant("relevance-magnitude")
class GammaRelevanceMagnitude(_Changed, Gamma):
    """Only the magnitude of the relevance is used."""

    def changed(self, R: Tensor, layer: Layer) -> Tensor:
        return R.abs()


@mutant("relevance-clipped")
class EpsilonRelevanceClipped(_Changed, Epsilon):
    """Relevance beyond 100 is cut off, against overflow."""

    def changed(self, R: Tensor, layer: Layer) -> Tensor:
        return R.clamp(-100, 100)


@mutant("relevance-clipped")
class GammaResultClipped(Gamma):
    """The result is cut off at 10^4, against poles."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        return super().relevance(layer, R).clamp(-1e4, 1e4)


@mutant("relevance-small-dropped")
class ZBoxSmallRelevanceDropped(_Changed, ZBox):
    """Relevance below 10^-3 counts as none, to save work."""

    def changed(self, R: Tensor, layer: Layer) -> Tensor:
        return R * (R.abs() >= 1e-3)


@mutant("relevance-averaged")
class WSquareRelevanceAveraged(_Changed, WSquare):
    """The relevance is averaged over the batch, since the rule does not depend on the input."""

    def changed(self, R: Tensor, layer: Layer) -> Tensor:
        return R.mean(0, keepdim=True).expand_as(R) if layer.batched and R.ndim > 1 and len(R) else R


@mutant("relevance-of-first")
class FlatRelevanceOfFirst(_Changed, Flat):
    """The relevance of the first sample serves all."""

    def changed(self, R: Tensor, layer: Layer) -> Tensor:
        return R[:1].expand_as(R) if layer.batched and R.ndim > 1 and len(R) else R


@mutant("relevance-positive")
class ZPlusRelevancePositive(_Changed, ZPlus):
    """Negative relevance is dropped."""

    def changed(self, R: Tensor, layer: Layer) -> Tensor:
        return R.clamp(min=0)


@mutant("relevance-rescaled")
class NormRescaledToConserve(Norm):
    """The result is rescaled so that it sums to the relevance that came in."""

    def relevances(self, layer: Layer, R: Tensors) -> Tensors:
        (r,) = super().relevances(layer, R)[:1]
        return (r * R[0].sum() / r.sum(),) if len(layer.inputs) == 1 else super().relevances(layer, R)


@mutant("relevance-rescaled")
class GammaRescaledBySample(Gamma):
    """Each sample of the result is rescaled so that it sums to the relevance that came in."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        r = super().relevance(layer, R)
        if r.ndim < 2 or not layer.batched:
            return r
        share = R.flatten(1).sum(1) / r.flatten(1).sum(1)
        return r * share.view(-1, *(1,) * (r.ndim - 1))


@mutant("remainder-shared")
class ZPlusRemainderShared(ZPlus):
    """What the result lacks of the relevance is handed out to all inputs in equal parts."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        r = super().relevance(layer, R)
        if r.ndim < 2 or not layer.batched or not r.numel():
            return r
        lacking = R.flatten(1).sum(1) - r.flatten(1).sum(1)
        return r + (lacking / r[0].numel()).view(-1, *(1,) * (r.ndim - 1))


@mutant("relevance-negated")
class FlatNegated(_Changed, Flat):
    """The relevance comes out with the other sign."""

    def changed(self, R: Tensor, layer: Layer) -> Tensor:
        return -R


@mutant("batch-coupled")
class EpsilonBatchCoupled(Stabilized, Epsilon):
    """Epsilon is scaled by the norm of the denominators of the whole batch."""

    @staticmethod
    def stabilize(d: Tensor, epsilon: float) -> Tensor:
        return signed(d, epsilon * d.square().mean().sqrt() if d.numel() else epsilon)


@mutant("batch-coupled")
class GammaGateOverBatch(_Changed, Gamma):
    """Relevance of an output that is zero in some sample goes nowhere in all samples."""

    def changed(self, R: Tensor, layer: Layer) -> Tensor:
        return R * (layer.z != 0).all(0) if R.ndim > 1 and layer.batched else R


@mutant("batch-rolled")
class AlphaBetaBatchRolled(AlphaBeta):
    """The samples of the result are in another order."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        r = super().relevance(layer, R)
        return r.roll(1, 0) if layer.batched and r.ndim > 1 else r


@mutant("float32")
class EpsilonInFloat32(Epsilon):
    """All is computed in float32, whatever the layer's dtype is."""

    def relevances(self, layer: Layer, R: Tensors) -> Tensors:
        return tuple(r.float().to(x.dtype) for r, x in zip(super().relevances(layer, R), layer.inputs, strict=True))


@mutant("float32")
class WSquareRelevanceInFloat32(_Changed, WSquare):
    """The relevance is cast to float32 on its way in."""

    def changed(self, R: Tensor, layer: Layer) -> Tensor:
        return R.float().to(R.dtype)


@mutant("float32")
class ReLUBetaSmoothInFloat32(ReLUBetaSmooth):
    """The sigmoid is taken in float32."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        return torch.sigmoid(self.beta_smooth * layer.x.float()).to(layer.x) * R


@mutant("relevance-normalised")
class PassNormalised(Pass):
    """The relevance is divided by the largest of its entries."""

    def backward(self, module: nn.Module, grad_input: Any, grad_output: Tensors) -> Tensors:
        R = grad_output[0]
        return (R / R.abs().amax() if R.numel() else R,)


@mutant("float32")
class PassInFloat32(Pass):
    """The relevance goes through float32."""

    def backward(self, module: nn.Module, grad_input: Any, grad_output: Tensors) -> Tensors:
        return (grad_output[0].float().to(grad_output[0].dtype),)
