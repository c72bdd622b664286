"""Conventions in which inputs and parameters are split, changed and put together in another way."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from reference import rules
from reference.affine import Affine, Change, negative, positive, same
from reference.conventions_base import UNDIVIDED, Changed, Convention, Form, Question, divided, mapped, parts
from reference.rounding import CallableStabilizer
from reference.rules import Part, Parts
from reference.windows import Array

_DIVIDED = ("Epsilon", "Norm", "ZPlus", "AlphaBeta", "Gamma", "ZBox", "WSquare", "Flat")
Terms = Sequence[tuple[Change, Array]]


def _bias(question: Question, change: Change = same) -> Array:
    return question.layer.offset(change)


def _one(terms: Callable[[Question], Terms], bias: Callable[[Question], Array | float]) -> Form:
    """One part, of these terms and this constant."""
    return parts(lambda question: (question.part(terms(question), bias(question)),))


def _back(terms: Callable[[Question], Terms]) -> Form:
    """The rule's denominators, and another way back."""
    return mapped(lambda question, part: divided(question.part(terms(question)), part))


def _halves(terms: Callable[[Question, Change], Terms]) -> Form:
    """The halves of ZPlus and AlphaBeta with the terms of one sign each: these terms, of w+ or of w-."""

    def changed(question: Question) -> Parts:
        signs = zip(question.parts, (positive, negative), strict=False)
        return tuple(
            question.part(terms(question, change), _bias(question, change), part.coefficient) for part, change in signs
        )

    return parts(changed)


def _separate(question: Question) -> Parts:
    """Each half of the inputs has a denominator of its own, the bias is in that of x+."""
    found = []
    for part, first, second in zip(question.parts, (positive, negative), (negative, positive), strict=False):
        x, bias = question.x, _bias(question, first)
        found.append(question.part([(first, positive(x))], bias, part.coefficient))
        found.append(question.part([(second, negative(x))], 0.0, part.coefficient))
    return tuple(found)


def _separate_with_bias(*, whole: bool) -> Form:
    """Each half of the inputs has its own denominator, and the bias is in both: all of it, or what has the sign."""

    def changed(question: Question) -> Parts:
        found = []
        for part, first, second in zip(question.parts, (positive, negative), (negative, positive), strict=False):
            x, bias = question.x, _bias(question, same if whole else first)
            found.append(question.part([(first, positive(x))], bias, part.coefficient))
            found.append(question.part([(second, negative(x))], bias, part.coefficient))
        return tuple(found)

    return parts(changed)


def _first_denominator(question: Question) -> Parts:
    (part,) = question.parts
    return (divided(part, question.part([(positive, positive(question.x))], _bias(question, positive))),)


def _output_clamped(question: Question) -> Question:
    """D = (A x)+ + b+, as a stabilizer of A x: it has no jump, and moves no more than A x does."""
    given, bias = question.stabilize, _bias(question, positive)
    S = CallableStabilizer(lambda d: given(positive(d) + bias), 1.0, 8, jumps=False)
    return replace(question, stabilize=S).with_parts(lambda q: (q.part([(same, q.x)]),))


def _matrix_clamped(question: Question) -> Parts:
    """A(w)+ in the place of A(w+); without a weight nothing is clamped."""
    if question.layer.weight is None:
        return question.parts
    A, x = question.layer.A(), question.x
    found = []
    for part, first, second in zip(question.parts, (positive, negative), (negative, positive), strict=False):
        # magnitudes, counts and all else that rounding asks for are those of the whole matrix
        known, whole = part.known_sizes, question.layer

        def sizes(known: rules.Sizes = known, whole: Affine = whole) -> rules.Sizes:
            return replace(known, matrices=(whole.size(),) * 2, counts=(whole.count(),) * 2)

        terms = ((first(A), positive(x)), (second(A), negative(x)))
        found.append(Part(terms, part.bias, part.coefficient, sizes=sizes))
    return tuple(found)


def _coefficients(change: Callable[[Array], Array]) -> Form:
    """The halves of AlphaBeta with other coefficients, of those that they have; one half alone keeps its own."""

    def changed(question: Question) -> Parts:
        if len(question.parts) == 1:
            return question.parts
        given = np.array([part.coefficient for part in question.parts])
        return tuple(replace(p, coefficient=float(c)) for p, c in zip(question.parts, change(given), strict=True))

    return parts(changed)


def _swapped(question: Question) -> Parts:
    alpha, beta = (question.given.get(name, value) for name, value in (("alpha", 2.0), ("beta", 1.0)))
    halves = rules.alpha_beta(question.layer, 1.0, 1.0)
    return tuple(replace(p, coefficient=float(c)) for p, c in zip(halves, (beta, -alpha), strict=True))


def _one_denominator(question: Question) -> Parts:
    (whole,) = rules.epsilon(question.layer)
    return tuple(divided(part, replace(whole, coefficient=part.coefficient)) for part in question.parts)


# --- Gamma ------------------------------------------------------------------------------------------------------------


def _gamma(question: Question) -> float:
    return float(question.given.get("gamma", 0.25))


Modified = Callable[[Array, Array, float], Array]


def _branches(modify: Modified, *, split: bool = True, swapped: bool = False) -> Form:
    """Branches of Gamma of modified weights: modify(w, w+ or w-, g); the constant and the gates are the rule's own."""

    def changed(question: Question) -> Parts:
        g = _gamma(question)

        def up(w: Array) -> Array:
            return modify(w, positive(w), g)

        def down(w: Array) -> Array:
            return modify(w, negative(w), g)

        opener = rules.norm(question.layer)[0]
        x, first, second = question.x, *((down, up) if swapped else (up, down))
        found = []
        for part, own, other in zip(question.parts, (first, second), (second, first), strict=True):
            terms = [(own, positive(x)), (other, negative(x))] if split else [(own, x)]
            found.append(question.part(terms, part.bias, gate=opener, open_=part.gate))
        return tuple(found)

    return parts(changed)


Scaled = Callable[[Array, float], Array]


def _favoured(w: Array, g: float) -> Array:
    return w + g * positive(w)


def _squared(w: Array, g: float) -> Array:
    return w + g * np.square(positive(w))


def _of_2019(bias: Scaled, weight: Scaled = _favoured) -> Form:
    """One run of changed weights for every output, whatever the signs of inputs and outputs."""

    def changed(question: Question) -> Parts:
        g = _gamma(question)
        return (question.part([(lambda w: weight(w, g), question.x)], bias(question.layer.b, g)),)

    return parts(changed)


def _scaled(w: Array, g: float) -> Array:
    return w + g * w


def _enlarged(w: Array, g: float) -> Array:
    return w + g * np.abs(w)


def _of_both(weight: Scaled) -> Form:
    return _branches(lambda w, _, g: weight(w, g))


def _small_is_none(question: Question) -> Parts:
    return rules.epsilon(question.layer) if _gamma(question) <= 0.01 else question.parts


# --- what flows back --------------------------------------------------------------------------------------------------


def _ones(question: Question) -> Array:
    return np.ones_like(question.x)


def _undivided(inputs: Callable[[Question], Array]) -> Form:
    """R = v * A^T R."""

    def changed(question: Question) -> Question:
        own = replace(question, layer=question.layer.real, stabilize=UNDIVIDED)
        return own.with_parts(lambda q: (q.part([(same, inputs(q))]),))

    return Changed(changed)


def _nonzero(w: Array) -> Array:
    return np.asarray(w != 0, np.float64)


_UNSPLIT = "only parameters are split by their sign, and negative inputs take part as they are"
_GAMMA_2019 = "w + g w+ is used for every output, and the signs of inputs are not looked at: the Gamma rule of 2019"

SPLIT: tuple[Convention, ...] = (
    Convention("inputs-unsplit", ("ZPlus", "AlphaBeta"),
               _UNSPLIT, _halves(lambda q, sign: [(sign, q.x)]), published=True),
    Convention("inputs-unsplit", ("Gamma",), "the signs of inputs are not looked at",
               _branches(lambda w, part, g: w + g * part, split=False), published=True),
    Convention("inputs-and-bias-unsplit", ("ZPlus", "AlphaBeta"),
               "only the weights are clamped, neither the bias nor the inputs are split by their signs",
               parts(lambda q: tuple(q.part([(sign, q.x)], q.layer.b, part.coefficient)
                                     for part, sign in zip(q.parts, (positive, negative), strict=False))),
               "captum's Alpha1_Beta0_Rule", published=True),
    Convention("positive-inputs-only", ("ZPlus", "AlphaBeta"), "there is no half of the negative inputs",
               _halves(lambda q, sign: [(sign, positive(q.x))])),
    Convention("separate-denominators", ("ZPlus", "AlphaBeta"), "each half is divided by its own sum",
               parts(_separate), "zennit PR #100"),
    *(
        Convention("separate-denominators-with-bias", ("ZPlus", "AlphaBeta"),
                   "each half is divided by its own sum, and the bias is in both sums",
                   _separate_with_bias(whole=whole), "wjNam's Relative_Attributing_Propagation")
        for whole in (False, True)
    ),
    Convention("half-denominator", ("ZPlus",), "the sum over the positive inputs is the denominator of both halves",
               parts(_first_denominator)),
    Convention("signs-crossed", ("ZPlus",), "positive inputs meet negative weights, and negative inputs positive ones",
               _one(lambda q: [(negative, positive(q.x)), (positive, negative(q.x))], lambda q: _bias(q, positive))),
    Convention("one-numerator", ("ZPlus",), "relevance flows back through A(w+) alone, to all inputs",
               _back(lambda q: [(positive, q.x)])),
    Convention("magnitudes", ("ZPlus",),
               "magnitudes of weights and inputs stand in the place of the positive contributions",
               _one(lambda q: [(np.abs, np.abs(q.x))], lambda q: _bias(q, positive))),
    Convention("output-clamped", ("ZPlus",), "the sum of the contributions is clamped, and not each of them",
               Changed(_output_clamped)),
    Convention("matrix-clamped", ("ZPlus", "AlphaBeta"),
               "the entries of the matrix are clamped, A(w)+, and not the parameters, A(w+)", parts(_matrix_clamped)),
    Convention("alpha-beta-swapped", ("AlphaBeta",), "beta scales the positive half, and alpha the negative one",
               parts(_swapped)),
    Convention("beta-added", ("AlphaBeta",), "the half of beta is added, as where alpha + beta = 1 with a beta below 0",
               _coefficients(np.abs), "Bach et al. 2015 with the sign of beta turned", published=True),
    Convention("only-alpha-scales", ("AlphaBeta",), "beta is taken for 1 where it is above 0",
               _coefficients(lambda c: np.array([c[0], -1.0]))),
    Convention("only-beta-scales", ("AlphaBeta",), "alpha is taken for 1",
               parts(lambda q: tuple(replace(p, coefficient=1.0 if i == 0 else p.coefficient)
                                     for i, p in enumerate(q.parts)))),
    Convention("one-denominator", ("AlphaBeta",), "both halves are divided by the output", parts(_one_denominator)),
    Convention("gamma-on-positive-weights-only", ("Gamma",), _GAMMA_2019,
               _of_2019(lambda b, g: b + g * positive(b)),
               "Montavon et al. 2019; RelevancePropagation.jl", published=True),
    Convention("gamma-on-positive-weights-only", ("Gamma",), _GAMMA_2019 + ", with the bias as it is",
               _of_2019(lambda b, _: b), "captum's GammaRule", published=True),
    Convention("gamma-squared-weight", ("Gamma",), "gamma times the square of a weight is added to it",
               _branches(lambda w, part, g: w + g * part * np.abs(part)), "TorchLRP"),
    *(
        Convention("gamma-squared-weight", ("Gamma",),
                   "w + g (w+)^2 is used for every output, and the signs of inputs are not looked at",
                   _of_2019(bias, _squared), "TorchLRP")
        for bias in (lambda b, _: b, _squared, _favoured)
    ),
    *(
        Convention("gamma-on-all-weights", ("Gamma",), f"gamma is applied to weights of both signs: {how}", form)
        for how, weight in (("(1 + g) w", _scaled), ("w + g |w|", _enlarged))
        for form in (_of_2019(lambda b, _: b, weight), _of_2019(weight, weight), _of_2019(_favoured, weight),
                     _of_both(weight))
    ),
    Convention("gamma-small-ignored", ("Gamma",), "for gamma up to 0.01, Epsilon is used", parts(_small_is_none),
               "autoLRP"),
    Convention("gamma-replaces-weight", ("Gamma",), "g w+ stands alone, without the weight itself",
               _branches(lambda _, part, g: g * part)),
    Convention("gamma-weights-swapped", ("Gamma",),
               "negative weights are favoured where z > 0, and positive ones where z < 0",
               _branches(lambda w, part, g: w + g * part, swapped=True)),
    Convention("gamma-ignored", ("Gamma",), "gamma is 0.25, whatever is given", parts(lambda q: rules.gamma(q.layer))),
    Convention("weights-magnitude", ("WSquare",), "the magnitude of a weight stands in the place of its square",
               _one(lambda q: [(np.abs, _ones(q))], lambda q: _bias(q, np.square))),
    Convention("weights-unsquared", ("WSquare",), "the weights are not squared, so that they cancel",
               _one(lambda q: [(same, _ones(q))], lambda q: _bias(q, np.square))),
    Convention("at-input", ("WSquare",), "the squares are weighed by the input",
               _one(lambda q: [(np.square, q.x)], lambda q: _bias(q, np.square))),
    Convention("at-input", ("Flat",),
               "the ones are weighed by the input", _one(lambda q: [(np.ones_like, q.x)], lambda _: 0.0)),
    Convention("zero-weights-left-out", ("Flat",), "weights of exactly 0 stay 0, and all others become 1",
               _one(lambda q: [(_nonzero, _ones(q))], lambda _: 0.0)),
    Convention("weights-signed", ("Flat",), "the weights become their signs",
               _one(lambda q: [(np.sign, _ones(q))], lambda _: 0.0)),
    Convention("input-not-multiplied", ("Epsilon", "Norm"), "what flows back is not multiplied by the input",
               _back(lambda q: [(same, _ones(q))])),
    Convention("input-magnitude", ("Epsilon", "Norm"), "what flows back is multiplied by the magnitude of the input",
               _back(lambda q: [(same, np.abs(q.x))])),
    Convention("gradient-times-input", _DIVIDED, "the relevance is not divided by anything: gradient times input",
               _undivided(lambda q: q.x), published=True),
    Convention("gradient", (*_DIVIDED, "Pass"),
               "the rule is not applied: the module's own gradient", _undivided(_ones)),
)  # fmt: skip
