"""`assert_rule`: for whoever writes one rule and has its formula, in NumPy, as the expectation."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from reference.layers import affine
from reference.precision import model_for
from verify.cases import draw
from verify.checks.agreement import judge, rows
from verify.checks.conduct import TOPICS
from verify.checks.conduct_probing import R, Values, X, attached, complain, grad, leaf, linear
from verify.checks.probing import fail, passed, relevance_of
from verify.comparator import check_itself
from verify.layers import LAYERS, LayerCase
from verify.model import BAD, Case, Finding, Level, Outcome, Verdict
from verify.report import UNDECIDED_LIMIT, percent, share_undecided
from verify.subjects import Subject
from verify.torch_layers import describe
from verify.tracked import Matrix, TrackedArray, UndecidedError, bound, exact
from verify.worker import ask

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from reference.layers import Layer
    from reference.precision import Model
    from verify.problem import Problem

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
_NAME = "Epsilon"
_SHOWN = 8


def assert_rule(
    rule: Callable[[], Any],
    formula: Formula,
    *,
    layers: Sequence[str] = ("*",),
    dtypes: Sequence[str] = DTYPES,
    laws: Sequence[str] = ("*",),
    conduct: Sequence[str] = ("*",),
    seed: int = 0,
    only: str | None = None,
) -> None:
    """Assert that a rule computes its formula, obeys the laws that hold for rules, and conducts itself.

    There is no tolerance to choose: the formula is evaluated on numbers that know how far rounding may have taken them
    (:mod:`verify.tracked`), in float64 and in float32.

        def epsilon(A, x, b, R):
            z = A @ x + b
            return x * (A.T @ (R / (z + 1e-6 * np.where(z < 0, -1, 1))))

        assert_rule(MyEpsilon, epsilon)

    Parameters
    ----------
    rule
        Called without arguments, it returns an object whose ``register(module)`` makes the gradient of the module's
        input the relevance, and returns an object with ``remove()``: a class, or ``lambda: MyRule(gamma=0.5)``.
    formula
        Takes one sample of a layer z = A x + b: the matrix A (m, n), input x (n,), constant b (m,) and relevance R (m,)
        of the output; returns the relevance of the input (n,). ``A.of(f)`` is the matrix of the changed parameter,
        such as ``A.of(lambda w: np.maximum(w, 0))``, which is not ``np.maximum(A, 0)`` where padding is circular.
        It may use + - * / ** @, abs, comparisons, np.where, maximum, minimum, clip, sign, sqrt, and what moves numbers
        around.
    layers
        Patterns of types of layers, or of names, for a rule that does not take all: ``["Linear", "Conv*"]``.
    laws, conduct
        Patterns of laws (additive, sample-alone, permuted-outputs, permuted-inputs) and of topics of conduct, for a
        rule that is not meant to obey all; an empty list leaves them out.
    seed
        Draws other data.
    only
        The one case to be asked, by its id, as the message of a failure names it.

    Raises
    ------
    AssertionError
        If the rule does not hold: which cases, what it gave, what the formula gives, and how to ask again.
    ValueError
        If no case is selected, or the formula does not return one number for every input.

    """
    name = getattr(rule, "__name__", type(rule).__name__)
    asked = _Asked(rule, formula, seed)
    cases = [*_cases(asked, layers, dtypes, laws, conduct)]
    selected = [case for case in cases if only in {None, case.id}]
    if not selected:
        msg = f"no case is selected by only={only!r}, layers={layers!r}, dtypes={dtypes!r}; known are " + ", ".join(
            case.id for case in cases
        )
        raise ValueError(msg)
    check_itself()
    outcomes = _answers(rule, selected, seed)
    failures = [outcome for outcome in outcomes if outcome.verdict in BAD]
    undecided = share_undecided(outcomes)
    if failures or not undecided <= UNDECIDED_LIMIT:
        raise AssertionError(_account(name, outcomes, failures, undecided, seed))


def _account(name: str, outcomes: Sequence[Outcome], failures: Sequence[Outcome], undecided: float, seed: int) -> str:
    """Say what is wrong, where, and how to ask again."""
    lines = []
    if failures:
        lines.append(f"{name} does not hold: {len(failures)} of {len(outcomes)} cases fail")
        asked = Counter(outcome.check for outcome in outcomes)
        for check, count in Counter(outcome.check for outcome in failures).items():
            where = dict.fromkeys(o.layer for o in failures if o.check == check and o.layer != "-")
            lines.append(f"  {check}: {count} of {asked[check]}  {', '.join(where)}".rstrip())
        lines += [f"    {o.id}: {o.verdict.value}: {o.reason}" for o in failures[:_SHOWN]]
        lines += [f"    and {len(failures) - _SHOWN} more"] if len(failures) > _SHOWN else []
        drawn = f", seed={seed}" if seed else ""
        lines.append(f'to ask one again: assert_rule({name}, formula, only="{failures[0].id}"{drawn})')
    if not undecided <= UNDECIDED_LIMIT:
        share = f"{percent(undecided)} of the entries are undecided, more than {percent(UNDECIDED_LIMIT)}"
        lines.append(f"{share}: rounding decides the formula's own comparisons or denominators there")
    return "\n".join(lines)


@dataclass(frozen=True)
class _Asked:
    """A rule, and the formula that it should follow."""

    rule: Callable[[], Any]
    formula: Formula
    seed: int

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


def _answers(rule: Callable[[], Any], cases: Sequence[Case], seed: int) -> list[Outcome]:
    subject = Subject("rule", SimpleNamespace(**{_NAME: _Maker(rule)}), "")
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        return [ask(case, subject, seed, here=True) for case in cases]


class _Maker:
    """Makes the rule, whatever arguments a topic would have given a rule that it knows."""

    def __init__(self, rule: Callable[[], Any]) -> None:
        self._rule = rule

    def __call__(self, **_: Any) -> Any:
        return self._rule()


# --- the cases --------------------------------------------------------------------------------------------------------


def _cases(
    asked: _Asked, layers: Sequence[str], dtypes: Sequence[str], laws: Sequence[str], topics: Sequence[str]
) -> Iterator[Case]:
    if unknown := set(dtypes) - set(DTYPES):
        msg = f"dtypes has {', '.join(sorted(unknown))}; expected {' or '.join(DTYPES)}"
        raise ValueError(msg)
    chosen = {layer.name: layer for layer in LAYERS if _matches((layer.family, layer.name), layers)}
    for name, kinds in _GRID.items():
        for kind in kinds if name in chosen else ():
            for dtype in dtypes:
                run = partial(_agrees, asked, chosen[name], kind, dtype)
                yield _case(f"agreement/{name}/{kind}/{dtype}", chosen[name], dtype, run)
    for law, both in _LAWS.items():
        for name in _OF_LAWS if _matches((law,), laws) else ():
            for dtype in dtypes if name in chosen else ():
                run = partial(_obeys, asked, chosen[name], both, dtype)
                yield _case(f"laws/{law}/{name}/{dtype}", chosen[name], dtype, run)
    if any(layer.family == "Linear" for layer in chosen.values()):  # the layer of the topics
        if _matches(("parameters",), topics):
            yield _case("conduct/parameters", None, "float64", partial(_parameters, asked.rule))
        for topic in _TOPICS:
            if _matches((topic.what,), topics):
                yield replace(topic.case(_NAME), id=f"conduct/{topic.what}")


def _matches(names: Sequence[str], patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name.lower(), pattern.lower()) for name in names for pattern in patterns)


def _case(id_: str, layer: LayerCase | None, dtype: str, run: Callable[[Subject], Finding]) -> Case:
    check, family = id_.partition("/")[0], layer.family if layer else "-"
    return Case(id_, "", family, check, dtype, Level.MUST, run)


def _agrees(asked: _Asked, layer: LayerCase, kind: str, dtype: str, _: Subject) -> Finding:
    problem = draw(layer, kind, dtype, asked.seed)
    expected, room, model = asked.expected(problem, layer)
    try:
        got = asked.got(problem)
    except _WrongError as error:
        return fail(str(error))
    return judge(got, expected, room, None, model.name)


#: Two ways to the same relevance: problems, and what each relevance has to become to be added up to zero.
Sides = list[tuple["Problem", "Callable[[Tensor], Tensor]"]]


def _obeys(
    asked: _Asked, layer: LayerCase, both: Callable[[LayerCase, Problem], Sides], dtype: str, _: Subject
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
    return judge(values[0], np.asarray(sum(values[1:])), np.asarray(total), None, name)


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
    alone = replace(problem, x=problem.x[:1], relevance=problem.relevance[:1])
    return [(alone, _identity), (problem, lambda r: r[:1])]


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
