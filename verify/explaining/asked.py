"""What a case of the grid asks, number by number: the problem, what the reference says of it, what the subject does."""

from __future__ import annotations

import contextlib
import sys
import warnings
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from reference.layers import affine
from reference.precision import model_for
from verify.checks import agreement
from verify.formats import layer_json
from verify.formats.torch_layers import array, describe
from verify.model import NotOfferedError
from verify.questions.fixed import arguments_as_fixed, as_fixed
from verify.questions.variants import Sample, Variant
from verify.subjects.asking import relevance_by_call

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from reference.layers import Layer
    from reference.ledger import Shares
    from verify.model import Case, Problem, Subject
    from verify.questions.fixed import Fixing
    from verify.questions.layers import LayerCase

    Array = NDArray[np.float64]

#: The checks of the grid whose cases can be taken apart.
CHECKS = frozenset({agreement.agrees, agreement.conserves, agreement.gradient_agrees})


def posed(case: Case, subject: Fixing) -> Case | None:
    """Return a case as it is asked of a subject that cannot change all parameters; None for what it does not offer."""
    run = case.run
    if not subject.parameters.get(case.rule) or not isinstance(run, partial) or run.func not in CHECKS:
        return case
    of_problem, layer, what, *rest = run.args
    try:
        if isinstance(what, Variant):
            what = as_fixed(what, subject)
        else:
            rest[0] = arguments_as_fixed(case.rule, rest[0], subject)
    except NotOfferedError:
        return None
    return replace(case, run=partial(run.func, of_problem, layer, what, *rest))


class Setup:
    """The data of a case of the grid, for a subject."""

    def __init__(self, case: Case) -> None:
        assert isinstance(case.run, partial)  # see `CHECKS`
        of_problem, layer, what, *rest = case.run.args
        self.problem: Problem = of_problem()
        self.layer: LayerCase = layer
        self.variant: Variant | None = what if isinstance(what, Variant) else None
        x = self.problem.x
        self.arguments: dict[str, Any] = (
            what.arguments(tuple(x.shape), x.dtype) if isinstance(what, Variant) else rest[0]
        )


@dataclass(frozen=True, eq=False)
class Numbers:
    """All numbers of a case, in float64; x, expected, bound and got have the shape of the input.

    ``tensors`` are what was given: x, the layer's, and R. ``denominators`` are those of the formula before they are
    stabilized, one row a sample. ``got`` is None where the subject gave no relevance of this shape.
    """

    layer_name: str
    layer: Mapping[str, Any]
    parameters: Mapping[str, Any]
    tensors: Mapping[str, Array]
    expected: Array
    bound: Array
    got: Array | None
    denominators: Mapping[str, Array] = field(default_factory=dict)
    ledgers: tuple[Shares, ...] = ()

    @property
    def sums(self) -> list[float] | None:
        """The sum of what came, a number a sample."""
        if self.got is None:
            return None
        return [float(row.sum()) for row in self.got.reshape(max(1, len(self.ledgers)), -1)]


def numbers(case: Case, subject: Subject, *, seed: int, seconds: float) -> Numbers | None:
    """Ask a case again, for its numbers; None for one that compares no relevance with the reference's."""
    if not isinstance(case.run, partial) or case.run.func not in CHECKS or (asked := posed(case, subject)) is None:
        return None
    # its prints and warnings are not the report's
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        setup = Setup(asked)
        return _numbers(case, setup, _got(case, setup, subject, seed, seconds))


def _got(case: Case, setup: Setup, subject: Subject, seed: int, seconds: float) -> Array | None:
    problem, threads = setup.problem, torch.get_num_threads()
    # as the runner does: the order of sums depends on it
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    torch.set_grad_enabled(True)
    try:
        with subject.asking(case, seconds):
            r: Any = relevance_by_call(subject.get(case.rule)(**setup.arguments), problem)
        if not isinstance(r, torch.Tensor) or r.shape != problem.x.shape:
            return None
        got: Array = array(r)
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001  the verdict says what it raises
        return None
    finally:
        torch.set_num_threads(threads)
    return got


def _numbers(case: Case, setup: Setup, got: Array | None) -> Numbers:
    problem, variant, shape = setup.problem, setup.variant, tuple(setup.problem.x.shape)
    described = describe(problem.module, setup.layer.sample_shape)
    tensors = {"x": array(problem.x), **layer_json.tensors_of(described), "R": array(problem.relevance)}
    samples = [agreement.rows(t, batched=problem.batched) for t in (problem.x, problem.relevance)]
    parameters = {name: _plain(value) for name, value in setup.arguments.items()}
    layer = layer_json.describe(described)
    if variant is None:
        expected, bound = _of_gradient(case, described, setup.arguments, *samples)
        parts: dict[str, Array] = {}
        ledgers: tuple[Shares, ...] = ()
    else:
        found = agreement.Expected(problem, setup.layer, variant, case.device, sampled=True)
        expected, bound = found.relevance, found.worst
        ledgers = tuple(account.total() for account in found.ledgers)
        parts = _denominators(described, variant, samples[0], problem)
    if len(expected) < len(samples[0]):  # of a large batch, some samples are compared: the others have no bound
        chosen = agreement.some(len(samples[0]))
        every = [np.full(samples[0].shape, value) for value in (np.nan, np.inf)]
        every[0][chosen], every[1][chosen] = expected, bound
        expected, bound = every
    return Numbers(
        setup.layer.name, layer, parameters, tensors, expected.reshape(shape), bound.reshape(shape), got, parts, ledgers
    )


def _of_gradient(
    case: Case, layer: Layer, arguments: Mapping[str, float], x: Array, relevance: Array
) -> tuple[Array, Array]:
    model = model_for(case.dtype, case.device)
    found = [
        agreement.gradient_rule(case.rule, layer, x_i, R_i, arguments, model)
        for x_i, R_i in zip(x, relevance, strict=True)
    ]
    return np.array([r for r, _ in found]), np.array([limit.worst for _, limit in found])


def _denominators(layer: Layer, variant: Variant, x: Array, problem: Problem) -> dict[str, Array]:
    shape = tuple(problem.x.shape)
    rows = [
        variant.parts(affine(layer, x_i, variant.zero_params), Sample(index, shape, problem.batched))
        for index, x_i in enumerate(x)
    ]
    if not rows:
        return {}
    names = ["d"] if len(rows[0]) == 1 else _PARTS.get(variant.rule, [f"d, part {k}" for k, _ in enumerate(rows[0], 1)])
    return {name: np.array([row[place].denominator for row in rows]) for place, name in enumerate(names)}


#: How the denominators of a rule with two are told apart, as its formula says.
_PARTS = {"Gamma": ["d, used where z > 0", "d, used where z < 0"], "AlphaBeta": ["d, first half", "d, second half"]}


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.tolist()
    return getattr(value, "__name__", str(value)) if callable(value) else value
