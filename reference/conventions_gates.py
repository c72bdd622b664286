"""Conventions in which another sign opens the branches of Gamma, or of the rules that look only at the gradient."""

from collections.abc import Callable

import numpy as np

from reference import rules
from reference.affine import same
from reference.conventions_base import Answer, Convention, Form, Question, each, parts, with_gate
from reference.rules import Gate, Part, Parts
from reference.windows import Array

Gates = tuple[Gate, Gate]


def _real(question: Question) -> Part:
    """The part whose denominator is the real output."""
    return rules.norm(question.layer)[0]


def _left(question: Question) -> Part:
    """The part whose denominator is the output that zero_params leave."""
    return rules.epsilon(question.layer)[0]


def _inputs(question: Question) -> Part:
    """The part whose denominator is what the inputs contribute to the output."""
    return question.part([(same, question.x)])


def _gated(opener: Callable[[Question], Part], gates: Callable[[Question], Gates]) -> Form:
    """Both branches with other gates; the sign of the opener's denominator is what rounding may change."""

    def changed(question: Question) -> Parts:
        opens = opener(question)
        pairs = zip(question.parts, gates(question), strict=True)
        return tuple(with_gate(part, gate, opens) for part, gate in pairs)

    return parts(changed)


def _constant(above: bool, below: bool) -> Form:  # noqa: FBT001  the two branches
    def changed(question: Question) -> Parts:
        return tuple(
            with_gate(part, None, None) for part, taken in zip(question.parts, (above, below), strict=True) if taken
        )

    return parts(changed)


def _z(compare: Callable[[Array], Gates]) -> Form:
    return _gated(_real, lambda question: compare(question.layer.z))


def _by_own_sign(question: Question) -> Parts:
    first, second = (with_gate(part, None, None) for part in question.parts)
    return with_gate(first, first.denominator > 0, first), with_gate(second, second.denominator < 0, second)


def _by_relevance(question: Question) -> Parts:
    first, second = question.parts
    return with_gate(first, question.R > 0, None), with_gate(second, question.R < 0, None)


def _by_sum(question: Question) -> Parts:
    """One gate for all outputs: it is certain where all outputs have the sign of their sum, and else as the sum is."""
    first, second = question.parts
    total, size = question.layer.z.sum(), _real(question).magnitude.sum()
    unsure = not abs(total) > size * len(question.R) * question.model.gamma(len(question.x) + len(question.R) + 4)
    opener = Part(((np.zeros((len(question.R), 1)), np.ones(1)),), np.zeros(len(question.R))) if unsure else None
    gates = (np.full(len(question.R), sign * total > 0) for sign in (1, -1))
    return tuple(with_gate(part, gate, opener) for part, gate in zip((first, second), gates, strict=True))


def _guided(gate: Callable[[Array], Gate]) -> Form:
    return each(lambda question: question.sloped(question.R * gate(question.R)))


def _exact(change: Callable[[Array], Array]) -> Form:
    return each(lambda question: Answer(change(question.R), np.zeros_like(question.R)))


def _derivative_ignored(question: Question) -> Answer:
    slope = question.sloped(np.ones_like(question.R)).relevance
    return Answer(np.maximum(question.R, 0) * (slope != 0), np.zeros_like(question.R))


def _softplus(question: Question) -> Answer:
    beta = question.given.get("beta_smooth", 10.0)
    # torch takes x itself from beta x = 20 on
    factor = np.where(beta * question.x > 20, question.x, np.logaddexp(0, beta * question.x) / beta)
    # log1p(exp(t)) and a quotient, each within a few units; t itself is rounded twice
    size = (factor + np.abs(question.x)) * np.abs(question.R)
    return Answer(factor * question.R, 16 * question.model.unit * size)


_PUBLISHED_2019 = "Montavon et al. 2019"

GATES: tuple[Convention, ...] = (
    Convention("gate-relevance", ("Gamma",), "the sign of the relevance opens the branches, and not that of the output",
               parts(_by_relevance)),
    Convention("gate-modified-output", ("Gamma",),
               "the sign of each branch's own denominator opens it, and not that of the output", parts(_by_own_sign)),
    Convention("gate-none", ("Gamma",), "the branch for z > 0 is taken everywhere", _constant(above=True, below=False),
               _PUBLISHED_2019, published=True),
    Convention("gate-both", ("Gamma",), "both branches are taken everywhere", _constant(above=True, below=True)),
    Convention("gate-positive-only", ("Gamma",), "where z < 0 the relevance goes nowhere",
               _z(lambda z: (z > 0, np.zeros_like(z, np.bool_)))),
    Convention("gate-swapped", ("Gamma",), "the branch for z > 0 is taken where z < 0, and the other way round",
               _z(lambda z: (z < 0, z > 0))),
    Convention("gate-zero-above", ("Gamma",), "where z = 0 the branch for z > 0 is taken",
               _z(lambda z: (z >= 0, z < 0))),
    Convention("gate-zero-below", ("Gamma",), "where z = 0 the branch for z < 0 is taken",
               _z(lambda z: (z > 0, z <= 0))),
    Convention("gate-without-bias", ("Gamma",), "the sign of A x opens the branches, without the bias",
               _gated(_inputs, lambda q: (_inputs(q).denominator > 0, _inputs(q).denominator < 0))),
    Convention("gate-zeroed", ("Gamma",), "the sign of what zero_params leaves of the output opens the branches",
               _gated(_left, lambda q: (_left(q).denominator > 0, _left(q).denominator < 0))),
    Convention("gate-by-sample", ("Gamma",), "the sign of the sum of all outputs opens the branches", parts(_by_sum)),
    Convention("gate-both", ("ReLUDeconvNet",),
               "the gradient's own gate is kept besides that of the relevance, which is guided backpropagation",
               _guided(lambda R: R > 0), "Springenberg et al. 2015", published=True),
    Convention("gate-input", ("ReLUDeconvNet",), "the gate is that of the gradient, and not the sign of the relevance",
               _guided(np.isfinite)),
    Convention("ungated", ("ReLUDeconvNet",), "negative relevance is passed on, too", _exact(np.array)),
    Convention("ungated", ("ReLUGuidedBackprop",), "negative relevance is passed on, too: the plain gradient",
               _guided(np.isfinite)),
    Convention("gate-swapped", ("ReLUGuidedBackprop",), "negative relevance is passed on, and positive is not",
               _guided(lambda R: R < 0)),
    Convention("gate-input", ("ReLUGuidedBackprop",),
               "positive relevance passes everywhere, and the derivative is left out, which is DeconvNet",
               _exact(lambda R: np.maximum(R, 0)), "Zeiler and Fergus 2014", published=True),
    Convention("derivative-ignored", ("ReLUGuidedBackprop",),
               "relevance passes whole wherever the derivative is not zero", each(_derivative_ignored)),
    Convention("softplus", ("ReLUBetaSmooth",), "the softplus itself is the factor, and not its derivative",
               each(_softplus)),
)  # fmt: skip
