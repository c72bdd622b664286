"""A model that DistributedDataParallel wraps has the same rules, and the same relevance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import distributed, nn

from lrp_rules import attach
from lrp_rules.composites import EpsilonPlusFlat
from tests.lrp_rules.networks import IMAGE, prepared, residual

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import Tensor

pytestmark = pytest.mark.skipif(not distributed.is_available(), reason="this torch was built without distributed")


@pytest.fixture
def wrapped(tmp_path: Path) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Return a model, and the model in a group of this process alone."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    model = prepared(residual, constants=True)
    try:
        yield model, nn.parallel.DistributedDataParallel(model)
    finally:
        distributed.destroy_process_group()


def explained(attached: nn.Module, called: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """Return output, relevance by a backward pass, and what the parameters have of it."""
    x = x.clone().requires_grad_()
    with attach(attached, EpsilonPlusFlat(), strict=True):
        output = called(x)
    output.backward(torch.ones_like(output))
    assert x.grad is not None
    grads = [parameter.grad for parameter in attached.parameters()]
    return output.detach(), x.grad, grads


@pytest.mark.parametrize("attached", ["model", "wrapper"])
@pytest.mark.parametrize("training", [False, True])
def test_a_wrapped_model_has_the_same_relevance(
    wrapped: tuple[nn.Module, nn.Module], attached: str, training: bool
) -> None:
    model, ddp = wrapped
    x = torch.randn(IMAGE, dtype=torch.float64)
    expected = explained(model, model, x)
    ddp.training = training  # the wrapper alone: it reduces gradients, and no rule is for a batch norm that trains
    for _ in range(2):  # the reducer of the wrapper waits for every parameter before a second call
        output, relevance, grads = explained(model if attached == "model" else ddp, ddp, x)
        assert torch.equal(output, expected[0])
        assert torch.equal(relevance, expected[1])
        assert not any(bool(grad.any()) for grad in grads if grad is not None)  # no relevance of parameters


def test_names_are_those_of_the_wrapper(wrapped: tuple[nn.Module, nn.Module]) -> None:
    _, ddp = wrapped
    x = torch.randn(IMAGE, dtype=torch.float64, requires_grad=True)
    with attach(ddp, EpsilonPlusFlat(), keep=["module.5", "module.7.weight"]) as rules:
        output = ddp(x)
    hidden, weight = torch.autograd.grad(output.sum(), [rules.kept["module.5"], rules.kept["module.7.weight"]])
    assert hidden.shape == (2, 4, 1, 1)
    assert weight.shape == (5, 4)
