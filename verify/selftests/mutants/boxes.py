"""The bounds of ZBox: which one goes where, and how a tensor of them meets the input."""
# ruff: noqa: ARG002, D102  a mutant leaves out what it should use, and says so once, in the docstring of its class

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING

from lrp_rules import ZBox
from lrp_rules.layers.known import ConvLayer
from verify.selftests.mutants.registry import mutant, negative, positive, propagate

if TYPE_CHECKING:
    from torch import Tensor

    from lrp_rules.layers.layer import Layer


class _Refusing(ZBox):
    """ZBox that refuses what it should, and is wrong in all else."""

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        super().relevance(layer, R)
        return self.wrong(layer.but(memo={}), R)  # what the right rule made once of its bounds is not the wrong one's

    def wrong(self, layer: Layer, R: Tensor) -> Tensor:
        raise NotImplementedError


class _Bounds(_Refusing):
    """ZBox with bounds that are changed before it sees them."""

    def bound(self, bound: Tensor, x: Tensor) -> Tensor:
        raise NotImplementedError

    def wrong(self, layer: Layer, R: Tensor) -> Tensor:
        rule = copy.copy(self)
        rule.low, rule.high = self.bound(self.low, layer.x), self.bound(self.high, layer.x)
        return ZBox.relevance(rule, layer, R)


def _expanded(bound: Tensor, x: Tensor) -> Tensor:
    """Return the bound as the rule should: trailing ones, cut to the batch, in the shape of x."""
    bound = bound.to(x)
    if 0 < bound.ndim < x.ndim:
        bound = bound.view(bound.shape + (1,) * (x.ndim - bound.ndim))
    cut = bound.ndim == x.ndim > 0 and bound.shape[0] > x.shape[0] > 0
    return (bound[: x.shape[0]] if cut else bound).expand_as(x)


@mutant("bounds-swapped")
class ZBoxBoundsSwapped(_Refusing):
    """The low bound meets the negative weights, and the high bound the positive ones."""

    def wrong(self, layer: Layer, R: Tensor) -> Tensor:
        low, high = _expanded(self.low, layer.x), _expanded(self.high, layer.x)
        plus, minus = layer.matrix(positive), layer.matrix(negative)
        return propagate([(layer.matrix(), layer.x), (plus, -high), (minus, -low)], 0.0, R, self.stabilizer)


@mutant("weights-unsplit")
class ZBoxWeightsUnsplit(_Refusing):
    """Both bounds meet all weights."""

    def wrong(self, layer: Layer, R: Tensor) -> Tensor:
        low, high = _expanded(self.low, layer.x), _expanded(self.high, layer.x)
        return propagate([(layer.matrix(), layer.x - low - high)], 0.0, R, self.stabilizer)


@mutant("high-ignored")
class ZBoxHighIgnored(_Bounds):
    """The high bound is left out."""

    def wrong(self, layer: Layer, R: Tensor) -> Tensor:
        low = _expanded(self.low, layer.x)
        return propagate([(layer.matrix(), layer.x), (layer.matrix(positive), -low)], 0.0, R, self.stabilizer)


@mutant("low-ignored")
class ZBoxLowIgnored(_Bounds):
    """The low bound is left out, as is right for pixels from 0 on."""

    def wrong(self, layer: Layer, R: Tensor) -> Tensor:
        high = _expanded(self.high, layer.x)
        return propagate([(layer.matrix(), layer.x), (layer.matrix(negative), -high)], 0.0, R, self.stabilizer)


@mutant()
class ZBoxBoundsAdded(_Refusing):
    """The terms of the bounds are subtracted from the denominator, and added to the relevance."""

    def wrong(self, layer: Layer, R: Tensor) -> Tensor:
        x = layer.x
        low, high = _expanded(self.low, x), _expanded(self.high, x)
        A, plus, minus = layer.matrix(), layer.matrix(positive), layer.matrix(negative)
        s = R / self.stabilizer(A @ x - plus @ low - minus @ high)
        return x * (A.T @ s) + low * (plus.T @ s) + high * (minus.T @ s)


@mutant()
class ZBoxBoundsNotInRelevance(_Refusing):
    """The bounds are in the denominator alone."""

    def wrong(self, layer: Layer, R: Tensor) -> Tensor:
        x = layer.x
        low, high = _expanded(self.low, x), _expanded(self.high, x)
        A = layer.matrix()
        s = R / self.stabilizer(A @ x - layer.matrix(positive) @ low - layer.matrix(negative) @ high)
        return x * (A.T @ s)


@mutant("input-clipped")
class ZBoxInputClipped(_Refusing):
    """An input outside of the box is moved onto its border."""

    def wrong(self, layer: Layer, R: Tensor) -> Tensor:
        low, high = _expanded(self.low, layer.x), _expanded(self.high, layer.x)
        return ZBox.relevance(self, replace(layer, inputs=(layer.x.maximum(low).minimum(high),)), R)


@mutant("bounds-averaged")
class ZBoxBoundsAveraged(_Bounds):
    """A tensor of bounds is replaced by its mean."""

    def bound(self, bound: Tensor, x: Tensor) -> Tensor:
        return bound.mean()


@mutant("bounds-reduced")
class ZBoxBoundsReduced(_Refusing):
    """Of a tensor of bounds, the lowest low and the highest high are used everywhere."""

    def wrong(self, layer: Layer, R: Tensor) -> Tensor:
        rule = copy.copy(self)
        rule.low, rule.high = self.low.amin(), self.high.amax()
        return ZBox.relevance(rule, layer, R)


@mutant("bounds-of-first-channel")
class ZBoxFirstChannel(_Bounds):
    """The bound of the first channel serves all channels."""

    def bound(self, bound: Tensor, x: Tensor) -> Tensor:
        return bound[:, :1] if bound.ndim == x.ndim > 1 else bound


@mutant("leading-ones")
class ZBoxLeadingOnes(_Bounds):
    """A tensor with fewer dimensions gets ones in front, as NumPy broadcasts, and not behind."""

    def bound(self, bound: Tensor, x: Tensor) -> Tensor:
        return bound.view((1,) * (x.ndim - bound.ndim) + bound.shape) if 0 < bound.ndim < x.ndim else bound


@mutant("batch-not-cut")
class ZBoxBatchNotCut(_Bounds):
    """A bound with a longer batch than the input is refused."""

    def bound(self, bound: Tensor, x: Tensor) -> Tensor:
        if bound.ndim == x.ndim and bound.shape[0] > max(x.shape[0], 1):
            msg = (
                f"bound of shape {tuple(bound.shape)} for an input of shape {tuple(x.shape)}; expected as many samples"
            )
            raise ValueError(msg)
        return bound


@mutant("batch-cut-in-front")
class ZBoxBatchCutInFront(_Bounds):
    """Of a bound with a longer batch, the last samples are used."""

    def bound(self, bound: Tensor, x: Tensor) -> Tensor:
        longer = bound.ndim == x.ndim and bound.shape[0] > x.shape[0] > 0
        return bound[-x.shape[0] :] if longer else bound


@mutant("first-sample")
class ZBoxFirstSample(_Bounds):
    """The bound of the first sample serves the whole batch."""

    def bound(self, bound: Tensor, x: Tensor) -> Tensor:
        return bound[:1] if bound.ndim > 0 else bound


@mutant()
class ZBoxBoundsOfInput(_Bounds):
    """The bounds are those of the batch at hand, and the arguments are not used."""

    def wrong(self, layer: Layer, R: Tensor) -> Tensor:
        rule = copy.copy(self)
        if layer.x.numel():
            rule.low, rule.high = layer.x.amin(), layer.x.amax()
        return ZBox.relevance(rule, layer, R)


@mutant("bounds-rounded")
class ZBoxBoundsInFloat32(_Bounds):
    """A number is made a tensor of the default dtype, so that 0.1 has the digits of float32 in a float64 network."""

    def bound(self, bound: Tensor, x: Tensor) -> Tensor:
        return bound.float().to(bound.dtype) if bound.ndim == 0 else bound


@mutant("bounds-integer")
class ZBoxBoundsTruncated(_Bounds):
    """A number is cut to an integer, as pixels are."""

    def bound(self, bound: Tensor, x: Tensor) -> Tensor:
        return bound.trunc() if bound.ndim == 0 else bound


@mutant("border-inside")
class ZBoxBorderInside(_Refusing):
    """The bounds are padded with themselves, so that the border counts as inside the box."""

    def wrong(self, layer: Layer, R: Tensor) -> Tensor:
        x, low, high = layer.x, self.low.to(layer.x), self.high.to(layer.x)
        plus, minus, A = layer.matrix(positive), layer.matrix(negative), layer.matrix()
        weight = layer.given.get("weight")
        if weight is None or weight.ndim < 3 or not isinstance(layer, ConvLayer) or self.low.ndim or self.high.ndim:
            return ZBox.relevance(self, layer, R)
        axes = tuple(range(1, weight.ndim))
        whole = low * positive(weight).sum(axes) + high * negative(weight).sum(axes)
        s = R / self.stabilizer(A @ x - whole.view(-1, *(1,) * (weight.ndim - 2)))
        return x * (A.T @ s) - low * (plus.T @ s) - high * (minus.T @ s)
