"""How a rule of a subject is asked for a relevance, and whether a subject can be asked at all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from verify.formats.operands import ruled
from verify.formats.text import shortened, text_of
from verify.model import NETWORK_RULES, RULES, NotOfferedError, Subject
from verify.subjects.answering import told

if TYPE_CHECKING:
    from verify.model import Problem

_ARGUMENTS: dict[str, dict[str, float]] = {"AlphaBeta": {"alpha": 1.0, "beta": 0.0}, "ZBox": {"low": 0.0, "high": 4.0}}


def relevance_of(rule: Any, module: nn.Module, x: Tensor, relevance: Tensor) -> Tensor:
    """Return what a rule makes of a relevance: register, run forward and backward, remove.

    On an operation of several tensors, the rule is put on that, and x has them side by side.
    """
    (r,) = told(rule, lambda: [_relevance_of(rule, module, x, relevance)])
    found: Tensor = r
    return found


def _relevance_of(rule: Any, module: nn.Module, x: Tensor, relevance: Tensor) -> Tensor:
    handle = rule.register(ruled(module))
    try:
        x = x.detach().requires_grad_()
        (r,) = torch.autograd.grad(module(x), x, relevance)
    finally:
        handle.remove()
    return r


def relevance_by_call(rule: Any, problem: Problem) -> Tensor:
    """Return what a rule makes of the relevance of a problem, asked for as the problem says: each way is the same."""
    (r,) = told(rule, lambda: [_relevance_by_call(rule, problem)])
    found: Tensor = r
    return found


def _relevance_by_call(rule: Any, problem: Problem) -> Tensor:
    module, x, relevance, call = problem.module, problem.x, problem.relevance, problem.call
    if call == "copy":
        if not hasattr(rule, "copy"):
            msg = f"{type(rule).__name__} has no copy()"
            raise NotOfferedError(msg)
        rule = rule.copy()
    handle = rule.register(ruled(module))
    try:
        if call == "again":  # what an earlier call with other numbers leaves behind is of no account
            other = (1.0 - x.detach()).requires_grad_()
            torch.autograd.grad(module(other), other, -relevance)
        elif call == "no-grad-first":
            with torch.no_grad():
                module(x.detach())
        x = x.detach().requires_grad_()
        y = module(x * 1 if call == "inner" else x)
        if call == "backward":
            y.backward(relevance)
            r: Tensor | None = x.grad
            assert r is not None, "backward() has left no gradient"
        else:
            (r,) = torch.autograd.grad(y, x, relevance, create_graph=call == "create-graph")
    finally:
        handle.remove()
    return r.detach()


def smoke(subject: Subject) -> str | None:
    """Return why none of the subject's rules can run at all, or None if one of them can.

    The case is the smallest there is, and all its numbers are positive: no convention makes a difference there, and
    nothing is a reason to refuse it. What a rule answers is left to the cases: one that runs and is wrong is no reason.
    Nor is one that does not offer this layer: it may offer others.
    """
    reasons = []
    for name in RULES:
        if not subject.offers(name):
            continue
        module, x, relevance = _smallest(name)
        fixed = subject.parameters.get(name, {})
        arguments = {key: value for key, value in _ARGUMENTS.get(name, {}).items() if key not in fixed}
        try:
            r: Any = relevance_of(subject.get(name)(**arguments), module, x, relevance)
        except NotOfferedError:
            return None
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            # whatever it is, the subject says that it cannot
            reasons.append(f"{name}: {type(error).__name__}: {shortened(text_of(error))}")
        else:
            if isinstance(r, torch.Tensor) and r.shape == x.shape:
                return None
            reasons.append(
                f"{name}: the relevance is {shortened(repr(r))}, expected a tensor of shape {tuple(x.shape)}"
            )
    if not reasons and any(map(subject.offers, NETWORK_RULES)):
        return None  # they need more than the smallest layer
    if not reasons:
        return f"{subject.spec} has none of the classes {', '.join(RULES)}"
    return (
        f"none of the rules of {subject.spec} gives a relevance on the smallest layer; "
        f"expected Rule(...).register(module), see docs/how-to/adapter.md; {'; '.join(reasons)}"
    )


def _smallest(rule: str) -> tuple[nn.Module, Tensor, Tensor]:
    x = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    relevance = torch.tensor([[0.5, 1.0]], dtype=torch.float64)
    if rule == "Pass" or rule.startswith("ReLU"):
        return nn.ReLU(), x, relevance
    module = nn.Linear(2, 2, bias=False, dtype=torch.float64)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 0.5]]))
    return module, x, relevance
