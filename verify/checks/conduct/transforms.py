"""Conduct: batches of relevance, and torch's transforms of functions: right, or refused."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from torch import Tensor
from torch.autograd import forward_ad

from verify.checks.conduct.probing import (
    OTHER_R,
    WEIGHED,
    R,
    Topic,
    X,
    attached,
    differs,
    grad,
    layer,
    leaf,
    make,
    tensor,
    unless_refused,
    watched,
)
from verify.model import Level

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import nn

    from verify.model import Subject

_SEVERAL = torch.stack((R, OTHER_R[:2], -2 * R))
_T = tensor([[0.5, 1.0, -2.0], [1.5, -1.0, 0.25]])


def _constant(d: Tensor) -> Tensor:
    """Stabilize as no number does; of operations that can be batched without a warning, unlike torch.frexp."""
    return torch.where(d < 0, torch.full_like(d, -4.0), torch.full_like(d, 8.0))


def _steady(rule: str) -> dict[str, Callable[[Tensor], Tensor]]:
    return {"epsilon" if rule == "Epsilon" else "stabilizer": _constant} if rule in WEIGHED else {}


def _batched(rule: str, subject: Subject) -> Iterator[str]:
    """Several relevances at once give what each of them gives."""
    for module in (layer(rule), watched(rule)):
        with attached(make(subject, rule, **_steady(rule)), module):
            x = leaf(X)
            y = module(x)
            expected = torch.stack([grad(y, x, relevance, retain_graph=True) for relevance in _SEVERAL])
            found = grad(y, x, _SEVERAL, is_grads_batched=True)
        yield from differs(found, expected, f"{type(module).__name__}: the relevance with is_grads_batched=True")


def _batched_or_refused(rule: str, subject: Subject) -> Iterator[str]:
    yield from unless_refused(_batched(rule, subject))


def _expected(rule: str, subject: Subject, module: nn.Module) -> Tensor:
    with attached(make(subject, rule, **_steady(rule)), module):
        x = leaf(X)
        return grad(module(x), x, R)


def _vjp(rule: str, subject: Subject) -> Iterator[str]:
    """torch.func.vjp of a module with a rule gives relevance."""

    def ask(module: nn.Module) -> Iterator[str]:
        expected = _expected(rule, subject, module)
        with attached(make(subject, rule, **_steady(rule)), module):
            pull: Any = torch.func.vjp(module, X.clone())[1]
            (found,) = pull(R.clone())
        yield from differs(found, expected, f"{type(module).__name__}: what torch.func.vjp gives")

    for kind in (layer, watched):
        yield from unless_refused(ask(kind(rule)))


def _vmap(rule: str, subject: Subject) -> Iterator[str]:
    """A module that is run sample by sample under torch.vmap has its rule all the same."""

    def ask(module: nn.Module) -> Iterator[str]:
        expected = _expected(rule, subject, module)
        with attached(make(subject, rule, **_steady(rule)), module):
            x = leaf(X)
            found = grad(torch.vmap(module)(x), x, R)
        yield from differs(found, expected, f"{type(module).__name__}: the relevance through torch.vmap")

    for kind in (layer, watched):
        yield from unless_refused(ask(kind(rule)))


# Else torch first compiles formulas for other operations than those here, for a second.
_AT_ONCE = {"PYTORCH_JIT": "0"}


def _jvp(module: nn.Module) -> Tensor:
    with mock.patch.dict("os.environ", _AT_ONCE):
        tangent: Tensor = torch.func.jvp(module, (X.clone(),), (_T.clone(),))[1]
    return tangent


def _dual(module: nn.Module) -> Tensor | None:
    with mock.patch.dict("os.environ", _AT_ONCE), forward_ad.dual_level():
        tangent: Tensor | None = forward_ad.unpack_dual(module(forward_ad.make_dual(X.clone(), _T.clone()))).tangent
    return tangent


def _forward_mode(rule: str, subject: Subject) -> Iterator[str]:
    """In forward mode there is no relevance; the tangent t either is refused, or the transpose: <R, t'> is <r, t>."""

    def ask(module: nn.Module, name: str, push: Callable[[nn.Module], Tensor | None]) -> Iterator[str]:
        with attached(make(subject, rule, **_steady(rule)), module):
            tangent = push(module)
        for relevance in _SEVERAL:
            with attached(make(subject, rule, **_steady(rule)), module):
                x = leaf(X)
                expected = (grad(module(x), x, relevance) * _T).sum()
            found = (relevance * (0 if tangent is None else tangent)).sum()
            yield from differs(found, expected, f"{type(module).__name__}, by {name}: <R, tangent of the output>")

    for kind in (layer, watched):
        yield from unless_refused(ask(kind(rule), "torch.func.jvp", _jvp))
        yield from unless_refused(ask(kind(rule), "dual numbers", _dual))


def _recorded(rule: str, subject: Subject) -> Iterator[str]:
    """What torch.jit.trace records while a rule is in force has it, or the call is refused."""

    def ask(module: nn.Module) -> Iterator[str]:
        expected = _expected(rule, subject, module)
        with attached(make(subject, rule, **_steady(rule)), module):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # TorchScript is deprecated, and compares what it records with a rerun
                recorded = torch.jit.trace(module, X.clone(), check_trace=False)
            x = leaf(X)
            found = grad(recorded(x), x, R)
        yield from differs(found, expected, f"{type(module).__name__}: the relevance of what was traced")

    for kind in (layer, watched):
        yield from unless_refused(ask(kind(rule)))


TOPICS = (
    Topic("batched-relevance", _batched_or_refused),
    Topic("batched-relevance-works", _batched, level=Level.SHOULD),
    Topic("function-vjp", _vjp),
    Topic("vmapped-forward", _vmap),
    Topic("recorded-by-a-trace", _recorded),
    # of rules that are linear in R
    Topic("forward-mode", _forward_mode, (*WEIGHED, "Pass")),
)
