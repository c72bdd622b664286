"""Checks ``agreement`` and ``conservation``: the relevance of a subject against the reference, and where it went."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from reference import rules as ref
from reference.layers import affine
from reference.ledger import ledger
from reference.rounding import bound, gradient_bound, model_for
from verify.comparator import compare
from verify.model import Finding, Verdict
from verify.torch_layers import array, describe
from verify.variants import Sample, Variant

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from verify.cases import Problem
    from verify.layers import LayerCase
    from verify.subjects import Subject

    Array = NDArray[np.float64]

GRADIENT_ARGUMENTS: dict[str, tuple[dict[str, float], ...]] = {"ReLUBetaSmooth": ({}, {"beta_smooth": 0.5}, {"beta_smooth": 100.0})}


def relevance_of(rule: Any, module: nn.Module, x: Tensor, relevance: Tensor) -> Tensor:
    """Return what a rule makes of a relevance: register, run forward and backward, remove."""
    handle = rule.register(module)
    try:
        x = x.detach().requires_grad_()
        (r,) = torch.autograd.grad(module(x), x, relevance)
    finally:
        handle.remove()
    return r


def _got(subject: Subject, rule: Any, problem: Problem) -> tuple[Array | None, Finding | None]:
    """Return the subject's relevance, one row a sample; or what is wrong with it."""
    del subject
    x = problem.x
    r = relevance_of(rule, problem.module, x, problem.relevance)
    if not isinstance(r, torch.Tensor) or r.shape != x.shape:
        shape = tuple(r.shape) if isinstance(r, torch.Tensor) else type(r).__name__
        return None, Finding(Verdict.FAIL, reason=f"relevance of shape {shape}, expected that of the input, {tuple(x.shape)}")
    if r.dtype != x.dtype:
        return None, Finding(Verdict.FAIL, reason=f"relevance of dtype {r.dtype}, expected that of the input, {x.dtype}")
    return _rows(r, batched=problem.batched), None


def _rows(t: Tensor, *, batched: bool) -> Array:
    rows: Array = array(t)
    return rows.reshape(rows.shape[0], -1) if batched and rows.shape[0] else rows.reshape(1 if not batched else 0, -1 if rows.size else 0)


def _unsupported(problem: Problem) -> Finding | None:
    """Tell a layer that torch itself cannot run in this dtype from a rule that is wrong."""
    try:
        x = problem.x.detach().requires_grad_()
        torch.autograd.grad(problem.module(x), x, problem.relevance)
    except (RuntimeError, NotImplementedError) as error:
        if "not implemented" in str(error):
            return Finding(Verdict.SKIPPED, reason=f"torch itself: {error}")
        raise
    return None


class Expected:
    """What the reference says of one case: relevance, bounds and ledger, one row a sample."""

    def __init__(self, problem: Problem, layer: LayerCase, variant: Variant, device: str) -> None:
        x, relevance = (_rows(t, batched=problem.batched) for t in (problem.x, problem.relevance))
        dtype = str(problem.x.dtype).removeprefix("torch.")
        self.model = model_for(dtype, device)
        described = describe(problem.module, layer.sample_shape)
        rows, worst, probable, ledgers = [], [], [], []
        for index, (x_i, relevance_i) in enumerate(zip(x, relevance, strict=True)):
            sample = Sample(index, tuple(problem.x.shape), problem.batched)
            parts = variant.parts(affine(described, x_i, variant.zero_params), sample)
            rows.append(ref.relevance(parts, relevance_i, variant.stabilizer))
            limits = bound(parts, relevance_i, variant.stabilizer, self.model)
            worst.append(limits.worst)
            probable.append(limits.probable)
            ledgers.append(ledger(parts, relevance_i, variant.stabilizer))
        shape = x.shape
        self.relevance, self.worst, self.probable = (np.array(v).reshape(shape) for v in (rows, worst, probable))
        self.ledgers = ledgers


def agrees(problem_of: Callable[[], Problem], layer: LayerCase, variant: Variant, device: str, subject: Subject) -> Finding:
    """Check agreement: every entry within its bound."""
    problem = problem_of()
    rule = subject.get(variant.rule)(**variant.arguments(tuple(problem.x.shape), problem.x.dtype))
    if unsupported := _unsupported(problem):
        return unsupported
    got, wrong = _got(subject, rule, problem)
    if wrong or got is None:
        return wrong or Finding(Verdict.ERROR)
    expected = Expected(problem, layer, variant, device)
    return _judge(got, expected.relevance, expected.worst, expected.probable, expected.model.name, expected.ledgers)


def _judge(
    got: Array, expected: Array, worst: Array, probable: Array, model: str, ledgers: list[Any] | None = None
) -> Finding:
    found = compare(got, expected, worst, probable)
    details: dict[str, Any] = {"model": model}
    if found.index is not None:
        sample, entry = (int(i) for i in np.unravel_index(found.index, got.shape))
        details["worst entry"] = {
            "sample": sample,
            "entry": entry,
            "got": float(got[sample, entry]),
            "expected": float(expected[sample, entry]),
            "bound": float(worst[sample, entry]),
            "ratio": found.ratio,
        }
    if ledgers:
        details["ledger"] = [{name: float(value) for name, value in _totals(account).items()} for account in ledgers]
    if found.refuted:
        where = details["worst entry"]
        reason = (
            f"sample {where['sample']}, entry {where['entry']}: got {where['got']:.9g}, expected {where['expected']:.9g}, "
            f"{_times(found.ratio)} the bound {where['bound']:.3g}"
        )
        return Finding(Verdict.FAIL, found.ratio, found.probable, found.undecided, reason, details)
    if found.undecided == 1:
        reason = "rounding decides the sign of a denominator behind every entry"
        return Finding(Verdict.INCONCLUSIVE, None, None, 1.0, reason, details)
    return Finding(Verdict.PASS, found.ratio, found.probable, found.undecided, "", details)


def _times(ratio: float) -> str:
    return "not comparable with" if np.isnan(ratio) else f"{ratio:.3g} times"


def _totals(account: Any) -> Mapping[str, float]:
    total = account.total()
    return {"inputs": total.inputs, "bias": total.bias, "stabilizer": total.stabilizer, "zero branch": total.zero_branch}


def conserves(
    problem_of: Callable[[], Problem], layer: LayerCase, variant: Variant, device: str, subject: Subject
) -> Finding:
    """Check conservation: the ledger balances, and the subject's relevance sums to what the ledger gives the inputs."""
    problem = problem_of()
    rule = subject.get(variant.rule)(**variant.arguments(tuple(problem.x.shape), problem.x.dtype))
    if unsupported := _unsupported(problem):
        return unsupported
    got, wrong = _got(subject, rule, problem)
    if wrong or got is None:
        return wrong or Finding(Verdict.ERROR)
    expected = Expected(problem, layer, variant, device)
    for index, account in enumerate(expected.ledgers):
        if not account.balances():
            reason = f"the reference's own ledger of sample {index} does not balance: off by {account.imbalance():.3g}"
            return Finding(Verdict.ERROR, reason=reason)
    # the sum of n entries is off by what each of them is, and by its own n - 1 additions in float64
    n = max(got.shape[1], 1) if got.ndim > 1 else 1
    adding = 2 * n * np.finfo(np.float64).eps
    inputs = np.array([_totals(account)["inputs"] for account in expected.ledgers])
    room = expected.worst.sum(axis=1) + adding * (np.abs(got).sum(axis=1) + np.abs(expected.relevance).sum(axis=1))
    room += np.array([account.room() for account in expected.ledgers])
    likely = np.sqrt((expected.probable**2).sum(axis=1)) + room - expected.worst.sum(axis=1) if len(room) else room
    likely = np.where(np.isfinite(room), likely, np.inf)
    sums = got.sum(axis=1) if got.ndim > 1 else np.zeros(0)
    return _judge(sums[:, None], inputs[:, None], room[:, None], likely[:, None], expected.model.name, expected.ledgers)


def gradient_agrees(
    problem_of: Callable[[], Problem],
    layer: LayerCase,
    rule_name: str,
    arguments: dict[str, float],
    device: str,
    subject: Subject,
) -> Finding:
    """Check agreement of a rule that looks only at the gradient."""
    problem = problem_of()
    rule = subject.get(rule_name)(**arguments)
    if unsupported := _unsupported(problem):
        return unsupported
    got, wrong = _got(subject, rule, problem)
    if wrong or got is None:
        return wrong or Finding(Verdict.ERROR)
    dtype = str(problem.x.dtype).removeprefix("torch.")
    model = model_for(dtype, device)
    described = describe(problem.module, layer.sample_shape)
    rows = [
        ref.gradient_rule(rule_name, described, x_i, relevance_i, **arguments)
        for x_i, relevance_i in zip(
            *(_rows(t, batched=problem.batched) for t in (problem.x, problem.relevance)), strict=True
        )
    ]
    limits = [
        gradient_bound(rule_name, described, x_i, relevance_i, model, **arguments)
        for x_i, relevance_i in zip(
            *(_rows(t, batched=problem.batched) for t in (problem.x, problem.relevance)), strict=True
        )
    ]
    worst = np.array(limits).reshape(got.shape)
    return _judge(got, np.array(rows).reshape(got.shape), worst, worst, model.name)
