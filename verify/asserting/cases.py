"""What `assert_rule` asks: a formula on a grid of layers and data, laws that hold for any rule, conduct."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from reference.layers import affine
from reference.precision import model_for
from verify.asserting.tracked import UndecidedError
from verify.asserting.tracked_array import Matrix, TrackedArray, bound, exact
from verify.checks.agreement import judge, rows
from verify.checks.conduct.probing import R, Values, X, attached, complain, grad, leaf, linear
from verify.checks.conduct.topics import TOPICS
from verify.checks.probing import fail, passed
from verify.formats.torch_layers import describe
from verify.model import Case, Finding, Level
from verify.questions.drawing import draw
from verify.questions.layers import LAYERS, LayerCase
from verify.subjects.asking import relevance_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from reference.layers import Layer
    from reference.precision import Model
    from verify.model import Problem, Subject

    Array = NDArray[np.float64]
    Formula = Callable[[Matrix, TrackedArray, TrackedArray, TrackedArray], Any]

DTYPES = ("float64", "float32")
#: One of each kind of layer whose parameter can be changed, and the kinds of data that each is given.
_GRID = {
    "linear-5-4": ("signed", "nonnegative", "nonpositive", "zeros", "single", "batch-of-1", "batch-of-0"),
    "linear-7-3-nobias": ("signed", "zeros"),
    "linear-1-3": ("signed", "zeros"),
    "linear-3d-input": ("signed", "zeros"),
    "conv1d-k3-s2-p1-d2": ("signed", "zeros"),
    "conv2d-k3x2-s2x1-p1x0": ("signed", "nonnegative", "zeros", "noncontiguous", "channels-last"),
    "conv2d-g2": ("signed",),
    "conv2d-circular": ("signed", "zeros"),
    "convtranspose1d-k3": ("signed", "zeros"),
    "convtranspose2d-s2-p1-op1": ("signed", "nonnegative", "zeros"),
}
_OF_LAWS = ("linear-5-4", "conv2d-k3x2-s2x1-p1x0", "convtranspose2d-s2-p1-op1")
#: Topics of `conduct` that no rule has to be made for: it is compared with itself, doing the same again.
_CONDUCT = (
    "optimizer-and-tied-weights", "tensors", "forward", "remove", "exception", "same-answer", "two-forwards",
    "two-modules", "registered-twice", "deepcopy", "retain-graph", "without-grad", "random-state",
    "in-place-neighbours",
)  # fmt: skip
#: The rule under whose name the topics are asked: one that takes layers with parameters.
NAME = "Epsilon"


@dataclass(frozen=True)
class Asked:
    """A rule, and the formula that it should follow."""

    rule: Callable[[], Any]
    formula: Formula
    seed: int

    def try_formula(self) -> None:
        """Evaluate the formula once, so that a mistake in it is not told as one of the rule."""
        layer = next(layer for layer in LAYERS if layer.name in _GRID)
        self.expected(draw(layer, "signed", "float64", self.seed), layer)

    def expected(self, problem: Problem, layer: LayerCase) -> tuple[Array, Array, Model]:
        """Return what the formula gives, and how far rounding may take it; one row a sample."""
        model = model_for(str(problem.x.dtype))
        described = describe(problem.module, tuple(problem.x.shape[1:]) if layer.batched else layer.shape)
        x, relevance = (rows(t, batched=problem.batched) for t in (problem.x, problem.relevance))
        given = [self._sample(described, x_i, R_i, model) for x_i, R_i in zip(x, relevance, strict=True)]
        values = np.array([value for value, _ in given]).reshape(x.shape)
        return values, np.array([room for _, room in given]).reshape(x.shape), model

    def _sample(self, layer: Layer, x: Array, R: Array, model: Model) -> tuple[Array, Array]:
        described: Any = layer
        weight, constant = exact(described.weight, model), exact(affine(layer, x).b, model)
        A = Matrix.gathered(described.matrix, weight, model)
        try:
            r = self.formula(A, exact(x, model), constant, exact(R, model))
            shape = np.shape(r)
            if shape != x.shape:
                msg = f"the formula returns shape {shape}, expected one number for each of the inputs, {x.shape}"
                raise ValueError(msg)
            return bound(r, model)
        except UndecidedError:
            return np.zeros_like(x), np.full_like(x, np.inf)

    def got(self, problem: Problem) -> Array:
        """Return the relevance that the rule gives, one row a sample; raise _WrongError if it is none."""
        r: Any = relevance_of(self.rule(), problem.module, problem.x, problem.relevance)
        for what, given, expected in (
            ("type", type(r), Tensor),
            ("shape", tuple(getattr(r, "shape", ())), tuple(problem.x.shape)),
            ("dtype", getattr(r, "dtype", None), problem.x.dtype),
        ):
            if given != expected:
                msg = f"relevance of {what} {given}, expected that of the input, {expected}"
                raise _WrongError(msg)
        return rows(r, batched=problem.batched)


class _WrongError(Exception):
    """What a rule returns is no relevance at all."""


@dataclass(frozen=True)
class Patterns:
    """What is asked for."""

    layers: Sequence[str]
    kinds: Sequence[str]
    laws: Sequence[str]
    topics: Sequence[str]


def cases_of(asked: Asked, given: Patterns, dtypes: Sequence[str]) -> Iterator[Case]:
    """Yield the cases that are asked for; raise ValueError for a dtype that has none."""
    if unknown := set(dtypes) - set(DTYPES):
        msg = f"dtypes has {', '.join(sorted(unknown))}; expected {' or '.join(DTYPES)}"
        raise ValueError(msg)
    chosen = {layer.name: layer for layer in LAYERS if _matches((layer.family, layer.name), given.layers)}
    for name, kinds in _GRID.items():
        for kind, dtype in product(kinds if name in chosen else (), dtypes):
            if _matches((kind,), given.kinds):
                run = partial(_agrees, asked, chosen[name], kind, dtype)
                yield _case(f"agreement/{name}/{kind}/{dtype}", chosen[name], dtype, run)
    for law, name, dtype in product(_LAWS, _OF_LAWS, dtypes):
        if name in chosen and _matches((law,), given.laws):
            run = partial(_obeys, asked, chosen[name], _LAWS[law], dtype)
            yield _case(f"laws/{law}/{name}/{dtype}", chosen[name], dtype, run)
    yield from _conduct_cases(asked, given, chosen.values())


def _conduct_cases(asked: Asked, given: Patterns, chosen: Iterable[LayerCase]) -> Iterator[Case]:
    if any(layer.family == "Linear" for layer in chosen):  # the layer of the topics
        if _matches(("parameters",), given.topics):
            yield _case("conduct/parameters", None, "float64", partial(_parameters, asked.rule))
        for topic in _TOPICS:
            if _matches((topic.what,), given.topics):
                yield replace(topic.case(NAME), id=f"conduct/{topic.what}")


def _matches(names: Sequence[str], patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name.lower(), pattern.lower()) for name in names for pattern in patterns)


def _case(id_: str, layer: LayerCase | None, dtype: str, run: Callable[[Subject], Finding]) -> Case:
    check, family = id_.partition("/")[0], layer.family if layer else "-"
    return Case(id_, "", family, check, dtype, Level.MUST, run)


def _agrees(asked: Asked, layer: LayerCase, kind: str, dtype: str, _: Subject) -> Finding:
    problem = draw(layer, kind, dtype, asked.seed)
    expected, room, model = asked.expected(problem, layer)
    try:
        got = asked.got(problem)
    except _WrongError as error:
        return fail(str(error))
    known = np.isfinite(expected)  # where the formula is not, there is nothing to compare
    found = judge(np.where(known, got, 0), np.where(known, expected, 0), room, None, model.name)
    return replace(found, undecidable=_unbounded(room))


#: Two ways to the same relevance: problems, and what each relevance has to become to be added up to zero.
Sides = list[tuple["Problem", "Callable[[Tensor], Tensor]"]]


def _obeys(
    asked: Asked, layer: LayerCase, both: Callable[[LayerCase, Problem], Sides], dtype: str, _subject: Subject
) -> Finding:
    """Check that the first relevance is the sum of the others, within what rounding explains of each."""
    problem = draw(layer, "signed", dtype, asked.seed)
    values, rooms, name = [], [], ""
    for side, back in both(layer, problem):
        shape = tuple(side.x.shape)
        try:
            got = asked.got(side)
        except _WrongError as error:
            return fail(str(error))
        _, room, model = asked.expected(side, layer)
        pair = [back(torch.from_numpy(array).reshape(shape)) for array in (got, room)]
        value, off = (rows(t, batched=True) for t in pair)
        values.append(value)
        rooms.append(off)
        name = model.name
    # the sum itself is taken in float64
    total = sum(rooms) + np.finfo(np.float64).eps * sum(map(np.abs, values[1:]))
    found = judge(values[0], np.asarray(sum(values[1:])), np.asarray(total), None, name)
    return replace(found, undecidable=_unbounded(np.asarray(sum(rooms))))


def _unbounded(room: Array) -> float:
    """Return the share of entries for which the formula leaves no finite bound, whatever the rule gives."""
    return float(np.isposinf(room).mean()) if room.size else 0.0


def _parameters(make: Callable[[], Any], _: Subject) -> Finding:
    """Check that nothing of a parameter moves, before, between and after forward and backward."""
    module, x = linear(), leaf(X)
    values = Values(module)
    with attached(make(), module):
        changes = [*complain(values.changes(), "registered")]
        y = module(x)
        changes += complain(values.changes(), "after forward")
        grad(y, x, R)
        changes += complain(values.changes(), "after backward")
    changes += complain(values.changes(), "after remove()")
    return fail(changes[0]) if changes else passed()


def _identity(r: Tensor) -> Tensor:
    return r


def _additive(_: LayerCase, problem: Problem) -> Sides:
    """R1 and R2 have signs of their own, and their sum is exact."""
    first = (problem.relevance * 64).round() / 64
    second = -2 * first.flip(1).roll(1, 0)
    return [(replace(problem, relevance=R), _identity) for R in (first + second, first, second)]


def _sample_alone(_: LayerCase, problem: Problem) -> Sides:
    """The batch is what its samples are alone, one below the other."""
    samples = len(problem.x)
    each = [
        replace(problem, x=problem.x[index : index + 1], relevance=problem.relevance[index : index + 1])
        for index in range(samples)
    ]
    return [(problem, _identity), *((one, partial(_as_sample, index, samples)) for index, one in enumerate(each))]


def _as_sample(index: int, samples: int, r: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(r)] * index + [r] + [torch.zeros_like(r)] * (samples - index - 1))


def _permuted(layer: LayerCase, problem: Problem, *, outputs: bool) -> Sides:
    module: Any = copy.deepcopy(problem.module)
    axis = int(outputs == ("Transpose" in layer.family))
    order = torch.arange(module.weight.shape[axis]).roll(1)
    module.weight = nn.Parameter(module.weight.detach().index_select(axis, order))
    if outputs:
        module.bias = nn.Parameter(module.bias.detach()[order])
        changed = replace(problem, module=module, relevance=problem.relevance[:, order])
        return [(changed, _identity), (problem, _identity)]
    changed = replace(problem, module=module, x=problem.x[:, order])
    return [(changed, lambda r: r[:, order.argsort()]), (problem, _identity)]


_LAWS: dict[str, Callable[[LayerCase, Problem], Sides]] = {
    "additive": _additive,
    "sample-alone": _sample_alone,
    "permuted-outputs": partial(_permuted, outputs=True),
    "permuted-inputs": partial(_permuted, outputs=False),
}
_TOPICS = tuple(topic for topic in TOPICS if topic.what in _CONDUCT)
