"""Conventions in which something else keeps a denominator away from zero."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from reference.conventions_base import (
    Answer,
    Batch,
    Changed,
    Convention,
    Form,
    Question,
    Stabilize,
    each,
    parts,
    with_gate,
)
from reference.precision import FLOAT32
from reference.rounding import CallableStabilizer
from reference.rules import Part, Parts, Stabilizer, sign
from reference.windows import Array

_ALL = ("Epsilon", "Norm", "ZPlus", "AlphaBeta", "Gamma", "ZBox", "WSquare", "Flat")

Numbered = Callable[[Array, float], Array]


def _known(S: Numbered, eps: float, *, jumps: bool = True, roundings: int = 6) -> CallableStabilizer:
    return CallableStabilizer(lambda d: S(d, eps), 1.0 + eps, roundings, jumps)


def _numbers(S: Numbered, *, jumps: bool = True) -> Form:
    """Another S wherever a number was given, and the callable where that was."""

    def changed(question: Question) -> Question:
        eps = question.epsilon
        return question if eps is None else question.stabilized(_known(S, eps, jumps=jumps))

    return Changed(changed)


def _second_half(S: Numbered, *, jumps: bool = True) -> Form:
    """Another S in the second half alone."""

    def answer(question: Question) -> Answer:
        eps, (first, *second) = question.epsilon, question.parts
        if eps is None or not second:
            return question.answer()
        other = question.answer(tuple(second), stabilize=_known(S, eps, jumps=jumps))
        return question.sum(question.answer((first,)), other)

    return each(answer)


def _scaled(scale: Callable[[Array], float], *, over_batch: bool) -> Form:
    """Epsilon is multiplied by something of all denominators, of one sample or of the batch."""

    def answers(batch: Batch) -> list[Answer]:
        return [answer(question, batch if over_batch else (question,)) for question in batch]

    def answer(question: Question, others: Batch) -> Answer:
        eps = question.epsilon
        if eps is None:
            return question.answer()
        found = []
        for index, part in enumerate(question.parts):
            factor = scale(np.concatenate([other.parts[index].denominator for other in others]))
            # the scale is rounded as a denominator is, and more often
            S = _known(_signed, eps * factor, roundings=2 * len(question.x) + 64)
            found.append(question.answer((part,), stabilize=S))
        return question.sum(*found)

    return answers


def _signed(d: Array, eps: float) -> Array:
    return d + eps * sign(d)


def _squared(d: Array, eps: float) -> Array:
    return sign(d) * np.sqrt(d * d + eps * eps)


def _of_coupled_gate(batch: Batch) -> list[Answer]:
    zero = np.any([question.layer.z == 0 for question in batch], 0)
    return [question.answer(R=np.where(zero, 0.0, question.R)) for question in batch]


def _fixed(eps: float) -> Form:
    return Changed(lambda question: question.stabilized(Stabilizer(eps)))


def _second_fixed(S: Stabilize) -> Form:
    def answer(question: Question) -> Answer:
        first, *second = question.parts
        if not second:
            return question.answer()
        return question.sum(question.answer((first,)), question.answer(tuple(second), stabilize=S))

    return each(answer)


def _twice(question: Question) -> Question:
    given = question.stabilize
    if isinstance(given, Stabilizer):
        S = CallableStabilizer(lambda d: given(given(d)), 1.0, 8)
    else:
        S = replace(given, function=lambda d: given(given(d)), roundings=2 * given.roundings + 4)
    return question.stabilized(S)


def _default(eps: float) -> Form:
    """Another number where none is given."""
    named = {"stabilizer", "epsilon"}
    return Changed(lambda question: question if named & question.given.keys() else question.stabilized(Stabilizer(eps)))


def _rounded(question: Question) -> Question:
    eps = question.epsilon
    return question if eps is None else question.stabilized(Stabilizer(float(np.float32(eps))))


def _denominator_rounded(question: Question) -> Question:
    """S(d) in the digits of float32: whoever is off by a rounding of float64 nearly always has the same."""
    given = question.stabilize
    if question.model.unit >= FLOAT32.unit:
        return question
    known = given if isinstance(given, CallableStabilizer) else CallableStabilizer(given)
    return question.stabilized(
        replace(known, function=lambda d: given(d).astype(np.float32).astype(np.float64), roundings=known.roundings + 4)
    )


def _dropped(question: Question) -> Parts:
    """Where a denominator is exactly 0, its relevance goes nowhere."""

    def gated(part: Part) -> Part:
        nonzero = part.denominator != 0
        if part.gate is None:
            return with_gate(part, nonzero, part)
        return with_gate(part, part.gate & nonzero, part.known_sizes.gate)

    return tuple(gated(part) for part in question.parts)


def _reached(question: Question) -> Parts:
    """An output that no parameter reaches, as between the strides of a transposed convolution, divides nothing."""
    within = np.asarray(question.layer.count(np.ones_like).any(1))
    return tuple(
        with_gate(part, within if part.gate is None else part.gate & within, part.known_sizes.gate)
        for part in question.parts
    )


#: The numbers that stand in libraries in the place of 1e-6.
_NUMBERS_IN_USE = {1e-12: "", 1e-9: "captum", 1e-8: "", 1e-7: "innvestigate", 1e-5: "", 1e-4: "", 1e-3: "", 1e-2: ""}

_COUPLED = "samples of a batch are coupled: "
_BARE = CallableStabilizer(np.array, 1.0, 0, jumps=False)

#: Another number for epsilon, which any of `STABILIZER` may then use in its own way.
EPSILON: tuple[Convention, ...] = (
    Convention("stabilizer-ignored", _ALL, "the stabilizer is 1e-6, whatever is given", _fixed(1e-6)),
    *(
        Convention("stabilizer-ignored", _ALL, f"the stabilizer is {eps:.0e}, whatever is given", _fixed(eps), seen)
        for eps, seen in _NUMBERS_IN_USE.items()
    ),
    *(
        Convention("stabilizer-default", _ALL, f"without an argument, the stabilizer is {eps:.0e}", _default(eps))
        for eps in _NUMBERS_IN_USE
    ),
    *(
        Convention("unstabilized", _ALL, "nothing is stabilized: an output without contributions is 0 / 0", form,
                   "Flat and WSquare of lrp_toolbox")
        for form in (_fixed(0.0), Changed(lambda q: q.with_parts(_reached).stabilized(Stabilizer(0.0))))
    ),
    Convention("epsilon-float32", _ALL, "epsilon has the digits of float32, whatever the dtype", Changed(_rounded),
               "TorchLRP"),
)  # fmt: skip

STABILIZER: tuple[Convention, ...] = (
    Convention("epsilon-unsigned", _ALL, "epsilon is added without the sign of the denominator: a pole at d = -epsilon",
               _numbers(lambda d, eps: d + eps, jumps=False), "LXT"),
    Convention("epsilon-unsigned", ("AlphaBeta",),
               "in the half of beta, epsilon is added without the sign of the denominator",
               _second_half(lambda d, eps: d + eps, jumps=False), "lrp_toolbox"),
    Convention("epsilon-subtracted", _ALL, "epsilon moves the denominator towards zero, and across it",
               _numbers(lambda d, eps: d - eps * sign(d))),
    Convention("zero-unstabilized", _ALL, "sgn(0) is 0, so that a denominator of 0 stays 0",
               _numbers(lambda d, eps: d + eps * np.sign(d))),
    Convention("zero-negative", _ALL, "sgn(0) is -1",
               _numbers(lambda d, eps: np.where(d > 0, d + eps, d - eps)), "TorchLRP"),
    Convention("epsilon-clip", _ALL, "denominators below epsilon become epsilon, and all others stay as they are",
               _numbers(lambda d, eps: sign(d) * np.maximum(np.abs(d), eps))),
    Convention("epsilon-only-at-zero", _ALL, "only denominators of exactly 0 are stabilized",
               _numbers(lambda d, eps: np.where(d == 0, eps, d))),
    *(
        Convention("epsilon-relative", _ALL, "epsilon is a share of the denominators", form)
        for form in (
            _numbers(lambda d, eps: np.where(d == 0, eps, d * (1 + eps))),
            _scaled(lambda d: float(np.abs(d).max(initial=0.0)), over_batch=False),
            _scaled(lambda d: float(np.abs(d).max(initial=0.0)), over_batch=True),
        )
    ),
    Convention("epsilon-squared", _ALL, "the magnitude of the denominator is stabilized as the root of d^2 + epsilon^2",
               _numbers(_squared)),
    Convention("batch-coupled", _ALL, _COUPLED + "epsilon is scaled by the norm of all their denominators",
               _scaled(lambda d: float(np.sqrt(np.mean(d * d))) if d.size else 1.0, over_batch=True)),
    Convention("batch-coupled", ("Gamma",), _COUPLED + "where one has z = 0, the relevance of all goes nowhere",
               _of_coupled_gate),
    Convention("second-half-default-stabilizer", ("AlphaBeta",),
               "in the half of beta, the stabilizer is 1e-6, whatever is given",
               _second_fixed(Stabilizer(1e-6))),
    Convention("second-half-unstabilized", ("AlphaBeta",), "only the half of alpha is stabilized", _second_fixed(_BARE),
               "lrp_toolbox"),
    Convention("stabilized-twice", _ALL, "the stabilizer is applied twice, the second time to what the first one gave",
               Changed(_twice)),
    *(
        Convention("zero-dropped", _ALL, "relevance of an output whose denominator is exactly 0 goes nowhere", form,
                   "moboehle's Pytorch-LRP")
        for form in (parts(_dropped), Changed(lambda q: q.with_parts(_dropped).stabilized(Stabilizer(0.0))))
    ),
    Convention("denominator-float32", _ALL, "the stabilized denominator goes through float32",
               Changed(_denominator_rounded)),
)  # fmt: skip
