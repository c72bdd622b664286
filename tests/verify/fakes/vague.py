"""Our rules, but Epsilon is infinite in one entry: of 60 inputs alone, and in the namespace ``Everywhere`` of any."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

import lrp_rules
from lrp_rules import *  # noqa: F403  the other rules


class _Spoilt(torch.autograd.Function):
    """What is given, with a gradient whose first entry is infinite."""

    @staticmethod
    def forward(_: Any, x: torch.Tensor) -> torch.Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(_: Any, *gradients: torch.Tensor) -> torch.Tensor:
        spoilt = gradients[0].clone()
        spoilt[(0,) * spoilt.ndim] = torch.inf
        return spoilt


class _Epsilon:
    """The right rule, and the spoilt relevance in front of it."""

    everywhere = False

    def __init__(self, **arguments: Any) -> None:
        self._rule = lrp_rules.Epsilon(**arguments)

    def register(self, module: Any) -> Any:
        def before(_: Any, given: tuple[torch.Tensor, ...]) -> Any:
            x = given[0]
            return (_Spoilt.apply(x),) if self.everywhere or x.shape[-1] == 60 else None  # type: ignore[no-untyped-call]

        handles = [module.register_forward_pre_hook(before), self._rule.register(module)]
        return SimpleNamespace(remove=lambda: [handle.remove() for handle in reversed(handles)])


class Epsilon(_Epsilon):  # type: ignore[no-redef]
    """Wrong on a small part of all that is asked."""


class Everywhere:
    """A subject that is wrong on all layers."""

    ZPlus = lrp_rules.ZPlus

    class Epsilon(_Epsilon):
        """Wrong on all layers."""

        everywhere = True
