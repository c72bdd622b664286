"""What a convention is: another way to answer what a rule was asked, with the bound of rounding that is its own."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from reference import rules
from reference.affine import Affine, Change, quantum
from reference.base import NonlinearLayer
from reference.precision import FLOAT64, Model
from reference.rounding import CallableStabilizer, beta_smooth_bound, bound, product_bound
from reference.rules import Gate, Part, Parts, Sizes, Stabilizer
from reference.windows import Array, Shape

Stabilize = Stabilizer | CallableStabilizer


class RefusedError(ValueError):
    """This convention gives an error here, and no relevance."""


class Answer(NamedTuple):
    """The relevance of one sample (n,), and the most that rounding explains (n,): inf where that is undecided.

    With `digits`, every entry was rounded to that many binary digits at last.
    """

    relevance: Array
    worst: Array
    digits: int | None = None


@dataclass(frozen=True, eq=False)
class Question:
    """One sample of what a rule was asked.

    layer         at the input, with zero_params applied
    R, stabilize  as everywhere here
    model         how the subject rounds
    parts_of      the rule with its parameters; None for the rules that look only at the gradient
    given         the arguments as they were given, bounds of ZBox for the whole batch
    index, batch  which sample of which shape of input this is
    digits        those of `Answer`
    """

    rule: str
    layer: Affine
    R: Array
    stabilize: Stabilize = field(default_factory=Stabilizer)
    model: Model = FLOAT64
    parts_of: Callable[[Affine], Parts] | None = None
    given: Mapping[str, Any] = field(default_factory=dict)
    index: int = 0
    batch: Shape = ()
    digits: int | None = None

    @cached_property
    def parts(self) -> Parts:
        """The parts of the rule itself."""
        return self.parts_at(self.layer)

    def parts_at(self, layer: Affine) -> Parts:
        """Return the parts of the rule on another layer."""
        assert self.parts_of is not None
        return self.parts_of(layer)

    def with_parts(self, change: "Callable[[Question], Parts]") -> "Question":
        """Return the question with other parts, on every layer that it may be asked on."""
        return replace(self, parts_of=lambda layer: change(self if layer is self.layer else replace(self, layer=layer)))

    def stabilized(self, stabilize: Stabilize) -> "Question":
        """Return the question with another stabilizer."""
        return self._with_same_parts(replace(self, stabilize=stabilize))

    def rounded(self, model: Model, digits: int) -> "Question":
        """Return the question as one that is answered in another precision."""
        return self._with_same_parts(replace(self, model=model, digits=digits))

    def _with_same_parts(self, other: "Question") -> "Question":
        if "parts" in vars(self):
            vars(other)["parts"] = self.parts  # they do not depend on it, and are what takes time
        return other

    @property
    def x(self) -> Array:
        """The input (n,)."""
        return self.layer.x

    @property
    def epsilon(self) -> float | None:
        """The number that was given as stabilizer; None for a callable."""
        given = self.stabilize
        plain = isinstance(given, Stabilizer) and not given.clip and not given.norm_scale
        return given.epsilon if plain and isinstance(given, Stabilizer) else None

    def answer(self, parts: Parts | None = None, R: Array | None = None, stabilize: Stabilize | None = None) -> Answer:
        """Answer with other parts, relevance or stabilizer, and as the rule itself where nothing is given."""
        R = self.R if R is None else R
        if self.parts_of is None and parts is None:
            return self._gradient(R)._replace(digits=self.digits)
        parts = self.parts if parts is None else parts
        stabilize = self.stabilize if stabilize is None else stabilize
        r, limit = rules.relevance(parts, R, stabilize), bound(parts, R, stabilize, self.model)
        return Answer(r, limit.worst, self.digits)

    def _gradient(self, R: Array) -> Answer:
        if self.rule == "ReLUBetaSmooth":
            beta = self.given.get("beta_smooth", 10.0)
            limit = beta_smooth_bound(self.x, R, beta, self.model)
            return Answer(rules.relu_beta_smooth(self.x, R, beta), limit.worst)
        if self.rule == "ReLUGuidedBackprop":
            return self.sloped(R * (R > 0))
        exact = np.zeros_like(R)
        return Answer(rules.relu_deconvnet(R) if self.rule == "ReLUDeconvNet" else rules.pass_(R), exact)

    def inexact(self, R: Array, error: Array) -> Answer:
        """Answer with a relevance at the output that is itself off by so much."""
        found = self.answer(R=R)
        if self.parts_of is None:
            return found._replace(worst=found.worst + np.abs(self.answer(R=error).relevance))
        carried = np.zeros_like(found.worst)
        for part in self.parts:
            with np.errstate(divide="ignore", invalid="ignore"):
                # a denominator that is decided is off by less than itself: twice is enough
                s = 2 * error / np.abs(self.stabilize(part.denominator))
            s = np.where(error > 0, s if part.gate is None else s * part.gate, 0.0)
            for matrix, v in part.terms:
                carried += abs(part.coefficient) * np.abs(v) * (np.abs(matrix).T @ s)
        return found._replace(worst=found.worst + carried)

    @cached_property
    def output(self) -> tuple[Array, Array]:
        """The real output (m,), and how far rounding takes it."""
        (whole,) = rules.norm(self.layer)
        size, known = whole.magnitude, whole.known_sizes
        error = self.model.gamma(whole.products + known.roundings + 4) * size
        return self.layer.z, np.where(size <= known.grain / self.model.coarsest, 0.0, error)

    def sloped(self, R: Array) -> Answer:
        """Return f'(x) R, for a function of each entry."""
        assert isinstance(self.layer.layer, NonlinearLayer)
        slope, size = (np.diagonal(m) for m in (self.layer.A(), self.layer.layer.sizes(self.x)[1]))
        return Answer(slope * R, product_bound(size, R, self.layer.layer.roundings, self.model).worst)

    def sum(self, *answers: Answer) -> Answer:
        """Return the sum of answers."""
        r = np.array([answer.relevance for answer in answers])
        adding = len(answers) * self.model.unit * np.abs(r).sum(0)
        return Answer(r.sum(0), np.sum([answer.worst for answer in answers], 0) + adding)

    def part(
        self,
        terms: Sequence[tuple[Change, Array]],
        bias: Array | float = 0.0,
        coefficient: float = 1.0,
        *,
        gate: Part | None = None,
        open_: Gate | None = None,
    ) -> Part:
        """Return the part with the terms (A(change w), v) and this constant, and what rounding must know of it."""
        layer = self.layer
        constant = np.broadcast_to(np.asarray(bias, np.float64), layer.b.shape)

        def sizes() -> Sizes:
            grains = [_grain(layer, change) * quantum(v) for change, v in terms]
            size = np.abs(constant)
            return Sizes(
                tuple(layer.size(change) for change, _ in terms),
                tuple(layer.count(change) for change, _ in terms),
                np.maximum(size, layer.real.offset_size()) if layer.layer.roundings else size,
                bias_terms=3,
                # of a changed parameter, and of a changed input
                roundings=2 * layer.layer.roundings + 4,
                grain=0.0 if not all(grains) else min(*grains, quantum(constant)),
                gate=gate,
            )

        matrices = tuple((layer.A(change), v) for change, v in terms)
        return Part(matrices, constant, coefficient, open_, sizes)


def _grain(layer: Affine, change: Change) -> float:
    if layer.layer.roundings:
        return 0.0
    return layer.weight_grain if layer.weight is None else quantum(change(layer.weight))


@dataclass(frozen=True, eq=False)
class Divided(Part):
    """A part whose denominator is that of another one: d of `by`, and the way back through the own terms."""

    by: Part | None = None

    @property
    def _by(self) -> Part:
        assert self.by is not None
        return self.by

    @cached_property
    def contributions(self) -> Array:
        """Those of the other part (m,)."""
        return self._by.contributions

    @cached_property
    def magnitude(self) -> Array:
        """That of the other part (m,)."""
        return self._by.magnitude

    @cached_property
    def products(self) -> Array:
        """Those of the other part (m,)."""
        return self._by.products


def divided(back: Part, by: Part) -> Part:
    """Return the way back through one part with the denominator, the gate and the coefficient of another."""

    def sizes() -> Sizes:
        own, other = back.known_sizes, by.known_sizes
        # both ways are rounded; and the magnitudes of the way back are not scaled
        return replace(
            other,
            matrices=tuple(own.scale * matrix for matrix in own.matrices),
            counts=own.counts,
            roundings=max(own.roundings, other.roundings),
            scale=1.0,
        )

    return Divided(back.terms, by.bias, by.coefficient, by.gate, sizes, by)


def with_bias(part: Part, bias: Array) -> Part:
    """Return the part with another constant."""

    def sizes() -> Sizes:
        known = part.known_sizes
        grain = min(known.grain, quantum(bias))
        return replace(known, bias=np.maximum(known.bias, np.abs(bias)), bias_terms=3, grain=grain)

    return replace(part, bias=bias, sizes=sizes)


def with_gate(part: Part, gate: Gate | None, opener: Part | None) -> Part:
    """Return the part with another gate, opened by the sign of the opener's denominator; None is a certain one."""
    return replace(part, gate=gate, sizes=lambda: replace(part.known_sizes, gate=opener))


#: S(d) = 1: what flows back is not divided by anything.
UNDIVIDED = CallableStabilizer(np.ones_like, lipschitz=0.0, roundings=0, jumps=False)

Batch = Sequence[Question]
Form = Callable[[Batch], Sequence[Answer]]


@dataclass(frozen=True)
class Changed:
    """A form that answers another question in the place of each: it can be put together with any other form."""

    change: Callable[[Question], Question]

    def __call__(self, batch: Batch) -> Sequence[Answer]:
        """Answer a batch."""
        return [self.change(question).answer() for question in batch]


@dataclass(frozen=True)
class Convention:
    """A known variant of some rules.

    name       in kebab-case; entries of the same name are the same variant, written for other rules
    rules      those that it is a variant of
    sentence   what is done, to be read after a colon
    form       gives the answers of a batch, or raises `RefusedError`
    seen       the library or paper in which it was seen, where that is known
    published  whether it is a convention that somebody chose and published, and not just a mistake
    """

    name: str
    rules: tuple[str, ...]
    sentence: str
    form: Form = field(repr=False)
    seen: str = ""
    published: bool = False


@dataclass(frozen=True)
class each:  # noqa: N801  as a table reads it
    """A form that answers each sample by itself."""

    answer: Callable[[Question], Answer]

    def __call__(self, batch: Batch) -> Sequence[Answer]:
        """Answer a batch."""
        return [self.answer(question) for question in batch]


def parts(change: Callable[[Question], Parts]) -> Form:
    """Answer each sample with other parts."""
    return Changed(lambda question: question.with_parts(change))


def mapped(change: Callable[[Question, Part], Part]) -> Form:
    """Answer each sample with each part changed."""
    return parts(lambda question: tuple(change(question, part) for part in question.parts))


def relevance(change: Callable[[Array], Array]) -> Form:
    """Answer each sample with another relevance at the output, changed without any rounding."""
    return Changed(lambda question: replace(question, R=change(question.R)))
