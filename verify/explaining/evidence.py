"""What an answer of a subject says for a variant of a rule, and what against it.

Errors say neither: an exception is about an argument, a layer or a dtype, and not about a formula. Only a variant that
is a refusal itself is told by them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from reference import rules
from reference.conventions import DETAILS, Answer, Changed, Convention, Question, RefusedError, Together, each, topic_of
from reference.layers import affine
from reference.precision import FLOAT64, model_for
from verify.checks import agreement
from verify.checks.comparator import compare
from verify.explaining.asked import Setup
from verify.formats.torch_layers import array, describe
from verify.questions.variants import Sample

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from reference.layers import Affine
    from reference.rules import Parts
    from verify.model import Case
    from verify.questions.variants import Variant

    Array = NDArray[np.float64]

#: What speaks for a variant in a case: it differs from the rule there, and it is a number other than zero.
DIFFERS, NUMBER = "differs from the rule", "a number"
#: Further off than this, by the norm, nothing is the same formula, whatever its epsilon and its digits.
COARSE = 1e-2
#: Nor is it where this is more than so many bounds of rounding, and than this share of the largest number.
_FAR, _RELATIVE = 1e6, 1e-8


def enough(said: set[str], refused: set[bool]) -> bool:
    """Whether a variant is borne out: by a number, and where the rule itself is not what the subject computes.

    ``refused`` tells of each error of the subject whether the variant is one, too. One that differs from the rule in
    nothing else has to explain all errors.
    """
    return NUMBER in said and (DIFFERS in said or refused == {True})


def questions(case: Case) -> list[Question]:
    """Return what the reference is asked in a case, one question a sample."""
    setup = Setup(case)
    problem, variant = setup.problem, setup.variant
    described = describe(problem.module, setup.layer.sample_shape)
    x, relevance = (agreement.rows(t, batched=True) for t in (problem.x, problem.relevance))
    shape = tuple(problem.x.shape)
    model = model_for(str(problem.x.dtype), case.device)
    given = {name: array(v) if isinstance(v, torch.Tensor) else v for name, v in setup.arguments.items()}

    def question(index: int, x: Array, R: Array) -> Question:
        if variant is None:
            return Question(case.rule, affine(described, x), R, model=model, given=given, index=index, batch=shape)
        sample, layer = Sample(index, shape, batched=True), affine(described, x, variant.zero_params)
        parts_of = partial(_parts_of, variant, sample)
        return Question(case.rule, layer, R, variant.stabilizer, model, parts_of, given, index, shape)

    return [question(i, x_i, R_i) for i, (x_i, R_i) in enumerate(zip(x, relevance, strict=True))]


def _parts_of(variant: Variant, sample: Sample, layer: Affine) -> Parts:
    return variant.parts(layer, sample)


@dataclass(frozen=True, eq=False)
class Asked:
    """What a subject gave in a case, None for an error, and what it was asked."""

    got: Array | None
    batch: list[Question]
    #: Questions as variants change them, which their details are then tried on.
    kept: dict[tuple[int, ...], list[Question]] = field(default_factory=dict)

    @cached_property
    def right(self) -> list[Answer]:
        """What the rule itself gives."""
        return [question.answer() for question in self.batch]

    @cached_property
    def as_right(self) -> list[bool]:
        """Whether what came of a sample is what the rule itself gives."""
        if self.got is None or len(self.got) != len(self.right):
            return [False] * len(self.right)
        return [holds(row, answer) for row, answer in zip(self.got, self.right, strict=True)]

    @cached_property
    def certain(self) -> bool:
        """Whether rounding decides nothing here: what is far off is another formula, and needs no bound.

        Where weights are integers, the rule's own denominators are exact, and those of a variant need not be.
        """
        known = zip(self.batch, self.right, strict=True)
        return all(q.model == FLOAT64 and not q.layer.weight_grain and np.isfinite(a.worst).all() for q, a in known)

    def changed(self, variant: Together) -> list[Question]:
        """Return the questions as a variant changes them; those before its details are kept for its other details."""
        convention = [one for one in variant.conventions if isinstance(one.form, Changed)]
        main = [one for one in convention if topic_of(one) not in DETAILS]
        details = [one for one in convention if topic_of(one) in DETAILS]
        key = tuple(id(one) for one in main)
        batch = self.kept.get(key, self.batch if not key else None)
        if batch is None:
            batch = [_through(main, question) for question in self.batch]
            if len(variant.conventions) > len(main):
                self.kept[key] = batch
        return [_through(details, question) for question in batch] if details else batch

    def answered(self, index: int, question: Question) -> Answer | None:
        """Return the answer to a question of one sample; None where it is far from what came."""
        r, right = quick(question), self.right[index]
        if question.digits is None and self.as_right[index] and np.array_equal(r, right.relevance):
            return right  # the rule itself; what holds within its bound needs no other
        return None if self._is_far(index, r, question.digits) else question.answer()

    def _is_far(self, index: int, r: Array, digits: int | None) -> bool:
        """Whether a relevance is certainly not what came, whatever its bound: these differ, but not by so much."""
        if self.got is None or not self.certain:
            return False
        got = self.got[index]
        if got.shape != r.shape or not np.isfinite(r).all():
            return False
        if digits is not None:
            return not has_digits(got, digits) or not near(got, r)
        limit = max(_FAR * self.right[index].worst.max(initial=0.0), _RELATIVE * np.abs(got).max(initial=0.0))
        return not np.abs(got - r).max(initial=0.0) <= limit


def _through(conventions: Sequence[Convention], question: Question) -> Question:
    for one in conventions:
        assert isinstance(one.form, Changed)
        question = one.form.change(question)
    return question


def near(got: Array, r: Array) -> bool:
    """Whether two relevances are the same but for details."""
    if got.shape != r.shape:
        return False
    return bool(np.abs(got - r).max(initial=0.0) <= COARSE * np.abs(got).max(initial=0.0))


def quick(question: Question) -> Array:
    """The relevance without its bound."""
    if question.parts_of is None:
        return question.answer().relevance
    return rules.relevance(question.parts, question.R, question.stabilize)


def speaks(variant: Together, asked: Asked) -> set[str] | None:
    """Return what speaks for a variant in a case; None where it does not agree with what the subject gave."""
    if asked.got is None:
        return set()
    if len(asked.got) != len(asked.batch):
        return None
    with np.errstate(all="ignore"):
        try:
            return _said(variant, asked, asked.got)
        except RefusedError:
            return None
        except (ValueError, AssertionError):
            if len(variant.conventions) > 1:  # two that do not go together
                return None
            raise


def _said(variant: Together, asked: Asked, got: Array) -> set[str] | None:
    found = set[str]()
    for row, right, answer in zip(got, asked.right, _answers(variant, asked), strict=False):
        if answer is None or not holds(row, answer):
            return None
        found |= _evidence(row, answer, right)
    return found


def _answers(variant: Together, asked: Asked) -> Iterator[Answer | None]:
    """Yield the answers of a variant, one a sample; None for one that is far off."""
    batch = asked.changed(variant)
    if variant.last is None:
        yield from (asked.answered(index, one) for index, one in enumerate(batch))
    elif isinstance(variant.last, each):
        yield from map(variant.last.answer, batch)
    else:
        yield from variant.last(batch)


def _evidence(got: Array, answer: Answer, right: Answer) -> set[str]:
    decided = np.isfinite(answer.worst)
    outside = ~(np.abs(got - right.relevance) <= right.worst)
    found = {DIFFERS} if (outside & (decided | ~np.isfinite(got))).any() else set()
    return found | ({NUMBER} if (decided & np.isfinite(got) & (got != 0)).any() else set())


def refuses(variant: Together, batch: Sequence[Question]) -> bool:
    """Whether a variant gives an error, and no relevance."""
    try:
        for question in batch:
            changed = question
            for one in variant.changes:
                changed = one.change(changed)
            if changed.parts_of is not None:
                _ = changed.parts
    except RefusedError:
        return True
    except (ValueError, AssertionError):
        if len(variant.conventions) > 1:
            return False
        raise
    return False


def differ(variants: Sequence[Together], batch: list[Question]) -> bool:
    """Whether some subject that follows one of these would be told from the others by this case."""
    with np.errstate(all="ignore"):
        return not _alike(variants, batch) and _differ(variants, batch)


def _alike(variants: Sequence[Together], batch: list[Question]) -> bool:
    """Whether all give the very same numbers; what they would be within rounding is not asked here."""
    if any(variant.last is not None for variant in variants):
        return False
    first: list[Array] = []
    for variant in variants:
        try:
            found = [quick(_through(variant.conventions, question)) for question in batch]
        except ValueError:
            return False
        first = first or found
        if not all(np.array_equal(a, b, equal_nan=True) for a, b in zip(first, found, strict=True)):
            return False
    return True


def _differ(variants: Sequence[Together], batch: list[Question]) -> bool:
    found: list[list[Answer] | None] = []
    for variant in variants:
        try:
            found.append(list(variant.form(batch)))
        except ValueError:
            found.append(None)
    first = found[0]
    return any(
        (one is None) != (first is None)
        or any(not holds(a.relevance, b) for a, b in zip(one or (), first or (), strict=True))
        for one in found[1:]
    )


def holds(got: Array, answer: Answer) -> bool:
    """Whether a relevance is this one, within its bound of rounding."""
    r, worst, digits = answer
    if got.shape != r.shape:
        return False
    if not np.isfinite(r).all():
        # 0 * inf spreads over whatever an implementation multiplies with: where to is no part of a convention
        return not np.isfinite(got).all()
    if digits is not None and not has_digits(got, digits):
        return False
    return compare(got, r, worst).holds


def has_digits(got: Array, digits: int) -> bool:
    """Whether every number has at most so many binary digits."""
    mantissa = np.ldexp(np.frexp(got)[0], digits)
    return bool((mantissa == np.rint(mantissa)).all())
