"""Conventions in which something else keeps a denominator away from zero."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from reference.conventions_base import Answer, Batch, Convention, Form, Question, Stabilize, each
from reference.rounding import CallableStabilizer
from reference.rules import Stabilizer, sign
from reference.windows import Array

_ALL = ("Epsilon", "Norm", "ZPlus", "AlphaBeta", "Gamma", "ZBox", "WSquare", "Flat")

Numbered = Callable[[Array, float], Array]


def _known(S: Numbered, eps: float, *, jumps: bool = True, roundings: int = 6) -> CallableStabilizer:
    return CallableStabilizer(lambda d: S(d, eps), 1.0 + eps, roundings, jumps)


def _numbers(S: Numbered, *, jumps: bool = True) -> Form:
    """Another S wherever a number was given, and the callable where that was."""

    def answer(question: Question) -> Answer:
        eps = question.epsilon
        return question.answer(stabilize=None if eps is None else _known(S, eps, jumps=jumps))

    return each(answer)


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


def _fixed(question: Question) -> Answer:
    return question.answer(stabilize=Stabilizer(1e-6))


def _second_fixed(S: Stabilize) -> Form:
    def answer(question: Question) -> Answer:
        first, *second = question.parts
        if not second:
            return question.answer()
        return question.sum(question.answer((first,)), question.answer(tuple(second), stabilize=S))

    return each(answer)


def _twice(question: Question) -> Answer:
    given = question.stabilize
    if isinstance(given, Stabilizer):
        S = CallableStabilizer(lambda d: given(given(d)), 1.0, 8)
    else:
        S = replace(given, function=lambda d: given(given(d)), roundings=2 * given.roundings + 4)
    return question.answer(stabilize=S)


_COUPLED = "samples of a batch are coupled: "
_BARE = CallableStabilizer(np.array, 1.0, 0, jumps=False)

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
    Convention("stabilizer-ignored", _ALL, "the stabilizer is 1e-6, whatever is given", each(_fixed)),
    Convention("second-half-default-stabilizer", ("AlphaBeta",),
               "in the half of beta, the stabilizer is 1e-6, whatever is given",
               _second_fixed(Stabilizer(1e-6))),
    Convention("second-half-unstabilized", ("AlphaBeta",), "only the half of alpha is stabilized", _second_fixed(_BARE),
               "lrp_toolbox"),
    Convention("stabilized-twice", _ALL, "the stabilizer is applied twice, the second time to what the first one gave",
               each(_twice)),
)  # fmt: skip
