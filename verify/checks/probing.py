"""What the small checks share: a layer with data, one run of a rule, findings in a word."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from verify.model import Finding, NotOfferedError, Verdict
from verify.subjects.protocol import is_command

if TYPE_CHECKING:
    from collections.abc import Callable

    from verify.model import Subject


def passed() -> Finding:
    """Return a pass."""
    return Finding(Verdict.PASS)


def fail(reason: str) -> Finding:
    """Return a failure."""
    return Finding(Verdict.FAIL, reason=reason)


#: Rules that change parameters, ids of layers that have none, and the error that says so.
_CHANGING = frozenset({"ZPlus", "AlphaBeta", "Gamma", "ZBox", "WSquare"})
_WEIGHTLESS = re.compile(r"/(adaptive)?avgpool\d|/batchnorm2d-plain")
_NONE_THERE = re.compile(r"RuntimeError: .*\b(parameters?|weight)\b", re.DOTALL)


def has_no_parameters(rule: str, id_: str, reason: str) -> bool:
    """Whether a rule that changes parameters refuses a layer because it has none: clause 2.3 leaves that open."""
    return rule in _CHANGING and bool(_WEIGHTLESS.search(id_)) and bool(_NONE_THERE.match(reason))


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors agree in every bit but the sign of zero."""
    return a.shape == b.shape and a.dtype == b.dtype and bool((a == b).all())


def layer_and_data(rule: str) -> tuple[Any, Tensor, Tensor]:
    """Return a small layer that suits a rule, an input of both signs, and a relevance of both signs with zeros."""
    module: nn.Module = nn.ReLU() if rule.startswith("ReLU") or rule == "Pass" else nn.Linear(3, 2, dtype=torch.float64)
    x = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, -1.5]], dtype=torch.float64)
    if isinstance(module, nn.Linear):
        with torch.no_grad():
            module.weight.copy_(torch.tensor([[0.5, -1.0, 2.0], [-0.25, 1.5, 0.75]]))
            module.bias.copy_(torch.tensor([0.75, -1.25]))
        return module, x, torch.tensor([[1.5, -0.5], [0.0, 2.0]], dtype=torch.float64)
    return module, x, torch.tensor([[1.5, -0.5, 2.0], [0.0, 2.0, -3.0]], dtype=torch.float64)


def of_python(run: Callable[[Subject], Finding], subject: Subject) -> Finding:
    """Ask a subject in Python. Others make whole matrices, compile each shape, or know fewer options."""
    if is_command(subject.spec):
        msg = "large layers, and options that meet, are asked of subjects in Python alone"
        raise NotOfferedError(msg)
    return run(subject)
