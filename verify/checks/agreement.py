"""Checks ``agreement`` and ``conservation``: the relevance of a subject against the reference, and where it went."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from reference import rules as ref
from reference.layers import NonlinearLayer, affine
from reference.ledger import Ledger, ledger
from reference.precision import model_for
from reference.rounding import Bound, beta_smooth_bound, bound, product_bound
from verify.checks.comparator import compare
from verify.formats.remembered import remembered
from verify.formats.torch_layers import array, describe
from verify.model import Finding, Verdict
from verify.questions.fixed import arguments_as_fixed, as_fixed
from verify.questions.variants import Sample, Variant
from verify.subjects.answering import is_answered, is_recording
from verify.subjects.asking import relevance_by_call

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from reference.layers import Layer
    from reference.precision import Model
    from verify.model import Problem, Subject
    from verify.questions.layers import LayerCase

    Array = NDArray[np.float64]


def relevance_or_wrong(rule: Any, problem: Problem) -> tuple[Array | None, Finding | None]:
    """Return the subject's relevance, one row a sample; or what is wrong with it, or with torch."""
    # torch has every layer in the two usual dtypes, or there would be no answer
    known = is_recording() or (is_answered(rule) and problem.x.dtype in {torch.float32, torch.float64})
    if not known and (unsupported := _unsupported(problem)):
        return None, unsupported
    x = problem.x
    r = relevance_by_call(rule, problem)
    if not isinstance(r, torch.Tensor) or r.shape != x.shape:
        shape = tuple(r.shape) if isinstance(r, torch.Tensor) else type(r).__name__
        return None, Finding(
            Verdict.FAIL, reason=f"relevance of shape {shape}, expected that of the input, {tuple(x.shape)}"
        )
    if r.dtype != x.dtype:
        return None, Finding(
            Verdict.FAIL, reason=f"relevance of dtype {r.dtype}, expected that of the input, {x.dtype}"
        )
    return rows(r, batched=problem.batched), None


def rows(t: Tensor, *, batched: bool) -> Array:
    """Return a tensor's values with one row a sample."""
    values: Array = array(t)
    samples = values.shape[0] if batched else 1
    return values.reshape(samples, values.size // samples if samples else 0)


def _unsupported(problem: Problem) -> Finding | None:
    """Tell a layer that torch itself cannot run in this dtype from a rule that is wrong."""
    try:
        x = problem.x.detach().requires_grad_()
        torch.autograd.grad(problem.module(x * 1 if problem.call == "inner" else x), x, problem.relevance)
    except (RuntimeError, NotImplementedError) as error:
        if "not implemented" in str(error):
            return Finding(Verdict.SKIPPED, reason=f"torch itself: {error}")
        raise
    return None


#: Of more samples than these, some are compared.
_SAMPLES = 6


def some(samples: int) -> list[int]:
    """Return which samples of a batch are compared: all of a small one, else the first, the last and the middle."""
    if samples <= _SAMPLES:
        return list(range(samples))
    return [0, 1, samples // 2, samples - 2, samples - 1]


class Expected:
    """What the reference says of one case: relevance, bounds and ledger, one row a sample; or of ``some`` samples."""

    def __init__(
        self, problem: Problem, layer: LayerCase, variant: Variant, device: str, *, sampled: bool = False
    ) -> None:
        self.model = model_for(str(problem.x.dtype), device)
        described = describe(problem.module, layer.sample_shape)
        x, relevance = (rows(t, batched=problem.batched) for t in (problem.x, problem.relevance))
        #: Which samples these are.
        self.samples = some(len(x)) if sampled else list(range(len(x)))
        of = [Sample(index, tuple(problem.x.shape), problem.batched) for index in self.samples]
        data = [(sample, x[sample.index], relevance[sample.index]) for sample in of]
        known = remembered(
            partial(_of_samples, data, described, variant, self.model),
            "Expected", data, described, content(variant, problem), self.model,
        )  # fmt: skip
        shape = (len(self.samples), *x.shape[1:])
        self.relevance, self.worst, self.probable = (
            known[name].reshape(shape) for name in ("relevance", "worst", "probable")
        )
        self.overflows = known["overflows"].astype(np.bool_).reshape(shape)
        each = [{name: values[index] for name, values in known.items()} for index in range(len(self.samples))]
        self.bounds = [Bound(one["worst"], one["probable"], (), one["overflows"]) for one in each]
        self.ledgers = [
            Ledger(
                one["inputs"], one["bias"], one["stabilizer"], one["zero_branch"], one["split"], one["balance"],
                float(one["transposition"]),
            )
            for one in each
        ]  # fmt: skip


_OF_A_SAMPLE = (
    "relevance", "worst", "probable", "overflows",
    "inputs", "bias", "stabilizer", "zero_branch", "split", "balance", "transposition",
)  # fmt: skip


def content(variant: Variant, problem: Problem) -> list[object]:
    """Return what a variant's expectations depend on, as plain data; its functions are known by its rule and name."""
    arguments = variant.arguments(tuple(problem.x.shape), problem.x.dtype)
    # an iterator would be used up
    arguments["zero_params"] = variant.zero_params
    return [variant.rule, variant.name, arguments]


def _of_samples(
    data: Sequence[tuple[Sample, Array, Array]], described: Layer, variant: Variant, model: Model
) -> dict[str, NDArray[Any]]:
    """Ask the reference: relevance, bound and ledger of each sample, by their names."""
    found: dict[str, list[Any]] = {name: [] for name in _OF_A_SAMPLE}
    for sample, x, R in data:
        parts = variant.parts(affine(described, x, variant.zero_params), sample)
        limit, account = bound(parts, R, variant.stabilizer, model), ledger(parts, R, variant.stabilizer)
        of_sample = (
            ref.relevance(parts, R, variant.stabilizer), limit.worst, limit.probable, limit.overflows,
            account.inputs, account.bias, account.stabilizer, account.zero_branch, account.relevance, account.balance,
            account.transposition,
        )  # fmt: skip
        for name, value in zip(_OF_A_SAMPLE, of_sample, strict=True):
            found[name].append(value)
    return {name: np.array(values) for name, values in found.items()}


def agrees(
    problem_of: Callable[[], Problem], layer: LayerCase, variant: Variant, device: str, subject: Subject
) -> Finding:
    """Check agreement: every entry within its bound."""
    problem, variant = problem_of(), as_fixed(variant, subject)
    rule = subject.get(variant.rule)(**variant.arguments(tuple(problem.x.shape), problem.x.dtype))
    got, wrong = relevance_or_wrong(rule, problem)
    if wrong or got is None:
        return wrong or Finding(Verdict.ERROR)
    expected = Expected(problem, layer, variant, device, sampled=True)
    return judge(
        got[expected.samples], expected.relevance, expected.worst, expected.probable, expected.model.name,
        expected.ledgers, expected.overflows, expected.samples,
    )  # fmt: skip


def judge(
    got: Array,
    expected: Array,
    worst: Array,
    probable: Array | None,
    model: str,
    ledgers: list[Ledger] | None = None,
    overflows: NDArray[np.bool_] | None = None,
    samples: list[int] | None = None,
) -> Finding:
    """Turn a comparison into a finding: every check that compares ends here. One row a sample, of those named."""
    found = compare(got, expected, worst, probable, overflows)
    details: dict[str, Any] = {"model": model}
    if found.index is not None:
        sample, entry = (int(i) for i in np.unravel_index(found.index, got.shape))
        details["worst entry"] = {
            "sample": sample if samples is None else samples[sample],
            "entry": entry,
            "got": float(got[sample, entry]),
            "expected": float(expected[sample, entry]),
            "bound": float(worst[sample, entry]),
            "ratio": found.ratio,
        }
    if ledgers:
        details["ledger"] = [_totals(account) for account in ledgers]
    if found.refuted:
        where = details["worst entry"]
        reason = (
            f"sample {where['sample']}, entry {where['entry']}: "
            f"got {where['got']:.9g}, {expected_within(where['expected'], where['bound'], found.ratio)}"
        )
        return Finding(Verdict.FAIL, found.ratio, found.probable, found.undecided, reason, details)
    if found.undecided == 1:
        reason = "for every value, rounding decides the sign of a denominator, or numbers leave the dtype's range"
        return Finding(Verdict.INCONCLUSIVE, None, None, 1.0, reason, details)
    return Finding(Verdict.PASS, found.ratio, found.probable, found.undecided, "", details)


def expected_within(expected: float, bound: float, ratio: float) -> str:
    """Say what was expected, and how far off a value is: exactly, or as a multiple of the rounding bound."""
    if bound == 0:
        return f"expected exactly {expected:.9g}"
    if np.isnan(ratio):
        return f"expected {expected:.9g} within {bound:.3g}"
    return f"expected {expected:.9g}, {ratio:.3g} times the bound {bound:.3g}"


def _totals(account: Ledger) -> dict[str, float]:
    return dict(account.total()._asdict())


def conserves(
    problem_of: Callable[[], Problem], layer: LayerCase, variant: Variant, device: str, subject: Subject
) -> Finding:
    """Check conservation: the ledger balances, and the subject's relevance sums to what the ledger gives the inputs."""
    problem, variant = problem_of(), as_fixed(variant, subject)
    rule = subject.get(variant.rule)(**variant.arguments(tuple(problem.x.shape), problem.x.dtype))
    got, wrong = relevance_or_wrong(rule, problem)
    if wrong or got is None:
        return wrong or Finding(Verdict.ERROR)
    expected = Expected(problem, layer, variant, device, sampled=True)
    got = got[expected.samples]
    for index, account in enumerate(expected.ledgers):
        if not bool((np.abs(account.imbalance()) <= account.balance).all()):
            reason = (
                f"a fault of the reference, not of the implementation: its ledger of sample {index} does not add up, "
                f"by {np.abs(account.imbalance()).max():.3g}"
            )
            return Finding(Verdict.ERROR, reason=reason)
    inputs = np.array([[account.total().inputs] for account in expected.ledgers]).reshape(len(got), 1)
    sums, room = np.zeros_like(inputs), np.zeros_like(inputs)
    for index, (account, limit, row) in enumerate(zip(expected.ledgers, expected.bounds, got, strict=True)):
        # beyond the range of its dtype, an entry is infinite, and two of them may have no sum; otherwise NaN is wrong
        bounded = np.isfinite(row).all() or (np.isnan(row) & ~limit.overflows).any()
        sums[index] = row.sum() if bounded else inputs[index]
        room[index] = account.inputs_bound(limit, row) if bounded else np.inf
    return judge(
        sums, inputs, np.where(np.isnan(room), np.inf, room), None, expected.model.name, expected.ledgers, None,
        expected.samples,
    )  # fmt: skip


def gradient_agrees(
    problem_of: Callable[[], Problem],
    layer: LayerCase,
    rule_name: str,
    arguments: dict[str, float],
    device: str,
    subject: Subject,
) -> Finding:
    """Check agreement of a rule that looks only at the gradient."""
    problem, arguments = problem_of(), arguments_as_fixed(rule_name, arguments, subject)
    rule = subject.get(rule_name)(**arguments)
    got, wrong = relevance_or_wrong(rule, problem)
    if wrong or got is None:
        return wrong or Finding(Verdict.ERROR)
    model = model_for(str(problem.x.dtype), device)
    described = describe(problem.module, layer.sample_shape)
    samples = zip(*(rows(t, batched=problem.batched) for t in (problem.x, problem.relevance)), strict=True)
    pairs = [gradient_rule(rule_name, described, x_i, R_i, arguments, model) for x_i, R_i in samples]
    expected, worst, probable = (
        np.array(values).reshape(got.shape)
        for values in ([r for r, _ in pairs], [b.worst for _, b in pairs], [b.probable for _, b in pairs])
    )
    return judge(got, expected, worst, probable, model.name)


def gradient_rule(
    rule: str, layer: Layer, x: Array, R: Array, arguments: Mapping[str, float], model: Model
) -> tuple[Array, Bound]:
    """Return what the reference says of one sample, and how far rounding can take it."""
    exact = product_bound(np.zeros_like(R), R, 0, model)
    if rule == "Pass":
        return ref.pass_(R), exact
    if rule == "ReLUDeconvNet":
        return ref.relu_deconvnet(R), exact
    if rule == "ReLUBetaSmooth":
        beta = arguments.get("beta_smooth", 10.0)
        return ref.relu_beta_smooth(x, R, beta), beta_smooth_bound(x, R, beta, model)
    assert isinstance(layer, NonlinearLayer)
    slope, size = np.diagonal(layer.jacobian(x)), np.diagonal(layer.sizes(x)[1])
    return ref.relu_guided(slope, R), product_bound(size, R, layer.roundings, model)
