"""Libraries of another shape, as subjects: ``--subject verify.adapters.captum``, ``--subject verify.adapters.lxt``.

An adapter is a module with rule classes of the API, as far as its library has them. It poses the library's own rule the
question of a case, and alters nothing of the answer. What the library does not have is not offered: a rule is missing,
and a parameter without a counterpart raises NotOfferedError as soon as it is given another value than the default.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from verify.checks.probing import relevance_of
from verify.subjects import RULES, NotOfferedError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from verify.subjects import Subject

__all__ = ["Handle", "bias_is_zeroed", "number", "smoke"]

_ARGUMENTS: dict[str, dict[str, float]] = {"AlphaBeta": {"alpha": 1.0, "beta": 0.0}, "ZBox": {"low": 0.0, "high": 4.0}}


def smoke(subject: Subject) -> str | None:
    """Return why none of the subject's rules can run at all, or None if one of them can.

    The case is the smallest there is, and all its numbers are positive: no convention makes a difference there, and
    nothing is a reason to refuse it. What a rule answers is left to the cases: one that runs and is wrong is no reason.
    """
    reasons = []
    for name in RULES:
        if not subject.offers(name):
            continue
        module, x, relevance = _smallest(name)
        try:
            r: Any = relevance_of(subject.get(name)(**_ARGUMENTS.get(name, {})), module, x, relevance)
        except NotOfferedError as error:
            reasons.append(f"{name}: {error}")
        except Exception as error:  # noqa: BLE001  whatever it is, the subject says that it cannot
            reasons.append(f"{name}: {type(error).__name__}: {error}")
        else:
            if isinstance(r, torch.Tensor) and r.shape == x.shape:
                return None
            reasons.append(f"{name}: the relevance is {r!r}, expected a tensor of shape {tuple(x.shape)}")
    if not reasons:
        return f"{subject.spec} offers none of the rules {', '.join(RULES)}"
    return f"none of the rules of {subject.spec} runs on one sample of a layer of two inputs; " + "; ".join(reasons)


def _smallest(rule: str) -> tuple[nn.Module, Tensor, Tensor]:
    x = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    relevance = torch.tensor([[0.5, 1.0]], dtype=torch.float64)
    if rule == "Pass" or rule.startswith("ReLU"):
        return nn.ReLU(), x, relevance
    module = nn.Linear(2, 2, bias=False, dtype=torch.float64)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 0.5]]))
    return module, x, relevance


def number(name: str, value: Any, library: str) -> Any:
    """Return a parameter that the library wants as a number, unless it is a callable, which the API allows."""
    if callable(value):
        msg = f"{library} takes a number as {name}, not a callable"
        raise NotOfferedError(msg)
    return value


def bias_is_zeroed(zero_params: str | Sequence[str] | None, library: str) -> bool:
    """Whether the bias, and nothing else, is to be zero, for a library that can do just that."""
    names = {zero_params} if isinstance(zero_params, str) else set(zero_params or ())
    if names - {"bias"}:
        msg = f"{library} can take out the bias alone, not zero_params={zero_params!r}"
        raise NotOfferedError(msg)
    return bool(names)


class Handle:
    """Puts another forward pass in place of a module's own, until ``remove()``."""

    def __init__(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        attributes = vars(module)
        if _MARK in attributes:
            msg = f"this {type(module).__name__} has a rule of an adapter; remove it before another is registered"
            raise RuntimeError(msg)
        # in the instance's own dictionary: a module would take what is one itself for a part of it
        self._before = {name: attributes[name] for name in ("forward",) if name in attributes}
        self._attributes = attributes
        attributes |= {"forward": forward, _MARK: self}

    def remove(self) -> None:
        """Give the module its own forward pass back."""
        if self._attributes.get(_MARK) is self:
            del self._attributes["forward"], self._attributes[_MARK]
            self._attributes |= self._before


#: The attribute of a module that says that its forward pass is an adapter's.
_MARK = "_rule_of_adapter"
