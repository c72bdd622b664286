"""Conventions in which arguments mean something else: the bounds of ZBox, and the names in zero_params."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from reference import rules
from reference.affine import Affine, Change, negative, positive, same
from reference.conventions_base import (
    Answer,
    Batch,
    Changed,
    Convention,
    Form,
    Question,
    RefusedError,
    divided,
    parts,
)
from reference.rules import Parts
from reference.windows import Array, Shape

_NAMED = ("Epsilon", "ZPlus", "AlphaBeta", "Gamma", "ZBox", "WSquare", "Flat")


def expanded(bound: Array, batch: Shape) -> Array:
    """Return a bound in the shape of the batch, with trailing ones, and cut to the batch, as the rule says.

    Raises RefusedError where it does not broadcast.
    """
    if 0 < bound.ndim < len(batch):
        bound = bound.reshape(*bound.shape, *(1,) * (len(batch) - bound.ndim))
    if bound.ndim == len(batch) and len(bound) > batch[0]:
        bound = bound[: batch[0]]
    try:
        return np.broadcast_to(bound, batch)
    except ValueError as error:
        message = f"expanded: given a bound of shape {bound.shape}, expected one that broadcasts to {batch}"
        raise RefusedError(message) from error


Change2 = Callable[[Array, Shape], Array]


def _bounds(question: Question, change: Change2 = lambda bound, _: bound) -> tuple[Array, Array]:
    """The bounds of this sample, flattened, each changed before it is expanded."""
    given = (np.asarray(question.given[name], np.float64) for name in ("low", "high"))
    low, high = (expanded(change(bound, question.batch), question.batch)[question.index].ravel() for bound in given)
    return low, high


def _changed(*changes: Change2) -> Form:
    """Bounds that are changed: both alike, or low by the first and high by the second."""

    def answer(question: Question) -> Parts:
        low, high = _bounds(question, changes[0])[0], _bounds(question, changes[-1])[1]
        shape = question.layer.layer.input_shape
        return rules.zbox(question.layer, low.reshape(shape), high.reshape(shape))

    return parts(answer)


Box = Callable[[Array, Array, Array], list[tuple[Change, Array]]]


def _terms(terms: Box) -> Form:
    return parts(lambda question: (question.part(terms(question.x, *_bounds(question))),))


def _back(terms: Box) -> Form:
    """The rule's own denominator, and another way back."""
    return parts(lambda q: (divided(q.part(terms(q.x, *_bounds(q))), q.parts[0]),))


def _clipped(question: Question) -> Question:
    low, high = _bounds(question)
    x = np.minimum(np.maximum(question.x, low), high)
    return replace(question, layer=Affine(question.layer.layer, x, question.layer.zero_params))


def _of_input(batch: Batch) -> list[Answer]:
    x = np.concatenate([question.x for question in batch])
    return [question.answer(rules.zbox(question.layer, x.min(), x.max())) for question in batch]


def _leading(bound: Array, batch: Shape) -> Array:
    return bound.reshape((1,) * (len(batch) - bound.ndim) + bound.shape) if 0 < bound.ndim < len(batch) else bound


def _longer(bound: Array, batch: Shape) -> bool:
    return bound.ndim == len(batch) and len(bound) > batch[0]


def _refused(bound: Array, batch: Shape) -> Array:
    if _longer(bound, batch):
        message = f"given a bound for {len(bound)} samples, expected one for {batch[0]}"
        raise RefusedError(message)
    return bound


def _first_channel(bound: Array, batch: Shape) -> Array:
    return bound[:, :1] if bound.ndim == len(batch) > 1 else bound


def _number(change: Callable[[Array], Array]) -> Change2:
    return lambda bound, _: bound if bound.ndim else change(bound)


# --- zero_params ------------------------------------------------------------------------------------------------------


def _zeroed(names: Callable[[tuple[str, ...], bool], tuple[str, ...]]) -> Form:
    """names(given, whether a string was given) -> the parameters that are set to zero."""

    def changed(question: Question) -> Question:
        given = question.given.get("zero_params") or ()
        text = isinstance(given, str)
        zero = names((str(given),) if text else tuple(given), text)
        return replace(question, layer=Affine(question.layer.layer, question.x, zero))

    return Changed(changed)


def _inside(given: tuple[str, ...], _text: bool) -> tuple[str, ...]:  # noqa: FBT001  see _zeroed
    return tuple(name for name in ("weight", "bias") if any(name in one for one in given))


ARGUMENTS: tuple[Convention, ...] = (
    Convention("bounds-swapped", ("ZBox",),
               "the low bound meets the negative weights, and the high bound the positive ones",
               _terms(lambda x, low, high: [(same, x), (positive, -high), (negative, -low)])),
    Convention("weights-unsplit", ("ZBox",), "both bounds meet all weights",
               _terms(lambda x, low, high: [(same, x - low - high)])),
    Convention("high-ignored", ("ZBox",), "the high bound is left out",
               _terms(lambda x, low, _: [(same, x), (positive, -low)])),
    Convention("low-ignored", ("ZBox",), "the low bound is left out",
               _terms(lambda x, _, high: [(same, x), (negative, -high)])),
    Convention("bounds-added", ("ZBox",), "the terms of the bounds are added to the relevance",
               _back(lambda x, low, high: [(same, x), (positive, low), (negative, high)])),
    Convention("bounds-not-in-relevance", ("ZBox",), "the bounds are in the denominator alone",
               _back(lambda x, _low, _high: [(same, x)])),
    Convention("bounds-of-input", ("ZBox",), "the bounds are those of the batch at hand, whatever is given", _of_input),
    Convention("input-clipped", ("ZBox",), "an input outside of the box is moved onto its border", Changed(_clipped)),
    Convention("bounds-averaged", ("ZBox",), "a tensor of bounds is replaced by its mean",
               _changed(lambda bound, _: bound.mean(keepdims=False))),
    Convention("bounds-reduced", ("ZBox",), "of tensors of bounds, the lowest and the highest are used everywhere",
               _changed(lambda bound, _: np.asarray(bound.min()), lambda bound, _: np.asarray(bound.max()))),
    Convention("bounds-of-first-channel", ("ZBox",),
               "the bound of the first channel serves all", _changed(_first_channel)),
    Convention("leading-ones", ("ZBox",), "a tensor with fewer dimensions gets ones in front, as NumPy broadcasts",
               _changed(_leading)),
    Convention("batch-not-cut", ("ZBox",), "a bound with a longer batch than the input is refused", _changed(_refused)),
    Convention("batch-cut-in-front", ("ZBox",), "of a bound with a longer batch, the last samples are used",
               _changed(lambda bound, batch: bound[-batch[0] :] if _longer(bound, batch) else bound)),
    Convention("first-sample", ("ZBox",), "the bound of the first sample serves the whole batch",
               _changed(lambda bound, _: bound[:1] if bound.ndim else bound)),
    Convention("bounds-rounded", ("ZBox",), "a number has the digits of float32, whatever the dtype",
               _changed(_number(lambda bound: bound.astype(np.float32).astype(np.float64)))),
    Convention("bounds-integer", ("ZBox",), "a number is cut to an integer", _changed(_number(np.trunc))),
    Convention("zero-params-ignored", _NAMED, "zero_params is not used", _zeroed(lambda _given, _text: ())),
    Convention("zero-params-letters", _NAMED, "zero_params given as a string names nothing",
               _zeroed(lambda given, text: () if text else given)),
    Convention("zero-params-by-substring", _NAMED,
               "a parameter is zeroed if its name is found inside of a given one", _zeroed(_inside), "zennit"),
)  # fmt: skip
