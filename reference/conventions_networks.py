"""Conventions of the rules for products, attention and normalisations."""

from collections.abc import Callable
from dataclasses import replace
from math import prod

import numpy as np

from reference import rules
from reference.affine import Affine
from reference.conventions_base import UNDIVIDED, Answer, Convention, Form, Question, divided, each, parts, with_bias
from reference.conventions_stabilizer import EPSILON, STABILIZER
from reference.nonlinear import Softmax
from reference.operations import Normalization, Operation, Product
from reference.rounding import CallableStabilizer
from reference.rules import Part, Parts, Sizes
from reference.windows import Array

_PRODUCTS = ("Uniform", "SignalTakesAll")
_WEIGHED = ("Bilinear", "LayerNormRule")


def _factors(question: Question) -> Product:
    assert isinstance(question.layer.layer, Product)
    return question.layer.layer


def _back(question: Question, matrix: Array, v: Array | None = None, roundings: int = 0) -> Part:
    """The way back through a matrix, of ones if nothing else is given."""
    size, zeros = np.abs(matrix), np.zeros(len(matrix))

    def sizes() -> Sizes:
        return Sizes((size,), (np.asarray(size != 0, np.float32),), zeros, roundings=roundings)

    return Part(((matrix, np.ones_like(question.x) if v is None else v),), zeros, sizes=sizes)


def _undivided(question: Question, matrix: Array, v: Array | None = None, roundings: int = 0) -> Answer:
    return question.answer((_back(question, matrix, v, roundings),), stabilize=UNDIVIDED)


def _finite(question: Question) -> Array:
    """The input, without what is masked."""
    return np.where(np.isneginf(question.x), 0.0, question.x)


# --- products ---------------------------------------------------------------------------------------------------------


def _reads(question: Question) -> Array:
    """Which entries of all variable factors each output reads (m, n)."""
    product = _factors(question)
    return np.concatenate([product.reads(k) for k in product.variables], axis=1)


def _of_factors(question: Question, value: Callable[[int], float]) -> Array:
    """A number for each variable factor, at each of its entries (n,)."""
    product = _factors(question)
    return np.concatenate([np.full(prod(product.shapes[k]), value(k)) for k in product.variables])


def _signal(question: Question) -> Array:
    """Where the signal is (n,): its columns are not empty."""
    ((matrix, _),) = question.parts[0].terms
    return np.asarray(matrix.any(0), np.float64)


def _counted(count: Callable[[Product], int]) -> Form:
    """R over another number of factors."""

    def changed(question: Question) -> Parts:
        product = _factors(question)
        extra = count(product) - len(product.variables)
        part = question.parts[0]
        return (with_bias(part, np.full(len(part.bias), float(extra))),)

    return parts(changed)


def _averaged(question: Question) -> Parts:
    product, part = _factors(question), question.parts[0]
    ((matrix, _),) = part.terms
    share = _of_factors(question, lambda k: prod(product.shapes[k]) / len(matrix))
    return (divided(_back(question, matrix, share, roundings=2), part),)


def _first_other(question: Question) -> Answer:
    """All goes to the first factor, variable or not, that is not the signal."""
    product, signal = _factors(question), _signal(question)
    told = question.given.get("signal")
    if told is None:
        own = _of_factors(question, float)[signal > 0]
        told = int(own[0]) if own.size else None
    other = next((k for k in range(len(product.shapes)) if k != told), 0)
    return _undivided(question, _reads(question) * _of_factors(question, lambda k: float(k == other)))


def _gated(question: Question) -> Answer:
    return _undivided(question, question.layer.A() * _signal(question), roundings=question.layer.layer.roundings)


# --- matrix products --------------------------------------------------------------------------------------------------


def _variables(question: Question) -> int:
    layer = question.layer.layer
    assert isinstance(layer, Operation)
    return len(layer.variables)


def _denominator(inner: Callable[[Question], float], outer: Callable[[Question], float]) -> Form:
    """Outer S(inner d), for d = n O."""

    def answer(question: Question) -> Answer:
        given, a, b = question.stabilize, inner(question), outer(question)
        lipschitz, roundings, jumps = 1.0, 4, True
        if isinstance(given, CallableStabilizer):
            lipschitz, roundings, jumps = given.lipschitz, given.roundings, given.jumps
        S = CallableStabilizer(lambda d: b * given(a * d), a * b * lipschitz, roundings + 4, jumps)
        return question.answer(stabilize=S)

    return each(answer)


def _first_operand(question: Question) -> Parts:
    layer, part = question.layer.layer, question.parts[0]
    assert isinstance(layer, Operation)
    first, *others = layer.variables
    mask = np.concatenate([np.full(prod(layer.shapes[k]), float(k == first)) for k in layer.variables])
    ((matrix, x),) = part.terms
    return (divided(_back(question, matrix, x * mask * (1 + len(others)), roundings=2), part),)


# --- softmax ----------------------------------------------------------------------------------------------------------


def _softmax(matrix: Callable[[Softmax, Array, Array], Array], *, weighed: bool = True) -> Form:
    """R = x * A^T R with another A, made of the layer, of s, and of ones where two entries are normalised together."""

    def answer(question: Question) -> Answer:
        soft = question.layer.layer
        assert isinstance(soft, Softmax)
        s, x = soft.value(question.x), _finite(question)
        length = soft.input_shape[soft.axis]
        A = matrix(soft, s, soft.blocks(np.ones((1, length, length))))
        # exp amplifies what x - max is rounded by
        far = int(np.ceil(x.max() - x.min())) if len(x) else 0
        return _undivided(question, A, x if weighed else None, soft.roundings * (2 + far))

    return each(answer)


def _last(soft: Softmax, s: Array, _: Array) -> Array:
    length = soft.input_shape[-1]
    together = replace(soft, axis=-1).blocks(np.ones((1, length, length)))
    return np.asarray(np.eye(len(s)) - together * s)


# --- normalisations ---------------------------------------------------------------------------------------------------


def _norm(question: Question) -> Normalization:
    """The normalisation, with what is set to zero."""
    norm, zero = question.layer.layer, question.layer.zero_params
    assert isinstance(norm, Normalization)
    weight, bias = (
        None if value is None else value * (name not in zero)
        for name, value in (("weight", norm.weight), ("bias", norm.bias))
    )
    return replace(norm, weight=weight, bias=bias)


def _differentiated(question: Question) -> Parts:
    return rules.norm(Affine(_norm(question), question.x))


def _way_back(change: Callable[[Normalization, Array], Array], *, weighed: bool = True) -> Form:
    """The rule's denominator, and another matrix back, made of the normalisation and the input."""

    def changed(question: Question) -> Parts:
        part, norm = question.parts[0], _norm(question)
        roundings = part.known_sizes.roundings + int(part.known_sizes.counts[0].max(initial=0.0))
        back = _back(question, change(norm, question.x), question.x if weighed else None, roundings)
        return (divided(back, part),)

    return parts(changed)


def _scale(norm: Normalization, x: Array) -> Array:
    return norm.scale(x, norm.weight)


def _without_eps(norm: Normalization, x: Array) -> Array:
    bare = replace(norm, eps=0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(bare.scale(x, norm.weight)[:, None] * norm.centring)


def _of_jacobian(*, weighed: bool) -> Form:
    def answer(question: Question) -> Answer:
        layer = question.layer.layer
        (known,) = (rules.norm(question.layer)[0].known_sizes,)
        x = _finite(question) if weighed else np.ones_like(question.x)
        matrix = question.layer.A()
        zeros = np.zeros(len(matrix))
        size, count = question.layer.size(), question.layer.count()
        part = Part(((matrix, x),), zeros, sizes=lambda: replace(known, matrices=(size,), counts=(count,), bias=zeros,
                                                                  roundings=layer.roundings, grain=0.0))  # fmt: skip
        return question.answer((part,), stabilize=UNDIVIDED)

    return each(answer)


_COPIED = "each factor gets all of R, so that relevance doubles at each product"
_OF_CONSTANTS = "constant factors count, and what they would get is lost"
_PASSED = "the relevance goes through as it is"
_UNWEIGHED = "what flows back is not multiplied by the input"
_MEAN = "where a factor was broadcast, the mean of the relevance is taken, and not the sum"

NETWORKS: tuple[Convention, ...] = (
    Convention("relevance-copied", _PRODUCTS, _COPIED, each(lambda q: _undivided(q, _reads(q)))),
    Convention("relevance-copied", ("Bilinear",), _COPIED,
               _denominator(lambda q: 1 / _variables(q), lambda _: 1.0)),
    Convention("constants-share", ("Uniform",), _OF_CONSTANTS, _counted(lambda product: len(product.shapes))),
    Convention("constants-share", ("Bilinear",), "2 O is the denominator, also where one operand is a constant",
               _denominator(lambda q: 2 / _variables(q), lambda _: 1.0)),
    Convention("halves", ("Uniform",), "each factor gets half of R, however many there are",
               _counted(lambda product: min(2, len(product.variables)))),
    Convention("broadcast-averaged", _PRODUCTS, _MEAN, parts(_averaged)),
    Convention("shared-with-gate", ("SignalTakesAll",), "the gates get shares as large as the signal's: Uniform",
               each(lambda q: _undivided(q, _reads(q) / len(_factors(q).variables), roundings=2)), published=True),
    Convention("signal-and-gate-swapped", ("SignalTakesAll",), "a gate gets all, and the signal nothing",
               each(_first_other)),
    Convention("gate-scales-relevance", ("SignalTakesAll",), "the gates scale the relevance of the signal",
               each(_gated)),
    Convention("halved-before-stabilizer", ("Bilinear",),
               "O is stabilized in the place of n O, so that the stabilizer counts n times",
               _denominator(lambda q: 1 / _variables(q), _variables)),
    Convention("one-operand", ("Bilinear",), "all goes to the first operand, as if the others were constant",
               parts(_first_operand), published=True),
    Convention("last-dimension", ("Softmax",), "the relevance is summed over the last dimension, not the softmax's",
               _softmax(_last), "LXT"),
    Convention("input-not-multiplied", ("Softmax",), _UNWEIGHED + ": R - s * sum R",
               _softmax(lambda _, s, together: np.eye(len(s)) - together * s, weighed=False)),
    Convention("relevance-as-it-is", ("Softmax",), _PASSED,
               each(lambda q: _undivided(q, np.eye(len(q.x))))),
    Convention("mean-subtracted", ("Softmax",), "the mean of R is subtracted in the place of s * sum R",
               _softmax(lambda soft, s, together: np.eye(len(s)) - together / soft.input_shape[soft.axis])),
    Convention("relevance-as-it-is", ("Stop", "LayerNormRule"), _PASSED + ": the identity rule of AttnLRP",
               each(lambda q: _undivided(q, np.eye(len(q.x)))), "AttnLRP", published=True),
    Convention("deviation-differentiated", ("LayerNormRule",), "the deviation is no constant: Norm, by the Jacobian",
               parts(_differentiated), published=True),
    Convention("bias-dropped", ("LayerNormRule",), "the bias is not in the denominator",
               parts(lambda q: (with_bias(q.parts[0], np.zeros(len(q.parts[0].bias))),))),
    Convention("centring-dropped", ("LayerNormRule",), "the mean is taken for a constant, too",
               _way_back(lambda norm, x: np.diag(_scale(norm, x)))),
    Convention("weight-dropped", ("LayerNormRule",), "what flows back is not multiplied by the weight",
               _way_back(lambda norm, x: norm.centring / norm.deviation(x)[:, None])),
    Convention("epsilon-outside-the-root", ("LayerNormRule",), "eps is not in the deviation of what flows back",
               _way_back(_without_eps)),
    Convention("input-not-multiplied", ("LayerNormRule",), _UNWEIGHED,
               _way_back(lambda norm, x: _scale(norm, x)[:, None] * norm.centring, weighed=False)),
    Convention("input-not-multiplied", ("Bilinear",), _UNWEIGHED,
               parts(lambda q: (divided(_back(q, q.layer.A(), roundings=2), q.parts[0]),))),
    Convention("gradient-times-input", ("Uniform", "SignalTakesAll", "Bilinear", "Softmax", "Stop", "LayerNormRule"),
               "the relevance is not divided by anything: gradient times input", _of_jacobian(weighed=True),
               published=True),
    Convention("gradient", ("Uniform", "SignalTakesAll", "Bilinear", "Softmax", "Stop", "LayerNormRule"),
               "the rule is not applied: the module's own gradient", _of_jacobian(weighed=False)),
    *(replace(one, rules=_WEIGHED) for one in (*EPSILON, *STABILIZER) if {"Norm", "Epsilon"} <= set(one.rules)),
)  # fmt: skip
