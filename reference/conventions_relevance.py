"""Conventions in which something is done to relevance: ignored, replaced, rescaled, rounded, mixed over samples."""

from collections.abc import Callable

import numpy as np

from reference.conventions_base import Answer, Batch, Changed, Convention, Question, each, relevance
from reference.precision import FLOAT32
from reference.windows import Array

_DIVIDED = ("Epsilon", "Norm", "ZPlus", "AlphaBeta", "Gamma", "ZBox", "WSquare", "Flat")
_ALL = (*_DIVIDED, "Pass", "ReLUDeconvNet", "ReLUGuidedBackprop", "ReLUBetaSmooth")


def _ignored(question: Question) -> Answer:
    return question.inexact(*question.output)


def _weighed(question: Question) -> Answer:
    z, error = question.output
    size = np.abs(question.R)
    return question.inexact(question.R * z, size * (error + question.model.unit * np.abs(z)))


def _normalised(size: Callable[[Array], float], plus: float = 0.0) -> Callable[[Batch], list[Answer]]:
    def answers(batch: Batch) -> list[Answer]:
        total = size(np.concatenate([question.R for question in batch])) + plus
        count = sum(len(question.R) for question in batch)
        return [q.inexact(q.R / total, np.abs(q.R) / total * q.model.gamma(count + 4.0)) for q in batch if total]

    return answers


def _sum(R: Array) -> float:
    return float(np.abs(R).sum())


def _largest(R: Array) -> float:
    return float(np.abs(R).max(initial=0.0))


def _averaged(batch: Batch) -> list[Answer]:
    R = np.array([question.R for question in batch])
    mean, size = R.mean(0), np.abs(R).mean(0)
    return [question.inexact(mean, size * question.model.gamma(len(batch) + 2.0)) for question in batch]


def _of_first(batch: Batch) -> list[Answer]:
    return [question.answer(R=batch[0].R) for question in batch]


def _rolled(batch: Batch) -> list[Answer]:
    answers = [question.answer() for question in batch]
    return [*answers[-1:], *answers[:-1]]


def _rescale(batch: Batch) -> list[Answer]:
    """R * sum(R) / sum(r), both sums over the whole batch."""
    answers = [question.answer() for question in batch]
    R = np.concatenate([question.R for question in batch])
    r, worst = (np.concatenate(rows) for rows in zip(*[answer[:2] for answer in answers], strict=True))
    gamma = batch[0].model.gamma(len(r) + len(R) + 4.0)
    factor, off = R.sum() / r.sum(), worst.sum() + gamma * np.abs(r).sum()
    room = np.abs(r.sum()) - off
    relative = off / room + gamma * np.abs(R).sum() / abs(R.sum()) * (1 + off / room)
    if not room > 0 or not np.isfinite(relative):
        return [Answer(a.relevance * factor, np.full_like(a.worst, np.inf)) for a in answers]
    return [
        Answer(a.relevance * factor, abs(factor) * (a.worst + (np.abs(a.relevance) + a.worst) * (relative + gamma)))
        for a in answers
    ]


def _rescaled_each(batch: Batch) -> list[Answer]:
    return [answer for question in batch for answer in _rescale([question])]


def _remainder(question: Question) -> Answer:
    r, worst, _ = question.answer()
    n = len(r)
    size = np.abs(question.R).sum() + np.abs(r).sum()
    share = (question.R.sum() - r.sum()) / n
    off = (worst.sum() + question.model.gamma(n + len(question.R) + 4.0) * size) / n
    return Answer(r + share, worst + off + question.model.unit * (np.abs(r) + abs(share)))


def _in_float32(question: Question) -> Question:
    return question if question.model.unit >= FLOAT32.unit else question.rounded(FLOAT32, 24)


def _to_float32(R: Array) -> Array:
    return R.astype(np.float32).astype(np.float64)


def _half_result(question: Question) -> Answer:
    r, worst, _ = answer = question.answer()
    return Answer(r, worst + 2.0**-8 * (np.abs(r) + worst), 8) if question.model.unit == FLOAT32.unit else answer


def _result_clipped(question: Question) -> Answer:
    r, worst, _ = question.answer()
    return Answer(np.clip(r, -1e4, 1e4), worst)


_NORMALISED = "the relevance is divided by its own size"
_RESCALED = "the result is rescaled so that it sums to the relevance that came in"
_FLOAT32 = "what is computed in float64 goes through float32"

RELEVANCE: tuple[Convention, ...] = (
    Convention("relevance-ignored", _DIVIDED, "the relevance is never read: the output of the layer stands for it",
               each(_ignored)),
    Convention("relevance-output", _DIVIDED, "the relevance is weighed by the output, as if it were a gradient",
               each(_weighed)),
    *(
        Convention("relevance-normalised", _ALL, _NORMALISED, _normalised(size, plus))
        for size in (_sum, _largest)
        for plus in (0.0, 1e-9)
    ),
    Convention("relevance-sign", _ALL, "only the sign of the relevance is used", relevance(np.sign)),
    Convention("relevance-magnitude", _ALL, "only the magnitude of the relevance is used", relevance(np.abs)),
    Convention("relevance-positive", tuple(rule for rule in _ALL if not rule.startswith(("ReLUD", "ReLUG"))),
               "negative relevance is dropped", relevance(lambda R: np.maximum(R, 0))),
    Convention("relevance-negated", _ALL, "the relevance comes out with the other sign",
               each(lambda q: q.answer()._replace(relevance=-q.answer().relevance))),
    Convention("relevance-clipped", _ALL,
               "relevance beyond 100 is cut off", relevance(lambda R: np.clip(R, -100, 100))),
    Convention("relevance-clipped", _ALL, "a result beyond 10^4 is cut off", each(_result_clipped)),
    Convention("relevance-small-dropped", _ALL, "relevance below 10^-3 counts as none",
               relevance(lambda R: R * (np.abs(R) >= 1e-3))),
    Convention("relevance-averaged", _ALL, "the relevance is averaged over the batch", _averaged),
    Convention("relevance-of-first", _ALL, "the relevance of the first sample serves all", _of_first),
    *(Convention("relevance-rescaled", _DIVIDED, _RESCALED, form) for form in (_rescale, _rescaled_each)),
    Convention("remainder-shared", _DIVIDED,
               "what the result lacks of the relevance is given to all inputs in equal parts",
               each(_remainder)),
    Convention("batch-rolled", _ALL, "the samples of the result are in another order", _rolled),
)  # fmt: skip

PRECISION: tuple[Convention, ...] = (
    *(Convention("float32", _ALL, _FLOAT32, form) for form in (Changed(_in_float32), relevance(_to_float32))),
    Convention("half-result", _ALL, "a result of float32 is rounded to bfloat16", each(_half_result)),
)  # fmt: skip
