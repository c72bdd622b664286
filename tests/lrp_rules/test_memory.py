"""How much a rule holds at a time, as bench counts it: by what torch's allocator is asked for, the same each time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from bench.memory import peak_bytes
from lrp_rules import Epsilon, Norm, ZBox
from lrp_rules.layers import known
from lrp_rules.layers.layer import TERMS

if TYPE_CHECKING:
    from lrp_rules.hooks import Hook


def peak(module: nn.Module, shape: tuple[int, ...], rule: Hook | None) -> int:
    """Return the peak of a forward pass and its gradient, or relevance."""
    module = module.float()
    x = torch.randn(shape, dtype=torch.float32).requires_grad_()
    R = torch.randn_like(module(x))
    handle = None if rule is None else rule.register(module)
    try:
        return peak_bytes(lambda: torch.autograd.grad(module(x), x, R)[0])
    finally:
        if handle is not None:
            handle.remove()


@pytest.mark.parametrize("rule", [Epsilon, Norm])
@pytest.mark.parametrize(("size", "batch"), [(1024, 128), (2048, 64)])
def test_epsilon_holds_a_quarter_more_than_the_gradient_at_most(size: int, batch: int, rule: type[Hook]) -> None:
    module = nn.Linear(size, size)
    assert peak(module, (batch, size), rule()) <= 1.25 * peak(module, (batch, size), None)


def test_done_at_once_it_holds_half_more(monkeypatch: pytest.MonkeyPatch) -> None:
    # the mutant of the above
    monkeypatch.setattr(known, "QUARTERED", 2**40)
    module = nn.Linear(1024, 1024)
    assert peak(module, (128, 1024), Epsilon()) == 1.5 * peak(module, (128, 1024), None)


def test_looking_at_the_weight_takes_no_more_than_the_layer_for_a_few_samples() -> None:
    module = nn.Linear(4096, 4096)
    looked_at = known.LEAST * TERMS * 4
    assert peak(module, (1, 4096), Epsilon(zero_params="bias")) <= 2 * peak(module, (1, 4096), None) + looked_at


def test_few_channels_are_not_copied_where_there_is_nothing_beside_them() -> None:
    # z, R / S(d) in two steps, and what the convolutions need for themselves: a copy of R / S(d) would be one more
    module, output = nn.Conv1d(1, 32, 80, stride=4), 4 * 32 * 1981 * 4
    assert peak(module, (4, 1, 8000), ZBox(-3.0, 3.0)) < 6 * output
