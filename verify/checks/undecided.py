"""What a case leaves undecided, and how much of it is the reference's own.

An entry is undecided where it has no finite bound: behind it rounding decides a sign, or numbers leave the range of the
dtype. Bounds come from the reference, so how many of these there are is known of a case, whoever is asked. A subject
can add to them in one way: numbers that are not finite, with which nothing can be compared any more, such as the sum of
a relevance that has an infinite entry. A subject that leaves more undecided than the reference must has failed the
case; how much is undecided is otherwise no matter of the subject's, and fails nothing.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from verify.formats.text import percent
from verify.model import Finding, Subject, Verdict, share_left

if TYPE_CHECKING:
    from torch import Tensor, nn

    from verify.model import Case

__all__ = ["FINITE", "held", "share"]


class _Ones:
    """A rule whose relevance is one everywhere: wrong, and finite."""

    def __init__(self, **_: Any) -> None:
        """Take any arguments."""

    def register(self, module: nn.Module) -> Any:
        """Put it on a module."""
        return module.register_full_backward_hook(_ones)

    def copy(self) -> _Ones:
        """Return another."""
        return _Ones()


def _ones(_module: nn.Module, gradients: tuple[Tensor | None, ...], _: Any) -> tuple[Tensor | None, ...]:
    return tuple(None if gradient is None else torch.ones_like(gradient) for gradient in gradients)


class _Finite(Subject):
    """A subject that offers every rule."""

    def offers(self, name: str) -> bool:
        """Whether it has something of that name."""
        return True

    def get(self, name: str) -> Any:
        """Return the rule."""
        return _Ones


#: Its numbers are finite, so that what is undecided about them is so by the reference's bounds.
FINITE: Subject = _Finite("ones", None, "")


def share(case: Case) -> float:
    """Return which share of its entries the reference leaves undecided, whoever is asked."""
    with torch.enable_grad():
        return share_left(case.run(FINITE))


def held(case: Case, finding: Finding) -> Finding:
    """Return the finding; one of a subject that leaves more undecided than the reference must is a failure."""
    if finding.verdict not in {Verdict.PASS, Verdict.INCONCLUSIVE}:
        return finding
    left = share_left(finding)
    if not left:
        return finding
    own = share(case) if finding.undecidable is None else finding.undecidable
    if left <= own:
        return replace(finding, undecidable=own)
    reason = (
        f"{percent(left)} of the values are inconclusive, expected {percent(own)}: "
        "the implementation gives values that are not finite, or so large that their sums are not"
    )
    return replace(finding, verdict=Verdict.FAIL, ratio=math.inf, probable=None, reason=reason, undecidable=own)
