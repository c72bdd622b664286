"""Conventions in which the bias, or the constant of the layer, takes another part in the denominator."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from reference import rules
from reference.affine import Affine, Change, negative, positive, same
from reference.base import Weighted
from reference.conventions_base import Answer, Convention, Form, Question, each, mapped, parts, with_bias
from reference.layers import BatchNorm
from reference.rules import Part, Parts
from reference.windows import Array

_SIGNED = ("ZPlus", "AlphaBeta", "Gamma")


def _on_parameter(change: Callable[[Array], Array]) -> Form:
    """The rule's own constant of a layer whose bias is changed; where there is a running mean, that stays."""

    def changed(question: Question) -> Parts:
        layer = question.layer.layer
        if not isinstance(layer, Weighted) or layer.bias is None or "bias" in question.layer.zero_params:
            return question.parts
        other = Affine(replace(layer, bias=change(layer.bias)), question.x, question.layer.zero_params)
        pairs = zip(question.parts, question.parts_at(other), strict=True)
        return tuple(with_bias(part, own.bias) for part, own in pairs)

    return parts(changed)


def _of(change: Callable[[Array], Array]) -> Form:
    """A changed constant of the denominator, whatever it is made of."""
    return mapped(lambda _, part: with_bias(part, change(part.bias)))


def _from(constant: Callable[[Question], Array]) -> Form:
    """One constant for all denominators."""
    return mapped(lambda question, part: with_bias(part, constant(question)))


def _halves(*constants: Callable[[Question], Array]) -> Form:
    """One constant for each part, in the order of the parts."""
    return parts(
        lambda question: tuple(
            with_bias(part, constant(question)) for part, constant in zip(question.parts, constants, strict=False)
        )
    )


def _b(question: Question) -> Array:
    return question.layer.b


def _gamma(question: Question) -> float:
    return float(question.given.get("gamma", 0.25))


def _has_bias(question: Question) -> bool:
    layer = question.layer.layer
    return isinstance(layer, Weighted) and layer.bias is not None


def _kept(question: Question) -> Array:
    """The constant of the layer as it is; Flat looks at it at ones."""
    layer = question.layer if question.rule == "ZBox" else question.layer.at(np.ones_like(question.x))
    return layer.b


def _by_magnitude(question: Question, *, stabilized: bool) -> Answer:
    """The bias takes R |b| / (|A x| + |b|), and what is left flows through the rule without a bias."""
    if not np.any(question.layer.real.b) and not _has_bias(question):
        return question.answer()
    (inputs,) = rules.epsilon(replace(question.layer.real, zero_params=("bias",)))
    a, e = np.abs(inputs.denominator), question.model.gamma(inputs.products + 8) * inputs.magnitude
    b = np.abs(question.layer.real.b - inputs.bias)
    whole = a + b + (question.epsilon or 0.0 if stabilized else 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        share, off = (np.where(whole > 0, part / whole, 0.0) for part in (a, e))
    R = question.R * share
    error = np.where(b > 0, np.abs(question.R) * (off + 8 * question.model.unit * share), 0.0)
    dropped = question.with_parts(lambda q: tuple(with_bias(part, 0 * part.bias) for part in q.parts))
    return dropped.inexact(R, error)


def _shared(question: Question) -> Parts:
    """What the bias takes flows back to all inputs in equal parts, as through a matrix of 1 / n with ones as input."""
    (part,) = question.parts
    if not _has_bias(question):
        return (part,)
    n = len(question.x)
    share = np.repeat(part.bias[:, None] / n, n, 1)
    rest = Part((*part.terms, (share, np.ones(n))), np.zeros_like(part.bias))
    known = part.known_sizes
    return (
        replace(
            rest,
            sizes=lambda: replace(
                known,
                matrices=(*known.matrices, np.abs(share)),
                counts=(*known.counts, np.asarray(share != 0, np.float32)),
                roundings=known.roundings + 2,
                grain=0.0,
            ),
        ),
    )


def _without_mean(question: Question) -> Parts:
    layer = question.layer
    if not isinstance(layer.layer, BatchNorm):
        return question.parts
    own = Affine(replace(layer.layer, running_mean=0 * layer.layer.running_mean), layer.x, layer.zero_params)
    return question.parts_at(own)


def _mean_with_weight(question: Question) -> Parts:
    """The layer is run with changed parameters, and subtracts its running mean in each of these runs."""
    layer, at = question.layer, question.layer.layer
    if not isinstance(at, BatchNorm):
        return question.parts
    spread = np.repeat(at.running_mean, len(question.x) // len(at.running_mean))
    bias = np.zeros_like(spread) if layer.bias is None else np.repeat(layer.bias, len(spread) // len(layer.bias))
    g = _gamma(question)
    changes: dict[str, tuple[Change, ...]] = {
        "ZPlus": (positive,),
        "AlphaBeta": (positive, negative),
        "Gamma": (lambda b: b + g * positive(b), lambda b: b + g * negative(b)),
        "WSquare": (np.square,),
    }
    changed = changes.get(question.rule, (np.zeros_like,))
    pairs = zip(question.parts, changed, strict=False)
    signs = (1, -1, -1) if question.rule == "ZBox" else (1, 1)
    return tuple(
        with_bias(
            part,
            change(bias) - np.sum([sign * (A @ spread) for sign, (A, _) in zip(signs, part.terms, strict=False)], 0),
        )
        for part, change in pairs
    )


def _zeros(b: Array) -> Array:
    return 0 * b


_DROPPED = "the bias is left out of the denominator"
_DOUBLED = "the bias enters the denominator twice, as when each of two runs of the layer brings it"
_SWAPPED = "each half has the part of the bias that belongs to the other"
_TWICE = "zennit issue #53"

BIAS: tuple[Convention, ...] = (
    *(
        Convention("bias-dropped", ("Epsilon", "Norm", *_SIGNED, "WSquare"), _DROPPED, form)
        for form in (_on_parameter(_zeros), _of(_zeros))
    ),
    *(
        Convention("bias-doubled", ("Epsilon", "Norm", *_SIGNED), _DOUBLED, form, _TWICE)
        for form in (_on_parameter(lambda b: 2 * b), _of(lambda b: 2 * b))
    ),
    Convention("bias-unclamped", ("ZPlus",), "b itself stands in the place of b+", _from(_b)),
    *(
        Convention("bias-both-signs", rules, "b+ - b-, which is |b|, is the constant of the denominator", form)
        for rules, form in (
            (("Epsilon", "Norm"), _on_parameter(np.abs)),
            (("Epsilon", "Norm"), _of(np.abs)),
            (("ZPlus",), _from(lambda question: np.abs(_b(question)))),
        )
    ),
    Convention(
        "bias-in-both-halves",
        ("AlphaBeta",),
        "each half has the whole bias, b+ and b-",
        _halves(_b, _b),
        "innvestigate",
        published=True,
    ),
    Convention("bias-only-in-first-half", ("AlphaBeta",), "the half of beta has no bias",
               _halves(lambda q: positive(_b(q)), lambda q: 0 * _b(q))),
    Convention("bias-unclamped-in-second-half", ("AlphaBeta",), "the half of beta has the whole bias, b+ and b-",
               _halves(lambda q: positive(_b(q)), _b)),
    Convention("bias-halves-swapped", ("AlphaBeta",), _SWAPPED,
               _halves(lambda q: negative(_b(q)), lambda q: positive(_b(q)))),
    Convention(
        "bias-halves-swapped",
        ("Gamma",),
        _SWAPPED,
        _halves(
            lambda q: _b(q) + _gamma(q) * negative(_b(q)),
            lambda q: _b(q) + _gamma(q) * positive(_b(q)),
        ),
    ),
    Convention("bias-unscaled", ("Gamma",), "gamma is applied to the weights, and not to the bias", _halves(_b, _b)),
    Convention(
        "bias-scaled-whole",
        ("Gamma",),
        "the whole bias is scaled, (1 + g) b, and not its positive or negative part",
        _from(lambda q: _b(q) + _gamma(q) * _b(q)),
    ),
    Convention("bias-kept", ("ZBox", "Flat"), "the bias stays in the denominator", _from(_kept)),
    Convention("bias-unsquared", ("WSquare",), "b stands in the place of b^2",
               _from(lambda q: q.layer.at(np.ones_like(q.x)).offset(same))),
    Convention("bias-one", ("Flat",), "the bias becomes one, as the weights do",
               _from(lambda q: np.full_like(q.layer.b, float(_has_bias(q))))),
    *(
        Convention("bias-by-magnitude", ("Epsilon", "Norm", *_SIGNED),
                   "the bias takes |b| / (|A x| + |b|) of the relevance, and is not in the denominator",
                   each(partial(_by_magnitude, stabilized=stabilized)), "autoLRP", published=True)
        for stabilized in (False, True)
    ),
    Convention("bias-shared", ("Epsilon",), "what the bias takes is given to all inputs in equal parts",
               parts(_shared), "LRP_for_LSTM", published=True),
    Convention("running-mean-left-out", ("Epsilon", "Norm", *_SIGNED, "WSquare"),
               "the running mean of a batch norm is not part of the constant", parts(_without_mean)),
    Convention("running-mean-with-weight", (*_SIGNED, "WSquare", "Flat", "ZBox"),
               "the running mean of a batch norm is subtracted from the input of each changed layer",
               parts(_mean_with_weight), "zennit", published=True),
)  # fmt: skip
