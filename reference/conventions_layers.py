"""Conventions in which a layer is taken for another one: its padding, groups, borders, pooling, normalisation."""

from collections.abc import Callable
from dataclasses import replace
from math import prod

import numpy as np

from reference.affine import Affine, Change, negative, positive, same
from reference.base import Layer, Weighted
from reference.conventions_base import (
    UNDIVIDED,
    Changed,
    Convention,
    Form,
    Question,
    RefusedError,
    divided,
    parts,
    with_bias,
)
from reference.layers import AdaptiveAvgPool, AvgPool, BatchNorm, Conv, ConvTranspose, MaxPool
from reference.rules import Part, Parts
from reference.windows import Array

_WEIGHTED = ("Epsilon", "Norm", "ZPlus", "AlphaBeta", "Gamma", "ZBox", "WSquare", "Flat")


def _taken_for(other: Callable[[Layer], Layer]) -> Form:
    """The rule itself, on another layer."""

    def changed(question: Question) -> Question:
        layer = other(question.layer.layer)
        if layer is question.layer.layer:
            return question
        return replace(question, layer=Affine(layer, question.x, question.layer.zero_params))

    return Changed(changed)


def _padded_with_zeros(layer: Layer) -> Layer:
    return replace(layer, padding_mode="zeros") if isinstance(layer, Conv) else layer


def _dense(layer: Layer) -> Layer:
    if not isinstance(layer, Conv) or layer.groups == 1:
        return layer
    weight = np.tile(layer.weight, (1, layer.groups, *(1,) * (layer.weight.ndim - 2)))
    return replace(layer, weight=weight, groups=1)


def _padded_by_one(layer: Layer) -> Layer:
    if not isinstance(layer, Conv):
        return layer
    other = replace(layer, padding=(1,) * len(layer.stride), padding_mode="zeros")
    if other.output_shape != layer.output_shape:
        message = f"given an output of shape {layer.output_shape}, expected {other.output_shape}"
        raise RefusedError(message)
    return other


def _without_output_padding(question: Question) -> Question:
    """A transposed convolution without its output padding; relevance beyond the shorter output is cut off."""
    layer = question.layer.layer
    if not isinstance(layer, ConvTranspose) or not any(layer.output_padding):
        return question
    other = replace(layer, output_padding=(0,) * len(layer.output_padding))
    R = question.R.reshape(layer.output_shape)[tuple(slice(n) for n in other.output_shape)].ravel()
    return replace(question, layer=Affine(other, question.x, question.layer.zero_params), R=R)


def _groups_mixed(layer: Layer) -> Layer:
    if not isinstance(layer, Conv) or layer.groups == 1:
        return layer
    weight = layer.weight.reshape(layer.groups, -1, *layer.weight.shape[1:]).swapaxes(0, 1)
    return replace(layer, weight=weight.reshape(layer.weight.shape))


def _unscaled(question: Question) -> Parts:
    layer = question.layer.layer
    if not isinstance(layer, BatchNorm):
        return question.parts
    other = Affine(replace(layer, running_var=0 * layer.running_var + 1 - layer.eps), question.x)
    scaled = replace(other, zero_params=question.layer.zero_params)
    return tuple(with_bias(p, own.bias) for p, own in zip(question.parts_at(scaled), question.parts, strict=True))


def _inside(terms: Callable[[Question], list[tuple[Change, float]]]) -> Form:
    """The denominator of a convolution as if its windows held constants all over, from the kernel alone."""

    def changed(question: Question) -> Parts:
        layer, weight, given = question.layer.layer, question.layer.weight, question.given
        bounds = [given.get(name, 0.0) for name in ("low", "high")]
        if not isinstance(layer, Conv) or weight is None or any(np.ndim(bound) for bound in bounds):
            return question.parts
        (part,) = question.parts
        kernels, n = [], prod(weight.shape[1:])
        for change, value in terms(question):
            rows = np.repeat(change(weight).reshape(len(weight), n), prod(layer.output_shape[1:]), 0)
            kernels.append((rows, np.full(n, value)))
        own = part.terms[:1] if question.rule == "ZBox" else ()
        return (divided(part, Part((*own, *kernels), part.bias)),)

    return parts(changed)


def _of_box(question: Question) -> list[tuple[Change, float]]:
    return [(positive, -float(question.given["low"])), (negative, -float(question.given["high"]))]


def _pooling(change: Callable[[Array], Array]) -> Form:
    """The entries of a layer without parameters are changed as parameters would be."""

    def changed(question: Question) -> Parts:
        if isinstance(question.layer.layer, Weighted):
            return question.parts
        A = change(question.layer.A())
        return (Part(((A, np.ones_like(question.x)),), np.zeros(len(A))),)

    return parts(changed)


def _maxpool(share: Callable[[Array, Array, Array], Array]) -> Form:
    """A max-pooling as another matrix: share(windows (m, n), x, z), where a window holds ones."""

    def changed(question: Question) -> Parts:
        layer = question.layer.layer
        if not isinstance(layer, MaxPool):
            return question.parts
        # what an input of 1 among zeros reaches has it in its window, a window that is all padding but one included
        below, n = np.eye(len(question.x)) - 1.0, len(question.x)
        windows = np.array([layer.value(row) == 0 for row in below]).T.reshape(-1, n)
        A = share(windows.astype(np.float64), question.x, question.layer.z)
        return (Part(((A / A.sum(1, keepdims=True), question.x),), np.zeros(len(A))),)

    return parts(changed)


def _overlaps_lost(question: Question) -> Parts:
    """Of the windows in which one input is the largest, the last alone gives it relevance."""
    if not isinstance(question.layer.layer, MaxPool):
        return question.parts
    (part,), A = question.parts, question.layer.A()
    later = np.cumsum(A[::-1], axis=0)[::-1]
    back = Part(((A * (later == 1), question.x),), part.bias)
    return (divided(back, part),)


def _pooled_by_gradient(question: Question) -> Question:
    if not isinstance(question.layer.layer, AvgPool | AdaptiveAvgPool | MaxPool):
        return question
    return replace(question, stabilize=UNDIVIDED).with_parts(lambda q: (q.part([(same, np.ones_like(q.x))]),))


def _passed(question: Question) -> Question:
    if not isinstance(question.layer.layer, BatchNorm):
        return question
    n = len(question.x)
    part = Part(((np.eye(n), np.ones(n)),), np.zeros(n))
    return replace(question, stabilize=UNDIVIDED).with_parts(lambda _: (part,))


def _square(w: Array) -> Array:
    return w * w


def _nonzero(A: Array) -> Array:
    return np.asarray(A != 0, np.float64)


_BORDER = "the border counts as inside of the input: all of the kernel is in the denominator"

LAYERS: tuple[Convention, ...] = (
    Convention("padding-mode-ignored", _WEIGHTED, "every padding is of zeros", _taken_for(_padded_with_zeros)),
    Convention("groups-ignored", _WEIGHTED,
               "every output sees all channels, whatever the groups are", _taken_for(_dense)),
    Convention("groups-ignored", _WEIGHTED, "output channels of the groups are read in another order",
               _taken_for(_groups_mixed)),
    Convention("padding-one", _WEIGHTED, "every convolution is padded by 1, and refused where that gives another shape",
               _taken_for(_padded_by_one), "TorchLRP"),
    Convention("output-padding-ignored", _WEIGHTED,
               "a transposed convolution has no output padding, and relevance that lies there is cut off",
               Changed(_without_output_padding)),
    Convention("pooling-by-gradient", _WEIGHTED, "a pooling passes its relevance on as a gradient",
               Changed(_pooled_by_gradient), "autoLRP", published=True),
    Convention("pooling-overlaps-lost", ("Epsilon", "Norm"),
               "of overlapping windows with one maximum, the last alone gives relevance, as max-unpooling writes it",
               parts(_overlaps_lost)),
    Convention("batch-norm-passed", _WEIGHTED, "a batch norm passes its relevance on unchanged", Changed(_passed),
               published=True),
    Convention("batch-norm-unscaled", ("ZPlus", "AlphaBeta"),
               "the weight of a batch norm is taken for its whole scale, without the running variance",
               parts(_unscaled)),
    Convention("border-inside", ("WSquare",), _BORDER, _inside(lambda _: [(_square, 1.0)])),
    Convention("border-inside", ("Flat",), _BORDER, _inside(lambda _: [(np.ones_like, 1.0)])),
    Convention("border-inside", ("ZBox",), "the border counts as inside of the box, and is padded with its bounds",
               _inside(_of_box)),
    Convention("without-parameters-counted", ("Flat",),
               "the entries of a layer without parameters become ones: its denominator is a count", _pooling(_nonzero)),
    Convention("without-parameters-squared", ("WSquare",), "the entries of a layer without parameters are squared",
               _pooling(_square)),
    Convention("pooling-ties-shared", ("Epsilon", "Norm"), "equal maxima of a window share what belongs to the first",
               _maxpool(lambda windows, x, z: windows * (x == z[:, None])), "lrp_toolbox"),
    Convention("pooling-averaged", ("Epsilon", "Norm"), "a max-pooling shares out its relevance as an average would",
               _maxpool(lambda windows, _x, _z: windows), published=True),
)  # fmt: skip
